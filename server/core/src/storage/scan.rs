//! Reads a log at start and judges it: what is there, what a power cut left torn, what is damaged.
//!
//! One frame is in flight at a time and its entries are acknowledged only after its sync. So a power cut can tear the
//! last frame only, and what follows a torn frame was never written. A bad frame with a valid one after it (in its
//! segment, or implied by the base of a later segment) was durable once: that is damage, and cutting there would
//! silently drop what was acknowledged.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use corral_proto::{ServerId, Zxid};

use super::folder::LOG_DIR;
use super::frame::{BLOCK, FrameHead, HeaderError, SegmentHeader, blocks, entries_of};
use super::log_device::{DeviceError, DeviceFile, DeviceResult, LogDevice, list_or_empty};
use crate::zab::io::{Entry, Position, Promise};
use crate::zoo::{self, Switch};

/// Suffix of segments in use.
const SEGMENT_SUFFIX: &str = ".seg";

/// The path of a segment.
pub fn segment_path(number: u64, base: Zxid) -> String {
    format!("{LOG_DIR}/{number:016x}-{:016x}{SEGMENT_SUFFIX}", base.0)
}

/// The number in a segment's name.
pub(super) fn segment_number(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_suffix(SEGMENT_SUFFIX)?.split_once('-')?.0, 16).ok()
}

/// Where one frame's entries are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRef {
    /// What its entries follow.
    pub prev: Position,
    /// Its last entry that has not been truncated.
    pub last: Position,
    /// Place in its file.
    pub offset: u64,
    /// Bytes without padding.
    pub len: u32,
}

/// One segment.
#[derive(Clone)]
pub struct Segment {
    /// Its number.
    pub number: u64,
    /// Its path.
    pub path: String,
    /// The open file.
    pub file: Arc<dyn DeviceFile>,
    /// Where the log ended when it was begun.
    pub base: Position,
    /// The lowest position at which it says the log ended: its base, or a cut below it.
    pub low: Position,
    /// Largest promise in it.
    pub promise: Promise,
    /// Bytes up to the end of its last frame, padding included.
    pub used: u64,
    /// Frames with living entries, ascending.
    pub frames: Vec<FrameRef>,
    /// Frames of every kind.
    pub count: u64,
    /// It ends with the seal that says that the next segment was begun.
    pub followed: bool,
}

/// Which entries are where.
#[derive(Clone, Default)]
pub struct Index {
    /// Oldest first.
    pub segments: VecDeque<Segment>,
    /// The log begins after it.
    pub base: Position,
    /// The log ends with it.
    pub end: Position,
    /// Truncations and installs so far: a reader that sees it change looks again.
    pub cuts: u64,
}

impl Index {
    /// Forgets what is after `to`, which is a position of this log or below its base.
    pub fn truncate(&mut self, to: Position) {
        'segments: for segment in self.segments.iter_mut().rev() {
            while let Some(frame) = segment.frames.last_mut() {
                if frame.prev.zxid >= to.zxid {
                    segment.frames.pop();
                } else {
                    if frame.last.zxid > to.zxid {
                        frame.last = to;
                    }
                    break 'segments;
                }
            }
        }
        if to.zxid < self.base.zxid {
            self.base = to;
        }
        if let Some(segment) = self.segments.back_mut()
            && to.zxid < segment.low.zxid
        {
            segment.low = to;
        }
        self.end = to;
        self.cuts += 1;
    }

    /// Enters a frame of the last segment that is durable now.
    pub fn push(&mut self, head: &FrameHead, offset: u64) {
        if head.truncate {
            self.truncate(head.prev);
        }
        self.end = head.last;
        let segment = self.segments.back_mut().expect("a frame is written into a segment");
        segment.used = offset + blocks(head.len()) as u64;
        segment.count = head.number;
        segment.followed = head.followed;
        if let Some(promise) = head.promise {
            segment.promise = segment.promise.max(promise);
        }
        if head.count > 0 {
            let len = head.len() as u32;
            segment.frames.push(FrameRef { prev: head.prev, last: head.last, offset, len });
        }
    }

    /// The first frame with an entry after `after`, and those behind it, oldest first.
    pub fn frames_after(&self, after: Zxid) -> impl Iterator<Item = (&Segment, FrameRef)> {
        self.segments.iter().flat_map(move |segment| {
            let start = segment.frames.partition_point(|frame| frame.last.zxid <= after);
            segment.frames[start..].iter().map(move |frame| (segment, *frame))
        })
    }

    /// The position of an entry of this log, or of its base; `None` if there is no such entry.
    ///
    /// # Errors
    /// [`FrameError`] if the frame that holds it cannot be read.
    pub fn position_of(&self, instance: u64, zxid: Zxid) -> Result<Option<Position>, FrameError> {
        if zxid == self.base.zxid {
            return Ok(Some(self.base));
        }
        if zxid < self.base.zxid || zxid > self.end.zxid {
            return Ok(None);
        }
        let before = Zxid(zxid.0 - 1);
        let Some((segment, frame)) = self.frames_after(before).next() else { return Ok(None) };
        if frame.last.zxid == zxid {
            return Ok(Some(frame.last));
        }
        let entries = read_frame(instance, segment, &frame)?;
        let found = entries.iter().find(|entry| entry.zxid == zxid);
        Ok(found.map(|entry| Position { zxid, hash: entry.hash }))
    }

    /// Bytes of all segments in use.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.used).sum()
    }
}

/// Why a frame could not be read back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// It was whole when it was written, and is not any more.
    #[error("log segment {path} is damaged at byte {offset}: a frame that was durable cannot be read")]
    Rotten {
        /// Which file.
        path: String,
        /// Where the frame begins.
        offset: u64,
    },
}

/// The living entries of a frame. Payloads share one buffer.
///
/// # Errors
/// See [`FrameError`].
pub fn read_frame(instance: u64, segment: &Segment, frame: &FrameRef) -> Result<Vec<Entry>, FrameError> {
    let bytes = Bytes::from(segment.file.read(frame.offset, frame.len as usize)?);
    let rotten = || FrameError::Rotten { path: segment.path.clone(), offset: frame.offset };
    let head = FrameHead::decode(instance, &bytes).ok_or_else(rotten)?;
    let mut entries = entries_of(&head, &bytes.slice(head.len() - head.body_len..head.len())).ok_or_else(rotten)?;
    entries.retain(|entry| entry.zxid <= frame.last.zxid);
    Ok(entries)
}

/// A log that can be gone on with.
pub struct Scanned {
    /// Everything readable that counts.
    pub index: Index,
    /// Largest promise in headers and frames.
    pub promise: Promise,
    /// Largest stamp, ms.
    pub stamp_ms: i64,
    /// The base, then the last position of each epoch that has entries after it, ascending.
    pub epochs: Vec<Position>,
    /// Frames in the last segment.
    pub last_frames: u64,
    /// Whether the last frame is a seal.
    pub sealed: bool,
    /// A frame in the last segment that was begun and not finished, at this byte: it is cut.
    pub torn_at: Option<u64>,
    /// Segments that count no more: made void by a later one, or never begun. To be removed.
    pub void: Vec<String>,
    /// Old segments that are damaged, whose entries the store contains: to be set aside, and what is wrong.
    pub skipped: Vec<(String, Damage)>,
}

/// Something no power cut explains.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path} at byte {offset}: {what}")]
pub struct Damage {
    /// Which file.
    pub path: String,
    /// Where.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
}

/// Why a log cannot be gone on with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// There are no segments.
    #[error("the log has no segment")]
    Missing,
    /// Something that was durable is gone; the server must forget that it ever knew and learn anew.
    #[error("the log is damaged: {0}")]
    Damaged(Damage),
    /// Whole frames that do not follow each other: a file of another log, or a bug. Nothing is touched.
    #[error("the log contradicts itself: {0}; it is left untouched")]
    Broken(Damage),
    /// A segment of another server or another disk.
    #[error("log segment {path} belongs to server {server}, data folder {instance:#x}: was it copied here?")]
    Foreign {
        /// Which file.
        path: String,
        /// Its server.
        server: ServerId,
        /// Its folder's random number.
        instance: u64,
    },
    /// Written by a newer program.
    #[error("log segment {path} has version {found}; this program reads version 1: was it written by a newer release?")]
    Version {
        /// Which file.
        path: String,
        /// Its version.
        found: u32,
    },
}

impl From<FrameError> for ScanError {
    fn from(error: FrameError) -> ScanError {
        match error {
            FrameError::Device(error) => ScanError::Device(error),
            FrameError::Rotten { path, offset } => {
                ScanError::Damaged(Damage { path, offset, what: "a durable frame is unreadable".into() })
            }
        }
    }
}

/// Whose log it is.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// The server.
    pub server: ServerId,
    /// Its folder.
    pub instance: u64,
}

struct Candidate {
    number: u64,
    path: String,
    file: Arc<dyn DeviceFile>,
    header: Option<SegmentHeader>,
}

/// Reads the log. `applied` is what the store contains: damage at or below it is no loss, and the log is then begun
/// after it.
///
/// # Errors
/// See [`ScanError`]. Nothing on the device is changed.
pub fn scan(device: &dyn LogDevice, owner: Owner, applied: Position) -> Result<Scanned, ScanError> {
    let mut candidates = candidates(device, owner)?;
    let mut void = Vec::new();
    if let Some(last) = candidates.last()
        && last.header.is_none()
    {
        let bytes = read_all(last.file.as_ref())?;
        if let Some(offset) = valid_frame(owner.instance, last.number, &bytes, 0) {
            let what = "the header is unreadable, and frames follow it".into();
            let damage = Damage { path: last.path.clone(), offset: offset as u64, what };
            // Its base is unknown, so nothing before it can be checked against it either.
            return Err(ScanError::Damaged(damage));
        }
        void.extend(candidates.pop().map(|last| last.path));
    }
    if let Some(reset) = candidates.iter().rposition(|c| c.header.is_some_and(|h| h.reset)) {
        void.extend(candidates.drain(..reset).map(|c| c.path));
    }
    if candidates.is_empty() {
        return Err(ScanError::Missing);
    }
    let mut from = 0;
    let mut skipped = Vec::new();
    let mut first_error = None;
    loop {
        match analyse(&candidates[from..], owner) {
            Ok(mut scanned) => {
                if let Some(error) = first_error
                    && scanned.index.base.zxid > applied.zxid
                {
                    return Err(error);
                }
                scanned.void = void;
                scanned.skipped = skipped;
                return Ok(scanned);
            }
            Err((at, ScanError::Damaged(damage))) => {
                first_error.get_or_insert(ScanError::Damaged(damage.clone()));
                let next = from + at + 1;
                if next >= candidates.len() {
                    return Err(first_error.expect("set just above"));
                }
                for candidate in &candidates[from..next] {
                    skipped.push((candidate.path.clone(), damage.clone()));
                }
                from = next;
            }
            Err((_, error)) => return Err(error),
        }
    }
}

/// Segments by number, with those headers that are readable.
fn candidates(device: &dyn LogDevice, owner: Owner) -> Result<Vec<Candidate>, ScanError> {
    let mut candidates = Vec::new();
    for name in list_or_empty(device, LOG_DIR)? {
        let Some(number) = segment_number(&name) else { continue };
        let path = format!("{LOG_DIR}/{name}");
        let file = device.open(&path)?;
        let header = match SegmentHeader::decode(&file.read(0, BLOCK)?) {
            Ok(header) if header.segment != number => None,
            Ok(header) => Some(header),
            Err(HeaderError::Invalid) => None,
            Err(HeaderError::Version(found)) => return Err(ScanError::Version { path, found }),
        };
        if let Some(header) = header
            && (header.server != owner.server || header.instance != owner.instance)
        {
            return Err(ScanError::Foreign { path, server: header.server, instance: header.instance });
        }
        candidates.push(Candidate { number, path, file, header });
    }
    candidates.sort_by(|a, b| (a.number, &a.path).cmp(&(b.number, &b.path)));
    Ok(candidates)
}

fn read_all(file: &dyn DeviceFile) -> DeviceResult<Bytes> {
    let size = file.size()?;
    Ok(Bytes::from(file.read(0, size as usize)?))
}

/// The first block at or after `from` at which a whole frame of this segment begins.
fn valid_frame(instance: u64, segment: u64, bytes: &[u8], from: usize) -> Option<usize> {
    (from..bytes.len())
        .step_by(BLOCK)
        .find(|at| FrameHead::decode(instance, &bytes[*at..]).is_some_and(|head| head.segment == segment))
}

/// Reads consecutive segments. An error names the segment at which it was found, counted from the first.
fn analyse(candidates: &[Candidate], owner: Owner) -> Result<Scanned, (usize, ScanError)> {
    let mut reading = Reading::default();
    for (at, candidate) in candidates.iter().enumerate() {
        let damaged = |at: usize, offset: u64, what: &str| {
            let path = candidates[at].path.clone();
            (at, ScanError::Damaged(Damage { path, offset, what: what.to_owned() }))
        };
        let Some(header) = &candidate.header else {
            return Err(damaged(at, 0, "the header is unreadable"));
        };
        if at == 0 {
            reading.index.base = header.base;
            reading.index.end = header.base;
            reading.epochs = vec![header.base];
        } else if candidate.number != candidates[at - 1].number + 1 {
            return Err(damaged(at - 1, 0, "the segment after this one is missing"));
        } else if header.base != reading.index.end {
            let used = reading.index.segments.back().map_or(0, |segment| segment.used);
            return Err(damaged(at - 1, used, "the next segment says that more entries were here"));
        }
        reading.begin_segment(candidate, header);
        let bytes = read_all(candidate.file.as_ref()).map_err(|error| (at, error.into()))?;
        reading.frames = 0;
        let mut offset = BLOCK;
        while let Some(head) = bytes.get(offset..).and_then(|rest| FrameHead::decode(owner.instance, rest)) {
            if head.segment != candidate.number || head.number != reading.frames + 1 {
                break;
            }
            let body = bytes.slice(offset + head.len() - head.body_len..offset + head.len());
            reading.frame(owner.instance, &head, &body, offset as u64).map_err(|error| {
                let broken = |what: &str| {
                    ScanError::Broken(Damage {
                        path: candidate.path.clone(),
                        offset: offset as u64,
                        what: what.to_owned(),
                    })
                };
                (at, error.unwrap_or_else(broken))
            })?;
            offset += blocks(head.len());
        }
        if let Some(later) = valid_frame(owner.instance, candidate.number, &bytes, offset)
            && !zoo::broken(Switch::CutAtFirstBadChecksum)
        {
            let what = format!("unreadable, though a later frame at byte {later} is whole");
            return Err(damaged(at, offset as u64, &what));
        }
        if at + 1 == candidates.len() {
            if (bytes.len() as u64) < header.bytes {
                let what = format!("the file was made with {} bytes and has {}", header.bytes, bytes.len());
                return Err(damaged(at, bytes.len() as u64, &what));
            }
            if reading.index.segments.back().is_some_and(|segment| segment.followed) {
                return Err(damaged(at, offset as u64, "the segment after this one is missing"));
            }
            let rest = bytes.get(offset..).unwrap_or_default();
            reading.torn_at = rest.iter().any(|b| *b != 0).then_some(offset as u64);
        }
    }
    Ok(Scanned {
        promise: reading.promise,
        stamp_ms: reading.stamp_ms,
        epochs: reading.epochs,
        last_frames: reading.frames,
        sealed: reading.sealed,
        torn_at: reading.torn_at,
        index: reading.index,
        void: Vec::new(),
        skipped: Vec::new(),
    })
}

#[derive(Default)]
struct Reading {
    index: Index,
    promise: Promise,
    stamp_ms: i64,
    epochs: Vec<Position>,
    frames: u64,
    sealed: bool,
    torn_at: Option<u64>,
}

impl Reading {
    fn begin_segment(&mut self, candidate: &Candidate, header: &SegmentHeader) {
        self.promise = self.promise.max(header.promise);
        self.stamp_ms = self.stamp_ms.max(header.base_stamp_ms);
        self.sealed = false;
        self.index.segments.push_back(Segment {
            number: candidate.number,
            path: candidate.path.clone(),
            file: candidate.file.clone(),
            base: header.base,
            low: header.base,
            promise: header.promise,
            used: BLOCK as u64,
            frames: Vec::new(),
            count: 0,
            followed: false,
        });
    }

    /// Takes in a whole frame. `Err(Err(what))`: it does not follow what is before it.
    fn frame(
        &mut self,
        instance: u64,
        head: &FrameHead,
        body: &Bytes,
        offset: u64,
    ) -> Result<(), Result<ScanError, &'static str>> {
        if head.truncate {
            if head.prev.zxid >= self.index.base.zxid {
                let known = self.index.position_of(instance, head.prev.zxid).map_err(|e| Ok(e.into()))?;
                if known != Some(head.prev) {
                    return Err(Err("it cuts the log at an entry that is not there"));
                }
            }
            self.cut_epochs(head.prev);
        } else if head.prev != self.index.end {
            return Err(Err("it does not follow the entry before it"));
        }
        let entries = entries_of(head, body).ok_or(Err("its entries are not the ones its head names"))?;
        for entry in &entries {
            self.stamp_ms = self.stamp_ms.max(entry.stamp_ms);
            let position = Position { zxid: entry.zxid, hash: entry.hash };
            let rows = self.epochs.len();
            match self.epochs.last_mut() {
                // The first row stays the base, whatever its epoch.
                Some(last) if rows > 1 && last.zxid.epoch() == entry.zxid.epoch() => *last = position,
                _ => self.epochs.push(position),
            }
        }
        if let Some(promise) = head.promise {
            self.promise = self.promise.max(promise);
        }
        self.index.push(head, offset);
        self.frames += 1;
        self.sealed = head.seal;
        Ok(())
    }

    fn cut_epochs(&mut self, to: Position) {
        if to.zxid <= self.index.base.zxid {
            self.epochs = vec![to];
            return;
        }
        self.epochs.retain(|row| row.zxid <= to.zxid);
        if self.epochs.last() != Some(&to) {
            self.epochs.push(to);
        }
    }
}

/// What can still be read of a log that is to be set aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// Largest promise in readable headers and frames.
    pub promise: Promise,
    /// Latest known cluster; 0 if none.
    pub cluster: u64,
    /// Whose it was.
    pub server: Option<ServerId>,
}

/// Reads what can be read, judging nothing. `instance` is used for segments whose header is unreadable.
///
/// # Errors
/// Any of the device.
pub fn remains(device: &dyn LogDevice, instance: u64) -> DeviceResult<Remains> {
    let mut remains = Remains::default();
    for name in list_or_empty(device, LOG_DIR)? {
        let Some(number) = segment_number(&name) else { continue };
        let file = device.open(&format!("{LOG_DIR}/{name}"))?;
        let bytes = read_all(file.as_ref())?;
        let mut key = instance;
        if let Ok(header) = SegmentHeader::decode(&bytes) {
            key = header.instance;
            remains.promise = remains.promise.max(header.promise);
            remains.server = Some(header.server);
            if header.cluster != 0 {
                remains.cluster = header.cluster;
            }
        }
        for at in (BLOCK..bytes.len()).step_by(BLOCK) {
            if let Some(head) = FrameHead::decode(key, &bytes[at..])
                && head.segment == number
                && let Some(promise) = head.promise
            {
                remains.promise = remains.promise.max(promise);
            }
        }
    }
    Ok(remains)
}
