//! The built shell, run as people and scripts run it: what it prints where, and how it exits.

#[allow(dead_code)]
#[path = "../../../tests/fake/mod.rs"]
mod fake;

mod contexts;
mod coordination;
mod documentation;
mod trees;
mod verbs;
mod watching;

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fake::Server;

/// How long anything may take on a machine that is busy. Nothing is judged by it but "never".
const PATIENCE: Duration = Duration::from_secs(60);

/// What a run left.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    code: i32,
    out: String,
    err: String,
}

fn zkcli(server: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zkcli"));
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("ZKCLI_") {
            command.env_remove(variable);
        }
    }
    // Nobody's own contexts.
    command.env("ZKCLI_CONTEXTS", "/nonexistent/contexts.toml").env("ZKCLI_SERVER", server);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run_with(mut command: Command, args: &[&str], input: &[u8]) -> Run {
    let mut child = command.args(args).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    Run {
        code: output.status.code().unwrap(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs the shell against a server, beside the runtime that serves it.
async fn run_input(server: &Server, args: &[&str], input: &[u8]) -> Run {
    let (command, input) = (zkcli(&server.address), input.to_vec());
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    tokio::task::spawn_blocking(move || run_with(command, &args.iter().map(String::as_str).collect::<Vec<_>>(), &input))
        .await
        .unwrap()
}

async fn run(server: &Server, args: &[&str]) -> Run {
    run_input(server, args, b"").await
}

fn said(code: i32, out: &str, err: &str) -> Run {
    Run { code, out: out.to_owned(), err: err.to_owned() }
}

/// Waits until something is so.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Waits for the end of a child, and gives what it left.
async fn end(child: Child) -> Run {
    let id = child.id().to_string();
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let Ok(output) = tokio::time::timeout(PATIENCE, ended).await else {
        // The thread that waits for it must end, too.
        let _ = Command::new("kill").args(["-KILL", &id]).status();
        panic!("it does not end");
    };
    let output = output.unwrap();
    Run {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Starts the shell and leaves it alone.
fn start(server: &Server, args: &[&str]) -> Child {
    zkcli(&server.address).args(args).spawn().unwrap()
}

/// Whether a process runs; one that is dead and not yet buried does not.
fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// What a file holds, or nothing.
fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

fn interrupt(child: &Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}
