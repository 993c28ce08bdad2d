//! A session over ZooKeeper's protocol, as an ordinary client keeps it: pings, another server when one is silent, watches
//! set again. What was sent and not answered when a connection broke is never sent again; its outcome is unknown.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use corral_proto::jute::{
    ConnectRequest, ConnectResponse, Reader, ReplyHeader, Request, Response, SetWatches, WatcherEvent, decode_reply,
    frame, opcode,
};
use corral_proto::{ErrorCode, EventKind, WatchedEvent};
use corral_sim::rng::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::journal::Journal;

/// Frames larger than this are a mistake here.
const FRAME_BYTES_MAX: usize = 16 << 20;
/// Calls that wait for the connection.
const CALLS_MAX: usize = 64;
/// Between two rounds through the servers.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Events that nobody took yet; a session that has more ends, and its watcher sees that.
const EVENTS_MAX: usize = 4096;

/// A session lives on for this part of its timeout after a request that was answered was sent (the lease of ADR 9).
const LEASE_PERCENT: u64 = 45;

/// What came of one request.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Done.
    Done {
        /// Of the write, or of the state that answered.
        zxid: i64,
        /// The body.
        body: Response,
    },
    /// Refused: nothing was changed.
    Refused(ErrorCode),
    /// Sent, and the connection broke before the answer came.
    Unknown,
    /// Not sent: the session was over.
    Ended,
}

/// How a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// 0 before the first connection.
    pub id: i64,
    /// Negotiated, ms.
    pub timeout_ms: u64,
    /// Connections so far.
    pub connections: u64,
    /// `Some`: a server said that it has expired, or it was closed.
    pub over: Option<Over>,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// A server said so.
    Expired,
    /// The close was answered, or the connection ended after it was sent.
    Closed,
}

/// One session. Dropping it leaves without a word: the servers have to notice.
pub struct WireSession {
    calls: mpsc::Sender<Call>,
    status: watch::Receiver<Status>,
    events: tokio::sync::Mutex<mpsc::Receiver<WatchedEvent>>,
    _task: AbortOnDropHandle<()>,
}

struct Call {
    requests: Vec<Request>,
    answers: oneshot::Sender<Vec<Answer>>,
}

impl WireSession {
    /// Begins a session with one of these servers; it is established when [`WireSession::established`] returns.
    pub fn begin(servers: Vec<SocketAddr>, timeout_ms: u64, journal: Arc<Journal>, seed: u64) -> WireSession {
        let (calls, waiting) = mpsc::channel(CALLS_MAX);
        let (event_out, events) = mpsc::channel(EVENTS_MAX);
        let status = watch::Sender::new(Status { id: 0, timeout_ms, connections: 0, over: None });
        let seen = status.subscribe();
        let task = Task {
            servers,
            password: Bytes::new(),
            last_zxid: 0,
            last_alive: Instant::now(),
            xid: 0,
            watches: Watches::default(),
            calls: waiting,
            events: event_out,
            status,
            journal,
            rng: Rng::stream(seed, "wire"),
        };
        let task = AbortOnDropHandle::new(tokio::spawn(task.run()));
        WireSession { calls, status: seen, events: tokio::sync::Mutex::new(events), _task: task }
    }

    /// Waits until a server has given it a number.
    pub async fn established(&self) {
        // It fails only when the task is gone, and then every call says so.
        let _ = self.status.clone().wait_for(|status| status.id != 0).await;
    }

    /// How it is now.
    pub fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// One request.
    pub async fn ask(&self, request: Request) -> Answer {
        self.ask_all(vec![request]).await.pop().unwrap_or(Answer::Ended)
    }

    /// Several requests, one after the other on the same connection; as many answers.
    pub async fn ask_all(&self, requests: Vec<Request>) -> Vec<Answer> {
        let count = requests.len();
        let (answers, answered) = oneshot::channel();
        let ended = || vec![Answer::Ended; count];
        if self.calls.send(Call { requests, answers }).await.is_err() {
            return ended();
        }
        answered.await.unwrap_or_else(|_| ended())
    }

    /// The next watch event; `None` when the session is over.
    pub async fn event(&self) -> Option<WatchedEvent> {
        self.events.lock().await.recv().await
    }
}

/// One-shot watches that are armed, as a client knows.
#[derive(Default)]
struct Watches {
    data: BTreeSet<String>,
    exist: BTreeSet<String>,
    child: BTreeSet<String>,
}

impl Watches {
    fn arm(&mut self, request: &Request, error: i32) {
        match request {
            Request::GetData { path, watch: true } if error == 0 => _ = self.data.insert(path.clone()),
            Request::Exists { path, watch: true } if error == 0 => _ = self.data.insert(path.clone()),
            Request::Exists { path, watch: true } if error == ErrorCode::NoNode.code() => {
                self.exist.insert(path.clone());
            }
            Request::GetChildren { path, watch: true } | Request::GetChildren2 { path, watch: true } if error == 0 => {
                self.child.insert(path.clone());
            }
            _ => {}
        }
    }

    fn fire(&mut self, event: &WatchedEvent) {
        match event.kind {
            EventKind::NodeChildrenChanged => _ = self.child.remove(&event.path),
            EventKind::NodeDeleted => {
                self.child.remove(&event.path);
                self.data.remove(&event.path);
                self.exist.remove(&event.path);
            }
            _ => {
                self.data.remove(&event.path);
                self.exist.remove(&event.path);
            }
        }
    }

    fn again(&self, relative_zxid: i64) -> Option<Request> {
        let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>();
        let (data, exist, child) = (list(&self.data), list(&self.exist), list(&self.child));
        let any = !(data.is_empty() && exist.is_empty() && child.is_empty());
        any.then(|| Request::SetWatches(SetWatches { relative_zxid, data, exist, child, ..SetWatches::default() }))
    }
}

struct Task {
    servers: Vec<SocketAddr>,
    password: Bytes,
    last_zxid: i64,
    /// When the request was sent that a server answered last.
    last_alive: Instant,
    xid: i32,
    watches: Watches,
    calls: mpsc::Receiver<Call>,
    events: mpsc::Sender<WatchedEvent>,
    status: watch::Sender<Status>,
    journal: Arc<Journal>,
    rng: Rng,
}

struct Pending {
    xid: i32,
    request: Request,
    call: u64,
    sent: Instant,
}

struct Answers {
    got: Vec<Answer>,
    wanted: usize,
    to: oneshot::Sender<Vec<Answer>>,
}

/// Requests on the way, and whose they are.
#[derive(Default)]
struct Outstanding {
    pending: VecDeque<Pending>,
    calls: BTreeMap<u64, Answers>,
    next_call: u64,
}

impl Outstanding {
    fn answer(&mut self, call: u64, answer: Answer) {
        if let Some(answers) = self.calls.get_mut(&call) {
            answers.got.push(answer);
            if answers.got.len() == answers.wanted
                && let Some(answers) = self.calls.remove(&call)
            {
                // Whoever asked may have gone.
                let _ = answers.to.send(answers.got);
            }
        }
    }

    fn lose_all(&mut self) {
        while let Some(pending) = self.pending.pop_front() {
            self.answer(pending.call, Answer::Unknown);
        }
    }
}

enum Handshake {
    Established(TcpStream, BytesMut),
    Expired,
}

impl Task {
    async fn run(mut self) {
        loop {
            let mut order = self.servers.clone();
            self.rng.shuffle(&mut order);
            for server in order {
                let status = *self.status.borrow();
                let limit = Duration::from_millis((status.timeout_ms / 3).max(1_000));
                match timeout(limit, self.shake_hands(server, status)).await {
                    Ok(Ok(Handshake::Established(stream, received))) => {
                        if self.serve(stream, received).await.is_some() {
                            return;
                        }
                    }
                    Ok(Ok(Handshake::Expired)) => {
                        self.expired();
                        return;
                    }
                    // Not there, not serving, or too slow.
                    Ok(Err(_)) | Err(_) => {}
                }
                sleep(Duration::from_millis(self.rng.below(30))).await;
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    fn expired(&self) {
        let status = *self.status.borrow();
        judge_expiry(&self.journal, status.id, self.last_alive, status.timeout_ms);
        self.end(Over::Expired);
    }

    fn end(&self, over: Over) {
        self.status.send_modify(|status| status.over = Some(over));
    }

    async fn shake_hands(&mut self, server: SocketAddr, status: Status) -> io::Result<Handshake> {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        let request = ConnectRequest {
            last_zxid_seen: self.last_zxid,
            timeout_ms: i32::try_from(status.timeout_ms).unwrap_or(i32::MAX),
            session_id: status.id,
            password: (status.id != 0).then(|| self.password.clone()),
            read_only: Some(false),
            ..ConnectRequest::default()
        };
        let mut out = BytesMut::new();
        request.encode(&mut out);
        stream.write_all(&out).await?;
        let mut received = BytesMut::new();
        let response = loop {
            if let Some(payload) = frame::split(&mut received, FRAME_BYTES_MAX).map_err(invalid)? {
                break ConnectResponse::decode(payload).map_err(invalid)?;
            }
            if stream.read_buf(&mut received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        if response.session_id == 0 {
            return Ok(Handshake::Expired);
        }
        if status.id != 0 && status.id != response.session_id {
            let text = format!("asked for session {:#x} and was given {:#x}", status.id, response.session_id);
            self.journal.violation("sessions", text, "");
        }
        self.password = Bytes::copy_from_slice(&response.password);
        self.last_alive = begun;
        self.status.send_modify(|status| {
            status.id = response.session_id;
            status.timeout_ms = u64::try_from(response.timeout_ms).unwrap_or(0);
            status.connections += 1;
        });
        Ok(Handshake::Established(stream, received))
    }

    /// Until the connection breaks (`None`) or the session is over.
    async fn serve(&mut self, mut stream: TcpStream, mut received: BytesMut) -> Option<()> {
        let timeout_ms = self.status.borrow().timeout_ms;
        let (ping_after, silent_after) =
            (Duration::from_millis(timeout_ms / 3), Duration::from_millis(timeout_ms * 2 / 3));
        let mut outstanding = Outstanding::default();
        let mut closing = false;
        let mut out = BytesMut::new();
        let mut ping_sent = None;
        if let Some(request) = self.watches.again(self.last_zxid) {
            request.encode(opcode::XID_SET_WATCHES, &mut out);
        }
        let (mut last_heard, mut last_said) = (Instant::now(), Instant::now());
        let end = loop {
            if !out.is_empty() {
                last_said = Instant::now();
                if !matches!(timeout(silent_after, stream.write_all(&out)).await, Ok(Ok(()))) {
                    break None;
                }
                out.clear();
            }
            match self.take_frames(&mut received, &mut outstanding, &mut ping_sent) {
                Ok(0) => {}
                Ok(_) => last_heard = Instant::now(),
                Err(text) => {
                    self.journal.violation("wire", text, "");
                    break None;
                }
            }
            if closing && outstanding.pending.is_empty() {
                break Some(Over::Closed);
            }
            let silent = last_heard + silent_after;
            if Instant::now() >= silent {
                break None;
            }
            let ping = if ping_sent.is_some() { silent } else { last_said + ping_after };
            tokio::select! {
                read = stream.read_buf(&mut received) => match read {
                    Ok(0) | Err(_) => break None,
                    Ok(_) => {}
                },
                call = self.calls.recv(), if !closing && outstanding.calls.len() < CALLS_MAX => match call {
                    Some(call) => closing = self.send(call, &mut outstanding, &mut out),
                    // The session was dropped; so is this task, right away.
                    None => break Some(Over::Closed),
                },
                () = tokio::time::sleep_until(ping.min(silent)) => if ping_sent.is_none() && Instant::now() >= ping {
                    Request::Ping.encode(opcode::XID_PING, &mut out);
                    ping_sent = Some(Instant::now());
                },
            }
        };
        outstanding.lose_all();
        match end {
            // Whether it was closed is not known, but nobody will use it any more.
            None if closing => self.end(Over::Closed),
            None => return None,
            Some(over) => self.end(over),
        }
        Some(())
    }

    /// Appends the requests of a call. Returns whether the session closes with them.
    fn send(&mut self, call: Call, outstanding: &mut Outstanding, out: &mut BytesMut) -> bool {
        let number = outstanding.next_call;
        outstanding.next_call += 1;
        let answers = Answers { got: Vec::new(), wanted: call.requests.len(), to: call.answers };
        outstanding.calls.insert(number, answers);
        let mut closes = false;
        for request in call.requests {
            // Negative numbers are the protocol's own.
            self.xid = self.xid.checked_add(1).unwrap_or(1);
            request.encode(self.xid, out);
            closes |= request == Request::CloseSession;
            outstanding.pending.push_back(Pending { xid: self.xid, request, call: number, sent: Instant::now() });
        }
        closes
    }

    /// Takes what has arrived; how many frames. An error is something that no server may send.
    fn take_frames(
        &mut self,
        received: &mut BytesMut,
        outstanding: &mut Outstanding,
        ping_sent: &mut Option<Instant>,
    ) -> Result<usize, String> {
        let mut frames = 0;
        while let Some(payload) = frame::split(received, FRAME_BYTES_MAX).map_err(|e| e.to_string())? {
            frames += 1;
            let (header, mut body) = decode_reply(payload).map_err(|e| e.to_string())?;
            match header.xid {
                opcode::XID_PING => {
                    if let Some(sent) = ping_sent.take() {
                        self.last_alive = self.last_alive.max(sent);
                    }
                }
                opcode::XID_SET_WATCHES => {}
                opcode::XID_EVENT => self.take_event(&mut body)?,
                _ => self.take_reply(header, &mut body, outstanding)?,
            }
            self.note_zxid(header)?;
        }
        Ok(frames)
    }

    /// What a session sees never goes back, on whichever server.
    fn note_zxid(&mut self, header: ReplyHeader) -> Result<(), String> {
        if header.zxid <= 0 {
            return Ok(());
        }
        if header.zxid < self.last_zxid && header.xid >= 0 {
            let id = self.status.borrow().id;
            return Err(format!(
                "session {id:#x} saw {:#x} and then, in reply {}, {:#x}",
                self.last_zxid, header.xid, header.zxid
            ));
        }
        self.last_zxid = self.last_zxid.max(header.zxid);
        Ok(())
    }

    fn take_event(&mut self, body: &mut Reader) -> Result<(), String> {
        let event = WatcherEvent::decode(body).map_err(|e| e.to_string())?;
        let kind = EventKind::from_code(event.kind).ok_or_else(|| format!("an event of kind {}", event.kind))?;
        let event = WatchedEvent { kind, path: event.path, zxid: None };
        self.watches.fire(&event);
        self.events.try_send(event).map_err(|e| format!("events that nobody takes: {e}"))
    }

    fn take_reply(
        &mut self,
        header: ReplyHeader,
        body: &mut Reader,
        outstanding: &mut Outstanding,
    ) -> Result<(), String> {
        let Some(pending) = outstanding.pending.pop_front().filter(|pending| pending.xid == header.xid) else {
            return Err(format!("reply {} is not the next one", header.xid));
        };
        self.last_alive = self.last_alive.max(pending.sent);
        self.watches.arm(&pending.request, header.err);
        let answer = match header.err {
            0 => {
                let body = Response::decode(pending.request.opcode(), body).map_err(|e| e.to_string())?;
                Answer::Done { zxid: header.zxid, body }
            }
            code => Answer::Refused(ErrorCode::from_code(code).unwrap_or(ErrorCode::SystemError)),
        };
        outstanding.answer(pending.call, answer);
        Ok(())
    }
}

/// Counts an expired session, and checks that it was not ended while its client's lease lasted: a server that is cut off
/// from its leader answers for some time without the leader's knowledge, so not the whole timeout counts from an answer.
pub fn judge_expiry(journal: &Journal, id: i64, last_alive: Instant, timeout_ms: u64) {
    journal.session_expired();
    let silence = Instant::now().saturating_duration_since(last_alive);
    if silence < Duration::from_millis(timeout_ms * LEASE_PERCENT / 100) {
        let text = format!(
            "session {id:#x} expired {} ms after it sent what a server answered; its timeout is {timeout_ms} ms",
            silence.as_millis()
        );
        journal.violation("sessions", text, "");
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
