//! Followers of the change feed and caches, against three real server processes that are killed, stopped and emptied.
//!
//! `CHAOS_SECONDS=600` makes the chaos ten minutes; `CHAOS_SEED=n` repeats its choices.

mod processes;

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use corral_client::cache::{Cache, CacheOptions, Delta};
use corral_client::{
    Client, CreateMode, EventKind, FeedItem, FeedOptions, OpResult, Transaction, WatchEvent, WatchMode, Zxid,
};
use processes::{Ensemble, PATIENCE};
use tokio::time::{Instant, sleep, timeout};

const SESSION: Duration = Duration::from_secs(60);
/// Transactions under way at once.
const PIPELINE: usize = 8;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Chance from a seed: what is chosen is repeated, when it happens is not.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Data, version and creation of every znode.
type Tree = BTreeMap<String, (Vec<u8>, i32, i64)>;

fn hash(tree: &Tree) -> u64 {
    let mut hasher = DefaultHasher::new();
    tree.hash(&mut hasher);
    hasher.finish()
}

#[derive(Clone, Debug)]
enum Step {
    Create(String),
    Set(String),
    Delete(String),
}

/// What a transaction did, by its zxid; the clock ticks with each.
type Log = BTreeMap<i64, (Step, u64)>;

fn apply(tree: &mut Tree, zxid: i64, step: &Step, tick: u64) {
    match step {
        Step::Create(path) => drop(tree.insert(path.clone(), (tick.to_string().into(), 0, zxid))),
        Step::Set(path) => {
            let node = tree.get_mut(path).expect("only what is there is set");
            (node.0, node.1) = (tick.to_string().into(), node.1 + 1);
        }
        Step::Delete(path) => drop(tree.remove(path)),
    }
    let clock = tree.get_mut("/t/clock").expect("it was made first");
    (clock.0, clock.1) = (tick.to_string().into(), clock.1 + 1);
}

/// Writes until told to stop: transactions that change one of some znodes each, and tick the clock. Every one is
/// acknowledged once, so the log is all that happened.
async fn write(client: Client, stop: Arc<AtomicBool>, mut chance: Chance, first: u64) -> Log {
    let mut there: BTreeMap<String, u64> = BTreeMap::new();
    let mut log = Log::new();
    let mut pending = VecDeque::new();
    let mut tick = first;
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        while !stopping && pending.len() < PIPELINE {
            tick += 1;
            let top = format!("/t/n{}", chance.below(6));
            let path = if chance.below(2) == 0 { top } else { format!("{top}/c{}", chance.below(3)) };
            let parent = path.rsplit_once('/').expect("absolute").0.to_owned();
            let has_parent = parent == "/t" || there.contains_key(&parent);
            let children = there.range(format!("{path}/")..format!("{path}0")).count();
            let step = match (there.contains_key(&path), chance.below(3)) {
                (false, _) if has_parent => Step::Create(path),
                (true, 0) if children == 0 => Step::Delete(path),
                (true, _) => Step::Set(path),
                (false, _) => continue,
            };
            let data = tick.to_string();
            let transaction = Transaction::new();
            let transaction = match &step {
                Step::Create(path) => {
                    there.insert(path.clone(), tick);
                    transaction.create(path, &data, CreateMode::Persistent)
                }
                Step::Set(path) => transaction.set(path, &data, None),
                Step::Delete(path) => {
                    there.remove(path);
                    transaction.delete(path, None)
                }
            };
            pending.push_back((step, tick, client.multi(transaction.set("/t/clock", &data, None))));
        }
        let Some((step, tick, done)) = pending.pop_front() else { return log };
        let results = done.await.expect("every transaction is done");
        let Some(OpResult::Set(clock)) = results.last() else { panic!("{results:?}") };
        assert!(log.insert(clock.mzxid, (step, tick)).is_none(), "one zxid for one transaction");
    }
}

/// Applies the feed to an empty map until it has told of everything up to `last`; gives what the map was at each bookmark.
async fn follow(client: Client, from: Zxid, last: tokio::sync::watch::Receiver<Option<Zxid>>) -> Vec<(Zxid, u64)> {
    let options = FeedOptions::from(WatchMode::Recursive).after(from).with_nodes();
    let mut feed = client.feed("/t", options).await.expect("it is followed");
    let (mut tree, mut seen, mut bookmarks) = (Tree::new(), from, Vec::new());
    loop {
        let mut at_end = last.clone();
        let item = tokio::select! {
            item = feed.next() => item.expect("the session lasts"),
            // Copied: what `wait_for` gives holds a lock.
            reached = async { at_end.wait_for(|last| last.is_some()).await.map(|last| *last) } => {
                let last = reached.expect("the test lasts").expect("waited for");
                if bookmarks.last().is_some_and(|(zxid, _)| *zxid >= last) {
                    return bookmarks;
                }
                client.sync("/t").await.expect("the session lasts");
                match timeout(Duration::from_millis(100), feed.next()).await {
                    Ok(item) => item.expect("the session lasts"),
                    Err(_) => continue,
                }
            }
        };
        match item {
            FeedItem::Changes(changes) => {
                assert!(changes.zxid > seen, "{} came after {seen}", changes.zxid);
                seen = changes.zxid;
                for event in changes.events {
                    match (event.kind, event.node) {
                        (EventKind::NodeDeleted, _) => drop(tree.remove(&event.path)),
                        (_, Some(node)) => {
                            assert_eq!(node.stat.mzxid, seen.as_i64(), "data is as of its change");
                            let data = node.data.unwrap_or_default().to_vec();
                            tree.insert(event.path, (data, node.stat.version, node.stat.czxid));
                        }
                        (_, None) => {}
                    }
                }
            }
            FeedItem::Bookmark(zxid) => {
                assert!(zxid >= seen, "bookmark {zxid} after {seen}");
                bookmarks.push((zxid, hash(&tree)));
            }
            FeedItem::Gap(gap) => panic!("nothing is forgotten so soon: {gap}"),
        }
    }
}

/// Applies the deltas of a cache to its first snapshot until they reach `last`.
async fn follow_cache(cache: &Cache, last: Zxid) -> Tree {
    let node = |node: &corral_client::cache::CachedNode| (node.bytes().to_vec(), node.stat.version, node.stat.czxid);
    let (snapshot, mut deltas) = cache.follow();
    let mut tree: Tree = snapshot.nodes.iter().map(|held| (held.path.clone(), node(held))).collect();
    let mut at = snapshot.zxid;
    while at.is_none_or(|at| at < last) {
        match deltas.next().await.expect("the cache lasts") {
            Delta::Added { new, .. } => assert!(tree.insert(new.path.clone(), node(&new)).is_none()),
            Delta::Changed { old, new, .. } => assert_eq!(tree.insert(new.path.clone(), node(&new)), Some(node(&old))),
            Delta::Removed { old, .. } => assert_eq!(tree.remove(&old.path), Some(node(&old))),
            Delta::CaughtUp(zxid) => at = Some(zxid),
        }
    }
    tree
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_have_the_tree_at_every_bookmark_while_servers_die() {
    let (seconds, seed) = (number("CHAOS_SECONDS", 12), number("CHAOS_SEED", 1));
    let mut ensemble = Ensemble::start(3, "").await;
    let writer = ensemble.client(ensemble.ids(), SESSION).await;
    let from = writer.last_zxid();
    let top = writer.create("/t", "top", CreateMode::Persistent).await.unwrap();
    let clock = writer.create("/t/clock", "0", CreateMode::Persistent).await.unwrap();
    let (stop, (end, last)) = (Arc::new(AtomicBool::new(false)), tokio::sync::watch::channel(None));
    let mut followers = Vec::new();
    for id in ensemble.ids() {
        // Each begins at another server; all of them go anywhere.
        let ids: Vec<u64> = (0..3).map(|n| (id - 1 + n) % 3 + 1).collect();
        followers.push(tokio::spawn(follow(ensemble.client(ids, SESSION).await, from, last.clone())));
    }
    let cached = ensemble.client(ensemble.ids(), SESSION).await;
    let cache = Cache::start(&cached, "/t", CacheOptions::from(WatchMode::Recursive));
    let writing = tokio::spawn(write(writer.clone(), stop.clone(), Chance(seed), 0));

    let mut chance = Chance(seed ^ 0xc0_ffee);
    let (begun, mut kills, mut pauses, mut wipes) = (Instant::now(), 0, 0, 0);
    while begun.elapsed() < Duration::from_secs(seconds) {
        let id = 1 + chance.below(3);
        match chance.below(10) {
            0..6 => {
                ensemble.kill(id);
                kills += 1;
                if chance.below(5) == 0 {
                    ensemble.wipe(id);
                    wipes += 1;
                }
                sleep(Duration::from_millis(chance.below(1_500))).await;
                ensemble.start_server(id);
            }
            6..8 => {
                ensemble.signal(id, rustix::process::Signal::STOP);
                sleep(Duration::from_millis(200 + chance.below(2_500))).await;
                ensemble.signal(id, rustix::process::Signal::CONT);
                pauses += 1;
            }
            _ => {
                ensemble.terminate(id).await;
                ensemble.start_server(id);
                kills += 1;
            }
        }
        // All three must be there, and remember what they promised, before another goes: a majority must not be lost.
        let votes = |ensemble: &Ensemble, id| ensemble.mntr(id, "zk_membership").is_some_and(|it| it == "member");
        ensemble.until("all servers serve and vote", |ensemble| (1..=3).all(|id| votes(ensemble, id))).await;
    }
    stop.store(true, Ordering::Relaxed);
    let log = timeout(PATIENCE, writing).await.expect("the writer stops").expect("it does not panic");
    let last_zxid = Zxid::from_i64(*log.keys().next_back().expect("something was written"));
    end.send_replace(Some(last_zxid));

    // What the tree was, zxid by zxid.
    let mut tree = Tree::from([
        ("/t".to_owned(), (b"top".to_vec(), 0, top.zxid.as_i64())),
        ("/t/clock".to_owned(), (b"0".to_vec(), 0, clock.zxid.as_i64())),
    ]);
    let mut states: BTreeMap<i64, u64> = BTreeMap::from([(clock.zxid.as_i64(), hash(&tree))]);
    for (zxid, (step, tick)) in &log {
        apply(&mut tree, *zxid, step, *tick);
        states.insert(*zxid, hash(&tree));
    }
    let mut compared = 0;
    for follower in followers {
        let bookmarks = timeout(PATIENCE, follower).await.expect("followers catch up").expect("no follower panics");
        for (zxid, held) in bookmarks {
            if let Some((at, expected)) = states.range(..=zxid.as_i64()).next_back() {
                assert_eq!(held, *expected, "at bookmark {zxid}; the tree is that of {at:#x}");
                compared += 1;
            }
        }
    }
    timeout(PATIENCE, cache.caught_up_to(last_zxid)).await.expect("the cache catches up").unwrap();
    assert_eq!(timeout(PATIENCE, follow_cache(&cache, last_zxid)).await.expect("the cache ends there"), tree);
    println!(
        "{} s: {} transactions, {kills} kills ({wipes} with the disk), {pauses} pauses; {compared} bookmarks compared",
        begun.elapsed().as_secs(),
        log.len()
    );
    assert!(compared > 10 && kills > 0 && log.len() > 100, "{compared} {kills} {}", log.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forgotten_is_told_and_a_cache_asks_only_for_what_is_newer() {
    let mut ensemble = Ensemble::start(1, "changeFeedSize=2K").await;
    let client = ensemble.client([1], SESSION).await;
    client.create("/t", "", CreateMode::Persistent).await.unwrap();
    for n in 0..20 {
        client.create(&format!("/t/n{n:02}"), "old", CreateMode::Persistent).await.unwrap();
    }
    let away = ensemble.client([1], SESSION).await;
    let cache = Cache::start(&away, "/t", CacheOptions::from(WatchMode::Recursive));
    cache.caught_up_to(client.last_zxid()).await.unwrap();
    let (_, mut deltas) = cache.follow();
    let mut watcher = away.watch("/t/n00", WatchMode::Node).await.unwrap();
    let after = watcher.position();

    // The server is stopped for the one who is away, and forgets more than it remembers before that one is back.
    ensemble.terminate(1).await;
    ensemble.start_server(1);
    ensemble.leader().await;
    client.delete("/t/n01", None).await.unwrap();
    let again = client.create("/t/n01", "again", CreateMode::Persistent).await.unwrap();
    for _ in 0..100 {
        client.set("/t/n00", "new", None).await.unwrap();
    }
    cache.caught_up_to(client.last_zxid()).await.unwrap();
    assert_eq!(cache.get("/t/n00").unwrap().bytes(), b"new");
    assert_eq!(cache.get("/t/n01").unwrap().stat.czxid, again.zxid.as_i64());
    assert_eq!((cache.len(), cache.children("/t").len()), (21, 20));
    let mut steps = Vec::new();
    while let Some(delta) = deltas.try_next() {
        match delta {
            Delta::Changed { new, .. } if new.path == "/t/n00" => steps.push("changed"),
            Delta::Removed { old, .. } if old.path == "/t/n01" => steps.push("removed"),
            Delta::Added { new, .. } if new.path == "/t/n01" => steps.push("added"),
            Delta::CaughtUp(_) => {}
            other => panic!("nothing else changed: {other:?}"),
        }
    }
    steps.dedup();
    assert!(steps.ends_with(&["changed"]) || steps.ends_with(&["removed", "added"]), "{steps:?}");
    // The watcher was told of all, or that something is missing: which of the two depends on when it came back.
    let mut told = 0;
    loop {
        match timeout(PATIENCE, watcher.next()).await.expect("it is told").expect("the session lasts") {
            WatchEvent::Node(_) => told += 1,
            WatchEvent::Gap(gap) => {
                assert!(gap.after >= after && gap.resync > gap.after);
                break;
            }
        }
        if told == 100 {
            break;
        }
    }
    client.close().await.unwrap();
}
