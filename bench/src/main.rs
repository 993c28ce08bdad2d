//! `corral-bench`: what a server costs and how fast it is.
//!
//! Works against any server that speaks ZooKeeper's protocol, and over gRPC against Corral. Everything that is measured
//! is printed as one line of JSON on standard output; what happens meanwhile goes to standard error.

mod compare;
mod drive;
mod ensemble;
mod etcd;
mod failover;
mod histogram;
mod load;
mod meet;
mod null;
mod plots;
mod process;
mod restart;
mod run;
mod scale;
mod sessions;
mod wire;
mod workload;

use std::error::Error;
use std::fmt::Display;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Everything here ends in one message to the person who started it.
pub type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Puts in front of an error what it is about.
pub fn context<E: Display>(what: impl Display) -> impl FnOnce(E) -> Box<dyn Error + Send + Sync> {
    move |error| format!("{what}: {error}").into()
}

#[derive(Parser)]
#[command(name = "corral-bench", version, about = "Measures servers that speak ZooKeeper's protocol, and Corral")]
struct Cli {
    /// Threads that generate load. One is enough until it is busy: it then spends less on each request.
    #[arg(long, global = true, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One workload against running servers.
    Run(run::RunArgs),
    /// Create many znodes.
    Load(load::LoadArgs),
    /// Begin many sessions, and leave them alone.
    Sessions(sessions::SessionsArgs),
    /// Kill leaders of an own ensemble, and measure how long writes stop.
    Failover(failover::FailoverArgs),
    /// Kill and restart an own server under load, and measure how long it is away.
    Restart(restart::RestartArgs),
    /// Many sessions and watches on an own server, and all clients back at once.
    Scale(scale::ScaleArgs),
    /// The same rows for several products by turns, as a table and pictures.
    Compare(compare::CompareArgs),
    /// Serve as a server that does nothing.
    Null(null::NullArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    process::raise_open_files();
    let mut builder = match cli.threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if cli.threads > 1 {
        builder.worker_threads(cli.threads.into());
    }
    let result = match builder.enable_all().build() {
        Ok(runtime) => runtime.block_on(execute(cli.command)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("corral-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn execute(command: Command) -> Result<String> {
    Ok(match command {
        Command::Run(args) => serde_json::to_string(&run::run(&args).await?)?,
        Command::Load(args) => serde_json::to_string(&load::load(&args).await?)?,
        Command::Sessions(args) => serde_json::to_string(&sessions::sessions(&args).await?)?,
        Command::Failover(args) => serde_json::to_string(&failover::failover(&args).await?)?,
        Command::Restart(args) => serde_json::to_string(&restart::restart(&args).await?)?,
        Command::Scale(args) => serde_json::to_string(&scale::scale(&args).await?)?,
        Command::Compare(args) => compare::compare(&args).await?,
        Command::Null(args) => {
            null::serve(&args).await?;
            String::new()
        }
    })
}
