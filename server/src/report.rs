//! What a server tells operators: the values behind four-letter words, AdminServer and Prometheus.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use corral_core::tree::op::{Answer, ReadOp};
use corral_core::tree::{quota, read};
use corral_core::zab::io::{Phase, Role, Status};
use corral_proto::{Id, ServerId, SessionId, Zxid};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::config::{Config, ServerSpec};
use crate::frontend::metrics::Metric;
use crate::frontend::operators::{
    Detail, LearnerReport, MemberReport, QuorumReport, Reporter, ServerMode, ServerReport, SessionDump, Setting,
    VERSION,
};
use crate::node::{CoreEvent, NodeShared};

/// Where the members are stored for clients.
const CONFIG_PATH: &str = "/zookeeper/config";

/// How long an answer of thread `core` is waited for.
const CORE_WAIT: Duration = Duration::from_secs(5);

/// Ticks in a second of `/proc/self/stat`: part of Linux' interface to programs.
const CLOCK_TICKS: f64 = 100.0;

/// Folders in folders that are looked into for sizes: ours have two.
const FOLDER_DEPTH_MAX: usize = 4;

/// Makes a report whenever it is called.
pub(crate) fn reporter(node: Arc<NodeShared>, config: Arc<Config>) -> Reporter {
    let fixed = Arc::new(Fixed { conf: conf(&config), environment: environment() });
    Arc::new(move |detail| {
        let (node, config, fixed) = (node.clone(), config.clone(), fixed.clone());
        Box::pin(async move {
            // The leader's tracker is in the hands of thread `core`.
            let deadlines = if detail.sessions { deadlines(&node).await } else { Vec::new() };
            if detail == Detail::default() {
                return report(&node, &config, &fixed, detail, deadlines);
            }
            // Walks of folders, tables and the store: not on a thread that connections wait for.
            let working = tokio::task::spawn_blocking(move || report(&node, &config, &fixed, detail, deadlines));
            working.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
        })
    })
}

/// What never changes.
struct Fixed {
    conf: Vec<(&'static str, Setting)>,
    environment: Vec<(&'static str, String)>,
}

async fn deadlines(node: &NodeShared) -> Vec<(u64, Vec<SessionId>)> {
    let (answer, answered) = oneshot::channel();
    node.core.push(CoreEvent::SessionDeadlines(answer));
    // A thread that is ending, or has too much to do, answers nothing.
    match timeout(CORE_WAIT, answered).await {
        Ok(Ok(deadlines)) => deadlines,
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

fn report(
    node: &NodeShared,
    config: &Config,
    fixed: &Fixed,
    detail: Detail,
    deadlines: Vec<(u64, Vec<SessionId>)>,
) -> ServerReport {
    let status = node.status();
    let meta = node.shared.meta();
    let now = node.clock.now();
    let wall_ms = u64::try_from(now.wall_ms).unwrap_or(0);
    let mode = match status.role {
        _ if node.is_read_only() => ServerMode::ReadOnly,
        _ if !node.is_serving() => ServerMode::NotServing,
        _ if config.is_alone() => ServerMode::Standalone,
        Role::Leading => ServerMode::Leader,
        Role::Following => ServerMode::Follower,
        Role::Observing => ServerMode::Observer,
        Role::Bootstrapping | Role::Looking => ServerMode::NotServing,
    };
    // Not in the literal below: a lock that is taken there is held to its end, while others are taken.
    let local_sessions = node.shared.local.lock().len() as u64;
    let (reads, writes) = node.shared.usage.report();
    let mut report = ServerReport {
        version: VERSION.to_owned(),
        mode,
        zxid: meta.applied,
        // ZooKeeper keeps its root under two names, and counts both (wire 5.2).
        node_count: meta.znodes + 1,
        ephemerals: meta.ephemerals,
        data_bytes: meta.data_bytes,
        sessions: meta.sessions,
        local_sessions,
        watch_count: node.shared.watch_count() as u64,
        reads: reads.into_iter().collect(),
        writes: writes.into_iter().collect(),
        proposal_sizes: (mode == ServerMode::Leader).then(|| node.stats.proposal_sizes()),
        unix_ms: wall_ms,
        uptime_ms: now.mono_ms,
        conf: fixed.conf.clone(),
        environment: fixed.environment.clone(),
        quorum: (!config.is_alone()).then(|| quorum(config, &status)),
        digests: node.stats.digests(),
        persisted: node.stats.persisted(),
        slow_syncs: node.stats.slow_syncs(),
        auth_failed: node.stats.auth_failures(),
        figures: figures(node, config, &status, mode, now.mono_ms),
        process: process(),
        ..ServerReport::default()
    };
    // The state has its own digest; the words of an ensemble's tests compare it.
    report.figures.push(Metric::text("digest", format!("{:016x}", meta.digest)));
    if detail.folders {
        report.membership = membership(node, config);
        report.folders = [folder_bytes(&config.data_dir, 0), folder_bytes(&config.data_log_dir, 0)];
    }
    if detail.quotas {
        report.quotas = quota::figures(&node.shared.published().view).into_iter().collect();
    }
    if detail.watches {
        report.watches = node.shared.watched_paths();
    }
    if detail.sessions {
        let published = node.shared.published();
        let rows = read::sessions(&published.view);
        let ephemerals = rows.iter().filter(|(_, row)| row.ephemerals > 0);
        let from_now = |mono_ms: u64| (wall_ms + mono_ms).saturating_sub(now.mono_ms);
        let dated = |deadlines: Vec<(u64, Vec<SessionId>)>| {
            deadlines.into_iter().map(|(mono_ms, sessions)| (from_now(mono_ms), sessions)).collect()
        };
        let local = || node.shared.local.lock().deadlines(config.tick_time_ms);
        report.session_dump = SessionDump {
            by_expiry: dated(deadlines),
            local_by_expiry: node.options.local_sessions.then(|| dated(local())),
            ephemerals: ephemerals.map(|(id, _)| (*id, read::ephemerals(&published.view, *id, ""))).collect(),
            sessions: rows.iter().map(|(id, row)| (*id, row.timeout_ms)).collect(),
        };
    }
    report
}

fn figures(node: &NodeShared, config: &Config, status: &Status, mode: ServerMode, now_ms: u64) -> Vec<Metric> {
    let mut figures = vec![
        Metric::gauge("open_file_descriptor_count", open_files()),
        Metric::gauge("max_file_descriptor_count", max_files()),
    ];
    if mode == ServerMode::Leader {
        let is_observer = |id: &ServerId| config.servers.get(id).is_some_and(|server| server.observer);
        let synced = status.learners.iter().filter(|(_, _, synced)| *synced);
        let (observers, followers): (Vec<_>, Vec<_>) = synced.map(|(id, _, _)| *id).partition(is_observer);
        figures.extend([
            Metric::gauge("learners", status.learners.len()),
            Metric::gauge("synced_followers", followers.len()),
            // A participant that does not count is one that lost its memory.
            Metric::gauge("synced_non_voting_followers", 0),
            Metric::gauge("synced_observers", observers.len()),
            Metric::gauge("leader_uptime", node.stats.leader_uptime_ms(now_ms)),
            Metric::gauge("pending_syncs", node.waiting_read_points()),
        ]);
    }
    figures.extend([
        Metric::gauge("unresolved_writes", node.unresolved.load(Relaxed)),
        Metric::counter("looking_count", status.elections),
        Metric::counter("election_count", status.elections),
        Metric::counter("digest_mismatches_count", status.mismatches),
        Metric::gauge("digest_alarm", i64::from(status.divergence.is_some())),
        Metric::gauge("epoch", status.epoch),
        Metric::text("committed_zxid", status.committed.to_string()),
        Metric::text("log_end_zxid", status.last.zxid.to_string()),
        Metric::text("membership", format!("{:?}", status.identity.membership).to_lowercase()),
        Metric::text("cluster", format!("{:016x}", status.identity.cluster)),
    ]);
    figures.extend(node.stats.figures());
    figures
}

fn quorum(config: &Config, status: &Status) -> QuorumReport {
    let phase = match status.phase {
        Phase::Election => "election",
        Phase::Discovery => "discovery",
        Phase::Synchronization => "synchronization",
        Phase::Broadcast => "broadcast",
    };
    let state = match status.role {
        Role::Leading => "leading",
        Role::Following => "following",
        Role::Observing => "observing",
        Role::Bootstrapping | Role::Looking => "looking",
    };
    let me = config.my_id;
    let member = |(id, server): (&ServerId, &ServerSpec)| MemberReport {
        id: id.0,
        host: server.host.clone(),
        peer_port: server.peer_port,
        election_port: server.election_port.unwrap_or(server.peer_port),
        client: match &server.client {
            Some(client) => client.to_string(),
            None if *id == me => config.client_addr.to_string(),
            None => String::new(),
        },
        observer: server.observer,
    };
    let learner = |(id, acknowledged, synced): &(ServerId, Zxid, bool)| LearnerReport {
        id: id.0,
        acknowledged: *acknowledged,
        synced: *synced,
        observer: config.servers.get(id).is_some_and(|server| server.observer),
    };
    QuorumReport {
        my_id: me.0,
        voting: !config.me().observer,
        // ZooKeeper says only this much while it looks.
        peer_state: if state == "looking" { state.to_owned() } else { format!("{state} - {phase}") },
        phase,
        leader: status.leader.map(|leader| leader.0),
        voters: config.voters().len(),
        members: config.servers.iter().map(member).collect(),
        learners: status.learners.iter().map(learner).collect(),
    }
}

/// The text that clients read, version and all; before the first leader wrote it, what the configuration says.
fn membership(node: &NodeShared, config: &Config) -> String {
    let everybody = [Id::new("world", "anyone")];
    let stored = read::read(
        &node.shared.published().view,
        &ReadOp::GetData { path: CONFIG_PATH.to_owned() },
        SessionId::NONE,
        &everybody,
    );
    match stored {
        Ok(Answer::Data { data: Some(data), .. }) if !data.is_empty() => String::from_utf8_lossy(&data).into_owned(),
        _ => config.membership_text(0),
    }
}

/// What `conf` shows.
fn conf(config: &Config) -> Vec<(&'static str, Setting)> {
    let number = |n: u64| Setting::Number(i64::try_from(n).unwrap_or(i64::MAX));
    let folder = |path: &Path| Setting::Text(path.display().to_string());
    let mut conf = vec![
        ("clientPort", number(config.client_addr.port.into())),
        ("secureClientPort", config.secure_client_addr.as_ref().map_or(Setting::Number(-1), |a| number(a.port.into()))),
        ("dataDir", folder(&config.data_dir)),
        ("dataLogDir", folder(&config.data_log_dir)),
        ("tickTime", number(config.tick_time_ms)),
        ("maxClientCnxns", number(config.max_client_cnxns.into())),
        ("minSessionTimeout", number(config.min_session_timeout_ms)),
        ("maxSessionTimeout", number(config.max_session_timeout_ms)),
        ("clientPortListenBacklog", config.client_backlog.map_or(Setting::Number(-1), |n| number(n.into()))),
        // A ZooKeeper server alone does not read its `myid`.
        ("serverId", number(if config.is_alone() { 0 } else { config.my_id.0 })),
    ];
    if !config.is_alone() {
        let [init_limit, sync_limit] = config.limits_ticks;
        conf.extend([
            ("initLimit", number(init_limit)),
            ("syncLimit", number(sync_limit)),
            ("electionAlg", Setting::Number(3)),
            ("electionPort", number(config.me().election_port.unwrap_or(config.me().peer_port).into())),
            ("quorumPort", number(config.me().peer_port.into())),
            ("peerType", Setting::Number(i64::from(config.me().observer))),
        ]);
    }
    conf
}

/// What `envi` shows beside the version. What belongs to Java's virtual machine has no counterpart.
fn environment() -> Vec<(&'static str, String)> {
    let line = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let os = match std::env::consts::OS {
        "linux" => "Linux",
        "macos" => "Mac OS X",
        other => other,
    };
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        other => other,
    };
    let (user, home) = user();
    vec![
        ("host.name", line("/proc/sys/kernel/hostname")),
        ("os.name", os.to_owned()),
        ("os.arch", arch.to_owned()),
        ("os.version", line("/proc/sys/kernel/osrelease")),
        ("user.name", user),
        ("user.home", home),
        ("user.dir", std::env::current_dir().map(|dir| dir.display().to_string()).unwrap_or_default()),
    ]
}

/// Name and home folder of who runs this process.
fn user() -> (String, String) {
    let uid = rustix::process::getuid().as_raw().to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut rows = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    match rows.find(|row| row.get(2) == Some(&uid.as_str())) {
        Some(row) => (row[0].to_owned(), row.get(5).copied().unwrap_or_default().to_owned()),
        None => (uid, String::new()),
    }
}

/// File descriptors in use; 0 where the system does not say.
fn open_files() -> usize {
    // The one that reads the folder is not counted.
    std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1))
}

/// File descriptors that may be in use.
fn max_files() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The process, as Prometheus' own clients tell it; what the system does not say is left out.
fn process() -> Vec<(&'static str, &'static str, f64)> {
    let mut process =
        vec![("process_open_fds", "gauge", open_files() as f64), ("process_max_fds", "gauge", max_files() as f64)];
    if let Ok(stat) = std::fs::read_to_string("/proc/self/stat") {
        // After the name in parentheses, which may hold blanks: user and system time are fields 14 and 15 of the line.
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
        if let (Some(user), Some(system)) = (ticks(11), ticks(12)) {
            process.push(("process_cpu_seconds_total", "counter", (user + system) / CLOCK_TICKS));
        }
    }
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let values: BTreeMap<&str, &str> = status.lines().filter_map(|line| line.split_once(':')).collect();
        let bytes = |key| values.get(key)?.trim().strip_suffix(" kB")?.parse::<f64>().ok().map(|kib| kib * 1024.0);
        for (name, key) in [("process_resident_memory_bytes", "VmRSS"), ("process_virtual_memory_bytes", "VmSize")] {
            process.extend(bytes(key).map(|bytes| (name, "gauge", bytes)));
        }
    }
    process
}

/// Bytes of the files in a folder; what goes away meanwhile counts for nothing.
fn folder_bytes(folder: &Path, depth: usize) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() && depth < FOLDER_DEPTH_MAX => folder_bytes(&entry.path(), depth + 1),
        Ok(found) if found.is_file() => found.len(),
        _ => 0,
    };
    entries.flatten().map(size).sum()
}
