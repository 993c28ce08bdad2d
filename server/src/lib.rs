//! Corral's server. To come.
pub mod frontend;
