//! I25: what each connection must have been told, by the log and by what it asked for, and in which place.

use std::collections::{BTreeMap, BTreeSet};

use corral_core::session::SetWatches;
use corral_proto::{EventKind, WatchKind, Zxid, path};

use super::{Kept, Seen};
use crate::checks::{Check, ensure};

const NAME: &str = "I25 watches";

/// What happened to the tree, in order.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) all: Vec<(Zxid, EventKind, String)>,
    by_path: BTreeMap<String, Vec<(Zxid, EventKind)>>,
}

impl Changes {
    pub(super) fn note(&mut self, path: &str, kind: EventKind, zxid: Zxid) {
        self.all.push((zxid, kind, path.to_owned()));
        self.by_path.entry(path.to_owned()).or_default().push((zxid, kind));
    }

    /// Index of the first change after a state.
    fn after(&self, zxid: Zxid) -> usize {
        self.all.partition_point(|(z, _, _)| *z <= zxid)
    }

    /// The changes of one znode and its list of children, up to a state.
    fn of(&self, path: &str, upto: Zxid) -> &[(Zxid, EventKind)] {
        let all = self.by_path.get(path).map_or(&[][..], Vec::as_slice);
        &all[..all.partition_point(|(z, _)| *z <= upto)]
    }

    /// Whether a znode is there in a state. The built-in ones always are.
    fn exists(&self, path: &str, zxid: Zxid) -> bool {
        let of_itself = |(_, kind): &&(Zxid, EventKind)| *kind != EventKind::NodeChildrenChanged;
        let last = self.of(path, zxid).iter().rfind(of_itself);
        last.map_or(path == "/" || path.starts_with("/zookeeper"), |(_, kind)| *kind != EventKind::NodeDeleted)
    }

    /// Whether the data (or the list of children) of a znode was changed after one state and up to another.
    fn changed(&self, path: &str, kind: WatchKind, after: Zxid, upto: Zxid) -> bool {
        self.of(path, upto).iter().any(|(z, change)| *z > after && fires(kind, *change))
    }
}

/// Whether a change of a znode fires a one-shot watch on it.
fn fires(kind: WatchKind, change: EventKind) -> bool {
    match change {
        EventKind::NodeDeleted => true,
        EventKind::NodeChildrenChanged => kind == WatchKind::Child,
        EventKind::NodeCreated | EventKind::NodeDataChanged => kind == WatchKind::Data,
    }
}

/// The watches of one connection (wire 7.1), as a set.
#[derive(Default)]
struct Watches {
    armed: BTreeSet<(String, WatchKind)>,
}

impl Watches {
    fn has(&self, path: &str, kind: WatchKind) -> bool {
        self.armed.contains(&(path.to_owned(), kind))
    }

    /// Whether a change is told, once; what it consumes is gone.
    fn tell(&mut self, change: EventKind, changed: &str) -> bool {
        if self.armed.is_empty() {
            return false;
        }
        let mut told = self.has(changed, WatchKind::Persistent);
        for kind in [WatchKind::Data, WatchKind::Child] {
            told |= fires(kind, change) && self.armed.remove(&(changed.to_owned(), kind));
        }
        if change != EventKind::NodeChildrenChanged {
            let mut at = Some(changed);
            while let Some(place) = at {
                told |= self.has(place, WatchKind::PersistentRecursive);
                at = path::parent(place);
            }
        }
        told
    }

    /// Whether there is such a watch; `None`: any.
    fn find(&self, path: &str, kind: Option<WatchKind>) -> Vec<(String, WatchKind)> {
        let wanted = |(at, is): &&(String, WatchKind)| at == path && kind.is_none_or(|kind| kind == *is);
        self.armed.iter().filter(wanted).cloned().collect()
    }
}

/// Follows one connection and the log side by side: each event must be the next that its watches are due, and no reply
/// may show a state before the events up to it. So nothing is lost, doubled, late, early or out of order.
pub(super) fn check_connection(connection: u64, seen: &[Seen], changes: &Changes) -> Check {
    let mut watches = Watches::default();
    let mut next = 0;
    // Goes over the changes up to a state, of which nothing may be due.
    let pass = |watches: &mut Watches, next: &mut usize, zxid: Zxid| {
        if watches.armed.is_empty() {
            *next = changes.after(zxid).max(*next);
        }
        while let Some((at, kind, path)) = changes.all.get(*next).filter(|(at, _, _)| *at <= zxid) {
            ensure!(
                !watches.tell(*kind, path),
                NAME,
                "connection {connection}: a reply shows {zxid:?} before the event {kind:?} {path} of {at:?}"
            );
            *next += 1;
        }
        Ok(())
    };
    for item in seen {
        match item {
            Seen::Reply(zxid) => pass(&mut watches, &mut next, *zxid)?,
            Seen::Armed { path, kind, zxid } => {
                pass(&mut watches, &mut next, *zxid)?;
                watches.armed.insert((path.clone(), *kind));
            }
            Seen::Watches { path, kind, remove, found, zxid } => {
                pass(&mut watches, &mut next, *zxid)?;
                let there = watches.find(path, *kind);
                ensure!(
                    *found != there.is_empty(),
                    NAME,
                    "connection {connection}: asked for watches {kind:?} on {path} at {zxid:?}, was told {found}; there are {there:?}"
                );
                if *remove {
                    watches.armed.retain(|watch| !there.contains(watch));
                }
            }
            Seen::SetAgain { watches: wanted, missed, zxid } => {
                pass(&mut watches, &mut next, *zxid)?;
                let (due, armed) = set_again(changes, wanted, *zxid);
                ensure!(
                    due == *missed,
                    NAME,
                    "connection {connection}: at {zxid:?} {wanted:?} was answered with {missed:?}; it is {due:?}"
                );
                watches.armed.extend(armed);
            }
            Seen::Event { kind, path, zxid } => loop {
                let Some((at, due, changed)) = changes.all.get(next) else {
                    ensure!(
                        false,
                        NAME,
                        "connection {connection}: event {kind:?} {path} of {zxid:?} came and nothing was due; armed are {:?}",
                        watches.armed
                    );
                    return Ok(());
                };
                next += 1;
                if watches.tell(*due, changed) {
                    ensure!(
                        (at, due, changed) == (zxid, kind, path),
                        NAME,
                        "connection {connection}: event {kind:?} {path} of {zxid:?} came; due was {due:?} {changed} of {at:?}"
                    );
                    break;
                }
            },
        }
    }
    Ok(())
}

/// What a re-registration tells at once, in order, and what it arms.
type SetAgain = (Vec<(EventKind, String)>, Vec<(String, WatchKind)>);

/// A re-registration (wire 7.8).
fn set_again(changes: &Changes, watches: &SetWatches, zxid: Zxid) -> SetAgain {
    let (mut missed, mut armed) = (Vec::new(), Vec::new());
    let mut set = |path: &String, kind: WatchKind, told: Option<EventKind>| match told {
        Some(event) => missed.push((event, path.clone())),
        None => armed.push((path.clone(), kind)),
    };
    // A znode that was created anew is a changed one, for its data and for its children.
    let changed = |path: &str, event: EventKind| {
        let newer = |(z, change): &(Zxid, EventKind)| {
            *z > watches.relative_zxid && (*change == event || *change == EventKind::NodeCreated)
        };
        match changes.exists(path, zxid) {
            false => Some(EventKind::NodeDeleted),
            true => changes.of(path, zxid).iter().any(newer).then_some(event),
        }
    };
    for path in &watches.data {
        set(path, WatchKind::Data, changed(path, EventKind::NodeDataChanged));
    }
    for path in &watches.exist {
        set(path, WatchKind::Data, changes.exists(path, zxid).then_some(EventKind::NodeCreated));
    }
    for path in &watches.child {
        set(path, WatchKind::Child, changed(path, EventKind::NodeChildrenChanged));
    }
    for path in &watches.persistent {
        set(path, WatchKind::Persistent, None);
    }
    for path in &watches.persistent_recursive {
        set(path, WatchKind::PersistentRecursive, None);
    }
    (missed, armed)
}

/// A watch that survived its connection had nothing to tell: whatever happened to the session between.
pub(super) fn check_kept(kept: &Kept, changes: &Changes) -> Check {
    let Kept { session, path, kind, armed, again } = kept;
    ensure!(
        !changes.changed(path, *kind, *armed, *again),
        NAME,
        "{session:?} armed {kind:?} on {path} at {armed:?} and set it again at {again:?}; it was never told of {:?}",
        changes.of(path, *again)
    );
    Ok(())
}
