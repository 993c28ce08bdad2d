//! What is replicated: a transaction, its identities and its place in a session. And what executing it yields.

use bytes::Bytes;
use corral_proto::{ErrorCode, EventKind, Id, ServerId, SessionId, Zxid};

use super::Change;
use super::op::{Answer, WriteOp};

/// The payload of an entry. The entry adds zxid and stamp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txn {
    /// Whose; [`SessionId::NONE`] for the ensemble's own.
    pub session: SessionId,
    /// The attach under which it was made (P29): execution refuses any but the row's current one. For
    /// [`Command::CloseSession`] by expiry: the attach the leader saw.
    pub attach: Zxid,
    /// Request number in the session (P31); 0 for [`Command::CreateSession`], [`Command::Attach`] and internal ones.
    pub n: u64,
    /// Kept results up to this number may go (gRPC sessions).
    pub answered_through: u64,
    /// Identities of the connection, `ip` and `super` included.
    pub ids: Vec<Id>,
    /// What to do.
    pub command: Command,
}

/// What a transaction does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A client's write.
    Write(WriteOp),
    /// A new session under `Txn::session`, attached to `server`.
    CreateSession {
        /// Negotiated, ms.
        timeout_ms: i32,
        /// Where the connection is.
        server: ServerId,
        /// Tells a copy of this transaction from another that drew the same session id.
        nonce: u64,
        /// Results are kept for retries (gRPC).
        keeps_results: bool,
    },
    /// The session moves to a connection of `server` (P29).
    Attach {
        /// Negotiated, ms.
        timeout_ms: i32,
        /// Where the connection is.
        server: ServerId,
        /// Tells a copy from another attach.
        nonce: u64,
    },
    /// Ends the session and deletes its ephemerals.
    CloseSession {
        /// By the leader's clock, not by the client.
        expired: bool,
    },
    /// Deletes a container or TTL znode if it is still the one created at `czxid` and due.
    Reap {
        /// Which.
        path: String,
        /// Its creation.
        czxid: Zxid,
    },
    /// Replaces the replicated settings (P34).
    Settings(Settings),
}

/// Values that can change an outcome; part of the replicated state, never local configuration (P34).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Every permission check passes.
    pub skip_acl: bool,
    /// Containers that never had a child are reaped after this, ms; 0: never.
    pub container_never_used_ms: i64,
    /// Ephemerals one session may own.
    pub ephemerals_per_session: u32,
    /// Key of the session passwords (16 bytes or more).
    pub password_key: Vec<u8>,
    /// Text of `/zookeeper/config` without its version line; empty for a server alone.
    pub config_text: String,
    /// Feature level all execute at.
    pub feature_level: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            skip_acl: false,
            container_never_used_ms: 5 * 60 * 1000,
            ephemerals_per_session: 100_000,
            password_key: Vec::new(),
            config_text: String::new(),
            feature_level: 1,
        }
    }
}

/// How a transaction of a session stood when its turn came (P29, P31).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was decided now: an answer or a refusal. Both are results, and both are kept.
    Executed(Result<Answer, ErrorCode>),
    /// It had been decided before, at `zxid`: nothing changed; `None` if the result is no longer kept.
    Repeated {
        /// Where it was decided.
        zxid: Zxid,
        /// The kept result.
        result: Option<Result<Answer, ErrorCode>>,
    },
    /// The session is attached elsewhere: nothing changed; that connection is closed.
    Moved,
    /// Its number is not the next: nothing changed; that connection is closed.
    OutOfOrder,
    /// The session is not open.
    Expired,
    /// A session began or moved: the answer to the handshake.
    Attached {
        /// Negotiated, ms.
        timeout_ms: i32,
        /// Highest executed request number; the client repeats from its oldest unanswered.
        last_n: u64,
    },
    /// The session id is taken: draw another.
    IdTaken,
    /// An internal transaction had its say.
    Internal,
}

/// A change that watchers may want to know of, in the order of wire 7.3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeEvent {
    /// What happened: created, deleted or data changed. The change of the parent's children that goes with the first
    /// two is implied.
    pub kind: EventKind,
    /// To which znode.
    pub path: String,
    /// Who may read it: the ACL of the znode (for deletions, the one it had). `None`: everybody.
    pub acl: Option<u32>,
    /// The same of the parent, for the implied change of its children.
    pub parent_acl: Option<u32>,
}

/// What happened to sessions, for the rooms that hold connections and deadlines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// A session began or moved: its only connection is the one of this attach on this server.
    Attached {
        /// Which.
        session: SessionId,
        /// Zxid of the attach.
        attach: Zxid,
        /// Where.
        server: ServerId,
        /// From the transaction.
        nonce: u64,
        /// ms.
        timeout_ms: i32,
        /// Whether it is a gRPC session.
        keeps_results: bool,
    },
    /// The session is over.
    Closed {
        /// Which.
        session: SessionId,
        /// By the leader's clock.
        expired: bool,
    },
}

/// What executing one entry yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How it went.
    pub verdict: Verdict,
    /// Final images, each key once, ascending by (cf, key); the meta row included.
    pub changes: Vec<Change>,
    /// For watchers, in order.
    pub events: Vec<TreeEvent>,
    /// For sessions.
    pub sessions: Vec<SessionEvent>,
    /// Containers and TTL znodes that came, changed or went, for the reaper: paths.
    pub reapable: Vec<String>,
}

/// An entry's payload could not be decoded: it was written by another version, or is not ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("log entry cannot be decoded: {0}")]
pub struct EntryDecodeError(pub String);

impl Txn {
    /// The payload of an entry.
    pub fn encode(&self) -> Bytes {
        codec::encode(self)
    }

    /// Reads a payload back. Total: any bytes give a transaction or an error.
    ///
    /// # Errors
    /// [`EntryDecodeError`] says what is wrong.
    pub fn decode(payload: &Bytes) -> Result<Txn, EntryDecodeError> {
        codec::decode(payload)
    }
}

mod codec {
    use super::{Bytes, EntryDecodeError, Txn};

    pub(super) fn encode(_txn: &Txn) -> Bytes {
        unimplemented!()
    }

    pub(super) fn decode(_payload: &Bytes) -> Result<Txn, EntryDecodeError> {
        unimplemented!()
    }
}
