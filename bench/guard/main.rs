//! `corral-guard`: finds changes that make the hot paths do more, on any machine, however busy.
//!
//! It counts instructions with callgrind and compares them with a file that is checked in. A count does not depend on how
//! fast the machine is or what else it does; it does depend on the compiler and the profile, which the file names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};
use corral_rooms::{ROOMS, Room};
use serde::{Deserialize, Serialize};

/// What the checked-in file is called when it is not named, from the top of the source tree.
const BASELINE: &str = "bench/guard/baseline.json";
/// The version of the compiler that built this program.
const RUSTC: &str = env!("BENCH_RUSTC_VERSION");

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

#[derive(Parser)]
#[command(name = "corral-guard", version, about = "Compares instruction counts of the hot paths with a baseline")]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Count, compare with the baseline, fail if something does more.
    Check(Args),
    /// Count, and make that the baseline.
    Renew(Args),
    /// Print what there is to count.
    List,
    /// Do one piece of work so many times: what runs under callgrind.
    Run {
        /// Which.
        room: String,
        /// How often, after it was done once.
        operations: u64,
    },
}

#[derive(clap::Args)]
struct Args {
    /// The file to compare with, or to write.
    #[arg(long, value_name = "FILE", default_value = BASELINE)]
    baseline: PathBuf,
    /// How much more is a failure, in percent.
    #[arg(long, default_value_t = 10.0)]
    tolerance: f64,
    /// Only those whose name contains one of these (not with `renew`: a baseline is whole).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Folder for callgrind's profiles, which `callgrind_annotate` reads. Default: one that goes with this program.
    #[arg(long, value_name = "DIR")]
    profiles: Option<PathBuf>,
}

/// The checked-in file.
#[derive(Debug, Deserialize, Serialize)]
struct Baseline {
    /// Counts are comparable as long as this and the next stay the same.
    rustc: String,
    profile: String,
    /// Instructions of one operation.
    instructions: BTreeMap<String, u64>,
}

fn profile() -> &'static str {
    if cfg!(debug_assertions) { "with debug assertions" } else { "without debug assertions" }
}

fn main() -> ExitCode {
    match act(Cli::parse().command) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("corral-guard: {error}");
            ExitCode::FAILURE
        }
    }
}

fn act(action: Action) -> Result<String> {
    match action {
        Action::Check(args) => check(&args),
        Action::Renew(args) => renew(&args),
        Action::List => {
            Ok(ROOMS.iter().map(|room| format!("{:24}{}", room.name, room.about)).collect::<Vec<_>>().join("\n"))
        }
        Action::Run { room, operations } => {
            let room =
                ROOMS.iter().find(|r| r.name == room).ok_or_else(|| format!("{room}: see `corral-guard list`"))?;
            let mut operation = (room.prepare)();
            // Whatever is made on first use is made now.
            operation();
            (0..operations).for_each(|_| operation());
            Ok(format!("{} x {operations}", room.name))
        }
    }
}

fn renew(args: &Args) -> Result<String> {
    if !args.only.is_empty() {
        return Err("--only: a baseline is whole".into());
    }
    let instructions = count_all(args, |_| None)?;
    let baseline = Baseline { rustc: RUSTC.to_owned(), profile: profile().to_owned(), instructions };
    let text = format!("{}\n", serde_json::to_string_pretty(&baseline)?);
    std::fs::write(&args.baseline, text).map_err(about(&args.baseline))?;
    Ok(format!("{} is new: {} counts", args.baseline.display(), baseline.instructions.len()))
}

fn check(args: &Args) -> Result<String> {
    if !(0.0..=1000.0).contains(&args.tolerance) {
        return Err(format!("--tolerance {}: allowed are 0 to 1000 percent", args.tolerance).into());
    }
    let text = std::fs::read_to_string(&args.baseline).map_err(about(&args.baseline))?;
    let baseline: Baseline = serde_json::from_str(&text).map_err(about(&args.baseline))?;
    if baseline.profile != profile() {
        return Err(format!(
            "the baseline was counted {}, and this program is built {}: build it with the same profile",
            baseline.profile,
            profile()
        )
        .into());
    }
    let counts = count_all(args, |name| baseline.instructions.get(name).copied())?;
    let problems = compare(&baseline.instructions, &counts, args.tolerance, args.only.is_empty());
    if problems.is_empty() {
        return Ok(format!("{} counts, none more than {} % above the baseline", counts.len(), args.tolerance));
    }
    let mut message = format!("the hot paths do more than {} allows:\n", args.baseline.display());
    for problem in problems {
        writeln!(message, "  {problem}")?;
    }
    if baseline.rustc != RUSTC {
        writeln!(
            message,
            "The baseline was counted with {}, this program is built with {RUSTC}: to tell the compiler's share from your \
             own, count the commit before yours too.",
            baseline.rustc
        )?;
    }
    message.push_str(
        "Where they go: `corral-guard check --only NAME --profiles DIR`, then `callgrind_annotate DIR/NAME.out`.\n\
         If it is meant and worth it, say so in the commit and renew the baseline: `corral-guard renew`.",
    );
    Err(message.into())
}

fn about<E: std::fmt::Display>(path: &Path) -> impl FnOnce(E) -> Box<dyn std::error::Error> {
    move |error| format!("{}: {error}", path.display()).into()
}

/// What is wrong with these counts, in words. `whole`: everything was counted.
fn compare(
    baseline: &BTreeMap<String, u64>,
    counts: &BTreeMap<String, u64>,
    tolerance: f64,
    whole: bool,
) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, &count) in counts {
        match baseline.get(name) {
            None => problems.push(format!("{name}: the baseline does not have it; renew it")),
            Some(&before) if count as f64 > before as f64 * (1.0 + tolerance / 100.0) => {
                problems
                    .push(format!("{name}: {count} instructions, were {before} ({:+.1} %)", percent(before, count)));
            }
            Some(_) => {}
        }
    }
    if whole {
        let gone = baseline.keys().filter(|name| !counts.contains_key(*name));
        problems.extend(gone.map(|name| format!("{name}: in the baseline and nowhere else; renew it")));
    }
    problems
}

fn percent(before: u64, now: u64) -> f64 {
    (now as f64 / before.max(1) as f64 - 1.0) * 100.0
}

/// Counts, with a line for each on standard error.
fn count_all(args: &Args, before: impl Fn(&str) -> Option<u64>) -> Result<BTreeMap<String, u64>> {
    let own;
    let folder = match &args.profiles {
        Some(folder) => {
            std::fs::create_dir_all(folder).map_err(about(folder))?;
            folder.as_path()
        }
        None => {
            own = tempfile::tempdir()?;
            own.path()
        }
    };
    let wanted = |room: &&Room| args.only.is_empty() || args.only.iter().any(|only| room.name.contains(only.as_str()));
    let rooms: Vec<&Room> = ROOMS.iter().filter(wanted).collect();
    if rooms.is_empty() {
        return Err("--only: no name contains that; `corral-guard list` prints them".into());
    }
    let mut counts = BTreeMap::new();
    for room in rooms {
        let count = count(room, folder)?;
        let change = before(room.name).map_or(String::new(), |before| format!("  {:+6.1} %", percent(before, count)));
        eprintln!("{:24}{count:>9}{change}", room.name);
        counts.insert(room.name.to_owned(), count);
    }
    Ok(counts)
}

/// Instructions of one operation: what so many more of them cost, so that neither the start of the program nor the
/// making of a tree is in it.
fn count(room: &Room, folder: &Path) -> Result<u64> {
    let few = callgrind(room.name, room.operations / 10, folder)?;
    let many = callgrind(room.name, room.operations / 10 + room.operations, folder)?;
    Ok(many.saturating_sub(few) / room.operations)
}

fn callgrind(room: &str, operations: u64, folder: &Path) -> Result<u64> {
    let out = folder.join(format!("{room}.out"));
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", &format!("--callgrind-out-file={}", out.display())])
        .arg(std::env::current_exe()?)
        .args(["run", room, &operations.to_string()])
        .output()
        .map_err(|error| format!("valgrind cannot be started ({error}): install Debian's package valgrind"))?;
    let text = String::from_utf8_lossy(&run.stderr);
    match collected(&text) {
        Some(count) if run.status.success() => Ok(count),
        _ => Err(format!("{room} failed under callgrind ({}):\n{text}", run.status).into()),
    }
}

/// The line is `==42== Collected : 12345`.
fn collected(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.split_once("Collected :"))?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
        pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn only_what_is_beyond_the_tolerance_is_a_problem() {
        let before = counts(&[("a", 1000), ("b", 1000), ("c", 1000)]);
        let now = counts(&[("a", 1100), ("b", 1101), ("c", 500)]);
        assert_eq!(compare(&before, &now, 10.0, true), ["b: 1101 instructions, were 1000 (+10.1 %)"]);
    }

    #[test]
    fn baseline_and_counts_must_be_about_the_same() {
        let problems = compare(&counts(&[("old", 1)]), &counts(&[("new", 1)]), 10.0, true);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(compare(&counts(&[("a", 1), ("b", 1)]), &counts(&[("a", 1)]), 10.0, false).is_empty());
    }

    #[test]
    fn the_count_is_read_from_what_callgrind_prints() {
        assert_eq!(collected("==7== Events    : Ir\n==7== Collected : 1234567\n==7==\n"), Some(1_234_567));
        assert_eq!(collected("valgrind: cannot run\n"), None);
    }

    #[test]
    fn the_checked_in_baseline_is_about_what_there_is() {
        let text = include_str!("baseline.json");
        let baseline: Baseline = serde_json::from_str(text).unwrap();
        let names: Vec<&str> = baseline.instructions.keys().map(String::as_str).collect();
        let mut rooms: Vec<&str> = ROOMS.iter().map(|room| room.name).collect();
        rooms.sort_unstable();
        assert_eq!(names, rooms);
    }
}
