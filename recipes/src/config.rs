//! Configuration as a subtree: all of it at one moment, checked before it counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;

use corral_client::{Client, Consistency, EndReason, ReadRequest, ReadResult, WatchMode, Watcher, Zxid, path as paths};
use tokio::sync::watch;

use crate::contender::{ended, stopped};
use crate::decide::config::{ConfigValue, Snapshot};
use crate::error::Error;

/// Znodes that a configuration may have: they are read by one request.
pub const NODES_MAX: usize = 2_000;
/// How often a subtree is read until it is whole: once for each of its levels, and again when it changes meanwhile.
const READ_ATTEMPTS: u32 = 256;

/// The subtree below a path as a typed value, which follows it.
///
/// Every snapshot is of *one* state of the tree: changes that were made by one transaction are seen together or not at all.
/// A snapshot that the program's own check refuses is not used; the last good one stays, and [`ConfigMap::rejected`] says
/// what is wrong.
///
/// ```no_run
/// # use corral_client::Client;
/// # use corral_recipes::ConfigMap;
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// struct Database {
///     host: String,
///     port: u16,
/// }
/// let mut config = ConfigMap::open(&client, "/config/db", |all| {
///     Ok::<_, String>(Database { host: all.text("host")?.to_owned(), port: all.parse("port")? })
/// })
/// .await?;
/// loop {
///     let now = config.current();
///     println!("{}:{} as of {}", now.value.host, now.value.port, now.snapshot.zxid);
///     config.changed().await?;
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct ConfigMap<T> {
    state: watch::Receiver<State<T>>,
}

/// A configuration that was checked.
#[derive(Debug)]
pub struct Accepted<T> {
    /// What the program made of it.
    pub value: T,
    /// What it was made of.
    pub snapshot: Snapshot,
}

/// A configuration that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// As of which state.
    pub zxid: Zxid,
    /// Why.
    pub reason: String,
}

#[derive(Debug)]
struct State<T> {
    accepted: Arc<Accepted<T>>,
    rejected: Option<Rejected>,
    over: Option<Error>,
}

impl<T: Send + Sync + 'static> ConfigMap<T> {
    /// Reads the subtree at this path, and follows it. `check` makes the typed value, or says what is wrong.
    ///
    /// # Errors
    /// [`Error::Malformed`]: the first snapshot was refused. [`Error::BadArgument`]: more than 2,000 znodes.
    /// [`Error::Client`].
    pub async fn open<E: Display + 'static>(
        client: &Client,
        path: impl Into<String>,
        mut check: impl FnMut(&Snapshot) -> Result<T, E> + Send + 'static,
    ) -> Result<ConfigMap<T>, Error> {
        let path = path.into();
        let watcher = client.watch(&path, WatchMode::Recursive).await?;
        let snapshot = read(client, &path).await?;
        let value = match check(&snapshot) {
            Ok(value) => value,
            Err(error) => return Err(Error::Malformed { path, reason: error.to_string() }),
        };
        let accepted = Arc::new(Accepted { value, snapshot });
        let (tell, state) = watch::channel(State { accepted, rejected: None, over: None });
        tokio::spawn(follow(client.clone(), path, watcher, check, tell));
        Ok(ConfigMap { state })
    }

    /// The last good configuration.
    pub fn current(&self) -> Arc<Accepted<T>> {
        self.state.borrow().accepted.clone()
    }

    /// What is wrong with what is in the tree now; `None`: nothing, it is the current one.
    pub fn rejected(&self) -> Option<Rejected> {
        self.state.borrow().rejected.clone()
    }

    /// Waits until another configuration was accepted, or refused. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Client`]: the session is over; the last good configuration stays. [`Error::BadArgument`]: it has grown beyond
    /// 2,000 znodes, and is not followed any more.
    pub async fn changed(&mut self) -> Result<(), Error> {
        if let Some(error) = &self.state.borrow().over {
            return Err(error.clone());
        }
        self.state.changed().await.map_err(|_| stopped())?;
        self.state.borrow_and_update().over.clone().map_or(Ok(()), Err)
    }
}

async fn follow<T, E: Display>(
    client: Client,
    path: String,
    mut watcher: Watcher,
    mut check: impl FnMut(&Snapshot) -> Result<T, E>,
    state: watch::Sender<State<T>>,
) {
    loop {
        let event = tokio::select! {
            biased;
            () = state.closed() => return,
            event = watcher.next() => event,
        };
        let snapshot = match event {
            None => {
                let reason = watcher.end_reason().unwrap_or(EndReason::Stopped);
                Err(ended("watch", reason).into())
            }
            Some(_) => {
                // One look serves all that has happened so far.
                while watcher.try_next().is_some() {}
                read(&client, &path).await
            }
        };
        let snapshot = match snapshot {
            Ok(snapshot) => snapshot,
            Err(error) => return state.send_modify(|state| state.over = Some(error)),
        };
        if state.borrow().accepted.snapshot.values == snapshot.values && state.borrow().rejected.is_none() {
            continue;
        }
        match check(&snapshot) {
            Ok(value) => state.send_modify(|state| {
                state.accepted = Arc::new(Accepted { value, snapshot });
                state.rejected = None;
            }),
            Err(error) => {
                let rejected = Rejected { zxid: snapshot.zxid, reason: error.to_string() };
                tracing::warn!(path, zxid = %rejected.zxid, reason = rejected.reason, "a configuration was refused");
                state.send_modify(|state| state.rejected = Some(rejected));
            }
        }
    }
}

/// Reads a subtree as of one state: guesses its paths, reads them and their lists of children by one request, and begins
/// anew with what was learned until the guess was right.
pub(crate) async fn read(client: &Client, root: &str) -> Result<Snapshot, Error> {
    let mut known = BTreeSet::from([root.to_owned()]);
    for _ in 0..READ_ATTEMPTS {
        if known.len() > NODES_MAX {
            let reason = format!("more than {NODES_MAX} znodes");
            return Err(Error::BadArgument { path: root.to_owned(), reason });
        }
        let reads =
            known.iter().flat_map(|path| [ReadRequest::Get(path.clone()), ReadRequest::GetChildren(path.clone())]);
        let results = client.read(Consistency::Linearizable).multi_read(reads.collect()).await?;
        let mut found = BTreeSet::from([root.to_owned()]);
        let (mut zxid, mut values) = (client.last_zxid(), BTreeMap::new());
        for (path, pair) in known.iter().zip(results.chunks(2)) {
            // Anything else is not there, or not ours to read.
            if let [Ok(ReadResult::Node(node)), Ok(ReadResult::Children(children))] = pair {
                zxid = node.zxid;
                let modified = Zxid::from_i64(node.stat.mzxid);
                let value = ConfigValue { data: node.data.clone(), version: node.stat.version, modified };
                let below = path[root.len()..].trim_start_matches('/').to_owned();
                values.insert(below, value);
                found.insert(path.clone());
                found.extend(children.iter().map(|name| paths::join(path, name)));
            }
        }
        // What was guessed and is not there is no part of the state; what is there and was not guessed is missing.
        if found.is_subset(&known) {
            return Ok(Snapshot { zxid, values });
        }
        known = found;
    }
    Err(Error::Contended { path: root.to_owned(), attempts: READ_ATTEMPTS })
}
