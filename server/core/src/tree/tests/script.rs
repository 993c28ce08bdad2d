//! Plays the scripts of `testscripts/`.
//!
//! A line is a command of the client named by its prefix (`1:> create /a x`), or of the ensemble (no prefix). Each entry
//! gets the next zxid; its outcome is printed: verdict, then `!` watch events (a znode's readers in brackets if not
//! everybody), `@` session events, `~` paths for the reaper. Every entry passes through its encoding, and after each
//! the whole state is audited.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;
use corral_proto::{Acl, CreateMode, ErrorCode, EventKind, Id, ServerId, SessionId, Stat, Zxid};
use goldenscript::{Command as Line, Context};

use crate::storage::memory::MemoryStore;
use crate::tree::entry::{Carrier, Command, Outcome, SessionEvent, Txn, Verdict};
use crate::tree::execute::{execute, execute_skipped};
use crate::tree::op::{Answer, Create, List, MultiOp, MultiReadOp, ReadOp, WriteOp};
use crate::tree::record::Meta;
use crate::tree::{Cf, Change, TreeStore, TreeView, acl, audit, key, read, record};

/// What the client of a session would know.
#[derive(Clone, Default)]
struct Client {
    attach: Zxid,
    n: u64,
    ids: Vec<Id>,
    last: Option<Txn>,
}

struct Story {
    store: MemoryStore,
    zxid: Zxid,
    stamp_ms: i64,
    clients: BTreeMap<i64, Client>,
    /// Attaches of the servers' carriers.
    carriers: BTreeMap<ServerId, Zxid>,
}

type Failure = Box<dyn Error>;

impl goldenscript::Runner for Story {
    type Command = Line;

    fn run(&mut self, line: &Line, context: &Context) -> Result<String, Failure> {
        let session: i64 = context.prefix.as_deref().map_or(Ok(0), str::parse)?;
        let mut out = String::new();
        self.command(session, line, &mut out)?;
        Ok(out)
    }
}

impl Story {
    fn new() -> Story {
        Story {
            store: MemoryStore::new(),
            zxid: Zxid::new(1, 0),
            stamp_ms: 1000,
            clients: BTreeMap::new(),
            carriers: BTreeMap::new(),
        }
    }

    fn client(&mut self, session: i64) -> &mut Client {
        self.clients
            .entry(session)
            .or_insert_with(|| Client { ids: vec![Id::new("ip", format!("10.0.0.{session}"))], ..Client::default() })
    }

    fn command(&mut self, session: i64, line: &Line, out: &mut String) -> Result<(), Failure> {
        let (name, words, mut options) = parse(&line.name)?;
        let mut key = |name: &str| options.remove(name);
        // Where the transaction stands, if the script wants to say so.
        let n: Option<u64> = key("n").map(|it| it.parse()).transpose()?;
        let attach: Option<u32> = key("attach").map(|it| it.parse()).transpose()?;
        let through: u64 = key("through").map_or(Ok(0), |it| it.parse())?;
        let nonce: u64 = key("nonce").map_or(Ok(session as u64), |it| it.parse())?;
        let server = ServerId(key("server").map_or(Ok(1), |it| it.parse())?);
        let timeout_ms: i32 = key("timeout").map_or(Ok(4000), |it| it.parse())?;
        let czxid: Option<u32> = key("czxid").map(|it| it.parse()).transpose()?;
        // A write of a local session: its number on its server's carrier.
        let local: Option<u64> = key("local").map(|it| it.parse()).transpose()?;
        let word = |index: usize| words.get(index).cloned().ok_or("a word is missing");

        let command = match name.as_str() {
            // The ensemble.
            "time" => {
                self.stamp_ms += word(0)?.parse::<i64>()?;
                return Ok(());
            }
            "epoch" => {
                self.zxid = Zxid::new(self.zxid.epoch() + 1, 0);
                return self.finish(session, Bytes::new(), false, out);
            }
            "raw" => return self.finish(session, unhex(&word(0)?)?, false, out),
            "settings" => {
                let mut settings = read::settings(&self.store.view());
                for (name, value) in &options {
                    match name.as_str() {
                        "skip_acl" => settings.skip_acl = value.parse()?,
                        "enforce_quota" => settings.enforce_quota = value.parse()?,
                        "keeper" => settings.keeper_extensions = value.parse()?,
                        "extended_types" => settings.extended_types = value.parse()?,
                        "never_used" => settings.container_never_used_ms = value.parse()?,
                        "ephemerals" => settings.ephemerals_per_session = value.parse()?,
                        "config" => settings.config_text = value.clone(),
                        _ => return Err(format!("no setting {name}").into()),
                    }
                }
                Command::Settings(settings)
            }
            "reap" => {
                let at = read::stat(&self.store.view(), &word(0)?).map_or(0, |stat| stat.czxid as u64);
                let czxid = czxid.map_or(Zxid(at), |counter| Zxid::new(self.zxid.epoch(), counter));
                Command::Reap { path: word(0)?, czxid }
            }
            // Sessions.
            "open" => Command::OpenCarrier { server, nonce },
            "connect" => {
                Command::CreateSession { timeout_ms, server, nonce, keeps_results: words.contains(&"grpc".to_owned()) }
            }
            "attach" => {
                Command::Attach { timeout_ms, server, nonce, keeps_results: words.contains(&"grpc".to_owned()) }
            }
            "close" => Command::CloseSession { expired: false },
            "expire" => Command::CloseSession { expired: true },
            "ids" => {
                self.client(session).ids = words.iter().map(|word| id(word)).collect();
                return Ok(());
            }
            // Sends the last write again, as it was but for what the line says.
            "again" => {
                let mut txn = self.client(session).last.clone().ok_or("nothing was sent")?;
                txn.n = n.unwrap_or(txn.n);
                txn.attach = self.client(session).attach;
                return self.finish(session, txn.encode(), false, out);
            }
            // Reads.
            "stat" | "get" | "acl" | "ls" | "list" | "absent" | "ephemerals" | "count" | "read" => {
                let op = match name.as_str() {
                    "stat" => ReadOp::Exists { path: word(0)? },
                    "get" => ReadOp::GetData { path: word(0)? },
                    "acl" => ReadOp::GetAcl { path: word(0)? },
                    "ls" => ReadOp::GetChildren { path: word(0)? },
                    "list" => ReadOp::List(list(&words)),
                    "absent" => ReadOp::CheckNotExists {
                        path: word(0)?,
                        version: options.get("v").map_or(Ok(-1), |version| version.parse())?,
                    },
                    "ephemerals" => ReadOp::GetEphemerals { prefix: words.first().cloned().unwrap_or_default() },
                    "count" => ReadOp::CountDescendants { path: word(0)? },
                    _ => ReadOp::MultiRead(words.iter().map(|word| multi_read_op(word)).collect::<Result<_, _>>()?),
                };
                let ids = self.client(session).ids.clone();
                let answer = read::read(&self.store.view(), &op, SessionId(session), &ids);
                write_result(out, &answer);
                return Ok(());
            }
            "sessions" => {
                for (id, row) in read::sessions(&self.store.view()) {
                    let kept =
                        if row.keeps_results { format!(", keeps {} bytes", row.result_bytes) } else { String::new() };
                    writeln!(
                        out,
                        "session {}: attach {:?} nonce {} on {:?}, timeout {} ms, last n {}, {} ephemerals{kept}",
                        id.0, row.attach, row.nonce, row.server, row.timeout_ms, row.last_n, row.ephemerals
                    )?;
                }
                return Ok(());
            }
            "reapables" => {
                for it in read::reapables(&self.store.view()) {
                    let due = it.due_after(read::settings(&self.store.view()).container_never_used_ms);
                    let due = match due {
                        None => "not due".to_owned(),
                        Some(i64::MIN) => "due".to_owned(),
                        Some(at) => format!("due after {at}"),
                    };
                    writeln!(out, "{} {:?} {due}", it.path, it.owner)?;
                }
                return Ok(());
            }
            "meta" => {
                let Meta { applied, stamp_ms, znodes, data_bytes, ephemerals, sessions, .. } =
                    Meta::read(&self.store.view()).ok_or("no meta row")?;
                writeln!(
                    out,
                    "applied {applied:?} at {stamp_ms}: {znodes} znodes, {data_bytes} bytes, {ephemerals} ephemerals, \
                     {sessions} sessions"
                )?;
                return Ok(());
            }
            // Changes the record of a parent as billions of creations would.
            "creates" => {
                let (path, creates) = (word(0)?, word(1)?.parse()?);
                self.set_creates(&path, creates)?;
                return Ok(());
            }
            // Writes.
            "multi" => {
                Command::Write(WriteOp::Multi(words.iter().map(|word| multi_op(word)).collect::<Result<_, _>>()?))
            }
            "skipped" => {
                // The entry that `--skip-entry` names.
                let op = WriteOp::Delete { path: word(0)?, version: -1 };
                let txn = self.txn(session, Command::Write(op), n, attach, through);
                return self.finish(session, txn.encode(), true, out);
            }
            name => {
                let version = options.get("v").map_or(Ok(-1), |version| version.parse())?;
                let list = options.get("acl").map(String::as_str);
                Command::Write(match name {
                    "create" => WriteOp::Create(create(&words, &options)?),
                    "ensure" => WriteOp::CreateIfNotExists(create(&words, &options)?),
                    "remove" => WriteOp::RemoveRecursive { path: word(0)?, limit: word(1)?.parse()? },
                    "delete" => WriteOp::Delete { path: word(0)?, version },
                    "set" => WriteOp::SetData { path: word(0)?, data: data(words.get(1)), version },
                    "setacl" => WriteOp::SetAcl { path: word(0)?, acl: acl_list(list), version },
                    _ => return Err(format!("no command {name}").into()),
                })
            }
        };
        let Some(number) = local else {
            let txn = self.txn(session, command, n, attach, through);
            return self.finish(session, txn.encode(), false, out);
        };
        let known = self.carriers.get(&server).copied().unwrap_or_default();
        let attach = attach.map_or(known, |counter| Zxid::new(self.zxid.epoch(), counter));
        let txn = self.txn(session, command, n, Some(0), through);
        let txn = Txn { attach: Zxid::ZERO, ..txn };
        self.finish(session, Carrier { server, attach, n: number }.carry(&txn.encode()), false, out)
    }

    fn txn(&mut self, session: i64, command: Command, n: Option<u64>, attach: Option<u32>, through: u64) -> Txn {
        let numbered = matches!(command, Command::Write(_) | Command::CloseSession { expired: false });
        let epoch = self.zxid.epoch();
        let client = self.client(session);
        let txn = Txn {
            session: SessionId(session),
            attach: attach.map_or(client.attach, |counter| Zxid::new(epoch, counter)),
            n: n.unwrap_or(if numbered && session != 0 { client.n + 1 } else { 0 }),
            answered_through: through,
            ids: client.ids.clone(),
            command,
        };
        client.last = Some(txn.clone());
        txn
    }

    /// Executes an entry, writes its changes, tells its outcome.
    fn finish(&mut self, session: i64, payload: Bytes, skip: bool, out: &mut String) -> Result<(), Failure> {
        if !payload.is_empty() {
            self.zxid = Zxid::new(self.zxid.epoch(), self.zxid.counter() + 1);
        }
        let view = self.store.view();
        let run = if skip { execute_skipped } else { execute };
        let outcome = run(&view, self.zxid, self.stamp_ms, 0, &payload);
        self.store.write(&mut outcome.changes.clone().into_iter());
        audit::audit(&self.store.view())?;
        for event in &outcome.sessions {
            if let SessionEvent::Carried { server, attach, .. } = event {
                self.carriers.insert(*server, *attach);
            }
        }
        if matches!(outcome.verdict, Verdict::Executed(_)) {
            self.client(session).n += 1;
        }
        if let Verdict::Attached { last_n, .. } = outcome.verdict {
            let attach = read::session(&self.store.view(), SessionId(session)).map_or(Zxid::ZERO, |row| row.attach);
            let client = self.client(session);
            (client.attach, client.n) = (attach, last_n);
        }
        self.write_outcome(out, &outcome);
        Ok(())
    }

    fn write_outcome(&self, out: &mut String, outcome: &Outcome) {
        let _ = write!(out, "{:?} ", self.zxid);
        match &outcome.verdict {
            Verdict::Executed(result) => write_result(out, result),
            Verdict::Repeated { zxid, result: Some(result) } => {
                let _ = write!(out, "repeated from {zxid:?}: ");
                write_result(out, result);
            }
            Verdict::Repeated { result: None, .. } => out.push_str("repeated, result not kept\n"),
            Verdict::Moved => out.push_str("moved\n"),
            Verdict::OutOfOrder => out.push_str("out of order\n"),
            Verdict::Expired => out.push_str("expired\n"),
            Verdict::Attached { timeout_ms, last_n } => {
                let _ = writeln!(out, "attached, timeout {timeout_ms} ms, last n {last_n}");
            }
            Verdict::IdTaken => out.push_str("id taken\n"),
            Verdict::Internal => out.push_str("internal\n"),
        }
        let readers = |list: Option<u32>| match list {
            None => String::new(),
            Some(id) => format!(" [{}]", list_text(&acl::list(&self.store.view(), id))),
        };
        for event in &outcome.events {
            let parent = match event.kind {
                EventKind::NodeDataChanged => String::new(),
                _ => format!(", children of its parent{}", readers(event.parent_acl)),
            };
            let _ = writeln!(out, "  ! {:?} {}{}{parent}", event.kind, event.path, readers(event.acl));
        }
        for event in &outcome.sessions {
            let _ = match event {
                SessionEvent::Attached { session, attach, server, nonce, .. } => {
                    writeln!(out, "  @ session {} attached at {attach:?} to {server:?}, nonce {nonce}", session.0)
                }
                SessionEvent::Carried { server, nonce, attach, last_n } => {
                    writeln!(out, "  @ {server:?} carries from {attach:?}, nonce {nonce}, last n {last_n}")
                }
                SessionEvent::Closed { session, expired } => {
                    writeln!(out, "  @ session {} {}", session.0, if *expired { "expired" } else { "closed" })
                }
            };
        }
        for path in &outcome.reapable {
            let _ = writeln!(out, "  ~ {path}");
        }
        // Refused or repeated entries touch the meta row, and the row of their session at most.
        if outcome.events.is_empty() && !matches!(outcome.verdict, Verdict::Executed(_)) {
            let rows = outcome.changes.iter().filter(|change| change.cf != Cf::Aux).count();
            assert_eq!(rows, 0, "{outcome:?}");
        }
    }

    fn set_creates(&mut self, path: &str, creates: u64) -> Result<(), Failure> {
        let view = self.store.view();
        let key = key::node(path).ok_or("no path")?;
        let raw = view.get(Cf::Node, &key).ok_or("no znode")?;
        let mut rec = record::NodeRec::decode(&raw).ok_or("no record")?;
        rec.creates = creates;
        let new = rec.encode();
        let mut meta = Meta::read(&view).ok_or("no meta row")?;
        let (old_digest, new_digest) = (record::NodeRec::digest(&key, &raw), record::NodeRec::digest(&key, &new));
        meta.digest = meta.digest.wrapping_sub(old_digest).wrapping_add(new_digest);
        let put = |cf, key, value| Change { cf, key, value: Some(value) };
        let rows = [put(Cf::Node, key, new), put(Cf::Aux, Bytes::from_static(key::META), meta.encode())];
        self.store.write(&mut rows.into_iter());
        Ok(())
    }
}

type Parsed = (String, Vec<String>, BTreeMap<String, String>);

/// Takes a line apart: its first word, the other words, and `name=value` pairs. Quotes keep spaces together and know
/// escapes; what starts with a quote is no pair.
fn parse(line: &str) -> Result<Parsed, Failure> {
    let (mut words, mut options) = (Vec::new(), BTreeMap::new());
    let mut chars = line.chars().peekable();
    while let Some(first) = chars.peek().copied() {
        if first == ' ' {
            chars.next();
            continue;
        }
        let (mut text, mut quoted) = (String::new(), false);
        while let Some(c) = chars.next_if(|c| quoted || *c != ' ') {
            match c {
                '"' => quoted = !quoted,
                '\\' if quoted => match chars.next().ok_or("an escape is not finished")? {
                    '0' => text.push('\0'),
                    'n' => text.push('\n'),
                    'u' => {
                        let code: String = chars.by_ref().take_while(|c| *c != '}').filter(|c| *c != '{').collect();
                        text.push(u32::from_str_radix(&code, 16).ok().and_then(char::from_u32).ok_or("no character")?);
                    }
                    c => text.push(c),
                },
                c => text.push(c),
            }
        }
        match text.split_once('=') {
            Some((name, value)) if first != '"' && name.chars().all(|c| c.is_ascii_lowercase() || c == '_') => {
                options.insert(name.to_owned(), value.to_owned());
            }
            _ => words.push(text),
        }
    }
    let name = if words.is_empty() { return Err("no command".into()) } else { words.remove(0) };
    Ok((name, words, options))
}

/// `null`, nothing, or text; `1500*x` is a text of so many letters.
fn data(word: Option<&String>) -> Option<Bytes> {
    match word.map(String::as_str) {
        None => Some(Bytes::new()),
        Some("null") => None,
        Some(text) => Some(match text.split_once('*').map(|(count, letter)| (count.parse::<usize>(), letter)) {
            Some((Ok(count), letter)) => Bytes::from(letter.repeat(count)),
            _ => Bytes::copy_from_slice(text.as_bytes()),
        }),
    }
}

fn id(text: &str) -> Id {
    let (scheme, id) = text.split_once(':').unwrap_or((text, ""));
    Id::new(scheme, id)
}

/// `null`, `empty`, or lines `scheme:id:letters` (or a number) between commas; nothing: open to everybody.
fn acl_list(text: Option<&str>) -> Option<Vec<Acl>> {
    let line = |text: &str| {
        let (who, bits) = text.rsplit_once(':').expect("an ACL line ends in permissions");
        let letter = |letter: char| "rwcda".find(letter).map_or(0, |bit| 1 << bit);
        let perms = bits.parse().unwrap_or_else(|_| bits.chars().map(letter).sum());
        Acl { perms, id: id(who) }
    };
    match text {
        None => Some(Acl::open()),
        Some("null") => None,
        Some("empty") => Some(vec![]),
        Some(text) => Some(text.split(',').map(line).collect()),
    }
}

fn create(words: &[String], options: &BTreeMap<String, String>) -> Result<Create, Failure> {
    let mode = match options.get("mode").map(String::as_str) {
        None => CreateMode::Persistent,
        Some("e") => CreateMode::Ephemeral,
        Some("s") => CreateMode::PersistentSequential,
        Some("es") => CreateMode::EphemeralSequential,
        Some("c") => CreateMode::Container,
        Some("t") => CreateMode::PersistentWithTtl,
        Some("st") => CreateMode::PersistentSequentialWithTtl,
        Some(mode) => return Err(format!("no mode {mode}").into()),
    };
    Ok(Create {
        path: words.first().cloned().ok_or("a path is missing")?,
        data: data(words.get(1)),
        acl: acl_list(options.get("acl").map(String::as_str)),
        mode,
        ttl_ms: options.get("ttl").map_or(Ok(0), |ttl| ttl.parse())?,
    })
}

/// An operation inside quotes: its words, options with `=`.
fn multi_op(text: &str) -> Result<MultiOp, Failure> {
    let (options, mut words): (Vec<&str>, Vec<&str>) = text.split(' ').partition(|word| word.contains('='));
    let options: BTreeMap<String, String> = options
        .into_iter()
        .filter_map(|option| option.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let name = words.remove(0);
    let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
    let path = words.first().cloned().ok_or("a path is missing")?;
    let version = options.get("v").map_or(Ok(-1), |version| version.parse())?;
    Ok(match name {
        "create" => MultiOp::Create(create(&words, &options)?),
        "ensure" => MultiOp::CreateIfNotExists(create(&words, &options)?),
        "remove" => MultiOp::RemoveRecursive { path, limit: words.get(1).ok_or("a limit is missing")?.parse()? },
        "absent" => MultiOp::CheckNotExists { path, version },
        "delete" => MultiOp::Delete { path, version },
        "set" => MultiOp::SetData { path, data: data(words.get(1)), version },
        "check" => MultiOp::Check { path, version },
        _ => return Err(format!("no operation {name}").into()),
    })
}

fn multi_read_op(text: &str) -> Result<MultiReadOp, Failure> {
    match text.split_once(' ') {
        Some(("get", path)) => Ok(MultiReadOp::GetData { path: path.to_owned() }),
        Some(("ls", path)) => Ok(MultiReadOp::GetChildren { path: path.to_owned() }),
        Some(("stat", path)) => Ok(MultiReadOp::Exists { path: path.to_owned() }),
        Some(("list", words)) => Ok(MultiReadOp::List(list(&words.split(' ').map(str::to_owned).collect::<Vec<_>>()))),
        _ => Err(format!("no read {text}").into()),
    }
}

/// A path, and what is wanted: `ephemeral` or `persistent` ones only, `stat`, `data`.
fn list(words: &[String]) -> List {
    let has = |word: &str| words.iter().any(|it| it == word);
    List {
        path: words.first().cloned().unwrap_or_default(),
        ephemerals: if has("ephemeral") { Some(true) } else { has("persistent").then_some(false) },
        with_stat: has("stat"),
        with_data: has("data"),
    }
}

fn unhex(text: &str) -> Result<Bytes, Failure> {
    let digits: Vec<u8> = text.chars().map_while(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    Ok(digits.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).unwrap_or(&0)).collect())
}

fn list_text(list: &[Acl]) -> String {
    let line = |acl: &Acl| {
        let letters: String = "cdrwa".chars().filter(|c| acl.perms & bit(*c) != 0).collect();
        let letters = if acl.perms & !31 == 0 { letters } else { acl.perms.to_string() };
        format!("{}:{}:{letters}", acl.id.scheme, acl.id.id)
    };
    list.iter().map(line).collect::<Vec<String>>().join(",")
}

fn bit(letter: char) -> i32 {
    match letter {
        'r' => 1,
        'w' => 2,
        'c' => 4,
        'd' => 8,
        _ => 16,
    }
}

fn stat_text(stat: &Stat) -> String {
    let zxid = |value: i64| format!("{:?}", Zxid(value as u64));
    format!(
        "c={} m={} p={} ctime={} mtime={} v={} cv={} av={} owner={} len={} children={}",
        zxid(stat.czxid),
        zxid(stat.mzxid),
        zxid(stat.pzxid),
        stat.ctime,
        stat.mtime,
        stat.version,
        stat.cversion,
        stat.aversion,
        stat.ephemeral_owner,
        stat.data_length,
        stat.num_children
    )
}

fn data_text(data: &Option<Bytes>) -> String {
    match data {
        None => "null".to_owned(),
        Some(bytes) if bytes.len() > 100 => format!("{} bytes", bytes.len()),
        Some(bytes) => format!("{:?}", String::from_utf8_lossy(bytes)),
    }
}

/// An answer in one line, a multi in several.
fn write_result(out: &mut String, result: &Result<Answer, ErrorCode>) {
    let text = match result {
        Err(error) => format!("refused: {error} ({})", error.code()),
        Ok(Answer::Created { path, .. }) => format!("created {path}"),
        Ok(Answer::Done) => "done".to_owned(),
        Ok(Answer::Stat(stat)) => stat_text(stat),
        Ok(Answer::Data { data, stat }) => format!("{} v={} len={}", data_text(data), stat.version, stat.data_length),
        Ok(Answer::Acl { acl, stat }) => format!("{} av={}", list_text(acl), stat.aversion),
        Ok(Answer::Children { children, stat }) => format!("[{}] cv={}", children.join(", "), stat.cversion),
        Ok(Answer::Listing { children, stat, stats, data }) => {
            let stats: Vec<String> = stats.iter().map(stat_text).collect();
            let data: Vec<String> = data.iter().map(data_text).collect();
            format!(
                "[{}] cv={} stats [{}] data [{}]",
                children.join(", "),
                stat.cversion,
                stats.join(", "),
                data.join(", ")
            )
        }
        Ok(Answer::Multi(answers)) => {
            let _ = writeln!(out, "multi of {}", answers.len());
            for answer in answers {
                out.push_str("  - ");
                write_result(out, &Ok(answer.clone()));
            }
            return;
        }
        Ok(Answer::MultiFailed { ops, failed, error }) => {
            format!("multi of {ops} failed at {failed}: {error} ({})", error.code())
        }
        Ok(Answer::MultiRead(results)) => {
            for result in results {
                out.push_str("- ");
                write_result(out, result);
            }
            return;
        }
        Ok(Answer::Subtree { nodes, next }) => {
            let paths: Vec<&str> = nodes.iter().map(|node| node.path.as_str()).collect();
            format!("subtree [{}], next {next:?}", paths.join(", "))
        }
        Ok(Answer::Paths(paths)) => format!("[{}]", paths.join(", ")),
        Ok(Answer::Count(count)) => count.to_string(),
        Ok(Answer::Ids(ids)) => format!("{ids:?}"),
        Ok(Answer::Token(token)) => data_text(token),
    };
    let _ = writeln!(out, "{text}");
}

fn play(script: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tree/testscripts").join(script);
    goldenscript::run(&mut Story::new(), path).expect("the script runs");
}

macro_rules! scripts {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            play(stringify!($name));
        })*

        #[test]
        fn every_script_is_played() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tree/testscripts");
            let mut found: Vec<String> = std::fs::read_dir(folder)
                .unwrap()
                .map(|file| file.unwrap().file_name().into_string().unwrap())
                .collect();
            found.sort_unstable();
            let mut played = vec![$(stringify!($name)),*];
            played.sort_unstable();
            assert_eq!(found, played);
        }
    };
}

scripts! {
    acl_decides_who_may,
    acl_list_is_fixed_up,
    attach_moves_a_session,
    close_deletes_ephemerals_in_order,
    config_is_written_by_settings,
    containers_and_ttl_znodes_are_reaped_when_due,
    create_checks_in_order,
    delete_checks_in_order,
    ephemerals_belong_to_sessions,
    expiry_loses_against_a_newer_attach,
    fresh_tree,
    hard_quotas_refuse,
    keeper_extensions_are_off_until_asked_for,
    keeper_lists_and_removals,
    local_sessions_write_over_their_servers_carrier,
    grpc_results_are_kept_for_retries,
    malformed_entries_are_answered,
    multi_is_all_or_nothing,
    quotas_count_what_they_cover,
    requests_run_once_and_in_order,
    reads_answer_from_one_state,
    sequential_names_count_creations,
    set_checks_in_order,
    stat_follows_children,
    ttl_needs_extended_types,
}
