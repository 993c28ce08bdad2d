//! A znode that outlives sessions for a while: as long as somebody touched it lately.

use std::time::Duration;

use corral_client::{
    Acl, Client, CreateMode, CreateOptions, Data, ErrorCode, OpResult, Transaction, ambient, path as paths,
};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::contender::{create_in, ended, stopped};
use crate::error::Error;
use crate::presence::{Rejoin, begin_session};

/// Name of the child that is touched: Curator's.
const TOUCH: &str = "touch";
/// It is touched so often within its time to live: one touch may fail, and it still stays.
const TOUCHES_PER_TTL: u32 = 3;

/// A znode that is there as long as this process touches it, and goes by itself some time after the last touch. Unlike a
/// [`Presence`](crate::Presence) it stays over the end of a session, so that a process that starts again quickly finds it
/// as it was. Curator's `PersistentTtlNode`.
///
/// Layout, as Curator's: the znode is a container, and below it stands `touch` with the time to live; `touch` is written
/// every third of it. What `touch` holds is its time to live in milliseconds, because the server does not tell it: one whose
/// time is shorter than ours, or not told (Curator's), is replaced by one of ours, in one step. Who mixes both gives them
/// the same time. When the time is over without a write, the server removes `touch`, and then the container. Both happen
/// at the server's own pace (about once a minute by default), never earlier than the time to live.
///
/// ```no_run
/// # use std::time::Duration;
/// # use corral_client::Client;
/// # use corral_recipes::{Rejoin, TtlNode};
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// let node = TtlNode::start(&client, "/jobs/7/progress", "40 %", Duration::from_secs(600), Rejoin::Never)?;
/// node.created().await?;
/// // Without `close` it stays for ten minutes.
/// node.close().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TtlNode {
    kept: watch::Receiver<Kept>,
    stop: Option<oneshot::Sender<()>>,
}

/// What is known of a [`TtlNode`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Not yet there.
    NotYet,
    /// There, and stays at least until then if nobody deletes it, whatever happens to this process.
    Until(Instant),
    /// Nobody touches it any more: it goes when its time is over.
    Ended(Error),
    /// It was closed, and is gone.
    Closed,
}

impl TtlNode {
    /// Begins to keep the znode at this path, in the background: creates what is missing, with this data, and touches it.
    /// What is there already is kept as it is, for this long at least. What happens after the end of the session is said by `rejoin`.
    ///
    /// # Errors
    /// [`Error::BadArgument`]: the server takes times to live of 1 ms to 2^40 - 1 ms.
    pub fn start(
        client: &Client,
        path: &str,
        data: impl Into<Data>,
        ttl: Duration,
        rejoin: Rejoin,
    ) -> Result<TtlNode, Error> {
        if !(1..1 << 40).contains(&ttl.as_millis()) {
            let reason = format!("a time to live of {} ms; 1 ms to 2^40 - 1 ms are possible", ttl.as_millis());
            return Err(Error::BadArgument { path: path.to_owned(), reason });
        }
        let (tell, kept) = watch::channel(Kept::NotYet);
        let (stop, stopped) = oneshot::channel();
        let node = Node { client: client.clone(), path: path.to_owned(), data: data.into(), ttl, created: None };
        ambient::spawn(run(node, rejoin, tell, stopped));
        Ok(TtlNode { kept, stop: Some(stop) })
    }

    /// What is known of it, and changes of that.
    pub fn kept(&self) -> watch::Receiver<Kept> {
        self.kept.clone()
    }

    /// Waits until it is there. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Client`]: it will not be.
    pub async fn created(&self) -> Result<(), Error> {
        let mut kept = self.kept.clone();
        let known = kept.wait_for(|kept| *kept != Kept::NotYet).await.map_err(|_| stopped())?;
        match &*known {
            Kept::Ended(error) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Removes it, if it has no other children, and returns when it is gone. Dropped instead, it is touched no more, and
    /// goes when its time is over.
    ///
    /// # Errors
    /// [`Error::Client`]: it goes when its time is over.
    pub async fn close(mut self) -> Result<(), Error> {
        if let Some(stop) = self.stop.take() {
            // Who ended already says so below.
            let _ = stop.send(());
        }
        let over = self.kept.wait_for(|kept| matches!(kept, Kept::Ended(_) | Kept::Closed)).await;
        match &*over.map_err(|_| stopped())? {
            Kept::Ended(error) => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

struct Node {
    client: Client,
    path: String,
    data: Data,
    ttl: Duration,
    /// The czxid of the `touch` that we created: its time to live is ours, whatever others write into it.
    created: Option<i64>,
}

impl Node {
    fn touch_path(&self) -> String {
        paths::join(&self.path, TOUCH)
    }

    /// Writes the child, and creates what is missing.
    async fn touch(&mut self) -> Result<(), Error> {
        let touch = self.touch_path();
        let ttl_ms = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
        let options = CreateOptions::new(CreateMode::PersistentWithTtl).acl(Acl::open()).ttl(self.ttl);
        loop {
            match self.client.get(&touch).await {
                Ok(node) => {
                    let told = told_ttl_ms(node.bytes()).filter(|told| *told >= ttl_ms);
                    let version = Some(node.stat.version);
                    let touched = if told.is_some() || self.created == Some(node.stat.czxid) {
                        let text = told.unwrap_or(ttl_ms).to_string();
                        self.client.set(&touch, text, version).await.map(drop)
                    } else {
                        let replace = Transaction::new().delete(&touch, version);
                        let replace = replace.create(&touch, ttl_ms.to_string(), options.clone());
                        self.client.multi(replace).await.map(|results| {
                            if let Some(OpResult::Created(created)) = results.last() {
                                self.created = Some(created.stat.czxid);
                            }
                        })
                    };
                    match touched {
                        Ok(()) => return Ok(()),
                        // Another keeper was first, or its time was over: look again.
                        Err(error) if matches!(error.code(), Some(ErrorCode::NoNode | ErrorCode::BadVersion)) => {}
                        Err(error) => return Err(error.into()),
                    }
                    continue;
                }
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {}
                Err(error) => return Err(error.into()),
            }
            let directory = paths::parent(&self.path).unwrap_or("/");
            let container = CreateMode::Container.into();
            match create_in(&self.client, directory, &self.path, self.data.clone(), container).await {
                Err(error) if error.code() != Some(ErrorCode::NodeExists) => return Err(error.into()),
                _ => {}
            }
            match self.client.create(&touch, ttl_ms.to_string(), options.clone()).await {
                Ok(created) => {
                    self.created = Some(created.stat.czxid);
                    return Ok(());
                }
                // Another keeper was first, or the container was reaped: look again.
                Err(error) if matches!(error.code(), Some(ErrorCode::NodeExists | ErrorCode::NoNode)) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn remove(&self) -> Result<(), Error> {
        for path in [&self.touch_path(), &self.path] {
            match self.client.delete(path, None).await {
                Err(error) if error.code() == Some(ErrorCode::NotEmpty) => {}
                Err(error) if error.code() != Some(ErrorCode::NoNode) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The time to live that a `touch` tells, in ms.
fn told_ttl_ms(data: &[u8]) -> Option<u64> {
    std::str::from_utf8(data).ok()?.parse().ok()
}

async fn run(mut node: Node, rejoin: Rejoin, kept: watch::Sender<Kept>, mut stop: oneshot::Receiver<()>) {
    loop {
        let asked = ambient::now();
        let touched = tokio::select! {
            biased;
            stopped = &mut stop => return close(&node, stopped.is_ok(), &kept).await,
            touched = node.touch() => touched,
        };
        match touched {
            Ok(()) => drop(kept.send_replace(Kept::Until(asked + node.ttl))),
            Err(Error::Client(error)) if error.is_session_end() => {
                let Rejoin::NewSession(settings) = &rejoin else {
                    return drop(kept.send_replace(Kept::Ended(error.into())));
                };
                tracing::warn!(path = node.path, %error, "the session of a kept znode ended; a new one is begun");
                match begin_session(settings, &mut stop).await {
                    Ok(Some(client)) => node.client = client,
                    // Without a session nothing can be removed: its time will.
                    Ok(None) => return drop(kept.send_replace(Kept::Ended(error.into()))),
                    Err(error) => return drop(kept.send_replace(Kept::Ended(error))),
                }
                continue;
            }
            Err(error) => return drop(kept.send_replace(Kept::Ended(error))),
        }
        tokio::select! {
            biased;
            stopped = &mut stop => return close(&node, stopped.is_ok(), &kept).await,
            () = ambient::sleep(node.ttl / TOUCHES_PER_TTL) => {}
        }
    }
}

/// The handle was closed, or dropped: only then it stays for its time.
async fn close(node: &Node, is_closed: bool, kept: &watch::Sender<Kept>) {
    if !is_closed {
        return drop(kept.send_replace(Kept::Ended(ended("touch", corral_client::EndReason::Closed).into())));
    }
    let removed = node.remove().await;
    kept.send_replace(removed.map_or_else(Kept::Ended, |()| Kept::Closed));
}
