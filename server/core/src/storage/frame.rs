//! The bytes of the log: segment headers, frames, and the small checked files beside it.
//!
//! Everything starts on a block of 4,096 bytes, so that a write never touches a block that holds something
//! acknowledged, and carries a CRC32C. The sum of a frame starts from the folder's `instance`, a random number that
//! no client knows: payloads are chosen by clients, and none may pass for a frame when the log's tail is searched.

use bytes::Bytes;
use corral_proto::{ServerId, Zxid};

use super::log_device::{DeviceError, DeviceResult, LogDevice};
use crate::zab::io::{Entry, Position, Promise};

/// Unit of alignment, bytes.
pub const BLOCK: usize = 4096;

/// Version of segments and frames that this program writes, and the only one that it reads.
pub const LOG_VERSION: u32 = 1;

const SEGMENT_MAGIC: &[u8; 8] = b"CORRALSG";
const FRAME_MAGIC: u32 = 0x4c46_5243;
/// Bytes before a frame's body.
pub const FRAME_HEAD: usize = 104;
/// Bytes before an entry's payload.
pub const ENTRY_HEAD: usize = 20;

const FLAG_RESET: u32 = 1;

const FLAG_PROMISE: u8 = 1;
const FLAG_TRUNCATE: u8 = 2;
const FLAG_SEAL: u8 = 4;
const FLAG_FOLLOWED: u8 = 8;

/// `len` rounded up to whole blocks.
pub fn blocks(len: usize) -> usize {
    len.next_multiple_of(BLOCK)
}

/// First block of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Whose log.
    pub server: ServerId,
    /// Which disk: [`crate::zab::io::Identity::instance`].
    pub instance: u64,
    /// Which cluster, as far as was known; 0 before bootstrap. For people.
    pub cluster: u64,
    /// Its number; consecutive.
    pub segment: u64,
    /// End of the log when the segment was begun.
    pub base: Position,
    /// Stamp of the entry there, ms.
    pub base_stamp_ms: i64,
    /// The promise then; repeated in each header, so that dropping old segments never loses it.
    pub promise: Promise,
    /// The log begins here: former segments are void (an installed snapshot, a log set aside).
    pub reset: bool,
    /// Bytes that the file had when it got its name. A shorter file was cut, and what was in it is lost. 0: not told, by an
    /// older program.
    pub bytes: u64,
}

/// Why a segment's first block is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// Zeros, torn, or rotten.
    Invalid,
    /// Whole, and of a version this program does not know.
    Version(u32),
}

impl SegmentHeader {
    /// The block.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = Vec::with_capacity(BLOCK);
        block.extend_from_slice(SEGMENT_MAGIC);
        put_u32(&mut block, LOG_VERSION);
        put_u32(&mut block, if self.reset { FLAG_RESET } else { 0 });
        for number in [self.server.0, self.instance, self.cluster, self.segment] {
            put_u64(&mut block, number);
        }
        put_position(&mut block, self.base);
        put_u64(&mut block, self.base_stamp_ms as u64);
        put_promise(&mut block, &self.promise);
        put_u64(&mut block, self.bytes);
        block.resize(BLOCK - 4, 0);
        let crc = crc32c::crc32c(&block);
        put_u32(&mut block, crc);
        block
    }

    /// Reads a block.
    ///
    /// # Errors
    /// See [`HeaderError`].
    pub fn decode(block: &[u8]) -> Result<SegmentHeader, HeaderError> {
        if block.len() < BLOCK || &block[..8] != SEGMENT_MAGIC {
            return Err(HeaderError::Invalid);
        }
        let mut tail = Reader(&block[BLOCK - 4..BLOCK]);
        if tail.u32() != crc32c::crc32c(&block[..BLOCK - 4]) {
            return Err(HeaderError::Invalid);
        }
        let mut r = Reader(&block[8..]);
        let version = r.u32();
        if version != LOG_VERSION {
            return Err(HeaderError::Version(version));
        }
        let flags = r.u32();
        Ok(SegmentHeader {
            server: ServerId(r.u64()),
            instance: r.u64(),
            cluster: r.u64(),
            segment: r.u64(),
            base: r.position(),
            base_stamp_ms: r.u64() as i64,
            promise: r.promise(),
            bytes: r.u64(),
            reset: flags & FLAG_RESET != 0,
        })
    }
}

/// What one frame says, without its entries. A frame is what one write made durable: a cut, then entries, and a
/// promise, each optional; or a seal, which says only that the frame before it was complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameHead {
    /// Bytes of its entries.
    pub body_len: usize,
    /// The segment it belongs to.
    pub segment: u64,
    /// Its place in the segment, from 1.
    pub number: u64,
    /// What its entries follow; with `truncate`, the new end of the log before they are added.
    pub prev: Position,
    /// First entry; zero if there is none.
    pub first: Zxid,
    /// End of the log after it.
    pub last: Position,
    /// Entries.
    pub count: u32,
    /// A promise made durable by it.
    pub promise: Option<Promise>,
    /// Whether the log is cut to `prev` first.
    pub truncate: bool,
    /// Whether it is a seal.
    pub seal: bool,
    /// Of the seal that ends a segment: the next one was begun, so its absence is damage.
    pub followed: bool,
}

impl FrameHead {
    /// Bytes of the frame without its padding.
    pub fn len(&self) -> usize {
        FRAME_HEAD + self.body_len
    }

    /// Whether it says nothing at all (never written).
    pub fn is_empty(&self) -> bool {
        self.count == 0 && self.promise.is_none() && !self.truncate && !self.seal
    }

    /// Completes `frame`: its body is in place after [`FRAME_HEAD`] bytes of room for the head; pads it to whole
    /// blocks.
    pub fn seal_into(&self, instance: u64, frame: &mut Vec<u8>) {
        debug_assert_eq!(frame.len(), self.len());
        let mut head = Vec::with_capacity(FRAME_HEAD);
        put_u32(&mut head, FRAME_MAGIC);
        put_u32(&mut head, 0);
        let flags = if self.promise.is_some() { FLAG_PROMISE } else { 0 }
            | if self.truncate { FLAG_TRUNCATE } else { 0 }
            | if self.seal { FLAG_SEAL } else { 0 }
            | if self.followed { FLAG_FOLLOWED } else { 0 };
        head.extend_from_slice(&[LOG_VERSION as u8, flags, 0, 0]);
        put_u32(&mut head, self.body_len as u32);
        put_u64(&mut head, self.segment);
        put_u64(&mut head, self.number);
        put_position(&mut head, self.prev);
        put_u64(&mut head, self.first.0);
        put_position(&mut head, self.last);
        put_u32(&mut head, self.count);
        put_promise(&mut head, &self.promise.unwrap_or_default());
        debug_assert_eq!(head.len(), FRAME_HEAD);
        frame[..FRAME_HEAD].copy_from_slice(&head);
        let crc = frame_crc(instance, frame);
        frame[4..8].copy_from_slice(&crc.to_le_bytes());
        frame.resize(blocks(frame.len()), 0);
    }

    /// Reads the frame at the start of `bytes`, if there is a whole one.
    pub fn decode(instance: u64, bytes: &[u8]) -> Option<FrameHead> {
        let head = FrameHead::peek(bytes)?;
        let frame = bytes.get(..head.len())?;
        let crc = Reader(&frame[4..8]).u32();
        (crc == frame_crc(instance, frame)).then_some(head)
    }

    /// Reads a head without looking at its sum.
    fn peek(bytes: &[u8]) -> Option<FrameHead> {
        if bytes.len() < FRAME_HEAD {
            return None;
        }
        let mut r = Reader(bytes);
        if r.u32() != FRAME_MAGIC {
            return None;
        }
        r.u32();
        if r.u8() != LOG_VERSION as u8 {
            return None;
        }
        let flags = r.u8();
        r.u8();
        r.u8();
        let mut head = FrameHead {
            body_len: r.u32() as usize,
            segment: r.u64(),
            number: r.u64(),
            prev: r.position(),
            first: Zxid(r.u64()),
            last: r.position(),
            count: r.u32(),
            promise: None,
            truncate: flags & FLAG_TRUNCATE != 0,
            seal: flags & FLAG_SEAL != 0,
            followed: flags & FLAG_FOLLOWED != 0,
        };
        let promise = r.promise();
        head.promise = (flags & FLAG_PROMISE != 0).then_some(promise);
        Some(head)
    }
}

/// CRC32C of a frame from its kind on, begun with the instance.
fn frame_crc(instance: u64, frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&instance.to_le_bytes()), &frame[8..])
}

/// Appends an entry to a frame's body.
pub fn put_entry(frame: &mut Vec<u8>, entry: &Entry) {
    put_u64(frame, entry.zxid.0);
    put_u64(frame, entry.stamp_ms as u64);
    put_u32(frame, entry.payload.len() as u32);
    frame.extend_from_slice(&entry.payload);
}

/// The entries of a frame, whose payloads share `body`. `None` if they are not what the head says: their number,
/// their order, the running hash.
pub fn entries_of(head: &FrameHead, body: &Bytes) -> Option<Vec<Entry>> {
    let mut entries = Vec::with_capacity((head.count as usize).min(body.len() / ENTRY_HEAD + 1));
    let mut last = head.prev;
    let mut at = 0;
    for _ in 0..head.count {
        let mut r = Reader(body.get(at..at + ENTRY_HEAD)?);
        let (zxid, stamp_ms, len) = (Zxid(r.u64()), r.u64() as i64, r.u32() as usize);
        at += ENTRY_HEAD;
        if body.len() - at < len || zxid <= last.zxid {
            return None;
        }
        let entry = Entry::after(last.hash, zxid, stamp_ms, body.slice(at..at + len));
        at += len;
        last = Position { zxid, hash: entry.hash };
        entries.push(entry);
    }
    let first = entries.first().map_or(Zxid::ZERO, |entry| entry.zxid);
    (at == body.len() && last == head.last && first == head.first).then_some(entries)
}

/// A small file of its own: what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// There is none.
    Absent,
    /// Its content.
    Valid(Vec<u8>),
    /// Both copies are unreadable. No crash does this: the file is replaced as a whole.
    Damaged,
    /// Written by a newer program.
    Version(u32),
}

const CHECKED_MAGIC: &[u8; 4] = b"CRCF";
/// Version of the small files.
pub const CHECKED_VERSION: u32 = 1;
const CHECKED_HEAD: usize = 24;
/// Largest content of a small file, bytes.
pub const CHECKED_MAX: usize = BLOCK - CHECKED_HEAD;

/// Replaces the small file `name` durably: temporary file, sync, rename, sync of the folder. It holds its content
/// twice, in different blocks, so that one rotten sector is no loss. `tag` tells kinds of files apart.
///
/// # Errors
/// Any of the device.
///
/// # Panics
/// If `content` is larger than [`CHECKED_MAX`].
pub fn write_checked(device: &dyn LogDevice, name: &str, tag: u64, content: &[u8]) -> DeviceResult<()> {
    assert!(content.len() <= CHECKED_MAX, "a small file stays below a block");
    let mut copy = Vec::with_capacity(2 * BLOCK);
    copy.extend_from_slice(CHECKED_MAGIC);
    put_u32(&mut copy, 0);
    put_u32(&mut copy, CHECKED_VERSION);
    put_u32(&mut copy, content.len() as u32);
    put_u64(&mut copy, tag);
    copy.extend_from_slice(content);
    let crc = crc32c::crc32c(&copy[8..]);
    copy[4..8].copy_from_slice(&crc.to_le_bytes());
    copy.resize(BLOCK, 0);
    copy.extend_from_within(..);
    let temporary = format!("{name}.tmp");
    remove_if_there(device, &temporary)?;
    let file = device.create(&temporary)?;
    file.write(0, &copy)?;
    file.sync()?;
    device.rename(&temporary, name)?;
    device.sync_dir(name.rsplit_once('/').map_or("", |(dir, _)| dir))
}

/// Reads a small file.
///
/// # Errors
/// Any of the device but "not found".
pub fn read_checked(device: &dyn LogDevice, name: &str, tag: u64) -> DeviceResult<Checked> {
    let bytes = match device.open(name) {
        Ok(file) => file.read(0, 2 * BLOCK)?,
        Err(DeviceError::NotFound { .. }) => return Ok(Checked::Absent),
        Err(error) => return Err(error),
    };
    let mut found = Checked::Damaged;
    for copy in bytes.chunks(BLOCK) {
        match decode_checked(copy, tag) {
            Checked::Damaged => {}
            other => {
                found = other;
                break;
            }
        }
    }
    Ok(found)
}

fn decode_checked(copy: &[u8], tag: u64) -> Checked {
    if copy.len() < CHECKED_HEAD || &copy[..4] != CHECKED_MAGIC {
        return Checked::Damaged;
    }
    let mut r = Reader(&copy[4..]);
    let (crc, version, len, found_tag) = (r.u32(), r.u32(), r.u32() as usize, r.u64());
    let Some(checked) = copy.get(8..CHECKED_HEAD + len) else { return Checked::Damaged };
    if crc32c::crc32c(checked) != crc || found_tag != tag {
        return Checked::Damaged;
    }
    if version != CHECKED_VERSION {
        return Checked::Version(version);
    }
    Checked::Valid(copy[CHECKED_HEAD..CHECKED_HEAD + len].to_vec())
}

/// Removes a file that may not be there.
///
/// # Errors
/// Any of the device but "not found".
pub fn remove_if_there(device: &dyn LogDevice, path: &str) -> DeviceResult<()> {
    match device.remove(path) {
        Err(DeviceError::NotFound { .. }) => Ok(()),
        other => other,
    }
}

pub(super) fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put_position(out: &mut Vec<u8>, position: Position) {
    put_u64(out, position.zxid.0);
    put_u64(out, position.hash);
}

pub(super) fn put_promise(out: &mut Vec<u8>, promise: &Promise) {
    put_u32(out, promise.epoch);
    put_u64(out, promise.leader.0);
    put_u64(out, promise.instance);
    put_u64(out, promise.start_count);
}

/// Takes numbers from the front of bytes; gives zeros when they run out, so callers check lengths first.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((head, rest)) = self.0.split_first_chunk::<N>() else {
            self.0 = &[];
            return [0; N];
        };
        self.0 = rest;
        *head
    }

    pub fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    pub fn position(&mut self) -> Position {
        Position { zxid: Zxid(self.u64()), hash: self.u64() }
    }

    pub fn promise(&mut self) -> Promise {
        Promise { epoch: self.u32(), leader: ServerId(self.u64()), instance: self.u64(), start_count: self.u64() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::log_device::MemoryDevice;
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            server: ServerId(3),
            instance: 77,
            cluster: 99,
            segment: 5,
            base: Position { zxid: Zxid::new(2, 9), hash: 1234 },
            base_stamp_ms: -5,
            promise: Promise { epoch: 4, leader: ServerId(1), instance: 8, start_count: 2 },
            reset: true,
            bytes: 4096 * 9,
        }
    }

    #[test]
    fn header_survives_its_block_and_no_flipped_bit() {
        let block = header().encode();
        assert_eq!(block.len(), BLOCK);
        assert_eq!(SegmentHeader::decode(&block), Ok(header()));
        for at in (0..BLOCK).step_by(7) {
            let mut bad = block.clone();
            bad[at] ^= 1;
            assert_eq!(SegmentHeader::decode(&bad), Err(HeaderError::Invalid), "byte {at}");
        }
        assert_eq!(SegmentHeader::decode(&vec![0; BLOCK]), Err(HeaderError::Invalid));
    }

    #[test]
    fn header_of_a_newer_version_is_told_apart_from_a_rotten_one() {
        let mut block = header().encode();
        block[8] = 2;
        let crc = crc32c::crc32c(&block[..BLOCK - 4]);
        block[BLOCK - 4..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&block), Err(HeaderError::Version(2)));
    }

    #[test]
    fn frame_gives_its_entries_back_and_is_bound_to_its_folder() {
        let prev = Position { zxid: Zxid::new(1, 1), hash: 42 };
        let one = Entry::after(prev.hash, Zxid::new(1, 2), 10, Bytes::from_static(b"first"));
        let two = Entry::after(one.hash, Zxid::new(2, 0), 11, Bytes::new());
        let mut frame = vec![0; FRAME_HEAD];
        put_entry(&mut frame, &one);
        put_entry(&mut frame, &two);
        let head = FrameHead {
            body_len: frame.len() - FRAME_HEAD,
            segment: 1,
            number: 1,
            prev,
            first: one.zxid,
            last: Position { zxid: two.zxid, hash: two.hash },
            count: 2,
            promise: Some(header().promise),
            truncate: true,
            seal: false,
            followed: true,
        };
        head.seal_into(7, &mut frame);
        assert_eq!(frame.len(), BLOCK);
        assert_eq!(FrameHead::decode(7, &frame), Some(head));
        assert_eq!(FrameHead::decode(8, &frame), None, "another folder's frame");
        let body = Bytes::copy_from_slice(&frame[FRAME_HEAD..head.len()]);
        assert_eq!(entries_of(&head, &body).unwrap(), [one, two]);
        for at in 4..head.len() {
            let mut bad = frame.clone();
            bad[at] ^= 0x10;
            assert_eq!(FrameHead::decode(7, &bad), None, "byte {at}");
        }
    }

    #[test]
    fn small_file_survives_one_rotten_block_and_tells_damage_from_absence() {
        let device = MemoryDevice::new();
        assert_eq!(read_checked(&device, "f", 1).unwrap(), Checked::Absent);
        write_checked(&device, "f", 1, b"content").unwrap();
        write_checked(&device, "f", 1, b"newer content").unwrap();
        assert_eq!(device.files(), ["f"]);
        device.rot("f", 30, |b| b[0] ^= 1, 1);
        assert_eq!(read_checked(&device, "f", 1).unwrap(), Checked::Valid(b"newer content".to_vec()));
        assert_eq!(read_checked(&device, "f", 2).unwrap(), Checked::Damaged, "another kind of file");
        device.rot("f", BLOCK as u64 + 30, |b| b[0] ^= 1, 1);
        assert_eq!(read_checked(&device, "f", 1).unwrap(), Checked::Damaged);
    }
}
