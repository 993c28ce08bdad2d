//! AdminServer: ZooKeeper's commands over HTTP, answered in JSON (wire 9.5); and Prometheus' page.
//!
//! Commands only read, but for those that reset counters and set the trace mask, which ZooKeeper answers to everybody
//! too. What would need proof of an identity there (snapshot, restore) is refused here: a server gets its state from its
//! ensemble, never from a file.

mod json;

use std::collections::BTreeMap;
use std::sync::Arc;

use http::StatusCode;

use self::json::Json;
use super::http::{Answer, Site};
use super::java_socket_address;
use super::metrics::{self, Value};
use super::operators::{Detail, MemberReport, Operators, QuorumReport, ServerMode, ServerReport, Setting};
use super::wire::four_letter;
use super::wire::stats::ClientReport;

/// Prometheus' text format.
const PROMETHEUS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const NOT_SERVING: &str = "This ZooKeeper instance is not currently serving requests";

/// Where Prometheus looks.
const METRICS_PATH: &str = "/metrics";

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Configuration,
    ConnectionStatReset,
    Connections,
    Dirs,
    Dump,
    Environment,
    GetTraceMask,
    Hash,
    InitialConfiguration,
    IsReadOnly,
    LastSnapshot,
    Leader,
    Monitor,
    ObserverConnectionStatReset,
    Observers,
    Restore,
    Ruok,
    ServerStats,
    SetTraceMask,
    Snapshot,
    StatReset,
    Stats,
    SystemProperties,
    VotingView,
    WatchSummary,
    Watches,
    WatchesByPath,
    ZabState,
}

/// Every command with its names, the primary one first, in the order of the list that `/commands` shows.
const COMMANDS: [(Command, &[&str]); 28] = [
    (Command::Configuration, &["configuration", "conf", "config"]),
    (Command::ConnectionStatReset, &["connection_stat_reset", "crst"]),
    (Command::Connections, &["connections", "cons"]),
    (Command::Dirs, &["dirs"]),
    (Command::Dump, &["dump"]),
    (Command::Environment, &["environment", "env", "envi"]),
    (Command::GetTraceMask, &["get_trace_mask", "gtmk"]),
    (Command::Hash, &["hash"]),
    (Command::InitialConfiguration, &["initial_configuration", "icfg"]),
    (Command::IsReadOnly, &["is_read_only", "isro"]),
    (Command::LastSnapshot, &["last_snapshot", "lsnp"]),
    (Command::Leader, &["leader", "lead"]),
    (Command::Monitor, &["monitor", "mntr"]),
    (Command::ObserverConnectionStatReset, &["observer_connection_stat_reset", "orst"]),
    (Command::Observers, &["observers", "obsr"]),
    (Command::Restore, &["restore", "rest"]),
    (Command::Ruok, &["ruok"]),
    (Command::ServerStats, &["server_stats", "srvr"]),
    (Command::SetTraceMask, &["set_trace_mask", "stmk"]),
    (Command::Snapshot, &["snapshot", "snap"]),
    (Command::StatReset, &["stat_reset", "srst"]),
    (Command::Stats, &["stats", "stat"]),
    (Command::SystemProperties, &["system_properties", "sysp"]),
    (Command::VotingView, &["voting_view"]),
    (Command::WatchSummary, &["watch_summary", "wchs"]),
    (Command::Watches, &["watches", "wchc"]),
    (Command::WatchesByPath, &["watches_by_path", "wchp"]),
    (Command::ZabState, &["zabstate"]),
];

impl Command {
    /// Finds a command by any of its names; with the primary one.
    fn find(name: &str) -> Option<(Command, &'static str)> {
        COMMANDS.iter().find(|(_, names)| names.contains(&name)).map(|(command, names)| (*command, names[0]))
    }

    /// What its answer needs to know.
    fn detail(self) -> Detail {
        Detail {
            folders: matches!(self, Command::Dirs | Command::ServerStats | Command::Stats),
            watches: matches!(self, Command::WatchSummary | Command::Watches | Command::WatchesByPath),
            sessions: self == Command::Dump,
            quotas: self == Command::Monitor,
        }
    }

    /// Whether it has an answer without a quorum.
    fn needs_no_quorum(self) -> bool {
        use Command::{Environment, GetTraceMask, Restore, SetTraceMask, Snapshot, SystemProperties};
        matches!(self, Environment | GetTraceMask | SetTraceMask | SystemProperties | Snapshot | Restore)
    }
}

/// The commands, below `admin.commandURL`, and the figures at `/metrics`.
pub struct AdminSite {
    operators: Arc<Operators>,
    /// Without a slash at its end.
    root: String,
}

impl AdminSite {
    /// Commands below this path.
    pub fn new(operators: Arc<Operators>, command_url: &str) -> AdminSite {
        AdminSite { operators, root: format!("/{}", command_url.trim_matches('/')) }
    }

    async fn command(&self, name: &str, query: Option<&str>) -> Answer {
        let Some((command, primary)) = Command::find(name) else {
            let error = Json::text(format!("Unknown command: {name}"));
            return page(StatusCode::OK, vec![("command".into(), Json::text(name)), ("error".into(), error)]);
        };
        if matches!(command, Command::Snapshot | Command::Restore) {
            let error = "not available: a server gets its state from its ensemble";
            return failed(StatusCode::FORBIDDEN, primary, error);
        }
        if command == Command::SetTraceMask {
            let given = query.and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("traceMask=")));
            match given.map(|mask| (mask, mask.parse())) {
                Some((_, Ok(mask))) => self.operators.set_trace_mask(mask),
                Some((mask, Err(_))) => {
                    let error = format!("setTraceMask requires long traceMask argument, got {mask}");
                    return failed(StatusCode::OK, primary, &error);
                }
                None => {
                    return failed(StatusCode::OK, primary, "setTraceMask requires long traceMask argument");
                }
            }
        }
        let report = self.operators.report(command.detail()).await;
        if report.mode == ServerMode::NotServing && !command.needs_no_quorum() {
            return failed(StatusCode::OK, primary, NOT_SERVING);
        }
        match command {
            Command::ConnectionStatReset => self.operators.stats().reset_connections(),
            Command::StatReset => self.operators.stats().reset(),
            _ => {}
        }
        match fields(command, &report, self.operators.trace_mask()) {
            Ok(mut fields) => {
                fields.push(("command".into(), Json::text(primary)));
                fields.push(("error".into(), Json::Null));
                page(StatusCode::OK, fields)
            }
            Err(error) => failed(StatusCode::OK, primary, error),
        }
    }

    fn list(&self) -> Answer {
        let line =
            |(_, names): &(Command, &[&str])| format!("<a href=\"{0}/{1}\">{1}</a>\n<br/>\n", self.root, names[0]);
        Answer {
            status: StatusCode::OK,
            content_type: Some("text/html; charset=utf-8"),
            body: COMMANDS.iter().map(line).collect(),
        }
    }
}

impl Site for AdminSite {
    async fn get(&self, path: &str, query: Option<&str>) -> Answer {
        if path == METRICS_PATH {
            return figures(&self.operators).await;
        }
        match path.strip_prefix(&self.root) {
            Some("" | "/") => self.list(),
            Some(rest) => match rest.strip_prefix('/') {
                Some(name) => self.command(name, query).await,
                None => Answer::not_found(),
            },
            None => Answer::not_found(),
        }
    }
}

/// The figures alone, for `metricsProvider.httpPort`.
pub struct MetricsSite {
    operators: Arc<Operators>,
}

impl MetricsSite {
    /// Of these.
    pub fn new(operators: Arc<Operators>) -> MetricsSite {
        MetricsSite { operators }
    }
}

impl Site for MetricsSite {
    async fn get(&self, path: &str, _query: Option<&str>) -> Answer {
        match path {
            METRICS_PATH => figures(&self.operators).await,
            _ => Answer::not_found(),
        }
    }
}

/// Also without a quorum: a server that has none is one to hear of.
async fn figures(operators: &Operators) -> Answer {
    let report = operators.report(Detail { quotas: true, ..Detail::default() }).await;
    Answer { status: StatusCode::OK, content_type: Some(PROMETHEUS_TYPE), body: metrics::prometheus(&report) }
}

type Fields = Vec<(String, Json)>;

fn page(status: StatusCode, fields: Fields) -> Answer {
    Answer { status, content_type: Some("application/json"), body: Json::Object(fields).pretty() }
}

fn failed(status: StatusCode, command: &str, error: &str) -> Answer {
    page(status, vec![("error".into(), Json::text(error)), ("command".into(), Json::text(command))])
}

/// What a command says beside `command` and `error`, in ZooKeeper's order.
fn fields(command: Command, report: &ServerReport, trace_mask: i64) -> Result<Fields, &'static str> {
    let fields: Vec<(&str, Json)> = match command {
        Command::Configuration => return Ok(configuration(report)),
        Command::Connections => clients(report, true),
        Command::Dirs => vec![("datadir_size", report.folders[0].into()), ("logdir_size", report.folders[1].into())],
        Command::Dump => dump(report),
        Command::Environment => {
            let version = ("zookeeper.version", Json::text(report.version.as_str()));
            let rest = report.environment.iter().map(|(key, value)| (*key, Json::text(value.as_str())));
            std::iter::once(version).chain(rest).collect()
        }
        Command::SystemProperties => {
            report.environment.iter().map(|(key, value)| (*key, Json::text(value.as_str()))).collect()
        }
        Command::GetTraceMask | Command::SetTraceMask => vec![("tracemask", Json::Number(trace_mask))],
        Command::Hash => {
            let digest = |(zxid, digest): &(corral_proto::Zxid, u64)| {
                object(vec![
                    ("zxid", Json::Number(zxid.as_i64())),
                    // Java's long.
                    ("digest", Json::Number(*digest as i64)),
                    ("digest_version", Json::Number(1)),
                ])
            };
            vec![("digests", Json::List(report.digests.iter().map(digest).collect()))]
        }
        // The text of the file is known to nobody here any more: it may hold secrets.
        Command::InitialConfiguration => vec![("initial_configuration", Json::Null)],
        Command::IsReadOnly => vec![("read_only", Json::Bool(report.mode == ServerMode::ReadOnly))],
        Command::LastSnapshot => {
            let (zxid, seconds) = report.persisted;
            vec![("zxid", Json::text(format!("{:x}", zxid.0))), ("timestamp", seconds.into())]
        }
        Command::Leader => leader(report.quorum.as_ref().ok_or("server is not initialized")?),
        Command::Monitor => return Ok(monitor(report)),
        Command::Observers => observers(report),
        Command::ServerStats => server_stats(report),
        Command::Stats => {
            let mut fields = server_stats(report);
            fields.extend(clients(report, false));
            fields
        }
        Command::VotingView => vec![("current_config", voting_view(report))],
        Command::WatchSummary => {
            let total: usize = report.watches.iter().map(|(_, paths)| paths.len()).sum();
            vec![
                ("num_connections", report.watches.len().into()),
                ("num_paths", four_letter::by_path(report).len().into()),
                ("num_total_watches", total.into()),
            ]
        }
        Command::Watches => {
            let watches = report.watches.iter().map(|(session, paths)| (session.0.to_string(), strings(paths)));
            vec![("session_id_to_watched_paths", Json::Object(watches.collect()))]
        }
        Command::WatchesByPath => {
            let numbers = |sessions: Vec<corral_proto::SessionId>| {
                Json::List(sessions.into_iter().map(|session| Json::Number(session.0)).collect())
            };
            let by_path = four_letter::by_path(report).into_iter();
            let paths = by_path.map(|(path, sessions)| (path.to_owned(), numbers(sessions)));
            vec![("path_to_session_ids", Json::Object(paths.collect()))]
        }
        Command::ZabState => zab_state(report),
        Command::ConnectionStatReset
        | Command::ObserverConnectionStatReset
        | Command::StatReset
        | Command::Ruok
        | Command::Snapshot
        | Command::Restore => Vec::new(),
    };
    Ok(named(fields))
}

fn named(fields: Vec<(&str, Json)>) -> Fields {
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn object(fields: Vec<(&str, Json)>) -> Json {
    Json::Object(named(fields))
}

fn strings(texts: &[String]) -> Json {
    Json::List(texts.iter().map(Json::text).collect())
}

/// The keys of `conf` as Jackson writes them.
fn configuration(report: &ServerReport) -> Fields {
    const BACKLOG: &str = "clientPortListenBacklog";
    // Not shown at all, and the one that stands elsewhere than in `conf`.
    let mut shown: Vec<_> = report.conf.iter().filter(|(key, _)| *key != "secureClientPort").collect();
    let at = |shown: &[&(&str, Setting)], name| shown.iter().position(|(key, _)| *key == name);
    if let (Some(backlog), Some(id)) = (at(&shown, BACKLOG), at(&shown, "serverId")) {
        shown.swap(backlog, id);
    }
    shown
        .into_iter()
        .map(|(key, value)| {
            let value = match value {
                Setting::Number(number) => Json::Number(*number),
                Setting::Text(text) => Json::text(text),
            };
            (snake_case(key), value)
        })
        .collect()
}

/// `maxClientCnxns` as `max_client_cnxns`.
fn snake_case(key: &str) -> String {
    let mut out = String::with_capacity(key.len() + 4);
    for c in key.chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

fn clients(report: &ServerReport, at_length: bool) -> Vec<(&'static str, Json)> {
    let one = |client: &ClientReport| {
        let mut fields = vec![
            ("remote_socket_address", Json::text(java_socket_address(client.remote))),
            ("interest_ops", Json::Number(i64::from(client.interest()))),
            ("outstanding_requests", client.outstanding.into()),
            ("packets_received", client.received.into()),
            ("packets_sent", client.sent.into()),
        ];
        if at_length && client.has_session() {
            let latency = &client.latency;
            fields.extend([
                ("session_id", Json::Number(client.session.0)),
                ("last_operation", Json::text(four_letter::operation(client.last_opcode))),
                ("established", client.established_ms(report.unix_ms).into()),
                ("session_timeout", Json::Number(i64::from(client.timeout_ms))),
                ("last_cxid", Json::Number(client.last_xid)),
                ("last_zxid", Json::Number(client.last_zxid)),
                ("last_response_time", client.last_response_ms(report.unix_ms).into()),
                ("last_latency", latency.last_ms.into()),
                ("min_latency", latency.min_ms.into()),
                ("avg_latency", Json::Number(latency.average_ms as i64)),
                ("max_latency", latency.max_ms.into()),
            ]);
        }
        object(fields)
    };
    // By the port, as in ZooKeeper: TLS on a port that takes both is among the first.
    let by_port =
        |secure: bool| report.traffic.clients.iter().filter(|client| client.secure == secure).map(one).collect();
    vec![("connections", Json::List(by_port(false))), ("secure_connections", Json::List(by_port(true)))]
}

fn dump(report: &ServerReport) -> Vec<(&'static str, Json)> {
    let dump = &report.session_dump;
    // Those of a server that does not lead are not shown, as in ZooKeeper, whose followers answer with nothing here.
    let leads = matches!(report.mode, ServerMode::Leader | ServerMode::Standalone);
    let local = dump.local_by_expiry.iter().flatten().filter(|_| leads);
    let mut by_expiry: BTreeMap<u64, Vec<Json>> = BTreeMap::new();
    for (expiry_ms, sessions) in local.chain(&dump.by_expiry) {
        by_expiry.entry(*expiry_ms).or_default().extend(sessions.iter().map(|session| Json::Number(session.0)));
    }
    let by_expiry = by_expiry.into_iter().map(|(expiry_ms, sessions)| (expiry_ms.to_string(), Json::List(sessions)));
    let ephemerals = dump.ephemerals.iter().map(|(session, paths)| (session.0.to_string(), strings(paths)));
    vec![
        ("expiry_time_to_session_ids", Json::Object(by_expiry.collect())),
        ("session_id_to_ephemeral_paths", Json::Object(ephemerals.collect())),
    ]
}

fn leader(quorum: &QuorumReport) -> Vec<(&'static str, Json)> {
    let host = |id| quorum.members.iter().find(|member| member.id == id).map(|member| member.host.as_str());
    vec![
        ("is_leader", Json::Bool(quorum.leader == Some(quorum.my_id))),
        ("leader_id", quorum.leader.map_or(Json::Number(-1), Json::from)),
        ("leader_ip", Json::text(quorum.leader.and_then(host).unwrap_or_default())),
    ]
}

fn monitor(report: &ServerReport) -> Fields {
    let mut fields = Vec::new();
    for metric in metrics::metrics(report) {
        metrics::flatten(metric, &mut |name, value| {
            let value = match value {
                Value::Text(text) => Json::Text(text),
                Value::Gauge(number) => Json::Number(number),
                Value::Counter(number) => number.into(),
                Value::Ratio(number) => Json::Fraction(number),
                Value::Summary(_) | Value::Percentiles(_) | Value::Set(_) | Value::Gauges(_) => {
                    unreachable!("flatten makes numbers of them")
                }
            };
            fields.push((name, value));
        });
    }
    fields
}

fn observers(report: &ServerReport) -> Vec<(&'static str, Json)> {
    let learners = report.quorum.iter().flat_map(|quorum| &quorum.learners);
    let observers: Vec<_> = learners.filter(|learner| learner.observer).collect();
    let one = |learner: &&super::operators::LearnerReport| {
        object(vec![
            ("sid", learner.id.into()),
            ("synced", Json::Bool(learner.synced)),
            ("last_zxid", Json::text(learner.acknowledged.to_string())),
        ])
    };
    vec![
        ("synced_observers", observers.iter().filter(|learner| learner.synced).count().into()),
        ("observers", Json::List(observers.iter().map(one).collect())),
    ]
}

fn sizes([last, min, max]: [i64; 3]) -> Json {
    object(vec![
        ("last_buffer_size", Json::Number(last)),
        ("min_buffer_size", Json::Number(min)),
        ("max_buffer_size", Json::Number(max)),
    ])
}

fn server_stats(report: &ServerReport) -> Vec<(&'static str, Json)> {
    let traffic = &report.traffic;
    let stats = object(vec![
        ("packets_sent", traffic.sent.into()),
        ("packets_received", traffic.received.into()),
        ("fsync_threshold_exceed_count", report.slow_syncs.into()),
        ("client_response_stats", sizes(traffic.response_sizes)),
        ("data_dir_size", report.folders[0].into()),
        ("log_dir_size", report.folders[1].into()),
        ("provider_null", Json::Bool(false)),
        ("last_processed_zxid", Json::Number(report.zxid.as_i64())),
        ("server_state", Json::text(report.mode.name())),
        ("outstanding_requests", traffic.outstanding.into()),
        ("avg_latency", Json::Fraction(traffic.latency.average_ms)),
        ("max_latency", traffic.latency.max_ms.into()),
        ("min_latency", traffic.latency.min_ms.into()),
        ("num_alive_client_connections", traffic.clients.len().into()),
        ("uptime", report.uptime_ms.into()),
        ("auth_failed_count", report.auth_failed.into()),
        // As Jackson names them.
        ("non_mtlsremote_conn_count", traffic.plain[1].into()),
        ("non_mtlslocal_conn_count", traffic.plain[0].into()),
    ]);
    let mut fields = vec![
        ("version", Json::text(report.version.as_str())),
        ("read_only", Json::Bool(report.mode == ServerMode::ReadOnly)),
        ("server_stats", stats),
        ("client_response", sizes(traffic.response_sizes)),
    ];
    fields.extend(report.proposal_sizes.map(|all| ("proposal_stats", sizes(all))));
    fields.push(("node_count", report.node_count.into()));
    fields
}

fn voting_view(report: &ServerReport) -> Json {
    let members = report.quorum.iter().flat_map(|quorum| &quorum.members).filter(|member| !member.observer);
    let one = |member: &MemberReport| {
        let address = |port| Json::List(vec![Json::text(host_port(&member.host, port))]);
        let fields = vec![
            ("server_addresses", address(member.peer_port)),
            ("election_addresses", address(member.election_port)),
            ("client_address", Json::text(member.client.as_str())),
            ("learner_type", Json::text("participant")),
        ];
        (member.id.to_string(), object(fields))
    };
    Json::Object(members.map(one).collect())
}

fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn zab_state(report: &ServerReport) -> Vec<(&'static str, Json)> {
    let Some(quorum) = &report.quorum else {
        return vec![("voting", Json::Bool(false)), ("zabstate", Json::text(""))];
    };
    let mut fields =
        vec![("myid", quorum.my_id.into()), ("is_leader", Json::Bool(quorum.leader == Some(quorum.my_id)))];
    if let Some(me) = quorum.members.iter().find(|member| member.id == quorum.my_id) {
        fields.extend([
            ("quorum_address", addresses(&me.host, me.peer_port)),
            ("election_address", addresses(&me.host, me.election_port)),
            ("client_address", Json::text(me.client.as_str())),
        ]);
    }
    fields.extend([
        ("voting", Json::Bool(quorum.voting)),
        ("last_zxid", Json::text(report.zxid.to_string())),
        ("zab_epoch", Json::Number(i64::from(report.zxid.epoch()))),
        ("zab_counter", Json::Number(i64::from(report.zxid.counter()))),
        ("zabstate", Json::text(quorum.phase)),
    ]);
    fields
}

/// One address in the many ways in which ZooKeeper's class for several shows itself.
fn addresses(host: &str, port: u16) -> Json {
    let address = || Json::text(host_port(host, port));
    let list = || Json::List(vec![address()]);
    object(vec![
        ("empty", Json::Bool(false)),
        ("all_addresses", list()),
        ("all_reachable_addresses", list()),
        ("one", address()),
        ("reachable_address", address()),
        ("wildcard_addresses", Json::List(vec![Json::text(format!("0.0.0.0:{port}"))])),
        ("all_ports", Json::List(vec![Json::Number(i64::from(port))])),
        ("all_host_strings", Json::List(vec![Json::text(host)])),
        ("all_reachable_addresses_or_all", list()),
        ("reachable_or_one", address()),
    ])
}

#[cfg(test)]
mod tests;
