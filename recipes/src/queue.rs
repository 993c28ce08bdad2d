//! Queues: items that are taken once, in order; or that stay until they are done.
//!
//! A queue in a coordination service is for few and small items: each is replicated to every server, and a consumer reads
//! the list of all of them. Hence the bounds, which are enforced where the item is created and not before.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::time::Duration;

use bytes::Bytes;
use corral_client::{
    Acl, Client, Consistency, CreateMode, CreateOptions, Data, ErrorCode, MultiError, OneshotWatch, OpResult,
    ReadRequest, ReadResult, Transaction, Zxid, path as paths,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::contender::{Contender, Hold, Name, Own, Phase, Spec, Task, WhenSuspended, create_directory};
use crate::decide::queue::{Delayed, Due, Entry, PRIORITY_DEFAULT, due, entries, has_room};
use crate::error::Error;
use crate::guarded::{Fence, Guarded, Token, unexpected};
use crate::lease::server_time;

/// Items that are put at once, at most: they are one transaction.
pub const BATCH_MAX: usize = 500;
/// How often a put is tried against other puts before it is given up.
const PUT_ATTEMPTS: u32 = 1_000;
/// Stats read by one request.
const STATS_PER_READ: usize = 500;

/// Where items are put, and how many there may be.
#[derive(Clone, Debug)]
struct Shelf {
    client: Client,
    path: String,
    most: Option<usize>,
    acl: Vec<Acl>,
}

impl Shelf {
    fn new(client: &Client, path: String) -> Shelf {
        Shelf { client: client.clone(), path, most: None, acl: Acl::open() }
    }

    /// Puts items under names that begin so, all or none. With a bound, puts take turns by the version of the queue's znode,
    /// which was read together with the number of items: so the bound holds at the moment of the creation, whoever else
    /// puts (with the same bound). Consumers only make room, and need no turn.
    async fn put(&self, items: Vec<(String, Data)>) -> Result<Vec<String>, Error> {
        if items.len() > BATCH_MAX {
            let reason = format!("{} items at once; at most {BATCH_MAX}", items.len());
            return Err(Error::BadArgument { path: self.path.clone(), reason });
        }
        let more = items.len();
        for _ in 0..PUT_ATTEMPTS {
            let mut put = Transaction::new();
            if self.most.is_some() {
                match self.client.read(Consistency::Linearizable).get(&self.path).await {
                    Ok(node) => {
                        let present = usize::try_from(node.stat.num_children).unwrap_or(0);
                        if !has_room(present, more, self.most) {
                            return Err(Error::Full { path: self.path.clone(), present });
                        }
                        put = put.set(&self.path, node.data, Some(node.stat.version));
                    }
                    Err(error) if error.code() == Some(ErrorCode::NoNode) => {
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
                Ok(results) => {
                    let names = results.into_iter().filter_map(|result| match result {
                        OpResult::Created(created) => Some(created.name().to_owned()),
                        _ => None,
                    });
                    return Ok(names.collect());
                }
                Err(error) => match error.code() {
                    // Another put was first.
                    Some(ErrorCode::BadVersion) => {}
                    Some(ErrorCode::NoNode) => create_directory(&self.client, &self.path).await?,
                    _ => return Err(error.into()),
                },
            }
        }
        Err(Error::Contended { path: self.path.clone(), attempts: PUT_ATTEMPTS })
    }

    /// The names of all items, with a watch that fires when some come or go; the names are as of one state.
    async fn names(&self) -> Result<(Vec<String>, OneshotWatch), Error> {
        loop {
            match self.client.read(Consistency::Linearizable).children_and_watch(&self.path).await {
                Ok((names, _, changed)) => return Ok((names, changed)),
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                    create_directory(&self.client, &self.path).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes one item away; `None`: somebody else did.
    async fn remove(&self, name: &str) -> Result<Option<Data>, Error> {
        let path = paths::join(&self.path, name);
        // In the session's order: what is read is what is deleted.
        let (read, delete) = (self.client.get(&path), self.client.delete(&path, None));
        let read = read.await;
        match (read, delete.await) {
            (Ok(node), Ok(())) => Ok(Some(Data(node.data))),
            // Our server had not heard of it yet; the deletion had.
            (Err(error), Ok(())) => Err(error.into()),
            (_, Err(error)) if error.code() == Some(ErrorCode::NoNode) => Ok(None),
            (_, Err(error)) => Err(error.into()),
        }
    }
}

/// A queue of which each item is taken by one consumer, at most once: the lower its priority number and the earlier it was
/// put, the earlier.
///
/// **At most once**: a consumer that dies after it took an item has taken it with it. For work that must not be lost there
/// is [`WorkQueue`]. Layout: `entry-<priority>-<number>` as kazoo's `Queue`; items of ZooKeeper's own recipe
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
        self.shelf.put(vec![(Entry::prefix(priority), item.into())]).await.map(drop)
    }

    /// Puts several items (at most 500) in one step, in this order, all or none.
    ///
    /// # Errors
    /// As [`Queue::put`]; [`Error::BadArgument`]: too many.
    pub async fn put_all(&self, priority: u16, items: impl IntoIterator<Item = impl Into<Data>>) -> Result<(), Error> {
        let items = items.into_iter().map(|item| (Entry::prefix(priority), item.into())).collect();
        self.shelf.put(items).await.map(drop)
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
        Ok(self.next().await?.ok())
    }

    /// Takes the next item, or gives what to wait for.
    async fn next(&self) -> Result<Result<Option<Bytes>, OneshotWatch>, Error> {
        loop {
            let (names, changed) = self.shelf.names().await?;
            let list = entries(names.iter().map(String::as_str));
            if list.is_empty() {
                return Ok(Err(changed));
            }
            for entry in list {
                if let Some(item) = self.shelf.remove(&entry.name).await? {
                    return Ok(Ok(item.0));
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
        loop {
            match self.next().await? {
                Ok(item) => return Ok(item),
                Err(changed) => drop(changed.await?),
            }
        }
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

/// What happens to an item that was begun too often without being done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Poison {
    /// It is moved to `dead/`, for people to look at.
    #[default]
    SetAside,
    /// It is deleted.
    Drop,
}

/// A queue whose items stay until they are done: if the consumer that has one dies, another gets it.
///
/// **At least once** begun, and **exactly once** done: [`Work::done`] removes the item and the claim in one transaction, and
/// is refused if the claim was lost; writes that belong to the item can be part of it ([`Work::done_with`]), and then they
/// are done exactly once too. What a consumer does outside of the tree before it dies may be done again by the next.
///
/// Layout: `entries/entry-<priority>-<number>` and `taken/<same name>`, as kazoo's `LockingQueue`, whose consumers and
/// producers take part; attempts are counted by the version of the entry, which kazoo's consumers leave alone.
///
/// ```no_run
/// # use corral_client::{Client, Transaction};
/// # use corral_recipes::WorkQueue;
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// let queue = WorkQueue::new(&client, "/queues/orders").max_items(1_000).max_attempts(5);
/// queue.put("order 7").await?;
/// let work = queue.take().await?;
/// println!("attempt {} at {:?}", work.attempts(), work.item());
/// work.done_with(Transaction::new().set("/orders/7", "shipped", None)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct WorkQueue {
    path: String,
    shelf: Shelf,
    attempts_max: Option<u32>,
    poison: Poison,
    when_suspended: WhenSuspended,
}

impl WorkQueue {
    /// The queue at this path, which need not exist.
    pub fn new(client: &Client, path: impl Into<String>) -> WorkQueue {
        let path = path.into();
        let shelf = Shelf::new(client, paths::join(&path, "entries"));
        let (attempts_max, poison, when_suspended) = (None, Poison::default(), WhenSuspended::UntilDeadline);
        WorkQueue { path, shelf, attempts_max, poison, when_suspended }
    }

    /// How many items there may be, those that are being done included. All producers must agree. Default: no bound but the
    /// server's.
    pub fn max_items(mut self, most: usize) -> WorkQueue {
        self.shelf.most = Some(most);
        self
    }

    /// How often an item may be begun; then it is poison. Default: without end.
    pub fn max_attempts(mut self, attempts: u32) -> WorkQueue {
        self.attempts_max = Some(attempts);
        self
    }

    /// What happens to poison. Default: it is set aside.
    pub fn poison(mut self, poison: Poison) -> WorkQueue {
        self.poison = poison;
        self
    }

    /// What a broken connection means for a claim. Default: [`WhenSuspended::UntilDeadline`].
    pub fn when_suspended(mut self, policy: WhenSuspended) -> WorkQueue {
        self.when_suspended = policy;
        self
    }

    /// The ACL of the items. Default: open.
    pub fn acl(mut self, acl: Vec<Acl>) -> WorkQueue {
        self.shelf.acl = acl;
        self
    }

    fn taken(&self) -> String {
        paths::join(&self.path, "taken")
    }

    /// Puts one item, of priority 100.
    ///
    /// # Errors
    /// As [`Queue::put`].
    pub async fn put(&self, item: impl Into<Data>) -> Result<(), Error> {
        self.put_all(PRIORITY_DEFAULT, [item]).await
    }

    /// Puts several items (at most 500) of one priority in one step, in this order, all or none.
    ///
    /// # Errors
    /// As [`Queue::put_all`].
    pub async fn put_all(&self, priority: u16, items: impl IntoIterator<Item = impl Into<Data>>) -> Result<(), Error> {
        let items = items.into_iter().map(|item| (Entry::prefix(priority), item.into())).collect();
        self.shelf.put(items).await.map(drop)
    }

    /// How many items there are, those that are being done included.
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

    /// Waits for an item that nobody has, and claims it. Dropping the future gives back what it claimed.
    ///
    /// # Errors
    /// [`Error::Client`], among others when the session ends.
    pub async fn take(&self) -> Result<Work, Error> {
        let spec = Spec {
            acl: self.shelf.acl.clone(),
            when_suspended: self.when_suspended,
            ..Spec::present(self.taken(), Name::Fixed(String::new()))
        };
        let (tell, claimed) = tokio::sync::oneshot::channel();
        let queue = self.clone();
        let contender = Contender::start(&self.shelf.client, spec, move |task| queue.run(task, tell));
        let mut contender = contender;
        let hold = contender.first().await?;
        // Told before it holds.
        let claim = claimed.await.map_err(|_| crate::contender::stopped())?;
        Ok(Work { queue: self.clone(), hold, contender, claim })
    }

    /// As [`WorkQueue::take`], for at most `limit`.
    ///
    /// # Errors
    /// [`Error::Timeout`]; else as there.
    pub async fn take_timeout(&self, limit: Duration) -> Result<Work, Error> {
        crate::lock::within(limit, &self.path, self.take()).await
    }

    /// The life of one claim: waits for an item, claims it, and keeps it.
    async fn run(self, mut task: Task, tell: tokio::sync::oneshot::Sender<Claim>) {
        let claim = loop {
            if task.has_left() {
                return task.say(Phase::Released);
            }
            match self.try_claim(&task).await {
                Ok(Ok(claim)) => break claim,
                Ok(Err(waits)) => {
                    task.say(Phase::Waiting);
                    tokio::select! {
                        biased;
                        _ = &mut task.leave => return task.say(Phase::Released),
                        event = waits.entries => if let Err(error) = event { return task.say(Phase::Failed(error.into())) },
                        event = waits.taken => if let Err(error) = event { return task.say(Phase::Failed(error.into())) },
                    }
                }
                Err(error) => return task.say(Phase::Failed(error)),
            }
        };
        let own = Own { path: claim.taken.clone(), czxid: claim.taken_czxid };
        task.fence = Some(claim.fence.clone());
        if tell.send(claim).is_err() || task.has_left() {
            return task.release(&[own], true).await;
        }
        task.adopt(vec![own]).await;
    }

    /// Claims the first item that nobody has, or gives what to wait for.
    async fn try_claim(&self, task: &Task) -> Result<Result<Claim, Waits>, Error> {
        'again: loop {
            let (names, entries_changed) = self.shelf.names().await?;
            let reads = task.client.read(Consistency::Linearizable);
            let (taken, _, taken_changed) = match reads.children_and_watch(&self.taken()).await {
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                    create_directory(&task.client, &self.taken()).await?;
                    continue;
                }
                other => other?,
            };
            for entry in entries(names.iter().map(String::as_str)) {
                if taken.contains(&entry.name) {
                    continue;
                }
                match self.claim(task, &entry.name).await? {
                    Claimed::Ours(claim) => return Ok(Ok(claim)),
                    // Done, or another's by now; the next one.
                    Claimed::Gone => {}
                    Claimed::NoDirectory => continue 'again,
                }
            }
            return Ok(Err(Waits { entries: entries_changed, taken: taken_changed }));
        }
    }

    async fn claim(&self, task: &Task, name: &str) -> Result<Claimed, Error> {
        let (entry, taken) = (paths::join(&self.shelf.path, name), paths::join(&self.taken(), name));
        let node = match task.client.get(&entry).await {
            Err(error) if error.code() == Some(ErrorCode::NoNode) => return Ok(Claimed::Gone),
            other => other?,
        };
        let before = node.stat.version;
        let options = CreateOptions::new(CreateMode::Ephemeral).acl(task.spec.acl.clone());
        let is_poison = self.attempts_max.is_some_and(|most| i64::from(before) >= i64::from(most));
        if is_poison {
            self.remove_poison(task, name, before, node.data).await?;
            return Ok(Claimed::Gone);
        }
        // The version of the entry counts its claims, and tells them apart: a name that is taken comes back, a version
        // does not.
        let claim = Transaction::new().set(&entry, node.data.clone(), Some(before)).create(&taken, (), options);
        match task.client.multi(claim).await {
            Ok(results) => match (results.first(), results.get(1)) {
                (Some(OpResult::Set(stat)), Some(OpResult::Created(created))) => Ok(Claimed::Ours(Claim {
                    item: node.data,
                    fence: Fence { path: entry, version: Some(stat.version), token: Token(Zxid::from_i64(stat.mzxid)) },
                    taken,
                    taken_czxid: created.stat.czxid,
                })),
                (other, _) => Err(unexpected("multi", &entry, &other.cloned())),
            },
            Err(corral_client::Error::Multi(MultiError { index, code, .. })) => match (index, code) {
                (0, ErrorCode::NoNode | ErrorCode::BadVersion) | (1, ErrorCode::NodeExists) => Ok(Claimed::Gone),
                (1, ErrorCode::NoNode) => {
                    create_directory(&task.client, &self.taken()).await?;
                    Ok(Claimed::NoDirectory)
                }
                _ => Err(corral_client::Error::Refused { op: "take", path: entry, code }.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Removes an item that was begun too often, unless somebody has it right now.
    async fn remove_poison(&self, task: &Task, name: &str, version: i32, item: Option<Bytes>) -> Result<(), Error> {
        let (entry, taken) = (paths::join(&self.shelf.path, name), paths::join(&self.taken(), name));
        let dead = paths::join(&self.path, "dead");
        tracing::warn!(path = entry, attempts = version, policy = ?self.poison, "an item was begun too often");
        if self.poison == Poison::SetAside {
            create_directory(&task.client, &dead).await?;
        }
        // Created and deleted in one step: refused if somebody has it.
        let mut remove = Transaction::new().create(&taken, (), CreateMode::Ephemeral).delete(&taken, None);
        remove = remove.delete(&entry, Some(version));
        if self.poison == Poison::SetAside {
            let options = CreateOptions::new(CreateMode::Persistent).acl(self.shelf.acl.clone());
            remove = remove.create(&paths::join(&dead, name), item, options);
        }
        match task.client.multi(remove).await {
            Ok(_) => Ok(()),
            Err(error)
                if matches!(error.code(), Some(ErrorCode::NodeExists | ErrorCode::NoNode | ErrorCode::BadVersion)) =>
            {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

struct Waits {
    entries: OneshotWatch,
    taken: OneshotWatch,
}

enum Claimed {
    Ours(Claim),
    Gone,
    NoDirectory,
}

/// An item of ours.
#[derive(Clone, Debug)]
struct Claim {
    item: Option<Bytes>,
    /// The entry, in the version that our claim gave it.
    fence: Fence,
    taken: String,
    taken_czxid: i64,
}

/// An item that is ours until it is done, or lost. Dropping it gives it back, in the background.
///
/// As a [`Hold`] its path is the item's, and its token that of the claim: it grows from claim to claim of an item.
#[must_use = "dropped work is given back"]
#[derive(Debug)]
pub struct Work {
    queue: WorkQueue,
    hold: Hold,
    contender: Contender,
    claim: Claim,
}

impl Work {
    /// The item's data; `None` for null.
    pub fn item(&self) -> Option<&Bytes> {
        self.claim.item.as_ref()
    }

    /// How often it was begun, this time included.
    pub fn attempts(&self) -> u32 {
        self.claim.fence.version.and_then(|version| u32::try_from(version).ok()).unwrap_or(0)
    }

    /// A client whose writes are done only while the item is ours: nobody claimed it since, and our claim is still there.
    pub fn guarded(&self) -> Guarded {
        let taken = Fence::existing(&self.claim.taken, self.claim.fence.token);
        Guarded::new(self.queue.shelf.client.clone(), self.claim.fence.clone()).and(taken)
    }

    /// It is done: removed, with its claim, in one step.
    ///
    /// # Errors
    /// As [`Work::done_with`].
    pub async fn done(self) -> Result<(), Error> {
        self.done_with(Transaction::new()).await.map(drop)
    }

    /// It is done, and with it these writes: all in one step, or nothing. Dropping the future leaves
    /// it open whether it was done; it is never done twice.
    ///
    /// # Errors
    /// [`Error::Fenced`]: it was lost before, and another has or had it; nothing was done. [`Error::Client`]: one of the
    /// writes was refused (its index counts from the first of them), or the session ended. The item is given back then.
    pub async fn done_with(mut self, writes: Transaction) -> Result<Vec<OpResult>, Error> {
        let finish = Transaction::new()
            .delete(&self.claim.taken, None)
            .delete(&self.claim.fence.path, self.claim.fence.version)
            .and(writes);
        match self.contender.finish(finish).await {
            Ok(mut results) => {
                results.drain(..2.min(results.len()));
                Ok(results)
            }
            Err(Error::Client(corral_client::Error::Multi(multi))) if multi.index < 2 => {
                Err(Error::Fenced { token: self.claim.fence.token, path: self.claim.fence.path.clone() })
            }
            Err(Error::Client(corral_client::Error::Multi(multi))) => {
                let (index, ops) = (multi.index - 2, multi.ops - 2);
                Err(Error::Client(MultiError { index, ops, ..multi }.into()))
            }
            // Lost: the claim is gone, or not certain any more.
            Err(Error::Lost(_)) => {
                Err(Error::Fenced { token: self.claim.fence.token, path: self.claim.fence.path.clone() })
            }
            Err(other) => Err(other),
        }
    }

    /// Gives it back for another attempt, and returns when it certainly is.
    ///
    /// # Errors
    /// [`Error::Client`]: it is not certain yet. While the session lives it is tried again in the background.
    pub async fn requeue(self) -> Result<(), Error> {
        self.contender.leave().await
    }
}

impl Deref for Work {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.hold
    }
}

/// A queue whose items may be taken after a delay, by the clock of the ensemble's leader: no client's clock is asked.
///
/// At most once, as [`Queue`]. Layout (Corral's own; Curator's `DistributedDelayQueue` writes the time of its client's clock
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
    /// As [`Queue::put`].
    pub async fn put(&self, item: impl Into<Data>, delay: Duration) -> Result<(), Error> {
        self.shelf.put(vec![(Delayed::prefix(delay), item.into())]).await.map(drop)
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
        match self.next().await? {
            Next::Item(item) => Ok(Some(item)),
            Next::Wait(..) => Ok(None),
        }
    }

    /// Waits until an item is due, and takes it; `None`: an item without data. Dropping the future may lose the item that it
    /// was taking.
    ///
    /// # Errors
    /// [`Error::Client`], among others when the session ends.
    pub async fn take(&self) -> Result<Option<Bytes>, Error> {
        loop {
            match self.next().await? {
                Next::Item(item) => return Ok(item),
                Next::Wait(Some(pause), changed) => tokio::select! {
                    event = changed => drop(event?),
                    () = tokio::time::sleep(pause) => {}
                },
                Next::Wait(None, changed) => drop(changed.await?),
            }
        }
    }

    async fn next(&self) -> Result<Next, Error> {
        loop {
            let (names, changed) = self.shelf.names().await?;
            let items = self.items(&names).await?;
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
                Due::After(pause) if !items.is_empty() => return Ok(Next::Wait(Some(pause), changed)),
                Due::After(_) | Due::Nothing => return Ok(Next::Wait(None, changed)),
            }
        }
    }

    /// The items of these names, with the time at which each was put.
    async fn items(&self, names: &[String]) -> Result<Vec<Delayed>, Error> {
        let mut put_ms = std::mem::take(&mut self.known.lock().put_ms);
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
        self.known.lock().put_ms = put_ms;
        Ok(items)
    }

    fn time_known(&self) -> Option<i64> {
        let (said_ms, heard) = self.known.lock().clock?;
        Some(said_ms.saturating_add(i64::try_from(heard.elapsed().as_millis()).ok()?))
    }

    async fn ask_time(&self) -> Result<i64, Error> {
        let said_ms = server_time(&self.shelf.client, &self.path).await?;
        self.known.lock().clock = Some((said_ms, Instant::now()));
        Ok(said_ms)
    }
}

enum Next {
    Item(Option<Bytes>),
    Wait(Option<Duration>, OneshotWatch),
}
