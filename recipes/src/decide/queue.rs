//! What stands in a queue, in which order, and what is due.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::sequence::parse_number;

/// What the names of entries begin with: kazoo's.
pub const ENTRY: &str = "entry-";
/// What the names of delayed entries begin with.
pub const DELAYED: &str = "delayed-";
/// What the names of items with an id begin with: Curator's.
const ID_ENTRY: &str = "queue-";
/// Stands around the id: Curator's.
const SEPARATOR: char = '|';
/// What the names of shards begin with: Curator's.
pub const SHARD: &str = "queue-";
/// What the data of an item of Curator's queues begins with.
const ITEM_VERSION: u32 = 0x0001_0001;
/// An item follows, in that frame.
const ITEM: u8 = 1;
/// Nothing follows.
const END: u8 = 2;
/// Lowest urgency.
pub const PRIORITY_MAX: u16 = 999;
/// The urgency of who names none: kazoo's.
pub const PRIORITY_DEFAULT: u16 = 100;

/// An entry of a queue. Its order is that of its fields.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// How urgent: lower comes first.
    pub priority: u16,
    /// Its number: who came first comes first.
    pub sequence: i64,
    /// The znode's name.
    pub name: String,
}

impl Entry {
    /// `entry-<priority>-<number>`, or `qn-<number>` as ZooKeeper's own queue recipe; `None`: something else.
    pub fn parse(name: &str) -> Option<Entry> {
        let (priority, number) = match name.strip_prefix(ENTRY) {
            Some(rest) => {
                let (priority, number) = rest.split_once('-')?;
                (priority.parse().ok().filter(|priority| *priority <= PRIORITY_MAX)?, number)
            }
            None => (PRIORITY_DEFAULT, name.strip_prefix("qn-")?),
        };
        Some(Entry { priority, sequence: parse_number(number)?, name: name.to_owned() })
    }

    /// What is passed to the create: the server appends the number.
    pub fn prefix(priority: u16) -> String {
        format!("{ENTRY}{:03}-", priority.min(PRIORITY_MAX))
    }
}

/// The entries among these names, the next first.
pub fn entries<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = names.into_iter().filter_map(Entry::parse).collect();
    entries.sort_unstable();
    entries
}

/// An entry of a queue of items with ids. Its order is that of its fields.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IdEntry {
    /// Its number: who came first comes first.
    pub sequence: i64,
    /// The znode's name.
    pub name: String,
    /// The id of the item.
    pub id: String,
}

impl IdEntry {
    /// `queue-|<id>|<number>`, as Curator's `DistributedIdQueue`; `None`: something else.
    pub fn parse(name: &str) -> Option<IdEntry> {
        let (id, number) = name.strip_prefix(ID_ENTRY)?.strip_prefix(SEPARATOR)?.split_once(SEPARATOR)?;
        Some(IdEntry { sequence: parse_number(number)?, name: name.to_owned(), id: id.to_owned() })
    }

    /// What is passed to the create: the server appends the number. `None`: this cannot be an id.
    pub fn prefix(id: &str) -> Option<String> {
        let is_id = !id.is_empty() && !id.contains(['/', SEPARATOR]);
        is_id.then(|| format!("{ID_ENTRY}{SEPARATOR}{id}{SEPARATOR}"))
    }
}

/// The items with ids among these names, the next first.
pub fn id_entries<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<IdEntry> {
    let mut entries: Vec<IdEntry> = names.into_iter().filter_map(IdEntry::parse).collect();
    entries.sort_unstable();
    entries
}

/// One item in the frame of Curator's `ItemSerializer`: a version, then each item behind a mark and its length, then an
/// end.
pub fn encode_item(item: &[u8]) -> Bytes {
    let mut data = BytesMut::with_capacity(item.len() + 10);
    data.put_u32(ITEM_VERSION);
    data.put_u8(ITEM);
    // What fits into a znode fits into 32 bits.
    data.put_u32(u32::try_from(item.len()).unwrap_or(u32::MAX));
    data.put_slice(item);
    data.put_u8(END);
    data.freeze()
}

/// The item in such a frame; `None`: it is none, or not exactly one.
pub fn decode_item(mut data: Bytes) -> Option<Bytes> {
    if data.try_get_u32().ok()? != ITEM_VERSION || data.try_get_u8().ok()? != ITEM {
        return None;
    }
    let length = usize::try_from(data.try_get_u32().ok()?).ok()?;
    let item = (length <= data.len()).then(|| data.split_to(length))?;
    (data[..] == [END]).then_some(item)
}

/// One directory of a queue that has several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its name.
    pub name: String,
    /// How many items it holds.
    pub items: usize,
}

/// Where the next items go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Into this shard.
    Shard(String),
    /// Into another, which is to be created.
    Another,
}

/// The shard for the next items: any that is below the threshold; else another, if there may be one; else the emptiest.
/// `random` is any number.
pub fn choose_shard(shards: &[Shard], threshold: usize, most: usize, random: u64) -> Target {
    let below: Vec<&Shard> = shards.iter().filter(|shard| shard.items < threshold).collect();
    let any = usize::try_from(random).unwrap_or(usize::MAX) % below.len().max(1);
    match (below.get(any), shards.iter().min_by_key(|shard| (shard.items, &shard.name))) {
        (Some(shard), _) => Target::Shard(shard.name.clone()),
        (None, Some(emptiest)) if shards.len() >= most => Target::Shard(emptiest.name.clone()),
        (None, _) => Target::Another,
    }
}

/// Whether so many may be put into a queue that holds `present`.
pub fn has_room(present: usize, more: usize, most: Option<usize>) -> bool {
    most.is_none_or(|most| present.saturating_add(more) <= most)
}

/// A delayed entry, and when it was put: server time, ms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delayed {
    /// The znode's name.
    pub name: String,
    /// From when on it may be taken: server time, ms.
    pub due_ms: i64,
    /// Its number: of those due at one time, who came first comes first.
    pub sequence: i64,
}

impl Delayed {
    /// What is passed to the create: the server appends the number.
    pub fn prefix(delay: Duration) -> String {
        format!("{DELAYED}{}-", delay.as_millis())
    }

    /// The entry of a name, put at `put_ms`; `None`: something else.
    pub fn parse(name: &str, put_ms: i64) -> Option<Delayed> {
        let (delay, number) = name.strip_prefix(DELAYED)?.split_once('-')?;
        let delay_ms: i64 = delay.parse().ok()?;
        let due_ms = put_ms.saturating_add(delay_ms);
        Some(Delayed { name: name.to_owned(), due_ms, sequence: parse_number(number)? })
    }
}

/// When the next entry may be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// There is none.
    Nothing,
    /// These are due, the earliest first.
    Now(Vec<String>),
    /// None is yet; the first is after so long.
    After(Duration),
}

/// What is due when it is `now_ms`.
pub fn due(entries: &[Delayed], now_ms: i64) -> Due {
    let mut ready: Vec<&Delayed> = entries.iter().filter(|entry| entry.due_ms <= now_ms).collect();
    if !ready.is_empty() {
        ready.sort_by(|a, b| (a.due_ms, a.sequence, &a.name).cmp(&(b.due_ms, b.sequence, &b.name)));
        return Due::Now(ready.into_iter().map(|entry| entry.name.clone()).collect());
    }
    match entries.iter().map(|entry| entry.due_ms).min() {
        Some(first) => Due::After(Duration::from_millis(first.saturating_sub(now_ms).unsigned_abs())),
        None => Due::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_kazoo_and_of_zookeepers_recipe() {
        assert_eq!(Entry::prefix(7), "entry-007-");
        assert_eq!(Entry::prefix(5_000), "entry-999-");
        let entry = |priority, sequence, name: &str| Some(Entry { priority, sequence, name: name.into() });
        assert_eq!(Entry::parse("entry-100-0000000012"), entry(100, 12, "entry-100-0000000012"));
        assert_eq!(Entry::parse("qn-0000000003"), entry(100, 3, "qn-0000000003"));
        for name in ["entry-", "entry-1000-0000000001", "entry-1-1", "qn-x", "clock", "lock-0000000001"] {
            assert_eq!(Entry::parse(name), None, "{name}");
        }
    }

    #[test]
    fn the_urgent_come_first_and_then_who_came_first() {
        let list = entries(["entry-100-0000000001", "entry-005-0000000009", "x", "entry-100-10000000000"]);
        let names: Vec<&str> = list.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["entry-005-0000000009", "entry-100-0000000001", "entry-100-10000000000"]);
    }

    #[test]
    fn a_full_queue_has_no_room() {
        assert!(has_room(9, 1, Some(10)) && !has_room(9, 2, Some(10)) && !has_room(10, 1, Some(10)));
        assert!(has_room(usize::MAX, 5, None));
    }

    #[test]
    fn what_is_due_comes_in_the_order_of_its_time_by_the_servers_clock() {
        assert_eq!(Delayed::prefix(Duration::from_millis(1_500)), "delayed-1500-");
        let of = |name, put_ms| Delayed::parse(name, put_ms).expect("an entry");
        let all = [
            of("delayed-500-0000000001", 1_000),
            of("delayed-100-0000000002", 1_200),
            of("delayed-0-0000000003", 1_300),
            of("delayed-9000-0000000004", 1_000),
        ];
        assert_eq!(due(&all, 1_299), Due::After(Duration::from_millis(1)));
        let ready = |names: &[&str]| Due::Now(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(due(&all, 1_300), ready(&["delayed-100-0000000002", "delayed-0-0000000003"]));
        assert_eq!(due(&all[..1], 1_500), ready(&["delayed-500-0000000001"]));
        assert_eq!(due(&[], 1), Due::Nothing);
        assert_eq!(Delayed::parse("entry-100-0000000001", 0), None);
        assert_eq!(Delayed::parse("delayed-x-0000000001", 0), None);
    }

    #[test]
    fn items_with_ids_are_named_and_framed_as_curators() {
        let prefix = IdEntry::prefix("order-7").expect("an id");
        assert_eq!(prefix, "queue-|order-7|");
        let names =
            ["queue-|b|0000000002", "queue-|a|0000000003", "queue-|b|0000000001", "queue-0000000000", "queue-|c|1"];
        let ids: Vec<_> = id_entries(names).into_iter().map(|entry| (entry.id, entry.sequence)).collect();
        assert_eq!(ids, [("b".to_owned(), 1), ("b".to_owned(), 2), ("a".to_owned(), 3)]);
        for id in ["", "a/b", "a|b"] {
            assert_eq!(IdEntry::prefix(id), None, "{id:?}");
        }
        let framed = encode_item(b"hey");
        assert_eq!(&framed[..], b"\x00\x01\x00\x01\x01\x00\x00\x00\x03hey\x02");
        assert_eq!(decode_item(framed.clone()), Some(Bytes::from_static(b"hey")));
        assert_eq!(decode_item(encode_item(b"")), Some(Bytes::new()));
        for end in 0..framed.len() {
            assert_eq!(decode_item(framed.slice(..end)), None, "the first {end} bytes");
        }
        assert_eq!(decode_item(Bytes::from_static(b"\x00\x01\x00\x01\x01\xff\xff\xff\xffhey\x02")), None);
    }

    #[test]
    fn a_shard_is_added_when_all_are_full_and_there_may_be_one_more() {
        let shards = |items: &[usize]| -> Vec<Shard> {
            items.iter().enumerate().map(|(at, items)| Shard { name: format!("queue-{at}"), items: *items }).collect()
        };
        let shard = |at: usize| Target::Shard(format!("queue-{at}"));
        assert_eq!(choose_shard(&[], 10, 3, 7), Target::Another);
        assert_eq!(choose_shard(&shards(&[10, 9]), 10, 3, 7), shard(1));
        assert_eq!(choose_shard(&shards(&[3, 10, 4]), 10, 3, 0), shard(0));
        assert_eq!(choose_shard(&shards(&[3, 10, 4]), 10, 3, 1), shard(2));
        assert_eq!(choose_shard(&shards(&[10, 12]), 10, 3, 7), Target::Another);
        assert_eq!(choose_shard(&shards(&[12, 10, 11]), 10, 3, 7), shard(1));
    }
}
