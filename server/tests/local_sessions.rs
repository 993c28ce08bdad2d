//! Sessions that one server alone knows (`localSessionsEnabled`), on real servers.

mod common;
mod processes;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;

use bytes::Bytes;
use common::{Client, ensemble, eventually, start, word};
use corral_proto::jute::{ConnectRequest, Create, MultiResult, Request, Response};
use corral_proto::{Acl, ErrorCode};
use corral_server::config::Config;
use corral_server::node::ServerHandle;
use processes::Ensemble;

const EPHEMERAL: i32 = 1;
const SEQUENTIAL: i32 = 2;

fn create(path: &str, flags: i32) -> Create {
    Create { path: path.to_owned(), data: Some(Bytes::new()), acl: Some(Acl::open()), flags, ..Create::default() }
}

fn session(client: &Client, timeout_ms: i32) -> ConnectRequest {
    ConnectRequest {
        timeout_ms,
        session_id: client.session.session_id,
        password: Some(Bytes::copy_from_slice(&client.session.password)),
        ..ConnectRequest::default()
    }
}

/// A figure of `mntr`.
async fn figure(server: &ServerHandle, name: &str) -> i64 {
    let key = format!("zk_{name}\t");
    // While it has no leader, a server has no figures.
    eventually("a figure of mntr", async || {
        let text = word(server.client_addr(), "mntr").await;
        text.lines().find_map(|line| line.strip_prefix(&key)?.parse().ok())
    })
    .await
}

async fn sessions(server: &ServerHandle) -> (i64, i64) {
    (figure(server, "local_sessions").await, figure(server, "global_sessions").await)
}

async fn three(folder: &std::path::Path, change: impl Fn(&mut Config)) -> (Vec<Config>, Vec<ServerHandle>) {
    let mut configs = ensemble(folder, 3);
    let mut servers = Vec::new();
    for config in &mut configs {
        config.local_sessions = true;
        change(config);
        servers.push(start(config).await);
    }
    (configs, servers)
}

async fn is_expired(server: &ServerHandle, request: &ConnectRequest) -> bool {
    let mut answer = None;
    eventually("an answer to the handshake", async || {
        answer = Client::try_connect(server.client_addr(), request).await.ok();
        answer.is_some().then_some(())
    })
    .await;
    answer.is_some_and(|client| client.session.session_id == 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_session_costs_no_entry_and_lives_on_its_server_only() {
    let folder = tempfile::tempdir().unwrap();
    let (configs, mut servers) = three(folder.path(), |_| {}).await;
    let home = servers[0].client_addr();
    let mut client = Client::connect(home).await;
    assert_eq!(client.session.session_id >> 56, 1, "the id names its server");
    client.create("/a", "one").await.unwrap().unwrap();
    client.sync().await;
    let before = client.last_zxid;
    let mut others = Vec::new();
    for _ in 0..5 {
        others.push(Client::connect(home).await);
    }
    client.sync().await;
    assert_eq!(client.last_zxid, before, "five sessions, no entry");
    assert_eq!(sessions(&servers[0]).await, (6, 0));
    assert_eq!(sessions(&servers[1]).await, (0, 0));
    let dump = word(home, "dump").await;
    assert!(dump.contains("\nLocal Session Sets ("), "{dump}");
    assert!(dump.contains(&format!("\t0x{:x}\n", client.session.session_id)), "{dump}");

    // Its writes are like any other's: all servers see them, an entry each.
    let mut elsewhere = Client::connect(servers[1].client_addr()).await;
    elsewhere.sync().await;
    assert_eq!(elsewhere.get("/a").await.as_deref(), Some("one"));
    others[0].create("/b", "two").await.unwrap().unwrap();
    assert_eq!(others[0].last_zxid, before + 1);
    elsewhere.create("/c", "three").await.unwrap().unwrap();
    elsewhere.create("/d", "four").await.unwrap().unwrap();
    assert_eq!(client.create("/b", "").await.unwrap(), Err(ErrorCode::NodeExists));

    // It owns nothing (wire 3.2), not in a multi either. The refusal takes a zxid, as in ZooKeeper.
    let refused = Err(ErrorCode::EphemeralOnLocalSession);
    let at = client.last_zxid;
    assert_eq!(client.ask(&Request::Create(create("/nowhere/e", EPHEMERAL))).await.unwrap(), refused);
    assert_eq!(client.last_zxid, at + 1);
    let multi = Request::Multi(vec![Request::Create(create("/m", 0)), Request::Create(create("/e", EPHEMERAL))]);
    let errors = vec![MultiResult::Error(0), MultiResult::Error(ErrorCode::EphemeralOnLocalSession.code())];
    assert_eq!(client.ask(&multi).await.unwrap(), Ok(Response::Multi(errors)));
    assert_eq!(client.get("/m").await, None);

    // Another server does not know it, and says so; it lives on where it is.
    assert!(is_expired(&servers[1], &session(&client, 10_000)).await);
    assert_eq!(client.get("/a").await.as_deref(), Some("one"));
    let mut wrong = session(&client, 10_000);
    wrong.password = Some(Bytes::from_static(&[7; 16]));
    assert!(is_expired(&servers[0], &wrong).await);
    assert_eq!(client.get("/a").await.as_deref(), Some("one"));

    // On its own server it is taken up again; the former connection ends.
    let mut again = Client::reconnect(home, &client.session).await;
    assert_eq!(again.session, client.session);
    assert!(client.ask(&Request::Ping).await.is_err());
    assert_eq!(again.create("/a", "").await.unwrap(), Err(ErrorCode::NodeExists));
    assert_eq!(again.get("/b").await.as_deref(), Some("two"));

    // Closed, it is gone; so is one that is not heard, and no other. What it sent before the close is answered, and what
    // it sent behind it never happens.
    let closed = session(&again, 10_000);
    let [first, late] = [create("/f", 0), create("/g", 0)].map(Request::Create);
    let before = again.xid;
    let answers = again.ask_all(&[first, Request::CloseSession, late]).await;
    assert!(answers.is_err() && again.xid == before + 3, "the third has no answer, the others have: {answers:?}");
    assert!(is_expired(&servers[0], &closed).await);
    let mut other = Client::connect(home).await;
    assert_eq!((other.get("/f").await.as_deref(), other.get("/g").await), (Some(""), None));
    let silent = others.pop().unwrap();
    let request = session(&silent, 1_000);
    drop(silent);
    drop(Client::try_connect(home, &request).await.unwrap());
    let id = format!("\t0x{:x}\n", request.session_id);
    eventually("the silent session ends", async || (!word(home, "dump").await.contains(&id)).then_some(())).await;
    assert!(is_expired(&servers[0], &request).await);

    // It does not outlive its server.
    let lost = session(&others[0], 10_000);
    servers.remove(0).stop().await;
    servers.insert(0, start(&configs[0]).await);
    assert!(is_expired(&servers[0], &lost).await);
    // Nor do its numbers: the next start's writes are new ones.
    let mut next = Client::connect(servers[0].client_addr()).await;
    next.create("/e", "five").await.unwrap().unwrap();
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_session_becomes_known_to_all_with_its_first_ephemeral() {
    let folder = tempfile::tempdir().unwrap();
    let (_, servers) = three(folder.path(), |config| config.local_sessions_upgrading = true).await;
    let home = servers[0].client_addr();
    let mut client = Client::connect(home).await;
    let id = client.session.session_id;
    assert_eq!(sessions(&servers[0]).await, (1, 0));

    // In one piece: the writes before it, itself, those behind it, and a read between. All in order.
    let get = |path: &str| Request::GetData { path: path.to_owned(), watch: false };
    let requests = [
        Request::Create(create("/s-", SEQUENTIAL)),
        Request::Create(create("/s-", SEQUENTIAL)),
        Request::Create(create("/e", EPHEMERAL)),
        get("/e"),
        Request::Create(create("/s-", SEQUENTIAL)),
    ];
    let replies = client.ask_all(&requests).await.unwrap();
    let path = |path: &str| Ok(Response::Path(path.into()));
    assert_eq!(replies[..3], [path("/s-0000000000"), path("/s-0000000001"), path("/e")]);
    match &replies[3] {
        Ok(Response::Data { stat, .. }) => assert_eq!(stat.ephemeral_owner, id),
        other => panic!("{other:?}"),
    }
    assert_eq!(replies[4], path("/s-0000000003"));
    assert_eq!(sessions(&servers[0]).await, (0, 1));

    // Known to all: taken up on another server, and its ephemeral is there until it closes.
    let mut moved = Client::reconnect(servers[1].client_addr(), &client.session).await;
    assert_eq!(moved.session.session_id, id);
    moved.sync().await;
    assert_eq!(moved.get("/e").await.as_deref(), Some(""));
    let mut watcher = Client::connect(servers[2].client_addr()).await;
    assert_eq!(watcher.get("/e").await.as_deref(), Some(""));
    moved.close().await;
    watcher.sync().await;
    assert_eq!(watcher.get("/e").await, None);

    // In a multi, too; and a session that stays local meanwhile.
    let mut other = Client::connect(home).await;
    let multi = Request::Multi(vec![Request::Create(create("/m", 0)), Request::Create(create("/m2", EPHEMERAL))]);
    let made = vec![MultiResult::Create { path: "/m".into() }, MultiResult::Create { path: "/m2".into() }];
    assert_eq!(other.ask(&multi).await.unwrap(), Ok(Response::Multi(made)));
    watcher.sync().await;
    assert_eq!(sessions(&servers[2]).await, (1, 1));
    for server in servers {
        server.stop().await;
    }
}

/// Kill -9 of the leader while local sessions of the other servers write: what was acknowledged is there once and in the
/// order of each client; what was not, because a connection was closed for want of a leader, once or not at all; and no
/// session is lost (P31, P33).
#[tokio::test(flavor = "multi_thread")]
async fn what_local_sessions_write_happens_once_through_the_death_of_the_leader() {
    const CLIENTS: usize = 8;
    const WRITES: usize = 150;
    let mut ensemble = Ensemble::start(3, "localSessionsEnabled=true").await;
    let leader = ensemble.leader().await;
    let homes: Vec<SocketAddr> = ensemble
        .ids()
        .into_iter()
        .filter(|id| *id != leader)
        .map(|id| ensemble.address(id).parse().expect("an address"))
        .collect();
    let mut first = Client::connect(homes[0]).await;
    first.create("/w", "").await.unwrap().unwrap();
    let (halfway, mut reached) = tokio::sync::mpsc::channel(CLIENTS);
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (home, halfway) = (homes[number % homes.len()], halfway.clone());
            tokio::spawn(async move {
                let mut client = Client::connect(home).await;
                let (mut names, mut unanswered) = (Vec::new(), 0);
                for n in 0..WRITES {
                    if n == WRITES / 2 {
                        halfway.send(()).await.unwrap();
                    }
                    let request = Request::Create(create(&format!("/w/c{number}-"), SEQUENTIAL));
                    match client.ask(&request).await {
                        Ok(Ok(Response::Path(path))) => names.push(path.trim_start_matches("/w/").to_owned()),
                        Ok(other) => panic!("{other:?}"),
                        Err(_) => {
                            unanswered += 1;
                            let session = client.session.clone();
                            client = Client::reconnect(home, &session).await;
                            assert_eq!(client.session.session_id, session.session_id, "the session is not lost");
                        }
                    }
                }
                (names, unanswered)
            })
        })
        .collect();
    reached.recv().await.unwrap();
    ensemble.kill(leader);
    let (mut written, mut unanswered) = (BTreeSet::new(), 0);
    for task in tasks {
        let (names, lost) = task.await.unwrap();
        let number = |name: &String| name[name.len() - 10..].parse::<u32>().unwrap();
        assert!(names.windows(2).all(|two| number(&two[0]) < number(&two[1])), "in the client's order: {names:?}");
        unanswered += lost;
        written.extend(names);
    }
    assert_eq!(written.len() + unanswered, CLIENTS * WRITES, "no name twice");
    for home in homes {
        let mut reader = Client::connect(home).await;
        reader.sync().await;
        match reader.ask(&Request::GetChildren { path: "/w".into(), watch: false }).await.unwrap() {
            Ok(Response::Names(names)) => {
                let names: BTreeSet<String> = names.into_iter().collect();
                assert!(written.is_subset(&names), "what was acknowledged is there");
                assert!(names.len() <= written.len() + unanswered, "and nothing twice");
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Ends the test program if `rest` is not dropped in time: locks that wait for each other end no future, and no runtime that
/// such a future waits in.
fn watchdog(what: &'static str) -> std::sync::mpsc::Sender<()> {
    let (rest, dropped) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        if dropped.recv_timeout(processes::PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            // Past what the test harness captures, and would not show.
            let _ = writeln!(std::io::stderr(), "never: {what}");
            std::process::exit(101);
        }
    });
    rest
}

/// Operators ask for figures, which need the local sessions and the watches, while writes of local sessions are executed, which
/// need the watches and the local sessions.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn words_and_writes_of_local_sessions_do_not_wait_for_each_other() {
    const WORDS: usize = 1_000;
    const ASKERS: usize = 8;
    const WRITES: usize = 100;
    let _rest = watchdog("words and writes at the same time");
    let folder = tempfile::tempdir().unwrap();
    let (_, servers) = three(folder.path(), |_| {}).await;
    let home = servers[0].client_addr();
    let mut first = Client::connect(home).await;
    assert_eq!(sessions(&servers[0]).await, (1, 0), "it is a local one");
    first.create("/w", "").await.unwrap().unwrap();
    let asking: Vec<_> = (0..ASKERS)
        .map(|_| {
            tokio::spawn(async move {
                for _ in 0..WORDS / ASKERS {
                    let answer = word(home, "srvr").await;
                    assert!(answer.contains("Node count: "), "{answer}");
                }
            })
        })
        .collect();
    let set = Request::SetData { path: "/w".into(), data: Some(Bytes::from_static(b"x")), version: -1 };
    let sets = vec![set; WRITES];
    let mut rounds = 0;
    while !asking.iter().all(tokio::task::JoinHandle::is_finished) {
        let replies = first.ask_all(&sets).await.unwrap();
        assert!(replies.iter().all(Result::is_ok), "{replies:?}");
        rounds += 1;
    }
    for asker in asking {
        asker.await.unwrap();
    }
    assert!(rounds > 1, "they came at the same time");
    for server in servers {
        server.stop().await;
    }
}

/// The role that `srvr` names.
async fn is_leader(server: &ServerHandle) -> bool {
    word(server.client_addr(), "srvr").await.contains("Mode: leader")
}

/// Without a leader for `syncTimeout`, a server's local sessions are over, and what they wrote in that time never happens: their
/// clients are told so, and nobody will ever answer for it (P33).
#[tokio::test(flavor = "multi_thread")]
async fn local_sessions_end_with_what_they_wrote_when_there_is_no_leader_for_long() {
    let folder = tempfile::tempdir().unwrap();
    let (configs, mut servers) = three(folder.path(), |_| {}).await;
    let mut client = Client::connect(servers[0].client_addr()).await;
    client.create("/before", "kept").await.unwrap().unwrap();
    let leader = eventually("a leader", async || {
        for (index, server) in servers.iter().enumerate() {
            if is_leader(server).await {
                return Some(index);
            }
        }
        None
    })
    .await;
    let home = (leader + 1) % 3;
    let mut client = Client::connect(servers[home].client_addr()).await;
    client.sync().await;
    let request = session(&client, 10_000);
    // The leader last: until then there is a majority, and nobody looks for another one.
    let mut stopped: Vec<usize> = (0..3).filter(|index| *index != home).collect();
    stopped.sort_by_key(|index| *index == leader);
    let mut running: Vec<Option<ServerHandle>> = servers.drain(..).map(Some).collect();
    for index in &stopped {
        running[*index].take().expect("it runs").stop().await;
    }
    // It is taken, waits for a leader, and gets none: the connection ends.
    assert!(client.create("/ghost", "").await.is_err());
    for index in stopped {
        running[index] = Some(start(&configs[index]).await);
    }
    let server = running[home].as_ref().expect("it never stopped");
    assert!(is_expired(server, &request).await);
    // Behind everything that the server offered its new leader.
    let mut next = Client::connect(server.client_addr()).await;
    next.create("/after", "").await.unwrap().unwrap();
    assert_eq!(next.get("/before").await.as_deref(), Some("kept"));
    assert_eq!(next.get("/ghost").await, None, "its session was over before there was a leader again");
    for server in running.into_iter().flatten() {
        server.stop().await;
    }
}

/// A server that fetches a snapshot has missed what decided its clients' writes: its local sessions are over, and so is what
/// they wrote.
#[tokio::test(flavor = "multi_thread")]
async fn local_sessions_end_with_what_they_wrote_when_their_server_fetches_a_snapshot() {
    let mut ensemble = Ensemble::start(3, "localSessionsEnabled=true\nsnapshotThreshold=1M").await;
    let victim = ensemble.follower().await;
    let home: SocketAddr = ensemble.address(victim).parse().unwrap();
    let mut client = Client::connect(home).await;
    client.create("/before", "kept").await.unwrap().unwrap();
    let request = session(&client, 10_000);
    ensemble.signal(victim, rustix::process::Signal::STOP);
    let other = ensemble.ids().into_iter().find(|id| *id != victim).expect("three servers");
    let mut writer = Client::connect(ensemble.address(other).parse().unwrap()).await;
    writer.create("/load", "").await.unwrap().unwrap();
    let value = "x".repeat(20_000);
    for n in 0..100 {
        writer.create(&format!("/load/{n}"), &value).await.unwrap().unwrap();
    }
    let leader = ensemble.leader().await;
    let alone = |e: &Ensemble| e.mntr(leader, "zk_synced_followers").as_deref() == Some("1");
    ensemble.until("the leader goes on without it", alone).await;
    // It lies in the socket when the server wakes up, cut off from a leader who went on without it.
    let ghost = tokio::spawn(async move { client.create("/ghost", "").await });
    ensemble.signal(victim, rustix::process::Signal::CONT);
    ensemble.until("a snapshot is fetched", |e| e.log(victim).contains("fetching a snapshot")).await;
    assert!(ghost.await.unwrap().is_err(), "the connection ended\n{}", ensemble.tails());
    let mut answer = None;
    eventually("an answer to the handshake", async || {
        answer = Client::try_connect(home, &request).await.ok();
        answer.is_some().then_some(())
    })
    .await;
    assert_eq!(answer.expect("looked at above").session.session_id, 0, "the session is over");
    let mut next = Client::connect(home).await;
    next.create("/after", "").await.unwrap().unwrap();
    assert_eq!(next.get("/before").await.as_deref(), Some("kept"));
    assert_eq!(next.get("/load/99").await.as_deref(), Some(value.as_str()));
    assert_eq!(next.get("/ghost").await, None);
}
