//! The locks beside the plain mutex, against a server that cuts connections, ends sessions and moves its clock.

mod common;

use std::time::Duration;

use common::{Cut, Server, client, no_violations, poll_and_drop, soon, until};
use corral_client::{Client, CreateMode, ErrorCode, Transaction};
use corral_recipes::{
    Error, Loss, MultiLock, Mutex, Owner, ReentrantMutex, Revocation, Revoked, Revoker, Role, RwLayout, RwLock,
    Semaphore, TimedLease, WhenSuspended,
};

const LOCK: &str = "/locks/one";

#[tokio::test]
async fn an_owner_acquires_again_and_the_last_guard_releases() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let lock = ReentrantMutex::new(&a, LOCK);
    let (one, two) = (Owner::new("one"), Owner::unique());
    let outer = soon(lock.acquire(&one)).await.unwrap();
    let inner = soon(lock.clone().acquire(&one)).await.unwrap();
    assert_eq!((outer.token(), outer.depth()), (inner.token(), 2));
    assert_eq!(server.children(LOCK).len(), 1);
    // Another owner of the same handle waits like a stranger.
    let late = soon(lock.acquire_timeout(&two, Duration::from_millis(50))).await.unwrap_err();
    assert!(matches!(late, Error::Timeout { .. }), "{late}");
    soon(outer.release()).await.unwrap();
    assert!(inner.is_valid());
    assert!(soon(Mutex::new(&b, LOCK).try_acquire()).await.unwrap().is_none());
    let token = inner.token();
    soon(inner.release()).await.unwrap();
    let next = soon(lock.acquire(&two)).await.unwrap();
    assert!(next.token() > token);
    drop(next);
    until("nobody contends", || server.children(LOCK).is_empty()).await;
}

#[tokio::test]
async fn a_lost_hold_is_not_entered_again() {
    let server = Server::start().await;
    let a = client(&server).await;
    let lock = ReentrantMutex::new(&a, LOCK);
    let owner = Owner::new("one");
    let held = soon(lock.acquire(&owner)).await.unwrap();
    server.delete(held.path());
    assert_eq!(soon(held.lost()).await, Loss::Removed);
    let refused = soon(lock.acquire(&owner)).await.unwrap_err();
    assert_eq!(refused, Error::Lost(Loss::Removed));
    soon(held.release()).await.unwrap();
    assert!(soon(lock.acquire(&owner)).await.unwrap().is_valid());
}

#[tokio::test]
async fn readers_share_and_a_writer_is_alone() {
    let server = Server::start().await;
    let (a, b, c) = (client(&server).await, client(&server).await, client(&server).await);
    let lock = |client: &Client| RwLock::new(client, LOCK);
    let (first, second) = (soon(lock(&a).read()).await.unwrap(), soon(lock(&b).read()).await.unwrap());
    assert!(soon(lock(&c).try_write()).await.unwrap().is_none());
    let writer = lock(&c);
    let writing = tokio::spawn(async move { writer.write().await });
    until("three contend", || server.children(LOCK).len() == 3).await;
    // Who came after the writer waits for it, though readers hold.
    assert!(soon(lock(&a).try_read()).await.unwrap().is_none());
    let late = lock(&a);
    let reading = tokio::spawn(async move { late.read().await });
    until("four contend", || server.children(LOCK).len() == 4).await;
    let standings = soon(lock(&a).contenders()).await.unwrap();
    let roles: Vec<Role> = standings.iter().map(|standing| standing.role).collect();
    assert_eq!(roles, [Role::Shared, Role::Shared, Role::Exclusive, Role::Shared]);
    soon(first.release()).await.unwrap();
    assert!(!writing.is_finished());
    soon(second.release()).await.unwrap();
    let written = soon(writing).await.unwrap().unwrap();
    assert!(!reading.is_finished());
    written.guarded().set("/locks", "x", None).await.unwrap();
    soon(written.release()).await.unwrap();
    assert!(soon(reading).await.unwrap().unwrap().is_valid());
    no_violations(&server);
}

#[tokio::test]
async fn a_downgraded_writer_keeps_its_place_before_a_queued_writer() {
    for layout in [RwLayout::Curator, RwLayout::Kazoo] {
        let server = Server::start().await;
        let (a, b) = (client(&server).await, client(&server).await);
        let lock = |client: &Client| RwLock::new(client, LOCK).layout(layout);
        let writer = soon(lock(&a).write()).await.unwrap();
        let (queued, reader) = (lock(&b), lock(&b));
        let writing = tokio::spawn(async move { queued.write().await });
        until("two contend", || server.children(LOCK).len() == 2).await;
        let (held, token) = (writer.guarded(), writer.token());
        let reading = soon(writer.downgrade()).await.unwrap();
        assert!(reading.is_valid() && reading.token() > token);
        // The writer's token died in the same step.
        let refused = held.set("/locks", "late", None).await.unwrap_err();
        assert!(matches!(refused, Error::Fenced { .. }), "{refused}");
        assert_eq!(server.children(LOCK).len(), 2);
        assert!(!writing.is_finished());
        // A reader that comes now stands behind the queued writer.
        assert!(soon(reader.try_read()).await.unwrap().is_none());
        soon(reading.release()).await.unwrap();
        assert!(soon(writing).await.unwrap().unwrap().is_valid());
        no_violations(&server);
    }
}

#[tokio::test]
async fn a_downgrade_that_is_dropped_anywhere_leaves_nothing() {
    let server = Server::start().await;
    let a = client(&server).await;
    for polls in 0..10 {
        let writer = soon(RwLock::new(&a, LOCK).write()).await.unwrap();
        drop(poll_and_drop(writer.downgrade(), polls).await);
        until("nobody contends", || server.children(LOCK).is_empty()).await;
    }
}

#[tokio::test]
async fn an_owner_that_writes_may_read_and_one_that_reads_is_refused_to_write() {
    let server = Server::start().await;
    let a = client(&server).await;
    let lock = RwLock::new(&a, LOCK);
    let (one, two) = (Owner::new("one"), Owner::new("two"));
    let writer = soon(lock.write_as(&one)).await.unwrap();
    let reader = soon(lock.read_as(&one)).await.unwrap();
    assert!(writer.is_writer() && writer.token() == reader.token());
    soon(writer.release()).await.unwrap();
    // What is left is still the writer's hold: nobody comes between.
    assert!(soon(lock.try_read()).await.unwrap().is_none());
    soon(reader.release()).await.unwrap();
    let reader = soon(lock.read_as(&two)).await.unwrap();
    let refused = soon(lock.write_as(&two)).await.unwrap_err();
    assert!(matches!(refused, Error::UpgradeRefused { .. }), "{refused}");
    assert!(reader.is_valid());
}

/// Permits that are out never exceed the limit, wherever connections are cut.
#[tokio::test]
async fn no_more_permits_are_out_than_the_limit() {
    for every in [6, 9, 13] {
        let server = Server::start().await;
        let clients = [client(&server).await, client(&server).await, client(&server).await];
        server.state.lock().cut = Cut::EveryStep(every);
        let work = |client: Client, count: u32| {
            let server = server.clone();
            async move {
                let semaphore = Semaphore::new(&client, "/sem", 3).when_suspended(WhenSuspended::UntilDeadline);
                for _ in 0..4 {
                    let permits = semaphore.acquire(count).await.unwrap();
                    let out = server.children("/sem/leases").len();
                    assert!(out >= count as usize && out <= 3, "{out} are out");
                    permits.release().await.unwrap();
                }
            }
        };
        let [a, b, c] = clients.clone();
        soon(async { tokio::join!(work(a, 1), work(b, 2), work(c, 3)) }).await;
        server.state.lock().cut = Cut::Never;
        until("all are back", || server.children("/sem/leases").is_empty()).await;
        until("nobody waits", || server.children("/sem/locks").is_empty()).await;
        no_violations(&server);
    }
}

#[tokio::test]
async fn the_limit_is_the_trees_and_waiters_see_it_change() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let (mine, other) = (Semaphore::new(&a, "/sem", 2), Semaphore::new(&b, "/sem", 99));
    let held = soon(mine.acquire(2)).await.unwrap();
    assert_eq!(soon(other.limit()).await.unwrap(), 2);
    let refused = soon(other.acquire(3)).await.unwrap_err();
    assert!(matches!(refused, Error::BadArgument { .. }), "{refused}");
    assert!(soon(other.try_acquire(1)).await.unwrap().is_none());
    let late = other.clone();
    let waiting = tokio::spawn(async move { late.acquire(2).await });
    until("it waits first in the queue", || server.children("/sem/locks").len() == 1).await;
    soon(mine.set_limit(4)).await.unwrap();
    let second = soon(waiting).await.unwrap().unwrap();
    assert_eq!((second.count(), server.children("/sem/leases").len()), (2, 4));
    assert_eq!(server.data("/sem/limit").as_deref(), Some([0, 0, 0, 4].as_slice()));
    // Lowered: nobody loses anything, and nobody gets anything until enough came back.
    soon(mine.set_limit(1)).await.unwrap();
    assert!(held.is_valid() && second.is_valid());
    soon(held.release()).await.unwrap();
    assert!(soon(mine.try_acquire(1)).await.unwrap().is_none());
    soon(second.release()).await.unwrap();
    assert!(soon(mine.try_acquire(1)).await.unwrap().is_some());
}

#[tokio::test]
async fn who_waits_for_more_than_a_lowered_limit_is_told() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let (mine, other) = (Semaphore::new(&a, "/sem", 2), Semaphore::new(&b, "/sem", 2));
    let held = soon(mine.acquire(1)).await.unwrap();
    let waiting = tokio::spawn(async move { other.acquire(2).await });
    until("it waits", || server.children("/sem/locks").len() == 1).await;
    soon(mine.set_limit(1)).await.unwrap();
    let told = soon(waiting).await.unwrap().unwrap_err();
    assert!(matches!(told, Error::BadArgument { .. }), "{told}");
    until("it left", || server.children("/sem/locks").is_empty()).await;
    assert!(held.is_valid());
}

#[tokio::test]
async fn permits_go_with_their_session_and_a_dropped_acquire_leaves_none() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let (mine, other) = (Semaphore::new(&a, "/sem", 2), Semaphore::new(&b, "/sem", 2));
    let held = soon(mine.acquire(2)).await.unwrap();
    for polls in 0..14 {
        assert!(poll_and_drop(other.acquire(1), polls).await.is_none(), "there is none to be had");
    }
    until("nobody waits", || server.children("/sem/locks").is_empty()).await;
    assert_eq!(server.children("/sem/leases").len(), 2);
    let fence = held.fence().clone();
    server.expire(a.session_id().0);
    let next = soon(other.acquire(2)).await.unwrap();
    assert!(next.token() > fence.token);
    let loss = soon(held.lost()).await;
    assert!(matches!(loss, Loss::Removed | Loss::SessionEnded(_)), "{loss}");
    // One permit taken away by force ends the hold of all.
    let taken = server.children("/sem/leases").into_iter().map(|name| format!("/sem/leases/{name}"));
    let other = taken.into_iter().find(|path| path != next.path()).unwrap();
    next.guarded().set("/sem", "both", None).await.unwrap();
    server.delete(&other);
    let refused = next.guarded().set("/sem", "one", None).await.unwrap_err();
    assert!(matches!(refused, Error::Fenced { .. }), "{refused}");
    assert_eq!(soon(next.lost()).await, Loss::Removed);
    soon(next.release()).await.unwrap();
    assert_eq!(server.children("/sem/leases"), Vec::<String>::new());
}

#[tokio::test]
async fn several_locks_are_held_all_or_none() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let of = |client: &Client, names: &[&str]| {
        MultiLock::new(names.iter().map(|name| Mutex::new(client, format!("/locks/{name}")))).unwrap()
    };
    // Given in opposite orders, and never waiting in a circle.
    let work = |lock: MultiLock| async move {
        for _ in 0..10 {
            let guard = lock.acquire().await.unwrap();
            assert!(guard.is_valid());
            guard.release().await.unwrap();
        }
    };
    soon(async { tokio::join!(work(of(&a, &["x", "y", "z"])), work(of(&b, &["z", "y", "x"]))) }).await;
    let middle = soon(Mutex::new(&b, "/locks/y").acquire()).await.unwrap();
    assert!(soon(of(&a, &["x", "y", "z"]).try_acquire()).await.unwrap().is_none());
    let late = soon(of(&a, &["x", "y"]).acquire_timeout(Duration::from_millis(50))).await.unwrap_err();
    assert!(matches!(late, Error::Timeout { .. }), "{late}");
    until("x is free", || server.children("/locks/x").is_empty()).await;
    soon(middle.release()).await.unwrap();
    let all = soon(of(&a, &["z", "x"]).acquire()).await.unwrap();
    all.commit(Transaction::new().set("/locks", "1", None)).await.unwrap();
    let last = all.holds().last().unwrap();
    server.delete(last.path());
    assert_eq!(soon(all.lost()).await, Loss::Removed);
    let refused = all.commit(Transaction::new().set("/locks", "2", None)).await.unwrap_err();
    assert!(matches!(&refused, Error::Fenced { token, .. } if *token == last.token()), "{refused}");
    assert_eq!(server.data("/locks").as_deref(), Some(b"1".as_slice()));
    let twice = MultiLock::new([Mutex::new(&a, "/l"), Mutex::new(&a, "/l")]).unwrap_err();
    assert!(matches!(twice, Error::BadArgument { .. }), "{twice}");
}

#[tokio::test]
async fn a_holder_is_asked_to_give_up_and_forced_after_its_grace() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let revoker = Revoker::new(&b);
    let held = soon(Mutex::new(&a, LOCK).identity("a").acquire()).await.unwrap();
    let asked = Revocation { grace: Some(Duration::from_secs(60)), reason: "maintenance".into() };
    let (path, request) = (held.path().to_owned(), asked.clone());
    let patient = tokio::spawn({
        let revoker = revoker.clone();
        async move { revoker.revoke(&path, &request).await }
    });
    assert_eq!(soon(held.revocation()).await, Some(asked));
    assert!(held.is_valid());
    soon(held.release()).await.unwrap();
    assert_eq!(soon(patient).await.unwrap().unwrap(), Revoked::GaveUp);
    // One that does not listen.
    let deaf = soon(Mutex::new(&a, LOCK).acquire()).await.unwrap();
    let now = Revocation { grace: Some(Duration::ZERO), reason: String::new() };
    assert_eq!(soon(revoker.revoke(deaf.path(), &now)).await.unwrap(), Revoked::Forced);
    let refused = deaf.guarded().set("/locks", "late", None).await.unwrap_err();
    assert!(matches!(refused, Error::Fenced { .. }), "{refused}");
    assert_eq!(soon(deaf.lost()).await, Loss::Removed);
    assert_eq!(soon(deaf.revocation()).await, None);
    assert!(!soon(revoker.request(deaf.path(), &now)).await.unwrap());
}

#[tokio::test]
async fn curators_word_reaches_the_holder_and_a_waiting_one_learns_it_when_it_holds() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let first = soon(Mutex::new(&a, LOCK).acquire()).await.unwrap();
    let lock = Mutex::new(&b, LOCK);
    let waiting = tokio::spawn(async move { lock.acquire().await });
    until("two contend", || server.children(LOCK).len() == 2).await;
    let behind = Mutex::new(&a, LOCK).contenders().await.unwrap().remove(1).path;
    server.set(&behind, "__REVOKE__");
    soon(first.release()).await.unwrap();
    let second = soon(waiting).await.unwrap().unwrap();
    assert_eq!(soon(second.revocation()).await, Some(Revocation::default()));
}

#[tokio::test]
async fn a_lease_is_taken_over_by_the_servers_clock_alone() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let lease = |client: &Client, owner: &str| {
        TimedLease::new(client, "/leases/one", owner, Duration::from_millis(400)).unwrap()
    };
    let first = soon(lease(&a, "a").acquire()).await.unwrap();
    assert_eq!(soon(lease(&b, "b").owner()).await.unwrap().as_deref(), Some("a"));
    assert!(soon(lease(&b, "b").try_acquire()).await.unwrap().is_none());
    // The server's time stands still: however long it waits, it is not over.
    let other = lease(&b, "b");
    let waiting = tokio::spawn(async move { other.acquire().await });
    server.advance(399);
    soon(first.renew()).await.unwrap();
    server.advance(399);
    assert!(soon(lease(&b, "c").try_acquire()).await.unwrap().is_none());
    assert!(!waiting.is_finished());
    server.advance(1);
    let second = soon(waiting).await.unwrap().unwrap();
    assert!(second.token() > first.token());
    let refused = first.guarded().set("/leases", "late", None).await.unwrap_err();
    assert!(matches!(refused, Error::Fenced { .. }), "{refused}");
    assert!(matches!(soon(first.renew()).await.unwrap_err(), Error::Fenced { .. }));
    second.guarded().set("/leases", "second", None).await.unwrap();
    // Not renewed in time, and not taken over: its owner may still renew.
    server.advance(10_000);
    soon(second.renew()).await.unwrap();
    assert!(soon(lease(&a, "a").try_acquire()).await.unwrap().is_none());
    soon(second.release()).await.unwrap();
    assert!(soon(lease(&a, "a").try_acquire()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_lease_survives_its_owners_session_and_is_resumed_with_the_same_token() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let lease = |client: &Client| TimedLease::new(client, "/l", "host-1", Duration::from_secs(60)).unwrap();
    let before = soon(lease(&a).acquire()).await.unwrap();
    server.expire(a.session_id().0);
    let after = soon(lease(&b).acquire()).await.unwrap();
    assert_eq!((before.token(), before.fence()), (after.token(), after.fence()));
    // A dropped acquire of an owner that had it before leaves it alone.
    assert!(poll_and_drop(lease(&b).acquire(), 3).await.is_none_or(|again| again.is_ok()));
    soon(after.renew()).await.unwrap();
}

/// A lease that nobody has is reaped, and its tenures' numbers begin anew.
#[tokio::test]
async fn a_tenure_of_the_past_is_dead_also_when_the_lease_began_anew() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let lease = |client: &Client, owner: &str| TimedLease::new(client, "/l", owner, Duration::from_secs(60)).unwrap();
    server.set("/result", "none");
    let first = soon(lease(&a, "a").acquire()).await.unwrap();
    server.delete(&first.fence().path);
    server.delete("/l");
    let second = soon(lease(&b, "b").acquire()).await.unwrap();
    let refused = first.guarded().set("/result", "late", None).await.unwrap_err();
    assert!(matches!(refused, Error::Fenced { .. }), "{refused}");
    let refused = soon(first.renew()).await.unwrap_err();
    assert!(matches!(refused, Error::Fenced { .. }), "{refused}");
    let refused = soon(first.release()).await.unwrap_err();
    assert!(matches!(refused, Error::Fenced { .. }), "{refused}");
    assert_eq!(soon(lease(&a, "a").owner()).await.unwrap().as_deref(), Some("b"));
    second.guarded().set("/result", "second", None).await.unwrap();
}

#[tokio::test]
async fn a_dropped_acquire_of_a_lease_gives_it_back() {
    let server = Server::start().await;
    let a = client(&server).await;
    for polls in 0..16 {
        let lease = TimedLease::new(&a, "/l", format!("owner-{polls}"), Duration::from_secs(3_600)).unwrap();
        if let Some(tenure) = poll_and_drop(lease.acquire(), polls).await {
            soon(tenure.unwrap().release()).await.unwrap();
        }
        let other = TimedLease::new(&a, "/l", "other", Duration::from_secs(3_600)).unwrap();
        // In the background; never only after an hour.
        soon(soon(other.acquire()).await.unwrap().release()).await.unwrap();
    }
}

#[tokio::test]
async fn after_an_unclean_loss_the_next_holder_waits_for_the_lock_delay() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let lock = |client: &Client, ms| Mutex::new(client, LOCK).lock_delay(Duration::from_millis(ms));
    // Released in order: no delay, though the delay is a day.
    let day = 86_400_000;
    soon(soon(lock(&a, day).acquire()).await.unwrap().release()).await.unwrap();
    soon(soon(lock(&b, day).acquire()).await.unwrap().release()).await.unwrap();
    // Not released: it is the dead holder's delay that counts.
    let dead = soon(lock(&a, day).acquire()).await.unwrap();
    server.expire(a.session_id().0);
    let late = soon(lock(&b, 0).acquire_timeout(Duration::from_millis(200))).await.unwrap_err();
    assert!(matches!(late, Error::Timeout { .. }), "{late}");
    assert!(!dead.is_valid());
    // Nobody waits, and the mark is still there: its directory is no container.
    assert!(server.data(LOCK).is_some_and(|mark| mark.starts_with(b"held 86400000 _c_")));
    assert!(!server.state.lock().containers.contains(LOCK));
    // Somebody who knows better takes the mark away.
    server.set(LOCK, "");
    let next = soon(lock(&b, 1).acquire()).await.unwrap();
    server.delete(next.path());
    soon(next.lost()).await;
    // A millisecond is waited out.
    assert!(soon(lock(&b, 0).acquire()).await.unwrap().is_valid());
}

/// A holder reads its contender again when something happened to it; that this fails does not mean that it is gone.
#[tokio::test]
async fn a_contender_that_cannot_be_read_now_is_read_again_and_one_that_never_can_is_deleted_at_the_end() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let held = soon(Mutex::new(&a, LOCK).acquire()).await.unwrap();
    server.state.lock().refuse_reads = Some((held.path().to_owned(), ErrorCode::ThrottledOp, 2));
    server.set(held.path(), "__REVOKE__");
    assert_eq!(soon(held.revocation()).await, Some(Revocation::default()));
    assert!(held.is_valid());
    server.state.lock().refuse_reads = Some((held.path().to_owned(), ErrorCode::NoAuth, 1));
    server.set(held.path(), "x");
    let loss = soon(held.lost()).await;
    assert!(matches!(loss, Loss::Unreadable(_)), "{loss}");
    // It stands until the guard is given up, and then it is deleted, not taken for gone.
    assert!(soon(Mutex::new(&b, LOCK).try_acquire()).await.unwrap().is_none());
    soon(held.release()).await.unwrap();
    assert_eq!(server.children(LOCK), Vec::<String>::new());
}

#[tokio::test]
async fn strangers_names_do_not_disturb_a_read_write_lock() {
    let server = Server::start().await;
    let (a, other) = (client(&server).await, client(&server).await);
    other.create("/locks", (), CreateMode::Container).await.unwrap();
    other.create(LOCK, (), CreateMode::Container).await.unwrap();
    let create = async |name: &str| {
        other.create(&format!("{LOCK}/{name}"), "x", CreateMode::EphemeralSequential).await.unwrap().path
    };
    create("config-").await;
    let reader = create("0123456789abcdef0123456789abcdef__rlock__").await;
    assert!(soon(RwLock::new(&a, LOCK).try_write()).await.unwrap().is_none());
    let shared = soon(RwLock::new(&a, LOCK).try_read()).await.unwrap().expect("readers share");
    soon(shared.release()).await.unwrap();
    other.delete(&reader, None).await.unwrap();
    assert!(soon(RwLock::new(&a, LOCK).try_write()).await.unwrap().is_some());
}
