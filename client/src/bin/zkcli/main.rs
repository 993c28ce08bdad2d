//! `zkcli`: ZooKeeper's shell for Corral, one command at a time or interactively.
//!
//! `command.rs` turns text into commands and `print.rs` answers into text, both without any IO; `walk.rs` is the order in
//! which subtrees are visited. `run.rs` carries commands out, `shell.rs` reads them, `status.rs` asks servers directly.

mod command;
#[allow(rustdoc::broken_intra_doc_links, reason = "help texts show brackets as users type them")]
mod options;
mod print;
mod run;
mod shell;
mod status;
mod walk;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;

use crate::command::Command;
use crate::options::{Options, normalise};
use crate::print::Failure;
use crate::run::Runner;

fn main() -> ExitCode {
    let options = Options::parse_from(normalise(std::env::args()));
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
    let mut runner = Runner::new(options, false);
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if terminal {
        println!("Connecting to {}", runner.server());
    }
    if let Err(failure) = runner.connect().await {
        runner.show_failure(&failure);
        return failure.exit_code();
    }
    if terminal { shell::interactive(runner).await } else { shell::script(runner).await }
}

/// Does the command of the command line. Its words were cut by the shell that started us.
async fn one_shot(options: Options) -> u8 {
    let words = options.command.clone();
    let mut runner = Runner::new(options, true);
    let result = match command::parse(&words) {
        Err(error) => Err(shell::parse_failure(error)),
        Ok(parsed) => {
            if let Some(notice) = parsed.notice {
                eprintln!("{notice}");
            }
            run_one(&mut runner, parsed.command).await
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

async fn run_one(runner: &mut Runner, command: Command) -> Result<(), Failure> {
    let streams = matches!(command, Command::Watch { .. });
    let work = async {
        if Runner::needs_session(&command) {
            runner.connect().await?;
        }
        runner.run(command).await
    };
    if !streams {
        return work.await;
    }
    // Ctrl-C is how a watch ends: the session is closed in order then. Other commands just die of it.
    tokio::select! {
        biased;
        interrupted = tokio::signal::ctrl_c() => Err(match interrupted {
            Ok(()) => Failure::Cancelled,
            Err(error) => Failure::Other(format!("Ctrl-C cannot be caught: {error}")),
        }),
        result = work => result,
    }
}
