//! So many at a time.

use std::ops::Deref;
use std::time::Duration;

use corral_client::{
    Acl, Client, Consistency, CreateMode, CreateOptions, Data, ErrorCode, MultiError, OpResult, Transaction,
    path as paths,
};

use crate::contender::{
    Contender, Hold, Name, Own, Phase, Spec, Task, WhenSuspended, create_directory, create_in, queue, random_id,
};
use crate::decide::semaphore::{Decision, decide, encode_limit, parse_limit};
use crate::error::Error;
use crate::lock::{Guard, within};
use crate::sequence::{Family, Layout, Naming};

/// Permits that one acquire may ask for: they are created by one transaction.
pub const PERMITS_MAX: u32 = 256;

/// A semaphore named by a path: at most as many permits are out as the limit in the tree says.
///
/// Those who want permits stand in one queue, first come, first served; the first takes all of its permits in one
/// transaction that is refused if the limit changed or its place was lost, so no client's own idea of the limit counts.
/// Who wants many is not overtaken by those who want few. A limit that is lowered takes nothing away from holders.
///
/// Layout: `locks/` is the queue, `leases/_c_<guid>-lease-<number>` are the permits: as Curator's
/// `InterProcessSemaphoreV2`, and `limit` holds the limit as Curator's `SharedCount`. Programs with Curator take part with
/// `new InterProcessSemaphoreV2(client, path, new SharedCount(client, path + "/limit", n))`. With a limit of 1 it is a
/// lock that any holder of the guard may release: Curator's `InterProcessSemaphoreMutex` has this layout.
///
/// ```no_run
/// # use corral_client::Client;
/// # use corral_recipes::Semaphore;
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// // Ten, unless the tree says otherwise.
/// let downloads = Semaphore::new(&client, "/semaphores/downloads", 10);
/// let permits = downloads.acquire(3).await?;
/// permits.release().await?;
/// downloads.set_limit(20).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Semaphore {
    client: Client,
    path: String,
    initial: u32,
    data: Data,
    acl: Vec<Acl>,
    when_suspended: WhenSuspended,
}

impl Semaphore {
    /// The semaphore at this path. If it has no limit yet, it gets `initial`.
    pub fn new(client: &Client, path: impl Into<String>, initial: u32) -> Semaphore {
        Semaphore {
            client: client.clone(),
            path: path.into(),
            initial,
            data: Data::default(),
            acl: Acl::open(),
            when_suspended: WhenSuspended::default(),
        }
    }

    /// What others see of us on our permits. Default: nothing.
    pub fn identity(mut self, identity: impl Into<Data>) -> Semaphore {
        self.data = identity.into();
        self
    }

    /// The ACL of what we create. Default: open.
    pub fn acl(mut self, acl: Vec<Acl>) -> Semaphore {
        self.acl = acl;
        self
    }

    /// What a broken connection means for the holder of permits. Default: [`WhenSuspended::Stop`].
    pub fn when_suspended(mut self, policy: WhenSuspended) -> Semaphore {
        self.when_suspended = policy;
        self
    }

    fn leases(&self) -> String {
        paths::join(&self.path, "leases")
    }

    fn locks(&self) -> String {
        paths::join(&self.path, "locks")
    }

    fn limit_path(&self) -> String {
        paths::join(&self.path, "limit")
    }

    /// Waits for `count` permits, all or none. Dropping the future gives up the place.
    ///
    /// # Errors
    /// [`Error::BadArgument`]: none, more than [`PERMITS_MAX`], or more than the limit. [`Error::Client`], among others when
    /// the session ends; [`Error::Lost`].
    pub async fn acquire(&self, count: u32) -> Result<Permits, Error> {
        self.check(count, self.limit_now().await?)?;
        Ok(Permits { guard: Guard::wait(self.enter(count)).await?, count })
    }

    /// As [`Semaphore::acquire`], for at most `limit` in all.
    ///
    /// # Errors
    /// [`Error::Timeout`]; else as there.
    pub async fn acquire_timeout(&self, count: u32, limit: Duration) -> Result<Permits, Error> {
        within(limit, &self.path, self.acquire(count)).await
    }

    /// Takes `count` permits if they are free and nobody waits. With `None`, nothing of ours stays behind.
    ///
    /// # Errors
    /// As [`Semaphore::acquire`].
    pub async fn try_acquire(&self, count: u32) -> Result<Option<Permits>, Error> {
        let limit = self.limit_now().await?;
        self.check(count, limit)?;
        if decide(self.taken().await?, limit, count) != Decision::Take {
            return Ok(None);
        }
        match queue(&self.client, &self.locks(), Family::Locks, Consistency::Linearizable).await {
            Ok(others) if !others.is_empty() => return Ok(None),
            Ok(_) => {}
            Err(error) if error.code() == Some(ErrorCode::NoNode) => {}
            Err(error) => return Err(error.into()),
        }
        let guard = Guard::wait_or_leave(self.enter(count)).await?;
        Ok(guard.map(|guard| Permits { guard, count }))
    }

    fn enter(&self, count: u32) -> Contender {
        let spec = Spec {
            data: self.data.clone(),
            acl: self.acl.clone(),
            when_suspended: self.when_suspended,
            ..Spec::present(self.leases(), Name::Numbered(Naming::LEASE))
        };
        let semaphore = self.clone();
        Contender::start(&self.client, spec, move |task| semaphore.run(task, count))
    }

    fn check(&self, count: u32, limit: u32) -> Result<(), Error> {
        if count == 0 || count > PERMITS_MAX {
            let reason = format!("{count} permits asked for; it must be 1 to {PERMITS_MAX}");
            return Err(Error::BadArgument { path: self.path.clone(), reason });
        }
        if count > limit { Err(self.too_many(count, limit)) } else { Ok(()) }
    }

    fn too_many(&self, count: u32, limit: u32) -> Error {
        let reason = format!("{count} permits asked for, and there are {limit} in all");
        Error::BadArgument { path: self.path.clone(), reason }
    }

    /// How many permits there are in all.
    ///
    /// # Errors
    /// [`Error::Malformed`]: the limit's znode holds something else. [`Error::Client`].
    pub async fn limit(&self) -> Result<u32, Error> {
        self.limit_now().await
    }

    /// Changes how many permits there are in all, for everybody, from now on.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn set_limit(&self, limit: u32) -> Result<(), Error> {
        self.limit_now().await?;
        self.client.set(&self.limit_path(), &encode_limit(limit), None).await?;
        Ok(())
    }

    /// How many permits are out.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn taken(&self) -> Result<usize, Error> {
        match self.client.read(Consistency::Linearizable).get_children(&self.leases()).await {
            Ok(leases) => Ok(leases.len()),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    async fn limit_now(&self) -> Result<u32, Error> {
        let path = self.limit_path();
        loop {
            match self.client.read(Consistency::Linearizable).get(&path).await {
                Ok(node) => return self.parse(node.bytes()),
                Err(error) if error.code() == Some(ErrorCode::NoNode) => self.create_limit().await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn parse(&self, data: &[u8]) -> Result<u32, Error> {
        parse_limit(data).ok_or_else(|| Error::Malformed {
            path: self.limit_path(),
            reason: "not a limit: it must be four bytes, big end first, not negative".to_owned(),
        })
    }

    async fn create_limit(&self) -> corral_client::Result<()> {
        let options = CreateOptions::new(CreateMode::Persistent).acl(self.acl.clone());
        let initial = Data::from(&encode_limit(self.initial));
        match create_in(&self.client, &self.path, &self.limit_path(), initial, options).await {
            Err(error) if error.code() == Some(ErrorCode::NodeExists) => Ok(()),
            other => other.map(drop),
        }
    }

    /// The life of one acquire: a place in the queue, then the permits.
    async fn run(self, mut task: Task, count: u32) {
        let owns = loop {
            if task.has_left() {
                return task.say(Phase::Released);
            }
            let spec = Spec {
                data: self.data.clone(),
                acl: self.acl.clone(),
                when_suspended: WhenSuspended::UntilDeadline,
                ..Spec::queued(self.locks(), Family::Locks, Layout::CuratorLock.naming())
            };
            let mut place = Contender::enter(&self.client, spec);
            let mut hold = tokio::select! {
                biased;
                _ = &mut task.leave => None,
                first = place.first_or_behind() => Some(first),
            };
            if let Some(Ok(None)) = hold {
                task.say(Phase::Waiting);
                hold = tokio::select! {
                    biased;
                    _ = &mut task.leave => None,
                    first = place.first() => Some(first.map(Some)),
                };
            }
            let Some(hold) = hold else {
                let _ = place.leave().await;
                return task.say(Phase::Released);
            };
            let step = match hold {
                Ok(Some(hold)) => self.take(&mut task, &hold, count).await,
                Ok(None) => Step::Again,
                Err(Error::Lost(_)) => Step::Again,
                Err(error) => Step::Failed(error),
            };
            match step {
                Step::Taken(owns) => break owns,
                Step::Again => {}
                Step::Left => {
                    let _ = place.leave().await;
                    return task.say(Phase::Released);
                }
                Step::Failed(error) => return task.say(Phase::Failed(error)),
            }
        };
        if task.has_left() {
            return task.release(&owns, true).await;
        }
        task.adopt(owns).await;
    }

    /// First in the queue: waits until the permits are there, and takes them.
    async fn take(&self, task: &mut Task, place: &Hold, count: u32) -> Step {
        loop {
            if task.has_left() {
                return Step::Left;
            }
            match self.try_take(place, count).await {
                Ok(Take::Taken(owns)) => return Step::Taken(owns),
                Ok(Take::Again) => {}
                Ok(Take::PlaceLost) => return Step::Again,
                Ok(Take::TooMany(limit)) => return Step::Failed(self.too_many(count, limit)),
                Ok(Take::Wait { limit, leases }) => {
                    task.say(Phase::Waiting);
                    tokio::select! {
                        biased;
                        _ = &mut task.leave => return Step::Left,
                        _ = place.lost() => return Step::Again,
                        event = limit => if let Err(error) = event { return Step::Failed(error.into()) },
                        event = leases => if let Err(error) = event { return Step::Failed(error.into()) },
                    }
                }
                Err(error) => return Step::Failed(error),
            }
        }
    }

    async fn try_take(&self, place: &Hold, count: u32) -> Result<Take, Error> {
        let (limit_path, leases_path) = (self.limit_path(), self.leases());
        let reads = self.client.read(Consistency::Linearizable);
        let (limit_node, limit) = match reads.get_and_watch(&limit_path).await {
            Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                self.create_limit().await?;
                return Ok(Take::Again);
            }
            other => other?,
        };
        let (taken, leases) = match reads.children_and_watch(&leases_path).await {
            Ok((taken, _, leases)) => (taken, leases),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                create_directory(&self.client, &leases_path).await?;
                return Ok(Take::Again);
            }
            Err(error) => return Err(error.into()),
        };
        let most = self.parse(limit_node.bytes())?;
        match decide(taken.len(), most, count) {
            Decision::TooMany => return Ok(Take::TooMany(most)),
            Decision::Wait => return Ok(Take::Wait { limit, leases }),
            Decision::Take => {}
        }
        // Only the first in the queue creates permits, so since they were counted there can only be fewer.
        let mut take = Transaction::new().check(place.path(), None).check(&limit_path, Some(limit_node.stat.version));
        for _ in 0..count {
            let path = paths::join(&leases_path, &Naming::LEASE.prefix(random_id()));
            let options = CreateOptions::new(CreateMode::EphemeralSequential).acl(self.acl.clone());
            take = take.create(&path, self.data.clone(), options);
        }
        match self.client.multi(take).await {
            Ok(results) => Ok(Take::Taken(results.iter().filter_map(created).collect())),
            Err(corral_client::Error::Multi(MultiError { index, code, .. })) => match (index, code) {
                (0, ErrorCode::NoNode) => Ok(Take::PlaceLost),
                (1, ErrorCode::NoNode | ErrorCode::BadVersion) => Ok(Take::Again),
                (_, ErrorCode::NoNode) => Ok(Take::Again),
                _ => Err(corral_client::Error::Refused { op: "acquire", path: self.path.clone(), code }.into()),
            },
            Err(error) => Err(error.into()),
        }
    }
}

fn created(result: &OpResult) -> Option<Own> {
    match result {
        OpResult::Created(created) => Some(Own::from(created)),
        _ => None,
    }
}

enum Step {
    Taken(Vec<Own>),
    Again,
    Left,
    Failed(Error),
}

enum Take {
    Taken(Vec<Own>),
    Again,
    PlaceLost,
    TooMany(u32),
    Wait { limit: corral_client::OneshotWatch, leases: corral_client::OneshotWatch },
}

/// Permits that are ours, all until one of them is lost. Dropping them gives them back in the background.
///
/// The token is that of the first permit; the fence checks every one of them: permits of one acquire are created by one
/// transaction and given back together, and whoever takes one away by force ends the hold of all.
#[must_use = "dropped permits are given back"]
#[derive(Debug)]
pub struct Permits {
    guard: Guard,
    count: u32,
}

impl Permits {
    /// How many.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Gives them back, and returns when that is certain.
    ///
    /// # Errors
    /// As [`Guard::release`].
    pub async fn release(self) -> Result<(), Error> {
        self.guard.release().await
    }
}

impl Deref for Permits {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.guard
    }
}
