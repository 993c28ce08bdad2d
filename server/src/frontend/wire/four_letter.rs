//! Four-letter words: what operators and exporters ask on the client port (wire 2.1, 9.1 to 9.3).
//!
//! A function of a [`ServerReport`] and nothing else. The text is ZooKeeper's to the character, since scripts and
//! client libraries take it apart with regular expressions.

use std::fmt::Write;

use corral_proto::Zxid;
use corral_proto::jute::opcode;

use super::stats::{ClientReport, Traffic};

/// What `srvr`, `mntr` and `envi` show as version. The number in front is that of the ZooKeeper release whose protocol
/// is spoken: clients choose features by it, and their patterns want a date after it.
pub const VERSION: &str = concat!("3.9.2-corral-", env!("CARGO_PKG_VERSION"), ", built on 2026-11-22 00:00 UTC");

const NOT_SERVING: &str = "This ZooKeeper instance is not currently serving requests\n";

/// A word this server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Word {
    /// The configuration.
    Conf,
    /// Each connection at length.
    Cons,
    /// Resets the counters of the connections.
    Crst,
    /// Sizes on disk.
    Dirs,
    /// The environment.
    Envi,
    /// Whether it takes writes.
    Isro,
    /// Key and value, for monitoring.
    Mntr,
    /// Whether the process listens.
    Ruok,
    /// Resets the counters of the server.
    Srst,
    /// The server in ten lines.
    Srvr,
    /// The same with its connections.
    Stat,
    /// Number of watches.
    Wchs,
}

impl Word {
    const ALL: [Word; 12] = [
        Word::Conf,
        Word::Cons,
        Word::Crst,
        Word::Dirs,
        Word::Envi,
        Word::Isro,
        Word::Mntr,
        Word::Ruok,
        Word::Srst,
        Word::Srvr,
        Word::Stat,
        Word::Wchs,
    ];

    /// Its letters.
    pub const fn letters(self) -> &'static str {
        match self {
            Word::Conf => "conf",
            Word::Cons => "cons",
            Word::Crst => "crst",
            Word::Dirs => "dirs",
            Word::Envi => "envi",
            Word::Isro => "isro",
            Word::Mntr => "mntr",
            Word::Ruok => "ruok",
            Word::Srst => "srst",
            Word::Srvr => "srvr",
            Word::Stat => "stat",
            Word::Wchs => "wchs",
        }
    }
}

/// Words of ZooKeeper that are not answered here, whatever the whitelist says.
const OTHER_WORDS: [&str; 6] = ["dump", "gtmk", "hash", "stmk", "wchc", "wchp"];

/// The first four bytes of a connection, if they are a word of ZooKeeper. Case counts. Every word is, as a number, far
/// above any frame's length, so it cannot be the beginning of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// One that this server answers.
    Known(Word),
    /// One that it never answers.
    Other(&'static str),
}

impl Spoken {
    /// Reads a word.
    pub fn parse(bytes: &[u8; 4]) -> Option<Spoken> {
        if let Some(word) = Word::ALL.into_iter().find(|word| word.letters().as_bytes() == bytes) {
            return Some(Spoken::Known(word));
        }
        OTHER_WORDS.into_iter().find(|word| word.as_bytes() == bytes).map(Spoken::Other)
    }
}

/// Which words are answered (`4lw.commands.whitelist`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whitelist {
    words: Vec<Word>,
}

impl Default for Whitelist {
    /// ZooKeeper's default: `srvr`.
    fn default() -> Whitelist {
        Whitelist { words: vec![Word::Srvr] }
    }
}

impl Whitelist {
    /// Reads the configuration's value: `*`, or words with commas between them. Words that do not exist are ignored,
    /// as ZooKeeper does.
    pub fn parse(text: &str) -> Whitelist {
        let text = text.trim();
        if text == "*" {
            return Whitelist { words: Word::ALL.to_vec() };
        }
        let named = |word: &Word| text.split(',').any(|name| name.trim() == word.letters());
        Whitelist { words: Word::ALL.into_iter().filter(named).collect() }
    }

    /// Whether a word is answered.
    pub fn allows(&self, word: Word) -> bool {
        self.words.contains(&word)
    }
}

/// The role `srvr` and `mntr` show.
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
    const fn name(self) -> &'static str {
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

/// Everything the words show. The server fills it in when one is asked; the front end adds [`Traffic`].
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
    /// Leaders only: bytes of the last, smallest and largest proposal; -1 before the first.
    pub proposal_sizes: Option<[i64; 3]>,
    /// Watches: connections that have some, paths, and pairs of both.
    pub watches: [u64; 3],
    /// Keys and values of `conf`, in order.
    pub conf: Vec<(String, String)>,
    /// The text of `/zookeeper/config`; empty when there is none to show.
    pub membership: String,
    /// Keys and values of `envi` beside `zookeeper.version`, in order.
    pub environment: Vec<(String, String)>,
    /// Bytes of the data folder and of the log folder.
    pub dir_bytes: [u64; 2],
    /// Keys (without `zk_`) and values of `mntr` beside those that follow from the other fields.
    pub mntr: Vec<(String, String)>,
    /// The time, ms since the Unix epoch.
    pub unix_ms: u64,
    /// What the front end counted.
    pub traffic: Traffic,
}

/// What to send for a word; then the connection ends.
pub fn answer(spoken: Spoken, whitelist: &Whitelist, report: &ServerReport) -> String {
    let word = match spoken {
        Spoken::Known(word) if whitelist.allows(word) => word,
        Spoken::Known(word) => return not_executed(word.letters()),
        Spoken::Other(letters) => return not_executed(letters),
    };
    let mut out = String::new();
    match (word, report.mode) {
        (Word::Ruok, _) => out.push_str("imok"),
        (Word::Envi, _) => {
            out.push_str("Environment:\n");
            put(&mut out, format_args!("zookeeper.version={}\n", report.version));
            for (key, value) in &report.environment {
                put(&mut out, format_args!("{key}={value}\n"));
            }
        }
        (Word::Isro, ServerMode::NotServing) => out.push_str("null"),
        (Word::Isro, ServerMode::ReadOnly) => out.push_str("ro"),
        (Word::Isro, _) => out.push_str("rw"),
        (_, ServerMode::NotServing) => out.push_str(NOT_SERVING),
        (Word::Srvr, _) => server(&mut out, report, false),
        (Word::Stat, _) => server(&mut out, report, true),
        (Word::Cons, _) => {
            for client in &report.traffic.clients {
                client_line(&mut out, client, Some(report.unix_ms));
            }
            out.push('\n');
        }
        (Word::Conf, _) => {
            for (key, value) in &report.conf {
                put(&mut out, format_args!("{key}={value}\n"));
            }
            if !report.membership.is_empty() {
                put(&mut out, format_args!("membership: \n{}", report.membership));
            }
        }
        (Word::Mntr, _) => monitor(&mut out, report),
        (Word::Wchs, _) => {
            let [connections, paths, total] = report.watches;
            put(&mut out, format_args!("{connections} connections watching {paths} paths\nTotal watches:{total}\n"));
        }
        (Word::Dirs, _) => {
            let [data, log] = report.dir_bytes;
            put(&mut out, format_args!("datadir_size: {data}\nlogdir_size: {log}\n"));
        }
        (Word::Crst, _) => out.push_str("Connection stats reset.\n"),
        (Word::Srst, _) => out.push_str("Server stats reset.\n"),
    }
    out
}

fn not_executed(letters: &str) -> String {
    format!("{letters} is not executed because it is not in the whitelist.\n")
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a string cannot fail");
}

fn server(out: &mut String, report: &ServerReport, with_clients: bool) {
    put(out, format_args!("Zookeeper version: {}\n", report.version));
    if report.mode == ServerMode::ReadOnly {
        out.push_str("READ-ONLY mode; serving only read-only clients\n");
    }
    let traffic = &report.traffic;
    if with_clients {
        out.push_str("Clients:\n");
        for client in &traffic.clients {
            client_line(out, client, None);
        }
        out.push('\n');
    }
    let latency = &traffic.latency;
    let average = java_double(latency.average_ms);
    put(out, format_args!("Latency min/avg/max: {}/{average}/{}\n", latency.min_ms, latency.max_ms));
    put(out, format_args!("Received: {}\nSent: {}\n", traffic.received, traffic.sent));
    put(out, format_args!("Connections: {}\nOutstanding: {}\n", traffic.clients.len(), traffic.outstanding));
    put(out, format_args!("Zxid: {}\nMode: {}\n", report.zxid, report.mode.name()));
    put(out, format_args!("Node count: {}\n", report.node_count));
    if let Some([last, min, max]) = report.proposal_sizes {
        put(out, format_args!("Proposal sizes last/min/max: {last}/{min}/{max}\n"));
    }
}

/// One connection; at length if the time is given, which the words with milliseconds of the clock need.
fn client_line(out: &mut String, client: &ClientReport, unix_ms: Option<u64>) {
    let has_session = client.session.0 != 0;
    // What the number in brackets shows in ZooKeeper: 1 while more requests are read.
    let interest = u8::from(has_session);
    put(
        out,
        format_args!(
            " /{}[{interest}](queued={},recved={},sent={}",
            client.remote, client.outstanding, client.received, client.sent
        ),
    );
    if let (Some(unix_ms), true) = (unix_ms, has_session) {
        let established = unix_ms.saturating_sub(client.age_ms);
        let latency = &client.latency;
        put(
            out,
            format_args!(
                ",sid={},lop={},est={established},to={},lcxid={:#x},lzxid={:#x},lresp={},llat={},minlat={},\
                 avglat={},maxlat={}",
                client.session,
                operation(client.last_opcode),
                client.timeout_ms,
                // Sign-extended, as ZooKeeper prints it: pings show as 0xfffffffffffffffe.
                i64::from(client.last_xid),
                client.last_zxid,
                established.saturating_add(client.last_reply_ms),
                latency.last_ms,
                latency.min_ms,
                latency.average_ms as u64,
                latency.max_ms,
            ),
        );
    }
    out.push_str(")\n");
}

/// ZooKeeper's abbreviation of a request, for `lop`.
fn operation(opcode: i32) -> &'static str {
    match opcode {
        opcode::CREATE_SESSION => "SESS",
        opcode::CLOSE_SESSION => "CLOS",
        opcode::PING => "PING",
        opcode::CREATE | opcode::CREATE2 | opcode::CREATE_CONTAINER | opcode::CREATE_TTL => "CREA",
        opcode::DELETE => "DELE",
        opcode::EXISTS => "EXIS",
        opcode::GET_DATA => "GETD",
        opcode::SET_DATA => "SETD",
        opcode::GET_ACL => "GETA",
        opcode::SET_ACL => "SETA",
        opcode::GET_CHILDREN | opcode::GET_CHILDREN2 => "GETC",
        opcode::GET_ALL_CHILDREN_NUMBER => "GETACN",
        opcode::GET_EPHEMERALS => "GETE",
        opcode::SYNC => "SYNC",
        opcode::CHECK => "CHEC",
        opcode::MULTI => "MULT",
        opcode::MULTI_READ => "MLTR",
        opcode::RECONFIG => "RECO",
        opcode::SET_WATCHES => "SETW",
        opcode::SET_WATCHES2 => "STW2",
        opcode::ADD_WATCH => "ADDW",
        opcode::CHECK_WATCHES => "CHKW",
        opcode::REMOVE_WATCHES => "REMW",
        opcode::WHO_AM_I => "HOMI",
        _ => "NA",
    }
}

fn monitor(out: &mut String, report: &ServerReport) {
    let traffic = &report.traffic;
    put(out, format_args!("zk_version\t{}\n", report.version));
    put(out, format_args!("zk_server_state\t{}\n", report.mode.name()));
    put(out, format_args!("zk_avg_latency\t{}\n", java_double(traffic.latency.average_ms)));
    put(out, format_args!("zk_max_latency\t{}\n", traffic.latency.max_ms));
    put(out, format_args!("zk_min_latency\t{}\n", traffic.latency.min_ms));
    put(out, format_args!("zk_packets_received\t{}\n", traffic.received));
    put(out, format_args!("zk_packets_sent\t{}\n", traffic.sent));
    put(out, format_args!("zk_num_alive_connections\t{}\n", traffic.clients.len()));
    put(out, format_args!("zk_connection_rejected\t{}\n", traffic.rejected));
    put(out, format_args!("zk_outstanding_requests\t{}\n", traffic.outstanding));
    put(out, format_args!("zk_znode_count\t{}\n", report.node_count));
    put(out, format_args!("zk_watch_count\t{}\n", report.watches[2]));
    if let Some([last, min, max]) = report.proposal_sizes {
        put(out, format_args!("zk_last_proposal_size\t{last}\n"));
        put(out, format_args!("zk_min_proposal_size\t{min}\nzk_max_proposal_size\t{max}\n"));
    }
    for (key, value) in &report.mntr {
        put(out, format_args!("zk_{key}\t{value}\n"));
    }
}

/// A number with at most four digits after the point and at least one: `0.0`, `0.3333`.
pub fn java_double(value: f64) -> String {
    format!("{:?}", (value * 10_000.0).round() / 10_000.0)
}

#[cfg(test)]
mod tests {
    use corral_proto::SessionId;

    use super::super::stats::LatencyReport;
    use super::*;

    fn report() -> ServerReport {
        let asking = ClientReport {
            remote: "127.0.0.1:44408".parse().unwrap(),
            session: SessionId::NONE,
            timeout_ms: 0,
            outstanding: 0,
            received: 1,
            sent: 0,
            last_opcode: 0,
            last_xid: 0,
            last_zxid: 0,
            age_ms: 0,
            last_reply_ms: 0,
            latency: LatencyReport::default(),
        };
        let client = ClientReport {
            remote: "[::1]:44392".parse().unwrap(),
            session: SessionId(0x0100_001d_5b73_0007),
            timeout_ms: 4000,
            received: 5,
            sent: 6,
            last_opcode: opcode::CREATE,
            last_xid: 4,
            last_zxid: 0x3a,
            age_ms: 1000,
            last_reply_ms: 900,
            latency: LatencyReport { last_ms: 18, min_ms: 0, average_ms: 4.75, max_ms: 18 },
            ..asking.clone()
        };
        ServerReport {
            version: "3.9.2-abcdef, built on 2024-02-12 20:59 UTC".into(),
            mode: ServerMode::Standalone,
            zxid: Zxid(0x36),
            node_count: 29,
            unix_ms: 1_795_355_705_263,
            traffic: Traffic {
                received: 85,
                sent: 91,
                rejected: 0,
                outstanding: 0,
                latency: LatencyReport { last_ms: 1, min_ms: 0, average_ms: 1.0 / 3.0, max_ms: 12 },
                clients: vec![asking, client],
            },
            ..ServerReport::default()
        }
    }

    fn ask(letters: &str, report: &ServerReport) -> String {
        let spoken = Spoken::parse(letters.as_bytes().try_into().unwrap()).unwrap();
        answer(spoken, &Whitelist::parse("*"), report)
    }

    const SRVR: &str = "Latency min/avg/max: 0/0.3333/12\nReceived: 85\nSent: 91\nConnections: 2\nOutstanding: 0\n\
                        Zxid: 0x36\nMode: standalone\nNode count: 29\n";
    const VERSION_LINE: &str = "Zookeeper version: 3.9.2-abcdef, built on 2024-02-12 20:59 UTC\n";

    #[test]
    fn srvr_has_the_recorded_lines() {
        assert_eq!(ask("srvr", &report()), format!("{VERSION_LINE}{SRVR}"));
        let leader = ServerReport { mode: ServerMode::Leader, proposal_sizes: Some([83, 36, 267]), ..report() };
        let text = ask("srvr", &leader);
        assert!(text.ends_with("Mode: leader\nNode count: 29\nProposal sizes last/min/max: 83/36/267\n"), "{text}");
    }

    #[test]
    fn stat_puts_the_clients_after_the_version() {
        let clients = "Clients:\n /127.0.0.1:44408[0](queued=0,recved=1,sent=0)\n \
                       /[::1]:44392[1](queued=0,recved=5,sent=6)\n\n";
        assert_eq!(ask("stat", &report()), format!("{VERSION_LINE}{clients}{SRVR}"));
    }

    #[test]
    fn a_read_only_server_says_so_after_the_version() {
        let text = ask("srvr", &ServerReport { mode: ServerMode::ReadOnly, ..report() });
        let start = format!("{VERSION_LINE}READ-ONLY mode; serving only read-only clients\nLatency");
        assert!(text.starts_with(&start) && text.contains("Mode: read-only\n"), "{text}");
    }

    #[test]
    fn cons_has_the_recorded_line_for_each_session() {
        assert_eq!(
            ask("cons", &report()),
            " /127.0.0.1:44408[0](queued=0,recved=1,sent=0)\n \
             /[::1]:44392[1](queued=0,recved=5,sent=6,sid=0x100001d5b730007,lop=CREA,est=1795355704263,to=4000,\
             lcxid=0x4,lzxid=0x3a,lresp=1795355705163,llat=18,minlat=0,avglat=4,maxlat=18)\n\n"
        );
        let mut report = report();
        report.traffic.clients[1].last_xid = -2;
        report.traffic.clients[1].last_opcode = opcode::PING;
        let text = ask("cons", &report);
        assert!(text.contains("lop=PING,") && text.contains("lcxid=0xfffffffffffffffe,"), "{text}");
    }

    #[test]
    fn words_whose_answer_is_compared_as_a_whole() {
        assert_eq!(ask("ruok", &report()), "imok");
        assert_eq!(ask("isro", &report()), "rw");
        assert_eq!(ask("isro", &ServerReport { mode: ServerMode::ReadOnly, ..report() }), "ro");
        assert_eq!(ask("crst", &report()), "Connection stats reset.\n");
        assert_eq!(ask("srst", &report()), "Server stats reset.\n");
    }

    #[test]
    fn a_server_that_does_not_serve_says_so() {
        let waiting = ServerReport { mode: ServerMode::NotServing, ..report() };
        for word in ["srvr", "stat", "mntr", "cons", "conf", "wchs", "dirs"] {
            assert_eq!(ask(word, &waiting), "This ZooKeeper instance is not currently serving requests\n", "{word}");
        }
        assert_eq!(ask("ruok", &waiting), "imok");
        assert_eq!(ask("isro", &waiting), "null");
        assert!(ask("envi", &waiting).starts_with("Environment:\nzookeeper.version=3.9.2-"));
    }

    #[test]
    fn words_outside_the_whitelist_are_not_executed() {
        let text = |letters: &[u8; 4], whitelist: &str| {
            answer(Spoken::parse(letters).unwrap(), &Whitelist::parse(whitelist), &report())
        };
        let refusal = "ruok is not executed because it is not in the whitelist.\n";
        assert_eq!(text(b"ruok", "srvr"), refusal);
        assert_eq!(text(b"ruok", " srvr , ruok,nope"), "imok");
        assert_eq!(text(b"ruok", ""), refusal);
        assert_eq!(text(b"wchc", "*"), "wchc is not executed because it is not in the whitelist.\n");
        assert_eq!(Whitelist::default(), Whitelist::parse("srvr"));
    }

    #[test]
    fn only_exact_words_are_words() {
        for no_word in [b"RUOK", b"zzzz", b"kill", b"reqs", b"\0\0\0\x2d", b"PRI "] {
            assert_eq!(Spoken::parse(no_word), None);
        }
    }

    #[test]
    fn no_word_is_the_length_of_a_frame() {
        let words = Word::ALL.into_iter().map(Word::letters).chain(OTHER_WORDS);
        for word in words {
            let length = i32::from_be_bytes(word.as_bytes().try_into().unwrap());
            assert!(length > 0x6100_0000, "{word}");
        }
    }

    #[test]
    fn conf_ends_with_the_membership() {
        let mut report = report();
        report.conf = vec![("clientPort".into(), "2181".into()), ("dataDir".into(), "/d/version-2".into())];
        assert_eq!(ask("conf", &report), "clientPort=2181\ndataDir=/d/version-2\n");
        report.membership = "server.1=h:1:2:participant\nversion=0".into();
        assert_eq!(
            ask("conf", &report),
            "clientPort=2181\ndataDir=/d/version-2\nmembership: \nserver.1=h:1:2:participant\nversion=0"
        );
    }

    #[test]
    fn mntr_has_tabs_and_the_prefix() {
        let mut report = report();
        report.watches = [1, 2, 3];
        report.mntr = vec![("uptime".into(), "17".into())];
        assert_eq!(
            ask("mntr", &report),
            "zk_version\t3.9.2-abcdef, built on 2024-02-12 20:59 UTC\nzk_server_state\tstandalone\n\
             zk_avg_latency\t0.3333\nzk_max_latency\t12\nzk_min_latency\t0\nzk_packets_received\t85\n\
             zk_packets_sent\t91\nzk_num_alive_connections\t2\nzk_connection_rejected\t0\n\
             zk_outstanding_requests\t0\nzk_znode_count\t29\nzk_watch_count\t3\nzk_uptime\t17\n"
        );
        assert_eq!(ask("wchs", &report), "1 connections watching 2 paths\nTotal watches:3\n");
    }

    #[test]
    fn fractions_look_like_java_doubles() {
        for (value, text) in [(0.0, "0.0"), (1.0 / 3.0, "0.3333"), (13.14632, "13.1463"), (2.0, "2.0")] {
            assert_eq!(java_double(value), text);
        }
    }

    #[test]
    fn the_version_begins_with_the_number_of_a_release() {
        let (number, rest) = VERSION.split_once("-corral-").unwrap();
        assert!(number.split('.').all(|part| part.parse::<u32>().is_ok()), "{number}");
        assert!(rest.contains(", built on 20") && rest.ends_with(" UTC"), "{rest}");
    }
}
