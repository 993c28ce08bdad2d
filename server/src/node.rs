//! One server: starts its threads, wires their queues, stops them. The only file that knows everybody.
//!
//! ```text
//! connections, gRPC, peers (Tokio) --> core --> log, log-read, log-prepare
//!                                       |  ^--- LogDone, LogRead
//!                                       '-----> apply --> lanes of the connections
//!                                          ^--- Applied
//! ```
//!
//! Several servers may run in one process; they share nothing but the allocator.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use corral_core::apply::{Applied, Shared};
use corral_core::session::lane::Lane;
use corral_core::session::outbox::Key;
use corral_core::tree::entry::Settings;
use corral_core::tree::{TreeStore, read};
use corral_core::zab::io::{Admin, Entry, Position, SnapshotMeta, Status};
use corral_proto::{ServerId, SessionId, Zxid};
use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::error;

use crate::clock::Clock;
use crate::core_loop::PeerEvent;
use crate::mailbox::Mailbox;
use crate::storage::rocks::RocksStore;

/// A read of the published state.
pub(crate) type View = <RocksStore as TreeStore>::View;

/// What happened, for thread `core`.
pub(crate) enum CoreEvent {
    /// Writes of clients, in order.
    Submit(Vec<(Key, Bytes)>),
    /// Somebody wants a read point; it is answered to the lane registered for the tag.
    ReadIndex { tag: u64 },
    /// Something from another server.
    Peer(PeerEvent),
    /// See [`corral_core::zab::io::Input::LogDone`].
    LogDone { seq: u64 },
    /// See [`corral_core::zab::io::Input::LogRead`].
    LogRead { request: u64, entries: Vec<Entry> },
    /// See [`corral_core::zab::io::Input::LogTrimmed`].
    LogTrimmed { base: Position },
    /// A batch was executed.
    Applied(Applied),
    /// See [`corral_core::member::MemberInput::SessionTable`].
    SessionTable { sessions: Vec<(SessionId, i32, Zxid, ServerId)>, settings: Settings },
    /// See [`corral_core::member::MemberInput::Reapable`].
    Reapable(Vec<(String, Zxid)>),
    /// See [`corral_core::zab::io::Input::SnapshotReady`].
    SnapshotReady { request: u64, snapshot: Option<SnapshotMeta> },
    /// See [`corral_core::zab::io::Input::SnapshotFetched`].
    SnapshotFetched { id: u64, ok: bool },
    /// See [`corral_core::zab::io::Input::SnapshotOpened`].
    SnapshotOpened { position: Position },
    /// An operator asked.
    Admin(Admin),
    /// End the thread.
    Stop,
}

/// Settings of a server that front ends need, as plain values.
#[derive(Clone, Debug)]
pub(crate) struct NodeOptions {
    /// This server.
    pub(crate) server: ServerId,
    /// Lower bound of session timeouts, ms.
    pub(crate) min_session_timeout_ms: i32,
    /// Upper bound of session timeouts, ms.
    pub(crate) max_session_timeout_ms: i32,
    /// `super:` and the digest of its password.
    pub(crate) super_digest: Option<String>,
    /// A session that is heard more often is reported once in so long, ms.
    pub(crate) touch_interval_ms: u64,
    /// The liveness bound between servers, ms.
    pub(crate) sync_timeout_ms: u64,
    /// Unresolved writes beyond which connections are not read.
    pub(crate) outstanding_max: usize,
    /// Largest transaction, bytes.
    pub(crate) txn_bytes_max: usize,
}

/// Whether clients can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Serving {
    /// No leader.
    No,
    Yes,
    Stopping,
}

/// What front ends and threads of one server share.
pub(crate) struct NodeShared {
    pub(crate) options: NodeOptions,
    pub(crate) clock: Clock,
    pub(crate) stats: Stats,
    pub(crate) core: Mailbox<CoreEvent>,
    pub(crate) shared: Arc<Shared<View>>,
    /// Last published entry.
    pub(crate) applied: watch::Sender<Zxid>,
    /// Sessions heard since the core last looked.
    pub(crate) touched: Mutex<Vec<SessionId>>,
    /// Writes that wait to be executed here.
    pub(crate) unresolved: AtomicUsize,
    serving: watch::Sender<Serving>,
    related: AtomicBool,
    /// The replicated settings hold the key of the session passwords.
    keyed: AtomicBool,
    status: ArcSwap<Status>,
    read_points: DashMap<u64, Arc<Lane>>,
    numbers: AtomicU64,
    nonces: AtomicU64,
    session_ids: AtomicI64,
}

impl NodeShared {
    pub(crate) fn new(options: NodeOptions, clock: Clock, shared: Arc<Shared<View>>, seed: u64) -> NodeShared {
        let now = clock.now();
        let applied = shared.published().zxid;
        NodeShared {
            clock,
            stats: Stats::default(),
            core: Mailbox::default(),
            applied: watch::Sender::new(applied),
            touched: Mutex::default(),
            unresolved: AtomicUsize::new(0),
            serving: watch::Sender::new(Serving::No),
            related: AtomicBool::new(false),
            keyed: AtomicBool::new(false),
            status: ArcSwap::default(),
            read_points: DashMap::new(),
            numbers: AtomicU64::new(1),
            nonces: AtomicU64::new(seed),
            session_ids: AtomicI64::new(first_session_id(options.server, now.wall_ms)),
            shared,
            options,
        }
    }

    /// Whether clients can be served: at once if there is a leader, else after the liveness bound at the latest.
    pub(crate) async fn wait_serving(&self) -> bool {
        let mut serving = self.serving.subscribe();
        let patience = Duration::from_millis(self.options.sync_timeout_ms);
        match tokio::time::timeout(patience, serving.wait_for(|s| *s != Serving::No)).await {
            Ok(Ok(serving)) => *serving == Serving::Yes,
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// Whether there is a leader to whom writes can go.
    pub(crate) fn is_serving(&self) -> bool {
        *self.serving.borrow() == Serving::Yes
    }

    /// Whether so many writes wait that connections must not be read.
    pub(crate) fn is_overloaded(&self) -> bool {
        self.unresolved.load(Ordering::Relaxed) > self.options.outstanding_max
    }

    /// A session id that nobody else draws, as far as the clocks tell (wire 2.6); execution refuses one that is taken.
    pub(crate) fn draw_session_id(&self) -> SessionId {
        SessionId(self.session_ids.fetch_add(1, Ordering::Relaxed))
    }

    /// A number that tells this handshake from others of the same session, anywhere.
    pub(crate) fn draw_nonce(&self) -> u64 {
        split_mix(self.nonces.fetch_add(SPLIT_MIX_STEP, Ordering::Relaxed))
    }

    /// The next of an ascending sequence in this process.
    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// A tag for [`CoreEvent::ReadIndex`]; the lane is told the point.
    pub(crate) fn new_read_point(&self, lane: &Arc<Lane>) -> u64 {
        let tag = self.next_number();
        self.read_points.insert(tag, lane.clone());
        tag
    }

    /// The leader named a read point.
    pub(crate) fn answer_read_point(&self, tag: u64, zxid: Zxid) {
        if let Some((_, lane)) = self.read_points.remove(&tag) {
            lane.on_read_point(tag, zxid);
        }
    }

    /// The ordering machine's state, at most a tick old.
    pub(crate) fn status(&self) -> Arc<Status> {
        self.status.load_full()
    }

    pub(crate) fn set_status(&self, status: Status) {
        self.status.store(Arc::new(status));
    }

    /// There is a leader now, or none any more.
    pub(crate) fn set_related(&self, related: bool) {
        self.related.store(related, Ordering::Relaxed);
        self.update_serving();
    }

    /// Looks whether the key of the session passwords is there: without it nobody can be told a password.
    pub(crate) fn update_keyed(&self) {
        if !self.keyed.load(Ordering::Relaxed) {
            let keyed = !read::settings(&self.shared.published().view).password_key.is_empty();
            if keyed {
                self.keyed.store(true, Ordering::Relaxed);
                self.update_serving();
            }
        }
    }

    fn update_serving(&self) {
        let yes = self.related.load(Ordering::Relaxed) && self.keyed.load(Ordering::Relaxed);
        let wanted = if yes { Serving::Yes } else { Serving::No };
        self.serving.send_if_modified(|serving| {
            let change = *serving != Serving::Stopping && *serving != wanted;
            if change {
                *serving = wanted;
            }
            change
        });
    }

    fn stop_serving(&self) {
        self.serving.send_replace(Serving::Stopping);
    }
}

/// Where a server's session ids begin: the time above, its number in the top byte, positive.
fn first_session_id(server: ServerId, wall_ms: i64) -> i64 {
    let time = ((wall_ms as u64) << 24) >> 8;
    let id = (time | (server.0 << 56)) & i64::MAX as u64;
    (id as i64).max(1)
}

const SPLIT_MIX_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64: a bijection, so that distinct states give distinct numbers.
fn split_mix(state: u64) -> u64 {
    let mut z = state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Random bytes of the system: where every arbitrary choice of a server comes from.
fn system_random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Ends the process: a server that cannot trust its disk or itself must not go on (P28).
pub(crate) fn abort(reason: &str) -> ! {
    error!("{reason}; aborting");
    // The log of people may go nowhere; the reason must not.
    eprintln!("corral: {reason}; aborting");
    std::process::abort()
}

/// Starts a thread of the server. A panic in it ends the process: a half-dead leader is worse than a dead one.
fn spawn(name: &'static str, body: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    struct Guard(&'static str);
    impl Drop for Guard {
        fn drop(&mut self) {
            if std::thread::panicking() {
                abort(&format!("thread {} panicked", self.0));
            }
        }
    }
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _guard = Guard(name);
        body();
    })
}
