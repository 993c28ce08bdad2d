//! One simulated server: the real machine, log, apply room and lanes, with the threads between them replaced by
//! queues that the world empties when it likes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use corral_core::apply::Apply;
use corral_core::member::{Member, MemberInput};
use corral_core::session::lane::Lane;
use corral_core::storage::memory::{MemoryStore, MemoryView};
use corral_core::storage::txn_log::TxnLog;
use corral_core::zab::io::{Entry, Identity, LogOp, Now, Relation, SnapshotMeta, Status};
use corral_proto::{ServerId, Zxid};

use crate::disk::Disk;
use crate::network::{Side, StreamId};
use crate::schedule::Micros;

/// One server of the ensemble.
pub struct Server {
    /// Its number.
    pub id: ServerId,
    /// What survives a crash.
    pub disk: Disk,
    /// What does not.
    pub process: Option<Process>,
    /// It stands still until then.
    pub paused_until: Micros,
    /// Its disk is slow until then.
    pub slow_disk_until: Micros,
    /// A start is scheduled.
    pub starting: bool,
    /// Not to be started any more.
    pub retired: bool,
    /// Its monotonic clock began so much before the run, ms.
    pub mono_offset_ms: u64,
    /// Its wall clock is so much off, ms.
    pub wall_skew_ms: i64,
}

/// Wall clock at the beginning of a run, ms since the Unix epoch.
const WALL_START_MS: i64 = 1_700_000_000_000;

impl Server {
    /// Its clocks at a time of the run.
    pub fn now(&self, at: Micros) -> Now {
        Now {
            mono_ms: self.mono_offset_ms + at / 1000,
            wall_ms: WALL_START_MS + self.wall_skew_ms + (at / 1000) as i64,
        }
    }
}

/// Work of the apply actor, in order.
pub enum ApplyWork {
    /// Execute.
    Entries(Vec<Entry>),
    /// Read the session table.
    LoadSessions,
    /// Look for what is due.
    ScanReapable(i64),
    /// Make a snapshot at or above a zxid.
    MakeSnapshot(u64, Zxid),
    /// Open an installed snapshot.
    Open(SnapshotMeta),
}

/// One process.
pub struct Process {
    /// Unique in the run.
    pub number: u64,
    /// Who it is, as it said when it began.
    pub identity: Identity,
    /// The machine.
    pub member: Member,
    /// Its status after the last step.
    pub status: Status,
    /// What waits for the machine.
    pub inbox: VecDeque<MemberInput>,
    /// A turn of the machine is scheduled.
    pub turn: bool,
    /// It crashes after so many more outputs.
    pub crash_after: Option<u64>,
    /// The log.
    pub log: TxnLog,
    /// What waits for the log writer.
    pub log_queue: VecDeque<(u64, LogOp)>,
    /// The log writer is at work.
    pub log_busy: bool,
    /// When its last answer arrives.
    pub log_answer: Micros,
    /// The apply room.
    pub apply: Apply<MemoryStore>,
    /// What waits for it.
    pub apply_queue: VecDeque<ApplyWork>,
    /// It is at work.
    pub apply_busy: bool,
    /// When its last answer arrives.
    pub apply_answer: Micros,
    /// Entries executed since the last flush.
    pub unflushed: u64,
    /// Where proposals go.
    pub relation: Option<Relation>,
    /// Since when there is no relation.
    pub alone_since: Micros,
    /// Current stream to each peer: the number this process gave it, the stream, our side.
    pub links: BTreeMap<ServerId, (u64, StreamId, Side)>,
    /// Last number given to a stream.
    pub last_link: u64,
    /// Snapshots that can be fetched.
    pub snapshots: BTreeMap<u64, (SnapshotMeta, MemoryView)>,
    /// Last number given to a snapshot.
    pub last_snapshot: u64,
    /// Snapshots asked for and not yet possible.
    pub snapshots_wanted: Vec<(u64, Zxid)>,
    /// Client connections.
    pub connections: BTreeMap<u64, Connection>,
    /// Connections with something to do.
    pub woken: Arc<Mutex<BTreeSet<u64>>>,
    /// Who asked for a read point.
    pub read_points: BTreeMap<u64, u64>,
    /// Last tag given to a read point.
    pub last_tag: u64,
}

/// One client's connection, as the server holds it.
pub struct Connection {
    /// Which client.
    pub client: usize,
    /// Its order.
    pub lane: Arc<Lane>,
    /// Drawn for the handshake.
    pub nonce: u64,
    /// Numbers are given here (ZooKeeper's protocol).
    pub next_n: Option<u64>,
    /// The handshake was answered.
    pub answered: bool,
    /// The client takes what it is sent.
    pub reads: bool,
    /// When the last thing sent to the client arrives.
    pub arrives: Micros,
}
