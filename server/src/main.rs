//! The program `corral`: flags, logging, signals.
//!
//! Everything a server does begins in [`corral_server::node`]; what is here turns a command line into a
//! [`corral_server::config::Config`] and a signal into a stop.

mod ensemble;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use corral_proto::{SessionId, Zxid};
use corral_server::config::{self, Config, Override, Parsed};
use corral_server::inspect::{InspectError, log};
use corral_server::node::Node;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

/// Most of what a server allocates is small, short-lived and freed by another thread than the one that asked for it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Where a server without any configuration keeps its data.
const DATA_DIR_DEFAULT: &str = "corral-data";
/// A server that has not stopped so long after it was asked to is left to its fate: what it acknowledged is on disk.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Exit code for a command line or configuration that cannot be used.
const EXIT_USAGE: u8 = 2;

#[derive(Parser)]
#[command(name = "corral", version, about = "A coordination service that speaks ZooKeeper's protocol and gRPC")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one server.
    Serve(ServeArgs),
    /// Run a whole ensemble on this machine: one process for each server.
    Ensemble(ensemble::EnsembleArgs),
    /// Force a stopped server's copy of the data to be the one that counts, when a majority is lost for good.
    Recover(RecoverArgs),
    /// Verify the log and the store of a stopped server, and say what its next start would make of them. Changes nothing.
    ///
    /// Exit code 0: sound; 1: something is wrong; 2: the folder could not be read.
    Check(CheckArgs),
    /// Print the log of a server, as far as it can be read. Changes nothing.
    ///
    /// Exit code 0: whole; 1: damaged; 2: it could not be read.
    Log(LogCommandArgs),
    /// Print every key of the configuration as a Markdown table.
    Keys,
    /// Print the version.
    Version,
}

#[derive(Args)]
struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Execute this entry as a system error, for an entry that no server can execute; may be repeated. Must be given on
    /// every server.
    #[arg(long, value_name = "ZXID")]
    skip_entry: Vec<String>,
    /// Check the configuration, say what is wrong with it, and start nothing.
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    log: LogArgs,
    /// Stop when this process, the parent, ends.
    #[arg(long, hide = true, value_name = "PID")]
    parent: Option<i32>,
}

/// The configuration of one server.
#[derive(Args)]
struct ConfigArgs {
    /// ZooKeeper's zoo.cfg. Without it: an ensemble of one, on loopback, its data in ./corral-data.
    #[arg(short, long, value_name = "FILE", env = "CORRAL_CONFIG")]
    config: Option<PathBuf>,
    /// Number of this server (instead of the file dataDir/myid).
    #[arg(long, value_name = "N")]
    id: Option<String>,
    /// Folder for the state (dataDir).
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Folder for the transaction log (dataLogDir).
    #[arg(long, value_name = "DIR")]
    data_log_dir: Option<String>,
    /// Port for clients (clientPort); 0: any free one.
    #[arg(long, value_name = "PORT")]
    client_port: Option<String>,
    /// Address for clients (clientPortAddress).
    #[arg(long, value_name = "ADDRESS")]
    client_address: Option<String>,
    /// Any key of the configuration; may be repeated. `corral keys` lists them.
    #[arg(long, value_name = "KEY=VALUE", value_parser = Override::from_set)]
    set: Vec<Override>,
}

#[derive(Args)]
struct RecoverArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Yes: what other servers acknowledged and this one never got is lost.
    #[arg(long, required = true)]
    accept_data_loss: bool,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Args)]
struct CheckArgs {
    /// The server's dataDir.
    dir: PathBuf,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct LogCommandArgs {
    /// The server's dataDir.
    dir: PathBuf,
    /// The first entry, as zxid in hexadecimal.
    #[arg(long, value_name = "ZXID", value_parser = zxid)]
    from: Option<Zxid>,
    /// The last entry, as zxid in hexadecimal.
    #[arg(long, value_name = "ZXID", value_parser = zxid)]
    to: Option<Zxid>,
    /// Entries of this session only, in hexadecimal.
    #[arg(long, value_name = "SESSION", value_parser = session)]
    session: Option<SessionId>,
    /// One JSON object a line instead of text.
    #[arg(long)]
    json: bool,
}

fn hexadecimal(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).map_err(|_| "it must be a number in hexadecimal, as 0x10000002a".to_owned())
}

fn zxid(text: &str) -> Result<Zxid, String> {
    hexadecimal(text).map(Zxid)
}

fn session(text: &str) -> Result<SessionId, String> {
    hexadecimal(text).map(|id| SessionId(id as i64))
}

#[derive(Args)]
struct LogArgs {
    /// Form of the log on standard error; RUST_LOG chooses what is in it (default: info).
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "CORRAL_LOG_FORMAT")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => serve(args),
        Command::Ensemble(args) => ensemble::run(args),
        Command::Recover(args) => recover(args),
        Command::Check(args) => check(&args),
        Command::Log(args) => log(&args),
        Command::Keys => print(&config::keys_as_markdown()),
        Command::Version => print(&format!("corral {}\n", env!("CARGO_PKG_VERSION"))),
    }
}

/// Standard output may be a pipe that nobody reads any more; that is no error.
fn print(text: &str) -> ExitCode {
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn serve(args: ServeArgs) -> ExitCode {
    init_logging(args.log.log_format);
    abort_on_panic();
    if let Some(parent) = args.parent
        && !die_with(parent)
    {
        return ExitCode::SUCCESS;
    }
    let parsed = match load(&args.config, &args.skip_entry) {
        Ok(parsed) => parsed,
        Err(code) => return code,
    };
    if args.check {
        eprintln!("corral: the configuration can be used");
        return ExitCode::SUCCESS;
    }
    if args.config.config.is_none() {
        let folder = std::path::absolute(&parsed.config.data_dir).unwrap_or(parsed.config.data_dir.clone());
        info!(
            data_dir = %folder.display(), clients = %parsed.config.client_addr,
            "no configuration file: this is an ensemble of one"
        );
    }
    raise_file_limit();
    let workers = match parsed.config.worker_threads {
        // The others are for the core's peers, the log and execution. Every further thread is woken in vain now and then.
        0 => std::thread::available_parallelism().map_or(1, |processors| usize::from(processors).div_ceil(2)),
        given => given,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(run(parsed.config)),
        Err(error) => {
            error!(%error, "cannot start threads");
            ExitCode::FAILURE
        }
    }
}

/// Runs one server until a signal.
async fn run(config: Config) -> ExitCode {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            error!(%error, "cannot listen for signals");
            return ExitCode::FAILURE;
        }
    };
    let id = config.my_id;
    info!(%id, version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), data_dir = %config.data_dir.display(), "starting");
    let handle = tokio::select! {
        // Starting can take long (a large log); a signal ends it. The log is made for that.
        name = signals.next() => {
            info!(signal = name, "stopped while starting");
            return ExitCode::SUCCESS;
        }
        started = Node::start(config) => match started {
            Ok(handle) => handle,
            Err(error) => {
                error!(%error, "cannot start");
                return ExitCode::FAILURE;
            }
        }
    };
    let name = signals.next().await;
    info!(signal = name, "stopping");
    tokio::select! {
        result = tokio::time::timeout(STOP_TIMEOUT, handle.stop()) => match result {
            Ok(_) => {
                info!("stopped");
                ExitCode::SUCCESS
            }
            Err(_) => {
                error!(timeout_s = STOP_TIMEOUT.as_secs(), "did not stop in time");
                ExitCode::FAILURE
            }
        },
        name = signals.next() => {
            warn!(signal = name, "asked twice: leaving at once");
            ExitCode::FAILURE
        }
    }
}

/// SIGTERM and SIGINT.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn new() -> std::io::Result<Signals> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for either and names it. Cancel safe.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

fn recover(args: RecoverArgs) -> ExitCode {
    init_logging(args.log.log_format);
    let config = match load(&args.config, &[]) {
        Ok(parsed) => parsed.config,
        Err(code) => return code,
    };
    match corral_server::recover::keep_this_copy(&config) {
        Ok(zxid) => print(&format!(
            "This copy is the one that counts from now on; its last zxid is {zxid}.\n\
             Empty the data folders of the others. Then start all, with the others as observers in every\n\
             configuration; when they have learned, make them participants again.\n"
        )),
        Err(error) => {
            error!(%error, "nothing was changed");
            ExitCode::FAILURE
        }
    }
}

fn check(args: &CheckArgs) -> ExitCode {
    let people = std::io::stderr().is_terminal();
    let mut sign = |what: &str| {
        if people {
            eprint!("\r\x1b[K{what}");
        }
    };
    let checked = corral_server::inspect::check::check(&args.dir, &mut sign);
    sign("");
    match checked {
        Ok(report) => {
            print(&if args.json { format!("{}\n", report.json()) } else { report.text() });
            if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => cannot_read(&args.dir, &error),
    }
}

fn log(args: &LogCommandArgs) -> ExitCode {
    let options = log::Options { from: args.from, to: args.to, session: args.session, json: args.json };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let printed = log::print(&args.dir, &options, &mut out);
    let flushed = out.flush();
    match printed {
        Err(InspectError::Print(_)) => ExitCode::SUCCESS,
        _ if flushed.is_err() => ExitCode::SUCCESS,
        Ok(printed) => {
            if printed.in_use {
                eprintln!(
                    "corral: a server uses this folder: it may have written on meanwhile, and its end may look torn"
                );
            }
            if printed.damaged { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => cannot_read(&args.dir, &error),
    }
}

fn cannot_read(dir: &Path, error: &dyn std::error::Error) -> ExitCode {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(&format!(": {cause_text}"));
        }
        source = cause.source();
    }
    eprintln!("corral: {} cannot be looked at: {text}", dir.display());
    ExitCode::from(EXIT_USAGE)
}

/// Reads the configuration and says what is wrong or strange in it.
fn load(args: &ConfigArgs, skip_entry: &[String]) -> Result<Parsed, ExitCode> {
    let parsed = parse(args, skip_entry).map_err(|problem| {
        eprintln!("corral: the configuration cannot be used:\n{problem}");
        ExitCode::from(EXIT_USAGE)
    })?;
    for notice in &parsed.notices {
        if notice.warning {
            warn!(key = notice.key, "{notice}");
        } else {
            info!(key = notice.key, "{notice}");
        }
    }
    Ok(parsed)
}

fn parse(args: &ConfigArgs, skip_entry: &[String]) -> Result<Parsed, String> {
    let text = match &args.config {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| format!("{}: cannot be read: {e}", path.display()))?;
            Some((path.display().to_string(), text))
        }
        None => None,
    };
    let file = text.as_ref().map(|(name, text)| (name.as_str(), text.as_str()));
    config::parse(file, &overrides(args, skip_entry), &read_file).map_err(|errors| errors.to_string())
}

fn overrides(args: &ConfigArgs, skip_entry: &[String]) -> Vec<Override> {
    let mut overrides = Vec::new();
    let mut add = |flag: &str, key: &str, value: &str| {
        overrides.push(Override { flag: flag.to_string(), key: key.to_string(), value: value.to_string() });
    };
    if args.config.is_none() {
        // Nobody said who may connect, so only this machine may.
        add("default", "dataDir", DATA_DIR_DEFAULT);
        add("default", "clientPortAddress", "127.0.0.1");
    }
    let dedicated = [
        ("--id", "myid", &args.id),
        ("--data-dir", "dataDir", &args.data_dir),
        ("--data-log-dir", "dataLogDir", &args.data_log_dir),
        ("--client-port", "clientPort", &args.client_port),
        ("--client-address", "clientPortAddress", &args.client_address),
    ];
    for (flag, key, value) in dedicated {
        if let Some(value) = value {
            add(flag, key, value);
        }
    }
    if !skip_entry.is_empty() {
        add("--skip-entry", "skipEntry", &skip_entry.join(","));
    }
    overrides.extend(args.set.iter().cloned());
    overrides
}

/// For files that the configuration names; see [`config::ReadFile`].
fn read_file(path: &Path) -> Result<Option<String>, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.to_string()),
    }
}

fn init_logging(format: LogFormat) {
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).from_env_lossy();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

/// A half-dead leader that still answers pings is worse than a dead one: a panic anywhere ends the process. (A hook and
/// not `panic = "abort"`, because programs and tests share one profile.)
fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        error!(panic = %panic, "a thread panicked; this server stops at once");
        std::process::abort();
    }));
}

/// Asks the system to end this process with its parent. `false` if the parent is gone already.
fn die_with(parent: i32) -> bool {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM)) {
        warn!(%error, "cannot tie this server to its parent");
    }
    rustix::process::getppid().is_some_and(|pid| pid.as_raw_nonzero().get() == parent)
}

/// Connections and table files are file descriptors: take as many as the system allows this process.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            warn!(%error, "cannot raise the limit of open files");
        }
    }
}
