//! Waiting for each other.

use std::time::Duration;

use corral_client::{Acl, Client, Consistency, CreateMode, CreateOptions, Data, ErrorCode, path as paths};

use crate::contender::{Contender, Hold, Name, Spec, WhenSuspended, create_in, random_id};
use crate::decide::barrier::{Enter, Leave, READY, enter, leave};
use crate::error::Error;
use crate::lock::within;

/// A barrier named by a path: while the znode is there, all wait. Curator's `DistributedBarrier` and kazoo's `Barrier`.
///
/// ```no_run
/// # use corral_client::Client;
/// # use corral_recipes::Barrier;
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// let barrier = Barrier::new(&client, "/migration/running");
/// barrier.set().await?;
/// // Elsewhere: barrier.wait().await?
/// barrier.remove().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Barrier {
    client: Client,
    path: String,
}

impl Barrier {
    /// The barrier at this path.
    pub fn new(client: &Client, path: impl Into<String>) -> Barrier {
        Barrier { client: client.clone(), path: path.into() }
    }

    /// Closes it. It stays closed when this process ends. `false`: it was closed.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn set(&self) -> Result<bool, Error> {
        let directory = paths::parent(&self.path).unwrap_or("/");
        let options = CreateOptions::new(CreateMode::Persistent);
        match create_in(&self.client, directory, &self.path, Data::default(), options).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(ErrorCode::NodeExists) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens it. `false`: it was open.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn remove(&self) -> Result<bool, Error> {
        match self.client.delete(&self.path, None).await {
            Ok(()) => Ok(true),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it is open. Whether it was closed again since, nobody can know. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Client`], among others when the session ends.
    pub async fn wait(&self) -> Result<(), Error> {
        loop {
            match self.client.read(Consistency::Linearizable).exists_and_watch(&self.path).await? {
                (None, _) => return Ok(()),
                (Some(_), changed) => drop(changed.await?),
            }
        }
    }

    /// As [`Barrier::wait`], for at most `limit`.
    ///
    /// # Errors
    /// [`Error::Timeout`]; else as there.
    pub async fn wait_timeout(&self, limit: Duration) -> Result<(), Error> {
        within(limit, &self.path, self.wait()).await
    }
}

/// A barrier at both ends of some work: nobody begins before all are there, and nobody goes on before all have finished or
/// died.
///
/// A member that crashes while others wait to enter is not counted; one that crashes inside does not keep the others in.
///
/// Layout: `<id>` for each member, and `ready`: as Curator's and kazoo's double barriers. Used more than once, each round
/// needs a number of its own ([`DoubleBarrier::round`]): a member that is late in leaving one round cannot be told from one
/// that is early in the next, whatever the implementation.
///
/// ```no_run
/// # use corral_client::Client;
/// # use corral_recipes::DoubleBarrier;
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// let barrier = DoubleBarrier::new(&client, "/jobs/7", 3)?;
/// for round in 0..10 {
///     let inside = barrier.round(round).enter().await?;
///     println!("all three are here");
///     inside.leave().await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DoubleBarrier {
    client: Client,
    path: String,
    members: usize,
    identity: Data,
    acl: Vec<Acl>,
}

impl DoubleBarrier {
    /// The barrier at this path, for so many members.
    ///
    /// # Errors
    /// [`Error::BadArgument`]: no members.
    pub fn new(client: &Client, path: impl Into<String>, members: usize) -> Result<DoubleBarrier, Error> {
        let path = path.into();
        if members == 0 {
            return Err(Error::BadArgument { path, reason: "a barrier for nobody is always open".to_owned() });
        }
        Ok(DoubleBarrier { client: client.clone(), path, members, identity: Data::default(), acl: Acl::open() })
    }

    /// What others see of us. Default: nothing.
    pub fn identity(mut self, identity: impl Into<Data>) -> DoubleBarrier {
        self.identity = identity.into();
        self
    }

    /// The ACL of what we create. Default: open.
    pub fn acl(mut self, acl: Vec<Acl>) -> DoubleBarrier {
        self.acl = acl;
        self
    }

    /// The barrier of one round, below this one. Its znodes go with it.
    pub fn round(&self, round: u64) -> DoubleBarrier {
        DoubleBarrier { path: paths::join(&self.path, &format!("round-{round:010}")), ..self.clone() }
    }

    /// Waits until all are there. Dropping the future takes us back.
    ///
    /// # Errors
    /// [`Error::Client`], among others when the session ends; [`Error::Lost`]: our znode was deleted.
    pub async fn enter(&self) -> Result<Inside, Error> {
        let own = random_id().hyphenated();
        let spec = Spec {
            data: self.identity.clone(),
            acl: self.acl.clone(),
            when_suspended: WhenSuspended::UntilDeadline,
            ..Spec::present(self.path.clone(), Name::Fixed(own.clone()))
        };
        let mut contender = Contender::enter(&self.client, spec);
        let hold = contender.first().await?;
        loop {
            let reads = self.client.read(Consistency::Linearizable);
            let (children, _, changed) = match reads.children_and_watch(&self.path).await {
                Err(error) if error.code() == Some(ErrorCode::NoNode) => return Err(Error::Lost(hold.lost().await)),
                other => other?,
            };
            match enter(children.iter().map(String::as_str), self.members) {
                Enter::In => break,
                Enter::Open => {
                    // Not of our session: who is late must find it, though we crash.
                    let options = CreateOptions::new(CreateMode::Persistent).acl(self.acl.clone());
                    match self.client.create(&paths::join(&self.path, READY), (), options).await {
                        Err(error) if error.code() != Some(ErrorCode::NodeExists) => return Err(error.into()),
                        _ => break,
                    }
                }
                Enter::Wait => tokio::select! {
                    biased;
                    event = changed => drop(event?),
                    loss = hold.lost() => return Err(Error::Lost(loss)),
                },
            }
        }
        Ok(Inside { client: self.client.clone(), path: self.path.clone(), own, contender: Some(contender) })
    }

    /// As [`DoubleBarrier::enter`], for at most `limit`.
    ///
    /// # Errors
    /// [`Error::Timeout`]; else as there.
    pub async fn enter_timeout(&self, limit: Duration) -> Result<Inside, Error> {
        within(limit, &self.path, self.enter()).await
    }
}

/// We are between the two ends. Dropping it leaves without waiting for the others.
#[must_use = "dropped, it has left"]
#[derive(Debug)]
pub struct Inside {
    client: Client,
    path: String,
    own: String,
    contender: Option<Contender>,
}

impl Inside {
    /// The hold of our znode: lost when the others take us for crashed.
    pub fn hold(&self) -> Option<Hold> {
        self.contender.as_ref().and_then(Contender::holding)
    }

    /// Waits until all have left or crashed. Dropping the future leaves without waiting.
    ///
    /// # Errors
    /// [`Error::Client`], among others when the session ends.
    pub async fn leave(mut self) -> Result<(), Error> {
        loop {
            let children = match self.client.read(Consistency::Linearizable).get_children(&self.path).await {
                // Everything went with the last.
                Err(error) if error.code() == Some(ErrorCode::NoNode) => break,
                other => other?,
            };
            let other = match leave(children.iter().map(String::as_str), &self.own) {
                Leave::Done => break,
                Leave::DeleteOwn => {
                    match self.contender.take() {
                        Some(contender) => contender.leave().await?,
                        // Certain already, so what is there again is not ours.
                        None => break,
                    }
                    continue;
                }
                Leave::WaitFor(other) => other,
            };
            match self.client.get_and_watch(&paths::join(&self.path, &other)).await {
                Ok((_, gone)) => drop(gone.await?),
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match self.client.delete(&paths::join(&self.path, READY), None).await {
            Err(error) if error.code() != Some(ErrorCode::NoNode) => Err(error.into()),
            _ => Ok(()),
        }
    }
}
