//! How a holder is asked to give up: by the data of its own contender, which it watches anyway.

use std::fmt;
use std::time::Duration;

/// What Curator's `Revoker` writes, and its revocable locks look for.
const WORD: &str = "__REVOKE__";
/// Longest reason in bytes; what is beyond it is cut off.
pub const REASON_BYTES_MAX: usize = 1_024;

/// A request to give up what is held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocation {
    /// How long the holder has from when it sees the request, to the millisecond; then it may be forced. `None`: as long
    /// as it wants.
    pub grace: Option<Duration>,
    /// Why, for people. Empty: not said.
    pub reason: String,
}

impl Revocation {
    /// The request in a contender's data; `None`: the data is something else.
    pub fn parse(data: &[u8]) -> Option<Revocation> {
        let rest = std::str::from_utf8(data).ok()?.strip_prefix(WORD)?;
        if rest.is_empty() {
            return Some(Revocation::default());
        }
        let rest = rest.strip_prefix(' ')?;
        let (grace, reason) = rest.split_once(' ').unwrap_or((rest, ""));
        let grace = match grace {
            "-" => None,
            ms => Some(Duration::from_millis(ms.parse().ok()?)),
        };
        Some(Revocation { grace, reason: reason.to_owned() })
    }

    /// The data to write: `__REVOKE__` alone, which Curator's locks understand too, or `__REVOKE__ MS REASON`, with `-` for
    /// a request without an end.
    pub fn encode(&self) -> String {
        if *self == Revocation::default() {
            return WORD.to_owned();
        }
        let end = (0..=REASON_BYTES_MAX.min(self.reason.len())).rev().find(|at| self.reason.is_char_boundary(*at));
        let reason = &self.reason[..end.unwrap_or(0)];
        match self.grace {
            Some(grace) => format!("{WORD} {} {reason}", grace.as_millis()),
            None => format!("{WORD} - {reason}"),
        }
    }
}

impl fmt::Display for Revocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = if self.reason.is_empty() { "no reason given" } else { &self.reason };
        match self.grace {
            Some(grace) => write!(f, "to be given up within {} ms: {reason}", grace.as_millis()),
            None => write!(f, "to be given up: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_comes_back_as_it_was_written() {
        for (grace_ms, reason) in [(None, ""), (Some(0), ""), (Some(5_000), "the rack goes down"), (None, "please")] {
            let asked = Revocation { grace: grace_ms.map(Duration::from_millis), reason: reason.to_owned() };
            assert_eq!(Revocation::parse(asked.encode().as_bytes()), Some(asked));
        }
    }

    #[test]
    fn curators_word_alone_is_a_request_without_an_end() {
        assert_eq!(Revocation::parse(b"__REVOKE__"), Some(Revocation::default()));
        assert_eq!(Revocation::default().encode(), "__REVOKE__");
    }

    #[test]
    fn an_identity_is_no_request() {
        for data in ["", "host-1", "__REVOKE", "__REVOKE__x", "__REVOKE__ soon", "x__REVOKE__"] {
            assert_eq!(Revocation::parse(data.as_bytes()), None, "{data:?}");
        }
        assert_eq!(Revocation::parse(&[0xff]), None);
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let asked = Revocation { grace: None, reason: "ä".repeat(REASON_BYTES_MAX) };
        let cut = Revocation::parse(asked.encode().as_bytes()).expect("a request");
        assert_eq!(cut.reason, "ä".repeat(REASON_BYTES_MAX / 2));
    }
}
