//! The end of a run: all servers at rest hold the same, and what was acknowledged is in it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use corral_proto::Stat;
use corral_proto::jute::{Request, Response};
use tokio::time::{Instant, sleep, timeout};

use crate::Result;
use crate::ensemble::{Ensemble, PATIENCE, POLL};
use crate::journal::Journal;
use crate::wire::{Answer, WireSession};

/// Session timeout of those who look at the end, ms.
const SESSION_TIMEOUT_MS: u64 = 30_000;

/// Everything below the root of one server: data and Stat.
type Tree = BTreeMap<String, (Vec<u8>, Stat)>;

/// Waits until all servers are whole and agree, and compares what they hold.
///
/// # Errors
/// If the system refuses.
pub async fn check(ensemble: &mut Ensemble, kept: &[String], journal: &Arc<Journal>) -> Result<()> {
    if !ensemble.wait_whole(PATIENCE).await? {
        let states = ensemble.states().await;
        journal.violation("rest", format_args!("the servers never come to rest: {states:?}"), &ensemble.tails(300));
        return Ok(());
    }
    no_session_stays(ensemble, journal).await;
    same_digest(ensemble, journal).await;
    let mut trees = Vec::new();
    for id in ensemble.ids() {
        match timeout(PATIENCE, read_tree(ensemble, id, journal)).await {
            Ok(tree) => trees.push((id, tree)),
            Err(_) => journal.violation("rest", format_args!("server {id} cannot be read"), &ensemble.tails(200)),
        }
    }
    if let Some((first, tree)) = trees.first() {
        journal.say(format_args!("{} znodes compared on {} servers", tree.len(), trees.len()));
        for (id, other) in &trees[1..] {
            if let Some(difference) = difference(tree, other) {
                let text = format!("servers {first} and {id} differ: {difference}");
                journal.violation("rest", text, &ensemble.tails(200));
            }
        }
        if let Some(lost) = kept.iter().find(|path| !tree.contains_key(*path)) {
            journal.violation("rest", format_args!("{lost} was acknowledged long ago, and is lost"), "");
        }
        if let Some((path, _)) = tree.iter().find(|(_, (_, stat))| stat.ephemeral_owner != 0) {
            journal.violation("rest", format_args!("{path} is ephemeral, and all its clients are gone"), "");
        }
    }
    Ok(())
}

/// All clients have closed their sessions or left them: in time there is none.
async fn no_session_stays(ensemble: &Ensemble, journal: &Journal) {
    let deadline = Instant::now() + PATIENCE;
    for id in ensemble.ids() {
        loop {
            let sessions = ensemble.mntr(id, "zk_global_sessions").await;
            if sessions.as_deref() == Some("0") {
                break;
            }
            if Instant::now() >= deadline {
                let text = format!("server {id} knows of {sessions:?} sessions long after their clients went");
                journal.violation("rest", text, &ensemble.ask(id, "dump").await.unwrap_or_default());
                break;
            }
            sleep(POLL).await;
        }
    }
}

/// Digests at one zxid are equal.
async fn same_digest(ensemble: &Ensemble, journal: &Journal) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut states = Vec::new();
        for id in ensemble.ids() {
            let before = ensemble.srvr(id).await.map(|srvr| srvr.zxid);
            let digest = ensemble.mntr(id, "zk_digest").await;
            let after = ensemble.srvr(id).await.map(|srvr| srvr.zxid);
            states.push((before, digest, after));
        }
        let (zxid, digest, _) = states[0].clone();
        if zxid.is_some() && digest.is_some() && states.iter().all(|(a, _, b)| *a == zxid && *b == zxid) {
            if states.iter().any(|(_, theirs, _)| *theirs != digest) {
                let text = format!("digests differ at one zxid: {states:?}");
                journal.violation("rest", text, &ensemble.tails(200));
            }
            return;
        }
        if Instant::now() >= deadline {
            journal.violation("rest", format_args!("the servers never agree: {states:?}"), &ensemble.tails(200));
            return;
        }
        sleep(POLL).await;
    }
}

async fn read_tree(ensemble: &Ensemble, id: u64, journal: &Arc<Journal>) -> Tree {
    let session = WireSession::begin(vec![ensemble.direct(id)], SESSION_TIMEOUT_MS, journal.clone(), id);
    let mut tree = Tree::new();
    let mut folders = vec!["/".to_owned()];
    while let Some(path) = folders.pop() {
        let requests = vec![
            Request::Sync { path: "/".to_owned() },
            Request::GetData { path: path.clone(), watch: false },
            Request::GetChildren { path: path.clone(), watch: false },
        ];
        let answers = session.ask_all(requests).await;
        if let [
            Answer::Done { .. },
            Answer::Done { body: Response::Data { data, stat }, .. },
            Answer::Done { body: Response::Names(names), .. },
        ] = &answers[..]
        {
            // ZooKeeper's own nodes tell of the server as much as of the tree.
            let own = path == "/" || path.starts_with("/zookeeper");
            let stat = if own { Stat::default() } else { *stat };
            let slash = if path == "/" { "" } else { &path };
            folders.extend(names.iter().map(|name| format!("{slash}/{name}")));
            tree.insert(path, (data.as_deref().unwrap_or_default().to_vec(), stat));
        } else {
            sleep(Duration::from_millis(100)).await;
            folders.push(path);
        }
    }
    session.ask(Request::CloseSession).await;
    tree
}

fn difference(one: &Tree, other: &Tree) -> Option<String> {
    for (path, value) in one {
        match other.get(path) {
            None => return Some(format!("{path} is on one only")),
            Some(theirs) if theirs != value => return Some(format!("{path}: {value:?} and {theirs:?}")),
            Some(_) => {}
        }
    }
    other.keys().find(|path| !one.contains_key(*path)).map(|path| format!("{path} is on the other only"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_that_differ_are_told_apart() {
        let tree = |list: &[(&str, &str)]| -> Tree {
            list.iter().map(|(path, data)| ((*path).to_owned(), (data.as_bytes().to_vec(), Stat::default()))).collect()
        };
        let one = tree(&[("/a", "1"), ("/b", "2")]);
        assert_eq!(difference(&one, &one.clone()), None);
        for other in
            [tree(&[("/a", "1")]), tree(&[("/a", "1"), ("/b", "3")]), tree(&[("/a", "1"), ("/b", "2"), ("/c", "")])]
        {
            assert!(difference(&one, &other).is_some());
        }
    }
}
