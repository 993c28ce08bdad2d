//! Which one-shot watches this client has armed on its server: what an event fires, and what to set again after a reconnect.
//!
//! Pure. A server knows one watch for each (connection, path, kind); here may be many holders of each. The rules are
//! those of ZooKeeper's clients: wire 7.1-7.4 for firing, 7.8 for setting again.

use std::collections::BTreeMap;
use std::sync::Arc;

use corral_proto::{EventKind, WatchKind, WatchedEvent, Zxid};

/// How many bytes of paths one request to set watches again may hold: as ZooKeeper's own client, well below any limit.
pub(crate) const SET_WATCHES_BYTES_MAX: usize = 128 * 1024;

/// One holder of a watch in this client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WatchId(pub(crate) u64);

/// What a holder waits for, as setting it again needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Slot {
    /// One-shot on a znode that existed.
    Data,
    /// One-shot on a znode that did not exist.
    Exist,
    /// One-shot on a list of children.
    Child,
}

impl Slot {
    /// The kind of the server's watch behind it.
    pub(crate) fn kind(self) -> WatchKind {
        match self {
            Slot::Data | Slot::Exist => WatchKind::Data,
            Slot::Child => WatchKind::Child,
        }
    }
}

/// Watches to set again, as of a zxid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SetWatches {
    pub(crate) relative_zxid: Zxid,
    pub(crate) data: Vec<String>,
    pub(crate) exist: Vec<String>,
    pub(crate) child: Vec<String>,
}

impl SetWatches {
    fn lists(&self) -> [&Vec<String>; 3] {
        [&self.data, &self.exist, &self.child]
    }

    /// An upper bound of its size on the wire.
    pub(crate) fn bytes(&self) -> usize {
        self.lists().iter().flat_map(|list| list.iter()).map(|path| path.len() + 8).sum()
    }
}

/// All watches that are armed.
#[derive(Debug, Default)]
pub(crate) struct WatchTable {
    by_path: BTreeMap<Arc<str>, Vec<(Slot, WatchId)>>,
    by_id: BTreeMap<WatchId, (Arc<str>, Slot)>,
}

impl WatchTable {
    /// A watch was armed.
    pub(crate) fn insert(&mut self, path: &str, slot: Slot, id: WatchId) {
        let path = match self.by_path.get_key_value(path) {
            Some((path, _)) => path.clone(),
            None => Arc::from(path),
        };
        self.by_path.entry(path.clone()).or_default().push((slot, id));
        self.by_id.insert(id, (path, slot));
    }

    /// A holder goes. Gives path and kind if it was the last one of the server's watch.
    pub(crate) fn remove(&mut self, id: WatchId) -> Option<(String, WatchKind)> {
        let (path, slot) = self.by_id.remove(&id)?;
        let holders = self.by_path.get_mut(&path).expect("a holder's path is in the table");
        holders.retain(|(_, other)| *other != id);
        let is_last = !holders.iter().any(|(other, _)| other.kind() == slot.kind());
        if holders.is_empty() {
            self.by_path.remove(&path);
        }
        is_last.then(|| (path.to_string(), slot.kind()))
    }

    /// Whether somebody holds a watch of this kind on this path.
    pub(crate) fn holds(&self, path: &str, kind: WatchKind) -> bool {
        self.by_path.get(path).is_some_and(|holders| holders.iter().any(|(slot, _)| slot.kind() == kind))
    }

    /// Whom an event fires, in the order in which they were armed; they are gone then.
    pub(crate) fn fire(&mut self, event: &WatchedEvent) -> Vec<WatchId> {
        let mut fired = Vec::new();
        let at_path = |slot: Slot| match slot {
            Slot::Data | Slot::Exist => event.kind != EventKind::NodeChildrenChanged,
            Slot::Child => matches!(event.kind, EventKind::NodeChildrenChanged | EventKind::NodeDeleted),
        };
        if let Some(holders) = self.by_path.get_mut(event.path.as_str()) {
            holders.retain(|&(slot, id)| {
                if !at_path(slot) {
                    return true;
                }
                fired.push(id);
                self.by_id.remove(&id);
                false
            });
            if holders.is_empty() {
                self.by_path.remove(event.path.as_str());
            }
        }
        fired
    }

    /// Everything that must be set again on a new connection, in requests of bounded size.
    pub(crate) fn set_again(&self, relative_zxid: Zxid) -> Vec<SetWatches> {
        let mut requests: Vec<SetWatches> = Vec::new();
        let mut bytes = 0;
        for (path, holders) in &self.by_path {
            let mut slots: Vec<Slot> = holders.iter().map(|(slot, _)| *slot).collect();
            slots.sort_unstable();
            slots.dedup();
            for slot in slots {
                if requests.is_empty() || bytes + path.len() + 8 > SET_WATCHES_BYTES_MAX {
                    requests.push(SetWatches { relative_zxid, ..SetWatches::default() });
                    bytes = 0;
                }
                bytes += path.len() + 8;
                let request = requests.last_mut().expect("one was pushed when there was none");
                let list = match slot {
                    Slot::Data => &mut request.data,
                    Slot::Exist => &mut request.exist,
                    Slot::Child => &mut request.child,
                };
                list.push(path.to_string());
            }
        }
        requests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventKind, path: &str) -> WatchedEvent {
        WatchedEvent { kind, path: path.into(), zxid: Some(Zxid(9)) }
    }

    /// One holder of each slot at `/a/b`, numbered 1 to 3 in the order of [`Slot`].
    fn table() -> WatchTable {
        let mut table = WatchTable::default();
        for (n, slot) in [Slot::Data, Slot::Exist, Slot::Child].into_iter().enumerate() {
            table.insert("/a/b", slot, WatchId(n as u64 + 1));
        }
        table
    }

    fn fired(table: &mut WatchTable, kind: EventKind, path: &str) -> Vec<u64> {
        table.fire(&event(kind, path)).into_iter().map(|id| id.0).collect()
    }

    #[test]
    fn each_event_fires_the_holders_that_wait_for_it() {
        use EventKind::*;
        assert_eq!(fired(&mut table(), NodeCreated, "/a/b"), [1, 2]);
        assert_eq!(fired(&mut table(), NodeDataChanged, "/a/b"), [1, 2]);
        assert_eq!(fired(&mut table(), NodeDeleted, "/a/b"), [1, 2, 3]);
        assert_eq!(fired(&mut table(), NodeChildrenChanged, "/a/b"), [3]);
        assert_eq!(fired(&mut table(), NodeDeleted, "/a/b/c"), [0u64; 0]);
        assert_eq!(fired(&mut table(), NodeChildrenChanged, "/a"), [0u64; 0]);
    }

    #[test]
    fn one_shot_watches_fire_once() {
        let mut table = table();
        fired(&mut table, EventKind::NodeDeleted, "/a/b");
        assert_eq!(fired(&mut table, EventKind::NodeCreated, "/a/b"), [0u64; 0]);
        assert!(!table.holds("/a/b", WatchKind::Data) && table.by_path.is_empty() && table.by_id.is_empty());
    }

    #[test]
    fn only_the_last_holder_of_a_watch_takes_it_from_the_server() {
        let mut table = table();
        assert_eq!(table.remove(WatchId(1)), None, "the exist watch is the same watch there");
        assert_eq!(table.remove(WatchId(2)), Some(("/a/b".into(), WatchKind::Data)));
        assert_eq!(table.remove(WatchId(2)), None, "it is gone");
        assert_eq!(table.remove(WatchId(3)), Some(("/a/b".into(), WatchKind::Child)));
    }

    #[test]
    fn setting_again_names_every_path_once_in_its_list() {
        let mut table = table();
        table.insert("/a/b", Slot::Data, WatchId(7));
        let requests = table.set_again(Zxid(5));
        assert_eq!(
            requests,
            [SetWatches {
                relative_zxid: Zxid(5),
                data: vec!["/a/b".into()],
                exist: vec!["/a/b".into()],
                child: vec!["/a/b".into()],
            }]
        );
        assert_eq!(WatchTable::default().set_again(Zxid(5)), []);
    }

    #[test]
    fn many_watches_are_set_again_in_requests_of_bounded_size() {
        let mut table = WatchTable::default();
        for n in 0..10_000 {
            table.insert(&format!("/some/rather/long/path/{n:08}"), Slot::Data, WatchId(n));
        }
        let requests = table.set_again(Zxid(1));
        assert!(requests.len() > 1 && requests.iter().all(|request| request.bytes() <= SET_WATCHES_BYTES_MAX));
        assert_eq!(requests.iter().map(|request| request.data.len()).sum::<usize>(), 10_000);
    }
}
