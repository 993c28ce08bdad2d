//! Servers in this process, and a small client that speaks ZooKeeper's protocol over a plain socket.

#![allow(dead_code, reason = "each test program uses its part")]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use corral_proto::jute::{ConnectRequest, ConnectResponse, Create, Request, Response, decode_reply, frame, opcode};
use corral_proto::{Acl, ErrorCode, Zxid};
use corral_server::config::{self, Config};
use corral_server::node::{Node, ServerHandle};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// How long anything may take on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Settings that keep a test light: small segments, small caches, a short liveness bound.
const LIGHT: &str = "tickTime=500\nminSessionTimeout=1000\nmaxSessionTimeout=20000\nsyncTimeout=500\n\
    segmentSize=4M\nmemoryLimit=24M\n4lw.commands.whitelist=*\nmaxClientCnxns=0\n";

fn parse(text: &str) -> Config {
    let read = |path: &Path| match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    };
    config::parse(Some(("test.cfg", text)), &[], &read).expect("the test's configuration is right").config
}

/// Configuration of an ensemble of one in this folder, on a free port.
pub fn alone(folder: &Path) -> Config {
    alone_with(folder, "")
}

/// The same with more lines.
pub fn alone_with(folder: &Path, more: &str) -> Config {
    parse(&format!("dataDir={}\nclientPort=0\nclientPortAddress=127.0.0.1\n{LIGHT}{more}\n", folder.display()))
}

/// Configurations of an ensemble on loopback ports that are free now.
pub fn ensemble(folder: &Path, servers: usize) -> Vec<Config> {
    // All are open at the same time, so that they differ.
    let listeners: Vec<std::net::TcpListener> =
        (0..servers).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let lines: String = listeners
        .iter()
        .enumerate()
        .map(|(i, l)| format!("server.{}=127.0.0.1:{}:0\n", i + 1, l.local_addr().unwrap().port()))
        .collect();
    let lines = lines.replace(":0\n", "\n");
    (1..=servers)
        .map(|id| {
            let folder = folder.join(id.to_string());
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("myid"), id.to_string()).unwrap();
            parse(&format!("dataDir={}\nclientPort=0\nclientPortAddress=127.0.0.1\n{LIGHT}{lines}", folder.display()))
        })
        .collect()
}

/// Starts a server.
pub async fn start(config: &Config) -> ServerHandle {
    // `RUST_LOG=info` shows what servers say; only the first call of a process counts.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    Node::start(config.clone()).await.expect("the server starts")
}

/// A session over ZooKeeper's protocol.
pub struct Client {
    stream: TcpStream,
    received: BytesMut,
    pub xid: i32,
    pub session: ConnectResponse,
    pub last_zxid: i64,
}

impl Client {
    /// A new session, as soon as the server serves.
    pub async fn connect(address: SocketAddr) -> Client {
        let new = ConnectRequest { timeout_ms: 10_000, ..ConnectRequest::default() };
        let client = Client::connect_as(address, &new).await;
        assert_ne!(client.session.session_id, 0, "a new session is never expired");
        client
    }

    /// The session again, as soon as the server serves.
    pub async fn reconnect(address: SocketAddr, session: &ConnectResponse) -> Client {
        let again = ConnectRequest {
            timeout_ms: 10_000,
            session_id: session.session_id,
            password: Some(Bytes::copy_from_slice(&session.password)),
            ..ConnectRequest::default()
        };
        Client::connect_as(address, &again).await
    }

    /// A session of a server that has no quorum, as soon as it gives one.
    pub async fn connect_read_only(address: SocketAddr) -> Client {
        let new = ConnectRequest { timeout_ms: 10_000, read_only: Some(true), ..ConnectRequest::default() };
        eventually("a session without a quorum", async || {
            let client = Client::try_connect(address, &new).await.ok()?;
            (client.session.read_only == Some(true)).then_some(client)
        })
        .await
    }

    /// Whether the server hangs up on this connect request.
    pub async fn is_refused(address: SocketAddr, request: &ConnectRequest) -> bool {
        Client::try_connect(address, request).await.is_err()
    }

    async fn connect_as(address: SocketAddr, request: &ConnectRequest) -> Client {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Client::try_connect(address, request).await {
                Ok(client) => return client,
                Err(error) => assert!(Instant::now() < deadline, "{address} does not serve: {error}"),
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// One attempt at a session; an error if the server hangs up.
    pub async fn try_connect(address: SocketAddr, request: &ConnectRequest) -> std::io::Result<Client> {
        let mut stream = TcpStream::connect(address).await?;
        let mut out = BytesMut::new();
        request.encode(&mut out);
        stream.write_all(&out).await?;
        let mut client =
            Client { stream, received: BytesMut::new(), xid: 0, session: ConnectResponse::expired(None), last_zxid: 0 };
        let payload = client.frame().await?;
        client.session = ConnectResponse::decode(payload).expect("a connect response");
        Ok(client)
    }

    async fn frame(&mut self) -> std::io::Result<Bytes> {
        loop {
            if let Some(frame) = frame::split(&mut self.received, 64 << 20).expect("a frame") {
                return Ok(frame);
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.received)).await??;
            if read == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Sends a request and waits for its reply; events are passed over.
    pub async fn ask(&mut self, request: &Request) -> std::io::Result<Result<Response, ErrorCode>> {
        Ok(self.ask_all(std::slice::from_ref(request)).await?.remove(0))
    }

    /// Sends requests in one piece and waits for their replies; events are passed over.
    pub async fn ask_all(&mut self, requests: &[Request]) -> std::io::Result<Vec<Result<Response, ErrorCode>>> {
        let mut out = BytesMut::new();
        for (xid, request) in (self.xid + 1..).zip(requests) {
            request.encode(xid, &mut out);
        }
        self.stream.write_all(&out).await?;
        let mut replies = Vec::with_capacity(requests.len());
        for request in requests {
            self.xid += 1;
            replies.push(self.reply(request.opcode()).await?);
        }
        Ok(replies)
    }

    async fn reply(&mut self, opcode: i32) -> std::io::Result<Result<Response, ErrorCode>> {
        loop {
            let payload = self.frame().await?;
            let (header, mut body) = decode_reply(payload).expect("a reply header");
            if header.xid == opcode::XID_EVENT {
                continue;
            }
            assert_eq!(header.xid, self.xid, "replies come in the order of requests");
            // The reply to an auth request names no state: its zxid is 0.
            if header.zxid != 0 {
                assert!(header.zxid >= self.last_zxid, "a session's zxids never go back");
                self.last_zxid = header.zxid;
            }
            if header.err != 0 {
                return Ok(Err(ErrorCode::from_code(header.err).expect("a known error")));
            }
            return Ok(Ok(Response::decode(opcode, &mut body).expect("a body")));
        }
    }

    pub async fn create(&mut self, path: &str, data: &str) -> std::io::Result<Result<Response, ErrorCode>> {
        let create = Create {
            path: path.to_owned(),
            data: Some(Bytes::copy_from_slice(data.as_bytes())),
            acl: Some(Acl::open()),
            flags: 0,
            ..Create::default()
        };
        self.ask(&Request::Create(create)).await
    }

    /// The data of a znode; `None` if there is none.
    pub async fn get(&mut self, path: &str) -> Option<String> {
        match self.ask(&Request::GetData { path: path.to_owned(), watch: false }).await.expect("connected") {
            Ok(Response::Data { data, .. }) => Some(String::from_utf8(data.unwrap_or_default().to_vec()).unwrap()),
            Err(ErrorCode::NoNode) => None,
            other => panic!("{other:?}"),
        }
    }

    pub async fn sync(&mut self) {
        let reply = self.ask(&Request::Sync { path: "/".to_owned() }).await.expect("connected");
        assert_eq!(reply, Ok(Response::Path("/".to_owned())));
    }

    pub async fn close(mut self) {
        assert_eq!(self.ask(&Request::CloseSession).await.expect("connected"), Ok(Response::Empty));
    }
}

/// Asks a four-letter word.
pub async fn word(address: SocketAddr, word: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(word.as_bytes()).await.unwrap();
    let mut text = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
    text
}

/// Asks AdminServer, or whoever speaks HTTP there: status and body.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Waits until something holds, looking again and again.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = look().await {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// The zxid of a reply's stat.
pub fn mzxid(response: &Response) -> Zxid {
    match response {
        Response::Stat(stat) | Response::Data { stat, .. } | Response::PathStat { stat, .. } => {
            Zxid::from_i64(stat.mzxid)
        }
        other => panic!("{other:?} has no stat"),
    }
}
