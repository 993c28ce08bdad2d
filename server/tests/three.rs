//! Three servers in one process, connected over loopback.

mod common;

use common::{Client, ensemble, eventually, start};
use corral_core::zab::io::Role;
use corral_proto::jute::Response;
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
