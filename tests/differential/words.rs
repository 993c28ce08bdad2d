//! What of a four-letter word's answer is compared: its keys and the form of its lines, and the values that follow from
//! what clients did. Loads, times, ports and sizes do not.

use std::collections::BTreeSet;

/// The words that are asked.
pub const WORDS: [&str; 18] = [
    "ruok", "isro", "srvr", "stat", "cons", "conf", "envi", "dirs", "dump", "wchs", "wchc", "wchp", "mntr", "gtmk",
    "crst", "srst", "zzzz", "reqs",
];

/// Keys of `mntr` that dashboards and probes read: both must have them.
const FIGURES: [&str; 38] = [
    "zk_version",
    "zk_server_state",
    "zk_avg_latency",
    "zk_min_latency",
    "zk_max_latency",
    "zk_packets_received",
    "zk_packets_sent",
    "zk_num_alive_connections",
    "zk_outstanding_requests",
    "zk_znode_count",
    "zk_watch_count",
    "zk_ephemerals_count",
    "zk_approximate_data_size",
    "zk_open_file_descriptor_count",
    "zk_max_file_descriptor_count",
    "zk_uptime",
    "zk_global_sessions",
    "zk_local_sessions",
    "zk_connection_drop_probability",
    "zk_last_client_response_size",
    "zk_min_client_response_size",
    "zk_max_client_response_size",
    "zk_outstanding_tls_handshake",
    "zk_auth_failed_count",
    "zk_non_mtls_remote_conn_count",
    "zk_non_mtls_local_conn_count",
    "zk_bytes_received_count",
    "zk_connection_request_count",
    "zk_connection_rejected",
    "zk_sessionless_connections_expired",
    "zk_stale_sessions_expired",
    "zk_unrecoverable_error_count",
    "zk_avg_readlatency",
    "zk_p99_readlatency",
    "zk_avg_updatelatency",
    "zk_cnt_updatelatency",
    "zk_cnt_fsynctime",
    "zk_sum_snapshottime",
];

/// Of these the values, too.
const FIGURES_BY_VALUE: [&str; 5] =
    ["zk_server_state", "zk_znode_count", "zk_ephemerals_count", "zk_connection_drop_probability", "zk_local_sessions"];

/// Lines of `envi` that have nothing to do with Java.
const ENVIRONMENT: [&str; 8] =
    ["zookeeper.version", "host.name", "os.name", "os.arch", "os.version", "user.name", "user.home", "user.dir"];

/// Values of `conf` that are configured alike.
const CONFIGURED: [&str; 4] = ["tickTime", "maxClientCnxns", "minSessionTimeout", "maxSessionTimeout"];

/// The lines of an answer that must be the same. `session`: the name of a session of the program, with a connection.
pub fn shown(word: &str, answer: &str, session: impl Fn(&str) -> Option<String>) -> Vec<String> {
    match word {
        "srvr" | "stat" => keys(answer, ": ", &["Mode", "Node count"]),
        "conf" => keys(answer, "=", &CONFIGURED),
        "dirs" => keys(answer, ": ", &[]),
        "mntr" => chosen(answer, "\t", &FIGURES, &FIGURES_BY_VALUE),
        "envi" => {
            let title = answer.lines().next().unwrap_or_default().to_owned();
            [title].into_iter().chain(chosen(answer, "=", &ENVIRONMENT, &[])).collect()
        }
        "cons" => forms(answer),
        "wchs" => forms(answer),
        "wchc" => by_session(answer, session),
        "wchp" => by_path(answer, session),
        "dump" => dump(answer, session),
        // As it is, with its line ends.
        _ => vec![format!("{answer:?}")],
    }
}

/// Each line by its key, and some by their values; lines without one by their form.
fn keys(answer: &str, separator: &str, by_value: &[&str]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in answer.lines() {
        let line = match line.split_once(separator) {
            Some((key, _)) if by_value.contains(&key) => line.to_owned(),
            Some((key, _)) if !key.starts_with(' ') => format!("{key}{separator}"),
            _ => form(line),
        };
        // Clients: as many as there are.
        if lines.last() != Some(&line) {
            lines.push(line);
        }
    }
    lines
}

/// Whether the keys are there, and of some the values.
fn chosen(answer: &str, separator: &str, wanted: &[&str], by_value: &[&str]) -> Vec<String> {
    let value = |key: &&str| {
        let found = answer.lines().find_map(|line| line.strip_prefix(*key)?.strip_prefix(separator));
        match found {
            None => format!("{key} MISSING"),
            Some(value) if by_value.contains(key) => format!("{key} {value}"),
            Some(_) => (*key).to_owned(),
        }
    };
    wanted.iter().map(value).collect()
}

/// The forms of the lines, each once.
fn forms(answer: &str) -> Vec<String> {
    answer.lines().map(form).collect::<BTreeSet<String>>().into_iter().collect()
}

/// A line with `N` for numbers (`0x` ones and addresses too).
fn form(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("lop=null") {
            // See `taken-up`.
            out += "lop=NA";
            rest = after;
        } else if let Some(after) = rest.strip_prefix("0x") {
            out += "0xN";
            rest = after.trim_start_matches(|c: char| c.is_ascii_hexdigit());
        } else if first.is_ascii_digit() {
            out.push('N');
            rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

/// `wchc`: the paths of each session; sessions without a connection here are on their way out.
fn by_session(answer: &str, session: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut lines = Vec::new();
    let mut whose = None;
    for line in answer.lines() {
        match line.strip_prefix('\t') {
            Some(path) => lines.extend(whose.as_ref().map(|name| format!("{name} {path}"))),
            None if line.is_empty() => {}
            None => whose = session(line),
        }
    }
    lines.sort();
    lines
}

/// `wchp`: the same the other way round.
fn by_path(answer: &str, session: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut lines = Vec::new();
    let mut path = "";
    for line in answer.lines() {
        match line.strip_prefix('\t') {
            Some(id) => lines.extend(session(id).map(|name| format!("{path} {name}"))),
            None => path = line,
        }
    }
    lines.sort();
    lines
}

/// `dump`: the ephemerals of each session, and the titles.
fn dump(answer: &str, session: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let (mut titles, mut owned) = (Vec::new(), Vec::new());
    let mut whose = None;
    for line in answer.lines() {
        if let Some(id) = line.strip_suffix(':').filter(|id| id.starts_with("0x")) {
            whose = session(id);
        } else if let Some(path) = line.strip_prefix('\t').filter(|path| path.starts_with('/')) {
            owned.extend(whose.as_ref().map(|name| format!("{name} owns {path}")));
        } else if !line.starts_with('\t') && !line.contains(" expire at ") {
            titles.push(form(line));
        }
    }
    owned.sort();
    titles.extend(owned);
    titles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_the_same_where_they_mean_the_same() {
        let name = |id: &str| (id == "0x1").then(|| "s0".to_owned());
        let cons = |port: u32, op: &str| {
            format!(" /127.0.0.1:{port}[1](queued=0,recved=5,sid=0x10a,lop={op},est=17,lcxid=0xff,lat=0)\n\n")
        };
        assert_eq!(shown("cons", &cons(1, "NA"), name), shown("cons", &cons(22, "null"), name));
        assert_ne!(shown("cons", &cons(1, "CREA"), name), shown("cons", &cons(1, "GETD"), name));
        assert_ne!(shown("cons", &cons(1, "NA"), name), shown("cons", &cons(1, "NA").replace("lcxid=0xff,", ""), name));
        assert_ne!(shown("cons", &cons(1, "CREA"), name), shown("cons", &cons(1, "CREA").replace("lat", "llat"), name));
        assert_ne!(shown("srvr", "Mode: leader\n", name), shown("srvr", "Mode: follower\n", name));
        assert_eq!(shown("srvr", "Sent: 1\n", name), shown("srvr", "Sent: 20\n", name));
        assert_eq!(shown("wchc", "0x2\n\t/b\n0x1\n\t/b\n\t/a\n\n", name), ["s0 /a", "s0 /b"]);
        assert_eq!(shown("wchp", "/b\n\t0x1\n\t0x2\n/a\n\t0x1\n\n", name), ["/a s0", "/b s0"]);
        let lines = "SessionTracker dump:\nSession Sets (2)/(1):\n0 expire at X:\n1 expire at Y:\n\t0x1\nephemeral nodes dump:\n\
                     Sessions with Ephemerals (2):\n0x1:\n\t/e\n0x2:\n\t/f\n";
        let expected = [
            "SessionTracker dump:",
            "Session Sets (N)/(N):",
            "ephemeral nodes dump:",
            "Sessions with Ephemerals (N):",
            "s0 owns /e",
        ];
        assert_eq!(shown("dump", lines, name), expected);
        assert!(shown("mntr", "zk_znode_count\t5\n", name).contains(&"zk_znode_count 5".to_owned()));
        assert!(shown("mntr", "zk_znode_count\t5\n", name).contains(&"zk_version MISSING".to_owned()));
    }
}
