//! The transaction log: segments of frames, written by one writer in order (P1).
//!
//! [`TxnLog::write`] performs operations in the order given and returns when all of them are durable. What can be one
//! write is one: consecutive appends and a promise among them become one frame, one `pwrite`, one `fdatasync`. Strictly
//! one frame is in flight: the next is written after the sync of the one before returned; [`super::scan`] relies on it.
//!
//! Every error is final (P28): a failed sync may have marked pages clean that never reached the disk, so trying again
//! proves nothing. The caller ends the process; the next start rewrites the log's tail before it trusts it.

use std::sync::Arc;

use bytes::Bytes;
use corral_proto::Zxid;
use parking_lot::{Mutex, RwLock};

use super::folder::{Current, FolderError, IdentityRecord, InstallIntent, LOG_DIR};
use super::frame::{BLOCK, ENTRY_HEAD, FRAME_HEAD, FrameHead, SegmentHeader, blocks, put_entry, remove_if_there};
use super::log_device::{DeviceError, DeviceFile, DeviceResult, LogDevice, list_or_empty};
use super::scan::{FrameError, FrameRef, Index, Scanned, Segment, read_frame, segment_path};
use crate::zab::io::{Entry, LogOp, Position, Promise, SnapshotMeta};
use crate::zoo::{self, Switch};

/// Body of one frame, bytes; more is split into several frames. A single entry may be larger.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

/// Zeros written after the last frame when the tail is rewritten at start, bytes: room for the time in which the
/// next segment is prepared.
const REWRITE_SPARE_BYTES: u64 = 8 << 20;

/// One write of zeros or of copied frames, bytes.
const COPY_BYTES: usize = 1 << 20;

/// Suffix of files that count for nothing after a restart.
const TEMPORARY_SUFFIX: &str = ".tmp";

/// How often [`LogReader::read`] looks again when truncations interfere.
const READ_ATTEMPTS: u32 = 3;

/// Settings of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// Size of a segment, bytes; rounded up to whole blocks, at least two.
    pub segment_bytes: u64,
    /// What trimming leaves in place for learners that lag, bytes.
    pub retention_bytes: u64,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions { segment_bytes: 64 << 20, retention_bytes: 256 << 20 }
    }
}

/// Why the log cannot go on. All of them end the process (P28).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A frame that was durable cannot be read back.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A small file of the data folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// An entry does not follow the log's end. Nothing of it was written.
    #[error("entry {entry} does not follow the end of the log at {end}")]
    DoesNotFollow {
        /// The entry.
        entry: Zxid,
        /// Where the log ends.
        end: Zxid,
    },
    /// The log has no such position to be cut at.
    #[error("the log cannot be cut at {to}: it holds what is after {base} up to {end}, and not this")]
    BadCut {
        /// Where it should be cut.
        to: Zxid,
        /// Its base.
        base: Zxid,
        /// Its end.
        end: Zxid,
    },
    /// A promise below the one on disk (P3).
    #[error("promise of epoch {offered} after one of epoch {made}")]
    PromiseFell {
        /// The new one.
        offered: u32,
        /// The one on disk.
        made: u32,
    },
    /// Dropping old segments would lose the promise.
    #[error("the segments that stay do not carry the promise of epoch {made}")]
    PromiseLost {
        /// The one that was made.
        made: u32,
    },
    /// A former operation failed.
    #[error("the log failed before and takes no further operation")]
    Failed,
}

struct Prepared {
    path: String,
    file: Arc<dyn DeviceFile>,
    bytes: u64,
}

struct Shared {
    device: Arc<dyn LogDevice>,
    instance: u64,
    segment_bytes: u64,
    index: RwLock<Index>,
    prepared: Mutex<(u64, Option<Prepared>)>,
}

/// The segment that is written to.
struct Active {
    number: u64,
    file: Arc<dyn DeviceFile>,
    /// Where the next frame goes.
    offset: u64,
    /// Bytes that are allocated.
    capacity: u64,
    frames: u64,
    sealed: bool,
}

/// Operations that become one frame.
#[derive(Default)]
struct Batch {
    /// Room for the head, then encoded entries.
    frame: Vec<u8>,
    truncate: Option<Position>,
    promise: Option<Promise>,
    prev: Position,
    last: Position,
    first: Zxid,
    count: u32,
    stamp_ms: i64,
}

/// The log and its only writer.
pub struct TxnLog {
    shared: Arc<Shared>,
    options: LogOptions,
    record: IdentityRecord,
    active: Active,
    promise: Promise,
    stamp_ms: i64,
    /// Segments that an install made void, to be removed when it is convenient.
    void: Vec<String>,
    batch: Batch,
    durable_seq: u64,
    failed: bool,
}

impl TxnLog {
    /// Begins a log after `base` in a folder that has no segments.
    ///
    /// # Errors
    /// Any of the device.
    pub fn create(
        device: Arc<dyn LogDevice>,
        options: LogOptions,
        record: IdentityRecord,
        base: Position,
        stamp_ms: i64,
        promise: Promise,
    ) -> Result<TxnLog, LogError> {
        device.create_dir(LOG_DIR)?;
        device.sync_dir("")?;
        remove_temporaries(device.as_ref())?;
        let shared = Shared::new(device, options, record, Index { base, end: base, ..Index::default() });
        let (active, segment) = begin_segment(&shared, &record, 1, base, stamp_ms, promise, true)?;
        shared.index.write().segments.push_back(segment);
        Ok(TxnLog::with(shared, options, record, active, promise, stamp_ms))
    }

    /// Goes on with a log that [`super::scan::scan`] has read. Its last segment is copied, without what is torn, into
    /// a new file that replaces it: what was read may be in the page cache only, after a failed sync even for ever.
    ///
    /// # Errors
    /// Any of the device.
    pub fn open(
        device: Arc<dyn LogDevice>,
        options: LogOptions,
        record: IdentityRecord,
        scanned: Scanned,
    ) -> Result<TxnLog, LogError> {
        remove_temporaries(device.as_ref())?;
        for path in &scanned.void {
            remove_if_there(device.as_ref(), path)?;
            device.sync_dir(LOG_DIR)?;
        }
        let Scanned { mut index, promise, stamp_ms, last_frames, sealed, .. } = scanned;
        let end = index.end;
        // A crash may have come between the two steps of a change of segments.
        let unmarked = index.segments.len().checked_sub(2).filter(|at| !index.segments[*at].followed);
        if let Some(at) = unmarked {
            let seam = index.segments[at + 1].base;
            mark_followed(record.identity.instance, &mut index.segments[at], seam)?;
        }
        let last = index.segments.back_mut().expect("a scanned log has a segment");
        let active = rewrite_tail(device.as_ref(), options, record.identity.instance, last, end, last_frames, sealed)?;
        let shared = Shared::new(device, options, record, index);
        let promise = promise.max(record.promise);
        Ok(TxnLog::with(shared, options, record, active, promise, stamp_ms))
    }

    fn with(
        shared: Shared,
        options: LogOptions,
        record: IdentityRecord,
        active: Active,
        promise: Promise,
        stamp_ms: i64,
    ) -> TxnLog {
        TxnLog {
            shared: Arc::new(shared),
            options,
            record,
            active,
            promise,
            stamp_ms,
            void: Vec::new(),
            batch: Batch::default(),
            durable_seq: 0,
            failed: false,
        }
    }

    /// Performs operations in order. When it returns, all of them are durable; the result is the sequence number of
    /// the last (of the last ever, for no operations).
    ///
    /// # Errors
    /// See [`LogError`]: final. Some of the operations may be durable then.
    pub fn write(&mut self, ops: &[(u64, LogOp)]) -> Result<u64, LogError> {
        self.guarded(|log| {
            log.begin_batch();
            for (_, op) in ops {
                log.perform(op)?;
            }
            log.flush()
        })?;
        if let Some((seq, _)) = ops.last() {
            self.durable_seq = *seq;
        }
        Ok(self.durable_seq)
    }

    /// Writes a seal if the last frame is none, so that this frame is provably complete and its later loss would be
    /// known as damage. To be called when the log was idle for about 100 ms. Returns whether it wrote.
    ///
    /// # Errors
    /// See [`LogError`]: final.
    pub fn seal_if_idle(&mut self) -> Result<bool, LogError> {
        let fits = self.active.offset + 2 * BLOCK as u64 <= self.active.capacity;
        if self.active.sealed || self.active.frames == 0 || !fits || self.failed {
            return Ok(false);
        }
        self.guarded(|log| {
            let end = log.end();
            let head = FrameHead { prev: end, last: end, seal: true, ..FrameHead::default() };
            log.begin_batch();
            log.write_frame(head)
        })?;
        Ok(true)
    }

    /// Prepares the next segment, unless one is ready: allocated, full of zeros, durable, under a temporary name.
    /// Takes as long as writing a segment; [`TxnLog::preparer`] does it on another thread.
    ///
    /// # Errors
    /// Any of the device: final.
    pub fn prepare_next(&self) -> Result<(), LogError> {
        self.shared.prepare().map_err(LogError::from)
    }

    /// A handle that prepares segments on another thread.
    pub fn preparer(&self) -> SegmentPreparer {
        SegmentPreparer { shared: self.shared.clone() }
    }

    /// A handle that reads entries on another thread.
    pub fn reader(&self) -> LogReader {
        LogReader { shared: self.shared.clone() }
    }

    /// Drops whole old segments whose entries are all at or below `upto`, which must be applied durably (P27), as
    /// long as [`LogOptions::retention_bytes`] remain. Returns the new base if it moved.
    ///
    /// # Errors
    /// See [`LogError`]: final.
    pub fn trim(&mut self, upto: Zxid) -> Result<Option<Position>, LogError> {
        self.guarded(|log| {
            log.remove_void()?;
            let mut moved = None;
            while let Some(base) = log.removable(upto) {
                log.check_promise_without_first()?;
                let path = {
                    // Readers stop seeing it first; those that have its file open may finish.
                    let mut index = log.shared.index.write();
                    let first = index.segments.pop_front().expect("removable names the first of several");
                    index.base = base;
                    first.path
                };
                log.shared.device.remove(&path)?;
                // One by one, so that a power cut leaves no gap between segments.
                log.shared.device.sync_dir(LOG_DIR)?;
                moved = Some(base);
            }
            Ok(moved)
        })
    }

    /// Changes what trimming leaves in place, bytes.
    pub fn set_retention(&mut self, bytes: u64) {
        self.options.retention_bytes = bytes;
    }

    /// The log begins after it.
    pub fn base(&self) -> Position {
        self.shared.index.read().base
    }

    /// The log ends with it; all of it is durable.
    pub fn end(&self) -> Position {
        self.shared.index.read().end
    }

    /// The promise on disk.
    pub fn promise(&self) -> Promise {
        self.promise
    }

    /// Largest stamp of an entry so far, ms.
    pub fn stamp_ms(&self) -> i64 {
        self.stamp_ms
    }

    /// The identity file was changed by recovery, which is over now.
    pub(super) fn with_record(self, record: IdentityRecord) -> TxnLog {
        TxnLog { record, ..self }
    }

    /// Content of the identity file.
    pub fn record(&self) -> IdentityRecord {
        self.record
    }

    /// Bytes of the segments in use.
    pub fn bytes(&self) -> u64 {
        self.shared.index.read().bytes()
    }

    fn guarded<T>(&mut self, f: impl FnOnce(&mut TxnLog) -> Result<T, LogError>) -> Result<T, LogError> {
        if self.failed {
            return Err(LogError::Failed);
        }
        let result = f(self);
        self.failed = result.is_err();
        result
    }

    fn begin_batch(&mut self) {
        let end = self.end();
        let batch = &mut self.batch;
        batch.frame.clear();
        batch.frame.resize(FRAME_HEAD, 0);
        batch.frame.shrink_to(FRAME_BYTES_MAX);
        batch.truncate = None;
        batch.promise = None;
        batch.prev = end;
        batch.last = end;
        batch.first = Zxid::ZERO;
        batch.count = 0;
        batch.stamp_ms = self.stamp_ms;
    }

    fn perform(&mut self, op: &LogOp) -> Result<(), LogError> {
        match op {
            LogOp::Append(entries) => entries.iter().try_for_each(|entry| self.append(entry)),
            LogOp::Truncate { to } => self.truncate(*to),
            LogOp::SetPromise(promise) => self.set_promise(*promise),
            LogOp::SetIdentity(identity) => {
                self.flush()?;
                let record = IdentityRecord { identity: *identity, ..self.record };
                record.write(self.shared.device.as_ref())?;
                self.record = record;
                Ok(())
            }
            LogOp::InstallSnapshot(snapshot) => {
                self.flush()?;
                self.install(snapshot)
            }
        }
    }

    fn append(&mut self, entry: &Entry) -> Result<(), LogError> {
        let last = self.batch.last;
        let expected = Entry::chain(last.hash, entry.zxid, entry.stamp_ms, &entry.payload);
        if entry.zxid <= last.zxid || entry.hash != expected {
            return Err(LogError::DoesNotFollow { entry: entry.zxid, end: last.zxid });
        }
        if self.batch.count > 0 && self.batch.frame.len() + ENTRY_HEAD + entry.payload.len() > FRAME_BYTES_MAX {
            self.flush()?;
        }
        let batch = &mut self.batch;
        if batch.count == 0 {
            batch.first = entry.zxid;
        }
        put_entry(&mut batch.frame, entry);
        batch.count += 1;
        batch.last = Position { zxid: entry.zxid, hash: entry.hash };
        batch.stamp_ms = batch.stamp_ms.max(entry.stamp_ms);
        Ok(())
    }

    fn truncate(&mut self, to: Position) -> Result<(), LogError> {
        // A frame is cut first and then appended to, and what is cut must be known to the index.
        self.flush()?;
        let index = self.shared.index.read();
        if to == index.end {
            return Ok(());
        }
        if index.position_of(self.shared.instance, to.zxid)? != Some(to) {
            return Err(LogError::BadCut { to: to.zxid, base: index.base.zxid, end: index.end.zxid });
        }
        self.batch.truncate = Some(to);
        self.batch.prev = to;
        self.batch.last = to;
        Ok(())
    }

    fn set_promise(&mut self, promise: Promise) -> Result<(), LogError> {
        let made = self.batch.promise.unwrap_or(self.promise);
        if promise.epoch < made.epoch {
            return Err(LogError::PromiseFell { offered: promise.epoch, made: made.epoch });
        }
        if promise != made {
            self.batch.promise = Some(promise);
        }
        Ok(())
    }

    /// Makes the batch durable and begins the next.
    fn flush(&mut self) -> Result<(), LogError> {
        let batch = &self.batch;
        let head = FrameHead {
            body_len: batch.frame.len() - FRAME_HEAD,
            prev: batch.prev,
            first: batch.first,
            last: batch.last,
            count: batch.count,
            promise: batch.promise,
            truncate: batch.truncate.is_some(),
            ..FrameHead::default()
        };
        if !head.is_empty() {
            self.write_frame(head)?;
        }
        self.begin_batch();
        Ok(())
    }

    /// Writes one frame, whose body is in the batch, and waits until it is durable.
    fn write_frame(&mut self, mut head: FrameHead) -> Result<(), LogError> {
        let bytes = blocks(head.len()) as u64;
        // The seal that ends the segment must fit, too.
        if self.active.frames > 0 && self.active.offset + bytes + BLOCK as u64 > self.active.capacity {
            self.change_segment(self.end(), self.stamp_ms, false)?;
        }
        head.segment = self.active.number;
        head.number = self.active.frames + 1;
        head.seal_into(self.shared.instance, &mut self.batch.frame);
        self.active.file.write(self.active.offset, &self.batch.frame)?;
        let synced = self.active.file.sync();
        if synced.is_err() && zoo::broken(Switch::FsyncTriedAgain) {
            self.active.file.sync()?;
        } else {
            synced?;
        }
        self.shared.index.write().push(&head, self.active.offset);
        self.active.offset += bytes;
        self.active.frames += 1;
        self.active.sealed = head.seal;
        self.promise = head.promise.unwrap_or(self.promise);
        self.stamp_ms = self.stamp_ms.max(self.batch.stamp_ms);
        Ok(())
    }

    fn change_segment(&mut self, base: Position, stamp_ms: i64, reset: bool) -> Result<(), LogError> {
        let number = self.active.number + 1;
        let end = self.end();
        let (active, segment) = begin_segment(&self.shared, &self.record, number, base, stamp_ms, self.promise, reset)?;
        self.active = active;
        let mut index = self.shared.index.write();
        // Before anything in the new segment is acknowledged, the old one says that it must be there.
        if let Some(before) = index.segments.back_mut() {
            mark_followed(self.shared.instance, before, end)?;
        }
        if reset {
            self.void.extend(index.segments.drain(..).map(|segment| segment.path));
            index.base = base;
            index.end = base;
            index.cuts += 1;
        }
        index.segments.push_back(segment);
        Ok(())
    }

    /// Switches the state, then begins the log anew behind it. From the intent on the install happens, however often it
    /// is interrupted ([`super::recover`] finishes it); before it the old log counts.
    fn install(&mut self, snapshot: &SnapshotMeta) -> Result<(), LogError> {
        let device = self.shared.device.clone();
        let generation = match Current::read(device.as_ref())? {
            super::folder::Found::Valid(current) => current.generation + 1,
            _ => 1,
        };
        if !zoo::broken(Switch::InstallWithoutIntent) {
            InstallIntent { snapshot: *snapshot, generation }.write(device.as_ref())?;
        }
        Current { generation }.write(device.as_ref())?;
        self.reset_to(snapshot)?;
        InstallIntent::clear(device.as_ref())?;
        self.begin_batch();
        Ok(())
    }

    /// Begins the log anew after a snapshot, in a segment that makes all former ones void.
    pub(super) fn reset_to(&mut self, snapshot: &SnapshotMeta) -> Result<(), LogError> {
        self.stamp_ms = snapshot.stamp_ms;
        self.change_segment(snapshot.position, snapshot.stamp_ms, true)
    }

    fn remove_void(&mut self) -> Result<(), LogError> {
        for path in std::mem::take(&mut self.void) {
            remove_if_there(self.shared.device.as_ref(), &path)?;
            self.shared.device.sync_dir(LOG_DIR)?;
        }
        Ok(())
    }

    /// The base that the log would have without its first segment, if that may go.
    fn removable(&self, upto: Zxid) -> Option<Position> {
        let index = self.shared.index.read();
        let first = index.segments.front().filter(|_| index.segments.len() > 1)?;
        if index.bytes() - first.used < self.options.retention_bytes {
            return None;
        }
        if first.frames.last().is_some_and(|frame| frame.last.zxid > upto) {
            return None;
        }
        // The second segment's base may lie on a branch that a later segment cuts off below it.
        let base = index.segments.iter().skip(1).map(|segment| segment.low).min_by_key(|low| low.zxid)?;
        (base.zxid <= upto).then_some(base)
    }

    fn check_promise_without_first(&self) -> Result<(), LogError> {
        let index = self.shared.index.read();
        let carried = index.segments.iter().skip(1).map(|segment| segment.promise).max().unwrap_or_default();
        if carried.max(self.record.promise) < self.promise {
            return Err(LogError::PromiseLost { made: self.promise.epoch });
        }
        Ok(())
    }
}

impl Shared {
    fn new(device: Arc<dyn LogDevice>, options: LogOptions, record: IdentityRecord, index: Index) -> Shared {
        Shared {
            device,
            instance: record.identity.instance,
            segment_bytes: segment_bytes(options),
            index: RwLock::new(index),
            prepared: Mutex::new((0, None)),
        }
    }

    fn prepare(&self) -> DeviceResult<()> {
        // Whoever needs a segment meanwhile waits for this one: making another would take as long.
        let mut prepared = self.prepared.lock();
        if prepared.1.is_none() {
            prepared.0 += 1;
            let path = format!("{LOG_DIR}/prepared-{}{TEMPORARY_SUFFIX}", prepared.0);
            let file = self.device.create(&path)?;
            write_zeros(file.as_ref(), 0, self.segment_bytes)?;
            file.sync()?;
            prepared.1 = Some(Prepared { path, file, bytes: self.segment_bytes });
        }
        Ok(())
    }

    fn take_prepared(&self) -> DeviceResult<Prepared> {
        loop {
            self.prepare()?;
            if let Some(prepared) = self.prepared.lock().1.take() {
                return Ok(prepared);
            }
        }
    }
}

fn segment_bytes(options: LogOptions) -> u64 {
    options.segment_bytes.max(2 * BLOCK as u64).next_multiple_of(BLOCK as u64)
}

fn write_zeros(file: &dyn DeviceFile, from: u64, to: u64) -> DeviceResult<()> {
    let zeros = vec![0; COPY_BYTES.min(to.saturating_sub(from) as usize)];
    let mut at = from;
    while at < to {
        let part = zeros.len().min((to - at) as usize);
        file.write(at, &zeros[..part])?;
        at += part as u64;
    }
    Ok(())
}

fn remove_temporaries(device: &dyn LogDevice) -> DeviceResult<()> {
    let mut removed = false;
    for name in list_or_empty(device, LOG_DIR)? {
        if name.ends_with(TEMPORARY_SUFFIX) {
            remove_if_there(device, &format!("{LOG_DIR}/{name}"))?;
            removed = true;
        }
    }
    if removed { device.sync_dir(LOG_DIR) } else { Ok(()) }
}

/// Activates a prepared segment: header, sync, final name, sync of the folder. Only then frames may follow.
fn begin_segment(
    shared: &Shared,
    record: &IdentityRecord,
    number: u64,
    base: Position,
    base_stamp_ms: i64,
    promise: Promise,
    reset: bool,
) -> DeviceResult<(Active, Segment)> {
    let prepared = shared.take_prepared()?;
    let header = SegmentHeader {
        server: record.identity.server,
        instance: record.identity.instance,
        cluster: record.identity.cluster,
        segment: number,
        base,
        base_stamp_ms,
        promise: if zoo::broken(Switch::PromiseNotCarried) { Promise::default() } else { promise },
        reset,
        bytes: prepared.bytes,
    };
    prepared.file.write(0, &header.encode())?;
    prepared.file.sync()?;
    let path = segment_path(number, base.zxid);
    shared.device.rename(&prepared.path, &path)?;
    if !zoo::broken(Switch::FolderNotSynced) {
        shared.device.sync_dir(LOG_DIR)?;
    }
    let offset = BLOCK as u64;
    let active =
        Active { number, file: prepared.file.clone(), offset, capacity: prepared.bytes, frames: 0, sealed: false };
    let file = prepared.file;
    let frames = Vec::new();
    let segment =
        Segment { number, path, file, base, low: base, promise, used: offset, frames, count: 0, followed: false };
    Ok((active, segment))
}

/// Ends a segment, whose log ended at `end`, with the seal that says that the next one was begun.
fn mark_followed(instance: u64, segment: &mut Segment, end: Position) -> DeviceResult<()> {
    let head = FrameHead {
        segment: segment.number,
        number: segment.count + 1,
        prev: end,
        last: end,
        seal: true,
        followed: true,
        ..FrameHead::default()
    };
    let mut mark = vec![0; FRAME_HEAD];
    head.seal_into(instance, &mut mark);
    segment.file.write(segment.used, &mark)?;
    segment.file.sync()?;
    segment.used += mark.len() as u64;
    segment.count += 1;
    segment.followed = true;
    Ok(())
}

/// Copies the last segment up to its end, adds a seal, and puts the copy in its place.
fn rewrite_tail(
    device: &dyn LogDevice,
    options: LogOptions,
    instance: u64,
    last: &mut Segment,
    end: Position,
    mut frames: u64,
    mut sealed: bool,
) -> DeviceResult<Active> {
    let temporary = format!("{LOG_DIR}/rewrite{TEMPORARY_SUFFIX}");
    let file = device.create(&temporary)?;
    let mut at = 0;
    while at < last.used {
        let bytes = last.file.read(at, COPY_BYTES.min((last.used - at) as usize))?;
        file.write(at, &bytes)?;
        at += bytes.len() as u64;
        if bytes.is_empty() {
            return Err(DeviceError::Failed {
                operation: "read",
                path: last.path.clone(),
                reason: "the file became shorter".into(),
            });
        }
    }
    if !sealed && frames > 0 {
        frames += 1;
        sealed = true;
        let head = FrameHead {
            segment: last.number,
            number: frames,
            prev: end,
            last: end,
            seal: true,
            ..FrameHead::default()
        };
        let mut seal = vec![0; FRAME_HEAD];
        head.seal_into(instance, &mut seal);
        file.write(last.used, &seal)?;
        last.used += seal.len() as u64;
        last.count += 1;
    }
    let capacity = segment_bytes(options).min(last.used + REWRITE_SPARE_BYTES).max(last.used);
    write_zeros(file.as_ref(), last.used, capacity)?;
    if let Ok(header) = SegmentHeader::decode(&file.read(0, BLOCK)?) {
        file.write(0, &SegmentHeader { bytes: capacity, ..header }.encode())?;
    }
    if !zoo::broken(Switch::TailNotRewritten) {
        file.sync()?;
    }
    device.rename(&temporary, &last.path)?;
    device.sync_dir(LOG_DIR)?;
    last.file = file.clone();
    Ok(Active { number: last.number, file, offset: last.used, capacity, frames, sealed })
}

/// Prepares segments on another thread than the writer's.
#[derive(Clone)]
pub struct SegmentPreparer {
    shared: Arc<Shared>,
}

impl SegmentPreparer {
    /// As [`TxnLog::prepare_next`].
    ///
    /// # Errors
    /// Any of the device: final.
    pub fn prepare_next(&self) -> Result<(), LogError> {
        self.shared.prepare().map_err(LogError::from)
    }
}

/// Reads entries while the log is written.
#[derive(Clone)]
pub struct LogReader {
    shared: Arc<Shared>,
}

impl LogReader {
    /// Entries after `after`, about `max_bytes` of them (at least one, if there is one; whole frames are read).
    /// Empty if `after` is the end, or before the base: then the place is gone from the log. Everything returned is
    /// durable and follows each other.
    ///
    /// # Errors
    /// [`LogError::Frame`] if what was durable cannot be read: final.
    pub fn read(&self, after: Zxid, max_bytes: usize) -> Result<Vec<Entry>, LogError> {
        for _ in 0..READ_ATTEMPTS {
            let (cuts, frames) = self.plan(after, max_bytes);
            let mut entries = Vec::new();
            let mut bytes = 0;
            for (segment, frame) in &frames {
                for entry in read_frame(self.shared.instance, segment, frame)? {
                    if entry.zxid > after && (entries.is_empty() || bytes < max_bytes) {
                        bytes += entry.weight();
                        entries.push(entry);
                    }
                }
            }
            // A truncation in between may have taken some of them back.
            if self.shared.index.read().cuts == cuts {
                return Ok(entries);
            }
        }
        Ok(Vec::new())
    }

    /// The log begins after it.
    pub fn base(&self) -> Position {
        self.shared.index.read().base
    }

    /// The log ends with it; all of it is durable.
    pub fn end(&self) -> Position {
        self.shared.index.read().end
    }

    /// Entries at the end of the log: all after `after`, and so many before that all together weigh at most
    /// `max_bytes` (if those after `after` weigh less).
    ///
    /// # Errors
    /// [`LogError::Frame`] if what was durable cannot be read.
    pub fn read_tail(&self, after: Zxid, max_bytes: usize) -> Result<Vec<Entry>, LogError> {
        let mut chosen: Vec<(Segment, FrameRef)> = Vec::new();
        {
            let index = self.shared.index.read();
            let mut bytes = 0;
            'segments: for segment in index.segments.iter().rev() {
                for frame in segment.frames.iter().rev() {
                    if bytes >= max_bytes && frame.last.zxid <= after {
                        break 'segments;
                    }
                    // Entries weigh more than they take in a frame, so this never stops too early.
                    bytes += frame.len as usize - FRAME_HEAD;
                    chosen.push((without_frames(segment), *frame));
                }
            }
        }
        let mut entries = Vec::new();
        for (segment, frame) in chosen.iter().rev() {
            entries.extend(read_frame(self.shared.instance, segment, frame)?);
        }
        let mut weight: usize = entries.iter().map(Entry::weight).sum();
        let surplus = entries
            .iter()
            .take_while(|entry| {
                let drop = weight > max_bytes && entry.zxid <= after;
                if drop {
                    weight -= entry.weight();
                }
                drop
            })
            .count();
        entries.drain(..surplus);
        // A few entries must not keep the whole frame they were read with in memory.
        for entry in &mut entries {
            entry.payload = Bytes::copy_from_slice(&entry.payload);
        }
        Ok(entries)
    }

    /// Frames to read, and the state of the index they were taken from.
    fn plan(&self, after: Zxid, max_bytes: usize) -> (u64, Vec<(Segment, FrameRef)>) {
        let index = self.shared.index.read();
        if after < index.base.zxid {
            return (index.cuts, Vec::new());
        }
        let mut bytes = 0;
        let mut frames = Vec::new();
        for (segment, frame) in index.frames_after(after) {
            frames.push((without_frames(segment), frame));
            bytes += frame.len as usize;
            if bytes >= max_bytes {
                break;
            }
        }
        (index.cuts, frames)
    }
}

/// What is needed to read from a segment, without its part of the index.
fn without_frames(segment: &Segment) -> Segment {
    Segment { path: segment.path.clone(), file: segment.file.clone(), frames: Vec::new(), ..*segment }
}
