//! What operators can ask of a server, and the little they can change, whichever way they ask: four-letter words,
//! AdminServer, Prometheus.
//!
//! A [`ServerReport`] is everything at one moment, as plain values; [`Operators`] makes one when it is asked. The ways
//! only print.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering::Relaxed;

use corral_core::session::usage::Sizes;
use corral_core::tree::quota::QuotaFigures;
use corral_proto::{SessionId, Zxid};

use super::metrics::Metric;
use super::wire::stats::{FrontendStats, Traffic};

/// What is shown as version. The number in front is that of the ZooKeeper release whose protocol is spoken: clients
/// choose features by it, and their patterns want a date after it.
pub const VERSION: &str = concat!("3.9.2-corral-", env!("CARGO_PKG_VERSION"), ", built on 2026-11-22 00:00 UTC");

/// ZooKeeper's trace mask as it starts. It selects lines of a log that ZooKeeper has; here it is only kept.
const TRACE_MASK: i64 = 306;

/// The role that is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerMode {
    /// No quorum, or starting.
    #[default]
    NotServing,
    /// Alone in its ensemble.
    Standalone,
    /// Leads.
    Leader,
    /// Follows.
    Follower,
    /// Follows without a vote.
    Observer,
    /// Answers reads without a quorum.
    ReadOnly,
}

impl ServerMode {
    /// In ZooKeeper's words; empty while it does not serve.
    pub const fn name(self) -> &'static str {
        match self {
            ServerMode::NotServing => "",
            ServerMode::Standalone => "standalone",
            ServerMode::Leader => "leader",
            ServerMode::Follower => "follower",
            ServerMode::Observer => "observer",
            ServerMode::ReadOnly => "read-only",
        }
    }
}

/// What a report must hold beside what costs nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// Sizes of the folders: looks at every file in them.
    pub folders: bool,
    /// Watches: walks their table.
    pub watches: bool,
    /// Sessions and their ephemerals: walks both.
    pub sessions: bool,
    /// Figures of quotas: walks them.
    pub quotas: bool,
}

/// Everything that is shown. The server fills it in when it is asked; [`Operators`] adds [`Traffic`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerReport {
    /// [`VERSION`], unless somebody knows better.
    pub version: String,
    /// Its role now.
    pub mode: ServerMode,
    /// Last zxid that is published.
    pub zxid: Zxid,
    /// Znodes.
    pub node_count: u64,
    /// Ephemeral znodes.
    pub ephemerals: u64,
    /// Bytes of paths and data.
    pub data_bytes: u64,
    /// Open sessions of the whole ensemble.
    pub sessions: u64,
    /// Sessions that this server alone knows.
    pub local_sessions: u64,
    /// Watches of both tables.
    pub watch_count: u64,
    /// Leaders only: bytes of the last, smallest and largest proposal; -1 before the first.
    pub proposal_sizes: Option<[i64; 3]>,
    /// What was read here, by the first name of the path, and what was written.
    pub reads: Vec<(String, Sizes)>,
    /// See `reads`.
    pub writes: Vec<(String, Sizes)>,
    /// [`Detail::quotas`]: what quotas say, by the first name of the path.
    pub quotas: Vec<(String, QuotaFigures)>,
    /// The time, ms since the Unix epoch.
    pub unix_ms: u64,
    /// Time since the start, ms.
    pub uptime_ms: u64,
    /// Keys and values of `conf`, in order, under ZooKeeper's names; without the sizes of folders.
    pub conf: Vec<(&'static str, Setting)>,
    /// The text of `/zookeeper/config`; empty when there is none to show.
    pub membership: String,
    /// Keys and values of `envi` beside `zookeeper.version`, in order.
    pub environment: Vec<(&'static str, String)>,
    /// `None` in an ensemble of one.
    pub quorum: Option<QuorumReport>,
    /// Recorded digests of the tree, oldest first.
    pub digests: Vec<(Zxid, u64)>,
    /// The state that a restart begins from, and when it was written, seconds since the Unix epoch; 0: before the start.
    pub persisted: (Zxid, u64),
    /// Syncs of the log that took longer than `fsync.warningthresholdms`.
    pub slow_syncs: u64,
    /// Proofs of identity that named nobody.
    pub auth_failed: u64,
    /// Figures that are counted outside the front ends.
    pub figures: Vec<Metric>,
    /// Figures of the process under the names that Prometheus' own clients use: name, type, value. Of no other use.
    pub process: Vec<(&'static str, &'static str, f64)>,
    /// What the front ends counted.
    pub traffic: Traffic,
    /// [`Detail::folders`]: bytes of the data folder and of the log folder.
    pub folders: [u64; 2],
    /// [`Detail::watches`]: the paths of the data table by session, both ascending.
    pub watches: Vec<(SessionId, Vec<String>)>,
    /// [`Detail::sessions`].
    pub session_dump: SessionDump,
}

/// A value of `conf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// A number.
    Number(i64),
    /// A text.
    Text(String),
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Setting::Number(number) => write!(f, "{number}"),
            Setting::Text(text) => f.write_str(text),
        }
    }
}

/// What a member of an ensemble of several knows of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuorumReport {
    /// This server.
    pub my_id: u64,
    /// Whether it votes.
    pub voting: bool,
    /// As `following - broadcast`.
    pub peer_state: String,
    /// Phase of Zab: `election`, `discovery`, `synchronization`, `broadcast`.
    pub phase: &'static str,
    /// Who leads, once known.
    pub leader: Option<u64>,
    /// Members that vote.
    pub voters: usize,
    /// All members, ascending.
    pub members: Vec<MemberReport>,
    /// On the leader: each learner.
    pub learners: Vec<LearnerReport>,
}

/// A member, as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberReport {
    /// Its number.
    pub id: u64,
    /// Name or address.
    pub host: String,
    /// Port between servers.
    pub peer_port: u16,
    /// ZooKeeper's election port, if the line has one.
    pub election_port: u16,
    /// Where its clients connect, as far as this server knows.
    pub client: String,
    /// It does not vote.
    pub observer: bool,
}

/// A learner, as its leader sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LearnerReport {
    /// Its number.
    pub id: u64,
    /// What it has acknowledged.
    pub acknowledged: Zxid,
    /// Whether it has caught up.
    pub synced: bool,
    /// It does not vote, by configuration.
    pub observer: bool,
}

/// Open sessions and what hangs on them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionDump {
    /// On the leader: sessions of the ensemble by the time at which they end unless they are heard, ms since the Unix epoch.
    pub by_expiry: Vec<(u64, Vec<SessionId>)>,
    /// Sessions of this server alone, in the same way; `None`: there are none by configuration.
    pub local_by_expiry: Option<Vec<(u64, Vec<SessionId>)>>,
    /// Every session with its timeout in ms.
    pub sessions: Vec<(SessionId, i32)>,
    /// Sessions with ephemeral znodes, and those.
    pub ephemerals: Vec<(SessionId, Vec<String>)>,
}

/// Makes a report.
pub type Reporter = Arc<dyn Fn(Detail) -> Pin<Box<dyn Future<Output = ServerReport> + Send>> + Send + Sync>;

/// See the module. One for all ways of asking.
pub struct Operators {
    reporter: Reporter,
    stats: Arc<FrontendStats>,
    trace_mask: AtomicI64,
}

impl Operators {
    /// Asks `reporter` for what the server knows, and `stats` for what the front ends counted.
    pub fn new(reporter: Reporter, stats: Arc<FrontendStats>) -> Arc<Operators> {
        Arc::new(Operators { reporter, stats, trace_mask: AtomicI64::new(TRACE_MASK) })
    }

    /// Everything, as it is now.
    pub async fn report(&self, detail: Detail) -> ServerReport {
        let mut report = (self.reporter)(detail).await;
        report.traffic = self.stats.report();
        report
    }

    /// What the front ends count.
    pub fn stats(&self) -> &Arc<FrontendStats> {
        &self.stats
    }

    /// ZooKeeper's trace mask.
    pub fn trace_mask(&self) -> i64 {
        self.trace_mask.load(Relaxed)
    }

    /// Keeps another one.
    pub fn set_trace_mask(&self, mask: i64) {
        self.trace_mask.store(mask, Relaxed);
    }
}
