//! Stories of subscriptions to the change feed, and of what persistent watches missed; and of writes sent again.

use corral_proto::{Acl, CreateMode, EventKind, Id, perms};

use super::tests::*;
use super::*;
use crate::session::feed::{Subscription, UNREAD_BYTES_MAX};
use crate::session::lane::Step;
use crate::session::{Consistency, FeedNotice, Outgoing, Protocol, SetWatches};
use crate::storage::memory::MemoryStore;
use crate::tree::op::{Answer, Create, MultiOp, WriteOp};
use crate::watch::feed::{FeedKind, Interest};

fn subscribe(room: &Room, to: &Joined, watch: u64, path: &str, kind: FeedKind, after: Option<Zxid>) -> Vec<String> {
    let interest = Interest { kind, with_nodes: true };
    let subscription = Subscription { path: path.to_owned(), interest };
    to.lane.push(watch, Step::Subscribe { watch, subscription, after }, Consistency::Local, None);
    told(room, to)
}

/// What the connection sends next, until nothing is left.
fn told(room: &Room, to: &Joined) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let sent = room.sent(to);
        if sent.is_empty() {
            return all;
        }
        all.extend(sent.iter().map(words));
    }
}

fn words(outgoing: &Outgoing) -> String {
    match outgoing {
        Outgoing::Reply { cookie, zxid, result } => match result {
            Ok(_) => format!("reply {cookie} at {}", zxid.counter()),
            Err(error) => format!("reply {cookie}: {error:?}"),
        },
        Outgoing::Event(event) => {
            let zxid = event.event.zxid.map_or_else(|| "none".to_owned(), |zxid| zxid.counter().to_string());
            format!("event {:?} {} of {zxid}", event.event.kind, event.event.path)
        }
        Outgoing::Feed(FeedNotice::Changes { watch, zxid, events }) => {
            let events: Vec<String> = events
                .iter()
                .map(|event| {
                    let data = event.node.as_ref().and_then(|node| node.data.as_ref());
                    let data = data.map(|data| format!("={}", String::from_utf8_lossy(data))).unwrap_or_default();
                    let kind = match event.kind {
                        EventKind::NodeCreated => "+",
                        EventKind::NodeDeleted => "-",
                        EventKind::NodeDataChanged => "",
                        EventKind::NodeChildrenChanged => "*",
                    };
                    format!("{kind}{}{data}", event.path)
                })
                .collect();
            format!("{watch}: {} of {}", events.join(" "), zxid.counter())
        }
        Outgoing::Feed(FeedNotice::Bookmark { watch, zxid }) => {
            let whose = watch.map_or_else(|| "all".to_owned(), |watch| watch.to_string());
            format!("{whose}: up to {}", zxid.counter())
        }
        Outgoing::Feed(FeedNotice::Gap { watch, after, resync }) => {
            format!("{watch}: gap from {} to {}", after.counter(), resync.counter())
        }
        Outgoing::Close(reason) => format!("close {reason:?}"),
    }
}

fn delete(path: &str) -> WriteOp {
    WriteOp::Delete { path: path.into(), version: -1 }
}

fn at(counter: u32) -> Zxid {
    Zxid::new(1, counter)
}

/// A room in which sessions 1 and 2 began (entries 1 and 2), /a was created (3) and set (4), /a/b was created (5).
fn story() -> (Room, Joined, Joined) {
    let mut room = Room::new();
    let watcher = room.connect(1, Protocol::Grpc);
    let writer = room.connect(2, Protocol::Grpc);
    room.apply(&[
        writer.write(1, create("/a", "1")),
        writer.write(2, set("/a", "2")),
        writer.write(3, create("/a/b", "b")),
    ]);
    (room, watcher, writer)
}

#[test]
fn a_subscription_is_told_of_each_entry_whole_before_the_reply_that_shows_it() {
    let (mut room, watcher, writer) = story();
    assert_eq!(subscribe(&room, &watcher, 9, "/a", FeedKind::Subtree, None), ["reply 9 at 5"]);
    watcher.expects(1);
    let multi = WriteOp::Multi(vec![
        MultiOp::SetData { path: "/a".into(), data: Some("3".into()), version: -1 },
        MultiOp::SetData { path: "/a".into(), data: Some("4".into()), version: -1 },
        MultiOp::Delete { path: "/a/b".into(), version: -1 },
    ]);
    room.apply(&[watcher.write(1, multi), writer.write(4, create("/c", "")), writer.write(5, set("/a", "5"))]);
    // The last event of a znode in an entry brings it.
    assert_eq!(told(&room, &watcher), ["9: /a /a=4 -/a/b of 6", "reply 1 at 6", "9: /a=5 of 8", "all: up to 8"],);
    room.apply(&[writer.write(6, set("/c", ""))]);
    assert_eq!(told(&room, &watcher), [""; 0], "nothing of it");
    watcher.lane.push(1, Step::Answer(Ok(Answer::Done)), Consistency::Local, None);
    assert_eq!(told(&room, &watcher), ["all: up to 9", "reply 1 at 9"], "a ping is told how far it goes");
}

#[test]
fn kinds_of_subscriptions_are_told_what_they_are_about() {
    let (mut room, watcher, writer) = story();
    for (watch, path, kind) in [(1, "/a", FeedKind::Node), (2, "/a", FeedKind::Children), (3, "/", FeedKind::Subtree)] {
        subscribe(&room, &watcher, watch, path, kind, None);
    }
    room.apply(&[
        writer.write(4, create("/a/b/c", "")),
        writer.write(5, set("/a/b", "x")),
        writer.write(6, create("/a/d", "")),
    ]);
    assert_eq!(
        told(&room, &watcher),
        [
            "3: +/a/b/c= of 6",
            "2: /a/b=x of 7",
            "3: /a/b=x of 7",
            "1: */a of 8",
            "2: +/a/d= of 8",
            "3: +/a/d= of 8",
            "all: up to 8"
        ]
    );
    watcher.lane.push(1, Step::Unsubscribe { watch: 3 }, Consistency::Local, None);
    watcher.lane.push(2, Step::Unsubscribe { watch: 3 }, Consistency::Local, None);
    assert_eq!(told(&room, &watcher), ["reply 1 at 8", "reply 2: NoWatcher"]);
    room.apply(&[writer.write(7, delete("/a/d"))]);
    assert_eq!(told(&room, &watcher), ["1: */a of 9", "2: -/a/d of 9", "all: up to 9"]);
    assert_eq!(room.shared.watch_count(), 2);
    room.shared.detach(&watcher.lane);
    assert_eq!(room.shared.watch_count(), 0);
}

#[test]
fn one_that_begins_in_the_past_is_told_of_it_and_then_of_what_happens() {
    let (mut room, watcher, writer) = story();
    // What was changed again since then does not bring its data: the later event does.
    assert_eq!(
        subscribe(&room, &watcher, 9, "/a", FeedKind::Subtree, Some(at(2))),
        ["reply 9 at 5", "9: +/a of 3", "9: /a=2 of 4", "9: +/a/b=b of 5", "9: up to 5"]
    );
    room.apply(&[writer.write(4, delete("/a/b"))]);
    assert_eq!(told(&room, &watcher), ["9: -/a/b of 6", "all: up to 6"]);
    // Where the present state begins there is nothing to catch up with.
    assert_eq!(subscribe(&room, &watcher, 10, "/a", FeedKind::Subtree, Some(at(6))), ["reply 10 at 6"]);
    assert_eq!(subscribe(&room, &watcher, 11, "/a", FeedKind::Subtree, Some(at(7))), ["reply 11: BadArguments"]);
    assert_eq!(subscribe(&room, &watcher, 9, "/a", FeedKind::Subtree, None), ["reply 9: BadArguments"], "taken");
    assert_eq!(subscribe(&room, &watcher, 12, "a", FeedKind::Subtree, None), ["reply 12: BadArguments"]);
    assert_eq!(subscribe(&room, &watcher, 0, "/a", FeedKind::Subtree, None), ["reply 0: BadArguments"]);
}

#[test]
fn one_that_is_asked_for_in_the_middle_of_a_batch_misses_nothing_of_it() {
    let (mut room, watcher, writer) = story();
    for (watch, after) in [(8, None), (9, Some(at(4)))] {
        let interest = Interest { kind: FeedKind::Subtree, with_nodes: true };
        let subscription = Subscription { path: "/a".into(), interest };
        watcher.lane.push(watch, Step::Subscribe { watch, subscription, after }, Consistency::Local, None);
    }
    watcher.expects(1);
    // Both are answered between the two entries.
    room.apply(&[writer.write(4, set("/a", "6")), watcher.write(1, set("/a", "7"))]);
    let sent = told(&room, &watcher);
    assert_eq!(sent[..4], ["reply 8 at 6", "reply 9 at 6", "8: /a=7 of 7", "reply 1 at 7"]);
    assert_eq!(sent[4..], ["9: +/a/b=b of 5", "9: /a of 6", "9: /a=7 of 7", "9: up to 7"]);
}

#[test]
fn a_client_that_reads_slowly_falls_behind_and_catches_up_and_nobody_waits_for_it() {
    let (mut room, slow, writer) = story();
    let quick = room.connect(3, Protocol::Grpc);
    subscribe(&room, &slow, 1, "/a", FeedKind::Node, None);
    subscribe(&room, &quick, 1, "/a", FeedKind::Node, None);
    let large: &'static str = Box::leak("x".repeat(UNREAD_BYTES_MAX / 4).into_boxed_str());
    let (mut n, mut expected, mut seen) = (3, Vec::new(), Vec::new());
    let mut write = |room: &mut Room, data| {
        n += 1;
        room.apply(&[writer.write(n, set("/a", data))]);
        expected.push(room.counter);
        told(room, &quick)
    };
    for _ in 0..12 {
        assert_eq!(write(&mut room, large).len(), 2, "one that reads is told at once");
    }
    let mut out = Vec::new();
    slow.lane.take_outgoing(&mut out);
    let waited = out.len();
    assert!(waited < 15, "{waited} items waited");
    // What happens while it is behind comes in its turn.
    write(&mut room, "last");
    for _ in 0..20 {
        room.shared.advance(&slow.lane);
        slow.lane.take_outgoing(&mut out);
    }
    write(&mut room, "live");
    slow.lane.take_outgoing(&mut out);
    let mut superseded = 0;
    for outgoing in &out {
        match outgoing {
            Outgoing::Feed(FeedNotice::Changes { zxid, events, .. }) => {
                seen.push(zxid.counter());
                superseded += usize::from(events[0].node.is_none());
            }
            Outgoing::Feed(FeedNotice::Bookmark { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, expected, "everything, once, in order");
    assert!(superseded > 0, "what came again later did not bring its data");
    assert!(!slow.lane.is_closed());
}

#[test]
fn what_is_forgotten_is_told_as_a_gap_with_the_state_to_read() {
    let (mut room, watcher, writer) = story();
    room.apply.bound_feed(FeedBounds { bytes: 100, age_ms: 1_000_000 });
    for n in 4..10 {
        room.apply(&[writer.write(n, set("/a", "x"))]);
    }
    let floor = room.apply.feed().floor();
    assert!(floor > at(5) && floor < at(11));
    assert_eq!(
        subscribe(&room, &watcher, 9, "/a", FeedKind::Node, Some(at(5))),
        ["reply 9 at 11", "9: gap from 5 to 11"]
    );
    assert_eq!(subscribe(&room, &watcher, 8, "/a", FeedKind::Node, Some(floor)).last().unwrap(), "8: up to 11");
    room.apply(&[writer.write(10, set("/a", "y"))]);
    assert_eq!(told(&room, &watcher), ["8: /a=y of 12", "9: /a=y of 12", "all: up to 12"]);
}

#[test]
fn who_may_not_read_a_znode_is_told_nothing_of_it_now_or_later() {
    let (mut room, watcher, writer) = story();
    subscribe(&room, &watcher, 1, "/", FeedKind::Subtree, None);
    let acl = vec![Acl { perms: perms::ALL, id: Id::new("digest", "me:x") }];
    let secret = Create {
        acl: Some(acl),
        ..match create("/s", "secret") {
            WriteOp::Create(create) => create,
            _ => unreachable!(),
        }
    };
    room.apply(&[writer.write(4, WriteOp::Create(secret)), writer.write(5, create("/t", ""))]);
    assert_eq!(told(&room, &watcher), ["1: +/t= of 7", "all: up to 7"]);
    let sent = subscribe(&room, &watcher, 2, "/", FeedKind::Subtree, Some(at(5)));
    assert_eq!(sent, ["reply 2 at 7", "2: +/t= of 7", "2: up to 7"]);
}

#[test]
fn an_installed_snapshot_brings_the_feed_with_it() {
    let (mut room, _, writer) = story();
    let mut other = Room::new();
    other.apply.replace_store(MemoryStore::from_snapshot(room.apply.store().snapshot()));
    other.counter = room.counter;
    let watcher = other.connect(7, Protocol::Grpc);
    other.apply(&[writer.write(4, set("/a", "x"))]);
    let sent = subscribe(&other, &watcher, 1, "/a", FeedKind::Node, Some(at(3)));
    assert_eq!(sent, ["reply 1 at 7", "1: /a of 4", "1: */a of 5", "1: /a=x of 7", "1: up to 7"]);
}

/// Persistent watches at /a and recursive ones at /a/b, set again by a client of ZooKeeper's protocol.
fn set_again(since: Zxid, replay: bool) -> Step {
    Step::SetWatches(SetWatches {
        relative_zxid: since,
        persistent: vec!["/a".into()],
        persistent_recursive: vec!["/a/b".into(), "/a".into()],
        replay,
        ..SetWatches::default()
    })
}

#[test]
fn persistent_watches_set_again_are_told_what_they_missed_each_event_once() {
    let (mut room, _, writer) = story();
    room.apply(&[writer.write(4, create("/a/b/c", "")), writer.write(5, set("/a", "x"))]);
    let again = room.connect(3, Protocol::Wire);
    let register = |since, replay| {
        again.lane.push(1, set_again(since, replay), Consistency::Local, None);
        told(&room, &again)
    };
    assert_eq!(
        register(at(4), true),
        [
            "event NodeCreated /a/b of 5",
            "event NodeChildrenChanged /a of 5",
            "event NodeCreated /a/b/c of 6",
            "event NodeDataChanged /a of 7",
            "reply 1 at 8"
        ]
    );
    assert_eq!(register(at(4), false), ["reply 1 at 8"], "as ZooKeeper does");
    assert_eq!(register(at(8), true), ["reply 1 at 8"]);
    room.apply(&[writer.write(6, set("/a", "y"))]);
    assert_eq!(told(&room, &again), ["event NodeDataChanged /a of 9"], "and they are armed");
}

#[test]
fn what_was_missed_in_the_batch_that_is_being_executed_is_replayed_too() {
    let (mut room, _, writer) = story();
    let again = room.connect(3, Protocol::Grpc);
    again.lane.push(50, set_again(at(6), true), Consistency::Local, None);
    again.expects(1);
    room.apply(&[writer.write(4, set("/a", "x")), again.write(1, set("/a", "y"))]);
    assert_eq!(
        told(&room, &again),
        ["event NodeDataChanged /a of 7", "reply 50 at 7", "event NodeDataChanged /a of 8", "reply 1 at 8"]
    );
}

#[test]
fn a_past_that_is_forgotten_is_not_replayed_in_part() {
    let (mut room, _, writer) = story();
    room.apply.bound_feed(FeedBounds { bytes: 60, age_ms: 1_000_000 });
    for n in 4..8 {
        room.apply(&[writer.write(n, set("/a", "x"))]);
    }
    let again = room.connect(3, Protocol::Wire);
    again.lane.push(1, set_again(at(4), true), Consistency::Local, None);
    assert_eq!(told(&room, &again), [format!("reply 1 at {}", room.counter)]);
}

/// One of each kind of write; what each answers depends on everything before.
fn script(first: u64, joined: &Joined) -> Vec<Txn> {
    let numbered = |path: &str, mode| match create(path, "") {
        WriteOp::Create(op) => WriteOp::Create(Create { mode, ..op }),
        _ => unreachable!(),
    };
    let op = |op| match op {
        WriteOp::Create(op) => MultiOp::Create(op),
        _ => unreachable!(),
    };
    let ops = vec![
        numbered("/a/n-", CreateMode::PersistentSequential),
        numbered("/a/e-", CreateMode::EphemeralSequential),
        set("/a", "x"),
        WriteOp::SetAcl { path: "/a".into(), acl: Some(Acl::open()), version: -1 },
        WriteOp::Multi(vec![
            op(numbered("/a/m-", CreateMode::PersistentSequential)),
            MultiOp::SetData { path: "/a".into(), data: None, version: -1 },
        ]),
        delete("/missing"),
        set("/a", "never"),
        numbered("/a/n-", CreateMode::PersistentSequential),
    ];
    let ops = ops.into_iter().enumerate().map(|(at, op)| match (at, op) {
        // A refusal is a result, too.
        (6, WriteOp::SetData { path, data, .. }) => WriteOp::SetData { path, data, version: 1 << 20 },
        (_, op) => op,
    });
    ops.zip(first..).map(|(op, n)| joined.write(n, op)).collect()
}

/// What was done under an old connection, and what is sent again over a new one, in both orders and mixed: each write is done
/// once, in order, and answered with what it did.
#[test]
fn every_kind_of_write_is_done_once_whichever_copy_comes_first() {
    let expected = {
        let mut room = Room::new();
        let client = room.connect(1, Protocol::Grpc);
        room.apply(&[client.write(1, create("/a", ""))]);
        let txns = script(2, &client);
        (2..).zip(&txns).for_each(|(n, _)| client.expects(n));
        room.apply(&txns);
        answers(&room, &client)
    };
    assert_eq!(expected.len(), 8);
    // So many were executed for the old connection before the new one took over; the rest of what it had sent comes behind.
    for done in 0..=8 {
        for late in [false, true] {
            let mut room = Room::new();
            let old = room.connect(1, Protocol::Grpc);
            room.apply(&[old.write(1, create("/a", ""))]);
            let sent = script(2, &old);
            room.apply(&sent[..done]);
            let attach = Command::Attach { timeout_ms: 4_000, server: ME, nonce: 8, keeps_results: true };
            let new = room.join(1, Protocol::Grpc, attach);
            let again = script(2, &new);
            (2..).zip(&again).for_each(|(n, _)| new.expects(n));
            if late {
                room.apply(&sent);
                room.apply(&again);
            } else {
                // Alternating, the new copy first; and everything twice.
                let mixed: Vec<Txn> =
                    again.iter().zip(&sent).flat_map(|(new, old)| [new.clone(), old.clone()]).collect();
                room.apply(&mixed);
                room.apply(&again);
            }
            assert_eq!(answers(&room, &new), expected, "{done} done before, old copies late: {late}");
            let names = read::stat(&room.shared.published().view, "/a").unwrap();
            assert_eq!((names.num_children, names.version, names.aversion), (4, 2, 1));
        }
    }
}

/// Answers without what depends on the zxids of one run.
fn answers(room: &Room, to: &Joined) -> Vec<(u64, String)> {
    fn plain(answer: &Answer) -> String {
        match answer {
            Answer::Created { path, stat } => format!("created {path} {}", stat.version),
            Answer::Stat(stat) => format!("version {} {} {}", stat.version, stat.aversion, stat.cversion),
            Answer::Multi(answers) => answers.iter().map(plain).collect::<Vec<_>>().join(", "),
            other => format!("{other:?}"),
        }
    }
    let replies = room.replies(to).into_iter();
    replies.map(|(n, result)| (n, result.map_or_else(|error| format!("{error:?}"), |answer| plain(&answer)))).collect()
}
