//! ZooKeeper's `zoo.cfg` and our own keys beside it: text in, [`Config`] or a list of errors out.
//!
//! Pure: files that a key names (`myid`, `peerSecretFile`, `dynamicConfigFile`, `saslUsersFile`) are read through a
//! function that the caller passes in; certificates are read where they are used. [`KEYS`] is the one list of keys: names, units, defaults, ranges and help; parsing, the reference
//! in `docs/operations.md` and `corral keys` all come from it. Nobody else in the server reads configuration: rooms get
//! plain values.
//!
//! Read first: [`KEYS`], [`Config`], [`parse`].

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use corral_core::auth::sasl;
use corral_proto::{ServerId, Zxid};

/// Largest number of a server (`myid`): the id's byte in session ids, with 255 kept free.
pub const SERVER_ID_MAX: u64 = 254;
/// Longest secret in `peerSecretFile`, in bytes: it travels in the first frame of a link.
const SECRET_BYTES_MAX: usize = 1024;
/// Client port where the configuration names none: ZooKeeper's convention.
pub const CLIENT_PORT_DEFAULT: u16 = 2181;

const KIB: i64 = 1024;
const MIB: i64 = 1024 * KIB;
const GIB: i64 = 1024 * MIB;
/// Upper bound of times in ms: ZooKeeper's clients carry session timeouts as 32-bit integers.
const MS_MAX: i64 = i32::MAX as i64;

/// Who gave a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A line of a file.
    Line {
        /// As the user named it.
        file: String,
        /// From 1; 0 for the file as a whole.
        line: usize,
    },
    /// A flag of the command line, as `--set` or `--data-dir`.
    Flag(String),
    /// Neither: no configuration was given.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Line { file, line: 0 } => write!(f, "{file}"),
            Origin::Line { file, line } => write!(f, "{file}:{line}"),
            Origin::Flag(flag) => write!(f, "{flag}"),
            Origin::Default => write!(f, "configuration"),
        }
    }
}

/// A value that cannot be used: where it stands, which key, what is wrong and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {key}: {problem}")]
pub struct ConfigError {
    /// Where.
    pub origin: Origin,
    /// The key as the user wrote it.
    pub key: String,
    /// What is wrong, and what is allowed.
    pub problem: String,
}

/// Every wrong value of a configuration, one a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// Something to tell the operator that does not keep the server from starting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Where.
    pub origin: Origin,
    /// Which key.
    pub key: String,
    /// In words.
    pub text: String,
    /// Something is probably not as intended; otherwise only worth knowing.
    pub warning: bool,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.origin, self.key, self.text)
    }
}

/// A host name or address and a port. `Display` is what a resolver takes: `zoo1:2888`, `[::1]:2888`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// 0 means any free port, where something listens.
    pub port: u16,
}

impl HostPort {
    /// A host and a port.
    pub fn new(host: impl Into<String>, port: u16) -> HostPort {
        HostPort { host: host.into(), port }
    }

    /// Whether only this machine can reach it.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// One `server.N` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSpec {
    /// Name or address.
    pub host: String,
    /// Carries the streams between servers; 0 in an ensemble of one.
    pub peer_port: u16,
    /// ZooKeeper's election port; unused here.
    pub election_port: Option<u16>,
    /// Learns, never votes.
    pub observer: bool,
    /// Where its clients connect, if the line says.
    pub client: Option<HostPort>,
}

impl ServerSpec {
    /// Where its peers dial it.
    pub fn peer_addr(&self) -> HostPort {
        HostPort::new(self.host.clone(), self.peer_port)
    }
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps a text from being printed.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text. Not for logs.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(...)")
    }
}

/// Which four-letter words are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whitelist {
    /// Every one (`*`).
    All,
    /// These.
    Only(BTreeSet<String>),
}

impl Whitelist {
    /// Whether `word` is answered.
    pub fn allows(&self, word: &str) -> bool {
        match self {
            Whitelist::All => true,
            Whitelist::Only(words) => words.contains(word),
        }
    }
}

/// Everything a server is told. Times are in ms, sizes in bytes. Keys that can change an outcome of execution (marked
/// `outcome` in [`KEYS`]) are proposals: a leader makes them replicated settings, and only those are executed by (P34).
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// This server; a key of `servers`.
    pub my_id: ServerId,
    /// All members, this one included; at least one of them votes. Exactly one entry: an ensemble of one.
    pub servers: BTreeMap<ServerId, ServerSpec>,
    /// The state, `myid`, and what else is not the log.
    pub data_dir: PathBuf,
    /// The transaction log; `data_dir` unless configured.
    pub data_log_dir: PathBuf,
    /// Where clients connect, over both protocols.
    pub client_addr: HostPort,
    /// Where clients connect over TLS, if they may.
    pub secure_client_addr: Option<HostPort>,
    /// `client_addr` takes TLS too.
    pub port_unification: bool,
    /// Certificates; there if a port speaks TLS.
    pub tls: Option<TlsConfig>,
    /// Length of the queue of the listening socket; `None`: the system's choice.
    pub client_backlog: Option<u32>,
    /// Where peers connect; `None` in an ensemble of one.
    pub peer_bind: Option<HostPort>,
    /// Limit of one attempt to connect to a peer.
    pub peer_connect_timeout_ms: u64,
    /// What servers show each other before anything else.
    pub peer_secret: Option<Secret>,

    /// ZooKeeper's unit of time.
    pub tick_time_ms: u64,
    /// Bound of discovery and synchronization without progress.
    pub init_timeout_ms: u64,
    /// `initLimit` and `syncLimit` as they were given, for those who ask how this server is configured.
    pub limits_ticks: [u64; 2],
    /// The one liveness bound between servers. At most half of `min_session_timeout_ms`.
    pub sync_timeout_ms: u64,
    /// Between two pings of a leader. At most a quarter of `sync_timeout_ms`.
    pub ping_interval_ms: u64,
    /// How long a winning vote stands unchallenged while some live voter has not voted.
    pub election_quiet_ms: u64,
    /// Lower bound of session timeouts.
    pub min_session_timeout_ms: u64,
    /// Upper bound of session timeouts.
    pub max_session_timeout_ms: u64,

    /// Connections from one address; 0: no bound.
    pub max_client_cnxns: u32,
    /// Connections altogether; 0: no bound.
    pub max_cnxns: u32,
    /// Four-letter words that are answered.
    pub whitelist: Whitelist,
    /// Where AdminServer answers; `None`: nowhere.
    pub admin: Option<HostPort>,
    /// The path above its commands.
    pub admin_command_url: String,
    /// An operator's connection that says nothing for so long is closed.
    pub admin_idle_timeout_ms: u64,
    /// Where Prometheus finds the figures; `None`: nowhere, but for AdminServer's `/metrics`.
    pub metrics: Option<HostPort>,
    /// Requests accepted and not yet answered, all sessions together.
    pub global_outstanding_limit: usize,
    /// The same for one session.
    pub session_outstanding_limit: usize,
    /// Worker threads for connections; 0: as many as there are processors.
    pub worker_threads: usize,
    /// Serve reads without a quorum to clients that allow it.
    pub read_only_mode: bool,
    /// New sessions of ZooKeeper clients are known to their server alone.
    pub local_sessions: bool,
    /// Such a session becomes known to all when it makes an ephemeral znode.
    pub local_sessions_upgrading: bool,
    /// ZooKeeper protocol: replay missed events of persistent watches after setWatches2.
    pub replay_persistent_watches: bool,
    /// `changeFeedSize`, bytes.
    pub change_feed_bytes: u64,
    /// `changeFeedAge`.
    pub change_feed_age_ms: u64,

    /// Caches and buffers; see [`Config::memory_budget`].
    pub memory_limit: u64,
    /// Largest request frame, and with it largest transaction.
    pub jute_max_buffer: usize,
    /// One file of the transaction log.
    pub segment_bytes: u64,
    /// Log kept for servers that fall behind.
    pub log_retention_bytes: u64,
    /// A learner that misses more than so much log gets a snapshot.
    pub snapshot_threshold_bytes: u64,
    /// RocksDB flushes after so many entries,
    pub flush_entries: u64,
    /// or so many bytes of them.
    pub flush_bytes: u64,
    /// The log writer waits so long for more entries before it syncs.
    pub flush_delay_ms: u64,
    /// A sync of the log that takes longer is a warning.
    pub fsync_warning_ms: u64,
    /// Below so much free space a leader refuses client writes.
    pub min_free_bytes: u64,

    /// No permission is checked.
    pub skip_acl: bool,
    /// Hard quotas refuse writes.
    pub enforce_quota: bool,
    /// TTL znodes may be created.
    pub extended_types: bool,
    /// ClickHouse Keeper's own operations are answered, and `/keeper` says so.
    pub keeper_extensions: bool,
    /// `super:` and the digest of its password.
    pub super_digest: Option<Secret>,
    /// How clients prove who they are beside passwords, and whether they must.
    pub auth: AuthConfig,
    /// Ephemeral znodes of one session.
    pub ephemerals_per_session: u32,
    /// Between two rounds of the reaper of containers and TTL znodes.
    pub reaper_interval_ms: u64,
    /// Znodes it removes in a minute.
    pub reaper_max_per_minute: u32,
    /// A container that never had a child is removed after so long; 0: never.
    pub container_never_used_ms: u64,
    /// Entries that every server executes as a system error (P34).
    pub skip_entries: BTreeSet<Zxid>,
}

/// Whether clients show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// Not asked for.
    None,
    /// Asked for.
    Want,
    /// Demanded.
    Need,
}

/// TLS for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// PEM file with key and certificates.
    pub key_store: PathBuf,
    /// PEM file with the authorities of client certificates.
    pub trust_store: Option<PathBuf>,
    /// Whether clients show a certificate.
    pub client_auth: ClientAuth,
    /// TLS 1.2 is spoken.
    pub tls12: bool,
    /// TLS 1.3 is spoken.
    pub tls13: bool,
    /// Java's names; empty: all there are.
    pub cipher_suites: Vec<String>,
    /// Between two looks at the files; `None`: they are read once.
    pub reload_interval_ms: Option<u64>,
    /// Handshakes under way at once.
    pub handshakes_max: usize,
    /// Subject of the certificate whose owner passes every permission.
    pub super_user: Option<String>,
}

/// Identities of clients beside passwords.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AuthConfig {
    /// SASL: users and their passwords; `None`: no SASL.
    pub sasl_users: Option<BTreeMap<String, String>>,
    /// SASL users who pass every permission.
    pub sasl_super_users: BTreeSet<String>,
    /// A failed SASL exchange leaves the connection open, without an identity.
    pub allow_sasl_failed: bool,
    /// A client must have an identity of one of these schemes; empty: it need not.
    pub demanded_schemes: BTreeSet<String>,
}

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig")
            .field("sasl_users", &self.sasl_users.as_ref().map(|users| users.keys().collect::<Vec<_>>()))
            .field("sasl_super_users", &self.sasl_super_users)
            .field("allow_sasl_failed", &self.allow_sasl_failed)
            .field("demanded_schemes", &self.demanded_schemes)
            .finish()
    }
}

/// How `memory_limit` is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBudget {
    /// RocksDB's block cache: half.
    pub block_cache: u64,
    /// RocksDB's memtables: a sixth.
    pub memtables: u64,
    /// Recent log entries for learners: a twelfth.
    pub tail_cache: u64,
    /// Entries proposed and not committed: a twenty-fourth.
    pub window: u64,
}

impl Config {
    /// Parts of [`Config::memory_limit`]; what is left is for connections and small things.
    pub fn memory_budget(&self) -> MemoryBudget {
        let m = self.memory_limit;
        MemoryBudget { block_cache: m / 2, memtables: m / 6, tail_cache: m / 12, window: m / 24 }
    }

    /// Whether this server has no peers.
    pub fn is_alone(&self) -> bool {
        self.servers.len() == 1
    }

    /// This server's line.
    pub fn me(&self) -> &ServerSpec {
        self.servers.get(&self.my_id).expect("parse checks that my_id is a member")
    }

    /// Servers that vote, ascending.
    pub fn voters(&self) -> Vec<ServerId> {
        self.servers.iter().filter(|(_, s)| !s.observer).map(|(id, _)| *id).collect()
    }

    /// Whether every server is on this machine's loopback: such an ensemble needs no secret.
    pub fn is_loopback_only(&self) -> bool {
        self.servers.values().all(|s| s.peer_addr().is_loopback())
            && self.peer_bind.as_ref().is_none_or(HostPort::is_loopback)
    }

    /// A number that two servers share iff they agree on who is a member and who votes. Host names are left out: it is
    /// usual to write `0.0.0.0` in one's own line.
    pub fn config_hash(&self) -> u64 {
        // FNV-1a, written out: the value must be the same in every release.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for (id, server) in &self.servers {
            for byte in format!("{id}:{};", role(server.observer)).bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        hash
    }

    /// The members in ZooKeeper's words, as `/zookeeper/config` and the word `conf` show them (wire 11.3). Empty for an
    /// ensemble of one without a `server` line.
    pub fn membership_text(&self, version: u64) -> String {
        if self.is_alone() && self.me().peer_port == 0 {
            return String::new();
        }
        let mut text = String::new();
        for (id, server) in &self.servers {
            let election = server.election_port.unwrap_or(server.peer_port);
            text.push_str(&format!("server.{id}={}:{election}:{}", server.peer_addr(), role(server.observer)));
            if let Some(client) = &server.client {
                text.push_str(&format!(";{client}"));
            }
            text.push('\n');
        }
        text.push_str(&format!("version={version:x}"));
        text
    }
}

fn role(observer: bool) -> &'static str {
    if observer { "observer" } else { "participant" }
}

// -------------------------------------------------------------------------------------------------------------- keys

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A whole number.
    Number {
        /// Inclusive.
        min: i64,
        /// Inclusive.
        max: i64,
        /// Written after the number in texts.
        unit: &'static str,
    },
    /// A size: a whole number with an optional `K`, `M` or `G` (powers of 1,024).
    Bytes {
        /// Inclusive, bytes.
        min: i64,
        /// Inclusive, bytes.
        max: i64,
    },
    /// `true`, `false`, `yes` or `no`.
    Flag,
    /// Text; the string says of what form.
    Text(&'static str),
    /// A key of ZooKeeper's that changes nothing here: a notice says why.
    Ignored(&'static str),
    /// A key of ZooKeeper's that would be dangerous to ignore: only this value is allowed, and why.
    Refused {
        /// `None`: the key must not stand there at all.
        only: Option<&'static str>,
        /// In words.
        why: &'static str,
    },
}

/// What holds where a key is missing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DefaultValue {
    /// This value.
    Is(&'static str),
    /// Follows from other keys.
    From(&'static str),
    /// Nothing: the key must be given.
    Required,
    /// Nothing.
    None,
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// As it is written. A final `*` stands for any rest.
    pub name: &'static str,
    /// Not one of ZooKeeper's.
    pub own: bool,
    /// Can change an outcome of execution: becomes a replicated setting.
    pub outcome: bool,
    /// What it takes.
    pub kind: Kind,
    /// If missing.
    pub default: DefaultValue,
    /// What it does.
    pub help: &'static str,
}

const fn zk(name: &'static str, kind: Kind, default: DefaultValue, help: &'static str) -> Key {
    Key { name, own: false, outcome: false, kind, default, help }
}
const fn own(name: &'static str, kind: Kind, default: DefaultValue, help: &'static str) -> Key {
    Key { name, own: true, outcome: false, kind, default, help }
}
const fn outcome(key: Key) -> Key {
    Key { outcome: true, ..key }
}
const fn ignored(name: &'static str, why: &'static str) -> Key {
    Key { name, own: false, outcome: false, kind: Kind::Ignored(why), default: DefaultValue::None, help: "" }
}
const fn refused(name: &'static str, only: Option<&'static str>, why: &'static str) -> Key {
    Key { name, own: false, outcome: false, kind: Kind::Refused { only, why }, default: DefaultValue::None, help: "" }
}
const fn ms(min: i64, max: i64) -> Kind {
    Kind::Number { min, max, unit: "ms" }
}
const fn count(min: i64, max: i64) -> Kind {
    Kind::Number { min, max, unit: "" }
}

use DefaultValue::{From as Follows, Is};

/// Every key there is, in the order of the reference.
pub const KEYS: &[Key] = &[
    zk("dataDir", Kind::Text("a folder"), DefaultValue::Required, "State of this server, and `myid`."),
    zk("dataLogDir", Kind::Text("a folder"), Follows("dataDir"), "Transaction log; best on a device of its own."),
    zk("clientPort", count(0, 65535), Is("2181"), "Port for clients, both protocols. 0: any free one."),
    zk("clientPortAddress", Kind::Text("a host name or address"), Is("0.0.0.0"), "Address to listen on for clients."),
    zk(
        "clientPortListenBacklog",
        count(-1, 65535),
        Is("-1"),
        "Queue of the listening socket; -1: the system's choice.",
    ),
    zk(
        "server.*",
        Kind::Text(
            "HOST:PORT[:ELECTIONPORT][:participant|observer][;[ADDRESS:]CLIENTPORT], IPv6 addresses in brackets",
        ),
        DefaultValue::None,
        "A member. The first port carries all traffic between servers; the second is read and not used.",
    ),
    own("myid", count(1, SERVER_ID_MAX as i64), Follows("the file dataDir/myid"), "Number of this server."),
    zk("dynamicConfigFile", Kind::Text("a file"), DefaultValue::None, "Holds the `server.N` lines."),
    zk("peerType", Kind::Text("participant or observer"), Follows("this server's line"), "Role of this server."),
    zk("quorumListenOnAllIPs", Kind::Flag, Is("false"), "Listen for peers on every address, not on `server.N`'s."),
    zk("cnxTimeout", Kind::Number { min: 1, max: 60, unit: "s" }, Is("5"), "Limit of one attempt to reach a peer."),
    own(
        "peerSecretFile",
        Kind::Text("a file"),
        DefaultValue::None,
        "Its text must be the same on every server; servers without it are not talked to.",
    ),
    zk("tickTime", ms(10, 3_600_000), Is("3000"), "ZooKeeper's unit of time."),
    zk("initLimit", Kind::Number { min: 1, max: 100_000, unit: "ticks" }, Is("10"), "See initTimeout."),
    zk(
        "syncLimit",
        Kind::Number { min: 1, max: 100_000, unit: "ticks" },
        Is("5"),
        "Read for a warning; see syncTimeout.",
    ),
    own(
        "syncTimeout",
        ms(10, 3_600_000),
        Follows("2000, or minSessionTimeout / 2 if that is smaller"),
        "A leader that hears no majority, and a follower that hears no leader, for so long gives up.",
    ),
    own(
        "initTimeout",
        ms(10, MS_MAX),
        Follows("initLimit x tickTime"),
        "How long a server may take to join a leader without making progress.",
    ),
    own(
        "pingInterval",
        ms(1, 60_000),
        Follows("100, or syncTimeout / 4 if that is smaller"),
        "Between two heartbeats of a leader.",
    ),
    own(
        "electionQuiet",
        ms(0, 60_000),
        Follows("100, or syncTimeout / 4 if that is smaller"),
        "How long a winning vote must stand while a connected voter has not voted.",
    ),
    zk(
        "minSessionTimeout",
        ms(-1, MS_MAX),
        Follows("2 x tickTime"),
        "Lower bound of session timeouts; -1: the default.",
    ),
    zk(
        "maxSessionTimeout",
        ms(-1, MS_MAX),
        Follows("20 x tickTime"),
        "Upper bound of session timeouts; -1: the default.",
    ),
    zk("maxClientCnxns", count(0, 1_000_000), Is("60"), "Connections from one address; 0: no bound."),
    zk("maxCnxns", count(0, 10_000_000), Is("0"), "Connections altogether; 0: no bound."),
    zk(
        "4lw.commands.whitelist",
        Kind::Text("four-letter words separated by commas, or *"),
        Follows("srvr; with readonlymode.enabled isro, too"),
        "Four-letter words that are answered.",
    ),
    zk(
        "admin.enableServer",
        Kind::Flag,
        Follows("true if admin.serverPort or admin.serverAddress is given"),
        "AdminServer: ZooKeeper's commands over HTTP, and figures for Prometheus at `/metrics`.",
    ),
    zk("admin.serverPort", count(0, 65535), Is("8080"), "Its port. 0: any free one."),
    zk("admin.serverAddress", Kind::Text("a host name or address"), Follows("clientPortAddress"), "Its address."),
    zk("admin.commandURL", Kind::Text("a path"), Is("/commands"), "The path above its commands."),
    zk("admin.idleTimeout", ms(100, 3_600_000), Is("30000"), "A connection that asks nothing for so long is closed."),
    zk(
        "metricsProvider.className",
        Kind::Text("the name of a class of ZooKeeper's"),
        DefaultValue::None,
        "With a name that ends in `PrometheusMetricsProvider`, figures for Prometheus have a port of their own.",
    ),
    zk("metricsProvider.httpPort", count(0, 65535), Is("7000"), "That port; the path is `/metrics`. 0: any free one."),
    zk("metricsProvider.httpHost", Kind::Text("a host name or address"), Follows("clientPortAddress"), "Its address."),
    zk(
        "globalOutstandingLimit",
        count(1, 10_000_000),
        Is("20000"),
        "Requests accepted and not yet answered; beyond it the server stops reading its sockets.",
    ),
    own("sessionOutstandingLimit", count(1, 1_000_000), Is("1000"), "The same for one session."),
    own("workerThreads", count(0, 1024), Is("0"), "Threads for connections; 0: one for two processors."),
    zk(
        "localSessionsEnabled",
        Kind::Flag,
        Is("false"),
        "New sessions of ZooKeeper clients are known to their server alone, and make no ephemeral znodes.",
    ),
    zk(
        "localSessionsUpgradingEnabled",
        Kind::Flag,
        Is("false"),
        "A local session becomes known to all servers when it makes an ephemeral znode.",
    ),
    zk("readonlymode.enabled", Kind::Flag, Is("false"), "Serve reads without a quorum to clients that allow it."),
    own(
        "replayPersistentWatches",
        Kind::Flag,
        Is("true"),
        "ZooKeeper protocol: missed events of persistent watches are sent after a reconnect.",
    ),
    own(
        "changeFeedSize",
        Kind::Bytes { min: 0, max: 64 * GIB },
        Is("64M"),
        "Changes that are remembered for watchers that were away, at most so many bytes of them, and",
    ),
    own("changeFeedAge", ms(0, MS_MAX), Is("3600000"), "none that are older, by the leader's time stamps."),
    own(
        "memoryLimit",
        Kind::Bytes { min: 24 * MIB, max: 1024 * GIB },
        Is("192M"),
        "Caches and buffers: half block cache, a sixth memtables, a twelfth recent log, the rest connections.",
    ),
    outcome(zk(
        "jute.maxbuffer",
        Kind::Bytes { min: KIB, max: 4 * MIB },
        Is("1048575"),
        "Largest request. Clients have a bound of their own under the same name.",
    )),
    own("segmentSize", Kind::Bytes { min: MIB, max: GIB }, Is("64M"), "One file of the transaction log."),
    own(
        "logRetention",
        Kind::Bytes { min: 16 * MIB, max: 1024 * GIB },
        Is("256M"),
        "Log kept for servers that fall behind; never more than half the size of the state, nor less than 16M.",
    ),
    own(
        "snapshotThreshold",
        Kind::Bytes { min: MIB, max: 1024 * GIB },
        Is("128M"),
        "A server that misses more than so much log gets a snapshot instead.",
    ),
    own("flushAfterEntries", count(1, 100_000_000), Is("50000"), "The state is flushed after so many entries, or"),
    own("flushAfterBytes", Kind::Bytes { min: 64 * KIB, max: 64 * GIB }, Is("16M"), "so many bytes of them."),
    zk("flushDelay", ms(0, 1000), Is("0"), "The log waits so long for more entries before it syncs."),
    zk("fsync.warningthresholdms", ms(1, MS_MAX), Is("1000"), "A slower sync of the log is a warning."),
    own(
        "minFreeSpace",
        Kind::Bytes { min: 0, max: 1024 * GIB },
        Follows("2 x segmentSize + memoryLimit / 6"),
        "Below it a leader refuses client writes; deletes and reads go on.",
    ),
    outcome(zk("skipACL", Kind::Flag, Is("false"), "No permission is checked.")),
    outcome(zk("enforceQuota", Kind::Flag, Is("false"), "Hard quotas refuse writes.")),
    outcome(zk(
        "extendedTypesEnabled",
        Kind::Flag,
        Is("true"),
        "TTL znodes may be created; ZooKeeper's default is false.",
    )),
    outcome(own(
        "keeperExtensions",
        Kind::Flag,
        Is("false"),
        "ClickHouse Keeper's own operations are answered, and `/keeper/feature_flags` says which.",
    )),
    zk(
        "DigestAuthenticationProvider.superDigest",
        Kind::Text("super:BASE64, the SHA-1 digest of `super:password`"),
        DefaultValue::None,
        "Who knows the password passes every permission.",
    ),
    zk(
        "secureClientPort",
        count(0, 65535),
        DefaultValue::None,
        "Port for clients over TLS, both protocols. 0: any free one.",
    ),
    zk(
        "secureClientPortAddress",
        Kind::Text("a host name or address"),
        Is("0.0.0.0"),
        "Address to listen on for them.",
    ),
    zk("client.portUnification", Kind::Flag, Is("false"), "clientPort takes TLS too."),
    zk(
        "ssl.keyStore.location",
        Kind::Text("a PEM file"),
        DefaultValue::None,
        "Private key, its certificate, and those between that and the authority's, in one file.",
    ),
    zk("ssl.keyStore.type", Kind::Text("PEM"), Is("PEM"), "Format of the key store."),
    zk(
        "ssl.trustStore.location",
        Kind::Text("a PEM file"),
        DefaultValue::None,
        "Certificates of the authorities that client certificates must come from.",
    ),
    zk("ssl.trustStore.type", Kind::Text("PEM"), Is("PEM"), "Format of the trust store."),
    zk(
        "ssl.clientAuth",
        Kind::Text("need, want or none"),
        Is("need"),
        "Whether clients must show a certificate, may, or are not asked.",
    ),
    zk("ssl.protocol", Kind::Text("TLSv1.2, TLSv1.3 or TLS"), Is("TLS"), "The one version spoken; TLS: both."),
    zk(
        "ssl.enabledProtocols",
        Kind::Text("TLSv1.2 and TLSv1.3, separated by commas"),
        Follows("ssl.protocol"),
        "The versions spoken.",
    ),
    zk(
        "ssl.ciphersuites",
        Kind::Text("names of cipher suites as in Java, separated by commas"),
        DefaultValue::None,
        "Only these are spoken.",
    ),
    zk("client.certReload", Kind::Flag, Is("true"), "New key and trust stores are used without a restart."),
    own("certReloadInterval", ms(10, MS_MAX), Is("5000"), "Between two looks at the files."),
    zk(
        "netty.server.outstandingHandshake.limit",
        count(1, 100_000),
        Is("250"),
        "TLS handshakes under way at once; connections on top are closed.",
    ),
    zk(
        "X509AuthenticationProvider.superUser",
        Kind::Text("the subject of a certificate, as `CN=admin,O=Example`"),
        DefaultValue::None,
        "Whoever shows this certificate passes every permission.",
    ),
    own(
        "saslUsersFile",
        Kind::Text("a file"),
        DefaultValue::None,
        "Users and passwords for SASL DIGEST-MD5: lines user_NAME=\"PASSWORD\", or a JAAS section Server with them.",
    ),
    zk(
        "superUser",
        Kind::Text("names of SASL users, separated by commas"),
        DefaultValue::None,
        "They pass every permission.",
    ),
    zk(
        "allowSaslFailedClients",
        Kind::Flag,
        Is("false"),
        "A failed SASL exchange leaves the connection open, without an identity.",
    ),
    zk(
        "enforce.auth.enabled",
        Kind::Flag,
        Is("false"),
        "Clients without an identity of one of enforce.auth.schemes are sent away.",
    ),
    zk(
        "enforce.auth.schemes",
        Kind::Text("digest, ip, sasl and x509, separated by commas"),
        DefaultValue::None,
        "See enforce.auth.enabled.",
    ),
    zk("sessionRequireClientSASLAuth", Kind::Flag, Is("false"), "The same as enforcing sasl."),
    outcome(own("ephemeralsPerSession", count(1, 10_000_000), Is("100000"), "Ephemeral znodes of one session.")),
    zk("znode.container.checkIntervalMs", ms(10, MS_MAX), Is("60000"), "Between two rounds of the reaper."),
    zk(
        "znode.container.maxPerMinute",
        count(1, 10_000_000),
        Is("10000"),
        "Containers and TTL znodes removed a minute.",
    ),
    zk(
        "znode.container.maxNeverUsedIntervalMs",
        ms(0, MS_MAX),
        Is("0"),
        "A container that never had a child is removed after so long; 0: never.",
    ),
    own(
        "skipEntry",
        Kind::Text("zxids in hexadecimal, separated by commas"),
        DefaultValue::None,
        "Executes these entries as system errors. For emergencies; must be the same on every server.",
    ),
    // What follows is ZooKeeper's and means nothing here, or must not be passed over in silence.
    ignored("electionAlg", "there is one election algorithm"),
    ignored("snapCount", "the state is a database; its log is kept by size (logRetention)"),
    ignored("snapSizeLimitInKb", "the state is a database; its log is kept by size (logRetention)"),
    ignored("preAllocSize", "log files have a fixed size (segmentSize)"),
    ignored("autopurge.*", "old log files are removed by size (logRetention)"),
    ignored("leaderServes", "every server serves clients"),
    ignored("standaloneEnabled", "an ensemble of one runs the same code"),
    ignored("syncEnabled", "observers keep a log"),
    ignored("forceSync", "what is acknowledged is always on disk"),
    ignored("maxBatchSize", "batches grow by themselves"),
    ignored("maxWriteQueuePollTime", "batches grow by themselves"),
    ignored("digest.enabled", "the digest of the tree is always kept"),
    ignored("closeSessionTxn.enabled", "always on"),
    ignored("electionPortBindRetry", "the election port is not used"),
    ignored("connectToLearnerMasterLimit", "peers connect until they succeed"),
    ignored("learner.*", "peers connect until they succeed"),
    ignored("observerMasterPort", "observers follow the leader"),
    ignored("tcpKeepAlive", "peers send heartbeats"),
    ignored("nio.*", "connections are tasks"),
    ignored("serverCnxnFactory", "there is one implementation"),
    ignored("clientTcpKeepAlive", "sessions time out"),
    ignored("sessionlessCnxnTimeout", "a connection without a session is closed by the shortest session timeout"),
    ignored("request_throttle_*", "a full server stops reading its sockets (globalOutstandingLimit)"),
    ignored("throttled_op_wait_time", "a full server stops reading its sockets (globalOutstandingLimit)"),
    ignored("connectionMaxTokens", "not available yet"),
    ignored("connectionToken*", "not available yet"),
    ignored("admin.rateLimiterIntervalInMS", "there is no snapshot to ask for"),
    ignored("admin.snapshot.*", "a server gets its state from its ensemble"),
    ignored("admin.restore.*", "a server gets its state from its ensemble"),
    ignored("admin.portUnification", "AdminServer speaks plain HTTP"),
    ignored("admin.*", "AdminServer has no such setting here"),
    ignored("metricsProvider.exportJvmInfo", "there is no virtual machine"),
    ignored("metricsProvider.*", "there is no such setting here"),
    ignored("audit.enable", "not available yet"),
    ignored("ssl.keyStore.password", "PEM files have none"),
    ignored("ssl.keyStore.passwordPath", "PEM files have none"),
    ignored("ssl.trustStore.password", "PEM files have none"),
    ignored("ssl.trustStore.passwordPath", "PEM files have none"),
    ignored("ssl.hostnameVerification", "clients are known by their certificate's subject, not by their address"),
    ignored("ssl.handshakeDetectionTimeoutMillis", "a TLS handshake has the time of a connect request"),
    ignored("ssl.quorum.*", "see sslQuorum"),
    ignored("fips-mode", "there is one implementation of TLS"),
    ignored("version", "a number that ZooKeeper writes"),
    ignored("authProvider.*", "digest, ip, sasl, world and x509 are built in"),
    refused("multiAddress.enabled", Some("false"), "a server has one address"),
    refused("reconfigEnabled", Some("false"), "members change by a restart with another configuration"),
    refused(
        "sslQuorum",
        Some("false"),
        "servers cannot speak TLS to each other yet: use peerSecretFile in a private network",
    ),
    refused("quorum.auth.*", None, "servers know each other by peerSecretFile"),
    refused("portUnification", Some("false"), "servers cannot speak TLS to each other yet"),
    refused("ssl.clientHostnameVerification", Some("false"), "addresses of clients are not looked up"),
    refused("ssl.crl", Some("false"), "lists of revoked certificates are not looked at"),
    refused("ssl.ocsp", Some("false"), "lists of revoked certificates are not looked at"),
    refused("ssl.authProvider", Some("x509"), "certificates are identities of the scheme x509"),
    refused("ssl.*", None, "there is no such setting of TLS here"),
    refused(
        "DigestAuthenticationProvider.digestAlg",
        Some("SHA1"),
        "digests in ACLs are SHA-1, as ZooKeeper's are unless it is told otherwise",
    ),
    refused("letAnySaslUserDoX", None, "a name in an ACL means that user"),
    refused("admin.forceHttps", Some("false"), "AdminServer speaks plain HTTP only"),
    refused("admin.needClientAuth", Some("false"), "AdminServer speaks plain HTTP only"),
    refused("group.*", None, "a quorum is a majority of servers; weights and groups are not available"),
    refused("weight.*", None, "a quorum is a majority of servers; weights and groups are not available"),
];

/// Spellings that mean another key.
const ALIASES: &[(&str, &str)] = &[
    ("juteMaxBuffer", "jute.maxbuffer"),
    ("fourLetterWords", "4lw.commands.whitelist"),
    ("enforce.auth.scheme", "enforce.auth.schemes"),
];

/// Finds the key that `name` means.
pub fn find_key(name: &str) -> Option<&'static Key> {
    let name = name.strip_prefix("zookeeper.").unwrap_or(name);
    let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, key)| key);
    // A key of its own comes before one that stands for many.
    KEYS.iter().find(|key| key.name == name).or_else(|| {
        KEYS.iter().find(|key| {
            key.name.strip_suffix('*').is_some_and(|prefix| name.len() > prefix.len() && name.starts_with(prefix))
        })
    })
}

/// The reference of all keys as a Markdown table: what `corral keys` prints and `docs/operations.md` holds.
pub fn keys_as_markdown() -> String {
    let mut text = String::from("| key | takes | default | what it does |\n|---|---|---|---|\n");
    for key in KEYS {
        if matches!(key.kind, Kind::Ignored(_) | Kind::Refused { .. }) {
            continue;
        }
        let default = match key.default {
            Is(value) => value.to_string(),
            Follows(rule) => rule.to_string(),
            DefaultValue::Required => "must be given".to_string(),
            DefaultValue::None => "none".to_string(),
        };
        let mark = match (key.own, key.outcome) {
            (true, true) => " (ours, replicated)",
            (true, false) => " (ours)",
            (false, true) => " (replicated)",
            (false, false) => "",
        };
        text.push_str(&format!(
            "| `{}`{mark} | {} | {default} | {} |\n",
            key.name.replace('*', "N"),
            allowed(key.kind).replace('|', "\\|"),
            key.help
        ));
    }
    text.push_str("\nKeys of ZooKeeper's that are read and have no effect:\n\n");
    for key in KEYS {
        if let Kind::Ignored(why) = key.kind {
            text.push_str(&format!("- `{}`: {why}.\n", key.name));
        }
    }
    text.push_str("\nKeys of ZooKeeper's that would be dangerous to pass over, and therefore stop the start:\n\n");
    for key in KEYS {
        if let Kind::Refused { only, why } = key.kind {
            let only = only.map(|v| format!(" (`{v}` is allowed)")).unwrap_or_default();
            text.push_str(&format!("- `{}`{only}: {why}.\n", key.name));
        }
    }
    text
}

fn allowed(kind: Kind) -> String {
    match kind {
        Kind::Number { min, max, unit: "" } => format!("a number from {min} to {max}"),
        Kind::Number { min, max, unit } => format!("a number from {min} to {max} ({unit})"),
        Kind::Bytes { min, max } => format!("a size from {} to {}", size_text(min), size_text(max)),
        Kind::Flag => "true or false".to_string(),
        Kind::Text(form) => form.to_string(),
        Kind::Ignored(_) | Kind::Refused { .. } => String::new(),
    }
}

fn size_text(bytes: i64) -> String {
    match bytes {
        b if b != 0 && b % GIB == 0 => format!("{}G", b / GIB),
        b if b != 0 && b % MIB == 0 => format!("{}M", b / MIB),
        b if b != 0 && b % KIB == 0 => format!("{}K", b / KIB),
        b => b.to_string(),
    }
}

/// A size as users write it: `1048575`, `64M`, `1GiB`.
fn parse_size(text: &str) -> Option<i64> {
    // As Java reads numbers of system properties.
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return i64::from_str_radix(hex, 16).ok().filter(|n| *n >= 0);
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => KIB,
        "m" | "mb" | "mib" => MIB,
        "g" | "gb" | "gib" => GIB,
        _ => return None,
    };
    digits.parse::<i64>().ok()?.checked_mul(factor)
}

fn parse_flag(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Some(true),
        "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

// ------------------------------------------------------------------------------------------------------------- lines

/// One `key=value` of a properties file, comments gone, escapes resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    /// First line of it, from 1.
    number: usize,
    key: String,
    value: String,
}

/// Java's properties syntax: `#` and `!` comments, `=`, `:` or blanks after the key, `\` escapes and continuations.
/// Blanks at the end of a value go too, as ZooKeeper trims them.
fn parse_properties(text: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut physical = text.lines().enumerate();
    while let Some((index, first)) = physical.next() {
        let first = first.trim_start();
        if first.is_empty() || first.starts_with(['#', '!']) {
            continue;
        }
        let mut logical = first.to_string();
        while ends_with_continuation(&logical) {
            logical.pop();
            match physical.next() {
                Some((_, next)) => logical.push_str(next.trim_start()),
                None => break,
            }
        }
        let (key, value) = split_key(&logical);
        lines.push(Line { number: index + 1, key: unescape(key), value: unescape(value).trim().to_string() });
    }
    lines
}

fn ends_with_continuation(line: &str) -> bool {
    line.bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 1
}

fn split_key(line: &str) -> (&str, &str) {
    let mut escaped = false;
    let end = line
        .char_indices()
        .find(|(_, c)| {
            let ends = !escaped && (matches!(c, '=' | ':') || c.is_whitespace());
            escaped = !escaped && *c == '\\';
            ends
        })
        .map_or(line.len(), |(at, _)| at);
    let rest = line[end..].trim_start();
    let rest = rest.strip_prefix(['=', ':']).unwrap_or(rest);
    (&line[..end], rest.trim_start())
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('t') => out.push('\t'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('f') => out.push('\u{c}'),
            Some('u') => {
                let code: String = chars.by_ref().take(4).collect();
                out.push(u32::from_str_radix(&code, 16).ok().and_then(char::from_u32).unwrap_or('\u{fffd}'));
            }
            Some(other) => out.push(other),
            None => {}
        }
    }
    out
}

// ----------------------------------------------------------------------------------------------------------- parsing

/// Reads a file that a key names: `Ok(None)` if it does not exist, `Err` with the reason if it cannot be read.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> Result<Option<String>, String>;

/// One key given on the command line; wins over every file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// As the user knows it: `--set`, `--data-dir`.
    pub flag: String,
    /// A key of [`KEYS`].
    pub key: String,
    /// Its value.
    pub value: String,
}

impl Override {
    /// Splits the argument of `--set`.
    ///
    /// # Errors
    /// If there is no `=` in it.
    pub fn from_set(argument: &str) -> Result<Override, String> {
        match argument.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                Ok(Override { flag: "--set".into(), key: key.trim().into(), value: value.trim().into() })
            }
            _ => Err(format!("\"{argument}\" is not KEY=VALUE")),
        }
    }
}

/// A configuration that can be used, and what to tell about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// The configuration.
    pub config: Config,
    /// In the order of the file.
    pub notices: Vec<Notice>,
}

/// Makes a configuration from the text of a `zoo.cfg` (`file`: its name and text), from `overrides`, and from the files
/// that these name. Without a file and without `server` lines the result is an ensemble of one.
///
/// # Errors
/// All wrong values at once, each with file, line, key and what is allowed.
pub fn parse(
    file: Option<(&str, &str)>,
    overrides: &[Override],
    read_file: ReadFile<'_>,
) -> Result<Parsed, ConfigErrors> {
    let mut draft = Draft {
        values: BTreeMap::new(),
        whole: file.map_or(Origin::Default, |(name, _)| Origin::Line { file: name.to_string(), line: 0 }),
        errors: Vec::new(),
        notices: Vec::new(),
        read_file,
    };
    if let Some((name, text)) = file {
        draft.add_file(name, text, |_| true);
        if let Some(dynamic) = draft.text("dynamicConfigFile") {
            match (draft.read_file)(Path::new(&dynamic)) {
                Ok(Some(text)) => draft.add_file(&dynamic, &text, |key| key.starts_with("server.") || key == "version"),
                Ok(None) => draft.fail("dynamicConfigFile", format!("{dynamic} does not exist")),
                Err(reason) => draft.fail("dynamicConfigFile", format!("cannot read {dynamic}: {reason}")),
            }
        }
    }
    for o in overrides {
        draft.add(Origin::Flag(o.flag.clone()), &o.key, &o.value, true);
    }
    let config = draft.build();
    match config {
        Some(config) if draft.errors.is_empty() => Ok(Parsed { config, notices: draft.notices }),
        _ => Err(ConfigErrors(draft.errors)),
    }
}

struct Draft<'a> {
    /// By the key's full name (`server.1`, not `server.*`).
    values: BTreeMap<String, (Origin, String)>,
    /// Where a missing key is missing.
    whole: Origin,
    errors: Vec<ConfigError>,
    notices: Vec<Notice>,
    read_file: ReadFile<'a>,
}

impl Draft<'_> {
    fn add_file(&mut self, name: &str, text: &str, wanted: impl Fn(&str) -> bool) {
        for line in parse_properties(text) {
            let origin = Origin::Line { file: name.to_string(), line: line.number };
            if wanted(&line.key) {
                self.add(origin, &line.key, &line.value, false);
            } else {
                self.notice(origin, &line.key, "only server lines are read from this file".into(), true);
            }
        }
    }

    /// Takes one key. A later one wins, as in ZooKeeper; within a file that is said.
    fn add(&mut self, origin: Origin, name: &str, value: &str, replace: bool) {
        let Some(key) = find_key(name) else {
            let hint = did_you_mean(name).map(|k| format!("; did you mean {k}?")).unwrap_or_default();
            if matches!(origin, Origin::Flag(_)) {
                // Somebody typed it just now: there is no old file to be kind to.
                self.error(origin, name, format!("unknown key{hint}"));
            } else {
                self.notice(origin, name, format!("unknown key, ignored{hint}"), true);
            }
            return;
        };
        match key.kind {
            Kind::Ignored(why) => {
                let warning = why.contains("not available");
                self.notice(origin, name, format!("has no effect here: {why}"), warning);
                return;
            }
            Kind::Refused { only, why } => {
                if only != Some(value) {
                    let only = only.map_or("remove the line".to_string(), |v| format!("allowed: {v}"));
                    self.error(origin, name, format!("\"{value}\" is not supported: {why}; {only}"));
                }
                return;
            }
            _ => {}
        }
        let full = if key.name.ends_with('*') { name.to_string() } else { key.name.to_string() };
        let former = self.values.insert(full, (origin.clone(), value.to_string()));
        if let Some((former, _)) = former
            && !replace
        {
            self.notice(origin, name, format!("given twice; this one replaces the one at {former}"), true);
        }
    }

    fn notice(&mut self, origin: Origin, key: &str, text: String, warning: bool) {
        self.notices.push(Notice { origin, key: key.to_string(), text, warning });
    }

    fn error(&mut self, origin: Origin, key: &str, problem: String) {
        self.errors.push(ConfigError { origin, key: key.to_string(), problem });
    }

    /// An error where `key` stands, or in the configuration as a whole.
    fn fail(&mut self, key: &str, problem: String) {
        let origin = self.origin(key);
        self.error(origin, key, problem);
    }

    fn origin(&self, key: &str) -> Origin {
        self.values.get(key).map_or(self.whole.clone(), |(origin, _)| origin.clone())
    }

    fn text(&self, name: &str) -> Option<String> {
        debug_assert!(find_key(name).is_some(), "{name} is not in KEYS");
        self.values.get(name).map(|(_, value)| value.clone())
    }

    /// A number or size as configured; `None` if missing; the smallest allowed one (and an error) if wrong.
    fn given(&mut self, name: &str) -> Option<i64> {
        let kind = find_key(name).expect("asked for by name below, and a test parses an empty file").kind;
        let value = self.text(name)?;
        let (number, min, max) = match kind {
            Kind::Bytes { min, max } => (parse_size(&value), min, max),
            Kind::Number { min, max, .. } => (value.parse().ok(), min, max),
            _ => unreachable!("{name} is no number"),
        };
        match number {
            Some(number) if (min..=max).contains(&number) => Some(number),
            Some(_) => {
                self.fail(name, format!("{value} is out of range; allowed: {}", allowed(kind)));
                Some(min)
            }
            None => {
                let what = if matches!(kind, Kind::Bytes { .. }) { "size" } else { "whole number" };
                self.fail(name, format!("\"{value}\" is not a {what}; allowed: {}", allowed(kind)));
                Some(min)
            }
        }
    }

    fn number(&mut self, name: &str) -> i64 {
        self.given(name).unwrap_or_else(|| match find_key(name).map(|k| k.default) {
            Some(Is(value)) => parse_size(value).expect("defaults in KEYS are numbers; a test parses an empty file"),
            _ => unreachable!("{name} has no fixed default"),
        })
    }

    fn unsigned(&mut self, name: &str) -> u64 {
        self.number(name).unsigned_abs()
    }

    fn flag(&mut self, name: &str) -> bool {
        let default = match find_key(name).map(|k| k.default) {
            Some(Is(value)) => parse_flag(value).expect("defaults in KEYS are flags; a test parses an empty file"),
            _ => unreachable!("{name} has no fixed default"),
        };
        let Some(value) = self.text(name) else { return default };
        parse_flag(&value).unwrap_or_else(|| {
            self.fail(name, format!("\"{value}\" is neither; allowed: {}", allowed(Kind::Flag)));
            default
        })
    }

    fn build(&mut self) -> Option<Config> {
        let Some(data_dir) = self.text("dataDir").filter(|d| !d.is_empty()).map(PathBuf::from) else {
            let whole = self.whole.clone();
            self.error(whole, "dataDir", "missing; allowed: a folder for the state of this server".into());
            return None;
        };
        let data_log_dir = self.text("dataLogDir").map_or_else(|| data_dir.clone(), PathBuf::from);

        let mut servers = self.servers();
        let my_id = self.my_id(&data_dir, &servers);
        let alone = servers.is_empty();
        if alone {
            let me = ServerSpec {
                host: "localhost".into(),
                peer_port: 0,
                election_port: None,
                observer: false,
                client: None,
            };
            servers.insert(my_id, me);
        }
        self.check_members(my_id, &servers);
        let me = servers.get(&my_id).cloned();
        let client_addr = self.client_addr(my_id, me.as_ref());
        let all_addresses = self.flag("quorumListenOnAllIPs");
        let peer_bind = me
            .filter(|_| servers.len() > 1)
            .map(|me| HostPort::new(if all_addresses { "0.0.0.0".to_string() } else { me.host.clone() }, me.peer_port));

        let secure_client_addr = self.given("secureClientPort").map(|port| {
            let host = self.text("secureClientPortAddress").unwrap_or_else(|| "0.0.0.0".into());
            HostPort::new(host.trim_matches(['[', ']']), port as u16)
        });
        let port_unification = self.flag("client.portUnification");
        let tls = self.tls(secure_client_addr.is_some() || port_unification);
        let auth = self.auth(tls.is_some());
        let times = self.times();
        let whitelist = self.whitelist();
        let memory_limit = self.unsigned("memoryLimit");
        let segment_bytes = self.unsigned("segmentSize");
        let jute_max_buffer = self.unsigned("jute.maxbuffer");
        if segment_bytes < 2 * jute_max_buffer {
            self.fail(
                "segmentSize",
                format!(
                    "{} is too small for requests of {jute_max_buffer} bytes (jute.maxbuffer); allowed: at least twice that",
                    size_text(segment_bytes as i64)
                ),
            );
        }
        let admin = self.admin(&client_addr);
        let metrics = self.metrics(&client_addr);
        let min_free = self.given("minFreeSpace").map(i64::unsigned_abs);
        let config = Config {
            my_id,
            servers,
            data_dir,
            data_log_dir,
            client_addr,
            secure_client_addr,
            port_unification,
            tls,
            client_backlog: u32::try_from(self.number("clientPortListenBacklog")).ok(),
            peer_bind,
            peer_connect_timeout_ms: self.unsigned("cnxTimeout") * 1000,
            peer_secret: self.peer_secret(),
            tick_time_ms: times.tick,
            limits_ticks: times.limits,
            init_timeout_ms: times.init,
            sync_timeout_ms: times.sync,
            ping_interval_ms: times.ping,
            election_quiet_ms: times.quiet,
            min_session_timeout_ms: times.min_session,
            max_session_timeout_ms: times.max_session,
            max_client_cnxns: self.unsigned("maxClientCnxns") as u32,
            max_cnxns: self.unsigned("maxCnxns") as u32,
            whitelist,
            admin,
            admin_command_url: self.text("admin.commandURL").unwrap_or_else(|| "/commands".into()),
            admin_idle_timeout_ms: self.unsigned("admin.idleTimeout"),
            metrics,
            global_outstanding_limit: self.unsigned("globalOutstandingLimit") as usize,
            session_outstanding_limit: self.unsigned("sessionOutstandingLimit") as usize,
            worker_threads: self.unsigned("workerThreads") as usize,
            read_only_mode: self.flag("readonlymode.enabled"),
            local_sessions: self.flag("localSessionsEnabled"),
            local_sessions_upgrading: self.flag("localSessionsUpgradingEnabled"),
            replay_persistent_watches: self.flag("replayPersistentWatches"),
            change_feed_bytes: self.unsigned("changeFeedSize"),
            change_feed_age_ms: self.unsigned("changeFeedAge"),
            memory_limit,
            jute_max_buffer: jute_max_buffer as usize,
            segment_bytes,
            log_retention_bytes: self.unsigned("logRetention"),
            snapshot_threshold_bytes: self.unsigned("snapshotThreshold"),
            flush_entries: self.unsigned("flushAfterEntries"),
            flush_bytes: self.unsigned("flushAfterBytes"),
            flush_delay_ms: self.unsigned("flushDelay"),
            fsync_warning_ms: self.unsigned("fsync.warningthresholdms"),
            min_free_bytes: min_free.unwrap_or(2 * segment_bytes + memory_limit / 6),
            skip_acl: self.flag("skipACL"),
            enforce_quota: self.flag("enforceQuota"),
            extended_types: self.flag("extendedTypesEnabled"),
            keeper_extensions: self.flag("keeperExtensions"),
            super_digest: self.super_digest(),
            auth,
            ephemerals_per_session: self.unsigned("ephemeralsPerSession") as u32,
            reaper_interval_ms: self.unsigned("znode.container.checkIntervalMs"),
            reaper_max_per_minute: self.unsigned("znode.container.maxPerMinute") as u32,
            container_never_used_ms: self.unsigned("znode.container.maxNeverUsedIntervalMs"),
            skip_entries: self.skip_entries(),
        };
        if config.peer_secret.is_none() && !config.is_alone() && !config.is_loopback_only() {
            let whole = self.whole.clone();
            let text = "missing: whoever reaches the port between servers can speak as one of them";
            self.notice(whole, "peerSecretFile", text.into(), true);
        }
        Some(config)
    }

    fn servers(&mut self) -> BTreeMap<ServerId, ServerSpec> {
        let lines: Vec<(String, Origin, String)> = self
            .values
            .iter()
            .filter(|(key, _)| key.starts_with("server."))
            .map(|(key, (origin, value))| (key.clone(), origin.clone(), value.clone()))
            .collect();
        let mut servers = BTreeMap::new();
        let mut alternatives = false;
        for (key, origin, value) in lines {
            let id = key["server.".len()..].parse::<u64>().ok().filter(|id| (1..=SERVER_ID_MAX).contains(id));
            let Some(id) = id else {
                self.error(
                    origin,
                    &key,
                    format!("not the number of a server; allowed: server.1 to server.{SERVER_ID_MAX}"),
                );
                continue;
            };
            alternatives |= value.contains('|');
            match parse_server(&value) {
                Ok(spec) => {
                    let twin = servers.iter().find(|(_, s): &(_, &ServerSpec)| s.peer_addr() == spec.peer_addr());
                    if let Some((twin, _)) = twin {
                        let problem = format!("{} is the address of server.{twin} already", spec.peer_addr());
                        self.error(origin, &key, problem);
                    }
                    servers.insert(ServerId(id), spec);
                }
                Err(problem) => {
                    let form = allowed(find_key("server.1").map_or(Kind::Flag, |k| k.kind));
                    self.error(origin, &key, format!("\"{value}\": {problem}; allowed: {form}"));
                }
            }
        }
        if alternatives {
            let whole = self.whole.clone();
            self.notice(whole, "server", "a server has one address: those after | are not used".into(), true);
        }
        servers
    }

    fn my_id(&mut self, data_dir: &Path, servers: &BTreeMap<ServerId, ServerSpec>) -> ServerId {
        if let Some(id) = self.given("myid") {
            return ServerId(id.unsigned_abs());
        }
        let path = data_dir.join("myid");
        let whole = Origin::Line { file: path.display().to_string(), line: 0 };
        let members = servers.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match (self.read_file)(&path) {
            Ok(Some(text)) => match text.trim().parse::<u64>().ok().filter(|id| (1..=SERVER_ID_MAX).contains(id)) {
                Some(id) => return ServerId(id),
                None => {
                    let text: String = text.trim().chars().take(40).collect();
                    let problem = format!("\"{text}\" is not a server's number; allowed: 1 to {SERVER_ID_MAX}");
                    self.error(whole, "myid", problem);
                }
            },
            // One line leaves nothing to ask.
            Ok(None) if servers.len() == 1 => return *servers.keys().next().expect("one"),
            Ok(None) if servers.is_empty() => {}
            Ok(None) => self.error(
                whole,
                "myid",
                format!("missing; write the number of this server into the file, one of: {members}"),
            ),
            Err(reason) => self.error(whole, "myid", format!("cannot be read: {reason}")),
        }
        ServerId(1)
    }

    fn check_members(&mut self, my_id: ServerId, servers: &BTreeMap<ServerId, ServerSpec>) {
        let members = servers.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let Some(me) = servers.get(&my_id) else {
            // A wrong myid has been reported; this one is right and belongs to nobody.
            if !self.errors.iter().any(|e| e.key == "myid" || e.key.starts_with("server.")) {
                self.fail(
                    "myid",
                    format!("this server is {my_id}, and there is no server.{my_id}; members: {members}"),
                );
            }
            return;
        };
        let voters = servers.values().filter(|s| !s.observer).count();
        let whole = self.whole.clone();
        if voters == 0 {
            self.error(whole, "server", "every server is an observer; at least one must be a participant".into());
        } else if voters % 2 == 0 {
            let text = format!("{voters} servers vote: {} would survive as many failures", voters - 1);
            self.notice(whole, "server", text, true);
        }
        let observer = me.observer;
        match self.text("peerType").as_deref() {
            None => {}
            Some(kind @ ("observer" | "participant")) if (kind == "observer") != observer => {
                let origin = self.origin("peerType");
                let text = format!("server.{my_id} says {}, and that holds", role(observer));
                self.notice(origin, "peerType", text, true);
            }
            Some("observer" | "participant") => {}
            Some(other) => {
                self.fail("peerType", format!("\"{other}\" is no role; allowed: participant or observer"));
            }
        }
    }

    fn client_addr(&mut self, my_id: ServerId, me: Option<&ServerSpec>) -> HostPort {
        let port = self.given("clientPort").map(|p| p as u16);
        let address = self.text("clientPortAddress").map(|a| a.trim_matches(['[', ']']).to_string());
        let line = me.and_then(|me| me.client.clone());
        // A flag is meant to win over the line of this server; two places of a file must agree.
        let flagged = matches!(self.origin("clientPort"), Origin::Flag(_));
        if let (Some(line), Some(port)) = (&line, port)
            && line.port != port
            && !flagged
        {
            let problem =
                format!("{port}, and server.{my_id} says {}; allowed: the same, or only one of them", line.port);
            self.fail("clientPort", problem);
        }
        let line_host = line.as_ref().map(|l| l.host.clone());
        let line_port = line.as_ref().map(|l| l.port);
        HostPort {
            host: address.or(line_host).unwrap_or_else(|| "0.0.0.0".into()),
            port: if flagged { port.or(line_port) } else { line_port.or(port) }.unwrap_or(CLIENT_PORT_DEFAULT),
        }
    }

    fn times(&mut self) -> Times {
        let tick = self.unsigned("tickTime");
        let given = |draft: &mut Self, key| draft.given(key).filter(|v| *v >= 0).map(i64::unsigned_abs);
        let min_session = given(self, "minSessionTimeout").unwrap_or(2 * tick);
        let max_session = given(self, "maxSessionTimeout").unwrap_or(20 * tick).min(MS_MAX as u64);
        if min_session == 0 || min_session > max_session {
            self.fail(
                "minSessionTimeout",
                format!("{min_session} ms; allowed: 1 to maxSessionTimeout ({max_session} ms)"),
            );
        }
        let sync = given(self, "syncTimeout").unwrap_or((min_session / 2).clamp(1, 2000));
        if min_session < 2 * sync {
            // Otherwise a session could end in the time that an ensemble needs to notice that its leader is gone.
            let key = if self.values.contains_key("syncTimeout") { "syncTimeout" } else { "minSessionTimeout" };
            self.fail(
                key,
                format!(
                    "minSessionTimeout is {min_session} ms and syncTimeout {sync} ms; \
                     allowed: minSessionTimeout at least 2 x syncTimeout"
                ),
            );
        }
        let init_ticks = self.unsigned("initLimit");
        let init = given(self, "initTimeout").unwrap_or(init_ticks * tick);
        if init < sync {
            self.fail("initTimeout", format!("{init} ms is less than syncTimeout; allowed: {sync} ms or more"));
        }
        if self.values.contains_key("syncLimit") {
            let limit = self.unsigned("syncLimit") * tick;
            if limit > sync {
                let origin = self.origin("syncLimit");
                let text = format!(
                    "{limit} ms; a silent server is given up after syncTimeout, {sync} ms, so that sessions survive it"
                );
                self.notice(origin, "syncLimit", text, false);
            }
        }
        let quarter = (sync / 4).clamp(1, 100);
        let ping = given(self, "pingInterval").unwrap_or(quarter);
        if ping > (sync / 4).max(1) {
            self.fail("pingInterval", format!("{ping} ms; allowed: at most a quarter of syncTimeout ({sync} ms)"));
        }
        let quiet = given(self, "electionQuiet").unwrap_or(quarter);
        let limits = [init_ticks, self.unsigned("syncLimit")];
        Times { tick, limits, init, sync, ping, quiet, min_session, max_session }
    }

    fn whitelist(&mut self) -> Whitelist {
        // Clients that would read without a quorum look for such a server by this word.
        let default = if self.flag("readonlymode.enabled") { "srvr,isro" } else { "srvr" };
        let value = self.text("4lw.commands.whitelist").unwrap_or_else(|| default.into());
        let words: BTreeSet<String> =
            value.split(',').map(|w| w.trim().to_string()).filter(|w| !w.is_empty()).collect();
        if words.contains("*") {
            return Whitelist::All;
        }
        if let Some(word) = words.iter().find(|w| w.len() != 4 || !w.bytes().all(|b| b.is_ascii_lowercase())) {
            let form = allowed(find_key("4lw.commands.whitelist").map_or(Kind::Flag, |k| k.kind));
            self.fail("4lw.commands.whitelist", format!("\"{word}\" is not a four-letter word; allowed: {form}"));
        }
        Whitelist::Only(words)
    }

    /// Off unless it is asked for, by any of the keys that say where: a port that nobody asked for is one to be found by
    /// strangers, and 8080 is everybody's favourite.
    fn admin(&mut self, clients: &HostPort) -> Option<HostPort> {
        let port = self.number("admin.serverPort") as u16;
        let address = self.text("admin.serverAddress");
        let asked = address.is_some() || self.values.contains_key("admin.serverPort");
        let enabled = match self.text("admin.enableServer") {
            None => asked,
            Some(value) => parse_flag(&value).unwrap_or_else(|| {
                let problem = format!("\"{value}\" is neither; allowed: {}", allowed(Kind::Flag));
                self.fail("admin.enableServer", problem);
                false
            }),
        };
        let host = address.map_or_else(|| clients.host.clone(), |a| a.trim_matches(['[', ']']).to_string());
        enabled.then(|| HostPort::new(host, port))
    }

    fn metrics(&mut self, clients: &HostPort) -> Option<HostPort> {
        let port = self.number("metricsProvider.httpPort") as u16;
        let host = self.text("metricsProvider.httpHost");
        let class = self.text("metricsProvider.className").unwrap_or_default();
        match class.rsplit('.').next().unwrap_or_default() {
            "PrometheusMetricsProvider" => {
                let host = host.map_or_else(|| clients.host.clone(), |h| h.trim_matches(['[', ']']).to_string());
                Some(HostPort::new(host, port))
            }
            "" | "DefaultMetricsProvider" | "NullMetricsProvider" => None,
            _ => {
                let origin = self.origin("metricsProvider.className");
                let text = format!("{class} is not known here; only PrometheusMetricsProvider has an effect");
                self.notice(origin, "metricsProvider.className", text, true);
                None
            }
        }
    }

    fn peer_secret(&mut self) -> Option<Secret> {
        let path = self.text("peerSecretFile")?;
        let problem = match (self.read_file)(Path::new(&path)) {
            Ok(Some(text)) => {
                let secret = text.trim();
                if !secret.is_empty() && secret.len() <= SECRET_BYTES_MAX {
                    return Some(Secret::new(secret));
                }
                format!("{path} holds {} bytes; allowed: 1 to {SECRET_BYTES_MAX} bytes of text", secret.len())
            }
            Ok(None) => format!("{path} does not exist"),
            Err(reason) => format!("cannot read {path}: {reason}"),
        };
        self.fail("peerSecretFile", problem);
        None
    }

    fn super_digest(&mut self) -> Option<Secret> {
        let name = "DigestAuthenticationProvider.superDigest";
        let value = self.text(name)?;
        let valid = value.strip_prefix("super:").is_some_and(|d| !d.is_empty());
        if !valid {
            self.fail(name, format!("not a digest of super; allowed: {}", allowed(find_key(name)?.kind)));
        }
        valid.then(|| Secret::new(value))
    }

    /// TLS for clients, if a port speaks it; the rest of the keys is checked in any case.
    fn tls(&mut self, wanted: bool) -> Option<TlsConfig> {
        let file = |draft: &mut Self, store: &str| {
            let (location, kind) = (format!("{store}.location"), format!("{store}.type"));
            let path = draft.text(&location).filter(|path| !path.is_empty());
            let kind = draft.text(&kind).map(|kind| (kind.to_ascii_uppercase(), kind));
            let is_java = match kind.as_ref().map(|(kind, _)| kind.as_str()) {
                Some("PEM" | "") | None => {
                    let ending =
                        path.as_deref().and_then(|path| path.rsplit_once('.')).map(|(_, e)| e.to_ascii_lowercase());
                    kind.is_none() && matches!(ending.as_deref(), Some("jks" | "p12" | "pfx" | "bcfks"))
                }
                Some(_) => true,
            };
            if is_java {
                let shown = kind.map_or_else(|| "a keystore of Java's".to_owned(), |(_, kind)| format!("\"{kind}\""));
                let path = path.clone().unwrap_or_else(|| "KEYSTORE".into());
                let is_pkcs12 = path.ends_with("p12") || path.ends_with("pfx") || shown.contains("12");
                let command = crate::tls::conversion(Path::new(&path), is_pkcs12, store == "ssl.keyStore");
                draft.fail(&location, format!("{shown}: only PEM is read; convert it: {command}"));
            }
            path.map(PathBuf::from)
        };
        let key_store = file(self, "ssl.keyStore");
        let trust_store = file(self, "ssl.trustStore");
        let client_auth =
            match self.text("ssl.clientAuth").unwrap_or_else(|| "need".into()).to_ascii_lowercase().as_str() {
                "need" => ClientAuth::Need,
                "want" => ClientAuth::Want,
                "none" => ClientAuth::None,
                other => {
                    self.fail("ssl.clientAuth", format!("\"{other}\" is neither; allowed: need, want or none"));
                    ClientAuth::None
                }
            };
        let (tls12, tls13) = self.tls_versions();
        let words = |text: Option<String>| {
            let text = text.unwrap_or_default();
            text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        let cipher_suites = words(self.text("ssl.ciphersuites"));
        let reload = self.flag("client.certReload");
        let interval = self.unsigned("certReloadInterval");
        let handshakes_max = self.unsigned("netty.server.outstandingHandshake.limit") as usize;
        let super_user = self.text("X509AuthenticationProvider.superUser").filter(|name| !name.is_empty());
        if !wanted {
            return None;
        }
        let port =
            if self.values.contains_key("secureClientPort") { "secureClientPort" } else { "client.portUnification" };
        let Some(key_store) = key_store else {
            self.fail(port, "TLS needs a certificate; set ssl.keyStore.location to a PEM file".into());
            return None;
        };
        if trust_store.is_none() && client_auth != ClientAuth::None {
            let problem = "client certificates are asked for and cannot be checked; set ssl.trustStore.location to a PEM \
                           file, or ssl.clientAuth=none";
            self.fail(port, problem.into());
        }
        Some(TlsConfig {
            key_store,
            trust_store,
            client_auth,
            tls12,
            tls13,
            cipher_suites,
            reload_interval_ms: reload.then_some(interval),
            handshakes_max,
            super_user,
        })
    }

    /// Whether TLS 1.2 and TLS 1.3 are spoken.
    fn tls_versions(&mut self) -> (bool, bool) {
        let key =
            if self.values.contains_key("ssl.enabledProtocols") { "ssl.enabledProtocols" } else { "ssl.protocol" };
        let value = self.text(key).unwrap_or_else(|| "TLS".into());
        let (mut tls12, mut tls13) = (false, false);
        let before = self.errors.len();
        for word in value.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word {
                "TLS" => (tls12, tls13) = (true, true),
                "TLSv1.2" => tls12 = true,
                "TLSv1.3" => tls13 = true,
                _ => self.fail(key, format!("\"{word}\" is not spoken; allowed: TLSv1.2, TLSv1.3")),
            }
        }
        if !tls12 && !tls13 && self.errors.len() == before {
            self.fail(key, "no version is left; allowed: TLSv1.2, TLSv1.3".into());
        }
        (tls12, tls13)
    }

    fn auth(&mut self, has_tls: bool) -> AuthConfig {
        let sasl_users = self.text("saslUsersFile").and_then(|path| {
            let problem = match (self.read_file)(Path::new(&path)) {
                Ok(Some(text)) => match sasl::parse_users(&text) {
                    Ok(users) => return Some(users),
                    Err(problem) => format!("{path}: {problem}"),
                },
                Ok(None) => format!("{path} does not exist"),
                Err(reason) => format!("cannot read {path}: {reason}"),
            };
            self.fail("saslUsersFile", problem);
            None
        });
        let words = |text: Option<String>| {
            let text = text.unwrap_or_default();
            text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect::<BTreeSet<_>>()
        };
        let sasl_demanded = self.flag("sessionRequireClientSASLAuth");
        let key = if sasl_demanded { "sessionRequireClientSASLAuth" } else { "enforce.auth.schemes" };
        let demanded_schemes = match (sasl_demanded, self.flag("enforce.auth.enabled")) {
            (true, _) => BTreeSet::from(["sasl".to_owned()]),
            (false, false) => BTreeSet::new(),
            (false, true) => {
                let schemes = words(self.text("enforce.auth.schemes"));
                if schemes.is_empty() {
                    let problem = "no scheme is named; set enforce.auth.schemes to digest, ip, sasl or x509";
                    self.fail("enforce.auth.enabled", problem.into());
                }
                schemes
            }
        };
        for scheme in &demanded_schemes {
            let problem = match scheme.as_str() {
                "digest" | "ip" => continue,
                "sasl" if self.values.contains_key("saslUsersFile") => continue,
                "x509" if has_tls => continue,
                "sasl" => "nobody can prove an identity of sasl: set saslUsersFile".to_owned(),
                "x509" => "nobody can prove an identity of x509: set secureClientPort".to_owned(),
                other => format!("\"{other}\" is no scheme to demand; allowed: digest, ip, sasl, x509"),
            };
            self.fail(key, problem);
        }
        AuthConfig {
            sasl_users,
            sasl_super_users: words(self.text("superUser")),
            allow_sasl_failed: self.flag("allowSaslFailedClients"),
            demanded_schemes,
        }
    }

    fn skip_entries(&mut self) -> BTreeSet<Zxid> {
        let Some(value) = self.text("skipEntry") else { return BTreeSet::new() };
        let mut zxids = BTreeSet::new();
        for word in value.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            match u64::from_str_radix(word.trim_start_matches("0x"), 16) {
                Ok(zxid) => {
                    zxids.insert(Zxid(zxid));
                }
                Err(_) => {
                    self.fail("skipEntry", format!("\"{word}\" is no zxid; allowed: hexadecimal, as 0x500000003"))
                }
            }
        }
        zxids
    }
}

struct Times {
    tick: u64,
    limits: [u64; 2],
    init: u64,
    sync: u64,
    ping: u64,
    quiet: u64,
    min_session: u64,
    max_session: u64,
}

/// `host:port:port[:role][|more][;[addr:]port[;...]]` (wire 11.2).
fn parse_server(value: &str) -> Result<ServerSpec, String> {
    let mut parts = value.split(';');
    let address = parts.next().unwrap_or_default();
    let address = address.split('|').next().unwrap_or_default().trim();
    let (host, rest) = split_host(address)?;
    let mut fields = rest.split(':');
    let peer_port = parse_port(fields.next().unwrap_or_default(), "port between servers")?;
    let mut election_port = None;
    let mut observer = false;
    for (index, field) in fields.enumerate() {
        match field.trim() {
            "observer" => observer = true,
            "participant" => observer = false,
            port if index == 0 => election_port = Some(parse_port(port, "election port")?),
            other => return Err(format!("\"{other}\" is no role")),
        }
    }
    let client = match parts.next().map(str::trim) {
        None | Some("") => None,
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => {
            Some(HostPort::new("0.0.0.0", parse_port(port, "client port")?))
        }
        Some(address) => {
            let (host, port) = split_host(address)?;
            Some(HostPort::new(host, parse_port(port, "client port")?))
        }
    };
    Ok(ServerSpec { host, peer_port, election_port, observer, client })
}

/// Splits `host:rest`, where an IPv6 host stands in brackets.
fn split_host(text: &str) -> Result<(String, &str), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("the bracket is not closed")?;
        if host.parse::<core::net::Ipv6Addr>().is_err() {
            return Err(format!("\"{host}\" is not an IPv6 address"));
        }
        return Ok((host.to_string(), rest.strip_prefix(':').ok_or("no port")?));
    }
    let (host, rest) = text.split_once(':').ok_or("no port")?;
    let host = host.trim();
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err("no host".into());
    }
    Ok((host.to_string(), rest))
}

fn parse_port(text: &str, what: &str) -> Result<u16, String> {
    match text.trim().parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("\"{text}\" is not a {what} (1 to 65535)")),
    }
}

/// The key that `name` was perhaps meant to be: the same but for case, or at most two letters away.
fn did_you_mean(name: &str) -> Option<&'static str> {
    KEYS.iter()
        .map(|k| k.name)
        .filter(|k| !k.ends_with('*'))
        .map(|k| (if k.eq_ignore_ascii_case(name) { 0 } else { distance(k, name) }, k))
        .min()
        .filter(|(d, _)| *d <= 2)
        .map(|(_, k)| k)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let up = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != *y)).min(up + 1).min(row[j] + 1);
            diagonal = up;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: &str = "tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir=/d\nclientPort=2181\n\
        server.1=zoo1:2888:3888\nserver.2=zoo2:2888:3888\nserver.3=zoo3:2888:3888\n";

    fn files(list: &'static [(&'static str, &'static str)]) -> impl Fn(&Path) -> Result<Option<String>, String> {
        move |path| Ok(list.iter().find(|(p, _)| Path::new(p) == path).map(|(_, t)| t.to_string()))
    }

    fn parse_with(text: &str, list: &'static [(&'static str, &'static str)]) -> Result<Parsed, ConfigErrors> {
        parse(Some(("zoo.cfg", text)), &[], &files(list))
    }

    fn config(text: &str) -> Config {
        parse_with(text, &[("/d/myid", "2\n")]).unwrap().config
    }

    fn errors(text: &str) -> String {
        parse_with(text, &[("/d/myid", "2\n")]).unwrap_err().to_string()
    }

    fn set(argument: &str) -> Override {
        Override::from_set(argument).unwrap()
    }

    #[test]
    fn admin_server_listens_where_it_is_told_and_not_unasked() {
        let admin = |text: &str| config(&format!("{THREE}{text}")).admin.map(|address| address.to_string());
        assert_eq!(admin(""), None);
        assert_eq!(admin("admin.enableServer=true"), Some("0.0.0.0:8080".into()));
        assert_eq!(admin("admin.serverPort=9090"), Some("0.0.0.0:9090".into()));
        assert_eq!(admin("admin.serverAddress=::1"), Some("[::1]:8080".into()));
        assert_eq!(admin("clientPortAddress=10.0.0.1\nadmin.serverPort=0"), Some("10.0.0.1:0".into()));
        assert_eq!(admin("admin.serverPort=9090\nadmin.enableServer=false"), None);
        assert!(errors(&format!("{THREE}admin.enableServer=maybe")).contains("\"maybe\" is neither"));
        assert!(errors(&format!("{THREE}admin.forceHttps=true")).contains("speaks plain HTTP only"));
    }

    #[test]
    fn figures_have_a_port_with_zookeepers_class_only() {
        const CLASS: &str = "metricsProvider.className=org.apache.zookeeper.metrics";
        let metrics = |text: &str| config(&format!("{THREE}{text}")).metrics.map(|address| address.to_string());
        assert_eq!(metrics("metricsProvider.httpPort=7001"), None);
        assert_eq!(metrics(&format!("{CLASS}.impl.DefaultMetricsProvider")), None);
        let prometheus = format!("{CLASS}.prometheus.PrometheusMetricsProvider\n");
        assert_eq!(metrics(&prometheus), Some("0.0.0.0:7000".into()));
        let text = format!("{prometheus}metricsProvider.httpPort=0\nmetricsProvider.httpHost=127.0.0.1\n");
        assert_eq!(metrics(&text), Some("127.0.0.1:0".into()));
        let text = format!("{THREE}metricsProvider.className=com.example.Mine\nmetricsProvider.exportJvmInfo=true\n");
        let notices = parse_with(&text, &[("/d/myid", "2\n")]).unwrap().notices;
        assert!(
            notices.iter().any(|n| n.warning && n.text.contains("com.example.Mine is not known here")),
            "{notices:?}"
        );
        assert!(notices.iter().any(|n| !n.warning && n.key == "metricsProvider.exportJvmInfo"), "{notices:?}");
    }

    #[test]
    fn zookeepers_own_sample_just_works() {
        let Parsed { config, notices } = parse_with(THREE, &[("/d/myid", "2\n")]).unwrap();
        assert_eq!(config.my_id, ServerId(2));
        assert_eq!(config.voters(), [ServerId(1), ServerId(2), ServerId(3)]);
        assert_eq!(config.client_addr.to_string(), "0.0.0.0:2181");
        assert_eq!(config.peer_bind, Some(HostPort::new("zoo2", 2888)));
        assert_eq!(config.data_log_dir, PathBuf::from("/d"));
        assert_eq!((config.min_session_timeout_ms, config.max_session_timeout_ms), (4000, 40_000));
        assert_eq!((config.sync_timeout_ms, config.init_timeout_ms), (2000, 20_000));
        assert_eq!((config.ping_interval_ms, config.election_quiet_ms), (100, 100));
        // The secret is missing, and syncLimit is longer than we wait.
        assert_eq!(
            notices.iter().map(|n| (n.key.as_str(), n.warning)).collect::<Vec<_>>(),
            [("syncLimit", false), ("peerSecretFile", true)]
        );
    }

    #[test]
    fn no_configuration_at_all_is_an_ensemble_of_one() {
        let folder = Override { flag: "default".into(), key: "dataDir".into(), value: "corral-data".into() };
        let config = parse(None, &[folder], &files(&[])).unwrap().config;
        assert!(config.is_alone());
        assert_eq!(config.my_id, ServerId(1));
        assert_eq!(config.peer_bind, None);
        assert_eq!(config.membership_text(0), "");
        assert_eq!(
            config.memory_budget(),
            MemoryBudget {
                block_cache: 96 * MIB as u64,
                memtables: 32 * MIB as u64,
                tail_cache: 16 * MIB as u64,
                window: 8 * MIB as u64
            }
        );
        assert_eq!(config.min_free_bytes, 160 * MIB as u64);
        assert_eq!(config.max_client_cnxns, 60);
        assert!(config.whitelist.allows("srvr") && !config.whitelist.allows("stat"));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_a_guess() {
        let text = format!("{THREE}tickTme=3\nmaxclientcnxns=5\nnonsense=1\n");
        let notices: Vec<String> =
            parse_with(&text, &[("/d/myid", "1")]).unwrap().notices.iter().map(ToString::to_string).collect();
        assert!(
            notices.contains(&"zoo.cfg:9: tickTme: unknown key, ignored; did you mean tickTime?".into()),
            "{notices:?}"
        );
        assert!(
            notices.contains(&"zoo.cfg:10: maxclientcnxns: unknown key, ignored; did you mean maxClientCnxns?".into())
        );
        assert!(notices.contains(&"zoo.cfg:11: nonsense: unknown key, ignored".into()));
    }

    #[test]
    fn a_wrong_value_says_file_line_key_and_what_is_allowed() {
        let cases = [
            (
                "tickTime=abc",
                "zoo.cfg:1: tickTime: \"abc\" is not a whole number; allowed: a number from 10 to 3600000 (ms)",
            ),
            ("clientPort=70000", "zoo.cfg:1: clientPort: 70000 is out of range; allowed: a number from 0 to 65535"),
            ("skipACL=maybe", "zoo.cfg:1: skipACL: \"maybe\" is neither; allowed: true or false"),
            ("memoryLimit=12Q", "zoo.cfg:1: memoryLimit: \"12Q\" is not a size; allowed: a size from 24M to 1024G"),
            ("server.0=a:1:2", "zoo.cfg:1: server.0: not the number of a server; allowed: server.1 to server.254"),
            (
                "sslQuorum=true",
                "zoo.cfg:1: sslQuorum: \"true\" is not supported: servers cannot speak TLS to each other yet: use peerSecretFile in a private network; allowed: false",
            ),
            (
                "weight.1=3",
                "zoo.cfg:1: weight.1: \"3\" is not supported: a quorum is a majority of servers; weights and groups are not available; remove the line",
            ),
            (
                "4lw.commands.whitelist=srvr, status",
                "zoo.cfg:1: 4lw.commands.whitelist: \"status\" is not a four-letter word; allowed: four-letter words separated by commas, or *",
            ),
            ("skipEntry=xyz", "zoo.cfg:1: skipEntry: \"xyz\" is no zxid; allowed: hexadecimal, as 0x500000003"),
            ("peerSecretFile=/nowhere", "zoo.cfg:1: peerSecretFile: /nowhere does not exist"),
        ];
        for (line, expected) in cases {
            assert_eq!(errors(&format!("{line}\ndataDir=/d\n")), expected);
        }
        assert_eq!(
            errors("clientPort=1\n"),
            "zoo.cfg: dataDir: missing; allowed: a folder for the state of this server"
        );
        assert!(
            errors("server.1=zoo1\ndataDir=/d\n").starts_with("zoo.cfg:1: server.1: \"zoo1\": no port; allowed: HOST:")
        );
    }

    #[test]
    fn all_wrong_values_are_told_at_once() {
        let text = errors("tickTime=x\nmaxCnxns=y\ndataDir=/d\nskipACL=z\n");
        assert_eq!(text.lines().count(), 3, "{text}");
    }

    #[test]
    fn sessions_must_outlive_the_loss_of_a_leader() {
        let base = "dataDir=/d\ntickTime=1000\n";
        assert_eq!(config(base).sync_timeout_ms, 1000);
        assert_eq!(config(&format!("{base}minSessionTimeout=500\n")).sync_timeout_ms, 250);
        assert_eq!(
            errors(&format!("{base}syncTimeout=1001\n")),
            "zoo.cfg:3: syncTimeout: minSessionTimeout is 2000 ms and syncTimeout 1001 ms; \
             allowed: minSessionTimeout at least 2 x syncTimeout"
        );
        assert!(errors(&format!("{base}minSessionTimeout=30000\n")).contains("1 to maxSessionTimeout (20000 ms)"));
        assert!(errors(&format!("{base}pingInterval=300\n")).contains("at most a quarter of syncTimeout"));
        assert_eq!(config(&format!("{base}minSessionTimeout=-1\nmaxSessionTimeout=-1\n")), config(base));
    }

    #[test]
    fn server_lines_take_roles_client_ports_and_ipv6() {
        let text = "dataDir=/d\nserver.1=zoo1:2888:3888;2181\nserver.2=[::1]:2888:3888:participant;[fe80::2]:2182\n\
            server.3=10.0.0.3:2888:3888:observer;zoo3.example:2183;2281\nserver.4=zoo4:2888:observer\nserver.5=e:1\n";
        let config = config(text);
        let s = &config.servers;
        assert_eq!(s[&ServerId(1)].client, Some(HostPort::new("0.0.0.0", 2181)));
        assert_eq!(s[&ServerId(2)].peer_addr().to_string(), "[::1]:2888");
        assert_eq!(config.client_addr.to_string(), "[fe80::2]:2182");
        assert!(s[&ServerId(3)].observer && s[&ServerId(4)].observer && !s[&ServerId(5)].observer);
        assert_eq!(s[&ServerId(4)].election_port, None);
        assert_eq!(config.voters().len(), 3);
        assert_eq!(
            config.membership_text(0x1_0000_0000),
            "server.1=zoo1:2888:3888:participant;0.0.0.0:2181\nserver.2=[::1]:2888:3888:participant;[fe80::2]:2182\n\
             server.3=10.0.0.3:2888:3888:observer;zoo3.example:2183\nserver.4=zoo4:2888:2888:observer\n\
             server.5=e:1:1:participant\nversion=100000000"
        );
        for wrong in ["a:0:1", "a:1:2:voter", "[::1:1:2", "[zoo]:1:2", ":1:2", "a:1:2;x:y", "a:99999", "a b:1:2", ""] {
            assert!(parse_server(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn this_server_is_named_by_myid() {
        assert_eq!(
            parse_with(THREE, &[]).unwrap_err().to_string(),
            "/d/myid: myid: missing; write the number of this server into the file, one of: 1, 2, 3"
        );
        assert_eq!(
            parse_with(THREE, &[("/d/myid", "seven")]).unwrap_err().to_string(),
            "/d/myid: myid: \"seven\" is not a server's number; allowed: 1 to 254"
        );
        assert_eq!(
            parse_with(THREE, &[("/d/myid", "4")]).unwrap_err().to_string(),
            "zoo.cfg: myid: this server is 4, and there is no server.4; members: 1, 2, 3"
        );
        let config = parse(Some(("zoo.cfg", THREE)), &[set("myid=3")], &files(&[])).unwrap().config;
        assert_eq!(config.my_id, ServerId(3));
        let one = parse_with("dataDir=/d\nserver.7=a:1:2\n", &[]).unwrap().config;
        assert_eq!(one.my_id, ServerId(7));
    }

    #[test]
    fn flags_win_over_the_file_and_must_be_known() {
        let overrides = [set("tickTime=100"), set("zookeeper.jute.maxbuffer=4M"), set("clientPort=0")];
        let parsed = parse(Some(("zoo.cfg", THREE)), &overrides, &files(&[("/d/myid", "1")])).unwrap();
        assert_eq!(parsed.config.tick_time_ms, 100);
        assert_eq!(parsed.config.jute_max_buffer, 4 << 20);
        assert_eq!(parsed.config.client_addr.port, 0);
        let wrong = parse(Some(("zoo.cfg", THREE)), &[set("tickTme=1")], &files(&[("/d/myid", "1")])).unwrap_err();
        assert_eq!(wrong.to_string(), "--set: tickTme: unknown key; did you mean tickTime?");
        assert!(Override::from_set("tickTime").is_err());
    }

    #[test]
    fn a_flag_moves_the_client_port_of_a_server_line() {
        let text = "dataDir=/d\nserver.2=a:1:2;2181\n";
        assert!(errors(&format!("{text}clientPort=2182\n")).contains("server.2 says 2181"));
        let config = parse(Some(("z", text)), &[set("clientPort=9")], &files(&[("/d/myid", "2")])).unwrap().config;
        assert_eq!(config.client_addr.port, 9);
    }

    #[test]
    fn the_properties_syntax_is_javas() {
        let text = "# comment\n! comment\n\n  a = 1  \nb:2\nc 3\nd\\=e=f\\tg\nlong=one,\\\n    two\nlast=x\\\\\nu=\\u0041\nempty=\nend=\\";
        let lines: Vec<(usize, String, String)> =
            parse_properties(text).into_iter().map(|l| (l.number, l.key, l.value)).collect();
        let expected = [
            (4, "a", "1"),
            (5, "b", "2"),
            (6, "c", "3"),
            (7, "d=e", "f\tg"),
            (8, "long", "one,two"),
            (10, "last", "x\\"),
            (11, "u", "A"),
            (12, "empty", ""),
            (13, "end", ""),
        ];
        assert_eq!(lines, expected.map(|(n, k, v)| (n, k.to_string(), v.to_string())));
    }

    #[test]
    fn a_key_given_twice_is_said() {
        let parsed = parse_with("dataDir=/a\ndataDir=/d\n", &[]).unwrap();
        assert_eq!(parsed.config.data_dir, PathBuf::from("/d"));
        assert_eq!(
            parsed.notices[0].to_string(),
            "zoo.cfg:2: dataDir: given twice; this one replaces the one at zoo.cfg:1"
        );
    }

    #[test]
    fn members_may_stand_in_a_file_of_their_own() {
        let text = "dataDir=/d\ndynamicConfigFile=/d/dyn\n";
        let files: &[(&str, &str)] =
            &[("/d/myid", "2"), ("/d/dyn", "server.1=a:1:2\nserver.2=b:1:2;2181\nserver.3=c:1:2\nversion=0\n")];
        let config = parse_with(text, files).unwrap().config;
        assert_eq!((config.servers.len(), config.client_addr.port), (3, 2181));
        assert_eq!(
            parse_with(text, &[]).unwrap_err().to_string(),
            "zoo.cfg:2: dynamicConfigFile: /d/dyn does not exist"
        );
    }

    #[test]
    fn secrets_are_read_and_never_printed() {
        let text = "dataDir=/d\npeerSecretFile=/s\nDigestAuthenticationProvider.superDigest=super:abc=\n";
        let config = parse_with(text, &[("/s", "  hunter2\n")]).unwrap().config;
        assert_eq!(config.peer_secret.as_ref().unwrap().reveal(), "hunter2");
        let debug = format!("{config:?}");
        assert!(!debug.contains("hunter2") && !debug.contains("abc="), "{debug}");
        assert!(parse_with(text, &[("/s", " \n")]).is_err());
    }

    const SECURE: &str = "dataDir=/d\nsecureClientPort=2281\nssl.keyStore.location=/k.pem\n";

    #[test]
    fn zookeepers_keys_for_tls_are_read() {
        let text = format!(
            "{SECURE}secureClientPortAddress=[::1]\nssl.keyStore.type=PEM\nssl.keyStore.password=x\n\
             ssl.trustStore.location=/t.pem\nssl.clientAuth=WANT\nssl.enabledProtocols=TLSv1.3\n\
             ssl.ciphersuites=TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384\nclient.certReload=false\n\
             zookeeper.X509AuthenticationProvider.superUser=CN=admin,O=Corral\n"
        );
        let secure = config(&text);
        assert_eq!(secure.secure_client_addr.unwrap().to_string(), "[::1]:2281");
        assert_eq!(
            secure.tls.unwrap(),
            TlsConfig {
                key_store: "/k.pem".into(),
                trust_store: Some("/t.pem".into()),
                client_auth: ClientAuth::Want,
                tls12: false,
                tls13: true,
                cipher_suites: vec!["TLS_AES_128_GCM_SHA256".into(), "TLS_AES_256_GCM_SHA384".into()],
                reload_interval_ms: None,
                handshakes_max: 250,
                super_user: Some("CN=admin,O=Corral".into()),
            }
        );
        let unified = config(&format!("{SECURE}ssl.trustStore.location=/t.pem\nclient.portUnification=true\n"));
        let tls = unified.tls.unwrap();
        assert_eq!((tls.client_auth, tls.tls12, tls.tls13), (ClientAuth::Need, true, true));
        assert_eq!((unified.port_unification, tls.reload_interval_ms), (true, Some(5000)));
        assert_eq!(config("dataDir=/d\nssl.keyStore.location=/k.pem\n").tls, None, "no port speaks it");
    }

    #[test]
    fn a_wrong_setting_of_tls_says_what_to_do() {
        for (more, says) in [
            ("", "set ssl.trustStore.location to a PEM file, or ssl.clientAuth=none"),
            ("ssl.clientAuth=maybe", "allowed: need, want or none"),
            ("ssl.clientAuth=none\nssl.protocol=SSLv3", "\"SSLv3\" is not spoken; allowed: TLSv1.2, TLSv1.3"),
            ("ssl.clientAuth=none\nssl.crl=true", "lists of revoked certificates are not looked at"),
            ("ssl.clientAuth=none\nssl.context.supplier.class=x", "there is no such setting of TLS here"),
            (
                "ssl.clientAuth=none\nssl.keyStore.type=JKS",
                "ssl.keyStore.location: \"JKS\": only PEM is read; convert it: keytool -importkeystore -srckeystore /k.pem",
            ),
            (
                "ssl.trustStore.location=/t.p12",
                "a keystore of Java's: only PEM is read; convert it: keytool -list -rfc -keystore /t.p12 > /t.p12.pem",
            ),
        ] {
            let errors = errors(&format!("{SECURE}{more}\n"));
            assert!(errors.contains(says), "{more}: {errors}");
            assert_eq!(errors.lines().count(), 1, "{errors}");
        }
        assert_eq!(
            errors("dataDir=/d\nclient.portUnification=true\nssl.clientAuth=none\n"),
            "zoo.cfg:2: client.portUnification: TLS needs a certificate; set ssl.keyStore.location to a PEM file"
        );
    }

    #[test]
    fn an_identity_can_only_be_demanded_where_somebody_can_prove_it() {
        let users: &[(&str, &str)] = &[("/d/myid", "1"), ("/u", "user_bob=\"secret\"\nuser_admin=\"other\"\n")];
        let parsed =
            parse_with("dataDir=/d\nsaslUsersFile=/u\nsuperUser=admin\nsessionRequireClientSASLAuth=true\n", users);
        let auth = parsed.unwrap().config.auth;
        assert_eq!(auth.sasl_users.as_ref().unwrap().len(), 2);
        assert!(auth.demanded_schemes.contains("sasl") && auth.sasl_super_users.contains("admin"));
        let debug = format!("{auth:?}");
        assert!(debug.contains("bob") && !debug.contains("secret"), "{debug}");
        let auth = config("dataDir=/d\nenforce.auth.enabled=true\nenforce.auth.scheme=digest\n").auth;
        assert_eq!(auth.demanded_schemes, BTreeSet::from(["digest".to_owned()]));
        assert!(config("dataDir=/d\nenforce.auth.schemes=digest\n").auth.demanded_schemes.is_empty());
        for (more, says) in [
            ("enforce.auth.enabled=true", "no scheme is named"),
            ("enforce.auth.enabled=true\nenforce.auth.schemes=sasl", "set saslUsersFile"),
            ("enforce.auth.enabled=true\nenforce.auth.schemes=digest,x509", "set secureClientPort"),
            ("enforce.auth.enabled=true\nenforce.auth.schemes=kerberos", "\"kerberos\" is no scheme to demand"),
            ("sessionRequireClientSASLAuth=true", "set saslUsersFile"),
            ("saslUsersFile=/nowhere", "/nowhere does not exist"),
            ("saslUsersFile=/d/myid", "it names no user"),
        ] {
            let errors = errors(&format!("dataDir=/d\n{more}\n"));
            assert!(errors.contains(says), "{more}: {errors}");
        }
    }

    #[test]
    fn servers_that_agree_on_members_share_a_hash() {
        let hash = |text: &str| config(&format!("dataDir=/d\n{text}")).config_hash();
        let base = hash("server.1=a:1:2\nserver.2=b:1:2\n");
        assert_eq!(base, hash("server.2=0.0.0.0:1:2;2181\nserver.1=x.example:1:2:participant\n"));
        assert_ne!(base, hash("server.1=a:1:2:observer\nserver.2=b:1:2\n"));
        assert_ne!(base, hash("server.1=a:1:2\nserver.2=b:1:2\nserver.3=c:1:2\n"));
    }

    #[test]
    fn two_servers_cannot_share_an_address() {
        let text = errors("dataDir=/d\nserver.1=a:1:2\nserver.2=a:1:3\n");
        assert_eq!(text, "zoo.cfg:3: server.2: a:1 is the address of server.1 already");
        assert!(errors("dataDir=/d\nserver.2=a:1:2:observer\n").contains("at least one must be a participant"));
    }

    #[test]
    fn every_default_in_the_list_is_what_its_key_takes() {
        for key in KEYS {
            let Is(value) = key.default else { continue };
            match key.kind {
                Kind::Number { min, max, .. } | Kind::Bytes { min, max } => {
                    let number = parse_size(value).unwrap();
                    assert!((min..=max).contains(&number), "{}", key.name);
                }
                Kind::Flag => assert!(parse_flag(value).is_some(), "{}", key.name),
                _ => assert!(!value.is_empty(), "{}", key.name),
            }
            assert!(!key.help.is_empty(), "{}", key.name);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(dataDir|server\\.[0-9]|tickTime|minSessionTimeout|a|[=:;#\\\\ \\[\\]/|]|[0-9]{1,20}|\n|\\PC){0,60}") {
            let _ = parse(Some(("z", &text)), &[set("dataDir=/d")], &files(&[]));
        }
    }
}
