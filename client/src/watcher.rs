//! Watches as programs hold them: a future for one event, a stream for many.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use corral_proto::WatchedEvent;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::error::{EndReason, Error};
use crate::shared::Shared;
use crate::watches::WatchId;

/// Events that a [`Watcher`] holds for a reader that is slow. Beyond it they are dropped and a [`Gap`] says so: the reader
/// must read afresh, which costs less than any longer list.
pub(crate) const WATCHER_EVENTS_MAX: usize = 4096;

/// What a lasting watch is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WatchMode {
    /// One znode: created, deleted, data changed, a child created or deleted.
    Node,
    /// A znode and all below it: created, deleted, data changed. Changes of lists of children are not told, the
    /// creations and deletions of the children are.
    Recursive,
}

/// What a [`Watcher`] tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// Something happened to a znode.
    Node(WatchedEvent),
    /// Events may be missing here: read afresh what you know of the tree. What is read after this notice is complete,
    /// together with the events that follow.
    Gap(Gap),
}

/// Why events may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gap {
    /// The session went through a reconnect. The watch is set again.
    Reconnected,
    /// The reader was too slow: more than 4,096 events waited.
    Overflow,
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
/// Dropping it ends the watch. It does not keep the session: when the last [`Client`](crate::Client) is gone, it ends.
#[must_use = "a dropped watcher is removed"]
#[derive(Debug)]
pub struct Watcher {
    pub(crate) queue: Arc<WatchQueue>,
    pub(crate) guard: Guard,
}

impl Watcher {
    /// Waits for the next event or notice. `None` once the session is over. Cancel safe.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            let arrived = self.queue.arrived.notified();
            {
                let mut inner = self.queue.inner.lock();
                if let Some(event) = inner.events.pop_front() {
                    return Some(event);
                }
                if inner.ended.is_some() {
                    return None;
                }
            }
            arrived.await;
        }
    }

    /// The next event or notice if there is one already.
    pub fn try_next(&mut self) -> Option<WatchEvent> {
        self.queue.inner.lock().events.pop_front()
    }

    /// Why there will be no more events; `None` while there may be.
    pub fn end_reason(&self) -> Option<EndReason> {
        self.queue.inner.lock().ended.clone()
    }

    /// The path it was made for.
    pub fn path(&self) -> &str {
        &self.guard.path
    }
}

/// The bounded queue between the session and a [`Watcher`].
#[derive(Debug, Default)]
pub(crate) struct WatchQueue {
    inner: Mutex<Queued>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Queued {
    events: VecDeque<WatchEvent>,
    ended: Option<EndReason>,
}

impl WatchQueue {
    pub(crate) fn push(&self, event: WatchEvent) {
        {
            let mut inner = self.inner.lock();
            if inner.events.len() >= WATCHER_EVENTS_MAX {
                inner.events.clear();
                inner.events.push_back(WatchEvent::Gap(Gap::Overflow));
            }
            // A gap makes everything before it worthless to who reads afresh, but events are kept: a log may want them.
            if inner.events.back() != Some(&event) || matches!(event, WatchEvent::Node(_)) {
                inner.events.push_back(event);
            }
        }
        self.arrived.notify_one();
    }

    pub(crate) fn end(&self, reason: EndReason) {
        self.inner.lock().ended.get_or_insert(reason);
        self.arrived.notify_one();
    }
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
    use corral_proto::{EventKind, Zxid};

    use super::*;

    fn event(n: u64) -> WatchEvent {
        WatchEvent::Node(WatchedEvent { kind: EventKind::NodeDataChanged, path: "/a".into(), zxid: Some(Zxid(n)) })
    }

    #[test]
    fn a_slow_reader_is_told_that_events_are_missing() {
        let queue = WatchQueue::default();
        for n in 0..WATCHER_EVENTS_MAX as u64 + 3 {
            queue.push(event(n));
        }
        let events: Vec<_> = queue.inner.lock().events.drain(..).collect();
        let at = WATCHER_EVENTS_MAX as u64;
        assert_eq!(events, [WatchEvent::Gap(Gap::Overflow), event(at), event(at + 1), event(at + 2)]);
    }

    #[test]
    fn several_reconnects_in_a_row_are_one_gap() {
        let queue = WatchQueue::default();
        queue.push(WatchEvent::Gap(Gap::Reconnected));
        queue.push(WatchEvent::Gap(Gap::Reconnected));
        assert_eq!(queue.inner.lock().events.len(), 1);
    }
}
