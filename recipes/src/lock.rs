//! Mutual exclusion: first come, first served.

use std::ops::Deref;
use std::time::Duration;

use bytes::Bytes;
use corral_client::{Acl, Client, Consistency, Data, ErrorCode, SessionId, Zxid, ambient, path as paths};

use crate::contender::{Contender, Hold, Name, Spec, WhenSuspended, queue};
use crate::error::Error;
use crate::guarded::Token;
use crate::sequence::{Family, Layout, Naming, Role};

/// A lock named by a path: at most one session holds it. Not reentrant: a second acquire waits for the first, also in the
/// same process.
///
/// Cheap to clone. Curator's `InterProcessMutex` and kazoo's `Lock` on the same path take turns with it ([`Layout`]).
#[derive(Clone, Debug)]
pub struct Mutex {
    client: Client,
    spec: Spec,
}

/// One contender, as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its path.
    pub path: String,
    /// What it said of itself: [`Mutex::identity`].
    pub identity: Option<Bytes>,
    /// Its token; live only while it is the first.
    pub token: Token,
    /// Whose it is.
    pub session: SessionId,
    /// What it asks for: a reader of a read-write lock shares, all others want to be alone.
    pub role: Role,
}

impl Mutex {
    /// The lock at this path, which need not exist.
    pub fn new(client: &Client, path: impl Into<String>) -> Mutex {
        Mutex { client: client.clone(), spec: Spec::queued(path.into(), Family::Locks, Layout::CuratorLock.naming()) }
    }

    /// What others see of us in [`Mutex::contenders`]. Default: nothing.
    pub fn identity(mut self, identity: impl Into<Data>) -> Mutex {
        self.spec.data = identity.into();
        self
    }

    /// How our contenders are named. Default: as Curator's.
    pub fn layout(mut self, layout: Layout) -> Mutex {
        self.spec.name = Name::Numbered(layout.naming());
        self
    }

    /// After a holder that did not release (its session ended, or it was forced), the next one waits this long before it
    /// holds: time for what the former holder asked of other systems to end (Chubby's lock delay). Default: no delay.
    ///
    /// The delay counts from when the next in the queue finds itself first, by its own steady clock, so it is never shorter
    /// than asked. It is the dead *holder's* delay that is waited for; all who use the lock must set one, be it zero, for
    /// others neither leave the mark nor look for it. The mark is the data of the lock's directory, which is
    /// an ordinary znode then and stays: a container would be reaped, mark and all, when nobody waits.
    pub fn lock_delay(mut self, delay: Duration) -> Mutex {
        self.spec.lock_delay = Some(delay);
        self
    }

    /// What a broken connection means for the holder. Default: [`WhenSuspended::Stop`].
    pub fn when_suspended(mut self, policy: WhenSuspended) -> Mutex {
        self.spec.when_suspended = policy;
        self
    }

    /// The ACL of our contenders. Default: open. All who contend must be allowed to read them.
    pub fn acl(mut self, acl: Vec<Acl>) -> Mutex {
        self.spec.acl = acl;
        self
    }

    /// Waits for our turn. Dropping the future gives up the place.
    ///
    /// # Errors
    /// [`Error::Client`], among others when the session ends; [`Error::Lost`].
    pub async fn acquire(&self) -> Result<Guard, Error> {
        Guard::enter(&self.client, self.spec.clone()).await
    }

    /// Takes the lock if nobody else holds it or waits for it. With `None`, no contender of ours stays behind.
    ///
    /// # Errors
    /// As [`Mutex::acquire`].
    pub async fn try_acquire(&self) -> Result<Option<Guard>, Error> {
        // A look first: the common "no" then costs a read and not two writes.
        match queue(&self.client, &self.spec.directory, Family::Locks, Consistency::Linearizable).await {
            Ok(others) if !others.is_empty() => return Ok(None),
            Ok(_) => {}
            Err(error) if error.code() == Some(ErrorCode::NoNode) => {}
            Err(error) => return Err(error.into()),
        }
        Guard::try_enter(&self.client, self.spec.clone()).await
    }

    /// Waits for our turn, `limit` long in all.
    ///
    /// # Errors
    /// [`Error::Timeout`]; else as [`Mutex::acquire`].
    pub async fn acquire_timeout(&self, limit: Duration) -> Result<Guard, Error> {
        within(limit, &self.spec.directory, self.acquire()).await
    }

    pub(crate) fn path(&self) -> &str {
        &self.spec.directory
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The holder and those who wait, in the order of their turns.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn contenders(&self) -> Result<Vec<Standing>, Error> {
        standings(&self.client, &self.spec.directory, Family::Locks).await
    }
}

/// `acquire`, for at most `limit`.
pub(crate) async fn within<T>(
    limit: Duration,
    path: &str,
    acquire: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    ambient::timeout(limit, acquire)
        .await
        .unwrap_or_else(|_| Err(Error::Timeout { path: path.to_owned(), waited: limit }))
}

pub(crate) async fn standings(client: &Client, directory: &str, family: Family) -> Result<Vec<Standing>, Error> {
    let queue = match queue(client, directory, family, Consistency::Linearizable).await {
        Err(error) if error.code() == Some(ErrorCode::NoNode) => return Ok(Vec::new()),
        other => other?,
    };
    // All asked at once; answers come in order.
    let asked: Vec<_> = queue
        .iter()
        .map(|contender| {
            let path = paths::join(directory, &contender.name);
            let node = client.get(&path);
            (path, contender.role, node)
        })
        .collect();
    let mut standings = Vec::with_capacity(asked.len());
    for (path, role, node) in asked {
        match node.await {
            Ok(node) => standings.push(Standing {
                path,
                token: Token(Zxid::from_i64(node.stat.czxid)),
                session: SessionId(node.stat.ephemeral_owner),
                identity: node.data,
                role,
            }),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(standings)
}

/// The lock is ours, until this is released or dropped, or the hold is lost ([`Hold::lost`]).
///
/// Dropping it releases the lock in the background, and keeps at it until that is certain.
#[must_use = "a dropped guard releases the lock"]
#[derive(Debug)]
pub struct Guard {
    hold: Hold,
    contender: Contender,
}

impl Guard {
    /// Contends, and waits for its turn.
    pub(crate) async fn enter(client: &Client, spec: Spec) -> Result<Guard, Error> {
        Guard::wait(Contender::enter(client, spec)).await
    }

    /// Waits for the turn of a contender.
    pub(crate) async fn wait(mut contender: Contender) -> Result<Guard, Error> {
        let hold = contender.first().await?;
        Ok(Guard { hold, contender })
    }

    /// Contends, and leaves again if it is not the first.
    pub(crate) async fn try_enter(client: &Client, spec: Spec) -> Result<Option<Guard>, Error> {
        Guard::wait_or_leave(Contender::enter(client, spec)).await
    }

    /// Leaves if others are before it.
    pub(crate) async fn wait_or_leave(mut contender: Contender) -> Result<Option<Guard>, Error> {
        match contender.first_or_behind().await? {
            Some(hold) => Ok(Some(Guard { hold, contender })),
            None => {
                contender.leave().await?;
                Ok(None)
            }
        }
    }

    /// What is known of the hold, without the right to release it.
    pub fn hold(&self) -> Hold {
        self.hold.clone()
    }

    /// Becomes a contender of another naming, at the same place.
    pub(crate) async fn become_as(mut self, naming: Naming) -> Result<Guard, Error> {
        let hold = self.contender.become_as(naming).await?;
        Ok(Guard { hold, contender: self.contender })
    }

    /// Releases the lock, and returns when it certainly is: our contender is gone, or our session is.
    ///
    /// # Errors
    /// [`Error::Client`]: it is not certain yet. While the session lives it is tried again in the background.
    pub async fn release(self) -> Result<(), Error> {
        self.contender.leave().await
    }

    /// Waits until the holder must stop: [`Hold::lost`] under the name that suits a lock.
    pub async fn cancelled(&self) {
        self.hold.lost().await;
    }
}

impl Deref for Guard {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.hold
    }
}
