//! Who has which items: evenly, and moving as few as that takes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Items that can be divided: their assignment is the data of one znode.
pub const ITEMS_MAX: usize = 5_000;

/// Which member has which item.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Epoch of the view of members that it was made for.
    pub epoch: u64,
    /// Item to member.
    pub items: BTreeMap<String, String>,
}

impl Assignment {
    /// The assignment in a znode's data; what cannot be read is none.
    pub fn parse(data: &[u8]) -> Assignment {
        serde_json::from_slice(data).unwrap_or_default()
    }

    /// The znode's data.
    pub fn encode(&self) -> Vec<u8> {
        // Two maps of strings: nothing that could be refused.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The items of one member.
    pub fn of(&self, member: &str) -> BTreeSet<String> {
        self.items.iter().filter(|(_, owner)| *owner == member).map(|(item, _)| item.clone()).collect()
    }
}

/// Divides `items` among `members` (in the order in which they joined), so that no two differ by more than one, and as many
/// items as possible stay where they were `before`. Without members there is nothing to divide.
pub fn divide(
    items: &BTreeSet<String>,
    members: &[String],
    before: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    if members.is_empty() {
        return BTreeMap::new();
    }
    let mut kept: BTreeMap<&str, Vec<&String>> = members.iter().map(|member| (member.as_str(), Vec::new())).collect();
    let mut free: Vec<&String> = Vec::new();
    for item in items {
        match before.get(item).and_then(|owner| kept.get_mut(owner.as_str())) {
            Some(items) => items.push(item),
            None => free.push(item),
        }
    }
    // The larger shares go to those who have most already: each of them keeps one more.
    let (share, larger) = (items.len() / members.len(), items.len() % members.len());
    let mut by_load: Vec<&str> = members.iter().map(String::as_str).collect();
    by_load.sort_by_key(|member| std::cmp::Reverse(kept[member].len()));
    let quota: BTreeMap<&str, usize> =
        by_load.iter().enumerate().map(|(at, member)| (*member, share + usize::from(at < larger))).collect();
    for (member, items) in &mut kept {
        let surplus = items.split_off(quota[member].min(items.len()));
        free.extend(surplus);
    }
    let mut free = free.into_iter();
    for member in members {
        let items = kept.entry(member.as_str()).or_default();
        let missing = quota[member.as_str()] - items.len();
        items.extend(free.by_ref().take(missing));
    }
    kept.into_iter().flat_map(|(member, items)| items.into_iter().map(|i| (i.clone(), member.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(count: usize) -> BTreeSet<String> {
        (0..count).map(|n| format!("i{n:02}")).collect()
    }

    fn members(names: &str) -> Vec<String> {
        names.chars().map(String::from).collect()
    }

    fn moves(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> usize {
        after.iter().filter(|(item, owner)| before.get(*item) != Some(owner)).count()
    }

    fn loads(members: &[String], divided: &BTreeMap<String, String>) -> Vec<usize> {
        members.iter().map(|member| divided.values().filter(|owner| *owner == member).count()).collect()
    }

    #[test]
    fn the_first_takes_all_and_a_second_gets_half_of_it() {
        let (ten, none) = (items(10), BTreeMap::new());
        let alone = divide(&ten, &members("a"), &none);
        assert_eq!(loads(&members("a"), &alone), [10]);
        let two = divide(&ten, &members("ab"), &alone);
        assert_eq!(loads(&members("ab"), &two), [5, 5]);
        assert_eq!(moves(&alone, &two), 5);
        assert_eq!(divide(&ten, &[], &two), none);
    }

    #[test]
    fn when_one_dies_only_its_items_move() {
        let ten = items(10);
        let three = divide(&ten, &members("abc"), &BTreeMap::new());
        assert_eq!(loads(&members("abc"), &three), [4, 3, 3]);
        let two = divide(&ten, &members("ac"), &three);
        assert_eq!(moves(&three, &two), 3);
        assert_eq!(loads(&members("ac"), &two), [5, 5]);
    }

    #[test]
    fn dividing_again_moves_nothing() {
        let (eleven, names) = (items(11), members("abcd"));
        let once = divide(&eleven, &names, &BTreeMap::new());
        assert_eq!(divide(&eleven, &names, &once), once);
    }

    #[test]
    fn items_that_come_and_go_are_followed() {
        let once = divide(&items(4), &members("ab"), &BTreeMap::new());
        let more = divide(&items(6), &members("ab"), &once);
        assert_eq!((moves(&once, &more), loads(&members("ab"), &more)), (2, vec![3, 3]));
        let fewer = divide(&items(1), &members("ab"), &more);
        assert_eq!(fewer.len(), 1);
    }

    /// Any division before, any members after: even, complete, and no division that is even moves fewer.
    #[test]
    fn no_even_division_moves_fewer_items() {
        let mut seed = 1_u64;
        let mut draw = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..2_000 {
            let (all, count) = (items(draw(12) as usize), 1 + draw(5) as usize);
            let names: Vec<String> = members("abcde")[..count].to_vec();
            let old = members("abcdefg");
            let before: BTreeMap<String, String> =
                all.iter().map(|item| (item.clone(), old[draw(7) as usize].clone())).collect();
            let after = divide(&all, &names, &before);
            assert_eq!(after.keys().cloned().collect::<BTreeSet<_>>(), all);
            let loads = loads(&names, &after);
            assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "{loads:?}");
            let kept: Vec<usize> =
                names.iter().map(|name| before.values().filter(|owner| *owner == name).count()).collect();
            // Whoever gets the larger shares: so many items can stay at most.
            let (share, larger) = (all.len() / count, all.len() % count);
            let stay_max = (0..1_usize << count)
                .filter(|chosen| chosen.count_ones() as usize == larger)
                .map(|chosen| (0..count).map(|at| kept[at].min(share + (chosen >> at & 1))).sum::<usize>())
                .max()
                .unwrap();
            assert_eq!(moves(&before, &after), all.len() - stay_max, "{before:?} to {after:?}");
        }
    }
}
