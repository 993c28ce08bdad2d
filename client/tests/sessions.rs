//! A client against a server that cuts connections, expires sessions, falls silent: what a program sees of it.

mod fake;

use std::time::Duration;

use corral_client::{
    Acl, Client, Consistency, CreateMode, CreateOptions, EndReason, Error, ErrorCode, EventKind, FeedItem, FeedOptions,
    OpResult, ReadRequest, ReadResult, SessionState, Transaction, WatchEvent, WatchMode,
};
use fake::{Cut, Server};

async fn client(server: &Server) -> Client {
    Client::connect(&server.address).await.unwrap()
}

/// For what must happen, and soon: a test that hangs says where.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("this must not take twenty seconds")
}

/// Waits for something that the other side does.
async fn until(mut done: impl FnMut() -> bool) {
    soon(async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn every_operation_gives_what_the_server_said() {
    let server = Server::start().await;
    let client = client(&server).await;
    let created = client.create("/a", "one", CreateMode::Persistent).await.unwrap();
    assert_eq!((created.path.as_str(), created.stat.czxid, created.name()), ("/a", created.zxid.as_i64(), "a"));
    assert_eq!(client.get("/a").await.unwrap().bytes(), b"one");
    assert_eq!(client.set("/a", (), Some(0)).await.unwrap().version, 1);
    assert_eq!(client.get("/a").await.unwrap().data, None, "null is not empty");
    client.set("/a", "", None).await.unwrap();
    assert_eq!(client.get("/a").await.unwrap().data.as_deref(), Some(b"".as_slice()));
    let refused = client.set("/a", "x", Some(7)).await.unwrap_err();
    assert_eq!(
        (refused.to_string().as_str(), refused.code()),
        ("set /a: version does not match", Some(ErrorCode::BadVersion))
    );
    assert_eq!(client.exists("/b").await.unwrap(), None);
    assert_eq!(client.exists("/a").await.unwrap().unwrap().version, 2);
    let first = client.create("/a/n-", "", CreateMode::EphemeralSequential).await.unwrap();
    assert_eq!(first.path, "/a/n-0000000000");
    assert_eq!(first.stat.ephemeral_owner, client.session_id().0);
    let (children, stat) = client.get_children_with_stat("/a").await.unwrap();
    assert_eq!((children, stat.num_children), (vec!["n-0000000000".to_owned()], 1));
    assert_eq!(client.get_ephemerals("/a").await.unwrap(), ["/a/n-0000000000"]);
    client.sync("/a").await.unwrap();
    let read = client.read(Consistency::Linearizable).get_children("/a").await.unwrap();
    assert_eq!(read.len(), 1);
    client.delete("/a/n-0000000000", None).await.unwrap();
    assert_eq!(client.delete("/a/x", None).await.unwrap_err().to_string(), "delete /a/x: node does not exist");
    assert_eq!(client.state(), SessionState::Connected);
    soon(client.close()).await.unwrap();
    assert_eq!(client.state(), SessionState::Closed);
    assert_eq!(server.sessions(), 0);
    let late = client.get("/a").await.unwrap_err();
    assert!(late.is_session_end() && !late.outcome_unknown());
    assert_eq!(late.to_string(), "get /a: the client is closed");
    client.close().await.unwrap();
}

#[tokio::test]
async fn a_multi_is_done_or_says_which_operation_was_not() {
    let server = Server::start().await;
    let client = Client::connect(&format!("{}/app", server.address)).await.unwrap();
    client.create("/", "", CreateMode::Persistent).await.unwrap();
    let done = Transaction::new().check("/", Some(0)).create("/a", "1", CreateMode::Persistent).set("/a", "2", Some(0));
    let results = client.multi(done.and(Transaction::new().delete("/a", None))).await.unwrap();
    assert!(matches!(
        &results[..],
        [OpResult::Checked, OpResult::Created(created), OpResult::Set(stat), OpResult::Deleted]
            if created.path == "/a" && stat.version == 1
    ));
    let refused = Transaction::new().create("/b", "", CreateMode::Persistent).check("/c", None).delete("/d", None);
    let error = client.multi(refused).await.unwrap_err();
    assert_eq!(error.to_string(), "multi: operation 1 (check /c): node does not exist");
    assert!(!server.exists("/app/b"));
}

#[tokio::test]
async fn a_chroot_is_put_on_and_taken_off_everywhere() {
    let server = Server::start().await;
    let client = Client::connect(&format!("{}/app", server.address)).await.unwrap();
    client.create("/", "root", CreateMode::Persistent).await.unwrap();
    let mut watcher = client.watch("/", WatchMode::Recursive).await.unwrap();
    let created = client.create("/q-", "", CreateMode::EphemeralSequential).await.unwrap();
    assert_eq!(created.path, "/q-0000000000");
    assert!(server.exists("/app/q-0000000000"));
    assert_eq!(client.get_ephemerals("/").await.unwrap(), ["/q-0000000000"]);
    let Some(WatchEvent::Node(event)) = soon(watcher.next()).await else { panic!("no event") };
    assert_eq!((event.kind, event.path.as_str()), (EventKind::NodeCreated, "/q-0000000000"));
    assert_eq!(client.get("/x").await.unwrap_err().to_string(), "get /x: node does not exist");
    let (_, watch) = client.get_and_watch("/").await.unwrap();
    server.set("/app", "new");
    assert_eq!(soon(watch).await.unwrap().path, "/");
}

#[tokio::test]
async fn bad_arguments_are_refused_before_anything_is_sent() {
    let server = Server::start().await;
    let client = client(&server).await;
    assert_eq!(client.get("a").await.unwrap_err().to_string(), "get: \"a\" is not a valid path");
    let error = client.create("/a/", "", CreateMode::Persistent).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::BadArguments));
    client.create("/q", "", CreateMode::Persistent).await.unwrap();
    let numbered = client.create("/q/", "", CreateMode::PersistentSequential).await.unwrap();
    assert_eq!(numbered.path, "/q/0000000000");
    let ttl = CreateOptions::new(CreateMode::Persistent).ttl(Duration::from_secs(1));
    let error = client.create("/t", "", ttl).await.unwrap_err();
    assert_eq!(error.to_string(), "create /t: only the TTL modes have a time to live");
    let error = client.set("/q", vec![0; 5 << 20], None).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }) && !error.is_retryable(), "{error}");
    assert_eq!(server.state.lock().executed, ["1 create /q", "2 create /q/"]);
}

/// One of each kind of write, pipelined, with a connection that is cut all the time: each is done once, in order, and its
/// own result comes back.
async fn writes_are_done_once(cut: Cut) {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create("/q", "", CreateMode::Persistent).await.unwrap();
    server.state.lock().cut = cut;
    let rounds: u32 = 12;
    let mut expected = vec!["1 create /q".to_owned()];
    let mut calls = Vec::new();
    for round in 0..rounds {
        let n = |k: u32| 2 + round * 5 + k;
        calls.push((
            client.create("/q/n-", "x", CreateMode::PersistentSequential),
            client.set("/q", format!("{round}"), Some(2 * round as i32)),
            client.set("/q", "never", Some(0x7fff_0000)),
            client.multi(
                Transaction::new().create("/m", "", CreateMode::Ephemeral).set("/q", "m", None).delete("/m", None),
            ),
            client.delete("/missing", None),
            client.get("/q"),
        ));
        expected.push(format!("{} create /q/n-", n(0)));
        expected.push(format!("{} set /q", n(1)));
        expected.push(format!("{} set /q", n(2)));
        expected.push(format!("{} multi 3", n(3)));
        expected.push(format!("{} delete /missing", n(4)));
    }
    for (round, (create, set, never, multi, delete, get)) in calls.into_iter().enumerate() {
        let created = soon(create).await.unwrap();
        assert_eq!(created.path, format!("/q/n-{round:010}"), "{cut:?}");
        assert_eq!(soon(set).await.unwrap().version, 2 * round as i32 + 1, "{cut:?}");
        assert_eq!(soon(never).await.unwrap_err().code(), Some(ErrorCode::BadVersion));
        let results = soon(multi).await.unwrap();
        assert!(
            matches!(&results[..], [OpResult::Created(_), OpResult::Set(stat), OpResult::Deleted] if stat.version == 2 * round as i32 + 2)
        );
        assert_eq!(soon(delete).await.unwrap_err().code(), Some(ErrorCode::NoNode));
        // The read is behind its own round, and not behind a later one unless it was sent again.
        assert!(soon(get).await.unwrap().stat.version >= 2 * round as i32 + 2, "{cut:?}");
    }
    soon(client.close()).await.unwrap();
    let state = server.state.lock();
    assert_eq!(state.executed, expected, "{cut:?}");
    assert_eq!(state.violations, [""; 0], "{cut:?}");
    assert!(state.connects > 1, "{cut:?} never cut anything");
}

#[tokio::test]
async fn every_write_is_done_exactly_once_whatever_step_the_connection_is_cut_at() {
    for k in [3, 4, 5, 6, 7, 8, 9, 11, 16, 17, 23, 40, 61] {
        writes_are_done_once(Cut::EveryStep(k)).await;
    }
}

/// Which way the bytes go that are counted.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    ToServer,
    ToClient,
}

/// A proxy that cuts its first connection after so many bytes one way, and carries all later ones to the end. Tells
/// whether it did cut.
async fn cutting_proxy(
    server: String,
    way: Way,
    bytes: usize,
) -> (String, std::sync::Arc<std::sync::atomic::AtomicBool>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let cut = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let did_cut = cut.clone();
    tokio::spawn(async move {
        let mut is_first = true;
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&server).await.unwrap();
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            let limit = |this: Way| if is_first && this == way { bytes } else { usize::MAX };
            let limits = (limit(Way::ToServer), limit(Way::ToClient));
            is_first = false;
            let cut = cut.clone();
            tokio::spawn(async move {
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                // `true`: the limit was reached.
                async fn carry(
                    from: &mut (impl AsyncReadExt + Unpin),
                    to: &mut (impl AsyncWriteExt + Unpin),
                    mut left: usize,
                ) -> bool {
                    let mut buffer = [0; 4096];
                    loop {
                        let room = left.min(buffer.len());
                        match from.read(&mut buffer[..room]).await {
                            Ok(n) if n > 0 && to.write_all(&buffer[..n]).await.is_ok() => left -= n,
                            _ => return false,
                        }
                        if left == 0 {
                            return true;
                        }
                    }
                }
                // The end of either way is the end of both: the sockets are dropped.
                let reached = tokio::select! {
                    reached = carry(&mut from_client, &mut to_server, limits.0) => reached,
                    reached = carry(&mut from_server, &mut to_client, limits.1) => reached,
                };
                cut.fetch_or(reached, std::sync::atomic::Ordering::SeqCst);
            });
        }
    });
    (address, did_cut)
}

/// One of each kind of write, one after the other, through a connection that breaks after so many bytes.
async fn cut_after(way: Way, bytes: usize) -> bool {
    let server = Server::start().await;
    let (address, cut) = cutting_proxy(server.address.clone(), way, bytes).await;
    let client = soon(Client::connect(&address)).await.unwrap();
    let calls = (
        client.create("/a", "one", CreateMode::Persistent),
        client.create("/a/n-", "", CreateMode::EphemeralSequential),
        client.set("/a", "two", Some(0)),
        client.multi(Transaction::new().check("/a", Some(1)).set("/a", "three", Some(1)).create(
            "/b",
            "",
            CreateMode::Persistent,
        )),
        client.delete("/b", Some(0)),
        client.set_acl("/a", Acl::open(), None),
        client.set("/a", "refused", Some(7)),
        client.create("/a/n-", "", CreateMode::PersistentSequential),
    );
    let at = format!("{bytes} bytes {way:?}");
    assert_eq!(soon(calls.0).await.unwrap().path, "/a", "{at}");
    assert_eq!(soon(calls.1).await.unwrap().path, "/a/n-0000000000", "{at}");
    assert_eq!(soon(calls.2).await.unwrap().version, 1, "{at}");
    assert_eq!(soon(calls.3).await.unwrap().len(), 3, "{at}");
    soon(calls.4).await.unwrap();
    assert_eq!(soon(calls.5).await.unwrap().aversion, 1, "{at}");
    assert_eq!(soon(calls.6).await.unwrap_err().code(), Some(ErrorCode::BadVersion), "{at}");
    assert_eq!(soon(calls.7).await.unwrap().path, "/a/n-0000000001", "{at}");
    assert_eq!(soon(client.get("/a")).await.unwrap().bytes(), b"three", "{at}");
    soon(client.close()).await.unwrap();
    let state = server.state.lock();
    let executed = [
        "1 create /a",
        "2 create /a/n-",
        "3 set /a",
        "4 multi 3",
        "5 delete /b",
        "6 set acl /a",
        "7 set /a",
        "8 create /a/n-",
    ];
    assert_eq!((&state.executed[..], &state.violations[..]), (&executed.map(str::to_owned)[..], &[][..]), "{at}");
    cut.load(std::sync::atomic::Ordering::SeqCst)
}

#[tokio::test]
async fn every_kind_of_write_is_done_once_whatever_byte_the_connection_is_cut_after() {
    for way in [Way::ToServer, Way::ToClient] {
        // Many at once, since each waits a little before it connects again; until a whole run is shorter than the limit.
        let mut bytes = 1;
        while futures::future::join_all((bytes..bytes + 64).map(|bytes| cut_after(way, bytes))).await.contains(&true) {
            bytes += 64;
        }
        assert!(bytes > 400, "only {bytes} bytes {way:?} were tried");
    }
}

#[tokio::test]
async fn a_dropped_future_does_not_take_its_request_back() {
    let server = Server::start().await;
    let client = client(&server).await;
    server.state.lock().cut = Cut::EveryStep(5);
    for n in 0..20 {
        drop(client.create(&format!("/d{n:02}"), "", CreateMode::Persistent));
        let polled = client.create(&format!("/p{n:02}"), "", CreateMode::Persistent);
        // Polled once, then dropped.
        let _ = tokio::time::timeout(Duration::ZERO, polled).await;
    }
    let all = soon(client.get_children("/")).await.unwrap();
    assert_eq!(all.len(), 40);
    let state = server.state.lock();
    assert_eq!((state.executed.len(), state.violations.len()), (40, 0));
}

#[tokio::test]
async fn one_shot_watches_fire_for_what_happened_while_away() {
    let server = Server::start().await;
    let client = client(&server).await;
    for path in ["/data", "/gone", "/children", "/quiet"] {
        server.set(path, "");
    }
    let (_, data) = client.get_and_watch("/data").await.unwrap();
    let (_, gone) = client.get_and_watch("/gone").await.unwrap();
    let (_, _, children) = client.children_and_watch("/children").await.unwrap();
    let (none, created) = client.exists_and_watch("/new").await.unwrap();
    let (_, quiet) = client.get_and_watch("/quiet").await.unwrap();
    assert_eq!(none, None);
    // No server takes the client back until everything has happened.
    server.state.lock().refuse = Some(fake_reason());
    server.cut_all();
    server.set("/data", "changed");
    server.delete("/gone");
    server.set("/children/x", "");
    server.set("/new", "");
    server.state.lock().refuse = None;
    assert_eq!(soon(data).await.unwrap().kind, EventKind::NodeDataChanged);
    assert_eq!(soon(gone).await.unwrap().kind, EventKind::NodeDeleted);
    assert_eq!(soon(children).await.unwrap().kind, EventKind::NodeChildrenChanged);
    assert_eq!(soon(created).await.unwrap().kind, EventKind::NodeCreated);
    // What nothing happened to is armed again.
    client.exists("/").await.unwrap();
    server.set("/quiet", "changed");
    let event = soon(quiet).await.unwrap();
    assert_eq!((event.kind, event.zxid.is_some()), (EventKind::NodeDataChanged, true));
    assert_eq!(server.state.lock().violations, [""; 0]);
}

fn fake_reason() -> corral_proto::pb::client::closed::Reason {
    corral_proto::pb::client::closed::Reason::NoQuorum
}

/// The next event of a watcher, as text.
async fn next(watcher: &mut corral_client::Watcher) -> String {
    match soon(watcher.next()).await {
        Some(WatchEvent::Node(event)) => format!("{:?} {}", event.kind, event.path),
        Some(WatchEvent::Gap(gap)) => gap.to_string(),
        None => "end".to_owned(),
    }
}

#[tokio::test]
async fn a_lasting_watch_misses_nothing_over_a_reconnect() {
    let server = Server::start().await;
    let client = client(&server).await;
    server.set("/top", "");
    let mut subtree = client.watch("/top", WatchMode::Recursive).await.unwrap();
    let mut node = client.watch("/top", WatchMode::Node).await.unwrap();
    let mut children = client.watch("/top", WatchMode::Children).await.unwrap();
    server.set("/top/a", "");
    assert_eq!(next(&mut subtree).await, "NodeCreated /top/a");
    assert_eq!(next(&mut node).await, "NodeChildrenChanged /top");
    assert_eq!(next(&mut children).await, "NodeCreated /top/a");
    server.away(|| {
        server.set("/top/a", "again");
        server.set("/top/a/b", "");
        server.delete("/top/a/b");
    });
    for event in ["NodeDataChanged /top/a", "NodeCreated /top/a/b", "NodeDeleted /top/a/b"] {
        assert_eq!(next(&mut subtree).await, event);
    }
    assert_eq!(next(&mut children).await, "NodeDataChanged /top/a");
    server.delete("/top/a");
    assert_eq!(next(&mut subtree).await, "NodeDeleted /top/a");
    assert_eq!(next(&mut node).await, "NodeChildrenChanged /top");
    assert_eq!(next(&mut children).await, "NodeDeleted /top/a");
    soon(client.close()).await.unwrap();
    assert_eq!(next(&mut subtree).await, "end");
    assert_eq!(subtree.end_reason(), Some(EndReason::Closed));
    assert_eq!(server.state.lock().violations, [""; 0]);
}

#[tokio::test]
async fn a_watch_begins_where_another_one_ended() {
    let server = Server::start().await;
    let client = client(&server).await;
    let created = client.create("/a", "", CreateMode::Persistent).await.unwrap();
    server.set("/a", "1");
    let mut watcher = client.watch_from("/a", WatchMode::Node, created.zxid).await.unwrap();
    assert_eq!(watcher.position(), created.zxid);
    assert_eq!(next(&mut watcher).await, "NodeDataChanged /a");
    let position = watcher.position();
    assert!(position > created.zxid);
    drop(watcher);
    server.delete("/a");
    // In another session, as after a restart of the program.
    let other = Client::connect(&server.address).await.unwrap();
    let mut watcher = other.watch_from("/a", WatchMode::Node, position).await.unwrap();
    assert_eq!(next(&mut watcher).await, "NodeDeleted /a");
    let error = client.watch_from("/a", WatchMode::Node, corral_client::Zxid(1 << 60)).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::BadArguments));
}

#[tokio::test]
async fn a_watch_whose_past_is_forgotten_says_so_with_where_to_read_again() {
    let server = Server::start().await;
    let client = client(&server).await;
    server.set("/a", "");
    let mut watcher = client.watch("/a", WatchMode::Node).await.unwrap();
    let after = watcher.position();
    server.away(|| {
        server.set("/a", "1");
        server.forget_history();
    });
    let Some(WatchEvent::Gap(gap)) = soon(watcher.next()).await else { panic!("no gap") };
    assert!(gap.after == after && gap.resync > after && watcher.position() == gap.resync, "{gap:?}");
    server.set("/a", "2");
    assert_eq!(next(&mut watcher).await, "NodeDataChanged /a");
}

#[tokio::test]
async fn a_reader_that_is_slow_gets_everything_all_the_same() {
    let server = Server::start().await;
    let client = client(&server).await;
    server.set("/a", "");
    let mut watcher = client.watch("/a", WatchMode::Node).await.unwrap();
    for n in 0..10_000 {
        server.set("/a", &n.to_string());
    }
    // What waits here is bounded: the server is told to wait.
    until(|| server.watches() == 0).await;
    for n in 0..10_000 {
        assert_eq!(next(&mut watcher).await, "NodeDataChanged /a", "{n}");
    }
    assert_eq!((watcher.try_next(), server.state.lock().violations.len()), (None, 0));
}

#[tokio::test]
async fn changes_bring_what_znodes_hold_and_bookmarks_how_far_it_goes() {
    let server = Server::start().await;
    let client = client(&server).await;
    server.set("/a", "0");
    let options = FeedOptions::from(WatchMode::Recursive).with_nodes();
    let mut feed = client.feed("/a", options).await.unwrap();
    assert_eq!(soon(feed.next()).await, Some(FeedItem::Bookmark(feed.position())));
    server.set("/a", "1");
    let Some(FeedItem::Changes(changes)) = soon(feed.next()).await else { panic!("no changes") };
    let node = changes.events[0].node.as_ref().unwrap();
    assert_eq!((node.data.as_deref(), node.stat.mzxid), (Some(&b"1"[..]), changes.zxid.as_i64()));
    assert_eq!(soon(feed.next()).await, Some(FeedItem::Bookmark(changes.zxid)));
    server.away(|| {
        server.set("/a", "2");
        server.set("/a", "3");
    });
    // The first is not what the znode holds now, and the second tells.
    let Some(FeedItem::Changes(second)) = soon(feed.next()).await else { panic!("no changes") };
    let Some(FeedItem::Changes(third)) = soon(feed.next()).await else { panic!("no changes") };
    assert_eq!(second.events[0].node, None);
    assert_eq!(third.events[0].node.as_ref().unwrap().data.as_deref(), Some(&b"3"[..]));
    assert_eq!(feed.position(), third.zxid);
}

#[tokio::test]
async fn dropped_watches_are_taken_from_the_server() {
    let server = Server::start().await;
    let client = client(&server).await;
    server.set("/a", "");
    let (_, watch) = client.get_and_watch("/a").await.unwrap();
    let watcher = client.watch("/a", WatchMode::Node).await.unwrap();
    // This one is dropped before its answer is read.
    drop(client.children_and_watch("/a"));
    client.sync("/").await.unwrap();
    drop((watch, watcher));
    until(|| server.watches() == 0).await;
    assert_eq!(client.get("/a").await.unwrap().stat.version, 0);
}

#[tokio::test]
async fn an_expired_session_is_reported_as_suspended_and_then_lost_and_never_as_connected() {
    let server = Server::start().await;
    let client = client(&server).await;
    let mut events = client.events();
    let (_, watch) = client.exists_and_watch("/a").await.unwrap();
    // Executed or not: the answer never comes.
    server.state.lock().mute = true;
    let write = client.create("/w", "", CreateMode::Persistent);
    let read = client.get("/w");
    until(|| server.exists("/w")).await;
    server.expire_all();
    assert_eq!(soon(events.next()).await, Some(SessionState::Suspended));
    assert_eq!(soon(events.next()).await, Some(SessionState::Lost(EndReason::Expired)));
    assert_eq!(soon(events.next()).await, None);
    let write = soon(write).await.unwrap_err();
    assert!(write.outcome_unknown());
    assert_eq!(write.to_string(), "create /w: the session expired; whether it was done is unknown");
    let read = soon(read).await.unwrap_err();
    assert_eq!((read.outcome_unknown(), read.code()), (false, Some(ErrorCode::SessionExpired)));
    assert_eq!(soon(watch).await.unwrap_err().to_string(), "watch /a: the session expired");
    assert!(!client.lease().is_valid());
    soon(client.lease().expired()).await;
    soon(client.close()).await.unwrap();
}

#[tokio::test]
async fn a_reconnect_shows_as_suspended_and_connected_even_to_who_looks_late() {
    let server = Server::start().await;
    let client = client(&server).await;
    let mut events = client.events();
    server.cut_all();
    until(|| server.state.lock().connects == 2).await;
    client.sync("/").await.unwrap();
    assert_eq!(soon(events.next()).await, Some(SessionState::Suspended));
    assert_eq!(soon(events.next()).await, Some(SessionState::Connected));
}

#[tokio::test]
async fn a_silent_server_is_left_for_another_within_the_session_timeout() {
    let server = Server::start().await;
    server.state.lock().timeout_ms = 900;
    let other = server.listen_again().await;
    let client = Client::builder(format!("{},{other}", server.address))
        .session_timeout(Duration::from_millis(900))
        .connect()
        .await
        .unwrap();
    assert_eq!(client.negotiated_timeout(), Duration::from_millis(900));
    let session = client.session_id();
    let mut events = client.events();
    server.state.lock().mute = true;
    let write = client.create("/a", "", CreateMode::Ephemeral);
    assert_eq!(soon(events.next()).await, Some(SessionState::Suspended));
    server.state.lock().mute = false;
    assert_eq!(soon(write).await.unwrap().stat.ephemeral_owner, session.0);
    let state = server.state.lock();
    assert_eq!((state.executed.len(), state.violations.len()), (1, 0));
}

#[tokio::test]
async fn an_idle_session_is_kept_by_pings_and_its_lease_with_it() {
    let server = Server::start().await;
    server.state.lock().timeout_ms = 300;
    let client = Client::builder(&server.address).session_timeout(Duration::from_millis(300)).connect().await.unwrap();
    let lease = client.lease();
    let first = lease.valid_until();
    until(|| lease.valid_until() > first + Duration::from_millis(400)).await;
    assert!(lease.is_valid());
    assert_eq!((client.state(), server.state.lock().connects), (SessionState::Connected, 1));
}

#[tokio::test]
async fn the_session_is_closed_behind_its_last_handle_after_what_was_asked() {
    let server = Server::start().await;
    let client = client(&server).await;
    drop(client.create("/kept", "", CreateMode::Persistent));
    drop(client.create("/gone", "", CreateMode::Ephemeral));
    let clone = client.clone();
    drop(client);
    clone.sync("/").await.unwrap();
    assert_eq!(server.sessions(), 1);
    drop(clone);
    until(|| server.sessions() == 0).await;
    assert!(server.exists("/kept") && !server.exists("/gone"));
}

#[tokio::test]
async fn an_identity_that_is_refused_costs_the_connection_and_not_the_session() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.add_auth("digest", "user:password").await.unwrap();
    let session = client.session_id();
    let error = client.add_auth("kerberos", "ticket").await.unwrap_err();
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        (Some(ErrorCode::AuthFailed), "add auth: authentication failed")
    );
    soon(client.create("/a", "", CreateMode::Persistent)).await.unwrap();
    assert_eq!((client.session_id(), server.state.lock().connects), (session, 2));
    let error = Client::builder(&server.address).auth("kerberos", "ticket").connect().await.unwrap_err();
    assert_eq!(error.to_string(), "whoami: the identity proven by kerberos was refused");
}

#[tokio::test]
async fn who_connects_to_nobody_is_told_what_was_tried() {
    let server = Server::start().await;
    server.state.lock().refuse = Some(fake_reason());
    let error =
        Client::builder(&server.address).connect_timeout(Duration::from_millis(150)).connect().await.unwrap_err();
    assert!(error.is_retryable());
    let expected = format!("no connection to {0} within 150 ms; last attempt: {0}: no quorum", server.address);
    assert_eq!(error.to_string(), expected);
    let error = Client::connect("localhost:x").await.unwrap_err();
    assert_eq!(error.to_string(), "connect string \"localhost:x\": \"x\" is not a port: 1 to 65535");
}

#[tokio::test]
async fn a_full_queue_refuses_calls_and_says_when_there_is_room_again() {
    let server = Server::start().await;
    let client = client(&server).await;
    // This task does not yield, so that nothing is sent meanwhile.
    let calls: Vec<_> = (0..100_000).map(|_| client.exists("/")).collect();
    let refused = client.exists("/").await.unwrap_err();
    assert!(matches!(refused, Error::Overloaded { .. }) && refused.is_retryable(), "{refused}");
    soon(client.ready()).await;
    assert!(soon(client.exists("/")).await.unwrap().is_some());
    for call in calls {
        soon(call).await.unwrap();
    }
}

#[tokio::test]
async fn several_reads_come_from_one_call() {
    let server = Server::start().await;
    let client = client(&server).await;
    let reads = vec![ReadRequest::Get("/".to_owned()), ReadRequest::Get("/none".to_owned())];
    let results = client.multi_read(reads).await.unwrap();
    assert!(matches!(&results[..], [Ok(ReadResult::Node(_)), Err(ErrorCode::NoNode)]), "{results:?}");
}
