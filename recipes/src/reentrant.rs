//! Mutual exclusion whose holder may acquire again.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::Duration;

use corral_client::Client;
use parking_lot::Mutex as Lock;
use tokio::sync::Mutex as Turn;

use crate::contender::{Hold, Loss, random_id};
use crate::error::Error;
use crate::lock::{Guard, Mutex, Standing, within};

/// Who acquires, inside one process. Tasks move between threads and share work, so what is the same owner is said and not
/// guessed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner(Arc<str>);

impl Owner {
    /// The owner of this name: all who give the same name to one handle are one owner.
    pub fn new(name: &str) -> Owner {
        Owner(name.into())
    }

    /// An owner unlike any other.
    pub fn unique() -> Owner {
        Owner(random_id().hyphenated().into())
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What each owner holds. It holds it as long as a guard of it is left.
#[derive(Debug)]
pub(crate) struct Owners<G> {
    slots: Lock<HashMap<Owner, Arc<Turn<Weak<G>>>>>,
}

impl<G> Default for Owners<G> {
    fn default() -> Owners<G> {
        Owners { slots: Lock::default() }
    }
}

impl<G> Owners<G> {
    /// What the owner holds, if `fits`; else what `acquire` gets for it. Acquires of one owner take turns.
    pub(crate) async fn hold<F>(
        &self,
        owner: &Owner,
        fits: impl FnOnce(&G) -> Result<(), Error>,
        acquire: impl FnOnce() -> F,
    ) -> Result<Arc<G>, Error>
    where
        F: Future<Output = Result<G, Error>>,
    {
        let slot = self.slot(owner);
        let mut turn = slot.lock().await;
        if let Some(held) = turn.upgrade() {
            fits(&held)?;
            return Ok(held);
        }
        let held = Arc::new(acquire().await?);
        *turn = Arc::downgrade(&held);
        Ok(held)
    }

    fn slot(&self, owner: &Owner) -> Arc<Turn<Weak<G>>> {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get(owner) {
            return slot.clone();
        }
        // Owners that hold nothing and ask for nothing are forgotten: as many are kept as are at work.
        slots
            .retain(|_, slot| Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|turn| turn.strong_count() > 0));
        slots.entry(owner.clone()).or_default().clone()
    }
}

/// A [`Mutex`] that its holder may acquire again: each owner's guards are one hold, released with the last of them.
///
/// Owners are told apart within one handle and its clones; to other handles and processes the lock is an ordinary
/// [`Mutex`], with the same layout.
///
/// ```no_run
/// # use corral_client::Client;
/// # use corral_recipes::{Owner, ReentrantMutex};
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// let lock = ReentrantMutex::new(&client, "/locks/report");
/// let job = Owner::unique();
/// let outer = lock.acquire(&job).await?;
/// let inner = lock.acquire(&job).await?; // at once: the same owner
/// assert_eq!(inner.token(), outer.token());
/// inner.release().await?;
/// outer.release().await?; // now others may
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ReentrantMutex {
    lock: Mutex,
    owners: Arc<Owners<Guard>>,
}

impl From<Mutex> for ReentrantMutex {
    fn from(lock: Mutex) -> ReentrantMutex {
        ReentrantMutex { lock, owners: Arc::default() }
    }
}

impl ReentrantMutex {
    /// The lock at this path, which need not exist. For layout, identity and the rest: `ReentrantMutex::from` a [`Mutex`].
    pub fn new(client: &Client, path: impl Into<String>) -> ReentrantMutex {
        Mutex::new(client, path).into()
    }

    /// Acquires, at once if `owner` holds it already. Dropping the future gives up the place, or nothing if there was none.
    ///
    /// # Errors
    /// As [`Mutex::acquire`]; [`Error::Lost`] if the owner still has guards of a hold that was lost: those must go first.
    pub async fn acquire(&self, owner: &Owner) -> Result<ReentrantGuard, Error> {
        let held = self.owners.hold(owner, |held| still_held(held), || self.lock.acquire()).await?;
        Ok(ReentrantGuard { held })
    }

    /// As [`ReentrantMutex::acquire`], for at most `limit` in all.
    ///
    /// # Errors
    /// [`Error::Timeout`]; else as there.
    pub async fn acquire_timeout(&self, owner: &Owner, limit: Duration) -> Result<ReentrantGuard, Error> {
        within(limit, self.lock.path(), self.acquire(owner)).await
    }

    /// The holder and those who wait: [`Mutex::contenders`].
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn contenders(&self) -> Result<Vec<Standing>, Error> {
        self.lock.contenders().await
    }
}

/// Whether a hold may be entered once more.
pub(crate) fn still_held(hold: &Hold) -> Result<(), Error> {
    if hold.is_valid() { Ok(()) } else { Err(Error::Lost(hold.loss_so_far().unwrap_or(Loss::DeadlinePassed))) }
}

/// One of its owner's guards. Dropping the last releases the lock in the background.
#[must_use = "a dropped guard releases the lock"]
#[derive(Debug)]
pub struct ReentrantGuard {
    held: Arc<Guard>,
}

impl ReentrantGuard {
    /// How many guards its owner has.
    pub fn depth(&self) -> usize {
        Arc::strong_count(&self.held)
    }

    /// Gives this guard up; the last one returns when the lock is certainly released.
    ///
    /// # Errors
    /// As [`Guard::release`].
    pub async fn release(self) -> Result<(), Error> {
        match Arc::into_inner(self.held) {
            Some(last) => last.release().await,
            None => Ok(()),
        }
    }
}

impl Deref for ReentrantGuard {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.held
    }
}
