//! ZooKeeper's encoding once more, written from its description alone (wire 1.2): the tester must not share a mistake
//! with the codecs that it tests.

/// Bytes of a message to come.
#[derive(Clone, Debug, Default)]
pub struct Out(pub Vec<u8>);

impl Out {
    pub fn byte(mut self, value: u8) -> Out {
        self.0.push(value);
        self
    }

    pub fn int(mut self, value: i32) -> Out {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub fn long(mut self, value: i64) -> Out {
        self.0.extend(value.to_be_bytes());
        self
    }

    /// A buffer, or a string that need not be text; `None` is null.
    pub fn buffer(self, value: Option<&[u8]>) -> Out {
        match value {
            None => self.int(-1),
            Some(bytes) => self.int(bytes.len() as i32).raw(bytes),
        }
    }

    pub fn string(self, value: &str) -> Out {
        self.buffer(Some(value.as_bytes()))
    }

    pub fn raw(mut self, bytes: &[u8]) -> Out {
        self.0.extend(bytes);
        self
    }

    /// The payload behind its length.
    pub fn framed(self) -> Vec<u8> {
        Out::default().int(self.0.len() as i32).raw(&self.0).0
    }
}

/// A message ends before its record does.
#[derive(Debug)]
pub struct Short;

/// Reads a message from its beginning.
pub struct In<'a>(pub &'a [u8]);

impl<'a> In<'a> {
    pub fn raw(&mut self, len: usize) -> Result<&'a [u8], Short> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(Short)?;
        self.0 = rest;
        Ok(head)
    }

    pub fn byte(&mut self) -> Result<u8, Short> {
        Ok(self.raw(1)?[0])
    }

    pub fn int(&mut self) -> Result<i32, Short> {
        Ok(i32::from_be_bytes(self.raw(4)?.try_into().expect("four bytes")))
    }

    pub fn long(&mut self) -> Result<i64, Short> {
        Ok(i64::from_be_bytes(self.raw(8)?.try_into().expect("eight bytes")))
    }

    pub fn buffer(&mut self) -> Result<Option<&'a [u8]>, Short> {
        match self.int()? {
            -1 => Ok(None),
            len => Ok(Some(self.raw(usize::try_from(len).map_err(|_| Short)?)?)),
        }
    }

    /// A string; null is told from empty.
    pub fn string(&mut self) -> Result<String, Short> {
        Ok(self.buffer()?.map_or("(null)".into(), text))
    }

    /// A vector; null is told from empty.
    pub fn vector<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T, Short>) -> Result<Option<Vec<T>>, Short> {
        match self.int()? {
            -1 => Ok(None),
            count => {
                (0..usize::try_from(count).map_err(|_| Short)?).map(|_| item(self)).collect::<Result<_, _>>().map(Some)
            }
        }
    }
}

/// UTF-8, or Java's idea of it, which encodes each half of a surrogate pair by itself (see `surrogates`).
fn text(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        if let [0xed, a @ 0xa0..=0xaf, b, 0xed, c @ 0xb0..=0xbf, d, behind @ ..] = rest {
            let half = |x: u8, y: u8| (u32::from(x) & 0xf) << 6 | u32::from(y) & 0x3f;
            let code = 0x1_0000 + (half(*a, *b) << 10) + (half(*c, *d) & 0x3ff);
            out.extend(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER).to_string().as_bytes());
            rest = behind;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// For people to read.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
