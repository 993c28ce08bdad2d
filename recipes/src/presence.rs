//! A znode that is there for as long as this process wants it to be.

use std::time::Duration;

use corral_client::{Acl, Builder, Client, Data, EndReason, Stat, ambient, path as paths};
use tokio::sync::{mpsc, oneshot, watch};

use crate::contender::{Contender, Loss, Name, Phase, Spec, WhenSuspended, ended, stopped};
use crate::error::Error;
use crate::guarded::Token;

/// First pause before a new session is asked for again.
const CONNECT_FIRST: Duration = Duration::from_millis(200);
/// Longest pause.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// What happens when the session of a presence ends.
#[derive(Clone, Debug, Default)]
pub enum Rejoin {
    /// It is over: the program decides what a new session may assume.
    #[default]
    Never,
    /// A new session is begun with these settings, as often as it takes, and the znode created in it. What else the
    /// program believed because of the old session is its own affair: [`Presence::here`] changes its token.
    NewSession(Box<Builder>),
}

/// A znode that is created anew whenever it is missing: after somebody deleted it, and, if asked ([`Rejoin`]), after its
/// session ended. Curator's `PersistentNode` with an ephemeral mode.
///
/// If a znode of that name exists already, it belongs to somebody else or to a former session; its end is waited for, and
/// never is it taken for ours.
///
/// ```no_run
/// # use corral_client::Client;
/// # use corral_recipes::{Presence, Rejoin};
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// let again = Client::builder("localhost:2181");
/// let mut here = Presence::new(&client, "/hosts/host-1").data("up").rejoin(Rejoin::NewSession(Box::new(again))).start();
/// here.created().await?;
/// here.set_data("busy").await?;
/// here.close().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Presence {
    here: watch::Receiver<Here>,
    updates: mpsc::Sender<Update>,
    stop: Option<oneshot::Sender<()>>,
}

/// New data, and who wants to know that it is there.
type Update = (Data, oneshot::Sender<Result<Stat, Error>>);

/// What is known of a presence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Here {
    /// Not there: not yet, or not at the moment.
    Not,
    /// There, under this path and with this czxid.
    At {
        /// Its path.
        path: String,
        /// The czxid: another after each creation.
        token: Token,
    },
    /// It will not be there any more.
    Ended(Error),
    /// It was closed, and is certainly gone.
    Closed,
}

/// What a presence is to be: ended with [`PresenceBuilder::start`].
#[derive(Clone, Debug)]
pub struct PresenceBuilder {
    client: Client,
    spec: Spec,
    rejoin: Rejoin,
}

impl Presence {
    /// A presence at this path, whose parent need not exist.
    #[expect(clippy::new_ret_no_self, reason = "it begins the builder")]
    pub fn new(client: &Client, path: &str) -> PresenceBuilder {
        let directory = paths::parent(path).unwrap_or("/").to_owned();
        PresenceBuilder::of(client, directory, Name::Fixed(paths::name(path).to_owned()))
    }

    /// What is known of it, and changes of that.
    pub fn here(&self) -> watch::Receiver<Here> {
        self.here.clone()
    }

    /// Waits until it is there. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Client`]: it will not be.
    pub async fn created(&self) -> Result<Token, Error> {
        let mut here = self.here.clone();
        loop {
            match &*here.borrow_and_update() {
                Here::At { token, .. } => return Ok(*token),
                Here::Ended(error) => return Err(error.clone()),
                Here::Closed => return Err(Error::Lost(Loss::Released)),
                Here::Not => {}
            }
            here.changed().await.map_err(|_| stopped())?;
        }
    }

    /// Changes its data, now and for every creation to come. Waits while it is not there.
    ///
    /// # Errors
    /// [`Error::Client`], among others when the session ends meanwhile; the data is kept for the next creation.
    pub async fn set_data(&mut self, data: impl Into<Data>) -> Result<Stat, Error> {
        let (reply, answer) = oneshot::channel();
        self.updates.send((data.into(), reply)).await.map_err(|_| self.end())?;
        answer.await.map_err(|_| self.end())?
    }

    fn end(&self) -> Error {
        match &*self.here.borrow() {
            Here::Ended(error) => error.clone(),
            _ => stopped(),
        }
    }

    /// Takes it away, and returns when it is certainly gone. Dropping the presence does the same in the background.
    ///
    /// # Errors
    /// [`Error::Client`]: it is not certain yet. While the session lives it is tried again in the background.
    pub async fn close(mut self) -> Result<(), Error> {
        drop(self.stop.take());
        let mut here = self.here.clone();
        let end = here.wait_for(|here| matches!(here, Here::Closed | Here::Ended(_))).await.map_err(|_| stopped())?;
        match &*end {
            Here::Ended(Error::Client(error)) if !error.is_session_end() => Err(Error::Client(error.clone())),
            _ => Ok(()),
        }
    }
}

impl PresenceBuilder {
    pub(crate) fn of(client: &Client, directory: String, name: Name) -> PresenceBuilder {
        let spec =
            Spec { persists: true, when_suspended: WhenSuspended::UntilDeadline, ..Spec::present(directory, name) };
        PresenceBuilder { client: client.clone(), spec, rejoin: Rejoin::Never }
    }

    /// Its first data. Default: none.
    pub fn data(mut self, data: impl Into<Data>) -> PresenceBuilder {
        self.spec.data = data.into();
        self
    }

    /// Its ACL. Default: open.
    pub fn acl(mut self, acl: Vec<Acl>) -> PresenceBuilder {
        self.spec.acl = acl;
        self
    }

    /// What happens when the session ends. Default: it is over.
    pub fn rejoin(mut self, rejoin: Rejoin) -> PresenceBuilder {
        self.rejoin = rejoin;
        self
    }

    /// Begins it, in the background.
    pub fn start(self) -> Presence {
        let (here_tx, here) = watch::channel(Here::Not);
        let (updates, updated) = mpsc::channel(1);
        let (stop, stopped) = oneshot::channel();
        ambient::spawn(run(self, here_tx, updated, stopped));
        Presence { here, updates, stop: Some(stop) }
    }
}

/// How one session's presence ended.
enum Over {
    Stopped,
    Session(EndReason),
    Failed(Error),
}

async fn run(
    builder: PresenceBuilder,
    here: watch::Sender<Here>,
    mut updates: mpsc::Receiver<Update>,
    mut stop: oneshot::Receiver<()>,
) {
    let PresenceBuilder { mut client, mut spec, rejoin } = builder;
    loop {
        let mut contender = Contender::enter(&client, spec.clone());
        let over = stay(&mut contender, &mut spec.data, &here, &mut updates, &mut stop).await;
        let reason = match over {
            Over::Stopped => {
                let left = contender.leave().await;
                here.send_replace(left.map_or_else(Here::Ended, |()| Here::Closed));
                return;
            }
            Over::Failed(error) => return drop(here.send_replace(Here::Ended(error))),
            Over::Session(reason) => reason,
        };
        let Rejoin::NewSession(settings) = &rejoin else {
            return drop(here.send_replace(Here::Ended(ended("stay", reason).into())));
        };
        here.send_replace(Here::Not);
        tracing::warn!(path = spec.directory, %reason, "the session of a presence ended; a new one is begun");
        client = match begin_session(settings, &mut stop).await {
            Ok(Some(client)) => client,
            Ok(None) => return drop(here.send_replace(Here::Closed)),
            Err(error) => return drop(here.send_replace(Here::Ended(error))),
        };
    }
}

/// Begins a session with these settings, as often as it takes; `None`: it was stopped first.
///
/// # Errors
/// The settings are wrong.
pub(crate) async fn begin_session(
    settings: &Builder,
    stop: &mut oneshot::Receiver<()>,
) -> Result<Option<Client>, Error> {
    tokio::select! {
        biased;
        _ = stop => Ok(None),
        session = connect_again(settings) => session.map(Some),
    }
}

/// The same for those who stop by dropping it. Cancel safe.
///
/// # Errors
/// The settings are wrong.
pub(crate) async fn connect_again(settings: &Builder) -> Result<Client, Error> {
    let mut pause = CONNECT_FIRST;
    loop {
        match settings.clone().connect().await {
            Ok(client) => return Ok(client),
            Err(error @ (corral_client::Error::ConnectString { .. } | corral_client::Error::Tls { .. })) => {
                return Err(error.into());
            }
            Err(error) => tracing::warn!(%error, "no new session yet"),
        }
        ambient::sleep(pause).await;
        pause = (pause * 2).min(CONNECT_MAX);
    }
}

/// As long as one session carries it.
async fn stay(
    contender: &mut Contender,
    data: &mut Data,
    here: &watch::Sender<Here>,
    updates: &mut mpsc::Receiver<Update>,
    stop: &mut oneshot::Receiver<()>,
) -> Over {
    let mut progress = contender.progress();
    loop {
        let phase = progress.borrow_and_update().phase.clone();
        let now = match phase {
            Phase::Holding { fence, .. } => Here::At { path: fence.path, token: fence.token },
            Phase::Lost(Loss::SessionEnded(reason)) => return Over::Session(reason),
            Phase::Failed(Error::Client(corral_client::Error::SessionEnded { reason, .. })) => {
                return Over::Session(reason);
            }
            Phase::Failed(error) | Phase::ReleaseRefused(error) => return Over::Failed(error),
            Phase::Entering | Phase::Waiting | Phase::Lost(_) | Phase::Released => Here::Not,
        };
        here.send_if_modified(|shown| {
            let is_new = *shown != now;
            *shown = now;
            is_new
        });
        tokio::select! {
            biased;
            _ = &mut *stop => return Over::Stopped,
            changed = progress.changed() => if changed.is_err() { return Over::Session(EndReason::Stopped) },
            Some((new, reply)) = updates.recv() => {
                *data = new.clone();
                let done = tokio::select! {
                    biased;
                    _ = &mut *stop => return Over::Stopped,
                    done = contender.set_data(new) => done,
                };
                let _ = reply.send(done);
            }
        }
    }
}
