//! A TCP proxy for one link: delay, jitter, bandwidth, silence, half-open connections, resets, cuts in mid-stream.
//!
//! It runs unprivileged. What it holds is bounded: [`CHUNKS_MAX`] chunks of [`CHUNK_BYTES`] for each direction of a
//! connection; beyond that the sender waits, as with a full network.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use corral_sim::rng::Rng;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

/// Bytes read at once.
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks on their way in one direction of a connection.
const CHUNKS_MAX: usize = 64;
/// An attempt to reach the target ends after it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A half-open connection is given up after it, if nobody ends it before.
const HALF_OPEN_MAX: Duration = Duration::from_secs(60);
/// Orders that connections have not heard yet; one that missed some is reset.
const ORDERS_MAX: usize = 16;

/// What happens to one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Every byte is late by so much, ms,
    pub delay_ms: u64,
    /// and by up to so much more; order is kept.
    pub jitter_ms: u64,
    /// Bytes a second; `None`: no limit.
    pub bytes_per_s: Option<u64>,
    /// Nothing passes. The connection stays.
    pub stalled: bool,
}

/// What happens to a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// From who dials to who listens.
    pub there: Shape,
    /// The other direction.
    pub back: Shape,
    /// Each connection is cut after so many bytes, both directions together.
    pub cut_after: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Reset,
    HalfOpen,
}

/// One link. Dropping it ends its connections.
pub struct Proxy {
    address: SocketAddr,
    rules: watch::Sender<Rules>,
    orders: broadcast::Sender<Order>,
    _accepting: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Listens on `listen` and carries everything to `target`, dialling from `from` if that is given.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub async fn start(listen: SocketAddr, target: SocketAddr, from: Option<IpAddr>, seed: u64) -> io::Result<Proxy> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let rules = watch::Sender::new(Rules::default());
        let orders = broadcast::Sender::new(ORDERS_MAX);
        let link = Link { target, from, rules: rules.clone(), orders: orders.clone(), seed };
        let accepting = AbortOnDropHandle::new(tokio::spawn(accept(listener, Arc::new(link))));
        Ok(Proxy { address, rules, orders, _accepting: accepting })
    }

    /// Where to dial.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What happens from now on, to connections that are there already, too.
    pub fn set(&self, rules: Rules) {
        self.rules.send_replace(rules);
    }

    /// What happens now.
    pub fn rules(&self) -> Rules {
        *self.rules.borrow()
    }

    /// Both ends of every connection get a reset.
    pub fn reset(&self) {
        // Without receivers there is no connection.
        let _ = self.orders.send(Order::Reset);
    }

    /// Who listens sees its connections end, who dialled hears nothing more.
    pub fn half_open(&self) {
        let _ = self.orders.send(Order::HalfOpen);
    }
}

struct Link {
    target: SocketAddr,
    from: Option<IpAddr>,
    rules: watch::Sender<Rules>,
    orders: broadcast::Sender<Order>,
    seed: u64,
}

async fn accept(listener: TcpListener, link: Arc<Link>) {
    let mut connections = tokio::task::JoinSet::new();
    for number in 0u64.. {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((client, _)) => {
                let (link, orders) = (link.clone(), link.orders.subscribe());
                connections.spawn(async move { link.carry(client, orders, number).await });
            }
            // Out of descriptors, or a connection that is gone already.
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

impl Link {
    async fn dial(&self) -> io::Result<TcpStream> {
        let socket = if self.target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(from) = self.from {
            socket.bind(SocketAddr::new(from, 0))?;
        }
        let stream = timeout(CONNECT_TIMEOUT, socket.connect(self.target)).await??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn carry(&self, mut client: TcpStream, mut orders: broadcast::Receiver<Order>, number: u64) {
        let _ = client.set_nodelay(true);
        let Ok(mut server) = self.dial().await else {
            reset(client);
            return;
        };
        let carried = AtomicU64::new(0);
        let order = {
            let (client_in, client_out) = client.split();
            let (server_in, server_out) = server.split();
            let pump = |from, to, direction: fn(&Rules) -> Shape, name: &str| {
                let rng = Rng::stream(self.seed ^ number, name);
                let (rules, carried) = (self.rules.subscribe(), &carried);
                Pump { rules, direction, carried, rng: Mutex::new(rng) }.run(from, to)
            };
            let there = pump(client_in, server_out, |rules| rules.there, "there");
            let back = pump(server_in, client_out, |rules| rules.back, "back");
            tokio::select! {
                _ = async { tokio::try_join!(there, back) } => None,
                order = orders.recv() => Some(order.unwrap_or(Order::Reset)),
            }
        };
        match order {
            // Ended by one of them, or cut: what was forwarded arrives, then the end.
            None => {}
            Some(Order::Reset) => {
                reset(client);
                reset(server);
            }
            Some(Order::HalfOpen) => {
                drop(server);
                // Nothing is read or written, so who dialled learns nothing.
                let _ = timeout(HALF_OPEN_MAX, orders.recv()).await;
                reset(client);
            }
        }
    }
}

/// One direction of a connection.
struct Pump<'a> {
    rules: watch::Receiver<Rules>,
    direction: fn(&Rules) -> Shape,
    carried: &'a AtomicU64,
    rng: Mutex<Rng>,
}

impl Pump<'_> {
    fn shape(&self) -> Shape {
        (self.direction)(&self.rules.borrow())
    }

    async fn run(self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> io::Result<()> {
        let (chunks, mut waiting) = mpsc::channel(CHUNKS_MAX);
        let this = &self;
        let read = async move {
            let mut last_due = Instant::now();
            loop {
                let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
                if from.read_buf(&mut chunk).await? == 0 {
                    return io::Result::Ok(());
                }
                let shape = this.shape();
                let late = shape.delay_ms + this.jitter(shape.jitter_ms);
                last_due = last_due.max(Instant::now() + Duration::from_millis(late));
                if chunks.send((last_due, chunk)).await.is_err() {
                    return Ok(());
                }
            }
        };
        let write = async move {
            let mut rules = this.rules.clone();
            while let Some((due, chunk)) = waiting.recv().await {
                sleep_until(due).await;
                // Ends with the proxy itself, too.
                if rules.wait_for(|rules| !(this.direction)(rules).stalled).await.is_err() {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                if let Some(rate) = this.shape().bytes_per_s {
                    sleep(Duration::from_micros(chunk.len() as u64 * 1_000_000 / rate.max(1))).await;
                }
                let passes = this.passes(chunk.len());
                to.write_all(&chunk[..passes]).await?;
                if passes < chunk.len() {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
            }
            to.shutdown().await
        };
        tokio::try_join!(read, write).map(drop)
    }

    fn jitter(&self, upto: u64) -> u64 {
        match upto {
            0 => 0,
            upto => self.rng.lock().below(upto + 1),
        }
    }

    /// How many of these bytes pass before the connection is cut.
    fn passes(&self, bytes: usize) -> usize {
        let Some(cut_after) = self.rules.borrow().cut_after else { return bytes };
        let before = self.carried.fetch_add(bytes as u64, Ordering::Relaxed);
        usize::try_from(cut_after.saturating_sub(before)).unwrap_or(usize::MAX).min(bytes)
    }
}

/// Ends a connection with a reset instead of an orderly end.
fn reset(stream: TcpStream) {
    // Whatever fails here: the connection is gone already.
    let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An echo server behind a proxy, and a connection through it.
    async fn echo() -> (Proxy, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        let proxy = Proxy::start("127.0.0.1:0".parse().unwrap(), target, None, 7).await.unwrap();
        let stream = TcpStream::connect(proxy.address()).await.unwrap();
        (proxy, stream)
    }

    async fn say(stream: &mut TcpStream, text: &[u8]) -> Vec<u8> {
        stream.write_all(text).await.unwrap();
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn bytes_pass_unchanged_also_late_and_slowly() {
        let (proxy, mut stream) = echo().await;
        assert_eq!(say(&mut stream, b"hello").await, b"hello");
        let slow = Shape { delay_ms: 2, jitter_ms: 3, bytes_per_s: Some(1 << 20), stalled: false };
        proxy.set(Rules { there: slow, back: slow, cut_after: None });
        let long: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        assert_eq!(say(&mut stream, &long).await, long);
    }

    #[tokio::test]
    async fn a_stalled_direction_holds_what_comes_and_gives_it_on_later() {
        let (proxy, mut stream) = echo().await;
        assert_eq!(say(&mut stream, b"a").await, b"a");
        proxy.set(Rules { back: Shape { stalled: true, ..Shape::default() }, ..Rules::default() });
        stream.write_all(b"b").await.unwrap();
        let mut byte = [0];
        assert!(timeout(Duration::from_millis(50), stream.read_exact(&mut byte)).await.is_err());
        proxy.set(Rules::default());
        stream.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"b");
    }

    #[tokio::test]
    async fn a_cut_connection_carries_so_many_bytes_and_no_more() {
        let (proxy, mut stream) = echo().await;
        proxy.set(Rules { cut_after: Some(13), ..Rules::default() });
        stream.write_all(b"0123456789").await.unwrap();
        let mut answer = Vec::new();
        // An end or a reset, as the systems' buffers have it.
        let _ = stream.read_to_end(&mut answer).await;
        assert_eq!(answer, b"012");
    }

    #[tokio::test]
    async fn a_reset_ends_both_sides_and_the_next_connection_is_sound() {
        let (proxy, mut stream) = echo().await;
        assert_eq!(say(&mut stream, b"a").await, b"a");
        proxy.reset();
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let mut again = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(say(&mut again, b"b").await, b"b");
    }
}
