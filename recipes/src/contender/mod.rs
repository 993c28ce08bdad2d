//! One contender's life: enter the queue, wait, hold, leave. Locks and elections are made of it.
//!
//! A task ([`task`]) owns the contender's znode from before its creation until it is certainly gone (R7, R8); handles only
//! ask the task to leave, by saying so or by being dropped. So no future of this crate can leak a contender, and a slow
//! network makes nobody wait in a destructor. What a holder knows of its hold is in [`hold`]. The decisions are in
//! `sequence.rs`; these files carry them out.

mod directory;
mod hold;
mod task;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use corral_client::{Acl, Client, Data, EndReason, ErrorCode, OpResult, Stat, Transaction, ambient};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::Error;
use crate::guarded::Fence;
use crate::sequence::{ContenderId, Family, Naming};

pub(crate) use directory::{create_directory, create_in, queue};
pub(crate) use hold::Holds;
pub use hold::{Hold, Loss, WhenSuspended};
pub(crate) use task::{Own, Task};

/// First pause before a refused request is made again.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_secs(5);

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
        let (commands_tx, commands_rx) = mpsc::channel(1);
        let data = Arc::new(Mutex::new(spec.data.clone()));
        let task = Task::new(client.clone(), spec, data.clone(), progress_tx, leave, commands_rx);
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

/// Asks again, after pauses, for as long as the answer is that it cannot be told now. Dropping the future ends that.
pub(crate) async fn persist<T, F>(ask: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut pause = RETRY_FIRST;
    loop {
        match ask().await {
            Err(Error::Client(error)) if error.is_retryable() => {
                ambient::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
            other => return other,
        }
    }
}

/// The task is gone without a last word.
pub(crate) fn stopped() -> Error {
    ended("contend", EndReason::Stopped).into()
}

pub(crate) fn ended(op: &'static str, reason: EndReason) -> corral_client::Error {
    corral_client::Error::SessionEnded { op, path: String::new(), reason, outcome_unknown: false }
}

/// Whether the handle asked to leave, or is gone. Once true, the receiver must not be polled again.
pub(crate) fn has_left(leave: &mut oneshot::Receiver<()>) -> bool {
    !matches!(leave.try_recv(), Err(oneshot::error::TryRecvError::Empty))
}

/// Distinct for every contender.
pub(crate) fn random_id() -> ContenderId {
    ContenderId::from_random(u128::from(ambient::random()) << 64 | u128::from(ambient::random()))
}
