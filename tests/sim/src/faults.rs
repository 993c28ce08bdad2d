//! What goes wrong, how often, and within which budget; and the end of it: the liveness phase.

use corral_core::member::MemberInput;
use corral_core::storage::log_device::Fault as DeviceFault;
use corral_core::zab::io::{Admin, Input, Membership, Phase, Role};
use corral_proto::{ServerId, Zxid};

use crate::checks::{Check, Violation};
use crate::schedule::{MS, Micros};
use crate::world::{Event, Stage, World};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A process dies between two events.
    Crash,
    /// A server loses power in the middle of an operation of its log.
    DiskCrash,
    /// A process dies between two outputs of a step.
    OutputCrash,
    /// All servers lose power.
    PowerLoss,
    /// A process stands still.
    Pause,
    /// Directions between servers are blocked.
    Partition,
    /// A stream breaks.
    Reset,
    /// A data folder is lost.
    Wipe,
    /// A disk is slow for a while.
    SlowDisk,
    /// An operator asks for another leader.
    Admin,
}

const ALL: [Fault; 10] = [
    Fault::Crash,
    Fault::DiskCrash,
    Fault::OutputCrash,
    Fault::PowerLoss,
    Fault::Pause,
    Fault::Partition,
    Fault::Reset,
    Fault::Wipe,
    Fault::SlowDisk,
    Fault::Admin,
];

/// Times the liveness phase may take, in synchronization time-outs (I28).
const PATIENCE: u64 = 60;

impl World {
    fn mean_ms(&self, fault: Fault) -> u64 {
        let mix = &self.options.faults;
        match fault {
            Fault::Crash => mix.crash_ms,
            Fault::DiskCrash => mix.disk_crash_ms,
            Fault::OutputCrash => mix.output_crash_ms,
            Fault::PowerLoss => mix.power_loss_ms,
            Fault::Pause => mix.pause_ms,
            Fault::Partition => mix.partition_ms,
            Fault::Reset => mix.reset_ms,
            Fault::Wipe => mix.wipe_ms,
            Fault::SlowDisk => mix.slow_disk_ms,
            Fault::Admin => mix.admin_ms,
        }
    }

    pub(crate) fn schedule_faults(&mut self) {
        for fault in ALL {
            self.schedule_fault(fault);
        }
    }

    fn schedule_fault(&mut self, fault: Fault) {
        let mean = self.mean_ms(fault);
        if mean > 0 {
            let delay = self.fault_rng.below(2 * mean * MS);
            self.schedule.after(delay, Event::Fault(fault));
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
            self.clients[index].silent_until = now + self.silence();
            // Half of the time the connection stays, and nothing comes over it.
            if self.fault_rng.chance(500) {
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
    fn duration(&mut self) -> Micros {
        let longest = self.options.sync_timeout_ms * MS * 4;
        self.fault_rng.magnitude(5 * MS, longest)
    }

    fn any_running(&mut self) -> Option<ServerId> {
        let running = self.running();
        // The leader is the most interesting victim.
        if self.fault_rng.chance(400) {
            return self.leader();
        }
        (!running.is_empty()).then(|| *self.fault_rng.pick(&running))
    }

    /// A fault's time has come.
    pub(crate) fn strike(&mut self, fault: Fault) -> Check {
        if self.stage != Stage::Safety {
            return Ok(());
        }
        self.schedule_fault(fault);
        match fault {
            Fault::Crash => {
                if let Some(id) = self.any_running() {
                    return self.crash(id, "killed");
                }
            }
            Fault::DiskCrash => {
                if let Some(id) = self.any_running() {
                    let skip = self.fault_rng.below(10);
                    self.servers[&id].disk.device().fail_after(skip, DeviceFault::PowerCut);
                }
            }
            Fault::OutputCrash => {
                if let Some(id) = self.any_running() {
                    let after = self.fault_rng.below(10);
                    let server = self.servers.get_mut(&id).expect("servers are fixed");
                    server.process.as_mut().expect("it runs").crash_after = Some(after);
                }
            }
            Fault::PowerLoss => {
                self.trace.reached("whole ensemble lost power");
                for id in self.running() {
                    self.crash(id, "everybody loses power")?;
                }
            }
            Fault::Pause => {
                if let Some(id) = self.any_running() {
                    let until = self.schedule.now() + self.duration();
                    self.say(|| format!("{id:?} stands still until {} ms", until / MS));
                    let now = self.schedule.now();
                    let server = self.servers.get_mut(&id).expect("servers are fixed");
                    // A pause is not prolonged: what waits for its end keeps its order.
                    if server.paused_until <= now {
                        server.paused_until = until;
                    }
                }
            }
            Fault::Partition => self.partition(),
            Fault::Reset => {
                let streams = self.network.unbroken();
                if !streams.is_empty() {
                    let stream = *self.fault_rng.pick(&streams);
                    self.break_stream(stream, None);
                }
            }
            Fault::Wipe => return self.wipe(),
            Fault::SlowDisk => {
                if let Some(id) = self.any_running() {
                    let until = self.schedule.now() + self.duration();
                    self.servers.get_mut(&id).expect("servers are fixed").slow_disk_until = until;
                }
            }
            Fault::Admin => {
                let target = ServerId(1 + self.fault_rng.below(self.options.voters));
                let transfer = self.fault_rng.chance(600);
                if let Some(at) = self.leader().and_then(|id| self.process_of(id)) {
                    let admin = if transfer { Admin::Transfer(target) } else { Admin::StepDown };
                    self.say(|| format!("an operator asks {:?}: {admin:?}", at.server));
                    self.push_input(at, MemberInput::Zab(Input::Admin(admin)));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn output_crash_strikes(&mut self, at: crate::world::ProcessRef) -> bool {
        let Some(process) = self.process_mut(at) else { return false };
        match &mut process.crash_after {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    fn partition(&mut self) {
        let ids = self.server_ids();
        if ids.len() < 2 {
            return;
        }
        let one = if self.fault_rng.chance(500) { self.leader() } else { None };
        let one = one.unwrap_or_else(|| *self.fault_rng.pick(&ids));
        let mut blocked = Vec::new();
        let kind = self.fault_rng.below(5);
        let halves: Vec<bool> = ids.iter().map(|_| self.fault_rng.chance(500)).collect();
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
                        // A ring: everybody sees neighbours only.
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
        let duration = self.duration();
        self.say(|| format!("blocked for {} ms: {blocked:?}", duration / MS));
        self.trace.reached(match kind {
            0 => "partition: one alone",
            1 => "partition: one hears nobody",
            2 => "partition: one is heard by nobody",
            3 => "partition: two groups",
            _ => "partition: ring",
        });
        let reset = self.fault_rng.chance(500);
        for (from, to) in &blocked {
            self.network.block(*from, *to);
            if reset && let Some(stream) = self.network.stream(*from, *to) {
                self.break_stream(stream, None);
            }
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

    /// What a server's folder is worth.
    fn membership(&self, id: ServerId) -> Option<Membership> {
        self.checks.ghost.server(id).identity.map(|i| i.membership)
    }

    /// Loses a folder, if the fault model allows it: never may a majority of voters have lost theirs and not learned
    /// everything again (P9).
    fn wipe(&mut self) -> Check {
        let ids = self.server_ids();
        let id = *self.fault_rng.pick(&ids);
        let lost = ids
            .iter()
            .filter(|s| self.options.is_voter(**s))
            .filter(|s| **s == id || self.membership(**s) != Some(Membership::Member))
            .count();
        let begun = ids.iter().any(|s| self.membership(*s).is_some_and(|m| m != Membership::Empty));
        let allowed = self.options.voters as usize - self.options.majority();
        if self.options.is_voter(id) && begun && lost > allowed {
            self.trace.reached("folder kept: the budget is spent");
            return Ok(());
        }
        self.crash(id, "its disk is lost")?;
        self.say(|| format!("{id:?} lost its folder"));
        self.trace.reached("folder lost");
        self.servers.get_mut(&id).expect("servers are fixed").disk.wipe();
        self.checks.on_wiped(id)?;
        let delay = self.fault_rng.below(self.options.faults.restart_ms * MS);
        self.start_after(id, delay);
        Ok(())
    }

    /// The faults are over.
    pub(crate) fn calm(&mut self) -> Check {
        let now = self.schedule.now();
        self.stage = Stage::Progress { since: self.checks.ghost.head().zxid };
        self.deadline = now + PATIENCE * (self.options.sync_timeout_ms + self.options.init_timeout_ms) * MS;
        self.calm_at = now;
        self.network.calm();
        let ids = self.server_ids();
        // Some may stay dead, if enough remain that may vote.
        let all_begun = ids.iter().all(|s| self.membership(*s).is_some_and(|m| m != Membership::Empty));
        if all_begun && self.fault_rng.chance(300) {
            let mut order = ids.clone();
            self.fault_rng.shuffle(&mut order);
            for id in order {
                let able = |s: &ServerId| {
                    *s != id
                        && !self.servers[s].retired
                        && self.options.is_voter(*s)
                        && self.membership(*s) == Some(Membership::Member)
                };
                let left = ids.iter().filter(|s| able(s)).count();
                if left >= self.options.majority() && self.fault_rng.chance(500) {
                    self.trace.reached("a server stays dead");
                    self.crash(id, "for good")?;
                    self.servers.get_mut(&id).expect("servers are fixed").retired = true;
                }
            }
        }
        for id in ids.clone() {
            let server = self.servers.get_mut(&id).expect("servers are fixed");
            // A pause goes on to its end: what waits for that keeps its order.
            server.slow_disk_until = now;
            server.disk.device().heal();
            if let Some(process) = &mut server.process {
                process.crash_after = None;
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
        self.say(|| "the faults are over".to_owned());
        self.schedule.after(self.options.sync_timeout_ms * MS / 2, Event::Probe);
        Ok(())
    }

    /// Is it as it should be by now?
    pub(crate) fn probe(&mut self) -> Check {
        let head = self.checks.ghost.head().zxid;
        let reason = match self.stage {
            Stage::Progress { since } => match self.lacks_progress(since, head) {
                None => {
                    self.say(|| format!("progress: {head:?} is committed"));
                    self.stage = Stage::Rest;
                    for client in &mut self.clients {
                        client.stopped = true;
                    }
                    None
                }
                reason => reason,
            },
            Stage::Rest => match self.lacks_rest(head).or_else(|| self.lacks_last_words()) {
                None => {
                    self.stage = Stage::Over;
                    return Ok(());
                }
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
                        p.status.waiting_for
                    ),
                })
                .collect();
            return Err(Violation {
                invariant: "I28 liveness",
                text: format!("{}; {}", reason.unwrap_or_default(), state.join("; ")),
            });
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
