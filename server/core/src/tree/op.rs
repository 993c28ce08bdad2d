//! What a client can ask of the tree, and the answers. Both front ends translate to and from these.

use bytes::Bytes;
use corral_proto::{Acl, CreateMode, ErrorCode, Id, Stat};

/// A request that changes the tree: becomes an entry, decided when it is executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOp {
    /// Creates a znode.
    Create(Create),
    /// Deletes a znode without children.
    Delete {
        /// Which.
        path: String,
        /// Expected version; -1: any.
        version: i32,
    },
    /// Replaces the data.
    SetData {
        /// Of which znode.
        path: String,
        /// The data; null and empty are different (wire 1.2).
        data: Option<Bytes>,
        /// Expected version; -1: any.
        version: i32,
    },
    /// Replaces the ACL.
    SetAcl {
        /// Of which znode.
        path: String,
        /// `None`: a null list, refused at execution like an empty one.
        acl: Option<Vec<Acl>>,
        /// Expected ACL version; -1: any.
        version: i32,
    },
    /// All or nothing, under one zxid.
    Multi(Vec<MultiOp>),
}

/// What to create.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Create {
    /// Where; may end in `/` for sequential modes.
    pub path: String,
    /// Data; null and empty are different.
    pub data: Option<Bytes>,
    /// `None`: a null list.
    pub acl: Option<Vec<Acl>>,
    /// Which kind.
    pub mode: CreateMode,
    /// Time to live in ms for TTL modes, else ignored; judged at execution (1..=2^40-1).
    pub ttl_ms: i64,
}

/// One operation of a multi.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MultiOp {
    /// As [`WriteOp::Create`].
    Create(Create),
    /// As [`WriteOp::Delete`].
    Delete {
        /// Which.
        path: String,
        /// Expected version; -1: any.
        version: i32,
    },
    /// As [`WriteOp::SetData`].
    SetData {
        /// Of which znode.
        path: String,
        /// The data.
        data: Option<Bytes>,
        /// Expected version; -1: any.
        version: i32,
    },
    /// Fails the multi unless the znode exists in this version. Needs READ.
    Check {
        /// Which.
        path: String,
        /// Expected version; -1: any.
        version: i32,
    },
}

/// A request that only reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadOp {
    /// Stat of a znode.
    Exists {
        /// Which.
        path: String,
    },
    /// Data and stat.
    GetData {
        /// Of which znode.
        path: String,
    },
    /// ACL and stat.
    GetAcl {
        /// Of which znode.
        path: String,
    },
    /// Names of the children and stat.
    GetChildren {
        /// Of which znode.
        path: String,
    },
    /// Several reads at one zxid, each with its own result (wire 3.4).
    MultiRead(Vec<MultiReadOp>),
    /// Paths of the session's ephemerals that start with a text.
    GetEphemerals {
        /// Plain prefix.
        prefix: String,
    },
    /// Number of descendants.
    CountDescendants {
        /// Of which znode.
        path: String,
    },
}

/// One read of a multi-read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MultiReadOp {
    /// As [`ReadOp::GetData`].
    GetData {
        /// Of which znode.
        path: String,
    },
    /// As [`ReadOp::GetChildren`].
    GetChildren {
        /// Of which znode.
        path: String,
    },
}

/// The answer to a successful request. What of it goes on the wire is the front end's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Create.
    Created {
        /// Full path, number included.
        path: String,
        /// The new znode's.
        stat: Stat,
    },
    /// Delete, check.
    Done,
    /// Set data, set ACL, exists.
    Stat(Stat),
    /// Get data.
    Data {
        /// The data.
        data: Option<Bytes>,
        /// Of the znode.
        stat: Stat,
    },
    /// Get ACL.
    Acl {
        /// As stored, digests masked for readers without ADMIN.
        acl: Vec<Acl>,
        /// Of the znode.
        stat: Stat,
    },
    /// Get children.
    Children {
        /// Names, ascending.
        children: Vec<String>,
        /// Of the znode.
        stat: Stat,
    },
    /// A multi that was done: one answer per operation.
    Multi(Vec<Answer>),
    /// A multi that was not: the operation that failed, and why. Earlier ones report 0, later ones -2.
    MultiFailed {
        /// How many operations there were.
        ops: usize,
        /// Index of the one that failed.
        failed: usize,
        /// Why.
        error: ErrorCode,
    },
    /// Multi-read: one result per read.
    MultiRead(Vec<Result<Answer, ErrorCode>>),
    /// Ephemerals.
    Paths(Vec<String>),
    /// Count.
    Count(u64),
    /// Who am I.
    Ids(Vec<Id>),
    /// SASL: the server's token; `None` where it has nothing to say.
    Token(Option<Bytes>),
}
