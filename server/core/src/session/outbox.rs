//! Writes of this server's clients that are not yet known to be executed (P31, P33).
//!
//! They are offered to the leader once when they come, and all again, in order, whenever the relation to a leader
//! begins anew: a forwarded write may have died with the former leader, or be on its way through the log. Execution
//! drops the doubles by session, attach and number, so offering too often is safe, and offering in order is all
//! that FIFO needs.
//!
//! No more than [`IN_FLIGHT_BYTES`] are offered and not executed at a time: a stream between servers has a bound, and
//! after a change of leader everything that waits would otherwise go out at once.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use corral_proto::{SessionId, Zxid};

use crate::tree::entry::{Command, Txn};
use crate::zoo::{self, Switch};

/// What makes a transaction of a session the same when it is seen again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A numbered request.
    Request {
        /// Of which session.
        session: SessionId,
        /// Under which attach.
        attach: Zxid,
        /// Its number.
        n: u64,
    },
    /// A numbered request of a session that this server alone knows.
    Local {
        /// Of which session.
        session: SessionId,
        /// Its number.
        n: u64,
    },
    /// The opening of a carrier.
    Carrier {
        /// Drawn for it.
        nonce: u64,
    },
    /// A handshake.
    Handshake {
        /// Of which session.
        session: SessionId,
        /// Drawn for this connection.
        nonce: u64,
    },
}

impl Key {
    /// The key of a transaction; `None` for the ensemble's own, which nobody waits for.
    pub fn of(txn: &Txn) -> Option<Key> {
        match &txn.command {
            Command::CreateSession { nonce, .. } | Command::Attach { nonce, .. } => {
                Some(Key::Handshake { session: txn.session, nonce: *nonce })
            }
            Command::LocalWrite { .. } => Some(Key::Local { session: txn.session, n: txn.n }),
            Command::OpenCarrier { nonce, .. } => Some(Key::Carrier { nonce: *nonce }),
            Command::CloseSession { expired: true } | Command::Reap { .. } | Command::Settings(_) => None,
            Command::Write(_) | Command::CloseSession { expired: false } => {
                Some(Key::Request { session: txn.session, attach: txn.attach, n: txn.n })
            }
        }
    }
}

/// Bytes that are offered to a leader and not yet known to be executed; a single write may be larger.
pub const IN_FLIGHT_BYTES: usize = 4 << 20;

/// What a write counts for beside its payload.
const WRITE_BYTES: usize = 64;

fn weight(payload: &Bytes) -> usize {
    payload.len() + WRITE_BYTES
}

/// The unresolved writes of one server, in the order in which they came.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Oldest first; `None`: resolved, waiting for older ones to go.
    writes: VecDeque<Option<(Key, Bytes)>>,
    /// Number of the first of `writes`.
    first: u64,
    /// Where each unresolved write stands. A client that sends a number twice over one connection is at fault: the
    /// first one stays, execution judges the second.
    places: BTreeMap<Key, u64>,
    /// Writes before this place were offered in this relation.
    offered: u64,
    /// Weight of those of them that are unresolved.
    in_flight: usize,
}

impl Outbox {
    /// Notes a write.
    pub fn push(&mut self, key: Key, payload: Bytes) {
        let place = self.first + self.writes.len() as u64;
        if self.places.insert(key, place).is_some() {
            // The older copy is not tracked any more: one answer resolves both, since execution drops the second.
            let stale = self
                .writes
                .iter()
                .position(|w| w.as_ref().is_some_and(|(k, _)| *k == key))
                .expect("every key in places has its write");
            self.take(self.first + stale as u64);
        }
        self.writes.push_back(Some((key, payload)));
        self.forget_resolved();
    }

    /// The write was executed here, or its double was.
    pub fn resolve(&mut self, key: &Key) {
        if let Some(place) = self.places.remove(key) {
            self.take(place);
            self.forget_resolved();
        }
    }

    /// Removes the write at a place.
    fn take(&mut self, place: u64) {
        if let Some((_, payload)) = self.writes[(place - self.first) as usize].take()
            && place < self.offered
        {
            self.in_flight -= weight(&payload);
        }
    }

    /// A relation to a leader begins: nothing is offered in it yet.
    pub fn begin(&mut self) {
        self.offered = self.first;
        self.in_flight = 0;
    }

    /// What may be offered next, oldest first: to be called when a write came, when one was resolved, and when a relation
    /// begins.
    pub fn offer(&mut self) -> Vec<Bytes> {
        let end = self.first + self.writes.len() as u64;
        let mut payloads = Vec::new();
        while self.offered < end && self.in_flight < IN_FLIGHT_BYTES {
            if let Some((_, payload)) = &self.writes[(self.offered - self.first) as usize] {
                self.in_flight += weight(payload);
                payloads.push(payload.clone());
            }
            self.offered += 1;
        }
        if zoo::broken(Switch::OfferedBackwards) {
            payloads.reverse();
        }
        payloads
    }

    /// Number of unresolved writes.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether nothing is unresolved.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Forgets the writes of local sessions, whose sessions are over. What was offered already may still be executed.
    pub fn forget_local(&mut self) {
        let is_local = |key: &&Key| matches!(key, Key::Local { .. } | Key::Carrier { .. });
        let local: Vec<Key> = self.places.keys().filter(is_local).copied().collect();
        for key in local {
            self.resolve(&key);
        }
    }

    /// Forgets everything: the state of this server is being replaced, its connections are closed.
    pub fn clear(&mut self) {
        self.first += self.writes.len() as u64;
        self.writes.clear();
        self.places.clear();
        self.begin();
    }

    fn forget_resolved(&mut self) {
        while let Some(None) = self.writes.front() {
            self.writes.pop_front();
            self.first += 1;
        }
        self.offered = self.offered.max(self.first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> Key {
        Key::Request { session: SessionId(1), attach: Zxid::new(1, 1), n }
    }

    /// What a new relation is offered.
    fn bytes(outbox: &mut Outbox) -> Vec<u8> {
        outbox.begin();
        outbox.offer().iter().map(|b| b[0]).collect()
    }

    #[test]
    fn what_is_unresolved_is_offered_again_in_order() {
        let mut outbox = Outbox::default();
        for n in 1..=4 {
            outbox.push(key(n), Bytes::from(vec![n as u8]));
        }
        outbox.resolve(&key(2));
        assert_eq!(bytes(&mut outbox), [1, 3, 4]);
        outbox.resolve(&key(1));
        outbox.resolve(&key(9));
        assert_eq!(bytes(&mut outbox), [3, 4]);
        assert_eq!(outbox.len(), 2);
        outbox.clear();
        assert!(outbox.is_empty());
        outbox.push(key(5), Bytes::from(vec![5]));
        outbox.resolve(&key(5));
        assert!(outbox.is_empty() && bytes(&mut outbox).is_empty());
    }

    #[test]
    fn a_number_sent_twice_is_offered_once_and_resolved_by_one_answer() {
        let mut outbox = Outbox::default();
        outbox.push(key(1), Bytes::from_static(b"\x01"));
        outbox.push(key(2), Bytes::from_static(b"\x02"));
        outbox.push(key(1), Bytes::from_static(b"\x07"));
        assert_eq!(bytes(&mut outbox), [2, 7]);
        outbox.resolve(&key(1));
        outbox.resolve(&key(2));
        assert!(outbox.is_empty() && bytes(&mut outbox).is_empty());
    }

    #[test]
    fn no_more_than_the_window_is_offered_until_something_is_executed() {
        let mut outbox = Outbox::default();
        for n in 1..=10 {
            outbox.push(key(n), Bytes::from(vec![n as u8; 1 << 20]));
        }
        let first = |offered: Vec<Bytes>| offered.iter().map(|b| b[0]).collect::<Vec<u8>>();
        outbox.begin();
        assert_eq!(first(outbox.offer()), [1, 2, 3, 4]);
        assert!(outbox.offer().is_empty());
        outbox.resolve(&key(2));
        assert_eq!(first(outbox.offer()), [5]);
        outbox.resolve(&key(1));
        outbox.resolve(&key(3));
        outbox.push(key(11), Bytes::from_static(&[11]));
        assert_eq!(first(outbox.offer()), [6, 7]);
        outbox.begin();
        assert_eq!(first(outbox.offer()), [4, 5, 6, 7], "a new leader is offered all again, in order");
        for n in 4..=10 {
            outbox.resolve(&key(n));
        }
        assert_eq!(first(outbox.offer()), [11], "those that were resolved before their turn are not offered");
        outbox.clear();
        assert!(outbox.offer().is_empty() && outbox.is_empty());
    }

    #[test]
    fn a_write_larger_than_the_window_goes_alone() {
        let mut outbox = Outbox::default();
        outbox.push(key(1), Bytes::from(vec![1; IN_FLIGHT_BYTES + 1]));
        outbox.push(key(2), Bytes::from_static(&[2]));
        outbox.begin();
        assert_eq!(outbox.offer().len(), 1);
        outbox.resolve(&key(1));
        assert_eq!(outbox.offer().len(), 1);
    }
}
