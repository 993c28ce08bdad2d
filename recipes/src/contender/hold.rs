//! What a holder knows of its hold.

use std::fmt;
use std::future::Future;

use corral_client::{Client, EndReason, Lease, OpResult, SessionState, Transaction, ambient};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Phase, Progress};
use crate::decide::revocation::Revocation;
use crate::error::Error;
use crate::guarded::{Fence, Guarded, Token};

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
    /// The contender cannot be read any more: the permission is gone, for example. It is deleted when its guard is given up.
    Unreadable(corral_client::Error),
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
            Loss::Unreadable(error) => write!(f, "the contender cannot be read: {error}"),
            Loss::Released => f.write_str("it was given up"),
        }
    }
}

/// Makes [`Hold`]s of one contender.
#[derive(Clone, Debug)]
pub(crate) struct Holds {
    pub(super) client: Client,
    pub(super) progress: watch::Receiver<Progress>,
}

impl Holds {
    pub(crate) fn hold(&self, fence: Fence, term: u64) -> Hold {
        Hold { lease: self.client.lease(), progress: self.progress.clone(), client: self.client.clone(), fence, term }
    }
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
