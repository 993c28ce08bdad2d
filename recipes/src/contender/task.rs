//! The task that owns a contender's znode.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use corral_client::{
    Client, Consistency, CreateMode, CreateOptions, Created, Data, EndReason, ErrorCode, EventKind, MultiError, Node,
    OneshotWatch, OpResult, SessionState, Stat, Transaction, WatchedEvent, Zxid, ambient, path as paths,
};
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::directory::{create_in, create_lasting, queue};
use super::hold::{Loss, WhenSuspended};
use super::{Command, Name, Phase, Progress, RETRY_FIRST, RETRY_MAX, Spec, has_left, random_id};
use crate::decide::delay::{Marker, Wait};
use crate::error::Error;
use crate::guarded::{Fence, Token};
use crate::sequence::{self, Naming, Place};

/// The owner of the znode, or of several that stand and fall together.
pub(crate) struct Task {
    pub(crate) client: Client,
    pub(crate) spec: Spec,
    data: Arc<Mutex<Data>>,
    progress: watch::Sender<Progress>,
    pub(crate) leave: oneshot::Receiver<()>,
    commands: mpsc::Receiver<Command>,
    term: u64,
    /// The directory says that we hold: a release must take that back.
    is_marked: bool,
    /// What to check for a hold whose znode's name comes back.
    pub(crate) fence: Option<Fence>,
    /// A znode beside it that goes with it, with a name that does not come back.
    pub(crate) mark: Option<String>,
    /// How long to wait after a holder that did not release.
    delay: Wait<Instant>,
}

/// A znode of ours.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    pub(crate) path: String,
    pub(crate) czxid: i64,
}

impl From<&Created> for Own {
    fn from(created: &Created) -> Own {
        Own { path: created.path.clone(), czxid: created.stat.czxid }
    }
}

/// How waiting ended.
enum Turn {
    First(Box<OneshotWatch>),
    Left,
    Gone,
    Failed(corral_client::Error),
}

/// How creating ended.
enum Entered {
    Created(Created),
    Left,
    Failed(corral_client::Error),
}

/// What comes after a hold.
enum After {
    /// The task is done.
    Nothing,
    /// The znode is still there, and contends again.
    Again,
    /// The znode is gone, and another one contends.
    Reenter,
}

/// Which of several znodes, and what is known of it now.
enum OwnEvent {
    /// Something happened to it.
    Fired(usize, corral_client::Result<WatchedEvent>),
    /// It was read again, after that.
    Read(usize, corral_client::Result<(Node, OneshotWatch)>),
}

/// What is awaited of znodes of ours: never inline, because an answer may take as long as the connection is broken.
type OwnEvents = FuturesUnordered<BoxFuture<'static, OwnEvent>>;

/// What a failure to read a znode of ours means for the hold; `None`: nothing, it is to be read again.
fn loss_of(error: corral_client::Error) -> Option<Loss> {
    match error {
        corral_client::Error::SessionEnded { reason, .. } => Some(Loss::SessionEnded(reason)),
        error if error.code() == Some(ErrorCode::NoNode) => Some(Loss::Removed),
        error if error.is_retryable() => None,
        error => Some(Loss::Unreadable(error)),
    }
}

fn fired(at: usize, watch: OneshotWatch) -> BoxFuture<'static, OwnEvent> {
    async move { OwnEvent::Fired(at, watch.await) }.boxed()
}

impl Task {
    /// A task that has yet to begin.
    pub(super) fn new(
        client: Client,
        spec: Spec,
        data: Arc<Mutex<Data>>,
        progress: watch::Sender<Progress>,
        leave: oneshot::Receiver<()>,
        commands: mpsc::Receiver<Command>,
    ) -> Task {
        Task {
            client,
            spec,
            data,
            progress,
            leave,
            commands,
            term: 0,
            is_marked: false,
            fence: None,
            mark: None,
            delay: Wait::default(),
        }
    }

    pub(super) async fn run(mut self) {
        let mut pause = RETRY_FIRST;
        loop {
            let created = match self.enter().await {
                Entered::Created(created) => created,
                Entered::Left => return self.say(Phase::Released),
                Entered::Failed(error) => return self.say(Phase::Failed(error.into())),
            };
            loop {
                match self.wait_turn(&created).await {
                    Turn::First(own) => {
                        pause = RETRY_FIRST;
                        let mut owns = vec![Own::from(&created)];
                        let events = FuturesUnordered::new();
                        events.push(fired(0, *own));
                        match self.hold(&mut owns, events).await {
                            After::Nothing => return,
                            After::Again => {}
                            After::Reenter => break,
                        }
                    }
                    Turn::Left => return self.release(&[Own::from(&created)], true).await,
                    // Somebody deleted it, or the whole directory: we go to the end of the queue (R11).
                    Turn::Gone => {
                        tracing::info!(path = created.path, "a waiting contender was deleted; entering again");
                        break;
                    }
                    Turn::Failed(error) if error.is_retryable() => {
                        tracing::debug!(path = created.path, %error, "refused for now; looking again");
                        if !self.pauses(&mut pause).await {
                            return self.release(&[Own::from(&created)], true).await;
                        }
                    }
                    Turn::Failed(error) => {
                        let session_is_over = error.is_session_end();
                        self.say(Phase::Failed(error.into()));
                        if !session_is_over {
                            // Quietly: the failure is the last word.
                            self.release(&[Own::from(&created)], false).await;
                        }
                        return;
                    }
                }
            }
            if self.has_left() {
                return self.say(Phase::Released);
            }
            self.is_marked = false;
            self.say(Phase::Entering);
        }
    }

    /// Whether the handle asked to leave, or is gone.
    pub(crate) fn has_left(&mut self) -> bool {
        has_left(&mut self.leave)
    }

    pub(crate) fn say(&self, phase: Phase) {
        self.progress.send_modify(|now| {
            if let Phase::Lost(loss) = &phase {
                now.last_loss = Some(loss.clone());
            }
            now.phase = phase;
        });
    }

    /// Pauses before something is tried again, each time for longer; `false`: the handle asked to leave, or is gone.
    async fn pauses(&mut self, pause: &mut Duration) -> bool {
        let now = *pause;
        *pause = (now * 2).min(RETRY_MAX);
        tokio::select! {
            biased;
            _ = &mut self.leave => false,
            () = ambient::sleep(now) => true,
        }
    }

    fn show(&self, data: Option<Bytes>) {
        self.progress.send_if_modified(|now| {
            let is_new = now.data != data;
            now.data = data;
            is_new
        });
    }

    async fn enter(&mut self) -> Entered {
        let name = match &self.spec.name {
            Name::Numbered(naming) => {
                let prefix = naming.prefix(random_id());
                let data = self.data.lock().clone();
                if self.spec.lock_delay.is_some()
                    && let Err(error) = create_lasting(&self.client, &self.spec.directory).await
                {
                    return Entered::Failed(error);
                }
                // Not cut short by a leave: a create that is under way will be done, and what it makes must be deleted.
                let path = paths::join(&self.spec.directory, &prefix);
                let options = CreateOptions::new(CreateMode::EphemeralSequential).acl(self.spec.acl.clone());
                return match create_in(&self.client, &self.spec.directory, &path, data, options).await {
                    Ok(created) => Entered::Created(created),
                    Err(error) => Entered::Failed(error),
                };
            }
            Name::Fixed(name) => name.clone(),
        };
        let path = paths::join(&self.spec.directory, &name);
        let mut pause = RETRY_FIRST;
        loop {
            if self.has_left() {
                return Entered::Left;
            }
            let options = CreateOptions::new(CreateMode::Ephemeral).acl(self.spec.acl.clone());
            let data = self.data.lock().clone();
            match create_in(&self.client, &self.spec.directory, &path, data, options).await {
                Ok(created) => return Entered::Created(created),
                Err(error) if error.code() == Some(ErrorCode::NodeExists) => {}
                Err(error) => return Entered::Failed(error),
            }
            // Somebody else's, or ours from another session or another handle: never taken for this one (R2).
            let gone = match self.client.get_and_watch(&path).await {
                Ok((_, gone)) => gone,
                Err(error) if error.code() == Some(ErrorCode::NoNode) => continue,
                Err(error) if error.is_retryable() => match self.pauses(&mut pause).await {
                    true => continue,
                    false => return Entered::Left,
                },
                Err(error) => return Entered::Failed(error),
            };
            tracing::debug!(path, "the name is taken; waiting until it is free");
            tokio::select! {
                biased;
                _ = &mut self.leave => return Entered::Left,
                event = gone => if let Err(error) = event { return Entered::Failed(error) },
            }
        }
    }

    async fn wait_turn(&mut self, created: &Created) -> Turn {
        let mut own_watch: Option<Box<OneshotWatch>> = None;
        loop {
            if self.has_left() {
                return Turn::Left;
            }
            let own = match own_watch.take() {
                Some(own) => own,
                None => match self.client.get_and_watch(&created.path).await {
                    // R2: the node must be ours, and the one we created.
                    Ok((node, own)) if self.is_ours(&node.stat, created.stat.czxid) => {
                        self.show(node.data);
                        Box::new(own)
                    }
                    Ok(_) => return Turn::Gone,
                    Err(error) if error.code() == Some(ErrorCode::NoNode) => return Turn::Gone,
                    Err(error) => return Turn::Failed(error),
                },
            };
            let Some(family) = self.spec.queue else { return Turn::First(own) };
            // Linearizable: our server may lag behind, and a predecessor that is gone must not keep us waiting for an
            // event that was before our watch, nor one that is back in the tree's past let us in too early.
            let queue = match queue(&self.client, &self.spec.directory, family, Consistency::Linearizable).await {
                Ok(queue) => queue,
                Err(error) if error.code() == Some(ErrorCode::NoNode) => return Turn::Gone,
                Err(error) => return Turn::Failed(error),
            };
            let predecessor = match sequence::place(&queue, created.name()) {
                Place::First => match self.settle(created, own).await {
                    Some(turn) => return turn,
                    None => continue,
                },
                Place::Gone => return Turn::Gone,
                Place::Behind { predecessor, ahead } => {
                    tracing::debug!(path = created.path, ahead, predecessor, "waiting");
                    self.say(Phase::Waiting);
                    paths::join(&self.spec.directory, &predecessor)
                }
            };
            // R9: its data and not its existence, so that no watch stays on a name that never comes back.
            let gone = match self.client.get_and_watch(&predecessor).await {
                Ok((_, gone)) => gone,
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                    own_watch = Some(own);
                    continue;
                }
                Err(error) => return Turn::Failed(error),
            };
            let mut own = own;
            tokio::select! {
                biased;
                _ = &mut self.leave => return Turn::Left,
                // Changed or deleted: looked at again above.
                event = &mut *own => if let Err(error) = event { return Turn::Failed(error) },
                event = gone => match event {
                    Ok(_) => own_watch = Some(own),
                    Err(error) => return Turn::Failed(error),
                },
            }
        }
    }

    /// First in the queue; with a lock delay, the turn comes when that of a holder before who did not release is over.
    /// `None`: something happened meanwhile, look again.
    async fn settle(&mut self, created: &Created, mut own: Box<OneshotWatch>) -> Option<Turn> {
        let Some(delay) = self.spec.lock_delay else { return Some(Turn::First(own)) };
        if self.is_marked {
            return Some(Turn::First(own));
        }
        let directory = self.spec.directory.clone();
        let data = match self.client.read(Consistency::Linearizable).get(&directory).await {
            Ok(node) => node.data.unwrap_or_default(),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => return Some(Turn::Gone),
            Err(error) => return Some(Turn::Failed(error)),
        };
        let before = Marker::parse(&data);
        let now = ambient::now();
        if let Some(until) = before.and_then(|before| self.delay.until(&before, created.name(), now)) {
            let wait_ms = until.saturating_duration_since(now).as_millis();
            tracing::warn!(path = created.path, wait_ms, "the last holder did not release; waiting");
            self.say(Phase::Waiting);
            tokio::select! {
                biased;
                _ = &mut self.leave => return Some(Turn::Left),
                event = &mut *own => return event.err().map(Turn::Failed),
                () = ambient::sleep_until(until) => {}
            }
        }
        let marker = Marker { holder: created.name().to_owned(), delay };
        let mark = Transaction::new().check(&created.path, None).set(&directory, marker.encode(), None);
        match self.client.multi(mark).await {
            Ok(_) => {
                self.is_marked = true;
                Some(Turn::First(own))
            }
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Some(Turn::Gone),
            Err(error) => Some(Turn::Failed(error)),
        }
    }

    fn is_ours(&self, stat: &Stat, czxid: i64) -> bool {
        stat.ephemeral_owner == self.client.session_id().0 && stat.czxid == czxid
    }

    /// Holds znodes that are there already.
    pub(crate) async fn adopt(&mut self, mut owns: Vec<Own>) {
        let events = FuturesUnordered::new();
        let mut loss = None;
        for (at, own) in owns.iter().enumerate() {
            let mut pause = RETRY_FIRST;
            loop {
                match self.client.get_and_watch(&own.path).await {
                    Ok((node, watch)) if self.is_ours(&node.stat, own.czxid) => events.push(fired(at, watch)),
                    Ok(_) => loss = Some(Loss::Removed),
                    Err(error) => match loss_of(error) {
                        Some(over) => loss = Some(over),
                        None if self.pauses(&mut pause).await => continue,
                        // Nobody waits for it any more.
                        None => return self.release(&owns, true).await,
                    },
                }
                break;
            }
        }
        match loss {
            None => {
                self.hold(&mut owns, events).await;
            }
            Some(loss) => {
                let session_is_over = matches!(loss, Loss::SessionEnded(_));
                self.say(Phase::Lost(loss));
                if !session_is_over {
                    self.release(&owns, false).await;
                }
            }
        }
    }

    async fn hold(&mut self, owns: &mut Vec<Own>, mut events: OwnEvents) -> After {
        let lease = self.client.lease();
        let mut states = self.client.events();
        let stop = self.spec.when_suspended == WhenSuspended::Stop;
        self.begin_term(owns);
        let mut state = Some(states.state());
        let mut pause = RETRY_FIRST;
        let loss = loop {
            match state.take() {
                Some(SessionState::Suspended) if stop => break Loss::Suspended,
                Some(SessionState::Lost(reason)) => break Loss::SessionEnded(reason),
                Some(SessionState::Closed) => break Loss::SessionEnded(EndReason::Closed),
                _ => {}
            }
            tokio::select! {
                biased;
                _ = &mut self.leave => {
                    self.release(owns, true).await;
                    return After::Nothing;
                }
                Some(event) = events.next() => match event {
                    OwnEvent::Fired(_, Ok(event)) if event.kind == EventKind::NodeDeleted => break Loss::Removed,
                    OwnEvent::Fired(at, Ok(_)) => {
                        let read = self.client.get_and_watch(&owns[at].path);
                        events.push(async move { OwnEvent::Read(at, read.await) }.boxed());
                    }
                    OwnEvent::Read(at, Ok((node, again))) if self.is_ours(&node.stat, owns[at].czxid) => {
                        if at == 0 {
                            self.show(node.data);
                        }
                        pause = RETRY_FIRST;
                        events.push(fired(at, again));
                    }
                    // Another's.
                    OwnEvent::Read(_, Ok(_)) => break Loss::Removed,
                    OwnEvent::Fired(at, Err(error)) | OwnEvent::Read(at, Err(error)) => {
                        if let Some(loss) = loss_of(error) {
                            break loss;
                        }
                        let (client, path, after) = (self.client.clone(), owns[at].path.clone(), pause);
                        pause = (pause * 2).min(RETRY_MAX);
                        let read = async move {
                            ambient::sleep(after).await;
                            OwnEvent::Read(at, client.get_and_watch(&path).await)
                        };
                        events.push(read.boxed());
                    }
                },
                next = states.next() => state = Some(next.unwrap_or(SessionState::Lost(EndReason::Stopped))),
                () = lease.expired() => state = match states.state() {
                    over if over.is_final() => Some(over),
                    _ => break Loss::DeadlinePassed,
                },
                Some(command) = self.commands.recv() => match command {
                    Command::Finish(transaction, reply) => match self.client.multi(transaction).await {
                        Ok(results) => {
                            let _ = reply.send(Ok(results));
                            self.say(Phase::Released);
                            return After::Nothing;
                        }
                        Err(error) => drop(reply.send(Err(error.into()))),
                    },
                    Command::Become(naming, reply) => match self.replace(&owns[0], naming).await {
                        Ok(own) => {
                            *owns = vec![own];
                            events = FuturesUnordered::new();
                            let read = self.client.get_and_watch(&owns[0].path);
                            events.push(async move { OwnEvent::Read(0, read.await) }.boxed());
                            self.progress.send_modify(|now| now.last_loss = Some(Loss::Released));
                            self.begin_term(owns);
                            let _ = reply.send(Ok(()));
                        }
                        Err(error) => drop(reply.send(Err(error))),
                    },
                },
            }
        };
        tracing::warn!(path = owns[0].path, reason = %loss, "a hold was lost");
        let session_is_over = matches!(loss, Loss::SessionEnded(_));
        let is_gone = loss == Loss::Removed;
        self.say(Phase::Lost(loss));
        if session_is_over {
            return After::Nothing;
        }
        if self.spec.persists {
            return self.recover(owns, is_gone, &mut states).await;
        }
        // The holder is told; its contender stays until the guard is given up, so that the next waits for that.
        tokio::select! {
            biased;
            // What is certainly gone is not deleted again: its name may be another's by now.
            _ = &mut self.leave => match (is_gone, owns.as_slice()) {
                (true, [_]) if self.mark.is_none() => self.say(Phase::Released),
                _ => self.release(owns, true).await,
            },
            over = states.ended() => self.say(Phase::Lost(Loss::SessionEnded(end_of(over)))),
        }
        After::Nothing
    }

    /// After a loss that is not the session's: when a server serves the session again, so does the contender.
    async fn recover(&mut self, owns: &[Own], is_gone: bool, states: &mut corral_client::SessionEvents) -> After {
        while !is_gone && states.state() != SessionState::Connected {
            tokio::select! {
                biased;
                _ = &mut self.leave => {
                    self.release(owns, true).await;
                    return After::Nothing;
                }
                state = states.next() => match state {
                    Some(over) if over.is_final() => {
                        self.say(Phase::Lost(Loss::SessionEnded(end_of(over))));
                        return After::Nothing;
                    }
                    None => {
                        self.say(Phase::Lost(Loss::SessionEnded(EndReason::Stopped)));
                        return After::Nothing;
                    }
                    Some(_) => {}
                },
            }
        }
        if self.has_left() {
            self.release(owns, true).await;
            return After::Nothing;
        }
        if is_gone { After::Reenter } else { After::Again }
    }

    /// All of them are ours; the token is that of the first.
    fn begin_term(&mut self, owns: &[Own]) {
        self.term += 1;
        let existing = || Fence {
            also: owns[1..].iter().map(|own| (own.path.clone(), None)).collect(),
            ..Fence::existing(&owns[0].path, Token(Zxid::from_i64(owns[0].czxid)))
        };
        let fence = self.fence.clone().unwrap_or_else(existing);
        self.say(Phase::Holding { fence, term: self.term });
    }

    /// Creates a znode of another naming under the number of `own`, and deletes that, in one step.
    async fn replace(&self, own: &Own, naming: Naming) -> Result<Own, Error> {
        let name = paths::name(&own.path);
        let parsed = self.spec.queue.and_then(|family| sequence::Contender::parse_in(family, name));
        let sure = parsed.filter(sequence::Contender::has_sure_number);
        let Some(number) = sure.map(|contender| contender.sequence) else {
            return Err(Error::NumberNotSure { path: own.path.clone() });
        };
        let name = format!("{}{number:010}", naming.prefix(random_id()));
        let path = paths::join(&self.spec.directory, &name);
        let data = self.data.lock().clone();
        let options = CreateOptions::new(CreateMode::Ephemeral).acl(self.spec.acl.clone());
        let exchange = Transaction::new().delete(&own.path, None).create(&path, data, options);
        let czxid = match self.client.multi(exchange).await {
            Ok(results) => match results.into_iter().next_back() {
                Some(OpResult::Created(created)) => created.stat.czxid,
                other => return Err(crate::guarded::unexpected("multi", &path, &other)),
            },
            Err(corral_client::Error::Multi(MultiError { index: 0, code: ErrorCode::NoNode, .. })) => {
                return Err(Error::Fenced { token: Token(Zxid::from_i64(own.czxid)), path: own.path.clone() });
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Own { path, czxid })
    }

    /// Deletes one znode, if it is still ours: names that are not random come back, for others.
    async fn delete(&self, own: &Own) -> corral_client::Result<()> {
        let path = &own.path;
        if self.is_marked {
            // Clean: the next need not wait.
            let clean = Transaction::new().delete(path, None).set(&self.spec.directory, (), None);
            return self.client.multi(clean).await.map(drop);
        }
        if let (Some(fence), Some(mark)) = (&self.fence, &self.mark) {
            // While the mark is there and the fence holds it is our claim, and else somebody else's, or nobody's.
            let ours = fence.guard(Transaction::new().delete(mark, None).delete(path, None));
            let is_over = |code| matches!(code, Some(ErrorCode::NoNode | ErrorCode::BadVersion));
            match self.client.multi(ours).await {
                Err(error) if is_over(error.code()) => {}
                other => return other.map(drop),
            }
            match self.client.delete(mark, None).await {
                Err(error) if error.code() != Some(ErrorCode::NoNode) => return Err(error),
                _ => {}
            }
        }
        if matches!(self.spec.name, Name::Fixed(_)) {
            match self.client.read(Consistency::Linearizable).exists(path).await? {
                Some(stat) if self.is_ours(&stat, own.czxid) => {}
                _ => return Ok(()),
            }
        }
        self.client.delete(path, None).await
    }

    /// Deletes the znodes, for as long as it takes (R7), and says how that goes if it is to `tell`.
    pub(crate) async fn release(&self, owns: &[Own], tell: bool) {
        let say = |phase| {
            if tell {
                self.say(phase);
            }
        };
        let mut pause = RETRY_FIRST;
        for own in owns {
            let path = &own.path;
            loop {
                let deleted = self.delete(own).await;
                match deleted {
                    Ok(()) => break,
                    Err(error) if error.code() == Some(ErrorCode::NoNode) => break,
                    Err(corral_client::Error::SessionEnded {
                        reason: EndReason::Expired | EndReason::Closed, ..
                    }) => {
                        return say(Phase::Released);
                    }
                    Err(error) if error.is_session_end() => return say(Phase::ReleaseRefused(error.into())),
                    Err(error) => {
                        if !error.is_retryable() {
                            tracing::warn!(path, %error, "a contender cannot be deleted yet");
                            say(Phase::ReleaseRefused(error.into()));
                        }
                        ambient::sleep(pause).await;
                        pause = (pause * 2).min(RETRY_MAX);
                    }
                }
            }
        }
        say(Phase::Released);
    }
}

fn end_of(state: SessionState) -> EndReason {
    match state {
        SessionState::Lost(reason) => reason,
        _ => EndReason::Closed,
    }
}
