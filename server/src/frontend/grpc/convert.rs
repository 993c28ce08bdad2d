//! Between the generated messages and what a front end hands in and takes out. Pure.
//!
//! A write that cannot be read is not answered with an error of its own: its number would be missing, and every later
//! write of the session would wait for it (P31). Such a client breaks the protocol, and the connection ends with a text
//! that says where.

use corral_core::session::feed::Subscription;
use corral_core::session::{ClientRequest, CloseReason, Consistency, FeedNotice, SetWatches, SharedEvent};
use corral_core::tree::op::{Answer, Create, Depth, MultiOp, MultiReadOp, ReadOp, SubtreeNode, WriteOp};
use corral_core::watch::feed::{FeedKind, Interest};
use corral_proto::jute::opcode;
use corral_proto::pb::client as pb;
use corral_proto::{Acl, CreateMode, ErrorCode, Id, Stat, WatchKind, Zxid};

/// A message that breaks the protocol: what is wrong, for the client's author.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("request {id}: {reason}")]
pub struct ProtocolError {
    /// The request's id.
    pub id: u64,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// What a request asks for.
///
/// # Errors
/// It breaks the rules about numbers, or it is a write that cannot be read.
pub fn request(request: pb::Request) -> Result<ClientRequest, ProtocolError> {
    use pb::request::Op;
    let pb::Request { id, n, answered_through, consistency, op } = request;
    let wrong = |reason| ProtocolError { id, reason };
    let Some(op) = op else {
        // An operation of a later version; a write of that kind would leave a gap in the numbers.
        return if n == 0 {
            Ok(ClientRequest::Refuse(ErrorCode::Unimplemented))
        } else {
            Err(wrong("a write of unknown kind"))
        };
    };
    let is_write = matches!(
        op,
        Op::Create(_) | Op::Delete(_) | Op::SetData(_) | Op::SetAcl(_) | Op::Multi(_) | Op::CloseSession(_)
    );
    if is_write && n == 0 {
        return Err(wrong("a write needs a number, from 1 on"));
    }
    if !is_write && n != 0 {
        return Err(wrong("only writes have a number"));
    }
    if is_write && answered_through >= n {
        return Err(wrong("answered_through must be below the number of an unanswered write"));
    }
    let write = |op| ClientRequest::Write { op, n: Some(n), answered_through };
    let read = |op, watch| ClientRequest::Read { op, watch, consistency: self::consistency(consistency) };
    Ok(match op {
        Op::Create(op) => write(WriteOp::Create(create(op).map_err(wrong)?)),
        Op::Delete(op) => write(WriteOp::Delete { path: op.path, version: op.version }),
        Op::SetData(op) => write(WriteOp::SetData { path: op.path, data: data(op.data), version: op.version }),
        Op::SetAcl(op) => write(WriteOp::SetAcl { path: op.path, acl: Some(acl(op.acl)), version: op.version }),
        Op::Multi(op) => {
            write(WriteOp::Multi(op.ops.into_iter().map(multi_op).collect::<Result<_, _>>().map_err(wrong)?))
        }
        Op::CloseSession(_) => ClientRequest::CloseSession { n: Some(n) },
        Op::Exists(op) => read(ReadOp::Exists { path: op.path }, op.watch),
        Op::GetData(op) => read(ReadOp::GetData { path: op.path }, op.watch),
        Op::GetAcl(op) => read(ReadOp::GetAcl { path: op.path }, false),
        Op::GetChildren(op) => read(ReadOp::GetChildren { path: op.path }, op.watch),
        Op::MultiRead(op) => match op.ops.into_iter().map(multi_read_op).collect() {
            Some(ops) => read(ReadOp::MultiRead(ops), false),
            None => ClientRequest::Refuse(ErrorCode::Unimplemented),
        },
        Op::GetEphemerals(op) => read(ReadOp::GetEphemerals { prefix: op.prefix }, false),
        Op::CountDescendants(op) => read(ReadOp::CountDescendants { path: op.path }, false),
        Op::GetSubtree(op) => match feed_kind(op.depth) {
            Some(kind) => {
                let depth = match kind {
                    FeedKind::Node => Depth::Node,
                    FeedKind::Children => Depth::Children,
                    FeedKind::Subtree => Depth::Subtree,
                };
                let newer_than = op.newer_than.map(Zxid);
                read(ReadOp::Subtree { path: op.path, depth, after: op.after, newer_than }, false)
            }
            None => ClientRequest::Refuse(ErrorCode::Unimplemented),
        },
        Op::Subscribe(op) => match feed_kind(op.kind) {
            Some(kind) => ClientRequest::Subscribe {
                watch: op.watch,
                subscription: Subscription { path: op.path, interest: Interest { kind, with_nodes: op.with_nodes } },
                after: op.after.map(Zxid),
            },
            None => ClientRequest::Refuse(ErrorCode::Unimplemented),
        },
        Op::Unsubscribe(op) => ClientRequest::Unsubscribe { watch: op.watch },
        Op::WhoAmI(_) => ClientRequest::WhoAmI,
        Op::Ping(_) => ClientRequest::Ping,
        Op::Sync(_) => ClientRequest::Sync,
        Op::AddAuth(op) => ClientRequest::AddAuth { scheme: op.scheme, auth: op.auth.into() },
        Op::AddWatch(op) => match watch_kind(op.kind) {
            Some(kind @ (WatchKind::Persistent | WatchKind::PersistentRecursive)) => {
                ClientRequest::AddWatch { path: op.path, kind }
            }
            _ => ClientRequest::Refuse(ErrorCode::BadArguments),
        },
        Op::RemoveWatch(op) => match (op.any, watch_kind(op.kind)) {
            (true, _) => ClientRequest::RemoveWatches { path: op.path, kind: None },
            (false, Some(kind)) => ClientRequest::RemoveWatches { path: op.path, kind: Some(kind) },
            (false, None) => ClientRequest::Refuse(ErrorCode::BadArguments),
        },
        Op::SetWatches(op) => ClientRequest::SetWatches(SetWatches {
            relative_zxid: Zxid(op.relative_zxid),
            data: op.data,
            exist: op.exist,
            child: op.child,
            persistent: op.persistent,
            persistent_recursive: op.persistent_recursive,
            // Clients of this protocol that want to miss nothing follow the feed.
            replay: false,
        }),
    })
}

fn consistency(consistency: Option<pb::Consistency>) -> Consistency {
    match consistency.and_then(|consistency| consistency.level) {
        Some(pb::consistency::Level::AtLeast(zxid)) => Consistency::AtLeast(Zxid(zxid)),
        Some(pb::consistency::Level::Linearizable(true)) => Consistency::Linearizable,
        _ => Consistency::Local,
    }
}

fn create(op: pb::Create) -> Result<Create, &'static str> {
    let mode = CreateMode::from_flags(op.mode).ok_or("a create of unknown mode")?;
    Ok(Create { path: op.path, data: data(op.data), acl: Some(acl(op.acl)), mode, ttl_ms: op.ttl_ms })
}

fn multi_op(op: pb::MultiOp) -> Result<MultiOp, &'static str> {
    use pb::multi_op::Op;
    Ok(match op.op.ok_or("an operation of unknown kind in a multi")? {
        Op::Create(op) => MultiOp::Create(create(op)?),
        Op::Delete(op) => MultiOp::Delete { path: op.path, version: op.version },
        Op::SetData(op) => MultiOp::SetData { path: op.path, data: data(op.data), version: op.version },
        Op::Check(op) => MultiOp::Check { path: op.path, version: op.version },
    })
}

fn multi_read_op(op: pb::MultiReadOp) -> Option<MultiReadOp> {
    use pb::multi_read_op::Op;
    Some(match op.op? {
        Op::GetData(op) => MultiReadOp::GetData { path: op.path },
        Op::GetChildren(op) => MultiReadOp::GetChildren { path: op.path },
    })
}

fn data(data: Option<pb::Data>) -> Option<bytes::Bytes> {
    data.map(|data| data.bytes)
}

fn acl(acl: Vec<pb::Acl>) -> Vec<Acl> {
    acl.into_iter()
        .map(|acl| {
            let pb::Id { scheme, id } = acl.id.unwrap_or_default();
            Acl { perms: acl.perms, id: Id { scheme, id } }
        })
        .collect()
}

fn feed_kind(kind: i32) -> Option<FeedKind> {
    Some(match pb::FeedKind::try_from(kind).ok()? {
        pb::FeedKind::Node => FeedKind::Node,
        pb::FeedKind::Children => FeedKind::Children,
        pb::FeedKind::Subtree => FeedKind::Subtree,
    })
}

fn watch_kind(kind: i32) -> Option<WatchKind> {
    Some(match pb::WatchKind::try_from(kind).ok()? {
        pb::WatchKind::Data => WatchKind::Data,
        pb::WatchKind::Child => WatchKind::Child,
        pb::WatchKind::Persistent => WatchKind::Persistent,
        pb::WatchKind::PersistentRecursive => WatchKind::PersistentRecursive,
    })
}

/// The opcode under which ZooKeeper knows a request, for operators.
pub fn opcode_of(request: &ClientRequest) -> i32 {
    match request {
        ClientRequest::Write { op, .. } => match op {
            WriteOp::Create(_) => opcode::CREATE,
            WriteOp::Delete { .. } => opcode::DELETE,
            WriteOp::SetData { .. } => opcode::SET_DATA,
            WriteOp::SetAcl { .. } => opcode::SET_ACL,
            WriteOp::Multi(_) => opcode::MULTI,
            WriteOp::CreateIfNotExists(_) => opcode::CREATE_IF_NOT_EXISTS,
            WriteOp::RemoveRecursive { .. } => opcode::REMOVE_RECURSIVE,
        },
        ClientRequest::Read { op, .. } => match op {
            ReadOp::Exists { .. } => opcode::EXISTS,
            ReadOp::GetData { .. } => opcode::GET_DATA,
            ReadOp::GetAcl { .. } => opcode::GET_ACL,
            ReadOp::GetChildren { .. } => opcode::GET_CHILDREN2,
            ReadOp::MultiRead(_) => opcode::MULTI_READ,
            ReadOp::GetEphemerals { .. } => opcode::GET_EPHEMERALS,
            ReadOp::CountDescendants { .. } => opcode::GET_ALL_CHILDREN_NUMBER,
            ReadOp::List(_) => opcode::FILTERED_LIST,
            ReadOp::CheckNotExists { .. } => opcode::CHECK_NOT_EXISTS,
            ReadOp::Unreadable => opcode::NOTIFICATION,
            // The nearest that ZooKeeper knows.
            ReadOp::Subtree { .. } => opcode::MULTI_READ,
        },
        ClientRequest::AddWatch { .. } | ClientRequest::Subscribe { .. } => opcode::ADD_WATCH,
        ClientRequest::RemoveWatches { .. } | ClientRequest::Unsubscribe { .. } => opcode::REMOVE_WATCHES,
        ClientRequest::CheckWatches { .. } => opcode::CHECK_WATCHES,
        ClientRequest::SetWatches(_) => opcode::SET_WATCHES2,
        ClientRequest::Sync => opcode::SYNC,
        ClientRequest::AddAuth { .. } => opcode::AUTH,
        ClientRequest::Sasl { .. } => opcode::SASL,
        ClientRequest::WhoAmI => opcode::WHO_AM_I,
        ClientRequest::Ping => opcode::PING,
        ClientRequest::CloseSession { .. } => opcode::CLOSE_SESSION,
        ClientRequest::Refuse(_) => opcode::ERROR,
    }
}

/// The reply to request `id`.
pub fn reply(id: u64, zxid: Zxid, result: Result<Answer, ErrorCode>) -> pb::Reply {
    use pb::answer::Body;
    let (error, body) = match result {
        Err(code) => (code.code(), None),
        Ok(Answer::Created { path, stat }) => (0, Some(Body::Created(created(path, &stat)))),
        Ok(Answer::Done) => (0, Some(Body::Empty(pb::Empty {}))),
        Ok(Answer::Stat(stat)) => (0, Some(Body::Stat(stat_body(&stat)))),
        Ok(Answer::Data { data, stat }) => (0, Some(Body::Data(data_body(data, &stat)))),
        Ok(Answer::Acl { acl, stat }) => {
            let acl = acl.into_iter().map(|acl| pb::Acl { perms: acl.perms, id: Some(id_of(acl.id)) }).collect();
            (0, Some(Body::Acl(pb::AclBody { acl, stat: Some(self::stat(&stat)) })))
        }
        // A listing answers what only the other front end can ask; its names are an answer, too.
        Ok(Answer::Children { children, stat } | Answer::Listing { children, stat, .. }) => {
            (0, Some(Body::Children(children_body(children, &stat))))
        }
        Ok(Answer::Subtree { nodes, next }) => {
            let nodes = nodes.into_iter().map(|SubtreeNode { path, stat, data, is_known }| pb::SubtreeNode {
                path,
                stat: Some(self::stat(&stat)),
                data: data.map(|bytes| pb::Data { bytes }),
                is_known,
            });
            let body = pb::SubtreeBody { nodes: nodes.collect(), next: next.unwrap_or_default() };
            (0, Some(Body::Subtree(body)))
        }
        Ok(Answer::Multi(answers)) => {
            let results = answers.into_iter().map(|answer| multi_result(Ok(answer))).collect();
            (0, Some(Body::Multi(pb::MultiBody { results })))
        }
        Ok(Answer::MultiFailed { ops, failed, error }) => {
            let of = |at: usize| match at.cmp(&failed) {
                std::cmp::Ordering::Less => Ok(Answer::Done),
                std::cmp::Ordering::Equal => Err(error),
                std::cmp::Ordering::Greater => Err(ErrorCode::RuntimeInconsistency),
            };
            let results = (0..ops).map(|at| multi_result(of(at))).collect();
            (error.code(), Some(Body::Multi(pb::MultiBody { results })))
        }
        Ok(Answer::MultiRead(answers)) => {
            (0, Some(Body::Multi(pb::MultiBody { results: answers.into_iter().map(multi_result).collect() })))
        }
        Ok(Answer::Paths(paths)) => (0, Some(Body::Paths(pb::Paths { paths }))),
        Ok(Answer::Count(count)) => {
            (0, Some(Body::Count(pb::Count { count: i64::try_from(count).unwrap_or(i64::MAX) })))
        }
        Ok(Answer::Ids(ids)) => (0, Some(Body::Ids(pb::Ids { ids: ids.into_iter().map(id_of).collect() }))),
        // No request of this protocol asks for one.
        Ok(Answer::Token(_)) => (ErrorCode::Unimplemented.code(), None),
    };
    pb::Reply { kind: Some(pb::reply::Kind::Answer(pb::Answer { id, zxid: zxid.0, error, body })) }
}

/// One result inside a multi. Answers that no operation of a multi has say nothing.
fn multi_result(result: Result<Answer, ErrorCode>) -> pb::MultiResult {
    use pb::multi_result::Body;
    let body = match result {
        Err(code) => return pb::MultiResult { error: code.code(), body: None },
        Ok(Answer::Created { path, stat }) => Body::Created(created(path, &stat)),
        Ok(Answer::Stat(stat)) => Body::Stat(stat_body(&stat)),
        Ok(Answer::Data { data, stat }) => Body::Data(data_body(data, &stat)),
        Ok(Answer::Children { children, stat }) => Body::Children(children_body(children, &stat)),
        Ok(_) => Body::Empty(pb::Empty {}),
    };
    pb::MultiResult { error: 0, body: Some(body) }
}

fn created(path: String, stat: &Stat) -> pb::Created {
    pb::Created { path, stat: Some(self::stat(stat)) }
}

fn stat_body(stat: &Stat) -> pb::StatBody {
    pb::StatBody { stat: Some(self::stat(stat)) }
}

fn data_body(data: Option<bytes::Bytes>, stat: &Stat) -> pb::DataBody {
    pb::DataBody { data: data.map(|bytes| pb::Data { bytes }), stat: Some(self::stat(stat)) }
}

fn children_body(children: Vec<String>, stat: &Stat) -> pb::ChildrenBody {
    pb::ChildrenBody { children, stat: Some(self::stat(stat)) }
}

fn id_of(id: Id) -> pb::Id {
    pb::Id { scheme: id.scheme, id: id.id }
}

fn stat(stat: &Stat) -> pb::Stat {
    pb::Stat {
        czxid: Zxid::from_i64(stat.czxid).0,
        mzxid: Zxid::from_i64(stat.mzxid).0,
        ctime: stat.ctime,
        mtime: stat.mtime,
        version: stat.version,
        cversion: stat.cversion,
        aversion: stat.aversion,
        ephemeral_owner: stat.ephemeral_owner,
        data_length: stat.data_length,
        num_children: stat.num_children,
        pzxid: Zxid::from_i64(stat.pzxid).0,
    }
}

/// A watch event.
pub fn event(shared: &SharedEvent) -> pb::Reply {
    let event = &shared.event;
    pb::Reply {
        kind: Some(pb::reply::Kind::Event(pb::Event {
            kind: event.kind.code(),
            path: event.path.clone(),
            zxid: event.zxid.unwrap_or_default().0,
        })),
    }
}

/// What a subscription is told.
pub fn feed(notice: &FeedNotice) -> pb::Reply {
    use pb::reply::Kind;
    pb::Reply {
        kind: Some(match notice {
            FeedNotice::Changes { watch, zxid, events } => Kind::FeedChanges(pb::FeedChanges {
                watch: *watch,
                zxid: zxid.0,
                events: events
                    .iter()
                    .map(|event| pb::FeedEvent {
                        kind: event.kind.code(),
                        path: event.path.clone(),
                        node: event.node.as_ref().map(|node| pb::FeedNode {
                            data: node.data.clone().map(|bytes| pb::Data { bytes }),
                            stat: Some(stat(&node.stat)),
                            as_of: node.as_of.0,
                        }),
                    })
                    .collect(),
            }),
            FeedNotice::Bookmark { watch, zxid } => {
                Kind::FeedBookmark(pb::FeedBookmark { watch: watch.unwrap_or(0), zxid: zxid.0 })
            }
            FeedNotice::Gap { watch, after, resync } => {
                Kind::FeedGap(pb::FeedGap { watch: *watch, after: after.0, resync: resync.0 })
            }
        }),
    }
}

/// About how many bytes such a notice takes on the wire.
pub fn feed_weight(notice: &FeedNotice) -> usize {
    match notice {
        FeedNotice::Changes { events, .. } => {
            let data = |event: &corral_core::session::FeedEvent| {
                event.node.as_ref().map_or(0, |node| 128 + node.data.as_ref().map_or(0, bytes::Bytes::len))
            };
            16 + events.iter().map(|event| 16 + event.path.len() + data(event)).sum::<usize>()
        }
        FeedNotice::Bookmark { .. } | FeedNotice::Gap { .. } => 32,
    }
}

/// The last message of a connection.
pub fn closed(reason: CloseReason) -> pb::Closed {
    use pb::closed::Reason;
    let (reason, text) = match reason {
        CloseReason::Expired => (Reason::SessionExpired, "the session expired"),
        CloseReason::ClosedByClient => (Reason::ClosedByClient, "the client closed its session"),
        CloseReason::Moved => (Reason::SessionMoved, "the session has a newer connection"),
        CloseReason::NoQuorum => (Reason::NoQuorum, "no leader for too long"),
        // No session of this protocol is read-only; if one were, it would have to connect again as after this.
        CloseReason::QuorumIsBack => (Reason::NoQuorum, "the read-only time of this server is over"),
        CloseReason::SlowReader => (Reason::SlowReader, "the client does not read what it is sent"),
        CloseReason::OutOfOrder => (Reason::Protocol, "the number of a write was not the next"),
        CloseReason::ShuttingDown => (Reason::ShuttingDown, "this server is shutting down or replacing its state"),
    };
    pb::Closed { reason: reason.into(), text: text.to_owned() }
}

/// About how many bytes an answer takes on the wire: to end a message in time.
pub fn weight(result: &Result<Answer, ErrorCode>) -> usize {
    /// A Stat and what is around it.
    const BASE: usize = 128;
    fn of(answer: &Answer) -> usize {
        BASE + match answer {
            Answer::Data { data, .. } => data.as_ref().map_or(0, bytes::Bytes::len),
            Answer::Children { children, .. } | Answer::Listing { children, .. } | Answer::Paths(children) => {
                children.iter().map(|name| name.len() + 4).sum()
            }
            Answer::Subtree { nodes, .. } => {
                let data = |node: &SubtreeNode| node.data.as_ref().map_or(0, bytes::Bytes::len);
                nodes.iter().map(|node| BASE + node.path.len() + data(node)).sum()
            }
            Answer::Created { path, .. } => path.len(),
            Answer::Multi(answers) => answers.iter().map(of).sum(),
            Answer::MultiRead(results) => results.iter().map(|result| result.as_ref().map_or(BASE, of)).sum(),
            Answer::MultiFailed { ops, .. } => ops * 16,
            Answer::Acl { acl, .. } => acl.iter().map(|acl| acl.id.scheme.len() + acl.id.id.len() + 16).sum(),
            Answer::Ids(ids) => ids.iter().map(|id| id.scheme.len() + id.id.len() + 8).sum(),
            Answer::Token(token) => token.as_ref().map_or(0, bytes::Bytes::len),
            Answer::Done | Answer::Stat(_) | Answer::Count(_) => 0,
        }
    }
    result.as_ref().map_or(BASE, of)
}

#[cfg(test)]
mod tests {
    use corral_proto::{EventKind, WatchedEvent};
    use pb::request::Op;

    use super::*;

    fn ask(n: u64, op: Op) -> Result<ClientRequest, ProtocolError> {
        request(pb::Request { id: 7, n, answered_through: 0, consistency: None, op: Some(op) })
    }

    fn pb_create(mode: i32) -> pb::Create {
        pb::Create {
            path: "/a".into(),
            data: Some(pb::Data { bytes: "x".into() }),
            acl: vec![pb::Acl { perms: 31, id: Some(pb::Id { scheme: "world".into(), id: "anyone".into() }) }],
            mode,
            ttl_ms: 5,
        }
    }

    fn core_create() -> Create {
        let (data, acl) = (Some("x".into()), Some(Acl::open()));
        Create { path: "/a".into(), data, acl, mode: CreateMode::PersistentWithTtl, ttl_ms: 5 }
    }

    #[test]
    fn writes_carry_their_number() {
        let asked = pb::Request {
            id: 1,
            n: 9,
            answered_through: 6,
            consistency: None,
            op: Some(Op::Create(pb_create(CreateMode::PersistentWithTtl.flags()))),
        };
        let op = WriteOp::Create(core_create());
        assert_eq!(request(asked), Ok(ClientRequest::Write { op, n: Some(9), answered_through: 6 }));
        assert_eq!(ask(3, Op::CloseSession(pb::CloseSession {})), Ok(ClientRequest::CloseSession { n: Some(3) }));
    }

    #[test]
    fn null_data_and_empty_data_stay_different() {
        let set = |data| ask(1, Op::SetData(pb::SetData { path: "/a".into(), data, version: -1 }));
        let write = |data| {
            let op = WriteOp::SetData { path: "/a".into(), data, version: -1 };
            Ok(ClientRequest::Write { op, n: Some(1), answered_through: 0 })
        };
        assert_eq!(set(None), write(None));
        assert_eq!(set(Some(pb::Data { bytes: bytes::Bytes::new() })), write(Some(bytes::Bytes::new())));
    }

    #[test]
    fn multis_are_read_operation_by_operation() {
        use pb::multi_op::Op as Pb;
        let ops = [
            Pb::Create(pb_create(5)),
            Pb::Delete(pb::Delete { path: "/b".into(), version: 2 }),
            Pb::SetData(pb::SetData { path: "/c".into(), data: None, version: -1 }),
            Pb::Check(pb::Check { path: "/d".into(), version: 4 }),
        ];
        let ops = ops.into_iter().map(|op| pb::MultiOp { op: Some(op) }).collect();
        let op = WriteOp::Multi(vec![
            MultiOp::Create(core_create()),
            MultiOp::Delete { path: "/b".into(), version: 2 },
            MultiOp::SetData { path: "/c".into(), data: None, version: -1 },
            MultiOp::Check { path: "/d".into(), version: 4 },
        ]);
        let write = ClientRequest::Write { op, n: Some(1), answered_through: 0 };
        assert_eq!(ask(1, Op::Multi(pb::Multi { ops })), Ok(write));
    }

    #[test]
    fn reads_say_how_fresh_they_must_be() {
        let get = |level| {
            let op = Some(Op::GetData(pb::GetData { path: "/a".into(), watch: true }));
            request(pb::Request { id: 1, n: 0, answered_through: 4, consistency: Some(pb::Consistency { level }), op })
        };
        let read = |consistency| {
            Ok(ClientRequest::Read { op: ReadOp::GetData { path: "/a".into() }, watch: true, consistency })
        };
        use pb::consistency::Level;
        assert_eq!(get(None), read(Consistency::Local));
        assert_eq!(get(Some(Level::Local(true))), read(Consistency::Local));
        assert_eq!(get(Some(Level::AtLeast(5))), read(Consistency::AtLeast(Zxid(5))));
        assert_eq!(get(Some(Level::Linearizable(true))), read(Consistency::Linearizable));
    }

    #[test]
    fn numbers_that_break_the_rules_end_the_connection() {
        let error = ask(0, Op::Delete(pb::Delete::default())).unwrap_err();
        assert_eq!(error.to_string(), "request 7: a write needs a number, from 1 on");
        let error = ask(1, Op::Ping(pb::Ping {})).unwrap_err();
        assert_eq!(error.to_string(), "request 7: only writes have a number");
        let delete = Some(Op::Delete(pb::Delete::default()));
        let asked = pb::Request { id: 1, n: 5, answered_through: 5, consistency: None, op: delete };
        assert!(request(asked).is_err());
        assert!(ask(1, Op::Create(pb_create(77))).is_err());
        assert!(ask(1, Op::Multi(pb::Multi { ops: vec![pb::MultiOp { op: None }] })).is_err());
        assert!(request(pb::Request { id: 1, n: 1, ..pb::Request::default() }).is_err());
    }

    #[test]
    fn what_is_unknown_and_no_write_is_refused_alone() {
        assert_eq!(
            request(pb::Request { id: 1, ..pb::Request::default() }),
            Ok(ClientRequest::Refuse(ErrorCode::Unimplemented))
        );
        let one_shot = pb::AddWatch { path: "/a".into(), kind: pb::WatchKind::Data.into() };
        assert_eq!(ask(0, Op::AddWatch(one_shot)), Ok(ClientRequest::Refuse(ErrorCode::BadArguments)));
        let unknown = pb::RemoveWatch { path: "/a".into(), kind: 9, any: false };
        assert_eq!(ask(0, Op::RemoveWatch(unknown)), Ok(ClientRequest::Refuse(ErrorCode::BadArguments)));
    }

    #[test]
    fn watches_keep_their_kinds() {
        let kinds = [
            (pb::WatchKind::Data, WatchKind::Data),
            (pb::WatchKind::Child, WatchKind::Child),
            (pb::WatchKind::Persistent, WatchKind::Persistent),
            (pb::WatchKind::PersistentRecursive, WatchKind::PersistentRecursive),
        ];
        for (message, kind) in kinds {
            let remove = pb::RemoveWatch { path: "/a".into(), kind: message.into(), any: false };
            let removed = ClientRequest::RemoveWatches { path: "/a".into(), kind: Some(kind) };
            assert_eq!(ask(0, Op::RemoveWatch(remove)), Ok(removed));
        }
        let any = pb::RemoveWatch { path: "/a".into(), kind: 0, any: true };
        assert_eq!(ask(0, Op::RemoveWatch(any)), Ok(ClientRequest::RemoveWatches { path: "/a".into(), kind: None }));
    }

    fn answer(result: Result<Answer, ErrorCode>) -> pb::Answer {
        match reply(7, Zxid(9), result).kind {
            Some(pb::reply::Kind::Answer(answer)) => {
                assert_eq!((answer.id, answer.zxid), (7, 9));
                answer
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_refused_multi_says_which_operation() {
        let refused = answer(Ok(Answer::MultiFailed { ops: 3, failed: 1, error: ErrorCode::BadVersion }));
        let Some(pb::answer::Body::Multi(multi)) = refused.body else { panic!("no results") };
        assert_eq!(refused.error, -103);
        assert_eq!(multi.results.iter().map(|result| result.error).collect::<Vec<_>>(), [0, -103, -2]);
    }

    #[test]
    fn stats_keep_every_field() {
        let stat = Stat {
            czxid: 1,
            mzxid: 2,
            ctime: 3,
            mtime: 4,
            version: 5,
            cversion: 6,
            aversion: 7,
            ephemeral_owner: -8,
            data_length: 9,
            num_children: 10,
            pzxid: 11,
        };
        let Some(pb::answer::Body::Stat(body)) = answer(Ok(Answer::Stat(stat))).body else { panic!("no stat") };
        let sent = body.stat.unwrap();
        assert_eq!((sent.czxid, sent.mzxid, sent.ctime, sent.mtime, sent.version), (1, 2, 3, 4, 5));
        assert_eq!((sent.cversion, sent.aversion, sent.ephemeral_owner), (6, 7, -8));
        assert_eq!((sent.data_length, sent.num_children, sent.pzxid), (9, 10, 11));
    }

    #[test]
    fn errors_have_no_body_and_success_always_has_one() {
        assert_eq!(answer(Err(ErrorCode::NoNode)), pb::Answer { id: 7, zxid: 9, error: -101, body: None });
        for result in
            [Answer::Done, Answer::Count(3), Answer::Paths(vec![]), Answer::Ids(vec![]), Answer::Multi(vec![])]
        {
            let answer = answer(Ok(result));
            assert!(answer.error == 0 && answer.body.is_some());
        }
    }

    #[test]
    fn events_made_up_by_setting_watches_again_have_no_zxid() {
        let event_of = |zxid| {
            let event = WatchedEvent { kind: EventKind::NodeDeleted, path: "/a".into(), zxid };
            match super::event(&SharedEvent::new(event)).kind {
                Some(pb::reply::Kind::Event(event)) => (event.kind, event.path, event.zxid),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(event_of(Some(Zxid(4))), (2, "/a".to_owned(), 4));
        assert_eq!(event_of(None), (2, "/a".to_owned(), 0));
    }
}
