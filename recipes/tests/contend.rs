//! Locks and elections against a server that cuts connections, ends sessions and falls silent.

#[allow(dead_code)]
#[path = "../../client/tests/fake/mod.rs"]
mod fake;

use std::time::Duration;

use corral_client::{Client, CreateMode, EndReason, Transaction};
use corral_recipes::{Election, Error, Fence, Guarded, Layout, Loss, Mutex, Next, WhenSuspended};
use fake::{Cut, Server};
use futures::StreamExt;

const LOCK: &str = "/locks/one";

async fn client(server: &Server) -> Client {
    Client::connect(&server.address).await.unwrap()
}

/// For what must happen, and soon: a test that hangs says where.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("this must not take twenty seconds")
}

/// Waits until so many contend.
async fn until_contenders(lock: &Mutex, count: usize) {
    soon(async {
        while lock.contenders().await.unwrap().len() != count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

fn no_violations(server: &Server) {
    assert_eq!(server.state.lock().violations, Vec::<String>::new());
}

#[tokio::test]
async fn the_lock_goes_to_one_after_the_other_and_tokens_grow() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let (lock_a, lock_b) = (Mutex::new(&a, LOCK).identity("a"), Mutex::new(&b, LOCK).identity("b"));
    let first = soon(lock_a.acquire()).await.unwrap();
    assert!(first.is_valid());
    let waiting = tokio::spawn(async move { lock_b.acquire().await });
    until_contenders(&lock_a, 2).await;
    let standings = lock_a.contenders().await.unwrap();
    assert_eq!(standings[0].identity.as_deref(), Some(b"a".as_slice()));
    assert_eq!(standings[1].identity.as_deref(), Some(b"b".as_slice()));
    assert_eq!((standings[0].token, standings[0].session), (first.token(), a.session_id()));
    assert!(!waiting.is_finished());
    let (token, hold) = (first.token(), first.guarded());
    soon(first.release()).await.unwrap();
    let second = soon(waiting).await.unwrap().unwrap();
    assert!(second.token() > token, "{} after {token}", second.token());
    let late = hold.set("/locks", "late", None).await.unwrap_err();
    assert!(matches!(late, Error::Fenced { token: dead, .. } if dead == token), "{late}");
    second.set_and_check(&a).await;
    no_violations(&server);
}

/// A guarded write that must pass.
trait Passes {
    async fn set_and_check(&self, reader: &Client);
}

impl Passes for corral_recipes::Guard {
    async fn set_and_check(&self, reader: &Client) {
        self.guarded().set("/locks", "done", None).await.unwrap();
        assert_eq!(reader.get("/locks").await.unwrap().bytes(), b"done");
    }
}

#[tokio::test]
async fn a_dropped_or_timed_out_acquire_leaves_no_contender() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let (lock_a, lock_b) = (Mutex::new(&a, LOCK), Mutex::new(&b, LOCK));
    let held = soon(lock_a.acquire()).await.unwrap();
    let late = soon(lock_b.acquire_timeout(Duration::from_millis(50))).await.unwrap_err();
    assert!(matches!(late, Error::Timeout { .. }), "{late}");
    until_contenders(&lock_a, 1).await;
    // Dropped at every point of its way, the first poll included.
    for polls in 0..12 {
        let mut acquire = std::pin::pin!(lock_b.acquire());
        for _ in 0..polls {
            tokio::select! {
                biased;
                _ = &mut acquire => panic!("somebody else holds the lock"),
                () = tokio::task::yield_now() => {}
            }
        }
    }
    until_contenders(&lock_a, 1).await;
    drop(held);
    let next = soon(lock_b.acquire()).await.unwrap();
    soon(next.release()).await.unwrap();
    until_contenders(&lock_a, 0).await;
    no_violations(&server);
}

#[tokio::test]
async fn trying_takes_a_free_lock_and_leaves_nothing_at_a_held_one() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let (lock_a, lock_b) = (Mutex::new(&a, LOCK), Mutex::new(&b, LOCK));
    let held = soon(lock_a.try_acquire()).await.unwrap().expect("it is free");
    assert!(soon(lock_b.try_acquire()).await.unwrap().is_none());
    assert_eq!(lock_a.contenders().await.unwrap().len(), 1);
    soon(held.release()).await.unwrap();
    assert!(soon(lock_b.try_acquire()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_holder_whose_session_ended_is_told_and_its_token_is_dead() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let policy = WhenSuspended::UntilDeadline;
    let first = soon(Mutex::new(&a, LOCK).when_suspended(policy).acquire()).await.unwrap();
    let fence: Fence = first.fence().clone();
    let lock_b = Mutex::new(&b, LOCK);
    let waiting = tokio::spawn(async move { lock_b.acquire().await });
    until_contenders(&Mutex::new(&b, LOCK), 2).await;
    server.expire(a.session_id().0);
    let second = soon(waiting).await.unwrap().unwrap();
    assert!(second.token() > fence.token);
    // The deletion may be seen before the end of the session behind it.
    let loss = soon(first.lost()).await;
    assert!(matches!(loss, Loss::Removed | Loss::SessionEnded(EndReason::Expired)), "{loss}");
    assert!(!first.is_valid() && first.valid_until().is_none());
    // Handed to a process with a session of its own, the old token does no harm either.
    let stale = Guarded::new(b.clone(), fence.clone());
    let refused = stale.commit(Transaction::new().set("/locks", "stale", None)).await.unwrap_err();
    assert!(matches!(refused, Error::Fenced { token, .. } if token == fence.token), "{refused}");
    soon(first.release()).await.unwrap();
    second.set_and_check(&b).await;
}

#[tokio::test]
async fn connections_cut_everywhere_lose_no_turn_and_leak_no_contender() {
    for every in [5, 7, 11] {
        let server = Server::start().await;
        let (a, b) = (client(&server).await, client(&server).await);
        server.set("/count", "0");
        server.state.lock().cut = Cut::EveryStep(every);
        let work = |client: Client| async move {
            let lock = Mutex::new(&client, LOCK).when_suspended(WhenSuspended::UntilDeadline);
            let mut tokens = Vec::new();
            for _ in 0..5 {
                let guard = lock.acquire().await.unwrap();
                let count: u64 = client.get("/count").await.unwrap().bytes().utf8().parse().unwrap();
                // Any version: only the lock keeps the two apart.
                guard.guarded().set("/count", (count + 1).to_string(), None).await.unwrap();
                tokens.push(guard.token());
                guard.release().await.unwrap();
            }
            tokens
        };
        let (tokens_a, tokens_b) = soon(async { tokio::join!(work(a.clone()), work(b.clone())) }).await;
        server.state.lock().cut = Cut::Never;
        assert!(tokens_a.is_sorted() && tokens_b.is_sorted(), "cut every {every} steps");
        assert_eq!(soon(a.get("/count")).await.unwrap().bytes(), b"10", "cut every {every} steps");
        assert_eq!(soon(Mutex::new(&a, LOCK).contenders()).await.unwrap(), [], "cut every {every} steps");
        no_violations(&server);
    }
}

trait Utf8 {
    fn utf8(&self) -> &str;
}

impl Utf8 for [u8] {
    fn utf8(&self) -> &str {
        std::str::from_utf8(self).unwrap()
    }
}

#[tokio::test]
async fn a_deleted_contender_loses_its_hold_and_a_waiting_one_queues_again() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let (lock_a, lock_b) = (Mutex::new(&a, LOCK), Mutex::new(&b, LOCK));
    let first = soon(lock_a.acquire()).await.unwrap();
    let waiting = tokio::spawn(async move { lock_b.acquire().await });
    until_contenders(&lock_a, 2).await;
    let behind = lock_a.contenders().await.unwrap().remove(1);
    server.delete(&behind.path);
    soon(async {
        loop {
            match lock_a.contenders().await.unwrap().get(1) {
                Some(again) if again.path != behind.path => return,
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    })
    .await;
    server.delete(first.path());
    assert_eq!(soon(first.lost()).await, Loss::Removed);
    assert!(!first.is_valid());
    assert!(soon(waiting).await.unwrap().unwrap().is_valid());
    soon(first.release()).await.unwrap();
}

#[tokio::test]
async fn a_broken_connection_ends_the_hold_or_not_as_the_policy_says() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let stops = soon(Mutex::new(&a, "/locks/stop").acquire()).await.unwrap();
    let goes_on =
        soon(Mutex::new(&b, "/locks/go").when_suspended(WhenSuspended::UntilDeadline).acquire()).await.unwrap();
    server.cut_all();
    assert_eq!(soon(stops.lost()).await, Loss::Suspended);
    assert!(!stops.is_valid());
    // It counts as lost for good, though the session lives on, and the contender stays until it is given up.
    soon(a.sync("/")).await.unwrap();
    assert!(!stops.is_valid());
    assert!(server.exists(stops.path()));
    let path = stops.path().to_owned();
    soon(stops.release()).await.unwrap();
    assert!(!server.exists(&path));
    soon(b.sync("/")).await.unwrap();
    assert!(goes_on.is_valid());
    soon(goes_on.release()).await.unwrap();
}

#[tokio::test]
async fn a_silent_server_ends_the_hold_at_the_local_deadline() {
    let server = Server::start().await;
    server.state.lock().timeout_ms = 900;
    let a = client(&server).await;
    let hold = soon(Mutex::new(&a, LOCK).when_suspended(WhenSuspended::UntilDeadline).acquire()).await.unwrap();
    let before = hold.valid_until().expect("it holds");
    server.state.lock().mute = true;
    let loss = soon(hold.lost()).await;
    let now = tokio::time::Instant::now();
    assert_eq!(loss, Loss::DeadlinePassed);
    assert!(now >= before && now < before + Duration::from_millis(900), "{:?}", now.duration_since(before));
    assert!(!hold.is_valid());
}

#[tokio::test]
async fn observers_see_every_leader_and_what_it_proclaims() {
    let server = Server::start().await;
    let (a, b, c) = (client(&server).await, client(&server).await, client(&server).await);
    let election = |client: &Client| Election::new(client, "/service/election");
    let mut seen = election(&c).observe();
    let mut next = async || soon(seen.next()).await.expect("the stream goes on").unwrap();
    assert_eq!(next().await, None);
    let first = soon(election(&a).campaign("a")).await.unwrap();
    let shown = next().await.expect("a leads");
    assert_eq!((shown.data.as_deref(), shown.token), (Some(b"a".as_slice()), first.token()));
    assert_eq!(shown.session, a.session_id());
    first.proclaim("a at work").await.unwrap();
    assert_eq!(next().await.expect("a leads").data.as_deref(), Some(b"a at work".as_slice()));
    let candidate = election(&b);
    let waiting = tokio::spawn(async move { candidate.campaign("b").await });
    soon(async {
        while election(&c).candidates().await.unwrap().len() < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let (old, path) = (first.token(), first.path().to_owned());
    soon(first.resign()).await.unwrap();
    let second = soon(waiting).await.unwrap().unwrap();
    assert!(second.token() > old);
    assert!(second.path() != path);
    assert_eq!(next().await.expect("b leads").token, second.token());
    assert_eq!(election(&c).leader().await.unwrap().expect("b leads").token, second.token());
    drop(second);
    assert_eq!(next().await, None);
}

#[tokio::test]
async fn run_campaigns_again_until_the_work_is_done() {
    let server = Server::start().await;
    let a = client(&server).await;
    let mut tokens = Vec::new();
    let election = Election::new(&a, "/service/election").layout(Layout::CuratorLock);
    let run = election.run("a", |hold| {
        tokens.push(hold.token());
        let next = if tokens.len() < 3 { Next::Requeue } else { Next::Leave };
        async move { next }
    });
    soon(run).await.unwrap();
    assert_eq!(tokens.len(), 3);
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
    assert_eq!(election.leader().await.unwrap(), None);
}

#[tokio::test]
async fn run_cuts_the_work_short_when_the_leadership_is_lost() {
    let server = Server::start().await;
    let a = client(&server).await;
    let (led, mut leading) = tokio::sync::mpsc::unbounded_channel();
    let election = Election::new(&a, "/service/election");
    let run = tokio::spawn(async move {
        election
            .run("a", |hold| {
                led.send(hold.path().to_owned()).unwrap();
                std::future::pending()
            })
            .await
    });
    let first = soon(leading.recv()).await.unwrap();
    server.delete(&first);
    let second = soon(leading.recv()).await.unwrap();
    assert_ne!(first, second);
    server.expire(a.session_id().0);
    let ended = soon(run).await.unwrap().unwrap_err();
    assert!(matches!(&ended, Error::Client(error) if error.is_session_end()), "{ended}");
}

#[tokio::test]
async fn clients_of_other_libraries_stand_in_the_same_queue() {
    let server = Server::start().await;
    let (a, other) = (client(&server).await, client(&server).await);
    other.create("/locks", (), CreateMode::Container).await.unwrap();
    other.create(LOCK, (), CreateMode::Container).await.unwrap();
    let kazoo = other
        .create(&format!("{LOCK}/0123456789abcdef0123456789abcdef__lock__"), "k", CreateMode::EphemeralSequential)
        .await
        .unwrap();
    let stranger = other.create(&format!("{LOCK}/config"), "x", CreateMode::Persistent).await.unwrap();
    let lock = Mutex::new(&a, LOCK);
    assert!(soon(lock.try_acquire()).await.unwrap().is_none());
    let late = soon(lock.acquire_timeout(Duration::from_millis(50))).await.unwrap_err();
    assert!(matches!(late, Error::Timeout { .. }), "{late}");
    other.delete(&kazoo.path, None).await.unwrap();
    let held = soon(lock.acquire()).await.unwrap();
    assert!(held.path().starts_with(&format!("{LOCK}/_c_")), "{}", held.path());
    assert!(server.exists(&stranger.path));
}
