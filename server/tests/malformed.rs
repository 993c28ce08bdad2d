//! Clients that send nonsense, half of what they should, or nothing; and clients that do not read. The server survives
//! them, its memory stays bounded, and everybody else is served.
//!
//! What is sent is drawn from seeds; a failure names the seed. `SEED=n` sends that one alone.

mod common;
mod processes;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use common::{Client, PATIENCE, alone, start};
use corral_proto::Acl;
use corral_proto::jute::{
    ConnectRequest, Create, CreateOp, Request, Response, SetWatches, decode_reply, frame, opcode,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Connections with arbitrary first bytes, and sessions with damaged requests.
const SEEDS: u64 = 300;

/// A stream of numbers (SplitMix64).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn bytes(&mut self, max: usize) -> Vec<u8> {
        let length = self.below(max);
        // Mostly bytes that lengths and flags are made of.
        (0..length).map(|_| [0, 0, 0, 1, 0xff, self.next() as u8, self.next() as u8][self.below(7)]).collect()
    }

    /// One to four faults.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..1 + self.below(4) {
            let at = self.below(bytes.len().max(1));
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at.min(bytes.len()), self.next() as u8),
                2 if at < bytes.len() => drop(bytes.remove(at)),
                3 if at + 4 <= bytes.len() => {
                    let length = [-1i32, -2, i32::MIN, i32::MAX, 0, 1, 0x10_0000][self.below(7)];
                    bytes[at..at + 4].copy_from_slice(&length.to_be_bytes());
                }
                _ if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                _ => {}
            }
        }
    }
}

fn seeds() -> Vec<u64> {
    match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().expect("SEED is a number")],
        Err(_) => (0..SEEDS).collect(),
    }
}

/// One of each kind.
fn requests() -> Vec<Request> {
    let path = || "/x".to_owned();
    let create = |op, flags| {
        let ttl_ms = if op == CreateOp::Ttl { 1_000_000 } else { -1 };
        let data = Some(Bytes::from_static(b"data"));
        Request::Create(Create { op, path: "/x/y".into(), data, acl: Some(Acl::open()), flags, ttl_ms })
    };
    let delete = || Request::Delete { path: "/x/y".into(), version: -1 };
    let set_data = || Request::SetData { path: path(), data: None, version: 0 };
    let watches = || SetWatches {
        relative_zxid: 1,
        data: vec![path()],
        exist: vec![path()],
        child: vec![path()],
        persistent: vec![path()],
        persistent_recursive: vec![path()],
    };
    vec![
        create(CreateOp::Create, 0),
        create(CreateOp::Create2, 3),
        create(CreateOp::Container, 4),
        create(CreateOp::Ttl, 5),
        delete(),
        set_data(),
        Request::Exists { path: path(), watch: true },
        Request::GetData { path: path(), watch: true },
        Request::GetAcl { path: path() },
        Request::SetAcl { path: path(), acl: Some(Acl::creator_all()), version: -1 },
        Request::GetChildren { path: path(), watch: true },
        Request::GetChildren2 { path: path(), watch: false },
        Request::Sync { path: path() },
        Request::Ping,
        Request::Multi(vec![create(CreateOp::Create, 1), set_data(), delete()]),
        Request::MultiRead(vec![Request::GetData { path: path(), watch: false }]),
        Request::Reconfig { joining: Some("x".into()), leaving: None, members: None, config_version: -1 },
        Request::CheckWatches { path: path(), kind: 3 },
        Request::RemoveWatches { path: path(), kind: 1 },
        Request::AddWatch { path: path(), mode: 1 },
        Request::Auth { kind: 0, scheme: "digest".into(), auth: Some(Bytes::from_static(b"a:b")) },
        Request::SetWatches(watches()),
        Request::SetWatches2(watches()),
        Request::Sasl { token: Some(Bytes::from_static(b"token")) },
        Request::GetEphemerals { prefix: "/".into() },
        Request::GetAllChildrenNumber { path: path() },
        Request::WhoAmI,
    ]
}

fn connect_request() -> BytesMut {
    let mut out = BytesMut::new();
    let request = ConnectRequest {
        timeout_ms: 10_000,
        password: Some(Bytes::from_static(&[0; 16])),
        read_only: Some(false),
        ..ConnectRequest::default()
    };
    request.encode(&mut out);
    out
}

fn ping() -> BytesMut {
    let mut out = BytesMut::new();
    Request::Ping.encode(opcode::XID_PING, &mut out);
    out
}

/// A connection whose handshake is done.
async fn session(server: SocketAddr) -> (TcpStream, BytesMut) {
    let mut stream = TcpStream::connect(server).await.expect("the server listens");
    stream.write_all(&connect_request()).await.expect("connected");
    let mut received = BytesMut::new();
    next(&mut stream, &mut received).await.expect("the handshake is answered");
    (stream, received)
}

/// The next frame; `None` at the end of the connection.
async fn next(stream: &mut TcpStream, received: &mut BytesMut) -> Option<Bytes> {
    loop {
        if let Some(frame) = frame::split(received, 64 << 20).expect("the server sends frames") {
            return Some(frame);
        }
        match timeout(PATIENCE, stream.read_buf(received)).await.expect("the server answers or hangs up") {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

/// Whether somebody who behaves is served: a write, and a read of it.
async fn is_served(client: &mut Client, name: &str) {
    let path = format!("/honest-{name}");
    client.create(&path, name).await.expect("the connection stays").expect("created");
    assert_eq!(client.get(&path).await.as_deref(), Some(name));
}

#[tokio::test(flavor = "multi_thread")]
async fn arbitrary_first_bytes_end_their_own_connection_only() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&alone(folder.path())).await;
    let mut honest = Client::connect(server.client_addr()).await;
    for seed in seeds() {
        let mut rng = Rng(seed);
        let bytes = match rng.below(3) {
            0 => rng.bytes(200),
            1 => {
                let body = rng.bytes(100);
                let mut framed = (body.len() as i32).to_be_bytes().to_vec();
                framed.extend(body);
                framed
            }
            _ => {
                let mut bytes = connect_request().to_vec();
                rng.damage(&mut bytes);
                bytes
            }
        };
        let mut stream = TcpStream::connect(server.client_addr()).await.expect("the server listens");
        // A server that hung up already does not take the rest.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        // The server may reset a connection that it does not understand; it must not keep it.
        let _ =
            timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap_or_else(|_| panic!("seed {seed} hangs"));
        if seed % 20 == 0 {
            is_served(&mut honest, &format!("{seed}")).await;
        }
    }
    is_served(&mut honest, "last").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_requests_are_answered_or_end_their_own_connection_only() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&alone(folder.path())).await;
    let mut honest = Client::connect(server.client_addr()).await;
    honest.create("/x", "").await.unwrap().unwrap();
    let (mut answered, mut ended) = (0, 0);
    for seed in seeds() {
        let mut rng = Rng(seed);
        let kinds = requests();
        let (mut stream, mut received) = session(server.client_addr()).await;
        let mut out = BytesMut::new();
        for xid in 0..1 + rng.below(8) {
            let mut one = BytesMut::new();
            kinds[rng.below(kinds.len())].encode(xid as i32, &mut one);
            // The frame stays whole most of the time, or nothing behind it would be looked at.
            let mut body = one.split_off(4).to_vec();
            match rng.below(12) {
                0 => rng.damage(&mut body),
                1 => body = rng.bytes(60),
                _ => {
                    let mut tail = body.split_off(8);
                    rng.damage(&mut tail);
                    body.extend(tail);
                }
            }
            let length = if rng.below(20) == 0 { rng.next() as i32 } else { body.len() as i32 };
            out.put_i32(length);
            out.extend_from_slice(&body);
        }
        out.extend_from_slice(&ping());
        let _ = stream.write_all(&out).await;
        // An announced length may be longer than what is sent: then the server waits, as it must.
        let _ = stream.shutdown().await;
        loop {
            let Some(frame) = next(&mut stream, &mut received).await else {
                ended += 1;
                break;
            };
            let (header, _) = decode_reply(frame).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            if header.xid == opcode::XID_PING {
                answered += 1;
                break;
            }
        }
        if seed % 20 == 0 {
            is_served(&mut honest, &format!("{seed}")).await;
        }
    }
    is_served(&mut honest, "last").await;
    if std::env::var("SEED").is_err() {
        assert!(answered > 30 && ended > 30, "one-sided: {answered} answered to the end, {ended} ended");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_request_and_then_nothing_holds_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&alone(folder.path())).await;
    let mut honest = Client::connect(server.client_addr()).await;
    let mut held = Vec::new();
    for cut in 0..40 {
        let mut stream = TcpStream::connect(server.client_addr()).await.unwrap();
        stream.write_all(&connect_request()[..cut]).await.unwrap();
        held.push(stream);
        let (mut stream, _) = session(server.client_addr()).await;
        let mut request = BytesMut::new();
        Request::Create(Create { path: "/never".into(), acl: Some(Acl::open()), ..Create::default() })
            .encode(1, &mut request);
        let cut = cut.min(request.len() - 1);
        stream.write_all(&request[..cut]).await.unwrap();
        held.push(stream);
    }
    is_served(&mut honest, "meanwhile").await;
    // They go away without a word, and what they began to say is not done.
    drop(held);
    is_served(&mut honest, "afterwards").await;
    assert_eq!(honest.get("/never").await, None);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_writes_byte_by_byte_is_served_like_others() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&alone(folder.path())).await;
    let mut stream = TcpStream::connect(server.client_addr()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut bytes = connect_request();
    let create = Create { path: "/slowly".into(), acl: Some(Acl::open()), ..Create::default() };
    Request::Create(create).encode(1, &mut bytes);
    bytes.extend_from_slice(&ping());
    for byte in bytes {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut received = BytesMut::new();
    next(&mut stream, &mut received).await.expect("the handshake");
    for xid in [1, opcode::XID_PING] {
        let (header, _) = decode_reply(next(&mut stream, &mut received).await.expect("a reply")).unwrap();
        assert_eq!((header.xid, header.err), (xid, 0));
    }
    server.stop().await;
}

/// What the operating system says of a process, KiB.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_costs_bounded_memory_and_gets_all_when_it_reads() {
    const REQUESTS: i32 = 400;
    const BYTES: usize = 500_000;
    let ensemble = processes::Ensemble::start(1, "").await;
    let server: SocketAddr = ensemble.address(1).parse().unwrap();
    let mut honest = Client::connect(server).await;
    let data = "z".repeat(BYTES);
    honest.create("/big", &data).await.unwrap().unwrap();
    let before = resident_kib(ensemble.pid(1));
    let (mut stream, mut received) = session(server).await;
    let mut out = BytesMut::new();
    for xid in 1..=REQUESTS {
        Request::GetData { path: "/big".into(), watch: false }.encode(xid, &mut out);
    }
    stream.write_all(&out).await.unwrap();
    for round in 0..50 {
        is_served(&mut honest, &format!("{round}")).await;
    }
    let growth = resident_kib(ensemble.pid(1)).saturating_sub(before);
    // The replies are 200 MB; what waits for a client is bounded by some MiB.
    assert!(growth < 64 * 1024, "{growth} KiB more, for one client that does not read");
    for xid in 1..=REQUESTS {
        let (header, mut body) = decode_reply(next(&mut stream, &mut received).await.expect("a reply")).unwrap();
        assert_eq!((header.xid, header.err), (xid, 0));
        let Ok(Response::Data { data: Some(got), .. }) = Response::decode(opcode::GET_DATA, &mut body) else {
            panic!("no data in reply {xid}")
        };
        assert_eq!(got.len(), BYTES);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections_that_send_nothing_cost_little_and_others_are_served() {
    const CONNECTIONS: usize = 10_000;
    /// For each of them, KiB. A task, its stack of futures and a socket.
    const KIB: u64 = 8;
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("the soft limit may be raised");
    let room = limit.maximum.map_or(usize::MAX, |files| files as usize);
    if room < CONNECTIONS + 1_000 {
        eprintln!("SKIPPED: this system allows {room} open files; {CONNECTIONS} connections need more (ulimit -Hn)");
        return;
    }
    let ensemble = processes::Ensemble::start(1, "clientPortListenBacklog=4096").await;
    let server: SocketAddr = ensemble.address(1).parse().unwrap();
    let mut honest = Client::connect(server).await;
    is_served(&mut honest, "before").await;
    let before = resident_kib(ensemble.pid(1));
    let mut silent = Vec::with_capacity(CONNECTIONS);
    let mut most = before;
    for count in 0..CONNECTIONS {
        silent.push(timeout(PATIENCE, TcpStream::connect(server)).await.expect("accepted").expect("connected"));
        if count % 1_000 == 999 {
            is_served(&mut honest, &format!("{count}")).await;
            most = most.max(resident_kib(ensemble.pid(1)));
        }
    }
    let growth = most - before;
    assert!(growth < KIB * CONNECTIONS as u64, "{growth} KiB for {CONNECTIONS} silent connections");
    // Somebody new is served, too, and the silent ones are sent away in the end (ten seconds without a handshake).
    let mut newcomer = Client::connect(server).await;
    is_served(&mut newcomer, "newcomer").await;
    for stream in &mut silent {
        let mut byte = [0];
        let read = timeout(PATIENCE, stream.read(&mut byte)).await.expect("the server hangs up");
        assert!(matches!(read, Ok(0) | Err(_)), "not a word was said to it");
    }
    is_served(&mut honest, "after").await;
    // The listener has its files back.
    timeout(Duration::from_secs(60), Client::connect(server)).await.expect("connected");
}
