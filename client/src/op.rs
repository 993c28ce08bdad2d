//! What a client asks and what it gets: the public arguments and results, and the requests as the session keeps them.

use std::time::Duration;

use bytes::Bytes;
use corral_proto::{Acl, CreateMode, ErrorCode, Id, Stat, WatchKind, Zxid};

use crate::feeds::WatchMode;
use crate::watches::SetWatches;

/// Data of a znode: bytes, or null. Null and empty are different in ZooKeeper's model, and `()` stands for null.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Data(pub Option<Bytes>);

impl From<()> for Data {
    fn from((): ()) -> Data {
        Data(None)
    }
}
impl From<Bytes> for Data {
    fn from(bytes: Bytes) -> Data {
        Data(Some(bytes))
    }
}
impl From<Option<Bytes>> for Data {
    fn from(bytes: Option<Bytes>) -> Data {
        Data(bytes)
    }
}
impl From<Vec<u8>> for Data {
    fn from(bytes: Vec<u8>) -> Data {
        Data(Some(bytes.into()))
    }
}
impl From<String> for Data {
    fn from(text: String) -> Data {
        Data(Some(text.into()))
    }
}
impl From<&str> for Data {
    fn from(text: &str) -> Data {
        Data(Some(Bytes::copy_from_slice(text.as_bytes())))
    }
}
impl From<&String> for Data {
    fn from(text: &String) -> Data {
        Data::from(text.as_str())
    }
}
impl From<&[u8]> for Data {
    fn from(bytes: &[u8]) -> Data {
        Data(Some(Bytes::copy_from_slice(bytes)))
    }
}
impl<const N: usize> From<&[u8; N]> for Data {
    fn from(bytes: &[u8; N]) -> Data {
        Data::from(bytes.as_slice())
    }
}

/// How to create a znode: kind, ACL, time to live.
///
/// A [`CreateMode`] alone is enough where everybody may do everything: `client.create("/a", "x", CreateMode::Ephemeral)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Which kind of znode.
    pub mode: CreateMode,
    /// Who may do what. Default: everybody everything.
    pub acl: Vec<Acl>,
    /// Time to live for the TTL modes: whole milliseconds, 1 ms up to 2^40 - 1 ms. Others must not have one.
    pub ttl: Option<Duration>,
}

impl CreateOptions {
    /// Options with an open ACL and no time to live.
    pub fn new(mode: CreateMode) -> CreateOptions {
        CreateOptions { mode, acl: Acl::open(), ttl: None }
    }

    /// With this ACL.
    pub fn acl(mut self, acl: Vec<Acl>) -> CreateOptions {
        self.acl = acl;
        self
    }

    /// With this time to live.
    pub fn ttl(mut self, ttl: Duration) -> CreateOptions {
        self.ttl = Some(ttl);
        self
    }
}

impl Default for CreateOptions {
    fn default() -> CreateOptions {
        CreateOptions::new(CreateMode::Persistent)
    }
}

impl From<CreateMode> for CreateOptions {
    fn from(mode: CreateMode) -> CreateOptions {
        CreateOptions::new(mode)
    }
}

/// A znode that was created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// Its path, with the number of a sequential one.
    pub path: String,
    /// Its Stat.
    pub stat: Stat,
    /// The entry that created it; `stat.czxid` says the same.
    pub zxid: Zxid,
}

impl Created {
    /// The last component of the path.
    pub fn name(&self) -> &str {
        corral_proto::path::name(&self.path)
    }
}

/// Data and Stat of a znode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The data; `None` for null.
    pub data: Option<Bytes>,
    /// The Stat.
    pub stat: Stat,
    /// The state that was read: with this, [`Consistency::AtLeast`] on another client sees the same or later.
    pub zxid: Zxid,
}

impl Node {
    /// The data, null read as empty.
    pub fn bytes(&self) -> &[u8] {
        self.data.as_deref().unwrap_or_default()
    }
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Never older than what this session saw, and after all its earlier requests. The cheapest: asks nobody else.
    #[default]
    Local,
    /// Also not before this zxid was applied by the server.
    AtLeast(Zxid),
    /// Also not older than any answer given to anybody before the call.
    Linearizable,
}

/// Operations that are done all together, under one zxid, or not at all.
///
/// ```
/// use corral_client::{CreateMode, Transaction};
/// let move_it = Transaction::new()
///     .check("/lock/holder", Some(0))
///     .create("/new", "data", CreateMode::Persistent)
///     .delete("/old", Some(3));
/// assert_eq!(move_it.len(), 3);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    pub(crate) ops: Vec<MultiOp>,
}

impl Transaction {
    /// Nothing yet.
    pub fn new() -> Transaction {
        Transaction::default()
    }

    /// Creates a znode.
    pub fn create(mut self, path: &str, data: impl Into<Data>, options: impl Into<CreateOptions>) -> Transaction {
        self.ops.push(MultiOp::Create { path: path.to_owned(), data: data.into().0, options: options.into() });
        self
    }

    /// Deletes a znode. `None`: whatever its version.
    pub fn delete(mut self, path: &str, version: Option<i32>) -> Transaction {
        self.ops.push(MultiOp::Delete { path: path.to_owned(), version: version.unwrap_or(ANY_VERSION) });
        self
    }

    /// Replaces data. `None`: whatever its version.
    pub fn set(mut self, path: &str, data: impl Into<Data>, version: Option<i32>) -> Transaction {
        self.ops.push(MultiOp::SetData {
            path: path.to_owned(),
            data: data.into().0,
            version: version.unwrap_or(ANY_VERSION),
        });
        self
    }

    /// Goes on only if the znode exists, in this version. `None`: in any.
    pub fn check(mut self, path: &str, version: Option<i32>) -> Transaction {
        self.ops.push(MultiOp::Check { path: path.to_owned(), version: version.unwrap_or(ANY_VERSION) });
        self
    }

    /// All operations of `other`, after these.
    pub fn and(mut self, other: Transaction) -> Transaction {
        self.ops.extend(other.ops);
        self
    }

    /// How many operations.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

/// What one operation of a [`Transaction`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResult {
    /// A create.
    Created(Created),
    /// A set: the new Stat.
    Set(Stat),
    /// A delete.
    Deleted,
    /// A check.
    Checked,
}

/// One read of [`Client::multi_read`](crate::Client::multi_read).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadRequest {
    /// Data and Stat of this path.
    Get(String),
    /// Names of the children of this path.
    GetChildren(String),
}

/// What one read of [`Client::multi_read`](crate::Client::multi_read) found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadResult {
    /// Data and Stat.
    Node(Node),
    /// Names of the children, ascending.
    Children(Vec<String>),
}

/// In a request: whatever the version.
pub(crate) const ANY_VERSION: i32 = -1;

/// One operation of a multi, with the caller's path first and the server's once it is queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MultiOp {
    Create { path: String, data: Option<Bytes>, options: CreateOptions },
    Delete { path: String, version: i32 },
    SetData { path: String, data: Option<Bytes>, version: i32 },
    Check { path: String, version: i32 },
}

impl MultiOp {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            MultiOp::Create { .. } => "create",
            MultiOp::Delete { .. } => "delete",
            MultiOp::SetData { .. } => "set",
            MultiOp::Check { .. } => "check",
        }
    }

    pub(crate) fn path(&self) -> &str {
        match self {
            MultiOp::Create { path, .. }
            | MultiOp::Delete { path, .. }
            | MultiOp::SetData { path, .. }
            | MultiOp::Check { path, .. } => path,
        }
    }

    pub(crate) fn path_mut(&mut self) -> &mut String {
        match self {
            MultiOp::Create { path, .. }
            | MultiOp::Delete { path, .. }
            | MultiOp::SetData { path, .. }
            | MultiOp::Check { path, .. } => path,
        }
    }
}

/// A request, with paths as the server knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Create { path: String, data: Option<Bytes>, options: CreateOptions },
    Delete { path: String, version: i32 },
    SetData { path: String, data: Option<Bytes>, version: i32 },
    SetAcl { path: String, acl: Vec<Acl>, version: i32 },
    Multi(Vec<MultiOp>),
    CloseSession,
    Exists { path: String },
    GetData { path: String },
    GetAcl { path: String },
    GetChildren { path: String, with_stat: bool },
    MultiRead(Vec<ReadRequest>),
    GetEphemerals { prefix: String },
    CountDescendants { path: String },
    WhoAmI,
    Ping,
    Sync { path: String },
    AddAuth { scheme: String, auth: Bytes },
    Subscribe { name: u64, path: String, mode: WatchMode, with_nodes: bool, after: Option<Zxid> },
    Unsubscribe { name: u64 },
    GetSubtree { path: String, depth: WatchMode, after: String, newer_than: Option<Zxid> },
    RemoveWatch { path: String, kind: WatchKind },
    SetWatches(SetWatches),
}

/// What a request costs beside its variable parts: tags, numbers, ids. An upper bound, in bytes.
const OVERHEAD: usize = 64;
/// What the result of one write costs a server that must keep it, beside the path: Stat, code, zxid, in bytes.
const RESULT_OVERHEAD: usize = 160;

impl Op {
    /// Whether it becomes an entry, and so carries a number.
    pub(crate) fn is_write(&self) -> bool {
        matches!(
            self,
            Op::Create { .. }
                | Op::Delete { .. }
                | Op::SetData { .. }
                | Op::SetAcl { .. }
                | Op::Multi(_)
                | Op::CloseSession
        )
    }

    /// The name in messages for people.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Op::Create { .. } => "create",
            Op::Delete { .. } => "delete",
            Op::SetData { .. } => "set",
            Op::SetAcl { .. } => "set acl",
            Op::Multi(_) => "multi",
            Op::CloseSession => "close",
            Op::Exists { .. } => "exists",
            Op::GetData { .. } => "get",
            Op::GetAcl { .. } => "get acl",
            Op::GetChildren { .. } => "get children",
            Op::MultiRead(_) => "multi read",
            Op::GetEphemerals { .. } => "get ephemerals",
            Op::CountDescendants { .. } => "count descendants",
            Op::WhoAmI => "whoami",
            Op::Ping => "ping",
            Op::Sync { .. } => "sync",
            Op::AddAuth { .. } => "add auth",
            Op::Subscribe { .. } => "watch",
            Op::Unsubscribe { .. } => "end watch",
            Op::GetSubtree { .. } => "get subtree",
            Op::RemoveWatch { .. } => "remove watch",
            Op::SetWatches(_) => "set watches",
        }
    }

    /// The path it is about, if it is about one.
    pub(crate) fn path(&self) -> Option<&str> {
        match self {
            Op::Create { path, .. }
            | Op::Delete { path, .. }
            | Op::SetData { path, .. }
            | Op::SetAcl { path, .. }
            | Op::Exists { path }
            | Op::GetData { path }
            | Op::GetAcl { path }
            | Op::GetChildren { path, .. }
            | Op::CountDescendants { path }
            | Op::Sync { path }
            | Op::Subscribe { path, .. }
            | Op::GetSubtree { path, .. }
            | Op::RemoveWatch { path, .. } => Some(path),
            Op::GetEphemerals { prefix } => Some(prefix),
            Op::Multi(_)
            | Op::CloseSession
            | Op::MultiRead(_)
            | Op::WhoAmI
            | Op::Ping
            | Op::AddAuth { .. }
            | Op::Unsubscribe { .. }
            | Op::SetWatches(_) => None,
        }
    }

    /// An upper bound of its size on the wire, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let data = |data: &Option<Bytes>| data.as_ref().map_or(0, Bytes::len);
        let acl = |acl: &[Acl]| acl.iter().map(|a| a.id.scheme.len() + a.id.id.len() + 32).sum::<usize>();
        let variable = match self {
            Op::Create { data: d, options, .. } => data(d) + acl(&options.acl),
            Op::SetData { data: d, .. } => data(d),
            Op::SetAcl { acl: list, .. } => acl(list),
            Op::Multi(ops) => ops
                .iter()
                .map(|op| {
                    OVERHEAD
                        + op.path().len()
                        + match op {
                            MultiOp::Create { data: d, options, .. } => data(d) + acl(&options.acl),
                            MultiOp::SetData { data: d, .. } => data(d),
                            MultiOp::Delete { .. } | MultiOp::Check { .. } => 0,
                        }
                })
                .sum(),
            Op::MultiRead(reads) => reads
                .iter()
                .map(|read| match read {
                    ReadRequest::Get(path) | ReadRequest::GetChildren(path) => OVERHEAD + path.len(),
                })
                .sum(),
            Op::AddAuth { scheme, auth } => scheme.len() + auth.len(),
            Op::SetWatches(set) => set.bytes(),
            Op::GetSubtree { after, .. } => after.len(),
            _ => 0,
        };
        OVERHEAD + self.path().map_or(0, str::len) + variable
    }

    /// What the server must keep of its result until this client says that it was answered (P31), in bytes, at most.
    pub(crate) fn result_bytes(&self) -> usize {
        match self {
            Op::Create { path, .. } => RESULT_OVERHEAD + path.len(),
            Op::Multi(ops) => RESULT_OVERHEAD + ops.iter().map(|op| RESULT_OVERHEAD + op.path().len()).sum::<usize>(),
            op if op.is_write() => RESULT_OVERHEAD,
            _ => 0,
        }
    }
}

/// A successful answer, with paths as the server knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Created {
        path: String,
        stat: Stat,
    },
    Done,
    Stat(Stat),
    Data {
        data: Option<Bytes>,
        stat: Stat,
    },
    Acl {
        acl: Vec<Acl>,
        stat: Stat,
    },
    Children {
        children: Vec<String>,
        stat: Stat,
    },
    /// Of a multi or a multi-read: one for each operation.
    Multi(Vec<Result<Answer, ErrorCode>>),
    Paths(Vec<String>),
    Count(u64),
    Ids(Vec<Id>),
    Subtree(SubtreePage),
}

/// A page of a subtree: [`Client::subtree`](crate::Client::subtree).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubtreePage {
    /// Znodes, parents before their children.
    pub nodes: Vec<SubtreeNode>,
    /// Where the next page begins; `None`: this was the last.
    pub next: Option<String>,
    /// The state that was read.
    pub zxid: Zxid,
}

/// A znode in it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubtreeNode {
    /// Its path.
    pub path: String,
    /// Its Stat.
    pub stat: Stat,
    /// Its data; `None` for null.
    pub data: Option<Bytes>,
    /// The data is known already, and did not come.
    pub(crate) is_known: bool,
}
