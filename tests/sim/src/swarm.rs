//! Many seeds on all cores.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::trace::Verbosity;
use crate::{Report, simulate};

/// What many runs together did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Runs.
    pub seeds: u64,
    /// Events of all runs.
    pub events: u64,
    /// Entries committed in all runs.
    pub committed: u64,
    /// Answered calls of all runs.
    pub answered: u64,
    /// Virtual time of all runs, ms.
    pub virtual_ms: u64,
    /// What was reached: in how many runs, how often.
    pub coverage: BTreeMap<String, (u64, u64)>,
    /// Seeds that failed, ascending.
    pub failures: Vec<Failure>,
}

/// A run that broke an invariant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// What did not hold.
    pub invariant: String,
    /// What was seen.
    pub text: String,
}

impl Summary {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.events += report.events;
        self.committed += report.committed as u64;
        self.answered += report.answered;
        self.virtual_ms += report.virtual_ms;
        for (what, times) in &report.coverage {
            let (runs, total) = match self.coverage.get_mut(*what) {
                Some(row) => row,
                None => self.coverage.entry((*what).to_owned()).or_default(),
            };
            *runs += 1;
            *total += times;
        }
        if let Some(violation) = &report.violation {
            self.failures.push(Failure {
                seed: report.seed,
                invariant: violation.invariant.to_owned(),
                text: violation.text.clone(),
            });
        }
    }

    /// Adds what other runs did.
    pub fn merge(&mut self, other: &Summary) {
        self.seeds += other.seeds;
        self.events += other.events;
        self.committed += other.committed;
        self.answered += other.answered;
        self.virtual_ms += other.virtual_ms;
        for (what, (runs, times)) in &other.coverage {
            let row = self.coverage.entry(what.clone()).or_default();
            row.0 += runs;
            row.1 += times;
        }
        self.failures.extend(other.failures.iter().cloned());
        self.failures.sort();
    }
}

/// Runs `count` seeds from `from` on, on `threads` threads; `progress` is told after each. Stops early after
/// `failures_max` failures.
pub fn swarm(
    from: u64,
    count: u64,
    threads: usize,
    failures_max: usize,
    progress: impl Fn(&Summary, Option<&Failure>) + Sync,
) -> Summary {
    let next = AtomicU64::new(from);
    let enough = AtomicBool::new(false);
    let summary = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count {
                        break;
                    }
                    let report = simulate(seed, Verbosity::Quiet);
                    let mut summary = summary.lock().expect("no thread panics while it holds the summary");
                    summary.add(&report);
                    if summary.failures.len() >= failures_max {
                        enough.store(true, Ordering::Relaxed);
                    }
                    let new = report.violation.is_some().then(|| summary.failures.last()).flatten();
                    progress(&summary, new);
                }
            });
        }
    });
    let mut summary = summary.into_inner().expect("no thread panics while it holds the summary");
    summary.failures.sort();
    summary
}
