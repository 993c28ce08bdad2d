//! Three real server processes, real clients, kill -9: what was acknowledged is there, once, everywhere.

mod harm;
mod processes;

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use corral_client::{Client, CreateMode, EventKind, SessionState, WatchMode};
use harm::HARMS;
use processes::{Ensemble, PATIENCE};
use tokio::time::timeout;

const SESSION: Duration = Duration::from_secs(20);

/// Number of creates of the long test; `CREATES=100000` for the figure in the docs.
fn creates() -> usize {
    std::env::var("CREATES").ok().and_then(|n| n.parse().ok()).unwrap_or(4_000)
}

async fn soon<T>(ensemble: &Ensemble, what: &str, future: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("never: {what}\n{}", ensemble.tails()),
    }
}

/// Creates `/load/NNNNNN` in a pipeline and calls `midway` once half are acknowledged.
async fn create_many(client: &Client, count: usize, mut midway: impl FnMut()) {
    let mut pending = VecDeque::new();
    let (mut next, mut acknowledged) = (0, 0);
    while acknowledged < count {
        while next < count && pending.len() < 200 {
            pending.push_back(client.create(&format!("/load/{next:06}"), next.to_string(), CreateMode::Persistent));
            next += 1;
        }
        let created = pending.pop_front().expect("more are pending").await.expect("every create is acknowledged once");
        assert_eq!(created.path, format!("/load/{acknowledged:06}"));
        acknowledged += 1;
        if acknowledged == count / 2 {
            midway();
        }
    }
}

#[tokio::test]
async fn every_acknowledged_create_survives_kill_9_of_the_leader() {
    let mut ensemble = Ensemble::start(3, "").await;
    let leader = ensemble.leader().await;
    let follower = ensemble.follower().await;
    let client = ensemble.client([follower], SESSION).await;
    client.create("/load", "", CreateMode::Persistent).await.unwrap();
    let count = creates();
    soon(&ensemble, "all creates acknowledged", create_many(&client, count, || {})).await;
    client.close().await.unwrap();

    let client = ensemble.client([follower], SESSION).await;
    client.create("/second", "", CreateMode::Persistent).await.unwrap();
    let session = client.session_id();
    let mut killed = Some(leader);
    let mut pending = VecDeque::new();
    let mut done = 0;
    let mut next = 0;
    while done < count {
        while next < count && pending.len() < 200 {
            pending.push_back(client.create(&format!("/second/{next:06}"), "x", CreateMode::Persistent));
            next += 1;
        }
        let answer = timeout(PATIENCE, pending.pop_front().expect("pending")).await;
        let answer = answer.unwrap_or_else(|_| panic!("create {done} is never answered\n{}", ensemble.tails()));
        assert_eq!(answer.expect("acknowledged").path, format!("/second/{done:06}"));
        done += 1;
        if done == count / 2
            && let Some(leader) = killed.take()
        {
            ensemble.kill(leader);
        }
    }
    assert_eq!(client.session_id(), session, "nobody's session ended");
    ensemble.start_server(leader);
    ensemble.converge().await;
    for id in ensemble.ids() {
        let reader = ensemble.client([id], SESSION).await;
        for parent in ["/load", "/second"] {
            let children: BTreeSet<String> = reader.get_children(parent).await.unwrap().into_iter().collect();
            let expected: BTreeSet<String> = (0..count).map(|n| format!("{n:06}")).collect();
            assert_eq!(children, expected, "{parent} on server {id}");
        }
        reader.close().await.unwrap();
    }
}

#[tokio::test]
async fn clients_of_surviving_servers_do_not_notice_the_leaders_death() {
    let mut ensemble = Ensemble::start(3, "").await;
    let leader = ensemble.leader().await;
    let follower = ensemble.follower().await;
    let client = ensemble.client([follower], SESSION).await;
    let other = ensemble.client(ensemble.ids().into_iter().filter(|id| *id != leader), SESSION).await;
    client.create("/e", "mine", CreateMode::Ephemeral).await.unwrap();
    client.create("/w", "", CreateMode::Persistent).await.unwrap();
    let (_, one_shot) = client.get_and_watch("/w").await.unwrap();
    let mut watcher = client.watch("/w", WatchMode::Recursive).await.unwrap();
    let mut events = client.events();
    assert_eq!(events.state(), SessionState::Connected);

    ensemble.kill(leader);
    let set = soon(&ensemble, "a write after the leader's death", other.set("/w", "news", None)).await.unwrap();
    let event = soon(&ensemble, "the one-shot watch fires", one_shot).await.unwrap();
    assert_eq!((event.kind, event.path.as_str()), (EventKind::NodeDataChanged, "/w"));
    let event = soon(&ensemble, "the persistent watch fires", watcher.next()).await;
    assert!(format!("{event:?}").contains("NodeDataChanged"), "{event:?}");
    let stat = client.exists("/e").await.unwrap().expect("the ephemeral is still there");
    assert_eq!(stat.ephemeral_owner, client.session_id().0);
    assert_eq!(client.get("/w").await.unwrap().stat.mzxid, set.mzxid);
    assert_eq!(client.state(), SessionState::Connected);
    assert!(timeout(Duration::ZERO, events.next()).await.is_err(), "the connection was never lost (P33)");
}

#[tokio::test]
async fn ephemerals_go_exactly_with_their_session() {
    let ensemble = Ensemble::start(3, "").await;
    let ids = ensemble.ids();
    let watching = ensemble.client([ids[0]], SESSION).await;
    let leaving = ensemble.client([ids[1]], SESSION).await;
    let dying = ensemble.client([ids[2]], Duration::from_secs(2)).await;
    leaving.create("/leaving", "", CreateMode::Ephemeral).await.unwrap();
    dying.create("/dying", "", CreateMode::Ephemeral).await.unwrap();
    watching.sync("/").await.unwrap();
    let (left, left_watch) = watching.exists_and_watch("/leaving").await.unwrap();
    let (died, died_watch) = watching.exists_and_watch("/dying").await.unwrap();
    assert!(left.is_some() && died.is_some());
    leaving.close().await.unwrap();
    let event = soon(&ensemble, "the closed session's ephemeral goes", left_watch).await.unwrap();
    assert_eq!((event.kind, event.path.as_str()), (EventKind::NodeDeleted, "/leaving"));
    assert!(watching.exists("/dying").await.unwrap().is_some(), "another session's stays");
    drop(dying);
    let event = soon(&ensemble, "the expired session's ephemeral goes", died_watch).await.unwrap();
    assert_eq!((event.kind, event.path.as_str()), (EventKind::NodeDeleted, "/dying"));
}

#[tokio::test]
async fn a_restarted_follower_catches_up_and_the_ensemble_restarts_whole() {
    let mut ensemble = Ensemble::start(3, "").await;
    let leader = ensemble.leader().await;
    let follower = ensemble.follower().await;
    let client = ensemble.client([leader], SESSION).await;
    client.create("/load", "", CreateMode::Persistent).await.unwrap();
    let count = creates() / 4;
    ensemble.kill(follower);
    soon(&ensemble, "creates with a majority", create_many(&client, count, || {})).await;
    ensemble.start_server(follower);
    ensemble.converge().await;
    client.close().await.unwrap();
    for id in ensemble.ids() {
        ensemble.kill(id);
    }
    for id in ensemble.ids() {
        ensemble.start_server(id);
    }
    ensemble.leader().await;
    ensemble.converge().await;
    let client = ensemble.client([follower], SESSION).await;
    assert_eq!(client.get_children("/load").await.unwrap().len(), count);
}

#[tokio::test]
async fn a_follower_that_missed_more_than_the_log_keeps_gets_a_snapshot() {
    let mut ensemble = Ensemble::start(3, "segmentSize=4M\nsnapshotThreshold=1M\nflushAfterEntries=500\n").await;
    let leader = ensemble.leader().await;
    let follower = ensemble.follower().await;
    let client = ensemble.client([leader], SESSION).await;
    client.create("/big", "", CreateMode::Persistent).await.unwrap();
    ensemble.kill(follower);
    let data = vec![7u8; 10_000];
    let mut pending = VecDeque::new();
    for n in 0..1_000 {
        pending.push_back(client.create(&format!("/big/{n:04}"), data.clone(), CreateMode::Persistent));
        if pending.len() > 50 {
            pending.pop_front().expect("pending").await.unwrap();
        }
    }
    for answer in pending {
        answer.await.unwrap();
    }
    ensemble.start_server(follower);
    ensemble.converge().await;
    assert!(ensemble.log(follower).contains("snapshot"), "it was a snapshot\n{}", ensemble.tails());
    let reader = ensemble.client([follower], SESSION).await;
    assert_eq!(reader.get_children("/big").await.unwrap().len(), 1_000);
    assert_eq!(reader.get("/big/0999").await.unwrap().bytes(), &data[..]);
}

#[tokio::test]
async fn a_server_that_lost_its_disk_learns_before_it_votes_again() {
    let mut ensemble = Ensemble::start(3, "").await;
    let follower = ensemble.follower().await;
    let client = ensemble.client(ensemble.ids(), SESSION).await;
    client.create("/kept", "precious", CreateMode::Persistent).await.unwrap();
    ensemble.kill(follower);
    ensemble.wipe(follower);
    ensemble.start_server(follower);
    ensemble.converge().await;
    // It remembers again, so the ensemble survives the loss of another server.
    ensemble
        .until("the server is a member again", |e| e.mntr(follower, "zk_membership").is_some_and(|m| m == "member"))
        .await;
    let log = ensemble.log(follower);
    let lost = log.find("whatever a server of this number knew and promised is lost").expect("it says what it lost");
    let back = log.find("was welcomed back: it votes").expect("it says that it is back");
    assert!(lost < back, "{log}");
    let leader = ensemble.leader().await;
    ensemble.kill(leader);
    let set = soon(&ensemble, "a write with the relearned server", client.set("/kept", "still", None)).await;
    assert_eq!(set.unwrap().version, 1);
}

#[tokio::test]
async fn a_lost_majority_is_left_by_force_and_the_ensemble_grown_again() {
    let mut ensemble = Ensemble::start(3, "").await;
    let client = ensemble.client(ensemble.ids(), SESSION).await;
    client.create("/kept", "precious", CreateMode::Persistent).await.unwrap();
    client.close().await.unwrap();
    let zxid = ensemble.converge().await;
    let recover = |config: &Path, force: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_corral"));
        let output = command.arg("recover").arg("--config").arg(config).args(force).output().expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let force = ["--accept-data-loss"];

    // A server that runs is left alone, and nothing is lost unless that was said.
    let (code, _, stderr) = recover(&ensemble.config(1), &force);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("in use by another process"), "{stderr}");
    for id in ensemble.ids() {
        ensemble.kill(id);
    }
    let (code, _, stderr) = recover(&ensemble.config(1), &[]);
    assert_eq!(code, Some(2), "{stderr}");
    for lost in [2, 3] {
        ensemble.wipe(lost);
    }
    let (code, _, stderr) = recover(&ensemble.config(2), &force);
    assert_eq!(code, Some(1), "an empty folder holds nothing: {stderr}");
    let (code, stdout, stderr) = recover(&ensemble.config(1), &force);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains(&format!("its last zxid is {zxid:#x}")), "{stdout}");

    // Alone; then with the others as observers, who learn; then whole.
    ensemble.set_members(&[(1, "participant"), (2, "observer"), (3, "observer")]);
    for id in ensemble.ids() {
        ensemble.start_server(id);
    }
    ensemble.converge().await;
    for id in [2, 3] {
        let is_member = |e: &Ensemble| e.mntr(id, "zk_membership").is_some_and(|m| m == "member");
        ensemble.until("an observer is a member", is_member).await;
    }
    for id in ensemble.ids() {
        ensemble.terminate(id).await;
    }
    ensemble.set_members(&[(1, "participant"), (2, "participant"), (3, "participant")]);
    for id in ensemble.ids() {
        ensemble.start_server(id);
    }
    ensemble.converge().await;
    ensemble.kill(1);
    let client = ensemble.client([2, 3], SESSION).await;
    assert_eq!(client.get("/kept").await.unwrap().bytes(), b"precious");
    let set = soon(&ensemble, "a write without the origin", client.set("/kept", "still", None)).await;
    assert_eq!(set.unwrap().version, 1);
}

#[tokio::test]
async fn a_damaged_log_is_noticed_and_the_replica_learns_again() {
    let mut ensemble = Ensemble::start(3, "").await;
    let follower = ensemble.follower().await;
    let client = ensemble.client(ensemble.ids(), SESSION).await;
    client.create("/load", "", CreateMode::Persistent).await.unwrap();
    for n in 0..50 {
        client.create(&format!("/load/{n:06}"), vec![1u8; 3000], CreateMode::Persistent).await.unwrap();
    }
    ensemble.kill(follower);
    damage_first_frames(&ensemble.data(follower));
    ensemble.start_server(follower);
    ensemble.converge().await;
    let log = ensemble.log(follower);
    assert!(log.contains("damage"), "the server says what it found\n{log}");
    let reader = ensemble.client([follower], SESSION).await;
    assert_eq!(reader.get_children("/load").await.unwrap().len(), 50);
}

/// Flips a byte in an early frame of the newest log segment.
fn damage_first_frames(data: &std::path::Path) {
    let mut segments = Vec::new();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.parent().is_some_and(|p| p.ends_with("log")) && path.extension().is_none_or(|e| e != "tmp") {
                segments.push(path);
            }
        }
    }
    segments.sort();
    let segment = segments.last().expect("there is a log");
    let mut bytes = std::fs::read(segment).unwrap();
    // The header is one block; damage the third frame.
    let at = 3 * 4096 + 100;
    bytes[at] ^= 0xff;
    std::fs::write(segment, bytes).unwrap();
}

/// Files under a folder, by their place in it.
fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("it is there") {
        let path = entry.expect("readable").path();
        if path.is_dir() { files.extend(files_under(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

/// What a file of a data folder is for; `None` for those whose contents nobody depends on.
fn kind_of(file: &Path, data: &Path) -> Option<&'static str> {
    let place = file.strip_prefix(data).expect("it is in the folder").to_str().expect("our names");
    Some(match place.split_once('/') {
        None => ["identity", "CURRENT", "peers"].into_iter().find(|name| *name == place)?,
        Some(("log", name)) if name.ends_with(".seg") => "log segment",
        Some((folder, "CURRENT")) if folder.starts_with("state-") => "store CURRENT",
        Some((folder, "IDENTITY")) if folder.starts_with("state-") => "store IDENTITY",
        Some((folder, name)) if folder.starts_with("state-") && name.starts_with("MANIFEST") => "store MANIFEST",
        Some((folder, name)) if folder.starts_with("state-") && name.starts_with("OPTIONS") => "store OPTIONS",
        Some((folder, name)) if folder.starts_with("state-") && name.ends_with(".sst") => "table file",
        Some(_) => return None,
    })
}

/// A replica with a damaged or lost file never serves what it does not have: it repairs itself from its peers, or it
/// says what is wrong and ends, and comes right with an empty folder.
#[tokio::test]
async fn every_file_of_a_data_folder_may_be_damaged_or_lost() {
    const KINDS: [&str; 9] = [
        "identity",
        "CURRENT",
        "peers",
        "store CURRENT",
        "store IDENTITY",
        "store MANIFEST",
        "store OPTIONS",
        "table file",
        "log segment",
    ];
    let mut ensemble = Ensemble::start(3, "").await;
    let victim = ensemble.follower().await;
    let others: Vec<u64> = ensemble.ids().into_iter().filter(|id| *id != victim).collect();
    let client = ensemble.client(others, SESSION).await;
    // Small values lie in the records, large ones beside them.
    let value = |n: usize| vec![n as u8; if n.is_multiple_of(2) { 100 } else { 5_000 }];
    for n in 0..40 {
        client.create(&format!("/{n:02}"), value(n), CreateMode::Persistent).await.unwrap();
    }
    for kind in KINDS {
        for harm in HARMS {
            let what = format!("{kind} {harm:?}");
            soon(&ensemble, "a write while all are well", client.set("/00", value(0), None)).await.unwrap();
            ensemble.converge().await;
            let is_member = |e: &Ensemble| e.mntr(victim, "zk_membership").is_some_and(|m| m == "member");
            ensemble.until("the victim is a member", is_member).await;
            assert_eq!(ensemble.terminate(victim).await, Some(0), "{}", ensemble.tails());
            let data = ensemble.data(victim);
            let files: Vec<PathBuf> =
                files_under(&data).into_iter().filter(|file| kind_of(file, &data) == Some(kind)).collect();
            assert!(!files.is_empty(), "there is a {kind}");
            files.iter().for_each(|file| harm.strike(file));
            ensemble.start_server(victim);
            // It may find the damage when it starts or when it reads, and end; the next start knows of it. If even that
            // one ends, its folder is emptied, as its log says.
            let mut starts = 1;
            loop {
                ensemble.until("the victim agrees or ends", |e| e.has_converged() || e.has_ended(victim)).await;
                if !ensemble.has_ended(victim) {
                    let reader = ensemble.client([victim], SESSION).await;
                    let mut whole = true;
                    for n in 0..40 {
                        match timeout(PATIENCE, reader.get(&format!("/{n:02}"))).await {
                            Ok(Ok(read)) => assert_eq!(read.bytes(), value(n), "{what}: it serves what it has"),
                            _ => whole = false,
                        }
                        if !whole {
                            break;
                        }
                    }
                    if whole {
                        println!("{what}: came right at start {starts}");
                        break;
                    }
                    ensemble.until("the victim ends", |e| e.has_ended(victim)).await;
                }
                let log = ensemble.log(victim);
                assert!(log.contains("damage") || log.contains("cannot start"), "{what}: it says why\n{log}");
                ensemble.kill(victim);
                starts += 1;
                assert!(starts <= 3, "{what}: it never comes right\n{log}");
                if starts == 3 {
                    ensemble.wipe(victim);
                }
                ensemble.start_server(victim);
            }
        }
    }
}

#[tokio::test]
async fn sigterm_drains_and_exits_with_0() {
    let mut ensemble = Ensemble::start(1, "").await;
    let client = ensemble.client([1], SESSION).await;
    client.create("/a", "", CreateMode::Persistent).await.unwrap();
    assert_eq!(ensemble.terminate(1).await, Some(0), "{}", ensemble.tails());
    ensemble.start_server(1);
    ensemble.leader().await;
    let again = ensemble.client([1], SESSION).await;
    assert!(again.exists("/a").await.unwrap().is_some());
}

#[tokio::test]
async fn a_server_that_stops_begins_no_streams_with_its_peers() {
    let mut ensemble = Ensemble::start(3, "").await;
    ensemble.converge().await;
    // Server 1 is dialled by both others.
    let before: Vec<usize> = [2, 3].map(|id| ensemble.log(id).matches("connected to peer peer=1").count()).to_vec();
    assert_eq!(ensemble.terminate(1).await, Some(0), "{}", ensemble.tails());
    for (id, before) in [2, 3].into_iter().zip(before) {
        let gone = |e: &Ensemble| e.log(id).contains("disconnected from peer peer=1");
        ensemble.until("the peer is missed", gone).await;
        let after = ensemble.log(id).matches("connected to peer peer=1").count();
        // "disconnected from peer" does not hold the text.
        assert_eq!(after, before, "{}", ensemble.tails());
    }
}

#[tokio::test]
async fn a_leader_that_was_stopped_for_longer_than_every_timeout_expires_nobody() {
    let mut ensemble = Ensemble::start(3, "").await;
    let leader = ensemble.leader().await;
    let follower = ensemble.follower().await;
    let client = ensemble.client([follower], Duration::from_secs(2)).await;
    client.create("/e", "", CreateMode::Ephemeral).await.unwrap();
    let session = client.session_id();
    ensemble.signal(leader, rustix::process::Signal::STOP);
    ensemble
        .until("another leads", |e| {
            e.ids().into_iter().any(|id| id != leader && e.srvr(id).is_some_and(|s| s.mode == "leader"))
        })
        .await;
    soon(&ensemble, "a write with the new leader", client.set("/e", "alive", None)).await.unwrap();
    ensemble.signal(leader, rustix::process::Signal::CONT);
    ensemble.converge().await;
    assert_eq!(client.session_id(), session);
    assert!(client.exists("/e").await.unwrap().is_some(), "the session never ended");
}

/// A process with all that it started; they end with the test.
struct Group(std::process::Child);

impl Drop for Group {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.0);
        // It may have ended by itself.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.0.wait();
    }
}

/// Starts a server on a file system of its own, of 24 MB; when it has ended, gives that file system more room and starts it
/// again. `None` where mounting is not permitted. In `folder` come `code`, `first.out`, `first.err` and `second.out`.
async fn start_on_a_small_disk(folder: &Path, data: &Path, config: &Path) -> Option<Group> {
    use std::os::unix::process::CommandExt;
    // Mounted where nobody else sees it, so that nothing has to be cleaned up.
    let script = r#"
        mount -t tmpfs -o size=24m corral "$1" || exit 77
        touch "$4/mounted"
        "$3" serve --config "$2" >"$4/first.out" 2>"$4/first.err"
        echo $? >"$4/code"
        mount -o remount,size=256m "$1"
        exec "$3" serve --config "$2" >"$4/second.out" 2>&1
    "#;
    for user in [&["--user", "--map-root-user"][..], &[]] {
        let mut command = Command::new("unshare");
        command.args(user).args(["--mount", "sh", "-c", script, "sh"]).arg(data).arg(config);
        command.arg(env!("CARGO_BIN_EXE_corral")).arg(folder).stdin(std::process::Stdio::null()).process_group(0);
        let Ok(child) = command.spawn() else { continue };
        let mut group = Group(child);
        while group.0.try_wait().expect("it is ours").is_none() {
            if folder.join("mounted").exists() {
                return Some(group);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    None
}

/// With `minFreeSpace` off, or on a disk that another program fills: the server says which file could not be written and what
/// to do, and ends with an exit code. With more room it goes on, and everything acknowledged is there.
#[tokio::test]
async fn a_server_whose_disk_is_full_says_so_and_ends() {
    const VALUES: usize = 1_500;
    let folder = tempfile::tempdir().unwrap();
    let (data, config) = (folder.path().join("data"), folder.path().join("zoo.cfg"));
    std::fs::create_dir(&data).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = format!(
        "dataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\ntickTime=500\nsegmentSize=4M\nsyncTimeout=500\n\
         minSessionTimeout=1000\nmaxSessionTimeout=180000\nminFreeSpace=0\n",
        data.display()
    );
    std::fs::write(&config, text).unwrap();
    let Some(_server) = start_on_a_small_disk(folder.path(), &data, &config).await else {
        println!("skipped: this machine does not permit mounts of one's own (unshare --mount)");
        return;
    };
    let said = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    let told = || ["first.out", "first.err", "code", "second.out"].map(said).join("\n---\n");
    let connect = Client::builder(format!("127.0.0.1:{port}")).session_timeout(Duration::from_secs(150)).connect();
    let client = timeout(PATIENCE, connect).await.unwrap_or_else(|_| panic!("never: a session\n{}", told())).unwrap();
    client.create("/load", "", CreateMode::Persistent).await.unwrap();
    // Nothing that could be compressed. What is not answered when the server ends is sent again, and done once.
    let mut seed = 7u64;
    let mut value = |n: usize| {
        let mut bytes = Vec::with_capacity(20_000);
        seed ^= n as u64;
        while bytes.len() < 20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.extend((seed ^ (seed >> 29)).to_le_bytes());
        }
        bytes
    };
    for n in 0..VALUES {
        let created = timeout(PATIENCE, client.create(&format!("/load/{n}"), value(n), CreateMode::Persistent)).await;
        created.unwrap_or_else(|_| panic!("create {n} is never answered\n{}", told())).expect("acknowledged");
    }
    assert_eq!(said("code").trim(), "1", "{}", told());
    let log = said("first.err");
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("this server stops at once")).collect();
    let [error] = errors[..] else { panic!("one line says why: {log}") };
    for words in ["No space left on device", data.to_str().unwrap(), "make room on the disk"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    let again = client.get_children("/load").await.unwrap();
    assert_eq!(again.len(), VALUES);
    client.close().await.unwrap();
}
