//! One rule book behind both front ends: the same program through ZooKeeper's protocol and through gRPC, each against a
//! fresh server, gives the same answers, down to every field of every Stat (times, session ids and the absolute zxids apart).

#[path = "../server/tests/common/mod.rs"]
mod common;

use std::time::Duration;

use bytes::Bytes;
use corral_client::{CreateOptions, Error, OpResult, Transaction, WatchMode};
use corral_proto::jute::{Create, CreateOp, MultiResult, Request, Response};
use corral_proto::{Acl, CreateMode, ErrorCode, Id, Stat, perms};

/// What the program does; paths are absolute, versions as ZooKeeper's.
#[derive(Clone, Debug)]
enum Op {
    Create(&'static str, &'static str, CreateMode, Vec<Acl>),
    CreateTtl(&'static str, i64),
    Delete(&'static str, i32),
    Set(&'static str, &'static str, i32),
    Get(&'static str),
    Exists(&'static str),
    Children(&'static str),
    GetAcl(&'static str),
    SetAcl(&'static str, Vec<Acl>, i32),
    Check(&'static str, i32),
    Multi(Vec<Op>),
    Sync,
    Ephemerals(&'static str),
    Count(&'static str),
    Auth(&'static str),
}

/// What both must say alike.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    Path(String, Option<StatSeen>),
    Done,
    Stat(StatSeen),
    Data(Option<Vec<u8>>, StatSeen),
    Acl(Vec<Acl>, StatSeen),
    Names(Vec<String>, Option<StatSeen>),
    Count(u64),
    Multi(Vec<Result<Said, ErrorCode>>),
    Error(ErrorCode),
}

/// A Stat without what differs between two runs.
#[derive(Clone, Debug, PartialEq)]
struct StatSeen {
    /// How they stand to each other: a client may refuse a request itself, which then takes no zxid.
    zxids: (bool, bool, std::cmp::Ordering),
    versions: (i32, i32, i32),
    ephemeral: bool,
    sizes: (i32, i32),
}

fn seen(stat: Stat) -> StatSeen {
    StatSeen {
        zxids: (stat.czxid == stat.mzxid, stat.czxid == stat.pzxid, stat.pzxid.cmp(&stat.mzxid)),
        versions: (stat.version, stat.cversion, stat.aversion),
        ephemeral: stat.ephemeral_owner != 0,
        sizes: (stat.data_length, stat.num_children),
    }
}

fn version(version: i32) -> Option<i32> {
    (version != -1).then_some(version)
}

fn program() -> Vec<Op> {
    use CreateMode::*;
    use Op::*;
    let open = Acl::open;
    let bob = || vec![Acl { perms: perms::ALL, id: Id::new("digest", "bob:fyVmFCwVbTJYrznoSu1koqYEYF0=") }];
    vec![
        Children("/"),
        Get("/zookeeper/quota"),
        Create("/a", "one", Persistent, open()),
        Create("/a", "again", Persistent, open()),
        Create("/missing/child", "", Persistent, open()),
        Create("/a/s-", "", PersistentSequential, open()),
        Create("/a/plain", "", Persistent, open()),
        Create("/a/s-", "", PersistentSequential, open()),
        Create("/a/e", "mine", Ephemeral, open()),
        Create("/a/e/child", "", Persistent, open()),
        Create("/a/e-", "", EphemeralSequential, open()),
        Create("/c", "", Container, open()),
        Create("/c/child", "", Persistent, open()),
        CreateTtl("/t", 60_000),
        CreateTtl("/t0", 0),
        Get("/a"),
        Exists("/a"),
        Exists("/missing"),
        Get("/missing"),
        Children("/a"),
        Children("/missing"),
        Set("/a", "two", 0),
        Set("/a", "three", 0),
        Set("/a", "three", -1),
        Set("/missing", "", -1),
        Delete("/a", -1),
        Delete("/a/plain", 7),
        Delete("/a/plain", 0),
        Delete("/a/plain", -1),
        Delete("/zookeeper", -1),
        Get("/a"),
        GetAcl("/a"),
        Create("/no-acl", "", Persistent, vec![]),
        Create("/auth", "", Persistent, Acl::creator_all()),
        Auth("bob:secret"),
        Create("/auth", "", Persistent, Acl::creator_all()),
        GetAcl("/auth"),
        SetAcl("/a", bob(), 0),
        SetAcl("/a", bob(), 0),
        GetAcl("/a"),
        Create("/read-only", "", Persistent, Acl::read_only()),
        Set("/read-only", "x", -1),
        Create("/read-only/child", "", Persistent, open()),
        Multi(vec![
            Create("/m", "1", Persistent, open()),
            Check("/m", 0),
            Set("/m", "2", 0),
            Create("/m/s-", "", PersistentSequential, open()),
            Delete("/a/e", -1),
        ]),
        Multi(vec![Create("/rolled-back", "", Persistent, open()), Delete("/missing", -1), Set("/m", "3", -1)]),
        Multi(vec![]),
        Exists("/rolled-back"),
        Get("/m"),
        Sync,
        Ephemerals("/"),
        Ephemerals("/b"),
        Count("/a"),
        Count("/missing"),
        Children("/"),
    ]
}

fn request(op: &Op) -> Request {
    let create = |op, path: &str, data: &str, mode: CreateMode, acl: &[Acl], ttl_ms| {
        Request::Create(Create {
            op,
            path: path.to_owned(),
            data: Some(Bytes::copy_from_slice(data.as_bytes())),
            acl: Some(acl.to_vec()),
            flags: mode.flags(),
            ttl_ms,
        })
    };
    let path = |path: &&str| (*path).to_owned();
    match op {
        Op::Create(path, data, CreateMode::Container, acl) => {
            create(CreateOp::Container, path, data, CreateMode::Container, acl, -1)
        }
        Op::Create(path, data, mode, acl) => create(CreateOp::Create2, path, data, *mode, acl, -1),
        Op::CreateTtl(path, ttl) => create(CreateOp::Ttl, path, "", CreateMode::PersistentWithTtl, &Acl::open(), *ttl),
        Op::Delete(p, version) => Request::Delete { path: path(p), version: *version },
        Op::Set(p, data, version) => {
            Request::SetData { path: path(p), data: Some(Bytes::copy_from_slice(data.as_bytes())), version: *version }
        }
        Op::Get(p) => Request::GetData { path: path(p), watch: false },
        Op::Exists(p) => Request::Exists { path: path(p), watch: false },
        Op::Children(p) => Request::GetChildren2 { path: path(p), watch: false },
        Op::GetAcl(p) => Request::GetAcl { path: path(p) },
        Op::SetAcl(p, acl, version) => Request::SetAcl { path: path(p), acl: Some(acl.clone()), version: *version },
        Op::Check(p, version) => Request::Check { path: path(p), version: *version },
        Op::Multi(ops) => Request::Multi(ops.iter().map(request).collect()),
        Op::Sync => Request::Sync { path: "/".to_owned() },
        Op::Ephemerals(prefix) => Request::GetEphemerals { prefix: path(prefix) },
        Op::Count(p) => Request::GetAllChildrenNumber { path: path(p) },
        Op::Auth(proof) => {
            Request::Auth { kind: 0, scheme: "digest".to_owned(), auth: Some(Bytes::copy_from_slice(proof.as_bytes())) }
        }
    }
}

async fn through_zookeepers_protocol(client: &mut common::Client, op: &Op) -> Said {
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    match client.ask(&request(op)).await.expect("the connection stays") {
        Err(error) => Said::Error(error),
        Ok(Response::Empty) => Said::Done,
        Ok(Response::Path(_)) => Said::Done,
        Ok(Response::PathStat { path, stat }) => Said::Path(path, Some(seen(stat))),
        Ok(Response::Stat(stat)) => Said::Stat(seen(stat)),
        Ok(Response::Data { data, stat }) => Said::Data(data.map(|d| d.to_vec()), seen(stat)),
        Ok(Response::Acl { acl, stat }) => Said::Acl(acl, seen(stat)),
        Ok(Response::Names(names)) => Said::Names(sorted(names), None),
        Ok(Response::NamesStat { names, stat }) => Said::Names(sorted(names), Some(seen(stat))),
        Ok(Response::Count(count)) => Said::Count(count as u64),
        Ok(Response::Multi(results)) => {
            let failed = results.iter().any(|r| matches!(r, MultiResult::Error(_)));
            let said = results.into_iter().map(|result| match result {
                MultiResult::Create { path } => Ok(Said::Path(path, None)),
                MultiResult::Create2 { path, stat } => Ok(Said::Path(path, Some(seen(stat)))),
                MultiResult::Delete | MultiResult::Check => Ok(Said::Done),
                MultiResult::SetData(stat) => Ok(Said::Stat(seen(stat))),
                MultiResult::Error(0) => Ok(Said::Done),
                MultiResult::Error(code) => Err(ErrorCode::from_code(code).expect("a known code")),
                other => panic!("{other:?}"),
            });
            let said: Vec<_> = said.collect();
            if failed {
                // What gRPC tells of a failed multi is the operation that failed, and why.
                let at = said.iter().position(|r| matches!(r, Err(e) if *e != ErrorCode::RuntimeInconsistency));
                let at = at.expect("one of them failed");
                return Said::Multi(vec![Ok(Said::Count(at as u64)), said[at].clone()]);
            }
            Said::Multi(said)
        }
        Ok(other) => panic!("{other:?}"),
    }
}

async fn through_grpc(client: &corral_client::Client, op: &Op) -> Said {
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    let said = async {
        Ok(match op {
            Op::Create(path, data, mode, acl) => {
                let created = client.create(path, *data, CreateOptions::new(*mode).acl(acl.clone())).await?;
                Said::Path(created.path, Some(seen(created.stat)))
            }
            Op::CreateTtl(path, ttl) => {
                let options = CreateOptions::new(CreateMode::PersistentWithTtl).ttl(Duration::from_millis(*ttl as u64));
                let created = client.create(path, "", options).await?;
                Said::Path(created.path, Some(seen(created.stat)))
            }
            Op::Delete(path, v) => {
                client.delete(path, version(*v)).await?;
                Said::Done
            }
            Op::Set(path, data, v) => Said::Stat(seen(client.set(path, *data, version(*v)).await?)),
            Op::Get(path) => {
                let node = client.get(path).await?;
                Said::Data(node.data.map(|d| d.to_vec()), seen(node.stat))
            }
            Op::Exists(path) => match client.exists(path).await? {
                Some(stat) => Said::Stat(seen(stat)),
                None => Said::Error(ErrorCode::NoNode),
            },
            Op::Children(path) => {
                let (names, stat) = client.get_children_with_stat(path).await?;
                Said::Names(sorted(names), Some(seen(stat)))
            }
            Op::GetAcl(path) => {
                let (acl, stat) = client.get_acl(path).await?;
                Said::Acl(acl, seen(stat))
            }
            Op::SetAcl(path, acl, v) => Said::Stat(seen(client.set_acl(path, acl.clone(), version(*v)).await?)),
            Op::Multi(ops) => {
                let mut transaction = Transaction::new();
                for op in ops {
                    transaction = match op {
                        Op::Create(path, data, mode, acl) => {
                            transaction.create(path, *data, CreateOptions::new(*mode).acl(acl.clone()))
                        }
                        Op::Delete(path, v) => transaction.delete(path, version(*v)),
                        Op::Set(path, data, v) => transaction.set(path, *data, version(*v)),
                        Op::Check(path, v) => transaction.check(path, version(*v)),
                        other => panic!("{other:?} is not for a multi"),
                    };
                }
                match client.multi(transaction).await {
                    Ok(results) => Said::Multi(
                        results
                            .into_iter()
                            .map(|result| {
                                Ok(match result {
                                    OpResult::Created(created) => Said::Path(created.path, Some(seen(created.stat))),
                                    OpResult::Set(stat) => Said::Stat(seen(stat)),
                                    OpResult::Deleted | OpResult::Checked => Said::Done,
                                })
                            })
                            .collect(),
                    ),
                    Err(Error::Multi(error)) => Said::Multi(vec![Ok(Said::Count(error.index as u64)), Err(error.code)]),
                    Err(error) => return Err(error),
                }
            }
            Op::Sync => {
                client.sync("/").await?;
                Said::Done
            }
            Op::Ephemerals(prefix) => Said::Names(sorted(client.get_ephemerals(prefix).await?), None),
            Op::Count(path) => Said::Count(client.count_descendants(path).await?),
            Op::Auth(proof) => {
                client.add_auth("digest", proof.as_bytes().to_vec()).await?;
                Said::Done
            }
            Op::Check(..) => panic!("only for a multi"),
        })
    };
    said.await.unwrap_or_else(|error: Error| Said::Error(error.code().unwrap_or_else(|| panic!("{op:?}: {error}"))))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_program_gives_the_same_answers_through_both() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (wire_server, grpc_server) =
        (common::start(&common::alone(one.path())).await, common::start(&common::alone(two.path())).await);
    let mut wire = common::Client::connect(wire_server.client_addr()).await;
    let grpc = corral_client::Client::connect(&grpc_server.client_addr().to_string()).await.unwrap();
    // Read-ins of the client itself must not count: both servers have executed the same number of entries.
    for (at, op) in program().into_iter().enumerate() {
        let by_wire = through_zookeepers_protocol(&mut wire, &op).await;
        let by_grpc = through_grpc(&grpc, &op).await;
        assert_eq!(by_wire, by_grpc, "step {at}: {op:?}");
    }
    wire.close().await;
    grpc.close().await.unwrap();
    wire_server.stop().await;
    grpc_server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_through_one_wakes_a_watch_set_through_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let server = common::start(&common::alone(folder.path())).await;
    let mut wire = common::Client::connect(server.client_addr()).await;
    let grpc = corral_client::Client::connect(&server.client_addr().to_string()).await.unwrap();
    grpc.create("/w", "", CreateMode::Persistent).await.unwrap();
    let mut watcher = grpc.watch("/w", WatchMode::Recursive).await.unwrap();
    let created = wire.create("/w/child", "x").await.unwrap();
    assert!(created.is_ok(), "{created:?}");
    let event = tokio::time::timeout(common::PATIENCE, watcher.next()).await.expect("the watch fires");
    assert!(format!("{event:?}").contains("/w/child"), "{event:?}");
    assert_eq!(grpc.get("/w/child").await.unwrap().bytes(), b"x", "the event came after the change was visible here");
    server.stop().await;
}
