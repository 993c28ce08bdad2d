//! Corral's server: one member of an ensemble, its clients' front ends and its disk.
//!
//! [`node`] starts everything and is the only file that knows everybody. Three loops carry what the pure rooms of
//! `corral_core` decide: [`core_loop`] (the protocol), [`log_loop`] (durability), [`apply_loop`] (execution). Front ends
//! ([`frontend`]) translate; [`net`] speaks to other servers; [`storage`] is the disk; [`tls`] is what sockets may be
//! wrapped in. [`inspect`] looks at the folder of a server that does not run.

mod apply_loop;
pub mod clock;
pub mod config;
mod core_loop;
mod figures;
pub mod frontend;
pub mod inspect;
mod log_loop;
mod mailbox;
pub mod net;
pub mod node;
pub mod recover;
mod report;
mod states;
pub mod storage;
pub mod tls;

/// With bugs planted in it (the feature `zoo` of `corral-core`), a server does not compile.
const _: () = assert!(!corral_core::zoo::broken(corral_core::zoo::Switch::AckBeforeFsync));
