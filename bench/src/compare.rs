//! Products side by side: the same runs by turns, so that what disturbs one disturbs the other.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::ensemble::{Ensemble, Installation, Product};
use crate::plots::{Chart, Mark};
use crate::run::{Protocol, Report, RunArgs, round, run};
use crate::workload::Workload;
use crate::{Result, context, process};

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
    /// Only print the names of the rows.
    #[arg(long)]
    list: bool,
    /// etcd's usual reads ask its leader, as its clients' do by default; with this they do not.
    #[arg(long)]
    etcd_serializable: bool,
    /// File for one JSON line a run.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Folder for pictures: throughput.svg, cpu.svg, latency.svg.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    #[command(flatten)]
    installation: Installation,
}

/// How servers are asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By ZooKeeper's protocol; etcd by its own, with reads that ask the leader.
    Usual,
    /// By gRPC: those that have it. Reads are answered by the server that is asked.
    Local,
    /// By gRPC, and reads ask the leader whether they are current.
    Linearizable,
}

struct Row {
    name: &'static str,
    workload: Workload,
    connections: u32,
    outstanding: u32,
    keys: u32,
    read_percent: u32,
    way: Way,
}

const fn row(name: &'static str, workload: Workload, connections: u32, outstanding: u32) -> Row {
    Row { name, workload, connections, outstanding, keys: 1000, read_percent: 0, way: Way::Usual }
}

const fn mixed(name: &'static str, read_percent: u32) -> Row {
    Row { read_percent, ..row(name, Workload::Mixed, 16, 64) }
}

const fn children(name: &'static str, keys: u32) -> Row {
    Row { keys, ..row(name, Workload::Children, 4, 4) }
}

const fn grpc(name: &'static str, connections: u32, outstanding: u32, way: Way) -> Row {
    Row { way, ..row(name, Workload::Get, connections, outstanding) }
}

/// Sets in a multi.
const MULTI_OPS: u32 = 10;

/// What is compared. `set` and `get` are the ends of the mixed rows.
const ROWS: &[Row] = &[
    row("set 1x1", Workload::Set, 1, 1),
    row("set 16x1", Workload::Set, 16, 1),
    row("set 16x64", Workload::Set, 16, 64),
    row("get 1x1", Workload::Get, 1, 1),
    row("get 16x1", Workload::Get, 16, 1),
    row("get 16x64", Workload::Get, 16, 64),
    mixed("99 % get 16x64", 99),
    mixed("90 % get 16x64", 90),
    mixed("75 % get 16x64", 75),
    mixed("50 % get 16x64", 50),
    mixed("25 % get 16x64", 25),
    row("create+delete 16x64", Workload::CreateDelete, 16, 64),
    row("ephemeral 16x64", Workload::Ephemeral, 16, 64),
    row("multi of 10 sets 16x16", Workload::Multi, 16, 16),
    children("1,000 children 4x4", 1_000),
    children("10,000 children 4x4", 10_000),
    row("1,000 watchers of one znode", Workload::Watch, 1000, 1),
    row("lock, 32 contenders", Workload::Lock, 32, 1),
    grpc("gRPC get 1x1, local", 1, 1, Way::Local),
    grpc("gRPC get 1x1, linearizable", 1, 1, Way::Linearizable),
    grpc("gRPC get 16x64, local", 16, 64, Way::Local),
    grpc("gRPC get 16x64, linearizable", 16, 64, Way::Linearizable),
];

impl Row {
    /// How a product is asked, and whether its reads ask the leader; `None`: it has no such thing.
    fn asks(&self, product: Product, etcd_serializable: bool) -> Option<(Protocol, bool)> {
        // The null server has no watches and no locks.
        let meets = matches!(self.workload, Workload::Watch | Workload::Lock);
        match (product, self.way) {
            (Product::Null, _) if meets => None,
            (Product::Corral | Product::Zookeeper | Product::Null, Way::Usual) => Some((Protocol::Zookeeper, false)),
            (Product::Zookeeper | Product::Null, _) => None,
            (Product::Corral, way) => Some((Protocol::Grpc, way == Way::Linearizable)),
            (Product::Etcd, Way::Usual) => Some((Protocol::Etcd, !etcd_serializable)),
            (Product::Etcd, way) => Some((Protocol::Etcd, way == Way::Linearizable)),
        }
    }
}

/// Runs all rows and returns a Markdown table.
///
/// # Errors
/// If an ensemble does not start or a run fails.
pub async fn compare(args: &CompareArgs) -> Result<String> {
    if args.products.is_empty() {
        return Err("--products: at least one".into());
    }
    let rows: Vec<&Row> =
        ROWS.iter().filter(|row| args.only.is_empty() || args.only.iter().any(|o| row.name.contains(o))).collect();
    if args.list {
        return Ok(rows.iter().map(|row| row.name).collect::<Vec<_>>().join("\n"));
    }
    if rows.is_empty() {
        return Err("--only: no row's name contains that; --list prints the names".into());
    }
    if let Some(dir) = &args.plots {
        // Now, and not after an hour of measuring.
        std::fs::create_dir_all(dir).map_err(context(dir.display()))?;
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
    let mut reports: Vec<Vec<Vec<Report>>> = vec![vec![Vec::new(); ensembles.len()]; rows.len()];
    for round in 1..=args.rounds {
        for (row, reports) in rows.iter().zip(&mut reports) {
            for ((product, ensemble, order), reports) in ensembles.iter().zip(reports) {
                let Some((protocol, linearizable)) = row.asks(*product, args.etcd_serializable) else { continue };
                let report = run(&RunArgs {
                    servers: order.iter().map(|server| ensemble.address(*server)).collect(),
                    protocol,
                    workload: row.workload,
                    connections: row.connections,
                    outstanding: row.outstanding,
                    value_bytes: 100,
                    seconds: args.seconds,
                    warmup: args.warmup,
                    read_percent: row.read_percent,
                    keys: row.keys,
                    multi_ops: MULTI_OPS,
                    rate: None,
                    linearizable,
                    pid: ensemble.pids(),
                })
                .await
                .map_err(context(format!("{}, {}", row.name, product.name())))?;
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
    if let Some(dir) = &args.plots {
        plot(dir, &args.products, &rows, &reports)?;
    }
    let mut text = table(&args.products, &rows, &reports);
    for (product, ensemble, _) in &ensembles {
        let resident = ensemble.pids().into_iter().map(process::resident_bytes).collect::<Result<Vec<_>>>()?;
        let mib = |bytes: Option<&u64>| round(bytes.copied().unwrap_or_default() as f64 / f64::from(1 << 20));
        let (least, most) = (mib(resident.iter().min()), mib(resident.iter().max()));
        text.push_str(&format!("\n{}: {least} to {most} MiB resident in each server at the end.", product.name()));
    }
    Ok(text)
}

/// Colours that can be told apart without seeing red and green.
fn colour(product: Product) -> &'static str {
    match product {
        Product::Corral => "#0072b2",
        Product::Zookeeper => "#d55e00",
        Product::Etcd => "#009e73",
        Product::Null => "#999999",
    }
}

/// Medians of the rounds, as pictures.
fn plot(dir: &Path, products: &[Product], rows: &[&Row], reports: &[Vec<Vec<Report>>]) -> Result<()> {
    let named: Vec<_> = products.iter().map(|product| (product.name(), colour(*product))).collect();
    let of = |reports: &[Report], value: fn(&Report) -> f64| median(reports.iter().map(value));
    let bar = |reports: &[Report], value| Mark::Bar(of(reports, value));
    let latency = |reports: &[Report]| {
        let quantiles: [fn(&Report) -> f64; 4] =
            [|r| r.latency_us.p50, |r| r.latency_us.p95, |r| r.latency_us.p99, |r| r.latency_us.p999];
        Mark::Span(quantiles.map(|value| of(reports, value)).to_vec())
    };
    let draw = |file: &str, title, axis, mark: &dyn Fn(&[Report]) -> Mark| -> Result<()> {
        let marks = |by_product: &Vec<Vec<Report>>| {
            by_product.iter().map(|reports| if reports.is_empty() { Mark::Nothing } else { mark(reports) }).collect()
        };
        let rows: Vec<(&str, Vec<Mark>)> =
            rows.iter().zip(reports).map(|(row, by_product)| (row.name, marks(by_product))).collect();
        let path = dir.join(file);
        let svg = Chart { title, axis, products: &named, rows: &rows }.svg();
        std::fs::write(&path, svg).map_err(context(path.display()))
    };
    draw("throughput.svg", "Throughput", "requests a second, more is better", &|r| bar(r, |r| r.ops_per_s))?;
    draw("cpu.svg", "CPU time of all servers", "us for each request, less is better", &|r| {
        bar(r, |r| r.server_cpu_us_per_op.unwrap_or_default())
    })?;
    draw("latency.svg", "Latency: median (dot), 95 %, 99 %, 99.9 % (strokes)", "us, less is better", &latency)
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
            if own.is_empty() || other.is_empty() {
                text.push_str(" | |");
                continue;
            }
            text.push_str(&format!(" {:.2} | {:.2} |", rate(own) / rate(other), cpu(own) / cpu(other)));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_different_names() {
        let names: std::collections::BTreeSet<&str> = ROWS.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), ROWS.len());
    }

    #[test]
    fn every_row_is_for_corral_and_only_what_a_product_has_is_asked_of_it() {
        for row in ROWS {
            let (protocol, linearizable) = row.asks(Product::Corral, false).unwrap();
            assert_eq!(protocol == Protocol::Grpc, row.way != Way::Usual, "{}", row.name);
            assert_eq!(linearizable, row.way == Way::Linearizable, "{}", row.name);
            assert_eq!(row.asks(Product::Zookeeper, false).is_some(), row.way == Way::Usual, "{}", row.name);
        }
        let get = &ROWS[3];
        assert_eq!(get.asks(Product::Etcd, false), Some((Protocol::Etcd, true)));
        assert_eq!(get.asks(Product::Etcd, true), Some((Protocol::Etcd, false)));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert_eq!(median([4.0, 1.0, 2.0, 30.0].into_iter()), 3.0);
        assert!(median(std::iter::empty()).is_nan());
    }
}
