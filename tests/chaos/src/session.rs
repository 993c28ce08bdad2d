//! A session over either protocol, as the workloads see it: what was done, what was refused, and what nobody knows.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use corral_client::{Client, Consistency, Error, OpResult, ReadRequest, ReadResult, SessionState, Transaction};
use corral_proto::jute::{Create, CreateOp, MultiResult, Request, Response};
use corral_proto::{Acl, CreateMode, ErrorCode, Stat};
use tokio::time::{sleep, timeout};

use crate::journal::{Counts, Journal};
use crate::wire::{Answer, Over, WireSession};

/// One attempt to begin a session over gRPC.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a session is given to close before it is left to expire.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Which door.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// gRPC, by the project's own client.
    Grpc,
    /// ZooKeeper's protocol.
    Wire,
}

impl Protocol {
    /// Both by turns.
    pub fn of(number: u64) -> Protocol {
        if number.is_multiple_of(2) { Protocol::Grpc } else { Protocol::Wire }
    }
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome<T> {
    /// Done.
    Done(T),
    /// Refused: nothing was changed.
    Refused(ErrorCode),
    /// It may have been done or not. Through gRPC only with the end of the session.
    Unknown,
    /// Not done: the session was over.
    Ended,
}

impl<T> Outcome<T> {
    /// The result, if it was done.
    pub fn done(self) -> Option<T> {
        match self {
            Outcome::Done(value) => Some(value),
            _ => None,
        }
    }

    /// The same with another result.
    pub fn map<U>(self, map: impl FnOnce(T) -> U) -> Outcome<U> {
        match self {
            Outcome::Done(value) => Outcome::Done(map(value)),
            Outcome::Refused(code) => Outcome::Refused(code),
            Outcome::Unknown => Outcome::Unknown,
            Outcome::Ended => Outcome::Ended,
        }
    }

    /// Adds it to the counts of a workload.
    pub fn count(&self, journal: &Journal, workload: &'static str) {
        let add = |counts: &mut Counts| match self {
            Outcome::Done(_) => counts.ok += 1,
            Outcome::Refused(_) => counts.refused += 1,
            Outcome::Unknown => counts.unknown += 1,
            Outcome::Ended => counts.not_sent += 1,
        };
        journal.count(workload, add);
    }
}

/// A znode that was created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// Its path, with the number of a sequential one.
    pub path: String,
    /// When.
    pub czxid: i64,
}

/// A write inside a multi.
#[derive(Clone, Debug)]
pub enum Write {
    /// Replace data; the expected version.
    Set(String, String, Option<i32>),
    /// Only if it is there.
    Check(String),
    /// Delete, whatever its version.
    Delete(String),
}

/// One session. Dropping it leaves it to expire where the protocol allows that: a gRPC client closes behind the scenes.
pub enum Session {
    /// gRPC.
    Grpc(Client),
    /// ZooKeeper's protocol.
    Wire(WireSession),
}

impl Session {
    /// Begins a session; tries for ever.
    pub async fn begin(
        protocol: Protocol,
        servers: &[SocketAddr],
        timeout_ms: u64,
        journal: &Arc<Journal>,
        seed: u64,
    ) -> Session {
        let session = match protocol {
            Protocol::Wire => {
                let session = WireSession::begin(servers.to_vec(), timeout_ms, journal.clone(), seed);
                session.established().await;
                Session::Wire(session)
            }
            Protocol::Grpc => {
                let list = servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
                loop {
                    let client = Client::builder(&list)
                        .session_timeout(Duration::from_millis(timeout_ms))
                        .connect_timeout(CONNECT_TIMEOUT)
                        .shuffle_seed(seed)
                        .connect();
                    match client.await {
                        Ok(client) => break Session::Grpc(client),
                        Err(_) => sleep(Duration::from_millis(50)).await,
                    }
                }
            }
        };
        journal.session_begun();
        session
    }

    /// Its number: the owner of its ephemerals.
    pub fn id(&self) -> i64 {
        match self {
            Session::Grpc(client) => client.session_id().0,
            Session::Wire(session) => session.status().id,
        }
    }

    /// Whether it is known here to be over.
    pub fn is_over(&self) -> bool {
        match self {
            Session::Grpc(client) => client.state().is_final(),
            Session::Wire(session) => session.status().over.is_some(),
        }
    }

    /// Whether it ended although nobody closed it.
    pub fn has_expired(&self) -> bool {
        match self {
            Session::Grpc(client) => matches!(client.state(), SessionState::Lost(_)),
            Session::Wire(session) => session.status().over == Some(Over::Expired),
        }
    }

    /// Ends it. `true`: the ensemble said that it is over.
    pub async fn close(&self) -> bool {
        let closing = async {
            match self {
                Session::Grpc(client) => client.close().await.is_ok(),
                Session::Wire(session) => matches!(session.ask(Request::CloseSession).await, Answer::Done { .. }),
            }
        };
        timeout(CLOSE_TIMEOUT, closing).await.unwrap_or(false)
    }

    /// Creates a znode.
    pub async fn create(&self, path: &str, data: &str, mode: CreateMode) -> Outcome<Created> {
        match self {
            Session::Grpc(client) => grpc(client.create(path, data, mode).await)
                .map(|created| Created { path: created.path, czxid: created.stat.czxid }),
            Session::Wire(session) => {
                let create = Create {
                    op: CreateOp::Create2,
                    path: path.to_owned(),
                    data: Some(Bytes::copy_from_slice(data.as_bytes())),
                    acl: Some(Acl::open()),
                    flags: mode.flags(),
                    ttl_ms: -1,
                };
                wire(session.ask(Request::Create(create)).await, |body| match body {
                    Response::PathStat { path, stat } => Some(Created { path, czxid: stat.czxid }),
                    _ => None,
                })
            }
        }
    }

    /// Replaces data.
    pub async fn set(&self, path: &str, data: &str, version: Option<i32>) -> Outcome<Stat> {
        match self {
            Session::Grpc(client) => grpc(client.set(path, data, version).await),
            Session::Wire(session) => {
                let data = Some(Bytes::copy_from_slice(data.as_bytes()));
                let request = Request::SetData { path: path.to_owned(), data, version: version.unwrap_or(-1) };
                wire(session.ask(request).await, |body| match body {
                    Response::Stat(stat) => Some(stat),
                    _ => None,
                })
            }
        }
    }

    /// Deletes a znode, whatever its version.
    pub async fn delete(&self, path: &str) -> Outcome<()> {
        match self {
            Session::Grpc(client) => grpc(client.delete(path, None).await),
            Session::Wire(session) => {
                wire(session.ask(Request::Delete { path: path.to_owned(), version: -1 }).await, |_| Some(()))
            }
        }
    }

    /// Data and Stat, not older than any answer that anybody got before.
    pub async fn get(&self, path: &str) -> Outcome<(String, Stat)> {
        match self {
            Session::Grpc(client) => {
                grpc(client.read(Consistency::Linearizable).get(path).await).map(|node| (text(node.bytes()), node.stat))
            }
            Session::Wire(session) => {
                let read = Request::GetData { path: path.to_owned(), watch: false };
                wire(after_sync(session, read).await, |body| match body {
                    Response::Data { data, stat } => Some((text(&data.unwrap_or_default()), stat)),
                    _ => None,
                })
            }
        }
    }

    /// Stat of a znode, as fresh as [`Session::get`].
    pub async fn exists(&self, path: &str) -> Outcome<Option<Stat>> {
        let found = match self {
            Session::Grpc(client) => return grpc(client.read(Consistency::Linearizable).exists(path).await),
            Session::Wire(session) => {
                let read = Request::Exists { path: path.to_owned(), watch: false };
                wire(after_sync(session, read).await, |body| match body {
                    Response::Stat(stat) => Some(Some(stat)),
                    _ => None,
                })
            }
        };
        if found == Outcome::Refused(ErrorCode::NoNode) { Outcome::Done(None) } else { found }
    }

    /// Names of the children, as fresh as [`Session::get`].
    pub async fn children(&self, path: &str) -> Outcome<Vec<String>> {
        match self {
            Session::Grpc(client) => grpc(client.read(Consistency::Linearizable).get_children(path).await),
            Session::Wire(session) => {
                let read = Request::GetChildren { path: path.to_owned(), watch: false };
                wire(after_sync(session, read).await, |body| match body {
                    Response::Names(names) => Some(names),
                    _ => None,
                })
            }
        }
    }

    /// Data and Stat of several znodes at one state; no fresher than the session.
    pub async fn snapshot(&self, paths: &[String]) -> Outcome<Vec<(String, Stat)>> {
        match self {
            Session::Grpc(client) => {
                let reads = paths.iter().cloned().map(ReadRequest::Get).collect();
                match grpc(client.multi_read(reads).await) {
                    Outcome::Done(results) => {
                        let all: Result<Vec<_>, ErrorCode> = results
                            .into_iter()
                            .map(|result| match result? {
                                ReadResult::Node(node) => Ok((text(node.bytes()), node.stat)),
                                ReadResult::Children(_) => Err(ErrorCode::MarshallingError),
                            })
                            .collect();
                        all.map_or_else(Outcome::Refused, Outcome::Done)
                    }
                    other => other.map(|_| Vec::new()),
                }
            }
            Session::Wire(session) => {
                let get = |path: &String| Request::GetData { path: path.clone(), watch: false };
                let answer = session.ask(Request::MultiRead(paths.iter().map(get).collect())).await;
                wire(answer, |body| match body {
                    Response::Multi(results) => results
                        .into_iter()
                        .map(|result| match result {
                            MultiResult::GetData { data, stat } => Some((text(&data.unwrap_or_default()), stat)),
                            _ => None,
                        })
                        .collect(),
                    _ => None,
                })
            }
        }
    }

    /// All of these writes, or none. The Stats are those of the sets.
    pub async fn multi(&self, writes: &[Write]) -> Outcome<Vec<Stat>> {
        match self {
            Session::Grpc(client) => {
                let transaction = writes.iter().fold(Transaction::new(), |all, write| match write {
                    Write::Set(path, data, version) => all.set(path, data, *version),
                    Write::Check(path) => all.check(path, None),
                    Write::Delete(path) => all.delete(path, None),
                });
                let stat = |result| match result {
                    OpResult::Set(stat) => Some(stat),
                    _ => None,
                };
                grpc(client.multi(transaction).await).map(|results| results.into_iter().filter_map(stat).collect())
            }
            Session::Wire(session) => {
                let request = |write: &Write| match write {
                    Write::Set(path, data, version) => Request::SetData {
                        path: path.clone(),
                        data: Some(Bytes::copy_from_slice(data.as_bytes())),
                        version: version.unwrap_or(-1),
                    },
                    Write::Check(path) => Request::Check { path: path.clone(), version: -1 },
                    Write::Delete(path) => Request::Delete { path: path.clone(), version: -1 },
                };
                let answer = session.ask(Request::Multi(writes.iter().map(request).collect())).await;
                if let Some(code) = refusal(&answer) {
                    return Outcome::Refused(code);
                }
                wire(answer, |body| match body {
                    Response::Multi(results) => Some(
                        results
                            .into_iter()
                            .filter_map(|result| match result {
                                MultiResult::SetData(stat) => Some(stat),
                                _ => None,
                            })
                            .collect(),
                    ),
                    _ => None,
                })
            }
        }
    }
}

/// Data here is text that the workloads wrote.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What the client library says, as an outcome.
pub fn grpc<T>(result: Result<T, Error>) -> Outcome<T> {
    match result {
        Ok(value) => Outcome::Done(value),
        Err(error) if error.outcome_unknown() => Outcome::Unknown,
        Err(error) if error.is_session_end() => Outcome::Ended,
        Err(error) => Outcome::Refused(error.code().unwrap_or(ErrorCode::SystemError)),
    }
}

/// Why nothing of a multi was done: in ZooKeeper's protocol the reply itself is no error then. Operations that were not
/// tried, or would have been possible, say that.
fn refusal(answer: &Answer) -> Option<ErrorCode> {
    let Answer::Done { body: Response::Multi(results), .. } = answer else { return None };
    let codes = results.iter().filter_map(|result| match result {
        MultiResult::Error(code) => Some(*code),
        _ => None,
    });
    let reason = codes.max_by_key(|code| *code != 0 && *code != ErrorCode::RuntimeInconsistency.code())?;
    Some(ErrorCode::from_code(reason).unwrap_or(ErrorCode::SystemError))
}

/// Reads after a sync, on one connection.
async fn after_sync(session: &WireSession, read: Request) -> Answer {
    let mut answers = session.ask_all(vec![Request::Sync { path: "/".to_owned() }, read]).await;
    match (answers.pop(), answers.pop()) {
        (Some(read), Some(Answer::Done { .. })) => read,
        // Without its sync a read proves nothing.
        (_, Some(sync)) => sync,
        _ => Answer::Ended,
    }
}

fn wire<T>(answer: Answer, body: impl FnOnce(Response) -> Option<T>) -> Outcome<T> {
    match answer {
        Answer::Done { body: response, .. } => {
            body(response).map_or(Outcome::Refused(ErrorCode::MarshallingError), Outcome::Done)
        }
        Answer::Refused(code) => Outcome::Refused(code),
        Answer::Unknown => Outcome::Unknown,
        Answer::Ended => Outcome::Ended,
    }
}
