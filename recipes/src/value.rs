//! Values that many share: read, replaced, counted.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use corral_client::{
    Acl, Client, Consistency, CreateMode, CreateOptions, Data, ErrorCode, OneshotWatch, Stat, Zxid, ambient,
    path as paths,
};
use tokio::sync::Mutex as Turn;

use crate::contender::create_in;
use crate::decide::counter::Encoding;
use crate::error::Error;
use crate::lock::Mutex;

/// How often a change is tried against others before it is given up.
pub const ATTEMPTS_MAX: u32 = 1_000;
/// After so many, pauses are made between them, or the lock is taken if there is one.
const ATTEMPTS_EAGER: u32 = 4;
/// Longest pause, drawn at random up to it.
const PAUSE_MAX: Duration = Duration::from_millis(64);

/// A value at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The value; `None` for null.
    pub data: Option<Bytes>,
    /// Its version: how often it was replaced since it was created.
    pub version: i32,
    /// When it was created.
    pub created: Zxid,
    /// When it was last replaced.
    pub modified: Zxid,
}

impl Versioned {
    fn new(data: Option<Bytes>, stat: &Stat) -> Versioned {
        let (created, modified) = (Zxid::from_i64(stat.czxid), Zxid::from_i64(stat.mzxid));
        Versioned { data, version: stat.version, created, modified }
    }

    /// The data, null read as empty.
    pub fn bytes(&self) -> &[u8] {
        self.data.as_deref().unwrap_or_default()
    }
}

/// A value in one znode, with a version: Curator's `SharedValue`.
///
/// ```no_run
/// # use corral_client::Client;
/// # use corral_recipes::SharedValue;
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// let value = SharedValue::new(&client, "/settings/mode");
/// let before = value.get().await?;
/// if value.try_set(before.as_ref(), "safe").await?.is_none() {
///     println!("somebody else was faster");
/// }
/// let mut changes = value.changes();
/// while let Some(now) = changes.next().await? {
///     println!("version {}", now.version);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SharedValue {
    client: Client,
    path: String,
    acl: Vec<Acl>,
}

impl SharedValue {
    /// The value at this path.
    pub fn new(client: &Client, path: impl Into<String>) -> SharedValue {
        SharedValue { client: client.clone(), path: path.into(), acl: Acl::open() }
    }

    /// The ACL if it is we who create it. Default: open.
    pub fn acl(mut self, acl: Vec<Acl>) -> SharedValue {
        self.acl = acl;
        self
    }

    /// The value now, not older than any answer that anybody got before the call; `None`: there is none.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn get(&self) -> Result<Option<Versioned>, Error> {
        match self.client.read(Consistency::Linearizable).get(&self.path).await {
            Ok(node) => Ok(Some(Versioned::new(node.data, &node.stat))),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Replaces the value, whatever it is.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn set(&self, data: impl Into<Data>) -> Result<Versioned, Error> {
        let data = data.into();
        loop {
            match self.client.set(&self.path, data.clone(), None).await {
                Ok(stat) => return Ok(Versioned::new(data.0, &stat)),
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(created) = self.try_set(None, data.clone()).await? {
                return Ok(created);
            }
        }
    }

    /// Replaces the value if it is still the version of `before` (`None`: there is none). `None`: it is another by now.
    ///
    /// Versions begin anew when a value is deleted and created again; who deletes values must not rely on them.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn try_set(&self, before: Option<&Versioned>, data: impl Into<Data>) -> Result<Option<Versioned>, Error> {
        let data = data.into();
        let result = match before {
            Some(before) => self.client.set(&self.path, data.clone(), Some(before.version)).await,
            None => {
                let directory = paths::parent(&self.path).unwrap_or("/");
                let options = CreateOptions::new(CreateMode::Persistent).acl(self.acl.clone());
                create_in(&self.client, directory, &self.path, data.clone(), options).await.map(|created| created.stat)
            }
        };
        match result {
            Ok(stat) => Ok(Some(Versioned::new(data.0, &stat))),
            Err(error)
                if matches!(error.code(), Some(ErrorCode::BadVersion | ErrorCode::NoNode | ErrorCode::NodeExists)) =>
            {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The value now and whenever it changes, a deletion (`None`) and a creation included.
    pub fn changes(&self) -> ValueChanges {
        ValueChanges { value: self.clone(), shown: None, change: None }
    }
}

/// The changes of a value, in order. One that is followed by another before it is seen may be left out; the latest never is.
#[derive(Debug)]
pub struct ValueChanges {
    value: SharedValue,
    shown: Option<Option<Versioned>>,
    change: Option<OneshotWatch>,
}

impl ValueChanges {
    /// The value at the first call; then waits until it differs from what was given last. A value that was deleted and
    /// created again differs, though it has the same version. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Client`], among others when the session ends.
    pub async fn next(&mut self) -> Result<Option<Versioned>, Error> {
        loop {
            if let Some(change) = &mut self.change {
                change.await?;
                self.change = None;
            }
            let (client, path) = (&self.value.client, &self.value.path);
            let (now, change) = match client.get_and_watch(path).await {
                Ok((node, change)) => (Some(Versioned::new(node.data, &node.stat)), change),
                Err(error) if error.code() == Some(ErrorCode::NoNode) => match client.exists_and_watch(path).await? {
                    (None, change) => (None, change),
                    (Some(_), _) => continue,
                },
                Err(error) => return Err(error.into()),
            };
            self.change = Some(change);
            if self.shown.as_ref() != Some(&now) {
                self.shown = Some(now.clone());
                return Ok(now);
            }
        }
    }
}

/// A number that many count with: each change is done exactly once.
///
/// A change reads the number and replaces it if it is still the same. Should the connection break in between, the session
/// sends the write again under its number, and gets the result of the first; so it is never done twice, where clients
/// without such numbers see "version does not match" of their own write and add again. Only when the *session* ends
/// before the answer came is it unknown whether the change was done
/// ([`outcome_unknown`](corral_client::Error::outcome_unknown)); that is reported, and not tried again.
///
/// Curator's `DistributedAtomicLong`, `DistributedAtomicInteger`, `SharedCount` and kazoo's `Counter` on the same path count
/// along, in their [`Encoding`].
///
/// ```no_run
/// # use corral_client::Client;
/// # use corral_recipes::Counter;
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// let visits = Counter::new(&client, "/counters/visits");
/// let (before, after) = visits.add(1).await?;
/// assert_eq!(after, before + 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Counter {
    value: SharedValue,
    encoding: Encoding,
    lock: Option<Mutex>,
}

impl Counter {
    /// The counter at this path; 0 if it is not there.
    pub fn new(client: &Client, path: impl Into<String>) -> Counter {
        Counter { value: SharedValue::new(client, path), encoding: Encoding::default(), lock: None }
    }

    /// How the number is written. Default: as Curator's `DistributedAtomicLong`.
    pub fn encoding(mut self, encoding: Encoding) -> Counter {
        self.encoding = encoding;
        self
    }

    /// The ACL if it is we who create it. Default: open.
    pub fn acl(mut self, acl: Vec<Acl>) -> Counter {
        self.value = self.value.acl(acl);
        self
    }

    /// A lock that is taken when others were faster several times, so that under contention each gets its turn. Default:
    /// none; then there are pauses of random length.
    pub fn lock(mut self, lock: Mutex) -> Counter {
        self.lock = Some(lock);
        self
    }

    /// The number now, not older than any answer that anybody got before the call.
    ///
    /// # Errors
    /// [`Error::Malformed`]: something else is there. [`Error::Client`].
    pub async fn get(&self) -> Result<i64, Error> {
        self.parse(self.value.get().await?.as_ref())
    }

    fn parse(&self, value: Option<&Versioned>) -> Result<i64, Error> {
        self.encoding.parse(value.map(Versioned::bytes).unwrap_or_default()).ok_or_else(|| Error::Malformed {
            path: self.value.path.clone(),
            reason: format!("not a number as {:?} writes it", self.encoding),
        })
    }

    fn encode(&self, number: Option<i64>) -> Result<Vec<u8>, Error> {
        number.and_then(|number| self.encoding.encode(number)).ok_or_else(|| Error::BadArgument {
            path: self.value.path.clone(),
            reason: format!("the number would leave the range of {:?}; it was not changed", self.encoding),
        })
    }

    /// Adds, and gives the number before and after. A negative `delta` subtracts. Dropping the future leaves it open whether
    /// it was done; it is never done twice.
    ///
    /// # Errors
    /// [`Error::BadArgument`]: out of range, and nothing was changed. [`Error::Contended`]; [`Error::Malformed`];
    /// [`Error::Client`].
    pub async fn add(&self, delta: i64) -> Result<(i64, i64), Error> {
        self.update(|before| before.checked_add(delta)).await
    }

    /// Replaces the number by what `change` makes of it, and gives it before and after. `change` may be called several times;
    /// `None` from it: out of range.
    ///
    /// # Errors
    /// As [`Counter::add`].
    pub async fn update(&self, change: impl Fn(i64) -> Option<i64>) -> Result<(i64, i64), Error> {
        let mut turn = None;
        for attempt in 0..ATTEMPTS_MAX {
            let now = self.value.get().await?;
            let before = self.parse(now.as_ref())?;
            let after = change(before);
            let data = self.encode(after)?;
            if let (Some(_), Some(after)) = (self.value.try_set(now.as_ref(), data).await?, after) {
                drop(turn);
                return Ok((before, after));
            }
            match &self.lock {
                Some(lock) if attempt == ATTEMPTS_EAGER => turn = Some(lock.acquire().await?),
                None if attempt >= ATTEMPTS_EAGER => {
                    let most = u64::try_from(PAUSE_MAX.as_millis()).unwrap_or(1);
                    ambient::sleep(Duration::from_millis(1 + ambient::random() % most)).await;
                }
                _ => {}
            }
        }
        Err(Error::Contended { path: self.value.path.clone(), attempts: ATTEMPTS_MAX })
    }

    /// Replaces the number, whatever it is.
    ///
    /// # Errors
    /// As [`Counter::add`].
    pub async fn set(&self, number: i64) -> Result<(), Error> {
        self.value.set(self.encode(Some(number))?).await.map(drop)
    }

    /// Replaces the number if it is `before`. `false`: it is another.
    ///
    /// # Errors
    /// As [`Counter::add`].
    pub async fn compare_and_set(&self, before: i64, after: i64) -> Result<bool, Error> {
        let data = self.encode(Some(after))?;
        for _ in 0..ATTEMPTS_MAX {
            let now = self.value.get().await?;
            if self.parse(now.as_ref())? != before {
                return Ok(false);
            }
            if self.value.try_set(now.as_ref(), data.clone()).await?.is_some() {
                return Ok(true);
            }
        }
        Err(Error::Contended { path: self.value.path.clone(), attempts: ATTEMPTS_MAX })
    }
}

/// Numbers that are given out once: a block at a time is taken from a [`Counter`], and given out without asking anybody.
///
/// No number is ever given out twice, whatever crashes; those of a block that was not used up are left out. Of one process
/// they grow; between processes only whole blocks are in order.
///
/// ```no_run
/// # use corral_client::Client;
/// # use corral_recipes::{Counter, IdBlocks};
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// let ids = IdBlocks::new(Counter::new(&client, "/ids/orders"), 1_000)?;
/// let (one, other) = (ids.next().await?, ids.next().await?);
/// assert!(one < other);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct IdBlocks {
    counter: Counter,
    size: i64,
    block: Turn<Option<RangeInclusive<i64>>>,
}

impl IdBlocks {
    /// Numbers of this counter, `size` at a time.
    ///
    /// # Errors
    /// [`Error::BadArgument`]: a size of zero.
    pub fn new(counter: Counter, size: u32) -> Result<IdBlocks, Error> {
        if size == 0 {
            let reason = "a block of no numbers never has one".to_owned();
            return Err(Error::BadArgument { path: counter.value.path.clone(), reason });
        }
        Ok(IdBlocks { counter, size: i64::from(size), block: Turn::new(None) })
    }

    /// The next number: from 1 on, for a counter that was not there. Dropping the future may leave a block out.
    ///
    /// # Errors
    /// As [`Counter::add`].
    pub async fn next(&self) -> Result<i64, Error> {
        let mut block = self.block.lock().await;
        if let Some(next) = block.as_mut().and_then(Iterator::next) {
            return Ok(next);
        }
        let (before, after) = self.counter.add(self.size).await?;
        let mut fresh = before + 1..=after;
        let next = fresh.next().unwrap_or(after);
        *block = Some(fresh);
        Ok(next)
    }
}
