//! `corral-sim`: runs seeds, prints what they find.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use corral_sim::journal::{self, Batch, Journal, JournalError};
use corral_sim::options::{self, Reduction, SimOptions};
use corral_sim::swarm::{Failure, Summary, swarm};
use corral_sim::trace::Verbosity;
use corral_sim::{Report, explain, goals, shrink, simulate_with};

/// Seeds that a line of a journal stands for, at most: so many are run again after an interruption.
const BATCH: u64 = 500;
/// Characters of a progress bar.
const BAR: u64 = 30;

/// Simulates whole ensembles, deterministically, from seeds.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Results go to standard output, progress to standard error.

Exit codes:
  0  nothing is wrong
  1  a seed broke an invariant, or a goal was reached by none of enough seeds
  2  the command cannot be carried out as it was given";

#[derive(Subcommand)]
enum Command {
    /// Runs one seed, always in the same way, and tells what happened to the servers.
    Run {
        /// The seed.
        #[arg(long)]
        seed: u64,
        /// Print every event: messages, log writes, what clients ask and get.
        #[arg(long)]
        trace: bool,
        #[command(flatten)]
        less: Less,
        #[command(flatten)]
        zoo: Zoo,
    },
    /// Runs many seeds on all cores.
    Swarm {
        /// How many.
        #[arg(long, default_value_t = 1000)]
        seeds: u64,
        /// The first; with a journal, the one behind its last.
        #[arg(long, conflicts_with = "journal")]
        from: Option<u64>,
        /// Threads; 0: one for each core.
        #[arg(long, default_value_t = 0)]
        threads: usize,
        /// Stop after so many failures.
        #[arg(long, default_value_t = 20)]
        failures: usize,
        /// Note in this file what was run, and go on behind its last seed.
        #[arg(long, value_name = "FILE")]
        journal: Option<PathBuf>,
        /// Print the summary as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Tells what was run so far, by its journal.
    Journal {
        /// The journal of a swarm; it may be running.
        file: PathBuf,
        /// Print the summary as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Makes a failure smaller, and prints the command that shows the smallest one.
    Shrink {
        /// A seed that fails.
        #[arg(long)]
        seed: u64,
        /// Runs at most.
        #[arg(long, default_value_t = 500)]
        attempts: u64,
        #[command(flatten)]
        zoo: Zoo,
    },
}

/// A bug that is planted first.
#[derive(Args)]
struct Zoo {
    /// Plant this bug of the zoo first: its number (Z3) or its name.
    #[cfg(feature = "zoo")]
    #[arg(long, value_parser = planted)]
    zoo: Option<corral_sim::zoo::Switch>,
}

impl Zoo {
    /// Does something with the bug planted.
    fn with<T>(&self, what: impl FnOnce() -> T) -> T {
        #[cfg(feature = "zoo")]
        return corral_sim::zoo::with(self.zoo, what);
        #[cfg(not(feature = "zoo"))]
        what()
    }

    /// As flags, with a space before.
    fn flags(&self) -> String {
        #[cfg(feature = "zoo")]
        return self.zoo.map_or_else(String::new, |zoo| format!(" --zoo {}", zoo.number()));
        #[cfg(not(feature = "zoo"))]
        String::new()
    }
}

/// What is left out of a run; `shrink` prints these.
#[derive(Args)]
struct Less {
    /// These faults do not strike: kinds and numbers, like crash.1,partition.3.
    #[arg(long, value_name = "FAULTS", default_value = "", hide_default_value = true)]
    skip: String,
    /// These clients do nothing; counted from 0.
    #[arg(long, value_name = "CLIENTS", value_delimiter = ',')]
    without_clients: Vec<u64>,
    /// So many voters.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=9))]
    voters: Option<u64>,
    /// So many observers.
    #[arg(long, value_parser = clap::value_parser!(u64).range(0..=9))]
    observers: Option<u64>,
    /// The faults end after so many virtual milliseconds.
    #[arg(long)]
    safety_ms: Option<u64>,
}

impl Less {
    fn reduction(self) -> Result<Reduction, String> {
        Ok(Reduction {
            skip: options::parse_faults(&self.skip)?,
            without_clients: self.without_clients.into_iter().collect(),
            voters: self.voters,
            observers: self.observers,
            safety_ms: self.safety_ms,
        })
    }
}

fn main() -> ExitCode {
    // Panics in a run are reported with their seed; the default hook would print them in between.
    std::panic::set_hook(Box::new(|_| {}));
    let done = match Arguments::parse().command {
        Command::Run { seed, trace, less, zoo } => {
            less.reduction().map(|reduction| zoo.with(|| run(seed, trace, &reduction)))
        }
        Command::Swarm { seeds, from, threads, failures, journal, json } => {
            let plan = Plan { from: from.unwrap_or(1), seeds, threads: threads_or_cores(threads), failures };
            run_swarm(plan, journal.as_deref(), json).map_err(|error| error.to_string())
        }
        Command::Journal { file, json } => summarise(&file, json).map_err(|error| error.to_string()),
        Command::Shrink { seed, attempts, zoo } => Ok(zoo.with(|| run_shrink(seed, attempts, &zoo.flags()))),
    };
    done.unwrap_or_else(|error| {
        eprintln!("corral-sim: {error}");
        ExitCode::from(2)
    })
}

#[cfg(feature = "zoo")]
fn planted(name: &str) -> Result<corral_sim::zoo::Switch, String> {
    corral_sim::zoo::switch(name).ok_or_else(|| format!("there is no bug {name} in the zoo: see docs/testing.md"))
}

fn threads_or_cores(threads: usize) -> usize {
    match threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n => n,
    }
}

fn run(seed: u64, trace: bool, reduction: &Reduction) -> ExitCode {
    let verbosity = if trace { Verbosity::All } else { Verbosity::Story };
    let options = SimOptions::draw(seed).reduced(reduction);
    println!("{options}");
    let mut report = simulate_with(options, verbosity);
    if report.violation.is_some() {
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

/// What a swarm is to do.
struct Plan {
    from: u64,
    seeds: u64,
    threads: usize,
    failures: usize,
}

fn run_swarm(plan: Plan, journal: Option<&Path>, json: bool) -> Result<ExitCode, JournalError> {
    let mut journal = journal.map(Journal::open).transpose()?;
    let from = journal.as_ref().map_or(plan.from, Journal::next_seed);
    if let Some(journal) = &journal {
        eprintln!("{} seeds are in the journal; going on with seed {from}", from - 1);
        let format = options::format();
        if journal.batches().last().is_some_and(|batch| batch.format != format) {
            eprintln!("what a seed draws has changed since; the journal counts both");
        }
    }
    let bar = Bar { draws: std::io::stderr().is_terminal(), seeds: plan.seeds, watch: Stopwatch::start() };
    let mut summary = Summary::default();
    while summary.seeds < plan.seeds && summary.failures.len() < plan.failures {
        let (first, count) = (from + summary.seeds, BATCH.min(plan.seeds - summary.seeds));
        let watch = Stopwatch::start();
        let batch = swarm(first, count, plan.threads, plan.failures - summary.failures.len(), |batch, new| {
            if let Some(failure) = new {
                bar.clear();
                eprintln!("{}", line_of(failure));
            }
            bar.draw(summary.seeds + batch.seeds, summary.failures.len() + batch.failures.len());
        });
        // A batch that was ended early by failures has gaps; it is not noted, except for them.
        if let Some(journal) = &mut journal
            && batch.seeds == count
        {
            let (format, wall_ms) = (options::format(), watch.elapsed().as_millis() as u64);
            journal.append(Batch { format, from: first, to: first + count - 1, wall_ms, summary: batch.clone() })?;
        }
        let ended_early = batch.seeds < count;
        summary.merge(&batch);
        if ended_early {
            break;
        }
    }
    bar.clear();
    let took = bar.watch.elapsed();
    let ok = print_summary(&summary, Some(took), json);
    if let Some(failure) = summary.failures.first()
        && !json
    {
        println!("{}", explain(failure.seed));
    }
    Ok(exit_code(ok))
}

fn line_of(failure: &Failure) -> String {
    format!("FAILED seed {}: {}: {}", failure.seed, failure.invariant, failure.text)
}

fn summarise(file: &Path, json: bool) -> Result<ExitCode, JournalError> {
    let batches = journal::read(file)?;
    let (summary, formats) = journal::total(&batches);
    let took = Duration::from_millis(batches.iter().map(|batch| batch.wall_ms).sum());
    if !json {
        for failure in &summary.failures {
            println!("{}", line_of(failure));
        }
        for (format, seeds) in &formats {
            println!("{seeds:>8} seeds with options {format}");
        }
    }
    Ok(exit_code(print_summary(&summary, Some(took), json)))
}

fn exit_code(ok: bool) -> ExitCode {
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints what came of a swarm; whether all is well.
fn print_summary(summary: &Summary, took: Option<Duration>, json: bool) -> bool {
    let missing = goals::missing(&summary.coverage, summary.seeds);
    let seconds = took.map_or(0.0, |took| took.as_secs_f64()).max(0.001);
    if json {
        let value = serde_json::json!({ "summary": summary, "missing": missing, "wall_ms": (seconds * 1e3) as u64 });
        println!("{value}");
    } else {
        println!(" in runs    in all");
        for (what, (runs, times)) in &summary.coverage {
            println!("{runs:>8} {times:>9}  {what}");
        }
        for what in &missing {
            println!("       0         0  {what}: NOT REACHED");
        }
        println!(
            "{} seeds, {} failed; {} events in {seconds:.1} s ({:.1} seeds and {:.0} events a second), {} s of virtual \
             time, {} entries, {} answers",
            summary.seeds,
            summary.failures.len(),
            summary.events,
            summary.seeds as f64 / seconds,
            summary.events as f64 / seconds,
            summary.virtual_ms / 1000,
            summary.committed,
            summary.answered
        );
    }
    summary.failures.is_empty() && missing.is_empty()
}

fn run_shrink(seed: u64, attempts: u64, flags: &str) -> ExitCode {
    let draws = std::io::stderr().is_terminal();
    let found = shrink::shrink(seed, attempts, &mut |attempt, report: &Report| {
        if draws {
            eprint!("\r\x1b[K{attempt} of {attempts} runs; smallest: {} events", report.events);
        }
    });
    if draws {
        eprintln!();
    }
    let Some(smallest) = found else {
        println!("seed {seed} does not fail");
        return ExitCode::SUCCESS;
    };
    println!("{}", smallest.report.explain());
    println!(
        "the smallest of {} runs:\n  corral-sim run --seed {seed}{flags}{}",
        smallest.attempts, smallest.reduction
    );
    ExitCode::FAILURE
}

/// A progress bar, if there is somebody to see it.
struct Bar {
    draws: bool,
    seeds: u64,
    watch: Stopwatch,
}

impl Bar {
    fn draw(&self, done: u64, failed: usize) {
        if !self.draws || !done.is_multiple_of(10) && done != self.seeds {
            return;
        }
        let filled = (BAR * done / self.seeds.max(1)) as usize;
        let rate = done as f64 / self.watch.elapsed().as_secs_f64().max(0.001);
        let left = (self.seeds - done) as f64 / rate.max(0.001);
        eprint!(
            "\r\x1b[K[{}{}] {done} of {} seeds, {rate:.0} a second, {left:.0} s left, {failed} failed ",
            "#".repeat(filled),
            ".".repeat(BAR as usize - filled),
            self.seeds
        );
        // A bar that cannot be drawn is no reason to stop.
        let _ = std::io::stderr().flush();
    }

    fn clear(&self) {
        if self.draws {
            eprint!("\r\x1b[K");
        }
    }
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
