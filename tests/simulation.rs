//! The deterministic simulator on many seeds. `SEEDS=n` runs so many, `SEED=n` runs one again.

use corral_sim::swarm::swarm;
use corral_sim::trace::Verbosity;
use corral_sim::{explain, goals, simulate};

/// Seeds of an ordinary test run.
const SEEDS: u64 = 500;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

#[test]
fn whatever_fails_no_seed_breaks_an_invariant() {
    if let Some(seed) = number("SEED") {
        let report = simulate(seed, Verbosity::Tail);
        assert!(report.violation.is_none(), "{}", report.explain());
        return;
    }
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let summary = swarm(1, seeds, threads, 5, |_, _| {});
    if let Some(failure) = summary.failures.first() {
        let all: Vec<String> = summary.failures.iter().map(|f| format!("SEED={}: {}", f.seed, f.invariant)).collect();
        panic!("{}\nfailed: {}", explain(failure.seed), all.join(", "));
    }
    // A run in which nothing happens proves nothing.
    let missing = goals::missing(&summary.coverage, seeds);
    assert!(missing.is_empty(), "no seed of {seeds} reached: {missing:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 1..=5 {
        let first = simulate(seed, Verbosity::Quiet);
        let second = simulate(seed, Verbosity::Tail);
        assert_eq!((first.hash, first.events), (second.hash, second.events), "seed {seed}");
    }
}

#[test]
fn different_seeds_are_different_runs() {
    assert_ne!(simulate(1, Verbosity::Quiet).hash, simulate(2, Verbosity::Quiet).hash);
}
