//! What clients did and were told, and whether it was right.
//!
//! ZooKeeper's semantics make this cheap: the committed log is the witness order. What can be judged when a reply
//! arrives is judged then (I19's clock, I22's real time, I23's order, I24); the rest by replaying the committed log at
//! the end ([`replay`]): every result, what happened at most once, and the tree against one that is written down a second
//! time. [`watches`] says what each connection must have been told, and in which place. [`registers`] is the part of
//! the history that is judged without any of this, by [`crate::linearizability`].

pub mod registers;
mod replay;
#[cfg(test)]
mod tests;
mod watches;

use std::collections::{BTreeMap, BTreeSet};

use corral_core::session::{Consistency, SetWatches};
use corral_core::tree::entry::Txn;
use corral_core::tree::op::{Answer, ReadOp, WriteOp};
use corral_core::tree::record::Meta;
use corral_proto::{ErrorCode, EventKind, Id, SessionId, WatchKind, Zxid};

use crate::checks::{Check, Ghost, Violation, ensure};
use crate::follower::{Held, Stretch};
use crate::schedule::Micros;
use registers::Registers;

/// A result as clients see it.
pub type ClientResult = Result<Answer, ErrorCode>;

/// Which write: session, attach (zero for sessions that keep results, whose numbers live as long as they), number.
pub type WriteKey = (SessionId, Zxid, u64);

/// What was seen on one connection, in order.
#[derive(Clone, Debug)]
pub enum Seen {
    /// A watch was armed by a reply from this state.
    Armed {
        /// Where.
        path: String,
        /// Which.
        kind: WatchKind,
        /// The state.
        zxid: Zxid,
    },
    /// Watches were removed by a reply from this state, or only asked for.
    Watches {
        /// Where.
        path: String,
        /// Which; `None`: any.
        kind: Option<WatchKind>,
        /// Removed, not only asked for.
        remove: bool,
        /// The answer.
        found: bool,
        /// The state.
        zxid: Zxid,
    },
    /// The watches of a former connection were set again by a reply from this state.
    SetAgain {
        /// What was asked for.
        watches: SetWatches,
        /// What the client was told to have missed, in order.
        missed: Vec<(EventKind, String)>,
        /// The state.
        zxid: Zxid,
    },
    /// An event came.
    Event {
        /// What.
        kind: EventKind,
        /// Where.
        path: String,
        /// Which entry.
        zxid: Zxid,
    },
    /// A reply came that shows this state.
    Reply(Zxid),
}

/// A one-shot watch that a session still had after it was set again on another connection: nothing happened that it
/// should have told.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Whose.
    pub session: SessionId,
    /// Where.
    pub path: String,
    /// Which.
    pub kind: WatchKind,
    /// The state that armed it first.
    pub armed: Zxid,
    /// The state in which it was set again.
    pub again: Zxid,
}

/// A write that was sent.
#[derive(Clone, Debug)]
struct Sent {
    /// `None`: the end of the session.
    op: Option<WriteOp>,
    /// [`History::floor`] when it was first sent.
    floor: Zxid,
}

/// Everything clients did.
#[derive(Default)]
pub struct History {
    /// Largest zxid of any write answered anywhere.
    acknowledged: Zxid,
    /// Writes that were sent.
    sent: BTreeMap<WriteKey, Sent>,
    /// Answered writes.
    writes: BTreeMap<Zxid, (WriteKey, ClientResult)>,
    /// Answered reads, by the state that answered.
    reads: BTreeMap<Zxid, Vec<(SessionId, ReadOp, ClientResult)>>,
    /// What was seen on each connection.
    connections: BTreeMap<u64, Vec<Seen>>,
    /// Watches that survived their connection.
    kept: Vec<Kept>,
    /// Digest of the tree at the end of each batch of each server.
    digests: BTreeMap<Zxid, u64>,
    /// Digest of every row, sampled.
    full_digests: BTreeMap<Zxid, u64>,
    /// Sessions that keep results.
    pub keeps_results: BTreeSet<SessionId>,
    /// Clients were told that these are over.
    pub told_expired: BTreeSet<SessionId>,
    /// Timeouts, ms.
    pub timeouts: BTreeMap<SessionId, u64>,
    /// When a server's process last heard of a session, for I19.
    touched: BTreeMap<(u64, SessionId), Micros>,
    /// What followers of the feed were told, between gaps.
    stretches: BTreeMap<usize, Vec<Stretch>>,
    /// What they held at bookmarks.
    followed: BTreeMap<Zxid, Vec<BTreeMap<String, Held>>>,
    /// What is judged without zxids.
    pub registers: Registers,
    /// Answered calls.
    pub answered: u64,
}

/// The identities every simulated client has.
pub fn client_ids() -> Vec<Id> {
    vec![Id::new("ip", "127.0.0.1")]
}

impl History {
    /// Bound for what a call invoked now may show, if it is a write or asks for the latest state.
    pub fn floor(&self) -> Zxid {
        self.acknowledged
    }

    /// A follower was told of everything after `after`, up to `through`.
    pub fn on_feed(
        &mut self,
        follower: usize,
        after: Zxid,
        through: Zxid,
        events: impl Iterator<Item = (Zxid, EventKind, String)>,
    ) {
        let stretches = self.stretches.entry(follower).or_default();
        if stretches.last().is_none_or(|last| last.through != after) {
            stretches.push(Stretch { after, ..Stretch::default() });
        }
        let last = stretches.last_mut().expect("one was pushed when there was none");
        last.through = through;
        last.events.extend(events);
    }

    /// A follower was told that it goes on at `resync`.
    pub fn on_feed_gap(&mut self, follower: usize, resync: Zxid) {
        let stretch = Stretch { after: resync, through: resync, events: Vec::new() };
        self.stretches.entry(follower).or_default().push(stretch);
    }

    /// A follower holds this at a bookmark.
    pub fn on_followed(&mut self, zxid: Zxid, map: &BTreeMap<String, Held>) {
        let maps = self.followed.entry(zxid).or_default();
        if !maps.contains(map) {
            maps.push(map.clone());
        }
    }

    /// A write is sent, for the first time or again. `op`: `None` for the end of the session.
    pub fn on_sent(&mut self, key: WriteKey, op: Option<&WriteOp>, floor: Zxid) {
        self.sent.entry(key).or_insert_with(|| Sent { op: op.cloned(), floor });
    }

    /// A write was answered.
    pub fn on_write(&mut self, ghost: &Ghost, key: WriteKey, zxid: Zxid, result: &ClientResult) -> Check {
        const NAME: &str = "I22 writes are linearizable";
        self.answered += 1;
        let Some(entry) = ghost.committed_at(zxid) else {
            ensure!(false, NAME, "{key:?} was answered {result:?} at {zxid:?}, which is not committed");
            return Ok(());
        };
        let txn = Txn::decode(&entry.payload).ok();
        let is_its_own =
            |txn: &Txn| txn.session == key.0 && txn.n == key.2 && (key.1 == Zxid::ZERO || txn.attach == key.1);
        ensure!(
            txn.as_ref().is_some_and(is_its_own),
            NAME,
            "{key:?} was answered {result:?} at {zxid:?}, which holds {txn:?}"
        );
        let floor = self.sent.get(&key).map(|sent| sent.floor);
        ensure!(
            floor.is_some_and(|floor| zxid > floor),
            NAME,
            "{key:?} took effect at {zxid:?}; {floor:?} was answered before it was sent"
        );
        self.acknowledged = self.acknowledged.max(zxid);
        if let Some((former, before)) = self.writes.insert(zxid, (key, result.clone())) {
            ensure!(
                former == key && before == *result,
                "exactly once",
                "{zxid:?} was answered as {former:?} {before:?}, then as {key:?} {result:?}"
            );
        }
        Ok(())
    }

    /// A read was answered from the state of `zxid`. `floor` is [`History::floor`] when it was sent.
    pub fn on_read(
        &mut self,
        session: SessionId,
        op: &ReadOp,
        consistency: Consistency,
        zxid: Zxid,
        result: &ClientResult,
        floor: Zxid,
    ) -> Check {
        self.answered += 1;
        let least = match consistency {
            Consistency::Local => Zxid::ZERO,
            Consistency::AtLeast(zxid) => zxid,
            Consistency::Linearizable => floor,
        };
        ensure!(
            zxid >= least,
            "I24 sync read",
            "{session:?} read {op:?} as {consistency:?} and got {zxid:?}; {floor:?} was answered before it asked"
        );
        self.reads.entry(zxid).or_default().push((session, op.clone(), result.clone()));
        Ok(())
    }

    /// Something was seen on a connection.
    pub fn on_seen(&mut self, connection: u64, seen: Seen) {
        self.connections.entry(connection).or_default().push(seen);
    }

    /// A watch survived its connection.
    pub fn on_kept(&mut self, kept: Kept) {
        self.kept.push(kept);
    }

    /// A server's store is at the end of a batch.
    pub fn on_digest(&mut self, meta: &Meta, full: Option<u64>) -> Check {
        let digest = *self.digests.entry(meta.applied).or_insert(meta.digest);
        ensure!(
            digest == meta.digest,
            "I17 state determinism",
            "at {:?} one server has digest {digest:x}, another {:x}",
            meta.applied,
            meta.digest
        );
        if let Some(full) = full {
            let digest = *self.full_digests.entry(meta.applied).or_insert(full);
            ensure!(
                digest == full,
                "I17 state determinism",
                "at {:?} one server has rows of digest {digest:x}, another {full:x}",
                meta.applied
            );
        }
        Ok(())
    }

    /// A process heard of a session.
    pub fn on_touch(&mut self, process: u64, session: SessionId, now: Micros) {
        self.touched.insert((process, session), now);
    }

    /// When a process last heard of a session, by its own clock.
    pub fn touched(&self, process: u64, session: SessionId) -> Option<Micros> {
        self.touched.get(&(process, session)).copied()
    }

    /// A leader's process proposes to end a session by its clock.
    pub fn on_expiry(&mut self, process: u64, session: SessionId, now: Micros) -> Check {
        let Some(timeout_ms) = self.timeouts.get(&session) else { return Ok(()) };
        let Some(touched) = self.touched.get(&(process, session)) else { return Ok(()) };
        ensure!(
            now >= touched + timeout_ms * 1000,
            "I19 session safety",
            "process {process} ends {session:?} {} ms after it heard of it; its timeout is {timeout_ms} ms",
            (now - touched) / 1000
        );
        Ok(())
    }

    /// Replays the committed history, compares all that was seen, and looks for an order of the registers' calls; says
    /// what came of that, for the record.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn judge(&self, ghost: &Ghost) -> Result<&'static str, Violation> {
        replay::replay(self, ghost)?;
        self.registers.judge()
    }
}
