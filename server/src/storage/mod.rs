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

/// Exit code of a server that cannot go on.
const EXIT_STOPPED: i32 = 1;

/// What the system says of a disk without a free byte, and of a user without one.
const FULL: [&str; 2] = ["No space left on device", "Disk quota exceeded"];

/// Ends the process at once because the disk failed: no retry, no clean-up that touches it (P28). The next start
/// rewrites and checks what it trusts.
pub fn fatal(doing: &str, error: impl Display) -> ! {
    stop_at_once(&format!("{doing}: {error}"))
}

/// Ends the process at once: a server that cannot trust its disk or itself must not go on (P28). The reason goes to the log, or
/// to stderr if there is none; nothing is run that might wait for the disk.
pub fn stop_at_once(reason: &str) -> ! {
    let advice = advice(reason);
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!("{reason}{advice}; this server stops at once");
    } else {
        eprintln!("corral: {reason}{advice}; this server stops at once");
    }
    signal_hook::low_level::exit(EXIT_STOPPED)
}

/// What people can do about an error.
fn advice(reason: &str) -> &'static str {
    if FULL.iter().any(|words| reason.contains(words)) {
        " (make room on the disk, then start this server again; what was acknowledged is kept)"
    } else {
        ""
    }
}
