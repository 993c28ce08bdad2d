//! Snapshots between servers: a checkpoint of the store, its files in chunks, and the other end.
//!
//! A [`Snapshot`] is a folder of links to the store's immutable tables; sending it costs reading, not copying.
//! [`Incoming`] puts the chunks into the state folder that will be current next, makes every file and the folder durable, then
//! opens the copy and compares what it contains with what was promised. It becomes the store by the log's install operation
//! ([`corral_core::zab::io::LogOp::InstallSnapshot`]), which switches a pointer; nothing here touches the store in use.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use corral_core::storage::folder::SNAPSHOTS_DIR;
use corral_core::storage::recover::OpenError;
use corral_core::tree::record::Meta;
use corral_core::zab::io::SnapshotMeta;

use super::files::sync_dir;
use super::rocks::{RocksStore, StoreOptions, position};

/// Bytes of a chunk.
pub const CHUNK_BYTES: usize = 512 << 10;
/// Most files a snapshot may announce: a bound for what a peer can make us create.
pub const FILES_MAX: usize = 1 << 20;
/// Longest name of a file, bytes.
const NAME_BYTES_MAX: usize = 128;

/// Why a snapshot could not be made, read or received. Errors of the disk in it are no reason to end the process: the
/// store in use is not concerned.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file system failed.
    #[error("{doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// RocksDB could not make the checkpoint.
    #[error("cannot make a checkpoint: {0}")]
    Checkpoint(String),
    /// The copy cannot be opened.
    #[error("the snapshot cannot be opened")]
    Open(#[from] OpenError),
    /// Nothing was executed in the store yet.
    #[error("the store is empty")]
    Empty,
    /// The sender does not keep to its list.
    #[error("chunk of file {file} at {offset} with {len} bytes does not fit the list of files")]
    Misplaced {
        /// Which file.
        file: usize,
        /// Where.
        offset: u64,
        /// How much.
        len: usize,
    },
    /// The list of files is none.
    #[error("the list of files is not acceptable: {0}")]
    List(String),
    /// A chunk was changed on its way.
    #[error("chunk of file {file} at {offset} has a wrong checksum")]
    Checksum {
        /// Which file.
        file: usize,
        /// Where.
        offset: u64,
    },
    /// The stream ended too early.
    #[error("file {name} has {have} of {want} bytes")]
    Incomplete {
        /// Which file.
        name: String,
        /// Received.
        have: u64,
        /// Announced.
        want: u64,
    },
    /// What came is another state than the one that was announced.
    #[error("the snapshot contains the state at {found}, announced was {expected}")]
    OtherState {
        /// Last entry in it, with the log's hash.
        found: String,
        /// What was announced.
        expected: String,
    },
}

/// Told before each step that changes something on disk, by its name. For tests that end the process there; the server
/// passes [`no_steps`].
pub type Steps<'a> = &'a mut dyn FnMut(&'static str);

/// Nobody wants to know.
pub fn no_steps(_: &'static str) {}

fn at<T>(doing: &'static str, path: &Path, result: io::Result<T>) -> Result<T, SnapshotError> {
    result.map_err(|source| SnapshotError::Io { doing, path: path.to_owned(), source })
}

/// One file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Its name; no folders.
    pub name: String,
    /// Bytes.
    pub size: u64,
}

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Place of the file in the list.
    pub file: usize,
    /// Place in the file.
    pub offset: u64,
    /// The bytes.
    pub data: Bytes,
    /// Their CRC32C.
    pub crc32c: u32,
}

/// A snapshot on the server that sends it. Dropping it leaves its folder; see [`Snapshot::remove`].
#[derive(Debug)]
pub struct Snapshot {
    meta: SnapshotMeta,
    dir: PathBuf,
    files: Vec<SnapshotFile>,
}

impl Snapshot {
    /// Makes a snapshot of the store as it is now, under `root` (the data folder), numbered `id`. To be called by the
    /// thread that writes to the store, between batches; takes a flush, independent of the size of the tree.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn create(store: &RocksStore, root: &Path, id: u64, options: StoreOptions) -> Result<Snapshot, SnapshotError> {
        Snapshot::create_in_steps(store, root, id, options, &mut no_steps)
    }

    /// [`Snapshot::create`], which tells its steps.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn create_in_steps(
        store: &RocksStore,
        root: &Path,
        id: u64,
        options: StoreOptions,
        step: Steps<'_>,
    ) -> Result<Snapshot, SnapshotError> {
        let all = root.join(SNAPSHOTS_DIR);
        step("make the folder of checkpoints");
        at("creating", &all, fs::create_dir_all(&all))?;
        let dir = all.join(id.to_string());
        if dir.exists() {
            step("remove an old checkpoint");
            at("removing", &dir, fs::remove_dir_all(&dir))?;
        }
        step("make the checkpoint");
        store.checkpoint(&dir).map_err(|error| SnapshotError::Checkpoint(error.to_string()))?;
        Snapshot::of(dir, id, options)
    }

    fn of(dir: PathBuf, id: u64, options: StoreOptions) -> Result<Snapshot, SnapshotError> {
        // What it says of itself counts, not what the caller believes.
        let meta = RocksStore::inspect(&dir, options)?.ok_or(SnapshotError::Empty)?;
        let mut files = Vec::new();
        for entry in at("listing", &dir, fs::read_dir(&dir))? {
            let entry = at("listing", &dir, entry)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if is_needed(&name) {
                let size = at("measuring", &dir, entry.metadata())?.len();
                files.push(SnapshotFile { name, size });
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let meta = SnapshotMeta {
            id,
            position: position(&meta),
            stamp_ms: meta.stamp_ms,
            bytes: files.iter().map(|file| file.size).sum(),
        };
        Ok(Snapshot { meta, dir, files })
    }

    /// What it contains.
    pub fn meta(&self) -> SnapshotMeta {
        self.meta
    }

    /// Its files, in the order in which they are to be sent.
    pub fn files(&self) -> &[SnapshotFile] {
        &self.files
    }

    /// Reads its files from the first to the last.
    pub fn chunks(&self) -> Chunks<'_> {
        Chunks { snapshot: self, file: 0, offset: 0, open: None }
    }

    /// One chunk, for senders that keep their own place; `None` at or after the end of the file.
    ///
    /// # Errors
    /// Any of the file system.
    pub fn chunk(&self, file: usize, offset: u64) -> Result<Option<Chunk>, SnapshotError> {
        let Some(entry) = self.files.get(file).filter(|entry| offset < entry.size) else { return Ok(None) };
        let path = self.dir.join(&entry.name);
        let open = at("opening", &path, File::open(&path))?;
        read_chunk(&open, &path, file, offset, entry.size).map(Some)
    }

    /// Removes its folder.
    ///
    /// # Errors
    /// Any of the file system.
    pub fn remove(self) -> Result<(), SnapshotError> {
        at("removing", &self.dir, fs::remove_dir_all(&self.dir))
    }
}

/// RocksDB's lock and logs of events are not part of a copy.
fn is_needed(name: &str) -> bool {
    name != "LOCK" && !name.starts_with("LOG")
}

fn read_chunk(open: &File, path: &Path, file: usize, offset: u64, size: u64) -> Result<Chunk, SnapshotError> {
    let mut data = vec![0; CHUNK_BYTES.min((size - offset) as usize)];
    at("reading", path, open.read_exact_at(&mut data, offset))?;
    Ok(Chunk { file, offset, crc32c: crc32c::crc32c(&data), data: data.into() })
}

/// The chunks of a snapshot, in order.
pub struct Chunks<'a> {
    snapshot: &'a Snapshot,
    file: usize,
    offset: u64,
    open: Option<(File, PathBuf)>,
}

impl Iterator for Chunks<'_> {
    type Item = Result<Chunk, SnapshotError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = self.snapshot.files.get(self.file)?;
            if self.offset >= entry.size {
                self.file += 1;
                self.offset = 0;
                self.open = None;
                continue;
            }
            let open = match self.open.take() {
                Some(open) => open,
                None => {
                    let path = self.snapshot.dir.join(&entry.name);
                    match at("opening", &path, File::open(&path)) {
                        Ok(file) => (file, path),
                        Err(error) => return Some(Err(error)),
                    }
                }
            };
            let chunk = read_chunk(&open.0, &open.1, self.file, self.offset, entry.size);
            self.open = Some(open);
            if let Ok(chunk) = &chunk {
                self.offset += chunk.data.len() as u64;
            }
            return Some(chunk);
        }
    }
}

/// A snapshot on the server that receives it. Dropping it before it is finished leaves a folder that counts for
/// nothing.
#[derive(Debug)]
pub struct Incoming {
    dir: PathBuf,
    files: Vec<SnapshotFile>,
    received: Vec<u64>,
    open: Option<(usize, File)>,
}

impl Incoming {
    /// Begins to receive into `folder` of the data folder `root`: the one that
    /// [`corral_core::storage::folder::Current::incoming`] names. What an earlier attempt left there goes.
    ///
    /// # Errors
    /// [`SnapshotError::List`] for names that are none, too many files, or a size other than announced; any of the file
    /// system.
    pub fn begin(
        root: &Path,
        folder: &str,
        announced: &SnapshotMeta,
        files: Vec<SnapshotFile>,
    ) -> Result<Incoming, SnapshotError> {
        Incoming::begin_in_steps(root, folder, announced, files, &mut no_steps)
    }

    /// [`Incoming::begin`], which tells its steps.
    ///
    /// # Errors
    /// As there.
    pub fn begin_in_steps(
        root: &Path,
        folder: &str,
        announced: &SnapshotMeta,
        files: Vec<SnapshotFile>,
        step: Steps<'_>,
    ) -> Result<Incoming, SnapshotError> {
        check_list(announced, &files)?;
        let dir = root.join(folder);
        if dir.exists() {
            step("remove what was received before");
            at("removing", &dir, fs::remove_dir_all(&dir))?;
        }
        step("make the folder that receives");
        at("creating", &dir, fs::create_dir(&dir))?;
        for file in &files {
            let path = dir.join(&file.name);
            step("make a file");
            at("creating", &path, File::create_new(&path))?;
        }
        Ok(Incoming { dir, received: vec![0; files.len()], files, open: None })
    }

    /// Takes the next chunk. Chunks of a file come in order.
    ///
    /// # Errors
    /// [`SnapshotError::Misplaced`], [`SnapshotError::Checksum`]; any of the file system.
    pub fn write(&mut self, chunk: &Chunk) -> Result<(), SnapshotError> {
        let (file, offset, len) = (chunk.file, chunk.offset, chunk.data.len());
        let fits = self.files.get(file).is_some_and(|entry| {
            offset == self.received[file] && offset.checked_add(len as u64).is_some_and(|end| end <= entry.size)
        });
        if !fits || len == 0 {
            return Err(SnapshotError::Misplaced { file, offset, len });
        }
        if crc32c::crc32c(&chunk.data) != chunk.crc32c {
            return Err(SnapshotError::Checksum { file, offset });
        }
        let path = self.dir.join(&self.files[file].name);
        let open = match self.open.take() {
            Some((number, open)) if number == file => open,
            _ => at("opening", &path, File::options().write(true).open(&path))?,
        };
        at("writing", &path, open.write_all_at(&chunk.data, offset))?;
        self.received[file] += len as u64;
        self.open = Some((file, open));
        Ok(())
    }

    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.received.iter().sum()
    }

    /// Makes everything durable, then opens the copy and checks that it is the announced state. After it the snapshot may be
    /// installed.
    ///
    /// # Errors
    /// [`SnapshotError::Incomplete`], [`SnapshotError::OtherState`], [`SnapshotError::Open`]; any of the file system.
    pub fn finish(self, announced: &SnapshotMeta, options: StoreOptions) -> Result<Meta, SnapshotError> {
        self.finish_in_steps(announced, options, &mut no_steps)
    }

    /// [`Incoming::finish`], which tells its steps.
    ///
    /// # Errors
    /// As there.
    pub fn finish_in_steps(
        mut self,
        announced: &SnapshotMeta,
        options: StoreOptions,
        step: Steps<'_>,
    ) -> Result<Meta, SnapshotError> {
        self.open = None;
        for (entry, have) in self.files.iter().zip(&self.received) {
            if *have != entry.size {
                let (name, want) = (entry.name.clone(), entry.size);
                return Err(SnapshotError::Incomplete { name, have: *have, want });
            }
            let path = self.dir.join(&entry.name);
            let file = at("opening", &path, File::options().write(true).open(&path))?;
            step("make a file durable");
            at("syncing", &path, file.sync_all())?;
        }
        step("make the folder durable");
        at("syncing", &self.dir, sync_dir(&self.dir))?;
        let parent = self.dir.parent().unwrap_or(&self.dir);
        step("make the folder's name durable");
        at("syncing", parent, sync_dir(parent))?;
        step("read the copy");
        let meta = RocksStore::inspect(&self.dir, options)?.ok_or(SnapshotError::Empty)?;
        if position(&meta) != announced.position {
            let show = |p: corral_core::zab::io::Position| format!("{} (hash {:#x})", p.zxid, p.hash);
            return Err(SnapshotError::OtherState { found: show(position(&meta)), expected: show(announced.position) });
        }
        Ok(meta)
    }
}

fn check_list(announced: &SnapshotMeta, files: &[SnapshotFile]) -> Result<(), SnapshotError> {
    if files.len() > FILES_MAX {
        return Err(SnapshotError::List(format!("{} files", files.len())));
    }
    let mut names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    if names.len() != files.len() {
        return Err(SnapshotError::List("a name occurs twice".into()));
    }
    // The names come from another machine and become paths here.
    let plain = |name: &str| {
        !name.is_empty()
            && name.len() <= NAME_BYTES_MAX
            && !name.starts_with('.')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    if let Some(name) = names.iter().find(|name| !plain(name) || !is_needed(name)) {
        return Err(SnapshotError::List(format!("{name:?} is no name of a table")));
    }
    let bytes = files.iter().try_fold(0u64, |sum, file| sum.checked_add(file.size));
    if bytes != Some(announced.bytes) {
        return Err(SnapshotError::List("the sizes do not add up to what was announced".into()));
    }
    Ok(())
}

/// Removes a state folder that is current no more, once its last reader is gone. Not needed for safety: the next start
/// does it too.
///
/// # Errors
/// Any of the file system.
pub fn remove_state_folder(root: &Path, folder: &str) -> Result<(), SnapshotError> {
    let dir = root.join(folder);
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => at("removing", &dir, result),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use corral_core::storage::folder::Current;
    use corral_core::storage::log_device::LogDevice;
    use corral_core::storage::recover::{RecoverOptions, Recovery, recover};
    use corral_core::storage::txn_log::LogOptions;
    use corral_core::tree::{Cf, Change, TreeStore, TreeView, key};
    use corral_core::zab::io::{Entry, Identity, LogOp, Membership, Position};
    use corral_proto::{ServerId, Zxid};

    use super::super::files::FileDevice;
    use super::super::rocks::RocksOpener;
    use super::*;

    fn small() -> StoreOptions {
        StoreOptions { block_cache_bytes: 1 << 20, memtable_bytes: 2 << 20 }
    }

    fn execute(store: &mut RocksStore, at: Position, rows: u32) {
        let meta = Meta { applied: at.zxid, hash: at.hash, stamp_ms: 12, ..Meta::default() };
        let mut changes = vec![Change { cf: Cf::Aux, key: Bytes::from_static(key::META), value: Some(meta.encode()) }];
        for row in 0..rows {
            let key = Bytes::copy_from_slice(&row.to_be_bytes());
            // Values that do not compress, so that there are several chunks.
            let value: Vec<u8> =
                (0..400u32).map(|i| (crc32c::crc32c(&(row * 1000 + i).to_le_bytes()) >> 8) as u8).collect();
            changes.push(Change { cf: Cf::Node, key, value: Some(value.into()) });
        }
        store.write(&mut changes.into_iter());
    }

    const AT: Position = Position { zxid: Zxid::new(3, 7), hash: 99 };

    fn source(root: &Path) -> Snapshot {
        let mut store = RocksStore::open(&root.join("state-1"), small()).unwrap();
        execute(&mut store, AT, 5000);
        Snapshot::create(&store, root, 4, small()).unwrap()
    }

    fn receive(snapshot: &Snapshot, root: &Path, folder: &str) -> Incoming {
        let mut incoming = Incoming::begin(root, folder, &snapshot.meta(), snapshot.files().to_vec()).unwrap();
        for chunk in snapshot.chunks() {
            incoming.write(&chunk.unwrap()).unwrap();
        }
        incoming
    }

    #[test]
    fn snapshot_that_was_sent_equals_the_store_it_was_made_of() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let snapshot = source(here.path());
        assert_eq!(snapshot.meta().position, AT);
        assert_eq!(snapshot.meta().stamp_ms, 12);
        assert!(snapshot.chunks().count() > snapshot.files().len());
        let incoming = receive(&snapshot, there.path(), "state-2");
        assert_eq!(incoming.received(), snapshot.meta().bytes);
        let meta = incoming.finish(&snapshot.meta(), small()).unwrap();
        assert_eq!(position(&meta), AT);
        let rows = |path: &Path| {
            let mut rows = Vec::new();
            RocksStore::open(path, small()).unwrap().view().scan(Cf::Node, b"", &[0xff], &mut |key, value| {
                rows.push((key.to_vec(), value.to_vec()));
                true
            });
            rows
        };
        let sent = rows(&here.path().join("state-1"));
        assert_eq!(sent.len(), 5000);
        assert_eq!(sent, rows(&there.path().join("state-2")));
        snapshot.remove().unwrap();
        assert_eq!(fs::read_dir(here.path().join(SNAPSHOTS_DIR)).unwrap().count(), 0);
    }

    #[test]
    fn changed_misplaced_and_missing_chunks_are_noticed() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let snapshot = source(here.path());
        let begin = || Incoming::begin(there.path(), "state-2", &snapshot.meta(), snapshot.files().to_vec()).unwrap();
        let first = snapshot.chunks().next().unwrap().unwrap();
        assert_eq!(snapshot.chunk(first.file, first.offset).unwrap().unwrap(), first);
        assert!(snapshot.chunk(first.file, 1 << 40).unwrap().is_none());

        let mut bad = first.clone();
        bad.crc32c ^= 1;
        assert!(matches!(begin().write(&bad), Err(SnapshotError::Checksum { .. })));
        bad.offset = 1;
        assert!(matches!(begin().write(&bad), Err(SnapshotError::Misplaced { .. })));
        bad.file = 1000;
        assert!(matches!(begin().write(&bad), Err(SnapshotError::Misplaced { .. })));

        let mut incoming = begin();
        incoming.write(&first).unwrap();
        assert!(matches!(incoming.write(&first), Err(SnapshotError::Misplaced { .. })), "twice");
        assert!(matches!(incoming.finish(&snapshot.meta(), small()), Err(SnapshotError::Incomplete { .. })));

        let complete = receive(&snapshot, there.path(), "state-2");
        let other = SnapshotMeta { position: Position { hash: 98, ..AT }, ..snapshot.meta() };
        assert!(matches!(complete.finish(&other, small()), Err(SnapshotError::OtherState { .. })));
    }

    #[test]
    fn lists_that_reach_outside_or_lie_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let announced = SnapshotMeta { id: 1, position: AT, stamp_ms: 0, bytes: 5 };
        let list = |names: &[&str], size| -> Vec<SnapshotFile> {
            names.iter().map(|name| SnapshotFile { name: (*name).into(), size }).collect()
        };
        for names in [&["../x"][..], &[""], &["a/b"], &[".."], &["LOCK"], &["a\0"], &[".hidden"]] {
            let result = Incoming::begin(dir.path(), "state-2", &announced, list(names, 5));
            assert!(matches!(result, Err(SnapshotError::List(_))), "{names:?}");
        }
        for files in [list(&["a", "a"], 5), list(&["a"], 6), list(&["a", "b"], u64::MAX)] {
            let result = Incoming::begin(dir.path(), "state-2", &announced, files);
            assert!(matches!(result, Err(SnapshotError::List(_))));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    fn start(root: &Path) -> (Recovery, RocksStore) {
        let device: Arc<dyn LogDevice> = Arc::new(FileDevice::open(root).unwrap());
        let options = RecoverOptions {
            server: ServerId(1),
            cluster: None,
            instance: 5,
            log: LogOptions { segment_bytes: 64 << 10, retention_bytes: 0 },
            tail_cache_bytes: 1 << 20,
        };
        let mut opener = RocksOpener::new(root, small());
        let recovery = recover(device, &options, &mut opener).unwrap();
        (recovery, opener.into_store().unwrap())
    }

    #[test]
    fn server_restarts_from_its_log_and_from_an_installed_snapshot_on_real_files() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let snapshot = source(here.path());
        let root = there.path();

        let (mut recovery, mut store) = start(root);
        assert_eq!(recovery.recovered.identity.membership, Membership::Empty);
        let identity = Identity { membership: Membership::Member, cluster: 8, ..recovery.recovered.identity };
        let entry = Entry::after(0, Zxid::new(1, 0), 1, Bytes::from_static(b"x"));
        let end = Position { zxid: entry.zxid, hash: entry.hash };
        recovery.log.write(&[(1, LogOp::SetIdentity(identity)), (2, LogOp::Append(vec![entry]))]).unwrap();
        execute(&mut store, end, 10);
        drop((recovery, store));

        let (mut recovery, store) = start(root);
        assert_eq!(recovery.recovered.identity, Identity { start_count: 2, ..identity });
        assert_eq!((recovery.recovered.end, recovery.recovered.applied), (end, end));
        let folder = recovery.current.incoming();
        receive(&snapshot, root, &folder).finish(&snapshot.meta(), small()).unwrap();
        recovery.log.write(&[(1, LogOp::InstallSnapshot(snapshot.meta()))]).unwrap();
        assert_eq!(recovery.log.end(), AT);
        let old = store.path().to_owned();
        drop((recovery, store));
        assert!(old.exists());

        let (recovery, store) = start(root);
        assert_eq!(recovery.current, Current { generation: 2 });
        assert_eq!((recovery.recovered.base, recovery.recovered.end), (AT, AT));
        assert_eq!(recovery.recovered.applied, AT);
        assert_eq!(store.meta().unwrap().applied, AT.zxid);
        assert!(store.view().get(Cf::Node, &4999u32.to_be_bytes()).is_some());
        assert!(!old.exists(), "the old state is removed at the start");
        drop((recovery, store));

        // And a store that is damaged is set aside.
        let current = root.join("state-2").join("CURRENT");
        fs::write(&current, b"MANIFEST-999999\n").unwrap();
        let (recovery, store) = start(root);
        assert_eq!(recovery.recovered.identity.membership, Membership::Amnesiac);
        assert_eq!(recovery.recovered.end, Position::default());
        assert_eq!(store.meta().unwrap().applied, Zxid::ZERO);
        assert!(root.join("damaged-1/state-2/CURRENT").exists());
    }
}
