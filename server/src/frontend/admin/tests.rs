//! Commands against pages that a ZooKeeper gave.

use std::net::SocketAddr;

use corral_proto::jute::opcode;
use corral_proto::{SessionId, Zxid};

use super::super::metrics::Metric;
use super::super::operators::{LearnerReport, Reporter, SessionDump};
use super::super::wire::stats::{Access, Awaited, FrontendStats};
use super::*;

const SESSION: SessionId = SessionId(72_058_409_813_409_793);

fn members() -> Vec<MemberReport> {
    let member = |id: u64, client: &str| MemberReport {
        id,
        host: "127.0.0.1".into(),
        peer_port: 23_920 + id as u16,
        election_port: 23_930 + id as u16,
        client: client.into(),
        observer: id == 4,
    };
    vec![member(1, ""), member(2, "127.0.0.1:23912"), member(4, "")]
}

/// A leader of three.
fn leading() -> ServerReport {
    let mut report = ServerReport {
        version: "3.9.2-x".into(),
        mode: ServerMode::Leader,
        zxid: Zxid::new(1, 3),
        node_count: 7,
        proposal_sizes: Some([94, 48, 94]),
        uptime_ms: 33_142,
        unix_ms: 1_795_376_124_046,
        conf: vec![
            ("clientPort", Setting::Number(23_912)),
            ("secureClientPort", Setting::Number(-1)),
            ("dataDir", Setting::Text("/d".into())),
            ("clientPortListenBacklog", Setting::Number(-1)),
            ("serverId", Setting::Number(2)),
        ],
        environment: vec![("host.name", "localhost".into())],
        persisted: (Zxid(0x1_0000_0002), 1_795_375_811),
        folders: [67_109_337, 5],
        digests: vec![(Zxid(128), 2_348_615_044)],
        watches: vec![(SESSION, vec!["/d".into(), "/nope".into()])],
        quorum: Some(QuorumReport {
            my_id: 2,
            voting: true,
            peer_state: "leading - broadcast".into(),
            phase: "broadcast",
            leader: Some(2),
            voters: 2,
            members: members(),
            learners: vec![LearnerReport { id: 4, acknowledged: Zxid::new(1, 3), synced: true, observer: true }],
        }),
        session_dump: SessionDump {
            by_expiry: vec![(12_494_000, vec![SESSION])],
            sessions: vec![(SESSION, 10_000)],
            local_by_expiry: None,
            ephemerals: vec![(SESSION, vec!["/e".into()])],
        },
        ..ServerReport::default()
    };
    report.figures.push(Metric::counter("proposal_count", 4));
    report
}

fn alone() -> ServerReport {
    ServerReport { mode: ServerMode::Standalone, quorum: None, proposal_sizes: None, ..leading() }
}

fn site(report: ServerReport) -> (AdminSite, Arc<FrontendStats>) {
    let stats = FrontendStats::new();
    let reporter: Reporter = Arc::new(move |_| Box::pin(std::future::ready(report.clone())));
    (AdminSite::new(Operators::new(reporter, stats.clone()), "/commands"), stats)
}

async fn ask(site: &AdminSite, path_and_query: &str) -> (u16, String) {
    let (path, query) = match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path_and_query, None),
    };
    let answer = site.get(path, query).await;
    (answer.status.as_u16(), answer.body)
}

/// The page of a command, which must be JSON that ends with its name and no error.
async fn command(report: ServerReport, name: &str) -> String {
    let (site, _) = site(report);
    let (status, body) = ask(&site, &format!("/commands/{name}")).await;
    assert_eq!(status, 200, "{body}");
    let page: serde_json::Value = serde_json::from_str(&body).expect("it is JSON");
    assert_eq!(page["error"], serde_json::Value::Null, "{body}");
    body
}

#[tokio::test]
async fn small_commands_are_as_recorded() {
    let ruok = "{\n  \"command\" : \"ruok\",\n  \"error\" : null\n}\n";
    assert_eq!(command(alone(), "ruok").await, ruok);
    assert_eq!(
        command(alone(), "dirs").await,
        "{\n  \"datadir_size\" : 67109337,\n  \"logdir_size\" : 5,\n  \"command\" : \"dirs\",\n  \"error\" : null\n}\n"
    );
    assert_eq!(
        command(alone(), "wchs").await,
        "{\n  \"num_connections\" : 1,\n  \"num_paths\" : 2,\n  \"num_total_watches\" : 2,\n  \
         \"command\" : \"watch_summary\",\n  \"error\" : null\n}\n"
    );
    assert_eq!(
        command(alone(), "zabstate").await,
        "{\n  \"voting\" : false,\n  \"zabstate\" : \"\",\n  \"command\" : \"zabstate\",\n  \"error\" : null\n}\n"
    );
    assert_eq!(
        command(alone(), "conf").await,
        "{\n  \"client_port\" : 23912,\n  \"data_dir\" : \"/d\",\n  \"server_id\" : 2,\n  \"client_port_listen_backlog\" : -1,\n  \
         \"command\" : \"configuration\",\n  \"error\" : null\n}\n"
    );
}

/// Keys of an object in the order of the text, at one depth of indentation.
fn keys(page: &str, depth: usize) -> Vec<String> {
    let indent = "  ".repeat(depth) + "\"";
    let key = |line: &str| Some(line.strip_prefix(&indent)?.split_once("\" : ")?.0.to_owned());
    page.lines().filter_map(key).collect()
}

#[tokio::test]
async fn larger_commands_have_the_recorded_keys_in_their_order() {
    for (report, name, recorded) in [
        (leading(), "leader", "is_leader leader_id leader_ip"),
        (leading(), "voting_view", "current_config"),
        (
            leading(),
            "zabstate",
            "myid is_leader quorum_address election_address client_address voting last_zxid zab_epoch zab_counter \
             zabstate",
        ),
        (leading(), "observers", "synced_observers observers"),
        (alone(), "last_snapshot", "zxid timestamp"),
        (alone(), "dump", "expiry_time_to_session_ids session_id_to_ephemeral_paths"),
        (alone(), "watches", "session_id_to_watched_paths"),
        (alone(), "watches_by_path", "path_to_session_ids"),
        (alone(), "hash", "digests"),
        (alone(), "is_read_only", "read_only"),
        (alone(), "initial_configuration", "initial_configuration"),
        (alone(), "get_trace_mask", "tracemask"),
        (alone(), "environment", "zookeeper.version host.name"),
        (alone(), "connections", "connections secure_connections"),
        (alone(), "server_stats", "version read_only server_stats client_response node_count"),
        (leading(), "srvr", "version read_only server_stats client_response proposal_stats node_count"),
        (alone(), "stats", "version read_only server_stats client_response node_count connections secure_connections"),
    ] {
        let page = command(report, name).await;
        let mut expected: Vec<&str> = recorded.split(' ').collect();
        expected.extend(["command", "error"]);
        assert_eq!(keys(&page, 1), expected, "{name}");
    }
}

#[tokio::test]
async fn nested_values_are_as_recorded() {
    let page: serde_json::Value = serde_json::from_str(&command(leading(), "voting_view").await).unwrap();
    let expected = serde_json::json!({
        "1": {
            "server_addresses": ["127.0.0.1:23921"], "election_addresses": ["127.0.0.1:23931"],
            "client_address": "", "learner_type": "participant"
        },
        "2": {
            "server_addresses": ["127.0.0.1:23922"], "election_addresses": ["127.0.0.1:23932"],
            "client_address": "127.0.0.1:23912", "learner_type": "participant"
        },
    });
    assert_eq!(page["current_config"], expected, "observers do not vote");
    let dump = command(alone(), "dump").await;
    assert!(dump.contains("\"12494000\" : [ 72058409813409793 ]"), "{dump}");
    assert!(dump.contains("\"72058409813409793\" : [ \"/e\" ]"), "{dump}");
    let zab: serde_json::Value = serde_json::from_str(&command(leading(), "zabstate").await).unwrap();
    assert_eq!(
        (&zab["last_zxid"], &zab["zab_epoch"], &zab["zab_counter"]),
        (&"0x100000003".into(), &1.into(), &3.into())
    );
    assert_eq!(zab["quorum_address"]["one"], "127.0.0.1:23922");
    let last: serde_json::Value = serde_json::from_str(&command(alone(), "lsnp").await).unwrap();
    assert_eq!((&last["zxid"], &last["timestamp"]), (&"100000002".into(), &1_795_375_811.into()));
    let srvr = command(leading(), "srvr").await;
    assert_eq!(
        keys(&srvr, 2)[..7],
        [
            "packets_sent",
            "packets_received",
            "fsync_threshold_exceed_count",
            "client_response_stats",
            "data_dir_size",
            "log_dir_size",
            "provider_null"
        ]
    );
}

#[tokio::test]
async fn connections_are_listed_with_what_they_do() {
    let (site, stats) = site(alone());
    let one = stats.register("127.0.0.1:54460".parse::<SocketAddr>().unwrap(), false);
    let _secure = stats.register("127.0.0.1:54461".parse::<SocketAddr>().unwrap(), true);
    one.connected(SESSION, 10_000, false);
    one.received(2, 40);
    let now = tokio::time::Instant::now();
    let mut turn = one.turn(now);
    turn.reply(7, &Awaited { xid: 301, opcode: opcode::GET_CHILDREN2, access: Access::Read, read_at: now }, false, 16);
    turn.finish();
    let (_, page) = ask(&site, "/commands/cons").await;
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    let connection = &page["connections"][0];
    for (key, value) in [
        ("remote_socket_address", serde_json::json!("127.0.0.1:54460")),
        ("interest_ops", 1.into()),
        ("outstanding_requests", 1.into()),
        ("session_id", SESSION.0.into()),
        ("last_operation", "GETC".into()),
        ("session_timeout", 10_000.into()),
        ("last_cxid", 301.into()),
    ] {
        assert_eq!(connection[key], value, "{key}");
    }
    assert_eq!(page["command"], "connections");
    assert_eq!(page["connections"].as_array().unwrap().len(), 1);
    assert_eq!(page["secure_connections"].as_array().unwrap().len(), 1);
    assert_eq!(page["secure_connections"][0]["remote_socket_address"], "127.0.0.1:54461");
    let (_, reset) = ask(&site, "/commands/stat_reset").await;
    assert!(reset.contains("\"error\" : null"), "{reset}");
    assert_eq!(stats.report().received, 0);
    assert_eq!(stats.report().clients[0].received, 3);
    ask(&site, "/commands/crst").await;
    assert_eq!(stats.report().clients[0].received, 0);
}

#[tokio::test]
async fn mistakes_are_told_as_zookeeper_tells_them() {
    let (site, _) = site(alone());
    for (path, page) in [
        ("/commands/nonsense", "{\n  \"command\" : \"nonsense\",\n  \"error\" : \"Unknown command: nonsense\"\n}\n"),
        ("/commands/leader", "{\n  \"error\" : \"server is not initialized\",\n  \"command\" : \"leader\"\n}\n"),
        (
            "/commands/set_trace_mask",
            "{\n  \"error\" : \"setTraceMask requires long traceMask argument\",\n  \"command\" : \"set_trace_mask\"\n}\n",
        ),
        (
            "/commands/stmk?a=b&traceMask=x",
            "{\n  \"error\" : \"setTraceMask requires long traceMask argument, got x\",\n  \
             \"command\" : \"set_trace_mask\"\n}\n",
        ),
    ] {
        assert_eq!(ask(&site, path).await, (200, page.to_owned()), "{path}");
    }
    let (_, set) = ask(&site, "/commands/stmk?traceMask=522").await;
    assert!(set.contains("\"tracemask\" : 522"), "{set}");
    for path in ["/", "/other", "/commandsX", "/metrics/x"] {
        assert_eq!(ask(&site, path).await.0, 404, "{path}");
    }
    for name in ["snapshot", "rest"] {
        let (status, page) = ask(&site, &format!("/commands/{name}")).await;
        assert!(status == 403 && page.contains("not available"), "{page}");
    }
}

#[tokio::test]
async fn the_list_leads_to_every_command() {
    let (site, _) = site(leading());
    for path in ["/commands", "/commands/"] {
        let (_, list) = ask(&site, path).await;
        assert!(list.starts_with("<a href=\"/commands/configuration\">configuration</a>\n<br/>\n"), "{list}");
        for name in list.split("href=\"/commands/").skip(1).filter_map(|rest| rest.split('"').next()) {
            let (_, page) = ask(&site, &format!("/commands/{name}?traceMask=1")).await;
            assert!(page.contains(&format!("\"command\" : \"{name}\"")), "{name}: {page}");
        }
    }
}

#[tokio::test]
async fn without_a_quorum_most_commands_say_so_and_figures_are_still_there() {
    let (site, _) = site(ServerReport { mode: ServerMode::NotServing, ..leading() });
    let refused = "{\n  \"error\" : \"This ZooKeeper instance is not currently serving requests\",\n  \"command\" : \"ruok\"\n}\n";
    assert_eq!(ask(&site, "/commands/ruok").await, (200, refused.to_owned()));
    assert!(ask(&site, "/commands/envi").await.1.contains("\"error\" : null"));
    let (status, figures) = ask(&site, "/metrics").await;
    assert!(status == 200 && figures.contains("\nznode_count 7\n"), "{figures}");
}

#[tokio::test]
async fn monitor_mntr_and_prometheus_tell_the_same() {
    let report = leading();
    let page: serde_json::Value = serde_json::from_str(&command(report.clone(), "mntr").await).unwrap();
    let mntr = metrics::mntr(&ServerReport { traffic: FrontendStats::new().report(), ..report.clone() });
    for line in mntr.lines() {
        let (key, value) = line.split_once('\t').unwrap();
        let key = key.strip_prefix("zk_").unwrap();
        let shown = match &page[key] {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        assert_eq!(shown, value, "{key}");
    }
    assert_eq!(page.as_object().unwrap().len(), mntr.lines().count() + 2, "and nothing more but command and error");
    let (site, _) = site(report);
    let (_, prometheus) = ask(&site, "/metrics").await;
    for key in ["znode_count", "proposal_count", "uptime", "quorum_size", "max_proposal_size"] {
        assert!(prometheus.contains(&format!("\n{key} {}\n", page[key])), "{key}");
    }
}
