//! Random transactions: execution does what the model does; arbitrary bytes never stop it.

use std::collections::BTreeMap;

use bytes::Bytes;
use corral_proto::{Acl, CreateMode, ErrorCode, Id, ServerId, SessionId, Zxid};
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use crate::storage::memory::{MemoryStore, MemoryView};
use crate::tree::entry::{Carrier, Command, EntryDecodeError, Outcome, SessionEvent, Settings, Txn, Verdict};
use crate::tree::execute::{execute, execute_skipped};
use crate::tree::model::{Kind, Model};
use crate::tree::op::{Answer, Create, MultiOp, ReadOp, WriteOp};
use crate::tree::overlay::Overlay;
use crate::tree::record::Meta;
use crate::tree::{TreeStore, TreeView, acl, audit, check, read};

/// A transaction whose place in its session is chosen when it runs, so that most are in order.
#[derive(Clone, Debug)]
struct Step {
    session: i64,
    /// Added to the next number of the session.
    n_off: i64,
    attach_off: bool,
    answered_back: u64,
    ids: Vec<Id>,
    command: Command,
    /// Time since the step before, ms.
    elapsed: i64,
}

fn a_path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let depth = prop::sample::select(vec![1, 1, 1, 1, 2, 2, 2, 3]);
    let good = depth
        .prop_flat_map(move |depth| prop::collection::vec(name.clone(), depth))
        .prop_map(|names| format!("/{}", names.join("/")));
    let odd = prop::sample::select(vec![
        "/",
        "",
        "a",
        "/a/",
        "//",
        "//a",
        "/a//b",
        "/a/./b",
        "/..",
        "/a\0",
        "/a/\u{1}",
        "/a/😀",
        "/zookeeper",
        "/zookeeper/config",
        "/zookeeper/config/a",
        "/zookeeper/quota",
        "/zookeeper/quota/a",
        "/a-",
        "/a.b",
        "a/b",
        "/a0000000001",
        "/ä",
    ]);
    let quota = prop::sample::select(vec![
        "/zookeeper/quota/a",
        "/zookeeper/quota/a/b",
        "/zookeeper/quota/a/zookeeper_limits",
        "/zookeeper/quota/a/zookeeper_limits",
        "/zookeeper/quota/a/zookeeper_stats",
        "/zookeeper/quota/a/b/zookeeper_limits",
        "/zookeeper/quota/a/b/zookeeper_stats",
        "/zookeeper/quota/zookeeper",
        "/zookeeper/quota/zookeeper/zookeeper_limits",
        "/zookeeper/quota/zookeeper/zookeeper_stats",
        "/zookeeper/quota/zookeeper_limits",
        "/zookeeper/quota/zookeeper_stats",
    ]);
    prop_oneof![16 => good, 2 => quota.prop_map(str::to_owned), 1 => odd.prop_map(str::to_owned)]
}

/// Limits that a few steps reach.
const LIMITS: &str = "count=-1,bytes=-1=;byteHardLimit=40;countHardLimit=4";

fn some_data() -> impl Strategy<Value = Option<Bytes>> {
    prop_oneof![
        1 => Just(None),
        1 => Just(Some(Bytes::new())),
        3 => prop::collection::vec(any::<u8>(), 0..9).prop_map(|data| Some(Bytes::from(data))),
        2 => prop::sample::select(vec![
            LIMITS,
            "count=1,bytes=1",
            "count=9,bytes=9=;byteHardLimit=20",
            "countHardLimit=3",
            "bytes=x;count",
        ]).prop_map(|text| Some(Bytes::from_static(text.as_bytes()))),
        1 => (1020usize..1030, any::<u8>()).prop_map(|(len, byte)| Some(Bytes::from(vec![byte; len]))),
    ]
}

fn an_acl() -> impl Strategy<Value = Option<Vec<Acl>>> {
    let line = (
        prop_oneof![Just(31), 0..32i32],
        prop::sample::select(vec![
            ("world", "anyone"),
            ("world", "anyone"),
            ("digest", "a:1"),
            ("auth", ""),
            ("ip", "10.0.0.0/8"),
            ("ip", "10.0.0.1"),
        ]),
    );
    let line = line.prop_map(|(perms, (scheme, id))| Acl { perms, id: Id::new(scheme, id) });
    prop_oneof![
        20 => Just(Some(Acl::open())),
        5 => prop::collection::vec(line, 1..4).prop_map(Some),
        1 => prop::sample::select(vec![None, Some(vec![]), Some(vec![Acl { perms: 1, id: Id::new("nope", "x") }])]),
    ]
}

fn some_ids() -> impl Strategy<Value = Vec<Id>> {
    let ids = |list: &[(&str, &str)]| list.iter().map(|(scheme, id)| Id::new(*scheme, *id)).collect::<Vec<Id>>();
    prop::sample::select(vec![
        ids(&[("ip", "10.0.0.1")]),
        ids(&[("ip", "10.0.0.1"), ("digest", "a:1")]),
        ids(&[("ip", "192.168.0.1")]),
        ids(&[("ip", "192.168.0.1"), ("digest", "b:2"), ("x509", "CN=b")]),
        ids(&[("ip", "10.0.0.2"), ("super", "")]),
    ])
}

fn a_version() -> impl Strategy<Value = i32> {
    prop_oneof![4 => Just(-1), 3 => 0..3i32, 1 => Just(-2)]
}

fn a_create() -> impl Strategy<Value = Create> {
    let ttl = prop_oneof![
        12 => (1..6i64).prop_map(|ttl| ttl * 10),
        1 => prop::sample::select(vec![0, -1, (1 << 40) - 1, 1 << 40]),
    ];
    (a_path(), some_data(), an_acl(), 0..7i32, ttl).prop_map(|(path, data, acl, flags, ttl_ms)| Create {
        path,
        data,
        acl,
        mode: CreateMode::from_flags(flags).unwrap(),
        ttl_ms,
    })
}

fn a_multi_op() -> impl Strategy<Value = MultiOp> {
    prop_oneof![
        3 => a_create().prop_map(MultiOp::Create),
        1 => (a_path(), a_version()).prop_map(|(path, version)| MultiOp::Delete { path, version }),
        2 => (a_path(), some_data(), a_version())
            .prop_map(|(path, data, version)| MultiOp::SetData { path, data, version }),
        1 => (a_path(), a_version()).prop_map(|(path, version)| MultiOp::Check { path, version }),
    ]
}

fn a_command() -> impl Strategy<Value = Command> {
    let nonce = 0..3u64;
    prop_oneof![
        40 => a_create().prop_map(|op| Command::Write(WriteOp::Create(op))),
        14 => (a_path(), a_version())
            .prop_map(|(path, version)| Command::Write(WriteOp::Delete { path, version })),
        14 => (a_path(), some_data(), a_version())
            .prop_map(|(path, data, version)| Command::Write(WriteOp::SetData { path, data, version })),
        6 => (a_path(), an_acl(), a_version())
            .prop_map(|(path, acl, version)| Command::Write(WriteOp::SetAcl { path, acl, version })),
        14 => prop::collection::vec(a_multi_op(), 0..5).prop_map(|ops| Command::Write(WriteOp::Multi(ops))),
        6 => (1..9i32, 1..3u64, nonce.clone(), any::<bool>()).prop_map(|(timeout_ms, server, nonce, keeps_results)| {
            Command::CreateSession { timeout_ms, server: ServerId(server), nonce, keeps_results }
        }),
        4 => (1..9i32, 1..3u64, nonce, prop::bool::weighted(0.1)).prop_map(|(timeout_ms, server, nonce, keeps_results)| {
            Command::Attach { timeout_ms, server: ServerId(server), nonce, keeps_results }
        }),
        1 => a_create().prop_map(|op| Command::Write(WriteOp::CreateIfNotExists(op))),
        1 => (a_path(), 0..4u32).prop_map(|(path, limit)| Command::Write(WriteOp::RemoveRecursive { path, limit })),
        1 => (a_create(), a_path()).prop_map(|(create, path)| {
            Command::Write(WriteOp::Multi(vec![
                MultiOp::CreateIfNotExists(create),
                MultiOp::RemoveRecursive { path: path.clone(), limit: 3 },
                MultiOp::CheckNotExists { path, version: -1 },
            ]))
        }),
        2 => any::<bool>().prop_map(|expired| Command::CloseSession { expired }),
        12 => (a_path(), 0..9u64).prop_map(|(path, back)| Command::Reap { path, czxid: Zxid(back) }),
        3 => some_settings().prop_map(Command::Settings),
        2 => (1..3u64, 0..3u64).prop_map(|(server, nonce)| Command::OpenCarrier { server: ServerId(server), nonce }),
        // Its place is chosen when it runs.
        8 => (a_create(), 1..4u64).prop_map(|(op, server)| Command::LocalWrite {
            op: WriteOp::Create(op),
            carrier: Carrier { server: ServerId(server), attach: Zxid::ZERO, n: 0 },
        }),
        2 => (prop::collection::vec(a_multi_op(), 0..5), 1..3u64).prop_map(|(ops, server)| Command::LocalWrite {
            op: WriteOp::Multi(ops),
            carrier: Carrier { server: ServerId(server), attach: Zxid::ZERO, n: 0 },
        }),
    ]
}

fn some_settings() -> impl Strategy<Value = Settings> {
    let flags = (prop::bool::weighted(0.1), any::<bool>(), prop::bool::weighted(0.8));
    (flags, 0..3i64, 0..5u32, prop::sample::select(vec!["", "server.1=x", "server.2=y\nz"])).prop_map(
        |((skip_acl, enforce_quota, extended_types), never, ephemerals_per_session, text)| Settings {
            skip_acl,
            enforce_quota,
            extended_types,
            keeper_extensions: false,
            container_never_used_ms: never * 20,
            ephemerals_per_session,
            password_key: vec![1, 2, 3],
            config_text: text.to_owned(),
            feature_level: 1,
        },
    )
}

fn a_step() -> impl Strategy<Value = Step> {
    (
        prop_oneof![24 => 1..4i64, 1 => Just(0), 1 => Just(9)],
        prop_oneof![20 => Just(0i64), 1 => prop::sample::select(vec![-1, -3, 1])],
        prop::bool::weighted(0.03),
        0..4u64,
        some_ids(),
        a_command(),
        (0..3i64).prop_map(|steps| steps * 10),
    )
        .prop_map(|(session, n_off, attach_off, answered_back, ids, command, elapsed)| Step {
            session,
            n_off,
            attach_off,
            answered_back,
            ids,
            command,
            elapsed,
        })
}

impl Step {
    fn txn(&self, model: &Model, zxid: u64) -> Txn {
        let row = model.sessions.get(&self.session);
        let (attach, last_n) = row.map_or((0, 0), |row| (row.attach, row.last_n));
        let n = (last_n + 1).saturating_add_signed(self.n_off);
        let command = match &self.command {
            // Mostly names one that may be due, and its creation.
            Command::Reap { path, czxid } => {
                let kinds = [Kind::Persistent, Kind::Ephemeral(self.session)];
                let due: Vec<_> = model.nodes.iter().filter(|(_, node)| !kinds.contains(&node.kind)).collect();
                let (path, at) = match due.get(czxid.0 as usize % (due.len() + 1)) {
                    Some((path, node)) => (*path, node.czxid as u64),
                    None => (path, model.nodes.get(path).map_or(zxid, |node| node.czxid as u64)),
                };
                Command::Reap { path: path.clone(), czxid: Zxid(at + u64::from(czxid.0 == 0)) }
            }
            Command::LocalWrite { op, carrier: Carrier { server, .. } } => {
                let (_, attach, last_n) = model.carriers.get(&server.0).copied().unwrap_or_default();
                let attach = Zxid(attach + u64::from(self.attach_off));
                let n = (last_n + 1).saturating_add_signed(self.n_off);
                Command::LocalWrite { op: op.clone(), carrier: Carrier { server: *server, attach, n } }
            }
            // Mostly by the protocol of its creation.
            Command::Attach { timeout_ms, server, nonce, keeps_results: wrong } => Command::Attach {
                timeout_ms: *timeout_ms,
                server: *server,
                nonce: *nonce,
                keeps_results: row.is_some_and(|row| row.grpc) != *wrong,
            },
            other => other.clone(),
        };
        Txn {
            session: SessionId(self.session),
            attach: Zxid(attach + u64::from(self.attach_off)),
            n,
            answered_through: n.saturating_sub(self.answered_back),
            ids: self.ids.clone(),
            command,
        }
    }
}

/// Everything the model knows, compared with the state.
fn assert_same_state(model: &Model, view: &MemoryView) {
    let root = [Id::new("super", "")];
    assert_eq!(Meta::read(view).unwrap().znodes as usize, model.nodes.len());
    for (path, node) in &model.nodes {
        let stat = model.stat(path);
        assert_eq!(read::stat(view, path), Some(stat), "stat of {path}");
        let get = |op: ReadOp| read::read(view, &op, SessionId(1), &root);
        let data = node.data.clone();
        assert_eq!(get(ReadOp::GetData { path: path.clone() }), Ok(Answer::Data { data, stat }), "data of {path}");
        let children = model.children(path);
        assert_eq!(get(ReadOp::GetChildren { path: path.clone() }), Ok(Answer::Children { children, stat }));
        assert_eq!(get(ReadOp::GetAcl { path: path.clone() }), Ok(Answer::Acl { acl: node.acl.clone(), stat }));
        let below = format!("{}/", path.trim_end_matches('/'));
        let count = model.nodes.keys().filter(|other| other.starts_with(&below) && *other != "/").count() as u64;
        assert_eq!(get(ReadOp::CountDescendants { path: path.clone() }), Ok(Answer::Count(count)), "below {path}");
        for (reader, bits) in [("10.0.0.1", 1), ("192.168.0.1", 1)] {
            let ids = [Id::new("ip", reader)];
            let may = read::read(view, &ReadOp::Exists { path: path.clone() }, SessionId(1), &ids).is_ok();
            assert_eq!(may, model.allowed(&node.acl, bits, &ids), "{reader} reads {path}");
        }
    }
    let sessions = read::sessions(view);
    assert_eq!(sessions.len(), model.sessions.len());
    for (id, row) in sessions {
        let expected = &model.sessions[&id.0];
        assert_eq!((row.attach.0, row.last_n, row.nonce), (expected.attach, expected.last_n, expected.nonce));
        assert_eq!((row.server.0, row.timeout_ms), (expected.server, expected.timeout_ms));
    }
    audit::audit(view).unwrap();
}

fn assert_same_events(model: &Model, view: &MemoryView, outcome: &Outcome) {
    let list = |id: Option<u32>| id.map_or_else(Acl::open, |id| acl::list(view, id));
    let events: Vec<_> = outcome
        .events
        .iter()
        .map(|event| {
            let implied = event.kind != corral_proto::EventKind::NodeDataChanged;
            (event.kind, event.path.clone(), list(event.acl), implied.then(|| list(event.parent_acl)))
        })
        .collect();
    assert_eq!(events, model.events);
}

/// Sessions to begin with: without them most steps would be refused. The second one keeps results.
fn begin(session: i64) -> Step {
    let command =
        Command::CreateSession { timeout_ms: 4000, server: ServerId(1), nonce: 0, keeps_results: session == 2 };
    Step { session, n_off: 0, attach_off: false, answered_back: 0, ids: vec![], command, elapsed: 0 }
}

/// In half of the stories `/a` has an enforced quota from the start.
fn a_story() -> impl Strategy<Value = Vec<Step>> {
    (any::<bool>(), prop::collection::vec(a_step(), 1..60)).prop_map(|(with_quota, steps)| {
        let step = |command| Step { command, ..begin(1) };
        let create = |path: &str, data: &'static str| {
            let (path, data) = (path.to_owned(), Some(Bytes::from_static(data.as_bytes())));
            let create = Create { path, data, acl: Some(Acl::open()), ..Create::default() };
            step(Command::Write(WriteOp::Create(create)))
        };
        let mut story: Vec<Step> = (1..4).map(begin).collect();
        if with_quota {
            story.extend([
                create("/zookeeper/quota/a", ""),
                create("/zookeeper/quota/a/zookeeper_limits", LIMITS),
                create("/zookeeper/quota/a/zookeeper_stats", "count=0,bytes=0"),
                create("/a", ""),
                step(Command::Settings(Settings { enforce_quota: true, ..Settings::default() })),
            ]);
        }
        story.extend(steps);
        story
    })
}

fn at(index: usize) -> Zxid {
    Zxid::new(1 + index as u32 / 50, 1 + index as u32 % 50)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn execution_does_what_the_model_does(story in a_story()) {
        let mut store = MemoryStore::new();
        let mut batch = Overlay::new(store.view());
        let mut model = Model::new();
        let mut stamp = 1000;
        for (index, step) in story.into_iter().enumerate() {
            let zxid = at(index);
            stamp += step.elapsed;
            let txn = step.txn(&model, zxid.0);
            prop_assert_eq!(Txn::decode(&txn.encode()), Ok(txn.clone()));
            let outcome = execute(&store.view(), zxid, stamp, 7 * index as u64, &txn.encode());
            // A batch that is not written yet gives the same.
            prop_assert_eq!(&execute(&batch, zxid, stamp, 7 * index as u64, &txn.encode()), &outcome);
            let verdict = model.run(&txn, zxid.0, stamp);
            prop_assert_eq!(&outcome.verdict, &verdict, "{:?}", txn);
            prop_assert!(outcome.changes.windows(2).all(|two| (two[0].cf, &two[0].key) < (two[1].cf, &two[1].key)));
            store.write(&mut outcome.changes.clone().into_iter());
            batch.push(outcome.changes.clone());
            let view = store.view();
            let meta = Meta::read(&view).unwrap();
            prop_assert_eq!((meta.applied, meta.hash, meta.stamp_ms), (zxid, 7 * index as u64, stamp));
            assert_same_events(&model, &view, &outcome);
            assert_same_state(&model, &view);
            let closed = outcome.sessions.iter().any(|event| matches!(event, SessionEvent::Closed { .. }));
            prop_assert!(!closed || !model.sessions.contains_key(&step.session));
        }
        let mut batched = MemoryStore::new();
        batched.write(&mut batch.take().into_iter());
        prop_assert_eq!(batched.digest(), store.digest());
    }

    #[test]
    fn keeper_operations_leave_a_sound_tree(story in a_story()) {
        let settings = Settings { keeper_extensions: true, enforce_quota: true, ..Settings::default() };
        let on = Step { session: 0, command: Command::Settings(settings), ..begin(1) };
        let stays_on = |step: &Step| !matches!(step.command, Command::Settings(_));
        let mut store = MemoryStore::new();
        // Knows nothing of these operations; it tells where in its session a transaction stands.
        let mut model = Model::new();
        for (index, step) in std::iter::once(on).chain(story.into_iter().filter(stays_on)).enumerate() {
            let txn = step.txn(&model, at(index).0);
            model.run(&txn, at(index).0, 0);
            let outcome = execute(&store.view(), at(index), 0, 0, &txn.encode());
            store.write(&mut outcome.changes.into_iter());
            prop_assert_eq!(audit::audit(&store.view()), Ok(()), "{:?}", txn);
            prop_assert_eq!(check::misfits(&store.view()), [], "{:?}", txn);
        }
    }

    #[test]
    fn any_payload_on_any_tree_has_an_outcome(
        steps in prop::collection::vec(a_step(), 0..20),
        payload: Vec<u8>,
        cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        wild in any::<(u64, i64, u64)>(),
    ) {
        let mut store = MemoryStore::new();
        let mut model = Model::new();
        for (index, step) in steps.iter().enumerate() {
            let txn = step.txn(&model, at(index).0);
            model.run(&txn, at(index).0, 0);
            let outcome = execute(&store.view(), at(index), 0, 0, &txn.encode());
            store.write(&mut outcome.changes.into_iter());
            // The same transaction with bytes changed.
            let mut broken = txn.encode().to_vec();
            for (place, byte) in &cuts {
                let place = place.index(broken.len());
                broken[place] = *byte;
            }
            let broken = Bytes::from(broken);
            let outcome = execute(&store.view(), Zxid(wild.0), wild.1, wild.2, &broken);
            let mut copy = store.clone();
            copy.write(&mut outcome.changes.into_iter());
            prop_assert_eq!(audit::audit(&copy.view()), Ok(()));
            let skipped = execute_skipped(&store.view(), Zxid(wild.0), wild.1, wild.2, &broken);
            prop_assert!(skipped.events.is_empty());
        }
        let outcome = execute(&store.view(), Zxid(wild.0), wild.1, wild.2, &Bytes::from(payload));
        store.write(&mut outcome.changes.into_iter());
        let meta = Meta::read(&store.view()).unwrap();
        prop_assert_eq!((meta.applied, meta.stamp_ms, meta.hash), (Zxid(wild.0), wild.1, wild.2));
    }

    #[test]
    fn rows_that_are_not_ours_do_not_stop_execution(
        rows in prop::collection::vec((0usize..3, prop::sample::select(vec![
            &b"/"[..], b"\0a", b"/a\0b", b"m", b"c", b"s\0\0\0\0\0\0\0\x01", b"a\0\0\0\x01", b"e\0\0\0\0\0\0\0\x01/a",
        ]), prop::collection::vec(any::<u8>(), 0..90)), 0..8),
        steps in prop::collection::vec(a_step(), 1..8),
    ) {
        let mut store = MemoryStore::empty();
        store.write(&mut rows.into_iter().map(|(cf, key, mut value)| {
            if let Some(version) = value.first_mut() {
                *version = 1;
            }
            let key = Bytes::from_static(key);
            crate::tree::Change { cf: crate::tree::Cf::ALL[cf], key, value: Some(Bytes::from(value)) }
        }));
        let model = Model::new();
        for (index, step) in steps.iter().enumerate() {
            let outcome = execute(&store.view(), at(index), 0, 0, &step.txn(&model, 0).encode());
            store.write(&mut outcome.changes.into_iter());
            for path in ["/", "/a", "/a/b"] {
                let view = store.view();
                for op in [
                    ReadOp::GetData { path: path.to_owned() },
                    ReadOp::GetChildren { path: path.to_owned() },
                    ReadOp::GetAcl { path: path.to_owned() },
                    ReadOp::CountDescendants { path: path.to_owned() },
                ] {
                    let _ = read::read(&view, &op, step.txn(&model, 0).session, &step.ids);
                }
                prop_assert_eq!(read::stat(&view, path).is_some(), crate::tree::key::node(path)
                    .and_then(|key| view.get(crate::tree::Cf::Node, &key))
                    .is_some_and(|raw| crate::tree::record::NodeRec::decode(&raw).is_some()));
            }
        }
    }

    #[test]
    fn settings_come_back_as_they_were(settings in some_settings(), cut: prop::sample::Index) {
        let bytes = settings.encode();
        prop_assert_eq!(Settings::decode(&bytes), Ok(settings));
        prop_assert!(Settings::decode(&bytes[..cut.index(bytes.len())]).is_err());
    }
}

#[test]
fn random_transactions_reach_every_kind_of_outcome() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let stories = a_story();
    let mut reached = BTreeMap::new();
    for _ in 0..1_500 {
        let story = stories.new_tree(&mut runner).unwrap().current();
        let mut model = Model::new();
        let mut stamp = 1000;
        for (index, step) in story.into_iter().enumerate() {
            stamp += step.elapsed;
            let txn = step.txn(&model, at(index).0);
            let what = match (&txn.command, model.run(&txn, at(index).0, stamp)) {
                (Command::Reap { .. }, Verdict::Internal) => format!("reaped {}", model.events.len()),
                (Command::Write(WriteOp::SetData { .. }), Verdict::Executed(Err(ErrorCode::QuotaExceeded))) => {
                    "set: quota exceeded".to_owned()
                }
                (Command::LocalWrite { .. }, Verdict::Executed(Ok(_))) => "local".to_owned(),
                (Command::LocalWrite { .. }, verdict @ (Verdict::Moved | Verdict::OutOfOrder | Verdict::Expired)) => {
                    format!("local: {verdict:?}")
                }
                (Command::LocalWrite { .. }, Verdict::Repeated { .. }) => "local: repeated".to_owned(),
                (_, Verdict::Executed(Err(error))) => error.to_string(),
                (_, Verdict::Executed(Ok(Answer::MultiFailed { error, .. }))) => format!("multi: {error}"),
                (_, Verdict::Repeated { result, .. }) => format!("repeated, kept: {}", result.is_some()),
                (_, verdict) => format!("{verdict:?}").split(['(', '{']).next().unwrap().trim().to_owned(),
            };
            *reached.entry(what).or_insert(0) += 1;
        }
    }
    for what in [
        "Executed",
        "Attached",
        "Expired",
        "IdTaken",
        "Internal",
        "Moved",
        "OutOfOrder",
        "repeated, kept: true",
        "repeated, kept: false",
        "reaped 0",
        "reaped 1",
        "ACL is not valid",
        "bad arguments",
        "ephemeral nodes cannot have children",
        "insufficient permission",
        "node already exists",
        "node does not exist",
        "node has children",
        "quota exceeded",
        "set: quota exceeded",
        "session expired",
        "ephemeral node on a local session",
        "local",
        "local: Moved",
        "local: OutOfOrder",
        "local: Expired",
        "local: repeated",
        "version does not match",
        "multi: ACL is not valid",
        "multi: bad arguments",
        "multi: insufficient permission",
        "multi: node already exists",
        "multi: node does not exist",
        "multi: node has children",
        "multi: ephemeral nodes cannot have children",
        "multi: version does not match",
        "multi: quota exceeded",
        "operation not implemented",
    ] {
        assert!(reached.get(what).is_some_and(|times| *times >= 3), "{what} is missing in {reached:#?}");
    }
}

#[test]
fn null_and_empty_survive_the_entry() {
    for data in [None, Some(Bytes::new())] {
        for acl in [None, Some(vec![]), Some(Acl::open())] {
            let create = Create { path: "/a".to_owned(), data: data.clone(), acl: acl.clone(), ..Create::default() };
            for op in [
                WriteOp::Create(create.clone()),
                WriteOp::SetData { path: "/a".to_owned(), data: data.clone(), version: -1 },
                WriteOp::SetAcl { path: "/a".to_owned(), acl: acl.clone(), version: i32::MIN },
                WriteOp::Multi(vec![]),
                WriteOp::Multi(vec![MultiOp::Create(create.clone())]),
            ] {
                let txn = Txn {
                    session: SessionId(-1),
                    attach: Zxid::MAX,
                    n: u64::MAX,
                    answered_through: 1,
                    ids: vec![Id::default()],
                    command: Command::Write(op),
                };
                assert_eq!(Txn::decode(&txn.encode()), Ok(txn));
            }
        }
    }
}

#[test]
fn bad_entries_say_what_is_wrong() {
    assert_eq!(Txn::decode(&Bytes::new()), Err(EntryDecodeError("no command".to_owned())));
    assert!(Txn::decode(&Bytes::from_static(b"\xff")).is_err());
}

/// A gRPC session, and a way to run its next write.
struct Keeper {
    store: MemoryStore,
    zxid: u32,
}

impl Keeper {
    fn new() -> Keeper {
        let mut keeper = Keeper { store: MemoryStore::new(), zxid: 0 };
        let command = Command::CreateSession { timeout_ms: 1, server: ServerId(1), nonce: 1, keeps_results: true };
        keeper.run(0, 0, command);
        keeper
    }

    fn run(&mut self, n: u64, answered_through: u64, command: Command) -> Verdict {
        self.zxid += 1;
        let txn = Txn { session: SessionId(1), attach: Zxid::new(1, 1), n, answered_through, ids: vec![], command };
        let outcome = execute(&self.store.view(), Zxid::new(1, self.zxid), 0, 0, &txn.encode());
        self.store.write(&mut outcome.changes.into_iter());
        outcome.verdict
    }

    fn delete(&mut self, n: u64, answered_through: u64) -> Verdict {
        self.run(n, answered_through, Command::Write(WriteOp::Delete { path: "/none".to_owned(), version: -1 }))
    }

    /// Creates so many znodes with long names in one multi: the result is about as large.
    fn create_many(&mut self, n: u64, count: usize) -> Verdict {
        let op = |index: usize| {
            let path = format!("/{n}-{index}-{}", "x".repeat(900));
            MultiOp::Create(Create { path, acl: Some(Acl::open()), ..Create::default() })
        };
        self.run(n, 0, Command::Write(WriteOp::Multi((0..count).map(op).collect())))
    }

    fn is_kept(&mut self, n: u64) -> bool {
        match self.delete(n, 0) {
            Verdict::Repeated { result, .. } => result.is_some(),
            verdict => panic!("request {n} was not repeated but {verdict:?}"),
        }
    }
}

#[test]
fn a_session_keeps_the_newest_1024_results() {
    let mut keeper = Keeper::new();
    for n in 1..=1030 {
        assert_eq!(keeper.delete(n, 0), Verdict::Executed(Err(ErrorCode::NoNode)));
    }
    assert!(!keeper.is_kept(6));
    assert!(keeper.is_kept(7));
    audit::audit(&keeper.store.view()).unwrap();
    keeper.delete(1031, 1029);
    assert!(!keeper.is_kept(1029));
    assert!(keeper.is_kept(1030));
    audit::audit(&keeper.store.view()).unwrap();
}

#[test]
fn a_session_keeps_results_of_one_mebibyte_or_its_newest() {
    let mut keeper = Keeper::new();
    for n in 1..=3 {
        assert!(matches!(keeper.create_many(n, 500), Verdict::Executed(Ok(Answer::Multi(_)))));
    }
    assert!(!keeper.is_kept(1));
    assert!(keeper.is_kept(2) && keeper.is_kept(3));
    // The newest is kept in any case, alone if it is above the bound.
    assert!(matches!(keeper.create_many(4, 1200), Verdict::Executed(Ok(Answer::Multi(_)))));
    assert!(keeper.is_kept(4));
    assert!(!keeper.is_kept(2) && !keeper.is_kept(3));
    audit::audit(&keeper.store.view()).unwrap();
}

#[test]
fn the_fresh_tree_is_the_same_everywhere() {
    let changes = crate::tree::execute::genesis();
    assert_eq!(changes, crate::tree::execute::genesis());
    let view = MemoryStore::new().view();
    audit::audit(&view).unwrap();
    let meta = Meta::read(&view).unwrap();
    assert_eq!((meta.applied, meta.hash, meta.stamp_ms), (Zxid::ZERO, 0, 0));
    // Servers that start together compare this before anything else; another release must not differ.
    assert_eq!(meta.digest, u64::from_le_bytes([0x89, 0x13, 0x98, 0x28, 0x1f, 0xb0, 0xdb, 0x94]));
}
