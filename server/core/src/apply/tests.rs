//! Stories of one apply room: entries come, lanes answer.

use corral_proto::{Acl, CreateMode, Id, WatchKind, perms};

use super::*;
use crate::session::lane::{EVENT_BYTES_MAX, Step};
use crate::session::{Consistency, Outgoing, Protocol};
use crate::storage::memory::{MemoryStore, MemoryView};
use crate::tree::entry::Carrier;
use crate::tree::op::{Answer, Create, MultiOp, ReadOp, WriteOp};

pub(super) const ME: ServerId = ServerId(1);

/// One server's apply room and what clients see of it.
pub(super) struct Room {
    pub(super) apply: Apply<MemoryStore>,
    pub(super) shared: Arc<Shared<MemoryView>>,
    pub(super) counter: u32,
}

/// A connection of a session.
pub(super) struct Joined {
    pub(super) lane: Arc<Lane>,
    pub(super) session: SessionId,
    pub(super) attach: Zxid,
}

impl Room {
    pub(super) fn new() -> Room {
        let apply = Apply::new(ME, MemoryStore::new(), Vec::new());
        let shared = apply.shared();
        Room { apply, shared, counter: 0 }
    }

    fn entry(&mut self, txn: &Txn) -> Entry {
        self.counter += 1;
        Entry { zxid: Zxid::new(1, self.counter), stamp_ms: 1_000, hash: 0, payload: txn.encode() }
    }

    /// Executes these as one batch.
    pub(super) fn apply(&mut self, txns: &[Txn]) -> Applied {
        let entries: Vec<Entry> = txns.iter().map(|txn| self.entry(txn)).collect();
        self.apply.apply(&entries)
    }

    pub(super) fn connect(&mut self, session: i64, protocol: Protocol) -> Joined {
        let keeps_results = protocol == Protocol::Grpc;
        let command = Command::CreateSession { timeout_ms: 4_000, server: ME, nonce: 7, keeps_results };
        self.join(session, protocol, command)
    }

    pub(super) fn join(&mut self, session: i64, protocol: Protocol, command: Command) -> Joined {
        let session = SessionId(session);
        let nonce = match &command {
            Command::CreateSession { nonce, .. } | Command::Attach { nonce, .. } => *nonce,
            other => panic!("{other:?} is no handshake"),
        };
        let id = WatcherId(u64::from(self.counter) + 100);
        let lane = Arc::new(Lane::new(id, session, protocol, Vec::new(), Zxid::ZERO, Box::new(|| {})));
        assert!(self.shared.lanes.join(session, nonce, lane.clone()));
        self.apply(&[Txn { session, attach: Zxid::ZERO, n: 0, answered_through: 0, ids: Vec::new(), command }]);
        Joined { attach: lane.attach(), lane, session }
    }

    /// What the connection sends next.
    pub(super) fn sent(&self, to: &Joined) -> Vec<Outgoing> {
        let mut out = Vec::new();
        self.shared.advance(&to.lane);
        to.lane.take_outgoing(&mut out);
        out
    }

    /// The replies among it.
    pub(super) fn replies(&self, to: &Joined) -> Vec<(u64, Result<Answer, ErrorCode>)> {
        let reply = |outgoing| match outgoing {
            Outgoing::Reply { cookie, result, .. } => Some((cookie, result)),
            _ => None,
        };
        self.sent(to).into_iter().filter_map(reply).collect()
    }
}

impl Joined {
    pub(super) fn write(&self, n: u64, op: WriteOp) -> Txn {
        let Joined { session, attach, .. } = *self;
        Txn { session, attach, n, answered_through: 0, ids: Vec::new(), command: Command::Write(op) }
    }

    pub(super) fn expects(&self, n: u64) {
        self.lane.push(n, Step::Write { n }, Consistency::Local, None);
    }

    fn reads(&self, cookie: u64, path: &str, consistency: Consistency, tag: Option<u64>) {
        let op = ReadOp::GetData { path: path.to_owned() };
        self.lane.push(cookie, Step::Read { op, watch: false }, consistency, tag);
    }
}

pub(super) fn create(path: &str, data: &'static str) -> WriteOp {
    create_as(path, data, Acl::open())
}

pub(super) fn create_as(path: &str, data: &'static str, acl: Vec<Acl>) -> WriteOp {
    let data = Some(data.into());
    WriteOp::Create(Create { path: path.into(), data, acl: Some(acl), mode: CreateMode::Persistent, ttl_ms: 0 })
}

pub(super) fn set(path: &str, data: &'static str) -> WriteOp {
    WriteOp::SetData { path: path.into(), data: Some(data.into()), version: -1 }
}

fn data_of(reply: &(u64, Result<Answer, ErrorCode>)) -> (u64, &[u8]) {
    match &reply.1 {
        Ok(Answer::Data { data: Some(data), .. }) => (reply.0, data),
        other => panic!("no data: {other:?}"),
    }
}

#[test]
fn a_read_before_a_write_sees_the_state_just_before_it() {
    let mut room = Room::new();
    let client = room.connect(1, Protocol::Wire);
    client.expects(1);
    client.reads(50, "/a", Consistency::Local, None);
    client.expects(2);
    client.reads(51, "/a", Consistency::Local, None);
    // All four are in one batch: only the state between the two entries can answer the first read.
    room.apply(&[client.write(1, create("/a", "old")), client.write(2, set("/a", "new"))]);
    let replies = room.replies(&client);
    assert_eq!(replies.iter().map(|r| r.0).collect::<Vec<_>>(), [1, 50, 2, 51]);
    assert_eq!((data_of(&replies[1]), data_of(&replies[3])), ((50, &b"old"[..]), (51, &b"new"[..])));
}

#[test]
fn a_linearizable_read_does_not_take_the_double_of_an_older_write_for_the_one_behind_it() {
    let mut room = Room::new();
    let client = room.connect(1, Protocol::Wire);
    let other = room.connect(2, Protocol::Wire);
    client.expects(1);
    let first = client.write(1, create("/a", "old"));
    room.apply(std::slice::from_ref(&first));
    assert_eq!(room.replies(&client).len(), 1);

    // The read is asked for now, and so is the write behind it; what executes first is a double of the answered write,
    // and then somebody else's write, which was acknowledged elsewhere before the read was asked for.
    client.reads(50, "/a", Consistency::Linearizable, Some(9));
    client.expects(2);
    room.apply(&[first]);
    assert!(room.replies(&client).is_empty(), "the state at the double may be too old");
    room.apply(&[other.write(1, set("/a", "new"))]);
    client.lane.on_read_point(9, Zxid::new(1, room.counter));
    assert_eq!(data_of(&room.replies(&client)[0]), (50, &b"new"[..]));

    // The very write behind a read may answer it.
    client.reads(51, "/a", Consistency::Linearizable, Some(10));
    client.expects(3);
    room.apply(&[client.write(2, set("/a", "third"))]);
    let replies = room.replies(&client);
    assert_eq!(replies.iter().map(|r| r.0).collect::<Vec<_>>(), [2], "a read behind that write waits for its own");
    room.apply(&[client.write(3, set("/a", "fourth"))]);
    assert_eq!(data_of(&room.replies(&client)[0]), (51, &b"third"[..]));
}

#[test]
fn an_identity_counts_for_what_is_asked_behind_it() {
    let mut room = Room::new();
    let client = room.connect(1, Protocol::Wire);
    let me = Id::new("digest", "me:x");
    let acl = vec![Acl { perms: perms::ALL, id: me.clone() }];
    room.apply(&[client.write(1, create_as("/mine", "secret", acl))]);
    client.reads(50, "/mine", Consistency::Local, None);
    client.lane.push(51, Step::Identify { ids: vec![me.clone()], answer: Answer::Done }, Consistency::Local, None);
    client.reads(52, "/mine", Consistency::Local, None);
    let replies = room.replies(&client);
    assert_eq!(replies[0], (50, Err(ErrorCode::NoAuth)));
    assert_eq!(data_of(&replies[2]), (52, &b"secret"[..]));
    assert_eq!(*client.lane.ids(), [me]);
}

#[test]
fn a_repeated_write_whose_result_is_gone_is_answered_all_the_same() {
    let mut room = Room::new();
    let client = room.connect(1, Protocol::Grpc);
    let first = client.write(1, create("/a", ""));
    // The client says that it has the answer to 1, so its result goes; then it asks for 1 again.
    let second = Txn { answered_through: 1, ..client.write(2, create("/b", "")) };
    room.apply(&[first, second]);
    let attach = Command::Attach { timeout_ms: 4_000, server: ME, nonce: 8, keeps_results: true };
    let again = room.join(1, Protocol::Grpc, attach);
    again.expects(1);
    again.lane.push(60, Step::Answer(Ok(Answer::Done)), Consistency::Local, None);
    room.apply(&[again.write(1, create("/a", ""))]);
    let replies = room.replies(&again);
    assert_eq!(replies, [(1, Err(ErrorCode::RuntimeInconsistency)), (60, Ok(Answer::Done))]);
}

#[test]
fn the_result_of_a_large_multi_is_kept_for_its_retry() {
    let mut room = Room::new();
    let client = room.connect(1, Protocol::Grpc);
    let ops = |from: usize| {
        let op = |i| match create(&format!("/node-{i:08}"), "") {
            WriteOp::Create(op) => MultiOp::Create(op),
            _ => unreachable!(),
        };
        WriteOp::Multi((from..from + 15_000).map(op).collect())
    };
    let write = client.write(1, ops(0));
    room.apply(std::slice::from_ref(&write));
    let attach = Command::Attach { timeout_ms: 4_000, server: ME, nonce: 8, keeps_results: true };
    let again = room.join(1, Protocol::Grpc, attach);
    again.expects(1);
    room.apply(&[Txn { attach: again.attach, ..write }]);
    let replies = room.replies(&again);
    assert!(
        matches!(&replies[..], [(1, Ok(Answer::Multi(answers)))] if answers.len() == 15_000),
        "the kept result is the answer"
    );
}

#[test]
fn one_entry_may_have_more_events_than_may_wait_but_a_client_must_read_between_batches() {
    let mut room = Room::new();
    let watcher = room.connect(1, Protocol::Wire);
    let writer = room.connect(2, Protocol::Wire);
    let kind = WatchKind::PersistentRecursive;
    let watch =
        |joined: &Joined| joined.lane.push(1, Step::AddWatch { path: "/".into(), kind }, Consistency::Local, None);
    watch(&watcher);
    assert_eq!(room.replies(&watcher), [(1, Ok(Answer::Done))]);
    let name = "n".repeat(4_000);
    let mut n = 0;
    let mut multi = |ops: usize| {
        n += 1;
        let op = |i| match create(&format!("/{name}-{n}-{i}"), "") {
            WriteOp::Create(op) => MultiOp::Create(op),
            _ => unreachable!(),
        };
        writer.write(n, WriteOp::Multi((0..ops).map(op).collect()))
    };
    let storm = EVENT_BYTES_MAX / name.len() + 100;
    room.apply(&[multi(storm)]);
    let sent = room.sent(&watcher);
    assert_eq!(sent.len(), storm, "all events and no end");

    room.apply(&[multi(storm)]);
    room.apply(&[multi(1)]);
    let sent = room.sent(&watcher);
    assert!(matches!(sent.last(), Some(Outgoing::Close(CloseReason::SlowReader))), "{} items", sent.len());
}

/// A connection of a session that this server alone knows.
fn local(room: &mut Room, session: i64, connection: u64) -> Joined {
    let session = SessionId(session);
    let id = WatcherId(connection);
    let lane = Arc::new(Lane::new(id, session, Protocol::Wire, Vec::new(), Zxid::ZERO, Box::new(|| {})));
    let mut known = room.shared.local.lock();
    assert!(known.attach(0, session, 4_000, id) || known.open(0, session, 4_000, id));
    drop(known);
    lane.finish_handshake(Handshake::Attached { attach: Zxid::ZERO, timeout_ms: 4_000, last_n: 0 });
    room.shared.attach_local(&lane);
    Joined { attach: Zxid::ZERO, lane, session }
}

/// What it hands in, as the n-th write of its server.
fn carried(room: &Room, client: &Joined, n: u64, op: WriteOp) -> Txn {
    let number = room.shared.local.lock().number(client.session, client.lane.id).unwrap();
    client.expects(number);
    let carrier = Carrier { server: ME, attach: Zxid::new(1, 1), n };
    Txn { command: Command::LocalWrite { op, carrier }, ..client.write(number, set("/", "")) }
}

fn open_carrier(nonce: u64) -> Txn {
    let command = Command::OpenCarrier { server: ME, nonce };
    Txn { session: SessionId::NONE, attach: Zxid::ZERO, n: 0, answered_through: 0, ids: Vec::new(), command }
}

#[test]
fn local_sessions_are_answered_in_their_own_order_over_one_carrier() {
    let mut room = Room::new();
    room.apply(&[open_carrier(5)]);
    let (a, b) = (local(&mut room, 1, 10), local(&mut room, 2, 11));
    a.reads(50, "/a", Consistency::Local, None);
    let writes = [
        carried(&room, &a, 1, create("/a", "one")),
        carried(&room, &b, 2, create("/b", "")),
        carried(&room, &a, 3, set("/a", "two")),
    ];
    a.reads(51, "/a", Consistency::Local, None);
    // All twice, as after a change of leader.
    room.apply(&writes);
    room.apply(&writes);
    let replies = room.replies(&a);
    assert_eq!(replies[0], (50, Err(ErrorCode::NoNode)), "read before the write");
    assert!(
        matches!(replies[1..3], [(1, Ok(Answer::Created { .. })), (2, Ok(Answer::Stat(stat)))] if stat.version == 1)
    );
    assert_eq!(data_of(&replies[3]), (51, &b"two"[..]));
    assert_eq!(room.replies(&b).len(), 1);
    assert_eq!(room.shared.local.lock().is_settled(a.session), Some(true), "a double is counted once");
}

#[test]
fn a_local_session_is_settled_when_its_former_connections_writes_are_decided() {
    let mut room = Room::new();
    room.apply(&[open_carrier(5)]);
    let former = local(&mut room, 1, 10);
    let write = carried(&room, &former, 1, create("/a", ""));
    let again = local(&mut room, 1, 11);
    assert!(former.lane.is_closed());
    assert_eq!(room.shared.local.lock().is_settled(again.session), Some(false));
    assert_eq!(room.shared.local.lock().number(former.session, former.lane.id), None);
    room.apply(&[write]);
    assert_eq!(room.shared.local.lock().is_settled(again.session), Some(true));
    assert_eq!(room.replies(&again), [], "the former connection's answer is nobody's");
}

#[test]
fn a_write_whose_place_is_void_ends_its_session_and_no_other() {
    let mut room = Room::new();
    room.apply(&[open_carrier(5)]);
    let (a, b) = (local(&mut room, 1, 10), local(&mut room, 2, 11));
    let write = carried(&room, &a, 1, create("/a", ""));
    let applied = room.apply(&[open_carrier(6), write]);
    assert_eq!(applied.void_carriers, [Carrier { server: ME, attach: Zxid::new(1, 1), n: 1 }]);
    let sent = room.sent(&a);
    assert!(matches!(sent[..], [Outgoing::Reply { result: Err(ErrorCode::SessionExpired), .. }, Outgoing::Close(_)]));
    assert!(!room.shared.local.lock().contains(a.session));
    assert!(room.shared.local.lock().contains(b.session) && !b.lane.is_closed());
    assert_eq!(read::stat(&room.shared.published().view, "/a"), None);
}

#[test]
fn a_local_session_that_becomes_known_to_all_keeps_its_connection() {
    let mut room = Room::new();
    room.apply(&[open_carrier(5)]);
    let client = local(&mut room, 1, 10);
    let before = carried(&room, &client, 1, create("/a", ""));
    room.apply(&[before]);
    assert_eq!(room.replies(&client).len(), 1);
    client.lane.begin_upgrade();
    assert!(room.shared.lanes.join(client.session, 7, client.lane.clone()));
    let command = Command::CreateSession { timeout_ms: 4_000, server: ME, nonce: 7, keeps_results: false };
    room.apply(&[Txn { command, ..client.write(0, set("/", "")) }]);
    assert!(!client.lane.is_closed() && !room.shared.local.lock().contains(client.session));
    let client = Joined { attach: client.lane.attach(), ..client };
    assert_eq!(client.attach, Zxid::new(1, 3));
    client.expects(1);
    let op = Create { path: "/e".into(), acl: Some(Acl::open()), mode: CreateMode::Ephemeral, ..Create::default() };
    room.apply(&[client.write(1, WriteOp::Create(op))]);
    assert!(matches!(room.replies(&client)[..], [(1, Ok(Answer::Created { .. }))]));
}

#[test]
fn a_local_connection_ends_when_its_session_becomes_known_behind_its_back() {
    let mut room = Room::new();
    let client = local(&mut room, 1, 10);
    // An earlier connection of the session asked for it, and its handshake was given up.
    let command = Command::CreateSession { timeout_ms: 4_000, server: ME, nonce: 7, keeps_results: false };
    room.apply(&[Txn { command, ..client.write(0, set("/", "")) }]);
    assert!(client.lane.is_closed() && !room.shared.local.lock().contains(client.session));
    assert!(room.shared.lanes.of(client.session).is_none());
}
