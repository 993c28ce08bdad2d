//! What goes wrong, how often, and within which budget; and the end of it: the liveness phase.
//!
//! Every fault has a name: its kind and its number among those of its kind. All that chance decides about it comes from
//! a stream of that name, so leaving one out does not change the others ([`crate::options::Reduction`]).

use std::fmt;
use std::str::FromStr;

use corral_core::member::MemberInput;
use corral_core::zab::io::{Admin, Input, Membership, Phase, Role};
use corral_proto::{ServerId, Zxid};

use crate::checks::{Check, Violation, trees};
use crate::disk::{Hurt, Plan, Worth, compare};
use crate::rng::Rng;
use crate::schedule::{MS, Micros};
use crate::server::{CrashAt, Server, Step};
use crate::world::{Event, Stage, World};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// A process dies between two events.
    Crash,
    /// A process dies just before or after a step of one of its threads.
    StepCrash,
    /// A process dies between two outputs of a step.
    OutputCrash,
    /// A server loses power in the middle of an operation of its log.
    DiskCrash,
    /// A server loses power while it installs a snapshot.
    InstallCrash,
    /// All servers lose power.
    PowerLoss,
    /// A process stands still.
    Pause,
    /// Directions between servers are blocked.
    Partition,
    /// Servers are cut off one by one, and come back in another order.
    Clog,
    /// A link goes on and off.
    Flap,
    /// A stream breaks.
    Reset,
    /// A new stream comes up while the old one still carries.
    SecondStream,
    /// One direction becomes slow.
    SlowLink,
    /// An operation of the log's disk fails.
    DiskError,
    /// There is no space left on a disk for a while.
    DiskFull,
    /// A read of the log fails.
    ReadError,
    /// A disk is slow for a while.
    SlowDisk,
    /// Bits of a durable file of a stopped server change.
    Rot,
    /// A whole file is gone.
    LostFile,
    /// The store turns out to be damaged, at start or while the server runs.
    StoreRot,
    /// A tree becomes another than execution made it, without a sound.
    ChangedTree,
    /// A data folder is lost.
    LostFolder,
    /// An old copy of a data folder is put back.
    OldFolder,
    /// A server is replaced by a new one of the same number.
    Replace,
    /// A wall clock jumps.
    WallClock,
    /// A monotonic clock changes its speed.
    ClockRate,
    /// A store takes nothing for a while.
    StoreStall,
    /// An operator asks for another leader.
    Admin,
    /// An operator restarts one server after the other.
    RollingRestart,
    /// A leader is left behind, and whoever comes after it may be struck meanwhile.
    Succession,
}

/// How a kind of fault behaves in a swarm.
pub struct Habit {
    /// Which.
    pub kind: Fault,
    /// Its name in commands and traces.
    pub name: &'static str,
    /// How often a run has it, compared with the others.
    pub weight: u64,
    /// Time between two of them, in synchronization time-outs; from and to.
    pub every: (u64, u64),
    /// What is counted when one strikes.
    pub struck: &'static str,
}

const fn habit(kind: Fault, name: &'static str, weight: u64, every: (u64, u64), struck: &'static str) -> Habit {
    Habit { kind, name, weight, every, struck }
}

/// All kinds of faults.
pub const CATALOGUE: [Habit; 30] = [
    habit(Fault::Crash, "crash", 25, (1, 10), "process died between two events"),
    habit(Fault::StepCrash, "step-crash", 20, (1, 10), "process died around a step"),
    habit(Fault::OutputCrash, "output-crash", 20, (1, 10), "process died between two outputs"),
    habit(Fault::DiskCrash, "disk-crash", 25, (1, 8), "power cut in a disk operation"),
    habit(Fault::InstallCrash, "install-crash", 24, (1, 5), "power cut in a snapshot install"),
    habit(Fault::PowerLoss, "power-loss", 16, (2, 10), "whole ensemble lost power"),
    habit(Fault::Pause, "pause", 15, (1, 12), "server stood still"),
    habit(Fault::Partition, "partition", 25, (1, 10), "directions blocked"),
    habit(Fault::Clog, "clog", 10, (4, 12), "servers clogged one by one"),
    habit(Fault::Flap, "flap", 10, (3, 12), "link flapped"),
    habit(Fault::Reset, "reset", 20, (1, 10), "stream broken"),
    habit(Fault::SecondStream, "second-stream", 10, (1, 10), "two streams at once"),
    habit(Fault::SlowLink, "slow-link", 10, (1, 10), "link slow"),
    habit(Fault::DiskError, "disk-error", 12, (2, 10), "disk error ended the process"),
    habit(Fault::DiskFull, "disk-full", 6, (3, 12), "full disk ended the process"),
    habit(Fault::ReadError, "read-error", 6, (2, 10), "read error ended the process"),
    habit(Fault::SlowDisk, "slow-disk", 12, (2, 10), "disk slow"),
    habit(Fault::Rot, "rot", 24, (1, 6), "bits rotted"),
    habit(Fault::LostFile, "lost-file", 6, (3, 12), "file lost"),
    habit(Fault::StoreRot, "store-rot", 6, (3, 12), "store damaged"),
    habit(Fault::ChangedTree, "changed-tree", 24, (2, 6), "tree changed"),
    habit(Fault::LostFolder, "lost-folder", 12, (3, 14), "folder lost"),
    habit(Fault::OldFolder, "old-folder", 14, (1, 5), "old folder put back"),
    habit(Fault::Replace, "replace", 10, (3, 12), "server replaced"),
    habit(Fault::WallClock, "wall-clock", 6, (1, 8), "wall clock jumped"),
    habit(Fault::ClockRate, "clock-rate", 8, (1, 8), "clock changed its speed"),
    habit(Fault::StoreStall, "store-stall", 8, (1, 10), "store stalled"),
    habit(Fault::Admin, "admin", 10, (2, 12), "operator asked for another leader"),
    habit(Fault::RollingRestart, "rolling-restart", 10, (4, 14), "servers restarted one by one"),
    habit(Fault::Succession, "succession", 60, (1, 6), "leader left behind"),
];

impl Fault {
    /// How it behaves.
    pub fn habit(self) -> &'static Habit {
        CATALOGUE.iter().find(|habit| habit.kind == self).expect("every kind is in the catalogue")
    }
}

/// One fault of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FaultId {
    /// Of which kind.
    pub kind: Fault,
    /// Its number among those, from 1.
    pub number: u64,
}

impl fmt::Display for FaultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.kind.habit().name, self.number)
    }
}

impl FromStr for FaultId {
    type Err = String;

    fn from_str(text: &str) -> Result<FaultId, String> {
        let found = text.rsplit_once('.').and_then(|(name, number)| {
            let habit = CATALOGUE.iter().find(|habit| habit.name == name)?;
            Some(FaultId { kind: habit.kind, number: number.parse().ok()? })
        });
        found.ok_or_else(|| {
            let names: Vec<&str> = CATALOGUE.iter().map(|habit| habit.name).collect();
            format!(
                "{text:?} is no fault: it must be a kind, a dot and a number, like crash.3; kinds are {}",
                names.join(", ")
            )
        })
    }
}

/// Times the liveness phase may take, in synchronization time-outs (I28).
const PATIENCE: u64 = 60;
/// The farthest that a wall clock jumps, ms.
const WALL_JUMP_MS: u64 = 5 * 3600 * 1000;

impl World {
    pub(crate) fn schedule_faults(&mut self) {
        for habit in &CATALOGUE {
            self.schedule_fault(FaultId { kind: habit.kind, number: 1 });
        }
    }

    fn schedule_fault(&mut self, id: FaultId) {
        if let Some(mean) = self.options.faults.every_ms.get(&id.kind) {
            let delay = Rng::stream(self.options.seed, &format!("when {id}")).below(2 * mean * MS);
            self.schedule.after(delay, Event::Fault(id));
        }
    }

    pub(crate) fn schedule_client_faults(&mut self, index: usize) {
        let (cut, silence) = (self.options.load.cut_ms, self.options.load.silence_ms);
        if cut > 0 {
            let delay = self.fault_rng.below(2 * cut * MS);
            self.schedule.after(delay, Event::ClientCut(index));
        }
        if silence > 0 {
            let delay = self.fault_rng.below(2 * silence * MS);
            self.schedule.after(delay, Event::ClientSilence(index));
        }
    }

    pub(crate) fn client_cut_strikes(&mut self, index: usize) {
        if self.stage != Stage::Safety {
            return;
        }
        for index in self.struck_clients(index, "load: all clients reconnect at once") {
            self.client_cuts(index);
        }
        let delay = self.fault_rng.below(2 * self.options.load.cut_ms * MS);
        self.schedule.after(delay, Event::ClientCut(index));
    }

    pub(crate) fn client_silence_strikes(&mut self, index: usize) {
        if self.stage != Stage::Safety {
            return;
        }
        let now = self.schedule.now();
        for index in self.struck_clients(index, "load: all sessions run out at once") {
            // Who aims at the end of its session begins to before it has come.
            let aims = self.fault_rng.chance(500);
            let soon = self.options.load.session_timeout_ms * MS / 2;
            let silence = if aims { self.fault_rng.below(soon) } else { self.silence() };
            let client = &mut self.clients[index];
            (client.aims, client.silent_until) = (aims, now + silence);
            // Sometimes the connection stays, and nothing comes over it.
            if self.fault_rng.chance(700) {
                self.client_cuts(index);
            }
            self.trace.reached("client silent beyond its timeout");
        }
        let delay = self.fault_rng.below(2 * self.options.load.silence_ms * MS);
        self.schedule.after(delay, Event::ClientSilence(index));
    }

    /// Whom a fault of clients strikes: one, or all of them in a storm.
    fn struck_clients(&mut self, index: usize, storm: &'static str) -> Vec<usize> {
        if !self.fault_rng.chance(self.options.load.storm_per_mille) {
            return vec![index];
        }
        self.trace.reached(storm);
        (0..self.clients.len()).collect()
    }

    /// A duration, short as often as long.
    pub(crate) fn duration(&self, rng: &mut Rng) -> Micros {
        let noticed = self.options.sync_timeout_ms * MS;
        // Only what lasts longer than a time-out makes others act while the one that is hit does not know.
        if rng.chance(500) { rng.between(noticed, 4 * noticed) } else { rng.magnitude(5 * MS, 4 * noticed) }
    }

    fn any_running(&self, rng: &mut Rng) -> Option<ServerId> {
        let running = self.running();
        // The leader is the most interesting victim.
        if rng.chance(400) {
            return self.leader();
        }
        (!running.is_empty()).then(|| *rng.pick(&running))
    }

    /// A fault's time has come.
    pub(crate) fn strike(&mut self, id: FaultId) -> Check {
        if self.stage != Stage::Safety {
            return Ok(());
        }
        self.schedule_fault(FaultId { number: id.number + 1, ..id });
        if self.options.reduction.skip.contains(&id) {
            return Ok(());
        }
        self.struck.insert(id);
        self.tell(|| format!("fault {id}"));
        let mut rng = Rng::stream(self.options.seed, &id.to_string());
        let rng = &mut rng;
        let struck = id.kind.habit().struck;
        match id.kind {
            Fault::Crash => {
                if let Some(id) = self.any_running(rng) {
                    self.trace.reached(struck);
                    return self.crash(id, "killed");
                }
            }
            Fault::StepCrash => {
                if let Some(id) = self.any_running(rng) {
                    let at =
                        CrashAt { step: *rng.pick(&Step::ALL), after: rng.chance(500), skip: rng.magnitude(1, 20) - 1 };
                    self.process(id).crash_at = Some(at);
                }
            }
            Fault::OutputCrash => {
                if let Some(id) = self.any_running(rng) {
                    self.process(id).crash_after = Some(rng.below(10));
                }
            }
            Fault::DiskCrash => self.plan(rng, 10, Plan::PowerCut),
            Fault::InstallCrash => self.install_crash = Some(rng.below(30)),
            Fault::PowerLoss => {
                self.trace.reached(struck);
                if rng.chance(500) {
                    // The first that goes misses what the others still do.
                    for id in self.running() {
                        let delay = rng.magnitude(100, self.options.sync_timeout_ms * MS);
                        self.schedule.after(delay, Event::PowerOff(id));
                    }
                    return Ok(());
                }
                for id in self.running() {
                    self.crash(id, "everybody loses power")?;
                }
            }
            Fault::Pause => {
                if let Some(id) = self.any_running(rng) {
                    let until = self.schedule.now() + 2 * self.duration(rng);
                    self.pause(id, until, rng);
                }
            }
            Fault::Partition => self.partition(rng),
            Fault::Clog => self.clog(rng),
            Fault::Flap => self.flap(rng),
            Fault::Reset | Fault::SecondStream => {
                let streams = self.network.unbroken();
                if !streams.is_empty() {
                    let stream = *rng.pick(&streams);
                    self.trace.reached(struck);
                    if id.kind == Fault::SecondStream {
                        let (low, high) = (self.network.end(stream, 0).server, self.network.end(stream, 1).server);
                        self.connect(low, high);
                    }
                    self.break_stream(stream, None);
                    if rng.chance(400) {
                        // And again, as soon as it is back or sooner.
                        let (low, high) = (self.network.end(stream, 0).server, self.network.end(stream, 1).server);
                        let mut after = 0;
                        for _ in 0..rng.between(1, 6) {
                            after += rng.magnitude(MS, self.options.sync_timeout_ms * MS / 2);
                            self.schedule.after(after, Event::Break(low, high));
                        }
                    }
                }
            }
            Fault::SlowLink => {
                let ids = self.server_ids();
                let (from, to) = (*rng.pick(&ids), *rng.pick(&ids));
                if from != to {
                    let (longest, lasts) = (self.options.faults.slow_link, self.duration(rng));
                    self.tell(|| format!("{from:?} -> {to:?} takes up to {} ms", longest / MS));
                    self.trace.reached(struck);
                    self.network.slow_down(from, to, longest);
                    self.schedule.after(lasts, Event::LinkNormal(from, to));
                }
            }
            Fault::DiskError => {
                // A disk that fails may soon take the machine with it.
                if rng.chance(400)
                    && let Some(id) = self.any_running(rng)
                {
                    let delay = rng.magnitude(MS, self.options.sync_timeout_ms * MS);
                    self.server_mut(id).disk.plan(rng.below(4), Plan::Failure);
                    self.schedule.after(delay, Event::PowerOff(id));
                } else {
                    self.plan(rng, 12, Plan::Failure);
                }
            }
            Fault::ReadError => self.plan(rng, 4, Plan::ReadFailure),
            Fault::DiskFull => {
                if let Some(id) = self.any_running(rng) {
                    let until = self.schedule.now() + self.duration(rng);
                    let server = self.server_mut(id);
                    server.disk_full_until = until;
                    server.disk.plan(rng.below(6), Plan::NoSpace);
                }
            }
            Fault::SlowDisk => {
                if let Some(id) = self.any_running(rng) {
                    let until = self.schedule.now() + self.duration(rng);
                    self.trace.reached(struck);
                    self.server_mut(id).slow_disk_until = until;
                }
            }
            Fault::Rot => return self.damage(rng, struck, Hurt::Bits),
            Fault::LostFile => return self.damage(rng, struck, Hurt::File),
            Fault::StoreRot => return self.damage(rng, struck, Hurt::Store),
            Fault::ChangedTree => return self.change_tree(rng, struck),
            Fault::LostFolder => return self.lose_folder(rng, struck),
            Fault::Replace => {
                let ids = self.server_ids();
                return self.replace(*rng.pick(&ids), rng, struck);
            }
            Fault::OldFolder => return self.old_folder(rng, struck),
            Fault::WallClock => {
                let ids = self.server_ids();
                let id = *rng.pick(&ids);
                let jump = rng.magnitude(10, WALL_JUMP_MS) as i64 * if rng.chance(500) { 1 } else { -1 };
                self.tell(|| format!("the wall clock of {id:?} jumps by {jump} ms"));
                self.trace.reached(struck);
                self.server_mut(id).clock.jump(jump);
            }
            Fault::ClockRate => {
                let ids = self.server_ids();
                let (id, (low, high)) = (*rng.pick(&ids), self.options.faults.clock_rate);
                let (rate, now) = (rng.between(low, high), self.schedule.now());
                self.tell(|| format!("the clock of {id:?} goes at {rate} per mille"));
                self.trace.reached(struck);
                self.server_mut(id).clock.set_rate(now, rate);
            }
            Fault::StoreStall => {
                if let Some(id) = self.any_running(rng) {
                    let until = self.schedule.now() + self.duration(rng);
                    self.trace.reached(struck);
                    self.server_mut(id).store_stalled_until = until;
                }
            }
            Fault::Admin => {
                let target = ServerId(1 + rng.below(self.options.voters));
                let transfer = rng.chance(600);
                if let Some(at) = self.leader().and_then(|id| self.process_of(id)) {
                    let admin = if transfer { Admin::Transfer(target) } else { Admin::StepDown };
                    self.tell(|| format!("an operator asks {:?}: {admin:?}", at.server));
                    self.trace.reached(struck);
                    self.push_input(at, MemberInput::Zab(Input::Admin(admin)));
                }
            }
            Fault::Succession => self.succession(rng),
            Fault::RollingRestart => {
                let mut ids = self.server_ids();
                rng.shuffle(&mut ids);
                let gap = self.duration(rng);
                self.trace.reached(struck);
                for (turn, id) in ids.into_iter().enumerate() {
                    self.schedule.after(turn as u64 * gap, Event::Stop(id));
                }
            }
        }
        Ok(())
    }

    /// Plans a fault of a running server's disk, for one of its next operations.
    fn plan(&mut self, rng: &mut Rng, within: u64, plan: Plan) {
        if let Some(id) = self.any_running(rng) {
            self.server_mut(id).disk.plan(rng.below(within), plan);
        }
    }

    pub(crate) fn pause(&mut self, id: ServerId, until: Micros, rng: &mut Rng) {
        let now = self.schedule.now();
        let at = self.process_of(id).expect("it runs");
        let server = self.server_mut(id);
        // A pause is not prolonged: what waits for its end keeps its order.
        if server.paused_until > now {
            return;
        }
        server.paused_until = until;
        self.tell(|| format!("{id:?} stands still until {} ms", until / MS));
        self.trace.reached(Fault::Pause.habit().struck);
        // Timers that ran out meanwhile may strike all at once.
        for _ in 0..rng.below(4) {
            self.schedule.at(until, Event::Input(at, Box::new(MemberInput::Zab(Input::Tick))));
        }
    }

    pub(crate) fn output_crash_strikes(&mut self, at: crate::world::ProcessRef) -> bool {
        let Some(process) = self.process_mut(at) else { return false };
        match &mut process.crash_after {
            Some(0) => {
                self.trace.reached(Fault::OutputCrash.habit().struck);
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    // ---- the network ----

    fn partition(&mut self, rng: &mut Rng) {
        let ids = self.server_ids();
        if ids.len() < 2 {
            return;
        }
        let leader = self.leader();
        let one = if rng.chance(500) { leader } else { None };
        let one = one.unwrap_or_else(|| *rng.pick(&ids));
        let other = *rng.pick(&ids);
        let kind = rng.below(6);
        let halves: Vec<bool> = ids.iter().map(|_| rng.chance(500)).collect();
        let mut blocked = Vec::new();
        for (i, a) in ids.iter().enumerate() {
            for (j, b) in ids.iter().enumerate() {
                let cut = a != b
                    && match kind {
                        // One is alone.
                        0 => *a == one || *b == one,
                        // One hears nobody, and one is heard by nobody.
                        1 => *b == one,
                        2 => *a == one,
                        // Two groups.
                        3 => halves[i] != halves[j],
                        // The leader does not hear one follower, which hears it.
                        4 => *a == other && Some(*b) == leader,
                        // A ring: everybody sees neighbours only, so everybody sees a majority, each another one.
                        _ => ids.len() > 3 && !matches!(i.abs_diff(j), d if d == 1 || d == ids.len() - 1),
                    };
                if cut {
                    blocked.push((*a, *b));
                }
            }
        }
        if blocked.is_empty() {
            return;
        }
        self.trace.reached(Fault::Partition.habit().struck);
        self.trace.reached(match kind {
            0 => "partition: one alone",
            1 => "partition: one hears nobody",
            2 => "partition: one is heard by nobody",
            3 => "partition: two groups",
            4 => "partition: a follower is not heard by its leader",
            _ => "partition: ring",
        });
        if rng.chance(500) {
            for (from, to) in &blocked {
                if let Some(stream) = self.network.stream(*from, *to) {
                    self.break_stream(stream, None);
                }
            }
        }
        let duration = self.duration(rng);
        self.block(blocked, duration);
    }

    /// Cuts servers off one after the other, and lets them back in another order.
    fn clog(&mut self, rng: &mut Rng) {
        let ids = self.server_ids();
        let mut order = ids.clone();
        rng.shuffle(&mut order);
        order.truncate(1 + rng.below(ids.len() as u64) as usize);
        if ids.len() < 2 {
            return;
        }
        self.trace.reached(Fault::Clog.habit().struck);
        let all = self.duration(rng);
        for (turn, id) in order.iter().enumerate() {
            let links = |peer: &ServerId| [(*id, *peer), (*peer, *id)];
            let blocked = ids.iter().filter(|peer| *peer != id).flat_map(links).collect();
            let begins = all * turn as u64 / order.len() as u64;
            self.schedule.after(begins, Event::Block(blocked, all - begins + rng.below(all)));
        }
    }

    /// One link goes on and off.
    fn flap(&mut self, rng: &mut Rng) {
        let ids = self.server_ids();
        let (a, b) = (*rng.pick(&ids), *rng.pick(&ids));
        if a == b {
            return;
        }
        self.trace.reached(Fault::Flap.habit().struck);
        let blocked = if rng.chance(500) { vec![(a, b), (b, a)] } else { vec![(a, b)] };
        let mut begins = 0;
        for _ in 0..2 + rng.below(8) {
            let (off, on) = (self.duration(rng) / 8, self.duration(rng) / 8);
            self.schedule.after(begins, Event::Block(blocked.clone(), off));
            begins += off + on;
        }
    }

    /// Blocks directions for a while.
    pub(crate) fn block(&mut self, blocked: Vec<(ServerId, ServerId)>, duration: Micros) {
        if self.stage != Stage::Safety {
            return;
        }
        self.tell(|| format!("blocked for {} ms: {blocked:?}", duration / MS));
        for (from, to) in &blocked {
            self.network.block(*from, *to);
        }
        self.schedule.after(duration, Event::Heal(blocked));
    }

    pub(crate) fn heal(&mut self, blocked: Vec<(ServerId, ServerId)>) {
        for (from, to) in blocked {
            if let Some((stream, side, held)) = self.network.unblock(from, to) {
                for _ in 0..held {
                    let delay = self.network.delay();
                    self.schedule.after(delay, Event::Deliver(stream, side));
                }
            }
        }
    }

    // ---- copies that are lost ----

    /// What a server's folder is worth.
    fn membership(&self, id: ServerId) -> Option<Membership> {
        self.checks.ghost.server(id).identity.map(|i| i.membership)
    }

    /// Whether any server took part in anything yet.
    fn begun(&self) -> bool {
        self.server_ids().iter().any(|s| self.membership(*s).is_some_and(|m| m != Membership::Empty))
    }

    /// Whether the fault model allows that this server's copy is lost now: never may a majority of voters have lost
    /// theirs and not learned everything again (P9).
    pub(crate) fn may_lose(&mut self, id: ServerId) -> bool {
        let lost = self
            .server_ids()
            .into_iter()
            .filter(|s| self.options.is_voter(*s))
            .filter(|s| {
                let server = &self.servers[s];
                // Who has the wrong tree will be told to begin anew.
                let loses = *s == id || server.spoiled || server.is_changed();
                loses || self.membership(*s) != Some(Membership::Member)
            })
            .count();
        let (voters, spare) = (self.options.voters as usize, self.options.voters as usize - self.options.majority());
        // Somebody must be left who knows that there was something: else nobody can refuse.
        let knows = |s: &ServerId| {
            let ghost = self.checks.ghost.server(*s);
            *s != id && ghost.counts() && !self.servers[s].spoiled && ghost.promise.epoch > 0
        };
        let overdraws = self.options.faults.overdraw && lost < voters && self.server_ids().iter().any(knows);
        let may = !self.options.is_voter(id) || !self.begun() || lost <= spare || overdraws;
        if may && self.options.is_voter(id) && self.begun() && lost > spare {
            self.trace.reached("more copies lost than the model allows");
        }
        if !may {
            self.trace.reached("copy kept: the budget is spent");
        }
        may
    }

    pub(crate) fn is_changed(&self, id: ServerId) -> bool {
        self.servers[&id].is_changed()
    }

    /// Changes a tree while its server is stopped for a moment. The others must be a majority.
    fn change_tree(&mut self, rng: &mut Rng, struck: &'static str) -> Check {
        let ids = self.server_ids();
        let id = *rng.pick(&ids);
        let by_ms = 1 + rng.below(1_000) as i64;
        let takes_part = self.membership(id) == Some(Membership::Member) && !self.servers[&id].spoiled;
        if self.options.faults.overdraw || !takes_part || self.is_changed(id) || !self.may_lose(id) {
            return Ok(());
        }
        self.server_mut(id).back_soon = true;
        self.crash(id, "for a moment")?;
        if !self.server_mut(id).disk.change_tree(by_ms) {
            return Ok(());
        }
        self.tell(|| format!("the tree of {id:?} is another now"));
        self.trace.reached(struck);
        if rng.chance(700) {
            self.part_witnesses(id, rng);
        }
        Ok(())
    }

    /// Who has the wrong tree is with a part of the others long enough for them to see it; then with the rest, who have missed
    /// all that, and may need a snapshot.
    fn part_witnesses(&mut self, id: ServerId, rng: &mut Rng) {
        let ids = self.server_ids();
        let mut others: Vec<ServerId> = ids.iter().copied().filter(|s| *s != id && self.options.is_voter(*s)).collect();
        rng.shuffle(&mut others);
        let (witnesses, away) = others.split_at(others.len() / 2);
        let around = |group: &[ServerId]| -> Vec<(ServerId, ServerId)> {
            let outside = |s: &&ServerId| !group.contains(s);
            let pairs = group.iter().flat_map(|one| ids.iter().filter(outside).map(|other| (*one, *other)));
            pairs.flat_map(|(one, other)| [(one, other), (other, one)]).collect()
        };
        let patience = self.options.sync_timeout_ms * MS;
        let away_for = rng.between(3 * patience, 6 * patience);
        let overlap = rng.below(2 * patience);
        let (first, then) = (around(away), around(witnesses));
        let lasts = rng.between(3 * patience, 8 * patience);
        self.block(first, away_for);
        self.schedule.after(away_for - overlap, Event::Block(then, lasts));
    }

    fn lose_folder(&mut self, rng: &mut Rng, struck: &'static str) -> Check {
        let ids = self.server_ids();
        let id = *rng.pick(&ids);
        if !self.may_lose(id) {
            return Ok(());
        }
        self.crash(id, "its disk is lost")?;
        self.tell(|| format!("{id:?} lost its folder"));
        self.trace.reached(struck);
        self.wipe(id)
    }

    /// Empties a stopped server's folder.
    pub(crate) fn wipe(&mut self, id: ServerId) -> Check {
        let server = self.server_mut(id);
        server.disk.wipe();
        server.spoiled = false;
        server.backup = None;
        self.checks.on_wiped(id)
    }

    /// A server's machine is given up; another one, with other clocks and an empty disk, gets its number.
    pub(crate) fn replace(&mut self, id: ServerId, rng: &mut Rng, struck: &'static str) -> Check {
        if !self.may_lose(id) {
            return Ok(());
        }
        self.crash(id, "to be replaced")?;
        self.wipe(id)?;
        self.trace.reached(struck);
        self.tell(|| format!("{id:?} is another machine from now on"));
        let (now, offset) = (self.schedule.now(), rng.below(1_000_000));
        self.server_mut(id).clock.replace(now, offset);
        Ok(())
    }

    /// Damages what a stopped server has on its disk. What the damage is worth is asked of a copy; damage beyond the
    /// budget is not done.
    fn damage(&mut self, rng: &mut Rng, struck: &'static str, hurt: Hurt) -> Check {
        let ids = self.server_ids();
        let id = *rng.pick(&ids);
        if !self.begun() || self.servers[&id].spoiled {
            return Ok(());
        }
        self.crash(id, "its machine stops")?;
        let sound = self.servers[&id].disk.fork();
        let before = sound.fork().start(None);
        let Some(what) = self.server_mut(id).disk.damage(hurt, rng) else { return Ok(()) };
        let after = self.servers[&id].disk.fork().start(None);
        let voter = self.options.is_voter(id);
        let worth = compare(&before, &after);
        self.tell(|| format!("{id:?}: {}; worth: {worth:?}", what.text));
        let allowed = match worth {
            Worth::Everything => true,
            Worth::NothingAndKnown => self.may_lose(id),
            Worth::LessAndUnknown { end, promise_kept } => {
                if !what.last_frame {
                    return Err(Violation {
                        invariant: "damage is noticed",
                        text: format!("{id:?}: {}: the next start would go on without a word from {end:?}", what.text),
                    });
                }
                // Nobody can tell it from a torn write. That is within the model only if nothing depends on it.
                promise_kept && (!voter || self.others_hold(id, end) && self.may_lose(id))
            }
        };
        if !allowed {
            self.trace.reached("damage beyond the budget, not done");
            self.server_mut(id).disk = sound;
            return Ok(());
        }
        self.trace.reached(struck);
        self.trace.reached(match worth {
            Worth::Everything => "damage: nothing was lost",
            Worth::NothingAndKnown => "damage: found at start",
            Worth::LessAndUnknown { .. } => "damage: last frame taken for a torn write",
        });
        self.server_mut(id).spoiled = true;
        Ok(())
    }

    /// Whether a majority holds what is committed without this server, and all it held was committed.
    fn others_hold(&self, id: ServerId, end: corral_core::zab::io::Position) -> bool {
        let ghost = &self.checks.ghost;
        let head = ghost.head();
        let holders = ghost.servers().filter(|(s, g)| *s != id && g.counts() && g.disk.holds(head)).count();
        ghost.is_committed(end) && holders >= self.options.majority()
    }

    /// Makes a copy of a folder; or stops the server and puts the copy back, if every other voter remembers a later
    /// start of that disk.
    fn old_folder(&mut self, rng: &mut Rng, struck: &'static str) -> Check {
        let ids = self.server_ids();
        let id = *rng.pick(&ids);
        if self.servers[&id].spoiled {
            return Ok(());
        }
        let Some(backup) = self.servers[&id].backup.clone() else {
            let live = self.server_mut(id).process.as_mut().map(|p| p.apply.store().clone());
            let ghost = self.checks.ghost.server(id).clone();
            let server = self.server_mut(id);
            server.backup = Some(server.disk.backup(live, ghost));
            self.tell(|| format!("the folder of {id:?} is copied"));
            return Ok(());
        };
        let Some(old) = backup.identity() else { return Ok(()) };
        let remembered = ids
            .iter()
            .filter(|s| **s != id && self.options.is_voter(**s))
            .all(|s| self.servers[s].disk.remembers(id, old.instance) > old.start_count + 1);
        let alone = self.options.voters == 1 && self.options.is_voter(id);
        if alone || !remembered || !self.may_lose(id) {
            self.trace.reached("old folder not put back: it would not be recognised");
            return Ok(());
        }
        self.crash(id, "its folder is restored")?;
        self.tell(|| format!("{id:?} has its folder of start {} again", old.start_count));
        self.trace.reached(struck);
        self.checks.on_restored(id, backup.ghost.clone());
        let server = self.server_mut(id);
        server.disk.restore(&backup);
        server.spoiled = true;
        Ok(())
    }

    /// The faults are over.
    pub(crate) fn calm(&mut self) -> Check {
        let now = self.schedule.now();
        self.stage = Stage::Progress { since: self.checks.ghost.head().zxid };
        let mut rng = Rng::stream(self.options.seed, "calm");
        let ids = self.server_ids();
        let all_begun = ids.iter().all(|s| self.membership(*s).is_some_and(|m| m != Membership::Empty));
        self.ambush = None;
        let last_election = all_begun && rng.chance(250);
        if last_election {
            self.last_election(&mut rng);
        }
        // What was begun on a slow disk or link before may still take its time, and who stands still does so to the end:
        // what waits for it keeps its order.
        let mix = &self.options.faults;
        let slow = |kind, longest| if mix.every_ms.contains_key(&kind) { longest } else { 0 };
        let stands_until = |s: &crate::server::Server| s.paused_until.max(s.store_stalled_until);
        let pauses = self.servers.values().map(|s| stands_until(s).saturating_sub(now)).max().unwrap_or(0);
        self.calm_at = now + slow(Fault::SlowDisk, mix.slow_disk) + slow(Fault::SlowLink, mix.slow_link) + pauses;
        let patience = PATIENCE * (self.options.sync_timeout_ms + self.options.init_timeout_ms) * MS;
        self.deadline = self.calm_at + patience;
        self.network.calm();
        self.install_crash = None;
        // Some may stay dead, if enough remain that may vote.
        if all_begun && !last_election && rng.chance(600) {
            let mut order = ids.clone();
            rng.shuffle(&mut order);
            if rng.chance(600) {
                // Those remain whom the leader had to do without when its epoch began.
                let leader = self.leader();
                let epoch = leader.and_then(|id| self.servers[&id].process.as_ref()).map(|p| p.status.epoch);
                order.sort_by_key(|id| {
                    (Some(*id) == leader, epoch.is_some() && self.uncounted.get(id).copied() == epoch)
                });
            }
            for id in order {
                if self.may_retire(id) && rng.chance(500) {
                    self.retire(id)?;
                }
            }
        }
        for id in ids.clone() {
            let server = self.servers.get_mut(&id).expect("servers are fixed");
            // A pause goes on to its end: what waits for that keeps its order.
            server.slow_disk_until = now;
            server.store_stalled_until = now;
            server.disk_full_until = now;
            server.clock.set_rate(now, 1000);
            server.disk.withdraw();
            if let Some(process) = &mut server.process {
                process.crash_after = None;
                process.crash_at = None;
            } else {
                self.start_after(id, 0);
            }
        }
        for client in &mut self.clients {
            client.silent_until = client.silent_until.min(now);
        }
        for from in &ids {
            for to in &ids {
                while self.network.is_blocked(*from, *to) {
                    self.heal(vec![(*from, *to)]);
                }
            }
        }
        self.tell(|| "the faults are over".to_owned());
        self.schedule.after(self.options.sync_timeout_ms * MS / 2, Event::Probe);
        Ok(())
    }

    /// Whether enough remain that may vote if this one stays dead.
    pub(crate) fn may_retire(&self, id: ServerId) -> bool {
        let able = |s: &ServerId| {
            *s != id
                && !self.servers[s].retired
                && self.options.is_voter(*s)
                && !self.servers[s].spoiled
                && !self.is_changed(*s)
                && self.membership(*s) == Some(Membership::Member)
        };
        self.server_ids().iter().filter(|s| able(s)).count() >= self.options.majority()
    }

    pub(crate) fn retire(&mut self, id: ServerId) -> Check {
        self.trace.reached("a server stays dead");
        self.crash(id, "for good")?;
        self.server_mut(id).retired = true;
        Ok(())
    }

    /// Is it as it should be by now?
    pub(crate) fn probe(&mut self) -> Check {
        let head = self.checks.ghost.head().zxid;
        if self.stage != Stage::Safety && self.copies() < self.options.majority() {
            return self.refused(head);
        }
        self.operator_decides(head)?;
        let mut invariant = "I28 liveness";
        let reason = match self.stage {
            Stage::Progress { since } => match self.lacks_progress(since, head) {
                None => {
                    self.tell(|| format!("progress: {head:?} is committed"));
                    self.stage = Stage::Rest;
                    for client in &mut self.clients {
                        client.stopped = true;
                    }
                    None
                }
                reason => reason,
            },
            Stage::Rest => match self.lacks_rest(head).or_else(|| self.lacks_last_words()) {
                None => match self.lacks_equal_trees() {
                    None => {
                        self.stage = Stage::Over;
                        return Ok(());
                    }
                    reason => {
                        invariant = trees::NAME;
                        reason
                    }
                },
                reason => reason,
            },
            Stage::Safety | Stage::Over => None,
        };
        if self.schedule.now() > self.deadline {
            let state: Vec<String> = self
                .servers
                .values()
                .map(|s| match &s.process {
                    None => format!("{:?} is down", s.id),
                    Some(p) => format!(
                        "{:?} {:?}/{:?} epoch {} leader {:?} log {:?} durable {:?} committed {:?} applied {:?} {:?} [{}]",
                        s.id,
                        p.status.role,
                        p.status.phase,
                        p.status.epoch,
                        p.status.leader,
                        p.status.last.zxid,
                        p.status.durable,
                        p.status.committed,
                        p.status.applied,
                        p.status.identity.membership,
                        p.member.status().waiting_for
                    ),
                })
                .collect();
            return Err(Violation { invariant, text: format!("{}; {}", reason.unwrap_or_default(), state.join("; ")) });
        }
        self.schedule.after(self.options.sync_timeout_ms * MS / 2, Event::Probe);
        Ok(())
    }

    /// As long as trees differ, and those who are up to date are no majority of equal ones, nobody gets a snapshot; also not
    /// who would decide it. Then it takes somebody who empties the folders of those who are wrong, and starts those anew who
    /// know of it (ADR 12).
    fn operator_decides(&mut self, head: Zxid) -> Check {
        let patience = 10 * self.options.sync_timeout_ms * MS;
        if self.stage == Stage::Safety || self.schedule.now() < self.calm_at + patience {
            return Ok(());
        }
        let leader = self.leader().and_then(|id| self.servers[&id].process.as_ref());
        let doubts = leader.is_some_and(|p| p.status.doubt > Zxid::ZERO);
        let waits = |s: &Server| s.process.as_ref().is_some_and(|p| p.status.applied < head);
        if !doubts || !self.servers.values().any(|s| !s.is_changed() && waits(s)) {
            return Ok(());
        }
        self.trace.reached("trees differ: an operator decided");
        let wrong = |s: &&Server| !s.retired && s.is_changed();
        let wrong: Vec<ServerId> = self.servers.values().filter(wrong).map(|s| s.id).collect();
        for id in wrong {
            self.crash(id, "an operator empties its folder")?;
            self.wipe(id)?;
        }
        let knows = |s: &&Server| s.process.as_ref().is_some_and(|p| p.status.doubt > Zxid::ZERO);
        let know: Vec<ServerId> = self.servers.values().filter(knows).map(|s| s.id).collect();
        for id in know {
            self.crash(id, "an operator starts it anew")?;
        }
        Ok(())
    }

    /// What is not as P35 wants it when everything else is at rest.
    fn lacks_equal_trees(&self) -> Option<String> {
        let mut running = self.servers.values().filter_map(|s| Some((s, s.process.as_ref()?)));
        running.find_map(|(server, process)| match (process.tree_is_changed(), process.status.doubt) {
            (true, _) => Some(format!("{:?} goes on with a tree that differs from the others'", server.id)),
            (false, Zxid::ZERO) => None,
            (false, doubt) => Some(format!("{:?} still takes the trees for different, as at {doubt:?}", server.id)),
        })
    }

    /// Voters that know that they know everything they ever promised and acknowledged.
    fn copies(&self) -> usize {
        let ids = self.server_ids();
        let begun = self.begun();
        let sound =
            |s: &&ServerId| !(self.servers[s].spoiled || begun && self.membership(**s) != Some(Membership::Member));
        ids.iter().filter(|s| self.options.is_voter(**s)).filter(sound).count()
    }

    /// More copies were lost than the model allows. Nobody may go on by itself, however long it waits.
    fn refused(&mut self, head: Zxid) -> Check {
        if self.schedule.now() < self.calm_at + 3 * self.options.sync_timeout_ms * MS {
            // An acknowledgement may still be on its way whose disk is gone.
            self.stage = Stage::Progress { since: head };
        } else if let Stage::Progress { since } = self.stage
            && head > since
        {
            return Err(Violation {
                invariant: "no progress from doubt",
                text: format!("{head:?} was committed after {since:?}; a majority of the voters lost its memory"),
            });
        }
        if self.schedule.now() > self.calm_at + 10 * self.options.sync_timeout_ms * MS {
            self.trace.reached("refused to go on without a majority that remembers");
            self.stage = Stage::Over;
            return Ok(());
        }
        self.schedule.after(self.options.sync_timeout_ms * MS / 2, Event::Probe);
        Ok(())
    }

    fn lacks_progress(&self, since: Zxid, head: Zxid) -> Option<String> {
        let leads = self.servers.values().any(|s| {
            s.process.as_ref().is_some_and(|p| p.status.role == Role::Leading && p.status.phase == Phase::Broadcast)
        });
        if !leads {
            return Some("no leader is established".to_owned());
        }
        if head <= since {
            return Some(format!("nothing was committed after {since:?}"));
        }
        None
    }

    fn lacks_rest(&self, head: Zxid) -> Option<String> {
        for (index, client) in self.clients.iter().enumerate() {
            if !client.is_idle() {
                return Some(format!(
                    "client {index} still waits: {} in flight, {} unanswered",
                    client.pending.len(),
                    client.unanswered.len()
                ));
            }
        }
        for server in self.servers.values() {
            let Some(process) = &server.process else { continue };
            if process.status.applied != head {
                return Some(format!("{:?} has executed {:?} of {head:?}", server.id, process.status.applied));
            }
        }
        None
    }
}
