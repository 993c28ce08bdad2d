//! The world: virtual time, what happens next, and the servers, clients, network and checks it happens to.
//!
//! A server's threads are actors here: the core takes what is in its inbox, the log writer what is queued for it, the
//! apply room what it was handed; each when its event comes, each with its own delays. So every interleaving of the
//! real threads can occur, and the same seed makes the same one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use corral_core::apply::Apply;
use corral_core::member::{Member, MemberInput, MemberOptions, MemberOutput, REAP_BATCH_MAX};
use corral_core::session::{ClientRequest, CloseReason};
use corral_core::storage::recover::mark_damaged;
use corral_core::tree::entry::{Command, Settings, Txn};
use corral_core::tree::feed::FeedBounds;
use corral_core::tree::read;
use corral_core::zab::codec;
use corral_core::zab::io::{
    Entry, Input, LogOp, Membership, Now, Output, Phase, Position, Promise, Role, SnapshotMeta, Status,
};
use corral_core::zab::message::{Message, SyncPlan};
use corral_proto::{ServerId, Zxid};

use crate::checks::{Check, Checks, Violation, election, no_ghost_message};
use crate::client::Client;
use crate::disk::{self, Disk, Plan, StartError};
use crate::faults::{Fault, FaultId};
use crate::frontend::{ToClient, ToServer};
use crate::guests::{self, Happened};
use crate::history::History;
use crate::network::{Due, End, Network, Side, StreamId};
use crate::options::SimOptions;
use crate::rng::Rng;
use crate::schedule::{MS, Micros, Schedule};
use crate::server::{ApplyWork, Clock, Connection, CrashAt, Process, Server, Step};
use crate::succession::Ambush;
use crate::trace::{Trace, Verbosity};

/// Between two ticks of a machine.
const TICK: Micros = 20 * MS;
/// Between two attempts to connect a pair of servers.
const REDIAL: Micros = 50 * MS;
/// After so much quiet the last frame of a log is sealed.
const SEAL_AFTER: Micros = 100 * MS;
/// Entries the apply room takes at once, at most.
const APPLY_BATCH_MAX: usize = 50;
/// A run that schedules more than this is stuck in a loop.
const EVENTS_MAX: u64 = 3_000_000;
/// The same for a long run, for each ms of it.
const EVENTS_A_MS: u64 = 20;

/// A process of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessRef {
    /// Which server.
    pub server: ServerId,
    /// Which of its processes.
    pub process: u64,
}

/// Something that happens.
pub(crate) enum Event {
    /// Time passes for a machine.
    Tick(ProcessRef),
    /// The core takes inputs.
    CoreTurn(ProcessRef),
    /// The log writer takes operations.
    LogTurn(ProcessRef),
    /// An input arrives at the core.
    Input(ProcessRef, Box<MemberInput>),
    /// Entries are read from the log.
    ReadLog(ProcessRef, u64, Zxid, usize),
    /// The log is trimmed.
    TrimLog(ProcessRef, Zxid),
    /// The apply room works.
    ApplyTurn(ProcessRef),
    /// The task of a client's connection works.
    TaskTurn(ProcessRef, u64),
    /// The store persists itself.
    Flush(ProcessRef),
    /// A snapshot was transferred, or not.
    Fetched(ProcessRef, u64, ServerId, SnapshotMeta),
    /// Two servers try to connect.
    Dial(ServerId, ServerId),
    /// A side learns that a stream is up.
    StreamUp(StreamId, Side),
    /// A side learns that a stream broke.
    StreamDown(StreamId, Side),
    /// A message arrives at a side.
    Deliver(StreamId, Side),
    /// A server starts.
    Start(ServerId),
    /// A fault strikes.
    Fault(FaultId),
    /// Directions are blocked for a while.
    Block(Vec<(ServerId, ServerId)>, Micros),
    /// Directions are open again.
    Heal(Vec<(ServerId, ServerId)>),
    /// The stream of two servers breaks, if there is one.
    Break(ServerId, ServerId),
    /// A server loses power.
    PowerOff(ServerId),
    /// A client hears of something by another way, and looks.
    ClientHears(usize),
    /// Somebody is struck in the middle of a succession.
    Spring(Box<Ambush>),
    /// A slow direction has its usual delays again.
    LinkNormal(ServerId, ServerId),
    /// An operator stops a server in good order.
    Stop(ServerId),
    /// The log's thread remembers the start of a peer.
    PeerStarted(ProcessRef, ServerId, u64, u64),
    /// A client does something.
    ClientActs(usize),
    /// A client's connection is cut.
    ClientCut(usize),
    /// A client falls silent.
    ClientSilence(usize),
    /// Something of a client reaches a server.
    ToServer {
        /// Which process.
        to: ProcessRef,
        /// Which connection.
        connection: u64,
        /// Which client.
        client: usize,
        /// What.
        message: ToServer,
    },
    /// Something of a server reaches a client.
    ToClient {
        /// Which client.
        client: usize,
        /// Which connection.
        connection: u64,
        /// What.
        message: ToClient,
    },
    /// A timer of a guest is due.
    GuestTimer(u64),
    /// Faults end.
    Calm,
    /// Is everything as it should be after the faults?
    Probe,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Faults happen.
    Safety,
    /// They are over: progress is required.
    Progress {
        /// What was committed when they ended.
        since: Zxid,
    },
    /// Clients ask for nothing new: everything must come to rest.
    Rest,
    /// Done.
    Over,
}

/// See the module.
pub struct World {
    pub(crate) options: SimOptions,
    pub(crate) schedule: Schedule<Event>,
    pub(crate) trace: Trace,
    /// Chance of threads and disks.
    pub(crate) rng: Rng,
    /// Chance of what clients suffer.
    pub(crate) fault_rng: Rng,
    /// Faults whose time came.
    pub(crate) struck: BTreeSet<FaultId>,
    /// The next snapshot install loses power after so many operations.
    pub(crate) install_crash: Option<u64>,
    /// The latest epoch in which a server's promise did not count.
    pub(crate) uncounted: BTreeMap<ServerId, u32>,
    /// Waits for the next succession.
    pub(crate) ambush: Option<Box<Ambush>>,
    pub(crate) network: Network,
    pub(crate) servers: BTreeMap<ServerId, Server>,
    pub(crate) clients: Vec<Client>,
    pub(crate) checks: Checks,
    pub(crate) history: History,
    pub(crate) stage: Stage,
    pub(crate) deadline: Micros,
    /// When the faults ended.
    pub(crate) calm_at: Micros,
    pub(crate) next_process: u64,
    pub(crate) next_connection: u64,
    pub(crate) next_session: u64,
    /// Connections of guests.
    pub(crate) guests: BTreeMap<u64, guests::Line>,
    /// What happened to a guest just now.
    pub(crate) told: Option<Happened>,
}

impl World {
    /// The world of a seed before anything happened.
    pub fn new(options: SimOptions, verbosity: Verbosity) -> World {
        let mut rng = Rng::stream(options.seed, "threads");
        let servers = (1..=options.servers())
            .map(ServerId)
            .map(|id| {
                let server = Server {
                    id,
                    disk: Disk::new(id, &options, rng.next()),
                    process: None,
                    paused_until: 0,
                    slow_disk_until: 0,
                    disk_full_until: 0,
                    store_stalled_until: 0,
                    starting: false,
                    retired: false,
                    back_soon: false,
                    spoiled: false,
                    backup: None,
                    clock: Clock::new(
                        rng.below(1_000_000),
                        rng.below(4_000) as i64 - 2_000,
                        rng.between(options.faults.clock_rate.0, options.faults.clock_rate.1),
                    ),
                    life: Rng::stream(options.seed, &format!("life of {id:?}")),
                };
                (id, server)
            })
            .collect();
        let (all, seed) = (options.load.clients, options.seed);
        let mut clients: Vec<Client> = (0..all).map(|i| Client::new(seed, i, &options.load)).collect();
        clients.extend((all..all + options.followers).map(|i| Client::follower(seed, i, &options.load)));
        let mut world = World {
            schedule: Schedule::default(),
            trace: Trace::new(verbosity),
            fault_rng: Rng::stream(options.seed, "clients' faults"),
            struck: BTreeSet::new(),
            install_crash: None,
            uncounted: BTreeMap::new(),
            ambush: None,
            network: Network::new(&options),
            servers,
            clients,
            checks: Checks::new(options.voters, options.observers),
            history: History::default(),
            stage: Stage::Safety,
            deadline: 0,
            calm_at: 0,
            next_process: 0,
            next_connection: 0,
            next_session: 0,
            guests: BTreeMap::new(),
            told: None,
            rng,
            options,
        };
        for id in world.server_ids() {
            let delay = world.rng.below(200 * MS);
            world.start_after(id, delay);
        }
        for index in 0..world.clients.len() {
            world.schedule.after(world.options.sync_timeout_ms * MS, Event::ClientActs(index));
            world.schedule_client_faults(index);
        }
        world.schedule_faults();
        world.schedule.after(world.options.safety_ms * MS, Event::Calm);
        world
    }

    /// Lets everything happen.
    ///
    /// # Errors
    /// The first property that does not hold.
    pub fn run(&mut self) -> Check {
        while self.stage != Stage::Over {
            let Some(event) = self.schedule.pop() else { break };
            self.handle(event)?;
            if self.trace.events() > EVENTS_MAX.max(EVENTS_A_MS * self.options.safety_ms) {
                return Err(Violation { invariant: "I28 liveness", text: "events without end".to_owned() });
            }
        }
        // All at rest: equal rows, to the last one.
        for server in self.servers.values_mut() {
            if let Some(process) = &mut server.process
                && !process.tree_is_changed()
            {
                let full = process.apply.store().digest();
                self.history.on_digest(process.apply.meta(), Some(full))?;
            }
        }
        let reached = self.history.judge(&self.checks.ghost)?;
        self.trace.reached(reached);
        self.lights_out()
    }

    /// In the end all lose power. What they find then is what they said was durable, to the last of it: what was never
    /// written in truth would show nowhere as long as its process lives.
    fn lights_out(&mut self) -> Check {
        for id in self.server_ids() {
            let server = self.server_mut(id);
            let Some(mut process) = server.process.take() else { continue };
            let store = process.apply.store().clone();
            drop(process);
            server.disk.process_died(store);
            let seed = server.life.next();
            server.disk.after_power_cut(seed);
            self.checks.on_crash(id);
            let server = self.server_mut(id);
            // Old copies and damaged folders have their own rules, and their own time.
            if server.spoiled {
                continue;
            }
            let started = server.disk.start(None).map_err(|error| Violation {
                invariant: "recovery is exact",
                text: match error {
                    StartError::Refused(text) => format!("{id:?} cannot start after the end: {text}"),
                    StartError::PowerCut | StartError::Failed(_) => format!("{id:?} cannot start after the end"),
                },
            })?;
            self.checks.on_recovered(id, &started.recovered, false)?;
            let mut apply = Apply::new(id, started.store, Vec::new());
            let full = apply.store().digest();
            if !disk::is_changed(&apply.store().snapshot()) {
                self.history.on_digest(apply.meta(), Some(full))?;
            }
        }
        Ok(())
    }

    /// What was recorded.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Virtual time, ms.
    pub fn now_ms(&self) -> u64 {
        self.schedule.now() / MS
    }

    /// Entries committed.
    pub fn committed(&self) -> usize {
        self.checks.ghost.committed.len()
    }

    /// Calls of clients that were answered.
    pub fn answered(&self) -> u64 {
        self.history.answered
    }

    /// Faults whose time came.
    pub fn struck(&self) -> &BTreeSet<FaultId> {
        &self.struck
    }

    pub(crate) fn server_mut(&mut self, id: ServerId) -> &mut Server {
        self.servers.get_mut(&id).expect("servers are fixed for a run")
    }

    /// The process of a server that runs.
    pub(crate) fn process(&mut self, id: ServerId) -> &mut Process {
        self.server_mut(id).process.as_mut().expect("it runs")
    }

    pub(crate) fn server_ids(&self) -> Vec<ServerId> {
        self.servers.keys().copied().collect()
    }

    pub(crate) fn process_mut(&mut self, at: ProcessRef) -> Option<&mut Process> {
        let server = self.servers.get_mut(&at.server)?;
        server.process.as_mut().filter(|p| p.number == at.process)
    }

    pub(crate) fn process_of(&self, server: ServerId) -> Option<ProcessRef> {
        self.servers[&server].process.as_ref().map(|p| ProcessRef { server, process: p.number })
    }

    /// Servers that run.
    pub(crate) fn running(&self) -> Vec<ServerId> {
        self.servers.values().filter(|s| s.process.is_some()).map(|s| s.id).collect()
    }

    /// Who leads, if anybody believes so; the highest epoch wins.
    pub(crate) fn leader(&self) -> Option<ServerId> {
        self.servers
            .values()
            .filter_map(|s| Some((s.id, &s.process.as_ref()?.status)))
            .filter(|(_, status)| status.role == Role::Leading)
            .max_by_key(|(_, status)| status.epoch)
            .map(|(id, _)| id)
    }

    pub(crate) fn say(&mut self, text: impl FnOnce() -> String) {
        self.trace.line(self.schedule.now(), text);
    }

    /// As `say`, for what belongs to the story: faults, starts, deaths, roles.
    pub(crate) fn tell(&mut self, text: impl FnOnce() -> String) {
        self.trace.headline(self.schedule.now(), text);
    }

    pub(crate) fn handle(&mut self, event: Event) -> Check {
        if let Some(at) = event.process() {
            let server = &self.servers[&at.server];
            if server.process.as_ref().is_none_or(|p| p.number != at.process) {
                return match event {
                    Event::ToServer { connection, client, .. } => {
                        let message = ToClient::Broken;
                        self.schedule.after(MS, Event::ToClient { client, connection, message });
                        Ok(())
                    }
                    _ => Ok(()),
                };
            }
            if server.paused_until > self.schedule.now() {
                self.schedule.at(server.paused_until, event);
                return Ok(());
            }
            if let Some(CrashAt { step, after, .. }) = self.crash_strikes(at, &event) {
                self.trace.reached(Fault::StepCrash.habit().struck);
                self.trace.reached(step.label());
                if after {
                    self.happen(event)?;
                }
                return match self.process_mut(at) {
                    Some(_) => self.crash(at.server, if after { "after a step" } else { "before a step" }),
                    None => Ok(()),
                };
            }
        }
        if event.client().is_some_and(|client| self.options.reduction.without_clients.contains(&(client as u64))) {
            return Ok(());
        }
        self.happen(event)
    }

    /// Whether a process is to die around this event.
    fn crash_strikes(&mut self, at: ProcessRef, event: &Event) -> Option<CrashAt> {
        let process = self.process_mut(at)?;
        let step = event.step()?;
        let crash_at = process.crash_at.as_mut().filter(|crash_at| crash_at.step == step)?;
        if crash_at.skip > 0 {
            crash_at.skip -= 1;
            return None;
        }
        process.crash_at.take()
    }

    fn happen(&mut self, event: Event) -> Check {
        self.trace.event(self.schedule.now(), &event.words());
        match event {
            Event::Tick(at) => {
                let tick = self.servers[&at.server].clock.measured(TICK);
                self.schedule.after(tick, Event::Tick(at));
                self.push_input(at, MemberInput::Zab(Input::Tick));
                self.seal_if_idle(at)
            }
            Event::CoreTurn(at) => self.core_turn(at),
            Event::LogTurn(at) => self.log_turn(at),
            Event::Input(at, input) => {
                self.push_input(at, *input);
                Ok(())
            }
            Event::ReadLog(at, request, after, max_bytes) => self.read_log(at, request, after, max_bytes),
            Event::TrimLog(at, upto) => self.trim_log(at, upto),
            Event::ApplyTurn(at) => self.apply_turn(at),
            Event::TaskTurn(at, connection) => {
                self.task_turns(at, connection);
                Ok(())
            }
            Event::Flush(at) => self.flush(at),
            Event::Fetched(at, request, leader, snapshot) => self.fetched(at, request, leader, snapshot),
            Event::Dial(a, b) => self.dial(a, b),
            Event::StreamUp(stream, side) => {
                self.stream_up(stream, side);
                Ok(())
            }
            Event::StreamDown(stream, side) => {
                self.stream_down(stream, side);
                Ok(())
            }
            Event::Deliver(stream, side) => self.deliver(stream, side),
            Event::Start(id) => self.start(id),
            Event::Fault(fault) => self.strike(fault),
            Event::Block(blocked, duration) => {
                self.block(blocked, duration);
                Ok(())
            }
            Event::Break(a, b) => {
                if let Some(stream) = self.network.stream(a, b).filter(|_| self.stage == Stage::Safety) {
                    self.break_stream(stream, None);
                }
                Ok(())
            }
            Event::PowerOff(id) => match self.process_of(id).filter(|_| self.stage == Stage::Safety) {
                Some(_) => self.end(id, "its power goes", true),
                None => Ok(()),
            },
            Event::Spring(ambush) => self.spring(*ambush),
            Event::LinkNormal(from, to) => {
                self.network.back_to_normal(from, to);
                Ok(())
            }
            Event::Stop(id) => self.stop(id),
            Event::PeerStarted(at, peer, instance, start_count) => self.peer_started(at, peer, instance, start_count),
            Event::Heal(blocked) => {
                // At the end of the faults everything was healed at once.
                if self.stage == Stage::Safety {
                    self.heal(blocked);
                }
                Ok(())
            }
            Event::ClientActs(index) => self.client_acts(index),
            Event::ClientHears(index) => {
                self.client_looks(index);
                Ok(())
            }
            Event::ClientCut(index) => {
                self.client_cut_strikes(index);
                Ok(())
            }
            Event::ClientSilence(index) => {
                self.client_silence_strikes(index);
                Ok(())
            }
            Event::ToServer { to, connection, client, message } => {
                if let ToServer::Request(_, ClientRequest::Read { .. }) = &message {
                    let seen = self.clients.get(client).map_or(Zxid::ZERO, |client| client.seen);
                    if self.process_mut(to).is_some_and(|p| p.apply.position().zxid < seen) {
                        self.trace.reached("read waited for its floor");
                    }
                }
                self.on_to_server(to, connection, client, message)
            }
            Event::ToClient { client, connection, message } => self.on_to_client(client, connection, message),
            Event::GuestTimer(timer) => {
                self.told = Some(Happened::Timer(timer));
                Ok(())
            }
            Event::Calm => self.calm(),
            Event::Probe => self.probe(),
        }
    }

    // ---- the core ----

    /// Puts an input into a core's inbox.
    pub(crate) fn push_input(&mut self, at: ProcessRef, input: MemberInput) {
        let delay = self.rng.below(self.options.thread_delay);
        let Some(process) = self.process_mut(at) else { return };
        process.inbox.push_back(input);
        if !process.turn {
            process.turn = true;
            self.schedule.after(delay, Event::CoreTurn(at));
        }
    }

    fn core_turn(&mut self, at: ProcessRef) -> Check {
        let now = self.servers[&at.server].clock.now(self.schedule.now());
        let some = self.rng.chance(300);
        let bound = self.rng.next();
        let process = self.process_mut(at).expect("checked by handle");
        process.turn = false;
        let waiting = process.inbox.len();
        let count = if some { 1 + (bound % waiting.max(1) as u64) as usize } else { waiting };
        for _ in 0..count {
            let Some(process) = self.process_mut(at) else { return Ok(()) };
            let Some(input) = process.inbox.pop_front() else { break };
            if process.is_late(&input) {
                // What is due by the clock is done first: what comes of the message itself is nothing.
                for _ in 0..2 {
                    self.core_step(at, now, MemberInput::Zab(Input::Tick), false)?;
                }
                self.core_step(at, now, input, true)?;
            } else {
                self.core_step(at, now, input, false)?;
            }
        }
        let delay = self.rng.below(self.options.thread_delay);
        if let Some(process) = self.process_mut(at)
            && !process.inbox.is_empty()
            && !process.turn
        {
            process.turn = true;
            self.schedule.after(delay, Event::CoreTurn(at));
        }
        Ok(())
    }

    /// One step of a core. `late`: the input is a message of a stream that the core knows to be gone.
    fn core_step(&mut self, at: ProcessRef, now: Now, input: MemberInput, late: bool) -> Check {
        if self.process_mut(at).is_none() {
            return Ok(());
        }
        self.note_touches(at, &input);
        self.note_digests(at, &input);
        let process = self.process_mut(at).expect("looked at above");
        process.note_streams(&input);
        let before = process.status.clone();
        let mut out = Vec::new();
        let what = if late { format!("{input:?}") } else { String::new() };
        let by_clock = matches!(input, MemberInput::Zab(Input::Tick));
        process.member.step(now, input, &mut out);
        let status = process.member.brief_status();
        if late {
            no_ghost_message::on_late(at.server, &what, &before, &status, out.len())?;
        }
        process.status = status.clone();
        self.trace.mix(status.last.hash ^ status.committed.0 ^ u64::from(status.epoch) ^ out.len() as u64);
        for output in &out {
            if let MemberOutput::Zab(Output::Send { message, .. }) = output
                && by_clock
            {
                let links = &self.servers[&at.server].process.as_ref().expect("it made the step").known_links;
                election::on_send_by_clock(at.server, message, links)?;
            }
            if let MemberOutput::Zab(Output::Log { seq, op }) = output {
                if let LogOp::Truncate { to } = op
                    && to.zxid.epoch() < before.last.zxid.epoch()
                {
                    self.trace.reached("truncation across epochs");
                }
                // With something outstanding, the proposal may have waited for the window since it was decided.
                if before.last.zxid == before.committed {
                    self.note_expiries(at, op)?;
                }
                self.checks.on_submit(at.server, at.process, *seq, op, &status)?;
            }
        }
        self.checks.on_status(at.server, &before, &status)?;
        let leader = before.leader.and_then(|leader| self.process_of(leader)).map(|leader| leader.process);
        let mono = self.servers[&at.server].clock.mono(self.schedule.now());
        if self.checks.on_doubt(at.process, leader, mono, &before, &status) {
            self.trace.reached("trees differ: known without a majority");
            self.tell(|| format!("{:?} knows that trees differ at {:?}", at.server, status.doubt));
        }
        self.note_role(at.server, &before, &status);
        self.note_commit(at.server, &before, &status);
        for output in out {
            if self.process_mut(at).is_none() {
                return Ok(());
            }
            if self.output_crash_strikes(at) {
                return self.crash(at.server, "between two outputs");
            }
            self.perform(at, output, &before, &status)?;
        }
        Ok(())
    }

    fn note_role(&mut self, server: ServerId, before: &Status, status: &Status) {
        if (before.role, before.phase, before.epoch, before.leader)
            != (status.role, status.phase, status.epoch, status.leader)
        {
            if before.role == Role::Leading && status.role != Role::Leading {
                self.trace.reached("leader stepped down");
            }
            if before.role == Role::Leading && before.last.zxid.counter() + 1 >= self.options.counter_limit {
                self.trace.reached("counters rolled over into a new epoch");
            }
            if status.role == Role::Leading && status.phase == Phase::Broadcast {
                self.trace.reached("leader established");
                let also = |s: &Server| {
                    s.id != server
                        && s.process
                            .as_ref()
                            .is_some_and(|p| p.status.role == Role::Leading && p.status.phase == Phase::Broadcast)
                };
                if self.servers.values().any(also) {
                    self.trace.reached("two servers believe to lead");
                }
            }
            self.note_succession(server, status);
            self.tell(|| {
                format!(
                    "{server:?} is {:?}/{:?} of epoch {}, leader {:?}, log {:?}, durable {:?}, committed {:?}",
                    status.role,
                    status.phase,
                    status.epoch,
                    status.leader,
                    status.last.zxid,
                    status.durable,
                    status.committed
                )
            });
        }
        if before.identity.membership == Membership::Amnesiac && status.identity.membership == Membership::Member {
            self.trace.reached("amnesiac became a member again");
        }
    }

    /// For I19 and I24: what a leader has heard of sessions, and what it was asked.
    fn note_touches(&mut self, at: ProcessRef, input: &MemberInput) {
        // By its own clock: how fast it goes is not what is judged.
        let now = self.servers[&at.server].clock.mono(self.schedule.now());
        match input {
            MemberInput::Touched(sessions) => {
                for session in sessions {
                    self.history.on_touch(at.process, *session, now);
                }
            }
            MemberInput::SessionTable { .. } => {
                let epoch = self.process_mut(at).expect("the caller found it").status.epoch;
                self.checks.on_sessions(at.process, epoch, now);
            }
            MemberInput::Zab(Input::ReadIndex { tag }) => self.checks.on_question(at.process, None, *tag, now),
            MemberInput::Zab(Input::PeerMessage { peer, message: Message::ReadIndex { tag, .. }, .. }) => {
                self.checks.on_question(at.process, Some(*peer), *tag, now);
            }
            MemberInput::Zab(Input::PeerMessage { peer, link, message: Message::Pong { epoch, seq, touched, .. } }) => {
                let process = self.process_mut(at).expect("the caller found it");
                // As the core knows: it may not have heard yet that the stream is gone.
                let current = process.known_links.get(peer) == Some(link);
                let leads = process.status.role == Role::Leading && process.status.epoch == *epoch;
                // A learner that was given up for its silence is not heard any more until it asks anew.
                let learner = |process: &Process| process.member.status().learners.iter().any(|(id, ..)| id == peer);
                let heard = current && leads && !touched.is_empty() && learner(process);
                if current && leads {
                    self.checks.on_pong(at.process, *epoch, *peer, *seq);
                }
                if heard {
                    for session in touched.clone() {
                        self.history.on_touch(at.process, session, now);
                    }
                }
            }
            _ => {}
        }
    }

    /// For P35: what processes know of each other's trees.
    fn note_digests(&mut self, at: ProcessRef, input: &MemberInput) {
        let process = self.process_mut(at).expect("the caller found it");
        let leads = (process.status.role == Role::Leading).then_some(process.status.epoch);
        match input {
            MemberInput::Applied(applied) => {
                let newest = applied.digest.map(|digest| (applied.zxid, digest));
                for digest in applied.digests.iter().copied().chain(newest) {
                    self.checks.on_own_digest(at.server, at.process, leads, digest);
                }
            }
            MemberInput::Zab(Input::SnapshotOpened { .. }) => self.checks.on_tree_replaced(at.process),
            MemberInput::Zab(Input::PeerMessage { peer, link, message }) => {
                // As the core knows: it may not have heard yet that the stream is gone.
                let current = process.known_links.get(peer) == Some(link);
                let epoch = match message {
                    Message::Pong { epoch, .. } | Message::AckEpoch { epoch, .. } => *epoch,
                    _ => return,
                };
                let learner = process.member.status().learners.iter().any(|(id, ..)| id == peer);
                if !current || leads != Some(epoch) || !learner {
                    return;
                }
                match message {
                    Message::Pong { digest, .. } => {
                        self.checks.on_told_digest(at.server, (at.process, epoch), *peer, *digest);
                    }
                    Message::AckEpoch { doubt, .. } => self.checks.on_doubt_told((at.process, epoch), *doubt),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn note_expiries(&mut self, at: ProcessRef, op: &LogOp) -> Check {
        let now = self.servers[&at.server].clock.mono(self.schedule.now());
        let process = self.servers[&at.server].process.as_ref().expect("the caller found it");
        let (status, view) = (&process.status, process.apply.shared().published());
        let LogOp::Append(entries) = op else { return Ok(()) };
        if status.role != Role::Leading {
            return Ok(());
        }
        for entry in entries {
            if self.checks.ghost.is_proposal(status, entry)
                && !entry.payload.is_empty()
                && let Ok(Txn { session, attach, command: Command::CloseSession { expired: true }, .. }) =
                    Txn::decode(&entry.payload)
            {
                self.trace.reached("expiry proposed");
                self.history.on_expiry(at.process, session, now)?;
                // What is executed here may be ahead of what the tracker knew.
                let holder =
                    read::session(&view.view, session).filter(|row| row.attach == attach).map(|row| row.server);
                let heard = self.history.touched(at.process, session);
                let timeout = self.options.load.session_timeout_ms * MS;
                let status = process.member.status();
                self.checks.on_expiry(at.process, &status, session, holder, heard, timeout)?;
            }
        }
        Ok(())
    }

    fn perform(&mut self, at: ProcessRef, output: MemberOutput, before: &Status, status: &Status) -> Check {
        match output {
            MemberOutput::Zab(output) => self.perform_zab(at, output, before, status),
            MemberOutput::Relation(relation) => {
                let now = self.schedule.now();
                self.say(|| format!("{:?} has relation {relation:?}", at.server));
                let process = self.process_mut(at).expect("the caller found it");
                if relation.is_none() && process.relation.is_some() {
                    process.alone_since = now;
                }
                process.relation = relation;
                // A new leader hears of every session that has a connection here (P32).
                if relation.is_some() {
                    let sessions = process.apply.shared().lanes.sessions();
                    if !sessions.is_empty() {
                        self.push_input(at, MemberInput::Touched(sessions));
                    }
                }
                Ok(())
            }
            MemberOutput::LoadSessions => self.give_apply(at, ApplyWork::LoadSessions),
            MemberOutput::ScanReapable { wall_ms } => self.give_apply(at, ApplyWork::ScanReapable(wall_ms)),
        }
    }

    fn perform_zab(&mut self, at: ProcessRef, output: Output, before: &Status, status: &Status) -> Check {
        // A leader may make way, or begin its next epoch, in the step in which it answers for the last time.
        let leads = if before.role == Role::Leading { before } else { status };
        match output {
            Output::Log { seq, op } => {
                self.say(|| format!("{:?} log {seq}: {}", at.server, brief_op(&op)));
                let delay = self.write_delay(at.server);
                let process = self.process_mut(at).expect("the caller found it");
                process.log_queue.push_back((seq, op));
                if !process.log_busy {
                    process.log_busy = true;
                    self.schedule.after(delay, Event::LogTurn(at));
                }
                Ok(())
            }
            Output::Send { peer, link, message } => {
                self.say(|| format!("{:?} -> {peer:?} [{link}] {}", at.server, brief(&message)));
                self.checks.on_send(at.server, peer, &message, before, status)?;
                if let Message::ReadPoint { epoch, tag, zxid } = message {
                    self.checks.on_read_point((at.process, epoch), Some(peer), tag, zxid)?;
                }
                if let Message::SyncPlan { epoch, plan: SyncPlan::Snap(meta), .. } = &message {
                    let mono = self.servers[&at.server].clock.mono(self.schedule.now());
                    let patience = self.options.sync_timeout_ms * MS;
                    self.checks.on_tree_offered((at.process, *epoch), mono, patience)?;
                    // Who has gone elsewhere meanwhile does not take it.
                    let status = self.servers[&peer].process.as_ref().map(|p| &p.status);
                    if status.is_some_and(|s| s.leader == Some(at.server) && s.epoch == *epoch) {
                        self.checks.on_snapshot_offered(at.server, peer, meta)?;
                    }
                }
                self.checks.on_ping(at.process, &message, self.servers[&at.server].clock.mono(self.schedule.now()));
                self.note_message(&message, status);
                self.send(at, peer, link, message)
            }
            Output::Apply(entries) => {
                self.checks.on_apply(at.server, &entries, status)?;
                self.give_apply(at, ApplyWork::Entries(entries))
            }
            Output::ReadLog { request, after, max_bytes } => {
                self.trace.reached("log read for a learner");
                if status.phase == Phase::Broadcast && status.last.zxid > status.committed {
                    self.trace.reached("learner caught up from the log behind a full window");
                }
                let delay = self.rng.below(self.options.write_time);
                self.schedule.after(delay, Event::ReadLog(at, request, after, max_bytes));
                Ok(())
            }
            Output::ReadPoint { tag, zxid } => {
                if leads.role == Role::Leading {
                    self.checks.on_read_point((at.process, leads.epoch), None, tag, zxid)?;
                }
                self.on_read_point(at, tag, zxid);
                Ok(())
            }
            Output::MakeSnapshot { request, at_least } => {
                self.give_apply(at, ApplyWork::MakeSnapshot(request, at_least))
            }
            Output::DropSnapshot { id } => {
                self.process_mut(at).expect("the caller found it").snapshots.remove(&id);
                Ok(())
            }
            Output::FetchSnapshot { request, leader, snapshot } => {
                self.say(|| format!("{:?} fetches {snapshot:?} from {leader:?}", at.server));
                let process = self.process_mut(at).expect("the caller found it");
                process.apply.reset_clients(CloseReason::ShuttingDown);
                self.serve_woken(at);
                let delay = 2 * self.network.delay() + self.rng.below(self.options.transfer_time);
                self.schedule.after(delay, Event::Fetched(at, request, leader, snapshot));
                Ok(())
            }
            Output::OpenSnapshot(snapshot) => self.give_apply(at, ApplyWork::Open(snapshot)),
            Output::TrimLog { upto } => {
                let delay = self.rng.below(self.options.write_time);
                self.schedule.after(delay, Event::TrimLog(at, upto));
                Ok(())
            }
            Output::Fatal(text) if self.is_changed(at.server) => self.tree_condemned(at, &text),
            Output::Fatal(text) => Err(Violation {
                invariant: "no server gives up",
                text: format!("{:?} stops itself: {text}", at.server),
            }),
            Output::Note(text) => {
                self.say(|| format!("{:?} says: {text}", at.server));
                Ok(())
            }
            Output::Relation(_) | Output::Leading(_) | Output::Touches { .. } | Output::RoundConfirmed { .. } => {
                Err(Violation {
                    invariant: "contract",
                    text: format!("{:?}: the member handed out what it should deal with itself", at.server),
                })
            }
        }
    }

    /// A server knows that its tree is wrong: it ends, and its next start sets log and store aside (P35).
    fn tree_condemned(&mut self, at: ProcessRef, text: &str) -> Check {
        self.tell(|| format!("{:?} stops itself: {text}", at.server));
        self.trace.reached("trees differ: the wrong server stopped");
        let server = self.server_mut(at.server);
        server.disk.withdraw();
        if let Err(error) = mark_damaged(server.disk.device()) {
            let text = format!("{:?}: {error}", at.server);
            return Err(Violation { invariant: "the log does not fail by itself", text });
        }
        server.spoiled = true;
        self.crash(at.server, "its tree differs")
    }

    fn note_message(&mut self, message: &Message, status: &Status) {
        if matches!(message, Message::SyncPlan { .. })
            && status.phase == Phase::Broadcast
            && status.last.zxid > status.committed
        {
            self.trace.reached("late joiner under load");
        }
        match message {
            Message::SyncPlan { plan: SyncPlan::Diff, .. } => self.trace.reached("sync plan: diff"),
            Message::SyncPlan { plan: SyncPlan::Trunc, .. } => self.trace.reached("sync plan: truncate"),
            Message::SyncPlan { plan: SyncPlan::Snap(_), .. } => self.trace.reached("sync plan: snapshot"),
            Message::Reject { .. } => self.trace.reached("promise rejected"),
            Message::AckEpoch { counts: false, epoch, .. } => {
                self.uncounted.insert(status.identity.server, *epoch);
                self.trace.reached("promise that does not count");
            }
            Message::Handover { .. } => self.trace.reached("leadership handed over"),
            _ => {}
        }
    }

    // ---- the log ----

    fn write_delay(&mut self, server: ServerId) -> Micros {
        let slow = self.servers[&server].slow_disk_until > self.schedule.now();
        let usual = 20 + self.rng.below(self.options.write_time);
        if slow { usual + self.rng.below(self.options.faults.slow_disk) } else { usual }
    }

    /// How long a thread of the apply room waits for its turn.
    fn apply_delay(&mut self, server: ServerId) -> Micros {
        let stalled = self.servers[&server].store_stalled_until.saturating_sub(self.schedule.now());
        self.rng.below(self.options.store_time) + if stalled > 0 { self.rng.below(stalled) } else { 0 }
    }

    fn log_turn(&mut self, at: ProcessRef) -> Check {
        let some = self.rng.chance(300);
        let bound = self.rng.next();
        let process = self.process_mut(at).expect("checked by handle");
        let waiting = process.log_queue.len();
        let count = if some { 1 + (bound % waiting.max(1) as u64) as usize } else { waiting };
        let ops: Vec<(u64, LogOp)> = process.log_queue.drain(..count.min(waiting)).collect();
        let Some((last, _)) = ops.last() else {
            process.log_busy = false;
            return Ok(());
        };
        let last = *last;
        let installs = ops.iter().any(|(_, op)| matches!(op, LogOp::InstallSnapshot(_)));
        let cut = if installs { self.install_crash.take() } else { None };
        if let Some(skip) = cut {
            self.server_mut(at.server).disk.plan(skip, Plan::PowerCut);
        }
        let was_struck = self.servers[&at.server].disk.struck();
        let process = self.process_mut(at).expect("checked by handle");
        let written = process.log.write(&ops);
        let struck = self.servers[&at.server].disk.struck().filter(|_| was_struck.is_none());
        if let (Ok(_), Some(plan @ (Plan::Failure | Plan::NoSpace))) = (&written, struck) {
            return Err(Violation {
                invariant: "an error of the disk ends the process",
                text: format!("{:?} goes on and takes {last} for durable after {plan:?} of its log's disk", at.server),
            });
        }
        if cut.is_some() && written.is_err() {
            self.trace.reached(Fault::InstallCrash.habit().struck);
        }
        match written {
            Ok(seq) if seq == last => {}
            Ok(seq) => {
                return Err(Violation {
                    invariant: "contract",
                    text: format!("{:?}: the log wrote up to {seq} of {last}", at.server),
                });
            }
            Err(error) => return self.disk_failed(at, &error.to_string()),
        }
        self.checks.on_durable(at.server, last)?;
        for (_, op) in &ops {
            match op {
                LogOp::Truncate { to } => {
                    self.trace.reached("log truncated");
                    self.say(|| format!("{:?} truncated its log to {to:?}", at.server));
                }
                LogOp::InstallSnapshot(_) => self.trace.reached("snapshot installed"),
                LogOp::SetIdentity(identity) if identity.membership == Membership::Member => {
                    let leading: Vec<Promise> = self.servers.values().filter_map(Server::own_promise).collect();
                    self.checks.on_member_again(at.server, &leading)?;
                }
                _ => {}
            }
        }
        let delay = self.rng.below(self.options.thread_delay);
        let next = self.write_delay(at.server);
        let now = self.schedule.now();
        let prepares = self.rng.chance(50);
        let process = self.process_mut(at).expect("checked by handle");
        process.log_written = now;
        process.log_answer = process.log_answer.max(now + delay);
        let answer = process.log_answer;
        process.log_busy = !process.log_queue.is_empty();
        if process.log_busy {
            self.schedule.after(next, Event::LogTurn(at));
        }
        let input = MemberInput::Zab(Input::LogDone { seq: last });
        self.schedule.at(answer, Event::Input(at, Box::new(input)));
        if prepares {
            let process = self.process_mut(at).expect("checked by handle");
            if let Err(error) = process.log.prepare_next() {
                return self.disk_failed(at, &error.to_string());
            }
            self.trace.reached("segment prepared ahead");
        }
        Ok(())
    }

    /// A log that was quiet for a while gets a seal.
    fn seal_if_idle(&mut self, at: ProcessRef) -> Check {
        let now = self.schedule.now();
        let process = self.process_mut(at).expect("checked by handle");
        if process.log_busy || now < process.log_written + SEAL_AFTER {
            return Ok(());
        }
        process.log_written = now;
        match process.log.seal_if_idle() {
            Ok(sealed) => {
                if sealed {
                    self.trace.reached("log sealed");
                }
                Ok(())
            }
            Err(error) => self.disk_failed(at, &error.to_string()),
        }
    }

    /// The log's thread met an error: expected if a fault was planned, and then the end of the process (P28).
    fn disk_failed(&mut self, at: ProcessRef, error: &str) -> Check {
        let disk = &self.servers[&at.server].disk;
        let kind = match disk.struck() {
            _ if disk.is_off() => Fault::DiskCrash,
            Some(Plan::Failure) => Fault::DiskError,
            Some(Plan::NoSpace) => Fault::DiskFull,
            Some(Plan::ReadFailure) => Fault::ReadError,
            Some(Plan::PowerCut) | None => {
                return Err(Violation {
                    invariant: "the log does not fail by itself",
                    text: format!("{:?}: {error}", at.server),
                });
            }
        };
        self.trace.reached(kind.habit().struck);
        self.crash(at.server, error)
    }

    /// The log's thread notes durably which start of a peer it has seen (P9).
    fn peer_started(&mut self, at: ProcessRef, peer: ServerId, instance: u64, start_count: u64) -> Check {
        let server = self.servers.get_mut(&at.server).expect("servers are fixed");
        let process = server.process.as_mut().expect("checked by handle");
        match server.disk.observe(&mut process.peers, peer, instance, start_count) {
            Ok(()) => Ok(()),
            Err(error) => self.disk_failed(at, &error.to_string()),
        }
    }

    fn read_log(&mut self, at: ProcessRef, request: u64, after: Zxid, max_bytes: usize) -> Check {
        let delay = self.rng.below(self.options.thread_delay);
        let process = self.process_mut(at).expect("checked by handle");
        match process.log.reader().read(after, max_bytes) {
            Ok(entries) => {
                let input = MemberInput::Zab(Input::LogRead { request, entries });
                self.schedule.after(delay, Event::Input(at, Box::new(input)));
                Ok(())
            }
            Err(error) => self.disk_failed(at, &error.to_string()),
        }
    }

    fn trim_log(&mut self, at: ProcessRef, upto: Zxid) -> Check {
        self.checks.on_trim_begins(at.server, upto);
        let process = self.process_mut(at).expect("checked by handle");
        match process.log.trim(upto) {
            Ok(None) => {}
            Ok(Some(base)) => {
                self.trace.reached("log trimmed");
                self.say(|| format!("{:?} trimmed its log to {base:?}", at.server));
                self.checks.on_trimmed(at.server, base)?;
                self.push_input(at, MemberInput::Zab(Input::LogTrimmed { base }));
            }
            Err(error) => return self.disk_failed(at, &error.to_string()),
        }
        Ok(())
    }

    // ---- the apply room ----

    pub(crate) fn give_apply(&mut self, at: ProcessRef, work: ApplyWork) -> Check {
        let delay = self.apply_delay(at.server);
        let process = self.process_mut(at).expect("the caller found it");
        process.apply_queue.push_back(work);
        if !process.apply_busy {
            process.apply_busy = true;
            self.schedule.after(delay, Event::ApplyTurn(at));
        }
        Ok(())
    }

    /// Sends an answer of the apply room to the core, after all former ones.
    fn apply_answers(&mut self, at: ProcessRef, input: MemberInput) {
        let delay = self.rng.below(self.options.thread_delay);
        let now = self.schedule.now();
        let process = self.process_mut(at).expect("the caller found it");
        process.apply_answer = process.apply_answer.max(now + delay);
        let answer = process.apply_answer;
        self.schedule.at(answer, Event::Input(at, Box::new(input)));
    }

    fn apply_turn(&mut self, at: ProcessRef) -> Check {
        let batch = 1 + self.rng.below(APPLY_BATCH_MAX as u64) as usize;
        let process = self.process_mut(at).expect("checked by handle");
        match process.apply_queue.pop_front() {
            None => {}
            Some(ApplyWork::Entries(mut entries)) => {
                while entries.len() < batch
                    && let Some(ApplyWork::Entries(more)) = process.apply_queue.front_mut()
                {
                    entries.append(more);
                    process.apply_queue.pop_front();
                }
                if entries.len() > batch {
                    process.apply_queue.push_front(ApplyWork::Entries(entries.split_off(batch)));
                }
                self.execute(at, &entries)?;
            }
            Some(ApplyWork::LoadSessions) => {
                let published = process.apply.shared().published();
                let sessions = read::sessions(&published.view)
                    .into_iter()
                    .map(|(id, row)| (id, row.timeout_ms, row.attach, row.server))
                    .collect();
                let settings = read::settings(&published.view);
                self.trace.reached("session table loaded");
                self.apply_answers(at, MemberInput::SessionTable { sessions, settings });
            }
            Some(ApplyWork::ScanReapable(wall_ms)) => {
                let published = process.apply.shared().published();
                let never_used_ms = read::settings(&published.view).container_never_used_ms;
                let due: Vec<(String, Zxid)> = read::reapables(&published.view)
                    .into_iter()
                    .filter(|r| r.is_due(wall_ms, never_used_ms))
                    .map(|r| (r.path, r.czxid))
                    .take(REAP_BATCH_MAX)
                    .collect();
                if !due.is_empty() {
                    self.trace.reached("reapable znodes found");
                    self.apply_answers(at, MemberInput::Reapable(due));
                }
            }
            Some(ApplyWork::MakeSnapshot(request, at_least)) => {
                process.snapshots_wanted.push((request, at_least));
                self.make_snapshots(at)?;
            }
            Some(ApplyWork::Open(snapshot)) => self.open_snapshot(at, snapshot)?,
        }
        let delay = self.apply_delay(at.server);
        if let Some(process) = self.process_mut(at) {
            process.apply_busy = !process.apply_queue.is_empty();
            if process.apply_busy {
                self.schedule.after(delay, Event::ApplyTurn(at));
            }
        }
        self.serve_woken(at);
        Ok(())
    }

    fn execute(&mut self, at: ProcessRef, entries: &[Entry]) -> Check {
        let flush_entries = self.options.flush_entries;
        let sample = self.rng.chance(20);
        let chance = self.rng.below(flush_entries.max(1)) == 0;
        let process = self.process_mut(at).expect("the caller found it");
        process.unflushed += entries.len() as u64;
        let flush = chance || process.unflushed > 2 * flush_entries;
        let mut applied = process.apply.apply(entries);
        if flush {
            process.unflushed = 0;
            process.apply.store().flush();
            applied.persisted = applied.zxid;
        }
        let position = process.apply.position();
        let meta = process.apply.meta().clone();
        let full = sample.then(|| process.apply.store().digest());
        // What the core is told may be older than the truth, never newer.
        let persisted = process.apply.persisted();
        crate::checks::ensure!(
            applied.persisted <= persisted,
            "I13 apply discipline",
            "{:?} is said to be durable, {persisted:?} is",
            applied.persisted
        );
        if !self.is_changed(at.server) {
            self.history.on_digest(&meta, full)?;
        }
        self.trace.mix(meta.digest);
        self.checks.on_executed(at.server, position, persisted)?;
        self.say(|| format!("{:?} executed up to {:?}, persisted {persisted:?}", at.server, position.zxid));
        self.apply_answers(at, MemberInput::Applied(applied));
        self.make_snapshots(at)
    }

    fn flush(&mut self, at: ProcessRef) -> Check {
        let next = self.rng.between(1, 2 * self.options.sync_timeout_ms) * MS;
        self.schedule.after(next, Event::Flush(at));
        let process = self.process_mut(at).expect("checked by handle");
        process.apply.store().flush();
        process.unflushed = 0;
        let position = process.apply.position();
        self.checks.on_executed(at.server, position, position.zxid)?;
        let applied =
            corral_core::apply::Applied { zxid: position.zxid, persisted: position.zxid, ..Default::default() };
        self.apply_answers(at, MemberInput::Applied(applied));
        Ok(())
    }

    fn make_snapshots(&mut self, at: ProcessRef) -> Check {
        let process = self.process_mut(at).expect("the caller found it");
        let position = process.apply.position();
        let mut ready = Vec::new();
        process.snapshots_wanted.retain(|(request, at_least)| {
            if *at_least <= position.zxid {
                ready.push(*request);
            }
            *at_least > position.zxid
        });
        for request in ready {
            let process = self.process_mut(at).expect("found above");
            process.last_snapshot += 1;
            let view = process.apply.store().snapshot();
            let meta = SnapshotMeta {
                id: process.last_snapshot,
                position,
                stamp_ms: process.apply.meta().stamp_ms,
                bytes: 100 * view.rows() as u64,
            };
            process.snapshots.insert(meta.id, (meta, view));
            self.trace.reached("snapshot made");
            self.checks.on_snapshot(at.server, position)?;
            self.apply_answers(at, MemberInput::Zab(Input::SnapshotReady { request, snapshot: Some(meta) }));
        }
        Ok(())
    }

    fn fetched(&mut self, at: ProcessRef, request: u64, leader: ServerId, snapshot: SnapshotMeta) -> Check {
        let reachable = !self.network.is_blocked(leader, at.server) && !self.network.is_blocked(at.server, leader);
        let lucky = !self.rng.chance(50);
        let mut view = self.servers[&leader]
            .process
            .as_ref()
            .and_then(|p| p.snapshots.get(&snapshot.id))
            .filter(|(meta, _)| *meta == snapshot && reachable && lucky)
            .map(|(_, view)| view.clone());
        if view.take_if(|view| disk::is_changed(view)).is_some() {
            // What nobody has seen nobody can hold back (ADR 12). It would be the end of a majority of right trees.
            self.trace.reached("trees differ: the wrong one was offered, by who could not know");
        }
        let server = self.servers.get_mut(&at.server).expect("servers are fixed");
        let ok = view.is_some_and(|view| server.disk.receive(view));
        if !ok && (server.disk.is_off() || server.disk.struck().is_some()) {
            return self.disk_failed(at, "the snapshot cannot be stored");
        }
        if !ok {
            self.trace.reached("snapshot transfer failed");
        }
        self.push_input(at, MemberInput::Zab(Input::SnapshotFetched { request, ok }));
        Ok(())
    }

    fn open_snapshot(&mut self, at: ProcessRef, snapshot: SnapshotMeta) -> Check {
        let server = self.servers.get_mut(&at.server).expect("servers are fixed");
        let opened = server.disk.open_installed(&snapshot);
        if opened.is_none() && (server.disk.is_off() || server.disk.struck().is_some()) {
            return self.disk_failed(at, "the snapshot cannot be opened");
        }
        let Some(store) = opened else {
            return Err(Violation {
                invariant: "I18 snapshot",
                text: format!("{:?}: {snapshot:?} is not where it should be", at.server),
            });
        };
        let process = self.process_mut(at).expect("the caller found it");
        process.apply.replace_store(store);
        let position: Position = process.apply.position();
        if position != snapshot.position {
            return Err(Violation {
                invariant: "I18 snapshot",
                text: format!("{:?} opened {position:?} for {snapshot:?}", at.server),
            });
        }
        self.checks.on_opened(at.server, position)?;
        self.apply_answers(at, MemberInput::Zab(Input::SnapshotOpened { position }));
        Ok(())
    }

    // ---- streams ----

    fn send(&mut self, at: ProcessRef, peer: ServerId, link: u64, message: Message) -> Check {
        let now = self.schedule.now();
        let message = if self.rng.chance(self.options.codec_per_mille) { through_codec(message)? } else { message };
        let process = self.process_mut(at).expect("the caller found it");
        let Some((_, stream, side)) = process.links.get(&peer).filter(|(l, _, _)| *l == link).copied() else {
            self.trace.reached("message for a stream that is gone");
            return Ok(());
        };
        if let Some(due) = self.network.send(stream, side, message, now) {
            self.schedule.at(due, Event::Deliver(stream, 1 - side));
        }
        Ok(())
    }

    fn deliver(&mut self, stream: StreamId, side: Side) -> Check {
        let (to, from, message, late) = match self.network.due(stream, side, self.schedule.now()) {
            Due::Message { to, from, message, late } => (to, from, message, late),
            Due::Later(at) => {
                self.schedule.at(at, Event::Deliver(stream, side));
                return Ok(());
            }
            Due::Nothing => return Ok(()),
        };
        if late {
            self.trace.reached("message of a broken stream arrived");
        }
        let at = ProcessRef { server: to.server, process: to.process };
        self.trace.mix(to.server.0 << 8 | from.server.0);
        let input = Input::PeerMessage { peer: from.server, link: to.link, message };
        self.push_input(at, MemberInput::Zab(input));
        Ok(())
    }

    fn dial(&mut self, a: ServerId, b: ServerId) -> Check {
        if self.network.is_connected(a, b) {
            return Ok(());
        }
        let now = self.schedule.now();
        let (low, high) = (a.min(b), a.max(b));
        let (Some(first), Some(second)) = (self.process_of(low), self.process_of(high)) else {
            // The start of the one that is missing dials again.
            return Ok(());
        };
        let stands = |id: &ServerId| self.servers[id].paused_until > now;
        if stands(&low) || stands(&high) || self.network.is_blocked(a, b) || self.network.is_blocked(b, a) {
            let delay = REDIAL + self.rng.below(REDIAL);
            self.schedule.after(delay, Event::Dial(low, high));
            return Ok(());
        }
        if let Some((id, seen_start)) = self.outdated(first, second) {
            return self.condemn(id, seen_start);
        }
        self.connect(low, high);
        Ok(())
    }

    /// Of two servers that greet each other, the one whose disk the other has seen in a later start (P9).
    fn outdated(&self, first: ProcessRef, second: ProcessRef) -> Option<(ServerId, u64)> {
        let outdated = |it: ProcessRef, other: ProcessRef| {
            let process = |at: ProcessRef| self.servers[&at.server].process.as_ref();
            let (me, memory) = (process(it)?.identity, &process(other)?.memory);
            let (instance, start_count) = *memory.get(&it.server)?;
            (instance == me.instance && start_count > me.start_count).then_some((it.server, start_count))
        };
        outdated(first, second).or_else(|| outdated(second, first))
    }

    /// A server was told that its folder is an old copy: it marks itself, counts its starts on from what was seen, and
    /// ends.
    fn condemn(&mut self, id: ServerId, seen_start: u64) -> Check {
        self.tell(|| format!("{id:?} is told that its folder is an old copy"));
        self.trace.reached("old folder recognised");
        let server = self.servers.get_mut(&id).expect("servers are fixed");
        server.disk.withdraw();
        let mut record = server.process.as_ref().expect("it greeted").log.record();
        record.identity.start_count = record.identity.start_count.max(seen_start);
        record.identity.membership = Membership::Amnesiac;
        if let Err(error) = record.write(server.disk.device()) {
            return Err(Violation { invariant: "the log does not fail by itself", text: format!("{id:?}: {error}") });
        }
        server.spoiled = false;
        self.checks.on_condemned(id);
        self.crash(id, "it runs on an old copy")
    }

    /// Makes a stream between two running servers.
    pub(crate) fn connect(&mut self, low: ServerId, high: ServerId) {
        let (Some(first), Some(second)) = (self.process_of(low), self.process_of(high)) else { return };
        let now = self.schedule.now();
        let mut end = |at: ProcessRef| {
            let process = self.process_mut(at).expect("found above");
            process.last_link += 1;
            End {
                server: at.server,
                process: at.process,
                link: process.last_link,
                instance: process.identity.instance,
                start_count: process.identity.start_count,
            }
        };
        let ends = [end(first), end(second)];
        let up = [now + self.network.delay(), now + self.network.delay()];
        let stream = self.network.connect(ends[0], ends[1], up);
        for (side, at) in up.into_iter().enumerate() {
            self.schedule.at(at, Event::StreamUp(stream, side));
        }
    }

    fn stream_up(&mut self, stream: StreamId, side: Side) {
        let (end, peer) = (self.network.end(stream, side), self.network.end(stream, 1 - side));
        let at = ProcessRef { server: end.server, process: end.process };
        let Some(process) = self.process_mut(at) else { return };
        // A younger stream may have come up first.
        if process.links.get(&peer.server).is_some_and(|(link, _, _)| *link > end.link) {
            return;
        }
        process.links.insert(peer.server, (end.link, stream, side));
        process.memory.insert(peer.server, (peer.instance, peer.start_count));
        let delay = self.write_delay(at.server);
        self.schedule.after(delay, Event::PeerStarted(at, peer.server, peer.instance, peer.start_count));
        self.say(|| format!("{:?} has stream {} to {:?}", end.server, end.link, peer.server));
        let input =
            Input::PeerUp { peer: peer.server, link: end.link, instance: peer.instance, start_count: peer.start_count };
        self.push_input(at, MemberInput::Zab(input));
    }

    fn stream_down(&mut self, stream: StreamId, side: Side) {
        let (end, peer) = (self.network.end(stream, side), self.network.end(stream, 1 - side));
        let at = ProcessRef { server: end.server, process: end.process };
        let Some(process) = self.process_mut(at) else { return };
        if process.links.get(&peer.server).is_some_and(|(link, _, _)| *link == end.link) {
            process.links.remove(&peer.server);
        }
        self.say(|| format!("{:?} lost stream {} to {:?}", end.server, end.link, peer.server));
        self.push_input(at, MemberInput::Zab(Input::PeerDown { peer: peer.server, link: end.link }));
    }

    /// Breaks a stream and lets both sides find out, and dial again.
    pub(crate) fn break_stream(&mut self, stream: StreamId, dead: Option<ServerId>) {
        let patience = self.options.sync_timeout_ms * MS;
        let found_out = [self.rng.magnitude(10, patience), self.rng.magnitude(10, patience)];
        self.break_stream_for(stream, dead, found_out);
    }

    /// The same; each side finds out after its time.
    pub(crate) fn break_stream_for(&mut self, stream: StreamId, dead: Option<ServerId>, found_out: [Micros; 2]) {
        let patience = self.options.sync_timeout_ms * MS;
        if !self.network.break_stream(stream, dead, self.schedule.now(), 2 * patience) {
            return;
        }
        for (side, delay) in found_out.into_iter().enumerate() {
            self.schedule.after(delay, Event::StreamDown(stream, side));
        }
        let (low, high) = (self.network.end(stream, 0).server, self.network.end(stream, 1).server);
        let delay = self.rng.magnitude(MS, 2 * REDIAL);
        self.schedule.after(delay, Event::Dial(low, high));
    }

    // ---- life and death ----

    pub(crate) fn start_after(&mut self, id: ServerId, delay: Micros) {
        let server = self.servers.get_mut(&id).expect("servers are fixed");
        if !server.starting && !server.retired {
            server.starting = true;
            self.schedule.after(delay, Event::Start(id));
        }
    }

    fn start(&mut self, id: ServerId) -> Check {
        let now = self.schedule.now();
        let machine_seed = self.rng.next();
        let safety = self.stage == Stage::Safety;
        let (per_mille, restart_ms) = (self.options.faults.recovery_per_mille, self.options.faults.restart_ms);
        let server = self.servers.get_mut(&id).expect("servers are fixed");
        server.starting = false;
        if server.process.is_some() || server.retired {
            return Ok(());
        }
        let life = &mut server.life;
        let unlucky = safety && life.chance(per_mille);
        let plan = *life.pick(&[Plan::PowerCut, Plan::PowerCut, Plan::Failure, Plan::ReadFailure]);
        let skip = life.below(30);
        let full = (server.disk_full_until > now).then_some((skip % 6, Plan::NoSpace));
        let started = match server.disk.start(full.or(unlucky.then_some((skip, plan)))) {
            Ok(started) => started,
            Err(StartError::PowerCut) => {
                let (seed, delay) = (server.life.next(), server.life.below(restart_ms * MS));
                server.disk.after_power_cut(seed);
                self.put_back_if_outdated(id);
                self.tell(|| format!("{id:?} loses power while it starts"));
                self.trace.reached("power cut during recovery");
                self.start_after(id, delay);
                return Ok(());
            }
            Err(StartError::Failed(plan)) => {
                let delay = server.life.below(restart_ms * MS);
                self.put_back_if_outdated(id);
                self.tell(|| format!("{id:?} cannot start: {plan:?}"));
                self.trace.reached(match plan {
                    Plan::NoSpace => Fault::DiskFull.habit().struck,
                    _ => "disk error during recovery",
                });
                self.start_after(id, delay);
                return Ok(());
            }
            Err(StartError::Refused(text)) if server.spoiled => {
                // An operator gives it an empty folder.
                self.tell(|| format!("{id:?} refuses its folder: {text}"));
                self.trace.reached("damage: folder refused");
                self.wipe(id)?;
                self.start_after(id, 0);
                return Ok(());
            }
            Err(StartError::Refused(text)) => {
                return Err(Violation { invariant: "recovery is exact", text: format!("{id:?} cannot start: {text}") });
            }
        };
        // An old copy stays one until somebody says so.
        let outdated = self.checks.ghost.server(id).outdated;
        let spoiled = self.servers[&id].spoiled && !outdated;
        self.server_mut(id).spoiled = outdated;
        self.next_process += 1;
        let at = ProcessRef { server: id, process: self.next_process };
        let recovered = started.recovered;
        self.tell(|| {
            format!(
                "{id:?} starts: log {:?}..{:?}, promise {}, store {:?}, {:?}",
                recovered.base.zxid,
                recovered.end.zxid,
                recovered.promise.epoch,
                recovered.applied.zxid,
                recovered.identity.membership
            )
        });
        if recovered.identity.membership == Membership::Amnesiac {
            self.trace.reached("amnesiac started");
        }
        if started.torn {
            self.tell(|| format!("{id:?} found its last write unfinished"));
            self.trace.reached("hole or tear in the tail of a log");
        }
        self.checks.on_recovered(id, &recovered, spoiled)?;
        let identity = recovered.identity;
        // Peers compare starts of one disk; a copy of a former disk they would not recognise.
        let server = self.server_mut(id);
        server.backup = server.backup.take().filter(|backup| backup.is_of(identity.instance));
        let member = Member::new(
            self.options.zab(id, machine_seed),
            recovered,
            MemberOptions {
                settings: Settings { container_never_used_ms: 2_000, ..Settings::default() },
                reap_interval_ms: self.options.sync_timeout_ms * 3,
                touch_interval_ms: 0,
            },
        );
        let mut apply = Apply::new(id, started.store, Vec::new());
        let (bytes, age_ms) = self.options.feed;
        apply.bound_feed(FeedBounds { bytes, age_ms });
        let meta = apply.meta().clone();
        let server = self.servers.get_mut(&id).expect("servers are fixed");
        server.paused_until = now;
        server.process = Some(Process {
            number: at.process,
            identity,
            status: member.brief_status(),
            member,
            inbox: Default::default(),
            turn: false,
            crash_after: None,
            crash_at: None,
            memory: started.peers.latest().into_iter().map(|(id, d)| (id, (d.instance, d.start_count))).collect(),
            peers: started.peers,
            log_written: now,
            log: started.log,
            log_queue: Default::default(),
            log_busy: false,
            log_answer: now,
            apply,
            apply_queue: Default::default(),
            apply_busy: false,
            apply_answer: now,
            unflushed: 0,
            relation: None,
            alone_since: now,
            links: BTreeMap::new(),
            last_link: 0,
            known_links: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            last_snapshot: at.process << 16,
            snapshots_wanted: Vec::new(),
            connections: BTreeMap::new(),
            woken: Arc::new(Mutex::default()),
            read_points: BTreeMap::new(),
            last_tag: at.process << 32,
        });
        self.checks.on_own_digest(id, at.process, None, (meta.applied, meta.digest));
        if !self.is_changed(id) {
            let full = self.process_mut(at).expect("just made").apply.store().digest();
            self.history.on_digest(&meta, Some(full))?;
        }
        self.schedule.after(self.rng.below(TICK), Event::Tick(at));
        let flush = self.rng.between(1, 2 * self.options.sync_timeout_ms) * MS;
        self.schedule.after(flush, Event::Flush(at));
        for peer in self.server_ids() {
            if peer != id {
                let delay = MS + self.rng.below(REDIAL);
                self.schedule.after(delay, Event::Dial(peer.min(id), peer.max(id)));
            }
        }
        Ok(())
    }

    /// Ends a process in good order, as an operator does: what is queued for the log is written, and sealed.
    fn stop(&mut self, id: ServerId) -> Check {
        let Some(at) = self.process_of(id).filter(|_| self.stage == Stage::Safety) else { return Ok(()) };
        if self.process(id).log_busy {
            self.log_turn(at)?;
        }
        let Some(process) = self.process_mut(at) else { return Ok(()) };
        if let Err(error) = process.log.seal_if_idle() {
            return self.disk_failed(at, &error.to_string());
        }
        self.end(id, "stopped by an operator", false)
    }

    /// Ends a process without warning. Sometimes only the process dies; sometimes, and always if the device is off, the
    /// machine loses power with it.
    pub(crate) fn crash(&mut self, id: ServerId, why: &str) -> Check {
        let server = self.servers.get_mut(&id).expect("servers are fixed");
        let power = server.life.chance(500) || server.disk.is_off();
        self.end(id, why, power)
    }

    /// Every start from an old copy is another first one: by its own count it would catch up with what its peers
    /// remember.
    fn put_back_if_outdated(&mut self, id: ServerId) {
        let backup = self.servers[&id].backup.clone().filter(|_| self.checks.ghost.server(id).outdated);
        if let Some(backup) = backup {
            self.server_mut(id).disk.restore(&backup);
            self.checks.on_restored(id, backup.ghost);
        }
    }

    pub(crate) fn end(&mut self, id: ServerId, why: &str, power: bool) -> Check {
        let server = self.servers.get_mut(&id).expect("servers are fixed");
        let seed = server.life.next();
        let soon = std::mem::take(&mut server.back_soon);
        let delay = server.life.below(if soon { REDIAL } else { self.options.faults.restart_ms * MS });
        let Some(mut process) = server.process.take() else { return Ok(()) };
        let store = process.apply.store().clone();
        for (connection, Connection { client, .. }) in std::mem::take(&mut process.connections) {
            let delay = self.network.client_delay();
            self.schedule.after(delay, Event::ToClient { client, connection, message: ToClient::Broken });
        }
        drop(process);
        server.disk.process_died(store);
        if power {
            server.disk.after_power_cut(seed);
        }
        self.put_back_if_outdated(id);
        let why = why.to_owned();
        self.tell(|| format!("{id:?} crashes ({}{why})", if power { "power: " } else { "" }));
        self.trace.reached(if power { "power lost" } else { "process killed" });
        self.checks.on_crash(id);
        for peer in self.server_ids() {
            if let Some(stream) = self.network.stream(id, peer) {
                self.break_stream(stream, Some(id));
            }
        }
        self.start_after(id, delay);
        Ok(())
    }
}

impl Event {
    /// The process it happens to, if it does not happen without that.
    fn process(&self) -> Option<ProcessRef> {
        match self {
            Event::Tick(at)
            | Event::CoreTurn(at)
            | Event::LogTurn(at)
            | Event::Input(at, _)
            | Event::ReadLog(at, ..)
            | Event::TrimLog(at, _)
            | Event::ApplyTurn(at)
            | Event::TaskTurn(at, _)
            | Event::Flush(at)
            | Event::Fetched(at, ..)
            | Event::PeerStarted(at, ..) => Some(*at),
            Event::ToServer { to, .. } => Some(*to),
            _ => None,
        }
    }

    /// The step of a thread that it is, for crashes around it.
    fn step(&self) -> Option<Step> {
        match self {
            Event::CoreTurn(_) => Some(Step::Core),
            Event::LogTurn(_) => Some(Step::Log),
            Event::Input(..) => Some(Step::Answer),
            Event::ApplyTurn(_) => Some(Step::Apply),
            Event::Flush(_) => Some(Step::Flush),
            Event::ReadLog(..) => Some(Step::ReadLog),
            Event::TrimLog(..) => Some(Step::Trim),
            Event::Fetched(..) => Some(Step::Fetched),
            Event::ToServer { .. } => Some(Step::Request),
            _ => None,
        }
    }

    /// The client whose doing it is.
    fn client(&self) -> Option<usize> {
        match self {
            Event::ClientActs(client)
            | Event::ClientHears(client)
            | Event::ClientCut(client)
            | Event::ClientSilence(client) => Some(*client),
            _ => None,
        }
    }

    /// What identifies it in the hash of a run.
    fn words(&self) -> [u64; 2] {
        match self {
            Event::Tick(at) => [1, at.process],
            Event::CoreTurn(at) => [2, at.process],
            Event::LogTurn(at) => [3, at.process],
            Event::Input(at, _) => [4, at.process],
            Event::ReadLog(at, ..) => [5, at.process],
            Event::TrimLog(at, zxid) => [6, at.process ^ zxid.0],
            Event::ApplyTurn(at) => [7, at.process],
            Event::Flush(at) => [8, at.process],
            Event::Fetched(at, ..) => [9, at.process],
            Event::Dial(a, b) => [10, a.0 << 8 | b.0],
            Event::StreamUp(stream, side) => [11, stream << 1 | *side as u64],
            Event::StreamDown(stream, side) => [12, stream << 1 | *side as u64],
            Event::Deliver(stream, side) => [13, stream << 1 | *side as u64],
            Event::Start(id) => [14, id.0],
            Event::Fault(id) => [15, (id.kind as u64) << 32 | id.number],
            Event::Heal(blocked) => [16, blocked.len() as u64],
            Event::ClientActs(index) => [17, *index as u64],
            Event::ClientCut(index) => [18, *index as u64],
            Event::ClientSilence(index) => [19, *index as u64],
            Event::ToServer { connection, .. } => [20, *connection],
            Event::ToClient { connection, .. } => [21, *connection],
            Event::GuestTimer(timer) => [28, *timer],
            Event::Calm => [22, 0],
            Event::Probe => [23, 0],
            Event::Block(blocked, duration) => [24, duration << 8 | blocked.len() as u64],
            Event::LinkNormal(from, to) => [25, from.0 << 8 | to.0],
            Event::Stop(id) => [26, id.0],
            Event::PeerStarted(at, peer, ..) => [27, at.process << 8 | peer.0],
            Event::TaskTurn(at, connection) => [28, at.process << 32 | connection],
            Event::Break(a, b) => [29, a.0 << 8 | b.0],
            Event::PowerOff(id) => [30, id.0],
            Event::Spring(ambush) => [31, ambush.former.0],
            Event::ClientHears(index) => [32, *index as u64],
        }
    }
}

/// What a message is after it was made bytes and read back.
fn through_codec(message: Message) -> Result<Message, Violation> {
    let frame = codec::encode_frame(std::slice::from_ref(&message));
    let read = codec::decode_frame(&frame);
    if read.as_deref() == Ok(std::slice::from_ref(&message)) {
        return Ok(message);
    }
    Err(Violation { invariant: "the codec changes nothing", text: format!("{message:?} became {read:?}") })
}

/// A log operation in a line of the trace.
fn brief_op(op: &LogOp) -> String {
    match op {
        LogOp::Append(entries) => format!(
            "append {:?}..{:?}",
            entries.first().map(|e| e.zxid).unwrap_or_default(),
            entries.last().map(|e| e.zxid).unwrap_or_default()
        ),
        op => format!("{op:?}"),
    }
}

/// A message in a line of the trace.
fn brief(message: &Message) -> String {
    match message {
        Message::Entries { epoch, prev, entries, commit } => format!(
            "Entries epoch {epoch} after {:?}: {:?}..{:?}, commit {commit:?}",
            prev.zxid,
            entries.first().map(|e| e.zxid).unwrap_or_default(),
            entries.last().map(|e| e.zxid).unwrap_or_default()
        ),
        Message::Forward { epoch, payloads } => format!("Forward epoch {epoch}: {} payloads", payloads.len()),
        message => format!("{message:?}"),
    }
}
