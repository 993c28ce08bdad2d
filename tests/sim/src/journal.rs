//! What was run so far, in a file: one line of JSON for each batch of seeds. A swarm goes on behind its last seed.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::swarm::Summary;

/// Consecutive seeds that were run to their end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Batch {
    /// [`crate::options::format`] when they were run: what a seed meant.
    pub format: String,
    /// The first.
    pub from: u64,
    /// The last.
    pub to: u64,
    /// How long it took, ms.
    pub wall_ms: u64,
    /// What came of it.
    pub summary: Summary,
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system said no.
    #[error("cannot use journal {}: {source}", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another swarm writes to it.
    #[error("journal {} is in use by another swarm; wait for it, or name another file", .0.display())]
    Busy(PathBuf),
    /// A line is something else.
    #[error("line {line} of {} is no batch of a journal: {source}", .path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
}

/// A journal that is being written. No other process writes to it meanwhile.
pub struct Journal {
    file: File,
    path: PathBuf,
    batches: Vec<Batch>,
}

impl Journal {
    /// Opens a journal, a new one if there is none. A last line that was not finished is dropped.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn open(path: &Path) -> Result<Journal, JournalError> {
        let io = |source| JournalError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => JournalError::Busy(path.to_owned()),
            TryLockError::Error(source) => io(source),
        })?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(io)?;
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        let batches = parse(path, &text[..whole])?;
        file.set_len(whole as u64).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        Ok(Journal { file, path: path.to_owned(), batches })
    }

    /// The seed to go on with.
    pub fn next_seed(&self) -> u64 {
        self.batches.iter().map(|batch| batch.to + 1).max().unwrap_or(1)
    }

    /// What was run so far.
    pub fn batches(&self) -> &[Batch] {
        &self.batches
    }

    /// Adds a batch, durably.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn append(&mut self, batch: Batch) -> Result<(), JournalError> {
        let mut line = serde_json::to_string(&batch).expect("a batch has string keys only");
        line.push('\n');
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|source| JournalError::Io { path: self.path.clone(), source })?;
        self.batches.push(batch);
        Ok(())
    }
}

/// Reads a journal that may be written to meanwhile.
///
/// # Errors
/// See [`JournalError`].
pub fn read(path: &Path) -> Result<Vec<Batch>, JournalError> {
    let text = std::fs::read_to_string(path).map_err(|source| JournalError::Io { path: path.to_owned(), source })?;
    let whole = text.rfind('\n').map_or(0, |at| at + 1);
    parse(path, &text[..whole])
}

fn parse(path: &Path, text: &str) -> Result<Vec<Batch>, JournalError> {
    let line = |(index, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|source| JournalError::Line {
            path: path.to_owned(),
            line: index + 1,
            source,
        })
    };
    text.lines().enumerate().filter(|(_, line)| !line.is_empty()).map(line).collect()
}

/// All batches together, and how many seeds were run with each format of options.
pub fn total(batches: &[Batch]) -> (Summary, BTreeMap<&str, u64>) {
    let mut summary = Summary::default();
    let mut formats = BTreeMap::new();
    for batch in batches {
        summary.merge(&batch.summary);
        *formats.entry(batch.format.as_str()).or_default() += batch.summary.seeds;
    }
    (summary, formats)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::Failure;

    fn batch(from: u64, to: u64) -> Batch {
        let mut summary = Summary { seeds: to - from + 1, ..Summary::default() };
        summary.coverage.insert("log truncated".into(), (2, 7));
        summary.failures.push(Failure { seed: to, invariant: "I9".into(), text: "gone".into() });
        Batch { format: "f".into(), from, to, wall_ms: 5, summary }
    }

    fn temporary(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("corral-sim-{name}-{}", std::process::id()))
    }

    #[test]
    fn swarm_goes_on_behind_the_last_seed_of_its_journal() {
        let path = temporary("resume");
        let mut journal = Journal::open(&path).unwrap();
        assert_eq!(journal.next_seed(), 1);
        journal.append(batch(1, 100)).unwrap();
        journal.append(batch(101, 150)).unwrap();
        drop(journal);
        let journal = Journal::open(&path).unwrap();
        assert_eq!(journal.next_seed(), 151);
        let (summary, formats) = total(journal.batches());
        assert_eq!((summary.seeds, summary.failures.len(), formats["f"]), (150, 2, 150));
        assert_eq!(summary.coverage["log truncated"], (4, 14));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn line_that_was_not_finished_is_dropped_and_its_seeds_are_run_again() {
        let path = temporary("torn");
        let whole = serde_json::to_string(&batch(1, 100)).unwrap();
        std::fs::write(&path, format!("{whole}\n{}", &whole[..20])).unwrap();
        let mut journal = Journal::open(&path).unwrap();
        assert_eq!(journal.next_seed(), 101);
        journal.append(batch(101, 110)).unwrap();
        assert_eq!(read(&path).unwrap().len(), 2);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn file_that_is_no_journal_is_named_with_the_line() {
        let path = temporary("other");
        std::fs::write(&path, "hello\n").unwrap();
        let error = Journal::open(&path).err().unwrap().to_string();
        assert!(error.starts_with("line 1 of ") && error.contains("is no batch"), "{error}");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn two_swarms_cannot_share_a_journal() {
        let path = temporary("busy");
        let journal = Journal::open(&path).unwrap();
        assert!(matches!(Journal::open(&path), Err(JournalError::Busy(_))));
        drop(journal);
        std::fs::remove_file(&path).unwrap();
    }
}
