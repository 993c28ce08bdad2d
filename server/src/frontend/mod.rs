//! All that a front end may do: connect a session, hand in requests, take out replies and events.
//!
//! Front ends translate; a rule that holds for only one of them is a bug, unless its protocol demands it. They never
//! see the ordering machine or the store.

pub mod listen;
pub mod wire;

use std::net::SocketAddr;

use corral_core::session::{ClientRequest, Outgoing, Protocol};
use corral_proto::{ServerId, SessionId, Zxid};

/// A client's wish to begin or take up a session.
#[derive(Clone, Debug)]
pub struct ConnectRequest {
    /// 0: a new session.
    pub session: SessionId,
    /// For a session that exists.
    pub password: Vec<u8>,
    /// Wished for; clamped to the server's bounds, ms.
    pub timeout_ms: i32,
    /// Highest zxid the client saw: a server that is behind it waits a little, then refuses.
    pub last_zxid_seen: Zxid,
    /// Which protocol.
    pub protocol: Protocol,
    /// Where the client is.
    pub remote: SocketAddr,
}

/// Why a connect was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectRefused {
    /// The session is gone, or the password is wrong: the protocol's "expired" answer.
    Expired,
    /// This server has not seen the client's last zxid.
    Behind,
    /// No leader, or this server is starting or stopping.
    NotServing,
}

/// What the client is told when it is connected.
#[derive(Clone, Debug)]
pub struct Connected {
    /// The session.
    pub session: SessionId,
    /// 16 bytes; the same on every server.
    pub password: [u8; 16],
    /// Negotiated, ms.
    pub timeout_ms: i32,
    /// The entry that attached it here.
    pub attach: Zxid,
    /// Highest executed request number.
    pub last_n: u64,
    /// This server.
    pub server: ServerId,
}

/// The door to the server: cheap to clone, one for all front ends.
#[derive(Clone)]
pub struct Frontend {}

/// One session's connection. Dropping it detaches: watches go, the session stays until it expires.
pub struct Connection {
    connected: Connected,
}

impl Frontend {
    /// Begins or takes up a session; returns after the attach was executed here (P29).
    ///
    /// # Errors
    /// [`ConnectRefused`] says which refusal the protocol has to express.
    pub async fn connect(&self, _request: ConnectRequest) -> Result<Connection, ConnectRefused> {
        unimplemented!()
    }
}

impl Connection {
    /// The handshake's answer.
    pub fn connected(&self) -> &Connected {
        &self.connected
    }

    /// Hands in requests in the order of the client, each with the front end's own mark (it comes back in
    /// [`Outgoing::Reply`]). Waits while too much is outstanding: that is the back-pressure on the socket. Every request
    /// is answered exactly once, in order, unless the connection ends first. Any frame from the client touches the
    /// session.
    pub async fn submit(&self, _requests: Vec<(u64, ClientRequest)>) {
        unimplemented!()
    }

    /// Waits until there is something to send, and appends it to `out` in order. Cancel safe. After
    /// [`Outgoing::Close`] nothing follows.
    pub async fn outgoing(&self, _out: &mut Vec<Outgoing>) {
        unimplemented!()
    }
}
