//! Four-letter words: what operators and exporters ask on the client port (wire 2.1, 9.1 to 9.3).
//!
//! A function of a [`ServerReport`] and nothing else. The text is ZooKeeper's to the character, since scripts and
//! client libraries take it apart with regular expressions.

use std::collections::BTreeMap;
use std::fmt::Write;

use corral_proto::SessionId;
use corral_proto::jute::opcode;

use super::stats::ClientReport;
use crate::frontend::java_socket_address;
use crate::frontend::metrics::{self, java_double};
use crate::frontend::operators::{Detail, ServerMode, ServerReport};

const NOT_SERVING: &str = "This ZooKeeper instance is not currently serving requests\n";

/// A word of ZooKeeper.
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
    /// Sessions and their ephemerals.
    Dump,
    /// The environment.
    Envi,
    /// The trace mask.
    Gtmk,
    /// Digests of the tree.
    Hash,
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
    /// Sets the trace mask to the eight bytes that follow.
    Stmk,
    /// What telnet sends for an interrupt: the connection ends, nothing is said.
    Telnet,
    /// Watches by session.
    Wchc,
    /// Watches by path.
    Wchp,
    /// Number of watches.
    Wchs,
}

impl Word {
    const ALL: [Word; 19] = [
        Word::Conf,
        Word::Cons,
        Word::Crst,
        Word::Dirs,
        Word::Dump,
        Word::Envi,
        Word::Gtmk,
        Word::Hash,
        Word::Isro,
        Word::Mntr,
        Word::Ruok,
        Word::Srst,
        Word::Srvr,
        Word::Stat,
        Word::Stmk,
        Word::Telnet,
        Word::Wchc,
        Word::Wchp,
        Word::Wchs,
    ];

    /// Its letters, as the whitelist has them.
    pub const fn letters(self) -> &'static str {
        match self {
            Word::Conf => "conf",
            Word::Cons => "cons",
            Word::Crst => "crst",
            Word::Dirs => "dirs",
            Word::Dump => "dump",
            Word::Envi => "envi",
            Word::Gtmk => "gtmk",
            Word::Hash => "hash",
            Word::Isro => "isro",
            Word::Mntr => "mntr",
            Word::Ruok => "ruok",
            Word::Srst => "srst",
            Word::Srvr => "srvr",
            Word::Stat => "stat",
            Word::Stmk => "stmk",
            Word::Telnet => "telnet close",
            Word::Wchc => "wchc",
            Word::Wchp => "wchp",
            Word::Wchs => "wchs",
        }
    }

    /// What is sent.
    fn bytes(self) -> &'static [u8] {
        match self {
            Word::Telnet => b"\xff\xf4\xff\xfd",
            word => word.letters().as_bytes(),
        }
    }

    /// The first four bytes of a connection, if they are a word. Case counts. Every word is, as a number, above any
    /// frame's length or negative, so it cannot be the beginning of a handshake.
    pub fn parse(bytes: &[u8; 4]) -> Option<Word> {
        Word::ALL.into_iter().find(|word| word.bytes() == bytes)
    }

    /// What its answer needs to know.
    pub fn detail(self) -> Detail {
        Detail {
            folders: matches!(self, Word::Conf | Word::Dirs),
            watches: matches!(self, Word::Wchc | Word::Wchp | Word::Wchs),
            sessions: self == Word::Dump,
            quotas: self == Word::Mntr,
        }
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

    /// The same with one more word.
    pub fn with(mut self, word: Word) -> Whitelist {
        if !self.allows(word) {
            self.words.push(word);
        }
        self
    }

    /// Whether a word is answered.
    pub fn allows(&self, word: Word) -> bool {
        self.words.contains(&word)
    }
}

/// What is said for a word that the whitelist does not allow.
pub fn refusal(word: Word) -> String {
    match word {
        Word::Telnet => String::new(),
        word => format!("{} is not executed because it is not in the whitelist.\n", word.letters()),
    }
}

/// What to send for a word; then the connection ends. `trace_mask` is ZooKeeper's, as it is after the word.
pub fn answer(word: Word, report: &ServerReport, trace_mask: i64) -> String {
    let mut out = String::new();
    match (word, report.mode) {
        (Word::Telnet, _) => {}
        (Word::Ruok, _) => out.push_str("imok"),
        (Word::Envi, _) => {
            out.push_str("Environment:\n");
            put(&mut out, format_args!("zookeeper.version={}\n", report.version));
            for (key, value) in &report.environment {
                put(&mut out, format_args!("{key}={value}\n"));
            }
        }
        (Word::Gtmk | Word::Stmk, _) => put(&mut out, format_args!("{trace_mask}")),
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
        (Word::Conf, _) => conf(&mut out, report),
        (Word::Mntr, _) => out = metrics::mntr(report),
        (Word::Wchs, _) => {
            let by_path = by_path(report);
            let total: usize = report.watches.iter().map(|(_, paths)| paths.len()).sum();
            let (connections, paths) = (report.watches.len(), by_path.len());
            put(&mut out, format_args!("{connections} connections watching {paths} paths\nTotal watches:{total}\n"));
        }
        (Word::Wchc, _) => {
            for (session, paths) in &report.watches {
                put(&mut out, format_args!("{session}\n"));
                paths.iter().for_each(|path| put(&mut out, format_args!("\t{path}\n")));
            }
            out.push('\n');
        }
        (Word::Wchp, _) => {
            for (path, sessions) in by_path(report) {
                put(&mut out, format_args!("{path}\n"));
                sessions.iter().for_each(|session| put(&mut out, format_args!("\t{session}\n")));
            }
            out.push('\n');
        }
        (Word::Dirs, _) => {
            let [data, log] = report.folders;
            put(&mut out, format_args!("datadir_size: {data}\nlogdir_size: {log}\n"));
        }
        (Word::Dump, _) => dump(&mut out, report),
        (Word::Hash, _) => {
            for (zxid, digest) in &report.digests {
                // Java's long, in decimal.
                put(&mut out, format_args!("{:x}: {}\n", zxid.0, *digest as i64));
            }
        }
        (Word::Crst, _) => out.push_str("Connection stats reset.\n"),
        (Word::Srst, _) => out.push_str("Server stats reset.\n"),
    }
    out
}

/// The watches of a report the other way round.
pub fn by_path(report: &ServerReport) -> BTreeMap<&str, Vec<SessionId>> {
    let mut by_path: BTreeMap<&str, Vec<SessionId>> = BTreeMap::new();
    for (session, paths) in &report.watches {
        for path in paths {
            by_path.entry(path).or_default().push(*session);
        }
    }
    by_path
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a string cannot fail");
}

fn conf(out: &mut String, report: &ServerReport) {
    let [data, log] = report.folders;
    for (key, value) in &report.conf {
        put(out, format_args!("{key}={value}\n"));
        match *key {
            "dataDir" => put(out, format_args!("dataDirSize={data}\n")),
            "dataLogDir" => put(out, format_args!("dataLogSize={log}\n")),
            _ => {}
        }
    }
    if !report.membership.is_empty() {
        put(out, format_args!("membership: \n{}", report.membership));
    }
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
    put(
        out,
        format_args!(
            " /{}[{}](queued={},recved={},sent={}",
            java_socket_address(client.remote),
            client.interest(),
            client.outstanding,
            client.received,
            client.sent
        ),
    );
    if let (Some(unix_ms), true) = (unix_ms, client.has_session()) {
        let latency = &client.latency;
        put(
            out,
            format_args!(
                ",sid={},lop={},est={},to={}",
                client.session,
                operation(client.last_opcode),
                client.established_ms(unix_ms),
                client.timeout_ms,
            ),
        );
        // None since `crst`.
        if client.last_xid >= 0 {
            put(out, format_args!(",lcxid={:#x}", client.last_xid));
        }
        put(
            out,
            format_args!(
                ",lzxid={:#x},lresp={},llat={},minlat={},avglat={},maxlat={}",
                client.last_zxid,
                client.last_response_ms(unix_ms),
                latency.last_ms,
                latency.min_ms,
                latency.average_ms as u64,
                latency.max_ms,
            ),
        );
    }
    out.push_str(")\n");
}

fn dump(out: &mut String, report: &ServerReport) {
    let sessions = &report.session_dump;
    out.push_str("SessionTracker dump:\n");
    let leads = matches!(report.mode, ServerMode::Leader | ServerMode::Standalone);
    if let Some(local) = &sessions.local_by_expiry {
        out.push_str("Local ");
        session_sets(out, local);
        if leads {
            out.push_str("Global ");
        }
    }
    if leads {
        session_sets(out, &sessions.by_expiry);
    } else {
        put(out, format_args!("Global Sessions({}):\n", sessions.sessions.len()));
        for (session, timeout_ms) in &sessions.sessions {
            put(out, format_args!("{session}\t{timeout_ms}ms\n"));
        }
    }
    put(out, format_args!("ephemeral nodes dump:\nSessions with Ephemerals ({}):\n", sessions.ephemerals.len()));
    for (session, paths) in &sessions.ephemerals {
        put(out, format_args!("{session}:\n"));
        paths.iter().for_each(|path| put(out, format_args!("\t{path}\n")));
    }
    // A connection that is not heard is closed after its session's timeout; told by the second.
    let mut by_expiry: BTreeMap<u64, Vec<&ClientReport>> = BTreeMap::new();
    for client in &report.traffic.clients {
        let timeout_ms = u64::try_from(client.timeout_ms).unwrap_or(0);
        let ends = client.established_ms(report.unix_ms) + client.last_reply_ms + timeout_ms;
        by_expiry.entry(ends.div_ceil(1_000) * 1_000).or_default().push(client);
    }
    let connections = report.traffic.clients.len();
    put(out, format_args!("Connections dump:\nConnections Sets ({})/({connections}):\n", by_expiry.len()));
    for (expiry_ms, clients) in by_expiry {
        put(out, format_args!("{} expire at {}:\n", clients.len(), java_date(expiry_ms)));
        for client in clients {
            put(out, format_args!("\tip: /{} sessionId: {}\n", java_socket_address(client.remote), client.session));
        }
    }
}

fn session_sets(out: &mut String, by_expiry: &[(u64, Vec<SessionId>)]) {
    let count: usize = by_expiry.iter().map(|(_, sessions)| sessions.len()).sum();
    put(out, format_args!("Session Sets ({})/({count}):\n", by_expiry.len()));
    for (expiry_ms, sessions) in by_expiry {
        put(out, format_args!("{} expire at {}:\n", sessions.len(), java_date(*expiry_ms)));
        sessions.iter().for_each(|session| put(out, format_args!("\t{session}\n")));
    }
}

/// A time as Java's `Date` prints it, in UTC: `Sun Nov 22 13:55:16 UTC 2026`.
pub fn java_date(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March, in eras of 400 of them, so that leap days come last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12;
    let year = era * 400 + year_of_era + u64::from(month < 2);
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][(days % 7) as usize];
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    format!(
        "{weekday} {} {day:02} {:02}:{:02}:{:02} UTC {year}",
        months[month as usize],
        second_of_day / 3600,
        second_of_day / 60 % 60,
        second_of_day % 60
    )
}

/// ZooKeeper's abbreviation of a request, for `lop`.
pub fn operation(opcode: i32) -> &'static str {
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

#[cfg(test)]
mod tests {
    use corral_proto::{SessionId, Zxid};

    use super::super::stats::{LatencyReport, Traffic};
    use super::*;
    use crate::frontend::operators::{SessionDump, Setting, VERSION};

    fn report() -> ServerReport {
        let asking = ClientReport {
            remote: "127.0.0.1:44408".parse().unwrap(),
            secure: false,
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
                latency: LatencyReport { last_ms: 1, min_ms: 0, average_ms: 1.0 / 3.0, max_ms: 12 },
                clients: vec![asking, client],
                ..Traffic::default()
            },
            ..ServerReport::default()
        }
    }

    fn ask(letters: &str, report: &ServerReport) -> String {
        answer(Word::parse(letters.as_bytes().try_into().unwrap()).unwrap(), report, 306)
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
                       /[0:0:0:0:0:0:0:1]:44392[1](queued=0,recved=5,sent=6)\n\n";
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
             /[0:0:0:0:0:0:0:1]:44392[1](queued=0,recved=5,sent=6,sid=0x100001d5b730007,lop=CREA,est=1795355704263,to=4000,\
             lcxid=0x4,lzxid=0x3a,lresp=1795355705163,llat=18,minlat=0,avglat=4,maxlat=18)\n\n"
        );
        let mut report = report();
        let client = &mut report.traffic.clients[1];
        (client.last_xid, client.last_zxid, client.last_opcode) = (-1, -1, opcode::NOTIFICATION);
        let text = ask("cons", &report);
        let after_crst = "lop=NA,est=1795355704263,to=4000,lzxid=0xffffffffffffffff,lresp=0,llat=";
        assert!(text.contains(after_crst), "{text}");
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
        let words = Word::ALL.into_iter().filter(|word| {
            !matches!(word, Word::Ruok | Word::Isro | Word::Envi | Word::Gtmk | Word::Stmk | Word::Telnet)
        });
        for word in words.map(Word::letters) {
            assert_eq!(ask(word, &waiting), "This ZooKeeper instance is not currently serving requests\n", "{word}");
        }
        assert_eq!(ask("ruok", &waiting), "imok");
        assert_eq!(ask("isro", &waiting), "null");
        assert!(ask("envi", &waiting).starts_with("Environment:\nzookeeper.version=3.9.2-"));
    }

    #[test]
    fn the_whitelist_allows_what_it_names() {
        let some = Whitelist::parse(" srvr , ruok,nope");
        assert!(some.allows(Word::Ruok) && some.allows(Word::Srvr) && !some.allows(Word::Mntr));
        assert!(
            Word::ALL.into_iter().all(|word| Whitelist::parse("*").allows(word) && !Whitelist::parse("").allows(word))
        );
        assert_eq!(Whitelist::default(), Whitelist::parse("srvr"));
        assert!(Whitelist::default().with(Word::Isro).allows(Word::Isro), "as with readonlymode.enabled");
        assert_eq!(refusal(Word::Ruok), "ruok is not executed because it is not in the whitelist.\n");
        assert_eq!(refusal(Word::Telnet), "");
    }

    #[test]
    fn only_exact_words_are_words() {
        for no_word in [b"RUOK", b"zzzz", b"kill", b"reqs", b"orst", b"\0\0\0\x2d", b"PRI "] {
            assert_eq!(Word::parse(no_word), None);
        }
        assert_eq!(Word::parse(b"\xff\xf4\xff\xfd"), Some(Word::Telnet));
    }

    #[test]
    fn no_word_is_the_length_of_a_frame() {
        for word in Word::ALL {
            let length = i32::from_be_bytes(word.bytes().try_into().unwrap());
            assert!(!(0..=0x6100_0000).contains(&length), "{word:?}");
        }
    }

    #[test]
    fn conf_ends_with_the_membership() {
        let mut report = report();
        report.conf = vec![
            ("clientPort", Setting::Number(2181)),
            ("dataDir", Setting::Text("/d".into())),
            ("dataLogDir", Setting::Text("/l".into())),
            ("tickTime", Setting::Number(2000)),
        ];
        report.folders = [10, 20];
        let lines = "clientPort=2181\ndataDir=/d\ndataDirSize=10\ndataLogDir=/l\ndataLogSize=20\ntickTime=2000\n";
        assert_eq!(ask("conf", &report), lines);
        report.membership = "server.1=h:1:2:participant\nversion=0".into();
        assert_eq!(ask("conf", &report), format!("{lines}membership: \nserver.1=h:1:2:participant\nversion=0"));
    }

    const A: SessionId = SessionId(0x0100_00bd_f002_0000);
    const B: SessionId = SessionId(0x0100_00bd_f002_0001);

    #[test]
    fn watches_are_told_by_session_and_by_path() {
        let watches = vec![(A, vec!["/d".into(), "/nope".into()]), (B, vec!["/d".into()])];
        let report = ServerReport { watches, ..report() };
        assert_eq!(ask("wchs", &report), "2 connections watching 2 paths\nTotal watches:3\n");
        assert_eq!(ask("wchc", &report), "0x10000bdf0020000\n\t/d\n\t/nope\n0x10000bdf0020001\n\t/d\n\n");
        assert_eq!(
            ask("wchp", &report),
            "/d\n\t0x10000bdf0020000\n\t0x10000bdf0020001\n/nope\n\t0x10000bdf0020000\n\n"
        );
        assert_eq!(ask("wchc", &self::report()), "\n");
    }

    #[test]
    fn dump_has_the_recorded_lines() {
        let mut report = report();
        report.traffic.clients.truncate(1);
        report.session_dump = SessionDump {
            by_expiry: vec![(1_795_375_855_000, vec![A])],
            sessions: vec![(A, 10_000)],
            local_by_expiry: None,
            ephemerals: vec![(A, vec!["/e-alone".into()])],
        };
        let rest = "ephemeral nodes dump:\nSessions with Ephemerals (1):\n0x10000bdf0020000:\n\t/e-alone\n\
                    Connections dump:\nConnections Sets (1)/(1):\n1 expire at Sun Nov 22 13:55:06 UTC 2026:\n\
                    \tip: /127.0.0.1:44408 sessionId: 0x0\n";
        assert_eq!(
            ask("dump", &report),
            format!(
                "SessionTracker dump:\nSession Sets (1)/(1):\n1 expire at Sun Nov 22 19:30:55 UTC 2026:\n\
                 \t0x10000bdf0020000\n{rest}"
            )
        );
        report.mode = ServerMode::Follower;
        let expected = format!("SessionTracker dump:\nGlobal Sessions(1):\n0x10000bdf0020000\t10000ms\n{rest}");
        assert_eq!(ask("dump", &report), expected);

        // With local sessions: written by hand from what ZooKeeper prints.
        report.session_dump.local_by_expiry = Some(vec![(1_795_375_855_000, vec![B])]);
        let local = "SessionTracker dump:\nLocal Session Sets (1)/(1):\n1 expire at Sun Nov 22 19:30:55 UTC 2026:\n\
                     \t0x10000bdf0020001\n";
        let follows = format!("{local}Global Sessions(1):\n0x10000bdf0020000\t10000ms\n{rest}");
        assert_eq!(ask("dump", &report), follows);
        report.mode = ServerMode::Leader;
        let leads = format!(
            "{local}Global Session Sets (1)/(1):\n1 expire at Sun Nov 22 19:30:55 UTC 2026:\n\
             \t0x10000bdf0020000\n{rest}"
        );
        assert_eq!(ask("dump", &report), leads);
    }

    #[test]
    fn digests_are_told_with_their_zxid_in_hexadecimal() {
        let digests = vec![(Zxid(0x80), 2_348_615_044), (Zxid(0x1_0000_0100), u64::MAX)];
        assert_eq!(ask("hash", &ServerReport { digests, ..report() }), "80: 2348615044\n100000100: -1\n");
        assert_eq!(ask("hash", &report()), "");
    }

    #[test]
    fn the_rest_of_the_words_is_short() {
        let report = ServerReport { folders: [67_109_337, 5], ..report() };
        assert_eq!(ask("dirs", &report), "datadir_size: 67109337\nlogdir_size: 5\n");
        assert_eq!((ask("gtmk", &report).as_str(), ask("stmk", &report).as_str()), ("306", "306"));
        assert_eq!(answer(Word::Telnet, &report, 306), "");
        assert!(ask("mntr", &report).starts_with("zk_version\t3.9.2-abcdef, built on 2024-02-12 20:59 UTC\n"));
    }

    #[test]
    fn dates_look_like_javas() {
        for (seconds, text) in [
            (0, "Thu Jan 01 00:00:00 UTC 1970"),
            (951_782_400, "Tue Feb 29 00:00:00 UTC 2000"),
            (1_795_375_855, "Sun Nov 22 19:30:55 UTC 2026"),
            (4_107_542_399, "Sun Feb 28 23:59:59 UTC 2100"),
            (4_107_542_400, "Mon Mar 01 00:00:00 UTC 2100"),
        ] {
            assert_eq!(java_date(seconds * 1000 + 999), text);
        }
    }

    #[test]
    fn the_version_begins_with_the_number_of_a_release() {
        let (number, rest) = VERSION.split_once("-corral-").unwrap();
        assert!(number.split('.').all(|part| part.parse::<u32>().is_ok()), "{number}");
        assert!(rest.contains(", built on 20") && rest.ends_with(" UTC"), "{rest}");
    }
}
