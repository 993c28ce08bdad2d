//! One program against one server, or several that serve the same tree, in lock-step.
//!
//! One step at a time, over all connections: its replies are awaited, and then every other connection is pinged until a
//! reply names a state that is not older than the step's last one. Events come before any reply of that state, so what a
//! step causes anywhere is in its own lines, in the order of its connection.
//!
//! What two servers may number differently gets names in the order of its appearance: zxids (with their place among
//! those seen before), sessions. Times are held against zxids: one transaction has one time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::bytes::{In, Out, Short, hex};
use crate::known::Known;
use crate::peers;
use crate::program::{Hello, Password, Request, Since, Step, Whose, op};
use crate::words;

/// A server that says nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks for something that a server does by itself.
const POLL: Duration = Duration::from_millis(20);

/// Data longer than this is shown by its length and sum.
const SHOWN_BYTES: usize = 48;

/// What happened in each step, a line for each thing a client saw.
pub type Transcript = Vec<Vec<String>>;

/// What was reached: opcode and outcome, events, ends of connections.
pub type Coverage = BTreeMap<String, usize>;

/// Runs a program. The slots' connections go to `servers` in turn.
///
/// `local`: sessions are local, so that the end of one need not be a change.
pub fn run(
    servers: &[SocketAddr],
    slots: usize,
    program: &[Step],
    known: &Known,
    local: bool,
) -> (Transcript, Coverage) {
    let mut side = Side {
        servers,
        known,
        local,
        slots: (0..slots).map(|_| Slot::default()).collect(),
        names: Names::default(),
        coverage: Coverage::new(),
        lines: Vec::new(),
    };
    let mut transcript = Transcript::new();
    for step in program {
        side.step(step);
        let lines = std::mem::take(&mut side.lines);
        let hangs = hangs(&lines);
        transcript.push(lines);
        if hangs {
            // Every further step would wait as long.
            break;
        }
    }
    (transcript, side.coverage)
}

/// Whether a server left something of a step without an answer.
pub fn hangs(lines: &[String]) -> bool {
    lines.iter().any(|line| line.contains(HANGS))
}

const HANGS: &str = "NO ANSWER";

/// The error of a read of what is not there.
const NO_NODE: i32 = -101;

/// A session and, perhaps, its connection.
#[derive(Default)]
struct Slot {
    session: Option<Session>,
    closed: bool,
    connection: Option<Connection>,
}

#[derive(Clone)]
struct Session {
    id: i64,
    password: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    xid: i32,
    last_zxid: i64,
}

/// What comes next on a connection.
enum Next {
    Frame(Vec<u8>),
    End,
    Nothing,
}

impl Connection {
    fn open(server: SocketAddr) -> Connection {
        let stream = TcpStream::connect(server).expect("the server listens");
        stream.set_nodelay(true).expect("a socket");
        Connection { stream, received: Vec::new(), xid: 0, last_zxid: 0 }
    }

    fn send(&mut self, bytes: &[u8]) {
        // A server that hung up is noticed when its answer is read.
        let _ = self.stream.write_all(bytes);
    }

    fn next(&mut self) -> Next {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((length, rest)) = self.received.split_first_chunk::<4>() {
                let length = i32::from_be_bytes(*length) as usize;
                if rest.len() >= length {
                    let frame = rest[..length].to_vec();
                    self.received.drain(..4 + length);
                    return Next::Frame(frame);
                }
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return Next::Nothing;
            };
            self.stream.set_read_timeout(Some(left)).expect("not zero");
            let mut chunk = [0; 64 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Next::End,
                Ok(read) => self.received.extend(&chunk[..read]),
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Next::End,
            }
        }
    }
}

/// Names for what servers number as they like.
#[derive(Default)]
struct Names {
    zxids: HashMap<i64, usize>,
    sorted: BTreeSet<i64>,
    times: HashMap<i64, i64>,
    sessions: HashMap<i64, usize>,
}

impl Names {
    /// The zxid of a change.
    fn zxid(&mut self, zxid: i64) -> String {
        if zxid <= 0 {
            return zxid.to_string();
        }
        if let Some(number) = self.zxids.get(&zxid) {
            return format!("z{number}");
        }
        let number = self.zxids.len();
        let before = self.sorted.range(..zxid).next_back().map(|z| self.zxids[z]);
        let newest = self.sorted.last().is_none_or(|last| *last < zxid);
        self.zxids.insert(zxid, number);
        self.sorted.insert(zxid);
        match (newest, before) {
            (true, _) => format!("z{number}"),
            (false, None) => format!("z{number}(before all)"),
            (false, Some(before)) => format!("z{number}(after z{before})"),
        }
    }

    /// The zxid of a state: the last change that it covers.
    fn covers(&self, zxid: i64) -> String {
        match self.sorted.range(..=zxid).next_back() {
            _ if zxid <= 0 => zxid.to_string(),
            None => ">=".into(),
            Some(covered) => format!(">=z{}", self.zxids[covered]),
        }
    }

    /// The time of a change: the same whenever that change is named.
    fn time(&mut self, zxid: i64, time: i64) -> &'static str {
        match () {
            () if time == 0 => "0",
            () if *self.times.entry(zxid).or_insert(time) == time => "T",
            () => "ANOTHER TIME",
        }
    }

    fn session(&self, id: i64) -> String {
        match self.sessions.get(&id) {
            _ if id == 0 => "0".into(),
            Some(number) => format!("s{number}"),
            None => format!("UNKNOWN {id:x}"),
        }
    }

    fn resolve(&self, since: Since) -> i64 {
        match since {
            Since::Zero => 0,
            Since::Negative => -1,
            Since::Future => i64::MAX - 1,
            Since::Newest(back) => self.sorted.iter().rev().nth(back).copied().unwrap_or(0),
        }
    }
}

struct Side<'a> {
    servers: &'a [SocketAddr],
    known: &'a Known,
    local: bool,
    slots: Vec<Slot>,
    names: Names,
    coverage: Coverage,
    lines: Vec<String>,
}

impl Side<'_> {
    fn say(&mut self, slot: usize, what: impl std::fmt::Display) {
        self.lines.push(format!("#{slot} {what}"));
    }

    fn reached(&mut self, what: String) {
        *self.coverage.entry(what).or_default() += 1;
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Open { slot, hello } => {
                if self.slots[*slot].connection.is_some() {
                    return self.pass();
                }
                self.open(*slot, hello, *slot);
            }
            Step::Again { slot, hello, server } => {
                if self.slots[*slot].session.is_none() {
                    return self.pass();
                }
                let old = self.slots[*slot].connection.take();
                let moved = old.is_some();
                self.open(*slot, hello, *server);
                if let Some(mut old) = old {
                    match old.next() {
                        Next::End => self.say(*slot, "the old connection is closed"),
                        Next::Frame(frame) => self.say(*slot, format!("the old connection got {}", hex(&frame))),
                        Next::Nothing => self.say(*slot, format!("the old connection stays: {HANGS}")),
                    }
                    self.reached("connection/replaced".into());
                }
                if moved {
                    self.barrier(None, 0);
                }
            }
            Step::Probe { hello, server } => self.probe(hello, *server),
            Step::Drop { slot } => {
                if self.slots[*slot].connection.take().is_none() {
                    self.pass();
                }
            }
            Step::Ask { slot, requests } => self.ask(*slot, requests),
            Step::Word { word } => self.word(word),
            Step::Expire { slot, hello, requests, ephemeral } => {
                if self.slots[*slot].connection.is_some() {
                    return self.pass();
                }
                self.expire(*slot, hello, requests, ephemeral);
            }
            Step::Reap { slot, requests, path } => {
                if self.slots[*slot].connection.is_none() {
                    return self.pass();
                }
                self.requests(*slot, requests);
                match self.gone(path) {
                    Some(zxid) => self.barrier(None, zxid),
                    None => self.say(*slot, format!("{path} is not removed: {HANGS}")),
                }
                self.reached("znode/reaped".into());
            }
            Step::Raw { slot, bytes } => {
                let Some(mut connection) = self.slots[*slot].connection.take() else { return self.pass() };
                connection.send(bytes);
                self.until_end(*slot, connection);
            }
        }
    }

    /// Nothing to do: an earlier step went otherwise than planned.
    fn pass(&mut self) {
        self.reached("passed over".into());
    }

    fn until_end(&mut self, slot: usize, mut connection: Connection) {
        loop {
            match connection.next() {
                Next::Frame(frame) => self.say(slot, format!("a frame before the end: {}", hex(&frame))),
                Next::End => break self.say(slot, "closed"),
                Next::Nothing => break self.say(slot, HANGS),
            }
        }
        self.reached("connection/closed".into());
    }

    // Handshakes.

    fn hello(&self, hello: &Hello) -> Vec<u8> {
        let (id, right) = match hello.session {
            Whose::New => (0, vec![0; 16]),
            Whose::Nobodys => (0x0123_4567_89ab_cdef, vec![7; 16]),
            Whose::Of(slot) => match &self.slots[slot].session {
                Some(session) => (session.id, session.password.clone()),
                None => (0, vec![0; 16]),
            },
        };
        let password = match hello.password {
            Password::Right => Some(right),
            Password::Wrong => Some(right.iter().map(|byte| byte ^ 0x55).collect()),
            Password::Short => Some(right[..7].to_vec()),
            Password::Empty => Some(Vec::new()),
            Password::Null => None,
        };
        let out = Out::default()
            .int(hello.protocol)
            .long(self.names.resolve(hello.seen))
            .int(hello.timeout_ms)
            .long(id)
            .buffer(password.as_deref());
        let out = match hello.read_only {
            Some(byte) => out.byte(byte),
            None => out,
        };
        out.raw(&hello.trailing).framed()
    }

    /// The answer to a handshake, in words; and the session, if there is one.
    fn answer(&mut self, frame: &[u8], hello: &Hello) -> Result<(String, Option<Session>), Short> {
        let mut body = In(frame);
        let (protocol, timeout, id) = (body.int()?, body.int()?, body.long()?);
        let password = body.buffer()?.ok_or(Short)?.to_vec();
        let next = self.names.sessions.len();
        if id != 0 {
            self.names.sessions.entry(id).or_insert(next);
        }
        let name = self.names.session(id);
        let old = match hello.session {
            Whose::Of(slot) => self.slots[slot].session.as_ref().is_some_and(|old| old.password == password),
            _ => false,
        };
        let zeros = password.iter().all(|byte| *byte == 0);
        let words = format!(
            "connected: {} bytes, protocol {protocol}, timeout {timeout}, session {name}, password {} {}, rest {}",
            frame.len(),
            password.len(),
            if zeros {
                "zeros"
            } else if old {
                "as before"
            } else {
                "new"
            },
            hex(body.0),
        );
        Ok((words, (id != 0).then_some(Session { id, password })))
    }

    /// The connection, if the server accepts.
    fn shake(&mut self, label: usize, hello: &Hello, server: usize) -> Option<(Connection, Session)> {
        let mut connection = Connection::open(self.servers[server % self.servers.len()]);
        connection.send(&self.hello(hello));
        match connection.next() {
            Next::Frame(frame) => match self.answer(&frame, hello) {
                Ok((words, Some(session))) => {
                    self.say(label, words);
                    self.reached("handshake/ok".into());
                    Some((connection, session))
                }
                Ok((words, None)) => {
                    self.say(label, words);
                    self.reached("handshake/expired".into());
                    self.until_end(label, connection);
                    None
                }
                Err(Short) => {
                    self.say(label, format!("handshake answered by {}", hex(&frame)));
                    None
                }
            },
            Next::End => {
                self.say(label, "handshake: closed");
                self.reached("handshake/closed".into());
                None
            }
            Next::Nothing => {
                self.say(label, format!("handshake: {HANGS}"));
                None
            }
        }
    }

    fn open(&mut self, slot: usize, hello: &Hello, server: usize) {
        if let Some((connection, session)) = self.shake(slot, hello, server) {
            let slot = &mut self.slots[slot];
            (slot.connection, slot.session, slot.closed) = (Some(connection), Some(session), false);
        }
    }

    fn probe(&mut self, hello: &Hello, server: usize) {
        if let Whose::Of(slot) = hello.session {
            let slot = &self.slots[slot];
            // See `wrong-password`; and the right one would take the session away from its slot.
            if slot.session.is_none()
                || slot.connection.is_some()
                || (matches!(hello.password, Password::Right) && !slot.closed)
            {
                return self.pass();
            }
        }
        let label = self.slots.len();
        if let Some((mut connection, _)) = self.shake(label, hello, server) {
            // Nobody needs it; it goes with its session.
            connection.send(&Out::default().int(1).int(op::CLOSE).framed());
            while let Next::Frame(_) = connection.next() {}
        }
    }

    // Requests.

    fn ask(&mut self, slot: usize, requests: &[Request]) {
        if self.slots[slot].connection.is_none() {
            return self.pass();
        }
        let first_line = self.lines.len();
        let state = self.requests(slot, requests);
        if requests.iter().any(Request::is_write) {
            self.barrier(Some(slot), state);
        }
        if requests.iter().any(|request| request.opcode == op::CLOSE) {
            self.lines[first_line..].sort();
        }
    }

    /// Sends requests and takes their replies; returns the newest state among them.
    fn requests(&mut self, slot: usize, requests: &[Request]) -> i64 {
        let Some(mut connection) = self.slots[slot].connection.take() else { return 0 };
        let mut bytes = Vec::new();
        let mut sent = Vec::new();
        for request in requests {
            let mut body = request.body.clone();
            if let Some(since) = request.since
                && body.len() >= 8
            {
                body[..8].copy_from_slice(&self.names.resolve(since).to_be_bytes());
            }
            let xid = request.xid.unwrap_or_else(|| {
                connection.xid += 1;
                connection.xid
            });
            if is_deadly(request.opcode, &body) {
                self.pass();
                continue;
            }
            sent.push((xid, request.opcode));
            bytes.extend(Out::default().int(xid).int(request.opcode).raw(&body).framed());
        }
        connection.send(&bytes);
        let closes = requests.iter().any(|request| request.opcode == op::CLOSE);
        let mut open = true;
        let mut waiting = sent.into_iter().peekable();
        while let Some((xid, opcode)) = waiting.peek().copied() {
            match connection.next() {
                Next::Frame(frame) if frame.starts_with(&[0xff; 4]) => self.event(slot, &frame),
                Next::Frame(frame) => {
                    waiting.next();
                    self.reply(slot, &mut connection.last_zxid, xid, opcode, &frame);
                }
                Next::End => {
                    self.say(slot, format!("closed instead of a reply to {}", op::name(opcode)));
                    self.reached(format!("{}/closed", op::name(opcode)));
                    open = false;
                    break;
                }
                Next::Nothing => {
                    self.say(slot, format!("{}: {HANGS}", op::name(opcode)));
                    open = false;
                    break;
                }
            }
        }
        let state = connection.last_zxid;
        // After some replies the server hangs up.
        let last_failed =
            self.lines.last().is_some_and(|line| line.contains("auth error") || line.contains("sasl error"));
        if open && (requests.last().is_some_and(Request::is_last) || last_failed) {
            self.until_end(slot, connection);
            self.slots[slot].closed = closes;
        } else if open {
            self.slots[slot].connection = Some(connection);
        }
        state
    }

    /// Waits until every connection but the asker's has a state that is not older than this.
    fn barrier(&mut self, asker: Option<usize>, state: i64) {
        let ping = Out::default().int(-2).int(op::PING).framed();
        for at in 0..self.slots.len() {
            if Some(at) != asker
                && let Some(connection) = &mut self.slots[at].connection
            {
                connection.send(&ping);
            }
        }
        for at in 0..self.slots.len() {
            if Some(at) == asker {
                continue;
            }
            let Some(mut connection) = self.slots[at].connection.take() else { continue };
            loop {
                match connection.next() {
                    Next::Frame(frame) if frame.starts_with(&[0xff; 4]) => self.event(at, &frame),
                    Next::Frame(frame) => {
                        let mut reply = In(&frame);
                        let zxid = match (reply.int(), reply.long(), reply.int(), reply.0.len()) {
                            (Ok(-2), Ok(zxid), Ok(0), 0) => zxid,
                            _ => {
                                self.say(at, format!("ping answered by {}", hex(&frame)));
                                break;
                            }
                        };
                        if zxid < connection.last_zxid {
                            self.say(at, "ZXID WENT BACK");
                        }
                        connection.last_zxid = zxid;
                        if zxid >= state {
                            self.slots[at].connection = Some(connection);
                            break;
                        }
                        // Another server, which is behind.
                        connection.send(&ping);
                    }
                    Next::End => {
                        self.say(at, "closed");
                        break;
                    }
                    Next::Nothing => {
                        self.say(at, format!("ping: {HANGS}"));
                        break;
                    }
                }
            }
        }
    }

    /// A four-letter word, of the first server.
    fn word(&mut self, word: &str) {
        if self.slots.iter().all(|slot| slot.connection.is_none()) {
            return self.pass();
        }
        let answer = peers::word(self.servers[0], word);
        let connected: Vec<i64> = self
            .slots
            .iter()
            .filter(|slot| slot.connection.is_some())
            .filter_map(|slot| Some(slot.session.as_ref()?.id))
            .collect();
        let names = &self.names;
        let session = |id: &str| {
            let id = i64::from_str_radix(id.strip_prefix("0x")?, 16).ok()?;
            connected.contains(&id).then(|| names.session(id))
        };
        let lines = words::shown(word, &answer, session).into_iter().map(|line| format!("{word}: {line}"));
        self.lines.extend(lines);
        self.reached(format!("word/{word}"));
    }

    /// A session that is left alone until the server ends it, and what the others see of that.
    fn expire(&mut self, slot: usize, hello: &Hello, requests: &[Request], ephemeral: &str) {
        self.open(slot, hello, slot);
        if self.slots[slot].connection.is_none() {
            return;
        }
        let state = self.requests(slot, requests);
        self.slots[slot].connection = None;
        // Before its end, so that the two cannot change places.
        self.barrier(None, state);
        let first_line = self.lines.len();
        match self.gone(ephemeral) {
            Some(zxid) => self.barrier(None, zxid),
            None => self.say(slot, format!("the session does not end: {HANGS}")),
        }
        self.slots[slot].closed = true;
        self.lines[first_line..].sort();
        self.reached("session/expired".into());
    }

    /// Waits on a connection of its own until a znode is not there; returns a state without it.
    fn gone(&mut self, path: &str) -> Option<i64> {
        let mut newest = 0;
        for server in self.servers {
            let mut connection = Connection::open(*server);
            connection.send(&self.hello(&Hello::plain()));
            let Next::Frame(_) = connection.next() else { return None };
            let deadline = Instant::now() + PATIENCE;
            let exists = Out::default().int(1).int(op::EXISTS).string(path).byte(0).framed();
            loop {
                connection.send(&exists);
                let Next::Frame(frame) = connection.next() else { return None };
                let mut reply = In(&frame);
                let (Ok(_), Ok(zxid), Ok(error)) = (reply.int(), reply.long(), reply.int()) else { return None };
                if error == NO_NODE {
                    newest = newest.max(zxid);
                    break;
                }
                if Instant::now() > deadline {
                    return None;
                }
                std::thread::sleep(POLL);
            }
            connection.send(&Out::default().int(2).int(op::CLOSE).framed());
            while let Next::Frame(_) = connection.next() {}
        }
        Some(newest)
    }

    fn event(&mut self, slot: usize, frame: &[u8]) {
        let words = self.event_words(frame).unwrap_or_else(|Short| format!("EVENT TOO SHORT {}", hex(frame)));
        self.say(slot, words);
    }

    fn event_words(&mut self, frame: &[u8]) -> Result<String, Short> {
        let mut body = In(frame);
        let (_, zxid, error) = (body.int()?, body.long()?, body.int()?);
        let (kind, state, path) = (body.int()?, body.int()?, body.string()?);
        let caught_up = zxid == -1 && !self.known.has("event-zxid");
        self.reached(format!("event{}/{kind}", if caught_up { "-caught-up" } else { "" }));
        let zxid = match self.known.has("event-zxid") {
            true => "-".into(),
            false => self.names.zxid(zxid),
        };
        let name =
            ["none", "created", "deleted", "changed", "children"].get(kind as usize).copied().unwrap_or("UNKNOWN");
        Ok(format!("event {name} {path} at {zxid} error {error} state {state}{}", rest(body.0)))
    }

    fn reply(&mut self, slot: usize, last_zxid: &mut i64, xid: i32, opcode: i32, frame: &[u8]) {
        let words = self
            .reply_words(last_zxid, xid, opcode, frame)
            .unwrap_or_else(|Short| format!("{} REPLY TOO SHORT {}", op::name(opcode), hex(frame)));
        self.say(slot, words);
    }

    fn reply_words(&mut self, last_zxid: &mut i64, xid: i32, opcode: i32, frame: &[u8]) -> Result<String, Short> {
        let name = op::name(opcode);
        let mut body = In(frame);
        let (got, zxid, error) = (body.int()?, body.long()?, body.int()?);
        let echo = if got == xid { String::new() } else { format!(" xid {got}") };
        let back = if zxid > 0 && zxid < *last_zxid { " ZXID WENT BACK" } else { "" };
        *last_zxid = zxid.max(*last_zxid);
        if error != 0 {
            self.reached(format!("{name}/{error}"));
            let header = self.names.covers(zxid);
            return Ok(format!("{name} error {error} zxid {header}{echo}{back}{}", rest(body.0)));
        }
        let is_write = matches!(
            opcode,
            op::CREATE | op::DELETE | op::SET_DATA | op::SET_ACL | op::CREATE2 | op::CREATE_CONTAINER | op::CREATE_TTL
        ) || (opcode == op::CLOSE && !self.local);
        let mut header = is_write.then(|| self.names.zxid(zxid));
        let mut outcome = "ok";
        let words = match opcode {
            op::CREATE | op::SYNC => body.string()?,
            op::CREATE2 | op::CREATE_CONTAINER | op::CREATE_TTL => {
                format!("{} {}", body.string()?, self.stat(&mut body)?)
            }
            op::EXISTS | op::SET_DATA | op::SET_ACL => self.stat(&mut body)?,
            op::GET_DATA | op::RECONFIG => format!("{} {}", data(body.buffer()?), self.stat(&mut body)?),
            op::GET_ACL => format!("{} {}", acl(&mut body)?, self.stat(&mut body)?),
            op::GET_CHILDREN | op::GET_EPHEMERALS => set(&mut body)?,
            op::GET_CHILDREN2 => format!("{} {}", set(&mut body)?, self.stat(&mut body)?),
            op::MULTI | op::MULTI_READ => {
                let (words, failed) = self.results(&mut body)?;
                if failed && opcode == op::MULTI {
                    outcome = "failed";
                } else if opcode == op::MULTI && !words.is_empty() {
                    header = Some(self.names.zxid(zxid));
                }
                format!("[{words}]")
            }
            op::COUNT | op::ADD_WATCH => body.int()?.to_string(),
            op::SASL => data(body.buffer()?),
            op::WHO_AM_I => {
                let mut ids =
                    body.vector(|body| Ok(format!("{}:{}", body.string()?, body.string()?)))?.unwrap_or_default();
                ids.sort();
                format!("{ids:?}")
            }
            _ => String::new(),
        };
        self.reached(format!("{name}/{outcome}"));
        let header = header.unwrap_or_else(|| self.names.covers(zxid));
        Ok(format!("{name} ok zxid {header}{echo}{back} {words}{}", rest(body.0)))
    }

    fn stat(&mut self, body: &mut In<'_>) -> Result<String, Short> {
        let (czxid, mzxid, ctime, mtime) = (body.long()?, body.long()?, body.long()?, body.long()?);
        let (version, cversion, aversion) = (body.int()?, body.int()?, body.int()?);
        let (owner, length, children, pzxid) = (body.long()?, body.int()?, body.int()?, body.long()?);
        let (ctime, mtime) = (self.names.time(czxid, ctime), self.names.time(mzxid, mtime));
        let (czxid, mzxid, pzxid) = (self.names.zxid(czxid), self.names.zxid(mzxid), self.names.zxid(pzxid));
        let owner = self.names.session(owner);
        Ok(format!(
            "{{c {czxid} {ctime} m {mzxid} {mtime} p {pzxid} v {version} {cversion} {aversion} owner {owner} len {length} children {children}}}"
        ))
    }

    /// The results of a multi, and whether it failed.
    fn results(&mut self, body: &mut In<'_>) -> Result<(String, bool), Short> {
        let (mut all, mut failed) = (Vec::new(), false);
        loop {
            let (kind, done, error) = (body.int()?, body.byte()?, body.int()?);
            if done != 0 {
                if (kind, done, error) != (-1, 1, -1) {
                    all.push(format!("TERMINATOR {kind} {done} {error}"));
                }
                return Ok((all.join(", "), failed));
            }
            let words = match kind {
                -1 => {
                    let again = body.int()?;
                    failed = true;
                    self.reached(format!("in multi/{error}"));
                    format!("error {error} {again}")
                }
                op::CREATE => format!("create {}", body.string()?),
                op::CREATE2 => format!("create2 {} {}", body.string()?, self.stat(body)?),
                op::SET_DATA => format!("setData {}", self.stat(body)?),
                op::GET_DATA => format!("getData {} {}", data(body.buffer()?), self.stat(body)?),
                op::GET_CHILDREN => format!("getChildren {}", set(body)?),
                op::DELETE => "delete".into(),
                op::CHECK => "check".into(),
                other => format!("UNKNOWN {other}"),
            };
            if kind != -1 {
                self.reached(format!("in multi/{}", op::name(kind)));
            }
            let error = if kind != -1 && error != 0 { format!(" HEADER ERROR {error}") } else { String::new() };
            all.push(words + &error);
        }
    }
}

/// Bytes behind a record: there should be none.
fn rest(bytes: &[u8]) -> String {
    if bytes.is_empty() { String::new() } else { format!(" REST {}", hex(bytes)) }
}

fn data(bytes: Option<&[u8]>) -> String {
    match bytes {
        None => "null".into(),
        Some(bytes) if bytes.len() <= SHOWN_BYTES => format!("{:?}", String::from_utf8_lossy(bytes)),
        Some(bytes) => {
            let sum = bytes.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
            format!("{} bytes {sum:016x}", bytes.len())
        }
    }
}

/// A list whose order means nothing.
fn set(body: &mut In<'_>) -> Result<String, Short> {
    match body.vector(In::string)? {
        None => Ok("null".into()),
        Some(mut names) => {
            names.sort();
            Ok(format!("{names:?}"))
        }
    }
}

fn acl(body: &mut In<'_>) -> Result<String, Short> {
    let lines = body.vector(|body| Ok((body.int()?, body.string()?, body.string()?)))?;
    let Some(mut lines) = lines else { return Ok("null".into()) };
    for run in lines.chunk_by_mut(|a, b| a.1 == "digest" && b.1 == "digest") {
        run.sort();
    }
    Ok(format!("{lines:?}"))
}

/// Requests that a real server does not survive, or that it must not obey. Looks at the bytes, since some requests are
/// damaged on purpose.
pub fn is_deadly(opcode: i32, body: &[u8]) -> bool {
    match opcode {
        20 | -10 => true,
        op::CREATE_TTL => is_deadly_create(&mut In(body)).unwrap_or(false),
        op::MULTI => {
            // Wherever an operation of that kind may begin.
            let header = Out::default().int(op::CREATE_TTL).0;
            (0..body.len()).any(|at| {
                body[at..].starts_with(&header)
                    && is_deadly_create(&mut In(body.get(at + 9..).unwrap_or_default())).unwrap_or(false)
            })
        }
        _ => false,
    }
}

fn is_deadly_create(body: &mut In<'_>) -> Result<bool, Short> {
    body.buffer()?;
    body.buffer()?;
    body.vector(|body| Ok((body.int()?, body.buffer()?.map(<[u8]>::len), body.buffer()?.map(<[u8]>::len))))?;
    let (flags, ttl) = (body.int()?, body.long()?);
    Ok(!matches!(flags, 5 | 6) && ttl < 0)
}
