//! Orders go from producers to workers, and the death of either loses none and does none twice.
//!
//!     cargo run --example work_queue -- --server localhost:2181
//!     cargo run --example work_queue -- --server localhost:2181 verify
//!
//! A producer puts numbered orders into `/shop/queue` and notes in the same transaction, in `/shop/placed`, how far it is. A
//! worker takes an order, "ships" it (that takes a while), and then, in one transaction: the order and the claim are removed
//! and a receipt `NUMBER WORKER TOKEN` is added to `/shop/receipts`. A receipt gets its name from the server, so nothing but
//! the claim keeps an order from having two; `verify` looks for orders with none or two.
//!
//! For parts in processes of their own, to kill them one by one: `produce --name NAME`, `work --name NAME`.

mod common;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use common::{Ensemble, ensure, number, number_reaches};
use corral_client::{Client, CreateMode, ErrorCode, Transaction};
use corral_recipes::{Error, WorkQueue};

/// Orders that may wait at a time: a producer that is faster than the workers waits.
const WAITING_MAX: usize = 50;
/// Pause of a producer that finds the queue full.
const FULL_PAUSE: Duration = Duration::from_millis(50);
/// Priority of an order: all are equal.
const PRIORITY: u16 = 100;

/// A work queue between producers and workers that may die at any moment.
#[derive(Parser, Clone, Debug)]
struct Options {
    #[command(flatten)]
    ensemble: Ensemble,
    /// Znode below which everything is kept.
    #[arg(long, global = true, default_value = "/shop")]
    root: String,
    /// Orders to place, by all producers together.
    #[arg(long, global = true, default_value_t = 100)]
    orders: u64,
    /// How long an order takes to ship, in ms.
    #[arg(long, global = true, default_value_t = 50)]
    work_ms: u64,
    /// Name of this part in what is printed and in receipts; parts of one process add their numbers.
    #[arg(long, global = true, default_value = "part")]
    name: String,
    /// What to do. Default: one producer and two workers in this process.
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Subcommand, Clone, Copy, Debug)]
enum Part {
    /// Places orders.
    Produce,
    /// Ships orders until all are placed and shipped.
    Work,
    /// Checks the receipts, and does nothing else.
    Verify,
}

#[tokio::main]
async fn main() -> ExitCode {
    common::begin();
    let options = Options::parse();
    common::end(run(options).await)
}

async fn run(options: Options) -> Result<(), String> {
    let parts = match options.part {
        Some(Part::Verify) => return verify_shop(&options).await,
        Some(Part::Produce) => vec![(Part::Produce, options.name.clone())],
        Some(Part::Work) => vec![(Part::Work, options.name.clone())],
        None => vec![
            (Part::Produce, format!("{}-producer", options.name)),
            (Part::Work, format!("{}-worker-1", options.name)),
            (Part::Work, format!("{}-worker-2", options.name)),
        ],
    };
    let stopped = common::stopped();
    let mut running = tokio::task::JoinSet::new();
    for (part, name) in parts {
        let (options, stopped) = (options.clone(), stopped.clone());
        running.spawn(async move {
            let (ensemble, of) = (options.ensemble.clone(), name.clone());
            common::sessions(ensemble, name, stopped, |client| {
                let (options, name) = (&options, of.as_str());
                async move {
                    match part {
                        Part::Produce => produce(&client, options, name).await,
                        Part::Work | Part::Verify => work(&client, options, name).await,
                    }
                }
            })
            .await;
        });
    }
    while let Some(done) = running.join_next().await {
        done.map_err(|error| format!("a part failed: {error}"))?;
    }
    Ok(())
}

fn queue(client: &Client, options: &Options) -> WorkQueue {
    WorkQueue::new(client, format!("{}/queue", options.root)).max_items(WAITING_MAX)
}

/// Creates what is missing.
async fn prepare(client: &Client, options: &Options) -> Result<(), Error> {
    ensure(client, &options.root, "").await?;
    ensure(client, &format!("{}/placed", options.root), "0").await?;
    ensure(client, &format!("{}/receipts", options.root), "").await
}

/// Places orders until all are placed.
async fn produce(client: &Client, options: &Options, name: &str) -> Result<(), Error> {
    prepare(client, options).await?;
    let (queue, placed) = (queue(client, options), format!("{}/placed", options.root));
    loop {
        // Where whoever placed the last order stopped: another producer, or we in a former life.
        let (last, version) = number(client, &placed).await?;
        if last >= options.orders {
            println!("{name}: all {last} orders are placed");
            return Ok(());
        }
        let order = last + 1;
        // The order, and the note that it is placed: both or neither. The version keeps two producers from placing one twice.
        let note = Transaction::new().set(&placed, order.to_string(), Some(version));
        match queue.put_with(PRIORITY, [order.to_string()], note).await {
            Ok(_) => println!("{name} placed {order}"),
            Err(Error::Full { .. }) => tokio::time::sleep(FULL_PAUSE).await,
            // Another producer was first.
            Err(Error::Client(error)) if error.code() == Some(ErrorCode::BadVersion) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Ships orders until all are placed and shipped.
async fn work(client: &Client, options: &Options, name: &str) -> Result<(), Error> {
    prepare(client, options).await?;
    let queue = queue(client, options);
    let all_shipped = async {
        number_reaches(client, &format!("{}/placed", options.root), options.orders).await?;
        queue.drained().await
    };
    tokio::select! {
        biased;
        shipped = all_shipped => shipped,
        result = ship_all(options, name, &queue) => result,
    }
}

async fn ship_all(options: &Options, name: &str, queue: &WorkQueue) -> Result<(), Error> {
    let receipts = format!("{}/receipts/receipt-", options.root);
    loop {
        let work = queue.take().await?;
        let order = String::from_utf8_lossy(work.item().map_or(&b""[..], |item| item)).into_owned();
        println!("{name} ships {order}, attempt {}", work.attempts());
        // What is done here, outside of the tree, is done again if we die before the end: an attempt is no shipment.
        tokio::time::sleep(Duration::from_millis(options.work_ms)).await;
        let receipt = format!("{order} {name} {:#x}", work.token().value());
        let receipt = Transaction::new().create(&receipts, receipt, CreateMode::PersistentSequential);
        match work.done_with(receipt).await {
            Ok(_) => println!("{name} shipped {order}"),
            // We were away for longer than our session: it is another's by now, and nothing of ours was done.
            Err(Error::Fenced { .. }) => println!("{name} is too late with {order}"),
            Err(error) => return Err(error),
        }
    }
}

async fn verify_shop(options: &Options) -> Result<(), String> {
    let client = options.ensemble.connect().await.map_err(|error| error.to_string())?;
    let placed = number(&client, &format!("{}/placed", options.root)).await.map_err(|error| error.to_string())?.0;
    let waiting = queue(&client, options).len().await.map_err(|error| error.to_string())?;
    let receipts = common::children(&client, &format!("{}/receipts", options.root)).await;
    let receipts: Vec<String> =
        receipts.map_err(|error| error.to_string())?.into_iter().map(|(_, text)| text).collect();
    let by_worker = verify(placed, waiting as u64, &receipts)?;
    for (worker, shipped) in &by_worker {
        println!("{worker} shipped {shipped}");
    }
    println!("{placed} orders, {} receipts, {waiting} waiting: none lost, none twice", receipts.len());
    client.close().await.map_err(|error| error.to_string())
}

/// Checks receipts: every order that was placed has one, or still waits; none has two. Says how many each worker shipped.
fn verify(placed: u64, waiting: u64, receipts: &[String]) -> Result<BTreeMap<String, u64>, String> {
    let (mut shipped, mut by_worker) = (BTreeMap::new(), BTreeMap::new());
    for text in receipts {
        let (order, worker) = parse_receipt(text).ok_or_else(|| format!("a receipt cannot be read: {text:?}"))?;
        if !(1..=placed).contains(&order) {
            return Err(format!("order {order} was shipped and never placed"));
        }
        if let Some(first) = shipped.insert(order, text) {
            return Err(format!("order {order} was shipped twice: {first:?}, {text:?}"));
        }
        *by_worker.entry(worker).or_insert(0) += 1;
    }
    if shipped.len() as u64 + waiting != placed {
        let missing = (1..=placed).find(|order| !shipped.contains_key(order)).unwrap_or(placed);
        return Err(format!(
            "{placed} orders were placed, {} shipped, {waiting} wait: one was lost; the first without a receipt is {missing}",
            shipped.len()
        ));
    }
    Ok(by_worker)
}

fn parse_receipt(text: &str) -> Option<(u64, String)> {
    let (order, rest) = text.split_once(' ')?;
    // The name may hold blanks.
    let (worker, token) = rest.rsplit_once(" 0x")?;
    u64::from_str_radix(token, 16).ok()?;
    Some((order.parse().ok()?, worker.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn sound_receipts_are_counted_by_worker() {
        let by_worker = verify(4, 1, &receipts(&["2 a b 0x10", "1 a b 0x11", "4 c 0x12"])).expect("sound");
        assert_eq!(by_worker, BTreeMap::from([("a b".to_owned(), 2), ("c".to_owned(), 1)]));
        assert_eq!(verify(0, 0, &[]), Ok(BTreeMap::new()));
    }

    #[test]
    fn lost_and_doubled_orders_are_found() {
        let wrong = |placed, waiting, texts: &[&str]| verify(placed, waiting, &receipts(texts)).unwrap_err();
        assert!(wrong(2, 0, &["1 a 0x10"]).contains("the first without a receipt is 2"));
        assert!(wrong(2, 0, &["1 a 0x10", "1 b 0x11"]).contains("order 1 was shipped twice"));
        assert!(wrong(1, 0, &["2 a 0x10"]).contains("never placed"));
        assert!(wrong(1, 0, &["1 a"]).contains("cannot be read"));
    }
}
