//! Many clients of one server: idle sessions, all of them back at once, and many watches.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use corral_proto::jute::Request;
use corral_proto::{CreateMode, ErrorCode};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::drive::drive;
use crate::ensemble::{Ensemble, Installation, Product};
use crate::histogram::Histogram;
use crate::run::{round, seconds};
use crate::sessions::{self, SETTLE, SessionsReport};
use crate::wire::Wire;
use crate::workload::{self, Finite};
use crate::{Result, context, process};

/// The znode that everybody watches.
const WATCHED: &str = "/watched";
/// Connections that share the watches on paths of their own.
const WATCHING: u64 = 100;
/// Requests on the way in each of them.
const OUTSTANDING: usize = 64;
/// Bytes of each such path.
const PATH_BYTES: usize = 60;
/// Sessions that ping without a pause while others come back, from a thread that does nothing else.
const PINGING: usize = 50;
/// Clients that are not back by then, counted from the break, will not be.
const BACK_WITHIN: Duration = Duration::from_secs(120);
/// Between two attempts of a client to come back.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// How many.
#[derive(Args, Clone, Debug)]
pub struct ScaleArgs {
    /// Idle sessions on one server, each with a connection of its own.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    sessions: u64,
    /// Seconds for which they are left alone.
    #[arg(long, default_value_t = 20.0)]
    idle: f64,
    /// Of these, how many lose their connections and come back, all at the same moment.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    reconnect: u64,
    /// Watches on paths of 60 bytes, all different, on a second server; 0: leave that out.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(0..=100_000_000))]
    watches: u64,
    /// Handshakes under way at once.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    concurrency: u32,
    /// What runs as server.
    #[arg(long, value_enum, default_value_t = Product::Corral)]
    product: Product,
    #[command(flatten)]
    installation: Installation,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct ScaleReport {
    product: Product,
    /// Files that this program and the servers it starts may have open.
    open_files_max: u64,
    idle: SessionsReport,
    /// One watch of each session, all on one znode.
    watches_on_one_path: Watches,
    #[serde(skip_serializing_if = "Option::is_none")]
    reconnect: Option<Storm>,
    #[serde(skip_serializing_if = "Option::is_none")]
    watches_on_own_paths: Option<Watches>,
}

/// Watches, and what they take.
#[derive(Clone, Debug, Serialize)]
pub struct Watches {
    count: u64,
    /// Growth of the server's resident memory for each.
    bytes_each: f64,
}

/// Clients that came back at once.
#[derive(Clone, Debug, Serialize)]
pub struct Storm {
    clients: u64,
    /// From the break until the last was back.
    seconds: f64,
    /// Sessions that were gone when their client came back.
    expired: u64,
    /// Attempts that failed, by error, and were made again.
    failed_attempts: BTreeMap<String, u64>,
    /// Pings of other sessions meanwhile, ms.
    ping_ms: Ping,
    pings: u64,
    /// Sessions that lost their connection though they pinged.
    pinging_lost: u64,
}

/// Quantiles, ms.
#[derive(Clone, Debug, Serialize)]
pub struct Ping {
    p50: f64,
    p99: f64,
    max: f64,
}

/// Measures one server.
///
/// # Errors
/// If files do not suffice, a server does not start, or a session cannot be begun.
pub async fn scale(args: &ScaleArgs) -> Result<ScaleReport> {
    if matches!(args.product, Product::Etcd | Product::Null) {
        return Err(format!("--product: {} has no sessions to measure", args.product.name()).into());
    }
    if args.reconnect > args.sessions {
        return Err(format!("--reconnect {}: there are only {} sessions", args.reconnect, args.sessions).into());
    }
    let idle = seconds("idle", args.idle)?;
    sessions::need_files(args.sessions + PINGING as u64)?;

    let ensemble = Ensemble::start(args.product, 1, &args.installation).await?;
    let address = ensemble.address(0);
    let to: SocketAddr = address.parse()?;
    let pid = ensemble.pid(0).ok_or("the server does not run")?;
    let mut first = Wire::connect(&address).await?;
    first
        .ask(&workload::create(WATCHED.to_owned(), Bytes::new(), CreateMode::Persistent))
        .await?
        .map_err(|code| format!("{WATCHED} is refused: {code:?}"))?;
    first.close().await;

    let (idle, mut wires) = sessions::measure(&[to], args.sessions, args.concurrency, idle, &[pid]).await?;
    eprintln!("{} idle sessions measured", idle.sessions);
    // What a connection's first request leaves behind in the server's buffers is no cost of watching.
    ask_all(&mut wires, false).await?;
    let before = process::resident_bytes(pid)?;
    ask_all(&mut wires, true).await?;
    sleep(SETTLE).await;
    let watches_on_one_path = grown(pid, before, wires.len() as u64)?;
    eprintln!("{} watches on one path measured", watches_on_one_path.count);
    let reconnect = match args.reconnect.min(wires.len() as u64) {
        0 => None,
        clients => Some(storm(to, &address, wires.split_off(wires.len() - clients as usize)).await?),
    };
    drop((wires, ensemble));

    let watches_on_own_paths = match args.watches {
        0 => None,
        watches => Some(own_paths(args, watches).await?),
    };
    Ok(ScaleReport {
        product: args.product,
        open_files_max: process::open_files_max()?,
        idle,
        watches_on_one_path,
        reconnect,
        watches_on_own_paths,
    })
}

fn grown(pid: u32, before: u64, count: u64) -> Result<Watches> {
    let bytes = process::resident_bytes(pid)?.saturating_sub(before);
    Ok(Watches { count, bytes_each: round(bytes as f64 / count.max(1) as f64) })
}

/// A read of the watched znode by everybody.
async fn ask_all(wires: &mut [Wire], watch: bool) -> Result<()> {
    for wire in wires {
        wire.ask(&Request::Exists { path: WATCHED.to_owned(), watch })
            .await?
            .map_err(|code| format!("{WATCHED}: {code:?}"))?;
    }
    Ok(())
}

async fn own_paths(args: &ScaleArgs, watches: u64) -> Result<Watches> {
    let ensemble = Ensemble::start(args.product, 1, &args.installation).await?;
    let address = ensemble.address(0);
    let pid = ensemble.pid(0).ok_or("the server does not run")?;
    let mut wires = Vec::new();
    for _ in 0..WATCHING {
        let mut wire = Wire::connect(&address).await?;
        wire.sync().await?;
        wires.push(wire);
    }
    let before = process::resident_bytes(pid)?;
    let mut tasks: JoinSet<Result<Wire>> = JoinSet::new();
    for (number, mut wire) in wires.into_iter().enumerate() {
        let asks = (number as u64..watches)
            .step_by(WATCHING as usize)
            .map(|index| Request::Exists { path: watched_path(index), watch: true });
        tasks.spawn(async move {
            let mut refused = None;
            drive(&mut wire, &mut Finite(asks), workload::plan_all(OUTSTANDING), |done| {
                // There is no such znode: the watch waits for it.
                if done.error != ErrorCode::NoNode as i32 {
                    refused = Some(done.error);
                }
            })
            .await?;
            match refused {
                None => Ok(wire),
                Some(code) => Err(format!("a watch is refused: {}", workload::error_name(code)).into()),
            }
        });
    }
    let mut wires = Vec::new();
    while let Some(task) = tasks.join_next().await {
        wires.push(task.map_err(context("a connection's task"))??);
    }
    sleep(SETTLE).await;
    grown(pid, before, watches)
}

/// A path of [`PATH_BYTES`] bytes, in one of 256 folders.
fn watched_path(index: u64) -> String {
    let head = format!("/services/{:02x}/instances/", index % 256);
    format!("{head}{index:0width$}", width = PATH_BYTES - head.len())
}

/// The session's new connection, unless it had expired, and the attempts before.
type Return = (Option<Wire>, BTreeMap<String, u64>);

/// Breaks these connections and has all clients come back at the same moment.
async fn storm(to: SocketAddr, address: &str, wires: Vec<Wire>) -> Result<Storm> {
    let clients = wires.len() as u64;
    let stop = Arc::new(AtomicBool::new(false));
    // Pings are timed by a thread of their own, or they would wait for this program and not for the server.
    let pinging = {
        let (address, stop) = (address.to_owned(), stop.clone());
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || -> Result<(Histogram, u64)> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(ping_until(&address, ready, &stop))
        });
        // An error of the thread is told by its end.
        let _ = is_ready.await;
        thread
    };
    let sessions: Vec<_> = wires.iter().map(|wire| wire.session.clone()).collect();
    let begun = Instant::now();
    drop(wires);
    let mut tasks: JoinSet<io::Result<Return>> = JoinSet::new();
    for (number, session) in sessions.into_iter().enumerate() {
        tasks.spawn(async move {
            let mut failed: BTreeMap<String, u64> = BTreeMap::new();
            loop {
                match Wire::reconnect_from(sessions::source(sessions::RETURNING, number as u64, to), to, &session).await
                {
                    Ok(wire) => return Ok((Some(wire), failed)),
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok((None, failed)),
                    Err(error) if begun.elapsed() > BACK_WITHIN => return Err(error),
                    Err(error) => *failed.entry(error.to_string()).or_default() += 1,
                }
                sleep(RETRY_PAUSE).await;
            }
        });
    }
    let (mut back, mut expired) = (Vec::new(), 0);
    let mut failed_attempts: BTreeMap<String, u64> = BTreeMap::new();
    while let Some(task) = tasks.join_next().await {
        let (wire, failed) = task.map_err(context("a client's task"))?.map_err(context("a client is not back"))?;
        for (error, count) in failed {
            *failed_attempts.entry(error).or_default() += count;
        }
        match wire {
            Some(wire) => back.push(wire),
            None => expired += 1,
        }
    }
    let elapsed = begun.elapsed();
    stop.store(true, Ordering::Relaxed);
    let joined = tokio::task::spawn_blocking(move || pinging.join()).await?;
    let (pings, pinging_lost) = joined.map_err(|_| "the pinging thread panicked")??;
    let ms = |latency: Duration| round(latency.as_secs_f64() * 1e3);
    Ok(Storm {
        clients,
        seconds: round(elapsed.as_secs_f64()),
        expired,
        failed_attempts,
        ping_ms: Ping { p50: ms(pings.quantile(0.5)), p99: ms(pings.quantile(0.99)), max: ms(pings.max()) },
        pings: pings.count(),
        pinging_lost,
    })
}

async fn ping_until(
    address: &str,
    ready: tokio::sync::oneshot::Sender<()>,
    stop: &AtomicBool,
) -> Result<(Histogram, u64)> {
    let mut wires = Vec::new();
    for _ in 0..PINGING {
        wires.push(Wire::connect(address).await?);
    }
    let (mut pings, mut lost) = (Histogram::default(), 0);
    let _ = ready.send(());
    while !stop.load(Ordering::Relaxed) && !wires.is_empty() {
        let mut kept = Vec::with_capacity(wires.len());
        for mut wire in wires {
            let begun = Instant::now();
            match wire.ping().await {
                Ok(()) => {
                    pings.add(begun.elapsed());
                    kept.push(wire);
                }
                Err(_) => lost += 1,
            }
        }
        wires = kept;
    }
    Ok((pings, lost))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watched_paths_differ_and_have_sixty_bytes() {
        let paths: std::collections::BTreeSet<String> = (0..10_000).map(watched_path).collect();
        assert_eq!(paths.len(), 10_000);
        assert!(paths.iter().all(|path| path.len() == PATH_BYTES), "{}", watched_path(1));
        assert_eq!(watched_path(99_999_999).len(), PATH_BYTES);
    }
}
