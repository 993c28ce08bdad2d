//! The disk of a server: real files under the log ([`files`]), RocksDB under the tree ([`rocks`]), snapshots between
//! servers ([`snapshot`]).
//!
//! Nothing is decided here: what may be trusted after a restart is `corral_core::storage::recover`'s business. Two rules
//! hold everywhere: what a function calls durable is synced, its folder included; and an error of the disk ends the process
//! ([`fatal`], P28), because after one nobody knows what is on it.

pub mod files;
pub mod rocks;
pub mod snapshot;

use std::fmt::Display;

/// Ends the process at once because the disk failed: no retry, no clean-up that touches it (P28). The next start
/// rewrites and checks what it trusts.
pub fn fatal(doing: &str, error: impl Display) -> ! {
    tracing::error!(doing, %error, "the storage failed; the server stops so that it never acknowledges from doubt");
    // The log of people may be buffered by whoever collects it; this line is for whoever watches the process.
    eprintln!("fatal: {doing}: {error}");
    std::process::abort()
}
