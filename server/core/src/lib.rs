//! The pure rooms of a Corral server: everything that decides, nothing that does.
//!
//! No file here opens a socket, reads a clock, draws a random number or starts a thread; time, messages and
//! completed disk writes are inputs. So a script plays any sequence of events against one machine, and the
//! simulator runs whole ensembles in one thread from a seed.
//!
//! # Layout
//! - [`zab`] orders entries and knows nothing of znodes.
//! - [`tree`] executes entries and knows nothing of servers.
//! - [`session`]: one session's order ([`session::lane`]), expiry on the leader ([`session::tracker`]),
//!   writes that wait for a leader ([`session::outbox`]).
//! - [`watch`]: who is told of which change. [`auth`]: proofs to identities.
//! - [`storage`]: the log's format and recovery over a small device trait, and the memory twins of the disk.
//! - [`member`] joins the protocol, the outbox and the tracker: what the core loop and the simulator drive.
//! - [`zoo`]: bugs that can be planted, to measure the simulator by; not there in programs.
//! - [`apply`]: executes committed entries, queues events and replies, then publishes: the one place where
//!   tree, sessions and watches meet.

pub mod apply;
pub mod auth;
pub mod member;
pub mod session;
pub mod storage;
pub mod tree;
pub mod watch;
pub mod zab;
pub mod zoo;
