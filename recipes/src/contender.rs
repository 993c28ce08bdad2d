//! One contender's life: enter the queue, wait, hold, leave. Locks and elections are made of it.
//!
//! A task owns the contender's znode from before its creation until it is certainly gone (R7, R8); handles only ask the
//! task to leave, by saying so or by being dropped. So no future of this crate can leak a contender, and a slow network
//! makes nobody wait in a destructor. The decisions are in `sequence.rs`; this file carries them out.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use corral_client::{
    Acl, Client, Consistency, CreateMode, CreateOptions, Created, Data, EndReason, ErrorCode, EventKind, Lease,
    MultiError, Node, OneshotWatch, OpResult, ReadRequest, ReadResult, SessionState, Stat, Transaction, WatchedEvent,
    Zxid, ambient, path as paths,
};
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::decide::delay::Marker;
use crate::decide::revocation::Revocation;
use crate::error::Error;
use crate::guarded::{Fence, Guarded, Token};
use crate::sequence::{self, ContenderId, Family, Naming, Place};

/// First pause before a refused request is made again.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How often the directory is created again when it vanishes before the contender is in it: empty containers are reaped.
const ENTER_ATTEMPTS: u32 = 16;
/// Znodes read by one multi-read when czxids are needed.
const STATS_PER_READ: usize = 500;

/// What a holder does while its client looks for another server (R6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenSuspended {
    /// The hold counts as lost at once. The standard policy: nothing is done that cannot be known to be ours.
    #[default]
    Stop,
    /// The hold counts until [`Hold::valid_until`], before which the ensemble cannot have given it to another. A change
    /// of server, or of the ensemble's leader, then costs nothing.
    UntilDeadline,
}

/// Why a hold is over although it was not released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The session is gone, and the contender with it.
    SessionEnded(EndReason),
    /// The connection broke, and the policy is [`WhenSuspended::Stop`].
    Suspended,
    /// No server acknowledged the session in time: another may hold by now.
    DeadlinePassed,
    /// The contender was deleted: by somebody else, or at the end of a session that is not known here yet.
    Removed,
    /// It was given up: its guard was released or dropped.
    Released,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Loss::SessionEnded(reason) => reason.fmt(f),
            Loss::Suspended => f.write_str("the connection broke"),
            Loss::DeadlinePassed => f.write_str("the local deadline passed"),
            Loss::Removed => f.write_str("the contender was deleted"),
            Loss::Released => f.write_str("it was given up"),
        }
    }
}

/// How a contender's znode is called.
#[derive(Clone, Debug)]
pub(crate) enum Name {
    /// By a random part, and a number that the server appends.
    Numbered(Naming),
    /// So. If it is there already, its end is waited for: it belongs to another, or to a session that is dying (R2).
    Fixed(String),
}

/// How to contend.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) directory: String,
    pub(crate) name: Name,
    /// Whose turn it is decides the queue of this family. `None`: whoever is there holds.
    pub(crate) queue: Option<Family>,
    pub(crate) data: Data,
    pub(crate) acl: Vec<Acl>,
    pub(crate) when_suspended: WhenSuspended,
    /// It contends for as long as the session lives: after a loss it holds again when it can.
    pub(crate) persists: bool,
    /// How long the next holder waits if this one does not release.
    pub(crate) lock_delay: Option<Duration>,
}

impl Spec {
    /// A place in a queue.
    pub(crate) fn queued(directory: String, family: Family, naming: Naming) -> Spec {
        Spec { queue: Some(family), ..Spec::present(directory, Name::Numbered(naming)) }
    }

    /// A presence that needs no turn.
    pub(crate) fn present(directory: String, name: Name) -> Spec {
        Spec {
            directory,
            name,
            queue: None,
            data: Data::default(),
            acl: Acl::open(),
            when_suspended: WhenSuspended::default(),
            persists: false,
            lock_delay: None,
        }
    }
}

/// How far the task is.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    /// The znode is being created.
    Entering,
    /// It is there, and others are before it.
    Waiting,
    /// It holds; terms count up, and each is another hold.
    Holding { fence: Fence, term: u64 },
    /// It held; whoever acts on it must stop. The znode may still be there.
    Lost(Loss),
    /// The znode is certainly gone, or its session is.
    Released,
    /// Deleting it was refused; tried again in the background.
    ReleaseRefused(Error),
    /// It never came to a hold.
    Failed(Error),
}

/// What the task tells.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub(crate) phase: Phase,
    /// How the last hold ended, for those who look late.
    last_loss: Option<Loss>,
    /// The data of the znode, as last read.
    data: Option<Bytes>,
}

impl Progress {
    pub(crate) fn last_loss(&self) -> Loss {
        self.last_loss.clone().unwrap_or(Loss::Released)
    }
}

/// What a holder asks of its task.
enum Command {
    /// Stand as a contender of this naming, at the same place.
    Become(Naming, oneshot::Sender<Result<(), Error>>),
    /// Do this, which deletes the znode, and be done.
    Finish(Transaction, oneshot::Sender<Result<Vec<OpResult>, Error>>),
}

/// A place in the queue. Dropping it gives the place up.
#[derive(Debug)]
pub(crate) struct Contender {
    client: Client,
    progress: watch::Receiver<Progress>,
    leave: Option<oneshot::Sender<()>>,
    commands: mpsc::Sender<Command>,
    /// What the znode says when it is created the next time.
    data: Arc<Mutex<Data>>,
}

impl Contender {
    /// Starts to contend.
    pub(crate) fn enter(client: &Client, spec: Spec) -> Contender {
        Contender::start(client, spec, Task::run)
    }

    /// Starts a task that contends in its own way.
    pub(crate) fn start<F>(client: &Client, spec: Spec, run: impl FnOnce(Task) -> F) -> Contender
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let begin = Progress { phase: Phase::Entering, last_loss: None, data: None };
        let (progress_tx, progress) = watch::channel(begin);
        let (leave_tx, leave) = oneshot::channel();
        let (commands_tx, commands) = mpsc::channel(1);
        let data = Arc::new(Mutex::new(spec.data.clone()));
        let task = Task {
            client: client.clone(),
            spec,
            data: data.clone(),
            progress: progress_tx,
            leave,
            commands,
            term: 0,
            is_marked: false,
            delay_until: None,
            fence: None,
        };
        ambient::spawn(run(task));
        Contender { client: client.clone(), progress, leave: Some(leave_tx), commands: commands_tx, data }
    }

    /// Waits until it holds.
    pub(crate) async fn first(&mut self) -> Result<Hold, Error> {
        loop {
            let phase = self.progress.borrow_and_update().phase.clone();
            match phase {
                Phase::Entering | Phase::Waiting => {}
                Phase::Holding { fence, term } => return Ok(self.hold(fence, term)),
                Phase::Lost(loss) => return Err(Error::Lost(loss)),
                Phase::Failed(error) | Phase::ReleaseRefused(error) => return Err(error),
                Phase::Released => return Err(Error::Lost(Loss::Released)),
            }
            self.changed().await?;
        }
    }

    fn hold(&self, fence: Fence, term: u64) -> Hold {
        self.holds().hold(fence, term)
    }

    /// What makes holds of what the task tells.
    pub(crate) fn holds(&self) -> Holds {
        Holds { client: self.client.clone(), progress: self.progress.clone() }
    }

    /// The hold, if it holds now.
    pub(crate) fn holding(&self) -> Option<Hold> {
        let phase = self.progress.borrow().phase.clone();
        match phase {
            Phase::Holding { fence, term } => Some(self.hold(fence, term)),
            _ => None,
        }
    }

    /// How far it is, now and later.
    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Waits until it is known whether it is the first; `None`: it is not.
    pub(crate) async fn first_or_behind(&mut self) -> Result<Option<Hold>, Error> {
        self.progress.wait_for(|now| !matches!(now.phase, Phase::Entering)).await.map_err(|_| stopped())?;
        if matches!(self.progress.borrow().phase, Phase::Waiting) {
            return Ok(None);
        }
        self.first().await.map(Some)
    }

    /// Leaves, and waits until the znode is certainly gone.
    pub(crate) async fn leave(mut self) -> Result<(), Error> {
        drop(self.leave.take());
        loop {
            let phase = self.progress.borrow_and_update().phase.clone();
            match phase {
                Phase::Released | Phase::Failed(_) => return Ok(()),
                Phase::Lost(Loss::SessionEnded(EndReason::Expired | EndReason::Closed)) => return Ok(()),
                Phase::ReleaseRefused(error) => return Err(error),
                Phase::Lost(Loss::SessionEnded(reason)) => return Err(ended("release", reason).into()),
                Phase::Entering | Phase::Waiting | Phase::Holding { .. } | Phase::Lost(_) => {}
            }
            self.changed().await?;
        }
    }

    /// Becomes a contender of another naming, at the same place. The hold ends, and another begins.
    pub(crate) async fn become_as(&mut self, naming: Naming) -> Result<Hold, Error> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Become(naming, reply), answer).await?;
        self.first().await
    }

    /// Does what deletes the znode, and with it ends the hold; if it is refused, the hold lasts.
    pub(crate) async fn finish(&mut self, transaction: Transaction) -> Result<Vec<OpResult>, Error> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Finish(transaction, reply), answer).await
    }

    async fn command<T>(&mut self, command: Command, answer: oneshot::Receiver<Result<T, Error>>) -> Result<T, Error> {
        self.commands.send(command).await.map_err(|_| Error::Lost(self.last_loss()))?;
        let last_loss = self.last_loss();
        let mut progress = self.progress.clone();
        let over = progress.wait_for(|now| !matches!(now.phase, Phase::Holding { .. }));
        tokio::select! {
            biased;
            done = answer => done.unwrap_or(Err(Error::Lost(last_loss))),
            // A task that no longer holds reads no commands.
            _ = over => Err(Error::Lost(self.last_loss())),
        }
    }

    /// What the znode is to say, now and whenever it is created anew.
    pub(crate) async fn set_data(&mut self, data: Data) -> Result<Stat, Error> {
        *self.data.lock() = data.clone();
        loop {
            let phase = self.progress.borrow_and_update().phase.clone();
            match phase {
                Phase::Holding { fence, .. } => match self.client.set(&fence.path, data.clone(), None).await {
                    Ok(stat) => return Ok(stat),
                    // Deleted; the next one is created with the new data, and set once more to be sure.
                    Err(error) if error.code() == Some(ErrorCode::NoNode) => {}
                    Err(error) => return Err(error.into()),
                },
                Phase::Entering | Phase::Waiting => {}
                Phase::Lost(Loss::SessionEnded(reason)) => return Err(ended("set", reason).into()),
                Phase::Lost(_) => {}
                Phase::Released => return Err(Error::Lost(Loss::Released)),
                Phase::Failed(error) | Phase::ReleaseRefused(error) => return Err(error),
            }
            self.changed().await?;
        }
    }

    fn last_loss(&self) -> Loss {
        self.progress.borrow().last_loss()
    }

    async fn changed(&mut self) -> Result<(), Error> {
        self.progress.changed().await.map_err(|_| stopped())
    }
}

/// Makes [`Hold`]s of one contender.
#[derive(Clone, Debug)]
pub(crate) struct Holds {
    client: Client,
    progress: watch::Receiver<Progress>,
}

impl Holds {
    pub(crate) fn hold(&self, fence: Fence, term: u64) -> Hold {
        Hold { lease: self.client.lease(), progress: self.progress.clone(), client: self.client.clone(), fence, term }
    }
}

/// The task is gone without a last word.
pub(crate) fn stopped() -> Error {
    ended("contend", EndReason::Stopped).into()
}

pub(crate) fn ended(op: &'static str, reason: EndReason) -> corral_client::Error {
    corral_client::Error::SessionEnded { op, path: String::new(), reason, outcome_unknown: false }
}

/// What a holder knows of its hold. Clones see the same hold; it lasts as long as the guard it came from, not as its
/// clones.
#[derive(Clone, Debug)]
pub struct Hold {
    client: Client,
    lease: Lease,
    fence: Fence,
    progress: watch::Receiver<Progress>,
    term: u64,
}

impl Hold {
    /// The fencing token: the czxid of the contender.
    pub fn token(&self) -> Token {
        self.fence.token
    }

    /// The contender's path.
    pub fn path(&self) -> &str {
        &self.fence.path
    }

    fn lasts(&self, phase: &Phase) -> bool {
        matches!(phase, Phase::Holding { term, .. } if *term == self.term)
    }

    /// Until when, by this process's clock, nobody else can hold. It moves on with every acknowledged ping. `None`: it is
    /// over already.
    pub fn valid_until(&self) -> Option<Instant> {
        self.lasts(&self.progress.borrow().phase).then(|| self.lease.valid_until())
    }

    /// Whether the holder may act, as far as can be known here. Once false because of a loss, it stays so.
    pub fn is_valid(&self) -> bool {
        self.valid_until().is_some_and(|until| ambient::now() < until)
    }

    /// Waits until the holder must stop: the hold was lost, or released. What it does after that must be guarded. Cancel
    /// safe.
    pub async fn lost(&self) -> Loss {
        let mut progress = self.progress.clone();
        loop {
            if let Some(loss) = self.loss(&progress.borrow_and_update()) {
                return loss;
            }
            tokio::select! {
                biased;
                changed = progress.changed() => if changed.is_err() {
                    // The task ends after its last word only, unless the runtime took it away.
                    return self.loss(&progress.borrow()).unwrap_or(Loss::SessionEnded(EndReason::Stopped));
                },
                // The task says the same a moment later; who watches the time here need not wait for it.
                () = self.lease.expired() => return match self.client.state() {
                    SessionState::Lost(reason) => Loss::SessionEnded(reason),
                    SessionState::Closed => Loss::SessionEnded(EndReason::Closed),
                    _ => Loss::DeadlinePassed,
                },
            }
        }
    }

    /// How this hold ended; `None`: it lasts, as far as the task knows.
    pub(crate) fn loss_so_far(&self) -> Option<Loss> {
        self.loss(&self.progress.borrow())
    }

    fn loss(&self, now: &Progress) -> Option<Loss> {
        match &now.phase {
            phase if self.lasts(phase) => None,
            Phase::Lost(loss) => Some(loss.clone()),
            Phase::Released | Phase::ReleaseRefused(_) | Phase::Failed(_) => Some(Loss::Released),
            // Another term has begun.
            Phase::Entering | Phase::Waiting | Phase::Holding { .. } => Some(now.last_loss()),
        }
    }

    /// Waits until somebody asks the holder to give up what it holds ([`Revoker`](crate::Revoker), or Curator's
    /// `Revoker`); `None`: it is lost or released already. A holder that ignores it goes on holding until it is forced.
    /// Cancel safe.
    pub async fn revocation(&self) -> Option<Revocation> {
        let mut progress = self.progress.clone();
        loop {
            {
                let now = progress.borrow_and_update();
                if !self.lasts(&now.phase) {
                    return None;
                }
                if let Some(asked) = now.data.as_deref().and_then(Revocation::parse) {
                    return Some(asked);
                }
            }
            progress.changed().await.ok()?;
        }
    }

    /// What another process needs to make its writes depend on this hold.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// A client whose writes depend on this hold.
    pub fn guarded(&self) -> Guarded {
        Guarded::new(self.client.clone(), self.fence.clone())
    }

    /// [`Guarded::commit`]: done only if the hold lasts when the ensemble gets to it.
    ///
    /// # Errors
    /// As there.
    pub fn commit(
        &self,
        transaction: Transaction,
    ) -> impl Future<Output = Result<Vec<OpResult>, Error>> + Send + use<> {
        self.guarded().commit(transaction)
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }
}

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
    /// When the delay after a holder that did not release is over.
    delay_until: Option<Instant>,
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

fn fired(at: usize, watch: OneshotWatch) -> BoxFuture<'static, OwnEvent> {
    async move { OwnEvent::Fired(at, watch.await) }.boxed()
}

impl Task {
    async fn run(mut self) {
        loop {
            let created = match self.enter().await {
                Entered::Created(created) => created,
                Entered::Left => return self.say(Phase::Released),
                Entered::Failed(error) => return self.say(Phase::Failed(error.into())),
            };
            loop {
                match self.wait_turn(&created).await {
                    Turn::First(own) => {
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
        let wait = Marker::parse(&data).map_or(Duration::ZERO, |before| before.wait_of(created.name()));
        if !wait.is_zero() {
            tracing::warn!(path = created.path, wait_ms = wait.as_millis(), "the last holder did not release; waiting");
            self.say(Phase::Waiting);
            tokio::select! {
                biased;
                _ = &mut self.leave => return Some(Turn::Left),
                event = &mut *own => return event.err().map(Turn::Failed),
                () = ambient::sleep_until(*self.delay_until.get_or_insert_with(|| ambient::now() + wait)) => {}
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
            match self.client.get_and_watch(&own.path).await {
                Ok((node, watch)) if self.is_ours(&node.stat, own.czxid) => events.push(fired(at, watch)),
                Ok(_) => loss = Some(Loss::Removed),
                Err(corral_client::Error::SessionEnded { reason, .. }) => loss = Some(Loss::SessionEnded(reason)),
                Err(_) => loss = Some(Loss::Removed),
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
        self.begin_term(&owns[0]);
        let mut state = Some(states.state());
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
                        events.push(fired(at, again));
                    }
                    OwnEvent::Fired(_, Err(corral_client::Error::SessionEnded { reason, .. }))
                    | OwnEvent::Read(_, Err(corral_client::Error::SessionEnded { reason, .. })) => {
                        break Loss::SessionEnded(reason);
                    }
                    // Gone, another's, or not ours to read any more: either way we cannot know that we hold.
                    OwnEvent::Fired(..) | OwnEvent::Read(..) => break Loss::Removed,
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
                            match self.client.get_and_watch(&owns[0].path).await {
                                Ok((_, watch)) => events.push(fired(0, watch)),
                                Err(corral_client::Error::SessionEnded { reason, .. }) => {
                                    break Loss::SessionEnded(reason);
                                }
                                Err(_) => break Loss::Removed,
                            }
                            self.progress.send_modify(|now| now.last_loss = Some(Loss::Released));
                            self.begin_term(&owns[0]);
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
                (true, [_]) => self.say(Phase::Released),
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

    fn begin_term(&mut self, own: &Own) {
        self.term += 1;
        let existing = || Fence::existing(&own.path, Token(Zxid::from_i64(own.czxid)));
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
        if let Some(Fence { path: of, version: Some(version), .. }) = &self.fence {
            // In this version it is our claim, and in another somebody else's.
            let ours = Transaction::new().check(of, Some(*version)).delete(path, None);
            return match self.client.multi(ours).await {
                Err(error) if error.code() == Some(ErrorCode::BadVersion) => Ok(()),
                other => other.map(drop),
            };
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

/// Whether the handle asked to leave, or is gone. Once true, the receiver must not be polled again.
pub(crate) fn has_left(leave: &mut oneshot::Receiver<()>) -> bool {
    !matches!(leave.try_recv(), Err(oneshot::error::TryRecvError::Empty))
}

/// Distinct for every contender.
pub(crate) fn random_id() -> ContenderId {
    ContenderId::from_random(u128::from(ambient::random()) << 64 | u128::from(ambient::random()))
}

/// Creates a znode, and its directory if need be (R11: as containers, which go when nobody uses them).
///
/// Inside a session the create is done exactly once (R1), so there is none of ours to look for after a reconnect.
pub(crate) async fn create_in(
    client: &Client,
    directory: &str,
    path: &str,
    data: Data,
    options: CreateOptions,
) -> corral_client::Result<Created> {
    let mut pause = RETRY_FIRST;
    let mut attempt = 1;
    loop {
        match client.create(path, data.clone(), options.clone()).await {
            Err(error) if error.code() == Some(ErrorCode::NoNode) && attempt < ENTER_ATTEMPTS => {
                attempt += 1;
                create_directory(client, directory).await?;
            }
            Err(error) if error.is_retryable() && !error.is_session_end() => {
                ambient::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
            other => return other,
        }
    }
}

/// Creates a directory whose data must outlive its children: a container would be reaped with the mark in it.
async fn create_lasting(client: &Client, directory: &str) -> corral_client::Result<()> {
    let above = paths::parent(directory).unwrap_or("/");
    match create_in(client, above, directory, Data::default(), CreateMode::Persistent.into()).await {
        Err(error) if error.code() == Some(ErrorCode::NodeExists) => Ok(()),
        other => other.map(drop),
    }
}

/// Creates a directory and what is missing above it. From below, because who may create here need not be allowed to
/// create at the top.
pub(crate) async fn create_directory(client: &Client, directory: &str) -> corral_client::Result<()> {
    let mut missing = vec![directory];
    while let Some(path) = missing.last().copied() {
        match client.create(path, (), CreateMode::Container).await {
            Ok(_) => {
                missing.pop();
            }
            Err(error) if error.code() == Some(ErrorCode::NodeExists) => {
                missing.pop();
            }
            Err(error) if error.code() == Some(ErrorCode::NoNode) => match paths::parent(path) {
                Some(parent) if parent != "/" => missing.push(parent),
                _ => return Err(error),
            },
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The contenders of a directory, first come first.
pub(crate) async fn queue(
    client: &Client,
    directory: &str,
    family: Family,
    consistency: Consistency,
) -> corral_client::Result<Vec<sequence::Contender>> {
    let children = client.read(consistency).get_children(directory).await?;
    let by_number = sequence::queue(family, children.iter().map(String::as_str), &BTreeMap::new());
    if !sequence::needs_czxids(&by_number) {
        return Ok(by_number);
    }
    let mut czxids = BTreeMap::new();
    for some in by_number.chunks(STATS_PER_READ) {
        let reads = some.iter().map(|c| ReadRequest::Get(paths::join(directory, &c.name))).collect();
        let results = client.multi_read(reads).await?;
        for (contender, result) in some.iter().zip(results) {
            if let Ok(ReadResult::Node(node)) = result {
                czxids.insert(contender.name.clone(), node.stat.czxid);
            }
        }
    }
    // Who is gone by now is no contender any more.
    let present: Vec<&str> =
        by_number.iter().map(|c| c.name.as_str()).filter(|name| czxids.contains_key(*name)).collect();
    Ok(sequence::queue(family, present, &czxids))
}
