//! Configuration as a subtree: all of it at one moment, checked before it counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use corral_client::{
    Builder, Client, Consistency, EndReason, ReadRequest, ReadResult, WatchMode, Watcher, Zxid, ambient, path as paths,
};
use tokio::sync::watch;

use crate::contender::{ended, stopped};
use crate::decide::config::{self as decide, ConfigValue, Snapshot};
use crate::error::Error;
use crate::presence::connect_again;

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
    /// Where it came from.
    pub source: Source,
}

/// Where a configuration came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From the tree.
    Tree,
    /// From the file in which the last good one was kept ([`ConfigMap::open_kept`]): the tree may have another by now.
    File,
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
        let accepted = Arc::new(Accepted { value, snapshot, source: Source::Tree });
        let (tell, state) = watch::channel(State { accepted, rejected: None, over: None });
        let client = client.clone();
        ambient::spawn(async move {
            if let Some(error) = follow(&client, &path, watcher, &mut check, &tell, None).await {
                tell.send_modify(|state| state.over = Some(error));
            }
        });
        Ok(ConfigMap { state })
    }

    /// As [`ConfigMap::open`], with the last good configuration kept in a file: a process that starts while no server can be
    /// reached begins with that. It follows the tree for as long as it lives, in one session after the other.
    ///
    /// [`Accepted::source`] says where a configuration came from. The file is replaced in one step whenever another
    /// configuration was accepted; if it cannot be written, that is logged, and the configuration counts all the same. What is
    /// in the file is checked like what is in the tree. Each file has one writer: give every process its own.
    ///
    /// # Errors
    /// As [`ConfigMap::open`], if there is no good configuration in the file either. [`Error::Malformed`]: no server could be
    /// reached, and the file is damaged, of another path, or refused by `check`.
    pub async fn open_kept<E: Display + 'static>(
        settings: Builder,
        path: impl Into<String>,
        file: impl Into<PathBuf>,
        mut check: impl FnMut(&Snapshot) -> Result<T, E> + Send + 'static,
    ) -> Result<ConfigMap<T>, Error> {
        let (path, file) = (path.into(), file.into());
        let begun = begin(&settings, &path).await;
        let ((accepted, rejected), followed) = match begun {
            Ok((client, watcher, snapshot)) => match check(&snapshot).map_err(|error| error.to_string()) {
                Ok(value) => {
                    keep(&file, &path, &snapshot).await;
                    let accepted = Accepted { value, snapshot, source: Source::Tree };
                    ((accepted, None), Some((client, watcher)))
                }
                Err(reason) => {
                    let Some(kept) = kept(&file, &path, &mut check).await? else {
                        return Err(Error::Malformed { path, reason });
                    };
                    let rejected = Rejected { zxid: snapshot.zxid, reason };
                    ((kept, Some(rejected)), Some((client, watcher)))
                }
            },
            Err(error) => {
                let Some(kept) = kept(&file, &path, &mut check).await? else { return Err(error) };
                tracing::warn!(path, %error, file = %file.display(), "the configuration of the file is used");
                ((kept, None), None)
            }
        };
        let (tell, state) = watch::channel(State { accepted: Arc::new(accepted), rejected, over: None });
        let keeper = Keeper { settings, path, file };
        ambient::spawn(keeper.run(followed, check, tell));
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

/// Follows the tree until nobody wants to know (`None`), or it cannot.
async fn follow<T, E: Display>(
    client: &Client,
    path: &str,
    mut watcher: Watcher,
    check: &mut impl FnMut(&Snapshot) -> Result<T, E>,
    state: &watch::Sender<State<T>>,
    file: Option<&Path>,
) -> Option<Error> {
    loop {
        let event = tokio::select! {
            biased;
            () = state.closed() => return None,
            event = watcher.next() => event,
        };
        if event.is_none() {
            let reason = watcher.end_reason().unwrap_or(EndReason::Stopped);
            return Some(ended("watch", reason).into());
        }
        // One look serves all that has happened so far.
        while watcher.try_next().is_some() {}
        match read(client, path).await {
            Ok(snapshot) => take_over(path, snapshot, check, state, file).await,
            Err(error) => return Some(error),
        }
    }
}

/// Checks what was read, and makes it the current configuration, or says what is wrong with it.
async fn take_over<T, E: Display>(
    path: &str,
    snapshot: Snapshot,
    check: &mut impl FnMut(&Snapshot) -> Result<T, E>,
    state: &watch::Sender<State<T>>,
    file: Option<&Path>,
) {
    let is_known = {
        let now = state.borrow();
        let is_of_tree = now.accepted.source == Source::Tree;
        is_of_tree && now.accepted.snapshot.values == snapshot.values && now.rejected.is_none()
    };
    if is_known {
        return;
    }
    // A program's check knows nothing of ours: its error is made text before anything is waited for.
    match check(&snapshot).map_err(|error| error.to_string()) {
        Ok(value) => {
            if let Some(file) = file {
                keep(file, path, &snapshot).await;
            }
            state.send_modify(|state| {
                state.accepted = Arc::new(Accepted { value, snapshot, source: Source::Tree });
                state.rejected = None;
            });
        }
        Err(reason) => {
            let rejected = Rejected { zxid: snapshot.zxid, reason };
            tracing::warn!(path, zxid = %rejected.zxid, reason = rejected.reason, "a configuration was refused");
            state.send_modify(|state| state.rejected = Some(rejected));
        }
    }
}

/// A session in which the tree is followed from what was read on.
async fn begin(settings: &Builder, path: &str) -> Result<(Client, Watcher, Snapshot), Error> {
    let client = settings.clone().connect().await?;
    let watcher = client.watch(path, WatchMode::Recursive).await?;
    let snapshot = read(&client, path).await?;
    Ok((client, watcher, snapshot))
}

/// The configuration in the file, if there is one.
async fn kept<T, E: Display>(
    file: &Path,
    path: &str,
    check: &mut impl FnMut(&Snapshot) -> Result<T, E>,
) -> Result<Option<Accepted<T>>, Error> {
    let malformed = |reason: String| Error::Malformed { path: path.to_owned(), reason };
    let bytes = match tokio::fs::read(file).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| malformed(format!("{}: {error}", file.display())))?,
    };
    let snapshot = decide::decode(path, &bytes).map_err(|reason| {
        malformed(format!("{}: {reason}; remove it, or start while a server serves", file.display()))
    })?;
    match check(&snapshot) {
        Ok(value) => Ok(Some(Accepted { value, snapshot, source: Source::File })),
        Err(error) => Err(malformed(format!("{}: {error}", file.display()))),
    }
}

/// Writes the file anew, in one step: whoever dies midway leaves the one before.
async fn keep(file: &Path, path: &str, snapshot: &Snapshot) {
    let (to, bytes) = (file.to_owned(), decide::encode(path, snapshot));
    let written = tokio::task::spawn_blocking(move || write_file(&to, &bytes)).await;
    let failure = match written {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    tracing::warn!(path, file = %file.display(), failure, "a configuration could not be kept");
}

fn write_file(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = file.with_file_name(name);
    let mut out = std::fs::File::create(&new)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    std::fs::rename(&new, file)?;
    // The name is durable when its folder is.
    match file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => std::fs::File::open(folder)?.sync_all(),
        None => std::fs::File::open(".")?.sync_all(),
    }
}

/// Follows the tree in one session after the other.
struct Keeper {
    settings: Builder,
    path: String,
    file: PathBuf,
}

impl Keeper {
    async fn run<T, E: Display>(
        self,
        mut followed: Option<(Client, Watcher)>,
        mut check: impl FnMut(&Snapshot) -> Result<T, E>,
        state: watch::Sender<State<T>>,
    ) {
        loop {
            if let Some((client, watcher)) = followed.take() {
                match follow(&client, &self.path, watcher, &mut check, &state, Some(&self.file)).await {
                    None => return,
                    Some(Error::Client(error)) if error.is_session_end() => {
                        tracing::warn!(path = self.path, %error, "a configuration is followed in another session");
                    }
                    Some(error) => return state.send_modify(|state| state.over = Some(error)),
                }
            }
            let client = tokio::select! {
                biased;
                () = state.closed() => return,
                session = connect_again(&self.settings) => match session {
                    Ok(client) => client,
                    Err(error) => return state.send_modify(|state| state.over = Some(error)),
                },
            };
            let begun = async {
                let watcher = client.watch(&self.path, WatchMode::Recursive).await?;
                Ok::<_, Error>((watcher, read(&client, &self.path).await?))
            };
            match begun.await {
                Ok((watcher, snapshot)) => {
                    take_over(&self.path, snapshot, &mut check, &state, Some(&self.file)).await;
                    followed = Some((client, watcher));
                }
                Err(Error::Client(error)) if error.is_session_end() => {}
                Err(error) => return state.send_modify(|state| state.over = Some(error)),
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
