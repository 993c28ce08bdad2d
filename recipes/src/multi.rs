//! Several locks, all or none.

use std::time::Duration;

use corral_client::{OpResult, Transaction, path as paths};
use futures::future::select_all;

use crate::contender::{Hold, Loss};
use crate::error::Error;
use crate::guarded::Guarded;
use crate::lock::{Guard, Mutex, within};

/// Several [`Mutex`]es that are acquired together.
///
/// They are acquired one after the other in the order of their paths, whatever order they were given in, so two holders of
/// overlapping sets never wait for each other in a circle. (Curator's `InterProcessMultiLock` takes them in the order
/// given: mixed with it, give its locks in ascending order.)
///
/// ```no_run
/// # use corral_client::{Client, Transaction};
/// # use corral_recipes::{MultiLock, Mutex};
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// let accounts = MultiLock::new([Mutex::new(&client, "/locks/b"), Mutex::new(&client, "/locks/a")])?;
/// let guard = accounts.acquire().await?;
/// // Done only if both locks are still ours.
/// guard.commit(Transaction::new().set("/a", "-1", None).set("/b", "+1", None)).await?;
/// guard.release().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct MultiLock {
    locks: Vec<Mutex>,
}

impl MultiLock {
    /// These locks. All must be of one client (or its clones), because their guarded writes are one transaction.
    ///
    /// # Errors
    /// [`Error::BadArgument`]: none, one twice, or two clients.
    pub fn new(locks: impl IntoIterator<Item = Mutex>) -> Result<MultiLock, Error> {
        let mut locks: Vec<Mutex> = locks.into_iter().collect();
        locks.sort_by(|a, b| a.path().cmp(b.path()));
        let bad =
            |path: &str, reason: &str| Err(Error::BadArgument { path: path.to_owned(), reason: reason.to_owned() });
        let Some(first) = locks.first() else { return bad("/", "a multi-lock needs at least one lock") };
        for pair in locks.windows(2) {
            if pair[0].path() == pair[1].path() {
                return bad(pair[0].path(), "the same lock twice would wait for itself");
            }
            let (one, other) = (pair[0].client(), pair[1].client());
            if one.session_id() != other.session_id() || one.chroot() != other.chroot() {
                return bad(pair[1].path(), "not of the same client as the others");
            }
        }
        if paths::validate(first.path()).is_err() {
            return bad(first.path(), "not a valid path");
        }
        Ok(MultiLock { locks })
    }

    /// Waits for all of them. Dropping the future gives up all places and holds.
    ///
    /// # Errors
    /// The first one's that failed; what was held by then is released.
    pub async fn acquire(&self) -> Result<MultiGuard, Error> {
        let mut guards = Vec::with_capacity(self.locks.len());
        for lock in &self.locks {
            match lock.acquire().await {
                Ok(guard) => guards.push(guard),
                Err(error) => return give_up(guards, Err(error)).await,
            }
        }
        // While the later ones were waited for, an earlier one may have been lost.
        match guards.iter().find_map(|guard| guard.loss_so_far()) {
            Some(loss) => give_up(guards, Err(Error::Lost(loss))).await,
            None => Ok(MultiGuard { guards }),
        }
    }

    /// As [`MultiLock::acquire`], for at most `limit` in all.
    ///
    /// # Errors
    /// [`Error::Timeout`]; else as there.
    pub async fn acquire_timeout(&self, limit: Duration) -> Result<MultiGuard, Error> {
        within(limit, self.locks.first().map_or("/", Mutex::path), self.acquire()).await
    }

    /// Takes them if all are free. With `None`, nothing of ours stays behind.
    ///
    /// # Errors
    /// As [`MultiLock::acquire`].
    pub async fn try_acquire(&self) -> Result<Option<MultiGuard>, Error> {
        let mut guards = Vec::with_capacity(self.locks.len());
        for lock in &self.locks {
            match lock.try_acquire().await {
                Ok(Some(guard)) => guards.push(guard),
                Ok(None) => return give_up(guards, Ok(None)).await,
                Err(error) => return give_up(guards, Err(error)).await,
            }
        }
        Ok(Some(MultiGuard { guards }))
    }
}

/// Releases, last acquired first, and reports what made it necessary.
async fn give_up<T>(guards: Vec<Guard>, because: Result<T, Error>) -> Result<T, Error> {
    let released = release_all(guards).await;
    match because {
        Ok(value) => released.map(|()| value),
        Err(error) => Err(error),
    }
}

async fn release_all(guards: Vec<Guard>) -> Result<(), Error> {
    let mut first = Ok(());
    for guard in guards.into_iter().rev() {
        let released = guard.release().await;
        if first.is_ok() {
            first = released;
        }
    }
    first
}

/// All of the locks are ours. Dropping it releases them in the background.
#[must_use = "a dropped guard releases the locks"]
#[derive(Debug)]
pub struct MultiGuard {
    guards: Vec<Guard>,
}

impl MultiGuard {
    /// The holds, in the order of the locks' paths; each has its own token.
    pub fn holds(&self) -> impl Iterator<Item = Hold> + '_ {
        self.guards.iter().map(Guard::hold)
    }

    /// Whether all of them may be acted on, as far as can be known here.
    pub fn is_valid(&self) -> bool {
        self.guards.iter().all(|guard| guard.is_valid())
    }

    /// Waits until one of them is lost. Cancel safe.
    pub async fn lost(&self) -> Loss {
        select_all(self.guards.iter().map(|guard| Box::pin(guard.lost()))).await.0
    }

    /// A client whose writes depend on all of the holds.
    pub fn guarded(&self) -> Guarded {
        let mut guards = self.guards.iter();
        // There is one: `MultiLock::new` sees to it.
        let first = guards.next().map(|guard| guard.guarded());
        let all = first.map(|first| guards.fold(first, |all, guard| all.and(guard.fence().clone())));
        all.unwrap_or_else(|| unreachable!("a multi-lock has at least one lock"))
    }

    /// [`Guarded::commit`] behind all of the tokens.
    ///
    /// # Errors
    /// As there.
    pub async fn commit(&self, transaction: Transaction) -> Result<Vec<OpResult>, Error> {
        self.guarded().commit(transaction).await
    }

    /// Releases all, last acquired first, and returns when that is certain.
    ///
    /// # Errors
    /// The first one's that is not certain yet; the others are released all the same.
    pub async fn release(self) -> Result<(), Error> {
        release_all(self.guards).await
    }
}
