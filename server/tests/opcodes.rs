//! Every request of ZooKeeper's protocol, valid and not, over a socket: what comes back, to the byte where clients look
//! at bytes, and whether the connection stays.

mod common;

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use common::{PATIENCE, alone, start};
use corral_proto::jute::{
    ConnectRequest, ConnectResponse, Create, CreateOp, JuteWrite, List, MultiResult, Reader, ReplyHeader, Request,
    RequestHeader, Response, SetWatches, WatcherEvent, decode_reply, frame, opcode,
};
use corral_proto::{Acl, CreateMode, ErrorCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A connection that sends what it is told.
struct Raw {
    stream: TcpStream,
    received: BytesMut,
    xid: i32,
}

impl Raw {
    async fn connect(address: SocketAddr) -> Raw {
        let mut raw = Raw { stream: TcpStream::connect(address).await.unwrap(), received: BytesMut::new(), xid: 0 };
        let mut out = BytesMut::new();
        ConnectRequest { timeout_ms: 20_000, ..ConnectRequest::default() }.encode(&mut out);
        raw.stream.write_all(&out).await.unwrap();
        let session = ConnectResponse::decode(raw.frame().await.expect("an answer")).unwrap();
        assert_ne!(session.session_id, 0);
        raw
    }

    /// The next frame; `None` once the server has closed the connection.
    async fn frame(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = frame::split(&mut self.received, 1 << 20).expect("a frame") {
                return Some(frame);
            }
            if timeout(PATIENCE, self.stream.read_buf(&mut self.received)).await.expect("in time").unwrap() == 0 {
                return None;
            }
        }
    }

    async fn reply(&mut self) -> (ReplyHeader, Reader) {
        decode_reply(self.frame().await.expect("a reply")).unwrap()
    }

    /// Sends an opcode with these bytes as body; the reply's error and body.
    async fn send(&mut self, opcode: i32, body: &[u8]) -> (ReplyHeader, Reader) {
        self.xid += 1;
        let mut out = BytesMut::new();
        frame::write(&mut out, |out| {
            RequestHeader { xid: self.xid, opcode }.encode(out);
            out.extend_from_slice(body);
        });
        self.stream.write_all(&out).await.unwrap();
        let (header, body) = self.reply().await;
        assert_eq!(header.xid, if opcode == opcode::PING { opcode::XID_PING } else { self.xid });
        (header, body)
    }

    /// Sends a request; its answer, read to the last byte, or the error, which has no body.
    async fn ask(&mut self, request: &Request) -> Result<Response, ErrorCode> {
        let mut whole = BytesMut::new();
        request.encode(0, &mut whole);
        let (header, mut body) = self.send(request.opcode(), &whole[12..]).await;
        if header.err != 0 {
            assert_eq!(body.remaining(), 0, "an error has no body: {request:?}");
            return Err(ErrorCode::from_code(header.err).unwrap());
        }
        let response = Response::decode(request.opcode(), &mut body).unwrap();
        assert_eq!(body.remaining(), 0, "nothing follows the body: {request:?}");
        Ok(response)
    }

    async fn create(&mut self, op: CreateOp, path: &str, flags: i32, ttl_ms: i64) -> Result<Response, ErrorCode> {
        let (path, data) = (path.to_owned(), Some(Bytes::from_static(b"12")));
        self.ask(&Request::Create(Create { op, path, data, acl: Some(Acl::open()), flags, ttl_ms })).await
    }

    /// Whether the server closes the connection, with nothing more to say.
    async fn ends(mut self) -> bool {
        self.frame().await.is_none()
    }
}

fn text(text: &str) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_text(text);
    out.to_vec()
}

fn path_and(path: &str, number: i32) -> Vec<u8> {
    [text(path), number.to_be_bytes().to_vec()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_requests_are_answered_as_zookeeper_does() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&alone(folder.path())).await;
    let mut raw = Raw::connect(server.client_addr()).await;
    let marshalling = ErrorCode::MarshallingError.code();
    let none = ErrorCode::NoWatcher.code();

    // Four zero bytes, which must be there; the path need not exist, nor be one.
    for (path, mode) in [("/none", 0), ("/none", 1), ("no path", 0)] {
        let (header, mut body) = raw.send(opcode::ADD_WATCH, &path_and(path, mode)).await;
        assert_eq!((header.err, body.remaining(), body.int()), (0, 4, Ok(0)));
    }
    for mode in [-1, 2] {
        let (header, body) = raw.send(opcode::ADD_WATCH, &path_and("/none", mode)).await;
        assert_eq!((header.err, body.remaining()), (marshalling, 0));
    }
    // One-shot watches there are none; persistent ones are seen by their own type and by "any" only.
    for (kind, code) in [(1, none), (2, none), (3, 0), (4, 0), (5, 0), (0, marshalling), (6, marshalling)] {
        let (header, body) = raw.send(opcode::CHECK_WATCHES, &path_and("/none", kind)).await;
        assert_eq!((header.err, body.remaining()), (code, 0), "check of type {kind}");
    }
    for (kind, code) in [(1, none), (4, 0), (4, none), (3, 0), (3, none), (5, none), (9, marshalling)] {
        let (header, body) = raw.send(opcode::REMOVE_WATCHES, &path_and("/none", kind)).await;
        assert_eq!((header.err, body.remaining()), (code, 0), "removal of type {kind}");
    }
    // What was missed comes before the reply, and names no entry.
    let watches = SetWatches { data: vec!["/gone".into()], exist: vec!["/".into()], ..SetWatches::default() };
    for request in [Request::SetWatches(watches.clone()), Request::SetWatches2(watches)] {
        raw.xid += 1;
        let mut out = BytesMut::new();
        request.encode(opcode::XID_SET_WATCHES, &mut out);
        raw.stream.write_all(&out).await.unwrap();
        for (kind, path) in [(2, "/gone"), (1, "/")] {
            let (header, mut body) = raw.reply().await;
            assert_eq!(header, ReplyHeader { xid: -1, zxid: -1, err: 0 });
            assert_eq!(WatcherEvent::decode(&mut body), Ok(WatcherEvent { kind, state: 3, path: path.into() }));
        }
        let (header, body) = raw.reply().await;
        assert_eq!((header.xid, header.err, body.remaining()), (opcode::XID_SET_WATCHES, 0, 0));
    }
    let null_lists = [0_u8; 8].into_iter().chain([0xff; 12]).collect::<Vec<u8>>();
    assert_eq!(raw.send(opcode::SET_WATCHES, &null_lists).await.0.err, marshalling);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_and_small_requests_are_answered_as_zookeeper_does() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&alone(folder.path())).await;
    let mut raw = Raw::connect(server.client_addr()).await;

    let (header, body) = raw.send(opcode::PING, b"whatever").await;
    assert_eq!((header.err, body.remaining()), (0, 0));
    for path in ["/not/there", "no path", ""] {
        let echoed = raw.ask(&Request::Sync { path: path.into() }).await;
        assert_eq!(echoed, Ok(Response::Path(path.into())), "a sync looks at no znode");
    }
    let reconfig = |members: Option<&str>| Request::Reconfig {
        joining: None,
        leaving: None,
        members: members.map(str::to_owned),
        config_version: -1,
    };
    for members in [None, Some("server.1=a:1:2")] {
        assert_eq!(raw.ask(&reconfig(members)).await, Err(ErrorCode::ReconfigDisabled));
    }
    assert_eq!(raw.ask(&Request::GetAllChildrenNumber { path: "/".into() }).await, Ok(Response::Count(3)));
    assert_eq!(raw.ask(&Request::GetAllChildrenNumber { path: "/x".into() }).await, Err(ErrorCode::NoNode));
    raw.create(CreateOp::Create, "/e", 1, -1).await.unwrap();
    raw.create(CreateOp::Create, "/ee", 1, -1).await.unwrap();
    for (prefix, found) in [("", 2), ("/", 2), ("/e", 2), ("/ee", 1), ("/x", 0)] {
        let Ok(Response::Names(names)) = raw.ask(&Request::GetEphemerals { prefix: prefix.into() }).await else {
            panic!("no names")
        };
        assert_eq!(names.len(), found, "{prefix}");
    }
    let (header, mut body) = raw.send(opcode::GET_EPHEMERALS, &[0xff; 4]).await;
    assert_eq!((header.err, body.texts().unwrap().len()), (0, 2), "a null prefix is none");
    let Ok(Response::Identities(ids)) = raw.ask(&Request::WhoAmI).await else { panic!("no identities") };
    assert_eq!((ids.len(), ids[0].scheme.as_str(), ids[0].user.as_str()), (1, "ip", "127.0.0.1"));
    let auth = |scheme: &str| Request::Auth { kind: 0, scheme: scheme.into(), auth: Some("bob:secret".into()) };
    for scheme in ["digest", "digest", "ip"] {
        assert_eq!(raw.ask(&auth(scheme)).await, Ok(Response::Empty));
    }
    let Ok(Response::Identities(ids)) = raw.ask(&Request::WhoAmI).await else { panic!("no identities") };
    assert_eq!(ids.len(), 2, "an identity counts once, and ip adds none");
    assert!(ids.iter().any(|id| (id.scheme.as_str(), id.user.as_str()) == ("digest", "bob")));

    // A multi-read answers each read by itself.
    let read = |path: &str| Request::GetData { path: path.into(), watch: true };
    let Ok(Response::Multi(results)) = raw.ask(&Request::MultiRead(vec![read("/x"), read("/e")])).await else {
        panic!("no results")
    };
    assert_eq!(results[0], MultiResult::Error(-101));
    assert!(matches!(&results[1], MultiResult::GetData { data: Some(data), .. } if data == "12"));
    assert_eq!(raw.ask(&Request::MultiRead(vec![])).await, Ok(Response::Multi(vec![])));
    let exists = Request::Exists { path: "/e".into(), watch: false };
    assert_eq!(raw.ask(&Request::MultiRead(vec![exists])).await, Err(ErrorCode::MarshallingError));
    let mut writes = BytesMut::new();
    Request::Multi(vec![Request::Delete { path: "/e".into(), version: -1 }]).encode(0, &mut writes);
    let (header, mut body) = raw.send(opcode::MULTI_READ, &writes[12..]).await;
    assert_eq!(header.err, -5);
    assert_eq!(Response::decode(opcode::MULTI_READ, &mut body), Ok(Response::Multi(vec![])));
    assert!(raw.ask(&read("/e")).await.is_ok(), "nothing was deleted");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn creates_are_judged_by_opcode_flags_and_ttl() {
    use CreateOp::*;
    let folder = tempfile::tempdir().unwrap();
    let server = start(&alone(folder.path())).await;
    let mut raw = Raw::connect(server.client_addr()).await;
    let bad = Err(ErrorCode::BadArguments);
    // The last of these kills a ZooKeeper for good.
    for (op, flags, ttl) in
        [(Create, 5, -1), (Create2, 6, -1), (Create, 7, -1), (Container, 0, -1), (Ttl, 5, 0), (Ttl, 0, 1), (Ttl, 0, -1)]
    {
        assert_eq!(raw.create(op, "/bad", flags, ttl).await, bad, "{op:?} with {flags} and {ttl} ms");
    }
    assert_eq!(raw.create(Create, "/a", 0, -1).await, Ok(Response::Path("/a".into())));
    let owner = |response: Result<Response, ErrorCode>| match response {
        Ok(Response::PathStat { stat, .. }) => stat.ephemeral_owner,
        other => panic!("{other:?}"),
    };
    assert_eq!(owner(raw.create(Create2, "/b", 0, -1).await), 0);
    assert_ne!(owner(raw.create(Create2, "/c", 1, -1).await), 0);
    assert_eq!(owner(raw.create(Container, "/d", 4, -1).await), 0, "what a container is does not show");
    assert_eq!(owner(raw.create(Ttl, "/e", 5, 60_000).await), 0, "nor what a TTL znode is");
    assert_eq!(raw.create(Create, "/f", 4, -1).await, Ok(Response::Path("/f".into())));

    let create = |op, path: &str, flags| {
        let (path, acl) = (path.to_owned(), Some(Acl::open()));
        Request::Create(corral_proto::jute::Create { op, path, acl, flags, ..Default::default() })
    };
    let Ok(Response::Multi(results)) = raw
        .ask(&Request::Multi(vec![create(Create, "/g", 0), create(Create, "/h", 4), create(Create2, "/i", 0)]))
        .await
    else {
        panic!("no results")
    };
    use MultiResult as M;
    assert!(matches!(&results[..], [M::Create { .. }, M::Create2 { .. }, M::Create2 { .. }]), "{results:?}");
    assert_eq!(raw.ask(&Request::Multi(vec![])).await, Ok(Response::Multi(vec![])));
    let set_acl = [path_and("", 0)[..4].to_vec(), vec![0; 8]].concat();
    let mut multi = BytesMut::new();
    corral_proto::jute::MultiHeader { opcode: opcode::SET_ACL, done: false, err: -1 }.encode(&mut multi);
    multi.extend_from_slice(&set_acl);
    corral_proto::jute::MultiHeader::TERMINATOR.encode(&mut multi);
    assert_eq!(raw.send(opcode::MULTI, &multi).await.0.err, -5, "no ACL is set in a multi");
    let mut null_path = BytesMut::new();
    corral_proto::jute::MultiHeader { opcode: opcode::DELETE, done: false, err: -1 }.encode(&mut null_path);
    null_path.put_i32(-1);
    null_path.put_i32(-1);
    corral_proto::jute::MultiHeader::TERMINATOR.encode(&mut null_path);
    assert_eq!(raw.send(opcode::MULTI, &null_path).await.0.err, -5);
    // It still serves.
    assert_eq!(raw.create(Create, "/j", 0, -1).await, Ok(Response::Path("/j".into())));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_client_may_ask_is_refused_and_ends_the_connection() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&alone(folder.path())).await;
    // Events, check outside of a multi, the servers' own, numbers of nobody, and ClickHouse Keeper's while they are off.
    let list = [text("/"), vec![0, 0]].concat();
    let requests: [(i32, Vec<u8>); 17] = [
        (0, vec![]),
        (10, vec![]),
        (opcode::CHECK, path_and("/", -1)),
        (opcode::DELETE_CONTAINER, text("/zookeeper/quota")),
        (23, vec![]),
        (opcode::CREATE_SESSION, vec![0; 12]),
        (opcode::FILTERED_LIST, list),
        (opcode::CHECK_NOT_EXISTS, path_and("/x", -1)),
        (opcode::REMOVE_RECURSIVE, path_and("/x", 1)),
        // Whoever does not know an opcode does not read its body.
        (opcode::FILTERED_LIST, vec![]),
        (opcode::FILTERED_LIST, [text("/x"), vec![0, 9]].concat()),
        (opcode::CHECK_NOT_EXISTS, vec![]),
        (opcode::CREATE_IF_NOT_EXISTS, vec![]),
        (opcode::REMOVE_RECURSIVE, vec![]),
        (opcode::LIST_WITH_STAT_AND_DATA, vec![]),
        (504, vec![]),
        (i32::MAX, vec![]),
    ];
    for (opcode, body) in requests {
        let mut raw = Raw::connect(server.client_addr()).await;
        let (header, rest) = raw.send(opcode, &body).await;
        assert_eq!((header.zxid, header.err, rest.remaining()), (-1, -6, 0), "opcode {opcode}");
        assert!(raw.ends().await, "opcode {opcode}");
    }
    for scheme in ["unknown", "world", "auth", ""] {
        let mut raw = Raw::connect(server.client_addr()).await;
        let auth = Request::Auth { kind: 0, scheme: scheme.into(), auth: Some("x".into()) };
        assert_eq!(raw.ask(&auth).await, Err(ErrorCode::AuthFailed), "{scheme}");
        assert!(raw.ends().await, "{scheme}");
    }
    let mut raw = Raw::connect(server.client_addr()).await;
    assert_eq!(raw.ask(&Request::CloseSession).await, Ok(Response::Empty));
    assert!(raw.ends().await);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keeper_operations_are_answered_once_they_are_switched_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = alone(folder.path());
    config.keeper_extensions = true;
    let server = start(&config).await;
    let mut raw = Raw::connect(server.client_addr()).await;
    let get = |path: &str| Request::GetData { path: path.into(), watch: false };
    let Ok(Response::Data { data, .. }) = raw.ask(&get("/keeper/feature_flags")).await else { panic!("no flags") };
    assert_eq!(data.as_deref(), Some(&[0xf8, 0x20][..]));

    assert_eq!(raw.create(CreateOp::IfNotExists, "/a", 0, -1).await, Ok(Response::Path("/a".into())));
    assert_eq!(raw.create(CreateOp::IfNotExists, "/a", 0, -1).await, Ok(Response::Path("/a".into())));
    raw.create(CreateOp::Create, "/a/stays", 0, -1).await.unwrap();
    raw.create(CreateOp::Create, "/a/goes", 1, -1).await.unwrap();
    let list = |filter, with| Request::List(List { path: "/a".into(), watch: false, filter, with });
    for (filter, names) in [(0, vec!["goes", "stays"]), (1, vec!["stays"]), (2, vec!["goes"])] {
        let Ok(Response::NamesStat { names: found, .. }) = raw.ask(&list(filter, None)).await else {
            panic!("no names")
        };
        assert_eq!(found, names, "filter {filter}");
    }
    let Ok(Response::Listing { names, stats, data, .. }) = raw.ask(&list(0, Some((true, true)))).await else {
        panic!("no listing")
    };
    assert_eq!((names.len(), stats.len(), data.len()), (2, 2, 2));
    assert_eq!(data[0].as_deref(), Some(&b"12"[..]));
    let Request::List(watching) = list(0, None) else { unreachable!() };
    assert!(raw.ask(&Request::List(List { watch: true, ..watching })).await.is_ok());
    let mut out = BytesMut::new();
    Request::Delete { path: "/a/goes".into(), version: -1 }.encode(77, &mut out);
    raw.stream.write_all(&out).await.unwrap();
    let (header, mut event) = raw.reply().await;
    assert_eq!(header.xid, opcode::XID_EVENT, "a list arms a watch, which fires before the reply");
    let changed = WatcherEvent { kind: 4, state: 3, path: "/a".into() };
    assert_eq!(WatcherEvent::decode(&mut event), Ok(changed));
    assert_eq!(raw.reply().await.0.xid, 77);
    raw.create(CreateOp::Create, "/a/goes", 1, -1).await.unwrap();

    let absent = |version| Request::CheckNotExists { path: "/a".into(), version };
    assert_eq!(raw.ask(&absent(-1)).await, Err(ErrorCode::NodeExists));
    assert_eq!(raw.ask(&absent(7)).await, Ok(Response::Empty));
    let remove = |limit| Request::RemoveRecursive { path: "/a".into(), limit };
    assert_eq!(raw.ask(&remove(2)).await, Err(ErrorCode::NotEmpty));

    let exists = Request::Exists { path: "/a".into(), watch: false };
    let children = Request::GetChildren2 { path: "/a".into(), watch: false };
    let Ok(Response::Multi(results)) = raw.ask(&Request::MultiRead(vec![exists, children, list(2, None)])).await else {
        panic!("no results")
    };
    assert!(matches!(&results[0], MultiResult::Keeper(3, _)), "{results:?}");
    assert!(matches!(&results[1], MultiResult::Keeper(12, _)), "{results:?}");
    let Ok(Response::Multi(results)) = raw.ask(&Request::Multi(vec![remove(3), absent(-1)])).await else {
        panic!("no results")
    };
    assert_eq!(
        results,
        [
            MultiResult::Keeper(opcode::REMOVE_RECURSIVE, Box::new(Response::Empty)),
            MultiResult::Keeper(opcode::CHECK_NOT_EXISTS, Box::new(Response::Empty))
        ]
    );
    assert_eq!(raw.ask(&get("/a")).await, Err(ErrorCode::NoNode));
    server.stop().await;

    // Another configuration takes them away again, with their advertisement.
    config.keeper_extensions = false;
    let server = start(&config).await;
    let mut raw = Raw::connect(server.client_addr()).await;
    common::eventually("the advertisement goes", async || {
        let gone = raw.ask(&get("/keeper/feature_flags")).await == Err(ErrorCode::NoNode);
        gone.then_some(())
    })
    .await;
    assert_eq!(raw.ask(&remove(1)).await, Err(ErrorCode::Unimplemented));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_the_configuration_decide_on_quotas_and_ttl() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = alone(folder.path());
    config.enforce_quota = true;
    config.extended_types = false;
    let server = start(&config).await;
    let mut raw = Raw::connect(server.client_addr()).await;
    let ttl = CreateMode::PersistentWithTtl.flags();
    assert_eq!(raw.create(CreateOp::Ttl, "/ttl", ttl, 1000).await, Err(ErrorCode::Unimplemented));
    raw.create(CreateOp::Create, "/a", 0, -1).await.unwrap();
    raw.create(CreateOp::Create, "/zookeeper/quota/a", 0, -1).await.unwrap();
    let set = |path: &str, data: &'static str| Request::SetData {
        path: path.into(),
        data: Some(Bytes::from_static(data.as_bytes())),
        version: -1,
    };
    for leaf in ["zookeeper_limits", "zookeeper_stats"] {
        raw.create(CreateOp::Create, &format!("/zookeeper/quota/a/{leaf}"), 0, -1).await.unwrap();
    }
    let limits = "count=-1,bytes=-1=;byteHardLimit=5;countHardLimit=2";
    assert!(raw.ask(&set("/zookeeper/quota/a/zookeeper_limits", limits)).await.is_ok());
    assert_eq!(raw.create(CreateOp::Create, "/a/b", 0, -1).await, Ok(Response::Path("/a/b".into())));
    assert_eq!(raw.create(CreateOp::Create, "/a/c", 0, -1).await, Err(ErrorCode::QuotaExceeded));
    assert_eq!(raw.ask(&set("/a", "1234")).await, Err(ErrorCode::QuotaExceeded));
    assert!(raw.ask(&set("/a", "123")).await.is_ok());
    let get = Request::GetData { path: "/zookeeper/quota/a/zookeeper_stats".into(), watch: false };
    let Ok(Response::Data { data, stat }) = raw.ask(&get).await else { panic!("no usage") };
    assert_eq!((data.as_deref(), stat.version), (Some(&b"count=2,bytes=5"[..]), 0));
    server.stop().await;
}
