//! One entry, one outcome: [`execute`].
//!
//! Validation happens here, when the entry's place in the order is final. The order of the checks is
//! ZooKeeper's (wire 3.2), because it decides which error a client sees. A refusal is a result like any other: it has
//! its zxid, it advances the session, and it is kept for retries.
//!
//! Everything here is total: there are no bytes and no tree for which it panics or does not end (P34).

use bytes::Bytes;
use corral_proto::{Acl, CreateMode, ErrorCode, EventKind, Id, ServerId, SessionId, Zxid, path, perms};

use super::entry::{
    Carrier, Command, Outcome, Place, SessionEvent, Settings, TreeEvent, Txn, Verdict, decode_or_place,
};
use super::op::{Answer, Create, WriteOp};
use super::overlay::Overlay;
use super::read::{self, Reapable};
use super::record::{self, CarrierRow, Meta, NodeRec, Owner, SessionRow, Stored};
use super::{Cf, Change, TreeView, acl, feed, key, quota};
use crate::zoo::{self, Switch};

/// Results kept for one gRPC session (P31).
pub const RESULTS_MAX: u64 = 1024;

/// Bytes of results kept for one gRPC session (P31). The newest is kept whatever its size, which its request bounds.
pub const RESULT_BYTES_MAX: u64 = 1 << 20;

/// Longest time to live, ms (wire 3.2): 2^40-1.
pub const TTL_MAX_MS: i64 = (1 << 40) - 1;

/// The node that holds the text of the configuration.
const CONFIG: &str = "/zookeeper/config";

/// Znodes that cannot be deleted (wire 6.7).
pub(super) const UNDELETABLE: [&str; 4] = ["/", "/zookeeper", "/zookeeper/quota", CONFIG];

/// The fresh tree (wire 5.2) with a meta row at zxid 0: the same bytes on every server.
pub fn genesis() -> Vec<Change> {
    let mut exec = Exec::new(&Nothing, Zxid::ZERO, 0, 0);
    let node = |num_children, acl, aversion| NodeRec {
        czxid: Zxid::ZERO,
        mzxid: Zxid::ZERO,
        pzxid: Zxid::ZERO,
        ctime: 0,
        mtime: 0,
        // The built-in znodes do not count as creations of their parents: hence the negative cversions.
        creates: 0,
        owner: Owner::Persistent,
        version: 0,
        aversion,
        acl,
        num_children,
        data: Stored::Inline(Bytes::new()),
    };
    let read_only = exec.intern(&Acl::read_only()).unwrap_or(acl::OPEN);
    for (path, rec) in [
        ("/", node(1, acl::OPEN, 0)),
        ("/zookeeper", node(2, acl::OPEN, 0)),
        ("/zookeeper/quota", node(0, acl::OPEN, 0)),
        (CONFIG, node(0, read_only, -1)),
    ] {
        if let Some(key) = key::node(path) {
            exec.put_node(&key, None, &rec);
            exec.count(path, &rec, 1);
        }
    }
    let mut changes = exec.finish(Verdict::Internal).changes;
    changes.push(feed::fresh());
    changes
}

/// A view of nothing, below the fresh tree.
struct Nothing;

impl TreeView for Nothing {
    fn get(&self, _cf: Cf, _key: &[u8]) -> Option<Bytes> {
        None
    }
    fn scan(&self, _cf: Cf, _from: &[u8], _to: &[u8], _visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {}
}

/// Executes an entry on the state before it. Changes nothing by itself: the outcome carries the changes, the meta row
/// among them, also when there is nothing else.
///
/// An empty payload opens an epoch and has no other effect. A payload that cannot be read has none either; if its
/// session and number can be told, the session goes on past it with `MarshallingError` as the result.
pub fn execute(view: &impl TreeView, zxid: Zxid, stamp_ms: i64, log_hash: u64, payload: &Bytes) -> Outcome {
    if payload.is_empty() {
        return Exec::new(view, zxid, stamp_ms, log_hash).finish(Verdict::Internal);
    }
    match decode_or_place(payload) {
        Ok(txn) => execute_txn(view, zxid, stamp_ms, log_hash, &txn),
        Err(undecodable) => {
            let mut exec = Exec::new(view, zxid, stamp_ms, log_hash);
            let verdict = match undecodable.place {
                Some(place) if place.is_numbered() => exec.in_session(place, |_| Err(ErrorCode::MarshallingError)),
                _ => Verdict::Internal,
            };
            exec.finish(verdict)
        }
    }
}

/// Executes the entry at `zxid` as `SystemError` instead of what it says: the way out when an entry meets a bug that
/// nobody foresaw (P34, `--skip-entry`). Like [`execute`], it must be the same on every server.
pub fn execute_skipped(view: &impl TreeView, zxid: Zxid, stamp_ms: i64, log_hash: u64, payload: &Bytes) -> Outcome {
    let place = match decode_or_place(payload) {
        Ok(txn) => Some(txn.place()),
        Err(undecodable) => undecodable.place,
    };
    let mut exec = Exec::new(view, zxid, stamp_ms, log_hash);
    let verdict = match place {
        Some(place) if place.is_numbered() => exec.in_session(place, |_| Err(ErrorCode::SystemError)),
        _ => Verdict::Internal,
    };
    exec.finish(verdict)
}

/// [`execute`] for a transaction that is decoded already.
pub fn execute_txn(view: &impl TreeView, zxid: Zxid, stamp_ms: i64, log_hash: u64, txn: &Txn) -> Outcome {
    let mut exec = Exec::new(view, zxid, stamp_ms, log_hash);
    let verdict = match &txn.command {
        Command::Write(op) | Command::LocalWrite { op, .. } => {
            exec.in_session(txn.place(), |exec| exec.write(op, &Who::of(txn)))
        }
        Command::OpenCarrier { server, nonce } => exec.open_carrier(*server, *nonce),
        Command::CreateSession { timeout_ms, server, nonce, keeps_results } => {
            exec.create_session(txn.session, *timeout_ms, *server, *nonce, *keeps_results)
        }
        Command::Attach { timeout_ms, server, nonce, keeps_results } => {
            exec.attach(txn.session, *timeout_ms, *server, *nonce, *keeps_results)
        }
        Command::CloseSession { expired: true } => exec.expire(txn.session, txn.attach),
        Command::CloseSession { expired: false } => exec.close(txn.place()),
        Command::Reap { path, czxid } => exec.reap(path, *czxid),
        Command::Settings(settings) => exec.settings(settings),
    };
    exec.finish(verdict)
}

/// On whose behalf an operation runs.
#[derive(Clone, Copy)]
pub(super) struct Who<'a> {
    session: SessionId,
    /// No other server knows the session: it owns nothing.
    local: bool,
    ids: &'a [Id],
}

impl Who<'_> {
    fn of(txn: &Txn) -> Who<'_> {
        Who { session: txn.session, local: matches!(txn.command, Command::LocalWrite { .. }), ids: &txn.ids }
    }

    /// The ensemble itself, with these identities.
    pub(super) fn internal(ids: &[Id]) -> Who<'_> {
        Who { session: SessionId::NONE, local: false, ids }
    }

    pub(super) fn ids(&self) -> &[Id] {
        self.ids
    }
}

/// A znode as it is now, with what is needed to write it back.
pub(super) struct Node {
    key: Bytes,
    raw: Bytes,
    pub(super) rec: NodeRec,
}

/// An entry on its way to an outcome.
pub(super) struct Exec<'v, V> {
    pub(super) view: Overlay<&'v V>,
    pub(super) meta: Meta,
    zxid: Zxid,
    stamp_ms: i64,
    events: Vec<TreeEvent>,
    sessions: Vec<SessionEvent>,
    reapable: Vec<String>,
}

impl<'v, V: TreeView> Exec<'v, V> {
    fn new(view: &'v V, zxid: Zxid, stamp_ms: i64, log_hash: u64) -> Exec<'v, V> {
        let before = Meta::read(view).unwrap_or_default();
        Exec {
            view: Overlay::new(view),
            meta: Meta { applied: zxid, hash: log_hash, stamp_ms, ..before },
            zxid,
            stamp_ms,
            events: Vec::new(),
            sessions: Vec::new(),
            reapable: Vec::new(),
        }
    }

    fn finish(mut self, verdict: Verdict) -> Outcome {
        self.view.put(Cf::Aux, Bytes::from_static(key::META), Some(self.meta.encode()));
        self.reapable.sort_unstable();
        self.reapable.dedup();
        Outcome {
            verdict,
            changes: self.view.take(),
            events: self.events,
            sessions: self.sessions,
            reapable: self.reapable,
        }
    }

    /// Runs several operations as one: if it fails, it is as if it had not been tried. Nothing may be pending before.
    pub(super) fn all_or_nothing<T, E>(&mut self, run: impl FnOnce(&mut Self) -> Result<T, E>) -> Result<T, E> {
        let meta = self.meta.clone();
        let result = run(self);
        if result.is_err() && !zoo::broken(Switch::HalfMulti) {
            self.view.clear();
            self.meta = meta;
            self.events.clear();
            self.reapable.clear();
        }
        result
    }
}

// Sessions: what may run at all (P29, P31).
impl<V: TreeView> Exec<'_, V> {
    /// Runs a session's request if it is the next one of the current attach. Its result is kept, if the session keeps
    /// results. Requests of no session always run.
    fn in_session(&mut self, place: Place, run: impl FnOnce(&mut Self) -> Result<Answer, ErrorCode>) -> Verdict {
        if let Some(carrier) = place.carrier {
            return self.in_carrier(carrier, place.session, run);
        }
        if place.session == SessionId::NONE {
            return Verdict::Executed(run(self));
        }
        let key = key::session(place.session);
        let Some(row) = self.session_row(&key) else { return Verdict::Expired };
        if let Some(verdict) = self.not_next(&row, place) {
            return verdict;
        }
        let result = run(self);
        // An ephemeral that came or went has changed the row meanwhile.
        let mut row = match self.view.pending(Cf::Aux, &key) {
            Some(Some(pending)) => SessionRow::decode(pending).unwrap_or(row),
            _ => row,
        };
        row.last_n = place.n;
        if row.keeps_results {
            self.keep_result(&mut row, place, &result);
        }
        self.view.put(Cf::Aux, key, Some(row.encode()));
        Verdict::Executed(result)
    }

    /// Runs a local session's request if it is the next of its server's.
    fn in_carrier(
        &mut self,
        carrier: Carrier,
        session: SessionId,
        run: impl FnOnce(&mut Self) -> Result<Answer, ErrorCode>,
    ) -> Verdict {
        let key = key::carrier(carrier.server);
        let Some(mut row) = self.carrier_row(&key) else { return Verdict::Expired };
        if row.attach != carrier.attach {
            return Verdict::Moved;
        }
        if carrier.n <= row.last_n {
            return Verdict::Repeated { zxid: Zxid::ZERO, result: None };
        }
        if carrier.n - row.last_n > 1 {
            return Verdict::OutOfOrder;
        }
        // One that became known to all meanwhile writes under its attach, and only there (P29). The place is used up.
        let known = self.session_row(&key::session(session)).is_some();
        let result = if known { Err(ErrorCode::SessionMoved) } else { run(self) };
        row.last_n = carrier.n;
        self.view.put(Cf::Aux, key, Some(row.encode()));
        Verdict::Executed(result)
    }

    fn carrier_row(&self, key: &[u8]) -> Option<CarrierRow> {
        CarrierRow::decode(&self.view.get(Cf::Aux, key)?)
    }

    /// From here on nothing that was numbered under a former opening takes effect.
    fn open_carrier(&mut self, server: ServerId, nonce: u64) -> Verdict {
        let key = key::carrier(server);
        let row = match self.carrier_row(&key) {
            Some(row) if row.nonce == nonce => row,
            _ => CarrierRow { nonce, attach: self.zxid, last_n: 0 },
        };
        self.view.put(Cf::Aux, key, Some(row.encode()));
        self.sessions.push(SessionEvent::Carried { server, nonce, attach: row.attach, last_n: row.last_n });
        Verdict::Internal
    }

    /// Why a request must not run; `None` if it is the next one.
    fn not_next(&self, row: &SessionRow, place: Place) -> Option<Verdict> {
        if row.attach != place.attach && !zoo::broken(Switch::AttachIgnored) {
            return Some(Verdict::Moved);
        }
        if place.n <= row.last_n && !zoo::broken(Switch::DoneTwice) {
            let kept = match row.keeps_results {
                true => self.view.get(Cf::Aux, &key::result(place.session, place.n)),
                false => None,
            };
            return Some(match kept.and_then(|value| record::decode_result(&value)) {
                Some((zxid, result)) => Verdict::Repeated { zxid, result: Some(result) },
                None => Verdict::Repeated { zxid: Zxid::ZERO, result: None },
            });
        }
        (place.n.saturating_sub(row.last_n) > 1).then_some(Verdict::OutOfOrder)
    }

    /// Drops results the client has seen, then keeps this one, then drops the oldest ones past the bounds.
    fn keep_result(&mut self, row: &mut SessionRow, place: Place, result: &Result<Answer, ErrorCode>) {
        let n = place.n;
        // A guard against rows that are not ours; at most RESULTS_MAX are there.
        row.results_from = row.results_from.max(n.saturating_sub(RESULTS_MAX));
        let seen = if zoo::broken(Switch::ResultsDropped) { n } else { place.answered_through };
        while row.results_from <= seen.min(n - 1) {
            self.drop_oldest_result(row, place.session);
        }
        let Some(value) = record::encode_result(self.zxid, result) else { return };
        let size = value.len() as u64;
        while row.results_from < n
            && (n - row.results_from >= RESULTS_MAX || row.result_bytes.saturating_add(size) > RESULT_BYTES_MAX)
        {
            self.drop_oldest_result(row, place.session);
        }
        row.result_bytes = row.result_bytes.saturating_add(size);
        self.view.put(Cf::Aux, key::result(place.session, n), Some(value));
    }

    fn drop_oldest_result(&mut self, row: &mut SessionRow, session: SessionId) {
        let key = key::result(session, row.results_from);
        if let Some(value) = self.view.get(Cf::Aux, &key) {
            row.result_bytes = row.result_bytes.saturating_sub(value.len() as u64);
            self.view.put(Cf::Aux, key, None);
        }
        row.results_from += 1;
    }

    fn session_row(&self, key: &[u8]) -> Option<SessionRow> {
        SessionRow::decode(&self.view.get(Cf::Aux, key)?)
    }

    fn create_session(
        &mut self,
        session: SessionId,
        timeout_ms: i32,
        server: ServerId,
        nonce: u64,
        keeps_results: bool,
    ) -> Verdict {
        if session.0 <= 0 {
            // No session has such an id; ids with the top bit set would read as other kinds of owners.
            return Verdict::IdTaken;
        }
        let key = key::session(session);
        if let Some(row) = self.session_row(&key) {
            return match row {
                row if row.created_nonce != nonce => Verdict::IdTaken,
                // A copy that comes after the session moved on: its connection is the old one.
                row if row.attach != row.created => Verdict::Moved,
                row => Verdict::Attached { timeout_ms: row.timeout_ms, last_n: row.last_n },
            };
        }
        let row = SessionRow {
            timeout_ms,
            keeps_results,
            ephemerals: 0,
            created: self.zxid,
            created_nonce: nonce,
            attach: self.zxid,
            nonce,
            server,
            last_n: 0,
            results_from: 1,
            result_bytes: 0,
        };
        self.view.put(Cf::Aux, key, Some(row.encode()));
        self.meta.sessions = self.meta.sessions.wrapping_add(1);
        self.attached(session, &row);
        Verdict::Attached { timeout_ms, last_n: 0 }
    }

    fn attach(
        &mut self,
        session: SessionId,
        timeout_ms: i32,
        server: ServerId,
        nonce: u64,
        keeps_results: bool,
    ) -> Verdict {
        let key = key::session(session);
        let Some(mut row) = self.session_row(&key) else { return Verdict::Expired };
        if row.keeps_results != keeps_results {
            // The other protocol counts requests otherwise: a new write would pass for an old one.
            return Verdict::Expired;
        }
        if (row.server, row.nonce) == (server, nonce) {
            return Verdict::Attached { timeout_ms: row.timeout_ms, last_n: row.last_n };
        }
        row.timeout_ms = timeout_ms;
        row.server = server;
        row.nonce = nonce;
        row.attach = self.zxid;
        if !row.keeps_results {
            // These clients never send again: their requests are numbered from 1 with each attach.
            row.last_n = 0;
        }
        self.view.put(Cf::Aux, key, Some(row.encode()));
        self.attached(session, &row);
        Verdict::Attached { timeout_ms, last_n: row.last_n }
    }

    fn attached(&mut self, session: SessionId, row: &SessionRow) {
        self.sessions.push(SessionEvent::Attached {
            session,
            attach: row.attach,
            server: row.server,
            nonce: row.nonce,
            timeout_ms: row.timeout_ms,
            keeps_results: row.keeps_results,
        });
    }

    /// The client closes its session. A close sent again, when the first one did it, is answered OK (P31).
    fn close(&mut self, place: Place) -> Verdict {
        let Some(row) = self.session_row(&key::session(place.session)) else {
            return Verdict::Executed(Ok(Answer::Done));
        };
        if let Some(verdict) = self.not_next(&row, place) {
            return verdict;
        }
        self.end_session(place.session, false);
        Verdict::Executed(Ok(Answer::Done))
    }

    /// The leader's clock closes the session, unless it has been attached again since (P32).
    fn expire(&mut self, session: SessionId, attach: Zxid) -> Verdict {
        if self
            .session_row(&key::session(session))
            .is_some_and(|row| row.attach == attach || zoo::broken(Switch::ExpiryOfMovedSession))
        {
            self.end_session(session, true);
        }
        Verdict::Internal
    }

    /// Deletes a session's ephemerals in ascending order of paths, then its rows.
    fn end_session(&mut self, session: SessionId, expired: bool) {
        let spared = usize::from(zoo::broken(Switch::EphemeralsStay));
        for path in read::ephemerals(&self.view, session, "").into_iter().skip(spared) {
            let Some(node) = self.node(&path).filter(|node| node.rec.owner == Owner::Ephemeral(session)) else {
                continue;
            };
            let parent = path::parent(&path).and_then(|parent| Some((parent.to_owned(), self.node(parent)?)));
            self.remove(path, node, parent);
        }
        let mut keys = Vec::new();
        let (from, to) = key::results(session);
        self.view.scan(Cf::Aux, &from, &to, &mut |key, _| {
            keys.push(Bytes::copy_from_slice(key));
            true
        });
        keys.push(key::session(session));
        for key in keys {
            self.view.put(Cf::Aux, key, None);
        }
        self.meta.sessions = self.meta.sessions.wrapping_sub(1);
        self.sessions.push(SessionEvent::Closed { session, expired });
    }
}

// The operations. Each checks everything before it changes anything, but for an ACL list that gets its number.
impl<V: TreeView> Exec<'_, V> {
    fn write(&mut self, op: &WriteOp, who: &Who<'_>) -> Result<Answer, ErrorCode> {
        match op {
            WriteOp::Create(op) => self.create(op, who),
            WriteOp::Delete { path, version } => self.delete(path, *version, who),
            WriteOp::SetData { path, data, version } => self.set_data(path, data.as_ref(), *version, who),
            WriteOp::SetAcl { path, acl, version } => self.set_acl(path, acl.as_deref(), *version, who),
            WriteOp::Multi(ops) => self.multi(ops, who),
            WriteOp::CreateIfNotExists(op) => self.create_if_not_exists(op, who),
            WriteOp::RemoveRecursive { path, limit } => self.remove_recursive(path, *limit, who),
        }
    }

    pub(super) fn create(&mut self, op: &Create, who: &Who<'_>) -> Result<Answer, ErrorCode> {
        if op.mode.is_ttl() {
            if !read::has_extended_types(&self.view) {
                return Err(ErrorCode::Unimplemented);
            }
            if !(1..=TTL_MAX_MS).contains(&op.ttl_ms) {
                return Err(ErrorCode::BadArguments);
            }
        }
        if op.mode.is_ephemeral() && who.session == SessionId::NONE {
            return Err(ErrorCode::SessionExpired);
        }
        if op.mode.is_ephemeral() && who.local {
            return Err(ErrorCode::EphemeralOnLocalSession);
        }
        let slash = slash_without_nul(&op.path)?;
        let acl = acl::fix_up(op.acl.as_deref(), who.ids)?;
        let parent_path = if slash == 0 { "/" } else { &op.path[..slash] };
        let mut parent = self.node(parent_path).ok_or(ErrorCode::NoNode)?;
        self.permit(&parent.rec, perms::CREATE, who)?;
        let path = match op.mode.is_sequential() {
            true => {
                // Numbers never wrap: a parent that has given out the last one refuses (wire 5.4).
                let number = i32::try_from(parent.rec.creates).map_err(|_| ErrorCode::BadArguments)?;
                format!("{}{number:010}", op.path)
            }
            false => op.path.clone(),
        };
        path::validate(&path)?;
        let key = key::node(&path).ok_or(ErrorCode::BadArguments)?;
        if self.view.get(Cf::Node, &key).is_some() {
            return Err(ErrorCode::NodeExists);
        }
        if matches!(parent.rec.owner, Owner::Ephemeral(_)) {
            return Err(ErrorCode::NoChildrenForEphemerals);
        }
        let bytes = op.data.as_ref().map_or(0, Bytes::len);
        self.stay_within_quota(&path, 1, bytes as i64)?;
        let usage = match quota::counted_by(&path) {
            Some(root) => Some(self.usage_with(root, &path, bytes)?),
            None => None,
        };
        let owner = match op.mode {
            CreateMode::Ephemeral | CreateMode::EphemeralSequential => Owner::Ephemeral(who.session),
            CreateMode::Container => Owner::Container,
            CreateMode::PersistentWithTtl | CreateMode::PersistentSequentialWithTtl => Owner::Ttl(op.ttl_ms),
            CreateMode::Persistent | CreateMode::PersistentSequential => Owner::Persistent,
        };
        let session = match owner {
            Owner::Ephemeral(session) => Some(self.room_for_ephemeral(session)?),
            _ => None,
        };
        let rec = NodeRec {
            czxid: self.zxid,
            mzxid: self.zxid,
            pzxid: self.zxid,
            ctime: self.stamp_ms,
            mtime: self.stamp_ms,
            creates: 0,
            owner,
            version: 0,
            aversion: 0,
            acl: self.intern(&acl)?,
            num_children: 0,
            data: Stored::of(op.data.as_ref()),
        };
        let stat = rec.stat();

        self.put_node(&key, None, &rec);
        if let (Stored::External { .. }, Some(data)) = (&rec.data, &op.data) {
            self.view.put(Cf::Data, key, Some(data.clone()));
        }
        self.count(&path, &rec, 1);
        if let Some((key, mut row)) = session {
            row.ephemerals = row.ephemerals.saturating_add(1);
            self.view.put(Cf::Aux, key, Some(row.encode()));
            self.view.put(Cf::Aux, key::ephemeral(who.session, &path), Some(Bytes::new()));
        }
        if matches!(owner, Owner::Container | Owner::Ttl(_)) {
            self.view.put(Cf::Aux, key::reapable(&path), Some(Bytes::new()));
            self.reapable.push(path.clone());
        }
        parent.rec.creates = parent.rec.creates.saturating_add(1);
        parent.rec.num_children = parent.rec.num_children.saturating_add(1);
        self.put_parent(parent_path, &mut parent);
        if quota::limited_by(&path).is_some() {
            self.meta.quotas = self.meta.quotas.saturating_add(1);
        }
        if let Some(usage) = usage {
            self.put_usage(&path, &usage);
        }
        self.charge(&path, 1, bytes as i64);
        self.events.push(TreeEvent {
            kind: EventKind::NodeCreated,
            path: path.clone(),
            acl: watched_acl(&rec),
            parent_acl: watched_acl(&parent.rec),
            bytes: rec.data.len() as u32,
        });
        Ok(Answer::Created { path, stat })
    }

    pub(super) fn delete(&mut self, path: &str, version: i32, who: &Who<'_>) -> Result<Answer, ErrorCode> {
        let slash = slash_without_nul(path)?;
        if UNDELETABLE.contains(&path) {
            return Err(ErrorCode::BadArguments);
        }
        let parent_path = if slash == 0 { "/" } else { &path[..slash] };
        let parent = self.node(parent_path).ok_or(ErrorCode::NoNode)?;
        self.permit(&parent.rec, perms::DELETE, who)?;
        let node = self.node(path).ok_or(ErrorCode::NoNode)?;
        expect_version(version, node.rec.version)?;
        if node.rec.num_children > 0 {
            return Err(ErrorCode::NotEmpty);
        }
        self.remove(path.to_owned(), node, Some((parent_path.to_owned(), parent)));
        Ok(Answer::Done)
    }

    pub(super) fn set_data(
        &mut self,
        path: &str,
        data: Option<&Bytes>,
        version: i32,
        who: &Who<'_>,
    ) -> Result<Answer, ErrorCode> {
        path::validate(path)?;
        let mut node = self.node(path).ok_or(ErrorCode::NoNode)?;
        self.permit(&node.rec, perms::WRITE, who)?;
        let growth = data.map_or(0, Bytes::len) as i64 - node.rec.data.len() as i64;
        self.stay_within_quota(path, 0, growth)?;
        expect_version(version, node.rec.version)?;
        node.rec.version = next_version(node.rec.version);
        self.replace_data(path, &mut node, data);
        Ok(Answer::Stat(node.rec.stat()))
    }

    fn set_acl(&mut self, path: &str, acl: Option<&[Acl]>, version: i32, who: &Who<'_>) -> Result<Answer, ErrorCode> {
        path::validate(path)?;
        let acl = acl::fix_up(acl, who.ids)?;
        let mut node = self.node(path).ok_or(ErrorCode::NoNode)?;
        self.permit(&node.rec, perms::ADMIN, who)?;
        expect_version(version, node.rec.aversion)?;
        node.rec.aversion = next_version(node.rec.aversion);
        node.rec.acl = self.intern(&acl)?;
        self.put_node(&node.key, Some(&node.raw), &node.rec);
        Ok(Answer::Stat(node.rec.stat()))
    }

    pub(super) fn check(&mut self, path: &str, version: i32, who: &Who<'_>) -> Result<Answer, ErrorCode> {
        path::validate(path)?;
        let node = self.node(path).ok_or(ErrorCode::NoNode)?;
        self.permit(&node.rec, perms::READ, who)?;
        expect_version(version, node.rec.version)?;
        Ok(Answer::Done)
    }

    fn reap(&mut self, path: &str, czxid: Zxid) -> Verdict {
        let due = |node: &Node| {
            let never_used_ms = read::settings(&self.view).container_never_used_ms;
            node.rec.czxid == czxid
                && Reapable::of(path, &node.rec).is_some_and(|it| it.is_due(self.stamp_ms, never_used_ms))
        };
        if let Some(node) = self.node(path).filter(due) {
            let parent = path::parent(path).and_then(|parent| Some((parent.to_owned(), self.node(parent)?)));
            self.remove(path.to_owned(), node, parent);
        }
        Verdict::Internal
    }

    fn settings(&mut self, settings: &Settings) -> Verdict {
        let before = read::settings(&self.view);
        self.view.put(Cf::Aux, Bytes::from_static(key::SETTINGS), Some(settings.encode()));
        if settings.keeper_extensions != before.keeper_extensions {
            self.advertise_keeper(settings.keeper_extensions);
        }
        if settings.config_text != before.config_text
            && let Some(mut node) = self.node(CONFIG)
        {
            // Wire 11.3: the text names the entry that brought it; a server alone shows nothing.
            let text = match settings.config_text.as_str() {
                "" => String::new(),
                text => format!("{text}\nversion={:x}", self.zxid.0),
            };
            node.rec.version = -1;
            self.replace_data(CONFIG, &mut node, Some(&Bytes::from(text)));
        }
        Verdict::Internal
    }
}

// Steps that operations share.
impl<V: TreeView> Exec<'_, V> {
    pub(super) fn node(&self, path: &str) -> Option<Node> {
        let key = key::node(path)?;
        let raw = self.view.get(Cf::Node, &key)?;
        let rec = NodeRec::decode(&raw)?;
        Some(Node { key, raw, rec })
    }

    pub(super) fn permit(&self, rec: &NodeRec, need: i32, who: &Who<'_>) -> Result<(), ErrorCode> {
        if acl::allows(&self.view, rec.acl, need, who.ids) { Ok(()) } else { Err(ErrorCode::NoAuth) }
    }

    /// The number of a list; a new one gets the next.
    pub(super) fn intern(&mut self, list: &[Acl]) -> Result<u32, ErrorCode> {
        if acl::is_open(list) {
            return Ok(acl::OPEN);
        }
        let encoded = acl::encode(list);
        let by_content = key::acl_by_content(&acl::content_hash(&encoded));
        if let Some(id) = self.view.get(Cf::Aux, &by_content) {
            return id[..].try_into().map(u32::from_le_bytes).map_err(|_| ErrorCode::SystemError);
        }
        let id = self.meta.next_acl.max(acl::OPEN + 1);
        self.meta.next_acl = id.checked_add(1).ok_or(ErrorCode::SystemError)?;
        self.view.put(Cf::Aux, Bytes::copy_from_slice(&key::acl(id)), Some(encoded));
        self.view.put(Cf::Aux, Bytes::copy_from_slice(&by_content), Some(Bytes::copy_from_slice(&id.to_le_bytes())));
        Ok(id)
    }

    /// The owner's row, if it may have one more ephemeral.
    fn room_for_ephemeral(&self, session: SessionId) -> Result<(Bytes, SessionRow), ErrorCode> {
        let key = key::session(session);
        let row = self.session_row(&key).ok_or(ErrorCode::SessionExpired)?;
        if row.ephemerals >= read::ephemerals_per_session(&self.view) {
            return Err(ErrorCode::QuotaExceeded);
        }
        Ok((key, row))
    }

    /// Writes a record and keeps the tree's digest; `old`: what was there before.
    fn put_node(&mut self, key: &Bytes, old: Option<&Bytes>, rec: &NodeRec) {
        let raw = rec.encode();
        self.forget(key, old);
        self.meta.digest = self.meta.digest.wrapping_add(NodeRec::digest(key, &raw));
        self.view.put(Cf::Node, key.clone(), Some(raw));
    }

    fn forget(&mut self, key: &Bytes, old: Option<&Bytes>) {
        if let Some(old) = old {
            self.meta.digest = self.meta.digest.wrapping_sub(NodeRec::digest(key, old));
        }
    }

    /// Writes a parent whose children have changed.
    fn put_parent(&mut self, path: &str, parent: &mut Node) {
        parent.rec.pzxid = self.zxid;
        self.put_node(&parent.key, Some(&parent.raw), &parent.rec);
        self.note_reapable(path, &parent.rec);
    }

    fn note_reapable(&mut self, path: &str, rec: &NodeRec) {
        if matches!(rec.owner, Owner::Container | Owner::Ttl(_)) {
            self.reapable.push(path.to_owned());
        }
    }

    /// Replaces a znode's data at this zxid; its version is the caller's.
    fn replace_data(&mut self, path: &str, node: &mut Node, data: Option<&Bytes>) {
        node.rec.mzxid = self.zxid;
        node.rec.mtime = self.stamp_ms;
        let growth = self.store_data(node, data);
        self.note_reapable(path, &node.rec);
        self.charge(path, 0, growth);
        self.events.push(TreeEvent {
            kind: EventKind::NodeDataChanged,
            path: path.to_owned(),
            acl: watched_acl(&node.rec),
            parent_acl: None,
            bytes: node.rec.data.len() as u32,
        });
    }

    /// Writes a znode with other data, where that belongs; returns by how many bytes it has grown.
    pub(super) fn store_data(&mut self, node: &mut Node, data: Option<&Bytes>) -> i64 {
        let before = std::mem::replace(&mut node.rec.data, Stored::of(data));
        match (&node.rec.data, data) {
            (Stored::External { .. }, Some(data)) => self.view.put(Cf::Data, node.key.clone(), Some(data.clone())),
            _ if matches!(before, Stored::External { .. }) => self.view.put(Cf::Data, node.key.clone(), None),
            _ => {}
        }
        self.put_node(&node.key, Some(&node.raw), &node.rec);
        let growth = node.rec.data.len() as i64 - before.len() as i64;
        self.meta.data_bytes = self.meta.data_bytes.wrapping_add_signed(growth);
        growth
    }

    /// Deletes a znode that may go.
    pub(super) fn remove(&mut self, path: String, node: Node, parent: Option<(String, Node)>) {
        self.forget(&node.key, Some(&node.raw));
        if matches!(node.rec.data, Stored::External { .. }) {
            self.view.put(Cf::Data, node.key.clone(), None);
        }
        self.view.put(Cf::Node, node.key, None);
        self.count(&path, &node.rec, -1);
        match node.rec.owner {
            Owner::Persistent => {}
            Owner::Ephemeral(owner) => {
                self.view.put(Cf::Aux, key::ephemeral(owner, &path), None);
                let key = key::session(owner);
                if let Some(mut row) = self.session_row(&key) {
                    row.ephemerals = row.ephemerals.saturating_sub(1);
                    self.view.put(Cf::Aux, key, Some(row.encode()));
                }
            }
            Owner::Container | Owner::Ttl(_) => {
                self.view.put(Cf::Aux, key::reapable(&path), None);
                self.reapable.push(path.clone());
            }
        }
        let mut parent_acl = None;
        if let Some((parent_path, mut parent)) = parent {
            parent.rec.num_children = parent.rec.num_children.saturating_sub(1);
            self.put_parent(&parent_path, &mut parent);
            parent_acl = watched_acl(&parent.rec);
        }
        if quota::limited_by(&path).is_some() {
            self.meta.quotas = self.meta.quotas.saturating_sub(1);
        }
        self.charge(&path, -1, -(node.rec.data.len() as i64));
        let acl = watched_acl(&node.rec);
        self.events.push(TreeEvent { kind: EventKind::NodeDeleted, path, acl, parent_acl, bytes: 0 });
    }

    /// Counts a znode in (1) or out (-1) of the meta row.
    fn count(&mut self, path: &str, rec: &NodeRec, sign: i64) {
        let bytes = (path.len() + rec.data.len()) as i64;
        self.meta.znodes = self.meta.znodes.wrapping_add_signed(sign);
        self.meta.data_bytes = self.meta.data_bytes.wrapping_add_signed(sign * bytes);
        if matches!(rec.owner, Owner::Ephemeral(_)) {
            self.meta.ephemerals = self.meta.ephemerals.wrapping_add_signed(sign);
        }
    }
}

/// What an event carries of a znode's list: `None` if everybody may read.
fn watched_acl(rec: &NodeRec) -> Option<u32> {
    (rec.acl != acl::OPEN).then_some(rec.acl)
}

/// All that create and delete ask of a path before they look at the tree; the rest comes later (wire 3.2).
pub(super) fn slash_without_nul(path: &str) -> Result<usize, ErrorCode> {
    if path.contains('\0') {
        return Err(ErrorCode::BadArguments);
    }
    path.rfind('/').ok_or(ErrorCode::BadArguments)
}

/// -1 is any version; every other number must be the version (wire 5.3).
fn expect_version(expected: i32, actual: i32) -> Result<(), ErrorCode> {
    if expected == -1 || expected == actual { Ok(()) } else { Err(ErrorCode::BadVersion) }
}

/// The version after `version`: 32 bits, wrapping, and never -1, which would mean "any" (wire 5.3).
fn next_version(version: i32) -> i32 {
    match version.wrapping_add(1) {
        -1 => 0,
        next => next,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_wrap_and_skip_minus_one() {
        assert_eq!(next_version(0), 1);
        assert_eq!(next_version(i32::MAX), i32::MIN);
        assert_eq!(next_version(-2), 0);
        assert_eq!(next_version(-1), 0);
    }
}
