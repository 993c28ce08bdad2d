//! Counters of the ZooKeeper front end: of all connections together, and of each for `stat` and `cons`.
//!
//! A connection adds up what one turn brought and stores it once, so counting costs a few atomic operations a batch
//! and none a request.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU64};
use std::time::Duration;

use corral_proto::SessionId;
use corral_proto::jute::opcode;
use parking_lot::Mutex;
use tokio::time::Instant;

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

    fn add(&self, turn: &Turn) {
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

/// What a connection sent in one turn.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Replies encoded.
    pub replies: u64,
    /// Events encoded.
    pub events: u64,
    /// Zxid of the last reply.
    pub last_zxid: i64,
    latency_last: u64,
    latency_min: u64,
    latency_max: u64,
    latency_sum: u64,
}

impl Default for Turn {
    fn default() -> Turn {
        Turn {
            replies: 0,
            events: 0,
            last_zxid: 0,
            latency_last: 0,
            latency_min: u64::MAX,
            latency_max: 0,
            latency_sum: 0,
        }
    }
}

impl Turn {
    /// Counts a reply that took `latency`.
    pub fn reply(&mut self, zxid: i64, latency: Duration) {
        let ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        self.replies += 1;
        self.last_zxid = zxid;
        self.latency_last = ms;
        self.latency_min = self.latency_min.min(ms);
        self.latency_max = self.latency_max.max(ms);
        self.latency_sum = self.latency_sum.saturating_add(ms);
    }
}

/// One connection. Every change is stored twice: here and in the sum of all.
#[derive(Debug)]
pub struct ConnectionStats {
    all: Arc<FrontendStats>,
    id: u64,
    remote: SocketAddr,
    established: Instant,
    session: AtomicI64,
    timeout_ms: AtomicI32,
    received: AtomicU64,
    sent: AtomicU64,
    requests: AtomicU64,
    replies: AtomicU64,
    last_opcode: AtomicI32,
    last_xid: AtomicI32,
    last_zxid: AtomicI64,
    /// Time of the last reply, ms after `established`.
    last_reply_ms: AtomicU64,
    latency: Latency,
}

impl ConnectionStats {
    /// Where it comes from.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// The handshake came in, and was answered.
    pub fn connected(&self, session: SessionId, timeout_ms: i32) {
        self.session.store(session.0, Relaxed);
        self.timeout_ms.store(timeout_ms, Relaxed);
        self.last_opcode.store(opcode::CREATE_SESSION, Relaxed);
        self.count_received(1);
        self.count_sent(1);
    }

    /// Requests came in; the last of them had this number and opcode.
    pub fn received(&self, requests: u64, last_xid: i32, last_opcode: i32) {
        self.requests.fetch_add(requests, Relaxed);
        self.last_xid.store(last_xid, Relaxed);
        self.last_opcode.store(last_opcode, Relaxed);
        self.count_received(requests);
    }

    /// Something that is no request came in: a four-letter word.
    pub fn count_received(&self, frames: u64) {
        self.received.fetch_add(frames, Relaxed);
        self.all.received.fetch_add(frames, Relaxed);
    }

    fn count_sent(&self, frames: u64) {
        self.sent.fetch_add(frames, Relaxed);
        self.all.sent.fetch_add(frames, Relaxed);
    }

    /// Replies and events were encoded at `now`.
    pub fn sent(&self, turn: &Turn, now: Instant) {
        self.count_sent(turn.replies + turn.events);
        if turn.replies > 0 {
            self.replies.fetch_add(turn.replies, Relaxed);
            self.last_zxid.store(turn.last_zxid, Relaxed);
            let ms = now.saturating_duration_since(self.established).as_millis();
            self.last_reply_ms.store(u64::try_from(ms).unwrap_or(u64::MAX), Relaxed);
            self.latency.add(turn);
            self.all.latency.add(turn);
        }
    }

    fn report(&self, now: Instant) -> ClientReport {
        let age = now.saturating_duration_since(self.established);
        ClientReport {
            remote: self.remote,
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

/// All connections of this front end.
#[derive(Debug)]
pub struct FrontendStats {
    received: AtomicU64,
    sent: AtomicU64,
    rejected: AtomicU64,
    next_id: AtomicU64,
    latency: Latency,
    connections: Mutex<BTreeMap<u64, Arc<ConnectionStats>>>,
}

impl FrontendStats {
    /// Nothing counted yet.
    pub fn new() -> Arc<FrontendStats> {
        Arc::new(FrontendStats {
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            next_id: AtomicU64::new(0),
            latency: Latency::new(),
            connections: Mutex::new(BTreeMap::new()),
        })
    }

    /// Lists a connection that was accepted just now.
    pub fn register(self: &Arc<FrontendStats>, remote: SocketAddr) -> Registration {
        let id = self.next_id.fetch_add(1, Relaxed);
        let stats = Arc::new(ConnectionStats {
            all: Arc::clone(self),
            id,
            remote,
            established: Instant::now(),
            session: AtomicI64::new(0),
            timeout_ms: AtomicI32::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            replies: AtomicU64::new(0),
            last_opcode: AtomicI32::new(0),
            last_xid: AtomicI32::new(0),
            last_zxid: AtomicI64::new(0),
            last_reply_ms: AtomicU64::new(0),
            latency: Latency::new(),
        });
        self.connections.lock().insert(id, Arc::clone(&stats));
        Registration { stats }
    }

    /// A connection was closed at once because there were too many.
    pub fn reject(&self) {
        self.rejected.fetch_add(1, Relaxed);
    }

    /// `srst`: forgets packets and latencies.
    pub fn reset(&self) {
        self.received.store(0, Relaxed);
        self.sent.store(0, Relaxed);
        self.latency.reset();
    }

    /// `crst`: forgets the packets and latencies of each connection.
    pub fn reset_connections(&self) {
        for connection in self.connections.lock().values() {
            connection.received.store(0, Relaxed);
            connection.sent.store(0, Relaxed);
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
            outstanding: clients.iter().map(|client| client.outstanding).sum(),
            latency: self.latency.report(),
            clients,
        }
    }
}

/// What [`FrontendStats`] knows, copied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Frames that came in.
    pub received: u64,
    /// Frames that went out.
    pub sent: u64,
    /// Connections closed at once because there were too many.
    pub rejected: u64,
    /// Requests not answered yet.
    pub outstanding: u64,
    /// Of all replies.
    pub latency: LatencyReport,
    /// One for each open connection, oldest first; the one that asks is among them.
    pub clients: Vec<ClientReport>,
}

/// One connection, copied.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientReport {
    /// Where it comes from.
    pub remote: SocketAddr,
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
    /// Of the last request.
    pub last_opcode: i32,
    /// Of the last request.
    pub last_xid: i32,
    /// Of the last reply.
    pub last_zxid: i64,
    /// Time since it was accepted, ms.
    pub age_ms: u64,
    /// Time from being accepted to the last reply, ms.
    pub last_reply_ms: u64,
    /// Of its replies.
    pub latency: LatencyReport,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote() -> SocketAddr {
        "127.0.0.1:5".parse().unwrap()
    }

    #[test]
    fn what_a_connection_counts_is_counted_in_the_sum() {
        let all = FrontendStats::new();
        let (first, second) = (all.register(remote()), all.register(remote()));
        first.connected(SessionId(7), 4000);
        first.received(3, 9, opcode::GET_DATA);
        second.received(1, 1, opcode::PING);
        let mut turn = Turn::default();
        turn.reply(0x36, Duration::from_millis(2));
        turn.reply(0x37, Duration::from_millis(5));
        turn.events = 1;
        first.sent(&turn, Instant::now());
        let report = all.report();
        assert_eq!((report.received, report.sent, report.outstanding), (5, 4, 2));
        assert_eq!(report.latency, LatencyReport { last_ms: 5, min_ms: 2, average_ms: 3.5, max_ms: 5 });
        let client = &report.clients[0];
        assert_eq!((client.received, client.sent, client.outstanding), (4, 4, 1));
        assert_eq!((client.session, client.timeout_ms, client.last_zxid), (SessionId(7), 4000, 0x37));
        assert_eq!((client.last_xid, client.last_opcode), (9, opcode::GET_DATA));
    }

    #[test]
    fn a_closed_connection_leaves_the_list_but_not_the_sums() {
        let all = FrontendStats::new();
        let registration = all.register(remote());
        registration.count_received(1);
        assert_eq!(all.report().clients.len(), 1);
        drop(registration);
        let report = all.report();
        assert_eq!((report.clients.len(), report.received), (0, 1));
    }

    #[test]
    fn resets_forget_what_they_say_and_keep_what_is_outstanding() {
        let all = FrontendStats::new();
        let one = all.register(remote());
        one.received(2, 1, opcode::PING);
        let mut turn = Turn::default();
        turn.reply(1, Duration::from_millis(4));
        one.sent(&turn, Instant::now());
        all.reset();
        let report = all.report();
        assert_eq!((report.received, report.sent, report.latency.max_ms, report.latency.min_ms), (0, 0, 0, 0));
        assert_eq!(report.clients[0].received, 2);
        all.reset_connections();
        let report = all.report();
        assert_eq!((report.clients[0].received, report.outstanding), (0, 1));
    }
}
