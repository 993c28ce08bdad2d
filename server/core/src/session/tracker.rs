//! Expiry of sessions, on the leader only (P26, P32).
//!
//! A deadline that passes does not end a session. It begins a question: a ping round that starts now must be
//! answered by a majority, and by the server that holds the session's connection if that can be reached; only if no
//! answer brings a touch of the session, its end is proposed. So a leader that was paused, slow or cut off cannot
//! expire anybody: it gets no majority, and the protocol machine tells it first that it leads no more.
//!
//! Deadlines are rounded up to buckets of [`BUCKET_MS`], and lie later by the time for which a server may keep a touch to
//! itself: late, never early.

use std::collections::{BTreeMap, BTreeSet};

use corral_proto::{ServerId, SessionId, Zxid};

use crate::zoo::{self, Switch};

/// Width of a bucket of deadlines, ms.
pub const BUCKET_MS: u64 = 250;

#[derive(Clone, Debug)]
struct Tracked {
    timeout_ms: u64,
    /// The bucket it is in; `None` while its end is being asked for or proposed.
    bucket: Option<u64>,
    attach: Zxid,
    server: ServerId,
    doubt: Doubt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    /// Alive as far as we know.
    None,
    /// Its deadline passed; no round asks for it yet.
    Due,
    /// This round asks for it.
    Asked(u64),
    /// Its end is proposed.
    Closing,
}

/// What the tracker wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Begin a round that includes these servers.
    Confirm {
        /// Comes back in [`Tracker::on_confirmed`].
        tag: u64,
        /// Servers that hold the sessions in doubt.
        include: Vec<ServerId>,
    },
    /// Propose the end of this session, as attached there.
    Expire {
        /// Which.
        session: SessionId,
        /// The attach seen; execution drops the proposal if the session has moved since.
        attach: Zxid,
    },
}

/// Deadlines of all sessions. Empty and idle unless this server leads.
#[derive(Debug, Default)]
pub struct Tracker {
    running: bool,
    /// Added to every timeout, ms.
    slack_ms: u64,
    sessions: BTreeMap<SessionId, Tracked>,
    buckets: BTreeMap<u64, BTreeSet<SessionId>>,
    due: BTreeSet<SessionId>,
    round: Option<u64>,
    next_tag: u64,
}

impl Tracker {
    /// A tracker that knows of touches up to `slack_ms` later than the clients were heard.
    pub fn new(slack_ms: u64) -> Tracker {
        Tracker { slack_ms, ..Tracker::default() }
    }

    /// This server leads: every session gets a full timeout from now.
    pub fn start(&mut self, now_ms: u64, sessions: impl IntoIterator<Item = (SessionId, i32, Zxid, ServerId)>) {
        self.stop();
        self.running = true;
        for (session, timeout_ms, attach, server) in sessions {
            self.attached(now_ms, session, timeout_ms, attach, server);
        }
    }

    /// This server leads no more: nobody expires.
    pub fn stop(&mut self) {
        *self = Tracker { next_tag: self.next_tag, ..Tracker::new(self.slack_ms) };
    }

    /// A session began or moved.
    pub fn attached(&mut self, now_ms: u64, session: SessionId, timeout_ms: i32, attach: Zxid, server: ServerId) {
        if !self.running {
            return;
        }
        self.remove(session);
        let timeout_ms = timeout_ms.max(0) as u64;
        self.sessions.insert(session, Tracked { timeout_ms, bucket: None, attach, server, doubt: Doubt::None });
        self.touch(now_ms, session);
    }

    /// A session is over.
    pub fn closed(&mut self, session: SessionId) {
        self.remove(session);
    }

    /// The client of a session was heard.
    pub fn touch(&mut self, now_ms: u64, session: SessionId) {
        let Some(tracked) = self.sessions.get_mut(&session) else { return };
        let bucket = (now_ms + tracked.timeout_ms + self.slack_ms) / BUCKET_MS + 1;
        if tracked.bucket == Some(bucket) {
            return;
        }
        if let Some(old) = tracked.bucket.replace(bucket) {
            take_out(&mut self.buckets, old, session);
        }
        // A proposed end stays proposed; if it was dropped at execution the new deadline begins another question.
        tracked.doubt = Doubt::None;
        self.due.remove(&session);
        self.buckets.entry(bucket).or_default().insert(session);
    }

    /// Time passed.
    pub fn tick(&mut self, now_ms: u64, wishes: &mut Vec<Wish>) {
        let bucket_now = now_ms / BUCKET_MS;
        while let Some(first) = self.buckets.first_entry() {
            if *first.key() > bucket_now {
                break;
            }
            for session in first.remove() {
                let tracked = self.sessions.get_mut(&session).expect("every session in a bucket is tracked");
                tracked.bucket = None;
                tracked.doubt = Doubt::Due;
                self.due.insert(session);
            }
        }
        if self.round.is_none() && !self.due.is_empty() {
            self.next_tag += 1;
            let tag = self.next_tag;
            let mut include = BTreeSet::new();
            for session in std::mem::take(&mut self.due) {
                let tracked = self.sessions.get_mut(&session).expect("every session that is due is tracked");
                tracked.doubt = Doubt::Asked(tag);
                include.insert(tracked.server);
            }
            self.round = Some(tag);
            if zoo::broken(Switch::ExpiryAfterPause) {
                return self.on_confirmed(tag, wishes);
            }
            wishes.push(Wish::Confirm { tag, include: include.into_iter().collect() });
        }
    }

    /// A round that was asked for is answered; the touches it brought were given to [`Tracker::touch`] before.
    pub fn on_confirmed(&mut self, tag: u64, wishes: &mut Vec<Wish>) {
        if self.round != Some(tag) {
            return;
        }
        self.round = None;
        for (session, tracked) in &mut self.sessions {
            if tracked.doubt == Doubt::Asked(tag) {
                tracked.doubt = Doubt::Closing;
                wishes.push(Wish::Expire { session: *session, attach: tracked.attach });
            }
        }
    }

    /// Sessions by the time at which they are asked for unless they are heard, ms on the clock of
    /// [`Tracker::touch`], ascending. Sessions in doubt are not among them. Empty unless this server leads.
    pub fn deadlines(&self) -> Vec<(u64, Vec<SessionId>)> {
        self.buckets.iter().map(|(bucket, sessions)| (bucket * BUCKET_MS, sessions.iter().copied().collect())).collect()
    }

    /// Sessions that are tracked.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether nothing is tracked.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    fn remove(&mut self, session: SessionId) {
        if let Some(tracked) = self.sessions.remove(&session) {
            if let Some(bucket) = tracked.bucket {
                take_out(&mut self.buckets, bucket, session);
            }
            self.due.remove(&session);
        }
    }
}

fn take_out(buckets: &mut BTreeMap<u64, BTreeSet<SessionId>>, bucket: u64, session: SessionId) {
    if let Some(set) = buckets.get_mut(&bucket) {
        set.remove(&session);
        if set.is_empty() {
            buckets.remove(&bucket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);

    fn attach(n: u32) -> Zxid {
        Zxid::new(1, n)
    }

    fn tracker() -> Tracker {
        let mut tracker = Tracker::default();
        tracker.start(0, [(A, 1000, attach(1), ServerId(1)), (B, 4000, attach(2), ServerId(2))]);
        tracker
    }

    fn tick(tracker: &mut Tracker, now_ms: u64) -> Vec<Wish> {
        let mut wishes = Vec::new();
        tracker.tick(now_ms, &mut wishes);
        wishes
    }

    fn confirmed(tracker: &mut Tracker, tag: u64) -> Vec<Wish> {
        let mut wishes = Vec::new();
        tracker.on_confirmed(tag, &mut wishes);
        wishes
    }

    #[test]
    fn a_session_ends_only_after_its_timeout_and_an_answered_round() {
        let mut tracker = tracker();
        assert_eq!(tick(&mut tracker, 1000), []);
        assert_eq!(tick(&mut tracker, 1250), [Wish::Confirm { tag: 1, include: vec![ServerId(1)] }]);
        assert_eq!(tick(&mut tracker, 1300), [], "one round at a time");
        assert_eq!(confirmed(&mut tracker, 1), [Wish::Expire { session: A, attach: attach(1) }]);
        assert_eq!(confirmed(&mut tracker, 1), [], "an answer counts once");
    }

    #[test]
    fn deadlines_name_the_sessions_that_are_not_in_doubt() {
        let mut tracker = tracker();
        assert_eq!(tracker.deadlines(), [(1250, vec![A]), (4250, vec![B])]);
        tick(&mut tracker, 1250);
        assert_eq!(tracker.deadlines(), [(4250, vec![B])]);
        tracker.stop();
        assert_eq!(tracker.deadlines(), []);
    }

    #[test]
    fn a_touch_in_the_round_saves_the_session() {
        let mut tracker = tracker();
        tick(&mut tracker, 1250);
        tracker.touch(1260, A);
        assert_eq!(confirmed(&mut tracker, 1), []);
        assert_eq!(tick(&mut tracker, 2200), []);
        assert_eq!(tick(&mut tracker, 2500), [Wish::Confirm { tag: 2, include: vec![ServerId(1)] }]);
    }

    #[test]
    fn a_move_in_the_round_saves_the_session() {
        let mut tracker = tracker();
        tick(&mut tracker, 1250);
        tracker.attached(1260, A, 1000, attach(7), ServerId(2));
        assert_eq!(confirmed(&mut tracker, 1), []);
    }

    #[test]
    fn a_new_leader_gives_every_session_a_full_timeout() {
        let mut tracker = tracker();
        tick(&mut tracker, 1250);
        tracker.start(100_000, [(A, 1000, attach(1), ServerId(1))]);
        assert_eq!(confirmed(&mut tracker, 1), [], "an answer to the former leadership's round means nothing");
        assert_eq!(tick(&mut tracker, 101_000), []);
        assert_eq!(tick(&mut tracker, 101_250).len(), 1);
    }

    #[test]
    fn a_touch_that_was_kept_back_is_allowed_for() {
        let mut tracker = Tracker::new(500);
        tracker.start(0, [(A, 1000, attach(1), ServerId(1))]);
        tracker.touch(100, A);
        // Heard again until 600, and not reported.
        assert_eq!(tick(&mut tracker, 1600), []);
        assert_eq!(tick(&mut tracker, 1750).len(), 1);
        tracker.stop();
        tracker.start(2000, [(A, 1000, attach(1), ServerId(1))]);
        assert_eq!(tick(&mut tracker, 3500), [], "also under the next leadership");
    }

    #[test]
    fn nobody_expires_while_this_server_does_not_lead() {
        let mut tracker = tracker();
        tracker.stop();
        tracker.attached(0, A, 1000, attach(1), ServerId(1));
        assert_eq!(tick(&mut tracker, 1_000_000), []);
    }

    #[test]
    fn sessions_that_fall_due_during_a_round_are_asked_for_in_the_next() {
        let mut tracker = tracker();
        tick(&mut tracker, 1250);
        assert_eq!(tick(&mut tracker, 4250), []);
        confirmed(&mut tracker, 1);
        assert_eq!(tick(&mut tracker, 4300), [Wish::Confirm { tag: 2, include: vec![ServerId(2)] }]);
    }
}
