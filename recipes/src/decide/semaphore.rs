//! When permits may be taken.

/// What the first in a semaphore's queue does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Take all of them now.
    Take,
    /// Wait until permits come back or the limit changes.
    Wait,
    /// More than there are in all: it would wait for ever, and all behind it too.
    TooMany,
}

/// The decision of who is first, wants `wanted` permits, and sees `taken` of `limit` in use. More may be taken than the limit
/// allows if that was lowered; they are not taken away, and nothing is given out until enough came back.
pub fn decide(taken: usize, limit: u32, wanted: u32) -> Decision {
    let (limit, wanted) = (limit as usize, wanted as usize);
    if wanted > limit {
        Decision::TooMany
    } else if taken.saturating_add(wanted) <= limit {
        Decision::Take
    } else {
        Decision::Wait
    }
}

/// The limit in the tree: four bytes, big end first, as Curator's `SharedCount`. `None`: it is none.
pub fn parse_limit(data: &[u8]) -> Option<u32> {
    let number = i32::from_be_bytes(data.try_into().ok()?);
    u32::try_from(number).ok()
}

/// The data of the limit's znode. Limits above `i32::MAX` are that.
pub fn encode_limit(limit: u32) -> [u8; 4] {
    i32::try_from(limit).unwrap_or(i32::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_taken_all_or_none() {
        assert_eq!(decide(0, 3, 3), Decision::Take);
        assert_eq!(decide(1, 3, 2), Decision::Take);
        assert_eq!(decide(1, 3, 3), Decision::Wait);
        assert_eq!(decide(3, 3, 1), Decision::Wait);
    }

    #[test]
    fn a_lowered_limit_keeps_new_holders_out_until_enough_came_back() {
        assert_eq!(decide(5, 2, 1), Decision::Wait);
        assert_eq!(decide(2, 2, 1), Decision::Wait);
        assert_eq!(decide(1, 2, 1), Decision::Take);
    }

    #[test]
    fn more_than_the_limit_is_never_waited_for() {
        assert_eq!(decide(0, 2, 3), Decision::TooMany);
        assert_eq!(decide(0, 0, 1), Decision::TooMany);
    }

    #[test]
    fn the_limit_is_what_curators_shared_count_writes() {
        assert_eq!(encode_limit(258), [0, 0, 1, 2]);
        for limit in [0, 1, 258, i32::MAX as u32] {
            assert_eq!(parse_limit(&encode_limit(limit)), Some(limit));
        }
        assert_eq!(parse_limit(&encode_limit(u32::MAX)), Some(i32::MAX as u32));
        for data in [&b""[..], b"3", b"\xff\xff\xff\xff", b"12345"] {
            assert_eq!(parse_limit(data), None, "{data:?}");
        }
    }
}
