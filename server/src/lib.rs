//! Corral's server. To come.
pub mod config;
pub mod frontend;
pub mod storage;
