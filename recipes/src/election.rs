//! Leader election: campaign, lead, resign; and for everybody else: who leads?

use std::future::Future;
use std::ops::Deref;
use std::time::Duration;

use bytes::Bytes;
use corral_client::{Acl, Client, Consistency, Data, ErrorCode, OneshotWatch, SessionId, Zxid, ambient, path as paths};
use futures::stream::{self, Stream};

use crate::contender::{Contender, Hold, Loss, Name, Spec, WhenSuspended, queue};
use crate::error::Error;
use crate::guarded::Token;
use crate::latch::LeaderLatch;
use crate::lock::{Standing, standings};
use crate::selector::LeaderSelector;
use crate::sequence::{Family, Layout};

/// An election named by a path: of all who campaign, the first leads.
///
/// Cheap to clone. Curator's `LeaderLatch` on the same path takes part in it; its `LeaderSelector` and kazoo's `Election`
/// do with [`Layout::CuratorLock`] and [`Layout::Kazoo`].
#[derive(Clone, Debug)]
pub struct Election {
    client: Client,
    spec: Spec,
}

/// Who leads, as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Its contender.
    pub path: String,
    /// What it said of itself when it campaigned, or proclaimed since.
    pub data: Option<Bytes>,
    /// Its token.
    pub token: Token,
    /// Its session.
    pub session: SessionId,
    /// How often it proclaimed something new.
    pub version: i32,
}

/// What [`Election::run`] does after the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Campaign again, at the end of the queue.
    Requeue,
    /// Return.
    Leave,
}

impl Election {
    /// The election at this path, which need not exist.
    pub fn new(client: &Client, path: impl Into<String>) -> Election {
        Election {
            client: client.clone(),
            spec: Spec::queued(path.into(), Family::Locks, Layout::CuratorLatch.naming()),
        }
    }

    /// How our contenders are named. Default: as Curator's `LeaderLatch`.
    pub fn layout(mut self, layout: Layout) -> Election {
        self.spec.name = Name::Numbered(layout.naming());
        self
    }

    /// What a broken connection means for the leader. Default: [`WhenSuspended::Stop`].
    pub fn when_suspended(mut self, policy: WhenSuspended) -> Election {
        self.spec.when_suspended = policy;
        self
    }

    /// The ACL of our contenders. Default: open. All who campaign or observe must be allowed to read them.
    pub fn acl(mut self, acl: Vec<Acl>) -> Election {
        self.spec.acl = acl;
        self
    }

    /// Waits until we lead. `identity` is what others see of us. Dropping the future gives up the place.
    ///
    /// # Errors
    /// [`Error::Client`], among others when the session ends; [`Error::Lost`].
    pub async fn campaign(&self, identity: impl Into<Data>) -> Result<Leadership, Error> {
        let mut contender = self.enter(identity.into());
        let hold = contender.first().await?;
        Ok(Leadership { hold, contender })
    }

    pub(crate) fn enter(&self, identity: Data) -> Contender {
        Contender::enter(&self.client, Spec { data: identity, ..self.spec.clone() })
    }

    /// As [`Election::campaign`], for at most `limit` in all.
    ///
    /// # Errors
    /// [`Error::Timeout`]; else as [`Election::campaign`].
    pub async fn campaign_timeout(&self, identity: impl Into<Data>, limit: Duration) -> Result<Leadership, Error> {
        ambient::timeout(limit, self.campaign(identity))
            .await
            .unwrap_or_else(|_| Err(Error::Timeout { path: self.spec.directory.clone(), waited: limit }))
    }

    /// Campaigns, and works while it leads; then campaigns again if the work says so or was cut short.
    ///
    /// The work is dropped at its next await when the leadership is lost, and what it does from there is not done; what it
    /// already asked for is done or not as its guard decides. Returns when the work says [`Next::Leave`].
    ///
    /// # Errors
    /// [`Error::Client`] when the session is over: a new one needs a new client.
    pub async fn run<W, F>(&self, identity: impl Into<Data>, mut work: W) -> Result<(), Error>
    where
        W: FnMut(Hold) -> F,
        F: Future<Output = Next>,
    {
        let identity = identity.into();
        loop {
            let leadership = match self.campaign(identity.clone()).await {
                // Lost between the grant and here; the next round is another contender.
                Err(Error::Lost(loss)) if !matches!(loss, Loss::SessionEnded(_)) => continue,
                other => other?,
            };
            let next = tokio::select! {
                biased;
                _ = leadership.lost() => Next::Requeue,
                next = work(leadership.hold.clone()) => next,
            };
            leadership.resign().await?;
            if next == Next::Leave {
                return Ok(());
            }
        }
    }

    /// Takes part from now on, until closed: leads whenever it can. For programs that ask whether they lead.
    pub fn latch(&self, identity: impl Into<Data>) -> LeaderLatch {
        LeaderLatch::start(&self.client, self.spec.clone(), identity.into())
    }

    /// As [`Election::run`], in the background, and can be interrupted.
    pub fn select<W, F>(&self, identity: impl Into<Data>, work: W) -> LeaderSelector
    where
        W: FnMut(Hold) -> F + Send + 'static,
        F: Future<Output = Next> + Send + 'static,
    {
        LeaderSelector::start(self.clone(), identity.into(), work)
    }

    /// Who leads now; `None`: nobody campaigns.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn leader(&self) -> Result<Option<Leader>, Error> {
        loop {
            let first = match queue(&self.client, &self.spec.directory, Family::Locks, Consistency::Linearizable).await
            {
                Err(error) if error.code() == Some(ErrorCode::NoNode) => return Ok(None),
                other => other?.into_iter().next(),
            };
            let Some(first) = first else { return Ok(None) };
            let path = paths::join(&self.spec.directory, &first.name);
            match self.client.get(&path).await {
                Ok(node) => return Ok(Some(leader(path, node))),
                // Gone since the list was made.
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The leader and those who wait, in the order of their turns.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn candidates(&self) -> Result<Vec<Standing>, Error> {
        standings(&self.client, &self.spec.directory, Family::Locks).await
    }

    /// Who leads now, and from then on every change of it, in order: another leader, another proclamation, or `None` while
    /// nobody campaigns. What is followed by something newer before it is seen may be left out; the latest never is.
    ///
    /// Ends after an error, which is that of the session's end or of missing permission.
    pub fn observe(&self) -> impl Stream<Item = Result<Option<Leader>, Error>> + Send + Unpin + use<> {
        let observer =
            Observer { client: self.client.clone(), directory: self.spec.directory.clone(), shown: None, change: None };
        Box::pin(stream::unfold(Some(observer), |observer| async {
            let mut observer = observer?;
            match observer.next().await {
                Ok(leader) => Some((Ok(leader), Some(observer))),
                Err(error) => Some((Err(error.into()), None)),
            }
        }))
    }
}

fn leader(path: String, node: corral_client::Node) -> Leader {
    Leader {
        path,
        token: Token(Zxid::from_i64(node.stat.czxid)),
        session: SessionId(node.stat.ephemeral_owner),
        version: node.stat.version,
        data: node.data,
    }
}

/// One stream of [`Election::observe`]. It watches the leader's contender only, and the directory while there is none.
struct Observer {
    client: Client,
    directory: String,
    shown: Option<Option<Leader>>,
    change: Option<OneshotWatch>,
}

impl Observer {
    async fn next(&mut self) -> corral_client::Result<Option<Leader>> {
        loop {
            if let Some(change) = self.change.take() {
                change.await?;
            }
            let Some((now, change)) = self.look().await? else { continue };
            self.change = Some(change);
            if self.shown.as_ref() != Some(&now) {
                self.shown = Some(now.clone());
                return Ok(now);
            }
        }
    }

    /// The present leader, with a watch that fires when that may change; `None`: it changed meanwhile.
    async fn look(&self) -> corral_client::Result<Option<(Option<Leader>, OneshotWatch)>> {
        let queue = match queue(&self.client, &self.directory, Family::Locks, Consistency::Linearizable).await {
            Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                let (stat, created) = self.client.exists_and_watch(&self.directory).await?;
                return Ok(stat.is_none().then_some((None, created)));
            }
            other => other?,
        };
        let Some(first) = queue.first() else {
            return match self.client.children_and_watch(&self.directory).await {
                Ok((children, _, change)) => {
                    let still = !children.iter().any(|name| crate::sequence::Contender::parse(name).is_some());
                    Ok(still.then_some((None, change)))
                }
                Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(None),
                Err(error) => Err(error),
            };
        };
        let path = paths::join(&self.directory, &first.name);
        match self.client.get_and_watch(&path).await {
            Ok((node, change)) => Ok(Some((Some(leader(path, node)), change))),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// We lead, until this is resigned or dropped, or the leadership is lost ([`Hold::lost`]).
///
/// Dropping it resigns in the background, and keeps at it until that is certain.
#[must_use = "a dropped leadership is resigned"]
#[derive(Debug)]
pub struct Leadership {
    hold: Hold,
    contender: Contender,
}

impl Leadership {
    /// Resigns, and returns when that is certain: our contender is gone, or our session is.
    ///
    /// # Errors
    /// [`Error::Client`]: it is not certain yet. While the session lives it is tried again in the background.
    pub async fn resign(self) -> Result<(), Error> {
        self.contender.leave().await
    }

    /// Tells observers something new, without losing the place.
    ///
    /// # Errors
    /// [`Error::Fenced`]: we do not lead any more. [`Error::Client`].
    pub async fn proclaim(&self, data: impl Into<Data>) -> Result<(), Error> {
        match self.hold.client().set(self.hold.path(), data, None).await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                Err(Error::Fenced { token: self.hold.token(), path: self.hold.path().to_owned() })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What the work needs of the leadership, without the right to resign it.
    pub fn hold(&self) -> Hold {
        self.hold.clone()
    }

    /// Whether the session, and with it this client, is over: the next campaign needs a new client.
    pub fn is_session_over(&self) -> bool {
        self.hold.client().state().is_final()
    }
}

impl Deref for Leadership {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.hold
    }
}
