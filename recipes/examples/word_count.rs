//! How often each word stands in a text, counted by several workers for a coordinator; each of them may die at any moment.
//!
//!     cargo run --example word_count -- --server localhost:2181 --text README.md
//!     cargo run --example word_count -- --server localhost:2181 --text README.md verify
//!
//! The coordinator is elected. It cuts the text into chunks and puts a task `map N` for each into a queue; when all are done, a
//! task `reduce P` for each part of the words; and when these are done, it writes the result. Workers wait at a barrier until
//! all chunks are there, then take tasks. A worker ends a task in one transaction: the task is removed, its outcome written,
//! and the number of tasks done goes up. That number is read and written under a lock, and by nothing else protected: so if
//! two ever held the lock, or a task were done twice, the coordinator would go on too early or wait for ever.
//!
//! For parts in processes of their own, to kill them one by one: `coordinate --name NAME`, `work --name NAME`.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use common::{Ensemble, children, ensure, number, number_reaches};
use corral_client::{Client, Consistency, CreateMode, ErrorCode, MultiError, Transaction};
use corral_recipes::{Barrier, Election, Error, Guard, Hold, Mutex, Next, WhenSuspended, WorkQueue};
use serde::{Deserialize, Serialize};

/// Bytes of a chunk: a task that is worth its way, and far below what a znode takes.
const CHUNK_BYTES: usize = 4 * 1024;
/// Chunks of a text, at most: a coordination service is no place for more.
const CHUNKS_MAX: usize = 2_000;
/// Tasks that reduce.
const PARTS: u64 = 4;
/// Priority of all tasks.
const PRIORITY: u16 = 100;
/// Words that are shown.
const SHOWN: usize = 5;

type Counts = BTreeMap<String, u64>;

/// A word count by workers for an elected coordinator, each of which may die at any moment.
#[derive(Parser, Clone, Debug)]
struct Options {
    #[command(flatten)]
    ensemble: Ensemble,
    /// Znode below which everything is kept: one for each text.
    #[arg(long, global = true, default_value = "/words")]
    root: String,
    /// The text, a UTF-8 file. Default: the project's README.
    #[arg(long, global = true)]
    text: Option<PathBuf>,
    /// How much longer a task takes than it does, in ms.
    #[arg(long, global = true, default_value_t = 20)]
    work_ms: u64,
    /// Name of this part in what is printed; parts of one process add their numbers.
    #[arg(long, global = true, default_value = "part")]
    name: String,
    /// What to do. Default: two candidates and three workers in this process, and then verify.
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Subcommand, Clone, Copy, Debug)]
enum Part {
    /// Stands for coordinator.
    Coordinate,
    /// Does tasks until there is a result.
    Work,
    /// Compares the result with a count that nobody helped with.
    Verify,
}

/// What is counted: a coordinator with another text must not go on with this one's job.
#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct Job {
    chunks: u64,
    parts: u64,
    text: String,
}

/// A text, and where in the tree its count is kept.
struct Words {
    options: Options,
    text: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    common::begin();
    let options = Options::parse();
    common::end(run(options).await)
}

async fn run(options: Options) -> Result<(), String> {
    let text = match &options.text {
        Some(file) => std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?,
        None => include_str!("../../README.md").to_owned(),
    };
    let chunks = chunks(&text).len();
    if chunks > CHUNKS_MAX {
        return Err(format!("the text has {chunks} chunks of {CHUNK_BYTES} bytes; at most {CHUNKS_MAX} are possible"));
    }
    let name = &options.name;
    let parts = match options.part {
        Some(Part::Verify) => vec![],
        Some(part) => vec![(part, name.clone())],
        None => {
            let coordinators = (1..=2).map(|n| (Part::Coordinate, format!("{name}-coordinator-{n}")));
            coordinators.chain((1..=3).map(|n| (Part::Work, format!("{name}-worker-{n}")))).collect()
        }
    };
    let words = std::sync::Arc::new(Words { options: options.clone(), text });
    let stopped = common::stopped();
    let mut running = tokio::task::JoinSet::new();
    for (part, name) in parts {
        let (words, stopped) = (words.clone(), stopped.clone());
        running.spawn(async move {
            let (ensemble, of) = (words.options.ensemble.clone(), name.clone());
            common::sessions(ensemble, name, stopped, |client| {
                let (words, name) = (&words, of.as_str());
                async move {
                    match part {
                        Part::Coordinate => words.coordinate(&client, name).await,
                        Part::Work | Part::Verify => words.work(&client, name).await,
                    }
                }
            })
            .await;
        });
    }
    while let Some(done) = running.join_next().await {
        done.map_err(|error| format!("a part failed: {error}"))?;
    }
    match options.part {
        None | Some(Part::Verify) if !*stopped.borrow() => words.verify().await,
        _ => Ok(()),
    }
}

impl Words {
    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.options.root)
    }

    fn queue(&self, client: &Client) -> WorkQueue {
        WorkQueue::new(client, self.path("tasks"))
    }

    fn gate(&self, client: &Client) -> Barrier {
        Barrier::new(client, self.path("gate"))
    }

    /// Waits until there is a result.
    async fn result(&self, client: &Client) -> Result<(), Error> {
        loop {
            match client.read(Consistency::Linearizable).exists_and_watch(&self.path("result")).await? {
                (Some(_), _) => return Ok(()),
                (None, changed) => drop(changed.await?),
            }
        }
    }

    // --------------------------------------------------------------------------------------------------- the coordinator

    /// Stands for coordinator until there is a result.
    async fn coordinate(&self, client: &Client, name: &str) -> Result<(), Error> {
        ensure(client, &self.options.root, "").await?;
        let election = Election::new(client, self.path("coordinator")).when_suspended(WhenSuspended::UntilDeadline);
        election
            .run(name, |hold| async move {
                println!("{name} coordinates with token {}", hold.token());
                match self.lead(client, name, &hold).await {
                    Ok(()) => Next::Leave,
                    Err(error) => {
                        println!("{name} no longer coordinates: {error}");
                        Next::Requeue
                    }
                }
            })
            .await
    }

    /// Every step finds what former coordinators did, and is refused if we are one of those by now.
    async fn lead(&self, client: &Client, name: &str, hold: &Hold) -> Result<(), Error> {
        let chunks = chunks(&self.text);
        self.begin_job(client, hold, chunks.len()).await?;
        let queue = self.queue(client);
        loop {
            let (placed, _) = number(client, &self.path("placed")).await?;
            let Some(chunk) = usize::try_from(placed).ok().and_then(|at| chunks.get(at)) else { break };
            let note = Transaction::new()
                .create(&self.path(&format!("input/{placed}")), *chunk, CreateMode::Persistent)
                .set(&self.path("placed"), (placed + 1).to_string(), None);
            fenced(hold, queue.put_with(PRIORITY, [format!("map {placed}")], hold.fence().guard(note)).await)?;
        }
        if self.gate(client).remove().await? {
            println!("{name} opens the gate: {} chunks are there", chunks.len());
        }
        number_reaches(client, &self.path("mapped"), chunks.len() as u64).await?;
        let note = Transaction::new().create(&self.path("reducing"), (), CreateMode::Persistent);
        let tasks = (0..PARTS).map(|part| format!("reduce {part}"));
        match fenced(hold, queue.put_with(PRIORITY, tasks, hold.fence().guard(note)).await) {
            Ok(()) => println!("{name} has all chunks mapped"),
            Err(Error::Client(error)) if error.code() == Some(ErrorCode::NodeExists) => {}
            Err(error) => return Err(error),
        }
        number_reaches(client, &self.path("reduced"), PARTS).await?;
        let mut all = Counts::new();
        for (_, counts) in children(client, &self.path("counts")).await? {
            all.extend(parse_counts(&self.path("counts"), &counts)?);
        }
        match hold.guarded().create(&self.path("result"), encode(&all), CreateMode::Persistent).await {
            Ok(_) => println!("{name} has the result: {} different words", all.len()),
            Err(Error::Client(error)) if error.code() == Some(ErrorCode::NodeExists) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Creates what the job needs, with the gate closed; or finds it.
    async fn begin_job(&self, client: &Client, hold: &Hold, chunks: usize) -> Result<(), Error> {
        let job = Job {
            chunks: chunks as u64,
            parts: PARTS,
            text: format!("{:016x}", xxhash_rust::xxh3::xxh3_64(self.text.as_bytes())),
        };
        let path = self.path("job");
        match client.read(Consistency::Linearizable).get(&path).await {
            Ok(node) if serde_json::from_slice::<Job>(node.bytes()).is_ok_and(|found| found == job) => return Ok(()),
            Ok(_) => {
                let reason = "the job of another text: give this one another --root".to_owned();
                return Err(Error::BadArgument { path, reason });
            }
            Err(error) if error.code() != Some(ErrorCode::NoNode) => return Err(error.into()),
            Err(_) => {}
        }
        let mut begin = Transaction::new().create(&path, encode(&job), CreateMode::Persistent);
        for number in ["placed", "mapped", "reduced"] {
            begin = begin.create(&self.path(number), "0", CreateMode::Persistent);
        }
        for directory in ["gate", "input", "partial", "counts"] {
            begin = begin.create(&self.path(directory), (), CreateMode::Persistent);
        }
        hold.commit(begin).await.map(drop)
    }

    // ------------------------------------------------------------------------------------------------------- the workers

    /// Does tasks until there is a result.
    async fn work(&self, client: &Client, name: &str) -> Result<(), Error> {
        // Who comes before the job finds no gate, and no task either.
        self.gate(client).wait().await?;
        tokio::select! {
            biased;
            result = self.result(client) => result,
            error = self.do_tasks(client, name) => error,
        }
    }

    async fn do_tasks(&self, client: &Client, name: &str) -> Result<(), Error> {
        let queue = self.queue(client);
        loop {
            let work = queue.take().await?;
            let task = String::from_utf8_lossy(work.item().map_or(&b""[..], |item| item)).into_owned();
            println!("{name} begins {task}, attempt {}", work.attempts());
            let (outcome, progress) = match task.split_once(' ').map(|(what, of)| (what, of.parse())) {
                Some(("map", Ok(chunk))) => (self.map(client, chunk).await?, "mapped"),
                Some(("reduce", Ok(part))) => (self.reduce(client, part).await?, "reduced"),
                _ => {
                    let reason = format!("{task:?} is no task");
                    return Err(Error::Malformed { path: work.path().to_owned(), reason });
                }
            };
            tokio::time::sleep(Duration::from_millis(self.options.work_ms)).await;
            let lock = Mutex::new(client, self.path("lock")).acquire().await?;
            let outcome = outcome.and(self.one_more(client, &lock, progress).await?);
            match work.done_with(outcome).await {
                Ok(_) => println!("{name} did {task}"),
                Err(Error::Fenced { .. }) => println!("{name} is too late with {task}"),
                // The lock was lost: the task is given back.
                Err(Error::Client(error)) if error.code() == Some(ErrorCode::NoNode) => {
                    println!("{name} gives {task} back: {error}");
                }
                Err(error) => return Err(error),
            }
            lock.release().await?;
        }
    }

    /// The number goes up by one, if the lock is still ours then.
    async fn one_more(&self, client: &Client, lock: &Guard, progress: &str) -> Result<Transaction, Error> {
        let path = self.path(progress);
        let (done, _) = number(client, &path).await?;
        Ok(lock.fence().guard(Transaction::new().set(&path, (done + 1).to_string(), None)))
    }

    /// Counts one chunk, in as many parts as there are tasks that reduce.
    async fn map(&self, client: &Client, chunk: u64) -> Result<Transaction, Error> {
        let node = client.get(&self.path(&format!("input/{chunk}"))).await?;
        let mut parts = vec![Counts::new(); usize::try_from(PARTS).unwrap_or(1)];
        for (word, count) in count(&String::from_utf8_lossy(node.bytes())) {
            let part = part_of(&word);
            parts[part].insert(word, count);
        }
        let mut outcome = Transaction::new();
        for (part, counts) in parts.iter().enumerate() {
            let path = self.path(&format!("partial/{part}-{chunk}"));
            outcome = outcome.create(&path, encode(counts), CreateMode::Persistent);
        }
        Ok(outcome)
    }

    /// Adds up one part of all chunks.
    async fn reduce(&self, client: &Client, part: u64) -> Result<Transaction, Error> {
        let directory = self.path("partial");
        let mut sum = Counts::new();
        for (name, counts) in children(client, &directory).await? {
            if name.split_once('-').is_some_and(|(of, _)| of == part.to_string()) {
                for (word, count) in parse_counts(&directory, &counts)? {
                    *sum.entry(word).or_insert(0) += count;
                }
            }
        }
        Ok(Transaction::new().create(&self.path(&format!("counts/{part}")), encode(&sum), CreateMode::Persistent))
    }

    // ------------------------------------------------------------------------------------------------------------ verify

    async fn verify(&self) -> Result<(), String> {
        let client = self.options.ensemble.connect().await.map_err(|error| error.to_string())?;
        let path = self.path("result");
        let node = client.read(Consistency::Linearizable).get(&path).await.map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(node.bytes()).into_owned();
        let counted = parse_counts(&path, &text).map_err(|error| error.to_string())?;
        compare(&count(&self.text), &counted)?;
        let mut most: Vec<_> = counted.iter().collect();
        most.sort_by_key(|(word, count)| (std::cmp::Reverse(**count), word.as_str()));
        for (word, count) in most.iter().take(SHOWN) {
            println!("{count} {word}");
        }
        println!("{} words, {} different ones: exactly", counted.values().sum::<u64>(), counted.len());
        client.close().await.map_err(|error| error.to_string())
    }
}

/// A put whose first operation checks our token.
fn fenced<T>(hold: &Hold, put: Result<T, Error>) -> Result<(), Error> {
    match put {
        Err(Error::Client(corral_client::Error::Multi(MultiError { index: 0, code: ErrorCode::NoNode, .. }))) => {
            Err(Error::Fenced { token: hold.token(), path: hold.path().to_owned() })
        }
        other => other.map(drop),
    }
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    // Text and numbers: nothing that could be refused.
    serde_json::to_vec(value).unwrap_or_default()
}

fn parse_counts(path: &str, text: &str) -> Result<Counts, Error> {
    serde_json::from_str(text).map_err(|error| Error::Malformed { path: path.to_owned(), reason: error.to_string() })
}

fn count(text: &str) -> Counts {
    let mut counts = Counts::new();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        *counts.entry(word.to_lowercase()).or_insert(0) += 1;
    }
    counts
}

/// The same in every process, of every version.
fn part_of(word: &str) -> usize {
    usize::try_from(xxhash_rust::xxh3::xxh3_64(word.as_bytes()) % PARTS).unwrap_or(0)
}

/// The text in pieces that end where no word does.
fn chunks(text: &str) -> Vec<&str> {
    let mut chunks = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let is_end = |(at, c): (usize, char)| (at >= CHUNK_BYTES && c.is_whitespace()).then_some(at);
        let end = rest.char_indices().find_map(is_end).unwrap_or(rest.len());
        let (chunk, after) = rest.split_at(end);
        chunks.push(chunk);
        rest = after;
    }
    chunks
}

fn compare(expected: &Counts, counted: &Counts) -> Result<(), String> {
    for (word, count) in expected {
        let found = counted.get(word).copied().unwrap_or(0);
        if found != *count {
            return Err(format!("{word:?} was counted {found} times and is there {count} times"));
        }
    }
    match counted.keys().find(|word| !expected.contains_key(*word)) {
        Some(word) => Err(format!("{word:?} was counted and is not there")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_the_text_and_cut_no_word() {
        let text = "Whether 'tis nobler in the mind to suffer\n".repeat(400);
        let chunks = chunks(&text);
        assert!(chunks.len() > 3 && chunks.iter().all(|chunk| chunk.len() < CHUNK_BYTES + 50));
        assert_eq!(chunks.concat(), text);
        let mut sum = Counts::new();
        for chunk in chunks {
            for (word, more) in count(chunk) {
                *sum.entry(word).or_insert(0) += more;
            }
        }
        assert_eq!(sum, count(&text));
        assert_eq!(sum.get("tis"), Some(&400));
    }

    #[test]
    fn every_wrong_count_is_found() {
        let expected = count("a b b");
        assert_eq!(compare(&expected, &count("b a B")), Ok(()));
        assert!(compare(&expected, &count("a b")).unwrap_err().contains("counted 1 times and is there 2 times"));
        assert!(compare(&expected, &count("a b b c")).unwrap_err().contains("is not there"));
    }
}
