//! Coordination recipes with fencing tokens, on Corral's client.
//!
//! ```no_run
//! use corral_client::{Client, Transaction};
//! use corral_recipes::Mutex;
//!
//! # async fn example() -> Result<(), corral_recipes::Error> {
//! let client = Client::connect("localhost:2181").await?;
//! let guard = Mutex::new(&client, "/locks/report").acquire().await?;
//! // Done only if the lock is still ours when the ensemble gets to it.
//! guard.commit(Transaction::new().set("/report", "42", None)).await?;
//! guard.release().await?;
//! # Ok(())
//! # }
//! ```
//!
//! **What is promised.** At most one session is first in the queue at any point of the ensemble's history, and tokens grow
//! from holder to holder. What is *not* promised, because no lock over a network can: that a holder knows at once that it
//! is no longer one. It may be paused, and wake up after its session has expired. Hence three things come with every hold:
//! a [`Token`] that resources outside can compare, [`Hold::valid_until`], a deadline by the holder's own clock after which
//! it must not act, and [`Hold::commit`], which makes changes inside the tree conditional on the hold, at the moment they
//! are executed.
//!
//! **How.** Each contender is one ephemeral sequential znode; the first in order of creation holds; everybody else watches
//! the one before ([`sequence`]). A task of its own owns the znode from before its creation until it is certainly gone: so a
//! future of this crate may be dropped at any point, and no contender stays behind in the queue.
//!
//! Layouts are those of Curator and kazoo where these have one ([`Layout`], [`RwLayout`], [`GroupLayout`], [`Encoding`]).
//!
//! | for | there is |
//! |---|---|
//! | one at a time | [`Mutex`], [`ReentrantMutex`], [`MultiLock`], [`Revoker`] |
//! | many readers or one writer | [`RwLock`] |
//! | so many at a time | [`Semaphore`] |
//! | as long as a time, whatever happens to its owner | [`TimedLease`] |
//! | one that leads | [`Election`], [`LeaderLatch`], [`LeaderSelector`] |
//! | who is there, and who does what | [`Presence`], [`TtlNode`], [`Group`], [`Discovery`], [`Partitioner`] |
//! | waiting for each other | [`Barrier`], [`DoubleBarrier`] |
//! | values and numbers | [`SharedValue`], [`Counter`], [`IdBlocks`] |
//! | work | [`Queue`], [`WorkQueue`], [`DelayQueue`], [`IdQueue`], [`ShardedQueue`] |
//! | several znodes at once | [`ConfigMap`], [`transact`] |
//!
//! What each promises, and what it does not: `docs/recipes.md`. What each decides is a function of what was read, in
//! [`decide`] and [`sequence`]; the drivers beside them only read, ask, and do what they are told.

mod barrier;
mod config;
mod contender;
pub mod decide;
mod discovery;
mod election;
mod error;
mod group;
mod guarded;
mod latch;
mod lease;
mod lock;
mod multi;
mod partition;
mod presence;
mod queue;
mod reentrant;
mod revoke;
mod rwlock;
mod selector;
mod semaphore;
pub mod sequence;
mod stm;
mod ttl;
mod value;

pub use barrier::{Barrier, DoubleBarrier, Inside};
pub use config::{Accepted, ConfigMap, Rejected, Source};
pub use contender::{Hold, Loss, WhenSuspended};
pub use decide::config::{ConfigChange, ConfigValue, Snapshot};
pub use decide::counter::Encoding;
pub use decide::discovery::{DownPolicy, ServiceInstance, ServiceType, Strategy, UriPart, UriSpec};
pub use decide::revocation::Revocation;
pub use decide::view::{Change, Member, View};
pub use discovery::{Discovery, InstanceUse, Registration, ServiceProvider};
pub use election::{Election, Leader, Leadership, Next};
pub use error::Error;
pub use group::{Group, GroupLayout, Views};
pub use guarded::{Fence, Guarded, Token};
pub use latch::{CloseMode, LatchEvent, LatchEvents, LeaderLatch};
pub use lease::{Tenure, TimedLease};
pub use lock::{Guard, Mutex, Standing};
pub use multi::{MultiGuard, MultiLock};
pub use partition::{Partition, PartitionEvent, Partitioner};
pub use presence::{Here, Presence, PresenceBuilder, Rejoin};
pub use queue::{BATCH_MAX, DelayQueue, IdItem, IdQueue, Poison, Queue, SHARDS_MAX, ShardedQueue, Work, WorkQueue};
pub use reentrant::{Owner, ReentrantGuard, ReentrantMutex};
pub use revoke::{Revoked, Revoker};
pub use rwlock::{OwnerGuard, ReadGuard, RwLock, WriteGuard};
pub use selector::LeaderSelector;
pub use semaphore::{PERMITS_MAX, Permits, Semaphore};
pub use sequence::{Layout, Role, RwLayout};
pub use stm::{Stm, transact};
pub use ttl::{Kept, TtlNode};
pub use value::{Counter, IdBlocks, SharedValue, ValueChanges, Versioned};
