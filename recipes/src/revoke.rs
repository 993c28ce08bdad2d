//! Asking a holder to give up, and making it.

use std::time::Duration;

use corral_client::{Client, ErrorCode, ambient};
use tokio::time::Instant;

use crate::decide::revocation::Revocation;
use crate::error::Error;

/// Asks holders to give up what they hold, and forces them.
///
/// The holder sees the request by [`Hold::revocation`](crate::Hold::revocation). Curator's revocable locks see it too, if
/// it is `Revocation::default()`: they know neither deadlines nor reasons. Forcing deletes the contender: the holder's
/// token is dead at that moment, whether it knows it or not, and all its guarded writes are refused.
///
/// ```no_run
/// # use std::time::Duration;
/// # use corral_client::Client;
/// # use corral_recipes::{Mutex, Revocation, Revoker};
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// if let Some(holder) = Mutex::new(&client, "/locks/report").contenders().await?.first() {
///     let request = Revocation { grace: Some(Duration::from_secs(5)), reason: "maintenance".into() };
///     Revoker::new(&client).revoke(&holder.path, &request).await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Revoker {
    client: Client,
}

/// How a revocation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// The holder gave up in time, or had done so before.
    GaveUp,
    /// Its contender was deleted.
    Forced,
}

impl Revoker {
    /// A revoker that works through this client.
    pub fn new(client: &Client) -> Revoker {
        Revoker { client: client.clone() }
    }

    /// Asks the contender at this path to give up. Its identity is overwritten. `false`: it is gone already.
    ///
    /// # Errors
    /// [`Error::Client`], among others for missing permission.
    pub async fn request(&self, contender: &str, request: &Revocation) -> Result<bool, Error> {
        match self.client.set(contender, request.encode(), None).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes the contender at this path, whatever its holder does. Names never come back, so nobody else can be hit.
    /// `false`: it is gone already.
    ///
    /// # Errors
    /// [`Error::Client`], among others for missing permission.
    pub async fn force(&self, contender: &str) -> Result<bool, Error> {
        match self.client.delete(contender, None).await {
            Ok(()) => Ok(true),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks, waits until the contender is gone or the grace is over (by this process's steady clock), and then forces. A
    /// request without a grace is never forced. Dropping the future stops before forcing.
    ///
    /// # Errors
    /// As the two others.
    pub async fn revoke(&self, contender: &str, request: &Revocation) -> Result<Revoked, Error> {
        if !self.request(contender, request).await? {
            return Ok(Revoked::GaveUp);
        }
        let until = request.grace.map(|grace| ambient::now() + grace);
        loop {
            let (stat, changed) = self.client.exists_and_watch(contender).await?;
            if stat.is_none() {
                return Ok(Revoked::GaveUp);
            }
            let over = async {
                match until {
                    Some(until) => ambient::sleep_until(until).await,
                    None => std::future::pending::<()>().await,
                }
            };
            tokio::select! {
                biased;
                event = changed => drop(event?),
                () = over => break,
            }
        }
        Ok(if self.force(contender).await? { Revoked::Forced } else { Revoked::GaveUp })
    }
}

/// The grace of a request that a holder works against.
impl Revocation {
    /// Until when the holder has, if it saw the request `now`.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        self.grace.map(|grace: Duration| now + grace)
    }
}
