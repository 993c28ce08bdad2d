//! Pending changes over a view: what a batch of entries, and a multi inside one of them, reads through.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::ops::Bound;

use bytes::Bytes;

use super::{Cf, Change, TreeView};

/// A view with changes that are not in it yet. The last image of each key counts.
#[derive(Debug, Default)]
pub struct Overlay<V> {
    base: V,
    pending: [BTreeMap<Bytes, Option<Bytes>>; Cf::ALL.len()],
}

impl<V: TreeView> Overlay<V> {
    /// No change yet.
    pub fn new(base: V) -> Overlay<V> {
        Overlay { base, pending: Default::default() }
    }

    /// What is below.
    pub fn base(&self) -> &V {
        &self.base
    }

    /// Adds changes; later ones win.
    pub fn push(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.put(change.cf, change.key, change.value);
        }
    }

    /// Adds one change.
    pub fn put(&mut self, cf: Cf, key: Bytes, value: Option<Bytes>) {
        self.pending[cf as usize].insert(key, value);
    }

    /// The pending change of a key, if there is one.
    pub fn pending(&self, cf: Cf, key: &[u8]) -> Option<&Option<Bytes>> {
        self.pending[cf as usize].get(key)
    }

    /// Whether nothing is pending.
    pub fn is_empty(&self) -> bool {
        self.pending.iter().all(BTreeMap::is_empty)
    }

    /// Number of keys with a pending change.
    pub fn len(&self) -> usize {
        self.pending.iter().map(BTreeMap::len).sum()
    }

    /// Takes the final images out, ascending by (cf, key); afterwards nothing is pending.
    pub fn take(&mut self) -> Vec<Change> {
        let mut changes = Vec::with_capacity(self.len());
        for cf in Cf::ALL {
            let pending = std::mem::take(&mut self.pending[cf as usize]);
            changes.extend(pending.into_iter().map(|(key, value)| Change { cf, key, value }));
        }
        changes
    }

    /// Drops all pending changes.
    pub fn clear(&mut self) {
        self.pending = Default::default();
    }
}

impl<V: TreeView> TreeView for Overlay<V> {
    fn get(&self, cf: Cf, key: &[u8]) -> Option<Bytes> {
        match self.pending(cf, key) {
            Some(value) => value.clone(),
            None => self.base.get(cf, key),
        }
    }

    fn scan(&self, cf: Cf, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        if from >= to {
            return;
        }
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let mut merge = Merge { pending: self.pending[cf as usize].range::<[u8], _>(bounds), head: None, go_on: true };
        merge.head = merge.pending.next();
        self.base.scan(cf, from, to, &mut |key, value| merge.base(key, value, visit));
        merge.rest(visit);
    }
}

/// Merges pending changes into a scan of the base.
struct Merge<'a> {
    pending: Range<'a, Bytes, Option<Bytes>>,
    head: Option<(&'a Bytes, &'a Option<Bytes>)>,
    go_on: bool,
}

impl Merge<'_> {
    /// Visits the pending keys before `key`, then `key` unless it has a pending change of its own.
    fn base(&mut self, key: &[u8], value: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> bool {
        while let Some((pending_key, _)) = self.head {
            if &pending_key[..] > key {
                break;
            }
            let hides = &pending_key[..] == key;
            if !self.next(visit) {
                return false;
            }
            if hides {
                return true;
            }
        }
        self.go_on = visit(key, value);
        self.go_on
    }

    fn rest(&mut self, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        while self.go_on && self.head.is_some() {
            self.next(visit);
        }
    }

    /// Visits the next pending key unless it is a deletion. False when the visitor has enough.
    fn next(&mut self, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> bool {
        if let Some((key, value)) = self.head {
            self.head = self.pending.next();
            if let Some(value) = value {
                self.go_on = visit(key, value);
            }
        }
        self.go_on
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::memory::MemoryStore;
    use crate::tree::TreeStore;

    fn change() -> impl Strategy<Value = Change> {
        let key = prop::collection::vec(0u8..4, 1..3);
        (0..Cf::ALL.len(), key, prop::option::of(any::<u8>())).prop_map(|(cf, key, value)| Change {
            cf: Cf::ALL[cf],
            key: Bytes::from(key),
            value: value.map(|byte| Bytes::from(vec![byte])),
        })
    }

    fn rows(view: &impl TreeView, cf: Cf, from: &[u8], to: &[u8], limit: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut rows = Vec::new();
        if limit > 0 {
            view.scan(cf, from, to, &mut |key, value| {
                rows.push((key.to_vec(), value.to_vec()));
                rows.len() < limit
            });
        }
        rows
    }

    proptest! {
        #[test]
        fn overlay_equals_the_base_with_its_changes_written(
            before in prop::collection::vec(change(), 0..20),
            after in prop::collection::vec(change(), 0..20),
            bounds in prop::collection::vec((prop::collection::vec(0u8..5, 0..3), prop::collection::vec(0u8..5, 0..3), 0usize..8), 8),
        ) {
            let mut store = MemoryStore::empty();
            store.write(&mut before.into_iter());
            let mut overlay = Overlay::new(store.view());
            overlay.push(after.clone());
            store.write(&mut after.into_iter());
            let written = store.view();
            for cf in Cf::ALL {
                for a in 0u8..4 {
                    prop_assert_eq!(overlay.get(cf, &[a]), written.get(cf, &[a]));
                    for b in 0u8..4 {
                        prop_assert_eq!(overlay.get(cf, &[a, b]), written.get(cf, &[a, b]));
                    }
                }
                for (from, to, limit) in &bounds {
                    prop_assert_eq!(rows(&overlay, cf, from, to, *limit), rows(&written, cf, from, to, *limit));
                }
            }
            // Taken changes written to the base give the same state, each key once, in order.
            let base = overlay.base().clone();
            let taken = overlay.take();
            prop_assert!(overlay.is_empty());
            prop_assert!(taken.windows(2).all(|pair| (pair[0].cf, &pair[0].key) < (pair[1].cf, &pair[1].key)));
            let mut again = MemoryStore::from_snapshot(base);
            again.write(&mut taken.into_iter());
            prop_assert_eq!(again.digest(), store.digest());
        }
    }
}
