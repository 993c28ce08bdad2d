//! Looks at a data folder that no server uses: what lies in its log, and what a start would make of it all.
//!
//! Nothing here writes, repairs, or decides: [`super::recover`] does, by the same functions ([`super::scan`]). [`walk`] reads
//! on behind damage, because people want to see what is left; [`check`] says what the next start says, without doing it.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::folder::{
    Condemned, Current, FolderError, Found, IdentityRecord, InstallIntent, LOG_DIR, PeerBook, SNAPSHOTS_DIR,
    STORE_DAMAGED, set_aside_folders, state_folders,
};
use super::frame::{BLOCK, FrameHead, HeaderError, SegmentHeader, blocks, entries_of};
use super::log_device::{DeviceError, DeviceResult, LogDevice, contains, list_or_empty};
use super::recover::OpenError;
use super::scan::{Damage, Owner, ScanError, Scanned, scan, segment_number};
use crate::tree::record::Meta;
use crate::zab::io::{Entry, Identity, Membership, Position, Promise};

/// Something in a log, in the order in which it lies there.
#[derive(Clone, Debug)]
pub enum Item {
    /// A segment begins.
    Segment {
        /// Its file.
        path: String,
        /// Its number.
        number: u64,
        /// Bytes of the file.
        bytes: u64,
        /// What its first block says.
        header: Result<SegmentHeader, HeaderError>,
    },
    /// A whole frame.
    Frame {
        /// Where it begins in its segment.
        offset: u64,
        /// What it says.
        head: FrameHead,
        /// Its entries; `None`: they are not the ones that its head names.
        entries: Option<Vec<Entry>>,
        /// Whether it follows what is before it. Without what was lost in between it cannot.
        follows: bool,
    },
    /// What is no frame, though a whole one comes behind it: this was durable once.
    Unreadable {
        /// The first such byte in its segment.
        from: u64,
        /// The first byte behind.
        to: u64,
    },
    /// The segment's last frame is over.
    End {
        /// The first byte behind it.
        offset: u64,
        /// Whether something other than zeros follows: a write that was under way when the process ended, or the last frame,
        /// rotten.
        torn: bool,
    },
}

/// Reads the whole log. `instance` is used for segments whose header is unreadable. Segments that go away meanwhile (a
/// server trims its log) are passed over.
///
/// # Errors
/// Any of the device.
pub fn walk(device: &dyn LogDevice, instance: u64, visit: &mut dyn FnMut(Item) -> ControlFlow<()>) -> DeviceResult<()> {
    let mut segments: Vec<(u64, String)> = list_or_empty(device, LOG_DIR)?
        .into_iter()
        .filter_map(|name| Some((segment_number(&name)?, format!("{LOG_DIR}/{name}"))))
        .collect();
    segments.sort();
    let mut end = None;
    for (number, path) in segments {
        let bytes = match device.open(&path).and_then(|file| file.read(0, file.size()? as usize)) {
            Ok(bytes) => Bytes::from(bytes),
            Err(DeviceError::NotFound { .. }) => continue,
            Err(error) => return Err(error),
        };
        if walk_segment(number, path, &bytes, instance, &mut end, visit).is_break() {
            break;
        }
    }
    Ok(())
}

fn walk_segment(
    number: u64,
    path: String,
    bytes: &Bytes,
    instance: u64,
    end: &mut Option<Position>,
    visit: &mut dyn FnMut(Item) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let header = SegmentHeader::decode(bytes);
    visit(Item::Segment { path, number, bytes: bytes.len() as u64, header })?;
    let instance = match header {
        Ok(header) => {
            if header.reset || end.is_none() {
                *end = Some(header.base);
            }
            header.instance
        }
        Err(HeaderError::Version(_)) => return ControlFlow::Continue(()),
        Err(HeaderError::Invalid) => instance,
    };
    let frame_at = |at: usize| {
        bytes.get(at..).and_then(|rest| FrameHead::decode(instance, rest)).filter(|head| head.segment == number)
    };
    let mut offset = BLOCK;
    loop {
        let Some(head) = frame_at(offset) else {
            match (offset..bytes.len()).step_by(BLOCK).find(|at| frame_at(*at).is_some()) {
                Some(next) => {
                    visit(Item::Unreadable { from: offset as u64, to: next as u64 })?;
                    offset = next;
                    continue;
                }
                None => break,
            }
        };
        let body = bytes.slice(offset + head.len() - head.body_len..offset + head.len());
        let follows = head.truncate || end.is_none_or(|end| end == head.prev);
        *end = Some(head.last);
        visit(Item::Frame { offset: offset as u64, head, entries: entries_of(&head, &body), follows })?;
        offset += blocks(head.len());
    }
    let torn = bytes.get(offset..).is_some_and(|rest| rest.iter().any(|byte| *byte != 0));
    visit(Item::End { offset: offset as u64, torn })
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Ordinary life explains it: nothing is lost.
    Note,
    /// Something is not as it should be.
    Problem,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub weight: Weight,
    /// Where: a file, a path of the tree.
    pub place: String,
    /// What was found, and what that means.
    pub what: String,
    /// What the next start does about it.
    pub at_start: String,
}

/// What a start does about damage that costs the memory.
const LOSES_ALL: &str = "sets log and store aside in damaged-N/ and is amnesiac: it does not vote until it has learned \
                         everything from a leader";
const LOSES_LOG: &str = "sets the log aside in damaged-N/ and is amnesiac: it does not vote until it has learned from a \
                         leader what comes after its store";
const EMPTY_STORE: &str = "begins with an empty store: executes the log from its beginning if that is still there, else \
                           sets the log aside in damaged-N/ and is amnesiac";
const REFUSES: &str = "does not start, and touches nothing";
const GOES_ON: &str = "goes on";
const CLEANS_UP: &str = "removes it";

/// A folder as far as it could be read.
#[derive(Clone, Debug, Default)]
pub struct Folder {
    /// Who the server is.
    pub identity: Option<IdentityRecord>,
    /// The folder of its store, unless that is condemned or unknown.
    pub store: Option<String>,
    /// What the store says of itself.
    pub meta: Option<Meta>,
    /// Log: begins after, ends with; none if it is not usable.
    pub log: Option<(Position, Position)>,
    /// Largest promise found.
    pub promise: Promise,
    /// The base, then the last position of each epoch in the log.
    pub epochs: Vec<Position>,
}

/// Why nothing can be said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No server ever used this folder.
    #[error("there is no identity, no log and no state: no server used it; is it another folder than dataDir?")]
    NoData,
    /// The store could not be read, though nothing says that it is damaged.
    #[error(transparent)]
    Store(OpenError),
}

/// Does what [`super::recover::recover`] does, without changing anything. `read_meta` reads the meta row of the store in a
/// folder of the data folder.
///
/// # Errors
/// [`CheckError`]; everything else is a finding.
pub fn check(
    device: &dyn LogDevice,
    read_meta: &mut dyn FnMut(&str) -> Result<Option<Meta>, OpenError>,
    report: &mut dyn FnMut(Finding),
) -> Result<Folder, CheckError> {
    let mut check = Check { device, report, folder: Folder::default() };
    if !check.identity()? {
        return Ok(check.folder);
    }
    check.small_files()?;
    let Some(install) = check.install()? else { return Ok(check.folder) };
    check.current(install.as_ref())?;
    check.leftovers()?;
    let readable = check.store(read_meta)?;
    check.log(readable, install.as_ref())?;
    Ok(check.folder)
}

struct Check<'a> {
    device: &'a dyn LogDevice,
    report: &'a mut dyn FnMut(Finding),
    folder: Folder,
}

impl Check<'_> {
    fn say(&mut self, weight: Weight, place: impl Into<String>, what: impl Into<String>, at_start: impl Into<String>) {
        (self.report)(Finding { weight, place: place.into(), what: what.into(), at_start: at_start.into() });
    }

    fn problem(&mut self, place: impl Into<String>, what: impl Into<String>, at_start: impl Into<String>) {
        self.say(Weight::Problem, place, what, at_start);
    }

    fn note(&mut self, place: impl Into<String>, what: impl Into<String>, at_start: impl Into<String>) {
        self.say(Weight::Note, place, what, at_start);
    }

    /// A small file, or that it is of another version; `None`: said.
    fn small<T>(&mut self, file: &str, read: Result<Found<T>, FolderError>) -> Result<Option<Found<T>>, CheckError> {
        match read {
            Ok(found) => Ok(Some(found)),
            Err(FolderError::Device(error)) => Err(error.into()),
            Err(error @ FolderError::Version { .. }) => {
                self.problem(file, error.to_string(), REFUSES);
                Ok(None)
            }
        }
    }

    /// Whether it makes sense to go on.
    fn identity(&mut self) -> Result<bool, CheckError> {
        let device = self.device;
        let Some(found) = self.small("identity", IdentityRecord::read(device))? else { return Ok(false) };
        let used = !list_or_empty(device, LOG_DIR)?.is_empty() || !state_folders(device)?.is_empty();
        let record = match found {
            Found::Valid(record) => record,
            Found::Absent if !used => return Err(CheckError::NoData),
            Found::Absent | Found::Damaged => {
                let what = "it is missing or damaged: nobody knows who this server is, and what it promised";
                self.problem("identity", what, format!("takes a new identity, {LOSES_ALL}"));
                return Ok(true);
            }
        };
        self.folder.identity = Some(record);
        self.folder.promise = record.promise;
        if record.condemned != Condemned::Nothing {
            let what = match record.condemned {
                Condemned::Log => "the log is condemned: damage was found in it",
                _ => "log and store are condemned: the server found itself wrong, or its store damaged",
            };
            let at_start = if record.condemned == Condemned::Log { LOSES_LOG } else { LOSES_ALL };
            self.problem("identity", what, at_start);
        } else if record.identity.membership == Membership::Amnesiac {
            let what = "this server is amnesiac: it lost what it may have promised, and has not learned it all again";
            self.note("identity", what, "does not vote until it has learned everything from a leader");
        }
        if contains(device, "", STORE_DAMAGED)? {
            self.problem(STORE_DAMAGED, "the store was found rotten while the server ran", LOSES_ALL);
        }
        Ok(true)
    }

    /// Each of these holds its content twice.
    fn small_files(&mut self) -> Result<(), CheckError> {
        let device = self.device;
        if self.small("peers", PeerBook::read(device))? == Some(Found::Damaged) {
            let what = "it is damaged: which starts of the other servers were seen is forgotten";
            self.problem("peers", what, format!("{GOES_ON}; an old copy of a peer's folder may not be recognised"));
        }
        for file in ["identity", "peers", "CURRENT", "install"] {
            let bytes = match device.open(file).and_then(|open| open.read(0, 2 * BLOCK + 1)) {
                Ok(bytes) => bytes,
                Err(DeviceError::NotFound { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            if bytes.len() != 2 * BLOCK || bytes[..BLOCK] != bytes[BLOCK..] {
                self.problem(
                    file,
                    "its two copies are not the same: the disk changed one of them",
                    "uses the sound one",
                );
            }
        }
        Ok(())
    }

    /// A snapshot whose install must be finished; `None`: the state is condemned.
    fn install(&mut self) -> Result<Option<Option<InstallIntent>>, CheckError> {
        let Some(found) = self.small("install", InstallIntent::read(self.device))? else { return Ok(None) };
        Ok(match found {
            Found::Absent => Some(None),
            Found::Damaged => {
                self.problem("install", "the record of a snapshot's install is damaged", LOSES_ALL);
                None
            }
            Found::Valid(intent) => {
                let what = format!("the install of a snapshot at {} was interrupted", intent.snapshot.position.zxid);
                self.note("install", what, "finishes it");
                Some(Some(intent))
            }
        })
    }

    fn current(&mut self, install: Option<&InstallIntent>) -> Result<(), CheckError> {
        if let Some(intent) = install {
            self.folder.store = Some(Current { generation: intent.generation }.folder());
            return Ok(());
        }
        let Some(found) = self.small("CURRENT", Current::read(self.device))? else { return Ok(()) };
        let fresh = self.folder.identity.is_some_and(|r| r.identity.membership == Membership::Empty);
        match found {
            Found::Valid(current) => self.folder.store = Some(current.folder()),
            Found::Absent if fresh => {}
            Found::Absent => {
                self.problem("CURRENT", "it is missing: which state folder counts is not known", LOSES_ALL)
            }
            Found::Damaged => {
                self.problem("CURRENT", "it is damaged: which state folder counts is not known", LOSES_ALL)
            }
        }
        Ok(())
    }

    fn leftovers(&mut self) -> Result<(), CheckError> {
        let device = self.device;
        if let Some(current) = self.folder.store.clone() {
            for (_, name) in state_folders(device)? {
                if name != current {
                    self.note(name, "a state folder that does not count: replaced, or not received whole", CLEANS_UP);
                }
            }
        }
        if contains(device, "", SNAPSHOTS_DIR)? && !list_or_empty(device, SNAPSHOTS_DIR)?.is_empty() {
            self.note(SNAPSHOTS_DIR, "checkpoints for learners that nobody fetches any more", CLEANS_UP);
        }
        for (folder, names) in [("", list_or_empty(device, "")?), (LOG_DIR, list_or_empty(device, LOG_DIR)?)] {
            for name in names.into_iter().filter(|name| name.ends_with(".tmp")) {
                let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
                self.note(path, "a temporary file, prepared or left by an interruption", CLEANS_UP);
            }
        }
        for name in set_aside_folders(device)? {
            self.note(
                name,
                "set aside by a former start, for people",
                "leaves it alone: delete it when it is not needed",
            );
        }
        Ok(())
    }

    /// Whether a store can be compared with the log.
    fn store(
        &mut self,
        read_meta: &mut dyn FnMut(&str) -> Result<Option<Meta>, OpenError>,
    ) -> Result<bool, CheckError> {
        let Some(folder) = self.folder.store.clone() else { return Ok(false) };
        let began = self.folder.identity.is_none_or(|r| r.identity.membership != Membership::Empty);
        if !contains(self.device, "", &folder)? {
            if began {
                self.problem(
                    folder.as_str(),
                    "the state folder is missing: what was executed is not known",
                    EMPTY_STORE,
                );
            }
            self.folder.store = None;
            return Ok(true);
        }
        match read_meta(&folder) {
            Ok(meta) => {
                self.folder.meta = meta;
                Ok(true)
            }
            Err(OpenError::Damaged(why)) => {
                self.problem(folder, format!("the store is damaged: {why}"), LOSES_ALL);
                self.folder.store = None;
                Ok(false)
            }
            Err(error @ OpenError::Failed(_)) => Err(CheckError::Store(error)),
        }
    }

    fn log(&mut self, readable: bool, install: Option<&InstallIntent>) -> Result<(), CheckError> {
        // Without an identity the segments still say whose they are, to themselves.
        let record = match self.folder.identity {
            Some(record) => record,
            None => match self.identity_of_log()? {
                Some(record) => record,
                None => return Ok(()),
            },
        };
        let applied = self.folder.meta.as_ref().map(|m| Position { zxid: m.applied, hash: m.hash }).unwrap_or_default();
        let owner = Owner { server: record.identity.server, instance: record.identity.instance };
        let scanned = match scan(self.device, owner, applied) {
            Ok(scanned) => scanned,
            Err(error) => return self.log_error(error, &record, applied, install.is_some()),
        };
        let index = &scanned.index;
        self.folder.log = Some((index.base, index.end));
        self.folder.promise = self.folder.promise.max(scanned.promise);
        self.folder.epochs.clone_from(&scanned.epochs);
        for (path, Damage { offset, what, .. }) in &scanned.skipped {
            let what = format!("damage at byte {offset}: {what}; the store contains all of its entries");
            self.problem(path.as_str(), what, "sets it aside in damaged-N/ and keeps its vote");
        }
        for path in &scanned.void {
            self.note(path.as_str(), "a segment that counts no more: a later one made it void", CLEANS_UP);
        }
        if let Some(at) = scanned.torn_at {
            let path = index.segments.back().map(|segment| segment.path.clone()).unwrap_or_default();
            let what = format!(
                "a write that was never finished at byte {at}: the process ended in the middle of it, and nobody was told \
                 that it is durable; the log ends at {}",
                index.end.zxid
            );
            self.note(path, what, "cuts it off");
        }
        if install.is_none() && readable {
            self.log_against_store(&scanned, &record.identity, applied)?;
        }
        Ok(())
    }

    fn identity_of_log(&mut self) -> Result<Option<IdentityRecord>, CheckError> {
        let mut found = None;
        walk(self.device, 0, &mut |item| match item {
            Item::Segment { header: Ok(header), .. } => {
                found = Some(header);
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        })?;
        Ok(found.map(|SegmentHeader { server, instance, .. }| {
            let identity = Identity { server, instance, membership: Membership::Amnesiac, ..Identity::default() };
            IdentityRecord { identity, ..IdentityRecord::default() }
        }))
    }

    fn log_error(
        &mut self,
        error: ScanError,
        record: &IdentityRecord,
        applied: Position,
        installing: bool,
    ) -> Result<(), CheckError> {
        match error {
            ScanError::Device(error) => return Err(error.into()),
            ScanError::Missing => {
                let never_begun = record.identity.membership == Membership::Empty && applied == Position::default();
                if !never_begun && record.condemned == Condemned::Nothing {
                    self.problem(LOG_DIR, "there is no segment of the log", LOSES_LOG);
                }
            }
            ScanError::Damaged(Damage { path, offset, what }) => {
                let but = if installing { "; a snapshot was being installed" } else { "" };
                let what =
                    format!("damage at byte {offset}: {what}{but}; what was durable there is lost to this server");
                self.problem(path, what, LOSES_LOG);
            }
            ScanError::Broken(Damage { path, offset, what }) => {
                let what = format!("the log contradicts itself at byte {offset}: {what}; is it a file of another log?");
                self.problem(path, what, REFUSES);
            }
            error @ (ScanError::Foreign { .. } | ScanError::Version { .. }) => {
                self.problem(LOG_DIR, error.to_string(), REFUSES);
            }
        }
        Ok(())
    }

    /// As [`super::recover`] compares them.
    fn log_against_store(
        &mut self,
        scanned: &Scanned,
        identity: &Identity,
        applied: Position,
    ) -> Result<(), CheckError> {
        let index = &scanned.index;
        let (base, end) = (index.base.zxid, index.end.zxid);
        if applied.zxid < base || applied.zxid > end {
            let what = format!(
                "the store contains everything up to {}, the log what is after {base} up to {end}: entries are missing",
                applied.zxid
            );
            self.problem(LOG_DIR, what, LOSES_LOG);
            return Ok(());
        }
        match index.position_of(identity.instance, applied.zxid) {
            Ok(Some(position)) if position == applied => {}
            Ok(_) => {
                let what = format!("store and log have different histories at {}", applied.zxid);
                self.problem(LOG_DIR, what, LOSES_ALL);
            }
            Err(super::scan::FrameError::Device(error)) => return Err(error.into()),
            Err(error @ super::scan::FrameError::Rotten { .. }) => {
                self.problem(LOG_DIR, error.to_string(), LOSES_LOG);
            }
        }
        let took_part = index.end != Position::default() || scanned.promise != Promise::default();
        if identity.membership == Membership::Empty && took_part {
            let what = "it says that this server never took part, and the log that it did: an old file was put back";
            self.problem(
                "identity",
                what,
                "is amnesiac: it does not vote until it has learned everything from a leader",
            );
        }
        Ok(())
    }
}
