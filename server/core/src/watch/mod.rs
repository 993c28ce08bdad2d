//! Who is told of which change (wire 7).
//!
//! One table per server, in memory only; a watch belongs to a connection and goes with it. The table is arithmetic:
//! [`WatchTable::fire`] says who watches, and consumes one-shot watches as it does. That no event is lost or doubled
//! between a read and its watch is not decided here but by the lock around the table: a read that arms a watch holds
//! it, and the apply loop holds it from the first event of a batch until the state is published (docs/adr/0008).

pub mod feed;
mod watchers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use corral_proto::{EventKind, WatchKind, path};
use feed::FeedTable;
use watchers::{Paths, Watchers};

use crate::zoo::{self, Switch};

/// A connection, as the table knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatcherId(pub u64);

/// Which of the two tables of wire 7.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// exists, get data: created, deleted, data changed.
    Data,
    /// get children: children changed, deleted.
    Child,
}

/// The modes in which one connection watches one path, independent of each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Modes {
    standard: bool,
    persistent: bool,
    recursive: bool,
}

impl Modes {
    fn is_empty(self) -> bool {
        !(self.standard || self.persistent || self.recursive)
    }
}

/// Watchers by path. A path is kept once, however many tables and connections have it.
type Table = HashMap<Arc<str>, Watchers>;

/// All watches of one server.
#[derive(Debug, Default)]
pub struct WatchTable {
    data: Table,
    child: Table,
    /// Paths on which a connection has watches, for its end.
    paths: HashMap<WatcherId, Paths>,
    /// Recursive watches there are: without any, nobody walks ancestors.
    recursive: usize,
    /// (path, connection) pairs of both tables: what `count` says, without a walk.
    pairs: usize,
    /// Who follows the change feed: connection and name of the subscription.
    pub feeds: FeedTable<(WatcherId, u64)>,
}

impl WatchTable {
    /// Arms a watch. Arming twice is one watch.
    pub fn add(&mut self, watcher: WatcherId, path: &str, kind: WatchKind) {
        match kind {
            WatchKind::Data => self.modes(Side::Data, watcher, path).standard = true,
            WatchKind::Child => self.modes(Side::Child, watcher, path).standard = true,
            WatchKind::Persistent => {
                self.modes(Side::Data, watcher, path).persistent = true;
                self.modes(Side::Child, watcher, path).persistent = true;
            }
            WatchKind::PersistentRecursive => {
                let modes = self.modes(Side::Data, watcher, path);
                if !modes.recursive {
                    modes.recursive = true;
                    self.recursive += 1;
                }
            }
        }
        if let Some((path, _)) = self.data.get_key_value(path).or_else(|| self.child.get_key_value(path)) {
            self.paths.entry(watcher).or_default().insert(path);
        }
    }

    fn modes(&mut self, side: Side, watcher: WatcherId, path: &str) -> &mut Modes {
        let (table, other) = match side {
            Side::Data => (&mut self.data, &self.child),
            Side::Child => (&mut self.child, &self.data),
        };
        if !table.contains_key(path) {
            let shared = other.get_key_value(path).map_or_else(|| path.into(), |(path, _)| path.clone());
            table.insert(shared, Watchers::default());
        }
        let watchers = table.get_mut(path).expect("inserted above");
        if watchers.get(watcher).is_none() {
            self.pairs += 1;
        }
        watchers.entry(watcher)
    }

    /// Whether the connection has such a watch there (wire 7.7). `None`: any.
    pub fn has(&self, watcher: WatcherId, path: &str, kind: Option<WatchKind>) -> bool {
        let data = self.data.get(path).and_then(|w| w.get(watcher)).unwrap_or_default();
        let child = self.child.get(path).and_then(|w| w.get(watcher)).unwrap_or_default();
        match kind {
            Some(WatchKind::Data) => data.standard,
            Some(WatchKind::Child) => child.standard,
            Some(WatchKind::Persistent) => data.persistent || child.persistent,
            Some(WatchKind::PersistentRecursive) => data.recursive,
            None => !data.is_empty() || !child.is_empty(),
        }
    }

    /// Removes such watches of the connection there; whether there was one. `None`: every kind.
    pub fn remove(&mut self, watcher: WatcherId, path: &str, kind: Option<WatchKind>) -> bool {
        if !self.has(watcher, path, kind) {
            return false;
        }
        let (recursive, pairs) = (&mut self.recursive, &mut self.pairs);
        alter(&mut self.data, pairs, path, watcher, |modes| match kind {
            Some(WatchKind::Data) => modes.standard = false,
            Some(WatchKind::Child) => {}
            Some(WatchKind::Persistent) => modes.persistent = false,
            Some(WatchKind::PersistentRecursive) => *recursive -= usize::from(std::mem::take(&mut modes.recursive)),
            None => {
                *recursive -= usize::from(modes.recursive);
                *modes = Modes::default();
            }
        });
        alter(&mut self.child, pairs, path, watcher, |modes| match kind {
            Some(WatchKind::Child) => modes.standard = false,
            Some(WatchKind::Persistent) => modes.persistent = false,
            Some(WatchKind::Data | WatchKind::PersistentRecursive) => {}
            None => *modes = Modes::default(),
        });
        self.forget_if_unused(watcher, path);
        true
    }

    /// The connection is gone.
    pub fn remove_watcher(&mut self, watcher: WatcherId) {
        self.feeds.remove_range((watcher, 0)..=(watcher, u64::MAX));
        for path in self.paths.remove(&watcher).unwrap_or_default().iter() {
            let (recursive, pairs) = (&mut self.recursive, &mut self.pairs);
            alter(&mut self.data, pairs, path, watcher, |modes| {
                *recursive -= usize::from(modes.recursive);
                *modes = Modes::default();
            });
            alter(&mut self.child, pairs, path, watcher, |modes| *modes = Modes::default());
        }
    }

    /// Nobody watches anything any more.
    pub fn clear(&mut self) {
        *self = WatchTable::default();
    }

    /// Whom a change of a znode reaches, in the order of wire 7.3: first those told of the znode itself, then, for
    /// creations and deletions, those told that the parent's children changed. One-shot watches are consumed.
    ///
    /// `deliver` is called once per connection and step, with the event's kind and path.
    pub fn fire(&mut self, kind: EventKind, path: &str, deliver: &mut dyn FnMut(WatcherId, EventKind, &str)) {
        match kind {
            EventKind::NodeCreated | EventKind::NodeDataChanged => {
                for watcher in self.told_of_data(path) {
                    deliver(watcher, kind, path);
                }
            }
            EventKind::NodeDeleted => {
                let told = self.told_of_data(path);
                for watcher in &told {
                    deliver(*watcher, kind, path);
                }
                // The child table holds the same news for those not told already (one event a connection).
                for watcher in self.told_of_children(path) {
                    if !told.contains(&watcher) {
                        deliver(watcher, kind, path);
                    }
                }
            }
            EventKind::NodeChildrenChanged => {
                for watcher in self.told_of_children(path) {
                    deliver(watcher, kind, path);
                }
                return;
            }
        }
        if kind != EventKind::NodeDataChanged
            && let Some(parent) = path::parent(path)
        {
            for watcher in self.told_of_children(parent) {
                deliver(watcher, EventKind::NodeChildrenChanged, parent);
            }
        }
    }

    /// Data side of one path and recursive watches of its ancestors; each connection once, ascending.
    fn told_of_data(&mut self, path: &str) -> BTreeSet<WatcherId> {
        let mut told = self.consume(Side::Data, path);
        if self.recursive > 0 {
            let mut at = path;
            while let Some(parent) = path::parent(at) {
                if let Some(watchers) = self.data.get(parent) {
                    told.extend(watchers.iter().filter(|(_, modes)| modes.recursive).map(|(id, _)| id));
                }
                at = parent;
            }
        }
        told
    }

    fn told_of_children(&mut self, path: &str) -> BTreeSet<WatcherId> {
        self.consume(Side::Child, path)
    }

    /// Everybody on this path and side; their one-shot watches are gone afterwards.
    fn consume(&mut self, side: Side, path: &str) -> BTreeSet<WatcherId> {
        let table = match side {
            Side::Data => &mut self.data,
            Side::Child => &mut self.child,
        };
        let Some(watchers) = table.get_mut(path) else { return BTreeSet::new() };
        let told: BTreeSet<WatcherId> = watchers.iter().map(|(id, _)| id).collect();
        watchers.retain(|modes| {
            modes.standard &= zoo::broken(Switch::WatchFiresTwice);
            !modes.is_empty()
        });
        self.pairs -= told.len() - watchers.len();
        if watchers.is_empty() {
            table.remove(path);
        }
        for watcher in &told {
            self.forget_if_unused(*watcher, path);
        }
        told
    }

    fn forget_if_unused(&mut self, watcher: WatcherId, path: &str) {
        if !self.has(watcher, path, None)
            && let Some(paths) = self.paths.get_mut(&watcher)
        {
            paths.remove(path);
            if paths.is_empty() {
                self.paths.remove(&watcher);
            }
        }
    }

    /// Registered (path, connection) pairs of both tables, as ZooKeeper counts them.
    pub fn count(&self) -> usize {
        self.pairs
    }

    /// The paths that each connection watches in the data table, ascending: what the words `wchs`, `wchc` and `wchp`
    /// tell (wire 9.2). Walks the whole table.
    pub fn data_watches(&self) -> BTreeMap<WatcherId, BTreeSet<String>> {
        let mut watches: BTreeMap<WatcherId, BTreeSet<String>> = BTreeMap::new();
        for (path, watchers) in &self.data {
            for (watcher, _) in watchers.iter() {
                watches.entry(watcher).or_default().insert(path.to_string());
            }
        }
        watches
    }
}

fn alter(table: &mut Table, pairs: &mut usize, path: &str, watcher: WatcherId, mut change: impl FnMut(&mut Modes)) {
    let Some(watchers) = table.get_mut(path) else { return };
    if let Some(mut modes) = watchers.get(watcher) {
        change(&mut modes);
        if modes.is_empty() {
            watchers.remove(watcher);
            *pairs -= 1;
        } else {
            *watchers.entry(watcher) = modes;
        }
    }
    if watchers.is_empty() {
        table.remove(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use EventKind::*;
    use WatchKind::*;

    const A: WatcherId = WatcherId(1);
    const B: WatcherId = WatcherId(2);

    fn fire(table: &mut WatchTable, kind: EventKind, path: &str) -> Vec<(u64, EventKind, String)> {
        let mut told = Vec::new();
        table.fire(kind, path, &mut |watcher, kind, path| told.push((watcher.0, kind, path.to_owned())));
        told
    }

    fn told(watcher: WatcherId, kind: EventKind, path: &str) -> (u64, EventKind, String) {
        (watcher.0, kind, path.to_owned())
    }

    #[test]
    fn a_one_shot_watch_fires_once() {
        let mut table = WatchTable::default();
        table.add(A, "/a", Data);
        table.add(A, "/a", Data);
        assert_eq!(fire(&mut table, NodeDataChanged, "/a"), [told(A, NodeDataChanged, "/a")]);
        assert_eq!(fire(&mut table, NodeDataChanged, "/a"), []);
        assert_eq!((table.count(), table.paths.len()), (0, 0));
    }

    #[test]
    fn creation_tells_the_znode_before_the_parent() {
        let mut table = WatchTable::default();
        table.add(A, "/p", Child);
        table.add(A, "/p/c", Data);
        assert_eq!(
            fire(&mut table, NodeCreated, "/p/c"),
            [told(A, NodeCreated, "/p/c"), told(A, NodeChildrenChanged, "/p")]
        );
    }

    #[test]
    fn one_connection_is_told_of_a_deletion_once() {
        let mut table = WatchTable::default();
        table.add(A, "/a", Data);
        table.add(A, "/a", Child);
        table.add(B, "/a", Child);
        assert_eq!(fire(&mut table, NodeDeleted, "/a"), [told(A, NodeDeleted, "/a"), told(B, NodeDeleted, "/a")]);
        assert_eq!(table.count(), 0, "both one-shot watches of the connection are consumed");
    }

    #[test]
    fn persistent_watches_stay_and_see_their_own_children_only() {
        let mut table = WatchTable::default();
        table.add(A, "/p", Persistent);
        for _ in 0..2 {
            assert_eq!(fire(&mut table, NodeCreated, "/p/c"), [told(A, NodeChildrenChanged, "/p")]);
        }
        assert_eq!(fire(&mut table, NodeDataChanged, "/p/c"), []);
        assert_eq!(fire(&mut table, NodeCreated, "/p/c/d"), []);
        assert_eq!(fire(&mut table, NodeDeleted, "/p"), [told(A, NodeDeleted, "/p")]);
        assert_eq!(fire(&mut table, NodeCreated, "/p"), [told(A, NodeCreated, "/p")]);
    }

    #[test]
    fn recursive_watches_see_every_depth_and_never_children_changed() {
        let mut table = WatchTable::default();
        table.add(A, "/", PersistentRecursive);
        table.add(B, "/p", PersistentRecursive);
        assert_eq!(fire(&mut table, NodeCreated, "/p/c"), [told(A, NodeCreated, "/p/c"), told(B, NodeCreated, "/p/c")]);
        assert_eq!(fire(&mut table, NodeDataChanged, "/q"), [told(A, NodeDataChanged, "/q")]);
        assert_eq!(fire(&mut table, NodeDataChanged, "/"), [told(A, NodeDataChanged, "/")]);
    }

    #[test]
    fn mixed_modes_give_one_event_and_consume_the_one_shot() {
        let mut table = WatchTable::default();
        table.add(A, "/a", Data);
        table.add(A, "/a", Persistent);
        table.add(A, "/", PersistentRecursive);
        assert_eq!(fire(&mut table, NodeDataChanged, "/a"), [told(A, NodeDataChanged, "/a")]);
        assert!(!table.has(A, "/a", Some(Data)));
        assert!(table.has(A, "/a", Some(Persistent)));
    }

    #[test]
    fn removal_distinguishes_kinds() {
        let mut table = WatchTable::default();
        table.add(A, "/a", Persistent);
        assert!(!table.remove(A, "/a", Some(Data)));
        assert!(!table.remove(A, "/a", Some(Child)));
        assert!(!table.remove(B, "/a", None));
        table.add(A, "/a", Child);
        assert!(table.remove(A, "/a", Some(Child)));
        assert!(table.has(A, "/a", Some(Persistent)));
        assert!(table.remove(A, "/a", None));
        assert_eq!((table.count(), table.paths.len()), (0, 0));
    }

    #[test]
    fn the_count_is_the_number_of_pairs_whatever_happened() {
        let walked = |table: &WatchTable| -> usize {
            table.data.values().map(Watchers::len).sum::<usize>()
                + table.child.values().map(Watchers::len).sum::<usize>()
        };
        let mut table = WatchTable::default();
        let kinds = [Data, Child, Persistent, PersistentRecursive];
        let events = [NodeCreated, NodeDataChanged, NodeDeleted, NodeChildrenChanged];
        // Every order of a small world: arms, removes and fires follow each other with coprime strides.
        for step in 0..2_000_usize {
            let watcher = if step % 3 == 0 { A } else { B };
            let path = ["/", "/p", "/p/c"][step % 7 % 3];
            match step % 5 {
                0..=2 => table.add(watcher, path, kinds[step % 11 % 4]),
                3 => {
                    table.remove(watcher, path, (step % 2 == 0).then_some(kinds[step % 13 % 4]));
                }
                _ => {
                    fire(&mut table, events[step % 17 % 4], path);
                }
            }
            assert_eq!(table.count(), walked(&table), "step {step}");
        }
        table.remove_watcher(A);
        table.remove_watcher(B);
        assert_eq!((table.count(), walked(&table)), (0, 0));
    }

    #[test]
    fn only_the_data_table_is_told_to_operators() {
        let mut table = WatchTable::default();
        table.add(A, "/b", Data);
        table.add(A, "/a", PersistentRecursive);
        table.add(B, "/a", Child);
        table.add(B, "/b", Data);
        let told = table.data_watches();
        assert_eq!(told[&A].iter().collect::<Vec<_>>(), ["/a", "/b"]);
        assert_eq!(told[&B].iter().collect::<Vec<_>>(), ["/b"]);
        assert_eq!(table.count(), 4);
    }

    #[test]
    fn watches_go_with_their_connection() {
        let mut table = WatchTable::default();
        table.add(A, "/a", PersistentRecursive);
        table.add(A, "/b", Child);
        table.add(B, "/b", Child);
        table.remove_watcher(A);
        assert_eq!((table.count(), table.recursive), (1, 0));
        assert_eq!(fire(&mut table, NodeCreated, "/b/c"), [told(B, NodeChildrenChanged, "/b")]);
    }
}
