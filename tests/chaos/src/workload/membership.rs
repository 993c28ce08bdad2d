//! Membership: ephemerals of sessions that come and go. A list never shows a member whose session was over before it was
//! asked for, and always shows one whose session lives.

use std::sync::Arc;

use corral_proto::CreateMode;
use tokio::task::JoinSet;

use super::{Round, think};
use crate::journal::Micros;
use crate::session::{Outcome, Protocol};

const MEMBERS: u64 = 4;
const OBSERVERS: u64 = 2;
const THINK_MS: u64 = 150;

#[derive(Clone, Debug)]
enum Event {
    Member(Member),
    Listed { called: Micros, returned: Micros, names: Vec<String> },
}

/// One ephemeral and what its session was told.
#[derive(Clone, Debug)]
struct Member {
    name: String,
    /// When its create was answered.
    created: Option<Micros>,
    /// When the last request was sent that was answered: the session lived then.
    alive: Micros,
    /// When it was first asked to go.
    leaving: Option<Micros>,
    /// When its client knew that it is gone.
    gone: Option<Micros>,
}

pub async fn round(round: &Arc<Round>) {
    let mut workers = JoinSet::new();
    for number in 0..MEMBERS {
        workers.spawn(be_member(round.clone(), number));
    }
    for number in 0..OBSERVERS {
        workers.spawn(observe(round.clone(), number));
    }
    let history: Vec<Event> = workers.join_all().await.into_iter().flatten().collect();
    if let Err(text) = check(&history) {
        round.violation(&text, &history);
    }
}

async fn be_member(round: Arc<Round>, number: u64) -> Vec<Event> {
    let protocol = Protocol::of(number);
    let mut rng = round.rng(&format!("member {number}"));
    let mut history = Vec::new();
    while !round.is_over() {
        let session = round.session(protocol, &mut rng).await;
        let name = format!("m{number}-{}", history.len());
        let path = round.path(&name);
        let called = round.now();
        let outcome = session.create(&path, "", CreateMode::Ephemeral).await;
        round.count(&outcome);
        let mut member = Member { name, created: None, alive: called, leaving: None, gone: None };
        match outcome {
            Outcome::Done(_) => member.created = Some(round.now()),
            Outcome::Unknown => {}
            Outcome::Refused(_) | Outcome::Ended => continue,
        }
        for _ in 0..rng.between(3, 40) {
            if round.is_over() || session.is_over() {
                break;
            }
            think(&mut rng, THINK_MS).await;
            let called = round.now();
            let outcome = session.exists(&path).await;
            round.count(&outcome);
            match outcome {
                Outcome::Done(Some(_)) => member.alive = called,
                // The last answer of a session that just ended may show its end; after that there is none.
                Outcome::Done(None)
                    if member.created.is_some() && matches!(session.exists(&path).await, Outcome::Done(_)) =>
                {
                    round.violation(&format!("a session lives, and its own ephemeral is gone: {member:?}"), &history);
                }
                _ => {}
            }
        }
        // A session that expired is gone now; the others leave in one of three ways.
        if !session.is_over() {
            member.leaving = Some(round.now());
            let certain = match rng.below(3) {
                0 => session.close().await,
                1 => session.delete(&path).await == Outcome::Done(()),
                // Without a word: the ensemble has to notice.
                _ => false,
            };
            member.gone = certain.then(|| round.now());
        }
        if session.has_expired() {
            member.gone = Some(round.now());
        }
        history.push(Event::Member(member));
    }
    history
}

async fn observe(round: Arc<Round>, number: u64) -> Vec<Event> {
    let protocol = Protocol::of(number);
    let mut rng = round.rng(&format!("observer {number}"));
    let mut history = Vec::new();
    while !round.is_over() {
        let session = round.session(protocol, &mut rng).await;
        while !round.is_over() && !session.is_over() {
            think(&mut rng, THINK_MS).await;
            let called = round.now();
            let outcome = session.children(&round.folder).await;
            round.count(&outcome);
            if let Outcome::Done(names) = outcome {
                history.push(Event::Listed { called, returned: round.now(), names });
            }
        }
        session.close().await;
    }
    history
}

/// Whether each list is right as far as can be known.
fn check(history: &[Event]) -> Result<(), String> {
    for event in history {
        let Event::Listed { called, returned, names } = event else { continue };
        for member in history {
            let Event::Member(member) = member else { continue };
            let is_listed = names.contains(&member.name);
            if is_listed && member.gone.is_some_and(|gone| gone < *called) {
                return Err(format!("a member is listed whose session was over: {member:?} in {event:?}"));
            }
            let surely_until = member.leaving.unwrap_or(Micros::MAX).min(member.alive);
            let surely = member.created.is_some_and(|created| created < *called) && *returned < surely_until;
            if surely && !is_listed {
                return Err(format!("a member is not listed whose session lived: {member:?} in {event:?}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(created: Option<Micros>, alive: Micros, leaving: Option<Micros>, gone: Option<Micros>) -> Event {
        Event::Member(Member { name: "m".into(), created, alive, leaving, gone })
    }

    fn listed(called: Micros, returned: Micros, is_listed: bool) -> Event {
        Event::Listed { called, returned, names: if is_listed { vec!["m".into()] } else { Vec::new() } }
    }

    #[test]
    fn what_is_not_known_is_not_judged() {
        let lived = member(Some(10), 50, Some(60), Some(70));
        for list in [listed(5, 20, false), listed(20, 40, true), listed(20, 50, false), listed(65, 75, true)] {
            assert_eq!(check(&[lived.clone(), list]), Ok(()));
        }
        assert_eq!(check(&[member(None, 0, None, None), listed(5, 6, true)]), Ok(()));
    }

    #[test]
    fn ghosts_and_missing_members_are_found() {
        let lived = member(Some(10), 50, Some(60), Some(70));
        assert!(check(&[lived.clone(), listed(71, 72, true)]).expect_err("a ghost").contains("was over"));
        assert!(check(&[lived, listed(11, 49, false)]).expect_err("missing").contains("lived"));
        let leaving = member(Some(10), 50, Some(30), None);
        assert_eq!(check(&[leaving, listed(20, 40, false)]), Ok(()));
    }
}
