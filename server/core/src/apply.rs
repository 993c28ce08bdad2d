//! Executes committed entries, queues events and replies, then publishes: the one place where tree, sessions and
//! watches meet.
//!
//! The rule that joins them: **queue, then publish; read what is published.** For each entry of a batch, in order:
//! requests of its session that stand before it are answered from the state just before it; the entry is executed on
//! an overlay; its events and then its reply enter the lanes. When the batch is done its changes are written to the
//! store at once, with the meta row that says how far the store is, and only then the new state is published. The
//! watch table is locked from the first event to the publication, and a read that arms a watch holds the same lock: so
//! no event can fall between a read and its watch.

use std::collections::BTreeMap;
use std::sync::Arc;

use corral_proto::{ErrorCode, EventKind, ServerId, SessionId, WatchedEvent, Zxid};
use parking_lot::{Mutex, RwLock};

use crate::session::feed::Told;
use crate::session::lane::{Handshake, Lane, Published, Shown, Stuck};
use crate::session::local::LocalSessions;
use crate::session::outbox::Key;
use crate::session::usage::{Tally, Usage};
use crate::session::{CloseReason, SharedEvent};
use crate::tree::entry::{Carrier, Command, Outcome, SessionEvent, TreeEvent, Txn, Verdict};
use crate::tree::feed::{Feed, FeedBounds, FeedEntry};
use crate::tree::overlay::Overlay;
use crate::tree::recent::{Recent, WithRecent};
use crate::tree::record::Meta;
use crate::tree::{TreeStore, TreeView, execute, read};
use crate::watch::{WatchTable, WatcherId};
use crate::zab::io::{Entry, Position};
use crate::zoo::{self, Switch};

/// A digest is recorded at every entry whose counter is a multiple of this (P35).
pub const DIGEST_INTERVAL: u32 = 1024;

/// Batches between two looks at what of the store is durable.
const PERSISTED_LOOK_BATCHES: u64 = 16;

/// Connections whose handshake may be on its way through the log at once.
pub const HANDSHAKES_MAX: usize = 20_000;

/// The connections of one server, as the apply room sees them.
#[derive(Default)]
pub struct Lanes {
    /// The one connection of each session here.
    attached: RwLock<BTreeMap<SessionId, Arc<Lane>>>,
    /// Handshakes on their way through the log.
    joining: Mutex<BTreeMap<(SessionId, u64), Arc<Lane>>>,
    /// Lanes whose front waits for a later state.
    parked: Mutex<Vec<Arc<Lane>>>,
}

impl Lanes {
    /// Begins a handshake; false if too many are under way.
    pub fn join(&self, session: SessionId, nonce: u64, lane: Arc<Lane>) -> bool {
        let mut joining = self.joining.lock();
        if joining.len() >= HANDSHAKES_MAX {
            return false;
        }
        joining.insert((session, nonce), lane);
        true
    }

    /// Gives up a handshake; false if it is over.
    pub fn abandon(&self, session: SessionId, nonce: u64) -> bool {
        self.joining.lock().remove(&(session, nonce)).is_some()
    }

    /// The session's connection here, if any.
    pub fn of(&self, session: SessionId) -> Option<Arc<Lane>> {
        self.attached.read().get(&session).cloned()
    }

    /// Sessions with a connection here: all of them are touched for a new leader (P32).
    pub fn sessions(&self) -> Vec<SessionId> {
        self.attached.read().keys().copied().collect()
    }

    /// Every connection here.
    pub fn all(&self) -> Vec<Arc<Lane>> {
        self.attached.read().values().cloned().collect()
    }

    /// Number of connections here.
    pub fn len(&self) -> usize {
        self.attached.read().len()
    }

    /// Whether there is no connection.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The connection ended.
    pub fn detach(&self, lane: &Arc<Lane>) {
        let mut attached = self.attached.write();
        if attached.get(&lane.session).is_some_and(|l| Arc::ptr_eq(l, lane)) {
            attached.remove(&lane.session);
        }
    }

    /// Wakes the lane at the next publication.
    pub fn park(&self, lane: &Arc<Lane>) {
        self.parked.lock().push(lane.clone());
    }

    /// Ends every connection here and every handshake; returns how many.
    pub fn close_all(&self, reason: CloseReason) -> usize {
        let mut lanes = self.all();
        lanes.extend(std::mem::take(&mut *self.joining.lock()).into_values());
        for lane in &lanes {
            lane.close(reason);
        }
        lanes.len()
    }
}

/// What connection tasks share with the apply room.
pub struct Shared<V> {
    published: RwLock<Arc<Published<V>>>,
    meta: RwLock<Meta>,
    /// Watches, and the lanes they lead to. Locked before any lane.
    watches: Mutex<Watches>,
    /// The connections.
    pub lanes: Lanes,
    /// What is read and written where.
    pub usage: Arc<Usage>,
    /// Sessions that this server alone knows. Nothing else is locked under it.
    pub local: Mutex<LocalSessions>,
}

#[derive(Default)]
struct Watches {
    table: WatchTable,
    lanes: BTreeMap<WatcherId, Arc<Lane>>,
}

impl<V: TreeView> Shared<V> {
    /// The state that reads see.
    pub fn published(&self) -> Arc<Published<V>> {
        self.published.read().clone()
    }

    /// The meta row of the published state.
    pub fn meta(&self) -> Meta {
        self.meta.read().clone()
    }

    /// Answers what can be answered for this connection now, and arranges for a wake-up if a later state is needed.
    pub fn advance(&self, lane: &Arc<Lane>) {
        loop {
            match lane.advance(|| self.published(), None) {
                Stuck::OnTable => {
                    let mut watches = self.watches.lock();
                    watches.lanes.entry(lane.id).or_insert_with(|| lane.clone());
                    match lane.advance(|| self.published(), Some(&mut watches.table)) {
                        Stuck::OnState => {}
                        _ => return,
                    }
                }
                Stuck::OnState => {}
                _ => return,
            }
            // Park first, then look again: a publication in between would otherwise wake nobody.
            self.lanes.park(lane);
            if lane.advance(|| self.published(), None) == Stuck::OnTable {
                continue;
            }
            return;
        }
    }

    /// A local session has this connection from now on; a former one ends.
    pub fn attach_local(&self, lane: &Arc<Lane>) {
        let former = self.lanes.attached.write().insert(lane.session, lane.clone());
        if let Some(former) = former {
            close(&former, CloseReason::Moved, &mut self.watches.lock());
        }
    }

    /// The connection ended: it leaves the lanes, its watches go.
    pub fn detach(&self, lane: &Arc<Lane>) {
        self.lanes.detach(lane);
        let mut watches = self.watches.lock();
        watches.table.remove_watcher(lane.id);
        watches.lanes.remove(&lane.id);
    }

    /// Number of watches, subscriptions to the change feed among them.
    pub fn watch_count(&self) -> usize {
        let watches = self.watches.lock();
        watches.table.count() + watches.table.feeds.len()
    }

    /// The sessions that watch here, each with its paths of the data table (see [`WatchTable::data_watches`]). Holds the
    /// lock of the watches for a walk of the table: for operators who ask, not for figures.
    pub fn watched_paths(&self) -> Vec<(SessionId, Vec<String>)> {
        let watches = self.watches.lock();
        let sessions = watches.table.data_watches().into_iter();
        let mut sessions: Vec<(SessionId, Vec<String>)> = sessions
            .filter_map(|(watcher, paths)| Some((watches.lanes.get(&watcher)?.session, paths.into_iter().collect())))
            .collect();
        drop(watches);
        sessions.sort_unstable();
        sessions
    }
}

/// What a batch did, for the core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Last executed entry.
    pub zxid: Zxid,
    /// What a crash would leave in the store.
    pub persisted: Zxid,
    /// Writes that are resolved, whoever waits for them.
    pub resolved: Vec<Key>,
    /// Sessions that began, moved or ended.
    pub sessions: Vec<SessionEvent>,
    /// Digests recorded in the batch.
    pub digests: Vec<(Zxid, u64)>,
    /// The running digest at `zxid`, if entries were executed.
    pub digest: Option<u64>,
    /// Places of local sessions' writes that were refused.
    pub void_carriers: Vec<Carrier>,
    /// How many connections watched for each event that any watched for.
    pub told: Vec<(EventKind, usize)>,
}

/// The apply room of one server.
pub struct Apply<S: TreeStore> {
    server: ServerId,
    store: S,
    meta: Meta,
    feed: Feed,
    feed_bounds: FeedBounds,
    shared: Arc<Shared<S::View>>,
    /// `--skip-entry`: executed as SYSTEMERROR, on every server alike (P34).
    skip: Vec<Zxid>,
    /// Records that are likely to be needed again.
    recent: Recent,
    /// Batches executed.
    batches: u64,
    /// What a crash would leave in the store, as of the last look: only the log's trimming waits for it.
    persisted: Zxid,
}

impl<S: TreeStore> Apply<S> {
    /// Opens the room over a store that contains at least the genesis.
    pub fn new(server: ServerId, store: S, skip: Vec<Zxid>) -> Apply<S> {
        let view = store.view();
        let meta = meta_of(&view);
        let feed_bounds = FeedBounds::default();
        let feed = Feed::open(&view, feed_bounds);
        let usage = Arc::new(Usage::default());
        let published = Arc::new(Published { view, zxid: meta.applied, usage: usage.clone() });
        let shared = Arc::new(Shared {
            usage,
            published: RwLock::new(published),
            meta: RwLock::new(meta.clone()),
            watches: Mutex::default(),
            lanes: Lanes::default(),
            local: Mutex::default(),
        });
        let persisted = store.persisted_meta().map_or(Zxid::ZERO, |meta| meta.applied);
        Apply { server, store, meta, feed, feed_bounds, shared, skip, recent: Recent::default(), batches: 0, persisted }
    }

    /// Bounds the change feed; what is past them goes with the next batches.
    pub fn bound_feed(&mut self, bounds: FeedBounds) {
        self.feed_bounds = bounds;
        self.feed = Feed::open(&self.store.view(), bounds);
    }

    /// The change feed of the store.
    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    /// What connection tasks hold.
    pub fn shared(&self) -> Arc<Shared<S::View>> {
        self.shared.clone()
    }

    /// The store, for flushes and snapshots between batches.
    pub fn store(&mut self) -> &mut S {
        &mut self.store
    }

    /// What the store contains.
    pub fn position(&self) -> Position {
        Position { zxid: self.meta.applied, hash: self.meta.hash }
    }

    /// The meta row of the store.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Closes every connection and forgets every watch: the state is about to be replaced.
    pub fn reset_clients(&mut self, reason: CloseReason) {
        // In this order: a local session that is just being opened looks for itself after it has a connection.
        self.shared.local.lock().clear();
        self.shared.lanes.close_all(reason);
        let mut watches = self.shared.watches.lock();
        watches.table.clear();
        watches.lanes.clear();
    }

    /// Takes another store: an installed snapshot.
    ///
    /// # Panics
    /// If the new store is behind the old one: acknowledged state would vanish (P11).
    pub fn replace_store(&mut self, store: S) {
        let view = store.view();
        let meta = meta_of(&view);
        assert!(meta.applied >= self.meta.applied, "a snapshot never takes the state back");
        self.feed = Feed::open(&view, self.feed_bounds);
        self.store = store;
        self.recent.clear();
        self.persisted = self.persisted.max(self.persisted());
        if !zoo::broken(Switch::OldMetaAfterInstall) {
            self.meta = meta.clone();
        }
        self.publish(view, meta);
    }

    /// Executes a batch of consecutive entries.
    ///
    /// # Panics
    /// If an entry does not follow what the store contains (I13).
    pub fn apply(&mut self, entries: &[Entry]) -> Applied {
        let shared = self.shared.clone();
        let mut applied = Applied::default();
        let mut woken: BTreeMap<WatcherId, Arc<Lane>> = BTreeMap::new();
        if zoo::broken(Switch::ReplyBeforePublish) {
            self.publish(self.store.view(), self.meta.clone());
        }
        let base = shared.published();
        let mut recent = std::mem::take(&mut self.recent);
        let mut overlay = Overlay::new(WithRecent { base: &base.view, recent: &recent });
        let mut happened: Vec<FeedEntry> = Vec::new();
        let mut written = Tally::default();
        let mut watches = shared.watches.lock();
        for entry in entries {
            assert!(entry.zxid > self.meta.applied, "entries are executed once and in order");
            let txn = if entry.payload.is_empty() { None } else { Txn::decode(&entry.payload).ok() };
            let lane = txn.as_ref().filter(|t| t.n != 0).and_then(|t| shared.lanes.of(t.session).map(|lane| (t, lane)));
            if let Some((txn, lane)) = &lane
                && lane.has_reads_before(txn.attach, txn.n)
            {
                watches.lanes.entry(lane.id).or_insert_with(|| lane.clone());
                if zoo::broken(Switch::WatchArmedLate) {
                    lane.advance(|| base.clone(), Some(&mut watches.table));
                }
                let zxid = self.meta.applied;
                let shown = Shown { view: &overlay, zxid, recent: &happened, usage: &shared.usage };
                lane.flush(&shown, &mut watches.table);
                woken.insert(lane.id, lane.clone());
            }
            let mut outcome = self.execute(&overlay, entry, txn.as_ref());
            overlay.push(outcome.changes.iter().cloned());
            self.meta = meta_of(&overlay);
            assert_eq!(self.meta.applied, entry.zxid, "every entry advances the meta row");
            let late = zoo::broken(Switch::EventAfterReply);
            if !late {
                self.fire(&outcome, entry.zxid, &overlay, &mut watches, &mut woken, &mut applied.told);
            }
            if let Some(txn) = &txn {
                self.answer(txn, &outcome, entry.zxid, &overlay, &mut watches, &mut woken);
                applied.resolved.extend(Key::of(txn));
                if let Command::LocalWrite { carrier, .. } = &txn.command
                    && !matches!(outcome.verdict, Verdict::Executed(_) | Verdict::Repeated { .. })
                {
                    applied.void_carriers.push(*carrier);
                }
            }
            if late {
                self.fire(&outcome, entry.zxid, &overlay, &mut watches, &mut woken, &mut applied.told);
            }
            if entry.zxid.counter() % DIGEST_INTERVAL == 0 {
                applied.digests.push((entry.zxid, self.meta.digest));
            }
            applied.sessions.extend(outcome.sessions);
            if !outcome.events.is_empty() {
                written.written(&shared.usage, &outcome.events);
                happened.push(FeedEntry { zxid: entry.zxid, events: std::mem::take(&mut outcome.events) });
            }
        }
        written.flush_writes(&shared.usage);
        let recorded = self.feed.record(&base.view, &happened, self.meta.stamp_ms);
        let changes = overlay.take();
        recent.note(&changes);
        self.recent = recent;
        self.store.write(&mut changes.into_iter().chain(recorded));
        for lane in woken.values() {
            lane.end_feed_batch(self.meta.applied, &mut watches.table);
        }
        if !zoo::broken(Switch::ReplyBeforePublish) {
            self.publish(self.store.view(), self.meta.clone());
        }
        drop(watches);
        for lane in woken.into_values() {
            lane.end_batch();
        }
        applied.zxid = self.meta.applied;
        applied.digest = Some(self.meta.digest);
        self.batches += 1;
        if self.batches.is_multiple_of(PERSISTED_LOOK_BATCHES) {
            self.persisted = self.persisted.max(self.persisted());
        }
        applied.persisted = self.persisted;
        applied
    }

    /// What a crash would leave in the store.
    pub fn persisted(&self) -> Zxid {
        self.store.persisted_meta().map_or(Zxid::ZERO, |meta| meta.applied)
    }

    fn execute(&self, view: &impl TreeView, entry: &Entry, txn: Option<&Txn>) -> Outcome {
        if self.skip.contains(&entry.zxid) {
            return execute::execute_skipped(view, entry.zxid, entry.stamp_ms, entry.hash, &entry.payload);
        }
        match txn {
            Some(txn) => {
                let clock = if zoo::broken(Switch::LocalClock) { self.server.0 as i64 } else { 0 };
                execute::execute_txn(view, entry.zxid, entry.stamp_ms + clock, entry.hash, txn)
            }
            None => execute::execute(view, entry.zxid, entry.stamp_ms, entry.hash, &entry.payload),
        }
    }

    fn publish(&self, view: S::View, meta: Meta) {
        let zxid = meta.applied;
        *self.shared.meta.write() = meta;
        *self.shared.published.write() = Arc::new(Published { view, zxid, usage: self.shared.usage.clone() });
        let parked = std::mem::take(&mut *self.shared.lanes.parked.lock());
        for lane in parked {
            lane.wake();
        }
    }

    /// Queues the events of one entry, in order, to those who watch and may read.
    fn fire(
        &self,
        outcome: &Outcome,
        zxid: Zxid,
        view: &impl TreeView,
        watches: &mut Watches,
        woken: &mut BTreeMap<WatcherId, Arc<Lane>>,
        told: &mut Vec<(EventKind, usize)>,
    ) {
        for TreeEvent { kind, path, acl, parent_acl, .. } in &outcome.events {
            let Watches { table, lanes } = &mut *watches;
            // One shared event for each (kind, path): the znode's own, and its parent's.
            let mut shared: [Option<Arc<SharedEvent>>; 2] = [None, None];
            let mut watchers = [0, 0];
            table.fire(*kind, path, &mut |watcher, told, told_path| {
                let Some(lane) = lanes.get(&watcher) else { return };
                let of_parent = told != *kind;
                watchers[usize::from(of_parent)] += 1;
                let acl = if of_parent { *parent_acl } else { *acl };
                if !read::may_read(view, acl, &lane.ids()) {
                    return;
                }
                let event = shared[usize::from(of_parent)].get_or_insert_with(|| {
                    SharedEvent::new(WatchedEvent { kind: told, path: told_path.to_owned(), zxid: Some(zxid) })
                });
                lane.event(event.clone(), zxid);
                woken.entry(watcher).or_insert_with(|| lane.clone());
            });
            let kinds = [*kind, EventKind::NodeChildrenChanged];
            told.extend(kinds.into_iter().zip(watchers).filter(|(_, watchers)| *watchers > 0));
        }
        let Watches { table, lanes } = &*watches;
        if table.feeds.is_empty() {
            return;
        }
        let mut feeds = Told::new(view, zxid, zxid);
        for (at, TreeEvent { kind, path, acl, parent_acl, .. }) in outcome.events.iter().enumerate() {
            table.feeds.reach(*kind, path, &mut |owner, interest, told_kind, told_path| {
                let Some(lane) = lanes.get(&owner.0) else { return };
                let acl = if told_kind == *kind { *acl } else { *parent_acl };
                if read::may_read(view, acl, &lane.ids()) {
                    feeds.tell(owner, interest, &outcome.events, at, told_kind, told_path);
                }
            });
        }
        for ((watcher, watch), events) in feeds.groups {
            let Some(lane) = lanes.get(&watcher) else { continue };
            lane.feed(watch, zxid, events);
            woken.entry(watcher).or_insert_with(|| lane.clone());
        }
    }

    /// Replies to the owner of the entry if it is connected here, and lets sessions come and go.
    fn answer(
        &self,
        txn: &Txn,
        outcome: &Outcome,
        zxid: Zxid,
        view: &impl TreeView,
        watches: &mut Watches,
        woken: &mut BTreeMap<WatcherId, Arc<Lane>>,
    ) {
        let lanes = &self.shared.lanes;
        match &txn.command {
            Command::CreateSession { nonce, .. } | Command::Attach { nonce, .. } => {
                if let Some(lane) = lanes.joining.lock().remove(&(txn.session, *nonce)) {
                    let handshake = match &outcome.verdict {
                        Verdict::Attached { timeout_ms, last_n, .. } => Handshake::Attached {
                            // The row says where the session stands, for a repeated handshake too.
                            attach: read::session(view, txn.session).map_or(zxid, |row| row.attach),
                            timeout_ms: *timeout_ms,
                            last_n: *last_n,
                        },
                        Verdict::IdTaken => Handshake::IdTaken,
                        _ => Handshake::Expired,
                    };
                    if matches!(handshake, Handshake::Attached { .. }) {
                        let former = lanes.attached.write().insert(txn.session, lane.clone());
                        // A local session that becomes known to all keeps its connection.
                        if let Some(former) = former.filter(|former| !Arc::ptr_eq(former, &lane)) {
                            close(&former, CloseReason::Moved, watches);
                        }
                    }
                    lane.finish_handshake(handshake);
                    if lane.is_closed() {
                        // Nobody waits for it any more.
                        lanes.detach(&lane);
                    }
                }
            }
            Command::Write(_) | Command::CloseSession { .. } => {
                if let Some(lane) = lanes.of(txn.session).filter(|lane| txn.n != 0 && lane.attach() == txn.attach) {
                    match &outcome.verdict {
                        Verdict::Executed(result) => lane.resolve(txn.n, zxid, result.clone()),
                        Verdict::Repeated { zxid: first, result: Some(result) } => {
                            let zxid = if zoo::broken(Switch::RepeatUnderNewZxid) { zxid } else { *first };
                            lane.resolve(txn.n, zxid, result.clone());
                        }
                        // Done, and nobody knows with which result; or a double of something this connection was
                        // answered long ago, which is in front of nothing.
                        Verdict::Repeated { result: None, .. } => {
                            lane.resolve(txn.n, zxid, Err(ErrorCode::RuntimeInconsistency));
                        }
                        Verdict::Internal => {}
                        Verdict::Moved => lane.close(CloseReason::Moved),
                        Verdict::OutOfOrder => lane.close(CloseReason::OutOfOrder),
                        Verdict::Expired | Verdict::Attached { .. } | Verdict::IdTaken => {
                            lane.resolve(txn.n, zxid, Err(ErrorCode::SessionExpired));
                            lane.close(CloseReason::Expired);
                        }
                    }
                    woken.entry(lane.id).or_insert(lane);
                }
            }
            Command::LocalWrite { carrier, .. } if carrier.server == self.server => {
                self.answer_local(txn, outcome, zxid, watches, woken);
            }
            Command::LocalWrite { .. } | Command::OpenCarrier { .. } | Command::Reap { .. } | Command::Settings(_) => {}
        }
        for event in &outcome.sessions {
            match event {
                SessionEvent::Attached { session, server, .. } if *server != self.server => {
                    if let Some(lane) = lanes.attached.write().remove(session) {
                        close(&lane, CloseReason::Moved, watches);
                    }
                }
                SessionEvent::Attached { session, .. } => {
                    // Known to all from here on. Its connection is the one that asked for it, or none that is here.
                    let was_local = self.shared.local.lock().remove(*session);
                    if was_local && let Some(lane) = lanes.of(*session).filter(|lane| lane.attach() == Zxid::ZERO) {
                        lanes.detach(&lane);
                        close(&lane, CloseReason::Moved, watches);
                    }
                }
                SessionEvent::Carried { .. } => {}
                SessionEvent::Closed { session, expired } => {
                    if let Some(lane) = lanes.attached.write().remove(session) {
                        let reason = if *expired { CloseReason::Expired } else { CloseReason::ClosedByClient };
                        close(&lane, reason, watches);
                    }
                }
            }
        }
    }

    /// A write of a session that this server alone knows, and its connection here, if it has one still.
    fn answer_local(
        &self,
        txn: &Txn,
        outcome: &Outcome,
        zxid: Zxid,
        watches: &mut Watches,
        woken: &mut BTreeMap<WatcherId, Arc<Lane>>,
    ) {
        let lanes = &self.shared.lanes;
        let lane = lanes.of(txn.session).filter(|lane| lane.attach() == Zxid::ZERO);
        match &outcome.verdict {
            Verdict::Executed(result) => {
                self.shared.local.lock().decided(txn.session);
                if let Some(lane) = lane {
                    lane.resolve(txn.n, zxid, result.clone());
                    woken.insert(lane.id, lane);
                }
            }
            // A double: its original was answered.
            Verdict::Repeated { .. } => {}
            // Nothing changed, and nothing ever will by this write: its place is void.
            _ => {
                self.shared.local.lock().remove(txn.session);
                if let Some(lane) = lane {
                    lane.resolve(txn.n, zxid, Err(ErrorCode::SessionExpired));
                    lanes.detach(&lane);
                    close(&lane, CloseReason::Expired, watches);
                }
            }
        }
    }
}

fn meta_of(view: &impl TreeView) -> Meta {
    Meta::read(view).expect("a store is opened with the genesis in it, and every entry writes the meta row")
}

fn close(lane: &Arc<Lane>, reason: CloseReason, watches: &mut Watches) {
    watches.table.remove_watcher(lane.id);
    watches.lanes.remove(&lane.id);
    lane.close(reason);
}

#[cfg(test)]
mod feed_tests;
#[cfg(test)]
mod tests;
