//! The nouns of the service: [`Zxid`], [`ServerId`], [`SessionId`], [`Stat`], [`Acl`], [`CreateMode`],
//! [`WatchedEvent`].

use std::fmt;

use serde::{Deserialize, Serialize};

/// A transaction id: epoch in the high 32 bits, counter in the low 32; total order is integer order.
///
/// `Display` is what users see (`0x500000003`), `Debug` what we read in tests (`5:3`).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Zxid(pub u64);

impl Zxid {
    /// Before every entry.
    pub const ZERO: Zxid = Zxid(0);
    /// After every entry.
    pub const MAX: Zxid = Zxid(u64::MAX);

    /// The `counter`-th entry of `epoch`. Counter 0 is the entry that opens the epoch (P15).
    pub const fn new(epoch: u32, counter: u32) -> Zxid {
        Zxid(((epoch as u64) << 32) | counter as u64)
    }

    /// The epoch whose leader gave out this id.
    pub const fn epoch(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The place inside its epoch.
    pub const fn counter(self) -> u32 {
        self.0 as u32
    }

    /// The id as ZooKeeper's records carry it.
    pub const fn as_i64(self) -> i64 {
        self.0 as i64
    }

    /// An id from a record; negative values mean "none" there and become [`Zxid::ZERO`].
    pub const fn from_i64(value: i64) -> Zxid {
        if value < 0 { Zxid::ZERO } else { Zxid(value as u64) }
    }
}

impl fmt::Display for Zxid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Zxid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch(), self.counter())
    }
}

/// The number of a server in its ensemble (`myid`): 1 to 254.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServerId(pub u64);

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// The id of a session: positive, unique for ever. 0 stands for "no session".
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub i64);

impl SessionId {
    /// No session: entries that the ensemble makes for itself.
    pub const NONE: SessionId = SessionId(0);
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What clients see of a znode beside its data (wire 5.1). Fields carry ZooKeeper's names and widths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stat {
    /// Zxid of the creation.
    pub czxid: i64,
    /// Zxid of the last change of the data.
    pub mzxid: i64,
    /// Time of the creation: milliseconds since the Unix epoch, the leader's clock.
    pub ctime: i64,
    /// Time of the last change of the data: as `ctime`.
    pub mtime: i64,
    /// Number of changes of the data.
    pub version: i32,
    /// Number of creations and deletions of children: `2 * creates - num_children`, wrapping.
    pub cversion: i32,
    /// Number of changes of the ACL.
    pub aversion: i32,
    /// Session that owns an ephemeral znode; 0 for every other kind.
    pub ephemeral_owner: i64,
    /// Bytes of data; 0 for null data too.
    pub data_length: i32,
    /// Direct children.
    pub num_children: i32,
    /// Zxid of the last creation or deletion of a child; `czxid` before the first.
    pub pzxid: i64,
}

/// Permission bits of an [`Acl`] (wire 6.2).
pub mod perms {
    /// Read data, list children.
    pub const READ: i32 = 1;
    /// Set data.
    pub const WRITE: i32 = 2;
    /// Create children.
    pub const CREATE: i32 = 4;
    /// Delete children.
    pub const DELETE: i32 = 8;
    /// Set the ACL.
    pub const ADMIN: i32 = 16;
    /// All of them.
    pub const ALL: i32 = 31;
}

/// Who: an identity of a connection, or the subject of an [`Acl`].
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Id {
    /// `world`, `digest`, `ip`, `x509`, `sasl`, `super`, or `auth` in a request.
    pub scheme: String,
    /// The name inside the scheme.
    pub id: String,
}

impl Id {
    /// An identity of `scheme`.
    pub fn new(scheme: impl Into<String>, id: impl Into<String>) -> Id {
        Id { scheme: scheme.into(), id: id.into() }
    }
}

/// One line of an access control list.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Acl {
    /// Bits of [`perms`], stored as given.
    pub perms: i32,
    /// Whom they are granted to.
    pub id: Id,
}

impl Acl {
    /// `world:anyone:cdrwa`, ZooKeeper's `OPEN_ACL_UNSAFE`.
    pub fn open() -> Vec<Acl> {
        vec![Acl { perms: perms::ALL, id: Id::new("world", "anyone") }]
    }

    /// `world:anyone:r`, ZooKeeper's `READ_ACL_UNSAFE`.
    pub fn read_only() -> Vec<Acl> {
        vec![Acl { perms: perms::READ, id: Id::new("world", "anyone") }]
    }

    /// `auth::cdrwa`, ZooKeeper's `CREATOR_ALL_ACL`: whoever the creating connection is.
    pub fn creator_all() -> Vec<Acl> {
        vec![Acl { perms: perms::ALL, id: Id::new("auth", "") }]
    }
}

/// The kind of a new znode, with ZooKeeper's flag values (wire 3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CreateMode {
    /// Stays until deleted.
    #[default]
    Persistent = 0,
    /// Deleted with its session; has no children.
    Ephemeral = 1,
    /// Persistent; its name gets the parent's next number.
    PersistentSequential = 2,
    /// Ephemeral; its name gets the parent's next number.
    EphemeralSequential = 3,
    /// Reaped some time after its last child went.
    Container = 4,
    /// Reaped some time after it was last modified, if it has no children.
    PersistentWithTtl = 5,
    /// As `PersistentWithTtl`; its name gets the parent's next number.
    PersistentSequentialWithTtl = 6,
}

impl CreateMode {
    /// The mode of a request's flag word, if there is one.
    pub const fn from_flags(flags: i32) -> Option<CreateMode> {
        Some(match flags {
            0 => CreateMode::Persistent,
            1 => CreateMode::Ephemeral,
            2 => CreateMode::PersistentSequential,
            3 => CreateMode::EphemeralSequential,
            4 => CreateMode::Container,
            5 => CreateMode::PersistentWithTtl,
            6 => CreateMode::PersistentSequentialWithTtl,
            _ => return None,
        })
    }

    /// The flag word of a request.
    pub const fn flags(self) -> i32 {
        self as i32
    }

    /// Whether the name gets a number.
    pub const fn is_sequential(self) -> bool {
        matches!(
            self,
            CreateMode::PersistentSequential
                | CreateMode::EphemeralSequential
                | CreateMode::PersistentSequentialWithTtl
        )
    }

    /// Whether the znode dies with its session.
    pub const fn is_ephemeral(self) -> bool {
        matches!(self, CreateMode::Ephemeral | CreateMode::EphemeralSequential)
    }

    /// Whether the znode has a time to live.
    pub const fn is_ttl(self) -> bool {
        matches!(self, CreateMode::PersistentWithTtl | CreateMode::PersistentSequentialWithTtl)
    }
}

/// What a watch event says (wire 7.2), with ZooKeeper's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EventKind {
    /// The znode came to be.
    NodeCreated = 1,
    /// The znode is gone.
    NodeDeleted = 2,
    /// Its data was set.
    NodeDataChanged = 3,
    /// A child was created or deleted.
    NodeChildrenChanged = 4,
}

impl EventKind {
    /// ZooKeeper's number of the event.
    pub const fn code(self) -> i32 {
        self as i32
    }

    /// The event of ZooKeeper's number.
    pub const fn from_code(code: i32) -> Option<EventKind> {
        Some(match code {
            1 => EventKind::NodeCreated,
            2 => EventKind::NodeDeleted,
            3 => EventKind::NodeDataChanged,
            4 => EventKind::NodeChildrenChanged,
            _ => return None,
        })
    }
}

/// A watch event: what happened to which path under which zxid.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WatchedEvent {
    /// What happened.
    pub kind: EventKind,
    /// To which znode.
    pub path: String,
    /// The entry that did it; `None` for events made up by a re-registration (wire 7.8).
    pub zxid: Option<Zxid>,
}

/// Which watch a client asks for (wire 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum WatchKind {
    /// One-shot on the znode itself: created, deleted, data changed.
    Data,
    /// One-shot on its list of children, and its deletion.
    Child,
    /// Never consumed; both of the above.
    Persistent,
    /// Never consumed; created, deleted, data changed of the znode and all below it.
    PersistentRecursive,
}
