//! Three servers in one process, connected over loopback.

mod common;

use bytes::Bytes;
use common::{Client, ensemble, eventually, start, word};
use corral_core::zab::io::Role;
use corral_proto::ErrorCode;
use corral_proto::jute::{ConnectRequest, Request, Response};
use corral_server::node::ServerHandle;

/// Index of the server that leads and has a majority.
async fn leader(servers: &[Option<ServerHandle>]) -> usize {
    eventually("a leader", async || {
        servers.iter().position(|s| s.as_ref().is_some_and(|s| s.is_serving() && s.status().role == Role::Leading))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_seen_everywhere_and_survives_its_leader() {
    let folder = tempfile::tempdir().unwrap();
    let configs = ensemble(folder.path(), 3);
    let mut servers = Vec::new();
    for config in &configs {
        servers.push(Some(start(config).await));
    }
    let first = leader(&servers).await;
    let follower = (first + 1) % 3;
    let other = (first + 2) % 3;
    let address = |servers: &[Option<ServerHandle>], i: usize| servers[i].as_ref().unwrap().client_addr();

    let mut writer = Client::connect(address(&servers, follower)).await;
    assert_eq!(writer.create("/a", "one").await.unwrap(), Ok(Response::Path("/a".into())));
    let mut reader = Client::connect(address(&servers, other)).await;
    reader.sync().await;
    assert_eq!(reader.get("/a").await.as_deref(), Some("one"));

    servers[first].take().unwrap().stop().await;
    let second = leader(&servers).await;
    assert_ne!(second, first);
    // The connection stayed: a lost leader is no reason to lose it (P33), if the next one comes in time.
    assert_eq!(writer.create("/b", "two").await.unwrap(), Ok(Response::Path("/b".into())));

    servers[first] = Some(start(&configs[first]).await);
    let mut returned = Client::connect(address(&servers, first)).await;
    returned.sync().await;
    assert_eq!(returned.get("/a").await.as_deref(), Some("one"));
    assert_eq!(returned.get("/b").await.as_deref(), Some("two"));

    stop_all(servers).await;
}

async fn stop_all(servers: Vec<Option<ServerHandle>>) {
    let stopping: Vec<_> = servers.into_iter().flatten().map(|server| tokio::spawn(server.stop())).collect();
    for server in stopping {
        server.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_missed_too_much_takes_a_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let mut configs = ensemble(folder.path(), 3);
    for config in &mut configs {
        config.snapshot_threshold_bytes = 1 << 20;
    }
    let mut servers = Vec::new();
    for config in &configs {
        servers.push(Some(start(config).await));
    }
    let first = leader(&servers).await;
    let away = (first + 1) % 3;
    let mut writer = Client::connect(servers[first].as_ref().unwrap().client_addr()).await;
    writer.create("/before", "here").await.unwrap().unwrap();
    servers[away].take().unwrap().stop().await;
    let large = "x".repeat(500_000);
    for i in 0..6 {
        writer.create(&format!("/large{i}"), &large).await.unwrap().unwrap();
    }

    servers[away] = Some(start(&configs[away]).await);
    let mut returned = Client::connect(servers[away].as_ref().unwrap().client_addr()).await;
    returned.sync().await;
    for i in 0..6 {
        assert_eq!(returned.get(&format!("/large{i}")).await.as_deref(), Some(large.as_str()));
    }
    assert_eq!(returned.get("/before").await.as_deref(), Some("here"));
    // The second state folder is the received one.
    assert!(std::fs::exists(configs[away].data_dir.join("state-2")).unwrap(), "it came as a snapshot");
    writer.create("/after", "there").await.unwrap().unwrap();
    returned.sync().await;
    assert_eq!(returned.get("/after").await.as_deref(), Some("there"));
    drop(returned);

    // What was received is durable, and the log goes on after it.
    servers[away].take().unwrap().stop().await;
    servers[away] = Some(start(&configs[away]).await);
    let mut again = Client::connect(servers[away].as_ref().unwrap().client_addr()).await;
    again.sync().await;
    assert_eq!(again.get("/large5").await.as_deref(), Some(large.as_str()));
    assert_eq!(again.get("/after").await.as_deref(), Some("there"));
    stop_all(servers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_reads_are_served_to_who_accepts_that_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut configs = ensemble(folder.path(), 3);
    for config in &mut configs {
        config.read_only_mode = true;
    }
    let mut servers = Vec::new();
    for config in &configs {
        servers.push(Some(start(config).await));
    }
    let address = servers[0].as_ref().unwrap().client_addr();
    let accepts = ConnectRequest { timeout_ms: 10_000, read_only: Some(true), ..ConnectRequest::default() };
    let mut writer = Client::connect_as(address, &accepts).await;
    assert_eq!(writer.session.read_only, Some(false), "there is a quorum");
    assert_eq!(writer.create("/a", "one").await.unwrap(), Ok(Response::Path("/a".into())));
    writer.sync().await;

    for server in &mut servers[1..] {
        server.take().unwrap().stop().await;
    }
    eventually("read-only mode", async || (word(address, "isro").await == "ro").then_some(())).await;
    assert!(word(address, "srvr").await.contains("Mode: read-only"));
    let refused = [
        ConnectRequest { read_only: Some(false), ..accepts.clone() },
        ConnectRequest { read_only: None, ..accepts.clone() },
        // A session of the ensemble: only a quorum can tell whether it is still open.
        ConnectRequest {
            session_id: writer.session.session_id,
            password: Some(Bytes::copy_from_slice(&writer.session.password)),
            ..accepts.clone()
        },
        // What this client saw is not here.
        ConnectRequest { last_zxid_seen: i64::MAX, ..accepts.clone() },
    ];
    for request in refused {
        assert!(Client::try_connect(address, &request).await.is_err(), "{request:?}");
    }

    let mut reader = Client::connect_as(address, &accepts).await;
    assert_eq!(reader.session.read_only, Some(true));
    assert_ne!(reader.session.session_id, writer.session.session_id);
    assert_eq!(reader.get("/a").await.as_deref(), Some("one"));
    assert_eq!(reader.create("/b", "two").await.unwrap(), Err(ErrorCode::NotReadOnly));
    let sync = Request::Sync { path: "/".into() };
    assert_eq!(reader.ask(&sync).await.unwrap(), Err(ErrorCode::NotReadOnly));
    Client::connect_as(address, &accepts).await.close().await;

    servers[1] = Some(start(&configs[1]).await);
    eventually("the connection ends with read-only mode", async || {
        reader.ask(&Request::Exists { path: "/a".into(), watch: false }).await.is_err().then_some(())
    })
    .await;
    let mut writer = Client::connect_as(address, &accepts).await;
    assert_eq!(writer.session.read_only, Some(false));
    assert_eq!(writer.create("/b", "two").await.unwrap(), Ok(Response::Path("/b".into())));
    stop_all(servers).await;
}
