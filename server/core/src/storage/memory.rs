//! The tree's store in memory, for tests and the simulator: it models what a crash loses.
//!
//! Writes are volatile until [`MemoryStore::flush`], as RocksDB's memtables are (its own write-ahead log is off);
//! [`MemoryStore::crash`] goes back to the last flush, all column families together.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::tree::execute::genesis;
use crate::tree::record::Meta;
use crate::tree::{Cf, Change, TreeStore, TreeView, key};
use crate::zoo::{self, Switch};

/// A consistent state. Clones share it; writing copies only the column families that change, and only while a view
/// holds them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryView {
    families: [Arc<BTreeMap<Bytes, Bytes>>; Cf::ALL.len()],
}

impl MemoryView {
    /// A hash over every row of every column family that servers must agree on: equal states have equal digests, sessions
    /// and kept results included (unlike [`Meta::digest`], which covers znodes).
    pub fn digest(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        for cf in Cf::ALL.into_iter().filter(|cf| *cf != Cf::Feed) {
            let family = &self.families[cf as usize];
            hasher.update(&(family.len() as u64).to_le_bytes());
            for (key, value) in family.iter() {
                hasher.update(&(key.len() as u64).to_le_bytes());
                hasher.update(key);
                hasher.update(&(value.len() as u64).to_le_bytes());
                hasher.update(value);
            }
        }
        hasher.digest()
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.families.iter().map(|family| family.len()).sum()
    }

    fn write(&mut self, changes: &mut dyn Iterator<Item = Change>) {
        for Change { cf, key, value } in changes {
            let family = Arc::make_mut(&mut self.families[cf as usize]);
            match value {
                Some(value) => family.insert(key, value),
                None => family.remove(&key),
            };
        }
    }
}

impl TreeView for MemoryView {
    fn get(&self, cf: Cf, key: &[u8]) -> Option<Bytes> {
        self.families[cf as usize].get(key).cloned()
    }

    fn scan(&self, cf: Cf, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        if from >= to {
            return;
        }
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        for (key, value) in self.families[cf as usize].range::<[u8], _>(bounds) {
            if !visit(key, value) {
                return;
            }
        }
    }
}

/// The store.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    current: MemoryView,
    flushed: MemoryView,
}

impl Default for MemoryStore {
    fn default() -> MemoryStore {
        MemoryStore::new()
    }
}

impl MemoryStore {
    /// A store that holds the fresh tree, flushed.
    pub fn new() -> MemoryStore {
        let mut store = MemoryStore::empty();
        store.write(&mut genesis().into_iter());
        store.flush();
        store
    }

    /// A store that holds nothing.
    pub fn empty() -> MemoryStore {
        MemoryStore::from_snapshot(MemoryView::default())
    }

    /// A store that was filled from another one's state; that is durable.
    pub fn from_snapshot(snapshot: MemoryView) -> MemoryStore {
        MemoryStore { current: snapshot.clone(), flushed: snapshot }
    }

    /// The state now, to be sent elsewhere.
    pub fn snapshot(&self) -> MemoryView {
        self.current.clone()
    }

    /// Makes all writes durable.
    pub fn flush(&mut self) {
        self.flushed = self.current.clone();
    }

    /// Loses all writes since the last flush.
    pub fn crash(&mut self) {
        self.current = self.flushed.clone();
    }

    /// [`MemoryView::digest`] of the state now.
    pub fn digest(&self) -> u64 {
        self.current.digest()
    }
}

impl TreeStore for MemoryStore {
    type View = MemoryView;

    fn write(&mut self, changes: &mut dyn Iterator<Item = Change>) {
        self.current.write(changes);
        if zoo::broken(Switch::AppliedApart) {
            let change =
                Change { cf: Cf::Aux, key: Bytes::from_static(key::META), value: self.current.get(Cf::Aux, key::META) };
            self.flushed.write(&mut std::iter::once(change));
        }
    }

    fn view(&self) -> MemoryView {
        self.current.clone()
    }

    fn persisted_meta(&self) -> Option<Meta> {
        Meta::read(&self.flushed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(cf: Cf, key: &'static [u8], value: &'static [u8]) -> Change {
        Change { cf, key: Bytes::from_static(key), value: Some(Bytes::from_static(value)) }
    }

    #[test]
    fn crash_loses_what_was_not_flushed_in_all_families_at_once() {
        let mut store = MemoryStore::empty();
        store.write(&mut [put(Cf::Node, b"a", b"1"), put(Cf::Aux, b"b", b"1")].into_iter());
        store.flush();
        store.write(&mut [put(Cf::Node, b"a", b"2"), put(Cf::Data, b"c", b"2")].into_iter());
        store.crash();
        let view = store.view();
        assert_eq!(view.get(Cf::Node, b"a").as_deref(), Some(&b"1"[..]));
        assert_eq!(view.get(Cf::Aux, b"b").as_deref(), Some(&b"1"[..]));
        assert_eq!(view.get(Cf::Data, b"c"), None);
    }

    #[test]
    fn views_do_not_see_later_writes() {
        let mut store = MemoryStore::empty();
        store.write(&mut [put(Cf::Node, b"a", b"1")].into_iter());
        let view = store.view();
        store.write(&mut [Change { cf: Cf::Node, key: Bytes::from_static(b"a"), value: None }].into_iter());
        assert_eq!(view.get(Cf::Node, b"a").as_deref(), Some(&b"1"[..]));
        assert_eq!(store.view().get(Cf::Node, b"a"), None);
    }

    #[test]
    fn persisted_meta_is_that_of_the_last_flush() {
        let mut store = MemoryStore::empty();
        assert_eq!(store.persisted_meta(), None);
        store.write(&mut genesis().into_iter());
        assert_eq!(store.persisted_meta(), None);
        store.flush();
        assert_eq!(store.persisted_meta(), Meta::read(&store.view()));
        assert!(store.persisted_meta().is_some());
    }
}
