//! A queue: sequential creates produce, deletes consume. Nothing is lost, nothing is consumed twice, and no number is given
//! twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use corral_proto::{CreateMode, ErrorCode};
use tokio::task::JoinSet;

use super::{Round, Steward, think};
use crate::journal::Micros;
use crate::session::{Outcome, Protocol};

const PRODUCERS: u64 = 2;
const CONSUMERS: u64 = 4;
const THINK_MS: u64 = 40;
/// Consumers choose among so many at the head: they shall meet.
const HEAD: usize = 3;
const PREFIX: &str = "item-";

#[derive(Clone, Debug)]
enum Event {
    /// An item was put in; its number, if that was answered.
    Produced { item: String, name: Option<String>, called: Micros, returned: Micros },
    /// An item was found under a name, and deleted, if that was answered.
    Consumed { item: String, name: String, certain: bool },
}

pub async fn round(round: &Arc<Round>, steward: &mut Steward) {
    let folder = round.path("q");
    steward.ensure(&folder).await;
    let mut workers = JoinSet::new();
    for number in 0..PRODUCERS {
        workers.spawn(produce(round.clone(), folder.clone(), number));
    }
    for number in 0..CONSUMERS {
        workers.spawn(consume(round.clone(), folder.clone(), number));
    }
    let history: Vec<Event> = workers.join_all().await.into_iter().flatten().collect();
    let mut left = BTreeMap::new();
    for name in steward.children(&folder).await {
        if let Some((item, _)) = steward.get(&format!("{folder}/{name}")).await {
            left.insert(name, item);
        }
    }
    if let Err(text) = check(&history, &left) {
        round.violation(&text, &history);
    }
}

async fn produce(round: Arc<Round>, folder: String, number: u64) -> Vec<Event> {
    let protocol = Protocol::of(number);
    let mut rng = round.rng(&format!("producer {number}"));
    let mut history = Vec::new();
    while !round.is_over() {
        let session = round.session(protocol, &mut rng).await;
        while !round.is_over() && !session.is_over() {
            think(&mut rng, THINK_MS).await;
            let item = format!("{number}-{}", history.len());
            let called = round.now();
            let path = format!("{folder}/{PREFIX}");
            let outcome = session.create(&path, &item, CreateMode::PersistentSequential).await;
            round.count(&outcome);
            let name = match outcome {
                Outcome::Done(created) => Some(created.path[folder.len() + 1..].to_owned()),
                Outcome::Unknown => None,
                Outcome::Refused(_) | Outcome::Ended => continue,
            };
            history.push(Event::Produced { item, name, called, returned: round.now() });
        }
        session.close().await;
    }
    history
}

async fn consume(round: Arc<Round>, folder: String, number: u64) -> Vec<Event> {
    let protocol = Protocol::of(number);
    let mut rng = round.rng(&format!("consumer {number}"));
    let mut history = Vec::new();
    while !round.is_over() {
        let session = round.session(protocol, &mut rng).await;
        while !round.is_over() && !session.is_over() {
            think(&mut rng, THINK_MS * 2).await;
            let Some(mut names) = session.children(&folder).await.done() else { continue };
            names.sort();
            names.truncate(HEAD);
            if names.is_empty() {
                continue;
            }
            let name = rng.pick(&names).clone();
            let path = format!("{folder}/{name}");
            // Gone: somebody else was faster.
            let Some((item, _)) = session.get(&path).await.done() else { continue };
            let outcome = session.delete(&path).await;
            round.count(&outcome);
            match outcome {
                Outcome::Done(()) => history.push(Event::Consumed { item, name, certain: true }),
                Outcome::Unknown => history.push(Event::Consumed { item, name, certain: false }),
                Outcome::Refused(ErrorCode::NoNode) | Outcome::Refused(_) | Outcome::Ended => {}
            }
        }
        session.close().await;
    }
    history
}

/// Whether this is what a queue does; `left` is what is in it at the end, by name.
fn check(history: &[Event], left: &BTreeMap<String, String>) -> Result<(), String> {
    let mut produced: BTreeMap<&str, Option<&str>> = BTreeMap::new();
    let mut names: BTreeSet<&str> = BTreeSet::new();
    let mut answers: Vec<(Micros, bool, &str)> = Vec::new();
    for event in history {
        if let Event::Produced { item, name, called, returned } = event {
            produced.insert(item, name.as_deref());
            if let Some(name) = name {
                if !names.insert(name) {
                    return Err(format!("the name {name} was given twice"));
                }
                answers.push((*called, false, name));
                answers.push((*returned, true, name));
            }
        }
    }
    // Numbers follow real time. Ten digits: names compare as numbers do.
    answers.sort();
    let mut newest = "";
    for (_, is_answer, name) in answers {
        if is_answer {
            newest = newest.max(name);
        } else if name <= newest {
            return Err(format!("{name} was asked for after {newest} had been given"));
        }
    }
    // Under which name each item was seen: at most one, and that of its answer.
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    let taken = history.iter().filter_map(|event| match event {
        Event::Consumed { item, name, .. } => Some((item.as_str(), name.as_str())),
        Event::Produced { .. } => None,
    });
    for (item, name) in taken.chain(left.iter().map(|(name, item)| (item.as_str(), name.as_str()))) {
        match produced.get(item) {
            None => return Err(format!("nobody produced {item}, found as {name}")),
            Some(Some(given)) if *given != name => {
                return Err(format!("{item} is {given}, and was found as {name} too"));
            }
            Some(_) => {}
        }
        if seen.insert(item, name).is_some_and(|other| other != name) {
            return Err(format!("{item} was produced twice: {name} and another"));
        }
    }
    let mut consumed: BTreeSet<&str> = BTreeSet::new();
    let mut maybe: BTreeSet<&str> = BTreeSet::new();
    for event in history {
        match event {
            Event::Consumed { name, certain: true, .. } => {
                if !consumed.insert(name) {
                    return Err(format!("{name} was consumed twice"));
                }
                if left.contains_key(name) {
                    return Err(format!("{name} was consumed and is there again"));
                }
            }
            Event::Consumed { name, .. } => _ = maybe.insert(name),
            Event::Produced { .. } => {}
        }
    }
    let lost =
        names.iter().find(|name| !left.contains_key(**name) && !consumed.contains(*name) && !maybe.contains(*name));
    match lost {
        Some(name) => Err(format!("{name} was acknowledged and is lost")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn produced(item: &str, name: Option<&str>, called: Micros, returned: Micros) -> Event {
        Event::Produced { item: item.into(), name: name.map(str::to_owned), called, returned }
    }

    fn consumed(item: &str, name: &str, certain: bool) -> Event {
        Event::Consumed { item: item.into(), name: name.into(), certain }
    }

    fn left(items: &[(&str, &str)]) -> BTreeMap<String, String> {
        items.iter().map(|(name, item)| ((*name).to_owned(), (*item).to_owned())).collect()
    }

    #[test]
    fn a_queue_that_behaves_is_accepted() {
        let history = [
            produced("a", Some("item-0"), 0, 3),
            produced("b", None, 1, 2),
            produced("c", Some("item-2"), 4, 5),
            produced("d", Some("item-3"), 6, 7),
            consumed("a", "item-0", true),
            consumed("b", "item-1", true),
            consumed("d", "item-3", false),
        ];
        assert_eq!(check(&history, &left(&[("item-2", "c")])), Ok(()));
    }

    #[test]
    fn what_must_not_happen_is_found() {
        let found = |history: &[Event], items: &[(&str, &str)]| check(history, &left(items)).expect_err("it is wrong");
        let a = produced("a", Some("item-0"), 0, 1);
        let take = consumed("a", "item-0", true);
        assert!(found(std::slice::from_ref(&a), &[]).contains("lost"));
        assert!(found(&[a.clone(), take.clone(), take.clone()], &[]).contains("consumed twice"));
        assert!(found(&[a.clone(), take], &[("item-0", "a")]).contains("there again"));
        assert!(found(&[a.clone(), produced("b", Some("item-0"), 2, 3)], &[]).contains("given twice"));
        assert!(
            found(&[produced("b", Some("item-1"), 0, 1), produced("c", Some("item-0"), 2, 3)], &[]).contains("after")
        );
        assert!(found(std::slice::from_ref(&a), &[("item-0", "a"), ("item-1", "a")]).contains("found as item-1"));
        let doubled = [produced("b", None, 0, 1), consumed("b", "item-0", true), consumed("b", "item-1", true)];
        assert!(found(&doubled, &[]).contains("produced twice"));
        assert!(found(&[a], &[("item-0", "a"), ("item-7", "x")]).contains("nobody produced x"));
    }
}
