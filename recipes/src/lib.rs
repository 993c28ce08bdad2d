//! Locks and leader election with fencing tokens, on Corral's client.

pub mod sequence;
