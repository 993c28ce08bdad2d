//! What the handles of one client and its task have in common: the session behind a lock, and those who wait for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use corral_proto::{ServerId, SessionId, WatchedEvent, Zxid};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use crate::ambient;
use crate::client::Map;
use crate::error::{EndReason, Error};
use crate::feeds::FeedItem;
use crate::hosts::Hosts;
use crate::lease::{SessionState, Status};
use crate::op::{Consistency, Op};
use crate::response::{Call, Outcome, Response};
use crate::session::{Output, Phase, REQUEST_BYTES_MAX, Session};
use crate::tls::TlsConnector;
use crate::transport::Transport;
use crate::watcher::{Feed, FeedQueue, Guard, OneshotWatch};
use crate::watches::WatchId;

/// Who waits for a request. `None`: nobody, it is made in the background.
pub(crate) type Token = Option<oneshot::Sender<Outcome>>;

/// How servers are reached.
pub(crate) enum Network {
    Plain,
    Tls(TlsConnector),
    Other(Arc<dyn Transport>),
}

/// One client: its session, and the ways to wake those who wait.
pub(crate) struct Shared {
    pub(crate) hosts: Hosts,
    pub(crate) network: Network,
    pub(crate) status: watch::Sender<Status>,
    /// Wakes the task: there may be something to send.
    pub(crate) wake: Notify,
    /// Wakes the task: the session is being closed.
    closing: Notify,
    /// Wakes those who wait for room in the queue.
    room: Notify,
    /// Zero of the session's time.
    origin: Instant,
    lease_margin: Option<Duration>,
    inner: Mutex<Inner>,
}

struct Inner {
    session: Session<Token>,
    sinks: BTreeMap<WatchId, Sink>,
    last_watch: u64,
    /// Why the last attempt to connect failed.
    last_failure: String,
}

/// Where the events of a watch go.
enum Sink {
    Oneshot(oneshot::Sender<Result<WatchedEvent, EndReason>>),
    Feed(Arc<FeedQueue>),
}

/// Something for somebody outside, to be handed over without the lock.
enum Delivery {
    Answer(oneshot::Sender<Outcome>, Outcome),
    Oneshot(oneshot::Sender<Result<WatchedEvent, EndReason>>, Result<WatchedEvent, EndReason>),
    End(Arc<FeedQueue>, EndReason),
    Status(Status),
}

/// The clones of a [`Client`](crate::Client): when the last goes, the session is closed behind it.
pub(crate) struct Handle {
    pub(crate) shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.abandon();
    }
}

impl Shared {
    /// Begins a session in the background.
    pub(crate) fn start(
        hosts: Hosts,
        network: Network,
        session_timeout: Duration,
        lease_margin: Option<Duration>,
        auth: Vec<(String, Bytes)>,
    ) -> Arc<Shared> {
        let (status, _) = watch::channel(Status {
            state: SessionState::Connecting,
            connections: 0,
            session: SessionId::NONE,
            timeout: session_timeout,
            server: ServerId::default(),
        });
        let shared = Arc::new(Shared {
            hosts,
            network,
            status,
            wake: Notify::new(),
            closing: Notify::new(),
            room: Notify::new(),
            origin: ambient::now(),
            lease_margin,
            inner: Mutex::new(Inner {
                session: Session::new(session_timeout, auth),
                sinks: BTreeMap::new(),
                last_watch: 0,
                last_failure: "none was made".to_owned(),
            }),
        });
        ambient::spawn(crate::connection::run(shared.clone()));
        shared
    }

    /// Time since the client was made.
    pub(crate) fn now(&self) -> Duration {
        ambient::now().saturating_duration_since(self.origin)
    }

    /// A moment of the session's time.
    pub(crate) fn instant(&self, at: Duration) -> Instant {
        self.origin + at
    }

    /// Runs the session machine, then hands out what came of it, in order.
    pub(crate) fn with<R>(&self, run: impl FnOnce(&mut Session<Token>, &mut Vec<Output<Token>>) -> R) -> R {
        let mut out = Vec::new();
        let mut deliveries = Vec::new();
        let result = {
            let mut inner = self.inner.lock();
            let result = run(&mut inner.session, &mut out);
            inner.resolve(out, &self.hosts, &mut deliveries);
            result
        };
        for delivery in deliveries {
            match delivery {
                // Who no longer waits does not want it.
                Delivery::Answer(to, outcome) => drop(to.send(outcome)),
                Delivery::Oneshot(to, event) => drop(to.send(event)),
                Delivery::End(queue, reason) => queue.end(reason),
                Delivery::Status(status) => drop(self.status.send_replace(status)),
            }
        }
        result
    }

    /// Looks at the session.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&Session<Token>) -> R) -> R {
        look(&self.inner.lock().session)
    }

    /// Room came free in the queue.
    pub(crate) fn on_room(&self) {
        self.room.notify_waiters();
    }

    pub(crate) fn note_failure(&self, text: String) {
        tracing::debug!(failure = %text, "no connection");
        self.inner.lock().last_failure = text;
    }

    pub(crate) fn last_zxid(&self) -> Zxid {
        self.look(Session::last_zxid)
    }

    pub(crate) fn lease_until(&self) -> Instant {
        self.instant(self.look(|session| session.lease_until(self.lease_margin)))
    }

    /// Waits until a call would not be refused for want of room.
    pub(crate) async fn ready(&self) {
        loop {
            let room = self.room.notified();
            if self.look(|session| session.has_room() || matches!(session.phase(), Phase::Ended(_))) {
                return;
            }
            room.await;
        }
    }

    /// Makes a request.
    pub(crate) fn submit<T>(self: &Arc<Self>, op: Op, consistency: Consistency, map: Map<T>) -> Response<T> {
        self.submit_call(op, consistency, None, map, |_| (None, None))
    }

    /// Makes a request that arms a one-shot watch.
    pub(crate) fn submit_oneshot<T>(self: &Arc<Self>, op: Op, consistency: Consistency, map: Map<T>) -> Response<T> {
        let (sender, event) = oneshot::channel();
        self.submit_call(op, consistency, Some(Sink::Oneshot(sender)), map, |guard| {
            (guard.map(|guard| OneshotWatch { event, guard }), None)
        })
    }

    /// Makes a request that follows the feed.
    pub(crate) fn submit_feed<T>(self: &Arc<Self>, op: Op, map: Map<T>) -> Response<T> {
        let queue = Arc::new(FeedQueue::default());
        let sink = Sink::Feed(queue.clone());
        self.submit_call(op, Consistency::Local, Some(sink), map, |guard| {
            (None, guard.map(|guard| Feed { queue, guard, position: Zxid::ZERO }))
        })
    }

    /// A feed has room for more.
    pub(crate) fn resume_feed(&self, id: WatchId) {
        self.inner.lock().session.resume(id);
        self.wake.notify_one();
    }

    fn submit_call<T>(
        self: &Arc<Self>,
        op: Op,
        consistency: Consistency,
        sink: Option<Sink>,
        map: Map<T>,
        hold: impl FnOnce(Option<Guard>) -> (Option<OneshotWatch>, Option<Feed>),
    ) -> Response<T> {
        let (name, is_write) = (op.name(), op.is_write());
        let is_close = op == Op::CloseSession;
        let user_path = |op: &Op| op.path().map_or_else(String::new, |path| self.hosts.user_path(path).to_owned());
        let bytes = op.bytes();
        let (answer, outcome) = oneshot::channel();
        let mut watch = None;
        let now = self.now();
        {
            let mut inner = self.inner.lock();
            let limit = if is_write { inner.session.request_bytes_max() } else { REQUEST_BYTES_MAX };
            if bytes > limit {
                return Response::failed(Error::TooLarge { op: name, path: user_path(&op), bytes, limit });
            }
            if !inner.session.has_room() && !is_close && !matches!(inner.session.phase(), Phase::Ended(_)) {
                return Response::failed(Error::Overloaded { op: name, path: user_path(&op) });
            }
            if let Some(sink) = sink {
                inner.last_watch += 1;
                let id = WatchId(inner.last_watch);
                inner.sinks.insert(id, sink);
                watch = Some((id, user_path(&op)));
            }
            let mut out = Vec::new();
            inner.session.submit(now, op, consistency, watch.as_ref().map(|(id, _)| *id), Some(answer), &mut out);
            // A call answers at once only when the session is over or closing: nobody else is concerned.
            for output in out {
                if let Output::Done { token: Some(token), op, zxid, result } = output {
                    drop(token.send(Outcome { op, zxid, result }));
                }
            }
        }
        self.wake.notify_one();
        if is_close {
            self.closing.notify_one();
        }
        let guard = watch.map(|(id, path)| Guard { shared: self.clone(), id, path });
        let (oneshot, feed) = hold(guard);
        Response::waiting(outcome, Call { shared: self.clone(), name, is_write, oneshot, feed }, map)
    }

    /// Nobody holds a watch any more.
    pub(crate) fn forget_watch(&self, id: WatchId) {
        {
            let mut inner = self.inner.lock();
            inner.sinks.remove(&id);
            inner.session.forget(id);
        }
        self.wake.notify_one();
    }

    /// Nobody holds the client any more: closes the session after what was asked of it.
    fn abandon(&self) {
        let now = self.now();
        self.with(|session, out| {
            if *session.phase() == Phase::Connecting {
                session.end(now, EndReason::Closed, out);
            } else {
                session.submit(now, Op::CloseSession, Consistency::Local, None, None, out);
            }
        });
        self.wake.notify_one();
        self.closing.notify_one();
    }

    /// Ends the session.
    pub(crate) fn end(&self, reason: EndReason) {
        let now = self.now();
        self.with(|session, out| session.end(now, reason, out));
        self.closing.notify_one();
        self.room.notify_waiters();
    }

    /// Returns once a session that is being closed need not wait for a server any longer.
    pub(crate) async fn given_up(&self) {
        loop {
            let at = self.look(|session| match session.phase() {
                Phase::Ended(_) => Some(Duration::ZERO),
                _ => session.give_up_at(),
            });
            match at {
                Some(at) if at <= self.now() => return,
                Some(at) => ambient::sleep_until(self.instant(at)).await,
                None => self.closing.notified().await,
            }
        }
    }

    /// Waits for the first connection.
    pub(crate) async fn wait_connected(&self, limit: Duration) -> Result<(), Error> {
        let mut status = self.status.subscribe();
        let wait = status.wait_for(|status| status.state == SessionState::Connected || status.state.is_final());
        let reason = match ambient::timeout(limit, wait).await {
            Ok(Ok(status)) => match &status.state {
                SessionState::Connected => return Ok(()),
                SessionState::Lost(reason) => reason.clone(),
                _ => EndReason::Closed,
            },
            Ok(Err(_)) => EndReason::Stopped,
            Err(_) => {
                return Err(Error::NoConnection {
                    hosts: self.hosts.servers.join(","),
                    waited_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
                    last: self.inner.lock().last_failure.clone(),
                });
            }
        };
        Err(Error::SessionEnded { op: "connect", path: String::new(), reason, outcome_unknown: false })
    }
}

impl Inner {
    fn resolve(&mut self, out: Vec<Output<Token>>, hosts: &Hosts, deliveries: &mut Vec<Delivery>) {
        for output in out {
            match output {
                Output::Done { token, op, zxid, result } => {
                    if let Some(token) = token {
                        deliveries.push(Delivery::Answer(token, Outcome { op, zxid, result }));
                    }
                }
                Output::Fired { watch, mut event } => {
                    if !hosts.chroot().is_empty() {
                        event.path = hosts.user_path(&event.path).to_owned();
                    }
                    if let Some(Sink::Oneshot(to)) = self.sinks.remove(&watch) {
                        deliveries.push(Delivery::Oneshot(to, Ok(event)));
                    }
                }
                Output::Feed { watch, mut item } => {
                    if let (false, FeedItem::Changes(changes)) = (hosts.chroot().is_empty(), &mut item) {
                        for event in &mut changes.events {
                            event.path = hosts.user_path(&event.path).to_owned();
                        }
                    }
                    // Before the answers that follow it: those are handed over later.
                    if let Some(Sink::Feed(queue)) = self.sinks.get(&watch)
                        && queue.push(item)
                    {
                        self.session.hold(watch);
                    }
                }
                Output::Phase => {
                    let state = match self.session.phase() {
                        Phase::Connecting => SessionState::Connecting,
                        Phase::Connected => SessionState::Connected,
                        Phase::Suspended => SessionState::Suspended,
                        Phase::Ended(EndReason::Closed) => SessionState::Closed,
                        Phase::Ended(reason) => SessionState::Lost(reason.clone()),
                    };
                    if let Phase::Ended(reason) = self.session.phase() {
                        for sink in std::mem::take(&mut self.sinks).into_values() {
                            deliveries.push(match sink {
                                Sink::Oneshot(to) => Delivery::Oneshot(to, Err(reason.clone())),
                                Sink::Feed(queue) => Delivery::End(queue, reason.clone()),
                            });
                        }
                    }
                    deliveries.push(Delivery::Status(Status {
                        state,
                        connections: self.session.connections(),
                        session: self.session.id(),
                        timeout: self.session.timeout(),
                        server: self.session.server(),
                    }));
                }
            }
        }
    }
}
