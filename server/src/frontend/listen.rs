//! The client port: accepts connections, finds out what they speak, keeps their number in bounds.
//!
//! One port serves ZooKeeper clients, four-letter words and gRPC. The first four bytes tell them apart without doubt:
//! a word and HTTP/2's preface are, read as the length of a frame, far above any limit. What was read to find out is
//! handed on with the connection.
//!
//! On the secure port all this happens inside TLS. With port unification the plain port takes TLS too: its first bytes
//! are no frame's length either.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use corral_core::auth::x509;
use corral_proto::Id;
use futures::Stream;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::Connected;

use super::operators::{Operators, ServerMode};
use super::wire::connection::{self, Door};
use super::wire::four_letter::{self, Whitelist, Word};
use super::wire::stats::{FrontendStats, Registration};
use super::wire::{End, WireOptions};
use super::{Frontend, Peer};
use crate::tls::Tls;

/// First bytes of HTTP/2's connection preface.
const HTTP2: &[u8; 4] = b"PRI ";

/// First bytes of a TLS handshake: its record's type and the first half of its version.
const TLS: &[u8; 2] = &[0x16, 0x03];

/// Least time between two lines about handshakes that failed: anybody who reaches the port can make them fail.
const HANDSHAKE_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// gRPC connections that were accepted and not taken yet.
const GRPC_WAITING_MAX: usize = 64;

/// Connections the kernel completes before they are accepted, unless configured.
const BACKLOG: u32 = 1024;

/// Pause after an accept that failed for lack of something (file descriptors, memory): the listener stays readable, so
/// trying again at once would only burn a processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Time for the last bytes of a four-letter word's answer, and for connections to end when the server stops.
const GOODBYE: Duration = Duration::from_secs(1);

/// Bounds and settings of the client ports. The default has no bounds; ZooKeeper's (60 from one address) comes from the
/// configuration.
#[derive(Clone, Debug, Default)]
pub struct ListenOptions {
    /// Connections from one address; 0: no bound (`maxClientCnxns`).
    pub connections_per_address_max: usize,
    /// Connections in all; 0: no bound (`maxCnxns`).
    pub connections_max: usize,
    /// Of each ZooKeeper connection. Its handshake timeout counts for every protocol.
    pub wire: WireOptions,
    /// Which four-letter words are answered.
    pub words: Whitelist,
    /// TLS, if any port speaks it.
    pub secure: Option<SecureOptions>,
}

/// Settings of ports that speak TLS.
#[derive(Clone, Debug)]
pub struct SecureOptions {
    /// Certificates.
    pub tls: Arc<Tls>,
    /// Handshakes under way at once; what comes on top is closed (`netty.server.outstandingHandshake.limit`).
    pub handshakes_max: usize,
    /// The plain port takes TLS too (`client.portUnification`).
    pub unified: bool,
    /// Subject of the certificate whose owner passes every permission.
    pub super_user: Option<String>,
}

/// Counts connections by address. One for all ports of a server.
#[derive(Debug, Default)]
struct Limits {
    by_address: Mutex<(usize, BTreeMap<IpAddr, usize>)>,
}

/// A connection's place in the count; dropping it gives it back.
#[derive(Debug)]
struct Admitted {
    limits: Arc<Limits>,
    address: IpAddr,
}

impl Limits {
    fn admit(self: &Arc<Limits>, address: IpAddr, options: &ListenOptions) -> Option<Admitted> {
        let within = |count: usize, max: usize| max == 0 || count < max;
        let mut counts = self.by_address.lock();
        let (all, by_address) = &mut *counts;
        let of_address = by_address.get(&address).copied().unwrap_or(0);
        if !within(*all, options.connections_max) || !within(of_address, options.connections_per_address_max) {
            return None;
        }
        *all += 1;
        by_address.insert(address, of_address + 1);
        Some(Admitted { limits: Arc::clone(self), address })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.limits.by_address.lock();
        let (all, by_address) = &mut *counts;
        *all -= 1;
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

/// A connection of which some bytes were read already; they are read again first.
#[derive(Debug)]
pub struct PrefixedStream<S> {
    prefix: BytesMut,
    inner: S,
}

/// A socket, inside TLS or not.
#[derive(Debug)]
enum Transport {
    Plain(TcpStream),
    // Much larger than a socket.
    Tls(Box<TlsStream<PrefixedStream<TcpStream>>>),
}

/// A gRPC connection that was accepted.
#[derive(Debug)]
pub struct GrpcStream {
    inner: PrefixedStream<Transport>,
    peer: Peer,
    /// Held as long as the connection is.
    _admitted: Admitted,
}

impl<S: AsyncRead + Unpin> AsyncRead for PrefixedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, out);
        }
        let length = self.prefix.len().min(out.remaining());
        out.put_slice(&self.prefix[..length]);
        self.prefix.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PrefixedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Passes everything on to what is inside.
macro_rules! passes_on {
    ($type:ty, $stream:ident => $inner:expr) => {
        impl AsyncRead for $type {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                let $stream = self.get_mut();
                $inner.poll_read(cx, out)
            }
        }

        impl AsyncWrite for $type {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
                let $stream = self.get_mut();
                $inner.poll_write(cx, bytes)
            }
            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                slices: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                let $stream = self.get_mut();
                $inner.poll_write_vectored(cx, slices)
            }
            fn is_write_vectored(&self) -> bool {
                true
            }
            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                let $stream = self.get_mut();
                $inner.poll_flush(cx)
            }
            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                let $stream = self.get_mut();
                $inner.poll_shutdown(cx)
            }
        }
    };
}

/// What a [`Transport`] is made of.
trait Socket: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Socket for S {}

impl Transport {
    fn socket(&mut self) -> Pin<&mut dyn Socket> {
        match self {
            Transport::Plain(stream) => Pin::new(stream),
            Transport::Tls(stream) => Pin::new(stream.as_mut()),
        }
    }
}

passes_on!(Transport, transport => transport.socket());
passes_on!(GrpcStream, stream => Pin::new(&mut stream.inner));

impl Connected for GrpcStream {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

/// Where gRPC connections come out: for `serve_with_incoming`.
pub struct GrpcIncoming {
    connections: mpsc::Receiver<GrpcStream>,
}

impl Stream for GrpcIncoming {
    type Item = io::Result<GrpcStream>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

/// The client ports of a server.
pub struct Listen {
    inner: Arc<Inner<Frontend>>,
}

impl Listen {
    /// Ports that hand sessions to `frontend`, and gRPC connections to the stream.
    pub fn new(frontend: Frontend, options: ListenOptions, operators: Arc<Operators>) -> (Listen, GrpcIncoming) {
        let (inner, incoming) = Inner::new(frontend, options, operators);
        (Listen { inner }, incoming)
    }

    /// Accepts on `listener` until `stop`, then gives open connections a moment to end. May run for several listeners
    /// at once; the bounds count for all of them together.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken) {
        Arc::clone(&self.inner).serve(listener, Port::Plain, stop).await;
    }

    /// As [`serve`](Listen::serve), for a port where every connection begins with a TLS handshake. Without
    /// [`ListenOptions::secure`] they are all closed.
    pub async fn serve_secure(&self, listener: TcpListener, stop: CancellationToken) {
        Arc::clone(&self.inner).serve(listener, Port::Secure, stop).await;
    }
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    /// No TLS, unless the ports are unified.
    Plain,
    /// Nothing but TLS.
    Secure,
}

/// Opens a client port.
///
/// # Errors
/// As the operating system's; a port in use says so.
pub fn bind(address: SocketAddr, backlog: Option<u32>) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog.unwrap_or(BACKLOG))
}

/// As [`Listen`], for any [`Door`].
struct Inner<D> {
    door: D,
    options: ListenOptions,
    stats: Arc<FrontendStats>,
    operators: Arc<Operators>,
    grpc: mpsc::Sender<GrpcStream>,
    limits: Arc<Limits>,
    handshakes: Semaphore,
    handshake_log: HandshakeLog,
}

impl<D: Door + 'static> Inner<D> {
    fn new(door: D, options: ListenOptions, operators: Arc<Operators>) -> (Arc<Inner<D>>, GrpcIncoming) {
        let (grpc, connections) = mpsc::channel(GRPC_WAITING_MAX);
        let limits = Arc::new(Limits::default());
        let handshakes = Semaphore::new(options.secure.as_ref().map_or(0, |secure| secure.handshakes_max));
        let handshake_log = HandshakeLog::default();
        let stats = Arc::clone(operators.stats());
        let inner = Inner { door, options, stats, operators, grpc, limits, handshakes, handshake_log };
        (Arc::new(inner), GrpcIncoming { connections })
    }

    async fn serve(self: Arc<Self>, listener: TcpListener, port: Port, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, remote)) => {
                    failing = false;
                    self.admit(stream, remote, port, &tasks, &stop);
                }
                Err(error) if concerns_one_connection(&error) => {
                    tracing::debug!(%error, "connection lost before it was accepted");
                }
                Err(error) => {
                    // One line for each time the trouble begins, not ten a second.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "cannot accept connections, trying on");
                    }
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = sleep(ACCEPT_PAUSE) => {}
                    }
                }
            }
        }
        drop(listener);
        tasks.close();
        let _ = tokio::time::timeout(GOODBYE, tasks.wait()).await;
    }

    fn admit(
        self: &Arc<Self>,
        stream: TcpStream,
        remote: SocketAddr,
        port: Port,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) {
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        let Some(admitted) = self.limits.admit(remote.ip(), &self.options) else {
            self.stats.reject();
            tracing::warn!(%remote, "too many connections");
            return;
        };
        // Replies are written whole; waiting for more to send would only delay them. A failure shows on use.
        let _ = stream.set_nodelay(true);
        let inner = Arc::clone(self);
        let stop = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = inner.connection(stream, remote, port, admitted) => {}
            }
        });
    }

    async fn connection(&self, stream: TcpStream, remote: SocketAddr, port: Port, admitted: Admitted) {
        let deadline = Instant::now() + self.options.wire.handshake_timeout;
        let mut received = BytesMut::new();
        let mut peer = Peer { remote, secure: port == Port::Secure, identities: Vec::new() };
        let mut transport = Transport::Plain(stream);
        if port == Port::Secure {
            let Some(stream) = self.shake_hands(transport, received.split(), &mut peer, deadline).await else { return };
            transport = stream;
        }
        let Some(mut spoken) = self.sniff(&mut transport, &mut received, remote, deadline).await else { return };
        let unified = self.options.secure.as_ref().is_some_and(|secure| secure.unified);
        if unified && spoken == Protocol::ZooKeeper && received.starts_with(TLS) {
            let Some(stream) = self.shake_hands(transport, received.split(), &mut peer, deadline).await else { return };
            transport = stream;
            let Some(inside) = self.sniff(&mut transport, &mut received, remote, deadline).await else { return };
            spoken = inside;
        }
        if matches!(transport, Transport::Plain(_)) {
            self.stats.plain(remote);
        }
        match spoken {
            Protocol::Http2 => {
                let inner = PrefixedStream { prefix: received, inner: transport };
                let stream = GrpcStream { inner, peer, _admitted: admitted };
                // Full when nobody takes them: then this one waits no longer than a handshake may.
                if !matches!(timeout_at(deadline, self.grpc.send(stream)).await, Ok(Ok(()))) {
                    tracing::warn!(%remote, "gRPC connection dropped: nobody takes it");
                }
            }
            Protocol::Word(word) => {
                let registration = self.stats.register(remote, port == Port::Secure);
                registration.count_received(1);
                let answering = self.word(&mut transport, word, received, deadline, registration);
                if let Err(error) = answering.await {
                    tracing::debug!(%remote, %error, "four-letter word not answered");
                }
            }
            Protocol::ZooKeeper => {
                let registration = self.stats.register(remote, port == Port::Secure);
                let wire = &self.options.wire;
                let end = match transport {
                    Transport::Plain(mut stream) => {
                        let (reader, writer) = stream.split();
                        connection::serve(reader, writer, received, peer, &self.door, wire, &registration).await
                    }
                    Transport::Tls(stream) => {
                        let (reader, writer) = tokio::io::split(stream);
                        connection::serve(reader, writer, received, peer, &self.door, wire, &registration).await
                    }
                };
                match end {
                    End::NoHandshake => {
                        self.stats.sessionless();
                        tracing::debug!(%remote, %end, "connection ended");
                    }
                    End::OutOfOrder { .. } => tracing::error!(%remote, %end, "connection ended"),
                    _ => tracing::debug!(%remote, %end, "connection ended"),
                }
            }
        }
    }

    /// Finds out what a connection speaks; `None` if it does not say in time.
    async fn sniff(
        &self,
        transport: &mut Transport,
        received: &mut BytesMut,
        remote: SocketAddr,
        deadline: Instant,
    ) -> Option<Protocol> {
        match timeout_at(deadline, sniff(transport, received)).await {
            Ok(Ok(spoken)) => Some(spoken),
            Ok(Err(error)) => {
                tracing::debug!(%remote, %error, "connection ended before it said anything");
                None
            }
            Err(_) => {
                self.stats.sessionless();
                tracing::debug!(%remote, "connection said nothing in time");
                None
            }
        }
    }

    /// Does the TLS handshake and notes whom the client's certificate names; `None` if that fails. `received`: what was
    /// read of the connection already.
    async fn shake_hands(
        &self,
        transport: Transport,
        received: BytesMut,
        peer: &mut Peer,
        deadline: Instant,
    ) -> Option<Transport> {
        let (Some(secure), Transport::Plain(inner)) = (&self.options.secure, transport) else { return None };
        let Ok(_place) = self.handshakes.try_acquire() else {
            self.stats.tls_refused();
            self.handshake_log.log(peer.remote, "too many handshakes under way");
            return None;
        };
        let _under_way = self.stats.tls_begun();
        let stream = PrefixedStream { prefix: received, inner };
        let accepting = TlsAcceptor::from(secure.tls.server_config()).accept(stream);
        let problem = match timeout_at(deadline, accepting).await {
            Ok(Ok(stream)) => match identities(&stream, secure.super_user.as_deref()) {
                Ok(identities) => {
                    peer.identities = identities;
                    return Some(Transport::Tls(Box::new(stream)));
                }
                Err(error) => format!("the certificate's subject cannot be read: {error}"),
            },
            Ok(Err(error)) => error.to_string(),
            Err(_) => "not done in time".to_owned(),
        };
        self.stats.tls_failed();
        self.handshake_log.log(peer.remote, &problem);
        None
    }

    async fn word(
        &self,
        stream: &mut Transport,
        word: Word,
        mut received: BytesMut,
        deadline: Instant,
        asking: Registration,
    ) -> io::Result<()> {
        let text = if self.options.words.allows(word) {
            if word == Word::Stmk {
                let mask = timeout_at(deadline, trace_mask(stream, &mut received)).await??;
                self.operators.set_trace_mask(mask);
            }
            let report = self.operators.report(word.detail()).await;
            if report.mode != ServerMode::NotServing {
                match word {
                    Word::Crst => self.stats.reset_connections(),
                    Word::Srst => self.stats.reset(),
                    _ => {}
                }
            }
            four_letter::answer(word, &report, self.operators.trace_mask())
        } else {
            four_letter::refusal(word)
        };
        tracing::debug!(?word, client = ?asking.remote(), "four-letter word");
        // Whoever asks again after this answer does not find the former connection in the list.
        asking.count_sent(1);
        drop(asking);
        let sending = async {
            stream.write_all(text.as_bytes()).await?;
            stream.shutdown().await?;
            // A line end may follow the word. Unread, it would turn the close into a reset that loses the answer.
            let mut scratch = [0; 64];
            for _ in 0..16 {
                if stream.read(&mut scratch).await? == 0 {
                    break;
                }
            }
            Ok(())
        };
        tokio::time::timeout(GOODBYE, sending).await.unwrap_or(Ok(()))
    }
}

/// When a failed handshake was last told, and how many were not since.
#[derive(Debug, Default)]
struct HandshakeLog {
    told: Mutex<(Option<Instant>, u64)>,
}

impl HandshakeLog {
    /// One line for a handshake that failed; those that follow at once are only counted.
    fn log(&self, remote: SocketAddr, problem: &str) {
        let now = Instant::now();
        let untold = {
            let mut told = self.told.lock();
            if told.0.is_some_and(|at| now < at + HANDSHAKE_LOG_INTERVAL) {
                told.1 += 1;
                None
            } else {
                Some(std::mem::replace(&mut *told, (Some(now), 0)).1)
            }
        };
        match untold {
            None => tracing::debug!(%remote, problem, "TLS handshake failed"),
            Some(untold) => tracing::warn!(%remote, problem, untold, "TLS handshake failed"),
        }
    }
}

/// Whom the client's certificate names; nobody, if it showed none.
fn identities<S>(stream: &TlsStream<S>, super_user: Option<&str>) -> Result<Vec<Id>, String> {
    let (_, connection) = stream.get_ref();
    let Some([certificate, ..]) = connection.peer_certificates() else { return Ok(Vec::new()) };
    let certificate = webpki::EndEntityCert::try_from(certificate).map_err(|error| error.to_string())?;
    x509::identities(certificate.subject(), super_user).map_err(|error| error.to_string())
}

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// Frames; the first four bytes are the length of a connect request, or nothing known.
    ZooKeeper,
    /// A four-letter word.
    Word(Word),
    /// gRPC.
    Http2,
}

impl Protocol {
    fn of(first: &[u8; 4]) -> Protocol {
        match Word::parse(first) {
            Some(word) => Protocol::Word(word),
            None if first == HTTP2 => Protocol::Http2,
            None => Protocol::ZooKeeper,
        }
    }
}

/// Reads until the protocol is known. What was read stays in `received`.
async fn sniff(stream: &mut (impl AsyncRead + Unpin), received: &mut BytesMut) -> io::Result<Protocol> {
    loop {
        if let Some(first) = received.first_chunk::<4>() {
            return Ok(Protocol::of(first));
        }
        if stream.read_buf(received).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The argument of `stmk`: eight bytes after the word.
async fn trace_mask(stream: &mut (impl AsyncRead + Unpin), received: &mut BytesMut) -> io::Result<i64> {
    loop {
        if let Some(mask) = received.get(4..).and_then(|rest| rest.first_chunk::<8>()) {
            return Ok(i64::from_be_bytes(*mask));
        }
        if stream.read_buf(received).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Whether an accept failed because of the connection it was about, and not for lack of something.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests;
