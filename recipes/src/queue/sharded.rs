//! One queue in several directories: more items than one list of children should hold.

use bytes::Bytes;
use corral_client::{
    Acl, Client, Consistency, CreateMode, CreateOptions, Data, ErrorCode, ReadRequest, ReadResult, Transaction,
    ambient, path as paths,
};

use super::{Listing, Next, PUT_ATTEMPTS, Queue, list, wait_for};
use crate::contender::{create_directory, random_id};
use crate::decide::queue::{PRIORITY_DEFAULT, SHARD, Shard, Target, choose_shard};
use crate::error::Error;

/// How many shards there can be: a consumer watches each of them.
pub const SHARDS_MAX: usize = 100;
/// From so many items on a shard gets no more, if the program says nothing else: Curator's number.
const THRESHOLD_DEFAULT: usize = 10_000;
/// How many shards there may be, if the program says nothing else: Curator's number.
const SHARDS_DEFAULT: usize = 10;

/// A queue that is spread over several directories, of which another is added when all have come to a threshold.
///
/// **At most once**, as [`Queue`]. Order is kept inside a shard, not across shards. Shards are containers: a shard that stays
/// empty is reaped by the server, and so the queue shrinks again. Layout: `queue-<uuid>` for each shard, as Curator's
/// `QueueSharder`, and each of them a [`Queue`].
///
/// ```no_run
/// # use corral_client::Client;
/// # use corral_recipes::ShardedQueue;
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// let queue = ShardedQueue::new(&client, "/queues/clicks").threshold(5_000).max_shards(8);
/// queue.put("one more").await?;
/// let item = queue.take().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ShardedQueue {
    client: Client,
    path: String,
    threshold: usize,
    most: usize,
    acl: Vec<Acl>,
}

impl ShardedQueue {
    /// The queue at this path, which need not exist.
    pub fn new(client: &Client, path: impl Into<String>) -> ShardedQueue {
        let (threshold, most) = (THRESHOLD_DEFAULT, SHARDS_DEFAULT);
        ShardedQueue { client: client.clone(), path: path.into(), threshold, most, acl: Acl::open() }
    }

    /// From how many items on a shard gets no more while another has fewer. It is looked at before a put, not at its
    /// creation: puts at the same time may go a little beyond. Default: 10,000.
    pub fn threshold(mut self, items: usize) -> ShardedQueue {
        self.threshold = items.max(1);
        self
    }

    /// How many shards there may be, 1 to [`SHARDS_MAX`]; all producers must agree. When all of them are at the threshold,
    /// the emptiest grows on. Default: 10.
    pub fn max_shards(mut self, most: usize) -> ShardedQueue {
        self.most = most.clamp(1, SHARDS_MAX);
        self
    }

    /// The ACL of the items. Default: open.
    pub fn acl(mut self, acl: Vec<Acl>) -> ShardedQueue {
        self.acl = acl;
        self
    }

    fn shard(&self, name: &str) -> Queue {
        // One that was reaped is not created again: another may stand in its place, and there may be no more.
        Queue::new(&self.client, paths::join(&self.path, name)).acl(self.acl.clone()).must_exist()
    }

    /// Puts one item, of priority 100 inside its shard.
    ///
    /// # Errors
    /// [`Error::Contended`]; [`Error::Client`].
    pub async fn put(&self, item: impl Into<Data>) -> Result<(), Error> {
        self.put_all([item]).await
    }

    /// Puts several items (at most 500) into one shard in one step, in this order, all or none.
    ///
    /// # Errors
    /// As [`ShardedQueue::put`]; [`Error::BadArgument`]: too many.
    pub async fn put_all(&self, items: impl IntoIterator<Item = impl Into<Data>>) -> Result<(), Error> {
        let items: Vec<Data> = items.into_iter().map(Into::into).collect();
        for _ in 0..PUT_ATTEMPTS {
            let shard = self.choose().await?;
            match self.shard(&shard).put_all(PRIORITY_DEFAULT, items.clone()).await {
                Err(error) if is_reaped(&error) => {}
                other => return other,
            }
        }
        Err(Error::Contended { path: self.path.clone(), attempts: PUT_ATTEMPTS })
    }

    /// The shard for the next items; adds one if need be.
    async fn choose(&self) -> Result<String, Error> {
        for _ in 0..PUT_ATTEMPTS {
            let parent = match self.client.read(Consistency::Linearizable).get(&self.path).await {
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                    create_directory(&self.client, &self.path).await?;
                    continue;
                }
                other => other?,
            };
            let shards = self.shards().await?;
            match choose_shard(&shards, self.threshold, self.most, ambient::random()) {
                Target::Shard(name) => return Ok(name),
                Target::Another => {}
            }
            // Who adds one takes turns by the version of the directory: so there are never more than there may be.
            let name = format!("{SHARD}{}", random_id().hyphenated());
            let options = CreateOptions::new(CreateMode::Container).acl(self.acl.clone());
            let add = Transaction::new().set(&self.path, parent.data, Some(parent.stat.version)).create(
                &paths::join(&self.path, &name),
                (),
                options,
            );
            match self.client.multi(add).await {
                Ok(_) => return Ok(name),
                Err(error) if matches!(error.code(), Some(ErrorCode::BadVersion | ErrorCode::NoNode)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Contended { path: self.path.clone(), attempts: PUT_ATTEMPTS })
    }

    /// The shards, and how many items each holds.
    async fn shards(&self) -> Result<Vec<Shard>, Error> {
        let listing = list(&self.client, &self.path).await?;
        let names: Vec<String> = listing.names.into_iter().filter(|name| name.starts_with(SHARD)).collect();
        let reads = names.iter().map(|name| ReadRequest::Get(paths::join(&self.path, name))).collect();
        let results = self.client.multi_read(reads).await?;
        let shards = names.into_iter().zip(results).filter_map(|(name, result)| match result {
            Ok(ReadResult::Node(node)) => {
                Some(Shard { name, items: usize::try_from(node.stat.num_children).unwrap_or(0) })
            }
            // Reaped since, or not ours to read.
            _ => None,
        });
        Ok(shards.collect())
    }

    /// How many shards there are.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn shard_count(&self) -> Result<usize, Error> {
        Ok(self.shards().await?.len())
    }

    /// How many items there are, in all shards.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn len(&self) -> Result<usize, Error> {
        Ok(self.shards().await?.iter().map(|shard| shard.items).sum())
    }

    /// Whether there is none.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.len().await? == 0)
    }

    /// Takes an item if there is one. The outer `None`: there is none; the inner: an item without data. Dropping the future
    /// may lose the item that it was taking.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn poll(&self) -> Result<Option<Option<Bytes>>, Error> {
        Ok(self.next().await?.item())
    }

    /// Waits for an item in any shard, and takes it; `None`: an item without data. Dropping the future may lose the item
    /// that it was taking.
    ///
    /// # Errors
    /// [`Error::Client`], among others when the session ends.
    pub async fn take(&self) -> Result<Option<Bytes>, Error> {
        wait_for(|| self.next()).await
    }

    async fn next(&self) -> Result<Next<Option<Bytes>>, Error> {
        let Listing { mut names, changed, .. } = list(&self.client, &self.path).await?;
        names.retain(|name| name.starts_with(SHARD));
        // Each begins somewhere else, so that consumers do not all ask for the same item, and no shard waits for ever.
        let first = usize::try_from(ambient::random()).unwrap_or(0) % names.len().max(1);
        names.rotate_left(first);
        let mut watches = vec![changed];
        for name in names {
            match self.shard(&name).next().await {
                Ok(Next::Item(item)) => return Ok(Next::Item(item)),
                Ok(Next::Wait(changed, _)) => watches.extend(changed),
                Err(error) if is_reaped(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Next::Wait(watches, None))
    }
}

/// Whether a shard is not there any more.
fn is_reaped(error: &Error) -> bool {
    matches!(error, Error::Client(error) if error.code() == Some(ErrorCode::NoNode))
}
