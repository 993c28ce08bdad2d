//! A set: creates of unique names, plain and sequential. What was acknowledged is there once, what was refused is not, and
//! nothing is there twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use corral_proto::{CreateMode, ErrorCode};
use tokio::task::JoinSet;

use super::{KEPT, Round, Steward, think};
use crate::session::{Outcome, Protocol};

const WORKERS: u64 = 4;
const THINK_MS: u64 = 40;
/// Znodes of each round that stay until the end of the run.
const KEPT_A_ROUND: usize = 10;

/// One create.
#[derive(Clone, Debug)]
struct Add {
    /// The name, or what a sequential one begins with.
    name: String,
    sequential: bool,
    result: Added,
}

/// What its client knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Added {
    /// Acknowledged under this name.
    Yes(String),
    /// Refused.
    No,
    /// Nobody knows; never seen after it either.
    Unknown,
    /// Not acknowledged, but found by a read of the same session on its next connection, or of the next session: whether
    /// it was done is decided by then.
    Found(bool),
}

pub async fn round(round: &Arc<Round>, steward: &mut Steward) {
    let folder = round.path("s");
    steward.ensure(&folder).await;
    let mut workers = JoinSet::new();
    for number in 0..WORKERS {
        workers.spawn(work(round.clone(), folder.clone(), number));
    }
    let history: Vec<Add> = workers.join_all().await.into_iter().flatten().collect();
    let names = steward.children(&folder).await;
    if let Err(text) = check(&history, &names) {
        round.violation(&text, &history);
    }
    // Some stay: not in the folder of the round, which goes.
    for add in history.iter().filter(|add| matches!(add.result, Added::Yes(_))).take(KEPT_A_ROUND) {
        let path = format!("{KEPT}/{}-{}", round.number, add.name);
        steward.ensure(&path).await;
        round.ctx.kept.lock().push(path);
    }
}

async fn work(round: Arc<Round>, folder: String, number: u64) -> Vec<Add> {
    let protocol = Protocol::of(number);
    let mut rng = round.rng(&format!("worker {number}"));
    let mut history: Vec<Add> = Vec::new();
    // Plain creates of unknown outcome: their fate is looked up.
    let mut open: Vec<usize> = Vec::new();
    while !round.is_over() {
        let session = round.session(protocol, &mut rng).await;
        while !round.is_over() && !session.is_over() {
            think(&mut rng, THINK_MS).await;
            if let Some(index) = open.last().copied() {
                let found = session.exists(&format!("{folder}/{}", history[index].name)).await;
                if let Outcome::Done(found) = found {
                    history[index].result = Added::Found(found.is_some());
                    open.pop();
                }
                continue;
            }
            let sequential = rng.chance(400);
            let name = format!(
                "{}{number}-{}{}",
                if sequential { "q" } else { "p" },
                history.len(),
                if sequential { "-" } else { "" }
            );
            let mode = if sequential { CreateMode::PersistentSequential } else { CreateMode::Persistent };
            let outcome = session.create(&format!("{folder}/{name}"), &name, mode).await;
            round.count(&outcome);
            let result = match outcome {
                Outcome::Done(created) => Added::Yes(created.path[folder.len() + 1..].to_owned()),
                Outcome::Refused(ErrorCode::NodeExists) => {
                    round.violation(&format!("a name that was never used exists already: {name}"), &history);
                    Added::No
                }
                Outcome::Refused(_) | Outcome::Ended => Added::No,
                Outcome::Unknown => {
                    if !sequential {
                        open.push(history.len());
                    }
                    Added::Unknown
                }
            };
            history.push(Add { name, sequential, result });
        }
        session.close().await;
    }
    history
}

/// Whether these names are what the creates must have made.
fn check(history: &[Add], names: &[String]) -> Result<(), String> {
    let mut present: BTreeSet<&str> = BTreeSet::new();
    for name in names {
        if !present.insert(name) {
            return Err(format!("the list of children names {name} twice"));
        }
    }
    // Sequential names by what they begin with: the number has ten digits.
    let mut by_prefix: BTreeMap<&str, u64> = BTreeMap::new();
    for name in names.iter().filter(|name| name.starts_with('q') && name.len() > 10) {
        *by_prefix.entry(&name[..name.len() - 10]).or_default() += 1;
    }
    let mut expected: BTreeSet<&str> = BTreeSet::new();
    for add in history {
        let copies = if add.sequential {
            by_prefix.get(add.name.as_str()).copied().unwrap_or_default()
        } else {
            u64::from(present.contains(add.name.as_str()))
        };
        let wrong = match &add.result {
            Added::Yes(name) if !present.contains(name.as_str()) => Some("was acknowledged and is lost"),
            Added::No if copies > 0 => Some("was refused and is there"),
            Added::Found(true) if copies == 0 => Some("was there and is lost"),
            Added::Found(false) if copies > 0 => Some("was not there when its session had gone on, and came later"),
            _ if copies > 1 => Some("was done more than once"),
            _ => None,
        };
        if let Some(wrong) = wrong {
            return Err(format!("a create {wrong}: {add:?}"));
        }
        expected.insert(&add.name);
    }
    let stranger = names.iter().find(|name| {
        let plain = name.as_str();
        let known = expected.contains(plain) || (plain.len() > 10 && expected.contains(&plain[..plain.len() - 10]));
        !known
    });
    match stranger {
        Some(name) => Err(format!("nobody created {name}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(name: &str, result: Added) -> Add {
        Add { name: name.into(), sequential: false, result }
    }

    fn sequential(name: &str, result: Added) -> Add {
        Add { name: name.into(), sequential: true, result }
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_was_acknowledged_once_is_there_once() {
        let history = [
            plain("p0-0", Added::Yes("p0-0".into())),
            plain("p0-1", Added::No),
            plain("p0-2", Added::Unknown),
            plain("p0-3", Added::Found(true)),
            sequential("q0-4-", Added::Yes("q0-4-0000000003".into())),
            sequential("q0-5-", Added::Unknown),
        ];
        let list = names(&["p0-0", "p0-3", "q0-4-0000000003", "q0-5-0000000004"]);
        assert_eq!(check(&history, &list), Ok(()));
    }

    #[test]
    fn what_must_not_happen_is_found() {
        let found = |add: Add, list: &[&str]| check(&[add], &names(list)).expect_err("it is wrong");
        assert!(found(plain("p0-0", Added::Yes("p0-0".into())), &[]).contains("is lost"));
        assert!(found(plain("p0-0", Added::No), &["p0-0"]).contains("was refused"));
        assert!(found(plain("p0-0", Added::Found(false)), &["p0-0"]).contains("came later"));
        assert!(found(plain("p0-0", Added::Found(true)), &[]).contains("was there"));
        let twice = ["q0-0-0000000000", "q0-0-0000000001"];
        assert!(found(sequential("q0-0-", Added::Yes(twice[0].into())), &twice).contains("more than once"));
        assert!(found(sequential("q0-0-", Added::Unknown), &twice).contains("more than once"));
        assert!(found(plain("p0-0", Added::Unknown), &["p0-1"]).contains("nobody"));
        assert!(found(plain("p0-0", Added::Unknown), &["p0-0", "p0-0"]).contains("twice"));
    }
}
