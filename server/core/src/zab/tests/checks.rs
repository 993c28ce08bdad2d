//! What must hold, asserted by somebody who sees everything. The names are those of the protocol's list of invariants.

use std::collections::BTreeMap;

use corral_proto::Zxid;

use super::cluster::{Id, Node, Proposer, Store};
use crate::zab::State;
use crate::zab::io::{LogOp, Membership, Position};
use crate::zab::message::Message;

/// What the ensemble has done for good.
pub struct Ghost {
    voters: Vec<Id>,
    /// Everything ever committed, in order.
    committed: Vec<Position>,
    /// Every entry a leader ever made.
    proposed: BTreeMap<Zxid, u64>,
    /// Who opened each epoch.
    established: BTreeMap<u32, Id>,
    /// Highest epoch that a server acknowledged, by folder.
    acked_epochs: BTreeMap<Id, u32>,
    /// The last write of each proposer that is committed.
    lanes: BTreeMap<Proposer, u32>,
    /// Digest of a store after so many entries.
    digests: BTreeMap<usize, u64>,
}

impl Ghost {
    pub fn new(voters: Vec<Id>) -> Ghost {
        Ghost {
            voters,
            committed: Vec::new(),
            proposed: BTreeMap::new(),
            established: BTreeMap::new(),
            acked_epochs: BTreeMap::new(),
            lanes: BTreeMap::new(),
            digests: BTreeMap::new(),
        }
    }

    pub fn last_committed(&self) -> Position {
        self.committed.last().copied().unwrap_or_default()
    }

    /// Committed writes of clients.
    pub fn writes(&self) -> usize {
        self.committed.iter().filter(|p| p.zxid.counter() > 0).count()
    }

    fn is_committed(&self, position: Position) -> bool {
        position.zxid == Zxid::ZERO
            || self
                .committed
                .binary_search_by_key(&position.zxid, |p| p.zxid)
                .is_ok_and(|at| self.committed[at] == position)
    }

    /// The last committed position at or below `zxid`.
    fn committed_upto(&self, zxid: Zxid) -> Position {
        let at = self.committed.partition_point(|p| p.zxid <= zxid);
        at.checked_sub(1).map_or(Position::default(), |at| self.committed[at])
    }

    /// The largest committed position in a log.
    fn committed_in(&self, log: &super::cluster::Log) -> Position {
        let at = self.committed.partition_point(|p| log.holds(*p));
        at.checked_sub(1).map_or(Position::default(), |at| self.committed[at])
    }

    pub fn on_crash(&mut self, _id: Id) {}

    pub fn on_lost(&mut self, id: Id) {
        self.acked_epochs.remove(&id);
    }

    /// An operation is given to the log writer; `leading` is the epoch this server leads, 0 if it does not.
    pub fn on_submit(&mut self, id: Id, leading: u32, op: &LogOp, node: &Node) {
        let process = node.process.as_ref().expect("a running server");
        let mem = &process.mem;
        match op {
            LogOp::Append(entries) => {
                for entry in entries {
                    if let Some(known) = self.proposed.get(&entry.zxid) {
                        assert_eq!(known, &entry.hash, "I1, I3: s{id} appends {entry:?} with another history");
                        continue;
                    }
                    let epoch = entry.zxid.epoch();
                    if entry.zxid.counter() == 0 {
                        assert_eq!(leading, epoch, "I2: s{id} opens epoch {epoch} and does not lead it");
                        let former = self.established.insert(epoch, id);
                        assert_eq!(former, None, "I2: s{id} opens epoch {epoch}, which is open");
                    }
                    assert_eq!(self.established.get(&epoch), Some(&id), "I1: s{id} appends {entry:?}, not proposed");
                    self.proposed.insert(entry.zxid, entry.hash);
                    if entry.zxid.counter() <= 1 {
                        // A deposed leader may know nothing of later epochs.
                        let last = self.committed_upto(Zxid::new(epoch, u32::MAX));
                        assert!(mem.holds(last), "I6: s{id} opens {:?} and does not have {last:?}", entry.zxid);
                    }
                }
            }
            LogOp::Truncate { to } => {
                let kept = self.committed_in(mem);
                assert!(kept.zxid <= to.zxid, "I14: s{id} truncates {kept:?} away, to {to:?}");
                assert!(process.store.position.zxid <= to.zxid, "I14: s{id} executed beyond {to:?}");
            }
            LogOp::InstallSnapshot(meta) => {
                assert!(self.is_committed(meta.position), "I18: s{id} installs {:?}: not committed", meta.position);
                let kept = self.committed_in(mem);
                assert!(kept.zxid <= meta.position.zxid, "P11: s{id} installs {meta:?} and forgets {kept:?}");
            }
            LogOp::SetPromise(_) | LogOp::SetIdentity(_) => {}
        }
    }

    pub fn on_send(&mut self, id: Id, to: Id, _link: u64, message: &Message, node: &Node) {
        let process = node.process.as_ref().expect("a running server");
        let disk = &node.disk;
        let promised = self.acked_epochs.get(&id).copied().unwrap_or(0);
        match message {
            Message::Ack { epoch, zxid, .. } => {
                let held = disk.log.position_of(*zxid).is_some() || *zxid < disk.log.base.zxid;
                assert!(held, "I10: s{id} acknowledges {zxid:?}, which is not on its disk");
                assert!(process.mem.position_of(*zxid).is_some(), "I10: s{id} acknowledges what it drops");
                assert!(*epoch >= promised, "I11: s{id} acknowledges in {epoch} and has promised {promised}");
            }
            Message::AckEpoch { epoch, counts, last, .. } => {
                assert_eq!(disk.promise.epoch, *epoch, "P3: AckEpoch of s{id} leaves before its promise is on disk");
                assert_eq!(disk.log.end(), *last, "P4: s{id} does not report its durable log");
                assert!(*epoch >= promised, "I11: s{id} goes back to epoch {epoch}");
                if *counts {
                    assert_eq!(disk.promise.leader.0, to, "P6: s{id} counts for two leaders");
                    assert_eq!(disk.identity.membership, Membership::Member, "P9: s{id} counts");
                }
                self.acked_epochs.insert(id, *epoch);
            }
            Message::LeaderInfo { epoch } => {
                assert_eq!(disk.promise.epoch, *epoch, "P3: LeaderInfo of s{id} leaves before its promise is on disk");
                assert_eq!(disk.promise.leader.0, id);
            }
            Message::Pong { epoch, .. } => {
                assert!(*epoch >= process.zab.promised.epoch, "s{id} answers a ping of {epoch} after a promise");
            }
            Message::UpToDate { epoch, commit } => {
                let last = self.last_committed().zxid;
                assert!(Zxid::new(*epoch, 0) <= *commit && *commit <= last, "P21: s{id} lets s{to} serve too early");
            }
            Message::Entries { commit, .. } | Message::Commit { commit, .. } | Message::Ping { commit, .. } => {
                assert!(*commit <= self.last_committed().zxid, "I16: s{id} says that {commit:?} is committed");
            }
            _ => {}
        }
    }

    /// The commit watermark of a server rose.
    pub fn on_commit(&mut self, id: Id, nodes: &BTreeMap<Id, Node>) {
        let node = &nodes[&id];
        let process = node.process.as_ref().expect("a running server");
        let (to, mem, last) = (process.committed, &process.mem, self.last_committed());
        // Whoever opened the epoch commits in it, even if the same step ends its leadership.
        if self.established.get(&to.epoch()) == Some(&id) {
            let position = mem.position_of(to).expect("a leader commits what it has");
            // A copy that was acknowledged and destroyed later does no harm: its server does not vote.
            let held = self.voters.iter().filter(|v| nodes[v].lost || nodes[v].disk.log.holds(position)).count();
            assert!(held > self.voters.len() / 2, "I15: s{id} commits {to:?} with {held} durable copies");
            if to > last.zxid {
                if let State::Leading(leading) = &process.zab.state
                    && mem.end().zxid.epoch() == leading.epoch
                {
                    assert_eq!(to.epoch(), leading.epoch, "P20: s{id} commits an older epoch by counting");
                }
                assert!(mem.holds(last), "I7: s{id} commits {to:?} and does not have {last:?}");
                for entry in mem.after(last.zxid) {
                    if entry.zxid > to {
                        break;
                    }
                    self.committed.push(Position { zxid: entry.zxid, hash: entry.hash });
                    if let Some((proposer, seq)) = Proposer::parse(&entry.payload) {
                        let lane = self.lanes.entry(proposer).or_default();
                        *lane += 1;
                        assert_eq!(*lane, seq, "writes of {proposer:?} are lost, doubled or out of order");
                    }
                }
            }
        }
        let position = mem.position_of(to).unwrap_or_else(|| panic!("s{id} committed {to:?}, which it has not"));
        assert!(self.is_committed(position), "I16: s{id} believes that {position:?} is committed");
    }

    /// The `index`-th entry that a store executes.
    pub fn check_executed(&self, id: Id, index: usize, position: Position) {
        let expected = self.committed.get(index);
        assert_eq!(expected, Some(&position), "I7, I13: s{id} executes something else as its entry {index}");
    }

    pub fn on_executed(&mut self, id: Id, store: Store) {
        let former = self.digests.insert(store.count, store.digest);
        assert!(former.is_none_or(|d| d == store.digest), "I17: the store of s{id} differs at {:?}", store.position);
    }

    /// I9: never a majority that could elect a leader without what is committed.
    pub fn check_committed_is_kept(&self, nodes: &BTreeMap<Id, Node>, changed: Id) {
        let last = self.last_committed();
        let lacks = |v: &&Id| {
            let node = &nodes[v];
            node.disk.identity.membership == Membership::Member && !node.lost && !node.disk.log.holds(last)
        };
        let lacking = self.voters.iter().filter(lacks).count();
        assert!(lacking <= self.voters.len() / 2, "I9: {lacking} voters lack {last:?} after a change at s{changed}");
        let disk = &nodes[&changed].disk;
        let base = disk.log.base;
        assert!(self.is_committed(base), "s{changed}'s log begins at {base:?}, which is not committed");
        assert!(self.is_committed(disk.store.position), "s{changed}'s store holds what is not committed");
        assert!(disk.store.position.zxid >= base.zxid, "P27: s{changed}'s store is older than its log's base");
        debug_assert!(self.committed_upto(base.zxid) == base);
    }
}
