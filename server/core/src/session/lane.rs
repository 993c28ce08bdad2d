//! One session's order on one connection (what ZooKeeper's CommitProcessor is for).
//!
//! Requests enter in the client's order and wait in a queue; replies leave in the same order, with watch events
//! between them. A write is resolved by the apply room when its entry is executed here. Everything else is answered
//! from a state as soon as it is in front and the state is fresh enough:
//!
//! - not older than the lane's `floor`: the largest zxid of any event or reply queued so far, so that nothing the
//!   client sees ever goes back, and no reply shows a change before its watch event;
//! - not older than the request's own need (`sync`, linearizable, at least).
//!
//! A request that stands before a write of the same session is answered before that write takes effect: the apply room
//! calls [`Lane::flush`] with the state just before it. That state is fresh enough for any need: what such a request
//! waits for was committed before the client asked, the write was proposed after, so it is the later of the two. This
//! holds for the very write behind the request and for no other entry of the session: a double of an earlier write, or
//! one that was proposed for a former connection, may be older than what the client asked for.
//!
//! Locks: the watch table's lock is taken before a lane's, never after.

use std::collections::VecDeque;
use std::sync::Arc;

use corral_proto::{ErrorCode, EventKind, Id, SessionId, WatchKind, WatchedEvent, Zxid};
use parking_lot::Mutex;

use super::feed::{CatchUp, Feeds, Subscription};
use super::usage::{Tally, Usage};
use super::{CloseReason, Consistency, FeedEvent, FeedNotice, Outgoing, Protocol, SetWatches, SharedEvent};
use crate::tree::TreeView;
use crate::tree::feed::{self, FeedEntry};
use crate::tree::op::{Answer, ReadOp};
use crate::tree::read;
use crate::watch::{WatchTable, WatcherId};
use crate::zoo::{self, Switch};

/// Bytes that may wait for a client that does not read. Beyond it no request is answered until it reads.
pub const OUTGOING_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of watch events, which cannot be held back, that may wait from one batch of entries to the next; more ends the
/// connection. One entry may have any number of events: a client that reads gets them all.
pub const EVENT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Events that setting watches again replays at most for one request, and entries looked at for it: what a client missed
/// beyond it is left to itself, as ZooKeeper leaves all of it.
const REPLAY_EVENTS_MAX: usize = 10_000;
const REPLAY_ENTRIES_MAX: usize = 100_000;

/// What the bookkeeping of an outgoing item counts for, beside its text and data.
const OUTGOING_ITEM_BYTES: usize = 96;

/// A state that reads may see.
pub struct Published<V> {
    /// The state.
    pub view: V,
    /// Its last executed entry.
    pub zxid: Zxid,
    /// Where reads of it are counted.
    pub usage: Arc<Usage>,
}

/// The state that requests are answered from.
pub struct Shown<'a, V> {
    /// The state.
    pub view: &'a V,
    /// Its last executed entry.
    pub zxid: Zxid,
    /// What was done that is in the state, and not in its feed yet.
    pub recent: &'a [FeedEntry],
    /// Where reads of it are counted.
    pub usage: &'a Usage,
}

/// What a request in the queue waits to do.
#[derive(Debug)]
pub enum Step {
    /// Be executed as an entry.
    Write {
        /// Its number.
        n: u64,
    },
    /// Read, and arm a watch if asked.
    Read {
        /// What.
        op: ReadOp,
        /// One-shot watch with it.
        watch: bool,
    },
    /// Add a persistent watch.
    AddWatch {
        /// Where.
        path: String,
        /// Which.
        kind: WatchKind,
    },
    /// Remove watches, or ask for them.
    Watches {
        /// Where.
        path: String,
        /// Which; `None`: every kind.
        kind: Option<WatchKind>,
        /// Remove, or only ask.
        remove: bool,
    },
    /// Set watches again.
    SetWatches(SetWatches),
    /// Follow the change feed.
    Subscribe {
        /// By which name.
        watch: u64,
        /// Where and what.
        subscription: Subscription,
        /// From behind this zxid; `None`: from the state that answers.
        after: Option<Zxid>,
    },
    /// Follow it no more.
    Unsubscribe {
        /// By which name.
        watch: u64,
    },
    /// Be somebody more from here on.
    Identify {
        /// Who.
        ids: Vec<Id>,
        /// What the client gets.
        answer: Answer,
    },
    /// Nothing: the answer is known, or there is nothing to say (ping, sync).
    Answer(Result<Answer, ErrorCode>),
    /// End the connection, and with it the session, which nobody else knows.
    Close,
}

impl Step {
    fn needs_table(&self) -> bool {
        match self {
            Step::Read { watch, .. } => *watch,
            Step::AddWatch { .. }
            | Step::Watches { .. }
            | Step::SetWatches(_)
            | Step::Subscribe { .. }
            | Step::Unsubscribe { .. } => true,
            Step::Write { .. } | Step::Identify { .. } | Step::Answer(_) | Step::Close => false,
        }
    }
}

/// What state a request needs, beside the floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// Any.
    Nothing,
    /// One with this entry.
    Zxid(Zxid),
    /// One with the entry that the leader has yet to name.
    ReadPoint(u64),
}

#[derive(Debug)]
struct Waiting {
    cookie: u64,
    step: Step,
    need: Need,
}

/// How a handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// Attached here.
    Attached {
        /// Zxid of the attach.
        attach: Zxid,
        /// Negotiated, ms.
        timeout_ms: i32,
        /// Highest executed request number.
        last_n: u64,
    },
    /// The session is not open.
    Expired,
    /// The drawn id is taken: draw another.
    IdTaken,
}

#[derive(Debug)]
struct State {
    handshake: Option<Handshake>,
    attach: Zxid,
    ids: Arc<Vec<Id>>,
    queue: VecDeque<Waiting>,
    out: Vec<Outgoing>,
    out_bytes: usize,
    /// Of these, watch events.
    event_bytes: usize,
    /// Of these, what waited when the last batch with events ended.
    old_event_bytes: usize,
    feeds: Feeds,
    outgoing_bytes_max: usize,
    event_bytes_max: usize,
    floor: Zxid,
    closed: bool,
    read: Tally,
}

/// Why the front of the queue does not move, or that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// Nothing waits.
    Empty,
    /// The front is a write: its entry will come.
    OnWrite,
    /// A later state is needed: wake the lane at the next publication.
    OnState,
    /// The leader has yet to name the read point.
    OnReadPoint,
    /// The client must read first.
    OnReader,
    /// The front needs the watch table; call again with it.
    OnTable,
}

/// See the module.
pub struct Lane {
    /// As the watch table knows this connection.
    pub id: WatcherId,
    /// Whose connection.
    pub session: SessionId,
    /// Which protocol it speaks.
    pub protocol: Protocol,
    state: Mutex<State>,
    /// Read points that the leader named and no request was told of yet. The core names them: it never waits for a lane that
    /// is reading.
    named: Mutex<Vec<(u64, Zxid)>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("id", &self.id).field("session", &self.session).finish_non_exhaustive()
    }
}

impl Lane {
    /// A lane for a handshake in progress. `seen`: the highest zxid the client saw. `wake` is called, never under a
    /// lock of this crate's but the watch table's, when the connection's task has something to do.
    pub fn new(
        id: WatcherId,
        session: SessionId,
        protocol: Protocol,
        ids: Vec<Id>,
        seen: Zxid,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> Lane {
        let state = State {
            handshake: None,
            attach: Zxid::ZERO,
            ids: Arc::new(ids),
            queue: VecDeque::new(),
            out: Vec::new(),
            out_bytes: 0,
            event_bytes: 0,
            old_event_bytes: 0,
            feeds: Feeds::default(),
            outgoing_bytes_max: OUTGOING_BYTES_MAX,
            event_bytes_max: EVENT_BYTES_MAX,
            floor: seen,
            closed: false,
            read: Tally::default(),
        };
        Lane { id, session, protocol, state: Mutex::new(state), named: Mutex::default(), wake }
    }

    /// The same with other bounds than [`OUTGOING_BYTES_MAX`] and [`EVENT_BYTES_MAX`]: small ones are reached sooner.
    pub fn bounded(mut self, outgoing_bytes_max: usize, event_bytes_max: usize) -> Lane {
        let state = self.state.get_mut();
        state.outgoing_bytes_max = outgoing_bytes_max;
        state.event_bytes_max = event_bytes_max;
        self
    }

    /// Tells the connection's task that there is something to do.
    pub fn wake(&self) {
        (self.wake)();
    }

    /// How the handshake ended, once it has.
    pub fn handshake(&self) -> Option<Handshake> {
        self.state.lock().handshake
    }

    /// Ends the handshake, once; later calls change nothing.
    pub fn finish_handshake(&self, handshake: Handshake) {
        let mut state = self.state.lock();
        if state.handshake.is_none() {
            if let Handshake::Attached { attach, .. } = handshake {
                state.attach = attach;
                state.floor = state.floor.max(attach);
            }
            state.handshake = Some(handshake);
        }
        drop(state);
        self.wake();
    }

    /// The session, known to this server alone so far, is on its way to be known to all: the next handshake that ends
    /// is that of the same connection.
    pub fn begin_upgrade(&self) {
        self.state.lock().handshake = None;
    }

    /// The attach this connection stands on; [`Zxid::ZERO`] before, and for local sessions.
    pub fn attach(&self) -> Zxid {
        self.state.lock().attach
    }

    /// Identities of the connection, as far as its requests are answered.
    pub fn ids(&self) -> Arc<Vec<Id>> {
        self.state.lock().ids.clone()
    }

    /// Appends a request.
    pub fn push(&self, cookie: u64, step: Step, consistency: Consistency, read_point: Option<u64>) {
        let need = match (consistency, read_point) {
            (_, Some(tag)) => Need::ReadPoint(tag),
            (Consistency::AtLeast(zxid), None) => Need::Zxid(zxid),
            (_, None) => Need::Nothing,
        };
        let waiting = Waiting { cookie, step, need };
        let queue = &mut self.state.lock().queue;
        match &waiting.step {
            Step::Read { .. } if zoo::broken(Switch::ReadsOvertake) => queue.push_front(waiting),
            _ => queue.push_back(waiting),
        }
    }

    /// The leader named a read point that a request here waits for.
    pub fn on_read_point(&self, tag: u64, zxid: Zxid) {
        self.named.lock().push((tag, zxid));
        self.wake();
    }

    /// Number of requests not yet answered.
    pub fn waiting(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// Moves everything queued to `out`; returns whether there was anything.
    pub fn take_outgoing(&self, out: &mut Vec<Outgoing>) -> bool {
        let mut state = self.state.lock();
        state.out_bytes = 0;
        state.event_bytes = 0;
        state.old_event_bytes = 0;
        state.feeds.unread = 0;
        let any = !state.out.is_empty();
        out.append(&mut state.out);
        any
    }

    /// Answers what is in front as far as the published state allows. The closure is called under the lane's lock, so
    /// the state it loads contains every event this lane was given (events are queued before they are published).
    pub fn advance<V: TreeView>(
        &self,
        published: impl FnOnce() -> Arc<Published<V>>,
        mut table: Option<&mut WatchTable>,
    ) -> Stuck {
        let mut state = self.state.lock();
        for (tag, zxid) in std::mem::take(&mut *self.named.lock()) {
            let asked = state.queue.iter_mut().filter(|waiting| waiting.need == Need::ReadPoint(tag));
            asked.for_each(|waiting| waiting.need = Need::Zxid(zxid));
        }
        let published = published();
        let (view, zxid) = (&published.view, published.zxid);
        let shown = Shown { view, zxid, recent: &[], usage: &published.usage };
        let mut stuck = state.run(self, &shown, table.as_deref_mut(), false);
        state.read.flush_reads(&published.usage);
        if stuck == Stuck::OnTable {
            return stuck;
        }
        match state.catch_up(self.id, view, zxid, table) {
            CatchUp::Done => {}
            CatchUp::NeedsTable => stuck = Stuck::OnTable,
            CatchUp::More => {
                drop(state);
                self.wake();
            }
        }
        stuck
    }

    /// Answers everything before the next write from the state just before that write: see [`Lane::has_reads_before`].
    /// Called by the apply room, which holds the table.
    pub fn flush(&self, shown: &Shown<'_, impl TreeView>, table: &mut WatchTable) {
        let mut state = self.state.lock();
        state.run(self, shown, Some(table), true);
        state.read.flush_reads(shown.usage);
    }

    /// Whether write `n` of this attach is the next write here and requests wait in front of it, so that
    /// [`Lane::flush`] has to be called before it is executed.
    pub fn has_reads_before(&self, attach: Zxid, n: u64) -> bool {
        let state = self.state.lock();
        let next_write = state.queue.iter().enumerate().find_map(|(place, waiting)| match waiting.step {
            Step::Write { n } => Some((place, n)),
            _ => None,
        });
        state.attach == attach && next_write.is_some_and(|(place, next)| place > 0 && next == n)
    }

    /// The entry of write `n` was executed under `zxid`: replies, if that write is in front. A double finds its
    /// original answered and changes nothing.
    pub fn resolve(&self, n: u64, zxid: Zxid, result: Result<Answer, ErrorCode>) {
        let mut state = self.state.lock();
        if let Some(Waiting { step: Step::Write { n: front }, cookie, .. }) = state.queue.front()
            && *front == n
        {
            let cookie = *cookie;
            state.queue.pop_front();
            state.reply(cookie, zxid, result);
        }
    }

    /// Queues a watch event.
    pub fn event(&self, event: Arc<SharedEvent>, zxid: Zxid) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        state.floor = state.floor.max(zxid);
        let bytes = OUTGOING_ITEM_BYTES + event.event.path.len();
        state.out_bytes += bytes;
        state.event_bytes += bytes;
        state.out.push(Outgoing::Event(event));
    }

    /// Queues the events of one entry for a subscription.
    pub fn feed(&self, watch: u64, zxid: Zxid, events: Vec<Arc<FeedEvent>>) {
        let mut state = self.state.lock();
        if !state.closed
            && let Some(notice) = state.feeds.changes(watch, zxid, events)
        {
            state.floor = state.floor.max(zxid);
            state.notify(notice);
        }
    }

    /// A batch of entries with something for this lane ends at `zxid`, not published yet: subscriptions hear of it.
    pub fn end_feed_batch(&self, zxid: Zxid, table: &mut WatchTable) {
        let mut state = self.state.lock();
        if let Some(notice) = state.feeds.end_batch(self.id, zxid, table) {
            state.notify(notice);
        }
    }

    /// Tells subscriptions that they missed nothing up to the published state, if they were not told. The closure is called
    /// under the lane's lock, as in [`Lane::advance`].
    pub fn bookmark<V>(&self, published: impl FnOnce() -> Arc<Published<V>>) {
        let mut state = self.state.lock();
        let zxid = published().zxid;
        if !state.closed {
            state.bookmark(zxid);
        }
    }

    /// Whether there are subscriptions that are told of things as they happen: these want bookmarks.
    pub fn has_live_feeds(&self) -> bool {
        self.state.lock().feeds.has_live()
    }

    /// A batch of entries with something for this lane ends: a client that has left too many events of earlier batches
    /// unread is given up.
    pub fn end_batch(&self) {
        let mut state = self.state.lock();
        if state.old_event_bytes > state.event_bytes_max {
            state.close(CloseReason::SlowReader);
        }
        state.old_event_bytes = state.event_bytes;
        drop(state);
        self.wake();
    }

    /// Ends the connection after what is queued already.
    pub fn close(&self, reason: CloseReason) {
        self.state.lock().close(reason);
        self.wake();
    }

    /// Whether the connection is ending.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }
}

impl State {
    fn close(&mut self, reason: CloseReason) {
        if !self.closed {
            self.closed = true;
            self.queue.clear();
            self.out.push(Outgoing::Close(reason));
        }
    }

    fn reply(&mut self, cookie: u64, zxid: Zxid, result: Result<Answer, ErrorCode>) {
        if self.closed {
            return;
        }
        if !zoo::broken(Switch::ReplyBeforePublish) {
            self.floor = self.floor.max(zxid);
        }
        self.out_bytes += OUTGOING_ITEM_BYTES + result.as_ref().map_or(0, weight);
        self.out.push(Outgoing::Reply { cookie, zxid, result });
    }

    fn run(
        &mut self,
        lane: &Lane,
        shown: &Shown<'_, impl TreeView>,
        mut table: Option<&mut WatchTable>,
        before_write: bool,
    ) -> Stuck {
        let zxid = shown.zxid;
        loop {
            if self.out_bytes > self.outgoing_bytes_max && !before_write {
                return Stuck::OnReader;
            }
            let Some(front) = self.queue.front() else { return Stuck::Empty };
            if matches!(front.step, Step::Write { .. }) {
                return Stuck::OnWrite;
            }
            if !before_write {
                match front.need {
                    Need::ReadPoint(_) => return Stuck::OnReadPoint,
                    Need::Zxid(need) if need > zxid && !zoo::broken(Switch::ReadPointIgnored) => return Stuck::OnState,
                    Need::Nothing | Need::Zxid(_) => {}
                }
            }
            if self.floor > zxid {
                return Stuck::OnState;
            }
            if front.step.needs_table() && table.is_none() {
                return Stuck::OnTable;
            }
            let Waiting { cookie, step, .. } = self.queue.pop_front().expect("looked at above");
            if matches!(step, Step::Answer(Ok(_))) {
                // Pings and syncs: who asks for a sign of life wants to know how far it is, too.
                self.bookmark(zxid);
            }
            let closes = matches!(step, Step::Close);
            let result = self.answer(lane, shown, step, table.as_deref_mut());
            self.reply(cookie, zxid, result);
            if closes {
                self.close(CloseReason::ClosedByClient);
            }
        }
    }

    fn answer(
        &mut self,
        lane: &Lane,
        shown: &Shown<'_, impl TreeView>,
        step: Step,
        table: Option<&mut WatchTable>,
    ) -> Result<Answer, ErrorCode> {
        let Shown { view, zxid, recent, usage } = *shown;
        match (step, table) {
            (Step::Answer(result), _) => result,
            (Step::Close, _) => Ok(Answer::Done),
            (Step::Identify { ids, answer }, _) => {
                add_ids(&mut self.ids, ids);
                Ok(answer)
            }
            (Step::Read { op, watch: false }, _) => self.read(lane, view, &op, usage),
            (Step::Read { op, watch: true }, Some(table)) => {
                let result = self.read(lane, view, &op, usage);
                // Only exists leaves a watch on a znode that is not there (wire 7.5).
                let (path, kind, armed) = match &op {
                    ReadOp::Exists { path } => {
                        (path, WatchKind::Data, matches!(result, Ok(_) | Err(ErrorCode::NoNode)))
                    }
                    ReadOp::GetData { path } => (path, WatchKind::Data, result.is_ok()),
                    ReadOp::GetChildren { path } => (path, WatchKind::Child, result.is_ok()),
                    ReadOp::List(op) => (&op.path, WatchKind::Child, result.is_ok()),
                    // Watch flags inside other reads are ignored (wire 3.4).
                    _ => return result,
                };
                if armed {
                    // "" is another name of the root for reads; events name it "/".
                    table.add(lane.id, if path.is_empty() { "/" } else { path }, kind);
                }
                result
            }
            (Step::AddWatch { path, kind }, Some(table)) => {
                table.add(lane.id, &path, kind);
                Ok(Answer::Done)
            }
            (Step::Watches { path, kind, remove }, Some(table)) => {
                let found = if remove { table.remove(lane.id, &path, kind) } else { table.has(lane.id, &path, kind) };
                if found { Ok(Answer::Done) } else { Err(ErrorCode::NoWatcher) }
            }
            (Step::SetWatches(watches), Some(table)) => {
                self.set_watches(lane, view, watches, table, recent);
                Ok(Answer::Done)
            }
            (Step::Subscribe { watch, subscription, after }, Some(table)) => {
                self.feeds.subscribe(lane.id, watch, subscription, after, zxid, table)?;
                Ok(Answer::Done)
            }
            (Step::Unsubscribe { watch }, Some(table)) => {
                self.feeds.unsubscribe(lane.id, watch, table)?;
                Ok(Answer::Done)
            }
            (Step::Write { .. }, _) | (_, None) => unreachable!("run() answers no writes, and asks for the table"),
        }
    }

    fn read(&mut self, lane: &Lane, view: &impl TreeView, op: &ReadOp, usage: &Usage) -> Result<Answer, ErrorCode> {
        let answer = read::read(view, op, lane.session, &self.ids)?;
        self.read.read(usage, op, &answer);
        Ok(answer)
    }

    /// Wire 7.8: what was missed fires now, the rest is armed; events before the reply, without a zxid.
    fn set_watches(
        &mut self,
        lane: &Lane,
        view: &impl TreeView,
        watches: SetWatches,
        table: &mut WatchTable,
        recent: &[FeedEntry],
    ) {
        let since = watches.relative_zxid.as_i64();
        for path in watches.data {
            match read::stat(view, &path) {
                None => self.missed(EventKind::NodeDeleted, path),
                Some(stat) if stat.mzxid > since && !zoo::broken(Switch::SetWatchesMisses) => {
                    self.missed(EventKind::NodeDataChanged, path)
                }
                Some(_) => table.add(lane.id, &path, WatchKind::Data),
            }
        }
        for path in watches.exist {
            match read::stat(view, &path) {
                Some(_) => self.missed(EventKind::NodeCreated, path),
                None => table.add(lane.id, &path, WatchKind::Data),
            }
        }
        for path in watches.child {
            match read::stat(view, &path) {
                None => self.missed(EventKind::NodeDeleted, path),
                Some(stat) if stat.pzxid > since => self.missed(EventKind::NodeChildrenChanged, path),
                Some(_) => table.add(lane.id, &path, WatchKind::Child),
            }
        }
        if watches.replay && !(watches.persistent.is_empty() && watches.persistent_recursive.is_empty()) {
            let lists = [&watches.persistent, &watches.persistent_recursive];
            self.replay(lane, view, watches.relative_zxid, lists, recent);
        }
        for path in watches.persistent {
            table.add(lane.id, &path, WatchKind::Persistent);
        }
        for path in watches.persistent_recursive {
            table.add(lane.id, &path, WatchKind::PersistentRecursive);
        }
    }

    /// What persistent watches missed, each event once, as they would have been told of it; nothing if that is not known
    /// any more, or too much.
    fn replay(
        &mut self,
        lane: &Lane,
        view: &impl TreeView,
        after: Zxid,
        [persistent, recursive]: [&Vec<String>; 2],
        recent: &[FeedEntry],
    ) {
        if after < feed::floor(view) {
            return;
        }
        let mut missing = WatchTable::default();
        for path in persistent {
            missing.add(lane.id, path, WatchKind::Persistent);
        }
        for path in recursive {
            missing.add(lane.id, path, WatchKind::PersistentRecursive);
        }
        let (mut events, mut entries) = (Vec::new(), 0);
        let ids = self.ids.clone();
        let mut tell = |FeedEntry { zxid, events: happened }: &FeedEntry| {
            for event in happened {
                missing.fire(event.kind, &event.path, &mut |_, kind, path| {
                    let acl = if kind == event.kind { event.acl } else { event.parent_acl };
                    if read::may_read(view, acl, &ids) {
                        events.push(WatchedEvent { kind, path: path.to_owned(), zxid: Some(*zxid) });
                    }
                });
            }
            entries += 1;
            events.len() <= REPLAY_EVENTS_MAX && entries <= REPLAY_ENTRIES_MAX
        };
        let intact = feed::read(view, after, &mut |entry| tell(&entry));
        let complete = intact && recent.iter().filter(|entry| entry.zxid > after).all(&mut tell);
        if complete && events.len() <= REPLAY_EVENTS_MAX && entries <= REPLAY_ENTRIES_MAX {
            for event in events {
                self.push_missed(event);
            }
        }
    }

    fn missed(&mut self, kind: EventKind, path: String) {
        self.push_missed(WatchedEvent { kind, path, zxid: None });
    }

    fn push_missed(&mut self, event: WatchedEvent) {
        self.out_bytes += OUTGOING_ITEM_BYTES + event.path.len();
        self.out.push(Outgoing::Event(SharedEvent::new(event)));
    }

    fn notify(&mut self, notice: FeedNotice) {
        let bytes = super::feed::weight(&notice);
        self.out_bytes += bytes;
        self.feeds.unread += bytes;
        self.out.push(Outgoing::Feed(notice));
    }

    fn bookmark(&mut self, zxid: Zxid) {
        if let Some(notice) = self.feeds.bookmark(zxid) {
            self.notify(notice);
        }
    }

    /// Brings subscriptions that are behind closer to a published state, as far as the client reads.
    fn catch_up(
        &mut self,
        lane: WatcherId,
        view: &impl TreeView,
        zxid: Zxid,
        table: Option<&mut WatchTable>,
    ) -> CatchUp {
        // What is behind goes on when this is read; a state older than what was shown has nothing to tell.
        if self.closed || self.out_bytes > self.outgoing_bytes_max || self.floor > zxid || !self.feeds.has_behind() {
            return CatchUp::Done;
        }
        let mut notices = Vec::new();
        let ids = self.ids.clone();
        let caught_up = self.feeds.catch_up(lane, &ids, view, zxid, table, &mut notices);
        if !notices.is_empty() {
            self.floor = self.floor.max(zxid);
        }
        for notice in notices {
            self.notify(notice);
        }
        caught_up
    }
}

/// Adds identities; known ones are not doubled.
pub fn add_ids(ids: &mut Arc<Vec<Id>>, more: Vec<Id>) {
    let ids = Arc::make_mut(ids);
    for id in more {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
}

/// Bytes of an answer, roughly.
fn weight(answer: &Answer) -> usize {
    match answer {
        Answer::Data { data, .. } => data.as_ref().map_or(0, bytes::Bytes::len),
        Answer::Children { children, .. } => children.iter().map(|c| c.len() + 24).sum(),
        Answer::Listing { children, stats, data, .. } => {
            let data: usize = data.iter().flatten().map(bytes::Bytes::len).sum();
            children.iter().map(|c| c.len() + 32).sum::<usize>() + stats.len() * 68 + data
        }
        Answer::Subtree { nodes, .. } => {
            nodes.iter().map(|node| 128 + node.path.len() + node.data.as_ref().map_or(0, bytes::Bytes::len)).sum()
        }
        Answer::Paths(paths) => paths.iter().map(|p| p.len() + 24).sum(),
        Answer::Multi(answers) => answers.iter().map(weight).sum(),
        Answer::MultiRead(results) => results.iter().flatten().map(weight).sum(),
        Answer::Created { path, .. } => path.len(),
        Answer::MultiFailed { ops, .. } => ops * 16,
        Answer::Acl { acl, .. } => acl.len() * 64,
        Answer::Ids(ids) => ids.len() * 64,
        Answer::Token(token) => token.as_ref().map_or(0, bytes::Bytes::len),
        Answer::Done | Answer::Stat(_) | Answer::Count(_) => 0,
    }
}
