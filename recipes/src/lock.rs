//! Mutual exclusion: first come, first served.

use std::ops::Deref;
use std::time::Duration;

use bytes::Bytes;
use corral_client::{Acl, Client, Consistency, Data, ErrorCode, SessionId, Zxid, path as paths};

use crate::contender::{Contender, Hold, Spec, WhenSuspended, queue};
use crate::error::Error;
use crate::guarded::Token;
use crate::sequence::Layout;

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
}

impl Mutex {
    /// The lock at this path, which need not exist.
    pub fn new(client: &Client, path: impl Into<String>) -> Mutex {
        Mutex { client: client.clone(), spec: Spec::new(path.into(), Layout::CuratorLock) }
    }

    /// What others see of us in [`Mutex::contenders`]. Default: nothing.
    pub fn identity(mut self, identity: impl Into<Data>) -> Mutex {
        self.spec.data = identity.into();
        self
    }

    /// How our contenders are named. Default: as Curator's.
    pub fn layout(mut self, layout: Layout) -> Mutex {
        self.spec.layout = layout;
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
        let mut contender = Contender::enter(&self.client, self.spec.clone());
        let hold = contender.first().await?;
        Ok(Guard { hold, contender })
    }

    /// Takes the lock if nobody else holds it or waits for it. With `None`, no contender of ours stays behind.
    ///
    /// # Errors
    /// As [`Mutex::acquire`].
    pub async fn try_acquire(&self) -> Result<Option<Guard>, Error> {
        // A look first: the common "no" then costs a read and not two writes.
        match queue(&self.client, &self.spec.directory, Consistency::Linearizable).await {
            Ok(others) if !others.is_empty() => return Ok(None),
            Ok(_) => {}
            Err(error) if error.code() == Some(ErrorCode::NoNode) => {}
            Err(error) => return Err(error.into()),
        }
        let mut contender = Contender::enter(&self.client, self.spec.clone());
        match contender.first_or_behind().await? {
            Some(hold) => Ok(Some(Guard { hold, contender })),
            None => {
                contender.leave().await?;
                Ok(None)
            }
        }
    }

    /// Waits for our turn, `limit` long in all.
    ///
    /// # Errors
    /// [`Error::Timeout`]; else as [`Mutex::acquire`].
    pub async fn acquire_timeout(&self, limit: Duration) -> Result<Guard, Error> {
        tokio::time::timeout(limit, self.acquire())
            .await
            .unwrap_or_else(|_| Err(Error::Timeout { path: self.spec.directory.clone(), waited: limit }))
    }

    /// The holder and those who wait, in the order of their turns.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn contenders(&self) -> Result<Vec<Standing>, Error> {
        standings(&self.client, &self.spec.directory).await
    }
}

pub(crate) async fn standings(client: &Client, directory: &str) -> Result<Vec<Standing>, Error> {
    let queue = match queue(client, directory, Consistency::Linearizable).await {
        Err(error) if error.code() == Some(ErrorCode::NoNode) => return Ok(Vec::new()),
        other => other?,
    };
    // All asked at once; answers come in order.
    let asked: Vec<_> = queue
        .iter()
        .map(|contender| {
            let path = paths::join(directory, &contender.name);
            let node = client.get(&path);
            (path, node)
        })
        .collect();
    let mut standings = Vec::with_capacity(asked.len());
    for (path, node) in asked {
        match node.await {
            Ok(node) => standings.push(Standing {
                path,
                token: Token(Zxid::from_i64(node.stat.czxid)),
                session: SessionId(node.stat.ephemeral_owner),
                identity: node.data,
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
