//! Corral against a real ZooKeeper: one program of requests, valid and not, from several connections, goes to both, and
//! everything that a client can see is compared (see `differential/`).
//!
//! ```text
//! cargo test --test differential                                      # some seeds
//! SEEDS=200 OPS=2000 cargo test --test differential -- --nocapture     # the long run
//! FIRST=101 SEEDS=50 cargo test --test differential                   # a part of it: seeds 101 to 150
//! SEED=17 cargo test --test differential                               # one again, whole
//! SERVERS=3 cargo test --test differential                             # an ensemble of ours against one of theirs
//! ZOOKEEPER_CLASSPATH=/opt/zookeeper/lib/* cargo test --test differential     # another release
//! ```
//!
//! Without Java and ZooKeeper nothing is compared, and the test says so.

#![allow(
    clippy::disallowed_methods,
    reason = "how long to wait for real servers; nothing that is compared sees a clock"
)]

#[path = "differential/bytes.rs"]
mod bytes;
#[path = "differential/generate.rs"]
mod generate;
#[path = "differential/known.rs"]
mod known;
#[path = "differential/peers.rs"]
mod peers;
#[path = "differential/program.rs"]
mod program;
#[path = "differential/shrink.rs"]
mod shrink;
#[path = "differential/side.rs"]
mod side;
#[path = "differential/words.rs"]
mod words;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use known::{Known, Version};
use peers::{Corral, Settings, ZooKeeper};
use program::Step;
use side::{Coverage, Transcript};
use tokio::runtime::Runtime;

/// Seeds and requests of an ordinary test run.
const SEEDS: u64 = 5;
const OPS: usize = 2_000;

/// Time to make a failing program shorter (`SHRINK`, seconds).
const SHRINK: Duration = Duration::from_secs(120);

/// How often a program is run again because ZooKeeper left a request without an answer, in a run.
///
/// 3.8 does so now and then, when it is the one voter of an ensemble (as for local sessions): the same program runs to its
/// end the next time. What it never answers stays a difference, and so does what Corral does not answer.
const HANGS_MAX: usize = 4;

/// Steps before a difference that are shown.
const TAIL: usize = 25;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

/// How both servers are configured for a seed.
fn settings(seed: u64) -> Settings {
    Settings {
        enforces_quota: seed.is_multiple_of(3),
        extended_types: seed % 5 != 4,
        expires: seed % 4 == 1,
        reaps: seed % 4 == 2,
        local: match seed % 8 {
            3 => Some(true),
            4 => Some(false),
            _ => None,
        },
    }
}

struct Tester {
    runtime: Runtime,
    version: Version,
    known: Known,
    servers: usize,
}

/// Both sides of a run.
struct Both {
    theirs: Transcript,
    ours: Transcript,
    coverage: Coverage,
}

impl Both {
    /// The first step that differs.
    fn difference(&self) -> Option<usize> {
        let longer = self.theirs.len().max(self.ours.len());
        (0..longer).find(|&at| self.theirs.get(at) != self.ours.get(at))
    }

    /// The difference is that ZooKeeper did not answer, and Corral did.
    fn only_zookeeper_hangs(&self) -> bool {
        let hangs = |side: &Transcript, at: usize| side.get(at).is_some_and(|lines| side::hangs(lines));
        self.difference().is_some_and(|at| hangs(&self.theirs, at) && !hangs(&self.ours, at))
    }
}

impl Tester {
    fn new() -> Tester {
        let runtime = Runtime::new().expect("a runtime");
        let version = ZooKeeper::start(settings(0)).version;
        let servers = number("SERVERS").map_or(1, |n| n as usize).max(1);
        Tester { runtime, version, known: Known::of(version), servers }
    }

    /// Runs a program against fresh servers; again if ZooKeeper alone hangs.
    fn run(&self, settings: Settings, program: &[Step]) -> Both {
        let mut both = self.run_once(settings, program);
        for _ in 0..HANGS_MAX {
            if !both.only_zookeeper_hangs() {
                break;
            }
            eprintln!("ZooKeeper left a request without an answer in step {}: again", both.theirs.len() - 1);
            both = self.run_once(settings, program);
        }
        both
    }

    fn run_once(&self, settings: Settings, program: &[Step]) -> Both {
        let (ours, theirs) = std::thread::scope(|scope| {
            let ours = scope.spawn(|| {
                // Local sessions are of one server of an ensemble.
                let local = settings.local.is_some();
                let corral = Corral::start(&self.runtime, self.servers.max(1 + usize::from(local)), settings);
                let addresses = if local { &corral.addresses[..1] } else { &corral.addresses[..] };
                let ran = side::run(addresses, generate::SLOTS, program, &self.known, local);
                corral.stop(&self.runtime);
                ran
            });
            let zookeeper = ZooKeeper::start(settings);
            let theirs =
                side::run(&[zookeeper.address], generate::SLOTS, program, &self.known, settings.local.is_some());
            (ours.join().expect("Corral's side"), theirs)
        });
        Both { theirs: theirs.0, ours: ours.0, coverage: theirs.1 }
    }

    fn program(&self, seed: u64, operations: usize) -> Vec<Step> {
        generate::program(seed, operations, &self.known, self.servers, settings(seed))
    }

    /// What differs, in the shortest program found.
    fn explain(&self, seed: u64, operations: usize, program: Vec<Step>, both: Both) -> String {
        let at = both.difference().expect("called for a difference");
        let budget = number("SHRINK").map_or(SHRINK, Duration::from_secs);
        let mut cut = program;
        cut.truncate(at + 1);
        let mut last = both;
        let mut shown = cut.clone();
        let shorter = shrink::shrink(cut, budget, |candidate| {
            let both = self.run(settings(seed), candidate);
            let Some(at) = both.difference() else { return false };
            shown = candidate[..=at].to_vec();
            last = both;
            true
        });
        // `shown` belongs to `last`; `shorter` may go on behind the difference.
        let at = last.difference().expect("it differs");
        let mut text = format!(
            "seed {seed}: Corral and ZooKeeper {} differ in step {at} of {}\n  again: SEED={seed} OPS={operations}\n  {:?}\n",
            self.version,
            shorter.len(),
            settings(seed),
        );
        for (index, step) in shown.iter().enumerate().skip((at + 1).saturating_sub(TAIL)) {
            writeln!(text, "  {index:4} {step:?}").expect("a string");
            for line in last.theirs.get(index).into_iter().flatten() {
                writeln!(text, "         | {line}").expect("a string");
            }
        }
        let nothing = Vec::new();
        let theirs = last.theirs.get(at).unwrap_or(&nothing);
        let ours = last.ours.get(at).unwrap_or(&nothing);
        let same = theirs.iter().zip(ours).take_while(|(a, b)| a == b).count();
        writeln!(text, "  the first {same} lines of the last step are the same; then").expect("a string");
        for (who, lines) in [("ZooKeeper", theirs), ("Corral", ours)] {
            for line in lines.iter().skip(same) {
                writeln!(text, "  {who:>9}: {line}").expect("a string");
            }
        }
        text
    }
}

#[test]
fn corral_cannot_be_told_from_zookeeper() {
    if let Some(why) = ZooKeeper::missing() {
        eprintln!("\nSKIPPED: Corral was NOT compared with a real ZooKeeper: {why}.");
        eprintln!("To compare: apt-get install --no-install-recommends libzookeeper-java default-jre-headless\n");
        return;
    }
    let tester = Tester::new();
    let operations = number("OPS").map_or(OPS, |n| n as usize);
    let seeds: Vec<u64> = match number("SEED") {
        Some(seed) => vec![seed],
        None => {
            let first = number("FIRST").unwrap_or(1);
            (first..first + number("SEEDS").unwrap_or(SEEDS)).collect()
        }
    };
    let begin = Instant::now();
    let (mut coverage, mut failures) = (Coverage::new(), Vec::new());
    for &seed in &seeds {
        let program = tester.program(seed, operations);
        let both = tester.run(settings(seed), &program);
        for (what, count) in &both.coverage {
            *coverage.entry(what.clone()).or_default() += count;
        }
        if both.difference().is_some() {
            let text = tester.explain(seed, operations, program, both);
            eprintln!("{text}");
            failures.push(seed);
            if failures.len() >= number("FAILURES").unwrap_or(1) as usize {
                break;
            }
        }
        eprintln!("seed {seed} of {}: {} failed, {:?}", seeds.len(), failures.len(), begin.elapsed());
    }
    eprintln!("ZooKeeper {}; allowed for:", tester.version);
    for known in known::list().iter().filter(|known| tester.known.has(known.name)) {
        eprintln!("  {}: {}", known.name, known.reason);
    }
    for (what, count) in &coverage {
        eprintln!("  {count:7} {what}");
    }
    assert!(failures.is_empty(), "differences, explained above, in seeds {failures:?}");
    // A run in which nothing happens proves nothing.
    if seeds.len() as u64 >= SEEDS && operations >= OPS {
        let skipped: Vec<&str> = GOALS_OF_LATER_RELEASES
            .iter()
            .filter(|(name, _)| tester.known.has(name))
            .flat_map(|(_, goals)| goals.iter().copied())
            .collect();
        let missing: Vec<String> = GOALS
            .iter()
            .flat_map(|(what, outcomes)| outcomes.split_whitespace().map(move |outcome| format!("{what}/{outcome}")))
            .filter(|goal| !skipped.contains(&goal.as_str()) && !coverage.contains_key(goal))
            .collect();
        assert!(missing.is_empty(), "never reached: {missing:?}");
    }
}

#[test]
fn every_known_difference_has_a_name_of_its_own_and_a_reason() {
    let list = known::list();
    let names: std::collections::BTreeSet<&str> = list.iter().map(|d| d.name).collect();
    assert_eq!(names.len(), list.len());
    assert!(list.iter().all(|d| d.reason.len() > 40 && d.reason.ends_with(']')), "a reason names its section");
    let (old, new) = (Known::of(Version(3, 8, 0)), Known::of(Version(3, 9, 5)));
    assert!(old.has("event-zxid") && !new.has("event-zxid"));
    assert!(old.has("kills-internal") && new.has("kills-internal"));
}

#[test]
fn a_failing_program_is_made_as_short_as_its_fault() {
    let program: Vec<Step> = (0..100).map(|slot| Step::Drop { slot }).collect();
    let has = |steps: &[Step], wanted: usize| steps.iter().any(|step| step.slot() == Some(wanted));
    let mut tries = 0;
    let shorter = shrink::shrink(program, Duration::from_secs(60), |steps| {
        tries += 1;
        has(steps, 17) && has(steps, 61) && has(steps, 99)
    });
    let slots: Vec<usize> = shorter.iter().filter_map(Step::slot).collect();
    assert_eq!(slots, [17, 61, 99], "in {tries} tries");
}

#[test]
fn requests_that_kill_a_server_are_recognized_wherever_they_stand() {
    use bytes::Out;
    let create = |flags: i32, ttl: i64| Out::default().string("/a").string("").int(0).int(flags).long(ttl).0;
    for (flags, ttl, deadly) in [(0, -1, true), (3, -7, true), (7, -1, true), (5, -1, false), (0, 5, false)] {
        let body = create(flags, ttl);
        assert_eq!(side::is_deadly(program::op::CREATE_TTL, &body), deadly, "{flags} {ttl}");
        let multi = Out::default().int(13).byte(0).int(-1).string("/x").int(0).int(21).byte(0).int(-1).raw(&body).0;
        assert_eq!(side::is_deadly(program::op::MULTI, &multi), deadly, "{flags} {ttl} in a multi");
    }
    assert!(side::is_deadly(20, b"") && side::is_deadly(-10, b""));
}

#[test]
fn programs_ask_for_everything_and_kill_nobody() {
    let known = Known::of(Version(3, 9, 5));
    let mut opcodes = std::collections::BTreeSet::new();
    for seed in 0..20 {
        for step in generate::program(seed, 1_000, &known, 1, settings(seed)) {
            let Step::Ask { requests, .. } = step else { continue };
            for request in requests {
                assert!(!side::is_deadly(request.opcode, &request.body), "{request:?}");
                opcodes.insert(request.opcode);
            }
        }
        let again = || generate::program(seed, 50, &known, 1, settings(seed));
        let (one, two) = (again(), again());
        assert_eq!(format!("{one:?}"), format!("{two:?}"), "a seed is one program");
    }
    for (opcode, name) in program::op::KNOWN {
        assert!(opcodes.contains(&opcode), "{name} is never asked");
    }
}

/// What some seed must reach: opcodes with their outcomes, and what else a client can see.
const GOALS: [(&str, &str); 40] = [
    ("create", "ok -5 -8 -101 -102 -108 -110 -114 -120 -125"),
    ("create2", "ok -5 -8 -101 -102 -110 -114"),
    ("createContainer", "ok -8 -101 -102 -110 -114"),
    ("createTTL", "ok -6 -8 -101 -110 -114"),
    ("delete", "ok -5 -8 -101 -102 -103 -111"),
    ("exists", "ok -5 -8 -101 -102"),
    ("getData", "ok -5 -101 -102"),
    ("setData", "ok -5 -8 -101 -102 -103"),
    ("getACL", "ok -5 -101 -102"),
    ("setACL", "ok -5 -8 -101 -102 -103 -114"),
    ("getChildren", "ok -5 -101 -102"),
    ("getChildren2", "ok -5 -101 -102"),
    ("sync", "ok"),
    ("ping", "ok"),
    ("check", "-6"),
    ("multi", "ok failed -5"),
    ("reconfig", "-123"),
    ("checkWatches", "ok -5 -121"),
    ("removeWatches", "ok -5 -121"),
    ("multiRead", "ok -5"),
    ("auth", "ok -115"),
    ("setWatches", "ok -5"),
    ("sasl", "ok closed"),
    ("getEphemerals", "ok"),
    ("getAllChildrenNumber", "ok -101"),
    ("setWatches2", "ok -5"),
    ("addWatch", "ok -5"),
    ("whoAmI", "ok"),
    ("closeSession", "ok"),
    ("opcode 0", "-6"),
    ("opcode 23", "-6"),
    ("opcode -1", "-6"),
    ("in multi", "create create2 delete setData check getData getChildren 0 -2 -8 -101 -102 -103 -110 -111 -114"),
    ("event", "1 2 3 4"),
    ("event-caught-up", "1 2 3 4"),
    ("handshake", "ok expired closed"),
    ("connection", "closed replaced"),
    ("session", "expired"),
    ("znode", "reaped"),
    ("word", "ruok isro srvr stat cons conf envi dirs dump wchs wchc wchp mntr gtmk crst srst zzzz reqs"),
];

/// Those of them that older releases do not show, or are not asked for (names of the list of differences).
const GOALS_OF_LATER_RELEASES: [(&str, &[&str]); 5] = [
    ("event-zxid", &["event-caught-up/1", "event-caught-up/2", "event-caught-up/3", "event-caught-up/4"]),
    ("read-permission", &["exists/-102", "getData/-102", "getChildren/-102", "getChildren2/-102", "getACL/-102"]),
    ("watch-types", &["checkWatches/ok", "checkWatches/-121"]),
    ("check-alone", &["check/-6"]),
    ("multi-create2", &["in multi/create2"]),
];
