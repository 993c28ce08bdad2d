//! What must have happened somewhere in many runs: a run in which nothing happens looks exactly like one in which nothing
//! goes wrong. Every kind of fault of [`CATALOGUE`] is a goal, too.

use std::collections::BTreeMap;

use crate::faults::CATALOGUE;

/// Seeds within which every ordinary goal is reached.
pub const ORDINARY: u64 = 500;
/// Seeds within which the rare ones are.
pub const RARE: u64 = 5_000;

/// Goals with the number of seeds within which they must be reached.
const GOALS: &[(&str, u64)] = &[
    ("leader established", ORDINARY),
    ("leader stepped down", ORDINARY),
    ("two servers believe to lead", ORDINARY),
    ("leadership handed over", RARE),
    ("counters rolled over into a new epoch", ORDINARY),
    ("sync plan: diff", ORDINARY),
    ("sync plan: truncate", ORDINARY),
    ("sync plan: snapshot", ORDINARY),
    ("truncation across epochs", RARE),
    ("snapshot installed", ORDINARY),
    ("snapshot transfer failed", ORDINARY),
    ("late joiner under load", ORDINARY),
    ("learner caught up from the log behind a full window", ORDINARY),
    ("log truncated", ORDINARY),
    ("log trimmed", ORDINARY),
    ("log sealed", ORDINARY),
    ("segment prepared ahead", ORDINARY),
    ("log read for a learner", ORDINARY),
    ("hole or tear in the tail of a log", ORDINARY),
    ("power cut during recovery", ORDINARY),
    ("disk error during recovery", ORDINARY),
    ("amnesiac started", ORDINARY),
    ("amnesiac became a member again", ORDINARY),
    ("old folder recognised", RARE),
    ("damage: nothing was lost", ORDINARY),
    ("damage: found at start", ORDINARY),
    ("message of a broken stream arrived", ORDINARY),
    ("message for a stream that is gone", ORDINARY),
    ("promise rejected", ORDINARY),
    ("promise that does not count", ORDINARY),
    ("session moved", ORDINARY),
    ("session found expired", ORDINARY),
    ("write sent again", ORDINARY),
    ("expiry proposed", ORDINARY),
    ("reapable znodes found", ORDINARY),
    ("watch fired", ORDINARY),
    ("watch fired at re-registration", ORDINARY),
    ("read waited for its floor", RARE),
    ("sync answered", ORDINARY),
    ("follower told of changes", ORDINARY),
    ("follower told of a gap", ORDINARY),
    ("follower read again", ORDINARY),
    ("follower compared", ORDINARY),
    ("multi-read answered", ORDINARY),
    ("watches removed", ORDINARY),
    ("persistent watches set again", ORDINARY),
    ("history of registers explained", ORDINARY),
    ("load: all clients reconnect at once", ORDINARY),
    ("load: all sessions run out at once", ORDINARY),
    ("load: client does not read", ORDINARY),
    ("load: compare-and-set lost", ORDINARY),
    ("load: compare-and-set won", ORDINARY),
    ("load: deep pipeline", ORDINARY),
    ("load: hot parent: created", ORDINARY),
    ("load: hot parent: deleted", ORDINARY),
    ("load: huge multi done", ORDINARY),
    ("load: huge multi refused", ORDINARY),
    ("load: lock taken", ORDINARY),
    ("load: lock was taken", ORDINARY),
    ("load: nearly the largest data", ORDINARY),
    ("load: queue: put", ORDINARY),
    ("load: queue: taken", ORDINARY),
    ("load: queue: somebody else took it", ORDINARY),
    ("load: watches on everything", ORDINARY),
    ("connection closed: slow reader", RARE),
    ("a server stays dead", ORDINARY),
    ("trees differ: known without a majority", ORDINARY),
    ("trees differ: the wrong server stopped", ORDINARY),
    ("partition: ring", ORDINARY),
    ("died around: snapshot received", RARE),
    ("refused to go on without a majority that remembers", RARE),
    ("damage: last frame taken for a torn write", RARE),
    ("damage: folder refused", RARE),
];

/// The goals that so many seeds should have reached and did not.
pub fn missing(coverage: &BTreeMap<String, (u64, u64)>, seeds: u64) -> Vec<&'static str> {
    let faults = CATALOGUE.iter().map(|habit| (habit.struck, ORDINARY));
    GOALS
        .iter()
        .copied()
        .chain(faults)
        .filter(|(what, within)| seeds >= *within && !coverage.contains_key(*what))
        .map(|(what, _)| what)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goal_is_missed_only_by_as_many_seeds_as_it_needs() {
        let none = BTreeMap::new();
        assert_eq!(missing(&none, ORDINARY - 1), [""; 0]);
        assert!(missing(&none, ORDINARY).contains(&"log truncated"));
        assert!(missing(&none, ORDINARY).contains(&"bits rotted"));
        let some = BTreeMap::from([("log truncated".to_owned(), (1, 1))]);
        assert!(!missing(&some, RARE).contains(&"log truncated"));
    }
}
