//! The check of a store at rest finds whatever row is lost or changed, and nothing in what execution made.

use bytes::Bytes;
use corral_proto::{Acl, CreateMode, Id, ServerId, SessionId, Zxid};

use crate::storage::memory::MemoryStore;
use crate::tree::check::misfits;
use crate::tree::entry::{Command, Txn};
use crate::tree::execute::execute;
use crate::tree::op::{Create, WriteOp};
use crate::tree::{Cf, Change, TreeStore, TreeView, key};

/// A store with something of every kind: large data, an ACL, ephemerals, a container, a TTL znode, kept results.
fn store() -> MemoryStore {
    let mut store = MemoryStore::new();
    let session = SessionId(7);
    let begin = Command::CreateSession { timeout_ms: 4000, server: ServerId(1), nonce: 1, keeps_results: true };
    let create = |path: &str, mode, ttl_ms, len, acl| {
        let data = Some(Bytes::from(vec![b'x'; len]));
        Command::Write(WriteOp::Create(Create { path: path.to_owned(), data, acl: Some(acl), mode, ttl_ms }))
    };
    let mine = vec![Acl { perms: 31, id: Id::new("ip", "10.0.0.1") }];
    let commands = [
        begin,
        create("/a", CreateMode::Persistent, 0, 10, Acl::open()),
        create("/a/large", CreateMode::Persistent, 0, 5000, mine),
        create("/a/mine", CreateMode::Ephemeral, 0, 0, Acl::open()),
        create("/box", CreateMode::Container, 0, 0, Acl::open()),
        create("/brief", CreateMode::PersistentWithTtl, 5000, 3, Acl::open()),
    ];
    for (n, command) in commands.into_iter().enumerate() {
        let zxid = Zxid::new(1, 1 + n as u32);
        let attach = if n == 0 { Zxid::ZERO } else { Zxid::new(1, 1) };
        let txn = Txn { session, attach, n: n as u64, answered_through: 0, ids: Vec::new(), command };
        let outcome = execute(&store.view(), zxid, 5, 6, &txn.encode());
        store.write(&mut outcome.changes.into_iter());
    }
    store
}

fn rows(store: &MemoryStore, cf: Cf) -> Vec<(Bytes, Bytes)> {
    let mut rows = Vec::new();
    store.view().scan(cf, &[], &[0xff], &mut |key, value| {
        rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        true
    });
    rows
}

fn with(store: &MemoryStore, cf: Cf, key: Bytes, value: Option<Bytes>) -> MemoryStore {
    let mut changed = store.clone();
    changed.write(&mut std::iter::once(Change { cf, key, value }));
    changed
}

#[test]
fn what_execution_made_has_no_misfit() {
    let store = store();
    assert_eq!(misfits(&store.view()), []);
    for (cf, at_least) in [(Cf::Node, 9), (Cf::Data, 1), (Cf::Aux, 12)] {
        assert!(rows(&store, cf).len() >= at_least, "{cf:?}: {:?}", rows(&store, cf));
    }
}

#[test]
fn every_row_that_is_lost_is_missed() {
    let store = store();
    for cf in Cf::ALL {
        for (key, _) in rows(&store, cf) {
            let lost = with(&store, cf, key.clone(), None);
            assert_ne!(misfits(&lost.view()), [], "{cf:?} {key:?}");
        }
    }
}

#[test]
fn every_changed_byte_of_a_znode_or_its_data_shows() {
    let store = store();
    for cf in [Cf::Node, Cf::Data] {
        for (key, value) in rows(&store, cf) {
            for at in (0..value.len()).step_by(3) {
                let mut bytes = value.to_vec();
                bytes[at] ^= 0x20;
                let changed = with(&store, cf, key.clone(), Some(bytes.into()));
                assert_ne!(misfits(&changed.view()), [], "{cf:?} {key:?} byte {at}");
            }
        }
    }
}

#[test]
fn rows_that_belong_to_nobody_are_named() {
    let store = store();
    let gone = SessionId(99);
    for (cf, key, said) in [
        (Cf::Aux, key::ephemeral(gone, "/a"), "session 0x63: it is over, and 1 ephemerals are left (I20)"),
        (Cf::Aux, key::reapable("/a"), "/a: the index of containers and TTL znodes names it, and it is none"),
        (Cf::Data, key::node("/a").unwrap(), "/a: there are data for it, which no record names"),
        (Cf::Node, key::node("/no/parent").unwrap(), "/no: it is missing or malformed, and 1 znodes are its children"),
        (Cf::Aux, Bytes::from_static(b"z"), "row [7a]: it is of a kind that this program does not know"),
    ] {
        let value = Some(store.view().get(Cf::Node, &key::node("/a").unwrap()).unwrap());
        let found = misfits(&with(&store, cf, key, value).view());
        let found: Vec<String> = found.iter().map(|misfit| format!("{}: {}", misfit.place, misfit.what)).collect();
        assert!(found.iter().any(|line| line.starts_with(said)), "{said}: {found:#?}");
    }
}
