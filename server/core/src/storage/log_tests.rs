//! The log and recovery against a model, with power cuts at every operation.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use corral_proto::{ServerId, Zxid};
use proptest::prelude::*;

use super::folder::{Condemned, Current, Found, IdentityRecord, STORE_DAMAGED};
use super::frame::{BLOCK, FRAME_HEAD, FrameHead, put_entry};
use super::log_device::{DeviceError, Fate, Fault, LogDevice, MemoryDevice, SECTOR};
use super::recover::{
    OpenError, RecoverError, RecoverOptions, Recovery, StoreOpener, accept_data_loss, mark_damaged, recover,
};
use super::scan::{Owner, ScanError, scan};
use super::txn_log::{LogError, LogOptions};
use crate::tree::record::Meta;
use crate::zab::io::{Entry, Identity, LogOp, Membership, Position, Promise, SnapshotMeta};

const INSTANCE: u64 = 0x1234_5678_9abc;
const EVERYTHING: usize = usize::MAX;

/// A store that is its meta row only; what is in `folders` is on disk.
#[derive(Clone, Default)]
struct FakeStore {
    folders: BTreeMap<String, Meta>,
    damaged: Option<String>,
    open: Option<String>,
}

impl StoreOpener for FakeStore {
    fn open(&mut self, folder: &str) -> Result<Option<Meta>, OpenError> {
        if self.damaged.as_deref() == Some(folder) {
            return Err(OpenError::Damaged("bad magic number".into()));
        }
        self.open = Some(folder.to_owned());
        Ok(self.folders.get(folder).cloned())
    }
    fn close(&mut self) {
        self.open = None;
    }
}

fn meta(position: Position) -> Meta {
    Meta { applied: position.zxid, hash: position.hash, ..Meta::default() }
}

fn options() -> RecoverOptions {
    RecoverOptions {
        server: ServerId(1),
        cluster: None,
        instance: INSTANCE,
        log: LogOptions { segment_bytes: 4 * BLOCK as u64, retention_bytes: 0 },
        tail_cache_bytes: EVERYTHING,
    }
}

fn start(device: &MemoryDevice, store: &mut FakeStore) -> Result<Recovery, RecoverError> {
    recover(Arc::new(device.clone()), &options(), store)
}

fn fresh() -> (MemoryDevice, FakeStore, Recovery) {
    let (device, mut store) = (MemoryDevice::new(), FakeStore::default());
    let recovery = start(&device, &mut store).unwrap();
    (device, store, recovery)
}

/// `n` entries that follow `prev`; the first opens `epoch` if that is new.
fn entries(prev: Position, epoch: u32, n: usize, size: usize) -> Vec<Entry> {
    let mut prev = prev;
    let mut made = Vec::new();
    for _ in 0..n {
        let zxid = if prev.zxid.epoch() == epoch && prev.zxid != Zxid::ZERO {
            Zxid(prev.zxid.0 + 1)
        } else {
            Zxid::new(epoch, 0)
        };
        let fill = (zxid.0 as u8).wrapping_mul(31) | 1;
        let entry = Entry::after(prev.hash, zxid, zxid.0 as i64, Bytes::from(vec![fill; size]));
        prev = end_of(&entry);
        made.push(entry);
    }
    made
}

fn end_of(entry: &Entry) -> Position {
    Position { zxid: entry.zxid, hash: entry.hash }
}

fn promise(epoch: u32) -> Promise {
    Promise { epoch, leader: ServerId(2), instance: 5, start_count: 1 }
}

/// What a log should contain.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    base: Position,
    entries: Vec<Entry>,
    promise: Promise,
    cluster: u64,
    membership: Membership,
    generation: u64,
}

impl Model {
    fn end(&self) -> Position {
        self.entries.last().map_or(self.base, end_of)
    }

    fn perform(&mut self, op: &LogOp) {
        match op {
            LogOp::Append(entries) => self.entries.extend(entries.iter().cloned()),
            LogOp::Truncate { to } => self.entries.retain(|entry| entry.zxid <= to.zxid),
            LogOp::SetPromise(promise) => self.promise = *promise,
            LogOp::SetIdentity(identity) => {
                self.cluster = identity.cluster;
                self.membership = identity.membership;
            }
            LogOp::InstallSnapshot(snapshot) => {
                self.base = snapshot.position;
                self.entries.clear();
                self.generation += 1;
            }
        }
    }

    fn of(recovery: &Recovery) -> Model {
        let entries = recovery.log.reader().read(recovery.log.base().zxid, EVERYTHING).unwrap();
        let model = Model {
            base: recovery.recovered.base,
            entries,
            promise: recovery.recovered.promise,
            cluster: recovery.recovered.identity.cluster,
            membership: recovery.recovered.identity.membership,
            generation: recovery.current.generation,
        };
        assert_eq!(model.end(), recovery.recovered.end);
        model.check_epochs(&recovery.recovered.epochs);
        model
    }

    /// The epoch table against its definition.
    fn check_epochs(&self, epochs: &[Position]) {
        let mut last: BTreeMap<u32, Position> = BTreeMap::new();
        for entry in &self.entries {
            last.insert(entry.zxid.epoch(), end_of(entry));
        }
        let expected: Vec<Position> = std::iter::once(self.base).chain(last.into_values()).collect();
        assert_eq!(epochs, expected);
    }
}

/// A server's disk, store and log, and what they must contain.
struct Machine {
    device: MemoryDevice,
    store: FakeStore,
    recovery: Option<Recovery>,
    model: Model,
    /// What the disk may contain after a cut: every state between the last durable one and the last asked for.
    allowed: Vec<Model>,
    seq: u64,
}

impl Machine {
    fn new() -> Machine {
        let (device, store, recovery) = fresh();
        let model = Model::of(&recovery);
        let mut machine =
            Machine { device, store, recovery: Some(recovery), allowed: vec![model.clone()], model, seq: 0 };
        // Nobody promises or appends before it is a member (P9).
        assert!(machine.act(&Action::Identity));
        machine
    }

    fn log(&mut self) -> &mut super::txn_log::TxnLog {
        &mut self.recovery.as_mut().expect("the machine runs").log
    }

    /// Writes; false if the power went.
    fn write(&mut self, ops: Vec<LogOp>) -> bool {
        self.allowed = vec![self.model.clone()];
        for op in &ops {
            if let LogOp::InstallSnapshot(snapshot) = op {
                // Fetched and verified before the operation is asked for.
                let folder = Current { generation: self.model.generation }.incoming();
                self.store.folders.insert(folder, meta(snapshot.position));
            }
            self.model.perform(op);
            self.allowed.push(self.model.clone());
        }
        let numbered: Vec<(u64, LogOp)> = ops
            .into_iter()
            .map(|op| {
                self.seq += 1;
                (self.seq, op)
            })
            .collect();
        let seq = self.seq;
        match self.log().write(&numbered) {
            Ok(done) => {
                assert_eq!(done, seq);
                assert_eq!(self.log().end(), self.model.end());
                self.allowed = vec![self.model.clone()];
                true
            }
            Err(LogError::Device(DeviceError::PowerOff { .. } | DeviceError::Failed { .. })) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Marks everything up to `zxid` as applied durably and lets the log drop it.
    fn trim(&mut self, upto: usize) -> bool {
        let Some(entry) = self.model.entries.get(upto) else { return true };
        let position = end_of(entry);
        let folder = Current { generation: self.model.generation }.folder();
        self.store.folders.insert(folder, meta(position));
        let before = self.model.clone();
        let result = self.log().trim(position.zxid);
        // Dropping may stop at any segment: any base up to the position will do.
        self.allowed = (0..=upto + 1)
            .map(|n| {
                let mut model = before.clone();
                model.base = n.checked_sub(1).map_or(before.base, |i| end_of(&before.entries[i]));
                model.entries.drain(..n);
                model
            })
            .collect();
        match result {
            Ok(_) => {
                let base = self.log().base();
                self.settle(|model| model.base == base);
                true
            }
            Err(LogError::Device(_)) => false,
            Err(error) => panic!("{error}"),
        }
    }

    fn settle(&mut self, is: impl Fn(&Model) -> bool) {
        self.model = self.allowed.iter().find(|model| is(model)).expect("one of the allowed states").clone();
        self.allowed = vec![self.model.clone()];
    }

    /// The process ends; the disk becomes `device`; the server starts again, and what it finds must be allowed.
    fn restart(&mut self, device: MemoryDevice) {
        self.recovery = None;
        self.device = device;
        let recovery = start(&self.device, &mut self.store).expect("a power cut is no damage");
        let found = Model::of(&recovery);
        assert!(
            self.allowed.contains(&found),
            "found {found:?}\nallowed {:?}\nnotes {:?}",
            self.allowed,
            recovery.notes
        );
        self.model = found.clone();
        self.allowed = vec![found];
        self.recovery = Some(recovery);
    }

    fn power_cut(&mut self, seed: u64) {
        let device = self.device.after_power_cut_seeded(seed);
        self.restart(device);
    }
}

/// One step of a workload.
#[derive(Clone, Debug)]
enum Action {
    Append {
        n: usize,
        size: usize,
        new_epoch: bool,
    },
    AppendAndPromise {
        n: usize,
    },
    Truncate {
        back: usize,
        then: usize,
    },
    Promise,
    Identity,
    Install,
    Trim {
        keep: usize,
    },
    Seal,
    Prepare,
    PowerCut {
        seed: u64,
    },
    Kill,
    /// Power goes at the given operation of whatever comes next.
    CutAfter {
        operations: u64,
        seed: u64,
    },
    /// A write or sync fails; the process ends, the machine goes on.
    FailAfter {
        operations: u64,
    },
}

impl Machine {
    fn act(&mut self, action: &Action) -> bool {
        let end = self.model.end();
        let epoch = end.zxid.epoch().max(1);
        match action {
            Action::Append { n, size, new_epoch } => {
                let epoch = if *new_epoch { epoch + 1 } else { epoch };
                self.write(vec![LogOp::Append(entries(end, epoch, *n, *size))])
            }
            Action::AppendAndPromise { n } => {
                let first = entries(end, epoch, *n, 100);
                let then = entries(end_of(first.last().unwrap()), epoch, *n, 100);
                let promise = promise(self.model.promise.epoch + 1);
                self.write(vec![LogOp::Append(first), LogOp::SetPromise(promise), LogOp::Append(then)])
            }
            Action::Truncate { back, then } => {
                let keep = self.model.entries.len().saturating_sub(*back);
                // Never below what is applied (P13).
                let applied = self.store.folders.get(&Current { generation: self.model.generation }.folder());
                let applied = applied.map_or(Zxid::ZERO, |meta| meta.applied);
                let to = keep.checked_sub(1).map_or(self.model.base, |i| end_of(&self.model.entries[i]));
                if to.zxid < applied {
                    return true;
                }
                let mut ops = vec![LogOp::Truncate { to }];
                if *then > 0 {
                    ops.push(LogOp::Append(entries(to, epoch + 1, *then, 50)));
                }
                self.write(ops)
            }
            Action::Promise => {
                let promise = promise(self.model.promise.epoch + 1);
                self.write(vec![LogOp::SetPromise(promise)])
            }
            Action::Identity => {
                let identity = self.log().record().identity;
                let identity = Identity { cluster: self.model.cluster + 1, membership: Membership::Member, ..identity };
                self.write(vec![LogOp::SetIdentity(identity)])
            }
            Action::Install => {
                let position = Position { zxid: Zxid::new(epoch + 1, 7), hash: end.hash ^ 0x55 };
                let snapshot = SnapshotMeta { id: 1, position, stamp_ms: 5, bytes: 10 };
                self.write(vec![LogOp::InstallSnapshot(snapshot)])
            }
            Action::Trim { keep } => match self.model.entries.len().checked_sub(keep + 1) {
                Some(upto) => self.trim(upto),
                None => true,
            },
            Action::Seal => tolerate(self.log().seal_if_idle().map(|_| ())),
            Action::Prepare => tolerate(self.log().prepare_next()),
            Action::PowerCut { seed } => {
                self.power_cut(*seed);
                true
            }
            Action::Kill => {
                self.restart(self.device.clone());
                true
            }
            Action::CutAfter { operations, .. } => {
                self.device.fail_after(*operations, Fault::PowerCut);
                true
            }
            Action::FailAfter { operations } => {
                self.device.fail_after(*operations, Fault::Failure);
                true
            }
        }
    }
}

fn tolerate(result: Result<(), LogError>) -> bool {
    match result {
        Ok(()) => true,
        Err(LogError::Device(_)) => false,
        Err(error) => panic!("{error}"),
    }
}

/// A workload that meets every kind of operation, and segment changes.
fn script() -> Vec<Action> {
    vec![
        Action::Identity,
        Action::Promise,
        Action::Append { n: 3, size: 100, new_epoch: false },
        Action::Prepare,
        Action::AppendAndPromise { n: 2 },
        Action::Append { n: 2, size: 3000, new_epoch: true },
        Action::Seal,
        Action::Truncate { back: 3, then: 2 },
        Action::Append { n: 1, size: 20_000, new_epoch: false },
        Action::Truncate { back: 1, then: 0 },
        Action::Promise,
        Action::Trim { keep: 1 },
        Action::Append { n: 4, size: 500, new_epoch: true },
        Action::Install,
        Action::Append { n: 3, size: 100, new_epoch: true },
        Action::Identity,
        Action::Trim { keep: 0 },
    ]
}

#[test]
fn power_cut_at_every_operation_leaves_the_state_before_or_after_the_step() {
    let mut whole = Machine::new();
    let before = whole.device.operations();
    for action in script() {
        assert!(whole.act(&action));
    }
    let operations = whole.device.operations() - before;
    assert!(operations > 60, "the script meets many operations: {operations}");
    for cut in 0..operations {
        for seed in 0..8 {
            let mut machine = Machine::new();
            machine.device.fail_after(cut, Fault::PowerCut);
            for action in script() {
                if !machine.act(&action) {
                    break;
                }
            }
            assert!(machine.device.is_off(), "operation {cut} is part of the script");
            machine.power_cut(seed * 7919 + cut);
            // And it goes on from there.
            assert!(machine.act(&Action::Append { n: 2, size: 10, new_epoch: true }));
            machine.power_cut(seed);
        }
    }
}

#[test]
fn power_cut_at_every_operation_of_recovery_itself_loses_nothing() {
    for cut_before in [7, 19, 33, 47, 61, 66, 71] {
        for cut in 0..60 {
            let mut machine = Machine::new();
            machine.device.fail_after(cut_before, Fault::PowerCut);
            for action in script() {
                if !machine.act(&action) {
                    break;
                }
            }
            machine.recovery = None;
            let device = machine.device.after_power_cut_seeded(cut_before * 31 + cut);
            device.fail_after(cut, Fault::PowerCut);
            let mut store = machine.store.clone();
            let first = start(&device, &mut store).map(|recovery| Model::of(&recovery));
            if let Ok(found) = &first {
                // What a server has once said after a start must stay so.
                machine.allowed = vec![found.clone()];
            }
            machine.device = device;
            machine.power_cut(cut);
            if first.is_ok() {
                break;
            }
        }
    }
}

#[test]
fn failed_sync_is_final_and_what_the_next_start_reports_survives_a_power_cut() {
    for operations in 0..12 {
        let mut machine = Machine::new();
        assert!(machine.act(&Action::Append { n: 2, size: 100, new_epoch: false }));
        machine.device.fail_after(operations, Fault::Failure);
        let mut failed = false;
        for _ in 0..8 {
            failed |= !machine.act(&Action::Append { n: 1, size: 5000, new_epoch: false });
            if failed {
                break;
            }
        }
        assert!(failed);
        assert_eq!(machine.log().write(&[]), Err(LogError::Failed));
        assert_eq!(machine.log().trim(Zxid::MAX), Err(LogError::Failed));
        // The machine runs on: its cache may show what is not on disk.
        machine.restart(machine.device.clone());
        let device = machine.device.after_power_cut(SECTOR, &mut |_| Fate::Lost);
        machine.restart(device);
    }
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (1..6usize, prop_oneof![Just(0usize), 1..200usize, 3000..9000usize], prop::bool::weighted(0.2))
            .prop_map(|(n, size, new_epoch)| Action::Append { n, size, new_epoch }),
        1 => (1..4usize).prop_map(|n| Action::AppendAndPromise { n }),
        2 => (0..6usize, 0..3usize).prop_map(|(back, then)| Action::Truncate { back, then }),
        1 => Just(Action::Promise),
        1 => Just(Action::Identity),
        1 => Just(Action::Install),
        2 => (0..5usize).prop_map(|keep| Action::Trim { keep }),
        1 => Just(Action::Seal),
        1 => Just(Action::Prepare),
        1 => any::<u64>().prop_map(|seed| Action::PowerCut { seed }),
        1 => Just(Action::Kill),
        2 => (0..20u64, any::<u64>()).prop_map(|(operations, seed)| Action::CutAfter { operations, seed }),
        1 => (0..20u64).prop_map(|operations| Action::FailAfter { operations }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_operations_and_crashes_matches_the_model(actions in prop::collection::vec(action(), 1..40)) {
        let mut machine = Machine::new();
        let mut cut_seed = 1;
        for action in &actions {
            if let Action::CutAfter { seed, .. } = action {
                cut_seed = *seed;
            }
            if matches!(action, Action::PowerCut { .. } | Action::Kill) {
                // The fault was meant for the log, not for its recovery.
                machine.device.heal();
            }
            if !machine.act(action) {
                if machine.device.is_off() {
                    machine.power_cut(cut_seed);
                } else {
                    machine.restart(machine.device.clone());
                }
            }
        }
        machine.device.heal();
        machine.power_cut(cut_seed);
    }
}

/// Writes of [`small_log`] after which the last segment holds one frame of three blocks, or two of one.
const SMALL_LOGS: [u64; 2] = [8, 7];

/// A log of several segments, written frame by frame; returns the end after each write.
fn small_log(writes: u64) -> (MemoryDevice, Vec<Position>) {
    let (device, _, recovery) = fresh();
    let mut log = recovery.log;
    let mut ends = vec![log.end()];
    for i in 0..writes {
        let size = [10, 5000, 700][i as usize % 3];
        log.write(&[(i, LogOp::Append(entries(log.end(), 1, 2, size)))]).unwrap();
        ends.push(log.end());
    }
    assert!(segments(&device).len() >= 3);
    (device, ends)
}

fn segments(device: &MemoryDevice) -> Vec<String> {
    device.files().into_iter().filter(|path| path.ends_with(".seg")).collect()
}

const OWNER: Owner = Owner { server: ServerId(1), instance: INSTANCE };

/// Frames of a segment file: where each begins and ends, without padding.
fn frames(device: &MemoryDevice, path: &str) -> Vec<(usize, usize, FrameHead)> {
    let bytes = device.content(path).unwrap();
    let mut found = Vec::new();
    let mut at = BLOCK;
    while let Some(head) = bytes.get(at..).and_then(|rest| FrameHead::decode(INSTANCE, rest)) {
        found.push((at, at + head.len(), head));
        at += head.len().next_multiple_of(BLOCK);
    }
    found
}

#[test]
fn every_byte_prefix_of_the_last_segment_ends_with_its_last_whole_frame() {
    SMALL_LOGS.into_iter().for_each(every_byte_prefix_of_the_last_segment);
}

fn every_byte_prefix_of_the_last_segment(writes: u64) {
    let (device, _) = small_log(writes);
    let last = segments(&device).pop().unwrap();
    let frames = frames(&device, &last);
    let whole = device.content(&last).unwrap();
    let base = frames[0].2.prev;
    let used = frames.last().unwrap().1;
    // Bytes are cut from the end, one by one, and replaced by the zeros of the prepared segment.
    let mut changed = whole.len();
    for prefix in (0..used).rev() {
        device.rot(&last, prefix as u64, |bytes| bytes.fill(0), changed - prefix);
        changed = prefix + 1;
        let verdict = scan(&device, OWNER, Position::default());
        if prefix < BLOCK {
            let damaged = matches!(verdict, Err(ScanError::Damaged(_)));
            assert!(damaged, "prefix {prefix}: the segment before says that this one was begun");
            continue;
        }
        let scanned = verdict.expect("a prefix is a torn write, not damage");
        let expected = frames.iter().rev().find(|(_, end, _)| *end <= prefix).map_or(base, |(_, _, head)| head.last);
        assert_eq!(scanned.index.end, expected, "prefix {prefix}");
    }
}

#[test]
fn every_byte_prefix_of_an_older_segment_is_damage_unless_it_loses_only_the_mark_at_its_end() {
    let (device, ends) = small_log(8);
    let first = segments(&device).remove(0);
    let mut frames = frames(&device, &first);
    let (_, used, head) = frames.pop().unwrap();
    assert!(head.followed, "it says that the next one was begun");
    let (_, data_end, _) = frames.pop().unwrap();
    let mut changed = device.content(&first).unwrap().len();
    for prefix in (0..used).rev() {
        device.rot(&first, prefix as u64, |bytes| bytes.fill(0), changed - prefix);
        changed = prefix + 1;
        let verdict = scan(&device, OWNER, Position::default());
        if prefix >= data_end {
            // The next one is there, and names the end of this one: nothing is missing.
            assert_eq!(verdict.unwrap().index.end, *ends.last().unwrap(), "prefix {prefix}");
            continue;
        }
        assert!(matches!(verdict, Err(ScanError::Damaged(_))), "prefix {prefix}");
    }
}

/// Tries a change of each unit of each segment and judges the verdict.
fn every_unit(unit: usize, change: impl Fn(&mut [u8])) {
    for writes in SMALL_LOGS {
        every_unit_of(writes, unit, &change);
    }
}

fn every_unit_of(writes: u64, unit: usize, change: &impl Fn(&mut [u8])) {
    let (device, ends) = small_log(writes);
    let all = segments(&device);
    let (end, before_last) = (*ends.last().unwrap(), ends[ends.len() - 2]);
    for (number, path) in all.iter().enumerate() {
        let content = device.content(path).unwrap();
        let frames = frames(&device, path);
        let last_frame = frames.last().unwrap().0;
        for at in (0..content.len()).step_by(unit) {
            let device = device.fork();
            device.rot(path, at as u64, change, unit);
            let touched = device.content(path).unwrap() != content;
            let hit = at < BLOCK || frames.iter().any(|(from, to, _)| at < *to && at + unit > *from);
            let verdict = scan(&device, OWNER, Position::default());
            let mark_only = number + 1 < all.len() && at >= last_frame;
            if !touched || !hit || mark_only {
                // Padding and the zeros behind the last frame say nothing; that the next segment was begun is seen.
                let scanned = verdict.unwrap_or_else(|e| panic!("unit {at} of {path}: {e}"));
                assert_eq!(scanned.index.end, end, "unit {at} of {path}");
            } else if number + 1 == all.len() && at >= last_frame {
                // The last frame may have been in flight: the one ambiguous case.
                let scanned = verdict.expect("a torn frame is no damage");
                assert_eq!(scanned.index.end, before_last, "unit {at} of {path}");
                let covers_all = at <= last_frame && at + unit >= frames.last().unwrap().1;
                assert!(scanned.torn_at.is_some() || covers_all, "unit {at} of {path}");
            } else {
                assert!(matches!(verdict, Err(ScanError::Damaged(_))), "unit {at} of {path}");
            }
        }
    }
}

#[test]
fn every_lost_sector_is_a_torn_last_frame_or_damage() {
    every_unit(512, |bytes| bytes.fill(0));
    every_unit(4096, |bytes| bytes.fill(0));
}

#[test]
fn every_rotten_sector_is_a_torn_last_frame_or_damage() {
    every_unit(512, |bytes| {
        if bytes.iter().any(|b| *b != 0) {
            bytes[7] ^= 1;
            bytes[100] ^= 0x80;
        }
    });
}

#[test]
fn sealed_last_frame_that_rots_is_damage_not_a_torn_write() {
    let (device, _, recovery) = fresh();
    let mut log = recovery.log;
    log.write(&[(1, LogOp::Append(entries(log.end(), 1, 1, 10)))]).unwrap();
    assert!(log.seal_if_idle().unwrap());
    assert!(!log.seal_if_idle().unwrap(), "one seal is enough");
    let path = segments(&device).pop().unwrap();
    device.rot(&path, BLOCK as u64 + 110, |b| b[0] ^= 1, 1);
    assert!(matches!(scan(&device, OWNER, Position::default()), Err(ScanError::Damaged(_))));
}

#[test]
fn last_segment_that_is_lost_is_damage_though_the_one_before_it_is_whole() {
    let (device, _, recovery) = fresh();
    let mut log = recovery.log;
    for seq in 1.. {
        let begins = if seq == 1 { 0 } else { log.end().zxid.counter() + 1 };
        let entry = Entry::after(log.end().hash, Zxid::new(1, begins), 0, vec![7; BLOCK].into());
        log.write(&[(seq, LogOp::Append(vec![entry]))]).unwrap();
        if segments(&device).len() == 3 {
            break;
        }
    }
    drop(log);
    let sound = device.fork();
    let last = segments(&device).pop().unwrap();
    device.remove(&last).unwrap();
    assert!(matches!(scan(&device, OWNER, Position::default()), Err(ScanError::Damaged(_))));
    // So is one whose header is unreadable and that holds no frame yet.
    sound.rot(&last, 0, |bytes| bytes.fill(0), 3 * BLOCK);
    assert!(matches!(scan(&sound, OWNER, Position::default()), Err(ScanError::Damaged(_))));
}

#[test]
fn payload_that_looks_like_a_frame_is_not_taken_for_one() {
    let (device, _, recovery) = fresh();
    let mut log = recovery.log;
    // A client guesses everything but the folder's random number.
    let inner = entries(log.end(), 1, 1, 10);
    let mut forged = vec![0; FRAME_HEAD];
    put_entry(&mut forged, &inner[0]);
    let head = FrameHead {
        body_len: forged.len() - FRAME_HEAD,
        segment: 1,
        number: 9,
        last: end_of(&inner[0]),
        first: inner[0].zxid,
        count: 1,
        ..FrameHead::default()
    };
    head.seal_into(INSTANCE + 1, &mut forged);
    let mut payload = vec![1; 2 * BLOCK - FRAME_HEAD - 20 - BLOCK];
    payload.extend_from_slice(&forged);
    let entry = Entry::after(0, Zxid::new(1, 0), 0, payload.into());
    log.write(&[(1, LogOp::Append(vec![entry]))]).unwrap();
    let path = segments(&device).pop().unwrap();
    assert_eq!(&device.content(&path).unwrap()[2 * BLOCK..2 * BLOCK + 4], &forged[..4], "it lies on a block");
    device.rot(&path, BLOCK as u64 + 50, |b| b[0] ^= 1, 1);
    let scanned = scan(&device, OWNER, Position::default()).expect("the torn frame is the last");
    assert_eq!(scanned.index.end, Position::default());
}

#[test]
fn operations_of_one_call_that_fit_together_are_one_write_and_one_sync() {
    let (device, _, recovery) = fresh();
    let mut log = recovery.log;
    let first = entries(log.end(), 1, 2, 10);
    let second = entries(end_of(&first[1]), 1, 2, 10);
    let before = device.operations();
    let done = log
        .write(&[(4, LogOp::Append(first)), (5, LogOp::SetPromise(promise(3))), (6, LogOp::Append(second))])
        .unwrap();
    assert_eq!(done, 6);
    assert_eq!(device.operations() - before, 2);
    assert_eq!(log.promise(), promise(3));
    assert_eq!(log.write(&[]).unwrap(), 6);
}

#[test]
fn entry_that_does_not_follow_and_promise_that_falls_are_refused() {
    let (_, _, recovery) = fresh();
    let mut log = recovery.log;
    log.write(&[(1, LogOp::SetPromise(promise(3)))]).unwrap();
    let fell = log.write(&[(2, LogOp::SetPromise(promise(2)))]);
    assert_eq!(fell, Err(LogError::PromiseFell { offered: 2, made: 3 }));

    let (_, _, recovery) = fresh();
    let mut log = recovery.log;
    let made = entries(log.end(), 1, 3, 10);
    let gap = log.write(&[(1, LogOp::Append(vec![made[1].clone()]))]);
    assert!(matches!(gap, Err(LogError::DoesNotFollow { .. })));

    let (_, _, recovery) = fresh();
    let mut log = recovery.log;
    log.write(&[(1, LogOp::Append(made.clone()))]).unwrap();
    let to = Position { zxid: made[1].zxid, hash: 1 };
    assert!(matches!(log.write(&[(2, LogOp::Truncate { to })]), Err(LogError::BadCut { .. })));
}

#[test]
fn reader_gives_whole_runs_and_says_when_the_place_is_gone() {
    let (_, _, recovery) = fresh();
    let mut log = recovery.log;
    let made = entries(log.end(), 1, 20, 1000);
    for (i, entry) in made.iter().enumerate() {
        log.write(&[(i as u64, LogOp::Append(vec![entry.clone()]))]).unwrap();
    }
    let reader = log.reader();
    assert_eq!(reader.read(Zxid::ZERO, EVERYTHING).unwrap(), made);
    assert_eq!(reader.read(made[4].zxid, 1).unwrap(), made[5..6], "at least one");
    assert_eq!(reader.read(made[4].zxid, 3000).unwrap(), made[5..8]);
    assert_eq!(reader.read(made[19].zxid, 100).unwrap(), []);
    assert_eq!(reader.read_tail(made[17].zxid, 0).unwrap(), made[18..]);
    assert_eq!(reader.read_tail(made[17].zxid, 5 * made[0].weight()).unwrap(), made[15..]);
    let base = log.trim(made[10].zxid).unwrap().expect("whole segments lie below");
    assert!(base.zxid <= made[10].zxid);
    assert_eq!(reader.read(Zxid::ZERO, EVERYTHING).unwrap(), [], "gone");
    assert_eq!(reader.read(base.zxid, EVERYTHING).unwrap().last(), made.last());
    log.write(&[(99, LogOp::Truncate { to: end_of(&made[12]) })]).unwrap();
    assert_eq!(reader.read(made[11].zxid, EVERYTHING).unwrap(), made[12..13]);
}

#[test]
fn trimming_keeps_the_retention_and_the_promise() {
    let (device, mut store, recovery) = fresh();
    let mut log = recovery.log;
    log.write(&[(0, LogOp::SetPromise(promise(9)))]).unwrap();
    log.set_retention(6 * BLOCK as u64);
    let made = entries(log.end(), 1, 30, 1000);
    for (i, entry) in made.iter().enumerate() {
        log.write(&[(i as u64, LogOp::Append(vec![entry.clone()]))]).unwrap();
    }
    let applied = end_of(&made[28]);
    store.folders.insert("state-1".into(), meta(applied));
    let base = log.trim(applied.zxid).unwrap().unwrap();
    assert!(log.bytes() >= 6 * BLOCK as u64);
    assert!(log.bytes() < 12 * BLOCK as u64);
    assert_eq!(log.trim(applied.zxid).unwrap(), None);
    log.set_retention(0);
    assert!(log.trim(applied.zxid).unwrap().unwrap().zxid > base.zxid);
    drop(log);
    let recovery = start(&device.after_power_cut_seeded(3), &mut store).unwrap();
    assert_eq!(recovery.recovered.promise, promise(9));
    assert_eq!(recovery.recovered.end, end_of(&made[29]));
    assert_eq!(recovery.recovered.applied, applied);
}

#[test]
fn first_start_makes_an_empty_identity_and_every_start_counts() {
    let (device, mut store, recovery) = fresh();
    let identity = recovery.recovered.identity;
    assert_eq!(identity.membership, Membership::Empty);
    assert_eq!((identity.server, identity.instance, identity.start_count), (ServerId(1), INSTANCE, 1));
    assert_eq!(recovery.current.folder(), "state-1");
    drop(recovery);
    let recovery = start(&device.after_power_cut(SECTOR, &mut |_| Fate::Lost), &mut store).unwrap();
    assert_eq!(recovery.recovered.identity, Identity { start_count: 2, ..identity });
}

#[test]
fn folder_of_another_server_or_cluster_is_refused_and_left_alone() {
    let mut machine = Machine::new();
    machine.recovery = None;
    let files = machine.device.files();
    let device: Arc<dyn LogDevice> = Arc::new(machine.device.clone());
    let other = RecoverOptions { server: ServerId(2), ..options() };
    let error = recover(device.clone(), &other, &mut machine.store).err().unwrap();
    assert_eq!(error, RecoverError::OtherServer { found: ServerId(1), expected: ServerId(2) });
    let other = RecoverOptions { cluster: Some(77), ..options() };
    let error = recover(device, &other, &mut machine.store).err().unwrap();
    assert_eq!(error, RecoverError::OtherCluster { found: 1, expected: 77 });
    assert_eq!(machine.device.files(), files);
}

/// A member with entries in several segments, a promise, and a store that has applied some of them.
fn member() -> (MemoryDevice, FakeStore, Vec<Entry>) {
    let mut machine = Machine::new();
    assert!(machine.write(vec![LogOp::SetPromise(promise(4))]));
    let made = entries(Position::default(), 1, 20, 1000);
    for entry in &made {
        assert!(machine.write(vec![LogOp::Append(vec![entry.clone()])]));
    }
    machine.store.folders.insert("state-1".into(), meta(end_of(&made[9])));
    (machine.device.fork(), machine.store, made)
}

fn damaged_files(device: &MemoryDevice) -> usize {
    device.files().iter().filter(|path| path.starts_with("damaged-")).count()
}

#[test]
fn damage_above_the_applied_entry_makes_an_amnesiac_that_keeps_store_promise_and_old_files() {
    let (device, mut store, made) = member();
    let all = segments(&device);
    let late = &all[all.len() - 2];
    device.rot(late, BLOCK as u64 + 300, |b| b[0] ^= 1, 1);
    let recovery = start(&device, &mut store).unwrap();
    let recovered = &recovery.recovered;
    assert_eq!(recovered.identity.membership, Membership::Amnesiac);
    assert_eq!(recovered.identity.cluster, 1);
    assert_eq!(recovered.promise, promise(4));
    assert_eq!((recovered.base, recovered.end), (end_of(&made[9]), end_of(&made[9])));
    assert_eq!(recovered.applied, end_of(&made[9]));
    assert_eq!(recovered.tail, []);
    assert_eq!(damaged_files(&device), all.len());
    assert!(recovery.notes.iter().any(|note| note.contains("amnesiac") && note.contains("damaged-1")));
    drop(recovery);
    let again = start(&device.after_power_cut_seeded(1), &mut store).unwrap();
    assert_eq!(again.recovered.identity.membership, Membership::Amnesiac, "it does not heal by itself");
    assert_eq!(again.notes, Vec::<String>::new());
}

#[test]
fn damage_below_the_applied_entry_costs_the_old_segments_and_not_the_vote() {
    let (device, mut store, made) = member();
    let first = segments(&device).remove(0);
    device.rot(&first, BLOCK as u64 + 50, |b| b[0] ^= 1, 1);
    let recovery = start(&device, &mut store).unwrap();
    assert_eq!(recovery.recovered.identity.membership, Membership::Member);
    assert_eq!(recovery.recovered.promise, promise(4));
    assert_eq!(recovery.recovered.end, end_of(&made[19]));
    assert!(recovery.recovered.base.zxid > Zxid::ZERO);
    assert_eq!(damaged_files(&device), 1);
    assert_eq!(recovery.recovered.tail.last(), made.last());
}

#[test]
fn power_cut_while_a_damaged_log_is_set_aside_never_gives_a_voter() {
    for cut in 0..40 {
        let (device, mut store, made) = member();
        let all = segments(&device);
        device.rot(&all[all.len() - 2], BLOCK as u64 + 300, |b| b[0] ^= 1, 1);
        device.fail_after(cut, Fault::PowerCut);
        let done = start(&device, &mut store).is_ok();
        let recovery = start(&device.after_power_cut_seeded(cut), &mut store).unwrap();
        assert_eq!(recovery.recovered.identity.membership, Membership::Amnesiac, "cut {cut}");
        assert_eq!(recovery.recovered.promise, promise(4), "cut {cut}");
        assert_eq!(recovery.recovered.end, end_of(&made[9]), "cut {cut}");
        if done {
            assert!(cut > 10);
            return;
        }
    }
    panic!("recovery takes fewer operations");
}

#[test]
fn lost_log_is_damage_of_a_member() {
    let (device, mut store, made) = member();
    for path in segments(&device) {
        device.remove(&path).unwrap();
    }
    let recovery = start(&device, &mut store).unwrap();
    assert_eq!(recovery.recovered.identity.membership, Membership::Amnesiac);
    assert_eq!(recovery.recovered.end, end_of(&made[9]));
}

#[test]
fn last_segments_that_vanish_are_damage_when_the_store_knows_more() {
    let (device, mut store, made) = member();
    store.folders.insert("state-1".into(), meta(end_of(&made[19])));
    device.remove(&segments(&device).pop().unwrap()).unwrap();
    let recovery = start(&device, &mut store).unwrap();
    assert_eq!(recovery.recovered.identity.membership, Membership::Amnesiac);
    assert_eq!(recovery.recovered.end, end_of(&made[19]));
}

#[test]
fn last_segment_that_vanishes_is_damage_though_what_is_left_looks_whole() {
    let (device, mut store, made) = member();
    let all = segments(&device);
    device.remove(&all[all.len() - 1]).unwrap();
    let recovery = start(&device, &mut store).unwrap();
    assert_eq!(recovery.recovered.identity.membership, Membership::Amnesiac);
    assert_eq!(recovery.recovered.end, end_of(&made[9]), "the log begins anew after what the store contains");
    drop(recovery);
    let again = start(&device, &mut store).unwrap();
    assert_eq!(again.notes, Vec::<String>::new(), "the new log is not measured by the old one");
}

#[test]
fn last_segment_that_became_shorter_is_damage_wherever_it_was_cut() {
    let (device, _, _) = member();
    let last = segments(&device).pop().unwrap();
    let whole = device.content(&last).unwrap();
    for blocks in 0..whole.len() / BLOCK {
        let (device, mut store, _) = member();
        device.remove(&last).unwrap();
        let file = device.create(&last).unwrap();
        file.write(0, &whole[..blocks * BLOCK]).unwrap();
        let recovery = start(&device, &mut store).unwrap();
        assert_eq!(recovery.recovered.identity.membership, Membership::Amnesiac, "cut to {blocks} blocks");
    }
}

#[test]
fn store_of_another_history_and_damaged_store_are_set_aside_with_the_log() {
    for kind in 0..2 {
        let (device, mut store, made) = member();
        device.create("state-1/000001.sst").unwrap();
        if kind == 0 {
            store.damaged = Some("state-1".into());
        } else {
            let position = Position { hash: 1, ..end_of(&made[9]) };
            store.folders.insert("state-1".into(), meta(position));
        }
        let recovery = start(&device, &mut store).unwrap();
        assert_eq!(recovery.recovered.identity.membership, Membership::Amnesiac);
        assert_eq!(recovery.recovered.promise, promise(4));
        assert_eq!(recovery.recovered.end, Position::default());
        assert_eq!(recovery.current.folder(), "state-2", "no name is used twice");
        assert!(device.files().contains(&"damaged-1/state-1/000001.sst".to_owned()));
    }
}

#[test]
fn lost_or_rotten_identity_gives_a_new_disk_without_a_vote() {
    for kind in 0..2 {
        let (device, mut store, _) = member();
        if kind == 0 {
            device.remove("identity").unwrap();
        } else {
            device.rot("identity", 0, |bytes| bytes.fill(0xee), 2 * BLOCK);
        }
        let options = RecoverOptions { instance: 4242, ..options() };
        let recovery = recover(Arc::new(device.clone()), &options, &mut store).unwrap();
        let identity = recovery.recovered.identity;
        assert_eq!((identity.membership, identity.instance), (Membership::Amnesiac, 4242));
        assert_eq!(recovery.recovered.promise, promise(4));
        assert_eq!(recovery.recovered.end, Position::default());
        assert_eq!(recovery.current.folder(), "state-2");
    }
}

#[test]
fn lost_identity_of_another_server_is_refused() {
    let (device, mut store, _) = member();
    device.remove("identity").unwrap();
    let options = RecoverOptions { server: ServerId(9), instance: 4242, ..options() };
    let error = recover(Arc::new(device.clone()), &options, &mut store).err().unwrap();
    assert_eq!(error, RecoverError::OtherServer { found: ServerId(1), expected: ServerId(9) });
    assert_eq!(damaged_files(&device), 0);
}

#[test]
fn old_identity_over_a_used_log_does_not_vote() {
    let (device, mut store, _) = member();
    let Found::Valid(record) = IdentityRecord::read(&device).unwrap() else { panic!("it is readable") };
    let identity = Identity { membership: Membership::Empty, cluster: 0, ..record.identity };
    IdentityRecord { identity, ..record }.write(&device).unwrap();
    let recovery = start(&device, &mut store).unwrap();
    assert_eq!(recovery.recovered.identity.membership, Membership::Amnesiac);
    assert_eq!(recovery.log.record().identity.membership, Membership::Amnesiac);
}

#[test]
fn condemned_folder_starts_amnesiac_and_empty() {
    let (device, mut store, _) = member();
    mark_damaged(&device).unwrap();
    let recovery = start(&device.after_power_cut_seeded(5), &mut store).unwrap();
    assert_eq!(recovery.recovered.identity.membership, Membership::Amnesiac);
    assert_eq!(recovery.recovered.promise, promise(4));
    assert_eq!(recovery.recovered.end, Position::default());
    assert_eq!(recovery.log.record().condemned, Condemned::Nothing);
}

#[test]
fn store_found_damaged_while_the_server_ran_is_set_aside_at_the_next_start() {
    let (whole, whole_store, _) = member();
    for cut in 0..50 {
        let (device, mut store) = (whole.fork(), whole_store.clone());
        device.create(STORE_DAMAGED).unwrap().sync().unwrap();
        device.sync_dir("").unwrap();
        device.fail_after(cut, Fault::PowerCut);
        let done = start(&device, &mut store).is_ok();
        let device = device.after_power_cut_seeded(cut);
        let recovery = start(&device, &mut store).unwrap();
        assert_eq!(recovery.recovered.identity.membership, Membership::Amnesiac, "cut {cut}");
        assert_eq!(recovery.recovered.promise, promise(4), "cut {cut}");
        assert_eq!(recovery.recovered.end, Position::default(), "cut {cut}");
        assert!(!device.files().contains(&STORE_DAMAGED.to_owned()));
        if done {
            assert!(cut > 10);
            return;
        }
    }
    panic!("recovery takes fewer operations");
}

/// A process that dies leaves renames behind that no power cut has judged yet.
#[test]
fn what_a_start_that_died_set_aside_is_settled_before_anything_new_is_made() {
    let (whole, whole_store, _) = member();
    for step in 0..50 {
        let (device, mut store) = (whole.fork(), whole_store.clone());
        device.create(STORE_DAMAGED).unwrap().sync().unwrap();
        device.sync_dir("").unwrap();
        device.fail_after(step, Fault::Failure);
        if start(&device, &mut store).is_ok() {
            assert!(step > 10);
            return;
        }
        start(&device, &mut store).unwrap();
        for kept in [true, false] {
            let (device, mut store) = (device.fork(), store.clone());
            let device = device.after_power_cut(SECTOR, &mut |_| if kept { Fate::Kept } else { Fate::Lost });
            let again = start(&device, &mut store).unwrap();
            assert_eq!(again.notes, Vec::<String>::new(), "step {step}, kept {kept}");
        }
    }
    panic!("recovery takes fewer operations");
}

#[test]
fn accepting_data_loss_keeps_the_log_under_a_new_cluster() {
    let (device, mut store, made) = member();
    assert_eq!(accept_data_loss(&device, ServerId(1), 99).unwrap(), end_of(&made[19]));
    let recovery = start(&device, &mut store).unwrap();
    assert_eq!(recovery.recovered.identity.membership, Membership::Member);
    assert_eq!(recovery.recovered.identity.cluster, 99);
    assert_eq!(recovery.recovered.end, end_of(&made[19]));
    assert!(recovery.recovered.promise.epoch >= 4);
    let (empty, _, _) = fresh();
    assert!(matches!(accept_data_loss(&empty, ServerId(1), 99), Err(RecoverError::NothingToRecover(_))));
}

#[test]
fn segment_of_another_disk_is_refused() {
    let (device, mut store, _) = member();
    let other = MemoryDevice::new();
    let options = RecoverOptions { instance: 555, ..options() };
    drop(recover(Arc::new(other.clone()), &options, &mut FakeStore::default()).unwrap());
    let bytes = other.content(&segments(&other)[0]).unwrap();
    let path = segments(&device).pop().unwrap();
    device.rot(&path, 0, |b| b.copy_from_slice(&bytes[..BLOCK]), BLOCK);
    // Its name and its header must agree before the header is believed.
    let number = segments(&device).len();
    assert!(number > 1);
    let verdict = start(&device, &mut store);
    assert!(verdict.is_ok(), "a foreign number makes the header unreadable, not foreign");
    let first = segments(&other).remove(0);
    let (device, mut store, _) = member();
    device.remove(&segments(&device)[0]).unwrap();
    let file = device.create(&first).unwrap();
    file.write(0, &bytes).unwrap();
    assert!(matches!(
        start(&device, &mut store).err().unwrap(),
        RecoverError::Scan(ScanError::Foreign { instance: 555, .. })
    ));
}
