//! The znode tree: what is stored, what can be asked, what an entry does to it.
//!
//! Two functions matter: [`execute::execute`] turns an entry into changes, a result and watch events;
//! [`read::read`] answers a read. Both are functions of a [`TreeView`] and their arguments: every server computes
//! the same, byte for byte. Nothing here knows who leads, or what time it is except by the entry's stamp.
//!
//! A view is a small ordered key-value store of four column families (keys in [`key`], values in
//! [`record`]). So there is one tree over RocksDB, over memory, and over the overlay of a batch or a multi.
//! Views do not fail: a store whose disk fails ends the process (P28).

pub mod acl;
pub mod audit;
pub mod check;
mod distinguished_name;
pub mod entry;
pub mod execute;
pub mod feed;
pub mod keeper;
pub mod key;
pub mod model;
pub mod multi;
pub mod op;
pub mod overlay;
pub mod quota;
pub mod read;
pub mod recent;
pub mod record;
pub mod subtree;

#[cfg(test)]
mod tests;

use bytes::Bytes;

/// Column families of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cf {
    /// Znode records, in tree order.
    Node,
    /// Data too large to sit in the record.
    Data,
    /// Sessions, their ephemerals and kept results, ACL lists, containers and TTL znodes, the meta row.
    Aux,
    /// The change feed ([`feed`]); each server's own, and no part of what servers must agree on.
    Feed,
}

impl Cf {
    /// All of them.
    pub const ALL: [Cf; 4] = [Cf::Node, Cf::Data, Cf::Aux, Cf::Feed];

    /// Its name on disk.
    pub const fn name(self) -> &'static str {
        match self {
            Cf::Node => "node",
            Cf::Data => "data",
            Cf::Aux => "aux",
            Cf::Feed => "feed",
        }
    }
}

/// Read access to one consistent state.
pub trait TreeView {
    /// The value of a key.
    fn get(&self, cf: Cf, key: &[u8]) -> Option<Bytes>;

    /// Visits keys in `[from, to)` in ascending order until `visit` returns false.
    fn scan(&self, cf: Cf, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool);
}

impl<T: TreeView + ?Sized> TreeView for &T {
    fn get(&self, cf: Cf, key: &[u8]) -> Option<Bytes> {
        (**self).get(cf, key)
    }
    fn scan(&self, cf: Cf, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        (**self).scan(cf, from, to, visit)
    }
}

impl<T: TreeView + ?Sized> TreeView for std::sync::Arc<T> {
    fn get(&self, cf: Cf, key: &[u8]) -> Option<Bytes> {
        (**self).get(cf, key)
    }
    fn scan(&self, cf: Cf, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        (**self).scan(cf, from, to, visit)
    }
}

/// One key's new value; `None` deletes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub cf: Cf,
    /// Which key.
    pub key: Bytes,
    /// The new value.
    pub value: Option<Bytes>,
}

/// A store of the tree: RocksDB in production, memory in tests and in the simulator.
pub trait TreeStore {
    /// A consistent, immutable state; reads use published views only.
    type View: TreeView + Send + Sync + 'static;

    /// Writes the final images of a batch at once. Not durable by itself: the log is the truth, and the meta row in
    /// the same batch says how far the store is.
    fn write(&mut self, changes: &mut dyn Iterator<Item = Change>);

    /// The state now.
    fn view(&self) -> Self::View;

    /// The meta row as a crash now would leave it: what the log must keep (P27).
    fn persisted_meta(&self) -> Option<record::Meta>;
}
