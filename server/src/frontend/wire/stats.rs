//! Counters of the front ends: of all connections together, and of each for `stat` and `cons`. A stream of gRPC is a
//! connection, its messages are counted by the request and by the reply.
//!
//! A connection adds up what one turn brought and stores it once, so counting costs a few atomic operations a batch
//! and none a request. No lock, but to list a connection that begins and to forget one that ends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU64};

use corral_core::session::ClientRequest;
use corral_proto::SessionId;
use corral_proto::jute::opcode;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::frontend::metrics::{Summary, SummaryReport};

/// Time from reading a request to encoding its reply, ms.
#[derive(Debug)]
struct Latency {
    last: AtomicU64,
    min: AtomicU64,
    max: AtomicU64,
    sum: AtomicU64,
    count: AtomicU64,
}

impl Latency {
    fn new() -> Latency {
        Latency {
            last: AtomicU64::new(0),
            min: AtomicU64::new(u64::MAX),
            max: AtomicU64::new(0),
            sum: AtomicU64::new(0),
            count: AtomicU64::new(0),
        }
    }

    fn add(&self, turn: &Turn<'_>) {
        if turn.replies > 0 {
            self.last.store(turn.latency_last, Relaxed);
            self.min.fetch_min(turn.latency_min, Relaxed);
            self.max.fetch_max(turn.latency_max, Relaxed);
            self.sum.fetch_add(turn.latency_sum, Relaxed);
            self.count.fetch_add(turn.replies, Relaxed);
        }
    }

    fn reset(&self) {
        self.last.store(0, Relaxed);
        self.min.store(u64::MAX, Relaxed);
        self.max.store(0, Relaxed);
        self.sum.store(0, Relaxed);
        self.count.store(0, Relaxed);
    }

    fn report(&self) -> LatencyReport {
        let count = self.count.load(Relaxed);
        let average_ms = if count == 0 { 0.0 } else { self.sum.load(Relaxed) as f64 / count as f64 };
        let min_ms = self.min.load(Relaxed);
        LatencyReport {
            last_ms: self.last.load(Relaxed),
            min_ms: if min_ms == u64::MAX { 0 } else { min_ms },
            average_ms,
            max_ms: self.max.load(Relaxed),
        }
    }
}

/// Latencies as they are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LatencyReport {
    /// Of the last reply.
    pub last_ms: u64,
    /// Smallest; 0 before the first reply.
    pub min_ms: u64,
    /// Mean; 0 before the first reply.
    pub average_ms: f64,
    /// Largest.
    pub max_ms: u64,
}

/// Bytes of replies: the last, the smallest and the largest; -1 before the first.
#[derive(Debug)]
struct Sizes([AtomicI64; 3]);

impl Sizes {
    fn new() -> Sizes {
        Sizes([const { AtomicI64::new(-1) }; 3])
    }

    fn add(&self, turn: &Turn<'_>) {
        let Sizes([last, min, max]) = self;
        last.store(turn.size_last, Relaxed);
        // Unsigned, -1 is larger than everything.
        let _ = min.fetch_update(Relaxed, Relaxed, |min| (min as u64 > turn.size_min as u64).then_some(turn.size_min));
        max.fetch_max(turn.size_max, Relaxed);
    }

    fn reset(&self) {
        self.0.iter().for_each(|size| size.store(-1, Relaxed));
    }

    fn report(&self) -> [i64; 3] {
        self.0.each_ref().map(|size| size.load(Relaxed))
    }
}

/// Whether a request changes the tree or its session: ZooKeeper keeps their latencies apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It does not.
    Read,
    /// It does.
    Write,
}

impl Access {
    /// Which it is.
    pub fn of(request: &ClientRequest) -> Access {
        match request {
            ClientRequest::Write { .. } | ClientRequest::CloseSession { .. } => Access::Write,
            _ => Access::Read,
        }
    }
}

/// A request that waits for its reply, as the counters see it.
#[derive(Clone, Copy, Debug)]
pub struct Awaited {
    /// The client's number; gRPC's own numbers are its ids.
    pub xid: i64,
    /// What it asks for.
    pub opcode: i32,
    /// Whether it changes something.
    pub access: Access,
    /// When it was read.
    pub read_at: Instant,
}

impl Awaited {
    /// What `cons` says was asked for, when it is answered: a change that was refused is no operation
    /// (`FinalRequestProcessor` finds an error in its place).
    fn operation(&self, refused: bool) -> i32 {
        if refused && opcode::is_change(self.opcode) { opcode::NOTIFICATION } else { self.opcode }
    }
}

/// No number: of a connection without requests and replies since `crst`.
const NONE: i64 = -1;

/// What a connection sends in one turn; stored by [`Turn::finish`].
#[derive(Debug)]
pub struct Turn<'a> {
    stats: &'a ConnectionStats,
    now: Instant,
    replies: u64,
    events: u64,
    /// Zxid and operation of the last reply that counts for `cons`.
    last: Option<(i64, i32)>,
    /// The last number that is none of those that clients use for pings and such.
    last_xid: Option<i64>,
    latency_last: u64,
    latency_min: u64,
    latency_max: u64,
    latency_sum: u64,
    reply_bytes: u64,
    event_bytes: u64,
    size_last: i64,
    size_min: i64,
    size_max: i64,
    /// Replies of one kind and latency that followed each other and are not in the summaries yet: those of a batch
    /// mostly are alike.
    run: Option<(Access, u64, u64)>,
}

impl Turn<'_> {
    /// Counts a reply to a request, of so many bytes. `refused`: it is an error.
    ///
    /// `auth` and `sasl` do not show in `cons`, nor do the negative numbers of pings and such
    /// (`ServerCnxn.updateStatsForResponse`).
    pub fn reply(&mut self, zxid: i64, asked: &Awaited, refused: bool, bytes: usize) {
        let Awaited { access, read_at, .. } = *asked;
        let latency = self.now.saturating_duration_since(read_at);
        let ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        self.replies += 1;
        if !matches!(asked.opcode, opcode::AUTH | opcode::SASL) {
            self.last = Some((zxid, asked.operation(refused)));
            if asked.xid >= 0 {
                self.last_xid = Some(asked.xid);
            }
        }
        self.latency_last = ms;
        self.latency_min = self.latency_min.min(ms);
        self.latency_max = self.latency_max.max(ms);
        self.latency_sum = self.latency_sum.saturating_add(ms);
        self.reply_bytes += bytes as u64;
        let size = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.size_last = size;
        self.size_min = if self.replies == 1 { size } else { self.size_min.min(size) };
        self.size_max = self.size_max.max(size);
        match &mut self.run {
            Some((of, latency, times)) if (*of, *latency) == (access, ms) => *times += 1,
            _ => {
                self.end_run();
                self.run = Some((access, ms, 1));
            }
        }
    }

    /// Counts an event of so many bytes.
    pub fn event(&mut self, bytes: usize) {
        self.events += 1;
        self.event_bytes += bytes as u64;
    }

    fn end_run(&mut self) {
        if let Some((access, ms, times)) = self.run.take() {
            let all = &self.stats.all;
            let summary = match access {
                Access::Read => &all.read_latency,
                Access::Write => &all.update_latency,
            };
            summary.record_many(ms, times);
        }
    }

    /// Stores what was counted.
    pub fn finish(mut self) {
        self.end_run();
        let stats = self.stats;
        stats.count_sent(self.replies + self.events);
        if self.replies > 0 {
            stats.replies.fetch_add(self.replies, Relaxed);
            if let Some((zxid, operation)) = self.last {
                stats.last_zxid.store(zxid, Relaxed);
                stats.last_opcode.store(operation, Relaxed);
                let ms = self.now.saturating_duration_since(stats.established).as_millis();
                stats.last_reply_ms.store(u64::try_from(ms).unwrap_or(u64::MAX), Relaxed);
            }
            if let Some(xid) = self.last_xid {
                stats.last_xid.store(xid, Relaxed);
            }
            stats.latency.add(&self);
            stats.all.latency.add(&self);
            stats.all.sizes.add(&self);
            stats.all.response_bytes.fetch_add(self.reply_bytes, Relaxed);
        }
        if self.events > 0 {
            stats.all.watch_bytes.fetch_add(self.event_bytes, Relaxed);
        }
    }
}

/// One connection. Every change is stored twice: here and in the sum of all.
#[derive(Debug)]
pub struct ConnectionStats {
    all: Arc<FrontendStats>,
    id: u64,
    remote: SocketAddr,
    secure: bool,
    established: Instant,
    session: AtomicI64,
    timeout_ms: AtomicI32,
    received: AtomicU64,
    sent: AtomicU64,
    requests: AtomicU64,
    replies: AtomicU64,
    last_opcode: AtomicI32,
    last_xid: AtomicI64,
    last_zxid: AtomicI64,
    /// Time of the last reply, ms after `established`.
    last_reply_ms: AtomicU64,
    latency: Latency,
}

impl ConnectionStats {
    /// The client ended it, without a word or with an error.
    pub fn broken_off(&self) {
        self.all.broken_off.fetch_add(1, Relaxed);
    }

    /// Where it comes from.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// The handshake came in, and was answered. Of a session that is `taken_up`, no request was answered yet.
    pub fn connected(&self, session: SessionId, timeout_ms: i32, taken_up: bool) {
        self.session.store(session.0, Relaxed);
        self.timeout_ms.store(timeout_ms, Relaxed);
        let last = if taken_up { opcode::NOTIFICATION } else { opcode::CREATE_SESSION };
        self.last_opcode.store(last, Relaxed);
        self.all.connects.fetch_add(1, Relaxed);
        self.count_received(1);
        self.count_sent(1);
    }

    /// Requests came in, of so many bytes together.
    pub fn received(&self, requests: u64, bytes: usize) {
        self.requests.fetch_add(requests, Relaxed);
        self.all.bytes_received.fetch_add(bytes as u64, Relaxed);
        self.count_received(requests);
    }

    /// A request was larger than what is accepted; the connection ends.
    pub fn too_large(&self) {
        self.all.too_large.fetch_add(1, Relaxed);
    }

    /// Something that is no request came in: a four-letter word.
    pub fn count_received(&self, frames: u64) {
        self.received.fetch_add(frames, Relaxed);
        self.all.received.fetch_add(frames, Relaxed);
    }

    /// Something that is no reply went out: the answer to a four-letter word.
    pub fn count_sent(&self, frames: u64) {
        self.sent.fetch_add(frames, Relaxed);
        self.all.sent.fetch_add(frames, Relaxed);
    }

    /// Begins to count what is encoded at `now`.
    pub fn turn(&self, now: Instant) -> Turn<'_> {
        Turn {
            stats: self,
            now,
            replies: 0,
            events: 0,
            last: None,
            last_xid: None,
            latency_last: 0,
            latency_min: u64::MAX,
            latency_max: 0,
            latency_sum: 0,
            reply_bytes: 0,
            event_bytes: 0,
            size_last: -1,
            size_min: -1,
            size_max: -1,
            run: None,
        }
    }

    fn report(&self, now: Instant) -> ClientReport {
        let age = now.saturating_duration_since(self.established);
        ClientReport {
            remote: self.remote,
            secure: self.secure,
            session: SessionId(self.session.load(Relaxed)),
            timeout_ms: self.timeout_ms.load(Relaxed),
            outstanding: self.requests.load(Relaxed).saturating_sub(self.replies.load(Relaxed)),
            received: self.received.load(Relaxed),
            sent: self.sent.load(Relaxed),
            last_opcode: self.last_opcode.load(Relaxed),
            last_xid: self.last_xid.load(Relaxed),
            last_zxid: self.last_zxid.load(Relaxed),
            age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            last_reply_ms: self.last_reply_ms.load(Relaxed),
            latency: self.latency.report(),
        }
    }
}

/// Keeps a connection in the list of [`FrontendStats`]; dropping it takes it out.
#[derive(Debug)]
pub struct Registration {
    stats: Arc<ConnectionStats>,
}

impl std::ops::Deref for Registration {
    type Target = ConnectionStats;
    fn deref(&self) -> &ConnectionStats {
        &self.stats
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.stats.all.connections.lock().remove(&self.stats.id);
    }
}

/// All connections of a server.
#[derive(Debug)]
pub struct FrontendStats {
    received: AtomicU64,
    sent: AtomicU64,
    rejected: AtomicU64,
    tls_under_way: AtomicU64,
    tls_refused: AtomicU64,
    tls_failed: AtomicU64,
    plain: [AtomicU64; 2],
    sessionless: AtomicU64,
    connects: AtomicU64,
    broken_off: AtomicU64,
    too_large: AtomicU64,
    bytes_received: AtomicU64,
    response_bytes: AtomicU64,
    watch_bytes: AtomicU64,
    next_id: AtomicU64,
    latency: Latency,
    sizes: Sizes,
    read_latency: Summary,
    update_latency: Summary,
    connections: Mutex<BTreeMap<u64, Arc<ConnectionStats>>>,
}

impl FrontendStats {
    /// Nothing counted yet.
    pub fn new() -> Arc<FrontendStats> {
        Arc::new(FrontendStats {
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            tls_under_way: AtomicU64::new(0),
            tls_refused: AtomicU64::new(0),
            tls_failed: AtomicU64::new(0),
            plain: [AtomicU64::new(0), AtomicU64::new(0)],
            sessionless: AtomicU64::new(0),
            connects: AtomicU64::new(0),
            broken_off: AtomicU64::new(0),
            too_large: AtomicU64::new(0),
            bytes_received: AtomicU64::new(0),
            response_bytes: AtomicU64::new(0),
            watch_bytes: AtomicU64::new(0),
            next_id: AtomicU64::new(0),
            latency: Latency::new(),
            sizes: Sizes::new(),
            read_latency: Summary::default(),
            update_latency: Summary::default(),
            connections: Mutex::new(BTreeMap::new()),
        })
    }

    /// Lists a connection that was accepted just now; `secure`: on the port that speaks TLS only.
    pub fn register(self: &Arc<FrontendStats>, remote: SocketAddr, secure: bool) -> Registration {
        let id = self.next_id.fetch_add(1, Relaxed);
        let stats = Arc::new(ConnectionStats {
            all: Arc::clone(self),
            id,
            remote,
            secure,
            established: Instant::now(),
            session: AtomicI64::new(0),
            timeout_ms: AtomicI32::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            replies: AtomicU64::new(0),
            last_opcode: AtomicI32::new(0),
            last_xid: AtomicI64::new(0),
            last_zxid: AtomicI64::new(0),
            last_reply_ms: AtomicU64::new(0),
            latency: Latency::new(),
        });
        self.connections.lock().insert(id, Arc::clone(&stats));
        Registration { stats }
    }

    /// Counts a TLS handshake as under way until the guard goes.
    pub fn tls_begun(&self) -> HandshakeGuard<'_> {
        self.tls_under_way.fetch_add(1, Relaxed);
        HandshakeGuard(self)
    }

    /// Counts a TLS handshake that was not begun.
    pub fn tls_refused(&self) {
        self.tls_refused.fetch_add(1, Relaxed);
    }

    /// Counts a TLS handshake that failed.
    pub fn tls_failed(&self) {
        self.tls_failed.fetch_add(1, Relaxed);
    }

    /// Counts a connection that does without TLS.
    pub fn plain(&self, remote: SocketAddr) {
        self.plain[usize::from(!remote.ip().is_loopback())].fetch_add(1, Relaxed);
    }

    /// Counts a connection that was closed because it showed no session in time.
    pub fn sessionless(&self) {
        self.sessionless.fetch_add(1, Relaxed);
    }

    /// A connection was closed at once because there were too many.
    pub fn reject(&self) {
        self.rejected.fetch_add(1, Relaxed);
    }

    /// `srst`: forgets packets, latencies and sizes; not what only grows.
    pub fn reset(&self) {
        self.received.store(0, Relaxed);
        self.sent.store(0, Relaxed);
        self.latency.reset();
        self.sizes.reset();
    }

    /// `crst`: forgets the packets, latencies and the last request and reply of each connection.
    pub fn reset_connections(&self) {
        for connection in self.connections.lock().values() {
            connection.received.store(0, Relaxed);
            connection.sent.store(0, Relaxed);
            connection.last_opcode.store(opcode::NOTIFICATION, Relaxed);
            connection.last_xid.store(NONE, Relaxed);
            connection.last_zxid.store(NONE, Relaxed);
            connection.latency.reset();
        }
    }

    /// Everything, as it is now.
    pub fn report(&self) -> Traffic {
        let now = Instant::now();
        let connections: Vec<_> = self.connections.lock().values().cloned().collect();
        let clients: Vec<_> = connections.iter().map(|connection| connection.report(now)).collect();
        Traffic {
            received: self.received.load(Relaxed),
            sent: self.sent.load(Relaxed),
            rejected: self.rejected.load(Relaxed),
            tls_under_way: self.tls_under_way.load(Relaxed),
            tls_refused: self.tls_refused.load(Relaxed),
            tls_failed: self.tls_failed.load(Relaxed),
            plain: [0, 1].map(|remote| self.plain[remote].load(Relaxed)),
            sessionless: self.sessionless.load(Relaxed),
            connects: self.connects.load(Relaxed),
            broken_off: self.broken_off.load(Relaxed),
            too_large: self.too_large.load(Relaxed),
            bytes_received: self.bytes_received.load(Relaxed),
            response_bytes: self.response_bytes.load(Relaxed),
            watch_bytes: self.watch_bytes.load(Relaxed),
            response_sizes: self.sizes.report(),
            read_latency: self.read_latency.report(),
            update_latency: self.update_latency.report(),
            outstanding: clients.iter().map(|client| client.outstanding).sum(),
            latency: self.latency.report(),
            clients,
        }
    }
}

/// A TLS handshake under way.
#[derive(Debug)]
pub struct HandshakeGuard<'a>(&'a FrontendStats);

impl Drop for HandshakeGuard<'_> {
    fn drop(&mut self) {
        self.0.tls_under_way.fetch_sub(1, Relaxed);
    }
}

/// What [`FrontendStats`] knows, copied.
#[derive(Clone, Debug, PartialEq)]
pub struct Traffic {
    /// Frames that came in.
    pub received: u64,
    /// Frames that went out.
    pub sent: u64,
    /// Connections closed at once because there were too many.
    pub rejected: u64,
    /// TLS handshakes under way.
    pub tls_under_way: u64,
    /// TLS handshakes that were not begun because of those under way.
    pub tls_refused: u64,
    /// TLS handshakes that failed.
    pub tls_failed: u64,
    /// Connections without TLS: from this machine, and from others.
    pub plain: [u64; 2],
    /// Connections closed because they showed no session in time.
    pub sessionless: u64,
    /// Handshakes that were answered.
    pub connects: u64,
    /// Connections that clients ended without closing their session.
    pub broken_off: u64,
    /// Connections ended by a request that was too large.
    pub too_large: u64,
    /// Bytes of requests.
    pub bytes_received: u64,
    /// Bytes of replies.
    pub response_bytes: u64,
    /// Bytes of watch events.
    pub watch_bytes: u64,
    /// Bytes of the last, smallest and largest reply; -1 before the first.
    pub response_sizes: [i64; 3],
    /// Of requests that change nothing, ms, since the start.
    pub read_latency: SummaryReport,
    /// Of requests that change the tree or end a session, ms, since the start.
    pub update_latency: SummaryReport,
    /// Requests not answered yet.
    pub outstanding: u64,
    /// Of all replies.
    pub latency: LatencyReport,
    /// One for each open connection, oldest first; the one that asks is among them.
    pub clients: Vec<ClientReport>,
}

impl Default for Traffic {
    /// Nothing counted yet.
    fn default() -> Traffic {
        Traffic {
            received: 0,
            sent: 0,
            rejected: 0,
            tls_under_way: 0,
            tls_refused: 0,
            tls_failed: 0,
            plain: [0; 2],
            sessionless: 0,
            connects: 0,
            broken_off: 0,
            too_large: 0,
            bytes_received: 0,
            response_bytes: 0,
            watch_bytes: 0,
            response_sizes: [-1; 3],
            read_latency: SummaryReport::default(),
            update_latency: SummaryReport::default(),
            outstanding: 0,
            latency: LatencyReport::default(),
            clients: Vec::new(),
        }
    }
}

/// One connection, copied.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientReport {
    /// Where it comes from.
    pub remote: SocketAddr,
    /// It came by the port that speaks TLS only.
    pub secure: bool,
    /// [`SessionId::NONE`] before the handshake.
    pub session: SessionId,
    /// Negotiated, ms.
    pub timeout_ms: i32,
    /// Requests not answered yet.
    pub outstanding: u64,
    /// Frames that came in.
    pub received: u64,
    /// Frames that went out.
    pub sent: u64,
    /// Of the last request that was answered; that of notifications, 0, while there is none.
    pub last_opcode: i32,
    /// Of the last request that was answered; gRPC's own numbers are its ids. -1: none since `crst`.
    pub last_xid: i64,
    /// Of the last reply. -1: none since `crst`.
    pub last_zxid: i64,
    /// Time since it was accepted, ms.
    pub age_ms: u64,
    /// Time from being accepted to the last reply, ms.
    pub last_reply_ms: u64,
    /// Of its replies.
    pub latency: LatencyReport,
}

impl ClientReport {
    /// Whether the handshake is over.
    pub fn has_session(&self) -> bool {
        self.session != SessionId::NONE
    }

    /// What the number in brackets shows in ZooKeeper: 1 while more requests are read.
    pub fn interest(&self) -> u8 {
        u8::from(self.has_session())
    }

    /// When it was accepted, ms since the Unix epoch, if that is `unix_ms` now.
    pub fn established_ms(&self, unix_ms: u64) -> u64 {
        unix_ms.saturating_sub(self.age_ms)
    }

    /// When the last reply was sent; 0: none since `crst`.
    pub fn last_response_ms(&self, unix_ms: u64) -> u64 {
        if self.last_zxid == NONE { 0 } else { self.established_ms(unix_ms).saturating_add(self.last_reply_ms) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn awaited(xid: i64, opcode: i32, access: Access, read_at: Instant) -> Awaited {
        Awaited { xid, opcode, access, read_at }
    }

    fn remote() -> SocketAddr {
        "127.0.0.1:5".parse().unwrap()
    }

    #[test]
    fn what_a_connection_counts_is_counted_in_the_sum() {
        let all = FrontendStats::new();
        let (first, second) = (all.register(remote(), false), all.register(remote(), false));
        first.connected(SessionId(7), 4000, false);
        first.received(3, 100);
        second.received(1, 12);
        let now = Instant::now() + Duration::from_secs(1);
        let ago = |ms| now - Duration::from_millis(ms);
        let mut turn = first.turn(now);
        turn.reply(0x36, &awaited(8, opcode::GET_DATA, Access::Read, ago(2)), false, 30);
        turn.reply(0x37, &awaited(9, opcode::SET_DATA, Access::Write, ago(5)), false, 20);
        turn.event(7);
        turn.finish();
        let report = all.report();
        assert_eq!((report.received, report.sent, report.outstanding), (5, 4, 2));
        assert_eq!((report.bytes_received, report.response_bytes, report.watch_bytes), (112, 50, 7));
        assert_eq!((report.response_sizes, report.connects), ([20, 20, 30], 1));
        assert_eq!((report.read_latency.count, report.read_latency.sum), (1, 2));
        assert_eq!((report.update_latency.count, report.update_latency.sum), (1, 5));
        assert_eq!(report.latency, LatencyReport { last_ms: 5, min_ms: 2, average_ms: 3.5, max_ms: 5 });
        let client = &report.clients[0];
        assert_eq!((client.received, client.sent, client.outstanding), (4, 4, 1));
        assert_eq!((client.session, client.timeout_ms, client.last_zxid), (SessionId(7), 4000, 0x37));
        assert_eq!((client.last_xid, client.last_opcode), (9, opcode::SET_DATA));
    }

    #[test]
    fn replies_that_are_alike_are_counted_one_by_one() {
        let all = FrontendStats::new();
        let one = all.register(remote(), false);
        let now = Instant::now() + Duration::from_secs(1);
        let mut turn = one.turn(now);
        for (access, ms) in
            [(Access::Read, 1), (Access::Read, 1), (Access::Read, 3), (Access::Write, 3), (Access::Read, 1)]
        {
            turn.reply(1, &awaited(1, opcode::GET_DATA, access, now - Duration::from_millis(ms)), false, 8);
        }
        turn.finish();
        let report = all.report();
        assert_eq!((report.read_latency.count, report.read_latency.sum, report.read_latency.max), (4, 6, 3));
        assert_eq!((report.update_latency.count, report.update_latency.min), (1, 3));
    }

    #[test]
    fn a_closed_connection_leaves_the_list_but_not_the_sums() {
        let all = FrontendStats::new();
        let registration = all.register(remote(), false);
        registration.count_received(1);
        assert_eq!(all.report().clients.len(), 1);
        drop(registration);
        let report = all.report();
        assert_eq!((report.clients.len(), report.received), (0, 1));
    }

    #[test]
    fn resets_forget_what_they_say_and_keep_what_is_outstanding() {
        let all = FrontendStats::new();
        let one = all.register(remote(), false);
        one.received(2, 20);
        let now = Instant::now() + Duration::from_secs(1);
        let mut turn = one.turn(now);
        turn.reply(1, &awaited(4, opcode::EXISTS, Access::Read, now - Duration::from_millis(4)), false, 16);
        turn.finish();
        all.reset();
        let report = all.report();
        assert_eq!((report.received, report.sent, report.latency.max_ms, report.latency.min_ms), (0, 0, 0, 0));
        assert_eq!((report.response_sizes, report.response_bytes, report.read_latency.count), ([-1; 3], 16, 1));
        assert_eq!(report.clients[0].received, 2);
        all.reset_connections();
        let report = all.report();
        assert_eq!((report.clients[0].received, report.outstanding), (0, 1));
        let client = &report.clients[0];
        assert_eq!((client.last_xid, client.last_zxid, client.last_opcode, client.last_response_ms(1)), (-1, -1, 0, 0));
    }

    #[test]
    fn the_last_operation_is_the_last_that_was_answered_and_is_one() {
        let all = FrontendStats::new();
        let (new, taken_up) = (all.register(remote(), false), all.register(remote(), false));
        new.connected(SessionId(7), 4000, false);
        taken_up.connected(SessionId(8), 4000, true);
        let last = |at: usize| {
            let client = &all.report().clients[at];
            (client.last_xid, client.last_opcode)
        };
        assert_eq!((last(0), last(1)), ((0, opcode::CREATE_SESSION), (0, opcode::NOTIFICATION)));
        let now = Instant::now();
        let answer = |xid, opcode, access, refused| {
            let mut turn = new.turn(now);
            turn.reply(1, &awaited(xid, opcode, access, now), refused, 16);
            turn.finish();
            last(0)
        };
        assert_eq!(answer(5, opcode::GET_DATA, Access::Read, true), (5, opcode::GET_DATA));
        assert_eq!(answer(-2, opcode::PING, Access::Read, false), (5, opcode::PING), "a ping has no number");
        assert_eq!(answer(-4, opcode::AUTH, Access::Read, false), (5, opcode::PING), "nor is an auth an operation");
        assert_eq!(answer(6, opcode::CREATE, Access::Write, true), (6, opcode::NOTIFICATION), "nor a refused change");
        assert_eq!(answer(7, opcode::CREATE, Access::Write, false), (7, opcode::CREATE));
        all.reset_connections();
        assert_eq!(answer(-2, opcode::PING, Access::Read, false), (-1, opcode::PING));
    }
}
