//! What guests do, one kind a recipe, and how it is judged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use corral_client::{Client, Consistency, CreateMode, ErrorCode, Transaction, ambient};
use corral_recipes::{
    Barrier, ConfigMap, Counter, DelayQueue, Discovery, DoubleBarrier, DownPolicy, Election, Error, Group, Guarded,
    IdBlocks, IdQueue, Kept, LeaderLatch, Loss, MultiLock, Mutex, Next, Owner, PartitionEvent, Partitioner, Queue,
    ReentrantMutex, Rejoin, Revoker, RwLock, Semaphore, ServiceInstance, ShardedQueue, SharedValue, Strategy,
    TimedLease, Token, TtlNode, WhenSuspended, WorkQueue, transact,
};
use corral_sim::options::SimOptions;

use crate::host::{Ended, Guest, Lines, host, run, suspend_guests};
use crate::ledger::{Holders, Items, Shared, Views};

/// Guests of a run.
const GUESTS: usize = 3;
/// Rounds of each guest after the faults have ended.
const CALM_ROUNDS: u64 = 3;
/// How far the wall clocks of servers are apart, at most.
const WALL_SKEW: Duration = Duration::from_millis(4_100);

/// One kind of program.
pub struct Kind {
    pub name: &'static str,
    pub run: fn(SimOptions) -> Ended,
    /// What runs of it must reach.
    pub goals: &'static [&'static str],
}

const STEPS: &[&str] = &["a step was done"];
const HOLDS: &[&str] = &["a step was done", "a hold was granted"];

/// Every recipe, or several that belong together.
pub const KINDS: [Kind; 25] = [
    Kind { name: "mutex", run: mutex, goals: HOLDS },
    Kind { name: "reentrant mutex", run: reentrant, goals: HOLDS },
    Kind { name: "read-write lock", run: rwlock, goals: &["a step was done", "a reader saw one state"] },
    Kind { name: "multi-lock", run: multi, goals: STEPS },
    Kind { name: "lock delay", run: delay, goals: HOLDS },
    Kind {
        name: "revoker",
        run: revoker,
        goals: &["a step was done", "a holder was forced", "a stale write was refused"],
    },
    Kind { name: "semaphore", run: semaphore, goals: &["permits were taken"] },
    Kind {
        name: "timed lease",
        run: lease,
        goals: &["a step was done", "a lease ran out", "a lease was taken up again"],
    },
    Kind { name: "election", run: election, goals: HOLDS },
    Kind { name: "leader latch", run: latch, goals: HOLDS },
    Kind { name: "leader selector", run: selector, goals: &["a step was done"] },
    Kind { name: "group", run: group, goals: &["a view was seen"] },
    Kind { name: "discovery", run: discovery, goals: &["an instance was found"] },
    Kind { name: "partitioner", run: partitioner, goals: &["a step was done"] },
    Kind { name: "barrier", run: barrier, goals: &["a barrier opened"] },
    Kind { name: "double barrier", run: double_barrier, goals: &["all were there"] },
    Kind { name: "numbers", run: numbers, goals: &["a number was added"] },
    Kind { name: "queue", run: queue, goals: &["an item was taken"] },
    Kind { name: "delay queue", run: delay_queue, goals: &["an item was taken", "an item was due after seconds"] },
    Kind { name: "id queue", run: id_queue, goals: &["an item was taken", "an item was removed"] },
    Kind { name: "sharded queue", run: sharded_queue, goals: &["an item was taken"] },
    Kind { name: "work queue", run: work_queue, goals: &["an item was done"] },
    Kind { name: "transactions", run: transactions, goals: &["money was moved", "a snapshot was whole"] },
    Kind { name: "ttl node", run: ttl, goals: &["a kept znode was there"] },
    Kind { name: "fence", run: fence, goals: &["a step was done", "a fence was tried again in another session"] },
];

// ---------------------------------------------------------------------------------------------------------- how guests live

/// Begins a session, however long it takes.
async fn connect() -> Client {
    loop {
        let (servers, timeout) = (host().connect_string(), host().session_timeout());
        let builder = Client::builder(servers).transport(Arc::new(Lines)).session_timeout(timeout);
        match builder.shuffle_seed(ambient::random()).connect().await {
            Ok(client) => return client,
            Err(_) => ambient::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Whether a round ended by what faults do, and may be followed by another.
fn is_a_matter_of_faults(error: &Error) -> bool {
    match error {
        Error::Client(error) => error.is_session_end() || error.is_retryable(),
        Error::Fenced { .. } | Error::Lost(_) | Error::Timeout { .. } | Error::Contended { .. } => true,
        _ => false,
    }
}

fn is_over(client: &Client, error: &Error) -> bool {
    matches!(error, Error::Lost(Loss::SessionEnded(_)))
        || matches!(error, Error::Client(error) if error.is_session_end())
        || client.events().state().is_final()
}

/// A guest's life: round after round, in one session after the other, until the faults are over and a few rounds are done.
async fn live<F>(guest: Guest, directories: &'static [&'static str], round: impl Fn(Client, Guest) -> F)
where
    F: Future<Output = Result<(), Error>>,
{
    let mut calm = 0;
    let mut client = None;
    while calm < CALM_ROUNDS {
        let session = match client.clone() {
            Some(session) => session,
            None => client.insert(connect().await).clone(),
        };
        let was_calm = !host().is_faulty();
        let result = async {
            prepare(&session, directories).await?;
            round(session.clone(), guest).await
        };
        match result.await {
            Ok(()) => calm += u64::from(was_calm),
            Err(error) => {
                assert!(is_a_matter_of_faults(&error), "guest {guest}: {error}");
                if matches!(error, Error::Fenced { .. }) {
                    host().note("a stale write was refused");
                }
                if is_over(&session, &error) {
                    host().note("a session ended");
                    client = None;
                }
            }
        }
        breathe().await;
    }
    if let Some(client) = client {
        // Sessions that have ended need no end.
        let _ = client.close().await;
    }
}

/// A short while.
async fn breathe() {
    let pause = host().while_up_to(Duration::from_millis(100));
    ambient::sleep(pause).await;
}

/// A while in which a session may end.
async fn dawdle() {
    let pause = host().while_up_to(host().session_timeout());
    ambient::sleep(pause).await;
}

/// How long a guest waits for its turn.
fn patience() -> Duration {
    host().session_timeout() * 20
}

async fn prepare(client: &Client, directories: &[&str]) -> Result<(), Error> {
    for directory in directories {
        for (path, data) in
            [((*directory).to_owned(), ""), (format!("{directory}/state"), "0"), (format!("{directory}/log"), "")]
        {
            match client.create(&path, data, CreateMode::Persistent).await {
                Err(error) if error.code() != Some(ErrorCode::NodeExists) => return Err(error.into()),
                _ => {}
            }
        }
    }
    Ok(())
}

async fn number(client: &Client, path: &str) -> Result<(u64, i32), Error> {
    let node = client.read(Consistency::Linearizable).get(path).await?;
    let text = String::from_utf8_lossy(node.bytes()).into_owned();
    Ok((text.parse().unwrap_or_else(|_| panic!("{path} holds {text:?}")), node.stat.version))
}

/// One numbered step: what is read is written back, one more, some time later; of any version, so that nothing but the fence
/// keeps holders apart. The log says what was done.
async fn step(client: &Client, guarded: &Guarded, directory: &str) -> Result<(), Error> {
    step_of(client, guarded, directory, guarded.token().value()).await
}

/// The children of a directory in the order of their creation, as text.
async fn texts(client: &Client, directory: &str) -> Result<Vec<String>, String> {
    let words = |error: corral_client::Error| format!("{directory}: {error}");
    let mut found = Vec::new();
    let names = match client.read(Consistency::Linearizable).get_children(directory).await {
        Err(error) if error.code() == Some(ErrorCode::NoNode) => return Ok(Vec::new()),
        other => other.map_err(words)?,
    };
    for name in names {
        let node = client.get(&format!("{directory}/{name}")).await.map_err(words)?;
        found.push((node.stat.czxid, String::from_utf8_lossy(node.bytes()).into_owned()));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, text)| text).collect())
}

/// Numbers go 1, 2, 3, ... and tokens never back.
async fn judge_steps(directories: &[&str]) -> Result<(), String> {
    let client = connect().await;
    for directory in directories {
        let mut last = (0, 0);
        for text in texts(&client, &format!("{directory}/log")).await? {
            let (number, token) = text.split_once(' ').ok_or_else(|| format!("{directory}: {text:?}"))?;
            let now: (u64, u64) = (number.parse().unwrap_or(0), token.parse().unwrap_or(0));
            if now.0 != last.0 + 1 || now.1 < last.1 {
                return Err(format!("{directory}: step {} of token {:#x} came after {last:#x?}", now.0, now.1));
            }
            last = now;
        }
        let (state, _) = number(&client, &format!("{directory}/state")).await.map_err(|error| error.to_string())?;
        if state != last.0 {
            return Err(format!("{directory}: {} steps in the log, {state} in the state", last.0));
        }
    }
    client.close().await.map_err(|error| error.to_string())
}

/// Guests of one kind in one world.
fn guests<F, V>(
    options: SimOptions,
    directories: &'static [&'static str],
    round: impl Fn(Client, Guest) -> F + Clone + 'static,
    verify: impl FnOnce() -> V,
) -> Ended
where
    F: Future<Output = Result<(), Error>> + 'static,
    V: Future<Output = Result<(), String>> + 'static,
{
    let begin = |host: &std::rc::Rc<crate::host::Host>| {
        for guest in 0..GUESTS {
            host.program(guest, live(guest, directories, round.clone()));
        }
        host.start(crate::host::NOBODY, suspend_guests(GUESTS));
    };
    run(options, begin, verify)
}

// ----------------------------------------------------------------------------------------------------------- locks, elections

const WORK: &[&str] = &["/job"];

/// One or the other.
fn policy(guest: Guest) -> WhenSuspended {
    if guest == 0 { WhenSuspended::Stop } else { WhenSuspended::UntilDeadline }
}

fn mutex(options: SimOptions) -> Ended {
    let holders: Shared<Holders> = Shared::default();
    let round = move |client: Client, guest| {
        let holders = holders.clone();
        async move {
            let lock = Mutex::new(&client, "/lock").when_suspended(policy(guest));
            if host().chance(100) {
                // Dropped somewhere on its way.
                let limit = host().while_up_to(Duration::from_millis(200));
                drop(lock.acquire_timeout(limit).await?);
                return Ok(());
            }
            let guard = lock.acquire_timeout(patience()).await?;
            Holders::granted(&holders, guest, &guard);
            let done = step(&client, &guard.guarded(), "/job").await;
            Holders::given_up(&holders, guest);
            guard.release().await?;
            done
        }
    };
    guests(options, WORK, round, || judge_steps(WORK))
}

fn reentrant(options: SimOptions) -> Ended {
    let holders: Shared<Holders> = Shared::default();
    let round = move |client: Client, guest| {
        let holders = holders.clone();
        async move {
            let lock = ReentrantMutex::from(Mutex::new(&client, "/lock").when_suspended(policy(guest)));
            let owner = Owner::new(&guest.to_string());
            let outer = lock.acquire_timeout(&owner, patience()).await?;
            Holders::granted(&holders, guest, &outer);
            let inner = lock.acquire_timeout(&owner, patience()).await?;
            assert_eq!((inner.depth(), inner.token()), (2, outer.token()));
            let done = step(&client, &inner.guarded(), "/job").await;
            inner.release().await?;
            Holders::given_up(&holders, guest);
            outer.release().await?;
            done
        }
    };
    guests(options, WORK, round, || judge_steps(WORK))
}

/// What a reader reads stays until its guarded check, or its token is dead.
async fn look(client: &Client, guarded: &Guarded) -> Result<(), Error> {
    let (_, version) = number(client, "/job/state").await?;
    dawdle().await;
    match guarded.commit(Transaction::new().check("/job/state", Some(version))).await {
        Err(Error::Client(error)) if error.code() == Some(ErrorCode::BadVersion) => {
            panic!("somebody wrote while a reader held")
        }
        other => other?,
    };
    host().note("a reader saw one state");
    Ok(())
}

fn rwlock(options: SimOptions) -> Ended {
    let round = |client: Client, guest| async move {
        let lock = RwLock::new(&client, "/lock").when_suspended(policy(guest));
        if host().chance(500) {
            let guard = lock.read_timeout(patience()).await?;
            let done = look(&client, &guard.guarded()).await;
            guard.release().await?;
            return done;
        }
        let guard = lock.write_timeout(patience()).await?;
        let done = step(&client, &guard.guarded(), "/job").await;
        if done.is_ok() && host().chance(500) {
            let reader = guard.downgrade().await?;
            let done = look(&client, &reader.guarded()).await;
            reader.release().await?;
            return done;
        }
        guard.release().await?;
        done
    };
    guests(options, WORK, round, || judge_steps(WORK))
}

const WORKS: &[&str] = &["/job-0", "/job-1", "/job-2"];

fn multi(options: SimOptions) -> Ended {
    let round = |client: Client, guest| async move {
        let without = host().below(3);
        let of: Vec<u64> = (0..3).filter(|at| *at != without).collect();
        let locks = of.iter().map(|at| Mutex::new(&client, format!("/lock-{at}")).when_suspended(policy(guest)));
        let guard = MultiLock::new(locks)?.acquire_timeout(patience()).await?;
        let mut done = Ok(());
        for (at, hold) in of.iter().zip(guard.holds().collect::<Vec<_>>()) {
            // By its own token, and guarded by all.
            let guarded = guard.guarded();
            assert!(hold.path().starts_with(&format!("/lock-{at}/")));
            done = match done {
                Ok(()) => step_of(&client, &guarded, &format!("/job-{at}"), hold.token().value()).await,
                other => other,
            };
        }
        guard.release().await?;
        done
    };
    guests(options, WORKS, round, || judge_steps(WORKS))
}

/// As [`step`], with this token in the log.
async fn step_of(client: &Client, guarded: &Guarded, directory: &str, token: u64) -> Result<(), Error> {
    let (done, _) = number(client, &format!("{directory}/state")).await?;
    dawdle().await;
    let next = done + 1;
    let step = Transaction::new().set(&format!("{directory}/state"), next.to_string(), None).create(
        &format!("{directory}/log/step-"),
        format!("{next} {token}"),
        CreateMode::PersistentSequential,
    );
    guarded.commit(step).await?;
    host().note("a step was done");
    Ok(())
}

fn delay(options: SimOptions) -> Ended {
    let holders: Shared<Holders> = Shared::default();
    let round = move |client: Client, guest| {
        let holders = holders.clone();
        async move {
            let lock =
                Mutex::new(&client, "/lock").when_suspended(policy(guest)).lock_delay(Duration::from_millis(300));
            let guard = lock.acquire_timeout(patience()).await?;
            Holders::granted(&holders, guest, &guard);
            let done = step(&client, &guard.guarded(), "/job").await;
            Holders::given_up(&holders, guest);
            guard.release().await?;
            done
        }
    };
    guests(options, WORK, round, || judge_steps(WORK))
}

fn revoker(options: SimOptions) -> Ended {
    let round = |client: Client, guest| async move {
        let lock = Mutex::new(&client, "/lock").when_suspended(policy(guest));
        if host().chance(300) {
            let standings = lock.contenders().await?;
            if let Some(first) = standings.first()
                && Revoker::new(&client).force(&first.path).await?
            {
                host().note("a holder was forced");
            }
            return Ok(());
        }
        let guard = lock.acquire_timeout(patience()).await?;
        let done = step(&client, &guard.guarded(), "/job").await;
        guard.release().await?;
        done
    };
    guests(options, WORK, round, || judge_steps(WORK))
}

fn semaphore(options: SimOptions) -> Ended {
    const LIMIT: u32 = 2;
    let round = |client: Client, guest| async move {
        let semaphore = Semaphore::new(&client, "/sem", LIMIT).when_suspended(policy(guest));
        let out = semaphore.taken().await?;
        assert!(out <= LIMIT as usize, "{out} permits of {LIMIT} are out");
        let count = 1 + u32::try_from(host().below(2)).expect("small");
        let permits = semaphore.acquire_timeout(count, patience()).await?;
        dawdle().await;
        // While they are ours, they are among those that are out.
        permits.guarded().commit(Transaction::new()).await?;
        let out = semaphore.taken().await?;
        assert!(out <= LIMIT as usize, "{out} permits of {LIMIT} are out");
        host().note("permits were taken");
        permits.release().await
    };
    guests(options, &[], round, || async {
        let client = connect().await;
        let out = Semaphore::new(&client, "/sem", LIMIT).taken().await.map_err(|error| error.to_string())?;
        if out == 0 { Ok(()) } else { Err(format!("{out} permits are out, and nobody is there")) }
    })
}

/// Who had the lease last, its token, and until when it may believe in it.
type LastTenure = Option<(Guest, Token, tokio::time::Instant)>;

fn lease(options: SimOptions) -> Ended {
    let last: Shared<LastTenure> = Shared::default();
    let round = move |client: Client, guest: Guest| {
        let last = last.clone();
        async move {
            // Longer than the clocks of two leaders can be apart, or there would be nothing to judge.
            let ttl = host().session_timeout() + WALL_SKEW * 2;
            let lease = TimedLease::new(&client, "/lease", guest.to_string(), ttl)?;
            let tenure = ambient::timeout(patience() + ttl, lease.acquire())
                .await
                .map_err(|_| Error::Timeout { path: "/lease".into(), waited: patience() + ttl })??;
            let now = (guest, tenure.token(), tenure.valid_until());
            let before = {
                let mut last = last.lock().expect("one thread");
                // Whoever slept before it could say so may have been followed by others meanwhile.
                let is_latest = last.is_none_or(|(_, token, _)| token <= now.1);
                if is_latest { last.replace(now) } else { None }
            };
            match before {
                Some((theirs, _, until)) if theirs != guest => {
                    assert!(
                        until <= ambient::now() + WALL_SKEW,
                        "guest {guest} got the lease {} ms before that of guest {theirs} was over",
                        (until - ambient::now()).as_millis()
                    );
                    host().note("a lease ran out");
                }
                Some((_, token, _)) if token == now.1 => host().note("a lease was taken up again"),
                _ => {}
            }
            let done = step(&client, &tenure.guarded(), "/job").await;
            match host().below(3) {
                0 => {
                    // From here on another may have it, whatever becomes of the answer.
                    last.lock().expect("one thread").take_if(|(_, token, _)| *token == now.1);
                    tenure.release().await?;
                }
                1 => {
                    tenure.renew().await?;
                    if let Some((_, _, until)) =
                        last.lock().expect("one thread").as_mut().filter(|(_, token, _)| *token == now.1)
                    {
                        *until = tenure.valid_until();
                    }
                }
                // It ends by itself, or its owner takes it up again in its next round.
                _ => {}
            }
            done
        }
    };
    guests(options, WORK, round, || judge_steps(WORK))
}

/// A holder that is none any more tries again what it was about to write, in a session that has nothing to do with the first.
fn fence(options: SimOptions) -> Ended {
    let holders: Shared<Holders> = Shared::default();
    let round = move |client: Client, guest| {
        let holders = holders.clone();
        async move {
            let lock = Mutex::new(&client, "/lock").when_suspended(policy(guest));
            let guard = lock.acquire_timeout(patience()).await?;
            Holders::granted(&holders, guest, &guard);
            let (stale, hold) = (guard.fence().clone(), guard.hold());
            let done = step(&client, &guard.guarded(), "/job").await;
            // Only what was answered is certain.
            let is_gone = match host().below(3) {
                0 => {
                    Holders::given_up(&holders, guest);
                    guard.release().await.is_ok()
                }
                1 => {
                    Holders::given_up(&holders, guest);
                    client.close().await.is_ok()
                }
                _ => {
                    dawdle().await;
                    Holders::given_up(&holders, guest);
                    drop(guard);
                    false
                }
            };
            let heir = connect().await;
            let again = step(&heir, &Guarded::new(heir.clone(), stale), "/job").await;
            host().note("a fence was tried again in another session");
            match &again {
                Ok(()) => assert!(!is_gone, "a write behind {} passed after its holder was gone", hold.token()),
                Err(Error::Fenced { .. }) => host().note("a stale write was refused"),
                Err(error) => assert!(is_a_matter_of_faults(error), "guest {guest}: {error}"),
            }
            // Sessions that have ended need no end.
            let _ = heir.close().await;
            done
        }
    };
    guests(options, WORK, round, || judge_steps(WORK))
}

fn election(options: SimOptions) -> Ended {
    let holders: Shared<Holders> = Shared::default();
    let round = move |client: Client, guest: Guest| {
        let holders = holders.clone();
        async move {
            let election = Election::new(&client, "/election").when_suspended(policy(guest));
            let leadership = election.campaign_timeout(guest.to_string(), patience()).await?;
            let hold = leadership.hold();
            Holders::granted(&holders, guest, &hold);
            let mut done = step(&client, &hold.guarded(), "/job").await;
            if done.is_ok() && host().chance(300) {
                done = leadership.proclaim(format!("{guest} again")).await;
            }
            Holders::given_up(&holders, guest);
            leadership.resign().await?;
            done
        }
    };
    guests(options, WORK, round, || judge_steps(WORK))
}

async fn close(latch: LeaderLatch) -> Result<(), Error> {
    latch.close(corral_recipes::CloseMode::Silent).await
}

fn latch(options: SimOptions) -> Ended {
    let holders: Shared<Holders> = Shared::default();
    let round = move |client: Client, guest: Guest| {
        let holders = holders.clone();
        async move {
            let latch = Election::new(&client, "/election").when_suspended(policy(guest)).latch(guest.to_string());
            let Ok(led) = ambient::timeout(patience(), latch.lead()).await else { return close(latch).await };
            let mut done = led.map(|hold| Holders::granted(&holders, guest, &hold));
            // As long as it says that we lead.
            for _ in 0..3 {
                match latch.leadership() {
                    Some(hold) if done.is_ok() && hold.is_valid() => {
                        done = step(&client, &hold.guarded(), "/job").await
                    }
                    _ => break,
                }
            }
            Holders::given_up(&holders, guest);
            close(latch).await?;
            done
        }
    };
    guests(options, WORK, round, || judge_steps(WORK))
}

fn selector(options: SimOptions) -> Ended {
    let round = |client: Client, guest: Guest| async move {
        let election = Election::new(&client, "/election").when_suspended(policy(guest));
        let works = client.clone();
        let mut selector = election.select(guest.to_string(), move |hold| {
            let client = works.clone();
            async move {
                match step(&client, &hold.guarded(), "/job").await {
                    Ok(()) => Next::Leave,
                    Err(_) => Next::Requeue,
                }
            }
        });
        match ambient::timeout(patience(), selector.ended()).await {
            Ok(ended) => ended,
            Err(_) => selector.close().await,
        }
    };
    guests(options, WORK, round, || judge_steps(WORK))
}

// --------------------------------------------------------------------------------------------------------- groups, services

fn group(options: SimOptions) -> Ended {
    let ledger: Shared<Views> = Shared::default();
    let round = move |client: Client, guest: Guest| {
        let ledger = ledger.clone();
        async move {
            let group = Group::new(&client, "/group");
            let here = group.join(&guest.to_string(), format!("of {guest}")).start();
            here.created().await?;
            let mut views = group.views().await?;
            let mut last = views.next().await?;
            Views::seen(&ledger, &last);
            for _ in 0..host().below(6) {
                if host().chance(200) {
                    // Whoever deletes it: it comes back.
                    match client.delete(&format!("/group/{guest}"), None).await {
                        Err(error) if error.code() != Some(ErrorCode::NoNode) => return Err(error.into()),
                        _ => {}
                    }
                }
                let Ok(next) = ambient::timeout(host().session_timeout(), views.next()).await else { continue };
                let next = next?;
                // When the last member is gone, so is the directory after a while, and with it the epoch.
                let is_reaped = next.members.is_empty() && next.epoch.0 == 0;
                assert!(next.epoch > last.epoch || is_reaped, "from epoch {:?} to {:?}", last.epoch, next.epoch);
                Views::seen(&ledger, &next);
                last = next;
            }
            here.close().await
        }
    };
    guests(options, &[], round, || async { Ok(()) })
}

fn discovery(options: SimOptions) -> Ended {
    let round = |client: Client, guest: Guest| async move {
        let discovery = Discovery::new(&client, "/services");
        let instance = ServiceInstance::new("web", guest.to_string(), "10.0.0.1", 80);
        let registration = discovery.register(instance, Rejoin::Never).await?;
        let provider = discovery.provider("web", Strategy::LeastUsed, DownPolicy::default()).await?;
        let known = provider.instances()?;
        assert!(known.iter().any(|known| known.id == guest.to_string()), "not among {known:?}");
        let first = provider.begin_use()?.expect("at least our own");
        if let Some(second) = provider.begin_use()? {
            assert!(known.len() == 1 || first.id != second.id, "the one that is in use was chosen before another");
            host().note("an instance was found");
        }
        registration.unregister().await
    };
    guests(options, &[], round, || async {
        let client = connect().await;
        let left = Discovery::new(&client, "/services").instances("web").await.map_err(|error| error.to_string())?;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?} are registered, and nobody is there")) }
    })
}

fn partitioner(options: SimOptions) -> Ended {
    let round = |client: Client, guest: Guest| async move {
        let items = (0..3).map(|at| at.to_string());
        let partitioner = Partitioner::new(&client, "/parts", guest.to_string(), items)?;
        let mut partition = partitioner.settle(Duration::from_millis(50)).when_suspended(policy(guest)).join();
        let until = ambient::now() + host().session_timeout() * 3;
        let mut done = Ok(());
        while let Ok(event) = ambient::timeout(until.saturating_duration_since(ambient::now()), partition.next()).await
        {
            match event {
                Some(PartitionEvent::Acquired { item, hold }) => {
                    done = step(&client, &hold.guarded(), &format!("/job-{item}")).await;
                }
                Some(PartitionEvent::Release { item }) => done = partition.give_back(&item).await,
                Some(PartitionEvent::Lost { .. }) => {}
                Some(PartitionEvent::Ended(error)) => return Err(error),
                None => break,
            }
            match &done {
                Err(error) if is_over(&client, error) => return done,
                Err(error) => assert!(is_a_matter_of_faults(error), "{error}"),
                Ok(()) => {}
            }
        }
        partition.close().await?;
        done
    };
    guests(options, WORKS, round, || judge_steps(WORKS))
}

// -------------------------------------------------------------------------------------------------------- barriers, numbers

/// Which time a barrier is closed, and until which time it was opened, as its keeper did it.
#[derive(Default)]
struct Gate {
    closed: u64,
    opened: u64,
}

fn barrier(options: SimOptions) -> Ended {
    let gate: Shared<Gate> = Shared::default();
    let round = move |client: Client, guest| {
        let gate = gate.clone();
        async move {
            let barrier = Barrier::new(&client, "/barrier");
            if guest == 0 {
                barrier.set().await?;
                gate.lock().expect("one thread").closed += 1;
                dawdle().await;
                let closed = gate.lock().expect("one thread").closed;
                // From here on it may be open, whatever becomes of the answer.
                gate.lock().expect("one thread").opened = closed;
                barrier.remove().await?;
                return Ok(());
            }
            // If it was closed when we came, it has been opened since.
            let closed = {
                let gate = gate.lock().expect("one thread");
                (gate.closed > gate.opened).then_some(gate.closed)
            };
            barrier.wait_timeout(patience()).await?;
            if let Some(closed) = closed {
                let opened = gate.lock().expect("one thread").opened;
                assert!(opened >= closed, "guest {guest} went through a closed barrier");
                host().note("a barrier opened");
            }
            Ok(())
        }
    };
    guests(options, &[], round, || async { Ok(()) })
}

fn double_barrier(options: SimOptions) -> Ended {
    /// Who was at the entry of each round.
    type Came = BTreeMap<u64, std::collections::BTreeSet<Guest>>;
    let rounds: Shared<Came> = Shared::default();
    // Which round is next: the one after the last that was over, or that somebody gave up.
    let next: Shared<u64> = Shared::default();
    let round = move |client: Client, guest| {
        let (rounds, next) = (rounds.clone(), next.clone());
        async move {
            let number = *next.lock().expect("one thread");
            let over = || {
                let mut next = next.lock().expect("one thread");
                *next = (*next).max(number + 1);
            };
            let barrier = DoubleBarrier::new(&client, "/barrier", GUESTS)?.round(number);
            rounds.lock().expect("one thread").entry(number).or_default().insert(guest);
            // Others may have given this round up: so do we, after a while.
            let inside = match barrier.enter_timeout(host().session_timeout() * 4).await {
                // Some may have done all that they wanted, and come no more.
                Err(Error::Timeout { .. }) => {
                    over();
                    return Ok(());
                }
                other => other.inspect_err(|_| over())?,
            };
            let came = rounds.lock().expect("one thread")[&number].len();
            assert_eq!(came, GUESTS, "guest {guest} entered round {number} before all were there");
            host().note("all were there");
            dawdle().await;
            over();
            inside.leave().await
        }
    };
    guests(options, &[], round, || async { Ok(()) })
}

#[derive(Default)]
struct Sums {
    added: i64,
    maybe: i64,
    replaced: u64,
    maybe_replaced: u64,
    ids: std::collections::BTreeSet<i64>,
}

fn numbers(options: SimOptions) -> Ended {
    let sums: Shared<Sums> = Shared::default();
    let judged = sums.clone();
    let round = move |client: Client, _| {
        let sums = sums.clone();
        async move {
            let ledger = || sums.lock().expect("one thread");
            ledger().maybe += 1;
            let added = Counter::new(&client, "/counter").add(1).await;
            if let Ok((before, after)) = &added {
                assert_eq!(*after, before + 1);
                ledger().maybe -= 1;
                ledger().added += 1;
                host().note("a number was added");
            }
            added?;
            let blocks = IdBlocks::new(Counter::new(&client, "/ids"), 3)?;
            for _ in 0..4 {
                let id = blocks.next().await?;
                assert!(ledger().ids.insert(id), "{id} was given out twice");
            }
            let value = SharedValue::new(&client, "/value");
            let before = value.get().await?;
            let number: u64 =
                before.as_ref().map_or(0, |value| String::from_utf8_lossy(value.bytes()).parse().expect("a number"));
            dawdle().await;
            ledger().maybe_replaced += 1;
            let replaced = value.try_set(before.as_ref(), (number + 1).to_string()).await?;
            ledger().maybe_replaced -= 1;
            ledger().replaced += u64::from(replaced.is_some());
            Ok(())
        }
    };
    guests(options, &[], round, || async move {
        let client = connect().await;
        let words = |error: Error| error.to_string();
        let counted = Counter::new(&client, "/counter").get().await.map_err(words)?;
        let value = SharedValue::new(&client, "/value").get().await.map_err(words)?;
        let value: u64 = value.map_or(0, |value| String::from_utf8_lossy(value.bytes()).parse().expect("a number"));
        let sums = judged.lock().expect("one thread");
        if !(sums.added..=sums.added + sums.maybe).contains(&counted) {
            return Err(format!("{counted} counted, {} added for certain, {} perhaps", sums.added, sums.maybe));
        }
        if !(sums.replaced..=sums.replaced + sums.maybe_replaced).contains(&value) {
            return Err(format!(
                "{value}; replaced {} times for certain, {} perhaps",
                sums.replaced, sums.maybe_replaced
            ));
        }
        Ok(())
    })
}

// ------------------------------------------------------------------------------------------------------------------- queues

/// What a guest does with a queue that gives each item at most once: one function to put, one to take.
async fn put_and_take(
    ledger: &Shared<Items>,
    guest: Guest,
    put: impl AsyncFnOnce(String) -> Result<(), Error>,
    take: impl AsyncFnOnce() -> Result<Option<String>, Error>,
) -> Result<(), Error> {
    let items = || ledger.lock().expect("one thread");
    if host().chance(600) {
        let item = items().next(guest);
        items().maybe_put.insert(item.clone());
        put(item.clone()).await?;
        items().maybe_put.remove(&item);
        items().put.insert(item);
    }
    // Until it is answered it may have taken one.
    items().failed_takes += 1;
    let taken = take().await?;
    items().failed_takes -= 1;
    if let Some(item) = taken {
        items().took(&item);
        host().note("an item was taken");
    }
    Ok(())
}

fn text(bytes: impl AsRef<[u8]>) -> String {
    String::from_utf8_lossy(bytes.as_ref()).into_owned()
}

/// Takes what is left, by turns of this.
async fn rest(mut poll: impl AsyncFnMut() -> Result<Option<String>, Error>) -> Result<Vec<String>, String> {
    let mut rest = Vec::new();
    while let Some(item) = poll().await.map_err(|error| error.to_string())? {
        rest.push(item);
    }
    Ok(rest)
}

fn queue(options: SimOptions) -> Ended {
    let ledger: Shared<Items> = Shared::default();
    let judged = ledger.clone();
    let round = move |client: Client, guest| {
        let ledger = ledger.clone();
        async move {
            let queue = Queue::new(&client, "/queue").max_items(20);
            let put = async |item: String| match queue.put(item).await {
                Err(Error::Full { .. }) => Err(Error::Contended { path: "/queue".into(), attempts: 1 }),
                other => other,
            };
            let take = async || Ok(queue.poll().await?.map(|item| text(item.unwrap_or_default())));
            put_and_take(&ledger, guest, put, take).await
        }
    };
    guests(options, &[], round, || async move {
        let queue = Queue::new(&connect().await, "/queue");
        let left = rest(async || Ok(queue.poll().await?.map(|item| text(item.unwrap_or_default())))).await?;
        judged.lock().expect("one thread").judge(&left)
    })
}

/// Before when an item cannot be due, by its name.
type DueTimes = BTreeMap<String, tokio::time::Instant>;

/// No item comes before its time: of the clocks of servers, as far as these are apart.
fn is_due(times: &Shared<DueTimes>, item: &str) {
    let times = times.lock().expect("one thread");
    let due = times[item];
    assert!(due <= ambient::now() + WALL_SKEW, "{item} came {} ms too early", (due - ambient::now()).as_millis());
}

fn delay_queue(options: SimOptions) -> Ended {
    /// Longer than the clocks of two leaders can be apart.
    const LONG: Duration = Duration::from_secs(15);
    /// The clock of a server runs so much faster than ours, at most.
    const RATE_PERCENT: u32 = 4;
    let ledger: Shared<Items> = Shared::default();
    let times: Shared<DueTimes> = Shared::default();
    let (judged, due) = (ledger.clone(), times.clone());
    let round = move |client: Client, guest| {
        let (ledger, times) = (ledger.clone(), times.clone());
        async move {
            let queue = DelayQueue::new(&client, "/queue");
            let put = async |item: String| {
                let is_long = host().chance(200);
                let delay = if is_long { LONG } else { host().while_up_to(Duration::from_millis(500)) };
                let due = ambient::now() + delay - delay * RATE_PERCENT / 100;
                times.lock().expect("one thread").insert(item.clone(), due);
                queue.put(item, delay).await
            };
            let take = async || {
                let Some(item) = queue.poll().await? else { return Ok(None) };
                let item = text(item.unwrap_or_default());
                is_due(&times, &item);
                Ok(Some(item))
            };
            put_and_take(&ledger, guest, put, take).await
        }
    };
    guests(options, &[], round, || async move {
        let queue = DelayQueue::new(&connect().await, "/queue");
        let mut left = Vec::new();
        while !queue.is_empty().await.map_err(|error| error.to_string())? {
            // All are due by then, whichever clock counts.
            let began = ambient::now();
            let taken = ambient::timeout(LONG * 2 + WALL_SKEW, queue.take()).await;
            let taken = taken.map_err(|_| "an item is never due".to_owned())?.map_err(|error| error.to_string())?;
            let item = text(taken.unwrap_or_default());
            is_due(&due, &item);
            if ambient::now() > began + Duration::from_secs(1) {
                host().note("an item was due after seconds");
            }
            left.push(item);
        }
        judged.lock().expect("one thread").judge(&left)
    })
}

fn id_queue(options: SimOptions) -> Ended {
    let ledger: Shared<Items> = Shared::default();
    let judged = ledger.clone();
    let round = move |client: Client, guest| {
        let ledger = ledger.clone();
        async move {
            let queue = IdQueue::new(&client, "/queue");
            let put = async |item: String| queue.put(&item, &item).await;
            let take = async || {
                let Some(taken) = queue.poll().await? else { return Ok(None) };
                assert_eq!(taken.id.as_bytes(), &taken.item[..]);
                Ok(Some(taken.id))
            };
            put_and_take(&ledger, guest, put, take).await?;
            let any = ledger.lock().expect("one thread").put.iter().next_back().cloned();
            if let Some(any) = any.filter(|_| host().chance(300)) {
                ledger.lock().expect("one thread").failed_takes += 1;
                let removed = queue.remove(&any).await?;
                ledger.lock().expect("one thread").failed_takes -= 1;
                assert!(removed <= 1, "{any} was there {removed} times");
                if removed == 1 {
                    ledger.lock().expect("one thread").took(&any);
                    host().note("an item was removed");
                }
            }
            Ok(())
        }
    };
    guests(options, &[], round, || async move {
        let queue = IdQueue::new(&connect().await, "/queue");
        let left = rest(async || Ok(queue.poll().await?.map(|item| item.id))).await?;
        judged.lock().expect("one thread").judge(&left)
    })
}

fn sharded_queue(options: SimOptions) -> Ended {
    let ledger: Shared<Items> = Shared::default();
    let judged = ledger.clone();
    let round = move |client: Client, guest| {
        let ledger = ledger.clone();
        async move {
            let queue = ShardedQueue::new(&client, "/queue").threshold(2).max_shards(3);
            let put = async |item: String| queue.put(item).await;
            let take = async || Ok(queue.poll().await?.map(|item| text(item.unwrap_or_default())));
            put_and_take(&ledger, guest, put, take).await?;
            let shards = queue.shard_count().await?;
            assert!(shards <= 3, "{shards} shards");
            Ok(())
        }
    };
    guests(options, &[], round, || async move {
        let queue = ShardedQueue::new(&connect().await, "/queue");
        let left = rest(async || Ok(queue.poll().await?.map(|item| text(item.unwrap_or_default())))).await?;
        judged.lock().expect("one thread").judge(&left)
    })
}

fn work_queue(options: SimOptions) -> Ended {
    let ledger: Shared<Items> = Shared::default();
    let judged = ledger.clone();
    let round = move |client: Client, guest| {
        let ledger = ledger.clone();
        async move {
            let items = || ledger.lock().expect("one thread");
            let queue = WorkQueue::new(&client, "/queue");
            if host().chance(600) {
                let item = items().next(guest);
                items().maybe_put.insert(item.clone());
                queue.put(item.as_str()).await?;
                items().maybe_put.remove(&item);
                items().put.insert(item);
            }
            let work = queue.take_timeout(host().session_timeout() * 2).await?;
            let item = text(work.item().expect("items have data"));
            dawdle().await;
            if host().chance(100) {
                return work.requeue().await;
            }
            // Of no name of its own: done twice, there would be two.
            let receipt =
                Transaction::new().create("/job/log/receipt-", item.as_str(), CreateMode::PersistentSequential);
            work.done_with(receipt).await?;
            host().note("an item was done");
            Ok(())
        }
    };
    guests(options, WORK, round, || async move {
        let client = connect().await;
        let done = texts(&client, "/job/log").await?;
        let left = texts(&client, "/queue/entries").await?;
        let mut ledger = judged.lock().expect("one thread");
        for item in &done {
            ledger.took(item);
        }
        // Nothing is lost when somebody dies.
        ledger.failed_takes = 0;
        ledger.judge(&left)
    })
}

// ------------------------------------------------------------------------------------------------- several znodes, time to live

fn transactions(options: SimOptions) -> Ended {
    const SUM: i64 = 300;
    let round = |client: Client, guest: Guest| async move {
        let begin = Transaction::new()
            .create("/accounts", (), CreateMode::Persistent)
            .create("/accounts/0", "100", CreateMode::Persistent)
            .create("/accounts/1", "100", CreateMode::Persistent)
            .create("/accounts/2", "100", CreateMode::Persistent);
        match client.multi(begin).await {
            Err(error) if error.code() != Some(ErrorCode::NodeExists) => return Err(error.into()),
            _ => {}
        }
        if guest == 0 {
            // Whoever looks at all of them sees one state.
            let mut config = ConfigMap::open(&client, "/accounts", |all| {
                let mut sum = 0;
                for account in ["0", "1", "2"] {
                    sum += all.parse::<i64>(account)?;
                }
                if sum == SUM { Ok(all.zxid) } else { Err(format!("the sum is {sum}")) }
            })
            .await?;
            for _ in 0..host().below(5) {
                if let Ok(changed) = ambient::timeout(host().session_timeout(), config.changed()).await {
                    changed?;
                }
                assert_eq!(config.rejected(), None);
                host().note("a snapshot was whole");
            }
            return Ok(());
        }
        let (from, to) = (host().below(3), host().below(3));
        if from == to {
            return Ok(());
        }
        let number = |data: Option<Vec<u8>>| -> i64 { text(data.expect("it was created")).parse().expect("a number") };
        transact(&client, |tx| async move {
            let (from, to) = (format!("/accounts/{from}"), format!("/accounts/{to}"));
            let (a, b) = (number(tx.get(&from).await?), number(tx.get(&to).await?));
            breathe().await;
            tx.put(&from, (a - 1).to_string()).await?;
            tx.put(&to, (b + 1).to_string()).await
        })
        .await?;
        host().note("money was moved");
        Ok(())
    };
    guests(options, &[], round, || async {
        let client = connect().await;
        let sum: i64 = texts(&client, "/accounts").await?.iter().map(|text| text.parse::<i64>().unwrap_or(0)).sum();
        if sum == SUM { Ok(()) } else { Err(format!("the sum is {sum}")) }
    })
}

fn ttl(options: SimOptions) -> Ended {
    let round = |client: Client, guest: Guest| async move {
        let path = format!("/kept/{guest}");
        let node = TtlNode::start(&client, &path, "data", Duration::from_secs(10), Rejoin::Never)?;
        node.created().await?;
        let kept = node.kept();
        for _ in 0..3 {
            dawdle().await;
            let until = match &*kept.borrow() {
                Kept::Until(until) => *until,
                Kept::Ended(error) => return Err(error.clone()),
                other => panic!("{other:?}"),
            };
            let stat = client.read(Consistency::Linearizable).exists(&path).await?;
            if ambient::now() + WALL_SKEW < until {
                assert!(stat.is_some(), "{path} is gone, and was to stay for another {:?}", until - ambient::now());
                host().note("a kept znode was there");
            }
        }
        if host().chance(500) {
            node.close().await?;
        }
        Ok(())
    };
    guests(options, &[], round, || async { Ok(()) })
}
