//! One stream to each other server: hello, link numbers, a bounded queue; and snapshots on connections of their own.
//!
//! The server with the larger id dials; both directions use the one stream. What the ordering machine needs from it
//!: order within a stream, nothing after its end, no mixing of streams. HTTP/2 gives the first two; the
//! third is the *link number*: every stream that comes up gets a larger one, each side counting for itself, and
//! everything that is reported or sent names the link it belongs to. A new stream of a peer replaces the old one.
//!
//! Nothing here waits for a slow peer: a queue that overflows ends its stream, and the learner catches up from the log
//! over the next one. Nothing here judges liveness either (the core pings); HTTP/2's keep-alive is a backstop only.
//!
//! Read first: [`PeerLinks`], [`LinkEvent`], [`check_hello`].

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use corral_proto::pb::peer::peer_client::PeerClient;
use corral_proto::pb::peer::peer_server::{Peer, PeerServer};
use corral_proto::pb::peer::{self as pb, FetchChunk, FetchRequest, Frame, Hello, fetch_chunk, frame};
use corral_proto::{ServerId, Zxid};
use futures::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

/// Version of what servers say to each other. Servers of different versions refuse each other.
pub const PROTOCOL_VERSION: u32 = 3;
/// Bytes queued for one peer beyond which its stream is ended: the 8 MiB that a leader keeps in flight to a learner, the
/// largest message on top, and room for what is no history.
pub const QUEUE_BYTES_MAX: usize = 16 << 20;
/// Largest frame: the largest transaction (4 MiB) and what it travels with.
pub const FRAME_BYTES_MAX: usize = 8 << 20;
/// HTTP/2 windows: one learner's window in a stream, two streams' worth in a connection.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// A connection that says no Hello for so long is ended.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two attempts to reach a peer: doubled from the first to the second.
const BACKOFF_MIN_MS: u64 = 50;
const BACKOFF_MAX_MS: u64 = 1000;
/// A stream that was up for so long was sound: the next attempt begins with the shortest pause again. One that ends right
/// after it began, as with a server that is going down, counts as a failure.
const SOUND_AFTER: Duration = Duration::from_millis(BACKOFF_MAX_MS);
/// Backstop for connections that died without a word; liveness proper is the core's. Who dialled a stream looks closer
/// ([`LinkOptions::keep_alive`]): nobody else can begin it again.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of a file in one chunk of a snapshot.
const CHUNK_BYTES: usize = 512 << 10;
/// Snapshots sent at once; further learners wait. Sending competes with the log for the disk.
const SNAPSHOTS_AT_ONCE: usize = 2;
/// Chunks read ahead of the network.
const CHUNKS_AHEAD: usize = 4;
/// A snapshot that makes no progress for so long is given up.
const FETCH_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Files of one snapshot; a store at its limits has some thousands.
const SNAPSHOT_FILES_MAX: usize = 200_000;
/// The largest start count that is believed, as in the data folder (`storage::folder` says why).
pub const START_COUNT_MAX: u64 = 1 << 40;
/// Replaced disks of one peer that are remembered.
const SUPERSEDED_MAX: usize = 8;

/// Who this server is to its peers, and who they are.
#[derive(Clone)]
pub struct LinkOptions {
    /// This server.
    pub me: ServerId,
    /// Its disk (see `Identity`).
    pub instance: u64,
    /// Its start.
    pub start_count: u64,
    /// Highest version of outcomes it can execute (P34).
    pub feature_level: u32,
    /// Hash of the members; peers with another one are refused.
    pub config_hash: u64,
    /// Text of `peerSecretFile`; empty without one. The same on every server.
    pub secret: String,
    /// Every other member and where it listens, as `host:port`.
    pub peers: BTreeMap<ServerId, String>,
    /// Limit of one attempt to connect.
    pub connect_timeout: Duration,
    /// A stream that this server dialled and that is silent for so long is asked whether it lives; without an answer for
    /// twice as long it is ended, and dialled again.
    pub keep_alive: Duration,
    /// See [`QUEUE_BYTES_MAX`].
    pub queue_bytes: usize,
    /// Of the jitter between attempts.
    pub seed: u64,
    /// What earlier processes on this data folder knew of the peers' starts.
    pub remembered: BTreeMap<ServerId, StartMemory>,
    /// Disks of peers that were replaced by later ones, and their last starts.
    pub superseded: Vec<(ServerId, Disk)>,
    /// The start since which this server remembers everything, unless it does not now.
    pub whole_since: u64,
    /// What it remembers at its start; see [`PeerLinks::set_standing`].
    pub standing: Standing,
}

/// Whether a server remembers what it promised and acknowledged (P9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Memory {
    /// There was nothing yet.
    #[default]
    Fresh,
    /// All of it.
    Whole,
    /// Not all of it: nobody counts on it.
    Lost,
}

/// What a server remembers, durably: peers compare it with what they saw of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its cluster; 0 as long as it does not know.
    pub cluster: u64,
    /// Whether it counts.
    pub memory: Memory,
    /// The epoch it has promised.
    pub promise: u32,
    /// Where its log ends.
    pub end: Zxid,
}

/// A start of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Which disk.
    pub instance: u64,
    /// Which start.
    pub start_count: u64,
}

/// What a server said that it holds, in the epoch it has promised (see `Mark` in `peer.proto`). Promise 0: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// In which start.
    pub start_count: u64,
    /// The epoch.
    pub promise: u32,
    /// Everything up to here.
    pub end: Zxid,
}

/// The last start of a peer that this server has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartMemory {
    /// Which disk.
    pub instance: u64,
    /// Its highest start.
    pub start_count: u64,
    /// What it said last that it holds.
    pub mark: Mark,
}

/// What happens on the links. Events of one link come in order, `Up` first; those of a link that is not the peer's
/// latest may still trickle in after the `Up` of the next and mean nothing any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// A stream is up; every former one of this peer is void.
    Up {
        /// Who.
        peer: ServerId,
        /// Larger than every former link of this process.
        link: u64,
        /// The peer's disk.
        instance: u64,
        /// The peer's start.
        start_count: u64,
        /// The start since which the peer remembers everything: what it said before is void.
        whole_since: u64,
        /// It is of another cluster: nothing that it says of itself is to be remembered.
        foreign: bool,
        /// What the peer can execute.
        feature_level: u32,
    },
    /// A frame came.
    Frame {
        /// From whom.
        peer: ServerId,
        /// Over which stream.
        link: u64,
        /// A batch of messages.
        bytes: Bytes,
    },
    /// The peer said what it holds: to be remembered for the next process, too.
    Marked {
        /// Who.
        peer: ServerId,
        /// Its disk.
        instance: u64,
        /// What.
        mark: Mark,
    },
    /// The stream ended; nothing of it follows.
    Down {
        /// Whose.
        peer: ServerId,
        /// Which.
        link: u64,
    },
    /// This server and a peer do not talk to each other; said again only when the reason changes.
    Refused {
        /// Who.
        peer: ServerId,
        /// Why, naming both.
        reason: String,
        /// The peer has seen more of this very data folder: it is an old copy, and what it promised since is not in it (P9).
        /// Up to which start what was seen reaches: the copy must count its starts from there.
        stale: Option<u64>,
    },
}

/// Why a link, or the fetching of a snapshot, failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The address cannot be listened on.
    #[error("cannot listen for peers on {addr}: {source}")]
    Bind {
        /// Which.
        addr: String,
        /// Why.
        source: std::io::Error,
    },
    /// The address cannot be reached.
    #[error("cannot connect to {addr}: {reason}")]
    Connect {
        /// Which.
        addr: String,
        /// Why.
        reason: String,
    },
    /// One of the two does not accept the other.
    #[error("{0}")]
    Refused(String),
    /// The other side broke the rules of the stream.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// The stream ended.
    #[error("stream ended: {0}")]
    Ended(String),
    /// What was fetched cannot be stored.
    #[error("cannot store the snapshot: {0}")]
    Store(#[from] std::io::Error),
}

/// Snapshots that can be sent. Called on threads that may block.
pub trait SnapshotSource: Send + Sync + 'static {
    /// What snapshot `id` of `cluster` consists of.
    ///
    /// # Errors
    /// In words, if it is gone or the cluster is another.
    fn manifest(&self, id: u64, cluster: u64) -> Result<SnapshotManifest, String>;

    /// Up to `max` bytes of a file from `offset` on; empty at its end only.
    ///
    /// # Errors
    /// Those of the disk.
    fn read(&self, id: u64, file: &str, offset: u64, max: usize) -> std::io::Result<Bytes>;
}

/// The files of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotManifest {
    /// The state it contains.
    pub zxid: Zxid,
    /// Plain names and sizes in bytes, in the order in which they are sent.
    pub files: Vec<(String, u64)>,
}

/// Part of a snapshot that arrived.
#[derive(Clone, Debug)]
pub enum Fetched<'a> {
    /// First: what will come. Names are plain: no folder, no `..`.
    Manifest(&'a SnapshotManifest),
    /// Bytes of a file, its checksum verified. Files come one after the other, each without gaps.
    Chunk {
        /// Its name.
        file: &'a str,
        /// Where the bytes belong.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
}

/// All links of this server. Dropping it does not end them; [`PeerLinks::stop`] does.
#[derive(Clone)]
pub struct PeerLinks {
    shared: Arc<Shared>,
}

struct Shared {
    options: LinkOptions,
    /// Counts the links of this process.
    links: AtomicU64,
    peers: BTreeMap<ServerId, PeerState>,
    standing: Mutex<Standing>,
    events: mpsc::Sender<LinkEvent>,
    source: Arc<dyn SnapshotSource>,
    sending: Arc<Semaphore>,
    /// No new streams; those that are up go on.
    quiet: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
}

struct PeerState {
    addr: String,
    /// Held from the choice of a link number to the report of `Up`, so that reports come in the order of numbers.
    coming_up: tokio::sync::Mutex<()>,
    live: Mutex<Live>,
}

#[derive(Default)]
struct Live {
    current: Option<LiveLink>,
    memory: StartMemory,
    /// Its disks before that one.
    superseded: Vec<Disk>,
    /// The last reason reported, so that it is said once.
    refused: Option<String>,
}

struct LiveLink {
    link: u64,
    /// See [`LinkEvent::Up`].
    foreign: bool,
    queue: Queue,
}

/// The sending half of a stream's queue.
#[derive(Clone)]
struct Queue {
    frames: mpsc::UnboundedSender<Frame>,
    /// Bytes in `frames`; bounded by `LinkOptions::queue_bytes`, which is what makes the channel's lack of a bound right.
    queued: Arc<AtomicUsize>,
    end: CancellationToken,
}

impl Live {
    /// A stream of this start of this disk is up.
    fn see(&mut self, hello: &Hello) {
        let former = self.memory;
        if hello.start_count > START_COUNT_MAX {
            return;
        }
        if former.instance == hello.instance {
            // What it said before it lost its memory is void.
            let mark = if former.mark.start_count >= hello.whole_since { former.mark } else { Mark::default() };
            self.memory = StartMemory { start_count: hello.start_count, mark, ..former };
            return;
        }
        self.superseded.retain(|disk| disk.instance != hello.instance);
        if former.instance != 0 {
            self.superseded.push(Disk { instance: former.instance, start_count: former.start_count });
            if self.superseded.len() > SUPERSEDED_MAX {
                self.superseded.remove(0);
            }
        }
        self.memory = StartMemory { instance: hello.instance, start_count: hello.start_count, mark: Mark::default() };
    }
}

/// What a stream sends. A type of its own because the compiler cannot prove a future `Send` that holds a boxed trait
/// object across tonic's calls.
struct Outgoing(stream::BoxStream<'static, Frame>);

impl Stream for Outgoing {
    type Item = Frame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        self.0.poll_next_unpin(cx)
    }
}

impl PeerLinks {
    /// Listens for the peers with larger ids and dials those with smaller ones. Needs a Tokio runtime. Frames wait in
    /// `events` and then in the peers' windows when nobody takes them; a capacity of some dozens is plenty.
    pub fn start(
        options: LinkOptions,
        listener: TcpListener,
        source: Arc<dyn SnapshotSource>,
        events: mpsc::Sender<LinkEvent>,
    ) -> PeerLinks {
        let peers = options
            .peers
            .iter()
            .map(|(id, addr)| {
                let memory = options.remembered.get(id).copied().unwrap_or_default();
                let superseded =
                    options.superseded.iter().filter(|(peer, _)| peer == id).map(|(_, disk)| *disk).collect();
                let live = Mutex::new(Live { memory, superseded, ..Live::default() });
                (*id, PeerState { addr: addr.clone(), coming_up: tokio::sync::Mutex::new(()), live })
            })
            .collect();
        let shared = Arc::new(Shared {
            standing: Mutex::new(options.standing),
            options,
            links: AtomicU64::new(0),
            peers,
            events,
            source,
            sending: Arc::new(Semaphore::new(SNAPSHOTS_AT_ONCE)),
            quiet: CancellationToken::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        shared.tasks.spawn(serve(shared.clone(), listener));
        for peer in shared.peers.keys().filter(|peer| **peer < shared.options.me) {
            shared.tasks.spawn(dial_for_ever(shared.clone(), *peer));
        }
        PeerLinks { shared }
    }

    /// Queues a frame for `peer`. Never blocks; may be called from any thread. Dropped if `link` is not the peer's
    /// current one any more. A queue that would outgrow its bound ends the stream instead ([`LinkEvent::Down`] follows).
    ///
    /// Returns whether it was queued.
    pub fn send(&self, peer: ServerId, link: u64, bytes: Bytes) -> bool {
        let Some(state) = self.shared.peers.get(&peer) else { return false };
        let live = state.live.lock();
        let Some(current) = live.current.as_ref().filter(|c| c.link == link) else { return false };
        let bound = self.shared.options.queue_bytes;
        let queued = current.queue.queued.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        if queued > bound {
            if !current.queue.end.is_cancelled() {
                warn!(%peer, link, queued, bound, "peer does not take what it is sent; ending the stream");
                current.queue.end.cancel();
            }
            return false;
        }
        current.queue.frames.send(Frame { body: Some(frame::Body::Messages(bytes)) }).is_ok()
    }

    /// What this server remembers now, for streams to come: not less than it ever said ([`PeerLinks::tell`]).
    pub fn set_standing(&self, standing: Standing) {
        *self.shared.standing.lock() = standing;
    }

    /// Tells every peer with a stream what this server holds in the epoch it has promised.
    pub fn tell(&self, promise: u32, end: Zxid) {
        let mark = pb::Mark { start_count: self.shared.options.start_count, promise, end: end.0 };
        for peer in self.shared.peers.values() {
            if let Some(current) = &peer.live.lock().current {
                // Who is going away need not know.
                let _ = current.queue.frames.send(Frame { body: Some(frame::Body::Mark(mark)) });
            }
        }
    }

    /// Ends this link, if it is the peer's current one: the peer broke a rule. It may connect again.
    pub fn close(&self, peer: ServerId, link: u64) {
        let Some(state) = self.shared.peers.get(&peer) else { return };
        if let Some(current) = state.live.lock().current.as_ref().filter(|c| c.link == link) {
            current.queue.end.cancel();
        }
    }

    /// The starts of the peers that this server has seen, for the next process on this data folder.
    pub fn remembered(&self) -> BTreeMap<ServerId, StartMemory> {
        let seen = self.shared.peers.iter().map(|(id, peer)| (*id, peer.live.lock().memory));
        seen.filter(|(_, memory)| *memory != StartMemory::default()).collect()
    }

    /// Neither accepts nor dials any more; streams that are up go on. For a server that is about to stop: a stream
    /// that would end at once only keeps the peer from looking elsewhere.
    pub fn quiesce(&self) {
        self.shared.quiet.cancel();
    }

    /// Ends every link and waits until nothing of it runs.
    pub async fn stop(&self) {
        self.quiesce();
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

/// Opens the port for peers.
///
/// # Errors
/// [`LinkError::Bind`].
pub async fn bind(addr: &str) -> Result<TcpListener, LinkError> {
    TcpListener::bind(addr).await.map_err(|source| LinkError::Bind { addr: addr.to_string(), source })
}

/// What is known of the sender of a Hello.
#[derive(Clone, Debug, Default)]
struct Known {
    memory: StartMemory,
    superseded: Vec<Disk>,
}

/// What a server says of its own data folder.
struct Claim {
    instance: u64,
    start_count: u64,
    whole_since: u64,
    standing: Standing,
}

impl Claim {
    fn of(hello: &Hello) -> Claim {
        let memory = match hello.memory {
            0 => Memory::Fresh,
            1 => Memory::Whole,
            _ => Memory::Lost,
        };
        Claim {
            instance: hello.instance,
            start_count: hello.start_count,
            whole_since: hello.whole_since,
            standing: Standing { cluster: hello.cluster, memory, promise: hello.promise, end: Zxid(hello.end) },
        }
    }
}

/// What the sender of a Hello says that it has seen of this server.
fn known_to(hello: &Hello) -> Known {
    let mark = hello.remembers_mark.unwrap_or_default();
    Known {
        memory: StartMemory {
            instance: hello.remembers_instance,
            start_count: hello.remembers_start_count,
            mark: Mark { start_count: mark.start_count, promise: mark.promise, end: Zxid(mark.end) },
        },
        superseded: hello
            .superseded
            .iter()
            .map(|disk| Disk { instance: disk.instance, start_count: disk.start_count })
            .collect(),
    }
}

/// Why two servers do not talk to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refusal {
    /// Naming both.
    reason: String,
    /// *This* server runs on an old copy of its data folder: the start of it that was seen.
    stale: Option<u64>,
}

impl Refusal {
    fn new(reason: String) -> Refusal {
        Refusal { reason, stale: None }
    }
}

/// Why the data folder of `whose` is an old copy, by what `witness` has seen of it (P9), and the start that was seen; `None`:
/// as far as is known it is not.
fn old_copy(whose: ServerId, claim: &Claim, witness: ServerId, known: &Known) -> Option<(String, u64)> {
    let seen = &known.memory;
    let begin = format!("server {whose} runs on an old copy of its data folder");
    let Claim { instance, start_count, whole_since, standing } = *claim;
    // Nobody has seen more: whoever says so is no witness.
    let believed = |start: u64| start <= START_COUNT_MAX;
    if seen.instance == instance && seen.start_count > start_count && believed(seen.start_count) {
        let reason = format!(
            "{begin}: this is its start {start_count}, and server {witness} has seen start {}",
            seen.start_count
        );
        return Some((reason, seen.start_count));
    }
    // Its starts go on from the highest that anybody saw, whatever it remembers: a promise is named by the start, too.
    let mut replaced = known.superseded.iter().filter(|d| d.instance == instance && believed(d.start_count));
    if let Some(disk) = replaced.clone().find(|d| d.start_count > start_count) {
        let reason = format!("{begin}: server {witness} has seen start {} of it, and a later disk", disk.start_count);
        return Some((reason, disk.start_count));
    }
    // Nobody counts on what never knew anything, or does not know it any more.
    if standing.memory != Memory::Whole {
        return None;
    }
    // What was seen before it lost its memory says nothing about what it has learned since.
    if let Some(disk) = replaced.find(|d| d.start_count >= whole_since) {
        let reason = format!("{begin}: server {witness} has seen it on a later one");
        return Some((reason, disk.start_count));
    }
    let mark = seen.mark;
    if seen.instance == instance
        && mark.start_count >= whole_since
        && believed(mark.start_count)
        && (mark.promise, mark.end) > (standing.promise, standing.end)
    {
        let reason = format!(
            "{begin}: it knows epoch {} and entries up to {}, and server {witness} has seen it know epoch {} and {}",
            standing.promise, standing.end, mark.promise, mark.end
        );
        return Some((reason, mark.start_count));
    }
    None
}

/// Whether a server is known to be of another cluster than this one.
fn is_foreign(standing: Standing, hello: &Hello) -> bool {
    hello.cluster != standing.cluster && hello.cluster != 0 && standing.cluster != 0
}

/// Whether `me` talks to the sender of `hello`, of which `known` is remembered: the one rule for both sides.
///
/// # Errors
/// Why not.
fn check_hello(me: &LinkOptions, standing: Standing, hello: &Hello, known: &Known) -> Result<ServerId, Refusal> {
    let (mine, theirs) = (me.me, ServerId(hello.server));
    let refuse = |reason: String| Err(Refusal::new(reason));
    if hello.protocol != PROTOCOL_VERSION {
        return refuse(format!(
            "server {mine} speaks version {PROTOCOL_VERSION} of the protocol between servers, server {theirs} version {}",
            hello.protocol
        ));
    }
    // Before anything else is told to a stranger. Compared without an early exit.
    let equal = me.secret.len() == hello.secret.len()
        && me.secret.bytes().zip(hello.secret.bytes()).fold(0, |d, (a, b)| d | (a ^ b)) == 0;
    if !equal {
        return refuse(format!("server {mine} and server {theirs} have different secrets (peerSecretFile)"));
    }
    if theirs == mine {
        return refuse(format!("two servers call themselves {mine}: check their myid files"));
    }
    if !me.peers.contains_key(&theirs) {
        return refuse(format!("server {theirs} is not a member in the configuration of server {mine}"));
    }
    if hello.config_hash != me.config_hash {
        return refuse(format!(
            "server {mine} and server {theirs} are configured with different members (hash {:016x} and {:016x}): \
             their server.N lines must be the same",
            me.config_hash, hello.config_hash
        ));
    }
    if hello.instance == me.instance {
        return refuse(format!("server {mine} and server {theirs} run on copies of one data folder"));
    }
    // An operator made one of them the origin of a new cluster, accepting that it knows less than was seen of it. They have
    // nothing to do with each other, and say so over the stream.
    if is_foreign(standing, hello) {
        return Ok(theirs);
    }
    if let Some((reason, _)) = old_copy(theirs, &Claim::of(hello), mine, known) {
        return refuse(reason);
    }
    let own = Claim { instance: me.instance, start_count: me.start_count, whole_since: me.whole_since, standing };
    match old_copy(mine, &own, theirs, &known_to(hello)) {
        Some((reason, seen)) => Err(Refusal { reason, stale: Some(seen) }),
        None => Ok(theirs),
    }
}

impl Shared {
    /// See [`check_hello`].
    fn check(&self, hello: &Hello) -> Result<ServerId, Refusal> {
        check_hello(&self.options, *self.standing.lock(), hello, &self.known(ServerId(hello.server)))
    }

    /// Whether the only reason to refuse a server is what is remembered of it.
    fn remembers_more(&self, hello: &Hello) -> bool {
        let (standing, sender) = (*self.standing.lock(), ServerId(hello.server));
        check_hello(&self.options, standing, hello, &Known::default()).is_ok()
            && old_copy(sender, &Claim::of(hello), self.options.me, &self.known(sender)).is_some()
    }

    fn hello(&self, peer: ServerId, link: u64) -> Frame {
        let Known { memory, superseded } = self.known(peer);
        let standing = *self.standing.lock();
        let o = &self.options;
        let hello = Hello {
            server: o.me.0,
            instance: o.instance,
            start_count: o.start_count,
            link,
            config_hash: o.config_hash,
            protocol: PROTOCOL_VERSION,
            secret: o.secret.clone(),
            remembers_start_count: memory.start_count,
            remembers_instance: memory.instance,
            feature_level: o.feature_level,
            memory: match standing.memory {
                Memory::Fresh => 0,
                Memory::Whole => 1,
                Memory::Lost => 2,
            },
            whole_since: o.whole_since,
            promise: standing.promise,
            end: standing.end.0,
            cluster: standing.cluster,
            remembers_mark: Some(pb::Mark {
                start_count: memory.mark.start_count,
                promise: memory.mark.promise,
                end: memory.mark.end.0,
            }),
            superseded: superseded
                .iter()
                .map(|disk| pb::Disk { instance: disk.instance, start_count: disk.start_count })
                .collect(),
        };
        Frame { body: Some(frame::Body::Hello(hello)) }
    }

    fn known(&self, peer: ServerId) -> Known {
        let Some(state) = self.peers.get(&peer) else { return Known::default() };
        let live = state.live.lock();
        Known { memory: live.memory, superseded: live.superseded.clone() }
    }

    /// A peer said what it holds. `None`: no more than was known, or over a stream that is not its latest.
    fn marked(&self, peer: ServerId, link: u64, mark: &pb::Mark) -> Option<LinkEvent> {
        let mut live = self.peers.get(&peer)?.live.lock();
        live.current.as_ref().filter(|current| current.link == link && !current.foreign)?;
        let mark = Mark { start_count: mark.start_count, promise: mark.promise, end: Zxid(mark.end) };
        let former = live.memory.mark;
        if (mark.promise, mark.end) <= (former.promise, former.end) || mark.start_count != live.memory.start_count {
            return None;
        }
        live.memory.mark = mark;
        Some(LinkEvent::Marked { peer, instance: live.memory.instance, mark })
    }

    /// Makes a stream the peer's current one and reports it.
    async fn up(&self, peer: ServerId, hello: &Hello, link: Option<u64>, queue: Queue) -> Option<u64> {
        let state = self.peers.get(&peer)?;
        let _in_order = state.coming_up.lock().await;
        let link = link.unwrap_or_else(|| self.next_link());
        let foreign = is_foreign(*self.standing.lock(), hello);
        {
            let mut live = state.live.lock();
            if !foreign {
                live.see(hello);
            }
            live.refused = None;
            if let Some(old) = live.current.replace(LiveLink { link, foreign, queue }) {
                debug!(%peer, old = old.link, link, "a new stream replaces the old one");
                old.queue.end.cancel();
            }
        }
        info!(%peer, link, start_count = hello.start_count, "connected to peer");
        let event = LinkEvent::Up {
            peer,
            link,
            instance: hello.instance,
            start_count: hello.start_count,
            whole_since: hello.whole_since,
            foreign,
            feature_level: hello.feature_level,
        };
        self.events.send(event).await.ok().map(|()| link)
    }

    fn next_link(&self) -> u64 {
        self.links.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Hands on the frames of a stream until it ends, then reports that.
    async fn read(&self, peer: ServerId, link: u64, mut incoming: Streaming<Frame>, end: CancellationToken) {
        let reason = loop {
            let next = tokio::select! {
                biased;
                () = end.cancelled() => break "closed here".to_string(),
                next = incoming.message() => next,
            };
            let bytes = match next {
                Ok(Some(Frame { body: Some(frame::Body::Messages(bytes)) })) => bytes,
                Ok(Some(Frame { body: Some(frame::Body::Mark(mark)) })) => {
                    if let Some(event) = self.marked(peer, link, &mark)
                        && self.events.send(event).await.is_err()
                    {
                        break "this server is going down".to_string();
                    }
                    continue;
                }
                Ok(Some(Frame { body: Some(frame::Body::Refused(reason)) })) => {
                    self.refused(peer, Refusal::new(reason.clone())).await;
                    break reason;
                }
                Ok(Some(_)) => break "a frame that is none".to_string(),
                Ok(None) => break "closed by the peer".to_string(),
                Err(status) => break status.message().to_string(),
            };
            let taken = tokio::select! {
                biased;
                () = end.cancelled() => break "closed here".to_string(),
                taken = self.events.send(LinkEvent::Frame { peer, link, bytes }) => taken,
            };
            if taken.is_err() {
                break "this server is going down".to_string();
            }
        };
        drop(incoming);
        end.cancel();
        if let Some(state) = self.peers.get(&peer) {
            let mut live = state.live.lock();
            if live.current.as_ref().is_some_and(|c| c.link == link) {
                live.current = None;
            }
        }
        info!(%peer, link, reason, "disconnected from peer");
        // Nobody listens when the server is going down.
        let _ = self.events.send(LinkEvent::Down { peer, link }).await;
    }

    /// Reports a refusal, unless it was reported already.
    async fn refused(&self, peer: ServerId, Refusal { reason, stale }: Refusal) {
        let Some(state) = self.peers.get(&peer) else {
            warn!(%peer, reason, "refused a server");
            return;
        };
        if state.live.lock().refused.replace(reason.clone()).as_deref() == Some(&reason) {
            return;
        }
        warn!(%peer, reason, "no link to peer");
        let _ = self.events.send(LinkEvent::Refused { peer, reason, stale }).await;
    }

    fn queue(&self) -> (Queue, mpsc::UnboundedReceiver<Frame>) {
        let (frames, rx) = mpsc::unbounded_channel();
        (Queue { frames, queued: Arc::new(AtomicUsize::new(0)), end: self.stop.child_token() }, rx)
    }
}

/// What a stream sends: `first`, then its queue until the end.
fn outgoing(first: Frame, queue: &Queue, frames: mpsc::UnboundedReceiver<Frame>) -> Outgoing {
    let state = (frames, queue.queued.clone(), queue.end.clone());
    let rest = stream::unfold(state, |(mut frames, queued, end)| async move {
        let frame = tokio::select! {
            biased;
            () = end.cancelled() => return None,
            frame = frames.recv() => frame?,
        };
        if let Some(frame::Body::Messages(bytes)) = &frame.body {
            queued.fetch_sub(bytes.len(), Ordering::Relaxed);
        }
        Some((frame, (frames, queued, end)))
    });
    Outgoing(stream::once(std::future::ready(first)).chain(rest).boxed())
}

// ------------------------------------------------------------------------------------------------------------ dialling

async fn dial_for_ever(shared: Arc<Shared>, peer: ServerId) {
    let mut backoff = BACKOFF_MIN_MS;
    let mut attempt = 0_u64;
    loop {
        let result = tokio::select! {
            biased;
            () = shared.stop.clone().cancelled_owned() => return,
            result = dial(shared.clone(), peer) => result,
        };
        if let Err(error) = &result {
            debug!(%peer, %error, "cannot reach peer");
        }
        backoff = backoff_after(&result, backoff);
        attempt += 1;
        let pause = backoff / 2 + mix(shared.options.seed ^ peer.0.rotate_left(32) ^ attempt) % (backoff / 2 + 1);
        backoff = (backoff * 2).min(BACKOFF_MAX_MS);
        tokio::select! {
            biased;
            () = shared.quiet.clone().cancelled_owned() => return,
            () = tokio::time::sleep(Duration::from_millis(pause)) => {}
        }
    }
}

/// The pause after an attempt; `Ok`: how long the stream was up. It doubles from one to the next.
fn backoff_after(result: &Result<Duration, LinkError>, backoff: u64) -> u64 {
    match result {
        Ok(up) if *up >= SOUND_AFTER => BACKOFF_MIN_MS,
        Err(LinkError::Refused(_)) => BACKOFF_MAX_MS,
        Ok(_) | Err(_) => backoff,
    }
}

/// A well spread number of another (splitmix64's finalizer).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// One stream to `peer`, from its connection to its end. `Ok` if it was up: for how long.
async fn dial(shared: Arc<Shared>, peer: ServerId) -> Result<Duration, LinkError> {
    let state = shared.peers.get(&peer).expect("started for each peer");
    let keep_alive = (shared.options.keep_alive, shared.options.keep_alive * 2);
    let channel = connect(&state.addr, shared.options.connect_timeout, keep_alive).await?;
    let client = PeerClient::new(channel).max_decoding_message_size(FRAME_BYTES_MAX);
    let link = shared.next_link();
    let (queue, frames) = shared.queue();
    // The guard ends the sending half however this function is left.
    let _end = queue.end.clone().drop_guard();
    let request = outgoing(shared.hello(peer, link), &queue, frames);

    let (incoming, first) = tokio::time::timeout(HELLO_TIMEOUT, open(client, request))
        .await
        .map_err(|_| LinkError::Ended("no hello".to_string()))??;
    let hello = match first.and_then(|f| f.body) {
        Some(frame::Body::Hello(hello)) => hello,
        Some(frame::Body::Refused(reason)) => {
            shared.refused(peer, Refusal::new(reason.clone())).await;
            return Err(LinkError::Refused(reason));
        }
        _ => return Err(LinkError::Protocol("the first frame is no hello".to_string())),
    };
    let checked = shared.check(&hello).and_then(|id| {
        let other = || Refusal::new(format!("{} is server {id}, not server {peer}", state.addr));
        if id == peer { Ok(()) } else { Err(other()) }
    });
    if let Err(refusal) = checked {
        let reason = refusal.reason.clone();
        shared.refused(peer, refusal).await;
        // Let the other side know why, and give the word a moment to get there.
        let _ = queue.frames.send(Frame { body: Some(frame::Body::Refused(reason.clone())) });
        drop(queue);
        let mut incoming = incoming;
        let _ = tokio::time::timeout(HELLO_TIMEOUT, incoming.message()).await;
        return Err(LinkError::Refused(reason));
    }
    let end = queue.end.clone();
    let began = Instant::now();
    if let Some(link) = shared.up(peer, &hello, Some(link), queue).await {
        shared.read(peer, link, incoming, end).await;
    }
    Ok(began.elapsed())
}

/// Opens a stream and waits for its first frame.
async fn open(
    mut client: PeerClient<Channel>,
    request: Outgoing,
) -> Result<(Streaming<Frame>, Option<Frame>), LinkError> {
    let mut incoming = client.link(request).await.map_err(ended)?.into_inner();
    let first = incoming.message().await.map_err(ended)?;
    Ok((incoming, first))
}

fn ended(status: Status) -> LinkError {
    LinkError::Ended(status.message().to_string())
}

async fn connect(addr: &str, timeout: Duration, keep_alive: (Duration, Duration)) -> Result<Channel, LinkError> {
    let refuse = |e: tonic::transport::Error| {
        // tonic's own text says only "transport error"; the cause is what helps.
        let mut reason = e.to_string();
        let mut source = std::error::Error::source(&e);
        while let Some(cause) = source {
            reason = cause.to_string();
            source = cause.source();
        }
        LinkError::Connect { addr: addr.to_string(), reason }
    };
    let connecting = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(refuse)?
        .connect_timeout(timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(keep_alive.0)
        .keep_alive_timeout(keep_alive.1)
        .connect()
        .await;
    connecting.map_err(refuse)
}

// ------------------------------------------------------------------------------------------------------------- serving

async fn serve(shared: Arc<Shared>, listener: TcpListener) {
    let stop = shared.stop.clone();
    let service = PeerServer::new(Service { shared }).max_decoding_message_size(FRAME_BYTES_MAX);
    let result = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .add_service(service)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stop.cancelled())
        .await;
    if let Err(error) = result {
        warn!(%error, "the listener for peers ended");
    }
}

struct Service {
    shared: Arc<Shared>,
}

#[tonic::async_trait]
impl Peer for Service {
    type LinkStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;
    type FetchSnapshotStream = Pin<Box<dyn Stream<Item = Result<FetchChunk, Status>> + Send>>;

    async fn link(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::LinkStream>, Status> {
        let shared = &self.shared;
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(HELLO_TIMEOUT, incoming.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello"))??;
        let Some(frame::Body::Hello(hello)) = first.and_then(|f| f.body) else {
            return Err(Status::invalid_argument("the first frame is no hello"));
        };
        if shared.quiet.is_cancelled() {
            return Err(Status::unavailable("this server is going down"));
        }
        let checked = shared.check(&hello).and_then(|peer| {
            let me = shared.options.me;
            if peer < me {
                Err(Refusal::new(format!("server {me} dials server {peer}, not the other way")))
            } else {
                Ok(peer)
            }
        });
        let peer = match checked {
            Ok(peer) => peer,
            Err(refusal) => {
                let (peer, reason) = (ServerId(hello.server), refusal.reason.clone());
                shared.refused(peer, refusal).await;
                // Whose folder is old is told by what we remember, so our Hello goes first then. It carries the secret:
                // nothing but that reason comes after the secret was found equal.
                let hello = shared.remembers_more(&hello).then(|| shared.hello(peer, hello.link));
                let refused = Frame { body: Some(frame::Body::Refused(reason)) };
                return Ok(Response::new(Box::pin(stream::iter(hello.into_iter().chain([refused]).map(Ok)))));
            }
        };
        let (queue, frames) = shared.queue();
        let end = queue.end.clone();
        let response = outgoing(shared.hello(peer, hello.link), &queue, frames);
        let shared = shared.clone();
        shared.clone().tasks.spawn(async move {
            match shared.up(peer, &hello, None, queue).await {
                Some(link) => shared.read(peer, link, incoming, end).await,
                None => end.cancel(),
            }
        });
        Ok(Response::new(Box::pin(response.map(Ok))))
    }

    async fn fetch_snapshot(
        &self,
        request: Request<FetchRequest>,
    ) -> Result<Response<Self::FetchSnapshotStream>, Status> {
        let FetchRequest { snapshot: id, secret, cluster } = request.into_inner();
        if secret != self.shared.options.secret {
            return Err(Status::permission_denied("different secrets (peerSecretFile)"));
        }
        let (tx, rx) = mpsc::channel(CHUNKS_AHEAD);
        let source = self.shared.source.clone();
        let sending = self.shared.sending.clone();
        let stop = self.shared.stop.clone();
        self.shared.tasks.spawn(async move {
            let permit = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                permit = sending.acquire_owned() => permit,
            };
            let work = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                if let Err(status) = send_snapshot(&*source, id, cluster, &tx, &stop) {
                    // The learner may be gone; then nobody needs to know.
                    let _ = tx.blocking_send(Err(status));
                }
            });
            if work.await.is_err() {
                warn!(id, "sending a snapshot failed");
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(rx))))
    }
}

fn send_snapshot(
    source: &dyn SnapshotSource,
    id: u64,
    cluster: u64,
    to: &mpsc::Sender<Result<FetchChunk, Status>>,
    stop: &CancellationToken,
) -> Result<(), Status> {
    let send = |body| to.blocking_send(Ok(FetchChunk { body: Some(body) })).map_err(|_| Status::cancelled("gone"));
    let manifest = source.manifest(id, cluster).map_err(Status::not_found)?;
    let files = manifest.files.iter().map(|(name, size)| pb::File { name: name.clone(), size: *size }).collect();
    send(fetch_chunk::Body::Manifest(pb::Manifest { zxid: manifest.zxid.0, files }))?;
    for (index, (name, size)) in manifest.files.iter().enumerate() {
        let mut offset = 0;
        while offset < *size {
            if stop.is_cancelled() {
                return Err(Status::unavailable("this server is going down"));
            }
            let max = CHUNK_BYTES.min(usize::try_from(size - offset).unwrap_or(CHUNK_BYTES));
            let data = source.read(id, name, offset, max).map_err(|e| Status::internal(format!("{name}: {e}")))?;
            if data.is_empty() || data.len() > max {
                return Err(Status::internal(format!("{name}: shorter than the {size} bytes of the manifest")));
            }
            let crc32c = crc32c::crc32c(&data);
            let length = data.len() as u64;
            send(fetch_chunk::Body::Chunk(pb::Chunk { file: index as u32, offset, data, crc32c }))?;
            offset += length;
        }
    }
    Ok(())
}

// ------------------------------------------------------------------------------------------------------------ fetching

/// Pulls snapshot `id` of `cluster` from the server at `addr` over a connection of its own and hands its parts to `into`
/// in order, on the calling task: run it where writing files may block.
///
/// # Errors
/// [`LinkError`] if the source refuses, breaks off, makes no progress for ten seconds, or sends what does not fit its
/// own manifest or checksums; and what `into` returns. What was handed over before is then worth nothing.
pub async fn fetch_snapshot(
    addr: &str,
    id: u64,
    cluster: u64,
    secret: &str,
    connect_timeout: Duration,
    mut into: impl FnMut(Fetched<'_>) -> std::io::Result<()>,
) -> Result<SnapshotManifest, LinkError> {
    let channel = connect(addr, connect_timeout, (KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT)).await?;
    let mut client = PeerClient::new(channel).max_decoding_message_size(FRAME_BYTES_MAX.max(4 * CHUNK_BYTES));
    let request = FetchRequest { snapshot: id, secret: secret.to_string(), cluster };
    let mut chunks = client.fetch_snapshot(request).await.map_err(ended)?.into_inner();
    let mut receiver = Receiver::default();
    loop {
        let next = tokio::time::timeout(FETCH_IDLE_TIMEOUT, chunks.message()).await;
        let next = next.map_err(|_| LinkError::Ended("the snapshot makes no progress".to_string()))?;
        match next.map_err(ended)? {
            Some(chunk) => receiver.take(chunk, &mut into)?,
            None => return receiver.finish(),
        }
    }
}

/// Checks that what comes is what the manifest promised: every file whole, in order, nothing else.
#[derive(Default)]
struct Receiver {
    manifest: Option<SnapshotManifest>,
    /// The file that is being received, and how much of it is here.
    file: usize,
    offset: u64,
}

impl Receiver {
    fn take(
        &mut self,
        chunk: FetchChunk,
        into: &mut impl FnMut(Fetched<'_>) -> std::io::Result<()>,
    ) -> Result<(), LinkError> {
        let wrong = |text: String| Err(LinkError::Protocol(text));
        match (chunk.body, &self.manifest) {
            (Some(fetch_chunk::Body::Manifest(m)), None) => {
                if m.files.len() > SNAPSHOT_FILES_MAX {
                    return wrong(format!("a snapshot of {} files", m.files.len()));
                }
                let files: Vec<(String, u64)> = m.files.into_iter().map(|f| (f.name, f.size)).collect();
                let mut names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
                names.sort_unstable();
                if let Some(name) = names.iter().find(|name| !is_plain(name)) {
                    return wrong(format!("a snapshot with a file called {name:?}"));
                }
                if names.windows(2).any(|pair| pair[0] == pair[1]) {
                    return wrong("a snapshot with two files of one name".to_string());
                }
                let manifest = SnapshotManifest { zxid: Zxid(m.zxid), files };
                into(Fetched::Manifest(&manifest))?;
                self.manifest = Some(manifest);
                self.skip_empty_files();
                Ok(())
            }
            (Some(fetch_chunk::Body::Chunk(c)), Some(manifest)) => {
                let Some((name, size)) = manifest.files.get(self.file) else {
                    return wrong("more than the manifest says".to_string());
                };
                if c.file as usize != self.file || c.offset != self.offset {
                    return wrong(format!(
                        "{name}: expected offset {}, came file {} offset {}",
                        self.offset, c.file, c.offset
                    ));
                }
                let length = c.data.len() as u64;
                if length == 0 || length > size - self.offset {
                    return wrong(format!("{name}: a chunk of {length} bytes at {} of {size}", self.offset));
                }
                if crc32c::crc32c(&c.data) != c.crc32c {
                    return wrong(format!("{name}: wrong checksum at offset {}", self.offset));
                }
                into(Fetched::Chunk { file: name, offset: c.offset, data: c.data })?;
                self.offset += length;
                self.skip_empty_files();
                Ok(())
            }
            _ => wrong("a chunk out of place".to_string()),
        }
    }

    /// Moves on from files that are complete.
    fn skip_empty_files(&mut self) {
        let files = self.manifest.as_ref().map_or(&[][..], |m| &m.files);
        while files.get(self.file).is_some_and(|(_, size)| *size == self.offset) {
            self.file += 1;
            self.offset = 0;
        }
    }

    fn finish(self) -> Result<SnapshotManifest, LinkError> {
        match self.manifest {
            Some(manifest) if self.file == manifest.files.len() => Ok(manifest),
            _ => Err(LinkError::Ended("before the snapshot was complete".to_string())),
        }
    }
}

/// Whether a name stays inside the folder it is created in.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

#[cfg(test)]
mod tests;
