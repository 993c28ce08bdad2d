//! The znode records that were written last, at hand for the next batch.
//!
//! Most writes are to records that were written a moment ago: a lock's parent, a counter, a queue. Looking them up in the
//! store again was a third of what executing a write costs. Only the apply room writes, and every write passes by here,
//! so what is at hand is what the store says.

use std::collections::HashMap;

use bytes::Bytes;

use super::{Cf, Change, TreeView};

/// Bytes of one of two generations: records that were not written for so long are looked up again.
const GENERATION_BYTES: usize = 1 << 20;

/// What an entry counts for beside key and record.
const ENTRY_BYTES: usize = 112;

type Rows = HashMap<Bytes, Option<Bytes>>;

/// See the module.
#[derive(Debug, Default)]
pub struct Recent {
    young: Rows,
    old: Rows,
    young_bytes: usize,
}

impl Recent {
    /// Takes in what is about to be written to the store.
    pub fn note(&mut self, changes: &[Change]) {
        for Change { key, value, .. } in changes.iter().filter(|change| change.cf == Cf::Node) {
            self.young_bytes += ENTRY_BYTES + key.len() + value.as_ref().map_or(0, Bytes::len);
            self.young.insert(key.clone(), value.clone());
            if self.young_bytes > GENERATION_BYTES {
                self.young_bytes = 0;
                self.old = std::mem::take(&mut self.young);
            }
        }
    }

    /// Forgets everything: there is another store.
    pub fn clear(&mut self) {
        *self = Recent::default();
    }

    fn get(&self, key: &[u8]) -> Option<&Option<Bytes>> {
        self.young.get(key).or_else(|| self.old.get(key))
    }
}

/// A state of the store, with what is known of it already.
#[derive(Clone, Copy, Debug)]
pub struct WithRecent<'a, V> {
    /// The state after the last batch.
    pub base: &'a V,
    /// What that batch and those before have written.
    pub recent: &'a Recent,
}

impl<V: TreeView> TreeView for WithRecent<'_, V> {
    fn get(&self, cf: Cf, key: &[u8]) -> Option<Bytes> {
        match (cf, self.recent.get(key)) {
            (Cf::Node, Some(value)) => {
                debug_assert!(!is_looked_at(key) || *value == self.base.get(cf, key), "it is what is there: {key:?}");
                value.clone()
            }
            _ => self.base.get(cf, key),
        }
    }

    fn scan(&self, cf: Cf, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        self.base.scan(cf, from, to, visit);
    }
}

/// Keys that are compared with the store where assertions are on: all would cost what this saves.
fn is_looked_at(key: &[u8]) -> bool {
    cfg!(test) || key.last().is_some_and(|last| last % 32 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryStore;
    use crate::tree::TreeStore;

    fn change(cf: Cf, key: u32, value: Option<&[u8]>) -> Change {
        Change { cf, key: key.to_be_bytes().to_vec().into(), value: value.map(|value| value.to_vec().into()) }
    }

    #[test]
    fn what_was_written_last_is_found_without_the_store_and_nothing_else_is() {
        let mut recent = Recent::default();
        let empty = MemoryStore::default();
        recent.note(&[change(Cf::Node, 1, Some(b"a")), change(Cf::Node, 2, None), change(Cf::Aux, 3, Some(b"b"))]);
        assert_eq!(recent.get(&1_u32.to_be_bytes()), Some(&Some(Bytes::from_static(b"a"))));
        assert_eq!(recent.get(&2_u32.to_be_bytes()), Some(&None), "that it is gone is known, too");
        assert_eq!(recent.get(&3_u32.to_be_bytes()), None);
        let view = empty.view();
        let seen = WithRecent { base: &view, recent: &recent };
        assert_eq!(seen.get(Cf::Aux, &1_u32.to_be_bytes()), None, "a key is one of its column family");
        recent.note(&[change(Cf::Node, 1, Some(b"c"))]);
        assert_eq!(recent.get(&1_u32.to_be_bytes()), Some(&Some(Bytes::from_static(b"c"))));
        recent.clear();
        assert_eq!(recent.get(&1_u32.to_be_bytes()), None);
    }

    #[test]
    fn it_agrees_with_the_store_and_is_bounded() {
        let mut recent = Recent::default();
        let mut store = MemoryStore::default();
        let value = vec![7; 10_000];
        for round in 0..3_u32 {
            for key in 0..400 {
                let value = ((key + round) % 5 != 0).then_some(&value[..(key + round) as usize * 10]);
                let changes = vec![change(Cf::Node, key, value)];
                recent.note(&changes);
                store.write(&mut changes.into_iter());
                let view = store.view();
                let seen = WithRecent { base: &view, recent: &recent };
                for key in [key, key / 2, 0] {
                    let key = key.to_be_bytes();
                    assert_eq!(seen.get(Cf::Node, &key), view.get(Cf::Node, &key));
                }
            }
            let rows = |rows: &Rows| rows.values().flatten().map(Bytes::len).sum::<usize>();
            assert!(rows(&recent.young) + rows(&recent.old) <= 2 * GENERATION_BYTES);
        }
    }
}
