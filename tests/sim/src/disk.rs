//! What a server keeps over a crash: the log's device, the stores in its folders; its start from them; and what can go
//! wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use corral_core::storage::folder::{Current, Found, IdentityRecord, LOG_DIR, PeerBook, STORE_DAMAGED};
use corral_core::storage::frame::{BLOCK, FrameHead, SegmentHeader};
use corral_core::storage::log_device::{DeviceResult, Fate, Fault as DeviceFault, LogDevice, MemoryDevice};
use corral_core::storage::memory::{MemoryStore, MemoryView};
use corral_core::storage::recover::{OpenError, RecoverOptions, StoreOpener, recover};
use corral_core::storage::txn_log::{LogOptions, TxnLog};
use corral_core::tree::record::{Meta, NodeRec};
use corral_core::tree::{Cf, Change, TreeStore, TreeView, key};
use corral_core::zab::io::{Identity, Membership, Position, Recovered, SnapshotMeta};
use corral_proto::ServerId;

use crate::checks::ServerGhost;
use crate::options::SimOptions;
use crate::rng::Rng;

/// A row that marks a store whose tree is not what execution made it, and the copies that are made of it. Nothing else looks
/// at it, and no digest of a tree covers it.
const CHANGED: &[u8] = b"~changed by the simulator";

/// Whether a tree is not what execution made it.
pub fn is_changed(tree: &MemoryView) -> bool {
    tree.get(Cf::Aux, CHANGED).is_some()
}

/// A fault of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Power goes.
    PowerCut,
    /// The operation fails.
    Failure,
    /// There is no space.
    NoSpace,
    /// A read fails.
    ReadFailure,
}

/// What is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hurt {
    /// Bits or a block of a file.
    Bits,
    /// A whole file, or a whole store.
    File,
    /// The store's files.
    Store,
}

/// What was damaged.
pub struct Damage {
    /// In words.
    pub text: String,
    /// Only bytes of the last frame of the log, or behind it.
    pub last_frame: bool,
}

/// What a damaged folder is worth at the next start, compared with what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// As much as before.
    Everything,
    /// The server refuses it, or becomes amnesiac.
    NothingAndKnown,
    /// The server goes on with less and does not know.
    LessAndUnknown {
        /// Where the log ended.
        end: Position,
        /// The promise is what it was.
        promise_kept: bool,
    },
}

/// Compares what a start would find before and after damage.
pub fn compare(before: &Result<Started, StartError>, after: &Result<Started, StartError>) -> Worth {
    let (Ok(Started { recovered: before, .. }), Ok(Started { recovered: after, .. })) = (before, after) else {
        return Worth::NothingAndKnown;
    };
    let promise_kept = before.promise == after.promise;
    if after.identity.membership == Membership::Amnesiac {
        Worth::NothingAndKnown
    } else if before.end == after.end && promise_kept && before.identity.membership == after.identity.membership {
        Worth::Everything
    } else {
        Worth::LessAndUnknown { end: before.end, promise_kept }
    }
}

/// A copy of a folder.
#[derive(Clone)]
pub struct Backup {
    device: MemoryDevice,
    stores: BTreeMap<String, MemoryStore>,
    /// What was truly on it.
    pub ghost: ServerGhost,
}

impl Backup {
    /// Who the copy says it is. A start that failed has counted, too, so this may be newer than what any process said.
    pub fn identity(&self) -> Option<Identity> {
        match IdentityRecord::read(&self.device) {
            Ok(Found::Valid(record)) => Some(record.identity),
            _ => None,
        }
    }

    /// Whether it is a copy of this disk.
    pub fn is_of(&self, instance: u64) -> bool {
        self.ghost.identity.is_some_and(|identity| identity.instance == instance)
    }
}

/// See the module.
pub struct Disk {
    id: ServerId,
    device: MemoryDevice,
    /// Stores by the folder they are in, as a crash leaves them.
    stores: BTreeMap<String, MemoryStore>,
    /// Folders whose store cannot be opened.
    rotten: BTreeSet<String>,
    /// A planned fault that may have struck.
    planned: Option<Plan>,
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
    /// Which starts of its peers it remembers.
    pub peers: PeerBook,
    /// The last write before the stop was not whole.
    pub torn: bool,
}

/// Why a start failed.
pub enum StartError {
    /// The planned power cut struck.
    PowerCut,
    /// Another planned fault struck.
    Failed(Plan),
    /// The server refuses what it found.
    Refused(String),
}

struct Opener<'a> {
    stores: &'a mut BTreeMap<String, MemoryStore>,
    rotten: &'a BTreeSet<String>,
}

impl StoreOpener for Opener<'_> {
    fn open(&mut self, folder: &str) -> Result<Option<Meta>, OpenError> {
        if self.rotten.contains(folder) {
            return Err(OpenError::Damaged("bits rotted".to_owned()));
        }
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
            rotten: BTreeSet::new(),
            planned: None,
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

    /// An independent copy.
    pub fn fork(&self) -> Disk {
        Disk {
            device: self.device.fork(),
            stores: self.stores.clone(),
            rotten: self.rotten.clone(),
            open: self.open.clone(),
            rng: self.rng.clone(),
            ..*self
        }
    }

    /// Plans a fault for an operation after the next `skip` ones.
    pub fn plan(&mut self, skip: u64, plan: Plan) {
        self.withdraw();
        self.planned = Some(plan);
        match plan {
            Plan::PowerCut => self.device.fail_after(skip, DeviceFault::PowerCut),
            Plan::Failure => self.device.fail_after(skip, DeviceFault::Failure),
            Plan::NoSpace => self.device.fail_after(skip, DeviceFault::NoSpace),
            Plan::ReadFailure => self.device.fail_read_after(skip),
        }
    }

    /// Takes a plan back.
    pub fn withdraw(&mut self) {
        self.device.heal();
        self.planned = None;
    }

    /// The planned fault, if it has struck.
    pub fn struck(&self) -> Option<Plan> {
        self.planned.filter(|_| !self.device.is_planned())
    }

    /// Starts from what is there, perhaps with a fault after so many operations.
    pub fn start(&mut self, fault: Option<(u64, Plan)>) -> Result<Started, StartError> {
        if let Some((skip, plan)) = fault {
            self.plan(skip, plan);
        }
        let options = RecoverOptions {
            server: self.id,
            cluster: None,
            instance: self.rng.next() | 1,
            log: self.log,
            tail_cache_bytes: self.tail_cache_bytes,
        };
        let device: Arc<dyn LogDevice> = Arc::new(self.device.clone());
        let recovery = recover(device, &options, &mut Opener { stores: &mut self.stores, rotten: &self.rotten });
        let struck = self.struck();
        if self.device.is_off() {
            return Err(StartError::PowerCut);
        }
        self.withdraw();
        let recovery = recovery.map_err(|error| match struck {
            Some(plan) => StartError::Failed(plan),
            None => StartError::Refused(error.to_string()),
        })?;
        self.open = recovery.current.folder();
        self.stores.retain(|folder, _| *folder == self.open);
        self.rotten.clear();
        let store = self.stores.get(&self.open).cloned().unwrap_or_default();
        let peers = PeerBook::load(&self.device).map_err(|error| StartError::Refused(error.to_string()))?;
        let torn = recovery.notes.iter().any(|note| note.starts_with("the last write before the stop"));
        Ok(Started { recovered: recovery.recovered, log: recovery.log, store, peers, torn })
    }

    /// The process is gone, with what its store had not persisted.
    pub fn process_died(&mut self, mut store: MemoryStore) {
        store.crash();
        if !self.open.is_empty() {
            self.stores.insert(std::mem::take(&mut self.open), store);
        }
        self.withdraw();
    }

    /// The machine lost power: what was not synced is kept, lost or torn, as the seed says.
    pub fn after_power_cut(&mut self, seed: u64) {
        self.device = self.device.after_power_cut_seeded(seed);
    }

    /// Everything is gone.
    pub fn wipe(&mut self) {
        self.device = MemoryDevice::new();
        self.stores.clear();
        self.rotten.clear();
        self.planned = None;
        self.open.clear();
    }

    /// The highest start of a peer's disk that is remembered durably.
    pub fn remembers(&self, peer: ServerId, instance: u64) -> u64 {
        PeerBook::load(&self.device.fork()).map_or(0, |book| book.highest(peer, instance))
    }

    /// A copy of what is durable. `live`: the store of the process that runs.
    pub fn backup(&self, live: Option<MemoryStore>, ghost: ServerGhost) -> Backup {
        let mut stores = self.stores.clone();
        if let Some(mut store) = live {
            store.crash();
            stores.insert(self.open.clone(), store);
        }
        Backup { device: self.device.after_power_cut(BLOCK, &mut |_| Fate::Lost), stores, ghost: ghost.as_copied() }
    }

    /// Puts a copy back.
    pub fn restore(&mut self, backup: &Backup) {
        self.wipe();
        self.device = backup.device.fork();
        self.stores = backup.stores.clone();
    }

    /// Damages something of what is durable; `None` if there was nothing of that sort.
    pub fn damage(&mut self, hurt: Hurt, rng: &mut Rng) -> Option<Damage> {
        let current = self.current().map(|current| current.folder());
        if hurt == Hurt::Store {
            let folder = current?;
            // What the running server found, or what the next start will find.
            if rng.chance(500) {
                self.device.create(STORE_DAMAGED).and_then(|_| self.device.sync_dir("")).ok()?;
                return Some(Damage { text: format!("{folder} was found damaged"), last_frame: false });
            }
            self.rotten.insert(folder.clone());
            return Some(Damage { text: format!("{folder} cannot be opened"), last_frame: false });
        }
        let mut files = self.device.files();
        files.retain(|path| !path.starts_with("damaged-") && !path.ends_with(".tmp"));
        if hurt == Hurt::File && rng.chance(200) {
            let folder = current?;
            self.stores.remove(&folder)?;
            return Some(Damage { text: format!("the files of {folder} are gone"), last_frame: false });
        }
        if files.is_empty() {
            return None;
        }
        // Most of what a disk holds is the log, and what nobody else has yet is at its end.
        let last = files.iter().rfind(|path| path.starts_with(LOG_DIR) && path.ends_with(".seg"));
        let path = match last {
            Some(last) if hurt == Hurt::Bits && rng.chance(500) => last.clone(),
            _ => rng.pick(&files).clone(),
        };
        if hurt == Hurt::File {
            let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
            self.device.remove(&path).and_then(|()| self.device.sync_dir(dir)).ok()?;
            return Some(Damage { text: format!("{path} is gone"), last_frame: false });
        }
        let content = self.device.content(&path)?;
        let used = content.iter().rposition(|byte| *byte != 0)? + 1;
        // Shortly before the last frame is what no store holds yet, and what later frames stand on.
        let offset = match rng.chance(500) {
            true => {
                let end = self.last_frame(&path).unwrap_or(used as u64);
                end - rng.magnitude(1, end)
            }
            false => rng.below(used as u64),
        };
        let last_frame = self.last_frame(&path).is_some_and(|start| offset >= start);
        let text = if rng.chance(250) {
            let from = offset - offset % BLOCK as u64;
            let len = (content.len() as u64 - from).min(BLOCK as u64) as usize;
            self.device.rot(&path, from, |bytes| bytes.fill(0), len);
            format!("{len} bytes of {path} from {from} on are zeros")
        } else {
            let bit = 1 << rng.below(8);
            self.device.rot(&path, offset, |bytes| bytes[0] ^= bit, 1);
            format!("a bit of byte {offset} of {path} has flipped")
        };
        Some(Damage { text, last_frame })
    }

    /// Where the last frame of the log begins, if it is in this file.
    fn last_frame(&self, path: &str) -> Option<u64> {
        let last = self.device.files().into_iter().rfind(|p| p.starts_with(LOG_DIR) && p.ends_with(".seg"))?;
        if last != path {
            return None;
        }
        let content = self.device.content(path)?;
        let header = SegmentHeader::decode(&content).ok()?;
        let mut at = BLOCK;
        let mut start = None;
        while let Some(head) = content.get(at..).and_then(|rest| FrameHead::decode(header.instance, rest)) {
            start = Some(at as u64);
            at += corral_core::storage::frame::blocks(head.len());
        }
        start
    }

    /// Whether the tree in the store of a stopped server is not what execution made it.
    pub fn is_changed(&self) -> bool {
        let store = self.current().and_then(|current| self.stores.get(&current.folder()));
        store.is_some_and(|store| is_changed(&store.view()))
    }

    /// Changes a znode in the store of a stopped server, as an execution that went wrong would: the running digest goes with
    /// it. Clients do not look at that znode. False if there is no store.
    pub fn change_tree(&mut self, by_ms: i64) -> bool {
        let Some(store) = self.current().and_then(|current| self.stores.get_mut(&current.folder())) else {
            return false;
        };
        let (view, at) = (store.view(), key::node("/zookeeper").expect("a valid path"));
        let (Some(old), Some(mut meta)) = (view.get(Cf::Node, &at), Meta::read(&view)) else { return false };
        let Some(mut rec) = NodeRec::decode(&old) else { return false };
        rec.mtime += by_ms;
        let new = rec.encode();
        meta.digest = meta.digest.wrapping_sub(NodeRec::digest(&at, &old)).wrapping_add(NodeRec::digest(&at, &new));
        let changes = [
            Change { cf: Cf::Node, key: at, value: Some(new) },
            Change { cf: Cf::Aux, key: Bytes::from_static(key::META), value: Some(meta.encode()) },
            Change { cf: Cf::Aux, key: Bytes::from_static(CHANGED), value: Some(Bytes::new()) },
        ];
        store.write(&mut changes.into_iter());
        store.flush();
        true
    }

    /// Remembers the start of a peer.
    pub fn observe(&self, book: &mut PeerBook, peer: ServerId, instance: u64, start_count: u64) -> DeviceResult<()> {
        book.observe(&self.device, peer, instance, start_count).map(|_| ())
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
