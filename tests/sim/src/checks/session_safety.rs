//! I19 session safety, the leader's part (P32): before it ends a session by its clock, a majority has answered a ping that
//! left after the session's deadline, and so has the server that holds the session's connection, if it follows. What
//! they had heard by then, the leader has heard.

use std::collections::BTreeMap;

use corral_core::zab::io::Status;
use corral_core::zab::message::Message;
use corral_proto::{ServerId, SessionId};

use super::{Check, Ghost, ensure};
use crate::schedule::{MS, Micros};

/// A leader's process in one of its epochs.
pub(super) type Leadership = (u64, u32);

/// See the module.
#[derive(Default)]
pub(super) struct Rounds {
    /// When each ping of a leadership left.
    pings: BTreeMap<Leadership, BTreeMap<u64, Micros>>,
    /// When each leadership knew all sessions, and gave each its time from then on (P30).
    begun: BTreeMap<Leadership, Micros>,
    /// The latest ping that each server has answered, as the leader knows.
    pongs: BTreeMap<(Leadership, ServerId), u64>,
}

impl Rounds {
    /// A leader's message leaves.
    pub(super) fn on_send(&mut self, process: u64, message: &Message, now: Micros) {
        if let Message::Ping { epoch, seq, .. } = message {
            self.pings.entry((process, *epoch)).or_default().entry(*seq).or_insert(now);
        }
    }

    /// A leader is about to learn of all sessions.
    pub(super) fn on_sessions(&mut self, process: u64, epoch: u32, now: Micros) {
        self.begun.insert((process, epoch), now);
    }

    /// A pong is about to be taken in by a leader.
    pub(super) fn on_pong(&mut self, process: u64, epoch: u32, peer: ServerId, seq: u64) {
        let latest = self.pongs.entry(((process, epoch), peer)).or_default();
        *latest = (*latest).max(seq);
    }

    /// When the latest ping left that this server has answered.
    pub(super) fn asked(&self, leadership: Leadership, server: ServerId) -> Option<Micros> {
        let seq = self.pongs.get(&(leadership, server))?;
        self.pings.get(&leadership)?.get(seq).copied()
    }

    /// A leader ends a session by its clock. `heard`: when it last heard of it, if ever; `holder`: who holds it.
    #[expect(clippy::too_many_arguments, reason = "what is known of one decision")]
    pub(super) fn on_expiry(
        &self,
        ghost: &Ghost,
        process: u64,
        status: &Status,
        session: SessionId,
        holder: Option<ServerId>,
        heard: Option<Micros>,
        timeout: Micros,
    ) -> Check {
        const NAME: &str = "I19 session safety";
        let leadership = (process, status.epoch);
        // Whoever was never heard of has a full timeout from when the leader learned of it, at the latest.
        let begun = self.begun.get(&leadership).copied();
        // Servers count whole milliseconds.
        let deadline = heard.max(begun).unwrap_or_default() / MS * MS + timeout;
        let answered = |server: ServerId| self.asked(leadership, server).is_some_and(|asked| asked >= deadline);
        let own = 1;
        let others = ghost.servers().filter(|(id, s)| s.voter && answered(*id)).count();
        ensure!(
            own + others >= ghost.majority(),
            NAME,
            "process {process} ends {session:?}, heard of at {heard:?} us, due at {deadline} us, {others} others were asked since; \
             each was asked last at {:?}",
            ghost.servers().map(|(id, _)| (id, self.asked(leadership, id))).collect::<Vec<_>>()
        );
        let holder = status.learners.iter().find(|(id, _, up_to_date)| *up_to_date && Some(*id) == holder);
        ensure!(
            holder.is_none_or(|(id, ..)| answered(*id)),
            NAME,
            "process {process} ends {session:?}, which was due at {} ms; {holder:?}, which holds it, was not asked since",
            deadline / MS
        );
        Ok(())
    }
}
