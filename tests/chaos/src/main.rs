//! `corral-chaos`: real servers, real clients, real faults, and a verdict.
//!
//! ```text
//! $ corral-chaos run --seconds 60 --seed 7
//! ```
//!
//! Exit codes: 0, nothing wrong was found; 1, something did not hold (the evidence is in the folder that is named);
//! 2, it could not be run, or was interrupted.
//!
//! # Layout
//! - [`run`]: one run from beginning to end. [`rest`]: what is compared when everything has come to rest.
//! - [`ensemble`]: processes and folders of the servers. [`space`]: network namespaces. [`proxy`]: links.
//! - [`nemesis`]: the schedule of faults, and how each is done.
//! - [`session`]: what clients do over either protocol; [`wire`]: ZooKeeper's. [`workload`]: who does what, and the checkers.
//! - [`journal`]: counts and evidence.

mod ensemble;
mod journal;
mod nemesis;
mod proxy;
mod rest;
mod run;
mod session;
mod space;
mod wire;
mod workload;

use std::error::Error;
use std::fmt::Display;
use std::process::{Command as Process, ExitCode};

use clap::{Parser, Subcommand};
use run::{Report, RunArgs};
use space::Spaces;

/// Everything here ends in one message to the person who started it.
pub type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Puts in front of an error what it is about.
pub fn context<E: Display>(what: impl Display) -> impl FnOnce(E) -> Box<dyn Error + Send + Sync> {
    move |error| format!("{what}: {error}").into()
}

/// What it could not be run, or was interrupted, ends with.
const NOT_RUN: u8 = 2;

#[derive(Parser)]
#[command(
    name = "corral-chaos",
    version,
    about = "Real servers, real clients, real faults; what clients were told is checked",
    after_help = "Exit codes: 0 nothing wrong was found, 1 something did not hold, 2 it could not be run."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start an ensemble, let clients work, let things go wrong, and check.
    Run(RunArgs),
}

fn main() -> ExitCode {
    let Command::Run(args) = Cli::parse().command;
    let ended = match args.keeper {
        None if !args.no_namespaces => keep(&args),
        keeper => {
            if keeper.is_some() {
                // The keeper removes the namespaces; without it nobody would.
                let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
            }
            perform(&args)
        }
    };
    ended.unwrap_or_else(|error| {
        eprintln!("corral-chaos: {error}");
        ExitCode::from(NOT_RUN)
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// The run itself.
fn perform(args: &RunArgs) -> Result<ExitCode> {
    // A task that panics must not be a run that finds nothing.
    let report = runtime()?.block_on(run::run(args))?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", in_words(&report));
    }
    Ok(if report.summary.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes namespaces, performs the run inside as a process of its own, and removes them however that ends.
fn keep(args: &RunArgs) -> Result<ExitCode> {
    let swept = space::sweep();
    if swept > 0 {
        eprintln!("corral-chaos: removed what {swept} earlier runs left behind");
    }
    let spaces = match Spaces::create(args.servers) {
        Ok(spaces) => spaces,
        Err(error) => {
            eprintln!(
                "corral-chaos: no network namespaces ({error}): everything on loopback, through the proxies alone; no full disks"
            );
            return perform(args);
        }
    };
    // From here on nothing returns before the namespaces are removed.
    let code = inside(&spaces);
    spaces.remove();
    code
}

fn inside(spaces: &Spaces) -> Result<ExitCode> {
    let own = std::env::current_exe()?;
    let mut command = Process::new("ip");
    command.args(["netns", "exec", &spaces.hub()]).arg(own).args(std::env::args_os().skip(1));
    command.args(["--keeper", &std::process::id().to_string()]);
    runtime()?.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
        let pid = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid as i32));
        loop {
            let tell = tokio::select! {
                status = child.wait() => {
                    let code = status?.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code < NOT_RUN);
                    return Ok(ExitCode::from(code.unwrap_or(NOT_RUN)));
                }
                _ = terminate.recv() => true,
                // The terminal has told all its processes.
                _ = interrupt.recv() => false,
            };
            if let (true, Some(pid)) = (tell, pid) {
                rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
            }
        }
    })
}

fn in_words(report: &Report) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let summary = &report.summary;
    let _ = writeln!(
        text,
        "{:<12} {:>9} {:>9} {:>9} {:>9} {:>7}",
        "workload", "done", "refused", "unknown", "not sent", "rounds"
    );
    for (name, counts) in &summary.operations {
        let rounds = summary.rounds.get(name).copied().unwrap_or_default();
        let _ = writeln!(
            text,
            "{name:<12} {:>9} {:>9} {:>9} {:>9} {rounds:>7}",
            counts.ok, counts.refused, counts.unknown, counts.not_sent
        );
    }
    let faults: Vec<String> = summary.faults.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let total: u64 = summary.faults.values().sum();
    let _ = writeln!(text, "{total} faults: {}", faults.join(", "));
    let _ = writeln!(text, "{} sessions, {} expired", summary.sessions, summary.sessions_expired);
    for violation in &summary.violations {
        let _ = writeln!(text, "VIOLATION ({}): {}", violation.checker, violation.text);
        if let Some(evidence) = &violation.evidence {
            let _ = writeln!(text, "  evidence: {}", evidence.display());
        }
    }
    if let Some(folder) = &report.folder {
        let _ = writeln!(text, "data and logs: {}", folder.display());
    }
    let verdict = if summary.violations.is_empty() { "nothing wrong" } else { "SOMETHING DID NOT HOLD" };
    let _ = writeln!(text, "seed {} on {} servers: {verdict} in {:.0} s", report.seed, report.servers, report.seconds);
    text
}
