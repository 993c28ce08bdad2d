//! Corral's recipes, Curator's and kazoo's at one path of three real servers: they take turns.
//!
//! Each client counts in one znode, reading and writing back whatever the version: only the lock (or the leadership) keeps
//! them apart, and a turn that two had at once shows as a missing count.
//!
//! Needs a JDK with Curator and a Python with kazoo, as `curator.rs` and `kazoo.rs` do. `.ci/run` installs them and sets
//! `ZOOKEEPER_REQUIRED`; without them and without it a test says what it left out.

mod processes;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use corral_client::{Client, CreateMode};
use corral_recipes::{Election, Layout, Mutex, Next, WhenSuspended};
use processes::{Ensemble, PATIENCE};

const ROUNDS: u64 = 20;
const COUNTER: &str = "/count";
const JARS: &str = "/usr/share/java";
const JAR_NAMES: [&str; 6] =
    ["curator-recipes", "curator-framework", "curator-client", "guava", "zookeeper", "slf4j-nop"];

fn is_required() -> bool {
    std::env::var_os("ZOOKEEPER_REQUIRED").is_some()
}

fn left_out(who: &str, missing: &str) {
    assert!(!is_required(), "{who}: missing {missing}");
    eprintln!("SKIPPED: {who}: missing {missing}");
}

/// A program of another library, which said that it is connected and waits for a line. It is waited for in a blocking way, so
/// our own client, which must go on pinging, has threads of its own.
struct Other {
    name: &'static str,
    child: Child,
}

impl Other {
    fn begin(name: &'static str, command: &mut Command) -> Other {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        out.read_line(&mut line).expect("readable");
        // What follows is one word, which nobody needs to have read by then.
        child.stdout = Some(out.into_inner());
        if line != "ready\n" {
            let mut why = String::new();
            let _ = child.stderr.take().expect("piped").read_to_string(&mut why);
            panic!("{name} is not ready: {line:?}\n{why}");
        }
        Other { name, child }
    }

    fn go(&mut self) {
        let mut input = self.child.stdin.take().expect("piped");
        input.write_all(b"\n").expect("it listens");
    }

    async fn ended(self) {
        let name = self.name;
        let wait = tokio::task::spawn_blocking(move || self.child.wait_with_output().expect("it ends"));
        let output = tokio::time::timeout(PATIENCE, wait).await.expect("it must end").expect("waited for");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && said.ends_with("done\n"),
            "{name}: {said}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

fn curator(ensemble: &Ensemble, what: &str, path: &str) -> Option<Other> {
    let classpath = std::env::var("CURATOR_CLASSPATH")
        .unwrap_or_else(|_| JAR_NAMES.map(|name| format!("{JARS}/{name}.jar")).join(":"));
    let absent: Vec<&str> = classpath.split(':').filter(|jar| !Path::new(jar).exists()).collect();
    if !absent.is_empty() {
        left_out("Curator", &absent.join(", "));
        return None;
    }
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mixed/Mixed.java");
    let hosts = ensemble.addresses(ensemble.ids());
    let mut command = Command::new("java");
    command.args(["-Xmx256m", "-cp", &classpath, program, &hosts, what, path, COUNTER, &ROUNDS.to_string()]);
    Some(Other::begin("Curator", &mut command))
}

fn kazoo(ensemble: &Ensemble, what: &str, path: &str, patterns: &[&str]) -> Option<Other> {
    let python = std::env::var("KAZOO_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let imports = Command::new(&python).args(["-c", "import kazoo"]).stderr(Stdio::null()).status();
    if !imports.is_ok_and(|status| status.success()) {
        left_out("kazoo", "a Python that has it (KAZOO_PYTHON)");
        return None;
    }
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mixed/mixed.py");
    let hosts = ensemble.addresses(ensemble.ids());
    let mut command = Command::new(python);
    command.args([program, &hosts, what, path, COUNTER, &ROUNDS.to_string()]).args(patterns);
    Some(Other::begin("kazoo", &mut command))
}

async fn client(ensemble: &Ensemble) -> Client {
    let client = ensemble.client(ensemble.ids(), Duration::from_secs(20)).await;
    client.create(COUNTER, "0", CreateMode::Persistent).await.expect("the counter");
    client
}

async fn counted(client: &Client) -> u64 {
    client.sync(COUNTER).await.expect("synchronized");
    std::str::from_utf8(client.get(COUNTER).await.expect("the counter").bytes()).unwrap().parse().unwrap()
}

/// Lets all begin, does our own part, and checks that no turn is missing.
async fn take_turns(client: &Client, others: Vec<Option<Other>>, own: impl AsyncFn()) {
    let mut others: Vec<Other> = others.into_iter().flatten().collect();
    let parties = 1 + others.len() as u64;
    for other in &mut others {
        other.go();
    }
    own().await;
    for other in others {
        other.ended().await;
    }
    assert_eq!(counted(client).await, parties * ROUNDS, "{parties} parties");
}

async fn count_under(client: &Client, lock: Mutex) {
    for _ in 0..ROUNDS {
        let guard = lock.acquire_timeout(PATIENCE).await.expect("our turn");
        let count = counted(client).await;
        guard.guarded().set(COUNTER, (count + 1).to_string(), None).await.expect("still our turn");
        guard.release().await.expect("released");
    }
}

async fn count_leading(client: &Client, election: Election) {
    for _ in 0..ROUNDS {
        let lead = election.run("corral", |hold| async move {
            let count = counted(client).await;
            hold.guarded().set(COUNTER, (count + 1).to_string(), None).await.expect("still leading");
            Next::Leave
        });
        tokio::time::timeout(PATIENCE, lead).await.expect("our turn").expect("led");
    }
}

fn lock(client: &Client, path: &str, layout: Layout) -> Mutex {
    Mutex::new(client, path).layout(layout).when_suspended(WhenSuspended::UntilDeadline)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corral_and_curator_take_turns_at_one_lock() {
    let ensemble = Ensemble::start(3, "").await;
    let client = client(&ensemble).await;
    let others = vec![curator(&ensemble, "count", "/lock")];
    take_turns(&client, others, || count_under(&client, lock(&client, "/lock", Layout::CuratorLock))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corral_and_kazoo_take_turns_at_one_lock() {
    let ensemble = Ensemble::start(3, "").await;
    let client = client(&ensemble).await;
    let others = vec![kazoo(&ensemble, "lock", "/lock", &[])];
    take_turns(&client, others, || count_under(&client, lock(&client, "/lock", Layout::Kazoo))).await;
}

/// Curator and kazoo need to be told of each other's names; Corral knows both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corral_curator_and_kazoo_take_turns_at_one_lock() {
    let ensemble = Ensemble::start(3, "").await;
    let client = client(&ensemble).await;
    let others = vec![curator(&ensemble, "mixed", "/lock"), kazoo(&ensemble, "lock", "/lock", &["-lock-"])];
    take_turns(&client, others, || count_under(&client, lock(&client, "/lock", Layout::CuratorLock))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corral_and_curators_latch_take_turns_in_one_election() {
    let ensemble = Ensemble::start(3, "").await;
    let client = client(&ensemble).await;
    let others = vec![curator(&ensemble, "lead", "/election")];
    take_turns(&client, others, || count_leading(&client, Election::new(&client, "/election"))).await;
}

/// The latch of Curator sorts by its own names only, so the third party stands in as its lock does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corral_curator_and_kazoo_take_turns_in_one_election() {
    let ensemble = Ensemble::start(3, "").await;
    let client = client(&ensemble).await;
    let others = vec![curator(&ensemble, "mixed", "/election"), kazoo(&ensemble, "elect", "/election", &["-lock-"])];
    let election = Election::new(&client, "/election").layout(Layout::CuratorLock);
    take_turns(&client, others, || count_leading(&client, election.clone())).await;
}
