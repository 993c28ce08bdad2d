//! The disk as the log sees it: a folder of files with explicit durability, and its twin in memory.
//!
//! [`LogDevice`] is the seam between the log's logic and the disk: real files in the server, [`MemoryDevice`] in
//! tests and in the simulator. The twin keeps two images, what a reader sees and what a power cut leaves, and lets
//! its caller decide the fate of everything in between: each unsynced sector by itself, each creation,
//! rename and removal whose folder was not synced, each change of a file's length.
//!
//! Paths are relative to the data folder and separated by `/`; the empty path is the data folder itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;

/// Why the device did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is no such file or folder. The only error that callers may act on.
    #[error("{path}: no such file or folder")]
    NotFound {
        /// Which.
        path: String,
    },
    /// Anything else; on the paths of the log it ends the process (P28).
    #[error("{operation} {path}: {reason}")]
    Failed {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// The machine has no power any more ([`MemoryDevice`] only).
    #[error("{operation} {path}: power is off")]
    PowerOff {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: String,
    },
}

/// What a device returns.
pub type DeviceResult<T> = Result<T, DeviceError>;

/// A folder of files. Nothing is durable before [`DeviceFile::sync`] (content and length) and
/// [`LogDevice::sync_dir`] (names) returned.
pub trait LogDevice: Send + Sync + 'static {
    /// Makes a folder, if it is not there.
    fn create_dir(&self, path: &str) -> DeviceResult<()>;

    /// Names in a folder, files and folders, ascending.
    ///
    /// # Errors
    /// [`DeviceError::NotFound`] if there is no such folder.
    fn list(&self, path: &str) -> DeviceResult<Vec<String>>;

    /// Makes an empty file. It is an error if there is one.
    fn create(&self, path: &str) -> DeviceResult<Arc<dyn DeviceFile>>;

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// [`DeviceError::NotFound`] if there is no such file.
    fn open(&self, path: &str) -> DeviceResult<Arc<dyn DeviceFile>>;

    /// Gives a file or folder another name, replacing a file of that name in one step.
    fn rename(&self, from: &str, to: &str) -> DeviceResult<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// [`DeviceError::NotFound`] if there is no such file.
    fn remove(&self, path: &str) -> DeviceResult<()>;

    /// Removes a folder and all below it; nothing happens if it is not there.
    fn remove_dir_all(&self, path: &str) -> DeviceResult<()>;

    /// Makes creations, renames and removals in a folder durable.
    fn sync_dir(&self, path: &str) -> DeviceResult<()>;
}

/// An open file.
pub trait DeviceFile: Send + Sync + 'static {
    /// Up to `len` bytes from `offset` on; fewer only at the end of the file.
    fn read(&self, offset: u64, len: usize) -> DeviceResult<Vec<u8>>;

    /// Writes all of `bytes` at `offset`; the file grows if need be, and what lies between reads as zeros.
    fn write(&self, offset: u64, bytes: &[u8]) -> DeviceResult<()>;

    /// Makes content and length durable.
    fn sync(&self) -> DeviceResult<()>;

    /// Length in bytes.
    fn size(&self) -> DeviceResult<u64>;
}

/// Whether there is a file or folder of this name in the folder `dir`.
///
/// # Errors
/// As [`LogDevice::list`], except that a folder that is not there contains nothing.
pub fn contains(device: &dyn LogDevice, dir: &str, name: &str) -> DeviceResult<bool> {
    Ok(list_or_empty(device, dir)?.iter().any(|n| n == name))
}

/// [`LogDevice::list`], where a folder that is not there is empty.
///
/// # Errors
/// As [`LogDevice::list`].
pub fn list_or_empty(device: &dyn LogDevice, dir: &str) -> DeviceResult<Vec<String>> {
    match device.list(dir) {
        Err(DeviceError::NotFound { .. }) => Ok(Vec::new()),
        other => other,
    }
}

/// Smallest unit of durability that the twin knows, bytes.
pub const SECTOR: usize = 512;

const PAGE: usize = 4096;
const ZEROS: [u8; PAGE] = [0; PAGE];
const SECTORS_PER_PAGE: u64 = (PAGE / SECTOR) as u64;

/// What a power cut found half done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsynced<'a> {
    /// A creation, rename or removal; the path is the old name of a rename.
    Name(&'a str),
    /// A change of a file's length.
    Length(&'a str),
    /// The `index`-th unit of a file.
    Unit {
        /// The file.
        path: &'a str,
        /// Counted in units of the size given to [`MemoryDevice::after_power_cut`].
        index: u64,
    },
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It reached the disk.
    Kept,
    /// It did not.
    Lost,
    /// Of a unit, so many leading bytes did; of a name or a length: as [`Fate::Lost`].
    Torn(usize),
}

/// What a planned fault does to the operation it hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Power goes while the operation is under way: it happened in the cache, and nothing became durable by it.
    /// Every later operation fails, until [`MemoryDevice::after_power_cut`] gives the device of the next start.
    PowerCut,
    /// The operation fails. A failed sync leaves the content in the cache, marked clean: it is readable, and never
    /// reaches the disk by a later sync (what Linux does). A failed write may have changed its first half.
    Failure,
    /// The operation fails for want of space and changes nothing.
    NoSpace,
}

/// A disk in memory. Clones share it; [`MemoryDevice::fork`] copies it.
#[derive(Clone, Default)]
pub struct MemoryDevice {
    state: Arc<Mutex<State>>,
}

type Page = Option<Arc<[u8; PAGE]>>;

/// Content in pages; `None` is a page of zeros. Copying shares pages.
#[derive(Clone, Default)]
struct Content {
    pages: Vec<Page>,
    len: u64,
}

#[derive(Clone, Default)]
struct Inode {
    now: Content,
    durable: Content,
    /// Sectors written since the last sync.
    dirty: BTreeSet<u64>,
}

#[derive(Clone, Default)]
struct Names {
    files: BTreeMap<String, u64>,
    dirs: BTreeSet<String>,
}

#[derive(Clone)]
enum NameChange {
    Create { path: String, inode: u64 },
    Remove { path: String },
    Rename { from: String, to: String, inode: u64 },
    RenameDir { from: String, to: String },
    CreateDir { path: String },
    RemoveDir { path: String },
}

#[derive(Clone)]
struct PendingName {
    change: NameChange,
    /// Folders that must be synced before it is durable.
    waits_for: BTreeSet<String>,
}

#[derive(Clone, Default)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    now: Names,
    durable: Names,
    pending: Vec<PendingName>,
    operations: u64,
    fault: Option<(u64, Fault)>,
    /// A read fails after so many more.
    read_fault: Option<u64>,
    power_off: bool,
}

impl MemoryDevice {
    /// An empty disk.
    pub fn new() -> MemoryDevice {
        MemoryDevice::default()
    }

    /// An independent copy: content, what is durable, planned fault. Content is shared until it is written.
    pub fn fork(&self) -> MemoryDevice {
        MemoryDevice { state: Arc::new(Mutex::new(self.state.lock().clone())) }
    }

    /// Mutating operations so far (create, write, sync, rename, remove, sync of a folder).
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// Plans a fault for the mutating operation after the next `skip` ones. Replaces a former plan.
    pub fn fail_after(&self, skip: u64, fault: Fault) {
        let mut state = self.state.lock();
        state.fault = Some((state.operations + skip, fault));
    }

    /// Plans the failure of the read after the next `skip` ones. Replaces a former plan of this kind.
    pub fn fail_read_after(&self, skip: u64) {
        self.state.lock().read_fault = Some(skip);
    }

    /// Withdraws the planned faults.
    pub fn heal(&self) {
        let mut state = self.state.lock();
        state.fault = None;
        state.read_fault = None;
    }

    /// Whether a planned fault has yet to strike.
    pub fn is_planned(&self) -> bool {
        let state = self.state.lock();
        state.fault.is_some() || state.read_fault.is_some()
    }

    /// Whether a planned [`Fault::PowerCut`] has struck.
    pub fn is_off(&self) -> bool {
        self.state.lock().power_off
    }

    /// The disk at the next start after a power cut now. `unit` is the size in bytes of what is kept, lost or torn
    /// as one (a multiple of [`SECTOR`] that divides 4,096); `decide` is asked in a fixed order.
    pub fn after_power_cut(&self, unit: usize, decide: &mut dyn FnMut(Unsynced<'_>) -> Fate) -> MemoryDevice {
        assert!(unit >= SECTOR && PAGE.is_multiple_of(unit), "a unit is 512 to 4,096 bytes");
        let state = self.state.lock();
        let mut names = state.durable.clone();
        for pending in &state.pending {
            if decide(Unsynced::Name(pending.change.path())) == Fate::Kept {
                pending.change.apply(&mut names);
            }
        }
        names.drop_orphans();
        let mut inodes = BTreeMap::new();
        for (path, number) in &names.files {
            let inode = &state.inodes[number];
            inodes.insert(*number, inode.after_power_cut(path, unit, decide));
        }
        MemoryDevice {
            state: Arc::new(Mutex::new(State {
                inodes,
                next_inode: state.next_inode,
                now: names.clone(),
                durable: names,
                ..State::default()
            })),
        }
    }

    /// [`MemoryDevice::after_power_cut`] with fates drawn from a seed: about a third each; units of 512 bytes or
    /// 4 KiB.
    pub fn after_power_cut_seeded(&self, seed: u64) -> MemoryDevice {
        let mut random = seed;
        let unit = if split_mix(&mut random).is_multiple_of(2) { SECTOR } else { PAGE };
        self.after_power_cut(unit, &mut |_| match split_mix(&mut random) % 3 {
            0 => Fate::Kept,
            1 => Fate::Lost,
            _ => Fate::Torn((split_mix(&mut random) as usize) % unit),
        })
    }

    /// Bit rot: changes a durable file behind everybody's back.
    ///
    /// # Panics
    /// If there is no such file or it is shorter.
    pub fn rot(&self, path: &str, offset: u64, change: impl FnOnce(&mut [u8]), len: usize) {
        let mut state = self.state.lock();
        let number = *state.now.files.get(path).expect("rot strikes an existing file");
        let inode = state.inodes.get_mut(&number).expect("every name has an inode");
        let mut bytes = inode.now.read(offset, len);
        assert_eq!(bytes.len(), len, "rot strikes inside of the file");
        change(&mut bytes);
        inode.now.write(offset, &bytes);
        inode.durable.write(offset, &bytes);
    }

    /// The content of a file as a reader sees it, for tests.
    pub fn content(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.state.lock();
        let inode = &state.inodes[state.now.files.get(path)?];
        Some(inode.now.read(0, inode.now.len as usize))
    }

    /// Every file, ascending, for tests.
    pub fn files(&self) -> Vec<String> {
        self.state.lock().now.files.keys().cloned().collect()
    }
}

/// SplitMix64: the next number of a deterministic sequence.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

fn is_below(path: &str, dir: &str) -> bool {
    dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

impl Content {
    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = self.len.min(offset.saturating_add(len as u64));
        if offset >= end {
            return Vec::new();
        }
        let mut bytes = vec![0; (end - offset) as usize];
        let mut done = 0;
        while done < bytes.len() {
            let at = offset as usize + done;
            let within = at % PAGE;
            let part = (PAGE - within).min(bytes.len() - done);
            if let Some(Some(page)) = self.pages.get(at / PAGE) {
                bytes[done..done + part].copy_from_slice(&page[within..within + part]);
            }
            done += part;
        }
        bytes
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        self.set_len(self.len.max(end));
        let mut done = 0;
        while done < bytes.len() {
            let at = offset as usize + done;
            let within = at % PAGE;
            let part = (PAGE - within).min(bytes.len() - done);
            let piece = &bytes[done..done + part];
            let page = &mut self.pages[at / PAGE];
            if page.is_some() || *piece != ZEROS[..part] {
                let page = page.get_or_insert_with(|| Arc::new([0; PAGE]));
                Arc::make_mut(page)[within..within + part].copy_from_slice(piece);
            }
            done += part;
        }
    }

    fn set_len(&mut self, len: u64) {
        self.len = len;
        self.pages.resize((len as usize).div_ceil(PAGE), None);
    }
}

impl Inode {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        // Growth makes sectors of zeros; they are no different from a hole, so only what is written is dirty.
        self.now.write(offset, bytes);
        let sector = SECTOR as u64;
        self.dirty.extend(offset / sector..=(offset + bytes.len() as u64 - 1) / sector);
    }

    fn sync(&mut self) {
        self.durable.set_len(self.now.len);
        let pages: BTreeSet<u64> = self.dirty.iter().map(|sector| sector / SECTORS_PER_PAGE).collect();
        for page in pages {
            // A page may hold sectors that an earlier failed sync left behind; the disk takes whole pages.
            self.durable.pages[page as usize] = self.now.pages[page as usize].clone();
        }
        self.dirty.clear();
    }

    fn after_power_cut(&self, path: &str, unit: usize, decide: &mut dyn FnMut(Unsynced<'_>) -> Fate) -> Inode {
        let mut content = self.durable.clone();
        let mut len = content.len;
        if self.now.len != len && decide(Unsynced::Length(path)) == Fate::Kept {
            len = self.now.len;
        }
        content.set_len(content.len.max(self.now.len));
        let per_unit = (unit / SECTOR) as u64;
        let units: BTreeSet<u64> = self.dirty.iter().map(|sector| sector / per_unit).collect();
        for index in units {
            let offset = index * unit as u64;
            let new = self.now.read(offset, unit);
            if new == content.read(offset, new.len()) {
                continue;
            }
            let kept = match decide(Unsynced::Unit { path, index }) {
                Fate::Kept => new.len(),
                Fate::Lost => 0,
                Fate::Torn(bytes) => bytes.min(new.len()),
            };
            content.write(offset, &new[..kept]);
        }
        content.set_len(len);
        if let Some(Some(last)) = content.pages.last_mut() {
            // What lies beyond the end of a file reads as zeros when the file grows again.
            let used = len as usize - (len as usize - 1) / PAGE * PAGE;
            if last[used..].iter().any(|b| *b != 0) {
                Arc::make_mut(last)[used..].fill(0);
            }
        }
        Inode { now: content.clone(), durable: content, dirty: BTreeSet::new() }
    }
}

impl Names {
    fn has_dir(&self, path: &str) -> bool {
        path.is_empty() || self.dirs.contains(path)
    }

    /// Drops what lies in folders that are not there.
    fn drop_orphans(&mut self) {
        loop {
            let lost: Vec<String> = self.dirs.iter().filter(|dir| !self.has_dir(parent(dir))).cloned().collect();
            if lost.is_empty() {
                break;
            }
            for dir in lost {
                self.dirs.remove(&dir);
            }
        }
        let dirs = self.dirs.clone();
        self.files.retain(|path, _| parent(path).is_empty() || dirs.contains(parent(path)));
    }
}

impl NameChange {
    fn path(&self) -> &str {
        match self {
            NameChange::Create { path, .. }
            | NameChange::Remove { path }
            | NameChange::CreateDir { path }
            | NameChange::RemoveDir { path } => path,
            NameChange::Rename { from, .. } | NameChange::RenameDir { from, .. } => from,
        }
    }

    fn apply(&self, names: &mut Names) {
        match self {
            NameChange::Create { path, inode } => {
                names.files.insert(path.clone(), *inode);
            }
            NameChange::Remove { path } => {
                names.files.remove(path);
            }
            NameChange::Rename { from, to, inode } => {
                names.files.remove(from);
                names.files.insert(to.clone(), *inode);
            }
            NameChange::RenameDir { from, to } => {
                let moved = |path: &str| format!("{to}{}", &path[from.len()..]);
                let files: Vec<String> = names.files.keys().filter(|p| is_below(p, from)).cloned().collect();
                for path in files {
                    let inode = names.files.remove(&path).expect("listed just before");
                    names.files.insert(moved(&path), inode);
                }
                let dirs: Vec<String> =
                    names.dirs.iter().filter(|p| *p == from || is_below(p, from)).cloned().collect();
                for path in dirs {
                    names.dirs.remove(&path);
                    names.dirs.insert(moved(&path));
                }
            }
            NameChange::CreateDir { path } => {
                names.dirs.insert(path.clone());
            }
            NameChange::RemoveDir { path } => {
                names.files.retain(|p, _| !is_below(p, path));
                names.dirs.retain(|p| p != path && !is_below(p, path));
            }
        }
    }
}

impl State {
    /// Counts a mutating operation and says what happens to it.
    fn admit(&mut self, operation: &'static str, path: &str) -> DeviceResult<Option<Fault>> {
        self.check_power(operation, path)?;
        let number = self.operations;
        self.operations += 1;
        match self.fault {
            Some((at, fault)) if at == number => {
                self.fault = None;
                self.power_off = fault == Fault::PowerCut;
                Ok(Some(fault))
            }
            _ => Ok(None),
        }
    }

    fn check_power(&self, operation: &'static str, path: &str) -> DeviceResult<()> {
        if self.power_off {
            return Err(DeviceError::PowerOff { operation, path: path.to_owned() });
        }
        Ok(())
    }

    fn change_names(&mut self, operation: &'static str, change: NameChange, waits_for: &[&str]) -> DeviceResult<()> {
        let path = change.path().to_owned();
        let fault = self.admit(operation, &path)?;
        if !matches!(fault, Some(Fault::Failure | Fault::NoSpace)) {
            change.apply(&mut self.now);
            let waits_for = waits_for.iter().map(|dir| (*dir).to_owned()).collect();
            self.pending.push(PendingName { change, waits_for });
        }
        outcome(fault, operation, &path)
    }
}

fn outcome(fault: Option<Fault>, operation: &'static str, path: &str) -> DeviceResult<()> {
    let path = path.to_owned();
    match fault {
        None => Ok(()),
        Some(Fault::PowerCut) => Err(DeviceError::PowerOff { operation, path }),
        Some(Fault::Failure) => Err(DeviceError::Failed { operation, path, reason: "input/output error".into() }),
        Some(Fault::NoSpace) => Err(DeviceError::Failed { operation, path, reason: "no space left".into() }),
    }
}

impl LogDevice for MemoryDevice {
    fn create_dir(&self, path: &str) -> DeviceResult<()> {
        let mut state = self.state.lock();
        if state.now.has_dir(path) {
            return Ok(());
        }
        if !state.now.has_dir(parent(path)) {
            return Err(DeviceError::NotFound { path: parent(path).to_owned() });
        }
        state.change_names("create folder", NameChange::CreateDir { path: path.to_owned() }, &[parent(path)])
    }

    fn list(&self, path: &str) -> DeviceResult<Vec<String>> {
        let state = self.state.lock();
        state.check_power("list", path)?;
        if !state.now.has_dir(path) {
            return Err(DeviceError::NotFound { path: path.to_owned() });
        }
        let in_dir = |p: &&String| parent(p) == path && !p.is_empty();
        let name = |p: &String| p.rsplit('/').next().unwrap_or(p).to_owned();
        let mut names: Vec<String> = state.now.files.keys().filter(in_dir).map(name).collect();
        names.extend(state.now.dirs.iter().filter(in_dir).map(name));
        names.sort();
        Ok(names)
    }

    fn create(&self, path: &str) -> DeviceResult<Arc<dyn DeviceFile>> {
        let mut state = self.state.lock();
        if !state.now.has_dir(parent(path)) {
            return Err(DeviceError::NotFound { path: parent(path).to_owned() });
        }
        if state.now.files.contains_key(path) {
            return Err(DeviceError::Failed {
                operation: "create",
                path: path.to_owned(),
                reason: "file exists".into(),
            });
        }
        let inode = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(inode, Inode::default());
        state.change_names("create", NameChange::Create { path: path.to_owned(), inode }, &[parent(path)])?;
        Ok(Arc::new(MemoryFile { state: self.state.clone(), path: path.to_owned(), inode }))
    }

    fn open(&self, path: &str) -> DeviceResult<Arc<dyn DeviceFile>> {
        let state = self.state.lock();
        state.check_power("open", path)?;
        match state.now.files.get(path) {
            Some(inode) => Ok(Arc::new(MemoryFile { state: self.state.clone(), path: path.to_owned(), inode: *inode })),
            None => Err(DeviceError::NotFound { path: path.to_owned() }),
        }
    }

    fn rename(&self, from: &str, to: &str) -> DeviceResult<()> {
        let mut state = self.state.lock();
        if !state.now.has_dir(parent(to)) {
            return Err(DeviceError::NotFound { path: parent(to).to_owned() });
        }
        let waits_for = [parent(from), parent(to)];
        if let Some(inode) = state.now.files.get(from).copied() {
            let change = NameChange::Rename { from: from.to_owned(), to: to.to_owned(), inode };
            return state.change_names("rename", change, &waits_for);
        }
        if !state.now.dirs.contains(from) {
            return Err(DeviceError::NotFound { path: from.to_owned() });
        }
        // Unsynced changes inside of a folder that moves would need their paths rewritten; nobody here moves a
        // folder with such changes and relies on their loss, so they become durable.
        let (inside, rest): (Vec<_>, Vec<_>) =
            state.pending.drain(..).partition(|pending| is_below(pending.change.path(), from));
        for pending in inside {
            pending.change.apply(&mut state.durable);
        }
        state.pending = rest;
        let change = NameChange::RenameDir { from: from.to_owned(), to: to.to_owned() };
        state.change_names("rename", change, &waits_for)
    }

    fn remove(&self, path: &str) -> DeviceResult<()> {
        let mut state = self.state.lock();
        state.check_power("remove", path)?;
        if !state.now.files.contains_key(path) {
            return Err(DeviceError::NotFound { path: path.to_owned() });
        }
        state.change_names("remove", NameChange::Remove { path: path.to_owned() }, &[parent(path)])
    }

    fn remove_dir_all(&self, path: &str) -> DeviceResult<()> {
        let mut state = self.state.lock();
        state.check_power("remove folder", path)?;
        if !state.now.dirs.contains(path) {
            return Ok(());
        }
        state.change_names("remove folder", NameChange::RemoveDir { path: path.to_owned() }, &[parent(path)])
    }

    fn sync_dir(&self, path: &str) -> DeviceResult<()> {
        let mut state = self.state.lock();
        if !state.now.has_dir(path) {
            return Err(DeviceError::NotFound { path: path.to_owned() });
        }
        let fault = state.admit("sync folder", path)?;
        if fault.is_none() {
            let mut still = Vec::new();
            for mut pending in std::mem::take(&mut state.pending) {
                pending.waits_for.remove(path);
                if pending.waits_for.is_empty() {
                    pending.change.apply(&mut state.durable);
                } else {
                    still.push(pending);
                }
            }
            state.pending = still;
        }
        outcome(fault, "sync folder", path)
    }
}

struct MemoryFile {
    state: Arc<Mutex<State>>,
    path: String,
    inode: u64,
}

impl MemoryFile {
    fn change(&self, operation: &'static str, f: impl FnOnce(&mut Inode, Option<Fault>)) -> DeviceResult<()> {
        let mut state = self.state.lock();
        let fault = state.admit(operation, &self.path)?;
        f(state.inodes.entry(self.inode).or_default(), fault);
        outcome(fault, operation, &self.path)
    }
}

impl DeviceFile for MemoryFile {
    fn read(&self, offset: u64, len: usize) -> DeviceResult<Vec<u8>> {
        let mut state = self.state.lock();
        state.check_power("read", &self.path)?;
        state.read_fault = match state.read_fault {
            Some(0) => {
                state.read_fault = None;
                return outcome(Some(Fault::Failure), "read", &self.path).map(|()| Vec::new());
            }
            later => later.map(|skip| skip - 1),
        };
        Ok(state.inodes.get(&self.inode).map(|inode| inode.now.read(offset, len)).unwrap_or_default())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> DeviceResult<()> {
        self.change("write", |inode, fault| match fault {
            None | Some(Fault::PowerCut) => inode.write(offset, bytes),
            Some(Fault::Failure) => inode.write(offset, &bytes[..bytes.len() / 2]),
            Some(Fault::NoSpace) => {}
        })
    }

    fn sync(&self) -> DeviceResult<()> {
        self.change("sync", |inode, fault| match fault {
            None => inode.sync(),
            // The cache keeps the content and forgets that it is not on disk.
            Some(Fault::Failure | Fault::NoSpace) => inode.dirty.clear(),
            Some(Fault::PowerCut) => {}
        })
    }

    fn size(&self) -> DeviceResult<u64> {
        let state = self.state.lock();
        state.check_power("size", &self.path)?;
        Ok(state.inodes.get(&self.inode).map_or(0, |inode| inode.now.len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_with(device: &MemoryDevice, path: &str, bytes: &[u8]) -> Arc<dyn DeviceFile> {
        let file = device.create(path).unwrap();
        file.write(0, bytes).unwrap();
        file
    }

    #[test]
    fn unsynced_name_is_lost_and_synced_name_is_kept() {
        let device = MemoryDevice::new();
        file_with(&device, "a", b"one").sync().unwrap();
        device.sync_dir("").unwrap();
        file_with(&device, "b", b"two").sync().unwrap();
        let after = device.after_power_cut(SECTOR, &mut |_| Fate::Lost);
        assert_eq!(after.files(), ["a"]);
        assert_eq!(after.content("a").unwrap(), b"one");
        let lucky = device.after_power_cut(SECTOR, &mut |_| Fate::Kept);
        assert_eq!(lucky.files(), ["a", "b"]);
    }

    #[test]
    fn each_unsynced_sector_has_its_own_fate() {
        let device = MemoryDevice::new();
        let file = file_with(&device, "a", &[1; 2048]);
        file.sync().unwrap();
        device.sync_dir("").unwrap();
        file.write(0, &[2; 2048]).unwrap();
        let after = device.after_power_cut(SECTOR, &mut |unsynced| match unsynced {
            Unsynced::Unit { index: 0, .. } => Fate::Kept,
            Unsynced::Unit { index: 2, .. } => Fate::Torn(10),
            _ => Fate::Lost,
        });
        let content = after.content("a").unwrap();
        assert!(content[..512].iter().all(|b| *b == 2));
        assert!(content[512..1024].iter().all(|b| *b == 1));
        assert_eq!(content[1024..1034], [2; 10]);
        assert!(content[1034..].iter().all(|b| *b == 1));
        assert_eq!(device.content("a").unwrap(), [2; 2048], "the running system still sees its cache");
    }

    #[test]
    fn rename_is_all_or_nothing_and_needs_its_folder() {
        let device = MemoryDevice::new();
        file_with(&device, "old", b"1").sync().unwrap();
        file_with(&device, "new", b"2").sync().unwrap();
        device.sync_dir("").unwrap();
        device.rename("new", "old").unwrap();
        let lost = device.after_power_cut(SECTOR, &mut |_| Fate::Lost);
        assert_eq!((lost.content("old").unwrap(), lost.content("new").unwrap()), (b"1".to_vec(), b"2".to_vec()));
        device.sync_dir("").unwrap();
        let kept = device.after_power_cut(SECTOR, &mut |_| Fate::Lost);
        assert_eq!(kept.files(), ["old"]);
        assert_eq!(kept.content("old").unwrap(), b"2");
    }

    #[test]
    fn failed_sync_leaves_content_in_the_cache_that_no_later_sync_saves() {
        let device = MemoryDevice::new();
        let file = file_with(&device, "a", &[0; 512]);
        file.sync().unwrap();
        device.sync_dir("").unwrap();
        file.write(0, &[7; 512]).unwrap();
        device.fail_after(0, Fault::Failure);
        assert!(file.sync().is_err());
        file.sync().unwrap();
        assert_eq!(device.content("a").unwrap(), [7; 512]);
        let after = device.after_power_cut(SECTOR, &mut |_| Fate::Kept);
        assert_eq!(after.content("a").unwrap(), [0; 512]);
    }

    #[test]
    fn planned_read_fails_once() {
        let device = MemoryDevice::new();
        let file = file_with(&device, "a", b"x");
        device.fail_read_after(1);
        assert_eq!(file.read(0, 1).unwrap(), b"x");
        assert!(device.is_planned() && file.read(0, 1).is_err() && !device.is_planned());
        assert_eq!(file.read(0, 1).unwrap(), b"x");
    }

    #[test]
    fn nothing_works_after_the_planned_power_cut() {
        let device = MemoryDevice::new();
        let file = file_with(&device, "a", b"x");
        device.fail_after(1, Fault::PowerCut);
        file.sync().unwrap();
        assert!(device.sync_dir("").is_err());
        assert!(device.is_off());
        assert!(file.read(0, 1).is_err());
        assert!(!device.after_power_cut_seeded(1).is_off());
    }

    #[test]
    fn moved_folder_takes_its_files_along() {
        let device = MemoryDevice::new();
        device.create_dir("log").unwrap();
        device.create_dir("aside").unwrap();
        file_with(&device, "log/1", b"x").sync().unwrap();
        device.sync_dir("log").unwrap();
        device.sync_dir("").unwrap();
        device.rename("log", "aside/log").unwrap();
        device.sync_dir("").unwrap();
        device.sync_dir("aside").unwrap();
        let after = device.after_power_cut(SECTOR, &mut |_| Fate::Lost);
        assert_eq!(after.files(), ["aside/log/1"]);
        assert_eq!(after.list("").unwrap(), ["aside"]);
    }
}
