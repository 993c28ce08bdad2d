//! Who is first, who waits for whom: decisions over the names of a directory's children.
//!
//! Pure. Locks and elections create one ephemeral sequential znode per contender and ask the same question of the
//! list: am I first, and if not, whose end do I wait for? Only the predecessor is watched (R9). Names are those of
//! Curator and of kazoo, so that their clients and ours may stand in one queue; other names are not ours to judge and
//! are ignored. Order is the order of creation (R3): by the number in the name as a 64-bit value, and by czxid where
//! numbers cannot tell, which is near the overflow of ZooKeeper's 32-bit counter and where numbers repeat.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Digits that a sequential name ends in, at least.
const DIGITS_MIN: usize = 10;
/// From here on numbers may repeat or turn negative (ZooKeeper counts in 32 bits and stops), and only czxids tell the
/// order. A million names before the end: more than any directory holds at one time.
const UNSAFE_FROM: i64 = i32::MAX as i64 - 1_000_000;

/// How contenders are named; decides who can stand in the same queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `_c_<guid>-lock-0000000007`: Curator's `InterProcessMutex` and `LeaderSelector`.
    #[default]
    CuratorLock,
    /// `_c_<guid>-latch-0000000007`: Curator's `LeaderLatch`.
    CuratorLatch,
    /// `<uuid>__lock__0000000007`: kazoo's `Lock` and `Election`.
    Kazoo,
}

impl Layout {
    /// What is passed to the create: the server appends the number.
    pub fn prefix(self, id: ContenderId) -> String {
        self.naming().prefix(id)
    }

    pub(crate) const fn naming(self) -> Naming {
        match self {
            Layout::CuratorLock => Naming { style: Style::Curator, marker: "lock-" },
            Layout::CuratorLatch => Naming { style: Style::Curator, marker: "latch-" },
            Layout::Kazoo => Naming { style: Style::Kazoo, marker: "__lock__" },
        }
    }
}

/// Whose way of naming: Curator's protected names, or kazoo's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Curator,
    Kazoo,
}

/// How the contenders of one recipe are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Naming {
    style: Style,
    marker: &'static str,
}

impl Naming {
    /// One member of a party, as kazoo's.
    pub(crate) const PARTY: Naming = Naming { style: Style::Kazoo, marker: "__party__" };
    /// One lease of a semaphore, as Curator's.
    pub(crate) const LEASE: Naming = Naming { style: Style::Curator, marker: "lease-" };

    pub(crate) fn prefix(self, id: ContenderId) -> String {
        match self.style {
            Style::Curator => format!("_c_{}-{}", id.hyphenated(), self.marker),
            Style::Kazoo => format!("{}{}", id.hex(), self.marker),
        }
    }
}

/// How the contenders of a read-write lock are named; decides who can stand in the same queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RwLayout {
    /// `_c_<guid>-__READ__0000000007` and `_c_<guid>-__WRIT__0000000007`: Curator's `InterProcessReadWriteLock`.
    #[default]
    Curator,
    /// `<uuid>__rlock__0000000007` and `<uuid>__lock__0000000007`: kazoo's `ReadLock` and `WriteLock`.
    Kazoo,
}

impl RwLayout {
    pub(crate) const fn naming(self, role: Role) -> Naming {
        match (self, role) {
            (RwLayout::Curator, Role::Shared) => Naming { style: Style::Curator, marker: "__READ__" },
            (RwLayout::Curator, Role::Exclusive) => Naming { style: Style::Curator, marker: "__WRIT__" },
            (RwLayout::Kazoo, Role::Shared) => Naming { style: Style::Kazoo, marker: "__rlock__" },
            (RwLayout::Kazoo, Role::Exclusive) => Naming { style: Style::Kazoo, marker: "__lock__" },
        }
    }
}

/// What a contender asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// To be alone.
    Exclusive,
    /// To be among others that share.
    Shared,
}

/// Which names of a directory stand in one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Locks and elections: all exclusive.
    Locks,
    /// Read-write locks.
    ReadWrite,
}

impl Family {
    /// Text before the number, for every layout and for Curator's nodes without protection. One queue takes them all.
    const fn markers(self) -> &'static [(&'static str, Role)] {
        match self {
            Family::Locks => &[("lock-", Role::Exclusive), ("latch-", Role::Exclusive), ("__lock__", Role::Exclusive)],
            Family::ReadWrite => &[
                ("__READ__", Role::Shared),
                ("__WRIT__", Role::Exclusive),
                ("__rlock__", Role::Shared),
                ("__lock__", Role::Exclusive),
            ],
        }
    }
}

/// The unique part of a contender's name: 128 random bits, shown as a UUID of version 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContenderId(u128);

impl ContenderId {
    /// The id made of these random bits.
    pub fn from_random(bits: u128) -> ContenderId {
        const VERSION: u128 = 0xf << 76;
        const VARIANT: u128 = 0x3 << 62;
        ContenderId(bits & !VERSION & !VARIANT | 0x4 << 76 | 0x2 << 62)
    }

    /// 32 hexadecimal digits.
    pub fn hex(self) -> String {
        format!("{:032x}", self.0)
    }

    /// 32 hexadecimal digits in the five groups of a UUID.
    pub fn hyphenated(self) -> String {
        let hex = self.hex();
        let mut text = String::with_capacity(36);
        for (part, range) in [0..8, 8..12, 12..16, 16..20, 20..32].into_iter().enumerate() {
            let _ = write!(text, "{}{}", if part == 0 { "" } else { "-" }, &hex[range]);
        }
        text
    }
}

/// A child that stands in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contender {
    /// Its name.
    pub name: String,
    /// The number its name ends in.
    pub sequence: i64,
    /// Zxid of its creation, if it was asked for.
    pub czxid: Option<i64>,
    /// What it asks for.
    pub role: Role,
}

impl Contender {
    /// The contender of a lock or an election; `None` for names that no known client gives.
    pub fn parse(name: &str) -> Option<Contender> {
        Contender::parse_in(Family::Locks, name)
    }

    /// The contender of a family; `None` for names that no known client gives.
    pub fn parse_in(family: Family, name: &str) -> Option<Contender> {
        let (number, role) = family.markers().iter().find_map(|(marker, role)| {
            let at = name.rfind(marker)?;
            // `block-0000000001` is somebody else's.
            let begins = at == 0 || name[..at].ends_with('-') || marker.starts_with('_');
            begins.then(|| (&name[at + marker.len()..], *role))
        })?;
        Some(Contender { name: name.to_owned(), sequence: parse_number(number)?, czxid: None, role })
    }

    /// Whether its number alone tells its place, also beside names that were given by hand: far from where numbers repeat.
    pub fn has_sure_number(&self) -> bool {
        is_sure(self.sequence)
    }
}

/// The number that a server appended: at least ten digits, and a sign where ZooKeeper's counter has gone over its end.
pub fn parse_number(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.len() < DIGITS_MIN || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn is_sure(number: i64) -> bool {
    number >= 0 && !(UNSAFE_FROM..=i64::from(i32::MAX)).contains(&number)
}

/// The contenders among `children`, first come first.
///
/// `czxids` holds what is known of them; a child without one, in a directory that [`needs_czxids`], was created after
/// the others were asked, so it stands behind them.
pub fn queue<'a>(
    family: Family,
    children: impl IntoIterator<Item = &'a str>,
    czxids: &BTreeMap<String, i64>,
) -> Vec<Contender> {
    let mut queue: Vec<Contender> = children.into_iter().filter_map(|name| Contender::parse_in(family, name)).collect();
    for contender in &mut queue {
        contender.czxid = czxids.get(&contender.name).copied();
    }
    if czxids.is_empty() {
        queue.sort_by(|a, b| a.sequence.cmp(&b.sequence).then_with(|| a.name.cmp(&b.name)));
    } else {
        queue.sort_by(|a, b| match (a.czxid, b.czxid) {
            (Some(x), Some(y)) => x.cmp(&y).then_with(|| a.name.cmp(&b.name)),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => a.sequence.cmp(&b.sequence).then_with(|| a.name.cmp(&b.name)),
        });
    }
    queue
}

/// Whether the numbers alone do not tell the order: two are equal, one is negative or close to the 32-bit end.
pub fn needs_czxids(queue: &[Contender]) -> bool {
    let mut numbers: Vec<i64> = queue.iter().map(|c| c.sequence).collect();
    numbers.sort_unstable();
    numbers.windows(2).any(|pair| pair[0] == pair[1]) || numbers.iter().any(|n| !is_sure(*n))
}

/// Where a contender stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is its turn: it holds.
    First,
    /// Behind `ahead` others; it is its turn to look again when `predecessor` is gone.
    Behind {
        /// The last of those that it waits for.
        predecessor: String,
        /// How many must go before it.
        ahead: usize,
    },
    /// Not in the list: its session ended, or somebody deleted it.
    Gone,
}

/// The place of `own` in a queue. An exclusive contender waits for all before it, a sharing one only for the exclusive
/// ones before it; never for one that came later.
pub fn place(queue: &[Contender], own: &str) -> Place {
    let Some(at) = queue.iter().position(|c| c.name == own) else { return Place::Gone };
    let shares = queue[at].role == Role::Shared;
    let mut before = queue[..at].iter().filter(|c| !shares || c.role == Role::Exclusive);
    match before.next_back() {
        None => Place::First,
        Some(last) => Place::Behind { predecessor: last.name.clone(), ahead: before.count() + 1 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: BTreeMap<String, i64> = BTreeMap::new();

    fn curator(id: u8, number: &str) -> String {
        format!("_c_{}-lock-{number}", ContenderId::from_random(u128::from(id)).hyphenated())
    }

    fn names(queue: &[Contender]) -> Vec<&str> {
        queue.iter().map(|c| c.name.as_str()).collect()
    }

    #[test]
    fn names_are_those_of_curator_and_kazoo() {
        let id = ContenderId::from_random(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(Layout::CuratorLock.prefix(id), "_c_01234567-89ab-4def-8123-456789abcdef-lock-");
        assert_eq!(Layout::CuratorLatch.prefix(id), "_c_01234567-89ab-4def-8123-456789abcdef-latch-");
        assert_eq!(Layout::Kazoo.prefix(id), "0123456789ab4def8123456789abcdef__lock__");
        assert_eq!(Layout::Kazoo.prefix(ContenderId::from_random(1)).len(), 32 + "__lock__".len());
    }

    #[test]
    fn every_layout_is_recognised_with_its_own_number() {
        for layout in [Layout::CuratorLock, Layout::CuratorLatch, Layout::Kazoo] {
            let name = format!("{}0000000042", layout.prefix(ContenderId::from_random(7)));
            let contender = Contender::parse(&name).expect("a contender");
            assert_eq!((contender.sequence, contender.name), (42, name));
        }
        assert_eq!(Contender::parse("lock-0000000003").expect("without protection").sequence, 3);
    }

    #[test]
    fn foreign_names_are_ignored() {
        for name in [
            "",
            "config",
            "0000000001",
            "lock-",
            "lock-1",
            "lock-000000001x",
            "_c_1-__READ__0000000001",
            "ab__rlock__0000000001",
            "lock-0000000001-old",
            "lock-99999999999999999999",
            "block-0000000001",
        ] {
            assert_eq!(Contender::parse(name), None, "{name}");
        }
        let list = queue(Family::Locks, ["config", "lock-0000000002", "members", "lock-0000000001"], &NONE);
        assert_eq!(names(&list), ["lock-0000000001", "lock-0000000002"]);
    }

    #[test]
    fn order_is_by_number_and_not_by_the_random_part() {
        let (a, b, c) = (curator(9, "0000000001"), curator(1, "0000000002"), "ff__lock__0000000003".to_owned());
        let list = queue(Family::Locks, [c.as_str(), b.as_str(), a.as_str()], &NONE);
        assert_eq!(names(&list), [a.as_str(), b.as_str(), c.as_str()]);
        assert!(!needs_czxids(&list));
    }

    #[test]
    fn numbers_beyond_32_bits_are_compared_as_numbers() {
        let list = queue(Family::Locks, ["lock-10000000000", "lock-9999999999"], &NONE);
        assert_eq!(names(&list), ["lock-9999999999", "lock-10000000000"]);
        assert!(!needs_czxids(&list));
    }

    #[test]
    fn overflown_and_repeated_numbers_are_ordered_by_czxid() {
        let (last, same, wrapped) = (curator(1, "2147483647"), curator(2, "2147483647"), curator(3, "-2147483648"));
        let children = [wrapped.as_str(), same.as_str(), last.as_str()];
        assert!(needs_czxids(&queue(Family::Locks, children, &NONE)));
        let czxids = BTreeMap::from([(last.clone(), 10), (same.clone(), 11), (wrapped.clone(), 12)]);
        assert_eq!(names(&queue(Family::Locks, children, &czxids)), [last.as_str(), same.as_str(), wrapped.as_str()]);
        assert!(needs_czxids(&queue(Family::Locks, ["lock-0000000001", "latch-0000000001"], &NONE)));
    }

    #[test]
    fn a_child_without_czxid_stands_behind_those_that_have_one() {
        let czxids = BTreeMap::from([("lock-2147483647".to_owned(), 10)]);
        let list = queue(Family::Locks, ["lock--2147483648", "lock-2147483647"], &czxids);
        assert_eq!(names(&list), ["lock-2147483647", "lock--2147483648"]);
    }

    #[test]
    fn the_first_holds_and_everybody_else_watches_one_predecessor() {
        let list = queue(Family::Locks, ["lock-0000000004", "lock-0000000002", "lock-0000000009"], &NONE);
        assert_eq!(place(&list, "lock-0000000002"), Place::First);
        let behind = |predecessor: &str, ahead| Place::Behind { predecessor: predecessor.into(), ahead };
        assert_eq!(place(&list, "lock-0000000004"), behind("lock-0000000002", 1));
        assert_eq!(place(&list, "lock-0000000009"), behind("lock-0000000004", 2));
    }

    fn rw(children: &[&str], own: &str) -> Place {
        place(&queue(Family::ReadWrite, children.iter().copied(), &NONE), own)
    }

    #[test]
    fn readers_wait_for_writers_before_them_and_for_nobody_else() {
        let list = [
            "_c_a-__READ__0000000001",
            "b__rlock__0000000002",
            "_c_c-__WRIT__0000000003",
            "_c_d-__READ__0000000004",
            "e__lock__0000000005",
            "_c_f-__READ__0000000006",
        ];
        let behind = |predecessor: &str, ahead| Place::Behind { predecessor: predecessor.into(), ahead };
        assert_eq!(rw(&list, list[0]), Place::First);
        assert_eq!(rw(&list, list[1]), Place::First);
        assert_eq!(rw(&list, list[2]), behind(list[1], 2));
        assert_eq!(rw(&list, list[3]), behind(list[2], 1));
        assert_eq!(rw(&list, list[4]), behind(list[3], 4));
        assert_eq!(rw(&list, list[5]), behind(list[4], 2));
        // A writer that came later keeps no reader waiting.
        assert_eq!(rw(&list[3..], list[3]), Place::First);
    }

    #[test]
    fn a_reader_under_its_writers_number_keeps_its_place() {
        let (reader, queued) = ("_c_a-__READ__0000000003", "_c_b-__WRIT__0000000004");
        assert_eq!(rw(&[queued, reader], reader), Place::First);
        assert_eq!(rw(&[queued, reader], queued), Place::Behind { predecessor: reader.into(), ahead: 1 });
        assert!(Contender::parse_in(Family::ReadWrite, reader).expect("a reader").has_sure_number());
        assert!(!Contender::parse_in(Family::ReadWrite, "_c_a-__READ__2147483647").expect("one").has_sure_number());
    }

    #[test]
    fn whatever_stands_in_a_queue_one_holds_exclusively_or_some_share() {
        // Every pattern of roles up to seven contenders.
        for pattern in 0..1_u32 << 7 {
            let names: Vec<String> = (0..7)
                .map(|at| format!("_c_x-{}{at:010}", if pattern >> at & 1 == 1 { "__WRIT__" } else { "__READ__" }))
                .collect();
            let list = queue(Family::ReadWrite, names.iter().map(String::as_str), &NONE);
            let holders: Vec<Role> =
                list.iter().filter(|c| place(&list, &c.name) == Place::First).map(|c| c.role).collect();
            let alone = holders == [Role::Exclusive];
            let shared = !holders.is_empty() && holders.iter().all(|role| *role == Role::Shared);
            assert!(alone || shared, "{pattern:b}: {holders:?}");
        }
    }

    #[test]
    fn a_contender_that_is_not_in_the_list_is_gone() {
        assert_eq!(place(&queue(Family::Locks, ["lock-0000000002"], &NONE), "lock-0000000001"), Place::Gone);
        assert_eq!(place(&[], "lock-0000000001"), Place::Gone);
    }

    #[test]
    fn random_ids_are_version_4_uuids() {
        for bits in [0, u128::MAX, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef] {
            let text = ContenderId::from_random(bits).hyphenated();
            assert_eq!((text.len(), &text[14..15]), (36, "4"));
            assert!(matches!(&text[19..20], "8" | "9" | "a" | "b"), "{text}");
        }
    }
}
