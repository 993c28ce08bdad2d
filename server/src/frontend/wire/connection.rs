//! One connection of a ZooKeeper client: one task, no others.
//!
//! A turn reads what is there, decodes every complete frame in it and hands the requests in as one batch; whatever the
//! session has to say is encoded into one buffer and written at once. Both directions take turns inside the task, so a
//! client that reads slowly does not keep its own requests from being read, until the session's bounds do. Waiting in
//! `submit` is the only back-pressure: nothing is read meanwhile, and TCP passes it on.
//!
//! Nothing is decided here. What ends a connection is named in [`End`].

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use corral_core::session::{ClientRequest, CloseReason, Outgoing, Protocol};
use corral_proto::jute::{self, DecodeError, FrameError, frame, opcode};
use corral_proto::{ErrorCode, SessionId, Zxid};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Sleep, sleep_until, timeout, timeout_at};
use tokio_util::io::poll_read_buf;

use super::request::{self, Form, HangUp};
use super::response::{self, Next};
use super::stats::{Access, Awaited, ConnectionStats};
use crate::frontend::{ConnectRefused, ConnectRequest, Connected, Connection, Frontend, Peer};

/// Requests handed in at once. More of them in one read become several batches, with a chance to send in between.
const BATCH_REQUESTS_MAX: usize = 1024;

/// Smallest and largest room made for one read. It grows while reads fill it, and shrinks when they leave most of it
/// empty, so that a thousand idle connections do not hold a thousand large buffers.
const READ_BYTES_MIN: usize = 4 * 1024;
const READ_BYTES_MAX: usize = 64 * 1024;

/// Replies are written once this much is encoded, even if there are more.
const WRITE_BYTES: usize = 256 * 1024;

/// Bytes taken from a client that writes on while its handshake is being answered.
const EARLY_BYTES_MAX: usize = 64 * 1024;

/// How long, and for how many bytes, a closed connection is still read, so that the last reply is not lost to a reset.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES_MAX: usize = 256 * 1024;

/// Settings of a connection.
#[derive(Clone, Copy, Debug)]
pub struct WireOptions {
    /// Largest frame accepted, bytes (`jute.maxbuffer`).
    pub max_frame_bytes: usize,
    /// Time from accept to a complete connect request.
    pub handshake_timeout: Duration,
}

impl Default for WireOptions {
    /// ZooKeeper's: 1,048,575 bytes, 10 s.
    fn default() -> WireOptions {
        WireOptions { max_frame_bytes: frame::DEFAULT_MAX_FRAME_BYTES, handshake_timeout: Duration::from_secs(10) }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The client closed it.
    #[error("closed by the client")]
    ByClient,
    /// The session did.
    #[error("session ended the connection: {0:?}")]
    BySession(CloseReason),
    /// A reply after which nothing may follow was sent: failed auth, unknown request.
    #[error("closed after a final reply")]
    FinalReply,
    /// The connect was not accepted.
    #[error("connect refused: {0:?}")]
    Refused(ConnectRefused),
    /// No connect request in time.
    #[error("no connect request in time")]
    NoHandshake,
    /// Not a byte for the whole session timeout.
    #[error("nothing heard for the session timeout")]
    Idle,
    /// The client takes nothing off the wire for the whole session timeout.
    #[error("client does not read")]
    NotReading,
    /// The first frame is no connect request.
    #[error("no connect request: {0}")]
    BadConnect(#[from] DecodeError),
    /// A length that no frame has.
    #[error(transparent)]
    BadFrame(#[from] FrameError),
    /// A frame that ZooKeeper hangs up on.
    #[error(transparent)]
    BadRequest(#[from] HangUp),
    /// The socket failed.
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
    /// A reply came for a request that is not the next; a bug of this server.
    #[error("reply {cookie} is out of order")]
    OutOfOrder {
        /// The mark on the reply.
        cookie: u64,
    },
}

impl End {
    /// Whether something was sent that the client should still be able to read.
    fn has_last_words(&self) -> bool {
        matches!(self, End::FinalReply | End::BySession(_) | End::Refused(ConnectRefused::Expired))
    }
}

/// What the task needs of a session's connection: [`Connection`], or a script in tests. Both waits may be given up at
/// any point, when the connection ends meanwhile.
pub(crate) trait Lane: Send + Sync {
    fn connected(&self) -> &Connected;
    fn submit(&self, requests: Vec<(u64, ClientRequest)>) -> impl Future<Output = ()> + Send;
    fn outgoing(&self, out: &mut Vec<Outgoing>) -> impl Future<Output = ()> + Send;
}

/// Where sessions come from: [`Frontend`], or a script in tests.
pub(crate) trait Door: Send + Sync {
    type Lane: Lane;
    fn connect(&self, request: ConnectRequest) -> impl Future<Output = Result<Self::Lane, ConnectRefused>> + Send;
}

impl Lane for Connection {
    fn connected(&self) -> &Connected {
        Connection::connected(self)
    }
    fn submit(&self, requests: Vec<(u64, ClientRequest)>) -> impl Future<Output = ()> + Send {
        Connection::submit(self, requests)
    }
    fn outgoing(&self, out: &mut Vec<Outgoing>) -> impl Future<Output = ()> + Send {
        Connection::outgoing(self, out)
    }
}

impl Door for Frontend {
    type Lane = Connection;
    fn connect(&self, request: ConnectRequest) -> impl Future<Output = Result<Connection, ConnectRefused>> + Send {
        Frontend::connect(self, request)
    }
}

/// A request that waits for its reply.
struct Pending {
    xid: i32,
    opcode: i32,
    form: Form,
    access: Access,
    read_at: Instant,
}

impl Pending {
    fn awaited(&self) -> Awaited {
        Awaited { xid: i64::from(self.xid), opcode: self.opcode, access: self.access, read_at: self.read_at }
    }
}

/// The requests in flight, oldest first. Replies come in the order of requests, so the mark of a request is its number
/// in the connection, and finding it again is taking the first.
#[derive(Default)]
struct InFlight {
    requests: VecDeque<Pending>,
    first: u64,
}

impl InFlight {
    fn push(&mut self, pending: Pending) -> u64 {
        let cookie = self.first + self.requests.len() as u64;
        self.requests.push_back(pending);
        cookie
    }

    /// The request that a reply belongs to; `None` if the reply is not the next one.
    fn take(&mut self, cookie: u64) -> Option<Pending> {
        if cookie != self.first {
            return None;
        }
        let pending = self.requests.pop_front()?;
        self.first += 1;
        Some(pending)
    }
}

/// Serves a connection until it ends. `received` is what was read of it before.
pub(crate) async fn serve<R, W, D>(
    reader: R,
    mut writer: W,
    received: BytesMut,
    peer: Peer,
    door: &D,
    options: &WireOptions,
    stats: &ConnectionStats,
) -> End
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
    D: Door,
{
    let mut source = Source { reader, buffer: received, chunk: READ_BYTES_MIN, max_frame: options.max_frame_bytes };
    let end = converse(&mut source, &mut writer, peer, door, options, stats).await;
    if matches!(end, End::ByClient | End::Io(_)) {
        stats.broken_off();
    }
    if end.has_last_words() {
        source.linger(&mut writer).await;
    }
    end
}

async fn converse<R, W, D>(
    source: &mut Source<R>,
    writer: &mut W,
    peer: Peer,
    door: &D,
    options: &WireOptions,
    stats: &ConnectionStats,
) -> End
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
    D: Door,
{
    let deadline = Instant::now() + options.handshake_timeout;
    let (wanted, read_only) = match timeout_at(deadline, source.connect_request(peer)).await {
        Ok(Ok(request)) => request,
        Ok(Err(end)) => return end,
        Err(_) => return End::NoHandshake,
    };
    let taken_up = wanted.session != SessionId::NONE;
    let lane = tokio::select! {
        biased;
        lane = door.connect(wanted) => lane,
        end = source.until_gone() => return end,
    };
    let mut out = BytesMut::new();
    let lane = match lane {
        Ok(lane) => lane,
        Err(refused) => {
            if refused == ConnectRefused::Expired {
                jute::ConnectResponse::expired(read_only).encode(&mut out);
                if let Err(end) = write(writer, &mut out, options.handshake_timeout).await {
                    return end;
                }
            }
            return End::Refused(refused);
        }
    };
    let Connected { session, password, timeout_ms, .. } = *lane.connected();
    jute::ConnectResponse {
        protocol_version: 0,
        timeout_ms,
        session_id: session.0,
        password,
        read_only: read_only.map(|_| lane.connected().read_only),
    }
    .encode(&mut out);
    stats.connected(session, timeout_ms, taken_up);
    tracing::debug!(%session, timeout_ms, "connected");
    // A timeout is positive, or it would mean "expired".
    let silence_max = Duration::from_millis(u64::try_from(timeout_ms).unwrap_or(0).max(1));

    let in_flight = Mutex::new(InFlight::default());
    let mut writing = pin!(send(writer, &mut out, &lane, &in_flight, silence_max, stats));
    let mut intake = Intake {
        source,
        lane: &lane,
        in_flight: &in_flight,
        stats,
        silence_max,
        heard: Instant::now(),
        silence: Box::pin(sleep_until(Instant::now() + silence_max)),
    };
    let mut reading = true;
    loop {
        // Sending goes first: after each batch that was handed in, its replies leave before more is read.
        tokio::select! {
            biased;
            end = &mut writing => return end,
            turn = intake.turn(), if reading => match turn {
                Ok(more) => reading = more,
                Err(end) => return end,
            },
        }
    }
}

/// What comes in, as bytes.
struct Source<R> {
    reader: R,
    buffer: BytesMut,
    /// Room to make for the next read.
    chunk: usize,
    max_frame: usize,
}

impl<R: AsyncRead + Unpin> Source<R> {
    /// Reads once. Cancel safe: bytes are in the buffer or still in the socket.
    async fn fill(&mut self) -> Result<(), End> {
        let Source { reader, buffer, chunk, .. } = self;
        let (read, room) = poll_fn(|context| {
            if buffer.capacity() - buffer.len() < READ_BYTES_MIN / 2 {
                buffer.reserve(*chunk);
            }
            let room = buffer.capacity() - buffer.len();
            let read = poll_read_buf(Pin::new(&mut *reader), context, buffer);
            if read.is_pending() && buffer.is_empty() {
                // Most connections wait most of the time: they need no room for it.
                *buffer = BytesMut::new();
            }
            read.map_ok(|read| (read, room))
        })
        .await?;
        if read == 0 {
            return Err(End::ByClient);
        }
        if read >= room {
            self.chunk = (self.chunk * 2).min(READ_BYTES_MAX);
        } else if read < self.chunk / 4 {
            self.chunk = (self.chunk / 2).max(READ_BYTES_MIN);
        }
        Ok(())
    }

    /// The first frame, and its read-only byte, if it has one.
    async fn connect_request(&mut self, peer: Peer) -> Result<(ConnectRequest, Option<bool>), End> {
        let payload = loop {
            match frame::split(&mut self.buffer, self.max_frame)? {
                Some(payload) => break payload,
                None => self.fill().await?,
            }
        };
        let request = jute::ConnectRequest::decode(payload)?;
        let wanted = ConnectRequest {
            session: SessionId(request.session_id),
            password: request.password.map(|password| password.to_vec()).unwrap_or_default(),
            timeout_ms: request.timeout_ms,
            read_only: request.read_only == Some(true),
            last_zxid_seen: Zxid::from_i64(request.last_zxid_seen),
            protocol: Protocol::Wire,
            peer,
        };
        Ok((wanted, request.read_only))
    }

    /// Returns when the client goes away. What it sends meanwhile is kept for later, up to a bound.
    async fn until_gone(&mut self) -> End {
        while self.buffer.len() < EARLY_BYTES_MAX {
            if let Err(end) = self.fill().await {
                return end;
            }
        }
        std::future::pending().await
    }

    /// Ends the conversation politely: closing a socket with unread bytes in it would reset it, and the client might
    /// lose the last reply.
    async fn linger(&mut self, writer: &mut (impl AsyncWrite + Unpin)) {
        let drain = async {
            writer.shutdown().await?;
            let mut left = LINGER_BYTES_MAX;
            let mut scratch = [0; 4096];
            while left > 0 {
                match self.reader.read(&mut scratch).await? {
                    0 => break,
                    read => left = left.saturating_sub(read),
                }
            }
            io::Result::Ok(())
        };
        // Neither running out of time nor a failing socket changes anything: the connection is over.
        let _ = timeout(LINGER, drain).await;
    }
}

/// What comes in, as requests.
struct Intake<'a, R, L> {
    source: &'a mut Source<R>,
    lane: &'a L,
    in_flight: &'a Mutex<InFlight>,
    stats: &'a ConnectionStats,
    silence_max: Duration,
    heard: Instant,
    silence: Pin<Box<Sleep>>,
}

impl<R: AsyncRead + Unpin, L: Lane> Intake<'_, R, L> {
    /// Hands in what is complete, or else reads once. `false`: nothing may be read any more.
    async fn turn(&mut self) -> Result<bool, End> {
        let mut batch = Vec::new();
        let result = self.decode(&mut batch);
        if !batch.is_empty() {
            self.lane.submit(batch).await;
            // Waiting was our doing; the client's silence counts from here.
            self.heard = Instant::now();
            return result;
        }
        if !result? {
            return Ok(false);
        }
        loop {
            tokio::select! {
                biased;
                filled = self.source.fill() => {
                    filled?;
                    self.heard = Instant::now();
                    return Ok(true);
                }
                () = &mut self.silence => {
                    // One timer for the life of the connection, set again only when it rings: cheaper than one a read.
                    let deadline = self.heard + self.silence_max;
                    if Instant::now() >= deadline {
                        return Err(End::Idle);
                    }
                    self.silence.as_mut().reset(deadline);
                }
            }
        }
    }

    /// Decodes complete frames into `batch`. `false`: the last of them is the last of the connection.
    fn decode(&mut self, batch: &mut Vec<(u64, ClientRequest)>) -> Result<bool, End> {
        let Source { buffer, max_frame, .. } = &mut *self.source;
        let read_only = self.lane.connected().read_only;
        let mut in_flight = self.in_flight.lock();
        let mut bytes = 0;
        let result = loop {
            if batch.len() == BATCH_REQUESTS_MAX {
                break Ok(true);
            }
            let frame: Bytes = match frame::split(buffer, *max_frame) {
                Ok(Some(frame)) => frame,
                Ok(None) => break Ok(true),
                Err(error) => break Err(End::from(error)),
            };
            bytes += frame::PREFIX_BYTES + frame.len();
            let asked = match request::decode(frame) {
                Ok(asked) => asked,
                Err(error) => break Err(End::from(error)),
            };
            let is_last = asked.is_last();
            let request::Asked { xid, opcode, form, mut request } = asked;
            // A server that reads only does not look what is wrong with a change.
            if read_only && opcode::is_change(opcode) && matches!(request, ClientRequest::Refuse(_)) {
                request = ClientRequest::Refuse(ErrorCode::NotReadOnly);
            }
            let access = Access::of(&request);
            let cookie = in_flight.push(Pending { xid, opcode, form, access, read_at: self.heard });
            batch.push((cookie, request));
            if is_last {
                break Ok(false);
            }
        };
        if !batch.is_empty() {
            self.stats.received(batch.len() as u64, bytes);
        }
        if let Err(End::BadFrame(FrameError::TooLarge { .. })) = &result {
            self.stats.too_large();
        }
        result
    }
}

/// Sends what the session has to say until it, or the client, has had enough. `buffer` holds the handshake's answer.
async fn send<W, L>(
    writer: &mut W,
    buffer: &mut BytesMut,
    lane: &L,
    in_flight: &Mutex<InFlight>,
    stall_max: Duration,
    stats: &ConnectionStats,
) -> End
where
    W: AsyncWrite + Unpin + Send,
    L: Lane,
{
    let mut outgoing = Vec::new();
    loop {
        if let Err(end) = write(writer, buffer, stall_max).await {
            return end;
        }
        lane.outgoing(&mut outgoing).await;
        let mut items = outgoing.drain(..);
        let mut end = None;
        while end.is_none() && items.len() > 0 {
            end = encode(&mut items, buffer, in_flight, stats);
            if (end.is_some() || items.len() > 0)
                && let Err(lost) = write(writer, buffer, stall_max).await
            {
                return lost;
            }
        }
        if let Some(end) = end {
            return end;
        }
    }
}

/// Encodes until the buffer is full, nothing is left, or nothing may follow.
fn encode(
    items: &mut impl Iterator<Item = Outgoing>,
    buffer: &mut BytesMut,
    in_flight: &Mutex<InFlight>,
    stats: &ConnectionStats,
) -> Option<End> {
    let mut turn = stats.turn(Instant::now());
    let mut end = None;
    {
        let mut in_flight = in_flight.lock();
        while end.is_none() && buffer.len() < WRITE_BYTES {
            match items.next() {
                None => break,
                Some(Outgoing::Event(shared)) => {
                    let before = buffer.len();
                    response::event(&shared, buffer);
                    turn.event(buffer.len() - before);
                }
                // Nobody follows the feed by this protocol.
                Some(Outgoing::Feed(_)) => {}
                Some(Outgoing::Close(reason)) => end = Some(End::BySession(reason)),
                Some(Outgoing::Reply { cookie, zxid, result }) => {
                    let Some(pending) = in_flight.take(cookie) else {
                        end = Some(End::OutOfOrder { cookie });
                        break;
                    };
                    let before = buffer.len();
                    let (awaited, refused) = (pending.awaited(), result.is_err());
                    if response::reply(pending.xid, pending.form, zxid, result, buffer) == Next::Close {
                        end = Some(End::FinalReply);
                    }
                    turn.reply(zxid.as_i64(), &awaited, refused, buffer.len() - before);
                }
            }
        }
    }
    turn.finish();
    end
}

/// Writes the whole buffer and empties it. The client has `stall_max` to take the next bytes, again and again.
async fn write(writer: &mut (impl AsyncWrite + Unpin), buffer: &mut BytesMut, stall_max: Duration) -> Result<(), End> {
    let mut written = 0;
    while written < buffer.len() {
        match timeout(stall_max, writer.write(&buffer[written..])).await {
            Ok(Ok(0)) => return Err(End::Io(io::ErrorKind::WriteZero.into())),
            Ok(Ok(bytes)) => written += bytes,
            Ok(Err(error)) => return Err(End::Io(error)),
            Err(_) => return Err(End::NotReading),
        }
    }
    if written > 0 {
        match timeout(stall_max, writer.flush()).await {
            Ok(flushed) => flushed?,
            Err(_) => return Err(End::NotReading),
        }
    }
    if buffer.capacity() > 2 * WRITE_BYTES {
        // One large reply must not make this connection hold its size for ever.
        *buffer = BytesMut::new();
    } else {
        buffer.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests;
