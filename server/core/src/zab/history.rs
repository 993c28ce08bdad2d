//! The log as the protocol knows it: where it begins and ends, where each epoch ends, and its recent entries.
//!
//! Entries that are not yet executed are always here, so handing them to the apply room never reads the disk, and the
//! position (zxid and hash) of everything from the last executed entry on is known.

use std::collections::VecDeque;

use corral_proto::Zxid;

use super::io::{Entry, Position};
use crate::zoo;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct History {
    base: Position,
    end: Position,
    /// Last position of each epoch that has entries after the base, ascending.
    epochs: Vec<Position>,
    /// Recent entries, consecutive, up to the end.
    tail: VecDeque<Entry>,
    /// The position before the first of `tail`.
    tail_after: Position,
    tail_bytes: usize,
}

impl History {
    /// A history from what was found on disk. `tail` holds at least the entries after `applied`.
    pub fn new(base: Position, end: Position, epochs: &[Position], mut tail: Vec<Entry>, applied: Position) -> History {
        let mut tail_after = if applied.zxid >= base.zxid { applied } else { base };
        if let Some(first) = tail.first()
            && first.zxid <= applied.zxid
        {
            // The hash before the first entry is not known; its own position serves as the place before the rest.
            tail_after = Position { zxid: first.zxid, hash: first.hash };
            tail.remove(0);
        } else if tail.is_empty() {
            tail_after = end;
        }
        let epochs = epochs.iter().copied().filter(|p| p.zxid > base.zxid).collect();
        let tail_bytes = tail.iter().map(Entry::weight).sum();
        History { base, end, epochs, tail: tail.into(), tail_after, tail_bytes }
    }

    /// Entries after it are on disk.
    pub fn base(&self) -> Position {
        self.base
    }

    /// The last entry; the base if there is none.
    pub fn end(&self) -> Position {
        self.end
    }

    /// Last position of each epoch after the base, ascending.
    pub fn epochs(&self) -> &[Position] {
        &self.epochs
    }

    /// Appends an entry.
    ///
    /// # Panics
    /// If it does not follow the end (I4, I5): the caller checks what comes from outside.
    pub fn append(&mut self, entry: Entry) {
        let follows = follows(self.end.zxid, entry.zxid) || zoo::unchecked_history();
        assert!(follows, "{:?} does not follow {:?}", entry.zxid, self.end.zxid);
        self.end = Position { zxid: entry.zxid, hash: entry.hash };
        match self.epochs.last_mut() {
            Some(last) if last.zxid.epoch() == entry.zxid.epoch() => *last = self.end,
            _ => self.epochs.push(self.end),
        }
        self.tail_bytes += entry.weight();
        self.tail.push_back(entry);
    }

    /// Forgets everything after `to`.
    ///
    /// # Panics
    /// If `to` is not a place of this log.
    pub fn truncate(&mut self, to: Position) {
        let known = self.position_of(to.zxid);
        assert_eq!(known, Some(to), "truncation to a place that is not in the log");
        while self.tail.back().is_some_and(|e| e.zxid > to.zxid) {
            let entry = self.tail.pop_back().expect("looked at above");
            self.tail_bytes -= entry.weight();
        }
        while self.epochs.last().is_some_and(|p| p.zxid > to.zxid) {
            self.epochs.pop();
        }
        if to.zxid > self.base.zxid && self.epochs.last().is_none_or(|p| p.zxid != to.zxid) {
            self.epochs.push(to);
        }
        self.end = to;
    }

    /// The log begins anew after a snapshot.
    pub fn rebase(&mut self, position: Position) {
        *self = History { base: position, end: position, tail_after: position, ..History::default() };
    }

    /// The oldest entries are gone from disk.
    pub fn trimmed(&mut self, base: Position) {
        if base.zxid > self.base.zxid && base.zxid <= self.end.zxid {
            self.base = base;
            self.epochs.retain(|p| p.zxid > base.zxid);
        }
    }

    /// The position of an entry, if it is still known here: from the last executed entry on it always is.
    pub fn position_of(&self, zxid: Zxid) -> Option<Position> {
        if zxid == self.end.zxid {
            return Some(self.end);
        }
        if zxid == self.tail_after.zxid {
            return Some(self.tail_after);
        }
        if zxid == self.base.zxid {
            return Some(self.base);
        }
        if let Ok(at) = self.tail.binary_search_by_key(&zxid, |e| e.zxid) {
            return Some(Position { zxid, hash: self.tail[at].hash });
        }
        self.epochs.iter().copied().find(|p| p.zxid == zxid)
    }

    /// Whether the entries after this place are all in memory.
    pub fn in_memory_after(&self, zxid: Zxid) -> bool {
        zxid >= self.tail_after.zxid
    }

    /// Entries after `after` and up to `upto`, about `max_bytes` of them, at least one if there is one. The place must
    /// be in memory.
    pub fn entries_after(&self, after: Zxid, upto: Zxid, max_bytes: usize) -> Vec<Entry> {
        debug_assert!(self.in_memory_after(after));
        let from = self.tail.partition_point(|e| e.zxid <= after);
        let mut bytes = 0;
        let mut entries = Vec::new();
        for entry in self.tail.range(from..) {
            if entry.zxid > upto || (bytes > 0 && bytes + entry.weight() > max_bytes) {
                break;
            }
            bytes += entry.weight();
            entries.push(entry.clone());
        }
        entries
    }

    /// Drops the oldest entries in memory while they are more than `max_bytes` and executed.
    pub fn evict(&mut self, applied: Zxid, max_bytes: usize) {
        while self.tail_bytes > max_bytes {
            match self.tail.front() {
                Some(first) if first.zxid <= applied => {
                    self.tail_after = Position { zxid: first.zxid, hash: first.hash };
                    self.tail_bytes -= first.weight();
                    self.tail.pop_front();
                }
                _ => break,
            }
        }
    }

    /// How many bytes of log follow a place, roughly: what is not in memory is taken to weigh as much as what is.
    pub fn bytes_after(&self, zxid: Zxid) -> u64 {
        if self.in_memory_after(zxid) {
            let from = self.tail.partition_point(|e| e.zxid <= zxid);
            return self.tail.range(from..).map(|e| e.weight() as u64).sum();
        }
        let mean = self.tail_bytes as u64 / self.tail.len().max(1) as u64;
        let mut entries = 0u64;
        for last in &self.epochs {
            if last.zxid.epoch() == zxid.epoch() {
                entries += u64::from(last.zxid.counter().saturating_sub(zxid.counter()));
            } else if last.zxid > zxid {
                entries += u64::from(last.zxid.counter()) + 1;
            }
        }
        entries * mean.max(64)
    }
}

/// Whether `next` may stand right after `last` in a log (I4, I5): the next counter of the epoch, or the opening of a
/// later one.
pub fn follows(last: Zxid, next: Zxid) -> bool {
    if next.epoch() == last.epoch() {
        last != Zxid::ZERO && next.counter() == last.counter().wrapping_add(1) && next.counter() != 0
    } else {
        next.epoch() > last.epoch() && next.counter() == 0
    }
}
