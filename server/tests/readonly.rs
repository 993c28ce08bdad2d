//! A server without a quorum that may answer reads (`readonlymode.enabled`).

mod common;

use bytes::Bytes;
use common::{Client, ensemble, eventually, start, word};
use corral_proto::jute::{ConnectRequest, Create, Request, Response};
use corral_proto::{Acl, ErrorCode};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_quorum_reads_on_for_those_who_allow_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut configs = ensemble(folder.path(), 3);
    for config in &mut configs {
        config.read_only_mode = true;
    }
    let mut servers = Vec::new();
    for config in &configs {
        servers.push(start(config).await);
    }
    let address = servers[0].client_addr();
    let mut client = Client::connect(address).await;
    client.create("/a", "one").await.unwrap().unwrap();
    client.sync().await;
    let session = client.session.clone();
    assert_eq!(session.read_only, None, "nobody is told who did not ask");
    assert_eq!(word(address, "isro").await, "rw");

    for server in servers.drain(1..) {
        server.stop().await;
    }
    let mut reader = Client::connect_read_only(address).await;
    assert_eq!(reader.get("/a").await.as_deref(), Some("one"));
    let children = Request::GetChildren { path: "/".into(), watch: true };
    assert_eq!(reader.ask(&children).await.unwrap(), Ok(Response::Names(vec!["a".into(), "zookeeper".into()])));
    let refused = Ok(Err(ErrorCode::NotReadOnly));
    let said = |answer: std::io::Result<_>| answer.map_err(|error| error.kind());
    assert_eq!(said(reader.create("/b", "two").await), refused);
    for request in [
        Request::Multi(vec![]),
        Request::Sync { path: "/".into() },
        Request::Delete { path: "/a".into(), version: -1 },
        Request::SetData { path: "/a".into(), data: Some(Bytes::new()), version: -1 },
    ] {
        assert_eq!(said(reader.ask(&request).await), refused, "{request:?}");
    }
    assert_eq!(word(address, "isro").await, "ro");
    assert!(word(address, "srvr").await.contains("Mode: read-only"), "operators see it");

    // Whoever does not allow it is hung up on, and so is a session of the ensemble.
    let plain = ConnectRequest { timeout_ms: 10_000, read_only: Some(false), ..ConnectRequest::default() };
    assert!(Client::is_refused(address, &plain).await);
    let taken_up = ConnectRequest {
        session_id: session.session_id,
        password: Some(Bytes::copy_from_slice(&session.password)),
        read_only: Some(true),
        ..plain.clone()
    };
    assert!(Client::is_refused(address, &taken_up).await);
    let ahead = ConnectRequest { last_zxid_seen: i64::MAX, read_only: Some(true), ..plain.clone() };
    assert!(Client::is_refused(address, &ahead).await);
    Client::connect_read_only(address).await.close().await;

    // Such a session is taken up again where it is: by the one connection that has it then, and with its password.
    let lost = Client::connect_read_only(address).await;
    let again = ConnectRequest {
        session_id: lost.session.session_id,
        password: Some(Bytes::copy_from_slice(&lost.session.password)),
        read_only: Some(true),
        ..plain.clone()
    };
    let mut found = Client::try_connect(address, &again).await.unwrap();
    assert_eq!((found.session.session_id, found.session.read_only), (lost.session.session_id, Some(true)));
    assert_eq!(found.get("/a").await.as_deref(), Some("one"));
    let mut lost = lost;
    assert!(lost.ask(&children).await.is_err(), "the former connection is over");
    let wrong = ConnectRequest { password: Some(Bytes::from_static(&[7; 16])), ..again.clone() };
    let expired = Client::try_connect(address, &wrong).await.unwrap();
    assert_eq!((expired.session.session_id, expired.session.timeout_ms), (0, 0));
    found.close().await;
    assert_eq!(Client::try_connect(address, &again).await.unwrap().session.session_id, 0, "a closed session is over");
    // A change is refused as one, whatever else is wrong with it.
    let misfit = Create { path: "/c".into(), acl: Some(Acl::open()), flags: 100, ..Create::default() };
    assert_eq!(said(reader.ask(&Request::Create(misfit)).await), refused);
    let reconfig = Request::Reconfig { joining: None, leaving: None, members: None, config_version: -1 };
    assert_eq!(said(reader.ask(&reconfig).await), refused);

    // With the quorum the read-only time is over, and with it its sessions.
    servers.push(start(&configs[1]).await);
    eventually("the read-only session ends", async || reader.ask(&children).await.is_err().then_some(())).await;
    let mut client = Client::connect(address).await;
    assert_eq!(client.create("/b", "two").await.unwrap(), Ok(Response::Path("/b".into())));
    assert_eq!(word(address, "isro").await, "rw");
    let again = Client::reconnect(address, &session).await;
    assert_eq!(again.session.session_id, session.session_id, "the ensemble's sessions are as they were");
    for server in servers {
        server.stop().await;
    }
}
