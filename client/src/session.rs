//! One session as its client keeps it: what is unanswered, under which numbers, and what a new connection begins with.
//!
//! Pure: the time is an input (a [`Duration`] since the client was made), tokens of callers are only carried. The task in
//! [`crate::connection`] feeds it with what happens and sends what it is told to.
//!
//! The rule that matters most is P31. Every write has a number, 1, 2, 3, ... for the life of the session; a server answers
//! in order; so after a reconnect everything unanswered goes out again, in order, under its old number, and before
//! anything new. The server runs what it has not run, and answers the rest from memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use corral_proto::{ErrorCode, ServerId, SessionId, WatchKind, WatchedEvent, Zxid};

use crate::error::EndReason;
use crate::feeds::{Changes, FeedEvent, FeedItem, Feeds, Gap};
use crate::op::{Answer, Consistency, Op};
use crate::watches::{Slot, WatchId, WatchTable};

/// Share of the session timeout that a local deadline leaves. More than half: a server that is cut off from its leader
/// answers pings for up to syncTimeout, which is at most half of the smallest session timeout, and the leader counts none
/// of those; the rest covers the way of a touch from there to the leader.
const LEASE_MARGIN_PERCENT: u32 = 55;

/// Requests on their way at once. Below the 1,024 results that a server keeps for a session (P31).
pub(crate) const WINDOW_REQUESTS: usize = 1_000;
/// Bytes of requests on their way at once.
pub(crate) const WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of results of writes on their way at once. Below the 1 MiB that a server keeps for a session (P31).
pub(crate) const WINDOW_RESULT_BYTES: usize = 768 * 1024;
/// Requests that wait behind the window. Beyond it calls are refused.
pub(crate) const QUEUE_REQUESTS: usize = 100_000;
/// Bytes of requests that wait behind the window. Beyond it calls are refused.
pub(crate) const QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// Requests in one message.
pub(crate) const BATCH_REQUESTS: usize = 1_024;
/// Bytes of requests in one message, a single larger one excepted.
pub(crate) const BATCH_BYTES: usize = 1024 * 1024;
/// The largest request, whatever the server takes: what its largest frame holds, less the room for the message around it.
pub(crate) const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024 - 1024;
/// The largest request before a server has said what it takes: the default of servers.
const REQUEST_BYTES_DEFAULT: usize = 1024 * 1024 - 1;

/// What a connection's handshake says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attached {
    pub(crate) session: SessionId,
    pub(crate) password: Bytes,
    pub(crate) timeout: Duration,
    pub(crate) server: ServerId,
    /// Highest number of a write that was executed.
    pub(crate) last_n: u64,
    /// Largest request that the server takes, in bytes.
    pub(crate) request_bytes_max: usize,
}

/// What a new connection must say first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) session: SessionId,
    pub(crate) password: Bytes,
    pub(crate) timeout: Duration,
    pub(crate) last_zxid: Zxid,
}

/// Where the session stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Connecting,
    Connected,
    Suspended,
    Ended(EndReason),
}

/// How a request ended without an answer that is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Refused(ErrorCode),
    Ended { reason: EndReason, outcome_unknown: bool },
}

/// A request as it goes out.
#[derive(Debug, PartialEq)]
pub(crate) struct Outbound<'a> {
    pub(crate) id: u64,
    pub(crate) n: u64,
    pub(crate) answered_through: u64,
    pub(crate) consistency: Consistency,
    pub(crate) op: &'a Op,
    pub(crate) watch: bool,
}

/// What happened, for those who wait; in order.
#[derive(Debug, PartialEq)]
pub(crate) enum Output<T> {
    /// A request is done.
    Done { token: T, op: Op, zxid: Zxid, result: Result<Answer, Failure> },
    /// A watch fired.
    Fired { watch: WatchId, event: WatchedEvent },
    /// Something came of what is followed.
    Feed { watch: WatchId, item: FeedItem },
    /// [`Session::phase`] changed.
    Phase,
}

/// Whether a connection is still worth having.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pulse {
    Alive,
    /// Nothing came for two thirds of the session timeout: the last third is for finding another server.
    Dead,
}

struct Pending<T> {
    id: u64,
    /// Writes: their number. Else 0.
    n: u64,
    op: Op,
    consistency: Consistency,
    arms: Option<WatchId>,
    purpose: Purpose<T>,
    bytes: usize,
    result_bytes: usize,
    /// When it was last sent.
    sent_at: Duration,
    was_sent: bool,
}

enum Purpose<T> {
    /// Somebody asked for it.
    Caller(T),
    /// Only to be heard; not repeated on another connection.
    Ping,
    /// Proves an identity again; each connection makes its own.
    Reauth,
    /// Sets watches again; each connection makes its own.
    Rearm,
    /// Follows the feed again; each connection makes its own.
    Resubscribe,
    /// Takes a watch away that nobody holds any more.
    Forget,
    /// Follows the feed no more; another connection never did.
    Unsubscribe,
}

pub(crate) struct Session<T> {
    phase: Phase,
    id: SessionId,
    password: Bytes,
    /// Wished for, then negotiated.
    timeout: Duration,
    server: ServerId,
    connections: u64,

    /// Largest request that the server takes, in bytes.
    request_bytes_max: usize,
    last_id: u64,
    last_n: u64,
    /// Every write up to this number was answered.
    answered_through: u64,
    /// Answers to callers and pings, ever: shows whether a connection got anything done.
    answers: u64,
    /// Sent on the present connection and not answered, oldest first.
    sent: VecDeque<Pending<T>>,
    sent_bytes: usize,
    sent_result_bytes: usize,
    /// Not sent on the present connection, in order.
    queue: VecDeque<Pending<T>>,
    queue_bytes: usize,
    ping_due: bool,
    /// Since when a CloseSession is among the requests.
    closing: Option<Duration>,
    /// Others who wait for it.
    closers: Vec<T>,

    /// Identities proven, in order.
    auths: Vec<(String, Bytes)>,
    watches: WatchTable,
    feeds: Feeds,
    /// Watches whose arming is unanswered.
    arming: BTreeMap<WatchId, (String, WatchKind)>,
    /// Those of `arming` that nobody waits for any more.
    forgotten: BTreeSet<WatchId>,
    /// Requests to set watches again that are unanswered on the present connection.
    rearming: usize,

    /// Latest state that this client saw or heard of.
    last_zxid: Zxid,
    /// Latest state up to which every event of every armed watch has arrived: replies move it, events do not (another
    /// event of the same zxid may follow), and neither does anything before watches are set again.
    watch_zxid: Zxid,

    last_sent: Duration,
    last_heard: Duration,
    /// When the latest request that was answered had been sent.
    acknowledged: Duration,
    ended_at: Duration,
}

impl<T> Session<T> {
    pub(crate) fn new(timeout: Duration, auths: Vec<(String, Bytes)>) -> Session<T> {
        Session {
            phase: Phase::Connecting,
            id: SessionId::NONE,
            password: Bytes::new(),
            timeout,
            server: ServerId::default(),
            connections: 0,
            last_id: 0,
            request_bytes_max: REQUEST_BYTES_DEFAULT,
            last_n: 0,
            answered_through: 0,
            answers: 0,
            sent: VecDeque::new(),
            sent_bytes: 0,
            sent_result_bytes: 0,
            queue: VecDeque::new(),
            queue_bytes: 0,
            ping_due: false,
            closing: None,
            closers: Vec::new(),
            auths,
            watches: WatchTable::default(),
            feeds: Feeds::default(),
            arming: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            rearming: 0,
            last_zxid: Zxid::ZERO,
            watch_zxid: Zxid::ZERO,
            last_sent: Duration::ZERO,
            last_heard: Duration::ZERO,
            acknowledged: Duration::ZERO,
            ended_at: Duration::MAX,
        }
    }

    pub(crate) fn phase(&self) -> &Phase {
        &self.phase
    }

    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(crate) fn server(&self) -> ServerId {
        self.server
    }

    pub(crate) fn connections(&self) -> u64 {
        self.connections
    }

    pub(crate) fn last_zxid(&self) -> Zxid {
        self.last_zxid
    }

    pub(crate) fn answers(&self) -> u64 {
        self.answers
    }

    /// Largest request, in bytes.
    pub(crate) fn request_bytes_max(&self) -> usize {
        self.request_bytes_max
    }

    /// Whether another request finds room.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.len() < QUEUE_REQUESTS && self.queue_bytes < QUEUE_BYTES
    }

    /// The time until which the session cannot have expired (R5).
    pub(crate) fn lease_until(&self, margin: Option<Duration>) -> Duration {
        let margin = margin.unwrap_or(self.timeout * LEASE_MARGIN_PERCENT / 100);
        (self.acknowledged + self.timeout.saturating_sub(margin)).min(self.ended_at)
    }

    /// When a session that is being closed stops waiting for a server: by then it is over without one.
    pub(crate) fn give_up_at(&self) -> Option<Duration> {
        self.closing.map(|since| since.max(self.last_heard) + self.timeout)
    }

    /// A call. The request has its place in the order from here on.
    pub(crate) fn submit(
        &mut self,
        now: Duration,
        op: Op,
        consistency: Consistency,
        arms: Option<WatchId>,
        token: T,
        out: &mut Vec<Output<T>>,
    ) {
        let is_close = op == Op::CloseSession;
        let reason = match &self.phase {
            Phase::Ended(_) if is_close => {
                out.push(Output::Done { token, op, zxid: self.last_zxid, result: Ok(Answer::Done) });
                return;
            }
            Phase::Ended(reason) => Some(reason.clone()),
            _ if self.closing.is_some() && is_close => {
                self.closers.push(token);
                return;
            }
            _ if self.closing.is_some() => Some(EndReason::Closed),
            _ => None,
        };
        if let Some(reason) = reason {
            let result = Err(Failure::Ended { reason, outcome_unknown: false });
            out.push(Output::Done { token, op, zxid: self.last_zxid, result });
            return;
        }
        if is_close {
            self.closing = Some(now);
        }
        let mut op = op;
        if let (Some(id), Op::Subscribe { name, .. }) = (arms, &mut op) {
            *name = self.feeds.next_name();
            self.feeds.opening(id, &op);
        } else if let Some(id) = arms {
            let (path, kind) = match &op {
                Op::GetChildren { path, .. } => (path.clone(), WatchKind::Child),
                other => (other.path().unwrap_or_default().to_owned(), WatchKind::Data),
            };
            self.arming.insert(id, (path, kind));
        }
        self.enqueue(op, consistency, arms, Purpose::Caller(token));
    }

    /// The holder of a watch is gone.
    pub(crate) fn forget(&mut self, id: WatchId) {
        if self.feeds.holds(id) {
            if let Some(op) = self.feeds.remove(id) {
                self.unsubscribe(op);
            }
        } else if self.arming.contains_key(&id) {
            self.forgotten.insert(id);
        } else if let Some((path, kind)) = self.watches.remove(id) {
            self.disarm(path, kind);
        }
    }

    /// The reader of a feed has more to read than it may have.
    pub(crate) fn hold(&mut self, id: WatchId) {
        if let Some(op) = self.feeds.hold(id) {
            self.unsubscribe(op);
        }
    }

    /// It has read enough of it.
    pub(crate) fn resume(&mut self, id: WatchId) {
        // Without a connection, the next one begins with it.
        if let Some(op) = self.feeds.resume(id)
            && self.phase == Phase::Connected
        {
            self.enqueue(op, Consistency::Local, None, Purpose::Resubscribe);
        }
    }

    fn unsubscribe(&mut self, op: Op) {
        if self.phase == Phase::Connected && self.closing.is_none() {
            self.enqueue(op, Consistency::Local, None, Purpose::Unsubscribe);
        }
    }

    /// What a new connection says first.
    pub(crate) fn hello(&self) -> Hello {
        Hello { session: self.id, password: self.password.clone(), timeout: self.timeout, last_zxid: self.last_zxid }
    }

    /// A server took the session. `asked` is when it was asked.
    ///
    /// # Errors
    /// What the server says cannot be true of this session.
    pub(crate) fn on_connected(
        &mut self,
        now: Duration,
        asked: Duration,
        attached: Attached,
        out: &mut Vec<Output<T>>,
    ) -> Result<(), String> {
        if self.id != SessionId::NONE && self.id != attached.session {
            return Err(format!("the server took up session {} instead of {}", attached.session, self.id));
        }
        if attached.timeout.is_zero() {
            return Err("the server granted a session timeout of 0".to_owned());
        }
        if attached.last_n < self.answered_through || attached.last_n > self.last_n {
            return Err(format!(
                "the server has executed the writes up to {}; answered were those up to {}, made those up to {}",
                attached.last_n, self.answered_through, self.last_n
            ));
        }
        self.id = attached.session;
        self.password = attached.password;
        self.timeout = attached.timeout;
        self.server = attached.server;
        self.request_bytes_max = attached.request_bytes_max.min(REQUEST_BYTES_MAX);
        self.connections += 1;
        self.last_sent = now;
        self.last_heard = now;
        self.acknowledged = self.acknowledged.max(asked);
        self.ping_due = false;
        self.phase = Phase::Connected;
        out.push(Output::Phase);

        // Identities first, since what follows may need them; then watches, so that what was missed is told before any
        // answer shows it; then what is unanswered. Pushed from the back.
        for subscribe in self.feeds.set_again().into_iter().rev() {
            self.enqueue_first(subscribe, Purpose::Resubscribe);
        }
        let rearm = self.watches.set_again(self.watch_zxid);
        self.rearming = rearm.len();
        for set in rearm.into_iter().rev() {
            self.enqueue_first(Op::SetWatches(set), Purpose::Rearm);
        }
        for (scheme, auth) in self.auths.clone().into_iter().rev() {
            self.enqueue_first(Op::AddAuth { scheme, auth }, Purpose::Reauth);
        }
        Ok(())
    }

    /// Whether there is something to send now.
    pub(crate) fn can_send(&self) -> bool {
        self.phase == Phase::Connected && (self.ping_due || self.queue.front().is_some_and(|next| self.fits(next)))
    }

    fn fits(&self, next: &Pending<T>) -> bool {
        self.sent.is_empty()
            || (self.sent.len() < WINDOW_REQUESTS
                && self.sent_bytes + next.bytes <= WINDOW_BYTES
                && self.sent_result_bytes + next.result_bytes <= WINDOW_RESULT_BYTES)
    }

    /// Takes what goes into the next message, in order, and shows it to `send`.
    pub(crate) fn take_batch(&mut self, now: Duration, mut send: impl FnMut(Outbound<'_>)) {
        if self.phase != Phase::Connected {
            return;
        }
        let (mut requests, mut bytes) = (0, 0);
        if std::mem::take(&mut self.ping_due) {
            // Before anything that may have to wait for the window: a session with much to do must live, too.
            self.last_id += 1;
            let ping = Pending {
                id: self.last_id,
                n: 0,
                bytes: Op::Ping.bytes(),
                result_bytes: 0,
                op: Op::Ping,
                consistency: Consistency::Local,
                arms: None,
                purpose: Purpose::Ping,
                sent_at: now,
                was_sent: true,
            };
            self.send_one(now, ping, &mut send);
            requests += 1;
        }
        while let Some(next) = self.queue.front()
            && self.fits(next)
            && (requests == 0 || (requests < BATCH_REQUESTS && bytes + next.bytes <= BATCH_BYTES))
        {
            let next = self.queue.pop_front().expect("there is a front");
            self.queue_bytes -= next.bytes;
            requests += 1;
            bytes += next.bytes;
            self.send_one(now, next, &mut send);
        }
        if requests > 0 {
            self.last_sent = now;
        }
    }

    fn send_one(&mut self, now: Duration, mut next: Pending<T>, send: &mut impl FnMut(Outbound<'_>)) {
        next.sent_at = now;
        next.was_sent = true;
        self.sent_bytes += next.bytes;
        self.sent_result_bytes += next.result_bytes;
        send(Outbound {
            id: next.id,
            n: next.n,
            answered_through: self.answered_through,
            consistency: next.consistency,
            op: &next.op,
            watch: next.arms.is_some() && !matches!(next.op, Op::Subscribe { .. }),
        });
        self.sent.push_back(next);
    }

    /// An answer came.
    ///
    /// # Errors
    /// It is not the one that must come next: the connection cannot be used any more.
    pub(crate) fn on_answer(
        &mut self,
        now: Duration,
        id: u64,
        zxid: Zxid,
        result: Result<Answer, ErrorCode>,
        out: &mut Vec<Output<T>>,
    ) -> Result<(), String> {
        if self.sent.front().is_none_or(|next| next.id != id) {
            let expected = self.sent.front().map_or(0, |next| next.id);
            return Err(format!("an answer to request {id} came, that to request {expected} was due"));
        }
        let answered = self.sent.pop_front().expect("there is a front");
        self.sent_bytes -= answered.bytes;
        self.sent_result_bytes -= answered.result_bytes;
        self.last_heard = now;
        self.acknowledged = self.acknowledged.max(answered.sent_at);
        if answered.n > 0 {
            self.answered_through = answered.n;
        }
        match (&answered.purpose, &answered.op, answered.arms) {
            (Purpose::Resubscribe, op, _) => {
                if let Err(code) = result {
                    return Err(format!("the feed could not be followed again: {code}"));
                }
                self.on_subscribed(op, zxid, out);
            }
            (_, op @ Op::Subscribe { name, .. }, Some(watch)) => match result {
                Ok(_) if self.feeds.holds(watch) => self.on_subscribed(op, zxid, out),
                // Its holder is gone.
                Ok(_) => self.unsubscribe(Op::Unsubscribe { name: *name }),
                Err(_) => drop(self.feeds.remove(watch)),
            },
            (_, op, Some(watch)) => self.on_armed(watch, op, &result),
            (_, _, None) => {}
        }
        if matches!(answered.purpose, Purpose::Rearm) {
            if let Err(code) = result {
                return Err(format!("watches could not be set again: {code}"));
            }
            self.rearming -= 1;
        }
        self.last_zxid = self.last_zxid.max(zxid);
        if self.rearming == 0 {
            self.watch_zxid = self.watch_zxid.max(zxid);
        }
        match answered.purpose {
            Purpose::Caller(token) => {
                self.answers += 1;
                let is_close = answered.op == Op::CloseSession;
                if let (Op::AddAuth { scheme, auth }, Ok(_)) = (&answered.op, &result) {
                    let proven = (scheme.clone(), auth.clone());
                    if !self.auths.contains(&proven) {
                        self.auths.push(proven);
                    }
                }
                // A refusal to close says that there is nothing to close.
                let result = if is_close { Ok(Answer::Done) } else { result.map_err(Failure::Refused) };
                out.push(Output::Done { token, op: answered.op, zxid, result });
                if is_close {
                    self.end(now, EndReason::Closed, out);
                }
            }
            Purpose::Reauth => {
                if let (Op::AddAuth { scheme, .. }, Err(_)) = (answered.op, result) {
                    self.end(now, EndReason::AuthFailed { scheme }, out);
                }
            }
            Purpose::Ping => self.answers += 1,
            Purpose::Rearm | Purpose::Resubscribe | Purpose::Forget | Purpose::Unsubscribe => {}
        }
        Ok(())
    }

    /// An event came.
    pub(crate) fn on_event(&mut self, now: Duration, event: WatchedEvent, out: &mut Vec<Output<T>>) {
        self.last_heard = now;
        self.last_zxid = self.last_zxid.max(event.zxid.unwrap_or_default());
        for watch in self.watches.fire(&event) {
            out.push(Output::Fired { watch, event: event.clone() });
        }
    }

    /// Changes came for a subscription.
    pub(crate) fn on_changes(
        &mut self,
        now: Duration,
        name: u64,
        zxid: Zxid,
        events: Vec<FeedEvent>,
        out: &mut Vec<Output<T>>,
    ) {
        self.last_heard = now;
        self.last_zxid = self.last_zxid.max(zxid);
        if let Some(watch) = self.feeds.changed(name, zxid) {
            out.push(Output::Feed { watch, item: FeedItem::Changes(Changes { zxid, events }) });
        }
    }

    /// A bookmark came, for a subscription or (0) for all.
    pub(crate) fn on_bookmark(&mut self, now: Duration, name: u64, zxid: Zxid, out: &mut Vec<Output<T>>) {
        self.last_heard = now;
        self.last_zxid = self.last_zxid.max(zxid);
        let told = self.feeds.bookmarked(name, zxid);
        out.extend(told.into_iter().map(|watch| Output::Feed { watch, item: FeedItem::Bookmark(zxid) }));
    }

    /// A subscription missed something.
    pub(crate) fn on_gap(&mut self, now: Duration, name: u64, after: Zxid, resync: Zxid, out: &mut Vec<Output<T>>) {
        self.last_heard = now;
        self.last_zxid = self.last_zxid.max(resync);
        if let Some(watch) = self.feeds.skipped(name, resync) {
            out.push(Output::Feed { watch, item: FeedItem::Gap(Gap { after, resync }) });
        }
    }

    fn on_subscribed(&mut self, op: &Op, zxid: Zxid, out: &mut Vec<Output<T>>) {
        out.extend(self.feeds.opened(op, zxid).map(|(watch, item)| Output::Feed { watch, item }));
    }

    /// The connection is gone. What is unanswered goes to the head of the queue, in order, to be sent again.
    pub(crate) fn on_disconnected(&mut self, out: &mut Vec<Output<T>>) {
        if self.phase != Phase::Connected {
            return;
        }
        self.phase = Phase::Suspended;
        self.feeds.disconnected();
        self.rearming = 0;
        self.ping_due = false;
        self.sent_bytes = 0;
        self.sent_result_bytes = 0;
        let again = std::mem::take(&mut self.sent);
        let waiting = std::mem::take(&mut self.queue);
        let keep = |pending: &Pending<T>| matches!(pending.purpose, Purpose::Caller(_) | Purpose::Forget);
        self.queue = again.into_iter().chain(waiting).filter(keep).collect();
        self.queue_bytes = self.queue.iter().map(|pending| pending.bytes).sum();
        out.push(Output::Phase);
    }

    /// The session is over, for good.
    pub(crate) fn end(&mut self, now: Duration, reason: EndReason, out: &mut Vec<Output<T>>) {
        if matches!(self.phase, Phase::Ended(_)) {
            return;
        }
        // Who wanted it closed has what was wanted when it has expired.
        let is_closed = self.closing.is_some() && reason == EndReason::Expired || reason == EndReason::Closed;
        let gone = self.closing.is_some() && reason == EndReason::Expired;
        self.ended_at = now;
        for pending in std::mem::take(&mut self.sent).into_iter().chain(std::mem::take(&mut self.queue)) {
            let Purpose::Caller(token) = pending.purpose else { continue };
            let result = if gone && pending.op == Op::CloseSession {
                Ok(Answer::Done)
            } else {
                let outcome_unknown = pending.was_sent && pending.op.is_write();
                Err(Failure::Ended { reason: reason.clone(), outcome_unknown })
            };
            out.push(Output::Done { token, op: pending.op, zxid: self.last_zxid, result });
        }
        for token in std::mem::take(&mut self.closers) {
            let result = if is_closed {
                Ok(Answer::Done)
            } else {
                Err(Failure::Ended { reason: reason.clone(), outcome_unknown: true })
            };
            out.push(Output::Done { token, op: Op::CloseSession, zxid: self.last_zxid, result });
        }
        self.queue_bytes = 0;
        self.sent_bytes = 0;
        self.sent_result_bytes = 0;
        self.watches = WatchTable::default();
        self.feeds.clear();
        self.arming.clear();
        self.forgotten.clear();
        self.phase = Phase::Ended(if is_closed { EndReason::Closed } else { reason });
        out.push(Output::Phase);
    }

    /// The time passed. Asks for a ping when nothing was sent for a third of the session timeout.
    pub(crate) fn on_tick(&mut self, now: Duration) -> Pulse {
        if self.phase != Phase::Connected {
            return Pulse::Alive;
        }
        if now >= self.last_heard + self.timeout * 2 / 3 {
            return Pulse::Dead;
        }
        if now >= self.last_sent + self.timeout / 3 {
            self.ping_due = true;
        }
        Pulse::Alive
    }

    /// When [`on_tick`](Session::on_tick) has something to do next, on a connection.
    pub(crate) fn next_tick(&self) -> Duration {
        let dead = self.last_heard + self.timeout * 2 / 3;
        if self.ping_due { dead } else { dead.min(self.last_sent + self.timeout / 3) }
    }

    fn enqueue(&mut self, op: Op, consistency: Consistency, arms: Option<WatchId>, purpose: Purpose<T>) {
        let pending = self.pending(op, consistency, arms, purpose);
        self.queue_bytes += pending.bytes;
        self.queue.push_back(pending);
    }

    fn enqueue_first(&mut self, op: Op, purpose: Purpose<T>) {
        let pending = self.pending(op, Consistency::Local, None, purpose);
        self.queue_bytes += pending.bytes;
        self.queue.push_front(pending);
    }

    fn pending(&mut self, op: Op, consistency: Consistency, arms: Option<WatchId>, purpose: Purpose<T>) -> Pending<T> {
        self.last_id += 1;
        let n = if op.is_write() {
            self.last_n += 1;
            self.last_n
        } else {
            0
        };
        Pending {
            id: self.last_id,
            n,
            bytes: op.bytes(),
            result_bytes: op.result_bytes(),
            op,
            consistency,
            arms,
            purpose,
            sent_at: Duration::ZERO,
            was_sent: false,
        }
    }

    /// The request that arms a watch was answered.
    fn on_armed(&mut self, id: WatchId, op: &Op, result: &Result<Answer, ErrorCode>) {
        self.arming.remove(&id);
        let forgotten = self.forgotten.remove(&id);
        let slot = match (op, result) {
            (Op::Exists { .. }, Err(ErrorCode::NoNode)) => Slot::Exist,
            (_, Err(_)) => return,
            (Op::GetChildren { .. }, Ok(_)) => Slot::Child,
            (_, Ok(_)) => Slot::Data,
        };
        let path = op.path().expect("what arms a watch has a path");
        if !forgotten {
            self.watches.insert(path, slot, id);
        } else if !self.watches.holds(path, slot.kind()) {
            self.disarm(path.to_owned(), slot.kind());
        }
    }

    /// Takes a watch from the server, unless a request under way arms it for somebody else.
    fn disarm(&mut self, path: String, kind: WatchKind) {
        let is_wanted =
            self.arming.iter().any(|(id, arms)| !self.forgotten.contains(id) && *arms == (path.clone(), kind));
        if !is_wanted && self.closing.is_none() && !matches!(self.phase, Phase::Ended(_)) {
            self.enqueue(Op::RemoveWatch { path, kind }, Consistency::Local, None, Purpose::Forget);
        }
    }
}

#[cfg(test)]
mod tests;
