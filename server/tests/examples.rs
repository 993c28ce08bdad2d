//! The example programs on three real servers, as processes, of which some are killed in the middle: workers, coordinators,
//! nodes of a cache, and the leading server.

mod processes;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use corral_client::Client;
use processes::{Ensemble, PATIENCE};
use tokio::time::{Duration, Instant, sleep};

const POLL: Duration = Duration::from_millis(20);
/// Sessions of parts that are killed: others wait for their end.
const SESSION_MS: &str = "2000";
/// A task that is never done by who has it.
const FOREVER_MS: &str = "3600000";

/// An example, as Cargo builds it beside the server's program.
fn program(example: &str) -> PathBuf {
    let programs = Path::new(env!("CARGO_BIN_EXE_corral")).parent().expect("it is in a folder");
    let program = programs.join("examples").join(example);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/examples");
    let time = |file: &Path| std::fs::metadata(file).and_then(|found| found.modified()).ok();
    let source = time(&sources.join(format!("{example}.rs"))).max(time(&sources.join("common/mod.rs")));
    // `cargo test` builds them with their own tests only; `.ci/run` builds the programs before.
    assert!(time(&program) > source, "{} is missing or old: cargo build --workspace --examples", program.display());
    program
}

/// A running example. It is killed when dropped.
struct Example {
    process: Child,
    said: Arc<Mutex<Vec<String>>>,
    name: String,
}

impl Example {
    fn start(ensemble: &Ensemble, example: &str, args: &[&str]) -> Example {
        let mut process = Command::new(program(example))
            .args(args)
            .args(["--server", &ensemble.addresses(ensemble.ids()), "--session-timeout-ms", SESSION_MS])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the example starts");
        let said = Arc::new(Mutex::new(Vec::new()));
        let (hears, out) = (said.clone(), process.stdout.take().expect("it is piped"));
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                hears.lock().unwrap().push(line);
            }
        });
        Example { process, said, name: format!("{example} {}", args.join(" ")) }
    }

    fn said(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }

    fn has_said(&self, what: &str) -> Option<String> {
        self.said().into_iter().find(|line| line.contains(what))
    }

    /// Waits until it says something with this in it, and gives the line.
    async fn says(&self, what: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = self.has_said(what) {
                return line;
            }
            assert!(Instant::now() < deadline, "{} never said {what:?}: {:#?}", self.name, self.said());
            sleep(POLL).await;
        }
    }

    /// kill -9.
    fn kill(mut self) -> Vec<String> {
        self.process.kill().expect("it is ours");
        self.process.wait().expect("it is gone");
        self.said()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.process), signal).expect("it is ours");
    }

    /// Waits for its end.
    async fn ends(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().expect("it is ours") {
                return status;
            }
            assert!(Instant::now() < deadline, "{} does not end: {:#?}", self.name, self.said());
            sleep(POLL).await;
        }
    }

    async fn succeeds(mut self) -> Vec<String> {
        let status = self.ends().await;
        assert!(status.success(), "{}: {status}: {:#?}", self.name, self.said());
        // All of it was said by now, though perhaps not all of it heard.
        self.says("").await;
        self.said()
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until there are so many.
async fn until(what: &str, wanted: u64, mut count: impl AsyncFnMut() -> u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = count().await;
        if now >= wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{now} {what}, and never {wanted}");
        sleep(POLL).await;
    }
}

/// A number in the tree; 0 if it is not there.
async fn state(client: &Client, path: &str) -> u64 {
    client.get(path).await.map_or(0, |node| String::from_utf8_lossy(node.bytes()).parse().unwrap_or(0))
}

/// Kills the leading server, and starts it again.
async fn kill_the_leading_server(ensemble: &mut Ensemble) {
    let leader = ensemble.leader().await;
    ensemble.kill(leader);
    ensemble.leader().await;
    ensemble.start_server(leader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicated_service_does_every_step_once_though_leaders_die() {
    let mut ensemble = Ensemble::start(3, "").await;
    let copy = |name| {
        let args = ["--copies", "1", "--name", name, "--steps", "200", "--pause-ms", "5"];
        Example::start(&ensemble, "replicated_service", &args)
    };
    let first = copy("first");
    first.says("leads with token").await;
    let (second, third) = (copy("second"), copy("third"));
    let client = ensemble.client(ensemble.ids(), Duration::from_secs(20)).await;
    let steps = async |wanted| until("steps", wanted, async || state(&client, "/service/state").await).await;
    steps(20).await;
    first.kill();
    steps(60).await;
    kill_the_leading_server(&mut ensemble).await;
    second.succeeds().await;
    third.succeeds().await;
    let verdict = Example::start(&ensemble, "replicated_service", &["--verify"]).succeeds().await;
    assert!(verdict.iter().any(|line| line.starts_with("first-1 led")), "{verdict:#?}");
    assert!(verdict.iter().any(|line| line.starts_with("200 steps, ")), "{verdict:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_work_queue_loses_no_order_and_ships_none_twice_though_producers_and_workers_die() {
    const ORDERS: &str = "120";
    let mut ensemble = Ensemble::start(3, "").await;
    let part = |part, name, work_ms| {
        let args = [part, "--name", name, "--orders", ORDERS, "--work-ms", work_ms];
        Example::start(&ensemble, "work_queue", &args)
    };
    // A producer dies somewhere; another goes on.
    let producer = part("produce", "producer-1", "0");
    producer.says("placed 5").await;
    producer.kill();
    let producer = part("produce", "producer-2", "0");
    // A worker dies with an order in its hands.
    let dying = part("work", "dying", FOREVER_MS);
    let order = dying.says("dying ships ").await;
    let order = order.trim_start_matches("dying ships ").split(',').next().expect("an order").to_owned();
    dying.kill();
    // Another sleeps for longer than its session, and wakes up when all is over.
    let sleeping = part("work", "sleeping", "1000");
    sleeping.says("sleeping ships ").await;
    sleeping.signal(rustix::process::Signal::STOP);
    let before = sleeping.said().iter().filter(|line| line.contains(" shipped ")).count();
    let (one, two) = (part("work", "one", "10"), part("work", "two", "10"));
    let client = ensemble.client(ensemble.ids(), Duration::from_secs(20)).await;
    let receipts = async || client.get_children("/shop/receipts").await.map_or(0, |names| names.len() as u64);
    until("receipts", receipts().await + 10, receipts).await;
    kill_the_leading_server(&mut ensemble).await;
    let mut said = one.succeeds().await;
    said.extend(two.succeeds().await);
    producer.succeeds().await;
    sleeping.signal(rustix::process::Signal::CONT);
    let slept = sleeping.succeeds().await;
    let after = slept.iter().filter(|line| line.contains(" shipped ")).count();
    assert_eq!(before, after, "it shipped what had been given to another: {slept:#?}");
    let again = format!(" ships {order}, attempt 2");
    assert!(said.iter().any(|line| line.ends_with(&again)), "nobody took order {order} up again: {said:#?}");
    let verdict = Example::start(&ensemble, "work_queue", &["verify"]).succeeds().await;
    let sound = format!("{ORDERS} orders, {ORDERS} receipts, 0 waiting: none lost, none twice");
    assert_eq!(verdict.last(), Some(&sound), "{verdict:#?}");
}

/// Asks a node of the cache for a key: who had it, and whether it was there.
fn ask(address: &str, key: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("the node listens");
    let request = format!("GET /{key} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    if key == "_ring" {
        return (body.trim().to_owned(), String::new());
    }
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(body, format!("the value of {key}\n"));
    let header = |name: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name} in {head}")).trim().to_owned()
    };
    (header("x-node:"), header("x-cache:"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_cache_only_the_keys_of_a_dead_node_move() {
    const KEYS: usize = 300;
    let mut ensemble = Ensemble::start(3, "").await;
    let start = async |ensemble: &Ensemble, name: &str| {
        let node = Example::start(ensemble, "web_cache", &["--nodes", "1", "--name", name, "--origin-ms", "0"]);
        let line = node.says("serves http://").await;
        let address = line.rsplit_once("http://").expect("an address").1.to_owned();
        (node, address)
    };
    // Which ring each of them has: the same epoch and members, sooner or later.
    let agreed = async |addresses: &[&String], names: &str| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let rings: BTreeSet<String> = addresses.iter().map(|address| ask(address, "_ring").0).collect();
            if rings.len() == 1 && rings.iter().all(|ring| ring.split_once(' ').is_some_and(|(_, of)| of == names)) {
                return;
            }
            assert!(Instant::now() < deadline, "they never agree on {names}: {rings:?}");
            sleep(POLL).await;
        }
    };
    let all =
        |address: &str| -> Vec<(String, String)> { (0..KEYS).map(|key| ask(address, &format!("key/{key}"))).collect() };
    let owners = |answers: &[(String, String)]| answers.iter().map(|(node, _)| node.clone()).collect::<Vec<_>>();

    let (_a, a) = start(&ensemble, "a").await;
    let (dying, b) = start(&ensemble, "b").await;
    let (_c, c) = start(&ensemble, "c").await;
    agreed(&[&a, &b, &c], "a b c").await;
    let first = all(&a);
    assert!(first.iter().all(|(_, cache)| cache == "miss"));
    // Whoever is asked: the same node has it, and has it still.
    let second = all(&c);
    assert_eq!(owners(&first), owners(&second));
    assert!(second.iter().all(|(_, cache)| cache == "hit"));

    // The death of the leading server moves nothing.
    kill_the_leading_server(&mut ensemble).await;
    agreed(&[&a, &b, &c], "a b c").await;
    assert_eq!(all(&a), second);

    // The death of a node moves its keys, and no other; what did not move is still there.
    dying.kill();
    agreed(&[&a, &c], "a c").await;
    let third = all(&a);
    let mut moved = 0;
    for (key, ((was, _), (is, cache))) in second.iter().zip(&third).enumerate() {
        if was == "b" {
            moved += 1;
            assert!(is != "b" && cache == "miss", "key {key}: {is}, {cache}");
        } else {
            assert_eq!((is, cache.as_str()), (was, "hit"), "key {key}");
        }
    }
    let of_b = second.iter().filter(|(node, _)| node == "b").count();
    assert!(moved == of_b && moved > 0 && moved < KEYS);
    println!("{moved} of {KEYS} keys moved: those of the dead node");

    // A new node takes keys from the others, and they exchange none among themselves.
    let (_d, d) = start(&ensemble, "d").await;
    agreed(&[&a, &c, &d], "a c d").await;
    let fourth = all(&c);
    let mut to: BTreeMap<&str, usize> = BTreeMap::new();
    for ((was, _), (is, cache)) in third.iter().zip(&fourth) {
        *to.entry(is).or_insert(0) += 1;
        assert!(if is == was { cache == "hit" } else { is == "d" && cache == "miss" }, "from {was} to {is}: {cache}");
    }
    assert!(to["d"] > 0, "{to:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_are_counted_exactly_though_coordinators_and_workers_die() {
    let mut ensemble = Ensemble::start(3, "").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text");
    let text: String = (0..6_000).map(|n| format!("of {} and {} words\n", n % 7, n % 1_009)).collect();
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().expect("a plain path");
    let part = |part, name, work_ms| {
        Example::start(&ensemble, "word_count", &[part, "--name", name, "--text", file, "--work-ms", work_ms])
    };
    // A coordinator dies as soon as it is one, while it places chunks or before.
    let hasty = part("coordinate", "hasty", "0");
    hasty.says("hasty coordinates").await;
    hasty.kill();
    // The next dies after all are placed, and while no chunk is mapped: the only worker never ends its task.
    let (one, two) = (part("coordinate", "one", "0"), part("coordinate", "two", "0"));
    let dying = part("work", "dying", FOREVER_MS);
    let task = dying.says("dying begins ").await;
    let task = task.trim_start_matches("dying begins ").split(',').next().expect("a task").to_owned();
    // Whichever of them was the first in the queue.
    let deadline = Instant::now() + PATIENCE;
    while one.has_said("coordinates").is_none() && two.has_said("coordinates").is_none() {
        assert!(Instant::now() < deadline, "nobody says that it coordinates");
        sleep(POLL).await;
    }
    let (dead, heir) = if one.has_said("coordinates").is_some() { (one, two) } else { (two, one) };
    dead.kill();
    dying.kill();
    let (one, two) = (part("work", "one", "5"), part("work", "two", "5"));
    let client = ensemble.client(ensemble.ids(), Duration::from_secs(20)).await;
    until("chunks mapped", 3, async || state(&client, "/words/mapped").await).await;
    kill_the_leading_server(&mut ensemble).await;
    heir.says("coordinates with token").await;
    heir.says("has the result").await;
    let mut said = one.succeeds().await;
    said.extend(two.succeeds().await);
    heir.succeeds().await;
    let again = format!(" begins {task}, attempt 2");
    assert!(said.iter().any(|line| line.ends_with(&again)), "nobody took {task} up again: {said:#?}");
    let verdict = Example::start(&ensemble, "word_count", &["verify", "--text", file]).succeeds().await;
    // 7 and 1,009 numbers, of which the larger contain the smaller, and three words.
    assert_eq!(verdict.last().map(String::as_str), Some("30000 words, 1012 different ones: exactly"), "{verdict:#?}");
}
