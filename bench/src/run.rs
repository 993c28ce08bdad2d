//! One workload, one line of figures.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use corral_client::{Client, Consistency};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::drive::{Done, Pace, Plan, drive};
use crate::histogram::Histogram;
use crate::wire::Wire;
use crate::workload::{self, Frames, Random, Shape, Workload};
use crate::{Result, context, etcd, meet, process};

/// Between the last connection's handshake and the first request.
const LEAD: Duration = Duration::from_millis(50);
/// Answers that have not come so long after the end are not waited for.
const DRAIN: Duration = Duration::from_secs(35);

/// Which front end is driven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// ZooKeeper's, with an own thin client.
    #[default]
    Zookeeper,
    /// gRPC, with the client crate; its cost is in the figures.
    Grpc,
    /// etcd's, for a run against etcd.
    Etcd,
}

/// How a run is made.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Servers; connections are spread over them in turn.
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', required = true)]
    pub servers: Vec<String>,
    /// Front end to use.
    #[arg(long, value_enum, default_value_t)]
    pub protocol: Protocol,
    /// What is asked.
    #[arg(long, value_enum)]
    pub workload: Workload,
    /// Connections, each with its own session.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub connections: u32,
    /// Requests on the way in each connection.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub outstanding: u32,
    /// Bytes of each value.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub value_bytes: u32,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Seconds before, that are not.
    #[arg(long, default_value_t = 2.0)]
    pub warmup: f64,
    /// Share of reads in the workload `mixed`.
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub read_percent: u32,
    /// Number of keys.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub keys: u32,
    /// Sets in each request of the workload `multi`.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub multi_ops: u32,
    /// Requests a second of all connections together, sent by the clock and not by answers. Without it: as fast as
    /// answers come.
    #[arg(long)]
    pub rate: Option<f64>,
    /// gRPC and etcd only: reads ask the leader whether they are current.
    #[arg(long)]
    pub linearizable: bool,
    /// Processes whose CPU time and memory are reported: the servers.
    #[arg(long, value_name = "PID,...", value_delimiter = ',')]
    pub pid: Vec<u32>,
}

/// Latencies, µs.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub workload: String,
    pub protocol: Protocol,
    pub servers: usize,
    pub connections: u32,
    pub outstanding: u32,
    pub value_bytes: u32,
    pub keys: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_percent: Option<u32>,
    /// Reads asked the leader; there is no such question in ZooKeeper's protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linearizable: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    pub seconds: f64,
    /// Requests answered without an error.
    pub ops: u64,
    pub ops_per_s: f64,
    pub latency_us: Latency,
    /// Refused requests by error, and connections that broke.
    pub errors: BTreeMap<String, u64>,
    /// CPU time of all servers together for each request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cpu_us_per_op: Option<f64>,
    /// CPUs that all servers together kept busy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cpus: Option<f64>,
    /// Resident memory of each server at the end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub server_memory_mib: Vec<f64>,
    /// CPU time of this program for each request.
    pub own_cpu_us_per_op: f64,
}

/// What one connection counted.
#[derive(Default)]
pub struct Tally {
    latency: Histogram,
    refused: BTreeMap<i32, u64>,
    pub broken: Option<String>,
}

/// When what is measured begins and ends.
#[derive(Clone, Copy)]
pub struct Window {
    pub begin: Instant,
    pub end: Instant,
}

impl Tally {
    /// Counts what ended within the window.
    pub fn count(&mut self, window: Window, done: &Done) {
        if done.ended < window.begin || done.ended >= window.end {
            return;
        }
        match done.error {
            0 => self.latency.add(done.ended.saturating_duration_since(done.begun)),
            code => *self.refused.entry(code).or_default() += 1,
        }
    }
}

/// A time given in seconds.
///
/// # Errors
/// If it is negative, not finite, or absurd.
pub fn seconds(name: &str, value: f64) -> Result<Duration> {
    const MAX: f64 = 1e6;
    if (0.0..=MAX).contains(&value) {
        return Ok(Duration::from_secs_f64(value));
    }
    Err(format!("--{name} {value}: allowed are 0 to {MAX} seconds").into())
}

/// Makes one run.
///
/// # Errors
/// If the servers cannot be prepared; connections that break later are counted as errors.
pub async fn run(args: &RunArgs) -> Result<Report> {
    let measured = seconds("seconds", args.seconds)?;
    let warmup = seconds("warmup", args.warmup)?;
    if measured < Duration::from_millis(10) {
        return Err(format!("--seconds {}: too short to measure", args.seconds).into());
    }
    if args.rate.is_some_and(|rate| !(0.01..=1e9).contains(&rate)) {
        return Err("--rate: allowed are 0.01 to 1e9 requests a second".into());
    }
    let shape = Shape {
        workload: args.workload,
        keys: args.keys as usize,
        value_bytes: args.value_bytes as usize,
        read_percent: args.read_percent,
        multi_ops: args.multi_ops as usize,
        outstanding: args.outstanding as usize,
    };
    for pid in &args.pid {
        process::cpu(*pid)?;
    }
    match args.protocol {
        Protocol::Etcd => etcd::set_up(&args.servers[0], shape).await?,
        Protocol::Zookeeper | Protocol::Grpc => workload::set_up(&args.servers[0], shape).await?,
    }

    let (window, mut tasks) = match args.protocol {
        Protocol::Zookeeper => start_wire(args, shape, warmup, measured).await?,
        Protocol::Grpc => start_grpc(args, shape, warmup, measured).await?,
        Protocol::Etcd => etcd::start(args, shape, || window(warmup, measured)).await?,
    };

    sleep_until(window.begin).await;
    let (begun, servers_before, own_before) = (Instant::now(), servers_cpu(args)?, process::cpu(std::process::id())?);
    sleep_until(window.end).await;
    // The window that CPU time is measured over is the one that really was, not the planned one.
    let elapsed = begun.elapsed();
    let servers_cpu = servers_cpu(args)?.saturating_sub(servers_before);
    let own_cpu = process::cpu(std::process::id())?.saturating_sub(own_before);
    let mut server_memory_mib = Vec::new();
    for pid in &args.pid {
        server_memory_mib.push(round(process::resident_bytes(*pid)? as f64 / f64::from(1 << 20)));
    }

    let mut total = Tally::default();
    let mut errors: BTreeMap<String, u64> = BTreeMap::new();
    let drained = timeout_at(window.end + DRAIN, async {
        while let Some(tally) = tasks.join_next().await {
            let tally = tally.map_err(context("a connection's task"))?;
            total.latency.merge(&tally.latency);
            for (code, count) in tally.refused {
                *errors.entry(workload::error_name(code)).or_default() += count;
            }
            if let Some(problem) = tally.broken {
                *errors.entry(format!("connection: {problem}")).or_default() += 1;
            }
        }
        Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
    });
    match drained.await {
        Ok(joined) => joined?,
        Err(_) => *errors.entry("connection: never drained".to_owned()).or_default() += tasks.len() as u64,
    }

    let ops = total.latency.count();
    // The share of the CPU window that the counted requests cover.
    let scale = measured.as_secs_f64() / elapsed.as_secs_f64();
    let per_op = |cpu: Duration| round(cpu.as_secs_f64() * 1e6 * scale / ops.max(1) as f64);
    let quantile = |share| round(total.latency.quantile(share).as_secs_f64() * 1e6);
    Ok(Report {
        workload: args.workload.to_possible_value().expect("no workload is hidden").get_name().to_owned(),
        protocol: args.protocol,
        servers: args.servers.len(),
        connections: args.connections,
        outstanding: args.outstanding,
        value_bytes: args.value_bytes,
        keys: args.keys,
        read_percent: (args.workload == Workload::Mixed).then_some(args.read_percent),
        linearizable: (args.protocol != Protocol::Zookeeper).then_some(args.linearizable),
        rate: args.rate,
        seconds: measured.as_secs_f64(),
        ops,
        ops_per_s: round(ops as f64 / measured.as_secs_f64()),
        latency_us: Latency {
            p50: quantile(0.5),
            p95: quantile(0.95),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: round(total.latency.max().as_secs_f64() * 1e6),
        },
        errors,
        server_cpu_us_per_op: (!args.pid.is_empty()).then(|| per_op(servers_cpu)),
        server_cpus: (!args.pid.is_empty()).then(|| round(servers_cpu.as_secs_f64() / elapsed.as_secs_f64())),
        server_memory_mib,
        own_cpu_us_per_op: per_op(own_cpu),
    })
}

fn servers_cpu(args: &RunArgs) -> Result<Duration> {
    args.pid.iter().map(|pid| process::cpu(*pid)).sum()
}

/// Two digits after the point: more would only pretend.
pub fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn window(warmup: Duration, measured: Duration) -> (Instant, Window) {
    let start = Instant::now() + LEAD;
    let begin = start + warmup;
    (start, Window { begin, end: begin + measured })
}

async fn start_wire(
    args: &RunArgs,
    shape: Shape,
    warmup: Duration,
    measured: Duration,
) -> Result<(Window, JoinSet<Tally>)> {
    let mut wires = Vec::new();
    for number in 0..args.connections as usize {
        let mut wire = Wire::connect(&args.servers[number % args.servers.len()]).await?;
        // The keys were made through another server, perhaps.
        wire.sync().await?;
        wires.push(wire);
    }
    if matches!(shape.workload, Workload::Watch | Workload::Lock) {
        if args.rate.is_some() {
            return Err("--rate: these clients wait for each other, and not for the clock".into());
        }
        let (start, window) = window(warmup, measured);
        return Ok((window, meet::start(shape, &args.servers, wires, start, window).await?));
    }
    let frames = Frames::new(shape);
    let (start, window) = window(warmup, measured);
    let mut tasks = JoinSet::new();
    for (number, mut wire) in wires.into_iter().enumerate() {
        let mut requests = frames.connection(number);
        let pace = args.rate.map(|rate| {
            let interval = Duration::from_secs_f64(f64::from(args.connections) / rate);
            // Connections take turns, and do not send all at the same moment.
            Pace { next: start + interval.mul_f64(number as f64 / f64::from(args.connections)), interval }
        });
        let plan = Plan { outstanding: shape.outstanding, until: Some(window.end), pace };
        tasks.spawn(async move {
            let mut tally = Tally::default();
            sleep_until(start).await;
            match drive(&mut wire, &mut requests, plan, |done| tally.count(window, &done)).await {
                Ok(()) => wire.close().await,
                Err(error) => tally.broken = Some(error.to_string()),
            }
            tally
        });
    }
    Ok((window, tasks))
}

async fn start_grpc(
    args: &RunArgs,
    shape: Shape,
    warmup: Duration,
    measured: Duration,
) -> Result<(Window, JoinSet<Tally>)> {
    if !matches!(args.workload, Workload::Set | Workload::Get | Workload::Exists | Workload::Mixed) {
        return Err("over gRPC the workloads are set, get, exists and mixed".into());
    }
    if args.rate.is_some() {
        return Err("--rate is for ZooKeeper's protocol".into());
    }
    let mut clients = Vec::new();
    for number in 0..args.connections as usize {
        let client = Client::connect(&args.servers[number % args.servers.len()]).await?;
        client.sync("/").await?;
        clients.push(client);
    }
    let consistency = if args.linearizable { Consistency::Linearizable } else { Consistency::Local };
    let keys: Arc<[String]> = (0..shape.keys).map(workload::key).collect();
    let data = workload::value(shape.value_bytes);
    let (start, window) = window(warmup, measured);
    let mut tasks = JoinSet::new();
    for (number, client) in clients.into_iter().enumerate() {
        // The crate pipelines whatever is called at the same time: one task for each outstanding request.
        for slot in 0..shape.outstanding {
            let (client, keys, data) = (client.clone(), keys.clone(), data.clone());
            tasks.spawn(async move {
                let mut tally = Tally::default();
                let mut random = Random::new((number * shape.outstanding + slot) as u64);
                sleep_until(start).await;
                loop {
                    let begun = Instant::now();
                    if begun >= window.end {
                        return tally;
                    }
                    let path = &keys[random.below(keys.len())];
                    let is_read = match shape.workload {
                        Workload::Set => false,
                        Workload::Mixed => random.below(100) < shape.read_percent as usize,
                        _ => true,
                    };
                    let result = match (is_read, shape.workload) {
                        (false, _) => client.set(path, data.clone(), None).await.map(drop),
                        (true, Workload::Exists) => client.read(consistency).exists(path).await.map(drop),
                        (true, _) => client.read(consistency).get(path).await.map(drop),
                    };
                    let error = match result {
                        Ok(()) => 0,
                        Err(error) => match error.code() {
                            Some(code) => code as i32,
                            None => {
                                tally.broken = Some(error.to_string());
                                return tally;
                            }
                        },
                    };
                    tally.count(window, &Done { begun, ended: Instant::now(), error });
                }
            });
        }
    }
    Ok((window, tasks))
}
