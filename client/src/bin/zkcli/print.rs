//! Answer to text: ZooKeeper's look (wire 10) or JSON, and which exit code a failure gets.
//!
//! Pure: everything here is a function from values to text. Read first: [`Output`], [`Failure`].

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use corral_proto::{Acl, ErrorCode, EventKind, Id, Stat, WatchedEvent, perms};
use serde_json::{Value, json};

use crate::command::Form;

/// What a command has to say.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Success, and nothing more.
    Done {
        /// Of which path; only JSON names it.
        path: String,
    },
    /// A sentence on standard output.
    Text(String),
    /// `ls`
    Children { path: String, children: Vec<String>, stat: Option<Stat> },
    /// `ls -R`: one part of the list; parts come one after the other.
    Tree { paths: Vec<String> },
    /// `get`
    Data { path: String, data: Option<Vec<u8>>, stat: Stat, show_stat: bool, form: Form },
    /// `stat`, `set -s`, `setAcl -s`; plain text only if `show`.
    Stat { path: String, stat: Stat, show: bool },
    /// `create`
    Created { path: String, stat: Option<Stat> },
    /// `getAcl`
    Acl { path: String, acl: Vec<Acl>, stat: Stat, show_stat: bool },
    /// `getEphemerals`
    Paths(Vec<String>),
    /// `getAllChildrenNumber`
    Count { path: String, count: u64 },
    /// `whoami`
    Ids(Vec<Id>),
    /// `deleteall`
    Deleted { path: String, count: u64 },
    /// `watch`: one event.
    Event(WatchedEvent),
    /// `status`
    Status(Vec<ServerStatus>),
}

/// Text for the two streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// Standard output.
    pub out: Vec<u8>,
    /// Standard error: what is for people and not for pipes.
    pub err: String,
}

impl Rendered {
    fn out(text: impl Into<String>) -> Rendered {
        Rendered { out: text.into().into_bytes(), err: String::new() }
    }
}

/// ZooKeeper's look. With `raw`, `get` yields the exact bytes and no line end (for pipes and files).
pub fn plain(output: &Output, raw: bool) -> Rendered {
    match output {
        Output::Done { .. } | Output::Deleted { .. } | Output::Stat { show: false, .. } => Rendered::default(),
        Output::Text(text) => Rendered::out(format!("{text}\n")),
        Output::Children { children, stat, .. } => {
            let mut names = children.clone();
            names.sort();
            Rendered::out(format!("{}\n{}", bracketed(&names), stat.as_ref().map(stat_block).unwrap_or_default()))
        }
        Output::Tree { paths } => Rendered::out(paths.iter().fold(String::new(), |text, path| text + path + "\n")),
        Output::Data { data, show_stat: false, form: Form::Text, .. } if raw => {
            Rendered { out: data.clone().unwrap_or_default(), err: String::new() }
        }
        Output::Data { data, stat, show_stat, form, .. } => {
            let mut text = match (data, form) {
                (None, _) => "null\n".to_owned(),
                (Some(bytes), Form::Text) => format!("{}\n", String::from_utf8_lossy(bytes)),
                (Some(bytes), Form::Base64) => format!("{}\n", STANDARD.encode(bytes)),
                (Some(bytes), Form::Hex) => hex_dump(bytes),
            };
            if *show_stat {
                text += &stat_block(stat);
            }
            Rendered::out(text)
        }
        Output::Stat { stat, show: true, .. } => Rendered::out(stat_block(stat)),
        Output::Created { path, .. } => Rendered { out: Vec::new(), err: format!("Created {path}\n") },
        Output::Acl { acl, stat, show_stat, .. } => {
            let mut text = acl_lines(acl);
            if *show_stat {
                text += &stat_block(stat);
            }
            Rendered::out(text)
        }
        Output::Paths(paths) => {
            let mut paths = paths.clone();
            paths.sort();
            Rendered::out(format!("{}\n", bracketed(&paths)))
        }
        Output::Count { count, .. } => Rendered::out(format!("{count}\n")),
        Output::Ids(ids) => Rendered::out(
            ids.iter().fold("Auth scheme: User\n".to_owned(), |text, id| text + &format!("{}: {}\n", id.scheme, id.id)),
        ),
        Output::Event(event) => Rendered::out(format!("{}\n", event_line(event))),
        Output::Status(servers) => Rendered::out(status_table(servers)),
    }
}

/// One line of JSON. Zxids and session ids are hexadecimal text, as everywhere else in the tools; times are ms since
/// the Unix epoch; data that is not UTF-8 is base64, and `encoding` says so.
pub fn json(output: &Output) -> String {
    let value = match output {
        Output::Done { path } => json!({ "path": path }),
        Output::Text(text) => json!({ "text": text }),
        Output::Children { path, children, stat } => {
            let mut names = children.clone();
            names.sort();
            let mut value = json!({ "path": path, "children": names });
            if let Some(stat) = stat {
                value["stat"] = stat_json(stat);
            }
            value
        }
        // One line a path: a list of a million nodes is a stream.
        Output::Tree { paths } => {
            return paths.iter().fold(String::new(), |text, path| text + &json!({ "path": path }).to_string() + "\n");
        }
        Output::Data { path, data, stat, form, .. } => {
            let (text, encoding) = match data {
                None => (Value::Null, Value::Null),
                Some(bytes) => match (std::str::from_utf8(bytes), form) {
                    (Ok(text), Form::Text) => (json!(text), json!("utf8")),
                    (_, Form::Hex) => {
                        (json!(bytes.iter().fold(String::new(), |t, b| t + &format!("{b:02x}"))), json!("hex"))
                    }
                    _ => (json!(STANDARD.encode(bytes)), json!("base64")),
                },
            };
            json!({ "path": path, "data": text, "encoding": encoding, "stat": stat_json(stat) })
        }
        Output::Stat { path, stat, .. } => json!({ "path": path, "stat": stat_json(stat) }),
        Output::Created { path, stat } => {
            let mut value = json!({ "path": path });
            if let Some(stat) = stat {
                value["stat"] = stat_json(stat);
            }
            value
        }
        Output::Acl { path, acl, stat, .. } => {
            let acl: Vec<Value> = acl
                .iter()
                .map(|a| json!({ "scheme": a.id.scheme, "id": a.id.id, "perms": perm_letters(a.perms) }))
                .collect();
            json!({ "path": path, "acl": acl, "stat": stat_json(stat) })
        }
        Output::Paths(paths) => {
            let mut paths = paths.clone();
            paths.sort();
            json!({ "paths": paths })
        }
        Output::Count { path, count } => json!({ "path": path, "count": count }),
        Output::Ids(ids) => {
            json!({ "ids": ids.iter().map(|id| json!({ "scheme": id.scheme, "id": id.id })).collect::<Vec<_>>() })
        }
        Output::Deleted { path, count } => json!({ "path": path, "deleted": count }),
        Output::Event(event) => json!({
            "type": event_name(event.kind),
            "path": event.path,
            "zxid": event.zxid.map(|zxid| zxid.to_string()),
        }),
        Output::Status(servers) => Value::Array(servers.iter().map(ServerStatus::json).collect()),
    };
    format!("{value}\n")
}

/// The lines of a stat, in ZooKeeper's order.
pub fn stat_block(stat: &Stat) -> String {
    format!(
        "cZxid = {:#x}\nctime = {}\nmZxid = {:#x}\nmtime = {}\npZxid = {:#x}\ncversion = {}\ndataVersion = {}\n\
         aclVersion = {}\nephemeralOwner = {:#x}\ndataLength = {}\nnumChildren = {}\n",
        stat.czxid,
        java_date(stat.ctime),
        stat.mzxid,
        java_date(stat.mtime),
        stat.pzxid,
        stat.cversion,
        stat.version,
        stat.aversion,
        stat.ephemeral_owner,
        stat.data_length,
        stat.num_children,
    )
}

fn stat_json(stat: &Stat) -> Value {
    json!({
        "czxid": format!("{:#x}", stat.czxid),
        "mzxid": format!("{:#x}", stat.mzxid),
        "pzxid": format!("{:#x}", stat.pzxid),
        "ctime": stat.ctime,
        "mtime": stat.mtime,
        "version": stat.version,
        "cversion": stat.cversion,
        "aversion": stat.aversion,
        "ephemeralOwner": format!("{:#x}", stat.ephemeral_owner),
        "dataLength": stat.data_length,
        "numChildren": stat.num_children,
    })
}

/// `[a, b, c]`
fn bracketed(names: &[String]) -> String {
    format!("[{}]", names.join(", "))
}

/// Two lines an entry: `'world,'anyone` and `: cdrwa`.
fn acl_lines(acl: &[Acl]) -> String {
    acl.iter()
        .fold(String::new(), |text, a| text + &format!("'{},'{}\n: {}\n", a.id.scheme, a.id.id, perm_letters(a.perms)))
}

/// The letters of a permission word, in ZooKeeper's order.
pub fn perm_letters(bits: i32) -> String {
    [(perms::CREATE, 'c'), (perms::DELETE, 'd'), (perms::READ, 'r'), (perms::WRITE, 'w'), (perms::ADMIN, 'a')]
        .into_iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, letter)| letter)
        .collect()
}

/// ZooKeeper's name of an event.
pub fn event_name(kind: EventKind) -> &'static str {
    match kind {
        EventKind::NodeCreated => "NodeCreated",
        EventKind::NodeDeleted => "NodeDeleted",
        EventKind::NodeDataChanged => "NodeDataChanged",
        EventKind::NodeChildrenChanged => "NodeChildrenChanged",
    }
}

/// The line that ZooKeeper prints for an event; its zxid in hexadecimal, as everywhere else, -1 for an event made up
/// afterwards.
pub fn event_line(event: &WatchedEvent) -> String {
    format!(
        "WatchedEvent state:SyncConnected type:{} path:{} zxid: {}",
        event_name(event.kind),
        event.path,
        event.zxid.map_or_else(|| "-1".to_owned(), |zxid| zxid.to_string())
    )
}

/// What appears in the interactive shell when a watch fires.
pub fn watcher_block(event: &WatchedEvent) -> String {
    format!("\nWATCHER::\n\n{}\n", event_line(event))
}

/// A time as Java's `Date` prints it, in UTC: `Thu Jan 01 00:00:00 UTC 1970`.
pub fn java_date(ms: i64) -> String {
    const DAY_NAMES: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = ms.div_euclid(1_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Civil date from days since the epoch: count years from 1 March, so that the leap day is a year's last.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = (march_month + 2) % 12;
    let year = year_of_era + era * 400 + i64::from(month < 2);
    format!(
        "{} {} {day:02} {:02}:{:02}:{:02} UTC {year:04}",
        DAY_NAMES[days.rem_euclid(7) as usize],
        MONTHS[month as usize],
        second / 3_600,
        second / 60 % 60,
        second % 60,
    )
}

/// Sixteen bytes a line, in a frame, as ZooKeeper's `get -x`.
fn hex_dump(bytes: &[u8]) -> String {
    let rule = format!("+--------+{}+{}+\n", "-".repeat(49), "-".repeat(16));
    let mut text = format!("         +{}+\n         |", "-".repeat(49));
    for column in 0..16 {
        let _ = write!(text, "  {column:x}");
    }
    text += " |\n";
    text += &rule;
    for (line, chunk) in bytes.chunks(16).enumerate() {
        let _ = write!(text, "|{:08x}|", line * 16);
        for column in 0..16 {
            match chunk.get(column) {
                Some(byte) => {
                    let _ = write!(text, " {byte:02x}");
                }
                None => text += "   ",
            }
        }
        text += " |";
        for column in 0..16 {
            text.push(match chunk.get(column) {
                Some(&byte) if (0x20..0x7f).contains(&byte) => byte as char,
                Some(_) => '.',
                None => ' ',
            });
        }
        text += "|\n";
    }
    text + &rule
}

/// Why a command failed, by class: each has its exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server refused it.
    Refused {
        /// Its reason.
        code: ErrorCode,
        /// What was asked for; empty if the command has no path.
        path: String,
    },
    /// The command line is wrong.
    Usage(String),
    /// There is no such verb.
    UnknownCommand(String),
    /// `--timeout` passed.
    Timeout(String),
    /// There is no connection, or the session is gone.
    Connection(String),
    /// Anything else.
    Other(String),
    /// Ctrl-C.
    Cancelled,
    /// Who read our output has gone, as `head` does; nothing is said.
    OutputClosed,
}

impl Failure {
    /// 1 failed, 2 wrong usage, 3 no node, 4 bad version, 5 not permitted, 6 timeout, 7 not empty, 8 no connection,
    /// 127 unknown command, 130 cancelled, 141 output closed.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Refused { code, .. } => match code {
                ErrorCode::NoNode => 3,
                ErrorCode::BadVersion => 4,
                ErrorCode::NoAuth | ErrorCode::AuthFailed | ErrorCode::SessionClosedRequireSaslAuth => 5,
                ErrorCode::OperationTimeout | ErrorCode::RequestTimeout => 6,
                ErrorCode::NotEmpty => 7,
                ErrorCode::ConnectionLoss
                | ErrorCode::SessionExpired
                | ErrorCode::SessionMoved
                | ErrorCode::UnknownSession
                | ErrorCode::Closing => 8,
                _ => 1,
            },
            Failure::Usage(_) => 2,
            Failure::UnknownCommand(_) => 127,
            Failure::Timeout(_) => 6,
            Failure::Connection(_) => 8,
            Failure::Other(_) => 1,
            Failure::Cancelled => 130,
            Failure::OutputClosed => 141,
        }
    }

    /// What standard error shows, without line end.
    pub fn text(&self) -> String {
        match self {
            Failure::Refused { code, path } => refusal(*code, path),
            Failure::Usage(text)
            | Failure::UnknownCommand(text)
            | Failure::Timeout(text)
            | Failure::Connection(text)
            | Failure::Other(text) => text.clone(),
            Failure::Cancelled => "cancelled".to_owned(),
            Failure::OutputClosed => "standard output is closed".to_owned(),
        }
    }

    /// The same as one line of JSON, with line end.
    pub fn json(&self) -> String {
        let mut error = json!({ "message": self.text(), "exit": self.exit_code() });
        if let Failure::Refused { code, path } = self {
            error["code"] = json!(code.code());
            error["name"] = json!(format!("{code:?}"));
            if !path.is_empty() {
                error["path"] = json!(path);
            }
        }
        format!("{}\n", json!({ "error": error }))
    }
}

/// ZooKeeper's sentence for a refusal.
fn refusal(code: ErrorCode, path: &str) -> String {
    let sentence = match code {
        ErrorCode::NoNode => "Node does not exist: ",
        ErrorCode::NodeExists => "Node already exists: ",
        ErrorCode::NotEmpty => "Node not empty: ",
        ErrorCode::NoChildrenForEphemerals => "Ephemerals cannot have children: ",
        ErrorCode::NoAuth => "Insufficient permission : ",
        ErrorCode::BadVersion => "version No is not valid : ",
        ErrorCode::InvalidAcl => "Acl is not valid : ",
        ErrorCode::BadArguments => "Arguments are not valid : ",
        ErrorCode::QuotaExceeded => "Quota has exceeded : ",
        ErrorCode::NotReadOnly => "Not a read-only call: ",
        other => {
            let name = match other {
                ErrorCode::SessionExpired => "Session expired".to_owned(),
                ErrorCode::SessionMoved => "Session moved".to_owned(),
                other => format!("{other:?}"),
            };
            let of = if path.is_empty() { String::new() } else { format!(" for {path}") };
            return format!("KeeperErrorCode = {name}{of} ({})", other.describe());
        }
    };
    format!("{sentence}{path}")
}

/// What one server answered to `srvr`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerStatus {
    /// `host:port` as in the connect string.
    pub host: String,
    /// `leader`, `follower`, `observer`, `standalone`, `read-only`; `None`: it does not serve.
    pub mode: Option<String>,
    /// Last zxid it applied, as it prints it.
    pub zxid: Option<String>,
    /// Open client connections.
    pub connections: Option<u64>,
    /// Znodes.
    pub nodes: Option<u64>,
    /// Why it does not serve.
    pub reason: Option<String>,
}

impl ServerStatus {
    /// Reads the answer of `srvr`; anything that names no mode is taken as the reason for not serving.
    pub fn from_srvr(host: &str, answer: &str) -> ServerStatus {
        let field = |name: &str| {
            answer
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(|text| text.trim().to_owned())
        };
        let mode = field("Mode");
        let reason = match &mode {
            Some(_) => None,
            None if answer.trim().is_empty() => Some("it closed the connection without an answer".to_owned()),
            None => Some(answer.trim().lines().map(str::trim).collect::<Vec<_>>().join("; ")),
        };
        ServerStatus {
            host: host.to_owned(),
            zxid: field("Zxid"),
            connections: field("Connections").and_then(|text| text.parse().ok()),
            nodes: field("Node count").and_then(|text| text.parse().ok()),
            mode,
            reason,
        }
    }

    /// A server that gave no answer.
    pub fn silent(host: &str, reason: impl Into<String>) -> ServerStatus {
        ServerStatus { host: host.to_owned(), reason: Some(reason.into()), ..ServerStatus::default() }
    }

    fn json(&self) -> Value {
        json!({
            "host": self.host,
            "mode": self.mode,
            "zxid": self.zxid,
            "connections": self.connections,
            "nodes": self.nodes,
            "reason": self.reason,
        })
    }
}

/// Columns padded with blanks, no frame: it can be cut with awk.
fn status_table(servers: &[ServerStatus]) -> String {
    let header = ["HOST", "MODE", "ZXID", "CONNECTIONS", "NODES"].map(str::to_owned);
    let rows: Vec<[String; 5]> = servers
        .iter()
        .map(|s| {
            let number = |n: Option<u64>| n.map_or("-".to_owned(), |n| n.to_string());
            [
                s.host.clone(),
                s.mode.clone().unwrap_or_else(|| "-".to_owned()),
                s.zxid.clone().unwrap_or_else(|| "-".to_owned()),
                number(s.connections),
                number(s.nodes),
            ]
        })
        .collect();
    let mut widths = header.clone().map(|cell| cell.len());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String; 5], tail: &str| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            let _ = write!(text, "{cell:<width$}  ");
        }
        (text + tail).trim_end().to_owned() + "\n"
    };
    let mut text = line(&header, "");
    for (row, server) in rows.iter().zip(servers) {
        text += &match &server.reason {
            None => line(row, ""),
            Some(reason) => line(row, &format!("not serving: {reason}")),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use corral_proto::Zxid;

    use super::*;

    fn text(output: &Output) -> String {
        String::from_utf8(plain(output, false).out).expect("plain text")
    }

    fn stat() -> Stat {
        Stat {
            czxid: 0x500000003,
            mzxid: 0x500000004,
            ctime: 0,
            mtime: 1_709_209_845_999,
            version: 1,
            cversion: -1,
            aversion: 2,
            ephemeral_owner: 0x100001d5b730007,
            data_length: 5,
            num_children: 3,
            pzxid: 0x500000005,
        }
    }

    #[test]
    fn stat_block_has_zookeepers_lines_in_its_order() {
        assert_eq!(
            stat_block(&stat()),
            "cZxid = 0x500000003\nctime = Thu Jan 01 00:00:00 UTC 1970\nmZxid = 0x500000004\n\
             mtime = Thu Feb 29 12:30:45 UTC 2024\npZxid = 0x500000005\ncversion = -1\ndataVersion = 1\n\
             aclVersion = 2\nephemeralOwner = 0x100001d5b730007\ndataLength = 5\nnumChildren = 3\n"
        );
    }

    #[test]
    fn dates_are_right_at_the_edges_of_years_and_before_the_epoch() {
        for (ms, expected) in [
            (-1, "Wed Dec 31 23:59:59 UTC 1969"),
            (951_782_400_000, "Tue Feb 29 00:00:00 UTC 2000"),
            (951_868_800_000, "Wed Mar 01 00:00:00 UTC 2000"),
            (1_735_689_599_000, "Tue Dec 31 23:59:59 UTC 2024"),
            (1_735_689_600_000, "Wed Jan 01 00:00:00 UTC 2025"),
            (4_107_542_400_000, "Mon Mar 01 00:00:00 UTC 2100"),
        ] {
            assert_eq!(java_date(ms), expected);
        }
    }

    #[test]
    fn lists_are_sorted_and_bracketed() {
        let children = |names: &[&str], stat| Output::Children {
            path: "/".into(),
            children: names.iter().map(|n| (*n).into()).collect(),
            stat,
        };
        assert_eq!(text(&children(&["b", "a", "c"], None)), "[a, b, c]\n");
        assert_eq!(text(&children(&[], None)), "[]\n");
        assert!(text(&children(&["a"], Some(stat()))).starts_with("[a]\ncZxid = 0x500000003\n"));
        assert_eq!(text(&Output::Paths(vec!["/b".into(), "/a".into()])), "[/a, /b]\n");
        assert_eq!(text(&Output::Tree { paths: vec!["/a".into(), "/a/b".into()] }), "/a\n/a/b\n");
    }

    fn data(bytes: Option<&[u8]>, show_stat: bool, form: Form) -> Output {
        Output::Data { path: "/a".into(), data: bytes.map(<[u8]>::to_vec), stat: stat(), show_stat, form }
    }

    #[test]
    fn data_is_text_null_base64_or_a_hex_dump() {
        assert_eq!(text(&data(Some(b"hello"), false, Form::Text)), "hello\n");
        assert_eq!(text(&data(None, false, Form::Text)), "null\n");
        assert_eq!(text(&data(Some(b""), false, Form::Text)), "\n");
        assert_eq!(text(&data(Some(&[0, 1, 255]), false, Form::Base64)), "AAH/\n");
        assert!(text(&data(Some(b"hello"), true, Form::Text)).starts_with("hello\ncZxid = "));
        let dump = text(&data(Some(b"hello, wide world!"), false, Form::Hex));
        let lines: Vec<&str> = dump.lines().collect();
        assert_eq!(lines[1], "         |  0  1  2  3  4  5  6  7  8  9  a  b  c  d  e  f |");
        assert_eq!(lines[3], "|00000000| 68 65 6c 6c 6f 2c 20 77 69 64 65 20 77 6f 72 6c |hello, wide worl|");
        assert_eq!(lines[4], "|00000010| 64 21                                           |d!              |");
        assert!(lines.iter().skip(2).all(|line| line.len() == lines[2].len()));
    }

    #[test]
    fn a_pipe_gets_the_exact_bytes() {
        assert_eq!(plain(&data(Some(&[0, 10, 255]), false, Form::Text), true).out, [0, 10, 255]);
        assert_eq!(plain(&data(None, false, Form::Text), true).out, b"");
    }

    #[test]
    fn created_is_told_on_standard_error_and_set_is_silent() {
        let created = plain(&Output::Created { path: "/a0000000001".into(), stat: None }, false);
        assert_eq!((created.out.as_slice(), created.err.as_str()), (&b""[..], "Created /a0000000001\n"));
        assert_eq!(plain(&Output::Stat { path: "/a".into(), stat: stat(), show: false }, false), Rendered::default());
    }

    #[test]
    fn acl_entries_take_two_lines() {
        let acl = vec![
            Acl { perms: 31, id: Id::new("world", "anyone") },
            Acl { perms: perms::READ | perms::ADMIN, id: Id::new("digest", "bob:x=") },
        ];
        assert_eq!(
            text(&Output::Acl { path: "/a".into(), acl, stat: stat(), show_stat: false }),
            "'world,'anyone\n: cdrwa\n'digest,'bob:x=\n: ra\n"
        );
    }

    #[test]
    fn identities_counts_and_events_look_like_zookeepers() {
        assert_eq!(text(&Output::Ids(vec![Id::new("ip", "127.0.0.1")])), "Auth scheme: User\nip: 127.0.0.1\n");
        assert_eq!(text(&Output::Count { path: "/".into(), count: 7 }), "7\n");
        let event = WatchedEvent { kind: EventKind::NodeDataChanged, path: "/a".into(), zxid: Some(Zxid(123)) };
        assert_eq!(event_line(&event), "WatchedEvent state:SyncConnected type:NodeDataChanged path:/a zxid: 0x7b");
        assert_eq!(json(&Output::Event(event)), "{\"path\":\"/a\",\"type\":\"NodeDataChanged\",\"zxid\":\"0x7b\"}\n");
    }

    #[test]
    fn json_says_how_data_is_encoded() {
        let parsed = |output: &Output| -> Value { serde_json::from_str(&json(output)).expect("valid JSON") };
        let utf8 = parsed(&data(Some("grüß".as_bytes()), false, Form::Text));
        assert_eq!((&utf8["data"], &utf8["encoding"]), (&json!("grüß"), &json!("utf8")));
        assert_eq!(utf8["stat"]["czxid"], json!("0x500000003"));
        assert_eq!(utf8["stat"]["numChildren"], json!(3));
        let binary = parsed(&data(Some(&[0, 1, 255]), false, Form::Text));
        assert_eq!((&binary["data"], &binary["encoding"]), (&json!("AAH/"), &json!("base64")));
        assert_eq!(parsed(&data(None, false, Form::Text))["data"], Value::Null);
        assert_eq!(parsed(&data(Some(&[1, 0xab]), false, Form::Hex))["data"], json!("01ab"));
    }

    #[test]
    fn failures_have_zookeepers_text_and_an_exit_code_by_class() {
        let refused = |code| Failure::Refused { code, path: "/p".into() };
        for (code, sentence, exit) in [
            (ErrorCode::NoNode, "Node does not exist: /p", 3),
            (ErrorCode::BadVersion, "version No is not valid : /p", 4),
            (ErrorCode::NoAuth, "Insufficient permission : /p", 5),
            (ErrorCode::NotEmpty, "Node not empty: /p", 7),
            (ErrorCode::NodeExists, "Node already exists: /p", 1),
            (ErrorCode::NoChildrenForEphemerals, "Ephemerals cannot have children: /p", 1),
            (ErrorCode::InvalidAcl, "Acl is not valid : /p", 1),
        ] {
            assert_eq!((refused(code).text().as_str(), refused(code).exit_code()), (sentence, exit));
        }
        assert!(refused(ErrorCode::SessionExpired).text().starts_with("KeeperErrorCode = Session expired for /p"));
        assert_eq!(refused(ErrorCode::ConnectionLoss).exit_code(), 8);
        assert_eq!(refused(ErrorCode::RequestTimeout).exit_code(), 6);
        assert_eq!(Failure::Usage(String::new()).exit_code(), 2);
        assert_eq!(Failure::UnknownCommand(String::new()).exit_code(), 127);
        let value: Value = serde_json::from_str(&refused(ErrorCode::NoNode).json()).expect("valid JSON");
        assert_eq!((&value["error"]["code"], &value["error"]["name"]), (&json!(-101), &json!("NoNode")));
    }

    #[test]
    fn status_shows_who_serves_and_why_others_do_not() {
        let serving = ServerStatus::from_srvr(
            "a:2181",
            "Zookeeper version: 3.9.2-x, built on 2024-02-12 20:59 UTC\nLatency min/avg/max: 0/0.3/12\nReceived: 85\n\
             Sent: 91\nConnections: 2\nOutstanding: 0\nZxid: 0x36\nMode: leader\nNode count: 29\n",
        );
        assert_eq!(serving.mode.as_deref(), Some("leader"));
        assert_eq!((serving.connections, serving.nodes, serving.reason.as_deref()), (Some(2), Some(29), None));
        let waiting = ServerStatus::from_srvr("b:2181", "This ZooKeeper instance is not currently serving requests\n");
        assert_eq!(waiting.reason.as_deref(), Some("This ZooKeeper instance is not currently serving requests"));
        let table = status_table(&[serving, waiting, ServerStatus::silent("c:2181", "connection refused")]);
        assert_eq!(
            table,
            "HOST    MODE    ZXID  CONNECTIONS  NODES\n\
             a:2181  leader  0x36  2            29\n\
             b:2181  -       -     -            -      not serving: This ZooKeeper instance is not currently serving requests\n\
             c:2181  -       -     -            -      not serving: connection refused\n"
        );
        assert_eq!(
            ServerStatus::from_srvr("d:1", "").reason.as_deref(),
            Some("it closed the connection without an answer")
        );
    }
}
