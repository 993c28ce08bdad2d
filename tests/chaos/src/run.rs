//! One run: servers, clients, faults, peace, verdict.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::builder::TypedValueParser;
use clap::{Args, ValueEnum};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::ensemble::{Ensemble, PATIENCE};
use crate::journal::{Journal, Summary};
use crate::nemesis::{self, Fault, Schedule};
use crate::space::Spaces;
use crate::workload::{self, Ctx, Kind};
use crate::{Result, context};

/// Peace at the end with clients at work: they must get on.
const PEACE: Duration = Duration::from_secs(3);
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);

/// What is run.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Seconds with faults; healing and the last checks come on top.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub seconds: u64,
    /// Fixes the schedule of faults: kinds, order, times and sizes. Not what the processes do meanwhile.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Servers of the ensemble.
    #[arg(long, default_value_t = 3, value_parser = clap::builder::PossibleValuesParser::new(["3", "5"]).map(|n| n.parse::<u64>().unwrap_or(3)))]
    pub servers: u64,
    /// Only these faults. Default: all.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub nemesis: Vec<Fault>,
    /// Only these workloads. Default: all.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub workload: Vec<Kind>,
    /// Folder for data, logs and evidence; it must be new or empty. Default: a temporary one.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Leave the folder there also if all is well.
    #[arg(long)]
    pub keep: bool,
    /// Write the summary as JSON to standard output, and nothing but violations to standard error.
    #[arg(long)]
    pub json: bool,
    /// The program `corral`. Default: the one beside this program.
    #[arg(long, value_name = "FILE")]
    pub corral: Option<PathBuf>,
    /// Do without network namespaces: everything on loopback, through the proxies alone.
    #[arg(long)]
    pub no_namespaces: bool,
    /// The process that made the namespaces in which this one runs.
    #[arg(long, hide = true)]
    pub keeper: Option<u32>,
}

/// How a run ended.
#[derive(Serialize)]
pub struct Report {
    /// What was asked for.
    pub seed: u64,
    /// See `seed`.
    pub servers: u64,
    /// With faults.
    pub seconds: f64,
    /// Whether servers had networks of their own.
    pub namespaces: bool,
    /// Where data, logs and evidence are, if they stay.
    pub folder: Option<PathBuf>,
    #[serde(flatten)]
    pub summary: Summary,
}

/// Runs, and removes everything that it made, but for the folder of a run that failed.
///
/// # Errors
/// If it cannot be run.
pub async fn run(args: &RunArgs) -> Result<Report> {
    let program = match &args.corral {
        Some(program) => program.clone(),
        None => beside_this_program("corral")?,
    };
    let program = program.canonicalize().map_err(context(program.display()))?;
    let folder = make_folder(args)?;
    let journal = Arc::new(Journal::new(&folder, args.json));
    let spaces = args.keeper.map(|keeper| Spaces::of(keeper, args.servers));
    let where_ = if spaces.is_some() { "network namespaces" } else { "loopback, proxies alone" };
    journal.say(format_args!("seed {}, {} servers ({where_}), folder {}", args.seed, args.servers, folder.display()));
    let mut ensemble = Ensemble::start(&program, &folder, args.servers, spaces, args.seed, journal.clone()).await?;
    let finished = tokio::select! {
        finished = with_servers(args, &mut ensemble, &journal) => finished,
        () = interrupted() => Err("interrupted".into()),
    };
    ensemble.kill_all()?;
    let summary = journal.summary();
    let stays = args.keep || finished.is_err() || !summary.violations.is_empty();
    if stays {
        ensemble.keep_small_disks()?
    } else {
        ensemble.drop_small_disks()
    }
    drop(ensemble);
    if let Err(error) = finished {
        return Err(format!("{error} (logs are in {})", folder.display()).into());
    }
    if !stays {
        std::fs::remove_dir_all(&folder).map_err(context(folder.display()))?;
    }
    Ok(Report {
        seed: args.seed,
        servers: args.servers,
        seconds: journal.now() as f64 / 1e6,
        namespaces: spaces.is_some(),
        folder: stays.then_some(folder),
        summary,
    })
}

async fn with_servers(args: &RunArgs, ensemble: &mut Ensemble, journal: &Arc<Journal>) -> Result<()> {
    if !ensemble.wait_whole(PATIENCE).await? {
        return Err(format!("the servers never begin to serve\n{}", ensemble.tails(30)).into());
    }
    let (ending, kept) = (CancellationToken::new(), Arc::new(Mutex::new(Vec::new())));
    let mut clients = JoinSet::new();
    for kind in chosen(&args.workload) {
        let ctx = Ctx {
            journal: journal.clone(),
            servers: ensemble.client_addresses(),
            seed: args.seed,
            name: kind.name(),
            ending: ending.clone(),
            kept: kept.clone(),
        };
        clients.spawn(workload::run(kind, Arc::new(ctx)));
    }
    let progress = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(show_progress(journal.clone())));
    let schedule = Schedule::new(args.seed, &chosen(&args.nemesis));
    let until = Instant::now() + Duration::from_secs(args.seconds);
    nemesis::run(ensemble, schedule, until, journal).await?;
    journal.say("all faults are healed; clients go on for a while");
    let is_whole = ensemble.wait_whole(PATIENCE).await?;
    if is_whole {
        sleep(PEACE).await;
    }
    ending.cancel();
    let all_done = async {
        while let Some(done) = clients.join_next().await {
            if let Err(error) = done {
                journal.violation("clients", format_args!("a workload panicked: {error}"), "");
            }
        }
    };
    if timeout(PATIENCE * 2, all_done).await.is_err() {
        journal.violation("clients", "some clients never end although all is well", &ensemble.tails(300));
    }
    clients.shutdown().await;
    drop(progress);
    let kept = kept.lock().clone();
    crate::rest::check(ensemble, &kept, journal).await?;
    for id in ensemble.ids() {
        if ensemble.log(id).contains("panicked at") {
            journal.violation("processes", format_args!("server {id} panicked"), &ensemble.log(id));
        }
    }
    Ok(())
}

/// Those that were named, or all.
fn chosen<T: ValueEnum + Clone>(named: &[T]) -> Vec<T> {
    if named.is_empty() { T::value_variants().to_vec() } else { named.to_vec() }
}

async fn show_progress(journal: Arc<Journal>) {
    let mut ticks = interval(PROGRESS);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let summary = journal.summary();
        let ok: u64 = summary.operations.values().map(|counts| counts.ok).sum();
        let unknown: u64 = summary.operations.values().map(|counts| counts.unknown).sum();
        let faults: u64 = summary.faults.values().sum();
        let rounds: u64 = summary.rounds.values().sum();
        journal.say(format_args!(
            "... {ok} operations done, {unknown} of unknown outcome, {faults} faults, {rounds} rounds checked"
        ));
    }
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn make_folder(args: &RunArgs) -> Result<PathBuf> {
    let folder = match &args.dir {
        Some(dir) => dir.clone(),
        None => std::env::temp_dir().join(format!("corral-chaos-{}", std::process::id())),
    };
    std::fs::create_dir_all(&folder).map_err(context(folder.display()))?;
    let folder = folder.canonicalize()?;
    if std::fs::read_dir(&folder)?.next().is_some() {
        return Err(format!("{} is not empty: name another --dir", folder.display()).into());
    }
    Ok(folder)
}

fn beside_this_program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let program = own.parent().unwrap_or(Path::new(".")).join(name);
    match program.exists() {
        true => Ok(program),
        false => Err(format!("there is no {}: build it, or name it with --corral", program.display()).into()),
    }
}
