//! A session over ZooKeeper's protocol, as thin as can be.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use corral_proto::ErrorCode;
use corral_proto::jute::{
    ConnectRequest, ConnectResponse, Request, Response, WatcherEvent, decode_reply, frame, opcode,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use crate::{Result, context};

/// Session timeout asked for, ms. Long: a machine under load must not end sessions of the load generator.
const SESSION_TIMEOUT_MS: i32 = 30_000;
/// Servers announce nothing larger to us than what was stored by us, or lists of names.
pub const FRAME_BYTES_MAX: usize = 64 << 20;
/// A server that does not answer one request for so long is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two attempts to reach a server that does not serve yet.
const RETRY_PAUSE: Duration = Duration::from_millis(2);

/// One connection with a session.
pub struct Wire {
    pub stream: TcpStream,
    pub received: BytesMut,
    /// The last one used.
    pub xid: i32,
    pub session: ConnectResponse,
}

impl Wire {
    /// A new session.
    ///
    /// # Errors
    /// If the server cannot be reached, or does not answer the handshake.
    pub async fn connect(address: &str) -> Result<Wire> {
        Wire::connect_as(address, &ConnectRequest { timeout_ms: SESSION_TIMEOUT_MS, ..ConnectRequest::default() })
            .await
            .map_err(context(address))
    }

    /// The session again, over a new connection.
    ///
    /// # Errors
    /// As [`Wire::connect`]; also if the session has expired.
    pub async fn reconnect(address: &str, session: &ConnectResponse) -> io::Result<Wire> {
        Wire::connect_as(address, &again(session)).await
    }

    /// A new session, as soon as the server serves.
    ///
    /// # Errors
    /// The last failure, if it does not serve before the deadline.
    pub async fn connect_until(address: &str, deadline: Instant) -> Result<Wire> {
        loop {
            match Wire::connect(address).await {
                Ok(wire) => return Ok(wire),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => sleep(RETRY_PAUSE).await,
            }
        }
    }

    /// A new session, over a connection from an address of this machine.
    ///
    /// # Errors
    /// As [`Wire::connect`].
    pub async fn connect_from(from: Option<Ipv4Addr>, to: SocketAddr) -> io::Result<Wire> {
        let request = ConnectRequest { timeout_ms: SESSION_TIMEOUT_MS, ..ConnectRequest::default() };
        Wire::shake_hands(connection(from, to).await?, &request).await
    }

    /// The session again, over a connection from an address of this machine.
    ///
    /// # Errors
    /// As [`Wire::reconnect`]; `NotConnected` if the session has expired.
    pub async fn reconnect_from(from: Option<Ipv4Addr>, to: SocketAddr, session: &ConnectResponse) -> io::Result<Wire> {
        Wire::shake_hands(connection(from, to).await?, &again(session)).await
    }

    async fn connect_as(address: &str, request: &ConnectRequest) -> io::Result<Wire> {
        Wire::shake_hands(TcpStream::connect(address).await?, request).await
    }

    async fn shake_hands(mut stream: TcpStream, request: &ConnectRequest) -> io::Result<Wire> {
        stream.set_nodelay(true)?;
        let mut out = BytesMut::new();
        request.encode(&mut out);
        stream.write_all(&out).await?;
        let mut wire = Wire { stream, received: BytesMut::new(), xid: 0, session: ConnectResponse::expired(None) };
        let payload = wire.frame().await?;
        wire.session = ConnectResponse::decode(payload).map_err(invalid)?;
        if wire.session.session_id == 0 {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the session has expired"));
        }
        Ok(wire)
    }

    async fn frame(&mut self) -> io::Result<Bytes> {
        loop {
            if let Some(frame) = frame::split(&mut self.received, FRAME_BYTES_MAX).map_err(invalid)? {
                return Ok(frame);
            }
            if timeout(ANSWER_TIMEOUT, self.stream.read_buf(&mut self.received)).await?? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The number of the next request.
    pub fn next_xid(&mut self) -> i32 {
        // Negative numbers are the protocol's own.
        self.xid = self.xid.checked_add(1).unwrap_or(1);
        self.xid
    }

    /// Sends a request and waits for its reply; events are passed over.
    ///
    /// # Errors
    /// If the connection broke or what came is no reply; a refusal is an answer.
    pub async fn ask(&mut self, request: &Request) -> io::Result<Result<Response, ErrorCode>> {
        let xid = self.next_xid();
        let mut out = BytesMut::new();
        request.encode(xid, &mut out);
        self.stream.write_all(&out).await?;
        loop {
            let (header, mut body) = decode_reply(self.frame().await?).map_err(invalid)?;
            if header.xid == opcode::XID_EVENT {
                continue;
            }
            if header.xid != xid {
                return Err(invalid(format!("reply {} to request {xid}", header.xid)));
            }
            if header.err != 0 {
                return Ok(Err(ErrorCode::from_code(header.err).unwrap_or(ErrorCode::SystemError)));
            }
            return Ok(Ok(Response::decode(request.opcode(), &mut body).map_err(invalid)?));
        }
    }

    /// Waits for the next event, without a limit; its type and path.
    ///
    /// # Errors
    /// If the connection broke, or something else came.
    pub async fn event(&mut self) -> io::Result<WatcherEvent> {
        loop {
            if let Some(frame) = frame::split(&mut self.received, FRAME_BYTES_MAX).map_err(invalid)? {
                let (header, mut body) = decode_reply(frame).map_err(invalid)?;
                if header.xid != opcode::XID_EVENT {
                    return Err(invalid(format!("reply {} while waiting for an event", header.xid)));
                }
                return WatcherEvent::decode(&mut body).map_err(invalid);
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Tells the server that the client lives, and waits for its answer.
    ///
    /// # Errors
    /// If the connection broke.
    pub async fn ping(&mut self) -> io::Result<()> {
        let mut out = BytesMut::new();
        Request::Ping.encode(opcode::XID_PING, &mut out);
        self.stream.write_all(&out).await?;
        loop {
            if decode_reply(self.frame().await?).map_err(invalid)?.0.xid == opcode::XID_PING {
                return Ok(());
            }
        }
    }

    /// Waits until this connection sees what others wrote before.
    ///
    /// # Errors
    /// If the connection broke, or the server has no leader.
    pub async fn sync(&mut self) -> Result<()> {
        self.ask(&Request::Sync { path: "/".to_owned() }).await?.map_err(|code| format!("sync: {code:?}"))?;
        Ok(())
    }

    /// Ends the session. A server that is gone ends it by itself.
    pub async fn close(mut self) {
        let _ = self.ask(&Request::CloseSession).await;
    }
}

/// What asks for a session that there is.
fn again(session: &ConnectResponse) -> ConnectRequest {
    ConnectRequest {
        timeout_ms: SESSION_TIMEOUT_MS,
        session_id: session.session_id,
        password: Some(Bytes::copy_from_slice(&session.password)),
        ..ConnectRequest::default()
    }
}

async fn connection(from: Option<Ipv4Addr>, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(from) = from {
        socket.bind(SocketAddr::from((from, 0)))?;
    }
    // A server that is flooded must not hold a client for the minutes that the system would try.
    timeout(ANSWER_TIMEOUT, socket.connect(to)).await?
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
