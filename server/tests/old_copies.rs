//! Old copies of a data folder, put back: whatever of the original was seen since, the copy does not vote with what it has
//! forgotten (P9).

mod processes;

use std::path::Path;
use std::time::Duration;

use corral_client::CreateMode;
use corral_core::storage::folder::PeerBook;
use corral_proto::ServerId;
use corral_server::storage::files::ReadOnlyDevice;
use processes::{Ensemble, copy_folder};
use rustix::process::Signal;

const SESSION: Duration = Duration::from_secs(20);
/// Small files: they are copied.
const CONFIG: &str = "segmentSize=4M\n";

/// What a server has noted, on disk, that another one holds.
fn noted(data: &Path, peer: u64) -> Option<u64> {
    let book = PeerBook::load(&ReadOnlyDevice::open(data).ok()?).ok()?;
    Some(book.latest().get(&ServerId(peer))?.mark.end.0)
}

/// The copy is recognised and ends; then it learns, counts again, and nothing is lost.
async fn it_is_recognised(ensemble: &mut Ensemble, victim: u64, words: &str, creates: usize) {
    ensemble.until("the copy ends", |e| e.has_ended(victim)).await;
    let log = ensemble.log(victim);
    assert!(log.contains("this data folder is an old copy") && log.contains(words), "{}", ensemble.tails());
    ensemble.kill(victim);
    ensemble.start_server(victim);
    let is_member = |e: &Ensemble| e.mntr(victim, "zk_membership").is_some_and(|m| m == "member");
    ensemble.until("it is a member again", is_member).await;
    ensemble.converge().await;
    let client = ensemble.client([victim], SESSION).await;
    assert_eq!(client.get_children("/load").await.unwrap().len(), creates);
    client.close().await.unwrap();
    // It does not have to learn twice.
    assert_eq!(ensemble.terminate(victim).await, Some(0), "{}", ensemble.tails());
    ensemble.start_server(victim);
    ensemble.until("it is a member", is_member).await;
    ensemble.converge().await;
}

#[tokio::test]
async fn a_copy_made_while_the_original_ran_is_recognised_by_what_it_lacks() {
    let mut ensemble = Ensemble::start(3, CONFIG).await;
    let victim = ensemble.follower().await;
    let others: Vec<u64> = ensemble.ids().into_iter().filter(|id| *id != victim).collect();
    let client = ensemble.client(others.clone(), SESSION).await;
    client.create("/load", "", CreateMode::Persistent).await.unwrap();
    ensemble.converge().await;
    // As a snapshot of a virtual machine: in the middle of a start, which is the last one.
    let backup = tempfile::tempdir().unwrap();
    ensemble.signal(victim, Signal::STOP);
    copy_folder(&ensemble.data(victim), backup.path());
    ensemble.signal(victim, Signal::CONT);
    for n in 0..20 {
        client.create(&format!("/load/{n}"), "", CreateMode::Persistent).await.unwrap();
    }
    let zxid = ensemble.converge().await;
    let known = |e: &Ensemble| others.iter().all(|id| noted(&e.data(*id), victim).is_some_and(|end| end >= zxid));
    ensemble.until("the others have noted what it holds", known).await;
    ensemble.kill(victim);
    ensemble.wipe(victim);
    copy_folder(backup.path(), &ensemble.data(victim));
    // The others forget what they have in memory: what is noted on disk is enough.
    for id in &others {
        ensemble.kill(*id);
    }
    for id in ensemble.ids() {
        ensemble.start_server(id);
    }
    it_is_recognised(&mut ensemble, victim, "has seen it know epoch", 20).await;
}

#[tokio::test]
async fn a_disk_that_was_replaced_is_recognised_when_it_comes_back() {
    let mut ensemble = Ensemble::start(3, CONFIG).await;
    let victim = ensemble.follower().await;
    let others: Vec<u64> = ensemble.ids().into_iter().filter(|id| *id != victim).collect();
    let client = ensemble.client(others, SESSION).await;
    client.create("/load", "", CreateMode::Persistent).await.unwrap();
    ensemble.converge().await;
    ensemble.kill(victim);
    let backup = tempfile::tempdir().unwrap();
    copy_folder(&ensemble.data(victim), backup.path());
    ensemble.wipe(victim);
    ensemble.start_server(victim);
    let is_member = |e: &Ensemble| e.mntr(victim, "zk_membership").is_some_and(|m| m == "member");
    ensemble.until("the new disk counts", is_member).await;
    client.create("/load/later", "", CreateMode::Persistent).await.unwrap();
    ensemble.kill(victim);
    ensemble.wipe(victim);
    copy_folder(backup.path(), &ensemble.data(victim));
    ensemble.start_server(victim);
    it_is_recognised(&mut ensemble, victim, "has seen it on a later one", 1).await;
}

/// `corral recover --accept-data-loss` on a server of which others have seen more than it holds now: that is the loss that was
/// accepted. Those of the former cluster have nothing to do with it, and cannot send it away.
#[tokio::test]
async fn a_server_recovered_with_accepted_loss_is_not_sent_away_by_its_former_cluster() {
    let mut ensemble = Ensemble::start(3, CONFIG).await;
    let victim = ensemble.follower().await;
    let others: Vec<u64> = ensemble.ids().into_iter().filter(|id| *id != victim).collect();
    let client = ensemble.client(others.clone(), SESSION).await;
    client.create("/load", "", CreateMode::Persistent).await.unwrap();
    ensemble.converge().await;
    let backup = tempfile::tempdir().unwrap();
    ensemble.signal(victim, Signal::STOP);
    copy_folder(&ensemble.data(victim), backup.path());
    ensemble.signal(victim, Signal::CONT);
    for n in 0..20 {
        client.create(&format!("/load/{n}"), "", CreateMode::Persistent).await.unwrap();
    }
    let zxid = ensemble.converge().await;
    for other in &others {
        let seen = |e: &Ensemble| noted(&e.data(*other), victim).is_some_and(|end| end >= zxid);
        ensemble.until("what the victim holds is noted on disk", seen).await;
    }

    ensemble.kill(victim);
    ensemble.wipe(victim);
    copy_folder(backup.path(), &ensemble.data(victim));
    let recover = |ensemble: &Ensemble| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_corral"));
        let command = command.args(["recover", "--accept-data-loss", "--config"]).arg(ensemble.config(victim));
        command.output().expect("it runs")
    };
    let output = recover(&ensemble);
    assert!(output.status.success(), "{output:?}");
    ensemble.start_server(victim);
    let parted = |e: &Ensemble| e.log(victim).matches("belongs to another cluster").count() > 0 || e.has_ended(victim);
    ensemble.until("it knows that the others are of another cluster", parted).await;
    assert!(!ensemble.has_ended(victim), "{}", ensemble.tails());
    assert!(!ensemble.log(victim).contains("is an old copy"), "{}", ensemble.tails());

    // With empty folders the others join it, and what it holds is what there is.
    for other in &others {
        ensemble.kill(*other);
        ensemble.wipe(*other);
    }
    ensemble.kill(victim);
    let servers: Vec<(u64, &str)> =
        ensemble.ids().into_iter().map(|id| (id, if id == victim { "participant" } else { "observer" })).collect();
    ensemble.set_members(&servers);
    for id in ensemble.ids() {
        ensemble.start_server(id);
    }
    ensemble.converge().await;
    let client = ensemble.client(others, SESSION).await;
    assert!(client.get_children("/load").await.unwrap().len() < 20, "the loss was accepted");
}
