//! What recipes decide, as functions of what was read: no client, no clock, no randomness. The drivers beside this folder
//! read, ask here, and do what they are told; tests and the simulator ask the same functions.

pub mod barrier;
pub mod config;
pub mod counter;
pub mod delay;
pub mod discovery;
pub mod lease;
pub mod partition;
pub mod queue;
pub mod revocation;
pub mod semaphore;
pub mod stm;
pub mod view;
