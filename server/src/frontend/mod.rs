//! All that a front end may do: connect a session, hand in requests, take out replies and events.
//!
//! Front ends translate; a rule that holds for only one of them is a bug, unless its protocol demands it. They never
//! see the ordering machine or the store.

pub mod admin;
pub mod grpc;
pub mod http;
pub mod listen;
pub mod metrics;
pub mod operators;
pub mod wire;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use corral_core::auth::{digest, password, sasl};
use corral_core::session::lane::{Handshake, Lane, Step, add_ids};
use corral_core::session::outbox::Key;
use corral_core::session::{ClientRequest, CloseReason, Consistency, Outgoing, Protocol};
use corral_core::tree::entry::{Command, Txn};
use corral_core::tree::op::{Answer, MultiOp, WriteOp};
use corral_core::tree::read;
use corral_core::watch::WatcherId;
use corral_proto::{ErrorCode, Id, ServerId, SessionId, Zxid};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::warn;

use crate::node::{CoreEvent, NodeShared};

/// How long a server that is behind a client's last zxid waits for it before it refuses (P33).
const BEHIND_WAIT: Duration = Duration::from_millis(500);

/// After so long without anything to send, those who follow the change feed are told how far they are.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(2);

/// Bytes of a connection's identities: they travel with each of its writes.
pub const IDENTITY_BYTES_MAX: usize = 16 << 10;

/// Requests of one connection that may be unanswered; beyond it the socket is not read.
pub const OUTSTANDING_PER_CONNECTION: usize = 2_000;

/// Times a server draws another session id when the one it drew is taken.
const SESSION_ID_DRAWS: usize = 16;
/// A local write grows by at most so much when it gets its place: four numbers with their tags.
const CARRIER_BYTES: usize = 64;

/// What a port knows of a client before it said a word of its protocol.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it is.
    pub remote: SocketAddr,
    /// It came by the port that speaks TLS only.
    pub secure: bool,
    /// Whom its certificate names; empty without TLS.
    pub identities: Vec<Id>,
}

/// A client's wish to begin or take up a session.
#[derive(Clone, Debug)]
pub struct ConnectRequest {
    /// 0: a new session.
    pub session: SessionId,
    /// For a session that exists.
    pub password: Vec<u8>,
    /// Wished for; clamped to the server's bounds, ms.
    pub timeout_ms: i32,
    /// A server without a quorum will do, for reads (ZooKeeper protocol).
    pub read_only: bool,
    /// Highest zxid the client saw: a server that is behind it waits a little, then refuses.
    pub last_zxid_seen: Zxid,
    /// Which protocol.
    pub protocol: Protocol,
    /// Whose wish.
    pub peer: Peer,
}

/// Why a connect was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectRefused {
    /// The session is gone, or the password is wrong: the protocol's "expired" answer.
    Expired,
    /// This server has not seen the client's last zxid.
    Behind,
    /// No leader, or this server is starting or stopping.
    NotServing,
}

/// What the client is told when it is connected.
#[derive(Clone, Debug)]
pub struct Connected {
    /// The session.
    pub session: SessionId,
    /// 16 bytes; the same on every server.
    pub password: [u8; 16],
    /// Negotiated, ms.
    pub timeout_ms: i32,
    /// The entry that attached it here.
    pub attach: Zxid,
    /// Highest executed request number.
    pub last_n: u64,
    /// There is no quorum: this server alone knows the session, and answers reads (wire 2.11).
    pub read_only: bool,
    /// This server.
    pub server: ServerId,
    /// Bytes of paths and data that one request may have.
    pub request_bytes_max: usize,
}

/// The door to the server: cheap to clone, one for all front ends.
#[derive(Clone)]
pub struct Frontend {
    node: Arc<NodeShared>,
}

/// One session's connection. Dropping it detaches: watches go, the session stays until it expires.
pub struct Connection {
    node: Arc<NodeShared>,
    connected: Connected,
    /// Who the client is for the next request that comes; the lane knows it for the next that is answered.
    ids: Mutex<Arc<Vec<Id>>>,
    lane: Arc<Lane>,
    signals: Arc<Signals>,
    /// No other server knows the session.
    local: AtomicBool,
    /// The attach its writes are made under: that of the handshake, until a local session becomes known to all.
    attach: AtomicU64,
    /// An identity was not proven: what comes behind is not looked at.
    rejected: AtomicBool,
    /// ZooKeeper protocol: number of the last write under this attach.
    last_n: AtomicU64,
    /// Monotonic ms of the last touch that was passed on.
    touched_ms: AtomicU64,
    sasl: Mutex<sasl::DigestMd5>,
}

/// Wake-ups of one connection's task.
#[derive(Default)]
struct Signals {
    /// Something may be sent, or the handshake is over.
    outgoing: Notify,
    /// Something was sent: requests may be handed in again.
    room: Notify,
    /// Something was executed: a local session may be settled, or known to all.
    settled: Notify,
}

/// Removes a connection that never came to be from the lanes.
struct Attaching<'a> {
    node: &'a NodeShared,
    lane: Option<&'a Arc<Lane>>,
}

impl Drop for Attaching<'_> {
    fn drop(&mut self) {
        if let Some(lane) = self.lane {
            self.node.shared.detach(lane);
        }
    }
}

/// Removes a handshake that nobody waits for any more, whatever became of it.
struct Joining<'a> {
    node: &'a NodeShared,
    lane: &'a Arc<Lane>,
    nonce: u64,
    /// The lane has got an owner.
    handed_over: bool,
}

impl Drop for Joining<'_> {
    fn drop(&mut self) {
        if self.handed_over {
            return;
        }
        let (session, nonce) = (self.lane.session, self.nonce);
        // It may be executed this moment: the apply room lets go of a lane that is closed.
        self.lane.close(CloseReason::ShuttingDown);
        self.node.shared.lanes.abandon(session, nonce);
        self.node.shared.detach(self.lane);
        if self.lane.handshake().is_none() {
            // Offered to a later leader, it would take the session away from wherever its client is by then.
            self.node.core.push(CoreEvent::Withdraw(Key::Handshake { session, nonce }));
        }
    }
}

impl Frontend {
    /// A door to this server.
    pub(crate) fn new(node: Arc<NodeShared>) -> Frontend {
        Frontend { node }
    }

    /// Begins or takes up a session; returns after the attach was executed here (P29).
    ///
    /// # Errors
    /// [`ConnectRefused`] says which refusal the protocol has to express.
    pub async fn connect(&self, request: ConnectRequest) -> Result<Connection, ConnectRefused> {
        let node = &self.node;
        if request.read_only && node.is_read_only() {
            return self.connect_read_only(&request);
        }
        if !node.wait_serving().await {
            return Err(ConnectRefused::NotServing);
        }
        // Whoever was served without a quorum is told that this is over.
        node.read_only_sessions.lock().clear();
        let mut applied = node.applied.subscribe();
        let seen = request.last_zxid_seen;
        match timeout(BEHIND_WAIT, applied.wait_for(|zxid| *zxid >= seen)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(ConnectRefused::NotServing),
            Err(_) => return Err(ConnectRefused::Behind),
        }
        // The password key is replicated and older than every session: any published state has it.
        let key = read::settings(&node.shared.published().view).password_key;
        if key.is_empty() {
            return Err(ConnectRefused::NotServing);
        }
        let timeout_ms =
            request.timeout_ms.clamp(node.options.min_session_timeout_ms, node.options.max_session_timeout_ms);
        if request.session != SessionId::NONE {
            if !password::is_session_password(&key, request.session, &request.password) {
                return Err(ConnectRefused::Expired);
            }
            // A local session's writes are numbered here: whoever numbers them himself, and sends them again, has none.
            if request.protocol == Protocol::Wire
                && let Some(connection) = self.reattach_local(&request, timeout_ms, &key).await?
            {
                return Ok(connection);
            }
            return match self.handshake(&request, request.session, timeout_ms).await? {
                Ok(connection) => Ok(self.connection(connection, request.session, &key)),
                Err(_) => Err(ConnectRefused::Expired),
            };
        }
        if request.protocol == Protocol::Wire && node.options.local_sessions {
            return self.open_local(&request, timeout_ms, &key);
        }
        for _ in 0..SESSION_ID_DRAWS {
            let session = node.draw_session_id();
            match self.handshake(&request, session, timeout_ms).await? {
                Ok(connection) => return Ok(self.connection(connection, session, &key)),
                Err(Handshake::IdTaken) => {}
                Err(_) => return Err(ConnectRefused::Expired),
            }
        }
        Err(ConnectRefused::NotServing)
    }

    /// A session of this server alone, until there is a leader again (wire 2.11). It reads what is published, which is
    /// committed, and may be old. It can be taken up here while that time lasts. A session of the ensemble cannot be taken
    /// up without the ensemble: it is neither there nor gone, so its client is hung up on and goes on looking.
    fn connect_read_only(&self, request: &ConnectRequest) -> Result<Connection, ConnectRefused> {
        let node = &self.node;
        let published = node.shared.published();
        if request.last_zxid_seen > published.zxid {
            return Err(ConnectRefused::Behind);
        }
        let timeout_ms =
            request.timeout_ms.clamp(node.options.min_session_timeout_ms, node.options.max_session_timeout_ms);
        let key = read::settings(&published.view).password_key;
        let now_ms = node.clock.now().mono_ms;
        let mut sessions = node.read_only_sessions.lock();
        sessions.expire(now_ms);
        let taken_up = request.session != SessionId::NONE;
        let session = if taken_up { request.session } else { node.draw_session_id() };
        let (lane, signals) = self.lane(request, session);
        if !taken_up {
            if !sessions.open(now_ms, session, timeout_ms, lane.id) {
                return Err(ConnectRefused::NotServing);
            }
        } else if read::session(&published.view, session).is_some() || node.shared.local.lock().contains(session) {
            return Err(ConnectRefused::NotServing);
        } else if !password::is_session_password(&key, session, &request.password)
            || !sessions.attach(now_ms, session, timeout_ms, lane.id)
        {
            return Err(ConnectRefused::Expired);
        }
        drop(sessions);
        lane.finish_handshake(Handshake::Attached { attach: Zxid::ZERO, timeout_ms, last_n: 0 });
        node.shared.attach_local(&lane);
        let attached = Attached { lane, signals, attach: Zxid::ZERO, timeout_ms, last_n: 0, read_only: true };
        Ok(self.connection(attached, session, &key))
    }

    /// A new session of this server alone (wire 8.7): no entry, no other server.
    fn open_local(&self, request: &ConnectRequest, timeout_ms: i32, key: &[u8]) -> Result<Connection, ConnectRefused> {
        let node = &self.node;
        let published = node.shared.published();
        let now_ms = node.clock.now().mono_ms;
        let (lane, signals, session) = {
            // Drawn under the lock: where all local sessions are ended, those that come later have larger ids.
            let mut local = node.shared.local.lock();
            let mut draws = (0..SESSION_ID_DRAWS).map(|_| node.draw_session_id());
            // A clock that was set back may draw what a session of the ensemble has.
            let free = draws.find(|id| read::session(&published.view, *id).is_none());
            let session = free.ok_or(ConnectRefused::NotServing)?;
            let (lane, signals) = self.lane(request, session);
            if !local.open(now_ms, session, timeout_ms, lane.id) {
                return Err(ConnectRefused::NotServing);
            }
            (lane, signals, session)
        };
        lane.finish_handshake(Handshake::Attached { attach: Zxid::ZERO, timeout_ms, last_n: 0 });
        node.shared.attach_local(&lane);
        // Where all local sessions end, they go first and their connections then: this one was too early for the one, or
        // is in time for the other.
        if !node.shared.local.lock().contains(session) {
            node.shared.detach(&lane);
            return Err(ConnectRefused::NotServing);
        }
        let attached = Attached { lane, signals, attach: Zxid::ZERO, timeout_ms, last_n: 0, read_only: false };
        Ok(self.connection(attached, session, key))
    }

    /// Takes up a session of this server alone, once everything that its former connection handed in is decided; `None`
    /// if there is no such session here.
    async fn reattach_local(
        &self,
        request: &ConnectRequest,
        timeout_ms: i32,
        key: &[u8],
    ) -> Result<Option<Connection>, ConnectRefused> {
        let (node, session) = (&self.node, request.session);
        let (lane, signals) = self.lane(request, session);
        let now_ms = node.clock.now().mono_ms;
        if !node.shared.local.lock().attach(now_ms, session, timeout_ms, lane.id) {
            return Ok(None);
        }
        lane.finish_handshake(Handshake::Attached { attach: Zxid::ZERO, timeout_ms, last_n: 0 });
        node.shared.attach_local(&lane);
        let mut attaching = Attaching { node, lane: Some(&lane) };
        let patience = Duration::from_millis(timeout_ms.max(1) as u64);
        match timeout(patience, settled(node, &lane, &signals)).await {
            Ok(true) => {}
            // It ended meanwhile, or it was taken up again, or became known to all.
            // If the ensemble knows it now, the log says so.
            Ok(false) if !node.shared.local.lock().contains(session) => return Ok(None),
            Ok(false) | Err(_) => return Err(ConnectRefused::NotServing),
        }
        attaching.lane = None;
        drop(attaching);
        let last_n = node.shared.local.lock().last_n(session);
        let attached = Attached { lane, signals, attach: Zxid::ZERO, timeout_ms, last_n, read_only: false };
        Ok(Some(self.connection(attached, session, key)))
    }

    /// A lane for a connection, and what wakes its task.
    fn lane(&self, request: &ConnectRequest, session: SessionId) -> (Arc<Lane>, Arc<Signals>) {
        let signals = Arc::new(Signals::default());
        let wake = signals.clone();
        let mut ids = vec![Id::new("ip", java_address(request.peer.remote.ip()))];
        ids.extend(request.peer.identities.iter().cloned());
        let lane = Arc::new(Lane::new(
            WatcherId(self.node.next_number()),
            session,
            request.protocol,
            ids,
            request.last_zxid_seen,
            Box::new(move || {
                wake.outgoing.notify_one();
                wake.settled.notify_one();
            }),
        ));
        (lane, signals)
    }

    /// One handshake through the log. `Ok(Err(..))`: executed, and refused.
    async fn handshake(
        &self,
        request: &ConnectRequest,
        session: SessionId,
        timeout_ms: i32,
    ) -> Result<Result<Attached, Handshake>, ConnectRefused> {
        let node = &self.node;
        let (lane, signals) = self.lane(request, session);
        let ids = lane.ids().as_ref().clone();
        let nonce = node.draw_nonce();
        if !node.shared.lanes.join(session, nonce, lane.clone()) {
            return Err(ConnectRefused::NotServing);
        }
        let mut joining = Joining { node, lane: &lane, nonce, handed_over: false };
        let server = node.options.server;
        let keeps_results = request.protocol == Protocol::Grpc;
        let command = if request.session == SessionId::NONE {
            Command::CreateSession { timeout_ms, server, nonce, keeps_results }
        } else {
            Command::Attach { timeout_ms, server, nonce, keeps_results }
        };
        let txn = Txn { session, attach: Zxid::ZERO, n: 0, answered_through: 0, ids, command };
        node.bring(CoreEvent::Submit(vec![(Key::Handshake { session, nonce }, txn.encode())]));
        // The entry may take as long as an election; after the session timeout nobody waits for it any more.
        let patience = Duration::from_millis(timeout_ms.max(1) as u64);
        let outcome = timeout(patience, async {
            loop {
                if lane.handshake().is_some() || lane.is_closed() {
                    break;
                }
                signals.outgoing.notified().await;
            }
        })
        .await;
        if outcome.is_err() {
            return Err(ConnectRefused::NotServing);
        }
        match lane.handshake() {
            None => Err(ConnectRefused::NotServing),
            Some(Handshake::Attached { attach, timeout_ms, last_n }) => {
                joining.handed_over = true;
                drop(joining);
                Ok(Ok(Attached { lane, signals, attach, timeout_ms, last_n, read_only: false }))
            }
            Some(refused) => Ok(Err(refused)),
        }
    }

    fn connection(&self, attached: Attached, session: SessionId, key: &[u8]) -> Connection {
        let node = self.node.clone();
        node.stats.connected();
        let Attached { lane, signals, attach, timeout_ms, last_n, read_only } = attached;
        let local = AtomicBool::new(attach == Zxid::ZERO && !read_only);
        let connected = Connected {
            session,
            password: password::session_password(key, session),
            timeout_ms,
            attach,
            last_n,
            read_only,
            server: node.options.server,
            request_bytes_max: node.options.request_bytes_max,
        };
        Connection {
            node,
            connected,
            ids: Mutex::new(lane.ids()),
            lane,
            signals,
            local,
            attach: AtomicU64::new(attach.0),
            rejected: AtomicBool::new(false),
            last_n: AtomicU64::new(last_n),
            touched_ms: AtomicU64::new(0),
            sasl: Mutex::default(),
        }
    }
}

struct Attached {
    lane: Arc<Lane>,
    signals: Arc<Signals>,
    attach: Zxid,
    timeout_ms: i32,
    last_n: u64,
    read_only: bool,
}

impl Connection {
    /// The handshake's answer.
    pub fn connected(&self) -> &Connected {
        &self.connected
    }

    /// Hands in requests in the order of the client, each with the front end's own mark (it comes back in
    /// [`Outgoing::Reply`]). Waits while too much is outstanding: that is the back-pressure on the socket. Every request
    /// is answered exactly once, in order, unless the connection ends first. Any frame from the client touches the
    /// session.
    ///
    /// Cancelled before it returns, it has taken all of the requests or none.
    pub async fn submit(&self, requests: Vec<(u64, ClientRequest)>) {
        if self.connected.read_only {
            return self.submit_read_only(requests).await;
        }
        self.touch();
        while !self.lane.is_closed()
            && (self.lane.waiting() >= OUTSTANDING_PER_CONNECTION
                || self.node.is_overloaded()
                || (self.node.is_full() && requests.iter().any(|(_, request)| is_numbered_growth(request))))
        {
            // Overload ends without a signal of this connection; look again after a moment.
            let _ = timeout(Duration::from_millis(5), self.signals.room.notified()).await;
            self.touch();
        }
        if self.lane.is_closed() {
            return;
        }
        let mut writes = Vec::new();
        let mut read_point = None;
        for (cookie, request) in requests {
            if self.rejected.load(Ordering::Relaxed) {
                break;
            }
            if self.needs_upgrade(&request) {
                self.hand_in(&mut writes, &mut read_point);
                self.upgrade().await;
                if self.lane.is_closed() {
                    return;
                }
            }
            self.enqueue(cookie, request, &mut writes, &mut read_point);
        }
        self.hand_in(&mut writes, &mut read_point);
    }

    /// Passes on what was collected.
    fn hand_in(&self, writes: &mut Vec<(Key, bytes::Bytes)>, read_point: &mut Option<u64>) {
        if let Some(tag) = read_point.take() {
            let asked = CoreEvent::ReadIndex { tag };
            if writes.is_empty() {
                self.node.bring(asked);
            } else {
                self.node.core.leave(asked);
            }
        }
        if !writes.is_empty() {
            self.node.bring(CoreEvent::Submit(std::mem::take(writes)));
        }
        self.signals.outgoing.notify_one();
    }

    fn is_local(&self) -> bool {
        self.local.load(Ordering::Relaxed)
    }

    /// Whether a request can be done only for a session that all servers know, and this one may become so (wire 8.7).
    fn needs_upgrade(&self, request: &ClientRequest) -> bool {
        self.node.options.local_sessions_upgrading
            && matches!(request, ClientRequest::Write { op, .. } if makes_ephemerals(op))
            && self.is_local()
            && self.may_ask()
    }

    /// Makes a local session known to all servers, by an entry, under its id and on this connection. It comes behind
    /// everything the session has handed in, so that its writes stay in order. A session that cannot be made known is
    /// closed: its client finds out that it is gone.
    ///
    /// Cancelled, it leaves nothing of this connection; the session may become known all the same.
    async fn upgrade(&self) {
        let (node, lane, session) = (&self.node, &self.lane, self.connected.session);
        let timeout_ms = self.connected.timeout_ms;
        if !settled(node, lane, &self.signals).await {
            return lane.close(CloseReason::Expired);
        }
        let nonce = node.draw_nonce();
        lane.begin_upgrade();
        if !node.shared.lanes.join(session, nonce, lane.clone()) {
            return lane.close(CloseReason::ShuttingDown);
        }
        let mut joining = Joining { node, lane, nonce, handed_over: false };
        let command = Command::CreateSession { timeout_ms, server: node.options.server, nonce, keeps_results: false };
        let ids = self.ids.lock().as_ref().clone();
        let txn = Txn { session, attach: Zxid::ZERO, n: 0, answered_through: 0, ids, command };
        node.bring(CoreEvent::Submit(vec![(Key::Handshake { session, nonce }, txn.encode())]));
        while lane.handshake().is_none() && !lane.is_closed() {
            self.signals.settled.notified().await;
        }
        match lane.handshake() {
            Some(Handshake::Attached { attach, .. }) => {
                joining.handed_over = true;
                self.attach.store(attach.0, Ordering::Relaxed);
                self.last_n.store(0, Ordering::Relaxed);
                self.touched_ms.store(0, Ordering::Relaxed);
                self.local.store(false, Ordering::Relaxed);
            }
            Some(Handshake::Expired | Handshake::IdTaken) => {
                node.shared.local.lock().remove(session);
                lane.close(CloseReason::Expired);
            }
            None => {}
        }
    }

    /// The same for a session that nobody else knows: nothing of it goes into the log.
    async fn submit_read_only(&self, requests: Vec<(u64, ClientRequest)>) {
        while !self.lane.is_closed() && self.lane.waiting() >= OUTSTANDING_PER_CONNECTION {
            let _ = timeout(Duration::from_millis(5), self.signals.room.notified()).await;
        }
        self.node.read_only_sessions.lock().touch(self.node.clock.now().mono_ms, self.connected.session);
        let answer = |cookie, answer| self.lane.push(cookie, Step::Answer(answer), Consistency::Local, None);
        for (cookie, request) in requests {
            if self.lane.is_closed() || self.rejected.load(Ordering::Relaxed) {
                break;
            }
            match request {
                ClientRequest::Write { .. } | ClientRequest::Sync if self.may_ask() => {
                    answer(cookie, Err(ErrorCode::NotReadOnly));
                }
                ClientRequest::CloseSession { .. } if self.may_ask() => {
                    self.node.read_only_sessions.lock().close(self.connected.session, self.lane.id);
                    self.rejected.store(true, Ordering::Relaxed);
                    self.lane.push(cookie, Step::Close, Consistency::Local, None);
                }
                request => self.enqueue(cookie, request, &mut Vec::new(), &mut None),
            }
        }
        self.signals.outgoing.notify_one();
    }

    fn enqueue(
        &self,
        cookie: u64,
        request: ClientRequest,
        writes: &mut Vec<(Key, bytes::Bytes)>,
        read_point: &mut Option<u64>,
    ) {
        let local = Consistency::Local;
        let (step, consistency) = match request {
            ClientRequest::AddAuth { scheme, auth } => (self.add_auth(&scheme, &auth), local),
            ClientRequest::Sasl { token } => (self.sasl(&token), local),
            // Whatever else it is, a ping and a close too, as in ZooKeeper (wire 6.5).
            _ if !self.may_ask() => (self.reject(ErrorCode::SessionClosedRequireSaslAuth), local),
            ClientRequest::Write { op, n: None, .. } if self.node.is_full() && may_grow(&op) => {
                // Not numbered: what follows is the next.
                (Step::Answer(Err(ErrorCode::SystemError)), local)
            }
            ClientRequest::Write { op, .. } if self.is_local() => match self.local_write(op, writes) {
                Some(step) => (step, local),
                None => return,
            },
            ClientRequest::CloseSession { .. } if self.is_local() => {
                if !self.node.shared.local.lock().close(self.connected.session, self.lane.id) {
                    return self.lane.close(CloseReason::Moved);
                }
                // Nothing is known of it anywhere else; what it has handed in is done and answered first, and what it
                // sent behind this is not looked at.
                self.rejected.store(true, Ordering::Relaxed);
                (Step::Close, local)
            }
            ClientRequest::Write { op, n: given, answered_through } => {
                let n = self.number(given);
                let (key, txn) = self.txn(n, answered_through, Command::Write(op));
                if txn.len() <= self.node.options.txn_bytes_max {
                    writes.push((key, txn));
                    (Step::Write { n }, local)
                } else if given.is_none() {
                    self.last_n.store(n - 1, Ordering::Relaxed);
                    (Step::Answer(Err(ErrorCode::BadArguments)), local)
                } else {
                    // Behind a number that never comes nothing could be executed. The front end admits no such request.
                    self.rejected.store(true, Ordering::Relaxed);
                    return self.lane.close(CloseReason::OutOfOrder);
                }
            }
            ClientRequest::CloseSession { n } => {
                let n = self.number(n);
                writes.push(self.txn(n, 0, Command::CloseSession { expired: false }));
                (Step::Write { n }, local)
            }
            ClientRequest::Read { op, watch, consistency } => (Step::Read { op, watch }, consistency),
            ClientRequest::Sync => (Step::Answer(Ok(Answer::Done)), Consistency::Linearizable),
            ClientRequest::AddWatch { path, kind } => (Step::AddWatch { path, kind }, local),
            ClientRequest::RemoveWatches { path, kind } => (Step::Watches { path, kind, remove: true }, local),
            ClientRequest::CheckWatches { path, kind } => (Step::Watches { path, kind, remove: false }, local),
            ClientRequest::SetWatches(mut watches) => {
                watches.replay = self.lane.protocol == Protocol::Wire && self.node.options.replay_persistent_watches;
                (Step::SetWatches(watches), local)
            }
            ClientRequest::Subscribe { watch, subscription, after } => {
                // A position that is not reached here may be reached elsewhere: whether it is one, the leader knows.
                let is_ahead = after.is_some_and(|after| after > *self.node.applied.borrow());
                let consistency = if is_ahead { Consistency::Linearizable } else { local };
                (Step::Subscribe { watch, subscription, after }, consistency)
            }
            ClientRequest::Unsubscribe { watch } => (Step::Unsubscribe { watch }, local),
            ClientRequest::WhoAmI => {
                let display = |id: &Id| Id::new(id.scheme.clone(), digest::display_name(id));
                (Step::Answer(Ok(Answer::Ids(self.ids.lock().iter().map(display).collect()))), local)
            }
            ClientRequest::Ping => (Step::Answer(Ok(Answer::Done)), local),
            ClientRequest::Refuse(error) => (Step::Answer(Err(error)), local),
        };
        let tag = (consistency == Consistency::Linearizable)
            .then(|| *read_point.get_or_insert_with(|| self.node.new_read_point(&self.lane)));
        self.lane.push(cookie, step, consistency, tag);
    }

    fn number(&self, given: Option<u64>) -> u64 {
        given.unwrap_or_else(|| self.last_n.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// The write of a local session: in its order among all of this server's it is put on the way to the log. `None`: the
    /// session has another connection, or is over.
    fn local_write(&self, op: WriteOp, writes: &mut Vec<(Key, bytes::Bytes)>) -> Option<Step> {
        let session = self.connected.session;
        let ids = self.ids.lock().as_ref().clone();
        let command = Command::Write(op);
        // To the end under the lock: nobody waits for a number that is taken back.
        let mut sessions = self.node.shared.local.lock();
        let Some(n) = sessions.number(session, self.lane.id) else {
            drop(sessions);
            self.lane.close(CloseReason::Moved);
            return None;
        };
        let txn = Txn { session, attach: Zxid::ZERO, n, answered_through: 0, ids, command }.encode();
        if txn.len() + CARRIER_BYTES > self.node.options.txn_bytes_max {
            sessions.unnumber(session);
            return Some(Step::Answer(Err(ErrorCode::BadArguments)));
        }
        drop(sessions);
        writes.push((Key::Local { session, n }, txn));
        Some(Step::Write { n })
    }

    fn txn(&self, n: u64, answered_through: u64, command: Command) -> (Key, bytes::Bytes) {
        let (session, attach) = (self.connected.session, Zxid(self.attach.load(Ordering::Relaxed)));
        let ids = self.ids.lock().as_ref().clone();
        let txn = Txn { session, attach, n, answered_through, ids, command };
        (Key::Request { session, attach, n }, txn.encode())
    }

    /// Proofs that name somebody add to the connection; `ip` succeeds and adds nothing (wire 6.4).
    fn add_auth(&self, scheme: &str, auth: &[u8]) -> Step {
        match scheme {
            "digest" => {
                self.identify(digest::identities(auth, self.node.options.super_digest.as_deref()), Answer::Done)
            }
            "ip" => Step::Answer(Ok(Answer::Done)),
            // The certificate has proven it already.
            "x509" if self.ids.lock().iter().any(|id| id.scheme == "x509") => Step::Answer(Ok(Answer::Done)),
            _ => {
                self.node.stats.auth_failed();
                self.reject(ErrorCode::AuthFailed)
            }
        }
    }

    /// The client is these too, for the requests behind this one.
    fn identify(&self, more: Vec<Id>, answer: Answer) -> Step {
        let mut ids = self.ids.lock();
        add_ids(&mut ids, more.clone());
        if ids.iter().map(|id| id.scheme.len() + id.id.len()).sum::<usize>() <= IDENTITY_BYTES_MAX {
            return Step::Identify { ids: more, answer };
        }
        drop(ids);
        warn!(session = %self.connected.session, "identities of more than {IDENTITY_BYTES_MAX} bytes");
        self.node.stats.auth_failed();
        self.reject(ErrorCode::AuthFailed)
    }

    /// An identity was not proven: nothing more is taken from this connection.
    fn reject(&self, code: ErrorCode) -> Step {
        self.rejected.store(true, Ordering::Relaxed);
        Step::Answer(Err(code))
    }

    /// Whether the connection has one of the identities that are demanded, if any are.
    fn may_ask(&self) -> bool {
        let demanded = &self.node.options.demanded_schemes;
        demanded.is_empty() || self.ids.lock().iter().any(|id| demanded.contains(&id.scheme))
    }

    /// One step of a SASL exchange (wire 6.6). Without users there is no SASL here, which is no error.
    fn sasl(&self, token: &[u8]) -> Step {
        let options = &self.node.options;
        let Some(users) = &options.sasl_users else { return Step::Answer(Ok(Answer::Token(None))) };
        let answer = match crate::node::system_random() {
            Ok(nonce) => self.sasl.lock().respond(token, nonce, users).map_err(|error| error.to_string()),
            Err(error) => Err(format!("no random numbers from the system: {error}")),
        };
        match answer {
            Ok(sasl::Answer::Challenge(challenge)) => Step::Answer(Ok(Answer::Token(Some(challenge.into())))),
            Ok(sasl::Answer::Proven { user, proof }) => {
                tracing::debug!(session = %self.connected.session, user, "identity proven by SASL");
                let ids = sasl::identities(&user, &options.sasl_super_users);
                self.identify(ids, Answer::Token(Some(proof.into())))
            }
            Err(error) => {
                self.node.stats.auth_failed();
                tracing::info!(session = %self.connected.session, "SASL failed: {error}");
                if options.demanded_schemes.contains("sasl") {
                    self.reject(ErrorCode::SessionClosedRequireSaslAuth)
                } else if options.allow_sasl_failed {
                    Step::Answer(Ok(Answer::Token(None)))
                } else {
                    self.reject(ErrorCode::AuthFailed)
                }
            }
        }
    }

    fn touch(&self) {
        let now = self.node.clock.now().mono_ms;
        let last = self.touched_ms.load(Ordering::Relaxed);
        if last == 0 || now >= last + self.node.options.touch_interval_ms {
            self.touched_ms.store(now.max(1), Ordering::Relaxed);
            if self.is_local() {
                self.node.shared.local.lock().touch(now, self.connected.session);
            } else {
                self.node.touched.lock().push(self.connected.session);
            }
        }
    }

    /// Waits until there is something to send, and appends it to `out` in order. Cancel safe. After
    /// [`Outgoing::Close`] nothing follows.
    pub async fn outgoing(&self, out: &mut Vec<Outgoing>) {
        loop {
            self.node.shared.advance(&self.lane);
            if self.lane.take_outgoing(out) {
                self.signals.room.notify_one();
                // What the full queue held back is in front again.
                self.signals.outgoing.notify_one();
                return;
            }
            if self.connected.read_only && !self.lane.is_closed() {
                tokio::select! {
                    () = self.signals.outgoing.notified() => {}
                    () = self.node.left_read_only() => self.lane.close(CloseReason::QuorumIsBack),
                }
            } else if self.lane.has_live_feeds() {
                if timeout(BOOKMARK_INTERVAL, self.signals.outgoing.notified()).await.is_err() {
                    self.lane.bookmark(|| self.node.shared.published());
                }
            } else {
                self.signals.outgoing.notified().await;
            }
        }
    }

    /// Ends the connection from this side, after what is queued.
    pub fn close(&self, reason: CloseReason) {
        self.lane.close(reason);
    }
}

/// Waits until everything that a local session has handed in is decided; false if this connection of it is over.
async fn settled(node: &NodeShared, lane: &Lane, signals: &Signals) -> bool {
    while !lane.is_closed() {
        let settled = node.shared.local.lock().is_settled(lane.session);
        match settled {
            Some(false) => signals.settled.notified().await,
            settled => return settled.is_some(),
        }
    }
    false
}

/// An address with its port as Java writes it.
pub(crate) fn java_socket_address(address: SocketAddr) -> String {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => format!("{ip}:{}", address.port()),
        ip @ IpAddr::V6(_) => format!("[{}]:{}", java_address(ip), address.port()),
    }
}

/// An address as Java writes it, which is what clients are shown: IPv6 without abbreviation.
fn java_address(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => address.segments().map(|segment| format!("{segment:x}")).join(":"),
    }
}

/// Whether a write may need space on the disk.
fn may_grow(op: &WriteOp) -> bool {
    match op {
        WriteOp::Create(_) | WriteOp::CreateIfNotExists(_) | WriteOp::SetData { .. } | WriteOp::SetAcl { .. } => true,
        WriteOp::Delete { .. } | WriteOp::RemoveRecursive { .. } => false,
        WriteOp::Multi(ops) => ops
            .iter()
            .any(|op| matches!(op, MultiOp::Create(_) | MultiOp::CreateIfNotExists(_) | MultiOp::SetData { .. })),
    }
}

/// Whether a write makes znodes that belong to its session.
fn makes_ephemerals(op: &WriteOp) -> bool {
    match op {
        WriteOp::Create(op) | WriteOp::CreateIfNotExists(op) => op.mode.is_ephemeral(),
        WriteOp::Multi(ops) => ops
            .iter()
            .any(|op| matches!(op, MultiOp::Create(op) | MultiOp::CreateIfNotExists(op) if op.mode.is_ephemeral())),
        WriteOp::Delete { .. } | WriteOp::SetData { .. } | WriteOp::SetAcl { .. } | WriteOp::RemoveRecursive { .. } => {
            false
        }
    }
}

/// A write that has its number from the client: it cannot be refused without an entry, since the next would be out of
/// order. It waits.
fn is_numbered_growth(request: &ClientRequest) -> bool {
    matches!(request, ClientRequest::Write { op, n: Some(_), .. } if may_grow(op))
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.node.shared.detach(&self.lane);
        self.node.stats.disconnected();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_as_java_writes_them() {
        for (address, shown) in [
            ("10.0.0.1", "10.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("::1", "0:0:0:0:0:0:0:1"),
            ("fe80::1:0", "fe80:0:0:0:0:0:1:0"),
        ] {
            assert_eq!(java_address(address.parse().unwrap()), shown);
        }
        for (address, shown) in
            [("10.0.0.1:5", "10.0.0.1:5"), ("[::ffff:10.0.0.1]:5", "10.0.0.1:5"), ("[::1]:5", "[0:0:0:0:0:0:0:1]:5")]
        {
            assert_eq!(java_socket_address(address.parse().unwrap()), shown);
        }
    }
}
