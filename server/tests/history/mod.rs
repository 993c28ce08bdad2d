//! A history that every process can make again from its number, the model that executes it, and data folders on real disks.

#![allow(dead_code, reason = "each test program uses its part")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use corral_core::apply::Apply;
use corral_core::storage::log_device::LogDevice;
use corral_core::storage::memory::MemoryStore;
use corral_core::storage::recover::{RecoverError, RecoverOptions, Recovery, recover};
use corral_core::storage::txn_log::LogOptions;
use corral_core::tree::entry::{Command, Txn};
use corral_core::tree::op::{Create, MultiOp, WriteOp};
use corral_core::tree::{Cf, TreeStore, TreeView};
use corral_core::zab::io::{Entry, Identity, LogOp, Membership, Position};
use corral_proto::{Acl, CreateMode, Id, ServerId, SessionId, Zxid};
use corral_server::storage::rocks::{RocksOpener, RocksStore, StoreOptions};

/// Entries of an epoch.
const EPOCH: u64 = 1_000;
/// Entries of a session: it begins with the first.
const BLOCK: u64 = 64;
/// Sessions that are open at once.
const OPEN: u64 = 3;

/// The zxid of an entry of the history.
pub fn zxid(index: u64) -> Zxid {
    Zxid::new(1 + (index / EPOCH) as u32, (index % EPOCH) as u32)
}

/// The place of an entry in the history.
pub fn index(zxid: Zxid) -> u64 {
    u64::from(zxid.epoch() - 1) * EPOCH + u64::from(zxid.counter())
}

/// The first entry that a log which ends here lacks.
pub fn next(end: Position) -> u64 {
    if end == Position::default() { 0 } else { index(end.zxid) + 1 }
}

/// What an entry carries: sessions that come and go, and writes of every kind, many of which fail.
pub fn payload(index: u64) -> Bytes {
    if index.is_multiple_of(EPOCH) {
        return Bytes::new();
    }
    let (block, place) = (index / BLOCK, index % BLOCK);
    let session = |block: u64| (SessionId(100 + block as i64), zxid(block * BLOCK));
    let ((session, attach), n, command) = match place {
        0 => {
            let command = Command::CreateSession {
                timeout_ms: 10_000,
                server: ServerId(1),
                nonce: index,
                keeps_results: block.is_multiple_of(2),
            };
            ((session(block).0, Zxid::ZERO), 0, command)
        }
        63 if block >= OPEN => (session(block - OPEN), 0, Command::CloseSession { expired: true }),
        _ => (session(block), place, Command::Write(write(index))),
    };
    Txn { session, attach, n, answered_through: place.saturating_sub(5), ids: vec![Id::new("ip", "10.0.0.1")], command }
        .encode()
}

fn write(index: u64) -> WriteOp {
    // Small data lie in the records, large ones beside them.
    let data = Some(Bytes::from(vec![index as u8; if index.is_multiple_of(5) { 3_000 } else { 40 }]));
    let create = |path: String, mode| Create { path, data: data.clone(), acl: Some(Acl::open()), mode, ttl_ms: 60_000 };
    let some = |step: u64| format!("/n/{}", index.wrapping_mul(step) % 97);
    match index % BLOCK {
        1 => return WriteOp::Create(create("/n".to_owned(), CreateMode::Persistent)),
        2 => return WriteOp::Create(create("/q".to_owned(), CreateMode::Persistent)),
        _ => {}
    }
    match index % 9 {
        0 | 1 => WriteOp::Create(create(some(1), CreateMode::Persistent)),
        2 => WriteOp::SetData { path: some(7), data, version: -1 },
        3 => WriteOp::Create(create(format!("/e{index}"), CreateMode::Ephemeral)),
        4 => WriteOp::Delete { path: some(13), version: -1 },
        5 => WriteOp::Create(create("/q/s-".to_owned(), CreateMode::PersistentSequential)),
        6 => WriteOp::Multi(vec![
            MultiOp::Create(create(format!("/m{}", index % 50), CreateMode::Persistent)),
            MultiOp::SetData { path: some(3), data, version: -1 },
        ]),
        7 => WriteOp::Create(create(format!("/t{}", index % 40), CreateMode::PersistentWithTtl)),
        _ => {
            let acl = vec![Acl { perms: 31, id: Id::new("ip", format!("10.0.0.{}", index % 4)) }];
            WriteOp::SetAcl { path: some(5), acl: Some(acl), version: -1 }
        }
    }
}

/// Entries of the history from `from` on, which follow `prev`.
pub fn entries(prev: Position, from: u64, count: u64) -> Vec<Entry> {
    let mut hash = prev.hash;
    (from..from + count)
        .map(|index| {
            let entry = Entry::after(hash, zxid(index), 1_000_000 + index as i64, payload(index));
            hash = entry.hash;
            entry
        })
        .collect()
}

/// Executes the history in memory.
pub struct Model {
    apply: Apply<MemoryStore>,
}

impl Default for Model {
    fn default() -> Model {
        Model { apply: Apply::new(ServerId(1), MemoryStore::new(), Vec::new()) }
    }
}

impl Model {
    /// Executes up to and including this entry; it never goes back.
    pub fn advance(&mut self, to: Zxid) {
        let mut at = self.apply.position();
        assert!(at.zxid <= to, "the model is at {} already, and {to} is wanted", at.zxid);
        while at.zxid < to {
            self.apply.apply(&entries(at, next(at), 1));
            at = self.apply.position();
        }
    }

    /// The place in the history after it.
    pub fn position(&mut self) -> Position {
        self.apply.position()
    }

    /// What is in the store.
    pub fn rows(&mut self) -> Vec<Row> {
        rows(&self.apply.store().view())
    }
}

/// A row of a store.
pub type Row = (Cf, Bytes, Bytes);

/// All rows of a view on which servers must agree: what the change feed keeps depends on the batches that were executed.
pub fn rows(view: &impl TreeView) -> Vec<Row> {
    let mut rows = Vec::new();
    for cf in Cf::ALL.into_iter().filter(|cf| *cf != Cf::Feed) {
        view.scan(cf, &[], &[0xff], &mut |key, value| {
            rows.push((cf, Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            true
        });
    }
    rows
}

/// A store in little memory.
pub fn small() -> StoreOptions {
    StoreOptions { block_cache_bytes: 1 << 20, memtable_bytes: 2 << 20 }
}

/// Recovers a data folder, as a server does.
pub fn start(device: Arc<dyn LogDevice>, root: &Path) -> Result<(Recovery, RocksStore), RecoverError> {
    let options = RecoverOptions {
        server: ServerId(1),
        cluster: None,
        instance: 5,
        log: LogOptions { segment_bytes: 64 << 10, retention_bytes: 0 },
        tail_cache_bytes: 0,
    };
    let mut opener = RocksOpener::new(root, small());
    let recovery = recover(device, &options, &mut opener)?;
    Ok((recovery, opener.into_store().expect("recovery ends with an open store")))
}

/// Makes a fresh server a member.
pub fn join(recovery: &mut Recovery) {
    if recovery.recovered.identity.membership == Membership::Empty {
        let identity = Identity { membership: Membership::Member, cluster: 8, ..recovery.recovered.identity };
        recovery.log.write(&[(0, LogOp::SetIdentity(identity))]).expect("the log can be written");
    }
}

/// Executes what the log holds and the store lacks.
pub fn catch_up(recovery: &Recovery, apply: &mut Apply<RocksStore>) {
    let applied = apply.position().zxid;
    let tail: Vec<Entry> = recovery.recovered.tail.iter().filter(|entry| entry.zxid > applied).cloned().collect();
    for batch in tail.chunks(50) {
        apply.apply(batch);
    }
    assert_eq!(apply.position(), recovery.recovered.end, "the log holds what the store lacks");
}

/// Copies a folder.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("it is there") {
        let entry = entry.expect("readable");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("known").is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// A well spread number of another (splitmix64's finalizer).
pub fn spread(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
