//! Fast leader election: whom shall we try to follow?
//!
//! Votes are ordered by (durable log end, server id): with (e,0) a real entry, the log's end says everything that
//! ZooKeeper's (currentEpoch, zxid) says. Elections are an oracle only: a wrong answer costs time, never safety, since
//! discovery refuses a leader whose log is not the best of his majority (P7).
//!
//! A round is decided at once when every voter with a live stream has voted in it, else when a winning vote has stood
//! for a quiet while. Servers that lead or follow answer whoever is looking, so a latecomer joins without disturbing.

use std::collections::BTreeMap;

use corral_proto::{ServerId, Zxid};

use super::io::Outputs;
use super::learner::Learning;
use super::message::{Message, Vote, VoterState};
use super::{State, Zab};
use crate::zoo::{self, Switch};

/// First and last pause between two sends of the same vote, ms.
const RESEND_MS: (u64, u64) = (200, 5_000);

/// Looking for a leader.
#[derive(Debug, Default)]
pub(crate) struct Looking {
    /// Whom this server would follow; `None` for those that do not vote.
    proposal: Option<Vote>,
    /// Votes of this round, of servers that are looking too.
    votes: BTreeMap<ServerId, Vote>,
    /// What servers say that lead or follow: their leader, and whether they lead themselves.
    settled: BTreeMap<ServerId, (ServerId, bool)>,
    /// Since when a majority agrees with the proposal.
    winning_since_ms: Option<u64>,
    resend_at_ms: u64,
    resend_after_ms: u64,
}

impl Looking {
    /// The vote to send; `None` if this server has none.
    pub(super) fn message(&self, round: u64) -> Option<Message> {
        // Who does not vote still asks: an empty vote makes the settled ones answer.
        let vote = self.proposal.unwrap_or_default();
        Some(Message::Vote { round, state: VoterState::Looking, vote, epoch: 0 })
    }

    /// The stream to a peer is gone, and with it what it said.
    pub(super) fn forget(&mut self, peer: ServerId) {
        self.votes.remove(&peer);
        self.settled.remove(&peer);
    }
}

/// The order of votes: who holds more, then the larger id.
fn rank(vote: Vote) -> (Zxid, ServerId) {
    if zoo::broken(Switch::LogsNotCompared) {
        return (Zxid::ZERO, vote.leader);
    }
    (vote.zxid, vote.leader)
}

impl Zab {
    /// Begins a round.
    pub(super) fn start_election(&mut self, out: &mut Outputs) {
        self.round += 1;
        self.elections += 1;
        let proposal = self.own_vote();
        let (first, _) = RESEND_MS;
        self.state = State::Looking(Looking {
            proposal,
            resend_at_ms: self.now.mono_ms + first,
            resend_after_ms: first,
            ..Looking::default()
        });
        self.send_votes(out);
    }

    fn own_vote(&self) -> Option<Vote> {
        // While a snapshot is being installed, what is on disk is of the log that goes.
        let durable = if zoo::broken(Switch::VoteFromMemory) { self.log.end().zxid } else { self.durable.zxid };
        let zxid = durable.min(self.log.end().zxid);
        self.is_voting_member().then_some(Vote { leader: self.options.id, zxid })
    }

    fn send_votes(&self, out: &mut Outputs) {
        if let State::Looking(looking) = &self.state
            && let Some(message) = looking.message(self.round)
        {
            self.tell_all(message, out);
        }
    }

    pub(super) fn tick_election(&mut self, out: &mut Outputs) {
        if self.round == 0 {
            self.start_election(out);
            return;
        }
        let now = self.now.mono_ms;
        let own = self.own_vote();
        let State::Looking(looking) = &self.state else { return };
        // Whoever this round is for is gone, or is not who he was: nobody would ever lead by it.
        let lost = looking.proposal.is_some_and(|p| p.leader != self.options.id && !self.is_voting_peer(p.leader));
        if lost && now >= looking.resend_at_ms && !zoo::broken(Switch::WinnerForgotten) {
            self.start_election(out);
            return;
        }
        let State::Looking(looking) = &mut self.state else { return };
        // Appends of a former role may have become durable meanwhile.
        let better = own.is_some_and(|own| looking.proposal.is_none_or(|p| rank(own) > rank(p)));
        if better {
            looking.proposal = own;
            looking.winning_since_ms = None;
        } else if now < looking.resend_at_ms {
            return;
        }
        looking.resend_after_ms = (looking.resend_after_ms * 2).min(RESEND_MS.1);
        looking.resend_at_ms = now + looking.resend_after_ms;
        self.send_votes(out);
    }

    pub(super) fn on_vote(
        &mut self,
        peer: ServerId,
        round: u64,
        state: VoterState,
        vote: Vote,
        _epoch: u32,
        out: &mut Outputs,
    ) {
        let votes = self.is_voting_peer(peer) && vote.leader != ServerId::default();
        let own = self.own_vote();
        match &mut self.state {
            State::Bootstrapping => {}
            State::Looking(looking) => {
                if state != VoterState::Looking {
                    looking.settled.insert(peer, (vote.leader, state == VoterState::Leading));
                    return;
                }
                looking.settled.remove(&peer);
                if !votes {
                    return;
                }
                let mut news = false;
                if round > self.round {
                    self.round = round;
                    looking.votes.clear();
                    looking.winning_since_ms = None;
                    looking.proposal = own;
                    news = true;
                } else if round < self.round {
                    // It is behind: our vote brings it up to this round.
                    if let Some(message) = looking.message(self.round) {
                        self.send(peer, message, out);
                    }
                    return;
                }
                looking.votes.insert(peer, vote);
                if looking.proposal.is_some_and(|p| rank(vote) > rank(p)) {
                    looking.proposal = Some(vote);
                    looking.winning_since_ms = None;
                    news = true;
                }
                if news {
                    self.send_votes(out);
                }
            }
            State::Learning(learning) => {
                // The leader looks around or follows somebody: it leads no more. Before it has named an epoch it may
                // still be counting the very votes that made it leader.
                if peer == learning.leader && state != VoterState::Leading {
                    if learning.epoch != 0 || vote.leader != peer {
                        self.look("the leader stopped leading", out);
                    }
                } else if state == VoterState::Looking {
                    self.send_settled(peer, out);
                }
            }
            State::Leading(_) => {
                if state == VoterState::Looking {
                    self.send_settled(peer, out);
                }
            }
        }
    }

    /// Tells everybody whom this server follows, now that it serves: whoever still looks need not ask again, which it does
    /// less and less often.
    pub(super) fn announce(&self, out: &mut Outputs) {
        for peer in self.peers.keys() {
            self.send_settled(*peer, out);
        }
    }

    /// Tells somebody who is looking whom this server follows.
    pub(super) fn send_settled(&self, peer: ServerId, out: &mut Outputs) {
        if zoo::broken(Switch::SettledSilent) {
            return;
        }
        let (state, leader, epoch) = match &self.state {
            State::Learning(learning) => (VoterState::Following, learning.leader, learning.epoch),
            State::Leading(leading) => (VoterState::Leading, self.options.id, leading.epoch),
            State::Bootstrapping | State::Looking(_) => return,
        };
        let vote = Vote { leader, zxid: self.durable.zxid };
        self.send(peer, Message::Vote { round: self.round, state, vote, epoch }, out);
    }

    /// Decides the round if it can be decided.
    pub(super) fn advance_election(&mut self, out: &mut Outputs) {
        if self.round == 0 || self.identity_submitted.is_some() {
            return;
        }
        let now = self.now.mono_ms;
        let voting = self.is_voting_member();
        let live: Vec<ServerId> = self.peers.keys().copied().filter(|id| self.is_voting_peer(*id)).collect();
        let State::Looking(looking) = &mut self.state else { return };
        // Somebody leads already: join if he says so himself and a majority, this server included, is with him.
        let leader = looking.settled.iter().find_map(|(id, (leader, leads))| {
            let with =
                |s: ServerId| (voting && s == self.options.id) || looking.settled.get(&s).is_some_and(|(l, _)| l == id);
            let majority = self.options.quorum.has_quorum(with);
            (*leads && leader == id && (majority || !voting) && live.contains(id)).then_some(*id)
        });
        if let Some(leader) = leader {
            self.follow(leader, out);
            return;
        }
        let Some(proposal) = looking.proposal else { return };
        let agrees = |s: ServerId| s == self.options.id || looking.votes.get(&s) == Some(&proposal);
        if !self.options.quorum.has_quorum(agrees) {
            looking.winning_since_ms = None;
            return;
        }
        let since = *looking.winning_since_ms.get_or_insert(now);
        let everybody = live.iter().all(|id| looking.votes.contains_key(id) || looking.settled.contains_key(id));
        if !everybody && now < since + self.options.election_quiet_ms {
            return;
        }
        if proposal.leader == self.options.id {
            self.lead(0, out);
        } else if live.contains(&proposal.leader) {
            self.follow(proposal.leader, out);
        }
        // Else the winner cannot be reached from here: he will be heard of once he leads, or another round begins.
    }

    fn follow(&mut self, leader: ServerId, out: &mut Outputs) {
        if zoo::broken(Switch::TruncateToWatermark)
            && let Some(known) = self.log.position_of(self.committed.max(self.handed))
        {
            self.truncate(known, out);
        }
        let (promise, voter) = (self.promised.epoch, self.is_voting_member());
        let link = self.peers.get(&leader).map_or(0, |p| p.link);
        self.state = State::Learning(Learning::greeting(leader, link, self.now.mono_ms));
        self.send(leader, Message::FollowerInfo { promise, voter }, out);
    }

    /// The leader is done and names this server (P17): it leads if nobody knows better.
    pub(super) fn on_handover(&mut self, peer: ServerId, epoch: u32, out: &mut Outputs) {
        let State::Learning(learning) = &self.state else { return };
        if learning.leader == peer && learning.epoch == epoch && self.is_voting_member() {
            self.leave_role(out);
            self.round += 1;
            self.elections += 1;
            self.lead(0, out);
        }
    }
}
