//! The mark that a holder leaves in a lock's directory, so that its successor knows whether it released.

use std::ops::Add;
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

/// Until when the first in a queue waits after a holder that did not release; `T` is a moment.
#[derive(Clone, Debug)]
pub struct Wait<T> {
    /// After which mark, and until when.
    until: Option<(Marker, T)>,
}

impl<T> Default for Wait<T> {
    fn default() -> Wait<T> {
        Wait { until: None }
    }
}

impl<T: Copy + Add<Duration, Output = T>> Wait<T> {
    /// Until when, for the first of this name that sees this mark, now. The time counts from when the mark was first seen;
    /// another mark is another holder's, and its time counts anew. `None`: it need not wait.
    pub fn until(&mut self, mark: &Marker, first: &str, now: T) -> Option<T> {
        let wait = mark.wait_of(first);
        if wait.is_zero() {
            return None;
        }
        match &self.until {
            Some((seen, until)) if seen == mark => Some(*until),
            _ => {
                let until = now + wait;
                self.until = Some((mark.clone(), until));
                Some(until)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_one_mark_is_not_that_of_another() {
        let mark = |holder: &str, s| Marker { holder: holder.into(), delay: Duration::from_secs(s) };
        let begin = Duration::from_secs(1_000);
        let at = |s| begin + Duration::from_secs(s);
        let mut wait = Wait::default();
        assert_eq!(wait.until(&mark("a", 15), "b", at(0)), Some(at(15)));
        // Looked at again, and by another name after it was deleted and stood in the queue anew.
        assert_eq!(wait.until(&mark("a", 15), "b", at(4)), Some(at(15)));
        assert_eq!(wait.until(&mark("a", 15), "c", at(20)), Some(at(15)));
        // Meanwhile another held, and did not release either.
        assert_eq!(wait.until(&mark("d", 15), "c", at(21)), Some(at(36)));
        assert_eq!(wait.until(&mark("c", 15), "c", at(22)), None);
        assert_eq!(wait.until(&mark("e", 0), "c", at(23)), None);
    }

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
