//! What is read and written below each child of the root: ZooKeeper's figures by "namespace".
//!
//! A read is counted where it is answered, a write on every server that executes it. Bytes are counted as ZooKeeper's
//! `DataTree` does: the path; the data or the names of the children that were read, and a Stat; the data that was written.
//! What concerns the root itself, and reads of anything but data, Stats and children, are in no namespace.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::tree::entry::TreeEvent;
use crate::tree::op::{Answer, MultiReadOp, ReadOp};

/// Namespaces that are told apart; what is below others is not counted: every one is a series of figures, and who can create
/// znodes must not be able to fill the memory of servers and dashboards with them.
pub const NAMESPACES_MAX: usize = 256;

/// Bytes of a namespace that is counted: as long as names are that people give.
pub const NAMESPACE_BYTES_MAX: usize = 256;

/// What a Stat counts for.
const STAT_BYTES: u64 = 68;

/// Sum and bounds of sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// How many.
    pub count: u64,
    /// Bytes of all.
    pub sum: u64,
    /// Bytes of the smallest.
    pub min: u64,
    /// Bytes of the largest.
    pub max: u64,
}

impl Sizes {
    fn of(bytes: u64) -> Sizes {
        Sizes { count: 1, sum: bytes, min: bytes, max: bytes }
    }

    fn add(&mut self, more: Sizes) {
        self.count += more.count;
        self.sum = self.sum.saturating_add(more.sum);
        self.min = self.min.min(more.min);
        self.max = self.max.max(more.max);
    }
}

/// Sizes by namespace, ascending.
pub type Namespaces = BTreeMap<String, Sizes>;

/// See the module.
#[derive(Debug, Default)]
pub struct Usage {
    reads: Mutex<Namespaces>,
    writes: Mutex<Namespaces>,
}

impl Usage {
    /// What was read so far, and what was written.
    pub fn report(&self) -> (Namespaces, Namespaces) {
        (self.reads.lock().clone(), self.writes.lock().clone())
    }
}

/// What was counted and is not in [`Usage`] yet: the requests of a batch mostly are in one namespace.
#[derive(Debug, Default)]
pub struct Tally {
    namespace: String,
    sizes: Option<Sizes>,
}

impl Tally {
    fn add(&mut self, to: &Mutex<Namespaces>, path: &str, bytes: u64) {
        let Some(namespace) = namespace(path) else { return };
        let size = Sizes::of(path.len() as u64 + bytes);
        match &mut self.sizes {
            Some(sizes) if self.namespace == namespace => sizes.add(size),
            _ => {
                self.flush(to);
                self.namespace.clear();
                self.namespace.push_str(namespace);
                self.sizes = Some(size);
            }
        }
    }

    fn flush(&mut self, to: &Mutex<Namespaces>) {
        let Some(sizes) = self.sizes.take() else { return };
        let mut all = to.lock();
        if let Some(sum) = all.get_mut(&self.namespace) {
            sum.add(sizes);
        } else if all.len() < NAMESPACES_MAX {
            all.insert(self.namespace.clone(), sizes);
        }
    }

    /// Counts a read that was answered.
    pub fn read(&mut self, usage: &Usage, op: &ReadOp, answer: &Answer) {
        let path = match (op, answer) {
            (ReadOp::MultiRead(ops), Answer::MultiRead(results)) => {
                for (op, result) in ops.iter().zip(results) {
                    let path = match op {
                        MultiReadOp::GetData { path }
                        | MultiReadOp::GetChildren { path }
                        | MultiReadOp::Exists { path } => path,
                        MultiReadOp::List(list) => &list.path,
                    };
                    if let Ok(answer) = result {
                        self.answered(usage, path, answer);
                    }
                }
                return;
            }
            (ReadOp::Exists { path } | ReadOp::GetData { path } | ReadOp::GetChildren { path }, _) => path,
            (ReadOp::List(list), _) => &list.path,
            _ => return,
        };
        self.answered(usage, path, answer);
    }

    fn answered(&mut self, usage: &Usage, path: &str, answer: &Answer) {
        let bytes = match answer {
            Answer::Data { data, .. } => data.as_ref().map_or(0, |data| data.len() as u64),
            Answer::Children { children, .. } | Answer::Listing { children, .. } => {
                children.iter().map(|name| name.len() as u64).sum()
            }
            _ => 0,
        };
        self.add(&usage.reads, path, STAT_BYTES + bytes);
    }

    /// The reads of a batch are over.
    pub fn flush_reads(&mut self, usage: &Usage) {
        self.flush(&usage.reads);
    }

    /// Counts changes that were made.
    pub fn written(&mut self, usage: &Usage, events: &[TreeEvent]) {
        for event in events {
            self.add(&usage.writes, &event.path, event.bytes.into());
        }
    }

    /// The changes of a batch are over.
    pub fn flush_writes(&mut self, usage: &Usage) {
        self.flush(&usage.writes);
    }
}

/// The first name of a path.
fn namespace(path: &str) -> Option<&str> {
    let first = path.strip_prefix('/')?.split('/').next()?;
    (1..=NAMESPACE_BYTES_MAX).contains(&first.len()).then_some(first)
}

#[cfg(test)]
mod tests {
    use corral_proto::{EventKind, Stat};

    use super::*;

    fn change(kind: EventKind, path: &str, bytes: u32) -> TreeEvent {
        TreeEvent { kind, path: path.into(), acl: None, parent_acl: None, bytes }
    }

    #[test]
    fn sizes_are_those_of_zookeepers_data_tree() {
        use EventKind::{NodeCreated, NodeDataChanged, NodeDeleted};
        let usage = Usage::default();
        let mut tally = Tally::default();
        tally.written(
            &usage,
            &[
                change(NodeCreated, "/top1", 0),
                change(NodeCreated, "/ttop2", 50),
                change(NodeCreated, "/top1/child1", 0),
                change(NodeDataChanged, "/top1/child1", 100),
                change(NodeDeleted, "/top1", 0),
                change(NodeDataChanged, "/", 7),
            ],
        );
        tally.flush_writes(&usage);
        let stat = Stat::default();
        let data = |len: usize| Answer::Data { data: Some(vec![0; len].into()), stat };
        let children = Answer::Children { children: vec!["child1".into(), "springishere".into()], stat };
        let mut tally = Tally::default();
        tally.read(&usage, &ReadOp::GetData { path: "/top1".into() }, &data(0));
        tally.read(&usage, &ReadOp::GetData { path: "/ttop2".into() }, &data(50));
        tally.read(&usage, &ReadOp::Exists { path: "/top1/springishere".into() }, &Answer::Stat(stat));
        tally.read(&usage, &ReadOp::GetChildren { path: "/top1".into() }, &children);
        tally.read(&usage, &ReadOp::GetAcl { path: "/top1".into() }, &Answer::Done);
        tally.read(
            &usage,
            &ReadOp::MultiRead(vec![MultiReadOp::GetData { path: "/ttop2".into() }]),
            &Answer::MultiRead(vec![Ok(data(1))]),
        );
        tally.flush_reads(&usage);
        let (reads, writes) = usage.report();
        let sizes = |count, sum, min, max| Sizes { count, sum, min, max };
        assert_eq!(writes["top1"], sizes(4, 5 + 12 + 112 + 5, 5, 112));
        assert_eq!(writes["ttop2"], sizes(1, 56, 56, 56));
        assert_eq!(reads["top1"], sizes(3, (5 + 68) + (18 + 68) + (5 + 18 + 68), 73, 91));
        assert_eq!(reads["ttop2"], sizes(2, (6 + 50 + 68) + (6 + 1 + 68), 75, 124));
        assert_eq!((reads.len(), writes.len()), (2, 2), "the root is in no namespace");
    }

    #[test]
    fn namespaces_beyond_the_bound_are_not_counted_and_those_within_go_on() {
        let usage = Usage::default();
        let mut tally = Tally::default();
        for round in 0..2 {
            let long = format!("/{}", "x".repeat(NAMESPACE_BYTES_MAX + 1));
            tally.written(&usage, &[change(EventKind::NodeCreated, &long, 0)]);
            for n in 0..NAMESPACES_MAX + 10 {
                tally.written(&usage, &[change(EventKind::NodeCreated, &format!("/n{n:04}/{round}"), 0)]);
            }
        }
        tally.flush_writes(&usage);
        let (_, writes) = usage.report();
        assert_eq!(writes.len(), NAMESPACES_MAX);
        assert!(writes.iter().all(|(name, sizes)| name.len() == 5 && sizes.count == 2));
    }
}
