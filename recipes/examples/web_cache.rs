//! A web cache of several nodes, of which each keeps its part of the keys: a ring of consistent hashing, whose members are a
//! group.
//!
//!     cargo run --example web_cache -- --server localhost:2181
//!     curl -i http://127.0.0.1:PORT/some/key
//!
//! Any node can be asked for any key. It looks up in its ring whose key that is; if it is another's, it asks that node.
//! `X-Node` in the answer says who had it, `X-Cache` whether it was there (`hit`) or had to be made (`miss`), which takes
//! `--origin-ms`. `/_ring` says which ring a node has: the epoch and the names of its members.
//!
//! Nodes with equal epochs have equal rings ([`corral_recipes::View`]). When a node dies, its keys go to the others, and no
//! other key moves.
//!
//! For nodes in processes of their own, to kill them one by one, start it several times with `--nodes 1 --name NAME`.

mod common;

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use common::Ensemble;
use corral_client::{Client, Zxid};
use corral_recipes::{Error, Group, View};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, header::HeaderValue};
use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, RwLock};
use tokio::net::{TcpListener, TcpStream};

/// Points that each node has on the ring. The more, the more even are the parts: with 128, within a few tens of per cent.
const POINTS: u32 = 128;
/// Keys that a node keeps; beyond it, it forgets one to keep another.
const KEYS_MAX: usize = 100_000;
/// How long a node waits for another before it makes the value itself.
const PEER_LIMIT: Duration = Duration::from_secs(1);
/// Says that a node asks, and not a client: what it gets here is final.
const ASKED_BY_NODE: &str = "x-asked-by-node";

/// A web cache whose nodes find each other.
#[derive(Parser, Clone, Debug)]
struct Options {
    #[command(flatten)]
    ensemble: Ensemble,
    /// Znode below which everything is kept.
    #[arg(long, default_value = "/cache")]
    root: String,
    /// Nodes in this process.
    #[arg(long, default_value_t = 3)]
    nodes: u32,
    /// What the nodes are called; of several, each adds its number.
    #[arg(long, default_value = "node")]
    name: String,
    /// Port of the first node, the next ones count up; 0: any that is free.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// How long it takes to make a value, in ms.
    #[arg(long, default_value_t = 20)]
    origin_ms: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    common::begin();
    let options = Options::parse();
    common::end(run(options).await)
}

async fn run(options: Options) -> Result<(), String> {
    let stopped = common::stopped();
    let mut serving = tokio::task::JoinSet::new();
    let mut members = tokio::task::JoinSet::new();
    for number in 0..options.nodes {
        let name = if options.nodes == 1 { options.name.clone() } else { format!("{}-{}", options.name, number + 1) };
        let port = if options.port == 0 { 0 } else { options.port.saturating_add(u16::try_from(number).unwrap_or(0)) };
        let listener = TcpListener::bind(("127.0.0.1", port)).await.map_err(|error| format!("port {port}: {error}"))?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let node = Arc::new(Node {
            name: name.clone(),
            ring: RwLock::default(),
            kept: Mutex::default(),
            origin: Duration::from_millis(options.origin_ms),
        });
        println!("{name} serves http://{address}");
        serving.spawn(serve(listener, node.clone()));
        let (options, stopped) = (options.clone(), stopped.clone());
        members.spawn(async move {
            let ensemble = options.ensemble.clone();
            // The cache outlives sessions: while there is none, it serves by the ring that it has.
            common::sessions(ensemble, name, stopped, |client| member(client, &options, &node, address)).await;
        });
    }
    // They end when they are stopped, each with a word of its own; what serves goes after the last of them.
    while let Some(left) = members.join_next().await {
        left.map_err(|error| format!("a node ended: {error}"))?;
    }
    Ok(())
}

/// One node.
struct Node {
    name: String,
    ring: RwLock<Ring>,
    kept: Mutex<HashMap<String, Bytes>>,
    origin: Duration,
}

/// Is a member of the group, and follows it, for as long as the session lives.
async fn member(client: Client, options: &Options, node: &Node, address: SocketAddr) -> Result<(), Error> {
    let group = Group::new(&client, format!("{}/nodes", options.root));
    let here = group.join(&node.name, address.to_string()).start();
    here.created().await?;
    let mut views = group.views().await?;
    loop {
        let view = views.next().await?;
        let ring = Ring::of(&view);
        println!("{}: epoch {:#x}: {}", node.name, ring.epoch.0, ring.names().join(" "));
        // Held from before, so that nothing is kept by the old ring after that.
        let mut now = node.ring.write();
        // What is not ours any more is forgotten: should it come back to us, it might have changed meanwhile.
        node.kept.lock().retain(|key, _| ring.owner(key).is_some_and(|owner| owner.name == node.name));
        *now = ring;
    }
}

/// A node on the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Peer {
    name: String,
    address: String,
}

/// Who has which keys. It follows from the members alone: whoever knows these has the same ring.
#[derive(Default)]
struct Ring {
    epoch: Zxid,
    peers: Vec<Peer>,
    /// By place on the ring, an index of `peers`.
    points: BTreeMap<u64, usize>,
}

impl Ring {
    fn of(view: &View) -> Ring {
        let peers = view.members.iter().map(|member| Peer {
            name: member.id.clone(),
            address: String::from_utf8_lossy(member.data.as_deref().unwrap_or_default()).into_owned(),
        });
        Ring::new(view.epoch, peers.collect())
    }

    fn new(epoch: Zxid, mut peers: Vec<Peer>) -> Ring {
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        let mut points = BTreeMap::new();
        for (at, peer) in peers.iter().enumerate() {
            for point in 0..POINTS {
                // Should two points fall together, the smaller name keeps it, whoever makes the ring.
                points.entry(place(&format!("{}#{point}", peer.name))).or_insert(at);
            }
        }
        Ring { epoch, peers, points }
    }

    /// Whose key this is: that of the first point at its place or after it. `None`: nobody is there.
    fn owner(&self, key: &str) -> Option<&Peer> {
        let next = self.points.range(place(key)..).next().or_else(|| self.points.first_key_value());
        next.map(|(_, at)| &self.peers[*at])
    }

    fn names(&self) -> Vec<&str> {
        self.peers.iter().map(|peer| peer.name.as_str()).collect()
    }
}

/// A place on the ring: the same in every process, of every version.
fn place(text: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(text.as_bytes())
}

async fn serve(listener: TcpListener, node: Arc<Node>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: they come back.
                eprintln!("{}: {error}", node.name);
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let node = node.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(&node, request));
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
}

async fn answer(node: &Node, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let key = request.uri().path().trim_start_matches('/').to_owned();
    if key == "_ring" {
        let ring = node.ring.read();
        let text = format!("{:#x} {}\n", ring.epoch.0, ring.names().join(" "));
        return Ok(Response::new(Full::from(text)));
    }
    let owner = node.ring.read().owner(&key).cloned();
    let is_final = request.headers().contains_key(ASKED_BY_NODE);
    if let Some(owner) = owner.filter(|owner| owner.name != node.name && !is_final) {
        match tokio::time::timeout(PEER_LIMIT, ask(&owner.address, &key)).await {
            Ok(Ok(response)) => return Ok(response),
            // It may have just died, and the ring not know it yet. Anybody can make the value, only not keep it.
            Ok(Err(error)) => tracing::info!(peer = owner.name, error, "a node does not answer"),
            Err(_) => tracing::info!(peer = owner.name, "a node does not answer in time"),
        }
        return Ok(response(node, node.make(&key).await, "miss"));
    }
    let kept = node.kept.lock().get(&key).cloned();
    if let Some(value) = kept {
        return Ok(response(node, value, "hit"));
    }
    let value = node.make(&key).await;
    node.keep(key, value.clone());
    Ok(response(node, value, "miss"))
}

impl Node {
    /// Makes a value: what a cache is there to avoid.
    async fn make(&self, key: &str) -> Bytes {
        tokio::time::sleep(self.origin).await;
        Bytes::from(format!("the value of {key}\n"))
    }

    /// Keeps a value, if it is ours by the ring as it is now.
    fn keep(&self, key: String, value: Bytes) {
        // Held meanwhile: a new ring comes before, or comes after and forgets it.
        let ring = self.ring.read();
        if ring.owner(&key).is_some_and(|owner| owner.name == self.name) {
            let mut kept = self.kept.lock();
            if kept.len() >= KEYS_MAX {
                let any = kept.keys().next().cloned();
                any.map(|any| kept.remove(&any));
            }
            kept.insert(key, value);
        }
    }
}

fn response(node: &Node, value: Bytes, cache: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(value));
    // A name that cannot stand in a header is left out.
    if let Ok(name) = HeaderValue::from_str(&node.name) {
        response.headers_mut().insert("x-node", name);
    }
    response.headers_mut().insert("x-cache", HeaderValue::from_static(cache));
    response
}

/// Asks another node.
async fn ask(address: &str, key: &str) -> Result<Response<Full<Bytes>>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let stream = TcpStream::connect(address).await.map_err(|error| text(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| text(&error))?;
    let request = Request::get(format!("/{key}"))
        .header("host", address)
        .header(ASKED_BY_NODE, "1")
        .body(Full::<Bytes>::default())
        .map_err(|error| text(&error))?;
    let asked = async {
        let response = sender.send_request(request).await.map_err(|error| text(&error))?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| text(&error))?.to_bytes();
        if head.status != StatusCode::OK {
            return Err(format!("it answered {}", head.status));
        }
        Ok(Response::from_parts(head, Full::from(body)))
    };
    tokio::pin!(asked);
    // The connection ends with its only request.
    tokio::select! {
        answer = &mut asked => answer,
        ended = connection => match ended {
            Ok(()) => asked.await,
            Err(error) => Err(text(&error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(names: &[&str]) -> Ring {
        let peers = names.iter().map(|name| Peer { name: (*name).to_owned(), address: String::new() });
        Ring::new(Zxid(1), peers.collect())
    }

    fn owners(ring: &Ring) -> Vec<String> {
        (0..10_000).map(|key| ring.owner(&format!("key/{key}")).expect("somebody").name.clone()).collect()
    }

    #[test]
    fn of_a_node_that_dies_only_its_own_keys_move() {
        let (before, after) = (owners(&ring(&["a", "b", "c", "d"])), owners(&ring(&["a", "b", "d"])));
        for (was, is) in before.iter().zip(&after) {
            assert!(was == is || was == "c", "a key moved from {was} to {is}");
        }
        // And they go to all of the others.
        let heirs: std::collections::BTreeSet<_> =
            before.iter().zip(&after).filter(|(was, _)| *was == "c").map(|(_, is)| is.as_str()).collect();
        assert_eq!(heirs.into_iter().collect::<Vec<_>>(), ["a", "b", "d"]);
    }

    #[test]
    fn the_ring_follows_from_the_members_in_whatever_order_they_came() {
        assert_eq!(owners(&ring(&["c", "a", "b"])), owners(&ring(&["a", "b", "c"])));
        assert_eq!(ring(&[]).owner("x"), None);
        let shares = owners(&ring(&["a", "b", "c"]));
        for name in ["a", "b", "c"] {
            let share = shares.iter().filter(|owner| *owner == name).count();
            assert!((2_000..=5_000).contains(&share), "{name} has {share} of 10,000 keys");
        }
    }
}
