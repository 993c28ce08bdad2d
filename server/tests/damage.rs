//! Every file of a data folder is damaged in turn, in every way that a disk has, on a server that has nobody to learn from: it
//! serves all that was ever durable, or it says that it does not serve. It never loses anything without a word; and `corral
//! check` knows beforehand.
//!
//! What a server makes of the same damage that has peers: `every_file_of_a_data_folder_may_be_damaged_or_lost` in `ensemble.rs`.

mod harm;
mod history;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use corral_core::apply::Apply;
use corral_core::storage::folder::PeerBook;
use corral_core::tree::TreeStore;
use corral_core::zab::io::{LogOp, Membership};
use corral_proto::ServerId;
use corral_server::inspect::check;
use corral_server::storage::files::FileDevice;
use harm::{HARMS, Harm};
use history::{Row, catch_up, copy_folder, entries, join, rows, start};

/// Names the data folder for a process that this test starts.
const FOLDER: &str = "CORRAL_TEST_DAMAGE_FOLDER";
/// Entries of the log; the store has persisted some of them.
const ENTRIES: u64 = 400;
const FLUSHED: u64 = 200;
/// A damaged block may show only when it is read: then the process ends, and the next start knows of it.
const STARTS_MAX: usize = 3;

/// Starts, executes what the store lacks, and reads everything. Says what came of it.
#[test]
#[ignore = "runs in a process of its own, which may die"]
fn process_that_starts() {
    let Some(root) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let verdict = match start(Arc::new(FileDevice::open(&root).unwrap()), &root) {
        Err(error) => format!("refuses: {error}"),
        Ok((recovery, _)) if recovery.recovered.identity.membership != Membership::Member => {
            assert_eq!(recovery.recovered.identity.membership, Membership::Amnesiac);
            "does not vote".to_owned()
        }
        Ok((recovery, store)) => {
            let mut apply = Apply::new(ServerId(1), store, Vec::new());
            catch_up(&recovery, &mut apply);
            format!("serves {:x}", hash(&rows(&apply.store().view())))
        }
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "verdict: {verdict}").and_then(|()| out.flush()).expect("the test reads");
}

/// Of all rows of a store.
fn hash(rows: &[Row]) -> u64 {
    rows.iter().fold(0, |hash, (cf, key, value)| {
        let sum = [&[*cf as u8][..], key, value].iter().fold(0, |sum, part| crc32c::crc32c_append(sum, part));
        hash.rotate_left(7) ^ u64::from(sum) ^ (value.len() as u64) << 40
    })
}

/// What the server says of itself; `None` if it died.
fn try_start(root: &Path) -> Option<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "process_that_starts"])
        .env(FOLDER, root)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let verdict = text.lines().find_map(|line| line.strip_prefix("verdict: ")).map(str::to_owned);
    if verdict.is_none() {
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains("this server stops at once"), "it died without a word: {text}{errors}");
    }
    verdict
}

/// A member whose log has several segments and is sealed, as a quiet server's is; its store lacks some of it.
fn prepare(root: &Path) -> u64 {
    let device = FileDevice::open(root).unwrap();
    PeerBook::default().observe(&device, ServerId(2), 7, 5).unwrap();
    let (mut recovery, store) = start(Arc::new(device), root).unwrap();
    join(&mut recovery);
    let mut apply = Apply::new(ServerId(1), store, Vec::new());
    for at in (0..ENTRIES).step_by(20) {
        let made = entries(recovery.log.end(), at, 20);
        recovery.log.write(&[(at, LogOp::Append(made.clone()))]).unwrap();
        if at < FLUSHED {
            apply.apply(&made);
        }
    }
    apply.store().flush(true);
    recovery.log.seal_if_idle().unwrap();
    let mut model = history::Model::default();
    model.advance(history::zxid(ENTRIES - 1));
    hash(&model.rows())
}

/// Every file whose contents somebody depends on.
fn files(root: &Path, folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("our names").to_owned();
        if path.is_dir() {
            found.extend(files(root, &path));
        } else if name != "lock" && name != "LOCK" && !name.starts_with("LOG") && !name.ends_with(".tmp") {
            found.push(path.strip_prefix(root).unwrap().to_owned());
        }
    }
    found.sort();
    found
}

#[test]
fn server_alone_with_any_file_damaged_serves_all_or_says_that_it_does_not() {
    let whole = tempfile::tempdir().unwrap();
    let expected = format!("serves {:x}", prepare(whole.path()));
    let report = check::check(whole.path(), &mut |_| {}).unwrap();
    assert!(report.is_sound(), "{}", report.text());
    // A start lets the store catch up, and the damaged ones are to find it behind.
    let started = tempfile::tempdir().unwrap();
    copy_folder(whole.path(), started.path());
    assert_eq!(try_start(started.path()).as_deref(), Some(expected.as_str()), "undamaged");

    let files = files(whole.path(), whole.path());
    let segments = files.iter().filter(|file| file.starts_with("log")).count();
    assert!(segments >= 3 && files.iter().any(|file| file.extension().is_some_and(|e| e == "sst")), "{files:?}");
    let cases: Vec<(&PathBuf, Harm)> = files.iter().flat_map(|file| HARMS.map(|harm| (file, harm))).collect();
    let next = AtomicUsize::new(0);
    let outcomes: Mutex<BTreeMap<String, BTreeSet<String>>> = Mutex::default();
    let worker = || {
        while let Some((file, harm)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let what = format!("{} {harm:?}", file.display());
            let folder = tempfile::tempdir().unwrap();
            copy_folder(whole.path(), folder.path());
            harm.strike(&folder.path().join(file));
            let report = check::check(folder.path(), &mut |_| {});
            let report = report.unwrap_or_else(|error| panic!("{what}: it cannot be checked: {error}"));
            let mut verdict = None;
            for _ in 0..STARTS_MAX {
                verdict = try_start(folder.path());
                if verdict.is_some() {
                    break;
                }
            }
            let verdict = verdict.unwrap_or_else(|| panic!("{what}: it ends at every start"));
            let serves = verdict.starts_with("serves");
            assert!(!serves || verdict == expected, "{what}: something is lost without a word");
            assert!(serves || !report.is_sound(), "{what}: {verdict}, and the check knew nothing\n{}", report.text());
            let known = if report.is_sound() { "harmless" } else { "reported" };
            let outcome = format!("{}, {known}", verdict.split(&[' ', ':'][..]).next().unwrap_or_default());
            outcomes.lock().unwrap().entry(outcome).or_default().insert(what);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(worker);
        }
    });
    let outcomes = outcomes.into_inner().unwrap();
    for (outcome, cases) in &outcomes {
        println!("{outcome}: {}\n    {}", cases.len(), cases.iter().cloned().collect::<Vec<_>>().join("\n    "));
    }
    for outcome in ["serves, reported", "does, reported"] {
        assert!(outcomes.contains_key(outcome), "none {outcome}");
    }
}
