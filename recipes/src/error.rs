//! What can go wrong in a recipe.

use std::time::Duration;

use crate::contender::Loss;
use crate::guarded::Token;

/// A recipe that did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A request failed. If it was the release of a hold, it is tried again in the background.
    #[error(transparent)]
    Client(#[from] corral_client::Error),
    /// It was not our turn in time; our contender is being removed.
    #[error("{path}: not acquired within {} ms", waited.as_millis())]
    Timeout {
        /// The lock or election.
        path: String,
        /// The limit given.
        waited: Duration,
    },
    /// A guarded write was refused because the contender behind the token is gone. Nothing was changed.
    #[error("token {token} is no longer live: {path} is gone")]
    Fenced {
        /// The token.
        token: Token,
        /// The contender.
        path: String,
    },
    /// Somebody who holds a lock for reading asks for it for writing. It could never be granted: the writer would wait for
    /// its own reader. Release the one first.
    #[error("{path}: held for reading by the same owner, and a reader cannot become a writer")]
    UpgradeRefused {
        /// The lock.
        path: String,
    },
    /// A place cannot be kept under another name, because so close to the end of ZooKeeper's 32-bit counter the number
    /// does not tell it. Release, and acquire anew; or use a new path.
    #[error("{path}: so close to the end of the counter no other name has the same place")]
    NumberNotSure {
        /// The contender.
        path: String,
    },
    /// An argument that no state of the tree could make right.
    #[error("{path}: {reason}")]
    BadArgument {
        /// Of which recipe.
        path: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A znode of the recipe holds what no client of this recipe writes.
    #[error("{path}: {reason}")]
    Malformed {
        /// The znode.
        path: String,
        /// What is wrong with its data.
        reason: String,
    },
    /// Something that a transaction read has changed: its body is to return this, and is run again.
    #[error("{path}: changed since it was read")]
    Conflict {
        /// The znode.
        path: String,
    },
    /// The queue holds as many items as it may. Nothing was put.
    #[error("{path}: full, with {present} items")]
    Full {
        /// The queue.
        path: String,
        /// How many items it holds.
        present: usize,
    },
    /// Others were faster, so often that it was given up. Nothing was changed.
    #[error("{path}: others were faster {attempts} times")]
    Contended {
        /// Of which recipe.
        path: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// The hold ended before it was handed over.
    #[error("lost before it could be used: {0}")]
    Lost(Loss),
}
