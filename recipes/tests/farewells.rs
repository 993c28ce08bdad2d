//! An example program that is interrupted: each of its parts stops in order and says so.

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::Server;

/// How long anything may take on a machine that is busy; nothing is judged by it but "never".
const PATIENCE: Duration = Duration::from_secs(60);

/// An example, as Cargo builds it beside the tests.
fn program(example: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("this program has a path");
    let programs = tests.ancestors().nth(2).expect("it is in deps, below the programs");
    let program = programs.join("examples").join(example);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let time = |file: &Path| std::fs::metadata(file).and_then(|found| found.modified()).ok();
    let source = time(&sources.join(format!("{example}.rs"))).max(time(&sources.join("common/mod.rs")));
    // `cargo test` builds them with their own tests only; `.ci/run` builds the programs before.
    assert!(time(&program) > source, "{} is missing or old: cargo build --workspace --examples", program.display());
    program
}

/// A process that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_of_a_cache_says_that_it_stops() {
    let server = Server::start().await;
    let cache = Command::new(program("web_cache"))
        .args(["--server", &server.address])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut cache = Running(cache);
    let mut lines = BufReader::new(cache.0.stdout.take().expect("it is piped")).lines().map_while(Result::ok);
    let id = cache.0.id().to_string();
    let said = tokio::task::spawn_blocking(move || {
        // Beside the runtime that serves it. It ends with its output at the latest.
        let whole = lines.by_ref().any(|line| line.ends_with(": node-1 node-2 node-3"));
        assert!(whole, "the nodes never found each other");
        let sent = Command::new("kill").args(["-INT", &id]).status().expect("kill runs");
        assert!(sent.success());
        lines.filter(|line| line.ends_with(" stops")).collect::<Vec<_>>()
    });
    let mut said = tokio::time::timeout(PATIENCE, said).await.expect("it ends").expect("it reads");
    said.sort();
    assert_eq!(said, ["node-1 stops", "node-2 stops", "node-3 stops"]);
    assert!(cache.0.wait().expect("it is ours").success());
}
