//! Replies and events (wire 3.2, 3.4, 7.2).

use bytes::{BufMut, Bytes, BytesMut};

use super::primitive::{JuteWrite, Reader, length};
use super::record::{
    ClientInfo, MultiHeader, ReplyHeader, WatcherEvent, decode_acls, decode_stat, encode_acls, encode_stat,
};
use super::{DecodeError, frame, opcode};
use crate::{Acl, Stat, WatchedEvent};

/// The body of a successful reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// Delete, ping, auth, check- and removeWatches, setWatches, closeSession.
    Empty,
    /// Create, sync.
    Path(String),
    /// Create2, createContainer, createTTL.
    PathStat {
        /// Full path, number included.
        path: String,
        /// The new znode's.
        stat: Stat,
    },
    /// Exists, setData, setACL.
    Stat(Stat),
    /// GetData, reconfig.
    Data {
        /// Null and empty are different.
        data: Option<Bytes>,
        /// Of the znode.
        stat: Stat,
    },
    /// GetACL.
    Acl {
        /// The list.
        acl: Vec<Acl>,
        /// Of the znode.
        stat: Stat,
    },
    /// GetChildren, getEphemerals.
    Names(Vec<String>),
    /// GetChildren2.
    NamesStat {
        /// Names, not paths.
        names: Vec<String>,
        /// Of the znode.
        stat: Stat,
    },
    /// Multi, multiRead: one result per operation, in order.
    Multi(Vec<MultiResult>),
    /// Sasl.
    Token(Option<Bytes>),
    /// GetAllChildrenNumber.
    Count(i32),
    /// AddWatch: four bytes that must be there; clients wait for them.
    Error(i32),
    /// WhoAmI.
    Identities(Vec<ClientInfo>),
    /// ClickHouse Keeper's list with stats and data: each list is empty, or as long as the names.
    Listing {
        /// Names, not paths.
        names: Vec<String>,
        /// Of the znode.
        stat: Stat,
        /// Of the children.
        stats: Vec<Stat>,
        /// Of the children.
        data: Vec<Option<Bytes>>,
    },
}

/// Result of one operation of a multi or multi-read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MultiResult {
    /// Of opcode 1.
    Create {
        /// Full path.
        path: String,
    },
    /// Of opcodes 15, 19 and 21, and of 1 with the container flag.
    Create2 {
        /// Full path.
        path: String,
        /// The new znode's.
        stat: Stat,
    },
    /// Of a delete.
    Delete,
    /// Of a setData.
    SetData(Stat),
    /// Of a check.
    Check,
    /// Of a getData.
    GetData {
        /// Null and empty are different.
        data: Option<Bytes>,
        /// Of the znode.
        stat: Stat,
    },
    /// Of a getChildren.
    GetChildren(Vec<String>),
    /// Of one of ClickHouse Keeper's operations, and of reads that only Keeper takes in a multi-read: the opcode under
    /// which the result is sent, and the body.
    Keeper(i32, Box<Response>),
    /// In a failed multi every operation has one (0 for those before the failure); in a multi-read those that failed.
    Error(i32),
}

impl Response {
    /// Appends the body.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Response::Empty => {}
            Response::Path(path) => out.put_text(path),
            Response::PathStat { path, stat } => {
                out.put_text(path);
                encode_stat(stat, out);
            }
            Response::Stat(stat) => encode_stat(stat, out),
            Response::Data { data, stat } => {
                out.put_buffer(data.as_deref());
                encode_stat(stat, out);
            }
            Response::Acl { acl, stat } => {
                encode_acls(Some(acl), out);
                encode_stat(stat, out);
            }
            Response::Names(names) => out.put_texts(names),
            Response::NamesStat { names, stat } => {
                out.put_texts(names);
                encode_stat(stat, out);
            }
            Response::Multi(results) => {
                for result in results {
                    encode_result(result, out);
                }
                MultiHeader::TERMINATOR.encode(out);
            }
            Response::Token(token) => out.put_buffer(token.as_deref()),
            Response::Count(count) => out.put_i32(*count),
            Response::Error(code) => out.put_i32(*code),
            Response::Listing { names, stat, stats, data } => {
                out.put_texts(names);
                encode_stat(stat, out);
                out.put_i32(length(stats.len()));
                for stat in stats {
                    encode_stat(stat, out);
                }
                out.put_i32(length(data.len()));
                for data in data {
                    out.put_buffer(data.as_deref());
                }
            }
            Response::Identities(identities) => {
                out.put_i32(length(identities.len()));
                for identity in identities {
                    out.put_text(&identity.scheme);
                    out.put_text(&identity.user);
                }
            }
        }
    }

    /// Reads the body of the reply to a request of `opcode`. Call it only when the header's `err` is 0.
    ///
    /// # Errors
    /// [`DecodeError`]; unknown opcodes included.
    pub fn decode(opcode: i32, reader: &mut Reader) -> Result<Response, DecodeError> {
        Ok(match opcode {
            opcode::DELETE
            | opcode::PING
            | opcode::AUTH
            | opcode::CHECK_WATCHES
            | opcode::REMOVE_WATCHES
            | opcode::SET_WATCHES
            | opcode::SET_WATCHES2
            | opcode::CHECK_NOT_EXISTS
            | opcode::REMOVE_RECURSIVE
            | opcode::CLOSE_SESSION => Response::Empty,
            opcode::CREATE | opcode::SYNC | opcode::CREATE_IF_NOT_EXISTS => Response::Path(reader.text()?),
            opcode::CREATE2 | opcode::CREATE_CONTAINER | opcode::CREATE_TTL => {
                Response::PathStat { path: reader.text()?, stat: decode_stat(reader)? }
            }
            opcode::EXISTS | opcode::SET_DATA | opcode::SET_ACL => Response::Stat(decode_stat(reader)?),
            opcode::GET_DATA | opcode::RECONFIG => {
                Response::Data { data: reader.buffer()?, stat: decode_stat(reader)? }
            }
            opcode::GET_ACL => {
                Response::Acl { acl: decode_acls(reader)?.unwrap_or_default(), stat: decode_stat(reader)? }
            }
            opcode::GET_CHILDREN | opcode::GET_EPHEMERALS => Response::Names(reader.texts()?),
            opcode::GET_CHILDREN2 | opcode::FILTERED_LIST => {
                Response::NamesStat { names: reader.texts()?, stat: decode_stat(reader)? }
            }
            opcode::LIST_WITH_STAT_AND_DATA => Response::Listing {
                names: reader.texts()?,
                stat: decode_stat(reader)?,
                stats: reader.vector(decode_stat)?.unwrap_or_default(),
                data: reader.vector(Reader::buffer)?.unwrap_or_default(),
            },
            opcode::MULTI | opcode::MULTI_READ => Response::Multi(decode_results(reader)?),
            opcode::SASL => Response::Token(reader.buffer()?),
            opcode::GET_ALL_CHILDREN_NUMBER => Response::Count(reader.int()?),
            opcode::ADD_WATCH => Response::Error(reader.int()?),
            opcode::WHO_AM_I => Response::Identities(
                reader
                    .vector(|reader| Ok(ClientInfo { scheme: reader.text()?, user: reader.text_or_empty()? }))?
                    .unwrap_or_default(),
            ),
            unknown => return Err(DecodeError::UnknownOpcode(unknown)),
        })
    }
}

fn encode_result(result: &MultiResult, out: &mut BytesMut) {
    let (opcode, err) = match result {
        MultiResult::Create { .. } => (opcode::CREATE, 0),
        MultiResult::Create2 { .. } => (opcode::CREATE2, 0),
        MultiResult::Delete => (opcode::DELETE, 0),
        MultiResult::SetData(_) => (opcode::SET_DATA, 0),
        MultiResult::Check => (opcode::CHECK, 0),
        MultiResult::GetData { .. } => (opcode::GET_DATA, 0),
        MultiResult::GetChildren(_) => (opcode::GET_CHILDREN, 0),
        MultiResult::Keeper(opcode, _) => (*opcode, 0),
        MultiResult::Error(code) => (opcode::ERROR, *code),
    };
    MultiHeader { opcode, done: false, err }.encode(out);
    match result {
        MultiResult::Create { path } => out.put_text(path),
        MultiResult::Create2 { path, stat } => {
            out.put_text(path);
            encode_stat(stat, out);
        }
        MultiResult::Delete | MultiResult::Check => {}
        MultiResult::SetData(stat) => encode_stat(stat, out),
        MultiResult::GetData { data, stat } => {
            out.put_buffer(data.as_deref());
            encode_stat(stat, out);
        }
        MultiResult::GetChildren(names) => out.put_texts(names),
        MultiResult::Keeper(_, body) => body.encode(out),
        MultiResult::Error(code) => out.put_i32(*code),
    }
}

fn decode_results(reader: &mut Reader) -> Result<Vec<MultiResult>, DecodeError> {
    let mut results = Vec::new();
    loop {
        let header = MultiHeader::decode(reader)?;
        if header.done {
            return Ok(results);
        }
        results.push(match header.opcode {
            opcode::CREATE => MultiResult::Create { path: reader.text()? },
            opcode::CREATE2 => MultiResult::Create2 { path: reader.text()?, stat: decode_stat(reader)? },
            opcode::DELETE => MultiResult::Delete,
            opcode::SET_DATA => MultiResult::SetData(decode_stat(reader)?),
            opcode::CHECK => MultiResult::Check,
            opcode::GET_DATA => MultiResult::GetData { data: reader.buffer()?, stat: decode_stat(reader)? },
            opcode::GET_CHILDREN => MultiResult::GetChildren(reader.texts()?),
            opcode::ERROR => MultiResult::Error(reader.int()?),
            opcode::EXISTS
            | opcode::GET_CHILDREN2
            | opcode::LIST_WITH_STAT_AND_DATA
            | opcode::CHECK_NOT_EXISTS
            | opcode::CREATE_IF_NOT_EXISTS
            | opcode::REMOVE_RECURSIVE => {
                MultiResult::Keeper(header.opcode, Box::new(Response::decode(header.opcode, reader)?))
            }
            other => return Err(DecodeError::NotInMulti(other)),
        });
    }
}

/// Appends a reply as a frame; `None` for errors and for replies without a body.
pub fn encode_reply(header: ReplyHeader, body: Option<&Response>, out: &mut BytesMut) {
    frame::write(out, |out| {
        header.encode(out);
        if let Some(body) = body {
            body.encode(out);
        }
    });
}

/// Splits a server's frame into header and body; an event has xid [`opcode::XID_EVENT`] and a [`WatcherEvent`] as body.
///
/// # Errors
/// [`DecodeError::Truncated`].
pub fn decode_reply(payload: Bytes) -> Result<(ReplyHeader, Reader), DecodeError> {
    let mut reader = Reader::new(payload);
    Ok((ReplyHeader::decode(&mut reader)?, reader))
}

/// Appends a watch event as a frame. Its zxid is the entry's, or -1 for events made up by a re-registration.
pub fn encode_event(event: &WatchedEvent, out: &mut BytesMut) {
    frame::write(out, |out| {
        let zxid = event.zxid.map_or(-1, |zxid| zxid.as_i64());
        ReplyHeader { xid: opcode::XID_EVENT, zxid, err: 0 }.encode(out);
        WatcherEvent::encode_from(event, out);
    });
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ErrorCode, EventKind, Id, Zxid};

    /// Bytes from hexadecimal digits; blanks are for people.
    pub(in super::super) fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> =
            text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16).unwrap() as u8).collect();
        assert_eq!(digits.len() % 2, 0, "odd number of digits");
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    fn reply(header: ReplyHeader, body: Option<&Response>) -> Vec<u8> {
        let mut out = BytesMut::new();
        encode_reply(header, body, &mut out);
        assert_eq!(out[..4], u32::try_from(out.len() - 4).unwrap().to_be_bytes());
        out[4..].to_vec()
    }

    fn ok(xid: i32) -> ReplyHeader {
        ReplyHeader { xid, zxid: 0x36, err: 0 }
    }

    #[test]
    fn replies_have_the_recorded_bytes() {
        assert_eq!(
            reply(ok(1), Some(&Response::Path("/t2".into()))),
            hex("00000001 0000000000000036 00000000 00000003 2f7432")
        );
        assert_eq!(reply(ok(7), Some(&Response::Error(0))), hex("00000007 0000000000000036 00000000 00000000"));
        let missing = ReplyHeader { xid: 2, zxid: 0x36, err: ErrorCode::NoNode.code() };
        assert_eq!(reply(missing, None), hex("00000002 0000000000000036 ffffff9b"));
        assert_eq!(reply(ok(-2), None), hex("fffffffe 0000000000000036 00000000"));
        let auth_failed = ReplyHeader { xid: -4, zxid: 0, err: ErrorCode::AuthFailed.code() };
        assert_eq!(reply(auth_failed, None), hex("fffffffc 0000000000000000 ffffff8d"));
    }

    #[test]
    fn event_has_the_recorded_bytes() {
        let mut event = WatchedEvent { kind: EventKind::NodeDataChanged, path: "/t2".into(), zxid: Some(Zxid(0x36)) };
        let mut out = BytesMut::new();
        encode_event(&event, &mut out);
        assert_eq!(out[4..], hex("ffffffff 0000000000000036 00000000 00000003 00000003 00000003 2f7432"));
        let (header, mut body) = decode_reply(out.split_off(4).freeze()).unwrap();
        assert_eq!(header, ReplyHeader { xid: -1, zxid: 0x36, err: 0 });
        assert_eq!(
            WatcherEvent::decode(&mut body),
            Ok(WatcherEvent { kind: 3, state: WatcherEvent::SYNC_CONNECTED, path: "/t2".into() })
        );
        event.zxid = None;
        let mut out = BytesMut::new();
        encode_event(&event, &mut out);
        assert_eq!(out[8..16], [0xff; 8]);
    }

    #[test]
    fn failed_multi_has_the_recorded_bytes() {
        let results = vec![
            MultiResult::Error(0),
            MultiResult::Error(ErrorCode::BadVersion.code()),
            MultiResult::Error(ErrorCode::RuntimeInconsistency.code()),
        ];
        let recorded =
            hex("ffffffff 00 00000000 00000000  ffffffff 00 ffffff99 ffffff99  ffffffff 00 fffffffe fffffffe \
             ffffffff 01 ffffffff");
        let mut out = BytesMut::new();
        Response::Multi(results.clone()).encode(&mut out);
        assert_eq!(out[..], recorded);
        assert_eq!(Response::decode(opcode::MULTI, &mut Reader::new(out.freeze())), Ok(Response::Multi(results)));
        let mut out = BytesMut::new();
        Response::Multi(vec![]).encode(&mut out);
        assert_eq!(out[..], hex("ffffffff 01 ffffffff"));
    }

    #[test]
    fn results_of_a_multi_have_the_types_clients_know() {
        let mut out = BytesMut::new();
        Response::Multi(vec![MultiResult::Create { path: "/a".into() }, MultiResult::Delete, MultiResult::Check])
            .encode(&mut out);
        assert_eq!(
            out[..],
            hex("00000001 00 00000000 00000002 2f61  00000002 00 00000000  0000000d 00 00000000 \
                 ffffffff 01 ffffffff")
        );
    }

    #[test]
    fn stat_is_68_bytes_in_the_order_of_the_record() {
        let stat = Stat {
            czxid: 1,
            mzxid: 2,
            ctime: 3,
            mtime: 4,
            version: 5,
            cversion: 6,
            aversion: 7,
            ephemeral_owner: 8,
            data_length: 9,
            num_children: 10,
            pzxid: 11,
        };
        let mut out = BytesMut::new();
        Response::Stat(stat).encode(&mut out);
        assert_eq!(
            out[..],
            hex("0000000000000001 0000000000000002 0000000000000003 0000000000000004 00000005 00000006 00000007 \
                 0000000000000008 00000009 0000000a 000000000000000b")
        );
        assert_eq!(out.len(), 68);
    }

    #[test]
    fn null_data_is_not_empty_data() {
        for (data, length) in [(None, hex("ffffffff")), (Some(Bytes::new()), hex("00000000"))] {
            let mut out = BytesMut::new();
            Response::Data { data, stat: Stat::default() }.encode(&mut out);
            assert_eq!(out[..4], length);
        }
    }

    fn stat() -> impl Strategy<Value = Stat> {
        (any::<[i64; 6]>(), any::<[i32; 5]>()).prop_map(|(long, int)| Stat {
            czxid: long[0],
            mzxid: long[1],
            ctime: long[2],
            mtime: long[3],
            version: int[0],
            cversion: int[1],
            aversion: int[2],
            ephemeral_owner: long[4],
            data_length: int[3],
            num_children: int[4],
            pzxid: long[5],
        })
    }

    fn data() -> impl Strategy<Value = Option<Bytes>> {
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..8).prop_map(Bytes::from))
    }

    fn names() -> impl Strategy<Value = Vec<String>> {
        proptest::collection::vec(".{0,6}", 0..4)
    }

    fn result() -> impl Strategy<Value = MultiResult> {
        prop_oneof![
            ".{0,6}".prop_map(|path| MultiResult::Create { path }),
            (".{0,6}", stat()).prop_map(|(path, stat)| MultiResult::Create2 { path, stat }),
            Just(MultiResult::Delete),
            stat().prop_map(MultiResult::SetData),
            Just(MultiResult::Check),
            (data(), stat()).prop_map(|(data, stat)| MultiResult::GetData { data, stat }),
            names().prop_map(MultiResult::GetChildren),
            any::<i32>().prop_map(MultiResult::Error),
        ]
    }

    fn response() -> impl Strategy<Value = (i32, Response)> {
        let acl = (any::<i32>(), ".{0,6}", ".{0,6}").prop_map(|(perms, s, i)| Acl { perms, id: Id::new(s, i) });
        let identity = (".{0,6}", ".{0,6}").prop_map(|(scheme, user)| ClientInfo { scheme, user });
        prop_oneof![
            Just((opcode::PING, Response::Empty)),
            ".{0,6}".prop_map(|path| (opcode::CREATE, Response::Path(path))),
            (".{0,6}", stat()).prop_map(|(path, stat)| (opcode::CREATE_TTL, Response::PathStat { path, stat })),
            stat().prop_map(|stat| (opcode::EXISTS, Response::Stat(stat))),
            (data(), stat()).prop_map(|(data, stat)| (opcode::GET_DATA, Response::Data { data, stat })),
            (proptest::collection::vec(acl, 0..3), stat())
                .prop_map(|(acl, stat)| (opcode::GET_ACL, Response::Acl { acl, stat })),
            names().prop_map(|names| (opcode::GET_EPHEMERALS, Response::Names(names))),
            (names(), stat()).prop_map(|(names, stat)| (opcode::GET_CHILDREN2, Response::NamesStat { names, stat })),
            proptest::collection::vec(result(), 0..4).prop_map(|r| (opcode::MULTI_READ, Response::Multi(r))),
            data().prop_map(|token| (opcode::SASL, Response::Token(token))),
            any::<i32>().prop_map(|count| (opcode::GET_ALL_CHILDREN_NUMBER, Response::Count(count))),
            any::<i32>().prop_map(|code| (opcode::ADD_WATCH, Response::Error(code))),
            proptest::collection::vec(identity, 0..3).prop_map(|i| (opcode::WHO_AM_I, Response::Identities(i))),
        ]
    }

    proptest! {
        #[test]
        fn decoding_gives_back_what_was_encoded((opcode, response) in response()) {
            let mut out = BytesMut::new();
            response.encode(&mut out);
            let mut reader = Reader::new(out.freeze());
            prop_assert_eq!(Response::decode(opcode, &mut reader), Ok(response));
            prop_assert_eq!(reader.remaining(), 0);
        }

        #[test]
        fn decoding_is_total(
            opcode in prop_oneof![-12i32..23, 99i32..109],
            bytes in proptest::collection::vec(prop_oneof![3 => Just(0u8), 1 => Just(0xff), 2 => 0u8..16, 1 => any::<u8>()], 0..120),
        ) {
            let bytes = Bytes::from(bytes);
            let _ = decode_reply(bytes.clone());
            let _ = WatcherEvent::decode(&mut Reader::new(bytes.clone()));
            if let Ok(response) = Response::decode(opcode, &mut Reader::new(bytes)) {
                let mut out = BytesMut::new();
                response.encode(&mut out);
                prop_assert!(Response::decode(opcode, &mut Reader::new(out.freeze())).is_ok());
            }
        }
    }
}
