//! Recipes on three real servers, of which the leader is killed midway.

mod processes;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use corral_client::{Client, Consistency, Transaction};
use corral_recipes::{
    Counter, DoubleBarrier, Election, Error, Group, IdBlocks, LatchEvent, Mutex, Queue, RwLock, Semaphore, TimedLease,
    WhenSuspended, WorkQueue, transact,
};
use processes::{Ensemble, PATIENCE};
use tokio::time::timeout;

const SESSION: Duration = Duration::from_secs(20);
const WORKERS: usize = 3;
const ROUNDS: usize = 30;

async fn clients(ensemble: &Ensemble) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..WORKERS {
        clients.push(ensemble.client(ensemble.ids(), SESSION).await);
    }
    clients
}

/// Kills the leader, and starts it again, each time so many more rounds are done.
async fn kill_leaders(ensemble: &mut Ensemble, done: &AtomicU64, at: &[u64]) {
    for at in at {
        ensemble.until("the workers get on", |_| done.load(Ordering::Relaxed) >= *at).await;
        let leader = ensemble.leader().await;
        ensemble.kill(leader);
        ensemble.leader().await;
        ensemble.start_server(leader);
    }
}

/// Runs one worker for each client, and kills leaders meanwhile.
async fn work<F>(ensemble: &mut Ensemble, worker: impl Fn(usize, Client, Arc<AtomicU64>) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let done = Arc::new(AtomicU64::new(0));
    let mut workers = Vec::new();
    for (at, client) in clients(ensemble).await.into_iter().enumerate() {
        workers.push(tokio::spawn(worker(at, client, done.clone())));
    }
    let all = (WORKERS * ROUNDS) as u64;
    kill_leaders(ensemble, &done, &[all / 3, 2 * all / 3]).await;
    for worker in workers {
        timeout(PATIENCE, worker).await.expect("it must end").expect("it must not fail");
    }
}

fn number(bytes: &[u8]) -> u64 {
    std::str::from_utf8(bytes).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_survive_the_death_of_leaders() {
    let mut ensemble = Ensemble::start(3, "").await;
    let setup = ensemble.client(ensemble.ids(), SESSION).await;
    for path in ["/mutex", "/rw", "/tx"] {
        setup.create(path, "0", corral_client::CreateMode::Persistent).await.unwrap();
    }
    work(&mut ensemble, |_, client, done| async move {
        let policy = WhenSuspended::UntilDeadline;
        let mutex = Mutex::new(&client, "/locks/mutex").when_suspended(policy);
        let lock = RwLock::new(&client, "/locks/rw").when_suspended(policy);
        let semaphore = Semaphore::new(&client, "/sem", 2).when_suspended(policy);
        for _ in 0..ROUNDS {
            // A read and a write of any version: only the lock keeps the workers apart.
            let guard = mutex.acquire().await.unwrap();
            let count = number(client.get("/mutex").await.unwrap().bytes());
            guard.guarded().set("/mutex", (count + 1).to_string(), None).await.unwrap();
            guard.release().await.unwrap();

            let writer = lock.write().await.unwrap();
            let count = number(client.get("/rw").await.unwrap().bytes());
            writer.guarded().set("/rw", (count + 1).to_string(), None).await.unwrap();
            let reader = writer.downgrade().await.unwrap();
            // Nobody wrote in between.
            assert_eq!(number(client.get("/rw").await.unwrap().bytes()), count + 1);
            reader.release().await.unwrap();

            let permit = semaphore.acquire(1).await.unwrap();
            let out = client.read(Consistency::Linearizable).get_children("/sem/leases").await.unwrap().len();
            assert!((1..=2).contains(&out), "{out} permits of 2 are out");
            permit.release().await.unwrap();

            transact(&client, |tx| async move {
                let count = number(&tx.get("/tx").await?.unwrap_or_default());
                tx.put("/tx", (count + 1).to_string()).await
            })
            .await
            .unwrap();
            done.fetch_add(1, Ordering::Relaxed);
        }
    })
    .await;
    setup.sync("/").await.unwrap();
    for path in ["/mutex", "/rw", "/tx"] {
        assert_eq!(number(setup.get(path).await.unwrap().bytes()), (WORKERS * ROUNDS) as u64, "{path}");
    }
    for directory in ["/locks/mutex", "/locks/rw", "/sem/leases"] {
        let left = setup.get_children(directory).await.unwrap_or_default();
        assert_eq!(left, Vec::<String>::new(), "{directory}");
    }
    ensemble.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_and_queues_survive_the_death_of_leaders() {
    let mut ensemble = Ensemble::start(3, "").await;
    let setup = ensemble.client(ensemble.ids(), SESSION).await;
    let all = WORKERS * ROUNDS;
    setup.create("/done", (), corral_client::CreateMode::Persistent).await.unwrap();
    for n in 0..all {
        setup.create(&format!("/done/{n}"), "", corral_client::CreateMode::Persistent).await.unwrap();
    }
    let (ids, polled) = (Arc::new(parking(BTreeSet::new())), Arc::new(parking(Vec::new())));
    let (seen_ids, seen_polled) = (ids.clone(), polled.clone());
    work(&mut ensemble, move |at, client, done| {
        let (ids, polled) = (seen_ids.clone(), seen_polled.clone());
        async move {
            let counter = Counter::new(&client, "/counter");
            let blocks = IdBlocks::new(Counter::new(&client, "/ids"), 4).unwrap();
            let (queue, works) = (Queue::new(&client, "/queue"), WorkQueue::new(&client, "/works"));
            let barrier = DoubleBarrier::new(&client, "/barrier", WORKERS).unwrap();
            for round in 0..ROUNDS {
                counter.add(1).await.unwrap();
                let id = blocks.next().await.unwrap();
                assert!(ids.lock().unwrap().insert(id), "{id} was given out before");

                let item = (at * ROUNDS + round).to_string();
                queue.put(item.as_str()).await.unwrap();
                works.put(item.as_str()).await.unwrap();
                let taken = queue.take().await.unwrap().expect("an item has data");
                polled.lock().unwrap().push(number(&taken));
                let work = works.take().await.unwrap();
                let path = format!("/done/{}", number(work.item().expect("an item has data")));
                // Of its first version: to do it twice would be refused.
                work.done_with(Transaction::new().set(&path, "x", Some(0))).await.unwrap();
                if round % 10 == 0 {
                    barrier.round(round as u64).enter().await.unwrap().leave().await.unwrap();
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
        }
    })
    .await;
    assert_eq!(Counter::new(&setup, "/counter").get().await.unwrap(), all as i64);
    let mut polled = polled.lock().unwrap().clone();
    polled.sort_unstable();
    assert_eq!(polled, (0..all as u64).collect::<Vec<_>>());
    assert!(WorkQueue::new(&setup, "/works").is_empty().await.unwrap());
    for n in 0..all {
        assert_eq!(setup.get(&format!("/done/{n}")).await.unwrap().bytes(), b"x", "item {n}");
    }
    ensemble.converge().await;
}

fn parking<T>(value: T) -> std::sync::Mutex<T> {
    std::sync::Mutex::new(value)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_membership_and_leases_survive_the_death_of_a_leader() {
    let mut ensemble = Ensemble::start(3, "").await;
    let leader = ensemble.leader().await;
    // Of the leader itself, so that its death is theirs too; and allowed to move.
    let order: Vec<u64> =
        std::iter::once(leader).chain(ensemble.ids().into_iter().filter(|id| *id != leader)).collect();
    let (a, b) = (ensemble.client(order.clone(), SESSION).await, ensemble.client(order, SESSION).await);
    let latch = Election::new(&a, "/election").latch("a");
    let mut events = latch.events();
    let Some(LatchEvent::Leading(first)) = timeout(PATIENCE, events.next()).await.unwrap() else { panic!("it leads") };
    let other = Election::new(&b, "/election").latch("b");
    let group = Group::new(&a, "/group");
    let (one, two) = (group.join("a", ()).start(), Group::new(&b, "/group").join("b", ()).start());
    one.created().await.unwrap();
    two.created().await.unwrap();
    let before = group.view().await.unwrap();
    let lease = TimedLease::new(&a, "/lease", "a", Duration::from_secs(3_600)).unwrap();
    let tenure = lease.acquire().await.unwrap();

    ensemble.kill(leader);
    ensemble.leader().await;
    // Whether it stepped down for a moment depends on whose server died; that it leads with its token does not.
    let leads = async {
        loop {
            if let Some(hold) = latch.leadership().filter(|hold| hold.is_valid()) {
                return hold;
            }
            events.next().await;
        }
    };
    let again = timeout(PATIENCE, leads).await.expect("it leads again");
    assert_eq!(again.token(), first.token());
    timeout(PATIENCE, again.guarded().create("/proof", "a", corral_client::CreateMode::Persistent))
        .await
        .unwrap()
        .unwrap();
    assert!(!other.has_leadership());
    // Nobody came or went: the same epoch, read by whom ever.
    let after = timeout(PATIENCE, Group::new(&b, "/group").view()).await.unwrap().unwrap();
    assert_eq!(before, after);
    timeout(PATIENCE, tenure.renew()).await.unwrap().unwrap();
    let theirs = TimedLease::new(&b, "/lease", "b", Duration::from_secs(3_600)).unwrap();
    assert!(timeout(PATIENCE, theirs.try_acquire()).await.unwrap().unwrap().is_none());

    // Its session ends: the other leads, with a larger token, and the first one's is dead.
    let fence = again.fence().clone();
    timeout(PATIENCE, a.close()).await.unwrap().unwrap();
    let next = timeout(PATIENCE, other.lead()).await.unwrap().unwrap();
    assert!(next.token() > first.token());
    let stale = corral_recipes::Guarded::new(b.clone(), fence);
    let refused = timeout(PATIENCE, stale.set("/proof", "stale", None)).await.unwrap().unwrap_err();
    assert!(matches!(refused, Error::Fenced { .. }), "{refused}");
    // The lease goes on without its session.
    assert!(timeout(PATIENCE, theirs.try_acquire()).await.unwrap().unwrap().is_none());
    let alone = timeout(PATIENCE, Group::new(&b, "/group").view()).await.unwrap().unwrap();
    assert!(alone.epoch > after.epoch && alone.members.len() == 1);
}
