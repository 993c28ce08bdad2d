//! What a cache holds, and how it comes about: pages of a subtree and changes, in any order in which they may arrive, make one
//! picture. Pure.
//!
//! Every znode in it carries the zxid of the state that it was read from; what is not newer than that is in it already. A
//! page is as of its own zxid and the next one of a later, while changes go on: so the whole is exact only at the first
//! bookmark that is not before the last page.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use corral_proto::{EventKind, Stat, Zxid, path as paths};

use crate::feeds::{Changes, FeedEvent};
use crate::op::{SubtreeNode, SubtreePage};

/// Of one path: the place of its last delta, what was there before the first and after the last, and the zxid of that.
type Merged = (usize, Option<Arc<CachedNode>>, Option<Arc<CachedNode>>, Zxid);

/// A znode as a cache holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedNode {
    /// Its path.
    pub path: String,
    /// Its data; `None` is null, which is not the same as no bytes.
    pub data: Option<Bytes>,
    /// Its Stat. What it says of children (`num_children`, `cversion`, `pzxid`) is exact where the children are in the cache,
    /// too; `aversion` is as of the last change of the data, since changes of ACLs are no events.
    pub stat: Stat,
    /// The state it was read from.
    as_of: Zxid,
}

impl CachedNode {
    /// Its data, null as no bytes.
    pub fn bytes(&self) -> &[u8] {
        self.data.as_deref().unwrap_or_default()
    }

    fn weight(&self) -> usize {
        NODE_BYTES + self.path.len() + self.data.as_ref().map_or(0, Bytes::len)
    }

    /// Whether it is the same znode (and not one that was created after the other was deleted) with the same data.
    fn is_same(&self, other: &CachedNode) -> bool {
        (self.stat.czxid, self.stat.mzxid) == (other.stat.czxid, other.stat.mzxid)
    }
}

/// What the bookkeeping of a cached znode counts for.
const NODE_BYTES: usize = 256;

/// One step of what a cache holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// A znode is there that was not.
    Added {
        /// Since when.
        zxid: Zxid,
        /// What it holds.
        new: Arc<CachedNode>,
    },
    /// A znode has other data. It is the same znode: one that was deleted and created again is removed and added.
    Changed {
        /// Since when.
        zxid: Zxid,
        /// What it held.
        old: Arc<CachedNode>,
        /// What it holds.
        new: Arc<CachedNode>,
    },
    /// A znode is gone.
    Removed {
        /// Since when; after a gap, a zxid by which it was.
        zxid: Zxid,
        /// What it held.
        old: Arc<CachedNode>,
    },
    /// With all deltas before, this is the tree at this zxid.
    CaughtUp(Zxid),
}

impl Delta {
    /// Which znode; `None` for [`Delta::CaughtUp`].
    pub fn path(&self) -> Option<&str> {
        match self {
            Delta::Added { new, .. } | Delta::Changed { new, .. } => Some(&new.path),
            Delta::Removed { old, .. } => Some(&old.path),
            Delta::CaughtUp(_) => None,
        }
    }

    /// When.
    pub fn zxid(&self) -> Zxid {
        match self {
            Delta::Added { zxid, .. } | Delta::Changed { zxid, .. } | Delta::Removed { zxid, .. } => *zxid,
            Delta::CaughtUp(zxid) => *zxid,
        }
    }
}

/// A picture of a part of the tree.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    nodes: BTreeMap<String, Arc<CachedNode>>,
    bytes: usize,
}

impl View {
    pub(crate) fn get(&self, path: &str) -> Option<&Arc<CachedNode>> {
        self.nodes.get(path)
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Arc<CachedNode>> {
        self.nodes.values()
    }

    /// Names of the children of a path, ascending.
    pub(crate) fn children(&self, path: &str) -> Vec<String> {
        let prefix = if path == "/" { "/".to_owned() } else { format!("{path}/") };
        let below = self.nodes.range(prefix.clone()..).take_while(|(at, _)| at.starts_with(&prefix));
        let names = below.filter_map(|(at, _)| at.get(prefix.len()..));
        names.filter(|name| !name.is_empty() && !name.contains('/')).map(str::to_owned).collect()
    }

    fn insert(&mut self, node: CachedNode) -> (Option<Arc<CachedNode>>, Arc<CachedNode>) {
        let node = Arc::new(node);
        self.bytes += node.weight();
        let old = self.nodes.insert(node.path.clone(), node.clone());
        self.bytes -= old.as_ref().map_or(0, |old| old.weight());
        (old, node)
    }

    fn remove(&mut self, path: &str) -> Option<Arc<CachedNode>> {
        let old = self.nodes.remove(path)?;
        self.bytes -= old.weight();
        Some(old)
    }

    /// Applies the events of an entry; `deltas` gets what became of them.
    pub(crate) fn apply(&mut self, changes: Changes, deltas: &mut Vec<Delta>) {
        let zxid = changes.zxid;
        for FeedEvent { kind, path, node } in changes.events {
            if let Some((parent, sign)) = counts(kind, &path) {
                self.count_child(parent, zxid, sign);
            }
            let is_old = self.nodes.get(&path).is_some_and(|held| held.as_of >= zxid);
            match (kind, node) {
                _ if is_old => {}
                (EventKind::NodeDeleted, _) => {
                    deltas.extend(self.remove(&path).map(|old| Delta::Removed { zxid, old }));
                }
                // Without the znode, a later event tells.
                (_, None) => {}
                (_, Some(node)) => {
                    let (old, new) =
                        self.insert(CachedNode { path, data: node.data, stat: node.stat, as_of: node.as_of });
                    push_change(deltas, zxid, old, Some(new));
                }
            }
        }
    }

    /// A child came or went: what its parent's Stat says of children.
    fn count_child(&mut self, parent: &str, zxid: Zxid, sign: i32) {
        let Some(parent) = self.nodes.get_mut(parent) else { return };
        if parent.as_of < zxid {
            let stat = &mut Arc::make_mut(parent).stat;
            stat.num_children = stat.num_children.saturating_add(sign);
            stat.cversion = stat.cversion.wrapping_add(1);
            stat.pzxid = zxid.as_i64();
        }
    }

    /// The steps from one picture to another, by path; the other is exact at `zxid`.
    pub(crate) fn difference(&self, new: &View, zxid: Zxid) -> Vec<Delta> {
        let mut deltas = Vec::new();
        let paths: std::collections::BTreeSet<&String> = self.nodes.keys().chain(new.nodes.keys()).collect();
        for path in paths {
            push_change(&mut deltas, zxid, self.nodes.get(path).cloned(), new.nodes.get(path).cloned());
        }
        deltas
    }
}

/// Whose children become more or fewer by an event.
fn counts(kind: EventKind, path: &str) -> Option<(&str, i32)> {
    let sign = match kind {
        EventKind::NodeCreated => 1,
        EventKind::NodeDeleted => -1,
        EventKind::NodeDataChanged | EventKind::NodeChildrenChanged => return None,
    };
    Some((paths::parent(path)?, sign))
}

/// The deltas that lead from one znode to another.
fn push_change(deltas: &mut Vec<Delta>, zxid: Zxid, old: Option<Arc<CachedNode>>, new: Option<Arc<CachedNode>>) {
    match (old, new) {
        (None, None) => {}
        (None, Some(new)) => deltas.push(Delta::Added { zxid, new }),
        (Some(old), None) => deltas.push(Delta::Removed { zxid, old }),
        (Some(old), Some(new)) if old.is_same(&new) => {}
        (Some(old), Some(new)) if old.stat.czxid == new.stat.czxid => deltas.push(Delta::Changed { zxid, old, new }),
        (Some(old), Some(new)) => {
            deltas.push(Delta::Removed { zxid, old });
            deltas.push(Delta::Added { zxid, new });
        }
    }
}

/// A picture that is being loaded, from pages and from the changes that happen meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Loading {
    view: View,
    /// Where the next page begins.
    pub(crate) after: String,
    /// All pages are there.
    pub(crate) pages_done: bool,
    /// Zxid of the latest page or change: before a bookmark of it, the picture is of no state.
    through: Zxid,
    /// Deleted after the state of the next page, for all one knows.
    deleted: BTreeMap<String, Zxid>,
    /// By parent: children that came or went after the state of the next page, for all one knows. A page may be older than
    /// changes that were told before it is looked at.
    counted: BTreeMap<String, Vec<(Zxid, i32)>>,
}

impl Loading {
    /// Adds a page. `old` is the picture whose data need not come again. Gives the znodes whose data is missing all the same:
    /// those that could not be read before.
    pub(crate) fn page(&mut self, page: SubtreePage, old: Option<&View>) -> Vec<String> {
        let mut missing = Vec::new();
        self.through = self.through.max(page.zxid);
        for SubtreeNode { path, stat, data, is_known } in page.nodes {
            let data = if is_known {
                match old.and_then(|old| old.get(&path)).filter(|held| held.stat.mzxid == stat.mzxid) {
                    Some(held) => held.data.clone(),
                    None => {
                        missing.push(path);
                        continue;
                    }
                }
            } else {
                data
            };
            self.found(CachedNode { path, data, stat, as_of: page.zxid });
        }
        // No later page is older than this one.
        self.counted.retain(|_, counted| {
            counted.retain(|(zxid, _)| *zxid > page.zxid);
            !counted.is_empty()
        });
        match page.next {
            Some(next) => self.after = next,
            None => self.pages_done = true,
        }
        missing
    }

    /// Adds a znode that was read by itself at `zxid`.
    pub(crate) fn read(&mut self, path: String, data: Option<Bytes>, stat: Stat, zxid: Zxid) {
        self.through = self.through.max(zxid);
        self.found(CachedNode { path, data, stat, as_of: zxid });
    }

    fn found(&mut self, node: CachedNode) {
        let held = self.view.get(&node.path).map(|held| held.as_of);
        let known = held.max(self.deleted.get(&node.path).copied());
        if known.is_none_or(|known| known < node.as_of) {
            let (_, node) = self.view.insert(node);
            for (zxid, sign) in self.counted.get(&node.path).into_iter().flatten() {
                self.view.count_child(&node.path, *zxid, *sign);
            }
        }
    }

    /// Applies what happens meanwhile.
    pub(crate) fn apply(&mut self, changes: Changes) {
        self.through = self.through.max(changes.zxid);
        for event in &changes.events {
            if event.kind == EventKind::NodeDeleted {
                self.deleted.insert(event.path.clone(), changes.zxid);
            }
            if let Some((parent, sign)) = counts(event.kind, &event.path).filter(|_| !self.pages_done) {
                self.counted.entry(parent.to_owned()).or_default().push((changes.zxid, sign));
            }
        }
        self.view.apply(changes, &mut Vec::new());
    }

    /// The picture, if it is exact at a bookmark.
    pub(crate) fn finish(&mut self, bookmark: Zxid) -> Option<View> {
        (self.pages_done && bookmark >= self.through).then(|| std::mem::take(&mut self.view))
    }

    /// Its size so far: znodes and bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.view.len() + self.deleted.len(), self.view.bytes())
    }
}

/// Makes one delta of several of a znode: the difference between what a reader saw last and what is there now. They keep the
/// place of the last of each znode; only the last [`Delta::CaughtUp`] stays.
pub(crate) fn compact(deltas: VecDeque<Delta>) -> VecDeque<Delta> {
    let mut merged: BTreeMap<String, Merged> = BTreeMap::new();
    let mut caught_up = None;
    for (at, delta) in deltas.into_iter().enumerate() {
        let (zxid, path) = (delta.zxid(), delta.path().unwrap_or_default().to_owned());
        let (old, new) = match delta {
            Delta::Added { new, .. } => (None, Some(new)),
            Delta::Changed { old, new, .. } => (Some(old), Some(new)),
            Delta::Removed { old, .. } => (Some(old), None),
            Delta::CaughtUp(zxid) => {
                caught_up = Some((at, zxid));
                continue;
            }
        };
        // What was there before the first of them stays.
        let entry = merged.entry(path).or_insert((at, old, None, zxid));
        (entry.0, entry.2, entry.3) = (at, new, zxid);
    }
    let mut merged: Vec<_> = merged.into_values().collect();
    merged.sort_unstable_by_key(|(at, ..)| *at);
    // In front of what is newer it would be of no state.
    let last = merged.last().map(|(at, ..)| *at);
    let caught_up = caught_up.filter(|(at, _)| last.is_none_or(|last| last < *at));
    let mut compacted = Vec::with_capacity(merged.len() + 1);
    for (_, old, new, zxid) in merged {
        push_change(&mut compacted, zxid, old, new);
    }
    compacted.extend(caught_up.map(|(_, zxid)| Delta::CaughtUp(zxid)));
    compacted.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::feeds::FeedNode;

    /// A tree that remembers every state, as a server would show it.
    #[derive(Clone, Default)]
    struct Tree {
        nodes: BTreeMap<String, (Bytes, Stat)>,
        zxid: u64,
        states: BTreeMap<u64, BTreeMap<String, (Bytes, Stat)>>,
        changes: Vec<(u64, Vec<(EventKind, String)>)>,
    }

    #[derive(Clone, Debug)]
    enum Op {
        Create(String),
        Set(String),
        Delete(String),
    }

    impl Tree {
        fn entry(&mut self, ops: &[Op]) {
            self.zxid += 1;
            let zxid = self.zxid as i64;
            let mut events = Vec::new();
            for op in ops {
                let value = Bytes::from(format!("{zxid} {}", events.len()));
                match op {
                    Op::Create(path) if !self.nodes.contains_key(path) && self.has_parent(path) => {
                        let stat = Stat { czxid: zxid, mzxid: zxid, pzxid: zxid, ..Stat::default() };
                        self.nodes.insert(path.clone(), (value, stat));
                        self.child(path, 1);
                        events.push((EventKind::NodeCreated, path.clone()));
                    }
                    Op::Set(path) => {
                        let Some((data, stat)) = self.nodes.get_mut(path) else { continue };
                        *data = value;
                        stat.mzxid = zxid;
                        stat.version += 1;
                        events.push((EventKind::NodeDataChanged, path.clone()));
                    }
                    Op::Delete(path) if self.nodes.get(path).is_some_and(|(_, stat)| stat.num_children == 0) => {
                        self.nodes.remove(path);
                        self.child(path, -1);
                        events.push((EventKind::NodeDeleted, path.clone()));
                    }
                    _ => {}
                }
            }
            self.states.insert(self.zxid, self.nodes.clone());
            if !events.is_empty() {
                self.changes.push((self.zxid, events));
            }
        }

        fn has_parent(&self, path: &str) -> bool {
            path == "/t" || paths::parent(path).is_some_and(|parent| self.nodes.contains_key(parent))
        }

        fn child(&mut self, path: &str, sign: i32) {
            if let Some((_, stat)) = paths::parent(path).and_then(|parent| self.nodes.get_mut(parent)) {
                stat.num_children += sign;
                stat.cversion += 1;
                stat.pzxid = self.zxid as i64;
            }
        }

        /// The events of an entry as they are told from the state `as_of`.
        fn told(&self, index: usize, as_of: u64) -> Changes {
            let (zxid, events) = &self.changes[index];
            let last = |at: usize, path: &str| events[at + 1..].iter().all(|(_, other)| other != path);
            let events = events.iter().enumerate().map(|(at, (kind, path))| {
                let found = self.states[&as_of].get(path).filter(|(_, stat)| stat.mzxid == *zxid as i64);
                let found = found.filter(|_| *kind != EventKind::NodeDeleted && last(at, path));
                let node =
                    found.map(|(data, stat)| FeedNode { data: Some(data.clone()), stat: *stat, as_of: Zxid(as_of) });
                FeedEvent { kind: *kind, path: path.clone(), node }
            });
            Changes { zxid: Zxid(*zxid), events: events.collect() }
        }

        fn page(&self, zxid: u64, after: &str, size: usize, newer_than: Option<u64>) -> SubtreePage {
            let behind: Vec<_> = self.states[&zxid].iter().filter(|(path, _)| path.as_str() > after).collect();
            let nodes = behind.iter().take(size).map(|(path, (data, stat))| {
                let is_known = newer_than.is_some_and(|known| stat.mzxid <= known as i64);
                let data = (!is_known).then(|| data.clone());
                SubtreeNode { path: (*path).clone(), stat: *stat, data, is_known }
            });
            let next = (behind.len() > size).then(|| behind[size - 1].0.clone());
            SubtreePage { nodes: nodes.collect(), next, zxid: Zxid(zxid) }
        }
    }

    fn shown(view: &View) -> BTreeMap<String, (Bytes, Stat)> {
        view.nodes().map(|node| (node.path.clone(), (node.data.clone().unwrap(), node.stat))).collect()
    }

    fn replay(from: &mut BTreeMap<String, Arc<CachedNode>>, deltas: impl IntoIterator<Item = Delta>) {
        for delta in deltas {
            match delta {
                Delta::Added { new, .. } => assert!(from.insert(new.path.clone(), new).is_none()),
                Delta::Changed { old, new, .. } => {
                    assert!(from.insert(new.path.clone(), new).is_some_and(|held| held.is_same(&old)));
                }
                Delta::Removed { old, .. } => assert!(from.remove(&old.path).is_some_and(|held| held.is_same(&old))),
                Delta::CaughtUp(_) => {}
            }
        }
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let path = prop::sample::select(vec!["/t", "/t/a", "/t/b", "/t/a/x", "/t/a/y"]).prop_map(str::to_owned);
        let op = (path, 0..5u8).prop_map(|(path, kind)| match kind {
            0 | 1 => Op::Create(path),
            2 | 3 => Op::Set(path),
            _ => Op::Delete(path),
        });
        prop::collection::vec(op, 1..4)
    }

    proptest! {
        /// Pages as of any rising zxids, changes told from any later state, arriving in any order that keeps each of the two
        /// in order: at the first bookmark that counts, and at every later one, the picture is the tree.
        #[test]
        fn whatever_comes_when_the_picture_is_the_tree_at_every_bookmark(
            before in prop::collection::vec(ops(), 1..12),
            after in prop::collection::vec(ops(), 1..25),
            size in 1usize..4,
            choices in prop::collection::vec(any::<u32>(), 200),
            resync: bool,
        ) {
            let mut tree = Tree::default();
            tree.states.insert(0, BTreeMap::new());
            let mut choices = choices.into_iter().cycle();
            let mut choose = move |below: u64| u64::from(choices.next().unwrap()) % below.max(1);
            for ops in &before {
                tree.entry(ops);
            }
            // A picture of before a gap, exact at some zxid.
            let known = resync.then(|| 1 + choose(tree.zxid));
            let old = known.map(|known| {
                let mut loading = Loading::default();
                loading.page(tree.page(known, "", usize::MAX, None), None);
                loading.finish(Zxid(known)).unwrap()
            });
            let start = tree.zxid;
            let first = tree.changes.len();
            for ops in &after {
                tree.entry(ops);
            }
            let (mut page_zxid, mut next_change) = (start, first);
            let mut loading = Loading::default();
            let mut view = None;
            let mut bookmark = start;
            // The state that events are told from.
            let mut told_from = start;
            while view.is_none() || next_change < tree.changes.len() {
                let mut is_between = false;
                let can_page = !loading.pages_done;
                let can_tell = next_change < tree.changes.len();
                if can_page && (!can_tell || choose(2) == 0) {
                    page_zxid += choose(tree.zxid - page_zxid + 1);
                    let missing = loading.page(tree.page(page_zxid, &loading.after.clone(), size, known), old.as_ref());
                    prop_assert_eq!(missing, Vec::<String>::new());
                } else if can_tell {
                    let zxid = tree.changes[next_change].0;
                    // A server that is read from in several steps tells each from a later state than the one before.
                    told_from = told_from.max(zxid);
                    told_from += choose(2) * choose(tree.zxid - told_from + 1);
                    let changes = tree.told(next_change, told_from);
                    next_change += 1;
                    match &mut view {
                        None => loading.apply(changes),
                        Some(view) => View::apply(view, changes, &mut Vec::new()),
                    }
                    // A bookmark is of the state that the events before it were read from, and behind all that led there,
                    // also where an event brings nothing because its znode has changed again in that state.
                    if tree.changes.get(next_change).is_none_or(|(zxid, _)| *zxid > told_from) {
                        bookmark = told_from;
                    } else {
                        is_between = true;
                    }
                } else {
                    bookmark = tree.zxid;
                }
                if view.is_none() && let Some(done) = loading.finish(Zxid(bookmark)) {
                    let mut held: BTreeMap<String, Arc<CachedNode>> = old.iter().flat_map(View::nodes).map(|node| (node.path.clone(), node.clone())).collect();
                    replay(&mut held, old.clone().unwrap_or_default().difference(&done, Zxid(bookmark)));
                    prop_assert_eq!(held.len(), done.len());
                    view = Some(done);
                }
                if let Some(view) = &view && !is_between {
                    prop_assert_eq!(shown(view), tree.states[&bookmark].clone(), "at {}", bookmark);
                    prop_assert_eq!(view.bytes(), view.nodes().map(|node| node.weight()).sum::<usize>());
                }
            }
            // The deltas, whole or compacted, lead to the same.
            let view = view.unwrap();
            let mut at_end: BTreeMap<String, Arc<CachedNode>> = BTreeMap::new();
            let all = View::default().difference(&view, Zxid(bookmark));
            replay(&mut at_end, all);
            prop_assert_eq!(at_end.len(), view.len());
        }

        /// Many deltas made few lead from where they began to where they ended.
        #[test]
        fn compacted_deltas_lead_to_the_same(entries in prop::collection::vec(ops(), 1..30)) {
            let mut tree = Tree::default();
            tree.states.insert(0, BTreeMap::new());
            let (mut view, mut deltas) = (View::default(), Vec::new());
            for ops in &entries {
                tree.entry(ops);
                if tree.changes.last().is_some_and(|(zxid, _)| *zxid == tree.zxid) {
                    view.apply(tree.told(tree.changes.len() - 1, tree.zxid), &mut deltas);
                }
                deltas.push(Delta::CaughtUp(Zxid(tree.zxid)));
            }
            let mut whole = BTreeMap::new();
            replay(&mut whole, deltas.clone());
            let compacted = compact(deltas.into());
            prop_assert!(compacted.len() <= 2 * 5 + 1);
            prop_assert_eq!(compacted.back(), Some(&Delta::CaughtUp(Zxid(tree.zxid))));
            let mut short = BTreeMap::new();
            replay(&mut short, compacted);
            prop_assert_eq!(&short.keys().collect::<Vec<_>>(), &whole.keys().collect::<Vec<_>>());
            prop_assert!(short.values().zip(whole.values()).all(|(a, b)| a.is_same(b)));
        }
    }

    #[test]
    fn a_znode_created_again_is_removed_and_added_and_not_changed() {
        let node = |czxid, mzxid| {
            let stat = Stat { czxid, mzxid, ..Stat::default() };
            CachedNode { path: "/a".into(), data: None, stat, as_of: Zxid(mzxid as u64) }
        };
        let view = |node| {
            let mut view = View::default();
            view.insert(node);
            view
        };
        let (old, same, again) = (view(node(1, 1)), view(node(1, 5)), view(node(4, 4)));
        assert!(matches!(old.difference(&same, Zxid(9))[..], [Delta::Changed { .. }]));
        assert!(matches!(old.difference(&again, Zxid(9))[..], [Delta::Removed { .. }, Delta::Added { .. }]));
    }

    #[test]
    fn children_are_those_directly_below() {
        let mut view = View::default();
        for path in ["/", "/a", "/a-b", "/a/b", "/a/b/c", "/b"] {
            view.insert(CachedNode { path: path.into(), data: None, stat: Stat::default(), as_of: Zxid(1) });
        }
        assert_eq!(
            (view.children("/"), view.children("/a")),
            (vec!["a".into(), "a-b".into(), "b".into()], vec!["b".to_owned()])
        );
    }
}
