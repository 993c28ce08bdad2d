//! What a server tells operators: the values behind the four-letter words.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use corral_core::zab::io::Role;

use crate::config::Config;
use crate::frontend::listen::Reporter;
use crate::frontend::wire::four_letter::{ServerMode, ServerReport, VERSION};
use crate::node::NodeShared;

/// Makes a report whenever it is called.
pub(crate) fn reporter(node: Arc<NodeShared>, config: Arc<Config>) -> Reporter {
    let conf = conf(&config);
    let environment = environment();
    Arc::new(move || {
        let status = node.status();
        let meta = node.shared.meta();
        let mode = match status.role {
            _ if node.is_read_only() => ServerMode::ReadOnly,
            _ if !node.is_serving() => ServerMode::NotServing,
            _ if config.is_alone() => ServerMode::Standalone,
            Role::Leading => ServerMode::Leader,
            Role::Following => ServerMode::Follower,
            Role::Observing => ServerMode::Observer,
            Role::Bootstrapping | Role::Looking => ServerMode::NotServing,
        };
        let (watchers, paths, watches) = node.shared.watch_summary();
        let stats = &node.stats;
        let mut mntr = vec![
            ("ephemerals_count".to_owned(), meta.ephemerals.to_string()),
            ("approximate_data_size".to_owned(), meta.data_bytes.to_string()),
            ("global_sessions".to_owned(), meta.sessions.to_string()),
            ("unresolved_writes".to_owned(), node.unresolved.load(Relaxed).to_string()),
            ("auth_failed_count".to_owned(), stats.auth_failed.load(Relaxed).to_string()),
            ("fsync_count".to_owned(), stats.syncs.load(Relaxed).to_string()),
            ("fsync_total_ms".to_owned(), stats.sync_ms.load(Relaxed).to_string()),
            ("fsync_max_ms".to_owned(), stats.sync_max_ms.load(Relaxed).to_string()),
            ("digest".to_owned(), format!("{:016x}", meta.digest)),
            ("membership".to_owned(), format!("{:?}", status.identity.membership).to_lowercase()),
            ("cluster".to_owned(), format!("{:016x}", status.identity.cluster)),
            ("election_count".to_owned(), status.elections.to_string()),
            ("epoch".to_owned(), status.epoch.to_string()),
            ("committed_zxid".to_owned(), status.committed.to_string()),
            ("log_end_zxid".to_owned(), status.last.zxid.to_string()),
            ("digest".to_owned(), format!("{:#018x}", meta.digest)),
            ("membership".to_owned(), format!("{:?}", status.identity.membership).to_lowercase()),
        ];
        if mode == ServerMode::Leader {
            let synced = status.learners.iter().filter(|(_, _, synced)| *synced).count();
            mntr.push(("learners".to_owned(), status.learners.len().to_string()));
            mntr.push(("synced_followers".to_owned(), synced.to_string()));
        }
        ServerReport {
            version: VERSION.to_owned(),
            mode,
            zxid: meta.applied,
            node_count: meta.znodes,
            watches: [watchers as u64, paths as u64, watches as u64],
            conf: conf.clone(),
            membership: config.membership_text(0),
            environment: environment.clone(),
            mntr,
            unix_ms: u64::try_from(node.clock.now().wall_ms).unwrap_or(0),
            ..ServerReport::default()
        }
    })
}

/// What `conf` shows.
fn conf(config: &Config) -> Vec<(String, String)> {
    let mut conf: Vec<(&str, String)> = vec![
        ("clientPort", config.client_addr.port.to_string()),
        ("secureClientPort", "-1".to_owned()),
        ("dataDir", config.data_dir.display().to_string()),
        ("dataLogDir", config.data_log_dir.display().to_string()),
        ("tickTime", config.tick_time_ms.to_string()),
        ("maxClientCnxns", config.max_client_cnxns.to_string()),
        ("minSessionTimeout", config.min_session_timeout_ms.to_string()),
        ("maxSessionTimeout", config.max_session_timeout_ms.to_string()),
        ("clientPortListenBacklog", config.client_backlog.map_or("-1".to_owned(), |n| n.to_string())),
        ("serverId", config.my_id.to_string()),
    ];
    if !config.is_alone() {
        let tick = config.tick_time_ms.max(1);
        conf.extend([
            ("initLimit", (config.init_timeout_ms / tick).to_string()),
            ("syncLimit", (config.sync_timeout_ms / tick).to_string()),
            ("electionAlg", "3".to_owned()),
            ("electionPort", config.me().election_port.unwrap_or(config.me().peer_port).to_string()),
            ("quorumPort", config.me().peer_port.to_string()),
            ("peerType", u8::from(config.me().observer).to_string()),
        ]);
    }
    conf.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// What `envi` shows beside the version.
fn environment() -> Vec<(String, String)> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    [
        ("host.name", host.trim().to_owned()),
        ("os.name", std::env::consts::OS.to_owned()),
        ("os.arch", std::env::consts::ARCH.to_owned()),
        ("user.dir", std::env::current_dir().map(|dir| dir.display().to_string()).unwrap_or_default()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}
