//! The deterministic simulator on many seeds. `SEEDS=n` runs so many, `SEED=n` runs one again.

use corral_sim::swarm::swarm;
use corral_sim::trace::Verbosity;
use corral_sim::{explain, simulate};

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
    if let Some((seed, _, _)) = summary.failures.first() {
        let all: Vec<String> = summary.failures.iter().map(|(seed, what, _)| format!("SEED={seed}: {what}")).collect();
        panic!("{}\nfailed: {}", explain(*seed), all.join(", "));
    }
    // A run in which nothing happens proves nothing.
    if seeds >= SEEDS {
        for goal in GOALS {
            assert!(summary.coverage.contains_key(goal), "no seed reached: {goal}");
        }
    }
}

/// What some seed must reach.
const GOALS: [&str; 20] = [
    "leader established",
    "leader stepped down",
    "sync plan: diff",
    "sync plan: truncate",
    "sync plan: snapshot",
    "snapshot installed",
    "log truncated",
    "log trimmed",
    "log read for a learner",
    "power cut in a disk operation",
    "power cut during recovery",
    "folder lost",
    "amnesiac became a member again",
    "message of a broken stream arrived",
    "promise rejected",
    "session moved",
    "write sent again",
    "expiry proposed",
    "watch fired",
    "sync answered",
];

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
