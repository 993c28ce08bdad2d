//! What Corral's servers and clients both say: plain types, error codes, path rules, ZooKeeper's
//! records ([`jute`]) and the generated gRPC messages ([`pb`]).
//!
//! Everybody may import this crate; it imports nobody. Generated protobuf types stay at the edges:
//! inside the server and the client only the types of [`types`] travel.

pub mod error_code;
pub mod jute;
pub mod path;
pub mod types;

/// Generated protobuf and gRPC code.
pub mod pb {
    /// `proto/client.proto`: the gRPC front end.
    #[allow(missing_docs, clippy::all)]
    pub mod client {
        tonic::include_proto!("corral.client.v1");
    }
    /// `proto/peer.proto`: server to server.
    #[allow(missing_docs, clippy::all)]
    pub mod peer {
        tonic::include_proto!("corral.peer.v1");
    }
    /// `proto/txn.proto`: what a log entry carries.
    #[allow(missing_docs, clippy::all)]
    pub mod txn {
        tonic::include_proto!("corral.txn.v1");
    }
}

pub use error_code::ErrorCode;
pub use types::*;
