//! Records that others are made of (wire 3.1).

use bytes::{BufMut, BytesMut};

use super::primitive::{JuteWrite, Reader, length};
use super::{DecodeError, opcode};
use crate::{Acl, Id, Stat, WatchedEvent};

/// In front of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// The client's number of the request; echoed.
    pub xid: i32,
    /// One of [`opcode`].
    pub opcode: i32,
}

impl RequestHeader {
    /// Reads the header.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`]; the connection ends without a reply.
    pub fn decode(reader: &mut Reader) -> Result<RequestHeader, DecodeError> {
        Ok(RequestHeader { xid: reader.int()?, opcode: reader.int()? })
    }

    /// Appends the header.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_i32(self.xid);
        out.put_i32(self.opcode);
    }
}

/// In front of every reply and event (wire 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyHeader {
    /// That of the request; -1 for events, -2 for pings.
    pub xid: i32,
    /// Of the write, or of the state that answered.
    pub zxid: i64,
    /// 0, or an [`crate::ErrorCode`]; then there is no body.
    pub err: i32,
}

impl ReplyHeader {
    /// Reads the header.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn decode(reader: &mut Reader) -> Result<ReplyHeader, DecodeError> {
        Ok(ReplyHeader { xid: reader.int()?, zxid: reader.long()?, err: reader.int()? })
    }

    /// Appends the header.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_i32(self.xid);
        out.put_i64(self.zxid);
        out.put_i32(self.err);
    }
}

/// In front of every operation of a multi and of its result; type -1 and done end the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultiHeader {
    /// One of [`opcode`].
    pub opcode: i32,
    /// Whether this is the terminator.
    pub done: bool,
    /// -1 in requests and in the terminator.
    pub err: i32,
}

impl MultiHeader {
    /// The end of the list: `ff ff ff ff 01 ff ff ff ff`, which clients compare.
    pub const TERMINATOR: MultiHeader = MultiHeader { opcode: opcode::ERROR, done: true, err: -1 };

    /// Reads the header.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn decode(reader: &mut Reader) -> Result<MultiHeader, DecodeError> {
        Ok(MultiHeader { opcode: reader.int()?, done: reader.bool()?, err: reader.int()? })
    }

    /// Appends the header.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_i32(self.opcode);
        out.put_bool(self.done);
        out.put_i32(self.err);
    }
}

/// One identity, as whoAmI tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientInfo {
    /// `ip`, `digest`, ...
    pub scheme: String,
    /// The name without its secret.
    pub user: String,
}

/// A watch event as the wire carries it (wire 7.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatcherEvent {
    /// [`crate::EventKind::code`].
    pub kind: i32,
    /// Always [`WatcherEvent::SYNC_CONNECTED`].
    pub state: i32,
    /// The affected znode.
    pub path: String,
}

impl WatcherEvent {
    /// The only state a server sends.
    pub const SYNC_CONNECTED: i32 = 3;

    /// Reads the event.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(reader: &mut Reader) -> Result<WatcherEvent, DecodeError> {
        Ok(WatcherEvent { kind: reader.int()?, state: reader.int()?, path: reader.text()? })
    }

    /// Appends the record of `event`.
    pub(super) fn encode_from(event: &WatchedEvent, out: &mut BytesMut) {
        out.put_i32(event.kind.code());
        out.put_i32(WatcherEvent::SYNC_CONNECTED);
        out.put_text(&event.path);
    }
}

pub(super) fn decode_stat(reader: &mut Reader) -> Result<Stat, DecodeError> {
    Ok(Stat {
        czxid: reader.long()?,
        mzxid: reader.long()?,
        ctime: reader.long()?,
        mtime: reader.long()?,
        version: reader.int()?,
        cversion: reader.int()?,
        aversion: reader.int()?,
        ephemeral_owner: reader.long()?,
        data_length: reader.int()?,
        num_children: reader.int()?,
        pzxid: reader.long()?,
    })
}

pub(super) fn encode_stat(stat: &Stat, out: &mut BytesMut) {
    out.put_i64(stat.czxid);
    out.put_i64(stat.mzxid);
    out.put_i64(stat.ctime);
    out.put_i64(stat.mtime);
    out.put_i32(stat.version);
    out.put_i32(stat.cversion);
    out.put_i32(stat.aversion);
    out.put_i64(stat.ephemeral_owner);
    out.put_i32(stat.data_length);
    out.put_i32(stat.num_children);
    out.put_i64(stat.pzxid);
}

/// An ACL list; `None` is null, which servers refuse with their own error and not as undecodable.
pub(super) fn decode_acls(reader: &mut Reader) -> Result<Option<Vec<Acl>>, DecodeError> {
    reader.vector(|reader| {
        Ok(Acl { perms: reader.int()?, id: Id { scheme: reader.text_or_empty()?, id: reader.text_or_empty()? } })
    })
}

pub(super) fn encode_acls(acls: Option<&[Acl]>, out: &mut BytesMut) {
    let Some(acls) = acls else {
        out.put_i32(-1);
        return;
    };
    out.put_i32(length(acls.len()));
    for acl in acls {
        out.put_i32(acl.perms);
        out.put_text(&acl.id.scheme);
        out.put_text(&acl.id.id);
    }
}
