//! A checker of linearizability that knows nothing of zxids: only who asked what, when, and what they were told.
//!
//! The rest of the simulator judges by the committed log, which is quick and exact and believes the zxid of every answer.
//! This module believes nothing. It looks for one order of all calls that a single, unreplicated object could have
//! done them in, and in which no call comes before another that had ended when it began. If there is none, no history
//! of a correct service looks like this. The search is Wing's and Gong's, with Lowe's memory of what was tried.
//!
//! Histories of real processes are as welcome as simulated ones; the clock is whatever the recorder says, as long as
//! all clients share it:
//!
//! ```
//! use corral_sim::linearizability::znodes::{self, Outcome, Reply, Step, Transaction};
//! use corral_sim::linearizability::{Call, Verdict};
//!
//! let call = |session, invoked, returned, step: Step, reply: Reply| Call {
//!     session,
//!     invoked,
//!     returned: Some((returned, Outcome::Done(vec![reply]))),
//!     op: Transaction::one("/r", step),
//! };
//! let mut history = vec![
//!     call(1, 0, 10, Step::Create { data: "a".into(), owner: None }, Reply::Done),
//!     call(1, 20, 30, Step::Set { data: "b".into(), version: None }, Reply::Version(1)),
//!     call(2, 25, 27, Step::Get, Reply::Found { data: "a".into(), version: 0 }),
//! ];
//! assert_eq!(znodes::check(&history, 10_000), Verdict::Linearizable);
//! // The same answer after the second write has ended is one that no single copy could give.
//! history[2].invoked = 31;
//! history[2].returned.as_mut().unwrap().0 = 35;
//! assert!(matches!(znodes::check(&history, 10_000), Verdict::Violated(_)));
//! ```
//!
//! # What a recorder must do
//! - Write down a call *before* it is sent and its end *after* the answer came, so that its true moment lies between.
//! - A call whose outcome is not known (the connection broke, the program was killed) has `returned: None`: it may
//!   have happened at any time since, or never. A call that surely had no effect is left out.
//! - Put in only reads that promise to be up to date. A `sync` and the read after it on the same session are one such
//!   read, from the sending of the first to the answer of the second.
//! - Give calls the same `session` only if they take effect in the order in which they are listed, as those of a
//!   ZooKeeper session do. Everything else gets a number of its own.

pub mod lock;
#[cfg(test)]
mod tests;
pub mod znodes;

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::hash::Hash;

/// What one call may do to the object, and what it may answer.
pub trait Model {
    /// The object between two calls.
    type State: Clone + Eq + Hash + Debug;
    /// What can be asked.
    type Op: Debug;
    /// What can be answered.
    type Outcome: Debug;

    /// The object before the first call.
    fn start(&self) -> Self::State;

    /// The object after a call, or `None` if it could not have answered so. Without an outcome nobody knows the answer,
    /// and there must be a state: such a call can always happen last, which is as good as never.
    fn step(&self, state: &Self::State, op: &Self::Op, outcome: Option<&Self::Outcome>) -> Option<Self::State>;
}

/// One call of one client. Times are numbers of one clock, in any unit; equal times are concurrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call<O, R> {
    /// Calls with the same number take effect in the order in which they are listed.
    pub session: u64,
    /// When it was sent, or earlier.
    pub invoked: u64,
    /// When its answer came, or later, and what it was. `None`: unknown, it may or may not have happened.
    pub returned: Option<(u64, R)>,
    /// What was asked.
    pub op: O,
}

/// What the search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains every answer.
    Linearizable,
    /// There is none.
    Violated(Box<Violated>),
    /// The budget was spent before either was sure.
    GaveUp,
}

/// A history that no single copy could have produced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violated {
    /// Index, in the history given, of the call whose answer is the first that nothing explains.
    pub call: usize,
    /// The calls that matter, as people read them: one longest explanation of what was answered before, then what does
    /// not fit.
    pub text: String,
}

impl std::fmt::Display for Violated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether there is an order of the calls that explains all answers. `budget` bounds the steps of the model that are
/// tried, and so time and memory: a history with few calls at a time needs about one step for each.
///
/// # Panics
/// If a call returned before it was invoked.
pub fn check<M: Model>(model: &M, calls: &[Call<M::Op, M::Outcome>], budget: u64) -> Verdict {
    for (index, call) in calls.iter().enumerate() {
        let in_order = call.returned.as_ref().is_none_or(|(at, _)| *at >= call.invoked);
        assert!(in_order, "call {index} returned before it was invoked: {call:?}");
    }
    let up_to = |limit| Search::new(model, calls, limit, budget).run();
    let mut longest = match up_to(u64::MAX) {
        Found::Order => return Verdict::Linearizable,
        Found::Budget => return Verdict::GaveUp,
        Found::Nothing(longest) => longest,
    };
    // What was answered up to some moment can be explained less and less as that moment moves on: look for the first
    // answer that cannot. A search that ends at its budget only makes the explanation longer than it need be.
    let mut ends: Vec<u64> = calls.iter().filter_map(|call| Some(call.returned.as_ref()?.0)).collect();
    ends.sort_unstable();
    ends.dedup();
    let first = ends.partition_point(|at| !matches!(up_to(*at), Found::Nothing(_)));
    let mut at = *ends.last().expect("without an answer there is nothing to explain");
    if let Some(earlier) = ends.get(first)
        && let Found::Nothing(shorter) = up_to(*earlier)
    {
        (at, longest) = (*earlier, shorter);
    }
    Verdict::Violated(Box::new(explain(calls, at, &longest)))
}

fn explain<O: Debug, R: Debug>(calls: &[Call<O, R>], at: u64, longest: &[usize]) -> Violated {
    let line = |index: usize| {
        let Call { session, invoked, returned, op } = &calls[index];
        match returned {
            Some((returned, outcome)) if *returned <= at => {
                format!("\n  {invoked}..{returned} session {session}: {op:?} -> {outcome:?}")
            }
            _ => format!("\n  {invoked}.. session {session}: {op:?} -> not answered yet"),
        }
    };
    let answered_then = |call: &Call<O, R>| call.returned.as_ref().is_some_and(|(returned, _)| *returned == at);
    let call = calls.iter().position(answered_then).expect("it is the time of an answer");
    let mut text = format!("nothing explains the answer given at {at}. An order of what was before:");
    for index in longest {
        text += &line(*index);
    }
    text += "\nwhich leaves:";
    let answered = |call: &Call<O, R>| call.returned.as_ref().is_some_and(|(returned, _)| *returned <= at);
    for (index, _) in calls.iter().enumerate().filter(|(i, c)| answered(c) && !longest.contains(i)) {
        text += &line(index);
    }
    Violated { call, text }
}

enum Found {
    Order,
    /// With the longest order of calls that came near.
    Nothing(Vec<usize>),
    Budget,
}

/// An end of a call in the list of all ends by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Invoked(usize),
    Returned(usize),
}

/// A choice that can be taken back.
struct Choice<S> {
    call: usize,
    before: S,
    latest: Option<usize>,
}

struct Search<'a, M: Model> {
    model: &'a M,
    calls: &'a [Call<M::Op, M::Outcome>],
    /// Answers after it are not known yet.
    limit: u64,
    budget: u64,
    /// All ends in order of time, and the places of each call's.
    ends: Vec<End>,
    places: Vec<(usize, Option<usize>)>,
    /// The ends of calls that are not in the order yet, as a list: place 0 stands before all, the last after all.
    next: Vec<usize>,
    previous: Vec<usize>,
    /// The call of the same session that must be in the order before.
    after: Vec<Option<usize>>,
    /// The last call of each session in the order.
    latest: BTreeMap<u64, usize>,
    chosen: Vec<u64>,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, calls: &'a [Call<M::Op, M::Outcome>], limit: u64, budget: u64) -> Search<'a, M> {
        let mut ends = Vec::new();
        for (index, call) in calls.iter().enumerate().filter(|(_, call)| call.invoked <= limit) {
            // At equal times what begins comes before what ends: they are concurrent.
            ends.push((call.invoked, End::Invoked(index)));
            if let Some((at, _)) = call.returned.as_ref().filter(|(at, _)| *at <= limit) {
                ends.push((*at, End::Returned(index)));
            }
        }
        ends.sort_unstable();
        let ends: Vec<End> = ends.into_iter().map(|(_, end)| end).collect();
        let mut places = vec![(0, None); calls.len()];
        for (place, end) in ends.iter().enumerate() {
            match end {
                End::Invoked(call) => places[*call].0 = place + 1,
                End::Returned(call) => places[*call].1 = Some(place + 1),
            }
        }
        let mut after = vec![None; calls.len()];
        let mut last_answered: BTreeMap<u64, usize> = BTreeMap::new();
        for (index, call) in calls.iter().enumerate() {
            after[index] = last_answered.get(&call.session).copied();
            if places[index].1.is_some() {
                last_answered.insert(call.session, index);
            }
        }
        let length = ends.len();
        Search {
            model,
            calls,
            limit,
            budget,
            ends,
            places,
            next: (1..=length + 1).chain([length + 1]).collect(),
            previous: [0].into_iter().chain(0..=length).collect(),
            after,
            latest: BTreeMap::new(),
            chosen: vec![0; calls.len().div_ceil(64)],
        }
    }

    fn run(mut self) -> Found {
        let mut state = self.model.start();
        let mut tried: HashSet<(Box<[u64]>, M::State)> = HashSet::new();
        let mut order: Vec<Choice<M::State>> = Vec::new();
        let mut longest: Vec<usize> = Vec::new();
        let mut missing = self.ends.iter().filter(|end| matches!(end, End::Returned(_))).count();
        let mut place = self.next[0];
        while missing > 0 {
            match self.ends[place - 1] {
                End::Invoked(call) => {
                    if self.may_be_next(call) {
                        if self.budget == 0 {
                            return Found::Budget;
                        }
                        self.budget -= 1;
                        let outcome = self.outcome(call);
                        if let Some(after) = self.model.step(&state, &self.calls[call].op, outcome) {
                            self.chosen[call / 64] |= 1 << (call % 64);
                            if tried.insert((self.chosen.clone().into_boxed_slice(), after.clone())) {
                                missing -= usize::from(outcome.is_some());
                                let latest = self.latest.insert(self.calls[call].session, call);
                                order.push(Choice { call, before: std::mem::replace(&mut state, after), latest });
                                self.take_out(call);
                                if order.len() > longest.len() {
                                    longest = order.iter().map(|choice| choice.call).collect();
                                }
                                place = self.next[0];
                                continue;
                            }
                            self.chosen[call / 64] &= !(1 << (call % 64));
                        }
                    }
                    place = self.next[place];
                }
                // It must be in the order by now, and is not: something before it was chosen wrongly.
                End::Returned(_) => {
                    let Some(Choice { call, before, latest }) = order.pop() else { return Found::Nothing(longest) };
                    state = before;
                    missing += usize::from(self.outcome(call).is_some());
                    self.chosen[call / 64] &= !(1 << (call % 64));
                    match latest {
                        Some(latest) => self.latest.insert(self.calls[call].session, latest),
                        None => self.latest.remove(&self.calls[call].session),
                    };
                    self.put_back(call);
                    place = self.next[self.places[call].0];
                }
            }
        }
        Found::Order
    }

    /// What was answered, as far as it counts.
    fn outcome(&self, call: usize) -> Option<&'a M::Outcome> {
        self.calls[call].returned.as_ref().filter(|(at, _)| *at <= self.limit).map(|(_, outcome)| outcome)
    }

    /// Whether the order of its session allows it.
    fn may_be_next(&self, call: usize) -> bool {
        let is_chosen = |call: usize| self.chosen[call / 64] & (1 << (call % 64)) != 0;
        self.latest.get(&self.calls[call].session).is_none_or(|latest| *latest < call)
            && self.after[call].is_none_or(is_chosen)
    }

    fn take_out(&mut self, call: usize) {
        let (invoked, returned) = self.places[call];
        for place in [Some(invoked), returned].into_iter().flatten() {
            let (before, after) = (self.previous[place], self.next[place]);
            self.next[before] = after;
            self.previous[after] = before;
        }
    }

    fn put_back(&mut self, call: usize) {
        let (invoked, returned) = self.places[call];
        // In the opposite order: each place still knows its neighbours of then.
        for place in [returned, Some(invoked)].into_iter().flatten() {
            let (before, after) = (self.previous[place], self.next[place]);
            self.next[before] = place;
            self.previous[after] = place;
        }
    }
}
