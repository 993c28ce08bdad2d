//! What guests were told, written down where all of them can see it: no guest reads it, only judges do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use corral_client::ambient;
use corral_recipes::{Hold, View};

use crate::host::{Guest, host};

/// Shared by all guests of a run.
pub type Shared<T> = Arc<Mutex<T>>;

/// Who believes that it holds.
#[derive(Default)]
pub struct Holders {
    holds: BTreeMap<Guest, Hold>,
}

impl Holders {
    /// A guest was granted a hold that excludes all others': by their own clocks these must have stopped.
    pub fn granted(ledger: &Shared<Holders>, guest: Guest, hold: &Hold) {
        let mut ledger = ledger.lock().expect("one thread");
        let now = ambient::now();
        for (other, theirs) in ledger.holds.iter().filter(|(other, _)| **other != guest) {
            if let Some(until) = theirs.valid_until() {
                assert!(
                    until <= now,
                    "guest {guest} got {} while guest {other} may believe for another {} ms that {} is its own",
                    hold.token(),
                    (until - now).as_millis(),
                    theirs.token()
                );
            }
            if theirs.token() >= hold.token() {
                panic!("guest {guest} got token {} after guest {other} had {}", hold.token(), theirs.token());
            }
        }
        host().note("a hold was granted");
        ledger.holds.insert(guest, hold.clone());
    }

    /// It is about to give it up.
    pub fn given_up(ledger: &Shared<Holders>, guest: Guest) {
        ledger.lock().expect("one thread").holds.remove(&guest);
    }
}

/// The views of a group, by epoch.
#[derive(Default)]
pub struct Views {
    by_epoch: BTreeMap<u64, Vec<(String, u64)>>,
}

impl Views {
    pub fn seen(ledger: &Shared<Views>, view: &View) {
        let members: Vec<(String, u64)> =
            view.members.iter().map(|member| (member.path.clone(), member.joined.0)).collect();
        // The epoch of nobody is that of nothing, too.
        if members.is_empty() {
            return;
        }
        let mut ledger = ledger.lock().expect("one thread");
        let known = ledger.by_epoch.entry(view.epoch.0).or_insert_with(|| members.clone());
        assert_eq!(*known, members, "two views of epoch {:?}", view.epoch);
        host().note("a view was seen");
    }
}

/// What happened to the items of a queue.
#[derive(Default)]
pub struct Items {
    /// Certainly put.
    pub put: BTreeSet<String>,
    /// Put, or not.
    pub maybe_put: BTreeSet<String>,
    taken: BTreeSet<String>,
    /// Attempts to take of which the outcome is not known: each may have lost one item.
    pub failed_takes: usize,
    last: u64,
}

impl Items {
    /// A name that no other item has.
    pub fn next(&mut self, guest: Guest) -> String {
        self.last += 1;
        format!("{guest}-{}", self.last)
    }

    pub fn took(&mut self, item: &str) {
        assert!(self.put.contains(item) || self.maybe_put.contains(item), "{item} was never put");
        assert!(self.taken.insert(item.to_owned()), "{item} was taken twice");
    }

    /// Judges what is left.
    pub fn judge(&self, rest: &[String]) -> Result<(), String> {
        for item in rest {
            if self.taken.contains(item) {
                return Err(format!("{item} was taken, and is still there"));
            }
        }
        let lost: Vec<&String> =
            self.put.iter().filter(|item| !self.taken.contains(*item) && !rest.contains(item)).collect();
        if lost.len() > self.failed_takes {
            return Err(format!("{lost:?} were lost; only {} attempts to take one failed", self.failed_takes));
        }
        Ok(())
    }
}
