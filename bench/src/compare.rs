//! Products side by side: the same runs by turns, so that what disturbs one disturbs the other.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::ensemble::{Ensemble, Installation, Product};
use crate::run::{Protocol, Report, RunArgs, run};
use crate::workload::Workload;
use crate::{Result, context};

/// How it is measured.
#[derive(Args, Clone, Debug)]
pub struct CompareArgs {
    /// What is compared; ratios are to the first.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "corral,zookeeper,null")]
    products: Vec<Product>,
    /// Runs of each row by each product; medians are shown.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds that each run is measured.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Seconds before, that are not.
    #[arg(long, default_value_t = 2.0)]
    warmup: f64,
    /// Servers of each ensemble (the null server is always alone).
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=9))]
    servers: u32,
    /// Only rows whose name contains one of these.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// File for one JSON line a run.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    installation: Installation,
}

struct Row {
    name: &'static str,
    workload: Workload,
    connections: u32,
    outstanding: u32,
}

const fn row(name: &'static str, workload: Workload, connections: u32, outstanding: u32) -> Row {
    Row { name, workload, connections, outstanding }
}

/// What is compared.
const ROWS: &[Row] = &[
    row("set 1x1", Workload::Set, 1, 1),
    row("set 16x1", Workload::Set, 16, 1),
    row("set 16x64", Workload::Set, 16, 64),
    row("get 1x1", Workload::Get, 1, 1),
    row("get 16x1", Workload::Get, 16, 1),
    row("get 16x64", Workload::Get, 16, 64),
    row("90 % get 16x64", Workload::Mixed, 16, 64),
    row("create+delete 16x64", Workload::CreateDelete, 16, 64),
    row("1,000 watchers of one znode", Workload::Watch, 1000, 1),
    row("lock, 32 contenders", Workload::Lock, 32, 1),
];

/// Runs all rows and returns a Markdown table.
///
/// # Errors
/// If an ensemble does not start or a run fails.
pub async fn compare(args: &CompareArgs) -> Result<String> {
    if args.products.is_empty() {
        return Err("--products: at least one".into());
    }
    let mut out = match &args.out {
        Some(path) => {
            Some(std::fs::File::options().create(true).append(true).open(path).map_err(context(path.display()))?)
        }
        None => None,
    };
    let mut ensembles = Vec::new();
    for &product in &args.products {
        let servers = if product == Product::Null { 1 } else { args.servers as usize };
        let mut ensemble = Ensemble::start(product, servers, &args.installation).await?;
        let leader = ensemble.wait_leader().await?;
        // Most clients are not connected to the leader, and a single connection takes the first of the list.
        let mut order: Vec<usize> = (0..servers).collect();
        order.sort_by_key(|server| *server == leader);
        ensembles.push((product, ensemble, order));
    }
    let rows: Vec<&Row> =
        ROWS.iter().filter(|row| args.only.is_empty() || args.only.iter().any(|o| row.name.contains(o))).collect();
    let mut reports: Vec<Vec<Vec<Report>>> = vec![vec![Vec::new(); ensembles.len()]; rows.len()];
    for round in 1..=args.rounds {
        for (row, reports) in rows.iter().zip(&mut reports) {
            for ((product, ensemble, order), reports) in ensembles.iter().zip(reports) {
                // It has no watches and no locks.
                if *product == Product::Null && matches!(row.workload, Workload::Watch | Workload::Lock) {
                    continue;
                }
                let report = run(&RunArgs {
                    servers: order.iter().map(|server| ensemble.address(*server)).collect(),
                    protocol: Protocol::Zookeeper,
                    workload: row.workload,
                    connections: row.connections,
                    outstanding: row.outstanding,
                    value_bytes: 100,
                    seconds: args.seconds,
                    warmup: args.warmup,
                    read_percent: 90,
                    keys: 1000,
                    multi_ops: 10,
                    rate: None,
                    linearizable: false,
                    pid: ensemble.pids(),
                })
                .await?;
                eprintln!(
                    "round {round}: {}, {}: {:.0} ops/s, p50 {:.0} us, CPU {:.1} us{}",
                    row.name,
                    product.name(),
                    report.ops_per_s,
                    report.latency_us.p50,
                    report.server_cpu_us_per_op.unwrap_or_default(),
                    if report.errors.is_empty() { String::new() } else { format!(", errors {:?}", report.errors) }
                );
                if let Some(out) = &mut out {
                    let line = serde_json::json!({
                        "row": row.name, "product": product, "round": round, "report": report,
                    });
                    writeln!(out, "{line}")?;
                }
                reports.push(report);
            }
        }
    }
    Ok(table(&args.products, &rows, &reports))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    if values.is_empty() {
        return f64::NAN;
    }
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

/// Ratios of the first product to the others; the null server is a floor and no rival.
fn table(products: &[Product], rows: &[&Row], reports: &[Vec<Vec<Report>>]) -> String {
    let rivals: Vec<usize> = (1..products.len()).filter(|index| products[*index] != Product::Null).collect();
    let mut text = String::from("| workload |");
    for product in products {
        text.push_str(&format!(" {}: ops/s | p50, p99 (us) | CPU per op (us) |", product.name()));
    }
    for &rival in &rivals {
        text.push_str(&format!(" ops/s, {} = 1 | CPU, {0} = 1 |", products[rival].name()));
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(products.len() * 3 + rivals.len() * 2));
    text.push('\n');
    let rate = |reports: &[Report]| median(reports.iter().map(|r| r.ops_per_s));
    let cpu = |reports: &[Report]| median(reports.iter().filter_map(|r| r.server_cpu_us_per_op));
    for (row, by_product) in rows.iter().zip(reports) {
        text.push_str(&format!("| {} |", row.name));
        for reports in by_product {
            if reports.is_empty() {
                text.push_str(" | | |");
                continue;
            }
            let p50 = median(reports.iter().map(|r| r.latency_us.p50));
            let p99 = median(reports.iter().map(|r| r.latency_us.p99));
            text.push_str(&format!(" {:.0} | {p50:.0}, {p99:.0} | {:.1} |", rate(reports), cpu(reports)));
        }
        for &rival in &rivals {
            let (own, other) = (&by_product[0], &by_product[rival]);
            text.push_str(&format!(" {:.2} | {:.2} |", rate(own) / rate(other), cpu(own) / cpu(other)));
        }
        text.push('\n');
    }
    text
}
