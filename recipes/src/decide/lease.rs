//! Whose a timed lease is, by the server's clock.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the name of a tenure's znode begins with.
pub const TENURE: &str = "tenure-";
/// Name of the znode that tells the server's time: its `mtime` after a write.
pub const CLOCK: &str = "clock";

/// What a tenure's znode says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Whose.
    pub owner: String,
    /// How long after its last renewal it ends, in ms.
    pub ttl_ms: u64,
}

impl Terms {
    /// The terms in a znode's data.
    pub fn parse(data: &[u8]) -> Option<Terms> {
        serde_json::from_slice(data).ok()
    }

    /// The znode's data.
    pub fn encode(&self) -> String {
        serde_json::json!({ "owner": self.owner, "ttl_ms": self.ttl_ms }).to_string()
    }
}

/// A tenure as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenancy {
    /// Its terms; `None`: they cannot be read, so it never ends by itself.
    pub terms: Option<Terms>,
    /// Its last renewal: server time, ms.
    pub renewed_at_ms: i64,
}

/// What one who wants the lease does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take it: nobody has it.
    Take,
    /// Renew it: it is its own, from before.
    Resume,
    /// Take it over, if it was not renewed meanwhile.
    TakeOver,
    /// Ask for the server's time: it may have ended.
    AskTime,
    /// Look again after so long, or when the tenure changes.
    Wait(Option<Duration>),
}

/// The next step of `owner`, who read `tenancy`, and then (if it asked) the server's time.
pub fn step(owner: &str, tenancy: Option<&Tenancy>, now_ms: Option<i64>) -> Step {
    let Some(tenancy) = tenancy else { return Step::Take };
    let Some(terms) = &tenancy.terms else { return Step::Wait(None) };
    if terms.owner == owner {
        return Step::Resume;
    }
    let Some(now_ms) = now_ms else { return Step::AskTime };
    let ends_at_ms = tenancy.renewed_at_ms.saturating_add(i64::try_from(terms.ttl_ms).unwrap_or(i64::MAX));
    match u64::try_from(ends_at_ms.saturating_sub(now_ms)) {
        Ok(left_ms) if left_ms > 0 => Step::Wait(Some(Duration::from_millis(left_ms))),
        _ => Step::TakeOver,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(owner: &str, renewed_at_ms: i64) -> Tenancy {
        Tenancy { terms: Some(Terms { owner: owner.into(), ttl_ms: 1_000 }), renewed_at_ms }
    }

    #[test]
    fn terms_come_back_as_they_were_written() {
        let terms = Terms { owner: "a \"b\"".into(), ttl_ms: 5 };
        assert_eq!(Terms::parse(terms.encode().as_bytes()), Some(terms));
        assert_eq!(Terms::parse(b"a"), None);
    }

    #[test]
    fn a_free_lease_is_taken_and_an_own_one_resumed_without_asking_the_time() {
        assert_eq!(step("a", None, None), Step::Take);
        assert_eq!(step("a", Some(&of("a", 0)), None), Step::Resume);
    }

    #[test]
    fn anothers_is_taken_over_when_the_servers_clock_says_so_and_not_before() {
        let others = of("b", 10_000);
        assert_eq!(step("a", Some(&others), None), Step::AskTime);
        assert_eq!(step("a", Some(&others), Some(10_001)), Step::Wait(Some(Duration::from_millis(999))));
        assert_eq!(step("a", Some(&others), Some(10_999)), Step::Wait(Some(Duration::from_millis(1))));
        assert_eq!(step("a", Some(&others), Some(11_000)), Step::TakeOver);
    }

    #[test]
    fn a_clock_that_went_back_makes_it_longer_and_never_shorter() {
        assert_eq!(step("a", Some(&of("b", 10_000)), Some(9_000)), Step::Wait(Some(Duration::from_secs(2))));
        let forever = Tenancy { terms: Some(Terms { owner: "b".into(), ttl_ms: u64::MAX }), renewed_at_ms: 5 };
        assert!(matches!(step("a", Some(&forever), Some(6)), Step::Wait(Some(_))));
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_over() {
        assert_eq!(step("a", Some(&Tenancy { terms: None, renewed_at_ms: 0 }), Some(99)), Step::Wait(None));
    }
}
