//! Recipes whose znodes are Curator's, together with Curator itself on three real servers: what one side puts the other finds,
//! takes and takes back.
//!
//! Needs a JDK with Curator, as `curator.rs` does. `.ci/run` installs it and sets `ZOOKEEPER_REQUIRED`; without it the test
//! says that it did nothing.

mod processes;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use corral_recipes::{IdItem, IdQueue, Kept, Rejoin, ShardedQueue, TtlNode};
use processes::{Ensemble, PATIENCE};
use tokio::time::timeout;

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/layouts/Layouts.java");
const JARS: &str = "/usr/share/java";
const JAR_NAMES: [&str; 6] =
    ["curator-recipes", "curator-framework", "curator-client", "guava", "zookeeper", "slf4j-nop"];
/// How long what is kept stays after its last touch: far longer than the test takes.
const TTL: Duration = Duration::from_secs(60);

/// Where the jars are; `None` if something is missing.
fn classpath() -> Option<String> {
    let classpath = std::env::var("CURATOR_CLASSPATH")
        .unwrap_or_else(|_| JAR_NAMES.map(|name| format!("{JARS}/{name}.jar")).join(":"));
    let mut missing: Vec<&str> = classpath.split(':').filter(|jar| !Path::new(jar).exists()).collect();
    let jdk = Command::new("javac").arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !jdk.is_ok_and(|status| status.success()) {
        missing.push("javac (default-jdk-headless)");
    }
    assert!(missing.is_empty() || std::env::var_os("ZOOKEEPER_REQUIRED").is_none(), "missing: {missing:?}");
    if missing.is_empty() {
        return Some(classpath);
    }
    eprintln!("SKIPPED: layouts with Curator: missing {missing:?} (libcurator-recipes-java)");
    None
}

/// Curator's program. It is killed when dropped.
struct Curator(Child);

impl Drop for Curator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Curator {
    /// Waits until it says this, and gives its output back. Beside the runtime: our own client must go on pinging.
    async fn says<R: Read + Send + 'static>(&mut self, mut out: BufReader<R>, what: &'static str) -> BufReader<R> {
        let read = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            out.read_line(&mut line).expect("readable");
            (line, out)
        });
        let (line, out) = timeout(PATIENCE, read).await.expect("it says something").expect("it reads");
        if line.trim() != what {
            let mut why = String::new();
            let _ = self.0.stderr.take().expect("piped").read_to_string(&mut why);
            panic!("Curator was to say {what:?}, and said {line:?}\n{why}");
        }
        out
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corral_and_curator_find_take_and_take_back_what_the_other_put() {
    let Some(classpath) = classpath() else { return };
    let ensemble = Ensemble::start(3, "").await;
    let client = ensemble.client(ensemble.ids(), Duration::from_secs(20)).await;
    let to_curator = IdQueue::new(&client, "/ids/to-curator");
    to_curator.put("corral-1", "the first of corral").await.unwrap();
    to_curator.put("corral-2", "the second of corral").await.unwrap();
    let shards = ShardedQueue::new(&client, "/shards");
    shards.put("of corral").await.unwrap();
    let ours = TtlNode::start(&client, "/kept/by-corral", "of corral", TTL, Rejoin::Never).unwrap();
    ours.created().await.unwrap();

    let java = Command::new("java")
        .args(["-Xmx256m", "-cp", &classpath, PROGRAM, &ensemble.addresses(ensemble.ids())])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("java runs");
    let mut curator = Curator(java);
    let out = BufReader::new(curator.0.stdout.take().expect("piped"));
    let out = curator.says(out, "did").await;

    assert!(to_curator.is_empty().await.unwrap(), "Curator took one, and the other back");
    let to_corral = IdQueue::new(&client, "/ids/to-corral");
    let first = IdItem { id: "curator-1".to_owned(), item: "the first of curator".into() };
    assert_eq!(timeout(PATIENCE, to_corral.take()).await.expect("it is there").unwrap(), first);
    assert_eq!(to_corral.remove("curator-2").await.unwrap(), 1);
    assert_eq!(to_corral.poll().await.unwrap(), None);
    // One shard for both of them; what stands on it is each one's own.
    assert_eq!((shards.shard_count().await.unwrap(), shards.len().await.unwrap()), (1, 2));
    assert_eq!(shards.poll().await.unwrap().flatten().as_deref(), Some(&b"of corral"[..]));
    // Kept by both, until one of them goes away.
    let theirs = TtlNode::start(&client, "/kept/by-curator", "of corral", TTL, Rejoin::Never).unwrap();
    theirs.created().await.unwrap();
    for path in ["/kept/by-corral", "/kept/by-curator"] {
        assert_eq!(client.get_children(path).await.unwrap(), ["touch"], "{path}");
    }
    curator.0.stdin.take().expect("piped").write_all(b"\n").expect("it listens");
    curator.says(out, "done").await;
    assert!(matches!(&*ours.kept().borrow(), Kept::Until(_)), "Curator's end is not ours");
    for node in [ours, theirs] {
        node.close().await.unwrap();
    }
    for path in ["/kept/by-corral", "/kept/by-curator"] {
        assert!(client.exists(path).await.unwrap().is_none(), "{path}");
    }
    ensemble.converge().await;
}
