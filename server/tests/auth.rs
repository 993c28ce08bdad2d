//! SASL and demanded identities over the wire, byte by byte as a ZooKeeper server answers them.

mod common;

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use common::{PATIENCE, alone_with, eventually, start};
use corral_client::{CreateMode, EndReason, Error, ErrorCode};
use corral_proto::Acl;
use corral_proto::jute::{ConnectRequest, Create, ReplyHeader, Request, decode_reply, frame, opcode};
use corral_server::node::ServerHandle;
use md5::{Digest as _, Md5};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A connection with a session; knows nothing of what it sends.
struct Raw {
    stream: TcpStream,
    received: BytesMut,
}

impl Raw {
    async fn open(address: SocketAddr) -> Raw {
        let mut raw = Raw { stream: TcpStream::connect(address).await.unwrap(), received: BytesMut::new() };
        let mut out = BytesMut::new();
        ConnectRequest { timeout_ms: 10_000, ..ConnectRequest::default() }.encode(&mut out);
        raw.stream.write_all(&out).await.unwrap();
        raw.frame().await.expect("a session");
        raw
    }

    async fn frame(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = frame::split(&mut self.received, 1 << 20).unwrap() {
                return Some(frame);
            }
            match timeout(PATIENCE, self.stream.read_buf(&mut self.received)).await.unwrap() {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// Sends requests in one piece, numbered from `xid`.
    async fn send(&mut self, xid: i32, requests: &[Request]) {
        let mut out = BytesMut::new();
        for (at, request) in requests.iter().enumerate() {
            request.encode(xid + at as i32, &mut out);
        }
        self.stream.write_all(&out).await.unwrap();
    }

    /// The header and body of the next reply; `None` if the connection ended.
    async fn reply(&mut self) -> Option<(ReplyHeader, Vec<u8>)> {
        let frame = self.frame().await?;
        let (header, body) = decode_reply(frame.clone()).unwrap();
        Some((header, frame[frame.len() - body.remaining()..].to_vec()))
    }

    async fn ask(&mut self, xid: i32, request: Request) -> Option<(ReplyHeader, Vec<u8>)> {
        self.send(xid, &[request]).await;
        self.reply().await
    }
}

const NULL: [u8; 4] = [0xff; 4];

fn header(xid: i32, err: i32) -> ReplyHeader {
    ReplyHeader { xid, zxid: 0, err }
}

fn sasl(token: impl Into<Bytes>) -> Request {
    Request::Sasl { token: Some(token.into()) }
}

fn digest(proof: &'static str) -> Request {
    Request::Auth { kind: 0, scheme: "digest".into(), auth: Some(proof.into()) }
}

fn create(path: &str) -> Request {
    Request::Create(Create { path: path.into(), acl: Some(Acl::open()), ..Create::default() })
}

/// A server with the users bob and admin; admin passes every permission.
async fn server(more: &str) -> (tempfile::TempDir, ServerHandle) {
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users");
    std::fs::write(
        &users,
        "Server {\n  org.apache.zookeeper.server.auth.DigestLoginModule required\n  user_bob=\"bobsecret\"\n  \
         user_admin=\"adminsecret\";\n};\n",
    )
    .unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let lines = format!("saslUsersFile={}\nsuperUser=admin\n{more}", users.display());
    let server = start(&alone_with(&data, &lines)).await;
    eventually("the server serves", async || server.is_serving().then_some(())).await;
    (folder, server)
}

fn md5(text: &str) -> String {
    Md5::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The answer to a challenge, as RFC 2831 has it.
fn answer(user: &str, password: &str, challenge: &[u8]) -> String {
    let challenge = str::from_utf8(challenge).unwrap();
    let nonce = challenge.split("nonce=\"").nth(1).unwrap().split('"').next().unwrap();
    let (realm, uri) = ("zk-sasl-md5", "zookeeper/zk-sasl-md5");
    assert_eq!(
        challenge,
        format!("realm=\"{realm}\",nonce=\"{nonce}\",charset=utf-8,algorithm=md5-sess"),
        "as ZooKeeper's"
    );
    let secret = [&Md5::digest(format!("{user}:{realm}:{password}"))[..], format!(":{nonce}:abc").as_bytes()].concat();
    let secret: String = Md5::digest(secret).iter().map(|byte| format!("{byte:02x}")).collect();
    let response = md5(&format!("{secret}:{nonce}:00000001:abc:auth:{}", md5(&format!("AUTHENTICATE:{uri}"))));
    format!(
        "charset=utf-8,username=\"{user}\",realm=\"{realm}\",nonce=\"{nonce}\",nc=00000001,cnonce=\"abc\",\
         digest-uri=\"{uri}\",maxbuf=65536,response={response},qop=auth"
    )
}

/// Goes through the exchange; returns the reply to the second token.
async fn prove(raw: &mut Raw, user: &str, password: &str) -> (ReplyHeader, Vec<u8>) {
    let (head, body) = raw.ask(1, sasl("")).await.unwrap();
    assert_eq!(head, header(1, 0));
    raw.ask(2, sasl(answer(user, password, &body[4..]))).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sasl_user_is_known_by_its_name() {
    let (_folder, server) = server("").await;
    let mut raw = Raw::open(server.client_addr()).await;
    let (head, body) = prove(&mut raw, "bob", "bobsecret").await;
    assert_eq!(head, header(2, 0));
    assert!(body[4..].starts_with(b"rspauth=") && body.len() == 4 + 40, "{body:?}");
    let (_, ids) = raw.ask(3, Request::WhoAmI).await.unwrap();
    assert!(ids.windows(15).any(|w| w == b"\0\0\0\x04sasl\0\0\0\x03bob"), "{ids:?}");
    // A second exchange on the same connection ends it, as in ZooKeeper.
    assert_eq!(raw.ask(4, sasl("")).await, Some((header(4, -115), NULL.to_vec())));
    assert_eq!(raw.reply().await, None);

    // The super user may do what nobody else may.
    let mut admin = Raw::open(server.client_addr()).await;
    prove(&mut admin, "admin", "adminsecret").await;
    let shut = |path: &str| {
        let acl = vec![Acl { perms: 31, id: corral_proto::Id::new("sasl", "nobody") }];
        Request::Create(Create { path: path.into(), acl: Some(acl), ..Create::default() })
    };
    assert_eq!(admin.ask(3, shut("/shut")).await.unwrap().0.err, 0);
    assert_eq!(admin.ask(4, Request::Delete { path: "/shut".into(), version: 3 }).await.unwrap().0.err, -103);
    let get = Request::GetData { path: "/shut".into(), watch: false };
    assert_eq!(admin.ask(5, get.clone()).await.unwrap().0.err, 0);
    let mut bob = Raw::open(server.client_addr()).await;
    prove(&mut bob, "bob", "bobsecret").await;
    assert_eq!(bob.ask(3, get).await.unwrap().0.err, -102);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_ends_the_connection_after_a_null_token() {
    let (_folder, server) = server("").await;
    for (user, password) in [("bob", "wrong"), ("eve", "bobsecret")] {
        let mut raw = Raw::open(server.client_addr()).await;
        assert_eq!(prove(&mut raw, user, password).await, (header(2, -115), NULL.to_vec()));
        assert_eq!(raw.reply().await, None);
    }
    // `addauth sasl` is no way in.
    let mut raw = Raw::open(server.client_addr()).await;
    let auth = Request::Auth { kind: 0, scheme: "sasl".into(), auth: Some("bob".into()) };
    assert_eq!(raw.ask(1, auth).await, Some((header(1, -115), Vec::new())));
    assert_eq!(raw.reply().await, None);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_behind_a_failed_proof_is_done() {
    let (_folder, server) = server("").await;
    let mut raw = Raw::open(server.client_addr()).await;
    let auth = Request::Auth { kind: 0, scheme: "nope".into(), auth: Some("bob".into()) };
    raw.send(1, &[auth, create("/after")]).await;
    assert_eq!(raw.reply().await, Some((header(1, -115), Vec::new())));
    assert_eq!(raw.reply().await, None);
    let mut raw = Raw::open(server.client_addr()).await;
    // A write of the same session would have its place in the order: this one shows that the other has none.
    assert_eq!(raw.ask(1, create("/later")).await.unwrap().0.err, 0);
    let exists = Request::Exists { path: "/after".into(), watch: false };
    assert_eq!(raw.ask(2, exists).await.unwrap().0.err, -101);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_sasl_is_demanded_everything_else_is_refused_first() {
    let (_folder, server) = server("sessionRequireClientSASLAuth=true\n").await;
    let requests = [
        Request::Ping,
        Request::CloseSession,
        Request::WhoAmI,
        create("/x"),
        Request::Exists { path: "/".into(), watch: false },
    ];
    for request in requests {
        let mut raw = Raw::open(server.client_addr()).await;
        let xid = if request == Request::Ping { opcode::XID_PING } else { 1 };
        assert_eq!(raw.ask(xid, request).await, Some((header(xid, -124), Vec::new())));
        assert_eq!(raw.reply().await, None);
    }
    let mut raw = Raw::open(server.client_addr()).await;
    assert_eq!(prove(&mut raw, "bob", "wrong").await, (header(2, -124), NULL.to_vec()));
    assert_eq!(raw.reply().await, None);
    let mut raw = Raw::open(server.client_addr()).await;
    prove(&mut raw, "bob", "bobsecret").await;
    assert_eq!(raw.ask(3, create("/x")).await.unwrap().0.err, 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demanded_password_opens_both_protocols() {
    let (_folder, server) = server("enforce.auth.enabled=true\nenforce.auth.schemes=digest,sasl\n").await;
    let mut raw = Raw::open(server.client_addr()).await;
    assert_eq!(raw.ask(-4, digest("bob:x")).await, Some((header(-4, 0), Vec::new())));
    assert_eq!(raw.ask(1, create("/a")).await.unwrap().0.err, 0);

    let address = server.client_addr().to_string();
    let known = corral_client::Client::builder(address.clone()).auth("digest", "bob:x").connect().await.unwrap();
    known.create("/b", "", CreateMode::Persistent).await.unwrap();
    let unknown = corral_client::Client::builder(address).connect().await.unwrap();
    match unknown.create("/c", "", CreateMode::Persistent).await {
        Err(error @ Error::SessionEnded { reason: EndReason::AuthRequired { .. }, .. }) => {
            assert_eq!(error.code(), Some(ErrorCode::SessionClosedRequireSaslAuth));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(known.get("/c").await.unwrap_err().code(), Some(ErrorCode::NoNode));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_exchange_leaves_the_connection_open_where_that_is_allowed() {
    let (_folder, server) = server("allowSaslFailedClients=true\n").await;
    let mut raw = Raw::open(server.client_addr()).await;
    assert_eq!(prove(&mut raw, "bob", "wrong").await, (header(2, 0), NULL.to_vec()));
    let (_, ids) = raw.ask(3, Request::WhoAmI).await.unwrap();
    assert!(!ids.windows(4).any(|w| w == b"sasl"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_users_sasl_is_answered_by_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&alone_with(folder.path(), "")).await;
    eventually("the server serves", async || server.is_serving().then_some(())).await;
    let mut raw = Raw::open(server.client_addr()).await;
    assert_eq!(raw.ask(1, sasl("")).await, Some((header(1, 0), NULL.to_vec())));
    assert!(matches!(raw.ask(2, create("/a")).await, Some((ReplyHeader { err: 0, .. }, _))));
    server.stop().await;
}
