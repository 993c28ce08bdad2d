//! The omniscient observer: what must hold of all servers together (docs/rules.md). Nothing here is known to the
//! servers. One file a property, with the paper's names; [`Checks`] is told what happens and asks each of them.

mod ack_honesty;
mod apply_discipline;
mod commit_honesty;
mod committed_never_lost;
pub(crate) mod election;
mod ghost;
mod integrity;
pub(crate) mod no_ghost_message;
mod primary_integrity;
mod primary_order;
mod promise;
mod read_point;
mod recovery;
mod session_safety;
mod snapshot;
mod total_order;
pub(crate) mod trees;
mod truncation_safety;
mod unique_establishment;
mod watermark;

use bytes::Bytes;
use corral_core::zab::io::{Entry, LogOp, Membership, Position, Promise, Recovered, SnapshotMeta, Status};
use corral_core::zab::message::Message;
use corral_proto::{ServerId, SessionId, Zxid};

use crate::schedule::Micros;

pub use ghost::{Ghost, LogImage, Proposal, ServerGhost};

/// A property that does not hold.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Number and name, as in docs/rules.md.
    pub invariant: &'static str,
    /// What was seen.
    pub text: String,
}

/// Whether a property holds.
pub type Check = Result<(), Violation>;

/// Ends a check with a violation unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $invariant:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::checks::Violation { invariant: $invariant, text: format!($($text)+) });
        }
    };
}
pub(crate) use ensure;

/// All checks, and what they remember.
pub struct Checks {
    /// The true state of the ensemble.
    pub ghost: Ghost,
    rounds: session_safety::Rounds,
    questions: read_point::Questions,
    trees: trees::Trees,
}

impl Checks {
    /// Nothing has happened. Servers 1 to `voters` vote, `observers` more only learn.
    pub fn new(voters: u64, observers: u64) -> Checks {
        Checks {
            ghost: Ghost::new(voters, observers),
            rounds: Default::default(),
            questions: Default::default(),
            trees: Default::default(),
        }
    }

    /// A process began with what it found on disk, which was damaged before if `spoiled`.
    pub fn on_recovered(&mut self, server: ServerId, recovered: &Recovered, spoiled: bool) -> Check {
        match spoiled {
            false => recovery::on_recovered(&mut self.ghost, server, recovered)?,
            true => recovery::on_recovered_from_damage(&mut self.ghost, server, recovered)?,
        }
        promise::remember(&mut self.ghost, server);
        apply_discipline::on_recovered(&mut self.ghost, server, recovered)?;
        committed_never_lost::check(&self.ghost)
    }

    /// A process ended without warning.
    pub fn on_crash(&mut self, server: ServerId) {
        self.ghost.server_mut(server).on_crash();
    }

    /// A data folder was lost: nothing is on that disk any more.
    pub fn on_wiped(&mut self, server: ServerId) -> Check {
        self.ghost.server_mut(server).on_wiped();
        committed_never_lost::check(&self.ghost)
    }

    /// An old copy of a folder was put back.
    pub fn on_restored(&mut self, server: ServerId, old: ServerGhost) {
        *self.ghost.server_mut(server) = old;
    }

    /// A server was told that its folder is outdated, and made itself amnesiac.
    pub fn on_condemned(&mut self, server: ServerId) {
        let ghost = self.ghost.server_mut(server);
        ghost.outdated = false;
        if let Some(identity) = &mut ghost.identity {
            identity.membership = Membership::Amnesiac;
        }
    }

    /// A step gave an operation to the log writer. `status` is the machine's after the step.
    pub fn on_submit(&mut self, server: ServerId, process: u64, seq: u64, op: &LogOp, status: &Status) -> Check {
        let ghost = &mut self.ghost;
        match op {
            LogOp::Append(entries) => {
                for entry in entries {
                    self::primary_order::on_append(ghost, server, entry)?;
                    if ghost.is_proposal(status, entry) {
                        unique_establishment::on_propose(ghost, server, process, entry)?;
                        primary_integrity::on_propose(ghost, server, entry)?;
                    }
                    integrity::on_append(ghost, server, entry, status)?;
                    ghost.server_mut(server).mem.append(Position { zxid: entry.zxid, hash: entry.hash });
                }
            }
            LogOp::Truncate { to } => {
                truncation_safety::on_truncate(ghost, server, *to)?;
                ghost.server_mut(server).mem.truncate(to.zxid);
            }
            LogOp::SetPromise(promise) => promise::on_submit(ghost, server, promise)?,
            LogOp::SetIdentity(_) => {}
            LogOp::InstallSnapshot(meta) => {
                snapshot::on_install(ghost, server, meta)?;
                ghost.server_mut(server).mem = LogImage::from_base(meta.position);
            }
        }
        ghost.server_mut(server).pending.push_back((seq, op.clone()));
        Ok(())
    }

    /// Operations up to `seq` are durable (whether or not the machine knows).
    pub fn on_durable(&mut self, server: ServerId, seq: u64) -> Check {
        let mut shrunk = false;
        let before = self.ghost.server(server).promise;
        while let Some((_, op)) = self.ghost.server_mut(server).pending.pop_front_if(|(s, _)| *s <= seq) {
            shrunk |= !matches!(op, LogOp::Append(_) | LogOp::SetPromise(_));
            promise::on_durable(&self.ghost, server, &op)?;
            self.ghost.server_mut(server).make_durable(&op);
        }
        if self.ghost.server(server).promise != before {
            promise::remember(&mut self.ghost, server);
        }
        if shrunk { committed_never_lost::check(&self.ghost) } else { Ok(()) }
    }

    /// A leader sends a snapshot to somebody who follows it.
    pub fn on_snapshot_offered(&self, leader: ServerId, learner: ServerId, meta: &SnapshotMeta) -> Check {
        snapshot::on_offered(&self.ghost, leader, learner, meta)
    }

    /// A server says durably that it remembers everything that matters (again). `leading`: the promises to themselves of
    /// those who lead, or gather promises.
    pub fn on_member_again(&self, server: ServerId, leading: &[Promise]) -> Check {
        promise::on_member_again(&self.ghost, server, leading)
    }

    /// The log writer begins to drop what is at or below `upto`.
    pub fn on_trim_begins(&mut self, server: ServerId, upto: Zxid) {
        let ghost = self.ghost.server_mut(server);
        ghost.trimming = ghost.trimming.max(upto);
    }

    /// The log dropped what is at or below `base`.
    pub fn on_trimmed(&mut self, server: ServerId, base: Position) -> Check {
        truncation_safety::on_trim(&self.ghost, server, base)?;
        let ghost = self.ghost.server_mut(server);
        ghost.disk.trim(base);
        ghost.mem.trim(base);
        committed_never_lost::check(&self.ghost)
    }

    /// A message leaves. `before` and `after` are the machine's status around the step.
    pub fn on_send(
        &mut self,
        server: ServerId,
        peer: ServerId,
        message: &Message,
        before: &Status,
        after: &Status,
    ) -> Check {
        no_ghost_message::on_send(server, message, before, after)?;
        ack_honesty::on_send(&self.ghost, server, message)?;
        promise::on_send(&mut self.ghost, server, peer, message)
    }

    /// A message of a leader's process leaves.
    pub fn on_ping(&mut self, process: u64, message: &Message, now: Micros) {
        self.rounds.on_send(process, message, now);
    }

    /// A leader's process takes in the table of sessions.
    pub fn on_sessions(&mut self, process: u64, epoch: u32, now: Micros) {
        self.rounds.on_sessions(process, epoch, now);
    }

    /// A leader's process takes in a pong.
    pub fn on_pong(&mut self, process: u64, epoch: u32, peer: ServerId, seq: u64) {
        self.rounds.on_pong(process, epoch, peer, seq);
    }

    /// A process takes in the question for a read point, of its own clients or of a peer.
    pub fn on_question(&mut self, process: u64, asker: Option<ServerId>, tag: u64, now: Micros) {
        self.questions.on_asked(&self.ghost, process, asker, tag, now);
    }

    /// A leader's process names a read point of one of its epochs to its own clients or to a peer.
    pub fn on_read_point(&self, leadership: (u64, u32), asker: Option<ServerId>, tag: u64, point: Zxid) -> Check {
        self.questions.on_named((&self.ghost, &self.rounds), leadership, (asker, tag), point)
    }

    /// A leader's process ends a session by its clock.
    pub fn on_expiry(
        &self,
        process: u64,
        status: &Status,
        session: SessionId,
        holder: Option<ServerId>,
        heard: Option<Micros>,
        timeout: Micros,
    ) -> Check {
        self.rounds.on_expiry(&self.ghost, process, status, session, holder, heard, timeout)
    }

    /// A process has a tree with this digest at an entry; `epoch`: of its leadership, if it leads.
    pub fn on_own_digest(&mut self, server: ServerId, process: u64, epoch: Option<u32>, digest: (Zxid, u64)) {
        self.trees.on_own(&self.ghost, (server, process), epoch, digest.0, digest.1);
    }

    /// The tree of a process was replaced.
    pub fn on_tree_replaced(&mut self, process: u64) {
        self.trees.on_opened(process);
    }

    /// A leader's process is told the digest of a peer's tree.
    pub fn on_told_digest(&mut self, leader: ServerId, leadership: (u64, u32), peer: ServerId, digest: (Zxid, u64)) {
        self.trees.on_told(&self.ghost, leader, leadership, peer, digest);
    }

    /// A leader's process is told what a learner knows of trees that differ.
    pub fn on_doubt_told(&mut self, leadership: (u64, u32), doubt: Zxid) {
        self.trees.on_doubt_told(leadership, doubt);
    }

    /// A step is over: what its process knows of trees that differ. `leader`: the process of its leader. Whether it is news.
    pub fn on_doubt(
        &mut self,
        process: u64,
        leader: Option<u64>,
        now: Micros,
        before: &Status,
        status: &Status,
    ) -> bool {
        self.trees.on_status(process, leader, now, before, status)
    }

    /// A leader's process offers a snapshot.
    pub fn on_tree_offered(&self, leadership: (u64, u32), now: Micros, patience: Micros) -> Check {
        self.trees.on_offered(leadership, now, patience)
    }

    /// A step is over.
    pub fn on_status(&mut self, server: ServerId, before: &Status, status: &Status) -> Check {
        commit_honesty::on_status(&mut self.ghost, server, before, status)?;
        watermark::on_status(&mut self.ghost, server, status)
    }

    /// Entries are handed out for execution.
    pub fn on_apply(&mut self, server: ServerId, entries: &[Entry], status: &Status) -> Check {
        for entry in entries {
            apply_discipline::on_apply(&mut self.ghost, server, entry, status)?;
            total_order::on_apply(&self.ghost, server, entry)?;
        }
        Ok(())
    }

    /// A store contains everything up to `position`, and would contain `persisted` after a crash.
    pub fn on_executed(&mut self, server: ServerId, position: Position, persisted: Zxid) -> Check {
        apply_discipline::on_executed(&mut self.ghost, server, position, persisted)
    }

    /// A store was replaced by a snapshot.
    pub fn on_opened(&mut self, server: ServerId, position: Position) -> Check {
        snapshot::on_opened(&mut self.ghost, server, position)
    }

    /// A snapshot was made of a store.
    pub fn on_snapshot(&mut self, server: ServerId, position: Position) -> Check {
        snapshot::on_made(&self.ghost, server, position)
    }
}

/// What one committed entry is, for those who replay the log.
#[derive(Clone, Debug)]
pub struct CommittedEntry {
    /// Its place.
    pub position: Position,
    /// The leader's clock, ms.
    pub stamp_ms: i64,
    /// What it carries.
    pub payload: Bytes,
}

/// What a server's folder is worth after a crash now.
pub fn votes(membership: Membership) -> bool {
    membership == Membership::Member
}

/// A promise that was never given.
pub const NO_PROMISE: Promise = Promise { epoch: 0, leader: ServerId(0), instance: 0, start_count: 0 };
