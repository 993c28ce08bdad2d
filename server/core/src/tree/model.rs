//! The tree as one would write it on a napkin: a map from paths to znodes, rules straight from wire 3.2 and P29-P32.
//! Shares no code with execution but the types that both speak of. For tests and the simulator: it is slow, keeps
//! everything in memory, and knows neither ClickHouse Keeper's operations nor the bounds on kept results in bytes.

use std::collections::BTreeMap;

use bytes::Bytes;
use corral_proto::{Acl, CreateMode, ErrorCode, EventKind, Id, Stat, perms};

use crate::tree::entry::{Command, Settings, Txn, Verdict};
use crate::tree::op::{Answer, Create, MultiOp, WriteOp};

/// What becomes of a znode by itself.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// It stays.
    Persistent,
    /// It goes with this session.
    Ephemeral(i64),
    /// It goes after its last child.
    Container,
    /// It goes when it was not changed for so many ms.
    Ttl(i64),
}

/// In place of a session that only its server knows.
const LOCAL: i64 = -1;

/// A znode. What is not explained is as in its stat.
#[derive(Clone, Debug)]
pub struct Node {
    pub data: Option<Bytes>,
    pub acl: Vec<Acl>,
    pub kind: Kind,
    pub czxid: i64,
    pub mzxid: i64,
    pub pzxid: i64,
    pub ctime: i64,
    pub mtime: i64,
    pub version: i32,
    pub aversion: i32,
    /// Children that were ever created.
    pub created: i64,
    /// Children that were ever deleted.
    pub deleted: i64,
    /// What the built-in znodes get wrong: their first children were never created.
    pub cversion_error: i64,
}

/// A session (P29, P31).
#[derive(Clone, Debug)]
pub struct Session {
    /// Zxid of its beginning.
    pub created_at: u64,
    /// Drawn for that.
    pub created_nonce: u64,
    /// Zxid of its current connection.
    pub attach: u64,
    /// Drawn for that.
    pub nonce: u64,
    /// Where that is.
    pub server: u64,
    /// Negotiated, ms.
    pub timeout_ms: i32,
    /// Whether results are kept.
    pub grpc: bool,
    /// Highest number executed.
    pub last_n: u64,
    /// Zxid and result of each number that the client has not seen answered.
    pub results: BTreeMap<u64, (u64, Result<Answer, ErrorCode>)>,
}

/// An event: kind, path, the znode's list, the parent's list (for creations and deletions).
pub type Event = (EventKind, String, Vec<Acl>, Option<Vec<Acl>>);

/// The whole replicated state.
#[derive(Clone, Debug)]
pub struct Model {
    /// By path.
    pub nodes: BTreeMap<String, Node>,
    /// By id.
    pub sessions: BTreeMap<i64, Session>,
    /// Of the servers' carriers: nonce, attach, last number.
    pub carriers: BTreeMap<u64, (u64, u64, u64)>,
    /// The replicated settings.
    pub settings: Settings,
    /// What the last transaction caused, in order.
    pub events: Vec<Event>,
    zxid: u64,
    stamp: i64,
}

fn parent_of(path: &str) -> String {
    let (parent, _) = path.rsplit_once('/').unwrap_or_default();
    if parent.is_empty() { "/".to_owned() } else { parent.to_owned() }
}

fn valid_path(path: &str) -> bool {
    let bad = |c: char| {
        let c = c as u32;
        c <= 0x1f || (0x7f..=0x9f).contains(&c) || (0xd800..=0xf8ff).contains(&c) || c >= 0xfff0
    };
    path == "/"
        || path.starts_with('/')
            && !path.ends_with('/')
            && !path.chars().any(bad)
            && path.split('/').skip(1).all(|name| !["", ".", ".."].contains(&name))
}

impl Default for Model {
    fn default() -> Model {
        Model::new()
    }
}

impl Model {
    /// The fresh tree.
    pub fn new() -> Model {
        let node = |acl: Vec<Acl>, aversion, cversion_error| Node {
            data: Some(Bytes::new()),
            acl,
            kind: Kind::Persistent,
            czxid: 0,
            mzxid: 0,
            pzxid: 0,
            ctime: 0,
            mtime: 0,
            version: 0,
            aversion,
            created: 0,
            deleted: 0,
            cversion_error,
        };
        let nodes = BTreeMap::from([
            ("/".to_owned(), node(Acl::open(), 0, -1)),
            ("/zookeeper".to_owned(), node(Acl::open(), 0, -2)),
            ("/zookeeper/quota".to_owned(), node(Acl::open(), 0, 0)),
            ("/zookeeper/config".to_owned(), node(Acl::read_only(), -1, 0)),
        ]);
        Model {
            nodes,
            sessions: BTreeMap::new(),
            carriers: BTreeMap::new(),
            settings: Settings::default(),
            events: vec![],
            zxid: 0,
            stamp: 0,
        }
    }

    /// Names of the children, ascending.
    pub fn children(&self, path: &str) -> Vec<String> {
        let below = if path == "/" { path.to_owned() } else { format!("{path}/") };
        let name = |other: &String| Some(other.strip_prefix(&below)?.to_owned());
        let names = self.nodes.range(below.clone()..).map_while(|(other, _)| name(other));
        names.filter(|name| !name.is_empty() && !name.contains('/')).collect()
    }

    /// The stat of a znode.
    ///
    /// # Panics
    /// If it is not there.
    pub fn stat(&self, path: &str) -> Stat {
        let node = &self.nodes[path];
        Stat {
            czxid: node.czxid,
            mzxid: node.mzxid,
            ctime: node.ctime,
            mtime: node.mtime,
            version: node.version,
            cversion: (node.created + node.deleted + node.cversion_error) as i32,
            aversion: node.aversion,
            ephemeral_owner: if let Kind::Ephemeral(owner) = node.kind { owner } else { 0 },
            data_length: node.data.as_ref().map_or(0, Bytes::len) as i32,
            num_children: self.children(path).len() as i32,
            pzxid: node.pzxid,
        }
    }

    /// Whether a list grants these permissions to somebody.
    pub fn allowed(&self, acl: &[Acl], bits: i32, ids: &[Id]) -> bool {
        let is_for = |line: &Acl, id: &Id| match line.id.scheme.as_str() {
            // The only networks that the tests use are 10.0.0.0/8 and single addresses.
            "ip" if line.id.id == "10.0.0.0/8" => id.scheme == "ip" && id.id.starts_with("10."),
            _ => line.id == *id,
        };
        self.settings.skip_acl
            || ids.iter().any(|id| id.scheme == "super")
            || acl.iter().any(|line| {
                line.perms & bits != 0 && (line.id.scheme == "world" || ids.iter().any(|id| is_for(line, id)))
            })
    }

    fn fix_acl(acl: &Option<Vec<Acl>>, ids: &[Id]) -> Result<Vec<Acl>, ErrorCode> {
        let mut fixed: Vec<Acl> = vec![];
        let mut seen: Vec<&Acl> = vec![];
        for line in acl.iter().flatten() {
            if seen.contains(&line) {
                continue;
            }
            seen.push(line);
            let lines: Vec<Acl> = match (line.id.scheme.as_str(), line.id.id.as_str()) {
                ("auth", _) => ids
                    .iter()
                    .filter(|id| ["digest", "sasl", "x509"].contains(&id.scheme.as_str()))
                    .map(|id| Acl { perms: line.perms, id: id.clone() })
                    .collect(),
                ("world", "anyone") | ("digest", "a:1") | ("ip", "10.0.0.0/8" | "10.0.0.1") => vec![line.clone()],
                _ => vec![],
            };
            if lines.is_empty() {
                return Err(ErrorCode::InvalidAcl);
            }
            fixed.extend(lines);
        }
        if fixed.is_empty() { Err(ErrorCode::InvalidAcl) } else { Ok(fixed) }
    }

    /// Executes a transaction under a zxid and the leader's clock.
    pub fn run(&mut self, txn: &Txn, zxid: u64, stamp: i64) -> Verdict {
        self.zxid = zxid;
        self.stamp = stamp;
        self.events.clear();
        let session = txn.session.0;
        match &txn.command {
            Command::Write(op) => {
                if session == 0 {
                    return Verdict::Executed(self.write(op, 0, &txn.ids));
                }
                if let Some(verdict) = self.not_next(txn) {
                    return verdict;
                }
                let result = self.write(op, session, &txn.ids);
                let row = self.sessions.get_mut(&session).expect("its turn was looked up in it");
                row.last_n = txn.n;
                if row.grpc {
                    row.results.retain(|n, _| *n > txn.answered_through);
                    row.results.insert(txn.n, (zxid, result.clone()));
                    while row.results.len() > 1024 {
                        row.results.pop_first();
                    }
                }
                Verdict::Executed(result)
            }
            Command::OpenCarrier { server, nonce } => {
                let carrier = self.carriers.entry(server.0).or_default();
                if carrier.1 == 0 || carrier.0 != *nonce {
                    *carrier = (*nonce, zxid, 0);
                }
                Verdict::Internal
            }
            Command::LocalWrite { op, carrier } => match self.carriers.get(&carrier.server.0).copied() {
                None => Verdict::Expired,
                Some((_, attach, _)) if attach != carrier.attach.0 => Verdict::Moved,
                Some((_, _, last_n)) if carrier.n > last_n + 1 => Verdict::OutOfOrder,
                Some((_, _, last_n)) if carrier.n <= last_n => {
                    Verdict::Repeated { zxid: corral_proto::Zxid::ZERO, result: None }
                }
                Some(_) => {
                    let result = match self.sessions.contains_key(&session) {
                        true => Err(ErrorCode::SessionMoved),
                        false => self.write(op, if session == 0 { 0 } else { LOCAL }, &txn.ids),
                    };
                    self.carriers.entry(carrier.server.0).or_default().2 += 1;
                    Verdict::Executed(result)
                }
            },
            Command::CreateSession { timeout_ms, server, nonce, keeps_results } => {
                if session <= 0 {
                    return Verdict::IdTaken;
                }
                if let Some(row) = self.sessions.get(&session) {
                    return if row.created_nonce != *nonce {
                        Verdict::IdTaken
                    } else if row.attach != row.created_at {
                        Verdict::Moved
                    } else {
                        Verdict::Attached { timeout_ms: row.timeout_ms, last_n: row.last_n }
                    };
                }
                let row = Session {
                    created_at: zxid,
                    created_nonce: *nonce,
                    attach: zxid,
                    nonce: *nonce,
                    server: server.0,
                    timeout_ms: *timeout_ms,
                    grpc: *keeps_results,
                    last_n: 0,
                    results: BTreeMap::new(),
                };
                self.sessions.insert(session, row);
                Verdict::Attached { timeout_ms: *timeout_ms, last_n: 0 }
            }
            Command::Attach { timeout_ms, server, nonce, keeps_results } => {
                let Some(row) = self.sessions.get_mut(&session) else { return Verdict::Expired };
                if row.grpc != *keeps_results {
                    return Verdict::Expired;
                }
                if row.nonce != *nonce || row.server != server.0 {
                    row.nonce = *nonce;
                    row.server = server.0;
                    row.timeout_ms = *timeout_ms;
                    row.attach = zxid;
                    if !row.grpc {
                        row.last_n = 0;
                    }
                }
                Verdict::Attached { timeout_ms: row.timeout_ms, last_n: row.last_n }
            }
            Command::CloseSession { expired: true } => {
                if self.sessions.get(&session).is_some_and(|row| row.attach == txn.attach.0) {
                    self.end(session);
                }
                Verdict::Internal
            }
            Command::CloseSession { expired: false } => {
                if self.sessions.contains_key(&session) {
                    if let Some(verdict) = self.not_next(txn) {
                        return verdict;
                    }
                    self.end(session);
                }
                Verdict::Executed(Ok(Answer::Done))
            }
            Command::Reap { path, czxid } => {
                if let Some(node) = self.nodes.get(path) {
                    let age = stamp - node.mtime;
                    let never = self.settings.container_never_used_ms;
                    let due = match node.kind {
                        Kind::Container => node.created > 0 || never > 0 && age > never,
                        Kind::Ttl(ttl) => age > ttl,
                        _ => false,
                    };
                    if due && node.czxid as u64 == czxid.0 && self.children(path).is_empty() {
                        self.remove(path);
                    }
                }
                Verdict::Internal
            }
            Command::Settings(settings) => {
                if settings.config_text != self.settings.config_text {
                    let mut text = settings.config_text.clone();
                    if !text.is_empty() {
                        text += &format!("\nversion={zxid:x}");
                    }
                    let node = self.nodes.get_mut("/zookeeper/config").expect("nobody can delete it");
                    let before = node.data.as_ref().map_or(0, Bytes::len);
                    let growth = text.len() as i64 - before as i64;
                    node.data = Some(Bytes::from(text));
                    node.version = -1;
                    node.mzxid = zxid as i64;
                    node.mtime = stamp;
                    let acl = node.acl.clone();
                    self.events.push((EventKind::NodeDataChanged, "/zookeeper/config".to_owned(), acl, None));
                    self.charge("/zookeeper/config", 0, growth);
                }
                self.settings = settings.clone();
                Verdict::Internal
            }
        }
    }

    /// Why it must not run; `None` if it is the next.
    fn not_next(&self, txn: &Txn) -> Option<Verdict> {
        let Some(row) = self.sessions.get(&txn.session.0) else { return Some(Verdict::Expired) };
        if row.attach != txn.attach.0 {
            return Some(Verdict::Moved);
        }
        if txn.n > row.last_n + 1 {
            return Some(Verdict::OutOfOrder);
        }
        if txn.n < row.last_n + 1 {
            return Some(match row.results.get(&txn.n) {
                Some((zxid, result)) => {
                    Verdict::Repeated { zxid: corral_proto::Zxid(*zxid), result: Some(result.clone()) }
                }
                None => Verdict::Repeated { zxid: corral_proto::Zxid::ZERO, result: None },
            });
        }
        None
    }

    /// The deepest path at or above this one that has a quota.
    fn quota(&self, path: &str) -> Option<String> {
        let root = |node: &String| {
            let root = node.strip_prefix("/zookeeper/quota")?.strip_suffix("/zookeeper_limits")?.to_owned();
            root.starts_with('/').then_some(root)
        };
        let above = |root: &String| *root == path || path.starts_with(&format!("{root}/"));
        self.nodes.keys().filter_map(root).filter(above).max_by_key(String::len)
    }

    /// What a quota's znode says: count, bytes, and the hard limits of both; -1 for nothing.
    fn numbers(&self, root: &str, leaf: &str) -> Option<[i64; 4]> {
        let data = self.nodes.get(&format!("/zookeeper/quota{root}/{leaf}"))?.data.clone().unwrap_or_default();
        let mut numbers = [-1; 4];
        if data.len() <= 1024
            && let Ok(text) = str::from_utf8(&data)
        {
            for pair in text.replace(';', ",").split(',') {
                let pair: Vec<&str> = pair.split('=').collect();
                let names = ["count", "bytes", "countHardLimit", "byteHardLimit"];
                if let (Some(index), Some(number)) = (names.iter().position(|name| *name == pair[0]), pair.get(1)) {
                    numbers[index] = number.parse().unwrap_or(-1);
                }
            }
        }
        Some(numbers)
    }

    fn set_usage(&mut self, root: &str, numbers: [i64; 4]) {
        let [count, bytes, count_hard, bytes_hard] = numbers;
        let mut text = format!("count={count},bytes={bytes}");
        match (bytes_hard, count_hard) {
            (-1, -1) => {}
            (-1, hard) => text += &format!("=;countHardLimit={hard}"),
            (hard, -1) => text += &format!("=;byteHardLimit={hard}"),
            (bytes, count) => text += &format!("=;byteHardLimit={bytes};countHardLimit={count}"),
        }
        let stats = format!("/zookeeper/quota{root}/zookeeper_stats");
        let node = self.nodes.get_mut(&stats).expect("the caller found or made it");
        node.data = Some(Bytes::from(text));
    }

    fn charge(&mut self, path: &str, count: i64, bytes: i64) {
        if let Some(root) = self.quota(path)
            && let Some(mut usage) = self.numbers(&root, "zookeeper_stats")
        {
            usage[0] += count;
            usage[1] += bytes;
            self.set_usage(&root, usage);
        }
    }

    fn has_room(&self, path: &str, count: i64, bytes: i64) -> Result<(), ErrorCode> {
        if self.settings.enforce_quota
            && let Some(root) = self.quota(path)
            && let Some(limits) = self.numbers(&root, "zookeeper_limits")
            && let Some(usage) = self.numbers(&root, "zookeeper_stats")
        {
            let over = |change: i64, used: i64, hard: i64| change != 0 && hard > -1 && used + change > hard;
            if over(count, usage[0], limits[2]) || over(bytes, usage[1], limits[3]) {
                return Err(ErrorCode::QuotaExceeded);
            }
        }
        Ok(())
    }

    fn end(&mut self, session: i64) {
        let owned = |(_, node): &(&String, &Node)| node.kind == Kind::Ephemeral(session);
        let paths: Vec<String> = self.nodes.iter().filter(owned).map(|(path, _)| path.clone()).collect();
        for path in paths {
            self.remove(&path);
        }
        self.sessions.remove(&session);
    }

    fn remove(&mut self, path: &str) {
        let gone = self.nodes.remove(path).expect("the caller found it");
        let parent = self.nodes.get_mut(&parent_of(path)).expect("a znode has a parent");
        parent.deleted += 1;
        parent.pzxid = self.zxid as i64;
        let parent_acl = Some(parent.acl.clone());
        self.charge(path, -1, -(gone.data.map_or(0, |data| data.len()) as i64));
        self.events.push((EventKind::NodeDeleted, path.to_owned(), gone.acl, parent_acl));
    }

    fn write(&mut self, op: &WriteOp, session: i64, ids: &[Id]) -> Result<Answer, ErrorCode> {
        match op {
            WriteOp::Create(op) => self.create(op, session, ids),
            WriteOp::Delete { path, version } => self.delete(path, *version, ids),
            WriteOp::SetData { path, data, version } => self.set(path, data.clone(), *version, ids),
            WriteOp::SetAcl { path, acl, version } => {
                if !valid_path(path) {
                    return Err(ErrorCode::BadArguments);
                }
                let acl = Model::fix_acl(acl, ids)?;
                let node = self.nodes.get(path).ok_or(ErrorCode::NoNode)?;
                if !self.allowed(&node.acl, perms::ADMIN, ids) {
                    return Err(ErrorCode::NoAuth);
                }
                if *version != -1 && *version != node.aversion {
                    return Err(ErrorCode::BadVersion);
                }
                let node = self.nodes.get_mut(path).expect("found above");
                node.acl = acl;
                node.aversion += 1;
                Ok(Answer::Stat(self.stat(path)))
            }
            // Off in the settings that the stories draw.
            WriteOp::CreateIfNotExists(_) | WriteOp::RemoveRecursive { .. } => Err(ErrorCode::Unimplemented),
            WriteOp::Multi(ops) if ops.iter().any(MultiOp::is_extension) => Err(ErrorCode::MarshallingError),
            WriteOp::Multi(ops) => {
                let (nodes, events) = (self.nodes.clone(), self.events.len());
                let mut answers = vec![];
                for (failed, op) in ops.iter().enumerate() {
                    let result = match op {
                        MultiOp::Create(op) => self.create(op, session, ids),
                        MultiOp::Delete { path, version } => self.delete(path, *version, ids),
                        MultiOp::SetData { path, data, version } => self.set(path, data.clone(), *version, ids),
                        MultiOp::Check { path, version } => self.check(path, *version, ids),
                        _ => unreachable!("refused above"),
                    };
                    match result {
                        Ok(answer) => answers.push(answer),
                        Err(error) => {
                            self.nodes = nodes;
                            self.events.truncate(events);
                            return Ok(Answer::MultiFailed { ops: ops.len(), failed, error });
                        }
                    }
                }
                Ok(Answer::Multi(answers))
            }
        }
    }

    fn create(&mut self, op: &Create, session: i64, ids: &[Id]) -> Result<Answer, ErrorCode> {
        if op.mode.is_ttl() && !self.settings.extended_types {
            return Err(ErrorCode::Unimplemented);
        }
        if op.mode.is_ttl() && (op.ttl_ms < 1 || op.ttl_ms > 0xff_ffff_ffff) {
            return Err(ErrorCode::BadArguments);
        }
        if op.mode.is_ephemeral() && session == 0 {
            return Err(ErrorCode::SessionExpired);
        }
        if op.mode.is_ephemeral() && session == LOCAL {
            return Err(ErrorCode::EphemeralOnLocalSession);
        }
        if !op.path.contains('/') || op.path.contains('\0') {
            return Err(ErrorCode::BadArguments);
        }
        let acl = Model::fix_acl(&op.acl, ids)?;
        let parent_path = parent_of(&op.path);
        let parent = self.nodes.get(&parent_path).ok_or(ErrorCode::NoNode)?;
        if !self.allowed(&parent.acl, perms::CREATE, ids) {
            return Err(ErrorCode::NoAuth);
        }
        let mut path = op.path.clone();
        if op.mode.is_sequential() {
            path += &format!("{:010}", parent.created);
        }
        if !valid_path(&path) {
            return Err(ErrorCode::BadArguments);
        }
        if self.nodes.contains_key(&path) {
            return Err(ErrorCode::NodeExists);
        }
        if matches!(parent.kind, Kind::Ephemeral(_)) {
            return Err(ErrorCode::NoChildrenForEphemerals);
        }
        let bytes = op.data.as_ref().map_or(0, |data| data.len()) as i64;
        self.has_room(&path, 1, bytes)?;
        let owned = self.nodes.values().filter(|node| node.kind == Kind::Ephemeral(session)).count();
        if op.mode.is_ephemeral() && owned >= self.settings.ephemerals_per_session as usize {
            return Err(ErrorCode::QuotaExceeded);
        }
        let parent = self.nodes.get_mut(&parent_path).expect("found above");
        parent.created += 1;
        parent.pzxid = self.zxid as i64;
        let parent_acl = Some(parent.acl.clone());
        let zxid = self.zxid as i64;
        let node = Node {
            data: op.data.clone(),
            acl: acl.clone(),
            kind: match op.mode {
                mode if mode.is_ephemeral() => Kind::Ephemeral(session),
                mode if mode.is_ttl() => Kind::Ttl(op.ttl_ms),
                CreateMode::Container => Kind::Container,
                _ => Kind::Persistent,
            },
            czxid: zxid,
            mzxid: zxid,
            pzxid: zxid,
            ctime: self.stamp,
            mtime: self.stamp,
            version: 0,
            aversion: 0,
            created: 0,
            deleted: 0,
            cversion_error: 0,
        };
        self.nodes.insert(path.clone(), node);
        if let Some(root) = path.strip_prefix("/zookeeper/quota").and_then(|p| p.strip_suffix("/zookeeper_stats"))
            && root.starts_with('/')
        {
            let covered = |other: &&String| *other == root || other.starts_with(&format!("{root}/"));
            let nodes: Vec<&Node> = self.nodes.iter().filter(|(path, _)| covered(path)).map(|(_, node)| node).collect();
            let bytes = nodes.iter().map(|node| node.data.as_ref().map_or(0, Bytes::len)).sum::<usize>();
            self.set_usage(root, [nodes.len() as i64, bytes as i64, -1, -1]);
        }
        let stat = self.stat(&path);
        self.charge(&path, 1, bytes);
        self.events.push((EventKind::NodeCreated, path.clone(), acl, parent_acl));
        Ok(Answer::Created { stat: Stat { data_length: bytes as i32, ..stat }, path })
    }

    fn delete(&mut self, path: &str, version: i32, ids: &[Id]) -> Result<Answer, ErrorCode> {
        if !path.contains('/') || path.contains('\0') {
            return Err(ErrorCode::BadArguments);
        }
        if ["/", "/zookeeper", "/zookeeper/quota", "/zookeeper/config"].contains(&path) {
            return Err(ErrorCode::BadArguments);
        }
        let parent = self.nodes.get(&parent_of(path)).ok_or(ErrorCode::NoNode)?;
        if !self.allowed(&parent.acl, perms::DELETE, ids) {
            return Err(ErrorCode::NoAuth);
        }
        let node = self.nodes.get(path).ok_or(ErrorCode::NoNode)?;
        if version != -1 && version != node.version {
            return Err(ErrorCode::BadVersion);
        }
        if !self.children(path).is_empty() {
            return Err(ErrorCode::NotEmpty);
        }
        self.remove(path);
        Ok(Answer::Done)
    }

    fn check(&mut self, path: &str, version: i32, ids: &[Id]) -> Result<Answer, ErrorCode> {
        self.at_version(path, version, perms::READ, ids)?;
        Ok(Answer::Done)
    }

    fn at_version(&mut self, path: &str, version: i32, bits: i32, ids: &[Id]) -> Result<(), ErrorCode> {
        if !valid_path(path) {
            return Err(ErrorCode::BadArguments);
        }
        let node = self.nodes.get(path).ok_or(ErrorCode::NoNode)?;
        if !self.allowed(&node.acl, bits, ids) {
            return Err(ErrorCode::NoAuth);
        }
        if version != -1 && version != node.version { Err(ErrorCode::BadVersion) } else { Ok(()) }
    }

    fn set(&mut self, path: &str, data: Option<Bytes>, version: i32, ids: &[Id]) -> Result<Answer, ErrorCode> {
        // Everything but the version goes before the quota.
        self.at_version(path, -1, perms::WRITE, ids)?;
        let len = |data: &Option<Bytes>| data.as_ref().map_or(0, Bytes::len) as i64;
        let growth = len(&data) - len(&self.nodes[path].data);
        self.has_room(path, 0, growth)?;
        self.at_version(path, version, perms::WRITE, ids)?;
        let node = self.nodes.get_mut(path).expect("found above");
        node.data = data;
        node.version += 1;
        node.mzxid = self.zxid as i64;
        node.mtime = self.stamp;
        let acl = node.acl.clone();
        self.events.push((EventKind::NodeDataChanged, path.to_owned(), acl, None));
        let stat = self.stat(path);
        self.charge(path, 0, growth);
        Ok(Answer::Stat(stat))
    }
}
