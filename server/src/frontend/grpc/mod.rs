//! The gRPC front end: one bidirectional stream is the connection of one session (`proto/client.proto`).
//!
//! [`service()`] is added to a tonic router. [`convert`] says what the messages mean, [`service`](mod@service) carries
//! them; neither decides anything that the ZooKeeper front end could decide differently.

pub mod convert;
pub mod service;

pub use service::{CONNECTION_WINDOW, GrpcService, REQUEST_MESSAGE_MAX, STREAM_WINDOW, service};
