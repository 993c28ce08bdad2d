//! What happened: a running hash of every event, a readable tail for failures, and counters of what was reached.

use std::collections::{BTreeMap, VecDeque};

use crate::schedule::Micros;

/// Lines kept for a failure.
const TAIL_LINES: usize = 400;

/// How much is written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Only the hash and the counters.
    #[default]
    Quiet,
    /// The last lines, for a failure.
    Tail,
    /// What happened to servers, at once, to standard output; and the last lines.
    Story,
    /// Every line, at once, to standard output.
    All,
}

/// The record of one run.
#[derive(Default)]
pub struct Trace {
    verbosity: Verbosity,
    hash: u64,
    events: u64,
    tail: VecDeque<String>,
    reached: BTreeMap<&'static str, u64>,
}

impl Trace {
    /// An empty record.
    pub fn new(verbosity: Verbosity) -> Trace {
        Trace { verbosity, ..Trace::default() }
    }

    /// Counts one event and mixes what identifies it into the hash.
    pub fn event(&mut self, now: Micros, words: &[u64]) {
        self.events += 1;
        self.mix(now);
        for word in words {
            self.mix(*word);
        }
    }

    /// Mixes a word into the hash.
    pub fn mix(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    /// Writes a line, if anybody reads it.
    pub fn line(&mut self, now: Micros, text: impl FnOnce() -> String) {
        self.write(now, Verbosity::All, text);
    }

    /// Writes a line of the story: faults, starts, deaths, roles.
    pub fn headline(&mut self, now: Micros, text: impl FnOnce() -> String) {
        self.write(now, Verbosity::Story, text);
    }

    fn write(&mut self, now: Micros, from: Verbosity, text: impl FnOnce() -> String) {
        if self.verbosity == Verbosity::Quiet {
            return;
        }
        let line = format!("{:>10.3} {}", now as f64 / 1000.0, text());
        if self.verbosity >= from {
            println!("{line}");
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    /// Counts that something was reached ("sometimes" goals).
    pub fn reached(&mut self, what: &'static str) {
        *self.reached.entry(what).or_default() += 1;
    }

    /// Hash of everything so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Counters of what was reached.
    pub fn coverage(&self) -> &BTreeMap<&'static str, u64> {
        &self.reached
    }

    /// The last lines.
    pub fn tail(&self) -> impl Iterator<Item = &str> {
        self.tail.iter().map(String::as_str)
    }
}
