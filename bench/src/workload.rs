//! What is asked: streams of requests, most of them encoded once and then only copied.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use clap::ValueEnum;
use corral_proto::jute::{Create, Request};
use corral_proto::{Acl, CreateMode, ErrorCode};
use tokio::time::Instant;

use crate::drive::{Plan, Source, drive};
use crate::wire::Wire;
use crate::{Result, context};

/// Everything a run makes is below it.
pub const ROOT: &str = "/bench";
/// Requests on the way while a run is prepared.
const SETUP_OUTSTANDING: usize = 256;
/// Where the number of a request stands in its frame: after the length.
const XID_RANGE: std::ops::Range<usize> = 4..8;

/// What is asked again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Replace the data of a random key.
    Set,
    /// Read a random key.
    Get,
    /// Stat of a random key.
    Exists,
    /// Reads and sets, in the share that --read-percent says.
    Mixed,
    /// Create a znode, then delete it; each counts.
    CreateDelete,
    /// Create an ephemeral znode, then delete it; each counts.
    Ephemeral,
    /// Names in a folder of --keys znodes.
    Children,
    /// A multi that sets --multi-ops keys; counts once.
    Multi,
    /// --connections watch one znode, which one more connection sets again as soon as all were told. Each event counts;
    /// its latency is from the set being sent.
    Watch,
    /// --connections contend for one lock: a sequential ephemeral znode each, and a watch on the one before. Each
    /// acquisition counts; its latency is from asking.
    Lock,
}

/// The sizes of a workload.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub workload: Workload,
    pub keys: usize,
    pub value_bytes: usize,
    pub read_percent: u32,
    pub multi_ops: usize,
    pub outstanding: usize,
}

impl Shape {
    /// Where the keys are. A folder that is listed has a name of its own for each size.
    pub fn folder(&self) -> String {
        match self.workload {
            Workload::Children => format!("{ROOT}/d{}", self.keys),
            _ => ROOT.to_owned(),
        }
    }

    /// The path of a key.
    pub fn key(&self, index: usize) -> String {
        format!("{}/k{index:06}", self.folder())
    }
}

/// The frames of a workload, shared by its connections.
pub struct Frames {
    shape: Shape,
    reads: Vec<Bytes>,
    writes: Vec<Bytes>,
}

/// Encodes a request whose number will be filled in later.
fn template(request: &Request) -> Bytes {
    let mut out = BytesMut::new();
    request.encode(0, &mut out);
    out.freeze()
}

/// Appends a prepared request under this number.
fn put(template: &[u8], xid: i32, out: &mut BytesMut) {
    let start = out.len();
    out.extend_from_slice(template);
    out[start + XID_RANGE.start..start + XID_RANGE.end].copy_from_slice(&xid.to_be_bytes());
}

/// A value of so many bytes.
pub fn value(bytes: usize) -> Bytes {
    // Not all the same byte, so that compression has something to do.
    (0..bytes).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) as u8).collect()
}

/// The path of a key in the folder that is not listed.
pub fn key(index: usize) -> String {
    format!("{ROOT}/k{index:06}")
}

/// A create for everybody to use.
pub fn create(path: String, data: Bytes, mode: CreateMode) -> Request {
    Request::Create(Create { path, data: Some(data), acl: Some(Acl::open()), flags: mode.flags(), ..Create::default() })
}

impl Frames {
    /// Encodes what the connections will send.
    pub fn new(shape: Shape) -> Arc<Frames> {
        let data = value(shape.value_bytes);
        let set = |index: usize| Request::SetData { path: key(index), data: Some(data.clone()), version: -1 };
        let all = |make: &dyn Fn(usize) -> Request| (0..shape.keys).map(|i| template(&make(i))).collect::<Vec<_>>();
        let get = |index| Request::GetData { path: key(index), watch: false };
        let (reads, writes) = match shape.workload {
            Workload::Set => (Vec::new(), all(&set)),
            Workload::Get => (all(&get), Vec::new()),
            Workload::Exists => (all(&|i| Request::Exists { path: key(i), watch: false }), Vec::new()),
            Workload::Mixed => (all(&get), all(&set)),
            Workload::Children => {
                (vec![template(&Request::GetChildren { path: shape.folder(), watch: false })], Vec::new())
            }
            Workload::Multi => {
                let multi = |i| Request::Multi((0..shape.multi_ops).map(|j| set((i + j) % shape.keys)).collect());
                (Vec::new(), all(&multi))
            }
            // Each connection has its own paths.
            Workload::CreateDelete | Workload::Ephemeral => (Vec::new(), Vec::new()),
            // They wait for what others do; see `meet`.
            Workload::Watch | Workload::Lock => (Vec::new(), Vec::new()),
        };
        Arc::new(Frames { shape, reads, writes })
    }

    /// The requests of one connection, by its number.
    pub fn connection(self: &Arc<Self>, number: usize) -> Requests {
        let shape = self.shape;
        let mode = match shape.workload {
            Workload::Ephemeral => CreateMode::Ephemeral,
            _ => CreateMode::Persistent,
        };
        let pairs = match shape.workload {
            // A session's requests are done in order, so a path is free again when its next create arrives.
            Workload::CreateDelete | Workload::Ephemeral => (0..shape.outstanding.max(2))
                .flat_map(|slot| {
                    let path = format!("{ROOT}/c{number:04}-{slot:04}");
                    let delete = Request::Delete { path: path.clone(), version: -1 };
                    [template(&create(path, value(shape.value_bytes), mode)), template(&delete)]
                })
                .collect(),
            _ => Vec::new(),
        };
        Requests { frames: self.clone(), pairs, turn: 0, random: Random::new(number as u64) }
    }
}

/// One connection's stream of requests; it never ends.
pub struct Requests {
    frames: Arc<Frames>,
    pairs: Vec<Bytes>,
    turn: usize,
    random: Random,
}

impl Source for Requests {
    fn next(&mut self, xid: i32, out: &mut BytesMut) -> bool {
        let frames = &*self.frames;
        if !self.pairs.is_empty() {
            put(&self.pairs[self.turn], xid, out);
            self.turn = (self.turn + 1) % self.pairs.len();
            return true;
        }
        let from = match frames.shape.workload {
            Workload::Mixed if self.random.below(100) < frames.shape.read_percent as usize => &frames.reads,
            Workload::Mixed => &frames.writes,
            _ if frames.writes.is_empty() => &frames.reads,
            _ => &frames.writes,
        };
        put(&from[self.random.below(from.len())], xid, out);
        true
    }
}

/// xorshift64*: repeatable, and cheap beside a request.
pub struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    pub fn new(seed: u64) -> Random {
        Random((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((u128::from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)) * bound as u128) >> 64) as usize
    }
}

/// Requests made one after the other, until none is left.
pub struct Finite<I>(pub I);

impl<I: Iterator<Item = Request>> Source for Finite<I> {
    fn next(&mut self, xid: i32, out: &mut BytesMut) -> bool {
        match self.0.next() {
            Some(request) => {
                request.encode(xid, out);
                true
            }
            None => false,
        }
    }
}

/// Makes the keys, each with a value of the right size, whether they are there already or not.
///
/// # Errors
/// If the server cannot be reached or refuses.
pub async fn set_up(address: &str, shape: Shape) -> Result<()> {
    let data = value(shape.value_bytes);
    let mut wire = Wire::connect(address).await?;
    let folders =
        [ROOT.to_owned(), shape.folder()].map(|path| create(path, Bytes::new(), CreateMode::Persistent)).into_iter();
    let creates = (0..shape.keys).map(|i| create(shape.key(i), data.clone(), CreateMode::Persistent));
    let sets = (0..shape.keys).map(|i| Request::SetData { path: shape.key(i), data: Some(data.clone()), version: -1 });
    let mut refused = None;
    let plan = Plan { outstanding: SETUP_OUTSTANDING, until: None, pace: None };
    drive(&mut wire, &mut Finite(folders.chain(creates).chain(sets)), plan, |done| {
        if done.error != 0 && done.error != ErrorCode::NodeExists as i32 {
            refused = Some(done.error);
        }
    })
    .await
    .map_err(context(address))?;
    wire.close().await;
    match refused {
        Some(code) => Err(format!("{address} refuses the keys: {}", error_name(code)).into()),
        None => Ok(()),
    }
}

/// What a code of the protocol is called.
pub fn error_name(code: i32) -> String {
    ErrorCode::from_code(code).map_or_else(|| code.to_string(), |code| format!("{code:?}"))
}

/// The path of the n-th znode of a bulk load: 256 folders, so that none gets too large to list.
pub fn load_path(index: u64) -> String {
    format!("/load/{:02x}/{index:06}", index % LOAD_FOLDERS)
}

/// Folders of a bulk load.
pub const LOAD_FOLDERS: u64 = 256;

/// The folders of a bulk load.
pub fn load_folders() -> impl Iterator<Item = Request> {
    let folders = (0..LOAD_FOLDERS).map(|folder| format!("/load/{folder:02x}"));
    std::iter::once("/load".to_owned()).chain(folders).map(|path| create(path, Bytes::new(), CreateMode::Persistent))
}

/// The znodes `first`, `first + step`, ... below `count`.
pub fn load_creates(first: u64, step: u64, count: u64, data: Bytes) -> impl Iterator<Item = Request> {
    (first..count)
        .step_by(step as usize)
        .map(move |index| create(load_path(index), data.clone(), CreateMode::Persistent))
}

/// Begins at once, ends with the source.
pub fn plan_all(outstanding: usize) -> Plan {
    Plan { outstanding, until: None::<Instant>, pace: None }
}

#[cfg(test)]
mod tests {
    use corral_proto::jute::{Reader, RequestHeader, frame};

    use super::*;

    fn shape(workload: Workload) -> Shape {
        Shape { workload, keys: 10, value_bytes: 5, read_percent: 70, multi_ops: 3, outstanding: 4 }
    }

    /// The first requests of a connection, decoded.
    fn requests(workload: Workload, count: i32) -> Vec<Request> {
        let mut source = Frames::new(shape(workload)).connection(3);
        let mut out = BytesMut::new();
        for xid in 1..=count {
            assert!(source.next(xid, &mut out));
        }
        (1..=count)
            .map(|xid| {
                let mut reader = Reader::new(frame::split(&mut out, 10_000).unwrap().unwrap());
                let header = RequestHeader::decode(&mut reader).unwrap();
                assert_eq!(header.xid, xid);
                Request::decode(header.opcode, &mut reader).unwrap()
            })
            .collect()
    }

    #[test]
    fn sets_go_to_all_keys_with_the_whole_value() {
        let mut paths = std::collections::BTreeSet::new();
        for request in requests(Workload::Set, 200) {
            let Request::SetData { path, data, version: -1 } = request else { panic!("{request:?}") };
            assert_eq!(data.unwrap(), value(5));
            paths.insert(path);
        }
        assert_eq!(paths, (0..10).map(key).collect());
    }

    #[test]
    fn mixed_keeps_its_share_of_reads() {
        let requests = requests(Workload::Mixed, 10_000);
        let reads = requests.iter().filter(|r| matches!(r, Request::GetData { .. })).count();
        assert!((6_700..7_300).contains(&reads), "{reads}");
    }

    #[test]
    fn each_create_is_followed_by_its_delete() {
        for workload in [Workload::CreateDelete, Workload::Ephemeral] {
            for pair in requests(workload, 40).chunks(2) {
                let [Request::Create(create), Request::Delete { path, .. }] = pair else { panic!("{pair:?}") };
                assert_eq!(create.path, *path);
                assert_eq!(create.flags, i32::from(workload == Workload::Ephemeral));
            }
        }
    }

    #[test]
    fn a_multi_sets_as_many_keys_as_asked() {
        let Request::Multi(ops) = &requests(Workload::Multi, 1)[0] else { panic!() };
        assert_eq!(ops.len(), 3);
    }

    #[test]
    fn connections_of_a_load_share_it_without_overlap() {
        let paths = |first| {
            load_creates(first, 3, 1000, Bytes::new()).map(|r| match r {
                Request::Create(create) => create.path,
                other => panic!("{other:?}"),
            })
        };
        let all: Vec<String> = (0..3).flat_map(paths).collect();
        assert_eq!(all.len(), 1000);
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), 1000);
        assert_eq!(load_path(999_999), "/load/3f/999999");
    }
}
