//! Servers whose tree is not what execution made it (P35): real processes, real stores that are changed while their server is
//! stopped.

mod processes;

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use corral_client::{Client, CreateMode};
use corral_core::storage::folder::{Current, Found};
use corral_core::tree::record::{Meta, NodeRec, Stored};
use corral_core::tree::{Cf, Change, TreeStore, TreeView, key};
use corral_server::inspect::check;
use corral_server::storage::files::ReadOnlyDevice;
use corral_server::storage::rocks::{RocksStore, StoreOptions};
use processes::Ensemble;

const SESSION: Duration = Duration::from_secs(20);
/// So many entries pass an entry whose counter is a multiple of 1,024, wherever they begin.
const ENTRIES: usize = 1_100;

/// Changes the data of a znode in the store of a stopped server, as an execution that went wrong would: the running digest
/// goes with it, so nothing shows here.
fn spoil(data: &Path, path: &str, value: &'static str) {
    let Found::Valid(current) = Current::read(&ReadOnlyDevice::open(data).unwrap()).unwrap() else {
        panic!("the folder of a server that ran has a state")
    };
    let options = StoreOptions { block_cache_bytes: 1 << 20, memtable_bytes: 2 << 20 };
    let mut store = RocksStore::open(&data.join(current.folder()), options).unwrap();
    let (view, at) = (store.view(), key::node(path).unwrap());
    let old = view.get(Cf::Node, &at).expect("the znode is there");
    let mut rec = NodeRec::decode(&old).unwrap();
    let former = rec.data.len();
    rec.data = Stored::of(Some(&Bytes::from_static(value.as_bytes())));
    assert_eq!(rec.data.len(), former, "its size is counted, too");
    let new = rec.encode();
    let mut meta = Meta::read(&view).unwrap();
    meta.digest = meta.digest.wrapping_sub(NodeRec::digest(&at, &old)).wrapping_add(NodeRec::digest(&at, &new));
    drop(view);
    let changes = [
        Change { cf: Cf::Node, key: at, value: Some(new) },
        Change { cf: Cf::Aux, key: Bytes::from_static(key::META), value: Some(meta.encode()) },
    ];
    store.write(&mut changes.into_iter());
    store.flush(true);
}

/// Writes until every server has said another digest.
async fn write_on(client: &Client, parent: &str) {
    client.create(parent, "", CreateMode::Persistent).await.unwrap();
    let mut pending = VecDeque::new();
    for n in 0..ENTRIES {
        pending.push_back(client.create(&format!("{parent}/{n}"), "x", CreateMode::Persistent));
        if pending.len() > 100 {
            pending.pop_front().expect("pending").await.unwrap();
        }
    }
    for answer in pending {
        answer.await.unwrap();
    }
}

const WORDS: &str = "the tree of this server differs from the trees of a majority";

/// The server stopped, saying why; it starts amnesiac, keeps its old files, and comes right.
async fn it_learns_again(ensemble: &mut Ensemble, id: u64, value: &str) {
    ensemble.until("the wrong server ends", |e| e.has_ended(id)).await;
    assert!(ensemble.log(id).contains(WORDS), "{}", ensemble.tails());
    ensemble.kill(id);
    let report = check::check(&ensemble.data(id), &mut |_| {}).unwrap();
    assert!(report.text().contains("log and store are condemned"), "{}", report.text());
    ensemble.start_server(id);
    let is_member = |e: &Ensemble| e.mntr(id, "zk_membership").is_some_and(|m| m == "member");
    ensemble.until("it is a member again", is_member).await;
    ensemble.converge().await;
    assert!(ensemble.data(id).join("damaged-1").exists(), "its old folder is kept");
    let client = ensemble.client([id], SESSION).await;
    assert_eq!(client.get("/kept").await.unwrap().bytes(), value.as_bytes());
    client.close().await.unwrap();
}

#[tokio::test]
async fn a_follower_whose_tree_differs_stops_and_learns_again() {
    let mut ensemble = Ensemble::start(3, "").await;
    let victim = ensemble.follower().await;
    let others: Vec<u64> = ensemble.ids().into_iter().filter(|id| *id != victim).collect();
    let client = ensemble.client(others, SESSION).await;
    client.create("/kept", "right", CreateMode::Persistent).await.unwrap();
    ensemble.converge().await;
    assert_eq!(ensemble.terminate(victim).await, Some(0), "{}", ensemble.tails());
    spoil(&ensemble.data(victim), "/kept", "wrong");
    ensemble.start_server(victim);
    // It has executed the opening of this epoch before it was changed. Nobody writes.
    it_learns_again(&mut ensemble, victim, "right").await;
    let leader = ensemble.leader().await;
    let mismatches = ensemble.mntr(leader, "zk_digest_mismatches_count").and_then(|n| n.parse::<u64>().ok());
    assert!(mismatches > Some(0), "{mismatches:?}");
    assert_eq!(ensemble.mntr(leader, "zk_digest_alarm").as_deref(), Some("0"));
}

#[tokio::test]
async fn a_leader_whose_tree_differs_steps_down_and_stops_and_the_others_go_on() {
    // What is executed is on disk at once, so that a killed server's store can be changed.
    let mut ensemble = Ensemble::start(3, "flushAfterEntries=1\n").await;
    let client = ensemble.client(ensemble.ids(), SESSION).await;
    client.create("/kept", "right", CreateMode::Persistent).await.unwrap();
    for n in 0..5 {
        client.create(&format!("/later-{n}"), "", CreateMode::Persistent).await.unwrap();
    }
    client.close().await.unwrap();
    ensemble.converge().await;
    for id in ensemble.ids() {
        ensemble.kill(id);
    }
    // Of equal logs that of the largest number wins the election.
    let victim = 3;
    spoil(&ensemble.data(victim), "/kept", "wrong");
    for id in [3, 2] {
        ensemble.start_server(id);
    }
    // Two that differ are no majority: nobody can tell yet who is right.
    ensemble.until("the wrong server leads", |e| e.srvr(victim).is_some_and(|s| s.mode == "leader")).await;
    ensemble.start_server(1);
    ensemble.until("the wrong server ends", |e| e.has_ended(victim)).await;
    let log = ensemble.log(victim);
    assert!(log.contains("the tree of this leader differs from a majority's"), "it led\n{}", ensemble.tails());
    let leads = |e: &Ensemble| [1, 2].iter().any(|id| e.srvr(*id).is_some_and(|s| s.mode == "leader"));
    ensemble.until("another leads", leads).await;
    it_learns_again(&mut ensemble, victim, "right").await;
}

#[tokio::test]
async fn without_a_majority_of_equal_trees_nobody_stops_and_an_alarm_is_raised() {
    let mut ensemble = Ensemble::start(3, "").await;
    let client = ensemble.client(ensemble.ids(), SESSION).await;
    client.create("/kept", "right", CreateMode::Persistent).await.unwrap();
    client.close().await.unwrap();
    ensemble.converge().await;
    for id in [1, 2] {
        assert_eq!(ensemble.terminate(id).await, Some(0), "{}", ensemble.tails());
    }
    spoil(&ensemble.data(1), "/kept", "wrong");
    spoil(&ensemble.data(2), "/kept", "badly");
    for id in [1, 2] {
        ensemble.start_server(id);
    }
    let alarm = |e: &Ensemble| {
        e.ids().into_iter().filter(|id| e.mntr(*id, "zk_digest_alarm").as_deref() == Some("1")).count() == 1
    };
    // Nobody writes: who comes when the epoch's opening was compared long ago is compared where all are at rest.
    ensemble.until("the leader raises an alarm", alarm).await;
    let leader = ensemble.leader().await;
    assert!(ensemble.log(leader).contains("ALARM: the trees of the servers differ"), "{}", ensemble.tails());
    assert!(ensemble.ids().into_iter().all(|id| !ensemble.has_ended(id)), "nobody stops");
    let client = ensemble.client([3], SESSION).await;
    client.create("/served", "", CreateMode::Persistent).await.unwrap();

    // One is made right by hand; then two are a majority, and the third knows that it is wrong.
    let (mended, wrong) = if leader == 1 { (2, 1) } else { (1, 2) };
    ensemble.kill(mended);
    ensemble.wipe(mended);
    ensemble.start_server(mended);
    let is_member = |e: &Ensemble| e.mntr(mended, "zk_membership").is_some_and(|m| m == "member");
    ensemble.until("it has learned from the log", is_member).await;
    write_on(&client, "/more").await;
    it_learns_again(&mut ensemble, wrong, "right").await;
    ensemble.until("the alarm is over", |e| !alarm(e)).await;
}
