//! What clients did and were told, and whether it was right.
//!
//! ZooKeeper's semantics make this cheap: the committed log is the witness order. What can be judged when a reply
//! arrives is judged then (I22 real time, I23, I24); the rest (results, watches, exactly once, I17-I21) by replaying
//! the committed log through a model at the end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use corral_core::session::{Consistency, SetWatches};
use corral_core::storage::memory::MemoryStore;
use corral_core::tree::entry::{Command, SessionEvent, Txn, Verdict};
use corral_core::tree::op::{Answer, Depth, ReadOp};
use corral_core::tree::record::Meta;
use corral_core::tree::{TreeStore, TreeView, audit, execute, read};
use corral_proto::{ErrorCode, EventKind, Id, SessionId, Zxid};

use crate::checks::{Check, Ghost, ensure};
use crate::follower::{Held, Stretch, is_kept};
use crate::schedule::Micros;

/// A result as clients see it.
pub type ClientResult = Result<Answer, ErrorCode>;

/// Which write: session, attach (zero for sessions that keep results, whose numbers live as long as they), number.
pub type WriteKey = (SessionId, Zxid, u64);

/// What was seen on one connection, in order.
#[derive(Clone, Debug)]
pub enum Seen {
    /// A one-shot watch was armed by a reply from this state.
    Armed {
        /// Where.
        path: String,
        /// Watches the list of children, not the znode.
        child: bool,
        /// The state.
        zxid: Zxid,
    },
    /// A persistent watch was armed by a reply from this state.
    Persistent {
        /// Where.
        path: String,
        /// Watches all below it, and no lists of children.
        recursive: bool,
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

/// Events that a re-registration made up for what was missed.
type MadeUp = Vec<(EventKind, String)>;

/// Everything clients did.
#[derive(Default)]
pub struct History {
    /// Largest zxid of any write answered anywhere.
    acknowledged: Zxid,
    /// Answered writes.
    writes: BTreeMap<Zxid, (WriteKey, ClientResult)>,
    /// Answered reads, by the state that answered.
    reads: BTreeMap<Zxid, Vec<(SessionId, ReadOp, ClientResult)>>,
    /// Re-registrations of watches, by the state that answered, with the events they made up.
    set_watches: BTreeMap<Zxid, Vec<(SetWatches, MadeUp)>>,
    /// What was seen on each connection.
    connections: BTreeMap<u64, Vec<Seen>>,
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

    /// A write was answered. `floor` is [`History::floor`] when it was first sent.
    pub fn on_write(&mut self, ghost: &Ghost, key: WriteKey, zxid: Zxid, result: &ClientResult, floor: Zxid) -> Check {
        const NAME: &str = "I22 writes are linearizable";
        self.answered += 1;
        let Some(entry) = ghost.committed_at(zxid) else {
            ensure!(false, NAME, "{key:?} was answered {result:?} at {zxid:?}, which is not committed");
            return Ok(());
        };
        let txn = Txn::decode(&entry.payload).expect("entries of clients decode");
        ensure!(
            txn.session == key.0 && txn.n == key.2 && (key.1 == Zxid::ZERO || txn.attach == key.1),
            NAME,
            "{key:?} was answered {result:?} at {zxid:?}, which holds {txn:?}"
        );
        ensure!(
            zxid > floor,
            NAME,
            "{key:?} took effect at {zxid:?}, before {floor:?}, which was answered before it was sent"
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
        ensure!(
            consistency != Consistency::Linearizable || zxid >= floor,
            "I24 sync read",
            "{session:?} asked for the latest state and got {zxid:?}; {floor:?} was answered before it asked"
        );
        self.reads.entry(zxid).or_default().push((session, op.clone(), result.clone()));
        Ok(())
    }

    /// Watches were set again, from the state of `zxid`.
    pub fn on_set_watches(&mut self, zxid: Zxid, watches: SetWatches, missed: Vec<(EventKind, String)>) {
        self.set_watches.entry(zxid).or_default().push((watches, missed));
    }

    /// Something was seen on a connection.
    pub fn on_seen(&mut self, connection: u64, seen: Seen) {
        self.connections.entry(connection).or_default().push(seen);
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

    /// A process heard of a session.
    pub fn on_touch(&mut self, process: u64, session: SessionId, now: Micros) {
        self.touched.insert((process, session), now);
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

    /// Replays the committed history through the model and compares all that was seen.
    pub fn replay(&self, ghost: &Ghost) -> Check {
        let mut model = MemoryStore::new();
        let mut executed: BTreeMap<WriteKey, Zxid> = BTreeMap::new();
        let mut last_n: BTreeMap<(SessionId, Zxid), u64> = BTreeMap::new();
        let mut closed: BTreeSet<SessionId> = BTreeSet::new();
        let mut changes = Changes::default();
        self.compare_state(Zxid::ZERO, &model)?;
        for (index, entry) in ghost.committed.iter().enumerate() {
            let zxid = entry.position.zxid;
            let outcome = {
                let view = model.view();
                execute::execute(&view, zxid, entry.stamp_ms, entry.position.hash, &entry.payload)
            };
            model.write(&mut outcome.changes.iter().cloned());
            for event in &outcome.events {
                changes.note(&event.path, event.kind, zxid);
                if event.kind != EventKind::NodeDataChanged
                    && let Some(parent) = parent(&event.path)
                {
                    changes.note(parent, EventKind::NodeChildrenChanged, zxid);
                }
            }
            if let Ok(txn) = Txn::decode(&entry.payload)
                && !entry.payload.is_empty()
            {
                self.judge(zxid, &txn, &outcome.verdict, &mut executed, &mut last_n, &closed)?;
            }
            for event in &outcome.sessions {
                if let SessionEvent::Closed { session, .. } = event {
                    closed.insert(*session);
                }
            }
            self.compare_state(zxid, &model)?;
            if index % 64 == 0 || index + 1 == ghost.committed.len() {
                let audited = audit::audit(&model.view());
                ensure!(audited.is_ok(), "I20, I21 tree shape", "at {zxid:?}: {audited:?}");
            }
        }
        for (zxid, (key, _)) in &self.writes {
            ensure!(
                executed.get(key) == Some(zxid),
                "exactly once",
                "{key:?} was answered at {zxid:?}; the log decides it at {:?}",
                executed.get(key)
            );
        }
        for session in &self.told_expired {
            ensure!(
                closed.contains(session),
                "I19 session safety",
                "a client was told that {session:?} is over; the log never ends it"
            );
        }
        for (connection, seen) in &self.connections {
            check_watches(*connection, seen, &changes)?;
        }
        for (follower, stretches) in &self.stretches {
            for stretch in stretches {
                check_stretch(*follower, stretch, &changes)?;
            }
        }
        Ok(())
    }

    fn judge(
        &self,
        zxid: Zxid,
        txn: &Txn,
        verdict: &Verdict,
        executed: &mut BTreeMap<WriteKey, Zxid>,
        last_n: &mut BTreeMap<(SessionId, Zxid), u64>,
        closed: &BTreeSet<SessionId>,
    ) -> Check {
        if let (Command::Write(_) | Command::CloseSession { expired: false }, Verdict::Executed(result)) =
            (&txn.command, verdict)
        {
            // The end of a session that is over is granted again, and changes nothing (P31).
            if matches!(txn.command, Command::CloseSession { .. }) && closed.contains(&txn.session) {
                return Ok(());
            }
            let attach = if self.keeps_results.contains(&txn.session) { Zxid::ZERO } else { txn.attach };
            let key = (txn.session, attach, txn.n);
            ensure!(
                !closed.contains(&txn.session),
                "I19 session safety",
                "{key:?} is executed at {zxid:?}, after its session ended"
            );
            let former = executed.insert(key, zxid);
            ensure!(former.is_none(), "exactly once", "{key:?} is executed at {former:?} and at {zxid:?}");
            let last = last_n.entry((txn.session, attach)).or_default();
            ensure!(txn.n == *last + 1, "I23 session order", "{key:?} is executed at {zxid:?}, after number {last}");
            *last = txn.n;
            if let Some((_, told)) = self.writes.get(&zxid) {
                ensure!(
                    told == result,
                    "I22 writes are linearizable",
                    "{key:?} was answered {told:?}; the log says {result:?} at {zxid:?}"
                );
            }
        }
        Ok(())
    }

    fn compare_state(&self, zxid: Zxid, model: &MemoryStore) -> Check {
        let view = model.view();
        if let Some(digest) = self.digests.get(&zxid) {
            let model = Meta::read(&view).unwrap_or_default().digest;
            ensure!(
                model == *digest,
                "I13 apply discipline",
                "at {zxid:?} servers have digest {digest:x}, the model {model:x}"
            );
        }
        if let Some(digest) = self.full_digests.get(&zxid) {
            ensure!(
                model.digest() == *digest,
                "I13 apply discipline",
                "at {zxid:?} a server's rows differ from the model's"
            );
        }
        for map in self.followed.get(&zxid).into_iter().flatten() {
            let tree = held_by(&view);
            ensure!(*map == tree, "the change feed", "at {zxid:?} a follower holds {map:?}; the tree is {tree:?}");
        }
        for (watches, missed) in self.set_watches.get(&zxid).into_iter().flatten() {
            let (mut expected, mut told) = (missed_events(&view, watches), missed.clone());
            expected.sort();
            told.sort();
            ensure!(
                expected == told,
                "I25 watches",
                "at {zxid:?} {watches:?} was answered with {told:?}; it is {expected:?}"
            );
        }
        for (session, op, result) in self.reads.get(&zxid).into_iter().flatten() {
            let expected = read::read(&view, op, *session, &client_ids());
            ensure!(
                expected == *result,
                "I23 session order",
                "{session:?} read {op:?} at {zxid:?} as {result:?}; it was {expected:?}"
            );
        }
        Ok(())
    }
}

/// The znodes that a follower keeps.
fn held_by(view: &impl TreeView) -> BTreeMap<String, Held> {
    let op = ReadOp::Subtree { path: "/".to_owned(), depth: Depth::Subtree, after: String::new(), newer_than: None };
    let Ok(Answer::Subtree { nodes, .. }) = read::read(view, &op, SessionId::NONE, &client_ids()) else {
        return BTreeMap::new();
    };
    let kept = nodes.into_iter().filter(|node| is_kept(&node.path));
    kept.map(|node| (node.path, Held::new(node.data, &node.stat))).collect()
}

/// Between two gaps a follower is told of everything, once and in order.
fn check_stretch(follower: usize, stretch: &Stretch, changes: &Changes) -> Check {
    let (from, to) = (stretch.after, stretch.through);
    let happened = changes
        .all
        .iter()
        .filter(|(zxid, kind, _)| *kind != EventKind::NodeChildrenChanged && *zxid > from && *zxid <= to);
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

/// What happened to the tree, in order.
#[derive(Default)]
struct Changes {
    all: Vec<(Zxid, EventKind, String)>,
    by_path: BTreeMap<String, Vec<(Zxid, EventKind)>>,
}

impl Changes {
    fn note(&mut self, path: &str, kind: EventKind, zxid: Zxid) {
        self.all.push((zxid, kind, path.to_owned()));
        self.by_path.entry(path.to_owned()).or_default().push((zxid, kind));
    }

    /// The first change after a state that fires a one-shot watch.
    fn first(&self, path: &str, child: bool, after: Zxid) -> Option<(Zxid, EventKind)> {
        let list = self.by_path.get(path)?;
        let from = list.partition_point(|(z, _)| *z <= after);
        list[from..].iter().find(|(_, kind)| fires(child, *kind)).copied()
    }

    /// All changes after a state that a persistent watch tells of.
    fn all_for(&self, path: &str, recursive: bool, after: Zxid) -> VecDeque<(Zxid, EventKind, &str)> {
        let from = self.all.partition_point(|(z, _, _)| *z <= after);
        let told = |kind: EventKind, changed: &str| match recursive {
            false => changed == path,
            true => kind != EventKind::NodeChildrenChanged && is_at_or_below(changed, path),
        };
        let told = |(_, kind, changed): &&(Zxid, EventKind, String)| told(*kind, changed);
        self.all[from..].iter().filter(told).map(|(z, kind, path)| (*z, *kind, path.as_str())).collect()
    }
}

fn is_at_or_below(path: &str, top: &str) -> bool {
    path == top || top == "/" || path.strip_prefix(top).is_some_and(|rest| rest.starts_with('/'))
}

/// What a re-registration must tell at once (wire 7.8).
fn missed_events(view: &impl TreeView, watches: &SetWatches) -> Vec<(EventKind, String)> {
    let since = watches.relative_zxid.as_i64();
    let mut events = Vec::new();
    for path in &watches.data {
        match read::stat(view, path) {
            None => events.push((EventKind::NodeDeleted, path.clone())),
            Some(stat) if stat.mzxid > since => events.push((EventKind::NodeDataChanged, path.clone())),
            Some(_) => {}
        }
    }
    for path in &watches.exist {
        if read::stat(view, path).is_some() {
            events.push((EventKind::NodeCreated, path.clone()));
        }
    }
    for path in &watches.child {
        match read::stat(view, path) {
            None => events.push((EventKind::NodeDeleted, path.clone())),
            Some(stat) if stat.pzxid > since => events.push((EventKind::NodeChildrenChanged, path.clone())),
            Some(_) => {}
        }
    }
    events
}

fn parent(path: &str) -> Option<&str> {
    match path.rfind('/')? {
        0 if path.len() == 1 => None,
        0 => Some("/"),
        at => Some(&path[..at]),
    }
}

fn fires(child: bool, kind: EventKind) -> bool {
    match kind {
        EventKind::NodeDeleted => true,
        EventKind::NodeChildrenChanged => child,
        EventKind::NodeCreated | EventKind::NodeDataChanged => !child,
    }
}

/// I25 watches: a one-shot watch fires for the first change after the state that armed it, once, and before any reply
/// that shows the change.
fn check_watches(connection: u64, seen: &[Seen], changes: &Changes) -> Check {
    const NAME: &str = "I25 watches";
    // (path, child) -> the change that must fire it, if there is one.
    let mut armed: BTreeMap<(&str, bool), Option<(Zxid, EventKind)>> = BTreeMap::new();
    // What each persistent watch has yet to tell.
    let mut persistent: Vec<VecDeque<(Zxid, EventKind, &str)>> = Vec::new();
    let mut last_event = Zxid::ZERO;
    for item in seen {
        match item {
            Seen::Armed { path, child, zxid } => {
                let due = changes.first(path, *child, *zxid);
                armed.entry((path, *child)).or_insert(due);
            }
            Seen::Persistent { path, recursive, zxid } => {
                persistent.push(changes.all_for(path, *recursive, *zxid));
            }
            Seen::Event { kind, path, zxid } => {
                ensure!(
                    *zxid >= last_event,
                    NAME,
                    "connection {connection}: event {kind:?} {path} of {zxid:?} came after one of {last_event:?}"
                );
                last_event = *zxid;
                let mut fired = false;
                for child in [false, true] {
                    if armed.get(&(path.as_str(), child)) == Some(&Some((*zxid, *kind))) {
                        armed.remove(&(path.as_str(), child));
                        fired = true;
                    }
                }
                for due in &mut persistent {
                    if due.front() == Some(&(*zxid, *kind, path)) {
                        due.pop_front();
                        fired = true;
                    }
                }
                ensure!(
                    fired,
                    NAME,
                    "connection {connection}: event {kind:?} {path} of {zxid:?} came; armed were {:?}",
                    armed.iter().filter(|((p, _), _)| p == path).collect::<Vec<_>>()
                );
            }
            Seen::Reply(zxid) => {
                let missed = armed.iter().find(|(_, due)| due.is_some_and(|(z, _)| z <= *zxid));
                ensure!(
                    missed.is_none(),
                    NAME,
                    "connection {connection}: a reply shows {zxid:?} before the event of {missed:?}"
                );
                let missed = persistent.iter().filter_map(|due| due.front()).find(|(z, _, _)| z <= zxid);
                ensure!(
                    missed.is_none(),
                    NAME,
                    "connection {connection}: a reply shows {zxid:?} before the persistent watch told of {missed:?}"
                );
            }
        }
    }
    Ok(())
}
