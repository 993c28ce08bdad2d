//! The core: takes what happened, asks the member, hands on what it decided.
//!
//! It is one machine and no thread: whoever brings it an event takes a turn with it then and there, if nobody else is at it
//! ([`NodeShared::bring`]). A lone write would spend more time on waking a thread for each of the events it causes than on
//! the events. Thread `core` takes turns for the clock, and when there is more than one event after another to be done.
//!
//! Everything with a rule in it is in [`Member`]; this file carries. What it adds is order and economy: messages and
//! completions come before client requests, so that load never delays a heartbeat; the clock is read once a turn; all
//! writes of a turn become one proposal, all messages to a peer one frame, all log operations one sync.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use corral_core::member::{Member, MemberInput, MemberOutput};
use corral_core::session::CloseReason;
use corral_core::session::outbox::Key;
use corral_core::storage::folder::{Condemned, Mark};
use corral_core::tree::entry::Txn;
use corral_core::zab::codec::{self, Encoded, decode_frame};
use corral_core::zab::io::{Input, LogOp, Membership, Now, Output, Phase, Relation, Role, SnapshotMeta, Status};
use corral_core::zab::message::{Message, SyncPlan};
use corral_proto::{ServerId, SessionId, Zxid};
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use crate::apply_loop::ApplyCommand;
use crate::figures::SyncKind;
use crate::log_loop::{LogCommand, ReadLog};
use crate::mailbox::Mailbox;
use crate::net::peer_link::{self, LinkEvent, Memory, PeerLinks, Standing};
use crate::node::{CoreEvent, NodeShared};

/// Between two ticks of the member, ms.
const TICK_MS: u64 = 20;

/// Between two times at which peers are told what this server holds, ms.
const MARK_INTERVAL_MS: u64 = 1_000;

/// Between two lines of the log that say why there is no quorum, ms.
const WAITING_LOG_MS: u64 = 5_000;

/// Events of links that are taken before others of their thread have a turn.
const EVENTS_AT_ONCE: usize = 8;

/// Bytes of one frame to a peer; a single message may be larger, by one transaction at most.
const FRAME_BYTES: usize = 1 << 20;

/// What a peer sent, decoded and checked.
#[derive(Debug)]
pub(crate) enum PeerEvent {
    /// A stream is up.
    Up { peer: ServerId, link: u64, instance: u64, start_count: u64, whole_since: u64, foreign: bool },
    /// Messages of one frame, in order.
    Messages { peer: ServerId, link: u64, messages: Vec<Message> },
    /// A peer said what it holds (P9).
    Marked { peer: ServerId, instance: u64, mark: Mark },
    /// A stream ended.
    Down { peer: ServerId, link: u64 },
    /// This very data folder is an old copy (P9); up to which start of it more was seen.
    Stale { reason: String, seen_start: u64 },
}

/// Begins to fetch a snapshot from a peer; ends with [`CoreEvent::SnapshotFetched`].
pub(crate) type StartFetch = Box<dyn Fn(u64, ServerId, SnapshotMeta) + Send>;

/// Where the core hands things to.
pub(crate) struct CoreOutlets {
    pub(crate) log: Mailbox<LogCommand>,
    pub(crate) log_read: Mailbox<ReadLog>,
    pub(crate) apply: Mailbox<ApplyCommand>,
    /// `None` in an ensemble of one.
    pub(crate) links: Option<PeerLinks>,
    pub(crate) fetch: StartFetch,
}

pub(crate) struct CoreLoop {
    node: Arc<NodeShared>,
    member: Member,
    outlets: CoreOutlets,
    out: Vec<MemberOutput>,
    turn: Turn,
    relation: Option<Relation>,
    /// Since when there is no relation to a leader, monotonic ms; `None` while there is one.
    lost_ms: Option<u64>,
    /// The connections were told that there is no quorum.
    told: bool,
    next_waiting_log_ms: u64,
    /// What peers were told last that this server holds, and when they may be told again, monotonic ms.
    told_mark: Option<(u32, Zxid)>,
    /// The furthest end that peers could hear of for a promise: an install takes what is durable back for a moment.
    stood: (u32, Zxid),
    next_mark_ms: u64,
    /// Role, phase, leader and epoch as last written to the log.
    logged: String,
    /// Whether this server counts, as last written to the log.
    membership: Option<Membership>,
    /// Trees differ and nobody can tell which is right (P35), as last written to the log.
    diverged: bool,
    /// Since when there is an election, monotonic ms.
    looking_since_ms: Option<u64>,
    /// What is being dealt with.
    events: Vec<CoreEvent>,
    next_tick_ms: u64,
}

/// What a turn collects, so that each receiver is woken once.
#[derive(Default)]
struct Turn {
    log: Vec<LogCommand>,
    apply: Vec<ApplyCommand>,
    frames: Vec<((ServerId, u64), Vec<Message>)>,
    /// Inputs that outputs of this turn gave rise to.
    again: Vec<MemberInput>,
    fatal: bool,
}

/// Forwarded transactions in messages of a bounded size, in order; anything else as it is.
fn split(message: Message) -> Vec<Message> {
    let Message::Forward { epoch, payloads } = message else { return vec![message] };
    let mut messages = Vec::new();
    let mut part = Vec::new();
    let mut bytes = 0;
    for payload in payloads {
        if bytes + payload.len() > FRAME_BYTES && !part.is_empty() {
            messages.push(Message::Forward { epoch, payloads: std::mem::take(&mut part) });
            bytes = 0;
        }
        bytes += payload.len();
        part.push(payload);
    }
    messages.push(Message::Forward { epoch, payloads: part });
    messages
}

/// Entries that go to several peers in one turn are encoded once.
#[derive(Default)]
struct SharedEntries(Vec<(EntriesKey, Encoded)>);

/// Within one leadership the same place, number and watermark mean the same message.
#[derive(PartialEq, Eq)]
struct EntriesKey {
    epoch: u32,
    prev: Zxid,
    last: Zxid,
    entries: usize,
    commit: Zxid,
}

impl SharedEntries {
    fn encode(&mut self, message: &Message) -> Encoded {
        let Message::Entries { epoch, prev, entries, commit } = message else { return codec::encode(message) };
        let last = entries.last().map_or(prev.zxid, |entry| entry.zxid);
        let key = EntriesKey { epoch: *epoch, prev: prev.zxid, last, entries: entries.len(), commit: *commit };
        if let Some((_, encoded)) = self.0.iter().find(|(known, _)| *known == key) {
            return encoded.clone();
        }
        let encoded = codec::encode(message);
        self.0.push((key, encoded.clone()));
        encoded
    }
}

impl CoreLoop {
    pub(crate) fn new(node: Arc<NodeShared>, member: Member, outlets: CoreOutlets) -> CoreLoop {
        CoreLoop {
            node,
            member,
            outlets,
            out: Vec::new(),
            turn: Turn::default(),
            relation: None,
            lost_ms: Some(0),
            told: false,
            next_waiting_log_ms: WAITING_LOG_MS,
            told_mark: None,
            stood: (0, Zxid::ZERO),
            next_mark_ms: 0,
            logged: String::new(),
            membership: None,
            diverged: false,
            looking_since_ms: None,
            events: Vec::new(),
            next_tick_ms: 0,
        }
    }

    /// What thread `core` does: takes turns until [`CoreEvent::Stop`], others between.
    pub(crate) fn run(mut self) {
        let node = self.node.clone();
        self.next_tick_ms = node.clock.now().mono_ms;
        self.lost_ms = Some(self.next_tick_ms);
        let mut next_tick_ms = self.next_tick_ms;
        *node.room.lock() = Some(Box::new(self));
        loop {
            let wait_ms = next_tick_ms.saturating_sub(node.clock.now().mono_ms);
            node.core.wait(Duration::from_millis(wait_ms));
            let mut room = node.room.lock();
            let Some(core) = &mut *room else { return };
            if !core.turn(true) {
                *room = None;
                return;
            }
            next_tick_ms = core.next_tick_ms;
        }
    }

    /// Deals with everything there is. Events are taken here and not before, so that they are dealt with in their order
    /// whoever does it. `clock`: what the clock says may be done; it may have to wait for a client's read, so whoever
    /// serves links or syncs the log leaves that to thread `core`. `false`: it was the last turn.
    pub(crate) fn turn(&mut self, clock: bool) -> bool {
        let mut events = std::mem::take(&mut self.events);
        self.node.core.take_now(&mut events);
        let now = self.node.clock.now();
        let mut stop = false;
        let mut writes: Vec<(Key, Bytes)> = Vec::new();
        let mut withdrawn = Vec::new();
        let mut read_points = Vec::new();
        // Touches first: what a pong of this turn claims to contain must be in it (P32).
        let touched = std::mem::take(&mut *self.node.touched.lock());
        if !touched.is_empty() {
            self.step(now, MemberInput::Touched(touched));
        }
        for event in events.drain(..) {
            match event {
                CoreEvent::Submit(mut more) if writes.is_empty() => writes.append(&mut more),
                CoreEvent::Submit(more) => writes.extend(more),
                CoreEvent::Withdraw(key) => withdrawn.push(key),
                CoreEvent::ReadIndex { tag } => read_points.push(tag),
                CoreEvent::Stop => stop = true,
                CoreEvent::SessionDeadlines(answer) => {
                    // Who asked may be gone.
                    let _ = answer.send(self.member.session_deadlines());
                }
                event => self.on_event(now, event),
            }
        }
        self.events = events;
        if !writes.is_empty() {
            self.step(now, MemberInput::Submit(writes));
        }
        // Behind the writes: what is withdrawn may have come in this turn.
        for key in withdrawn {
            self.step(now, MemberInput::Withdraw(key));
        }
        for tag in read_points {
            self.step(now, MemberInput::Zab(Input::ReadIndex { tag }));
        }
        let tick = clock && now.mono_ms >= self.next_tick_ms;
        if tick {
            self.next_tick_ms = now.mono_ms + TICK_MS;
            self.step(now, MemberInput::Zab(Input::Tick));
        }
        self.finish_turn(now);
        if tick {
            self.on_tick(now);
        }
        !stop && !self.turn.fatal
    }

    fn on_event(&mut self, now: Now, event: CoreEvent) {
        let input = match event {
            CoreEvent::Peer(event) => match event {
                PeerEvent::Up { peer, link, instance, start_count, whole_since, foreign } => {
                    if !foreign {
                        self.turn.log.push(LogCommand::PeerStarted { peer, instance, start_count, whole_since });
                    }
                    // It knows nothing of this server yet.
                    self.told_mark = None;
                    Input::PeerUp { peer, link, instance, start_count }
                }
                PeerEvent::Messages { peer, link, messages } => {
                    for message in messages {
                        self.step(now, MemberInput::Zab(Input::PeerMessage { peer, link, message }));
                    }
                    return;
                }
                PeerEvent::Marked { peer, instance, mark } => {
                    self.turn.log.push(LogCommand::PeerMarked { peer, instance, mark });
                    return;
                }
                PeerEvent::Down { peer, link } => {
                    self.turn.log.push(LogCommand::WriteMarks);
                    Input::PeerDown { peer, link }
                }
                PeerEvent::Stale { reason, seen_start } => {
                    // What is in the log was so once: it stays, and does not count until a leader completed it.
                    let reason = format!("this data folder is an old copy: {reason}");
                    self.fatal(reason, Condemned::Nothing, seen_start);
                    return;
                }
            },
            CoreEvent::LogDone { seq } => Input::LogDone { seq },
            CoreEvent::LogRead { request, entries } => Input::LogRead { request, entries },
            CoreEvent::LogTrimmed { base } => Input::LogTrimmed { base },
            CoreEvent::SnapshotReady { request, snapshot } => Input::SnapshotReady { request, snapshot },
            CoreEvent::SnapshotFetched { request, ok } => Input::SnapshotFetched { request, ok },
            CoreEvent::SnapshotOpened { position } => Input::SnapshotOpened { position },
            CoreEvent::Admin(admin) => Input::Admin(admin),
            CoreEvent::Applied(applied) => return self.step(now, MemberInput::Applied(applied)),
            CoreEvent::SessionTable { sessions, settings } => {
                return self.step(now, MemberInput::SessionTable { sessions, settings });
            }
            CoreEvent::Reapable(due) => return self.step(now, MemberInput::Reapable(due)),
            CoreEvent::Submit(_)
            | CoreEvent::Withdraw(_)
            | CoreEvent::ReadIndex { .. }
            | CoreEvent::SessionDeadlines(_)
            | CoreEvent::Stop => {
                unreachable!("collected by the caller")
            }
        };
        self.step(now, MemberInput::Zab(input));
    }

    fn step(&mut self, now: Now, input: MemberInput) {
        self.member.step(now, input, &mut self.out);
        let mut out = std::mem::take(&mut self.out);
        for output in out.drain(..) {
            self.on_output(now, output);
        }
        self.out = out;
        // A few levels at most: what a new relation asks for brings no relation of its own.
        for input in std::mem::take(&mut self.turn.again) {
            self.step(now, input);
        }
    }

    fn on_output(&mut self, now: Now, output: MemberOutput) {
        match output {
            MemberOutput::Relation(relation) => self.on_relation(now, relation),
            MemberOutput::LoadSessions => self.turn.apply.push(ApplyCommand::LoadSessions),
            MemberOutput::ScanReapable { wall_ms } => self.turn.apply.push(ApplyCommand::ScanReapable { wall_ms }),
            MemberOutput::Zab(output) => match output {
                Output::Log { seq, op } => {
                    // What is appended and executed without a relation is history, not traffic.
                    if let (LogOp::Append(entries), Some(_)) = (&op, self.relation) {
                        self.node.stats.appended(self.leads(), entries, now.wall_ms);
                    }
                    self.turn.log.push(LogCommand::Write { seq, op });
                }
                Output::Send { peer, link, message } => {
                    if let Message::SyncPlan { plan, .. } = &message {
                        let snapshot = matches!(plan, SyncPlan::Snap(_));
                        let kind = if snapshot { SyncKind::Snapshot } else { SyncKind::Diff };
                        self.node.stats.synchronizing(kind);
                    }
                    match self.turn.frames.iter_mut().find(|(to, _)| *to == (peer, link)) {
                        Some((_, messages)) => messages.push(message),
                        None => self.turn.frames.push(((peer, link), vec![message])),
                    }
                }
                Output::Apply(entries) => {
                    if self.relation.is_some() {
                        self.node.stats.committed(self.leads(), &entries, now.wall_ms);
                    }
                    self.turn.apply.push(ApplyCommand::Entries(entries));
                }
                Output::ReadLog { request, after, max_bytes } => {
                    self.outlets.log_read.push(ReadLog::Read { request, after, max_bytes });
                }
                Output::ReadPoint { tag, zxid } => self.node.answer_read_point(tag, zxid),
                Output::MakeSnapshot { request, at_least } => {
                    self.turn.apply.push(ApplyCommand::MakeSnapshot { request, at_least });
                }
                Output::DropSnapshot { id } => self.turn.apply.push(ApplyCommand::DropSnapshot { id }),
                Output::FetchSnapshot { request, leader, snapshot } => {
                    info!(%leader, zxid = %snapshot.position.zxid, bytes = snapshot.bytes, "fetching a snapshot");
                    self.turn.apply.push(ApplyCommand::ResetClients);
                    // Before anything that is handed in from here on: what was lost may not be followed by its successors.
                    let below = self.end_locals();
                    self.turn.again.push(MemberInput::LocalsEnd { below });
                    (self.outlets.fetch)(request, leader, snapshot);
                }
                Output::OpenSnapshot(snapshot) => self.turn.apply.push(ApplyCommand::OpenSnapshot(snapshot)),
                Output::TrimLog { upto } => self.turn.log.push(LogCommand::Trim { upto }),
                Output::Fatal(text) => self.fatal(text, Condemned::All, 0),
                Output::Note(text) => info!("{text}"),
                Output::Relation(_) | Output::Leading(_) | Output::Touches { .. } | Output::RoundConfirmed { .. } => {
                    unreachable!("dealt with by the member")
                }
            },
        }
    }

    fn on_relation(&mut self, now: Now, relation: Option<Relation>) {
        self.relation = relation;
        let leading = self.leads();
        if relation.is_some() {
            if let Some(lost_ms) = self.lost_ms.take() {
                self.node.stats.available(now.mono_ms.saturating_sub(lost_ms), leading);
            }
            if leading {
                self.node.stats.lead(now.mono_ms);
            }
            self.told = false;
            // Every session with a connection here is alive, whatever the former leader knew (P32).
            let mut sessions = self.node.shared.lanes.sessions();
            let mut local = self.node.shared.local.lock();
            local.touch_all(now.mono_ms);
            sessions.retain(|session| !local.contains(*session));
            drop(local);
            self.turn.again.push(MemberInput::Touched(sessions));
        } else {
            self.lost_ms.get_or_insert(now.mono_ms);
            self.next_waiting_log_ms = now.mono_ms + WAITING_LOG_MS;
        }
        self.node.set_related(relation.is_some());
        self.publish(now);
    }

    /// Whether what goes to the log now are this server's own proposals, as far as figures are concerned.
    fn leads(&self) -> bool {
        self.relation.is_some_and(|relation| relation.leader == self.node.options.server)
    }

    /// Marks the folder and ends the process. The log thread does both, after what it was given already. `seen_start`: see
    /// [`LogCommand::Condemn`].
    fn fatal(&mut self, text: String, files: Condemned, seen_start: u64) {
        if !self.turn.fatal {
            error!("stopping: {text}");
            self.turn.fatal = true;
            self.turn.log.push(LogCommand::Condemn { reason: text, files, seen_start });
        }
    }

    /// Hands on what the turn collected: the disk first, since it takes longest.
    fn finish_turn(&mut self, _now: Now) {
        let Turn { log, apply, frames, fatal, .. } = &mut self.turn;
        if !log.is_empty() {
            self.outlets.log.extend(log.drain(..));
        }
        if *fatal {
            // Nothing that this server believes may reach anybody any more.
            return;
        }
        if let Some(links) = &self.outlets.links {
            let mut shared = SharedEntries::default();
            for ((peer, link), messages) in frames.drain(..) {
                let mut frame = Vec::new();
                let mut bytes = 0;
                let send = |frame: &mut Vec<Encoded>| {
                    if !frame.is_empty() && !links.send(peer, link, codec::frame_of(frame)) {
                        debug!(%peer, link, "dropped messages to a stream that is gone");
                    }
                    frame.clear();
                };
                for message in messages.into_iter().flat_map(split) {
                    let encoded = shared.encode(&message);
                    if bytes + encoded.len() > FRAME_BYTES {
                        send(&mut frame);
                        bytes = 0;
                    }
                    bytes += encoded.len();
                    frame.push(encoded);
                }
                send(&mut frame);
            }
        }
        frames.clear();
        if !apply.is_empty() {
            self.outlets.apply.extend(apply.drain(..));
        }
        self.node.unresolved.store(self.member.unresolved(), Ordering::Relaxed);
    }

    fn on_tick(&mut self, now: Now) {
        self.publish(now);
        self.node.update_keyed();
        let Some(lost_ms) = self.lost_ms else {
            self.expire_local(now);
            return;
        };
        let sync_timeout_ms = self.node.options.sync_timeout_ms;
        if !self.told && now.mono_ms.saturating_sub(lost_ms) > sync_timeout_ms {
            // P33: reads went on from the published state for that long, and no longer.
            self.told = true;
            self.node.set_quorumless();
            let connections = self.node.shared.lanes.close_all(CloseReason::NoQuorum);
            // Nobody may say of a local session that it is over while its writes wait for another leader.
            let below = self.end_locals();
            self.step(now, MemberInput::LocalsEnd { below });
            if connections > 0 {
                warn!(connections, "no quorum for {sync_timeout_ms} ms: closed the connections");
            }
        }
        if now.mono_ms >= self.next_waiting_log_ms {
            self.next_waiting_log_ms = now.mono_ms + WAITING_LOG_MS;
            let status = self.node.status();
            if !status.waiting_for.is_empty() {
                warn!("no quorum: {}", status.waiting_for);
            }
        }
    }

    /// Ends all local sessions. Where the ids of later ones begin.
    fn end_locals(&self) -> SessionId {
        let mut local = self.node.shared.local.lock();
        local.clear();
        self.node.draw_session_id()
    }

    /// Ends local sessions whose clients were not heard. Nobody else has to be asked: nobody else knows them.
    fn expire_local(&self, now: Now) {
        let expired = self.node.shared.local.lock().expire(now.mono_ms);
        if expired.is_empty() {
            return;
        }
        self.node.stats.expired(expired.len());
        for lane in expired.into_iter().filter_map(|session| self.node.shared.lanes.of(session)) {
            lane.close(CloseReason::Expired);
        }
    }

    /// Makes the state of the machine visible to operators; writes changes of role to the log.
    fn publish(&mut self, now: Now) {
        let status = self.member.status();
        if status.role == Role::Looking {
            self.looking_since_ms.get_or_insert(now.mono_ms);
        } else if let Some(since_ms) = self.looking_since_ms.take() {
            self.node.stats.elected(now.mono_ms.saturating_sub(since_ms));
        }
        let membership = status.identity.membership;
        if self.membership != Some(membership) {
            say_membership(self.membership, membership);
            self.membership = Some(membership);
        }
        if self.diverged != status.divergence.is_some() {
            self.diverged = status.divergence.is_some();
            match status.divergence {
                Some(zxid) => error!(
                    %zxid,
                    "ALARM: the trees of the servers differ, and no majority agrees on one. Nobody stops, and no snapshot is \
                     given, until a majority of equal trees is known: look at every server with `corral check`"
                ),
                None => warn!("the alarm about trees that differ is over"),
            }
        }
        let line = format!("{:?}/{:?} epoch {} leader {:?}", status.role, status.phase, status.epoch, status.leader);
        if line != self.logged {
            match (status.role, status.leader) {
                (Role::Leading, _) => info!(epoch = status.epoch, phase = ?status.phase, "leading"),
                (Role::Following | Role::Observing, Some(leader)) => {
                    info!(%leader, epoch = status.epoch, phase = ?status.phase, "following");
                }
                (role, _) => info!(epoch = status.epoch, ?role, "no leader yet"),
            }
            self.logged = line;
        }
        self.stand(now, &status);
        self.node.set_status(status);
    }

    /// Says to peers what this server remembers, so that they recognise an old copy of its data folder (P9).
    fn stand(&mut self, now: Now, status: &Status) {
        let Some(links) = &self.outlets.links else { return };
        let memory = match status.identity.membership {
            Membership::Empty => Memory::Fresh,
            Membership::Member => Memory::Whole,
            Membership::Amnesiac => Memory::Lost,
        };
        let cluster = status.identity.cluster;
        let promise = status.promise.epoch;
        let before = if self.stood.0 == promise { self.stood.1 } else { Zxid::ZERO };
        self.stood = (promise, status.durable.max(before));
        links.set_standing(Standing { cluster, memory, promise, end: self.stood.1 });
        let mark = mark_of(status);
        if now.mono_ms >= self.next_mark_ms
            && let Some((promise, end)) = mark
            && self.told_mark != mark
        {
            self.next_mark_ms = now.mono_ms + MARK_INTERVAL_MS;
            self.told_mark = mark;
            links.tell(promise, end);
        }
    }
}

/// What this server can never know less of: its promise, and what it holds of the history of that epoch, once its log is a
/// prefix of the leader's. Until then a truncation may take entries back.
fn mark_of(status: &Status) -> Option<(u32, Zxid)> {
    if status.identity.membership != Membership::Member {
        return None;
    }
    let synchronized = status.phase == Phase::Broadcast && status.epoch == status.promise.epoch;
    Some((status.promise.epoch, if synchronized { status.durable } else { Zxid::ZERO }))
}

/// Says in plain words whether this server counts, when that changes and when it starts.
fn say_membership(before: Option<Membership>, now: Membership) {
    match (before, now) {
        (None, Membership::Member) => {}
        (_, Membership::Empty) => info!("this data folder is new: asking the others what they know of this server"),
        (None, Membership::Amnesiac) => {
            warn!("this server is still amnesiac: it does not vote until it has learned everything again from a leader")
        }
        (Some(_), Membership::Amnesiac) => warn!(
            "this data folder is new, and the ensemble is not: whatever a server of this number knew and promised is \
             lost. This server is amnesiac: it does not vote until it has learned everything again from a leader"
        ),
        (Some(Membership::Amnesiac), Membership::Member) => {
            info!("this server has learned everything again and was welcomed back: it votes");
        }
        (Some(_), Membership::Member) => info!("this server is a member of the ensemble"),
    }
}

/// Carries what comes over the links to the core, decoded and checked, until the links end. A frame that cannot be read
/// ends its stream: the peer broke a rule.
pub(crate) async fn receive_from_peers(node: Arc<NodeShared>, links: PeerLinks, mut events: mpsc::Receiver<LinkEvent>) {
    let mut taken = 0_usize;
    while let Some(event) = events.recv().await {
        taken += 1;
        if taken.is_multiple_of(EVENTS_AT_ONCE) {
            // Writers of the links have this thread, too.
            tokio::task::yield_now().await;
        }
        let event = match event {
            LinkEvent::Up { peer, link, instance, start_count, whole_since, foreign, .. } => {
                PeerEvent::Up { peer, link, instance, start_count, whole_since, foreign }
            }
            LinkEvent::Marked { peer, instance, mark: peer_link::Mark { start_count, promise, end } } => {
                PeerEvent::Marked { peer, instance, mark: Mark { start_count, promise, end } }
            }
            LinkEvent::Down { peer, link } => PeerEvent::Down { peer, link },
            LinkEvent::Frame { peer, link, bytes } => match decode_frame(&bytes) {
                Ok(mut messages) => {
                    for message in &mut messages {
                        check_forwarded(peer, message, node.options.txn_bytes_max);
                    }
                    PeerEvent::Messages { peer, link, messages }
                }
                Err(error) => {
                    warn!(%peer, link, %error, "a frame cannot be read; ending the stream");
                    links.close(peer, link);
                    continue;
                }
            },
            // Said by the links already.
            LinkEvent::Refused { stale: None, .. } => continue,
            LinkEvent::Refused { reason, stale: Some(seen_start), .. } => PeerEvent::Stale { reason, seen_start },
        };
        node.bring(CoreEvent::Peer(event));
    }
}

/// Whatever becomes an entry is executed by every server: what cannot be read never gets a zxid (P34).
fn check_forwarded(peer: ServerId, message: &mut Message, bytes_max: usize) {
    if let Message::Forward { payloads, .. } = message {
        payloads.retain(|payload| {
            let problem = if payload.len() > bytes_max {
                format!("{} bytes, at most {bytes_max} are allowed", payload.len())
            } else {
                match Txn::decode(payload) {
                    Ok(_) => return true,
                    Err(error) => error.to_string(),
                }
            };
            warn!(%peer, "dropped a forwarded transaction: {problem}");
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_transactions_are_split_and_stay_in_order() {
        let payloads: Vec<Bytes> =
            [10, FRAME_BYTES, 20, 30, 2 * FRAME_BYTES, 40].iter().map(|len| Bytes::from(vec![7; *len])).collect();
        let parts = split(Message::Forward { epoch: 3, payloads: payloads.clone() });
        let lens: Vec<Vec<usize>> = parts
            .iter()
            .map(|part| match part {
                Message::Forward { epoch: 3, payloads } => payloads.iter().map(Bytes::len).collect(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(lens, [vec![10], vec![FRAME_BYTES], vec![20, 30], vec![2 * FRAME_BYTES], vec![40]]);
        let ping = Message::Ping { epoch: 1, seq: 2, commit: Zxid::ZERO, doubt: Zxid::ZERO };
        assert_eq!(split(ping.clone()), [ping]);
    }

    #[test]
    fn what_cannot_be_read_or_is_too_large_is_never_handed_to_the_machine() {
        let txn = Txn {
            session: corral_proto::SessionId(1),
            attach: Zxid::new(1, 1),
            n: 1,
            answered_through: 0,
            ids: Vec::new(),
            command: corral_core::tree::entry::Command::CloseSession { expired: false },
        }
        .encode();
        let payloads = vec![Bytes::from_static(b"\xff\xff nothing"), txn.clone(), Bytes::from(vec![0; 5_000])];
        let mut message = Message::Forward { epoch: 1, payloads };
        check_forwarded(ServerId(2), &mut message, 1_000);
        assert_eq!(message, Message::Forward { epoch: 1, payloads: vec![txn] });
    }

    #[test]
    fn equal_entries_are_encoded_once_and_different_ones_never_mixed_up() {
        use corral_core::zab::io::{Entry, Position};
        let prev = Position { zxid: Zxid::new(1, 1), hash: 5 };
        let entry = Entry::after(5, Zxid::new(1, 2), 9, Bytes::from_static(b"x"));
        let entries = |commit| Message::Entries { epoch: 1, prev, entries: vec![entry.clone()], commit };
        let mut shared = SharedEntries::default();
        let frames: Vec<Bytes> = [Zxid::ZERO, Zxid::ZERO, Zxid::new(1, 1)]
            .map(|commit| codec::frame_of(&[shared.encode(&entries(commit))]))
            .to_vec();
        assert_eq!(shared.0.len(), 2);
        assert_eq!(frames[0], frames[1]);
        assert_eq!(decode_frame(&frames[2]).unwrap(), [entries(Zxid::new(1, 1))]);
    }
}
