//! Writes of this server's clients that are not yet known to be executed (P31, P33).
//!
//! They are offered to the leader once when they come, and all again, in order, whenever the relation to a leader
//! begins anew: a forwarded write may have died with the former leader, or be on its way through the log. Execution
//! drops the doubles by session, attach and number, so offering too often is safe, and offering in order is all
//! that FIFO needs.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use corral_proto::{SessionId, Zxid};

use crate::tree::entry::{Command, Txn};

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
            Command::CloseSession { expired: true } | Command::Reap { .. } | Command::Settings(_) => None,
            Command::Write(_) | Command::CloseSession { expired: false } => {
                Some(Key::Request { session: txn.session, attach: txn.attach, n: txn.n })
            }
        }
    }
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
            self.writes[stale] = None;
        }
        self.writes.push_back(Some((key, payload)));
        self.forget_resolved();
    }

    /// The write was executed here, or its double was.
    pub fn resolve(&mut self, key: &Key) {
        if let Some(place) = self.places.remove(key) {
            self.writes[(place - self.first) as usize] = None;
            self.forget_resolved();
        }
    }

    /// Everything unresolved, oldest first.
    pub fn unresolved(&self) -> Vec<Bytes> {
        self.writes.iter().flatten().map(|(_, payload)| payload.clone()).collect()
    }

    /// Number of unresolved writes.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether nothing is unresolved.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Forgets everything: the state of this server is being replaced, its connections are closed (zab.md 4.8).
    pub fn clear(&mut self) {
        self.first += self.writes.len() as u64;
        self.writes.clear();
        self.places.clear();
    }

    fn forget_resolved(&mut self) {
        while let Some(None) = self.writes.front() {
            self.writes.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> Key {
        Key::Request { session: SessionId(1), attach: Zxid::new(1, 1), n }
    }

    fn bytes(outbox: &Outbox) -> Vec<u8> {
        outbox.unresolved().iter().map(|b| b[0]).collect()
    }

    #[test]
    fn what_is_unresolved_is_offered_again_in_order() {
        let mut outbox = Outbox::default();
        for n in 1..=4 {
            outbox.push(key(n), Bytes::from(vec![n as u8]));
        }
        outbox.resolve(&key(2));
        assert_eq!(bytes(&outbox), [1, 3, 4]);
        outbox.resolve(&key(1));
        outbox.resolve(&key(9));
        assert_eq!((bytes(&outbox), outbox.len()), (vec![3, 4], 2));
        outbox.clear();
        assert!(outbox.is_empty());
        outbox.push(key(5), Bytes::from(vec![5]));
        outbox.resolve(&key(5));
        assert!(outbox.is_empty() && bytes(&outbox).is_empty());
    }

    #[test]
    fn a_number_sent_twice_is_offered_once_and_resolved_by_one_answer() {
        let mut outbox = Outbox::default();
        outbox.push(key(1), Bytes::from_static(b"\x01"));
        outbox.push(key(2), Bytes::from_static(b"\x02"));
        outbox.push(key(1), Bytes::from_static(b"\x07"));
        assert_eq!(bytes(&outbox), [2, 7]);
        outbox.resolve(&key(1));
        outbox.resolve(&key(2));
        assert!(outbox.is_empty() && bytes(&outbox).is_empty());
    }
}
