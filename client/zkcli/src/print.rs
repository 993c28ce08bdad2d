//! Answer to text: ZooKeeper's look (wire 10), JSON, YAML, a table, or bare data.
//!
//! Pure: everything here is a function from values to text. Read first: [`Output`], [`render`]. An answer has one look for
//! people, [`plain`], and one value for programs, [`documents`]; all other formats are made of the latter.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use corral_proto::{Acl, EventKind, Id, Stat, WatchedEvent, perms};
use serde_json::{Value, json};

use crate::command::Form;
use crate::options::Format;
use crate::status::ServerStatus;
use crate::table;

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
    /// `config -c`: of the text of `/zookeeper/config`.
    ConnectString { config: String, stat: Stat, show_stat: bool },
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
    /// One answer, or one of a stream of them: lines for people, a document for programs.
    Line {
        /// With its line end; may be empty.
        text: String,
        /// The same as a document.
        value: Value,
    },
    /// Rows that are looked at together.
    Rows {
        /// Their heads; what a document calls them is their lower case.
        columns: &'static [&'static str],
        /// A cell for each column.
        rows: Vec<Vec<Value>>,
    },
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
                (Some(bytes), Form::Text | Form::Lines) => format!("{}\n", String::from_utf8_lossy(bytes)),
                (Some(bytes), Form::Base64) => format!("{}\n", STANDARD.encode(bytes)),
                (Some(bytes), Form::Hex) => hex_dump(bytes),
            };
            if *show_stat {
                text += &stat_block(stat);
            }
            Rendered::out(text)
        }
        Output::ConnectString { config, stat, show_stat } => {
            let (version, servers) = connect_string(config);
            let block = if *show_stat { stat_block(stat) } else { String::new() };
            Rendered::out(format!("{version} {servers}\n{block}"))
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
        Output::Status(servers) => Rendered::out(crate::status::table(servers)),
        Output::Line { text, .. } => Rendered::out(text.clone()),
        Output::Rows { columns, rows } => {
            let cells = rows.iter().map(|row| row.iter().map(table::cell).collect()).collect::<Vec<Vec<String>>>();
            Rendered::out(table::padded(columns, &cells))
        }
    }
}

/// An answer in a format. With `to_pipe`, plain `get` yields the exact bytes.
pub fn render(output: &Output, format: Format, to_pipe: bool) -> Rendered {
    match (format, output) {
        (Format::Plain, _) => plain(output, to_pipe),
        (Format::Json, _) => {
            Rendered::out(documents(output).iter().fold(String::new(), |text, value| text + &format!("{value}\n")))
        }
        (Format::Yaml, _) => Rendered::out(
            documents(output).iter().fold(String::new(), |text, value| text + "---\n" + &table::yaml(value)),
        ),
        (Format::Table, _) => Rendered::out(table::table(&documents(output))),
        (Format::Raw, Output::Data { data, .. }) => {
            Rendered { out: data.clone().unwrap_or_default(), err: String::new() }
        }
        (Format::Base64, Output::Data { data, .. }) => {
            Rendered::out(STANDARD.encode(data.as_deref().unwrap_or_default()) + "\n")
        }
        (Format::Hex, Output::Data { data, .. }) => Rendered::out(hex(data.as_deref().unwrap_or_default()) + "\n"),
        // Of what holds no data: names and values alone, one a line.
        (_, Output::Children { children, .. }) => lines(children),
        (_, Output::Paths(paths)) => lines(paths),
        (_, Output::Created { path, .. }) => Rendered::out(format!("{path}\n")),
        _ => plain(output, to_pipe),
    }
}

fn lines(items: &[String]) -> Rendered {
    let mut items = items.to_vec();
    items.sort();
    Rendered::out(items.iter().fold(String::new(), |text, item| text + item + "\n"))
}

/// As one word.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Two digits a byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Data as a document shows it, and how it is encoded.
pub fn data_json(data: Option<&[u8]>) -> (Value, Value) {
    match data {
        None => (Value::Null, Value::Null),
        Some(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => (json!(text), json!("utf8")),
            Err(_) => (json!(STANDARD.encode(bytes)), json!("base64")),
        },
    }
}

/// The version of a configuration, and the addresses in it that are for clients; of an address that is only a port, any host.
fn connect_string(config: &str) -> (&str, String) {
    let mut version = "";
    let mut servers = Vec::new();
    for (name, value) in config.lines().filter_map(|line| line.split_once('=')) {
        match (name.trim(), value.split_once(';')) {
            ("version", _) => version = value.trim(),
            (name, Some((_, client))) if name.starts_with("server.") => {
                let client = client.trim();
                servers.push(if client.contains(':') { client.to_owned() } else { format!("0.0.0.0:{client}") });
            }
            _ => {}
        }
    }
    (version, servers.join(","))
}

/// An ACL as a document shows it.
pub fn acl_json(acl: &[Acl]) -> Value {
    let entry = |a: &Acl| json!({ "scheme": a.id.scheme, "id": a.id.id, "perms": perm_letters(a.perms) });
    Value::Array(acl.iter().map(entry).collect())
}

/// The documents of an answer. Zxids and session ids are hexadecimal text, as everywhere else in the tools; times are ms since
/// the Unix epoch; data that is not UTF-8 is base64, and `encoding` says so.
pub fn documents(output: &Output) -> Vec<Value> {
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
            return paths.iter().map(|path| json!({ "path": path })).collect();
        }
        Output::Data { path, data, stat, form, .. } => {
            let (text, encoding) = match (data, form) {
                (Some(bytes), Form::Hex) => (json!(hex(bytes)), json!("hex")),
                (Some(bytes), Form::Base64) => (json!(STANDARD.encode(bytes)), json!("base64")),
                (data, _) => data_json(data.as_deref()),
            };
            json!({ "path": path, "data": text, "encoding": encoding, "stat": stat_json(stat) })
        }
        Output::ConnectString { config, stat, .. } => {
            let (version, servers) = connect_string(config);
            json!({ "version": version, "servers": servers, "stat": stat_json(stat) })
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
            json!({ "path": path, "acl": acl_json(acl), "stat": stat_json(stat) })
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
        Output::Line { value, .. } => value.clone(),
        Output::Rows { columns, rows } => {
            let names: Vec<String> = columns.iter().map(|name| name.to_lowercase()).collect();
            let document = |row: &Vec<Value>| Value::Object(names.iter().cloned().zip(row.iter().cloned()).collect());
            return rows.iter().map(document).collect();
        }
    };
    vec![value]
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

/// A stat as a document shows it.
pub fn stat_json(stat: &Stat) -> Value {
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

#[cfg(test)]
mod tests {
    use corral_proto::Zxid;

    use super::*;

    fn text(output: &Output) -> String {
        String::from_utf8(plain(output, false).out).expect("plain text")
    }

    fn json(output: &Output) -> String {
        String::from_utf8(render(output, Format::Json, true).out).expect("text")
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
    fn a_configuration_ends_with_its_line_in_a_pipe_too_and_becomes_a_connect_string() {
        let config =
            "server.1=a:1:2:participant;a:2181\nserver.2=b:1:2:observer;2182\nserver.3=c:1:2\nversion=100000001";
        let whole = data(Some(config.as_bytes()), false, Form::Lines);
        assert_eq!(plain(&whole, true).out, format!("{config}\n").as_bytes());
        assert_eq!(render(&whole, Format::Raw, true).out, config.as_bytes());
        let short = |show_stat| Output::ConnectString { config: config.to_owned(), stat: stat(), show_stat };
        assert_eq!(text(&short(false)), "100000001 a:2181,0.0.0.0:2182\n");
        assert!(text(&short(true)).starts_with("100000001 a:2181,0.0.0.0:2182\ncZxid = 0x500000003\n"));
        assert!(json(&short(false)).contains(r#""servers":"a:2181,0.0.0.0:2182""#));
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
    fn one_answer_has_every_format() {
        let get = data(Some(&[0, 10, 255]), false, Form::Text);
        let shown = |output: &Output, format| render(output, format, false).out;
        assert_eq!(shown(&get, Format::Raw), [0, 10, 255]);
        assert_eq!(shown(&get, Format::Base64), b"AAr/\n");
        assert_eq!(shown(&get, Format::Hex), b"000aff\n");
        assert!(shown(&get, Format::Yaml).starts_with(b"---\ndata: \"AAr/\"\n"));
        let rows = Output::Rows { columns: &["PATH", "BYTES"], rows: vec![vec![json!("/a"), json!(7)]] };
        assert_eq!(shown(&rows, Format::Json), b"{\"bytes\":7,\"path\":\"/a\"}\n");
        assert_eq!(shown(&rows, Format::Plain), b"PATH  BYTES\n/a    7\n");
        let children = Output::Children { path: "/".into(), children: vec!["b".into(), "a".into()], stat: None };
        assert_eq!(shown(&children, Format::Raw), b"a\nb\n");
    }
}
