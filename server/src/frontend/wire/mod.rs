//! ZooKeeper's TCP protocol: unmodified clients connect here.
//!
//! [`request`] and [`response`] translate, byte for byte, and know no socket; [`connection`] is one task for each
//! connection and decides nothing; [`four_letter`] prints what operators ask for; [`stats`] counts. Rules of the tree
//! never live here: what a request may do is decided where it is executed, in its place in the order.

pub mod connection;
pub mod four_letter;
pub mod request;
pub mod response;
pub mod stats;

pub use connection::{End, WireOptions};
pub use four_letter::{Whitelist, Word};
pub use stats::{ConnectionStats, FrontendStats};
