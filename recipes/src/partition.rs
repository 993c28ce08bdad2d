//! Items divided over members: evenly, each item with one member at a time, and moving as few as that takes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use corral_client::{
    Client, Consistency, CreateMode, Data, EndReason, ErrorCode, OneshotWatch, Transaction, ambient, path as paths,
};
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};

use crate::contender::{Hold, Loss, WhenSuspended, ended, persist, stopped};
use crate::decide::partition::{Assignment, ITEMS_MAX, divide};
use crate::decide::view::View;
use crate::election::Election;
use crate::error::Error;
use crate::group::{Group, Views};
use crate::latch::{CloseMode, LeaderLatch};
use crate::lock::{Guard, Mutex};
use crate::presence::Presence;

/// Events that wait for a slow reader; beyond it the partitioner does nothing that makes more of them, and goes on taking
/// back what is given back. (One change of the assignment may ask for every item at once.)
const EVENTS_MAX: usize = 64;
/// How long the members must not have changed before items are moved, unless the program says otherwise.
const SETTLE: Duration = Duration::from_secs(2);

/// Pause before the elected member looks at the members again, when that was refused for the moment.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Divides items over the members of a group.
///
/// One of the members, elected, writes who gets what; the assignment is even to within one, and of all that are even it is
/// one that moves the fewest items. Each item is also a lock: a member works on an item only while it holds it, so that
/// two never have one item at a time, whatever they believe of the assignment. An item's hold has a fencing token, as every
/// lock's. Members that come and go quickly move nothing until they were quiet for a while.
///
/// Layout (Corral's own): `members/`, `election/`, `locks/<item>/`, and the assignment in JSON in `assignment`.
///
/// ```no_run
/// # use corral_client::Client;
/// # use corral_recipes::{PartitionEvent, Partitioner};
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// let shards = (0..16).map(|n| format!("shard-{n}"));
/// let mut mine = Partitioner::new(&client, "/index/shards", "host-1", shards)?.join();
/// while let Some(event) = mine.next().await {
///     match event {
///         PartitionEvent::Acquired { item, hold } => println!("{item} is ours, token {}", hold.token()),
///         PartitionEvent::Release { item } => {
///             println!("{item} is wanted elsewhere: finish, and");
///             mine.give_back(&item).await?;
///         }
///         PartitionEvent::Lost { item, loss } => println!("{item} was lost: {loss}"),
///         PartitionEvent::Ended(error) => return Err(error),
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Partitioner {
    client: Client,
    path: String,
    member: String,
    items: BTreeSet<String>,
    settle: Duration,
    when_suspended: WhenSuspended,
}

/// What happens to a member's items.
#[derive(Clone, Debug)]
pub enum PartitionEvent {
    /// The item is ours.
    Acquired {
        /// Which.
        item: String,
        /// The hold of its lock: token, deadline, guarded writes.
        hold: Hold,
    },
    /// The item is to go to another: finish, then [`Partition::give_back`] it. It stays ours until then.
    Release {
        /// Which.
        item: String,
    },
    /// The item is not ours any more; stop at once. It is acquired again if it is still assigned to us.
    Lost {
        /// Which.
        item: String,
        /// Why.
        loss: Loss,
    },
    /// It is over: the session ended, or permission is missing.
    Ended(Error),
}

impl Partitioner {
    /// Items of the partition at this path, for the member of this id. All members must be given the same items; those of
    /// the elected one count.
    ///
    /// # Errors
    /// [`Error::BadArgument`]: more than 5,000 items, or names that cannot be those of znodes.
    pub fn new(
        client: &Client,
        path: impl Into<String>,
        member: impl Into<String>,
        items: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Partitioner, Error> {
        let (path, member) = (path.into(), member.into());
        let items: BTreeSet<String> = items.into_iter().map(Into::into).collect();
        let bad = |name: &&String| name.contains('/') || paths::validate(&format!("/{name}")).is_err();
        let wrong = items.iter().chain([&member]).find(bad).cloned();
        let reason = match wrong {
            Some(name) => format!("{name:?} cannot be a znode's name"),
            None if items.len() > ITEMS_MAX => format!("{} items; at most {ITEMS_MAX} can be divided", items.len()),
            None => {
                let (settle, when_suspended) = (SETTLE, WhenSuspended::default());
                return Ok(Partitioner { client: client.clone(), path, member, items, settle, when_suspended });
            }
        };
        Err(Error::BadArgument { path, reason })
    }

    /// How long the members must not have changed before items are moved. Default: 2 s.
    pub fn settle(mut self, settle: Duration) -> Partitioner {
        self.settle = settle;
        self
    }

    /// What a broken connection means for the items held. Default: [`WhenSuspended::Stop`].
    pub fn when_suspended(mut self, policy: WhenSuspended) -> Partitioner {
        self.when_suspended = policy;
        self
    }

    /// Takes part from now on.
    pub fn join(self) -> Partition {
        let (tell, events) = mpsc::channel(EVENTS_MAX);
        let (returned_tx, returned) = mpsc::channel(EVENTS_MAX);
        let (stop, stopped) = oneshot::channel();
        let (over_tx, over) = oneshot::channel();
        let path = self.path.clone();
        ambient::spawn(async move {
            let result = run(self, &tell, returned, stopped).await;
            if let Err(error) = &result {
                let _ = tell.send(PartitionEvent::Ended(error.clone())).await;
            }
            let _ = over_tx.send(result);
        });
        Partition { path, events, returned: returned_tx, stop: Some(stop), over }
    }

    fn assignment(&self) -> String {
        paths::join(&self.path, "assignment")
    }

    fn lock(&self, item: &str) -> Mutex {
        let path = paths::join(&paths::join(&self.path, "locks"), item);
        Mutex::new(&self.client, path).identity(self.member.clone()).when_suspended(self.when_suspended)
    }
}

/// A member's part. Dropping it leaves, and releases its items, in the background.
#[derive(Debug)]
pub struct Partition {
    path: String,
    events: mpsc::Receiver<PartitionEvent>,
    returned: mpsc::Sender<String>,
    stop: Option<oneshot::Sender<()>>,
    over: oneshot::Receiver<Result<(), Error>>,
}

impl Partition {
    /// Waits for the next event; `None`: it is over. Cancel safe.
    pub async fn next(&mut self) -> Option<PartitionEvent> {
        self.events.recv().await
    }

    /// The item is finished with, and may go to another.
    ///
    /// # Errors
    /// [`Error::BadArgument`]: the partition is over.
    pub async fn give_back(&self, item: &str) -> Result<(), Error> {
        let over = |_| Error::BadArgument { path: self.path.clone(), reason: "the partition is over".to_owned() };
        self.returned.send(item.to_owned()).await.map_err(over)
    }

    /// Leaves, and returns when all items are released. Work on them must have stopped.
    ///
    /// # Errors
    /// [`Error::Client`]: a release is not certain yet.
    pub async fn close(mut self) -> Result<(), Error> {
        drop(self.stop.take());
        self.events.close();
        self.over.await.map_err(|_| stopped())?
    }
}

/// An item as its member has it.
enum Slot {
    /// Its lock is waited for, until told not to.
    Wanted { cancel: oneshot::Sender<()> },
    /// It is held; `asked`: and to be given back.
    Held { guard: Guard, asked: bool },
}

/// What came of one of the things that are waited for, for one item.
enum Came {
    Acquired(Result<Guard, Error>),
    Cancelled,
    Lost(Loss),
}

type Pending = FuturesUnordered<BoxFuture<'static, (String, Came)>>;

async fn run(
    partitioner: Partitioner,
    tell: &mpsc::Sender<PartitionEvent>,
    mut returned: mpsc::Receiver<String>,
    mut stop: oneshot::Receiver<()>,
) -> Result<(), Error> {
    let group = Group::new(&partitioner.client, paths::join(&partitioner.path, "members"));
    let election = Election::new(&partitioner.client, paths::join(&partitioner.path, "election"));
    let presence = group.join(&partitioner.member, ()).start();
    let latch = election.latch(partitioner.member.clone());
    let mut member =
        Member { partitioner: &partitioner, slots: BTreeMap::new(), pending: Pending::new(), untold: VecDeque::new() };
    let result = tokio::select! {
        biased;
        _ = &mut stop => Ok(()),
        () = tell.closed() => Ok(()),
        result = lead(&partitioner, &group, &latch) => result,
        result = member.follow(&presence, tell, &mut returned) => result,
    };
    let released = member.release_all().await;
    if result.is_err() {
        for event in std::mem::take(&mut member.untold) {
            // Refused if nobody listens any more.
            let _ = tell.send(event).await;
        }
    }
    latch.close(CloseMode::Silent).await?;
    presence.close().await?;
    result.and(released)
}

/// Whenever we lead: divides the items anew after the members changed.
async fn lead(partitioner: &Partitioner, group: &Group, latch: &LeaderLatch) -> Result<(), Error> {
    loop {
        let hold = latch.lead().await?;
        let mut views = persist(|| group.views()).await?;
        tokio::select! {
            biased;
            _ = hold.lost() => {}
            result = divide_again(partitioner, &mut views, &hold) => match result {
                Ok(()) | Err(Error::Fenced { .. }) => {}
                Err(Error::Client(error)) if error.is_retryable() => ambient::sleep(LOOK_AGAIN).await,
                Err(error) => return Err(error),
            },
        }
    }
}

async fn divide_again(partitioner: &Partitioner, views: &mut Views, hold: &Hold) -> Result<(), Error> {
    let mut view = views.next().await?;
    loop {
        // Quiet for a while: who comes and goes quickly moves nothing.
        while let Ok(newer) = ambient::timeout(partitioner.settle, views.next()).await {
            view = newer?;
        }
        persist(|| write(partitioner, &view, hold)).await?;
        view = views.next().await?;
    }
}

/// Writes the assignment for these members, if it is another than that which is there, and if we still lead.
async fn write(partitioner: &Partitioner, view: &View, hold: &Hold) -> Result<(), Error> {
    let path = partitioner.assignment();
    let client = &partitioner.client;
    let (before, version) = match client.read(Consistency::Linearizable).get(&path).await {
        Ok(node) => (Assignment::parse(node.bytes()), Some(node.stat.version)),
        Err(error) if error.code() == Some(ErrorCode::NoNode) => (Assignment::default(), None),
        Err(error) => return Err(error.into()),
    };
    let members: Vec<String> = view.members.iter().map(|member| member.id.clone()).collect();
    let items = divide(&partitioner.items, &members, &before.items);
    if items == before.items && version.is_some() {
        return Ok(());
    }
    let data = Data::from(Assignment { epoch: view.epoch.0, items }.encode());
    let change = match version {
        Some(version) => Transaction::new().set(&path, data, Some(version)),
        None => Transaction::new().create(&path, data, CreateMode::Persistent),
    };
    // Only who leads writes, so a version that does not fit means that we do not lead any more.
    match hold.commit(change).await {
        Err(Error::Client(error)) if matches!(error.code(), Some(ErrorCode::BadVersion | ErrorCode::NodeExists)) => {
            Err(Error::Fenced { token: hold.token(), path: hold.path().to_owned() })
        }
        other => other.map(drop),
    }
}

struct Member<'a> {
    partitioner: &'a Partitioner,
    slots: BTreeMap<String, Slot>,
    pending: Pending,
    /// Events that the reader has no room for yet. Whoever waited for that room would not hear of what the reader gives back
    /// meanwhile, and the reader, who waits until it is heard, would make no room.
    untold: VecDeque<PartitionEvent>,
}

impl Member<'_> {
    /// Holds what is assigned to us, and gives back what is not any more.
    async fn follow(
        &mut self,
        presence: &Presence,
        tell: &mpsc::Sender<PartitionEvent>,
        returned: &mut mpsc::Receiver<String>,
    ) -> Result<(), Error> {
        presence.created().await?;
        let (mut wanted, mut changed) = persist(|| Member::read(self.partitioner)).await?;
        loop {
            self.turn_to(&wanted);
            let has_room = self.untold.len() < EVENTS_MAX;
            tokio::select! {
                biased;
                Ok(room) = tell.reserve(), if !self.untold.is_empty() => {
                    if let Some(event) = self.untold.pop_front() {
                        room.send(event);
                    }
                }
                Some(item) = returned.recv() => {
                    // What was not asked for may be given back too; it comes again if it is still assigned to us.
                    if matches!(self.slots.get(&item), Some(Slot::Held { .. }))
                        && let Some(Slot::Held { guard, .. }) = self.slots.remove(&item)
                    {
                        guard.release().await?;
                    }
                }
                Some((item, came)) = self.pending.next(), if has_room => self.on_came(item, came).await?,
                event = &mut changed, if has_room => {
                    event?;
                    (wanted, changed) = persist(|| Member::read(self.partitioner)).await?;
                }
                // The handle is gone while events wait for it: whoever polls this sees that too, and drops it.
                else => std::future::pending().await,
            }
        }
    }

    /// What is assigned to us, with a watch on that.
    async fn read(partitioner: &Partitioner) -> Result<(BTreeSet<String>, OneshotWatch), Error> {
        let (client, path) = (&partitioner.client, partitioner.assignment());
        loop {
            match client.get_and_watch(&path).await {
                Ok((node, changed)) => {
                    return Ok((Assignment::parse(node.bytes()).of(&partitioner.member), changed));
                }
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {}
                Err(error) => return Err(error.into()),
            }
            if let (None, created) = client.exists_and_watch(&path).await? {
                return Ok((BTreeSet::new(), created));
            }
        }
    }

    fn turn_to(&mut self, wanted: &BTreeSet<String>) {
        for item in wanted {
            if !self.slots.contains_key(item) {
                let lock = self.partitioner.lock(item);
                let (cancel, cancelled) = oneshot::channel();
                let item = item.clone();
                self.slots.insert(item.clone(), Slot::Wanted { cancel });
                let acquire = async move {
                    tokio::select! {
                        biased;
                        _ = cancelled => (item, Came::Cancelled),
                        acquired = lock.acquire() => (item, Came::Acquired(acquired)),
                    }
                };
                self.pending.push(acquire.boxed());
            }
        }
        let unwanted: Vec<String> = self.slots.keys().filter(|item| !wanted.contains(*item)).cloned().collect();
        for item in unwanted {
            match self.slots.get_mut(&item) {
                Some(Slot::Held { asked, .. }) if !*asked => {
                    *asked = true;
                    self.untold.push_back(PartitionEvent::Release { item });
                }
                Some(Slot::Wanted { .. }) => {
                    if let Some(Slot::Wanted { cancel }) = self.slots.remove(&item) {
                        drop(cancel);
                    }
                }
                _ => {}
            }
        }
    }

    async fn on_came(&mut self, item: String, came: Came) -> Result<(), Error> {
        match came {
            Came::Cancelled => {}
            Came::Acquired(Ok(guard)) => {
                if !matches!(self.slots.get(&item), Some(Slot::Wanted { .. })) {
                    // Not wanted any more when it came.
                    return guard.release().await;
                }
                let (hold, watched) = (guard.hold(), guard.hold());
                let name = item.clone();
                self.pending.push(async move { (name, Came::Lost(watched.lost().await)) }.boxed());
                self.slots.insert(item.clone(), Slot::Held { guard, asked: false });
                self.untold.push_back(PartitionEvent::Acquired { item, hold });
            }
            Came::Acquired(Err(Error::Lost(loss))) if !matches!(loss, Loss::SessionEnded(_)) => {
                // The next turn tries again.
                self.slots.remove(&item);
            }
            Came::Acquired(Err(error)) => return Err(error),
            Came::Lost(loss) => {
                // Given back is lost too, and then the slot is another's or empty.
                if !matches!(self.slots.get(&item), Some(Slot::Held { guard, .. }) if !guard.is_valid()) {
                    return Ok(());
                }
                let Some(Slot::Held { guard, .. }) = self.slots.remove(&item) else { return Ok(()) };
                self.untold.push_back(PartitionEvent::Lost { item, loss: loss.clone() });
                if let Loss::SessionEnded(reason) = loss {
                    return Err(ended("hold", reason).into());
                }
                guard.release().await?;
            }
        }
        Ok(())
    }

    async fn release_all(&mut self) -> Result<(), Error> {
        let mut first = Ok(());
        for slot in std::mem::take(&mut self.slots).into_values() {
            if let Slot::Held { guard, .. } = slot {
                let released = guard.release().await;
                if first.is_ok() {
                    first = released;
                }
            }
        }
        self.pending.clear();
        match first {
            // With the session everything went.
            Err(Error::Client(corral_client::Error::SessionEnded { reason: EndReason::Expired, .. })) => Ok(()),
            other => other,
        }
    }
}
