//! Recipes whose sessions end at arbitrary points: before a request is executed, or after it was and before its answer.
//!
//! That is what a pause longer than the session timeout looks like from outside: the owner goes on as if nothing had
//! happened, while another takes over. Two may believe that they hold; what is checked is that no guarded write of the one
//! that does not passes, that no item is lost or done twice, and that nothing is counted twice.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{Server, no_violations, soon};
use corral_client::{Client, CreateMode, Transaction};
use corral_recipes::{Counter, Election, Error, Guarded, Mutex, Queue, RwLock, Semaphore, WhenSuspended, WorkQueue};
use parking_lot::Mutex as Lock;

const WORKERS: usize = 3;
const ROUNDS: usize = 12;

/// Sessions end this often, in steps of the server; primes, so that all kinds of requests are hit.
const EVERY: [u64; 4] = [29, 41, 53, 67];

/// A client that lives for as long as its session does; after that, another.
async fn fresh(server: &Server) -> Client {
    loop {
        if let Ok(client) = Client::connect(&server.address).await {
            return client;
        }
    }
}

/// Whether it is only the session, or the hold, that is over.
fn is_an_end(error: &Error) -> bool {
    match error {
        Error::Client(error) => error.is_session_end(),
        Error::Lost(_) | Error::Fenced { .. } => true,
        _ => false,
    }
}

/// One guarded step of work: reads the number, and writes the next one to it and to a log, with the token.
async fn step(client: &Client, guarded: &Guarded) -> Result<(), Error> {
    let number: u64 = text(client.get("/state").await?.bytes()).parse().unwrap();
    let next = (number + 1).to_string();
    let entry = format!("{next} {}", guarded.token().value());
    let log = Transaction::new().set("/state", next, None).create("/log/e-", entry, CreateMode::PersistentSequential);
    guarded.commit(log).await.map(drop)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The numbers in the log are 1, 2, 3, ...: none twice, none left out; and tokens never go back.
fn check_log(server: &Server, least: usize) {
    let entries: Vec<(u64, u64)> = server
        .children("/log")
        .iter()
        .map(|name| {
            let entry = server.data(&format!("/log/{name}")).unwrap();
            let (number, token) = text(&entry).split_once(' ').unwrap();
            (number.parse().unwrap(), token.parse().unwrap())
        })
        .collect();
    let numbers: Vec<u64> = entries.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    assert!(entries.is_sorted_by_key(|(_, token)| *token), "{entries:?}");
    assert!(numbers.len() >= least, "{} of at least {least}", numbers.len());
}

/// Each worker does its rounds, with a new session whenever one ends.
async fn run<F>(every: u64, work: impl Fn(Client) -> F) -> Server
where
    F: Future<Output = Result<(), Error>>,
{
    let server = Server::start().await;
    server.set("/state", "0");
    server.set("/log", "");
    server.state.lock().expire_every = every;
    let worker = || async {
        let mut client = fresh(&server).await;
        let mut left = ROUNDS;
        while left > 0 {
            match work(client.clone()).await {
                Ok(()) => left -= 1,
                Err(error) => {
                    assert!(is_an_end(&error), "{error}");
                    if client.state().is_final() {
                        client = fresh(&server).await;
                    }
                }
            }
        }
    };
    let all = futures::future::join_all((0..WORKERS).map(|_| worker()));
    tokio::time::timeout(std::time::Duration::from_secs(60), all).await.expect("the workers get on");
    server.state.lock().expire_every = 0;
    no_violations(&server);
    server
}

#[tokio::test]
async fn no_write_of_a_stale_holder_passes() {
    for every in EVERY {
        let server = run(every, |client| async move {
            let lock = Mutex::new(&client, "/locks/one").when_suspended(WhenSuspended::UntilDeadline);
            let guard = lock.acquire().await?;
            step(&client, &guard.guarded()).await?;
            guard.release().await
        })
        .await;
        check_log(&server, WORKERS * ROUNDS);
    }
}

#[tokio::test]
async fn no_write_of_a_stale_writer_passes() {
    for every in EVERY {
        let server = run(every, |client| async move {
            let lock = RwLock::new(&client, "/locks/rw").when_suspended(WhenSuspended::UntilDeadline);
            let guard = lock.write().await?;
            step(&client, &guard.guarded()).await?;
            let before = text(client.get("/state").await?.bytes()).to_owned();
            let reader = guard.downgrade().await?;
            // Nobody writes while we read; if we do not read any more, the reader's fence says so.
            let after = text(client.get("/state").await?.bytes()).to_owned();
            reader.guarded().commit(Transaction::new()).await?;
            assert_eq!(before, after);
            reader.release().await
        })
        .await;
        check_log(&server, WORKERS * ROUNDS);
    }
}

#[tokio::test]
async fn no_write_of_a_stale_leader_passes() {
    for every in EVERY {
        let server = run(every, |client| async move {
            let election = Election::new(&client, "/election").when_suspended(WhenSuspended::UntilDeadline);
            let leadership = election.campaign("me").await?;
            step(&client, &leadership.guarded()).await?;
            leadership.resign().await
        })
        .await;
        check_log(&server, WORKERS * ROUNDS);
    }
}

#[tokio::test]
async fn a_semaphore_never_gives_out_more_than_its_limit() {
    for every in EVERY {
        let most = Arc::new(Lock::new(0));
        let seen = most.clone();
        run(every, move |client| {
            let most = seen.clone();
            async move {
                let semaphore = Semaphore::new(&client, "/sem", 2).when_suspended(WhenSuspended::UntilDeadline);
                let permits = semaphore.acquire(1).await?;
                let out = semaphore.taken().await?;
                {
                    let mut most = most.lock();
                    *most = out.max(*most);
                }
                permits.release().await
            }
        })
        .await;
        let most = *most.lock();
        assert!(most <= 2, "{most} of 2 were out");
    }
}

/// What was answered was counted; what was not answered because the session ended may have been.
#[tokio::test]
async fn nothing_is_counted_twice() {
    for every in EVERY {
        let unknown = Arc::new(Lock::new(0_i64));
        let seen = unknown.clone();
        let server = run(every, move |client| {
            let unknown = seen.clone();
            async move {
                let added = Counter::new(&client, "/counter").add(1).await;
                if let Err(Error::Client(error)) = &added
                    && error.outcome_unknown()
                {
                    *unknown.lock() += 1;
                }
                added.map(drop)
            }
        })
        .await;
        let (known, unknown) = ((WORKERS * ROUNDS) as i64, *unknown.lock());
        let counted = Counter::new(&fresh(&server).await, "/counter").get().await.unwrap();
        assert!((known..=known + unknown).contains(&counted), "{counted}, {known} known and {unknown} unknown");
    }
}

/// Each item that was put is done once, whatever happened to those who had it.
#[tokio::test]
async fn no_item_of_a_work_queue_is_lost_or_done_twice() {
    for every in EVERY {
        let server = run(every, |client| async move {
            let queue = WorkQueue::new(&client, "/work");
            // The item says which: what was put twice because the answer to the first was lost is two items.
            queue.put("item").await?;
            let work = queue.take().await?;
            let done = Transaction::new().create("/log/d-", work.path(), CreateMode::PersistentSequential);
            work.done_with(done).await.map(drop)
        })
        .await;
        // The rest, by somebody whose session does not end.
        let client = fresh(&server).await;
        let queue = WorkQueue::new(&client, "/work");
        while !queue.is_empty().await.unwrap() {
            let work = soon(queue.take()).await.unwrap();
            let done = Transaction::new().create("/log/d-", work.path(), CreateMode::PersistentSequential);
            work.done_with(done).await.unwrap();
        }
        let mut times: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        for name in server.children("/log") {
            *times.entry(server.data(&format!("/log/{name}")).unwrap().to_vec()).or_default() += 1;
        }
        assert!(times.len() >= WORKERS * ROUNDS);
        assert!(times.values().all(|times| *times == 1), "{times:?}");
        // Numbers are given out by the server without gaps: so many were put, and so many are done.
        let last = times.keys().next_back().unwrap();
        let put: usize = text(&last[last.len() - 10..]).parse().unwrap();
        assert_eq!(times.len(), put + 1);
    }
}

/// At most once: an item may go with its consumer, and is never taken by two.
#[tokio::test]
async fn no_item_of_a_queue_is_taken_twice() {
    for every in EVERY {
        let taken = Arc::new(Lock::new(Vec::new()));
        let (seen, next) = (taken.clone(), Arc::new(Lock::new(0_u64)));
        run(every, move |client| {
            let (taken, next) = (seen.clone(), next.clone());
            async move {
                let queue = Queue::new(&client, "/queue");
                let item = {
                    let mut next = next.lock();
                    *next += 1;
                    next.to_string()
                };
                queue.put(item.as_str()).await?;
                if let Some(item) = queue.poll().await? {
                    taken.lock().push(text(&item.unwrap()).to_owned());
                }
                Ok(())
            }
        })
        .await;
        let mut taken = taken.lock().clone();
        let count = taken.len();
        taken.sort();
        taken.dedup();
        assert_eq!(taken.len(), count);
    }
}
