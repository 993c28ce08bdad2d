//! What a client can ask of the tree, and the answers. Both front ends translate to and from these.

use bytes::Bytes;
use corral_proto::{Acl, CreateMode, ErrorCode, Id, Stat, Zxid};

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
    /// As a create, but content with a znode that exists already (ClickHouse Keeper).
    CreateIfNotExists(Create),
    /// Deletes a znode and all below it, if these are not too many (ClickHouse Keeper).
    RemoveRecursive {
        /// Which.
        path: String,
        /// Most znodes that may go.
        limit: u32,
    },
}

impl WriteOp {
    /// Bytes of paths and data.
    pub fn bytes(&self) -> usize {
        match self {
            WriteOp::Create(op) | WriteOp::CreateIfNotExists(op) => op.bytes(),
            WriteOp::Delete { path, .. } | WriteOp::SetAcl { path, .. } | WriteOp::RemoveRecursive { path, .. } => {
                path.len()
            }
            WriteOp::SetData { path, data, .. } => path.len() + data.as_ref().map_or(0, Bytes::len),
            WriteOp::Multi(ops) => ops.iter().map(MultiOp::bytes).sum(),
        }
    }
}

impl Create {
    fn bytes(&self) -> usize {
        self.path.len() + self.data.as_ref().map_or(0, Bytes::len)
    }
}

impl MultiOp {
    fn bytes(&self) -> usize {
        match self {
            MultiOp::Create(op) | MultiOp::CreateIfNotExists(op) => op.bytes(),
            MultiOp::Delete { path, .. }
            | MultiOp::Check { path, .. }
            | MultiOp::RemoveRecursive { path, .. }
            | MultiOp::CheckNotExists { path, .. } => path.len(),
            MultiOp::SetData { path, data, .. } => path.len() + data.as_ref().map_or(0, Bytes::len),
        }
    }
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
    /// As [`WriteOp::CreateIfNotExists`].
    CreateIfNotExists(Create),
    /// As [`WriteOp::RemoveRecursive`].
    RemoveRecursive {
        /// Which.
        path: String,
        /// Most znodes that may go.
        limit: u32,
    },
    /// Fails the multi if the znode exists in this version; needs READ if it exists (ClickHouse Keeper).
    CheckNotExists {
        /// Which.
        path: String,
        /// -1: any.
        version: i32,
    },
}

impl MultiOp {
    /// Whether it is one of ClickHouse Keeper's, which only run if the settings say so.
    pub fn is_extension(&self) -> bool {
        matches!(self, MultiOp::CreateIfNotExists(_) | MultiOp::RemoveRecursive { .. } | MultiOp::CheckNotExists { .. })
    }
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
    /// A page of a subtree: what a cache loads ([`super::subtree`]).
    Subtree {
        /// Its top.
        path: String,
        /// How far down.
        depth: Depth,
        /// Behind this path, which the page before gave; empty: from the top.
        after: String,
        /// Data is known up to this zxid, and need not come; `None`: nothing is.
        newer_than: Option<Zxid>,
    },
    /// ClickHouse Keeper's lists.
    List(List),
    /// One of ClickHouse Keeper's requests whose body makes no sense: who does not know these does not read it.
    Unreadable,
    /// [`MultiOp::CheckNotExists`] alone.
    CheckNotExists {
        /// Which.
        path: String,
        /// -1: any.
        version: i32,
    },
}

/// How far down a subtree goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The top alone.
    Node,
    /// And its children.
    Children,
    /// And all below.
    Subtree,
}

/// A znode in a page of a subtree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubtreeNode {
    /// Its path.
    pub path: String,
    /// Of it.
    pub stat: Stat,
    /// Its data.
    pub data: Option<Bytes>,
    /// The data did not come, since it is known already.
    pub is_known: bool,
}

/// Names of children, and more of each if asked (ClickHouse Keeper). With a filter or more than names, READ is needed
/// on every child shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// Of which znode.
    pub path: String,
    /// Which children; `None`: all. `Some(true)`: ephemerals only. `Some(false)`: none of these.
    pub ephemerals: Option<bool>,
    /// Their stats.
    pub with_stat: bool,
    /// Their data.
    pub with_data: bool,
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
    /// As [`ReadOp::Exists`]; ClickHouse Keeper only.
    Exists {
        /// Which.
        path: String,
    },
    /// As [`ReadOp::List`]; ClickHouse Keeper only.
    List(List),
}

impl MultiReadOp {
    /// Whether only ClickHouse Keeper has it, so that it needs the setting.
    pub fn is_extension(&self) -> bool {
        matches!(self, MultiReadOp::Exists { .. } | MultiReadOp::List(_))
    }
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
    /// A page of a subtree.
    Subtree {
        /// Znodes, parents before their children.
        nodes: Vec<SubtreeNode>,
        /// Where the next page begins; `None`: this was the last.
        next: Option<String>,
    },
    /// List; the lists are as long as the names, or empty if they were not asked for.
    Listing {
        /// Names, ascending.
        children: Vec<String>,
        /// Of the znode.
        stat: Stat,
        /// Of the children.
        stats: Vec<Stat>,
        /// Of the children.
        data: Vec<Option<Bytes>>,
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
