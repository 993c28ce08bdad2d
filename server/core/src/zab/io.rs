//! The contract of the protocol machine: what goes into [`Zab::step`](super::Zab::step) and what comes out.
//!
//! Durability is an input ([`Input::LogDone`]). Whatever asserts that something is durable is created inside the
//! machine and released by the step that receives the completion (P1, P2). So the loop around it may send every
//! message it is handed at once, and cannot get that wrong.

use bytes::Bytes;
use corral_proto::{ServerId, SessionId, Zxid};

use super::message::Message;
use super::quorum::QuorumSet;

/// The time, read once a turn by the loop. The machine has no other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Monotonic milliseconds from an arbitrary start: time-outs, elections.
    pub mono_ms: u64,
    /// Milliseconds since the Unix epoch: only ever becomes the stamp of an entry.
    pub wall_ms: i64,
}

/// One entry of the log. The machine carries `payload` and never looks into it.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the total order.
    pub zxid: Zxid,
    /// The leader's wall clock when it was proposed, in ms; never decreases along a log.
    pub stamp_ms: i64,
    /// Hash of the log up to and including this entry: [`Entry::chain`].
    pub hash: u64,
    /// What it carries; empty for (e,0).
    pub payload: Bytes,
}

impl Entry {
    /// The running hash after an entry that follows a log with hash `previous`.
    pub fn chain(previous: u64, zxid: Zxid, stamp_ms: i64, payload: &[u8]) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::with_seed(previous);
        hasher.update(&zxid.0.to_le_bytes());
        hasher.update(&stamp_ms.to_le_bytes());
        hasher.update(payload);
        hasher.digest()
    }

    /// Makes the entry that follows a log with hash `previous`.
    pub fn after(previous: u64, zxid: Zxid, stamp_ms: i64, payload: Bytes) -> Entry {
        let hash = Entry::chain(previous, zxid, stamp_ms, &payload);
        Entry { zxid, stamp_ms, hash, payload }
    }

    /// Bytes it counts for in windows and caches.
    pub fn weight(&self) -> usize {
        self.payload.len() + 48
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}({}B)", self.zxid, self.payload.len())
    }
}

/// A place in a log: the last entry and the running hash after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The last entry; [`Zxid::ZERO`] for an empty log.
    pub zxid: Zxid,
    /// The running hash after it; 0 for an empty log.
    pub hash: u64,
}

/// A promise: no ack for an epoch below `epoch` will leave this server any more (P3, P6 as refined).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Promise {
    /// The accepted epoch.
    pub epoch: u32,
    /// To whom: the leader, its disk and its start. A repeat from the same three counts again.
    pub leader: ServerId,
    /// The leader's disk.
    pub instance: u64,
    /// The leader's start.
    pub start_count: u64,
}

/// What a server's data folder is worth (P9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Membership {
    /// Never took part. Bootstraps only when every configured voter is connected and fresh.
    #[default]
    Empty,
    /// Remembers everything it ever promised and acknowledged: votes and counts.
    Member,
    /// Lost something it may have promised or acknowledged: learns, never votes, never counts, until (e,0) of a
    /// leader is durable here and committed by a majority of the others.
    Amnesiac,
}

/// Who a server is, durably.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// This server's number.
    pub server: ServerId,
    /// Random, coined with the data folder: which disk.
    pub instance: u64,
    /// Starts of this data folder so far, this one included.
    pub start_count: u64,
    /// The cluster; 0 before bootstrap.
    pub cluster: u64,
    /// See [`Membership`].
    pub membership: Membership,
}

/// Role of this server in the ensemble's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// Votes and counts.
    Voter,
    /// Learns only.
    Observer,
}

/// Fixed settings of the machine. Plain values; nobody reads configuration below `config`.
#[derive(Clone, Debug)]
pub struct Options {
    /// This server.
    pub id: ServerId,
    /// Who is a majority.
    pub quorum: QuorumSet,
    /// All members, voters and observers, ascending.
    pub members: Vec<(ServerId, MemberKind)>,
    /// The one liveness bound: no majority heard for so long means stepping down; no leader heard for so long means
    /// looking. ms.
    pub sync_timeout_ms: u64,
    /// Limit of discovery and synchronization without progress, ms.
    pub init_timeout_ms: u64,
    /// Between two pings of a leader, ms.
    pub ping_interval_ms: u64,
    /// How long a winning vote must stand unchallenged while some live voter has not voted, ms.
    pub election_quiet_ms: u64,
    /// Bytes of recent entries kept for learners that lag; entries not yet applied are kept beyond it.
    pub tail_cache_bytes: usize,
    /// Bytes proposed and not yet committed; beyond it proposals wait.
    pub window_bytes: usize,
    /// Bytes sent to one learner and not yet acknowledged; beyond it the learner catches up at its own pace.
    pub learner_window_bytes: usize,
    /// Bytes of one Entries message.
    pub message_bytes: usize,
    /// A learner that misses more than so many bytes of log gets a snapshot instead.
    pub snapshot_threshold_bytes: u64,
    /// Counter from which a leader stops and makes way for a new epoch (P17); 2^32 - 2^24 in production.
    pub counter_limit: u32,
    /// Seed of the machine's own arbitrary choices (the cluster id it may coin, the links it numbers).
    pub seed: u64,
}

/// What was found on disk at start ([`crate::storage::recover`]).
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Who this server is; `start_count` already raised and durable.
    pub identity: Identity,
    /// Largest promise on disk.
    pub promise: Promise,
    /// Where the log begins: entries after it are on disk.
    pub base: Position,
    /// End of the log. `identity` decides whether it may vote.
    pub end: Position,
    /// Largest stamp in the log or store, ms.
    pub stamp_ms: i64,
    /// For each epoch in the log, its last zxid on disk and the hash there, ascending. Its first row is the base's.
    pub epochs: Vec<Position>,
    /// The entries after `applied`, and as many before as fit into the tail cache.
    pub tail: Vec<Entry>,
    /// What the store contains.
    pub applied: Position,
    /// What the store would contain after a crash.
    pub persisted: Zxid,
    /// The running digest of the store's tree at `applied`.
    pub digest: u64,
}

/// A snapshot of a store that can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// Names it on the server that holds it.
    pub id: u64,
    /// The state it contains: the entry and the running hash of the log there.
    pub position: Position,
    /// Stamp of that entry, ms.
    pub stamp_ms: i64,
    /// Size of its files in bytes.
    pub bytes: u64,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time passed. The loop sends one at least every 20 ms.
    Tick,
    /// A stream to `peer` is up. A former one of the same peer is void from now on, without a [`Input::PeerDown`].
    PeerUp {
        /// Who.
        peer: ServerId,
        /// Which stream; larger than every former one to this peer in this process.
        link: u64,
        /// The peer's disk.
        instance: u64,
        /// The peer's start.
        start_count: u64,
    },
    /// The stream broke.
    PeerDown {
        /// Who.
        peer: ServerId,
        /// Which stream.
        link: u64,
    },
    /// A message came over the stream.
    PeerMessage {
        /// From whom.
        peer: ServerId,
        /// Over which stream.
        link: u64,
        /// The message.
        message: Message,
    },
    /// Every log operation up to and including `seq` is durable.
    LogDone {
        /// From [`Output::Log`].
        seq: u64,
    },
    /// Answer to [`Output::ReadLog`].
    LogRead {
        /// From the request.
        request: u64,
        /// Consecutive entries from the asked place on; empty if the place is gone from the log.
        entries: Vec<Entry>,
    },
    /// Transactions of this server's clients, in order. Dropped without notice when there is no relation to a
    /// leader (see [`Output::Relation`]); the outbox offers them again.
    Propose {
        /// Payloads for entries.
        payloads: Vec<Bytes>,
    },
    /// Somebody wants a read point (P24). Never dropped: asked again after a change of leader.
    ReadIndex {
        /// Comes back in [`Output::ReadPoint`].
        tag: u64,
    },
    /// On a leader: begin a ping round now and say when a majority, and each of `include` whose stream is up, has
    /// answered it (P32). Forgotten when this server stops leading.
    ConfirmRound {
        /// Comes back in [`Output::RoundConfirmed`].
        tag: u64,
        /// Learners that must be among the answers.
        include: Vec<ServerId>,
    },
    /// Sessions whose clients were heard since the last such input; they ride on the next Pong.
    Touched {
        /// Which.
        sessions: Vec<SessionId>,
    },
    /// Digests of the tree, as the apply loop recorded them (P35).
    Digest {
        /// At which entry (a counter that is a multiple of 1,024).
        zxid: Zxid,
        /// The running digest there.
        digest: u64,
    },
    /// The store has executed everything up to here.
    Applied {
        /// Contained in the store.
        zxid: Zxid,
        /// Contained in the store after a crash.
        persisted: Zxid,
        /// The running digest at `zxid`, if entries were executed (P35).
        digest: Option<u64>,
    },
    /// Answer to [`Output::MakeSnapshot`] on a leader; `None`: not possible now.
    SnapshotReady {
        /// From the request.
        request: u64,
        /// The snapshot, readable until [`Output::DropSnapshot`].
        snapshot: Option<SnapshotMeta>,
    },
    /// A learner's loop fetched the snapshot that [`Output::FetchSnapshot`] named: durable in `incoming/`, opened and
    /// verified. `ok = false`: it could not.
    SnapshotFetched {
        /// From the request: snapshots of two leaders may have the same id.
        request: u64,
        /// Whether it is there.
        ok: bool,
    },
    /// The store of an installed snapshot is open and published (answer to [`Output::OpenSnapshot`]).
    SnapshotOpened {
        /// What it contains.
        position: Position,
    },
    /// The log dropped its oldest segments (P27): entries after `base` are on disk.
    LogTrimmed {
        /// The new base.
        base: Position,
    },
    /// An operator asked.
    Admin(Admin),
}

/// What an operator can ask of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admin {
    /// Stop leading; elections decide who follows.
    StepDown,
    /// Hand leadership to this voter once it holds everything (P17, rolling restarts).
    Transfer(ServerId),
}

/// A durable mutation. One writer performs all of them in order (P1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOp {
    /// Appends entries; the first follows the log's end.
    Append(Vec<Entry>),
    /// Forgets what is after `to`, by a record.
    Truncate {
        /// The new end.
        to: Position,
    },
    /// Records a promise.
    SetPromise(Promise),
    /// Replaces the identity file.
    SetIdentity(Identity),
    /// Makes the fetched snapshot the store of this server: intent, directory pointer, new log segment with the
    /// snapshot's position as its base, then the old segments go.
    InstallSnapshot(SnapshotMeta),
}

/// What this server is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Waiting for the bootstrap of a fresh ensemble (P9).
    #[default]
    Bootstrapping,
    /// Electing.
    Looking,
    /// Following `leader`; `observing` if it does not count.
    Following,
    /// As following, without a vote.
    Observing,
    /// Leading.
    Leading,
}

/// Zab's phase of this server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Who leads?
    #[default]
    Election,
    /// Phase 1: an epoch, a promise.
    Discovery,
    /// Phase 2: one history.
    Synchronization,
    /// Phase 3.
    Broadcast,
}

/// A snapshot of the machine for operators, metrics and checkers. Cheap to make.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// See [`Role`].
    pub role: Role,
    /// See [`Phase`].
    pub phase: Phase,
    /// Who leads, once known.
    pub leader: Option<ServerId>,
    /// Epoch of the relation; of the promise while looking.
    pub epoch: u32,
    /// End of the log as the machine sees it (not all of it durable).
    pub last: Position,
    /// Durable end.
    pub durable: Zxid,
    /// Commit watermark.
    pub committed: Zxid,
    /// Executed.
    pub applied: Zxid,
    /// Who this server is.
    pub identity: Identity,
    /// The promise on disk.
    pub promise: Promise,
    /// Peers with a stream.
    pub connected: Vec<ServerId>,
    /// On a leader: each learner with its acknowledged zxid and whether it is synchronized.
    pub learners: Vec<(ServerId, Zxid, bool)>,
    /// Why there is no quorum, in words for an operator; empty when there is one.
    pub waiting_for: String,
    /// Elections this process took part in.
    pub elections: u64,
    /// Entries at which this process, as leader, saw trees of servers differ (P35).
    pub mismatches: u64,
    /// The latest entry at which this server knows trees to have differed with no majority of equal ones (P35); zxid 0 for
    /// none.
    pub doubt: Zxid,
    /// On a leader: the trees differ at this entry, and no majority agrees on one. An alarm for people.
    pub divergence: Option<Zxid>,
}

/// One thing to do. Do them in the order given.
#[derive(Clone, Debug)]
pub enum Output {
    /// Give the operation to the log writer; answer with [`Input::LogDone`] of this or a later `seq`.
    Log {
        /// Consecutive from 1.
        seq: u64,
        /// What.
        op: LogOp,
    },
    /// Send now. Everything that had to be durable is.
    Send {
        /// To whom.
        peer: ServerId,
        /// Over which stream; drop the message if that is gone.
        link: u64,
        /// The message. Equal [`Message::Entries`] bodies share their entries.
        message: Message,
    },
    /// Execute these; committed and durable, in order, each exactly once in this process.
    Apply(Vec<Entry>),
    /// Read entries after `after` from disk, about `max_bytes` of them; answer with [`Input::LogRead`].
    ReadLog {
        /// Comes back.
        request: u64,
        /// Exclusive.
        after: Zxid,
        /// At least one entry is returned if there is one.
        max_bytes: usize,
    },
    /// The read point of [`Input::ReadIndex`]: an answer is linearizable once this much is applied.
    ReadPoint {
        /// From the request.
        tag: u64,
        /// Wait until this is applied.
        zxid: Zxid,
    },
    /// See [`Input::ConfirmRound`].
    RoundConfirmed {
        /// From the request.
        tag: u64,
    },
    /// On a leader: these sessions were touched at a learner.
    Touches {
        /// Where.
        server: ServerId,
        /// Which.
        sessions: Vec<SessionId>,
    },
    /// The relation to a leader changed. `Some`: proposals reach this leader from now on (it may be this server);
    /// the loop offers all unresolved writes again, in order, before new ones (P31). `None`: proposals are dropped.
    Relation(Option<Relation>),
    /// This server leads and (e,0) is applied here: load the session table, start expiry (P30). `false`: stop both.
    Leading(bool),
    /// The leader needs a snapshot at or above `at_least`; its log from there on is pinned.
    MakeSnapshot {
        /// Comes back.
        request: u64,
        /// Lower bound.
        at_least: Zxid,
    },
    /// Nobody needs this snapshot any more.
    DropSnapshot {
        /// Which.
        id: u64,
    },
    /// Close every client connection and drop watches, lanes and unresolved writes, then fetch this snapshot from the
    /// leader into `incoming/`; answer with [`Input::SnapshotFetched`].
    FetchSnapshot {
        /// Comes back in [`Input::SnapshotFetched`]. What an earlier request still writes counts for nothing.
        request: u64,
        /// From whom.
        leader: ServerId,
        /// What.
        snapshot: SnapshotMeta,
    },
    /// The install is durable: open the new store, publish it, answer with [`Input::SnapshotOpened`].
    OpenSnapshot(SnapshotMeta),
    /// The log may drop whole segments whose entries are all at or below this zxid (P27).
    TrimLog {
        /// Inclusive.
        upto: Zxid,
    },
    /// A digest differs and a majority agrees against this server (P35), or an invariant of the protocol is broken on
    /// disk: condemn log and store, so that the next start is an amnesiac one, say why, stop the process.
    Fatal(String),
    /// For the log of people; structured events for checkers are taken from the messages themselves.
    Note(String),
}

/// Where proposals go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relation {
    /// The leader; may be this server.
    pub leader: ServerId,
    /// Its epoch.
    pub epoch: u32,
}

/// What one step asks for, in order.
pub type Outputs = Vec<Output>;
