//! A server of one in memory that speaks the client protocol and cuts connections where it is told to. It checks what a
//! client may not do, and remembers what it executed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use corral_proto::pb::client as pb;
use corral_proto::pb::client::corral_server::{Corral, CorralServer};
use corral_proto::{CreateMode, ErrorCode, EventKind, path};
use parking_lot::Mutex;
use pb::answer::Body;
use pb::request::Op;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

type Outbound = mpsc::UnboundedSender<Result<pb::ServerMessage, Status>>;

/// Where connections are cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cut {
    #[default]
    Never,
    /// At every k-th step; each request has two: before it is executed, and before its answer is sent.
    EveryStep(u64),
}

#[derive(Default)]
struct Row {
    last_n: u64,
    results: BTreeMap<u64, pb::Answer>,
    connection: u64,
}

#[derive(Clone, Default)]
struct Node {
    data: Option<bytes::Bytes>,
    acl: Vec<pb::Acl>,
    stat: pb::Stat,
    children_made: i32,
}

/// One connection's watches.
#[derive(Default)]
struct Watches {
    data: BTreeSet<String>,
    child: BTreeSet<String>,
    feeds: BTreeMap<u64, pb::Subscribe>,
}

struct Connection {
    session: i64,
    out: Outbound,
    watches: Watches,
}

#[derive(Default)]
pub struct State {
    zxid: u64,
    tree: BTreeMap<String, Node>,
    sessions: BTreeMap<i64, Row>,
    connections: BTreeMap<u64, Connection>,
    last_session: i64,
    last_connection: u64,
    steps: u64,
    pub cut: Cut,
    /// At every k-th step (0: never) the session of the request ends, as if its client had slept too long: the request is
    /// not executed, or executed and never answered.
    pub expire_every: u64,
    /// Answers nothing, and goes on reading.
    pub mute: bool,
    /// So many reads of the data of what is at or below this path are refused with this code.
    pub refuse_reads: Option<(String, ErrorCode, u32)>,
    /// Refuses connects.
    pub refuse: Option<pb::closed::Reason>,
    pub timeout_ms: u32,
    /// The server's clock, which stands unless a test moves it: `ctime` and `mtime` of what is written.
    pub time_ms: i64,
    /// Containers: the reaper takes them when they are empty.
    pub containers: BTreeSet<String>,
    /// The time to live of each znode that was created with one, ms.
    pub ttls_ms: BTreeMap<String, i64>,
    /// The next multi that creates in a container which is empty comes just after that was reaped.
    pub reaps_before_write: bool,
    /// Events of a multi that is under way.
    deferred: Option<Vec<(EventKind, String)>>,
    /// Every write that was executed: `n op path`.
    pub executed: Vec<String>,
    /// What a correct client never does.
    pub violations: Vec<String>,
    pub connects: u64,
    pub set_watches: u64,
    /// Every change, by zxid, in order.
    history: Vec<(u64, EventKind, String)>,
    /// Changes up to here are not remembered.
    floor: u64,
    /// Znodes whose data was sent in pages of subtrees.
    znodes_sent: u64,
    /// Of the history, so much was told to those who follow it.
    told: usize,
}

#[derive(Clone)]
pub struct Server {
    pub state: Arc<Mutex<State>>,
    pub address: String,
}

#[derive(Clone)]
struct Service(Arc<Mutex<State>>);

impl Server {
    /// Listens on a free port of the loopback interface.
    pub async fn start() -> Server {
        let state = State { timeout_ms: 10_000, time_ms: 1_000_000, ..State::default() };
        let state = Arc::new(Mutex::new(state));
        state.lock().tree.insert("/".to_owned(), Node::default());
        Server { address: listen(&state).await, state }
    }

    /// Another address of the same server.
    pub async fn listen_again(&self) -> String {
        listen(&self.state).await
    }

    /// Somebody else sets data, and creates the znode if it is missing.
    pub fn set(&self, path: &str, data: &str) {
        let mut state = self.state.lock();
        let data = Some(pb::Data { bytes: data.to_owned().into() });
        state.zxid += 1;
        if state.tree.contains_key(path) {
            state.set_data(path, data, -1).unwrap();
        } else {
            state.create(0, pb::Create { path: path.to_owned(), data, ..pb::Create::default() }).unwrap();
        }
        state.tell();
    }

    /// Somebody else deletes a znode.
    pub fn delete(&self, path: &str) {
        let mut state = self.state.lock();
        state.zxid += 1;
        state.delete(path, -1).unwrap();
        state.tell();
    }

    /// Ends every connection, and lets no client back until `meanwhile` has happened.
    #[allow(dead_code, reason = "not every test program that shares this server uses it")]
    pub fn away(&self, meanwhile: impl FnOnce()) {
        self.state.lock().refuse = Some(pb::closed::Reason::NoQuorum);
        self.cut_all();
        meanwhile();
        self.state.lock().refuse = None;
    }

    #[allow(dead_code, reason = "not every test program that shares this server uses it")]
    pub fn zxid(&self) -> u64 {
        self.state.lock().zxid
    }

    #[allow(dead_code, reason = "not every test program that shares this server uses it")]
    pub fn znodes_sent(&self) -> u64 {
        self.state.lock().znodes_sent
    }

    #[allow(dead_code, reason = "not every test program that shares this server uses it")]
    pub fn violations(&self) -> usize {
        self.state.lock().violations.len()
    }

    /// Forgets what happened up to now.
    #[allow(dead_code, reason = "not every test program that shares this server uses it")]
    pub fn forget_history(&self) {
        let mut state = self.state.lock();
        state.floor = state.zxid;
    }

    /// Cuts every connection now.
    pub fn cut_all(&self) {
        self.state.lock().connections.clear();
    }

    /// Ends every session, as the leader does.
    pub fn expire_all(&self) {
        let mut state = self.state.lock();
        state.sessions.clear();
        state.connections.clear();
    }

    /// Ends one session, as the leader does: its ephemerals go under one zxid.
    #[allow(dead_code, reason = "not every test program that shares this server uses it")]
    pub fn expire(&self, session: i64) {
        let mut state = self.state.lock();
        state.zxid += 1;
        state.write(session, 0, Op::CloseSession(pb::CloseSession {})).unwrap();
        state.tell();
        state.connections.retain(|_, connection| connection.session != session);
    }

    /// Moves the server's clock on.
    #[allow(dead_code, reason = "not every test program that shares this server uses it")]
    pub fn advance(&self, ms: i64) {
        self.state.lock().time_ms += ms;
    }

    /// What is at a path.
    #[allow(dead_code, reason = "not every test program that shares this server uses it")]
    pub fn data(&self, path: &str) -> Option<bytes::Bytes> {
        self.state.lock().tree.get(path).and_then(|node| node.data.clone())
    }

    /// The names below a path, ascending.
    #[allow(dead_code, reason = "not every test program that shares this server uses it")]
    pub fn children(&self, path: &str) -> Vec<String> {
        self.state.lock().children(path)
    }

    pub fn sessions(&self) -> usize {
        self.state.lock().sessions.len()
    }

    pub fn exists(&self, path: &str) -> bool {
        self.state.lock().tree.contains_key(path)
    }

    pub fn watches(&self) -> usize {
        let state = self.state.lock();
        let of = |watches: &Watches| watches.data.len() + watches.child.len() + watches.feeds.len();
        state.connections.values().map(|connection| of(&connection.watches)).sum()
    }
}

async fn listen(state: &Arc<Mutex<State>>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = TcpListenerStream::new(listener).map(|socket| {
        let socket = socket?;
        socket.set_nodelay(true)?;
        Ok::<_, std::io::Error>(socket)
    });
    let service = CorralServer::new(Service(state.clone()));
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    address
}

#[tonic::async_trait]
impl Corral for Service {
    type SessionStream = UnboundedReceiverStream<Result<pb::ServerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::ClientMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (out, replies) = mpsc::unbounded_channel();
        tokio::spawn(connection(self.0.clone(), request.into_inner(), out));
        Ok(Response::new(UnboundedReceiverStream::new(replies)))
    }
}

fn send(out: &Outbound, message: pb::server_message::Message) {
    let _ = out.send(Ok(pb::ServerMessage { message: Some(message) }));
}

fn close(out: &Outbound, reason: pb::closed::Reason) {
    send(out, pb::server_message::Message::Closed(pb::Closed { reason: reason.into(), text: String::new() }));
}

async fn connection(state: Arc<Mutex<State>>, mut inbound: Streaming<pb::ClientMessage>, out: Outbound) {
    // A stream may break before its first message; what it brings first must be Connect.
    let Ok(Some(first)) = inbound.message().await else { return };
    let Some(pb::client_message::Message::Connect(connect)) = first.message else {
        return state.lock().violations.push("the first message was not Connect".to_owned());
    };
    let number = {
        let mut state = state.lock();
        match state.connect(connect, out) {
            Some(number) => number,
            None => return,
        }
    };
    // Ends when the client goes, or when the connection was cut from here.
    while let Ok(Some(message)) = inbound.message().await {
        let Some(pb::client_message::Message::Requests(batch)) = message.message else {
            return state.lock().violations.push("a second Connect".to_owned());
        };
        let mut state = state.lock();
        for request in batch.requests {
            if !state.connections.contains_key(&number) || !state.serve(number, request) {
                state.connections.remove(&number);
                return;
            }
        }
    }
    state.lock().connections.remove(&number);
}

impl State {
    fn connect(&mut self, connect: pb::Connect, out: Outbound) -> Option<u64> {
        self.connects += 1;
        if let Some(reason) = self.refuse {
            close(&out, reason);
            return None;
        }
        if connect.last_zxid_seen > self.zxid {
            self.violations
                .push(format!("the client saw {:#x}, and there is only {:#x}", connect.last_zxid_seen, self.zxid));
        }
        self.zxid += 1;
        let session = if connect.session == 0 {
            self.last_session += 1;
            self.sessions.insert(self.last_session, Row::default());
            self.last_session
        } else {
            connect.session
        };
        self.last_connection += 1;
        let number = self.last_connection;
        let Some(row) = self.sessions.get_mut(&session) else {
            close(&out, pb::closed::Reason::SessionExpired);
            return None;
        };
        if let Some(old) = self.connections.remove(&row.connection) {
            close(&old.out, pb::closed::Reason::SessionMoved);
        }
        row.connection = number;
        let connected = pb::Connected {
            session,
            password: vec![1; 16].into(),
            timeout_ms: self.timeout_ms,
            server: 1,
            zxid: self.zxid,
            last_n: row.last_n,
            request_bytes_max: 1 << 20,
        };
        send(&out, pb::server_message::Message::Connected(connected));
        self.connections.insert(number, Connection { session, out, watches: Watches::default() });
        Some(number)
    }

    /// Whether the connection is cut at this step.
    fn is_cut(&mut self) -> bool {
        self.steps += 1;
        matches!(self.cut, Cut::EveryStep(k) if self.steps.is_multiple_of(k))
    }

    /// Whether the session ended at this step; then it is gone, with its ephemerals.
    fn is_expired(&mut self, session: i64) -> bool {
        let ends = self.expire_every > 0 && self.steps.is_multiple_of(self.expire_every);
        if ends && self.sessions.contains_key(&session) {
            self.zxid += 1;
            self.write(session, 0, Op::CloseSession(pb::CloseSession {})).unwrap();
        }
        ends
    }

    /// Executes and answers one request; `false`: the connection is over.
    fn serve(&mut self, number: u64, request: pb::Request) -> bool {
        let session = self.connections[&number].session;
        if self.is_cut() || self.is_expired(session) {
            return false;
        }
        let pb::Request { id, n, answered_through, op, .. } = request;
        let op = op.unwrap();
        let is_close = matches!(op, Op::CloseSession(_));
        let begins = match &op {
            Op::Subscribe(op) => Some(op.clone()),
            _ => None,
        };
        let answer = if n == 0 {
            let result = self.read(number, op);
            self.answer(id, result)
        } else {
            let Some(row) = self.sessions.get_mut(&session) else { return false };
            row.results.retain(|n, _| *n > answered_through);
            if n > row.last_n + 1 {
                self.violations.push(format!("write {n} came after write {}", row.last_n));
                return false;
            }
            if n <= row.last_n {
                match row.results.get(&n) {
                    Some(kept) => pb::Answer { id, ..kept.clone() },
                    None => {
                        self.violations.push(format!("write {n} came again after it was answered"));
                        return false;
                    }
                }
            } else {
                row.last_n = n;
                self.zxid += 1;
                let result = self.write(session, n, op);
                self.tell();
                let answer = self.answer(id, result);
                if let Some(row) = self.sessions.get_mut(&session) {
                    row.results.insert(n, answer.clone());
                }
                answer
            }
        };
        if self.is_cut() || self.is_expired(session) {
            return false;
        }
        if self.mute {
            return true;
        }
        let auth_failed = answer.error == ErrorCode::AuthFailed.code();
        let out = self.connections[&number].out.clone();
        let reply = pb::Reply { kind: Some(pb::reply::Kind::Answer(answer)) };
        send(&out, pb::server_message::Message::Replies(pb::ReplyBatch { replies: vec![reply] }));
        if let Some(subscribe) = begins {
            self.catch_up(number, &subscribe);
        }
        if auth_failed {
            close(&out, pb::closed::Reason::AuthFailed);
        }
        if is_close {
            close(&out, pb::closed::Reason::ClosedByClient);
        }
        !auth_failed && !is_close
    }

    fn answer(&self, id: u64, result: Result<Body, ErrorCode>) -> pb::Answer {
        match result {
            Ok(body) => pb::Answer { id, zxid: self.zxid, error: 0, body: Some(body) },
            Err(code) => pb::Answer { id, zxid: self.zxid, error: code.code(), body: None },
        }
    }

    fn write(&mut self, session: i64, n: u64, op: Op) -> Result<Body, ErrorCode> {
        match op {
            Op::Create(op) => {
                self.executed.push(format!("{n} create {}", op.path));
                self.create(session, op).map(Body::Created)
            }
            Op::SetData(op) => {
                self.executed.push(format!("{n} set {}", op.path));
                self.set_data(&op.path, op.data, op.version).map(|stat| Body::Stat(pb::StatBody { stat: Some(stat) }))
            }
            Op::Delete(op) => {
                self.executed.push(format!("{n} delete {}", op.path));
                self.delete(&op.path, op.version).map(|()| Body::Empty(pb::Empty {}))
            }
            Op::SetAcl(op) => {
                self.executed.push(format!("{n} set acl {}", op.path));
                let node = self.tree.get_mut(&op.path).ok_or(ErrorCode::NoNode)?;
                node.acl = op.acl;
                node.stat.aversion += 1;
                Ok(Body::Stat(pb::StatBody { stat: Some(node.stat) }))
            }
            Op::Multi(multi) => {
                self.executed.push(format!("{n} multi {}", multi.ops.len()));
                Ok(Body::Multi(self.multi(session, multi)))
            }
            Op::CloseSession(_) => {
                self.sessions.remove(&session);
                let owned =
                    |(path, node): (&String, &Node)| (node.stat.ephemeral_owner == session).then(|| path.clone());
                let ephemerals: Vec<String> = self.tree.iter().filter_map(owned).collect();
                for path in ephemerals {
                    self.delete(&path, -1)?;
                }
                Ok(Body::Empty(pb::Empty {}))
            }
            _ => Err(ErrorCode::Unimplemented),
        }
    }

    /// All or nothing: what the operations before a refused one did is undone, and no watch sees it.
    fn multi(&mut self, session: i64, multi: pb::Multi) -> pb::MultiBody {
        use pb::multi_op::Op;
        use pb::multi_result::Body;
        if self.reaps_before_write {
            let into = |op: &pb::MultiOp| match &op.op {
                Some(Op::Create(create)) => path::parent(&create.path).map(str::to_owned),
                _ => None,
            };
            let is_empty = |at: &String| self.tree.get(at).is_some_and(|node| node.stat.num_children == 0);
            let mut directories = multi.ops.iter().filter_map(into);
            if let Some(empty) = directories.find(|at| self.containers.contains(at) && is_empty(at)) {
                self.reaps_before_write = false;
                self.delete(&empty, -1).unwrap();
            }
        }
        let before = self.tree.clone();
        self.deferred = Some(Vec::new());
        let ops = multi.ops.len();
        let mut results = Vec::with_capacity(ops);
        let mut failed = None;
        for (at, op) in multi.ops.into_iter().enumerate() {
            let done = match op.op.unwrap() {
                Op::Create(op) => self.create(session, op).map(Body::Created),
                Op::SetData(op) => self
                    .set_data(&op.path, op.data, op.version)
                    .map(|stat| Body::Stat(pb::StatBody { stat: Some(stat) })),
                Op::Delete(op) => self.delete(&op.path, op.version).map(|()| Body::Empty(pb::Empty {})),
                Op::Check(op) => match self.tree.get(&op.path) {
                    None => Err(ErrorCode::NoNode),
                    Some(node) if op.version >= 0 && node.stat.version != op.version => Err(ErrorCode::BadVersion),
                    Some(_) => Ok(Body::Empty(pb::Empty {})),
                },
            };
            match done {
                Ok(body) => results.push(pb::MultiResult { error: 0, body: Some(body) }),
                Err(code) => {
                    failed = Some((at, code));
                    break;
                }
            }
        }
        let events = self.deferred.take().unwrap();
        let Some((failed, code)) = failed else {
            for (kind, path) in events {
                self.fire(kind, &path);
            }
            return pb::MultiBody { results };
        };
        self.tree = before;
        let error = |at: usize| match at.cmp(&failed) {
            std::cmp::Ordering::Less => 0,
            std::cmp::Ordering::Equal => code.code(),
            std::cmp::Ordering::Greater => ErrorCode::RuntimeInconsistency.code(),
        };
        pb::MultiBody { results: (0..ops).map(|at| pb::MultiResult { error: error(at), body: None }).collect() }
    }

    fn create(&mut self, session: i64, op: pb::Create) -> Result<pb::Created, ErrorCode> {
        let mode = CreateMode::from_flags(op.mode).unwrap();
        let parent = path::parent(&op.path).unwrap().to_owned();
        let zxid = self.zxid;
        let above = self.tree.get_mut(&parent).ok_or(ErrorCode::NoNode)?;
        let mut at = op.path;
        if mode.is_sequential() {
            at = format!("{at}{:010}", above.children_made);
        }
        if self.tree.contains_key(&at) {
            return Err(ErrorCode::NodeExists);
        }
        let above = self.tree.get_mut(&parent).unwrap();
        above.children_made += 1;
        above.stat.pzxid = zxid;
        above.stat.cversion += 1;
        above.stat.num_children += 1;
        let owner = if mode.is_ephemeral() { session } else { 0 };
        if mode == CreateMode::Container {
            self.containers.insert(at.clone());
        }
        if op.ttl_ms > 0 {
            self.ttls_ms.insert(at.clone(), op.ttl_ms);
        }
        let stat = pb::Stat {
            czxid: zxid,
            mzxid: zxid,
            pzxid: zxid,
            ctime: self.time_ms,
            mtime: self.time_ms,
            ephemeral_owner: owner,
            data_length: op.data.as_ref().map_or(0, |data| data.bytes.len() as i32),
            ..pb::Stat::default()
        };
        let data = op.data.map(|data| data.bytes);
        self.tree.insert(at.clone(), Node { data, acl: op.acl, stat, children_made: 0 });
        self.fire(EventKind::NodeCreated, &at);
        self.fire(EventKind::NodeChildrenChanged, &parent);
        Ok(pb::Created { path: at, stat: Some(stat) })
    }

    fn set_data(&mut self, path: &str, data: Option<pb::Data>, version: i32) -> Result<pb::Stat, ErrorCode> {
        let (zxid, time_ms) = (self.zxid, self.time_ms);
        let node = self.tree.get_mut(path).ok_or(ErrorCode::NoNode)?;
        if version >= 0 && node.stat.version != version {
            return Err(ErrorCode::BadVersion);
        }
        node.data = data.map(|data| data.bytes);
        node.stat.version += 1;
        node.stat.mzxid = zxid;
        node.stat.mtime = time_ms;
        node.stat.data_length = node.data.as_ref().map_or(0, |data| data.len() as i32);
        let stat = node.stat;
        self.fire(EventKind::NodeDataChanged, path);
        Ok(stat)
    }

    fn delete(&mut self, path: &str, version: i32) -> Result<(), ErrorCode> {
        let node = self.tree.get(path).ok_or(ErrorCode::NoNode)?;
        if version >= 0 && node.stat.version != version {
            return Err(ErrorCode::BadVersion);
        }
        if node.stat.num_children > 0 {
            return Err(ErrorCode::NotEmpty);
        }
        self.tree.remove(path);
        let parent = path::parent(path).unwrap().to_owned();
        let above = self.tree.get_mut(&parent).unwrap();
        above.stat.pzxid = self.zxid;
        above.stat.cversion += 1;
        above.stat.num_children -= 1;
        self.fire(EventKind::NodeDeleted, path);
        self.fire(EventKind::NodeChildrenChanged, &parent);
        Ok(())
    }

    fn children(&self, path: &str) -> Vec<String> {
        let is_child = |at: &&String| path::parent(at) == Some(path);
        self.tree.keys().filter(is_child).map(|at| path::name(at).to_owned()).collect()
    }

    fn read(&mut self, number: u64, op: Op) -> Result<Body, ErrorCode> {
        let done = Ok(Body::Empty(pb::Empty {}));
        let node = |state: &State, path: &str| state.tree.get(path).cloned().ok_or(ErrorCode::NoNode);
        let session = self.connections[&number].session;
        match op {
            Op::Exists(op) => {
                let found = node(self, &op.path);
                if op.watch {
                    self.watches(number).data.insert(op.path);
                }
                found.map(|node| Body::Stat(pb::StatBody { stat: Some(node.stat) }))
            }
            Op::GetData(op) => {
                if let Some((above, code, left)) = &mut self.refuse_reads
                    && *left > 0
                    && op.path.starts_with(above.as_str())
                {
                    *left -= 1;
                    return Err(*code);
                }
                let Node { data, stat, .. } = node(self, &op.path)?;
                if op.watch {
                    self.watches(number).data.insert(op.path);
                }
                Ok(Body::Data(pb::DataBody { data: data.map(|bytes| pb::Data { bytes }), stat: Some(stat) }))
            }
            Op::GetChildren(op) => {
                let stat = node(self, &op.path)?.stat;
                let children = self.children(&op.path);
                if op.watch {
                    self.watches(number).child.insert(op.path);
                }
                Ok(Body::Children(pb::ChildrenBody { children, stat: Some(stat) }))
            }
            Op::MultiRead(op) => {
                use pb::multi_read_op::Op as Read;
                let results = op.ops.into_iter().map(|op| {
                    use pb::multi_result::Body;
                    let body = match op.op.unwrap() {
                        Read::GetData(op) => node(self, &op.path).map(|Node { data, stat, .. }| {
                            let data = data.map(|bytes| pb::Data { bytes });
                            Body::Data(pb::DataBody { data, stat: Some(stat) })
                        }),
                        Read::GetChildren(op) => node(self, &op.path).map(|_| {
                            Body::Children(pb::ChildrenBody { children: self.children(&op.path), stat: None })
                        }),
                    };
                    match body {
                        Ok(body) => pb::MultiResult { error: 0, body: Some(body) },
                        Err(code) => pb::MultiResult { error: code.code(), body: None },
                    }
                });
                Ok(Body::Multi(pb::MultiBody { results: results.collect() }))
            }
            Op::GetEphemerals(op) => {
                let is_mine = |(path, node): &(&String, &Node)| {
                    node.stat.ephemeral_owner == session && path.starts_with(&op.prefix)
                };
                let paths = self.tree.iter().filter(is_mine).map(|(path, _)| path.clone()).collect();
                Ok(Body::Paths(pb::Paths { paths }))
            }
            Op::GetAcl(op) => {
                let Node { acl, stat, .. } = node(self, &op.path)?;
                Ok(Body::Acl(pb::AclBody { acl, stat: Some(stat) }))
            }
            Op::WhoAmI(_) => Ok(Body::Ids(pb::Ids { ids: vec![] })),
            Op::Ping(_) | Op::Sync(_) => {
                // Who asks for a sign of life is told how far it is.
                if !self.watches(number).feeds.is_empty() {
                    let bookmark = pb::FeedBookmark { watch: 0, zxid: self.zxid };
                    send_feed(&self.connections[&number].out, [pb::reply::Kind::FeedBookmark(bookmark)]);
                }
                done
            }
            Op::AddAuth(op) if op.scheme == "digest" => done,
            Op::AddAuth(_) => Err(ErrorCode::AuthFailed),
            Op::Subscribe(op) => {
                if op.after.is_some_and(|after| after > self.zxid) {
                    return Err(ErrorCode::BadArguments);
                }
                if self.watches(number).feeds.insert(op.watch, op).is_some() {
                    self.violations.push("a name was used twice".to_owned());
                }
                done
            }
            Op::Unsubscribe(op) => match self.watches(number).feeds.remove(&op.watch) {
                Some(_) => done,
                None => Err(ErrorCode::NoWatcher),
            },
            // In one page.
            Op::GetSubtree(op) => {
                let nodes = self.tree.iter().filter(|(path, _)| is_within(path, &op.path, op.depth()));
                let nodes = nodes.map(|(path, node)| {
                    let is_known = op.newer_than.is_some_and(|known| node.stat.mzxid <= known);
                    let data = node.data.clone().filter(|_| !is_known).map(|bytes| pb::Data { bytes });
                    pb::SubtreeNode { path: path.clone(), stat: Some(node.stat), data, is_known }
                });
                let nodes: Vec<_> = nodes.collect();
                self.znodes_sent += nodes.iter().filter(|node| !node.is_known).count() as u64;
                Ok(Body::Subtree(pb::SubtreeBody { nodes, next: String::new() }))
            }
            Op::RemoveWatch(op) => {
                let watches = self.watches(number);
                let held = match op.kind() {
                    pb::WatchKind::Data => watches.data.remove(&op.path),
                    pb::WatchKind::Child => watches.child.remove(&op.path),
                    _ => false,
                };
                if held { done } else { Err(ErrorCode::NoWatcher) }
            }
            Op::SetWatches(op) => {
                self.set_watches(number, op);
                done
            }
            _ => Err(ErrorCode::Unimplemented),
        }
    }

    fn watches(&mut self, number: u64) -> &mut Watches {
        &mut self.connections.get_mut(&number).unwrap().watches
    }

    /// ZooKeeper's rules (wire 7.8).
    fn set_watches(&mut self, number: u64, set: pb::SetWatches) {
        self.set_watches += 1;
        let since = set.relative_zxid;
        let mut missed = Vec::new();
        for path in set.data {
            match self.tree.get(&path) {
                None => missed.push((EventKind::NodeDeleted, path)),
                Some(node) if node.stat.mzxid > since => missed.push((EventKind::NodeDataChanged, path)),
                Some(_) => drop(self.watches(number).data.insert(path)),
            }
        }
        for path in set.exist {
            if self.tree.contains_key(&path) {
                missed.push((EventKind::NodeCreated, path));
            } else {
                self.watches(number).data.insert(path);
            }
        }
        for path in set.child {
            match self.tree.get(&path) {
                None => missed.push((EventKind::NodeDeleted, path)),
                Some(node) if node.stat.pzxid > since => missed.push((EventKind::NodeChildrenChanged, path)),
                Some(_) => drop(self.watches(number).child.insert(path)),
            }
        }
        for (kind, path) in missed {
            event(&self.connections[&number].out, kind, &path, 0);
        }
    }

    fn fire(&mut self, kind: EventKind, path: &str) {
        if let Some(deferred) = &mut self.deferred {
            return deferred.push((kind, path.to_owned()));
        }
        let is_child = kind == EventKind::NodeChildrenChanged;
        self.history.push((self.zxid, kind, path.to_owned()));
        for connection in self.connections.values_mut() {
            let watches = &mut connection.watches;
            let mut hit = false;
            if !is_child {
                hit |= watches.data.remove(path);
            }
            if is_child || kind == EventKind::NodeDeleted {
                hit |= watches.child.remove(path);
            }
            if hit {
                event(&connection.out, kind, path, self.zxid);
            }
        }
    }
}

impl State {
    /// Tells those who follow of what was not told yet.
    fn tell(&mut self) {
        let news = std::mem::replace(&mut self.told, self.history.len());
        for connection in self.connections.values() {
            for feed in connection.watches.feeds.values() {
                let changes = self.changes(feed, &self.history[news..]);
                if !changes.is_empty() {
                    send_feed(&connection.out, changes.into_iter().map(pb::reply::Kind::FeedChanges));
                    let bookmark = pb::FeedBookmark { watch: feed.watch, zxid: self.zxid };
                    send_feed(&connection.out, [pb::reply::Kind::FeedBookmark(bookmark)]);
                }
            }
        }
    }

    /// What one who begins in the past has missed.
    fn catch_up(&self, number: u64, feed: &pb::Subscribe) {
        let (Some(after), Some(connection)) = (feed.after, self.connections.get(&number)) else { return };
        let pb::Subscribe { watch, .. } = *feed;
        if after < self.floor {
            let gap = pb::FeedGap { watch, after, resync: self.zxid };
            return send_feed(&connection.out, [pb::reply::Kind::FeedGap(gap)]);
        }
        let missed = self.history.partition_point(|(zxid, _, _)| *zxid <= after);
        let changes = self.changes(feed, &self.history[missed..self.told]);
        send_feed(&connection.out, changes.into_iter().map(pb::reply::Kind::FeedChanges));
        let bookmark = pb::FeedBookmark { watch, zxid: self.zxid };
        send_feed(&connection.out, [pb::reply::Kind::FeedBookmark(bookmark)]);
    }

    fn changes(&self, feed: &pb::Subscribe, history: &[(u64, EventKind, String)]) -> Vec<pb::FeedChanges> {
        let mut changes: Vec<pb::FeedChanges> = Vec::new();
        for (zxid, kind, path) in history {
            let is_list = *kind == EventKind::NodeChildrenChanged;
            let is_told = match feed.kind() {
                pb::FeedKind::Node => *path == feed.path,
                depth => !is_list && is_within(path, &feed.path, depth),
            };
            if !is_told {
                continue;
            }
            if changes.last().is_none_or(|last| last.zxid != *zxid) {
                changes.push(pb::FeedChanges { watch: feed.watch, zxid: *zxid, events: Vec::new() });
            }
            let node = self.tree.get(path).filter(|node| feed.with_nodes && !is_list && node.stat.mzxid == *zxid);
            let node = node.map(|node| pb::FeedNode {
                data: node.data.clone().map(|bytes| pb::Data { bytes }),
                stat: Some(node.stat),
                as_of: self.zxid,
            });
            let event = pb::FeedEvent { kind: kind.code(), path: path.clone(), node };
            changes.last_mut().unwrap().events.push(event);
        }
        changes
    }
}

fn is_within(path: &str, top: &str, depth: pb::FeedKind) -> bool {
    let below = path.strip_prefix(if top == "/" { "" } else { top }).and_then(|rest| rest.strip_prefix('/'));
    path == top
        || below.is_some_and(|below| match depth {
            pb::FeedKind::Node => false,
            pb::FeedKind::Children => !below.contains('/'),
            pb::FeedKind::Subtree => true,
        })
}

fn send_feed(out: &Outbound, kinds: impl IntoIterator<Item = pb::reply::Kind>) {
    let replies: Vec<_> = kinds.into_iter().map(|kind| pb::Reply { kind: Some(kind) }).collect();
    if !replies.is_empty() {
        send(out, pb::server_message::Message::Replies(pb::ReplyBatch { replies }));
    }
}

fn event(out: &Outbound, kind: EventKind, path: &str, zxid: u64) {
    let event = pb::Event { kind: kind.code(), path: path.to_owned(), zxid };
    let reply = pb::Reply { kind: Some(pb::reply::Kind::Event(event)) };
    send(out, pb::server_message::Message::Replies(pb::ReplyBatch { replies: vec![reply] }));
}
