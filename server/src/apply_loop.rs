//! The loop of thread `apply`: executes what is committed, in batches, and does between them what needs the store to
//! itself: checkpoints, flushes, opening an installed snapshot, scans for the leader.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use corral_core::apply::Apply;
use corral_core::member::REAP_BATCH_MAX;
use corral_core::session::CloseReason;
use corral_core::session::lane::Published;
use corral_core::tree::entry::SessionEvent;
use corral_core::tree::read;
use corral_core::zab::io::{Entry, Role, SnapshotMeta};
use corral_proto::Zxid;
use tracing::{info, warn};

use crate::mailbox::Mailbox;
use crate::node::{CoreEvent, NodeShared, View};
use crate::states::StateFolders;
use crate::storage::rocks::{FLUSH_INTERVAL_MS, RocksStore};
use crate::storage::stop_at_once;

/// Entries executed as one batch.
const BATCH_ENTRIES_MAX: usize = 1_000;

/// Bytes of entries executed as one batch; a single entry may be larger.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// With fewer unresolved writes than this nobody waits for the core to hear that some are executed.
const QUIET_UNRESOLVED_MAX: usize = 64;

/// After so much quiet the thread looks after its store.
const IDLE: Duration = Duration::from_secs(5);

/// A replaced store's folder stays at least so long: reads of its last state take far less.
const OLD_STORE_MS: u64 = 60_000;

/// For thread `apply`.
pub(crate) enum ApplyCommand {
    /// Execute; [`CoreEvent::Applied`] follows for each batch.
    Entries(Vec<Entry>),
    /// [`CoreEvent::SessionTable`] follows.
    LoadSessions,
    /// [`CoreEvent::Reapable`] follows.
    ScanReapable { wall_ms: i64 },
    /// [`CoreEvent::SnapshotReady`] follows, once the store contains `at_least`.
    MakeSnapshot { request: u64, at_least: Zxid },
    /// Nobody needs it any more.
    DropSnapshot { id: u64 },
    /// Close every connection: the state is about to be replaced.
    ResetClients,
    /// Take the installed store; [`CoreEvent::SnapshotOpened`] follows.
    OpenSnapshot(SnapshotMeta),
    /// Flush and end the thread.
    Stop,
}

pub(crate) struct ApplyLoop {
    node: Arc<NodeShared>,
    apply: Apply<RocksStore>,
    inbox: Mailbox<ApplyCommand>,
    folders: Arc<StateFolders>,
    flush_entries: u64,
    flush_bytes: u64,
    unflushed: Unflushed,
    /// Snapshots that wait until the store contains enough.
    wanted: Vec<(u64, Zxid)>,
    /// Stores that were replaced, until nobody reads them: the last state, the folder, since when (monotonic ms).
    replaced: Vec<(Weak<Published<View>>, PathBuf, u64)>,
}

/// What was written since the last flush began.
#[derive(Default)]
struct Unflushed {
    entries: u64,
    bytes: u64,
    /// Monotonic ms of the first of it.
    since_ms: u64,
}

impl ApplyLoop {
    pub(crate) fn new(
        node: Arc<NodeShared>,
        apply: Apply<RocksStore>,
        inbox: Mailbox<ApplyCommand>,
        folders: Arc<StateFolders>,
        flush_entries: u64,
        flush_bytes: u64,
    ) -> ApplyLoop {
        let unflushed = Unflushed::default();
        ApplyLoop {
            node,
            apply,
            inbox,
            folders,
            flush_entries,
            flush_bytes,
            unflushed,
            wanted: Vec::new(),
            replaced: Vec::new(),
        }
    }

    /// Runs until [`ApplyCommand::Stop`].
    pub(crate) fn run(mut self) {
        let mut commands = Vec::new();
        let mut batch: Vec<Entry> = Vec::new();
        loop {
            self.inbox.take(&mut commands, Some(IDLE));
            if commands.is_empty() {
                self.look_after_store();
            }
            for command in commands.drain(..) {
                match command {
                    ApplyCommand::Entries(entries) => self.collect(&mut batch, entries),
                    command => {
                        self.execute(&mut batch);
                        if matches!(command, ApplyCommand::Stop) {
                            self.apply.store().flush(true);
                            return;
                        }
                        self.perform(command);
                    }
                }
            }
            self.execute(&mut batch);
        }
    }

    /// Adds entries to the batch; executes it whenever it is full.
    fn collect(&mut self, batch: &mut Vec<Entry>, entries: Vec<Entry>) {
        let mut bytes: usize = batch.iter().map(Entry::weight).sum();
        for entry in entries {
            if batch.len() >= BATCH_ENTRIES_MAX || (!batch.is_empty() && bytes + entry.weight() > BATCH_BYTES_MAX) {
                self.execute(batch);
                bytes = 0;
            }
            bytes += entry.weight();
            batch.push(entry);
        }
    }

    fn execute(&mut self, batch: &mut Vec<Entry>) {
        if batch.is_empty() {
            return;
        }
        if self.unflushed.entries == 0 {
            self.unflushed.since_ms = self.node.clock.now().mono_ms;
        }
        self.unflushed.entries += batch.len() as u64;
        self.unflushed.bytes += batch.iter().map(|entry| entry.weight() as u64).sum::<u64>();
        let applied = self.apply.apply(batch);
        if self.node.is_serving() {
            self.node.stats.propagated(batch, self.node.clock.now().wall_ms);
        }
        batch.clear();
        let zxid = applied.zxid;
        // As ZooKeeper counts it: where the session is tracked.
        let expired = if self.node.status().role == Role::Leading {
            let expired = |event: &&SessionEvent| matches!(event, SessionEvent::Closed { expired: true, .. });
            applied.sessions.iter().filter(expired).count()
        } else {
            0
        };
        self.node.stats.applied(&applied, expired);
        // While all is well the core does not need to know at once: at the latest its next tick finds out.
        if applied.sessions.is_empty()
            && self.node.is_serving()
            && self.node.unresolved.load(Ordering::Relaxed) < QUIET_UNRESOLVED_MAX
        {
            self.node.core.leave(CoreEvent::Applied(applied));
        } else {
            self.node.core.push(CoreEvent::Applied(applied));
        }
        self.node.applied.send_replace(zxid);
        if self.unflushed.entries >= self.flush_entries || self.unflushed.bytes >= self.flush_bytes {
            self.flush();
        }
        if !self.wanted.is_empty() {
            for (request, at_least) in std::mem::take(&mut self.wanted) {
                self.make_snapshot(request, at_least);
            }
        }
    }

    /// Begins a flush in the background: it bounds what a restart executes again.
    fn flush(&mut self) {
        self.unflushed = Unflushed::default();
        let store = self.apply.store();
        store.check_health();
        store.flush(false);
        let bytes = store.approximate_bytes();
        self.node.stats.flushed(bytes, self.node.clock.now().wall_ms);
    }

    /// What is written must not stay in memory for ever, and what is replaced not on disk.
    fn look_after_store(&mut self) {
        let now_ms = self.node.clock.now().mono_ms;
        if self.unflushed.entries > 0 && now_ms.saturating_sub(self.unflushed.since_ms) >= FLUSH_INTERVAL_MS {
            self.flush();
        }
        self.replaced.retain(|(last, folder, since_ms)| {
            let gone = last.strong_count() == 0 && now_ms.saturating_sub(*since_ms) >= OLD_STORE_MS;
            if gone && let Err(error) = std::fs::remove_dir_all(folder) {
                // The next start does it too.
                warn!(folder = %folder.display(), %error, "a replaced store could not be removed");
            }
            !gone
        });
    }

    fn perform(&mut self, command: ApplyCommand) {
        match command {
            ApplyCommand::LoadSessions => {
                let published = self.node.shared.published();
                let sessions = read::sessions(&published.view)
                    .into_iter()
                    .map(|(id, row)| (id, row.timeout_ms, row.attach, row.server))
                    .collect();
                let settings = read::settings(&published.view);
                self.node.core.push(CoreEvent::SessionTable { sessions, settings });
            }
            ApplyCommand::ScanReapable { wall_ms } => {
                let published = self.node.shared.published();
                let never_used_ms = read::settings(&published.view).container_never_used_ms;
                // Judged by the stamp the next entry would have; execution judges again by the one it has.
                let stamp_ms = wall_ms.max(self.apply.meta().stamp_ms);
                let due = read::reapables(&published.view)
                    .into_iter()
                    .filter(|reapable| reapable.is_due(stamp_ms, never_used_ms))
                    .take(REAP_BATCH_MAX)
                    .map(|reapable| (reapable.path, reapable.czxid))
                    .collect();
                self.node.core.push(CoreEvent::Reapable(due));
            }
            ApplyCommand::MakeSnapshot { request, at_least } => self.make_snapshot(request, at_least),
            ApplyCommand::DropSnapshot { id } => self.folders.drop_snapshot(id),
            ApplyCommand::ResetClients => self.apply.reset_clients(CloseReason::ShuttingDown),
            ApplyCommand::OpenSnapshot(snapshot) => self.open_snapshot(snapshot),
            ApplyCommand::Entries(_) | ApplyCommand::Stop => unreachable!("dealt with by the caller"),
        }
    }

    fn make_snapshot(&mut self, request: u64, at_least: Zxid) {
        let position = self.apply.position();
        if position.zxid < at_least {
            self.wanted.push((request, at_least));
            return;
        }
        let id = self.node.next_number();
        self.folders.set_cluster(self.node.status().identity.cluster);
        let begun_ms = self.node.clock.now().mono_ms;
        let snapshot = match self.folders.make_snapshot(self.apply.store(), id) {
            Ok(snapshot) => {
                let took_ms = self.node.clock.now().mono_ms.saturating_sub(begun_ms);
                self.node.stats.snapshot_made(Duration::from_millis(took_ms));
                info!(zxid = %position.zxid, bytes = snapshot.bytes, "made a snapshot for a learner");
                Some(snapshot)
            }
            Err(error) => {
                warn!(%error, "a snapshot for a learner could not be made");
                None
            }
        };
        self.node.core.push(CoreEvent::SnapshotReady { request, snapshot });
    }

    fn open_snapshot(&mut self, snapshot: SnapshotMeta) {
        let last = Arc::downgrade(&self.node.shared.published());
        let folder = self.apply.store().path().to_owned();
        match self.folders.open_current() {
            Ok(store) => self.apply.replace_store(store),
            Err(error) => stop_at_once(&format!("the installed snapshot cannot be opened: {error}")),
        }
        self.replaced.push((last, folder, self.node.clock.now().mono_ms));
        let position = self.apply.position();
        if position != snapshot.position {
            stop_at_once(&format!("the installed snapshot holds {:?}, expected {:?}", position, snapshot.position));
        }
        self.unflushed = Unflushed::default();
        self.node.applied.send_replace(position.zxid);
        info!(zxid = %position.zxid, "took over an installed snapshot");
        self.node.core.push(CoreEvent::SnapshotOpened { position });
    }
}
