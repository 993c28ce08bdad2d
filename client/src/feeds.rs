//! What this client follows of the change feed, and how far each has come. Pure.
//!
//! A server knows a subscription only by a name, and only for a connection. So each connection subscribes again, behind the
//! zxid up to which everything has come; what comes for a name of before is not listened to. Events arrive entry by entry,
//! whole, so a position is a zxid and nothing else.

use std::collections::BTreeMap;

use bytes::Bytes;
use corral_proto::{EventKind, Stat, Zxid};

use crate::op::Op;
use crate::watches::WatchId;

/// What a watch or cache is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WatchMode {
    /// One znode: created, deleted, data changed, a child created or deleted.
    Node,
    /// A znode and its children: created, deleted, data changed.
    Children,
    /// A znode and all below it: created, deleted, data changed. Changes of lists of children are not told, the
    /// creations and deletions of the children are.
    Recursive,
}

/// What a znode holds, as a change brings it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedNode {
    /// Its data; `None` is null, which is not the same as no bytes.
    pub data: Option<Bytes>,
    /// Its Stat. `stat.mzxid` is the zxid of the change that brings it: the data is as of that change.
    pub stat: Stat,
    /// The state that the Stat was read from: what concerns children in it (`cversion`, `num_children`, `pzxid`) may be
    /// newer than the change.
    pub as_of: Zxid,
}

/// One event of a [`Feed`](crate::Feed).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedEvent {
    /// What happened.
    pub kind: EventKind,
    /// To which znode.
    pub path: String,
    /// What it holds. Only for created and changed ones, if it was asked for; and `None` if the znode has changed again or
    /// is gone: then a later event says so, before the next bookmark.
    pub node: Option<FeedNode>,
}

/// The events of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The entry. Several znodes change under one zxid if they change at once: a transaction, a session's end.
    pub zxid: Zxid,
    /// In order; never empty.
    pub events: Vec<FeedEvent>,
}

/// What happened between two zxids is not remembered by any server that could be asked.
///
/// Whoever keeps a picture of the tree must read it again, from a state of `resync` or later (any read made after this was
/// received is one); the events that follow go on from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("events after {after} are not remembered any more; read again, from {resync} or later")]
pub struct Gap {
    /// Everything up to here was told.
    pub after: Zxid,
    /// Everything behind this will be.
    pub resync: Zxid,
}

/// What a [`Feed`](crate::Feed) tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedItem {
    /// An entry touched what is followed.
    Changes(Changes),
    /// Every change up to this zxid was told, and what was brought with them is the state there.
    Bookmark(Zxid),
    /// Changes are missing.
    Gap(Gap),
}

#[derive(Debug)]
struct Followed {
    path: String,
    mode: WatchMode,
    with_nodes: bool,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its caller's request is unanswered.
    Opening,
    /// Everything up to `position` has come. `confirmed`: this connection's server has answered.
    Open { name: u64, position: Zxid, confirmed: bool },
    /// Its reader has too much to read: no server is asked for more.
    Held { position: Zxid },
}

/// All that is followed.
#[derive(Debug, Default)]
pub(crate) struct Feeds {
    last_name: u64,
    followed: BTreeMap<WatchId, Followed>,
    by_name: BTreeMap<u64, WatchId>,
}

impl Feeds {
    /// A name for a new subscription.
    pub(crate) fn next_name(&mut self) -> u64 {
        self.last_name += 1;
        self.last_name
    }

    /// A caller's request to subscribe is on its way.
    pub(crate) fn opening(&mut self, id: WatchId, op: &Op) {
        if let Op::Subscribe { name, path, mode, with_nodes, .. } = op {
            let (path, mode, with_nodes) = (path.clone(), *mode, *with_nodes);
            self.followed.insert(id, Followed { path, mode, with_nodes, state: State::Opening });
            self.by_name.insert(*name, id);
        }
    }

    /// A request to subscribe was answered from the state `zxid`. What its reader is told: that it has missed nothing up to
    /// there, unless it begins in the past.
    pub(crate) fn opened(&mut self, op: &Op, zxid: Zxid) -> Option<(WatchId, FeedItem)> {
        let Op::Subscribe { name, after, .. } = op else { return None };
        let id = *self.by_name.get(name)?;
        let followed = self.followed.get_mut(&id)?;
        let position = match followed.state {
            State::Open { position, .. } => position,
            _ => after.unwrap_or(zxid),
        };
        followed.state = State::Open { name: *name, position, confirmed: true };
        (position == zxid).then_some((id, FeedItem::Bookmark(zxid)))
    }

    /// Whether it is followed, or on its way to be.
    pub(crate) fn holds(&self, id: WatchId) -> bool {
        self.followed.contains_key(&id)
    }

    /// Nobody reads it any more; a server may have to be told, by this request.
    pub(crate) fn remove(&mut self, id: WatchId) -> Option<Op> {
        let followed = self.followed.remove(&id)?;
        let State::Open { name, .. } = followed.state else {
            self.by_name.retain(|_, other| *other != id);
            return None;
        };
        self.by_name.remove(&name);
        Some(Op::Unsubscribe { name })
    }

    /// Its reader has too much to read: what the server must be told.
    pub(crate) fn hold(&mut self, id: WatchId) -> Option<Op> {
        let followed = self.followed.get_mut(&id)?;
        let State::Open { name, position, .. } = followed.state else { return None };
        followed.state = State::Held { position };
        self.by_name.remove(&name);
        Some(Op::Unsubscribe { name })
    }

    /// Its reader has room again.
    pub(crate) fn resume(&mut self, id: WatchId) -> Option<Op> {
        let State::Held { position } = self.followed.get(&id)?.state else { return None };
        Some(self.again(id, position))
    }

    /// The connection is gone, and its names with it.
    pub(crate) fn disconnected(&mut self) {
        for followed in self.followed.values_mut() {
            if let State::Open { confirmed, .. } = &mut followed.state {
                *confirmed = false;
            }
        }
        // Who is opening keeps its name: its request is sent again as it was.
        let followed = &self.followed;
        self.by_name.retain(|_, id| followed.get(id).is_some_and(|followed| followed.state == State::Opening));
    }

    /// The requests with which a new connection begins.
    pub(crate) fn set_again(&mut self) -> Vec<Op> {
        let open = self.followed.iter().filter_map(|(id, followed)| match followed.state {
            State::Open { position, .. } => Some((*id, position)),
            _ => None,
        });
        let open: Vec<(WatchId, Zxid)> = open.collect();
        self.disconnected();
        open.into_iter().map(|(id, position)| self.again(id, position)).collect()
    }

    fn again(&mut self, id: WatchId, position: Zxid) -> Op {
        let name = self.next_name();
        self.by_name.insert(name, id);
        let followed = self.followed.get_mut(&id).expect("the caller found it");
        followed.state = State::Open { name, position, confirmed: false };
        let Followed { path, mode, with_nodes, .. } = &*followed;
        Op::Subscribe { name, path: path.clone(), mode: *mode, with_nodes: *with_nodes, after: Some(position) }
    }

    /// Changes came for a name: whom to tell. `None`: nobody listens to it any more.
    pub(crate) fn changed(&mut self, name: u64, zxid: Zxid) -> Option<WatchId> {
        self.move_to(name, zxid)
    }

    /// A gap was told for a name.
    pub(crate) fn skipped(&mut self, name: u64, resync: Zxid) -> Option<WatchId> {
        self.move_to(name, resync)
    }

    fn move_to(&mut self, name: u64, zxid: Zxid) -> Option<WatchId> {
        let id = *self.by_name.get(&name)?;
        let State::Open { position, .. } = &mut self.followed.get_mut(&id)?.state else { return None };
        *position = zxid.max(*position);
        Some(id)
    }

    /// A bookmark came, for a name or (0) for all: whom it tells something.
    pub(crate) fn bookmarked(&mut self, name: u64, zxid: Zxid) -> Vec<WatchId> {
        if name != 0 {
            return self.move_to(name, zxid).into_iter().collect();
        }
        let mut told = Vec::new();
        for (id, followed) in &mut self.followed {
            // One that this server has yet to hear of is not meant.
            if let State::Open { position, confirmed: true, .. } = &mut followed.state
                && *position <= zxid
            {
                *position = zxid;
                told.push(*id);
            }
        }
        told
    }

    /// The session is over.
    pub(crate) fn clear(&mut self) {
        self.followed.clear();
        self.by_name.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: WatchId = WatchId(1);

    fn subscribe(name: u64, after: Option<u64>) -> Op {
        let (path, mode) = ("/a".to_owned(), WatchMode::Recursive);
        Op::Subscribe { name, path, mode, with_nodes: false, after: after.map(Zxid) }
    }

    fn open(after: Option<u64>, zxid: u64) -> (Feeds, Option<(WatchId, FeedItem)>) {
        let mut feeds = Feeds::default();
        let op = subscribe(feeds.next_name(), after);
        feeds.opening(ID, &op);
        let told = feeds.opened(&op, Zxid(zxid));
        (feeds, told)
    }

    #[test]
    fn a_new_connection_subscribes_again_behind_what_has_come() {
        let (mut feeds, told) = open(None, 10);
        assert_eq!(told, Some((ID, FeedItem::Bookmark(Zxid(10)))));
        assert_eq!(feeds.changed(1, Zxid(12)), Some(ID));
        assert_eq!(feeds.set_again(), [subscribe(2, Some(12))]);
        assert_eq!(feeds.changed(1, Zxid(13)), None, "what comes under an old name is not listened to");
        assert_eq!(feeds.bookmarked(0, Zxid(20)), [], "the new server has not heard of it");
        assert_eq!(feeds.set_again(), [subscribe(3, Some(12))]);
        assert_eq!(feeds.opened(&subscribe(3, Some(12)), Zxid(20)), None);
        assert_eq!(feeds.bookmarked(3, Zxid(20)), [ID]);
        assert_eq!(feeds.bookmarked(0, Zxid(21)), [ID]);
        assert_eq!(feeds.set_again(), [subscribe(4, Some(21))]);
    }

    #[test]
    fn one_that_begins_in_the_past_is_there_once_its_bookmark_comes() {
        let (mut feeds, told) = open(Some(5), 10);
        assert_eq!(told, None);
        assert_eq!(feeds.set_again(), [subscribe(2, Some(5))]);
        let (_, told) = open(Some(10), 10);
        assert_eq!(told, Some((ID, FeedItem::Bookmark(Zxid(10)))), "there is nothing to catch up with");
    }

    #[test]
    fn what_is_unanswered_keeps_its_name() {
        let mut feeds = Feeds::default();
        let op = subscribe(feeds.next_name(), None);
        feeds.opening(ID, &op);
        assert_eq!(feeds.set_again(), []);
        assert_eq!(feeds.opened(&op, Zxid(3)), Some((ID, FeedItem::Bookmark(Zxid(3)))));
    }

    #[test]
    fn a_reader_with_too_much_to_read_is_held_and_resumes_where_it_was() {
        let (mut feeds, _) = open(None, 10);
        feeds.changed(1, Zxid(15));
        assert_eq!(feeds.hold(ID), Some(Op::Unsubscribe { name: 1 }));
        assert_eq!((feeds.hold(ID), feeds.changed(1, Zxid(16)), feeds.set_again()), (None, None, vec![]));
        assert_eq!(feeds.resume(ID), Some(subscribe(2, Some(15))));
        assert_eq!(feeds.resume(ID), None);
        assert_eq!(feeds.remove(ID), Some(Op::Unsubscribe { name: 2 }));
        assert!(!feeds.holds(ID) && feeds.by_name.is_empty());
    }

    #[test]
    fn a_gap_moves_the_position_to_where_events_go_on() {
        let (mut feeds, _) = open(Some(5), 30);
        assert_eq!(feeds.skipped(1, Zxid(30)), Some(ID));
        assert_eq!(feeds.set_again(), [subscribe(2, Some(30))]);
        let gap = Gap { after: Zxid(5), resync: Zxid(0x1e) };
        assert_eq!(gap.to_string(), "events after 0x5 are not remembered any more; read again, from 0x1e or later");
    }
}
