//! The log's format over a small device ([`log_device`], [`txn_log`]), what a restart makes of it ([`recover`]),
//! and the memory twin of RocksDB ([`memory`]).
//!
//! This room keeps what a server promised and acknowledged. It never guesses: what it cannot explain by a power cut is
//! damage, and a damaged folder does not vote. Nor does it retry: a failed write is final ([`txn_log::LogError`],
//! P28). Read first [`txn_log::TxnLog`], then [`scan`] (which tails are torn and which are rotten), then
//! [`recover::recover`]. The ideas: PAR (FAST'18) on torn against rotten tails, ATC'20 on failed fsyncs, raft-engine
//! for a log of its own beside the state.

pub mod folder;
pub mod frame;
pub mod inspect;
pub mod log_device;
pub mod memory;
pub mod recover;
pub mod scan;
pub mod txn_log;

#[cfg(test)]
mod log_tests;
