//! Items that stay until they are done.

use std::ops::Deref;
use std::time::Duration;

use bytes::Bytes;
use corral_client::{
    Acl, Client, CreateMode, CreateOptions, Data, ErrorCode, MultiError, Node, OneshotWatch, OpResult, Transaction,
    Zxid, path as paths,
};

use super::{Listing, Next, Shelf, list, wait_for};
use crate::contender::{Contender, Hold, Name, Own, Phase, Spec, Task, WhenSuspended, create_directory, random_id};
use crate::decide::queue::{Entry, PRIORITY_DEFAULT, entries};
use crate::error::Error;
use crate::guarded::{Fence, Token, unexpected};

/// What the names of marks begin with: no entry's name does.
const MARK: &str = "claim-";

/// What happens to an item that was begun too often without being done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Poison {
    /// It is moved to `dead/`, for people to look at; its name there is that of the entry and the zxid of its creation, so
    /// that no two are the same.
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
/// producers take part; beside the latter stands `taken/claim-<same name>-<uuid>`, which they pass over. Attempts are
/// counted by the version of the entry, which kazoo's consumers leave alone.
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
    /// As [`Queue::put`](crate::Queue::put).
    pub async fn put(&self, item: impl Into<Data>) -> Result<(), Error> {
        self.put_all(PRIORITY_DEFAULT, [item]).await
    }

    /// Puts several items (at most 500) of one priority in one step, in this order, all or none.
    ///
    /// # Errors
    /// As [`Queue::put_all`](crate::Queue::put_all).
    pub async fn put_all(&self, priority: u16, items: impl IntoIterator<Item = impl Into<Data>>) -> Result<(), Error> {
        self.put_with(priority, items, Transaction::new()).await.map(drop)
    }

    /// Puts several items (at most 500) of one priority, and does these writes with them: all in one step, or nothing. A
    /// producer that notes there what it has put can die at any moment, and the next one goes on where it was.
    ///
    /// # Errors
    /// As [`WorkQueue::put_all`]; [`Error::Client`] with [`corral_client::Error::Multi`]: one of the writes was refused, and
    /// its index is that among them.
    pub async fn put_with(
        &self,
        priority: u16,
        items: impl IntoIterator<Item = impl Into<Data>>,
        writes: Transaction,
    ) -> Result<Vec<OpResult>, Error> {
        let items = items.into_iter().map(|item| (Entry::prefix(priority), item.into())).collect();
        self.shelf.put(items, writes).await
    }

    /// Waits until there is no item, none that is being done either. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Client`], among others when the session ends.
    pub async fn drained(&self) -> Result<(), Error> {
        wait_for(|| async {
            let (names, changed) = self.shelf.names().await?;
            let is_drained = entries(names.iter().map(String::as_str)).is_empty();
            Ok(if is_drained { Next::Item(()) } else { Next::Wait(vec![changed], None) })
        })
        .await
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
        Ok(Work { hold, contender, claim })
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
                        changed = super::changed(waits, None) => if let Err(error) = changed {
                            return task.say(Phase::Failed(error));
                        },
                    }
                }
                Err(error) => return task.say(Phase::Failed(error)),
            }
        };
        let own = Own { path: claim.taken.clone(), czxid: claim.taken_czxid };
        task.fence = Some(claim.fence.clone());
        task.mark = Some(claim.mark.clone());
        if tell.send(claim).is_err() || task.has_left() {
            return task.release(&[own], true).await;
        }
        task.adopt(vec![own]).await;
    }

    /// Claims the first item that nobody has, or gives what to wait for.
    async fn try_claim(&self, task: &Task) -> Result<Result<Claim, Vec<OneshotWatch>>, Error> {
        'again: loop {
            let (names, entries_changed) = self.shelf.names().await?;
            let Listing { names: taken, changed: taken_changed, .. } = list(&task.client, &self.taken()).await?;
            for entry in entries(names.iter().map(String::as_str)) {
                if taken.contains(&entry.name) {
                    continue;
                }
                let marks = format!("{MARK}{}-", entry.name);
                let old =
                    taken.iter().filter(|name| name.starts_with(&marks)).map(|name| paths::join(&self.taken(), name));
                match self.claim(task, &entry.name, old.collect()).await? {
                    Claimed::Ours(claim) => return Ok(Ok(claim)),
                    // Done, or another's by now; the next one.
                    Claimed::Gone => {}
                    Claimed::LookAgain => continue 'again,
                }
            }
            return Ok(Err(vec![entries_changed, taken_changed]));
        }
    }

    /// Claims an item; `old` are the marks of former claims of its name.
    async fn claim(&self, task: &Task, name: &str, old: Vec<String>) -> Result<Claimed, Error> {
        let (entry, taken) = (paths::join(&self.shelf.path, name), paths::join(&self.taken(), name));
        let node = match task.client.get(&entry).await {
            Err(error) if error.code() == Some(ErrorCode::NoNode) => return Ok(Claimed::Gone),
            other => other?,
        };
        let before = node.stat.version;
        let options = CreateOptions::new(CreateMode::Ephemeral).acl(task.spec.acl.clone());
        let is_poison = self.attempts_max.is_some_and(|most| i64::from(before) >= i64::from(most));
        if is_poison {
            return self.remove_poison(task, name, node).await;
        }
        // The version of the entry counts its claims. It does not tell them apart for ever, nor does the name of what is
        // taken: both come back when an idle queue was reaped. The name of the mark does not. Marks that are there still
        // belong to claims that were taken away by force, and go with them.
        let mark = paths::join(&self.taken(), &format!("{MARK}{name}-{}", random_id().hyphenated()));
        let claim = Transaction::new().set(&entry, node.data.clone(), Some(before));
        let claim = claim.create(&taken, (), options.clone()).create(&mark, (), options);
        let claim = old.iter().fold(claim, |claim, mark| claim.delete(mark, None));
        match task.client.multi(claim).await {
            Ok(results) => match (results.first(), results.get(1)) {
                (Some(OpResult::Set(stat)), Some(OpResult::Created(created))) => Ok(Claimed::Ours(Claim {
                    item: node.data,
                    fence: Fence {
                        path: entry,
                        version: Some(stat.version),
                        token: Token(Zxid::from_i64(stat.mzxid)),
                        also: vec![(taken.clone(), None), (mark.clone(), None)],
                    },
                    taken,
                    taken_czxid: created.stat.czxid,
                    mark,
                })),
                (other, _) => Err(unexpected("multi", &entry, &other.cloned())),
            },
            Err(corral_client::Error::Multi(MultiError { index, code, .. })) => match (index, code) {
                (0, ErrorCode::NoNode | ErrorCode::BadVersion) | (1, ErrorCode::NodeExists) => Ok(Claimed::Gone),
                (1, ErrorCode::NoNode) => {
                    create_directory(&task.client, &self.taken()).await?;
                    Ok(Claimed::LookAgain)
                }
                (3.., ErrorCode::NoNode) => Ok(Claimed::LookAgain),
                _ => Err(corral_client::Error::Refused { op: "take", path: entry, code }.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Removes an item that was begun too often, unless somebody has it right now.
    async fn remove_poison(&self, task: &Task, name: &str, node: Node) -> Result<Claimed, Error> {
        let (entry, taken) = (paths::join(&self.shelf.path, name), paths::join(&self.taken(), name));
        let Node { stat, data: item, .. } = node;
        let directory = paths::join(&self.path, "dead");
        // Items of the past may lie there under the same name: names of entries come back after `entries` was reaped.
        let dead = paths::join(&directory, &format!("{name}-{}", Zxid::from_i64(stat.czxid)));
        tracing::warn!(path = entry, attempts = stat.version, policy = ?self.poison, "an item was begun too often");
        // Created and deleted in one step: refused if somebody has it.
        let mut remove = Transaction::new().create(&taken, (), CreateMode::Ephemeral).delete(&taken, None);
        remove = remove.delete(&entry, Some(stat.version));
        if self.poison == Poison::SetAside {
            create_directory(&task.client, &directory).await?;
            let options = CreateOptions::new(CreateMode::Persistent).acl(self.shelf.acl.clone());
            remove = remove.create(&dead, item, options);
        }
        match task.client.multi(remove).await {
            Ok(_) => Ok(Claimed::Gone),
            Err(corral_client::Error::Multi(MultiError { index, code, .. })) => match (index, code) {
                (0, ErrorCode::NodeExists) | (2, ErrorCode::NoNode | ErrorCode::BadVersion) => Ok(Claimed::Gone),
                // Reaped since.
                (0, ErrorCode::NoNode) => {
                    create_directory(&task.client, &self.taken()).await?;
                    Ok(Claimed::LookAgain)
                }
                (3, ErrorCode::NoNode) => Ok(Claimed::LookAgain),
                (3, _) => Err(corral_client::Error::Refused { op: "set poison aside", path: dead, code }.into()),
                _ => Err(corral_client::Error::Refused { op: "take", path: entry, code }.into()),
            },
            Err(error) => Err(error.into()),
        }
    }
}

enum Claimed {
    Ours(Claim),
    Gone,
    /// What it was decided by has changed.
    LookAgain,
}

/// An item of ours.
#[derive(Clone, Debug)]
struct Claim {
    item: Option<Bytes>,
    /// The entry, in the version that our claim gave it.
    fence: Fence,
    taken: String,
    taken_czxid: i64,
    /// Beside what is taken, with a name that never comes back.
    mark: String,
}

/// An item that is ours until it is done, or lost. Dropping it gives it back, in the background.
///
/// As a [`Hold`] its path is the item's, and its token that of the claim: it grows from claim to claim of an item. Guarded
/// writes are done only while nobody claimed it since, and our claim is still there.
#[must_use = "dropped work is given back"]
#[derive(Debug)]
pub struct Work {
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
        /// Operations before those of the caller.
        const OWN: usize = 3;
        let finish = Transaction::new()
            .delete(&self.claim.taken, None)
            .delete(&self.claim.mark, None)
            .delete(&self.claim.fence.path, self.claim.fence.version)
            .and(writes);
        match self.contender.finish(finish).await {
            Ok(mut results) => {
                results.drain(..OWN.min(results.len()));
                Ok(results)
            }
            Err(Error::Client(corral_client::Error::Multi(multi))) if multi.index < OWN => {
                Err(Error::Fenced { token: self.claim.fence.token, path: self.claim.fence.path.clone() })
            }
            Err(Error::Client(corral_client::Error::Multi(multi))) => {
                let (index, ops) = (multi.index - OWN, multi.ops - OWN);
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
