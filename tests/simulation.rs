//! The deterministic simulator on many seeds. `SEEDS=n` runs so many, `SEED=n` runs one again.

use corral_sim::faults::Fault;
use corral_sim::options::SimOptions;
use corral_sim::swarm::swarm;
use corral_sim::trace::Verbosity;
use corral_sim::{explain, goals, simulate, simulate_with};

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

/// Whoever applies the change feed to an empty map has what the tree holds at every bookmark, over crashes, power cuts,
/// partitions, pauses and lost folders of servers, changes of leaders, and sessions that end: through an hour of it.
#[test]
fn a_follower_of_the_feed_has_the_tree_at_every_bookmark_through_an_hour_of_chaos() {
    const HOUR_MS: u64 = 60 * 60 * 1000;
    let mut options = SimOptions::draw(number("SEED").unwrap_or(5_000));
    options.voters = 3;
    options.observers = 1;
    options.safety_ms = HOUR_MS;
    options.sync_timeout_ms = 1_000;
    options.init_timeout_ms = 3_000;
    options.ping_interval_ms = 200;
    options.flush_entries = 50;
    options.counter_limit = u32::MAX - (1 << 24);
    options.followers = 3;
    // Some are away for longer than that: they must be told.
    options.feed = (20_000, 20_000);
    let faults = [
        (Fault::Crash, 60),
        (Fault::DiskCrash, 90),
        (Fault::OutputCrash, 90),
        (Fault::InstallCrash, 200),
        (Fault::PowerLoss, 300),
        (Fault::Pause, 60),
        (Fault::Partition, 40),
        (Fault::Reset, 20),
        (Fault::LostFolder, 600),
        (Fault::SlowDisk, 120),
        (Fault::Admin, 120),
    ];
    options.faults.every_ms = faults.into_iter().map(|(fault, seconds)| (fault, seconds * 1_000)).collect();
    options.faults.overdraw = false;
    options.faults.restart_ms = 10_000;
    options.load.clients = 3;
    options.load.think_ms = 400;
    options.load.pipeline = 4;
    options.load.paths = 12;
    options.load.session_timeout_ms = 6_000;
    options.load.cut_ms = 15_000;
    // All of them write.
    (options.load.readers_per_mille, options.load.told_per_mille) = (0, 0);
    options.load.silence_ms = 120_000;
    let report = simulate_with(options, Verbosity::Tail);
    assert!(report.violation.is_none(), "{}", report.explain());
    let reached = |what: &str| report.coverage.get(what).copied().unwrap_or(0);
    let compared = reached("follower compared");
    println!(
        "{} ms, {} entries, {} leaders; followers: {} changes, {compared} comparisons, {} gaps",
        report.virtual_ms,
        report.committed,
        reached("leader established"),
        reached("follower told of changes"),
        reached("follower told of a gap"),
    );
    assert!(report.virtual_ms >= HOUR_MS);
    assert!(compared > 1_000 && reached("leader established") > 20 && reached("follower told of a gap") > 0);
}
