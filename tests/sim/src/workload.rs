//! What clients ask for: a fight over a few paths, and the patterns that services use ZooKeeper for. How much of each, the
//! seed says ([`Load`]).

use bytes::Bytes;
use corral_core::session::Consistency;
use corral_core::tree::op::{Answer, Create, MultiOp, MultiReadOp, ReadOp, WriteOp};
use corral_proto::{Acl, CreateMode, ErrorCode, WatchKind, Zxid};

use crate::client::Client;
use crate::history::ClientResult;
use crate::history::registers;
use crate::options::Load;

/// Parent of very many children.
const HOT: &str = "/hot";

/// Parent of elements that are put at the end and taken from the front.
const QUEUE: &str = "/q";

/// Data of a request that is nearly as large as ZooKeeper takes (1 MiB less one byte, paths and all).
const LARGE_BYTES: u64 = 1_040_000;

/// A multi with more operations is a huge one.
pub const HUGE_MULTI: usize = 50;

impl Client {
    /// Draws a path.
    pub fn path(&mut self, load: &Load) -> String {
        let top = format!("/p{}", self.rng.below(load.paths));
        if self.rng.chance(300) { format!("{top}/c{}", self.rng.below(3)) } else { top }
    }

    fn data(&mut self, load: &Load) -> Option<Bytes> {
        let len = match self.rng.chance(load.large_per_mille) {
            true => LARGE_BYTES - self.rng.below(1000),
            false => self.rng.below(load.data_bytes + 1),
        };
        let mark = self.rng.next().to_le_bytes();
        Some(Bytes::from_iter((0..len).map(|i| mark[i as usize % mark.len()])))
    }

    fn version(&mut self) -> i32 {
        if self.rng.chance(600) { -1 } else { self.rng.below(4) as i32 }
    }

    fn create(&mut self, load: &Load) -> Create {
        let mode = match self.rng.below(20) {
            0..8 => CreateMode::Persistent,
            8..13 => CreateMode::Ephemeral,
            13..16 => CreateMode::PersistentSequential,
            16..18 => CreateMode::EphemeralSequential,
            18 => CreateMode::Container,
            _ => CreateMode::PersistentWithTtl,
        };
        Create {
            path: self.path(load),
            data: self.data(load),
            acl: Some(Acl::open()),
            mode,
            ttl_ms: if mode.is_ttl() { 1 + self.rng.below(2000) as i64 } else { 0 },
        }
    }

    fn plain(path: String, mode: CreateMode, data: Option<Bytes>) -> Create {
        Create { path, data, acl: Some(Acl::open()), mode, ttl_ms: 0 }
    }

    /// Draws a write; `None` ends the session.
    pub fn draw_write(&mut self, load: &Load) -> Option<WriteOp> {
        if self.rng.chance(load.close_per_mille) {
            return None;
        }
        if self.rng.chance(load.register_per_mille) {
            return Some(self.register_write(load));
        }
        if self.rng.chance(load.hot_per_mille) {
            return Some(self.hot_write());
        }
        if self.rng.chance(load.queue_per_mille) {
            return Some(self.queue_write());
        }
        Some(match self.rng.below(100) {
            0..40 => WriteOp::Create(self.create(load)),
            40..65 => WriteOp::SetData { path: self.path(load), data: self.data(load), version: self.version() },
            65..83 => WriteOp::Delete { path: self.path(load), version: self.version() },
            83..98 if load.huge_multi_ops > 0 && self.rng.chance(100) => {
                // It is done only if nothing in it fails. Its end comes with the session, at once.
                let ops = self.rng.between(HUGE_MULTI as u64 + 1, load.huge_multi_ops);
                let create = Client::plain("/m-".to_owned(), CreateMode::EphemeralSequential, None);
                let mut ops = vec![MultiOp::Create(create); ops as usize];
                ops.push(self.multi_op(load));
                WriteOp::Multi(ops)
            }
            83..98 => {
                let ops = 1 + self.rng.below(4);
                WriteOp::Multi((0..ops).map(|_| self.multi_op(load)).collect())
            }
            _ => WriteOp::SetAcl { path: self.path(load), acl: Some(Acl::open()), version: self.version() },
        })
    }

    fn multi_op(&mut self, load: &Load) -> MultiOp {
        match self.rng.below(10) {
            0..4 => MultiOp::Create(self.create(load)),
            4..7 => MultiOp::SetData { path: self.path(load), data: self.data(load), version: self.version() },
            7..9 => MultiOp::Delete { path: self.path(load), version: self.version() },
            _ => MultiOp::Check { path: self.path(load), version: -1 },
        }
    }

    /// A text that no other write has.
    fn mark(&mut self) -> Option<Bytes> {
        Some(Bytes::from(format!("{:x}", self.rng.next())))
    }

    /// Compare-and-set, locks, and transactions over two registers.
    fn register_write(&mut self, load: &Load) -> WriteOp {
        let path = registers::path(self.rng.below(load.registers));
        let version = match self.versions.get(&path) {
            Some(version) if self.rng.chance(700) => *version,
            _ => -1,
        };
        match self.rng.below(10) {
            0 => WriteOp::Create(Client::plain(path, CreateMode::Persistent, self.mark())),
            1 => WriteOp::Create(Client::plain(path, CreateMode::Ephemeral, self.mark())),
            2 => WriteOp::Delete { path, version },
            3 => {
                let other = registers::path(self.rng.below(load.registers));
                let check = MultiOp::Check { path: other.clone(), version: -1 };
                let set = MultiOp::SetData { path, data: self.mark(), version };
                let too = MultiOp::SetData { path: other, data: self.mark(), version: -1 };
                WriteOp::Multi(vec![check, set, too])
            }
            _ => WriteOp::SetData { path, data: self.mark(), version },
        }
    }

    fn hot_write(&mut self) -> WriteOp {
        let name = self.rng.below(200);
        let child = format!("{HOT}/n{name}");
        match self.rng.below(10) {
            0 => WriteOp::Create(Client::plain(HOT.to_owned(), CreateMode::Persistent, None)),
            1..4 => WriteOp::Create(Client::plain(format!("{HOT}/s-"), CreateMode::EphemeralSequential, None)),
            4..7 => WriteOp::Create(Client::plain(child, CreateMode::Persistent, None)),
            _ => WriteOp::Delete { path: child, version: -1 },
        }
    }

    fn queue_write(&mut self) -> WriteOp {
        if self.rng.chance(100) {
            return WriteOp::Create(Client::plain(QUEUE.to_owned(), CreateMode::Persistent, None));
        }
        match self.queue.pop_front() {
            Some(name) if self.rng.chance(500) => WriteOp::Delete { path: format!("{QUEUE}/{name}"), version: -1 },
            _ => {
                let mode = CreateMode::PersistentSequential;
                WriteOp::Create(Client::plain(format!("{QUEUE}/e-"), mode, self.mark()))
            }
        }
    }

    /// Draws a read, whether it arms a watch, and how fresh it must be. `known`: a zxid that was answered somewhere.
    pub fn draw_read(&mut self, load: &Load, known: Zxid) -> (ReadOp, bool, Consistency) {
        if self.rng.chance(load.register_per_mille) {
            let path = registers::path(self.rng.below(load.registers));
            let op = match self.rng.chance(800) {
                true => ReadOp::GetData { path },
                false => {
                    let other = registers::path(self.rng.below(load.registers));
                    ReadOp::MultiRead([path, other].map(|path| MultiReadOp::GetData { path }).to_vec())
                }
            };
            return (op, false, Consistency::Linearizable);
        }
        let watch = self.rng.chance(load.watch_per_mille);
        if self.rng.chance(load.hot_per_mille.max(load.queue_per_mille)) {
            let path = if self.rng.chance(load.hot_per_mille) { HOT } else { QUEUE };
            return (ReadOp::GetChildren { path: path.to_owned() }, watch, Consistency::Local);
        }
        let path = if self.rng.chance(100) { "/".to_owned() } else { self.path(load) };
        let op = match self.rng.below(20) {
            0..7 => ReadOp::GetData { path },
            7..12 => ReadOp::Exists { path },
            12..16 => ReadOp::GetChildren { path },
            16 => ReadOp::GetAcl { path },
            17 => ReadOp::CountDescendants { path },
            18 => ReadOp::MultiRead(vec![
                MultiReadOp::GetData { path: path.clone() },
                MultiReadOp::GetChildren { path },
                MultiReadOp::GetData { path: self.path(load) },
            ]),
            _ => ReadOp::GetEphemerals { prefix: "/".to_owned() },
        };
        let consistency = match self.rng.chance(load.linearizable_per_mille) {
            true => Consistency::Linearizable,
            false if self.rng.chance(100) => Consistency::AtLeast(known),
            false => Consistency::Local,
        };
        (op, watch, consistency)
    }

    /// Draws the watches to remove, or to ask for: often ones that are there.
    pub fn draw_watches(&mut self, load: &Load) -> (String, Option<WatchKind>) {
        let armed = self.armed.len() as u64;
        let path = match self.armed.keys().nth(self.rng.below(armed) as usize) {
            Some((path, _)) if self.rng.chance(600) => path.clone(),
            _ => self.path(load),
        };
        let kinds = [
            None,
            Some(WatchKind::Data),
            Some(WatchKind::Child),
            Some(WatchKind::Persistent),
            Some(WatchKind::PersistentRecursive),
        ];
        (path, *self.rng.pick(&kinds))
    }

    /// Remembers what an answered read says.
    pub fn learn(&mut self, op: &ReadOp, result: &ClientResult) {
        match (op, result) {
            (ReadOp::GetData { path }, Ok(Answer::Data { stat, .. })) if path.starts_with("/r") => {
                self.versions.insert(path.clone(), stat.version);
            }
            (ReadOp::GetChildren { path }, Ok(Answer::Children { children, .. })) if path == QUEUE => {
                // Not everybody goes for the first.
                let from = self.rng.below(3) as usize;
                self.queue = children.iter().skip(from).take(10).cloned().collect();
            }
            _ => {}
        }
    }
}

/// What an answered write is for the record, if it is anything special.
pub fn landmark(op: &WriteOp, result: &ClientResult) -> Option<&'static str> {
    match (op, result) {
        (WriteOp::SetData { path, version, .. }, result) if path.starts_with("/r") && *version != -1 => match result {
            Ok(_) => Some("load: compare-and-set won"),
            Err(ErrorCode::BadVersion) => Some("load: compare-and-set lost"),
            Err(_) => None,
        },
        (WriteOp::Create(create), result) if create.path.starts_with("/r") && create.mode.is_ephemeral() => {
            Some(if result.is_ok() { "load: lock taken" } else { "load: lock was taken" })
        }
        (WriteOp::Create(create), Ok(_)) if create.path.starts_with("/hot/") => Some("load: hot parent: created"),
        (WriteOp::Delete { path, .. }, Ok(_)) if path.starts_with("/hot/") => Some("load: hot parent: deleted"),
        (WriteOp::Create(create), Ok(_)) if create.path.starts_with("/q/") => Some("load: queue: put"),
        (WriteOp::Delete { path, .. }, Ok(_)) if path.starts_with("/q/") => Some("load: queue: taken"),
        (WriteOp::Delete { path, .. }, Err(_)) if path.starts_with("/q/") => Some("load: queue: somebody else took it"),
        (WriteOp::Multi(ops), Ok(Answer::Multi(_))) if ops.len() > HUGE_MULTI => Some("load: huge multi done"),
        (WriteOp::Multi(ops), _) if ops.len() > HUGE_MULTI => Some("load: huge multi refused"),
        (op, Ok(_)) if op.bytes() > LARGE_BYTES as usize - 1000 => Some("load: nearly the largest data"),
        _ => None,
    }
}
