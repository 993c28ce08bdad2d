//! Atomic broadcast: orders entries; knows zxids and bytes, never znodes.

pub mod io;
pub mod message;
pub mod quorum;
