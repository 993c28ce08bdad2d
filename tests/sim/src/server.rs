//! One simulated server: the real machine, log, apply room and lanes, with the threads between them replaced by
//! queues that the world empties when it likes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use corral_core::apply::Apply;
use corral_core::member::{Member, MemberInput};
use corral_core::session::lane::Lane;
use corral_core::storage::folder::PeerBook;
use corral_core::storage::memory::{MemoryStore, MemoryView};
use corral_core::storage::txn_log::TxnLog;
use corral_core::zab::io::{Entry, Identity, Input, LogOp, Now, Promise, Relation, Role, SnapshotMeta, Status};
use corral_proto::{ServerId, Zxid};

use crate::disk::{self, Backup, Disk};
use crate::network::{Side, StreamId};
use crate::rng::Rng;
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
    /// When it stops the next time, it is back at once.
    pub back_soon: bool,
    /// Its disk has no space until then.
    pub disk_full_until: Micros,
    /// Its store is slow until then.
    pub store_stalled_until: Micros,
    /// Its copy was damaged or replaced by an old one, and it has not started with that yet.
    pub spoiled: bool,
    /// A copy of its folder.
    pub backup: Option<Backup>,
    /// Its clocks.
    pub clock: Clock,
    /// Chance of its crashes and starts.
    pub life: Rng,
}

impl Server {
    /// Whether its tree is not what execution made it.
    pub fn is_changed(&self) -> bool {
        self.process.as_ref().map_or_else(|| self.disk.is_changed(), Process::tree_is_changed)
    }

    /// The promise that its process made to itself, if it leads an epoch or gathers promises for one.
    pub fn own_promise(&self) -> Option<Promise> {
        let process = self.process.as_ref()?;
        let (status, identity) = (&process.status, process.identity);
        let leads = status.role == Role::Leading && status.epoch > 0;
        leads.then_some(Promise {
            epoch: status.epoch,
            leader: self.id,
            instance: identity.instance,
            start_count: identity.start_count,
        })
    }
}

/// A server's clocks.
#[derive(Clone, Debug)]
pub struct Clock {
    /// Since when the monotonic clock has its speed.
    since: Micros,
    /// What it showed then.
    shown: Micros,
    /// Its speed in thousandths of the true one.
    rate: u64,
    /// The wall clock is so much off, ms.
    wall_skew_ms: i64,
}

/// Wall clock at the beginning of a run, ms since the Unix epoch.
const WALL_START_MS: i64 = 1_700_000_000_000;

impl Clock {
    /// Clocks at the beginning of a run; the monotonic one shows `shown_ms`.
    pub fn new(shown_ms: u64, wall_skew_ms: i64, rate: u64) -> Clock {
        Clock { since: 0, shown: shown_ms * 1000, rate, wall_skew_ms }
    }

    /// The monotonic clock, microseconds.
    pub fn mono(&self, at: Micros) -> Micros {
        self.shown + (at - self.since) * self.rate / 1000
    }

    /// Both clocks.
    pub fn now(&self, at: Micros) -> Now {
        Now { mono_ms: self.mono(at) / 1000, wall_ms: WALL_START_MS + self.wall_skew_ms + (at / 1000) as i64 }
    }

    /// How long something takes that this clock measures.
    pub fn measured(&self, duration: Micros) -> Micros {
        duration * 1000 / self.rate
    }

    /// Changes the speed of the monotonic clock.
    pub fn set_rate(&mut self, at: Micros, rate: u64) {
        *self = Clock { since: at, shown: self.mono(at), rate, ..*self };
    }

    /// Moves the wall clock.
    pub fn jump(&mut self, by_ms: i64) {
        self.wall_skew_ms += by_ms;
    }

    /// The clock of another machine, which shows something else.
    pub fn replace(&mut self, at: Micros, shown_ms: u64) {
        *self = Clock { since: at, shown: shown_ms * 1000, ..*self };
    }
}

/// A step of one of a server's threads, for crashes around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The core takes inputs, and sends what follows.
    Core,
    /// The log is written.
    Log,
    /// An answer of the log or of execution reaches the core.
    Answer,
    /// Entries are executed and published, or a snapshot is made or opened.
    Apply,
    /// The store persists itself.
    Flush,
    /// The log is read for a learner.
    ReadLog,
    /// The log is trimmed.
    Trim,
    /// A snapshot arrived.
    Fetched,
    /// A request of a client arrives.
    Request,
}

impl Step {
    /// All steps.
    pub const ALL: [Step; 9] = [
        Step::Core,
        Step::Log,
        Step::Answer,
        Step::Apply,
        Step::Flush,
        Step::ReadLog,
        Step::Trim,
        Step::Fetched,
        Step::Request,
    ];

    /// What is counted when a process dies around it.
    pub fn label(self) -> &'static str {
        match self {
            Step::Core => "died around: core turn",
            Step::Log => "died around: log write",
            Step::Answer => "died around: answer to the core",
            Step::Apply => "died around: execution",
            Step::Flush => "died around: flush of the store",
            Step::ReadLog => "died around: log read",
            Step::Trim => "died around: log trim",
            Step::Fetched => "died around: snapshot received",
            Step::Request => "died around: request of a client",
        }
    }
}

/// Where a process is to die.
#[derive(Clone, Copy, Debug)]
pub struct CrashAt {
    /// Around which step.
    pub step: Step,
    /// After it, not before it.
    pub after: bool,
    /// So many of them happen before.
    pub skip: u64,
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
    /// It crashes around a step.
    pub crash_at: Option<CrashAt>,
    /// The disk and the start of each peer that it last heard of.
    pub memory: BTreeMap<ServerId, (u64, u64)>,
    /// What it durably remembers of that.
    pub peers: PeerBook,
    /// When the log was last written.
    pub log_written: Micros,
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
    /// The stream to each peer that the core knows of.
    pub known_links: BTreeMap<ServerId, u64>,
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
    /// Last tag given to a read point; unique in the run.
    pub last_tag: u64,
}

impl Process {
    /// Whether its tree is not what execution made it.
    pub fn tree_is_changed(&self) -> bool {
        disk::is_changed(&self.apply.shared().published().view)
    }

    /// Whether an input is a message of a stream that is gone, as far as the core knows.
    pub fn is_late(&self, input: &MemberInput) -> bool {
        match input {
            MemberInput::Zab(Input::PeerMessage { peer, link, .. }) => self.known_links.get(peer) != Some(link),
            _ => false,
        }
    }

    /// The core is about to learn of streams.
    pub fn note_streams(&mut self, input: &MemberInput) {
        match input {
            MemberInput::Zab(Input::PeerUp { peer, link, .. }) => {
                self.known_links.insert(*peer, *link);
            }
            MemberInput::Zab(Input::PeerDown { peer, link }) if self.known_links.get(peer) == Some(link) => {
                self.known_links.remove(peer);
            }
            _ => {}
        }
    }
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
    /// A turn of its task is scheduled.
    pub turn: bool,
    /// When the last thing sent to the client arrives.
    pub arrives: Micros,
}

#[cfg(test)]
mod tests {
    use super::Clock;

    #[test]
    fn monotonic_clock_goes_on_from_where_it_was_when_its_speed_changes() {
        let mut clock = Clock::new(5, 0, 1000);
        assert_eq!(clock.mono(2_000), 7_000);
        clock.set_rate(2_000, 500);
        assert_eq!((clock.mono(2_000), clock.mono(4_000)), (7_000, 8_000));
        assert_eq!(clock.measured(1_000), 2_000);
        clock.jump(-60_000);
        assert_eq!(clock.mono(4_000), 8_000, "a wall clock that jumps does not matter to it");
    }
}
