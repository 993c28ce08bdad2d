//! How the writes of local sessions get their place in the order.
//!
//! A local session is known to its server alone and costs no entry, so there is no row in the replicated state that could
//! count its writes. Its server has one: the *carrier*. All writes of all local sessions of a server are numbered in the
//! order in which they came and are executed in that order, each once (P31), whatever is offered twice. A carrier is opened
//! by an entry when the first local session writes, and stands for as long as the process: an opening by the next
//! start makes void what the former one left on its way (P29).

use bytes::Bytes;
use corral_proto::{ServerId, SessionId, Zxid};

use super::outbox::Key;
use crate::tree::entry::Carrier;

/// Writes and what they wait to be resolved under.
pub type Writes = Vec<(Key, Bytes)>;

#[derive(Debug, Default)]
enum State {
    /// No local session has written.
    #[default]
    Closed,
    /// The opening is on its way; writes wait for it, in order.
    Opening { nonce: u64, waiting: Writes },
    /// Writes are numbered.
    Open { nonce: u64, attach: Zxid, last_n: u64 },
}

/// What a submitted write led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Carried {
    /// Offer it.
    Numbered(Bytes),
    /// It waits for the carrier, which has to be opened with this nonce.
    Open(u64),
    /// It waits for the carrier.
    Waits,
    /// Its session is over.
    TooLate,
}

/// The numbering of one server's local writes.
#[derive(Debug)]
pub struct CarrierQueue {
    server: ServerId,
    next_nonce: u64,
    state: State,
    /// Sessions below it are over, and their writes come too late.
    floor: SessionId,
}

impl CarrierQueue {
    /// Of this server; `seed` differs from start to start.
    pub fn new(server: ServerId, seed: u64) -> CarrierQueue {
        CarrierQueue { server, next_nonce: seed, state: State::Closed, floor: SessionId::NONE }
    }

    /// Whose it is.
    pub fn server(&self) -> ServerId {
        self.server
    }

    /// Takes a local session's write, encoded as an ordinary one.
    pub fn push(&mut self, key: Key, write: Bytes) -> Carried {
        if matches!(key, Key::Local { session, .. } if session < self.floor) {
            return Carried::TooLate;
        }
        match &mut self.state {
            State::Open { attach, last_n, .. } => {
                *last_n += 1;
                Carried::Numbered(Carrier { server: self.server, attach: *attach, n: *last_n }.carry(&write))
            }
            State::Opening { waiting, .. } => {
                waiting.push((key, write));
                Carried::Waits
            }
            State::Closed => Carried::Open(self.open(vec![(key, write)])),
        }
    }

    fn open(&mut self, waiting: Writes) -> u64 {
        let nonce = self.next_nonce;
        self.next_nonce = nonce.wrapping_add(1);
        self.state = State::Opening { nonce, waiting };
        nonce
    }

    /// An opening was executed, of whichever server. Returns what was waiting for it, numbered; or the nonce of another
    /// opening that is needed.
    pub fn on_carried(&mut self, server: ServerId, nonce: u64, attach: Zxid, last_n: u64) -> Result<Writes, u64> {
        if server != self.server {
            return Ok(Vec::new());
        }
        match &mut self.state {
            State::Opening { nonce: wanted, waiting } if *wanted == nonce => {
                let waiting = std::mem::take(waiting);
                if last_n > 0 {
                    // Not ours, though it looks so: an old copy of this data folder opened it.
                    return Err(self.open(waiting));
                }
                self.state = State::Open { nonce, attach, last_n: 0 };
                let mut numbered = Vec::with_capacity(waiting.len());
                for (key, write) in waiting {
                    if let Carried::Numbered(payload) = self.push(key, write) {
                        numbered.push((key, payload));
                    }
                }
                Ok(numbered)
            }
            State::Open { nonce: ours, .. } if *ours != nonce => {
                // An opening of a former start came late. What was numbered under ours is refused when its turn comes.
                self.state = State::Closed;
                Ok(Vec::new())
            }
            _ => Ok(Vec::new()),
        }
    }

    /// A write that a server numbered was refused: what comes behind it would be, too. The next opens another carrier.
    pub fn on_void(&mut self, server: ServerId, attach: Zxid) {
        if server == self.server && matches!(&self.state, State::Open { attach: ours, .. } if *ours == attach) {
            self.state = State::Closed;
        }
    }

    /// Writes that wait for the carrier.
    pub fn len(&self) -> usize {
        match &self.state {
            State::Opening { waiting, .. } => waiting.len(),
            State::Closed | State::Open { .. } => 0,
        }
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All sessions below this id are over: nothing of theirs gets a place any more. What has one may still be executed.
    pub fn end_below(&mut self, floor: SessionId) {
        self.floor = self.floor.max(floor);
        self.state = State::Closed;
    }

    /// The state of this server is being replaced: what was numbered may be executed or not, and nobody waits for it.
    pub fn clear(&mut self) {
        self.state = State::Closed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::entry::{Command, Txn};
    use crate::tree::op::WriteOp;

    const ME: ServerId = ServerId(3);

    fn key(n: u64) -> Key {
        Key::Local { session: SessionId(9), n }
    }

    fn write(n: u64) -> Bytes {
        let op = WriteOp::Delete { path: "/a".into(), version: -1 };
        let session = SessionId(9);
        Txn { session, attach: Zxid::ZERO, n, answered_through: 0, ids: Vec::new(), command: Command::Write(op) }
            .encode()
    }

    /// Attach and number of a carried write, and its number in the session.
    fn place(payload: &Bytes) -> (Zxid, u64, u64) {
        let txn = Txn::decode(payload).unwrap();
        match txn.command {
            Command::LocalWrite { carrier, .. } => (carrier.attach, carrier.n, txn.n),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_sessions_that_are_over_hand_in_late_gets_no_place() {
        let mut queue = CarrierQueue::new(ME, 70);
        assert_eq!(queue.push(key(1), write(1)), Carried::Open(70));
        queue.end_below(SessionId(10));
        assert_eq!(queue.on_carried(ME, 70, Zxid::new(1, 5), 0), Ok(vec![]), "nothing waits any more");
        assert_eq!(queue.push(key(2), write(2)), Carried::TooLate, "it was on its way while its session ended");
        let younger = Key::Local { session: SessionId(10), n: 1 };
        assert_eq!(queue.push(younger, write(1)), Carried::Open(71));
    }

    #[test]
    fn the_first_write_opens_and_all_are_numbered_in_order() {
        let mut queue = CarrierQueue::new(ME, 70);
        assert_eq!(queue.push(key(1), write(1)), Carried::Open(70));
        assert_eq!(queue.push(key(2), write(2)), Carried::Waits);
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.on_carried(ServerId(1), 70, Zxid::new(1, 4), 0), Ok(vec![]), "another server's");
        let at = Zxid::new(1, 5);
        let numbered = queue.on_carried(ME, 70, at, 0).unwrap();
        let places: Vec<_> = numbered.iter().map(|(_, payload)| place(payload)).collect();
        assert_eq!(places, [(at, 1, 1), (at, 2, 2)]);
        assert_eq!(queue.on_carried(ME, 70, at, 2), Ok(vec![]), "a copy of the opening changes nothing");
        match queue.push(key(3), write(3)) {
            Carried::Numbered(payload) => assert_eq!(place(&payload), (at, 3, 3)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_opening_that_is_not_ours_is_never_written_under() {
        let mut queue = CarrierQueue::new(ME, 70);
        queue.push(key(1), write(1));
        assert_eq!(queue.on_carried(ME, 12, Zxid::new(1, 5), 0), Ok(vec![]), "a former start's, ours will follow");
        assert_eq!(queue.on_carried(ME, 70, Zxid::new(1, 5), 8), Err(71), "an old copy of the folder drew the same");
        assert_eq!(queue.on_carried(ME, 71, Zxid::new(1, 9), 0).unwrap().len(), 1);
        assert_eq!(queue.on_carried(ME, 12, Zxid::new(1, 11), 0), Ok(vec![]));
        assert_eq!(queue.push(key(2), write(2)), Carried::Open(72), "it came after ours: open again");
    }

    #[test]
    fn a_carrier_whose_write_was_refused_is_not_written_under_again() {
        let mut queue = CarrierQueue::new(ME, 70);
        let at = Zxid::new(1, 5);
        queue.push(key(1), write(1));
        queue.on_carried(ME, 70, at, 0).unwrap();
        queue.on_void(ServerId(1), at);
        queue.on_void(ME, Zxid::new(1, 4));
        assert!(matches!(queue.push(key(2), write(2)), Carried::Numbered(_)), "another's, and a former one of ours");
        queue.on_void(ME, at);
        assert_eq!(queue.push(key(3), write(3)), Carried::Open(71));
        queue.on_void(ME, at);
        assert_eq!(queue.len(), 1, "what waits for the next one waits on");
    }

    #[test]
    fn nothing_waits_once_the_state_is_replaced() {
        let mut queue = CarrierQueue::new(ME, 70);
        queue.push(key(1), write(1));
        queue.clear();
        assert!(queue.is_empty());
        assert_eq!(queue.on_carried(ME, 70, Zxid::new(1, 5), 0), Ok(vec![]));
        assert_eq!(queue.push(key(2), write(2)), Carried::Open(71));
    }
}
