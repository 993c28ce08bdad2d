//! Queues: items that are taken once, in order; or that stay until they are done.
//!
//! A queue in a coordination service is for few and small items: each is replicated to every server, and a consumer reads
//! the list of all of them. Hence the bounds, which are enforced where the item is created and not before.

//!
//! What they share is here: the [`Shelf`] that items stand on, and the one loop in which consumers wait.

mod delay;
mod fifo;
mod id;
mod sharded;
mod work;

use std::time::Duration;

use corral_client::{
    Acl, Client, Consistency, CreateMode, CreateOptions, Data, ErrorCode, MultiError, OneshotWatch, OpResult,
    Transaction, ambient, path as paths,
};

use crate::contender::create_directory;
use crate::decide::queue::has_room;
use crate::error::Error;

pub use delay::DelayQueue;
pub use fifo::Queue;
pub use id::{IdItem, IdQueue};
pub use sharded::{SHARDS_MAX, ShardedQueue};
pub use work::{Poison, Work, WorkQueue};

/// Items that are put at once, at most: they are one transaction.
pub const BATCH_MAX: usize = 500;
/// How often a put is tried against other puts before it is given up.
const PUT_ATTEMPTS: u32 = 1_000;
/// Stats read by one request.
const STATS_PER_READ: usize = 500;

/// What a consumer finds when it looks.
enum Next<T> {
    /// An item, which is its own now.
    Item(T),
    /// Nothing to take: look again when these changed, or after the pause.
    Wait(Vec<OneshotWatch>, Option<Duration>),
}

impl<T> Next<T> {
    /// What was taken, if something was.
    fn item(self) -> Option<T> {
        match self {
            Next::Item(item) => Some(item),
            Next::Wait(..) => None,
        }
    }
}

/// Looks until there is an item.
async fn wait_for<T, F>(look: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<Next<T>, Error>>,
{
    loop {
        match look().await? {
            Next::Item(item) => return Ok(item),
            Next::Wait(watches, pause) => changed(watches, pause).await?,
        }
    }
}

/// Waits until something that was looked at may have changed, or the pause is over.
async fn changed(watches: Vec<OneshotWatch>, pause: Option<Duration>) -> Result<(), Error> {
    let pause = async {
        match pause {
            Some(pause) => ambient::sleep(pause).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        (event, ..) = futures::future::select_all(watches) => event.map(drop).map_err(Error::from),
        () = pause => Ok(()),
    }
}

/// What a directory holds, as of one state.
struct Listing {
    /// The names in it.
    names: Vec<String>,
    /// Which directory: another of its name, created after it was reaped, counts anew.
    czxid: i64,
    /// Fires when names come or go.
    changed: OneshotWatch,
}

/// What a directory holds, which is created if need be.
async fn list(client: &Client, directory: &str) -> Result<Listing, Error> {
    loop {
        match list_existing(client, directory).await {
            Err(error) if error.code() == Some(ErrorCode::NoNode) => create_directory(client, directory).await?,
            other => return Ok(other?),
        }
    }
}

/// What a directory holds, which must be there.
async fn list_existing(client: &Client, directory: &str) -> corral_client::Result<Listing> {
    let (names, stat, changed) = client.read(Consistency::Linearizable).children_and_watch(directory).await?;
    Ok(Listing { names, czxid: stat.czxid, changed })
}

/// Where items are put, and how many there may be.
#[derive(Clone, Debug)]
struct Shelf {
    client: Client,
    path: String,
    most: Option<usize>,
    acl: Vec<Acl>,
    /// It is somebody else's to create the directory: while it is not there, all is refused with [`ErrorCode::NoNode`].
    must_exist: bool,
}

impl Shelf {
    fn new(client: &Client, path: String) -> Shelf {
        Shelf { client: client.clone(), path, most: None, acl: Acl::open(), must_exist: false }
    }

    /// Puts items under names that begin so, and does these writes before: all or nothing. With a bound, puts take turns by
    /// the version of the queue's znode, which was read together with the number of items: so the bound holds at the moment
    /// of the creation, whoever else puts (with the same bound). Consumers only make room, and need no turn.
    async fn put(&self, items: Vec<(String, Data)>, writes: Transaction) -> Result<Vec<OpResult>, Error> {
        if items.len() > BATCH_MAX {
            let reason = format!("{} items at once; at most {BATCH_MAX}", items.len());
            return Err(Error::BadArgument { path: self.path.clone(), reason });
        }
        let (more, before) = (items.len(), writes.len());
        for _ in 0..PUT_ATTEMPTS {
            let mut put = writes.clone();
            if self.most.is_some() {
                match self.client.read(Consistency::Linearizable).get(&self.path).await {
                    Ok(node) => {
                        let present = usize::try_from(node.stat.num_children).unwrap_or(0);
                        if !has_room(present, more, self.most) {
                            return Err(Error::Full { path: self.path.clone(), present });
                        }
                        put = put.set(&self.path, node.data, Some(node.stat.version));
                    }
                    Err(error) if error.code() == Some(ErrorCode::NoNode) && !self.must_exist => {
                        create_directory(&self.client, &self.path).await?;
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            for (prefix, data) in &items {
                let options = CreateOptions::new(CreateMode::PersistentSequential).acl(self.acl.clone());
                put = put.create(&paths::join(&self.path, prefix), data.clone(), options);
            }
            match self.client.multi(put).await {
                Ok(mut results) => {
                    results.truncate(before);
                    return Ok(results);
                }
                // One of the caller's own.
                Err(corral_client::Error::Multi(multi)) if multi.index < before => {
                    return Err(Error::Client(MultiError { ops: before, ..multi }.into()));
                }
                Err(error) => match error.code() {
                    // Another put was first.
                    Some(ErrorCode::BadVersion) => {}
                    Some(ErrorCode::NoNode) if !self.must_exist => create_directory(&self.client, &self.path).await?,
                    _ => return Err(error.into()),
                },
            }
        }
        Err(Error::Contended { path: self.path.clone(), attempts: PUT_ATTEMPTS })
    }

    /// The names of all items, with a watch that fires when some come or go; the names are as of one state.
    async fn names(&self) -> Result<(Vec<String>, OneshotWatch), Error> {
        let listing = match self.must_exist {
            true => list_existing(&self.client, &self.path).await?,
            false => list(&self.client, &self.path).await?,
        };
        Ok((listing.names, listing.changed))
    }

    /// Takes one item away; `None`: somebody else did.
    async fn remove(&self, name: &str) -> Result<Option<Data>, Error> {
        let path = paths::join(&self.path, name);
        loop {
            // Read, and then deleted as it was read. Not both at once: when a connection is lost, reads that were not
            // answered are made anew, behind a deletion that was done already, and what was deleted is read no more.
            let node = match self.client.get(&path).await {
                Err(error) if error.code() == Some(ErrorCode::NoNode) => return Ok(None),
                other => other?,
            };
            match self.client.delete(&path, Some(node.stat.version)).await {
                Ok(()) => return Ok(Some(Data(node.data))),
                Err(error) if error.code() == Some(ErrorCode::NoNode) => return Ok(None),
                Err(error) if error.code() == Some(ErrorCode::BadVersion) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
