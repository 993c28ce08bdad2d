//! Leadership that is taken up whenever it can be, for programs that ask "do we lead?" and not "lead, then work".

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use corral_client::{Client, Data};
use tokio::sync::watch;

use crate::contender::{Contender, Hold, Loss, Phase, Progress, Spec, stopped};
use crate::error::Error;

/// A candidate that stays one until it is closed: begun by [`Election::latch`](crate::Election::latch).
///
/// It leads when it is first in the queue and its session is safe. When the connection breaks it steps down (or at the
/// deadline, as [`WhenSuspended`](crate::WhenSuspended) says); its place is kept, and when a server serves the session
/// again before it expired, it leads again, with the same token. If its contender was deleted, it queues again, at the
/// end. Only the end of the session ends it.
///
/// ```no_run
/// # use corral_client::Client;
/// # use corral_recipes::{CloseMode, Election, LatchEvent};
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// let latch = Election::new(&client, "/service/election").latch("host-1");
/// let mut events = latch.events();
/// while let Some(event) = events.next().await {
///     match event {
///         LatchEvent::Leading(hold) => println!("we lead, until at least {:?}", hold.valid_until()),
///         LatchEvent::NotLeading(why) => println!("not any more: {why}"),
///         LatchEvent::Failed(error) => return Err(error),
///     }
/// }
/// # latch.close(CloseMode::Silent).await
/// # }
/// ```
#[derive(Debug)]
pub struct LeaderLatch {
    contender: Contender,
    notifies: Arc<AtomicBool>,
}

/// What those who listen to a latch hear of its closing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CloseMode {
    /// Nothing: their stream ends.
    #[default]
    Silent,
    /// That it does not lead any more, if it led.
    Notify,
}

/// What happens to a latch.
#[derive(Clone, Debug)]
pub enum LatchEvent {
    /// It leads. Each time it is another hold; the token is the same if it is the same contender.
    Leading(Hold),
    /// It leads no more, and why.
    NotLeading(Loss),
    /// It cannot take part, or not go on: the session was over when it began, or permission is missing.
    Failed(Error),
}

impl LeaderLatch {
    pub(crate) fn start(client: &Client, spec: Spec, identity: Data) -> LeaderLatch {
        let spec = Spec { data: identity, persists: true, ..spec };
        LeaderLatch { contender: Contender::enter(client, spec), notifies: Arc::default() }
    }

    /// Whether it leads now and may act on it: true only before the local deadline.
    pub fn has_leadership(&self) -> bool {
        self.leadership().is_some_and(|hold| hold.is_valid())
    }

    /// The present leadership, with token and deadline.
    pub fn leadership(&self) -> Option<Hold> {
        self.contender.holding()
    }

    /// Waits until it leads. Cancel safe; the place is kept.
    ///
    /// # Errors
    /// [`Error::Client`], [`Error::Lost`] when it never will any more.
    pub async fn lead(&self) -> Result<Hold, Error> {
        let mut progress = self.contender.progress();
        loop {
            if let Some(hold) = self.contender.holding() {
                return Ok(hold);
            }
            match &progress.borrow_and_update().phase {
                Phase::Failed(error) | Phase::ReleaseRefused(error) => return Err(error.clone()),
                Phase::Lost(loss @ Loss::SessionEnded(_)) => return Err(Error::Lost(loss.clone())),
                Phase::Released => return Err(Error::Lost(Loss::Released)),
                Phase::Entering | Phase::Waiting | Phase::Holding { .. } | Phase::Lost(_) => {}
            }
            progress.changed().await.map_err(|_| stopped())?;
        }
    }

    /// What happens from now on, beginning with the present leadership if there is one.
    pub fn events(&self) -> LatchEvents {
        LatchEvents {
            progress: self.contender.progress(),
            holds: self.contender.holds(),
            shown: false,
            ended: false,
            term: 0,
            notifies: self.notifies.clone(),
        }
    }

    /// Tells observers something new, now and whenever it queues again. Waits until it leads.
    ///
    /// # Errors
    /// [`Error::Client`], [`Error::Lost`] when it never will any more.
    pub async fn proclaim(&mut self, data: impl Into<Data>) -> Result<(), Error> {
        self.contender.set_data(data.into()).await.map(drop)
    }

    /// Takes no part any more, and returns when its contender is certainly gone, or its session. Dropping the latch does
    /// the same silently, in the background.
    ///
    /// # Errors
    /// [`Error::Client`]: it is not certain yet. While the session lives it is tried again in the background.
    pub async fn close(self, mode: CloseMode) -> Result<(), Error> {
        self.notifies.store(mode == CloseMode::Notify, Ordering::Release);
        self.contender.leave().await
    }
}

/// What happens to a latch, in order. A leadership that came and went between two looks may be left out; the latest state
/// never is.
#[derive(Debug)]
pub struct LatchEvents {
    progress: watch::Receiver<Progress>,
    holds: crate::contender::Holds,
    /// `Leading` was shown, of this term, and not its end.
    shown: bool,
    term: u64,
    ended: bool,
    notifies: Arc<AtomicBool>,
}

impl LatchEvents {
    /// Waits for the next event. `None` after the latch was closed, or its session ended. Cancel safe.
    pub async fn next(&mut self) -> Option<LatchEvent> {
        loop {
            if self.ended {
                return None;
            }
            let now = self.progress.borrow_and_update().clone();
            if self.shown && !matches!(now.phase, Phase::Holding { term, .. } if term == self.term) {
                self.shown = false;
                let is_closed = matches!(now.phase, Phase::Released | Phase::ReleaseRefused(_));
                if is_closed && !self.notifies.load(Ordering::Acquire) {
                    self.ended = true;
                    return None;
                }
                let loss = if is_closed { Loss::Released } else { now.last_loss() };
                return Some(LatchEvent::NotLeading(loss));
            }
            match now.phase {
                Phase::Holding { fence, term } if !self.shown => {
                    self.shown = true;
                    self.term = term;
                    return Some(LatchEvent::Leading(self.holds.hold(fence, term)));
                }
                Phase::Failed(error) => {
                    self.ended = true;
                    return Some(LatchEvent::Failed(error));
                }
                Phase::Released | Phase::ReleaseRefused(_) | Phase::Lost(Loss::SessionEnded(_)) => self.ended = true,
                Phase::Entering | Phase::Waiting | Phase::Holding { .. } | Phase::Lost(_) => {
                    self.ended = self.progress.changed().await.is_err();
                }
            }
        }
    }
}
