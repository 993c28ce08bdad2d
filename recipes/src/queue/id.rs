//! Items with an id, by which they can be taken back.

use bytes::Bytes;
use corral_client::{Acl, Client, Data, Transaction, path as paths};

use super::{Next, Shelf, wait_for};
use crate::decide::queue::{IdEntry, decode_item, encode_item, id_entries};
use crate::error::Error;

/// A queue of items with ids: who knows the id of an item can take it out of the queue before it is consumed.
///
/// **At most once**, first come first served. Ids need not be unique; what removes an id removes all items of it. Layout and
/// data are those of Curator's `DistributedIdQueue`: `queue-|<id>|<number>`, and the item in the frame of its
/// `ItemSerializer`. Curator replaces `/` and `|` in ids by `_`; here such an id is refused, because what was put under it
/// could not be found under it.
///
/// ```no_run
/// # use corral_client::Client;
/// # use corral_recipes::IdQueue;
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// let queue = IdQueue::new(&client, "/queues/mail").max_items(1_000);
/// queue.put("order-7", "your order is on its way").await?;
/// queue.put("order-8", "your order is on its way").await?;
/// assert_eq!(queue.remove("order-7").await?, 1); // it was cancelled
/// assert_eq!(queue.take().await?.id, "order-8");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct IdQueue {
    shelf: Shelf,
}

/// An item that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdItem {
    /// The id under which it was put.
    pub id: String,
    /// The item.
    pub item: Bytes,
}

impl IdQueue {
    /// The queue at this path, which need not exist.
    pub fn new(client: &Client, path: impl Into<String>) -> IdQueue {
        IdQueue { shelf: Shelf::new(client, path.into()) }
    }

    /// How many items there may be: a put beyond it is refused. All producers must agree. Default: no bound but the server's.
    pub fn max_items(mut self, most: usize) -> IdQueue {
        self.shelf.most = Some(most);
        self
    }

    /// The ACL of the items. Default: open.
    pub fn acl(mut self, acl: Vec<Acl>) -> IdQueue {
        self.shelf.acl = acl;
        self
    }

    /// Puts an item under this id.
    ///
    /// # Errors
    /// [`Error::BadArgument`]: an id that is empty or contains `/` or `|`. [`Error::Full`]: nothing was put.
    /// [`Error::Contended`]. [`Error::Client`].
    pub async fn put(&self, id: &str, item: impl AsRef<[u8]>) -> Result<(), Error> {
        let Some(prefix) = IdEntry::prefix(id) else {
            let reason = format!("{id:?} is no id of an item: it must not be empty, nor contain '/' or '|'");
            return Err(Error::BadArgument { path: self.shelf.path.clone(), reason });
        };
        let item = Data::from(encode_item(item.as_ref()));
        self.shelf.put(vec![(prefix, item)], Transaction::new()).await.map(drop)
    }

    /// Takes all items of this id out of the queue, and says how many there were. What a consumer took first is not among
    /// them.
    ///
    /// # Errors
    /// [`Error::Client`]: some may have been removed.
    pub async fn remove(&self, id: &str) -> Result<usize, Error> {
        let mut removed = 0;
        for entry in self.entries().await?.0.iter().filter(|entry| entry.id == id) {
            removed += usize::from(self.shelf.remove(&entry.name).await?.is_some());
        }
        Ok(removed)
    }

    /// Whether an item of this id waits.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn contains(&self, id: &str) -> Result<bool, Error> {
        Ok(self.entries().await?.0.iter().any(|entry| entry.id == id))
    }

    /// How many items there are.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn len(&self) -> Result<usize, Error> {
        Ok(self.entries().await?.0.len())
    }

    /// Whether there is none.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.len().await? == 0)
    }

    /// Takes the next item if there is one. Dropping the future may lose the item that it was taking.
    ///
    /// # Errors
    /// As [`IdQueue::take`].
    pub async fn poll(&self) -> Result<Option<IdItem>, Error> {
        Ok(self.next().await?.item())
    }

    /// Waits for an item, and takes it. Dropping the future may lose the item that it was taking.
    ///
    /// # Errors
    /// [`Error::Malformed`]: its data is not framed as Curator's; it is no longer in the queue. [`Error::Client`], among
    /// others when the session ends.
    pub async fn take(&self) -> Result<IdItem, Error> {
        wait_for(|| self.next()).await
    }

    async fn entries(&self) -> Result<(Vec<IdEntry>, corral_client::OneshotWatch), Error> {
        let (names, changed) = self.shelf.names().await?;
        Ok((id_entries(names.iter().map(String::as_str)), changed))
    }

    async fn next(&self) -> Result<Next<IdItem>, Error> {
        loop {
            let (entries, changed) = self.entries().await?;
            if entries.is_empty() {
                return Ok(Next::Wait(vec![changed], None));
            }
            for entry in entries {
                let Some(data) = self.shelf.remove(&entry.name).await? else { continue };
                return match decode_item(data.0.unwrap_or_default()) {
                    Some(item) => Ok(Next::Item(IdItem { id: entry.id, item })),
                    None => Err(Error::Malformed {
                        path: paths::join(&self.shelf.path, &entry.name),
                        reason: "not an item in the frame of Curator's queues; it was removed".to_owned(),
                    }),
                };
            }
        }
    }
}
