//! The real log and the real store in a process that is killed at random moments, and at every step of a checkpoint and of a
//! snapshot's install: what is found afterwards is exactly a state of the history, and nothing that was said to be durable is
//! missing.
//!
//! A killed process loses no page of the system's cache: what a power cut takes is tried in memory, at every operation
//! (`storage/log_tests.rs` in `corral_core`).

mod history;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use corral_core::apply::Apply;
use corral_core::storage::folder::{Current, Found};
use corral_core::storage::log_device::{DeviceFile, DeviceResult, LogDevice};
use corral_core::tree::check::misfits;
use corral_core::tree::{TreeStore, record::Meta};
use corral_core::zab::io::{LogOp, Membership, Position, Promise, SnapshotMeta};
use corral_proto::{ServerId, Zxid};
use corral_server::storage::files::{FileDevice, FolderLock};
use corral_server::storage::rocks::RocksStore;
use corral_server::storage::snapshot::{Incoming, Snapshot, remove_state_folder};
use history::{Model, catch_up, copy_folder, entries, index, join, next, payload, rows, small, spread, start};

/// Names the data folder for a process that this test starts.
const FOLDER: &str = "CORRAL_TEST_CRASH_FOLDER";
/// A folder with the store that snapshots are received from.
const SOURCE: &str = "CORRAL_TEST_CRASH_SOURCE";
/// Which step ends the process: its number, or its name.
const STEP: &str = "CORRAL_TEST_CRASH_STEP";
/// A process that nobody kills ends after so many batches.
const BATCHES_MAX: u64 = 20_000;
/// How often the process is killed.
const ROUNDS: u64 = 12;

fn environment(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

/// This program again, in which one ignored test runs.
fn process(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--ignored", "--exact", "--nocapture", test]).env(FOLDER, folder).stdin(Stdio::null());
    command
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("the test reads");
}

// ----------------------------------------------------------------------------------------------- killed at random moments

/// Writes the history on, says what is durable, flushes, trims, makes checkpoints, until it is killed.
#[test]
#[ignore = "runs in a process of its own, which is killed"]
fn process_that_writes() {
    let Some(root) = environment(FOLDER) else { return };
    let device = FileDevice::open(&root).unwrap();
    let _lock = FolderLock::acquire(&device).unwrap();
    let (mut recovery, store) = start(Arc::new(device), &root).unwrap();
    join(&mut recovery);
    let mut apply = Apply::new(ServerId(1), store, Vec::new());
    catch_up(&recovery, &mut apply);
    let mut log = recovery.log;
    say("begun");
    for batch in 1..BATCHES_MAX {
        let end = log.end();
        let chance = spread(next(end) << 16 | batch);
        let made = entries(end, next(end), 1 + chance % 40);
        let last = made.last().expect("at least one").zxid;
        let mut ops = vec![(batch, LogOp::Append(made.clone()))];
        let epoch = log.promise().epoch + 1;
        if chance.is_multiple_of(31) {
            let promise = Promise { epoch, leader: ServerId(2), instance: 3, start_count: 4 };
            ops.push((batch, LogOp::SetPromise(promise)));
        }
        log.write(&ops).unwrap();
        if ops.len() == 2 {
            say(&format!("promised {epoch}"));
        }
        say(&format!("durable {:x}", last.0));
        let persisted = apply.apply(&made).persisted;
        match chance % 13 {
            0..3 => apply.store().flush(false),
            3 => apply.store().flush(true),
            4 => assert!(log.trim(persisted).is_ok()),
            5 => assert!(log.seal_if_idle().is_ok()),
            6 => log.prepare_next().unwrap(),
            7 if batch.is_multiple_of(3) => {
                Snapshot::create(apply.store(), &root, batch, small()).unwrap().remove().unwrap();
            }
            _ => {}
        }
    }
    panic!("nobody killed this process");
}

/// What a process said before it died.
#[derive(Default)]
struct Said {
    durable: Zxid,
    promised: u32,
}

impl Said {
    fn hear(&mut self, line: &str) {
        match line.split_once(' ') {
            Some(("durable", zxid)) => self.durable = Zxid(u64::from_str_radix(zxid, 16).expect("a zxid")),
            Some(("promised", epoch)) => self.promised = epoch.parse().expect("an epoch"),
            _ => {}
        }
    }
}

/// Kills a process once it has said so many lines; what is in the pipe by then was said, too.
fn kill_after(mut child: Child, lines: u64, said: &mut Said) {
    let mut out = BufReader::new(child.stdout.take().expect("piped")).lines();
    for _ in 0..lines {
        match out.next() {
            Some(line) => said.hear(&line.expect("text")),
            None => panic!("it ended by itself: {:?}", child.wait_with_output()),
        }
    }
    child.kill().expect("the process is ours");
    child.wait().expect("it is gone");
    // The last line may be cut.
    let rest: Vec<String> = out.map_while(Result::ok).collect();
    rest.iter().filter(|line| line.len() >= "durable 100000000".len()).for_each(|line| said.hear(line));
}

#[test]
fn store_and_log_of_a_killed_process_are_a_state_of_the_history_and_hold_all_that_was_durable() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let mut model = Model::default();
    let mut said = Said::default();
    let (mut lagged, mut trimmed, mut at_once) = (0, 0, 0);
    for round in 0..ROUNDS {
        let child = process("process_that_writes", root).stdout(Stdio::piped()).spawn().unwrap();
        let before = said.durable;
        // Some lines of the test's own come first.
        kill_after(child, 4 + spread(round) % 300, &mut said);
        at_once += u64::from(said.durable > before);

        let device = FileDevice::open(root).unwrap();
        let (recovery, store) = start(Arc::new(device), root).unwrap();
        let recovered = &recovery.recovered;
        assert_eq!(recovered.identity.membership, Membership::Member, "round {round}: {:?}", recovery.notes);
        assert!(recovered.end.zxid >= said.durable, "round {round}: {} was durable", said.durable);
        assert!(recovered.promise.epoch >= said.promised, "round {round}: epoch {} was promised", said.promised);
        let log = recovery.log.reader().read(recovered.base.zxid, usize::MAX).unwrap();
        let mut at = next(recovered.base);
        for entry in &log {
            assert_eq!((entry.zxid, &entry.payload), (history::zxid(at), &payload(at)), "round {round}");
            at += 1;
        }
        assert_eq!(at, next(recovered.end), "round {round}: the log has no gap");

        let applied = recovered.applied.zxid;
        assert!(applied <= recovered.end.zxid && applied >= recovered.base.zxid);
        model.advance(applied);
        assert_eq!(model.position(), recovered.applied, "round {round}");
        assert!(rows(&store.view()) == model.rows(), "round {round}: the store is not the state at {applied}");
        assert_eq!(misfits(&store.view()), [], "round {round}");
        lagged += u64::from(applied < recovered.end.zxid);
        trimmed += u64::from(recovered.base.zxid > Zxid::ZERO);

        let mut apply = Apply::new(ServerId(1), store, Vec::new());
        catch_up(&recovery, &mut apply);
        model.advance(recovered.end.zxid);
        assert!(rows(&apply.store().view()) == model.rows(), "round {round}: executing the rest gives the same");
    }
    println!("{} entries; {lagged} rounds with entries that the store had not persisted", index(said.durable));
    assert!(lagged > 0 && trimmed > 0 && at_once > 0, "{lagged} lagged, {trimmed} trimmed, {at_once} wrote something");
}

// ------------------------------------------------------------------------------------------------------ killed at a step

/// Counts steps, and ends the process at one of them.
struct Steps {
    on: AtomicBool,
    done: AtomicU64,
    last: String,
}

impl Steps {
    fn new(on: bool) -> Option<Arc<Steps>> {
        let last = std::env::var(STEP).ok()?;
        Some(Arc::new(Steps { on: AtomicBool::new(on), done: AtomicU64::new(0), last }))
    }

    fn step(&self, name: &str) {
        if !self.on.load(Ordering::Relaxed) {
            return;
        }
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        if self.last == name || self.last == done.to_string() {
            say(&format!("killed before: {name}"));
            let me = rustix::process::getpid();
            let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
            unreachable!("SIGKILL leaves nobody");
        }
    }
}

/// A folder whose every change is a step.
struct SteppedDevice {
    device: FileDevice,
    steps: Arc<Steps>,
}

struct SteppedFile {
    file: Arc<dyn DeviceFile>,
    path: String,
    steps: Arc<Steps>,
}

impl SteppedDevice {
    fn file(&self, path: &str, file: Arc<dyn DeviceFile>) -> Arc<dyn DeviceFile> {
        Arc::new(SteppedFile { file, path: path.to_owned(), steps: self.steps.clone() })
    }
}

impl LogDevice for SteppedDevice {
    fn create_dir(&self, path: &str) -> DeviceResult<()> {
        self.steps.step(&format!("create folder {path}"));
        self.device.create_dir(path)
    }

    fn list(&self, path: &str) -> DeviceResult<Vec<String>> {
        self.device.list(path)
    }

    fn create(&self, path: &str) -> DeviceResult<Arc<dyn DeviceFile>> {
        self.steps.step(&format!("create {path}"));
        Ok(self.file(path, self.device.create(path)?))
    }

    fn open(&self, path: &str) -> DeviceResult<Arc<dyn DeviceFile>> {
        Ok(self.file(path, self.device.open(path)?))
    }

    fn rename(&self, from: &str, to: &str) -> DeviceResult<()> {
        self.steps.step(&format!("rename {from} to {to}"));
        self.device.rename(from, to)
    }

    fn remove(&self, path: &str) -> DeviceResult<()> {
        self.steps.step(&format!("remove {path}"));
        self.device.remove(path)
    }

    fn remove_dir_all(&self, path: &str) -> DeviceResult<()> {
        self.steps.step(&format!("remove folder {path}"));
        self.device.remove_dir_all(path)
    }

    fn sync_dir(&self, path: &str) -> DeviceResult<()> {
        self.steps.step(&format!("sync folder {path:?}"));
        self.device.sync_dir(path)
    }
}

impl DeviceFile for SteppedFile {
    fn read(&self, offset: u64, len: usize) -> DeviceResult<Vec<u8>> {
        self.file.read(offset, len)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> DeviceResult<()> {
        self.steps.step(&format!("write {} at {offset}", self.path));
        self.file.write(offset, bytes)
    }

    fn sync(&self) -> DeviceResult<()> {
        self.steps.step(&format!("sync {}", self.path));
        self.file.sync()
    }

    fn size(&self) -> DeviceResult<u64> {
        self.file.size()
    }
}

/// Makes a checkpoint of its own store, then receives and installs a snapshot, as a server does it; dies at a step.
#[test]
#[ignore = "runs in a process of its own, which is killed"]
fn process_that_dies_at_a_step() {
    let (Some(root), Some(source), Some(steps)) = (environment(FOLDER), environment(SOURCE), Steps::new(false)) else {
        return;
    };
    let device = SteppedDevice { device: FileDevice::open(&root).unwrap(), steps: steps.clone() };
    let device: Arc<dyn LogDevice> = Arc::new(device);
    let (mut recovery, store) = start(device.clone(), &root).unwrap();
    let snapshot = {
        let store = RocksStore::open(&source.join("state-1"), small()).unwrap();
        Snapshot::create(&store, &source, 4, small()).unwrap()
    };

    steps.on.store(true, Ordering::Relaxed);
    let mut step = |name: &'static str| steps.step(name);
    let own = Snapshot::create_in_steps(&store, &root, 1, small(), &mut step).unwrap();
    step("remove the checkpoint");
    own.remove().unwrap();
    let (folder, announced) = (recovery.current.incoming(), snapshot.meta());
    let files = snapshot.files().to_vec();
    let mut incoming = Incoming::begin_in_steps(&root, &folder, &announced, files, &mut step).unwrap();
    for chunk in snapshot.chunks() {
        step("write a chunk");
        incoming.write(&chunk.unwrap()).unwrap();
    }
    incoming.finish_in_steps(&announced, small(), &mut step).unwrap();
    recovery.log.write(&[(1, LogOp::InstallSnapshot(announced))]).unwrap();
    step("open the installed store");
    let Found::Valid(current) = Current::read(device.as_ref()).unwrap() else { panic!("CURRENT is there") };
    let installed = RocksStore::open(&root.join(current.folder()), small()).unwrap();
    assert_eq!(installed.meta().map(|meta| meta.applied), Some(announced.position.zxid));
    let old = store.path().to_owned();
    drop(store);
    step("remove the old store");
    remove_state_folder(&root, old.file_name().and_then(|name| name.to_str()).expect("a state folder")).unwrap();
    step("all is done");
    snapshot.remove().unwrap();
    say("whole");
}

/// A server with entries up to `OLD`, of which its store has persisted some; a store at `NEW` to be received.
const OLD: u64 = 300;
const FLUSHED: u64 = 250;
const NEW: u64 = 900;

fn prepare_receiver(root: &Path) {
    let (mut recovery, store) = start(Arc::new(FileDevice::open(root).unwrap()), root).unwrap();
    join(&mut recovery);
    let mut apply = Apply::new(ServerId(1), store, Vec::new());
    for at in (0..OLD).step_by(50) {
        let made = entries(recovery.log.end(), at, 50);
        recovery.log.write(&[(at, LogOp::Append(made.clone()))]).unwrap();
        if at < FLUSHED {
            apply.apply(&made);
        }
    }
    apply.store().flush(true);
}

fn prepare_source(root: &Path) -> SnapshotMeta {
    let mut store = RocksStore::open(&root.join("state-1"), small()).unwrap();
    store.write(&mut corral_core::tree::execute::genesis().into_iter());
    let mut apply = Apply::new(ServerId(1), store, Vec::new());
    for at in (0..NEW).step_by(50) {
        let made = entries(apply.position(), at, 50);
        apply.apply(&made);
    }
    apply.store().flush(true);
    let Meta { applied, hash, stamp_ms, .. } = apply.meta().clone();
    SnapshotMeta { id: 0, position: Position { zxid: applied, hash }, stamp_ms, bytes: 0 }
}

/// A process on a copy of the receiver's folder that dies at a step.
fn die_at(step: &str, receiver: &Path, source: &Path) -> (tempfile::TempDir, Output) {
    let (folder, mine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    copy_folder(receiver, folder.path());
    // One process has a store at a time.
    copy_folder(source, mine.path());
    let mut process = process("process_that_dies_at_a_step", folder.path());
    let output = process.env(SOURCE, mine.path()).env(STEP, step).output().unwrap();
    (folder, output)
}

/// What one killed process left.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Left {
    Old,
    New,
}

/// Starts from what is left and compares all of it with the model.
fn look(root: &Path, what: &str, old: &BTreeMap<&str, Vec<history::Row>>, new: &SnapshotMeta) -> Left {
    let mut seen = None;
    // The second start finds what the first one repaired.
    for again in [false, true] {
        let (recovery, store) = start(Arc::new(FileDevice::open(root).unwrap()), root).unwrap();
        let recovered = &recovery.recovered;
        assert_eq!(recovered.identity.membership, Membership::Member, "{what}: {:?}", recovery.notes);
        let left = if recovered.end.zxid == history::zxid(OLD - 1) {
            // The first look lets the store catch up.
            let (applied, state) = if again { (OLD, "end") } else { (FLUSHED, "flushed") };
            assert_eq!(recovered.applied.zxid, history::zxid(applied - 1), "{what}");
            assert!(rows(&store.view()) == old[state], "{what}: the old state is as it was");
            let mut apply = Apply::new(ServerId(1), store, Vec::new());
            catch_up(&recovery, &mut apply);
            assert!(rows(&apply.store().view()) == old["end"], "{what}: with all that was durable");
            Left::Old
        } else {
            assert_eq!((recovered.base, recovered.end), (new.position, new.position), "{what}");
            assert_eq!(recovered.applied, new.position, "{what}");
            assert!(rows(&store.view()) == old["new"], "{what}: the whole new state");
            Left::New
        };
        let folders: BTreeSet<String> =
            std::fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        let states = folders.iter().filter(|name| name.starts_with("state-")).count();
        assert_eq!(states, 1, "{what}: nothing else is left: {folders:?}");
        assert!(!folders.contains("install") && !folders.contains("snapshots"), "{what}: {folders:?}");
        assert!(!folders.iter().any(|name| name.starts_with("damaged-")), "{what}: {folders:?}");
        if again {
            assert_eq!(seen, Some(left), "{what}");
            break;
        }
        seen = Some(left);
    }
    seen.expect("looked twice")
}

#[test]
fn checkpoint_and_install_that_are_killed_at_any_step_leave_the_old_state_or_the_new_one_whole() {
    let receiver = tempfile::tempdir().unwrap();
    prepare_receiver(receiver.path());
    let source = tempfile::tempdir().unwrap();
    let new = prepare_source(source.path());
    let mut model = Model::default();
    let mut states = BTreeMap::new();
    for (name, end) in [("flushed", FLUSHED), ("end", OLD), ("new", NEW)] {
        model.advance(history::zxid(end - 1));
        states.insert(name, model.rows());
    }
    let (next_step, over) = (AtomicU64::new(1), AtomicU64::new(u64::MAX));
    let seen: Mutex<BTreeMap<u64, (String, Left)>> = Mutex::default();
    let worker = || {
        loop {
            let step = next_step.fetch_add(1, Ordering::Relaxed);
            if step > over.load(Ordering::Relaxed) {
                return;
            }
            let (folder, output) = die_at(&step.to_string(), receiver.path(), source.path());
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() {
                assert!(text.contains("whole"), "{text}");
                over.fetch_min(step, Ordering::Relaxed);
                assert_eq!(look(folder.path(), "uninterrupted", &states, &new), Left::New);
                return;
            }
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            let killed = text.lines().find(|line| line.contains("killed before"));
            let what = killed.unwrap_or_else(|| panic!("step {step}: it failed by itself\n{text}{errors}")).to_owned();
            let left = look(folder.path(), &format!("step {step}, {what}"), &states, &new);
            seen.lock().unwrap().insert(step, (what, left));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(worker);
        }
    });
    let seen = seen.into_inner().unwrap();
    for (step, (what, left)) in &seen {
        println!("{step:>3} {left:?}: {what}");
    }
    // Before the intent is there the old state counts, from then on the new one.
    let order: Vec<&Left> = seen.values().map(|(_, left)| left).collect();
    assert!(order.is_sorted(), "the new state does not become the old one again");
    assert!(order.contains(&&Left::Old) && order.contains(&&Left::New), "{order:?}");
    assert!(seen.len() >= 50, "only {} steps", seen.len());
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), (1..=seen.len() as u64).collect::<Vec<_>>());
}

/// A process that only starts, and dies at a step of it.
#[test]
#[ignore = "runs in a process of its own, which is killed"]
fn process_that_dies_while_it_starts() {
    let (Some(root), Some(steps)) = (environment(FOLDER), Steps::new(true)) else { return };
    let device = SteppedDevice { device: FileDevice::open(&root).unwrap(), steps };
    start(Arc::new(device), &root).unwrap();
    say("whole");
}

#[test]
fn finishing_an_install_may_be_killed_at_any_step_too() {
    let receiver = tempfile::tempdir().unwrap();
    prepare_receiver(receiver.path());
    let source = tempfile::tempdir().unwrap();
    let new = prepare_source(source.path());
    let mut model = Model::default();
    model.advance(history::zxid(NEW - 1));
    let states = BTreeMap::from([("new", model.rows())]);
    // Right behind the intent.
    let (interrupted, output) = die_at("create CURRENT.tmp", receiver.path(), source.path());
    assert!(!output.status.success(), "the install has such a step: {output:?}");
    assert!(interrupted.path().join("install").exists());
    let mut steps = 0;
    for step in 1.. {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(interrupted.path(), folder.path());
        let output =
            process("process_that_dies_while_it_starts", folder.path()).env(STEP, step.to_string()).output().unwrap();
        assert_eq!(look(folder.path(), &format!("step {step} of the start"), &states, &new), Left::New);
        if output.status.success() {
            break;
        }
        steps = step;
    }
    assert!(steps >= 20, "only {steps} steps");
}
