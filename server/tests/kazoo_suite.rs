//! kazoo's own test-suite, as its package carries it, against ensembles of real server processes.
//!
//! Needs a Python with kazoo and what its suite imports: `KAZOO_PYTHON`, else `python3`. `.ci/run` installs one and sets
//! the variable, and then a missing package is a failure; without the variable the test says that it did nothing.
//!
//! `kazoo_suite/kazoo_suite.py` gives the suite our servers; `kazoo_suite/exceptions.tsv` lists the tests that are not
//! run, with reasons. The same suite runs against real ZooKeeper with `SUITE_SERVER=zookeeper`; see the former file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Tests in the suite of kazoo 2.11.0. With another release, run it on real ZooKeeper first.
const SUITE_TESTS: usize = 493;
/// Test classes share no server; most of their time is spent in waiting.
const SHARDS: usize = 3;
/// Limits of one test, s, and of everything. Nothing is judged by them but "never".
const TEST_SECONDS: &str = "120";
const PATIENCE: Duration = Duration::from_secs(1800);
const POLL: Duration = Duration::from_millis(100);
/// Lines of a shard's output that are shown when it fails.
const LINES_SHOWN: usize = 400;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kazoo_suite");
const IMPORTS: &str = "import kazoo.tests, pytest, pytest_timeout, objgraph, gevent, eventlet, puresasl, cryptography";

fn python() -> Option<String> {
    let named = std::env::var("KAZOO_PYTHON").ok();
    let python = named.clone().unwrap_or_else(|| "python3".to_owned());
    let works =
        Command::new(&python).args(["-c", IMPORTS]).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    assert!(
        works || named.is_none(),
        "KAZOO_PYTHON={python} lacks something of \"{IMPORTS}\": unset the variable and let .ci/run install it"
    );
    if !works {
        eprintln!("SKIPPED: {python} lacks something of \"{IMPORTS}\"; .ci/run installs it, or set KAZOO_PYTHON");
    }
    works.then_some(python)
}

/// One run of pytest, killed with its servers when the test ends early.
struct Run {
    process: Child,
    output: PathBuf,
    results: PathBuf,
}

impl Drop for Run {
    fn drop(&mut self) {
        // The servers end with the process that started them.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What became of a test: `passed`, `failed` or `skipped`, and why.
type Outcomes = BTreeMap<String, (String, String)>;

fn start(python: &str, folder: &Path, name: &str, shard: &str, only: &str) -> Run {
    let output = folder.join(format!("{name}.log"));
    let results = folder.join(format!("{name}.jsonl"));
    let log = File::create(&output).expect("a file for the output");
    let process = Command::new(python)
        .args(["-m", "pytest", "-p", "kazoo_suite", "-p", "no:cacheprovider", "-q", "--timeout", TEST_SECONDS])
        .args(["--pyargs", "kazoo.tests"])
        .current_dir(folder)
        .env("PYTHONPATH", FOLDER)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("CORRAL", env!("CARGO_BIN_EXE_corral"))
        .env("SUITE_SERVER", "corral")
        .env("SUITE_SHARD", shard)
        .env("SUITE_ONLY", only)
        .env("SUITE_RESULTS", &results)
        .env("TMPDIR", folder)
        .env_remove("CORRAL_CONFIG")
        // Only kazoo's own CI has the versions that its tests expect then.
        .env_remove("CI")
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .spawn()
        .expect("python runs");
    Run { process, output, results }
}

/// Waits for the end; returns what became of the tests.
fn finish(mut run: Run) -> Outcomes {
    let mut ended = None;
    for _ in 0..PATIENCE.as_millis() / POLL.as_millis() {
        ended = run.process.try_wait().expect("it is ours");
        if ended.is_some() {
            break;
        }
        std::thread::sleep(POLL);
    }
    let mut outcomes = Outcomes::new();
    for line in fs::read_to_string(&run.results).unwrap_or_default().lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("the plugin writes JSON");
        let text = |key: &str| line[key].as_str().expect("a text").to_owned();
        let outcome = (text("outcome"), text("why"));
        // A tear-down that fails comes after a test that passed.
        let known = outcomes.entry(text("test")).or_insert_with(|| outcome.clone());
        if outcome.0 == "failed" {
            *known = outcome;
        }
    }
    // 0: all passed; 1: some failed.
    if !ended.is_some_and(|status| matches!(status.code(), Some(0 | 1))) {
        let log = fs::read_to_string(&run.output).unwrap_or_default();
        let from = log.lines().count().saturating_sub(LINES_SHOWN);
        let tail: Vec<&str> = log.lines().skip(from).collect();
        panic!("pytest did not end well: {ended:?}, {} tests before\n{}", outcomes.len(), tail.join("\n"));
    }
    outcomes
}

fn failed(outcomes: &Outcomes) -> Vec<&str> {
    outcomes.iter().filter(|(_, (outcome, _))| outcome == "failed").map(|(test, _)| test.as_str()).collect()
}

/// The tests of `exceptions.tsv` that are not run against Corral.
fn exceptions() -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(FOLDER).join("exceptions.tsv")).expect("it is in the source tree");
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter_map(|line| {
            let [test, servers, _reason] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("exceptions.tsv has three fields: {line}")
            };
            servers.split(',').any(|server| server == "corral").then(|| test.to_owned())
        })
        .collect()
}

#[test]
fn kazoos_own_suite_passes() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder for the test");
    let runs: Vec<Run> = (1..=SHARDS)
        .map(|i| start(&python, folder.path(), &format!("shard-{i}"), &format!("{i}/{SHARDS}"), ""))
        .collect();
    let mut outcomes = Outcomes::new();
    for run in runs {
        outcomes.extend(finish(run));
    }
    // Many of kazoo's tests give a reconnect five seconds, which a busy machine may need for itself. What fails is run
    // once more, alone; a fault of the server's is there then, too.
    let first: Vec<String> = failed(&outcomes).into_iter().map(str::to_owned).collect();
    if !first.is_empty() {
        for test in &first {
            eprintln!("failed, run again alone: {test}\n{}\n", outcomes[test].1);
        }
        let again = finish(start(&python, folder.path(), "again", "1/1", &first.join("\n")));
        assert_eq!(again.len(), first.len(), "every one of them is run again");
        outcomes.extend(again);
    }
    // This one, of a function of kazoo's and of no server, wants nobody to listen on ZooKeeper's port.
    let wants_nobody = "test_utils.py::TestCreateTCPConnection::test_slow_connect";
    if std::net::TcpStream::connect("127.0.0.1:2181").is_ok() && failed(&outcomes).contains(&wants_nobody) {
        eprintln!("not judged, because a server of somebody's listens on 127.0.0.1:2181: {wants_nobody}");
        outcomes.insert(wants_nobody.to_owned(), ("passed".to_owned(), String::new()));
    }
    let still = failed(&outcomes);
    for test in &still {
        println!("=== {test}\n{}\n", outcomes[*test].1);
    }
    let count = |wanted: &str| outcomes.values().filter(|(outcome, _)| outcome == wanted).count();
    let listed = exceptions();
    println!("kazoo's suite: {} of {} passed, {} listed as exceptions", count("passed"), outcomes.len(), listed.len());
    assert!(still.is_empty(), "{} tests of kazoo's suite failed: {still:?}", still.len());
    let skipped: BTreeSet<String> =
        outcomes.iter().filter(|(_, (outcome, _))| outcome == "skipped").map(|(test, _)| test.clone()).collect();
    assert_eq!(skipped, listed, "what is not run is what exceptions.tsv lists, and nothing else");
    assert_eq!(count("passed"), SUITE_TESTS - listed.len(), "the whole suite was run");
}
