//! The port over real sockets on the loopback address.

use corral_core::session::{ClientRequest, Outgoing};
use corral_proto::jute::{ConnectRequest, ConnectResponse, frame};
use corral_proto::{ServerId, SessionId, Zxid};
use futures::StreamExt;
use proptest::prelude::*;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::operators::{Reporter, ServerReport, VERSION};
use super::super::wire::connection::Lane;
use super::super::{ConnectRefused, Connected as Attached};
use super::*;

const WAIT: Duration = Duration::from_secs(20);

/// Gives every client a session that never answers.
struct QuietDoor;

struct QuietLane(Attached);

impl Lane for QuietLane {
    fn connected(&self) -> &Attached {
        &self.0
    }
    async fn submit(&self, _: Vec<(u64, ClientRequest)>) {}
    async fn outgoing(&self, _: &mut Vec<Outgoing>) {
        std::future::pending().await
    }
}

impl Door for QuietDoor {
    type Lane = QuietLane;
    async fn connect(&self, request: super::super::ConnectRequest) -> Result<QuietLane, ConnectRefused> {
        Ok(QuietLane(Attached {
            session: SessionId(5),
            password: [1; 16],
            timeout_ms: request.timeout_ms,
            attach: Zxid(1),
            last_n: 0,
            read_only: false,
            server: ServerId(1),
            request_bytes_max: 1_000_000,
        }))
    }
}

struct Rig {
    address: SocketAddr,
    stats: Arc<FrontendStats>,
    incoming: GrpcIncoming,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn start(options: ListenOptions) -> Rig {
    let stats = FrontendStats::new();
    let reporter: Reporter = Arc::new(|_| {
        let version = VERSION.into();
        let report = ServerReport { version, mode: ServerMode::Standalone, ..ServerReport::default() };
        Box::pin(std::future::ready(report))
    });
    let (inner, incoming) = Inner::new(QuietDoor, options, Operators::new(reporter, Arc::clone(&stats)));
    let listener = bind("127.0.0.1:0".parse().unwrap(), None).unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(inner.serve(listener, Port::Plain, stop.clone()));
    Rig { address, stats, incoming, stop, task }
}

fn options() -> ListenOptions {
    ListenOptions { words: Whitelist::parse("*"), ..ListenOptions::default() }
}

async fn connect(rig: &Rig) -> TcpStream {
    timeout(WAIT, TcpStream::connect(rig.address)).await.unwrap().unwrap()
}

/// Everything up to the end of the connection.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    timeout(WAIT, stream.read_to_end(&mut bytes)).await.unwrap().unwrap();
    bytes
}

async fn ask(rig: &Rig, word: &[u8]) -> String {
    let mut stream = connect(rig).await;
    stream.write_all(word).await.unwrap();
    String::from_utf8(rest(&mut stream).await).unwrap()
}

/// A session; the stream must be kept for as long as it should live.
async fn session(rig: &Rig) -> Option<TcpStream> {
    let mut stream = connect(rig).await;
    let mut out = BytesMut::new();
    ConnectRequest { timeout_ms: 30_000, ..ConnectRequest::default() }.encode(&mut out);
    // A refused connection may be gone before this is written.
    let _ = stream.write_all(&out).await;
    let mut buffer = BytesMut::new();
    loop {
        if let Some(frame) = frame::split(&mut buffer, 100).unwrap() {
            assert_eq!(ConnectResponse::decode(frame).unwrap().session_id, 5);
            return Some(stream);
        }
        match timeout(WAIT, stream.read_buf(&mut buffer)).await.unwrap() {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

#[tokio::test]
async fn words_are_answered_and_the_connection_ends() {
    let rig = start(options());
    assert_eq!(ask(&rig, b"ruok").await, "imok");
    assert_eq!(ask(&rig, b"isro\n").await, "rw");
    let srvr = ask(&rig, b"srvr\r\n").await;
    assert!(srvr.starts_with("Zookeeper version: 3.9.2-corral"), "{srvr}");
    assert!(srvr.contains("\nConnections: 1\n"), "the asking connection counts: {srvr}");
}

#[tokio::test]
async fn the_trace_mask_is_kept_and_waited_for() {
    let rig = start(options());
    assert_eq!(ask(&rig, b"gtmk").await, "306");
    let mut client = connect(&rig).await;
    client.write_all(b"stmk\0\0\0").await.unwrap();
    client.write_all(&[0, 0, 0, 2, 10]).await.unwrap();
    assert_eq!(rest(&mut client).await, b"522");
    assert_eq!(ask(&rig, b"gtmk").await, "522");
    assert_eq!(ask(&rig, b"\xff\xf4\xff\xfd").await, "", "telnet's interrupt ends the connection");
}

#[tokio::test]
async fn a_word_outside_the_whitelist_is_named_in_the_refusal() {
    let rig = start(ListenOptions::default());
    assert_eq!(ask(&rig, b"mntr").await, "mntr is not executed because it is not in the whitelist.\n");
    assert_eq!(ask(&rig, b"zzzz").await, "");
}

#[tokio::test]
async fn zookeeper_clients_get_their_handshake() {
    let rig = start(options());
    let client = session(&rig).await.expect("a session");
    let stat = ask(&rig, b"stat").await;
    let own = format!(" /{}[1](queued=0,recved=1,sent=1)\n", client.local_addr().unwrap());
    assert!(stat.contains(&own), "{stat}");
}

#[tokio::test]
async fn http2_comes_out_whole_and_counts_as_a_connection() {
    let mut rig = start(ListenOptions { connections_max: 1, ..options() });
    let mut client = connect(&rig).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    client.write_all(preface).await.unwrap();
    let mut served = timeout(WAIT, rig.incoming.next()).await.unwrap().unwrap().unwrap();
    let mut seen = vec![0; preface.len()];
    timeout(WAIT, served.read_exact(&mut seen)).await.unwrap().unwrap();
    assert_eq!(seen, preface);
    assert_eq!(served.connect_info().remote, client.local_addr().unwrap());
    served.write_all(b"answer").await.unwrap();
    let mut answer = [0; 6];
    timeout(WAIT, client.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"answer");
    assert!(session(&rig).await.is_none(), "the only place is taken");
    drop(served);
    assert!(session(&rig).await.is_some(), "and free again");
}

#[tokio::test]
async fn connections_from_one_address_are_bounded_and_their_places_come_back() {
    let rig = start(ListenOptions { connections_per_address_max: 2, ..options() });
    let first = session(&rig).await.expect("first");
    let _second = session(&rig).await.expect("second");
    assert!(session(&rig).await.is_none());
    assert_eq!(rig.stats.report().rejected, 1);
    drop(first);
    let deadline = Instant::now() + WAIT;
    while session(&rig).await.is_none() {
        assert!(Instant::now() < deadline, "the place of a closed connection never came back");
    }
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let wire = WireOptions { handshake_timeout: Duration::from_millis(20), ..WireOptions::default() };
    let rig = start(ListenOptions { wire, ..options() });
    let mut silent = connect(&rig).await;
    assert_eq!(rest(&mut silent).await, b"");
    let mut half_a_word = connect(&rig).await;
    half_a_word.write_all(b"ru").await.unwrap();
    assert_eq!(rest(&mut half_a_word).await, b"");
}

#[tokio::test]
async fn stopping_closes_the_port_and_every_connection() {
    let rig = start(options());
    let mut client = session(&rig).await.expect("a session");
    rig.stop.cancel();
    timeout(WAIT, rig.task).await.unwrap().unwrap();
    assert_eq!(rest(&mut client).await, b"");
    assert!(TcpStream::connect(rig.address).await.is_err());
    assert!(rig.stats.report().clients.is_empty());
}

#[test]
fn the_first_four_bytes_tell_the_protocol() {
    assert_eq!(Protocol::of(b"PRI "), Protocol::Http2);
    assert_eq!(Protocol::of(b"ruok"), Protocol::Word(Word::Ruok));
    assert_eq!(Protocol::of(b"\xff\xf4\xff\xfd"), Protocol::Word(Word::Telnet));
    assert_eq!(Protocol::of(&[0, 0, 0, 45]), Protocol::ZooKeeper);
    assert_eq!(Protocol::of(b"GET "), Protocol::ZooKeeper);
}

proptest! {
    #[test]
    fn nothing_is_lost_in_sniffing(
        first in proptest::collection::vec(any::<u8>(), 4..20),
        more in proptest::collection::vec(any::<u8>(), 0..20),
        cut in 1usize..6,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let whole: Vec<u8> = first.iter().chain(&more).copied().collect();
            let mut pieces = &whole[..];
            let mut prefix = BytesMut::new();
            // A source that gives out a few bytes at a time.
            while prefix.len() < 4 {
                let mut piece = AsyncReadExt::take(&mut pieces, cut as u64);
                let _ = sniff(&mut piece, &mut prefix).await;
            }
            let mut stream = PrefixedStream { prefix, inner: pieces };
            let mut seen = Vec::new();
            stream.read_to_end(&mut seen).await.unwrap();
            assert_eq!(seen, whole);
        });
    }
}
