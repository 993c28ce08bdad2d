//! Watch followers: clients that learn of changes by watches alone. An event is never early or false, nothing is missed
//! between two events of a lasting watch, and every follower gets to the final state.

use std::collections::BTreeMap;
use std::sync::Arc;

use corral_client::{Client, WatchEvent, WatchMode, Watcher};
use corral_proto::jute::{Request, Response};
use corral_proto::{CreateMode, Zxid};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Round, Steward, think};
use crate::ensemble::PATIENCE;
use crate::journal::Micros;
use crate::session::{Outcome, Protocol, Session, grpc};
use crate::wire::{Answer, WireSession};

const THINK_MS: u64 = 120;
/// Followers of each kind.
const FOLLOWERS: u64 = 2;

/// What is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// Data of a znode, by version.
    Data,
    /// List of children of another, by its child version.
    Children,
}

/// What the end of the round is: known when its writers are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct End {
    version: i32,
    mzxid: i64,
    cversion: i32,
}

impl End {
    fn level(self, aim: Aim) -> i32 {
        match aim {
            Aim::Data => self.version,
            Aim::Children => self.cversion,
        }
    }
}

/// What a follower read, and what it was told. Times are for those who read the evidence.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "shown, not compared")]
enum Step {
    /// A read that armed a watch: the version, and the state if that is known.
    Read { at: Micros, session: i64, connections: u64, level: i32, zxid: Option<Zxid> },
    /// The watch fired; the state, if the event says.
    Fired { at: Micros, session: i64, connections: u64, zxid: Option<Zxid> },
    /// An event of a lasting watch.
    Lasting { at: Micros, zxid: Zxid },
    /// Events may be missing here.
    Gap { at: Micros },
    /// A set of the writer that was acknowledged.
    Set { at: Micros, mzxid: i64 },
}

pub async fn round(round: &Arc<Round>, steward: &mut Steward) {
    let (node, parent) = (round.path("n"), round.path("c"));
    steward.ensure(&node).await;
    steward.ensure(&parent).await;
    let (end, seen) = watch::channel(None);
    let mut followers = JoinSet::new();
    for number in 0..FOLLOWERS {
        let aim = if number == 0 { Aim::Data } else { Aim::Children };
        followers.spawn(guard_time(round.clone(), follow_wire(round.clone(), aim, seen.clone(), number)));
        followers.spawn(guard_time(round.clone(), follow_grpc(round.clone(), aim, seen.clone(), number)));
    }
    followers.spawn(guard_time(round.clone(), follow_lasting(round.clone(), seen)));
    let mut writers = JoinSet::new();
    for number in 0..2 {
        writers.spawn(write(round.clone(), number));
    }
    let sets: Vec<Step> = writers.join_all().await.into_iter().flatten().collect();
    if let (Some((_, node)), Some((_, parent))) = (steward.get(&node).await, steward.get(&parent).await) {
        end.send_replace(Some(End { version: node.version, mzxid: node.mzxid, cversion: parent.cversion }));
    } else {
        round.violation("what is watched is gone", &sets);
        end.send_replace(Some(End::default()));
    }
    for history in followers.join_all().await {
        if let Err(text) = check_steps(&history).and_then(|()| check_lasting(&history, &sets)) {
            round.violation(&text, &history);
        }
    }
}

/// The one thing here that is judged by time: a follower that never gets to the end.
async fn guard_time(round: Arc<Round>, follow: impl Future<Output = Vec<Step>>) -> Vec<Step> {
    let limit = PATIENCE + (round.until - tokio::time::Instant::now());
    match timeout(limit, follow).await {
        Ok(history) => history,
        Err(_) => {
            round.violation("a follower never got to the final state", &[round.until]);
            Vec::new()
        }
    }
}

async fn write(round: Arc<Round>, number: u64) -> Vec<Step> {
    let protocol = Protocol::of(number);
    let mut rng = round.rng(&format!("writer {number}"));
    let mut history = Vec::new();
    let mut children: Vec<String> = Vec::new();
    let mut count = 0;
    while !round.is_over() {
        let session = round.session(protocol, &mut rng).await;
        while !round.is_over() && !session.is_over() {
            think(&mut rng, THINK_MS).await;
            count += 1;
            if rng.chance(500) {
                let outcome = session.set(&round.path("n"), &format!("{number}-{count}"), None).await;
                round.count(&outcome);
                if let Outcome::Done(stat) = outcome {
                    history.push(Step::Set { at: round.now(), mzxid: stat.mzxid });
                }
            } else if children.len() > 3 {
                let outcome = session.delete(&children.remove(0)).await;
                round.count(&outcome);
            } else {
                let path = round.path(&format!("c/{number}-{count}"));
                let outcome = session.create(&path, "", CreateMode::Persistent).await;
                round.count(&outcome);
                if outcome.done().is_some() {
                    children.push(path);
                }
            }
        }
        session.close().await;
    }
    history
}

/// Where a follower is when it knows the end.
fn arrived(end: &watch::Receiver<Option<End>>, aim: Aim, level: i32) -> bool {
    end.borrow().is_some_and(|end| level >= end.level(aim))
}

async fn follow_wire(round: Arc<Round>, aim: Aim, end: watch::Receiver<Option<End>>, number: u64) -> Vec<Step> {
    let mut rng = round.rng(&format!("wire follower {number}"));
    let mut history = Vec::new();
    loop {
        let session = round.session(Protocol::Wire, &mut rng).await;
        let Session::Wire(wire) = &session else { return history };
        if follow_wire_session(&round, wire, aim, end.clone(), &mut history).await {
            session.close().await;
            return history;
        }
    }
}

/// Until the end (`true`), or that of the session.
async fn follow_wire_session(
    round: &Round,
    wire: &WireSession,
    aim: Aim,
    mut end: watch::Receiver<Option<End>>,
    history: &mut Vec<Step>,
) -> bool {
    let (path, request) = match aim {
        Aim::Data => {
            let path = round.path("n");
            (path.clone(), Request::GetData { path, watch: true })
        }
        Aim::Children => {
            let path = round.path("c");
            (path.clone(), Request::GetChildren2 { path, watch: true })
        }
    };
    loop {
        let before = wire.status();
        let level = match wire.ask(request.clone()).await {
            Answer::Done { body: Response::Data { stat, .. }, .. } => stat.version,
            Answer::Done { body: Response::NamesStat { stat, .. }, .. } => stat.cversion,
            Answer::Ended => return false,
            _ if wire.status().over.is_some() => return false,
            _ => {
                tokio::time::sleep(crate::ensemble::POLL).await;
                continue;
            }
        };
        // A read that spans connections is of the later one.
        let connections = if wire.status() == before { before.connections } else { wire.status().connections };
        history.push(Step::Read { at: round.now(), session: before.id, connections, level, zxid: None });
        loop {
            if arrived(&end, aim, level) {
                return true;
            }
            let event = tokio::select! {
                event = wire.event() => event,
                _ = end.changed() => continue,
            };
            let Some(event) = event else { return false };
            if event.path != path {
                round.violation(&format!("an event for {} that was never watched", event.path), history);
            }
            let status = wire.status();
            history.push(Step::Fired {
                at: round.now(),
                session: status.id,
                connections: status.connections,
                zxid: None,
            });
            break;
        }
    }
}

async fn follow_grpc(round: Arc<Round>, aim: Aim, end: watch::Receiver<Option<End>>, number: u64) -> Vec<Step> {
    let mut rng = round.rng(&format!("grpc follower {number}"));
    let mut history = Vec::new();
    loop {
        let session = round.session(Protocol::Grpc, &mut rng).await;
        let Session::Grpc(client) = &session else { return history };
        if follow_grpc_session(&round, client, aim, end.clone(), &mut history).await {
            session.close().await;
            return history;
        }
    }
}

async fn follow_grpc_session(
    round: &Round,
    client: &Client,
    aim: Aim,
    mut end: watch::Receiver<Option<End>>,
    history: &mut Vec<Step>,
) -> bool {
    let session = client.session_id().0;
    loop {
        let read = match aim {
            Aim::Data => grpc(client.get_and_watch(&round.path("n")).await)
                .map(|(node, watch)| (node.stat.version, Some(node.zxid), watch)),
            Aim::Children => grpc(client.children_and_watch(&round.path("c")).await)
                .map(|(_, stat, watch)| (stat.cversion, None, watch)),
        };
        let (level, zxid, mut watch) = match read {
            Outcome::Done(read) => read,
            _ if client.state().is_final() => return false,
            _ => {
                tokio::time::sleep(crate::ensemble::POLL).await;
                continue;
            }
        };
        // The client keeps its watches over connections, so they do not count here.
        history.push(Step::Read { at: round.now(), session, connections: 0, level, zxid });
        loop {
            if arrived(&end, aim, level) {
                return true;
            }
            let event = tokio::select! {
                event = &mut watch => event,
                _ = end.changed() => continue,
            };
            let Ok(event) = event else { return false };
            history.push(Step::Fired { at: round.now(), session, connections: 0, zxid: event.zxid });
            break;
        }
    }
}

async fn follow_lasting(round: Arc<Round>, end: watch::Receiver<Option<End>>) -> Vec<Step> {
    let mut rng = round.rng("lasting");
    let mut history = Vec::new();
    loop {
        let session = round.session(Protocol::Grpc, &mut rng).await;
        let Session::Grpc(client) = &session else { return history };
        history.push(Step::Gap { at: round.now() });
        let watcher = client.watch(&round.path("n"), WatchMode::Node).await;
        if let Ok(watcher) = watcher
            && follow_lasting_session(&round, client, watcher, end.clone(), &mut history).await
        {
            session.close().await;
            return history;
        }
    }
}

async fn follow_lasting_session(
    round: &Round,
    client: &Client,
    mut watcher: Watcher,
    mut end: watch::Receiver<Option<End>>,
    history: &mut Vec<Step>,
) -> bool {
    // After a notice that events may be missing, as at the beginning, a read tells what was missed.
    let mut known = 0;
    let mut is_fresh = false;
    loop {
        if !is_fresh {
            match grpc(client.get(&round.path("n")).await) {
                Outcome::Done(node) => {
                    known = known.max(node.stat.mzxid);
                    is_fresh = true;
                }
                _ if client.state().is_final() => return false,
                _ => tokio::time::sleep(crate::ensemble::POLL).await,
            }
            continue;
        }
        if end.borrow().is_some_and(|end| known >= end.mzxid) {
            return true;
        }
        let event = tokio::select! {
            event = watcher.next() => event,
            _ = end.changed() => continue,
        };
        match event {
            None => return false,
            Some(WatchEvent::Gap(_)) => {
                history.push(Step::Gap { at: round.now() });
                is_fresh = false;
            }
            Some(WatchEvent::Node(event)) => {
                let zxid = event.zxid.unwrap_or_default();
                known = known.max(zxid.as_i64());
                history.push(Step::Lasting { at: round.now(), zxid });
            }
        }
    }
}

/// Reads of a session never go back, and what is read after an event is newer than what armed the watch.
fn check_steps(history: &[Step]) -> Result<(), String> {
    let mut last_read: Option<&Step> = None;
    let mut fired: Option<&Step> = None;
    for step in history {
        match step {
            Step::Read { session, connections, level, zxid, .. } => {
                if let Some(Step::Read { session: before, level: was, connections: armed_on, .. }) = last_read
                    && before == session
                {
                    if level < was {
                        return Err(format!("a session read {last_read:?} and then {step:?}"));
                    }
                    // An event that a reconnect made up carries no state that the next connection would have to have.
                    let is_strict = match fired {
                        Some(Step::Fired { zxid: Some(_), .. }) => true,
                        Some(Step::Fired { connections: told_on, zxid: None, .. }) => {
                            *connections > 0 && told_on == connections && armed_on == connections
                        }
                        _ => false,
                    };
                    if is_strict && level == was {
                        return Err(format!("{fired:?} was told, and {step:?} shows nothing new"));
                    }
                }
                if let (Some(zxid), Some(Step::Fired { zxid: Some(told), session: by, .. })) = (zxid, fired)
                    && by == session
                    && zxid < told
                {
                    return Err(format!("{fired:?} was told, and {step:?} is older"));
                }
                last_read = Some(step);
                fired = None;
            }
            Step::Fired { .. } => fired = Some(step),
            _ => {}
        }
    }
    Ok(())
}

/// Events of a lasting watch come in order, and between two of them without a gap nothing is missing.
fn check_lasting(history: &[Step], sets: &[Step]) -> Result<(), String> {
    let acknowledged: BTreeMap<u64, &Step> = sets
        .iter()
        .filter_map(|step| match step {
            Step::Set { mzxid, .. } => Some((Zxid::from_i64(*mzxid).0, step)),
            _ => None,
        })
        .collect();
    let mut before: Option<Zxid> = None;
    for step in history {
        match step {
            Step::Gap { .. } => before = None,
            Step::Lasting { zxid, .. } => {
                if let Some(before) = before {
                    if *zxid <= before {
                        return Err(format!("an event of {before} was told, and then {step:?}"));
                    }
                    if let Some((_, missed)) = acknowledged.range(before.0 + 1..zxid.0).next() {
                        return Err(format!("no event for {missed:?} between {before} and {step:?}"));
                    }
                }
                before = Some(*zxid);
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(connections: u64, level: i32, zxid: u64) -> Step {
        Step::Read { at: 0, session: 1, connections, level, zxid: (zxid > 0).then_some(Zxid(zxid)) }
    }

    fn fired(connections: u64, zxid: u64) -> Step {
        Step::Fired { at: 0, session: 1, connections, zxid: (zxid > 0).then_some(Zxid(zxid)) }
    }

    fn lasting(zxid: u64) -> Step {
        Step::Lasting { at: 0, zxid: Zxid(zxid) }
    }

    fn set(mzxid: i64) -> Step {
        Step::Set { at: 0, mzxid }
    }

    #[test]
    fn a_follower_that_sees_what_it_must_is_accepted() {
        assert_eq!(check_steps(&[read(1, 3, 0), fired(1, 0), read(1, 4, 0), fired(2, 0), read(3, 4, 0)]), Ok(()));
        assert_eq!(check_steps(&[read(0, 3, 5), fired(0, 7), read(0, 4, 7)]), Ok(()));
        let gap = Step::Gap { at: 0 };
        assert_eq!(check_lasting(&[lasting(3), lasting(5), gap, lasting(9)], &[set(3), set(5), set(7)]), Ok(()));
    }

    #[test]
    fn what_must_not_happen_is_found() {
        assert!(check_steps(&[read(1, 3, 0), read(2, 2, 0)]).is_err(), "back");
        assert!(check_steps(&[read(1, 3, 0), fired(1, 0), read(1, 3, 0)]).is_err(), "nothing new");
        assert!(check_steps(&[read(0, 3, 5), fired(0, 7), read(0, 4, 6)]).is_err(), "older than the event");
        assert!(check_lasting(&[lasting(3), lasting(3)], &[]).is_err(), "twice");
        assert!(check_lasting(&[lasting(3), lasting(7)], &[set(5)]).is_err(), "missed");
    }
}
