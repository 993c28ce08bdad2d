//! Strings, buffers, lists: how jute writes them (wire 1.2).

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::DecodeError;

/// Elements of a list for which memory is reserved before they are read.
const RESERVED_ELEMENTS_MAX: usize = 256;

/// A cursor over one frame. Buffers it hands out share the frame's memory.
#[derive(Clone, Debug)]
pub struct Reader {
    rest: Bytes,
}

impl Reader {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: Bytes) -> Reader {
        Reader { rest: bytes }
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    fn need(&self, bytes: usize) -> Result<(), DecodeError> {
        match bytes.checked_sub(self.rest.len()) {
            None | Some(0) => Ok(()),
            Some(missing) => Err(DecodeError::Truncated { missing }),
        }
    }

    /// One byte; anything but 0 is true.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] at the end of the frame.
    pub fn bool(&mut self) -> Result<bool, DecodeError> {
        self.need(1)?;
        Ok(self.rest.get_u8() != 0)
    }

    /// Four bytes, big-endian.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn int(&mut self) -> Result<i32, DecodeError> {
        self.need(4)?;
        Ok(self.rest.get_i32())
    }

    /// Eight bytes, big-endian.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn long(&mut self) -> Result<i64, DecodeError> {
        self.need(8)?;
        Ok(self.rest.get_i64())
    }

    /// One byte.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn byte(&mut self) -> Result<u8, DecodeError> {
        self.need(1)?;
        Ok(self.rest.get_u8())
    }

    /// Length and bytes; -1 is null.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`], [`DecodeError::NegativeLength`].
    pub fn buffer(&mut self) -> Result<Option<Bytes>, DecodeError> {
        let length = self.int()?;
        if length == -1 {
            return Ok(None);
        }
        let length = usize::try_from(length).map_err(|_| DecodeError::NegativeLength(length))?;
        self.need(length)?;
        Ok(Some(self.rest.split_to(length)))
    }

    /// A string that may be null. Invalid UTF-8 becomes U+FFFD, which no path may contain (wire 1.2).
    ///
    /// # Errors
    /// As [`Reader::buffer`].
    pub fn nullable_text(&mut self) -> Result<Option<String>, DecodeError> {
        Ok(self.buffer()?.map(|bytes| match std::str::from_utf8(&bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => String::from_utf8_lossy(&bytes).into_owned(),
        }))
    }

    /// A string that must not be null: every path.
    ///
    /// # Errors
    /// As [`Reader::buffer`], and [`DecodeError::Null`].
    pub fn text(&mut self) -> Result<String, DecodeError> {
        self.nullable_text()?.ok_or(DecodeError::Null)
    }

    /// A string for which null means empty (kazoo sends every empty string as null).
    ///
    /// # Errors
    /// As [`Reader::buffer`].
    pub fn text_or_empty(&mut self) -> Result<String, DecodeError> {
        Ok(self.nullable_text()?.unwrap_or_default())
    }

    /// A list; count -1 is null, any other negative count is an empty list.
    ///
    /// # Errors
    /// Whatever `element` returns, at the latest at the end of the frame.
    pub fn vector<T>(
        &mut self,
        mut element: impl FnMut(&mut Reader) -> Result<T, DecodeError>,
    ) -> Result<Option<Vec<T>>, DecodeError> {
        let count = self.int()?;
        if count == -1 {
            return Ok(None);
        }
        let count = usize::try_from(count).unwrap_or(0);
        // The count is the peer's word; what is reserved for it must be cheap if it lies.
        let mut list = Vec::with_capacity(count.min(RESERVED_ELEMENTS_MAX));
        for _ in 0..count {
            list.push(element(self)?);
        }
        Ok(Some(list))
    }

    /// A list of strings that must not be null, nor any of its elements.
    ///
    /// # Errors
    /// As [`Reader::vector`] and [`Reader::text`].
    pub fn texts(&mut self) -> Result<Vec<String>, DecodeError> {
        self.vector(Reader::text)?.ok_or(DecodeError::Null)
    }
}

/// Length of something on the wire. A frame is bounded far below 2 GiB, so saturation is never seen.
pub(super) fn length(bytes: usize) -> i32 {
    i32::try_from(bytes).unwrap_or(i32::MAX)
}

/// What [`BytesMut`] needs to write jute; integers come from [`BufMut`].
pub trait JuteWrite {
    /// 0 or 1.
    fn put_bool(&mut self, value: bool);
    /// Length and UTF-8.
    fn put_text(&mut self, text: &str);
    /// As `put_text`; null is length -1.
    fn put_nullable_text(&mut self, text: Option<&str>);
    /// Length and bytes; null is length -1.
    fn put_buffer(&mut self, bytes: Option<&[u8]>);
    /// Count and strings.
    fn put_texts(&mut self, texts: &[String]);
}

impl JuteWrite for BytesMut {
    fn put_bool(&mut self, value: bool) {
        self.put_u8(u8::from(value));
    }

    fn put_text(&mut self, text: &str) {
        self.put_buffer(Some(text.as_bytes()));
    }

    fn put_nullable_text(&mut self, text: Option<&str>) {
        self.put_buffer(text.map(str::as_bytes));
    }

    fn put_buffer(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            None => self.put_i32(-1),
            Some(bytes) => {
                self.put_i32(length(bytes.len()));
                self.extend_from_slice(bytes);
            }
        }
    }

    fn put_texts(&mut self, texts: &[String]) {
        self.put_i32(length(texts.len()));
        for text in texts {
            self.put_text(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(bytes: &[u8]) -> Reader {
        Reader::new(Bytes::copy_from_slice(bytes))
    }

    #[test]
    fn null_and_empty_are_different() {
        assert_eq!(reader(&[0xff, 0xff, 0xff, 0xff]).buffer(), Ok(None));
        assert_eq!(reader(&[0, 0, 0, 0]).buffer(), Ok(Some(Bytes::new())));
        let mut out = BytesMut::new();
        out.put_buffer(None);
        out.put_buffer(Some(b""));
        assert_eq!(out[..], [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    }

    #[test]
    fn lengths_below_minus_one_are_refused() {
        assert_eq!(reader(&[0xff, 0xff, 0xff, 0xfe]).buffer(), Err(DecodeError::NegativeLength(-2)));
        assert_eq!(reader(&[0x80, 0, 0, 0]).nullable_text(), Err(DecodeError::NegativeLength(i32::MIN)));
    }

    #[test]
    fn a_length_past_the_end_is_refused() {
        assert_eq!(reader(&[0, 0, 0, 3, 1, 2]).buffer(), Err(DecodeError::Truncated { missing: 1 }));
        assert_eq!(
            reader(&[0x7f, 0xff, 0xff, 0xff]).buffer(),
            Err(DecodeError::Truncated { missing: i32::MAX as usize })
        );
        assert_eq!(reader(&[0, 0, 0]).int(), Err(DecodeError::Truncated { missing: 1 }));
    }

    #[test]
    fn every_byte_but_zero_is_true() {
        assert_eq!(reader(&[0]).bool(), Ok(false));
        assert_eq!(reader(&[1]).bool(), Ok(true));
        assert_eq!(reader(&[0x80]).bool(), Ok(true));
    }

    #[test]
    fn list_counts_follow_zookeeper() {
        assert_eq!(reader(&[0xff, 0xff, 0xff, 0xff]).vector(Reader::int), Ok(None));
        assert_eq!(reader(&[0xff, 0xff, 0xff, 0xf0]).vector(Reader::int), Ok(Some(vec![])));
        assert_eq!(reader(&[0, 0, 0, 1, 0, 0, 0, 9]).vector(Reader::int), Ok(Some(vec![9])));
        assert_eq!(reader(&[0xff, 0xff, 0xff, 0xff]).texts(), Err(DecodeError::Null));
    }

    #[test]
    fn a_huge_count_is_refused_at_the_end_of_the_frame() {
        let mut bytes = vec![0x7f, 0xff, 0xff, 0xff];
        bytes.extend_from_slice(&[0; 8]);
        assert_eq!(reader(&bytes).vector(Reader::int), Err(DecodeError::Truncated { missing: 4 }));
    }

    #[test]
    fn invalid_utf8_becomes_a_character_that_no_path_may_hold() {
        let path = reader(&[0, 0, 0, 2, b'/', 0xff]).text().unwrap();
        assert_eq!(path, "/\u{fffd}");
        assert!(crate::path::validate(&path).is_err());
    }

    #[test]
    fn buffers_share_the_memory_of_the_frame() {
        let frame = Bytes::from(vec![0, 0, 0, 2, 7, 8]);
        let address = frame.as_ptr();
        let data = Reader::new(frame).buffer().unwrap().unwrap();
        assert_eq!(data.as_ptr(), address.wrapping_add(4));
    }
}
