//! `corral check`: is the log and the store of a stopped server what it should be, and what would its start make of it?

use std::collections::BTreeSet;
use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::Path;

use corral_core::storage::inspect::{self, Finding, Folder, Item, Weight};
use corral_core::storage::recover::OpenError;
use corral_core::tree;
use corral_core::tree::check::Counted;
use corral_core::tree::entry::Txn;
use corral_core::zab::io::Membership;
use serde_json::{Value, json};

use super::InspectError;
use crate::storage::files::{FolderLock, ReadOnlyDevice};
use crate::storage::rocks::{ReadOnlyStore, StoreOptions};

/// Findings that are told one by one; more are counted.
const FINDINGS_MAX: usize = 1_000;
/// Memory for reading the store.
const MEMORY_BYTES: u64 = 48 << 20;
/// Rows between two signs of life.
const ROWS_PER_SIGN: u64 = 100_000;

/// What a start makes of a tree that is not what execution made it.
const UNNOTICED: &str = "does not notice; stops when its tree is compared with the others' (P35), or when the row is \
                         needed. With an empty folder it would learn everything from a leader";
/// What a start makes of a block of the store that cannot be read.
const STOPS_LATER: &str = "may not notice; stops when it reads that block, and its next start sets log and store aside in \
                           damaged-N/ and is amnesiac";
/// What execution does with an entry that nobody can decode.
const SYSTEM_ERROR: &str = "executes it as a system error, as every server does";

/// What was found in a folder.
#[derive(Debug, Default)]
pub struct Report {
    /// What the small files and the log say.
    pub folder: Folder,
    /// What the tree holds, if all of it could be read.
    pub counted: Option<Counted>,
    /// Segments, frames and entries of the log that could be read.
    pub log: LogCounts,
    /// In the order in which they were found; the first thousand.
    pub findings: Vec<Finding>,
    /// Problems altogether.
    pub problems: usize,
    /// Notes altogether.
    pub notes: usize,
}

/// What can be read of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogCounts {
    /// Files.
    pub segments: u64,
    /// Whole frames.
    pub frames: u64,
    /// Entries in them, cut ones included.
    pub entries: u64,
}

impl Report {
    fn add(&mut self, finding: Finding) {
        match finding.weight {
            Weight::Note => self.notes += 1,
            Weight::Problem => self.problems += 1,
        }
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    fn problem(&mut self, place: impl Into<String>, what: impl Into<String>, at_start: &str) {
        let (place, what, at_start) = (place.into(), what.into(), at_start.to_owned());
        self.add(Finding { weight: Weight::Problem, place, what, at_start });
    }

    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.problems == 0
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<9} {value}");
        };
        if let Some(record) = &self.folder.identity {
            let who = record.identity;
            let membership = membership(who.membership);
            line("server", format!("{}, {membership}, start {}", who.server, who.start_count));
            line("cluster", format!("{:#x}, data folder {:#x}", who.cluster, who.instance));
        }
        let promise = self.folder.promise;
        if promise.epoch > 0 {
            line("promise", format!("epoch {} to server {}", promise.epoch, promise.leader));
        }
        if let Some((base, end)) = self.folder.log {
            let epochs: BTreeSet<u32> = self.folder.epochs.iter().map(|row| row.zxid.epoch()).collect();
            let LogCounts { segments, frames, entries } = self.log;
            line("log", format!("after {} up to {}, epochs {epochs:?}", base.zxid, end.zxid));
            line("", format!("{segments} segments, {frames} frames, {entries} entries"));
        }
        if let (Some(folder), Some(meta)) = (&self.folder.store, &self.folder.meta) {
            line("store", format!("{folder} up to {}, digest {:016x}", meta.applied, meta.digest));
            line("", format!("{} znodes, {} ephemerals, {} sessions", meta.znodes, meta.ephemerals, meta.sessions));
        }
        for Finding { weight, place, what, at_start } in &self.findings {
            let weight = if *weight == Weight::Problem { "PROBLEM" } else { "note" };
            let _ = writeln!(text, "{weight:<9} {place}: {what}\n          the next start {at_start}");
        }
        if self.findings.len() < self.problems + self.notes {
            let _ = writeln!(text, "... and {} more", self.problems + self.notes - self.findings.len());
        }
        let verdict = if self.is_sound() { "sound" } else { "NOT sound" };
        let _ = writeln!(text, "{verdict}: {} problems, {} notes", self.problems, self.notes);
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let position = |p: corral_core::zab::io::Position| json!({ "zxid": p.zxid.to_string(), "hash": hex(p.hash) });
        let finding = |f: &Finding| {
            json!({
                "weight": if f.weight == Weight::Problem { "problem" } else { "note" },
                "place": f.place,
                "what": f.what,
                "at_start": f.at_start,
            })
        };
        let promise = self.folder.promise;
        json!({
            "sound": self.is_sound(),
            "problems": self.problems,
            "notes": self.notes,
            "findings": self.findings.iter().map(finding).collect::<Vec<_>>(),
            "server": self.folder.identity.map(|r| json!({
                "id": r.identity.server.0,
                "membership": membership(r.identity.membership),
                "start_count": r.identity.start_count,
                "cluster": hex(r.identity.cluster),
                "instance": hex(r.identity.instance),
            })),
            "promise": { "epoch": promise.epoch, "leader": promise.leader.0 },
            "log": self.folder.log.map(|(base, end)| json!({
                "base": position(base),
                "end": position(end),
                "epochs": self.folder.epochs.iter().map(|row| position(*row)).collect::<Vec<_>>(),
                "segments": self.log.segments,
                "frames": self.log.frames,
                "entries": self.log.entries,
            })),
            "store": self.folder.meta.as_ref().map(|meta| json!({
                "folder": self.folder.store,
                "applied": meta.applied.to_string(),
                "digest": hex(meta.digest),
                "recomputed_digest": self.counted.map(|counted| hex(counted.digest)),
                "znodes": meta.znodes,
                "ephemerals": meta.ephemerals,
                "sessions": meta.sessions,
                "data_bytes": meta.data_bytes,
            })),
        })
    }
}

fn hex(number: u64) -> String {
    format!("{number:016x}")
}

fn membership(membership: Membership) -> &'static str {
    match membership {
        Membership::Empty => "never took part",
        Membership::Member => "member",
        Membership::Amnesiac => "amnesiac",
    }
}

/// Looks through the data folder `dir` (dataDir). `sign` is told now and then what is being read. Blocks.
///
/// # Errors
/// [`InspectError`] if a server uses the folder, nothing of a server is in it, or the disk fails. All else is a finding.
pub fn check(dir: &Path, sign: &mut dyn FnMut(&str)) -> Result<Report, InspectError> {
    let device = ReadOnlyDevice::open(dir)?;
    // Held to the end, so that no server starts meanwhile.
    let _lock = FolderLock::borrow(&device)?;
    let options = StoreOptions::from_memory_limit(MEMORY_BYTES);
    let mut report = Report::default();
    let mut store = None;
    sign("reading the log");
    let mut open = |folder: &str| {
        let opened = ReadOnlyStore::open(&dir.join(folder), options)?;
        let meta = opened.meta()?;
        store = Some(opened);
        Ok::<_, OpenError>(meta)
    };
    let mut findings = Vec::new();
    report.folder = inspect::check(&device, &mut open, &mut |finding| findings.push(finding))?;
    findings.into_iter().for_each(|finding| report.add(finding));
    entries(&device, &mut report, sign)?;
    if let Some(store) = store.filter(|_| report.folder.store.is_some()) {
        rows(&store, &mut report, sign)?;
    }
    Ok(report)
}

/// Whether every entry is one that can be executed.
fn entries(device: &ReadOnlyDevice, report: &mut Report, sign: &mut dyn FnMut(&str)) -> Result<(), InspectError> {
    let instance = report.folder.identity.map_or(0, |record| record.identity.instance);
    let mut at = String::new();
    let walked = inspect::walk(device, instance, &mut |item| {
        match item {
            Item::Segment { path, .. } => {
                sign(&format!("reading {path}"));
                report.log.segments += 1;
                at = path;
            }
            Item::Frame { entries, .. } => {
                report.log.frames += 1;
                for entry in entries.into_iter().flatten() {
                    report.log.entries += 1;
                    if !entry.payload.is_empty()
                        && let Err(error) = Txn::decode(&entry.payload)
                    {
                        report.problem(at.as_str(), format!("entry {}: {error}", entry.zxid), SYSTEM_ERROR);
                    }
                }
            }
            Item::Unreadable { .. } | Item::End { .. } => {}
        }
        ControlFlow::Continue(())
    });
    walked.map_err(InspectError::from)
}

/// Whether the store is what execution makes of a tree.
fn rows(store: &ReadOnlyStore, report: &mut Report, sign: &mut dyn FnMut(&str)) -> Result<(), InspectError> {
    if report.folder.meta.is_none() {
        // Nothing was executed before a flush: the next start makes it again.
        return Ok(());
    }
    let mut misfits = |misfit: tree::check::Misfit| report.problem(misfit.place, misfit.what, UNNOTICED);
    let mut progress = |rows: u64| {
        if rows.is_multiple_of(ROWS_PER_SIGN) {
            sign(&format!("{rows} rows of the store are read"));
        }
    };
    match tree::check::check(store, &mut misfits, &mut progress) {
        Ok(counted) => report.counted = Some(counted),
        Err(error) if error.is_damage() => {
            let folder = report.folder.store.clone().unwrap_or_default();
            report.problem(folder, format!("it cannot be read to the end: {error}"), STOPS_LATER);
        }
        Err(error) => return Err(InspectError::Store(error)),
    }
    Ok(())
}
