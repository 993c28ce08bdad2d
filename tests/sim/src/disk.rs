//! What a server keeps over a crash: the log's device, the stores in its folders; and its start from them.

use std::collections::BTreeMap;
use std::sync::Arc;

use corral_core::storage::folder::{Current, Found};
use corral_core::storage::log_device::{LogDevice, MemoryDevice};
use corral_core::storage::memory::{MemoryStore, MemoryView};
use corral_core::storage::recover::{OpenError, RecoverOptions, StoreOpener, recover};
use corral_core::storage::txn_log::{LogOptions, TxnLog};
use corral_core::tree::TreeStore;
use corral_core::tree::record::Meta;
use corral_core::zab::io::{Recovered, SnapshotMeta};
use corral_proto::ServerId;

use crate::options::SimOptions;
use crate::rng::Rng;

/// See the module.
pub struct Disk {
    id: ServerId,
    device: MemoryDevice,
    /// Stores by the folder they are in, as a crash leaves them.
    stores: BTreeMap<String, MemoryStore>,
    /// The folder whose store the process has open.
    open: String,
    log: LogOptions,
    tail_cache_bytes: usize,
    /// Names new disks.
    rng: Rng,
}

/// What a start found.
pub struct Started {
    /// For the machine.
    pub recovered: Recovered,
    /// The log.
    pub log: TxnLog,
    /// The store.
    pub store: MemoryStore,
}

/// Why a start failed.
pub enum StartError {
    /// The planned power cut struck.
    PowerCut,
    /// The server refuses what it found.
    Refused(String),
}

struct Opener<'a> {
    stores: &'a mut BTreeMap<String, MemoryStore>,
}

impl StoreOpener for Opener<'_> {
    fn open(&mut self, folder: &str) -> Result<Option<Meta>, OpenError> {
        Ok(self.stores.entry(folder.to_owned()).or_default().persisted_meta())
    }

    fn close(&mut self) {}
}

impl Disk {
    /// An empty disk.
    pub fn new(id: ServerId, options: &SimOptions, seed: u64) -> Disk {
        Disk {
            id,
            device: MemoryDevice::new(),
            stores: BTreeMap::new(),
            open: String::new(),
            log: LogOptions { segment_bytes: options.segment_bytes as u64, retention_bytes: options.retention_bytes },
            tail_cache_bytes: options.tail_cache_bytes,
            rng: Rng::stream(seed, "disk"),
        }
    }

    /// The log's device.
    pub fn device(&self) -> &MemoryDevice {
        &self.device
    }

    /// Whether a planned power cut struck.
    pub fn is_off(&self) -> bool {
        self.device.is_off()
    }

    /// Starts from what is there; power is cut after so many operations.
    pub fn start(&mut self, cut_after: Option<u64>) -> Result<Started, StartError> {
        if let Some(operations) = cut_after {
            self.device.fail_after(operations, corral_core::storage::log_device::Fault::PowerCut);
        }
        let options = RecoverOptions {
            server: self.id,
            cluster: None,
            instance: self.rng.next() | 1,
            log: self.log,
            tail_cache_bytes: self.tail_cache_bytes,
        };
        let device: Arc<dyn LogDevice> = Arc::new(self.device.clone());
        let recovery = recover(device, &options, &mut Opener { stores: &mut self.stores });
        if self.device.is_off() {
            return Err(StartError::PowerCut);
        }
        self.device.heal();
        let recovery = recovery.map_err(|error| StartError::Refused(error.to_string()))?;
        self.open = recovery.current.folder();
        self.stores.retain(|folder, _| *folder == self.open);
        let store = self.stores.get(&self.open).cloned().unwrap_or_default();
        Ok(Started { recovered: recovery.recovered, log: recovery.log, store })
    }

    /// The process is gone, with what its store had not persisted.
    pub fn process_died(&mut self, mut store: MemoryStore) {
        store.crash();
        if !self.open.is_empty() {
            self.stores.insert(std::mem::take(&mut self.open), store);
        }
        self.device.heal();
    }

    /// The machine lost power: what was not synced is kept, lost or torn, as the seed says.
    pub fn after_power_cut(&mut self, seed: u64) {
        self.device = self.device.after_power_cut_seeded(seed);
    }

    /// Everything is gone.
    pub fn wipe(&mut self) {
        self.device = MemoryDevice::new();
        self.stores.clear();
        self.open.clear();
    }

    fn current(&self) -> Option<Current> {
        match Current::read(&self.device) {
            Ok(Found::Valid(current)) => Some(current),
            _ => None,
        }
    }

    /// A snapshot was received, durably, into the folder for it. False if the disk failed meanwhile.
    pub fn receive(&mut self, view: MemoryView) -> bool {
        let Some(current) = self.current() else { return false };
        let folder = current.incoming();
        let made = self.device.create_dir(&folder).and_then(|()| self.device.sync_dir(""));
        self.stores.insert(folder, MemoryStore::from_snapshot(view));
        made.is_ok()
    }

    /// The store of an installed snapshot.
    pub fn open_installed(&mut self, snapshot: &SnapshotMeta) -> Option<MemoryStore> {
        let folder = self.current()?.folder();
        let store = self.stores.get(&folder)?.clone();
        let meta = store.persisted_meta()?;
        self.open = folder;
        (meta.applied == snapshot.position.zxid).then_some(store)
    }
}
