//! Chooses how a learner catches up: DIFF, TRUNC then DIFF, or SNAP.
//!
//! A function of two histories and nothing else, so that every pair of short histories can be tried: a wrong choice
//! here drops a committed txn without a sound. It never looks at the tree: a learner's tree holds only committed txns, so
//! there is never anything to undo there.

use corral_proto::Zxid;

use super::io::Position;
use crate::zoo::{self, Switch};

/// What two servers need to know of each other's logs (P10).
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    /// Entries after it are in the log.
    pub base: Position,
    /// Last position of each epoch after the base, ascending.
    pub epochs: &'a [Position],
}

impl Table<'_> {
    /// The last position of an epoch in this log; the base counts for its own epoch.
    fn last_of(&self, epoch: u32) -> Option<Position> {
        let row = self.epochs.iter().rev().find(|p| p.zxid.epoch() == epoch);
        row.copied().or((self.base.zxid.epoch() == epoch).then_some(self.base))
    }

    fn epochs_descending(&self) -> impl Iterator<Item = u32> {
        let rows = self.epochs.iter().rev().map(|p| p.zxid.epoch());
        rows.chain(std::iter::once(self.base.zxid.epoch()))
    }
}

/// What two logs have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Common {
    /// The last position in both.
    Point(Position),
    /// They say different things about the same place: one of them is not what it should be.
    Diverged(Zxid),
    /// No epoch is known to both, or what is common lies before the base of one.
    None,
}

/// The last position that both logs share (P10, with bases). The entries of an epoch are handed out once, by one leader, in
/// order, so two logs that know an epoch share it up to the shorter end, and with it everything before.
pub fn common(leader: Table<'_>, learner: Table<'_>) -> Common {
    for epoch in leader.epochs_descending() {
        let (Some(ours), Some(theirs)) = (leader.last_of(epoch), learner.last_of(epoch)) else { continue };
        let ours_first = ours.zxid <= theirs.zxid && !zoo::broken(Switch::MatchByNumberOnly);
        let point = if ours_first { ours } else { theirs };
        if ours.zxid == theirs.zxid && ours.hash != theirs.hash {
            return Common::Diverged(point.zxid);
        }
        if point.zxid < leader.base.zxid || point.zxid < learner.base.zxid {
            return Common::None;
        }
        return Common::Point(point);
    }
    Common::None
}

/// How the learner gets there (P11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Its log is a prefix of ours.
    Diff(Position),
    /// It drops what is after the point first.
    Trunc(Position),
    /// It needs a state at or above this zxid.
    Snap {
        /// Lower bound.
        at_least: Zxid,
    },
    /// It contains something that we do not: never follow from here.
    Refuse(Zxid),
}

/// Chooses. `applied`: what the learner's store contains; `leader_applied`: what ours does; `too_far`: whether sending
/// the log from a place on would cost more than a snapshot.
pub fn choose(
    leader: Table<'_>,
    learner: Table<'_>,
    last: Position,
    applied: Zxid,
    leader_applied: Zxid,
    too_far: impl FnOnce(Zxid) -> bool,
) -> Choice {
    if zoo::broken(Switch::MatchByRange)
        && last.zxid >= leader.base.zxid
        && leader.epochs.last().is_some_and(|end| last.zxid <= end.zxid)
    {
        return Choice::Diff(last);
    }
    match common(leader, learner) {
        Common::Diverged(at) => Choice::Refuse(at),
        Common::None => Choice::Snap { at_least: leader.base.zxid.max(applied) },
        Common::Point(point) if point.zxid < applied => Choice::Refuse(applied),
        // A snapshot by choice must not be older than the point: the learner may have acknowledged what is before it.
        // One that is no newer would save nothing.
        Common::Point(point)
            if (leader_applied > point.zxid || zoo::broken(Switch::SnapshotTooOld)) && too_far(point.zxid) =>
        {
            Choice::Snap { at_least: point.zxid.max(applied) }
        }
        Common::Point(point) if point.zxid == last.zxid => Choice::Diff(point),
        Common::Point(point) => Choice::Trunc(point),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: u32, counter: u32) -> Position {
        Position { zxid: Zxid::new(epoch, counter), hash: u64::from(epoch) << 32 | u64::from(counter) | 1 << 63 }
    }

    /// A log as its last positions; the base is the first.
    fn table(rows: &[Position]) -> Table<'_> {
        Table { base: rows[0], epochs: &rows[1..] }
    }

    #[test]
    fn the_point_is_the_shorter_end_of_the_largest_common_epoch() {
        let zero = Position::default();
        let leader = [zero, at(1, 5), at(3, 2)];
        assert_eq!(common(table(&leader), table(&[zero, at(1, 7), at(2, 4)])), Common::Point(at(1, 5)));
        assert_eq!(common(table(&leader), table(&[zero, at(1, 3)])), Common::Point(at(1, 3)));
        assert_eq!(common(table(&leader), table(&[zero])), Common::Point(zero));
        assert_eq!(common(table(&leader), table(&[zero, at(1, 5), at(3, 9)])), Common::Point(at(3, 2)));
    }

    #[test]
    fn a_base_may_be_the_point_and_what_is_before_it_may_not() {
        let leader = [at(2, 4), at(2, 9)];
        assert_eq!(common(table(&leader), table(&[Position::default(), at(2, 4)])), Common::Point(at(2, 4)));
        assert_eq!(common(table(&leader), table(&[Position::default(), at(2, 3)])), Common::None);
        assert_eq!(common(table(&leader), table(&[Position::default(), at(1, 8)])), Common::None);
    }

    #[test]
    fn a_learner_is_never_taken_back_behind_what_it_executed() {
        let zero = Position::default();
        let (ours, theirs) = ([zero, at(1, 5)], [zero, at(1, 5), at(2, 3)]);
        let choice = |applied| choose(table(&ours), table(&theirs), at(2, 3), applied, Zxid::ZERO, |_| false);
        assert_eq!(choice(Zxid::new(1, 5)), Choice::Trunc(at(1, 5)));
        assert_eq!(choice(Zxid::new(2, 1)), Choice::Refuse(Zxid::new(2, 1)));
    }

    /// Every pair of short histories of one system, against a comparison entry by entry.
    #[test]
    fn every_pair_of_short_histories_agrees_with_brute_force() {
        // All entries that epochs 1..=3 hand out; a history takes a prefix of each epoch it knows.
        let mut histories: Vec<Vec<Zxid>> = vec![vec![]];
        for epoch in 1..=3 {
            let mut more = Vec::new();
            for history in &histories {
                for len in 1..=3 {
                    let mut longer = history.clone();
                    longer.extend((0..len).map(|c| Zxid::new(epoch, c)));
                    more.push(longer);
                }
            }
            histories.extend(more);
        }
        let hash = |log: &[Zxid]| log.iter().fold(7u64, |h, z| h.wrapping_mul(31).wrapping_add(z.0));
        let rows = |log: &[Zxid], base: usize| {
            let mut rows = vec![if base == 0 {
                Position::default()
            } else {
                Position { zxid: log[base - 1], hash: hash(&log[..base]) }
            }];
            for i in base..log.len() {
                if i + 1 == log.len() || log[i + 1].epoch() != log[i].epoch() {
                    rows.push(Position { zxid: log[i], hash: hash(&log[..=i]) });
                }
            }
            rows
        };
        let mut pairs = 0;
        for a in &histories {
            for b in &histories {
                // Only pairs that log matching allows: an epoch known to both has the same history before it.
                let shared = a.iter().zip(b).take_while(|(x, y)| x == y).count();
                if a[shared..].iter().any(|z| b[shared..].iter().any(|y| y.epoch() == z.epoch())) {
                    continue;
                }
                for base_a in 0..=a.len() {
                    for base_b in 0..=b.len().min(shared) {
                        pairs += 1;
                        let (ra, rb) = (rows(a, base_a), rows(b, base_b));
                        let found = common(table(&ra), table(&rb));
                        if let Common::Point(point) = found {
                            assert!(
                                point.zxid == Zxid::ZERO && shared == 0 || shared > 0 && point.zxid == a[shared - 1],
                                "{a:?}/{base_a} {b:?}/{base_b}: {point:?}"
                            );
                            assert_eq!(point.hash, if shared == 0 { 0 } else { hash(&a[..shared]) });
                        } else {
                            assert_eq!(found, Common::None, "{a:?}/{base_a} {b:?}/{base_b}");
                            assert!(
                                base_a > shared
                                    || shared == 0
                                    || a[base_a.max(1) - 1].epoch() != a[shared - 1].epoch()
                                    || base_b > shared,
                                "a point was missed: {a:?}/{base_a} {b:?}/{base_b}"
                            );
                        }
                    }
                }
            }
        }
        assert!(pairs > 5_000, "{pairs}");
    }
}
