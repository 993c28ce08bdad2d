//! Leadership as a task: work that runs wherever this process leads.

use std::future::Future;
use std::sync::Arc;

use corral_client::{Data, EndReason, ambient};
use tokio::sync::{Notify, oneshot, watch};

use crate::contender::{Hold, Loss, ended};
use crate::election::{Election, Next};
use crate::error::Error;

/// Work in the background that runs while we lead: begun by [`Election::select`]. Curator's `LeaderSelector`.
///
/// Leadership is kept as long as the work runs. When it is lost, or interrupted, the work is dropped at its next await. Then
/// the candidate queues again, unless the work said [`Next::Leave`]. Dropping the selector stops it, and gives up its
/// place in the background.
#[derive(Debug)]
pub struct LeaderSelector {
    leads: watch::Receiver<Option<Hold>>,
    interrupt: Arc<Notify>,
    stop: Option<oneshot::Sender<()>>,
    over: Option<oneshot::Receiver<Result<(), Error>>>,
}

impl LeaderSelector {
    pub(crate) fn start<W, F>(election: Election, identity: Data, work: W) -> LeaderSelector
    where
        W: FnMut(Hold) -> F + Send + 'static,
        F: Future<Output = Next> + Send + 'static,
    {
        let (leads_tx, leads) = watch::channel(None);
        let (stop, stopped) = oneshot::channel();
        let interrupt = Arc::new(Notify::new());
        let (over_tx, over) = oneshot::channel();
        let run = run(election, identity, work, leads_tx, interrupt.clone(), stopped);
        // Who does not ask is not told.
        ambient::spawn(async move { drop(over_tx.send(run.await)) });
        LeaderSelector { leads, interrupt, stop: Some(stop), over: Some(over) }
    }

    /// Whether we lead now and may act on it.
    pub fn has_leadership(&self) -> bool {
        self.leads.borrow().as_ref().is_some_and(Hold::is_valid)
    }

    /// Ends the present leadership, if there is one: the work is dropped, and the candidate queues again.
    pub fn interrupt(&self) {
        if self.leads.borrow().is_some() {
            self.interrupt.notify_waiters();
        }
    }

    /// Waits until it is over: the work said [`Next::Leave`], or the session ended. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Client`]: the session ended, or permission is missing. Only the first call tells.
    pub async fn ended(&mut self) -> Result<(), Error> {
        let Some(over) = &mut self.over else { return Ok(()) };
        let result = over.await.unwrap_or_else(|_| Err(ended("lead", EndReason::Stopped).into()));
        self.over = None;
        result
    }

    /// Stops the work, gives up the place, and returns when that is certain.
    ///
    /// # Errors
    /// As [`LeaderSelector::ended`].
    pub async fn close(mut self) -> Result<(), Error> {
        drop(self.stop.take());
        self.ended().await
    }
}

async fn run<W, F>(
    election: Election,
    identity: Data,
    mut work: W,
    leads: watch::Sender<Option<Hold>>,
    interrupt: Arc<Notify>,
    mut stopped: oneshot::Receiver<()>,
) -> Result<(), Error>
where
    W: FnMut(Hold) -> F,
    F: Future<Output = Next>,
{
    loop {
        let mut contender = election.enter(identity.clone());
        let first = tokio::select! {
            biased;
            _ = &mut stopped => None,
            first = contender.first() => Some(first),
        };
        let hold = match first {
            None => return contender.leave().await,
            // Lost between the grant and here; the next round is another contender.
            Some(Err(Error::Lost(loss))) if !matches!(loss, Loss::SessionEnded(_)) => continue,
            Some(other) => other?,
        };
        // Listened to before anybody can see that we lead, so that no interrupt is missed.
        let mut interrupted = std::pin::pin!(interrupt.notified());
        interrupted.as_mut().enable();
        leads.send_replace(Some(hold.clone()));
        let next = tokio::select! {
            biased;
            _ = &mut stopped => Next::Leave,
            _ = hold.lost() => Next::Requeue,
            () = interrupted => Next::Requeue,
            next = work(hold.clone()) => next,
        };
        leads.send_replace(None);
        contender.leave().await?;
        if next == Next::Leave {
            return Ok(());
        }
    }
}
