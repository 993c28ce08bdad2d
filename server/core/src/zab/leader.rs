//! The leader's side: discovery, synchronization, broadcast, in that order; then reads, snapshots, digests.
//!
//! [`Zab::advance_leader`] runs after every input and does whatever has become possible: most handlers only note
//! what they were told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use corral_proto::{ServerId, SessionId, Zxid};

use super::io::{Entry, Membership, Options, Output, Outputs, Phase, Position, Promise, Relation, SnapshotMeta};
use super::message::{Message, SyncPlan};
use super::sync::{self, Choice, Table};
use super::{State, Zab, votes};
use crate::zoo::{self, Switch};

/// After so many rejections an established leader looks for an epoch that the rejecting server can promise (P8).
const REJECTIONS_MAX: u32 = 3;

/// What a learner's log holds, as AckEpoch says (P4, P10).
#[derive(Clone, Debug)]
pub(crate) struct Holds {
    pub(super) counts: bool,
    pub(super) base: Position,
    pub(super) last: Position,
    pub(super) applied: Zxid,
    pub(super) epochs: Vec<Position>,
}

/// How far the leader is with a learner.
#[derive(Clone, Debug)]
enum Progress {
    /// FollowerInfo came.
    Greeted,
    /// LeaderInfo left.
    Asked,
    /// AckEpoch came: histories can be compared.
    Compared(Holds),
    /// Waits for a snapshot at or above this zxid.
    NeedsSnapshot(Zxid),
    /// Was sent the plan for this snapshot; its Ack says that it is installed.
    Installing(SnapshotMeta),
    /// Gets entries after `next`.
    Streaming {
        next: Position,
        /// What was sent and not acknowledged: last zxid and bytes of each message.
        in_flight: VecDeque<(Zxid, usize)>,
        in_flight_bytes: usize,
        /// A read from disk is under way.
        reading: Option<u64>,
        commit_sent: Zxid,
    },
}

#[derive(Clone, Debug)]
struct Learner {
    promise: u32,
    progress: Progress,
    /// Whether its promise counts for this leader (P6). Only the opening of the epoch asks for that: once it is open,
    /// whoever votes and has promised it, to whomever, counts with its acks and pongs.
    promise_counts: bool,
    acked: Zxid,
    up_to_date: bool,
    rejections: u32,
    heard_ms: u64,
    pong: u64,
    /// See [`Welcome`].
    welcome: Welcome,
}

/// How far an amnesiac voter is on its way back (P9).
///
/// It may have promised a higher epoch to somebody who is still gathering promises, and who will count that one although
/// nobody remembers it. So it is welcomed only when *every* other voter answers a ping that left after its
/// AckEpoch: whoever gathers promises has made his own first, and answers no ping of a lower epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Welcome {
    /// Not asked for.
    No,
    /// Waits for pongs of this number or later.
    Since(u64),
    /// Said.
    Done,
}

/// Who asked for a read point: this server's clients, or a learner.
type Reader = Option<ServerId>;

/// A ping round that somebody waits for (P24, P32).
#[derive(Clone, Debug)]
struct Round {
    /// Pings of this number or later answer it.
    seq: u64,
    /// The commit watermark when it began.
    commit: Zxid,
    reads: Vec<(Reader, u64)>,
    confirm: Option<(u64, Vec<ServerId>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Snapshot {
    Making {
        request: u64,
        at_least: Zxid,
    },
    Ready(SnapshotMeta),
    /// It could not be made: not tried again before this time.
    Failed {
        again_ms: u64,
    },
}

/// Trees that differ while no majority of equal ones is known (P35). It may be that some digests are still on their way:
/// no snapshot is given from the first moment on, and people are told when it lasts.
///
/// A leader who goes must not take it with him: followers hear of it with every ping, keep it, and tell the next leader
/// with AckEpoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Divergence {
    /// The latest entry at which they were seen to differ.
    zxid: Zxid,
    /// For how long this server has known of it in the role that it has now, from then on.
    since_ms: u64,
    told: bool,
}

impl Divergence {
    /// What a peer says: zxid 0 for none.
    pub(super) fn at(zxid: Zxid, now_ms: u64) -> Option<Divergence> {
        (zxid > Zxid::ZERO).then_some(Divergence { zxid, since_ms: now_ms, told: false })
    }
}

/// Leading, or trying to.
pub(crate) struct Leading {
    /// 0 until a majority has greeted.
    pub(super) epoch: u32,
    /// Log operation of the promise of `epoch`; LeaderInfo waits for it (P3).
    promise_seq: u64,
    promise_done: bool,
    /// (e,0) is appended: this is the leader of its epoch.
    established: bool,
    established_ms: u64,
    /// (e,0) is committed: writes are accepted (P18).
    activated: bool,
    /// (e,0) is executed here and the loop was told.
    told: bool,
    /// No further write is accepted in this epoch (P17).
    draining: bool,
    /// Who takes over, and until when he must hold everything.
    successor: Option<(ServerId, u64)>,
    learners: BTreeMap<ServerId, Learner>,
    /// Accepted and not yet appended, because the window is full.
    waiting: VecDeque<Bytes>,
    /// Appended and not yet committed: bytes of each entry.
    outstanding: VecDeque<(Zxid, usize)>,
    outstanding_bytes: usize,
    since_ms: u64,
    ping_seq: u64,
    next_ping_ms: u64,
    asked: Vec<(Reader, u64)>,
    confirms: Vec<(u64, Vec<ServerId>)>,
    rounds: VecDeque<Round>,
    snapshot: Option<Snapshot>,
    /// Digests told by servers, by entry.
    digests: BTreeMap<Zxid, BTreeMap<ServerId, u64>>,
    /// The latest entry at which the trees of a majority were equal, and this server's was one of them.
    equal: Zxid,
    /// What was read from disk for a learner's cursor and is not sent yet; empty: the place is gone from the log.
    from_disk: BTreeMap<ServerId, Vec<Entry>>,
}

impl Leading {
    pub(super) fn phase(&self) -> Phase {
        match (self.established, self.activated) {
            (false, _) => Phase::Discovery,
            (true, false) => Phase::Synchronization,
            (true, true) => Phase::Broadcast,
        }
    }

    pub(super) fn is_activated(&self) -> bool {
        self.activated || self.established && zoo::broken(Switch::ReadBeforeOpening)
    }

    /// Whether the trees of a majority were equal in this epoch.
    fn has_compared(&self) -> bool {
        self.equal >= Zxid::new(self.epoch, 0)
    }

    pub(super) fn ask(&mut self, reader: Reader, tag: u64) {
        self.asked.push((reader, tag));
    }

    pub(super) fn confirm(&mut self, tag: u64, include: Vec<ServerId>) {
        self.confirms.push((tag, include));
    }

    /// Read points that this server's clients still wait for.
    pub(super) fn local_reads(&self) -> Vec<u64> {
        let waiting = self.rounds.iter().flat_map(|r| &r.reads).chain(&self.asked);
        waiting.filter(|(reader, _)| reader.is_none()).map(|(_, tag)| *tag).collect()
    }

    pub(super) fn forget(&mut self, peer: ServerId) {
        self.learners.remove(&peer);
        self.from_disk.remove(&peer);
        self.forget_digests(peer);
    }

    /// What a server told of a former tree says nothing about the one that it has learned since.
    fn forget_digests(&mut self, peer: ServerId) {
        for told in self.digests.values_mut() {
            told.remove(&peer);
        }
    }

    pub(super) fn end(&self, out: &mut Outputs) {
        if let Some(Snapshot::Ready(meta)) = self.snapshot {
            out.push(Output::DropSnapshot { id: meta.id });
        }
        if self.told {
            out.push(Output::Leading(false));
        }
        if self.activated {
            out.push(Output::Relation(None));
        }
    }

    /// The log must be kept from here on.
    pub(super) fn pinned(&self) -> Zxid {
        match self.snapshot {
            None | Some(Snapshot::Failed { .. }) => Zxid::MAX,
            Some(Snapshot::Making { .. }) => Zxid::ZERO,
            Some(Snapshot::Ready(meta)) => meta.position.zxid,
        }
    }

    pub(super) fn report(&self) -> Vec<(ServerId, Zxid, bool)> {
        self.learners.iter().map(|(id, l)| (*id, l.acked, l.up_to_date)).collect()
    }

    /// See [`Zab::over_bound`]. A window is open until it is full, so its newest piece may lie outside.
    pub(super) fn over_bound(&self, options: &Options) -> Option<String> {
        let newest = self.outstanding.back().map_or(0, |(_, bytes)| *bytes);
        if self.outstanding_bytes - newest > options.window_bytes {
            return Some(format!("{} bytes proposed and not committed", self.outstanding_bytes));
        }
        if self.digests.len() > super::DIGESTS_KEPT {
            return Some(format!("digests told of {} entries", self.digests.len()));
        }
        self.learners.iter().find_map(|(peer, learner)| {
            let Progress::Streaming { in_flight, in_flight_bytes, .. } = &learner.progress else { return None };
            let newest = in_flight.back().map_or(0, |(_, bytes)| *bytes);
            (in_flight_bytes - newest > options.learner_window_bytes)
                .then(|| format!("{in_flight_bytes} bytes sent to server {peer} and not acknowledged"))
        })
    }

    pub(super) fn waiting_for(&self) -> &'static str {
        match (self.epoch, self.established) {
            (0, _) => "elected: waiting for a majority to come",
            (_, false) => "waiting for a majority to promise the new epoch",
            (_, true) => "waiting for a majority to hold the history",
        }
    }
}

impl Zab {
    /// Begins to lead; an epoch above `at_least` and above every promise heard.
    pub(super) fn lead(&mut self, at_least: u32, out: &mut Outputs) {
        let now = self.now.mono_ms;
        // What was known before is told to people, too, if it lasts.
        let known = if zoo::broken(Switch::DoubtForgotten) { Zxid::ZERO } else { self.doubt() };
        self.divergence = Divergence::at(known, now);
        let mut learners = BTreeMap::new();
        for (id, peer) in &mut self.peers {
            if let Some((promise, _)) = peer.follower_info.take() {
                learners.insert(*id, Learner::greeted(promise, now));
            }
        }
        self.state = State::Leading(Box::new(Leading {
            epoch: 0,
            promise_seq: 0,
            promise_done: false,
            established: false,
            established_ms: 0,
            activated: false,
            told: false,
            draining: false,
            successor: None,
            learners,
            waiting: VecDeque::new(),
            outstanding: VecDeque::new(),
            outstanding_bytes: 0,
            since_ms: now,
            ping_seq: 0,
            next_ping_ms: 0,
            asked: Vec::new(),
            confirms: Vec::new(),
            rounds: VecDeque::new(),
            snapshot: None,
            digests: BTreeMap::new(),
            equal: Zxid::ZERO,
            from_disk: BTreeMap::new(),
        }));
        let known: Vec<ServerId> = self.peers.keys().copied().collect();
        for peer in known {
            // Whoever still looks hears at once who leads.
            self.send_settled(peer, out);
        }
        if at_least > 0 {
            self.choose_epoch(at_least, out);
        }
    }

    /// Discovery once more, for an epoch above `above`: learners stay and are asked again.
    fn restart_discovery(&mut self, above: u32, out: &mut Outputs) {
        let State::Leading(leading) = &mut self.state else { return };
        let mut learners = std::mem::take(&mut leading.learners);
        let former = leading.epoch;
        self.reads.extend(leading.local_reads());
        leading.end(out);
        for learner in learners.values_mut() {
            *learner = Learner::greeted(learner.promise.max(former), learner.heard_ms);
        }
        self.lead(0, out);
        let highest = learners.values().map(|l| l.promise).max().unwrap_or(0);
        if let State::Leading(leading) = &mut self.state {
            leading.learners = learners;
        }
        self.choose_epoch(above.max(highest), out);
    }

    /// Fixes the epoch and promises it to itself; LeaderInfo leaves when that is durable.
    fn choose_epoch(&mut self, above: u32, out: &mut Outputs) {
        let epoch = above.max(self.promised.epoch) + 1;
        let promise = Promise {
            epoch,
            leader: self.options.id,
            instance: self.identity.instance,
            start_count: self.identity.start_count,
        };
        let seq = self.set_promise(promise, out);
        let now = self.now.mono_ms;
        if let State::Leading(leading) = &mut self.state {
            leading.epoch = epoch;
            leading.promise_seq = seq;
            leading.since_ms = now;
        }
    }

    pub(super) fn on_follower_info(&mut self, peer: ServerId, promise: u32, voter: bool, out: &mut Outputs) {
        let now = self.now.mono_ms;
        match &mut self.state {
            State::Leading(leading) => {
                leading.forget(peer);
                leading.learners.insert(peer, Learner::greeted(promise, now));
            }
            State::Looking(_) => {
                // It decided the round earlier than this server will.
                if let Some(from) = self.peers.get_mut(&peer) {
                    from.follower_info = Some((promise, voter));
                }
            }
            State::Learning(_) | State::Bootstrapping => self.send_settled(peer, out),
        }
    }

    pub(super) fn on_ack_epoch(&mut self, peer: ServerId, epoch: u32, holds: Holds, out: &mut Outputs) {
        let (now, own, votes) = (self.now.mono_ms, self.durable.zxid, self.is_voting_peer(peer));
        let State::Leading(leading) = &mut self.state else { return };
        if leading.epoch != epoch || !leading.promise_done {
            return;
        }
        let Some(learner) = leading.learners.get_mut(&peer) else { return };
        if !matches!(learner.progress, Progress::Asked) {
            return;
        }
        learner.promise = epoch;
        learner.heard_ms = now;
        learner.promise_counts = holds.counts && votes;
        let better = holds.last.zxid > own && !zoo::broken(Switch::LogsNotCompared);
        if learner.promise_counts && !leading.established && better {
            // A member of the majority-to-be knows more: he should lead (P7).
            self.look("a follower has a more recent log", out);
            return;
        }
        learner.progress = Progress::Compared(holds);
    }

    pub(super) fn on_reject(&mut self, peer: ServerId, promise: u32, out: &mut Outputs) {
        match &mut self.state {
            State::Leading(leading) => {
                let Some(learner) = leading.learners.get_mut(&peer) else { return };
                learner.promise = learner.promise.max(promise);
                learner.rejections += 1;
                learner.progress = Progress::Greeted;
                if promise > leading.epoch
                    && leading.epoch != 0
                    && (!leading.established || learner.rejections >= REJECTIONS_MAX)
                {
                    self.restart_discovery(promise, out);
                }
            }
            State::Learning(learning) => {
                // The leader cannot serve this relation any more (its log is gone, or it is of another epoch).
                if learning.leader == peer && promise == learning.epoch {
                    self.look("the leader asks to begin anew", out);
                }
            }
            State::Looking(_) | State::Bootstrapping => {}
        }
    }

    /// The learner in this epoch, heard now.
    fn learner_in(&mut self, peer: ServerId, epoch: u32) -> Option<&mut Learner> {
        let now = self.now.mono_ms;
        match &mut self.state {
            State::Leading(leading) if leading.epoch == epoch => {
                let learner = leading.learners.get_mut(&peer)?;
                learner.heard_ms = now;
                Some(learner)
            }
            _ => None,
        }
    }

    pub(super) fn on_ack(&mut self, peer: ServerId, epoch: u32, zxid: Zxid, _applied: Zxid) {
        let early = zoo::broken(Switch::OpeningBeforeHistory);
        let before_opening = self.log.epochs().iter().rev().copied().find(|p| early && p.zxid.epoch() < epoch);
        let Some(learner) = self.learner_in(peer, epoch) else { return };
        match &mut learner.progress {
            Progress::Installing(meta) if zxid == meta.position.zxid => {
                learner.acked = zxid;
                learner.progress = Progress::streaming(before_opening.unwrap_or(meta.position));
                if let State::Leading(leading) = &mut self.state {
                    leading.forget_digests(peer);
                }
            }
            Progress::Streaming { next, in_flight, in_flight_bytes, .. } => {
                // An ack of what was never sent on this stream is a protocol error (P21): it counts for nothing.
                if zxid > next.zxid || zxid <= learner.acked {
                    return;
                }
                learner.acked = zxid;
                while in_flight.front().is_some_and(|(last, _)| *last <= zxid) {
                    let (_, bytes) = in_flight.pop_front().expect("looked at above");
                    *in_flight_bytes -= bytes;
                }
            }
            _ => {}
        }
    }

    pub(super) fn on_pong(
        &mut self,
        peer: ServerId,
        epoch: u32,
        seq: u64,
        touched: Vec<SessionId>,
        digest: (Zxid, u64),
        out: &mut Outputs,
    ) {
        let Some(learner) = self.learner_in(peer, epoch) else { return };
        learner.pong = learner.pong.max(seq);
        // Touches are passed on before any round that this pong completes (P32).
        if !touched.is_empty() {
            out.push(Output::Touches { server: peer, sessions: touched });
        }
        let (zxid, digest) = digest;
        // What this server has left behind without recording it can be compared no more.
        let known = self.digest_at(zxid).is_some() || zxid > self.applied;
        if zxid > Zxid::ZERO
            && known
            && let State::Leading(leading) = &mut self.state
        {
            leading.digests.entry(zxid).or_default().insert(peer, digest);
            while leading.digests.len() > super::DIGESTS_KEPT {
                leading.digests.pop_first();
            }
            self.compare_digests(zxid, out);
        }
    }

    /// The newest digest of this server is another one: whoever stands there, too, is compared, and what was told of places
    /// that lie behind goes, unless their digests are recorded.
    pub(super) fn compare_newest(&mut self, out: &mut Outputs) {
        let Some((newest, _)) = self.newest else { return };
        let State::Leading(leading) = &mut self.state else { return };
        leading.digests.retain(|zxid, _| *zxid >= newest || self.digests.contains_key(zxid));
        if leading.digests.contains_key(&newest) {
            self.compare_digests(newest, out);
        }
    }

    /// P35: whoever differs from a majority stops; without a majority nobody does. Only servers that vote make a majority:
    /// else those who are told to stop and those who do not vote yet could be too many together, and nobody could lead.
    pub(super) fn compare_digests(&mut self, zxid: Zxid, out: &mut Outputs) {
        let Some(own) = self.digest_at(zxid) else { return };
        let id = self.options.id;
        let votes = |s: ServerId| {
            if s == id { self.is_voting_member() } else { votes(&self.options, &self.identity, &self.peers, s) }
        };
        let State::Leading(leading) = &self.state else { return };
        let nothing = BTreeMap::new();
        let told = leading.digests.get(&zxid).unwrap_or(&nothing);
        let of = |s: ServerId| if s == id { Some(own) } else { told.get(&s).copied() };
        let values: BTreeSet<u64> = told.values().copied().chain([own]).collect();
        let differ = values.len() > 1;
        let agreed = values.into_iter().find(|v| self.options.quorum.has_quorum(|s| votes(s) && of(s) == Some(*v)));
        let wrong: Vec<ServerId> = match agreed {
            Some(right) => told.iter().filter(|(_, d)| **d != right).map(|(s, _)| *s).collect(),
            None => Vec::new(),
        };
        let latest = leading.equal;
        if differ {
            // For those who tell theirs later, and for people.
            self.keep_digest(zxid, own);
            if zxid > self.mismatch {
                self.mismatch = zxid;
                self.mismatches += 1;
            }
        }
        let Some(agreed) = agreed else {
            // Who has not come as far as a majority of equal trees, and had another before, will be compared there.
            if differ && zxid > latest {
                self.doubt_trees(zxid, out);
            }
            return;
        };
        if let Some(over) = self.divergence.take_if(|d| d.zxid <= zxid)
            && over.told
        {
            out.push(Output::Note(format!("a majority of the trees is equal at {zxid}")));
        }
        let State::Leading(leading) = &mut self.state else { return };
        let epoch = leading.epoch;
        leading.equal = leading.equal.max(zxid);
        if zoo::broken(Switch::DifferenceIgnored) {
            return;
        }
        for peer in wrong {
            self.send(peer, Message::DigestMismatch { epoch, zxid }, out);
        }
        if agreed != own {
            self.look("the tree of this leader differs from a majority's", out);
            out.push(Output::Fatal(differs_from_a_majority(zxid)));
        }
    }

    /// Nobody can tell whose tree is right at this entry: nobody gets a copy of this one, and followers are told.
    fn doubt_trees(&mut self, zxid: Zxid, out: &mut Outputs) {
        let now = self.now.mono_ms;
        if let Some(known) = &mut self.divergence {
            known.zxid = known.zxid.max(zxid);
            return;
        }
        self.divergence = Divergence::at(zxid, now);
        let State::Leading(leading) = &mut self.state else { return };
        // What would be fetched from now on could be the wrong one.
        if let Some(Snapshot::Ready(meta)) = leading.snapshot {
            leading.snapshot = None;
            out.push(Output::DropSnapshot { id: meta.id });
        }
        if leading.established {
            self.ping(out);
        }
    }

    /// A learner says what it knows of trees that differ.
    pub(super) fn doubt_heard(&mut self, peer: ServerId, epoch: u32, doubt: Zxid, out: &mut Outputs) {
        // Whatever it is, a comparison in this epoch ends it.
        let doubt = doubt.min(Zxid::new(epoch, 0));
        let knows = match &self.state {
            State::Leading(leading) => {
                leading.epoch == epoch && leading.learners.contains_key(&peer) && !leading.has_compared()
            }
            _ => false,
        };
        if knows && doubt > self.doubt() && !zoo::broken(Switch::DoubtForgotten) {
            self.doubt_trees(doubt, out);
        }
    }

    /// The latest entry at which trees are known to have differed while no majority agreed on one; zxid 0: none.
    pub(super) fn doubt(&self) -> Zxid {
        self.divergence.map_or(Zxid::ZERO, |d| d.zxid)
    }

    /// The entry at which the trees were seen to differ, if that has lasted and no majority agrees on one.
    pub(super) fn divergence(&self) -> Option<Zxid> {
        match &self.state {
            State::Leading(_) => self.divergence.filter(|d| d.told).map(|d| d.zxid),
            _ => None,
        }
    }

    /// Tells people of trees that have differed for so long that every server with a stream has said what it has.
    fn tell_divergence(&mut self, out: &mut Outputs) {
        let (now, sync) = (self.now.mono_ms, self.options.sync_timeout_ms);
        let State::Leading(leading) = &self.state else { return };
        let Some(divergence) = &mut self.divergence else { return };
        if divergence.told || now < divergence.since_ms + sync {
            return;
        }
        divergence.told = true;
        let told = leading.digests.get(&divergence.zxid);
        let own = self.digests.get(&divergence.zxid).map(|digest| (self.options.id, *digest));
        let all = told.into_iter().flatten().map(|(s, d)| (*s, *d)).chain(own);
        let mut trees: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for (server, digest) in all {
            trees.entry(digest).or_default().push(server.to_string());
        }
        let trees: Vec<String> = trees.into_values().map(|servers| servers.join(" and ")).collect();
        let who = match trees.len() {
            2.. => trees.join(" against "),
            // It was told by another.
            _ => "as a former leader saw".to_owned(),
        };
        out.push(Output::Note(format!(
            "the trees of the servers differ at {} ({who}), and no majority of those that vote agrees on one: nobody can tell \
             which is right, so nobody stops, and no snapshot is given",
            divergence.zxid
        )));
    }

    pub(super) fn on_forward(&mut self, peer: ServerId, epoch: u32, payloads: Vec<Bytes>, out: &mut Outputs) {
        if self.learner_in(peer, epoch).is_some_and(|l| l.up_to_date) {
            self.on_propose(payloads, out);
        }
    }

    /// Transactions of this server's clients, or of a learner's.
    pub(super) fn on_propose(&mut self, payloads: Vec<Bytes>, out: &mut Outputs) {
        match &mut self.state {
            State::Leading(leading) if leading.activated && !leading.draining => {
                if zoo::broken(Switch::OverloadSkips) && leading.outstanding_bytes >= self.options.window_bytes {
                    return;
                }
                leading.waiting.extend(payloads);
                self.propose_waiting(out);
            }
            State::Learning(learning) if learning.up_to_date => {
                let (leader, epoch) = (learning.leader, learning.epoch);
                self.send(leader, Message::Forward { epoch, payloads }, out);
            }
            _ => {}
        }
    }

    /// Gives numbers to what waits, as far as the window and the counter allow (P17).
    fn propose_waiting(&mut self, out: &mut Outputs) {
        let wall = self.now.wall_ms;
        let mut end = self.log.end();
        let mut stamp = self.stamp_ms;
        let (window, limit) = (self.options.window_bytes, self.options.counter_limit);
        let State::Leading(leading) = &mut self.state else { return };
        let mut entries = Vec::new();
        while !leading.waiting.is_empty() && !leading.draining {
            if leading.outstanding_bytes > 0 && leading.outstanding_bytes >= window {
                break;
            }
            if end.zxid.counter() + 1 >= limit && !zoo::broken(Switch::CounterWraps) {
                // What waits is dropped with the epoch; the outboxes offer it again in the next.
                leading.draining = true;
                break;
            }
            let payload = leading.waiting.pop_front().expect("looked at above");
            stamp = stamp.max(wall);
            let zxid = match zoo::broken(Switch::CounterWraps) && end.zxid.counter() + 1 >= limit {
                false => Zxid::new(end.zxid.epoch(), end.zxid.counter() + 1),
                true => Zxid::new(end.zxid.epoch() + 1, 0),
            };
            let entry = Entry::after(end.hash, zxid, stamp, payload);
            end = Position { zxid, hash: entry.hash };
            leading.outstanding.push_back((zxid, entry.weight()));
            leading.outstanding_bytes += entry.weight();
            entries.push(entry);
        }
        if !entries.is_empty() {
            self.append(entries, out);
        }
    }

    pub(super) fn on_remote_read_index(&mut self, peer: ServerId, epoch: u32, tag: u64) {
        if self.learner_in(peer, epoch).is_some()
            && let State::Leading(leading) = &mut self.state
            && leading.activated
        {
            leading.ask(Some(peer), tag);
        }
    }

    pub(super) fn on_transfer(&mut self, target: ServerId, out: &mut Outputs) {
        let votes = self.is_voting_peer(target);
        let patience = self.now.mono_ms + self.options.sync_timeout_ms;
        let State::Leading(leading) = &mut self.state else { return };
        let ready = leading.learners.get(&target).is_some_and(|l| l.up_to_date);
        if leading.activated && ready && votes {
            leading.draining = true;
            leading.successor = Some((target, patience));
        } else {
            out.push(Output::Note(format!(
                "server {target} cannot take over: it does not follow this leader as a voter"
            )));
        }
    }

    pub(super) fn on_log_read(&mut self, request: u64, entries: Vec<Entry>) {
        let State::Leading(leading) = &mut self.state else { return };
        for (id, learner) in &mut leading.learners {
            let Progress::Streaming { reading, .. } = &mut learner.progress else { continue };
            if *reading != Some(request) {
                continue;
            }
            *reading = None;
            leading.from_disk.insert(*id, entries);
            return;
        }
    }

    pub(super) fn on_snapshot_ready(&mut self, request: u64, snapshot: Option<SnapshotMeta>, out: &mut Outputs) {
        if let State::Leading(leading) = &mut self.state
            && let Some(Snapshot::Making { request: wanted, at_least }) = leading.snapshot
            && wanted == request
        {
            leading.snapshot = None;
            match snapshot {
                Some(meta) if meta.position.zxid >= at_least && self.divergence.is_none() => {
                    leading.snapshot = Some(Snapshot::Ready(meta));
                }
                Some(meta) => out.push(Output::DropSnapshot { id: meta.id }),
                None => {
                    let again_ms = self.now.mono_ms + self.options.sync_timeout_ms;
                    leading.snapshot = Some(Snapshot::Failed { again_ms });
                }
            }
        } else if let Some(meta) = snapshot {
            // Nobody waits for it any more.
            out.push(Output::DropSnapshot { id: meta.id });
        }
    }

    pub(super) fn tick_leader(&mut self, out: &mut Outputs) {
        let now = self.now.mono_ms;
        let (sync, init) = (self.options.sync_timeout_ms, self.options.init_timeout_ms);
        let id = self.options.id;
        let counts = |s: ServerId| votes(&self.options, &self.identity, &self.peers, s);
        let State::Leading(leading) = &mut self.state else { return };
        // P23: a leader that no majority answers leads no more. Who does not vote cannot help him.
        let heard =
            |s: ServerId| s == id || counts(s) && leading.learners.get(&s).is_some_and(|l| now <= l.heard_ms + sync);
        let quorum = self.options.quorum.has_quorum(heard);
        if !quorum && now > leading.since_ms + sync && !zoo::broken(Switch::LeaderStaysAlone) {
            self.look("no majority was heard for syncTimeout", out);
            return;
        }
        let installing = leading.learners.values().any(|l| {
            matches!(l.progress, Progress::Installing(_) | Progress::NeedsSnapshot(_)) && now <= l.heard_ms + sync
        });
        if !leading.activated && !installing && now > leading.since_ms + init {
            self.look("no majority could be synchronized in time", out);
            return;
        }
        if !leading.activated && installing {
            leading.since_ms = now;
        }
        // A learner that is silent for long holds its window and its snapshot for nothing.
        leading.learners.retain(|_, l| now <= l.heard_ms + init.max(sync));
        if leading.established && now >= leading.next_ping_ms {
            leading.next_ping_ms = now + self.options.ping_interval_ms;
            self.ping(out);
        }
        self.ask_rejecting_again(out);
        self.tell_divergence(out);
    }

    /// A server that rejected this epoch is asked again now and then; after some times the leader goes to a higher
    /// epoch (P8).
    fn ask_rejecting_again(&mut self, out: &mut Outputs) {
        let State::Leading(leading) = &self.state else { return };
        if !leading.promise_done {
            return;
        }
        let epoch = leading.epoch;
        let again: Vec<ServerId> = leading
            .learners
            .iter()
            .filter(|(_, l)| l.rejections > 0 && matches!(l.progress, Progress::Greeted))
            .map(|(id, _)| *id)
            .collect();
        for peer in again {
            self.send(peer, Message::LeaderInfo { epoch }, out);
            if let State::Leading(leading) = &mut self.state
                && let Some(learner) = leading.learners.get_mut(&peer)
            {
                learner.progress = Progress::Asked;
            }
        }
    }

    /// Sends a ping to everybody in the relation; returns its number.
    fn ping(&mut self, out: &mut Outputs) -> u64 {
        let (commit, doubt) = (self.committed, self.doubt());
        let State::Leading(leading) = &mut self.state else { return 0 };
        leading.ping_seq += 1;
        let (epoch, seq) = (leading.epoch, leading.ping_seq);
        let to: Vec<ServerId> = leading
            .learners
            .iter()
            .filter(|(_, l)| !matches!(l.progress, Progress::Greeted | Progress::Asked))
            .map(|(id, _)| *id)
            .collect();
        for peer in to {
            self.send(peer, Message::Ping { epoch, seq, commit, doubt }, out);
        }
        seq
    }

    /// Whatever has become possible.
    pub(super) fn advance_leader(&mut self, out: &mut Outputs) {
        self.advance_discovery(out);
        self.advance_sync(out);
        self.advance_commit(out);
        self.propose_waiting(out);
        // An ensemble of one may have nothing to wait for but its disk; for all others this sends what is new.
        self.replicate(out);
        self.advance_rounds(out);
        self.advance_welcomes(out);
        self.advance_drain(out);
    }

    /// Amnesiacs become members again when nothing they forgot can matter any more: see [`Welcome`].
    fn advance_welcomes(&mut self, out: &mut Outputs) {
        let amnesiac = |peer: &ServerId| {
            self.options.quorum.is_voter(*peer)
                && self.peers.get(peer).and_then(|p| p.identity).is_some_and(|r| r.membership == Membership::Amnesiac)
        };
        let State::Leading(leading) = &self.state else { return };
        let waiting: Vec<ServerId> = leading
            .learners
            .iter()
            .filter(|(peer, l)| l.up_to_date && l.welcome != Welcome::Done && amnesiac(peer))
            .map(|(peer, _)| *peer)
            .collect();
        let (id, voters, commit) = (self.options.id, self.options.quorum.voters(), self.committed);
        for peer in waiting {
            let State::Leading(leading) = &mut self.state else { return };
            let (epoch, next_ping) = (leading.epoch, leading.ping_seq + 1);
            let answered = |seq: u64| {
                let mut others = voters.iter().filter(|s| **s != id && **s != peer);
                others.all(|s| leading.learners.get(s).is_some_and(|l| l.pong >= seq))
            };
            let welcome = match leading.learners.get(&peer).map(|l| l.welcome) {
                Some(Welcome::No) => Welcome::Since(next_ping),
                Some(Welcome::Since(seq)) if answered(seq) || zoo::broken(Switch::WelcomedTooEarly) => Welcome::Done,
                _ => continue,
            };
            if let Some(learner) = leading.learners.get_mut(&peer) {
                learner.welcome = welcome;
            }
            if welcome == Welcome::Done {
                self.send(peer, Message::Welcome { epoch, commit }, out);
            }
        }
    }

    fn advance_discovery(&mut self, out: &mut Outputs) {
        let (id, done) = (self.options.id, self.done);
        let voting = self.is_voting_member();
        let voters: BTreeSet<ServerId> = self.peers.keys().copied().filter(|p| self.is_voting_peer(*p)).collect();
        let State::Leading(leading) = &mut self.state else { return };
        if !voting {
            self.look("this server does not vote any more", out);
            return;
        }
        if leading.epoch == 0 {
            let greeted = |s: ServerId| s == id || (voters.contains(&s) && leading.learners.contains_key(&s));
            if self.options.quorum.has_quorum(greeted) {
                let highest = leading.learners.values().map(|l| l.promise).max().unwrap_or(0);
                self.choose_epoch(highest, out);
            }
            return;
        }
        if !leading.promise_done {
            if done < leading.promise_seq && !zoo::broken(Switch::LeaderInfoBeforePromise) {
                return;
            }
            leading.promise_done = true;
        }
        let epoch = leading.epoch;
        let ask: Vec<ServerId> = leading
            .learners
            .iter_mut()
            .filter(|(_, l)| matches!(l.progress, Progress::Greeted) && l.rejections == 0)
            .map(|(peer, l)| {
                l.progress = Progress::Asked;
                *peer
            })
            .collect();
        for peer in ask {
            self.send(peer, Message::LeaderInfo { epoch }, out);
        }
        let State::Leading(leading) = &mut self.state else { return };
        if leading.established {
            return;
        }
        let promised = |s: ServerId| {
            s == id
                || leading
                    .learners
                    .get(&s)
                    .is_some_and(|l| l.promise_counts && matches!(l.progress, Progress::Compared(_)))
        };
        if self.options.quorum.has_quorum(promised) {
            // Nothing of a former role is in the log writer's queue: the promise was behind it.
            assert_eq!(self.durable, self.log.end(), "a leader's own history is durable when it is established");
            leading.established = true;
            leading.established_ms = self.now.mono_ms;
            let stamp = self.stamp_ms.max(self.now.wall_ms);
            let opening = Entry::after(self.log.end().hash, Zxid::new(epoch, 0), stamp, Bytes::new());
            leading.outstanding.push_back((opening.zxid, opening.weight()));
            leading.outstanding_bytes += opening.weight();
            if zoo::broken(Switch::ReadBeforeOpening) {
                std::mem::take(&mut self.reads).into_iter().for_each(|tag| leading.ask(None, tag));
            }
            if zoo::broken(Switch::OpeningTakenAsCommitted) {
                self.committed = opening.zxid;
            }
            self.append(vec![opening], out);
        }
    }

    /// Fixes how each learner catches up. Its cursor runs over the one log from then on, so there is no separate case for
    /// what is in flight (P16).
    fn advance_sync(&mut self, out: &mut Outputs) {
        let State::Leading(leading) = &self.state else { return };
        if !leading.established {
            return;
        }
        let epoch = leading.epoch;
        let end = self.log.end();
        let ready: Vec<ServerId> = leading
            .learners
            .iter()
            .filter(|(_, l)| matches!(l.progress, Progress::Compared(_) | Progress::NeedsSnapshot(_)))
            .map(|(id, _)| *id)
            .collect();
        for peer in ready {
            let State::Leading(leading) = &mut self.state else { return };
            let Some(learner) = leading.learners.get_mut(&peer) else { continue };
            match learner.progress.clone() {
                Progress::Compared(holds) => {
                    let ours = Table { base: self.log.base(), epochs: self.log.epochs() };
                    let theirs = Table { base: holds.base, epochs: &holds.epochs };
                    let threshold = self.options.snapshot_threshold_bytes;
                    let too_far = |at: Zxid| self.log.bytes_after(at) > threshold;
                    match sync::choose(ours, theirs, holds.last, holds.applied, self.applied, too_far) {
                        Choice::Diff(point) => {
                            let next = if zoo::broken(Switch::CursorSkipsHistory) { end } else { point };
                            learner.progress = Progress::streaming(next);
                            self.send(peer, Message::SyncPlan { epoch, point, plan: SyncPlan::Diff }, out);
                        }
                        Choice::Trunc(point) => {
                            learner.progress = Progress::streaming(point);
                            self.send(peer, Message::SyncPlan { epoch, point, plan: SyncPlan::Trunc }, out);
                        }
                        Choice::Snap { at_least } => {
                            learner.progress = Progress::NeedsSnapshot(at_least);
                            self.provide_snapshot(peer, out);
                        }
                        Choice::Refuse(at) => {
                            out.push(Output::Note(format!(
                                "server {peer} holds a history that differs from the ensemble's at {at}: it is not served"
                            )));
                            leading.learners.remove(&peer);
                        }
                    }
                }
                Progress::NeedsSnapshot(_) => self.provide_snapshot(peer, out),
                _ => {}
            }
        }
        // A snapshot that nobody uses goes.
        let State::Leading(leading) = &mut self.state else { return };
        if let Some(Snapshot::Ready(meta)) = leading.snapshot {
            let used = leading.learners.values().any(|l| match &l.progress {
                Progress::Installing(m) => m.id == meta.id,
                Progress::NeedsSnapshot(at_least) => *at_least <= meta.position.zxid,
                _ => false,
            });
            if !used {
                leading.snapshot = None;
                out.push(Output::DropSnapshot { id: meta.id });
            }
        }
    }

    fn provide_snapshot(&mut self, peer: ServerId, out: &mut Outputs) {
        let base = self.log.base().zxid;
        let applied = self.applied;
        self.next_request += 1;
        let request = self.next_request;
        let now = self.now.mono_ms;
        let State::Leading(leading) = &mut self.state else { return };
        let epoch = leading.epoch;
        let compared = leading.has_compared();
        let Some(learner) = leading.learners.get_mut(&peer) else { return };
        if leading.snapshot.is_some_and(|s| matches!(s, Snapshot::Failed { again_ms } if now >= again_ms)) {
            leading.snapshot = None;
        }
        let Progress::NeedsSnapshot(wanted) = &learner.progress else { return };
        // P35: it might be a copy of the wrong tree, and make that one the majority's. A leader who has only begun knows
        // nothing of it, and waits for the others to say what they have; but not for ever: they may need the copy to say so.
        let patience = leading.established_ms + self.options.sync_timeout_ms;
        let too_soon = !compared && now < patience && !zoo::broken(Switch::SnapshotUncompared);
        if self.divergence.is_some() || too_soon {
            return;
        }
        let at_least = if zoo::broken(Switch::SnapshotTooOld) { Zxid::ZERO } else { (*wanted).max(base) };
        match leading.snapshot {
            Some(Snapshot::Ready(meta)) if meta.position.zxid >= at_least => {
                learner.progress = Progress::Installing(meta);
                let point = meta.position;
                self.send(peer, Message::SyncPlan { epoch, point, plan: SyncPlan::Snap(meta) }, out);
            }
            // Another learner still reads an older one: this one waits for it to be done.
            Some(_) => {}
            // The store is not there yet: it will be, the entries are committed.
            None if applied < at_least => {}
            None => {
                leading.snapshot = Some(Snapshot::Making { request, at_least });
                out.push(Output::MakeSnapshot { request, at_least });
            }
        }
    }

    /// P20: the largest zxid of this epoch that a majority holds, each by its own disk.
    fn advance_commit(&mut self, out: &mut Outputs) {
        let id = self.options.id;
        let durable = if zoo::broken(Switch::LeaderCountsUnsynced) { self.log.end().zxid } else { self.durable.zxid };
        let counts = |s: ServerId| votes(&self.options, &self.identity, &self.peers, s);
        let State::Leading(leading) = &mut self.state else { return };
        if !leading.established {
            return;
        }
        let epoch = leading.epoch;
        let opening = Zxid::new(epoch, 0);
        let held = |s: ServerId| {
            if s == id {
                durable
            } else {
                let once = zoo::broken(Switch::CountsOnceOnly);
                let learner = leading.learners.get(&s).filter(|l| counts(s) && (l.promise_counts || !once));
                learner.map_or(Zxid::ZERO, |l| l.acked)
            }
        };
        let watermark = self.options.quorum.watermark(held);
        let own = watermark >= opening || zoo::broken(Switch::OlderEpochsCommit);
        if own && watermark > self.committed {
            self.committed = watermark;
            while leading.outstanding.front().is_some_and(|(zxid, _)| *zxid <= watermark) {
                let (_, bytes) = leading.outstanding.pop_front().expect("looked at above");
                leading.outstanding_bytes -= bytes;
            }
        }
        let news = !leading.activated && self.committed >= opening;
        if news {
            leading.activated = true;
            out.push(Output::Relation(Some(Relation { leader: id, epoch })));
            for tag in std::mem::take(&mut self.reads) {
                leading.ask(None, tag);
            }
        }
        if leading.activated && !leading.told && self.applied >= opening {
            leading.told = true;
            out.push(Output::Leading(true));
        }
        if leading.activated {
            let commit = self.committed;
            let ready: Vec<ServerId> = leading
                .learners
                .iter_mut()
                .filter(|(_, l)| {
                    !l.up_to_date && l.acked >= opening && matches!(l.progress, Progress::Streaming { .. })
                })
                .map(|(peer, l)| {
                    l.up_to_date = true;
                    if let Progress::Streaming { commit_sent, .. } = &mut l.progress {
                        *commit_sent = commit;
                    }
                    *peer
                })
                .collect();
            for peer in ready {
                self.send(peer, Message::UpToDate { epoch, commit }, out);
            }
        }
        if news {
            self.announce(out);
        }
    }

    /// Sends every learner what its window allows.
    fn replicate(&mut self, out: &mut Outputs) {
        let State::Leading(leading) = &self.state else { return };
        if !leading.established {
            return;
        }
        let peers: Vec<ServerId> = leading.learners.keys().copied().collect();
        for peer in peers {
            while self.replicate_one(peer, out) {}
        }
    }

    /// One message to one learner; whether another may follow.
    fn replicate_one(&mut self, peer: ServerId, out: &mut Outputs) -> bool {
        let votes = self.options.quorum.is_voter(peer);
        let (commit, end) = (self.committed, self.log.end().zxid);
        let (window, size) = (self.options.learner_window_bytes, self.options.message_bytes);
        let next_request = self.next_request + 1;
        let State::Leading(leading) = &mut self.state else { return false };
        let epoch = leading.epoch;
        let disk = leading.from_disk.remove(&peer);
        let Some(learner) = leading.learners.get_mut(&peer) else { return false };
        let Progress::Streaming { next, in_flight, in_flight_bytes, reading, commit_sent } = &mut learner.progress
        else {
            return false;
        };
        // Observers learn what is committed (P25).
        let upto = if votes { end } else { commit };
        if next.zxid < upto && reading.is_none() && *in_flight_bytes < window {
            let mut entries = Vec::new();
            if let Some(disk) = disk {
                // Read for this cursor; anything else means that the place is gone from the log.
                if disk.first().is_some_and(|e| super::history::follows(next.zxid, e.zxid)) {
                    entries = disk;
                    entries.retain(|e| e.zxid <= upto);
                }
                if entries.is_empty() {
                    leading.learners.remove(&peer);
                    self.send(peer, Message::Reject { promise: epoch }, out);
                    return false;
                }
            } else if self.log.in_memory_after(next.zxid) {
                entries = self.log.entries_after(next.zxid, upto, size);
            } else {
                *reading = Some(next_request);
                self.next_request = next_request;
                out.push(Output::ReadLog { request: next_request, after: next.zxid, max_bytes: size });
                return false;
            }
            if zoo::broken(Switch::HoleInCache) && entries.len() > 1 {
                entries.remove(0);
            }
            let Some(last) = entries.last() else { return false };
            let prev = *next;
            *next = Position { zxid: last.zxid, hash: last.hash };
            let bytes: usize = entries.iter().map(Entry::weight).sum();
            in_flight.push_back((last.zxid, bytes));
            *in_flight_bytes += bytes;
            *commit_sent = commit;
            let more = next.zxid < upto;
            self.send(peer, Message::Entries { epoch, prev, entries, commit }, out);
            return more;
        }
        if commit > *commit_sent && learner.up_to_date {
            *commit_sent = commit;
            self.send(peer, Message::Commit { epoch, commit }, out);
        }
        false
    }

    /// Read points and confirmations: one round of pings, sent after they were asked for, serves all that wait (P24).
    fn advance_rounds(&mut self, out: &mut Outputs) {
        let State::Leading(leading) = &mut self.state else { return };
        if !leading.is_activated() {
            return;
        }
        if !leading.asked.is_empty() || !leading.confirms.is_empty() {
            let asked = std::mem::take(&mut leading.asked);
            let confirms = std::mem::take(&mut leading.confirms);
            let commit = self.committed;
            let seq = self.ping(out);
            let State::Leading(leading) = &mut self.state else { return };
            if !asked.is_empty() {
                let seq = seq - u64::from(zoo::broken(Switch::OldPongConfirms));
                leading.rounds.push_back(Round { seq, commit, reads: asked, confirm: None });
            }
            for confirm in confirms {
                leading.rounds.push_back(Round { seq, commit, reads: Vec::new(), confirm: Some(confirm) });
            }
        }
        let id = self.options.id;
        let counts = |s: ServerId| votes(&self.options, &self.identity, &self.peers, s);
        let State::Leading(leading) = &mut self.state else { return };
        let epoch = leading.epoch;
        let mut answered = Vec::new();
        let learners = &leading.learners;
        leading.rounds.retain(|round| {
            let pong = |s: ServerId| s == id || counts(s) && learners.get(&s).is_some_and(|l| l.pong >= round.seq);
            let included = round.confirm.as_ref().is_none_or(|(_, include)| {
                let answered = |s| learners.get(s).is_none_or(|l: &Learner| !l.up_to_date || l.pong >= round.seq);
                include.iter().all(answered) || zoo::broken(Switch::HolderNotAsked)
            });
            let unasked = round.confirm.is_none() && zoo::broken(Switch::SyncWithoutRound);
            let done = included && (self.options.quorum.has_quorum(pong) || unasked);
            if done {
                answered.push(round.clone());
            }
            !done
        });
        for Round { commit, reads, confirm, .. } in answered {
            for (reader, tag) in reads {
                match reader {
                    None => out.push(Output::ReadPoint { tag, zxid: commit }),
                    Some(peer) => self.send(peer, Message::ReadPoint { epoch, tag, zxid: commit }, out),
                }
            }
            if let Some((tag, _)) = confirm {
                out.push(Output::RoundConfirmed { tag });
            }
        }
    }

    /// P17: when everything accepted is committed, the successor takes over, or a new epoch begins.
    fn advance_drain(&mut self, out: &mut Outputs) {
        let end = self.log.end().zxid;
        let now = self.now.mono_ms;
        let State::Leading(leading) = &mut self.state else { return };
        if !leading.draining || self.committed < end {
            return;
        }
        let epoch = leading.epoch;
        // Without a successor a new epoch begins here, so that what was not accepted meanwhile is offered again.
        let Some((successor, until)) = leading.successor else { return self.restart_discovery(epoch, out) };
        match leading.learners.get(&successor) {
            Some(learner) if learner.acked >= end => {
                self.send(successor, Message::Handover { epoch }, out);
                out.push(Output::Note(format!("leadership is handed over to server {successor}")));
                self.leave_role(out);
                self.start_election(out);
            }
            Some(_) if now <= until => {}
            _ => {
                leading.successor = None;
                out.push(Output::Note(format!("server {successor} does not keep up and cannot take over")));
            }
        }
    }
}

/// Why a server stops that P35 found wrong.
pub(super) fn differs_from_a_majority(zxid: Zxid) -> String {
    format!("the tree of this server differs from the trees of a majority at {zxid}: its data cannot be trusted")
}

impl Learner {
    fn greeted(promise: u32, now_ms: u64) -> Learner {
        Learner {
            promise,
            progress: Progress::Greeted,
            promise_counts: false,
            acked: Zxid::ZERO,
            up_to_date: false,
            rejections: 0,
            heard_ms: now_ms,
            pong: 0,
            welcome: Welcome::No,
        }
    }
}

impl Progress {
    fn streaming(next: Position) -> Progress {
        Progress::Streaming {
            next,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            reading: None,
            commit_sent: Zxid::ZERO,
        }
    }
}
