//! What a server counts beside its front ends. Threads add to it with relaxed atomic operations; the report reads it.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use corral_core::apply::Applied;
use corral_core::zab::io::Entry;
use corral_proto::{EventKind, Zxid};
use parking_lot::Mutex;

use crate::frontend::metrics::{Metric, Summary};

/// Digests that are remembered for operators: as many as the ordering machine compares.
const DIGESTS_KEPT: usize = 16;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    /// Sessions with a connection here.
    connections: AtomicU64,
    /// Proofs of identity that named nobody.
    auth_failed: AtomicU64,
    /// Writes of the log that were synced, ms, and how many operations each had.
    syncs: Summary,
    sync_batches: Summary,
    slow_syncs: AtomicU64,
    /// Size of the store's files, as of its last flush.
    store_bytes: AtomicU64,
    /// What a restart begins from, and the wall clock when the last flush began, s.
    persisted: AtomicU64,
    flushed_s: AtomicU64,
    /// Entries proposed and committed by this server as leader.
    proposals: AtomicU64,
    commits: AtomicU64,
    /// The same as a learner.
    learner_proposals: AtomicU64,
    learner_commits: AtomicU64,
    /// Ages of entries by their stamp, ms: when they came from the leader, when a majority had them (on the leader), when
    /// a learner heard that, when they were executed.
    proposal_ages: Summary,
    quorum_ages: Summary,
    commit_ages: Summary,
    applied_ages: Summary,
    /// Connections that watched for an event, by its kind.
    watchers: [Summary; 4],
    /// Last, smallest and largest proposal of this leadership, bytes.
    proposal_sizes: ProposalSizes,
    /// Learners that were brought up to date, by how.
    snaps: AtomicU64,
    diffs: AtomicU64,
    /// Sessions that expired while this server led, and sessions of its own.
    expired: AtomicU64,
    /// Checkpoints made for learners, ms.
    snapshots: Summary,
    /// Elections, ms; and times without a relation to a leader, those that ended with this server as a learner apart.
    elections: Summary,
    unavailable: Summary,
    leader_unavailable: Summary,
    /// Opening and recovering the data folder, ms.
    recovery: Summary,
    /// Monotonic ms of the beginning of this leadership.
    leading_since_ms: AtomicU64,
    digests: Mutex<VecDeque<(Zxid, u64)>>,
}

/// -1 before the first.
#[derive(Debug)]
struct ProposalSizes([AtomicI64; 3]);

impl Default for ProposalSizes {
    fn default() -> ProposalSizes {
        ProposalSizes([const { AtomicI64::new(-1) }; 3])
    }
}

/// How a learner is brought up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SyncKind {
    /// By the entries it misses, after a truncation if need be.
    Diff,
    /// By a snapshot.
    Snapshot,
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Records how old entries are. Clocks that disagree may make them younger than 0: these are left out, as ZooKeeper does.
fn record_ages(to: &Summary, entries: &[Entry], wall_ms: i64) {
    for alike in entries.chunk_by(|one, next| one.stamp_ms == next.stamp_ms) {
        if let Ok(age) = u64::try_from(wall_ms - alike[0].stamp_ms) {
            to.record_many(age, alike.len() as u64);
        }
    }
}

impl Stats {
    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    pub(crate) fn disconnected(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    pub(crate) fn store_bytes(&self) -> u64 {
        self.store_bytes.load(Relaxed)
    }

    /// The store began a flush.
    pub(crate) fn flushed(&self, store_bytes: u64, wall_ms: i64) {
        self.store_bytes.store(store_bytes, Relaxed);
        self.flushed_s.store(u64::try_from(wall_ms / 1000).unwrap_or(0), Relaxed);
    }

    pub(crate) fn auth_failed(&self) {
        self.auth_failed.fetch_add(1, Relaxed);
    }

    pub(crate) fn auth_failures(&self) -> u64 {
        self.auth_failed.load(Relaxed)
    }

    /// A batch of log operations is durable.
    pub(crate) fn log_synced(&self, took: Duration, operations: usize, slow: bool) {
        self.syncs.record(ms(took));
        self.sync_batches.record(operations as u64);
        if slow {
            self.slow_syncs.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn slow_syncs(&self) -> u64 {
        self.slow_syncs.load(Relaxed)
    }

    /// Entries went to the log: proposed by this server if it leads, else received.
    pub(crate) fn appended(&self, leading: bool, entries: &[Entry], wall_ms: i64) {
        let count = entries.len() as u64;
        if !leading {
            self.learner_proposals.fetch_add(count, Relaxed);
            record_ages(&self.proposal_ages, entries, wall_ms);
            return;
        }
        self.proposals.fetch_add(count, Relaxed);
        // One thread writes these.
        let ProposalSizes([last, min, max]) = &self.proposal_sizes;
        for entry in entries {
            let size = i64::try_from(entry.payload.len()).unwrap_or(i64::MAX);
            last.store(size, Relaxed);
            let least = min.load(Relaxed);
            if least < 0 || size < least {
                min.store(size, Relaxed);
            }
            max.fetch_max(size, Relaxed);
        }
    }

    /// Entries are committed and handed out for execution.
    pub(crate) fn committed(&self, leading: bool, entries: &[Entry], wall_ms: i64) {
        let (counter, ages) = match leading {
            true => (&self.commits, &self.quorum_ages),
            false => (&self.learner_commits, &self.commit_ages),
        };
        counter.fetch_add(entries.len() as u64, Relaxed);
        record_ages(ages, entries, wall_ms);
    }

    /// Entries were executed and can be read here.
    pub(crate) fn propagated(&self, entries: &[Entry], wall_ms: i64) {
        record_ages(&self.applied_ages, entries, wall_ms);
    }

    /// A learner is told how it is brought up to date.
    pub(crate) fn synchronizing(&self, kind: SyncKind) {
        let counter = match kind {
            SyncKind::Diff => &self.diffs,
            SyncKind::Snapshot => &self.snaps,
        };
        counter.fetch_add(1, Relaxed);
    }

    /// This server begins to lead.
    pub(crate) fn lead(&self, now_ms: u64) {
        self.leading_since_ms.store(now_ms, Relaxed);
        self.proposal_sizes.0.iter().for_each(|size| size.store(-1, Relaxed));
    }

    /// How long it has led.
    pub(crate) fn leader_uptime_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.leading_since_ms.load(Relaxed))
    }

    /// See [`crate::frontend::operators::ServerReport::proposal_sizes`].
    pub(crate) fn proposal_sizes(&self) -> [i64; 3] {
        self.proposal_sizes.0.each_ref().map(|size| size.load(Relaxed))
    }

    /// An election ended.
    pub(crate) fn elected(&self, took_ms: u64) {
        self.elections.record(took_ms);
    }

    /// There is a leader again.
    pub(crate) fn available(&self, after_ms: u64, leading: bool) {
        self.unavailable.record(after_ms);
        if !leading {
            self.leader_unavailable.record(after_ms);
        }
    }

    /// Sessions of this server alone expired.
    pub(crate) fn expired(&self, sessions: usize) {
        self.expired.fetch_add(sessions as u64, Relaxed);
    }

    /// A batch was executed, in which so many sessions expired.
    pub(crate) fn applied(&self, applied: &Applied, expired: usize) {
        let digests = &applied.digests;
        self.persisted.store(applied.persisted.0, Relaxed);
        for (kind, watchers) in &applied.told {
            self.watchers[kind.code() as usize - 1].record(*watchers as u64);
        }
        if expired > 0 {
            self.expired.fetch_add(expired as u64, Relaxed);
        }
        if !digests.is_empty() {
            let mut kept = self.digests.lock();
            kept.extend(digests);
            while kept.len() > DIGESTS_KEPT {
                kept.pop_front();
            }
        }
    }

    pub(crate) fn digests(&self) -> Vec<(Zxid, u64)> {
        self.digests.lock().iter().copied().collect()
    }

    pub(crate) fn persisted(&self) -> (Zxid, u64) {
        (Zxid(self.persisted.load(Relaxed)), self.flushed_s.load(Relaxed))
    }

    /// A checkpoint was made.
    pub(crate) fn snapshot_made(&self, took: Duration) {
        self.snapshots.record(ms(took));
    }

    /// The data folder is open.
    pub(crate) fn recovered(&self, took_ms: u64, persisted: Zxid) {
        self.recovery.record(took_ms);
        self.persisted.store(persisted.0, Relaxed);
    }

    fn watchers_of(&self, kind: EventKind) -> &Summary {
        &self.watchers[kind.code() as usize - 1]
    }

    /// Under ZooKeeper's names.
    pub(crate) fn figures(&self) -> Vec<Metric> {
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        let syncs = self.syncs.report();
        vec![
            Metric::gauge("auth_failed_count", self.auth_failures()),
            Metric::counter("proposal_count", count(&self.proposals)),
            Metric::counter("commit_count", count(&self.commits)),
            Metric::counter("learner_proposal_received_count", count(&self.learner_proposals)),
            Metric::counter("learner_commit_received_count", count(&self.learner_commits)),
            Metric::counter("snap_count", count(&self.snaps)),
            Metric::counter("diff_count", count(&self.diffs)),
            Metric::counter("stale_sessions_expired", count(&self.expired)),
            // A full server leaves requests in their sockets instead.
            Metric::counter("throttled_ops", 0),
            // Such a server ends at once.
            Metric::counter("unrecoverable_error_count", 0),
            Metric::summary("fsynctime", &self.syncs),
            Metric::summary("sync_processor_batch_size", &self.sync_batches),
            Metric::summary("snapshottime", &self.snapshots),
            Metric::summary("election_time", &self.elections),
            Metric::summary("unavailable_time", &self.unavailable),
            Metric::summary("leader_unavailable_time", &self.leader_unavailable),
            Metric::summary("dbinittime", &self.recovery),
            Metric::summary("node_created_watch_count", self.watchers_of(EventKind::NodeCreated)),
            Metric::summary("node_deleted_watch_count", self.watchers_of(EventKind::NodeDeleted)),
            Metric::summary("node_changed_watch_count", self.watchers_of(EventKind::NodeDataChanged)),
            Metric::summary("node_children_watch_count", self.watchers_of(EventKind::NodeChildrenChanged)),
            Metric::percentiles("proposal_latency", &self.proposal_ages),
            Metric::percentiles("quorum_ack_latency", &self.quorum_ages),
            Metric::percentiles("commit_propagation_latency", &self.commit_ages),
            Metric::percentiles("propagation_latency", &self.applied_ages),
            // Our own names for some of the same.
            Metric::counter("fsync_count", syncs.count),
            Metric::counter("fsync_total_ms", syncs.sum),
            Metric::gauge("fsync_max_ms", syncs.max),
            Metric::counter("fsync_slow_count", count(&self.slow_syncs)),
            Metric::gauge("store_bytes", self.store_bytes()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::metrics::Value;

    fn entry(stamp_ms: i64, bytes: usize) -> Entry {
        Entry { zxid: Zxid(1), stamp_ms, hash: 0, payload: vec![0; bytes].into() }
    }

    #[test]
    fn a_leader_and_a_learner_count_apart() {
        let stats = Stats::default();
        assert_eq!(stats.proposal_sizes(), [-1; 3]);
        stats.appended(true, &[entry(10, 30), entry(10, 10), entry(12, 20)], 15);
        stats.appended(false, &[entry(10, 99), entry(16, 1)], 15);
        stats.committed(true, &[entry(10, 1), entry(10, 1), entry(12, 1)], 17);
        stats.committed(false, &[entry(10, 1)], 18);
        stats.propagated(&[entry(10, 1)], 19);
        assert_eq!(stats.proposal_sizes(), [20, 10, 30]);
        let figures = stats.figures();
        for (name, value) in [
            ("proposal_count", 3),
            ("commit_count", 3),
            ("learner_proposal_received_count", 2),
            ("learner_commit_received_count", 1),
        ] {
            assert!(figures.contains(&Metric::counter(name, value)), "{name}: {figures:?}");
        }
        let ages = |name: &str| {
            let found = figures.iter().find(|metric| metric.name == name);
            match found.map(|metric| &metric.value) {
                Some(Value::Percentiles(report)) => (report.count, report.sum, report.max),
                other => panic!("{name}: {other:?}"),
            }
        };
        assert_eq!(ages("proposal_latency"), (1, 5, 5), "what the clocks make younger than 0 is left out");
        assert_eq!(ages("quorum_ack_latency"), (3, 7 + 7 + 5, 7));
        assert_eq!(ages("commit_propagation_latency"), (1, 8, 8));
        assert_eq!(ages("propagation_latency"), (1, 9, 9));
        stats.lead(1_000);
        assert_eq!((stats.proposal_sizes(), stats.leader_uptime_ms(1_500)), ([-1; 3], 500), "a new leadership");
    }

    #[test]
    fn watchers_are_counted_by_the_kind_of_the_event() {
        let stats = Stats::default();
        let told = vec![(EventKind::NodeCreated, 1), (EventKind::NodeChildrenChanged, 2), (EventKind::NodeDeleted, 3)];
        stats.applied(&Applied { told, ..Applied::default() }, 0);
        for (name, sum) in [
            ("node_created_watch_count", 1),
            ("node_children_watch_count", 2),
            ("node_deleted_watch_count", 3),
            ("node_changed_watch_count", 0),
        ] {
            let figures = stats.figures();
            let found = figures.iter().find(|metric| metric.name == name).expect("it is listed");
            assert!(matches!(&found.value, Value::Summary(report) if report.sum == sum), "{found:?}");
        }
    }

    #[test]
    fn the_newest_digests_are_kept() {
        let stats = Stats::default();
        let digest = |n: u64| (Zxid(n * 1024), n);
        let digests = (1..=20).map(digest).collect();
        stats.applied(&Applied { persisted: Zxid(7), digests, ..Applied::default() }, 2);
        let kept = stats.digests();
        assert_eq!((kept.len(), kept[0], kept[15]), (DIGESTS_KEPT, digest(5), digest(20)));
        assert_eq!(stats.persisted().0, Zxid(7));
    }
}
