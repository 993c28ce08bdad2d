//! One member of an ensemble, without its disk, sockets and threads: the protocol machine, the outbox of its clients'
//! writes and the leader's session tracker, behind one `step`.
//!
//! What joins them is small: writes wait in the outbox until they are executed and are offered again with every new
//! relation to a leader (P31); the tracker starts when this server leads and its store holds (e,0) (P30), asks for
//! rounds and proposes ends (P32). The core loop of a server and the simulator drive the same value.

use std::collections::VecDeque;

use bytes::Bytes;
use corral_proto::{ServerId, SessionId, Zxid};

use crate::session::carrier::{Carried, CarrierQueue};
use crate::session::outbox::{Key, Outbox};
use crate::session::tracker::{Tracker, Wish};
use crate::tree::entry::{Command, SessionEvent, Settings, Txn};
use crate::zab::Zab;
use crate::zab::io::{Input, Now, Options, Output, Outputs, Recovered, Relation, Status};
use crate::zoo::{self, Switch};

/// Containers and TTL znodes proposed for reaping at once.
pub const REAP_BATCH_MAX: usize = 1_000;

/// Settings of a member beside the protocol's.
#[derive(Clone, Debug)]
pub struct MemberOptions {
    /// What the replicated settings should be when this server leads (P34). The password key is kept if there is one
    /// and taken from here if not.
    pub settings: Settings,
    /// Between two looks for containers and TTL znodes that are due, ms.
    pub reap_interval_ms: u64,
    /// A client that is heard again within this time of its last touch may go unreported, ms.
    pub touch_interval_ms: u64,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum MemberInput {
    /// For the protocol machine: time, peers, disk, operators.
    Zab(Input),
    /// Writes of this server's clients, in order. Those under [`Key::Local`] get their place here.
    Submit(Vec<(Key, Bytes)>),
    /// Nobody waits for this handshake any more: it is not offered to another leader. What was offered already may
    /// still be executed.
    Withdraw(Key),
    /// All local sessions of this server below this id are over, and their clients are told so: what they handed in and
    /// nobody has yet is not offered to a leader any more (P29).
    LocalsEnd {
        /// Where the ids of later ones begin.
        below: SessionId,
    },
    /// Clients of this server were heard.
    Touched(Vec<SessionId>),
    /// The store executed a batch.
    Applied(crate::apply::Applied),
    /// Answer to [`MemberOutput::LoadSessions`].
    SessionTable {
        /// Every open session: id, timeout in ms, attach, server.
        sessions: Vec<(SessionId, i32, Zxid, ServerId)>,
        /// The replicated settings.
        settings: Settings,
    },
    /// Answer to [`MemberOutput::ScanReapable`]: path and creation of what is due.
    Reapable(Vec<(String, Zxid)>),
}

/// One thing to do. Do them in the order given.
#[derive(Clone, Debug)]
pub enum MemberOutput {
    /// Of the protocol machine. [`Output::Relation`], [`Output::Leading`], [`Output::Touches`] and
    /// [`Output::RoundConfirmed`] are dealt with here and never appear.
    Zab(Output),
    /// Writes reach a leader from now on, or no more.
    Relation(Option<Relation>),
    /// Read the session table and the settings from the store; answer with [`MemberInput::SessionTable`].
    LoadSessions,
    /// Look for containers and TTL znodes that are due at this time, at most [`REAP_BATCH_MAX`].
    ScanReapable {
        /// The leader's wall clock, ms.
        wall_ms: i64,
    },
}

/// See the module.
pub struct Member {
    zab: Zab,
    outbox: Outbox,
    carrier: CarrierQueue,
    tracker: Tracker,
    options: MemberOptions,
    relation: Option<Relation>,
    leading: bool,
    /// The session table is loaded: the tracker runs.
    tracking: bool,
    /// What the store did while the table was being loaded.
    missed: Vec<SessionEvent>,
    next_reap_ms: u64,
    /// Inputs for the protocol machine that its own outputs gave rise to. They wait until those outputs are all handed
    /// on, so that what comes out is in the order in which the machine decided it.
    todo: VecDeque<Input>,
    stepping: bool,
    scratch: Outputs,
}

impl Member {
    /// A member that starts from what was found on disk.
    pub fn new(options: Options, recovered: Recovered, member: MemberOptions) -> Member {
        // No two starts of any data folder draw the same nonces, but for a folder that was copied.
        let identity = recovered.identity;
        let seed = identity.instance.wrapping_add(identity.start_count << 32);
        Member {
            carrier: CarrierQueue::new(options.id, seed),
            zab: Zab::new(options, recovered),
            outbox: Outbox::default(),
            tracker: Tracker::new(member.touch_interval_ms),
            options: member,
            relation: None,
            leading: false,
            tracking: false,
            missed: Vec::new(),
            next_reap_ms: 0,
            todo: VecDeque::new(),
            stepping: false,
            scratch: Outputs::new(),
        }
    }

    /// State of the protocol machine.
    pub fn status(&self) -> Status {
        self.zab.status()
    }

    /// [`crate::zab::Zab::brief_status`].
    pub fn brief_status(&self) -> Status {
        self.zab.brief_status()
    }

    /// On the leader: sessions by deadline, see [`Tracker::deadlines`]. Empty elsewhere.
    pub fn session_deadlines(&self) -> Vec<(u64, Vec<SessionId>)> {
        self.tracker.deadlines()
    }

    /// Writes not yet known to be executed.
    pub fn unresolved(&self) -> usize {
        self.outbox.len() + self.carrier.len()
    }

    /// Takes one input. Never blocks, never fails.
    pub fn step(&mut self, now: Now, input: MemberInput, out: &mut Vec<MemberOutput>) {
        match input {
            MemberInput::Zab(input) => {
                let tick = matches!(input, Input::Tick);
                self.zab_step(now, input, out);
                if tick {
                    self.on_tick(now, out);
                }
            }
            MemberInput::Submit(writes) => {
                for (key, payload) in writes {
                    self.push(key, payload);
                }
                self.offer(now, out);
            }
            MemberInput::LocalsEnd { below } => {
                self.outbox.forget_local();
                self.carrier.end_below(below);
            }
            MemberInput::Withdraw(key) => {
                self.outbox.resolve(&key);
                self.offer(now, out);
            }
            MemberInput::Touched(sessions) => {
                if self.tracking {
                    for session in &sessions {
                        self.tracker.touch(now.mono_ms, *session);
                    }
                } else {
                    self.zab_step(now, Input::Touched { sessions }, out);
                }
            }
            MemberInput::Applied(applied) => {
                for key in &applied.resolved {
                    self.outbox.resolve(key);
                }
                for event in &applied.sessions {
                    if let SessionEvent::Carried { server, nonce, attach, last_n } = event {
                        match self.carrier.on_carried(*server, *nonce, *attach, *last_n) {
                            Ok(writes) => writes.into_iter().for_each(|(key, payload)| self.outbox.push(key, payload)),
                            Err(nonce) => self.open_carrier(nonce),
                        }
                    }
                }
                for carrier in &applied.void_carriers {
                    self.carrier.on_void(carrier.server, carrier.attach);
                }
                if self.tracking {
                    for event in applied.sessions {
                        self.on_session_event(now, event);
                    }
                } else if self.leading {
                    self.missed.extend(applied.sessions);
                }
                for (zxid, digest) in applied.digests {
                    self.zab_step(now, Input::Digest { zxid, digest }, out);
                }
                let (zxid, persisted, digest) = (applied.zxid, applied.persisted, applied.digest);
                self.zab_step(now, Input::Applied { zxid, persisted, digest }, out);
                self.offer(now, out);
            }
            MemberInput::SessionTable { sessions, settings } => self.on_session_table(now, sessions, settings, out),
            MemberInput::Reapable(due) => {
                if self.tracking && !due.is_empty() {
                    let payloads =
                        due.into_iter().map(|(path, czxid)| internal(Command::Reap { path, czxid })).collect();
                    self.zab_step(now, Input::Propose { payloads }, out);
                }
            }
        }
    }

    /// Notes a write; one of a local session gets its place first.
    fn push(&mut self, key: Key, payload: Bytes) {
        let payload = match key {
            Key::Local { .. } => match self.carrier.push(key, payload) {
                Carried::Numbered(payload) => payload,
                Carried::Open(nonce) => return self.open_carrier(nonce),
                Carried::Waits | Carried::TooLate => return,
            },
            Key::Request { .. } | Key::Handshake { .. } | Key::Carrier { .. } => payload,
        };
        self.outbox.push(key, payload);
    }

    fn open_carrier(&mut self, nonce: u64) {
        let server = self.carrier.server();
        self.outbox.push(Key::Carrier { nonce }, internal(Command::OpenCarrier { server, nonce }));
    }

    fn zab_step(&mut self, now: Now, input: Input, out: &mut Vec<MemberOutput>) {
        self.todo.push_back(input);
        if self.stepping {
            return;
        }
        self.stepping = true;
        let mut outputs = std::mem::take(&mut self.scratch);
        while let Some(input) = self.todo.pop_front() {
            self.zab.step(now, input, &mut outputs);
            for output in outputs.drain(..) {
                self.on_output(now, output, out);
            }
        }
        self.scratch = outputs;
        self.stepping = false;
    }

    /// Offers the leader what may be offered of this server's writes.
    fn offer(&mut self, now: Now, out: &mut Vec<MemberOutput>) {
        if self.relation.is_some() {
            let payloads = self.outbox.offer();
            if !payloads.is_empty() {
                self.zab_step(now, Input::Propose { payloads }, out);
            }
        }
    }

    fn on_output(&mut self, now: Now, output: Output, out: &mut Vec<MemberOutput>) {
        match output {
            Output::Relation(relation) => {
                self.relation = relation;
                out.push(MemberOutput::Relation(relation));
                self.outbox.begin();
                self.offer(now, out);
            }
            Output::Leading(leading) => {
                self.leading = leading;
                self.tracking = false;
                self.missed.clear();
                self.tracker.stop();
                if leading {
                    out.push(MemberOutput::LoadSessions);
                }
            }
            Output::Touches { .. } if zoo::broken(Switch::TouchesLost) => {}
            Output::Touches { sessions, .. } => {
                for session in sessions {
                    self.tracker.touch(now.mono_ms, session);
                }
            }
            Output::RoundConfirmed { tag } => {
                let mut wishes = Vec::new();
                self.tracker.on_confirmed(tag, &mut wishes);
                self.grant(now, wishes, out);
            }
            Output::FetchSnapshot { .. } => {
                // Connections and their unresolved writes go: clients attach again and find what they missed.
                self.outbox.clear();
                self.carrier.clear();
                out.push(MemberOutput::Zab(output));
            }
            output => out.push(MemberOutput::Zab(output)),
        }
    }

    fn on_tick(&mut self, now: Now, out: &mut Vec<MemberOutput>) {
        if !self.tracking {
            return;
        }
        let mut wishes = Vec::new();
        self.tracker.tick(now.mono_ms, &mut wishes);
        self.grant(now, wishes, out);
        if now.mono_ms >= self.next_reap_ms {
            self.next_reap_ms = now.mono_ms + self.options.reap_interval_ms;
            out.push(MemberOutput::ScanReapable { wall_ms: now.wall_ms });
        }
    }

    fn grant(&mut self, now: Now, wishes: Vec<Wish>, out: &mut Vec<MemberOutput>) {
        let mut payloads = Vec::new();
        for wish in wishes {
            match wish {
                Wish::Confirm { tag, include } => self.zab_step(now, Input::ConfirmRound { tag, include }, out),
                Wish::Expire { session, attach } => payloads.push(
                    Txn {
                        session,
                        attach,
                        n: 0,
                        answered_through: 0,
                        ids: Vec::new(),
                        command: Command::CloseSession { expired: true },
                    }
                    .encode(),
                ),
            }
        }
        if !payloads.is_empty() {
            self.zab_step(now, Input::Propose { payloads }, out);
        }
    }

    fn on_session_table(
        &mut self,
        now: Now,
        sessions: Vec<(SessionId, i32, Zxid, ServerId)>,
        settings: Settings,
        out: &mut Vec<MemberOutput>,
    ) {
        if !self.leading {
            return;
        }
        self.tracking = true;
        self.tracker.start(now.mono_ms, sessions);
        for event in std::mem::take(&mut self.missed) {
            self.on_session_event(now, event);
        }
        self.next_reap_ms = now.mono_ms + self.options.reap_interval_ms;
        let mut wanted = self.options.settings.clone();
        if !settings.password_key.is_empty() {
            wanted.password_key.clone_from(&settings.password_key);
        }
        if wanted != settings {
            let payloads = vec![internal(Command::Settings(wanted))];
            self.zab_step(now, Input::Propose { payloads }, out);
        }
    }

    fn on_session_event(&mut self, now: Now, event: SessionEvent) {
        match event {
            SessionEvent::Attached { session, attach, server, timeout_ms, .. } => {
                self.tracker.attached(now.mono_ms, session, timeout_ms, attach, server);
            }
            SessionEvent::Closed { session, .. } => self.tracker.closed(session),
            SessionEvent::Carried { .. } => {}
        }
    }
}

fn internal(command: Command) -> Bytes {
    Txn { session: SessionId::NONE, attach: Zxid::ZERO, n: 0, answered_through: 0, ids: Vec::new(), command }.encode()
}
