//! What a disk may do to a file behind everybody's back.

use std::fs;
use std::path::Path;

/// What a disk does to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Harm {
    /// It is gone.
    Missing,
    /// It has no byte.
    Empty,
    /// Its second half is gone.
    Halved,
    /// A page of zeros in the middle of its content.
    ZeroedPage,
    /// One bit near the beginning.
    FlippedEarly,
    /// One bit in the middle.
    FlippedMiddle,
    /// One bit near the end of its content.
    FlippedLate,
}

/// All of them.
pub const HARMS: [Harm; 7] = [
    Harm::Missing,
    Harm::Empty,
    Harm::Halved,
    Harm::ZeroedPage,
    Harm::FlippedEarly,
    Harm::FlippedMiddle,
    Harm::FlippedLate,
];

impl Harm {
    /// Does it.
    pub fn strike(self, file: &Path) {
        let mut bytes = fs::read(file).unwrap();
        // Segments end with zeros that nobody has written to yet.
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let flip = |bytes: &mut Vec<u8>, at: usize| {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 0x10;
            }
        };
        match self {
            Harm::Missing => return fs::remove_file(file).unwrap(),
            Harm::Empty => bytes.clear(),
            Harm::Halved => bytes.truncate(bytes.len() / 2),
            Harm::ZeroedPage => {
                let page = used / 2 / 4096 * 4096;
                let end = bytes.len().min(page + 4096);
                bytes[page..end].fill(0);
            }
            Harm::FlippedEarly => flip(&mut bytes, used / 50),
            Harm::FlippedMiddle => flip(&mut bytes, used / 2),
            Harm::FlippedLate => flip(&mut bytes, used.saturating_sub(1 + used / 50)),
        }
        fs::write(file, bytes).unwrap();
    }
}
