//! Items that are taken once, in order.

use bytes::Bytes;
use corral_client::{Acl, Client, Data, ErrorCode, Transaction, path as paths};

use super::{Next, Shelf, wait_for};
use crate::decide::queue::{Entry, PRIORITY_DEFAULT, entries};
use crate::error::Error;

/// A queue of which each item is taken by one consumer, at most once: the lower its priority number and the earlier it was
/// put, the earlier.
///
/// **At most once**: a consumer that dies after it took an item has taken it with it. For work that must not be lost there
/// is [`WorkQueue`](crate::WorkQueue). Layout: `entry-<priority>-<number>` as kazoo's `Queue`; items of ZooKeeper's own recipe
/// (`qn-<number>`, Curator's `SimpleDistributedQueue`) are taken too.
///
/// ```no_run
/// # use corral_client::Client;
/// # use corral_recipes::Queue;
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// let queue = Queue::new(&client, "/queues/mail").max_items(1_000);
/// queue.put("hello").await?;
/// queue.put_with(5, "urgent").await?;
/// assert_eq!(queue.take().await?.as_deref(), Some(&b"urgent"[..]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Queue {
    shelf: Shelf,
}

impl Queue {
    /// The queue at this path, which need not exist.
    pub fn new(client: &Client, path: impl Into<String>) -> Queue {
        Queue { shelf: Shelf::new(client, path.into()) }
    }

    /// It is not created when it is not there.
    pub(super) fn must_exist(mut self) -> Queue {
        self.shelf.must_exist = true;
        self
    }

    /// How many items there may be: a put beyond it is refused. All producers must agree. Default: no bound but the server's.
    pub fn max_items(mut self, most: usize) -> Queue {
        self.shelf.most = Some(most);
        self
    }

    /// The ACL of the items. Default: open.
    pub fn acl(mut self, acl: Vec<Acl>) -> Queue {
        self.shelf.acl = acl;
        self
    }

    /// Puts one item, of priority 100.
    ///
    /// # Errors
    /// [`Error::Full`]: nothing was put. [`Error::Contended`]. [`Error::Client`].
    pub async fn put(&self, item: impl Into<Data>) -> Result<(), Error> {
        self.put_with(PRIORITY_DEFAULT, item).await
    }

    /// Puts one item; the lower its priority (0 to 999), the sooner it is taken.
    ///
    /// # Errors
    /// As [`Queue::put`].
    pub async fn put_with(&self, priority: u16, item: impl Into<Data>) -> Result<(), Error> {
        self.put_all(priority, [item]).await
    }

    /// Puts several items (at most 500) in one step, in this order, all or none.
    ///
    /// # Errors
    /// As [`Queue::put`]; [`Error::BadArgument`]: too many.
    pub async fn put_all(&self, priority: u16, items: impl IntoIterator<Item = impl Into<Data>>) -> Result<(), Error> {
        let items = items.into_iter().map(|item| (Entry::prefix(priority), item.into())).collect();
        self.shelf.put(items, Transaction::new()).await.map(drop)
    }

    /// How many items there are.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn len(&self) -> Result<usize, Error> {
        let (names, _) = self.shelf.names().await?;
        Ok(entries(names.iter().map(String::as_str)).len())
    }

    /// Whether there is none.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.len().await? == 0)
    }

    /// Takes the next item if there is one. The outer `None`: there is none; the inner: an item without data. Dropping the
    /// future may lose the item that it was taking.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn poll(&self) -> Result<Option<Option<Bytes>>, Error> {
        Ok(self.next().await?.item())
    }

    /// Takes the next item, or gives what to wait for.
    pub(super) async fn next(&self) -> Result<Next<Option<Bytes>>, Error> {
        loop {
            let (names, changed) = self.shelf.names().await?;
            let list = entries(names.iter().map(String::as_str));
            if list.is_empty() {
                return Ok(Next::Wait(vec![changed], None));
            }
            for entry in list {
                if let Some(item) = self.shelf.remove(&entry.name).await? {
                    return Ok(Next::Item(item.0));
                }
            }
        }
    }

    /// Waits for an item, and takes it; `None`: an item without data. Dropping the future may lose the item that it was
    /// taking.
    ///
    /// # Errors
    /// [`Error::Client`], among others when the session ends.
    pub async fn take(&self) -> Result<Option<Bytes>, Error> {
        wait_for(|| self.next()).await
    }

    /// The data of the next item, which stays; `None`: there is none.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn peek(&self) -> Result<Option<Bytes>, Error> {
        let (names, _) = self.shelf.names().await?;
        for entry in entries(names.iter().map(String::as_str)) {
            match self.shelf.client.get(&paths::join(&self.shelf.path, &entry.name)).await {
                Ok(node) => return Ok(Some(node.data.unwrap_or_default())),
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }
}
