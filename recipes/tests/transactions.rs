//! Software transactions and configuration against a server that cuts connections.

mod common;

use common::{Cut, Server, client, no_violations, soon, until};
use corral_client::{Client, ErrorCode, Transaction};
use corral_recipes::{ConfigChange, ConfigMap, Error, Snapshot, Source, transact};

fn number(data: Option<Vec<u8>>) -> u64 {
    data.map_or(0, |data| String::from_utf8(data).unwrap().parse().unwrap())
}

/// Money moves between accounts, and the sum is always the same, wherever connections are cut.
#[tokio::test]
async fn concurrent_transactions_are_as_if_alone() {
    for every in [0, 9, 14] {
        let server = Server::start().await;
        let clients = [client(&server).await, client(&server).await, client(&server).await];
        for account in 0..3 {
            server.set(&format!("/account-{account}"), "100");
        }
        if every > 0 {
            server.state.lock().cut = Cut::EveryStep(every);
        }
        let transfer = |client: Client, from: usize| async move {
            for n in 0..8 {
                let (from, to) = (format!("/account-{from}"), format!("/account-{}", (from + 1 + n % 2) % 3));
                transact(&client, |tx| {
                    let (from, to) = (from.clone(), to.clone());
                    async move {
                        let (a, b) = (number(tx.get(&from).await?), number(tx.get(&to).await?));
                        tx.put(&from, (a - 1).to_string()).await?;
                        tx.put(&to, (b + 1).to_string()).await
                    }
                })
                .await
                .unwrap();
            }
        };
        let audit = |client: Client| async move {
            for _ in 0..8 {
                let sum = transact(&client, |tx| async move {
                    let mut sum = 0;
                    for account in 0..3 {
                        sum += number(tx.get(&format!("/account-{account}")).await?);
                    }
                    Ok(sum)
                })
                .await
                .unwrap();
                assert_eq!(sum, 300);
            }
        };
        let [a, b, c] = clients.clone();
        soon(async { tokio::join!(transfer(a, 0), transfer(b, 1), audit(c)) }).await;
        server.state.lock().cut = Cut::Never;
        no_violations(&server);
    }
}

#[tokio::test]
async fn what_was_missing_must_still_be_missing_at_the_commit() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    server.set("/flag", "0");
    let mut runs = 0;
    transact(&a, |tx| {
        runs += 1;
        let (other, first) = (b.clone(), runs == 1);
        async move {
            let is_there = tx.get("/deep/below/x").await?.is_some();
            if first {
                // Somebody creates its parent while we think.
                other.create("/deep", (), corral_client::CreateMode::Persistent).await?;
            }
            tx.put("/flag", if is_there { "there" } else { "missing" }).await
        }
    })
    .await
    .unwrap();
    assert_eq!(runs, 2);
    assert_eq!(server.data("/flag").as_deref(), Some(b"missing".as_slice()));
    assert_eq!(server.children("/deep"), Vec::<String>::new());
}

#[tokio::test]
async fn a_transaction_creates_and_deletes_whole_trees() {
    let server = Server::start().await;
    let a = client(&server).await;
    transact(&a, |tx| async move {
        tx.put("/t", "1").await?;
        tx.put("/t/a", "2").await?;
        assert_eq!(tx.get("/t/a").await?.as_deref(), Some(b"2".as_slice()));
        tx.put("/t/b", "3").await?;
        assert!(tx.delete("/t/b").await?);
        assert_eq!(tx.get("/t/b").await?, None);
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(server.children("/t"), ["a"]);
    let orphan = transact(&a, |tx| async move { tx.put("/none/x", "1").await }).await.unwrap_err();
    let Error::Client(orphan) = orphan else { panic!("{orphan}") };
    assert_eq!(orphan.code(), Some(ErrorCode::NoNode));
    let full = transact(&a, |tx| async move { tx.delete("/t").await }).await.unwrap_err();
    let Error::Client(full) = full else { panic!("{full}") };
    assert_eq!(full.code(), Some(ErrorCode::NotEmpty));
    let gone = transact(&a, |tx| async move { Ok((tx.delete("/t/a").await?, tx.delete("/t").await?)) });
    assert_eq!(soon(gone).await.unwrap(), (true, true));
    assert!(!server.exists("/t"));
}

#[tokio::test]
async fn a_body_never_sees_two_states() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    server.set("/x", "1");
    server.set("/y", "1");
    let mut runs = 0;
    let seen = transact(&a, |tx| {
        runs += 1;
        let (other, first) = (b.clone(), runs == 1);
        async move {
            let x = tx.get("/x").await?;
            if first {
                other.multi(Transaction::new().set("/x", "2", None).set("/y", "2", None)).await?;
            }
            // Swallowed: the attempt does not count all the same.
            let y = tx.get("/y").await.unwrap_or_default();
            Ok((number(x), number(y)))
        }
    })
    .await
    .unwrap();
    assert_eq!((seen, runs), ((2, 2), 2));
}

#[tokio::test]
async fn a_transaction_that_always_loses_gives_up() {
    let server = Server::start().await;
    let a = client(&server).await;
    server.set("/x", "1");
    let lost = transact(&a, |tx| {
        let server = server.clone();
        async move {
            tx.get("/x").await?;
            server.set("/x", "other");
            tx.put("/x", "mine").await
        }
    });
    let lost = tokio::time::timeout(std::time::Duration::from_secs(60), lost).await.unwrap().unwrap_err();
    assert!(matches!(lost, Error::Contended { .. }), "{lost}");
    assert_eq!(server.data("/x").as_deref(), Some(b"other".as_slice()));
}

#[derive(Debug, PartialEq)]
struct Range {
    low: i64,
    high: i64,
}

#[tokio::test]
async fn a_configuration_counts_only_if_its_check_passes() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    b.multi(
        Transaction::new()
            .create("/config", (), corral_client::CreateMode::Persistent)
            .create("/config/range", (), corral_client::CreateMode::Persistent)
            .create("/config/range/low", "1", corral_client::CreateMode::Persistent)
            .create("/config/range/high", "9", corral_client::CreateMode::Persistent),
    )
    .await
    .unwrap();
    let check = |all: &corral_recipes::Snapshot| {
        let range = Range { low: all.parse("range/low")?, high: all.parse("range/high")? };
        if range.low < range.high { Ok(range) } else { Err(format!("{} is not below {}", range.low, range.high)) }
    };
    let mut config = soon(ConfigMap::open(&a, "/config", check)).await.unwrap();
    let first = config.current();
    assert_eq!(first.value, Range { low: 1, high: 9 });
    // One transaction is one change, though each of its parts alone would be refused.
    server.cut_all();
    b.multi(Transaction::new().set("/config/range/low", "20", None).set("/config/range/high", "30", None))
        .await
        .unwrap();
    soon(async {
        while config.current().value == first.value {
            config.changed().await.unwrap();
            assert_eq!(config.rejected(), None);
        }
    })
    .await;
    let second = config.current();
    assert_eq!(second.value, Range { low: 20, high: 30 });
    assert!(second.snapshot.zxid > first.snapshot.zxid);
    let changed = |path: &str| ConfigChange::Changed(path.into());
    assert_eq!(first.snapshot.changes(&second.snapshot), [changed("range/high"), changed("range/low")]);
    // What is wrong is told, and the last good one stays.
    b.set("/config/range/low", "99", None).await.unwrap();
    soon(async {
        while config.rejected().is_none() {
            config.changed().await.unwrap();
        }
    })
    .await;
    assert_eq!(config.rejected().unwrap().reason, "99 is not below 30");
    assert_eq!(config.current().value, second.value);
    b.set("/config/range/low", "20", None).await.unwrap();
    until("it is right again", || config.rejected().is_none()).await;
    let refused = soon(ConfigMap::open(&a, "/nothing", check)).await.unwrap_err();
    assert_eq!(refused, Error::Malformed { path: "/nothing".into(), reason: "range/low is missing".into() });
    server.expire(a.session_id().0);
    soon(async { while config.changed().await.is_ok() {} }).await;
    assert_eq!(config.current().value, second.value);
}

fn port(all: &Snapshot) -> Result<u16, String> {
    all.parse("port")
}

fn settings(address: &str) -> corral_client::Builder {
    Client::builder(address).connect_timeout(std::time::Duration::from_millis(200))
}

/// Who starts while no server can be reached has what was good when one could be.
#[tokio::test]
async fn the_last_good_configuration_is_kept_in_a_file_over_restarts_without_servers() {
    let server = Server::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    server.set("/config", "");
    server.set("/config/port", "80");
    let mut config = soon(ConfigMap::open_kept(settings(&server.address), "/config", &file, port)).await.unwrap();
    assert_eq!((config.current().value, config.current().source), (80, Source::Tree));
    server.set("/config/port", "81");
    soon(async {
        while config.current().value != 81 {
            config.changed().await.unwrap();
        }
    })
    .await;
    // What is refused is not kept.
    server.set("/config/port", "eighty");
    soon(async {
        while config.rejected().is_none() {
            config.changed().await.unwrap();
        }
    })
    .await;
    drop(config);
    // Nobody listens there.
    let nobody = "127.0.0.1:1";
    let config = soon(ConfigMap::open_kept(settings(nobody), "/config", &file, port)).await.unwrap();
    assert_eq!((config.current().value, config.current().source), (81, Source::File));
    // While what is in the tree is refused, too.
    let config = soon(ConfigMap::open_kept(settings(&server.address), "/config", &file, port)).await.unwrap();
    assert_eq!((config.current().value, config.current().source), (81, Source::File));
    assert!(config.rejected().is_some());
    // Another session goes on, and what is good again counts.
    let mut config = config;
    server.expire_all();
    server.set("/config/port", "82");
    soon(async {
        while config.current().value != 82 {
            config.changed().await.unwrap();
        }
    })
    .await;
    assert_eq!((config.current().source, config.rejected()), (Source::Tree, None));
    soon(until("the file has it", || std::fs::read_to_string(&file).unwrap().contains("ODI="))).await;
}

#[tokio::test]
async fn a_file_that_is_damaged_or_of_something_else_is_no_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    let open = |path: &'static str| ConfigMap::open_kept(settings("127.0.0.1:1"), path, &file, port);
    let error = soon(open("/config")).await.unwrap_err();
    assert!(matches!(error, Error::Client(_)), "no server and no file: {error}");
    std::fs::write(&file, "half of").unwrap();
    let error = soon(open("/config")).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { ref reason, .. } if reason.contains("config.json")), "{error}");
    let server = Server::start().await;
    server.set("/config", "");
    server.set("/config/port", "80");
    drop(soon(ConfigMap::open_kept(settings(&server.address), "/config", &file, port)).await.unwrap());
    let error = soon(open("/other")).await.unwrap_err();
    assert!(error.to_string().contains("the configuration of /config"), "{error}");
    assert_eq!(soon(open("/config")).await.unwrap().current().value, 80);
}
