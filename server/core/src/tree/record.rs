//! What is stored, byte by byte. Numbers are little-endian; every record starts with its version byte.
//!
//! Decoding is total: bytes that are no record give `None`, and whoever asked treats the row as absent. That never
//! happens on a sound disk (RocksDB checks its blocks), so it is a rule for tests, not a recovery.

use std::ops::RangeInclusive;

use bytes::{BufMut, Bytes, BytesMut};
use corral_proto::{ErrorCode, ServerId, SessionId, Stat, Zxid};

use super::op::Answer;
use super::{Cf, TreeView, key};

/// Data of more bytes sits in [`Cf::Data`], so that a parent's record stays small.
pub const INLINE_DATA_MAX: usize = 1024;

/// Version byte of all records.
pub(crate) const VERSION: u8 = 1;

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
    /// Quotas ([`super::quota`]); a write looks for its own only if there are any.
    pub quotas: u32,
}

/// Version byte of the meta row: version 1 knew of no quotas.
const META_VERSION: u8 = 2;

impl Meta {
    /// The row's value.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(73);
        out.put_u8(META_VERSION);
        out.put_u64_le(self.applied.0);
        out.put_u64_le(self.hash);
        out.put_i64_le(self.stamp_ms);
        out.put_u64_le(self.digest);
        out.put_u64_le(self.znodes);
        out.put_u64_le(self.data_bytes);
        out.put_u64_le(self.ephemerals);
        out.put_u64_le(self.sessions);
        out.put_u32_le(self.next_acl);
        out.put_u32_le(self.quotas);
        Bytes::from(out)
    }

    /// Reads a row's value back.
    pub fn decode(value: &[u8]) -> Option<Meta> {
        let mut from = Reader::of(value, VERSION..=META_VERSION)?;
        let meta = Meta {
            applied: Zxid(from.u64()?),
            hash: from.u64()?,
            stamp_ms: from.i64()?,
            digest: from.u64()?,
            znodes: from.u64()?,
            data_bytes: from.u64()?,
            ephemerals: from.u64()?,
            sessions: from.u64()?,
            next_acl: from.u32()?,
            quotas: if value.first() == Some(&META_VERSION) { from.u32()? } else { 0 },
        };
        from.end(meta)
    }

    /// The row of a view; `None` in an empty store.
    pub fn read(view: &impl TreeView) -> Option<Meta> {
        Meta::decode(&view.get(Cf::Aux, key::META)?)
    }
}

/// To whom or what a znode owes its life (wire 5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Stays until deleted.
    Persistent,
    /// Dies with the session.
    Ephemeral(SessionId),
    /// Reaped when its last child is gone.
    Container,
    /// Reaped when it has no children and was not modified for so many ms.
    Ttl(i64),
}

/// A znode's data, as far as its record knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// None; not the same as no bytes (wire 1.2).
    Null,
    /// In the record: at most [`INLINE_DATA_MAX`] bytes.
    Inline(Bytes),
    /// In [`Cf::Data`] under the same key. The hash stands for the bytes in the tree's digest.
    External {
        /// Bytes.
        len: u32,
        /// XXH3 of them.
        hash: u64,
    },
}

impl Stored {
    /// Where data belongs: the record's part, and the row of [`Cf::Data`] if it is too large for that.
    pub fn of(data: Option<&Bytes>) -> Stored {
        match data {
            None => Stored::Null,
            Some(bytes) if bytes.len() <= INLINE_DATA_MAX => Stored::Inline(bytes.clone()),
            Some(bytes) => Stored::External { len: bytes.len() as u32, hash: xxhash_rust::xxh3::xxh3_64(bytes) },
        }
    }

    /// Bytes of data; 0 for null.
    pub fn len(&self) -> usize {
        match self {
            Stored::Null => 0,
            Stored::Inline(bytes) => bytes.len(),
            Stored::External { len, .. } => *len as usize,
        }
    }

    /// Whether there is not one byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A znode's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRec {
    /// Zxid of the creation.
    pub czxid: Zxid,
    /// Zxid of the last change of the data.
    pub mzxid: Zxid,
    /// Zxid of the last creation or deletion of a child.
    pub pzxid: Zxid,
    /// Stamp of the creation, ms.
    pub ctime: i64,
    /// Stamp of the last change of the data, ms.
    pub mtime: i64,
    /// Children created ever, and the number of the next sequential one. Wider than the wire's 32 bits, so that it
    /// never wraps: a number past `i32::MAX` is refused instead.
    pub creates: u64,
    /// Kind.
    pub owner: Owner,
    /// Changes of the data; never -1.
    pub version: i32,
    /// Changes of the ACL; never -1, but for `/zookeeper/config`.
    pub aversion: i32,
    /// Id of the ACL list; 0: open to everybody.
    pub acl: u32,
    /// Direct children.
    pub num_children: u32,
    /// Data.
    pub data: Stored,
}

/// Bytes of a record before its data.
const HEADER: usize = 80;
const FLAG_NULL: u8 = 1;
const FLAG_EXTERNAL: u8 = 2;

impl NodeRec {
    /// The record's bytes.
    pub fn encode(&self) -> Bytes {
        let (flag, inline): (u8, &[u8]) = match &self.data {
            Stored::Null => (FLAG_NULL, &[]),
            Stored::Inline(bytes) => (0, bytes),
            Stored::External { .. } => (FLAG_EXTERNAL, &[]),
        };
        let (kind, owner) = match self.owner {
            Owner::Persistent => (0, 0),
            Owner::Ephemeral(session) => (1, session.0),
            Owner::Container => (2, 0),
            Owner::Ttl(ms) => (3, ms),
        };
        let mut out = Vec::with_capacity(HEADER + inline.len().max(8));
        out.put_u8(VERSION);
        out.put_u8(flag);
        out.put_u8(kind);
        out.put_u8(0);
        out.put_u32_le(self.acl);
        out.put_u64_le(self.czxid.0);
        out.put_u64_le(self.mzxid.0);
        out.put_u64_le(self.pzxid.0);
        out.put_i64_le(self.ctime);
        out.put_i64_le(self.mtime);
        out.put_u64_le(self.creates);
        out.put_i64_le(owner);
        out.put_i32_le(self.version);
        out.put_i32_le(self.aversion);
        out.put_u32_le(self.num_children);
        out.put_u32_le(self.data.len() as u32);
        match &self.data {
            Stored::External { hash, .. } => out.put_u64_le(*hash),
            _ => out.extend_from_slice(inline),
        }
        Bytes::from(out)
    }

    /// Reads a record back; its inline data shares the bytes.
    pub fn decode(value: &Bytes) -> Option<NodeRec> {
        let mut from = Reader::versioned(value)?;
        let flag = from.u8()?;
        let kind = from.u8()?;
        from.u8()?;
        let acl = from.u32()?;
        let czxid = Zxid(from.u64()?);
        let mzxid = Zxid(from.u64()?);
        let pzxid = Zxid(from.u64()?);
        let ctime = from.i64()?;
        let mtime = from.i64()?;
        let creates = from.u64()?;
        let owner = from.i64()?;
        let owner = match kind {
            0 => Owner::Persistent,
            1 => Owner::Ephemeral(SessionId(owner)),
            2 => Owner::Container,
            3 => Owner::Ttl(owner),
            _ => return None,
        };
        let version = from.i32()?;
        let aversion = from.i32()?;
        let num_children = from.u32()?;
        let len = from.u32()?;
        let data = match flag {
            FLAG_NULL if len == 0 => Stored::Null,
            0 if value.len() == HEADER + len as usize => Stored::Inline(value.slice(HEADER..)),
            FLAG_EXTERNAL => Stored::External { len, hash: from.u64()? },
            _ => return None,
        };
        Some(NodeRec { czxid, mzxid, pzxid, ctime, mtime, creates, owner, version, aversion, acl, num_children, data })
    }

    /// Bytes of data of the znode with this record; 0 for bytes that are none.
    pub(crate) fn data_len(record: &[u8]) -> u32 {
        let len = record.get(HEADER - 4..HEADER).and_then(|len| len.try_into().ok());
        len.map_or(0, u32::from_le_bytes)
    }

    /// What clients see (wire 5.1).
    pub fn stat(&self) -> Stat {
        Stat {
            czxid: self.czxid.as_i64(),
            mzxid: self.mzxid.as_i64(),
            ctime: self.ctime,
            mtime: self.mtime,
            version: self.version,
            // Every creation and every deletion of a child adds one; 32 bits, wrapping.
            cversion: (self.creates.wrapping_mul(2) as i32).wrapping_sub(self.num_children as i32),
            aversion: self.aversion,
            ephemeral_owner: match self.owner {
                Owner::Ephemeral(session) => session.0,
                _ => 0,
            },
            data_length: self.data.len() as i32,
            num_children: self.num_children as i32,
            pzxid: self.pzxid.as_i64(),
        }
    }

    /// Its part of the tree's digest.
    pub fn digest(key: &[u8], record: &[u8]) -> u64 {
        use xxhash_rust::xxh3::xxh3_64;
        let mut both = [0; 16];
        both[..8].copy_from_slice(&xxh3_64(key).to_le_bytes());
        both[8..].copy_from_slice(&xxh3_64(record).to_le_bytes());
        xxh3_64(&both)
    }
}

/// A session's row (P29, P31).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionRow {
    /// Negotiated, ms.
    pub timeout_ms: i32,
    /// Results are kept for retries (gRPC), and numbers go on over attaches.
    pub keeps_results: bool,
    /// Ephemerals it owns.
    pub ephemerals: u32,
    /// Zxid of its creation.
    pub created: Zxid,
    /// Nonce of its creation.
    pub created_nonce: u64,
    /// Zxid of the last attach, or of the creation: what its transactions must carry.
    pub attach: Zxid,
    /// Nonce of that.
    pub nonce: u64,
    /// Where its connection is.
    pub server: ServerId,
    /// Highest executed request number: of the session (gRPC), of the attach (ZooKeeper protocol).
    pub last_n: u64,
    /// No result below this number is kept.
    pub results_from: u64,
    /// Bytes of kept results.
    pub result_bytes: u64,
}

impl SessionRow {
    /// The row's value.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(74);
        out.put_u8(VERSION);
        out.put_u8(u8::from(self.keeps_results));
        out.put_i32_le(self.timeout_ms);
        out.put_u32_le(self.ephemerals);
        out.put_u64_le(self.created.0);
        out.put_u64_le(self.created_nonce);
        out.put_u64_le(self.attach.0);
        out.put_u64_le(self.nonce);
        out.put_u64_le(self.server.0);
        out.put_u64_le(self.last_n);
        out.put_u64_le(self.results_from);
        out.put_u64_le(self.result_bytes);
        Bytes::from(out)
    }

    /// Reads a row's value back.
    pub fn decode(value: &[u8]) -> Option<SessionRow> {
        let mut from = Reader::versioned(value)?;
        let row = SessionRow {
            keeps_results: from.u8()? != 0,
            timeout_ms: from.i32()?,
            ephemerals: from.u32()?,
            created: Zxid(from.u64()?),
            created_nonce: from.u64()?,
            attach: Zxid(from.u64()?),
            nonce: from.u64()?,
            server: ServerId(from.u64()?),
            last_n: from.u64()?,
            results_from: from.u64()?,
            result_bytes: from.u64()?,
        };
        from.end(row)
    }
}

/// How far the writes of one server's local sessions are executed (P29, P31): what a session's row is to its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarrierRow {
    /// Nonce of its opening.
    pub nonce: u64,
    /// Zxid of its opening: what the writes must carry.
    pub attach: Zxid,
    /// Number of the last executed write.
    pub last_n: u64,
}

impl CarrierRow {
    /// The row's value.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(25);
        out.put_u8(VERSION);
        out.put_u64_le(self.nonce);
        out.put_u64_le(self.attach.0);
        out.put_u64_le(self.last_n);
        Bytes::from(out)
    }

    /// Reads a row's value back.
    pub fn decode(value: &[u8]) -> Option<CarrierRow> {
        let mut from = Reader::versioned(value)?;
        let row = CarrierRow { nonce: from.u64()?, attach: Zxid(from.u64()?), last_n: from.u64()? };
        from.end(row)
    }
}

/// The kept result of a write: where it was decided, and how. `None` for answers that no write gives.
pub fn encode_result(zxid: Zxid, result: &Result<Answer, ErrorCode>) -> Option<Bytes> {
    let mut out = BytesMut::with_capacity(128);
    out.put_u8(VERSION);
    out.put_u64_le(zxid.0);
    match result {
        Err(error) => {
            out.put_u8(RESULT_ERROR);
            out.put_i32_le(error.code());
        }
        Ok(answer) => encode_answer(&mut out, answer, true)?,
    }
    Some(out.freeze())
}

/// Reads a kept result back.
pub fn decode_result(value: &[u8]) -> Option<(Zxid, Result<Answer, ErrorCode>)> {
    let mut from = Reader::versioned(value)?;
    let zxid = Zxid(from.u64()?);
    let result = match from.u8()? {
        RESULT_ERROR => Err(ErrorCode::from_code(from.i32()?)?),
        tag => Ok(decode_answer(&mut from, tag, true)?),
    };
    from.end((zxid, result))
}

const RESULT_ERROR: u8 = 0;
const RESULT_DONE: u8 = 1;
const RESULT_CREATED: u8 = 2;
const RESULT_STAT: u8 = 3;
const RESULT_MULTI: u8 = 4;
const RESULT_MULTI_FAILED: u8 = 5;

fn encode_answer(out: &mut BytesMut, answer: &Answer, outer: bool) -> Option<()> {
    match answer {
        Answer::Done => out.put_u8(RESULT_DONE),
        Answer::Created { path, stat } => {
            out.put_u8(RESULT_CREATED);
            out.put_u32_le(u32::try_from(path.len()).ok()?);
            out.extend_from_slice(path.as_bytes());
            encode_stat(out, stat);
        }
        Answer::Stat(stat) => {
            out.put_u8(RESULT_STAT);
            encode_stat(out, stat);
        }
        Answer::Multi(answers) if outer => {
            out.put_u8(RESULT_MULTI);
            out.put_u32_le(u32::try_from(answers.len()).ok()?);
            for answer in answers {
                encode_answer(out, answer, false)?;
            }
        }
        Answer::MultiFailed { ops, failed, error } => {
            out.put_u8(RESULT_MULTI_FAILED);
            out.put_u64_le(*ops as u64);
            out.put_u64_le(*failed as u64);
            out.put_i32_le(error.code());
        }
        _ => return None,
    }
    Some(())
}

fn decode_answer(from: &mut Reader<'_>, tag: u8, outer: bool) -> Option<Answer> {
    Some(match tag {
        RESULT_DONE => Answer::Done,
        RESULT_CREATED => {
            let len = from.u32()? as usize;
            let path = str::from_utf8(from.bytes(len)?).ok()?.to_owned();
            Answer::Created { path, stat: decode_stat(from)? }
        }
        RESULT_STAT => Answer::Stat(decode_stat(from)?),
        RESULT_MULTI if outer => {
            let count = from.u32()? as usize;
            // Every answer takes at least a byte: a wrong count cannot ask for more memory than there are bytes.
            let mut answers = Vec::with_capacity(count.min(from.left()));
            for _ in 0..count {
                let tag = from.u8()?;
                answers.push(decode_answer(from, tag, false)?);
            }
            Answer::Multi(answers)
        }
        RESULT_MULTI_FAILED => Answer::MultiFailed {
            ops: usize::try_from(from.u64()?).ok()?,
            failed: usize::try_from(from.u64()?).ok()?,
            error: ErrorCode::from_code(from.i32()?)?,
        },
        _ => return None,
    })
}

fn encode_stat(out: &mut BytesMut, stat: &Stat) {
    for long in [stat.czxid, stat.mzxid, stat.pzxid, stat.ctime, stat.mtime, stat.ephemeral_owner] {
        out.put_i64_le(long);
    }
    for int in [stat.version, stat.cversion, stat.aversion, stat.data_length, stat.num_children] {
        out.put_i32_le(int);
    }
}

fn decode_stat(from: &mut Reader<'_>) -> Option<Stat> {
    Some(Stat {
        czxid: from.i64()?,
        mzxid: from.i64()?,
        pzxid: from.i64()?,
        ctime: from.i64()?,
        mtime: from.i64()?,
        ephemeral_owner: from.i64()?,
        version: from.i32()?,
        cversion: from.i32()?,
        aversion: from.i32()?,
        data_length: from.i32()?,
        num_children: from.i32()?,
    })
}

/// Takes little-endian numbers off the front of a slice.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// A reader behind the version byte; `None` if it is another version's.
    pub(crate) fn versioned(value: &'a [u8]) -> Option<Reader<'a>> {
        Reader::of(value, VERSION..=VERSION)
    }

    /// The same for a record of which several versions can be read.
    pub(crate) fn of(value: &'a [u8], versions: RangeInclusive<u8>) -> Option<Reader<'a>> {
        let mut from = Reader(value);
        versions.contains(&from.u8()?).then_some(from)
    }

    /// A reader of bytes without a version.
    pub(crate) fn plain(value: &'a [u8]) -> Reader<'a> {
        Reader(value)
    }

    /// `value` if nothing is left.
    pub(crate) fn end<T>(&self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }

    pub(crate) fn left(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(data: Stored) -> NodeRec {
        NodeRec {
            czxid: Zxid(1),
            mzxid: Zxid(2),
            pzxid: Zxid(3),
            ctime: -4,
            mtime: 5,
            creates: 6,
            owner: Owner::Ttl(7),
            version: -8,
            aversion: 9,
            acl: 10,
            num_children: 11,
            data,
        }
    }

    #[test]
    fn node_records_come_back_as_they_were() {
        let large = Bytes::from(vec![7; INLINE_DATA_MAX + 1]);
        for data in [None, Some(Bytes::new()), Some(Bytes::from_static(b"xyz")), Some(large)] {
            for owner in [Owner::Persistent, Owner::Ephemeral(SessionId(-3)), Owner::Container, Owner::Ttl(1)] {
                let rec = NodeRec { owner, ..node(Stored::of(data.as_ref())) };
                let bytes = rec.encode();
                assert_eq!(NodeRec::data_len(&bytes) as usize, rec.data.len());
                assert_eq!(NodeRec::decode(&bytes), Some(rec));
                assert_eq!(NodeRec::decode(&bytes.slice(..bytes.len() - 1)), None);
            }
        }
    }

    /// Servers of different releases read each other's stores: what was written stays readable.
    #[test]
    fn records_have_the_bytes_they_always_had() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let rec = node(Stored::of(Some(&Bytes::from_static(b"xy"))));
        assert_eq!(
            hex(&rec.encode()),
            concat!(
                "010003000a000000010000000000000002000000000000000300000000000000fcffffffffffffff",
                "050000000000000006000000000000000700000000000000f8ffffff090000000b00000002000000",
                "7879"
            )
        );
        let meta = Meta {
            applied: Zxid(1),
            hash: 2,
            stamp_ms: -3,
            digest: 4,
            znodes: 5,
            data_bytes: 6,
            ephemerals: 7,
            sessions: 8,
            next_acl: 9,
            quotas: 10,
        };
        assert_eq!(
            hex(&meta.encode()),
            concat!(
                "0201000000000000000200000000000000fdffffffffffffff040000000000000005000000000000",
                "00060000000000000007000000000000000800000000000000090000000a000000"
            )
        );
        // The row as it was before there were quotas.
        let mut first = meta.encode()[..69].to_vec();
        first[0] = 1;
        assert_eq!(Meta::decode(&first), Some(Meta { quotas: 0, ..meta }));
        let row = SessionRow {
            keeps_results: true,
            timeout_ms: 4000,
            ephemerals: 2,
            created: Zxid(3),
            created_nonce: 4,
            attach: Zxid(5),
            nonce: 6,
            server: ServerId(7),
            last_n: 8,
            results_from: 9,
            result_bytes: 10,
        };
        assert_eq!(
            hex(&row.encode()),
            concat!(
                "0101a00f000002000000030000000000000004000000000000000500000000000000060000000000",
                "00000700000000000000080000000000000009000000000000000a00000000000000"
            )
        );
        let stat = Stat {
            czxid: 1,
            mzxid: 2,
            pzxid: 3,
            ctime: 4,
            mtime: 5,
            ephemeral_owner: 6,
            version: 7,
            cversion: 8,
            aversion: 9,
            data_length: 10,
            num_children: 11,
        };
        let created = Ok(Answer::Created { path: "/a".to_owned(), stat });
        assert_eq!(
            hex(&encode_result(Zxid(9), &created).unwrap()),
            concat!(
                "01090000000000000002020000002f61010000000000000002000000000000000300000000000000",
                "0400000000000000050000000000000006000000000000000700000008000000090000000a000000",
                "0b000000"
            )
        );
    }

    #[test]
    fn null_data_and_no_bytes_are_stored_differently() {
        let (null, empty) = (node(Stored::of(None)), node(Stored::of(Some(&Bytes::new()))));
        assert_ne!(null.encode(), empty.encode());
        assert_eq!((null.stat().data_length, empty.stat().data_length), (0, 0));
    }

    #[test]
    fn visible_cversion_is_twice_the_creations_less_the_children() {
        let cversion = |creates, num_children| NodeRec { creates, num_children, ..node(Stored::Null) }.stat().cversion;
        assert_eq!((cversion(4, 4), cversion(4, 3), cversion(5, 4)), (4, 5, 6));
        assert_eq!((cversion(0, 1), cversion(0, 2)), (-1, -2));
        assert_eq!(cversion(1 << 31, 0), 0);
    }

    #[test]
    fn kept_results_come_back_as_they_were() {
        let stat = Stat { czxid: 1, version: -5, num_children: 3, ..Stat::default() };
        let created = Answer::Created { path: "/ä".to_owned(), stat };
        for result in [
            Err(ErrorCode::BadVersion),
            Ok(Answer::Done),
            Ok(created.clone()),
            Ok(Answer::Stat(stat)),
            Ok(Answer::Multi(vec![])),
            Ok(Answer::Multi(vec![created, Answer::Done, Answer::Stat(stat)])),
            Ok(Answer::MultiFailed { ops: 3, failed: 1, error: ErrorCode::NoNode }),
        ] {
            let bytes = encode_result(Zxid(9), &result).unwrap();
            assert_eq!(decode_result(&bytes), Some((Zxid(9), result)));
        }
        assert_eq!(encode_result(Zxid(9), &Ok(Answer::Count(1))), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_a_record_or_nothing(mut value: Vec<u8>, version: bool) {
            if let (true, Some(first)) = (version, value.first_mut()) {
                *first = VERSION;
            }
            let bytes = Bytes::from(value);
            if let Some(rec) = NodeRec::decode(&bytes) {
                prop_assert_eq!(NodeRec::decode(&rec.encode()), Some(rec));
            }
            if let Some(meta) = Meta::decode(&bytes) {
                prop_assert_eq!(Meta::decode(&meta.encode()), Some(meta));
            }
            if let Some(row) = SessionRow::decode(&bytes) {
                prop_assert_eq!(SessionRow::decode(&row.encode()), Some(row));
            }
            if let Some((zxid, result)) = decode_result(&bytes) {
                prop_assert_eq!(encode_result(zxid, &result).unwrap(), &bytes);
            }
        }

        #[test]
        fn meta_and_session_rows_come_back(numbers: [u64; 8], timeout_ms: i32, small: u32, keeps_results: bool) {
            let [a, b, c, d, e, f, g, h] = numbers;
            let meta = Meta {
                applied: Zxid(a), hash: b, stamp_ms: c as i64, digest: d, znodes: e, data_bytes: f, ephemerals: g,
                sessions: h, next_acl: small, quotas: !small,
            };
            prop_assert_eq!(Meta::decode(&meta.encode()), Some(meta));
            let row = SessionRow {
                timeout_ms, keeps_results, ephemerals: small, created: Zxid(a), created_nonce: b, attach: Zxid(c),
                nonce: d, server: ServerId(e), last_n: f, results_from: g, result_bytes: h,
            };
            prop_assert_eq!(SessionRow::decode(&row.encode()), Some(row));
        }
    }
}
