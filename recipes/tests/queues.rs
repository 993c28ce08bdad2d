//! Queues against a server that cuts connections, ends sessions and moves its clock.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use common::{Cut, Server, client, no_violations, poll_and_drop, soon};
use corral_client::{Client, CreateMode, ErrorCode, Transaction};
use corral_recipes::{DelayQueue, Error, Guarded, IdItem, IdQueue, Poison, Queue, ShardedQueue, WorkQueue};
use parking_lot::Mutex;

fn text(item: Option<impl AsRef<[u8]>>) -> String {
    item.map(|item| String::from_utf8(item.as_ref().to_vec()).unwrap()).unwrap_or_default()
}

#[tokio::test]
async fn the_urgent_come_first_and_then_who_came_first() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let (producer, consumer) = (Queue::new(&a, "/q/one"), Queue::new(&b, "/q/one"));
    assert_eq!(soon(consumer.poll()).await.unwrap(), None);
    soon(producer.put_all(100, ["1", "2", "3"])).await.unwrap();
    soon(producer.put_with(5, "0")).await.unwrap();
    // One of ZooKeeper's own recipe.
    a.create("/q/one/qn-", "4", CreateMode::PersistentSequential).await.unwrap();
    assert_eq!(text(soon(consumer.peek()).await.unwrap()), "0");
    assert_eq!(soon(consumer.len()).await.unwrap(), 5);
    for expected in ["0", "1", "2", "3", "4"] {
        assert_eq!(text(soon(consumer.take()).await.unwrap()), expected);
    }
    let waiting = tokio::spawn(async move { consumer.take().await });
    soon(a.sync("/")).await.unwrap();
    soon(producer.put("5")).await.unwrap();
    assert_eq!(text(soon(waiting).await.unwrap().unwrap()), "5");
    // Who waits hears of the end of its session.
    let consumer = Queue::new(&b, "/q/one");
    let waiting = tokio::spawn(async move { consumer.take().await });
    soon(a.sync("/")).await.unwrap();
    server.expire(b.session_id().0);
    soon(waiting).await.unwrap().unwrap_err();
}

/// The bound holds at the creation, however many put at once and wherever connections are cut.
#[tokio::test]
async fn a_queue_never_holds_more_than_it_may_and_each_item_is_taken_once() {
    for every in [6, 8, 11] {
        let server = Server::start().await;
        let clients = [client(&server).await, client(&server).await, client(&server).await, client(&server).await];
        let taken = Arc::new(Mutex::new(Vec::new()));
        server.state.lock().cut = Cut::EveryStep(every);
        let produce = |client: Client, name: &'static str| {
            let server = server.clone();
            async move {
                let queue = Queue::new(&client, "/q").max_items(3);
                for n in 0..10 {
                    while let Err(error) = queue.put(format!("{name}{n}")).await {
                        assert!(
                            matches!(error, Error::Full { present: 3, .. } | Error::Full { present: 2, .. }),
                            "{error}"
                        );
                        tokio::task::yield_now().await;
                    }
                    let present = server.children("/q").len();
                    assert!(present <= 3, "{present} items");
                }
            }
        };
        let consume = |client: Client| {
            let taken = taken.clone();
            async move {
                let queue = Queue::new(&client, "/q");
                for _ in 0..10 {
                    let item = queue.take().await.unwrap();
                    taken.lock().push(text(item));
                }
            }
        };
        let [a, b, c, d] = clients.clone();
        soon(async { tokio::join!(produce(a, "a"), produce(b, "b"), consume(c), consume(d)) }).await;
        server.state.lock().cut = Cut::Never;
        let taken = taken.lock().clone();
        let different: BTreeSet<&String> = taken.iter().collect();
        assert_eq!((taken.len(), different.len()), (20, 20), "cut every {every} steps: {taken:?}");
        no_violations(&server);
    }
}

#[tokio::test]
async fn several_items_are_put_all_or_none() {
    let server = Server::start().await;
    let a = client(&server).await;
    let queue = Queue::new(&a, "/q").max_items(3);
    soon(queue.put_all(100, ["1", "2"])).await.unwrap();
    let full = soon(queue.put_all(100, ["3", "4"])).await.unwrap_err();
    assert_eq!(full, Error::Full { path: "/q".into(), present: 2 });
    assert_eq!(soon(queue.len()).await.unwrap(), 2);
    soon(queue.put("3")).await.unwrap();
    let many = soon(queue.put_all(100, vec!["x"; 501])).await.unwrap_err();
    assert!(matches!(many, Error::BadArgument { .. }), "{many}");
}

#[tokio::test]
async fn work_stays_until_it_is_done_and_goes_to_another_if_its_consumer_dies() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let (one, two) = (WorkQueue::new(&a, "/w"), WorkQueue::new(&b, "/w"));
    soon(one.put("job")).await.unwrap();
    let first = soon(one.take()).await.unwrap();
    assert_eq!((text(first.item()), first.attempts()), ("job".into(), 1));
    let late = soon(two.take_timeout(Duration::from_millis(50))).await.unwrap_err();
    assert!(matches!(late, Error::Timeout { .. }), "{late}");
    let waiting = tokio::spawn(async move { two.take().await });
    soon(b.sync("/")).await.unwrap();
    server.expire(a.session_id().0);
    let second = soon(waiting).await.unwrap().unwrap();
    assert_eq!((text(second.item()), second.attempts()), ("job".into(), 2));
    assert!(second.token() > first.token());
    soon(first.done()).await.unwrap_err();
    // Done together with what belongs to it.
    soon(second.done_with(Transaction::new().create("/result", "42", CreateMode::Persistent))).await.unwrap();
    assert_eq!(server.data("/result").as_deref(), Some(b"42".as_slice()));
    assert!(server.children("/w/entries").is_empty() && server.children("/w/taken").is_empty());
}

#[tokio::test]
async fn a_claim_that_was_lost_does_nothing_any_more() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let (one, two) = (WorkQueue::new(&a, "/w"), WorkQueue::new(&b, "/w"));
    soon(one.put("job")).await.unwrap();
    server.set("/result", "none");
    let first = soon(one.take()).await.unwrap();
    let stale = first.guarded();
    stale.set("/result", "first", None).await.unwrap();
    // Somebody takes the claim away, while the session of its owner lives.
    let entry = server.children("/w/entries").remove(0);
    server.delete(&format!("/w/taken/{entry}"));
    let refused = stale.set("/result", "late", None).await.unwrap_err();
    assert!(matches!(refused, Error::Fenced { .. }), "{refused}");
    // As a hold, and as a fence in another process, it is no more than that.
    let write = || Transaction::new().set("/result", "late", None);
    let elsewhere = Guarded::new(b.clone(), first.fence().clone());
    for refused in [first.commit(write()).await.unwrap_err(), elsewhere.commit(write()).await.unwrap_err()] {
        assert!(matches!(refused, Error::Fenced { .. }), "{refused}");
    }
    let second = soon(two.take()).await.unwrap();
    // The claim has the same name again, and the token of the first is dead all the same.
    assert!(server.exists(&format!("/w/taken/{entry}")));
    let refused = stale.set("/result", "late", None).await.unwrap_err();
    assert!(matches!(refused, Error::Fenced { .. }), "{refused}");
    let refused = soon(first.done_with(Transaction::new().set("/result", "late", None))).await.unwrap_err();
    assert!(matches!(refused, Error::Fenced { .. }), "{refused}");
    assert_eq!(server.data("/result").as_deref(), Some(b"first".as_slice()));
    assert_eq!(soon(two.len()).await.unwrap(), 1);
    assert!(second.is_valid());
    // A refused write of the caller's own gives the item back.
    let refused = soon(second.done_with(Transaction::new().delete("/nothing", None))).await.unwrap_err();
    let Error::Client(corral_client::Error::Multi(multi)) = refused else { panic!("{refused}") };
    assert_eq!((multi.index, multi.ops), (0, 1));
    let third = soon(two.take()).await.unwrap();
    assert_eq!(third.attempts(), 3);
    soon(third.requeue()).await.unwrap();
    assert!(server.children("/w/taken").is_empty());
}

/// An idle queue is reaped; then the names of its items come back, and their versions too.
#[tokio::test]
async fn a_claim_of_the_past_is_dead_also_when_the_queue_began_anew() {
    let server = Server::start().await;
    let (a, b, c) = (client(&server).await, client(&server).await, client(&server).await);
    let queue = |client: &Client| WorkQueue::new(client, "/w");
    server.set("/result", "none");
    soon(queue(&a).put("first")).await.unwrap();
    // One whose session ended, and whose fence another process has; and one from whom the item was taken by force.
    let dead = soon(queue(&a).take()).await.unwrap();
    let fence = dead.fence().clone();
    server.expire(a.session_id().0);
    let forced = soon(queue(&b).take()).await.unwrap();
    let entry = server.children("/w/entries").remove(0);
    server.delete(&format!("/w/taken/{entry}"));
    server.delete(&format!("/w/entries/{entry}"));
    server.delete("/w/entries");
    // The same name, and claimed as often as either was.
    soon(queue(&c).put("second")).await.unwrap();
    for attempt in 1..=2 {
        let work = soon(queue(&c).take()).await.unwrap();
        assert_eq!((server.children("/w/entries"), work.attempts()), (vec![entry.clone()], attempt));
        for stale in [Guarded::new(c.clone(), fence.clone()), forced.guarded()] {
            let refused = stale.set("/result", "late", None).await.unwrap_err();
            assert!(matches!(refused, Error::Fenced { .. }), "attempt {attempt}: {refused}");
        }
        work.guarded().set("/result", "second", None).await.unwrap();
        if attempt == 1 {
            soon(work.requeue()).await.unwrap();
            continue;
        }
        // What the other gives up is not what this one has.
        let _ = soon(forced.done()).await.unwrap_err();
        assert!(work.is_valid() && server.children("/w/taken").contains(&entry));
        soon(work.done()).await.unwrap();
        break;
    }
    assert_eq!(server.data("/result").as_deref(), Some(b"second".as_slice()));
    assert_eq!(server.children("/w/taken"), Vec::<String>::new());
}

#[tokio::test]
async fn poison_is_set_aside_or_dropped() {
    for (policy, dead) in [(Poison::SetAside, 1), (Poison::Drop, 0)] {
        let server = Server::start().await;
        let a = client(&server).await;
        let queue = WorkQueue::new(&a, "/w").max_attempts(2).poison(policy);
        soon(queue.put_all(100, ["poison", "good"])).await.unwrap();
        for attempt in 1..=2 {
            let work = soon(queue.take()).await.unwrap();
            assert_eq!((text(work.item()), work.attempts()), ("poison".into(), attempt));
            soon(work.requeue()).await.unwrap();
        }
        let work = soon(queue.take()).await.unwrap();
        assert_eq!(text(work.item()), "good");
        assert_eq!(server.children("/w/dead").len(), dead);
        assert_eq!(soon(queue.len()).await.unwrap(), 1);
        soon(work.done()).await.unwrap();
    }
}

/// An idle queue is reaped, and then the names of its items come back; what was set aside under them stays.
#[tokio::test]
async fn poison_is_set_aside_also_when_older_poison_had_its_name() {
    let server = Server::start().await;
    let a = client(&server).await;
    let queue = WorkQueue::new(&a, "/w").max_attempts(1);
    let mut names = BTreeSet::new();
    for round in 1..=3 {
        soon(queue.put_all(100, [format!("poison {round}").as_str(), "good"])).await.unwrap();
        names.insert(server.children("/w/entries").remove(0));
        soon(soon(queue.take()).await.unwrap().requeue()).await.unwrap();
        let work = soon(queue.take()).await.unwrap();
        assert_eq!(text(work.item()), "good");
        soon(work.done()).await.unwrap();
        assert!(soon(queue.is_empty()).await.unwrap(), "round {round}");
        server.delete("/w/entries");
    }
    assert_eq!(names.len(), 1, "the name came back");
    let dead: BTreeSet<String> =
        server.children("/w/dead").iter().map(|n| text(server.data(&format!("/w/dead/{n}")))).collect();
    assert_eq!(dead, ["poison 1", "poison 2", "poison 3"].map(str::to_owned).into());
}

#[tokio::test]
async fn a_dropped_take_of_work_gives_it_back() {
    let server = Server::start().await;
    let a = client(&server).await;
    let queue = WorkQueue::new(&a, "/w");
    soon(queue.put("job")).await.unwrap();
    for polls in 0..16 {
        drop(poll_and_drop(queue.take(), polls).await);
    }
    let work = soon(queue.take()).await.unwrap();
    soon(work.done()).await.unwrap();
    assert!(server.children("/w/taken").is_empty() && server.children("/w/entries").is_empty());
}

/// Wherever connections are cut, each item is done once.
#[tokio::test]
async fn every_item_of_a_work_queue_is_done_exactly_once() {
    for every in [7, 9, 13] {
        let server = Server::start().await;
        let clients = [client(&server).await, client(&server).await, client(&server).await];
        for n in 0..12 {
            server.set(&format!("/done-{n}"), "");
        }
        server.state.lock().cut = Cut::EveryStep(every);
        let produce = |client: Client| async move {
            let queue = WorkQueue::new(&client, "/w").max_items(4);
            for n in 0..12 {
                while queue.put(n.to_string()).await.is_err() {
                    tokio::task::yield_now().await;
                }
            }
        };
        let consume = |client: Client| async move {
            let queue = WorkQueue::new(&client, "/w");
            for n in 0..6 {
                loop {
                    let work = queue.take().await.unwrap();
                    if n == 3 && work.attempts() == 1 {
                        // Not today.
                        work.requeue().await.unwrap();
                        continue;
                    }
                    let path = format!("/done-{}", text(work.item()));
                    // Only from the first version on: a second time would be refused, and the test with it.
                    work.done_with(Transaction::new().set(&path, "x", Some(0))).await.unwrap();
                    break;
                }
            }
        };
        let [a, b, c] = clients.clone();
        soon(async { tokio::join!(produce(a), consume(b), consume(c)) }).await;
        server.state.lock().cut = Cut::Never;
        for n in 0..12 {
            assert_eq!(server.data(&format!("/done-{n}")).as_deref(), Some(b"x".as_slice()), "item {n}");
        }
        assert!(server.children("/w/entries").is_empty());
        no_violations(&server);
    }
}

#[tokio::test]
async fn kazoos_consumers_and_ours_exclude_each_other() {
    let server = Server::start().await;
    let (a, kazoo) = (client(&server).await, client(&server).await);
    let queue = WorkQueue::new(&a, "/w");
    soon(queue.put_all(100, ["1", "2"])).await.unwrap();
    let work = soon(queue.take()).await.unwrap();
    soon(work.requeue()).await.unwrap();
    // What kazoo's LockingQueue does to take an item.
    let entries = server.children("/w/entries");
    let claim = format!("/w/taken/{}", entries[0]);
    kazoo.create(&claim, "kazoo", CreateMode::Ephemeral).await.unwrap();
    let work = soon(queue.take()).await.unwrap();
    assert_eq!(text(work.item()), "2");
    kazoo.create(&format!("/w/taken/{}", entries[1]), "kazoo", CreateMode::Ephemeral).await.unwrap_err();
}

#[tokio::test]
async fn delayed_items_are_due_by_the_servers_clock() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let (producer, consumer) = (DelayQueue::new(&a, "/d"), DelayQueue::new(&b, "/d"));
    let hour = Duration::from_secs(3_600);
    soon(producer.put("later", 2 * hour)).await.unwrap();
    soon(producer.put("soon", hour)).await.unwrap();
    assert_eq!(soon(consumer.poll()).await.unwrap(), None);
    assert_eq!(soon(consumer.len()).await.unwrap(), 2);
    server.advance(3_600_000 - 1);
    assert_eq!(soon(consumer.poll()).await.unwrap(), None);
    server.advance(1);
    assert_eq!(text(soon(consumer.poll()).await.unwrap().flatten()), "soon");
    assert_eq!(soon(consumer.poll()).await.unwrap(), None);
    // Who waits looks again when something is put.
    let waiting = tokio::spawn(async move { consumer.take().await });
    soon(b.sync("/")).await.unwrap();
    soon(producer.put("now", Duration::ZERO)).await.unwrap();
    assert_eq!(text(soon(waiting).await.unwrap().unwrap()), "now");
    server.advance(3_600_000);
    assert_eq!(text(soon(producer.take()).await.unwrap()), "later");
    assert!(soon(producer.is_empty()).await.unwrap());
}

/// An idle queue is reaped, and the names of its items come back, put at other times.
#[tokio::test]
async fn a_delayed_item_is_not_due_by_the_time_of_one_that_had_its_name() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let (consumer, other) = (DelayQueue::new(&a, "/d"), DelayQueue::new(&b, "/d"));
    let hour = Duration::from_secs(3_600);
    soon(other.put("first", hour)).await.unwrap();
    assert_eq!(soon(consumer.poll()).await.unwrap(), None);
    let name = server.children("/d/items");
    server.advance(3_600_000);
    assert_eq!(text(soon(other.poll()).await.unwrap().flatten()), "first");
    server.delete("/d/items");
    soon(other.put("second", hour)).await.unwrap();
    assert_eq!(server.children("/d/items"), name);
    assert_eq!(soon(consumer.poll()).await.unwrap(), None);
    server.advance(3_600_000);
    assert_eq!(text(soon(consumer.poll()).await.unwrap().flatten()), "second");
}

/// What a producer notes with an item is done exactly if the item is put.
#[tokio::test]
async fn an_item_and_what_is_noted_with_it_are_put_together_or_not_at_all() {
    let server = Server::start().await;
    let a = client(&server).await;
    let queue = WorkQueue::new(&a, "/w").max_items(2);
    server.set("/placed", "0");
    let note = |n: u32, version| Transaction::new().set("/placed", n.to_string(), Some(version));
    let results = soon(queue.put_with(100, ["1"], note(1, 0))).await.unwrap();
    assert_eq!(results.len(), 1, "of the caller's own");
    // Another was first: nothing is put, and the index is that of the caller's.
    let refused = soon(queue.put_with(100, ["1 again"], note(1, 0))).await.unwrap_err();
    let Error::Client(corral_client::Error::Multi(multi)) = refused else { panic!("{refused}") };
    assert_eq!((multi.index, multi.ops, multi.code), (0, 1, ErrorCode::BadVersion));
    soon(queue.put_with(100, ["2"], note(2, 1))).await.unwrap();
    // Full: nothing is noted.
    let full = soon(queue.put_with(100, ["3"], note(3, 2))).await.unwrap_err();
    assert!(matches!(full, Error::Full { present: 2, .. }), "{full}");
    assert_eq!((server.data("/placed").as_deref(), soon(queue.len()).await.unwrap()), (Some(b"2".as_slice()), 2));
}

#[tokio::test]
async fn who_waits_until_a_work_queue_is_drained_waits_for_what_is_being_done_too() {
    let server = Server::start().await;
    let a = client(&server).await;
    let queue = WorkQueue::new(&a, "/w");
    soon(queue.drained()).await.unwrap();
    soon(queue.put("job")).await.unwrap();
    let work = soon(queue.take()).await.unwrap();
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.drained().await }
    });
    soon(a.sync("/")).await.unwrap();
    assert!(!waiting.is_finished());
    soon(work.done()).await.unwrap();
    soon(waiting).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_item_with_an_id_is_taken_back_by_it_and_curators_items_are_taken() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let (producer, consumer) = (IdQueue::new(&a, "/q").max_items(5), IdQueue::new(&b, "/q"));
    for (id, item) in [("x", "1"), ("y", "2"), ("x", "3")] {
        soon(producer.put(id, item)).await.unwrap();
    }
    // As Curator's DistributedIdQueue writes it.
    let framed = b"\x00\x01\x00\x01\x01\x00\x00\x00\x03hey\x02";
    a.create("/q/queue-|curator|", framed, CreateMode::PersistentSequential).await.unwrap();
    assert!(soon(consumer.contains("x")).await.unwrap() && !soon(consumer.contains("z")).await.unwrap());
    assert_eq!(soon(consumer.remove("x")).await.unwrap(), 2);
    assert_eq!(soon(consumer.remove("x")).await.unwrap(), 0);
    let item = |id: &str, item: &'static str| IdItem { id: id.to_owned(), item: item.into() };
    assert_eq!(soon(consumer.take()).await.unwrap(), item("y", "2"));
    assert_eq!(soon(consumer.take()).await.unwrap(), item("curator", "hey"));
    assert_eq!(soon(consumer.poll()).await.unwrap(), None);
    for id in ["", "a/b", "a|b"] {
        let refused = soon(producer.put(id, "x")).await.unwrap_err();
        assert!(matches!(refused, Error::BadArgument { .. }), "{refused}");
    }
    // What is no item is told once, and keeps nobody from the next.
    a.create("/q/queue-|odd|", "raw", CreateMode::PersistentSequential).await.unwrap();
    soon(producer.put("z", "4")).await.unwrap();
    let odd = soon(consumer.take()).await.unwrap_err();
    assert!(matches!(odd, Error::Malformed { .. }), "{odd}");
    assert_eq!(soon(consumer.take()).await.unwrap(), item("z", "4"));
    assert!(soon(producer.is_empty()).await.unwrap());
}

#[tokio::test]
async fn a_sharded_queue_grows_by_shards_up_to_its_bound_and_gives_each_item_once() {
    for every in [0, 9] {
        let server = Server::start().await;
        let clients = [client(&server).await, client(&server).await, client(&server).await];
        if every > 0 {
            server.state.lock().cut = Cut::EveryStep(every);
        }
        let queue = |client: &Client| ShardedQueue::new(client, "/q").threshold(4).max_shards(3);
        let produce = |client: Client, name: &'static str| async move {
            for n in 0..10 {
                queue(&client).put(format!("{name}{n}")).await.unwrap();
            }
        };
        soon(async { tokio::join!(produce(clients[0].clone(), "a"), produce(clients[1].clone(), "b")) }).await;
        assert_eq!(soon(queue(&clients[2]).len()).await.unwrap(), 20);
        assert_eq!(soon(queue(&clients[2]).shard_count()).await.unwrap(), 3);
        let mut taken = BTreeSet::new();
        let consume = |client: Client| async move {
            let mut taken = Vec::new();
            for _ in 0..10 {
                taken.push(text(queue(&client).take().await.unwrap()));
            }
            taken
        };
        let (one, two) = soon(async { tokio::join!(consume(clients[0].clone()), consume(clients[2].clone())) }).await;
        for item in one.into_iter().chain(two) {
            assert!(taken.insert(item.clone()), "{item} was taken twice, cut every {every} steps");
        }
        assert!(soon(queue(&clients[0]).is_empty()).await.unwrap());
        // Who waits is woken by an item in whichever shard.
        let waiting = tokio::spawn({
            let queue = queue(&clients[2]);
            async move { queue.take().await }
        });
        soon(clients[2].sync("/")).await.unwrap();
        soon(queue(&clients[0]).put("last")).await.unwrap();
        assert_eq!(text(soon(waiting).await.unwrap().unwrap()), "last");
        server.state.lock().cut = Cut::Never;
        no_violations(&server);
    }
}

/// A shard that stays empty is reaped, also between the choice of it and the put.
#[tokio::test]
async fn a_shard_that_was_reaped_is_not_created_again_and_another_takes_its_place() {
    let server = Server::start().await;
    let a = client(&server).await;
    let queue = ShardedQueue::new(&a, "/q").max_shards(1);
    soon(queue.put("1")).await.unwrap();
    assert_eq!(text(soon(queue.take()).await.unwrap()), "1");
    let before = server.children("/q");
    server.state.lock().reaps_before_write = true;
    soon(queue.put("2")).await.unwrap();
    let after = server.children("/q");
    assert!(!server.state.lock().reaps_before_write, "it was reaped");
    assert_eq!((before.len(), after.len()), (1, 1));
    assert_ne!(before, after);
    assert_eq!(text(soon(queue.take()).await.unwrap()), "2");
}
