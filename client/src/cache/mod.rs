//! Copies of parts of the tree that keep themselves up to date: one znode, a znode and its children, a subtree.
//!
//! ```no_run
//! use corral_client::cache::{Cache, CacheOptions};
//! use corral_client::{Client, WatchMode};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("localhost:2181").await?;
//! let cache = Cache::start(&client, "/config", CacheOptions::from(WatchMode::Recursive));
//! cache.loaded().await?;
//! if let Some(node) = cache.get("/config/database") {
//!     println!("{}", String::from_utf8_lossy(node.bytes()));
//! }
//! // What this client wrote is in the cache once the cache has caught up with it.
//! let written = client.set("/config/database", "db-2", None).await?;
//! cache.caught_up_to(client.last_zxid()).await?;
//! # let _ = written;
//! # Ok(())
//! # }
//! ```
//!
//! A cache follows the [change feed](crate::Feed). It loads the tree page by page while changes go on, and what it shows first
//! is the tree at one zxid. From then on it takes over whole entries of the log, so it never shows half a transaction, in
//! their order; at every [`Delta::CaughtUp`] it is exactly what the tree was at that zxid. Over reconnects it goes on where it
//! was. After a [gap](crate::Gap) it asks for Stats and only for the data that is newer than its own, shows what it had until
//! it is up to date again, and then tells the difference.
//!
//! What the client may not read is not in a cache, and a change of an ACL is no event: a znode that becomes unreadable stays
//! until it changes, one that becomes readable comes with its next change.

mod view;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use corral_proto::{ErrorCode, Zxid};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::client::Client;
use crate::error::Error;
use crate::feeds::{FeedItem, WatchMode};
use crate::watcher::{Feed, FeedOptions};

pub use view::{CachedNode, Delta};
use view::{Loading, View, compact};

/// Deltas that wait for a reader that is slow. Beyond it those of one znode are made one: the reader gets the difference to
/// what it saw last, and not every step.
pub const DELTAS_MAX: usize = 10_000;

/// What a cache holds, and how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    mode: WatchMode,
    nodes_max: usize,
    bytes_max: usize,
}

impl From<WatchMode> for CacheOptions {
    fn from(mode: WatchMode) -> CacheOptions {
        CacheOptions { mode, nodes_max: 100_000, bytes_max: 64 << 20 }
    }
}

impl CacheOptions {
    /// Znodes it may hold; 100,000 without this. A cache that would be larger ends.
    pub fn nodes_max(mut self, nodes: usize) -> CacheOptions {
        self.nodes_max = nodes;
        self
    }

    /// Bytes of paths and data, and 256 for each znode; 64 MiB without this. A cache that would be larger ends. While it is
    /// brought up to date after a gap it may hold twice as many.
    pub fn bytes_max(mut self, bytes: usize) -> CacheOptions {
        self.bytes_max = bytes;
        self
    }
}

/// Why a cache is not kept up to date any more.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CacheEnd {
    /// There is more than it may hold.
    #[error(
        "the cache of {path} would hold {nodes} znodes and {bytes} bytes, more than it may: raise its bounds, or cache less"
    )]
    TooLarge {
        /// Of what.
        path: String,
        /// Znodes it would hold.
        nodes: usize,
        /// Bytes it would hold.
        bytes: usize,
    },
    /// A request was refused, or the session is over.
    #[error("the cache ended: {0}")]
    Client(Arc<Error>),
    /// The cache was dropped, or its runtime.
    #[error("the cache was dropped")]
    Dropped,
}

/// A copy of a part of the tree. Cheap to clone; it is kept up to date until the last clone is dropped.
///
/// It holds a clone of its client.
#[derive(Clone, Debug)]
pub struct Cache {
    shared: Arc<Shared>,
    /// Ends the task with the last clone.
    _task: Arc<Task>,
}

#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug)]
struct Shared {
    client: Client,
    path: String,
    options: CacheOptions,
    state: RwLock<State>,
    progress: watch::Sender<Progress>,
}

#[derive(Debug, Default)]
struct State {
    view: View,
    /// The state that it shows; `None`: it is being loaded.
    zxid: Option<Zxid>,
    readers: HashMap<u64, Arc<Reader>>,
    last_reader: u64,
}

#[derive(Clone, Debug, Default)]
struct Progress {
    zxid: Option<Zxid>,
    end: Option<CacheEnd>,
}

/// What a cache showed at one zxid.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The state; `None`: it was not loaded yet, and shows nothing. Entries of a later zxid may be in it, whole, if the last
    /// delta before it was no [`Delta::CaughtUp`].
    pub zxid: Option<Zxid>,
    /// Ascending by path.
    pub nodes: Vec<Arc<CachedNode>>,
}

impl Cache {
    /// Begins to load, in the background. The znode need not exist.
    pub fn start(client: &Client, path: &str, options: impl Into<CacheOptions>) -> Cache {
        let shared = Arc::new(Shared {
            client: client.clone(),
            path: path.to_owned(),
            options: options.into(),
            state: RwLock::default(),
            progress: watch::Sender::default(),
        });
        let task = tokio::spawn(run(shared.clone()));
        Cache { shared, _task: Arc::new(Task(task.abort_handle())) }
    }

    /// The znode at a path, as the cache shows it.
    pub fn get(&self, path: &str) -> Option<Arc<CachedNode>> {
        self.shared.state.read().view.get(path).cloned()
    }

    /// The names of the children of a path that are in the cache, ascending.
    pub fn children(&self, path: &str) -> Vec<String> {
        self.shared.state.read().view.children(path)
    }

    /// Number of znodes.
    pub fn len(&self) -> usize {
        self.shared.state.read().view.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Everything at once.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.state.read().snapshot()
    }

    /// Everything at once, and every delta from there on.
    pub fn follow(&self) -> (Snapshot, Deltas) {
        let mut state = self.shared.state.write();
        let reader = Arc::new(Reader::default());
        state.last_reader += 1;
        let id = state.last_reader;
        if self.shared.progress.borrow().end.is_some() {
            reader.end();
        }
        state.readers.insert(id, reader.clone());
        (state.snapshot(), Deltas { reader, id, cache: self.clone() })
    }

    /// Up to which zxid it is exact; `None` while it is being loaded.
    pub fn zxid(&self) -> Option<Zxid> {
        self.shared.progress.borrow().zxid
    }

    /// Waits until it shows something; gives the state that it shows then.
    ///
    /// # Errors
    /// [`CacheEnd`].
    pub async fn loaded(&self) -> Result<Zxid, CacheEnd> {
        self.wait(|_| true).await
    }

    /// Waits until it is at least as new as a zxid: of a write, of a read, of another client. Gives the state that it shows
    /// then. Cancel safe.
    ///
    /// # Errors
    /// [`CacheEnd`].
    pub async fn caught_up_to(&self, zxid: Zxid) -> Result<Zxid, CacheEnd> {
        self.loaded().await?;
        if self.zxid().is_none_or(|at| at < zxid) {
            // Answered once this session's server is as new as anything committed before, and after a bookmark.
            drop(self.shared.client.sync(&self.shared.path));
        }
        self.wait(|at| at >= zxid).await
    }

    async fn wait(&self, is_enough: impl Fn(Zxid) -> bool) -> Result<Zxid, CacheEnd> {
        let mut progress = self.shared.progress.subscribe();
        let reached = progress.wait_for(|progress| progress.end.is_some() || progress.zxid.is_some_and(&is_enough));
        let Ok(progress) = reached.await else { return Err(CacheEnd::Dropped) };
        match &progress.end {
            Some(end) => Err(end.clone()),
            None => Ok(progress.zxid.unwrap_or_default()),
        }
    }

    /// Why it is not kept up to date any more; `None` while it is. What it showed last stays.
    pub fn end_reason(&self) -> Option<CacheEnd> {
        self.shared.progress.borrow().end.clone()
    }
}

/// The deltas of a [`Cache`], in order: given by [`Cache::follow`].
///
/// At most [`DELTAS_MAX`] of them wait for a reader that is slow. Then several of one znode are made one, so that the reader
/// gets the difference to what it saw last: never less, but not every step. What waits is no more than the znodes that the
/// cache held since.
#[derive(Debug)]
pub struct Deltas {
    reader: Arc<Reader>,
    id: u64,
    cache: Cache,
}

impl Deltas {
    /// Waits for the next delta. `None` when the cache has ended ([`Cache::end_reason`]). Cancel safe.
    pub async fn next(&mut self) -> Option<Delta> {
        loop {
            let arrived = self.reader.arrived.notified();
            {
                let mut waiting = self.reader.waiting.lock();
                if let Some(delta) = waiting.deltas.pop_front() {
                    return Some(delta);
                }
                if waiting.ended {
                    return None;
                }
            }
            arrived.await;
        }
    }

    /// The next delta if there is one already.
    pub fn try_next(&mut self) -> Option<Delta> {
        self.reader.waiting.lock().deltas.pop_front()
    }
}

impl Drop for Deltas {
    fn drop(&mut self) {
        self.cache.shared.state.write().readers.remove(&self.id);
    }
}

#[derive(Debug, Default)]
struct Reader {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    deltas: VecDeque<Delta>,
    /// So many are too many; more than [`DELTAS_MAX`] if that many znodes changed.
    limit: usize,
    ended: bool,
}

impl Reader {
    fn push(&self, deltas: &[Delta]) {
        {
            let mut waiting = self.waiting.lock();
            // Bookmarks in a row are one.
            if let ([Delta::CaughtUp(_)], Some(Delta::CaughtUp(_))) = (deltas, waiting.deltas.back()) {
                waiting.deltas.pop_back();
            }
            waiting.deltas.extend(deltas.iter().cloned());
            if waiting.deltas.len() > waiting.limit.max(DELTAS_MAX) {
                waiting.deltas = compact(std::mem::take(&mut waiting.deltas));
                waiting.limit = 2 * waiting.deltas.len();
            }
        }
        self.arrived.notify_one();
    }

    fn end(&self) {
        self.waiting.lock().ended = true;
        self.arrived.notify_one();
    }
}

impl State {
    fn snapshot(&self) -> Snapshot {
        Snapshot { zxid: self.zxid, nodes: self.view.nodes().cloned().collect() }
    }

    fn tell(&self, deltas: &[Delta]) {
        if !deltas.is_empty() {
            for reader in self.readers.values() {
                reader.push(deltas);
            }
        }
    }
}

async fn run(shared: Arc<Shared>) {
    // Also when the runtime drops this task.
    struct End(Arc<Shared>);
    impl Drop for End {
        fn drop(&mut self) {
            self.0.end(CacheEnd::Dropped);
        }
    }
    let end = End(shared);
    let reason = match follow(&end.0).await {
        Ok(never) => match never {},
        Err(reason) => reason,
    };
    end.0.end(reason);
}

/// Keeps the cache up to date for as long as that is possible.
async fn follow(shared: &Shared) -> Result<std::convert::Infallible, CacheEnd> {
    let options = FeedOptions::from(shared.options.mode).with_nodes();
    let mut feed = shared.client.feed(&shared.path, options).await.map_err(CacheEnd::from)?;
    load(shared, &mut feed).await?;
    loop {
        match shared.next(&mut feed).await? {
            FeedItem::Changes(changes) => shared.change(|view, deltas| view.apply(changes, deltas))?,
            FeedItem::Bookmark(zxid) => shared.caught_up(zxid),
            FeedItem::Gap(_) => load(shared, &mut feed).await?,
        }
    }
}

/// Loads the tree, or what changed of it, while changes go on; returns once the cache shows the tree at one zxid.
async fn load(shared: &Shared, feed: &mut Feed) -> Result<(), CacheEnd> {
    let known = shared.state.read().zxid;
    let mut loading = Loading::default();
    // Everything after this is told, and nothing before it is needed.
    let mut bookmark = feed.position();
    // The request under way: for the next page, or, when all are there, for a bookmark that is not before them.
    let mut asked = None;
    let mut synced = false;
    loop {
        if let Some(view) = loading.finish(bookmark) {
            shared.replace(view, bookmark);
            return Ok(());
        }
        if !loading.pages_done {
            let (path, mode) = (&shared.path, shared.options.mode);
            asked.get_or_insert_with(|| shared.client.subtree_page(path, mode, &loading.after, known));
        } else if !std::mem::replace(&mut synced, true) {
            drop(shared.client.sync(&shared.path));
        }
        let page = async {
            match &mut asked {
                Some(page) => page.await,
                None => std::future::pending().await,
            }
        };
        let page = tokio::select! {
            biased;
            item = shared.next(feed) => {
                match item? {
                    FeedItem::Changes(changes) => loading.apply(changes),
                    FeedItem::Bookmark(zxid) => bookmark = zxid,
                    FeedItem::Gap(gap) => {
                        (loading, asked, synced) = (Loading::default(), None, false);
                        bookmark = gap.resync;
                    }
                }
                None
            }
            page = page => Some(page.map_err(CacheEnd::from)?),
        };
        if let Some(page) = page {
            asked = None;
            let missing = {
                let state = shared.state.read();
                loading.page(page, known.map(|_| &state.view))
            };
            for path in missing {
                match shared.client.get(&path).await {
                    Ok(node) => loading.read(path, node.data, node.stat, node.zxid),
                    Err(error) if matches!(error.code(), Some(ErrorCode::NoNode | ErrorCode::NoAuth)) => {}
                    Err(error) => return Err(CacheEnd::from(error)),
                }
            }
        }
        let (nodes, bytes) = loading.size();
        shared.bound(nodes, bytes)?;
    }
}

impl From<Error> for CacheEnd {
    fn from(error: Error) -> CacheEnd {
        CacheEnd::Client(Arc::new(error))
    }
}

impl Shared {
    async fn next(&self, feed: &mut Feed) -> Result<FeedItem, CacheEnd> {
        match feed.next().await {
            Some(item) => Ok(item),
            None => {
                let reason = feed.end_reason().unwrap_or(crate::EndReason::Stopped);
                let path = self.path.clone();
                Err(Error::SessionEnded { op: "cache", path, reason, outcome_unknown: false }.into())
            }
        }
    }

    fn bound(&self, nodes: usize, bytes: usize) -> Result<(), CacheEnd> {
        if nodes > self.options.nodes_max || bytes > self.options.bytes_max {
            return Err(CacheEnd::TooLarge { path: self.path.clone(), nodes, bytes });
        }
        Ok(())
    }

    fn change(&self, change: impl FnOnce(&mut View, &mut Vec<Delta>)) -> Result<(), CacheEnd> {
        let mut state = self.state.write();
        let mut deltas = Vec::new();
        change(&mut state.view, &mut deltas);
        state.tell(&deltas);
        self.bound(state.view.len(), state.view.bytes())
    }

    fn replace(&self, view: View, zxid: Zxid) {
        let mut state = self.state.write();
        let deltas = state.view.difference(&view, zxid);
        state.view = view;
        state.tell(&deltas);
        drop(state);
        self.caught_up(zxid);
    }

    fn caught_up(&self, zxid: Zxid) {
        let mut state = self.state.write();
        state.zxid = Some(zxid);
        state.tell(&[Delta::CaughtUp(zxid)]);
        drop(state);
        self.progress.send_modify(|progress| progress.zxid = Some(zxid));
    }

    fn end(&self, reason: CacheEnd) {
        let state = self.state.write();
        self.progress.send_modify(|progress| {
            progress.end.get_or_insert(reason);
        });
        for reader in state.readers.values() {
            reader.end();
        }
    }
}
