//! P35: that trees differ is not forgotten before a majority was found equal again, and a leader gives nobody a snapshot while
//! it is known, nor before it has compared in its epoch or waited for it.

use std::collections::{BTreeMap, BTreeSet};

use corral_core::zab::io::{Phase, Role, Status};
use corral_proto::{ServerId, Zxid};

use super::{Check, Ghost, ensure};
use crate::schedule::{MS, Micros};

/// What a tree that stays different from the others' breaks, too.
pub const NAME: &str = "P35 equal trees";

/// Digests remembered of each process: more than the processes themselves remember.
const DIGESTS_KEPT: usize = 500;

/// A leader's process in one of its epochs.
type Leadership = (u64, u32);
type Digests = BTreeMap<Zxid, BTreeMap<ServerId, u64>>;

/// What processes know of each other's trees.
#[derive(Default)]
pub(super) struct Trees {
    /// Digests of each process's own tree.
    own: BTreeMap<u64, BTreeMap<Zxid, u64>>,
    /// Digests that a leader was told.
    told: BTreeMap<Leadership, Digests>,
    /// The latest entry at which a leader knew a majority of those that vote to have equal trees.
    equal: BTreeMap<Leadership, Zxid>,
    /// When a leader's epoch was opened, by its own clock.
    opened: BTreeMap<Leadership, Micros>,
    /// The latest entry at which a process knows trees to differ.
    doubts: BTreeMap<u64, Zxid>,
}

impl Trees {
    /// A process executed something, or was started; `epoch`: of its leadership, if it leads.
    pub(super) fn on_own(&mut self, ghost: &Ghost, at: (ServerId, u64), epoch: Option<u32>, zxid: Zxid, digest: u64) {
        let (server, process) = at;
        let own = self.own.entry(process).or_default();
        own.insert(zxid, digest);
        if own.len() > DIGESTS_KEPT {
            own.pop_first();
        }
        if let Some(epoch) = epoch {
            self.compare(ghost, server, (process, epoch), zxid);
        }
    }

    /// The tree of a process was replaced.
    pub(super) fn on_opened(&mut self, process: u64) {
        self.own.remove(&process);
    }

    /// A leader is told the digest of a peer.
    pub(super) fn on_told(
        &mut self,
        ghost: &Ghost,
        leader: ServerId,
        leadership: Leadership,
        peer: ServerId,
        (zxid, digest): (Zxid, u64),
    ) {
        let told = self.told.entry(leadership).or_default();
        told.entry(zxid).or_default().insert(peer, digest);
        if told.len() > DIGESTS_KEPT {
            told.pop_first();
        }
        self.compare(ghost, leader, leadership, zxid);
    }

    fn compare(&mut self, ghost: &Ghost, leader: ServerId, leadership: Leadership, zxid: Zxid) {
        let Some(own) = self.own.get(&leadership.0).and_then(|own| own.get(&zxid)) else { return };
        let told = self.told.get(&leadership).and_then(|told| told.get(&zxid));
        let all = || told.into_iter().flatten().map(|(s, d)| (*s, *d)).chain([(leader, *own)]);
        let votes = |digest: u64| all().filter(|(s, d)| *d == digest && ghost.server(*s).counts()).count();
        let digests: BTreeSet<u64> = all().map(|(_, d)| d).collect();
        if digests.into_iter().any(|digest| votes(digest) >= ghost.majority()) {
            let equal = self.equal.entry(leadership).or_default();
            *equal = zxid.max(*equal);
        }
    }

    fn equal(&self, leadership: Leadership) -> Zxid {
        self.equal.get(&leadership).copied().unwrap_or_default()
    }

    /// A leader is told by a learner, as it joins, what that knows.
    pub(super) fn on_doubt_told(&mut self, leadership: Leadership, doubt: Zxid) {
        let opening = Zxid::new(leadership.1, 0);
        if doubt > Zxid::ZERO && self.equal(leadership) < opening {
            let known = self.doubts.entry(leadership.0).or_default();
            *known = doubt.min(opening).max(*known);
        }
    }

    /// A step is over. `leader`: the process of the leader that is followed, if it runs.
    pub(super) fn on_status(
        &mut self,
        process: u64,
        leader: Option<u64>,
        now: Micros,
        before: &Status,
        status: &Status,
    ) -> bool {
        if status.role == Role::Leading && matches!(status.phase, Phase::Synchronization | Phase::Broadcast) {
            self.opened.entry((process, status.epoch)).or_insert(now);
        }
        if status.doubt > before.doubt {
            let known = self.doubts.entry(process).or_default();
            *known = status.doubt.max(*known);
            return true;
        }
        if before.doubt > Zxid::ZERO && status.doubt == Zxid::ZERO {
            // Whoever decided it must have compared. What a leader knew who is gone is not asked.
            let leader = if before.role == Role::Leading { Some(process) } else { leader };
            if leader.is_none_or(|leader| self.equal((leader, before.epoch)) >= before.doubt) {
                self.doubts.remove(&process);
            }
        }
        false
    }

    /// A leader offers a snapshot.
    pub(super) fn on_offered(&self, leadership: Leadership, now: Micros, patience: Micros) -> Check {
        let equal = self.equal(leadership);
        let doubt = self.doubts.get(&leadership.0).copied().unwrap_or_default();
        ensure!(
            doubt <= equal,
            NAME,
            "process {} offers a snapshot in epoch {}; that trees differ at {doubt:?} was known, and a majority of equal ones \
             is known at {equal:?} only",
            leadership.0,
            leadership.1
        );
        let opened = self.opened.get(&leadership).copied().unwrap_or(now);
        ensure!(
            equal >= Zxid::new(leadership.1, 0) || now / MS >= opened / MS + patience / MS,
            NAME,
            "process {} offers a snapshot {} ms after it opened epoch {}, and has compared at {equal:?} only",
            leadership.0,
            (now - opened) / MS,
            leadership.1
        );
        Ok(())
    }
}
