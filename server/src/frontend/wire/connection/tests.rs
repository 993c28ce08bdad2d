//! Whole connections over a pipe in memory, with a script in place of the session.

use std::sync::Arc;

use corral_core::session::SharedEvent;
use corral_core::tree::op::{Answer, ReadOp};
use corral_proto::jute::{ConnectResponse, ReplyHeader, Request, Response, WatcherEvent, decode_reply, opcode};
use corral_proto::{ErrorCode, EventKind, ServerId, Stat, WatchedEvent};
use tokio::io::{DuplexStream, duplex};
use tokio::sync::{Mutex as AsyncMutex, Notify, mpsc};
use tokio::task::JoinHandle;

use super::super::stats::FrontendStats;
use super::*;

const WAIT: Duration = Duration::from_secs(20);
const SESSION: SessionId = SessionId(0x1_0000_0000_0001);
const ZXID: Zxid = Zxid(0x36);

type Batch = Vec<(u64, ClientRequest)>;

/// A session whose replies are given by the test.
struct Script {
    connected: Connected,
    batches: mpsc::UnboundedSender<Batch>,
    outgoing: AsyncMutex<mpsc::UnboundedReceiver<Outgoing>>,
    /// While set, `submit` does not return until it is notified.
    gate: Option<Arc<Notify>>,
}

impl Lane for Script {
    fn connected(&self) -> &Connected {
        &self.connected
    }
    async fn submit(&self, requests: Batch) {
        if self.batches.send(requests).is_ok()
            && let Some(gate) = &self.gate
        {
            gate.notified().await;
        }
    }
    async fn outgoing(&self, out: &mut Vec<Outgoing>) {
        let mut outgoing = self.outgoing.lock().await;
        match outgoing.recv().await {
            Some(first) => out.push(first),
            None => std::future::pending().await,
        }
        while let Ok(next) = outgoing.try_recv() {
            out.push(next);
        }
    }
}

/// Gives out one session, or refuses.
struct ScriptDoor {
    lane: Mutex<Option<Result<Script, ConnectRefused>>>,
    asked: mpsc::UnboundedSender<ConnectRequest>,
}

impl Door for ScriptDoor {
    type Lane = Script;
    async fn connect(&self, request: ConnectRequest) -> Result<Script, ConnectRefused> {
        self.asked.send(request).unwrap();
        let lane = self.lane.lock().take();
        match lane {
            Some(lane) => lane,
            None => std::future::pending().await,
        }
    }
}

/// The client's end, and the session's.
struct Rig {
    stream: DuplexStream,
    buffer: BytesMut,
    batches: mpsc::UnboundedReceiver<Batch>,
    replies: mpsc::UnboundedSender<Outgoing>,
    asked: mpsc::UnboundedReceiver<ConnectRequest>,
    stats: Arc<FrontendStats>,
    task: JoinHandle<End>,
}

struct Setup {
    lane: Option<Option<ConnectRefused>>,
    read_only: bool,
    timeout_ms: i32,
    options: WireOptions,
    pipe: usize,
    gate: Option<Arc<Notify>>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            lane: Some(None),
            read_only: false,
            timeout_ms: 30_000,
            options: WireOptions { max_frame_bytes: 1000, ..WireOptions::default() },
            pipe: 1 << 20,
            gate: None,
        }
    }
}

impl Setup {
    fn start(self) -> Rig {
        let (stream, server) = duplex(self.pipe);
        let (batch_in, batches) = mpsc::unbounded_channel();
        let (replies, outgoing) = mpsc::unbounded_channel();
        let (asked_in, asked) = mpsc::unbounded_channel();
        let connected = Connected {
            session: SESSION,
            password: [7; 16],
            timeout_ms: self.timeout_ms,
            attach: ZXID,
            last_n: 0,
            read_only: self.read_only,
            server: ServerId(1),
            request_bytes_max: 1_000_000,
        };
        let script = Script { connected, batches: batch_in, outgoing: AsyncMutex::new(outgoing), gate: self.gate };
        let lane = self.lane.map(|refused| refused.map_or(Ok(script), Err));
        let door = ScriptDoor { lane: Mutex::new(lane), asked: asked_in };
        let stats = FrontendStats::new();
        let registration = stats.register(remote(), false);
        let options = self.options;
        let task = tokio::spawn(async move {
            let (reader, writer) = tokio::io::split(server);
            let peer = Peer { remote: remote(), secure: false, identities: Vec::new() };
            serve(reader, writer, BytesMut::new(), peer, &door, &options, &registration).await
        });
        Rig { stream, buffer: BytesMut::new(), batches, replies, asked, stats, task }
    }
}

fn remote() -> std::net::SocketAddr {
    "127.0.0.1:5".parse().unwrap()
}

fn connect_request(read_only: Option<bool>) -> jute::ConnectRequest {
    jute::ConnectRequest {
        last_zxid_seen: 0x22,
        timeout_ms: 30_000,
        password: Some(Bytes::from_static(&[0; 16])),
        read_only,
        ..jute::ConnectRequest::default()
    }
}

impl Rig {
    async fn send(&mut self, bytes: &[u8]) {
        timeout(WAIT, self.stream.write_all(bytes)).await.unwrap().unwrap();
    }

    async fn send_requests(&mut self, requests: &[(i32, Request)]) {
        let mut out = BytesMut::new();
        for (xid, request) in requests {
            request.encode(*xid, &mut out);
        }
        self.send(&out).await;
    }

    async fn connect(&mut self) {
        let mut out = BytesMut::new();
        connect_request(Some(false)).encode(&mut out);
        self.send(&out).await;
        let response = ConnectResponse::decode(self.frame().await.unwrap()).unwrap();
        assert_eq!((response.session_id, response.password), (SESSION.0, [7; 16]));
    }

    /// The next frame; `None` at the end of the connection.
    async fn frame(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = frame::split(&mut self.buffer, 1 << 24).unwrap() {
                return Some(frame);
            }
            if timeout(WAIT, self.stream.read_buf(&mut self.buffer)).await.unwrap().unwrap() == 0 {
                assert!(self.buffer.is_empty(), "half a frame at the end");
                return None;
            }
        }
    }

    async fn header(&mut self) -> ReplyHeader {
        decode_reply(self.frame().await.unwrap()).unwrap().0
    }

    async fn batch(&mut self) -> Batch {
        timeout(WAIT, self.batches.recv()).await.unwrap().unwrap()
    }

    /// So many requests, in however many batches.
    async fn requests(&mut self, count: usize) -> Batch {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(self.batch().await);
        }
        assert_eq!(all.len(), count);
        all
    }

    fn reply(&self, cookie: u64, result: Result<Answer, ErrorCode>) {
        self.replies.send(Outgoing::Reply { cookie, zxid: ZXID, result }).unwrap();
    }

    async fn end(self) -> End {
        let Rig { task, stream, .. } = self;
        drop(stream);
        timeout(WAIT, task).await.unwrap().unwrap()
    }
}

fn get_data(path: &str) -> Request {
    Request::GetData { path: path.into(), watch: false }
}

#[tokio::test]
async fn the_handshake_carries_everything_both_ways() {
    for (read_only, bytes) in [(Some(true), 37), (None, 36)] {
        let mut rig = Setup::default().start();
        let mut out = BytesMut::new();
        connect_request(read_only).encode(&mut out);
        rig.send(&out).await;
        let frame = rig.frame().await.unwrap();
        assert_eq!(frame.len(), bytes);
        let response = ConnectResponse::decode(frame).unwrap();
        assert_eq!((response.timeout_ms, response.session_id), (30_000, SESSION.0));
        assert_eq!(response.read_only, read_only.map(|_| false));
        let asked = rig.asked.recv().await.unwrap();
        assert_eq!((asked.session, asked.timeout_ms, asked.last_zxid_seen), (SessionId::NONE, 30_000, Zxid(0x22)));
        assert_eq!((asked.password, asked.protocol, asked.peer.remote), (vec![0; 16], Protocol::Wire, remote()));
        assert_eq!(rig.stats.report().clients[0].session, SESSION);
    }
}

#[tokio::test]
async fn a_client_learns_that_its_session_is_read_only_if_it_asked() {
    for (flag, told) in [(Some(true), Some(true)), (Some(false), Some(true)), (None, None)] {
        let mut rig = Setup { read_only: true, ..Setup::default() }.start();
        let mut out = BytesMut::new();
        connect_request(flag).encode(&mut out);
        rig.send(&out).await;
        assert_eq!(ConnectResponse::decode(rig.frame().await.unwrap()).unwrap().read_only, told);
        assert_eq!(rig.asked.recv().await.unwrap().read_only, flag == Some(true));
    }
}

#[tokio::test]
async fn an_expired_session_is_told_so_and_closed() {
    let mut rig = Setup { lane: Some(Some(ConnectRefused::Expired)), ..Setup::default() }.start();
    let mut out = BytesMut::new();
    connect_request(Some(true)).encode(&mut out);
    rig.send(&out).await;
    let response = ConnectResponse::decode(rig.frame().await.unwrap()).unwrap();
    assert_eq!(response, ConnectResponse::expired(Some(false)));
    assert_eq!(rig.frame().await, None);
    assert!(matches!(rig.end().await, End::Refused(ConnectRefused::Expired)));
}

#[tokio::test]
async fn a_server_that_is_behind_or_does_not_serve_closes_without_a_byte() {
    for refused in [ConnectRefused::Behind, ConnectRefused::NotServing] {
        let mut rig = Setup { lane: Some(Some(refused)), ..Setup::default() }.start();
        let mut out = BytesMut::new();
        connect_request(Some(false)).encode(&mut out);
        rig.send(&out).await;
        assert_eq!(rig.frame().await, None);
        assert!(matches!(rig.end().await, End::Refused(found) if found == refused));
    }
}

#[tokio::test]
async fn garbage_instead_of_a_handshake_is_closed_without_a_byte() {
    let too_short = [0, 0, 0, 5, 1, 2, 3, 4, 5];
    let too_long = [0, 0, 0x10, 0];
    for bytes in [&too_short[..], &too_long, &[0xff; 4], &[0, 0, 0, 0]] {
        let mut rig = Setup::default().start();
        rig.send(bytes).await;
        assert_eq!(rig.frame().await, None);
        assert!(matches!(rig.end().await, End::BadConnect(_) | End::BadFrame(_)));
    }
}

#[tokio::test]
async fn a_handshake_that_does_not_come_is_not_waited_for() {
    let options = WireOptions { handshake_timeout: Duration::from_millis(20), ..WireOptions::default() };
    let mut rig = Setup { options, ..Setup::default() }.start();
    rig.send(&[0, 0, 0, 45, 0]).await;
    assert_eq!(rig.frame().await, None);
    assert!(matches!(rig.end().await, End::NoHandshake));
}

#[tokio::test]
async fn a_client_that_leaves_during_the_handshake_is_let_go() {
    let mut rig = Setup { lane: None, ..Setup::default() }.start();
    let mut out = BytesMut::new();
    connect_request(None).encode(&mut out);
    rig.send(&out).await;
    rig.asked.recv().await.unwrap();
    let Rig { task, stream, .. } = rig;
    drop(stream);
    assert!(matches!(timeout(WAIT, task).await.unwrap().unwrap(), End::ByClient));
}

#[tokio::test]
async fn requests_sent_with_the_handshake_wait_for_its_answer() {
    let mut rig = Setup::default().start();
    let mut out = BytesMut::new();
    connect_request(None).encode(&mut out);
    Request::Ping.encode(opcode::XID_PING, &mut out);
    rig.send(&out).await;
    assert_eq!(rig.frame().await.unwrap().len(), 36);
    assert_eq!(rig.batch().await, vec![(0, ClientRequest::Ping)]);
}

#[tokio::test]
async fn one_read_of_many_frames_is_one_batch_in_order() {
    let mut rig = Setup::default().start();
    rig.connect().await;
    let requests: Vec<_> = (1..=50).map(|xid| (xid, get_data(&format!("/{xid}")))).collect();
    rig.send_requests(&requests).await;
    let batch = rig.requests(50).await;
    for (index, (cookie, request)) in batch.iter().enumerate() {
        assert_eq!(*cookie, index as u64);
        let ClientRequest::Read { op: ReadOp::GetData { path }, .. } = request else { panic!("{request:?}") };
        assert_eq!(*path, format!("/{}", index + 1));
    }
}

#[tokio::test]
async fn pipelined_replies_leave_in_order_each_in_the_form_of_its_request() {
    let mut rig = Setup::default().start();
    rig.connect().await;
    rig.send_requests(&[
        (1, get_data("/a")),
        (opcode::XID_PING, Request::Ping),
        (2, Request::Exists { path: "/a".into(), watch: true }),
        (3, Request::Sync { path: "/echo".into() }),
    ])
    .await;
    rig.requests(4).await;
    rig.reply(0, Ok(Answer::Data { data: Some(Bytes::from_static(b"x")), stat: Stat::default() }));
    rig.reply(1, Ok(Answer::Done));
    let event = WatchedEvent { kind: EventKind::NodeCreated, path: "/a".into(), zxid: None };
    rig.replies.send(Outgoing::Event(SharedEvent::new(event))).unwrap();
    rig.reply(2, Err(ErrorCode::NoNode));
    rig.reply(3, Ok(Answer::Done));
    let (header, mut body) = decode_reply(rig.frame().await.unwrap()).unwrap();
    assert_eq!(header, ReplyHeader { xid: 1, zxid: 0x36, err: 0 });
    assert!(matches!(Response::decode(opcode::GET_DATA, &mut body), Ok(Response::Data { data: Some(_), .. })));
    assert_eq!(rig.header().await, ReplyHeader { xid: -2, zxid: 0x36, err: 0 });
    let (header, mut body) = decode_reply(rig.frame().await.unwrap()).unwrap();
    assert_eq!(header, ReplyHeader { xid: -1, zxid: -1, err: 0 });
    assert_eq!(WatcherEvent::decode(&mut body).unwrap().path, "/a");
    assert_eq!(rig.header().await, ReplyHeader { xid: 2, zxid: 0x36, err: -101 });
    let (_, mut body) = decode_reply(rig.frame().await.unwrap()).unwrap();
    assert_eq!(Response::decode(opcode::SYNC, &mut body), Ok(Response::Path("/echo".into())));
    let traffic = rig.stats.report();
    assert_eq!((traffic.received, traffic.sent, traffic.outstanding), (5, 6, 0));
}

#[tokio::test]
async fn frames_may_arrive_byte_by_byte() {
    let mut rig = Setup::default().start();
    rig.connect().await;
    let mut out = BytesMut::new();
    get_data("/slow").encode(1, &mut out);
    for byte in out {
        rig.send(&[byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.requests(1).await[0].0, 0);
}

#[tokio::test]
async fn lengths_that_no_frame_has_end_the_connection_without_a_reply() {
    for bytes in [[0xff, 0xff, 0xff, 0xff], [0, 0, 0x10, 0]] {
        let mut rig = Setup::default().start();
        rig.connect().await;
        rig.send_requests(&[(1, get_data("/before"))]).await;
        rig.send(&bytes).await;
        assert_eq!(rig.frame().await, None);
        assert_eq!(rig.requests(1).await.len(), 1, "what came before it was taken");
        assert!(matches!(rig.end().await, End::BadFrame(_)));
    }
}

#[tokio::test]
async fn a_frame_without_a_header_ends_the_connection_without_a_reply() {
    let mut rig = Setup::default().start();
    rig.connect().await;
    rig.send(&[0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]).await;
    assert_eq!(rig.frame().await, None);
    assert!(matches!(rig.end().await, End::BadRequest(HangUp::NoHeader)));
}

#[tokio::test]
async fn an_undecodable_body_is_answered_and_the_next_request_too() {
    let mut rig = Setup::default().start();
    rig.connect().await;
    rig.send(&[0, 0, 0, 10, 0, 0, 0, 1, 0, 0, 0, 4, 0xff, 0xff]).await;
    rig.send_requests(&[(2, Request::Ping)]).await;
    let batch = rig.requests(2).await;
    assert_eq!(batch[0].1, ClientRequest::Refuse(ErrorCode::MarshallingError));
    rig.reply(0, Err(ErrorCode::MarshallingError));
    rig.reply(1, Ok(Answer::Done));
    assert_eq!(rig.header().await, ReplyHeader { xid: 1, zxid: 0x36, err: -5 });
    assert_eq!(rig.header().await.err, 0);
}

#[tokio::test]
async fn nothing_is_read_after_an_unknown_opcode_and_its_reply_is_the_last() {
    let mut rig = Setup::default().start();
    rig.connect().await;
    let mut out = BytesMut::new();
    frame::write(&mut out, |out| out.extend_from_slice(&[0, 0, 0, 9, 0, 0, 0, 13]));
    Request::Ping.encode(1, &mut out);
    rig.send(&out).await;
    assert_eq!(rig.batch().await, vec![(0, ClientRequest::Refuse(ErrorCode::Unimplemented))]);
    rig.reply(0, Err(ErrorCode::Unimplemented));
    rig.reply(1, Ok(Answer::Done));
    assert_eq!(rig.header().await, ReplyHeader { xid: 9, zxid: -1, err: -6 });
    assert_eq!(rig.frame().await, None);
    assert!(matches!(rig.end().await, End::FinalReply));
}

#[tokio::test]
async fn failed_auth_is_answered_and_closed() {
    let mut rig = Setup::default().start();
    rig.connect().await;
    let auth = Request::Auth { kind: 0, scheme: "nope".into(), auth: None };
    rig.send_requests(&[(opcode::XID_AUTH, auth)]).await;
    rig.requests(1).await;
    rig.reply(0, Err(ErrorCode::AuthFailed));
    assert_eq!(rig.header().await, ReplyHeader { xid: -4, zxid: 0, err: -115 });
    assert_eq!(rig.frame().await, None);
}

#[tokio::test]
async fn close_session_is_answered_before_the_connection_ends() {
    let mut rig = Setup::default().start();
    rig.connect().await;
    rig.send_requests(&[(8, Request::CloseSession), (9, Request::Ping)]).await;
    assert_eq!(rig.batch().await, vec![(0, ClientRequest::CloseSession { n: None })]);
    rig.reply(0, Ok(Answer::Done));
    rig.replies.send(Outgoing::Close(CloseReason::ClosedByClient)).unwrap();
    assert_eq!(rig.header().await, ReplyHeader { xid: 8, zxid: 0x36, err: 0 });
    assert_eq!(rig.frame().await, None);
    assert!(matches!(rig.end().await, End::BySession(CloseReason::ClosedByClient)));
}

#[tokio::test]
async fn a_session_that_moved_gets_no_reply() {
    let mut rig = Setup::default().start();
    rig.connect().await;
    rig.send_requests(&[(1, Request::Delete { path: "/a".into(), version: -1 })]).await;
    rig.requests(1).await;
    rig.reply(0, Err(ErrorCode::SessionMoved));
    assert_eq!(rig.frame().await, None);
}

#[tokio::test]
async fn a_reply_out_of_order_ends_the_connection_instead_of_answering_the_wrong_request() {
    let mut rig = Setup::default().start();
    rig.connect().await;
    rig.send_requests(&[(1, get_data("/a")), (2, get_data("/b"))]).await;
    rig.requests(2).await;
    rig.reply(1, Err(ErrorCode::NoNode));
    assert_eq!(rig.frame().await, None);
    assert!(matches!(rig.end().await, End::OutOfOrder { cookie: 1 }));
}

#[tokio::test]
async fn silence_for_the_session_timeout_ends_the_connection() {
    let mut rig = Setup { timeout_ms: 30, ..Setup::default() }.start();
    rig.connect().await;
    assert_eq!(rig.frame().await, None);
    assert!(matches!(rig.end().await, End::Idle));
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_given_up() {
    let mut rig = Setup { timeout_ms: 50, pipe: 256, ..Setup::default() }.start();
    rig.connect().await;
    rig.send_requests(&[(1, get_data("/a"))]).await;
    rig.requests(1).await;
    rig.reply(0, Ok(Answer::Data { data: Some(vec![0; 4096].into()), stat: Stat::default() }));
    // Keeps talking, so that it is not idle.
    let end = loop {
        tokio::select! {
            end = &mut rig.task => break end.unwrap(),
            () = tokio::time::sleep(Duration::from_millis(10)) => {
                let _ = timeout(Duration::from_millis(1), rig.stream.write_all(&[0, 0, 0, 8, 0xff, 0xff, 0xff, 0xfe, 0, 0, 0, 11])).await;
            }
        }
    };
    assert!(matches!(end, End::NotReading), "{end}");
}

#[tokio::test]
async fn requests_are_read_while_a_large_reply_waits_for_its_reader() {
    let mut rig = Setup { pipe: 512, ..Setup::default() }.start();
    rig.connect().await;
    rig.send_requests(&[(1, get_data("/large"))]).await;
    rig.requests(1).await;
    rig.reply(0, Ok(Answer::Data { data: Some(vec![7; 100_000].into()), stat: Stat::default() }));
    rig.send_requests(&[(2, get_data("/next"))]).await;
    assert_eq!(rig.requests(1).await[0].0, 1, "read although nothing of the reply was");
    assert_eq!(rig.frame().await.unwrap().len(), 16 + 4 + 100_000 + 68);
}

#[tokio::test]
async fn replies_leave_while_submit_waits() {
    let gate = Arc::new(Notify::new());
    let mut rig = Setup { gate: Some(Arc::clone(&gate)), ..Setup::default() }.start();
    rig.connect().await;
    rig.send_requests(&[(1, get_data("/a"))]).await;
    rig.requests(1).await;
    rig.send_requests(&[(2, get_data("/b"))]).await;
    rig.reply(0, Err(ErrorCode::NoNode));
    assert_eq!(rig.header().await.xid, 1);
    assert!(rig.batches.try_recv().is_err(), "nothing more is read while submit waits");
    gate.notify_one();
    assert_eq!(rig.requests(1).await[0].0, 1);
}

#[tokio::test]
async fn the_end_of_the_client_is_noticed() {
    let mut rig = Setup::default().start();
    rig.connect().await;
    let Rig { task, stream, stats, .. } = rig;
    drop(stream);
    assert!(matches!(timeout(WAIT, task).await.unwrap().unwrap(), End::ByClient));
    assert!(stats.report().clients.is_empty());
}

#[tokio::test]
async fn more_frames_than_a_batch_holds_become_several() {
    let mut rig = Setup::default().start();
    rig.connect().await;
    let count = 3 * BATCH_REQUESTS_MAX;
    let requests = vec![(opcode::XID_PING, Request::Ping); count];
    rig.send_requests(&requests).await;
    let mut seen = 0;
    while seen < count {
        let batch = rig.batch().await;
        assert!(batch.len() <= BATCH_REQUESTS_MAX);
        for (cookie, _) in batch {
            assert_eq!(cookie, seen as u64);
            seen += 1;
        }
    }
}
