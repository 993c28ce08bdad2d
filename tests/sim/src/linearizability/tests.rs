//! Histories that are right and wrong, and all small ones compared with a search that tries every order.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::lock::{Lock, LockOp};
use super::znodes::{Outcome, Refusal, Reply, Step, Transaction, ZnodeCall, Znodes};
use super::{Call, Model, Verdict, check, znodes};

const BUDGET: u64 = 100_000;

fn create(data: &str) -> Step {
    Step::Create { data: data.to_owned(), owner: None }
}

fn set(data: &str) -> Step {
    Step::Set { data: data.to_owned(), version: None }
}

fn cas(data: &str, version: i32) -> Step {
    Step::Set { data: data.to_owned(), version: Some(version) }
}

fn found(data: &str, version: i32) -> Outcome {
    Outcome::Done(vec![Reply::Found { data: data.to_owned(), version }])
}

fn done() -> Outcome {
    Outcome::Done(vec![Reply::Done])
}

fn version(version: i32) -> Outcome {
    Outcome::Done(vec![Reply::Version(version)])
}

fn absent() -> Outcome {
    Outcome::Done(vec![Reply::Absent])
}

/// A call of a session of its own on `/x`.
fn call(invoked: u64, returned: u64, step: Step, outcome: Outcome) -> ZnodeCall {
    call_of(1000 + invoked, invoked, returned, step, outcome)
}

fn call_of(session: u64, invoked: u64, returned: u64, step: Step, outcome: Outcome) -> ZnodeCall {
    Call { session, invoked, returned: Some((returned, outcome)), op: Transaction::one("/x", step) }
}

/// A call nobody knows the end of.
fn unknown(invoked: u64, step: Step) -> ZnodeCall {
    Call { session: 2000 + invoked, invoked, returned: None, op: Transaction::one("/x", step) }
}

fn verdict(calls: &[ZnodeCall]) -> Verdict {
    znodes::check(calls, BUDGET)
}

#[track_caller]
fn explained(calls: &[ZnodeCall]) {
    assert_eq!(verdict(calls), Verdict::Linearizable);
}

/// The index of the call that is the first that nothing explains.
#[track_caller]
fn refuted(calls: &[ZnodeCall]) -> usize {
    match verdict(calls) {
        Verdict::Violated(violated) => violated.call,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_linearizable() {
    explained(&[]);
    explained(&[unknown(1, create("a"))]);
}

#[test]
fn what_overlaps_may_happen_in_either_order() {
    for read in [found("a", 0), found("b", 1)] {
        explained(&[
            call(0, 1, create("a"), done()),
            call(10, 20, set("b"), version(1)),
            call(12, 18, Step::Get, read),
        ]);
    }
}

#[test]
fn a_stale_read_is_found() {
    let calls =
        [call(0, 1, create("a"), done()), call(10, 20, set("b"), version(1)), call(21, 22, Step::Get, found("a", 0))];
    assert_eq!(refuted(&calls), 2);
}

#[test]
fn a_read_that_goes_back_is_found() {
    let calls = [
        call(0, 1, create("a"), done()),
        call(10, 50, set("b"), version(1)),
        call(12, 14, Step::Get, found("b", 1)),
        call(15, 16, Step::Get, found("a", 0)),
    ];
    assert_eq!(refuted(&calls), 3);
}

#[test]
fn a_lost_write_is_found() {
    let calls = [call(0, 1, create("a"), done()), call(2, 3, Step::Get, absent())];
    assert_eq!(refuted(&calls), 1);
}

#[test]
fn a_write_that_happened_twice_is_found() {
    let calls =
        [call(0, 1, create("a"), done()), call(2, 3, set("b"), version(1)), call(4, 5, Step::Get, found("b", 2))];
    assert_eq!(refuted(&calls), 2);
}

#[test]
fn two_cannot_win_one_compare_and_set() {
    let calls =
        [call(0, 1, create("a"), done()), call(10, 20, cas("b", 0), version(1)), call(11, 21, cas("c", 0), version(1))];
    assert_eq!(refuted(&calls), 2, "the later answer is the one too many");
    let mut calls = calls;
    calls[2].returned = Some((21, Outcome::Refused(0, Refusal::BadVersion)));
    explained(&calls);
}

#[test]
fn an_unknown_write_may_happen_late_or_never_but_not_twice() {
    let begin = [call(0, 1, create("a"), done()), unknown(2, set("b"))];
    let with = |more: &[ZnodeCall]| [&begin[..], more].concat();
    explained(&with(&[call(10, 11, Step::Get, found("a", 0))]));
    explained(&with(&[call(10, 11, Step::Get, found("b", 1))]));
    explained(&with(&[call(10, 11, Step::Get, found("a", 0)), call(12, 13, Step::Get, found("b", 1))]));
    let twice = [call(10, 11, Step::Get, found("b", 1)), call(12, 13, Step::Get, found("b", 2))];
    assert_eq!(refuted(&with(&twice)), 3);
    let early = [call(0, 1, create("a"), done()), call(2, 3, Step::Get, found("b", 1)), unknown(4, set("b"))];
    assert_eq!(refuted(&early), 1, "it was sent after its effect was seen");
}

#[test]
fn a_session_takes_effect_in_its_order() {
    let begin = call(0, 1, create("a"), done());
    // Both were sent at once; the first one was done last.
    let later = [call_of(1, 10, 20, set("b"), version(2)), call_of(1, 10, 20, set("c"), version(1))];
    assert_eq!(refuted(&[&[begin.clone()], &later[..]].concat()), 1);
    let mut apart = later;
    apart[1].session = 2;
    explained(&[&[begin], &apart[..]].concat());
}

#[test]
fn what_a_session_sent_and_skipped_never_happens_afterwards() {
    let mut first = unknown(2, set("b"));
    first.session = 7;
    let mut calls = vec![
        call(0, 1, create("a"), done()),
        first,
        call_of(7, 3, 4, set("c"), version(1)),
        call(5, 6, Step::Get, found("b", 2)),
    ];
    assert_eq!(refuted(&calls), 3);
    calls[1].session = 8;
    explained(&calls);
}

#[test]
fn a_multi_happens_at_one_moment() {
    let both = |session, invoked, returned, steps: [Step; 2], replies: [Reply; 2]| Call {
        session,
        invoked,
        returned: Some((returned, Outcome::Done(replies.to_vec()))),
        op: Transaction::Steps(["/x", "/y"].map(str::to_owned).into_iter().zip(steps).collect()),
    };
    let read = |x: &str, y: &str, version| {
        let found = |data: &str| Reply::Found { data: data.to_owned(), version };
        both(9, 30, 31, [Step::Get, Step::Get], [found(x), found(y)])
    };
    let begin = [
        both(1, 0, 1, [create("a"), create("a")], [Reply::Done, Reply::Done]),
        both(1, 20, 40, [set("b"), set("b")], [Reply::Version(1), Reply::Version(1)]),
    ];
    explained(&[&begin[..], &[read("a", "a", 0)]].concat());
    explained(&[&begin[..], &[read("b", "b", 1)]].concat());
    let torn = Call {
        returned: Some((
            31,
            Outcome::Done(vec![
                Reply::Found { data: "b".to_owned(), version: 1 },
                Reply::Found { data: "a".to_owned(), version: 0 },
            ]),
        )),
        ..read("a", "a", 0)
    };
    assert_eq!(refuted(&[&begin[..], &[torn]].concat()), 2);
}

#[test]
fn a_multi_that_fails_changes_nothing() {
    let failed = Call {
        session: 1,
        invoked: 10,
        returned: Some((11, Outcome::Refused(1, Refusal::BadVersion))),
        op: Transaction::Steps(vec![("/x".to_owned(), set("b")), ("/x".to_owned(), cas("c", 7))]),
    };
    let begin = call(0, 1, create("a"), done());
    explained(&[begin.clone(), failed.clone(), call(20, 21, Step::Get, found("a", 0))]);
    assert_eq!(refuted(&[begin, failed, call(20, 21, Step::Get, found("b", 1))]), 2);
}

#[test]
fn an_ephemeral_goes_with_its_session_and_not_before() {
    let own = Step::Create { data: "e".to_owned(), owner: Some(5) };
    let end = |returned| Call { session: 3, invoked: 10, returned, op: Transaction::EndOwner(5) };
    let over = end(Some((20, Outcome::Done(vec![]))));
    let begin = [call(0, 1, own, done()), over];
    explained(&[&begin[..], &[call(15, 16, Step::Get, found("e", 0)), call(17, 18, Step::Get, absent())]].concat());
    assert_eq!(refuted(&[&begin[..], &[call(2, 3, Step::Get, absent())]].concat()), 2, "too early");
    assert_eq!(refuted(&[&begin[..], &[call(21, 22, Step::Get, found("e", 0))]].concat()), 2, "too late");
    assert_eq!(
        refuted(&[&begin[..], &[call(21, 22, create("f"), Outcome::Refused(0, Refusal::NodeExists))]].concat()),
        2
    );
    let mut forgotten = begin;
    forgotten[1].returned = None;
    explained(&[&forgotten[..], &[call(21, 22, Step::Get, found("e", 0))]].concat());
}

#[test]
fn the_first_answer_that_nothing_explains_is_named() {
    let mut calls = vec![call(0, 1, create("a"), done())];
    for round in 0..40_u64 {
        calls.push(call(10 + 10 * round, 11 + 10 * round, set("b"), version(round as i32 + 1)));
    }
    calls.insert(20, call(205, 206, Step::Get, found("a", 0)));
    calls.push(call(900, 901, Step::Get, found("z", 9)));
    let Verdict::Violated(violated) = verdict(&calls) else { panic!("it is not linearizable") };
    assert_eq!(violated.call, 20);
    assert!(violated.text.contains("205..206 session 1205"), "{violated}");
    assert!(!violated.text.contains("900..901"), "what came later is not told: {violated}");
}

#[test]
fn a_hard_history_ends_at_its_budget() {
    // Twelve concurrent writes of which nobody was told anything, and an answer that none of their orders explains.
    let mut calls = vec![call(0, 1, create("a"), done())];
    calls.extend((0..12).map(|i| unknown(10 + i, set(&format!("d{i}")))));
    calls.push(call(50, 51, Step::Get, found("other", 6)));
    assert_eq!(znodes::check(&calls, 1_000), Verdict::GaveUp);
}

#[test]
fn a_long_history_of_few_at_a_time_is_quick() {
    // Three clients, each with one call at a time, over 3,000 calls: some steps for each call are enough.
    let mut calls = vec![call(0, 1, create("a"), done())];
    let mut data = "a".to_owned();
    for round in 0..1_000_u64 {
        let at = 10 + 10 * round;
        let next = format!("d{round}");
        calls.push(call_of(1, at, at + 6, set(&next), version(round as i32 + 1)));
        calls.push(call_of(2, at + 1, at + 7, Step::Get, found(&data, round as i32)));
        calls.push(call_of(3, at + 2, at + 8, cas("never", 100_000), Outcome::Refused(0, Refusal::BadVersion)));
        data = next;
    }
    assert_eq!(znodes::check(&calls, 20_000), Verdict::Linearizable);
}

fn lock(by: u64, invoked: u64, returned: Option<(u64, Option<u64>)>, take: bool) -> Call<LockOp, Option<u64>> {
    let op = if take { LockOp::Acquire { by } } else { LockOp::Release { by } };
    Call { session: by, invoked, returned, op }
}

#[test]
fn a_lock_has_one_holder() {
    let one = lock(1, 0, Some((1, None)), true);
    let back = lock(1, 10, Some((12, None)), false);
    let early = lock(2, 2, Some((5, None)), true);
    let late = lock(2, 2, Some((15, None)), true);
    assert_eq!(check(&Lock, &[one.clone(), back.clone(), late], BUDGET), Verdict::Linearizable);
    assert!(matches!(check(&Lock, &[one, back, early], BUDGET), Verdict::Violated(v) if v.call == 2));
}

#[test]
fn fencing_tokens_grow() {
    let first = [lock(1, 0, Some((1, Some(7))), true), lock(1, 2, Some((3, None)), false)];
    for (token, fine) in [(8, true), (7, false), (6, false)] {
        let history = [&first[..], &[lock(2, 4, Some((5, Some(token))), true)]].concat();
        assert_eq!(check(&Lock, &history, BUDGET) == Verdict::Linearizable, fine, "token {token} after 7");
    }
}

#[test]
fn a_holder_that_died_may_have_lost_the_lock_at_any_time_since() {
    let died = [lock(1, 0, Some((1, None)), true), lock(1, 10, None, false)];
    let taken = |at| [&died[..], &[lock(2, 2, Some((at, None)), true)]].concat();
    assert!(matches!(check(&Lock, &taken(9), BUDGET), Verdict::Violated(_)));
    assert_eq!(check(&Lock, &taken(11), BUDGET), Verdict::Linearizable);
}

#[test]
#[should_panic(expected = "call 0 returned before it was invoked")]
fn a_history_with_a_clock_that_went_back_is_refused() {
    verdict(&[call(2, 1, create("a"), done())]);
}

// ---- every small history ----

/// A znode as the naive search has it: data, version, owner.
type Naive = BTreeMap<String, (String, i32, Option<u64>)>;

/// Does a call, and says what it answers.
fn naive(state: &Naive, op: &Transaction) -> (Naive, Outcome) {
    let mut after = state.clone();
    let steps = match op {
        Transaction::EndOwner(owner) => {
            after.retain(|_, znode| znode.2 != Some(*owner));
            return (after, Outcome::Done(vec![]));
        }
        Transaction::Steps(steps) => steps,
    };
    let mut replies = Vec::new();
    for (index, (path, step)) in steps.iter().enumerate() {
        let refuse = |why| (state.clone(), Outcome::Refused(index, why));
        let there = after.get(path).cloned();
        let wanted = match step {
            Step::Set { version, .. } | Step::Delete { version } | Step::Check { version } => *version,
            Step::Create { .. } | Step::Get => None,
        };
        match (step, there) {
            (Step::Get, None) => replies.push(Reply::Absent),
            (Step::Get, Some((data, version, _))) => replies.push(Reply::Found { data, version }),
            (Step::Create { .. }, Some(_)) => return refuse(Refusal::NodeExists),
            (Step::Create { data, owner }, None) => {
                after.insert(path.clone(), (data.clone(), 0, *owner));
                replies.push(Reply::Done);
            }
            (_, None) => return refuse(Refusal::NoNode),
            (_, Some((_, version, _))) if wanted.is_some_and(|wanted| wanted != version) => {
                return refuse(Refusal::BadVersion);
            }
            (Step::Set { data, .. }, Some((_, version, owner))) => {
                after.insert(path.clone(), (data.clone(), version + 1, owner));
                replies.push(Reply::Version(version + 1));
            }
            (Step::Delete { .. }, Some(_)) => {
                after.remove(path);
                replies.push(Reply::Done);
            }
            (Step::Check { .. }, Some(_)) => replies.push(Reply::Done),
        }
    }
    (after, Outcome::Done(replies))
}

/// Whether an answer may be told so: of a set, nobody need look at the version.
fn agree(told: &Outcome, outcome: &Outcome) -> bool {
    match (told, outcome) {
        (Outcome::Done(told), Outcome::Done(replies)) if told.len() == replies.len() => {
            let pairs = told.iter().zip(replies);
            pairs.into_iter().all(|pair| matches!(pair, (Reply::Done, Reply::Version(_))) || pair.0 == pair.1)
        }
        _ => told == outcome,
    }
}

/// Whether some order of some of the calls explains all answers: by trying every order.
fn some_order_explains(calls: &[ZnodeCall], order: &mut Vec<usize>) -> bool {
    if explains(calls, order) {
        return true;
    }
    for next in 0..calls.len() {
        if !order.contains(&next) {
            order.push(next);
            let found = some_order_explains(calls, order);
            order.pop();
            if found {
                return true;
            }
        }
    }
    false
}

fn explains(calls: &[ZnodeCall], order: &[usize]) -> bool {
    if (0..calls.len()).any(|call| calls[call].returned.is_some() && !order.contains(&call)) {
        return false;
    }
    for (place, earlier) in order.iter().enumerate() {
        for later in &order[place + 1..] {
            let (a, b) = (&calls[*earlier], &calls[*later]);
            if b.returned.as_ref().is_some_and(|(at, _)| *at < a.invoked) || (a.session == b.session && earlier > later)
            {
                return false;
            }
        }
    }
    let mut state = Naive::new();
    for call in order {
        let (after, outcome) = naive(&state, &calls[*call].op);
        if calls[*call].returned.as_ref().is_some_and(|(_, told)| !agree(told, &outcome)) {
            return false;
        }
        state = after;
    }
    true
}

fn a_step() -> impl Strategy<Value = Step> {
    let data = || prop::sample::select(vec!["a".to_owned(), "b".to_owned()]);
    let version = || prop::option::of(0..2_i32);
    prop_oneof![
        3 => (data(), prop::option::of(1..3_u64)).prop_map(|(data, owner)| Step::Create { data, owner }),
        3 => (data(), version()).prop_map(|(data, version)| Step::Set { data, version }),
        2 => version().prop_map(|version| Step::Delete { version }),
        1 => version().prop_map(|version| Step::Check { version }),
        4 => Just(Step::Get),
    ]
}

fn a_transaction() -> impl Strategy<Value = Transaction> {
    let path = prop::sample::select(vec!["/x".to_owned(), "/y".to_owned()]);
    prop_oneof![
        8 => prop::collection::vec((path, a_step()), 1..3).prop_map(Transaction::Steps),
        1 => (1..3_u64).prop_map(Transaction::EndOwner),
    ]
}

/// A history that one copy did produce, and sometimes one answer of it replaced by that of another call.
fn a_history() -> impl Strategy<Value = Vec<ZnodeCall>> {
    let call = (1..4_u64, 0..3_u64, 0..4_u64, 0..4_u64, a_transaction(), prop::bool::weighted(0.8));
    (prop::collection::vec(call, 0..6), prop::option::of((0..6_usize, 0..6_usize))).prop_map(|(calls, swap)| {
        let mut state = Naive::new();
        let mut at = 10;
        let mut history: Vec<ZnodeCall> = Vec::new();
        for (session, pause, before, after, op, known) in calls {
            at += pause;
            let (next, outcome) = naive(&state, &op);
            state = next;
            history.push(Call { session, invoked: at - before, returned: known.then_some((at + after, outcome)), op });
        }
        if let Some((a, b)) = swap
            && a < history.len()
            && b < history.len()
            && let (Some((at, _)), Some((_, outcome))) = (history[a].returned.clone(), history[b].returned.clone())
        {
            history[a].returned = Some((at, outcome));
        }
        history
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, ..ProptestConfig::default() })]

    #[test]
    fn the_search_finds_an_order_exactly_if_there_is_one(history in a_history()) {
        let truth = some_order_explains(&history, &mut Vec::new());
        match check(&Znodes, &history, BUDGET) {
            Verdict::Linearizable => prop_assert!(truth),
            Verdict::Violated(violated) => {
                prop_assert!(!truth);
                // The answer that is named is the first too many: without it and all later ones there is an order.
                let at = history[violated.call].returned.as_ref().expect("it was answered").0;
                let cut = |from: u64| {
                    let mut calls: Vec<ZnodeCall> =
                        history.iter().filter(|call| call.invoked <= from).cloned().collect();
                    for call in &mut calls {
                        call.returned = call.returned.take().filter(|(returned, _)| *returned <= from);
                    }
                    calls
                };
                prop_assert!(!some_order_explains(&cut(at), &mut Vec::new()));
                prop_assert!(some_order_explains(&cut(at - 1), &mut Vec::new()));
            }
            Verdict::GaveUp => prop_assert!(false, "so few calls need no such budget"),
        }
    }

    #[test]
    fn groups_of_znodes_can_be_looked_at_apart(history in a_history()) {
        // Only the end of a session connects groups beyond what is looked at.
        let history: Vec<ZnodeCall> =
            history.into_iter().filter(|call| matches!(call.op, Transaction::Steps(_))).collect();
        // A session's order connects them too; take it away.
        let alone = history.into_iter().enumerate().map(|(i, call)| Call { session: i as u64, ..call });
        let alone: Vec<ZnodeCall> = alone.collect();
        let whole = check(&Znodes, &alone, BUDGET) == Verdict::Linearizable;
        prop_assert_eq!(znodes::check(&alone, BUDGET) == Verdict::Linearizable, whole);
    }

    #[test]
    fn the_model_answers_what_the_naive_one_answers(ops in prop::collection::vec(a_transaction(), 0..12)) {
        let (mut state, mut naively) = (Znodes.start(), Naive::new());
        for op in ops {
            let (after, outcome) = naive(&naively, &op);
            naively = after;
            let told = Znodes.step(&state, &op, Some(&outcome));
            prop_assert!(told.is_some(), "{op:?} -> {outcome:?}");
            prop_assert_eq!(&told, &Znodes.step(&state, &op, None));
            state = told.expect("looked at above");
        }
    }
}
