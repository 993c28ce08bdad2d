//! One contender's life: enter the queue, wait, hold, leave. Locks and elections are made of it.
//!
//! A task owns the contender's znode from before its creation until it is certainly gone (R7, R8); handles only ask the
//! task to leave, by saying so or by being dropped. So no future of this crate can leak a contender, and a slow network
//! makes nobody wait in a destructor. The decisions are in `sequence.rs`; this file carries them out.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use corral_client::{
    Acl, Client, Consistency, CreateMode, CreateOptions, Created, Data, EndReason, ErrorCode, EventKind, Lease,
    OneshotWatch, OpResult, ReadRequest, ReadResult, SessionState, Transaction, Zxid, path as paths,
};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::error::Error;
use crate::guarded::{Fence, Guarded, Token};
use crate::sequence::{self, ContenderId, Layout, Place};

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

/// How to contend.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) directory: String,
    pub(crate) layout: Layout,
    pub(crate) data: Data,
    pub(crate) acl: Vec<Acl>,
    pub(crate) when_suspended: WhenSuspended,
}

impl Spec {
    pub(crate) fn new(directory: String, layout: Layout) -> Spec {
        Spec { directory, layout, data: Data::default(), acl: Acl::open(), when_suspended: WhenSuspended::default() }
    }
}

/// How far the task is.
#[derive(Clone, Debug)]
enum Phase {
    /// The znode is being created.
    Entering,
    /// It is there, and others are before it.
    Waiting,
    /// It is the first.
    Holding(Fence),
    /// It was the first; whoever acts on it must stop. The znode may still be there.
    Lost(Loss),
    /// The znode is certainly gone, or its session is.
    Released,
    /// Deleting it was refused; tried again in the background.
    ReleaseRefused(corral_client::Error),
    /// It never came to a hold.
    Failed(corral_client::Error),
}

/// A place in the queue. Dropping it gives the place up.
#[derive(Debug)]
pub(crate) struct Contender {
    client: Client,
    phase: watch::Receiver<Phase>,
    leave: Option<oneshot::Sender<()>>,
}

impl Contender {
    /// Starts to contend.
    pub(crate) fn enter(client: &Client, spec: Spec) -> Contender {
        let (phase_tx, phase) = watch::channel(Phase::Entering);
        let (leave_tx, leave) = oneshot::channel();
        let task = Task { client: client.clone(), spec, phase: phase_tx, leave };
        tokio::spawn(task.run());
        Contender { client: client.clone(), phase, leave: Some(leave_tx) }
    }

    /// Waits until it is the first.
    pub(crate) async fn first(&mut self) -> Result<Hold, Error> {
        loop {
            let phase = self.phase.borrow_and_update().clone();
            match phase {
                Phase::Entering | Phase::Waiting => {}
                Phase::Holding(fence) => {
                    return Ok(Hold {
                        lease: self.client.lease(),
                        phase: self.phase.clone(),
                        client: self.client.clone(),
                        fence,
                    });
                }
                Phase::Lost(loss) => return Err(Error::Lost(loss)),
                Phase::Failed(error) | Phase::ReleaseRefused(error) => return Err(error.into()),
                Phase::Released => return Err(Error::Lost(Loss::Released)),
            }
            self.changed().await?;
        }
    }

    /// Waits until it is known whether it is the first; `None`: it is not.
    pub(crate) async fn first_or_behind(&mut self) -> Result<Option<Hold>, Error> {
        self.phase.wait_for(|phase| !matches!(phase, Phase::Entering)).await.map_err(|_| stopped())?;
        if matches!(&*self.phase.borrow(), Phase::Waiting) {
            return Ok(None);
        }
        self.first().await.map(Some)
    }

    /// Leaves, and waits until the znode is certainly gone.
    pub(crate) async fn leave(mut self) -> Result<(), Error> {
        drop(self.leave.take());
        loop {
            let phase = self.phase.borrow_and_update().clone();
            match phase {
                Phase::Released | Phase::Failed(_) => return Ok(()),
                Phase::Lost(Loss::Removed | Loss::SessionEnded(EndReason::Expired | EndReason::Closed)) => {
                    return Ok(());
                }
                Phase::ReleaseRefused(error) => return Err(error.into()),
                Phase::Lost(Loss::SessionEnded(reason)) => return Err(ended("release", reason).into()),
                Phase::Entering | Phase::Waiting | Phase::Holding(_) | Phase::Lost(_) => {}
            }
            self.changed().await?;
        }
    }

    async fn changed(&mut self) -> Result<(), Error> {
        self.phase.changed().await.map_err(|_| stopped())
    }
}

/// The task is gone without a last word.
fn stopped() -> Error {
    ended("contend", EndReason::Stopped).into()
}

fn ended(op: &'static str, reason: EndReason) -> corral_client::Error {
    corral_client::Error::SessionEnded { op, path: String::new(), reason, outcome_unknown: false }
}

/// What a holder knows of its hold. Clones see the same hold; it lasts as long as the guard it came from, not as its
/// clones.
#[derive(Clone, Debug)]
pub struct Hold {
    client: Client,
    lease: Lease,
    fence: Fence,
    phase: watch::Receiver<Phase>,
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

    /// Until when, by this process's clock, nobody else can hold. It moves on with every acknowledged ping. `None`: it is
    /// over already.
    pub fn valid_until(&self) -> Option<Instant> {
        matches!(&*self.phase.borrow(), Phase::Holding(_)).then(|| self.lease.valid_until())
    }

    /// Whether the holder may act, as far as can be known here. Once false, it stays so.
    pub fn is_valid(&self) -> bool {
        self.valid_until().is_some_and(|until| Instant::now() < until)
    }

    /// Waits until the holder must stop: the hold was lost, or released. What it does after that must be guarded.
    pub async fn lost(&self) -> Loss {
        let mut phase = self.phase.clone();
        loop {
            match &*phase.borrow_and_update() {
                Phase::Lost(loss) => return loss.clone(),
                Phase::Released | Phase::ReleaseRefused(_) | Phase::Failed(_) => return Loss::Released,
                Phase::Entering | Phase::Waiting | Phase::Holding(_) => {}
            }
            tokio::select! {
                changed = phase.changed() => if changed.is_err() {
                    // The task ends after its last word only, unless the runtime took it away.
                    return match &*phase.borrow() {
                        Phase::Lost(loss) => loss.clone(),
                        Phase::Holding(_) => Loss::SessionEnded(EndReason::Stopped),
                        _ => Loss::Released,
                    };
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

/// The owner of the znode.
struct Task {
    client: Client,
    spec: Spec,
    phase: watch::Sender<Phase>,
    leave: oneshot::Receiver<()>,
}

/// How waiting ended.
enum Turn {
    First(Box<OneshotWatch>),
    Left,
    Gone,
    Failed(corral_client::Error),
}

impl Task {
    async fn run(mut self) {
        loop {
            // Not cut short by a leave: a create that is under way will be done, and what it makes must be deleted.
            let created = match create_contender(&self.client, &self.spec).await {
                Ok(created) => created,
                Err(error) => return self.say(Phase::Failed(error)),
            };
            match self.wait_turn(&created).await {
                Turn::First(own) => return self.hold(created, *own).await,
                Turn::Left => return self.release(&created.path, true).await,
                // Somebody deleted it, or the whole directory: we go to the end of the queue (R11).
                Turn::Gone => tracing::info!(path = created.path, "a waiting contender was deleted; entering again"),
                Turn::Failed(error) => {
                    let session_is_over = error.is_session_end();
                    self.say(Phase::Failed(error));
                    if !session_is_over {
                        // Quietly: the failure is the last word.
                        self.release(&created.path, false).await;
                    }
                    return;
                }
            }
            if has_left(&mut self.leave) {
                return self.say(Phase::Released);
            }
        }
    }

    fn say(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    async fn wait_turn(&mut self, created: &Created) -> Turn {
        let mut own_watch: Option<Box<OneshotWatch>> = None;
        loop {
            if has_left(&mut self.leave) {
                return Turn::Left;
            }
            let own = match own_watch.take() {
                Some(own) => own,
                None => match self.client.get_and_watch(&created.path).await {
                    // R2: the node must be ours, and the one we created.
                    Ok((node, own)) if self.is_ours(&node.stat, created) => Box::new(own),
                    Ok(_) => return Turn::Gone,
                    Err(error) if error.code() == Some(ErrorCode::NoNode) => return Turn::Gone,
                    Err(error) => return Turn::Failed(error),
                },
            };
            // Linearizable: our server may lag behind, and a predecessor that is gone must not keep us waiting for an
            // event that was before our watch, nor one that is back in the tree's past let us in too early.
            let queue = match queue(&self.client, &self.spec.directory, Consistency::Linearizable).await {
                Ok(queue) => queue,
                Err(error) if error.code() == Some(ErrorCode::NoNode) => return Turn::Gone,
                Err(error) => return Turn::Failed(error),
            };
            let predecessor = match sequence::place(&queue, created.name()) {
                Place::First => return Turn::First(own),
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

    fn is_ours(&self, stat: &corral_client::Stat, created: &Created) -> bool {
        stat.ephemeral_owner == self.client.session_id().0 && stat.czxid == created.stat.czxid
    }

    async fn hold(mut self, created: Created, mut own: OneshotWatch) {
        let lease = self.client.lease();
        let mut events = self.client.events();
        let stop = self.spec.when_suspended == WhenSuspended::Stop;
        let token = Token(Zxid::from_i64(created.stat.czxid));
        self.say(Phase::Holding(Fence { path: created.path.clone(), token }));
        let mut state = Some(events.state());
        let loss = loop {
            match state.take() {
                Some(SessionState::Suspended) if stop => break Loss::Suspended,
                Some(SessionState::Lost(reason)) => break Loss::SessionEnded(reason),
                Some(SessionState::Closed) => break Loss::SessionEnded(EndReason::Closed),
                _ => {}
            }
            tokio::select! {
                biased;
                _ = &mut self.leave => return self.release(&created.path, true).await,
                event = &mut own => match event {
                    Ok(event) if event.kind == EventKind::NodeDeleted => break Loss::Removed,
                    Ok(_) => match self.client.get_and_watch(&created.path).await {
                        Ok((_, again)) => own = again,
                        Err(corral_client::Error::SessionEnded { reason, .. }) => break Loss::SessionEnded(reason),
                        // Gone, or not ours to read any more: either way we cannot know that we hold.
                        Err(_) => break Loss::Removed,
                    },
                    Err(corral_client::Error::SessionEnded { reason, .. }) => break Loss::SessionEnded(reason),
                    Err(_) => break Loss::Removed,
                },
                next = events.next() => state = Some(next.unwrap_or(SessionState::Lost(EndReason::Stopped))),
                () = lease.expired() => state = match events.state() {
                    over if over.is_final() => Some(over),
                    _ => break Loss::DeadlinePassed,
                },
            }
        };
        tracing::warn!(path = created.path, %token, reason = %loss, "a hold was lost");
        let session_is_over = matches!(loss, Loss::SessionEnded(_));
        self.say(Phase::Lost(loss));
        if session_is_over {
            return;
        }
        // The holder is told; its contender stays until the guard is given up, so that the next waits for that.
        tokio::select! {
            biased;
            _ = &mut self.leave => self.release(&created.path, true).await,
            over = events.ended() => self.say(Phase::Lost(Loss::SessionEnded(match over {
                SessionState::Lost(reason) => reason,
                _ => EndReason::Closed,
            }))),
        }
    }

    /// Deletes the znode, for as long as it takes (R7), and says how that goes if it is to `tell`.
    async fn release(&self, path: &str, tell: bool) {
        let say = |phase| {
            if tell {
                self.say(phase);
            }
        };
        let mut pause = RETRY_FIRST;
        loop {
            match self.client.delete(path, None).await {
                Ok(()) => return say(Phase::Released),
                Err(error) if error.code() == Some(ErrorCode::NoNode) => return say(Phase::Released),
                Err(corral_client::Error::SessionEnded { reason: EndReason::Expired | EndReason::Closed, .. }) => {
                    return say(Phase::Released);
                }
                Err(error) if error.is_session_end() => return say(Phase::ReleaseRefused(error)),
                Err(error) => {
                    if !error.is_retryable() {
                        tracing::warn!(path, %error, "a contender cannot be deleted yet");
                        say(Phase::ReleaseRefused(error));
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
    }
}

/// Whether the handle asked to leave, or is gone. Once true, the receiver must not be polled again.
fn has_left(leave: &mut oneshot::Receiver<()>) -> bool {
    !matches!(leave.try_recv(), Err(oneshot::error::TryRecvError::Empty))
}

/// Creates the contender, and its directory if need be (R11: as containers, which go when nobody uses them).
///
/// Inside a session the create is done exactly once (R1), so there is no contender of ours to look for after a reconnect.
async fn create_contender(client: &Client, spec: &Spec) -> corral_client::Result<Created> {
    // Distinct for every contender; the kernel's randomness reaches us through the standard library's hash keys.
    let random = || u128::from(std::hash::RandomState::new().build_hasher().finish());
    let id = ContenderId::from_random(random() << 64 | random());
    let path = paths::join(&spec.directory, &spec.layout.prefix(id));
    let options = CreateOptions::new(CreateMode::EphemeralSequential).acl(spec.acl.clone());
    let mut pause = RETRY_FIRST;
    let mut attempt = 1;
    loop {
        match client.create(&path, spec.data.clone(), options.clone()).await {
            Err(error) if error.code() == Some(ErrorCode::NoNode) && attempt < ENTER_ATTEMPTS => {
                attempt += 1;
                create_directory(client, &spec.directory).await?;
            }
            Err(error) if error.is_retryable() && !error.is_session_end() => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
            other => return other,
        }
    }
}

/// Creates a directory and what is missing above it. From below, because who may create here need not be allowed to
/// create at the top.
async fn create_directory(client: &Client, directory: &str) -> corral_client::Result<()> {
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
    consistency: Consistency,
) -> corral_client::Result<Vec<sequence::Contender>> {
    let children = client.read(consistency).get_children(directory).await?;
    let by_number = sequence::queue(children.iter().map(String::as_str), &BTreeMap::new());
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
    Ok(sequence::queue(present, &czxids))
}
