//! The learner's side, follower and observer, in phase order.

use corral_proto::{ServerId, Zxid};

use super::history::follows;
use super::io::{
    Entry, Identity, LogOp, Membership, Output, Outputs, Phase, Position, Promise, Relation, SnapshotMeta,
};
use super::leader::{Divergence, differs_from_a_majority};
use super::message::{Message, SyncPlan};
use super::{State, Zab};
use crate::zoo::{self, Switch};

/// How far a learner is with its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// FollowerInfo is sent: the leader names an epoch.
    Greeting,
    /// The promise is on its way to the disk; AckEpoch leaves when `seq` is done (P3, P4).
    Promising {
        /// Log operation to wait for.
        seq: u64,
        /// Whether the promise counts towards this leader (P6).
        counts: bool,
    },
    /// AckEpoch is sent: the leader compares histories.
    Compared,
    /// A snapshot is coming: what was handed to the apply room must be executed first.
    Draining {
        /// The snapshot.
        snapshot: SnapshotMeta,
    },
    /// The snapshot is being fetched.
    Fetching {
        /// The snapshot.
        snapshot: SnapshotMeta,
        /// The request that must be answered.
        request: u64,
    },
    /// The snapshot is being installed.
    Installing {
        /// The snapshot.
        snapshot: SnapshotMeta,
        /// Log operation to wait for.
        seq: u64,
    },
    /// Entries come. Until the log operation `since` is done (a truncation), nothing is verified.
    Streaming {
        /// Log operation to wait for.
        since: u64,
    },
}

/// Following or observing a leader.
#[derive(Clone, Debug)]
pub(crate) struct Learning {
    /// Whom.
    pub(super) leader: ServerId,
    link: u64,
    /// His epoch; 0 until he named it.
    pub(super) epoch: u32,
    pub(super) stage: Stage,
    /// End of what this stream has proven to be a prefix of the leader's log (P21).
    accepted: Zxid,
    /// (e,0) is committed and held: this server serves.
    pub(super) up_to_date: bool,
    /// What the leader had committed when he welcomed this amnesiac: it is a member again once it holds that much.
    member_at: Option<Zxid>,
    /// Last acknowledged.
    acked: Zxid,
    heard_ms: u64,
}

impl Learning {
    pub(super) fn greeting(leader: ServerId, link: u64, now_ms: u64) -> Learning {
        Learning {
            leader,
            link,
            epoch: 0,
            stage: Stage::Greeting,
            accepted: Zxid::ZERO,
            up_to_date: false,
            member_at: None,
            acked: Zxid::ZERO,
            heard_ms: now_ms,
        }
    }

    pub(super) fn phase(&self) -> Phase {
        match self.stage {
            Stage::Greeting | Stage::Promising { .. } | Stage::Compared => Phase::Discovery,
            _ if self.up_to_date => Phase::Broadcast,
            _ => Phase::Synchronization,
        }
    }
}

impl Zab {
    /// The relation to `peer` as a leader, if there is one.
    fn learning_from(&mut self, peer: ServerId) -> Option<&mut Learning> {
        let now = self.now.mono_ms;
        match &mut self.state {
            State::Learning(learning) if learning.leader == peer => {
                learning.heard_ms = now;
                Some(learning)
            }
            _ => None,
        }
    }

    /// The same, if it is of this epoch.
    fn learning_in(&mut self, peer: ServerId, epoch: u32) -> Option<&mut Learning> {
        self.learning_from(peer).filter(|learning| learning.epoch == epoch)
    }

    /// Discovery: the leader names an epoch. Also while following: he needs a new one (P8, P17).
    pub(super) fn on_leader_info(&mut self, peer: ServerId, epoch: u32, out: &mut Outputs) {
        let promised = self.promised;
        let (seq_now, counts_at_all) = (self.seq, self.is_voting_member());
        let Some(from) = self.peers.get(&peer) else { return };
        let promise = Promise { epoch, leader: peer, instance: from.instance, start_count: from.start_count };
        let Some(learning) = self.learning_from(peer) else { return };
        if epoch <= learning.epoch || epoch == 0 {
            return;
        }
        if epoch < promised.epoch && !zoo::broken(Switch::OlderLeaderFollowed) {
            self.send(peer, Message::Reject { promise: promised.epoch }, out);
            return;
        }
        if learning.epoch != 0 {
            // A new epoch of the same leader: everything of the old relation is void.
            let (leader, link, now) = (learning.leader, learning.link, learning.heard_ms);
            let was_up_to_date = learning.up_to_date;
            *learning = Learning::greeting(leader, link, now);
            if was_up_to_date {
                out.push(Output::Relation(None));
            }
        }
        let (seq, counts) = if epoch <= promised.epoch {
            // The same leader, disk and start asks again: the promise he lost on the way counts (P6). Anybody
            // else has to do without it.
            (seq_now, promised == promise || zoo::broken(Switch::PromiseCountsAgain))
        } else {
            (self.set_promise(promise, out), true)
        };
        let Some(learning) = self.learning_from(peer) else { return };
        learning.epoch = epoch;
        learning.stage = Stage::Promising { seq, counts: counts && counts_at_all };
    }

    pub(super) fn on_sync_plan(
        &mut self,
        peer: ServerId,
        epoch: u32,
        point: Position,
        plan: SyncPlan,
        out: &mut Outputs,
    ) {
        let (end, handed, done) = (self.log.end(), self.handed, self.done);
        let known = self.log.position_of(point.zxid);
        let Some(learning) = self.learning_in(peer, epoch) else { return };
        if learning.stage != Stage::Compared {
            return;
        }
        match plan {
            SyncPlan::Diff => {
                if point != end {
                    self.look("the leader's DIFF does not begin where this log ends", out);
                    return;
                }
                learning.accepted = point.zxid;
                learning.stage = Stage::Streaming { since: done };
            }
            SyncPlan::Trunc => {
                if point.zxid < handed || known.is_some_and(|known| known != point) {
                    // It executed what a leader with a majority does not have: must be impossible (P13).
                    out.push(Output::Fatal(format!(
                        "the leader asks to truncate the log to {} but {handed} is executed here",
                        point.zxid
                    )));
                    return;
                }
                if known.is_none() {
                    self.look("the leader's TRUNC names a place that is not in this log", out);
                    return;
                }
                learning.accepted = point.zxid;
                let since = self.truncate(point, out);
                if let Some(learning) = self.learning_in(peer, epoch) {
                    learning.stage = Stage::Streaming { since };
                }
            }
            SyncPlan::Snap(snapshot) => {
                if snapshot.position.zxid < handed {
                    self.look("the leader's snapshot is older than this server's state", out);
                    return;
                }
                learning.stage = Stage::Draining { snapshot };
            }
        }
    }

    pub(super) fn truncate(&mut self, to: Position, out: &mut Outputs) -> u64 {
        assert!(to.zxid >= self.handed && to.zxid >= self.committed, "committed entries are never truncated (I14)");
        if to == self.log.end() {
            return self.seq;
        }
        self.log.truncate(to);
        self.write_log(LogOp::Truncate { to }, out)
    }

    pub(super) fn on_entries(
        &mut self,
        peer: ServerId,
        epoch: u32,
        prev: Position,
        entries: Vec<Entry>,
        commit: Zxid,
        out: &mut Outputs,
    ) {
        let end = self.log.end();
        let Some(learning) = self.learning_in(peer, epoch) else { return };
        if !matches!(learning.stage, Stage::Streaming { .. }) {
            return;
        }
        // The frame must begin where this log ends, and each entry follow the one before, by zxid and by hash (P12). The
        // leader's cursor never goes back on a stream, so there is no overlap to allow for.
        let mut at = prev;
        let follow = prev == end
            && !entries.is_empty()
            && entries.iter().all(|entry| {
                let hash = Entry::chain(at.hash, entry.zxid, entry.stamp_ms, &entry.payload);
                let follows = follows(at.zxid, entry.zxid) && hash == entry.hash && entry.zxid.epoch() <= epoch;
                at = Position { zxid: entry.zxid, hash };
                follows
            });
        if !(follow || zoo::unchecked_history() && !entries.is_empty()) {
            self.look("the leader's entries do not follow this log", out);
            return;
        }
        learning.accepted = at.zxid;
        self.append(entries, out);
        self.commit_upto(commit);
    }

    pub(super) fn on_up_to_date(&mut self, peer: ServerId, epoch: u32, commit: Zxid, out: &mut Outputs) {
        let voter = self.options.quorum.is_voter(self.options.id);
        let Some(learning) = self.learning_in(peer, epoch) else { return };
        if learning.up_to_date || !matches!(learning.stage, Stage::Streaming { .. }) {
            return;
        }
        learning.up_to_date = true;
        if !voter {
            // An observer's promises never counted: what is committed is all it may have lost.
            learning.member_at = Some(commit.max(Zxid::new(epoch, 0)));
        }
        self.commit_upto(commit);
        out.push(Output::Relation(Some(Relation { leader: peer, epoch })));
        self.announce(out);
        for tag in self.reads.clone() {
            self.send(peer, Message::ReadIndex { epoch, tag }, out);
        }
    }

    pub(super) fn on_welcome(&mut self, peer: ServerId, epoch: u32, commit: Zxid) {
        if let Some(learning) = self.learning_in(peer, epoch) {
            learning.member_at = Some(commit.max(Zxid::new(epoch, 0)));
        }
    }

    pub(super) fn on_commit(&mut self, peer: ServerId, epoch: u32, commit: Zxid) {
        if self.learning_in(peer, epoch).is_some() {
            self.commit_upto(commit);
        }
    }

    /// P21: never beyond what this stream has proven, and nothing before it has proven anything.
    fn commit_upto(&mut self, commit: Zxid) {
        if zoo::broken(Switch::ClampByLogEnd) {
            self.committed = self.committed.max(commit.min(self.log.end().zxid));
        }
        let done = self.done;
        if let State::Learning(learning) = &self.state
            && let Stage::Streaming { since } = learning.stage
            && since <= done
        {
            self.committed = self.committed.max(commit.min(learning.accepted));
        }
    }

    pub(super) fn on_ping(
        &mut self,
        peer: ServerId,
        epoch: u32,
        seq: u64,
        commit: Zxid,
        doubt: Zxid,
        out: &mut Outputs,
    ) {
        // Whoever has promised more answers no ping of less: a read index counts on that.
        if epoch < self.promised.epoch || self.learning_in(peer, epoch).is_none() {
            return;
        }
        self.commit_upto(commit);
        // The leader's doubt contains what this server told it with AckEpoch, so it ends only when the leader has compared.
        self.divergence = Divergence::at(doubt, self.now.mono_ms);
        let touched = std::mem::take(&mut self.touched).into_iter().collect();
        // Under load the leader has left behind what is newest here; at rest, what was recorded last may be from before this
        // server came. So pings ask for the one and the other in turn.
        let recorded = self.digests.last_key_value().map(|(zxid, digest)| (*zxid, *digest));
        let told = if seq.is_multiple_of(2) { recorded.or(self.newest) } else { self.newest.or(recorded) };
        let digest = told.unwrap_or((Zxid::ZERO, 0));
        self.send(peer, Message::Pong { epoch, seq, applied: self.applied, touched, digest }, out);
    }

    pub(super) fn on_read_point(&mut self, peer: ServerId, epoch: u32, tag: u64, zxid: Zxid, out: &mut Outputs) {
        if self.learning_in(peer, epoch).is_some() && self.reads.remove(&tag) {
            out.push(Output::ReadPoint { tag, zxid });
        }
    }

    pub(super) fn on_digest_mismatch(&mut self, peer: ServerId, epoch: u32, zxid: Zxid, out: &mut Outputs) {
        // Of a tree that has made way for a snapshot meanwhile nothing is known any more, and nothing is to be believed.
        if self.learning_in(peer, epoch).is_some() && self.digest_at(zxid).is_some() {
            out.push(Output::Fatal(differs_from_a_majority(zxid)));
        }
    }

    pub(super) fn on_snapshot_fetched(&mut self, request: u64, ok: bool, out: &mut Outputs) {
        let State::Learning(learning) = &mut self.state else { return };
        let Stage::Fetching { snapshot, request: wanted } = learning.stage else { return };
        if request != wanted {
            return;
        }
        if !ok {
            self.look("the leader's snapshot could not be fetched", out);
            return;
        }
        // From here on the install goes through, whatever becomes of this leader. Until it is done, what the log that goes and
        // the snapshot have in common is durable: what is executed here.
        if let Some(executed) = self.log.position_of(self.handed) {
            self.forget_durable_after(executed);
        }
        self.log.rebase(snapshot.position);
        self.stamp_ms = self.stamp_ms.max(snapshot.stamp_ms);
        self.installing = Some(snapshot);
        let seq = self.write_log(LogOp::InstallSnapshot(snapshot), out);
        if let State::Learning(learning) = &mut self.state {
            learning.stage = Stage::Installing { snapshot, seq };
        }
    }

    pub(super) fn tick_learner(&mut self, out: &mut Outputs) {
        let now = self.now.mono_ms;
        let State::Learning(learning) = &self.state else { return };
        let patience = match learning.stage {
            // The leader may wait for the promises of others.
            Stage::Promising { .. } | Stage::Compared => self.options.init_timeout_ms,
            _ => self.options.sync_timeout_ms,
        };
        if now > learning.heard_ms + patience {
            self.look("the leader was not heard for too long", out);
        }
    }

    /// What follows from completions of the disk and of the apply room.
    pub(super) fn advance_learner(&mut self, out: &mut Outputs) {
        let (done, drained) = (self.done, self.applied >= self.handed);
        let installed = self.installing.is_none();
        let durable = self.durable;
        let State::Learning(learning) = &mut self.state else { return };
        let (leader, epoch) = (learning.leader, learning.epoch);
        match learning.stage {
            Stage::Promising { seq, counts }
                if (done >= seq || zoo::broken(Switch::PromiseUnsynced) && durable == self.log.end()) && installed =>
            {
                learning.stage = Stage::Compared;
                // Every earlier append is durable by now, so this is everything ever acknowledged (P4).
                assert_eq!(durable, self.log.end(), "the promise is behind every append in the log writer's queue");
                let message = Message::AckEpoch {
                    epoch,
                    counts,
                    base: self.log.base(),
                    last: durable,
                    applied: self.handed,
                    epochs: self.log.epochs().to_vec(),
                    doubt: self.doubt(),
                };
                self.send(leader, message, out);
            }
            Stage::Draining { snapshot } if drained => {
                self.next_request += 1;
                let request = self.next_request;
                learning.stage = Stage::Fetching { snapshot, request };
                out.push(Output::FetchSnapshot { request, leader, snapshot });
            }
            Stage::Installing { snapshot, seq }
                if done >= seq && installed || zoo::broken(Switch::InstallAckedBeforeFsync) =>
            {
                learning.accepted = snapshot.position.zxid;
                learning.acked = learning.accepted;
                learning.stage = Stage::Streaming { since: seq };
                // The leader waits for this ack, whatever was acknowledged before: it means "installed".
                let (zxid, applied) = (learning.acked, self.applied);
                self.send(leader, Message::Ack { epoch, zxid, applied }, out);
            }
            _ => {}
        }
        self.acknowledge(out);
        self.remember(out);
    }

    /// Tells the leader what is durable of his history (P19).
    fn acknowledge(&mut self, out: &mut Outputs) {
        let (done, applied) = (self.done, self.applied);
        let durable = if zoo::broken(Switch::AckBeforeFsync) { self.log.end().zxid } else { self.durable.zxid };
        let State::Learning(learning) = &mut self.state else { return };
        let Stage::Streaming { since } = learning.stage else { return };
        // Before the truncation is done, what is durable is of another branch.
        if since > done {
            return;
        }
        let zxid = durable.min(learning.accepted);
        if zxid > learning.acked {
            learning.acked = zxid;
            let (leader, epoch) = (learning.leader, learning.epoch);
            self.send(leader, Message::Ack { epoch, zxid, applied }, out);
        }
    }

    /// An amnesiac that was welcomed and holds everything that was committed by then remembers again (P9).
    fn remember(&mut self, out: &mut Outputs) {
        if self.identity.membership != Membership::Amnesiac || self.identity_submitted.is_some() {
            return;
        }
        let State::Learning(learning) = &self.state else { return };
        let opened = self.committed >= Zxid::new(learning.epoch, 0);
        let holds = learning.member_at.is_some_and(|target| self.durable.zxid >= target && opened);
        if holds || zoo::broken(Switch::MemberTooEarly) && learning.epoch > 0 {
            let identity = Identity { membership: Membership::Member, ..self.identity };
            self.set_identity(identity, out);
        }
    }
}
