//! etcd beside the others, over its own gRPC interface.
//!
//! A key is a path. What has no twin there is done as its users do it: a create is a transaction that asks whether the
//! key is new, an ephemeral znode is a key with the connection's lease, a multi is a transaction of puts, the lock is
//! etcd's own, for which the server does the waiting.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};

use self::lock_pb::lock_client::LockClient;
use self::pb::kv_client::KvClient;
use self::pb::lease_client::LeaseClient;
use self::pb::maintenance_client::MaintenanceClient;
use self::pb::watch_client::WatchClient;
use self::pb::{compare, request_op, watch_request};
use crate::drive::Done;
use crate::meet::News;
use crate::run::{RunArgs, Tally, Window};
use crate::workload::{self, ROOT, Random, Shape, Workload};
use crate::{Result, context};

#[allow(missing_docs, clippy::all)]
mod pb {
    tonic::include_proto!("etcdserverpb");
}
#[allow(missing_docs, clippy::all)]
mod lock_pb {
    tonic::include_proto!("v3lockpb");
}

/// Seconds that a lease lives without a sign of life: longer than any run, so that none is needed.
const LEASE_SECONDS: i64 = 3600;
/// Requests on the way while a run is prepared.
const SETUP_OUTSTANDING: usize = 128;
/// A member that does not answer for so long is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Received at once on a stream and on a connection: the names of a large folder must not wait for the sender's turn.
const HTTP2_WINDOW_BYTES: u32 = 4 << 20;
/// Larger answers are refused. Names of 100,000 keys have some 4 MiB.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// One connection.
#[derive(Clone)]
pub struct Etcd {
    channel: Channel,
    kv: KvClient<Channel>,
}

impl Etcd {
    /// A connection to one member.
    ///
    /// # Errors
    /// If it cannot be reached.
    pub async fn connect(address: &str) -> Result<Etcd> {
        let channel = Endpoint::from_shared(format!("http://{address}"))?
            .tcp_nodelay(true)
            .initial_stream_window_size(HTTP2_WINDOW_BYTES)
            .initial_connection_window_size(HTTP2_WINDOW_BYTES)
            .timeout(ANSWER_TIMEOUT)
            .connect()
            .await
            .map_err(context(address))?;
        let kv = KvClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        Ok(Etcd { channel, kv })
    }

    /// What the member says it is, in ZooKeeper's words; `None` without a leader.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn role(&mut self) -> Result<Option<&'static str>> {
        let status = MaintenanceClient::new(self.channel.clone()).status(pb::StatusRequest {}).await?.into_inner();
        let own = status.header.unwrap_or_default().member_id;
        Ok(match status.leader {
            0 => None,
            leader if leader == own => Some("leader"),
            _ => Some("follower"),
        })
    }

    /// Replaces a value.
    ///
    /// # Errors
    /// If the member refuses, or is gone.
    pub async fn put(&mut self, key: Bytes, value: Bytes) -> Result<()> {
        self.kv.put(pb::PutRequest { key, value, lease: 0 }).await?;
        Ok(())
    }

    async fn get(&mut self, key: Bytes, serializable: bool) -> Result<()> {
        let range = pb::RangeRequest { key, serializable, ..Default::default() };
        match self.kv.range(range).await?.into_inner().kvs.len() {
            1 => Ok(()),
            found => Err(format!("{found} values of one key").into()),
        }
    }

    /// All keys of a folder, without their values.
    async fn names(&mut self, folder: &str, serializable: bool) -> Result<usize> {
        // The first byte after the slash: the end of everything that begins with the folder's name.
        let (key, range_end) = (format!("{folder}/").into(), format!("{folder}0").into());
        let range = pb::RangeRequest { key, range_end, serializable, keys_only: true };
        Ok(self.kv.range(range).await?.into_inner().kvs.len())
    }

    async fn create(&mut self, key: Bytes, value: Bytes, lease: i64) -> Result<()> {
        let is_new = pb::Compare {
            result: compare::Result::Equal.into(),
            target: compare::Target::Create.into(),
            key: key.clone(),
            target_union: Some(compare::TargetUnion::CreateRevision(0)),
        };
        let txn = pb::TxnRequest { compare: vec![is_new], success: vec![put_op(key, value, lease)] };
        match self.kv.txn(txn).await?.into_inner().succeeded {
            true => Ok(()),
            false => Err("a key is there already".into()),
        }
    }

    async fn delete(&mut self, key: Bytes) -> Result<()> {
        match self.kv.delete_range(pb::DeleteRangeRequest { key }).await?.into_inner().deleted {
            1 => Ok(()),
            deleted => Err(format!("{deleted} keys deleted instead of one").into()),
        }
    }

    async fn lease(&self) -> Result<i64> {
        let grant = pb::LeaseGrantRequest { ttl: LEASE_SECONDS };
        Ok(LeaseClient::new(self.channel.clone()).lease_grant(grant).await?.into_inner().id)
    }
}

fn put_op(key: Bytes, value: Bytes, lease: i64) -> pb::RequestOp {
    pb::RequestOp { request: Some(request_op::Request::RequestPut(pb::PutRequest { key, value, lease })) }
}

/// Makes the keys, whether they are there already or not.
///
/// # Errors
/// If the member cannot be reached or refuses.
pub async fn set_up(address: &str, shape: Shape) -> Result<()> {
    let etcd = Etcd::connect(address).await?;
    let data = workload::value(shape.value_bytes);
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    for slot in 0..SETUP_OUTSTANDING.min(shape.keys) {
        let (mut etcd, data) = (etcd.clone(), data.clone());
        tasks.spawn(async move {
            for index in (slot..shape.keys).step_by(SETUP_OUTSTANDING) {
                etcd.put(shape.key(index).into(), data.clone()).await?;
            }
            Ok(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.map_err(context("a task that makes keys"))??;
    }
    Ok(())
}

/// Starts the tasks of a run; each ends soon after the window that `window` opens.
///
/// # Errors
/// If a member cannot be reached.
pub async fn start(
    args: &RunArgs,
    shape: Shape,
    window: impl FnOnce() -> (Instant, Window),
) -> Result<(Window, JoinSet<Tally>)> {
    if args.rate.is_some() {
        return Err("--rate is for ZooKeeper's protocol".into());
    }
    let mut connections = Vec::new();
    for number in 0..args.connections as usize {
        let etcd = Etcd::connect(&args.servers[number % args.servers.len()]).await?;
        let lease = match shape.workload {
            Workload::Ephemeral | Workload::Lock => etcd.lease().await?,
            _ => 0,
        };
        connections.push((etcd, lease));
    }
    let mut tasks = JoinSet::new();
    if shape.workload == Workload::Watch {
        let setter = Etcd::connect(&args.servers[0]).await?;
        let (start, window) = window();
        let news = Arc::new(News::at(start));
        let (stop, stopped) = watch::channel(false);
        let watchers = connections.len();
        for (etcd, _) in connections {
            tasks.spawn(ending(window, watcher(etcd, news.clone(), stopped.clone(), window)));
        }
        tasks.spawn(ending(window, async move {
            sleep_until(start).await;
            let told = set_and_wait(setter, &news, watchers, workload::value(shape.value_bytes), window).await;
            let _ = stop.send(true);
            told.map(|()| Tally::default())
        }));
        return Ok((window, tasks));
    }
    let keys: Arc<[Bytes]> = (0..shape.keys).map(|index| shape.key(index).into()).collect();
    let serializable = !args.linearizable;
    let (start, window) = window();
    for (number, (etcd, lease)) in connections.into_iter().enumerate() {
        // What is called at the same time shares the connection: one task for each outstanding request.
        for slot in 0..shape.outstanding {
            let worker = Worker {
                etcd: etcd.clone(),
                shape,
                keys: keys.clone(),
                data: workload::value(shape.value_bytes),
                own: format!("{ROOT}/c{number:04}-{slot:04}").into(),
                is_there: false,
                lease,
                serializable,
                random: Random::new((number * shape.outstanding + slot) as u64),
            };
            tasks.spawn(ending(window, worker.work(start, window)));
        }
    }
    Ok((window, tasks))
}

/// What a task counted, or why it ended.
async fn ending(window: Window, work: impl Future<Output = Result<Tally>>) -> Tally {
    let mut tally = Tally::default();
    match tokio::time::timeout_at(window.end + ANSWER_TIMEOUT, work).await {
        Ok(Ok(counted)) => tally = counted,
        Ok(Err(error)) => tally.broken = Some(error.to_string()),
        Err(_) => tally.broken = Some("unanswered".to_owned()),
    }
    tally
}

/// One request at a time, again and again.
struct Worker {
    etcd: Etcd,
    shape: Shape,
    keys: Arc<[Bytes]>,
    data: Bytes,
    /// The key that only this worker creates and deletes.
    own: Bytes,
    is_there: bool,
    lease: i64,
    serializable: bool,
    random: Random,
}

impl Worker {
    async fn work(mut self, start: Instant, window: Window) -> Result<Tally> {
        let mut tally = Tally::default();
        sleep_until(start).await;
        if matches!(self.shape.workload, Workload::CreateDelete | Workload::Ephemeral) {
            // A run before this one may have ended between a create and its delete.
            let _ = self.etcd.delete(self.own.clone()).await;
        }
        loop {
            let begun = Instant::now();
            if begun >= window.end {
                return Ok(tally);
            }
            let ended = self.request().await?;
            tally.count(window, &Done { begun, ended, error: 0 });
        }
    }

    /// Returns when it had what it wanted.
    async fn request(&mut self) -> Result<Instant> {
        let Shape { workload, keys, read_percent, multi_ops, .. } = self.shape;
        let first = self.random.below(keys);
        let key = self.keys[first].clone();
        let (etcd, data) = (&mut self.etcd, self.data.clone());
        match workload {
            Workload::Set => etcd.put(key, data).await?,
            Workload::Get | Workload::Exists => etcd.get(key, self.serializable).await?,
            Workload::Mixed if self.random.below(100) < read_percent as usize => {
                etcd.get(key, self.serializable).await?;
            }
            Workload::Mixed => etcd.put(key, data).await?,
            Workload::Children => {
                let names = etcd.names(&self.shape.folder(), self.serializable).await?;
                if names != keys {
                    return Err(format!("{names} names instead of {keys}").into());
                }
            }
            Workload::Multi => {
                let put = |i: usize| put_op(self.keys[(first + i) % keys].clone(), data.clone(), 0);
                let txn = pb::TxnRequest { compare: Vec::new(), success: (0..multi_ops).map(put).collect() };
                etcd.kv.txn(txn).await?;
            }
            Workload::CreateDelete | Workload::Ephemeral => {
                match self.is_there {
                    false => etcd.create(self.own.clone(), data, self.lease).await?,
                    true => etcd.delete(self.own.clone()).await?,
                }
                self.is_there = !self.is_there;
            }
            Workload::Lock => {
                let mut lock = LockClient::new(etcd.channel.clone());
                let name = Bytes::from(format!("{ROOT}/lock"));
                let held = lock.lock(lock_pb::LockRequest { name, lease: self.lease }).await?.into_inner();
                let ended = Instant::now();
                lock.unlock(lock_pb::UnlockRequest { key: held.key }).await?;
                return Ok(ended);
            }
            Workload::Watch => return Err("watchers ask for nothing".into()),
        }
        Ok(Instant::now())
    }
}

async fn watcher(etcd: Etcd, news: Arc<News>, mut stopped: watch::Receiver<bool>, window: Window) -> Result<Tally> {
    let mut tally = Tally::default();
    let create = pb::WatchCreateRequest { key: workload::key(0).into() };
    let request = pb::WatchRequest { request_union: Some(watch_request::RequestUnion::CreateRequest(create)) };
    // A stream of requests that ends would end the watch.
    let requests = tokio_stream::once(request).chain(tokio_stream::pending());
    let mut responses = WatchClient::new(etcd.channel).watch(requests).await?.into_inner();
    loop {
        tokio::select! {
            biased;
            response = responses.message() => {
                let response = response?.ok_or("the watch ended")?;
                if response.canceled {
                    return Err("the watch was cancelled".into());
                }
                for _ in &response.events {
                    tally.count(window, &news.done());
                    news.tell();
                }
                if response.created {
                    news.tell();
                }
            }
            _ = stopped.changed() => return Ok(tally),
        }
    }
}

async fn set_and_wait(mut etcd: Etcd, news: &News, watchers: usize, data: Bytes, window: Window) -> Result<()> {
    loop {
        news.all_told(watchers).await?;
        if Instant::now() >= window.end {
            return Ok(());
        }
        news.begin();
        etcd.put(workload::key(0).into(), data.clone()).await?;
    }
}
