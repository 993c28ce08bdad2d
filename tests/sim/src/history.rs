//! What clients did and were told, and whether it was right.
//!
//! ZooKeeper's semantics make this cheap: the committed log is the witness order. What can be judged when a reply
//! arrives is judged then (I22 real time, I23, I24); the rest (results, watches, exactly once, I17-I21) by replaying
//! the committed log through a model at the end.

use std::collections::{BTreeMap, BTreeSet};

use corral_core::session::Consistency;
use corral_core::storage::memory::MemoryStore;
use corral_core::tree::entry::{Command, SessionEvent, Txn, Verdict};
use corral_core::tree::op::{Answer, ReadOp};
use corral_core::tree::record::Meta;
use corral_core::tree::{TreeStore, audit, execute, read};
use corral_proto::{ErrorCode, EventKind, Id, SessionId, Zxid};

use crate::checks::{Check, Ghost, ensure};
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

/// Everything clients did.
#[derive(Default)]
pub struct History {
    /// Largest zxid of any write answered anywhere.
    acknowledged: Zxid,
    /// Answered writes.
    writes: BTreeMap<Zxid, (WriteKey, ClientResult)>,
    /// Answered reads, by the state that answered.
    reads: BTreeMap<Zxid, Vec<(SessionId, ReadOp, ClientResult)>>,
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
        let mut changes: Changes = Changes::new();
        self.compare_state(Zxid::ZERO, &model)?;
        for (index, entry) in ghost.committed.iter().enumerate() {
            let zxid = entry.position.zxid;
            let outcome = {
                let view = model.view();
                execute::execute(&view, zxid, entry.stamp_ms, entry.position.hash, &entry.payload)
            };
            model.write(&mut outcome.changes.iter().cloned());
            for event in &outcome.events {
                note(&mut changes, &event.path, event.kind, zxid);
                if event.kind != EventKind::NodeDataChanged
                    && let Some(parent) = parent(&event.path)
                {
                    note(&mut changes, parent, EventKind::NodeChildrenChanged, zxid);
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

/// For each path, what happened to it.
type Changes = BTreeMap<String, Vec<(Zxid, EventKind)>>;

fn note(changes: &mut Changes, path: &str, kind: EventKind, zxid: Zxid) {
    if let Some(list) = changes.get_mut(path) {
        list.push((zxid, kind));
    } else {
        changes.insert(path.to_owned(), vec![(zxid, kind)]);
    }
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
    let mut last_event = Zxid::ZERO;
    for item in seen {
        match item {
            Seen::Armed { path, child, zxid } => {
                let due = changes.get(path).and_then(|list| {
                    let from = list.partition_point(|(z, _)| z <= zxid);
                    list[from..].iter().find(|(_, kind)| fires(*child, *kind)).copied()
                });
                armed.entry((path, *child)).or_insert(due);
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
            }
        }
    }
    Ok(())
}
