//! What operators see, over real sockets: four-letter words, AdminServer, Prometheus.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use common::{Client, alone, alone_with, ensemble, eventually, get, start, word};
use corral_client::CreateMode;
use corral_proto::jute::{Request, Response};
use corral_server::config::{Config, HostPort};
use tokio::net::{TcpListener, TcpStream};

/// Gauges, counters and summaries that dashboards of ZooKeeper ask for and every server has (wire 9.3, 9.4).
const GAUGES: [&str; 22] = [
    "znode_count",
    "num_alive_connections",
    "outstanding_requests",
    "avg_latency",
    "max_latency",
    "min_latency",
    "packets_received",
    "packets_sent",
    "approximate_data_size",
    "watch_count",
    "ephemerals_count",
    "global_sessions",
    "local_sessions",
    "open_file_descriptor_count",
    "max_file_descriptor_count",
    "uptime",
    "connection_drop_probability",
    "last_client_response_size",
    "max_client_response_size",
    "auth_failed_count",
    "non_mtls_local_conn_count",
    "non_mtls_remote_conn_count",
];
const COUNTERS: [&str; 14] = [
    "bytes_received_count",
    "response_bytes",
    "watch_bytes",
    "commit_count",
    "proposal_count",
    "snap_count",
    "diff_count",
    "looking_count",
    "connection_request_count",
    "connection_rejected",
    "sessionless_connections_expired",
    "stale_sessions_expired",
    "unrecoverable_error_count",
    "learner_commit_received_count",
];
const SUMMARIES: [&str; 8] = [
    "readlatency",
    "updatelatency",
    "fsynctime",
    "snapshottime",
    "election_time",
    "unavailable_time",
    "leader_unavailable_time",
    "dbinittime",
];
/// On the leader of several.
const LEADER_GAUGES: [&str; 11] = [
    "quorum_size",
    "learners",
    "synced_followers",
    "synced_non_voting_followers",
    "synced_observers",
    "pending_syncs",
    "leader_uptime",
    "last_proposal_size",
    "min_proposal_size",
    "max_proposal_size",
    "znode_count",
];

/// The same with both pages, on free ports.
fn with_admin(mut config: Config) -> Config {
    config.admin = Some(HostPort::new("127.0.0.1", 0));
    config.metrics = Some(HostPort::new("127.0.0.1", 0));
    config
}

/// Status and body of a GET.
async fn json(address: SocketAddr, command: &str) -> serde_json::Value {
    let (status, body) = get(address, &format!("/commands/{command}")).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).expect("it is JSON")
}

fn mntr(text: &str) -> BTreeMap<&str, &str> {
    text.lines().map(|line| line.strip_prefix("zk_").unwrap().split_once('\t').unwrap()).collect()
}

/// Names with their types.
fn types(prometheus: &str) -> BTreeMap<&str, &str> {
    let lines = prometheus.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    lines.map(|line| line.split_once(' ').unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_of_both_protocols_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&alone(folder.path())).await;
    let mut wire = Client::connect(server.client_addr()).await;
    let grpc = corral_client::Client::connect(&server.client_addr().to_string()).await.unwrap();
    let before = word(server.client_addr(), "mntr").await;
    let before = mntr(&before);
    for i in 0..10 {
        grpc.create(&format!("/g{i}"), "x", CreateMode::Persistent).await.unwrap();
        grpc.get(&format!("/g{i}")).await.unwrap();
        wire.create(&format!("/w{i}"), "x").await.unwrap().unwrap();
    }
    let text = word(server.client_addr(), "mntr").await;
    let after = mntr(&text);
    let grown = |key: &str| after[key].parse::<u64>().unwrap() - before[key].parse::<u64>().unwrap();
    // And the words themselves, and pings.
    assert!(grown("packets_received") >= 30 && grown("packets_sent") >= 30, "{text}");
    assert_eq!(grown("cnt_updatelatency"), 20, "{text}");
    assert!(grown("cnt_readlatency") >= 10, "{text}");
    assert!(grown("bytes_received_count") > 30 * 10 && grown("response_bytes") > 30 * 10, "{text}");
    assert_eq!((grown("proposal_count"), grown("commit_count")), (20, 20), "{text}");
    assert_eq!((grown("cnt_quorum_ack_latency"), grown("cnt_propagation_latency")), (20, 20), "{text}");
    // A path of three bytes with one of data, and the same with a Stat.
    for i in 0..10 {
        assert_eq!(after[format!("sum_g{i}_write_per_namespace").as_str()], "4", "{text}");
        assert_eq!(after[format!("cnt_g{i}_read_per_namespace").as_str()], "1", "{text}");
        assert_eq!(after[format!("sum_g{i}_read_per_namespace").as_str()], "72", "{text}");
    }
    assert_eq!((after["num_alive_connections"], after["outstanding_requests"]), ("3", "0"), "{text}");

    let cons = word(server.client_addr(), "cons").await;
    let of = |session: i64| {
        let mark = format!("sid={session:#x},");
        cons.lines().find(|line| line.contains(&mark)).unwrap_or_else(|| panic!("{mark} is not in {cons}"))
    };
    let line = of(grpc.session_id().0);
    assert!(line.starts_with(" /127.0.0.1:") && line.contains("[1](queued=0,recved="), "{line}");
    // Pings come in between.
    assert!(line.contains("lop=GETD,") || line.contains("lop=PING,"), "{line}");
    assert!(of(wire.session.session_id).contains("lop=CREA,") || of(wire.session.session_id).contains("lop=PING,"));
    let srvr = word(server.client_addr(), "srvr").await;
    assert!(srvr.contains("\nConnections: 3\nOutstanding: 0\n"), "{srvr}");

    // A connection that ends with its session is not broken off; one that just ends is.
    assert_eq!(after["connection_drop_count"], "0", "{text}");
    drop(Client::connect(server.client_addr()).await);
    eventually("a client went without a word", async || {
        let text = word(server.client_addr(), "mntr").await;
        (mntr(&text)["connection_drop_count"] == "1").then_some(())
    })
    .await;

    assert_eq!(word(server.client_addr(), "srst").await, "Server stats reset.\n");
    let reset = word(server.client_addr(), "srvr").await;
    let received = reset.lines().find_map(|line| line.strip_prefix("Received: ")).unwrap().parse::<u64>().unwrap();
    assert!(received < 10, "{reset}");
    grpc.close().await.unwrap();
    eventually("a closed connection is not listed", async || {
        let stat = word(server.client_addr(), "srvr").await;
        stat.contains("\nConnections: 2\n").then_some(())
    })
    .await;
    wire.close().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_word_tells_what_clients_did() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&alone(folder.path())).await;
    let address = server.client_addr();
    let mut client = Client::connect(address).await;
    let session = format!("{:#x}", client.session.session_id);
    client.create("/d", "x").await.unwrap().unwrap();
    let ephemeral = corral_proto::jute::Create {
        path: "/e".into(),
        acl: Some(corral_proto::Acl::open()),
        flags: 1,
        ..corral_proto::jute::Create::default()
    };
    assert!(matches!(client.ask(&Request::Create(ephemeral)).await.unwrap(), Ok(Response::Path(path)) if path == "/e"));
    for watch in [
        Request::GetData { path: "/d".into(), watch: true },
        Request::GetChildren { path: "/d".into(), watch: true },
        Request::Exists { path: "/nope".into(), watch: true },
    ] {
        let _ = client.ask(&watch).await.unwrap();
    }
    assert_eq!(word(address, "wchs").await, "1 connections watching 2 paths\nTotal watches:2\n");
    assert_eq!(word(address, "wchc").await, format!("{session}\n\t/d\n\t/nope\n\n"));
    assert_eq!(word(address, "wchp").await, format!("/d\n\t{session}\n/nope\n\t{session}\n\n"));
    let text = word(address, "mntr").await;
    assert_eq!(mntr(&text)["watch_count"], "3", "child watches count here");

    let dump = word(address, "dump").await;
    let lines: Vec<&str> = dump.lines().collect();
    assert_eq!(lines[..2], ["SessionTracker dump:", "Session Sets (1)/(1):"], "{dump}");
    assert!(lines[2].starts_with("1 expire at ") && lines[2].contains(" UTC 20") && lines[2].ends_with(':'), "{dump}");
    assert_eq!(
        lines[3..9],
        [
            format!("\t{session}").as_str(),
            "ephemeral nodes dump:",
            "Sessions with Ephemerals (1):",
            &format!("{session}:"),
            "\t/e",
            "Connections dump:"
        ],
        "{dump}"
    );
    assert!(dump.contains(&format!(" sessionId: {session}\n")) && dump.contains(" sessionId: 0x0\n"), "{dump}");

    let conf = word(address, "conf").await;
    let keys: Vec<&str> = conf.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    assert_eq!(
        keys,
        [
            "clientPort",
            "secureClientPort",
            "dataDir",
            "dataDirSize",
            "dataLogDir",
            "dataLogSize",
            "tickTime",
            "maxClientCnxns",
            "minSessionTimeout",
            "maxSessionTimeout",
            "clientPortListenBacklog",
            "serverId"
        ]
    );
    let dirs = word(address, "dirs").await;
    let sizes: Vec<u64> = dirs.lines().map(|line| line.split_once(": ").unwrap().1.parse().unwrap()).collect();
    assert!(sizes.len() == 2 && sizes.iter().all(|size| *size > 1 << 20), "the log has a segment: {dirs}");
    let envi = word(address, "envi").await;
    for key in
        ["zookeeper.version=3.9.2-", "host.name=", "os.name=", "os.arch=", "os.version=", "user.name=", "user.dir="]
    {
        assert!(envi.contains(&format!("\n{key}")), "{key}: {envi}");
    }
    assert_eq!((word(address, "gtmk").await.as_str(), word(address, "isro").await.as_str()), ("306", "rw"));
    assert_eq!(word(address, "crst").await, "Connection stats reset.\n");
    let cons = word(address, "cons").await;
    assert!(cons.contains(&format!("recved=0,sent=0,sid={session},")), "{cons}");
    client.close().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_are_recorded_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&alone(folder.path())).await;
    let client = corral_client::Client::connect(&server.client_addr().to_string()).await.unwrap();
    let asked: Vec<_> = (0..1_100).map(|i| client.create(&format!("/n{i}"), (), CreateMode::Persistent)).collect();
    for created in asked {
        created.await.unwrap();
    }
    // Replies leave before what the batch did is noted.
    let hash = eventually("two digests", async || {
        let hash = word(server.client_addr(), "hash").await;
        (hash.lines().count() == 2).then_some(hash)
    })
    .await;
    let digests: Vec<(&str, &str)> = hash.lines().map(|line| line.split_once(": ").unwrap()).collect();
    // One at the beginning of the epoch, one every 1,024 entries.
    assert_eq!(digests.iter().map(|(zxid, _)| *zxid).collect::<Vec<_>>(), ["100000000", "100000400"]);
    assert!(digests.iter().all(|(_, digest)| digest.parse::<i64>().is_ok()) && digests[0].1 != digests[1].1, "{hash}");
    client.close().await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_of_one_server_agree() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&with_admin(alone(folder.path()))).await;
    let (admin, metrics) = (server.admin_addr().unwrap(), server.metrics_addr().unwrap());
    let mut client = Client::connect(server.client_addr()).await;
    client.create("/a", "x").await.unwrap().unwrap();

    let (status, page) = get(metrics, "/metrics").await;
    assert_eq!(status, 200);
    let types = types(&page);
    for (names, kind) in [(&GAUGES[..], "gauge"), (&COUNTERS[..], "counter"), (&SUMMARIES[..], "summary")] {
        for name in names {
            assert_eq!(types.get(name), Some(&kind), "{name}");
        }
    }
    for name in COUNTERS {
        assert_eq!(types.get(format!("{name}_total").as_str()), Some(&"counter"), "{name}");
    }
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').expect("name and value");
        assert!(value.parse::<f64>().is_ok(), "{series} is {value}");
    }
    assert!(page.contains("\nprocess_open_fds ") && page.contains("\nprocess_resident_memory_bytes "), "{page}");
    let series = |text: &str| -> BTreeSet<String> {
        text.lines().filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
    };
    assert_eq!(series(&get(admin, "/metrics").await.1), series(&page), "AdminServer has the same page");

    let text = word(server.client_addr(), "mntr").await;
    let mntr = mntr(&text);
    let monitor = json(admin, "monitor").await;
    let monitor = monitor.as_object().unwrap();
    let shown: BTreeSet<&str> = monitor.keys().map(String::as_str).collect();
    let mut expected: BTreeSet<&str> = mntr.keys().copied().collect();
    expected.extend(["command", "error"]);
    assert_eq!(shown, expected);
    for key in ["znode_count", "ephemerals_count", "global_sessions", "watch_count", "approximate_data_size"] {
        assert_eq!(monitor[key].to_string(), mntr[key], "{key}");
        let series = format!("{key} ");
        let value = page.lines().find_map(|line| line.strip_prefix(&series)).unwrap();
        assert_eq!(value, mntr[key], "{key}");
    }

    let stats = json(admin, "server_stats").await;
    assert_eq!((&stats["server_stats"]["server_state"], &stats["error"]), (&"standalone".into(), &().into()));
    assert_eq!(json(admin, "leader").await["error"], "server is not initialized");
    let connections = json(admin, "connections").await;
    assert_eq!(connections["connections"][0]["session_id"], client.session.session_id);
    assert_eq!(get(admin, "/commands/").await.0, 200);
    assert_eq!(get(metrics, "/commands").await.0, 404, "that port has figures only");
    client.close().await;
    server.stop().await;
    assert!(TcpStream::connect(admin).await.is_err() && TcpStream::connect(metrics).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_keeps_nobody_from_being_served() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = with_admin(alone(folder.path()));
    config.admin = Some(HostPort::new("127.0.0.1", taken.local_addr().unwrap().port()));
    let server = start(&config).await;
    assert_eq!(server.admin_addr(), None);
    assert!(server.metrics_addr().is_some());
    let mut client = Client::connect(server.client_addr()).await;
    assert_eq!(client.create("/a", "x").await.unwrap(), Ok(Response::Path("/a".into())));
    client.close().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ensemble_shows_who_leads_and_which_configuration_holds() {
    let folder = tempfile::tempdir().unwrap();
    let mut servers = Vec::new();
    for config in ensemble(folder.path(), 3) {
        servers.push(start(&with_admin(config)).await);
    }
    let mut client = Client::connect(servers[0].client_addr()).await;
    client.create("/a", "x").await.unwrap().unwrap();
    client.sync().await;
    let config = eventually("the configuration has its version", async || {
        client.get("/zookeeper/config").await.filter(|text| !text.ends_with("version=0") && !text.is_empty())
    })
    .await;
    let leader = eventually("all have caught up", async || {
        for (index, server) in servers.iter().enumerate() {
            let text = word(server.client_addr(), "mntr").await;
            if text.contains("\nzk_synced_followers\t2\n") {
                return Some(index);
            }
        }
        None
    })
    .await;
    for (index, server) in servers.iter().enumerate() {
        let conf = eventually("the state of this server has it", async || {
            let conf = word(server.client_addr(), "conf").await;
            conf.ends_with(&format!("membership: \n{config}")).then_some(conf)
        })
        .await;
        assert!(conf.contains("\nelectionAlg=3\n") && conf.contains("\npeerType=0\n"), "{conf}");
        let text = word(server.client_addr(), "mntr").await;
        let mntr = mntr(&text);
        let state = if index == leader { "leading - broadcast" } else { "following - broadcast" };
        assert_eq!((mntr["peer_state"], mntr["quorum_size"]), (state, "3"), "{text}");
        let admin = server.admin_addr().unwrap();
        let told = json(admin, "leader").await;
        assert_eq!((&told["is_leader"], &told["leader_id"]), (&(index == leader).into(), &(leader + 1).into()));
        let zab = json(admin, "zabstate").await;
        assert_eq!(
            (&zab["zabstate"], &zab["voting"], &zab["myid"]),
            (&"broadcast".into(), &true.into(), &(index + 1).into())
        );
        assert_eq!(json(admin, "voting_view").await["current_config"].as_object().unwrap().len(), 3);
        let dump = word(server.client_addr(), "dump").await;
        if index == leader {
            assert!(dump.starts_with("SessionTracker dump:\nSession Sets ("), "{dump}");
            let types = get(server.metrics_addr().unwrap(), "/metrics").await.1;
            let types = self::types(&types);
            for name in LEADER_GAUGES {
                assert_eq!(types.get(name), Some(&"gauge"), "{name}");
            }
            let srvr = word(server.client_addr(), "srvr").await;
            let sizes = srvr.lines().last().and_then(|l| l.strip_prefix("Proposal sizes last/min/max: ")).unwrap();
            assert!(sizes.split('/').all(|size| size.parse::<u64>().is_ok_and(|size| size > 0)), "{srvr}");
        } else {
            assert!(dump.starts_with("SessionTracker dump:\nGlobal Sessions(1):\n"), "{dump}");
            assert!(!text.contains("zk_synced_followers"), "{text}");
        }
    }
    client.close().await;
    for stopping in servers.into_iter().map(|server| tokio::spawn(server.stop())).collect::<Vec<_>>() {
        stopping.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn srvr_is_answered_whatever_the_whitelist_says() {
    for list in ["ruok", ""] {
        let folder = tempfile::tempdir().unwrap();
        let server = start(&alone_with(folder.path(), &format!("4lw.commands.whitelist={list}\n"))).await;
        let address = server.client_addr();
        let serves = async || word(address, "srvr").await.contains("\nMode: standalone\n").then_some(());
        eventually("srvr is answered", serves).await;
        assert!(word(server.client_addr(), "mntr").await.contains("not in the whitelist"), "{list:?}");
        server.stop().await;
    }
}
