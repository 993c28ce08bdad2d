//! The mark that a holder leaves in a lock's directory, so that its successor knows whether it released.

use std::time::Duration;

/// First word of the mark.
const WORD: &str = "held";

/// Who holds, and how long its successor waits if it does not release. A release takes the mark away in the same step as
/// the contender; nothing else does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The contender's name.
    pub holder: String,
    /// Its lock delay, to the millisecond.
    pub delay: Duration,
}

impl Marker {
    /// The mark in the data of a directory; `None`: there is none, or it is somebody else's data.
    pub fn parse(data: &[u8]) -> Option<Marker> {
        let mut words = std::str::from_utf8(data).ok()?.split(' ');
        let (word, delay, holder) = (words.next()?, words.next()?, words.next()?);
        let is_whole = word == WORD && !holder.is_empty() && words.next().is_none();
        is_whole.then_some(())?;
        Some(Marker { holder: holder.to_owned(), delay: Duration::from_millis(delay.parse().ok()?) })
    }

    /// The data of the directory: `held 15000 NAME`.
    pub fn encode(&self) -> String {
        format!("{WORD} {} {}", self.delay.as_millis(), self.holder)
    }

    /// How long the first in the queue, of this name, waits.
    pub fn wait_of(&self, first: &str) -> Duration {
        if self.holder == first { Duration::ZERO } else { self.delay }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_as_it_was_written() {
        let mark = Marker { holder: "_c_1-lock-0000000001".into(), delay: Duration::from_millis(1_500) };
        assert_eq!(mark.encode(), "held 1500 _c_1-lock-0000000001");
        assert_eq!(Marker::parse(mark.encode().as_bytes()), Some(mark));
    }

    #[test]
    fn other_data_is_no_mark() {
        for data in ["", "held", "held 1500", "held x y", "held 1500 ", "held 1500 a b", "hold 1 a", "held -1 a"] {
            assert_eq!(Marker::parse(data.as_bytes()), None, "{data:?}");
        }
        assert_eq!(Marker::parse(&[0xff, 0xfe]), None);
    }

    #[test]
    fn only_a_successor_waits() {
        let mark = Marker { holder: "a".into(), delay: Duration::from_secs(15) };
        assert_eq!(mark.wait_of("a"), Duration::ZERO);
        assert_eq!(mark.wait_of("b"), Duration::from_secs(15));
    }
}
