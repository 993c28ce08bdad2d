//! Request bodies (wire 3.2, 3.4, 7.7, 7.8).

use bytes::{BufMut, Bytes, BytesMut};

use super::primitive::{JuteWrite, Reader};
use super::record::{MultiHeader, RequestHeader, decode_acls, encode_acls};
use super::{DecodeError, frame, opcode};
use crate::Acl;

/// Everything a client can ask after the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The four ways to create a znode.
    Create(Create),
    /// Delete.
    Delete {
        /// Which.
        path: String,
        /// Expected version; -1: any.
        version: i32,
    },
    /// Stat of a znode.
    Exists {
        /// Which.
        path: String,
        /// Arm a one-shot watch.
        watch: bool,
    },
    /// Data and stat.
    GetData {
        /// Of which znode.
        path: String,
        /// Arm a one-shot watch.
        watch: bool,
    },
    /// Replace the data.
    SetData {
        /// Of which znode.
        path: String,
        /// Null and empty are different.
        data: Option<Bytes>,
        /// Expected version; -1: any.
        version: i32,
    },
    /// ACL and stat.
    GetAcl {
        /// Of which znode.
        path: String,
    },
    /// Replace the ACL.
    SetAcl {
        /// Of which znode.
        path: String,
        /// `None`: a null list.
        acl: Option<Vec<Acl>>,
        /// Expected ACL version; -1: any.
        version: i32,
    },
    /// Names of the children.
    GetChildren {
        /// Of which znode.
        path: String,
        /// Arm a one-shot watch.
        watch: bool,
    },
    /// Names of the children and stat.
    GetChildren2 {
        /// Of which znode.
        path: String,
        /// Arm a one-shot watch.
        watch: bool,
    },
    /// Catch up with the leader.
    Sync {
        /// Echoed, otherwise without meaning.
        path: String,
    },
    /// Keep-alive.
    Ping,
    /// Version check; only inside a multi.
    Check {
        /// Which znode.
        path: String,
        /// Expected version; -1: any.
        version: i32,
    },
    /// All or nothing; creates, deletes, set-datas and checks.
    Multi(Vec<Request>),
    /// Several get-datas and get-childrens.
    MultiRead(Vec<Request>),
    /// Change of the ensemble.
    Reconfig {
        /// Comma-separated servers to add.
        joining: Option<String>,
        /// Comma-separated ids to remove.
        leaving: Option<String>,
        /// The whole list, instead of the other two.
        members: Option<String>,
        /// Version the change is made on; -1: any.
        config_version: i64,
    },
    /// Asks whether a watch is there.
    CheckWatches {
        /// Where.
        path: String,
        /// 1 children, 2 data, 3 any, 4 persistent, 5 persistent recursive.
        kind: i32,
    },
    /// Removes watches.
    RemoveWatches {
        /// Where.
        path: String,
        /// As in `CheckWatches`.
        kind: i32,
    },
    /// Proof of an identity.
    Auth {
        /// 0, ignored.
        kind: i32,
        /// `digest`, ...
        scheme: String,
        /// The proof.
        auth: Option<Bytes>,
    },
    /// Watches of a former connection, persistent ones left out.
    SetWatches(SetWatches),
    /// Watches of a former connection.
    SetWatches2(SetWatches),
    /// A SASL token.
    Sasl {
        /// Opaque.
        token: Option<Bytes>,
    },
    /// Paths of the session's ephemerals.
    GetEphemerals {
        /// Plain prefix; null is read as empty.
        prefix: String,
    },
    /// Number of descendants.
    GetAllChildrenNumber {
        /// Of which znode.
        path: String,
    },
    /// Adds a watch that stays.
    AddWatch {
        /// Where.
        path: String,
        /// 0 persistent, 1 persistent recursive.
        mode: i32,
    },
    /// Identities of the connection.
    WhoAmI,
    /// Names of some of the children, and more of each if asked (ClickHouse Keeper).
    List(List),
    /// Fails if the znode exists in this version (ClickHouse Keeper).
    CheckNotExists {
        /// Which.
        path: String,
        /// -1: any.
        version: i32,
    },
    /// Delete of a znode and all below it (ClickHouse Keeper).
    RemoveRecursive {
        /// Which.
        path: String,
        /// Most znodes that may go.
        limit: u32,
    },
    /// Ends the session.
    CloseSession,
}

/// Body of ClickHouse Keeper's lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// Of which znode.
    pub path: String,
    /// Arm a one-shot watch.
    pub watch: bool,
    /// 0 all, 1 those that stay, 2 ephemerals.
    pub filter: u8,
    /// `None`: names only, sent as [`opcode::FILTERED_LIST`]; else whether stats, and whether data come with them.
    pub with: Option<(bool, bool)>,
}

/// Which of the four creates; they differ in what is sent back and in the flags that fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CreateOp {
    /// The reply is the path.
    #[default]
    Create,
    /// The reply is path and stat, as with the following two.
    Create2,
    /// A container.
    Container,
    /// With a time to live: the only one whose record carries it.
    Ttl,
    /// The reply is the path, of what exists already, too (ClickHouse Keeper).
    IfNotExists,
}

impl CreateOp {
    /// Its opcode.
    pub const fn opcode(self) -> i32 {
        match self {
            CreateOp::Create => opcode::CREATE,
            CreateOp::Create2 => opcode::CREATE2,
            CreateOp::Container => opcode::CREATE_CONTAINER,
            CreateOp::Ttl => opcode::CREATE_TTL,
            CreateOp::IfNotExists => opcode::CREATE_IF_NOT_EXISTS,
        }
    }
}

/// Body of a create.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Create {
    /// Which opcode it came under.
    pub op: CreateOp,
    /// Where.
    pub path: String,
    /// Null and empty are different.
    pub data: Option<Bytes>,
    /// `None`: a null list.
    pub acl: Option<Vec<Acl>>,
    /// [`crate::CreateMode::flags`], not judged here.
    pub flags: i32,
    /// Time to live, ms; on the wire only for [`CreateOp::Ttl`], else -1.
    pub ttl_ms: i64,
}

/// Body of setWatches and setWatches2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetWatches {
    /// The last zxid the client saw.
    pub relative_zxid: i64,
    /// Data watches on znodes that existed.
    pub data: Vec<String>,
    /// Data watches on znodes that did not exist.
    pub exist: Vec<String>,
    /// Child watches.
    pub child: Vec<String>,
    /// Persistent watches; setWatches2 only.
    pub persistent: Vec<String>,
    /// Persistent recursive watches; setWatches2 only.
    pub persistent_recursive: Vec<String>,
}

impl Request {
    /// The number it is sent under.
    pub const fn opcode(&self) -> i32 {
        match self {
            Request::Create(create) => create.op.opcode(),
            Request::Delete { .. } => opcode::DELETE,
            Request::Exists { .. } => opcode::EXISTS,
            Request::GetData { .. } => opcode::GET_DATA,
            Request::SetData { .. } => opcode::SET_DATA,
            Request::GetAcl { .. } => opcode::GET_ACL,
            Request::SetAcl { .. } => opcode::SET_ACL,
            Request::GetChildren { .. } => opcode::GET_CHILDREN,
            Request::GetChildren2 { .. } => opcode::GET_CHILDREN2,
            Request::Sync { .. } => opcode::SYNC,
            Request::Ping => opcode::PING,
            Request::Check { .. } => opcode::CHECK,
            Request::Multi(_) => opcode::MULTI,
            Request::MultiRead(_) => opcode::MULTI_READ,
            Request::Reconfig { .. } => opcode::RECONFIG,
            Request::CheckWatches { .. } => opcode::CHECK_WATCHES,
            Request::RemoveWatches { .. } => opcode::REMOVE_WATCHES,
            Request::Auth { .. } => opcode::AUTH,
            Request::SetWatches(_) => opcode::SET_WATCHES,
            Request::SetWatches2(_) => opcode::SET_WATCHES2,
            Request::Sasl { .. } => opcode::SASL,
            Request::GetEphemerals { .. } => opcode::GET_EPHEMERALS,
            Request::GetAllChildrenNumber { .. } => opcode::GET_ALL_CHILDREN_NUMBER,
            Request::AddWatch { .. } => opcode::ADD_WATCH,
            Request::WhoAmI => opcode::WHO_AM_I,
            Request::List(List { with: None, .. }) => opcode::FILTERED_LIST,
            Request::List(_) => opcode::LIST_WITH_STAT_AND_DATA,
            Request::CheckNotExists { .. } => opcode::CHECK_NOT_EXISTS,
            Request::RemoveRecursive { .. } => opcode::REMOVE_RECURSIVE,
            Request::CloseSession => opcode::CLOSE_SESSION,
        }
    }

    /// Reads the body of a request; bytes that follow it are ignored, as ZooKeeper does.
    ///
    /// # Errors
    /// [`DecodeError::UnknownOpcode`] for numbers that are no request of a client (check outside a multi included);
    /// everything else: a body that cannot be read.
    pub fn decode(opcode: i32, reader: &mut Reader) -> Result<Request, DecodeError> {
        Ok(match opcode {
            opcode::CREATE => Request::Create(decode_create(CreateOp::Create, reader)?),
            opcode::CREATE2 => Request::Create(decode_create(CreateOp::Create2, reader)?),
            opcode::CREATE_CONTAINER => Request::Create(decode_create(CreateOp::Container, reader)?),
            opcode::CREATE_TTL => Request::Create(decode_create(CreateOp::Ttl, reader)?),
            opcode::DELETE => Request::Delete { path: reader.text()?, version: reader.int()? },
            opcode::EXISTS => Request::Exists { path: reader.text()?, watch: reader.bool()? },
            opcode::GET_DATA => Request::GetData { path: reader.text()?, watch: reader.bool()? },
            opcode::SET_DATA => {
                Request::SetData { path: reader.text()?, data: reader.buffer()?, version: reader.int()? }
            }
            opcode::GET_ACL => Request::GetAcl { path: reader.text()? },
            opcode::SET_ACL => {
                Request::SetAcl { path: reader.text()?, acl: decode_acls(reader)?, version: reader.int()? }
            }
            opcode::GET_CHILDREN => Request::GetChildren { path: reader.text()?, watch: reader.bool()? },
            opcode::GET_CHILDREN2 => Request::GetChildren2 { path: reader.text()?, watch: reader.bool()? },
            // The path means nothing; a null one is not worth an error, and must not be echoed as null.
            opcode::SYNC => Request::Sync { path: reader.text_or_empty()? },
            opcode::PING => Request::Ping,
            opcode::MULTI => Request::Multi(decode_multi(reader, MultiKind::Write)?),
            opcode::MULTI_READ => Request::MultiRead(decode_multi(reader, MultiKind::Read)?),
            opcode::RECONFIG => Request::Reconfig {
                joining: reader.nullable_text()?,
                leaving: reader.nullable_text()?,
                members: reader.nullable_text()?,
                config_version: reader.long()?,
            },
            opcode::CHECK_WATCHES => Request::CheckWatches { path: reader.text()?, kind: reader.int()? },
            opcode::REMOVE_WATCHES => Request::RemoveWatches { path: reader.text()?, kind: reader.int()? },
            opcode::AUTH => {
                Request::Auth { kind: reader.int()?, scheme: reader.text_or_empty()?, auth: reader.buffer()? }
            }
            opcode::SET_WATCHES => Request::SetWatches(decode_set_watches(reader, false)?),
            opcode::SET_WATCHES2 => Request::SetWatches2(decode_set_watches(reader, true)?),
            opcode::SASL => Request::Sasl { token: reader.buffer()? },
            opcode::GET_EPHEMERALS => Request::GetEphemerals { prefix: reader.text_or_empty()? },
            opcode::GET_ALL_CHILDREN_NUMBER => Request::GetAllChildrenNumber { path: reader.text()? },
            opcode::ADD_WATCH => Request::AddWatch { path: reader.text()?, mode: reader.int()? },
            opcode::WHO_AM_I => Request::WhoAmI,
            opcode::FILTERED_LIST | opcode::LIST_WITH_STAT_AND_DATA => Request::List(List {
                path: reader.text()?,
                watch: reader.bool()?,
                filter: reader.byte()?,
                with: match opcode {
                    opcode::FILTERED_LIST => None,
                    _ => Some((reader.bool()?, reader.bool()?)),
                },
            }),
            opcode::CHECK_NOT_EXISTS => Request::CheckNotExists { path: reader.text()?, version: reader.int()? },
            opcode::CREATE_IF_NOT_EXISTS => Request::Create(decode_create(CreateOp::IfNotExists, reader)?),
            opcode::REMOVE_RECURSIVE => {
                Request::RemoveRecursive { path: reader.text()?, limit: reader.int()?.cast_unsigned() }
            }
            opcode::CLOSE_SESSION => Request::CloseSession,
            unknown => return Err(DecodeError::UnknownOpcode(unknown)),
        })
    }

    /// Appends the request as a frame, header included.
    pub fn encode(&self, xid: i32, out: &mut BytesMut) {
        frame::write(out, |out| {
            RequestHeader { xid, opcode: self.opcode() }.encode(out);
            self.encode_body(out);
        });
    }

    fn encode_body(&self, out: &mut BytesMut) {
        match self {
            Request::Create(create) => {
                out.put_text(&create.path);
                out.put_buffer(create.data.as_deref());
                encode_acls(create.acl.as_deref(), out);
                out.put_i32(create.flags);
                if create.op == CreateOp::Ttl {
                    out.put_i64(create.ttl_ms);
                }
            }
            Request::Delete { path, version }
            | Request::Check { path, version }
            | Request::CheckNotExists { path, version } => {
                out.put_text(path);
                out.put_i32(*version);
            }
            Request::Exists { path, watch }
            | Request::GetData { path, watch }
            | Request::GetChildren { path, watch }
            | Request::GetChildren2 { path, watch } => {
                out.put_text(path);
                out.put_bool(*watch);
            }
            Request::SetData { path, data, version } => {
                out.put_text(path);
                out.put_buffer(data.as_deref());
                out.put_i32(*version);
            }
            Request::SetAcl { path, acl, version } => {
                out.put_text(path);
                encode_acls(acl.as_deref(), out);
                out.put_i32(*version);
            }
            Request::GetAcl { path }
            | Request::Sync { path }
            | Request::GetEphemerals { prefix: path }
            | Request::GetAllChildrenNumber { path } => out.put_text(path),
            Request::Multi(ops) | Request::MultiRead(ops) => {
                for op in ops {
                    MultiHeader { opcode: op.opcode(), done: false, err: -1 }.encode(out);
                    op.encode_body(out);
                }
                MultiHeader::TERMINATOR.encode(out);
            }
            Request::Reconfig { joining, leaving, members, config_version } => {
                out.put_nullable_text(joining.as_deref());
                out.put_nullable_text(leaving.as_deref());
                out.put_nullable_text(members.as_deref());
                out.put_i64(*config_version);
            }
            Request::CheckWatches { path, kind: number }
            | Request::RemoveWatches { path, kind: number }
            | Request::AddWatch { path, mode: number } => {
                out.put_text(path);
                out.put_i32(*number);
            }
            Request::Auth { kind, scheme, auth } => {
                out.put_i32(*kind);
                out.put_text(scheme);
                out.put_buffer(auth.as_deref());
            }
            Request::SetWatches(watches) | Request::SetWatches2(watches) => {
                out.put_i64(watches.relative_zxid);
                out.put_texts(&watches.data);
                out.put_texts(&watches.exist);
                out.put_texts(&watches.child);
                if matches!(self, Request::SetWatches2(_)) {
                    out.put_texts(&watches.persistent);
                    out.put_texts(&watches.persistent_recursive);
                }
            }
            Request::Sasl { token } => out.put_buffer(token.as_deref()),
            Request::List(list) => {
                out.put_text(&list.path);
                out.put_bool(list.watch);
                out.put_u8(list.filter);
                if let Some((stats, data)) = list.with {
                    out.put_bool(stats);
                    out.put_bool(data);
                }
            }
            Request::RemoveRecursive { path, limit } => {
                out.put_text(path);
                out.put_u32(*limit);
            }
            Request::Ping | Request::WhoAmI | Request::CloseSession => {}
        }
    }
}

fn decode_create(op: CreateOp, reader: &mut Reader) -> Result<Create, DecodeError> {
    Ok(Create {
        op,
        path: reader.text()?,
        data: reader.buffer()?,
        acl: decode_acls(reader)?,
        flags: reader.int()?,
        ttl_ms: if op == CreateOp::Ttl { reader.long()? } else { -1 },
    })
}

fn decode_set_watches(reader: &mut Reader, second: bool) -> Result<SetWatches, DecodeError> {
    Ok(SetWatches {
        relative_zxid: reader.long()?,
        data: reader.texts()?,
        exist: reader.texts()?,
        child: reader.texts()?,
        persistent: if second { reader.texts()? } else { Vec::new() },
        persistent_recursive: if second { reader.texts()? } else { Vec::new() },
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MultiKind {
    Read,
    Write,
}

/// Operations up to the terminator, those of ClickHouse Keeper included: whoever answers judges them. All must be of one kind; ZooKeeper finds out about a mixture while it reads, and
/// about a multi-read of changes only afterwards, so a body that ends early counts first.
fn decode_multi(reader: &mut Reader, wanted: MultiKind) -> Result<Vec<Request>, DecodeError> {
    let mut ops = Vec::new();
    let mut found = None;
    loop {
        let header = MultiHeader::decode(reader)?;
        if header.done {
            break;
        }
        let kind = match header.opcode {
            opcode::CREATE
            | opcode::CREATE2
            | opcode::CREATE_CONTAINER
            | opcode::CREATE_TTL
            | opcode::DELETE
            | opcode::SET_DATA
            | opcode::CHECK
            | opcode::CHECK_NOT_EXISTS
            | opcode::CREATE_IF_NOT_EXISTS
            | opcode::REMOVE_RECURSIVE => MultiKind::Write,
            opcode::GET_DATA
            | opcode::GET_CHILDREN
            | opcode::EXISTS
            | opcode::GET_CHILDREN2
            | opcode::FILTERED_LIST
            | opcode::LIST_WITH_STAT_AND_DATA => MultiKind::Read,
            other => return Err(DecodeError::NotInMulti(other)),
        };
        if *found.get_or_insert(kind) != kind || (wanted, kind) == (MultiKind::Write, MultiKind::Read) {
            return Err(DecodeError::NotInMulti(header.opcode));
        }
        ops.push(if header.opcode == opcode::CHECK {
            Request::Check { path: reader.text()?, version: reader.int()? }
        } else {
            Request::decode(header.opcode, reader)?
        });
    }
    match (wanted, found) {
        (MultiKind::Read, Some(MultiKind::Write)) => Err(DecodeError::WriteInMultiRead),
        _ => Ok(ops),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::response::tests::hex;
    use super::*;
    use crate::Id;

    /// Every number that is a request of a client.
    const OPCODES: [i32; 31] = [
        1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14, 15, 16, 17, 18, 19, 21, 22, 100, 101, 102, 103, 104, 105, 106, 500, 501,
        502, 503, 506,
    ];

    fn body(request: &Request) -> Bytes {
        let mut out = BytesMut::new();
        request.encode_body(&mut out);
        out.freeze()
    }

    fn decode(opcode: i32, bytes: Vec<u8>) -> Result<Request, DecodeError> {
        Request::decode(opcode, &mut Reader::new(Bytes::from(bytes)))
    }

    #[test]
    fn create_has_the_recorded_bytes() {
        let request = Request::Create(Create {
            op: CreateOp::Create,
            path: "/t2".into(),
            data: Some(Bytes::from_static(b"x")),
            acl: Some(Acl::open()),
            flags: 0,
            ttl_ms: -1,
        });
        let mut out = BytesMut::new();
        request.encode(1, &mut out);
        let recorded =
            hex("00000001 00000001 00000003 2f7432 00000001 78 00000001 0000001f 00000005 776f726c64 00000006 \
             616e796f6e65 00000000");
        assert_eq!(out[4..], recorded);
        assert_eq!(out[..4], u32::try_from(recorded.len()).unwrap().to_be_bytes());
        let mut reader = Reader::new(Bytes::from(recorded));
        assert_eq!(RequestHeader::decode(&mut reader), Ok(RequestHeader { xid: 1, opcode: 1 }));
        assert_eq!(Request::decode(1, &mut reader), Ok(request));
        assert_eq!(reader.remaining(), 0);
    }

    #[test]
    fn ping_has_the_recorded_bytes() {
        let mut out = BytesMut::new();
        Request::Ping.encode(opcode::XID_PING, &mut out);
        assert_eq!(out[..], hex("00000008 fffffffe 0000000b"));
    }

    #[test]
    fn multi_ends_with_the_terminator() {
        let ops =
            vec![Request::Check { path: "/a".into(), version: 3 }, Request::Delete { path: "/a".into(), version: -1 }];
        let bytes = body(&Request::Multi(ops.clone()));
        assert_eq!(
            bytes[..],
            hex("0000000d 00 ffffffff 00000002 2f61 00000003 00000002 00 ffffffff 00000002 2f61 ffffffff \
                 ffffffff 01 ffffffff")
        );
        assert_eq!(decode(opcode::MULTI, bytes.to_vec()), Ok(Request::Multi(ops)));
        assert_eq!(decode(opcode::MULTI, hex("ffffffff 01 ffffffff")), Ok(Request::Multi(vec![])));
    }

    #[test]
    fn multi_without_terminator_is_undecodable() {
        let bytes = body(&Request::Multi(vec![Request::Delete { path: "/a".into(), version: -1 }]));
        assert!(matches!(decode(opcode::MULTI, bytes[..bytes.len() - 9].to_vec()), Err(DecodeError::Truncated { .. })));
    }

    #[test]
    fn multis_do_not_mix_reads_and_changes() {
        let read = Request::GetData { path: "/a".into(), watch: false };
        let write = Request::Delete { path: "/a".into(), version: -1 };
        let mixed = body(&Request::Multi(vec![write.clone(), read.clone()])).to_vec();
        assert_eq!(decode(opcode::MULTI, mixed.clone()), Err(DecodeError::NotInMulti(4)));
        assert_eq!(decode(opcode::MULTI_READ, mixed), Err(DecodeError::NotInMulti(4)));
        let reads = body(&Request::MultiRead(vec![read])).to_vec();
        assert_eq!(decode(opcode::MULTI, reads), Err(DecodeError::NotInMulti(4)));
        let writes = body(&Request::Multi(vec![write])).to_vec();
        assert_eq!(decode(opcode::MULTI_READ, writes), Err(DecodeError::WriteInMultiRead));
    }

    #[test]
    fn only_creates_deletes_set_datas_and_checks_may_stand_in_a_multi() {
        for inner in OPCODES.into_iter().chain([0, 13, 20, -1, -10, -11, 107, 9999]) {
            let mut bytes = BytesMut::new();
            MultiHeader { opcode: inner, done: false, err: -1 }.encode(&mut bytes);
            let refused = decode(opcode::MULTI, bytes.to_vec()) == Err(DecodeError::NotInMulti(inner));
            assert_eq!(refused, ![1, 2, 5, 13, 15, 19, 21, 501, 502, 503].contains(&inner), "{inner}");
        }
    }

    #[test]
    fn numbers_that_are_no_request_are_told_apart_from_bad_bodies() {
        for number in [0, 10, 13, 20, 23, 99, 108, -1, -2, -10, i32::MIN, i32::MAX] {
            assert_eq!(decode(number, vec![]), Err(DecodeError::UnknownOpcode(number)));
        }
        for number in OPCODES.into_iter().filter(|n| *n != opcode::PING) {
            assert!(!matches!(decode(number, vec![]), Err(DecodeError::UnknownOpcode(_))), "{number}");
        }
    }

    #[test]
    fn null_paths_are_refused_and_null_acl_ids_are_empty() {
        assert_eq!(decode(opcode::GET_DATA, hex("ffffffff 00")), Err(DecodeError::Null));
        let acl = hex("00000002 2f61 00000000 00000001 0000001f 00000004 61757468 ffffffff 00000000");
        let Ok(Request::Create(create)) = decode(opcode::CREATE, acl) else { panic!("not a create") };
        assert_eq!(create.acl, Some(vec![Acl { perms: 31, id: Id::new("auth", "") }]));
    }

    #[test]
    fn null_ephemeral_prefix_is_empty() {
        assert_eq!(
            decode(opcode::GET_EPHEMERALS, hex("ffffffff")),
            Ok(Request::GetEphemerals { prefix: String::new() })
        );
    }

    #[test]
    fn a_null_list_of_watches_is_refused() {
        assert_eq!(
            decode(opcode::SET_WATCHES, hex("0000000000000001 00000000 ffffffff 00000000")),
            Err(DecodeError::Null)
        );
    }

    #[test]
    fn bytes_after_the_body_are_ignored() {
        let mut bytes = body(&Request::GetAcl { path: "/a".into() }).to_vec();
        bytes.extend_from_slice(b"more");
        assert_eq!(decode(opcode::GET_ACL, bytes), Ok(Request::GetAcl { path: "/a".into() }));
    }

    fn data() -> impl Strategy<Value = Option<Bytes>> {
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..8).prop_map(Bytes::from))
    }

    fn acls() -> impl Strategy<Value = Option<Vec<Acl>>> {
        let acl = (any::<i32>(), ".{0,6}", ".{0,6}").prop_map(|(perms, s, i)| Acl { perms, id: Id::new(s, i) });
        proptest::option::of(proptest::collection::vec(acl, 0..3))
    }

    fn create() -> impl Strategy<Value = Request> {
        let op = prop_oneof![
            Just(CreateOp::Create),
            Just(CreateOp::Create2),
            Just(CreateOp::Container),
            Just(CreateOp::Ttl),
            Just(CreateOp::IfNotExists)
        ];
        (op, ".{0,9}", data(), acls(), any::<i32>(), any::<i64>()).prop_map(|(op, path, data, acl, flags, ttl)| {
            let ttl_ms = if op == CreateOp::Ttl { ttl } else { -1 };
            Request::Create(Create { op, path, data, acl, flags, ttl_ms })
        })
    }

    fn write() -> impl Strategy<Value = Request> {
        prop_oneof![
            create(),
            (".{0,9}", any::<i32>()).prop_map(|(path, version)| Request::Delete { path, version }),
            (".{0,9}", data(), any::<i32>()).prop_map(|(path, data, version)| Request::SetData { path, data, version }),
        ]
    }

    fn multi_op() -> impl Strategy<Value = Request> {
        prop_oneof![
            2 => write(),
            1 => (".{0,9}", any::<i32>()).prop_map(|(path, version)| Request::Check { path, version }),
            1 => (".{0,9}", any::<i32>()).prop_map(|(path, version)| Request::CheckNotExists { path, version }),
            1 => (".{0,9}", any::<u32>()).prop_map(|(path, limit)| Request::RemoveRecursive { path, limit }),
        ]
    }

    fn list() -> impl Strategy<Value = Request> {
        (".{0,9}", any::<bool>(), any::<u8>(), any::<Option<(bool, bool)>>())
            .prop_map(|(path, watch, filter, with)| Request::List(List { path, watch, filter, with }))
    }

    fn multi_read_op() -> impl Strategy<Value = Request> {
        let plain = (".{0,9}", any::<bool>(), 0..4).prop_map(|(path, watch, which)| match which {
            0 => Request::GetData { path, watch },
            1 => Request::GetChildren { path, watch },
            2 => Request::GetChildren2 { path, watch },
            _ => Request::Exists { path, watch },
        });
        prop_oneof![3 => plain, 1 => list()]
    }

    fn paths() -> impl Strategy<Value = Vec<String>> {
        proptest::collection::vec(".{0,6}", 0..3)
    }

    fn set_watches() -> impl Strategy<Value = Request> {
        (any::<i64>(), paths(), paths(), paths(), proptest::option::of((paths(), paths()))).prop_map(
            |(relative_zxid, data, exist, child, second)| {
                let is_second = second.is_some();
                let (persistent, persistent_recursive) = second.unwrap_or_default();
                let watches = SetWatches { relative_zxid, data, exist, child, persistent, persistent_recursive };
                if is_second { Request::SetWatches2(watches) } else { Request::SetWatches(watches) }
            },
        )
    }

    fn text() -> impl Strategy<Value = Option<String>> {
        proptest::option::of(".{0,9}".prop_map(String::from))
    }

    fn one_path() -> impl Strategy<Value = Request> {
        (0..12, ".{0,9}", any::<bool>(), any::<i32>()).prop_map(|(which, path, watch, number)| match which {
            0 => Request::Exists { path, watch },
            1 => Request::GetData { path, watch },
            2 => Request::GetChildren { path, watch },
            3 => Request::GetChildren2 { path, watch },
            4 => Request::GetAcl { path },
            5 => Request::Sync { path },
            6 => Request::CheckWatches { path, kind: number },
            7 => Request::RemoveWatches { path, kind: number },
            8 => Request::GetEphemerals { prefix: path },
            9 => Request::GetAllChildrenNumber { path },
            10 => Request::AddWatch { path, mode: number },
            _ => Request::Ping,
        })
    }

    fn request() -> impl Strategy<Value = Request> {
        prop_oneof![
            write(),
            one_path(),
            set_watches(),
            (".{0,9}", acls(), any::<i32>()).prop_map(|(path, acl, version)| Request::SetAcl { path, acl, version }),
            proptest::collection::vec(multi_op(), 0..4).prop_map(Request::Multi),
            proptest::collection::vec(multi_read_op(), 0..4).prop_map(Request::MultiRead),
            (text(), text(), text(), any::<i64>()).prop_map(|(joining, leaving, members, config_version)| {
                Request::Reconfig { joining, leaving, members, config_version }
            }),
            (any::<i32>(), ".{0,9}", data()).prop_map(|(kind, scheme, auth)| Request::Auth { kind, scheme, auth }),
            data().prop_map(|token| Request::Sasl { token }),
            Just(Request::WhoAmI),
            list(),
            multi_op().prop_filter("no check outside of a multi", |op| op.opcode() != opcode::CHECK),
            Just(Request::CloseSession),
        ]
    }

    proptest! {
        #[test]
        fn decoding_gives_back_what_was_encoded(request in request()) {
            let mut reader = Reader::new(body(&request));
            prop_assert_eq!(Request::decode(request.opcode(), &mut reader), Ok(request));
            prop_assert_eq!(reader.remaining(), 0);
        }

        #[test]
        fn a_damaged_request_is_read_as_another_or_refused(
            request in request(),
            faults in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
            opcode in prop_oneof![Just(None), proptest::sample::select(&OPCODES[..]).prop_map(Some)],
        ) {
            let mut bytes = body(&request).to_vec();
            for (at, byte) in faults {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            let opcode = opcode.unwrap_or(request.opcode());
            if let Ok(other) = decode(opcode, bytes) {
                // What it was read as has an encoding, which says the same.
                prop_assert_eq!(decode(opcode, body(&other).to_vec()), Ok(other));
            }
        }

        #[test]
        fn a_body_cut_anywhere_is_refused(request in request(), cut in any::<prop::sample::Index>()) {
            let whole = body(&request);
            prop_assume!(!whole.is_empty());
            let cut = whole.slice(..cut.index(whole.len()));
            prop_assert!(Request::decode(request.opcode(), &mut Reader::new(cut)).is_err());
        }

        #[test]
        fn decoding_is_total(
            which in 0..OPCODES.len(),
            bytes in proptest::collection::vec(prop_oneof![3 => Just(0u8), 1 => Just(0xff), 2 => 0u8..24, 1 => any::<u8>()], 0..80),
        ) {
            let mut reader = Reader::new(Bytes::from(bytes));
            if let Ok(request) = Request::decode(OPCODES[which], &mut reader) {
                prop_assert_eq!(request.opcode(), OPCODES[which]);
            }
        }
    }
}
