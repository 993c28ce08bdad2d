//! Caches against a server that cuts connections and forgets.

#[allow(dead_code, reason = "not all of the server is needed here")]
mod fake;

use std::time::Duration;

use corral_client::cache::{Cache, CacheEnd, CacheOptions, Delta, Deltas};
use corral_client::{Client, CreateMode, Transaction, WatchMode, Zxid};
use fake::Server;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("this must not take twenty seconds")
}

/// A server with /a, /a/b, /a/b/c and /z, and a client.
async fn start() -> (Server, Client) {
    let server = Server::start().await;
    for path in ["/a", "/a/b", "/a/b/c", "/z"] {
        server.set(path, "1");
    }
    let client = Client::connect(&server.address).await.unwrap();
    (server, client)
}

fn zxid(server: &Server) -> Zxid {
    Zxid(server.zxid())
}

/// Deltas up to the next time that the cache has caught up.
async fn step(deltas: &mut Deltas) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        all.push(match soon(deltas.next()).await {
            Some(Delta::Added { new, .. }) => format!("+{}", new.path),
            Some(Delta::Changed { old, new, .. }) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                format!("{} {}>{}", new.path, text(old.bytes()), text(new.bytes()))
            }
            Some(Delta::Removed { old, .. }) => format!("-{}", old.path),
            Some(Delta::CaughtUp(_)) if all.is_empty() => continue,
            Some(Delta::CaughtUp(_)) => return all,
            None => return vec!["end".to_owned()],
        });
    }
}

#[tokio::test]
async fn a_cache_shows_the_tree_at_one_zxid_and_moves_with_it() {
    let (server, client) = start().await;
    let cache = Cache::start(&client, "/a", WatchMode::Recursive);
    assert_eq!((cache.zxid(), cache.len()), (None, 0), "nothing is shown before it is exact");
    assert_eq!(soon(cache.loaded()).await.unwrap(), zxid(&server));
    let (snapshot, mut deltas) = cache.follow();
    let paths: Vec<&str> = snapshot.nodes.iter().map(|node| node.path.as_str()).collect();
    assert_eq!((paths, snapshot.zxid), (vec!["/a", "/a/b", "/a/b/c"], Some(zxid(&server))));
    server.set("/a/b", "2");
    assert_eq!(step(&mut deltas).await, ["/a/b 1>2"]);
    server.set("/z", "2");
    server.delete("/a/b/c");
    assert_eq!(step(&mut deltas).await, ["-/a/b/c"]);
    assert_eq!((cache.get("/a/b").unwrap().bytes(), cache.children("/a/b").len()), (&b"2"[..], 0));
    assert_eq!(cache.get("/a/b").unwrap().stat.num_children, 0, "what a Stat says of children moves, too");
    // A transaction is taken over whole, under one zxid.
    let both = Transaction::new().create("/a/x", "", CreateMode::Persistent).set("/a", "9", None);
    client.multi(both).await.unwrap();
    assert_eq!(step(&mut deltas).await, ["+/a/x", "/a 1>9"]);
    assert_eq!(soon(cache.caught_up_to(client.last_zxid())).await.unwrap(), zxid(&server));
}

#[tokio::test]
async fn caches_are_as_deep_as_they_are_asked_to_be() {
    let (server, client) = start().await;
    let node = Cache::start(&client, "/a", WatchMode::Node);
    let children = Cache::start(&client, "/a", WatchMode::Children);
    let nothing = Cache::start(&client, "/none", WatchMode::Recursive);
    for cache in [&node, &children, &nothing] {
        soon(cache.loaded()).await.unwrap();
    }
    server.set("/a/d", "");
    server.set("/a/b/e", "");
    server.set("/none", "");
    for cache in [&node, &children, &nothing] {
        soon(cache.caught_up_to(zxid(&server))).await.unwrap();
    }
    assert_eq!((node.len(), children.len(), nothing.len()), (1, 3, 1));
    assert_eq!(children.children("/a"), ["b", "d"]);
    server.delete("/none");
    soon(nothing.caught_up_to(zxid(&server))).await.unwrap();
    assert!(nothing.is_empty());
}

#[tokio::test]
async fn after_a_reconnect_a_cache_goes_on_and_reads_nothing_again() {
    let (server, client) = start().await;
    let cache = Cache::start(&client, "/a", WatchMode::Recursive);
    soon(cache.loaded()).await.unwrap();
    let (_, mut deltas) = cache.follow();
    let read = server.znodes_sent();
    server.away(|| {
        server.set("/a/b", "2");
        server.delete("/a/b/c");
        server.set("/a/b/c", "again");
    });
    assert_eq!(step(&mut deltas).await, ["/a/b 1>2", "-/a/b/c", "+/a/b/c"]);
    assert_eq!(server.znodes_sent(), read);
}

#[tokio::test]
async fn after_a_gap_a_cache_reads_what_is_newer_and_tells_the_difference() {
    let (server, client) = start().await;
    let cache = Cache::start(&client, "/a", WatchMode::Recursive);
    soon(cache.loaded()).await.unwrap();
    let (_, mut deltas) = cache.follow();
    let read = server.znodes_sent();
    server.away(|| {
        server.set("/a/b", "2");
        server.delete("/a/b/c");
        server.set("/a/b/c", "1");
        server.set("/a/new", "");
        server.delete("/a/new");
        server.forget_history();
    });
    // Created again, with the data that it had: another znode all the same.
    assert_eq!(step(&mut deltas).await, ["/a/b 1>2", "-/a/b/c", "+/a/b/c"]);
    assert_eq!(server.znodes_sent() - read, 2, "of what it has, only the Stat comes");
    assert_eq!(cache.get("/a").unwrap().bytes(), b"1");
    assert_eq!(server.violations(), 0);
}

#[tokio::test]
async fn a_reader_of_deltas_that_is_slow_gets_the_difference() {
    let (server, client) = start().await;
    let cache = Cache::start(&client, "/a", WatchMode::Recursive);
    soon(cache.loaded()).await.unwrap();
    let (_, mut deltas) = cache.follow();
    for n in 0..corral_client::cache::DELTAS_MAX {
        server.set("/a/b", &n.to_string());
        if n % 1_000 == 0 {
            soon(cache.caught_up_to(zxid(&server))).await.unwrap();
        }
    }
    server.set("/a/b", "last");
    soon(cache.caught_up_to(zxid(&server))).await.unwrap();
    let mut held = "1".to_owned();
    let mut steps = 0;
    while let Some(delta) = deltas.try_next() {
        if let Delta::Changed { old, new, .. } = delta {
            assert_eq!(old.bytes(), held.as_bytes(), "each step begins where the one before ended");
            held = String::from_utf8_lossy(new.bytes()).into_owned();
            steps += 1;
        }
    }
    assert_eq!(held, "last");
    assert!(steps < corral_client::cache::DELTAS_MAX, "{steps}");
}

#[tokio::test]
async fn a_cache_that_would_be_too_large_ends_and_says_so() {
    let (server, client) = start().await;
    let cache = Cache::start(&client, "/a", CacheOptions::from(WatchMode::Recursive).nodes_max(3));
    soon(cache.loaded()).await.unwrap();
    let (_, mut deltas) = cache.follow();
    server.set("/a/more", "");
    assert_eq!(step(&mut deltas).await, ["end"]);
    let error = soon(cache.caught_up_to(zxid(&server))).await.unwrap_err();
    assert!(matches!(error, CacheEnd::TooLarge { nodes: 4, .. }), "{error}");
    assert!(error.to_string().starts_with("the cache of /a would hold 4 znodes and "), "{error}");
    let small = Cache::start(&client, "/a", CacheOptions::from(WatchMode::Recursive).bytes_max(100));
    assert!(matches!(soon(small.loaded()).await, Err(CacheEnd::TooLarge { .. })));
}

#[tokio::test]
async fn a_cache_ends_with_its_session_and_goes_with_its_last_handle() {
    let (server, client) = start().await;
    let cache = Cache::start(&client, "/a", WatchMode::Recursive);
    soon(cache.loaded()).await.unwrap();
    let other = cache.clone();
    drop(cache);
    server.set("/a", "2");
    soon(other.caught_up_to(zxid(&server))).await.unwrap();
    assert_eq!(server.watches(), 1);
    soon(client.close()).await.unwrap();
    let error = soon(other.caught_up_to(Zxid(1 << 40))).await.unwrap_err();
    assert_eq!(error.to_string(), "the cache ended: cache /a: the client is closed");
    assert_eq!(other.get("/a").unwrap().bytes(), b"2", "what it showed last stays");
    let (server, client) = start().await;
    let cache = Cache::start(&client, "/a", WatchMode::Recursive);
    soon(cache.loaded()).await.unwrap();
    drop(cache);
    soon(async {
        while server.watches() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
