//! The hunt: each bug of the zoo ([`corral_core::zoo`]) is planted in turn, and seeds run until one of them breaks an
//! invariant. What the simulator cannot find, it would not find in the program either.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use corral_core::zoo::{Switch, with};

use crate::simulate;
use crate::trace::Verbosity;

/// Every switch must be found by so many seeds, wherever one begins.
pub const SEEDS_MAX: u64 = 200;

/// A planted bug that was found.
#[derive(Clone, Debug)]
pub struct Catch {
    /// The seed that did.
    pub seed: u64,
    /// How many it took, this one included.
    pub seeds: u64,
    /// What did not hold.
    pub invariant: &'static str,
    /// What was seen.
    pub text: String,
}

/// What the hunt for one switch brought.
#[derive(Clone, Debug)]
pub struct Hunt {
    /// The switch.
    pub switch: Switch,
    /// For each range of seeds: what was found in it. Range r begins at seed 1 + r * [`SEEDS_MAX`].
    pub ranges: Vec<Option<Catch>>,
}

impl Hunt {
    /// Seeds it took in the median range: the middle one of an odd number of ranges, the larger of the two in the middle of
    /// an even one. `None`: the median range found nothing.
    pub fn median(&self) -> Option<u64> {
        let mut seeds: Vec<u64> = self.ranges.iter().map(|c| c.as_ref().map_or(u64::MAX, |c| c.seeds)).collect();
        seeds.sort_unstable();
        seeds.get(seeds.len() / 2).copied().filter(|n| *n != u64::MAX)
    }

    /// Catches by an invariant that is not [`found_by`] for this switch.
    pub fn unexpected(&self) -> impl Iterator<Item = &Catch> {
        self.ranges.iter().flatten().filter(|catch| !found_by(self.switch).contains(&catch.invariant))
    }
}

/// The switch of this number or name.
pub fn switch(name: &str) -> Option<Switch> {
    let is_it = |s: &Switch| s.number().eq_ignore_ascii_case(name) || format!("{s:?}").eq_ignore_ascii_case(name);
    Switch::ALL.iter().copied().find(is_it)
}

/// Which seeds break nothing without a planted bug, as far as it was asked.
#[derive(Default)]
struct Sound(Mutex<BTreeMap<u64, bool>>);

impl Sound {
    fn is_sound(&self, seed: u64) -> bool {
        let known = || self.0.lock().expect("no thread panics while it holds the map");
        if let Some(sound) = known().get(&seed) {
            return *sound;
        }
        let sound = with(None, || simulate(seed, Verbosity::Quiet)).violation.is_none();
        known().insert(seed, sound);
        sound
    }
}

/// Plants one bug and runs seeds from `from` on. A seed that breaks something without the bug has not found it.
fn hunt(switch: Switch, from: u64, sound: &Sound) -> Option<Catch> {
    (1..=SEEDS_MAX).find_map(|seeds| {
        let seed = from + seeds - 1;
        let violation = with(Some(switch), || simulate(seed, Verbosity::Quiet)).violation?;
        let catch = Catch { seed, seeds, invariant: violation.invariant, text: violation.text };
        sound.is_sound(seed).then_some(catch)
    })
}

/// Hunts all `switches` in `ranges` ranges of seeds on `threads` threads; `progress` is told of each range that is over.
pub fn hunt_all(
    switches: &[Switch],
    ranges: u64,
    threads: usize,
    progress: impl Fn(Switch, Option<&Catch>) + Sync,
) -> Vec<Hunt> {
    let jobs: Vec<(u64, usize)> =
        (0..ranges).flat_map(|range| (0..switches.len()).map(move |at| (range, at))).collect();
    let hunts = switches.iter().map(|switch| Hunt { switch: *switch, ranges: vec![None; ranges as usize] });
    let hunts = Mutex::new(hunts.collect::<Vec<_>>());
    let next = AtomicUsize::new(0);
    let sound = Sound::default();
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some((range, at)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
                    let catch = hunt(switches[at], 1 + range * SEEDS_MAX, &sound);
                    progress(switches[at], catch.as_ref());
                    hunts.lock().expect("no thread panics while it holds the hunts")[at].ranges[range as usize] = catch;
                }
            });
        }
    });
    hunts.into_inner().expect("no thread panics while it holds the hunts")
}

/// A row of the table in docs/testing.md for each switch.
pub fn table(hunts: &[Hunt]) -> String {
    let mut rows = String::from(
        "| | what is broken | who had it, or the rule | found by | seeds: first, median |\n|---|---|---|---|---|\n",
    );
    for hunt in hunts {
        let switch = hunt.switch;
        let mut by: Vec<&str> = hunt.ranges.iter().flatten().map(|catch| catch.invariant).collect();
        by.sort_unstable();
        by.dedup();
        let number = |n: Option<u64>| n.map_or_else(|| format!("over {SEEDS_MAX}"), |n| n.to_string());
        let first = number(hunt.ranges.first().and_then(|c| c.as_ref()).map(|c| c.seeds));
        rows += &format!(
            "| {} `{switch:?}` | {} | {} | {} | {first}, {} |\n",
            switch.number(),
            switch.what(),
            switch.from(),
            by.join("; "),
            number(hunt.median())
        );
    }
    rows
}

/// The invariants that may find a switch, the one that is there for it first. Another one is no proof that the bug
/// itself was seen.
pub fn found_by(switch: Switch) -> &'static [&'static str] {
    use Switch::*;
    match switch {
        OlderEpochsCommit | OpeningTakenAsCommitted | LeaderCountsUnsynced => &["I15 commit honesty"],
        LeaderInfoBeforePromise | PromiseCountsAgain | OlderLeaderFollowed | PromiseUnsynced => &["I11 promise"],
        MatchByRange | MatchByNumberOnly => &["I3 log matching", "I7 total order"],
        VoteFromMemory | InstallAckedBeforeFsync | AckBeforeFsync => &["I10 ack honesty"],
        DeadBranchVote => &["I16 watermark sanity", "I10 ack honesty"],
        OpeningBeforeHistory | HoleInCache => &["I4 local primary order", "I3 log matching"],
        // Who joins before the opening is in the log never gets it.
        CursorSkipsHistory => &["I4 local primary order", "I3 log matching", "I28 liveness"],
        LogsNotCompared => &["I6 primary integrity"],
        OldRoleAcks => &["I12 no ghost message"],
        ObserversCount => &["I11 promise", "I15 commit honesty"],
        TakenForDone => &["I10 ack honesty", "I15 commit honesty", "I13 apply discipline"],
        AppliedApart => &["I17 state determinism", "I13 apply discipline"],
        SyncWithoutRound | OldPongConfirms | ReadBeforeOpening | ReadPointIgnored => &["I24 sync read"],
        ApplyBeforeDurable => &["I13 apply discipline"],
        TrimBeyondPersisted | TruncateToWatermark => &["I14 truncation safety"],
        CutAtFirstBadChecksum => &["damage is noticed"],
        FsyncTriedAgain => &["an error of the disk ends the process", "recovery is exact"],
        FolderNotSynced | TailNotRewritten => &["recovery is exact"],
        // The log looks at what it keeps before it lets go of the rest.
        PromiseNotCarried => &["recovery is exact", "the log does not fail by itself"],
        WatchArmedLate | EventAfterReply | WatchFiresTwice | SetWatchesMisses => &["I25 watches"],
        // What is not published is read by nobody, however long it waits.
        ReplyBeforePublish => &["I23 session order", "I28 liveness"],
        ReadsOvertake | OverloadSkips | OfferedBackwards => &["I23 session order"],
        ExpiryAfterPause | HolderNotAsked | TouchesLost => &["I19 session safety"],
        AttachIgnored => &["execution does what the rules say", "I23 session order", "I19 session safety"],
        HalfMulti => &["execution does what the rules say", "I22 writes are linearizable", "I25 watches"],
        ExpiryOfMovedSession => &["I19 session safety", "execution does what the rules say"],
        ClampByLogEnd => &["I7 total order"],
        CounterWraps => &["I1 integrity"],
        LeaderStaysAlone | SettledSilent | WinnerForgotten | CountsOnceOnly => &["I28 liveness"],
        AmnesiaForgotten | MemberTooEarly => &["I9 committed never lost", "I2 unique establishment", "I11 promise"],
        WelcomedTooEarly => &["I11 promise", "I9 committed never lost", "I2 unique establishment"],
        DoneTwice => &["execution does what the rules say", "exactly once"],
        RepeatUnderNewZxid | ResultsDropped => &["exactly once"],
        LocalClock => &["I17 state determinism", "I22 writes are linearizable", "I13 apply discipline"],
        EphemeralsStay => &["I20 ephemerals", "I20, I21 tree shape", "execution does what the rules say"],
        InstallWithoutIntent => &["recovery is exact", "I18 snapshot"],
        DoubtForgotten | SnapshotUncompared | DifferenceIgnored => &[crate::checks::trees::NAME],
        StaleStreams => &["I12 no ghost message"],
        OldMetaAfterInstall | SnapshotTooOld => &["I18 snapshot"],
    }
}
