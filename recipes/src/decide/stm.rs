//! What an attempt at a transaction read and wants to write, and the one request that commits it.

use std::collections::BTreeMap;

use bytes::Bytes;
use corral_client::{CreateMode, Transaction};

/// Znodes that one transaction may read or write.
pub const NODES_MAX: usize = 500;

/// A znode as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// It is there.
    Present {
        /// Its data.
        data: Option<Bytes>,
        /// Its version, which the commit checks.
        version: i32,
        /// When it was created.
        czxid: i64,
        /// When it was last changed.
        mzxid: i64,
    },
    /// It is not. The top-most znode above it (or itself) that is missing: the commit checks that this is still so.
    Absent {
        /// Its path.
        missing: String,
    },
}

impl Read {
    /// Whether nothing happened to the znode between the two reads.
    pub fn is_same(&self, later: &Read) -> bool {
        match (self, later) {
            (Read::Present { czxid, mzxid, .. }, Read::Present { czxid: c, mzxid: m, .. }) => (czxid, mzxid) == (c, m),
            (Read::Absent { missing }, Read::Absent { missing: later }) => missing == later,
            _ => false,
        }
    }
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// This data; the znode is created if it is not there.
    Put(Option<Bytes>),
    /// Nothing: the znode is deleted.
    Delete,
}

/// One attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempt {
    /// All that was read, as of one state.
    pub reads: BTreeMap<String, Read>,
    /// All that is to be written.
    pub writes: BTreeMap<String, Write>,
}

impl Attempt {
    /// What the body sees of a znode that was read: its own writes first. The outer `None`: it was not read yet.
    pub fn value(&self, path: &str) -> Option<Option<Option<Bytes>>> {
        match self.writes.get(path) {
            Some(Write::Put(data)) => return Some(Some(data.clone())),
            Some(Write::Delete) => return Some(None),
            None => {}
        }
        match self.reads.get(path)? {
            Read::Present { data, .. } => Some(Some(data.clone())),
            Read::Absent { .. } => Some(None),
        }
    }

    /// Whether a znode will be there for another to be created below it.
    pub fn will_exist(&self, path: &str) -> bool {
        path == "/" || matches!(self.value(path), Some(Some(_)))
    }

    /// The commit: refused as a whole if anything that was read has changed. Creations come first, parents before children;
    /// then checks and changes; then deletions, children before parents.
    pub fn commit(&self) -> Transaction {
        let mut commit = Transaction::new();
        for missing in self.missing() {
            // Refused if it is there by now; leaves nothing behind.
            commit = commit.create(missing, (), CreateMode::Persistent).delete(missing, None);
        }
        let mut later = Transaction::new();
        for (path, read) in &self.reads {
            later = match (read, self.writes.get(path)) {
                (Read::Present { version, .. }, None) => later.check(path, Some(*version)),
                (Read::Present { version, .. }, Some(Write::Put(data))) => {
                    later.set(path, data.clone(), Some(*version))
                }
                (Read::Absent { .. }, Some(Write::Put(data))) => {
                    commit = commit.create(path, data.clone(), CreateMode::Persistent);
                    later
                }
                (Read::Present { .. }, Some(Write::Delete)) | (Read::Absent { .. }, _) => later,
            };
        }
        commit = commit.and(later);
        for (path, read) in self.reads.iter().rev() {
            if let (Read::Present { version, .. }, Some(Write::Delete)) = (read, self.writes.get(path)) {
                commit = commit.delete(path, Some(*version));
            }
        }
        commit
    }

    /// What must still be missing, and is not created by this transaction, which would tell as well.
    fn missing(&self) -> Vec<&str> {
        let mut missing: Vec<&str> = self
            .reads
            .values()
            .filter_map(|read| match read {
                Read::Absent { missing } if !matches!(self.writes.get(missing), Some(Write::Put(_))) => {
                    Some(missing.as_str())
                }
                _ => None,
            })
            .collect();
        missing.sort_unstable();
        missing.dedup();
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present(version: i32) -> Read {
        Read::Present { data: Some(Bytes::from_static(b"x")), version, czxid: 1, mzxid: 5 }
    }

    fn absent(missing: &str) -> Read {
        Read::Absent { missing: missing.into() }
    }

    fn attempt(reads: &[(&str, Read)], writes: &[(&str, Write)]) -> Attempt {
        Attempt {
            reads: reads.iter().map(|(path, read)| ((*path).to_owned(), read.clone())).collect(),
            writes: writes.iter().map(|(path, write)| ((*path).to_owned(), write.clone())).collect(),
        }
    }

    fn put(text: &'static str) -> Write {
        Write::Put(Some(Bytes::from_static(text.as_bytes())))
    }

    #[test]
    fn all_that_was_read_is_checked_in_the_commit() {
        let one = attempt(
            &[("/a", present(3)), ("/b", present(4)), ("/c", present(5)), ("/d", absent("/d")), ("/e/f", absent("/e"))],
            &[("/b", put("new")), ("/c", Write::Delete), ("/d", put("d"))],
        );
        let expected = Transaction::new()
            .create("/e", (), CreateMode::Persistent)
            .delete("/e", None)
            .create("/d", "d", CreateMode::Persistent)
            .check("/a", Some(3))
            .set("/b", "new", Some(4))
            .delete("/c", Some(5));
        assert_eq!(one.commit(), expected);
    }

    #[test]
    fn parents_are_created_first_and_deleted_last() {
        let made = attempt(&[("/a", absent("/a")), ("/a/b", absent("/a"))], &[("/a", put("1")), ("/a/b", put("2"))]);
        let create = Transaction::new().create("/a", "1", CreateMode::Persistent);
        assert_eq!(made.commit(), create.create("/a/b", "2", CreateMode::Persistent));
        let gone =
            attempt(&[("/a", present(0)), ("/a/b", present(1))], &[("/a", Write::Delete), ("/a/b", Write::Delete)]);
        assert_eq!(gone.commit(), Transaction::new().delete("/a/b", Some(1)).delete("/a", Some(0)));
    }

    #[test]
    fn a_body_sees_its_own_writes() {
        let one = attempt(&[("/a", present(0)), ("/b", absent("/b"))], &[("/a", Write::Delete), ("/c", put("c"))]);
        assert_eq!(one.value("/a"), Some(None));
        assert_eq!(one.value("/b"), Some(None));
        assert_eq!(one.value("/c"), Some(Some(Some(Bytes::from_static(b"c")))));
        assert_eq!(one.value("/d"), None);
        assert!(one.will_exist("/") && one.will_exist("/c") && !one.will_exist("/a") && !one.will_exist("/d"));
    }

    #[test]
    fn a_znode_that_was_created_anew_is_not_the_same() {
        let again = Read::Present { data: Some(Bytes::from_static(b"x")), version: 3, czxid: 7, mzxid: 9 };
        assert!(!present(3).is_same(&again) && present(3).is_same(&present(3)));
        assert!(!absent("/a").is_same(&present(3)) && !absent("/a/b").is_same(&absent("/a")));
    }
}
