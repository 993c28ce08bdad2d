//! Sessions that one server alone knows (`localSessionsEnabled`, wire 8.7).
//!
//! They cost no entry: who they are, when they end and what they have on its way is here, in memory, and goes with the
//! process. Their writes are entries, and get their place from the server's [carrier](super::carrier).
//!
//! A session is taken up again on its server only, and only once everything its former connection had handed in is
//! decided: so nothing an older connection sent takes effect afterwards (P29), as an attach does for other sessions.

use std::collections::{BTreeMap, BTreeSet};

use corral_proto::SessionId;

use crate::watch::WatcherId;

/// Local sessions of one server, connected or not.
pub const LOCAL_SESSIONS_MAX: usize = 1_000_000;

#[derive(Clone, Copy, Debug)]
struct Local {
    timeout_ms: i32,
    heard_ms: u64,
    /// Where it stands among the deadlines; the true one may be later.
    deadline_ms: u64,
    /// Its connection, or its last.
    connection: WatcherId,
    /// Number of its last write.
    last_n: u64,
    /// Writes handed in and not yet decided.
    pending: u64,
}

/// See the module. Times are the server's monotonic clock, ms.
#[derive(Debug, Default)]
pub struct LocalSessions {
    /// Touches may be kept back for so long, ms: sessions end late, never early.
    slack_ms: u64,
    sessions: BTreeMap<SessionId, Local>,
    deadlines: BTreeSet<(u64, SessionId)>,
}

impl LocalSessions {
    /// For a server that may learn of a client up to `slack_ms` later than the client was heard.
    pub fn new(slack_ms: u64) -> LocalSessions {
        LocalSessions { slack_ms, ..LocalSessions::default() }
    }

    /// A new session; false if there are too many, or this one is there.
    pub fn open(&mut self, now_ms: u64, session: SessionId, timeout_ms: i32, connection: WatcherId) -> bool {
        if self.sessions.len() >= LOCAL_SESSIONS_MAX || self.sessions.contains_key(&session) {
            return false;
        }
        let deadline_ms = now_ms + self.span(timeout_ms);
        let local = Local { timeout_ms, heard_ms: now_ms, deadline_ms, connection, last_n: 0, pending: 0 };
        self.sessions.insert(session, local);
        self.deadlines.insert((deadline_ms, session));
        true
    }

    /// The session has another connection from now on, with another timeout; false if there is no such session. Nothing
    /// more is taken from the former connection.
    pub fn attach(&mut self, now_ms: u64, session: SessionId, timeout_ms: i32, connection: WatcherId) -> bool {
        let span = self.span(timeout_ms);
        let Some(local) = self.sessions.get_mut(&session) else { return false };
        (local.timeout_ms, local.heard_ms, local.connection) = (timeout_ms, now_ms, connection);
        // The timeout may have become shorter.
        self.deadlines.remove(&(local.deadline_ms, session));
        local.deadline_ms = now_ms + span;
        self.deadlines.insert((local.deadline_ms, session));
        true
    }

    /// The client was heard.
    pub fn touch(&mut self, now_ms: u64, session: SessionId) {
        if let Some(local) = self.sessions.get_mut(&session) {
            local.heard_ms = local.heard_ms.max(now_ms);
        }
    }

    /// Every client gets a full timeout from now: none could be heard for a while.
    pub fn touch_all(&mut self, now_ms: u64) {
        for local in self.sessions.values_mut() {
            local.heard_ms = local.heard_ms.max(now_ms);
        }
    }

    /// The number of the next write; `None` if this is not the session's connection any more.
    pub fn number(&mut self, session: SessionId, connection: WatcherId) -> Option<u64> {
        let local = self.sessions.get_mut(&session).filter(|local| local.connection == connection)?;
        local.last_n += 1;
        local.pending += 1;
        Some(local.last_n)
    }

    /// The number given out last is not used.
    pub fn unnumber(&mut self, session: SessionId) {
        if let Some(local) = self.sessions.get_mut(&session) {
            local.last_n = local.last_n.saturating_sub(1);
            local.pending = local.pending.saturating_sub(1);
        }
    }

    /// A write was executed.
    pub fn decided(&mut self, session: SessionId) {
        if let Some(local) = self.sessions.get_mut(&session) {
            local.pending = local.pending.saturating_sub(1);
        }
    }

    /// Whether everything that was handed in is decided; `None` if there is no such session.
    pub fn is_settled(&self, session: SessionId) -> Option<bool> {
        self.sessions.get(&session).map(|local| local.pending == 0)
    }

    /// Whether this server alone knows the session.
    pub fn contains(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }

    /// Number of the session's last write.
    pub fn last_n(&self, session: SessionId) -> u64 {
        self.sessions.get(&session).map_or(0, |local| local.last_n)
    }

    /// The session is over, or known to all from now on; false if it was not here.
    pub fn remove(&mut self, session: SessionId) -> bool {
        let removed = self.sessions.remove(&session);
        if let Some(local) = removed {
            self.deadlines.remove(&(local.deadline_ms, session));
        }
        removed.is_some()
    }

    /// The client ended it by this connection; false if the session is over, or has another connection.
    pub fn close(&mut self, session: SessionId, connection: WatcherId) -> bool {
        self.sessions.get(&session).is_some_and(|local| local.connection == connection) && self.remove(session)
    }

    /// Ends the sessions whose clients were not heard for their timeout, and names them.
    pub fn expire(&mut self, now_ms: u64) -> Vec<SessionId> {
        let mut expired = Vec::new();
        while let Some(&(deadline_ms, session)) = self.deadlines.first()
            && deadline_ms <= now_ms
        {
            self.deadlines.pop_first();
            let Some(timeout_ms) = self.sessions.get(&session).map(|local| local.timeout_ms) else { continue };
            let span = self.span(timeout_ms);
            let Some(local) = self.sessions.get_mut(&session) else { continue };
            local.deadline_ms = local.heard_ms + span;
            if local.deadline_ms <= now_ms {
                self.sessions.remove(&session);
                expired.push(session);
            } else {
                self.deadlines.insert((local.deadline_ms, session));
            }
        }
        expired
    }

    /// All end: the state of this server is being replaced.
    pub fn clear(&mut self) {
        self.sessions.clear();
        self.deadlines.clear();
    }

    /// Number of sessions.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Sessions by the time at which they end unless they are heard, rounded up to `bucket_ms`, ascending.
    pub fn deadlines(&self, bucket_ms: u64) -> Vec<(u64, Vec<SessionId>)> {
        let bucket_ms = bucket_ms.max(1);
        let mut buckets: BTreeMap<u64, Vec<SessionId>> = BTreeMap::new();
        for (session, local) in &self.sessions {
            let ends_ms = local.heard_ms + self.span(local.timeout_ms);
            buckets.entry(ends_ms.div_ceil(bucket_ms) * bucket_ms).or_default().push(*session);
        }
        buckets.into_iter().collect()
    }

    fn span(&self, timeout_ms: i32) -> u64 {
        u64::try_from(timeout_ms).unwrap_or(0) + self.slack_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);
    const FIRST: WatcherId = WatcherId(10);
    const SECOND: WatcherId = WatcherId(11);

    fn sessions() -> LocalSessions {
        let mut sessions = LocalSessions::new(100);
        assert!(sessions.open(0, A, 1_000, FIRST));
        assert!(sessions.open(0, B, 4_000, FIRST));
        sessions
    }

    #[test]
    fn a_session_ends_after_its_timeout_and_what_may_have_been_kept_back() {
        let mut sessions = sessions();
        assert_eq!(sessions.expire(1_099), []);
        assert_eq!(sessions.expire(1_100), [A]);
        assert_eq!(sessions.expire(1_100), []);
        assert!(!sessions.contains(A) && sessions.contains(B));
        assert!(!sessions.attach(1_200, A, 1_000, SECOND), "it is gone");
    }

    #[test]
    fn a_client_that_is_heard_lives_on() {
        let mut sessions = sessions();
        sessions.touch(900, A);
        assert_eq!(sessions.expire(1_999), []);
        assert_eq!(sessions.expire(2_000), [A]);
        sessions.touch_all(4_000);
        assert_eq!(sessions.expire(8_099), []);
        assert_eq!(sessions.deadlines(1_000), [(9_000, vec![B])]);
        assert_eq!(sessions.expire(8_100), [B]);
        assert!(sessions.is_empty() && sessions.deadlines(1).is_empty());
    }

    #[test]
    fn a_shorter_timeout_counts_from_the_new_connection() {
        let mut sessions = sessions();
        assert!(sessions.attach(100, B, 500, SECOND));
        assert_eq!(sessions.expire(699), []);
        assert_eq!(sessions.expire(700), [B]);
    }

    #[test]
    fn the_former_connection_gets_no_number_and_what_it_had_must_be_decided() {
        let mut sessions = sessions();
        assert_eq!((sessions.number(A, FIRST), sessions.number(A, FIRST)), (Some(1), Some(2)));
        assert!(sessions.attach(10, A, 1_000, SECOND));
        assert_eq!(sessions.number(A, FIRST), None);
        assert_eq!(sessions.is_settled(A), Some(false));
        sessions.decided(A);
        sessions.decided(A);
        assert_eq!(sessions.is_settled(A), Some(true));
        assert_eq!((sessions.last_n(A), sessions.number(A, SECOND)), (2, Some(3)));
        sessions.unnumber(A);
        assert_eq!((sessions.is_settled(A), sessions.number(A, SECOND)), (Some(true), Some(3)));
        assert!(!sessions.close(A, FIRST), "the former connection ends nothing");
        assert!(sessions.close(A, SECOND) && !sessions.close(A, SECOND) && !sessions.remove(A));
        assert_eq!((sessions.is_settled(A), sessions.number(A, SECOND)), (None, None));
    }
}
