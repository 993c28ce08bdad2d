//! The change feed: which znodes every executed entry touched, kept for a while, so that a watcher that was away is told
//! of what it missed (docs/adr/0011).
//!
//! One record for each batch of entries, in the family [`Cf::Feed`], written with the batch itself: a state and the record
//! of how it came about are never apart. Its key is the zxid of its last entry with an event, big-endian, so that the first
//! key after a position begins what follows it. A record carries no data: what a znode holds is in the tree. Nothing here
//! is part of the tree's digest, since servers make batches of their own; all of it is in snapshots.
//!
//! The *floor* is the zxid after which nothing is missing. It rises as old records go, by age and by size.

use bytes::{BufMut, Bytes};
use corral_proto::{EventKind, Stat, Zxid};

use super::entry::TreeEvent;
use super::record::{Meta, Reader, VERSION};
use super::{Cf, Change, TreeView, read};

/// Key of the row with the floor and the size: after every record.
pub(super) const BOUNDS: &[u8] = &[0xff; 9];

/// Records that one batch removes at most: what is left goes with the next.
const TRIM_MAX: usize = 64;

/// Bytes of a record's key, counted with it.
const KEY_BYTES: u64 = 8;

/// How much of the past is kept. Each is a bound: the smaller part stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedBounds {
    /// Bytes of records; 0: nothing is kept.
    pub bytes: u64,
    /// Age by the stamps of entries, ms.
    pub age_ms: u64,
}

impl Default for FeedBounds {
    fn default() -> FeedBounds {
        FeedBounds { bytes: 64 << 20, age_ms: 60 * 60 * 1000 }
    }
}

/// The events of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedEntry {
    /// Which.
    pub zxid: Zxid,
    /// What it did, in the order of wire 7.3; never empty.
    pub events: Vec<TreeEvent>,
}

/// What a znode holds, as an event may bring it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedNode {
    /// Its data.
    pub data: Option<Bytes>,
    /// Its Stat in that state; `mzxid` is the event's own zxid.
    pub stat: Stat,
    /// The state it was read from: the entry's own, or a later one in which the data is still the same.
    pub as_of: Zxid,
}

/// The writing side: one for each store.
#[derive(Clone, Debug)]
pub struct Feed {
    bounds: FeedBounds,
    floor: Zxid,
    bytes: u64,
    /// Stamp of the oldest record; `None`: not known.
    oldest_ms: Option<i64>,
}

impl Feed {
    /// The feed of a store. One that was written before there was a feed remembers nothing of what it contains.
    pub fn open(view: &impl TreeView, bounds: FeedBounds) -> Feed {
        let (floor, bytes) = bounds_row(view).unwrap_or_else(|| (applied(view), 0));
        Feed { bounds, floor, bytes, oldest_ms: None }
    }

    /// Everything after it is recorded.
    pub fn floor(&self) -> Zxid {
        self.floor
    }

    /// Bytes of records.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The changes that record a batch whose last entry has this stamp, and let go what is past the bounds. `view` is the
    /// state before the batch.
    pub fn record(&mut self, view: &impl TreeView, entries: &[FeedEntry], stamp_ms: i64) -> Vec<Change> {
        let Some(last) = entries.last().map(|entry| entry.zxid) else { return Vec::new() };
        let value = encode(entries, stamp_ms);
        let size = value.len() as u64 + KEY_BYTES;
        let mut changes = Vec::with_capacity(2);
        self.bytes += size;
        self.trim(view, stamp_ms, size, &mut changes);
        if size > self.bounds.bytes {
            self.bytes -= size;
            self.floor = last;
        } else {
            changes.push(Change { cf: Cf::Feed, key: key_of(last), value: Some(value) });
        }
        changes.push(Change { cf: Cf::Feed, key: Bytes::from_static(BOUNDS), value: Some(self.row()) });
        changes
    }

    fn trim(&mut self, view: &impl TreeView, stamp_ms: i64, size: u64, changes: &mut Vec<Change>) {
        let oldest_kept = stamp_ms.saturating_sub(i64::try_from(self.bounds.age_ms).unwrap_or(i64::MAX));
        if self.bytes <= self.bounds.bytes && self.oldest_ms.is_some_and(|oldest| oldest >= oldest_kept) {
            return;
        }
        // A batch that is larger than all that may be kept leaves nothing behind it: all goes at once.
        let most = if size > self.bounds.bytes { usize::MAX } else { TRIM_MAX };
        // If nothing is older, the record that is about to be written is the oldest.
        self.oldest_ms = Some(stamp_ms);
        let (from, to) = range_after(self.floor);
        view.scan(Cf::Feed, &from, &to, &mut |key, value| {
            let made_ms = stamp_of(value);
            if (self.bytes <= self.bounds.bytes && made_ms.is_some_and(|made| made >= oldest_kept))
                || changes.len() >= most
            {
                self.oldest_ms = made_ms;
                return false;
            }
            self.bytes = self.bytes.saturating_sub(value.len() as u64 + KEY_BYTES);
            self.floor = zxid_of(key).unwrap_or(self.floor);
            changes.push(Change { cf: Cf::Feed, key: Bytes::copy_from_slice(key), value: None });
            true
        });
    }

    fn row(&self) -> Bytes {
        encode_bounds(self.floor, self.bytes)
    }
}

/// The row of a store that nothing was executed in: nothing is missing.
pub(super) fn fresh() -> Change {
    Change { cf: Cf::Feed, key: Bytes::from_static(BOUNDS), value: Some(encode_bounds(Zxid::ZERO, 0)) }
}

fn encode_bounds(floor: Zxid, bytes: u64) -> Bytes {
    let mut out = Vec::with_capacity(17);
    out.put_u8(VERSION);
    out.put_u64_le(floor.0);
    out.put_u64_le(bytes);
    Bytes::from(out)
}

/// The floor of a state: everything after it up to the state itself is recorded.
pub fn floor(view: &impl TreeView) -> Zxid {
    bounds_row(view).map_or_else(|| applied(view), |(floor, _)| floor)
}

/// Visits the entries after a position that had events, in order, until `visit` returns false. The position must not be
/// below the floor.
///
/// Returns false if a record cannot be read (one of a later release, say): what follows is then as good as gone.
#[must_use]
pub fn read(view: &impl TreeView, after: Zxid, visit: &mut dyn FnMut(FeedEntry) -> bool) -> bool {
    let (from, to) = range_after(after);
    let mut intact = true;
    view.scan(Cf::Feed, &from, &to, &mut |_, value| {
        let Some(entries) = decode(value) else {
            intact = false;
            return false;
        };
        entries.into_iter().filter(|entry| entry.zxid > after).all(&mut *visit)
    });
    intact
}

/// The znode, if its data is what the entry `zxid` made it. Else it has changed again or is gone, and a later event tells
/// of that. `as_of` is the zxid of `view`.
pub fn node_as_of(view: &impl TreeView, path: &str, zxid: Zxid, as_of: Zxid) -> Option<FeedNode> {
    let (key, rec) = read::node(view, path)?;
    if rec.mzxid != zxid {
        return None;
    }
    let stat = rec.stat();
    Some(FeedNode { data: read::data(view, &key, rec.data), stat, as_of })
}

/// For each event of an entry, whether it is the last one of its znode: only that one brings the znode, so that an entry
/// with many changes of one large znode does not bring it many times.
pub fn is_last_of_path(events: &[TreeEvent]) -> Vec<bool> {
    let mut seen = std::collections::BTreeSet::new();
    let mut last: Vec<bool> = events.iter().rev().map(|event| seen.insert(event.path.as_str())).collect();
    last.reverse();
    last
}

fn applied(view: &impl TreeView) -> Zxid {
    Meta::read(view).map_or(Zxid::ZERO, |meta| meta.applied)
}

fn bounds_row(view: &impl TreeView) -> Option<(Zxid, u64)> {
    let value = view.get(Cf::Feed, BOUNDS)?;
    let mut from = Reader::versioned(&value)?;
    let row = (Zxid(from.u64()?), from.u64()?);
    from.end(row)
}

/// Whether a row is a record of changes.
pub(super) fn is_record(value: &[u8]) -> bool {
    decode(value).is_some()
}

fn key_of(zxid: Zxid) -> Bytes {
    Bytes::copy_from_slice(&zxid.0.to_be_bytes())
}

fn zxid_of(key: &[u8]) -> Option<Zxid> {
    Some(Zxid(u64::from_be_bytes(key.try_into().ok()?)))
}

fn range_after(zxid: Zxid) -> (Vec<u8>, Vec<u8>) {
    let from = match zxid.0.checked_add(1) {
        Some(next) => next.to_be_bytes().to_vec(),
        None => BOUNDS.to_vec(),
    };
    (from, BOUNDS.to_vec())
}

fn encode(entries: &[FeedEntry], stamp_ms: i64) -> Bytes {
    let bytes: usize = entries.iter().flat_map(|entry| &entry.events).map(|event| event.path.len() + 13).sum();
    let mut out = Vec::with_capacity(9 + 12 * entries.len() + bytes);
    out.put_u8(VERSION);
    out.put_i64_le(stamp_ms);
    for FeedEntry { zxid, events } in entries {
        out.put_u64_le(zxid.0);
        out.put_u32_le(events.len() as u32);
        for TreeEvent { kind, path, acl, parent_acl, bytes: _ } in events {
            out.put_u8(kind.code() as u8);
            // 0 is the list that is open to everybody, and has no row.
            out.put_u32_le(acl.unwrap_or(0));
            out.put_u32_le(parent_acl.unwrap_or(0));
            out.put_u32_le(path.len() as u32);
            out.extend_from_slice(path.as_bytes());
        }
    }
    Bytes::from(out)
}

fn stamp_of(value: &[u8]) -> Option<i64> {
    Reader::versioned(value)?.i64()
}

fn decode(value: &[u8]) -> Option<Vec<FeedEntry>> {
    let mut from = Reader::versioned(value)?;
    from.i64()?;
    let mut entries = Vec::new();
    while from.left() > 0 {
        let zxid = Zxid(from.u64()?);
        let count = from.u32()? as usize;
        // Every event takes 13 bytes: a wrong count cannot ask for more memory than there are bytes.
        let mut events = Vec::with_capacity(count.min(from.left() / 13));
        for _ in 0..count {
            let kind = EventKind::from_code(i32::from(from.u8()?))?;
            let list = |id: u32| (id != 0).then_some(id);
            let (acl, parent_acl) = (list(from.u32()?), list(from.u32()?));
            let len = from.u32()? as usize;
            let path = str::from_utf8(from.bytes(len)?).ok()?.to_owned();
            events.push(TreeEvent { kind, path, acl, parent_acl, bytes: 0 });
        }
        entries.push(FeedEntry { zxid, events });
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::memory::MemoryStore;
    use crate::tree::TreeStore;

    fn event(kind: EventKind, path: &str) -> TreeEvent {
        TreeEvent { kind, path: path.to_owned(), acl: Some(3), parent_acl: None, bytes: 0 }
    }

    fn entry(zxid: u64, paths: &[&str]) -> FeedEntry {
        let events = paths.iter().map(|path| event(EventKind::NodeCreated, path)).collect();
        FeedEntry { zxid: Zxid(zxid), events }
    }

    fn record(store: &mut MemoryStore, feed: &mut Feed, entries: &[FeedEntry], stamp_ms: i64) {
        let changes = feed.record(&store.view(), entries, stamp_ms);
        store.write(&mut changes.into_iter());
    }

    fn zxids(store: &MemoryStore, after: u64) -> Vec<u64> {
        let mut zxids = Vec::new();
        assert!(read(&store.view(), Zxid(after), &mut |entry| {
            zxids.push(entry.zxid.0);
            true
        }));
        zxids
    }

    /// Servers of different releases read each other's feeds, in snapshots.
    #[test]
    fn records_have_the_bytes_they_always_had() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            hex(&encode(&[entry(5, &["/a"])], -1)),
            concat!("01ffffffffffffffff", "050000000000000001000000", "01030000000000000002000000", "2f61")
        );
        let feed = Feed { bounds: FeedBounds::default(), floor: Zxid(7), bytes: 9, oldest_ms: None };
        assert_eq!(hex(&feed.row()), "0107000000000000000900000000000000");
    }

    #[test]
    fn a_position_inside_of_a_record_gives_what_follows_it() {
        let mut store = MemoryStore::new();
        let mut feed = Feed::open(&store.view(), FeedBounds::default());
        record(&mut store, &mut feed, &[entry(3, &["/a"]), entry(5, &["/b"]), entry(8, &["/c"])], 0);
        record(&mut store, &mut feed, &[entry(9, &["/d"])], 0);
        for (after, expected) in [(0, &[3, 5, 8, 9][..]), (4, &[5, 8, 9]), (5, &[8, 9]), (8, &[9]), (9, &[])] {
            assert_eq!(zxids(&store, after), expected, "after {after}");
        }
        assert_eq!(floor(&store.view()), Zxid::ZERO);
    }

    #[test]
    fn a_fresh_store_remembers_everything_and_one_without_a_feed_nothing() {
        let store = MemoryStore::new();
        assert_eq!(floor(&store.view()), Zxid::ZERO);
        let mut store = MemoryStore::empty();
        let meta = Meta { applied: Zxid(70), ..Meta::default() };
        let key = Bytes::from_static(super::super::key::META);
        store.write(&mut [Change { cf: Cf::Aux, key, value: Some(meta.encode()) }].into_iter());
        assert_eq!(floor(&store.view()), Zxid(70));
        assert_eq!(Feed::open(&store.view(), FeedBounds::default()).floor(), Zxid(70));
    }

    #[test]
    fn old_records_go_by_age() {
        let mut store = MemoryStore::new();
        let mut feed = Feed::open(&store.view(), FeedBounds { bytes: 1 << 20, age_ms: 100 });
        for n in 1..=5 {
            record(&mut store, &mut feed, &[entry(n, &["/a"])], n as i64 * 50);
        }
        // The last is of 250: what is of 150 stays.
        assert_eq!((floor(&store.view()), zxids(&store, 2)), (Zxid(2), vec![3, 4, 5]));
    }

    #[test]
    fn a_feed_of_no_bytes_keeps_nothing_and_says_so() {
        let mut store = MemoryStore::new();
        let mut feed = Feed::open(&store.view(), FeedBounds { bytes: 0, age_ms: 1_000_000 });
        record(&mut store, &mut feed, &[entry(4, &["/a"])], 0);
        assert_eq!((floor(&store.view()), zxids(&store, 0), feed.bytes()), (Zxid(4), vec![], 0));
    }

    #[test]
    fn a_record_that_cannot_be_read_is_told() {
        let mut store = MemoryStore::new();
        store.write(
            &mut [Change { cf: Cf::Feed, key: key_of(Zxid(4)), value: Some(Bytes::from_static(b"\x63")) }].into_iter(),
        );
        assert!(!read(&store.view(), Zxid(3), &mut |_| true));
        assert!(read(&store.view(), Zxid(4), &mut |_| true));
    }

    #[test]
    fn only_the_last_event_of_a_znode_brings_it() {
        let events = ["/a", "/b", "/a"].map(|path| event(EventKind::NodeDataChanged, path));
        assert_eq!(is_last_of_path(&events), [false, true, true]);
    }

    proptest! {
        /// Whatever the bounds: what is after the floor is all there, in order; the sizes agree; and the feed that is
        /// opened again goes on like the one that was not.
        #[test]
        fn what_is_after_the_floor_is_complete(
            bytes in 0u64..400,
            age_ms in 0u64..50,
            batches in prop::collection::vec((1usize..4, 0i64..10, any::<bool>()), 1..60),
        ) {
            let bounds = FeedBounds { bytes, age_ms };
            let mut store = MemoryStore::new();
            let mut feed = Feed::open(&store.view(), bounds);
            let (mut zxid, mut stamp_ms, mut all) = (0, 0, Vec::new());
            for (entries, later_ms, reopen) in batches {
                stamp_ms += later_ms;
                let batch: Vec<FeedEntry> = (0..entries).map(|_| { zxid += 2; entry(zxid, &["/a", "/b/c"]) }).collect();
                all.extend(batch.iter().map(|entry| entry.zxid.0));
                if reopen {
                    feed = Feed::open(&store.view(), bounds);
                }
                record(&mut store, &mut feed, &batch, stamp_ms);
                let floor = floor(&store.view());
                prop_assert_eq!(floor, feed.floor());
                let expected: Vec<u64> = all.iter().copied().filter(|zxid| *zxid > floor.0).collect();
                prop_assert_eq!(zxids(&store, floor.0), expected);
                let mut stored = 0;
                store.view().scan(Cf::Feed, &[], BOUNDS, &mut |_, value| { stored += value.len() as u64 + 8; true });
                prop_assert_eq!(feed.bytes(), stored);
                prop_assert!(feed.bytes() <= bounds.bytes);
            }
        }

        #[test]
        fn arbitrary_bytes_are_a_record_or_nothing(mut value: Vec<u8>) {
            if let Some(first) = value.first_mut() {
                *first = VERSION;
            }
            if let Some(entries) = decode(&value) {
                prop_assert_eq!(decode(&encode(&entries, 0)), Some(entries));
            }
        }
    }
}
