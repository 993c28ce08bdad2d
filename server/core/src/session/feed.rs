//! One connection's subscriptions to the change feed (docs/adr/0010).
//!
//! A subscription is in one of two states. *Live*: it is in the watch table, and the apply room hands it the events of each
//! entry as they are executed, before any reply that shows them. *Behind*: it has a position, and the connection's task
//! reads on from there in the feed, as fast as the client reads; replies do not wait for it. It begins behind if it begins
//! in the past; it falls behind when the client leaves too much unread, which costs nobody else anything; and it is live
//! again as soon as it has caught up, which happens under the table's lock, so that nothing falls between the two.

use std::collections::BTreeMap;
use std::sync::Arc;

use corral_proto::{ErrorCode, EventKind, Id, Zxid, path as paths};

use super::{FeedEvent, FeedNotice};
use crate::tree::feed::{self, FeedEntry};
use crate::tree::{TreeView, read};
use crate::watch::feed::{FeedTable, Interest};
use crate::watch::{WatchTable, WatcherId};

/// Subscriptions of one connection.
pub const SUBSCRIPTIONS_MAX: usize = 10_000;

/// Bytes of events that may wait unread at the end of a batch; beyond it all subscriptions of the connection are behind,
/// and go on when there is room.
pub const UNREAD_BYTES_MAX: usize = 2 << 20;

/// Bytes that are caught up with at once, and entries looked at for it.
const CATCH_UP_BYTES: usize = 256 << 10;
const CATCH_UP_ENTRIES: usize = 2_000;

/// What a notice counts for beside paths and data.
const NOTICE_BYTES: usize = 64;

/// A subscription as the client asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Where.
    pub path: String,
    /// What.
    pub interest: Interest,
}

/// All subscriptions of one connection.
#[derive(Debug, Default)]
pub(super) struct Feeds {
    live: BTreeMap<u64, Subscription>,
    behind: BTreeMap<u64, Behind>,
    /// Those behind, by path.
    reach: FeedTable<u64>,
    /// What live ones were last told: everything up to here has been sent.
    bookmark: Zxid,
    /// Live ones were told something in the batch that is being executed.
    changed: bool,
    /// Bytes of notices that the connection has not taken yet.
    pub(super) unread: usize,
}

#[derive(Debug)]
struct Behind {
    subscription: Subscription,
    /// Everything up to here was sent.
    position: Zxid,
}

/// How far catching up has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CatchUp {
    /// Nobody is behind.
    Done,
    /// The last step needs the watch table.
    NeedsTable,
    /// There is more to read.
    More,
}

impl Feeds {
    /// Takes a subscription: from the state `zxid` on, which the caller holds the table for; or after a position, from
    /// where it catches up.
    pub(super) fn subscribe(
        &mut self,
        lane: WatcherId,
        watch: u64,
        subscription: Subscription,
        after: Option<Zxid>,
        zxid: Zxid,
        table: &mut WatchTable,
    ) -> Result<(), ErrorCode> {
        paths::validate(&subscription.path)?;
        // A position that the ensemble has not reached is of another one, or made up.
        let is_named = watch != 0 && !self.live.contains_key(&watch) && !self.behind.contains_key(&watch);
        if !is_named || after.is_some_and(|after| after > zxid) {
            return Err(ErrorCode::BadArguments);
        }
        if self.live.len() + self.behind.len() >= SUBSCRIPTIONS_MAX {
            return Err(ErrorCode::QuotaExceeded);
        }
        match after {
            Some(position) if position < zxid => self.fall_behind(watch, subscription, position),
            _ => self.go_live(lane, watch, subscription, table),
        }
        Ok(())
    }

    pub(super) fn unsubscribe(&mut self, lane: WatcherId, watch: u64, table: &mut WatchTable) -> Result<(), ErrorCode> {
        table.feeds.remove((lane, watch));
        self.reach.remove(watch);
        match self.live.remove(&watch).is_some() | self.behind.remove(&watch).is_some() {
            true => Ok(()),
            false => Err(ErrorCode::NoWatcher),
        }
    }

    fn go_live(&mut self, lane: WatcherId, watch: u64, subscription: Subscription, table: &mut WatchTable) {
        table.feeds.add((lane, watch), &subscription.path, subscription.interest);
        self.live.insert(watch, subscription);
    }

    fn fall_behind(&mut self, watch: u64, subscription: Subscription, position: Zxid) {
        self.reach.add(watch, &subscription.path, subscription.interest);
        self.behind.insert(watch, Behind { subscription, position });
    }

    /// The events of one entry, for a live subscription.
    pub(super) fn changes(&mut self, watch: u64, zxid: Zxid, events: Vec<Arc<FeedEvent>>) -> Option<FeedNotice> {
        if !self.live.contains_key(&watch) {
            return None;
        }
        self.changed = true;
        Some(FeedNotice::Changes { watch, zxid, events })
    }

    /// A batch ends at `zxid`. Live subscriptions are told so if they were told of anything in it; or they fall behind.
    pub(super) fn end_batch(&mut self, lane: WatcherId, zxid: Zxid, table: &mut WatchTable) -> Option<FeedNotice> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        if self.unread <= UNREAD_BYTES_MAX {
            return self.bookmark(zxid);
        }
        table.feeds.remove_range((lane, 0)..=(lane, u64::MAX));
        for (watch, subscription) in std::mem::take(&mut self.live) {
            self.fall_behind(watch, subscription, zxid);
        }
        None
    }

    /// Tells all subscriptions that all up to `zxid` was sent, if that is news, and true of all: while one is behind, the
    /// others wait for it, so that a bookmark need not say whom it is for.
    pub(super) fn bookmark(&mut self, zxid: Zxid) -> Option<FeedNotice> {
        if self.live.is_empty() || !self.behind.is_empty() || zxid <= self.bookmark {
            return None;
        }
        self.bookmark = zxid;
        Some(FeedNotice::Bookmark { watch: None, zxid })
    }

    pub(super) fn has_live(&self) -> bool {
        !self.live.is_empty()
    }

    pub(super) fn has_behind(&self) -> bool {
        !self.behind.is_empty()
    }

    /// Reads on in the feed of a published state, up to a bound. With the table, who has read all of it goes live.
    pub(super) fn catch_up(
        &mut self,
        lane: WatcherId,
        ids: &[Id],
        view: &impl TreeView,
        zxid: Zxid,
        mut table: Option<&mut WatchTable>,
        out: &mut Vec<FeedNotice>,
    ) -> CatchUp {
        let floor = feed::floor(view);
        let lost = self.behind.iter().filter(|(_, behind)| behind.position < floor).map(|(watch, _)| *watch);
        let lost: Vec<u64> = lost.collect();
        if !lost.is_empty() && !self.skip(lane, &lost, zxid, table.as_deref_mut(), out) {
            return CatchUp::NeedsTable;
        }
        let Some(from) = self.behind.values().map(|behind| behind.position).min() else { return CatchUp::Done };
        let (mut bytes, mut entries, mut last) = (0, 0, None);
        let intact = from >= zxid
            || feed::read(view, from, &mut |entry| {
                bytes += self.replay(&entry, ids, view, zxid, out);
                entries += 1;
                let goes_on = bytes < CATCH_UP_BYTES && entries < CATCH_UP_ENTRIES;
                last = (!goes_on).then_some(entry.zxid);
                goes_on
            });
        if !intact {
            let all: Vec<u64> = self.behind.keys().copied().collect();
            return match self.skip(lane, &all, zxid, table, out) {
                true => CatchUp::Done,
                false => CatchUp::NeedsTable,
            };
        }
        let position = last.unwrap_or(zxid);
        for behind in self.behind.values_mut() {
            behind.position = behind.position.max(position);
        }
        if last.is_some() {
            return CatchUp::More;
        }
        let Some(table) = table else { return CatchUp::NeedsTable };
        for (watch, Behind { subscription, .. }) in std::mem::take(&mut self.behind) {
            self.reach.remove(watch);
            self.go_live(lane, watch, subscription, table);
            out.push(FeedNotice::Bookmark { watch: Some(watch), zxid });
        }
        CatchUp::Done
    }

    /// Tells subscriptions that what follows their position is gone, and goes on from the state `zxid`; false without the
    /// table.
    fn skip(
        &mut self,
        lane: WatcherId,
        watches: &[u64],
        zxid: Zxid,
        table: Option<&mut WatchTable>,
        out: &mut Vec<FeedNotice>,
    ) -> bool {
        let Some(table) = table else { return false };
        for watch in watches {
            let Some(Behind { subscription, position }) = self.behind.remove(watch) else { continue };
            self.reach.remove(*watch);
            self.go_live(lane, *watch, subscription, table);
            out.push(FeedNotice::Gap { watch: *watch, after: position, resync: zxid });
        }
        true
    }

    /// Tells everybody behind of the events of one entry; returns how many bytes that is.
    fn replay(
        &self,
        entry: &FeedEntry,
        ids: &[Id],
        view: &impl TreeView,
        as_of: Zxid,
        out: &mut Vec<FeedNotice>,
    ) -> usize {
        let reaches = |watch| self.behind.get(&watch).is_some_and(|behind| behind.position < entry.zxid);
        let mut told = Told::new(view, entry.zxid, as_of);
        for (at, event) in entry.events.iter().enumerate() {
            self.reach.reach(event.kind, &event.path, &mut |watch, interest, kind, path| {
                let acl = if kind == event.kind { event.acl } else { event.parent_acl };
                if reaches(watch) && read::may_read(view, acl, ids) {
                    told.tell(watch, interest, &entry.events, at, kind, path);
                }
            });
        }
        let mut bytes = 0;
        for (watch, events) in told.groups {
            let notice = FeedNotice::Changes { watch, zxid: entry.zxid, events };
            bytes += weight(&notice);
            out.push(notice);
        }
        bytes
    }
}

/// Collects the events of one entry for those who follow the feed; equal ones are shared.
pub(crate) struct Told<'a, V, O> {
    view: &'a V,
    zxid: Zxid,
    as_of: Zxid,
    /// Which events bring their znode; empty: not looked at yet.
    brings_node: Vec<bool>,
    /// The event itself, its parent's, and the event with its znode, of the event in turn.
    shared: (usize, [Option<Arc<FeedEvent>>; 3]),
    /// What each is told, in order.
    pub(crate) groups: BTreeMap<O, Vec<Arc<FeedEvent>>>,
}

impl<'a, V: TreeView, O: Ord> Told<'a, V, O> {
    /// For the entry `zxid`; znodes are read from `view`, which is the state `as_of`.
    pub(crate) fn new(view: &'a V, zxid: Zxid, as_of: Zxid) -> Told<'a, V, O> {
        let shared = (usize::MAX, [None, None, None]);
        Told { view, zxid, as_of, brings_node: Vec::new(), shared, groups: BTreeMap::new() }
    }

    /// Tells one of the `at`-th event, as `kind` of `path`.
    pub(crate) fn tell(
        &mut self,
        owner: O,
        interest: Interest,
        events: &[crate::tree::entry::TreeEvent],
        at: usize,
        kind: EventKind,
        path: &str,
    ) {
        if self.shared.0 != at {
            self.shared = (at, [None, None, None]);
        }
        let of_parent = kind != events[at].kind;
        let mut with_node = interest.with_nodes && !of_parent && kind != EventKind::NodeDeleted;
        if with_node {
            if self.brings_node.is_empty() {
                self.brings_node = feed::is_last_of_path(events);
            }
            with_node = self.brings_node[at];
        }
        let slot = if with_node { 2 } else { usize::from(of_parent) };
        let (view, zxid, as_of) = (self.view, self.zxid, self.as_of);
        let event = self.shared.1[slot].get_or_insert_with(|| {
            let node = if with_node { feed::node_as_of(view, path, zxid, as_of) } else { None };
            Arc::new(FeedEvent { kind, path: path.to_owned(), node })
        });
        self.groups.entry(owner).or_default().push(event.clone());
    }
}

/// About how many bytes a notice takes.
pub(super) fn weight(notice: &FeedNotice) -> usize {
    let of = |event: &Arc<FeedEvent>| {
        let data = event.node.as_ref().map_or(0, |node| 96 + node.data.as_ref().map_or(0, bytes::Bytes::len));
        NOTICE_BYTES + event.path.len() + data
    };
    match notice {
        FeedNotice::Changes { events, .. } => NOTICE_BYTES + events.iter().map(of).sum::<usize>(),
        FeedNotice::Bookmark { .. } | FeedNotice::Gap { .. } => NOTICE_BYTES,
    }
}
