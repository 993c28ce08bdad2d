//! Workloads in which clients wait for what other clients do: watches and locks.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use corral_proto::jute::{Request, Response};
use corral_proto::{CreateMode, ErrorCode};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::drive::Done;
use crate::run::{Tally, Window};
use crate::wire::Wire;
use crate::workload::{self, ROOT, Shape, Workload};
use crate::{Result, context};

/// Watchers that are not all told for so long will not be.
const TOLD_WITHIN: Duration = Duration::from_secs(30);
/// `addWatch`: stays after it has fired.
const PERSISTENT: i32 = 0;

/// Starts the tasks of a workload; each ends soon after the window.
///
/// # Errors
/// If what they need cannot be made.
pub async fn start(
    shape: Shape,
    servers: &[String],
    wires: Vec<Wire>,
    start: Instant,
    window: Window,
) -> Result<JoinSet<Tally>> {
    let mut extra = Wire::connect(&servers[0]).await?;
    let mut tasks = JoinSet::new();
    match shape.workload {
        Workload::Lock => {
            let made = extra.ask(&workload::create(lock_path(), Bytes::new(), CreateMode::Persistent)).await;
            match made.map_err(context(&servers[0]))? {
                Ok(_) | Err(ErrorCode::NodeExists) => {}
                Err(code) => return Err(format!("{} is refused: {code:?}", lock_path()).into()),
            }
            extra.close().await;
            for mut wire in wires {
                tasks.spawn(async move {
                    let mut tally = Tally::default();
                    sleep_until(start).await;
                    let ended = async {
                        while Instant::now() < window.end {
                            let done = acquire(&mut wire).await?;
                            tally.count(window, &done);
                        }
                        Ok::<(), io::Error>(())
                    };
                    match ended.await {
                        Ok(()) => wire.close().await,
                        Err(error) => tally.broken = Some(error.to_string()),
                    }
                    tally
                });
            }
        }
        _ => {
            let news = Arc::new(News::at(start));
            let (stop, stopped) = watch::channel(false);
            let watchers = wires.len();
            for wire in wires {
                tasks.spawn(watcher(wire, news.clone(), stopped.clone(), window));
            }
            let data = workload::value(shape.value_bytes);
            tasks.spawn(async move {
                let mut tally = Tally::default();
                sleep_until(start).await;
                if let Err(error) = set_and_wait(&mut extra, &news, watchers, data, window).await {
                    tally.broken = Some(error.to_string());
                }
                let _ = stop.send(true);
                extra.close().await;
                tally
            });
        }
    }
    Ok(tasks)
}

/// What the setter and the watchers tell each other.
pub struct News {
    begun: Instant,
    /// When the last set was sent, us after `begun`.
    set_us: AtomicU64,
    told: AtomicUsize,
    all_told: Notify,
}

impl News {
    /// Nobody was told yet.
    pub fn at(begun: Instant) -> News {
        News { begun, set_us: AtomicU64::new(0), told: AtomicUsize::new(0), all_told: Notify::new() }
    }

    /// One more watcher was told, or, the first time, watches.
    pub fn tell(&self) {
        self.told.fetch_add(1, Ordering::Relaxed);
        self.all_told.notify_one();
    }

    /// Waits until so many were told.
    ///
    /// # Errors
    /// If they are not for too long.
    pub async fn all_told(&self, watchers: usize) -> io::Result<()> {
        let told = timeout(TOLD_WITHIN, async {
            while self.told.load(Ordering::Relaxed) < watchers {
                self.all_told.notified().await;
            }
        });
        told.await.map_err(|_| {
            let told = self.told.load(Ordering::Relaxed);
            io::Error::other(format!("{told} of {watchers} watchers were told within {TOLD_WITHIN:?}"))
        })
    }

    /// The next set is about to be sent.
    pub fn begin(&self) {
        self.told.store(0, Ordering::Relaxed);
        let now = Instant::now().saturating_duration_since(self.begun).as_micros();
        self.set_us.store(u64::try_from(now).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// A watcher is told now.
    pub fn done(&self) -> Done {
        let begun = self.begun + Duration::from_micros(self.set_us.load(Ordering::Relaxed));
        Done { begun, ended: Instant::now(), error: 0 }
    }
}

async fn watcher(mut wire: Wire, news: Arc<News>, mut stopped: watch::Receiver<bool>, window: Window) -> Tally {
    let mut tally = Tally::default();
    let watched = wire.ask(&Request::AddWatch { path: workload::key(0), mode: PERSISTENT }).await;
    match watched {
        Ok(Ok(_)) => {}
        Ok(Err(code)) => tally.broken = Some(format!("no watch: {code:?}")),
        Err(error) => tally.broken = Some(error.to_string()),
    }
    news.tell();
    while tally.broken.is_none() {
        tokio::select! {
            biased;
            event = wire.event() => match event {
                Ok(_) => {
                    tally.count(window, &news.done());
                    news.tell();
                }
                Err(error) => tally.broken = Some(error.to_string()),
            },
            _ = stopped.changed() => {
                wire.close().await;
                break;
            }
        }
    }
    tally
}

/// Sets the znode again as soon as every watcher was told of the set before.
async fn set_and_wait(wire: &mut Wire, news: &News, watchers: usize, data: Bytes, window: Window) -> io::Result<()> {
    loop {
        news.all_told(watchers).await?;
        if Instant::now() >= window.end {
            return Ok(());
        }
        news.begin();
        let set = Request::SetData { path: workload::key(0), data: Some(data.clone()), version: -1 };
        wire.ask(&set).await?.map_err(refused)?;
    }
}

fn lock_path() -> String {
    format!("{ROOT}/lock")
}

fn refused(code: ErrorCode) -> io::Error {
    io::Error::other(format!("refused: {code:?}"))
}

/// Takes the lock and gives it back: the recipe of ZooKeeper's documentation, in which each watches the one before.
async fn acquire(wire: &mut Wire) -> io::Result<Done> {
    let begun = Instant::now();
    let path = format!("{}/n-", lock_path());
    let create = workload::create(path, Bytes::new(), CreateMode::EphemeralSequential);
    let Response::Path(mine) = wire.ask(&create).await?.map_err(refused)? else {
        return Err(io::Error::other("a create without a path"));
    };
    let name = mine.rsplit('/').next().unwrap_or_default().to_owned();
    loop {
        let Response::Names(mut names) =
            wire.ask(&Request::GetChildren { path: lock_path(), watch: false }).await?.map_err(refused)?
        else {
            return Err(io::Error::other("children without names"));
        };
        names.sort();
        match names.iter().position(|other| *other == name) {
            None => return Err(io::Error::other(format!("{mine} is gone"))),
            Some(0) => break,
            Some(place) => {
                let before = format!("{}/{}", lock_path(), names[place - 1]);
                match wire.ask(&Request::Exists { path: before, watch: true }).await? {
                    Ok(_) => drop(wire.event().await?),
                    Err(ErrorCode::NoNode) => {}
                    Err(code) => return Err(refused(code)),
                }
            }
        }
    }
    let ended = Instant::now();
    wire.ask(&Request::Delete { path: mine, version: -1 }).await?.map_err(refused)?;
    Ok(Done { begun, ended, error: 0 })
}
