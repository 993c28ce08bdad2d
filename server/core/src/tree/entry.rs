//! What is replicated: a transaction, its identities and its place in a session. And what executing it yields.

use bytes::Bytes;
use corral_proto::{ErrorCode, EventKind, Id, ServerId, SessionId, Zxid};

use super::Change;
use super::op::{Answer, WriteOp};
use super::record::Reader;

/// The payload of an entry. The entry adds zxid and stamp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txn {
    /// Whose; [`SessionId::NONE`] for the ensemble's own.
    pub session: SessionId,
    /// The attach under which it was made (P29): execution refuses any but the row's current one. For
    /// [`Command::CloseSession`] by expiry: the attach the leader saw.
    pub attach: Zxid,
    /// Request number in the session (P31); 0 for [`Command::CreateSession`], [`Command::Attach`] and internal ones.
    pub n: u64,
    /// Kept results up to this number may go (gRPC sessions).
    pub answered_through: u64,
    /// Identities of the connection, `ip` and `super` included.
    pub ids: Vec<Id>,
    /// What to do.
    pub command: Command,
}

/// What a transaction does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A client's write.
    Write(WriteOp),
    /// The write of a session that its server alone knows. `Txn::attach` is zero and `Txn::n` its number on that server.
    LocalWrite {
        /// What.
        op: WriteOp,
        /// Its place in the order, which is what makes it happen once.
        carrier: Carrier,
    },
    /// A server begins to number the writes of its local sessions: from here on under the zxid of this entry.
    OpenCarrier {
        /// Which server.
        server: ServerId,
        /// Tells a copy of this transaction from another opening.
        nonce: u64,
    },
    /// A new session under `Txn::session`, attached to `server`.
    CreateSession {
        /// Negotiated, ms.
        timeout_ms: i32,
        /// Where the connection is.
        server: ServerId,
        /// Tells a copy of this transaction from another that drew the same session id.
        nonce: u64,
        /// Results are kept for retries (gRPC).
        keeps_results: bool,
    },
    /// The session moves to a connection of `server` (P29).
    Attach {
        /// Negotiated, ms.
        timeout_ms: i32,
        /// Where the connection is.
        server: ServerId,
        /// Tells a copy from another attach.
        nonce: u64,
        /// As at its creation: the numbers of requests mean something else in the other protocol.
        keeps_results: bool,
    },
    /// Ends the session and deletes its ephemerals.
    CloseSession {
        /// By the leader's clock, not by the client.
        expired: bool,
    },
    /// Deletes a container or TTL znode if it is still the one created at `czxid` and due.
    Reap {
        /// Which.
        path: String,
        /// Its creation.
        czxid: Zxid,
    },
    /// Replaces the replicated settings (P34).
    Settings(Settings),
}

/// The place of a local session's write among those of all local sessions of its server: what session, attach and
/// number are to other writes (P29, P31). A session that costs no entry has no row to count in; its server has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// The server that knows the session.
    pub server: ServerId,
    /// Zxid of the [`Command::OpenCarrier`] under which it was numbered.
    pub attach: Zxid,
    /// Its number, from 1.
    pub n: u64,
}

impl Carrier {
    /// Gives a local session's write, encoded as [`Command::Write`], its place. Messages of this encoding may be
    /// concatenated: the fields of the second are added to the first.
    pub fn carry(&self, write: &Bytes) -> Bytes {
        codec::carry(write, self)
    }
}

/// Values that can change an outcome; part of the replicated state, never local configuration (P34).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Every permission check passes.
    pub skip_acl: bool,
    /// Hard quotas refuse writes.
    pub enforce_quota: bool,
    /// TTL znodes may be created.
    pub extended_types: bool,
    /// ClickHouse Keeper's operations are answered, and `/keeper` says so.
    pub keeper_extensions: bool,
    /// Containers that never had a child are reaped after this, ms; 0: never.
    pub container_never_used_ms: i64,
    /// Ephemerals one session may own.
    pub ephemerals_per_session: u32,
    /// Key of the session passwords (16 bytes or more).
    pub password_key: Vec<u8>,
    /// Text of `/zookeeper/config` without its version line; empty for a server alone.
    pub config_text: String,
    /// Feature level all execute at.
    pub feature_level: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            skip_acl: false,
            enforce_quota: false,
            extended_types: true,
            keeper_extensions: false,
            container_never_used_ms: 5 * 60 * 1000,
            ephemerals_per_session: 100_000,
            password_key: Vec::new(),
            config_text: String::new(),
            feature_level: 1,
        }
    }
}

/// Version bytes of settings that can be read: the first release's flags byte knew [`SKIP_ACL`] only.
pub(super) const SETTINGS_VERSIONS: std::ops::RangeInclusive<u8> = 1..=2;
/// Bits of the byte after the version. What is not set is as before the bit was thought of.
pub(super) const SKIP_ACL: u8 = 1;
pub(super) const ENFORCE_QUOTA: u8 = 2;
pub(super) const NO_EXTENDED_TYPES: u8 = 4;
pub(super) const KEEPER_EXTENSIONS: u8 = 8;

/// The flags of a settings row; those of the defaults if it is none.
pub(super) fn flags(row: &[u8]) -> u8 {
    Reader::of(row, SETTINGS_VERSIONS).and_then(|mut from| from.u8()).unwrap_or(0)
}

/// How a transaction of a session stood when its turn came (P29, P31).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was decided now: an answer or a refusal. Both are results, and both are kept.
    Executed(Result<Answer, ErrorCode>),
    /// It had been decided before, at `zxid`: nothing changed; `None` if the result is no longer kept.
    Repeated {
        /// Where it was decided.
        zxid: Zxid,
        /// The kept result.
        result: Option<Result<Answer, ErrorCode>>,
    },
    /// The session is attached elsewhere: nothing changed; that connection is closed.
    Moved,
    /// Its number is not the next: nothing changed; that connection is closed.
    OutOfOrder,
    /// The session is not open.
    Expired,
    /// A session began or moved: the answer to the handshake.
    Attached {
        /// Negotiated, ms.
        timeout_ms: i32,
        /// Highest executed request number; the client repeats from its oldest unanswered.
        last_n: u64,
    },
    /// The session id is taken: draw another.
    IdTaken,
    /// An internal transaction had its say.
    Internal,
}

/// A change that watchers may want to know of, in the order of wire 7.3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeEvent {
    /// What happened: created, deleted or data changed. The change of the parent's children that goes with the first
    /// two is implied.
    pub kind: EventKind,
    /// To which znode.
    pub path: String,
    /// Who may read it: the ACL of the znode (for deletions, the one it had). `None`: everybody.
    pub acl: Option<u32>,
    /// The same of the parent, for the implied change of its children.
    pub parent_acl: Option<u32>,
    /// Length of the data that was written; the feed does not remember it.
    pub bytes: u32,
}

/// What happened to sessions, for the rooms that hold connections and deadlines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// A session began or moved: its only connection is the one of this attach on this server.
    Attached {
        /// Which.
        session: SessionId,
        /// Zxid of the attach.
        attach: Zxid,
        /// Where.
        server: ServerId,
        /// From the transaction.
        nonce: u64,
        /// ms.
        timeout_ms: i32,
        /// Whether it is a gRPC session.
        keeps_results: bool,
    },
    /// A server's carrier is open; every copy of its opening says so again.
    Carried {
        /// Which server.
        server: ServerId,
        /// From the transaction.
        nonce: u64,
        /// What its writes must carry.
        attach: Zxid,
        /// Number of the last executed one.
        last_n: u64,
    },
    /// The session is over.
    Closed {
        /// Which.
        session: SessionId,
        /// By the leader's clock.
        expired: bool,
    },
}

/// What executing one entry yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How it went.
    pub verdict: Verdict,
    /// Final images, each key once, ascending by (cf, key); the meta row included.
    pub changes: Vec<Change>,
    /// For watchers, in order.
    pub events: Vec<TreeEvent>,
    /// For sessions.
    pub sessions: Vec<SessionEvent>,
    /// Containers and TTL znodes that came, changed or went, for the reaper: paths.
    pub reapable: Vec<String>,
}

/// An entry's payload could not be decoded: it was written by another version, or is not ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("log entry cannot be decoded: {0}")]
pub struct EntryDecodeError(pub String);

impl Txn {
    /// The payload of an entry.
    pub fn encode(&self) -> Bytes {
        codec::encode(self)
    }

    /// Reads a payload back. Total: any bytes give a transaction or an error.
    ///
    /// # Errors
    /// [`EntryDecodeError`] says what is wrong.
    pub fn decode(payload: &Bytes) -> Result<Txn, EntryDecodeError> {
        codec::decode(payload).map_err(|undecodable| undecodable.error)
    }
}

impl Settings {
    /// The bytes of the row, and of [`Command::Settings`] in an entry.
    pub fn encode(&self) -> Bytes {
        codec::encode_settings(self)
    }

    /// Reads the bytes back.
    ///
    /// # Errors
    /// [`EntryDecodeError`] for bytes of another version, or none.
    pub fn decode(bytes: &[u8]) -> Result<Settings, EntryDecodeError> {
        codec::decode_settings(bytes).ok_or_else(|| EntryDecodeError("settings are malformed".to_owned()))
    }
}

/// A payload that is no transaction, and the place in its session if that much could be read: so its client gets an
/// answer, and its next write is not out of order.
#[derive(Debug)]
pub(crate) struct Undecodable {
    pub(crate) error: EntryDecodeError,
    pub(crate) place: Option<Place>,
}

/// Where a transaction stands in its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) session: SessionId,
    pub(crate) attach: Zxid,
    pub(crate) n: u64,
    pub(crate) answered_through: u64,
    /// A local session's.
    pub(crate) carrier: Option<Carrier>,
}

impl Place {
    /// Whether it is the request of a session, which must go on past it.
    pub(crate) fn is_numbered(&self) -> bool {
        self.session != SessionId::NONE && self.n > 0
    }
}

impl Txn {
    pub(crate) fn place(&self) -> Place {
        let carrier = match self.command {
            Command::LocalWrite { carrier, .. } => Some(carrier),
            _ => None,
        };
        let Txn { session, attach, n, answered_through, .. } = *self;
        Place { session, attach, n, answered_through, carrier }
    }
}

/// Reads a payload, and of a bad one what can be read.
pub(crate) fn decode_or_place(payload: &Bytes) -> Result<Txn, Undecodable> {
    codec::decode(payload)
}

mod codec {
    use bytes::{BufMut, Bytes};
    use corral_proto::pb::txn as pb;
    use corral_proto::{Acl, CreateMode, Id, ServerId, SessionId, Zxid};
    use prost::Message;

    use super::{
        Carrier, Command, ENFORCE_QUOTA, EntryDecodeError, KEEPER_EXTENSIONS, NO_EXTENDED_TYPES, Place,
        SETTINGS_VERSIONS, SKIP_ACL, Settings, Txn, Undecodable,
    };
    use crate::tree::op::{Create, MultiOp, WriteOp};
    use crate::tree::record::Reader;

    pub(super) fn encode(txn: &Txn) -> Bytes {
        use pb::txn::Command as C;
        let mut carrier = None;
        let command = match &txn.command {
            Command::Write(op) => write(op),
            Command::LocalWrite { op, carrier: place } => {
                carrier = Some(carrier_of(place));
                write(op)
            }
            Command::OpenCarrier { server, nonce } => {
                C::OpenCarrier(pb::OpenCarrier { server: server.0, nonce: *nonce })
            }
            Command::CreateSession { timeout_ms, server, nonce, keeps_results } => {
                C::CreateSession(pb::CreateSession {
                    timeout_ms: *timeout_ms,
                    server: server.0,
                    nonce: *nonce,
                    keeps_results: *keeps_results,
                })
            }
            Command::Attach { timeout_ms, server, nonce, keeps_results } => C::AttachSession(pb::Attach {
                timeout_ms: *timeout_ms,
                server: server.0,
                nonce: *nonce,
                keeps_results: *keeps_results,
            }),
            Command::CloseSession { expired } => C::CloseSession(pb::CloseSession { expired: *expired }),
            Command::Reap { path, czxid } => C::Reap(pb::Reap { path: path.clone(), czxid: czxid.0 }),
            Command::Settings(settings) => C::Settings(pb::Settings { body: encode_settings(settings) }),
        };
        let message = pb::Txn {
            session: txn.session.0,
            attach: txn.attach.0,
            n: txn.n,
            answered_through: txn.answered_through,
            ids: txn.ids.iter().map(id).collect(),
            carrier,
            command: Some(command),
        };
        Bytes::from(message.encode_to_vec())
    }

    fn write(op: &WriteOp) -> pb::txn::Command {
        use pb::txn::Command as C;
        match op {
            WriteOp::Create(op) => C::Create(create(op)),
            WriteOp::Delete { path, version } => C::Delete(delete(path, *version)),
            WriteOp::SetData { path, data, version } => C::SetData(set_data(path, data, *version)),
            WriteOp::SetAcl { path, acl, version } => {
                C::SetAcl(pb::SetAcl { path: path.clone(), acl: acl.as_deref().map(acl_list), version: *version })
            }
            WriteOp::Multi(ops) => C::Multi(pb::Multi { ops: ops.iter().map(multi_op).collect() }),
            WriteOp::CreateIfNotExists(op) => C::CreateIfNotExists(create(op)),
            WriteOp::RemoveRecursive { path, limit } => {
                C::RemoveRecursive(pb::RemoveRecursive { path: path.clone(), limit: *limit })
            }
        }
    }

    fn carrier_of(carrier: &Carrier) -> pb::Carrier {
        pb::Carrier { server: carrier.server.0, attach: carrier.attach.0, n: carrier.n }
    }

    pub(super) fn carry(write: &Bytes, carrier: &Carrier) -> Bytes {
        let place = pb::Txn { carrier: Some(carrier_of(carrier)), ..pb::Txn::default() };
        let mut payload = Vec::with_capacity(write.len() + place.encoded_len());
        payload.extend_from_slice(write);
        payload.extend_from_slice(&place.encode_to_vec());
        Bytes::from(payload)
    }

    fn id(id: &Id) -> pb::Id {
        pb::Id { scheme: id.scheme.clone(), id: id.id.clone() }
    }

    fn acl_list(list: &[Acl]) -> pb::AclList {
        pb::AclList { acl: list.iter().map(|acl| pb::Acl { perms: acl.perms, id: Some(id(&acl.id)) }).collect() }
    }

    fn some_data(data: &Option<Bytes>) -> Option<pb::Data> {
        data.as_ref().map(|bytes| pb::Data { bytes: bytes.clone() })
    }

    fn create(op: &Create) -> pb::Create {
        pb::Create {
            path: op.path.clone(),
            data: some_data(&op.data),
            acl: op.acl.as_deref().map(acl_list),
            mode: op.mode.flags(),
            ttl_ms: op.ttl_ms,
        }
    }

    fn delete(path: &str, version: i32) -> pb::Delete {
        pb::Delete { path: path.to_owned(), version }
    }

    fn set_data(path: &str, data: &Option<Bytes>, version: i32) -> pb::SetData {
        pb::SetData { path: path.to_owned(), data: some_data(data), version }
    }

    fn multi_op(op: &MultiOp) -> pb::MultiOp {
        use pb::multi_op::Op;
        let op = match op {
            MultiOp::Create(op) => Op::Create(create(op)),
            MultiOp::Delete { path, version } => Op::Delete(delete(path, *version)),
            MultiOp::SetData { path, data, version } => Op::SetData(set_data(path, data, *version)),
            MultiOp::Check { path, version } => Op::Check(pb::Check { path: path.clone(), version: *version }),
            MultiOp::CreateIfNotExists(op) => Op::CreateIfNotExists(create(op)),
            MultiOp::RemoveRecursive { path, limit } => {
                Op::RemoveRecursive(pb::RemoveRecursive { path: path.clone(), limit: *limit })
            }
            MultiOp::CheckNotExists { path, version } => {
                Op::CheckNotExists(pb::Check { path: path.clone(), version: *version })
            }
        };
        pb::MultiOp { op: Some(op) }
    }

    pub(super) fn decode(payload: &Bytes) -> Result<Txn, Undecodable> {
        let message = pb::Txn::decode(payload.clone())
            .map_err(|error| Undecodable { error: EntryDecodeError(error.to_string()), place: None })?;
        let place = Place {
            session: SessionId(message.session),
            attach: Zxid(message.attach),
            n: message.n,
            answered_through: message.answered_through,
            carrier: message.carrier.map(|carrier| Carrier {
                server: ServerId(carrier.server),
                attach: Zxid(carrier.attach),
                n: carrier.n,
            }),
        };
        let command = message
            .command
            .ok_or_else(|| EntryDecodeError("no command".to_owned()))
            .and_then(read_command)
            .and_then(|command| match (command, place.carrier) {
                (Command::Write(op), Some(carrier)) => Ok(Command::LocalWrite { op, carrier }),
                (_, Some(_)) => Err(EntryDecodeError("a carrier carries writes only".to_owned())),
                (command, None) => Ok(command),
            })
            .map_err(|error| Undecodable { error, place: Some(place) })?;
        Ok(Txn {
            session: place.session,
            attach: place.attach,
            n: place.n,
            answered_through: place.answered_through,
            ids: message.ids.into_iter().map(read_id).collect(),
            command,
        })
    }

    fn read_command(command: pb::txn::Command) -> Result<Command, EntryDecodeError> {
        use pb::txn::Command as C;
        Ok(match command {
            C::Create(op) => Command::Write(WriteOp::Create(read_create(op)?)),
            C::Delete(op) => Command::Write(WriteOp::Delete { path: op.path, version: op.version }),
            C::SetData(op) => {
                Command::Write(WriteOp::SetData { path: op.path, data: read_data(op.data), version: op.version })
            }
            C::SetAcl(op) => {
                Command::Write(WriteOp::SetAcl { path: op.path, acl: read_acl(op.acl), version: op.version })
            }
            C::Multi(multi) => {
                let ops: Result<Vec<MultiOp>, EntryDecodeError> = multi.ops.into_iter().map(read_multi_op).collect();
                Command::Write(WriteOp::Multi(ops?))
            }
            C::CreateIfNotExists(op) => Command::Write(WriteOp::CreateIfNotExists(read_create(op)?)),
            C::RemoveRecursive(op) => Command::Write(WriteOp::RemoveRecursive { path: op.path, limit: op.limit }),
            C::CreateSession(op) => Command::CreateSession {
                timeout_ms: op.timeout_ms,
                server: ServerId(op.server),
                nonce: op.nonce,
                keeps_results: op.keeps_results,
            },
            C::AttachSession(op) => Command::Attach {
                timeout_ms: op.timeout_ms,
                server: ServerId(op.server),
                nonce: op.nonce,
                keeps_results: op.keeps_results,
            },
            C::CloseSession(op) => Command::CloseSession { expired: op.expired },
            C::Reap(op) => Command::Reap { path: op.path, czxid: Zxid(op.czxid) },
            C::Settings(op) => Command::Settings(Settings::decode(&op.body)?),
            C::OpenCarrier(op) => Command::OpenCarrier { server: ServerId(op.server), nonce: op.nonce },
        })
    }

    fn read_id(id: pb::Id) -> Id {
        Id { scheme: id.scheme, id: id.id }
    }

    fn read_acl(list: Option<pb::AclList>) -> Option<Vec<Acl>> {
        let read = |acl: pb::Acl| Acl { perms: acl.perms, id: acl.id.map(read_id).unwrap_or_default() };
        list.map(|list| list.acl.into_iter().map(read).collect())
    }

    fn read_data(data: Option<pb::Data>) -> Option<Bytes> {
        data.map(|data| data.bytes)
    }

    fn read_create(op: pb::Create) -> Result<Create, EntryDecodeError> {
        let mode = CreateMode::from_flags(op.mode)
            .ok_or_else(|| EntryDecodeError(format!("create mode {} is unknown", op.mode)))?;
        Ok(Create { path: op.path, data: read_data(op.data), acl: read_acl(op.acl), mode, ttl_ms: op.ttl_ms })
    }

    fn read_multi_op(op: pb::MultiOp) -> Result<MultiOp, EntryDecodeError> {
        use pb::multi_op::Op;
        Ok(match op.op.ok_or_else(|| EntryDecodeError("operation of a multi is unknown".to_owned()))? {
            Op::Create(op) => MultiOp::Create(read_create(op)?),
            Op::Delete(op) => MultiOp::Delete { path: op.path, version: op.version },
            Op::SetData(op) => MultiOp::SetData { path: op.path, data: read_data(op.data), version: op.version },
            Op::Check(op) => MultiOp::Check { path: op.path, version: op.version },
            Op::CreateIfNotExists(op) => MultiOp::CreateIfNotExists(read_create(op)?),
            Op::RemoveRecursive(op) => MultiOp::RemoveRecursive { path: op.path, limit: op.limit },
            Op::CheckNotExists(op) => MultiOp::CheckNotExists { path: op.path, version: op.version },
        })
    }

    pub(super) fn encode_settings(settings: &Settings) -> Bytes {
        let mut out = Vec::with_capacity(26 + settings.password_key.len() + settings.config_text.len());
        out.put_u8(*SETTINGS_VERSIONS.end());
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        out.put_u8(
            flag(settings.skip_acl, SKIP_ACL)
                | flag(settings.enforce_quota, ENFORCE_QUOTA)
                | flag(!settings.extended_types, NO_EXTENDED_TYPES)
                | flag(settings.keeper_extensions, KEEPER_EXTENSIONS),
        );
        out.put_u32_le(settings.ephemerals_per_session);
        out.put_i64_le(settings.container_never_used_ms);
        out.put_u32_le(settings.feature_level);
        for bytes in [&settings.password_key[..], settings.config_text.as_bytes()] {
            out.put_u32_le(bytes.len() as u32);
            out.extend_from_slice(bytes);
        }
        Bytes::from(out)
    }

    pub(super) fn decode_settings(bytes: &[u8]) -> Option<Settings> {
        let mut from = Reader::of(bytes, SETTINGS_VERSIONS)?;
        let flags = from.u8()?;
        let ephemerals_per_session = from.u32()?;
        let container_never_used_ms = from.i64()?;
        let feature_level = from.u32()?;
        let len = from.u32()? as usize;
        let password_key = from.bytes(len)?.to_vec();
        let len = from.u32()? as usize;
        let config_text = str::from_utf8(from.bytes(len)?).ok()?.to_owned();
        from.end(Settings {
            skip_acl: flags & SKIP_ACL != 0,
            enforce_quota: flags & ENFORCE_QUOTA != 0,
            extended_types: flags & NO_EXTENDED_TYPES == 0,
            keeper_extensions: flags & KEEPER_EXTENSIONS != 0,
            container_never_used_ms,
            ephemerals_per_session,
            password_key,
            config_text,
            feature_level,
        })
    }
}
