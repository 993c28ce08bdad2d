//! Every planted bug is found, by the invariant that is there for it, within a bounded number of seeds from most places.
//!
//! `ZOO_RANGES=n` begins at n places instead of three; `ZOO=Z3,Z14` hunts only these.

use corral_sim::zoo::{Hunt, SEEDS_MAX, Switch, found_by, hunt_all, switch, table};

/// Places to begin at in an ordinary run: the median is of so many.
const RANGES: u64 = 3;

fn switches() -> Vec<Switch> {
    let Ok(names) = std::env::var("ZOO") else { return Switch::ALL.to_vec() };
    names.split(',').map(|name| switch(name.trim()).unwrap_or_else(|| panic!("there is no switch {name:?}"))).collect()
}

fn wrong(hunt: &Hunt) -> Vec<String> {
    let name = format!("{} {:?}", hunt.switch.number(), hunt.switch);
    let mut wrong = Vec::new();
    if hunt.median().is_none() {
        let froms = hunt.ranges.iter().enumerate().filter(|(_, catch)| catch.is_none());
        let froms: Vec<String> = froms.map(|(range, _)| (1 + range as u64 * SEEDS_MAX).to_string()).collect();
        wrong.push(format!("{name}: not found by {SEEDS_MAX} seeds from {} on", froms.join(" nor from ")));
    }
    for catch in hunt.unexpected() {
        let (seed, expected) = (catch.seed, found_by(hunt.switch));
        wrong.push(format!("{name}: seed {seed}: {}, not {expected:?}: {}", catch.invariant, catch.text));
    }
    wrong
}

#[test]
fn every_planted_bug_is_found_by_its_invariant() {
    let ranges = std::env::var("ZOO_RANGES").map_or(RANGES, |n| n.parse().expect("ZOO_RANGES must be a number"));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // Panics of a run are violations like others; the default hook would print each.
    std::panic::set_hook(Box::new(|_| {}));
    let hunts = hunt_all(&switches(), ranges, threads, |switch, catch| match catch {
        Some(c) => eprintln!("{:>4} {switch:?}: {} seeds, {}: {}", switch.number(), c.seeds, c.invariant, c.text),
        None => eprintln!("{:>4} {switch:?}: NOT FOUND", switch.number()),
    });
    let _ = std::panic::take_hook();
    println!("{}", table(&hunts));
    let wrong: Vec<String> = hunts.iter().flat_map(wrong).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
