//! A lease in time that survives its owner's session.

use std::time::Duration;

use corral_client::{
    Client, Consistency, CreateMode, Data, EndReason, ErrorCode, MultiError, OneshotWatch, OpResult, SessionState,
    Transaction, Zxid, ambient, path as paths,
};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::contender::{create_directory, create_in, ended, random_id};
use crate::decide::lease::{CLOCK, Step, TENURE, Tenancy, Terms, step};
use crate::error::Error;
use crate::guarded::{Fence, Guarded, Token, unexpected};

/// Share of the time to live by which [`Tenure::valid_until`] stays before the end: room for clocks of different *speed*.
const MARGIN_PERCENT: u32 = 10;
/// How often a lease is looked at whose end cannot be told (its terms cannot be read).
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// A lease named by a path: whoever has it keeps it until it was not renewed for its time to live, by the clock of the
/// ensemble's leader. No client's clock is asked.
///
/// Unlike a lock it does not end with a session: the same owner, by name, takes it up again after a restart, with the same
/// token. It is for work that outlives a process: a batch job, a machine that is being repaired.
///
/// The time is the leader's wall clock, as in every `mtime`. When that jumps (by an operator, or because another server
/// leads) a lease ends earlier or later than its owner believes. That is safe for who guards its writes: each tenure has a
/// token, later ones have larger tokens, and a guarded write of a former tenure is refused.
///
/// Layout (Corral's own; kazoo's `NonBlockingLease` compares clients' clocks and cannot be mixed): `tenure-<uuid>-<number>` holds
/// `{"owner":...,"ttl_ms":...}` and is written anew at each renewal; `clock` is written to learn the time; the version of
/// the lease's znode itself counts the tenures.
///
/// ```no_run
/// # use std::time::Duration;
/// # use corral_client::{Client, Transaction};
/// # use corral_recipes::TimedLease;
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// let lease = TimedLease::new(&client, "/leases/import", "host-7", Duration::from_secs(600))?;
/// let tenure = lease.acquire().await?;
/// tenure.guarded().set("/import/state", "running", None).await?;
/// tenure.renew().await?;
/// tenure.release().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TimedLease {
    client: Client,
    path: String,
    terms: Terms,
}

impl TimedLease {
    /// The lease at this path, for `owner`, who must renew it within `ttl` (whole milliseconds, at least 1).
    ///
    /// # Errors
    /// [`Error::BadArgument`]: a time to live of less than a millisecond or more than 2^40.
    pub fn new(
        client: &Client,
        path: impl Into<String>,
        owner: impl Into<String>,
        ttl: Duration,
    ) -> Result<TimedLease, Error> {
        let path = path.into();
        match u64::try_from(ttl.as_millis()) {
            Ok(ttl_ms @ 1..=0x100_0000_0000) => {
                let terms = Terms { owner: owner.into(), ttl_ms };
                Ok(TimedLease { client: client.clone(), path, terms })
            }
            _ => {
                let reason = "the time to live must be from 1 ms to 2^40 ms".to_owned();
                Err(Error::BadArgument { path, reason })
            }
        }
    }

    /// Waits until it is ours. Dropping the future leaves nothing behind, except a tenure that this owner had before.
    ///
    /// # Errors
    /// [`Error::Client`], among others when the session ends.
    pub async fn acquire(&self) -> Result<Tenure, Error> {
        match self.spawn(true).await? {
            Some(tenure) => Ok(tenure),
            None => Err(ended("acquire", EndReason::Stopped).into()),
        }
    }

    /// Takes it if nobody has it, if its time is over, or if it is ours already.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn try_acquire(&self) -> Result<Option<Tenure>, Error> {
        self.spawn(false).await
    }

    /// Who has it now, by the terms that were last written; whether their time is over only an acquire finds out.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn owner(&self) -> Result<Option<String>, Error> {
        let found = self.look().await?;
        Ok(found.and_then(|found| found.tenure).and_then(|tenure| tenure.tenancy.terms).map(|terms| terms.owner))
    }

    /// Acquires in a task of its own, which takes back what nobody waits for any more.
    async fn spawn(&self, waits: bool) -> Result<Option<Tenure>, Error> {
        let (tell, told) = oneshot::channel();
        ambient::spawn(self.clone().run(waits, tell));
        match told.await {
            Ok(result) => Ok(result?.and_then(|mut delivery| delivery.tenure.take())),
            Err(_) => Err(ended("acquire", EndReason::Stopped).into()),
        }
    }

    async fn run(self, waits: bool, mut tell: oneshot::Sender<Result<Option<Delivery>, Error>>) {
        let result = loop {
            match self.try_once().await {
                Ok(Tried::Mine(tenure, is_new)) => break Ok(Some(Delivery { tenure: Some(tenure), is_new })),
                Ok(Tried::Again) => {}
                Ok(Tried::Wait(..)) if !waits => break Ok(None),
                Ok(Tried::Wait(pause, changed)) => tokio::select! {
                    biased;
                    () = tell.closed() => return,
                    event = changed => if let Err(error) = event { break Err(error.into()) },
                    () = ambient::sleep(pause.unwrap_or(LOOK_AGAIN)) => {}
                },
                Err(error) => break Err(error),
            }
            if tell.is_closed() {
                return;
            }
        };
        drop(tell.send(result));
    }

    async fn look(&self) -> Result<Option<Found>, Error> {
        loop {
            let reads = self.client.read(Consistency::Linearizable);
            let version = match reads.get(&self.path).await {
                Ok(node) => node.stat.version,
                Err(error) if error.code() == Some(ErrorCode::NoNode) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let children = match self.client.get_children(&self.path).await {
                Ok(children) => children,
                Err(error) if error.code() == Some(ErrorCode::NoNode) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let Some(name) = children.iter().find(|name| name.starts_with(TENURE)) else {
                return Ok(Some(Found { version, tenure: None }));
            };
            let path = paths::join(&self.path, name);
            match self.client.get_and_watch(&path).await {
                Ok((node, changed)) => {
                    let tenancy = Tenancy { terms: Terms::parse(node.bytes()), renewed_at_ms: node.stat.mtime };
                    let (renewals, token) = (node.stat.version, Token(Zxid::from_i64(node.stat.czxid)));
                    let tenure = Some(FoundTenure { path, renewals, token, tenancy, changed });
                    return Ok(Some(Found { version, tenure }));
                }
                // Taken over since.
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn try_once(&self) -> Result<Tried, Error> {
        let Some(Found { version, tenure }) = self.look().await? else {
            create_directory(&self.client, &self.path).await?;
            return Ok(Tried::Again);
        };
        let mut now_ms = None;
        loop {
            return match step(&self.terms.owner, tenure.as_ref().map(|found| &found.tenancy), now_ms) {
                Step::AskTime => {
                    now_ms = Some(server_time(&self.client, &self.path).await?);
                    continue;
                }
                Step::Wait(pause) => match tenure {
                    Some(tenure) => Ok(Tried::Wait(pause, tenure.changed)),
                    None => Ok(Tried::Again),
                },
                Step::Take | Step::TakeOver => self.take(version, tenure).await,
                Step::Resume => {
                    let Some(tenure) = tenure else { return Ok(Tried::Again) };
                    let fence = Fence::existing(&tenure.path, tenure.token);
                    let resumed = Tenure::new(self.clone(), fence, ambient::now());
                    match resumed.renew().await {
                        Ok(()) => Ok(Tried::Mine(resumed, false)),
                        Err(Error::Fenced { .. }) => Ok(Tried::Again),
                        Err(error) => Err(error),
                    }
                }
            };
        }
    }

    /// Begins a tenure, if there was no other since `version`, and the one before was not renewed.
    async fn take(&self, version: i32, before: Option<FoundTenure>) -> Result<Tried, Error> {
        // The lease's own data is not used; setting it counts the tenure.
        let mut take = Transaction::new().set(&self.path, (), Some(version));
        if let Some(before) = &before {
            take = take.delete(&before.path, Some(before.renewals));
        }
        // Numbers begin anew when the directory does, and a fence of the past must not meet its name again.
        let path = paths::join(&self.path, &format!("{TENURE}{}-", random_id().hyphenated()));
        let take = take.create(&path, self.terms.encode(), CreateMode::PersistentSequential);
        let sent_at = ambient::now();
        match self.client.multi(take).await {
            Ok(results) => match results.into_iter().next_back() {
                Some(OpResult::Created(created)) => {
                    let token = Token(Zxid::from_i64(created.stat.czxid));
                    let fence = Fence::existing(&created.path, token);
                    Ok(Tried::Mine(Tenure::new(self.clone(), fence, sent_at), true))
                }
                other => Err(unexpected("multi", &path, &other)),
            },
            // Somebody took it, or its owner renewed it.
            Err(corral_client::Error::Multi(MultiError {
                code: ErrorCode::NoNode | ErrorCode::BadVersion, ..
            })) => Ok(Tried::Again),
            Err(error) => Err(error.into()),
        }
    }
}

/// The server's time in ms: the `mtime` of a write to the clock beside a recipe's znodes.
pub(crate) async fn server_time(client: &Client, directory: &str) -> Result<i64, Error> {
    let clock = paths::join(directory, CLOCK);
    loop {
        match client.set(&clock, (), None).await {
            Ok(stat) => return Ok(stat.mtime),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => {}
            Err(error) => return Err(error.into()),
        }
        match create_in(client, directory, &clock, Data::default(), CreateMode::Persistent.into()).await {
            Ok(created) => return Ok(created.stat.mtime),
            Err(error) if error.code() == Some(ErrorCode::NodeExists) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

struct Found {
    version: i32,
    tenure: Option<FoundTenure>,
}

struct FoundTenure {
    path: String,
    renewals: i32,
    token: Token,
    tenancy: Tenancy,
    changed: OneshotWatch,
}

/// A tenure on its way to who waits for it. If nobody does any more, one that is new is given back.
struct Delivery {
    tenure: Option<Tenure>,
    is_new: bool,
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let (Some(tenure), true) = (self.tenure.take(), self.is_new) {
            // If the session is over, the time to live ends it.
            ambient::try_spawn(async move { drop(tenure.release().await) });
        }
    }
}

enum Tried {
    Mine(Tenure, bool),
    Again,
    Wait(Option<Duration>, OneshotWatch),
}

/// The lease is ours until it was not renewed in time, or released. Dropping this does *not* release it: it is made to
/// survive its process.
#[derive(Debug)]
pub struct Tenure {
    lease: TimedLease,
    fence: Fence,
    renewed: parking_lot::Mutex<Instant>,
}

impl Tenure {
    fn new(lease: TimedLease, fence: Fence, sent_at: Instant) -> Tenure {
        Tenure { lease, fence, renewed: parking_lot::Mutex::new(sent_at) }
    }

    /// The fencing token: the czxid of the tenure. It grows from tenure to tenure.
    pub fn token(&self) -> Token {
        self.fence.token
    }

    /// What another process needs to make its writes depend on this tenure.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// A client whose writes depend on this tenure.
    pub fn guarded(&self) -> Guarded {
        Guarded::new(self.lease.client.clone(), self.fence.clone())
    }

    /// Until when, by this process's clock, nobody else can have it, if the leader's clock does not jump: counted from when
    /// the last renewal that was answered was *sent*, less a tenth of the time to live.
    pub fn valid_until(&self) -> Instant {
        let ttl = Duration::from_millis(self.lease.terms.ttl_ms);
        *self.renewed.lock() + ttl - ttl * MARGIN_PERCENT / 100
    }

    /// Whether that is still ahead, and the client's session lives.
    pub fn is_valid(&self) -> bool {
        ambient::now() < self.valid_until() && !matches!(self.lease.client.state(), SessionState::Lost(_))
    }

    /// Begins the time to live anew. Also a tenure whose time is over is renewed, if nobody took it over.
    ///
    /// # Errors
    /// [`Error::Fenced`]: another has it, or it was released. [`Error::Client`].
    pub async fn renew(&self) -> Result<(), Error> {
        let sent_at = ambient::now();
        match self.lease.client.set(&self.fence.path, self.lease.terms.encode(), None).await {
            Ok(_) => {
                let mut renewed = self.renewed.lock();
                *renewed = sent_at.max(*renewed);
                Ok(())
            }
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Err(self.fenced()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends it now.
    ///
    /// # Errors
    /// [`Error::Fenced`]: it was over before. [`Error::Client`].
    pub async fn release(self) -> Result<(), Error> {
        match self.lease.client.delete(&self.fence.path, None).await {
            Ok(()) => Ok(()),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Err(self.fenced()),
            Err(error) => Err(error.into()),
        }
    }

    fn fenced(&self) -> Error {
        Error::Fenced { token: self.fence.token, path: self.fence.path.clone() }
    }
}
