//! One simulated client: a session, requests in flight, and the habits of a client library: it pings, reconnects
//! anywhere, sends unanswered writes again in order (gRPC) or gives them up as unknown (ZooKeeper's protocol).

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use corral_core::session::{ClientRequest, Consistency, SetWatches};
use corral_core::tree::op::{Create, MultiOp, ReadOp, WriteOp};
use corral_proto::{Acl, CreateMode, EventKind, ServerId, SessionId, Zxid};

use crate::follower::Follower;
use crate::options::Load;
use crate::rng::Rng;
use crate::schedule::Micros;

/// A connection as the client sees it.
pub struct ClientConnection {
    /// Unique in the run.
    pub id: u64,
    /// To whom.
    pub server: ServerId,
    /// To which process of it.
    pub process: u64,
    /// The handshake is over: the attach it stands on.
    pub attach: Option<Zxid>,
    /// When the last thing sent to the server arrives.
    pub arrives: Micros,
    /// When it was begun, or anything last came.
    pub heard: Micros,
}

/// A request that was sent and not answered, on the current connection.
pub struct Pending {
    /// The client's mark.
    pub cookie: u64,
    /// What.
    pub call: Call,
    /// [`crate::history::History::floor`] when it was first sent.
    pub floor: Zxid,
}

/// What a request is, for judging its answer.
#[derive(Clone, Debug)]
pub enum Call {
    /// A write or the end of the session, with its number.
    Write(u64),
    /// A read.
    Read {
        /// What.
        op: ReadOp,
        /// With a one-shot watch.
        watch: bool,
        /// How fresh.
        consistency: Consistency,
    },
    /// A sync.
    Sync,
    /// A persistent watch; `true`: recursive.
    AddWatch(String, bool),
    /// Watches of the former connection.
    SetWatches(SetWatches),
    /// A ping.
    Ping,
    /// The change feed, from a position.
    Subscribe,
    /// All znodes, after a gap.
    ReadAll,
}

/// Which list of [`SetWatches`] a one-shot watch belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sort {
    /// On a znode that was there.
    Data,
    /// On one that was not.
    Exist,
    /// On a list of children.
    Child,
}

/// A write of a session that keeps results, not yet answered.
#[derive(Clone)]
pub struct Unanswered {
    /// Its number.
    pub n: u64,
    /// `None`: the end of the session.
    pub op: Option<WriteOp>,
    /// As [`Pending::floor`].
    pub floor: Zxid,
}

/// See the module.
pub struct Client {
    /// Speaks ZooKeeper's protocol.
    pub wire: bool,
    /// Its session.
    pub session: Option<SessionId>,
    /// Its connection.
    pub connection: Option<ClientConnection>,
    /// In flight on the connection, oldest first.
    pub pending: VecDeque<Pending>,
    /// Writes to send again.
    pub unanswered: VecDeque<Unanswered>,
    /// Next number of a write (of the session, or of the connection).
    pub next_n: u64,
    /// Next mark.
    pub next_cookie: u64,
    /// Largest zxid seen in this session.
    pub seen: Zxid,
    /// Largest zxid of any reply: every event up to there was seen.
    pub replied: Zxid,
    /// One-shot watches that may still fire.
    pub armed: BTreeSet<(String, Sort)>,
    /// Events that a re-registration made up, until its reply comes.
    pub missed: Vec<(EventKind, String)>,
    /// Says nothing until then.
    pub silent_until: Micros,
    /// Asks for nothing new.
    pub stopped: bool,
    /// It does nothing but to follow the change feed.
    pub follower: Option<Box<Follower>>,
    /// Its own chance.
    pub rng: Rng,
}

impl Client {
    /// A client that has yet to connect.
    pub fn new(seed: u64, index: u64, load: &Load) -> Client {
        let mut rng = Rng::stream(seed ^ (index + 1).wrapping_mul(0x9e37_79b9), "client");
        Client {
            wire: rng.chance(load.wire_per_mille),
            session: None,
            connection: None,
            pending: VecDeque::new(),
            unanswered: VecDeque::new(),
            next_n: 1,
            next_cookie: 1,
            seen: Zxid::ZERO,
            replied: Zxid::ZERO,
            armed: BTreeSet::new(),
            missed: Vec::new(),
            silent_until: 0,
            stopped: false,
            follower: None,
            rng,
        }
    }

    /// A client that follows the change feed.
    pub fn follower(seed: u64, index: u64, load: &Load) -> Client {
        let follower = Some(Box::default());
        Client { wire: false, follower, ..Client::new(seed, index, load) }
    }

    /// Whether every call has ended.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.unanswered.is_empty()
    }

    /// The session is over: what is unanswered stays unknown.
    pub fn forget_session(&mut self) {
        self.session = None;
        self.seen = Zxid::ZERO;
        self.replied = Zxid::ZERO;
        self.armed.clear();
        self.missed.clear();
        self.next_n = 1;
        self.unanswered.clear();
        self.pending.clear();
        self.connection = None;
    }

    /// The connection is over.
    pub fn forget_connection(&mut self) {
        self.connection = None;
        self.pending.clear();
        self.missed.clear();
        if self.wire {
            self.unanswered.clear();
            self.next_n = 1;
        }
    }

    /// An event came: what it consumed is armed no more.
    pub fn consume(&mut self, kind: EventKind, path: &str) {
        self.armed.retain(|(armed, sort)| {
            let hit = match kind {
                EventKind::NodeDeleted => true,
                EventKind::NodeChildrenChanged => *sort == Sort::Child,
                EventKind::NodeCreated | EventKind::NodeDataChanged => *sort != Sort::Child,
            };
            armed != path || !hit
        });
    }

    /// The request that sets again what may still fire; `None` if nothing does.
    pub fn set_watches(&self) -> Option<SetWatches> {
        if self.armed.is_empty() {
            return None;
        }
        let of = |wanted: Sort| {
            self.armed.iter().filter(|(_, sort)| *sort == wanted).map(|(path, _)| path.clone()).collect::<Vec<_>>()
        };
        Some(SetWatches {
            relative_zxid: self.replied,
            data: of(Sort::Data),
            exist: of(Sort::Exist),
            child: of(Sort::Child),
            ..SetWatches::default()
        })
    }

    /// All that is not newer than this was answered.
    pub fn answered_through(&self) -> u64 {
        self.unanswered.front().map_or(self.next_n, |u| u.n) - 1
    }

    /// The request that sends a write (again).
    pub fn write_request(&self, write: &Unanswered) -> ClientRequest {
        let n = (!self.wire).then_some(write.n);
        match &write.op {
            Some(op) => ClientRequest::Write {
                op: op.clone(),
                n,
                answered_through: if self.wire { 0 } else { self.answered_through() },
            },
            None => ClientRequest::CloseSession { n },
        }
    }

    /// Draws a path.
    pub fn path(&mut self, load: &Load) -> String {
        let top = format!("/p{}", self.rng.below(load.paths));
        if self.rng.chance(300) { format!("{top}/c{}", self.rng.below(3)) } else { top }
    }

    fn data(&mut self, load: &Load) -> Option<Bytes> {
        let len = self.rng.below(load.data_bytes + 1);
        let mark = self.rng.next().to_le_bytes();
        Some(Bytes::from_iter((0..len).map(|i| mark[i as usize % mark.len()])))
    }

    fn version(&mut self) -> i32 {
        if self.rng.chance(600) { -1 } else { self.rng.below(4) as i32 }
    }

    fn create(&mut self, load: &Load) -> Create {
        let mode = match self.rng.below(20) {
            0..8 => CreateMode::Persistent,
            8..13 => CreateMode::Ephemeral,
            13..16 => CreateMode::PersistentSequential,
            16..18 => CreateMode::EphemeralSequential,
            18 => CreateMode::Container,
            _ => CreateMode::PersistentWithTtl,
        };
        Create {
            path: self.path(load),
            data: self.data(load),
            acl: Some(Acl::open()),
            mode,
            ttl_ms: if mode.is_ttl() { 1 + self.rng.below(2000) as i64 } else { 0 },
        }
    }

    /// Draws a write; `None` ends the session.
    pub fn draw_write(&mut self, load: &Load) -> Option<WriteOp> {
        Some(match self.rng.below(100) {
            0..40 => WriteOp::Create(self.create(load)),
            40..65 => WriteOp::SetData { path: self.path(load), data: self.data(load), version: self.version() },
            65..82 => WriteOp::Delete { path: self.path(load), version: self.version() },
            82..98 => {
                let ops = 1 + self.rng.below(4);
                WriteOp::Multi((0..ops).map(|_| self.multi_op(load)).collect())
            }
            _ => return None,
        })
    }

    fn multi_op(&mut self, load: &Load) -> MultiOp {
        match self.rng.below(10) {
            0..4 => MultiOp::Create(self.create(load)),
            4..7 => MultiOp::SetData { path: self.path(load), data: self.data(load), version: self.version() },
            7..9 => MultiOp::Delete { path: self.path(load), version: self.version() },
            _ => MultiOp::Check { path: self.path(load), version: -1 },
        }
    }

    /// Draws a read, whether it arms a watch, and how fresh it must be.
    pub fn draw_read(&mut self, load: &Load) -> (ReadOp, bool, Consistency) {
        let path = if self.rng.chance(100) { "/".to_owned() } else { self.path(load) };
        let op = match self.rng.below(10) {
            0..4 => ReadOp::GetData { path },
            4..7 => ReadOp::Exists { path },
            7..9 => ReadOp::GetChildren { path },
            _ => ReadOp::GetEphemerals { prefix: "/".to_owned() },
        };
        let watch = self.rng.chance(300);
        let consistency =
            if self.rng.chance(load.linearizable_per_mille) { Consistency::Linearizable } else { Consistency::Local };
        (op, watch, consistency)
    }
}
