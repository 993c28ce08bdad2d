//! The simulator: whole ensembles of the real protocol machine, log, tree, sessions and watches on virtual time, network
//! and disk, in one thread, from a seed.
//!
//! # Layout
//! - [`options`]: what a seed draws. [`rng`], [`schedule`]: chance and time.
//! - [`world`]: what happens next. [`server`], [`disk`], [`network`]: what it happens to. [`faults`]: what goes wrong;
//!   `succession`: while one leader follows another.
//! - [`client`], [`workload`], [`follower`], [`frontend`]: clients, what they ask for, and their connections.
//! - [`guests`]: clients from outside, real ones.
//! - [`checks`]: the omniscient observer, one property a file. [`history`]: what clients were told, judged by replay.
//! - [`linearizability`]: the same without the log, for histories of real processes too.
//! - `zoo` (a feature): bugs planted on purpose, and the hunt for them.
//! - [`trace`]: the record of a run, and its hash.
//! - [`swarm`], [`journal`], [`goals`]: many runs, what was run so far, and what they must have reached. [`shrink`]: a
//!   failure made smaller.
//!
//! A run has two phases: in the first, faults strike and nothing wrong may happen (safety); then faults end, and
//! everything must come to rest within a bound (liveness).

pub mod checks;
mod client;
mod disk;
pub mod faults;
mod follower;
mod frontend;
pub mod goals;
pub mod guests;
pub mod history;
pub mod journal;
pub mod linearizability;
mod network;
pub mod options;
pub mod rng;
pub mod schedule;
mod server;
pub mod shrink;
mod succession;
pub mod swarm;
pub mod trace;
mod workload;
mod world;
#[cfg(feature = "zoo")]
pub mod zoo;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;

use checks::Violation;
use faults::FaultId;
use options::SimOptions;
use trace::Verbosity;
use world::World;

/// How one run ended.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What it drew.
    pub options: SimOptions,
    /// What did not hold, if anything.
    pub violation: Option<Violation>,
    /// Hash of all events.
    pub hash: u64,
    /// Events.
    pub events: u64,
    /// Virtual time, ms.
    pub virtual_ms: u64,
    /// Entries committed.
    pub committed: usize,
    /// Calls of clients that were answered.
    pub answered: u64,
    /// What was reached, how often.
    pub coverage: BTreeMap<&'static str, u64>,
    /// The faults whose time came.
    pub struck: BTreeSet<FaultId>,
    /// The last lines of the trace.
    pub tail: Vec<String>,
}

impl Report {
    /// What an engineer needs to know of a failure.
    pub fn explain(&self) -> String {
        let Some(violation) = &self.violation else { return format!("seed {}: nothing wrong", self.seed) };
        format!(
            "{}\n\nseed {} at {} ms after {} events: {}\n  {}\n  {}\nrun it again: cargo run -p corral-sim -- run --seed {}{} --trace\n",
            self.tail.join("\n"),
            self.seed,
            self.virtual_ms,
            self.events,
            violation.invariant,
            violation.text,
            self.options,
            self.seed,
            self.options.reduction
        )
    }
}

/// Runs one seed.
pub fn simulate(seed: u64, verbosity: Verbosity) -> Report {
    simulate_with(SimOptions::draw(seed), verbosity)
}

/// Runs one seed with options that were changed.
pub fn simulate_with(options: SimOptions, verbosity: Verbosity) -> Report {
    let seed = options.seed;
    let mut world = World::new(options.clone(), verbosity);
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| world.run()));
    let violation = match result {
        Ok(Ok(())) => None,
        Ok(Err(violation)) => Some(violation),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                .unwrap_or_default();
            Some(Violation { invariant: "no panic", text })
        }
    };
    Report {
        seed,
        options,
        violation,
        hash: world.trace().hash(),
        events: world.trace().events(),
        virtual_ms: world.now_ms(),
        committed: world.committed(),
        answered: world.answered(),
        coverage: world.trace().coverage().clone(),
        struck: world.struck().clone(),
        tail: world.trace().tail().map(str::to_owned).collect(),
    }
}

/// Runs a seed that failed once more, and keeps the last lines of its trace.
pub fn explain(seed: u64) -> String {
    simulate(seed, Verbosity::Tail).explain()
}
