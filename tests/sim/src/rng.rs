//! The one source of chance. Written out here, so that a seed means the same run whatever happens to libraries.

/// A small generator (SplitMix64: a counter and a mixing function).
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// The stream called `name` of a seed. Streams of one seed are independent: what the workload draws does not move
    /// what the network draws.
    pub fn stream(seed: u64, name: &str) -> Rng {
        let mut rng = Rng { state: seed };
        let mut state = rng.next();
        for byte in name.bytes() {
            rng.state = state ^ u64::from(byte);
            state = rng.next();
        }
        Rng { state }
    }

    /// The next 64 bits.
    #[expect(clippy::should_implement_trait, reason = "a generator has no end and is no iterator")]
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { ((u128::from(self.next()) * u128::from(n)) >> 64) as u64 }
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// A number from `low` to `high` whose magnitude is uniform: small ones as often as large ones.
    pub fn magnitude(&mut self, low: u64, high: u64) -> u64 {
        let (low, high) = (low.max(1), high.max(low.max(1)));
        let doublings = (high / low).ilog2();
        let top = (low << self.below(u64::from(doublings) + 1)).saturating_mul(2).min(high);
        self.between(low, top.max(low))
    }

    /// True `per_mille` times of a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// Brings items into some order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Rng;

    #[test]
    fn streams_of_one_seed_differ_and_repeat() {
        let draw = |name| {
            let mut rng = Rng::stream(7, name);
            (0..4).map(|_| rng.next()).collect::<Vec<_>>()
        };
        assert_eq!(draw("network"), draw("network"));
        assert_ne!(draw("network"), draw("faults"));
    }

    #[test]
    fn draws_stay_in_their_bounds() {
        let mut rng = Rng::stream(1, "bounds");
        for _ in 0..1000 {
            assert!(rng.below(3) < 3);
            assert!((5..=9).contains(&rng.between(5, 9)));
            assert!((10..=100_000).contains(&rng.magnitude(10, 100_000)));
            assert!((1..=1).contains(&rng.magnitude(1, 1)));
        }
        assert_eq!(rng.below(0), 0);
    }
}
