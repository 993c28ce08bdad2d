//! A service in several copies, of which one at a time does the work.
//!
//!     cargo run --example replicated_service -- --server localhost:2181 --copies 3 --steps 100
//!     cargo run --example replicated_service -- --server localhost:2181 --verify
//!
//! All copies campaign for leadership. The leader does numbered work: step k + 1 sets `/service/state` to k + 1 and adds
//! an entry `k+1 NAME TOKEN` to `/service/log`, in one transaction behind its fencing token. The number is deliberately
//! not protected in any other way: the leader keeps it in memory, the set takes any version, and entries of the log get
//! names from the server. So if two leaders ever got work through at the same time, a number would be there twice, and
//! `--verify` would say so.
//!
//! For copies in processes of their own, to kill them one by one, start it several times with `--copies 1 --name NAME`.

mod common;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use common::{Ensemble, number};
use corral_client::{Client, CreateMode, ErrorCode, Transaction};
use corral_recipes::{Election, Error, Hold, Next, WhenSuspended};

/// A replicated service: copies elect a leader, and the leader does numbered work.
#[derive(Parser, Clone, Debug)]
struct Options {
    #[command(flatten)]
    ensemble: Ensemble,
    /// Copies in this process.
    #[arg(long, default_value_t = 3)]
    copies: u32,
    /// Steps to do, by all copies together; 0: until Ctrl-C.
    #[arg(long, default_value_t = 100)]
    steps: u64,
    /// What the copies are called; each adds its number.
    #[arg(long, default_value = "copy")]
    name: String,
    /// Pause between two steps, in ms.
    #[arg(long, default_value_t = 20)]
    pause_ms: u64,
    /// Steps after which a leader resigns, so that another gets its turn; 0: never.
    #[arg(long, default_value_t = 0)]
    term: u64,
    /// Znode below which everything is kept.
    #[arg(long, default_value = "/service")]
    root: String,
    /// Check the work done so far, and do nothing else.
    #[arg(long)]
    verify: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    common::begin();
    let options = Options::parse();
    common::end(if options.verify { verify_service(&options).await } else { run_copies(options).await })
}

async fn run_copies(options: Options) -> Result<(), String> {
    let stopped = common::stopped();
    let mut copies = tokio::task::JoinSet::new();
    for number in 1..=options.copies {
        let (options, name, stopped) = (options.clone(), format!("{}-{number}", options.name), stopped.clone());
        copies.spawn(async move {
            let (ensemble, of) = (options.ensemble.clone(), name.clone());
            common::sessions(ensemble, name, stopped, |client| session(client, &options, &of)).await;
        });
    }
    while let Some(done) = copies.join_next().await {
        done.map_err(|error| format!("a copy failed: {error}"))?;
    }
    Ok(())
}

/// Campaigns and works until all steps are done (`Ok`) or the session has ended.
async fn session(client: Client, options: &Options, name: &str) -> Result<(), Error> {
    let election = Election::new(&client, format!("{}/election", options.root))
        // Every step is guarded, so that a change of server need not cost the leadership.
        .when_suspended(WhenSuspended::UntilDeadline);
    election.run(name, |hold| lead(&client, options, name, hold)).await
}

async fn lead(client: &Client, options: &Options, name: &str, hold: Hold) -> Next {
    println!("{name} leads with token {}", hold.token());
    let (done, next) = match work(client, options, name, &hold).await {
        Ok(done) if options.steps != 0 && done == options.steps => (format!("all {done} steps are done"), Next::Leave),
        Ok(done) => (format!("its term is over at step {done}"), Next::Requeue),
        Err(Error::Fenced { .. }) => ("its token is dead".to_owned(), Next::Requeue),
        Err(error) => (error.to_string(), Next::Requeue),
    };
    println!("{name} no longer leads: {done}");
    next
}

/// Does steps until all are done or the term is over; says which is the last step done.
async fn work(client: &Client, options: &Options, name: &str, hold: &Hold) -> Result<u64, Error> {
    let state = format!("{}/state", options.root);
    let entry = format!("{}/log/step-", options.root);
    prepare(client, options, hold).await?;
    // All that former leaders got through is in the tree: their contenders were gone before ours came first, and a write
    // of theirs that arrives from now on is refused.
    let (mut done, _) = number(client, &state).await?;
    let first = done;
    while options.steps == 0 || done < options.steps {
        if options.term != 0 && done - first >= options.term {
            return Ok(done);
        }
        let next = done + 1;
        let step = Transaction::new().set(&state, next.to_string(), None).create(
            &entry,
            format!("{next} {name} {:#x}", hold.token().value()),
            CreateMode::PersistentSequential,
        );
        hold.commit(step).await?;
        done = next;
        tokio::time::sleep(Duration::from_millis(options.pause_ms)).await;
    }
    Ok(done)
}

/// Creates what the work needs; the campaign has created the root.
async fn prepare(client: &Client, options: &Options, hold: &Hold) -> Result<(), Error> {
    for (path, data) in [(format!("{}/state", options.root), "0"), (format!("{}/log", options.root), "")] {
        if client.exists(&path).await?.is_none() {
            match hold.guarded().create(&path, data, CreateMode::Persistent).await {
                Err(Error::Client(error)) if error.code() == Some(ErrorCode::NodeExists) => {}
                other => drop(other?),
            }
        }
    }
    Ok(())
}

async fn verify_service(options: &Options) -> Result<(), String> {
    let client = options.ensemble.connect().await.map_err(|error| error.to_string())?;
    let (state, entries) = read_log(&client, options).await.map_err(|error| error.to_string())?;
    let terms = verify(state, &entries)?;
    for term in &terms {
        println!("{} led with token {:#x}: steps {} to {}", term.leader, term.token, term.first, term.last);
    }
    println!("{state} steps, {} terms: no gap, no double, tokens grow", terms.len());
    client.close().await.map_err(|error| error.to_string())
}

/// The state, and the log in the order in which it was written.
async fn read_log(client: &Client, options: &Options) -> Result<(u64, Vec<String>), Error> {
    let (state, _) = number(client, &format!("{}/state", options.root)).await?;
    let entries = common::children(client, &format!("{}/log", options.root)).await?;
    Ok((state, entries.into_iter().map(|(_, text)| text).collect()))
}

/// Steps that one leader did under one token.
#[derive(Debug, PartialEq, Eq)]
struct Term {
    leader: String,
    token: u64,
    first: u64,
    last: u64,
}

/// Checks a log, in the order in which it was written: numbers go 1, 2, 3, ... up to the state; tokens never go back,
/// and a token has one leader.
fn verify(state: u64, entries: &[String]) -> Result<Vec<Term>, String> {
    let mut terms: Vec<Term> = Vec::new();
    for (expected, text) in (1..).zip(entries) {
        let (number, leader, token) =
            parse_entry(text).ok_or_else(|| format!("entry {expected} cannot be read: {text:?}"))?;
        if number != expected {
            let what = if number < expected { "is there twice, or late" } else { "follows a gap" };
            return Err(format!("step {number} {what}: step {expected} was to come ({text:?})"));
        }
        match terms.last_mut() {
            Some(last) if last.token == token && last.leader == leader => last.last = number,
            Some(last) if last.token >= token => {
                return Err(format!(
                    "step {number}: token {token:#x} of {leader} came after {:#x} of {}",
                    last.token, last.leader
                ));
            }
            _ => terms.push(Term { leader, token, first: number, last: number }),
        }
    }
    if entries.len() as u64 != state {
        return Err(format!("the state says {state} steps, the log holds {}", entries.len()));
    }
    Ok(terms)
}

fn parse_entry(text: &str) -> Option<(u64, String, u64)> {
    let (number, rest) = text.split_once(' ')?;
    // The name may hold blanks.
    let (leader, token) = rest.rsplit_once(' ')?;
    Some((number.parse().ok()?, leader.to_owned(), u64::from_str_radix(token.strip_prefix("0x")?, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(entries: &[&str]) -> Vec<String> {
        entries.iter().map(|entry| (*entry).to_owned()).collect()
    }

    #[test]
    fn a_sound_log_is_told_by_its_terms() {
        let terms = verify(4, &log(&["1 a 0x10", "2 a 0x10", "3 b c 0x20", "4 a 0x30"])).expect("sound");
        assert_eq!(terms.len(), 3);
        assert_eq!(terms[0], Term { leader: "a".into(), token: 0x10, first: 1, last: 2 });
        assert_eq!(terms[1].leader, "b c");
        assert_eq!(verify(0, &[]), Ok(vec![]));
    }

    #[test]
    fn gaps_doubles_and_shrinking_tokens_are_found() {
        assert!(verify(2, &log(&["1 a 0x10", "3 a 0x10"])).expect_err("gap").contains("follows a gap"));
        assert!(verify(2, &log(&["1 a 0x10", "1 b 0x20"])).expect_err("double").contains("twice"));
        assert!(verify(2, &log(&["1 a 0x20", "2 b 0x10"])).expect_err("token").contains("came after"));
        assert!(verify(2, &log(&["1 a 0x20", "2 b 0x20"])).expect_err("one token, two leaders").contains("came after"));
        assert!(verify(3, &log(&["1 a 0x20", "2 a 0x20"])).expect_err("state").contains("the log holds 2"));
        assert!(verify(1, &log(&["one"])).expect_err("text").contains("cannot be read"));
    }
}
