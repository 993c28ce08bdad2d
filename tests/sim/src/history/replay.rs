//! The committed log executed once more, and everything that was seen compared with it.
//!
//! Execution is judged by [`Model`], which shares no code with it: so a rule that is broken the same way on all servers
//! is found, too.

use std::collections::{BTreeMap, BTreeSet};

use corral_core::storage::memory::{MemoryStore, MemoryView};
use corral_core::tree::entry::{Command, Outcome, SessionEvent, Txn, Verdict};
use corral_core::tree::model::Model;
use corral_core::tree::op::{Answer, Depth, ReadOp};
use corral_core::tree::record::Meta;
use corral_core::tree::{TreeStore, TreeView, audit, execute, read};
use corral_proto::{EventKind, SessionId, Zxid, path};

use super::watches::{self, Changes};
use super::{History, WriteKey, client_ids};
use crate::checks::{Check, CommittedEntry, Ghost, ensure};
use crate::follower::{Held, Stretch, is_kept};

/// Every so many entries the whole tree is looked at; at the end in any case.
const SAMPLE: usize = 64;

const SHAPE: &str = "I20, I21 tree shape";

/// Replays the committed history and compares all that was seen.
pub(super) fn replay(history: &History, ghost: &Ghost) -> Check {
    let mut replay = Replay::new(history);
    replay.compare_state(Zxid::ZERO)?;
    for (index, entry) in ghost.committed.iter().enumerate() {
        replay.entry(entry)?;
        if index % SAMPLE == 0 || index + 1 == ghost.committed.len() {
            replay.look_at_everything(entry.position.zxid)?;
        }
    }
    replay.end()
}

pub(super) struct Replay<'h> {
    history: &'h History,
    pub(super) store: MemoryStore,
    model: Model,
    /// Where each write was decided.
    executed: BTreeMap<WriteKey, Zxid>,
    /// The last number of each session, or of each attach.
    last_n: BTreeMap<(SessionId, Zxid), u64>,
    closed: BTreeSet<SessionId>,
    changes: Changes,
}

impl<'h> Replay<'h> {
    pub(super) fn new(history: &'h History) -> Replay<'h> {
        Replay {
            history,
            store: MemoryStore::new(),
            model: Model::new(),
            executed: BTreeMap::new(),
            last_n: BTreeMap::new(),
            closed: BTreeSet::new(),
            changes: Changes::default(),
        }
    }

    pub(super) fn entry(&mut self, entry: &CommittedEntry) -> Check {
        let zxid = entry.position.zxid;
        let outcome = {
            let view = self.store.view();
            execute::execute(&view, zxid, entry.stamp_ms, entry.position.hash, &entry.payload)
        };
        self.store.write(&mut outcome.changes.iter().cloned());
        let txn = if entry.payload.is_empty() { None } else { Txn::decode(&entry.payload).ok() };
        if let Some(txn) = &txn {
            self.judge(zxid, txn, &outcome.verdict)?;
        }
        for event in &outcome.sessions {
            if let SessionEvent::Closed { session, .. } = event {
                self.closed.insert(*session);
                let left = read::ephemerals(&self.store.view(), *session, "");
                ensure!(left.is_empty(), SHAPE, "{session:?} ended at {zxid:?} and left {left:?}");
            }
        }
        self.compare_state(zxid)?;
        // Last: where a rule has a check of its own, that one tells more.
        txn.map_or(Ok(()), |txn| self.compare_models(zxid, &txn, entry.stamp_ms, &outcome))
    }

    /// What execution says against what the rules say, written down a second time.
    fn compare_models(&mut self, zxid: Zxid, txn: &Txn, stamp_ms: i64, outcome: &Outcome) -> Check {
        let expected = self.model.run(txn, zxid.0, stamp_ms);
        for event in &outcome.sessions {
            if let SessionEvent::Closed { session, .. } = event {
                ensure!(
                    !self.model.sessions.contains_key(&session.0),
                    "I19 session safety",
                    "{txn:?} at {zxid:?} ends {session:?}; it should not"
                );
            }
        }
        let name = match (&outcome.verdict, &expected) {
            // The model does not know how many bytes of results are kept.
            (Verdict::Repeated { result: None, .. }, Verdict::Repeated { .. }) => None,
            (verdict, expected) if verdict == expected => None,
            (Verdict::Executed(_), Verdict::Executed(_)) => Some("I22 writes are linearizable"),
            (Verdict::Repeated { .. }, _) | (_, Verdict::Repeated { .. }) => Some("exactly once"),
            (Verdict::OutOfOrder, _) | (_, Verdict::OutOfOrder) => Some("I23 session order"),
            _ => Some("I19 session safety"),
        };
        if let Some(name) = name {
            ensure!(false, name, "{txn:?} at {zxid:?} is {:?}; it should be {expected:?}", outcome.verdict);
        }
        let events: Vec<(EventKind, &str)> = outcome.events.iter().map(|e| (e.kind, e.path.as_str())).collect();
        let expected: Vec<(EventKind, &str)> = self.model.events.iter().map(|e| (e.0, e.1.as_str())).collect();
        ensure!(
            events == expected,
            "I25 watches",
            "{txn:?} at {zxid:?} causes {events:?}; it should cause {expected:?}"
        );
        for (kind, path) in expected {
            self.changes.note(path, kind, zxid);
            if kind != EventKind::NodeDataChanged
                && let Some(parent) = path::parent(path)
            {
                self.changes.note(parent, EventKind::NodeChildrenChanged, zxid);
            }
        }
        Ok(())
    }

    fn judge(&mut self, zxid: Zxid, txn: &Txn, verdict: &Verdict) -> Check {
        let op = match &txn.command {
            Command::Write(op) => Some(op),
            Command::CloseSession { expired: false } => None,
            _ => return Ok(()),
        };
        let Verdict::Executed(result) = verdict else { return Ok(()) };
        // The end of a session that is over is granted again, and changes nothing (P31).
        if op.is_none() && self.closed.contains(&txn.session) {
            return Ok(());
        }
        let keeps_results = self.history.keeps_results.contains(&txn.session);
        let attach = if keeps_results { Zxid::ZERO } else { txn.attach };
        let key = (txn.session, attach, txn.n);
        ensure!(
            !self.closed.contains(&txn.session),
            "I19 session safety",
            "{key:?} is executed at {zxid:?}, after its session ended"
        );
        let former = self.executed.insert(key, zxid);
        ensure!(former.is_none(), "exactly once", "{key:?} is executed at {former:?} and at {zxid:?}");
        let last = self.last_n.entry((txn.session, attach)).or_default();
        ensure!(txn.n == *last + 1, "I23 session order", "{key:?} is executed at {zxid:?}, after number {last}");
        *last = txn.n;
        let sent = self.history.sent.get(&key);
        ensure!(
            sent.is_some_and(|sent| sent.op.as_ref() == op && zxid > sent.floor),
            "I22 writes are linearizable",
            "{key:?} is executed at {zxid:?} as {op:?}; what was sent is {sent:?}"
        );
        if let Some((_, told)) = self.history.writes.get(&zxid) {
            ensure!(
                told == result,
                "I22 writes are linearizable",
                "{key:?} was answered {told:?}; the log says {result:?} at {zxid:?}"
            );
        }
        if keeps_results && let Some(row) = read::session(&self.store.view(), txn.session) {
            let seen = txn.answered_through.min(txn.n - 1);
            ensure!(
                row.results_from > seen,
                "exactly once",
                "{key:?} says that {seen} is answered; at {zxid:?} results from {} on are kept",
                row.results_from
            );
        }
        Ok(())
    }

    /// What servers and clients saw of one state.
    fn compare_state(&self, zxid: Zxid) -> Check {
        let view = self.store.view();
        if let Some(digest) = self.history.digests.get(&zxid) {
            let model = Meta::read(&view).unwrap_or_default().digest;
            ensure!(
                model == *digest,
                "I13 apply discipline",
                "at {zxid:?} servers have digest {digest:x}, the model {model:x}"
            );
        }
        if let Some(digest) = self.history.full_digests.get(&zxid) {
            ensure!(
                self.store.digest() == *digest,
                "I13 apply discipline",
                "at {zxid:?} a server's rows differ from the model's"
            );
        }
        for map in self.history.followed.get(&zxid).into_iter().flatten() {
            let tree = held_by(&view);
            ensure!(*map == tree, "the change feed", "at {zxid:?} a follower holds {map:?}; the tree is {tree:?}");
        }
        for (session, op, result) in self.history.reads.get(&zxid).into_iter().flatten() {
            let expected = read::read(&view, op, *session, &client_ids());
            ensure!(
                expected == *result,
                "I23 session order",
                "{session:?} read {op:?} at {zxid:?} as {result:?}; it was {expected:?}"
            );
        }
        Ok(())
    }

    /// I20, I21: indexes, counters and stats of the whole tree.
    pub(super) fn look_at_everything(&self, zxid: Zxid) -> Check {
        let view: MemoryView = self.store.view();
        let audited = audit::audit(&view);
        ensure!(audited.is_ok(), SHAPE, "at {zxid:?}: {audited:?}");
        let meta = Meta::read(&view).unwrap_or_default();
        let (znodes, sessions) = (self.model.nodes.len(), self.model.sessions.len());
        ensure!(
            (meta.znodes, meta.sessions) == (znodes as u64, sessions as u64),
            SHAPE,
            "at {zxid:?} there should be {znodes} znodes and {sessions} sessions; the meta row is {meta:?}"
        );
        for path in self.model.nodes.keys() {
            let (stat, expected) = (read::stat(&view, path), self.model.stat(path));
            ensure!(stat == Some(expected), SHAPE, "at {zxid:?} {path} has {stat:?}; it should have {expected:?}");
        }
        Ok(())
    }

    fn end(self) -> Check {
        for (zxid, (key, _)) in &self.history.writes {
            ensure!(
                self.executed.get(key) == Some(zxid),
                "exactly once",
                "{key:?} was answered at {zxid:?}; the log decides it at {:?}",
                self.executed.get(key)
            );
        }
        for session in &self.history.told_expired {
            ensure!(
                self.closed.contains(session),
                "I19 session safety",
                "a client was told that {session:?} is over; the log never ends it"
            );
        }
        for (connection, seen) in &self.history.connections {
            watches::check_connection(*connection, seen, &self.changes)?;
        }
        for (follower, stretches) in &self.history.stretches {
            for stretch in stretches {
                check_stretch(*follower, stretch, &self.changes)?;
            }
        }
        self.history.kept.iter().try_for_each(|kept| watches::check_kept(kept, &self.changes))
    }
}

/// The znodes that a follower keeps.
fn held_by(view: &impl TreeView) -> BTreeMap<String, Held> {
    let (mut held, mut after) = (BTreeMap::new(), String::new());
    loop {
        let op = ReadOp::Subtree { path: "/".to_owned(), depth: Depth::Subtree, after, newer_than: None };
        let Ok(Answer::Subtree { nodes, next }) = read::read(view, &op, SessionId::NONE, &client_ids()) else {
            return BTreeMap::new();
        };
        let kept = nodes.into_iter().filter(|node| is_kept(&node.path));
        held.extend(kept.map(|node| (node.path, Held::new(node.data, &node.stat))));
        match next {
            Some(next) => after = next,
            None => return held,
        }
    }
}

/// Between two gaps a follower is told of everything, once and in order.
fn check_stretch(follower: usize, stretch: &Stretch, changes: &Changes) -> Check {
    let (from, to) = (stretch.after, stretch.through);
    let within = |(zxid, kind, _): &&(Zxid, EventKind, String)| {
        *kind != EventKind::NodeChildrenChanged && *zxid > from && *zxid <= to
    };
    let happened = changes.all.iter().filter(within);
    let differs = happened.clone().zip(&stretch.events).find(|(happened, told)| happened != told);
    ensure!(
        differs.is_none() && happened.clone().count() == stretch.events.len(),
        "the change feed",
        "follower {follower} was told of {} events between {from:?} and {to:?}, there were {}; the first that differ: {differs:?}",
        stretch.events.len(),
        happened.count()
    );
    Ok(())
}
