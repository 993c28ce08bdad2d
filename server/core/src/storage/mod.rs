//! The log's format over a small device ([`log_device`], [`txn_log`]), what a restart makes of it ([`recover`]),
//! and the memory twin of RocksDB ([`memory`]).

pub mod log_device;
pub mod memory;
pub mod recover;
pub mod txn_log;
