//! Swarm options: every seed draws its own sizes, times and mix of faults. Many runs with few kinds of faults each find
//! more than one run with all of them; many short ones and a few long ones find more than as many of middling length.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use corral_core::zab::io::{MemberKind, Options as ZabOptions};
use corral_core::zab::quorum::QuorumSet;
use corral_proto::ServerId;

use crate::faults::{CATALOGUE, Fault, FaultId, Habit};
use crate::rng::Rng;
use crate::schedule::{MS, Micros};

/// What one run is made of. Everything in it follows from the seed.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// The seed.
    pub seed: u64,
    /// Servers that vote: 1, 3 or 5 (sometimes 2 or 4).
    pub voters: u64,
    /// Servers that only learn.
    pub observers: u64,
    /// Length of the phase with faults, virtual ms.
    pub safety_ms: u64,

    /// See [`ZabOptions::sync_timeout_ms`].
    pub sync_timeout_ms: u64,
    /// See [`ZabOptions::init_timeout_ms`].
    pub init_timeout_ms: u64,
    /// See [`ZabOptions::ping_interval_ms`].
    pub ping_interval_ms: u64,
    /// See [`ZabOptions::election_quiet_ms`].
    pub election_quiet_ms: u64,
    /// See [`ZabOptions::tail_cache_bytes`].
    pub tail_cache_bytes: usize,
    /// See [`ZabOptions::window_bytes`].
    pub window_bytes: usize,
    /// See [`ZabOptions::learner_window_bytes`].
    pub learner_window_bytes: usize,
    /// See [`ZabOptions::message_bytes`].
    pub message_bytes: usize,
    /// See [`ZabOptions::snapshot_threshold_bytes`].
    pub snapshot_threshold_bytes: u64,
    /// See [`ZabOptions::counter_limit`].
    pub counter_limit: u32,

    /// Size of a log segment.
    pub segment_bytes: usize,
    /// Log kept below what the store has persisted.
    pub retention_bytes: u64,
    /// The store persists itself about every so many entries.
    pub flush_entries: u64,

    /// Usual delay of a message, from and to.
    pub delay: (Micros, Micros),
    /// The same between clients and servers.
    pub client_delay: (Micros, Micros),
    /// Each direction between two servers has its own.
    pub links_differ: bool,
    /// Of a thousand messages, so many take up to `spike` longer.
    pub spike_per_mille: u64,
    /// See `spike_per_mille`.
    pub spike: Micros,
    /// Longest ordinary wait of a server's threads before they take what is queued.
    pub thread_delay: Micros,
    /// Longest ordinary wait of the task of a client's connection.
    pub task_delay: Micros,
    /// Longest ordinary time of a log write.
    pub write_time: Micros,
    /// Longest ordinary time of one turn of the store.
    pub store_time: Micros,
    /// Longest ordinary time of a snapshot's transfer.
    pub transfer_time: Micros,
    /// Of a thousand messages, so many go through the codec.
    pub codec_per_mille: u64,

    /// The faults of this run.
    pub faults: FaultMix,
    /// What clients do.
    pub load: Load,
    /// Clients that follow the change feed.
    pub followers: u64,
    /// What a server remembers of it: bytes, and ms.
    pub feed: (u64, u64),
    /// What is left out.
    pub reduction: Reduction,
}

/// Which faults strike, and how they do.
#[derive(Clone, Debug, Default)]
pub struct FaultMix {
    /// Mean virtual ms between two faults of a kind; a kind that is missing never strikes.
    pub every_ms: BTreeMap<Fault, u64>,
    /// Of a thousand starts, so many meet a fault of the disk while they recover.
    pub recovery_per_mille: u64,
    /// Longest wait before a crashed server starts again.
    pub restart_ms: u64,
    /// Longest time of one operation on a slow disk.
    pub slow_disk: Micros,
    /// Longest delay of a message on a slow link.
    pub slow_link: Micros,
    /// More copies are lost than the fault model allows, though never all: then the ensemble must refuse to go on.
    pub overdraw: bool,
    /// Speed of each server's monotonic clock, in thousandths of the true one; from and to.
    pub clock_rate: (u64, u64),
}

/// What is left out of a run, to find the smallest that still fails. What remains keeps its schedule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reduction {
    /// These faults do not strike.
    pub skip: BTreeSet<FaultId>,
    /// These clients do nothing.
    pub without_clients: BTreeSet<u64>,
    /// So many voters.
    pub voters: Option<u64>,
    /// So many observers.
    pub observers: Option<u64>,
    /// The phase with faults ends so early, virtual ms.
    pub safety_ms: Option<u64>,
}

/// What clients do.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// Clients with sessions.
    pub clients: u64,
    /// Mean ms between two requests of a client.
    pub think_ms: u64,
    /// Requests a client has outstanding at most.
    pub pipeline: u64,
    /// Znodes they fight over.
    pub paths: u64,
    /// Largest data of a znode.
    pub data_bytes: u64,
    /// Session timeout, ms.
    pub session_timeout_ms: u64,
    /// Mean ms between two cuts of a client's connection; 0: never.
    pub cut_ms: u64,
    /// Of a thousand clients, so many are ZooKeeper-style (no re-sending).
    pub wire_per_mille: u64,
    /// Of a thousand clients, so many only read.
    pub readers_per_mille: u64,
    /// Of a thousand answered writes, so many are told to another client, which looks at once.
    pub told_per_mille: u64,
    /// Of a thousand reads, so many ask for the latest state.
    pub linearizable_per_mille: u64,
    /// Mean ms between two silences of a client that outlast its session; 0: never.
    pub silence_ms: u64,
    /// Of a thousand cuts and silences, so many strike all clients at once.
    pub storm_per_mille: u64,
    /// Of a thousand times that a client asks, so many are bursts that may fill its pipeline.
    pub burst_per_mille: u64,
    /// Of a thousand writes, so many end the session.
    pub close_per_mille: u64,
    /// Of a thousand reads, so many arm a watch; of as many bursts, one arms a watch on every path.
    pub watch_per_mille: u64,
    /// Registers and locks: what happens to them is judged without zxids.
    pub registers: u64,
    /// Of a thousand requests, so many are for these.
    pub register_per_mille: u64,
    /// Of a thousand requests, so many create and delete under one znode.
    pub hot_per_mille: u64,
    /// Of a thousand requests, so many put into a queue, or take from it.
    pub queue_per_mille: u64,
    /// Most operations of a huge multi; 0: there is none.
    pub huge_multi_ops: u64,
    /// Of a thousand pieces of data, so many are nearly as large as they may be.
    pub large_per_mille: u64,
    /// Mean ms between two times in which a client does not read what it is sent; 0: never.
    pub stall_ms: u64,
    /// Bytes that may wait for a client that does not read, see [`corral_core::session::lane::OUTGOING_BYTES_MAX`].
    pub unread_bytes: usize,
}

impl Load {
    fn draw(rng: &mut Rng, sync_timeout_ms: u64, paths: u64) -> Load {
        let mut load = Load {
            clients: rng.between(1, 7),
            think_ms: rng.magnitude(2, 60),
            pipeline: rng.magnitude(1, 20),
            paths,
            data_bytes: rng.magnitude(1, 4_000),
            session_timeout_ms: sync_timeout_ms * rng.between(3, 10),
            cut_ms: if rng.chance(600) { sync_timeout_ms * rng.between(1, 10) } else { 0 },
            wire_per_mille: *rng.pick(&[0, 300, 1000]),
            readers_per_mille: *rng.pick(&[0, 400, 600]),
            told_per_mille: *rng.pick(&[0, 200, 700]),
            linearizable_per_mille: *rng.pick(&[0, 50, 150, 800]),
            silence_ms: if rng.chance(500) { sync_timeout_ms * rng.between(1, 10) } else { 0 },
            storm_per_mille: *rng.pick(&[0, 100, 300, 1000]),
            burst_per_mille: *rng.pick(&[20, 100, 100, 500]),
            close_per_mille: *rng.pick(&[5, 20, 100]),
            watch_per_mille: *rng.pick(&[0, 300, 300, 900]),
            registers: rng.between(1, 3),
            register_per_mille: *rng.pick(&[0, 50, 50, 100, 900]),
            hot_per_mille: *rng.pick(&[0, 0, 0, 300]),
            queue_per_mille: *rng.pick(&[0, 0, 0, 300]),
            huge_multi_ops: 0,
            large_per_mille: 0,
            stall_ms: if rng.chance(200) { sync_timeout_ms * rng.between(2, 10) } else { 0 },
            unread_bytes: *rng.pick(&[1_000, 10_000, 4 << 20]),
        };
        if load.think_ms < 10 {
            load.burst_per_mille = load.burst_per_mille.min(100);
        }
        // The rare and heavy ones; each by itself, so that no run takes long.
        match rng.below(20) {
            0 => {
                load.pipeline = rng.between(50, 300);
                load.clients = load.clients.min(3);
                load.think_ms = load.think_ms.max(40);
            }
            1 => load.huge_multi_ops = rng.between(60, 400),
            2 => {
                load.large_per_mille = 20;
                load.clients = load.clients.min(3);
                load.think_ms = load.think_ms.max(20);
            }
            _ => {}
        }
        load
    }
}

impl SimOptions {
    /// The options of a seed.
    pub fn draw(seed: u64) -> SimOptions {
        let mut rng = Rng::stream(seed, "options");
        let rng = &mut rng;
        let voters = *rng.pick(&[1, 2, 3, 3, 3, 3, 3, 3, 3, 4, 5, 5]);
        let sync_timeout_ms = *rng.pick(&[200, 300, 500, 1000]);
        let slow_network = rng.chance(200);
        let delay_high = if slow_network { sync_timeout_ms * MS / 8 } else { rng.magnitude(200, 5 * MS) };
        let delay = (delay_high / 20, delay_high);
        // Clients may be much nearer to their servers than these are to each other.
        let client_delay_high = if rng.chance(300) { delay_high } else { rng.magnitude(50, delay_high) };
        let paths = rng.magnitude(1, 30);
        let mut options = SimOptions {
            seed,
            voters,
            observers: *rng.pick(&[0, 0, 0, 1, 1, 2]),
            // A few time-outs most often, so that many runs fit; now and then many.
            safety_ms: sync_timeout_ms * if rng.chance(150) { rng.between(12, 40) } else { rng.between(3, 12) },
            sync_timeout_ms,
            init_timeout_ms: sync_timeout_ms * rng.between(2, 5),
            ping_interval_ms: (sync_timeout_ms / rng.between(2, 10)).max(20),
            election_quiet_ms: rng.between(20, 100),
            tail_cache_bytes: *rng.pick(&[1, 300, 2_000, 1 << 20]),
            window_bytes: *rng.pick(&[1, 200, 2_000, 1 << 20]),
            learner_window_bytes: *rng.pick(&[1, 200, 2_000, 1 << 20]),
            message_bytes: *rng.pick(&[1, 200, 1_000, 256 << 10]),
            snapshot_threshold_bytes: *rng.pick(&[100, 2_000, 1 << 30, 1 << 30]),
            counter_limit: if rng.chance(150) { rng.between(5, 100) as u32 } else { u32::MAX - (1 << 24) },
            segment_bytes: *rng.pick(&[8 << 10, 16 << 10, 64 << 10, 256 << 10]),
            retention_bytes: *rng.pick(&[0, 0, 1_000, 1 << 30]),
            flush_entries: rng.magnitude(1, 100),
            delay,
            client_delay: (client_delay_high / 20, client_delay_high),
            links_differ: rng.chance(300),
            spike_per_mille: *rng.pick(&[0, 0, 1, 10]),
            spike: sync_timeout_ms * MS * 2,
            thread_delay: rng.magnitude(10, 2 * MS),
            task_delay: if rng.chance(500) { rng.magnitude(10, 2 * MS) } else { rng.between(2 * MS, 60 * MS) },
            write_time: rng.magnitude(50, 20 * MS),
            store_time: if rng.chance(350) { rng.between(MS, 50 * MS) } else { rng.magnitude(10, 2 * MS) },
            transfer_time: rng.magnitude(50, sync_timeout_ms * MS),
            codec_per_mille: 100,
            faults: FaultMix::default(),
            load: Load::draw(rng, sync_timeout_ms, paths),
            followers: 0,
            feed: (0, 0),
            reduction: Reduction::default(),
        };
        // Small steps of a slow network would need more than the time there is.
        if slow_network {
            options.safety_ms *= 2;
            // One entry for each round trip would be less than the clients ask for.
            options.window_bytes = options.window_bytes.max(2_000);
            options.learner_window_bytes = options.learner_window_bytes.max(2_000);
        }
        options.fit_pipeline();
        options.draw_faults(rng);
        if options.faults.every_ms.contains_key(&Fault::ChangedTree) {
            // One has to be away, and come back, and others after it.
            options.safety_ms += 12 * sync_timeout_ms;
        }
        options.followers = *rng.pick(&[0, 1, 1, 2]);
        options.feed = (*rng.pick(&[0, 300, 3_000, 1 << 30, 1 << 30]), *rng.pick(&[500, 3_600_000, 3_600_000]));
        options
    }

    /// With windows of an entry or two, writes go one after the other. What clients have in flight must be answered before
    /// they give up, or they send it all again for ever.
    fn fit_pipeline(&mut self) {
        let smallest = self.window_bytes.min(self.learner_window_bytes).min(self.message_bytes) as u64;
        if smallest > 1_000.max(5 * self.load.data_bytes) {
            return;
        }
        let write = 4 * self.delay.1 + 2 * self.write_time + 4 * self.thread_delay;
        let in_flight = self.load.session_timeout_ms * MS / 3 / write;
        self.load.pipeline = self.load.pipeline.min(in_flight / self.load.clients).max(1);
    }

    fn draw_faults(&mut self, rng: &mut Rng) {
        let t = self.sync_timeout_ms;
        // A few kinds in most runs, many in some, none in very few.
        let kinds = if rng.chance(30) { 0 } else { rng.magnitude(1, CATALOGUE.len() as u64 / 2) };
        let mut left: Vec<&Habit> = CATALOGUE.iter().collect();
        let mut every_ms = BTreeMap::new();
        for _ in 0..kinds {
            let mut at = rng.below(left.iter().map(|habit| habit.weight).sum());
            let index = left.iter().position(|habit| {
                let hit = at < habit.weight;
                at = at.saturating_sub(habit.weight);
                hit
            });
            let habit = left.swap_remove(index.expect("the number is below the sum"));
            every_ms.insert(habit.kind, t * rng.between(habit.every.0, habit.every.1));
        }
        self.faults = FaultMix {
            every_ms,
            recovery_per_mille: if rng.chance(400) { 200 } else { 0 },
            restart_ms: t * rng.between(0, 6) + 50,
            slow_disk: rng.magnitude(10 * MS, 10_000 * MS),
            slow_link: rng.magnitude(t * MS / 4, 10_000 * MS),
            overdraw: rng.chance(50),
            clock_rate: *rng.pick(&[(1000, 1000), (970, 1030), (970, 1030), (500, 2000)]),
        };
    }

    /// The same run with less in it.
    pub fn reduced(mut self, reduction: &Reduction) -> SimOptions {
        self.voters = reduction.voters.unwrap_or(self.voters);
        self.observers = reduction.observers.unwrap_or(self.observers);
        self.safety_ms = reduction.safety_ms.unwrap_or(self.safety_ms);
        self.reduction = reduction.clone();
        self
    }

    /// Number of servers.
    pub fn servers(&self) -> u64 {
        self.voters + self.observers
    }

    /// Whether a server votes. Servers are numbered from 1; observers come last.
    pub fn is_voter(&self, server: ServerId) -> bool {
        server.0 <= self.voters
    }

    /// How many voters are a majority.
    pub fn majority(&self) -> usize {
        self.voters as usize / 2 + 1
    }

    /// Options of one server's ordering machine.
    pub fn zab(&self, id: ServerId, machine_seed: u64) -> ZabOptions {
        let kind = |s: u64| if self.is_voter(ServerId(s)) { MemberKind::Voter } else { MemberKind::Observer };
        ZabOptions {
            id,
            quorum: QuorumSet::majority((1..=self.voters).map(ServerId)),
            members: (1..=self.servers()).map(|s| (ServerId(s), kind(s))).collect(),
            sync_timeout_ms: self.sync_timeout_ms,
            init_timeout_ms: self.init_timeout_ms,
            ping_interval_ms: self.ping_interval_ms,
            election_quiet_ms: self.election_quiet_ms,
            tail_cache_bytes: self.tail_cache_bytes,
            window_bytes: self.window_bytes,
            learner_window_bytes: self.learner_window_bytes,
            message_bytes: self.message_bytes,
            snapshot_threshold_bytes: self.snapshot_threshold_bytes,
            counter_limit: self.counter_limit,
            seed: machine_seed,
        }
    }
}

impl fmt::Display for SimOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl fmt::Display for Reduction {
    /// As flags of `corral-sim run`, with a space before each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = |f: &mut fmt::Formatter<'_>, flag: &str, items: Vec<String>| match items.is_empty() {
            true => Ok(()),
            false => write!(f, " --{flag} {}", items.join(",")),
        };
        listed(f, "skip", self.skip.iter().map(FaultId::to_string).collect())?;
        listed(f, "without-clients", self.without_clients.iter().map(u64::to_string).collect())?;
        listed(f, "voters", self.voters.iter().map(u64::to_string).collect())?;
        listed(f, "observers", self.observers.iter().map(u64::to_string).collect())?;
        listed(f, "safety-ms", self.safety_ms.iter().map(u64::to_string).collect())
    }
}

/// Names what a seed means: two programs with the same name draw the same options from a seed. (What the servers and
/// the simulator make of them is another matter.)
pub fn format() -> String {
    let mut hash = 0_u64;
    for seed in 1..=32 {
        for byte in SimOptions::draw(seed).to_string().bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
    }
    format!("{:08x}", hash >> 32)
}

/// A list of faults as [`Reduction`] prints it.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse_faults(text: &str) -> Result<BTreeSet<FaultId>, String> {
    text.split(',').filter(|part| !part.is_empty()).map(FaultId::from_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reduction_is_printed_as_the_flags_that_make_it() {
        let reduction = Reduction {
            skip: parse_faults("crash.2,power-loss.1").unwrap(),
            without_clients: [3].into(),
            voters: Some(3),
            observers: None,
            safety_ms: Some(900),
        };
        assert_eq!(
            reduction.to_string(),
            " --skip crash.2,power-loss.1 --without-clients 3 --voters 3 --safety-ms 900"
        );
        assert_eq!(Reduction::default().to_string(), "");
    }

    #[test]
    fn fault_that_does_not_exist_is_named_with_those_that_do() {
        let error = parse_faults("crash.1,meteor.2").unwrap_err();
        assert!(error.contains("meteor.2") && error.contains("power-loss"), "{error}");
    }

    #[test]
    fn most_runs_have_few_kinds_of_faults_and_every_kind_is_drawn() {
        let drawn: Vec<usize> = (1..=2_000).map(|seed| SimOptions::draw(seed).faults.every_ms.len()).collect();
        assert!(drawn.iter().filter(|kinds| **kinds <= 4).count() > drawn.len() / 2);
        for Habit { kind, .. } in CATALOGUE {
            let somewhere = (1..=2_000).any(|seed| SimOptions::draw(seed).faults.every_ms.contains_key(&kind));
            assert!(somewhere, "no seed draws {kind:?}");
        }
    }
}
