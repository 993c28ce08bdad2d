//! Bulk load: many znodes, pipelined.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use corral_proto::ErrorCode;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};

use crate::drive::drive;
use crate::wire::Wire;
use crate::workload::{self, Finite};
use crate::{Result, context};

/// Between two progress lines.
const PROGRESS: Duration = Duration::from_secs(2);

/// How many, and where.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// Servers; connections are spread over them in turn.
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', required = true)]
    pub servers: Vec<String>,
    /// Znodes to create: /load/xx/yyyyyy.
    #[arg(long)]
    pub count: u64,
    /// Bytes of each value.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub value_bytes: u32,
    /// Connections.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub connections: u32,
    /// Requests on the way in each connection.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub outstanding: u32,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct LoadReport {
    pub created: u64,
    /// Were there already.
    pub existed: u64,
    pub seconds: f64,
    pub creates_per_s: f64,
}

/// Creates the znodes.
///
/// # Errors
/// If a connection breaks, or a server refuses a create for another reason than that the znode exists.
pub async fn load(args: &LoadArgs) -> Result<LoadReport> {
    let mut first = Wire::connect(&args.servers[0]).await?;
    let mut refused = None;
    let plan = workload::plan_all(args.outstanding as usize);
    drive(&mut first, &mut Finite(workload::load_folders()), plan, |done| {
        if done.error != 0 && done.error != ErrorCode::NodeExists as i32 {
            refused = Some(done.error);
        }
    })
    .await
    .map_err(context(&args.servers[0]))?;
    if let Some(code) = refused {
        return Err(format!("the folders are refused: {}", workload::error_name(code)).into());
    }
    first.close().await;

    let data = workload::value(args.value_bytes as usize);
    let answered = Arc::new(AtomicU64::new(0));
    let existed = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    for number in 0..u64::from(args.connections) {
        let address = args.servers[number as usize % args.servers.len()].clone();
        let creates = workload::load_creates(number, u64::from(args.connections), args.count, data.clone());
        let plan = workload::plan_all(args.outstanding as usize);
        let (answered, existed) = (answered.clone(), existed.clone());
        tasks.spawn(async move {
            let mut wire = Wire::connect(&address).await?;
            wire.sync().await?;
            let mut refused = None;
            let mut creates = Finite(creates);
            let driven = drive(&mut wire, &mut creates, plan, |done| {
                answered.fetch_add(1, Ordering::Relaxed);
                match done.error {
                    0 => {}
                    code if code == ErrorCode::NodeExists as i32 => _ = existed.fetch_add(1, Ordering::Relaxed),
                    code => refused = Some(code),
                }
            });
            driven.await.map_err(context(&address))?;
            wire.close().await;
            match refused {
                None => Ok(()),
                Some(code) => Err(format!("{address} refuses creates: {}", workload::error_name(code)).into()),
            }
        });
    }
    let mut progress = interval(PROGRESS);
    progress.tick().await;
    loop {
        tokio::select! {
            joined = tasks.join_next() => match joined {
                Some(task) => task.map_err(context("a connection's task"))??,
                None => break,
            },
            _ = progress.tick() => {
                let answered = answered.load(Ordering::Relaxed);
                let rate = answered as f64 / begun.elapsed().as_secs_f64();
                eprintln!("{answered} of {} znodes, {rate:.0} a second", args.count);
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let existed = existed.load(Ordering::Relaxed);
    let created = answered.load(Ordering::Relaxed) - existed;
    Ok(LoadReport { created, existed, seconds, creates_per_s: (created as f64 / seconds).round() })
}
