//! Between this client's own types and the generated ones. Pure, and total: what a server may not say is an error text.

use corral_proto::pb::client as pb;
use corral_proto::{Acl, ErrorCode, EventKind, Id, Stat, WatchKind, WatchedEvent, Zxid};

use crate::feeds::{FeedEvent, FeedNode, WatchMode};
use crate::op::{Answer, Consistency, CreateOptions, MultiOp, Op, ReadRequest, SubtreeNode, SubtreePage};
use crate::session::Outbound;

/// A request on its way out. Copies paths; data is shared.
pub(crate) fn request(outbound: &Outbound<'_>) -> pb::Request {
    let watch = outbound.watch;
    use pb::request::Op as Pb;
    let op = match outbound.op {
        Op::Create { path, data, options } => Pb::Create(create(path, data, options)),
        Op::Delete { path, version } => Pb::Delete(pb::Delete { path: path.clone(), version: *version }),
        Op::SetData { path, data: bytes, version } => {
            Pb::SetData(pb::SetData { path: path.clone(), data: data(bytes), version: *version })
        }
        Op::SetAcl { path, acl: list, version } => {
            Pb::SetAcl(pb::SetAcl { path: path.clone(), acl: acl(list), version: *version })
        }
        Op::Multi(ops) => Pb::Multi(pb::Multi { ops: ops.iter().map(multi_op).collect() }),
        Op::CloseSession => Pb::CloseSession(pb::CloseSession {}),
        Op::Exists { path } => Pb::Exists(pb::Exists { path: path.clone(), watch }),
        Op::GetData { path } => Pb::GetData(pb::GetData { path: path.clone(), watch }),
        Op::GetAcl { path } => Pb::GetAcl(pb::GetAcl { path: path.clone() }),
        Op::GetChildren { path, with_stat } => {
            Pb::GetChildren(pb::GetChildren { path: path.clone(), watch, with_stat: *with_stat })
        }
        Op::MultiRead(reads) => Pb::MultiRead(pb::MultiRead { ops: reads.iter().map(multi_read_op).collect() }),
        Op::GetEphemerals { prefix } => Pb::GetEphemerals(pb::GetEphemerals { prefix: prefix.clone() }),
        Op::CountDescendants { path } => Pb::CountDescendants(pb::CountDescendants { path: path.clone() }),
        Op::WhoAmI => Pb::WhoAmI(pb::WhoAmI {}),
        Op::Ping => Pb::Ping(pb::Ping {}),
        Op::Sync { path } => Pb::Sync(pb::Sync { path: path.clone() }),
        Op::AddAuth { scheme, auth } => Pb::AddAuth(pb::AddAuth { scheme: scheme.clone(), auth: auth.clone() }),
        Op::Subscribe { name, path, mode, with_nodes, after } => Pb::Subscribe(pb::Subscribe {
            watch: *name,
            path: path.clone(),
            kind: feed_kind(*mode).into(),
            after: after.map(|after| after.0),
            with_nodes: *with_nodes,
        }),
        Op::Unsubscribe { name } => Pb::Unsubscribe(pb::Unsubscribe { watch: *name }),
        Op::GetSubtree { path, depth, after, newer_than } => Pb::GetSubtree(pb::GetSubtree {
            path: path.clone(),
            depth: feed_kind(*depth).into(),
            after: after.clone(),
            newer_than: newer_than.map(|zxid| zxid.0),
        }),
        Op::RemoveWatch { path, kind } => {
            Pb::RemoveWatch(pb::RemoveWatch { path: path.clone(), kind: watch_kind(*kind).into(), any: false })
        }
        Op::SetWatches(set) => Pb::SetWatches(pb::SetWatches {
            relative_zxid: set.relative_zxid.0,
            data: set.data.clone(),
            exist: set.exist.clone(),
            child: set.child.clone(),
            ..pb::SetWatches::default()
        }),
    };
    let level = match outbound.consistency {
        Consistency::Local => None,
        Consistency::AtLeast(zxid) => Some(pb::consistency::Level::AtLeast(zxid.0)),
        Consistency::Linearizable => Some(pb::consistency::Level::Linearizable(true)),
    };
    pb::Request {
        id: outbound.id,
        n: outbound.n,
        answered_through: outbound.answered_through,
        consistency: level.map(|level| pb::Consistency { level: Some(level) }),
        op: Some(op),
    }
}

fn create(path: &str, bytes: &Option<bytes::Bytes>, options: &CreateOptions) -> pb::Create {
    pb::Create {
        path: path.to_owned(),
        data: data(bytes),
        acl: acl(&options.acl),
        mode: options.mode.flags(),
        ttl_ms: options.ttl.map_or(0, |ttl| i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX)),
    }
}

fn data(bytes: &Option<bytes::Bytes>) -> Option<pb::Data> {
    bytes.as_ref().map(|bytes| pb::Data { bytes: bytes.clone() })
}

fn acl(list: &[Acl]) -> Vec<pb::Acl> {
    let id = |id: &Id| pb::Id { scheme: id.scheme.clone(), id: id.id.clone() };
    list.iter().map(|acl| pb::Acl { perms: acl.perms, id: Some(id(&acl.id)) }).collect()
}

fn multi_op(op: &MultiOp) -> pb::MultiOp {
    use pb::multi_op::Op as Pb;
    pb::MultiOp {
        op: Some(match op {
            MultiOp::Create { path, data, options } => Pb::Create(create(path, data, options)),
            MultiOp::Delete { path, version } => Pb::Delete(pb::Delete { path: path.clone(), version: *version }),
            MultiOp::SetData { path, data: bytes, version } => {
                Pb::SetData(pb::SetData { path: path.clone(), data: data(bytes), version: *version })
            }
            MultiOp::Check { path, version } => Pb::Check(pb::Check { path: path.clone(), version: *version }),
        }),
    }
}

fn multi_read_op(read: &ReadRequest) -> pb::MultiReadOp {
    use pb::multi_read_op::Op as Pb;
    pb::MultiReadOp {
        op: Some(match read {
            ReadRequest::Get(path) => Pb::GetData(pb::GetData { path: path.clone(), watch: false }),
            ReadRequest::GetChildren(path) => {
                Pb::GetChildren(pb::GetChildren { path: path.clone(), watch: false, with_stat: false })
            }
        }),
    }
}

fn feed_kind(mode: WatchMode) -> pb::FeedKind {
    match mode {
        WatchMode::Node => pb::FeedKind::Node,
        WatchMode::Children => pb::FeedKind::Children,
        WatchMode::Recursive => pb::FeedKind::Subtree,
    }
}

fn watch_kind(kind: WatchKind) -> pb::WatchKind {
    match kind {
        WatchKind::Data => pb::WatchKind::Data,
        WatchKind::Child => pb::WatchKind::Child,
        WatchKind::Persistent => pb::WatchKind::Persistent,
        WatchKind::PersistentRecursive => pb::WatchKind::PersistentRecursive,
    }
}

/// What an answer says: the request's id, the zxid, the result.
pub(crate) fn answer(answer: pb::Answer) -> Result<(u64, Zxid, Result<Answer, ErrorCode>), String> {
    use pb::answer::Body;
    let result = match (answer.error, answer.body) {
        // A multi that was refused says so as a whole, and for each operation.
        (_, Some(Body::Multi(multi))) => {
            Ok(Answer::Multi(multi.results.into_iter().map(multi_result).collect::<Result<_, _>>()?))
        }
        (0, Some(body)) => Ok(match body {
            Body::Created(created) => Answer::Created { path: created.path, stat: stat(created.stat)? },
            Body::Stat(body) => Answer::Stat(stat(body.stat)?),
            Body::Data(body) => Answer::Data { data: body.data.map(|data| data.bytes), stat: stat(body.stat)? },
            Body::Acl(body) => {
                let acl = body.acl.into_iter().map(|acl| Acl { perms: acl.perms, id: id(acl.id.unwrap_or_default()) });
                Answer::Acl { acl: acl.collect(), stat: stat(body.stat)? }
            }
            Body::Children(body) => children(body),
            Body::Paths(body) => Answer::Paths(body.paths),
            Body::Count(body) => {
                Answer::Count(u64::try_from(body.count).map_err(|_| format!("a count of {}", body.count))?)
            }
            Body::Ids(body) => Answer::Ids(body.ids.into_iter().map(id).collect()),
            Body::Empty(_) => Answer::Done,
            Body::Subtree(body) => Answer::Subtree(subtree(Zxid(answer.zxid), body)?),
            Body::Multi(_) => unreachable!("matched above"),
        }),
        (0, None) => return Err(format!("the answer to request {} is empty", answer.id)),
        (code, _) => Err(error(code)?),
    };
    Ok((answer.id, Zxid(answer.zxid), result))
}

fn multi_result(result: pb::MultiResult) -> Result<Result<Answer, ErrorCode>, String> {
    use pb::multi_result::Body;
    if result.error != 0 {
        return Ok(Err(error(result.error)?));
    }
    Ok(Ok(match result.body {
        Some(Body::Created(created)) => Answer::Created { path: created.path, stat: stat(created.stat)? },
        Some(Body::Stat(body)) => Answer::Stat(stat(body.stat)?),
        Some(Body::Data(body)) => Answer::Data { data: body.data.map(|data| data.bytes), stat: stat(body.stat)? },
        Some(Body::Children(body)) => children(body),
        // Nothing to tell: a delete, a check, or an operation that was fine before another was refused.
        Some(Body::Empty(_)) | None => Answer::Done,
    }))
}

fn children(body: pb::ChildrenBody) -> Answer {
    // Without the flag `with_stat` a server may leave it out.
    let stat = body.stat.map(|stat| self::stat(Some(stat)).unwrap_or_default()).unwrap_or_default();
    Answer::Children { children: body.children, stat }
}

fn subtree(zxid: Zxid, body: pb::SubtreeBody) -> Result<SubtreePage, String> {
    let node = |node: pb::SubtreeNode| {
        let pb::SubtreeNode { path, stat, data, is_known } = node;
        Ok::<_, String>(SubtreeNode { path, stat: self::stat(stat)?, data: data.map(|data| data.bytes), is_known })
    };
    let nodes = body.nodes.into_iter().map(node).collect::<Result<_, _>>()?;
    Ok(SubtreePage { nodes, next: (!body.next.is_empty()).then_some(body.next), zxid })
}

/// The events of an entry. Kinds that this version does not know are left out.
pub(crate) fn changes(changes: pb::FeedChanges) -> Result<(u64, Zxid, Vec<FeedEvent>), String> {
    let mut events = Vec::with_capacity(changes.events.len());
    for pb::FeedEvent { kind, path, node } in changes.events {
        let Some(kind) = EventKind::from_code(kind) else { continue };
        let node = match node {
            Some(pb::FeedNode { data, stat, as_of }) => {
                Some(FeedNode { data: data.map(|data| data.bytes), stat: self::stat(stat)?, as_of: Zxid(as_of) })
            }
            None => None,
        };
        events.push(FeedEvent { kind, path, node });
    }
    Ok((changes.watch, Zxid(changes.zxid), events))
}

/// What an event says; `None` for kinds that this version does not know.
pub(crate) fn event(event: pb::Event) -> Option<WatchedEvent> {
    let kind = EventKind::from_code(event.kind)?;
    Some(WatchedEvent { kind, path: event.path, zxid: (event.zxid != 0).then_some(Zxid(event.zxid)) })
}

fn error(code: i32) -> Result<ErrorCode, String> {
    ErrorCode::from_code(code).ok_or_else(|| format!("error code {code} is not known"))
}

fn id(id: pb::Id) -> Id {
    Id { scheme: id.scheme, id: id.id }
}

fn stat(stat: Option<pb::Stat>) -> Result<Stat, String> {
    let stat = stat.ok_or("an answer lacks its Stat")?;
    Ok(Stat {
        czxid: Zxid(stat.czxid).as_i64(),
        mzxid: Zxid(stat.mzxid).as_i64(),
        ctime: stat.ctime,
        mtime: stat.mtime,
        version: stat.version,
        cversion: stat.cversion,
        aversion: stat.aversion,
        ephemeral_owner: stat.ephemeral_owner,
        data_length: stat.data_length,
        num_children: stat.num_children,
        pzxid: Zxid(stat.pzxid).as_i64(),
    })
}
