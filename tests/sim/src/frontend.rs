//! Clients and the connections they have, on both sides: what the front ends of a real server do, without bytes.

use std::sync::Arc;

use bytes::Bytes;
use corral_core::member::MemberInput;
use corral_core::session::lane::{Handshake, Lane, Step};
use corral_core::session::outbox::Key;
use corral_core::session::{ClientRequest, CloseReason, Consistency, Outgoing, Protocol};
use corral_core::tree::entry::{Command, Txn};
use corral_core::tree::op::{Answer, ReadOp};
use corral_core::watch::WatcherId;
use corral_core::zab::io::Input;
use corral_proto::{ErrorCode, ServerId, SessionId, WatchKind, Zxid};

use crate::checks::{Check, Violation, ensure};
use crate::client::{Call, Client, ClientConnection, LastWord, Pending, Sort, Unanswered};
use crate::guests::GUEST;
use crate::history::registers::Ticket;
use crate::history::{ClientResult, Kept, Seen, WriteKey, client_ids};
use crate::options::Load;
use crate::schedule::{MS, Micros};
use crate::server::Connection;
use crate::workload::landmark;
use crate::world::{Event, ProcessRef, Stage, World};

/// Of a hundred requests: those that change nothing.
const READS: std::ops::Range<u64> = 58..100;

/// A client with so many requests in flight is deep in its pipeline, for the record.
const DEEP_PIPELINE: usize = 32;

/// From a client to a server.
pub enum ToServer {
    /// Begins or takes up a session.
    Open {
        /// Which.
        session: Option<SessionId>,
        /// Highest zxid seen.
        seen: Zxid,
        /// Speaks ZooKeeper's protocol.
        wire: bool,
    },
    /// A request, with the client's mark.
    Request(u64, ClientRequest),
    /// The client begins or ceases to read (`false`) what it is sent: the server's buffers fill.
    Reads(bool),
    /// The client is gone, or the connection broke.
    Gone,
}

/// From a server to a client.
#[derive(Debug)]
pub enum ToClient {
    /// The handshake ended.
    Handshake(SessionId, Handshake),
    /// A reply, an event, the end.
    Out(Outgoing),
    /// The connection broke.
    Broken,
}

impl World {
    /// A client does something, if it wants to.
    pub(crate) fn client_acts(&mut self, index: usize) -> Check {
        let now = self.schedule.now();
        let load = self.options.load.clone();
        let client = &mut self.clients[index];
        let pause = MS + client.rng.below(2 * load.think_ms * MS);
        if now >= client.silent_until && std::mem::take(&mut client.aims) {
            let deadline = self.session_deadline(index);
            self.clients[index].silent_until = deadline.unwrap_or(0);
        }
        let client = &mut self.clients[index];
        if now < client.silent_until {
            let wait = client.silent_until - now;
            self.schedule.after(wait, Event::ClientActs(index));
            return Ok(());
        }
        self.schedule.after(pause, Event::ClientActs(index));
        if load.stall_ms > 0 {
            self.client_stalls(index);
        }
        let client = &mut self.clients[index];
        let Some(connection) = &client.connection else {
            if !client.stopped || !client.is_idle() || client.session.is_some() {
                self.client_connects(index);
            }
            return Ok(());
        };
        let timeout = load.session_timeout_ms * MS;
        if connection.stalled_until.is_none() && now > connection.heard + timeout * 2 / 3 {
            self.trace.reached("client gave up on a silent server");
            if self.stage != Stage::Safety && now > self.calm_at + 2 * timeout && client.pending.len() > 1 {
                return Err(Violation {
                    invariant: "I28 liveness",
                    text: format!(
                        "client {index} was not answered for {} ms without any fault",
                        (now - connection.heard) / MS
                    ),
                });
            }
            self.client_cuts(index);
            return Ok(());
        }
        if connection.attach.is_none() {
            return Ok(());
        }
        if now > connection.heard + timeout / 4 && client.pending.is_empty() {
            self.client_sends(index, ClientRequest::Ping, Call::Ping, Zxid::ZERO, None);
            return Ok(());
        }
        if client.stopped {
            if client.last_word == LastWord::Wanted {
                client.last_word = LastWord::Asked;
                let op = ReadOp::Exists { path: "/".to_owned() };
                let request = ClientRequest::Read { op, watch: false, consistency: Consistency::Linearizable };
                self.client_sends(index, request, Call::Last, Zxid::ZERO, None);
            }
            return Ok(());
        }
        if client.follower.is_some() {
            return Ok(());
        }
        let burst = match client.rng.chance(load.burst_per_mille) {
            true if client.rng.chance(load.watch_per_mille / 4) => {
                self.watches_everything(index, load.paths);
                return Ok(());
            }
            true => 1 + client.rng.below(load.pipeline),
            false => 1,
        };
        for _ in 0..burst {
            let client = &self.clients[index];
            if client.pending.len() as u64 >= load.pipeline {
                break;
            }
            if client.pending.len() >= DEEP_PIPELINE {
                self.trace.reached("load: deep pipeline");
            }
            if !self.client_asks(index, &load) {
                break;
            }
        }
        Ok(())
    }

    /// About when the leader will end a client's session, by what it has heard so far.
    fn session_deadline(&mut self, index: usize) -> Option<Micros> {
        let (now, session) = (self.schedule.now(), self.clients[index].session?);
        let leader = self.leader()?;
        let at = self.process_of(leader)?;
        let heard = self.history.touched(at.process, session)?;
        let clock = &self.servers[&leader].clock;
        let left = (heard + self.options.load.session_timeout_ms * MS).saturating_sub(clock.mono(now));
        let way = 2 * (self.options.client_delay.1 + self.options.delay.1) + self.options.write_time;
        let early = self.clients[index].rng.below(2 * way + 20 * MS);
        Some((now + clock.measured(left) + way).saturating_sub(early))
    }

    /// Asks for something new; false if nothing can follow it.
    fn client_asks(&mut self, index: usize, load: &Load) -> bool {
        let floor = self.history.floor();
        // Progress is what writes make.
        let safety = self.stage == Stage::Safety;
        let client = &mut self.clients[index];
        let what = client.rng.below(100);
        match if client.reader && safety { READS.start + what % (READS.end - READS.start) } else { what } {
            0..53 => {
                let op = client.draw_write(load);
                let session = client.session.expect("the handshake is over");
                let ticket = op.as_ref().and_then(|op| self.history.registers.send_write(session, op));
                let client = &mut self.clients[index];
                let write = Unanswered { n: client.next_n, op, floor, ticket };
                client.next_n += 1;
                client.unanswered.push_back(write.clone());
                self.client_writes(index, &write, false);
                if write.op.is_none() {
                    self.trace.reached("client closed its session");
                    return false;
                }
            }
            53..56 => {
                let (path, recursive) = (client.path(load), client.rng.chance(500));
                let kind = if recursive { WatchKind::PersistentRecursive } else { WatchKind::Persistent };
                let request = ClientRequest::AddWatch { path: path.clone(), kind };
                self.client_sends(index, request, Call::AddWatch(path, recursive), floor, None);
            }
            56..58 => {
                let (path, kind) = client.draw_watches(load);
                let remove = client.rng.chance(700);
                let call = Call::Watches(path.clone(), kind, remove);
                let request = match remove {
                    true => ClientRequest::RemoveWatches { path, kind },
                    false => ClientRequest::CheckWatches { path, kind },
                };
                self.client_sends(index, request, call, floor, None);
            }
            58..95 => {
                let (op, watch, consistency) = client.draw_read(load, floor);
                self.client_reads(index, op, watch, consistency);
            }
            _ if load.linearizable_per_mille > 0 => {
                self.client_sends(index, ClientRequest::Sync, Call::Sync, floor, None);
            }
            // Here only those look for the latest state who were told that there is one.
            _ => {}
        }
        true
    }

    fn watches_everything(&mut self, index: usize, paths: u64) {
        self.trace.reached("load: watches on everything");
        for path in 0..paths {
            let op = match self.clients[index].rng.chance(500) {
                true => ReadOp::Exists { path: format!("/p{path}") },
                false => ReadOp::GetChildren { path: format!("/p{path}") },
            };
            self.client_reads(index, op, true, Consistency::Local);
        }
    }

    fn client_reads(&mut self, index: usize, op: ReadOp, watch: bool, consistency: Consistency) {
        let floor = self.history.floor();
        let session = self.clients[index].session.expect("the handshake is over");
        let ticket = match consistency {
            Consistency::Linearizable => self.history.registers.send_read(session, &op),
            _ => None,
        };
        let request = ClientRequest::Read { op: op.clone(), watch, consistency };
        self.client_sends(index, request, Call::Read { op, watch, consistency }, floor, ticket);
    }

    /// A write of this client was answered, and it tells another client, which looks at once: what `sync` is for.
    fn client_tells(&mut self, index: usize) {
        let (clients, told) = (self.clients.len() as u64, self.options.load.told_per_mille);
        let client = &mut self.clients[index];
        if !client.rng.chance(told) {
            return;
        }
        let other = client.rng.below(clients) as usize;
        let delay = self.network.client_delay();
        self.schedule.after(delay, Event::ClientHears(other));
    }

    /// A client looks for the latest state.
    pub(crate) fn client_looks(&mut self, index: usize) {
        let (now, load) = (self.schedule.now(), self.options.load.clone());
        let client = &mut self.clients[index];
        let able = client.connection.as_ref().is_some_and(|c| c.attach.is_some())
            && client.follower.is_none()
            && !client.stopped
            && now >= client.silent_until
            && (client.pending.len() as u64) < load.pipeline.max(2);
        if !able {
            return;
        }
        self.trace.reached("load: told by another client");
        if self.clients[index].rng.chance(500) {
            let floor = self.history.floor();
            self.client_sends(index, ClientRequest::Sync, Call::Sync, floor, None);
        } else {
            let path = self.clients[index].path(&load);
            self.client_reads(index, ReadOp::GetData { path }, false, Consistency::Linearizable);
        }
    }

    fn client_writes(&mut self, index: usize, write: &Unanswered, again: bool) {
        let client = &self.clients[index];
        let request = client.write_request(write);
        self.history.on_sent(write_key(client, write.n), write.op.as_ref(), write.floor);
        self.client_sends(index, request, Call::Write { n: write.n, again }, write.floor, write.ticket);
    }

    /// A client begins to read nothing, or to read again.
    fn client_stalls(&mut self, index: usize) {
        let now = self.schedule.now();
        let load = &self.options.load;
        let (think_ms, stall_ms, timeout) = (load.think_ms, load.stall_ms, load.session_timeout_ms * MS);
        let safety = self.stage == Stage::Safety;
        let client = &mut self.clients[index];
        let Some(connection) = &mut client.connection else { return };
        match connection.stalled_until {
            Some(until) if now >= until || !safety => {
                connection.stalled_until = None;
                connection.heard = now;
                self.tell_server(index, ToServer::Reads(true));
            }
            None if safety && connection.attach.is_some() && client.rng.below(stall_ms) < think_ms => {
                connection.stalled_until = Some(now + client.rng.magnitude(MS, 2 * timeout));
                self.trace.reached("load: client does not read");
                self.tell_server(index, ToServer::Reads(false));
            }
            _ => {}
        }
    }

    /// At rest every session reads once more: what that shows, its watches must have told.
    pub(crate) fn lacks_last_words(&mut self) -> Option<String> {
        let mut lacking = None;
        for (index, client) in self.clients.iter_mut().enumerate() {
            if client.session.is_none() || client.last_word == LastWord::Heard {
                continue;
            }
            if client.last_word == LastWord::NotYet {
                client.last_word = LastWord::Wanted;
            }
            lacking = Some(format!("client {index} has not read for the last time: {:?}", client.last_word));
        }
        lacking
    }

    fn client_connects(&mut self, index: usize) {
        let servers = self.options.servers();
        let client = &mut self.clients[index];
        let server = ServerId(1 + client.rng.below(servers));
        let Some(process) = self.servers[&server].process.as_ref().map(|p| p.number) else { return };
        self.next_connection += 1;
        let now = self.schedule.now();
        let client = &mut self.clients[index];
        client.connection = Some(ClientConnection {
            id: self.next_connection,
            server,
            process,
            attach: None,
            arrives: now,
            heard: now,
            stalled_until: None,
        });
        let open = ToServer::Open { session: client.session, seen: client.seen, wire: client.wire };
        self.tell_server(index, open);
    }

    /// The client leaves its connection; the server hears of it later, after what is on its way.
    pub(crate) fn client_cuts(&mut self, index: usize) {
        if self.clients[index].connection.is_some() {
            self.tell_server(index, ToServer::Gone);
            self.clients[index].forget_connection();
        }
    }

    pub(crate) fn client_sends(
        &mut self,
        index: usize,
        request: ClientRequest,
        call: Call,
        floor: Zxid,
        ticket: Option<Ticket>,
    ) {
        let client = &mut self.clients[index];
        let cookie = client.next_cookie;
        client.next_cookie += 1;
        let (connection, session) = (client.connection.as_ref().map_or(0, |c| c.id), client.session);
        self.trace.line(self.schedule.now(), || {
            format!("client {index} ({session:?}, connection {connection}) asks {cookie}: {request:?}")
        });
        client.pending.push_back(Pending { cookie, call, floor, ticket });
        self.tell_server(index, ToServer::Request(cookie, request));
    }

    fn tell_server(&mut self, index: usize, message: ToServer) {
        let now = self.schedule.now();
        let delay = self.network.client_delay();
        let Some(connection) = &mut self.clients[index].connection else { return };
        connection.arrives = connection.arrives.max(now + delay);
        let to = ProcessRef { server: connection.server, process: connection.process };
        let event = Event::ToServer { to, connection: connection.id, client: index, message };
        self.schedule.at(connection.arrives, event);
    }

    /// Something of a client reached a server.
    pub(crate) fn on_to_server(&mut self, to: ProcessRef, id: u64, client: usize, message: ToServer) -> Check {
        let now = self.schedule.now();
        let server = self.servers.get_mut(&to.server).expect("servers are fixed");
        let Some(process) = server.process.as_mut().filter(|p| p.number == to.process) else {
            self.schedule.after(MS, Event::ToClient { client, connection: id, message: ToClient::Broken });
            return Ok(());
        };
        match message {
            ToServer::Open { session, seen, wire } => {
                self.next_session += 1;
                let nonce = self.next_session;
                let new = session.is_none();
                let session = session.unwrap_or(SessionId(((to.server.0 as i64) << 48) | nonce as i64));
                let woken = process.woken.clone();
                let wake = Box::new(move || {
                    woken.lock().expect("one thread").insert(id);
                });
                let protocol = if wire { Protocol::Wire } else { Protocol::Grpc };
                let lane = Lane::new(WatcherId(id), session, protocol, client_ids(), seen, wake);
                let unread = self.options.load.unread_bytes;
                let lane = Arc::new(lane.bounded(unread, unread));
                let lanes = &process.apply.shared();
                if !lanes.lanes.join(session, nonce, lane.clone()) {
                    self.schedule.after(MS, Event::ToClient { client, connection: id, message: ToClient::Broken });
                    return Ok(());
                }
                process.connections.insert(
                    id,
                    Connection {
                        client,
                        lane,
                        nonce,
                        next_n: wire.then_some(1),
                        answered: false,
                        reads: true,
                        turn: false,
                        arrives: now,
                    },
                );
                let timeout_ms = self.options.load.session_timeout_ms as i32;
                let command = if new {
                    Command::CreateSession { timeout_ms, server: to.server, nonce, keeps_results: !wire }
                } else {
                    Command::Attach { timeout_ms, server: to.server, nonce, keeps_results: !wire }
                };
                self.history.timeouts.insert(session, timeout_ms as u64);
                if new && !wire {
                    self.history.keeps_results.insert(session);
                }
                let txn = Txn { session, attach: Zxid::ZERO, n: 0, answered_through: 0, ids: client_ids(), command };
                self.submit(to, &txn);
            }
            ToServer::Gone => {
                if let Some(connection) = process.connections.remove(&id) {
                    let shared = process.apply.shared();
                    let (session, nonce) = (connection.lane.session, connection.nonce);
                    let waited = shared.lanes.abandon(session, nonce);
                    shared.detach(&connection.lane);
                    if waited {
                        self.push_input(to, MemberInput::Withdraw(Key::Handshake { session, nonce }));
                    }
                }
            }
            ToServer::Reads(reads) => {
                let Some(connection) = process.connections.get_mut(&id) else { return Ok(()) };
                connection.reads = reads;
                self.task_turn(to, id);
            }
            ToServer::Request(cookie, request) => {
                let Some(connection) = process.connections.get_mut(&id) else { return Ok(()) };
                if connection.lane.is_closed() {
                    return Ok(());
                }
                let session = connection.lane.session;
                self.push_input(to, MemberInput::Touched(vec![session]));
                self.on_request(to, id, cookie, request);
                self.task_turn(to, id);
            }
        }
        Ok(())
    }

    fn submit(&mut self, to: ProcessRef, txn: &Txn) {
        let key = Key::of(txn).expect("transactions of clients have keys");
        let payload: Bytes = txn.encode();
        self.push_input(to, MemberInput::Submit(vec![(key, payload)]));
    }

    fn on_request(&mut self, to: ProcessRef, id: u64, cookie: u64, request: ClientRequest) {
        let process = self.process_mut(to).expect("the caller found it");
        let connection = process.connections.get_mut(&id).expect("the caller found it");
        let lane = connection.lane.clone();
        let (n, answered_through, command) = match request {
            ClientRequest::Write { op, n, answered_through } => (n, answered_through, Command::Write(op)),
            ClientRequest::CloseSession { n } => (n, 0, Command::CloseSession { expired: false }),
            ClientRequest::Read { op, watch, consistency } => {
                let step = Step::Read { op, watch };
                let tag = (consistency == Consistency::Linearizable).then(|| self.read_point(to, id));
                lane.push(cookie, step, consistency, tag);
                return;
            }
            ClientRequest::Sync => {
                let tag = self.read_point(to, id);
                lane.push(cookie, Step::Answer(Ok(Answer::Done)), Consistency::Linearizable, Some(tag));
                return;
            }
            ClientRequest::AddWatch { path, kind } => {
                lane.push(cookie, Step::AddWatch { path, kind }, Consistency::Local, None);
                return;
            }
            ClientRequest::RemoveWatches { path, kind } => {
                lane.push(cookie, Step::Watches { path, kind, remove: true }, Consistency::Local, None);
                return;
            }
            ClientRequest::CheckWatches { path, kind } => {
                lane.push(cookie, Step::Watches { path, kind, remove: false }, Consistency::Local, None);
                return;
            }
            ClientRequest::Subscribe { watch, subscription, after } => {
                let is_ahead = after > Some(process.apply.position().zxid);
                let tag = is_ahead.then(|| self.read_point(to, id));
                let consistency = if is_ahead { Consistency::Linearizable } else { Consistency::Local };
                lane.push(cookie, Step::Subscribe { watch, subscription, after }, consistency, tag);
                return;
            }
            ClientRequest::Unsubscribe { watch } => {
                lane.push(cookie, Step::Unsubscribe { watch }, Consistency::Local, None);
                return;
            }
            ClientRequest::SetWatches(watches) => {
                lane.push(cookie, Step::SetWatches(watches), Consistency::Local, None);
                return;
            }
            _ => {
                lane.push(cookie, Step::Answer(Ok(Answer::Done)), Consistency::Local, None);
                return;
            }
        };
        let n = n.unwrap_or_else(|| {
            let next = connection.next_n.as_mut().expect("only ZooKeeper's protocol leaves numbers to the server");
            *next += 1;
            *next - 1
        });
        lane.push(cookie, Step::Write { n }, Consistency::Local, None);
        let txn = Txn { session: lane.session, attach: lane.attach(), n, answered_through, ids: client_ids(), command };
        self.submit(to, &txn);
    }

    fn read_point(&mut self, to: ProcessRef, connection: u64) -> u64 {
        let process = self.process_mut(to).expect("the caller found it");
        process.last_tag += 1;
        let tag = process.last_tag;
        process.read_points.insert(tag, connection);
        self.push_input(to, MemberInput::Zab(Input::ReadIndex { tag }));
        tag
    }

    /// The leader named a read point.
    pub(crate) fn on_read_point(&mut self, to: ProcessRef, tag: u64, zxid: Zxid) {
        let Some(process) = self.process_mut(to) else { return };
        let Some(id) = process.read_points.remove(&tag) else { return };
        if let Some(connection) = process.connections.get(&id) {
            connection.lane.clone().on_read_point(tag, zxid);
        }
        self.serve_woken(to);
    }

    /// Lets every connection that was woken do what it can.
    pub(crate) fn serve_woken(&mut self, to: ProcessRef) {
        loop {
            let Some(process) = self.process_mut(to) else { return };
            let woken = std::mem::take(&mut *process.woken.lock().expect("one thread"));
            if woken.is_empty() {
                return;
            }
            for id in woken {
                self.task_turn(to, id);
            }
        }
    }

    /// The task of a connection has something to do: it does so at once, or others come first.
    fn task_turn(&mut self, to: ProcessRef, id: u64) {
        let (at_once, delay) = (self.rng.chance(300), self.rng.below(self.options.task_delay));
        let Some(process) = self.process_mut(to) else { return };
        let Some(connection) = process.connections.get_mut(&id).filter(|connection| !connection.turn) else { return };
        if at_once {
            self.advance_lane(to, id);
        } else {
            connection.turn = true;
            self.schedule.after(delay, Event::TaskTurn(to, id));
        }
    }

    /// The task of a connection has its turn.
    pub(crate) fn task_turns(&mut self, to: ProcessRef, id: u64) {
        if let Some(connection) = self.process_mut(to).and_then(|process| process.connections.get_mut(&id)) {
            connection.turn = false;
        }
        self.advance_lane(to, id);
        self.serve_woken(to);
    }

    /// Lets a connection do what it can.
    fn advance_lane(&mut self, to: ProcessRef, id: u64) {
        let Some(process) = self.process_mut(to) else { return };
        let Some(connection) = process.connections.get_mut(&id) else { return };
        // Its task waits for room in the socket.
        if !connection.reads {
            return;
        }
        let lane = connection.lane.clone();
        let mut messages = Vec::new();
        if !connection.answered
            && let Some(handshake) = lane.handshake()
        {
            connection.answered = true;
            messages.push(ToClient::Handshake(lane.session, handshake));
        }
        let answered = connection.answered;
        let mut out = Vec::new();
        // What a full queue held back is in front again when it was emptied.
        loop {
            if answered {
                process.apply.shared().advance(&lane);
            }
            if !lane.take_outgoing(&mut out) {
                break;
            }
        }
        let closes = out.iter().any(|o| matches!(o, Outgoing::Close(_)));
        messages.extend(out.into_iter().map(ToClient::Out));
        if messages.is_empty() {
            return;
        }
        let process = self.process_mut(to).expect("found above");
        let connection = process.connections.get_mut(&id).expect("found above");
        let (client, mut arrives) = (connection.client, connection.arrives);
        if closes {
            process.apply.shared().detach(&lane);
            process.connections.remove(&id);
        }
        let now = self.schedule.now();
        for message in messages {
            arrives = arrives.max(now + self.network.client_delay());
            self.schedule.at(arrives, Event::ToClient { client, connection: id, message });
        }
        if let Some(connection) = self.process_mut(to).and_then(|p| p.connections.get_mut(&id)) {
            connection.arrives = arrives;
        }
    }

    /// A client was told that its session is over.
    fn session_over(&mut self, index: usize, session: SessionId) {
        self.history.told_expired.insert(session);
        self.history.registers.session_over(session);
        self.clients[index].forget_session();
    }

    /// Something of a server reached a client.
    pub(crate) fn on_to_client(&mut self, index: usize, id: u64, message: ToClient) -> Check {
        if index == GUEST {
            self.on_to_guest(id, message);
            return Ok(());
        }
        let now = self.schedule.now();
        let client = &mut self.clients[index];
        let Some(connection) = client.connection.as_mut().filter(|c| c.id == id) else { return Ok(()) };
        connection.heard = now;
        self.trace.line(now, || format!("client {index} (connection {id}) gets {message:?}"));
        match message {
            ToClient::Broken => client.forget_connection(),
            ToClient::Handshake(session, Handshake::Attached { attach, .. }) => {
                connection.attach = Some(attach);
                if client.session.is_some() {
                    self.trace.reached("session moved");
                }
                let client = &mut self.clients[index];
                client.session = Some(session);
                client.seen = client.seen.max(attach);
                if let Some(watches) = client.set_watches() {
                    self.trace.reached("watches set again");
                    let call = Call::SetWatches(watches.clone());
                    self.client_sends(index, ClientRequest::SetWatches(watches), call, Zxid::ZERO, None);
                }
                self.follower_connected(index);
                for write in self.clients[index].unanswered.clone() {
                    self.trace.reached("write sent again");
                    self.client_writes(index, &write, true);
                }
            }
            ToClient::Handshake(session, Handshake::Expired) => {
                self.trace.reached("session found expired");
                self.session_over(index, session);
            }
            ToClient::Handshake(_, Handshake::IdTaken) => client.forget_connection(),
            ToClient::Out(Outgoing::Reply { cookie, zxid, result }) => {
                self.on_reply(index, id, cookie, zxid, result)?;
            }
            ToClient::Out(Outgoing::Event(event)) => {
                let event = &event.event;
                client.consume(event.kind, &event.path);
                let Some(zxid) = event.zxid else {
                    client.missed.push((event.kind, event.path.clone()));
                    self.trace.reached("watch fired at re-registration");
                    return Ok(());
                };
                ensure!(
                    zxid >= client.seen,
                    "I23 session order",
                    "client {index} got {event:?} after it had seen {:?}",
                    client.seen
                );
                client.seen = zxid;
                self.trace.reached("watch fired");
                self.history.on_seen(id, Seen::Event { kind: event.kind, path: event.path.clone(), zxid });
            }
            ToClient::Out(Outgoing::Feed(notice)) => return self.on_feed(index, notice),
            ToClient::Out(Outgoing::Close(reason)) => {
                self.trace.reached(match reason {
                    CloseReason::Expired => "connection closed: expired",
                    CloseReason::ClosedByClient => "connection closed: by client",
                    CloseReason::Moved => "connection closed: moved",
                    CloseReason::NoQuorum => "connection closed: no quorum",
                    CloseReason::QuorumIsBack => "connection closed: the quorum is back",
                    CloseReason::SlowReader => "connection closed: slow reader",
                    CloseReason::OutOfOrder => "connection closed: out of order",
                    CloseReason::ShuttingDown => "connection closed: state replaced",
                });
                let client = &mut self.clients[index];
                match reason {
                    CloseReason::Expired | CloseReason::ClosedByClient => match client.session {
                        Some(session) => self.session_over(index, session),
                        None => client.forget_session(),
                    },
                    CloseReason::OutOfOrder => {
                        return Err(Violation {
                            invariant: "I23 session order",
                            text: format!("client {index} was told that its numbers are out of order"),
                        });
                    }
                    _ => client.forget_connection(),
                }
            }
        }
        Ok(())
    }

    fn on_reply(&mut self, index: usize, id: u64, cookie: u64, zxid: Zxid, result: ClientResult) -> Check {
        const NAME: &str = "I23 session order";
        let client = &mut self.clients[index];
        let session = client.session.expect("replies come after the handshake");
        let pending = client.pending.pop_front();
        let Some(Pending { call, floor, ticket, .. }) = pending.filter(|p| p.cookie == cookie) else {
            ensure!(false, NAME, "client {index} got reply {cookie} ({result:?}), which is not the next");
            return Ok(());
        };
        // An answer that was kept, or is none, is older than what was seen since.
        let is_write = matches!(call, Call::Write { .. });
        ensure!(
            is_write || zxid >= client.seen,
            NAME,
            "client {index} was answered {call:?} from {zxid:?} after it had seen {:?}",
            client.seen
        );
        if let Some(ticket) = ticket {
            self.history.registers.answered(session, ticket, &result);
        }
        let client = &mut self.clients[index];
        let (seen, replied) = (client.seen, client.replied);
        client.seen = seen.max(zxid);
        client.replied = replied.max(zxid);
        match call {
            Call::Write { n, again } => {
                // The end of a session that is gone already, and refusals without an entry, have no place in the log.
                if result == Err(ErrorCode::SessionExpired) {
                    return Ok(());
                }
                let write = client.unanswered.pop_front_if(|u| u.n == n);
                let key = write_key(client, n);
                self.history.on_write(&self.checks.ghost, key, zxid, &result)?;
                // What was asked before the write is answered from before it; its own events come before its reply.
                ensure!(
                    again || (zxid > replied && zxid >= seen),
                    NAME,
                    "client {index} was answered number {n} at {zxid:?} after replies up to {replied:?} and events up to {seen:?}"
                );
                if let Some(landmark) = write.and_then(|write| landmark(&write.op?, &result)) {
                    self.trace.reached(landmark);
                }
                self.client_tells(index);
            }
            Call::Read { op, watch, consistency } => {
                client.learn(&op, &result);
                self.history.on_read(session, &op, consistency, zxid, &result, floor)?;
                if matches!(op, ReadOp::MultiRead(_)) {
                    self.trace.reached("multi-read answered");
                }
                let armed = match &op {
                    ReadOp::Exists { path } if result.is_ok() => Some((path, Sort::Data)),
                    ReadOp::Exists { path } if result == Err(ErrorCode::NoNode) => Some((path, Sort::Exist)),
                    ReadOp::GetData { path } if result.is_ok() => Some((path, Sort::Data)),
                    ReadOp::GetChildren { path } if result.is_ok() => Some((path, Sort::Child)),
                    _ => None,
                };
                if let Some((path, sort)) = armed.filter(|_| watch) {
                    self.trace.reached("watch armed");
                    self.clients[index].armed.entry((path.clone(), sort)).or_insert(zxid);
                    self.history.on_seen(id, Seen::Armed { path: path.clone(), kind: sort.kind(), zxid });
                }
            }
            Call::Sync => {
                ensure!(
                    zxid >= floor,
                    "I24 sync read",
                    "client {index} synced at {zxid:?}; {floor:?} was answered before it asked"
                );
                self.trace.reached("sync answered");
            }
            Call::AddWatch(path, recursive) => {
                client.persistent.insert((path.clone(), recursive));
                let kind = if recursive { WatchKind::PersistentRecursive } else { WatchKind::Persistent };
                self.history.on_seen(id, Seen::Armed { path, kind, zxid });
            }
            Call::Watches(path, kind, remove) => {
                let found = result.is_ok();
                ensure!(
                    found || result == Err(ErrorCode::NoWatcher),
                    "I25 watches",
                    "client {index} asked for watches {kind:?} on {path} and was told {result:?}"
                );
                if found && remove {
                    client.forget_watches(&path, kind);
                    self.trace.reached("watches removed");
                }
                self.history.on_seen(id, Seen::Watches { path, kind, remove, found, zxid });
            }
            Call::SetWatches(watches) => {
                let missed = std::mem::take(&mut client.missed);
                if !client.persistent.is_empty() {
                    self.trace.reached("persistent watches set again");
                }
                for ((path, sort), armed) in &client.armed {
                    // Who waits for a znode is not told of one that came and went meanwhile, as on ZooKeeper.
                    if *sort != Sort::Exist {
                        let (path, kind) = (path.clone(), sort.kind());
                        self.history.on_kept(Kept { session, path, kind, armed: *armed, again: zxid });
                    }
                }
                self.history.on_seen(id, Seen::SetAgain { watches, missed, zxid });
            }
            Call::Last => client.last_word = LastWord::Heard,
            Call::Ping => {}
            Call::Subscribe => {
                ensure!(result.is_ok(), "the change feed", "follower {index} may not subscribe: {result:?}");
            }
            Call::ReadAll { round } => match result {
                Ok(answer) => return self.follower_has_read(index, round, zxid, answer),
                Err(error) => ensure!(false, "the change feed", "follower {index} may not read: {error:?}"),
            },
        }
        self.history.on_seen(id, Seen::Reply(zxid));
        Ok(())
    }

    /// How long a client keeps silent to outlast its session: far beyond its end, about as long as it lasts, or until the
    /// very time at which it is ended.
    pub(crate) fn silence(&mut self) -> Micros {
        let timeout = self.options.load.session_timeout_ms * MS;
        match self.fault_rng.below(4) {
            0 => 3 * timeout,
            1 => timeout + self.fault_rng.below(timeout / 2),
            _ => timeout * 97 / 100 + self.fault_rng.below(timeout / 8),
        }
    }
}

/// The name of a client's write in the history.
fn write_key(client: &Client, n: u64) -> WriteKey {
    let session = client.session.expect("who writes has a session");
    let attach = client.connection.as_ref().and_then(|connection| connection.attach).unwrap_or_default();
    (session, if client.wire { attach } else { Zxid::ZERO }, n)
}
