//! How long a server is away that was killed under load, and whether that depends on the size of its tree.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use corral_proto::jute::{Request, Response};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::drive::drive;
use crate::ensemble::{Ensemble, Installation, Product};
use crate::load::{LoadArgs, load};
use crate::wire::Wire;
use crate::workload::{self, Finite};
use crate::{Result, process};

/// Load before each kill.
const UNDER_LOAD: Duration = Duration::from_secs(2);
/// Requests on the way then.
const OUTSTANDING: usize = 64;
/// A server that does not answer a read for so long after its start will not.
const PATIENCE: Duration = Duration::from_secs(300);

/// How it is measured.
#[derive(Args, Clone, Debug)]
pub struct RestartArgs {
    /// Znodes in the tree; one server for each number.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "10000,1000000")]
    counts: Vec<u64>,
    /// Bytes of each value.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    value_bytes: u32,
    /// Kills of each server.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// What runs as server.
    #[arg(long, value_enum, default_value_t = Product::Corral)]
    product: Product,
    #[command(flatten)]
    installation: Installation,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct RestartReport {
    product: Product,
    trees: Vec<Tree>,
    /// Median of the last tree divided by that of the first.
    ratio: f64,
}

/// One size.
#[derive(Clone, Debug, Serialize)]
pub struct Tree {
    znodes: u64,
    creates_per_s: f64,
    /// Server's CPU time for each create.
    create_cpu_us: f64,
    /// Resident, after the load.
    memory_mib: f64,
    /// After the load.
    disk_mib: f64,
    /// From the start of the process to the first answered read.
    first_read_ms: Vec<f64>,
    median_ms: f64,
}

/// Loads, kills and starts again.
///
/// # Errors
/// If a server does not start or does not come back, or an acknowledged create is gone.
pub async fn restart(args: &RestartArgs) -> Result<RestartReport> {
    let mut trees = Vec::new();
    for &count in &args.counts {
        if count == 0 {
            return Err("--counts: a tree of 0 znodes has nothing to read".into());
        }
        trees.push(measure(args, count).await?);
    }
    let ratio = match (trees.first(), trees.last()) {
        (Some(first), Some(last)) => (last.median_ms / first.median_ms * 100.0).round() / 100.0,
        _ => return Err("--counts: at least one".into()),
    };
    Ok(RestartReport { product: args.product, trees, ratio })
}

async fn measure(args: &RestartArgs, count: u64) -> Result<Tree> {
    let mut ensemble = Ensemble::start(args.product, 1, &args.installation).await?;
    let address = ensemble.address(0);
    let pid = ensemble.pid(0).ok_or("the server does not run")?;
    let cpu_before = process::cpu(pid)?;
    let loaded = load(&LoadArgs {
        servers: vec![address.clone()],
        count,
        value_bytes: args.value_bytes,
        connections: 8,
        outstanding: 128,
    })
    .await?;
    let cpu = process::cpu(pid)? - cpu_before;
    let memory = process::resident_bytes(pid)?;
    let disk = ensemble.disk_bytes(0);

    let mut next = count;
    let mut first_reads = Vec::new();
    for _ in 0..args.rounds {
        let (sent_to, acknowledged) = load_and_kill(&mut ensemble, next, args.value_bytes).await?;
        let begun = Instant::now();
        ensemble.start_server(0)?;
        let mut wire = Wire::connect_until(&address, begun + PATIENCE).await?;
        let read = Request::GetData { path: workload::load_path(count - 1), watch: false };
        match wire.ask(&read).await? {
            Ok(Response::Data { data: Some(data), .. }) if data.len() == args.value_bytes as usize => {}
            other => return Err(format!("{}: {other:?}", workload::load_path(count - 1)).into()),
        }
        let away = begun.elapsed();
        eprintln!("{count} znodes: first read after {:.0} ms", away.as_secs_f64() * 1e3);
        first_reads.push(away);
        // Requests of one connection are done in order, so the last one stands for all.
        if acknowledged > next {
            let path = workload::load_path(acknowledged - 1);
            wire.ask(&Request::Exists { path: path.clone(), watch: false })
                .await?
                .map_err(|code| format!("{path} was acknowledged, and is gone after the restart: {code:?}"))?;
        }
        wire.close().await;
        next = sent_to;
    }
    first_reads.sort();
    let ms = |duration: &Duration| (duration.as_secs_f64() * 1e4).round() / 10.0;
    let mib = |bytes: u64| (bytes as f64 / f64::from(1 << 20) * 10.0).round() / 10.0;
    Ok(Tree {
        znodes: count,
        creates_per_s: loaded.creates_per_s,
        create_cpu_us: (cpu.as_secs_f64() * 1e7 / count as f64).round() / 10.0,
        memory_mib: mib(memory),
        disk_mib: mib(disk),
        median_ms: ms(&first_reads[first_reads.len() / 2]),
        first_read_ms: first_reads.iter().map(ms).collect(),
    })
}

/// Creates more znodes from the number `from` on, and kills the server in the middle. Returns the first number that was
/// never sent, and the first that was not acknowledged.
async fn load_and_kill(ensemble: &mut Ensemble, from: u64, value_bytes: u32) -> Result<(u64, u64)> {
    let sent = Arc::new(AtomicU64::new(from));
    let acknowledged = Arc::new(AtomicU64::new(from));
    let data = workload::value(value_bytes as usize);
    let mut wire = Wire::connect(&ensemble.address(0)).await?;
    let loading = tokio::spawn({
        let (sent, acknowledged) = (sent.clone(), acknowledged.clone());
        async move {
            let creates =
                workload::load_creates(from, 1, u64::MAX, data).inspect(|_| _ = sent.fetch_add(1, Ordering::Relaxed));
            let mut refused = None;
            // It ends with the connection.
            let _ = drive(&mut wire, &mut Finite(creates), workload::plan_all(OUTSTANDING), |done| match done.error {
                0 => _ = acknowledged.fetch_add(1, Ordering::Relaxed),
                code => refused = Some(code),
            })
            .await;
            refused
        }
    });
    sleep(UNDER_LOAD).await;
    ensemble.kill(0)?;
    if let Some(code) = loading.await? {
        return Err(format!("the server refuses creates: {}", workload::error_name(code)).into());
    }
    let (sent, acknowledged) = (sent.load(Ordering::Relaxed), acknowledged.load(Ordering::Relaxed));
    if acknowledged == from {
        return Err("nothing was acknowledged before the kill".into());
    }
    Ok((sent, acknowledged))
}
