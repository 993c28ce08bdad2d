//! Latencies, counted in buckets whose width grows with the value.

use std::time::Duration;

/// Buckets for each doubling: a value is known to within 1/64.
const STEPS: u64 = 64;
const STEPS_LOG2: u32 = STEPS.ilog2();

/// Counts of latencies, to within 1.6 %.
#[derive(Clone, Default)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

/// The bucket of a value: its own below `2 * STEPS`, then `STEPS` buckets for each doubling.
fn bucket(nanos: u64) -> usize {
    let shift = (u64::BITS - nanos.leading_zeros()).saturating_sub(STEPS_LOG2 + 1);
    (u64::from(shift) * STEPS + (nanos >> shift)) as usize
}

/// The highest value of a bucket.
fn highest(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / STEPS).saturating_sub(1);
    let step = bucket - shift * STEPS;
    ((step + 1) << shift) - 1
}

impl Histogram {
    /// Counts one latency.
    pub fn add(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let bucket = bucket(nanos);
        if bucket >= self.buckets.len() {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.count += 1;
        self.max = self.max.max(nanos);
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Histogram) {
        if self.buckets.len() < other.buckets.len() {
            self.buckets.resize(other.buckets.len(), 0);
        }
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The smallest latency that this share (0 to 1) of all does not exceed; zero if nothing was counted.
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = ((self.count as f64 * share).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(highest(index).min(self.max));
            }
        }
        Duration::ZERO
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_within_its_bucket_and_a_64th() {
        for exponent in 0..40 {
            for offset in [0u64, 1, 3, 77] {
                let value = (1u64 << exponent) + offset;
                let top = highest(bucket(value));
                assert!(top >= value && top - value <= value / 64, "{value}: {top}");
                assert_eq!(bucket(top), bucket(value));
                assert_eq!(bucket(top + 1), bucket(value) + 1);
            }
        }
    }

    #[test]
    fn quantiles_are_ranks() {
        let mut a = Histogram::default();
        let mut b = Histogram::default();
        for i in 1..=100 {
            if i % 2 == 0 { &mut a } else { &mut b }.add(Duration::from_nanos(i));
        }
        a.merge(&b);
        assert_eq!(a.count(), 100);
        assert_eq!(a.quantile(0.5), Duration::from_nanos(50));
        assert_eq!(a.quantile(0.99), Duration::from_nanos(99));
        assert_eq!(a.quantile(1.0), Duration::from_nanos(100));
        assert_eq!(a.max(), Duration::from_nanos(100));
    }

    #[test]
    fn nothing_counted_is_zero() {
        assert_eq!(Histogram::default().quantile(0.5), Duration::ZERO);
    }
}
