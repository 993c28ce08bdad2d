//! An async client for Corral, a ZooKeeper-style coordination service.
//!
//! ```no_run
//! use corral_client::{Client, CreateMode};
//!
//! # async fn example() -> Result<(), corral_client::Error> {
//! let client = Client::connect("localhost:2181").await?;
//! client.create("/greeting", "hello", CreateMode::Persistent).await?;
//! let node = client.get("/greeting").await?;
//! assert_eq!(node.bytes(), b"hello");
//! client.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! A [`Client`] is one session. It keeps one stream to one server of its list, goes to another when that one fails, and
//! takes the session along: ephemerals stay, watches are set again, and every write whose answer was lost is sent again
//! under its number, so that it is done exactly once. A request fails with
//! [`outcome_unknown`](Error::outcome_unknown) only when the session itself is gone. Then the client is at its end too:
//! what a new session may assume is for the program to decide, so nothing is carried over behind its back.
//!
//! **Order.** A request has its place in the session's order from the moment its method is *called*; awaiting the
//! [`Response`] only waits for the answer. So calls can be pipelined without losing their order:
//!
//! ```no_run
//! # use corral_client::{Client, CreateMode};
//! # async fn example(client: Client) -> Result<(), corral_client::Error> {
//! let create = client.create("/a", "1", CreateMode::Persistent);
//! let set = client.set("/a", "2", None);
//! let (created, stat) = (create.await?, set.await?);
//! # Ok(())
//! # }
//! ```
//!
//! Writes are executed in that order, each once, whatever happens to connections. A *read* whose answer was lost with its
//! connection is made anew: it then shows a later state, that behind writes which were asked for after it and were already
//! executed. So what is to be read before it is changed must be awaited before it is changed.
//!
//! **Watching.** [`Client::watch`] and [`Client::feed`] follow the change feed: no change is lost or told twice, over reconnects,
//! other servers and other leaders, and a watch may begin in the past. Where that is impossible, a [`Gap`] says so. The
//! [`cache`] keeps copies of parts of the tree up to date with it.
//!
//! **Dropping** a [`Response`] is safe at any time: the request is made all the same, and its answer is thrown away. While
//! no server can be reached responses wait, and do not fail: bound the wait with `tokio::time::timeout`.
//!
//! **Time.** Whoever acts because a session is alive (a lock holder, a leader) must stop by [`Lease::valid_until`], which
//! this client computes from what servers acknowledged; [`SessionState`] tells the rest.

pub mod ambient;
pub mod cache;
mod client;
mod config;
mod connection;
mod error;
mod feeds;
mod hosts;
mod lease;
mod op;
mod response;
mod session;
mod shared;
mod tls;
mod transport;
mod watcher;
mod watches;

pub use client::{Client, Reads};
pub use config::Builder;
pub use corral_proto::{
    Acl, CreateMode, ErrorCode, EventKind, Id, ServerId, SessionId, Stat, WatchedEvent, Zxid, path, perms,
};
pub use error::{EndReason, Error, MultiError};
pub use feeds::{Changes, FeedEvent, FeedItem, FeedNode, Gap, WatchMode};
pub use lease::{Lease, SessionEvents, SessionState};
pub use op::{
    Consistency, CreateOptions, Created, Data, Node, OpResult, ReadRequest, ReadResult, SubtreeNode, SubtreePage,
    Transaction,
};
pub use response::Response;
pub use tls::{TlsConnector, TlsOptions};
pub use transport::{Transport, Wire};
pub use watcher::{Feed, FeedOptions, OneshotWatch, WatchEvent, Watcher};

/// What calls of this crate give.
pub type Result<T, E = Error> = std::result::Result<T, E>;
