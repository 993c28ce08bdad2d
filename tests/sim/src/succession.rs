//! Faults while one leader follows another: when most of the rules matter at once.
//!
//! A leader is *left behind*: all others lose it and elect another, while it knows of nothing (a dead switch port, a
//! half-open connection). And whoever is about to lead, or votes for it, may be struck just then.

use corral_core::member::MemberInput;
use corral_core::zab::io::{Admin, Input, Phase, Role, Status};
use corral_proto::ServerId;

use crate::checks::Check;
use crate::faults::Fault;
use crate::rng::Rng;
use crate::schedule::{MS, Micros};
use crate::world::{Event, Stage, World};

/// A vote that settled nothing is sent again after so long.
const VOTE_AGAIN: Micros = 200 * MS;

/// What happens to those who come after a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// Who is about to lead dies.
    Dies,
    /// Who is about to lead is cut off from those who would follow.
    CutOff,
    /// Who is about to lead, or somebody who would follow, is replaced by a new machine somewhere else.
    Replaced,
    /// The leader is left behind.
    LeftBehind,
    /// Who is about to lead dies and stays dead: the faults are over, and this is the last.
    Retires,
}

/// The moment that a harm waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// Somebody looks for a leader.
    Election,
    /// Somebody gathers promises.
    Discovery,
    /// Somebody else is about to promise an epoch to another leader, or just has.
    Promise,
    /// The leader commits something: not all others know of it yet.
    Commit,
}

/// A harm that waits for its moment, or for its time after that.
pub struct Ambush {
    harm: Harm,
    moment: Moment,
    /// Who led.
    pub(crate) former: ServerId,
    /// Whose step was the moment.
    who: Option<ServerId>,
    rng: Rng,
}

impl World {
    /// The leader is left behind: now, or when it has just committed something.
    pub(crate) fn succession(&mut self, rng: &mut Rng) {
        let Some(leader) = self.leader().filter(|_| self.options.servers() > 1) else { return };
        if rng.chance(600) {
            if rng.chance(600) {
                self.weaken(leader, rng);
            }
            self.ambush = Some(Box::new(Ambush {
                harm: Harm::LeftBehind,
                moment: Moment::Commit,
                former: leader,
                who: None,
                rng: Rng::stream(rng.next(), "ambush"),
            }));
        } else {
            self.leave_behind(leader, rng);
        }
    }

    /// What the leader sends is slow for a while, as over a link that is about to fail: the others have what it
    /// proposed, and do not know what of it is committed.
    fn weaken(&mut self, leader: ServerId, rng: &mut Rng) {
        let timeout = self.options.sync_timeout_ms * MS;
        let longest = rng.magnitude(MS, timeout / 4);
        self.tell(|| format!("what {leader:?} sends takes up to {} ms", longest / MS));
        for peer in self.server_ids() {
            if peer != leader {
                self.network.slow_down(leader, peer, longest);
                self.schedule.after(2 * timeout, Event::LinkNormal(leader, peer));
            }
        }
    }

    /// All others lose the leader, and half of the time that is not all.
    fn leave_behind(&mut self, leader: ServerId, rng: &mut Rng) {
        self.trace.reached(Fault::Succession.habit().struck);
        if rng.chance(200) && self.process_of(leader).is_some() {
            let until = self.schedule.now() + rng.between(1, 4) * self.options.sync_timeout_ms * MS;
            self.pause(leader, until, rng);
        } else {
            self.part_from(leader, rng);
        }
        if rng.chance(700) {
            let harm =
                *rng.pick(&[Harm::Dies, Harm::CutOff, Harm::CutOff, Harm::Replaced, Harm::Replaced, Harm::Replaced]);
            let moments = match harm {
                Harm::Replaced => [Moment::Election, Moment::Promise, Moment::Promise],
                _ => [Moment::Election, Moment::Discovery, Moment::Discovery],
            };
            self.ambush = Some(Box::new(Ambush {
                harm,
                moment: *rng.pick(&moments),
                former: leader,
                who: None,
                rng: Rng::stream(rng.next(), "ambush"),
            }));
        }
    }

    /// All others lose the leader at once; it finds out late. Each of them can reach it again at its own time.
    fn part_from(&mut self, leader: ServerId, rng: &mut Rng) {
        let noticed = self.options.sync_timeout_ms * MS;
        let late = rng.between(noticed / 2, 2 * noticed);
        // Those who come back soon find it in office.
        let longest = if rng.chance(400) { rng.magnitude(5 * MS, noticed / 2) } else { self.duration(rng) };
        self.tell(|| format!("{leader:?} is left behind"));
        for peer in self.server_ids() {
            if peer == leader {
                continue;
            }
            if let Some(stream) = self.network.stream(leader, peer) {
                let mut found_out = [rng.magnitude(10, 2 * MS), rng.magnitude(10, 2 * MS)];
                found_out[usize::from(leader > peer)] = late;
                self.break_stream_for(stream, None, found_out);
            }
            let lasts = if rng.chance(700) { longest } else { rng.magnitude(5 * MS, longest.max(5 * MS)) };
            self.block(vec![(leader, peer), (peer, leader)], lasts);
        }
    }

    /// The last fault: an operator asks the leader to make way, or it stands still for so long that the others look for
    /// another; and the best of them dies for good meanwhile.
    pub(crate) fn last_election(&mut self, rng: &mut Rng) {
        let Some(at) = self.leader().and_then(|id| self.process_of(id)) else { return };
        let still: Vec<ServerId> =
            self.running().into_iter().filter(|s| *s != at.server && self.options.is_voter(*s)).collect();
        let until = self.schedule.now() + rng.between(2, 4) * self.options.sync_timeout_ms * MS;
        if rng.chance(600) {
            self.push_input(at, MemberInput::Zab(Input::Admin(Admin::StepDown)));
            // Nobody decides at once while somebody who is connected does not vote.
            if !still.is_empty() {
                self.pause(*rng.pick(&still), until, rng);
            }
        } else {
            self.pause(at.server, until, rng);
        }
        self.ambush = Some(Box::new(Ambush {
            harm: Harm::Retires,
            moment: Moment::Election,
            former: at.server,
            who: None,
            rng: Rng::stream(rng.next(), "ambush"),
        }));
    }

    /// A server has another role: it may be what an ambush waits for.
    pub(crate) fn note_succession(&mut self, server: ServerId, status: &Status) {
        let is_it = |moment: Moment| match moment {
            Moment::Election => status.role == Role::Looking,
            Moment::Discovery => status.role == Role::Leading && status.phase == Phase::Discovery && status.epoch > 0,
            Moment::Promise => {
                status.role == Role::Following
                    && status.phase == Phase::Discovery
                    && status.epoch > 0
                    && status.leader != self.ambush.as_ref().map(|ambush| ambush.former)
            }
            Moment::Commit => false,
        };
        let springs = self
            .ambush
            .as_ref()
            .is_some_and(|ambush| is_it(ambush.moment) && (ambush.harm == Harm::Retires || server != ambush.former));
        let Some(mut ambush) = self.ambush.take_if(|_| springs) else { return };
        ambush.who = Some(server);
        let longest: Micros = match ambush.moment {
            // A round of votes or two, and the time in which whoever has not voted may.
            Moment::Election => {
                4 * (self.options.delay.1 + self.options.thread_delay) + self.options.election_quiet_ms * MS
            }
            Moment::Promise => 2 * (self.options.delay.1 + self.options.write_time),
            Moment::Discovery | Moment::Commit => 20 * MS,
        };
        let mut delay = match ambush.rng.chance(500) {
            true => ambush.rng.below(longest),
            false => ambush.rng.magnitude(10, longest.max(10)),
        };
        if ambush.harm == Harm::Retires && ambush.rng.chance(500) {
            // The vote that decides may be one that is sent again.
            delay = VOTE_AGAIN + ambush.rng.below(longest);
        }
        self.schedule.after(delay, Event::Spring(ambush));
    }

    /// A leader may have committed something: an ambush may wait for that. Its own client hears of it soon, and others
    /// later.
    pub(crate) fn note_commit(&mut self, server: ServerId, before: &Status, status: &Status) {
        let commits =
            before.role == Role::Leading && status.role == Role::Leading && status.committed > before.committed;
        let springs = |a: &mut Box<Ambush>| commits && a.moment == Moment::Commit && a.former == server;
        let Some(mut ambush) = self.ambush.take_if(springs) else { return };
        let delay = ambush.rng.magnitude(10, self.options.delay.1.max(10));
        self.schedule.after(delay, Event::Spring(ambush));
    }

    /// Who is about to lead: who gathers promises, or the one whom all vote for that know of it.
    fn heir(&self, former: Option<ServerId>) -> Option<ServerId> {
        let candidates = self.servers.values().filter_map(|s| Some((s.id, &s.process.as_ref()?.status)));
        candidates
            .filter(|(id, _)| self.options.is_voter(*id) && Some(*id) != former)
            .filter(|(_, status)| {
                status.role == Role::Looking || status.role == Role::Leading && status.phase == Phase::Discovery
            })
            .max_by_key(|(id, status)| (status.role == Role::Leading, status.durable, *id))
            .map(|(id, _)| id)
    }

    /// An ambush's time has come.
    pub(crate) fn spring(&mut self, ambush: Ambush) -> Check {
        let Ambush { harm, moment, former, who, mut rng } = ambush;
        if harm == Harm::Retires {
            return match self.heir(None).filter(|id| self.may_retire(*id)) {
                Some(heir) => {
                    self.trace.reached("succession: the heir dies for good");
                    self.retire(heir)
                }
                None => Ok(()),
            };
        }
        if self.stage != Stage::Safety {
            return Ok(());
        }
        if harm == Harm::LeftBehind {
            self.leave_behind(former, &mut rng);
            return Ok(());
        }
        let elector = who.filter(|_| moment == Moment::Promise);
        let Some(heir) = elector.or_else(|| self.heir(Some(former))) else { return Ok(()) };
        match harm {
            Harm::Dies | Harm::Retires | Harm::LeftBehind => {
                self.trace.reached("succession: the heir died");
                self.crash(heir, "it was about to lead")
            }
            Harm::CutOff => {
                self.trace.reached("succession: the heir was cut off");
                let both = rng.chance(500);
                if rng.chance(600) {
                    self.network.unblock_pair(heir, former);
                }
                let mut blocked = Vec::new();
                for peer in self.server_ids() {
                    if peer == heir || peer == former {
                        continue;
                    }
                    blocked.push((heir, peer));
                    if both {
                        blocked.push((peer, heir));
                    }
                    if let Some(stream) = self.network.stream(heir, peer).filter(|_| rng.chance(500)) {
                        self.break_stream(stream, None);
                    }
                }
                let duration = self.duration(&mut rng);
                self.block(blocked, duration);
                Ok(())
            }
            Harm::Replaced => {
                let victim = heir;
                if !self.may_lose(victim) {
                    return Ok(());
                }
                self.network.unblock_all_of(victim);
                if elector.is_some() && rng.chance(700) {
                    // It comes back on the side of the former leader.
                    let others = self.server_ids().into_iter().filter(|s| *s != victim && *s != former);
                    let duration = self.duration(&mut rng);
                    self.block(others.flat_map(|s| [(victim, s), (s, victim)]).collect(), duration);
                }
                self.server_mut(victim).back_soon = true;
                self.replace(victim, &mut rng, "succession: heir or elector replaced")
            }
        }
    }
}
