//! What happened: counts, faults, and what did not hold, with its evidence in a file.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::fs;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Violations that are written out; later ones are only counted. One is enough to look at.
const VIOLATIONS_WRITTEN_MAX: u64 = 50;

/// Microseconds since the run began: the one clock that all histories share.
pub type Micros = u64;

/// Answers of one workload.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Counts {
    /// Done, and said so.
    pub ok: u64,
    /// Refused: nothing was changed.
    pub refused: u64,
    /// Sent, never answered.
    pub unknown: u64,
    /// Not sent: the session was over.
    pub not_sent: u64,
}

/// One thing that did not hold.
#[derive(Clone, Debug, Serialize)]
pub struct Violation {
    /// Microseconds since the start.
    pub at_us: Micros,
    /// Which checker says so.
    pub checker: String,
    /// What did not hold.
    pub text: String,
    /// File with the evidence, if it was written.
    pub evidence: Option<PathBuf>,
}

/// What a run did and found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// By workload.
    pub operations: BTreeMap<&'static str, Counts>,
    /// Rounds that were checked to the end, by workload.
    pub rounds: BTreeMap<&'static str, u64>,
    /// Rounds whose history was too tangled for the independent check, by workload.
    pub undecided: BTreeMap<&'static str, u64>,
    /// Sessions that clients had, and how many of them expired.
    pub sessions: u64,
    /// See `sessions`.
    pub sessions_expired: u64,
    /// Injected, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// What did not hold.
    pub violations: Vec<Violation>,
}

/// The record of a run. Shared by all tasks.
pub struct Journal {
    start: Instant,
    folder: PathBuf,
    quiet: bool,
    inner: Mutex<Summary>,
    stop: CancellationToken,
}

impl Journal {
    /// An empty record; evidence goes to `folder`, progress to standard error unless `quiet`.
    pub fn new(folder: &Path, quiet: bool) -> Journal {
        Journal {
            start: Instant::now(),
            folder: folder.to_owned(),
            quiet,
            inner: Mutex::default(),
            stop: CancellationToken::new(),
        }
    }

    /// Time since the start.
    pub fn now(&self) -> Micros {
        self.micros(Instant::now())
    }

    /// A moment on the clock of the histories.
    pub fn micros(&self, at: Instant) -> Micros {
        u64::try_from(at.saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX)
    }

    /// One line for people, with the time.
    pub fn say(&self, text: impl Display) {
        if !self.quiet {
            eprintln!("{:8.2} s  {text}", self.now() as f64 / 1e6);
        }
    }

    /// Counts an answer.
    pub fn count(&self, workload: &'static str, add: impl FnOnce(&mut Counts)) {
        add(self.inner.lock().operations.entry(workload).or_default());
    }

    /// Counts a round that was checked.
    pub fn round_done(&self, workload: &'static str) {
        *self.inner.lock().rounds.entry(workload).or_default() += 1;
    }

    /// Counts a check that came to no verdict.
    pub fn undecided(&self, workload: &'static str) {
        *self.inner.lock().undecided.entry(workload).or_default() += 1;
    }

    /// Counts a session.
    pub fn session_begun(&self) {
        self.inner.lock().sessions += 1;
    }

    /// Counts an expired session.
    pub fn session_expired(&self) {
        self.inner.lock().sessions_expired += 1;
    }

    /// Says and counts a fault.
    pub fn fault(&self, kind: &'static str, text: impl Display) {
        self.say(format_args!("{kind}: {text}"));
        *self.inner.lock().faults.entry(kind).or_default() += 1;
    }

    /// Something did not hold. The evidence is written at once, and the run is brought to its end.
    pub fn violation(&self, checker: &str, text: impl Display, evidence: &str) {
        let at_us = self.now();
        let mut inner = self.inner.lock();
        let number = inner.violations.len() as u64 + 1;
        eprintln!("{:8.2} s  VIOLATION {number} ({checker}): {text}", at_us as f64 / 1e6);
        let mut file = None;
        if number <= VIOLATIONS_WRITTEN_MAX {
            let path = self.folder.join(format!("violation-{number:02}-{checker}.txt"));
            let mut content = String::new();
            let _ = writeln!(content, "{checker}, {:.6} s after the start: {text}\n\n{evidence}", at_us as f64 / 1e6);
            match fs::write(&path, content) {
                Ok(()) => file = Some(path),
                Err(error) => eprintln!("cannot write {}: {error}\n{evidence}", path.display()),
            }
        }
        inner.violations.push(Violation { at_us, checker: checker.to_owned(), text: text.to_string(), evidence: file });
        drop(inner);
        self.stop.cancel();
    }

    /// Cancelled when the run should come to its end: something did not hold.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// What there is so far.
    pub fn summary(&self) -> Summary {
        self.inner.lock().clone()
    }
}
