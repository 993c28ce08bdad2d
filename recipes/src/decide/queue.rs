//! What stands in a queue, in which order, and what is due.

use std::time::Duration;

use crate::sequence::parse_number;

/// What the names of entries begin with: kazoo's.
pub const ENTRY: &str = "entry-";
/// What the names of delayed entries begin with.
pub const DELAYED: &str = "delayed-";
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
}
