//! Scripts: what happened to a session, and everything it sent and told because of it.

use corral_proto::{CreateMode, EventKind, Stat};

use super::*;
use crate::feeds::WatchMode;

const TIMEOUT: Duration = Duration::from_millis(3_000);

/// A session of 3 s with a clock, callers named by numbers, and what it sends and tells as text.
struct Script {
    session: Session<u32>,
    now: Duration,
    callers: u32,
}

fn path(path: &str) -> String {
    path.to_owned()
}

fn create(at: &str) -> Op {
    Op::Create { path: path(at), data: None, options: CreateMode::Persistent.into() }
}

fn get(at: &str) -> Op {
    Op::GetData { path: path(at) }
}

fn stat() -> Answer {
    Answer::Stat(Stat::default())
}

fn data() -> Answer {
    Answer::Data { data: None, stat: Stat::default() }
}

impl Script {
    fn new() -> Script {
        Script::with_auth(&[])
    }

    fn with_auth(auth: &[(&str, &str)]) -> Script {
        let auth = auth.iter().map(|(scheme, auth)| (path(scheme), Bytes::copy_from_slice(auth.as_bytes()))).collect();
        Script { session: Session::new(TIMEOUT, auth), now: Duration::ZERO, callers: 0 }
    }

    fn connected() -> Script {
        let mut script = Script::new();
        assert_eq!(script.connect(0), Ok(vec![path("Connected")]));
        script
    }

    fn after(&mut self, ms: u64) -> &mut Script {
        self.now += Duration::from_millis(ms);
        self
    }

    fn connect(&mut self, last_n: u64) -> Result<Vec<String>, String> {
        self.connect_as(SessionId(7), last_n)
    }

    fn connect_as(&mut self, session: SessionId, last_n: u64) -> Result<Vec<String>, String> {
        let password = Bytes::from_static(b"pw");
        let attached =
            Attached { session, password, timeout: TIMEOUT, server: ServerId(1), last_n, request_bytes_max: 1 << 20 };
        let mut out = Vec::new();
        self.session.on_connected(self.now, self.now, attached, &mut out)?;
        Ok(self.told(out))
    }

    /// A call; what it was told at once.
    fn call(&mut self, op: Op) -> Vec<String> {
        self.call_arming(op, None)
    }

    fn call_arming(&mut self, op: Op, arms: Option<u64>) -> Vec<String> {
        self.callers += 1;
        let mut out = Vec::new();
        self.session.submit(self.now, op, Consistency::Local, arms.map(WatchId), self.callers, &mut out);
        self.told(out)
    }

    /// What goes out now: id, operation, number, and up to where writes were answered.
    fn send(&mut self) -> Vec<String> {
        let mut sent = Vec::new();
        while self.session.can_send() {
            self.session.take_batch(self.now, |out| {
                let detail = match out.op {
                    Op::SetWatches(set) => {
                        let lists = [&set.data, &set.exist, &set.child];
                        format!(" since {:?} {lists:?}", set.relative_zxid)
                    }
                    Op::AddAuth { scheme, .. } => format!(" {scheme}"),
                    Op::Subscribe { name, path, after, .. } => format!(" {path} as {name} after {after:?}"),
                    Op::Unsubscribe { name } => format!(" {name}"),
                    op => op.path().map_or_else(String::new, |path| format!(" {path}")),
                };
                let watch = if out.watch { " watch" } else { "" };
                let number =
                    if out.n > 0 { format!(" n={} answered={}", out.n, out.answered_through) } else { String::new() };
                sent.push(format!("{}: {}{detail}{watch}{number}", out.id, out.op.name()));
            });
        }
        sent
    }

    fn answer(&mut self, id: u64, zxid: u64, result: Result<Answer, ErrorCode>) -> Result<Vec<String>, String> {
        let mut out = Vec::new();
        self.session.on_answer(self.now, id, Zxid(zxid), result, &mut out)?;
        Ok(self.told(out))
    }

    fn answer_ok(&mut self, id: u64, zxid: u64, answer: Answer) -> Vec<String> {
        self.answer(id, zxid, Ok(answer)).unwrap()
    }

    fn event(&mut self, kind: EventKind, at: &str, zxid: Option<u64>) -> Vec<String> {
        let mut out = Vec::new();
        let event = WatchedEvent { kind, path: path(at), zxid: zxid.map(Zxid) };
        self.session.on_event(self.now, event, &mut out);
        self.told(out)
    }

    /// One event of an entry for a subscription.
    fn changes(&mut self, name: u64, zxid: u64) -> Vec<String> {
        let mut out = Vec::new();
        let event = FeedEvent { kind: EventKind::NodeDataChanged, path: path("/p"), node: None };
        self.session.on_changes(self.now, name, Zxid(zxid), vec![event], &mut out);
        self.told(out)
    }

    fn bookmark(&mut self, name: u64, zxid: u64) -> Vec<String> {
        let mut out = Vec::new();
        self.session.on_bookmark(self.now, name, Zxid(zxid), &mut out);
        self.told(out)
    }

    fn cut(&mut self) -> Vec<String> {
        let mut out = Vec::new();
        self.session.on_disconnected(&mut out);
        self.told(out)
    }

    fn end(&mut self, reason: EndReason) -> Vec<String> {
        let mut out = Vec::new();
        self.session.end(self.now, reason, &mut out);
        self.told(out)
    }

    fn told(&self, out: Vec<Output<u32>>) -> Vec<String> {
        out.into_iter()
            .map(|output| match output {
                Output::Done { token, op, result, .. } => {
                    let result = match result {
                        Ok(_) => path("ok"),
                        Err(Failure::Refused(code)) => format!("{code:?}"),
                        Err(Failure::Ended { reason, outcome_unknown }) => {
                            format!("{reason:?}{}", if outcome_unknown { ", outcome unknown" } else { "" })
                        }
                    };
                    format!("caller {token}: {} {result}", op.name())
                }
                Output::Fired { watch, event } => format!("watch {}: {:?} {}", watch.0, event.kind, event.path),
                Output::Feed { watch, item } => match item {
                    FeedItem::Changes(changes) => {
                        format!("feed {}: {} at {:?}", watch.0, changes.events.len(), changes.zxid)
                    }
                    FeedItem::Bookmark(zxid) => format!("feed {}: bookmark {zxid:?}", watch.0),
                    FeedItem::Gap(gap) => format!("feed {}: {gap}", watch.0),
                },
                Output::Phase => format!("{:?}", self.session.phase()),
            })
            .collect()
    }
}

#[test]
fn writes_are_numbered_and_reads_are_not() {
    let mut script = Script::connected();
    script.call(create("/a"));
    script.call(get("/a"));
    script.call(create("/b"));
    assert_eq!(script.send(), ["1: create /a n=1 answered=0", "2: get /a", "3: create /b n=2 answered=0"]);
    assert_eq!(script.answer_ok(1, 10, stat()), ["caller 1: create ok"]);
    assert_eq!(script.answer(2, 10, Err(ErrorCode::NoNode)).unwrap(), ["caller 2: get NoNode"]);
    script.call(create("/c"));
    assert_eq!(script.send(), ["4: create /c n=3 answered=1"]);
    assert_eq!(script.session.last_zxid(), Zxid(10));
}

#[test]
fn after_a_cut_what_is_unanswered_goes_again_in_order_under_its_numbers_before_what_is_new() {
    let mut script = Script::connected();
    script.call(create("/a"));
    script.call(create("/b"));
    script.call(get("/b"));
    script.call(create("/c"));
    script.send();
    script.answer_ok(1, 10, stat());
    script.call(create("/d"));
    assert_eq!(script.cut(), ["Suspended"]);
    script.call(create("/e"));
    assert_eq!(script.send(), [""; 0], "nothing can be sent");
    // The server had run /b, and its answer was lost.
    assert_eq!(script.connect(2).unwrap(), ["Connected"]);
    assert_eq!(
        script.send(),
        [
            "2: create /b n=2 answered=1",
            "3: get /b",
            "4: create /c n=3 answered=1",
            "5: create /d n=4 answered=1",
            "6: create /e n=5 answered=1"
        ]
    );
    assert_eq!(script.answer_ok(2, 11, stat()), ["caller 2: create ok"]);
}

#[test]
fn a_refused_write_counts_as_answered() {
    let mut script = Script::connected();
    script.call(create("/a"));
    script.send();
    script.answer(1, 10, Err(ErrorCode::NodeExists)).unwrap();
    script.call(create("/b"));
    assert_eq!(script.send(), ["2: create /b n=2 answered=1"]);
}

#[test]
fn a_server_whose_memory_does_not_fit_is_refused() {
    let mut script = Script::connected();
    script.call(create("/a"));
    script.call(create("/b"));
    script.send();
    script.answer_ok(1, 10, stat());
    script.cut();
    assert!(script.connect(0).unwrap_err().contains("executed the writes up to 0; answered were those up to 1"));
    assert!(script.connect(3).unwrap_err().contains("made those up to 2"));
    assert!(script.connect_as(SessionId(8), 1).unwrap_err().contains("instead of 0x7"));
    assert_eq!(script.session.phase(), &Phase::Suspended);
    assert_eq!(script.connect(1).unwrap(), ["Connected"]);
}

#[test]
fn an_answer_out_of_turn_is_a_violation() {
    let mut script = Script::connected();
    script.call(get("/a"));
    script.call(get("/b"));
    script.send();
    assert_eq!(script.answer(2, 1, Ok(data())).unwrap_err(), "an answer to request 2 came, that to request 1 was due");
}

#[test]
fn pings_keep_an_idle_session_and_silence_ends_a_connection() {
    let mut script = Script::connected();
    assert_eq!(script.session.next_tick(), TIMEOUT / 3);
    script.after(999);
    assert_eq!((script.session.on_tick(script.now), script.send()), (Pulse::Alive, vec![]));
    script.after(1);
    assert_eq!((script.session.on_tick(script.now), script.send()), (Pulse::Alive, vec![path("1: ping")]));
    script.after(500);
    assert_eq!(script.answer_ok(1, 5, Answer::Done), [""; 0]);
    // Nothing more is heard from 1.5 s on: two thirds of the timeout later the connection is given up.
    script.after(500);
    assert_eq!((script.session.on_tick(script.now), script.send()), (Pulse::Alive, vec![path("2: ping")]));
    script.after(1_499);
    assert_eq!(script.session.on_tick(script.now), Pulse::Alive);
    script.after(1);
    assert_eq!(script.session.on_tick(script.now), Pulse::Dead);
}

#[test]
fn a_session_with_a_full_window_still_pings() {
    let mut script = Script::connected();
    for _ in 0..WINDOW_REQUESTS + 5 {
        script.call(get("/a"));
    }
    assert_eq!(script.send().len(), WINDOW_REQUESTS);
    script.after(1_000);
    script.session.on_tick(script.now);
    assert_eq!(script.send(), [format!("{}: ping", WINDOW_REQUESTS + 6)]);
}

#[test]
fn the_window_bounds_requests_bytes_and_results() {
    let mut script = Script::connected();
    let large = || Op::SetData { path: path("/a"), data: Some(vec![0; 1024 * 1024].into()), version: -1 };
    for _ in 0..20 {
        script.call(large());
    }
    assert_eq!(script.send().len(), WINDOW_BYTES / (1024 * 1024) - 1);
    script.answer_ok(1, 1, stat());
    assert_eq!(script.send().len(), 1);

    let mut script = Script::connected();
    let multi = || {
        let check = |n: u32| crate::op::MultiOp::Check { path: format!("/some/path/{n:0100}"), version: -1 };
        Op::Multi((0..1_000).map(check).collect())
    };
    for _ in 0..20 {
        script.call(multi());
    }
    assert_eq!(script.send().len(), WINDOW_RESULT_BYTES / multi().result_bytes());
}

#[test]
fn a_request_larger_than_the_window_goes_alone() {
    let mut script = Script::connected();
    script.call(get("/a"));
    script.call(Op::SetData { path: path("/a"), data: Some(vec![0; WINDOW_BYTES + 1].into()), version: -1 });
    assert_eq!(script.send(), ["1: get /a"]);
    script.answer_ok(1, 1, data());
    assert_eq!(script.send(), ["2: set /a n=1 answered=0"]);
}

#[test]
fn the_lease_counts_from_when_the_acknowledged_request_was_sent() {
    let mut script = Script::connected();
    let lease = |script: &Script| script.session.lease_until(Some(Duration::from_millis(100))).as_millis();
    assert_eq!(lease(&script), 2_900, "the handshake counts");
    script.after(500).call(get("/a"));
    script.after(100);
    script.send();
    assert_eq!(lease(&script), 2_900, "sent is not acknowledged");
    script.after(900);
    script.answer_ok(1, 1, data());
    assert_eq!(lease(&script), 600 + 2_900);
    assert_eq!(script.session.lease_until(None).as_millis(), 600 + 1_350, "55 % is the usual margin");
    script.cut();
    assert_eq!(lease(&script), 600 + 2_900, "a lost connection changes nothing");
    script.after(100);
    script.end(EndReason::Expired);
    assert_eq!(lease(&script), 1_600, "not beyond the end");
}

#[test]
fn a_request_sent_again_renews_the_lease_as_of_the_second_time() {
    let mut script = Script::connected();
    script.call(create("/a"));
    script.send();
    script.after(1_000).cut();
    script.after(1_000).connect(1).unwrap();
    script.after(10).send();
    script.answer_ok(1, 1, stat());
    assert_eq!(script.session.lease_until(Some(Duration::ZERO)).as_millis(), 2_010 + 3_000);
}

#[test]
fn identities_come_first_on_every_connection() {
    let mut script = Script::with_auth(&[("digest", "a:b")]);
    script.connect(0).unwrap();
    script.call(create("/a"));
    script.call(Op::AddAuth { scheme: path("other"), auth: Bytes::new() });
    script.call(create("/b"));
    // The caller's own proof has its place among the writes; once proven it is repeated like the first.
    assert_eq!(
        script.send(),
        ["1: add auth digest", "2: create /a n=1 answered=0", "3: add auth other", "4: create /b n=2 answered=0"]
    );
    script.answer_ok(1, 1, Answer::Done);
    script.answer_ok(2, 1, stat());
    assert_eq!(script.answer_ok(3, 1, Answer::Done), ["caller 2: add auth ok"]);
    script.cut();
    script.connect(2).unwrap();
    assert_eq!(script.send(), ["6: add auth digest", "5: add auth other", "4: create /b n=2 answered=1"]);
}

#[test]
fn an_identity_refused_to_its_caller_is_forgotten_and_one_refused_later_ends_the_session() {
    let mut script = Script::connected();
    let auth = |scheme: &str| Op::AddAuth { scheme: path(scheme), auth: Bytes::new() };
    script.call(auth("good"));
    script.call(auth("bad"));
    script.send();
    script.answer_ok(1, 1, Answer::Done);
    assert_eq!(script.answer(2, 1, Err(ErrorCode::AuthFailed)).unwrap(), ["caller 2: add auth AuthFailed"]);
    script.cut();
    script.connect(0).unwrap();
    assert_eq!(script.send(), ["3: add auth good"]);
    let told = script.answer(3, 1, Err(ErrorCode::AuthFailed)).unwrap();
    assert_eq!(told, ["Ended(AuthFailed { scheme: \"good\" })"]);
}

fn subscribe(at: &str, after: Option<u64>) -> Op {
    let after = after.map(Zxid);
    Op::Subscribe { name: 0, path: path(at), mode: WatchMode::Recursive, with_nodes: false, after }
}

/// A data watch (1) on /a, an exist watch (2) on /b, a child watch (3) on /a, feeds (4, 5) of /p and /r, all armed at zxid
/// 20.
fn with_watches() -> Script {
    let mut script = Script::connected();
    script.call_arming(get("/a"), Some(1));
    script.call_arming(Op::Exists { path: path("/b") }, Some(2));
    script.call_arming(Op::GetChildren { path: path("/a"), with_stat: true }, Some(3));
    script.call_arming(subscribe("/p", None), Some(4));
    script.call_arming(subscribe("/r", None), Some(5));
    let reads = ["1: get /a watch", "2: exists /b watch", "3: get children /a watch"];
    assert_eq!(script.send(), [&reads[..], &["4: watch /p as 1 after None", "5: watch /r as 2 after None"]].concat());
    script.answer_ok(1, 20, data());
    script.answer(2, 20, Err(ErrorCode::NoNode)).unwrap();
    script.answer_ok(3, 20, Answer::Children { children: vec![], stat: Stat::default() });
    script.answer_ok(4, 20, Answer::Done);
    script.answer_ok(5, 20, Answer::Done);
    script
}

const ALL_AGAIN: &str = r#"[["/a"], ["/b"], ["/a"]]"#;

#[test]
fn watches_are_set_again_before_anything_else_as_of_the_last_state_seen() {
    let mut script = with_watches();
    script.call(create("/c"));
    script.send();
    script.cut();
    script.connect(0).unwrap();
    let again = [
        format!("9: set watches since 0:20 {ALL_AGAIN}"),
        path("8: watch /p as 3 after Some(0:20)"),
        path("7: watch /r as 4 after Some(0:20)"),
        path("6: create /c n=1 answered=0"),
    ];
    assert_eq!(script.send(), again);
    // What was missed fires, and only then answers show the news.
    assert_eq!(script.event(EventKind::NodeDataChanged, "/a", None), ["watch 1: NodeDataChanged /a"]);
    assert_eq!(script.answer_ok(9, 30, Answer::Done), [""; 0]);
    assert_eq!(script.answer_ok(8, 30, Answer::Done), [""; 0], "it is behind");
    assert_eq!(script.answer_ok(7, 30, Answer::Done), [""; 0]);
    assert_eq!(script.changes(4, 25), ["feed 5: 1 at 0:25"]);
    assert_eq!(script.bookmark(3, 30), ["feed 4: bookmark 0:30"]);
    assert_eq!(script.bookmark(4, 30), ["feed 5: bookmark 0:30"]);
    assert_eq!(script.answer_ok(6, 31, stat()), ["caller 6: create ok"]);
    script.cut();
    assert_eq!(script.changes(4, 32), [""; 0], "it came too late");
    assert_eq!(script.bookmark(0, 32), [""; 0], "and so did this");
    script.connect(1).unwrap();
    let again = [
        r#"12: set watches since 0:31 [[], ["/b"], ["/a"]]"#,
        "11: watch /p as 5 after Some(0:30)",
        "10: watch /r as 6 after Some(0:30)",
    ];
    assert_eq!(script.send(), again, "the first one fired");
}

#[test]
fn news_between_two_cuts_are_not_taken_for_seen_before_the_watches_are_set_again() {
    let mut script = Script::with_auth(&[("digest", "x")]);
    script.connect(0).unwrap();
    script.call_arming(get("/a"), Some(1));
    script.send();
    script.answer_ok(1, 5, Answer::Done);
    script.answer_ok(2, 20, data());
    script.cut();
    script.connect(0).unwrap();
    assert_eq!(script.send(), ["4: add auth digest", "3: set watches since 0:20 [[\"/a\"], [], []]"]);
    // The answer shows a state of 50, but /a may have changed before it, and nobody has told.
    script.answer_ok(4, 50, Answer::Done);
    script.cut();
    script.connect(0).unwrap();
    assert!(script.send()[1].contains("since 0:20"));
    assert_eq!(script.session.hello().last_zxid, Zxid(50), "the next server must not be older than that");
}

#[test]
fn events_do_not_count_as_a_state_seen_because_more_of_the_same_entry_may_follow() {
    let mut script = with_watches();
    assert_eq!(script.event(EventKind::NodeCreated, "/b", Some(40)), ["watch 2: NodeCreated /b"]);
    script.cut();
    script.connect(0).unwrap();
    assert_eq!(script.send()[0], r#"8: set watches since 0:20 [["/a"], [], ["/a"]]"#);
    assert_eq!(script.session.last_zxid(), Zxid(40));
}

#[test]
fn a_watch_whose_read_is_unanswered_is_armed_by_the_read_sent_again() {
    let mut script = Script::connected();
    script.call_arming(get("/a"), Some(1));
    script.send();
    script.cut();
    script.connect(0).unwrap();
    assert_eq!(script.send(), ["1: get /a watch"]);
    assert_eq!(script.event(EventKind::NodeDeleted, "/a", Some(3)), [""; 0], "not armed yet");
    script.answer_ok(1, 4, data());
    assert_eq!(script.event(EventKind::NodeDeleted, "/a", Some(5)), ["watch 1: NodeDeleted /a"]);
}

#[test]
fn a_read_that_is_refused_arms_nothing() {
    let mut script = Script::connected();
    script.call_arming(get("/a"), Some(1));
    script.send();
    script.answer(1, 4, Err(ErrorCode::NoNode)).unwrap();
    assert_eq!(script.event(EventKind::NodeCreated, "/a", Some(5)), [""; 0]);
}

#[test]
fn a_watch_that_nobody_holds_is_taken_from_the_server() {
    let mut script = with_watches();
    script.session.forget(WatchId(5));
    script.session.forget(WatchId(3));
    assert_eq!(script.send(), ["6: end watch 2", "7: remove watch /a"]);
    script.answer_ok(6, 20, Answer::Done);
    assert_eq!(script.answer(7, 20, Err(ErrorCode::NoWatcher)).unwrap(), [""; 0], "it had just fired: no matter");
}

#[test]
fn a_watch_dropped_before_its_answer_is_removed_after_it() {
    let mut script = Script::connected();
    script.call_arming(subscribe("/p", None), Some(1));
    script.call_arming(get("/q"), Some(2));
    script.session.forget(WatchId(1));
    script.session.forget(WatchId(2));
    assert_eq!(script.send(), ["1: watch /p as 1 after None", "2: get /q watch"]);
    script.answer_ok(1, 4, Answer::Done);
    script.answer_ok(2, 4, data());
    assert_eq!(script.send(), ["3: end watch 1", "4: remove watch /q"]);
    assert_eq!(script.changes(1, 5), [""; 0]);
    assert_eq!(script.event(EventKind::NodeCreated, "/q", Some(5)), [""; 0]);
}

#[test]
fn a_feed_is_held_while_its_reader_is_slow_and_goes_on_where_it_was() {
    let mut script = Script::connected();
    script.call_arming(subscribe("/p", Some(3)), Some(1));
    script.send();
    script.answer_ok(1, 10, Answer::Done);
    script.changes(1, 5);
    script.session.hold(WatchId(1));
    assert_eq!(script.send(), ["2: end watch 1"]);
    assert_eq!(script.changes(1, 6), [""; 0], "it is not read");
    script.cut();
    script.connect(0).unwrap();
    assert_eq!(script.send(), [""; 0], "it is held on the next connection, too");
    script.session.resume(WatchId(1));
    assert_eq!(script.send(), ["3: watch /p as 2 after Some(0:5)"]);
    script.answer_ok(3, 10, Answer::Done);
    let mut out = Vec::new();
    script.session.on_gap(script.now, 2, Zxid(5), Zxid(11), &mut out);
    let told = script.told(out);
    assert_eq!(told, ["feed 1: events after 0x5 are not remembered any more; read again, from 0xb or later"]);
}

#[test]
fn a_watch_that_somebody_else_is_arming_stays() {
    let mut script = Script::connected();
    script.call_arming(get("/a"), Some(1));
    script.send();
    script.answer_ok(1, 4, data());
    script.call_arming(get("/a"), Some(2));
    script.session.forget(WatchId(1));
    assert_eq!(script.send(), ["2: get /a watch"], "a removal behind this would take the new watch away");
    script.answer_ok(2, 4, data());
    assert_eq!(script.event(EventKind::NodeDeleted, "/a", Some(5)), ["watch 2: NodeDeleted /a"]);
}

#[test]
fn an_expired_session_leaves_unknown_only_what_was_sent_and_changes_something() {
    let mut script = Script::connected();
    script.call(create("/a"));
    script.call(get("/a"));
    script.send();
    script.cut();
    script.call(create("/b"));
    assert_eq!(
        script.end(EndReason::Expired),
        [
            "caller 1: create Expired, outcome unknown",
            "caller 2: get Expired",
            "caller 3: create Expired",
            "Ended(Expired)"
        ]
    );
    assert_eq!(script.call(get("/a")), ["caller 4: get Expired"]);
    assert_eq!(script.call(Op::CloseSession), ["caller 5: close ok"], "there is nothing left to close");
    assert_eq!(script.end(EndReason::Stopped), [""; 0], "it ends once");
}

#[test]
fn close_comes_after_what_was_asked_before_and_nothing_comes_after_it() {
    let mut script = Script::connected();
    script.call(create("/a"));
    script.call(Op::CloseSession);
    assert_eq!(script.call(create("/b")), ["caller 3: create Closed"]);
    assert_eq!(script.call(Op::CloseSession), [""; 0], "it waits with the first");
    assert_eq!(script.send(), ["1: create /a n=1 answered=0", "2: close n=2 answered=0"]);
    script.answer_ok(1, 4, stat());
    let told = script.answer_ok(2, 5, Answer::Done);
    assert_eq!(told, ["caller 2: close ok", "caller 4: close ok", "Ended(Closed)"]);
}

#[test]
fn a_close_whose_answer_was_lost_is_done_when_the_session_is_gone() {
    let mut script = Script::connected();
    script.call(Op::CloseSession);
    script.send();
    script.cut();
    assert_eq!(script.end(EndReason::Expired), ["caller 1: close ok", "Ended(Closed)"]);
}

#[test]
fn a_close_that_reaches_nobody_gives_up_after_the_session_timeout() {
    let mut script = Script::connected();
    assert_eq!(script.session.give_up_at(), None);
    script.after(100).cut();
    script.after(100).call(Op::CloseSession);
    assert_eq!(script.session.give_up_at(), Some(Duration::from_millis(3_200)));
}

/// A server that is as correct as it is small: numbers in order, results kept until they are known to have arrived.
#[derive(Default)]
struct Model {
    last_n: u64,
    kept: BTreeMap<u64, u64>,
    zxid: u64,
    executed: Vec<String>,
}

impl Model {
    /// The zxid that answers a request: a write's own, the latest for a read.
    fn serve(&mut self, n: u64, answered_through: u64, path: &str) -> u64 {
        if n == 0 {
            return self.zxid;
        }
        self.kept.retain(|n, _| *n > answered_through);
        if n <= self.last_n {
            return *self.kept.get(&n).expect("a write came again after its answer had arrived");
        }
        assert_eq!(n, self.last_n + 1, "a write came before its turn");
        self.last_n = n;
        self.zxid += 1;
        self.kept.insert(n, self.zxid);
        self.executed.push(path.to_owned());
        self.zxid
    }
}

/// What may happen next. Each is possible at any time, and does nothing where it makes no sense.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write,
    Read,
    Send,
    Serve,
    Deliver,
    Cut,
    Connect,
}

proptest::proptest! {
    #[test]
    fn every_write_is_executed_once_and_in_order_and_every_call_is_answered_once_and_in_order(
        steps in proptest::collection::vec(
            proptest::sample::select(vec![
                Step::Write, Step::Write, Step::Read, Step::Send, Step::Send, Step::Serve, Step::Serve, Step::Serve,
                Step::Deliver, Step::Deliver, Step::Deliver, Step::Cut, Step::Connect, Step::Connect,
            ]),
            0..200,
        )
    ) {
        let mut session = Session::new(TIMEOUT, Vec::new());
        let mut model = Model::default();
        let (mut to_server, mut to_client) = (VecDeque::new(), VecDeque::new());
        let mut out = Vec::new();
        let (mut calls, mut written) = (0u32, Vec::new());
        // After the script everything is let through.
        let rest = std::iter::repeat_n([Step::Connect, Step::Send, Step::Serve, Step::Deliver], 300).flatten();
        for step in steps.into_iter().chain(rest) {
            let now = Duration::ZERO;
            match step {
                Step::Write => {
                    calls += 1;
                    written.push(format!("/{calls}"));
                    session.submit(now, create(&format!("/{calls}")), Consistency::Local, None, calls, &mut out);
                }
                Step::Read => {
                    calls += 1;
                    session.submit(now, get("/"), Consistency::Local, None, calls, &mut out);
                }
                Step::Send => session.take_batch(now, |out| {
                    let path = out.op.path().unwrap_or_default().to_owned();
                    to_server.push_back((out.id, out.n, out.answered_through, path));
                }),
                Step::Serve => {
                    if let Some((id, n, answered_through, path)) = to_server.pop_front() {
                        to_client.push_back((id, model.serve(n, answered_through, &path)));
                    }
                }
                Step::Deliver => {
                    if let Some((id, zxid)) = to_client.pop_front() {
                        session.on_answer(now, id, Zxid(zxid), Ok(stat()), &mut out).unwrap();
                    }
                }
                Step::Cut => {
                    to_server.clear();
                    to_client.clear();
                    session.on_disconnected(&mut out);
                }
                Step::Connect => {
                    if *session.phase() != Phase::Connected {
                        let attached = Attached {
                            session: SessionId(7),
                            password: Bytes::new(),
                            timeout: TIMEOUT,
                            server: ServerId(1),
                            last_n: model.last_n,
                            request_bytes_max: 1 << 20,
                        };
                        session.on_connected(now, now, attached, &mut out).unwrap();
                    }
                }
            }
        }
        proptest::prop_assert_eq!(model.executed, written);
        let answered: Vec<u32> =
            out.iter().filter_map(|output| if let Output::Done { token, .. } = output { Some(*token) } else { None }).collect();
        proptest::prop_assert_eq!(answered, (1..=calls).collect::<Vec<_>>());
    }
}
