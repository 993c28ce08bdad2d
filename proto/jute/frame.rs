//! Frames: four bytes of length, then that many bytes (wire 1.1).

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::primitive::length;

/// ZooKeeper's default of `jute.maxbuffer`: the largest frame a server accepts, bytes.
pub const DEFAULT_MAX_FRAME_BYTES: usize = 0xfffff;

/// Bytes of the length prefix.
pub const PREFIX_BYTES: usize = 4;

/// A length no frame has. The connection ends without a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Below 0.
    #[error("negative frame length {0}")]
    Negative(i32),
    /// Over the limit.
    #[error("frame of {length} bytes, {max} are allowed")]
    TooLarge {
        /// As announced.
        length: usize,
        /// The limit.
        max: usize,
    },
}

/// The length that the first bytes of a frame announce; `None` while there are fewer than four.
///
/// # Errors
/// [`FrameError`] for a length no frame of at most `max` bytes has.
pub fn announced(bytes: &[u8], max: usize) -> Result<Option<usize>, FrameError> {
    let Some(prefix) = bytes.first_chunk::<PREFIX_BYTES>() else {
        return Ok(None);
    };
    let announced = i32::from_be_bytes(*prefix);
    let length = usize::try_from(announced).map_err(|_| FrameError::Negative(announced))?;
    if length > max { Err(FrameError::TooLarge { length, max }) } else { Ok(Some(length)) }
}

/// Takes the first frame out of `buffer`, without its prefix; `None` while it is not complete.
///
/// # Errors
/// As [`announced`]; `buffer` is untouched then.
pub fn split(buffer: &mut BytesMut, max: usize) -> Result<Option<Bytes>, FrameError> {
    match announced(buffer, max)? {
        Some(length) if buffer.len() - PREFIX_BYTES >= length => {
            buffer.advance(PREFIX_BYTES);
            Ok(Some(buffer.split_to(length).freeze()))
        }
        _ => Ok(None),
    }
}

/// Appends one frame to `out`: whatever `body` writes, with its length in front.
pub fn write(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_i32(0);
    body(out);
    let written = length(out.len() - start - PREFIX_BYTES);
    out[start..start + PREFIX_BYTES].copy_from_slice(&written.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_come_out_in_order_and_whole() {
        let mut buffer = BytesMut::new();
        write(&mut buffer, |out| out.extend_from_slice(b"one"));
        write(&mut buffer, |_| {});
        write(&mut buffer, |out| out.extend_from_slice(b"three"));
        buffer.extend_from_slice(&[0, 0, 0, 2, b'x']);
        assert_eq!(split(&mut buffer, 5), Ok(Some(Bytes::from_static(b"one"))));
        assert_eq!(split(&mut buffer, 5), Ok(Some(Bytes::new())));
        assert_eq!(split(&mut buffer, 5), Ok(Some(Bytes::from_static(b"three"))));
        assert_eq!(split(&mut buffer, 5), Ok(None));
        buffer.extend_from_slice(b"y");
        assert_eq!(split(&mut buffer, 5), Ok(Some(Bytes::from_static(b"xy"))));
        assert_eq!(split(&mut buffer, 5), Ok(None));
        assert!(buffer.is_empty());
    }

    #[test]
    fn the_limit_itself_is_allowed_and_one_more_is_not() {
        let limit = DEFAULT_MAX_FRAME_BYTES;
        assert_eq!(announced(&[0, 0x0f, 0xff, 0xff], limit), Ok(Some(limit)));
        assert_eq!(announced(&[0, 0x10, 0, 0], limit), Err(FrameError::TooLarge { length: limit + 1, max: limit }));
    }

    #[test]
    fn a_negative_length_is_refused_before_the_rest_arrives() {
        let mut buffer = BytesMut::from(&[0xff, 0xff, 0xff, 0xff][..]);
        assert_eq!(split(&mut buffer, 10), Err(FrameError::Negative(-1)));
    }

    proptest! {
        #[test]
        fn any_cut_of_a_stream_gives_the_same_frames(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..8),
            cut in 1usize..7,
        ) {
            let mut stream = BytesMut::new();
            for body in &bodies {
                write(&mut stream, |out| out.extend_from_slice(body));
            }
            let mut buffer = BytesMut::new();
            let mut got = Vec::new();
            for chunk in stream.chunks(cut) {
                buffer.extend_from_slice(chunk);
                while let Some(frame) = split(&mut buffer, 20).unwrap() {
                    got.push(frame.to_vec());
                }
            }
            prop_assert_eq!(got, bodies);
        }

        #[test]
        fn split_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(frame)) = split(&mut buffer, 16) {
                prop_assert!(frame.len() <= 16);
            }
        }
    }
}
