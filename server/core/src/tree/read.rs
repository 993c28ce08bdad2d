//! Answers to reads, as functions of a view: [`read`], and what other rooms ask of a state.
//!
//! Reads take paths as they come: the empty path is the root, a malformed one names no znode (wire 3.2, 6.1).

use bytes::Bytes;
use corral_proto::{ErrorCode, Id, SessionId, Stat, perms};

use super::entry::{self, Settings};
use super::op::{Answer, MultiReadOp, ReadOp};
use super::record::{Meta, NodeRec, Owner, Reader, SessionRow, Stored};
use super::{Cf, TreeView, acl, keeper, key, subtree};

/// Descendants that [`ReadOp::CountDescendants`] visits; a larger subtree is refused with
/// [`ErrorCode::QuotaExceeded`]. The root's are always known.
pub const COUNT_MAX: u64 = 1_000_000;

/// Answers a read for a connection of `session` with these identities.
///
/// # Errors
/// As wire 3.2 says: `NoNode`, `NoAuth`, for exists of a path with NUL `BadArguments`; and `QuotaExceeded` for a
/// subtree of more than [`COUNT_MAX`] descendants.
pub fn read(view: &impl TreeView, op: &ReadOp, session: SessionId, ids: &[Id]) -> Result<Answer, ErrorCode> {
    match op {
        ReadOp::Exists { path } => {
            if path.contains('\0') {
                return Err(ErrorCode::BadArguments);
            }
            let (_, rec) = readable(view, path, perms::READ, ids)?;
            Ok(Answer::Stat(rec.stat()))
        }
        ReadOp::GetData { path } => get_data(view, path, ids),
        ReadOp::GetAcl { path } => {
            let (_, rec) = readable(view, path, perms::READ | perms::ADMIN, ids)?;
            let list = acl::list(view, rec.acl);
            let sees_all = acl::allows(view, rec.acl, perms::ADMIN, ids);
            Ok(Answer::Acl { acl: if sees_all { list } else { acl::masked(list) }, stat: rec.stat() })
        }
        ReadOp::GetChildren { path } => get_children(view, path, ids),
        ReadOp::MultiRead(ops) => {
            if ops.iter().any(MultiReadOp::is_extension) && !has_keeper_extensions(view) {
                return Err(ErrorCode::MarshallingError);
            }
            let answer = |op: &MultiReadOp| match op {
                MultiReadOp::Exists { path } => read(view, &ReadOp::Exists { path: path.clone() }, session, ids),
                MultiReadOp::List(op) => keeper::list(view, op, ids),
                MultiReadOp::GetData { path } => get_data(view, path, ids),
                MultiReadOp::GetChildren { path } => get_children(view, path, ids),
            };
            Ok(Answer::MultiRead(ops.iter().map(answer).collect()))
        }
        ReadOp::GetEphemerals { prefix } => Ok(Answer::Paths(ephemerals(view, session, prefix))),
        ReadOp::CountDescendants { path } => {
            readable(view, path, perms::READ, ids)?;
            count_descendants(view, rooted(path)).map(Answer::Count)
        }
        ReadOp::Subtree { path, depth, after, newer_than } => {
            subtree::page(view, rooted(path), *depth, after, *newer_than, ids)
        }
        ReadOp::List(_) | ReadOp::CheckNotExists { .. } | ReadOp::Unreadable if !has_keeper_extensions(view) => {
            Err(ErrorCode::Unimplemented)
        }
        ReadOp::Unreadable => Err(ErrorCode::MarshallingError),
        ReadOp::List(op) => keeper::list(view, op, ids),
        ReadOp::CheckNotExists { path, version } => {
            check_not_exists(view, path, *version, ids)?;
            Ok(Answer::Done)
        }
    }
}

/// Refuses with `NodeExists` if the znode exists in this version (-1: any), as ClickHouse Keeper does.
pub(super) fn check_not_exists(view: &impl TreeView, path: &str, version: i32, ids: &[Id]) -> Result<(), ErrorCode> {
    match readable(view, path, perms::READ, ids) {
        Err(ErrorCode::NoNode) => Ok(()),
        Err(error) => Err(error),
        Ok((_, rec)) if version == -1 || version == rec.version => Err(ErrorCode::NodeExists),
        Ok(_) => Ok(()),
    }
}

/// What clients see of a znode beside its data; no permission is asked.
pub fn stat(view: &impl TreeView, path: &str) -> Option<Stat> {
    node(view, rooted(path)).map(|(_, rec)| rec.stat())
}

/// Whether connections with these identities may read under a list, as the delivery of events asks (wire 7.6).
/// `None`: everybody may.
pub fn may_read(view: &impl TreeView, acl_id: Option<u32>, ids: &[Id]) -> bool {
    acl_id.is_none_or(|id| acl::allows(view, id, perms::READ, ids))
}

/// A session's row; `None` if it is not open.
pub fn session(view: &impl TreeView, session: SessionId) -> Option<SessionRow> {
    SessionRow::decode(&view.get(Cf::Aux, &key::session(session))?)
}

/// All open sessions, ascending.
pub fn sessions(view: &impl TreeView) -> Vec<(SessionId, SessionRow)> {
    let mut rows = Vec::new();
    let (from, to) = key::SESSIONS;
    view.scan(Cf::Aux, from, to, &mut |key, value| {
        rows.extend(key::session_of(key).zip(SessionRow::decode(value)));
        true
    });
    rows
}

/// Paths of a session's ephemerals that start with `prefix`, ascending.
pub fn ephemerals(view: &impl TreeView, session: SessionId, prefix: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let (from, to) = key::ephemerals(session, prefix);
    view.scan(Cf::Aux, &from, &to, &mut |key, _| match key.get(key::EPHEMERAL_PREFIX..).map(str::from_utf8) {
        Some(Ok(path)) if path.starts_with(prefix) => {
            paths.push(path.to_owned());
            true
        }
        _ => false,
    });
    paths
}

/// A container or TTL znode, as the reaper sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reapable {
    /// Which.
    pub path: String,
    /// Its creation: the entry that reaps it names it.
    pub czxid: corral_proto::Zxid,
    /// Container or TTL.
    pub owner: Owner,
    /// Its last change of data, ms.
    pub mtime: i64,
    /// Direct children.
    pub num_children: u32,
    /// Children it ever had.
    pub creates: u64,
}

impl Reapable {
    /// The stamp (ms) after which it is due if nothing changes; `None` while it has children, and for a container that
    /// never had one if those stay for ever (`never_used_ms` 0).
    ///
    /// A container that was used is due at once. It is due when a stamp is *greater* than this (wire 8.5, 8.6).
    pub fn due_after(&self, never_used_ms: i64) -> Option<i64> {
        if self.num_children > 0 {
            return None;
        }
        match self.owner {
            Owner::Container if self.creates > 0 => Some(i64::MIN),
            Owner::Container if never_used_ms > 0 => Some(self.mtime.saturating_add(never_used_ms)),
            Owner::Ttl(ttl_ms) => Some(self.mtime.saturating_add(ttl_ms)),
            _ => None,
        }
    }

    /// Whether it is due at a stamp.
    pub fn is_due(&self, stamp_ms: i64, never_used_ms: i64) -> bool {
        self.due_after(never_used_ms).is_some_and(|after| stamp_ms > after)
    }

    /// What a record says; `None` for znodes that are never reaped.
    pub(super) fn of(path: &str, rec: &NodeRec) -> Option<Reapable> {
        matches!(rec.owner, Owner::Container | Owner::Ttl(_)).then(|| Reapable {
            path: path.to_owned(),
            czxid: rec.czxid,
            owner: rec.owner,
            mtime: rec.mtime,
            num_children: rec.num_children,
            creates: rec.creates,
        })
    }
}

/// A container or TTL znode; `None` if there is none at this path.
pub fn reapable(view: &impl TreeView, path: &str) -> Option<Reapable> {
    Reapable::of(path, &node(view, path)?.1)
}

/// All containers and TTL znodes, ascending by path: where a new leader's reaper starts.
pub fn reapables(view: &impl TreeView) -> Vec<Reapable> {
    let mut paths = Vec::new();
    let (from, to) = key::REAPABLES;
    view.scan(Cf::Aux, from, to, &mut |key, _| {
        paths.extend(key.get(1..).and_then(|path| str::from_utf8(path).ok()).map(str::to_owned));
        true
    });
    paths.iter().filter_map(|path| reapable(view, path)).collect()
}

/// The replicated settings; the defaults before the first were executed.
pub fn settings(view: &impl TreeView) -> Settings {
    view.get(Cf::Aux, key::SETTINGS).and_then(|row| Settings::decode(&row).ok()).unwrap_or_default()
}

/// The setting that permission checks need, without decoding the rest.
pub(super) fn skips_acl(view: &impl TreeView) -> bool {
    entry::flags(&settings_row(view)) & entry::SKIP_ACL != 0
}

/// Whether hard quotas refuse writes.
pub(super) fn enforces_quota(view: &impl TreeView) -> bool {
    entry::flags(&settings_row(view)) & entry::ENFORCE_QUOTA != 0
}

/// Whether TTL znodes may be created.
pub(super) fn has_extended_types(view: &impl TreeView) -> bool {
    entry::flags(&settings_row(view)) & entry::NO_EXTENDED_TYPES == 0
}

/// Whether ClickHouse Keeper's operations are answered.
pub(super) fn has_keeper_extensions(view: &impl TreeView) -> bool {
    entry::flags(&settings_row(view)) & entry::KEEPER_EXTENSIONS != 0
}

fn settings_row(view: &impl TreeView) -> Bytes {
    view.get(Cf::Aux, key::SETTINGS).unwrap_or_default()
}

/// The one setting that creating an ephemeral needs.
pub(super) fn ephemerals_per_session(view: &impl TreeView) -> u32 {
    let cap = |row: Bytes| {
        let mut from = Reader::of(&row, entry::SETTINGS_VERSIONS)?;
        from.u8()?;
        from.u32()
    };
    view.get(Cf::Aux, key::SETTINGS).and_then(cap).unwrap_or_else(|| Settings::default().ephemerals_per_session)
}

/// The znode of a path, with its key.
pub(super) fn node(view: &impl TreeView, path: &str) -> Option<(Bytes, NodeRec)> {
    let key = key::node(path)?;
    let rec = NodeRec::decode(&view.get(Cf::Node, &key)?)?;
    Some((key, rec))
}

/// Reads take the empty path for the root.
pub(super) fn rooted(path: &str) -> &str {
    if path.is_empty() { "/" } else { path }
}

/// The znode, if the identities have any permission of `need` on it.
pub(super) fn readable(view: &impl TreeView, path: &str, need: i32, ids: &[Id]) -> Result<(Bytes, NodeRec), ErrorCode> {
    let (key, rec) = node(view, rooted(path)).ok_or(ErrorCode::NoNode)?;
    if !acl::allows(view, rec.acl, need, ids) {
        return Err(ErrorCode::NoAuth);
    }
    Ok((key, rec))
}

fn get_data(view: &impl TreeView, path: &str, ids: &[Id]) -> Result<Answer, ErrorCode> {
    let (key, rec) = readable(view, path, perms::READ, ids)?;
    let stat = rec.stat();
    Ok(Answer::Data { data: data(view, &key, rec.data), stat })
}

/// A znode's data, wherever it is.
pub(super) fn data(view: &impl TreeView, key: &[u8], stored: Stored) -> Option<Bytes> {
    match stored {
        Stored::Null => None,
        Stored::Inline(bytes) => Some(bytes),
        Stored::External { .. } => Some(view.get(Cf::Data, key).unwrap_or_default()),
    }
}

fn get_children(view: &impl TreeView, path: &str, ids: &[Id]) -> Result<Answer, ErrorCode> {
    let (_, rec) = readable(view, path, perms::READ, ids)?;
    let mut children = Vec::with_capacity(rec.num_children.min(1 << 20) as usize);
    let (from, to) = key::children(rooted(path));
    view.scan(Cf::Node, &from, &to, &mut |key, _| {
        children.extend(key.get(from.len()..).and_then(|name| str::from_utf8(name).ok()).map(str::to_owned));
        true
    });
    Ok(Answer::Children { children, stat: rec.stat() })
}

fn count_descendants(view: &impl TreeView, path: &str) -> Result<u64, ErrorCode> {
    if path == "/" {
        return Ok(Meta::read(view).map_or(0, |meta| meta.znodes.saturating_sub(1)));
    }
    let mut count = 0;
    for (from, to) in [key::children(path), key::deeper(path)] {
        view.scan(Cf::Node, &from, &to, &mut |_, _| {
            count += 1;
            count <= COUNT_MAX
        });
    }
    if count > COUNT_MAX { Err(ErrorCode::QuotaExceeded) } else { Ok(count) }
}
