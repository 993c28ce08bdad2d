//! Many sessions that do nothing: what it costs to begin one, and to have it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::net::lookup_host;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};

use crate::run::round;
use crate::wire::Wire;
use crate::{Result, context, process};

/// Connections from one address of loopback: the system has some 28,000 ports for them.
const PER_ADDRESS: u64 = 20_000;
/// Third byte of the addresses of sessions that begin, and of clients that come back: the ports of those that break their
/// connections are not free for a minute.
pub const FIRST: u8 = 1;
pub const RETURNING: u8 = 2;
/// Files that this program has open besides.
const OTHER_FILES: u64 = 64;
/// Between two progress lines.
const PROGRESS: Duration = Duration::from_secs(2);
/// After the last handshake, before anything is measured of idle sessions.
pub const SETTLE: Duration = Duration::from_secs(2);

/// How many, and for how long.
#[derive(Args, Clone, Debug)]
pub struct SessionsArgs {
    /// Servers; sessions are spread over them in turn.
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', required = true)]
    pub servers: Vec<String>,
    /// Sessions, each with a connection of its own. From 20,000 up they come from several addresses of loopback, and the
    /// limit of open files must be as high, here and at the servers (`ulimit -n`).
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub count: u64,
    /// Handshakes under way at once.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub concurrency: u32,
    /// Seconds for which the sessions are then left alone, but for pings.
    #[arg(long, default_value_t = 10.0)]
    pub idle: f64,
    /// Processes whose CPU time and memory are reported: the servers.
    #[arg(long, value_name = "PID,...", value_delimiter = ',')]
    pub pid: Vec<u32>,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct SessionsReport {
    pub sessions: u64,
    pub servers: usize,
    pub seconds: f64,
    pub connects_per_s: f64,
    /// CPU time of all servers together for each handshake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cpu_us_per_connect: Option<f64>,
    /// Growth of the resident memory of all servers together, for each session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_bytes_per_session: Option<f64>,
    /// Growth of what the kernel holds for each connection: socket buffers and its own tables, half of it, as both ends are
    /// here. Whatever else happens on the machine disturbs it.
    pub kernel_bytes_per_session: f64,
    /// CPUs that all servers together kept busy while the sessions did nothing but ping, every third of their timeout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_cpus: Option<f64>,
    /// Sessions that were lost while they were idle.
    pub lost: u64,
}

/// Begins the sessions, leaves them alone, and ends them.
///
/// # Errors
/// If a session cannot be begun, or files or processes are not there.
pub async fn sessions(args: &SessionsArgs) -> Result<SessionsReport> {
    let idle = crate::run::seconds("idle", args.idle)?;
    need_files(args.count)?;
    let mut addresses = Vec::new();
    for server in &args.servers {
        let found = lookup_host(server).await.map_err(context(server))?.find(SocketAddr::is_ipv4);
        addresses.push(found.ok_or_else(|| format!("{server}: no IPv4 address"))?);
    }
    // Closed one by one they would take as long again; the servers see the connections end, and the sessions with time.
    measure(&addresses, args.count, args.concurrency, idle, &args.pid).await.map(|(report, _wires)| report)
}

/// # Errors
/// If so many sessions need more open files than this program may have.
pub fn need_files(sessions: u64) -> Result<()> {
    let limit = process::open_files_max()?;
    if sessions + OTHER_FILES > limit {
        return Err(format!(
            "{sessions} sessions need as many open files, and {limit} are allowed: raise the hard limit (`ulimit -Hn`)"
        )
        .into());
    }
    Ok(())
}

/// The address from which the session with this number comes; `None`: the system's choice, away from loopback.
pub fn source(network: u8, number: u64, to: SocketAddr) -> Option<Ipv4Addr> {
    to.ip().is_loopback().then(|| {
        let host = u8::try_from(1 + number / PER_ADDRESS).unwrap_or(u8::MAX);
        Ipv4Addr::new(127, 0, network, host)
    })
}

/// Begins sessions, leaves them alone for a while, and hands them over.
///
/// # Errors
/// If a session cannot be begun, or a process is not there.
pub async fn measure(
    addresses: &[SocketAddr],
    count: u64,
    concurrency: u32,
    idle: Duration,
    pids: &[u32],
) -> Result<(SessionsReport, Vec<Wire>)> {
    let memory = || pids.iter().map(|pid| process::resident_bytes(*pid)).sum::<Result<u64>>();
    let cpu = || pids.iter().map(|pid| process::cpu(*pid)).sum::<Result<Duration>>();
    let (memory_before, kernel_before) = (memory()?, process::kernel_bytes()?);
    let (cpu_before, begun) = (cpu()?, Instant::now());
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks: JoinSet<Result<Vec<Wire>>> = JoinSet::new();
    for _ in 0..concurrency {
        let (next, addresses) = (next.clone(), addresses.to_vec());
        tasks.spawn(async move {
            let mut wires: Vec<Wire> = Vec::new();
            let mut pinged = Instant::now();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(wires);
                }
                let to = addresses[number as usize % addresses.len()];
                wires.push(Wire::connect_from(source(FIRST, number, to), to).await.map_err(context(to))?);
                // The first must not expire before the last is there.
                if pinged.elapsed() >= ping_interval(&wires) {
                    for wire in &mut wires {
                        wire.ping().await.map_err(context(to))?;
                    }
                    pinged = Instant::now();
                }
            }
        });
    }
    let mut wires = Vec::new();
    let mut progress = interval(PROGRESS);
    progress.tick().await;
    loop {
        tokio::select! {
            joined = tasks.join_next() => match joined {
                Some(task) => wires.extend(task.map_err(context("a connection's task"))??),
                None => break,
            },
            _ = progress.tick() => {
                eprintln!("{} of {count} sessions", next.load(Ordering::Relaxed).min(count));
            }
        }
    }
    let elapsed = begun.elapsed();
    let spent = cpu()?.saturating_sub(cpu_before);
    sleep(SETTLE).await;
    let grown = memory()?.saturating_sub(memory_before);
    let kernel = process::kernel_bytes()?.saturating_sub(kernel_before);
    let (cpu_before, begun) = (cpu()?, Instant::now());
    let lost = keep(&mut wires, begun + idle).await;
    let idle_cpus = cpu()?.saturating_sub(cpu_before).as_secs_f64() / begun.elapsed().as_secs_f64();
    let known = !pids.is_empty();
    let count = wires.len() as u64 + lost;
    let report = SessionsReport {
        sessions: count,
        servers: addresses.len(),
        seconds: round(elapsed.as_secs_f64()),
        connects_per_s: round(count as f64 / elapsed.as_secs_f64()),
        server_cpu_us_per_connect: known.then(|| round(spent.as_secs_f64() * 1e6 / count as f64)),
        server_bytes_per_session: known.then(|| round(grown as f64 / count as f64)),
        kernel_bytes_per_session: round(kernel as f64 / 2.0 / count as f64),
        idle_cpus: known.then(|| (idle_cpus * 10_000.0).round() / 10_000.0),
        lost,
    };
    Ok((report, wires))
}

/// A third of the timeout that the server granted.
fn ping_interval(wires: &[Wire]) -> Duration {
    wires.first().map_or(Duration::from_secs(10), |wire| {
        Duration::from_millis(u64::try_from(wire.session.timeout_ms).unwrap_or(0) / 3)
    })
}

/// Pings each session at a third of its timeout, spread evenly, until the end. Returns how many were lost, and drops them.
async fn keep(wires: &mut Vec<Wire>, until: Instant) -> u64 {
    let before = wires.len();
    let gap = ping_interval(wires) / u32::try_from(wires.len().max(1)).unwrap_or(u32::MAX);
    let mut next = 0;
    let begun = Instant::now();
    let mut due = begun;
    while Instant::now() < until && !wires.is_empty() {
        tokio::time::sleep_until(due.min(until)).await;
        // All that are due by now, in one go.
        while due <= Instant::now() && due < until && !wires.is_empty() {
            due += gap;
            next = if next >= wires.len() { 0 } else { next };
            if wires[next].ping().await.is_err() {
                drop(wires.swap_remove(next));
            } else {
                next += 1;
            }
        }
    }
    (before - wires.len()) as u64
}
