//! Servers to servers. [`peer_link`]: one stream for each pair, and snapshots beside it.
//!
//! Carries bytes, decides nothing: which message means what is the ordering machine's business.

pub mod peer_link;
