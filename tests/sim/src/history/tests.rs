//! No check that cannot fail: histories of a correct service pass, and each lie in them is found, by its name.

use bytes::Bytes;
use corral_core::session::{Consistency, SetWatches};
use corral_core::storage::memory::MemoryStore;
use corral_core::tree::entry::{Command, Txn, Verdict};
use corral_core::tree::op::{Answer, Create, MultiReadOp, ReadOp, WriteOp};
use corral_core::tree::record::Meta;
use corral_core::tree::{Cf, Change, TreeStore, execute, key, read};
use corral_core::zab::io::Position;
use corral_proto::{Acl, CreateMode, ErrorCode, EventKind, ServerId, SessionId, WatchKind, Zxid};

use super::replay::Replay;
use super::watches::{Changes, check_connection, check_kept};
use super::{ClientResult, History, Kept, Seen, WriteKey, client_ids};
use crate::checks::{Check, CommittedEntry, Ghost};

const ONE: SessionId = SessionId(1);
const TWO: SessionId = SessionId(2);

/// A service of one server that is never wrong, and what its clients wrote down. Tests put the lies in.
struct Story {
    ghost: Ghost,
    history: History,
    store: MemoryStore,
}

impl Story {
    /// With gRPC sessions 1 and 2.
    fn new() -> Story {
        let mut story = Story { ghost: Ghost::new(1, 0), history: History::default(), store: MemoryStore::new() };
        for session in [ONE, TWO] {
            story.history.keeps_results.insert(session);
            story.history.timeouts.insert(session, 10);
            let command = Command::CreateSession { timeout_ms: 10, server: ServerId(1), nonce: 7, keeps_results: true };
            story.commit(session, Zxid::ZERO, 0, command);
        }
        story
    }

    /// Commits and executes.
    fn commit(&mut self, session: SessionId, attach: Zxid, n: u64, command: Command) -> (Zxid, Verdict) {
        let zxid = Zxid::new(1, self.ghost.committed.len() as u32 + 1);
        let txn = Txn { session, attach, n, answered_through: n.saturating_sub(1), ids: client_ids(), command };
        let entry = CommittedEntry {
            position: Position { zxid, hash: zxid.0 },
            stamp_ms: 1_000 + zxid.0 as i64,
            payload: txn.encode(),
        };
        let view = self.store.view();
        let outcome = execute::execute(&view, zxid, entry.stamp_ms, entry.position.hash, &entry.payload);
        drop(view);
        self.store.write(&mut outcome.changes.into_iter());
        self.ghost.committed.push(entry);
        (zxid, outcome.verdict)
    }

    fn sends(&mut self, session: SessionId, n: u64, op: &WriteOp) -> WriteKey {
        let key = (session, Zxid::ZERO, n);
        self.history.on_sent(key, Some(op), self.history.floor());
        key
    }

    fn executes(&mut self, key: WriteKey, op: &WriteOp) -> (Zxid, ClientResult) {
        let attach = read::session(&self.store.view(), key.0).map(|row| row.attach).unwrap_or_default();
        match self.commit(key.0, attach, key.2, Command::Write(op.clone())) {
            (zxid, Verdict::Executed(result)) => (zxid, result),
            (_, verdict) => panic!("{key:?} {op:?} is {verdict:?}"),
        }
    }

    fn hears(&mut self, key: WriteKey, zxid: Zxid, result: &ClientResult) -> Check {
        self.history.on_write(&self.ghost, key, zxid, result)
    }

    /// Sends, executes and answers a write.
    fn writes(&mut self, session: SessionId, n: u64, op: &WriteOp) -> Zxid {
        let key = self.sends(session, n, op);
        let (zxid, result) = self.executes(key, op);
        self.hears(key, zxid, &result).expect("it is the truth");
        zxid
    }

    fn reads(&mut self, session: SessionId, op: &ReadOp, told: Option<ClientResult>) {
        let view = self.store.view();
        let zxid = Meta::read(&view).expect("it was executed").applied;
        let result = told.unwrap_or_else(|| read::read(&view, op, session, &client_ids()));
        let floor = self.history.floor();
        self.history.on_read(session, op, Consistency::Linearizable, zxid, &result, floor).expect("it is the latest");
    }

    fn ends(&mut self, session: SessionId) {
        let attach = read::session(&self.store.view(), session).map(|row| row.attach).unwrap_or_default();
        self.commit(session, attach, 0, Command::CloseSession { expired: true });
    }

    fn verdict(&self) -> Result<&'static str, &'static str> {
        self.history.judge(&self.ghost).map_err(|violation| violation.invariant)
    }
}

fn create(path: &str) -> WriteOp {
    create_as(path, CreateMode::Persistent)
}

fn create_as(path: &str, mode: CreateMode) -> WriteOp {
    WriteOp::Create(Create { path: path.to_owned(), data: None, acl: Some(Acl::open()), mode, ttl_ms: 0 })
}

fn set(path: &str, data: &'static str) -> WriteOp {
    WriteOp::SetData { path: path.to_owned(), data: Some(Bytes::from(data)), version: -1 }
}

fn get(path: &str) -> ReadOp {
    ReadOp::GetData { path: path.to_owned() }
}

fn named(check: Check) -> &'static str {
    check.expect_err("something is wrong").invariant
}

/// A story with everything in it.
fn an_honest_story() -> Story {
    let mut story = Story::new();
    story.writes(ONE, 1, &create("/a"));
    story.reads(TWO, &get("/a"), None);
    story.writes(TWO, 1, &create_as("/e", CreateMode::Ephemeral));
    story.writes(ONE, 2, &set("/a", "x"));
    story.writes(ONE, 3, &create("/a"));
    story.writes(ONE, 4, &create_as("/a/s-", CreateMode::PersistentSequential));
    let reads = ["/a", "/none"].map(|path| MultiReadOp::GetData { path: path.to_owned() });
    story.reads(ONE, &ReadOp::MultiRead(reads.to_vec()), None);
    story.ends(TWO);
    story.history.told_expired.insert(TWO);
    story.reads(ONE, &get("/e"), None);
    let meta = Meta::read(&story.store.view()).expect("it is there");
    story.history.on_digest(&meta, Some(story.store.digest())).expect("nobody said otherwise");
    story
}

#[test]
fn the_truth_is_believed() {
    assert_eq!(an_honest_story().verdict(), Ok("no history of registers"));
}

#[test]
fn a_read_of_another_state_is_found() {
    let mut story = an_honest_story();
    story.reads(ONE, &get("/a"), Some(Err(ErrorCode::NoNode)));
    assert_eq!(story.verdict(), Err("I23 session order"));
}

#[test]
fn a_wrong_part_of_a_multi_read_is_found() {
    let mut story = an_honest_story();
    let reads = ["/none"].map(|path| MultiReadOp::GetData { path: path.to_owned() });
    let told = Ok(Answer::MultiRead(vec![Err(ErrorCode::NoAuth)]));
    story.reads(ONE, &ReadOp::MultiRead(reads.to_vec()), Some(told));
    assert_eq!(story.verdict(), Err("I23 session order"));
}

#[test]
fn a_write_that_is_not_in_the_log_is_found() {
    let mut story = an_honest_story();
    let key = story.sends(ONE, 5, &create("/lost"));
    let check = story.hears(key, Zxid::new(1, 1000), &Ok(Answer::Done));
    assert_eq!(named(check), "I22 writes are linearizable");
}

#[test]
fn an_answer_of_somebody_elses_write_is_found() {
    let mut story = an_honest_story();
    let zxid = story.writes(ONE, 5, &create("/mine"));
    let key = story.sends(TWO, 2, &create("/yours"));
    assert_eq!(named(story.hears(key, zxid, &Ok(Answer::Done))), "I22 writes are linearizable");
}

#[test]
fn a_wrong_result_is_found() {
    let mut story = an_honest_story();
    let key = story.sends(ONE, 5, &create("/b"));
    let (zxid, _) = story.executes(key, &create("/b"));
    story.hears(key, zxid, &Err(ErrorCode::NodeExists)).expect("only the log knows better");
    assert_eq!(story.verdict(), Err("I22 writes are linearizable"));
}

#[test]
fn a_write_that_nobody_sent_is_found() {
    let mut story = an_honest_story();
    let _ = story.executes((ONE, Zxid::ZERO, 5), &create("/b"));
    assert_eq!(story.verdict(), Err("I22 writes are linearizable"));
}

#[test]
fn a_write_that_was_changed_on_its_way_is_found() {
    let mut story = an_honest_story();
    let key = story.sends(ONE, 5, &create("/b"));
    let _ = story.executes(key, &create("/c"));
    assert_eq!(story.verdict(), Err("I22 writes are linearizable"));
}

#[test]
fn an_unanswered_write_may_be_done_or_not() {
    let mut story = an_honest_story();
    let key = story.sends(ONE, 5, &create("/b"));
    assert!(story.verdict().is_ok(), "not done");
    let _ = story.executes(key, &create("/b"));
    assert!(story.verdict().is_ok(), "done");
}

#[test]
fn a_write_that_is_done_twice_is_found() {
    // Session 3 speaks ZooKeeper's protocol: its numbers begin anew with each connection, so the log lets the second
    // copy pass. No client sent it there.
    let mut story = Story::new();
    let session = SessionId(3);
    let begin = Command::CreateSession { timeout_ms: 10, server: ServerId(1), nonce: 1, keeps_results: false };
    let (first, _) = story.commit(session, Zxid::ZERO, 0, begin);
    let op = create_as("/s-", CreateMode::PersistentSequential);
    story.history.on_sent((session, first, 1), Some(&op), Zxid::ZERO);
    story.commit(session, first, 1, Command::Write(op.clone()));
    let moved = Command::Attach { timeout_ms: 10, server: ServerId(1), nonce: 2, keeps_results: false };
    let (second, _) = story.commit(session, Zxid::ZERO, 0, moved);
    assert!(story.verdict().is_ok());
    story.commit(session, second, 1, Command::Write(op));
    assert_eq!(story.verdict(), Err("I22 writes are linearizable"));
}

#[test]
fn two_answers_to_one_write_are_found() {
    let mut story = an_honest_story();
    let zxid = story.writes(ONE, 5, &create("/b"));
    let check = story.hears((ONE, Zxid::ZERO, 5), zxid, &Err(ErrorCode::NodeExists));
    assert_eq!(named(check), "exactly once");
}

#[test]
fn a_write_before_one_that_had_ended_is_found() {
    let mut story = an_honest_story();
    // Done and answered under the zxid of an entry that is older than an answer given before it was sent.
    let (early, result) = story.executes((ONE, Zxid::ZERO, 5), &create("/b"));
    let other = SessionId(4);
    story.history.keeps_results.insert(other);
    let begin = Command::CreateSession { timeout_ms: 10, server: ServerId(1), nonce: 1, keeps_results: true };
    story.commit(other, Zxid::ZERO, 0, begin);
    story.writes(other, 1, &create("/c"));
    let key = story.sends(ONE, 5, &create("/b"));
    assert_eq!(named(story.hears(key, early, &result)), "I22 writes are linearizable");
    assert_eq!(story.verdict(), Err("I22 writes are linearizable"), "nor if it is never answered");
}

#[test]
fn a_read_that_asked_for_the_latest_and_got_less_is_found() {
    let mut story = an_honest_story();
    let floor = story.history.floor();
    let before = Zxid::new(1, floor.counter() - 1);
    let mut reads =
        |consistency, zxid| story.history.on_read(ONE, &get("/a"), consistency, zxid, &Err(ErrorCode::NoNode), floor);
    assert!(reads(Consistency::Local, before).is_ok());
    assert_eq!(named(reads(Consistency::Linearizable, before)), "I24 sync read");
    assert_eq!(named(reads(Consistency::AtLeast(floor), before)), "I24 sync read");
}

#[test]
fn an_early_expiry_is_found() {
    let mut story = an_honest_story();
    story.history.on_touch(9, ONE, 1_000);
    assert_eq!(named(story.history.on_expiry(9, ONE, 10_999)), "I19 session safety");
    assert!(story.history.on_expiry(9, ONE, 11_000).is_ok());
    story.history.on_touch(9, ONE, 5_000);
    assert_eq!(named(story.history.on_expiry(9, ONE, 11_000)), "I19 session safety");
}

#[test]
fn a_session_that_only_a_client_believes_over_is_found() {
    let mut story = an_honest_story();
    story.history.told_expired.insert(ONE);
    assert_eq!(story.verdict(), Err("I19 session safety"));
}

#[test]
fn different_trees_at_one_zxid_are_found() {
    let mut story = an_honest_story();
    let meta = Meta::read(&story.store.view()).expect("it is there");
    let other = Meta { digest: meta.digest + 1, ..meta.clone() };
    assert_eq!(named(story.history.on_digest(&other, None)), "I17 state determinism");
    let other = story.store.digest() + 1;
    assert_eq!(named(story.history.on_digest(&meta, Some(other))), "I17 state determinism");
}

#[test]
fn a_tree_that_the_log_does_not_make_is_found() {
    for full in [false, true] {
        let mut story = Story::new();
        story.writes(ONE, 1, &create("/a"));
        let meta = Meta::read(&story.store.view()).expect("it is there");
        let lie = Meta { digest: meta.digest + u64::from(!full), ..meta };
        let rows = story.store.digest() + u64::from(full);
        story.history.on_digest(&lie, Some(rows)).expect("one server alone differs from nobody");
        assert_eq!(story.verdict(), Err("I13 apply discipline"), "every row: {full}");
    }
}

#[test]
fn a_tree_out_of_shape_is_found() {
    let story = an_honest_story();
    let mut replay = Replay::new(&story.history);
    for entry in &story.ghost.committed {
        replay.entry(entry).expect("it is the truth");
    }
    let zxid = story.ghost.head().zxid;
    assert!(replay.look_at_everything(zxid).is_ok());
    // A znode that the rules know and the tree has lost.
    let key = key::node("/a").expect("a path");
    replay.store.write(&mut [Change { cf: Cf::Node, key, value: None }].into_iter());
    assert_eq!(named(replay.look_at_everything(zxid)), "I20, I21 tree shape");
}

#[test]
fn an_execution_that_breaks_a_rule_is_found() {
    let mut story = an_honest_story();
    let key = story.sends(ONE, 5, &set("/a", "y"));
    let _ = story.executes(key, &set("/a", "y"));
    let mut replay = Replay::new(&story.history);
    let (last, before) = story.ghost.committed.split_last().expect("it is a story");
    for entry in before {
        replay.entry(entry).expect("it is the truth");
    }
    // The same on all servers, so that none differs from another: the znode is gone.
    let key = key::node("/a").expect("a path");
    replay.store.write(&mut [Change { cf: Cf::Node, key, value: None }].into_iter());
    assert_eq!(named(replay.entry(last)), "I22 writes are linearizable");
}

#[test]
fn a_stale_read_of_a_register_is_found_without_a_zxid() {
    for (told, fine) in [("new", true), ("old", false)] {
        let mut registers = super::Registers::default();
        for op in [create("/r0"), set("/r0", "old"), set("/r0", "new")] {
            let ticket = registers.send_write(ONE, &op).expect("it is on a register");
            let stat = |version| corral_proto::Stat { version, ..Default::default() };
            let result = match &op {
                WriteOp::Create(_) => Answer::Created { path: "/r0".to_owned(), stat: stat(0) },
                WriteOp::SetData { data, .. } => {
                    Answer::Stat(stat(if data.as_deref() == Some(b"old") { 1 } else { 2 }))
                }
                _ => unreachable!("there is no other"),
            };
            registers.answered(ONE, ticket, &Ok(result));
        }
        let ticket = registers.send_read(TWO, &get("/r0")).expect("it is on a register");
        let version = if fine { 2 } else { 1 };
        let stat = corral_proto::Stat { version, ..Default::default() };
        registers.answered(TWO, ticket, &Ok(Answer::Data { data: Some(Bytes::from(told)), stat }));
        match registers.judge() {
            Ok(what) => assert!(fine && what == "history of registers explained", "{told}: {what}"),
            Err(violation) => assert!(!fine && violation.invariant == "I22, I24 without zxids", "{told}"),
        }
    }
}

#[test]
fn a_lock_that_outlives_its_session_is_found_without_a_zxid() {
    let mut registers = super::Registers::default();
    let lock = create_as("/r0", CreateMode::Ephemeral);
    let taken = Ok(Answer::Created { path: "/r0".to_owned(), stat: Default::default() });
    let ticket = registers.send_write(ONE, &lock).expect("it is on a register");
    registers.answered(ONE, ticket, &taken);
    let while_held = registers.send_write(TWO, &lock).expect("it is on a register");
    registers.answered(TWO, while_held, &Err(ErrorCode::NodeExists));
    registers.session_over(ONE);
    assert!(registers.judge().is_ok());
    let late = registers.send_write(TWO, &lock).expect("it is on a register");
    registers.answered(TWO, late, &Err(ErrorCode::NodeExists));
    assert!(registers.judge().is_err(), "its owner had been told that it is over");
}

// ---- watches ----

const CREATED: EventKind = EventKind::NodeCreated;
const DELETED: EventKind = EventKind::NodeDeleted;
const CHANGED: EventKind = EventKind::NodeDataChanged;
const CHILDREN: EventKind = EventKind::NodeChildrenChanged;

fn z(counter: u32) -> Zxid {
    Zxid::new(1, counter)
}

/// `/p` is created at 1 and changed at 3, `/p/c` created at 5 and deleted at 7, `/p` deleted at 9.
fn changes() -> Changes {
    let mut changes = Changes::default();
    for (at, path, kind) in [(1, "/p", CREATED), (3, "/p", CHANGED), (5, "/p/c", CREATED), (7, "/p/c", DELETED)] {
        changes.note(path, kind, z(at));
        if kind != CHANGED {
            changes.note(corral_proto::path::parent(path).expect("it has one"), CHILDREN, z(at));
        }
    }
    changes.note("/p", DELETED, z(9));
    changes.note("/", CHILDREN, z(9));
    changes
}

fn armed(path: &str, kind: WatchKind, at: u32) -> Seen {
    Seen::Armed { path: path.to_owned(), kind, zxid: z(at) }
}

fn event(kind: EventKind, path: &str, at: u32) -> Seen {
    Seen::Event { kind, path: path.to_owned(), zxid: z(at) }
}

fn reply(at: u32) -> Seen {
    Seen::Reply(z(at))
}

fn is_fine(seen: &[Seen]) -> bool {
    check_connection(1, seen, &changes()).is_ok()
}

#[test]
fn a_one_shot_watch_tells_of_the_first_change_only() {
    let watch = || armed("/p", WatchKind::Data, 2);
    let told = || event(CHANGED, "/p", 3);
    assert!(is_fine(&[watch(), reply(2), told(), reply(9)]));
    assert!(!is_fine(&[watch(), reply(3)]), "lost, or late");
    assert!(!is_fine(&[watch(), reply(9), told()]), "late");
    assert!(!is_fine(&[watch(), told(), told()]), "doubled");
    assert!(!is_fine(&[watch(), told(), event(DELETED, "/p", 9)]), "a second one");
    assert!(!is_fine(&[watch(), event(DELETED, "/p", 9)]), "not the first");
    assert!(!is_fine(&[watch(), event(CHANGED, "/p", 4)]), "at another zxid");
    assert!(!is_fine(&[watch(), event(CHANGED, "/q", 3)]), "of another znode");
    assert!(!is_fine(&[told()]), "nobody asked");
}

#[test]
fn a_watch_for_children_tells_of_children_and_of_the_end() {
    assert!(is_fine(&[armed("/p", WatchKind::Child, 4), event(CHILDREN, "/p", 5), reply(9)]));
    assert!(is_fine(&[armed("/p", WatchKind::Child, 8), event(DELETED, "/p", 9), reply(9)]));
    assert!(!is_fine(&[armed("/p", WatchKind::Child, 2), event(CHANGED, "/p", 3)]));
}

#[test]
fn a_deletion_is_told_once_to_both_kinds() {
    let both = [armed("/p", WatchKind::Data, 8), armed("/p", WatchKind::Child, 8), event(DELETED, "/p", 9)];
    assert!(is_fine(&[&both[..], &[reply(9)]].concat()));
    assert!(!is_fine(&[&both[..], &[event(DELETED, "/p", 9)]].concat()));
}

#[test]
fn persistent_watches_tell_of_everything_in_order() {
    let all = [
        armed("/p", WatchKind::Persistent, 2),
        event(CHANGED, "/p", 3),
        event(CHILDREN, "/p", 5),
        event(CHILDREN, "/p", 7),
    ];
    assert!(is_fine(&[&all[..], &[event(DELETED, "/p", 9), reply(9)]].concat()));
    assert!(!is_fine(&[&all[..], &[reply(9)]].concat()), "the last is lost");
    let [watch, first, second, third] = all;
    assert!(!is_fine(&[watch.clone(), first.clone(), third.clone()]), "one is left out");
    assert!(!is_fine(&[watch, second, first, third]), "out of order");
}

#[test]
fn recursive_watches_tell_of_znodes_below_and_not_of_lists() {
    let watch = || armed("/", WatchKind::PersistentRecursive, 4);
    assert!(is_fine(&[
        watch(),
        event(CREATED, "/p/c", 5),
        event(DELETED, "/p/c", 7),
        event(DELETED, "/p", 9),
        reply(9)
    ]));
    assert!(!is_fine(&[watch(), event(CREATED, "/p/c", 5), event(CHILDREN, "/p", 5)]));
}

#[test]
fn a_removed_watch_tells_nothing_and_the_answer_says_if_there_was_one() {
    let asks = |kind, remove, found, at| Seen::Watches { path: "/p".to_owned(), kind, remove, found, zxid: z(at) };
    let watch = || armed("/p", WatchKind::Data, 2);
    assert!(is_fine(&[watch(), asks(None, true, true, 2), reply(9)]));
    assert!(is_fine(&[watch(), asks(Some(WatchKind::Child), true, false, 2), event(CHANGED, "/p", 3)]));
    assert!(is_fine(&[watch(), asks(None, false, true, 2), event(CHANGED, "/p", 3), asks(None, false, false, 3)]));
    assert!(!is_fine(&[watch(), asks(None, true, true, 2), event(CHANGED, "/p", 3)]), "it was removed");
    assert!(!is_fine(&[watch(), asks(None, true, false, 2)]), "there was one");
    assert!(!is_fine(&[asks(None, true, true, 2)]), "there was none");
}

fn set_again(since: u32, at: u32, missed: &[(EventKind, &str)]) -> Seen {
    let paths = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let watches = SetWatches {
        replay: false,
        relative_zxid: z(since),
        data: paths(&["/p"]),
        exist: paths(&["/p/c"]),
        child: paths(&["/p"]),
        persistent: paths(&["/q"]),
        persistent_recursive: vec![],
    };
    let missed = missed.iter().map(|(kind, path)| (*kind, (*path).to_owned())).collect();
    Seen::SetAgain { watches, missed, zxid: z(at) }
}

#[test]
fn what_was_missed_is_told_when_watches_are_set_again() {
    assert!(is_fine(&[set_again(3, 4, &[]), event(CREATED, "/p/c", 5), event(CHILDREN, "/p", 5)]));
    assert!(is_fine(&[set_again(2, 5, &[(CHANGED, "/p"), (CREATED, "/p/c"), (CHILDREN, "/p")]), reply(8)]));
    assert!(is_fine(&[set_again(8, 9, &[(DELETED, "/p"), (DELETED, "/p")])]));
    assert!(!is_fine(&[set_again(2, 4, &[])]), "a change is lost");
    assert!(!is_fine(&[set_again(3, 4, &[(CHANGED, "/p")])]), "that was told before");
    assert!(!is_fine(&[set_again(2, 5, &[(CREATED, "/p/c"), (CHANGED, "/p"), (CHILDREN, "/p")])]), "out of order");
    assert!(!is_fine(&[set_again(3, 4, &[]), reply(5)]), "what is armed again counts");
}

#[test]
fn a_watch_that_was_kept_over_a_change_is_found() {
    let kept =
        |kind, armed, again| Kept { session: ONE, path: "/p".to_owned(), kind, armed: z(armed), again: z(again) };
    assert!(check_kept(&kept(WatchKind::Data, 3, 8), &changes()).is_ok());
    assert_eq!(named(check_kept(&kept(WatchKind::Data, 2, 8), &changes())), "I25 watches");
    assert_eq!(named(check_kept(&kept(WatchKind::Child, 3, 8), &changes())), "I25 watches");
}
