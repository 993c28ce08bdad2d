//! A bank: transfers by multi, snapshots by multi-read. Money is neither made nor lost, in every snapshot.

use std::sync::Arc;

use corral_proto::{ErrorCode, Stat};
use tokio::task::JoinSet;

use super::{Round, Steward, think};
use crate::session::{Outcome, Protocol, Write};

const ACCOUNTS: u64 = 6;
const START: i64 = 100;
const WORKERS: u64 = 4;
const THINK_MS: u64 = 60;

/// What one worker did.
#[derive(Clone, Debug, Default)]
struct Tally {
    /// Transfers that were acknowledged.
    done: i64,
    /// Transfers of unknown outcome.
    unknown: i64,
}

pub async fn round(round: &Arc<Round>, steward: &mut Steward) {
    let accounts: Arc<[String]> = (0..ACCOUNTS).map(|number| round.path(&format!("a{number}"))).collect();
    for account in accounts.iter() {
        steward.ensure_with(account, &START.to_string()).await;
    }
    let mut workers = JoinSet::new();
    for number in 0..WORKERS {
        workers.spawn(work(round.clone(), accounts.clone(), number));
    }
    let tallies = workers.join_all().await;
    let mut last = Vec::new();
    for account in accounts.iter() {
        last.extend(steward.get(account).await);
    }
    if let Err(text) = check_snapshot(&last).and_then(|()| check_versions(&last, &tallies)) {
        round.violation(&format!("at the end of the round: {text}"), &last);
    }
}

async fn work(round: Arc<Round>, accounts: Arc<[String]>, number: u64) -> Tally {
    let protocol = Protocol::of(number);
    let mut rng = round.rng(&format!("worker {number}"));
    let mut tally = Tally::default();
    while !round.is_over() {
        let session = round.session(protocol, &mut rng).await;
        let mut seen: Vec<(String, Stat)> = Vec::new();
        while !round.is_over() && !session.is_over() {
            think(&mut rng, THINK_MS).await;
            let outcome = session.snapshot(&accounts).await;
            round.count(&outcome);
            let Outcome::Done(snapshot) = outcome else { continue };
            if let Err(text) = check_snapshot(&snapshot).and_then(|()| check_order(&seen, &snapshot)) {
                round.violation(&format!("worker {number}: {text}"), &snapshot);
            }
            let (from, to) = (rng.below(ACCOUNTS) as usize, rng.below(ACCOUNTS) as usize);
            let amount = rng.between(1, 30) as i64;
            let balance = |at: usize| snapshot[at].0.parse::<i64>().unwrap_or_default();
            if from != to && balance(from) >= amount {
                let set = |at: usize, change: i64| {
                    Write::Set(accounts[at].clone(), (balance(at) + change).to_string(), Some(snapshot[at].1.version))
                };
                let outcome = session.multi(&[set(from, -amount), set(to, amount)]).await;
                round.count(&outcome);
                match outcome {
                    Outcome::Done(_) => tally.done += 1,
                    Outcome::Unknown => tally.unknown += 1,
                    Outcome::Refused(ErrorCode::BadVersion) | Outcome::Refused(_) | Outcome::Ended => {}
                }
            }
            seen = snapshot;
        }
        session.close().await;
    }
    tally
}

fn check_snapshot(snapshot: &[(String, Stat)]) -> Result<(), String> {
    let sum: i64 = snapshot.iter().map(|(balance, _)| balance.parse::<i64>().unwrap_or(i64::MIN / 100)).sum();
    let expected = START * ACCOUNTS as i64;
    if snapshot.len() as u64 == ACCOUNTS && sum == expected {
        return Ok(());
    }
    let balances: Vec<&str> = snapshot.iter().map(|(balance, _)| balance.as_str()).collect();
    Err(format!("the sum is {sum} and should be {expected}: {balances:?}"))
}

/// A session never goes back.
fn check_order(before: &[(String, Stat)], after: &[(String, Stat)]) -> Result<(), String> {
    let back = before.iter().zip(after).find(|((_, before), (_, after))| after.version < before.version);
    back.map_or(Ok(()), |(before, after)| Err(format!("a session saw {before:?} and then {after:?}")))
}

/// Every transfer that was done counts in two versions.
fn check_versions(last: &[(String, Stat)], tallies: &[Tally]) -> Result<(), String> {
    let versions: i64 = last.iter().map(|(_, stat)| i64::from(stat.version)).sum();
    let done: i64 = tallies.iter().map(|tally| tally.done).sum();
    let unknown: i64 = tallies.iter().map(|tally| tally.unknown).sum();
    if versions % 2 == 0 && (2 * done..=2 * (done + unknown)).contains(&versions) {
        return Ok(());
    }
    Err(format!("{done} transfers were acknowledged, {unknown} are unknown, and there are {versions} new versions"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts(balances: [i64; 6], versions: i32) -> Vec<(String, Stat)> {
        let stat = |version| Stat { version, ..Stat::default() };
        let mut all: Vec<_> = balances.iter().map(|balance| (balance.to_string(), stat(0))).collect();
        all[0].1.version = versions;
        all
    }

    #[test]
    fn money_that_is_made_or_lost_is_found() {
        assert_eq!(check_snapshot(&accounts([70, 130, 100, 100, 100, 100], 0)), Ok(()));
        assert!(check_snapshot(&accounts([70, 100, 100, 100, 100, 100], 0)).is_err());
        assert!(check_snapshot(&accounts([100; 6], 0)[1..]).is_err());
    }

    #[test]
    fn lost_and_doubled_transfers_are_found() {
        let tally = [Tally { done: 2, unknown: 1 }];
        for versions in [4, 6] {
            assert_eq!(check_versions(&accounts([100; 6], versions), &tally), Ok(()));
        }
        for versions in [2, 3, 5, 8] {
            assert!(check_versions(&accounts([100; 6], versions), &tally).is_err());
        }
    }

    #[test]
    fn a_session_that_goes_back_is_found() {
        assert_eq!(check_order(&accounts([100; 6], 1), &accounts([100; 6], 2)), Ok(()));
        assert!(check_order(&accounts([100; 6], 2), &accounts([100; 6], 1)).is_err());
    }
}
