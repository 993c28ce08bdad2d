//! One server: an ensemble of one, over its client port.

mod common;

use common::{Client, alone, eventually, start, word};
use corral_proto::ErrorCode;
use corral_proto::jute::{Request, Response};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let config = alone(folder.path());
    let server = start(&config).await;
    let mut client = Client::connect(server.client_addr()).await;
    assert_eq!(client.create("/a", "one").await.unwrap(), Ok(Response::Path("/a".into())));
    assert_eq!(client.create("/a", "two").await.unwrap(), Err(ErrorCode::NodeExists));
    assert_eq!(client.get("/a").await.as_deref(), Some("one"));
    let session = client.session.clone();
    server.stop().await;

    let server = start(&config).await;
    let mut client = Client::reconnect(server.client_addr(), &session).await;
    assert_eq!(client.session.session_id, session.session_id, "the session outlives the restart");
    assert_eq!(client.get("/a").await.as_deref(), Some("one"));
    let set = Request::SetData { path: "/a".into(), data: Some("three".into()), version: 0 };
    assert!(matches!(client.ask(&set).await.unwrap(), Ok(Response::Stat(stat)) if stat.version == 1));
    client.close().await;
    server.stop().await;

    let server = start(&config).await;
    let mut client = Client::connect(server.client_addr()).await;
    assert_eq!(client.get("/a").await.as_deref(), Some("three"));
    let closed = Client::reconnect(server.client_addr(), &session).await;
    assert_eq!(closed.session.session_id, 0, "a closed session stays closed");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_pipelined_writes_are_answered_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&alone(folder.path())).await;
    let mut clients = Vec::new();
    for c in 0..10 {
        let mut client = Client::connect(server.client_addr()).await;
        clients.push(tokio::spawn(async move {
            for i in 0..100 {
                client.create(&format!("/c{c}-{i}"), "x").await.unwrap().unwrap();
            }
            client.close().await;
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    let mut client = Client::connect(server.client_addr()).await;
    let children = client.ask(&Request::GetChildren { path: "/".into(), watch: false }).await.unwrap();
    let Ok(Response::Names(names)) = children else { panic!("{children:?}") };
    assert_eq!(names.iter().filter(|name| name.starts_with('c')).count(), 1_000);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_alone_says_that_it_is_standalone() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&alone(folder.path())).await;
    let client = Client::connect(server.client_addr()).await;
    assert_eq!(word(server.client_addr(), "ruok").await, "imok");
    let text = word(server.client_addr(), "srvr").await;
    assert!(text.contains("Mode: standalone"), "{text}");
    assert!(text.contains("Node count: "), "{text}");
    client.close().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_what_grows_and_takes_deletes_and_reads() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = alone(folder.path());
    let server = start(&config).await;
    let mut client = Client::connect(server.client_addr()).await;
    client.create("/a", "one").await.unwrap().unwrap();
    client.close().await;
    server.stop().await;

    // No disk has so much.
    config.min_free_bytes = u64::MAX / 4;
    let server = start(&config).await;
    let mut client = Client::connect(server.client_addr()).await;
    let refused = eventually("a create is refused", async || {
        let path = format!("/b{}", client.xid);
        client.create(&path, "two").await.unwrap().err()
    })
    .await;
    assert_eq!(refused, ErrorCode::SystemError);
    assert_eq!(client.get("/a").await.as_deref(), Some("one"));
    let delete = Request::Delete { path: "/a".into(), version: -1 };
    assert_eq!(client.ask(&delete).await.unwrap(), Ok(Response::Empty));
    assert_eq!(client.get("/a").await, None);
    client.close().await;
    server.stop().await;
}
