//! One simulated client: a session, requests in flight, and the habits of a client library: it pings, reconnects
//! anywhere, sends unanswered writes again in order (gRPC) or gives them up as unknown (ZooKeeper's protocol).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use corral_core::session::{ClientRequest, Consistency, SetWatches};
use corral_core::tree::op::{ReadOp, WriteOp};
use corral_proto::{EventKind, ServerId, SessionId, WatchKind, Zxid};

use crate::follower::Follower;
use crate::history::registers::Ticket;
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
    /// The client does not read from it until then.
    pub stalled_until: Option<Micros>,
}

/// A request that was sent and not answered, on the current connection.
pub struct Pending {
    /// The client's mark.
    pub cookie: u64,
    /// What.
    pub call: Call,
    /// [`crate::history::History::floor`] when it was first sent.
    pub floor: Zxid,
    /// If it is of interest to [`crate::history::registers`].
    pub ticket: Option<Ticket>,
}

/// What a request is, for judging its answer.
#[derive(Clone, Debug)]
pub enum Call {
    /// A write or the end of the session.
    Write {
        /// Its number.
        n: u64,
        /// It was sent over a former connection, too.
        again: bool,
    },
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
    /// Removes watches, or asks for them (`false`).
    Watches(String, Option<WatchKind>, bool),
    /// Watches of the former connection.
    SetWatches(SetWatches),
    /// A ping.
    Ping,
    /// The change feed, from a position.
    Subscribe,
    /// All znodes, after a gap.
    ReadAll {
        /// Which time the follower asks.
        round: u64,
    },
    /// The last read of all, when everything is at rest: what it shows, every watch has told.
    Last,
}

/// Whether a client was asked for its last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastWord {
    /// There is more to come.
    NotYet,
    /// It is to read once more.
    Wanted,
    /// It does.
    Asked,
    /// It did.
    Heard,
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

impl Sort {
    /// What the server calls it.
    pub fn kind(self) -> WatchKind {
        if self == Sort::Child { WatchKind::Child } else { WatchKind::Data }
    }
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
    /// As [`Pending::ticket`].
    pub ticket: Option<Ticket>,
}

/// See the module.
pub struct Client {
    /// Speaks ZooKeeper's protocol.
    pub wire: bool,
    /// It writes nothing while faults strike: nothing that waits for a leader holds its reads up.
    pub reader: bool,
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
    /// One-shot watches that may still fire, and the states that armed them.
    pub armed: BTreeMap<(String, Sort), Zxid>,
    /// Persistent watches; `true`: recursive.
    pub persistent: BTreeSet<(String, bool)>,
    /// Versions of registers, as last seen.
    pub versions: BTreeMap<String, i32>,
    /// Elements of the queue, as last seen.
    pub queue: VecDeque<String>,
    /// Events that a re-registration made up, until its reply comes.
    pub missed: Vec<(EventKind, String)>,
    /// Says nothing until then.
    pub silent_until: Micros,
    /// Keeps silent until the very time at which its session is ended.
    pub aims: bool,
    /// Asks for nothing new.
    pub stopped: bool,
    /// It does nothing but to follow the change feed.
    pub follower: Option<Box<Follower>>,
    /// At the very end.
    pub last_word: LastWord,
    /// Its own chance.
    pub rng: Rng,
}

impl Client {
    /// A client that has yet to connect.
    pub fn new(seed: u64, index: u64, load: &Load) -> Client {
        let mut rng = Rng::stream(seed ^ (index + 1).wrapping_mul(0x9e37_79b9), "client");
        Client {
            wire: rng.chance(load.wire_per_mille),
            reader: rng.chance(load.readers_per_mille),
            session: None,
            connection: None,
            pending: VecDeque::new(),
            unanswered: VecDeque::new(),
            next_n: 1,
            next_cookie: 1,
            seen: Zxid::ZERO,
            replied: Zxid::ZERO,
            armed: BTreeMap::new(),
            persistent: BTreeSet::new(),
            versions: BTreeMap::new(),
            queue: VecDeque::new(),
            missed: Vec::new(),
            silent_until: 0,
            aims: false,
            stopped: false,
            follower: None,
            last_word: LastWord::NotYet,
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
        self.persistent.clear();
        self.next_n = 1;
        self.unanswered.clear();
        self.forget_connection();
    }

    /// The connection is over.
    pub fn forget_connection(&mut self) {
        self.connection = None;
        self.pending.clear();
        self.missed.clear();
        if self.last_word == LastWord::Asked {
            self.last_word = LastWord::Wanted;
        }
        if self.wire {
            self.unanswered.clear();
            self.next_n = 1;
        }
    }

    /// An event came: what it consumed is armed no more.
    pub fn consume(&mut self, kind: EventKind, path: &str) {
        self.armed.retain(|(armed, sort), _| {
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
        if self.armed.is_empty() && self.persistent.is_empty() {
            return None;
        }
        let of = |wanted: Sort| {
            self.armed.keys().filter(|(_, sort)| *sort == wanted).map(|(path, _)| path.clone()).collect::<Vec<_>>()
        };
        let persistent = |wanted: bool| {
            let of_kind = self.persistent.iter().filter(|(_, recursive)| *recursive == wanted);
            of_kind.map(|(path, _)| path.clone()).collect::<Vec<_>>()
        };
        Some(SetWatches {
            replay: false,
            relative_zxid: self.replied,
            data: of(Sort::Data),
            exist: of(Sort::Exist),
            child: of(Sort::Child),
            persistent: persistent(false),
            persistent_recursive: persistent(true),
        })
    }

    /// Its watches there are gone; `None`: of every kind.
    pub fn forget_watches(&mut self, path: &str, kind: Option<WatchKind>) {
        let is = |wanted: WatchKind| kind.is_none_or(|kind| kind == wanted);
        self.armed.retain(|(armed, sort), _| armed != path || !is(sort.kind()));
        self.persistent.retain(|(watched, recursive)| {
            watched != path || !is(if *recursive { WatchKind::PersistentRecursive } else { WatchKind::Persistent })
        });
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
}
