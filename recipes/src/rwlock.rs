//! Many readers or one writer: first come, first served.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use corral_client::{Acl, Client, Consistency, Data, ErrorCode};

use crate::contender::{Hold, Name, Spec, WhenSuspended, queue};
use crate::error::Error;
use crate::lock::{Guard, Standing, standings, within};
use crate::reentrant::{Owner, Owners, still_held};
use crate::sequence::{Family, Role, RwLayout};

/// A lock that many may hold for reading, or one for writing.
///
/// A reader waits for the writers that came before it and for nobody else; a writer for all that came before it. So nobody
/// is overtaken, and nobody waits for somebody who came later. Curator's `InterProcessReadWriteLock` and kazoo's
/// `ReadLock` and `WriteLock` on the same path take turns with it ([`RwLayout`]).
///
/// ```no_run
/// # use corral_client::Client;
/// # use corral_recipes::RwLock;
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// let lock = RwLock::new(&client, "/locks/table");
/// let writer = lock.write().await?;
/// writer.guarded().set("/table", "new", None).await?;
/// // Read what was written before another writer can change it.
/// let reader = writer.downgrade().await?;
/// reader.release().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RwLock {
    client: Client,
    spec: Spec,
    layout: RwLayout,
    owners: Arc<Owners<Held>>,
}

/// What an owner holds.
#[derive(Debug)]
enum Held {
    Read(Guard),
    Write(Guard),
}

impl Deref for Held {
    type Target = Guard;

    fn deref(&self) -> &Guard {
        let (Held::Read(guard) | Held::Write(guard)) = self;
        guard
    }
}

impl RwLock {
    /// The lock at this path, which need not exist.
    pub fn new(client: &Client, path: impl Into<String>) -> RwLock {
        let layout = RwLayout::default();
        let spec = Spec::queued(path.into(), Family::ReadWrite, layout.naming(Role::Exclusive));
        RwLock { client: client.clone(), spec, layout, owners: Arc::default() }
    }

    /// What others see of us in [`RwLock::contenders`]. Default: nothing.
    pub fn identity(mut self, identity: impl Into<Data>) -> RwLock {
        self.spec.data = identity.into();
        self
    }

    /// How our contenders are named. Default: as Curator's.
    pub fn layout(mut self, layout: RwLayout) -> RwLock {
        self.layout = layout;
        self
    }

    /// What a broken connection means for the holder. Default: [`WhenSuspended::Stop`].
    pub fn when_suspended(mut self, policy: WhenSuspended) -> RwLock {
        self.spec.when_suspended = policy;
        self
    }

    /// The ACL of our contenders. Default: open.
    pub fn acl(mut self, acl: Vec<Acl>) -> RwLock {
        self.spec.acl = acl;
        self
    }

    fn spec(&self, role: Role) -> Spec {
        Spec { name: Name::Numbered(self.layout.naming(role)), ..self.spec.clone() }
    }

    /// Waits until we may read. Dropping the future gives up the place.
    ///
    /// # Errors
    /// [`Error::Client`], among others when the session ends; [`Error::Lost`].
    pub async fn read(&self) -> Result<ReadGuard, Error> {
        Ok(ReadGuard { guard: Guard::enter(&self.client, self.spec(Role::Shared)).await? })
    }

    /// Waits until we may write. Dropping the future gives up the place.
    ///
    /// # Errors
    /// As [`RwLock::read`].
    pub async fn write(&self) -> Result<WriteGuard, Error> {
        let guard = Guard::enter(&self.client, self.spec(Role::Exclusive)).await?;
        Ok(WriteGuard { guard, layout: self.layout })
    }

    /// As [`RwLock::read`], for at most `limit` in all.
    ///
    /// # Errors
    /// [`Error::Timeout`]; else as there.
    pub async fn read_timeout(&self, limit: Duration) -> Result<ReadGuard, Error> {
        within(limit, &self.spec.directory, self.read()).await
    }

    /// As [`RwLock::write`], for at most `limit` in all.
    ///
    /// # Errors
    /// [`Error::Timeout`]; else as there.
    pub async fn write_timeout(&self, limit: Duration) -> Result<WriteGuard, Error> {
        within(limit, &self.spec.directory, self.write()).await
    }

    /// Reads if no writer holds or waits. With `None`, no contender of ours stays behind.
    ///
    /// # Errors
    /// As [`RwLock::read`].
    pub async fn try_read(&self) -> Result<Option<ReadGuard>, Error> {
        if self.stands(|role| role == Role::Exclusive).await? {
            return Ok(None);
        }
        let guard = Guard::try_enter(&self.client, self.spec(Role::Shared)).await?;
        Ok(guard.map(|guard| ReadGuard { guard }))
    }

    /// Writes if nobody else holds or waits. With `None`, no contender of ours stays behind.
    ///
    /// # Errors
    /// As [`RwLock::read`].
    pub async fn try_write(&self) -> Result<Option<WriteGuard>, Error> {
        if self.stands(|_| true).await? {
            return Ok(None);
        }
        let guard = Guard::try_enter(&self.client, self.spec(Role::Exclusive)).await?;
        Ok(guard.map(|guard| WriteGuard { guard, layout: self.layout }))
    }

    /// Whether somebody with such a role stands in the queue.
    async fn stands(&self, role: impl Fn(Role) -> bool) -> Result<bool, Error> {
        match queue(&self.client, &self.spec.directory, Family::ReadWrite, Consistency::Linearizable).await {
            Ok(others) => Ok(others.iter().any(|other| role(other.role))),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads as this owner: at once if it reads already, or writes (a writer may read; it goes on keeping others out).
    ///
    /// # Errors
    /// As [`RwLock::read`]; [`Error::Lost`] if the owner still has guards of a hold that was lost: those must go first.
    pub async fn read_as(&self, owner: &Owner) -> Result<OwnerGuard, Error> {
        let acquire = || async { Ok(Held::Read(self.read().await?.guard)) };
        let held = self.owners.hold(owner, |held| still_held(held), acquire).await?;
        Ok(OwnerGuard { held })
    }

    /// Writes as this owner: at once if it writes already.
    ///
    /// # Errors
    /// [`Error::UpgradeRefused`] if the owner reads: it would wait for itself. Else as [`RwLock::read_as`].
    pub async fn write_as(&self, owner: &Owner) -> Result<OwnerGuard, Error> {
        let acquire = || async { Ok(Held::Write(self.write().await?.guard)) };
        let fits = |held: &Held| match held {
            Held::Write(guard) => still_held(guard),
            Held::Read(_) => Err(Error::UpgradeRefused { path: self.spec.directory.clone() }),
        };
        Ok(OwnerGuard { held: self.owners.hold(owner, fits, acquire).await? })
    }

    /// All who hold or wait, in the order in which they came.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn contenders(&self) -> Result<Vec<Standing>, Error> {
        standings(&self.client, &self.spec.directory, Family::ReadWrite).await
    }
}

/// We may read. Dropping it releases the lock in the background.
///
/// It cannot become a writer: two readers that both waited for the other to go would wait for ever. Release it, and acquire
/// for writing; what was read may have changed by then.
#[must_use = "a dropped guard releases the lock"]
#[derive(Debug)]
pub struct ReadGuard {
    guard: Guard,
}

impl ReadGuard {
    /// As [`Guard::release`].
    ///
    /// # Errors
    /// As there.
    pub async fn release(self) -> Result<(), Error> {
        self.guard.release().await
    }
}

impl Deref for ReadGuard {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.guard
    }
}

/// We alone may write. Dropping it releases the lock in the background.
#[must_use = "a dropped guard releases the lock"]
#[derive(Debug)]
pub struct WriteGuard {
    guard: Guard,
    layout: RwLayout,
}

impl WriteGuard {
    /// As [`Guard::release`].
    ///
    /// # Errors
    /// As there.
    pub async fn release(self) -> Result<(), Error> {
        self.guard.release().await
    }

    /// Becomes a reader without losing the place: the writer's contender is exchanged for a reader's with the same number,
    /// in one step, so that no writer can come between. The token is a new and larger one.
    ///
    /// Dropping the future releases the lock.
    ///
    /// # Errors
    /// [`Error::Fenced`], [`Error::Lost`]: it was lost before. [`Error::NumberNotSure`]. [`Error::Client`]. The lock is
    /// released then.
    pub async fn downgrade(self) -> Result<ReadGuard, Error> {
        Ok(ReadGuard { guard: self.guard.become_as(self.layout.naming(Role::Shared)).await? })
    }
}

impl Deref for WriteGuard {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.guard
    }
}

/// One of its owner's guards. Dropping the last releases the lock in the background.
#[must_use = "a dropped guard releases the lock"]
#[derive(Debug)]
pub struct OwnerGuard {
    held: Arc<Held>,
}

impl OwnerGuard {
    /// Whether the owner holds the lock for writing.
    pub fn is_writer(&self) -> bool {
        matches!(*self.held, Held::Write(_))
    }

    /// Gives this guard up; the last one returns when the lock is certainly released.
    ///
    /// # Errors
    /// As [`Guard::release`].
    pub async fn release(self) -> Result<(), Error> {
        match Arc::into_inner(self.held) {
            Some(Held::Read(last) | Held::Write(last)) => last.release().await,
            None => Ok(()),
        }
    }
}

impl Deref for OwnerGuard {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.held
    }
}
