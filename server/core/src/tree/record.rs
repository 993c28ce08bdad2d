//! What is stored, byte by byte.

use corral_proto::Zxid;

/// The meta row, written in every batch: how far the store is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Last executed entry.
    pub applied: Zxid,
    /// Running hash of the log there.
    pub hash: u64,
    /// Its stamp, ms.
    pub stamp_ms: i64,
    /// Running digest of the tree: the wrapping sum of the digests of all znodes.
    pub digest: u64,
    /// Znodes, the root included.
    pub znodes: u64,
    /// Bytes of paths and data, for `approximate_data_size`.
    pub data_bytes: u64,
    /// Ephemeral znodes.
    pub ephemerals: u64,
    /// Open sessions.
    pub sessions: u64,
    /// Next id for a new ACL list.
    pub next_acl: u32,
}
