//! The tree's store on RocksDB: four column families, no write-ahead log, atomic flushes.
//!
//! The transaction log is the truth; this is what has been executed of it. Every batch carries the meta row, and a flush
//! takes all column families to the same point, so what is found after a crash is the state at exactly the applied entry
//! that its meta row names. Nothing here is ever written with RocksDB's own log on: such a write would come back alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use corral_core::storage::folder::STORE_DAMAGED;
use corral_core::storage::recover::{OpenError, StoreOpener};
use corral_core::tree::check::Rows;
use corral_core::tree::execute::genesis;
use corral_core::tree::record::Meta;
use corral_core::tree::{Cf, Change, TreeStore, TreeView, key};
use corral_core::zab::io::Position;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, ErrorKind, FlushOptions,
    Options, ReadOptions, ReadTier, SnapshotWithThreadMode, WriteBatch, WriteOptions,
};

use super::fatal;
use super::files::sync_dir;

/// Flush after so many entries: bounds what a restart must execute again.
pub const FLUSH_ENTRIES: u64 = 50_000;
/// Flush after so many bytes of log.
pub const FLUSH_LOG_BYTES: u64 = 16 << 20;
/// Flush after so long with changes, ms.
pub const FLUSH_INTERVAL_MS: u64 = 60_000;

/// Table files that are open at once.
const OPEN_FILES_MAX: i32 = 1000;
/// Background flushes and compactions at once: a server must be cheap on two cores.
const BACKGROUND_JOBS: i32 = 2;
/// Dirty bytes of table files before RocksDB asks the system to write them: keeps the log's syncs calm.
const BYTES_PER_SYNC: u64 = 1 << 20;
/// Bits of bloom filter a key: one in a hundred looks in vain.
const BLOOM_BITS: f64 = 10.0;
/// Bytes of a table's block.
const BLOCK_BYTES: usize = 8 << 10;
/// A table of `node` with so many deletions among so many consecutive keys is compacted soon: queues leave them, and
/// scans of children walk over them.
const DELETION_WINDOW: usize = 4096;
const DELETIONS_IN_WINDOW: usize = 1024;
/// RocksDB's own log of events: files kept, bytes each.
const INFO_LOGS: usize = 3;
const INFO_LOG_BYTES: usize = 2 << 20;
/// Smallest memtable, bytes; below it flushes would be tiny files.
const MEMTABLE_BYTES_MIN: usize = 1 << 20;

/// Memory of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Blocks of tables, their indexes and filters, bytes.
    pub block_cache_bytes: usize,
    /// Memtables of all column families together, bytes.
    pub memtable_bytes: usize,
}

impl StoreOptions {
    /// The store's part of a server's memory limit: half of it for the block cache, a sixth for memtables (96 and 32
    /// of 192 MiB).
    pub fn from_memory_limit(bytes: u64) -> StoreOptions {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        StoreOptions { block_cache_bytes: bytes / 2, memtable_bytes: (bytes / 6).max(2 * MEMTABLE_BYTES_MIN) }
    }
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions::from_memory_limit(192 << 20)
    }
}

/// Options of the database, and of each column family.
fn database_options(options: StoreOptions) -> (Options, Vec<ColumnFamilyDescriptor>) {
    let mut database = Options::default();
    database.create_if_missing(true);
    database.create_missing_column_families(true);
    database.set_atomic_flush(true);
    database.set_paranoid_checks(true);
    database.set_db_write_buffer_size(options.memtable_bytes);
    database.set_max_background_jobs(BACKGROUND_JOBS);
    database.set_bytes_per_sync(BYTES_PER_SYNC);
    database.set_max_open_files(OPEN_FILES_MAX);
    database.set_skip_stats_update_on_db_open(true);
    database.set_stats_dump_period_sec(0);
    database.set_keep_log_file_num(INFO_LOGS);
    database.set_max_log_file_size(INFO_LOG_BYTES);
    let cache = Cache::new_lru_cache(options.block_cache_bytes);
    let family = |name: &str| {
        let mut tables = BlockBasedOptions::default();
        tables.set_block_cache(&cache);
        tables.set_block_size(BLOCK_BYTES);
        tables.set_bloom_filter(BLOOM_BITS, false);
        tables.set_whole_key_filtering(true);
        tables.set_cache_index_and_filter_blocks(true);
        tables.set_cache_index_and_filter_blocks_with_high_priority(true);
        tables.set_pin_l0_filter_and_index_blocks_in_cache(true);
        let mut family = Options::default();
        family.set_block_based_table_factory(&tables);
        family.set_write_buffer_size((options.memtable_bytes / 2).max(MEMTABLE_BYTES_MIN));
        family.set_compression_type(DBCompressionType::Lz4);
        family.set_level_compaction_dynamic_level_bytes(true);
        if name == Cf::Node.name() {
            family.add_compact_on_deletion_collector_factory(DELETION_WINDOW, DELETIONS_IN_WINDOW, 0.0);
        }
        ColumnFamilyDescriptor::new(name, family)
    };
    let mut families = vec![family(rocksdb::DEFAULT_COLUMN_FAMILY_NAME)];
    families.extend(Cf::ALL.map(|cf| family(cf.name())));
    (database, families)
}

fn family(db: &DB, cf: Cf) -> &ColumnFamily {
    db.cf_handle(cf.name()).expect("all column families are opened with the database")
}

/// Tells damage from everything else that keeps a database from being opened.
fn judge(error: &rocksdb::Error) -> OpenError {
    let message = error.to_string();
    match error.kind() {
        ErrorKind::Corruption | ErrorKind::NotFound | ErrorKind::InvalidArgument => OpenError::Damaged(message),
        ErrorKind::IOError if message.contains("No such file") => OpenError::Damaged(message),
        _ => OpenError::Failed(message),
    }
}

/// The meta row among what `read` sees.
fn meta_of(db: &DB, read: &ReadOptions) -> Result<Option<Meta>, OpenError> {
    match db.get_pinned_cf_opt(family(db, Cf::Aux), key::META, read) {
        Err(error) => Err(judge(&error)),
        Ok(None) => Ok(None),
        Ok(Some(value)) => match Meta::decode(&value) {
            Some(meta) => Ok(Some(meta)),
            None => Err(OpenError::Damaged("the meta row is unreadable".into())),
        },
    }
}

/// Ends the process because of an error of RocksDB. Rot in its tables would show again after a restart, so the store is
/// condemned first: the next start sets it aside.
fn fail(db: &Database, doing: &str, error: &rocksdb::Error) -> ! {
    if error.kind() == ErrorKind::Corruption {
        condemn(&db.path, error);
    }
    fatal(doing, error)
}

/// Leaves the mark that makes the next start set the store aside ([`STORE_DAMAGED`]).
fn condemn(path: &Path, error: &dyn std::fmt::Display) {
    let Some(root) = path.parent() else { return };
    let mark = || {
        let file = std::fs::File::create(root.join(STORE_DAMAGED))?;
        file.sync_all()?;
        sync_dir(root)
    };
    if let Err(mark_error) = mark() {
        tracing::error!(%error, %mark_error, "the store is damaged, and that could not be noted for the next start");
    }
}

/// The database and where it is.
struct Database {
    db: DB,
    path: PathBuf,
}

impl std::ops::Deref for Database {
    type Target = DB;

    fn deref(&self) -> &DB {
        &self.db
    }
}

/// The store. One thread writes; views are read anywhere.
pub struct RocksStore {
    db: Arc<Database>,
    write_options: WriteOptions,
    unflushed: Unflushed,
}

/// What was written since a flush was last asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Unflushed {
    entries: u64,
    log_bytes: u64,
    /// When the first of it was written, monotonic ms.
    since_ms: Option<u64>,
}

impl Unflushed {
    /// Counts a batch; says whether a flush is due.
    fn add(&mut self, entries: u64, log_bytes: u64, mono_ms: u64) -> bool {
        self.entries += entries;
        self.log_bytes += log_bytes;
        if entries > 0 && self.since_ms.is_none() {
            self.since_ms = Some(mono_ms);
        }
        self.entries >= FLUSH_ENTRIES
            || self.log_bytes >= FLUSH_LOG_BYTES
            || self.since_ms.is_some_and(|since| mono_ms.saturating_sub(since) >= FLUSH_INTERVAL_MS)
    }
}

impl RocksStore {
    /// Opens the store in a folder; makes an empty one if there is none.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, options: StoreOptions) -> Result<RocksStore, OpenError> {
        let (database, families) = database_options(options);
        let db = DB::open_cf_descriptors(&database, path, families).map_err(|error| judge(&error))?;
        let mut write_options = WriteOptions::default();
        write_options.disable_wal(true);
        let store = RocksStore {
            db: Arc::new(Database { db, path: path.to_owned() }),
            write_options,
            unflushed: Unflushed::default(),
        };
        store.try_meta()?;
        Ok(store)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.db.path
    }

    /// The meta row now; `None` in a store that nothing was executed in.
    pub fn meta(&self) -> Option<Meta> {
        self.try_meta().unwrap_or_else(|error| fatal("reading the meta row", error))
    }

    fn try_meta(&self) -> Result<Option<Meta>, OpenError> {
        meta_of(&self.db, &ReadOptions::default())
    }

    /// To be called after each batch (and now and then without one, with zeros): flushes in the background after
    /// [`FLUSH_ENTRIES`], [`FLUSH_LOG_BYTES`] or [`FLUSH_INTERVAL_MS`], and ends the process if RocksDB reports an
    /// error of its background work. Returns whether it began a flush.
    pub fn after_batch(&mut self, entries: u64, log_bytes: u64, mono_ms: u64) -> bool {
        let due = self.unflushed.add(entries, log_bytes, mono_ms);
        if due {
            self.check_health();
            self.flush(false);
        }
        due
    }

    /// Writes all column families to tables up to one point; waits for it if asked to.
    pub fn flush(&mut self, wait: bool) {
        let mut options = FlushOptions::default();
        options.set_wait(wait);
        let families = Cf::ALL.map(|cf| family(&self.db, cf));
        if let Err(error) = self.db.flush_cfs_opt(&families, &options) {
            fail(&self.db, "flushing the store", &error);
        }
        self.unflushed = Unflushed::default();
    }

    /// Ends the process if flushes or compactions failed.
    pub fn check_health(&self) {
        match self.db.property_int_value(rocksdb::properties::BACKGROUND_ERRORS) {
            Ok(Some(0) | None) => {}
            Ok(Some(errors)) => {
                // The count says nothing; whoever asks for more work is told what it was, with the name of the file. RocksDB may have
                // got over it by itself, and then this flush is one: of all column families, or the meta row would be ahead of
                // the znodes on disk.
                let options = FlushOptions::default();
                let families = Cf::ALL.map(|cf| family(&self.db, cf));
                if let Err(error) = self.db.flush_cfs_opt(&families, &options) {
                    fail(&self.db, "background work of the store", &error);
                }
                let log = self.db.path.join("LOG");
                fatal("background work of the store", format!("{errors} errors, see {}", log.display()));
            }
            Err(error) => fail(&self.db, "asking the store for its health", &error),
        }
    }

    /// Live bytes of all tables, about: the size of a snapshot.
    pub fn approximate_bytes(&self) -> u64 {
        let bytes = |cf| {
            let property = rocksdb::properties::LIVE_SST_FILES_SIZE;
            self.db.property_int_value_cf(family(&self.db, cf), property).ok().flatten().unwrap_or(0)
        };
        Cf::ALL.map(bytes).iter().sum()
    }

    /// Makes a consistent copy of the state now at `path`, which must not exist: a flush, then links to the tables.
    ///
    /// # Errors
    /// Any of RocksDB; in words.
    pub fn checkpoint(&self, path: &Path) -> Result<(), rocksdb::Error> {
        // Its default flushes always, which it must, since there is no write-ahead log to copy.
        Checkpoint::new(&self.db)?.create_checkpoint(path)
    }

    /// Opens a copy read-only and returns its meta row; `None` in an empty one.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn inspect(path: &Path, options: StoreOptions) -> Result<Option<Meta>, OpenError> {
        ReadOnlyStore::open(path, options)?.meta()
    }
}

/// A store that is only looked at: as it is on disk, nothing is written, and errors are returned.
pub struct ReadOnlyStore {
    db: DB,
}

/// A row that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ReadError(#[source] rocksdb::Error);

impl ReadError {
    /// Whether the bytes are there and wrong, as against a disk that fails.
    pub fn is_damage(&self) -> bool {
        matches!(judge(&self.0), OpenError::Damaged(_))
    }
}

impl ReadOnlyStore {
    /// Opens the store in a folder.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, options: StoreOptions) -> Result<ReadOnlyStore, OpenError> {
        let (mut database, mut families) = database_options(options);
        database.create_if_missing(false);
        database.create_missing_column_families(false);
        // A server of an earlier release sends no feed; opened to be written to, the copy gets an empty one.
        let present = DB::list_cf(&database, path).map_err(|error| judge(&error))?;
        families
            .retain(|family| family.name() != Cf::Feed.name() || present.iter().any(|name| name == Cf::Feed.name()));
        let db = DB::open_cf_descriptors_read_only(&database, path, families, false).map_err(|error| judge(&error))?;
        Ok(ReadOnlyStore { db })
    }

    /// Its meta row; `None` in an empty store.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn meta(&self) -> Result<Option<Meta>, OpenError> {
        meta_of(&self.db, &ReadOptions::default())
    }
}

impl Rows for ReadOnlyStore {
    type Error = ReadError;

    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        let value = self.db.get_pinned_cf(family(&self.db, cf), key).map_err(ReadError)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(
        &self,
        cf: Cf,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ReadError> {
        let mut read = ReadOptions::default();
        read.set_iterate_lower_bound(from);
        read.set_iterate_upper_bound(to);
        read.set_total_order_seek(true);
        read.fill_cache(false);
        let mut rows = self.db.raw_iterator_cf_opt(family(&self.db, cf), read);
        rows.seek_to_first();
        while let Some((key, value)) = rows.item() {
            if !visit(key, value) {
                return Ok(());
            }
            rows.next();
        }
        rows.status().map_err(ReadError)
    }
}

impl TreeStore for RocksStore {
    type View = RocksView;

    fn write(&mut self, changes: &mut dyn Iterator<Item = Change>) {
        let mut batch = WriteBatch::default();
        for change in changes {
            let family = family(&self.db, change.cf);
            match change.value {
                Some(value) => batch.put_cf(family, &change.key, &value),
                None => batch.delete_cf(family, &change.key),
            }
        }
        if let Err(error) = self.db.write_opt(batch, &self.write_options) {
            fail(&self.db, "writing to the store", &error);
        }
    }

    fn view(&self) -> RocksView {
        RocksView::of(self.db.clone())
    }

    fn persisted_meta(&self) -> Option<Meta> {
        let mut read = ReadOptions::default();
        // Without a write-ahead log this skips the memtables: exactly what is in tables.
        read.set_read_tier(ReadTier::Persisted);
        meta_of(&self.db, &read).unwrap_or_else(|error| fatal("reading the persisted meta row", error))
    }
}

/// A state of the store. Keeps the database open.
pub struct RocksView {
    /// Declared before `db`: fields are dropped in the order of their declaration.
    snapshot: SnapshotWithThreadMode<'static, DB>,
    db: Arc<Database>,
}

impl RocksView {
    fn of(db: Arc<Database>) -> RocksView {
        let snapshot = db.db.snapshot();
        // SAFETY: the snapshot borrows the `DB` inside of `db`. That lives on the heap, at an address that does not change
        // when the `Arc` or this view is moved; it lives at least as long as `self.db`, which is dropped after
        // `self.snapshot` (order of declaration), is never replaced (the field is private and no method takes it out),
        // and is only ever borrowed shared, since an `Arc` gives nothing else while this clone exists. The longer lifetime
        // leaves this module nowhere: methods borrow the snapshot for `&self` only.
        let snapshot = unsafe {
            std::mem::transmute::<SnapshotWithThreadMode<'_, DB>, SnapshotWithThreadMode<'static, DB>>(snapshot)
        };
        RocksView { snapshot, db }
    }

    fn read_options(&self) -> ReadOptions {
        let mut read = ReadOptions::default();
        read.set_snapshot(&self.snapshot);
        read
    }

    /// The meta row of this state.
    pub fn meta(&self) -> Option<Meta> {
        meta_of(&self.db, &self.read_options()).unwrap_or_else(|error| fatal("reading the meta row", error))
    }
}

impl TreeView for RocksView {
    fn get(&self, cf: Cf, key: &[u8]) -> Option<Bytes> {
        match self.db.get_pinned_cf_opt(family(&self.db, cf), key, &self.read_options()) {
            Ok(value) => value.map(|value| Bytes::copy_from_slice(&value)),
            Err(error) => fail(&self.db, "reading from the store", &error),
        }
    }

    fn scan(&self, cf: Cf, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        if from >= to {
            return;
        }
        let mut read = self.read_options();
        read.set_iterate_lower_bound(from);
        read.set_iterate_upper_bound(to);
        read.set_total_order_seek(true);
        let mut rows = self.db.raw_iterator_cf_opt(family(&self.db, cf), read);
        rows.seek_to_first();
        while let Some((key, value)) = rows.item() {
            if !visit(key, value) {
                return;
            }
            rows.next();
        }
        if let Err(error) = rows.status() {
            fail(&self.db, "scanning the store", &error);
        }
    }
}

/// Opens stores for recovery and keeps the last.
pub struct RocksOpener {
    root: PathBuf,
    options: StoreOptions,
    store: Option<RocksStore>,
}

impl RocksOpener {
    /// For the data folder at `root`.
    pub fn new(root: &Path, options: StoreOptions) -> RocksOpener {
        RocksOpener { root: root.to_owned(), options, store: None }
    }

    /// The store that recovery ended with.
    pub fn into_store(self) -> Option<RocksStore> {
        self.store
    }
}

impl StoreOpener for RocksOpener {
    fn open(&mut self, folder: &str) -> Result<Option<Meta>, OpenError> {
        self.store = None;
        let mut store = RocksStore::open(&self.root.join(folder), self.options)?;
        if store.try_meta()?.is_none() {
            // Lost by a crash before its first flush it is made again, the same.
            store.write(&mut genesis().into_iter());
        }
        let meta = store.try_meta()?;
        self.store = Some(store);
        Ok(meta)
    }

    fn close(&mut self) {
        self.store = None;
    }
}

/// The position that a meta row names.
pub fn position(meta: &Meta) -> Position {
    Position { zxid: meta.applied, hash: meta.hash }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use corral_proto::Zxid;
    use proptest::prelude::*;

    use super::*;

    fn small() -> StoreOptions {
        StoreOptions { block_cache_bytes: 1 << 20, memtable_bytes: 2 << 20 }
    }

    fn open(path: &Path) -> RocksStore {
        RocksStore::open(path, small()).unwrap()
    }

    fn meta_change(applied: u64) -> Change {
        let meta = Meta { applied: Zxid(applied), hash: applied * 3, ..Meta::default() };
        Change { cf: Cf::Aux, key: Bytes::from_static(key::META), value: Some(meta.encode()) }
    }

    fn put(cf: Cf, key: &[u8], value: &[u8]) -> Change {
        Change { cf, key: Bytes::copy_from_slice(key), value: Some(Bytes::copy_from_slice(value)) }
    }

    fn write(store: &mut RocksStore, changes: Vec<Change>) {
        store.write(&mut changes.into_iter());
    }

    fn rows(view: &RocksView, cf: Cf) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut rows = Vec::new();
        view.scan(cf, b"", &[0xff; 8], &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            true
        });
        rows
    }

    #[test]
    fn view_is_a_state_and_outlives_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        write(&mut store, vec![put(Cf::Node, b"a", b"1"), meta_change(1)]);
        let view = store.view();
        write(&mut store, vec![put(Cf::Node, b"a", b"2"), put(Cf::Node, b"b", b"2"), meta_change(2)]);
        assert_eq!(view.get(Cf::Node, b"a").unwrap(), "1");
        assert_eq!(store.view().get(Cf::Node, b"a").unwrap(), "2");
        drop(store);
        let moved = std::thread::spawn(move || {
            assert_eq!(rows(&view, Cf::Node), [(b"a".to_vec(), b"1".to_vec())]);
            view
        });
        let view = moved.join().unwrap();
        assert_eq!(view.meta().unwrap().applied, Zxid(1));
        assert!(RocksStore::open(dir.path(), small()).is_err(), "the view keeps the database");
        drop(view);
        assert_eq!(open(dir.path()).meta().unwrap().applied, Zxid(2));
    }

    #[test]
    fn scan_respects_its_bounds_and_stops_when_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        write(&mut store, (0..10u8).map(|i| put(Cf::Data, &[i], &[i])).collect());
        let view = store.view();
        let mut seen = Vec::new();
        view.scan(Cf::Data, &[3], &[7], &mut |key, _| {
            seen.push(key[0]);
            key[0] != 5
        });
        assert_eq!(seen, [3, 4, 5]);
        view.scan(Cf::Data, &[7], &[3], &mut |_, _| panic!("nothing lies in between"));
        view.scan(Cf::Node, &[0], &[9], &mut |_, _| panic!("another column family"));
    }

    /// Atomic flushes are atomic for the column families that they name.
    #[test]
    fn no_column_family_is_ever_flushed_alone() {
        let calls = include_str!("rocks.rs").matches(concat!("flush_", "cf")).count();
        let whole = include_str!("rocks.rs").matches(concat!("flush_", "cfs_opt(&families")).count();
        assert!(whole >= 2 && calls == whole, "{calls} flushes, {whole} of them of all column families");
    }

    #[test]
    fn persisted_meta_lags_until_a_flush_and_the_policy_flushes() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        assert_eq!(store.persisted_meta(), None);
        write(&mut store, vec![meta_change(5)]);
        assert_eq!(store.persisted_meta(), None);
        assert!(!store.after_batch(1, 100, 1000));
        store.flush(true);
        assert_eq!(store.persisted_meta().unwrap().applied, Zxid(5));
        write(&mut store, vec![meta_change(6)]);
        assert_eq!(store.persisted_meta().unwrap().applied, Zxid(5));
        assert!(!store.after_batch(1, 100, 2000));
        assert!(!store.after_batch(0, 0, 2000 + FLUSH_INTERVAL_MS - 1));
        assert!(store.after_batch(0, 0, 2000 + FLUSH_INTERVAL_MS));
        assert!(!store.after_batch(0, 0, u64::MAX), "nothing was written since");
        assert!(store.after_batch(FLUSH_ENTRIES, 0, 0));
        assert!(store.after_batch(1, FLUSH_LOG_BYTES, 0));
        store.check_health();
    }

    /// Names the folder for the process that [`crash_leaves_all_column_families_at_the_meta_row`] lets die.
    const CHILD_FOLDER: &str = "CORRAL_TEST_STORE_CHILD";
    /// How many entries it writes.
    const CHILD_ENTRIES: &str = "CORRAL_TEST_STORE_ENTRIES";

    #[test]
    #[ignore = "runs in a process of its own, which dies"]
    fn process_that_dies() {
        let (Ok(folder), Ok(entries)) = (std::env::var(CHILD_FOLDER), std::env::var(CHILD_ENTRIES)) else { return };
        let mut store = open(Path::new(&folder));
        // Values that do not compress fill memtables, so that flushes happen at their own moments.
        let value: Vec<u8> = (0..2000u32).map(|i| crc32c::crc32c(&i.to_le_bytes()) as u8).collect();
        for i in 1..=entries.parse().unwrap() {
            let key = u64::to_be_bytes(i);
            write(&mut store, vec![put(Cf::Node, &key, &value), put(Cf::Data, &key, b"d"), meta_change(i)]);
            if i % 1000 == 0 {
                store.flush(false);
            }
        }
        std::process::abort();
    }

    #[test]
    fn crash_leaves_all_column_families_at_the_meta_row() {
        let mut lost_some = false;
        for entries in [0u64, 1, 700, 1001, 2000, 3500] {
            let dir = tempfile::tempdir().unwrap();
            let status = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "storage::rocks::tests::process_that_dies"])
                .env(CHILD_FOLDER, dir.path())
                .env(CHILD_ENTRIES, entries.to_string())
                .output()
                .unwrap()
                .status;
            assert!(!status.success(), "it dies");
            let store = open(dir.path());
            let applied = store.meta().map_or(0, |meta| meta.applied.0);
            assert!(applied <= entries);
            lost_some |= applied < entries;
            assert_eq!(store.persisted_meta().map_or(0, |meta| meta.applied.0), applied);
            for cf in [Cf::Node, Cf::Data] {
                let keys: Vec<Vec<u8>> = rows(&store.view(), cf).into_iter().map(|(key, _)| key).collect();
                let expected: Vec<Vec<u8>> = (1..=applied).map(|i| i.to_be_bytes().to_vec()).collect();
                assert_eq!(keys, expected);
            }
        }
        assert!(lost_some, "memtables are lost with the process");
    }

    #[test]
    fn checkpoint_is_the_state_when_it_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(&dir.path().join("live"));
        write(&mut store, vec![put(Cf::Node, b"a", b"1"), put(Cf::Data, b"a", b"x"), meta_change(1)]);
        let copy = dir.path().join("copy");
        store.checkpoint(&copy).unwrap();
        write(&mut store, vec![put(Cf::Node, b"a", b"2"), meta_change(2)]);
        store.flush(true);
        assert_eq!(RocksStore::inspect(&copy, small()).unwrap().unwrap().applied, Zxid(1));
        let copy = open(&copy);
        assert_eq!(copy.view().get(Cf::Node, b"a").unwrap(), "1");
        assert_eq!(copy.view().get(Cf::Data, b"a").unwrap(), "x");
    }

    #[test]
    fn damaged_files_are_told_from_files_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        write(&mut store, vec![put(Cf::Node, b"a", b"1"), meta_change(1)]);
        store.flush(true);
        assert!(matches!(RocksStore::open(dir.path(), small()), Err(OpenError::Failed(_))), "it is in use");
        drop(store);
        let current = dir.path().join("CURRENT");
        let whole = std::fs::read(&current).unwrap();
        std::fs::write(&current, b"MANIFEST-999999\n").unwrap();
        let verdict = RocksStore::open(dir.path(), small()).err();
        assert!(matches!(verdict, Some(OpenError::Damaged(_))), "{verdict:?}");
        std::fs::write(&current, &whole).unwrap();
        for table in std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()) {
            if table.extension().is_some_and(|extension| extension == "sst") {
                std::fs::remove_file(table).unwrap();
            }
        }
        let verdict = RocksStore::open(dir.path(), small()).err();
        assert!(matches!(verdict, Some(OpenError::Damaged(_))), "{verdict:?}");
    }

    #[test]
    fn rot_that_shows_while_the_server_runs_condemns_the_store_for_the_next_start() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("state-1");
        let store = open(&path);
        condemn(&path, &"Corruption: block checksum mismatch");
        assert!(root.path().join(STORE_DAMAGED).exists());
        drop(store);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(Vec<(usize, u8, Option<u8>)>),
        Flush,
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        let change = (0..3usize, 0..20u8, prop::option::weighted(0.7, any::<u8>()));
        prop_oneof![
            8 => prop::collection::vec(change, 1..12).prop_map(Step::Write),
            1 => Just(Step::Flush),
            1 => Just(Step::Reopen),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn store_equals_a_map(steps in prop::collection::vec(step(), 1..25)) {
            let dir = tempfile::tempdir().unwrap();
            let mut store = open(dir.path());
            let mut model: BTreeMap<(Cf, Vec<u8>), Vec<u8>> = BTreeMap::new();
            for step in steps {
                let before = (store.view(), model.clone());
                match step {
                    Step::Write(changes) => {
                        let mut batch = Vec::new();
                        for (cf, key, value) in changes {
                            let cf = Cf::ALL[cf];
                            let key = vec![b'k', key];
                            match value {
                                Some(value) => model.insert((cf, key.clone()), vec![value]),
                                None => model.remove(&(cf, key.clone())),
                            };
                            batch.push(Change { cf, key: key.into(), value: value.map(|v| vec![v].into()) });
                        }
                        write(&mut store, batch);
                    }
                    Step::Flush => store.flush(true),
                    Step::Reopen => {
                        drop(before);
                        drop(store);
                        // A clean close flushes.
                        store = open(dir.path());
                        compare(&store.view(), &model);
                        continue;
                    }
                }
                compare(&before.0, &before.1);
                compare(&store.view(), &model);
            }
        }
    }

    fn compare(view: &RocksView, model: &BTreeMap<(Cf, Vec<u8>), Vec<u8>>) {
        for cf in Cf::ALL {
            let expected: Vec<(Vec<u8>, Vec<u8>)> =
                model.iter().filter(|((c, _), _)| *c == cf).map(|((_, k), v)| (k.clone(), v.clone())).collect();
            assert_eq!(rows(view, cf), expected);
            for key in 0..20u8 {
                let key = vec![b'k', key];
                let found = view.get(cf, &key).map(|value| value.to_vec());
                assert_eq!(found.as_ref(), model.get(&(cf, key)));
            }
        }
    }
}
