//! Registers: sets, compare-and-sets and linearizable reads by several clients over both protocols.

use std::collections::BTreeMap;
use std::sync::Arc;

use corral_proto::ErrorCode;
use corral_sim::linearizability::znodes::{self, Refusal, Reply, Step, Transaction, ZnodeCall};
use corral_sim::linearizability::{Call, Verdict};
use corral_sim::rng::Rng;
use tokio::task::JoinSet;

use super::{Round, Steward, think};
use crate::journal::Micros;
use crate::session::{Outcome, Protocol};

const KEYS: u64 = 3;
const WORKERS: u64 = 6;
const THINK_MS: u64 = 60;
/// Data of every register at the beginning of a round.
const START: &str = "start";
/// Steps of the search for an order of one register's operations. A round has some hundreds of them.
const SEARCH_BUDGET: u64 = 1_000_000;

/// One operation as its client saw it.
#[derive(Clone, Debug)]
pub struct Op {
    /// Which register.
    pub key: u64,
    /// When it was called.
    pub called: Micros,
    /// When it was answered.
    pub returned: Option<Micros>,
    /// What was asked.
    pub action: Action,
    /// What came of it.
    pub seen: Seen,
    /// By whom; of one session, operations take effect in order.
    pub session: i64,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Value and version.
    Read,
    /// Unconditional.
    Set(String),
    /// Only at this version.
    Cas(i32, String),
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A read.
    Value(String, i32),
    /// A write: the new version and its zxid.
    Written(i32, i64),
    /// The version was another.
    Conflict,
    /// Nobody knows whether it was done.
    Unknown,
}

pub async fn round(round: &Arc<Round>, steward: &mut Steward) {
    for key in 0..KEYS {
        steward.ensure_with(&round.path(&format!("k{key}")), START).await;
    }
    let mut workers = JoinSet::new();
    for number in 0..WORKERS {
        workers.spawn(work(round.clone(), number));
    }
    let mut history: Vec<Op> = workers.join_all().await.into_iter().flatten().collect();
    for key in 0..KEYS {
        let called = round.now();
        if let Some((value, stat)) = steward.get(&round.path(&format!("k{key}"))).await {
            let seen = Seen::Value(value, stat.version);
            let returned = Some(round.now());
            history.push(Op { key, called, returned, action: Action::Read, seen, session: 0 });
        } else {
            round.violation(&format!("register {key} is gone"), &history);
        }
    }
    history.sort_by_key(|op| op.called);
    if let Err(text) = check(&history) {
        round.violation(&text, &history);
    }
    let calls = calls(&history);
    let searched = tokio::task::spawn_blocking(move || znodes::check(&calls, SEARCH_BUDGET)).await;
    match searched {
        Ok(Verdict::Linearizable) => {}
        Ok(Verdict::GaveUp) => round.ctx.journal.undecided(round.ctx.name),
        Ok(Verdict::Violated(violated)) => round.violation(&format!("not linearizable: {violated}"), &history),
        Err(error) => round.violation(&format!("the check itself failed: {error}"), &history),
    }
}

async fn work(round: Arc<Round>, number: u64) -> Vec<Op> {
    let protocol = Protocol::of(number);
    let mut rng = round.rng(&format!("worker {number}"));
    let mut history = Vec::new();
    let mut versions: BTreeMap<u64, i32> = BTreeMap::new();
    while !round.is_over() {
        let session = round.session(protocol, &mut rng).await;
        while !round.is_over() && !session.is_over() {
            think(&mut rng, THINK_MS).await;
            let key = rng.below(KEYS);
            let path = round.path(&format!("k{key}"));
            let action = choose(&mut rng, number, history.len(), versions.get(&key).copied());
            let called = round.now();
            let outcome = match &action {
                Action::Read => session.get(&path).await.map(|(value, stat)| Seen::Value(value, stat.version)),
                Action::Set(value) => {
                    session.set(&path, value, None).await.map(|stat| Seen::Written(stat.version, stat.mzxid))
                }
                Action::Cas(version, value) => {
                    session.set(&path, value, Some(*version)).await.map(|stat| Seen::Written(stat.version, stat.mzxid))
                }
            };
            round.count(&outcome);
            let seen = match outcome {
                Outcome::Done(seen) => seen,
                Outcome::Refused(ErrorCode::BadVersion) => Seen::Conflict,
                Outcome::Unknown if action != Action::Read => Seen::Unknown,
                // Not done, or a read that nobody saw.
                Outcome::Refused(_) | Outcome::Ended | Outcome::Unknown => continue,
            };
            match &seen {
                Seen::Value(_, version) | Seen::Written(version, _) => _ = versions.insert(key, *version),
                Seen::Conflict | Seen::Unknown => _ = versions.remove(&key),
            }
            let returned = (seen != Seen::Unknown).then(|| round.now());
            history.push(Op { key, called, returned, action, seen, session: session.id() });
        }
        session.close().await;
    }
    history
}

fn choose(rng: &mut Rng, worker: u64, count: usize, version: Option<i32>) -> Action {
    let value = format!("{worker}-{count}");
    match (rng.below(10), version) {
        (0..4, _) => Action::Read,
        (4..8, Some(version)) => Action::Cas(version, value),
        _ => Action::Set(value),
    }
}

/// Whether the registers behaved as one. Versions and zxids are believed here; the independent check does not need them.
pub fn check(history: &[Op]) -> Result<(), String> {
    check_zxids(history)?;
    (0..KEYS).try_for_each(|key| {
        let ops: Vec<&Op> = history.iter().filter(|op| op.key == key).collect();
        check_versions(&ops).map_err(|text| format!("register {key}: {text}"))
    })
}

/// The history in the words of the checker that believes neither versions nor zxids.
fn calls(history: &[Op]) -> Vec<ZnodeCall> {
    // All registers were made before; a session that nobody else has.
    let made = |key: u64| Call {
        session: u64::MAX - key,
        invoked: 0,
        returned: Some((0, znodes::Outcome::Done(vec![Reply::Done]))),
        op: Transaction::one(&key.to_string(), Step::Create { data: START.to_owned(), owner: None }),
    };
    let call = |op: &Op| {
        let step = match &op.action {
            Action::Read => Step::Get,
            Action::Set(value) => Step::Set { data: value.clone(), version: None },
            Action::Cas(version, value) => Step::Set { data: value.clone(), version: Some(*version) },
        };
        let outcome = match &op.seen {
            Seen::Value(value, version) => {
                znodes::Outcome::Done(vec![Reply::Found { data: value.clone(), version: *version }])
            }
            Seen::Written(version, _) => znodes::Outcome::Done(vec![Reply::Version(*version)]),
            Seen::Conflict | Seen::Unknown => znodes::Outcome::Refused(0, Refusal::BadVersion),
        };
        Call {
            session: op.session.cast_unsigned(),
            invoked: op.called,
            returned: op.returned.map(|returned| (returned, outcome)),
            op: Transaction::one(&op.key.to_string(), step),
        }
    };
    (0..KEYS).map(made).chain(history.iter().map(call)).collect()
}

/// Moments of a history in order: calls before answers at the same time, so that what touches counts as concurrent.
fn moments<'a>(ops: impl IntoIterator<Item = &'a Op>) -> Vec<(Micros, bool, &'a Op)> {
    let mut moments = Vec::new();
    for op in ops {
        moments.push((op.called, false, op));
        if let Some(returned) = op.returned {
            moments.push((returned, true, op));
        }
    }
    moments.sort_by_key(|(at, is_answer, _)| (*at, *is_answer));
    moments
}

/// A write that was called after another was answered has the larger zxid, whatever the register.
fn check_zxids(history: &[Op]) -> Result<(), String> {
    let mut newest = 0;
    for (_, is_answer, op) in moments(history) {
        let Seen::Written(_, zxid) = op.seen else { continue };
        if is_answer {
            newest = newest.max(zxid);
        } else if zxid <= newest {
            return Err(format!("{op:?} was called after zxid {newest:#x} was answered, and has not a larger one"));
        }
    }
    Ok(())
}

fn check_versions(ops: &[&Op]) -> Result<(), String> {
    let mut written: BTreeMap<i32, &Op> = BTreeMap::new();
    for op in ops {
        if let Seen::Written(version, _) = op.seen {
            if let Some(other) = written.insert(version, op) {
                return Err(format!("two writes made the same version: {other:?} and {op:?}"));
            }
            if let Action::Cas(expected, _) = op.action
                && version != expected + 1
            {
                return Err(format!("a compare-and-set made no next version: {op:?}"));
            }
        }
    }
    let zxid = |op: &Op| match op.seen {
        Seen::Written(_, zxid) => zxid,
        _ => 0,
    };
    if let Some((a, b)) = written.values().zip(written.values().skip(1)).find(|(a, b)| zxid(a) >= zxid(b)) {
        return Err(format!("versions and zxids disagree: {a:?} and {b:?}"));
    }
    // What each version holds: by who wrote it, or by who read it first.
    let value_of = |op: &Op| match &op.action {
        Action::Set(value) | Action::Cas(_, value) => value.clone(),
        Action::Read => String::new(),
    };
    let mut values: BTreeMap<i32, String> = written.iter().map(|(version, op)| (*version, value_of(op))).collect();
    values.insert(0, START.to_owned());
    let mut unknown: BTreeMap<String, &Op> =
        ops.iter().filter(|op| op.seen == Seen::Unknown).map(|op| (value_of(op), *op)).collect();
    let mut floor = 0;
    let mut floors: BTreeMap<usize, i32> = BTreeMap::new();
    for (_, is_answer, op) in moments(ops.iter().copied()) {
        let key = std::ptr::from_ref(op).addr();
        if !is_answer {
            floors.insert(key, floor);
            continue;
        }
        let at_call = floors.get(&key).copied().unwrap_or_default();
        match &op.seen {
            Seen::Value(value, version) => {
                if *version < at_call {
                    return Err(format!("a read is stale: version {at_call} had been seen before {op:?}"));
                }
                match values.get(version) {
                    Some(expected) if expected == value => {}
                    Some(expected) => return Err(format!("version {version} is {expected:?}, and {op:?}")),
                    // Only a write of unknown outcome can have made it; it is known now, and cannot make another.
                    None => match unknown.remove(value) {
                        Some(write) if Some(write.called) <= op.returned => {
                            values.insert(*version, value.clone());
                        }
                        _ => return Err(format!("nobody wrote that, or it was written twice: {op:?}")),
                    },
                }
                floor = floor.max(*version);
            }
            Seen::Written(version, _) => {
                if *version <= at_call {
                    return Err(format!("version {at_call} had been seen before {op:?}"));
                }
                floor = floor.max(*version);
            }
            Seen::Conflict => {
                let Action::Cas(expected, _) = op.action else {
                    return Err(format!("a conflict without a condition: {op:?}"));
                };
                let explained = at_call > expected
                    || ops.iter().any(|other| {
                        Some(other.called) < op.returned
                            && match other.seen {
                                Seen::Written(version, _) => version > expected,
                                Seen::Unknown => true,
                                _ => false,
                            }
                    });
                if !explained {
                    return Err(format!("refused, and yet nobody had written: {op:?}"));
                }
            }
            Seen::Unknown => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(called: Micros, returned: Micros, action: Action, seen: Seen) -> Op {
        let returned = (seen != Seen::Unknown).then_some(returned);
        Op { key: 0, called, returned, action, seen, session: i64::try_from(called).unwrap_or(0) }
    }

    fn set(called: Micros, returned: Micros, value: &str, version: i32) -> Op {
        op(called, returned, Action::Set(value.into()), Seen::Written(version, i64::from(version) * 10))
    }

    fn cas(called: Micros, returned: Micros, expected: i32, value: &str, version: i32) -> Op {
        op(called, returned, Action::Cas(expected, value.into()), Seen::Written(version, i64::from(version) * 10))
    }

    fn read(called: Micros, returned: Micros, value: &str, version: i32) -> Op {
        op(called, returned, Action::Read, Seen::Value(value.into(), version))
    }

    fn lost(called: Micros, value: &str) -> Op {
        op(called, 0, Action::Set(value.into()), Seen::Unknown)
    }

    #[test]
    fn a_register_that_behaves_is_accepted() {
        let conflict = op(7, 9, Action::Cas(1, "c".into()), Seen::Conflict);
        let history =
            [read(0, 1, START, 0), set(1, 3, "a", 1), lost(4, "b"), read(2, 6, "a", 1), conflict, read(10, 11, "b", 2)];
        assert_eq!(check(&history), Ok(()));
        assert_eq!(znodes::check(&calls(&history), 1_000), Verdict::Linearizable);
    }

    #[test]
    fn the_independent_check_needs_no_versions() {
        let stale = [set(1, 2, "a", 1), read(3, 4, START, 0)];
        assert!(matches!(znodes::check(&calls(&stale), 1_000), Verdict::Violated(_)));
        // What a session did before it went on cannot happen later.
        let mut late = [lost(1, "a"), read(2, 3, START, 0), read(4, 5, "a", 1)];
        assert_eq!(znodes::check(&calls(&late), 1_000), Verdict::Linearizable);
        late.iter_mut().for_each(|op| op.session = 7);
        assert!(matches!(znodes::check(&calls(&late), 1_000), Verdict::Violated(_)));
    }

    #[test]
    fn what_must_not_happen_is_found() {
        let found = |history: &[Op]| check(history).expect_err("it is wrong");
        assert!(found(&[set(0, 1, "a", 1), read(2, 3, START, 0)]).contains("stale"));
        assert!(found(&[set(0, 1, "a", 1), set(2, 3, "b", 1)]).contains("larger"));
        let mut twice = set(0, 5, "b", 1);
        twice.seen = Seen::Written(1, 11);
        assert!(found(&[set(0, 5, "a", 1), twice]).contains("same version"));
        assert!(found(&[set(0, 1, "a", 1), read(2, 3, "x", 1)]).contains("version 1 is"));
        assert!(found(&[read(0, 1, "ghost", 3)]).contains("nobody wrote"));
        let doubled = [lost(0, "b"), read(1, 2, "b", 1), set(3, 4, "c", 2), read(5, 6, "b", 3)];
        assert!(found(&doubled).contains("twice"));
        assert!(found(&[cas(0, 1, 0, "a", 2)]).contains("no next version"));
        let refused = op(0, 1, Action::Cas(0, "a".into()), Seen::Conflict);
        assert!(found(&[refused]).contains("nobody had written"));
    }

    #[test]
    fn zxids_follow_real_time_over_all_registers() {
        let mut other = set(2, 3, "b", 1);
        other.key = 1;
        other.seen = Seen::Written(1, 5);
        assert!(check(&[set(0, 1, "a", 1), other]).expect_err("it is wrong").contains("larger"));
    }
}
