//! The recipes, as they are, on the client, as it is, in the simulated world: real servers' machines on virtual time, with
//! crashes, power cuts, partitions, pauses and changes of leaders; lines that are cut and stand still; and clients that are
//! suspended for longer than their sessions last. Everything follows from a seed.
//!
//! ```text
//! cargo test --test guests                        # some seeds
//! SEEDS=5000 cargo test --test guests             # more of them
//! SEED=17 cargo test --test guests -- --nocapture # one again
//! ```
//!
//! What is judged, with what is told by the tree and by what guests were told:
//! - two may believe that they hold, but no guarded write of a stale one passes, and none believes it beyond its deadline;
//! - no queue loses an item that nobody took, none gives one twice, and of a work queue each is done exactly once;
//! - no counter adds twice, and no number is given out twice;
//! - views of equal epochs are equal, snapshots are of one state, barriers hold.

#[path = "guests/host.rs"]
mod host;
#[path = "guests/ledger.rs"]
mod ledger;
#[path = "guests/programs.rs"]
mod programs;

use std::collections::BTreeMap;

use corral_sim::faults::Fault;
use corral_sim::options::SimOptions;
use corral_sim::rng::Rng;
use host::Ended;
use programs::KINDS;

/// Seeds of an ordinary run: each kind of program gets as many.
const SEEDS: u64 = 12 * KINDS.len() as u64;

/// Which faults of servers there are: those that the promises of recipes hold through. (Wall clocks that jump make leases
/// end early, lost folders are the business of the ensemble's own runs.)
const FAULTS: [(Fault, (u64, u64)); 9] = [
    (Fault::Crash, (5, 20)),
    (Fault::StepCrash, (5, 20)),
    (Fault::PowerLoss, (20, 60)),
    (Fault::Pause, (4, 15)),
    (Fault::Partition, (4, 15)),
    (Fault::Clog, (10, 30)),
    (Fault::Reset, (2, 10)),
    (Fault::SlowDisk, (10, 30)),
    (Fault::Admin, (5, 20)),
];

/// Lines of a failed run that are shown.
const TAIL: usize = 60;

fn options(seed: u64) -> SimOptions {
    let mut options = SimOptions::draw(seed);
    let mut rng = Rng::stream(seed, "what guests find");
    options.voters = *rng.pick(&[3, 3, 3, 5]);
    options.observers = *rng.pick(&[0, 0, 1]);
    options.safety_ms = options.sync_timeout_ms * rng.between(20, 50);
    options.window_bytes = options.window_bytes.max(2_000);
    options.learner_window_bytes = options.learner_window_bytes.max(2_000);
    options.message_bytes = options.message_bytes.max(1_000);
    options.counter_limit = u32::MAX - (1 << 24);
    options.load.session_timeout_ms = options.sync_timeout_ms * rng.between(3, 8);
    options.load.unread_bytes = 4 << 20;
    options.faults.overdraw = false;
    options.faults.recovery_per_mille = 0;
    options.faults.restart_ms = options.sync_timeout_ms * rng.between(0, 6) + 50;
    options.faults.clock_rate = *rng.pick(&[(1000, 1000), (970, 1030)]);
    options.faults.every_ms.clear();
    for (fault, (from, to)) in FAULTS {
        if rng.chance(400) {
            options.faults.every_ms.insert(fault, options.sync_timeout_ms * rng.between(from, to));
        }
    }
    options
}

fn run(seed: u64) -> (&'static str, Ended) {
    let kind = &KINDS[(seed % KINDS.len() as u64) as usize];
    (kind.name, (kind.run)(options(seed)))
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

fn explain(seed: u64, kind: &str, ended: &Ended) -> String {
    let failure = ended.failure.as_deref().unwrap_or("nothing wrong");
    let tail = ended.tail.len().saturating_sub(TAIL);
    format!(
        "{}\n{kind} at {} ms: {failure}\nrun it again: SEED={seed} cargo test --test guests",
        ended.tail[tail..].join("\n"),
        ended.virtual_ms
    )
}

#[test]
fn whatever_fails_every_recipe_keeps_its_promise() {
    if let Some(seed) = number("SEED") {
        let (kind, ended) = run(seed);
        assert!(ended.failure.is_none(), "{}", explain(seed, kind, &ended));
        println!("{kind}: {} ms, {:?}", ended.virtual_ms, ended.reached);
        return;
    }
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let runs: Vec<(u64, &'static str, Ended)> = std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|part| {
                scope.spawn(move || {
                    let of_part = (1..=seeds).filter(|seed| seed % threads == part);
                    of_part.map(|seed| (seed, run(seed))).map(|(seed, (kind, ended))| (seed, kind, ended)).collect()
                })
            })
            .collect();
        parts.into_iter().flat_map(|part| -> Vec<_> { part.join().expect("runs catch their panics") }).collect()
    });
    let mut failed: Vec<&(u64, &'static str, Ended)> =
        runs.iter().filter(|(.., ended)| ended.failure.is_some()).collect();
    failed.sort_by_key(|(seed, ..)| *seed);
    if let Some((seed, kind, ended)) = failed.first() {
        let line = |(seed, kind, ended): &&(u64, &str, Ended)| {
            format!("SEED={seed} ({kind}): {}", ended.failure.as_deref().unwrap_or_default())
        };
        let all: Vec<String> = failed.iter().map(line).collect();
        panic!("{}\nfailed:\n{}", explain(*seed, kind, ended), all.join("\n"));
    }
    // A run in which nothing happens proves nothing.
    let mut reached: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (_, kind, ended) in &runs {
        for (what, often) in &ended.reached {
            *reached.entry((kind, what)).or_default() += often;
            *reached.entry(("", what)).or_default() += often;
        }
    }
    if seeds >= SEEDS {
        for kind in &KINDS {
            for what in kind.goals {
                assert!(
                    reached.contains_key(&(kind.name, what)),
                    "no run of {} reached {what:?}: {reached:?}",
                    kind.name
                );
            }
        }
        for what in [
            "a guest slept longer than its session",
            "a line was cut",
            "a line stood still",
            "a session ended",
            "an observer served a guest",
            "a stale write was refused",
        ] {
            assert!(reached.contains_key(&("", what)), "no run reached {what:?}: {reached:?}");
        }
    }
    let virtual_ms: u64 = runs.iter().map(|(.., ended)| ended.virtual_ms).sum();
    println!("{seeds} runs, {} virtual minutes", virtual_ms / 60_000);
    for ((kind, what), often) in reached {
        println!("{often:>8} {kind:<16} {what}");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 1..=KINDS.len() as u64 {
        let ((kind, first), (_, second)) = (run(seed), run(seed));
        assert_eq!(
            (first.hash, first.virtual_ms, &first.reached),
            (second.hash, second.virtual_ms, &second.reached),
            "seed {seed} ({kind})"
        );
    }
}
