//! What a restart makes of a data folder.
//!
//! The order is: identity (who, and one start more), a pending snapshot install, the store, the log, and whether the two
//! belong together. What a power cut explains is repaired in silence. What it does not explain is damage: then the server
//! is made amnesiac durably *first*, the old files are moved to `damaged-N/`, and it goes on as one that learns and does
//! not vote (P9). Files of another server, another cluster, or a newer release are refused and left untouched.
//!
//! Every step may be interrupted and is done again by the next start.

use std::sync::Arc;

use corral_proto::ServerId;

use super::folder::{
    Condemned, Current, FolderError, Found, IdentityRecord, InstallIntent, LOG_DIR, STORE_DAMAGED, remove_leftovers,
    set_aside, settle_set_aside, state_folders,
};
use super::frame::remove_if_there;
use super::log_device::{DeviceError, DeviceResult, LogDevice, contains, list_or_empty};
use super::scan::{Damage, FrameError, Owner, ScanError, Scanned, remains, scan};
use super::txn_log::{LogError, LogOptions, TxnLog};
use crate::tree::record::Meta;
use crate::zab::io::{Identity, Membership, Position, Recovered};

/// How often damage may be found in one start: first the log, then the log and the store.
const ATTEMPTS: u32 = 3;

/// What the caller says about the server that starts.
#[derive(Clone, Copy, Debug)]
pub struct RecoverOptions {
    /// Its number.
    pub server: ServerId,
    /// The cluster it must belong to, if that is known.
    pub cluster: Option<u64>,
    /// A random number, not zero; names the disk if the folder is new (or forgot its name).
    pub instance: u64,
    /// Settings of the log.
    pub log: LogOptions,
    /// Weight of the entries that are loaded beyond those the store lacks, bytes.
    pub tail_cache_bytes: usize,
}

/// Why a store could not be opened, in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Its files are damaged or missing: it is set aside, and the server becomes amnesiac.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// Something else is in the way (permissions, space, another process): the server does not start, and nothing is
    /// touched.
    #[error("the store cannot be opened: {0}")]
    Failed(String),
}

/// Opens the store. It keeps what it opened, for whoever recovers.
pub trait StoreOpener {
    /// Opens the store in this folder of the data folder (which exists), an empty one if there is none, and returns
    /// its meta row. An earlier one is closed.
    ///
    /// # Errors
    /// See [`OpenError`].
    fn open(&mut self, folder: &str) -> Result<Option<Meta>, OpenError>;

    /// Closes what is open: its folder is about to be moved.
    fn close(&mut self);
}

/// A folder that can be gone on with.
pub struct Recovery {
    /// The log, its tail rewritten.
    pub log: TxnLog,
    /// What the protocol machine is to know.
    pub recovered: Recovered,
    /// The state folder; its store is the last that was opened.
    pub current: Current,
    /// What was found and done that an operator should read.
    pub notes: Vec<String>,
}

/// Why a server does not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A small file of a newer release.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The log is of another folder, of a newer release, or contradicts itself.
    #[error(transparent)]
    Scan(ScanError),
    /// The log could not be written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The store could not be opened, though nothing says that it is damaged.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The folder of another server.
    #[error("the data folder belongs to server {found}, this is server {expected}")]
    OtherServer {
        /// Whose it is.
        found: ServerId,
        /// Who starts.
        expected: ServerId,
    },
    /// The folder of another cluster.
    #[error("the data folder belongs to cluster {found:#x}, expected is {expected:#x}")]
    OtherCluster {
        /// Whose it is.
        found: u64,
        /// What was asked for.
        expected: u64,
    },
    /// A folder made anew is damaged too.
    #[error("the data folder is damaged even after its files were set aside: {0}")]
    StillDamaged(String),
    /// There is nothing that could be recovered by force.
    #[error("the data folder holds no identity of a member: {0}")]
    NothingToRecover(&'static str),
}

impl From<FrameError> for RecoverError {
    fn from(error: FrameError) -> RecoverError {
        RecoverError::Scan(error.into())
    }
}

/// Why an attempt ended.
enum Stop {
    Error(RecoverError),
    Damage(Condemned, String),
}

impl<E: Into<RecoverError>> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Error(error.into())
    }
}

/// Recovers a data folder, or makes a new one in an empty folder (identity EMPTY).
///
/// # Errors
/// See [`RecoverError`].
pub fn recover(
    device: Arc<dyn LogDevice>,
    options: &RecoverOptions,
    store: &mut dyn StoreOpener,
) -> Result<Recovery, RecoverError> {
    let mut notes = Vec::new();
    settle_set_aside(device.as_ref())?;
    let mut record = start_identity(device.as_ref(), options, &mut notes)?;
    if record.condemned != Condemned::Nothing {
        let why = "files of the data folder were condemned".to_owned();
        condemn(device.as_ref(), &mut record, Condemned::Nothing, &why, &mut notes)?;
        remove_if_there(device.as_ref(), STORE_DAMAGED)?;
        device.sync_dir("")?;
    }
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        match attempt(&device, options, &mut record, store, &mut notes) {
            Ok(recovery) => return Ok(Recovery { notes, ..recovery }),
            Err(Stop::Error(error)) => return Err(error),
            Err(Stop::Damage(what, why)) => {
                store.close();
                condemn(device.as_ref(), &mut record, what, &why, &mut notes)?;
                last = why;
            }
        }
    }
    Err(RecoverError::StillDamaged(last))
}

/// Reads or makes the identity, and makes one start more durable.
fn start_identity(
    device: &dyn LogDevice,
    options: &RecoverOptions,
    notes: &mut Vec<String>,
) -> Result<IdentityRecord, RecoverError> {
    let found = IdentityRecord::read(device)?;
    let mut record = match found {
        Found::Valid(record) => record,
        Found::Absent | Found::Damaged => {
            let fresh = Identity { server: options.server, instance: options.instance, ..Identity::default() };
            let mut record = IdentityRecord { identity: fresh, ..IdentityRecord::default() };
            if found == Found::Damaged || holds_data(device)? {
                // Who it was cannot be known, so what it promised cannot be known: a new name, and no vote.
                record.identity.membership = Membership::Amnesiac;
                record.condemned = Condemned::All;
                notes.push("the identity file is missing or damaged: everything else is set aside".into());
                if let Some(found) = remains(device, options.instance)?.server
                    && found != options.server
                {
                    return Err(RecoverError::OtherServer { found, expected: options.server });
                }
            }
            record
        }
    };
    let identity = &mut record.identity;
    if identity.server != options.server {
        return Err(RecoverError::OtherServer { found: identity.server, expected: options.server });
    }
    if let Some(expected) = options.cluster
        && identity.cluster != 0
        && identity.cluster != expected
    {
        return Err(RecoverError::OtherCluster { found: identity.cluster, expected });
    }
    identity.start_count += 1;
    if contains(device, "", STORE_DAMAGED)? {
        record.identity.membership = Membership::Amnesiac;
        record.condemned = Condemned::All;
        notes.push("the store was found damaged while the server ran".into());
    }
    if record.identity.membership == Membership::Amnesiac {
        record.whole_since = record.identity.start_count;
    }
    record.write(device)?;
    Ok(record)
}

fn holds_data(device: &dyn LogDevice) -> DeviceResult<bool> {
    Ok(!list_or_empty(device, LOG_DIR)?.is_empty() || !state_folders(device)?.is_empty())
}

/// Makes the server amnesiac, durably, then moves what is condemned out of the way. A crash in between is finished by
/// the next start, since the identity file names what is condemned until the log is made anew.
fn condemn(
    device: &dyn LogDevice,
    record: &mut IdentityRecord,
    what: Condemned,
    why: &str,
    notes: &mut Vec<String>,
) -> Result<(), RecoverError> {
    let remains = remains(device, record.identity.instance)?;
    record.condemned = record.condemned.max(what);
    record.promise = record.promise.max(remains.promise);
    record.identity.membership = Membership::Amnesiac;
    record.whole_since = record.identity.start_count;
    if record.identity.cluster == 0 {
        record.identity.cluster = remains.cluster;
    }
    if record.condemned == Condemned::All {
        let next = state_folders(device)?.last().map_or(1, |(generation, _)| generation + 1);
        record.generation = record.generation.max(next);
    }
    record.write(device)?;
    let aside = set_aside(device, record.condemned)?;
    notes.push(format!(
        "{why}; this server is amnesiac now: it does not vote until it has learned everything from a leader{}",
        aside.map(|folder| format!("; its old files are kept in {folder}")).unwrap_or_default()
    ));
    Ok(())
}

fn attempt(
    device: &Arc<dyn LogDevice>,
    options: &RecoverOptions,
    record: &mut IdentityRecord,
    store: &mut dyn StoreOpener,
    notes: &mut Vec<String>,
) -> Result<Recovery, Stop> {
    finish_install(device, options, record, notes)?;
    let current = current_folder(device.as_ref(), record)?;
    remove_leftovers(device.as_ref(), current)?;
    let folder = current.folder();
    device.create_dir(&folder)?;
    device.sync_dir("")?;
    let meta = match store.open(&folder) {
        Ok(meta) => meta.unwrap_or_default(),
        Err(error @ OpenError::Damaged(_)) => return Err(Stop::Damage(Condemned::All, error.to_string())),
        Err(error @ OpenError::Failed(_)) => return Err(Stop::Error(error.into())),
    };
    let applied = Position { zxid: meta.applied, hash: meta.hash };
    let (log, epochs) = open_log(device, options, record, applied, meta.stamp_ms, notes)?;
    let end = log.end();
    let recovered = Recovered {
        identity: record.identity,
        promise: log.promise(),
        base: log.base(),
        end,
        stamp_ms: log.stamp_ms().max(meta.stamp_ms),
        epochs,
        tail: log.reader().read_tail(applied.zxid, options.tail_cache_bytes)?,
        applied,
        persisted: applied.zxid,
        digest: meta.digest,
    };
    Ok(Recovery { log, recovered, current, notes: Vec::new() })
}

/// Which state folder counts.
fn current_folder(device: &dyn LogDevice, record: &IdentityRecord) -> Result<Current, Stop> {
    let fresh = record.identity.membership == Membership::Empty || record.condemned == Condemned::All;
    match Current::read(device)? {
        Found::Valid(current) => Ok(current),
        Found::Absent if fresh => {
            let current = Current { generation: record.generation.max(1) };
            current.write(device)?;
            Ok(current)
        }
        Found::Absent => Err(Stop::Damage(Condemned::All, "the file CURRENT is missing".into())),
        Found::Damaged => Err(Stop::Damage(Condemned::All, "the file CURRENT is damaged".into())),
    }
}

/// Does again what an interrupted install may not have done.
fn finish_install(
    device: &Arc<dyn LogDevice>,
    options: &RecoverOptions,
    record: &mut IdentityRecord,
    notes: &mut Vec<String>,
) -> Result<(), Stop> {
    let intent = match InstallIntent::read(device.as_ref())? {
        Found::Absent => return Ok(()),
        Found::Damaged => return Err(Stop::Damage(Condemned::All, "the file install is damaged".into())),
        Found::Valid(intent) => intent,
    };
    Current { generation: intent.generation }.write(device.as_ref())?;
    let position = intent.snapshot.position;
    match scan(device.as_ref(), owner(record), position) {
        // The new segment is there: only the intent remained.
        Ok(scanned) if scanned.index.base == position && scanned.index.end == position => {}
        Ok(scanned) => {
            let mut log = TxnLog::open(device.clone(), options.log, *record, scanned)?;
            log.reset_to(&intent.snapshot)?;
        }
        // It was set aside just before; it is made anew after what the snapshot contains.
        Err(ScanError::Missing) if record.condemned != Condemned::Nothing => {}
        Err(ScanError::Missing | ScanError::Damaged(_)) => {
            // The old log is void, and yet it may have held a promise that is lost now.
            return Err(Stop::Damage(Condemned::Log, "the log is damaged, and a snapshot was being installed".into()));
        }
        Err(error) => return Err(scan_stop(error)),
    }
    InstallIntent::clear(device.as_ref())?;
    notes.push(format!("finished the install of a snapshot at {}", position.zxid));
    Ok(())
}

fn owner(record: &IdentityRecord) -> Owner {
    Owner { server: record.identity.server, instance: record.identity.instance }
}

fn scan_stop(error: ScanError) -> Stop {
    match error {
        ScanError::Device(error) => Stop::Error(error.into()),
        ScanError::Missing | ScanError::Damaged(_) => Stop::Damage(Condemned::Log, error.to_string()),
        error => Stop::Error(RecoverError::Scan(error)),
    }
}

/// The log, and its epoch table.
fn open_log(
    device: &Arc<dyn LogDevice>,
    options: &RecoverOptions,
    record: &mut IdentityRecord,
    applied: Position,
    stamp_ms: i64,
    notes: &mut Vec<String>,
) -> Result<(TxnLog, Vec<Position>), Stop> {
    let never_begun = record.identity.membership == Membership::Empty && applied == Position::default();
    match scan(device.as_ref(), owner(record), applied) {
        Ok(scanned) => {
            check_against_store(record, &scanned, applied)?;
            report(&scanned, notes);
            let skipped: Vec<String> = scanned.skipped.iter().map(|(path, _)| path.clone()).collect();
            set_segments_aside(device.as_ref(), &skipped)?;
            let epochs = scanned.epochs.clone();
            let log = TxnLog::open(device.clone(), options.log, *record, scanned)?;
            confirm_membership(device.as_ref(), record, &log, notes)?;
            Ok((log.with_record(*record), epochs))
        }
        Err(ScanError::Missing) if never_begun || record.condemned != Condemned::Nothing => {
            let log = TxnLog::create(device.clone(), options.log, *record, applied, stamp_ms, record.promise)?;
            if record.condemned != Condemned::Nothing {
                record.condemned = Condemned::Nothing;
                record.write(device.as_ref())?;
            }
            Ok((log.with_record(*record), vec![applied]))
        }
        Err(error) => Err(scan_stop(error)),
    }
}

/// The store must be a point of the log's history: it holds nothing that the log lacks, and nothing lies between.
fn check_against_store(record: &IdentityRecord, scanned: &Scanned, applied: Position) -> Result<(), Stop> {
    let index = &scanned.index;
    if applied.zxid < index.base.zxid || applied.zxid > index.end.zxid {
        return Err(Stop::Damage(
            Condemned::Log,
            format!(
                "the store contains everything up to {}, the log what is after {} up to {}: entries are missing",
                applied.zxid, index.base.zxid, index.end.zxid
            ),
        ));
    }
    if index.position_of(record.identity.instance, applied.zxid)? != Some(applied) {
        return Err(Stop::Damage(
            Condemned::All,
            format!("the store and the log have different histories at {}", applied.zxid),
        ));
    }
    Ok(())
}

fn report(scanned: &Scanned, notes: &mut Vec<String>) {
    if let Some(at) = scanned.torn_at {
        notes.push(format!(
            "the last write before the stop was not finished; the log is cut at {} (byte {at} of its last segment)",
            scanned.index.end.zxid
        ));
    }
    for (path, Damage { offset, what, .. }) in &scanned.skipped {
        notes.push(format!(
            "log segment {path} is set aside; its entries are in the store (damage at byte {offset}: {what})"
        ));
    }
}

fn set_segments_aside(device: &dyn LogDevice, paths: &[String]) -> DeviceResult<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let aside = super::folder::make_damaged_dir(device)?;
    for path in paths {
        let name = path.rsplit('/').next().unwrap_or(path);
        device.rename(path, &format!("{aside}/{name}"))?;
        // One by one, as in trimming.
        device.sync_dir(&aside)?;
        device.sync_dir(LOG_DIR)?;
    }
    Ok(())
}

/// A log that took part in something under an identity that never did: an old identity file was put back.
fn confirm_membership(
    device: &dyn LogDevice,
    record: &mut IdentityRecord,
    log: &TxnLog,
    notes: &mut Vec<String>,
) -> Result<(), Stop> {
    let took_part = log.end() != Position::default() || log.promise() != Default::default();
    if record.identity.membership == Membership::Empty && took_part {
        record.identity.membership = Membership::Amnesiac;
        record.whole_since = record.identity.start_count;
        record.write(device)?;
        notes.push("the identity says that this server never took part, the log that it did: it is amnesiac".into());
    }
    Ok(())
}

/// Condemns a folder: the next start makes the server amnesiac and sets log and store aside. For a store that
/// differs from a majority (P35), or whose files turn out to be damaged while it runs.
///
/// # Errors
/// Any of the device.
pub fn mark_damaged(device: &dyn LogDevice) -> Result<(), RecoverError> {
    let Found::Valid(mut record) = IdentityRecord::read(device)? else {
        // Without an identity the next start comes to the same conclusion.
        return Ok(());
    };
    record.identity.membership = Membership::Amnesiac;
    record.condemned = Condemned::All;
    Ok(record.write(device)?)
}

/// The only way out of a lost majority (`corral recover --accept-data-loss`): makes this stopped server the one member
/// of a new cluster that keeps this log. Returns the end of the log. Its next epoch is above every epoch it knows,
/// since its promise stays. Run on a folder that was started once since it was last damaged.
///
/// # Errors
/// [`RecoverError::NothingToRecover`] if the server never took part or its files are condemned; others as
/// [`recover`].
pub fn accept_data_loss(device: &dyn LogDevice, server: ServerId, new_cluster: u64) -> Result<Position, RecoverError> {
    let Found::Valid(mut record) = IdentityRecord::read(device)? else {
        return Err(RecoverError::NothingToRecover("the identity file is missing or damaged"));
    };
    if record.identity.server != server {
        return Err(RecoverError::OtherServer { found: record.identity.server, expected: server });
    }
    if record.identity.membership == Membership::Empty {
        return Err(RecoverError::NothingToRecover("this server never took part in an ensemble"));
    }
    if record.condemned != Condemned::Nothing {
        return Err(RecoverError::NothingToRecover("its files are condemned; start it once"));
    }
    let scanned = scan(device, owner(&record), Position::default()).map_err(RecoverError::Scan)?;
    record.identity.cluster = new_cluster;
    record.identity.membership = Membership::Member;
    // What was seen of it in the former cluster may be more than it holds: that is the loss which is accepted.
    record.whole_since = record.identity.start_count + 1;
    record.write(device)?;
    Ok(scanned.index.end)
}
