//! Watches as programs hold them: a future for one event, a stream for many, the change feed.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use corral_proto::{WatchedEvent, Zxid};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::error::{EndReason, Error};
use crate::feeds::{Changes, FeedEvent, FeedItem, Gap, WatchMode};
use crate::shared::Shared;
use crate::watches::WatchId;

/// Events that a [`Feed`] or [`Watcher`] holds for a reader that is slow, the last entry's not counted. Beyond it the server is
/// asked for no more, until half of them are read; then it goes on where it was.
pub(crate) const FEED_EVENTS_MAX: usize = 4096;
/// The same in bytes of paths and data.
pub(crate) const FEED_BYTES_MAX: usize = 16 << 20;

/// What a [`Watcher`] tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// Something happened to a znode.
    Node(WatchedEvent),
    /// Events are missing here, since no server remembers them any more: read afresh what you know of the tree. What is read
    /// after this notice is complete, together with the events that follow.
    Gap(Gap),
}

/// One event to come: given by `get_and_watch` and its relatives. It is watched for across reconnects; what happened
/// meanwhile counts.
///
/// Dropping it ends the watch.
#[must_use = "a dropped watch is removed"]
#[derive(Debug)]
pub struct OneshotWatch {
    pub(crate) event: oneshot::Receiver<Result<WatchedEvent, EndReason>>,
    pub(crate) guard: Guard,
}

impl Future for OneshotWatch {
    type Output = Result<WatchedEvent, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        Pin::new(&mut this.event).poll(context).map(|event| {
            event.unwrap_or(Err(EndReason::Stopped)).map_err(|reason| Error::SessionEnded {
                op: "watch",
                path: this.guard.path.clone(),
                reason,
                outcome_unknown: false,
            })
        })
    }
}

/// Events of a lasting watch, in the order of their zxids: given by [`Client::watch`](crate::Client::watch).
///
/// None is lost and none comes twice, whatever happens to connections and servers; if that cannot be, a [`Gap`] says so. While
/// a connection lasts, an event comes before the answer to any request that shows what it announces.
///
/// Dropping it ends the watch. It does not keep the session: when the last [`Client`](crate::Client) is gone, it ends.
#[must_use = "a dropped watcher is removed"]
#[derive(Debug)]
pub struct Watcher {
    pub(crate) feed: Feed,
    /// The events of the entry in turn that were not given out yet.
    pub(crate) rest: VecDeque<FeedEvent>,
    /// That entry.
    pub(crate) zxid: Zxid,
    /// Up to where all events were given out.
    pub(crate) position: Zxid,
}

impl Watcher {
    pub(crate) fn new(feed: Feed) -> Watcher {
        let position = feed.position;
        Watcher { feed, rest: VecDeque::new(), zxid: position, position }
    }

    /// Waits for the next event or notice. `None` once the session is over. Cancel safe.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(event) = self.rest() {
                return Some(event);
            }
            let item = self.feed.next().await?;
            if let Some(event) = self.take(item) {
                return Some(event);
            }
        }
    }

    /// The next event or notice if there is one already.
    pub fn try_next(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(event) = self.rest() {
                return Some(event);
            }
            let item = self.feed.try_next()?;
            if let Some(event) = self.take(item) {
                return Some(event);
            }
        }
    }

    /// Up to which zxid every event was given out: where [`Client::watch_from`](crate::Client::watch_from) goes on, in this
    /// session or another.
    pub fn position(&self) -> Zxid {
        self.position
    }

    /// Why there will be no more events; `None` while there may be.
    pub fn end_reason(&self) -> Option<EndReason> {
        self.feed.end_reason()
    }

    /// The path it was made for.
    pub fn path(&self) -> &str {
        self.feed.path()
    }

    fn rest(&mut self) -> Option<WatchEvent> {
        let FeedEvent { kind, path, .. } = self.rest.pop_front()?;
        if self.rest.is_empty() {
            self.position = self.zxid;
        }
        Some(WatchEvent::Node(WatchedEvent { kind, path, zxid: Some(self.zxid) }))
    }

    fn take(&mut self, item: FeedItem) -> Option<WatchEvent> {
        match item {
            FeedItem::Changes(Changes { zxid, events }) => {
                self.zxid = zxid;
                self.rest = events.into();
                self.rest()
            }
            FeedItem::Bookmark(zxid) => {
                self.position = zxid;
                None
            }
            FeedItem::Gap(gap) => {
                self.position = gap.resync;
                Some(WatchEvent::Gap(gap))
            }
        }
    }
}

/// The change feed of a part of the tree: every change, entry by entry, in the order of their zxids. Given by
/// [`Client::feed`](crate::Client::feed).
///
/// Whoever begins with what the tree holds at some zxid, and applies what comes after it, has exactly what the tree holds at
/// each bookmark. None is lost and none comes twice, whatever happens to connections and servers; if that cannot be, a
/// [`Gap`] says so.
///
/// At most 4,096 events (16 MiB) and one entry wait for a reader that is slow; then the server is asked for no more, and goes
/// on where it was when the reader is there again. Dropping it ends the watch. It does not keep the session.
#[must_use = "a dropped feed is ended"]
#[derive(Debug)]
pub struct Feed {
    pub(crate) queue: Arc<FeedQueue>,
    pub(crate) guard: Guard,
    pub(crate) position: Zxid,
}

impl Feed {
    /// Waits for what comes next. `None` once the session is over. Cancel safe.
    pub async fn next(&mut self) -> Option<FeedItem> {
        let queue = self.queue.clone();
        loop {
            let arrived = queue.arrived.notified();
            // Nothing is added behind the end: who sees it first sees everything.
            let is_over = self.end_reason().is_some();
            if let Some(item) = self.try_next() {
                return Some(item);
            }
            if is_over {
                return None;
            }
            arrived.await;
        }
    }

    /// What comes next, if it is there already.
    pub fn try_next(&mut self) -> Option<FeedItem> {
        let (item, resume) = {
            let mut inner = self.queue.inner.lock();
            let item = inner.items.pop_front()?;
            let (events, bytes) = weight(&item);
            inner.events -= events;
            inner.bytes -= bytes;
            let has_room = inner.events <= FEED_EVENTS_MAX / 2 && inner.bytes <= FEED_BYTES_MAX / 2;
            (item, has_room && std::mem::take(&mut inner.held))
        };
        if resume {
            self.guard.shared.resume_feed(self.guard.id);
        }
        self.position = match &item {
            FeedItem::Changes(changes) => changes.zxid,
            FeedItem::Bookmark(zxid) => *zxid,
            FeedItem::Gap(gap) => gap.resync,
        };
        Some(item)
    }

    /// Up to which zxid everything was given out: where another feed can go on, in this session or another
    /// ([`FeedOptions::after`]).
    pub fn position(&self) -> Zxid {
        self.position
    }

    /// Why nothing more will come; `None` while something may.
    pub fn end_reason(&self) -> Option<EndReason> {
        self.queue.inner.lock().ended.clone()
    }

    /// The path it was made for.
    pub fn path(&self) -> &str {
        &self.guard.path
    }
}

/// How to follow the change feed: [`Client::feed`](crate::Client::feed).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedOptions {
    pub(crate) mode: WatchMode,
    pub(crate) after: Option<Zxid>,
    pub(crate) with_nodes: bool,
}

impl From<WatchMode> for FeedOptions {
    fn from(mode: WatchMode) -> FeedOptions {
        FeedOptions { mode, after: None, with_nodes: false }
    }
}

impl FeedOptions {
    /// Begins behind a zxid, and not with what happens from now on: a [`position`](Feed::position) of before, or the zxid of
    /// a read.
    pub fn after(mut self, zxid: Zxid) -> FeedOptions {
        self.after = Some(zxid);
        self
    }

    /// Events bring what the znode holds ([`FeedEvent::node`]).
    pub fn with_nodes(mut self) -> FeedOptions {
        self.with_nodes = true;
        self
    }
}

/// The bounded queue between the session and a [`Feed`].
#[derive(Debug, Default)]
pub(crate) struct FeedQueue {
    inner: Mutex<Queued>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Queued {
    items: VecDeque<FeedItem>,
    events: usize,
    bytes: usize,
    /// The server is asked for no more until there is room.
    held: bool,
    ended: Option<EndReason>,
}

impl FeedQueue {
    /// Adds what came. True: it is full, and the server must be asked for no more.
    pub(crate) fn push(&self, item: FeedItem) -> bool {
        let holds = {
            let mut inner = self.inner.lock();
            let (events, bytes) = weight(&item);
            inner.events += events;
            inner.bytes += bytes;
            if let (FeedItem::Bookmark(zxid), Some(FeedItem::Bookmark(last))) = (&item, inner.items.back_mut()) {
                *last = *zxid;
            } else {
                inner.items.push_back(item);
            }
            let is_full = inner.events > FEED_EVENTS_MAX || inner.bytes > FEED_BYTES_MAX;
            is_full && !std::mem::replace(&mut inner.held, is_full)
        };
        self.arrived.notify_one();
        holds
    }

    pub(crate) fn end(&self, reason: EndReason) {
        self.inner.lock().ended.get_or_insert(reason);
        self.arrived.notify_one();
    }
}

/// Events of an item, and about their bytes.
fn weight(item: &FeedItem) -> (usize, usize) {
    let FeedItem::Changes(changes) = item else { return (0, 0) };
    let data = |event: &FeedEvent| event.node.as_ref().and_then(|node| node.data.as_ref()).map_or(0, |data| data.len());
    (changes.events.len(), changes.events.iter().map(|event| 128 + event.path.len() + data(event)).sum())
}

/// Ends a watch when it is dropped.
pub(crate) struct Guard {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: WatchId,
    pub(crate) path: String,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.forget_watch(self.id);
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("id", &self.id).field("path", &self.path).finish()
    }
}

#[cfg(test)]
mod tests {
    use corral_proto::EventKind;

    use super::*;

    fn changes(zxid: u64, events: usize) -> FeedItem {
        let event = FeedEvent { kind: EventKind::NodeDataChanged, path: "/a".into(), node: None };
        FeedItem::Changes(Changes { zxid: Zxid(zxid), events: vec![event; events] })
    }

    #[test]
    fn a_full_queue_says_so_once_and_keeps_everything() {
        let queue = FeedQueue::default();
        assert!(!queue.push(changes(1, FEED_EVENTS_MAX)));
        assert!(queue.push(changes(2, 1)));
        assert!(!queue.push(changes(3, 1)), "the server has been told");
        assert_eq!(queue.inner.lock().items.len(), 3);
    }

    #[test]
    fn bookmarks_in_a_row_are_one() {
        let queue = FeedQueue::default();
        for zxid in 1..=3 {
            queue.push(FeedItem::Bookmark(Zxid(zxid)));
        }
        assert_eq!(queue.inner.lock().items, [FeedItem::Bookmark(Zxid(3))]);
    }
}
