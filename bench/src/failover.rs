//! How long writes stop when the leader is killed, or hangs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use corral_client::{Client, CreateMode};
use corral_proto::jute::{Create, Request};
use corral_proto::{Acl, ErrorCode};
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use crate::ensemble::{Ensemble, Installation, Product};
use crate::etcd::Etcd;
use crate::run::Protocol;
use crate::wire::Wire;
use crate::{Result, workload};

const PATH: &str = "/failover";
/// Writing before the kill, and at least as long after it.
const STEADY: Duration = Duration::from_millis(700);
/// Acknowledged writes after the election that count as "goes on".
const GOES_ON: u64 = 20;
/// An ensemble that does not go on for so long will not.
const PATIENCE: Duration = Duration::from_secs(90);
/// A member that forwarded a write to a leader that dies keeps its client waiting for 7 s, though there is a new leader
/// long before: a client that wants to go on asks again.
const ETCD_RETRY_AFTER: Duration = Duration::from_millis(250);
const POLL: Duration = Duration::from_millis(5);

/// What happens to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// kill -9: its connections break at once.
    Kill,
    /// It is stopped (SIGSTOP): its connections stay, and nothing comes over them. It goes on after the round.
    Stop,
}

/// How it is measured.
#[derive(Args, Clone, Debug)]
pub struct FailoverArgs {
    /// Leaders to kill or to stop, one after the other.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Servers of the ensemble.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..=9))]
    servers: u32,
    /// What happens to the leader.
    #[arg(long, value_enum, default_value_t = How::Kill)]
    how: How,
    /// What runs as server.
    #[arg(long, value_enum, default_value_t = Product::Corral)]
    product: Product,
    /// Front end of the writing client; ZooKeeper and etcd have only their own.
    #[arg(long, value_enum, default_value_t = Protocol::Grpc)]
    protocol: Protocol,
    #[command(flatten)]
    installation: Installation,
}

/// What came out, ms.
#[derive(Clone, Debug, Serialize)]
pub struct FailoverReport {
    product: Product,
    protocol: Protocol,
    how: How,
    rounds: u32,
    median_ms: f64,
    max_ms: f64,
    gaps_ms: Vec<f64>,
    /// The longest pause between two writes before a kill: what the machine does by itself.
    undisturbed_max_ms: f64,
    /// Connections that the writing client lost, though its server lived.
    connections_lost: u64,
}

/// What the writer tells while it writes.
#[derive(Default)]
struct Writer {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    connections_lost: AtomicU64,
}

/// Kills or stops leaders under a client that writes through another server, one write at a time.
///
/// # Errors
/// If the ensemble does not start, or does not recover.
pub async fn failover(args: &FailoverArgs) -> Result<FailoverReport> {
    let protocol = match args.product {
        Product::Corral if args.protocol == Protocol::Etcd => {
            return Err("--protocol etcd: Corral does not speak it".into());
        }
        Product::Corral => args.protocol,
        Product::Etcd => Protocol::Etcd,
        Product::Zookeeper => Protocol::Zookeeper,
        Product::Null => return Err("--product null: it has no leader".into()),
    };
    let mut ensemble = Ensemble::start(args.product, args.servers as usize, &args.installation).await?;
    let mut gaps = Vec::new();
    let mut undisturbed = Duration::ZERO;
    let mut connections_lost = 0;
    for round in 1..=args.rounds {
        let leader = ensemble.wait_leader().await?;
        // Every other server in turn.
        let others: Vec<usize> = (0..ensemble.len()).filter(|server| *server != leader).collect();
        let survivor = others[round as usize % others.len()];
        let writer = Arc::new(Writer::default());
        let task = tokio::spawn(write(protocol, ensemble.address(survivor), writer.clone()));

        wait_acknowledged(&writer, GOES_ON).await?;
        sleep(STEADY).await;
        let killed = Instant::now();
        match args.how {
            How::Kill => ensemble.kill(leader)?,
            How::Stop => ensemble.stop(leader)?,
        }
        ensemble.wait_leader().await?;
        wait_acknowledged(&writer, writer.acknowledged.load(Ordering::Relaxed) + GOES_ON).await?;
        sleep(STEADY.saturating_sub(killed.elapsed())).await;
        writer.stop.store(true, Ordering::Relaxed);
        let acknowledged = task.await??;

        let pauses = || acknowledged.windows(2).map(|pair| (pair[1], pair[1] - pair[0]));
        let gap = pauses().filter(|(end, _)| *end >= killed).map(|(_, pause)| pause).max().unwrap_or_default();
        let before = pauses().filter(|(end, _)| *end < killed).map(|(_, pause)| pause).max().unwrap_or_default();
        eprintln!("round {round}: server {} lost, writes stopped for {:.1} ms", leader + 1, ms(gap));
        gaps.push(gap);
        undisturbed = undisturbed.max(before);
        connections_lost += writer.connections_lost.load(Ordering::Relaxed);

        match args.how {
            How::Kill => ensemble.start_server(leader)?,
            How::Stop => ensemble.go_on(leader)?,
        }
        ensemble.wait_serving(leader).await?;
    }
    let mut sorted = gaps.clone();
    sorted.sort();
    Ok(FailoverReport {
        product: args.product,
        protocol,
        how: args.how,
        rounds: args.rounds,
        median_ms: ms((sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2),
        max_ms: ms(*sorted.last().expect("at least one round")),
        gaps_ms: gaps.into_iter().map(ms).collect(),
        undisturbed_max_ms: ms(undisturbed),
        connections_lost,
    })
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}

async fn wait_acknowledged(writer: &Writer, count: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while writer.acknowledged.load(Ordering::Relaxed) < count {
        if Instant::now() > deadline {
            return Err("writes do not go on".into());
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// Writes until told to stop; returns when each write was acknowledged.
async fn write(protocol: Protocol, address: String, writer: Arc<Writer>) -> Result<Vec<Instant>> {
    match protocol {
        Protocol::Grpc => write_grpc(&address, &writer).await,
        Protocol::Zookeeper => write_wire(&address, &writer).await,
        Protocol::Etcd => write_etcd(&address, &writer).await,
    }
}

impl Writer {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn acknowledge(&self, times: &mut Vec<Instant>) {
        times.push(Instant::now());
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
    }
}

async fn write_grpc(address: &str, writer: &Writer) -> Result<Vec<Instant>> {
    let client = Client::connect(address).await?;
    let mut events = client.events();
    match client.create(PATH, "", CreateMode::Persistent).await {
        Err(error) if error.code() != Some(ErrorCode::NodeExists) => return Err(error.into()),
        _ => {}
    }
    let data = workload::value(100);
    let mut times = Vec::new();
    while writer.goes_on() {
        client.set(PATH, data.clone(), None).await?;
        writer.acknowledge(&mut times);
    }
    client.close().await?;
    while let Some(state) = events.next().await {
        if matches!(state, corral_client::SessionState::Suspended) {
            writer.connections_lost.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(times)
}

/// A write whose connection broke is made again: it counts when it is acknowledged.
async fn write_wire(address: &str, writer: &Writer) -> Result<Vec<Instant>> {
    let mut wire = Wire::connect(address).await?;
    let data = workload::value(100);
    let create =
        Create { path: PATH.to_owned(), data: Some(Bytes::new()), acl: Some(Acl::open()), ..Create::default() };
    match wire.ask(&Request::Create(create)).await? {
        Ok(_) | Err(ErrorCode::NodeExists) => {}
        Err(code) => return Err(format!("{PATH} is refused: {code:?}").into()),
    }
    let set = Request::SetData { path: PATH.to_owned(), data: Some(data), version: -1 };
    let mut times = Vec::new();
    let mut last = Instant::now();
    while writer.goes_on() {
        match wire.ask(&set).await {
            Ok(Ok(_)) => {
                writer.acknowledge(&mut times);
                last = Instant::now();
                continue;
            }
            Ok(Err(code)) => return Err(format!("a write is refused: {code:?}").into()),
            Err(error) if last.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => _ = writer.connections_lost.fetch_add(1, Ordering::Relaxed),
        }
        while last.elapsed() < PATIENCE {
            match Wire::reconnect(address, &wire.session).await {
                Ok(again) => {
                    wire = again;
                    break;
                }
                Err(_) => sleep(POLL).await,
            }
        }
    }
    wire.close().await;
    Ok(times)
}

/// A write that fails is made again, as its users do: without a leader etcd refuses, or lets the client wait.
async fn write_etcd(address: &str, writer: &Writer) -> Result<Vec<Instant>> {
    let mut etcd = Etcd::connect(address).await?;
    let data = workload::value(100);
    let mut times = Vec::new();
    let mut last = Instant::now();
    while writer.goes_on() {
        match timeout(ETCD_RETRY_AFTER, etcd.put(Bytes::from_static(PATH.as_bytes()), data.clone())).await {
            Ok(Ok(())) => {
                writer.acknowledge(&mut times);
                last = Instant::now();
            }
            Ok(Err(error)) if last.elapsed() > PATIENCE => return Err(error),
            Err(error) if last.elapsed() > PATIENCE => return Err(error.into()),
            Ok(Err(_)) => sleep(POLL).await,
            // A set may be made twice.
            Err(_) => {}
        }
    }
    Ok(times)
}
