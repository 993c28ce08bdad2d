//! The handshake (wire 2.2, 2.3): the only messages without a header.

use bytes::{BufMut, Bytes, BytesMut};

use super::primitive::{JuteWrite, Reader};
use super::{DecodeError, frame};

/// Bytes of a session's password.
pub const PASSWORD_BYTES: usize = 16;

/// Begins a session, or takes up one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectRequest {
    /// 0; servers accept any value.
    pub protocol_version: i32,
    /// Highest zxid the client has seen; 0 if none.
    pub last_zxid_seen: i64,
    /// Session timeout wished for, ms.
    pub timeout_ms: i32,
    /// 0 for a new session.
    pub session_id: i64,
    /// As the server gave it; 16 zero bytes, empty or null for a new session.
    pub password: Option<Bytes>,
    /// Whether a server without quorum would do. `None`: an old client that does not send the byte (44 instead of 45
    /// bytes), and whose answer must not have it either.
    pub read_only: Option<bool>,
}

impl ConnectRequest {
    /// Reads the payload of a connection's first frame.
    ///
    /// # Errors
    /// [`DecodeError`]; the connection ends without a reply.
    pub fn decode(payload: Bytes) -> Result<ConnectRequest, DecodeError> {
        let mut reader = Reader::new(payload);
        Ok(ConnectRequest {
            protocol_version: reader.int()?,
            last_zxid_seen: reader.long()?,
            timeout_ms: reader.int()?,
            session_id: reader.long()?,
            password: reader.buffer()?,
            read_only: if reader.remaining() > 0 { Some(reader.bool()?) } else { None },
        })
    }

    /// Appends the request as a frame.
    pub fn encode(&self, out: &mut BytesMut) {
        frame::write(out, |out| {
            out.put_i32(self.protocol_version);
            out.put_i64(self.last_zxid_seen);
            out.put_i32(self.timeout_ms);
            out.put_i64(self.session_id);
            out.put_buffer(self.password.as_deref());
            if let Some(read_only) = self.read_only {
                out.put_bool(read_only);
            }
        });
    }
}

/// The server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectResponse {
    /// 0.
    pub protocol_version: i32,
    /// Negotiated session timeout, ms; 0: the session has expired.
    pub timeout_ms: i32,
    /// 0 when expired.
    pub session_id: i64,
    /// All zero when expired. The C client reads exactly 16 bytes.
    pub password: [u8; PASSWORD_BYTES],
    /// `Some` exactly if the request had the byte.
    pub read_only: Option<bool>,
}

impl ConnectResponse {
    /// "Your session is gone": what a client needs to see to give it up.
    pub fn expired(read_only: Option<bool>) -> ConnectResponse {
        ConnectResponse {
            protocol_version: 0,
            timeout_ms: 0,
            session_id: 0,
            password: [0; PASSWORD_BYTES],
            read_only: read_only.map(|_| false),
        }
    }

    /// Reads the payload of the server's first frame.
    ///
    /// # Errors
    /// [`DecodeError`], also for a password that has not 16 bytes.
    pub fn decode(payload: Bytes) -> Result<ConnectResponse, DecodeError> {
        let mut reader = Reader::new(payload);
        Ok(ConnectResponse {
            protocol_version: reader.int()?,
            timeout_ms: reader.int()?,
            session_id: reader.long()?,
            password: {
                let password = reader.buffer()?.ok_or(DecodeError::Null)?;
                let missing = PASSWORD_BYTES.saturating_sub(password.len());
                password[..].try_into().map_err(|_| DecodeError::Truncated { missing })?
            },
            read_only: if reader.remaining() > 0 { Some(reader.bool()?) } else { None },
        })
    }

    /// Appends the response as a frame.
    pub fn encode(&self, out: &mut BytesMut) {
        frame::write(out, |out| {
            out.put_i32(self.protocol_version);
            out.put_i32(self.timeout_ms);
            out.put_i64(self.session_id);
            out.put_buffer(Some(&self.password));
            if let Some(read_only) = self.read_only {
                out.put_bool(read_only);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::response::tests::hex;
    use super::*;

    #[test]
    fn request_of_a_new_session_has_the_recorded_bytes() {
        let request = ConnectRequest {
            timeout_ms: 30_000,
            password: Some(Bytes::from_static(&[0; 16])),
            read_only: Some(false),
            ..ConnectRequest::default()
        };
        let mut out = BytesMut::new();
        request.encode(&mut out);
        assert_eq!(
            out[..],
            hex("0000002d 00000000 0000000000000000 00007530 0000000000000000 00000010 \
                 00000000000000000000000000000000 00")
        );
        assert_eq!(ConnectRequest::decode(out.split_off(4).freeze()), Ok(request));
    }

    #[test]
    fn the_read_only_byte_is_answered_exactly_if_it_was_sent() {
        for (read_only, request_bytes, response_bytes) in [(Some(true), 45, 37), (None, 44, 36)] {
            let request =
                ConnectRequest { read_only, password: Some(Bytes::from_static(&[0; 16])), ..Default::default() };
            let mut out = BytesMut::new();
            request.encode(&mut out);
            assert_eq!(out.len(), 4 + request_bytes);
            assert_eq!(ConnectRequest::decode(out.split_off(4).freeze()).unwrap().read_only, read_only);
            let mut out = BytesMut::new();
            ConnectResponse { timeout_ms: 1, ..ConnectResponse::expired(read_only) }.encode(&mut out);
            assert_eq!(out.len(), 4 + response_bytes);
        }
    }

    #[test]
    fn expired_answer_has_the_recorded_bytes() {
        let zero = "00000000 00000000 0000000000000000 00000010 00000000000000000000000000000000";
        let mut out = BytesMut::new();
        ConnectResponse::expired(None).encode(&mut out);
        assert_eq!(out[..], hex(&format!("00000024 {zero}")));
        out.clear();
        ConnectResponse::expired(Some(true)).encode(&mut out);
        assert_eq!(out[..], hex(&format!("00000025 {zero} 00")));
    }

    #[test]
    fn a_first_frame_that_is_too_short_is_no_request() {
        let mut out = BytesMut::new();
        ConnectRequest { password: Some(Bytes::from_static(&[0; 16])), ..Default::default() }.encode(&mut out);
        let payload = out.split_off(4).freeze();
        for end in 0..payload.len() {
            assert!(ConnectRequest::decode(payload.slice(..end)).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn null_and_empty_passwords_are_accepted() {
        for password in [None, Some(Bytes::new())] {
            let request = ConnectRequest { password, ..Default::default() };
            let mut out = BytesMut::new();
            request.encode(&mut out);
            assert_eq!(ConnectRequest::decode(out.split_off(4).freeze()), Ok(request));
        }
    }

    proptest! {
        #[test]
        fn decoding_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let bytes = Bytes::from(bytes);
            let _ = ConnectRequest::decode(bytes.clone());
            if let Ok(response) = ConnectResponse::decode(bytes) {
                let mut out = BytesMut::new();
                response.encode(&mut out);
                prop_assert_eq!(ConnectResponse::decode(out.split_off(4).freeze()), Ok(response));
            }
        }
    }
}
