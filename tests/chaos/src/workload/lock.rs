//! Locks: at most one holder at a time as far as holders can know, growing tokens, and writes that only the holder may do.
//!
//! Through gRPC the lock is that of the recipes; through ZooKeeper's protocol it is written out here: an ephemeral
//! sequential znode, the first of which holds.

use std::sync::Arc;
use std::time::Duration;

use corral_client::{OpResult, Transaction};
use corral_proto::{CreateMode, ErrorCode};
use corral_recipes::{Error, Guarded, Mutex, WhenSuspended};
use tokio::task::JoinSet;

use super::{Round, Steward, think};
use crate::journal::Micros;
use crate::session::{Outcome, Protocol, Session, Write};

const WORKERS_EACH: u64 = 3;
const THINK_MS: u64 = 60;
/// How long a contender waits for its turn.
const TURN_LIMIT: Duration = Duration::from_secs(5);
/// Looks of a contender over ZooKeeper's protocol before it gives up its place.
const LOOKS_MAX: u32 = 100;

#[derive(Clone, Debug)]
enum Event {
    /// From its return from `acquire` until it last saw that it might act.
    Held { token: i64, from: Micros, until: Micros },
    /// A guarded write was done: the new version of the znode.
    Wrote { token: i64, version: i32 },
    /// A guarded write of a holder that had released was done.
    WroteLate { token: i64 },
}

pub async fn round(round: &Arc<Round>, steward: &mut Steward) {
    let mut workers = JoinSet::new();
    for door in ["grpc", "wire"] {
        steward.ensure(&round.path(door)).await;
        steward.ensure(&round.path(&format!("state-{door}"))).await;
    }
    for number in 0..WORKERS_EACH {
        workers.spawn(with_recipe(round.clone(), number));
        workers.spawn(by_hand(round.clone(), number));
    }
    let mut both = [Vec::new(), Vec::new()];
    while let Some(done) = workers.join_next().await {
        match done {
            Ok((protocol, events)) => both[usize::from(protocol == Protocol::Wire)].extend(events),
            Err(error) => round.violation(&format!("a worker panicked: {error}"), &both[0]),
        }
    }
    for history in both {
        if let Err(text) = check(&history) {
            round.violation(&text, &history);
        }
    }
}

async fn with_recipe(round: Arc<Round>, number: u64) -> (Protocol, Vec<Event>) {
    let mut rng = round.rng(&format!("recipe {number}"));
    let mut history = Vec::new();
    let state = round.path("state-grpc");
    while !round.is_over() {
        let session = round.session(Protocol::Grpc, &mut rng).await;
        let Session::Grpc(client) = &session else { break };
        while !round.is_over() && !session.is_over() {
            think(&mut rng, THINK_MS).await;
            let policy = if rng.chance(500) { WhenSuspended::Stop } else { WhenSuspended::UntilDeadline };
            let mutex = Mutex::new(client, round.path("grpc")).when_suspended(policy);
            let acquired = mutex.acquire_timeout(TURN_LIMIT).await;
            round.count(&recipe(&acquired));
            let Ok(guard) = acquired else { continue };
            let token = guard.token().value() as i64;
            let from = round.now();
            let mut until = None;
            for _ in 0..rng.between(1, 5) {
                think(&mut rng, THINK_MS).await;
                let now = round.now();
                if guard.is_valid() {
                    until = Some(now);
                }
                let written = guard.commit(Transaction::new().set(&state, token.to_string(), None)).await;
                round.count(&recipe(&written));
                match written.as_deref() {
                    Ok([OpResult::Set(stat)]) => history.push(Event::Wrote { token, version: stat.version }),
                    Ok(other) => round.violation(&format!("a guarded set gave {other:?}"), &history),
                    // Fenced, or the session is over.
                    Err(_) => break,
                }
            }
            if let Some(until) = until {
                history.push(Event::Held { token, from, until });
            }
            let fence = guard.fence().clone();
            if guard.release().await.is_ok() && !session.is_over() {
                let late = Guarded::new(client.clone(), fence).set(&state, "late", None).await;
                if late.is_ok() {
                    history.push(Event::WroteLate { token });
                }
            }
        }
        session.close().await;
    }
    (Protocol::Grpc, history)
}

/// For the counts.
fn recipe<T>(result: &Result<T, Error>) -> Outcome<()> {
    match result {
        Ok(_) => Outcome::Done(()),
        Err(Error::Client(error)) if error.outcome_unknown() => Outcome::Unknown,
        Err(Error::Client(error)) if error.is_session_end() => Outcome::Ended,
        Err(Error::Client(error)) => Outcome::Refused(error.code().unwrap_or(ErrorCode::SystemError)),
        Err(Error::Lost(_)) => Outcome::Ended,
        // Not our turn, or a dead token.
        Err(_) => Outcome::Refused(ErrorCode::NoNode),
    }
}

async fn by_hand(round: Arc<Round>, number: u64) -> (Protocol, Vec<Event>) {
    let mut rng = round.rng(&format!("by hand {number}"));
    let mut history = Vec::new();
    let (folder, state) = (round.path("wire"), round.path("state-wire"));
    while !round.is_over() {
        let session = round.session(Protocol::Wire, &mut rng).await;
        while !round.is_over() && !session.is_over() {
            think(&mut rng, THINK_MS).await;
            let path = format!("{folder}/c-");
            let created = session.create(&path, "", CreateMode::EphemeralSequential).await;
            round.count(&created);
            let own = match created {
                Outcome::Done(own) => own,
                // There may be a contender that nobody knows: it goes with its session.
                Outcome::Unknown => break,
                Outcome::Refused(_) | Outcome::Ended => continue,
            };
            let name = &own.path[folder.len() + 1..];
            let mut is_first = false;
            for _ in 0..LOOKS_MAX {
                match session.children(&folder).await {
                    Outcome::Done(names) => is_first = names.iter().min().is_some_and(|first| first == name),
                    Outcome::Ended => break,
                    Outcome::Refused(_) | Outcome::Unknown => {}
                }
                if is_first || round.is_over() {
                    break;
                }
                think(&mut rng, THINK_MS * 2).await;
            }
            let guarded = |text: String| [Write::Check(own.path.clone()), Write::Set(state.clone(), text, None)];
            if is_first {
                for _ in 0..rng.between(1, 4) {
                    let written = session.multi(&guarded(own.czxid.to_string())).await;
                    round.count(&written);
                    match written.done().as_deref() {
                        Some([stat]) => history.push(Event::Wrote { token: own.czxid, version: stat.version }),
                        Some(other) => round.violation(&format!("a guarded set gave {other:?}"), &history),
                        None => break,
                    }
                    think(&mut rng, THINK_MS).await;
                }
            }
            if session.delete(&own.path).await == Outcome::Done(())
                && session.multi(&guarded("late".to_owned())).await.done().is_some()
            {
                history.push(Event::WroteLate { token: own.czxid });
            }
        }
        session.close().await;
    }
    (Protocol::Wire, history)
}

/// Whether this is what a lock does.
fn check(history: &[Event]) -> Result<(), String> {
    let mut writes = Vec::new();
    let mut holds = Vec::new();
    for event in history {
        match event {
            Event::Wrote { token, version } => writes.push((*version, *token)),
            Event::Held { token, from, until } => holds.push((*from, *until, *token)),
            Event::WroteLate { token } => {
                return Err(format!("token {token:#x} was released, and a write passed with it"));
            }
        }
    }
    writes.sort_unstable();
    for pair in writes.windows(2) {
        let [(version, token), (next_version, next_token)] = pair else { continue };
        if version == next_version {
            return Err(format!("two guarded writes made version {version}"));
        }
        if next_token < token {
            return Err(format!(
                "token {next_token:#x} wrote version {next_version} after {token:#x} had written version {version}"
            ));
        }
    }
    holds.sort_unstable();
    for pair in holds.windows(2) {
        let [(_, until, token), (from, _, next)] = pair else { continue };
        if from <= until {
            return Err(format!("{token:#x} might act until {until} us, and {next:#x} held from {from} us"));
        }
        if next <= token {
            return Err(format!("{next:#x} held after {token:#x}: tokens must grow"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(token: i64, from: Micros, until: Micros) -> Event {
        Event::Held { token, from, until }
    }

    fn wrote(token: i64, version: i32) -> Event {
        Event::Wrote { token, version }
    }

    #[test]
    fn one_holder_after_the_other_is_accepted() {
        let history = [wrote(5, 1), held(5, 0, 9), wrote(5, 2), held(7, 10, 12), wrote(7, 4)];
        assert_eq!(check(&history), Ok(()));
    }

    #[test]
    fn what_must_not_happen_is_found() {
        let found = |history: &[Event]| check(history).expect_err("it is wrong");
        assert!(found(&[held(5, 0, 9), held(7, 9, 12)]).contains("might act"));
        assert!(found(&[held(7, 0, 3), held(5, 4, 5)]).contains("must grow"));
        assert!(found(&[wrote(7, 1), wrote(5, 2)]).contains("after"));
        assert!(found(&[wrote(7, 1), wrote(7, 1)]).contains("two guarded writes"));
        assert!(found(&[Event::WroteLate { token: 7 }]).contains("released"));
    }
}
