//! Small fixed pieces of work in the pure rooms and the codecs: what `corral-guard` counts instructions of, and what
//! `cargo bench` times. No clock, no thread, no disk: the same instructions at every run.
//!
//! Each [`Room`] makes its surroundings once and hands out a closure that does one operation. A closure that finds
//! something wrong panics: a guard over work that was not done would guard nothing.

mod ensemble;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use corral_core::apply::{Apply, Shared};
use corral_core::session::lane::{Lane, Step};
use corral_core::session::{Consistency, Outgoing, Protocol};
use corral_core::storage::folder::IdentityRecord;
use corral_core::storage::log_device::MemoryDevice;
use corral_core::storage::memory::{MemoryStore, MemoryView};
use corral_core::storage::txn_log::{LogOptions, TxnLog};
use corral_core::tree::TreeStore;
use corral_core::tree::entry::{Command, Txn, Verdict};
use corral_core::tree::execute::execute;
use corral_core::tree::feed::FeedBounds;
use corral_core::tree::op::{Answer, Create, ReadOp, WriteOp};
use corral_core::watch::WatcherId;
use corral_core::zab::codec;
use corral_core::zab::message::Message;
use corral_core::zab::{Entry, LogOp, Position, Promise};
use corral_proto::jute::{
    Create as WireCreate, ReplyHeader, Request, RequestHeader, Response, decode_reply, encode_reply, frame,
};
use corral_proto::{Acl, CreateMode, ServerId, SessionId, Stat, Zxid};

/// Bytes of every value.
const VALUE_BYTES: usize = 100;
/// Znodes that are set and read in turn.
const KEYS: usize = 1000;
/// Znodes of the apply room, few: it publishes a state after each batch, which the store in memory has to copy then (the
/// one on disk does not), and the copy should not be what is counted.
const SERVED_KEYS: usize = 8;
/// Bytes of its change feed, few for the same reason; old records go as new ones come.
const FEED_BYTES: u64 = 2048;
/// Entries of one batch, where there are batches.
const BATCH: usize = 10;
/// Largest frame, as a client's `jute.maxbuffer`.
const FRAME_BYTES_MAX: usize = 1 << 20;

/// One operation, again and again.
pub type Operation = Box<dyn FnMut()>;

/// One piece of work.
pub struct Room {
    /// For the baseline and the command line.
    pub name: &'static str,
    /// What one operation is.
    pub about: &'static str,
    /// Operations that the guard counts: as many as give a steady figure within a second or two.
    pub operations: u64,
    /// Makes what it needs.
    pub prepare: fn() -> Operation,
}

/// All of them.
pub const ROOMS: &[Room] = &[
    Room { name: "decode_get", about: "frame, header and body of a getData", operations: 10_000, prepare: decode_get },
    Room { name: "decode_set", about: "frame, header and body of a setData", operations: 10_000, prepare: decode_set },
    Room { name: "encode_get_reply", about: "the frame of a getData reply", operations: 10_000, prepare: encode_get },
    Room { name: "encode_set_reply", about: "the frame of a setData reply", operations: 10_000, prepare: encode_set },
    Room {
        name: "client_encode_set",
        about: "a setData as a client sends it",
        operations: 10_000,
        prepare: client_set,
    },
    Room { name: "peer_frame", about: "ten entries between servers, there and back", operations: 1_500, prepare: peer },
    Room { name: "txn_codec", about: "a set as payload of an entry, there and back", operations: 3_000, prepare: txn },
    Room {
        name: "zab_commit",
        about: "one write through a follower of three servers, executed by all",
        operations: 500,
        prepare: ensemble::commit,
    },
    Room { name: "execute_set", about: "a set, executed and stored in memory", operations: 1_000, prepare: set },
    Room {
        name: "execute_create_delete",
        about: "a create and its delete, executed and stored in memory",
        operations: 500,
        prepare: create_delete,
    },
    Room {
        name: "apply_set",
        about: "a set through the apply room, answered to its client",
        operations: 1_000,
        prepare: apply,
    },
    Room { name: "lane_read", about: "a get through a session's lane", operations: 3_000, prepare: lane_read },
    Room {
        name: "log_write",
        about: "ten entries in one frame of the log, in memory",
        operations: 1_000,
        prepare: log,
    },
];

fn value() -> Bytes {
    (0..VALUE_BYTES).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) as u8).collect()
}

fn key(index: usize) -> String {
    format!("/bench/k{:06}", index % KEYS)
}

fn decode(request: &Request) -> Operation {
    let mut wire = BytesMut::new();
    request.encode(7, &mut wire);
    let wire = wire.freeze();
    let mut received = BytesMut::new();
    let expected = request.opcode();
    Box::new(move || {
        received.extend_from_slice(&wire);
        let payload = frame::split(&mut received, FRAME_BYTES_MAX).expect("a good frame").expect("a whole frame");
        let mut reader = corral_proto::jute::Reader::new(payload);
        let header = RequestHeader::decode(&mut reader).expect("a header");
        let request = Request::decode(header.opcode, &mut reader).expect("a body");
        assert_eq!(request.opcode(), expected);
    })
}

fn decode_get() -> Operation {
    decode(&Request::GetData { path: key(1), watch: false })
}

fn decode_set() -> Operation {
    decode(&Request::SetData { path: key(1), data: Some(value()), version: -1 })
}

fn encode(response: Response) -> Operation {
    let mut out = BytesMut::new();
    Box::new(move || {
        out.clear();
        encode_reply(ReplyHeader { xid: 7, zxid: 9, err: 0 }, Some(&response), &mut out);
        assert!(out.len() > frame::PREFIX_BYTES + 16);
    })
}

fn encode_get() -> Operation {
    encode(Response::Data { data: Some(value()), stat: Stat::default() })
}

fn encode_set() -> Operation {
    let mut encode = encode(Response::Stat(Stat::default()));
    // The client's half is so small that both are counted here.
    let mut wire = BytesMut::new();
    encode_reply(ReplyHeader { xid: 7, zxid: 9, err: 0 }, Some(&Response::Stat(Stat::default())), &mut wire);
    let payload = frame::split(&mut wire, FRAME_BYTES_MAX).expect("a good frame").expect("a whole frame");
    Box::new(move || {
        encode();
        assert_eq!(decode_reply(payload.clone()).expect("a reply").0.xid, 7);
    })
}

fn client_set() -> Operation {
    let mut out = BytesMut::new();
    let create = Request::Create(WireCreate {
        path: key(1),
        data: Some(value()),
        acl: Some(Acl::open()),
        flags: CreateMode::Persistent.flags(),
        ..WireCreate::default()
    });
    let set = Request::SetData { path: key(1), data: Some(value()), version: -1 };
    Box::new(move || {
        out.clear();
        create.encode(1, &mut out);
        set.encode(2, &mut out);
        assert!(out.len() > 2 * VALUE_BYTES);
    })
}

/// Entries that follow a position.
fn entries(prev: Position, count: usize) -> Vec<Entry> {
    let mut prev = prev;
    (0..count)
        .map(|_| {
            let zxid = if prev.zxid == Zxid::ZERO { Zxid::new(1, 0) } else { Zxid(prev.zxid.0 + 1) };
            let entry = Entry::after(prev.hash, zxid, 1_000, value());
            prev = Position { zxid, hash: entry.hash };
            entry
        })
        .collect()
}

fn peer() -> Operation {
    let message = Message::Entries {
        epoch: 1,
        prev: Position::default(),
        entries: entries(Position::default(), BATCH),
        commit: Zxid::ZERO,
    };
    let messages = [message];
    Box::new(move || {
        let back = codec::decode_frame(&codec::encode_frame(&messages)).expect("a good frame");
        assert_eq!(back.len(), 1);
    })
}

const SESSION: SessionId = SessionId(0x1000);
const ME: ServerId = ServerId(1);
const NONCE: u64 = 7;

fn open_session() -> Txn {
    let command = Command::CreateSession { timeout_ms: 4_000, server: ME, nonce: NONCE, keeps_results: false };
    Txn { session: SESSION, attach: Zxid::ZERO, n: 0, answered_through: 0, ids: Vec::new(), command }
}

fn write(attach: Zxid, n: u64, op: WriteOp) -> Txn {
    Txn { session: SESSION, attach, n, answered_through: 0, ids: Vec::new(), command: Command::Write(op) }
}

fn create_op(path: String) -> WriteOp {
    let (data, acl) = (Some(value()), Some(Acl::open()));
    WriteOp::Create(Create { path, data, acl, mode: CreateMode::Persistent, ttl_ms: 0 })
}

fn set_op(path: String) -> WriteOp {
    WriteOp::SetData { path, data: Some(value()), version: -1 }
}

fn txn() -> Operation {
    let txn = write(Zxid::new(1, 1), 3, set_op(key(1)));
    Box::new(move || assert_eq!(Txn::decode(&txn.encode()).expect("a transaction").n, 3))
}

/// A store with a session and the keys.
struct Tree {
    store: MemoryStore,
    counter: u32,
    attach: Zxid,
    n: u64,
}

impl Tree {
    fn new() -> Tree {
        let mut tree = Tree { store: MemoryStore::new(), counter: 0, attach: Zxid::ZERO, n: 0 };
        tree.execute(&open_session());
        tree.attach = Zxid::new(1, tree.counter);
        tree.write(create_op("/bench".to_owned()));
        (0..KEYS).for_each(|index| tree.write(create_op(key(index))));
        tree
    }

    fn write(&mut self, op: WriteOp) {
        self.n += 1;
        let verdict = self.execute(&write(self.attach, self.n, op));
        assert!(matches!(&verdict, Verdict::Executed(Ok(_))), "{verdict:?}");
    }

    fn execute(&mut self, txn: &Txn) -> Verdict {
        self.counter += 1;
        // The view goes before the store is written, or that would copy what the view still shows.
        let outcome = execute(&self.store.view(), Zxid::new(1, self.counter), 1_000, 0, &txn.encode());
        self.store.write(&mut outcome.changes.into_iter());
        outcome.verdict
    }
}

fn set() -> Operation {
    let mut tree = Tree::new();
    let mut turn = 0;
    Box::new(move || {
        turn += 1;
        tree.write(set_op(key(turn)));
    })
}

fn create_delete() -> Operation {
    let mut tree = Tree::new();
    Box::new(move || {
        tree.write(create_op("/bench/new".to_owned()));
        tree.write(WriteOp::Delete { path: "/bench/new".to_owned(), version: -1 });
    })
}

/// An apply room with one client.
struct Served {
    apply: Apply<MemoryStore>,
    shared: Arc<Shared<MemoryView>>,
    lane: Arc<Lane>,
    counter: u32,
    n: u64,
    out: Vec<Outgoing>,
}

impl Served {
    fn new() -> Served {
        let mut apply = Apply::new(ME, MemoryStore::new(), Vec::new());
        apply.bound_feed(FeedBounds { bytes: FEED_BYTES, ..FeedBounds::default() });
        let shared = apply.shared();
        let lane = Lane::new(WatcherId(1), SESSION, Protocol::Wire, Vec::new(), Zxid::ZERO, Box::new(|| {}));
        let lane = Arc::new(lane);
        assert!(shared.lanes.join(SESSION, NONCE, lane.clone()));
        let mut served = Served { apply, shared, lane, counter: 0, n: 0, out: Vec::new() };
        served.entry(&open_session());
        served.write(create_op("/bench".to_owned()));
        (0..SERVED_KEYS).for_each(|index| served.write(create_op(key(index))));
        served
    }

    fn entry(&mut self, txn: &Txn) {
        self.counter += 1;
        let zxid = Zxid::new(1, self.counter);
        self.apply.apply(&[Entry { zxid, stamp_ms: 1_000, hash: 0, payload: txn.encode() }]);
    }

    fn write(&mut self, op: WriteOp) {
        self.n += 1;
        self.lane.push(self.n, Step::Write { n: self.n }, Consistency::Local, None);
        self.entry(&write(self.lane.attach(), self.n, op));
        self.answered(self.n);
    }

    fn read(&mut self, path: String) {
        self.n += 1;
        let step = Step::Read { op: ReadOp::GetData { path }, watch: false };
        self.lane.push(self.n, step, Consistency::Local, None);
        self.answered(self.n);
        // Numbers of writes have no holes.
        self.n -= 1;
    }

    fn answered(&mut self, expected: u64) {
        self.out.clear();
        self.shared.advance(&self.lane);
        self.lane.take_outgoing(&mut self.out);
        let [Outgoing::Reply { cookie, result: Ok(answer), .. }] = &self.out[..] else { panic!("{:?}", self.out) };
        assert_eq!(*cookie, expected);
        if let Answer::Data { data, .. } = answer {
            assert_eq!(data.as_ref().map(Bytes::len), Some(VALUE_BYTES));
        }
    }
}

fn apply() -> Operation {
    let mut served = Served::new();
    let mut turn = 0;
    Box::new(move || {
        turn += 1;
        served.write(set_op(key(turn % SERVED_KEYS)));
    })
}

fn lane_read() -> Operation {
    let mut served = Served::new();
    let mut turn = 0;
    Box::new(move || {
        turn += 1;
        served.read(key(turn % SERVED_KEYS));
    })
}

fn log() -> Operation {
    // So large that none of the counted writes begins a new segment.
    let options = LogOptions { segment_bytes: 16 << 20, retention_bytes: 0 };
    let device = Arc::new(MemoryDevice::new());
    let begin = Position::default();
    let mut log = TxnLog::create(device, options, IdentityRecord::default(), begin, 0, Promise::default())
        .expect("a device that does not fail");
    let mut seq = 0;
    Box::new(move || {
        seq += 1;
        let ops = [(seq, LogOp::Append(entries(log.end(), BATCH)))];
        assert_eq!(log.write(&ops).expect("a device that does not fail"), seq);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_can_be_done_again_and_again() {
        for room in ROOMS {
            let mut operation = (room.prepare)();
            for _ in 0..5 {
                operation();
            }
        }
    }

    #[test]
    fn names_differ() {
        let names: std::collections::BTreeSet<&str> = ROOMS.iter().map(|room| room.name).collect();
        assert_eq!(names.len(), ROOMS.len());
    }
}
