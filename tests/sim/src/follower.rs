//! Clients that follow the change feed of the whole tree, from its first entry on, and keep a map of what it holds: over
//! connections, sessions, servers and leaders. At every bookmark the map must be the tree, and between two gaps no event may
//! be missing or come twice (checked by [`crate::history`] when the log is replayed).

use std::collections::BTreeMap;

use bytes::Bytes;
use corral_core::session::feed::Subscription;
use corral_core::session::{ClientRequest, Consistency, FeedEvent, FeedNotice};
use corral_core::tree::op::{Answer, Depth, ReadOp, SubtreeNode};
use corral_core::watch::feed::{FeedKind, Interest};
use corral_proto::{EventKind, Stat, Zxid};

use crate::checks::{Check, ensure};
use crate::client::Call;
use crate::world::World;

/// What a follower knows of a znode. What a Stat says of children is left out: it may be newer than the change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    data: Option<Bytes>,
    /// czxid, mzxid, ctime, mtime, version, owner.
    stat: (i64, i64, i64, i64, i32, i64),
}

impl Held {
    /// Of data and Stat.
    pub fn new(data: Option<Bytes>, stat: &Stat) -> Held {
        let Stat { czxid, mzxid, ctime, mtime, version, ephemeral_owner, .. } = *stat;
        Held { data, stat: (czxid, mzxid, ctime, mtime, version, ephemeral_owner) }
    }
}

/// Events of an entry, with what the znodes hold.
type Events = Vec<(EventKind, String, Option<Held>)>;

/// Events between two gaps: all after `after`, up to `through`.
#[derive(Clone, Debug, Default)]
pub struct Stretch {
    /// Where it begins.
    pub after: Zxid,
    /// Up to where everything was told.
    pub through: Zxid,
    /// What was told.
    pub events: Vec<(Zxid, EventKind, String)>,
}

/// See the module.
#[derive(Default)]
pub struct Follower {
    /// The name of its subscription on the present connection.
    name: u64,
    /// Everything up to here has come.
    position: Zxid,
    /// What it holds.
    map: BTreeMap<String, Held>,
    /// After a gap: the znodes are being read again, and what comes meanwhile waits.
    reading: Option<Vec<(Zxid, Events)>>,
    /// Which time that is: what was asked for before is of no use any more.
    round: u64,
    /// The pages of this time.
    pages: BTreeMap<String, (Zxid, Held)>,
    /// When each znode was read, until something newer is told of it: what is not newer is in the map.
    read: BTreeMap<String, Zxid>,
    /// The last page was read at this zxid: the map is a state again at bookmarks from here on.
    read_at: Zxid,
}

/// Whether a follower keeps a znode: those that are there from the beginning have no event that creates them.
pub fn is_kept(path: &str) -> bool {
    path != "/" && path != "/zookeeper" && !path.starts_with("/zookeeper/")
}

impl Follower {
    fn apply(&mut self, zxid: Zxid, events: Events) {
        for (kind, path, held) in events.into_iter().filter(|(_, path, _)| is_kept(path)) {
            match self.read.get(&path) {
                Some(read) if *read >= zxid => continue,
                Some(_) => drop(self.read.remove(&path)),
                None => {}
            }
            match (kind, held) {
                (EventKind::NodeDeleted, _) => drop(self.map.remove(&path)),
                (_, Some(held)) => drop(self.map.insert(path, held)),
                // A later event tells.
                (_, None) => {}
            }
        }
    }
}

impl World {
    /// A follower is connected: it goes on where it was.
    pub(crate) fn follower_connected(&mut self, index: usize) {
        let Some(follower) = &mut self.clients[index].follower else { return };
        follower.name += 1;
        let (watch, after) = (follower.name, follower.position);
        let interrupted = follower.reading.is_some();
        let interest = Interest { kind: FeedKind::Subtree, with_nodes: true };
        let subscription = Subscription { path: "/".to_owned(), interest };
        let request = ClientRequest::Subscribe { watch, subscription, after: Some(after) };
        self.trace.reached("follower subscribed");
        self.client_sends(index, request, Call::Subscribe, Zxid::ZERO, None);
        if interrupted {
            self.follower_reads_again(index, after);
        }
    }

    fn follower_reads_again(&mut self, index: usize, at_least: Zxid) {
        let Some(follower) = &mut self.clients[index].follower else { return };
        follower.round += 1;
        follower.pages.clear();
        follower.read_at = Zxid::ZERO;
        let round = follower.round;
        self.follower_reads(index, round, String::new(), at_least);
    }

    fn follower_reads(&mut self, index: usize, round: u64, after: String, at_least: Zxid) {
        let op = ReadOp::Subtree { path: "/".to_owned(), depth: Depth::Subtree, after, newer_than: None };
        let consistency = Consistency::AtLeast(at_least);
        let request = ClientRequest::Read { op, watch: false, consistency };
        self.client_sends(index, request, Call::ReadAll { round }, Zxid::ZERO, None);
    }

    /// A page of all znodes was read again, after a gap.
    pub(crate) fn follower_has_read(&mut self, index: usize, round: u64, zxid: Zxid, answer: Answer) -> Check {
        const NAME: &str = "the change feed";
        let Answer::Subtree { nodes, next } = answer else {
            ensure!(false, NAME, "follower {index} asked for the tree and got {answer:?}");
            return Ok(());
        };
        let Some(follower) = &mut self.clients[index].follower else { return Ok(()) };
        if round != follower.round {
            return Ok(());
        }
        let kept = nodes.into_iter().filter(|node| is_kept(&node.path));
        follower.pages.extend(kept.map(|SubtreeNode { path, stat, data, .. }| (path, (zxid, Held::new(data, &stat)))));
        follower.read_at = follower.read_at.max(zxid);
        if let Some(next) = next {
            self.trace.reached("follower read a page");
            self.follower_reads(index, round, next, zxid);
            return Ok(());
        }
        let pages = std::mem::take(&mut follower.pages);
        follower.read = pages.iter().map(|(path, (zxid, _))| (path.clone(), *zxid)).collect();
        follower.map = pages.into_iter().map(|(path, (_, held))| (path, held)).collect();
        for (zxid, events) in follower.reading.take().unwrap_or_default() {
            follower.apply(zxid, events);
        }
        self.trace.reached("follower read again");
        Ok(())
    }

    /// Something of the feed reached a follower.
    pub(crate) fn on_feed(&mut self, index: usize, notice: FeedNotice) -> Check {
        const NAME: &str = "the change feed";
        let Some(follower) = &mut self.clients[index].follower else { return Ok(()) };
        let position = follower.position;
        match notice {
            FeedNotice::Changes { watch, zxid, events } => {
                ensure!(watch == follower.name, NAME, "follower {index} is told of {watch}, which it never asked for");
                ensure!(
                    zxid > position && !events.is_empty(),
                    NAME,
                    "follower {index} is told of {zxid:?} ({} events) after {position:?}",
                    events.len()
                );
                follower.position = zxid;
                let told = |event: &std::sync::Arc<FeedEvent>| (zxid, event.kind, event.path.clone());
                self.history.on_feed(index, position, zxid, events.iter().map(told));
                let held = |event: &std::sync::Arc<FeedEvent>| {
                    let held = event.node.as_ref().map(|node| Held::new(node.data.clone(), &node.stat));
                    (event.kind, event.path.clone(), held)
                };
                let events = events.iter().map(held).collect();
                match &mut follower.reading {
                    Some(waiting) => waiting.push((zxid, events)),
                    None => follower.apply(zxid, events),
                }
                self.trace.reached("follower told of changes");
            }
            FeedNotice::Bookmark { watch, zxid } => {
                ensure!(
                    zxid >= position && watch.is_none_or(|watch| watch == follower.name),
                    NAME,
                    "follower {index} gets bookmark {zxid:?} of {watch:?} after {position:?}"
                );
                follower.position = zxid;
                self.history.on_feed(index, position, zxid, std::iter::empty());
                if follower.reading.is_none() && zxid >= follower.read_at {
                    self.history.on_followed(zxid, &follower.map);
                    self.trace.reached("follower compared");
                }
            }
            FeedNotice::Gap { watch, after, resync } => {
                ensure!(
                    watch == follower.name && after == position && resync > position,
                    NAME,
                    "follower {index} at {position:?} is told of a gap from {after:?} to {resync:?}"
                );
                follower.position = resync;
                follower.reading = Some(Vec::new());
                self.history.on_feed_gap(index, resync);
                self.trace.reached("follower told of a gap");
                self.follower_reads_again(index, resync);
            }
        }
        Ok(())
    }
}
