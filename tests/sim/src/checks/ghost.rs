//! The true state: what is in each log, on each disk, and what is committed.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use corral_core::zab::io::{Entry, Identity, LogOp, Position, Promise, Role, Status};
use corral_proto::{ServerId, Zxid};

use super::CommittedEntry;

/// A log as positions.
#[derive(Clone, Debug, Default)]
pub struct LogImage {
    base: Position,
    entries: Vec<Position>,
}

impl LogImage {
    /// A log that begins after a position.
    pub fn from_base(base: Position) -> LogImage {
        LogImage { base, entries: Vec::new() }
    }

    /// Where it begins.
    pub fn base(&self) -> Position {
        self.base
    }

    /// Where it ends.
    pub fn end(&self) -> Position {
        self.entries.last().copied().unwrap_or(self.base)
    }

    /// The hash at an entry or at the base.
    pub fn hash_at(&self, zxid: Zxid) -> Option<u64> {
        if zxid == self.base.zxid {
            return Some(self.base.hash);
        }
        let index = self.entries.binary_search_by_key(&zxid, |p| p.zxid).ok()?;
        Some(self.entries[index].hash)
    }

    /// Whether it has exactly this entry, or begins after it (and so contained it when the base was committed).
    pub fn holds(&self, position: Position) -> bool {
        self.base.zxid > position.zxid || self.hash_at(position.zxid) == Some(position.hash)
    }

    /// The entries after a zxid.
    pub fn after(&self, zxid: Zxid) -> &[Position] {
        &self.entries[self.entries.partition_point(|p| p.zxid <= zxid)..]
    }

    /// The last place that is in both logs, as far as both still have it.
    pub fn common(&self, other: &LogImage) -> Option<Position> {
        let ours = std::iter::once(&self.base).chain(&self.entries);
        ours.rev().find(|p| other.hash_at(p.zxid) == Some(p.hash)).copied()
    }

    /// Adds an entry.
    pub fn append(&mut self, position: Position) {
        self.entries.push(position);
    }

    /// Forgets what is after `to`.
    pub fn truncate(&mut self, to: Zxid) {
        self.entries.truncate(self.entries.partition_point(|p| p.zxid <= to));
    }

    /// Forgets what is at or below `base`.
    pub fn trim(&mut self, base: Position) {
        if base.zxid <= self.base.zxid {
            return;
        }
        self.entries.drain(..self.entries.partition_point(|p| p.zxid <= base.zxid));
        self.base = base;
    }

    /// The base, then for each epoch of the entries the last position.
    pub fn epochs(&self) -> Vec<Position> {
        let mut table = vec![self.base];
        for position in &self.entries {
            let rows = table.len();
            match table.last_mut() {
                Some(last) if rows > 1 && last.zxid.epoch() == position.zxid.epoch() => *last = *position,
                _ => table.push(*position),
            }
        }
        table
    }
}

/// An entry that some leader proposed.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// Who.
    pub leader: ServerId,
    /// What it follows.
    pub previous: Position,
    /// The running hash after it.
    pub hash: u64,
    /// The leader's clock, ms.
    pub stamp_ms: i64,
    /// What it carries.
    pub payload: Bytes,
}

/// The leader of an epoch.
#[derive(Clone, Copy, Debug)]
pub struct Established {
    /// Who.
    pub leader: ServerId,
    /// Which process of it.
    pub process: u64,
    /// The end of its log before (e,0).
    pub previous: Position,
}

/// One server as it truly is.
#[derive(Clone, Debug)]
pub struct ServerGhost {
    /// Whether it is configured to vote.
    pub voter: bool,
    /// The log as its machine sees it.
    pub mem: LogImage,
    /// The log that a crash now would leave.
    pub disk: LogImage,
    /// Given to the log writer, not known to be durable.
    pub pending: VecDeque<(u64, LogOp)>,
    /// The log writer may be dropping what is at or below it.
    pub trimming: Zxid,
    /// On disk.
    pub promise: Promise,
    /// Submitted or on disk.
    pub promise_submitted: u32,
    /// On disk; `None` before its first start and after the folder was lost.
    pub identity: Option<Identity>,
    /// Commit watermark of the process.
    pub committed: Zxid,
    /// Last entry handed out for execution in this process (or found in the store).
    pub handed_out: Position,
    /// What the store contains.
    pub store: Position,
    /// What the store contains after a crash.
    pub persisted: Zxid,
    /// Whether a process runs.
    pub running: bool,
    /// Its folder is an old copy, and every other voter knows: it takes part in nothing.
    pub outdated: bool,
    /// The last frame of its log rotted, which nobody can tell from a torn write.
    pub forgot: bool,
}

impl ServerGhost {
    fn new(voter: bool) -> ServerGhost {
        ServerGhost {
            voter,
            mem: LogImage::default(),
            disk: LogImage::default(),
            pending: VecDeque::new(),
            trimming: Zxid::ZERO,
            promise: super::NO_PROMISE,
            promise_submitted: 0,
            identity: None,
            committed: Zxid::ZERO,
            handed_out: Position::default(),
            store: Position::default(),
            persisted: Zxid::ZERO,
            running: false,
            outdated: false,
            forgot: false,
        }
    }

    /// The process is gone; its disk stays.
    pub fn on_crash(&mut self) {
        self.running = false;
        self.committed = Zxid::ZERO;
    }

    /// The disk is gone.
    pub fn on_wiped(&mut self) {
        *self = ServerGhost::new(self.voter);
    }

    /// What a copy of the folder holds: what is durable. A process that runs has begun nothing of what is queued; one
    /// that died in the middle of it left a part that the copy has, too, and that its next start may finish.
    pub fn as_copied(&self) -> ServerGhost {
        let disk = self.disk.clone();
        ServerGhost {
            mem: disk.clone(),
            disk,
            pending: if self.running { VecDeque::new() } else { self.pending.clone() },
            committed: Zxid::ZERO,
            running: false,
            outdated: true,
            ..self.clone()
        }
    }

    /// An operation reached the disk.
    pub fn make_durable(&mut self, op: &LogOp) {
        match op {
            LogOp::Append(entries) => {
                for entry in entries {
                    self.disk.append(Position { zxid: entry.zxid, hash: entry.hash });
                }
            }
            LogOp::Truncate { to } => self.disk.truncate(to.zxid),
            LogOp::SetPromise(promise) => self.promise = *promise,
            LogOp::SetIdentity(identity) => self.identity = Some(*identity),
            LogOp::InstallSnapshot(meta) => self.disk = LogImage::from_base(meta.position),
        }
    }

    /// Whether its vote counts, by what is on its disk.
    pub fn counts(&self) -> bool {
        self.voter && !self.outdated && self.identity.is_some_and(|i| super::votes(i.membership))
    }
}

/// All servers, all proposals, and the one history.
pub struct Ghost {
    servers: BTreeMap<ServerId, ServerGhost>,
    /// Every entry ever proposed.
    pub proposed: BTreeMap<Zxid, Proposal>,
    /// The highest promise that each server ever had on a disk, lost or not.
    pub promises: BTreeMap<ServerId, Promise>,
    /// Every epoch's leader.
    pub established: BTreeMap<u32, Established>,
    /// The longest prefix that any leader ever declared committed.
    pub committed: Vec<CommittedEntry>,
}

impl Ghost {
    /// Fresh servers.
    pub fn new(voters: u64, observers: u64) -> Ghost {
        Ghost {
            servers: (1..=voters + observers).map(|s| (ServerId(s), ServerGhost::new(s <= voters))).collect(),
            proposed: BTreeMap::new(),
            promises: BTreeMap::new(),
            established: BTreeMap::new(),
            committed: Vec::new(),
        }
    }

    /// One server.
    pub fn server(&self, server: ServerId) -> &ServerGhost {
        &self.servers[&server]
    }

    /// One server.
    pub fn server_mut(&mut self, server: ServerId) -> &mut ServerGhost {
        self.servers.get_mut(&server).expect("servers are fixed for a run")
    }

    /// All servers.
    pub fn servers(&self) -> impl Iterator<Item = (ServerId, &ServerGhost)> {
        self.servers.iter().map(|(id, server)| (*id, server))
    }

    /// How many voters are a majority.
    pub fn majority(&self) -> usize {
        self.servers.values().filter(|s| s.voter).count() / 2 + 1
    }

    /// End of what is committed.
    pub fn head(&self) -> Position {
        self.committed.last().map(|e| e.position).unwrap_or_default()
    }

    /// The committed entry of a zxid.
    pub fn committed_at(&self, zxid: Zxid) -> Option<&CommittedEntry> {
        let index = self.committed.binary_search_by_key(&zxid, |e| e.position.zxid).ok()?;
        Some(&self.committed[index])
    }

    /// Whether a position is in what is committed (the empty log is).
    pub fn is_committed(&self, position: Position) -> bool {
        position == Position::default() || self.committed_at(position.zxid).is_some_and(|e| e.position == position)
    }

    /// Whether appending this entry now is proposing it.
    pub fn is_proposal(&self, status: &Status, entry: &Entry) -> bool {
        status.role == Role::Leading && status.epoch == entry.zxid.epoch() && !self.proposed.contains_key(&entry.zxid)
    }

    /// Whether a log that ends in `end` contains `position`, by what was proposed.
    pub fn is_prefix(&self, position: Position, end: Position) -> bool {
        let mut at = end;
        while at.zxid > position.zxid {
            match self.proposed.get(&at.zxid) {
                Some(proposal) => at = proposal.previous,
                None => return false,
            }
        }
        at == position
    }
}
