//! `zkcli`: ZooKeeper's shell for Corral, one command at a time or interactively.
//!
//! `verbs.rs` is the table of verbs, `words.rs` and `command.rs` turn text into commands, `print.rs` and `table.rs` turn
//! answers into text, all without any IO. `run.rs` is what commands share; each group of verbs has a file: `nodes.rs`
//! (ZooKeeper's own), `quota.rs`, `tree.rs`, `copy.rs`, `sync.rs`, `transfer.rs`, `watching.rs`, `coordination.rs`,
//! `meet.rs`, `context.rs`, `shell.rs`. Below them, `scan.rs` reads subtrees, `put.rs` writes them, `walk.rs` visits them
//! in order, `child.rs` runs programs, and `signals.rs` hears
//! of Ctrl-C.

mod child;
mod command;
mod complete;
mod context;
mod coordination;
mod copy;
mod edit;
mod failure;
mod meet;
mod nodes;
#[allow(rustdoc::broken_intra_doc_links, reason = "help texts show brackets as users type them")]
mod options;
mod print;
mod progress;
mod put;
mod quota;
mod run;
mod scan;
mod shell;
mod signals;
mod status;
mod sync;
mod table;
mod transfer;
mod tree;
mod verbs;
mod walk;
mod watching;
mod words;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;

use crate::command::{Command, Parsed};
use crate::failure::Failure;
use crate::meet::{BarrierTask, QueueTask};
use crate::options::{Options, Settings, normalise};
use crate::run::Runner;
use crate::signals::Signals;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    if words.nth(1).is_some_and(|word| word == child::INNER) {
        return ExitCode::from(child::run_inner(words));
    }
    let options = match Options::try_parse_from(normalise(std::env::args())) {
        Ok(options) => options,
        // Help and version that were asked for.
        Err(told) if !told.use_stderr() => told.exit(),
        Err(error) => {
            eprintln!("{}", options::problem(&error));
            return ExitCode::from(failure::exit::USAGE);
        }
    };
    if std::env::var_os("ZKCLI_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_env("ZKCLI_LOG"))
            .with_writer(std::io::stderr)
            .init();
    }
    // One thread: a shell waits, and starting threads is most of what a start costs.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("zkcli cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(start(options));
    // A thread that still reads standard input must not keep us.
    runtime.shutdown_background();
    ExitCode::from(code)
}

async fn start(options: Options) -> u8 {
    if !options.command.is_empty() {
        return one_shot(options).await;
    }
    let settings = match context::settings(&options) {
        Ok(settings) => settings,
        Err(failure) => {
            eprintln!("{}", failure.text());
            return failure.exit_code();
        }
    };
    let mut runner = Runner::new(options, settings, false);
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if terminal && !runner.is_quiet() {
        println!("Connecting to {}", runner.settings.server);
    }
    if let Err(failure) = runner.connect().await {
        runner.show_failure(&failure);
        return failure.exit_code();
    }
    if terminal { shell::interactive(runner).await } else { shell::script(runner).await }
}

/// Does the command of the command line. Its words were cut by the shell that started us.
async fn one_shot(options: Options) -> u8 {
    let parsed = command::parse(&options.command, None).map_err(shell::parse_failure);
    // What needs no server needs no context either, and must work though their file is broken.
    let needs_settings = parsed
        .as_ref()
        .is_ok_and(|parsed| parsed.verb.needs_session || matches!(parsed.command, Command::Status | Command::Shell(_)));
    let settings = if needs_settings {
        context::settings(&options)
    } else {
        let own = Options { tls_ca: None, tls_cert: None, tls_key: None, tls_server_name: None, ..options.clone() };
        Settings::of(&own, None).map_err(Failure::Usage)
    };
    let (settings, early) = match settings {
        Ok(settings) => (settings, None),
        Err(failure) => {
            let none = Options::parse_from(["zkcli"]);
            match Settings::of(&Options { tls_cert: None, tls_key: None, tls_server_name: None, ..none }, None) {
                Ok(settings) => (settings, Some(failure)),
                Err(problem) => {
                    eprintln!("{problem}");
                    return failure.exit_code();
                }
            }
        }
    };
    let mut runner = Runner::new(options, settings, true);
    let result = match (early, parsed) {
        (Some(failure), Ok(_)) | (_, Err(failure)) => Err(failure),
        (None, Ok(parsed)) => {
            if let Some(notice) = &parsed.notice {
                runner.remark(notice);
            }
            run_one(&mut runner, parsed).await
        }
    };
    // Not before the failure is told: closing may take its time.
    let code = match result {
        Ok(()) => 0,
        Err(Failure::Cancelled) => Failure::Cancelled.exit_code(),
        Err(failure) => {
            runner.show_failure(&failure);
            failure.exit_code()
        }
    };
    runner.close().await;
    code
}

async fn run_one(runner: &mut Runner, parsed: Parsed) -> Result<(), Failure> {
    // Commands that hold or follow something end in order when they are interrupted; others just die of it.
    let signals = if takes_signals(&parsed.command) { Some(Signals::new()?) } else { None };
    if parsed.verb.needs_session {
        match signals {
            None => runner.connect().await?,
            Some(mut signals) => {
                signals.or_interrupted(runner.connect()).await??;
                runner.signals.set(Some(signals));
            }
        }
    }
    runner.run(parsed.command).await
}

/// Whether a command minds signals itself.
pub fn takes_signals(command: &Command) -> bool {
    matches!(
        command,
        Command::Watch(watching::Task::Follow(_))
            | Command::Coordinate(coordination::Task::Hold(_) | coordination::Task::Observe { .. })
            | Command::Meet(
                meet::Task::Barrier { what: BarrierTask::Wait { .. } | BarrierTask::Enter { .. }, .. }
                    | meet::Task::Queue { what: QueueTask::Take { .. } | QueueTask::Work { .. }, .. }
            )
            | Command::Shell(shell::Task::Edit { .. })
    )
}
