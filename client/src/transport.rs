//! How a client reaches servers, when not over the network.

use std::fmt;

use corral_proto::pb::client as pb;
use tokio::sync::mpsc;

/// Opens connections to servers in place of TCP, TLS and HTTP/2: for simulations, see [`ambient`](crate::ambient). Everything above
/// is the same, message by message.
pub trait Transport: fmt::Debug + Send + Sync {
    /// Opens a connection to a server as the connect string names it (`host:port`). The server answers the first message, and
    /// ends the connection by dropping its ends.
    ///
    /// # Errors
    /// The server cannot be reached; another is tried.
    fn open(&self, server: &str) -> std::io::Result<Wire>;
}

/// The client's ends of a connection.
#[derive(Debug)]
pub struct Wire {
    /// To the server.
    pub outbound: mpsc::Sender<pb::ClientMessage>,
    /// From the server.
    pub inbound: mpsc::Receiver<pb::ServerMessage>,
}
