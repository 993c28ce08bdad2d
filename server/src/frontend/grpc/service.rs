//! Carries one session's stream: the handshake, then requests in and replies out, until one side ends it.
//!
//! Three things run side by side for each connection: a reader, which hands in batches and is held back when too much is
//! unanswered; a writer, which sends all that waits as one message; and the HTTP/2 connection under both.

use std::collections::VecDeque;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use corral_core::session::{ClientRequest, Outgoing, Protocol};
use corral_proto::pb::client as pb;
use corral_proto::pb::client::corral_server::{Corral, CorralServer};
use corral_proto::{ErrorCode, SessionId, Zxid};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::convert;
use crate::frontend::wire::stats::{Access, Awaited, ConnectionStats, FrontendStats, Turn};
use crate::frontend::{ConnectRefused, ConnectRequest, Connected, Connection, Frontend, Peer};

/// The largest message taken from a client, in bytes.
pub const REQUEST_MESSAGE_MAX: usize = 4 * 1024 * 1024;
/// The largest message sent to a client, in bytes: the names of some million children.
pub const REPLY_MESSAGE_MAX: usize = 64 * 1024 * 1024;
/// HTTP/2 flow-control window of a stream, in bytes: for the listener's settings, with no adaptive window.
pub const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
/// HTTP/2 flow-control window of a connection, in bytes.
pub const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// Requests handed in at once: a message may hold a million small ones, and what is outstanding is checked in between.
const SUBMIT_MAX: usize = 1_000;
/// Replies in one message.
const BATCH_REPLIES: usize = 1_024;
/// Bytes of replies in one message, a single larger one excepted.
const BATCH_BYTES: usize = 1024 * 1024;
/// Messages between a connection's writer and HTTP/2. Few: what waits in the lane is counted there.
const OUTBOUND_MESSAGES: usize = 2;
/// How long a new stream may stay without its first message.
const HELLO_WAIT: Duration = Duration::from_secs(10);
/// How long a client may leave its window shut. The session's own timeout is independent of it.
const STALL_MAX: Duration = Duration::from_secs(20);

/// The gRPC service over a server's door.
///
/// Who the client is is taken from a [`Peer`] in the request's extensions, else its address from tonic's own connect info.
pub fn service(frontend: Frontend, stats: Arc<FrontendStats>) -> CorralServer<GrpcService<Frontend>> {
    serve(frontend, stats)
}

fn serve<D: Door>(door: D, stats: Arc<FrontendStats>) -> CorralServer<GrpcService<D>> {
    CorralServer::new(GrpcService { door, stats })
        .max_decoding_message_size(REQUEST_MESSAGE_MAX)
        .max_encoding_message_size(REPLY_MESSAGE_MAX)
}

/// The service behind [`service`].
#[derive(Clone)]
pub struct GrpcService<D> {
    door: D,
    stats: Arc<FrontendStats>,
}

/// What the service needs of a [`Frontend`]: a seam for its tests.
pub trait Door: Clone + Send + Sync + 'static {
    /// What it opens to.
    type Link: Link;
    /// As [`Frontend::connect`].
    fn connect(&self, request: ConnectRequest) -> impl Future<Output = Result<Self::Link, ConnectRefused>> + Send;
}

/// What the service needs of a [`Connection`].
pub trait Link: Send + Sync + 'static {
    /// As [`Connection::connected`].
    fn connected(&self) -> &Connected;
    /// As [`Connection::submit`].
    fn submit(&self, requests: Vec<(u64, ClientRequest)>) -> impl Future<Output = ()> + Send;
    /// As [`Connection::outgoing`].
    fn outgoing(&self, out: &mut Vec<Outgoing>) -> impl Future<Output = ()> + Send;
}

impl Door for Frontend {
    type Link = Connection;

    async fn connect(&self, request: ConnectRequest) -> Result<Connection, ConnectRefused> {
        Frontend::connect(self, request).await
    }
}

impl Link for Connection {
    fn connected(&self) -> &Connected {
        Connection::connected(self)
    }

    async fn submit(&self, requests: Vec<(u64, ClientRequest)>) {
        Connection::submit(self, requests).await;
    }

    async fn outgoing(&self, out: &mut Vec<Outgoing>) {
        Connection::outgoing(self, out).await;
    }
}

type Outbound = mpsc::Sender<Result<pb::ServerMessage, Status>>;

#[tonic::async_trait]
impl<D: Door> Corral for GrpcService<D> {
    type SessionStream = ReceiverStream<Result<pb::ServerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::ClientMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_else(|| {
            let remote = request.remote_addr().unwrap_or_else(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
            Peer { remote, secure: false, identities: Vec::new() }
        });
        let remote = peer.remote;
        let (outbound, replies) = mpsc::channel(OUTBOUND_MESSAGES);
        let door = self.door.clone();
        let registration = self.stats.register(remote, peer.secure);
        // The task ends with the stream: it waits for nothing without also waiting for the client to go.
        tokio::spawn(async move {
            let gone = outbound.clone();
            tokio::select! {
                () = session(door, request.into_inner(), &outbound, peer, &registration) => {}
                () = gone.closed() => tracing::debug!(%remote, "the client is gone"),
            }
        });
        Ok(Response::new(ReceiverStream::new(replies)))
    }
}

/// One connection, from its first message to its last.
async fn session<D: Door>(
    door: D,
    mut inbound: Streaming<pb::ClientMessage>,
    outbound: &Outbound,
    peer: Peer,
    stats: &ConnectionStats,
) {
    let remote = peer.remote;
    let request = match hello(&mut inbound, peer).await {
        Ok(request) => request,
        Err(closed) => return close(outbound, closed, remote).await,
    };
    let taken_up = request.session != SessionId::NONE;
    let link = match door.connect(request).await {
        Ok(link) => link,
        Err(refused) => return close(outbound, refusal(refused), remote).await,
    };
    if !send(outbound, pb::server_message::Message::Connected(connected(link.connected()))).await {
        return;
    }
    stats.connected(link.connected().session, link.connected().timeout_ms, taken_up);
    let conversation = Conversation { link: &link, stats, in_flight: Mutex::default() };
    // Whichever ends first ends the other. A client that only ended its side wants no more replies.
    let closed = tokio::select! {
        closed = conversation.read(inbound) => closed,
        closed = conversation.write(outbound) => closed,
    };
    if let Some(closed) = closed {
        close(outbound, closed, remote).await;
    }
}

/// The first message.
async fn hello(inbound: &mut Streaming<pb::ClientMessage>, peer: Peer) -> Result<ConnectRequest, pb::Closed> {
    let first = match tokio::time::timeout(HELLO_WAIT, inbound.message()).await {
        Ok(Ok(Some(message))) => message.message,
        Ok(Ok(None)) => return Err(protocol("the stream ended before its first message")),
        Ok(Err(status)) => return Err(protocol(status.message())),
        Err(_) => return Err(protocol("the first message did not come in time")),
    };
    let Some(pb::client_message::Message::Connect(connect)) = first else {
        return Err(protocol("the first message must be Connect"));
    };
    Ok(ConnectRequest {
        read_only: false,
        session: SessionId(connect.session),
        password: connect.password.into(),
        timeout_ms: i32::try_from(connect.timeout_ms).unwrap_or(i32::MAX),
        last_zxid_seen: Zxid(connect.last_zxid_seen),
        protocol: Protocol::Grpc,
        peer,
    })
}

fn connected(connected: &Connected) -> pb::Connected {
    pb::Connected {
        session: connected.session.0,
        password: bytes::Bytes::copy_from_slice(&connected.password),
        timeout_ms: u32::try_from(connected.timeout_ms).unwrap_or(0),
        server: connected.server.0,
        zxid: connected.attach.0,
        last_n: connected.last_n,
        request_bytes_max: u32::try_from(connected.request_bytes_max).unwrap_or(u32::MAX),
    }
}

fn refusal(refused: ConnectRefused) -> pb::Closed {
    use pb::closed::Reason;
    let (reason, text) = match refused {
        ConnectRefused::Expired => (Reason::SessionExpired, "the session is gone, or its password is wrong"),
        ConnectRefused::Behind => (Reason::Behind, "this server has not seen what the client saw"),
        ConnectRefused::NotServing => {
            (Reason::NoQuorum, "this server is not serving: no leader, starting, or stopping")
        }
    };
    pb::Closed { reason: reason.into(), text: text.to_owned() }
}

fn protocol(text: &str) -> pb::Closed {
    pb::Closed { reason: pb::closed::Reason::Protocol.into(), text: text.to_owned() }
}

/// Bytes in front of a message on the wire.
const MESSAGE_PREFIX: usize = 5;

/// What reader and writer of one connection share.
struct Conversation<'a, L> {
    link: &'a L,
    stats: &'a ConnectionStats,
    /// When each unanswered request was read, and what it was; answers come in the order of requests. Both sides are
    /// one task, so the lock is never waited for; what may be outstanding bounds the queue.
    in_flight: Mutex<VecDeque<Awaited>>,
}

impl<L: Link> Conversation<'_, L> {
    /// Hands in requests until the client ends its side (`None`) or breaks a rule.
    async fn read(&self, mut inbound: Streaming<pb::ClientMessage>) -> Option<pb::Closed> {
        let most = self.link.connected().request_bytes_max;
        loop {
            let message = match inbound.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return None,
                // Too large, or not protobuf: the client hears why. A broken connection hears nothing.
                Err(status) => return Some(protocol(status.message())),
            };
            let mut bytes = MESSAGE_PREFIX + message.encoded_len();
            let requests = match message.message {
                Some(pb::client_message::Message::Requests(batch)) => batch.requests,
                Some(pb::client_message::Message::Connect(_)) => return Some(protocol("Connect came twice")),
                None => return Some(protocol("a message of unknown kind")),
            };
            let read_at = Instant::now();
            let mut batch = Vec::with_capacity(requests.len().min(SUBMIT_MAX));
            for request in requests {
                let id = request.id;
                match convert::request(request) {
                    Ok(request) => {
                        if let ClientRequest::Write { op, .. } = &request
                            && op.bytes() > most
                        {
                            // Clients of ZooKeeper's protocol could not read it.
                            self.stats.too_large();
                            let bytes = op.bytes();
                            let text = format!("a request of {bytes} bytes; at most {most} (jute.maxbuffer)");
                            return Some(protocol(&text));
                        }
                        batch.push((id, request));
                    }
                    Err(error) => return Some(protocol(&error.to_string())),
                }
                if batch.len() == SUBMIT_MAX {
                    self.submit(std::mem::take(&mut batch), read_at, std::mem::take(&mut bytes)).await;
                }
            }
            if !batch.is_empty() {
                self.submit(batch, read_at, bytes).await;
            }
        }
    }

    async fn submit(&self, batch: Vec<(u64, ClientRequest)>, read_at: Instant, bytes: usize) {
        self.stats.received(batch.len() as u64, bytes);
        self.in_flight.lock().extend(batch.iter().map(|(id, request)| Awaited {
            xid: i64::try_from(*id).unwrap_or(i64::MAX),
            opcode: convert::opcode_of(request),
            access: Access::of(request),
            read_at,
        }));
        self.link.submit(batch).await;
    }

    /// Sends what waits, until nothing more will come.
    async fn write(&self, outbound: &Outbound) -> Option<pb::Closed> {
        let mut out = Vec::new();
        loop {
            self.link.outgoing(&mut out).await;
            let mut items = out.drain(..).peekable();
            let mut closed = None;
            while closed.is_none() && items.peek().is_some() {
                let mut batch = Vec::with_capacity(items.len().min(BATCH_REPLIES));
                closed = self.fill(&mut items, &mut batch);
                if !batch.is_empty() && !send(outbound, replies(batch)).await {
                    return None;
                }
            }
            if closed.is_some() {
                return closed;
            }
        }
    }

    /// Takes what fits into one message.
    fn fill(
        &self,
        items: &mut std::iter::Peekable<impl Iterator<Item = Outgoing>>,
        batch: &mut Vec<pb::Reply>,
    ) -> Option<pb::Closed> {
        let mut turn = self.stats.turn(Instant::now());
        let mut bytes = 0;
        let mut closed = None;
        while let Some(outgoing) = items.next_if(|next| {
            let weight = weight(next);
            let fits = batch.is_empty() || (batch.len() < BATCH_REPLIES && bytes + weight <= BATCH_BYTES);
            bytes += weight;
            fits
        }) {
            match outgoing {
                Outgoing::Reply { cookie, zxid, result } => {
                    if result == Err(ErrorCode::SessionClosedRequireSaslAuth) {
                        // No reply: a write without one is not counted, and can be made again by a client who is known.
                        let reason = pb::closed::Reason::AuthRequired.into();
                        let text = "this ensemble demands a proven identity".to_owned();
                        closed = Some(pb::Closed { reason, text });
                        break;
                    }
                    if result == Err(ErrorCode::AuthFailed) {
                        let reason = pb::closed::Reason::AuthFailed.into();
                        closed = Some(pb::Closed { reason, text: "the identity was not proven".to_owned() });
                    }
                    let refused = result.is_err();
                    let reply = convert::reply(cookie, zxid, result);
                    self.count(&mut turn, zxid, refused, &reply);
                    batch.push(reply);
                }
                Outgoing::Event(event) => {
                    let event = convert::event(&event);
                    turn.event(event.encoded_len());
                    batch.push(event);
                }
                Outgoing::Feed(notice) => {
                    let notice = convert::feed(&notice);
                    turn.event(notice.encoded_len());
                    batch.push(notice);
                }
                Outgoing::Close(reason) => closed = Some(convert::closed(reason)),
            }
            if closed.is_some() {
                break;
            }
        }
        turn.finish();
        closed
    }

    fn count(&self, turn: &mut Turn<'_>, zxid: Zxid, refused: bool, reply: &pb::Reply) {
        // Every reply has its request; one without would be a fault of this server that is not ours to punish.
        if let Some(asked) = self.in_flight.lock().pop_front() {
            turn.reply(zxid.as_i64(), &asked, refused, reply.encoded_len());
        }
    }
}

/// About how many bytes an item takes on the wire.
fn weight(outgoing: &Outgoing) -> usize {
    match outgoing {
        Outgoing::Reply { result, .. } => convert::weight(result),
        Outgoing::Event(event) => 64 + event.event.path.len(),
        Outgoing::Feed(notice) => convert::feed_weight(notice),
        Outgoing::Close(_) => 0,
    }
}

fn replies(replies: Vec<pb::Reply>) -> pb::server_message::Message {
    pb::server_message::Message::Replies(pb::ReplyBatch { replies })
}

/// Sends a message; `false` if the client does not take it.
async fn send(outbound: &Outbound, message: pb::server_message::Message) -> bool {
    let message = Ok(pb::ServerMessage { message: Some(message) });
    matches!(tokio::time::timeout(STALL_MAX, outbound.send(message)).await, Ok(Ok(())))
}

async fn close(outbound: &Outbound, closed: pb::Closed, remote: SocketAddr) {
    tracing::debug!(%remote, reason = ?closed.reason(), text = %closed.text, "connection closed");
    send(outbound, pb::server_message::Message::Closed(closed)).await;
}

#[cfg(test)]
mod tests {
    use corral_core::session::{CloseReason, SharedEvent};
    use corral_core::tree::op::Answer;
    use corral_proto::pb::client::corral_client::CorralClient;
    use corral_proto::{EventKind, ServerId, WatchedEvent};
    use pb::server_message::Message;
    use tokio::sync::Notify;
    use tokio_stream::wrappers::TcpListenerStream;

    use super::*;

    /// A door whose connections answer every request at once with `Done`, in order; what else they send is scripted.
    #[derive(Clone, Default)]
    struct FakeDoor {
        refuse: Option<ConnectRefused>,
        seen: Arc<Mutex<Vec<ConnectRequest>>>,
        link: Arc<FakeState>,
    }

    #[derive(Default)]
    struct FakeState {
        submitted: Mutex<Vec<Vec<(u64, ClientRequest)>>>,
        out: Mutex<Vec<Outgoing>>,
        wake: Notify,
        dropped: Notify,
    }

    struct FakeLink {
        state: Arc<FakeState>,
        connected: Connected,
    }

    impl Drop for FakeLink {
        fn drop(&mut self) {
            self.state.dropped.notify_one();
        }
    }

    impl Door for FakeDoor {
        type Link = FakeLink;

        async fn connect(&self, request: ConnectRequest) -> Result<FakeLink, ConnectRefused> {
            self.seen.lock().push(request);
            match self.refuse {
                Some(refused) => Err(refused),
                None => Ok(FakeLink {
                    state: self.link.clone(),
                    connected: Connected {
                        read_only: false,
                        session: SessionId(5),
                        password: [9; 16],
                        timeout_ms: 4_000,
                        attach: Zxid(77),
                        last_n: 3,
                        server: ServerId(2),
                        request_bytes_max: 1_000_000,
                    },
                }),
            }
        }
    }

    impl Link for FakeLink {
        fn connected(&self) -> &Connected {
            &self.connected
        }

        async fn submit(&self, requests: Vec<(u64, ClientRequest)>) {
            for (cookie, request) in &requests {
                let result = match request {
                    ClientRequest::AddAuth { .. } => Err(ErrorCode::AuthFailed),
                    _ => Ok(Answer::Done),
                };
                self.state.out.lock().push(Outgoing::Reply { cookie: *cookie, zxid: Zxid(*cookie), result });
                if let ClientRequest::CloseSession { .. } = request {
                    self.state.out.lock().push(Outgoing::Close(CloseReason::ClosedByClient));
                }
            }
            self.state.submitted.lock().push(requests);
            self.state.wake.notify_one();
        }

        async fn outgoing(&self, out: &mut Vec<Outgoing>) {
            loop {
                let woken = self.state.wake.notified();
                out.append(&mut self.state.out.lock());
                if !out.is_empty() {
                    return;
                }
                woken.await;
            }
        }
    }

    struct Stream {
        requests: mpsc::Sender<pb::ClientMessage>,
        replies: Streaming<pb::ServerMessage>,
        stats: Arc<FrontendStats>,
    }

    impl Stream {
        async fn open(door: FakeDoor) -> Stream {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let stats = FrontendStats::new();
            let router = tonic::transport::Server::builder().add_service(serve(door, stats.clone()));
            tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
            let (requests, stream) = mpsc::channel(4);
            let mut client = CorralClient::connect(format!("http://{address}")).await.unwrap();
            let replies = client.session(ReceiverStream::new(stream)).await.unwrap().into_inner();
            Stream { requests, replies, stats }
        }

        async fn send(&self, message: pb::client_message::Message) {
            self.requests.send(pb::ClientMessage { message: Some(message) }).await.unwrap();
        }

        async fn hello(&self) {
            let connect = pb::Connect { session: 5, password: "pw".into(), timeout_ms: 9_000, last_zxid_seen: 70 };
            self.send(pb::client_message::Message::Connect(connect)).await;
        }

        async fn ask(&self, requests: Vec<pb::Request>) {
            self.send(pb::client_message::Message::Requests(pb::RequestBatch { requests })).await;
        }

        async fn next(&mut self) -> Option<Message> {
            self.replies.message().await.unwrap().map(|message| message.message.unwrap())
        }

        async fn closed(&mut self) -> (pb::closed::Reason, String) {
            match self.next().await {
                Some(Message::Closed(closed)) => {
                    assert_eq!(self.next().await, None, "it is the last message");
                    (closed.reason(), closed.text)
                }
                other => panic!("{other:?}"),
            }
        }

        /// Ids of the answers and kinds of the events of the next `n` replies.
        async fn replies(&mut self, n: usize) -> Vec<u64> {
            let mut ids = Vec::new();
            while ids.len() < n {
                match self.next().await {
                    Some(Message::Replies(batch)) => {
                        ids.extend(batch.replies.into_iter().map(|reply| match reply.kind {
                            Some(pb::reply::Kind::Answer(answer)) => answer.id,
                            Some(pb::reply::Kind::Event(event)) => event.kind as u64,
                            other => panic!("{other:?}"),
                        }))
                    }
                    other => panic!("{other:?}"),
                }
            }
            ids
        }
    }

    fn ping(id: u64) -> pb::Request {
        pb::Request { id, op: Some(pb::request::Op::Ping(pb::Ping {})), ..pb::Request::default() }
    }

    #[tokio::test]
    async fn the_handshake_carries_the_session_both_ways() {
        let door = FakeDoor::default();
        let mut stream = Stream::open(door.clone()).await;
        stream.hello().await;
        let Some(Message::Connected(connected)) = stream.next().await else { panic!("no Connected") };
        let expected = pb::Connected {
            session: 5,
            password: vec![9; 16].into(),
            timeout_ms: 4_000,
            server: 2,
            zxid: 77,
            last_n: 3,
            request_bytes_max: 1_000_000,
        };
        assert_eq!(connected, expected);
        let seen = door.seen.lock()[0].clone();
        assert_eq!((seen.session, seen.password.as_slice(), seen.timeout_ms), (SessionId(5), b"pw".as_slice(), 9_000));
        assert_eq!(
            (seen.last_zxid_seen, seen.protocol, seen.peer.remote.ip().is_loopback()),
            (Zxid(70), Protocol::Grpc, true)
        );
    }

    #[tokio::test]
    async fn each_refusal_has_its_reason() {
        use pb::closed::Reason;
        for (refuse, reason) in [
            (ConnectRefused::Expired, Reason::SessionExpired),
            (ConnectRefused::Behind, Reason::Behind),
            (ConnectRefused::NotServing, Reason::NoQuorum),
        ] {
            let mut stream = Stream::open(FakeDoor { refuse: Some(refuse), ..FakeDoor::default() }).await;
            stream.hello().await;
            assert_eq!(stream.closed().await.0, reason);
        }
    }

    #[tokio::test]
    async fn a_stream_that_does_not_begin_with_connect_is_closed() {
        let mut stream = Stream::open(FakeDoor::default()).await;
        stream.ask(vec![ping(1)]).await;
        let closed = stream.closed().await;
        assert_eq!(closed, (pb::closed::Reason::Protocol, "the first message must be Connect".to_owned()));
    }

    #[tokio::test]
    async fn requests_are_answered_in_order_with_events_between_them() {
        let door = FakeDoor::default();
        let mut stream = Stream::open(door.clone()).await;
        stream.hello().await;
        assert!(matches!(stream.next().await, Some(Message::Connected(_))));
        stream.ask((1..=3).map(ping).collect()).await;
        assert_eq!(stream.replies(3).await, [1, 2, 3]);
        let event = WatchedEvent { kind: EventKind::NodeDeleted, path: "/a".into(), zxid: None };
        {
            let mut out = door.link.out.lock();
            out.push(Outgoing::Event(SharedEvent::new(event)));
            out.push(Outgoing::Reply { cookie: 9, zxid: Zxid(1), result: Err(ErrorCode::NoNode) });
        }
        door.link.wake.notify_one();
        assert_eq!(stream.replies(2).await, [2, 9]);
    }

    #[tokio::test]
    async fn what_goes_over_a_stream_is_counted_as_over_any_connection() {
        let door = FakeDoor::default();
        let mut stream = Stream::open(door.clone()).await;
        stream.hello().await;
        assert!(matches!(stream.next().await, Some(Message::Connected(_))));
        stream.ask(vec![ping(1), ping(2)]).await;
        stream.replies(2).await;
        let op = Some(pb::request::Op::Delete(pb::Delete { path: "/a".into(), version: -1 }));
        stream.ask(vec![pb::Request { id: 3, n: 1, op, ..pb::Request::default() }]).await;
        stream.replies(1).await;
        let event = WatchedEvent { kind: EventKind::NodeDeleted, path: "/a".into(), zxid: None };
        door.link.out.lock().push(Outgoing::Event(SharedEvent::new(event)));
        door.link.wake.notify_one();
        stream.replies(1).await;

        let report = stream.stats.report();
        // The handshake, three requests; the handshake's answer, three replies, an event.
        assert_eq!((report.received, report.sent, report.outstanding, report.connects), (4, 5, 0, 1));
        assert_eq!((report.read_latency.count, report.update_latency.count), (2, 1));
        assert!(report.bytes_received > 0 && report.response_bytes > 0 && report.watch_bytes > 0, "{report:?}");
        let client = &report.clients[0];
        assert_eq!((client.session, client.timeout_ms, client.last_xid), (SessionId(5), 4_000, 3));
        assert_eq!((client.last_opcode, client.received, client.sent), (corral_proto::jute::opcode::DELETE, 4, 5));
        assert!(client.remote.ip().is_loopback());
        let stats = stream.stats.clone();
        drop(stream);
        door.link.dropped.notified().await;
        tokio::time::timeout(Duration::from_secs(20), async {
            while !stats.report().clients.is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("a connection that ended is not listed");
    }

    #[tokio::test]
    async fn a_message_of_many_requests_is_handed_in_by_parts() {
        let door = FakeDoor::default();
        let mut stream = Stream::open(door.clone()).await;
        stream.hello().await;
        assert!(matches!(stream.next().await, Some(Message::Connected(_))));
        stream.ask((1..=2_500).map(ping).collect()).await;
        assert_eq!(stream.replies(2_500).await, (1..=2_500).collect::<Vec<_>>());
        let parts: Vec<usize> = door.link.submitted.lock().iter().map(Vec::len).collect();
        assert_eq!(parts, [1_000, 1_000, 500]);
    }

    #[tokio::test]
    async fn the_answer_to_close_comes_before_the_end() {
        let mut stream = Stream::open(FakeDoor::default()).await;
        stream.hello().await;
        assert!(matches!(stream.next().await, Some(Message::Connected(_))));
        let op = Some(pb::request::Op::CloseSession(pb::CloseSession {}));
        stream.ask(vec![pb::Request { id: 8, n: 4, op, ..pb::Request::default() }]).await;
        assert_eq!(stream.replies(1).await, [8]);
        assert_eq!(stream.closed().await.0, pb::closed::Reason::ClosedByClient);
    }

    #[tokio::test]
    async fn an_identity_that_is_not_proven_costs_the_connection_after_the_reply() {
        let mut stream = Stream::open(FakeDoor::default()).await;
        stream.hello().await;
        assert!(matches!(stream.next().await, Some(Message::Connected(_))));
        let op = Some(pb::request::Op::AddAuth(pb::AddAuth { scheme: "x".into(), auth: "y".into() }));
        stream.ask(vec![pb::Request { id: 8, op, ..pb::Request::default() }]).await;
        assert_eq!(stream.replies(1).await, [8]);
        assert_eq!(stream.closed().await.0, pb::closed::Reason::AuthFailed);
    }

    #[tokio::test]
    async fn a_broken_rule_ends_the_connection_with_a_text() {
        let door = FakeDoor::default();
        let mut stream = Stream::open(door.clone()).await;
        stream.hello().await;
        assert!(matches!(stream.next().await, Some(Message::Connected(_))));
        stream.ask(vec![pb::Request { n: 1, ..ping(6) }]).await;
        let closed = stream.closed().await;
        assert_eq!(closed, (pb::closed::Reason::Protocol, "request 6: only writes have a number".to_owned()));
        door.link.dropped.notified().await;
    }

    #[tokio::test]
    async fn a_client_that_goes_away_is_detached() {
        let door = FakeDoor::default();
        let mut stream = Stream::open(door.clone()).await;
        stream.hello().await;
        assert!(matches!(stream.next().await, Some(Message::Connected(_))));
        drop(stream);
        door.link.dropped.notified().await;
    }

    #[tokio::test]
    async fn an_oversized_message_is_refused_with_a_reason() {
        let mut stream = Stream::open(FakeDoor::default()).await;
        stream.hello().await;
        assert!(matches!(stream.next().await, Some(Message::Connected(_))));
        let data = Some(pb::Data { bytes: vec![0; REQUEST_MESSAGE_MAX + 1].into() });
        let op = Some(pb::request::Op::SetData(pb::SetData { path: "/a".into(), data, version: -1 }));
        stream.ask(vec![pb::Request { id: 1, n: 1, op, ..pb::Request::default() }]).await;
        let (reason, text) = stream.closed().await;
        assert_eq!(reason, pb::closed::Reason::Protocol);
        assert!(text.contains("too large"), "{text}");
    }
}
