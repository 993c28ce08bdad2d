//! `corral log`: the log, line by line.
//!
//! Data of znodes and the key of the session passwords are never printed: a log is sent around when something is wrong.

use std::fmt::Write as _;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use corral_core::storage::folder::{Found, IdentityRecord};
use corral_core::storage::frame::{BLOCK, FrameHead, HeaderError, SegmentHeader};
use corral_core::storage::inspect::{Item, walk};
use corral_core::tree::entry::{Command, Txn};
use corral_core::tree::op::{Create, MultiOp, WriteOp};
use corral_core::zab::io::Entry;
use corral_proto::{SessionId, Zxid};
use serde_json::{Map, Value, json};

use super::{InspectError, utc};
use crate::storage::files::{FolderLock, LockError, ReadOnlyDevice};

/// What is to be printed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The first entry.
    pub from: Option<Zxid>,
    /// The last entry.
    pub to: Option<Zxid>,
    /// Entries of this session only.
    pub session: Option<SessionId>,
    /// One JSON object a line.
    pub json: bool,
}

impl Options {
    fn wants(&self, entry: &Entry, txn: Option<&Txn>) -> bool {
        self.from.is_none_or(|from| entry.zxid >= from)
            && self.to.is_none_or(|to| entry.zxid <= to)
            && self.session.is_none_or(|session| txn.is_some_and(|txn| txn.session == session))
    }

    fn wants_all(&self) -> bool {
        self.from.is_none() && self.to.is_none() && self.session.is_none()
    }
}

/// How a log was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Printed {
    /// Entries that were printed.
    pub entries: u64,
    /// Something in it is damaged.
    pub damaged: bool,
    /// A server uses the folder: the end is the end of a moment.
    pub in_use: bool,
}

/// Prints the log in the data folder `dir` (dataDir), as far as it can be read. Blocks.
///
/// # Errors
/// [`InspectError`] if the folder cannot be read, or nobody takes what is printed.
pub fn print(dir: &Path, options: &Options, out: &mut dyn Write) -> Result<Printed, InspectError> {
    let device = ReadOnlyDevice::open(dir)?;
    let lock = match FolderLock::borrow(&device) {
        Ok(lock) => Some(lock),
        Err(LockError::Taken(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let instance = match IdentityRecord::read(&device) {
        Ok(Found::Valid(record)) => record.identity.instance,
        // The segments say it themselves, as long as their headers are sound.
        _ => 0,
    };
    let mut printer =
        Printer { options, out, printed: Printed::default(), last: None, failed: None, segment: String::new() };
    walk(&device, instance, &mut |item| {
        if let Err(error) = printer.item(item) {
            printer.failed = Some(error);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    if let Some(error) = printer.failed {
        return Err(InspectError::Print(error));
    }
    if printer.segment.is_empty() {
        printer.line("there is no segment of a log", &json!({ "kind": "empty" })).map_err(InspectError::Print)?;
    }
    Ok(Printed { in_use: lock.is_none(), ..printer.printed })
}

struct Printer<'a> {
    options: &'a Options,
    out: &'a mut dyn Write,
    printed: Printed,
    last: Option<Zxid>,
    failed: Option<std::io::Error>,
    segment: String,
}

impl Printer<'_> {
    fn line(&mut self, text: &str, value: &Value) -> std::io::Result<()> {
        if self.options.json { writeln!(self.out, "{value}") } else { writeln!(self.out, "{text}") }
    }

    fn item(&mut self, item: Item) -> std::io::Result<()> {
        match item {
            Item::Segment { path, number, bytes, header } => self.segment(path, number, bytes, header),
            Item::Frame { offset, head, entries, follows } => self.frame(offset, &head, entries, follows),
            Item::Unreadable { from, to } => {
                self.printed.damaged = true;
                let text = format!(
                    "DAMAGE: bytes {from} to {to} of {} cannot be read, and whole frames come behind them: what was there was \
                     durable once",
                    self.segment
                );
                let value = json!({ "kind": "damage", "segment": self.segment, "from": from, "to": to });
                self.line(&text, &value)
            }
            Item::End { offset, torn } => self.end(offset, torn),
        }
    }

    fn segment(
        &mut self,
        path: String,
        number: u64,
        bytes: u64,
        header: Result<SegmentHeader, HeaderError>,
    ) -> std::io::Result<()> {
        self.segment.clone_from(&path);
        match header {
            Ok(header) => {
                if header.bytes > bytes {
                    self.printed.damaged = true;
                    let text =
                        format!("DAMAGE: {path} was made with {} bytes and has {bytes}: it was cut", header.bytes);
                    let value = json!({ "kind": "cut_file", "segment": path, "made": header.bytes, "bytes": bytes });
                    self.line(&text, &value)?;
                }
                if !self.options.wants_all() {
                    return Ok(());
                }
                let void = if header.reset { "; the log begins anew here, what is above is void" } else { "" };
                let text = format!(
                    "segment {number} ({path}): after {}, promise of epoch {} to server {}{void}",
                    header.base.zxid, header.promise.epoch, header.promise.leader
                );
                let value = json!({
                    "kind": "segment", "segment": path, "number": number, "bytes": bytes,
                    "base": header.base.zxid.to_string(), "promise_epoch": header.promise.epoch,
                    "promise_leader": header.promise.leader.0, "server": header.server.0,
                    "begins_anew": header.reset,
                });
                self.line(&text, &value)
            }
            Err(error) => {
                self.printed.damaged = true;
                let why = match error {
                    HeaderError::Invalid => "its header cannot be read".to_owned(),
                    HeaderError::Version(version) => format!("it is of version {version}, written by a newer release"),
                };
                let value = json!({ "kind": "damage", "segment": path, "from": 0, "to": BLOCK, "what": why });
                self.line(&format!("DAMAGE: segment {number} ({path}): {why}"), &value)
            }
        }
    }

    fn frame(
        &mut self,
        offset: u64,
        head: &FrameHead,
        entries: Option<Vec<Entry>>,
        follows: bool,
    ) -> std::io::Result<()> {
        if !follows {
            self.printed.damaged = true;
            let last = self.last.unwrap_or(Zxid::ZERO);
            let text = format!("DAMAGE: entries are missing between {last} and {}", head.prev.zxid);
            let value = json!({ "kind": "missing", "after": last.to_string(), "upto": head.prev.zxid.to_string() });
            self.line(&text, &value)?;
        }
        if head.truncate && self.options.session.is_none() {
            let text = format!("cut: what is after {} is no part of the log any more", head.prev.zxid);
            self.line(&text, &json!({ "kind": "truncate", "to": head.prev.zxid.to_string() }))?;
        }
        let Some(entries) = entries else {
            self.printed.damaged = true;
            let text =
                format!("DAMAGE: the frame at byte {offset} of {} holds other entries than it names", self.segment);
            let value = json!({ "kind": "damage", "segment": self.segment, "from": offset, "what": "entries" });
            return self.line(&text, &value);
        };
        for entry in &entries {
            self.entry(entry)?;
        }
        if let Some(promise) = head.promise
            && self.options.wants_all()
        {
            let text = format!("promise of epoch {} to server {}", promise.epoch, promise.leader);
            self.line(&text, &json!({ "kind": "promise", "epoch": promise.epoch, "leader": promise.leader.0 }))?;
        }
        self.last = Some(head.last.zxid);
        Ok(())
    }

    fn entry(&mut self, entry: &Entry) -> std::io::Result<()> {
        let decoded = (!entry.payload.is_empty()).then(|| Txn::decode(&entry.payload));
        let txn = match &decoded {
            Some(Ok(txn)) => Some(txn),
            _ => None,
        };
        if !self.options.wants(entry, txn) {
            return Ok(());
        }
        self.printed.entries += 1;
        let mut described = match &decoded {
            None => Described::new("epoch", format!("epoch {} begins", entry.zxid.epoch())),
            Some(Ok(txn)) => describe(txn),
            Some(Err(error)) => Described::new("undecodable", error.to_string()),
        };
        let mut text = format!("{}  {}  ", entry.zxid, utc(entry.stamp_ms));
        if let Some(txn) = txn.filter(|txn| txn.session != SessionId::NONE) {
            let _ = write!(text, "session {} ", txn.session);
            if txn.n > 0 {
                let _ = write!(text, "n {} ", txn.n);
            }
            described.put("session", txn.session.to_string());
            described.put("attach", txn.attach.to_string());
            described.put("n", txn.n);
            described.put("answered_through", txn.answered_through);
            described.put("ids", txn.ids.iter().map(|id| format!("{}:{}", id.scheme, id.id)).collect::<Vec<_>>());
        }
        text.push_str(&described.text);
        described.put("zxid", entry.zxid.to_string());
        described.put("epoch", entry.zxid.epoch());
        described.put("counter", entry.zxid.counter());
        described.put("stamp_ms", entry.stamp_ms);
        described.put("time", utc(entry.stamp_ms));
        described.put("payload_bytes", entry.payload.len());
        self.line(&text, &Value::Object(described.fields))
    }

    fn end(&mut self, offset: u64, torn: bool) -> std::io::Result<()> {
        if !torn && !self.options.wants_all() {
            return Ok(());
        }
        let last = self.last.unwrap_or(Zxid::ZERO);
        let what = if torn {
            "a write follows that was never finished, or is unreadable now: nothing whole comes behind it"
        } else {
            "nothing follows"
        };
        let text = format!("end of {} at byte {offset}, after {last}: {what}", self.segment);
        let value = json!({
            "kind": "end", "segment": self.segment, "offset": offset, "last": last.to_string(), "torn": torn,
        });
        self.line(&text, &value)
    }
}

/// One entry in words and fields.
struct Described {
    text: String,
    fields: Map<String, Value>,
}

impl Described {
    fn new(kind: &str, text: impl Into<String>) -> Described {
        let mut fields = Map::new();
        fields.insert("kind".to_owned(), kind.into());
        Described { text: text.into(), fields }
    }

    fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.fields.insert(name.to_owned(), value.into());
    }

    fn with(mut self, name: &str, value: impl Into<Value>) -> Described {
        self.put(name, value);
        self
    }
}

fn describe(txn: &Txn) -> Described {
    match &txn.command {
        Command::Write(op) => describe_write(op),
        Command::LocalWrite { op, carrier } => {
            let mut described = describe_write(op)
                .with("carrier_server", carrier.server.0)
                .with("carrier_attach", carrier.attach.to_string())
                .with("carrier_n", carrier.n);
            let _ =
                write!(described.text, ", of a local session of server {}, number {} there", carrier.server, carrier.n);
            described
        }
        Command::OpenCarrier { server, .. } => {
            let text = format!("openCarrier: server {server} numbers the writes of its local sessions from here");
            Described::new("openCarrier", text).with("server", server.0)
        }
        Command::CreateSession { timeout_ms, server, keeps_results, .. } => {
            let text = format!("createSession on server {server}, timeout {timeout_ms} ms");
            attached(Described::new("createSession", text), *timeout_ms, server.0, *keeps_results)
        }
        Command::Attach { timeout_ms, server, keeps_results, .. } => {
            let text = format!("attach to server {server}, timeout {timeout_ms} ms");
            attached(Described::new("attach", text), *timeout_ms, server.0, *keeps_results)
        }
        Command::CloseSession { expired } => {
            let text = if *expired { "closeSession: it expired" } else { "closeSession" };
            Described::new("closeSession", text).with("expired", *expired)
        }
        Command::Reap { path, czxid } => {
            let text = format!("reap {path} if it is still the one created by {czxid}, and due");
            Described::new("reap", text).with("path", path.as_str()).with("czxid", czxid.to_string())
        }
        Command::Settings(settings) => {
            let text = format!(
                "settings: skipACL {}, enforceQuota {}, extendedTypesEnabled {}, keeperExtensions {}, feature level {}",
                settings.skip_acl,
                settings.enforce_quota,
                settings.extended_types,
                settings.keeper_extensions,
                settings.feature_level
            );
            Described::new("settings", text)
                .with("skip_acl", settings.skip_acl)
                .with("enforce_quota", settings.enforce_quota)
                .with("extended_types", settings.extended_types)
                .with("keeper_extensions", settings.keeper_extensions)
                .with("feature_level", settings.feature_level)
                .with("members", settings.config_text.as_str())
        }
    }
}

fn attached(described: Described, timeout_ms: i32, server: u64, keeps_results: bool) -> Described {
    described.with("timeout_ms", timeout_ms).with("server", server).with("grpc", keeps_results)
}

fn describe_write(op: &WriteOp) -> Described {
    match op {
        WriteOp::Create(op) => describe_create("create", op),
        WriteOp::CreateIfNotExists(op) => describe_create("createIfNotExists", op),
        WriteOp::Delete { path, version } => versioned("delete", path, *version),
        WriteOp::SetData { path, data, version } => {
            let bytes = data.as_ref().map(bytes::Bytes::len);
            let mut described = versioned("setData", path, *version).with("data_bytes", bytes);
            described.text.push_str(&size(bytes));
            described
        }
        WriteOp::SetAcl { path, acl, version } => {
            let lines = acl.as_ref().map_or(0, Vec::len);
            let mut described = versioned("setACL", path, *version).with("acl_lines", lines);
            let _ = write!(described.text, ", {lines} lines");
            described
        }
        WriteOp::Multi(ops) => {
            let ops: Vec<Described> = ops.iter().map(describe_part).collect();
            let texts: Vec<&str> = ops.iter().map(|op| op.text.as_str()).collect();
            let text = format!("multi of {}: {}", texts.len(), texts.join("; "));
            let parts: Vec<Value> = ops.into_iter().map(|op| Value::Object(op.fields)).collect();
            Described::new("multi", text).with("ops", parts)
        }
        WriteOp::RemoveRecursive { path, limit } => remove_recursive(path, *limit),
    }
}

fn describe_part(op: &MultiOp) -> Described {
    match op {
        MultiOp::Create(op) => describe_create("create", op),
        MultiOp::CreateIfNotExists(op) => describe_create("createIfNotExists", op),
        MultiOp::Delete { path, version } => versioned("delete", path, *version),
        MultiOp::SetData { path, data, version } => {
            let bytes = data.as_ref().map(bytes::Bytes::len);
            let mut described = versioned("setData", path, *version).with("data_bytes", bytes);
            described.text.push_str(&size(bytes));
            described
        }
        MultiOp::Check { path, version } => versioned("check", path, *version),
        MultiOp::CheckNotExists { path, version } => versioned("checkNotExists", path, *version),
        MultiOp::RemoveRecursive { path, limit } => remove_recursive(path, *limit),
    }
}

fn describe_create(kind: &str, op: &Create) -> Described {
    let bytes = op.data.as_ref().map(bytes::Bytes::len);
    let ttl = if op.ttl_ms > 0 { format!(", ttl {} ms", op.ttl_ms) } else { String::new() };
    let text = format!("{kind} {} {:?}{}{ttl}", op.path, op.mode, size(bytes));
    let described = Described::new(kind, text).with("path", op.path.as_str()).with("mode", format!("{:?}", op.mode));
    let described = described.with("data_bytes", bytes).with("acl_lines", op.acl.as_ref().map(Vec::len));
    if op.ttl_ms > 0 { described.with("ttl_ms", op.ttl_ms) } else { described }
}

fn versioned(kind: &str, path: &str, version: i32) -> Described {
    let text = if version == -1 { format!("{kind} {path}") } else { format!("{kind} {path} at version {version}") };
    Described::new(kind, text).with("path", path).with("version", version)
}

fn remove_recursive(path: &str, limit: u32) -> Described {
    let text = format!("removeRecursive {path}, at most {limit} znodes");
    Described::new("removeRecursive", text).with("path", path).with("limit", limit)
}

fn size(bytes: Option<usize>) -> String {
    bytes.map_or(", null".to_owned(), |bytes| format!(", {bytes} bytes"))
}
