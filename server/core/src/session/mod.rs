//! Sessions: one session's order ([`lane`]), what it follows of the change feed ([`feed`]), writes that wait for a leader
//! ([`outbox`]), expiry on the leader ([`tracker`]); sessions of one server alone ([`local`]) and the order of their writes
//! ([`carrier`]).

pub mod carrier;
pub mod feed;
pub mod lane;
pub mod local;
pub mod outbox;
pub mod tracker;
pub mod usage;

use std::sync::Arc;

use corral_proto::{ErrorCode, EventKind, WatchKind, WatchedEvent, Zxid};

use crate::tree::feed::FeedNode;
use crate::tree::op::{Answer, ReadOp, WriteOp};

/// What a front end hands in, in the order in which the client asked.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientRequest {
    /// A change. Becomes an entry.
    Write {
        /// What.
        op: WriteOp,
        /// gRPC: the client's own number (1, 2, 3, ...). ZooKeeper protocol: `None`, numbered here.
        n: Option<u64>,
        /// gRPC: every write up to this number was answered. Else 0.
        answered_through: u64,
    },
    /// A read, answered from the state of this server.
    Read {
        /// What.
        op: ReadOp,
        /// Arm a one-shot watch with it (exists, get data, get children).
        watch: bool,
        /// How fresh.
        consistency: Consistency,
    },
    /// Adds a persistent or persistent recursive watch; no permission is asked, the znode need not exist.
    AddWatch {
        /// Where.
        path: String,
        /// Which.
        kind: WatchKind,
    },
    /// Removes watches of this connection; [`ErrorCode::NoWatcher`] if there is none.
    RemoveWatches {
        /// Where.
        path: String,
        /// Which; `None`: every kind.
        kind: Option<WatchKind>,
    },
    /// As `RemoveWatches`, but only asks.
    CheckWatches {
        /// Where.
        path: String,
        /// Which; `None`: every kind.
        kind: Option<WatchKind>,
    },
    /// Watches of a former connection (wire 7.8): what was missed fires now, the rest is armed.
    SetWatches(SetWatches),
    /// Follows the change feed; no permission is asked, the znode need not exist. `BadArguments`: no such path, a name that
    /// is taken, or a position that this ensemble has not reached.
    Subscribe {
        /// Its name on this connection; not 0.
        watch: u64,
        /// Where and what.
        subscription: feed::Subscription,
        /// From behind this zxid; `None`: from the state that answers.
        after: Option<Zxid>,
    },
    /// Follows it no more; [`ErrorCode::NoWatcher`] if there is no such name.
    Unsubscribe {
        /// Its name.
        watch: u64,
    },
    /// Answered once everything the leader had committed when it was asked is applied here (P24).
    Sync,
    /// Proof of an identity. `AuthFailed` means that the front end closes the connection after the reply.
    AddAuth {
        /// `digest`, ...
        scheme: String,
        /// The proof.
        auth: Vec<u8>,
    },
    /// A token of a SASL exchange; the answer is a token too.
    Sasl {
        /// The client's.
        token: bytes::Bytes,
    },
    /// The identities of this connection.
    WhoAmI,
    /// Answered in its turn.
    Ping,
    /// The front end could not read it, or will not do it: answered with this error in its turn.
    Refuse(ErrorCode),
    /// Ends the session. After its reply comes [`Outgoing::Close`].
    CloseSession {
        /// gRPC: its number. ZooKeeper protocol: `None`.
        n: Option<u64>,
    },
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Never older than what this session saw.
    #[default]
    Local,
    /// Not before this zxid is applied here.
    AtLeast(Zxid),
    /// Not older than any answer given anywhere before the request came (P24).
    Linearizable,
}

/// Watches to set again, as of the last zxid the client saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetWatches {
    /// Changes after it were missed.
    pub relative_zxid: Zxid,
    /// Data watches on znodes that existed.
    pub data: Vec<String>,
    /// Data watches on znodes that did not exist.
    pub exist: Vec<String>,
    /// Child watches.
    pub child: Vec<String>,
    /// Persistent watches.
    pub persistent: Vec<String>,
    /// Persistent recursive watches.
    pub persistent_recursive: Vec<String>,
    /// Missed events of persistent watches are told, too (what ZooKeeper does not do).
    pub replay: bool,
}

/// What a front end sends out, in this order.
#[derive(Clone, Debug)]
pub enum Outgoing {
    /// The reply to a request.
    Reply {
        /// The front end's own mark on the request.
        cookie: u64,
        /// Writes: their entry; everything else: the state that answered, or the last published.
        zxid: Zxid,
        /// The answer. Pings, watches, auth, sync and close: [`Answer::Done`].
        result: Result<Answer, ErrorCode>,
    },
    /// A watch fired.
    Event(Arc<SharedEvent>),
    /// Something about a subscription to the change feed (gRPC).
    Feed(FeedNotice),
    /// Nothing follows: flush, then close the connection.
    Close(CloseReason),
}

/// An event on its way to many connections: encoded once for each protocol.
#[derive(Debug)]
pub struct SharedEvent {
    /// The event.
    pub event: WatchedEvent,
    /// A ZooKeeper frame, made by the first connection that needs it.
    pub wire: std::sync::OnceLock<bytes::Bytes>,
}

impl SharedEvent {
    /// Wraps an event.
    pub fn new(event: WatchedEvent) -> Arc<SharedEvent> {
        Arc::new(SharedEvent { event, wire: std::sync::OnceLock::new() })
    }
}

/// What a subscription to the change feed is told.
#[derive(Clone, Debug, PartialEq)]
pub enum FeedNotice {
    /// The events of one entry, all of them that the subscription is about.
    Changes {
        /// Which subscription.
        watch: u64,
        /// Which entry.
        zxid: Zxid,
        /// In order; never empty.
        events: Vec<Arc<FeedEvent>>,
    },
    /// Every event up to here was sent, and what the events brought together is the state here.
    Bookmark {
        /// Which subscription, which has just caught up; `None`: all of the connection.
        watch: Option<u64>,
        /// Up to where.
        zxid: Zxid,
    },
    /// What happened after its position is not remembered any more. It goes on behind `resync`.
    Gap {
        /// Which subscription.
        watch: u64,
        /// Its position.
        after: Zxid,
        /// A state at least as new as this one must be read, and events follow.
        resync: Zxid,
    },
}

/// One event of the change feed.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedEvent {
    /// What.
    pub kind: EventKind,
    /// To which znode.
    pub path: String,
    /// What the znode holds, for created and changed ones, if it was asked for and a later event does not tell.
    pub node: Option<FeedNode>,
}

/// Why a server ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The session is over by the leader's clock.
    Expired,
    /// The client closed its session.
    ClosedByClient,
    /// The session has a newer connection.
    Moved,
    /// No leader for too long.
    NoQuorum,
    /// There is a leader again; the session was of this server alone.
    QuorumIsBack,
    /// The client does not read what it is sent.
    SlowReader,
    /// A request number was not the next.
    OutOfOrder,
    /// This server is going down, or its state is being replaced.
    ShuttingDown,
}

/// Which protocol a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// ZooKeeper's.
    Wire,
    /// gRPC.
    Grpc,
}
