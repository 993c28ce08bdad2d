//! The zoo: bugs that coordination services have had, each behind a switch, to measure the simulator by.
//!
//! Ten thousand seeds without a violation mean nothing unless the same seeds find bugs that are there. So each rule of
//! the protocol that somebody once got wrong can be broken again, one at a time: where the rule stands in the code, a line
//! asks [`broken`]. The simulator must find every switch (docs/testing.md, "The zoo"). This is the one module that every
//! room may ask.
//!
//! Without the feature `zoo`, which only the simulator's own test turns on, [`broken`] is the constant `false` and
//! nothing of this is in a program. With it, a switch is on for what `with` runs, on that thread.

macro_rules! switches {
    ($($number:literal $name:ident, $from:literal, $what:literal;)*) => {
        /// A rule that can be broken.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Switch {
            $(#[doc = $what] #[doc = concat!("(", $from, ")")] $name,)*
        }

        #[cfg(feature = "zoo")]
        impl Switch {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Switch] = &[$(Switch::$name,)*];

            /// Its number in the zoo: `Z3`.
            pub fn number(self) -> &'static str {
                match self {
                    $(Switch::$name => concat!("Z", stringify!($number)),)*
                }
            }

            /// What goes wrong with it.
            pub fn what(self) -> &'static str {
                match self {
                    $(Switch::$name => $what,)*
                }
            }

            /// Who had this bug, or which rule it breaks.
            pub fn from(self) -> &'static str {
                match self {
                    $(Switch::$name => $from,)*
                }
            }
        }
    };
}

switches! {
    1 OlderEpochsCommit, "ZOOKEEPER-335, 1081; figure 8 of the Raft paper",
        "A leader commits entries of former epochs by counting copies of them.";
    2 LeaderInfoBeforePromise, "ZOOKEEPER-1291",
        "A leader proposes an epoch before its own promise is on disk.";
    3 MatchByRange, "ZOOKEEPER-1154",
        "A log that ends between the ends of the leader's is taken for a prefix of it.";
    4 OpeningTakenAsCommitted, "ZOOKEEPER-790",
        "A new leader takes the opening of its epoch as committed before a majority has it.";
    5 VoteFromMemory, "ZOOKEEPER-2845",
        "A vote names the end of the log in memory, not on disk.";
    6 InstallAckedBeforeFsync, "ZOOKEEPER-2872, 3642",
        "A snapshot is acknowledged while it is being installed.";
    7 OpeningBeforeHistory, "ZOOKEEPER-3104",
        "After a snapshot, the opening of the epoch is sent before the entries between the two.";
    8 AckBeforeFsync, "ZOOKEEPER-3911, 4646, 4785",
        "Entries are acknowledged before they are on disk.";
    9 LogsNotCompared, "ZOOKEEPER-4643",
        "A leader with a worse log than one of its majority goes on: its epoch outranks the history.";
    10 OldRoleAcks, "ZOOKEEPER-4712, 4541",
        "What was being written for a former leader is still acknowledged when it is done.";
    11 HoleInCache, "ZOOKEEPER-4925",
        "Entries are sent from a cache that misses some.";
    12 ObserversCount, "ZOOKEEPER-2959",
        "Observers count as voters.";
    13 TakenForDone, "ZOOKEEPER-2307",
        "What the log writer was asked for is taken for done.";
    14 AppliedApart, "ZOOKEEPER-2355; etcd #13766",
        "The store persists how far it is apart from what it contains.";
    15 SyncWithoutRound, "ZOOKEEPER-1675, 2136",
        "A leader answers sync and linearizable reads without asking whether it still leads.";
    16 ApplyBeforeDurable, "ZOOKEEPER-2678",
        "Committed entries are executed before they are on this server's disk.";
    17 TrimBeyondPersisted, "rule P27",
        "The log is dropped up to what is committed, not up to what the store has persisted.";
    18 CutAtFirstBadChecksum, "many: Protocol-Aware Recovery, FAST'18",
        "Recovery cuts the log at the first frame it cannot read, whatever follows it.";
    19 FsyncTriedAgain, "PostgreSQL and others: fsync failures, ATC'20",
        "A failed fsync is tried again, and the second answer is believed.";
    20 WatchArmedLate, "rule I25",
        "A read is answered from a state older than the moment at which its watch is armed.";
    21 ReplyBeforePublish, "rule P22",
        "A write is answered before the state with it is what reads see.";
    22 ExpiryAfterPause, "rules P23, P32",
        "A leader that was paused ends the sessions it has not heard meanwhile, without asking anybody.";
    23 LeaderCountsUnsynced, "etcd #14370",
        "A leader counts its own copy of an entry before it is on its disk.";
    24 OldPongConfirms, "rule P24",
        "A linearizable read is confirmed by pings that left before it was asked for.";
    25 MatchByNumberOnly, "ZOOKEEPER-3526, 4352",
        "Where a learner's part of an epoch ends is taken as common, also if it is longer than the leader's.";
    26 ClampByLogEnd, "rule P21",
        "A learner believes a commit as far as its log goes, proven or not.";
    27 AttachIgnored, "rule P29",
        "Writes of a former connection take effect after the session was taken up elsewhere.";
    28 TruncateToWatermark, "Kafka, KIP-101",
        "A server that follows another leader first drops what it does not know to be committed.";
    29 PromiseCountsAgain, "rule P6",
        "A promise made to one leader counts for another of the same epoch.";
    30 OlderLeaderFollowed, "rule P8",
        "A server that has promised an epoch still joins a leader of a lower one.";
    31 PromiseUnsynced, "ZOOKEEPER-1264, 1282",
        "A learner answers a leader's epoch before its promise is on disk.";
    32 DeadBranchVote, "Corral, simulator seed 208",
        "While a truncation is on its way to the disk, a vote names the end of the branch that is being dropped.";
    33 CursorSkipsHistory, "ZOOKEEPER-962",
        "A learner gets live entries from the moment it joins, without those since its own end.";
    34 CounterWraps, "ZOOKEEPER-1277",
        "The counter of a zxid overflows into the epoch.";
    35 ReadBeforeOpening, "Raft dissertation, section 6.4",
        "A new leader answers reads by the watermark of its former life, before anything of its epoch is committed.";
    36 ReadPointIgnored, "rule P24",
        "A server answers a linearizable read as soon as the leader named the read point, without reaching it.";
    37 LeaderStaysAlone, "rule P23",
        "A leader that no majority answers goes on leading.";
    38 AmnesiaForgotten, "ZOOKEEPER-2325",
        "A server that lost its folder votes at once.";
    39 WelcomedTooEarly, "Corral, by reasoning from seed 280",
        "A server that lost its folder votes when it holds the history again, whomever it may have promised what.";
    40 OverloadSkips, "rule P30",
        "A leader whose window is full drops a write and takes the next.";
    41 DoneTwice, "rule P31",
        "A write that is sent again is executed again.";
    42 RepeatUnderNewZxid, "rule P31",
        "A write that is sent again is answered with the zxid of its second entry.";
    43 ResultsDropped, "rule P31",
        "Results are dropped before the client has said that it saw them.";
    44 OfferedBackwards, "rule P31",
        "A new leader is offered a server's unanswered writes newest first.";
    45 HolderNotAsked, "rule P32",
        "A session is ended without asking the server that holds its connection.";
    46 TouchesLost, "rule P32",
        "A leader does not note which sessions its followers have heard.";
    47 ExpiryOfMovedSession, "rule P32",
        "A session that was taken up elsewhere is ended by a decision made before.";
    48 LocalClock, "rule P34",
        "Execution depends on the server that executes.";
    49 EphemeralsStay, "ZOOKEEPER-2355, 5010",
        "The end of a session leaves one of its ephemerals behind.";
    50 HalfMulti, "ZOOKEEPER-3127",
        "A multi that fails keeps what its first operations did.";
    51 InstallWithoutIntent, "ZOOKEEPER-2872; rule I18",
        "A snapshot takes the store's place before it is noted that the log must follow.";
    52 FolderNotSynced, "ALICE, OSDI'14: LevelDB, ZooKeeper and others",
        "A new log segment is used before its name is on disk.";
    53 PromiseNotCarried, "rule P27",
        "A new log segment does not repeat the promise, and the old ones are dropped.";
    54 TailNotRewritten, "fsync failures, ATC'20",
        "After a restart the end of the log is trusted as it was read, from the page cache or not.";
    55 ReadsOvertake, "rule I23",
        "Reads overtake writes of the same session.";
    56 EventAfterReply, "rule I25",
        "A reply that shows a change leaves before the watch event of that change.";
    57 WatchFiresTwice, "rule I25",
        "A one-shot watch stays armed when it fires.";
    58 SetWatchesMisses, "rule I25",
        "Watches that are set again after a reconnect do not tell of data that changed meanwhile.";
    59 SettledSilent, "ZOOKEEPER-1732, 1805, 1818",
        "Servers that have a leader do not answer one that is looking.";
    60 WinnerForgotten, "Corral, simulator seed 25",
        "An election round whose winner died never ends.";
    61 CountsOnceOnly, "Corral, simulator",
        "Only those whose promise opened the epoch count in it, though others keep its leader in office.";
    62 StaleStreams, "rule P5",
        "What comes late over a stream that broke is taken for what the peer says now.";
    63 OldMetaAfterInstall, "Corral, simulator seed 3",
        "After a snapshot was installed, a server still goes by how far its old store was.";
    64 SnapshotTooOld, "rule P11",
        "A learner is sent a snapshot older than where its log parts from the leader's.";
    65 MemberTooEarly, "rule P9",
        "A server that lost its folder votes as soon as it has promised a leader something.";
    66 DoubtForgotten, "Corral, by reasoning: ADR 12",
        "A new leader knows nothing of trees that were seen to differ before, and gives his to who needs one.";
    67 SnapshotUncompared, "rule P35",
        "A leader gives a snapshot before he has compared his tree with others'.";
    68 DifferenceIgnored, "rule P35",
        "A server whose tree differs from a majority's goes on.";
}

/// Whether a rule is broken in this run.
#[cfg(not(feature = "zoo"))]
#[inline(always)]
pub const fn broken(_: Switch) -> bool {
    false
}

/// Whether learners do not check that what they are sent follows their log: nobody else's streams carry a running hash,
/// and our own would hide bugs of what is sent.
#[cfg(not(feature = "zoo"))]
#[inline(always)]
pub const fn unchecked_history() -> bool {
    false
}

#[cfg(feature = "zoo")]
pub use self::switched::{broken, unchecked_history, with};

#[cfg(feature = "zoo")]
mod switched {
    use std::cell::Cell;

    use super::Switch;

    thread_local! {
        static ON: Cell<Option<Switch>> = const { Cell::new(None) };
    }

    /// Whether a rule is broken in this run.
    pub fn broken(switch: Switch) -> bool {
        ON.get() == Some(switch)
    }

    /// Whether learners do not check that what they are sent follows their log: nobody else's streams carry a running
    /// hash, and our own would hide bugs of what is sent.
    pub fn unchecked_history() -> bool {
        use Switch::*;
        let sends_wrongly = [MatchByRange, OpeningBeforeHistory, HoleInCache, MatchByNumberOnly, CursorSkipsHistory];
        sends_wrongly.into_iter().any(broken)
    }

    /// Runs something with one rule broken, on this thread. Switches do not nest: the inner one counts.
    pub fn with<T>(switch: Option<Switch>, run: impl FnOnce() -> T) -> T {
        struct Restore(Option<Switch>);
        impl Drop for Restore {
            fn drop(&mut self) {
                ON.set(self.0);
            }
        }
        let _restore = Restore(ON.replace(switch));
        run()
    }
}

#[cfg(test)]
#[cfg(feature = "zoo")]
mod tests {
    use super::*;

    #[test]
    fn a_switch_is_on_for_its_run_and_its_thread_only() {
        with(Some(Switch::MatchByRange), || {
            assert!(broken(Switch::MatchByRange) && !broken(Switch::AckBeforeFsync));
            std::thread::scope(|scope| {
                scope.spawn(|| assert!(!broken(Switch::MatchByRange)));
            });
        });
        assert!(!broken(Switch::MatchByRange));
    }

    #[test]
    fn numbers_are_consecutive() {
        for (at, switch) in Switch::ALL.iter().enumerate() {
            assert_eq!(switch.number(), format!("Z{}", at + 1));
        }
    }
}
