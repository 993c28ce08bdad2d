//! Znodes without children as registers: create, set, delete, check and read, alone or as a multi, with versions and
//! ephemerals. Whatever cannot be done to one of these without a parent or a name that the server makes up.

use std::collections::{BTreeMap, BTreeSet};

use super::{Call, Model, Verdict};

/// A call on znodes.
pub type ZnodeCall = Call<Transaction, Outcome>;

/// All or nothing, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transaction {
    /// What is done to each path, in order. Reads never fail it.
    Steps(Vec<(String, Step)>),
    /// Every ephemeral of this owner goes: the session was closed, or ended by the server. For the latter `invoked` is
    /// when the last answered write of the session was sent, and `returned` when the client heard of the end. As the last
    /// call listed of its session it comes after all that the session did.
    EndOwner(u64),
}

impl Transaction {
    /// One thing done to one znode.
    pub fn one(path: &str, step: Step) -> Transaction {
        Transaction::Steps(vec![(path.to_owned(), step)])
    }
}

/// What is done to one znode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Creates it.
    Create {
        /// Its data.
        data: String,
        /// Goes with this owner's session.
        owner: Option<u64>,
    },
    /// Replaces its data.
    Set {
        /// The data.
        data: String,
        /// Only in this version.
        version: Option<i32>,
    },
    /// Deletes it.
    Delete {
        /// Only in this version.
        version: Option<i32>,
    },
    /// Fails unless it is there.
    Check {
        /// In this version.
        version: Option<i32>,
    },
    /// Reads it.
    Get,
}

/// What a transaction was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done; one reply for each step. Of [`Transaction::EndOwner`]: none.
    Done(Vec<Reply>),
    /// It was not; this step failed, for this reason.
    Refused(usize, Refusal),
}

/// What a step was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Created, deleted, checked; or nobody looked at the answer.
    Done,
    /// Set; its version is this now.
    Version(i32),
    /// Read.
    Found {
        /// The data.
        data: String,
        /// Its version.
        version: i32,
    },
    /// Read, and not there.
    Absent,
}

/// Why a step fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Create: it is there.
    NodeExists,
    /// It is not there.
    NoNode,
    /// It has another version.
    BadVersion,
}

/// A znode that is there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Znode {
    data: String,
    version: i32,
    owner: Option<u64>,
}

/// Znodes that are not there yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Znodes;

type State = BTreeMap<String, Znode>;

impl Model for Znodes {
    type State = State;
    type Op = Transaction;
    type Outcome = Outcome;

    fn start(&self) -> State {
        State::new()
    }

    fn step(&self, state: &State, op: &Transaction, outcome: Option<&Outcome>) -> Option<State> {
        let mut after = state.clone();
        let steps = match op {
            Transaction::Steps(steps) => steps,
            Transaction::EndOwner(owner) => {
                after.retain(|_, znode| znode.owner != Some(*owner));
                return outcome.is_none_or(|told| *told == Outcome::Done(vec![])).then_some(after);
            }
        };
        let mut replies = Vec::new();
        for (index, (path, step)) in steps.iter().enumerate() {
            match apply(&mut after, path, step) {
                Ok(reply) => replies.push(reply),
                Err(refusal) => {
                    return outcome.is_none_or(|told| *told == Outcome::Refused(index, refusal)).then(|| state.clone());
                }
            }
        }
        let fits =
            |(told, is): (&Reply, &Reply)| told == is || (*told == Reply::Done && matches!(is, Reply::Version(_)));
        let explained = match outcome {
            None => true,
            Some(Outcome::Done(told)) => told.len() == replies.len() && told.iter().zip(&replies).all(fits),
            Some(Outcome::Refused(..)) => false,
        };
        explained.then_some(after)
    }
}

fn apply(state: &mut State, path: &str, step: &Step) -> Result<Reply, Refusal> {
    let wanted = |znode: &Znode, version: Option<i32>| match version {
        Some(version) if version != znode.version => Err(Refusal::BadVersion),
        _ => Ok(()),
    };
    match step {
        Step::Get => Ok(match state.get(path) {
            Some(znode) => Reply::Found { data: znode.data.clone(), version: znode.version },
            None => Reply::Absent,
        }),
        Step::Create { data, owner } => {
            if state.contains_key(path) {
                return Err(Refusal::NodeExists);
            }
            state.insert(path.to_owned(), Znode { data: data.clone(), version: 0, owner: *owner });
            Ok(Reply::Done)
        }
        Step::Set { data, version } => {
            let znode = state.get_mut(path).ok_or(Refusal::NoNode)?;
            wanted(znode, *version)?;
            znode.data.clone_from(data);
            znode.version += 1;
            Ok(Reply::Version(znode.version))
        }
        Step::Delete { version } => {
            wanted(state.get(path).ok_or(Refusal::NoNode)?, *version)?;
            state.remove(path);
            Ok(Reply::Done)
        }
        Step::Check { version } => {
            wanted(state.get(path).ok_or(Refusal::NoNode)?, *version)?;
            Ok(Reply::Done)
        }
    }
}

/// Checks a history, each group of znodes that transactions touch together for itself: a history is linearizable if
/// that of every group is. `budget` is for each group, as in [`super::check`]. The first group with a violation
/// decides; the index in it is that of `calls`.
pub fn check(calls: &[ZnodeCall], budget: u64) -> Verdict {
    let mut verdict = Verdict::Linearizable;
    for group in groups(calls) {
        let in_group = |call: &ZnodeCall| match &call.op {
            Transaction::Steps(steps) => steps.iter().any(|(path, _)| group.contains(path)),
            // The end of a session happens to every group. That it happens to all at once is not looked at.
            Transaction::EndOwner(_) => true,
        };
        let places: Vec<usize> = (0..calls.len()).filter(|place| in_group(&calls[*place])).collect();
        let part: Vec<ZnodeCall> = places.iter().map(|place| calls[*place].clone()).collect();
        match super::check(&Znodes, &part, budget) {
            Verdict::Linearizable => {}
            Verdict::GaveUp => verdict = Verdict::GaveUp,
            Verdict::Violated(mut violated) => {
                violated.call = places[violated.call];
                return Verdict::Violated(violated);
            }
        }
    }
    verdict
}

/// Sets of paths that no transaction connects.
fn groups(calls: &[ZnodeCall]) -> Vec<BTreeSet<String>> {
    let mut groups: Vec<BTreeSet<String>> = Vec::new();
    for call in calls {
        let Transaction::Steps(steps) = &call.op else { continue };
        let mut joined: BTreeSet<String> = steps.iter().map(|(path, _)| path.clone()).collect();
        groups.retain_mut(|group| {
            let apart = group.is_disjoint(&joined);
            if !apart {
                joined.append(group);
            }
            apart
        });
        groups.push(joined);
    }
    groups
}
