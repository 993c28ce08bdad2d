//! Items that may be taken after a while.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use corral_client::{Acl, Client, Data, ReadRequest, ReadResult, Transaction, ambient, path as paths};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Listing, Next, STATS_PER_READ, Shelf, list, wait_for};
use crate::decide::queue::{Delayed, Due, due};
use crate::error::Error;
use crate::lease::server_time;

/// A queue whose items may be taken after a delay, by the clock of the ensemble's leader: no client's clock is asked.
///
/// At most once, as [`Queue`](crate::Queue). Layout (Corral's own; Curator's `DistributedDelayQueue` writes the time of its client's clock
/// into names, and cannot be mixed): `items/delayed-<ms>-<number>`, due that long after its `ctime`; `clock` is written to
/// learn the time.
///
/// ```no_run
/// # use std::time::Duration;
/// # use corral_client::Client;
/// # use corral_recipes::DelayQueue;
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// let reminders = DelayQueue::new(&client, "/queues/reminders").max_items(1_000);
/// reminders.put("call back", Duration::from_secs(600)).await?;
/// let item = reminders.take().await?; // in ten minutes
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct DelayQueue {
    path: String,
    shelf: Shelf,
    known: Mutex<KnownTimes>,
}

/// What need not be asked again.
#[derive(Debug, Default)]
struct KnownTimes {
    /// The czxid of the directory of which the rest is known: in another one names begin anew.
    directory: i64,
    /// When each item was put, by the server's clock, ms. Only of items that were there at the last look.
    put_ms: BTreeMap<String, i64>,
    /// What the server's clock said, and when, by ours, that was heard: so it is at least that much later now.
    clock: Option<(i64, Instant)>,
}

impl DelayQueue {
    /// The queue at this path, which need not exist.
    pub fn new(client: &Client, path: impl Into<String>) -> DelayQueue {
        let path = path.into();
        let shelf = Shelf::new(client, paths::join(&path, "items"));
        DelayQueue { path, shelf, known: Mutex::default() }
    }

    /// How many items there may be: a put beyond it is refused. All producers must agree. Default: no bound but the server's.
    pub fn max_items(mut self, most: usize) -> DelayQueue {
        self.shelf.most = Some(most);
        self
    }

    /// The ACL of the items. Default: open.
    pub fn acl(mut self, acl: Vec<Acl>) -> DelayQueue {
        self.shelf.acl = acl;
        self
    }

    /// Puts an item that may be taken after `delay` (whole milliseconds).
    ///
    /// # Errors
    /// As [`Queue::put`](crate::Queue::put).
    pub async fn put(&self, item: impl Into<Data>, delay: Duration) -> Result<(), Error> {
        self.shelf.put(vec![(Delayed::prefix(delay), item.into())], Transaction::new()).await.map(drop)
    }

    /// How many items there are, due or not.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn len(&self) -> Result<usize, Error> {
        let (names, _) = self.shelf.names().await?;
        Ok(names.iter().filter(|name| Delayed::parse(name, 0).is_some()).count())
    }

    /// Whether there is none.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.len().await? == 0)
    }

    /// Takes the item that is due for longest, if one is. The outer `None`: none is; the inner: an item without data.
    /// Dropping the future may lose the item that it was taking.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn poll(&self) -> Result<Option<Option<Bytes>>, Error> {
        Ok(self.next().await?.item())
    }

    /// Waits until an item is due, and takes it; `None`: an item without data. Dropping the future may lose the item that it
    /// was taking.
    ///
    /// # Errors
    /// [`Error::Client`], among others when the session ends.
    pub async fn take(&self) -> Result<Option<Bytes>, Error> {
        wait_for(|| self.next()).await
    }

    async fn next(&self) -> Result<Next<Option<Bytes>>, Error> {
        loop {
            let Listing { names, czxid, changed } = list(&self.shelf.client, &self.shelf.path).await?;
            let items = self.items(&names, czxid).await?;
            // What is due by what is known surely is; only where it is not, the server is asked.
            let mut found = match self.time_known() {
                Some(now_ms) => due(&items, now_ms),
                None => Due::After(Duration::ZERO),
            };
            if matches!(found, Due::After(_)) && !items.is_empty() {
                found = due(&items, self.ask_time().await?);
            }
            match found {
                Due::Now(names) => {
                    for name in names {
                        if let Some(item) = self.shelf.remove(&name).await? {
                            return Ok(Next::Item(item.0));
                        }
                    }
                }
                Due::After(pause) if !items.is_empty() => return Ok(Next::Wait(vec![changed], Some(pause))),
                Due::After(_) | Due::Nothing => return Ok(Next::Wait(vec![changed], None)),
            }
        }
    }

    /// The items of these names in this directory, with the time at which each was put.
    async fn items(&self, names: &[String], directory: i64) -> Result<Vec<Delayed>, Error> {
        let mut put_ms = {
            let mut known = self.known.lock();
            let put_ms = std::mem::take(&mut known.put_ms);
            if std::mem::replace(&mut known.directory, directory) == directory { put_ms } else { BTreeMap::new() }
        };
        put_ms.retain(|name, _| names.binary_search(name).is_ok());
        let new: Vec<&String> = names.iter().filter(|name| !put_ms.contains_key(*name)).collect();
        for some in new.chunks(STATS_PER_READ) {
            let reads = some.iter().map(|name| ReadRequest::Get(paths::join(&self.shelf.path, name))).collect();
            for (name, result) in some.iter().zip(self.shelf.client.multi_read(reads).await?) {
                if let Ok(ReadResult::Node(node)) = result {
                    put_ms.insert((*name).clone(), node.stat.ctime);
                }
            }
        }
        let items = put_ms.iter().filter_map(|(name, put_ms)| Delayed::parse(name, *put_ms)).collect();
        let mut known = self.known.lock();
        // Unless another has looked meanwhile, at another one.
        if known.directory == directory {
            known.put_ms = put_ms;
        }
        Ok(items)
    }

    fn time_known(&self) -> Option<i64> {
        let (said_ms, heard) = self.known.lock().clock?;
        Some(said_ms.saturating_add(i64::try_from(ambient::now().saturating_duration_since(heard).as_millis()).ok()?))
    }

    async fn ask_time(&self) -> Result<i64, Error> {
        let said_ms = server_time(&self.shelf.client, &self.path).await?;
        self.known.lock().clock = Some((said_ms, ambient::now()));
        Ok(said_ms)
    }
}
