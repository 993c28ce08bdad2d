//! Proofs to identities, and the session password. Knows nothing of the tree.

pub mod digest;
pub mod password;
pub mod sasl;
pub mod x509;
