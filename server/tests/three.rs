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
    // The connections stayed: a lost leader is no reason to lose them (P33), if the next one comes in time.
    let mut writer = Client::connect(address(&servers, follower)).await;
    assert_eq!(writer.create("/b", "two").await.unwrap(), Ok(Response::Path("/b".into())));

    servers[first] = Some(start(&configs[first]).await);
    let mut returned = Client::connect(address(&servers, first)).await;
    returned.sync().await;
    assert_eq!(returned.get("/a").await.as_deref(), Some("one"));
    assert_eq!(returned.get("/b").await.as_deref(), Some("two"));

    let mut stopping = Vec::new();
    for server in servers.into_iter().flatten() {
        stopping.push(tokio::spawn(server.stop()));
    }
    for server in stopping {
        server.await.unwrap();
    }
}
