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
    /// The hold ended before it was handed over.
    #[error("lost before it could be used: {0}")]
    Lost(Loss),
}
