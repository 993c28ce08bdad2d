//! A frame of a client becomes a [`ClientRequest`], and the [`Form`] its reply has to have.
//!
//! Refusals that need no tree are decided here, with ZooKeeper's codes and in its order (wire 1.3, 3.2, 3.4), and still
//! go through the lane, so that they are answered in their turn.

use bytes::Bytes;
use corral_core::session::{ClientRequest, Consistency, SetWatches};
use corral_core::tree::op::{self, MultiOp, MultiReadOp, ReadOp, WriteOp};
use corral_proto::jute::{self, CreateOp, DecodeError, Reader, Request, RequestHeader, opcode};
use corral_proto::{CreateMode, ErrorCode, WatchKind, Zxid};

/// A request of a client, understood.
#[derive(Debug, PartialEq)]
pub struct Asked {
    /// The client's number of the request; echoed.
    pub xid: i32,
    /// What it was sent as.
    pub opcode: i32,
    /// How to write the reply.
    pub form: Form,
    /// What to hand in.
    pub request: ClientRequest,
}

impl Asked {
    /// Whether nothing that follows it on the connection is read.
    pub fn is_last(&self) -> bool {
        let refused = matches!(self.request, ClientRequest::Refuse(_));
        matches!(self.form, Form::Unimplemented | Form::Closed) || (refused && self.form == Form::Auth)
    }
}

/// How the reply to a request is written; remembered until it comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// Header only.
    Header,
    /// Header only, xid always -2.
    Ping,
    /// Header only; it was the end of the session.
    Closed,
    /// Header with zxid 0; an error ends the connection.
    Auth,
    /// Header with zxid 0 and a token; an error has a null token and ends the connection.
    Sasl,
    /// Error -6 with zxid -1, then the end of the connection.
    Unimplemented,
    /// Path only: create.
    Path,
    /// Path and stat: the other creates.
    PathStat,
    /// Stat only.
    Stat,
    /// Data and stat.
    Data,
    /// ACL and stat.
    Acl,
    /// Names only.
    Children,
    /// Names and stat.
    ChildrenStat,
    /// The path that was sent.
    Sync(Box<str>),
    /// One result for each of these.
    Multi(Box<[MultiForm]>),
    /// Results say themselves what they are.
    MultiRead,
    /// The only error with a body: a terminator.
    MultiReadRefused,
    /// Paths.
    Paths,
    /// A number.
    Count,
    /// Four bytes of zero.
    WatchAdded,
    /// Identities.
    Identities,
    /// Names and stat, and two more lists.
    Listing,
    /// Of an opcode that only ClickHouse Keeper has: while that is switched off, as [`Form::Unimplemented`].
    Extension(Box<Form>),
}

/// What the result of one operation of a multi looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MultiForm {
    /// Path only.
    Create,
    /// Path and stat.
    Create2,
    /// Nothing, type 2.
    Delete,
    /// Stat.
    SetData,
    /// Nothing, type 13.
    Check,
    /// Path only, type 502.
    CreateIfNotExists,
    /// Nothing, type 503.
    RemoveRecursive,
    /// Nothing, type 501.
    CheckNotExists,
}

/// Frames after which ZooKeeper closes the connection without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HangUp {
    /// Not even a request header.
    #[error("frame is too short for a request header")]
    NoHeader,
    /// An auth request that cannot be read.
    #[error("auth request cannot be read")]
    BadAuth,
    /// A SASL request that cannot be read, or has a null token.
    #[error("sasl request cannot be read")]
    BadSasl,
}

/// Reads one frame of a connection whose handshake is done.
///
/// # Errors
/// [`HangUp`]: close without a reply.
pub fn decode(frame: Bytes) -> Result<Asked, HangUp> {
    let mut reader = Reader::new(frame);
    let RequestHeader { xid, opcode } = RequestHeader::decode(&mut reader).map_err(|_| HangUp::NoHeader)?;
    let (form, request) = match Request::decode(opcode, &mut reader) {
        Ok(request) => translate(request)?,
        Err(_) if opcode == opcode::AUTH => return Err(HangUp::BadAuth),
        Err(_) if opcode == opcode::SASL => return Err(HangUp::BadSasl),
        Err(DecodeError::UnknownOpcode(_)) => (Form::Unimplemented, ClientRequest::Refuse(ErrorCode::Unimplemented)),
        Err(DecodeError::WriteInMultiRead) => {
            (Form::MultiReadRefused, ClientRequest::Refuse(ErrorCode::MarshallingError))
        }
        // To a server without the extensions it is unknown, whatever its body.
        Err(_) if opcode::is_extension(opcode) => (extension(Form::Header), read(ReadOp::Unreadable, false)),
        Err(_) => undecodable(),
    };
    Ok(Asked { xid, opcode, form, request })
}

fn undecodable() -> (Form, ClientRequest) {
    (Form::Header, ClientRequest::Refuse(ErrorCode::MarshallingError))
}

fn translate(request: Request) -> Result<(Form, ClientRequest), HangUp> {
    Ok(match request {
        Request::Create(create) => {
            let form = match create.op {
                CreateOp::Create => Form::Path,
                CreateOp::IfNotExists => extension(Form::Path),
                _ => Form::PathStat,
            };
            match create_mode(create.op, create.flags) {
                // ZooKeeper goes by the opcode here, and by the flags in a multi: no container comes from this one.
                Ok(CreateMode::Container) if create.op != CreateOp::Container => {
                    (form, write(WriteOp::Create(new_znode(create, CreateMode::Persistent))))
                }
                Ok(mode) if create.op == CreateOp::IfNotExists => {
                    (form, write(WriteOp::CreateIfNotExists(new_znode(create, mode))))
                }
                Ok(mode) => (form, write(WriteOp::Create(new_znode(create, mode)))),
                Err(code) => (form, ClientRequest::Refuse(code)),
            }
        }
        Request::Delete { path, version } => (Form::Header, write(WriteOp::Delete { path, version })),
        Request::Exists { path, watch } => (Form::Stat, read(ReadOp::Exists { path }, watch)),
        Request::GetData { path, watch } => (Form::Data, read(ReadOp::GetData { path }, watch)),
        Request::SetData { path, data, version } => (Form::Stat, write(WriteOp::SetData { path, data, version })),
        Request::GetAcl { path } => (Form::Acl, read(ReadOp::GetAcl { path }, false)),
        Request::SetAcl { path, acl, version } => (Form::Stat, write(WriteOp::SetAcl { path, acl, version })),
        Request::GetChildren { path, watch } => (Form::Children, read(ReadOp::GetChildren { path }, watch)),
        Request::GetChildren2 { path, watch } => (Form::ChildrenStat, read(ReadOp::GetChildren { path }, watch)),
        Request::Sync { path } => (Form::Sync(path.into_boxed_str()), ClientRequest::Sync),
        Request::Ping => (Form::Ping, ClientRequest::Ping),
        // The decoder lets it pass inside a multi only.
        Request::Check { .. } => (Form::Unimplemented, ClientRequest::Refuse(ErrorCode::Unimplemented)),
        Request::Multi(ops) => multi(ops),
        Request::MultiRead(ops) => multi_read(ops),
        Request::Reconfig { .. } => (Form::Data, ClientRequest::Refuse(ErrorCode::ReconfigDisabled)),
        Request::CheckWatches { path, kind } => match watch_kind(kind) {
            Some(kind) => (Form::Header, ClientRequest::CheckWatches { path, kind }),
            None => undecodable(),
        },
        Request::RemoveWatches { path, kind } => match watch_kind(kind) {
            Some(kind) => (Form::Header, ClientRequest::RemoveWatches { path, kind }),
            None => undecodable(),
        },
        Request::AddWatch { path, mode } => match mode {
            0 => (Form::WatchAdded, ClientRequest::AddWatch { path, kind: WatchKind::Persistent }),
            1 => (Form::WatchAdded, ClientRequest::AddWatch { path, kind: WatchKind::PersistentRecursive }),
            _ => undecodable(),
        },
        // Nobody proves anything with nothing, not even an empty name.
        Request::Auth { kind: _, scheme, auth: None } if scheme == "digest" => {
            (Form::Auth, ClientRequest::Refuse(ErrorCode::AuthFailed))
        }
        Request::Auth { kind: _, scheme, auth } => {
            let auth = auth.map(|auth| auth.to_vec()).unwrap_or_default();
            (Form::Auth, ClientRequest::AddAuth { scheme, auth })
        }
        Request::SetWatches(watches) | Request::SetWatches2(watches) => {
            (Form::Header, ClientRequest::SetWatches(set_watches(watches)))
        }
        Request::Sasl { token: Some(token) } => (Form::Sasl, ClientRequest::Sasl { token }),
        Request::Sasl { token: None } => return Err(HangUp::BadSasl),
        Request::GetEphemerals { prefix } => {
            // What Java takes for blank around it, or for blank, means all of them.
            let prefix = match prefix.trim_matches(|c| c <= ' ') {
                "" | "/" => String::new(),
                _ => prefix,
            };
            (Form::Paths, read(ReadOp::GetEphemerals { prefix }, false))
        }
        Request::GetAllChildrenNumber { path } => (Form::Count, read(ReadOp::CountDescendants { path }, false)),
        Request::WhoAmI => (Form::Identities, ClientRequest::WhoAmI),
        Request::List(list) => {
            let form = extension(if list.with.is_some() { Form::Listing } else { Form::ChildrenStat });
            let watch = list.watch;
            match list_op(list) {
                Some(op) => (form, read(ReadOp::List(op), watch)),
                None => (extension(Form::Header), read(ReadOp::Unreadable, false)),
            }
        }
        Request::CheckNotExists { path, version } => {
            (extension(Form::Header), read(ReadOp::CheckNotExists { path, version }, false))
        }
        Request::RemoveRecursive { path, limit } => {
            (extension(Form::Header), write(WriteOp::RemoveRecursive { path, limit }))
        }
        Request::CloseSession => (Form::Closed, ClientRequest::CloseSession { n: None }),
    })
}

fn extension(form: Form) -> Form {
    Form::Extension(Box::new(form))
}

fn write(op: WriteOp) -> ClientRequest {
    ClientRequest::Write { op, n: None, answered_through: 0 }
}

fn read(op: ReadOp, watch: bool) -> ClientRequest {
    ClientRequest::Read { op, watch, consistency: Consistency::Local }
}

/// The mode a create asks for, if it exists and fits the opcode (wire 3.2: ZooKeeper lets some misfits pass, and dies
/// of one of them).
fn create_mode(op: CreateOp, flags: i32) -> Result<CreateMode, ErrorCode> {
    let mode = CreateMode::from_flags(flags).ok_or(ErrorCode::BadArguments)?;
    let fits = match op {
        // A mode that needs a TTL goes on without one: whether there are such modes at all is asked first, later.
        CreateOp::Create | CreateOp::Create2 => true,
        CreateOp::Container => mode == CreateMode::Container,
        CreateOp::Ttl => mode.is_ttl(),
        CreateOp::IfNotExists => !mode.is_ttl() && mode != CreateMode::Container,
    };
    if fits { Ok(mode) } else { Err(ErrorCode::BadArguments) }
}

fn new_znode(create: jute::Create, mode: CreateMode) -> op::Create {
    op::Create { path: create.path, data: create.data, acl: create.acl, mode, ttl_ms: create.ttl_ms }
}

/// A multi. Unknown flags, TTL flags without a TTL, and null ACL lists without one make the whole of it undecodable;
/// every other fault belongs to its operation (wire 3.4).
fn multi(ops: Vec<Request>) -> (Form, ClientRequest) {
    let mut forms = Vec::with_capacity(ops.len());
    let mut list = Vec::with_capacity(ops.len());
    for op in ops {
        let (form, op) = match op {
            Request::Create(create) => {
                // Without a place for a time to live, a mode that needs one is none; with it, a null list is the
                // operation's own fault. So ZooKeeper's decoder happens to see it.
                let takes_ttl = create.op == CreateOp::Ttl;
                match CreateMode::from_flags(create.flags) {
                    Some(mode) if takes_ttl || (create.acl.is_some() && !mode.is_ttl()) => {}
                    _ => return undecodable(),
                }
                let form = match create.op {
                    CreateOp::Create if create.flags != CreateMode::Container.flags() => MultiForm::Create,
                    CreateOp::IfNotExists => MultiForm::CreateIfNotExists,
                    _ => MultiForm::Create2,
                };
                let if_not_exists = create.op == CreateOp::IfNotExists;
                // A misfit must fail with -8 in its place, after the operations before it: a create without a path
                // does exactly that, whatever else is true of the tree.
                let znode = match create_mode(create.op, create.flags) {
                    Ok(mode) => new_znode(create, mode),
                    Err(_) => op::Create { acl: create.acl, ..op::Create::default() },
                };
                (form, if if_not_exists { MultiOp::CreateIfNotExists(znode) } else { MultiOp::Create(znode) })
            }
            Request::Delete { path, version } => (MultiForm::Delete, MultiOp::Delete { path, version }),
            Request::SetData { path, data, version } => (MultiForm::SetData, MultiOp::SetData { path, data, version }),
            Request::Check { path, version } => (MultiForm::Check, MultiOp::Check { path, version }),
            Request::CheckNotExists { path, version } => {
                (MultiForm::CheckNotExists, MultiOp::CheckNotExists { path, version })
            }
            Request::RemoveRecursive { path, limit } => {
                (MultiForm::RemoveRecursive, MultiOp::RemoveRecursive { path, limit })
            }
            // The decoder refuses all others.
            _ => return undecodable(),
        };
        forms.push(form);
        list.push(op);
    }
    (Form::Multi(forms.into_boxed_slice()), write(WriteOp::Multi(list)))
}

/// Several reads. The watch flags inside are ignored, as ZooKeeper does.
fn multi_read(ops: Vec<Request>) -> (Form, ClientRequest) {
    let mut list = Vec::with_capacity(ops.len());
    for op in ops {
        list.push(match op {
            Request::GetData { path, .. } => MultiReadOp::GetData { path },
            Request::GetChildren { path, .. } => MultiReadOp::GetChildren { path },
            Request::Exists { path, .. } => MultiReadOp::Exists { path },
            Request::GetChildren2 { path, .. } => MultiReadOp::List(op::List { path, ..op::List::default() }),
            Request::List(list) => match list_op(list) {
                Some(op) => MultiReadOp::List(op),
                None => return undecodable(),
            },
            // The decoder refuses all others.
            _ => return undecodable(),
        });
    }
    (Form::MultiRead, read(ReadOp::MultiRead(list), false))
}

/// ClickHouse Keeper's list; `None` for a filter that does not exist.
fn list_op(list: jute::List) -> Option<op::List> {
    let ephemerals = match list.filter {
        0 => None,
        1 => Some(false),
        2 => Some(true),
        _ => return None,
    };
    let (with_stat, with_data) = list.with.unwrap_or_default();
    Some(op::List { path: list.path, ephemerals, with_stat, with_data })
}

/// Which watches checkWatches and removeWatches mean (wire 7.7); the inner `None` is "any".
fn watch_kind(number: i32) -> Option<Option<WatchKind>> {
    Some(match number {
        1 => Some(WatchKind::Child),
        2 => Some(WatchKind::Data),
        3 => None,
        4 => Some(WatchKind::Persistent),
        5 => Some(WatchKind::PersistentRecursive),
        _ => return None,
    })
}

fn set_watches(watches: jute::SetWatches) -> SetWatches {
    SetWatches {
        // The door knows whether this server does.
        replay: false,
        relative_zxid: Zxid::from_i64(watches.relative_zxid),
        data: watches.data,
        exist: watches.exist,
        child: watches.child,
        persistent: watches.persistent,
        persistent_recursive: watches.persistent_recursive,
    }
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};
    use corral_proto::Acl;
    use corral_proto::jute::MultiHeader;
    use proptest::prelude::*;

    use super::*;

    fn ask(request: &Request) -> Result<Asked, HangUp> {
        let mut out = BytesMut::new();
        request.encode(5, &mut out);
        decode(out.split_off(4).freeze())
    }

    fn raw(opcode: i32, body: &[u8]) -> Result<Asked, HangUp> {
        let mut out = BytesMut::new();
        out.put_i32(5);
        out.put_i32(opcode);
        out.extend_from_slice(body);
        decode(out.freeze())
    }

    fn refused(asked: Result<Asked, HangUp>) -> (Form, ErrorCode) {
        match asked.unwrap() {
            Asked { xid: 5, form, request: ClientRequest::Refuse(code), .. } => (form, code),
            other => panic!("not refused: {other:?}"),
        }
    }

    fn create(op: CreateOp, flags: i32) -> Request {
        let ttl_ms = if op == CreateOp::Ttl { 1000 } else { -1 };
        Request::Create(jute::Create { op, path: "/a".into(), data: None, acl: Some(Acl::open()), flags, ttl_ms })
    }

    #[test]
    fn each_create_takes_only_the_flags_that_fit() {
        let all = [CreateOp::Create, CreateOp::Create2, CreateOp::Container, CreateOp::Ttl];
        let fitting: [&[i32]; 4] = [&[0, 1, 2, 3, 4, 5, 6], &[0, 1, 2, 3, 4, 5, 6], &[4], &[5, 6]];
        for (op, fitting) in all.into_iter().zip(fitting) {
            for flags in -1..9 {
                let asked = ask(&create(op, flags)).unwrap();
                if fitting.contains(&flags) {
                    let ClientRequest::Write { op: WriteOp::Create(create), n: None, .. } = asked.request else {
                        panic!("not a create: {:?}", asked.request)
                    };
                    let is_container = op == CreateOp::Container;
                    assert_eq!(create.mode.flags(), if flags == 4 && !is_container { 0 } else { flags });
                    assert_eq!(create.ttl_ms, if op == CreateOp::Ttl { 1000 } else { -1 });
                } else {
                    assert_eq!(asked.request, ClientRequest::Refuse(ErrorCode::BadArguments), "{op:?} {flags}");
                }
                let form = if op == CreateOp::Create { Form::Path } else { Form::PathStat };
                assert_eq!(asked.form, form);
            }
        }
    }

    #[test]
    fn keeper_operations_are_told_apart_from_unknown_opcodes() {
        let of = |form: Form| Form::Extension(Box::new(form));
        let list = |filter, with| Request::List(jute::List { path: "/a".into(), watch: true, filter, with });
        let asked = ask(&list(2, None)).unwrap();
        let op = op::List { path: "/a".into(), ephemerals: Some(true), with_stat: false, with_data: false };
        assert_eq!((asked.form, asked.request), (of(Form::ChildrenStat), read(ReadOp::List(op), true)));
        let asked = ask(&list(1, Some((false, true)))).unwrap();
        let op = op::List { path: "/a".into(), ephemerals: Some(false), with_stat: false, with_data: true };
        assert_eq!((asked.form, asked.request), (of(Form::Listing), read(ReadOp::List(op), true)));
        let asked = ask(&list(3, None)).unwrap();
        assert_eq!((asked.form, asked.request), (of(Form::Header), read(ReadOp::Unreadable, false)));
        let remove = Request::RemoveRecursive { path: "/a".into(), limit: u32::MAX };
        let op = WriteOp::RemoveRecursive { path: "/a".into(), limit: u32::MAX };
        assert_eq!(ask(&remove).unwrap(), Asked { xid: 5, opcode: 503, form: of(Form::Header), request: write(op) });
        for flags in 4..7 {
            assert_eq!(refused(ask(&create(CreateOp::IfNotExists, flags))), (of(Form::Path), ErrorCode::BadArguments));
        }
        let absent = Request::CheckNotExists { path: "/a".into(), version: -1 };
        let multi = ask(&Request::Multi(vec![create(CreateOp::IfNotExists, 1), remove, absent])).unwrap();
        use MultiForm::*;
        assert_eq!(multi.form, Form::Multi(Box::new([CreateIfNotExists, RemoveRecursive, CheckNotExists])));
    }

    #[test]
    fn unknown_and_internal_opcodes_are_unimplemented_and_the_last() {
        for opcode in [0, 10, 13, 20, 23, 99, 108, -1, -10, 12345] {
            let asked = raw(opcode, b"").unwrap();
            assert!(asked.is_last());
            assert_eq!(refused(Ok(asked)), (Form::Unimplemented, ErrorCode::Unimplemented), "{opcode}");
        }
    }

    #[test]
    fn undecodable_bodies_are_answered_and_the_connection_stays() {
        for opcode in [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 14, 15, 16, 17, 18, 19, 21, 22, 101, 103, 104, 105, 106] {
            let asked = raw(opcode, &[0, 0]).unwrap();
            assert!(!asked.is_last());
            assert_eq!(refused(Ok(asked)), (Form::Header, ErrorCode::MarshallingError), "{opcode}");
        }
    }

    #[test]
    fn frames_that_zookeeper_hangs_up_on() {
        for length in 0..8 {
            assert_eq!(decode(Bytes::from(vec![0; length])), Err(HangUp::NoHeader));
        }
        assert_eq!(raw(opcode::AUTH, &[0, 0]), Err(HangUp::BadAuth));
        assert_eq!(raw(opcode::SASL, &[0, 0]), Err(HangUp::BadSasl));
        assert_eq!(raw(opcode::SASL, &[0xff; 4]), Err(HangUp::BadSasl));
    }

    #[test]
    fn a_blank_prefix_of_ephemerals_means_all() {
        for (prefix, meant) in [("", ""), ("/", ""), (" /\t", ""), ("\0", ""), ("/a", "/a"), (" /a ", " /a ")] {
            let asked = ask(&Request::GetEphemerals { prefix: prefix.into() }).unwrap();
            assert_eq!(asked.request, read(ReadOp::GetEphemerals { prefix: meant.into() }, false), "{prefix:?}");
        }
    }

    #[test]
    fn a_digest_of_nothing_is_no_proof_and_one_of_empty_text_is() {
        let auth = |scheme: &str, auth: Option<&'static [u8]>| {
            ask(&Request::Auth { kind: 0, scheme: scheme.into(), auth: auth.map(Bytes::from_static) })
        };
        assert!(auth("digest", None).unwrap().is_last(), "nothing behind it is done");
        assert_eq!(refused(auth("digest", None)), (Form::Auth, ErrorCode::AuthFailed));
        for (scheme, proof) in [("digest", Some(&b""[..])), ("ip", None)] {
            assert!(matches!(auth(scheme, proof).unwrap().request, ClientRequest::AddAuth { .. }), "{scheme}");
        }
    }

    #[test]
    fn sasl_tokens_go_to_the_session() {
        let asked = raw(opcode::SASL, &[0, 0, 0, 1, 7]).unwrap();
        assert_eq!((asked.form, asked.request), (Form::Sasl, ClientRequest::Sasl { token: Bytes::from_static(&[7]) }));
    }

    #[test]
    fn reconfig_is_disabled_but_must_be_readable() {
        let reconfig = Request::Reconfig { joining: None, leaving: None, members: None, config_version: -1 };
        assert_eq!(refused(ask(&reconfig)).1, ErrorCode::ReconfigDisabled);
        assert_eq!(refused(raw(opcode::RECONFIG, &[0])).1, ErrorCode::MarshallingError);
    }

    #[test]
    fn unknown_watch_modes_and_types_are_undecodable() {
        for mode in [-1, 2, 3] {
            let asked = ask(&Request::AddWatch { path: "/a".into(), mode });
            assert_eq!(refused(asked), (Form::Header, ErrorCode::MarshallingError));
        }
        for kind in [-1, 0, 6] {
            let check = Request::CheckWatches { path: "/a".into(), kind };
            let remove = Request::RemoveWatches { path: "/a".into(), kind };
            assert_eq!(refused(ask(&check)), (Form::Header, ErrorCode::MarshallingError));
            assert_eq!(refused(ask(&remove)), (Form::Header, ErrorCode::MarshallingError));
        }
        let kinds = [
            Some(WatchKind::Child),
            Some(WatchKind::Data),
            None,
            Some(WatchKind::Persistent),
            Some(WatchKind::PersistentRecursive),
        ];
        for (number, kind) in (1..).zip(kinds) {
            let asked = ask(&Request::RemoveWatches { path: "/a".into(), kind: number }).unwrap();
            assert_eq!(asked.request, ClientRequest::RemoveWatches { path: "/a".into(), kind });
        }
    }

    #[test]
    fn a_null_list_of_watches_is_undecodable() {
        let mut body = BytesMut::new();
        body.put_i64(7);
        body.put_i32(0);
        body.put_i32(-1);
        body.put_i32(0);
        assert_eq!(refused(raw(opcode::SET_WATCHES, &body)), (Form::Header, ErrorCode::MarshallingError));
    }

    #[test]
    fn null_acl_goes_to_execution_alone_but_spoils_a_multi() {
        let Request::Create(mut znode) = create(CreateOp::Create, 0) else { unreachable!() };
        znode.acl = None;
        let znode = Request::Create(znode);
        assert!(matches!(
            ask(&znode).unwrap().request,
            ClientRequest::Write { op: WriteOp::Create(op::Create { acl: None, .. }), .. }
        ));
        assert_eq!(refused(ask(&Request::Multi(vec![znode]))), (Form::Header, ErrorCode::MarshallingError));
        let unknown_flags = Request::Multi(vec![create(CreateOp::Create, 7)]);
        assert_eq!(refused(ask(&unknown_flags)), (Form::Header, ErrorCode::MarshallingError));
    }

    #[test]
    fn results_of_a_multi_follow_the_opcode_that_asked() {
        let asked = ask(&Request::Multi(vec![
            create(CreateOp::Create, 2),
            create(CreateOp::Create, 4),
            create(CreateOp::Create2, 0),
            create(CreateOp::Container, 4),
            create(CreateOp::Ttl, 5),
            Request::Delete { path: "/a".into(), version: -1 },
            Request::SetData { path: "/a".into(), data: None, version: -1 },
            Request::Check { path: "/a".into(), version: -1 },
        ]))
        .unwrap();
        use MultiForm::*;
        let forms = [Create, Create2, Create2, Create2, Create2, Delete, SetData, Check];
        assert_eq!(asked.form, Form::Multi(Box::new(forms)));
    }

    #[test]
    fn a_misfit_in_a_multi_fails_in_its_place_as_bad_arguments() {
        for misfit in [create(CreateOp::Ttl, 0), create(CreateOp::Container, 0)] {
            let before = Request::Check { path: "/b".into(), version: 1 };
            let asked = ask(&Request::Multi(vec![before, misfit])).unwrap();
            let ClientRequest::Write { op: WriteOp::Multi(ops), .. } = asked.request else { panic!("no multi") };
            let MultiOp::Create(znode) = &ops[1] else { panic!("no create") };
            assert_eq!((znode.path.as_str(), znode.mode), ("", CreateMode::Persistent));
        }
    }

    #[test]
    fn ttl_flags_without_a_ttl_spoil_a_multi_and_a_null_acl_with_one_does_not() {
        for op in [CreateOp::Create, CreateOp::Create2, CreateOp::Container] {
            for flags in [5, 6] {
                let asked = ask(&Request::Multi(vec![create(op, flags)]));
                assert_eq!(refused(asked), (Form::Header, ErrorCode::MarshallingError), "{op:?} {flags}");
            }
        }
        let Request::Create(mut znode) = create(CreateOp::Ttl, 5) else { unreachable!() };
        znode.acl = None;
        let asked = ask(&Request::Multi(vec![Request::Create(znode)])).unwrap();
        let ClientRequest::Write { op: WriteOp::Multi(ops), .. } = asked.request else { panic!("no multi") };
        assert!(matches!(&ops[0], MultiOp::Create(op::Create { acl: None, .. })));
    }

    #[test]
    fn empty_multis_are_requests_like_others() {
        let asked = ask(&Request::Multi(vec![])).unwrap();
        assert_eq!(asked.form, Form::Multi(Box::new([])));
        assert_eq!(asked.request, write(WriteOp::Multi(vec![])));
    }

    #[test]
    fn multi_read_of_changes_is_refused_with_a_body_and_mixtures_without() {
        let mut changes = BytesMut::new();
        MultiHeader { opcode: 2, done: false, err: -1 }.encode(&mut changes);
        changes.extend_from_slice(&[0, 0, 0, 2, b'/', b'a', 0, 0, 0, 0]);
        let mut mixed = changes.clone();
        MultiHeader::TERMINATOR.encode(&mut changes);
        MultiHeader { opcode: 4, done: false, err: -1 }.encode(&mut mixed);
        mixed.extend_from_slice(&[0, 0, 0, 2, b'/', b'a', 0]);
        MultiHeader::TERMINATOR.encode(&mut mixed);
        let code = ErrorCode::MarshallingError;
        assert_eq!(refused(raw(opcode::MULTI_READ, &changes)), (Form::MultiReadRefused, code));
        assert_eq!(refused(raw(opcode::MULTI_READ, &mixed)), (Form::Header, code));
    }

    #[test]
    fn negative_relative_zxid_is_none_seen() {
        let asked = ask(&Request::SetWatches(jute::SetWatches { relative_zxid: -1, ..Default::default() })).unwrap();
        let ClientRequest::SetWatches(watches) = asked.request else { panic!("no watches") };
        assert_eq!(watches.relative_zxid, Zxid::ZERO);
    }

    proptest! {
        #[test]
        fn decoding_is_total(
            opcode in prop_oneof![-12i32..24, 99i32..109, any::<i32>()],
            body in proptest::collection::vec(prop_oneof![3 => Just(0u8), 1 => Just(0xff), 2 => 0u8..24, 1 => any::<u8>()], 0..80),
        ) {
            if let Ok(asked) = raw(opcode, &body) {
                prop_assert_eq!((asked.xid, asked.opcode), (5, opcode));
            }
        }
    }
}
