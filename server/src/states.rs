//! The state folders of a server: which is current, checkpoints for learners, and what is received from a leader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use corral_core::storage::folder::{Current, Found};
use corral_core::zab::io::SnapshotMeta;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::net::peer_link::{self, Fetched, SnapshotManifest, SnapshotSource};
use crate::storage::files::FileDevice;
use crate::storage::rocks::{RocksStore, StoreOptions};
use crate::storage::snapshot::{Chunk, Incoming, Snapshot, SnapshotFile};

/// See the module. Shared by the apply thread, which makes, opens and drops, and the tasks that send and receive.
pub(crate) struct StateFolders {
    device: Arc<FileDevice>,
    options: StoreOptions,
    /// Checkpoints that learners may ask for.
    held: Mutex<BTreeMap<u64, Arc<Held>>>,
    /// The cluster this server belongs to; 0 before bootstrap.
    cluster: AtomicU64,
    /// The newest request to fetch, and what ends it.
    fetching: Mutex<(u64, CancellationToken)>,
    /// Held by who writes into the folder for what is received.
    incoming: tokio::sync::Mutex<()>,
}

/// A checkpoint on disk; its folder goes with the last sender.
struct Held(Option<Snapshot>);

impl Held {
    fn snapshot(&self) -> &Snapshot {
        self.0.as_ref().expect("taken out by drop only")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(Snapshot::remove) {
            // Nothing counts on it, and the next start does it again.
            warn!(%error, "a checkpoint could not be removed");
        }
    }
}

impl StateFolders {
    pub(crate) fn new(device: Arc<FileDevice>, options: StoreOptions) -> StateFolders {
        StateFolders {
            device,
            options,
            held: Mutex::default(),
            cluster: AtomicU64::new(0),
            fetching: Mutex::default(),
            incoming: tokio::sync::Mutex::default(),
        }
    }

    /// Snapshots are given to members of this cluster only.
    pub(crate) fn set_cluster(&self, cluster: u64) {
        self.cluster.store(cluster, Ordering::Relaxed);
    }

    /// Makes a checkpoint of the store as it is now. Takes a flush.
    ///
    /// # Errors
    /// In words.
    pub(crate) fn make_snapshot(&self, store: &RocksStore, id: u64) -> Result<SnapshotMeta, String> {
        let snapshot = Snapshot::create(store, self.device.root(), id, self.options).map_err(in_words)?;
        let meta = snapshot.meta();
        self.held.lock().insert(id, Arc::new(Held(Some(snapshot))));
        Ok(meta)
    }

    /// Nobody will ask for it any more; who is reading it may finish.
    pub(crate) fn drop_snapshot(&self, id: u64) {
        let held = self.held.lock().remove(&id);
        // Removing files takes a moment: not under the lock.
        drop(held);
    }

    fn held(&self, id: u64) -> Option<Arc<Held>> {
        self.held.lock().get(&id).cloned()
    }

    fn current(&self) -> Result<Current, String> {
        match Current::read(&*self.device) {
            Ok(Found::Valid(current)) => Ok(current),
            Ok(Found::Absent | Found::Damaged) => Err("the file CURRENT cannot be read".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Opens the store of the folder that is current.
    ///
    /// # Errors
    /// In words.
    pub(crate) fn open_current(&self) -> Result<RocksStore, String> {
        let folder = self.device.root().join(self.current()?.folder());
        RocksStore::open(&folder, self.options).map_err(in_words)
    }

    /// Fetches a snapshot from a leader into the folder that may become current next; when it returns `Ok`, it is durable
    /// and contains what was announced. Writes files on the calling thread. There is one fetch at a time: a later
    /// request ends the ones before.
    ///
    /// # Errors
    /// In words. What was fetched counts for nothing then.
    pub(crate) async fn fetch(
        &self,
        request: u64,
        address: &str,
        snapshot: &SnapshotMeta,
        cluster: u64,
        secret: &str,
        connect_timeout: Duration,
    ) -> Result<(), String> {
        let superseded = || Err("another snapshot is fetched instead".to_owned());
        let mine = CancellationToken::new();
        {
            let mut fetching = self.fetching.lock();
            // Requests come on threads of their own, in any order; they are numbered in the order in which they were made.
            if request < fetching.0 {
                return superseded();
            }
            std::mem::replace(&mut *fetching, (request, mine.clone())).1.cancel();
        }
        let fetched = tokio::select! {
            () = mine.cancelled() => return superseded(),
            fetched = self.fetch_alone(&mine, address, snapshot, cluster, secret, connect_timeout) => fetched,
        };
        if mine.is_cancelled() { superseded() } else { fetched }
    }

    async fn fetch_alone(
        &self,
        mine: &CancellationToken,
        address: &str,
        snapshot: &SnapshotMeta,
        cluster: u64,
        secret: &str,
        connect_timeout: Duration,
    ) -> Result<(), String> {
        let _alone = self.incoming.lock().await;
        if mine.is_cancelled() {
            return Err("cancelled before it began".to_owned());
        }
        let folder = self.current()?.incoming();
        let mut incoming: Option<Incoming> = None;
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        let failed = |error: &dyn std::error::Error| std::io::Error::other(in_words_of(error));
        peer_link::fetch_snapshot(address, snapshot.id, cluster, secret, connect_timeout, |part| match part {
            Fetched::Manifest(manifest) => {
                let files: Vec<SnapshotFile> = manifest
                    .files
                    .iter()
                    .map(|(name, size)| SnapshotFile { name: name.clone(), size: *size })
                    .collect();
                places = files.iter().enumerate().map(|(place, file)| (file.name.clone(), place)).collect();
                let begun = Incoming::begin(self.device.root(), &folder, snapshot, files);
                incoming = Some(begun.map_err(|error| failed(&error))?);
                Ok(())
            }
            Fetched::Chunk { file, offset, data } => {
                let (Some(incoming), Some(place)) = (&mut incoming, places.get(file)) else {
                    return Err(std::io::Error::other("a chunk before the list of files"));
                };
                let crc32c = crc32c::crc32c(&data);
                incoming.write(&Chunk { file: *place, offset, data, crc32c }).map_err(|error| failed(&error))
            }
        })
        .await
        .map_err(in_words)?;
        let incoming = incoming.ok_or("nothing came")?;
        incoming.finish(snapshot, self.options).map_err(in_words)?;
        Ok(())
    }
}

impl SnapshotSource for StateFolders {
    fn manifest(&self, id: u64, cluster: u64) -> Result<SnapshotManifest, String> {
        let held = self.held(id).ok_or_else(|| format!("snapshot {id} is gone"))?;
        let own = self.cluster.load(Ordering::Relaxed);
        if cluster != own {
            return Err(format!("this server belongs to cluster {own:#x}, not {cluster:#x}"));
        }
        let snapshot = held.snapshot();
        let files = snapshot.files().iter().map(|file| (file.name.clone(), file.size)).collect();
        Ok(SnapshotManifest { zxid: snapshot.meta().position.zxid, files })
    }

    fn read(&self, id: u64, file: &str, offset: u64, max: usize) -> std::io::Result<Bytes> {
        let held = self.held(id).ok_or(std::io::ErrorKind::NotFound)?;
        let snapshot = held.snapshot();
        let place = snapshot.files().iter().position(|f| f.name == file).ok_or(std::io::ErrorKind::NotFound)?;
        match snapshot.chunk(place, offset) {
            Ok(Some(chunk)) => Ok(chunk.data.slice(..chunk.data.len().min(max))),
            Ok(None) => Ok(Bytes::new()),
            Err(error) => Err(std::io::Error::other(in_words(error))),
        }
    }
}

fn in_words(error: impl std::error::Error) -> String {
    in_words_of(&error)
}

/// An error with its causes.
fn in_words_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
