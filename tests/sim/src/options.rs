//! Swarm options: every seed draws its own sizes, times and mix of faults. Many runs with few kinds of faults each find
//! more than one run with all of them.

use std::fmt;

use corral_core::zab::io::{MemberKind, Options as ZabOptions};
use corral_core::zab::quorum::QuorumSet;
use corral_proto::ServerId;

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
    /// Of a thousand messages, so many take up to `spike` longer.
    pub spike_per_mille: u64,
    /// See `spike_per_mille`.
    pub spike: Micros,
    /// Longest ordinary wait of a server's threads before they take what is queued.
    pub thread_delay: Micros,
    /// Longest ordinary time of a log write.
    pub write_time: Micros,
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
}

/// Mean virtual ms between two faults of a kind; 0: never.
#[derive(Clone, Debug, Default)]
pub struct FaultMix {
    /// A server crashes between two events.
    pub crash_ms: u64,
    /// A server crashes at an operation of its log device.
    pub disk_crash_ms: u64,
    /// A server crashes between two things a step asked for.
    pub output_crash_ms: u64,
    /// All servers crash at once.
    pub power_loss_ms: u64,
    /// A server stands still.
    pub pause_ms: u64,
    /// Directions between servers stop carrying.
    pub partition_ms: u64,
    /// A stream breaks.
    pub reset_ms: u64,
    /// A data folder is lost.
    pub wipe_ms: u64,
    /// A server's disk is slow for a while.
    pub slow_disk_ms: u64,
    /// An operator asks for a change of leader.
    pub admin_ms: u64,
    /// Of a thousand restarts, so many crash while they recover.
    pub recovery_crash_per_mille: u64,
    /// Longest wait before a crashed server starts again.
    pub restart_ms: u64,
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
    /// Of a thousand reads, so many ask for the latest state.
    pub linearizable_per_mille: u64,
    /// Mean ms between two silences of a client that outlast its session; 0: never.
    pub silence_ms: u64,
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
        let paths = rng.magnitude(1, 30);
        let mut options = SimOptions {
            seed,
            voters,
            observers: *rng.pick(&[0, 0, 0, 1, 1, 2]),
            safety_ms: sync_timeout_ms * rng.between(10, 30),
            sync_timeout_ms,
            init_timeout_ms: sync_timeout_ms * rng.between(2, 5),
            ping_interval_ms: (sync_timeout_ms / rng.between(5, 10)).max(20),
            election_quiet_ms: rng.between(20, 100),
            tail_cache_bytes: *rng.pick(&[1, 300, 2_000, 1 << 20]),
            window_bytes: *rng.pick(&[1, 200, 2_000, 1 << 20]),
            learner_window_bytes: *rng.pick(&[1, 200, 2_000, 1 << 20]),
            message_bytes: *rng.pick(&[1, 200, 1_000, 256 << 10]),
            snapshot_threshold_bytes: *rng.pick(&[100, 2_000, 1 << 30, 1 << 30]),
            counter_limit: if rng.chance(150) { rng.between(5, 100) as u32 } else { u32::MAX - (1 << 24) },
            segment_bytes: *rng.pick(&[8 << 10, 16 << 10, 64 << 10]),
            retention_bytes: *rng.pick(&[0, 0, 1_000, 1 << 30]),
            flush_entries: rng.magnitude(1, 100),
            delay: (delay_high / 20, delay_high),
            spike_per_mille: *rng.pick(&[0, 0, 1, 10]),
            spike: sync_timeout_ms * MS * 2,
            thread_delay: rng.magnitude(10, 2 * MS),
            write_time: rng.magnitude(50, 20 * MS),
            codec_per_mille: 100,
            faults: FaultMix::default(),
            load: Load {
                clients: rng.between(1, 6),
                think_ms: rng.magnitude(2, 60),
                pipeline: rng.magnitude(1, 20),
                paths,
                data_bytes: rng.magnitude(1, 200),
                session_timeout_ms: sync_timeout_ms * rng.between(3, 10),
                cut_ms: if rng.chance(600) { sync_timeout_ms * rng.between(1, 10) } else { 0 },
                wire_per_mille: *rng.pick(&[0, 300, 1000]),
                linearizable_per_mille: *rng.pick(&[50, 150, 800]),
                silence_ms: if rng.chance(300) { sync_timeout_ms * rng.between(5, 20) } else { 0 },
            },
            followers: 0,
            feed: (0, 0),
        };
        // Small steps of a slow network would need more than the time there is.
        if slow_network {
            options.safety_ms *= 2;
        }
        options.draw_faults(rng);
        options.followers = *rng.pick(&[0, 1, 1, 2]);
        options.feed = (*rng.pick(&[0, 300, 3_000, 1 << 30, 1 << 30]), *rng.pick(&[500, 3_600_000, 3_600_000]));
        options
    }

    fn draw_faults(&mut self, rng: &mut Rng) {
        let t = self.sync_timeout_ms;
        let recovery_crash_per_mille = if rng.chance(400) { 200 } else { 0 };
        let mut rate = |per_mille: u64, low: u64, high: u64| {
            if rng.chance(per_mille) { t * rng.between(low, high) } else { 0 }
        };
        self.faults = FaultMix {
            crash_ms: rate(500, 1, 12),
            disk_crash_ms: rate(400, 1, 12),
            output_crash_ms: rate(400, 1, 12),
            power_loss_ms: rate(250, 4, 20),
            pause_ms: rate(250, 2, 15),
            partition_ms: rate(400, 1, 12),
            reset_ms: rate(400, 1, 10),
            wipe_ms: rate(200, 5, 25),
            slow_disk_ms: rate(200, 3, 15),
            admin_ms: rate(200, 3, 15),
            recovery_crash_per_mille,
            restart_ms: rate(1000, 0, 6) + 50,
        };
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
