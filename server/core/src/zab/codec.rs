//! Bytes of a frame: a turn's messages to one peer.
//!
//! Layout, little-endian: format (1 byte), CRC32C of the rest (4), then messages back to back, each a tag byte and its
//! fields. One message can be encoded once and put into the frames of several peers ([`Encoded`], [`frame_of`]).
//! Decoding is total: any bytes give messages or an error, and no length is believed before it is checked against
//! what is left. Payloads are slices of the frame, not copies.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use corral_proto::{ServerId, SessionId, Zxid};

use super::io::{Entry, Membership, Position, SnapshotMeta};
use super::message::{IdentityReport, Message, SyncPlan, Vote, VoterState};

/// Version of the layout.
const FORMAT: u8 = 1;
/// Format and checksum.
const HEADER_BYTES: usize = 5;

/// Why a frame could not be read. The stream it came over is not to be trusted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Ends in the middle of something.
    #[error("frame is truncated")]
    Truncated,
    /// Another version wrote it.
    #[error("frame format {0} is not known to this server")]
    Format(u8),
    /// It was altered on the way.
    #[error("frame checksum does not match")]
    Checksum,
    /// A value that no message has.
    #[error("frame holds an unknown {0}: {1}")]
    Unknown(&'static str, u8),
}

/// One encoded message, to be shared between frames.
#[derive(Clone, Debug)]
pub struct Encoded(Bytes);

impl Encoded {
    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: a message has at least a tag.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Encodes one message.
pub fn encode(message: &Message) -> Encoded {
    let mut out = BytesMut::with_capacity(size_hint(message));
    put(&mut out, message);
    Encoded(out.freeze())
}

/// A frame of encoded messages, in order.
pub fn frame_of(parts: &[Encoded]) -> Bytes {
    let size = parts.iter().map(Encoded::len).sum::<usize>();
    let mut out = BytesMut::with_capacity(HEADER_BYTES + size);
    out.put_u8(FORMAT);
    out.put_u32_le(0);
    for part in parts {
        out.put_slice(&part.0);
    }
    let crc = crc32c::crc32c(&out[HEADER_BYTES..]);
    out[1..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    out.freeze()
}

/// A frame of messages, in order.
pub fn encode_frame(messages: &[Message]) -> Bytes {
    let parts: Vec<Encoded> = messages.iter().map(encode).collect();
    frame_of(&parts)
}

/// The messages of a frame.
///
/// # Errors
/// [`DecodeError`]; nothing of the frame may be used then.
pub fn decode_frame(frame: &Bytes) -> Result<Vec<Message>, DecodeError> {
    let mut input = frame.clone();
    if input.len() < HEADER_BYTES {
        return Err(DecodeError::Truncated);
    }
    let format = input.get_u8();
    if format != FORMAT {
        return Err(DecodeError::Format(format));
    }
    let crc = input.get_u32_le();
    if crc32c::crc32c(&input) != crc {
        return Err(DecodeError::Checksum);
    }
    let mut input = Reader(input);
    let mut messages = Vec::new();
    while !input.0.is_empty() {
        messages.push(take(&mut input)?);
    }
    Ok(messages)
}

fn size_hint(message: &Message) -> usize {
    match message {
        Message::Entries { entries, .. } => 64 + entries.iter().map(|e| e.payload.len() + 32).sum::<usize>(),
        Message::Forward { payloads, .. } => 16 + payloads.iter().map(|p| p.len() + 4).sum::<usize>(),
        Message::Pong { touched, .. } => 64 + touched.len() * 8,
        _ => 64,
    }
}

fn put_position(out: &mut BytesMut, position: Position) {
    out.put_u64_le(position.zxid.0);
    out.put_u64_le(position.hash);
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32_le(u32::try_from(bytes.len()).expect("a transaction is bounded far below 4 GiB"));
    out.put_slice(bytes);
}

fn put_count(out: &mut BytesMut, count: usize) {
    out.put_u32_le(u32::try_from(count).expect("a message is bounded by its bytes"));
}

fn put(out: &mut BytesMut, message: &Message) {
    match message {
        Message::Identity(IdentityReport { cluster, membership, fresh }) => {
            out.put_u8(1);
            out.put_u64_le(*cluster);
            out.put_u8(match membership {
                Membership::Empty => 0,
                Membership::Member => 1,
                Membership::Amnesiac => 2,
            });
            out.put_u8(u8::from(*fresh));
        }
        Message::Bootstrap { cluster } => {
            out.put_u8(2);
            out.put_u64_le(*cluster);
        }
        Message::Vote { round, state, vote, epoch } => {
            out.put_u8(3);
            out.put_u64_le(*round);
            out.put_u8(match state {
                VoterState::Looking => 0,
                VoterState::Following => 1,
                VoterState::Leading => 2,
            });
            out.put_u64_le(vote.leader.0);
            out.put_u64_le(vote.zxid.0);
            out.put_u32_le(*epoch);
        }
        Message::FollowerInfo { promise, voter } => {
            out.put_u8(4);
            out.put_u32_le(*promise);
            out.put_u8(u8::from(*voter));
        }
        Message::LeaderInfo { epoch } => {
            out.put_u8(5);
            out.put_u32_le(*epoch);
        }
        Message::AckEpoch { epoch, counts, base, last, applied, epochs, doubt } => {
            out.put_u8(6);
            out.put_u32_le(*epoch);
            out.put_u8(u8::from(*counts));
            put_position(out, *base);
            put_position(out, *last);
            out.put_u64_le(applied.0);
            out.put_u64_le(doubt.0);
            put_count(out, epochs.len());
            for position in epochs {
                put_position(out, *position);
            }
        }
        Message::Reject { promise } => {
            out.put_u8(7);
            out.put_u32_le(*promise);
        }
        Message::SyncPlan { epoch, point, plan } => {
            out.put_u8(8);
            out.put_u32_le(*epoch);
            put_position(out, *point);
            match plan {
                SyncPlan::Diff => out.put_u8(0),
                SyncPlan::Trunc => out.put_u8(1),
                SyncPlan::Snap(SnapshotMeta { id, position, stamp_ms, bytes }) => {
                    out.put_u8(2);
                    out.put_u64_le(*id);
                    put_position(out, *position);
                    out.put_i64_le(*stamp_ms);
                    out.put_u64_le(*bytes);
                }
            }
        }
        Message::Entries { epoch, prev, entries, commit } => {
            out.put_u8(9);
            out.put_u32_le(*epoch);
            put_position(out, *prev);
            out.put_u64_le(commit.0);
            put_count(out, entries.len());
            for Entry { zxid, stamp_ms, hash, payload } in entries {
                out.put_u64_le(zxid.0);
                out.put_i64_le(*stamp_ms);
                out.put_u64_le(*hash);
                put_bytes(out, payload);
            }
        }
        Message::Ack { epoch, zxid, applied } => {
            out.put_u8(10);
            out.put_u32_le(*epoch);
            out.put_u64_le(zxid.0);
            out.put_u64_le(applied.0);
        }
        Message::UpToDate { epoch, commit } => {
            out.put_u8(11);
            out.put_u32_le(*epoch);
            out.put_u64_le(commit.0);
        }
        Message::Commit { epoch, commit } => {
            out.put_u8(12);
            out.put_u32_le(*epoch);
            out.put_u64_le(commit.0);
        }
        Message::Ping { epoch, seq, commit, doubt } => {
            out.put_u8(13);
            out.put_u32_le(*epoch);
            out.put_u64_le(*seq);
            out.put_u64_le(commit.0);
            out.put_u64_le(doubt.0);
        }
        Message::Pong { epoch, seq, applied, touched, digest } => {
            out.put_u8(14);
            out.put_u32_le(*epoch);
            out.put_u64_le(*seq);
            out.put_u64_le(applied.0);
            out.put_u64_le(digest.0.0);
            out.put_u64_le(digest.1);
            put_count(out, touched.len());
            for session in touched {
                out.put_i64_le(session.0);
            }
        }
        Message::Forward { epoch, payloads } => {
            out.put_u8(15);
            out.put_u32_le(*epoch);
            put_count(out, payloads.len());
            for payload in payloads {
                put_bytes(out, payload);
            }
        }
        Message::ReadIndex { epoch, tag } => {
            out.put_u8(16);
            out.put_u32_le(*epoch);
            out.put_u64_le(*tag);
        }
        Message::ReadPoint { epoch, tag, zxid } => {
            out.put_u8(17);
            out.put_u32_le(*epoch);
            out.put_u64_le(*tag);
            out.put_u64_le(zxid.0);
        }
        Message::Handover { epoch } => {
            out.put_u8(18);
            out.put_u32_le(*epoch);
        }
        Message::DigestMismatch { epoch, zxid } => {
            out.put_u8(19);
            out.put_u32_le(*epoch);
            out.put_u64_le(zxid.0);
        }
        Message::Welcome { epoch, commit } => {
            out.put_u8(20);
            out.put_u32_le(*epoch);
            out.put_u64_le(commit.0);
        }
    }
}

struct Reader(Bytes);

impl Reader {
    fn need(&self, bytes: usize) -> Result<(), DecodeError> {
        if self.0.len() < bytes { Err(DecodeError::Truncated) } else { Ok(()) }
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.need(1)?;
        Ok(self.0.get_u8())
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.need(4)?;
        Ok(self.0.get_u32_le())
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.need(8)?;
        Ok(self.0.get_u64_le())
    }

    fn i64(&mut self) -> Result<i64, DecodeError> {
        self.need(8)?;
        Ok(self.0.get_i64_le())
    }

    fn flag(&mut self, what: &'static str) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(DecodeError::Unknown(what, other)),
        }
    }

    fn zxid(&mut self) -> Result<Zxid, DecodeError> {
        self.u64().map(Zxid)
    }

    fn position(&mut self) -> Result<Position, DecodeError> {
        Ok(Position { zxid: self.zxid()?, hash: self.u64()? })
    }

    /// A number of things of at least `each` bytes, all of which must still be there.
    fn count(&mut self, each: usize) -> Result<usize, DecodeError> {
        let count = self.u32()? as usize;
        self.need(count.checked_mul(each).ok_or(DecodeError::Truncated)?)?;
        Ok(count)
    }

    fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let len = self.u32()? as usize;
        self.need(len)?;
        Ok(self.0.split_to(len))
    }
}

fn take(input: &mut Reader) -> Result<Message, DecodeError> {
    Ok(match input.u8()? {
        1 => {
            let cluster = input.u64()?;
            let membership = match input.u8()? {
                0 => Membership::Empty,
                1 => Membership::Member,
                2 => Membership::Amnesiac,
                other => return Err(DecodeError::Unknown("membership", other)),
            };
            Message::Identity(IdentityReport { cluster, membership, fresh: input.flag("freshness")? })
        }
        2 => Message::Bootstrap { cluster: input.u64()? },
        3 => {
            let round = input.u64()?;
            let state = match input.u8()? {
                0 => VoterState::Looking,
                1 => VoterState::Following,
                2 => VoterState::Leading,
                other => return Err(DecodeError::Unknown("voter state", other)),
            };
            let vote = Vote { leader: ServerId(input.u64()?), zxid: input.zxid()? };
            Message::Vote { round, state, vote, epoch: input.u32()? }
        }
        4 => Message::FollowerInfo { promise: input.u32()?, voter: input.flag("voter flag")? },
        5 => Message::LeaderInfo { epoch: input.u32()? },
        6 => {
            let (epoch, counts) = (input.u32()?, input.flag("counting flag")?);
            let (base, last, applied) = (input.position()?, input.position()?, input.zxid()?);
            let doubt = input.zxid()?;
            let count = input.count(16)?;
            let epochs = (0..count).map(|_| input.position()).collect::<Result<_, _>>()?;
            Message::AckEpoch { epoch, counts, base, last, applied, epochs, doubt }
        }
        7 => Message::Reject { promise: input.u32()? },
        8 => {
            let (epoch, point) = (input.u32()?, input.position()?);
            let plan = match input.u8()? {
                0 => SyncPlan::Diff,
                1 => SyncPlan::Trunc,
                2 => SyncPlan::Snap(SnapshotMeta {
                    id: input.u64()?,
                    position: input.position()?,
                    stamp_ms: input.i64()?,
                    bytes: input.u64()?,
                }),
                other => return Err(DecodeError::Unknown("plan", other)),
            };
            Message::SyncPlan { epoch, point, plan }
        }
        9 => {
            let (epoch, prev, commit) = (input.u32()?, input.position()?, input.zxid()?);
            let count = input.count(28)?;
            let entry = |input: &mut Reader| {
                Ok(Entry { zxid: input.zxid()?, stamp_ms: input.i64()?, hash: input.u64()?, payload: input.bytes()? })
            };
            let entries = (0..count).map(|_| entry(input)).collect::<Result<_, _>>()?;
            Message::Entries { epoch, prev, entries, commit }
        }
        10 => Message::Ack { epoch: input.u32()?, zxid: input.zxid()?, applied: input.zxid()? },
        11 => Message::UpToDate { epoch: input.u32()?, commit: input.zxid()? },
        12 => Message::Commit { epoch: input.u32()?, commit: input.zxid()? },
        13 => {
            let (epoch, seq) = (input.u32()?, input.u64()?);
            Message::Ping { epoch, seq, commit: input.zxid()?, doubt: input.zxid()? }
        }
        14 => {
            let (epoch, seq, applied) = (input.u32()?, input.u64()?, input.zxid()?);
            let digest = (input.zxid()?, input.u64()?);
            let count = input.count(8)?;
            let touched = (0..count).map(|_| input.i64().map(SessionId)).collect::<Result<_, _>>()?;
            Message::Pong { epoch, seq, applied, touched, digest }
        }
        15 => {
            let epoch = input.u32()?;
            let count = input.count(4)?;
            Message::Forward { epoch, payloads: (0..count).map(|_| input.bytes()).collect::<Result<_, _>>()? }
        }
        16 => Message::ReadIndex { epoch: input.u32()?, tag: input.u64()? },
        17 => Message::ReadPoint { epoch: input.u32()?, tag: input.u64()?, zxid: input.zxid()? },
        18 => Message::Handover { epoch: input.u32()? },
        19 => Message::DigestMismatch { epoch: input.u32()?, zxid: input.zxid()? },
        20 => Message::Welcome { epoch: input.u32()?, commit: input.zxid()? },
        other => return Err(DecodeError::Unknown("message", other)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn position() -> impl Strategy<Value = Position> {
        (any::<u64>(), any::<u64>()).prop_map(|(z, hash)| Position { zxid: Zxid(z), hash })
    }

    fn bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
    }

    fn zxid() -> impl Strategy<Value = Zxid> {
        any::<u64>().prop_map(Zxid)
    }

    fn message() -> impl Strategy<Value = Message> {
        let membership = prop_oneof![Just(Membership::Empty), Just(Membership::Member), Just(Membership::Amnesiac)];
        let state = prop_oneof![Just(VoterState::Looking), Just(VoterState::Following), Just(VoterState::Leading)];
        let snapshot = (any::<u64>(), position(), any::<i64>(), any::<u64>())
            .prop_map(|(id, position, stamp_ms, bytes)| SyncPlan::Snap(SnapshotMeta { id, position, stamp_ms, bytes }));
        let plan = prop_oneof![Just(SyncPlan::Diff), Just(SyncPlan::Trunc), snapshot];
        let entry = (zxid(), any::<i64>(), any::<u64>(), bytes()).prop_map(|(zxid, stamp_ms, hash, payload)| Entry {
            zxid,
            stamp_ms,
            hash,
            payload,
        });
        let entries = prop::collection::vec(entry, 0..4);
        prop_oneof![
            (any::<u64>(), membership, any::<bool>()).prop_map(|(cluster, membership, fresh)| Message::Identity(
                IdentityReport { cluster, membership, fresh }
            )),
            any::<u64>().prop_map(|cluster| Message::Bootstrap { cluster }),
            (any::<u64>(), state, any::<u64>(), zxid(), any::<u32>()).prop_map(
                |(round, state, leader, zxid, epoch)| {
                    Message::Vote { round, state, vote: Vote { leader: ServerId(leader), zxid }, epoch }
                }
            ),
            (any::<u32>(), any::<bool>()).prop_map(|(promise, voter)| Message::FollowerInfo { promise, voter }),
            any::<u32>().prop_map(|epoch| Message::LeaderInfo { epoch }),
            (
                (any::<u32>(), any::<bool>()),
                (position(), position()),
                (zxid(), zxid()),
                prop::collection::vec(position(), 0..4)
            )
                .prop_map(|((epoch, counts), (base, last), (applied, doubt), epochs)| Message::AckEpoch {
                    epoch,
                    counts,
                    base,
                    last,
                    applied,
                    epochs,
                    doubt
                }),
            any::<u32>().prop_map(|promise| Message::Reject { promise }),
            (any::<u32>(), position(), plan).prop_map(|(epoch, point, plan)| Message::SyncPlan { epoch, point, plan }),
            (any::<u32>(), position(), entries, zxid()).prop_map(|(epoch, prev, entries, commit)| Message::Entries {
                epoch,
                prev,
                entries,
                commit
            }),
            (any::<u32>(), zxid(), zxid()).prop_map(|(epoch, zxid, applied)| Message::Ack { epoch, zxid, applied }),
            (any::<u32>(), zxid()).prop_map(|(epoch, commit)| Message::UpToDate { epoch, commit }),
            (any::<u32>(), zxid()).prop_map(|(epoch, commit)| Message::Commit { epoch, commit }),
            (any::<u32>(), any::<u64>(), zxid(), zxid()).prop_map(|(epoch, seq, commit, doubt)| Message::Ping {
                epoch,
                seq,
                commit,
                doubt
            }),
            (any::<u32>(), any::<u64>(), zxid(), prop::collection::vec(any::<i64>(), 0..4), zxid(), any::<u64>())
                .prop_map(|(epoch, seq, applied, touched, z, d)| Message::Pong {
                    epoch,
                    seq,
                    applied,
                    touched: touched.into_iter().map(SessionId).collect(),
                    digest: (z, d)
                }),
            (any::<u32>(), prop::collection::vec(bytes(), 0..4))
                .prop_map(|(epoch, payloads)| Message::Forward { epoch, payloads }),
            (any::<u32>(), any::<u64>()).prop_map(|(epoch, tag)| Message::ReadIndex { epoch, tag }),
            (any::<u32>(), any::<u64>(), zxid()).prop_map(|(epoch, tag, zxid)| Message::ReadPoint { epoch, tag, zxid }),
            any::<u32>().prop_map(|epoch| Message::Handover { epoch }),
            (any::<u32>(), zxid()).prop_map(|(epoch, zxid)| Message::DigestMismatch { epoch, zxid }),
            (any::<u32>(), zxid()).prop_map(|(epoch, commit)| Message::Welcome { epoch, commit }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(messages in prop::collection::vec(message(), 0..6)) {
            prop_assert_eq!(decode_frame(&encode_frame(&messages)).unwrap(), messages);
        }

        #[test]
        fn an_altered_frame_is_never_taken_for_another(
            messages in prop::collection::vec(message(), 1..4), at in any::<prop::sample::Index>(), bit in 0..8u8,
        ) {
            let mut frame = encode_frame(&messages).to_vec();
            let at = at.index(frame.len());
            frame[at] ^= 1 << bit;
            prop_assert!(decode_frame(&Bytes::from(frame)).is_err());
        }

        #[test]
        fn any_bytes_behind_a_good_checksum_are_messages_or_an_error(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let frame = frame_of(&[Encoded(Bytes::from(body))]);
            let _ = decode_frame(&frame);
        }

        #[test]
        fn every_cut_of_a_frame_is_refused(messages in prop::collection::vec(message(), 1..3)) {
            let frame = encode_frame(&messages);
            for len in 0..frame.len() {
                prop_assert!(decode_frame(&frame.slice(..len)).is_err());
            }
        }
    }
}
