//! Ensembles of protocol machines in one thread, without trees, sessions, sockets or files.
//!
//! [`cluster`] joins machines by streams and disks that exist in memory, and asserts the protocol's invariants after
//! every event. [`random`] lets chance and faults drive it, from seeds; [`scripts`] plays stories written by hand, and
//! compares every message with what was recorded. [`installing`] asks one machine.

mod checks;
mod cluster;
mod installing;
mod random;
mod rng;
mod scripts;
