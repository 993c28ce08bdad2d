//! Barriers, values and counters against a server that cuts connections and ends sessions.

mod common;

use std::time::Duration;

use common::{Cut, Server, client, no_violations, poll_and_drop, soon, until};
use corral_client::Client;
use corral_recipes::{Barrier, Counter, DoubleBarrier, Encoding, Error, IdBlocks, Mutex, SharedValue};

#[tokio::test]
async fn a_barrier_holds_all_until_it_is_removed() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let barrier = Barrier::new(&a, "/barriers/one");
    soon(barrier.wait()).await.unwrap();
    assert!(soon(barrier.set()).await.unwrap() && !soon(barrier.set()).await.unwrap());
    let other = Barrier::new(&b, "/barriers/one");
    let late = soon(other.wait_timeout(Duration::from_millis(50))).await.unwrap_err();
    assert!(matches!(late, Error::Timeout { .. }), "{late}");
    let waiting = tokio::spawn(async move { other.wait().await });
    server.cut_all();
    soon(a.sync("/")).await.unwrap();
    assert!(!waiting.is_finished());
    assert!(soon(barrier.remove()).await.unwrap() && !soon(barrier.remove()).await.unwrap());
    soon(waiting).await.unwrap().unwrap();
    // Who waits is told of the end of its session, and does not hang.
    soon(barrier.set()).await.unwrap();
    let other = Barrier::new(&b, "/barriers/one");
    let waiting = tokio::spawn(async move { other.wait().await });
    soon(a.sync("/")).await.unwrap();
    server.expire(b.session_id().0);
    soon(waiting).await.unwrap().unwrap_err();
}

#[tokio::test]
async fn rounds_of_a_double_barrier_keep_their_members_together() {
    for every in [0, 7, 11] {
        let server = Server::start().await;
        let clients = [client(&server).await, client(&server).await, client(&server).await];
        if every > 0 {
            server.state.lock().cut = Cut::EveryStep(every);
        }
        let inside = std::sync::Arc::new(parking_lot::Mutex::new([0_u64; 3]));
        let work = |at: usize, client: Client| {
            let inside = inside.clone();
            async move {
                let barrier = DoubleBarrier::new(&client, "/b/one", 3).unwrap();
                for round in 0..4 {
                    let within = barrier.round(round).enter().await.unwrap();
                    // All have left the round before, and none can be a round ahead.
                    {
                        let mut inside = inside.lock();
                        inside[at] = round + 1;
                        let (least, most) = (inside.iter().min().unwrap(), inside.iter().max().unwrap());
                        assert!(most - least <= 1, "{inside:?}");
                    }
                    within.leave().await.unwrap();
                    assert!(inside.lock().iter().all(|entered| *entered > round));
                }
            }
        };
        let [a, b, c] = clients.clone();
        soon(async { tokio::join!(work(0, a), work(1, b), work(2, c)) }).await;
        server.state.lock().cut = Cut::Never;
        for round in 0..4 {
            let left = server.children(&format!("/b/one/round-{round:010}"));
            assert_eq!(left, Vec::<String>::new(), "round {round}");
        }
        no_violations(&server);
    }
}

#[tokio::test]
async fn a_member_that_crashes_inside_lets_the_others_leave() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let barrier = |client: &Client| DoubleBarrier::new(client, "/b", 2).unwrap();
    let (one, two) = (barrier(&a), barrier(&b));
    let (inside, other) = soon(async { tokio::join!(one.enter(), two.enter()) }).await;
    let (inside, other) = (inside.unwrap(), other.unwrap());
    assert!(other.hold().is_some_and(|hold| hold.is_valid()));
    let leaving = tokio::spawn(inside.leave());
    soon(a.sync("/")).await.unwrap();
    assert!(!leaving.is_finished());
    server.expire(b.session_id().0);
    soon(leaving).await.unwrap().unwrap();
    assert!(soon(other.leave()).await.is_err());
    assert_eq!(server.children("/b"), Vec::<String>::new());
}

#[tokio::test]
async fn who_gives_up_entering_is_not_counted() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let barrier = DoubleBarrier::new(&a, "/b", 2).unwrap();
    for polls in 0..10 {
        assert!(poll_and_drop(barrier.enter(), polls).await.is_none());
    }
    until("nobody is there", || server.children("/b").is_empty()).await;
    let other = DoubleBarrier::new(&b, "/b", 2).unwrap();
    let late = soon(other.enter_timeout(Duration::from_millis(50))).await.unwrap_err();
    assert!(matches!(late, Error::Timeout { .. }), "{late}");
    assert!(!server.exists("/b/ready"));
}

#[tokio::test]
async fn a_value_is_replaced_by_who_read_it_last() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let (one, two) = (SharedValue::new(&a, "/v/x"), SharedValue::new(&b, "/v/x"));
    assert_eq!(soon(one.get()).await.unwrap(), None);
    let mut changes = two.changes();
    assert_eq!(soon(changes.next()).await.unwrap(), None);
    let first = soon(one.try_set(None, "1")).await.unwrap().expect("it was not there");
    assert_eq!(soon(two.try_set(None, "2")).await.unwrap(), None);
    assert_eq!(soon(changes.next()).await.unwrap().as_ref(), Some(&first));
    let second = soon(two.try_set(Some(&first), "2")).await.unwrap().expect("it was the first");
    assert_eq!(soon(one.try_set(Some(&first), "3")).await.unwrap(), None);
    assert_eq!(soon(one.get()).await.unwrap().as_ref(), Some(&second));
    assert_eq!(soon(changes.next()).await.unwrap().unwrap().bytes(), b"2");
    // Deleted and created anew with the same version and data: another value all the same.
    server.delete("/v/x");
    assert_eq!(soon(changes.next()).await.unwrap(), None);
    soon(one.set("2")).await.unwrap();
    let again = soon(changes.next()).await.unwrap().expect("it is there");
    assert!(again.created > second.created);
}

/// Every change is made once, wherever the connection is cut.
#[tokio::test]
async fn a_counter_never_adds_twice() {
    for (every, encoding) in [(5, Encoding::CuratorLong), (7, Encoding::CuratorInt), (9, Encoding::Kazoo)] {
        let server = Server::start().await;
        let clients = [client(&server).await, client(&server).await];
        server.state.lock().cut = Cut::EveryStep(every);
        let count = |client: Client| async move {
            let counter = Counter::new(&client, "/counters/c").encoding(encoding);
            let mut seen = Vec::new();
            for _ in 0..20 {
                let (before, after) = counter.add(1).await.unwrap();
                assert_eq!(after, before + 1);
                seen.push(after);
            }
            seen
        };
        let [a, b] = clients.clone();
        let (one, two) = soon(async { tokio::join!(count(a), count(b)) }).await;
        server.state.lock().cut = Cut::Never;
        let mut all: Vec<i64> = one.into_iter().chain(two).collect();
        all.sort_unstable();
        assert_eq!(all, (1..=40).collect::<Vec<_>>(), "cut every {every} steps");
        let counter = Counter::new(&clients[0], "/counters/c").encoding(encoding);
        assert_eq!(soon(counter.get()).await.unwrap(), 40);
        no_violations(&server);
    }
}

#[tokio::test]
async fn a_counter_stays_in_its_range_and_says_what_it_cannot_read() {
    let server = Server::start().await;
    let a = client(&server).await;
    let counter = Counter::new(&a, "/c").encoding(Encoding::CuratorInt);
    soon(counter.set(i64::from(i32::MAX))).await.unwrap();
    let over = soon(counter.add(1)).await.unwrap_err();
    assert!(matches!(over, Error::BadArgument { .. }), "{over}");
    assert_eq!(soon(counter.get()).await.unwrap(), i64::from(i32::MAX));
    assert!(soon(counter.compare_and_set(i64::from(i32::MAX), 7)).await.unwrap());
    assert!(!soon(counter.compare_and_set(8, 9)).await.unwrap());
    assert_eq!(soon(counter.update(|n| n.checked_mul(3))).await.unwrap(), (7, 21));
    assert_eq!(server.data("/c").as_deref(), Some([0, 0, 0, 21].as_slice()));
    server.set("/c", "six bytes");
    let other = soon(counter.get()).await.unwrap_err();
    assert!(matches!(other, Error::Malformed { .. }), "{other}");
}

#[tokio::test]
async fn under_contention_the_lock_gives_each_its_turn() {
    let server = Server::start().await;
    let clients = [client(&server).await, client(&server).await, client(&server).await];
    let count = |client: Client| async move {
        let counter = Counter::new(&client, "/c").lock(Mutex::new(&client, "/locks/c"));
        for _ in 0..20 {
            counter.add(1).await.unwrap();
        }
    };
    let [a, b, c] = clients.clone();
    soon(async { tokio::join!(count(a), count(b), count(c)) }).await;
    assert_eq!(soon(Counter::new(&clients[0], "/c").get()).await.unwrap(), 60);
}

#[tokio::test]
async fn no_number_is_given_out_twice() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let blocks = |client: &Client| IdBlocks::new(Counter::new(client, "/ids"), 10).unwrap();
    let (one, two) = (blocks(&a), blocks(&b));
    let mut all = Vec::new();
    for _ in 0..15 {
        all.push(soon(one.next()).await.unwrap());
        all.push(soon(two.next()).await.unwrap());
    }
    // One that was given up in the middle leaves a gap, and no double.
    for polls in 0..6 {
        all.extend(poll_and_drop(blocks(&a).next(), polls).await.map(Result::unwrap));
    }
    all.push(soon(blocks(&b).next()).await.unwrap());
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count);
    assert_eq!(all[0], 1);
    assert!(matches!(IdBlocks::new(Counter::new(&a, "/ids"), 0).unwrap_err(), Error::BadArgument { .. }));
}
