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

use std::collections::BTreeSet;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use corral_core::apply::{Applied, Apply, Shared};
use corral_core::auth::sasl;
use corral_core::member::{Member, MemberOptions};
use corral_core::session::CloseReason;
use corral_core::session::lane::Lane;
use corral_core::session::local::LocalSessions;
use corral_core::session::outbox::Key;
use corral_core::storage::folder::{self, FolderError, LOG_DIR, PeerBook, SeenDisk};
use corral_core::storage::log_device::DeviceError;
use corral_core::storage::recover::{RecoverError, RecoverOptions, recover};
use corral_core::storage::txn_log::{LogOptions, TxnLog};
use corral_core::tree::entry::Settings;
use corral_core::tree::feed::FeedBounds;
use corral_core::tree::{TreeStore, read};
use corral_core::zab::io::{
    Admin, Entry, Identity, MemberKind, Membership, Options, Position, Recovered, SnapshotMeta, Status,
};
use corral_core::zab::quorum::QuorumSet;
use corral_proto::{ServerId, SessionId, Zxid};
use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::apply_loop::{ApplyCommand, ApplyLoop};
use crate::clock::Clock;
use crate::config::{self, Config, HostPort};
use crate::core_loop::{CoreLoop, CoreOutlets, PeerEvent, StartFetch, receive_from_peers};
use crate::figures::Stats;
use crate::frontend::admin::{AdminSite, MetricsSite};
use crate::frontend::http;
use crate::frontend::listen::{self, Listen, ListenOptions, SecureOptions};
use crate::frontend::operators::Operators;
use crate::frontend::wire::{FrontendStats, Whitelist, WireOptions, Word};
use crate::frontend::{Frontend, grpc};
use crate::log_loop::{self, LogCommand, LogLoop, ReadLog};
use crate::mailbox::Mailbox;
use crate::net::peer_link::{self, Disk, LinkError, LinkOptions, Mark, Memory, PeerLinks, Standing, StartMemory};
use crate::report;
use crate::states::StateFolders;
use crate::storage::files::{self, FileDevice, FolderLock, LockError};
use crate::storage::rocks::{RocksOpener, RocksStore, StoreOptions};
use crate::tls::{self, Tls, TlsError, TlsOptions};

/// Events of the links that wait for the task that decodes them.
const LINK_EVENTS: usize = 64;
/// How long open connections are waited for when the server stops.
const GOODBYE: Duration = Duration::from_secs(1);
/// Between two looks at the free space of the disks.
const FREE_SPACE_INTERVAL: Duration = Duration::from_secs(1);
/// A connection that shows no complete handshake for so long is closed, at least.
const HANDSHAKE_MIN_MS: u64 = 4_000;
/// A session is reported as touched at least so often, ms, if it is.
const TOUCH_INTERVAL_MAX_MS: u64 = 500;
/// Bytes of one transaction, whatever the front ends let pass: with what may be before it in a message it fits into a
/// frame between servers.
const TXN_BYTES_MAX: usize = peer_link::FRAME_BYTES_MAX - MESSAGE_BYTES - (64 << 10);
/// Bytes sent to one learner and not yet acknowledged.
const LEARNER_WINDOW_BYTES: usize = 8 << 20;
/// Bytes of one message with entries.
const MESSAGE_BYTES: usize = 1 << 20;
/// Counter from which a leader makes way for a new epoch (P17).
const COUNTER_LIMIT: u32 = u32::MAX - (1 << 24) + 1;

/// A read of the published state.
pub(crate) type View = <RocksStore as TreeStore>::View;

/// What happened, for thread `core`.
pub(crate) enum CoreEvent {
    /// Writes of clients, in order.
    Submit(Vec<(Key, Bytes)>),
    /// Nobody waits for this handshake any more.
    Withdraw(Key),
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
    SnapshotFetched { request: u64, ok: bool },
    /// See [`corral_core::zab::io::Input::SnapshotOpened`].
    SnapshotOpened { position: Position },
    /// An operator asked.
    Admin(Admin),
    /// An operator wants to know which session ends when; see [`Member::session_deadlines`].
    SessionDeadlines(oneshot::Sender<Vec<(u64, Vec<SessionId>)>>),
    /// End the thread.
    Stop,
}

/// Settings of a server that front ends need, as plain values.
#[derive(Clone)]
pub(crate) struct NodeOptions {
    /// This server.
    pub(crate) server: ServerId,
    /// Lower bound of session timeouts, ms.
    pub(crate) min_session_timeout_ms: i32,
    /// Upper bound of session timeouts, ms.
    pub(crate) max_session_timeout_ms: i32,
    /// `super:` and the digest of its password.
    pub(crate) super_digest: Option<String>,
    /// SASL: users and their passwords; `None`: no SASL.
    pub(crate) sasl_users: Option<sasl::Users>,
    /// SASL users who pass every permission.
    pub(crate) sasl_super_users: BTreeSet<String>,
    /// A failed SASL exchange leaves the connection open.
    pub(crate) allow_sasl_failed: bool,
    /// Connections must have an identity of one of these schemes; empty: they need not.
    pub(crate) demanded_schemes: BTreeSet<String>,
    /// A session that is heard more often is reported once in so long, ms.
    pub(crate) touch_interval_ms: u64,
    /// The liveness bound between servers, ms.
    pub(crate) sync_timeout_ms: u64,
    /// Serve reads without a quorum to clients that allow it.
    pub(crate) read_only_mode: bool,
    /// ZooKeeper protocol: what persistent watches missed is told after a reconnect.
    pub(crate) replay_persistent_watches: bool,
    /// New sessions of ZooKeeper clients are known to this server alone.
    pub(crate) local_sessions: bool,
    /// Such a session becomes known to all when it makes an ephemeral znode.
    pub(crate) local_sessions_upgrading: bool,
    /// Unresolved writes beyond which connections are not read.
    pub(crate) outstanding_max: usize,
    /// Largest transaction, bytes.
    pub(crate) txn_bytes_max: usize,
    /// Bytes of paths and data in one request.
    pub(crate) request_bytes_max: usize,
}

/// Whether clients can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Serving {
    /// No leader.
    No,
    Yes,
    Stopping,
}

/// Turns that somebody who brings an event takes with the core, one after another, before thread `core` does.
const TURNS_MAX: usize = 4;

/// The name of the core, and of the thread that takes turns with it.
const ROOM: &str = "core";

/// What front ends and threads of one server share.
pub(crate) struct NodeShared {
    pub(crate) options: NodeOptions,
    pub(crate) clock: Clock,
    pub(crate) stats: Stats,
    /// What the core has to deal with.
    pub(crate) core: Mailbox<CoreEvent>,
    /// The core, while it runs. Nothing else is locked by whoever locks it.
    pub(crate) room: Mutex<Option<Box<CoreLoop>>>,
    pub(crate) shared: Arc<Shared<View>>,
    /// Last published entry.
    pub(crate) applied: watch::Sender<Zxid>,
    /// Sessions heard since the core last looked.
    pub(crate) touched: Mutex<Vec<SessionId>>,
    /// Writes that wait to be executed here.
    pub(crate) unresolved: AtomicUsize,
    /// A disk of this server has less free space than it must have.
    full: AtomicBool,
    serving: watch::Sender<Serving>,
    related: AtomicBool,
    /// There has been no leader for longer than the liveness bound.
    quorumless: AtomicBool,
    /// The replicated settings hold the key of the session passwords.
    keyed: AtomicBool,
    status: ArcSwap<Status>,
    read_points: DashMap<u64, Arc<Lane>>,
    numbers: AtomicU64,
    nonces: AtomicU64,
    session_ids: AtomicI64,
    /// Sessions of the time without a quorum; see [`crate::frontend::Frontend::connect`].
    pub(crate) read_only_sessions: Mutex<LocalSessions>,
}

impl NodeShared {
    pub(crate) fn new(options: NodeOptions, clock: Clock, shared: Arc<Shared<View>>, seed: u64) -> NodeShared {
        let now = clock.now();
        let applied = shared.published().zxid;
        *shared.local.lock() = LocalSessions::new(options.touch_interval_ms);
        let read_only_sessions = Mutex::new(LocalSessions::new(options.touch_interval_ms));
        NodeShared {
            clock,
            stats: Stats::default(),
            core: Mailbox::default(),
            room: Mutex::default(),
            applied: watch::Sender::new(applied),
            touched: Mutex::default(),
            unresolved: AtomicUsize::new(0),
            full: AtomicBool::new(false),
            serving: watch::Sender::new(Serving::No),
            related: AtomicBool::new(false),
            quorumless: AtomicBool::new(false),
            keyed: AtomicBool::new(false),
            status: ArcSwap::default(),
            read_points: DashMap::new(),
            numbers: AtomicU64::new(1),
            nonces: AtomicU64::new(seed),
            session_ids: AtomicI64::new(first_session_id(options.server, now.wall_ms)),
            read_only_sessions,
            shared,
            options,
        }
    }

    /// Brings the core an event, and takes a turn with it, if nobody else does: who does looks again when it is done. The
    /// caller holds no lock, and has time for [`TURNS_MAX`] turns.
    pub(crate) fn bring(&self, event: CoreEvent) {
        self.core.leave(event);
        for _ in 0..TURNS_MAX {
            let Some(mut room) = self.room.try_lock() else { return };
            // Before the room is open again.
            let guard = PanicGuard(ROOM);
            let Some(core) = &mut *room else { return };
            if !core.turn(false) {
                // Thread `core` finds it gone at its next tick.
                *room = None;
                return;
            }
            drop(guard);
            drop(room);
            if self.core.is_empty() {
                return;
            }
        }
        self.core.wake_receiver();
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

    /// Whether this server reads on without a quorum (wire 2.11): it may, has been without one for too long, and has a
    /// state of the ensemble's.
    pub(crate) fn is_read_only(&self) -> bool {
        self.options.read_only_mode
            && self.quorumless.load(Ordering::Relaxed)
            && self.keyed.load(Ordering::Relaxed)
            && *self.serving.borrow() == Serving::No
    }

    /// Returns when there is a leader, or when this server stops. Cancel safe.
    pub(crate) async fn left_read_only(&self) {
        // An error means that the node is gone, and everything with it.
        let _ = self.serving.subscribe().wait_for(|serving| *serving != Serving::No).await;
    }

    /// Whether so many writes wait that connections must not be read.
    pub(crate) fn is_overloaded(&self) -> bool {
        self.unresolved.load(Ordering::Relaxed) > self.options.outstanding_max
    }

    /// Whether there is too little space on the disks for writes that may need some.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Notes the free space of the disks, bytes; says so when it becomes too little, and when it is enough again.
    fn set_free_space(&self, free: u64, needed: u64) {
        // Enough again is a bit more, so that the answer does not change with every file.
        let full = free < if self.is_full() { needed + needed / 8 } else { needed };
        if self.full.swap(full, Ordering::Relaxed) != full {
            let (free, needed) = (free >> 20, needed >> 20);
            if full {
                error!("only {free} MiB of disk are free, minFreeSpace is {needed} MiB: refusing writes but deletes");
            } else {
                warn!("{free} MiB of disk are free again: taking writes");
            }
        }
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

    /// Read points that the leader has not named yet.
    pub(crate) fn waiting_read_points(&self) -> usize {
        self.read_points.len()
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

    /// There has been no leader for longer than the liveness bound.
    pub(crate) fn set_quorumless(&self) {
        self.quorumless.store(true, Ordering::Relaxed);
    }

    /// There is a leader now, or none any more.
    pub(crate) fn set_related(&self, related: bool) {
        if related {
            self.quorumless.store(false, Ordering::Relaxed);
        }
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
pub(crate) fn system_random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Ends the process when what it guards panics: a half-dead leader is worse than a dead one.
struct PanicGuard(&'static str);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The hook of the program has ended it; this is for programs without one.
            error!(room = self.0, "a panic; this server stops at once");
            std::process::abort();
        }
    }
}

/// Starts a thread of the server. A panic in it ends the process.
fn spawn(name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _guard = PanicGuard(name);
        body();
    });
    spawned.map_err(StartError::Thread)
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system gave no random numbers.
    #[error("no random numbers from the system: {0}")]
    Random(std::io::Error),
    /// The data folder cannot be used.
    #[error("data folder: {0}")]
    Folder(#[from] DeviceError),
    /// Another process uses the data folder.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The folder of the log cannot be used.
    #[error("log folder {folder}: {source}")]
    LogFolder {
        /// Which.
        folder: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is in the data folder cannot be gone on with.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// A small file of the data folder.
    #[error(transparent)]
    Files(#[from] FolderError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which, as configured.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The port for peers cannot be opened.
    #[error(transparent)]
    Peers(#[from] LinkError),
    /// The certificates cannot be used.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// Starts servers.
pub struct Node;

/// A server that runs. Dropping it leaves it running; [`ServerHandle::stop`] ends it.
pub struct ServerHandle {
    node: Arc<NodeShared>,
    client_addr: SocketAddr,
    secure_addr: Option<SocketAddr>,
    admin_addr: Option<SocketAddr>,
    metrics_addr: Option<SocketAddr>,
    links: Option<PeerLinks>,
    stop: CancellationToken,
    tasks: TaskTracker,
    log: Mailbox<LogCommand>,
    log_read: Mailbox<ReadLog>,
    apply: Mailbox<ApplyCommand>,
    core_thread: JoinHandle<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Node {
    /// Starts a server: takes its data folder, recovers what is in it, opens its ports. It begins to serve clients when
    /// it has found a leader or leads; connections wait or are refused until then. Needs a Tokio runtime of several
    /// threads.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config) -> Result<ServerHandle, StartError> {
        let config = Arc::new(config);
        let random: [u8; 56] = system_random().map_err(StartError::Random)?;
        let (instance, seed) = (number(&random[..8]) | 1, number(&random[8..16]));
        let nonces = number(&random[16..24]);
        let password_key = random[24..].to_vec();
        let clock = Clock::new();

        // Ports first: a mistake in the configuration must not cost a start of the data folder.
        let tls = client_tls(&config).await?;
        let (listener, client_addr) = bind_clients(&config, &config.client_addr).await?;
        let secure = match &config.secure_client_addr {
            Some(address) => Some(bind_clients(&config, address).await?),
            None => None,
        };
        let secure_addr = secure.as_ref().map(|(_, address)| *address);
        let link_runtime = LinkRuntime::new().map_err(StartError::Thread)?;
        let peer_listener = match (&config.peer_bind, config.is_alone()) {
            (Some(address), false) => {
                let address = address.to_string();
                let binding = link_runtime.handle.spawn(async move { peer_link::bind(&address).await });
                Some(binding.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
            }
            _ => None,
        };

        let opening = config.clone();
        let opening_ms = clock.now().mono_ms;
        let opened = tokio::task::spawn_blocking(move || Opened::open(&opening, instance)).await;
        let Opened { folder, lock, log, recovered, store, states, peers } =
            opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        info!(
            server = %config.my_id, end = %recovered.end.zxid, applied = %recovered.applied.zxid,
            promise = recovered.promise.epoch, membership = ?recovered.identity.membership,
            start = recovered.identity.start_count, "recovered"
        );

        let mut apply = Apply::new(config.my_id, store, config.skip_entries.iter().copied().collect());
        apply.bound_feed(FeedBounds { bytes: config.change_feed_bytes, age_ms: config.change_feed_age_ms });
        let node = Arc::new(NodeShared::new(node_options(&config), clock, apply.shared(), nonces));
        node.stats.recovered(node.clock.now().mono_ms.saturating_sub(opening_ms), recovered.persisted);
        let identity = recovered.identity;
        let standing = Standing {
            cluster: identity.cluster,
            memory: match identity.membership {
                Membership::Empty => Memory::Fresh,
                Membership::Member => Memory::Whole,
                Membership::Amnesiac => Memory::Lost,
            },
            promise: recovered.promise.epoch,
            end: recovered.end.zxid,
        };
        let whole_since = log.record().whole_since;
        let member = Member::new(zab_options(&config, seed), recovered, member_options(&config, password_key));
        node.set_status(member.status());

        let outlets_log = Mailbox::default();
        let outlets_read = Mailbox::default();
        let outlets_apply = Mailbox::default();
        let prepare = Mailbox::default();
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();

        let links = peer_listener.map(|listener| {
            let (events, received) = mpsc::channel(LINK_EVENTS);
            let options = link_options(&config, &identity, (standing, whole_since), &peers, seed);
            let _there = link_runtime.handle.enter();
            let links = PeerLinks::start(options, listener, states.clone(), events);
            let receiving = receive_from_peers(node.clone(), links.clone(), received);
            let stop = stop.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = receiving => {}
                }
            });
            links
        });

        let fetch = snapshot_fetcher(&node, &config, &states, &tasks, &stop);
        let core = CoreLoop::new(
            node.clone(),
            member,
            CoreOutlets {
                log: outlets_log.clone(),
                log_read: outlets_read.clone(),
                apply: outlets_apply.clone(),
                links: links.clone(),
                fetch,
            },
        );
        let reader = log.reader();
        let preparer = log.preparer();
        let log_loop = LogLoop {
            node: node.clone(),
            log,
            device: folder,
            lock,
            peers,
            inbox: outlets_log.clone(),
            prepare: prepare.clone(),
            gather: Duration::from_millis(config.flush_delay_ms),
            slow: Duration::from_millis(config.fsync_warning_ms),
            retention_bytes: config.log_retention_bytes,
        };
        let apply_loop = ApplyLoop::new(
            node.clone(),
            apply,
            outlets_apply.clone(),
            states,
            config.flush_entries,
            config.flush_bytes,
        );
        let read_inbox = outlets_read.clone();
        let read_node = node.clone();
        let threads = vec![
            spawn("log", move || {
                log_loop.run();
                // The last thing that ends.
                drop(link_runtime);
            })?,
            spawn("log-read", move || log_loop::run_reader(&read_node, &reader, &read_inbox))?,
            spawn("log-prepare", move || log_loop::run_preparer(&preparer, &prepare))?,
            spawn("apply", move || apply_loop.run())?,
        ];
        let core_thread = spawn(ROOM, move || core.run())?;

        let listeners = ClientListeners { plain: listener, secure: secure.map(|(listener, _)| listener), tls };
        let operators = open_front_ends(&node, &config, listeners, &stop, &tasks);
        let (admin_addr, metrics_addr) = open_admin(&operators, &config, &stop, &tasks).await;
        tasks.spawn(watch_free_space(node.clone(), config.clone(), stop.clone()));
        info!(%client_addr, ?secure_addr, server = %config.my_id, "started");
        Ok(ServerHandle {
            node,
            client_addr,
            secure_addr,
            admin_addr,
            metrics_addr,
            links,
            stop,
            tasks,
            log: outlets_log,
            log_read: outlets_read,
            apply: outlets_apply,
            core_thread,
            threads,
        })
    }
}

impl ServerHandle {
    /// Where clients connect.
    pub fn client_addr(&self) -> SocketAddr {
        self.client_addr
    }

    /// Where clients connect over TLS, if they may.
    pub fn secure_addr(&self) -> Option<SocketAddr> {
        self.secure_addr
    }

    /// Where AdminServer answers; `None` if it is off or its port could not be opened.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin_addr
    }

    /// Where Prometheus finds the figures; `None` as for [`ServerHandle::admin_addr`].
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics_addr
    }

    /// Whether clients are served.
    pub fn is_serving(&self) -> bool {
        self.node.is_serving()
    }

    /// The ordering machine's state, at most some 20 ms old.
    pub fn status(&self) -> Arc<Status> {
        self.node.status()
    }

    /// Asks the ordering machine, as an operator.
    pub fn admin(&self, admin: Admin) {
        self.node.core.push(CoreEvent::Admin(admin));
    }

    /// Ends the server: connections are closed, then the queues drain, the log is synced and the store flushed.
    pub async fn stop(self) {
        let ServerHandle { node, links, stop, tasks, log, log_read, apply, core_thread, threads, .. } = self;
        node.stop_serving();
        if let Some(links) = &links {
            // Streams that are up go on while clients are seen off; no new one begins on a server that is leaving.
            links.quiesce();
        }
        // What is answered already gets out; nobody waits for more than that.
        node.shared.lanes.close_all(CloseReason::ShuttingDown);
        let _ = tokio::time::timeout(GOODBYE, async {
            while !node.shared.lanes.is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        node.core.push(CoreEvent::Stop);
        join(vec![core_thread]).await;
        if let Some(links) = links {
            // While the task that takes what they report still runs: they end without waiting for anybody.
            links.stop().await;
        }
        stop.cancel();
        tasks.close();
        if tokio::time::timeout(2 * GOODBYE, tasks.wait()).await.is_err() {
            warn!("some connections did not end in time");
        }
        log.push(LogCommand::Stop);
        log_read.push(ReadLog::Stop);
        apply.push(ApplyCommand::Stop);
        join(threads).await;
        // Whoever still reads keeps the store open; the next start in this process would find it locked.
        let _ = tokio::time::timeout(GOODBYE, async {
            while Arc::strong_count(&node) > 1 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        info!(server = %node.options.server, "stopped");
    }
}

/// Where streams between servers run: on a thread of their own, since reads of clients, which may wait for the disk, must
/// not keep heartbeats back.
struct LinkRuntime {
    handle: tokio::runtime::Handle,
    runtime: Option<tokio::runtime::Runtime>,
}

impl LinkRuntime {
    fn new() -> std::io::Result<LinkRuntime> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).thread_name("peers").enable_all().build()?;
        Ok(LinkRuntime { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }
}

impl Drop for LinkRuntime {
    fn drop(&mut self) {
        // A runtime may not be dropped where one runs.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn join(threads: Vec<JoinHandle<()>>) {
    let joining = tokio::task::spawn_blocking(move || {
        for thread in threads {
            // A panic in one of them has ended the process.
            let _ = thread.join();
        }
    });
    let _ = joining.await;
}

async fn bind_clients(config: &Config, wanted: &HostPort) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address: wanted.to_string(), source };
    let address = tokio::net::lookup_host((wanted.host.as_str(), wanted.port))
        .await
        .map_err(failed)?
        .next()
        .ok_or_else(|| failed(std::io::ErrorKind::AddrNotAvailable.into()))?;
    let listener = listen::bind(address, config.client_backlog).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// The certificates of the client ports, if one of them speaks TLS.
async fn client_tls(config: &Config) -> Result<Option<Arc<Tls>>, StartError> {
    let Some(tls) = &config.tls else { return Ok(None) };
    let options = TlsOptions {
        key_store: tls.key_store.clone(),
        trust_store: tls.trust_store.clone(),
        client_auth: match tls.client_auth {
            config::ClientAuth::None => tls::ClientAuth::None,
            config::ClientAuth::Want => tls::ClientAuth::Want,
            config::ClientAuth::Need => tls::ClientAuth::Need,
        },
        tls12: tls.tls12,
        tls13: tls.tls13,
        cipher_suites: tls.cipher_suites.clone(),
    };
    let loaded = tokio::task::spawn_blocking(move || Tls::load(options)).await;
    Ok(Some(Arc::new(loaded.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)))
}

fn node_options(config: &Config) -> NodeOptions {
    let ms = |ms: u64| i32::try_from(ms).unwrap_or(i32::MAX);
    NodeOptions {
        server: config.my_id,
        min_session_timeout_ms: ms(config.min_session_timeout_ms),
        max_session_timeout_ms: ms(config.max_session_timeout_ms),
        super_digest: config.super_digest.as_ref().map(|secret| secret.reveal().to_owned()),
        sasl_users: config.auth.sasl_users.clone(),
        sasl_super_users: config.auth.sasl_super_users.clone(),
        allow_sasl_failed: config.auth.allow_sasl_failed,
        demanded_schemes: config.auth.demanded_schemes.clone(),
        // A client that is heard often is reported a few times in its shortest timeout.
        touch_interval_ms: (config.min_session_timeout_ms / 10).clamp(1, TOUCH_INTERVAL_MAX_MS),
        read_only_mode: config.read_only_mode,
        replay_persistent_watches: config.replay_persistent_watches,
        sync_timeout_ms: config.sync_timeout_ms,
        // As in ZooKeeper, where a server alone has one kind of sessions.
        local_sessions: config.local_sessions && !config.is_alone(),
        local_sessions_upgrading: config.local_sessions_upgrading,
        outstanding_max: config.global_outstanding_limit,
        txn_bytes_max: TXN_BYTES_MAX,
        request_bytes_max: config.jute_max_buffer,
    }
}

fn zab_options(config: &Config, seed: u64) -> Options {
    let budget = config.memory_budget();
    let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    Options {
        id: config.my_id,
        quorum: QuorumSet::majority(config.voters()),
        members: config
            .servers
            .iter()
            .map(|(id, spec)| (*id, if spec.observer { MemberKind::Observer } else { MemberKind::Voter }))
            .collect(),
        sync_timeout_ms: config.sync_timeout_ms,
        init_timeout_ms: config.init_timeout_ms,
        ping_interval_ms: config.ping_interval_ms,
        election_quiet_ms: config.election_quiet_ms,
        tail_cache_bytes: bytes(budget.tail_cache),
        window_bytes: bytes(budget.window),
        learner_window_bytes: LEARNER_WINDOW_BYTES.min(peer_link::QUEUE_BYTES_MAX / 2),
        message_bytes: MESSAGE_BYTES,
        snapshot_threshold_bytes: config.snapshot_threshold_bytes,
        counter_limit: COUNTER_LIMIT,
        seed,
    }
}

fn member_options(config: &Config, password_key: Vec<u8>) -> MemberOptions {
    let membership = config.membership_text(0);
    let config_text = membership.rsplit_once("\nversion=").map_or("", |(members, _)| members).to_owned();
    MemberOptions {
        settings: Settings {
            skip_acl: config.skip_acl,
            enforce_quota: config.enforce_quota,
            extended_types: config.extended_types,
            keeper_extensions: config.keeper_extensions,
            container_never_used_ms: i64::try_from(config.container_never_used_ms).unwrap_or(i64::MAX),
            ephemerals_per_session: config.ephemerals_per_session,
            password_key,
            config_text,
            ..Settings::default()
        },
        reap_interval_ms: config.reaper_interval_ms,
        touch_interval_ms: TOUCH_INTERVAL_MAX_MS,
    }
}

// What the links believe is what the folder remembers.
const _: () = assert!(peer_link::START_COUNT_MAX == folder::START_COUNT_MAX);

fn link_options(
    config: &Config,
    identity: &Identity,
    (standing, whole_since): (Standing, u64),
    peers: &PeerBook,
    seed: u64,
) -> LinkOptions {
    let others = || config.servers.iter().filter(|(id, _)| **id != config.my_id);
    LinkOptions {
        me: config.my_id,
        instance: identity.instance,
        start_count: identity.start_count,
        feature_level: Settings::default().feature_level,
        config_hash: config.config_hash(),
        secret: config.peer_secret.as_ref().map(|secret| secret.reveal().to_owned()).unwrap_or_default(),
        peers: others().map(|(id, spec)| (*id, spec.peer_addr().to_string())).collect(),
        connect_timeout: Duration::from_millis(config.peer_connect_timeout_ms),
        keep_alive: Duration::from_millis(config.sync_timeout_ms),
        queue_bytes: peer_link::QUEUE_BYTES_MAX,
        seed,
        remembered: peers
            .latest()
            .into_iter()
            .map(|(peer, SeenDisk { instance, start_count, mark })| {
                let mark = Mark { start_count: mark.start_count, promise: mark.promise, end: mark.end };
                (peer, StartMemory { instance, start_count, mark })
            })
            .collect(),
        superseded: peers
            .superseded()
            .into_iter()
            .map(|(peer, SeenDisk { instance, start_count, .. })| (peer, Disk { instance, start_count }))
            .collect(),
        whole_since,
        standing,
    }
}

pub(crate) fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes are cut off"))
}

/// Looks at the free space of the disks, again and again.
async fn watch_free_space(node: Arc<NodeShared>, config: Arc<Config>, stop: CancellationToken) {
    if config.min_free_bytes == 0 {
        return;
    }
    let free = |folder: &Path| rustix::fs::statvfs(folder).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    while stop.run_until_cancelled(tokio::time::sleep(FREE_SPACE_INTERVAL)).await.is_some() {
        match (free(&config.data_dir), free(&config.data_log_dir)) {
            (Ok(state), Ok(log)) => node.set_free_space(state.min(log), config.min_free_bytes),
            (Err(error), _) | (_, Err(error)) => warn!(%error, "the free space of the disk cannot be told"),
        }
    }
}

/// What was found in a data folder, opened.
struct Opened {
    folder: Arc<FileDevice>,
    lock: FolderLock,
    log: TxnLog,
    recovered: Recovered,
    store: RocksStore,
    states: Arc<StateFolders>,
    peers: PeerBook,
}

impl Opened {
    /// Takes the folder and recovers it. Blocks.
    fn open(config: &Config, instance: u64) -> Result<Opened, StartError> {
        let folder = Arc::new(FileDevice::open(&config.data_dir)?);
        let lock = FolderLock::acquire(&folder)?;
        place_log(config).map_err(|source| StartError::LogFolder { folder: config.data_log_dir.clone(), source })?;
        let peers = PeerBook::load(&*folder)?;
        let budget = config.memory_budget();
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let options = RecoverOptions {
            server: config.my_id,
            cluster: None,
            instance,
            log: LogOptions { segment_bytes: config.segment_bytes, retention_bytes: config.log_retention_bytes },
            tail_cache_bytes: bytes(budget.tail_cache),
        };
        let store_options =
            StoreOptions { block_cache_bytes: bytes(budget.block_cache), memtable_bytes: bytes(budget.memtables) };
        let mut opener = RocksOpener::new(folder.root(), store_options);
        let recovery = recover(folder.clone(), &options, &mut opener)?;
        for note in &recovery.notes {
            warn!("{note}");
        }
        let store = opener.into_store().expect("recovery ends with an open store");
        let states = Arc::new(StateFolders::new(folder.clone(), store_options));
        Ok(Opened { folder, lock, log: recovery.log, recovered: recovery.recovered, store, states, peers })
    }
}

/// Lets the log lie in `dataLogDir`, if that is another folder: behind a link, so that everything else finds it where it
/// always is. A log that exists stays where it is.
fn place_log(config: &Config) -> std::io::Result<()> {
    if config.data_log_dir == config.data_dir {
        return Ok(());
    }
    std::fs::create_dir_all(&config.data_log_dir)?;
    let link = config.data_dir.join(LOG_DIR);
    let target = std::path::absolute(&config.data_log_dir)?;
    match std::fs::symlink_metadata(&link) {
        Ok(found) if found.is_symlink() => {}
        Ok(_) => warn!(log = %link.display(), "the log stays in dataDir: stop the server to move it to dataLogDir"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // A new log begins in a folder of its own: what was set aside by a former start is not touched.
            let fresh = (1..)
                .map(|n| target.join(format!("{LOG_DIR}-{}-{n}", config.my_id)))
                .find(|folder| !folder.exists())
                .expect("numbers do not end");
            std::fs::create_dir(&fresh)?;
            files::sync_dir(&target)?;
            std::os::unix::fs::symlink(&fresh, &link)?;
            files::sync_dir(&config.data_dir)?;
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// What the core calls to fetch a snapshot.
fn snapshot_fetcher(
    node: &Arc<NodeShared>,
    config: &Arc<Config>,
    states: &Arc<StateFolders>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> StartFetch {
    let (node, config, states) = (node.clone(), config.clone(), states.clone());
    let (tasks, stop) = (tasks.clone(), stop.clone());
    let runtime = tokio::runtime::Handle::current();
    Box::new(move |request, leader, snapshot| {
        let (node, config, states) = (node.clone(), config.clone(), states.clone());
        let (runtime, stop) = (runtime.clone(), stop.clone());
        // Files are written on the way: not on a thread that connections wait for.
        tasks.spawn_blocking_on(
            {
                let runtime = runtime.clone();
                move || {
                    let Some(spec) = config.servers.get(&leader) else { return };
                    let address = spec.peer_addr().to_string();
                    let secret = config.peer_secret.as_ref().map_or("", |secret| secret.reveal());
                    let timeout = Duration::from_millis(config.peer_connect_timeout_ms);
                    let cluster = node.status().identity.cluster;
                    let fetched = runtime.block_on(async {
                        tokio::select! {
                            () = stop.cancelled() => Err("this server is going down".to_owned()),
                            fetched = states.fetch(request, &address, &snapshot, cluster, secret, timeout) => fetched,
                        }
                    });
                    if let Err(error) = &fetched {
                        warn!(%leader, zxid = %snapshot.position.zxid, "a snapshot could not be fetched: {error}");
                    }
                    node.core.push(CoreEvent::SnapshotFetched { request, ok: fetched.is_ok() });
                }
            },
            &runtime,
        );
    })
}

/// Opens the ports for operators, those that are wanted. One that cannot be opened is a warning: clients are served all the
/// same. Returns where AdminServer and Prometheus are answered.
async fn open_admin(
    operators: &Arc<Operators>,
    config: &Config,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> (Option<SocketAddr>, Option<SocketAddr>) {
    let idle = Duration::from_millis(config.admin_idle_timeout_ms);
    let open = async |what: &str, key: &str, address: &HostPort| {
        let bound = http::bind(&address.host, address.port).await.and_then(|l| Ok((l.local_addr()?, l)));
        match bound {
            Ok((address, listener)) => {
                info!(%address, "{what}");
                Some((address, listener))
            }
            Err(error) => {
                warn!(%address, %error, "{what}: the port cannot be opened, going on without it; see {key}");
                None
            }
        }
    };
    let mut opened = (None, None);
    if let Some(address) = &config.admin
        && let Some((address, listener)) = open("AdminServer", "admin.serverPort", address).await
    {
        let site = Arc::new(AdminSite::new(operators.clone(), &config.admin_command_url));
        tasks.spawn(http::serve(listener, site, idle, stop.clone()));
        opened.0 = Some(address);
    }
    if let Some(address) = &config.metrics
        && let Some((address, listener)) = open("metrics for Prometheus", "metricsProvider.httpPort", address).await
    {
        let site = Arc::new(MetricsSite::new(operators.clone()));
        tasks.spawn(http::serve(listener, site, idle, stop.clone()));
        opened.1 = Some(address);
    }
    opened
}

/// The open ports for clients.
struct ClientListeners {
    plain: TcpListener,
    secure: Option<TcpListener>,
    tls: Option<Arc<Tls>>,
}

/// Opens the client ports to sessions of both protocols and to four-letter words.
fn open_front_ends(
    node: &Arc<NodeShared>,
    config: &Arc<Config>,
    listeners: ClientListeners,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> Arc<Operators> {
    let frontend = Frontend::new(node.clone());
    let words = match &config.whitelist {
        config::Whitelist::All => Whitelist::parse("*"),
        config::Whitelist::Only(words) => {
            Whitelist::parse(&words.iter().map(String::as_str).collect::<Vec<_>>().join(","))
        }
    };
    let options = ListenOptions {
        connections_per_address_max: config.max_client_cnxns as usize,
        connections_max: config.max_cnxns as usize,
        wire: WireOptions {
            max_frame_bytes: config.jute_max_buffer,
            handshake_timeout: Duration::from_millis(config.min_session_timeout_ms.max(HANDSHAKE_MIN_MS)),
        },
        // Whatever the list says: probes rely on the first (`FourLetterCommands`), clients that look for a server on the
        // other.
        words: if config.read_only_mode { words.with(Word::Srvr).with(Word::Isro) } else { words.with(Word::Srvr) },
        secure: config.tls.as_ref().zip(listeners.tls.clone()).map(|(secure, tls)| SecureOptions {
            tls,
            handshakes_max: secure.handshakes_max,
            unified: config.port_unification,
            super_user: secure.super_user.clone(),
        }),
    };
    if let Some((tls, interval_ms)) = listeners.tls.zip(config.tls.as_ref().and_then(|tls| tls.reload_interval_ms)) {
        tasks.spawn(tls.watch(Duration::from_millis(interval_ms), stop.clone()));
    }
    let stats = FrontendStats::new();
    let operators = Operators::new(report::reporter(node.clone(), config.clone()), stats.clone());
    let (listen, grpc_connections) = Listen::new(frontend.clone(), options, operators.clone());
    let listen = Arc::new(listen);
    if let Some(listener) = listeners.secure {
        let (listen, stopped) = (listen.clone(), stop.clone());
        tasks.spawn(async move { listen.serve_secure(listener, stopped).await });
    }
    let stopped = stop.clone();
    tasks.spawn(async move { listen.serve(listeners.plain, stopped).await });
    let router = tonic::transport::Server::builder()
        .initial_stream_window_size(grpc::STREAM_WINDOW)
        .initial_connection_window_size(grpc::CONNECTION_WINDOW)
        .http2_adaptive_window(Some(false))
        .add_service(grpc::service(frontend, stats));
    let stopped = stop.clone().cancelled_owned();
    tasks.spawn(async move {
        if let Err(error) = router.serve_with_incoming_shutdown(grpc_connections, stopped).await {
            warn!(%error, "the gRPC service ended");
        }
    });
    operators
}
