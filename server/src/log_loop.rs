//! The threads of the log: `log` makes operations durable, `log-read` reads back what learners missed, `log-prepare`
//! has the next segment ready.
//!
//! Whatever is queued when the disk is free becomes one write and one sync: the duration of a sync is the timer of the
//! batch. An error is final (P28): a failed sync proves nothing about what reached the disk, so the process ends, and
//! the next start looks at what is really there.

use std::sync::Arc;
use std::time::Duration;

use corral_core::storage::folder::{Condemned, Mark, PeerBook, SeenStart};
use corral_core::storage::log_device::LogDevice;
use corral_core::storage::txn_log::{LogError, LogReader, SegmentPreparer, TxnLog};
use corral_core::zab::io::{LogOp, Membership};
use corral_proto::{ServerId, Zxid};
use tracing::{info, warn};

use crate::mailbox::Mailbox;
use crate::node::{CoreEvent, NodeShared};
use crate::storage::files::FolderLock;
use crate::storage::stop_at_once;

/// After so much quiet the last frame is sealed.
const IDLE: Duration = Duration::from_millis(100);

/// Bytes appended after which the thread that prepares segments looks whether one is missing.
const PREPARE_EVERY_BYTES: usize = 1 << 20;

/// Between two times at which what peers said is put on disk, ms: it takes the time of a write. Of a server that is killed
/// the rest is forgotten, until the peers say it again.
const MARKS_INTERVAL_MS: u64 = 10_000;

/// Log that is always kept.
const RETENTION_MIN_BYTES: u64 = 16 << 20;

/// For thread `log`.
pub(crate) enum LogCommand {
    /// Make it durable; [`CoreEvent::LogDone`] follows.
    Write { seq: u64, op: LogOp },
    /// Drop whole segments up to here; [`CoreEvent::LogTrimmed`] follows if any went.
    Trim { upto: Zxid },
    /// A peer came up with this start of this disk: remember it (P9).
    PeerStarted { peer: ServerId, instance: u64, start_count: u64, whole_since: u64 },
    /// A peer said what it holds: remember it, not at once on disk (P9).
    PeerMarked { peer: ServerId, instance: u64, mark: Mark },
    /// Put what peers said on disk.
    WriteMarks,
    /// Mark the data folder amnesiac, and what of it is to be set aside, then end the process. Its starts are counted on from
    /// `seen_start`, if that is more: no two of them may be taken for each other.
    Condemn { reason: String, files: Condemned, seen_start: u64 },
    /// End the thread.
    Stop,
}

/// For thread `log-read`.
pub(crate) enum ReadLog {
    /// [`CoreEvent::LogRead`] follows.
    Read { request: u64, after: Zxid, max_bytes: usize },
    /// End the thread.
    Stop,
}

/// For thread `log-prepare`.
pub(crate) enum Prepare {
    /// Have a segment ready.
    Next,
    /// End the thread.
    Stop,
}

pub(crate) struct LogLoop {
    pub(crate) node: Arc<NodeShared>,
    pub(crate) log: TxnLog,
    pub(crate) device: Arc<dyn LogDevice>,
    /// Keeps other processes out of the data folder as long as something may be written to it.
    #[expect(dead_code, reason = "held, not used")]
    pub(crate) lock: FolderLock,
    pub(crate) peers: PeerBook,
    pub(crate) inbox: Mailbox<LogCommand>,
    pub(crate) prepare: Mailbox<Prepare>,
    /// Waits so long for more before it writes; zero: never.
    pub(crate) gather: Duration,
    /// A sync that takes longer is a warning.
    pub(crate) slow: Duration,
    /// Log kept for learners, as configured.
    pub(crate) retention_bytes: u64,
}

impl LogLoop {
    /// Runs until [`LogCommand::Stop`].
    pub(crate) fn run(mut self) {
        let mut commands = Vec::new();
        let mut unprepared = PREPARE_EVERY_BYTES;
        let mut next_marks_ms = 0;
        loop {
            self.inbox.take(&mut commands, Some(IDLE));
            let now_ms = self.node.clock.now().mono_ms;
            if now_ms >= next_marks_ms {
                next_marks_ms = now_ms + MARKS_INTERVAL_MS;
                self.write_marks();
            }
            if commands.is_empty() {
                self.or_stop(|log| log.seal_if_idle());
                continue;
            }
            if !self.gather.is_zero() {
                std::thread::sleep(self.gather);
                self.inbox.take(&mut commands, Some(Duration::ZERO));
            }
            let mut ops = Vec::with_capacity(commands.len());
            for command in commands.drain(..) {
                match command {
                    LogCommand::Write { seq, op } => {
                        if let LogOp::Append(entries) = &op {
                            unprepared += entries.iter().map(|entry| entry.weight()).sum::<usize>();
                        }
                        ops.push((seq, op));
                    }
                    LogCommand::Trim { upto } => {
                        self.write(&mut ops);
                        self.log.set_retention(retention(self.retention_bytes, self.node.stats.store_bytes()));
                        if let Some(base) = self.or_stop(|log| log.trim(upto)) {
                            info!(base = %base.zxid, "dropped old segments of the log");
                            self.node.core.push(CoreEvent::LogTrimmed { base });
                        }
                    }
                    LogCommand::PeerStarted { peer, instance, start_count, whole_since } => {
                        self.peers.begin_life(peer, instance, whole_since);
                        match self.peers.observe(&*self.device, peer, instance, start_count) {
                            Ok(SeenStart::Plausible) => {}
                            Ok(SeenStart::Restored { highest }) => {
                                warn!(%peer, start_count, highest, "the peer runs on an old copy of its data folder");
                            }
                            Err(error) => stop_at_once(&format!("cannot remember the start of a peer: {error}")),
                        }
                    }
                    LogCommand::PeerMarked { peer, instance, mark } => self.peers.mark(peer, instance, mark),
                    LogCommand::WriteMarks => self.write_marks(),
                    LogCommand::Condemn { reason, files, seen_start } => {
                        self.write(&mut ops);
                        condemn(&*self.device, &self.log, files, seen_start, &reason);
                    }
                    LogCommand::Stop => {
                        self.write(&mut ops);
                        self.write_marks();
                        self.or_stop(|log| log.seal_if_idle());
                        self.prepare.push(Prepare::Stop);
                        return;
                    }
                }
            }
            self.write(&mut ops);
            if unprepared >= PREPARE_EVERY_BYTES {
                unprepared = 0;
                self.prepare.push(Prepare::Next);
            }
        }
    }

    fn write(&mut self, ops: &mut Vec<(u64, LogOp)>) {
        if ops.is_empty() {
            return;
        }
        let began = self.node.clock.now().mono_ms;
        let seq = self.or_stop(|log| log.write(ops));
        let took = Duration::from_millis(self.node.clock.now().mono_ms.saturating_sub(began));
        self.node.bring(CoreEvent::LogDone { seq });
        self.node.stats.log_synced(took, ops.len(), took > self.slow);
        if took > self.slow {
            warn!(operations = ops.len(), ?took, "writing the log was slow");
        }
        ops.clear();
    }

    fn write_marks(&mut self) {
        if let Err(error) = self.peers.write_marks(&*self.device) {
            stop_at_once(&format!("cannot remember what peers hold: {error}"));
        }
    }

    fn or_stop<T>(&mut self, operation: impl FnOnce(&mut TxnLog) -> Result<T, LogError>) -> T {
        match operation(&mut self.log) {
            Ok(value) => value,
            Err(error) => stop_at_once(&format!("the log failed: {error}")),
        }
    }
}

/// Keeping more log than half the state is a waste: the state is sent sooner than so much log. Within bounds.
fn retention(configured: u64, store_bytes: u64) -> u64 {
    configured.min(store_bytes / 2).max(RETENTION_MIN_BYTES)
}

/// Makes the next start an amnesiac one, and ends this process.
fn condemn(device: &dyn LogDevice, log: &TxnLog, files: Condemned, seen_start: u64, reason: &str) -> ! {
    let mut record = log.record();
    record.identity.start_count = record.identity.start_count.max(seen_start);
    record.identity.membership = Membership::Amnesiac;
    record.condemned = record.condemned.max(files);
    match record.write(device) {
        Ok(()) => stop_at_once(&format!(
            "{reason}; this server does not vote after its next start until it has learned what it may have lost"
        )),
        Err(error) => stop_at_once(&format!("{reason}; and the data folder could not be marked: {error}")),
    }
}

/// Thread `log-read`.
pub(crate) fn run_reader(node: &NodeShared, reader: &LogReader, inbox: &Mailbox<ReadLog>) {
    let mut requests = Vec::new();
    loop {
        inbox.take(&mut requests, None);
        for request in requests.drain(..) {
            match request {
                ReadLog::Read { request, after, max_bytes } => match reader.read(after, max_bytes) {
                    Ok(entries) => node.core.push(CoreEvent::LogRead { request, entries }),
                    Err(error) => stop_at_once(&format!("the log cannot be read: {error}")),
                },
                ReadLog::Stop => return,
            }
        }
    }
}

/// Thread `log-prepare`.
pub(crate) fn run_preparer(preparer: &SegmentPreparer, inbox: &Mailbox<Prepare>) {
    let mut requests = Vec::new();
    loop {
        inbox.take(&mut requests, None);
        if requests.iter().any(|request| matches!(request, Prepare::Stop)) {
            return;
        }
        requests.clear();
        if let Err(error) = preparer.prepare_next() {
            stop_at_once(&format!("no new segment of the log can be made: {error}"));
        }
    }
}
