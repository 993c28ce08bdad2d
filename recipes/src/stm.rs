//! Transactions over several znodes, written as ordinary code: read, think, write; again if something changed.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use corral_client::{Client, Consistency, Data, ErrorCode, ReadRequest, ReadResult, ambient, path as paths};
use parking_lot::Mutex;

use crate::decide::stm::{Attempt, NODES_MAX, Read, Write};
use crate::error::Error;

/// How often a transaction is tried before it is given up.
pub const ATTEMPTS_MAX: u32 = 200;
/// Longest pause between attempts, drawn at random up to it and shorter at first.
const PAUSE_MAX: Duration = Duration::from_millis(64);

/// Runs transactions.
///
/// The body reads and writes through its [`Stm`] handle. All that it reads is of *one* state of the tree (a read that would
/// not be ends the attempt), and its writes are committed by one request that is refused if anything that was read has changed
/// since. Then the body runs again. So a body that ran to its end and was committed ran as if alone. Bodies must not do
/// anything that cannot be repeated.
///
/// What is checked at the commit is the *version* of a znode, for that is what a transaction can check. A znode that was
/// deleted, created again and changed exactly as often as before, all between the last read and the commit, is not
/// noticed. (During the body creations are told apart.)
///
/// ```no_run
/// # use corral_client::Client;
/// # use corral_recipes::{Error, transact};
/// # async fn example(client: Client) -> Result<(), Error> {
/// // Moves one from here to there, or says that there is none.
/// let moved = transact(&client, |tx| async move {
///     let number = |data: Option<Vec<u8>>| String::from_utf8(data.unwrap_or_default()).ok()?.parse::<u64>().ok();
///     let (from, to) = (number(tx.get("/from").await?), number(tx.get("/to").await?));
///     let (Some(from @ 1..), Some(to)) = (from, to) else { return Ok(false) };
///     tx.put("/from", (from - 1).to_string()).await?;
///     tx.put("/to", (to + 1).to_string()).await?;
///     Ok(true)
/// })
/// .await?;
/// # Ok(())
/// # }
/// ```
///
/// Dropping the future leaves it open whether the last attempt was committed; it is never committed twice.
///
/// # Errors
/// What the body returned, except [`Error::Conflict`], which means "again". [`Error::Contended`]: after 200 attempts.
/// [`Error::Client`], among others when the session ends; [`outcome_unknown`](corral_client::Error::outcome_unknown) says
/// whether the commit may have been done.
pub async fn transact<T, F>(client: &Client, mut body: impl FnMut(Stm) -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut last_path = String::new();
    for attempt in 0..ATTEMPTS_MAX {
        if attempt > 0 {
            let most = u64::try_from(PAUSE_MAX.as_millis()).unwrap_or(1).min(1 << attempt.min(16));
            ambient::sleep(Duration::from_millis(ambient::random() % (most + 1))).await;
        }
        let stm = Stm { client: client.clone(), inner: Arc::default() };
        let result = body(stm.clone()).await;
        let inner = stm.inner.lock().clone();
        let value = match result {
            Err(Error::Conflict { path }) => {
                last_path = path;
                continue;
            }
            // It may have swallowed the conflict, and gone on with what is not of one state.
            _ if inner.conflict.is_some() => {
                last_path = inner.conflict.unwrap_or_default();
                continue;
            }
            other => other?,
        };
        if inner.attempt.writes.is_empty() {
            // All was of one state: nothing to check.
            return Ok(value);
        }
        match client.multi(inner.attempt.commit()).await {
            Ok(_) => return Ok(value),
            Err(corral_client::Error::Multi(multi))
                if matches!(multi.code, ErrorCode::BadVersion | ErrorCode::NoNode | ErrorCode::NodeExists) =>
            {
                last_path = multi.path;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::Contended { path: last_path, attempts: ATTEMPTS_MAX })
}

/// What a body reads and writes through. Clones are the same attempt.
#[derive(Clone, Debug)]
pub struct Stm {
    client: Client,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    attempt: Attempt,
    /// Where something changed.
    conflict: Option<String>,
}

impl Stm {
    /// The data of a znode, null read as empty, with what this body wrote to it; `None`: there is none.
    ///
    /// # Errors
    /// [`Error::Conflict`]: something that was read before has changed; to be returned. [`Error::BadArgument`]: more than 500
    /// znodes. [`Error::Client`].
    pub async fn get(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        self.read(path).await?;
        let value = self.inner.lock().attempt.value(path).flatten();
        Ok(value.map(|data| data.unwrap_or_default().to_vec()))
    }

    /// Writes a znode, and creates it (persistent, with an open ACL) if it is not there.
    ///
    /// # Errors
    /// As [`Stm::get`]; `NoNode` if its parent is not there, and not written by this body either.
    pub async fn put(&self, path: &str, data: impl Into<Data>) -> Result<(), Error> {
        self.read(path).await?;
        let is_there = matches!(self.inner.lock().attempt.reads.get(path), Some(Read::Present { .. }));
        let parent = paths::parent(path).unwrap_or("/");
        if !is_there && parent != "/" {
            self.read(parent).await?;
            if !self.inner.lock().attempt.will_exist(parent) {
                let (op, path, code) = ("put", path.to_owned(), ErrorCode::NoNode);
                return Err(corral_client::Error::Refused { op, path, code }.into());
            }
        }
        let data: Option<Bytes> = data.into().0;
        self.inner.lock().attempt.writes.insert(path.to_owned(), Write::Put(data));
        Ok(())
    }

    /// Deletes a znode. `false`: there is none.
    ///
    /// # Errors
    /// As [`Stm::get`]. If it has children that this body does not delete, the commit is refused with `NotEmpty`.
    pub async fn delete(&self, path: &str) -> Result<bool, Error> {
        self.read(path).await?;
        let mut inner = self.inner.lock();
        let was_there = matches!(inner.attempt.value(path), Some(Some(_)));
        match inner.attempt.reads.get(path) {
            Some(Read::Present { .. }) => drop(inner.attempt.writes.insert(path.to_owned(), Write::Delete)),
            // Only written by this body.
            _ => drop(inner.attempt.writes.remove(path)),
        }
        Ok(was_there)
    }

    /// Reads a znode that was not read before, together with all that were: so all of it is of one state.
    async fn read(&self, path: &str) -> Result<(), Error> {
        let before: Vec<(String, Read)> = {
            let inner = self.inner.lock();
            if let Some(path) = &inner.conflict {
                return Err(Error::Conflict { path: path.clone() });
            }
            if inner.attempt.reads.contains_key(path) {
                return Ok(());
            }
            inner.attempt.reads.iter().map(|(path, read)| (path.clone(), read.clone())).collect()
        };
        if before.len() >= NODES_MAX {
            let reason = format!("a transaction over more than {NODES_MAX} znodes");
            return Err(Error::BadArgument { path: path.to_owned(), reason });
        }
        let all: Vec<&str> = before.iter().map(|(path, _)| path.as_str()).chain([path]).collect();
        // With what is above each of them: where one is missing, so may be its parents.
        let mut asked = BTreeSet::new();
        for path in &all {
            let mut above = Some(*path);
            while let Some(path) = above {
                asked.insert(path);
                above = paths::parent(path);
            }
        }
        let reads = asked.iter().map(|path| ReadRequest::Get((*path).to_owned())).collect();
        let results = self.client.read(Consistency::Linearizable).multi_read(reads).await?;
        let mut nodes = std::collections::BTreeMap::new();
        for (path, result) in asked.iter().zip(results) {
            match result {
                Ok(ReadResult::Node(node)) => drop(nodes.insert(*path, node)),
                Err(ErrorCode::NoNode) => {}
                // Those above need not be ours to read.
                Err(code) if all.contains(path) => {
                    return Err(corral_client::Error::Refused { op: "get", path: (*path).to_owned(), code }.into());
                }
                Ok(ReadResult::Children(_)) | Err(_) => {}
            }
        }
        let look = |path: &str| match nodes.get(path) {
            Some(node) => Read::Present {
                data: node.data.clone(),
                version: node.stat.version,
                czxid: node.stat.czxid,
                mzxid: node.stat.mzxid,
            },
            None => {
                let mut missing = path;
                while let Some(parent) = paths::parent(missing) {
                    if parent == "/" || nodes.contains_key(parent) {
                        break;
                    }
                    missing = parent;
                }
                Read::Absent { missing: missing.to_owned() }
            }
        };
        let mut inner = self.inner.lock();
        if let Some((changed, _)) = before.iter().find(|(path, read)| !read.is_same(&look(path))) {
            inner.conflict = Some(changed.clone());
            return Err(Error::Conflict { path: changed.clone() });
        }
        let read = look(path);
        inner.attempt.reads.insert(path.to_owned(), read);
        Ok(())
    }
}
