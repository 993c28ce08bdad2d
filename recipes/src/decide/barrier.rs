//! When a double barrier opens, and in which order its members leave.

/// Name of the znode that says that a round is open.
pub const READY: &str = "ready";

/// What one who enters does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enter {
    /// Go on: the round is open.
    In,
    /// Open it: all are here.
    Open,
    /// Wait for the others.
    Wait,
}

/// The next step of one who enters and sees these names below the barrier. A round that was opened stays open, though members
/// crash or leave.
pub fn enter<'a>(children: impl IntoIterator<Item = &'a str>, wanted: usize) -> Enter {
    let (mut members, mut open) = (0, false);
    for name in children {
        if name == READY {
            open = true;
        } else {
            members += 1;
        }
    }
    if open {
        Enter::In
    } else if members >= wanted {
        Enter::Open
    } else {
        Enter::Wait
    }
}

/// What one who leaves does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leave {
    /// All have left.
    Done,
    /// Delete its own znode, then look again.
    DeleteOwn,
    /// Wait until this one is gone, then look again.
    WaitFor(String),
}

/// The next step of `own`, which sees these names. The lowest stays until all others have gone, and waits for the highest;
/// the others go and wait for the lowest. So each deletion wakes one, or is the last; and a member that crashes has left.
pub fn leave<'a>(children: impl IntoIterator<Item = &'a str>, own: &str) -> Leave {
    let mut members: Vec<&str> = children.into_iter().filter(|name| *name != READY).collect();
    members.sort_unstable();
    match (members.first(), members.last()) {
        (None, _) | (_, None) => Leave::Done,
        (Some(first), Some(last)) if *first == own => {
            if first == last {
                Leave::DeleteOwn
            } else {
                Leave::WaitFor((*last).to_owned())
            }
        }
        (Some(_), Some(_)) if members.contains(&own) => Leave::DeleteOwn,
        (Some(first), Some(_)) => Leave::WaitFor((*first).to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_to_come_opens_and_everybody_goes_in() {
        assert_eq!(enter(["a"], 2), Enter::Wait);
        assert_eq!(enter(["a", "b"], 2), Enter::Open);
        assert_eq!(enter(["a", "b", "c"], 2), Enter::Open);
        assert_eq!(enter(["a", "ready"], 2), Enter::In);
        assert_eq!(enter(["ready"], 2), Enter::In);
    }

    #[test]
    fn members_leave_from_the_top() {
        let wait = |name: &str| Leave::WaitFor(name.into());
        assert_eq!(leave(["b", "a", "c", "ready"], "a"), wait("c"));
        assert_eq!(leave(["b", "a", "c"], "b"), Leave::DeleteOwn);
        assert_eq!(leave(["a", "c"], "b"), wait("a"));
        assert_eq!(leave(["a", "ready"], "a"), Leave::DeleteOwn);
        assert_eq!(leave(["ready"], "a"), Leave::Done);
        assert_eq!(leave([], "a"), Leave::Done);
    }

    /// Members act, and crash, in any order: none is left waiting, and who is done sees nobody in.
    #[test]
    fn however_they_leave_or_crash_all_come_through() {
        const NAMES: [&str; 4] = ["a", "b", "c", "d"];
        for seed in 0..2_000_u64 {
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut draw = |below: usize| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                (random % below as u64) as usize
            };
            let mut present: Vec<&str> = NAMES.to_vec();
            let mut leaving: Vec<&str> = NAMES.to_vec();
            let crashes = NAMES[draw(4)];
            let mut steps = 0;
            while !leaving.is_empty() {
                steps += 1;
                assert!(steps < 1_000, "seed {seed}: {leaving:?} wait for ever among {present:?}");
                if draw(10) == 0 {
                    present.retain(|name| *name != crashes);
                    leaving.retain(|name| *name != crashes);
                    continue;
                }
                let own = leaving[draw(leaving.len())];
                match leave(present.iter().copied(), own) {
                    Leave::Done => {
                        assert!(present.is_empty());
                        leaving.retain(|name| *name != own);
                    }
                    Leave::DeleteOwn => present.retain(|name| *name != own),
                    Leave::WaitFor(other) => assert!(present.contains(&other.as_str()) && other != own),
                }
            }
        }
    }
}
