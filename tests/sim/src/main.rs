//! `corral-sim`: runs seeds, prints what they find.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use corral_sim::swarm::{Summary, swarm};
use corral_sim::trace::Verbosity;
use corral_sim::{explain, simulate};

/// Simulates whole ensembles, deterministically, from seeds.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one seed.
    Run {
        /// The seed.
        #[arg(long)]
        seed: u64,
        /// Print every event.
        #[arg(long)]
        trace: bool,
        /// Plant this bug of the zoo first: its number (Z3) or its name.
        #[cfg(feature = "zoo")]
        #[arg(long, value_parser = planted)]
        zoo: Option<corral_sim::zoo::Switch>,
    },
    /// Runs many seeds on all cores.
    Swarm {
        /// How many.
        #[arg(long, default_value_t = 1000)]
        seeds: u64,
        /// The first.
        #[arg(long, default_value_t = 1)]
        from: u64,
        /// Threads; 0: one for each core.
        #[arg(long, default_value_t = 0)]
        threads: usize,
        /// Stop after so many failures.
        #[arg(long, default_value_t = 20)]
        failures: usize,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        #[cfg(feature = "zoo")]
        Command::Run { seed, trace, zoo } => corral_sim::zoo::with(zoo, || run(seed, trace)),
        #[cfg(not(feature = "zoo"))]
        Command::Run { seed, trace } => run(seed, trace),
        Command::Swarm { seeds, from, threads, failures } => run_swarm(seeds, from, threads, failures),
    }
}

#[cfg(feature = "zoo")]
fn planted(name: &str) -> Result<corral_sim::zoo::Switch, String> {
    corral_sim::zoo::switch(name).ok_or_else(|| format!("there is no bug {name} in the zoo: see docs/testing.md"))
}

fn run(seed: u64, trace: bool) -> ExitCode {
    let report = simulate(seed, if trace { Verbosity::All } else { Verbosity::Tail });
    println!("{}", report.options);
    if report.violation.is_some() {
        let mut report = report;
        if trace {
            report.tail.clear();
        }
        println!("{}", report.explain());
        return ExitCode::FAILURE;
    }
    println!(
        "seed {seed}: nothing wrong in {} events, {} ms of virtual time, {} entries, {} answers; hash {:016x}",
        report.events, report.virtual_ms, report.committed, report.answered, report.hash
    );
    for (what, times) in &report.coverage {
        println!("{times:>8}  {what}");
    }
    ExitCode::SUCCESS
}

fn run_swarm(seeds: u64, from: u64, threads: usize, failures: usize) -> ExitCode {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n => n,
    };
    // Panics in a run are reported with their seed; the default hook would print them in between.
    std::panic::set_hook(Box::new(|_| {}));
    let bar = std::io::stdout().is_terminal();
    let watch = Stopwatch::start();
    let summary = swarm(from, seeds, threads, failures, |summary, new| {
        if let Some((seed, invariant, text)) = new {
            println!("FAILED seed {seed}: {invariant}: {text}");
        }
        if bar && summary.seeds % 10 == 0 {
            print!("\r{} of {seeds} seeds, {} failed ", summary.seeds, summary.failures.len());
            let _ = std::io::stdout().flush();
        }
    });
    print_summary(&summary, watch.elapsed());
    match summary.failures.first() {
        None => ExitCode::SUCCESS,
        Some((seed, _, _)) => {
            println!("{}", explain(*seed));
            ExitCode::FAILURE
        }
    }
}

fn print_summary(summary: &Summary, took: Duration) {
    println!("\n in runs    in all");
    for (what, (runs, times)) in &summary.coverage {
        println!("{runs:>8} {times:>9}  {what}");
    }
    let seconds = took.as_secs_f64().max(0.001);
    println!(
        "{} seeds, {} failed; {} events in {seconds:.1} s ({:.0} a second), {} s of virtual time, {} entries, {} answers",
        summary.seeds,
        summary.failures.len(),
        summary.events,
        summary.events as f64 / seconds,
        summary.virtual_ms / 1000,
        summary.committed,
        summary.answered
    );
}

/// The one thing here that reads a clock: for the figures of a summary.
struct Stopwatch(std::time::Instant);

impl Stopwatch {
    #[expect(clippy::disallowed_methods, reason = "figures for people; no run sees it")]
    fn start() -> Stopwatch {
        Stopwatch(std::time::Instant::now())
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}
