//! What ClickHouse Keeper can beyond ZooKeeper, for those who ask for it (`keeperExtensions`): lists with a filter, with
//! stats and data; create-if-not-exists, check-not-exists and recursive removal, alone and in multis; more kinds of
//! reads in multi-reads.
//!
//! Off, all of it is refused as ZooKeeper refuses what it does not know. On, three znodes below `/keeper` say what there
//! is, as Keeper's clients expect: they read `/keeper/feature_flags` when they connect.

use bytes::Bytes;
use corral_proto::{Acl, ErrorCode, Id, path, perms};

use super::execute::{Exec, UNDELETABLE, Who, slash_without_nul};
use super::op::{Answer, Create, List};
use super::record::{NodeRec, Owner};
use super::{Cf, TreeView, acl, key, read};

/// Most znodes that one recursive removal deletes, whatever its client allows.
pub const REMOVE_MAX: u32 = 100_000;

/// Bytes of data in one list; a longer one is refused with `QuotaExceeded`.
pub const LIST_BYTES_MAX: usize = 16 << 20;

/// What Keeper calls a feature is a bit of this text, the first the highest of its byte: filtered list, multi-read,
/// check-not-exists, create-if-not-exists, remove-recursive; and, eleventh, list with stat and data.
const FEATURE_FLAGS: &[u8] = &[0b1111_1000, 0b0010_0000];

/// For clients from before there were feature flags: the version with check-not-exists.
const API_VERSION: &[u8] = b"3";

/// The znodes that advertise, parents first.
const ADVERTISEMENT: [(&str, &[u8]); 3] =
    [("/keeper", b""), ("/keeper/api_version", API_VERSION), ("/keeper/feature_flags", FEATURE_FLAGS)];

impl<V: TreeView> Exec<'_, V> {
    fn allow_extension(&self) -> Result<(), ErrorCode> {
        if read::has_keeper_extensions(&self.view) { Ok(()) } else { Err(ErrorCode::Unimplemented) }
    }

    /// A create that is content with what exists under the path asked for; nothing changes then.
    pub(super) fn create_if_not_exists(&mut self, op: &Create, who: &Who<'_>) -> Result<Answer, ErrorCode> {
        self.allow_extension()?;
        match (self.create(op, who), self.node(&op.path)) {
            (Err(ErrorCode::NodeExists), Some(node)) if !op.mode.is_sequential() => {
                Ok(Answer::Created { path: op.path.clone(), stat: node.rec.stat() })
            }
            (result, _) => result,
        }
    }

    /// Deletes a subtree, the deepest znodes first; one that is not there is deleted already. Needs DELETE on the parent
    /// and on every znode that goes.
    ///
    /// # Errors
    /// `NotEmpty` if more than `limit` (or [`REMOVE_MAX`]) znodes would go.
    pub(super) fn remove_recursive(&mut self, root: &str, limit: u32, who: &Who<'_>) -> Result<Answer, ErrorCode> {
        self.allow_extension()?;
        let slash = slash_without_nul(root)?;
        // All ancestors of an undeletable znode are undeletable, too: none can be below another root.
        if UNDELETABLE.contains(&root) {
            return Err(ErrorCode::BadArguments);
        }
        let Some(parent) = self.node(if slash == 0 { "/" } else { &root[..slash] }) else { return Ok(Answer::Done) };
        self.permit(&parent.rec, perms::DELETE, who)?;
        if self.node(root).is_none() {
            return Ok(Answer::Done);
        }
        let limit = limit.min(REMOVE_MAX) as usize;
        let mut paths = vec![root.to_owned()];
        for (from, to) in [key::children(root), key::deeper(root)] {
            self.view.scan(Cf::Node, &from, &to, &mut |key, _| {
                paths.extend(key::path_of(key));
                paths.len() <= limit
            });
        }
        if paths.len() > limit {
            return Err(ErrorCode::NotEmpty);
        }
        for path in &paths {
            if let Some(node) = self.node(path) {
                self.permit(&node.rec, perms::DELETE, who)?;
            }
        }
        // Deepest first, so that every parent is there when its child goes; and in one order on every server.
        paths.sort_by_key(|path| std::cmp::Reverse(path.matches('/').count()));
        for path in paths {
            let Some(node) = self.node(&path) else { continue };
            let parent = path::parent(&path).and_then(|parent| Some((parent.to_owned(), self.node(parent)?)));
            self.remove(path, node, parent);
        }
        Ok(Answer::Done)
    }

    /// Makes the znodes below `/keeper`, or removes what was made; a `/keeper` of somebody else's stays.
    pub(super) fn advertise_keeper(&mut self, on: bool) {
        let ids = [Id::new("super", "")];
        let who = Who::internal(&ids);
        let Ok(read_only) = self.intern(&Acl::read_only()) else { return };
        // Whatever stands in the way (a znode of a client's at one of the paths, a quota) only costs the advertisement.
        if on {
            for (path, data) in ADVERTISEMENT {
                let (acl, data) = (Some(Acl::read_only()), Some(Bytes::from_static(data)));
                let _ = self.create(&Create { path: path.to_owned(), data, acl, ..Create::default() }, &who);
            }
        } else {
            for (path, _) in ADVERTISEMENT.into_iter().rev() {
                if self.node(path).is_some_and(|node| node.rec.acl == read_only) {
                    let _ = self.delete(path, -1, &who);
                }
            }
        }
    }
}

/// Answers a list.
///
/// # Errors
/// `NoNode`; `NoAuth`, also for a child whose kind, stat or data would be shown; `QuotaExceeded` above
/// [`LIST_BYTES_MAX`].
pub(super) fn list(view: &impl TreeView, op: &List, ids: &[Id]) -> Result<Answer, ErrorCode> {
    let (_, rec) = read::readable(view, &op.path, perms::READ, ids)?;
    let (from, to) = key::children(read::rooted(&op.path));
    let shows_more = op.ephemerals.is_some() || op.with_stat || op.with_data;
    let mut found = Vec::with_capacity(rec.num_children.min(1 << 20) as usize);
    view.scan(Cf::Node, &from, &to, &mut |key, raw| {
        let name = key.get(from.len()..).and_then(|name| str::from_utf8(name).ok());
        let raw = if shows_more { Bytes::copy_from_slice(raw) } else { Bytes::new() };
        found.extend(name.map(|name| (name.to_owned(), raw)));
        true
    });
    let (mut children, mut stats, mut data) = (Vec::with_capacity(found.len()), Vec::new(), Vec::new());
    let mut bytes = 0;
    for (name, raw) in found {
        if shows_more {
            let Some(child) = NodeRec::decode(&raw) else { continue };
            let is_ephemeral = matches!(child.owner, Owner::Ephemeral(_));
            if op.ephemerals.is_some_and(|wanted| wanted != is_ephemeral) {
                continue;
            }
            if !acl::allows(view, child.acl, perms::READ, ids) {
                return Err(ErrorCode::NoAuth);
            }
            if op.with_stat {
                stats.push(child.stat());
            }
            if op.with_data {
                bytes += child.data.len();
                if bytes > LIST_BYTES_MAX {
                    return Err(ErrorCode::QuotaExceeded);
                }
                let key = [&from[..], name.as_bytes()].concat();
                data.push(read::data(view, &key, child.data));
            }
        }
        children.push(name);
    }
    Ok(Answer::Listing { children, stat: rec.stat(), stats, data })
}
