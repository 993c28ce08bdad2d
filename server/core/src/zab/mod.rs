//! Atomic broadcast: orders entries; knows zxids and bytes, never znodes.
//!
//! # The protocol in one page
//!
//! A server is **looking**, **learning** (following or observing) or **leading**. Time is cut into *epochs*; an epoch
//! has at most one leader that gets anywhere, and he numbers his entries (epoch, 0), (epoch, 1), ...
//!
//! 1. *Election* ([`election`]). Servers tell each other whom they would follow: whoever has the longest durable log.
//!    It is only an oracle. A wrong or double answer costs time and never safety.
//! 2. *Discovery* ([`leader`], [`learner`]). The leader picks an epoch larger than any that a majority has promised, and
//!    asks for their promise: no acknowledgement for an older epoch will leave them any more. With the promise a learner
//!    says what its log holds. A leader who finds a better log than his own in that majority gives up; so an
//!    established leader has everything that was ever committed.
//! 3. *Synchronization* ([`sync`]). The leader appends (epoch, 0) and brings every learner's log to be a prefix of his:
//!    DIFF sends what is missing, TRUNC drops a dead branch first, SNAP sends a whole state.
//! 4. *Broadcast*. Entries go out before the leader's own disk has them; an entry is *committed* when a majority,
//!    each by its own disk, has acknowledged it; committed entries are executed everywhere in the same order.
//!
//! The paper's NEWLEADER is the entry (epoch, 0) here. So "my history is durable" and "my epoch is durable" are one
//! fsync, votes compare one number, and no second file can disagree with the log.
//!
//! # The machine
//!
//! [`Zab::step`] takes one [`Input`] and appends [`Output`]s. It never blocks, never fails and reads no clock. What
//! asserts durability (promise, ack, commit) is decided in the step that receives [`Input::LogDone`]; it lives in the
//! value of the current role, so a change of role drops it for good (P2).
//!
//! Read [`Zab`], then [`Zab::step`], then the rooms in the order above.

pub mod bootstrap;
pub mod codec;
pub mod election;
pub mod history;
pub mod io;
pub mod leader;
pub mod learner;
pub mod message;
pub mod quorum;
pub mod sync;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use corral_proto::{ServerId, SessionId, Zxid};

use self::history::History;
pub use self::io::{
    Admin, Entry, Identity, Input, LogOp, MemberKind, Membership, Now, Options, Output, Outputs, Phase, Position,
    Promise, Recovered, Relation, Role, SnapshotMeta, Status,
};
use self::leader::{Divergence, Leading};
use self::learner::{Learning, Stage};
use self::message::{IdentityReport, Message};
use crate::zoo::{self, Switch};

/// Sessions whose touches wait for the next pong; beyond it the oldest ids win, the others come with their next touch.
const TOUCHED_MAX: usize = 200_000;

/// A peer with a live stream.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    link: u64,
    instance: u64,
    start_count: u64,
    identity: Option<IdentityReport>,
    /// It asked to follow this server before this server knew that it leads.
    follower_info: Option<(u32, bool)>,
}

/// What becomes true when a log operation is durable.
#[derive(Clone, Debug)]
enum Pending {
    End(Position),
    Promise(Promise),
    Identity(Identity),
    Install(SnapshotMeta),
}

/// What this server is doing.
pub(crate) enum State {
    Bootstrapping,
    Looking(election::Looking),
    Learning(Learning),
    Leading(Box<Leading>),
}

/// One server's protocol machine.
pub struct Zab {
    options: Options,
    identity: Identity,
    /// An identity that is on its way to the disk.
    identity_submitted: Option<Identity>,
    /// The promise on disk, and the one on its way there.
    promise: Promise,
    promised: Promise,
    log: History,
    /// How far the log is on disk.
    durable: Position,
    committed: Zxid,
    /// Handed to the apply room, executed there, and safe in its store.
    handed: Zxid,
    applied: Zxid,
    persisted: Zxid,
    stamp_ms: i64,
    /// Last log operation given out, and last one done.
    seq: u64,
    done: u64,
    pending: VecDeque<(u64, Pending)>,
    /// A snapshot whose install is decided and whose store is not open yet: nothing is handed to the apply room.
    installing: Option<SnapshotMeta>,
    peers: BTreeMap<ServerId, Peer>,
    state: State,
    /// Round of the election (logical clock).
    round: u64,
    elections: u64,
    /// Read points asked for by this server's clients and not yet answered.
    reads: BTreeSet<u64>,
    touched: BTreeSet<SessionId>,
    /// Digests of the own tree where all servers record theirs, newest few.
    digests: BTreeMap<Zxid, u64>,
    /// The digest of the own tree as it is: the last executed entry and the digest there.
    newest: Option<(Zxid, u64)>,
    /// Entries at which this server, as leader, saw trees differ; the latest of them.
    mismatches: u64,
    mismatch: Zxid,
    /// What is known of trees that differ; kept when the role changes.
    divergence: Option<Divergence>,
    now: Now,
    stepped: bool,
    trimmed_upto: Zxid,
    next_trim_ms: u64,
    next_request: u64,
}

/// Digests remembered for comparison.
const DIGESTS_KEPT: usize = 16;
/// Between two looks at what the log may drop, ms.
const TRIM_INTERVAL_MS: u64 = 1_000;

impl Zab {
    /// A machine that starts from what was found on disk.
    pub fn new(mut options: Options, recovered: Recovered) -> Zab {
        if zoo::broken(Switch::ObserversCount) {
            options.quorum = quorum::QuorumSet::majority(options.members.iter().map(|(id, _)| *id));
        }
        let Recovered { identity, promise, base, end, stamp_ms, epochs, tail, applied, persisted, digest } = recovered;
        let state = match identity.membership {
            Membership::Empty => State::Bootstrapping,
            // The first tick begins the first round: streams come up meanwhile.
            Membership::Member | Membership::Amnesiac => State::Looking(election::Looking::default()),
        };
        Zab {
            options,
            identity,
            identity_submitted: None,
            promise,
            promised: promise,
            log: History::new(base, end, &epochs, tail, applied),
            durable: end,
            committed: applied.zxid,
            handed: applied.zxid,
            applied: applied.zxid,
            persisted,
            stamp_ms,
            seq: 0,
            done: 0,
            pending: VecDeque::new(),
            installing: None,
            peers: BTreeMap::new(),
            state,
            round: 0,
            elections: 0,
            reads: BTreeSet::new(),
            touched: BTreeSet::new(),
            digests: BTreeMap::new(),
            newest: (applied.zxid > Zxid::ZERO).then_some((applied.zxid, digest)),
            mismatches: 0,
            mismatch: Zxid::ZERO,
            divergence: None,
            now: Now::default(),
            stepped: false,
            trimmed_upto: Zxid::ZERO,
            next_trim_ms: 0,
            next_request: 0,
        }
    }

    /// Takes one input and says what to do. Never blocks, never fails.
    pub fn step(&mut self, now: Now, input: Input, out: &mut Outputs) {
        // A pause (SIGSTOP, a moved virtual machine) is judged before anything that came meanwhile (P23): whoever led or
        // followed has lost that relation, as the others see it.
        let paused = self.stepped && now.mono_ms > self.now.mono_ms + self.options.sync_timeout_ms;
        self.now = now;
        self.stepped = true;
        if paused
            && matches!(self.state, State::Learning(_) | State::Leading(_))
            && !zoo::broken(Switch::ExpiryAfterPause)
        {
            self.look("this server was paused for longer than syncTimeout", out);
        }
        match input {
            Input::Tick => self.on_tick(out),
            Input::PeerUp { peer, link, instance, start_count } => {
                self.on_peer_up(peer, link, instance, start_count, out)
            }
            Input::PeerDown { peer, link } => self.on_peer_down(peer, link, out),
            Input::PeerMessage { peer, link, message } => self.on_message(peer, link, message, out),
            Input::LogDone { seq } => self.on_log_done(seq, out),
            Input::LogRead { request, entries } => self.on_log_read(request, entries),
            Input::Propose { payloads } => self.on_propose(payloads, out),
            Input::ReadIndex { tag } => self.on_read_index(tag, out),
            Input::ConfirmRound { tag, include } => {
                if let State::Leading(leading) = &mut self.state {
                    leading.confirm(tag, include);
                }
            }
            Input::Touched { sessions } => {
                for session in sessions {
                    if self.touched.len() < TOUCHED_MAX {
                        self.touched.insert(session);
                    }
                }
            }
            Input::Digest { zxid, digest } => {
                self.keep_digest(zxid, digest);
                if matches!(self.state, State::Leading(_)) {
                    self.compare_digests(zxid, out);
                }
            }
            Input::Applied { zxid, persisted, digest } => {
                // What was executed before an install says nothing about the store after it.
                if zxid <= self.handed {
                    self.applied = self.applied.max(zxid);
                    if let Some(digest) = digest {
                        self.newest = Some((zxid, digest));
                        self.compare_newest(out);
                    }
                }
                self.persisted = self.persisted.max(persisted);
                self.log.evict(self.applied, self.options.tail_cache_bytes);
            }
            Input::SnapshotReady { request, snapshot } => self.on_snapshot_ready(request, snapshot, out),
            Input::SnapshotFetched { request, ok } => self.on_snapshot_fetched(request, ok, out),
            Input::SnapshotOpened { position } => self.on_snapshot_opened(position),
            Input::LogTrimmed { base } => self.log.trimmed(base),
            Input::Admin(Admin::StepDown) => {
                if matches!(self.state, State::Leading(_)) {
                    self.look("an operator asked this leader to step down", out);
                }
            }
            Input::Admin(Admin::Transfer(target)) => self.on_transfer(target, out),
        }
        self.progress(out);
        debug_assert_eq!(self.over_bound(), None, "I27: every queue keeps its bound");
    }

    /// Remembers a digest of the own tree, for those who tell theirs later.
    fn keep_digest(&mut self, zxid: Zxid, digest: u64) {
        self.digests.insert(zxid, digest);
        while self.digests.len() > DIGESTS_KEPT {
            self.digests.pop_first();
        }
    }

    /// The digest of the own tree at an entry, if it is known.
    fn digest_at(&self, zxid: Zxid) -> Option<u64> {
        let newest = self.newest.filter(|(at, _)| *at == zxid).map(|(_, digest)| digest);
        newest.or_else(|| self.digests.get(&zxid).copied())
    }

    /// A queue that is longer than it may be (I27), in words. What clients wait for is bounded before it comes here.
    fn over_bound(&self) -> Option<String> {
        let bounds = [
            ("own digests", self.digests.len(), DIGESTS_KEPT),
            ("sessions heard of", self.touched.len(), TOUCHED_MAX),
            ("peers", self.peers.len(), self.options.members.len()),
        ];
        let own = bounds.into_iter().find(|(_, len, bound)| len > bound);
        let own = own.map(|(what, len, bound)| format!("{what}: {len}, at most {bound}"));
        own.or_else(|| match &self.state {
            State::Leading(leading) => leading.over_bound(&self.options),
            _ => None,
        })
    }

    /// What follows from the state, whatever the input was.
    fn progress(&mut self, out: &mut Outputs) {
        if matches!(self.state, State::Bootstrapping) {
            self.advance_bootstrap(out);
        } else if self.identity_submitted.is_none() {
            self.adopt_cluster(out);
        }
        match self.state {
            State::Bootstrapping => {}
            State::Looking(_) => self.advance_election(out),
            State::Learning(_) => self.advance_learner(out),
            State::Leading(_) => self.advance_leader(out),
        }
        self.hand_out(out);
    }

    fn on_tick(&mut self, out: &mut Outputs) {
        match self.state {
            State::Bootstrapping => {}
            State::Looking(_) => self.tick_election(out),
            State::Learning(_) => self.tick_learner(out),
            State::Leading(_) => self.tick_leader(out),
        }
        if self.now.mono_ms >= self.next_trim_ms {
            self.next_trim_ms = self.now.mono_ms + TRIM_INTERVAL_MS;
            let pinned = match &self.state {
                State::Leading(leading) => leading.pinned(),
                _ => Zxid::MAX,
            };
            let persisted = if zoo::broken(Switch::TrimBeyondPersisted) { self.committed } else { self.persisted };
            let upto = persisted.min(self.committed).min(pinned);
            if upto > self.trimmed_upto && self.installing.is_none() {
                self.trimmed_upto = upto;
                out.push(Output::TrimLog { upto });
            }
        }
    }

    fn on_peer_up(&mut self, peer: ServerId, link: u64, instance: u64, start_count: u64, out: &mut Outputs) {
        if let Some(old) = self.peers.get(&peer) {
            if old.link >= link {
                return;
            }
            let old = old.link;
            self.on_peer_down(peer, old, out);
        }
        if !self.options.members.iter().any(|(id, _)| *id == peer) || peer == self.options.id {
            return;
        }
        self.peers.insert(peer, Peer { link, instance, start_count, identity: None, follower_info: None });
        self.send(peer, Message::Identity(self.report()), out);
        if let State::Looking(looking) = &self.state {
            let vote = looking.message(self.round);
            if let Some(vote) = vote {
                self.send(peer, vote, out);
            }
        }
    }

    fn on_peer_down(&mut self, peer: ServerId, link: u64, out: &mut Outputs) {
        if self.peers.get(&peer).is_none_or(|p| p.link != link) {
            return;
        }
        self.peers.remove(&peer);
        match &mut self.state {
            State::Bootstrapping => {}
            State::Looking(looking) => looking.forget(peer),
            State::Learning(learning) => {
                if learning.leader == peer {
                    self.look("the stream to the leader broke", out);
                }
            }
            State::Leading(leading) => leading.forget(peer),
        }
    }

    fn on_message(&mut self, peer: ServerId, link: u64, message: Message, out: &mut Outputs) {
        // Frames of any stream but the current one are dropped (P5).
        let Some(from) = self.peers.get_mut(&peer) else { return };
        if from.link != link && !zoo::broken(Switch::StaleStreams) {
            return;
        }
        if let Message::Identity(report) = message {
            from.identity = Some(report);
            return;
        }
        if let Message::Bootstrap { .. } = message {
            // The identity report beside it says the same.
            return;
        }
        // Other clusters are none of our business; nor are servers that have not said which they are of.
        let same = from.identity.is_some_and(|report| report.cluster == self.identity.cluster);
        if !same || self.identity.membership == Membership::Empty {
            return;
        }
        match message {
            Message::Identity(_) | Message::Bootstrap { .. } => {}
            Message::Vote { round, state, vote, epoch } => self.on_vote(peer, round, state, vote, epoch, out),
            Message::FollowerInfo { promise, voter } => self.on_follower_info(peer, promise, voter, out),
            Message::AckEpoch { epoch, counts, base, last, applied, epochs, doubt } => {
                self.doubt_heard(peer, epoch, doubt, out);
                self.on_ack_epoch(peer, epoch, leader::Holds { counts, base, last, applied, epochs }, out);
            }
            Message::Reject { promise } => self.on_reject(peer, promise, out),
            Message::LeaderInfo { epoch } => self.on_leader_info(peer, epoch, out),
            Message::SyncPlan { epoch, point, plan } => self.on_sync_plan(peer, epoch, point, plan, out),
            Message::Entries { epoch, prev, entries, commit } => {
                self.on_entries(peer, epoch, prev, entries, commit, out);
            }
            Message::UpToDate { epoch, commit } => self.on_up_to_date(peer, epoch, commit, out),
            Message::Commit { epoch, commit } => self.on_commit(peer, epoch, commit),
            Message::Ping { epoch, seq, commit, doubt } => self.on_ping(peer, epoch, seq, commit, doubt, out),
            Message::ReadPoint { epoch, tag, zxid } => self.on_read_point(peer, epoch, tag, zxid, out),
            Message::Handover { epoch } => self.on_handover(peer, epoch, out),
            Message::Welcome { epoch, commit } => self.on_welcome(peer, epoch, commit),
            Message::DigestMismatch { epoch, zxid } => self.on_digest_mismatch(peer, epoch, zxid, out),
            Message::Ack { epoch, zxid, applied } => self.on_ack(peer, epoch, zxid, applied),
            Message::Pong { epoch, seq, applied: _, touched, digest } => {
                self.on_pong(peer, epoch, seq, touched, digest, out);
            }
            Message::Forward { epoch, payloads } => self.on_forward(peer, epoch, payloads, out),
            Message::ReadIndex { epoch, tag } => self.on_remote_read_index(peer, epoch, tag),
        }
    }

    /// Completions come in order; what they make true is set here, and nowhere else (P1).
    fn on_log_done(&mut self, seq: u64, out: &mut Outputs) {
        assert!(seq <= self.seq, "a completion of what was never asked for");
        self.done = self.done.max(seq);
        while self.pending.front().is_some_and(|(s, _)| *s <= seq) {
            let (_, pending) = self.pending.pop_front().expect("looked at above");
            match pending {
                Pending::End(position) => {
                    self.durable = position;
                    if zoo::broken(Switch::OldRoleAcks) {
                        let ack =
                            Message::Ack { epoch: position.zxid.epoch(), zxid: position.zxid, applied: self.applied };
                        self.send(self.promise.leader, ack, out);
                    }
                }
                Pending::Promise(promise) => self.promise = promise,
                Pending::Identity(identity) => {
                    self.identity = identity;
                    self.identity_submitted = None;
                    self.tell_all(Message::Identity(self.report()), out);
                    self.on_identity(out);
                }
                Pending::Install(meta) => {
                    self.durable = meta.position;
                    out.push(Output::OpenSnapshot(meta));
                }
            }
        }
    }

    fn on_snapshot_opened(&mut self, position: Position) {
        // What the tree of before was is not said of the one that is read from now on (P35).
        self.digests.clear();
        self.newest = None;
        if self.installing.is_some_and(|meta| meta.position == position) {
            self.installing = None;
            self.handed = position.zxid;
            self.applied = position.zxid;
            self.persisted = self.persisted.max(position.zxid);
            self.committed = self.committed.max(position.zxid);
        }
    }

    fn on_read_index(&mut self, tag: u64, out: &mut Outputs) {
        match &mut self.state {
            State::Leading(leading) if leading.is_activated() => leading.ask(None, tag),
            State::Learning(learning) if learning.up_to_date => {
                self.reads.insert(tag);
                let (leader, epoch) = (learning.leader, learning.epoch);
                self.send(leader, Message::ReadIndex { epoch, tag }, out);
            }
            _ => {
                self.reads.insert(tag);
            }
        }
    }

    /// Entries that are committed and durable go to the apply room, in order, once (P14, I13).
    fn hand_out(&mut self, out: &mut Outputs) {
        if self.installing.is_some() {
            return;
        }
        if let State::Learning(learning) = &self.state
            && matches!(learning.stage, Stage::Draining { .. } | Stage::Fetching { .. })
        {
            return;
        }
        let durable = if zoo::broken(Switch::ApplyBeforeDurable) { self.log.end().zxid } else { self.durable.zxid };
        let upto = self.committed.min(durable);
        if upto > self.handed {
            let entries = self.log.entries_after(self.handed, upto, usize::MAX);
            if let Some(last) = entries.last() {
                assert!(last.zxid <= upto, "only committed and durable entries are executed");
                self.handed = last.zxid;
                out.push(Output::Apply(entries));
            }
        }
    }

    /// The log is about to end at `end`. What is durable is a prefix of the log as it is now, not of what the disk still
    /// holds: a vote for this server must not name a branch that it is dropping.
    fn forget_durable_after(&mut self, end: Position) {
        if !zoo::broken(Switch::DeadBranchVote) {
            self.durable = earlier(self.durable, end);
        }
        for (_, pending) in &mut self.pending {
            if let Pending::End(durable) = pending {
                *durable = earlier(*durable, end);
            }
        }
    }

    /// Gives an operation to the log writer.
    fn write_log(&mut self, op: LogOp, out: &mut Outputs) -> u64 {
        self.seq += 1;
        let pending = match &op {
            LogOp::Append(entries) => {
                let last = entries.last().expect("an append has entries");
                Pending::End(Position { zxid: last.zxid, hash: last.hash })
            }
            LogOp::Truncate { to } => {
                self.forget_durable_after(*to);
                Pending::End(*to)
            }
            LogOp::SetPromise(promise) => Pending::Promise(*promise),
            LogOp::SetIdentity(identity) => Pending::Identity(*identity),
            LogOp::InstallSnapshot(meta) => Pending::Install(*meta),
        };
        if let Pending::End(position) = pending
            && zoo::broken(Switch::TakenForDone)
        {
            self.durable = position;
        }
        self.pending.push_back((self.seq, pending));
        out.push(Output::Log { seq: self.seq, op });
        self.seq
    }

    /// Appends to the log in memory and asks for the same on disk.
    fn append(&mut self, entries: Vec<Entry>, out: &mut Outputs) {
        for entry in &entries {
            self.stamp_ms = self.stamp_ms.max(entry.stamp_ms);
            self.log.append(entry.clone());
        }
        self.write_log(LogOp::Append(entries), out);
    }

    /// Records a promise. Peers that may still join a fresh member must know at once that it is fresh no more (P9).
    fn set_promise(&mut self, promise: Promise, out: &mut Outputs) -> u64 {
        assert!(promise.epoch > self.promised.epoch, "a promise never goes down (I11)");
        let was_fresh = self.report().fresh;
        self.promised = promise;
        let seq = self.write_log(LogOp::SetPromise(promise), out);
        if was_fresh {
            self.tell_all(Message::Identity(self.report()), out);
        }
        seq
    }

    fn set_identity(&mut self, identity: Identity, out: &mut Outputs) {
        assert!(self.identity_submitted.is_none(), "one identity at a time");
        self.identity_submitted = Some(identity);
        self.write_log(LogOp::SetIdentity(identity), out);
    }

    fn report(&self) -> IdentityReport {
        let Identity { cluster, membership, .. } = self.identity;
        let fresh = membership == Membership::Member && self.promised.epoch == 0 && self.log.end().zxid == Zxid::ZERO;
        IdentityReport { cluster, membership, fresh }
    }

    fn send(&self, peer: ServerId, message: Message, out: &mut Outputs) {
        if let Some(to) = self.peers.get(&peer) {
            out.push(Output::Send { peer, link: to.link, message });
        }
    }

    fn tell_all(&self, message: Message, out: &mut Outputs) {
        for (peer, to) in &self.peers {
            out.push(Output::Send { peer: *peer, link: to.link, message: message.clone() });
        }
    }

    /// Whether this server votes and counts.
    fn is_voting_member(&self) -> bool {
        self.options.quorum.is_voter(self.options.id) && self.identity.membership == Membership::Member
    }

    /// Whether a peer votes and counts, by what it says over its stream.
    fn is_voting_peer(&self, peer: ServerId) -> bool {
        votes(&self.options, &self.identity, &self.peers, peer)
    }

    /// Leaves whatever relation there is and looks for a leader. Everything the role held is dropped with it (P2).
    fn look(&mut self, why: &str, out: &mut Outputs) {
        out.push(Output::Note(format!("looking for a leader: {why}")));
        self.leave_role(out);
        self.start_election(out);
    }

    fn leave_role(&mut self, out: &mut Outputs) {
        match std::mem::replace(&mut self.state, State::Looking(election::Looking::default())) {
            State::Learning(learning) => {
                if learning.up_to_date {
                    out.push(Output::Relation(None));
                }
            }
            State::Leading(leading) => {
                // Read points asked for here are asked again of the next leader.
                self.reads.extend(leading.local_reads());
                leading.end(out);
            }
            State::Bootstrapping | State::Looking(_) => {}
        }
    }

    /// A snapshot of the machine for operators, metrics and checkers.
    pub fn status(&self) -> Status {
        Status {
            connected: self.peers.keys().copied().collect(),
            learners: match &self.state {
                State::Leading(leading) => leading.report(),
                _ => Vec::new(),
            },
            waiting_for: self.waiting_for(),
            ..self.brief_status()
        }
    }

    /// [`Zab::status`] without its lists and words: as cheap as it looks, for whoever asks after every step.
    pub fn brief_status(&self) -> Status {
        let (role, phase, leader, epoch) = match &self.state {
            State::Bootstrapping => (Role::Bootstrapping, Phase::Election, None, self.promised.epoch),
            State::Looking(_) => (Role::Looking, Phase::Election, None, self.promised.epoch),
            State::Learning(learning) => {
                let counts = self.is_voting_member();
                let role = if counts { Role::Following } else { Role::Observing };
                (role, learning.phase(), Some(learning.leader), learning.epoch)
            }
            State::Leading(leading) => (Role::Leading, leading.phase(), Some(self.options.id), leading.epoch),
        };
        Status {
            role,
            phase,
            leader,
            epoch,
            last: self.log.end(),
            durable: self.durable.zxid,
            committed: self.committed,
            applied: self.applied,
            identity: self.identity,
            promise: self.promise,
            connected: Vec::new(),
            learners: Vec::new(),
            waiting_for: String::new(),
            elections: self.elections,
            mismatches: self.mismatches,
            doubt: self.doubt(),
            divergence: self.divergence(),
        }
    }

    /// In words: why there is no quorum. Empty when there is one.
    fn waiting_for(&self) -> String {
        match &self.state {
            State::Leading(leading) if leading.is_activated() => return String::new(),
            State::Learning(learning) if learning.up_to_date => return String::new(),
            _ => {}
        }
        let mut why = Vec::new();
        for (id, _) in &self.options.members {
            if *id == self.options.id {
                continue;
            }
            match self.peers.get(id) {
                None => why.push(format!("server {id} is not connected")),
                Some(Peer { identity: None, .. }) => why.push(format!("server {id} has not said who it is")),
                Some(Peer { identity: Some(report), .. }) => {
                    if report.cluster != self.identity.cluster && report.cluster != 0 && self.identity.cluster != 0 {
                        why.push(format!("server {id} belongs to another cluster ({:#x})", report.cluster));
                    } else if report.membership == Membership::Amnesiac {
                        why.push(format!("server {id} lost its data and does not vote until it has it back"));
                    }
                }
            }
        }
        let what = match &self.state {
            State::Bootstrapping => "this data folder is new: waiting for all voters to agree on a first ensemble",
            State::Looking(_) if self.identity.membership == Membership::Amnesiac => {
                "this server lost data it may have promised: it waits for a leader of the others"
            }
            State::Looking(_) => "electing a leader",
            State::Learning(learning) => match learning.stage {
                Stage::Greeting => "waiting for the elected leader's epoch",
                Stage::Fetching { .. } => "fetching a snapshot from the leader",
                _ => "synchronizing with the leader",
            },
            State::Leading(leading) => leading.waiting_for(),
        };
        if why.is_empty() { what.to_owned() } else { format!("{what}; {}", why.join("; ")) }
    }
}

/// Whether a peer votes and counts. A server that lost its memory does from the moment on at which it says that it is a
/// member again: its promise and everything it acknowledged over this stream is on its disk.
pub(crate) fn votes(options: &Options, own: &Identity, peers: &BTreeMap<ServerId, Peer>, peer: ServerId) -> bool {
    options.quorum.is_voter(peer)
        && peers
            .get(&peer)
            .and_then(|p| p.identity)
            .is_some_and(|report| report.membership == Membership::Member && report.cluster == own.cluster)
}

/// The one of two places of a log that comes first.
fn earlier(a: Position, b: Position) -> Position {
    if a.zxid <= b.zxid { a } else { b }
}
