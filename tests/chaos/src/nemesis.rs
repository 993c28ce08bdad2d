//! What goes wrong: a schedule of faults from a seed, and how each is done to real servers.
//!
//! The seed fixes kinds, order, times and sizes. Roles (who leads) and everything that the processes do meanwhile are as
//! they come, so the same seed is the same schedule and not the same run.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use corral_sim::rng::Rng;
use tokio::time::{Instant, sleep, sleep_until};

use crate::Result;
use crate::ensemble::Ensemble;
use crate::journal::Journal;
use crate::proxy::{Rules, Shape};
use crate::space;

/// Between two faults, ms; from and to.
const QUIET_MS: (u64, u64) = (400, 1_800);
/// How long a fault lasts, ms; from and to.
const HOLD_MS: (u64, u64) = (700, 2_500);
/// How long a pause or a silence lasts: beyond every session timeout of the clients.
const PAUSE_MS: (u64, u64) = (4_500, 6_500);
/// Of a thousand steps, so many bring a second fault while the first lasts.
const SECOND_PER_MILLE: u64 = 200;
/// Before a folder is damaged all servers must be whole: never a majority without its memory. Waited for so long; then
/// the fault is left out.
const WHOLE_LIMIT: Duration = Duration::from_secs(30);
/// A server that was damaged is whole again within it, on however busy a machine.
const REPAIR_LIMIT: Duration = Duration::from_secs(180);
/// Between two servers of a rolling restart, at most.
const ROLL_LIMIT: Duration = Duration::from_secs(20);

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Fault {
    /// kill -9 of one server.
    KillOne,
    /// kill -9 of a majority at once.
    KillMajority,
    /// kill -9 of all at once.
    KillAll,
    /// SIGTERM to one server; it must drain and end with 0.
    Terminate,
    /// SIGTERM to one after the other, each started again before the next.
    RollingRestart,
    /// SIGSTOP of the leader beyond every session timeout.
    PauseLeader,
    /// SIGSTOP of a follower beyond every session timeout.
    PauseFollower,
    /// The leader here, all others there.
    PartitionLeader,
    /// Two random parts.
    PartitionHalves,
    /// Each server sees its two neighbours only (five servers), or one pair does not see each other (three).
    PartitionRing,
    /// One server's packets to some others are lost, theirs arrive.
    PartitionOneWay,
    /// One server is cut off from everything, clients too.
    IsolateOne,
    /// Some links between servers get delay, jitter and little bandwidth.
    SlowLinks,
    /// Some links between servers carry nothing in one direction, and stay up.
    StallLinks,
    /// Connections between servers end for one side only.
    HalfOpen,
    /// Connections between servers are reset.
    ResetLinks,
    /// Connections between servers are cut in mid-stream after so many bytes, again and again.
    CutLinks,
    /// The same kinds of trouble between clients and servers.
    ClientLinks,
    /// Nothing passes between clients and servers, until sessions have expired; the servers are well.
    SilenceClients,
    /// The disk of one server is full.
    FullDisk,
    /// A file of one server is damaged or lost while it is down.
    CorruptFile,
    /// The data folder of one server is lost.
    LostFolder,
}

impl Fault {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Fault::KillOne => "kill-one",
            Fault::KillMajority => "kill-majority",
            Fault::KillAll => "kill-all",
            Fault::Terminate => "terminate",
            Fault::RollingRestart => "rolling-restart",
            Fault::PauseLeader => "pause-leader",
            Fault::PauseFollower => "pause-follower",
            Fault::PartitionLeader => "partition-leader",
            Fault::PartitionHalves => "partition-halves",
            Fault::PartitionRing => "partition-ring",
            Fault::PartitionOneWay => "partition-one-way",
            Fault::IsolateOne => "isolate-one",
            Fault::SlowLinks => "slow-links",
            Fault::StallLinks => "stall-links",
            Fault::HalfOpen => "half-open",
            Fault::ResetLinks => "reset-links",
            Fault::CutLinks => "cut-links",
            Fault::ClientLinks => "client-links",
            Fault::SilenceClients => "silence-clients",
            Fault::FullDisk => "full-disk",
            Fault::CorruptFile => "corrupt-file",
            Fault::LostFolder => "lost-folder",
        }
    }

    /// Whether a server loses what it had written: nothing else happens meanwhile.
    fn damages(self) -> bool {
        matches!(self, Fault::CorruptFile | Fault::LostFolder)
    }

    /// Whether it takes its own time, and is over when it is done.
    fn is_whole(self) -> bool {
        self.damages() || matches!(self, Fault::RollingRestart | Fault::Terminate)
    }
}

/// One step of the schedule.
#[derive(Clone, Debug)]
pub struct Step {
    /// What.
    pub fault: Fault,
    /// While the first lasts.
    pub second: Option<Fault>,
    /// Peace before it, ms.
    pub quiet_ms: u64,
    /// How long it lasts, ms.
    pub hold_ms: u64,
    /// For all else: who and how much.
    rng: Rng,
}

/// The schedule of a seed: every kind once in some order, then again in another, for ever.
pub struct Schedule {
    seed: u64,
    faults: Vec<Fault>,
    bag: Vec<Fault>,
    number: u64,
    order: Rng,
}

impl Schedule {
    /// Of these kinds; at least one.
    pub fn new(seed: u64, faults: &[Fault]) -> Schedule {
        Schedule {
            seed,
            faults: faults.to_vec(),
            bag: Vec::new(),
            number: 0,
            order: Rng::stream(seed, "order of faults"),
        }
    }
}

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.bag.is_empty() {
            self.bag = self.faults.clone();
            self.order.shuffle(&mut self.bag);
        }
        let fault = self.bag.pop()?;
        self.number += 1;
        let mut rng = Rng::stream(self.seed, &format!("fault {}", self.number));
        let candidate = *rng.pick(&self.faults);
        let has_second =
            rng.chance(SECOND_PER_MILLE) && !fault.is_whole() && !candidate.is_whole() && candidate != fault;
        let quiet_ms = rng.between(QUIET_MS.0, QUIET_MS.1);
        let (low, high) = match fault {
            Fault::PauseLeader | Fault::PauseFollower | Fault::SilenceClients => PAUSE_MS,
            _ => HOLD_MS,
        };
        let hold_ms = rng.between(low, high);
        Some(Step { fault, second: has_second.then_some(candidate), quiet_ms, hold_ms, rng })
    }
}

/// Injects faults until `until`, or until something does not hold. The ensemble is healed, and not yet at rest, when
/// this returns.
///
/// # Errors
/// If the system refuses what a fault needs.
pub async fn run(ensemble: &mut Ensemble, schedule: Schedule, until: Instant, journal: &Arc<Journal>) -> Result<()> {
    for step in schedule {
        let begin = Instant::now() + Duration::from_millis(step.quiet_ms);
        if !wait(begin.min(until), journal).await || begin >= until {
            break;
        }
        ensemble.look_after()?;
        let mut rng = step.rng.clone();
        inject(ensemble, step.fault, &mut rng, journal).await?;
        if !step.fault.is_whole() {
            let end = Instant::now() + Duration::from_millis(step.hold_ms);
            if let Some(second) = step.second {
                wait(Instant::now() + Duration::from_millis(step.hold_ms / 2), journal).await;
                inject(ensemble, second, &mut rng, journal).await?;
            }
            wait(end, journal).await;
            ensemble.heal()?;
            journal.say("healed");
        }
    }
    ensemble.heal()
}

/// Waits; `false`: the run is to end.
async fn wait(until: Instant, journal: &Journal) -> bool {
    tokio::select! {
        () = sleep_until(until) => true,
        () = journal.stop().cancelled() => false,
    }
}

/// Some of the servers, `count` of them.
fn some(rng: &mut Rng, ids: &[u64], count: usize) -> Vec<u64> {
    let mut ids = ids.to_vec();
    rng.shuffle(&mut ids);
    ids.truncate(count);
    ids.sort_unstable();
    ids
}

async fn inject(ensemble: &mut Ensemble, fault: Fault, rng: &mut Rng, journal: &Arc<Journal>) -> Result<()> {
    let ids = ensemble.ids();
    let name = fault.name();
    let any = *rng.pick(&ids);
    let majority = some(rng, &ids, ensemble.majority());
    match fault {
        Fault::KillOne => {
            let victim = if rng.chance(500) { ensemble.leader().await.unwrap_or(any) } else { any };
            journal.fault(name, format_args!("server {victim}"));
            ensemble.kill(victim)?;
        }
        Fault::KillMajority => {
            journal.fault(name, format_args!("servers {majority:?}"));
            majority.iter().try_for_each(|id| ensemble.kill(*id))?;
        }
        Fault::KillAll => {
            journal.fault(name, "all servers");
            ensemble.kill_all()?;
        }
        Fault::Terminate => {
            journal.fault(name, format_args!("server {any}"));
            ensemble.terminate(any).await?;
            sleep(Duration::from_millis(rng.between(0, 1_500))).await;
            ensemble.start_server(any)?;
        }
        Fault::RollingRestart => {
            journal.fault(name, "one server after the other");
            for id in ids {
                ensemble.terminate(id).await?;
                ensemble.start_server(id)?;
                let limit = Instant::now() + ROLL_LIMIT;
                while ensemble.srvr(id).await.is_none() && Instant::now() < limit {
                    ensemble.look_after()?;
                    sleep(crate::ensemble::POLL).await;
                }
            }
        }
        Fault::PauseLeader | Fault::PauseFollower => {
            let leader = ensemble.leader().await;
            let victim = match (fault, leader) {
                (Fault::PauseLeader, Some(leader)) => leader,
                (Fault::PauseFollower, Some(leader)) if any == leader => any % ids.len() as u64 + 1,
                _ => any,
            };
            journal.fault(name, format_args!("server {victim}"));
            ensemble.pause(victim)?;
        }
        Fault::PartitionLeader => {
            let leader = ensemble.leader().await.unwrap_or(any);
            journal.fault(name, format_args!("server {leader} from the others"));
            let rest: Vec<u64> = ids.into_iter().filter(|id| *id != leader).collect();
            cut_between(ensemble, &[leader], &rest)?;
        }
        Fault::PartitionHalves => {
            let rest: Vec<u64> = ids.into_iter().filter(|id| !majority.contains(id)).collect();
            journal.fault(name, format_args!("servers {majority:?} from {rest:?}"));
            cut_between(ensemble, &majority, &rest)?;
        }
        Fault::PartitionRing => {
            let mut ring = ids;
            rng.shuffle(&mut ring);
            let count = ring.len();
            journal.fault(name, format_args!("{ring:?}"));
            for at in 0..count {
                for other in at + 1..count {
                    let apart = (other - at).min(count - (other - at));
                    // Of three everybody is everybody's neighbour: one pair is parted.
                    if apart > 1 || count == 3 && (at, other) == (0, 1) {
                        cut_between(ensemble, &[ring[at]], &[ring[other]])?;
                    }
                }
            }
        }
        Fault::PartitionOneWay => {
            let victim = if rng.chance(500) { ensemble.leader().await.unwrap_or(any) } else { any };
            let others: Vec<u64> = ids.into_iter().filter(|id| *id != victim).collect();
            let count = rng.between(1, others.len() as u64) as usize;
            let deaf = some(rng, &others, count);
            let outward = rng.chance(500);
            let (from, to) = if outward { (vec![victim], deaf) } else { (deaf, vec![victim]) };
            journal.fault(name, format_args!("nothing gets from {from:?} to {to:?}"));
            for &from in &from {
                for &to in &to {
                    cut_one_way(ensemble, from, to)?;
                }
            }
        }
        Fault::IsolateOne => {
            let victim = if rng.chance(500) { ensemble.leader().await.unwrap_or(any) } else { any };
            journal.fault(name, format_args!("server {victim}"));
            match ensemble.spaces() {
                Some(spaces) => spaces.set_link(victim, false)?,
                None => {
                    let rest: Vec<u64> = ids.into_iter().filter(|id| *id != victim).collect();
                    cut_between(ensemble, &[victim], &rest)?;
                    ensemble.door(victim).set(Rules { there: stalled(), back: stalled(), cut_after: None });
                }
            }
        }
        Fault::SlowLinks => {
            let shape = Shape {
                delay_ms: rng.between(5, 250),
                jitter_ms: rng.between(0, 100),
                bytes_per_s: rng.chance(500).then(|| rng.magnitude(20_000, 2_000_000)),
                stalled: false,
            };
            journal.fault(name, format_args!("{shape:?}"));
            on_some_links(ensemble, rng, Rules { there: shape, back: shape, cut_after: None });
        }
        Fault::StallLinks => {
            journal.fault(name, "one direction");
            let rules = if rng.chance(500) {
                Rules { there: stalled(), ..Rules::default() }
            } else {
                Rules { back: stalled(), ..Rules::default() }
            };
            on_some_links(ensemble, rng, rules);
        }
        Fault::HalfOpen => {
            journal.fault(name, "all links");
            ensemble.links().for_each(crate::proxy::Proxy::half_open);
        }
        Fault::ResetLinks => {
            let times = rng.between(1, 4);
            journal.fault(name, format_args!("all links, {times} times"));
            for _ in 0..times {
                ensemble.links().for_each(crate::proxy::Proxy::reset);
                sleep(Duration::from_millis(rng.between(20, 300))).await;
            }
        }
        Fault::CutLinks => {
            let bytes = rng.magnitude(1, 50_000);
            journal.fault(name, format_args!("after {bytes} bytes"));
            on_some_links(ensemble, rng, Rules { cut_after: Some(bytes), ..Rules::default() });
        }
        Fault::ClientLinks => client_links(ensemble, rng, journal),
        Fault::SilenceClients => {
            journal.fault(name, "all clients");
            for id in ids {
                ensemble.door(id).set(Rules { there: stalled(), back: stalled(), cut_after: None });
            }
        }
        Fault::FullDisk => {
            let disks = ensemble.small_disks();
            if disks.is_empty() {
                journal.say(format_args!("{name}: left out, no server has a small disk"));
                return Ok(());
            }
            let victim = *rng.pick(&disks);
            let leave = if rng.chance(500) { 0 } else { rng.magnitude(1 << 10, 2 << 20) };
            journal.fault(name, format_args!("server {victim}, {leave} bytes are left"));
            ensemble.fill_disk(victim, leave)?;
        }
        Fault::CorruptFile | Fault::LostFolder => damage(ensemble, fault, any, rng, journal).await?,
    }
    Ok(())
}

const fn stalled() -> Shape {
    Shape { delay_ms: 0, jitter_ms: 0, bytes_per_s: None, stalled: true }
}

/// Nothing gets from one group to the other, nor back.
fn cut_between(ensemble: &Ensemble, one: &[u64], other: &[u64]) -> Result<()> {
    for &a in one {
        for &b in other {
            cut_one_way(ensemble, a, b)?;
            cut_one_way(ensemble, b, a)?;
        }
    }
    Ok(())
}

/// Nothing gets from one server to another, on the link that it dials and on the one that it is dialled on.
fn cut_one_way(ensemble: &Ensemble, from: u64, to: u64) -> Result<()> {
    match ensemble.spaces() {
        Some(spaces) => {
            let addresses: [IpAddr; 2] = [space::dialled_ip(from, to), space::dialling_ip(to, from)];
            spaces.drop_packets(from, &addresses)
        }
        None => {
            let (dialled, dialling) = (ensemble.link(from, to), ensemble.link(to, from));
            dialled.set(Rules { there: stalled(), ..dialled.rules() });
            dialling.set(Rules { back: stalled(), ..dialling.rules() });
            Ok(())
        }
    }
}

/// Half of the links, in the mean, and at least one server's.
fn on_some_links(ensemble: &Ensemble, rng: &mut Rng, rules: Rules) {
    let ids = ensemble.ids();
    let always = *rng.pick(&ids);
    for &from in &ids {
        for &to in ids.iter().filter(|to| **to != from) {
            if from == always || to == always || rng.chance(300) {
                ensemble.link(from, to).set(rules);
            }
        }
    }
}

fn client_links(ensemble: &Ensemble, rng: &mut Rng, journal: &Journal) {
    let ids = ensemble.ids();
    let count = rng.between(1, ids.len() as u64) as usize;
    let chosen = some(rng, &ids, count);
    let say = |what: &str| journal.fault(Fault::ClientLinks.name(), format_args!("servers {chosen:?}: {what}"));
    let set = |rules: Rules| chosen.iter().for_each(|id| ensemble.door(*id).set(rules));
    match rng.below(6) {
        0 => {
            say("reset");
            chosen.iter().for_each(|id| ensemble.door(*id).reset());
        }
        1 => {
            say("half-open");
            chosen.iter().for_each(|id| ensemble.door(*id).half_open());
        }
        2 => {
            let bytes = rng.magnitude(1, 20_000);
            say(&format!("cut after {bytes} bytes"));
            set(Rules { cut_after: Some(bytes), ..Rules::default() });
        }
        3 => {
            say("answers are held back");
            set(Rules { back: stalled(), ..Rules::default() });
        }
        4 => {
            say("requests are held back");
            set(Rules { there: stalled(), ..Rules::default() });
        }
        _ => {
            let shape = Shape { delay_ms: rng.between(5, 400), jitter_ms: rng.between(0, 200), ..Shape::default() };
            say(&format!("late by {} ms and up to {} more", shape.delay_ms, shape.jitter_ms));
            set(Rules { there: shape, back: shape, cut_after: None });
        }
    }
}

/// Damages what one server stored, while it is down, and waits until it is whole again.
async fn damage(
    ensemble: &mut Ensemble,
    fault: Fault,
    victim: u64,
    rng: &mut Rng,
    journal: &Arc<Journal>,
) -> Result<()> {
    let name = fault.name();
    if !ensemble.wait_whole(WHOLE_LIMIT).await? {
        journal.say(format_args!("{name}: left out, the servers are not whole"));
        return Ok(());
    }
    if rng.chance(500) {
        ensemble.kill(victim)?;
    } else {
        ensemble.terminate(victim).await?;
    }
    ensemble.excuse(victim);
    if fault == Fault::LostFolder {
        journal.fault(name, format_args!("server {victim}"));
        ensemble.wipe(victim)?;
    } else {
        let data = ensemble.data(victim);
        let mut files = files_under(&data);
        files.retain(|file| file.file_name().is_some_and(|name| name != "myid"));
        files.sort();
        if let Some((file, what)) = spoil(&files, &data, rng)? {
            journal.fault(name, format_args!("server {victim}: {what}"));
            ensemble.note_damage(victim, file);
        }
    }
    ensemble.start_server(victim)?;
    if !ensemble.wait_whole(REPAIR_LIMIT).await? && !journal.stop().is_cancelled() {
        let text = format!("server {victim} does not come right after {name}");
        journal.violation("processes", text, &ensemble.tails(200));
    }
    Ok(())
}

/// Flips bits of a file, cuts it short or removes it, and says which.
fn spoil(files: &[PathBuf], data: &Path, rng: &mut Rng) -> Result<Option<(PathBuf, String)>> {
    if files.is_empty() {
        return Ok(None);
    }
    let file = rng.pick(files);
    let place = file.strip_prefix(data).unwrap_or(file).display();
    let length = fs::metadata(file)?.len();
    let what = match rng.below(3) {
        0 if length > 0 => {
            let mut bytes = fs::read(file)?;
            let count = rng.magnitude(1, 200);
            for _ in 0..count {
                let at = rng.below(length) as usize;
                bytes[at] ^= 1 << rng.below(8);
            }
            fs::write(file, bytes)?;
            format!("{count} bits of {place} ({length} bytes) flipped")
        }
        1 if length > 0 => {
            let keep = rng.below(length);
            fs::OpenOptions::new().write(true).open(file)?.set_len(keep)?;
            format!("{place} cut from {length} to {keep} bytes")
        }
        _ => {
            fs::remove_file(file)?;
            format!("{place} ({length} bytes) removed")
        }
    };
    Ok(Some((file.clone(), what)))
}

fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    // A folder that cannot be read has nothing to damage.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { files.extend(files_under(&path)) } else { files.push(path) }
    }
    files
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn steps(seed: u64, count: usize) -> Vec<Step> {
        Schedule::new(seed, Fault::value_variants()).take(count).collect()
    }

    #[test]
    fn a_seed_is_a_schedule() {
        let text = |seed| format!("{:?}", steps(seed, 60));
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }

    #[test]
    fn every_kind_comes_before_any_comes_again() {
        let kinds: BTreeSet<Fault> = steps(3, Fault::value_variants().len()).iter().map(|step| step.fault).collect();
        assert_eq!(kinds.len(), Fault::value_variants().len());
    }

    #[test]
    fn nothing_else_happens_while_a_folder_is_damaged() {
        for step in steps(5, 2_000) {
            assert!(step.second.is_none_or(|second| !second.damages() && !step.fault.damages()));
        }
        assert!(steps(5, 200).iter().any(|step| step.second.is_some()));
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for fault in Fault::value_variants() {
            assert_eq!(fault.to_possible_value().expect("none is hidden").get_name(), fault.name());
        }
    }
}
