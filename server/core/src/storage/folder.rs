//! The small files of a data folder: who the server is, which state folder is current, which install is pending,
//! which starts of its peers it has seen.
//!
//! Each is replaced as a whole ([`write_checked`]); after a power cut there is the old one or the new one.
//!
//! ```text
//! identity      Identity, and whether the folder is condemned
//! peers         highest start count seen of each peer's disk (P9: an old folder restored)
//! CURRENT       names the state folder
//! install       a snapshot install that must be finished
//! log/          segments of the log
//! state-N/      the store; state-(N+1)/ while a snapshot is received
//! snapshots/    checkpoints for learners; nothing after a restart
//! damaged-N/    what was set aside, for people
//! store-damaged the store was found rotten; the next start sets it aside
//! ```

use std::collections::BTreeMap;

use corral_proto::{ServerId, Zxid};

use super::frame::{Checked, Reader, put_position, put_promise, put_u64, read_checked, remove_if_there, write_checked};
use super::log_device::{DeviceError, DeviceResult, LogDevice, list_or_empty};
use crate::zab::io::{Identity, Membership, Promise, SnapshotMeta};

/// The folder of the log's segments.
pub const LOG_DIR: &str = "log";
/// The folder of checkpoints; emptied at start.
pub const SNAPSHOTS_DIR: &str = "snapshots";
/// An empty file that whoever finds the store rotten while the server runs leaves for the next start, which then sets
/// log and store aside. A file of its own, since the identity file belongs to the log's writer.
pub const STORE_DAMAGED: &str = "store-damaged";
const STATE_PREFIX: &str = "state-";
const DAMAGED_PREFIX: &str = "damaged-";

const IDENTITY: &str = "identity";
const PEERS: &str = "peers";
const CURRENT: &str = "CURRENT";
const INSTALL: &str = "install";

const TAG_IDENTITY: u64 = 1;
/// 2 was the tag of a book without marks.
const TAG_PEERS: u64 = 5;
const TAG_CURRENT: u64 = 3;
const TAG_INSTALL: u64 = 4;

/// Why a small file could not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FolderError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A newer program wrote it.
    #[error("file {file} has version {found}; this program reads version 1: was it written by a newer release?")]
    Version {
        /// Which file.
        file: &'static str,
        /// Its version.
        found: u32,
    },
}

/// What was found of a small file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<T> {
    /// No such file.
    Absent,
    /// Its content.
    Valid(T),
    /// Unreadable, which no crash explains.
    Damaged,
}

fn read<T>(
    device: &dyn LogDevice,
    file: &'static str,
    tag: u64,
    parse: impl FnOnce(&mut Reader<'_>) -> Option<T>,
) -> Result<Found<T>, FolderError> {
    Ok(match read_checked(device, file, tag)? {
        Checked::Absent => Found::Absent,
        Checked::Damaged => Found::Damaged,
        Checked::Version(found) => return Err(FolderError::Version { file, found }),
        Checked::Valid(content) => match parse(&mut Reader(&content)) {
            Some(value) => Found::Valid(value),
            None => Found::Damaged,
        },
    })
}

/// What of a folder must be set aside at the next start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condemned {
    /// Nothing.
    #[default]
    Nothing,
    /// The log: the store is a committed prefix and stays.
    Log,
    /// Log and store.
    All,
}

/// Content of the identity file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdentityRecord {
    /// Who.
    pub identity: Identity,
    /// What must go at the next start; written before anything is moved, so that a crash in between is finished.
    pub condemned: Condemned,
    /// The promise that a log which is set aside had, as far as it could be read; never fallen below.
    pub promise: Promise,
    /// Number of the next state folder that is made from nothing: above all that were set aside.
    pub generation: u64,
    /// The last start in which the server was amnesiac when it began, or the first after an operator accepted a loss: what was
    /// seen of it before says nothing about what it remembers now. 0: never.
    pub whole_since: u64,
}

impl IdentityRecord {
    /// Reads it.
    ///
    /// # Errors
    /// See [`FolderError`].
    pub fn read(device: &dyn LogDevice) -> Result<Found<IdentityRecord>, FolderError> {
        read(device, IDENTITY, TAG_IDENTITY, |r| {
            let identity = Identity {
                server: ServerId(r.u64()),
                instance: r.u64(),
                start_count: r.u64(),
                cluster: r.u64(),
                membership: match r.u8() {
                    0 => Membership::Empty,
                    1 => Membership::Member,
                    2 => Membership::Amnesiac,
                    _ => return None,
                },
            };
            let condemned = match r.u8() {
                0 => Condemned::Nothing,
                1 => Condemned::Log,
                2 => Condemned::All,
                _ => return None,
            };
            // Older programs did not write the last number: it reads as 0.
            let (promise, generation) = (r.promise(), r.u64());
            Some(IdentityRecord { identity, condemned, promise, generation, whole_since: r.u64() })
        })
    }

    /// Replaces it durably.
    ///
    /// # Errors
    /// Any of the device.
    pub fn write(&self, device: &dyn LogDevice) -> DeviceResult<()> {
        let mut out = Vec::new();
        for number in [self.identity.server.0, self.identity.instance, self.identity.start_count, self.identity.cluster]
        {
            put_u64(&mut out, number);
        }
        out.push(match self.identity.membership {
            Membership::Empty => 0,
            Membership::Member => 1,
            Membership::Amnesiac => 2,
        });
        out.push(match self.condemned {
            Condemned::Nothing => 0,
            Condemned::Log => 1,
            Condemned::All => 2,
        });
        put_promise(&mut out, &self.promise);
        put_u64(&mut out, self.generation);
        put_u64(&mut out, self.whole_since);
        write_checked(device, IDENTITY, TAG_IDENTITY, &out)
    }
}

/// Which state folder is current. Folders are numbered; a snapshot is received into the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current {
    /// Number of the folder.
    pub generation: u64,
}

impl Current {
    /// Reads it.
    ///
    /// # Errors
    /// See [`FolderError`].
    pub fn read(device: &dyn LogDevice) -> Result<Found<Current>, FolderError> {
        read(device, CURRENT, TAG_CURRENT, |r| Some(Current { generation: r.u64() }))
    }

    /// Replaces it durably: this is the moment in which a snapshot becomes the store.
    ///
    /// # Errors
    /// Any of the device.
    pub fn write(&self, device: &dyn LogDevice) -> DeviceResult<()> {
        write_checked(device, CURRENT, TAG_CURRENT, &self.generation.to_le_bytes())
    }

    /// The store's folder.
    pub fn folder(&self) -> String {
        format!("{STATE_PREFIX}{}", self.generation)
    }

    /// The folder that receives a snapshot; never opened as the store before it is current.
    pub fn incoming(&self) -> String {
        format!("{STATE_PREFIX}{}", self.generation + 1)
    }
}

/// A snapshot install that has been decided: it is finished at the next start, whatever happens in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstallIntent {
    /// What.
    pub snapshot: SnapshotMeta,
    /// Number of the state folder that holds it.
    pub generation: u64,
}

impl InstallIntent {
    /// Reads it.
    ///
    /// # Errors
    /// See [`FolderError`].
    pub fn read(device: &dyn LogDevice) -> Result<Found<InstallIntent>, FolderError> {
        read(device, INSTALL, TAG_INSTALL, |r| {
            Some(InstallIntent {
                generation: r.u64(),
                snapshot: SnapshotMeta {
                    id: r.u64(),
                    position: r.position(),
                    stamp_ms: r.u64() as i64,
                    bytes: r.u64(),
                },
            })
        })
    }

    /// Writes it durably.
    ///
    /// # Errors
    /// Any of the device.
    pub fn write(&self, device: &dyn LogDevice) -> DeviceResult<()> {
        let mut out = Vec::new();
        put_u64(&mut out, self.generation);
        put_u64(&mut out, self.snapshot.id);
        put_position(&mut out, self.snapshot.position);
        put_u64(&mut out, self.snapshot.stamp_ms as u64);
        put_u64(&mut out, self.snapshot.bytes);
        write_checked(device, INSTALL, TAG_INSTALL, &out)
    }

    /// Removes it durably: the install is done.
    ///
    /// # Errors
    /// Any of the device.
    pub fn clear(device: &dyn LogDevice) -> DeviceResult<()> {
        remove_if_there(device, INSTALL)?;
        device.sync_dir("")
    }
}

/// State folders, with their numbers, ascending.
///
/// # Errors
/// Any of the device.
pub fn state_folders(device: &dyn LogDevice) -> DeviceResult<Vec<(u64, String)>> {
    let mut folders: Vec<(u64, String)> = list_or_empty(device, "")?
        .into_iter()
        .filter_map(|name| Some((name.strip_prefix(STATE_PREFIX)?.parse().ok()?, name)))
        .collect();
    folders.sort();
    Ok(folders)
}

/// Removes every state folder but the current one, the checkpoints, and temporary files: what a crash left.
///
/// # Errors
/// Any of the device.
pub fn remove_leftovers(device: &dyn LogDevice, current: Current) -> DeviceResult<()> {
    let mut changed = false;
    for (generation, name) in state_folders(device)? {
        if generation != current.generation {
            device.remove_dir_all(&name)?;
            changed = true;
        }
    }
    for name in list_or_empty(device, "")? {
        if name == SNAPSHOTS_DIR {
            device.remove_dir_all(&name)?;
            changed = true;
        } else if name.ends_with(".tmp") {
            remove_if_there(device, &name)?;
            changed = true;
        }
    }
    if changed { device.sync_dir("") } else { Ok(()) }
}

/// Folders of things set aside.
///
/// # Errors
/// Any of the device.
pub fn set_aside_folders(device: &dyn LogDevice) -> DeviceResult<Vec<String>> {
    Ok(list_or_empty(device, "")?.into_iter().filter(|name| name.starts_with(DAMAGED_PREFIX)).collect())
}

/// Makes durable what a start that died had moved into `damaged-N/`. Whoever starts next finds it moved, and has nothing more
/// to move; and yet a power cut could put it back among what is made since, or take that away with it.
///
/// # Errors
/// Any of the device.
pub fn settle_set_aside(device: &dyn LogDevice) -> DeviceResult<()> {
    let folders = set_aside_folders(device)?;
    for folder in &folders {
        device.sync_dir(folder)?;
    }
    if folders.is_empty() { Ok(()) } else { device.sync_dir("") }
}

/// A new folder for things set aside.
///
/// # Errors
/// Any of the device.
pub fn make_damaged_dir(device: &dyn LogDevice) -> DeviceResult<String> {
    let last = list_or_empty(device, "")?
        .iter()
        .filter_map(|name| name.strip_prefix(DAMAGED_PREFIX)?.parse::<u64>().ok())
        .max()
        .unwrap_or(0);
    let name = format!("{DAMAGED_PREFIX}{}", last + 1);
    device.create_dir(&name)?;
    device.sync_dir("")?;
    Ok(name)
}

/// Moves what is condemned into a new `damaged-N/` and returns its name, or `None` if there was nothing to move.
/// The identity file must already say so ([`IdentityRecord::condemned`]).
///
/// # Errors
/// Any of the device.
pub fn set_aside(device: &dyn LogDevice, condemned: Condemned) -> DeviceResult<Option<String>> {
    let there = list_or_empty(device, "")?;
    let mut moving = Vec::new();
    if condemned >= Condemned::Log && !list_or_empty(device, LOG_DIR)?.is_empty() {
        moving.push(LOG_DIR.to_owned());
    }
    if condemned >= Condemned::All {
        moving.extend(state_folders(device)?.into_iter().map(|(_, name)| name));
        moving.extend(there.into_iter().filter(|name| name == CURRENT || name == INSTALL));
    }
    if moving.is_empty() {
        return Ok(None);
    }
    let aside = make_damaged_dir(device)?;
    for name in moving {
        device.rename(&name, &format!("{aside}/{name}"))?;
    }
    device.sync_dir(&aside)?;
    device.sync_dir("")?;
    Ok(Some(aside))
}

/// The largest start count that is believed: a start every second for thirty thousand years. More is no count but damage, or a
/// lie; if it were remembered, the server it is said of could never count beyond it, and would be refused for ever. So it is
/// no evidence of anything: neither remembered nor compared.
pub const START_COUNT_MAX: u64 = 1 << 40;
/// Most disks remembered of one peer.
pub const DISKS_PER_PEER_MAX: usize = 8;
/// Most disks remembered in all; `myid` ends at 254, ensembles end long before.
pub const DISKS_MAX: usize = 64;
/// Bytes of one of them in the file.
const DISK_BYTES: usize = 48;

/// What a peer's start count says about its data folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeenStart {
    /// As far as is known here, nothing is wrong.
    Plausible,
    /// A later start of the same disk was seen: its folder is an old one restored; it is to be refused, and must
    /// come back as an amnesiac (P9).
    Restored {
        /// The latest start seen.
        highest: u64,
    },
}

/// What a server had promised, and acknowledged in that epoch, when it last said so: while it remembers everything since
/// that start, it can never know less. Within an epoch nothing acknowledged is cut off, and what is cut off for the sake of
/// a later epoch is so only after that is promised. Ordered by epoch, then by entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// In which of its starts it said so.
    pub start_count: u64,
    /// The epoch; 0: it said nothing.
    pub promise: u32,
    /// The last entry.
    pub end: Zxid,
}

impl Mark {
    /// What of it is compared.
    pub fn place(&self) -> (u32, Zxid) {
        (self.promise, self.end)
    }
}

/// What was seen of one disk of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeenDisk {
    /// Which.
    pub instance: u64,
    /// Its highest start.
    pub start_count: u64,
    /// What it said last.
    pub mark: Mark,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Row {
    start_count: u64,
    mark: Mark,
    /// Order of the last start that was news.
    news: u64,
}

/// What was seen of each peer's disks: starts durably at once (file `peers`), marks now and then.
///
/// Losing it loses only the check: then it begins anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerBook {
    rows: BTreeMap<(ServerId, u64), Row>,
    news: u64,
    /// A mark is not on disk yet.
    unwritten: bool,
}

impl PeerBook {
    /// Reads the file; a damaged one is as none.
    ///
    /// # Errors
    /// See [`FolderError`].
    pub fn load(device: &dyn LogDevice) -> Result<PeerBook, FolderError> {
        Ok(match PeerBook::read(device)? {
            Found::Valid(book) => book,
            Found::Absent | Found::Damaged => PeerBook::default(),
        })
    }

    /// Reads the file.
    ///
    /// # Errors
    /// See [`FolderError`].
    pub fn read(device: &dyn LogDevice) -> Result<Found<PeerBook>, FolderError> {
        read(device, PEERS, TAG_PEERS, |r| {
            let mut book = PeerBook::default();
            while r.0.len() >= DISK_BYTES {
                let (server, instance, start_count) = (ServerId(r.u64()), r.u64(), r.u64());
                let mark = Mark { start_count: r.u64(), promise: r.u64() as u32, end: Zxid(r.u64()) };
                if start_count > START_COUNT_MAX {
                    continue;
                }
                book.news += 1;
                book.rows.insert((server, instance), Row { start_count, mark, news: book.news });
            }
            r.0.is_empty().then_some(book)
        })
    }

    /// The highest start count seen of this disk; 0 if none.
    pub fn highest(&self, server: ServerId, instance: u64) -> u64 {
        self.rows.get(&(server, instance)).map_or(0, |row| row.start_count)
    }

    /// The disk of each peer that was last heard of.
    pub fn latest(&self) -> BTreeMap<ServerId, SeenDisk> {
        let mut latest: BTreeMap<ServerId, (u64, SeenDisk)> = BTreeMap::new();
        for ((server, instance), row) in &self.rows {
            if latest.get(server).is_none_or(|(news, _)| *news < row.news) {
                let disk = SeenDisk { instance: *instance, start_count: row.start_count, mark: row.mark };
                latest.insert(*server, (row.news, disk));
            }
        }
        latest.into_iter().map(|(server, (_, disk))| (server, disk)).collect()
    }

    /// Disks of peers that were replaced by later ones.
    pub fn superseded(&self) -> Vec<(ServerId, SeenDisk)> {
        let latest = self.latest();
        self.rows
            .iter()
            .filter(|((server, instance), _)| latest[server].instance != *instance)
            .map(|((server, instance), row)| {
                (*server, SeenDisk { instance: *instance, start_count: row.start_count, mark: row.mark })
            })
            .collect()
    }

    /// A peer has lost its memory since it said what is remembered, and has learned everything again: what it says from now on
    /// may be less, and counts. `whole_since`: the start since which it remembers everything.
    pub fn begin_life(&mut self, server: ServerId, instance: u64, whole_since: u64) {
        if let Some(row) = self.rows.get_mut(&(server, instance))
            && row.mark.start_count < whole_since
            && row.mark != Mark::default()
        {
            row.mark = Mark::default();
            self.unwritten = true;
        }
    }

    /// A peer said what it holds. Not durable before [`PeerBook::write_marks`].
    pub fn mark(&mut self, server: ServerId, instance: u64, mark: Mark) {
        if let Some(row) = self.rows.get_mut(&(server, instance))
            && row.mark.place() < mark.place()
        {
            row.mark = mark;
            self.unwritten = true;
        }
    }

    /// Makes marks durable, if some are not.
    ///
    /// # Errors
    /// Any of the device; fatal as every failed write (P28).
    pub fn write_marks(&mut self, device: &dyn LogDevice) -> DeviceResult<()> {
        if self.unwritten { self.write(device) } else { Ok(()) }
    }

    /// Judges a peer's start and remembers it durably, if it is news. One beyond [`START_COUNT_MAX`] is ignored.
    ///
    /// # Errors
    /// Any of the device; fatal as every failed write (P28).
    pub fn observe(
        &mut self,
        device: &dyn LogDevice,
        server: ServerId,
        instance: u64,
        start_count: u64,
    ) -> DeviceResult<SeenStart> {
        if start_count > START_COUNT_MAX {
            return Ok(SeenStart::Plausible);
        }
        let highest = self.highest(server, instance);
        if start_count < highest {
            return Ok(SeenStart::Restored { highest });
        }
        if start_count > highest {
            self.news += 1;
            let mark = self.rows.get(&(server, instance)).map(|row| row.mark).unwrap_or_default();
            self.rows.insert((server, instance), Row { start_count, mark, news: self.news });
            self.forget_oldest(Some(server), DISKS_PER_PEER_MAX);
            self.forget_oldest(None, DISKS_MAX);
            self.write(device)?;
        }
        Ok(SeenStart::Plausible)
    }

    fn forget_oldest(&mut self, server: Option<ServerId>, most: usize) {
        let counted = |key: &(ServerId, u64)| server.is_none_or(|server| key.0 == server);
        while self.rows.keys().filter(|key| counted(key)).count() > most {
            let oldest = self.rows.iter().filter(|(key, _)| counted(key)).min_by_key(|(_, row)| row.news);
            let Some(key) = oldest.map(|(key, _)| *key) else { return };
            self.rows.remove(&key);
        }
    }

    fn write(&mut self, device: &dyn LogDevice) -> DeviceResult<()> {
        let mut rows: Vec<_> = self.rows.iter().collect();
        rows.sort_by_key(|(_, row)| row.news);
        let mut out = Vec::new();
        for ((server, instance), Row { start_count, mark, .. }) in rows {
            for number in [server.0, *instance, *start_count, mark.start_count, u64::from(mark.promise), mark.end.0] {
                put_u64(&mut out, number);
            }
        }
        write_checked(device, PEERS, TAG_PEERS, &out)?;
        self.unwritten = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::zab::io::Position;

    use super::super::log_device::{Fate, Fault, MemoryDevice, SECTOR};
    use super::*;

    fn record(start_count: u64) -> IdentityRecord {
        IdentityRecord {
            identity: Identity {
                server: ServerId(2),
                instance: 9,
                start_count,
                cluster: 5,
                membership: Membership::Amnesiac,
            },
            condemned: Condemned::Log,
            promise: Promise { epoch: 3, leader: ServerId(1), instance: 4, start_count: 6 },
            generation: 2,
            whole_since: 1,
        }
    }

    #[test]
    fn identity_is_the_old_or_the_new_one_after_a_power_cut_at_any_operation() {
        for cut in 0..5 {
            for seed in 0..20 {
                let device = MemoryDevice::new();
                record(1).write(&device).unwrap();
                device.fail_after(cut, Fault::PowerCut);
                assert!(record(2).write(&device).is_err(), "replacing takes five operations");
                let after = device.after_power_cut_seeded(seed);
                let found = IdentityRecord::read(&after).unwrap();
                assert!(found == Found::Valid(record(1)) || found == Found::Valid(record(2)), "{found:?}");
            }
        }
        let device = MemoryDevice::new();
        record(1).write(&device).unwrap();
        record(2).write(&device).unwrap();
        let after = device.after_power_cut(SECTOR, &mut |_| Fate::Lost);
        assert_eq!(IdentityRecord::read(&after).unwrap(), Found::Valid(record(2)));
    }

    #[test]
    fn restored_folder_of_a_peer_is_recognised_after_our_own_restart() {
        let device = MemoryDevice::new();
        let mut book = PeerBook::load(&device).unwrap();
        assert_eq!(book.observe(&device, ServerId(2), 7, 5).unwrap(), SeenStart::Plausible);
        let device = device.after_power_cut(SECTOR, &mut |_| Fate::Lost);
        let mut book = PeerBook::load(&device).unwrap();
        assert_eq!(book.highest(ServerId(2), 7), 5);
        assert_eq!(book.observe(&device, ServerId(2), 7, 5).unwrap(), SeenStart::Plausible);
        assert_eq!(book.observe(&device, ServerId(2), 7, 4).unwrap(), SeenStart::Restored { highest: 5 });
        assert_eq!(book.observe(&device, ServerId(2), 8, 1).unwrap(), SeenStart::Plausible, "another disk");
    }

    #[test]
    fn peer_book_stays_bounded_and_forgets_the_oldest_disks() {
        let device = MemoryDevice::new();
        let mut book = PeerBook::default();
        for server in 1..=30 {
            for instance in 0..20 {
                book.observe(&device, ServerId(server), instance, 1).unwrap();
            }
        }
        let book = PeerBook::load(&device).unwrap();
        assert_eq!(book.rows.len(), DISKS_MAX);
        assert_eq!(book.highest(ServerId(30), 19), 1);
        assert_eq!(book.highest(ServerId(30), 11), 0);
    }

    #[test]
    fn marks_of_peers_only_rise_and_survive_when_they_were_written() {
        let device = MemoryDevice::new();
        let mut book = PeerBook::default();
        let mark = |promise, counter| Mark { start_count: 4, promise, end: Zxid::new(2, counter) };
        book.mark(ServerId(2), 7, mark(3, 1));
        assert_eq!(book, PeerBook::default(), "nothing is known of that disk");
        book.observe(&device, ServerId(2), 7, 4).unwrap();
        for rising in [mark(3, 1), mark(3, 5), mark(4, 0)] {
            book.mark(ServerId(2), 7, rising);
            assert_eq!(book.latest()[&ServerId(2)].mark, rising);
        }
        book.mark(ServerId(2), 7, mark(3, 9));
        book.write_marks(&device).unwrap();
        book.mark(ServerId(2), 7, mark(4, 1));
        let book = PeerBook::load(&device).unwrap();
        assert_eq!(book.latest()[&ServerId(2)], SeenDisk { instance: 7, start_count: 4, mark: mark(4, 0) });
    }

    #[test]
    fn marks_of_a_life_that_ended_make_way_for_those_of_the_next() {
        let device = MemoryDevice::new();
        let mut book = PeerBook::default();
        let mark = |start_count, counter| Mark { start_count, promise: 3, end: Zxid::new(2, counter) };
        book.observe(&device, ServerId(2), 7, 4).unwrap();
        book.mark(ServerId(2), 7, mark(4, 90));
        book.begin_life(ServerId(2), 7, 4);
        assert_eq!(book.latest()[&ServerId(2)].mark, mark(4, 90), "it was said in this life");
        // It lost its memory, learns from the beginning, and says so in its next start.
        book.observe(&device, ServerId(2), 7, 5).unwrap();
        book.begin_life(ServerId(2), 7, 5);
        book.mark(ServerId(2), 7, mark(5, 10));
        assert_eq!(book.latest()[&ServerId(2)].mark, mark(5, 10));
        book.write_marks(&device).unwrap();
        assert_eq!(PeerBook::load(&device).unwrap().latest()[&ServerId(2)].mark, mark(5, 10));
    }

    #[test]
    fn start_count_that_nobody_reaches_is_not_remembered() {
        let device = MemoryDevice::new();
        let mut book = PeerBook::default();
        book.observe(&device, ServerId(2), 7, 4).unwrap();
        for absurd in [START_COUNT_MAX + 1, u64::MAX] {
            assert_eq!(book.observe(&device, ServerId(2), 7, absurd).unwrap(), SeenStart::Plausible);
            assert_eq!(book.observe(&device, ServerId(2), 7, 4).unwrap(), SeenStart::Plausible, "it is not locked out");
        }
        assert_eq!(book.observe(&device, ServerId(2), 7, START_COUNT_MAX).unwrap(), SeenStart::Plausible);
        assert_eq!(book.highest(ServerId(2), 7), START_COUNT_MAX);
        assert_eq!(
            book.observe(&device, ServerId(2), 7, START_COUNT_MAX + 1).unwrap(),
            SeenStart::Plausible,
            "it goes on"
        );
    }

    #[test]
    fn disk_that_was_replaced_stays_known_as_such() {
        let device = MemoryDevice::new();
        let mut book = PeerBook::default();
        for (instance, start) in [(7, 1), (7, 2), (9, 1)] {
            book.observe(&device, ServerId(2), instance, start).unwrap();
        }
        book.observe(&device, ServerId(3), 5, 1).unwrap();
        let book = PeerBook::load(&device).unwrap();
        let replaced = SeenDisk { instance: 7, start_count: 2, mark: Mark::default() };
        assert_eq!(book.superseded(), [(ServerId(2), replaced)]);
        assert_eq!(book.latest()[&ServerId(2)].instance, 9);
    }

    #[test]
    fn install_intent_comes_back_as_it_was() {
        let device = MemoryDevice::new();
        let intent = InstallIntent {
            generation: 3,
            snapshot: SnapshotMeta {
                id: 8,
                position: Position { zxid: Zxid::new(4, 4), hash: 5 },
                stamp_ms: 77,
                bytes: 1000,
            },
        };
        intent.write(&device).unwrap();
        assert_eq!(InstallIntent::read(&device).unwrap(), Found::Valid(intent));
        InstallIntent::clear(&device).unwrap();
        assert_eq!(InstallIntent::read(&device).unwrap(), Found::Absent);
    }
}
