//! Who is a majority: one set of voters, or two while a change of configuration is under way.

use corral_proto::ServerId;

/// One or two sets of voters; a quorum is a majority of each. Every count in the protocol asks here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuorumSet {
    /// Voters of the current configuration, ascending.
    voters: Vec<ServerId>,
    /// Voters of the next configuration while both are active.
    joint: Option<Vec<ServerId>>,
}

impl QuorumSet {
    /// Majorities of one set.
    pub fn majority(voters: impl IntoIterator<Item = ServerId>) -> QuorumSet {
        QuorumSet { voters: sorted(voters), joint: None }
    }

    /// Majorities of both sets at once.
    pub fn joint(old: impl IntoIterator<Item = ServerId>, new: impl IntoIterator<Item = ServerId>) -> QuorumSet {
        QuorumSet { voters: sorted(old), joint: Some(sorted(new)) }
    }

    fn sets(&self) -> impl Iterator<Item = &Vec<ServerId>> {
        std::iter::once(&self.voters).chain(self.joint.as_ref())
    }

    /// Whether this server counts in any set.
    pub fn is_voter(&self, server: ServerId) -> bool {
        self.sets().any(|set| set.binary_search(&server).is_ok())
    }

    /// Every voter of any set, ascending.
    pub fn voters(&self) -> Vec<ServerId> {
        sorted(self.sets().flatten().copied())
    }

    /// Whether those for whom `holds` is true are a majority of every set. An empty set has no quorum.
    pub fn has_quorum(&self, holds: impl Fn(ServerId) -> bool) -> bool {
        self.sets().all(|set| set.iter().filter(|s| holds(**s)).count() > set.len() / 2)
    }

    /// The largest value that a majority of every set has reached.
    pub fn watermark<T: Ord + Copy + Default>(&self, value: impl Fn(ServerId) -> T) -> T {
        self.sets()
            .map(|set| {
                let mut values: Vec<T> = set.iter().map(|s| value(*s)).collect();
                values.sort_unstable();
                // The element that a majority is at or above.
                values.get(set.len().wrapping_sub(set.len() / 2 + 1)).copied().unwrap_or_default()
            })
            .min()
            .unwrap_or_default()
    }
}

fn sorted(servers: impl IntoIterator<Item = ServerId>) -> Vec<ServerId> {
    let mut servers: Vec<ServerId> = servers.into_iter().collect();
    servers.sort_unstable();
    servers.dedup();
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(range: std::ops::RangeInclusive<u64>) -> Vec<ServerId> {
        range.map(ServerId).collect()
    }

    #[test]
    fn a_majority_is_more_than_half() {
        for (n, needed) in [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)] {
            let quorum = QuorumSet::majority(ids(1..=n));
            assert!(quorum.has_quorum(|s| s.0 <= needed), "{n}");
            assert!(!quorum.has_quorum(|s| s.0 < needed), "{n}");
        }
        assert!(!QuorumSet::majority([]).has_quorum(|_| true));
    }

    #[test]
    fn two_sets_need_both_majorities() {
        let quorum = QuorumSet::joint(ids(1..=3), ids(3..=5));
        assert!(!quorum.has_quorum(|s| s.0 <= 3));
        assert!(quorum.has_quorum(|s| (2..=4).contains(&s.0)));
        assert_eq!(quorum.voters(), ids(1..=5));
    }

    #[test]
    fn the_watermark_is_what_a_majority_reached() {
        let quorum = QuorumSet::majority(ids(1..=3));
        assert_eq!(quorum.watermark(|s| s.0 * 10), 20);
        assert_eq!(QuorumSet::majority(ids(1..=4)).watermark(|s| s.0 * 10), 20);
        assert_eq!(QuorumSet::majority(ids(1..=1)).watermark(|s| s.0 * 10), 10);
        assert_eq!(QuorumSet::joint(ids(1..=3), ids(4..=6)).watermark(|s| s.0), 2);
        assert_eq!(QuorumSet::majority([]).watermark(|s| s.0), 0);
    }
}
