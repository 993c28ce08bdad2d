//! Who follows the change feed, and where: the table behind subscriptions (docs/adr/0010).
//!
//! Unlike a watch of ZooKeeper's, a subscription has a name, several of one connection may have the same path, and each is
//! told of every event by itself: so each can stand at another place of the feed.

use std::collections::{BTreeMap, HashMap};

use corral_proto::{EventKind, path};

/// Which events a subscription is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FeedKind {
    /// One znode: created, deleted, data changed, list of children changed.
    Node,
    /// A znode and its children: created, deleted, data changed.
    Children,
    /// A znode and all below it: created, deleted, data changed.
    Subtree,
}

/// What a subscription asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Which events.
    pub kind: FeedKind,
    /// Events bring the znode.
    pub with_nodes: bool,
}

/// Subscriptions by path. `O` names one.
#[derive(Debug)]
pub struct FeedTable<O> {
    by_path: HashMap<String, BTreeMap<O, Interest>>,
    by_owner: BTreeMap<O, String>,
    /// Subscriptions to subtrees: without any, nobody walks ancestors.
    subtrees: usize,
}

impl<O> Default for FeedTable<O> {
    fn default() -> FeedTable<O> {
        FeedTable { by_path: HashMap::new(), by_owner: BTreeMap::new(), subtrees: 0 }
    }
}

impl<O: Copy + Ord> FeedTable<O> {
    /// Adds a subscription; one of this name that is there already gives way.
    pub fn add(&mut self, owner: O, path: &str, interest: Interest) {
        self.remove(owner);
        self.by_path.entry(path.to_owned()).or_default().insert(owner, interest);
        self.by_owner.insert(owner, path.to_owned());
        self.subtrees += usize::from(interest.kind == FeedKind::Subtree);
    }

    /// Removes a subscription; false if there is none of this name.
    pub fn remove(&mut self, owner: O) -> bool {
        let Some(path) = self.by_owner.remove(&owner) else { return false };
        if let Some(owners) = self.by_path.get_mut(&path) {
            if owners.remove(&owner).is_some_and(|interest| interest.kind == FeedKind::Subtree) {
                self.subtrees -= 1;
            }
            if owners.is_empty() {
                self.by_path.remove(&path);
            }
        }
        true
    }

    /// Removes all subscriptions whose names are in this range.
    pub fn remove_range(&mut self, owners: std::ops::RangeInclusive<O>) {
        let owners: Vec<O> = self.by_owner.range(owners).map(|(owner, _)| *owner).collect();
        for owner in owners {
            self.remove(owner);
        }
    }

    /// Number of subscriptions.
    pub fn len(&self) -> usize {
        self.by_owner.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_owner.is_empty()
    }

    /// Whom an event reaches: `deliver` is called once for each subscription, with what it is told. `kind` is created,
    /// deleted or data changed; the change of the parent's list that goes with the first two is implied.
    pub fn reach(&self, kind: EventKind, path: &str, deliver: &mut dyn FnMut(O, Interest, EventKind, &str)) {
        for (owner, interest) in self.by_path.get(path).into_iter().flatten() {
            deliver(*owner, *interest, kind, path);
        }
        let Some(parent) = path::parent(path) else { return };
        for (owner, interest) in self.by_path.get(parent).into_iter().flatten() {
            match interest.kind {
                FeedKind::Children | FeedKind::Subtree => deliver(*owner, *interest, kind, path),
                FeedKind::Node if kind == EventKind::NodeDataChanged => {}
                FeedKind::Node => deliver(*owner, *interest, EventKind::NodeChildrenChanged, parent),
            }
        }
        if self.subtrees == 0 {
            return;
        }
        let mut at = parent;
        while let Some(above) = path::parent(at) {
            for (owner, interest) in self.by_path.get(above).into_iter().flatten() {
                if interest.kind == FeedKind::Subtree {
                    deliver(*owner, *interest, kind, path);
                }
            }
            at = above;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use EventKind::*;

    fn table() -> FeedTable<u64> {
        let mut table = FeedTable::default();
        for (owner, path, kind) in [
            (1, "/a", FeedKind::Node),
            (2, "/a", FeedKind::Children),
            (3, "/a", FeedKind::Subtree),
            (4, "/", FeedKind::Subtree),
            (5, "/a", FeedKind::Subtree),
        ] {
            table.add(owner, path, Interest { kind, with_nodes: false });
        }
        table
    }

    fn reached(kind: EventKind, path: &str) -> Vec<(u64, EventKind, String)> {
        let mut reached = Vec::new();
        table().reach(kind, path, &mut |owner, _, kind, path| reached.push((owner, kind, path.to_owned())));
        reached.sort_unstable_by_key(|(owner, _, _)| *owner);
        reached
    }

    fn owners(kind: EventKind, path: &str) -> Vec<u64> {
        reached(kind, path).into_iter().map(|(owner, _, _)| owner).collect()
    }

    #[test]
    fn each_subscription_is_told_once_of_what_is_within_its_reach() {
        for kind in [NodeCreated, NodeDataChanged, NodeDeleted] {
            assert_eq!(owners(kind, "/a"), [1, 2, 3, 4, 5]);
            assert_eq!(owners(kind, "/a/b/c"), [3, 4, 5]);
            assert_eq!(owners(kind, "/ab"), [4]);
            assert_eq!(owners(kind, "/"), [4]);
        }
        assert_eq!(owners(NodeDataChanged, "/a/b"), [2, 3, 4, 5]);
        let created = reached(NodeCreated, "/a/b");
        assert_eq!(created[0], (1, NodeChildrenChanged, "/a".to_owned()));
        assert_eq!(created[1], (2, NodeCreated, "/a/b".to_owned()));
        assert_eq!(created.len(), 5);
    }

    #[test]
    fn what_is_removed_leaves_nothing_behind() {
        let mut table = table();
        assert!(table.remove(2) && !table.remove(2));
        table.add(1, "/b", Interest { kind: FeedKind::Subtree, with_nodes: true });
        assert_eq!(table.len(), 4);
        table.remove_range(1..=9);
        assert!(table.is_empty() && table.by_path.is_empty());
        assert_eq!(table.subtrees, 0);
    }
}
