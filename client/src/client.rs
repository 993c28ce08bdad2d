//! The client as programs see it: one method per operation, each of which takes its place in the session's order when
//! it is called.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use corral_proto::{Acl, ErrorCode, Id, ServerId, SessionId, Stat, Zxid, path as paths};

use crate::config::Builder;
use crate::error::{Error, MultiError};
use crate::feeds::WatchMode;
use crate::lease::{Lease, SessionEvents, SessionState};
use crate::op::{
    ANY_VERSION, Answer, Consistency, CreateOptions, Created, Data, MultiOp, Node, Op, OpResult, ReadRequest,
    ReadResult, SubtreePage, Transaction,
};
use crate::response::{Call, Response};
use crate::shared::{Handle, Shared};
use crate::watcher::{Feed, FeedOptions, OneshotWatch, Watcher};

/// A session with an ensemble. Cheap to clone; all clones are the same session.
///
/// When the last clone is dropped without [`close`](Client::close), the requests already made are still carried out, and
/// then the session is closed in the background: its ephemerals go at once, and not only after the session timeout.
#[derive(Clone)]
pub struct Client {
    handle: Arc<Handle>,
}

impl Client {
    /// Connects with default settings to `host:port[,host:port...][/chroot]`, and returns once a session is established.
    ///
    /// # Errors
    /// [`Error::ConnectString`]; [`Error::NoConnection`] after ten seconds without success.
    pub async fn connect(connect_string: &str) -> Result<Client, Error> {
        Client::builder(connect_string).connect().await
    }

    /// Settings for a client, to be ended with [`Builder::connect`].
    pub fn builder(connect_string: impl Into<String>) -> Builder {
        Builder::new(connect_string.into())
    }

    pub(crate) fn from_shared(shared: Arc<Shared>) -> Client {
        Client { handle: Arc::new(Handle { shared }) }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// Creates a znode. With a sequential mode the name gets a number, and the path may end in `/`.
    ///
    /// # Errors
    /// `NodeExists`; `NoNode` (no parent); `NoChildrenForEphemerals`; `NoAuth`; `InvalidAcl`.
    pub fn create(&self, path: &str, data: impl Into<Data>, options: impl Into<CreateOptions>) -> Response<Created> {
        let options = options.into();
        if let Err(error) = check_create("create", path, &options) {
            return Response::failed(error);
        }
        let path = self.shared().hosts.full_path(path);
        self.call(Op::Create { path, data: data.into().0, options }, |call, _, zxid, answer| match answer {
            Answer::Created { path, stat } => Ok(Created { path: call.user_path(&path), stat, zxid }),
            other => Err(call.unexpected(&other)),
        })
    }

    /// Deletes a znode without children. `version` `None`: whatever its version.
    ///
    /// # Errors
    /// `NoNode`; `BadVersion`; `NotEmpty`; `NoAuth`.
    pub fn delete(&self, path: &str, version: Option<i32>) -> Response<()> {
        self.on_path("delete", path, |path| Op::Delete { path, version: version.unwrap_or(ANY_VERSION) }, done)
    }

    /// Replaces the data of a znode. `version` `None`: whatever its version.
    ///
    /// # Errors
    /// `NoNode`; `BadVersion`; `NoAuth`.
    pub fn set(&self, path: &str, data: impl Into<Data>, version: Option<i32>) -> Response<Stat> {
        let data = data.into().0;
        self.on_path("set", path, |path| Op::SetData { path, data, version: version.unwrap_or(ANY_VERSION) }, stat)
    }

    /// Replaces the ACL of a znode. `version` is the ACL's own (`stat.aversion`); `None`: any.
    ///
    /// # Errors
    /// `NoNode`; `BadVersion`; `NoAuth`; `InvalidAcl`.
    pub fn set_acl(&self, path: &str, acl: Vec<Acl>, version: Option<i32>) -> Response<Stat> {
        self.on_path("set acl", path, |path| Op::SetAcl { path, acl, version: version.unwrap_or(ANY_VERSION) }, stat)
    }

    /// Does all operations of the transaction under one zxid, or none of them.
    ///
    /// # Errors
    /// [`Error::Multi`] says which operation was refused, and why.
    pub fn multi(&self, transaction: Transaction) -> Response<Vec<OpResult>> {
        let mut ops = transaction.ops;
        for op in &mut ops {
            let checked = match &*op {
                MultiOp::Create { path, options, .. } => check_create("multi: create", path, options),
                other => check_path("multi", other.path()),
            };
            if let Err(error) = checked {
                return Response::failed(error);
            }
            let full = self.shared().hosts.full_path(op.path());
            *op.path_mut() = full;
        }
        self.call(Op::Multi(ops), multi_results)
    }

    /// Reads at this consistency: `client.read(Consistency::Linearizable).get("/a")`. The read methods of the client
    /// itself are `Local`.
    pub fn read(&self, consistency: Consistency) -> Reads<'_> {
        Reads { client: self, consistency }
    }

    /// The Stat of a znode; `None` if there is none.
    ///
    /// # Errors
    /// `NoAuth`.
    pub fn exists(&self, path: &str) -> Response<Option<Stat>> {
        self.read(Consistency::Local).exists(path)
    }

    /// Data and Stat of a znode.
    ///
    /// # Errors
    /// `NoNode`; `NoAuth`.
    pub fn get(&self, path: &str) -> Response<Node> {
        self.read(Consistency::Local).get(path)
    }

    /// The names of the children, ascending.
    ///
    /// # Errors
    /// `NoNode`; `NoAuth`.
    pub fn get_children(&self, path: &str) -> Response<Vec<String>> {
        self.read(Consistency::Local).get_children(path)
    }

    /// The names of the children, ascending, and the Stat of their parent, as of one state.
    ///
    /// # Errors
    /// `NoNode`; `NoAuth`.
    pub fn get_children_with_stat(&self, path: &str) -> Response<(Vec<String>, Stat)> {
        self.read(Consistency::Local).get_children_with_stat(path)
    }

    /// As [`exists`](Client::exists), with a watch that ends with the znode's next creation, deletion or new data.
    ///
    /// # Errors
    /// `NoAuth`.
    pub fn exists_and_watch(&self, path: &str) -> Response<(Option<Stat>, OneshotWatch)> {
        self.read(Consistency::Local).exists_and_watch(path)
    }

    /// As [`get`](Client::get), with a watch that ends with the znode's deletion or new data.
    ///
    /// # Errors
    /// `NoNode` (then nothing is watched); `NoAuth`.
    pub fn get_and_watch(&self, path: &str) -> Response<(Node, OneshotWatch)> {
        self.read(Consistency::Local).get_and_watch(path)
    }

    /// As [`get_children`](Client::get_children), with a watch that ends when a child comes or goes, or with the znode's
    /// deletion.
    ///
    /// # Errors
    /// `NoNode` (then nothing is watched); `NoAuth`.
    pub fn children_and_watch(&self, path: &str) -> Response<(Vec<String>, Stat, OneshotWatch)> {
        self.read(Consistency::Local).children_and_watch(path)
    }

    /// The ACL of a znode, digests masked for those without ADMIN, and its Stat.
    ///
    /// # Errors
    /// `NoNode`; `NoAuth`.
    pub fn get_acl(&self, path: &str) -> Response<(Vec<Acl>, Stat)> {
        self.read(Consistency::Local).get_acl(path)
    }

    /// Several reads at one state, each with its own result.
    ///
    /// # Errors
    /// Only for the request as a whole; what one read was refused for is in its result.
    pub fn multi_read(&self, reads: Vec<ReadRequest>) -> Response<Vec<Result<ReadResult, ErrorCode>>> {
        self.read(Consistency::Local).multi_read(reads)
    }

    /// The paths of this session's ephemerals that start with `prefix`, ascending. A plain prefix of the text: `/a` finds
    /// `/ab` too.
    ///
    /// # Errors
    /// Those that end the session.
    pub fn get_ephemerals(&self, prefix: &str) -> Response<Vec<String>> {
        self.read(Consistency::Local).get_ephemerals(prefix)
    }

    /// How many znodes are below this one, at any depth.
    ///
    /// # Errors
    /// `NoNode`; `NoAuth`.
    pub fn count_descendants(&self, path: &str) -> Response<u64> {
        self.read(Consistency::Local).count_descendants(path)
    }

    /// Answered once this session's server has applied all that was committed anywhere before the call: reads after it
    /// see that. The path is checked, and otherwise without meaning.
    ///
    /// # Errors
    /// Those that end the session.
    pub fn sync(&self, path: &str) -> Response<()> {
        self.on_path("sync", path, |path| Op::Sync { path }, done)
    }

    /// A watch that goes on until it is dropped, from the state on that answers: on one znode and its list of children, on a
    /// znode and its children, or on a whole subtree. The znode need not exist. It misses nothing over reconnects: see
    /// [`Watcher`].
    ///
    /// # Errors
    /// `QuotaExceeded` with more than 10,000 of them in one session; those that end the session.
    pub fn watch(&self, path: &str, mode: WatchMode) -> Response<Watcher> {
        self.subscribe(path, mode.into(), |mut call, op, zxid, answer| match answer {
            Answer::Done => Ok(Watcher::new(call.take_feed(op, zxid))),
            other => Err(call.unexpected(&other)),
        })
    }

    /// As [`watch`](Client::watch), from behind a zxid: of a read, of a write, or a [`position`](Watcher::position) of an
    /// earlier watch, of this session or another. What happened since then comes first.
    ///
    /// ```no_run
    /// # use corral_client::{Client, WatchEvent, WatchMode};
    /// # async fn example(client: Client) -> Result<(), corral_client::Error> {
    /// let config = client.get("/config").await?;
    /// // Nothing that happens after the read is missed, however late the watch begins.
    /// let mut watcher = client.watch_from("/config", WatchMode::Node, config.zxid).await?;
    /// while let Some(event) = watcher.next().await {
    ///     match event {
    ///         WatchEvent::Node(event) => println!("{:?} {}", event.kind, event.path),
    ///         WatchEvent::Gap(gap) => println!("{gap}"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `BadArguments` for a zxid that the ensemble has not reached (it may be of another one); else as `watch`.
    pub fn watch_from(&self, path: &str, mode: WatchMode, from: Zxid) -> Response<Watcher> {
        self.subscribe(path, FeedOptions::from(mode).after(from), |mut call, op, zxid, answer| match answer {
            Answer::Done => Ok(Watcher::new(call.take_feed(op, zxid))),
            other => Err(call.unexpected(&other)),
        })
    }

    /// Follows the change feed: as [`watch`](Client::watch), entry by entry, with bookmarks, and with what znodes hold if
    /// asked for. See [`Feed`].
    ///
    /// ```no_run
    /// # use corral_client::{Client, FeedItem, FeedOptions, WatchMode};
    /// # async fn example(client: Client) -> Result<(), corral_client::Error> {
    /// let options = FeedOptions::from(WatchMode::Recursive).with_nodes();
    /// let mut feed = client.feed("/app", options).await?;
    /// while let Some(item) = feed.next().await {
    ///     match item {
    ///         FeedItem::Changes(changes) => println!("{}: {} events", changes.zxid, changes.events.len()),
    ///         FeedItem::Bookmark(zxid) => println!("nothing is missing up to {zxid}"),
    ///         FeedItem::Gap(gap) => println!("{gap}"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`watch_from`](Client::watch_from).
    pub fn feed(&self, path: &str, options: impl Into<FeedOptions>) -> Response<Feed> {
        self.subscribe(path, options.into(), |mut call, op, zxid, answer| match answer {
            Answer::Done => Ok(call.take_feed(op, zxid)),
            other => Err(call.unexpected(&other)),
        })
    }

    fn subscribe<T>(&self, path: &str, options: FeedOptions, map: Map<T>) -> Response<T> {
        if let Err(error) = check_path("watch", path) {
            return Response::failed(error);
        }
        let FeedOptions { mode, after, with_nodes } = options;
        let path = self.shared().hosts.full_path(path);
        // The session gives the name.
        self.shared().submit_feed(Op::Subscribe { name: 0, path, mode, with_nodes, after }, map)
    }

    /// A page of a subtree: at most a thousand znodes with their data, parents before their children, and about a megabyte. `after`
    /// is what the page before gave as [`next`](SubtreePage::next); `None` begins at the top. Znodes that this session's
    /// identities may not read are left out. Each page is of one state; a whole subtree of one state is what a
    /// [`Cache`](crate::cache::Cache) holds.
    ///
    /// ```no_run
    /// # use corral_client::{Client, WatchMode};
    /// # async fn example(client: Client) -> Result<(), corral_client::Error> {
    /// let mut next = None;
    /// loop {
    ///     let page = client.subtree("/app", WatchMode::Recursive, next.as_deref()).await?;
    ///     for node in &page.nodes {
    ///         println!("{} {}", node.path, node.stat.data_length);
    ///     }
    ///     next = page.next;
    ///     if next.is_none() {
    ///         break;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `NoAuth`: the top may not be read. If it does not exist, the page is empty.
    pub fn subtree(&self, path: &str, depth: WatchMode, after: Option<&str>) -> Response<SubtreePage> {
        self.subtree_page(path, depth, after.unwrap_or_default(), None)
    }

    /// A page of a subtree. Paths are the user's.
    pub(crate) fn subtree_page(
        &self,
        path: &str,
        depth: WatchMode,
        after: &str,
        newer_than: Option<Zxid>,
    ) -> Response<SubtreePage> {
        if let Err(error) = check_path("get subtree", path) {
            return Response::failed(error);
        }
        let hosts = &self.shared().hosts;
        let after = if after.is_empty() { String::new() } else { hosts.full_path(after) };
        self.call(Op::GetSubtree { path: hosts.full_path(path), depth, after, newer_than }, |call, _, _, answer| {
            match answer {
                Answer::Subtree(mut page) => {
                    for node in &mut page.nodes {
                        node.path = call.user_path(&node.path);
                    }
                    page.next = page.next.map(|next| call.user_path(&next));
                    Ok(page)
                }
                other => Err(call.unexpected(&other)),
            }
        })
    }

    /// The identities of this session's connection.
    ///
    /// # Errors
    /// Those that end the session.
    pub fn whoami(&self) -> Response<Vec<Id>> {
        self.call(Op::WhoAmI, |call, _, _, answer| match answer {
            Answer::Ids(ids) => Ok(ids),
            other => Err(call.unexpected(&other)),
        })
    }

    /// Proves an identity (`digest`, `user:password`), for all later requests, and again on every new connection of this
    /// session. A refusal costs the connection, as in ZooKeeper, but not the session.
    ///
    /// # Errors
    /// `AuthFailed`.
    pub fn add_auth(&self, scheme: &str, auth: impl Into<Bytes>) -> Response<()> {
        self.call(Op::AddAuth { scheme: scheme.to_owned(), auth: auth.into() }, done)
    }

    /// Ends the session, after all requests made before: its ephemerals are gone when this returns. Later calls, on any
    /// clone, fail with [`Error::SessionEnded`]; closing twice is no error.
    ///
    /// # Errors
    /// [`Error::SessionEnded`] if no server could be reached for the session timeout.
    pub fn close(&self) -> Response<()> {
        self.call(Op::CloseSession, done)
    }

    /// Waits until the queue of this client has room again. Only for those who make many requests without awaiting them.
    pub async fn ready(&self) {
        self.shared().ready().await;
    }

    /// How the session is, now.
    pub fn state(&self) -> SessionState {
        self.events().state()
    }

    /// The changes of the session's state from now on.
    pub fn events(&self) -> SessionEvents {
        SessionEvents::new(self.shared().status.subscribe())
    }

    /// Until when, by this client's own clock, the session cannot have expired.
    pub fn lease(&self) -> Lease {
        Lease::new(self.shared().clone())
    }

    /// The session's id: `stat.ephemeral_owner` of its ephemerals.
    pub fn session_id(&self) -> SessionId {
        self.shared().status.borrow().session
    }

    /// The session timeout that the ensemble granted.
    pub fn negotiated_timeout(&self) -> Duration {
        self.shared().status.borrow().timeout
    }

    /// The server of the present connection, or of the last one.
    pub fn server(&self) -> ServerId {
        self.shared().status.borrow().server
    }

    /// The latest state this session saw. Another client that reads [`Consistency::AtLeast`] of it sees all that this one
    /// saw.
    pub fn last_zxid(&self) -> Zxid {
        self.shared().last_zxid()
    }

    /// The prefix of all paths of this client on the servers; empty without one.
    pub fn chroot(&self) -> &str {
        self.shared().hosts.chroot()
    }

    fn call<T>(&self, op: Op, map: Map<T>) -> Response<T> {
        self.shared().submit(op, Consistency::Local, map)
    }

    fn on_path<T>(&self, name: &'static str, path: &str, op: impl FnOnce(String) -> Op, map: Map<T>) -> Response<T> {
        match check_path(name, path) {
            Ok(()) => self.call(op(self.shared().hosts.full_path(path)), map),
            Err(error) => Response::failed(error),
        }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("session", &self.session_id()).field("state", &self.state()).finish()
    }
}

/// The read methods at a chosen consistency: [`Client::read`]. Each is described where [`Client`] has it.
#[derive(Clone, Copy, Debug)]
pub struct Reads<'a> {
    client: &'a Client,
    consistency: Consistency,
}

impl Reads<'_> {
    /// [`Client::exists`].
    pub fn exists(&self, path: &str) -> Response<Option<Stat>> {
        self.on_path(
            "exists",
            path,
            |path| Op::Exists { path },
            |call, _, _, answer| match answer {
                Answer::Stat(stat) => Ok(Some(stat)),
                other => Err(call.unexpected(&other)),
            },
        )
        .or_on(ErrorCode::NoNode, |_| None)
    }

    /// [`Client::get`].
    pub fn get(&self, path: &str) -> Response<Node> {
        self.on_path("get", path, |path| Op::GetData { path }, |call, _, zxid, answer| node(&call, zxid, answer))
    }

    /// [`Client::get_children`].
    pub fn get_children(&self, path: &str) -> Response<Vec<String>> {
        self.on_path(
            "get children",
            path,
            |path| Op::GetChildren { path, with_stat: false },
            |call, _, _, answer| children(&call, answer).map(|(names, _)| names),
        )
    }

    /// [`Client::get_children_with_stat`].
    pub fn get_children_with_stat(&self, path: &str) -> Response<(Vec<String>, Stat)> {
        self.on_path(
            "get children",
            path,
            |path| Op::GetChildren { path, with_stat: true },
            |call, _, _, answer| children(&call, answer),
        )
    }

    /// [`Client::exists_and_watch`].
    pub fn exists_and_watch(&self, path: &str) -> Response<(Option<Stat>, OneshotWatch)> {
        self.and_watch(
            "exists",
            path,
            |path| Op::Exists { path },
            |mut call, _, _, answer| match answer {
                Answer::Stat(stat) => Ok((Some(stat), call.take_oneshot())),
                other => Err(call.unexpected(&other)),
            },
        )
        .or_on(ErrorCode::NoNode, |mut call| (None, call.take_oneshot()))
    }

    /// [`Client::get_and_watch`].
    pub fn get_and_watch(&self, path: &str) -> Response<(Node, OneshotWatch)> {
        self.and_watch(
            "get",
            path,
            |path| Op::GetData { path },
            |mut call, _, zxid, answer| node(&call, zxid, answer).map(|node| (node, call.take_oneshot())),
        )
    }

    /// [`Client::children_and_watch`].
    pub fn children_and_watch(&self, path: &str) -> Response<(Vec<String>, Stat, OneshotWatch)> {
        self.and_watch(
            "get children",
            path,
            |path| Op::GetChildren { path, with_stat: true },
            |mut call, _, _, answer| children(&call, answer).map(|(names, stat)| (names, stat, call.take_oneshot())),
        )
    }

    /// [`Client::get_acl`].
    pub fn get_acl(&self, path: &str) -> Response<(Vec<Acl>, Stat)> {
        self.on_path(
            "get acl",
            path,
            |path| Op::GetAcl { path },
            |call, _, _, answer| match answer {
                Answer::Acl { acl, stat } => Ok((acl, stat)),
                other => Err(call.unexpected(&other)),
            },
        )
    }

    /// [`Client::multi_read`].
    pub fn multi_read(&self, reads: Vec<ReadRequest>) -> Response<Vec<Result<ReadResult, ErrorCode>>> {
        let mut full = Vec::with_capacity(reads.len());
        for read in reads {
            let (ReadRequest::Get(path) | ReadRequest::GetChildren(path)) = &read;
            if let Err(error) = check_path("multi read", path) {
                return Response::failed(error);
            }
            let path = self.client.shared().hosts.full_path(path);
            full.push(match read {
                ReadRequest::Get(_) => ReadRequest::Get(path),
                ReadRequest::GetChildren(_) => ReadRequest::GetChildren(path),
            });
        }
        self.client.shared().submit(Op::MultiRead(full), self.consistency, |call, _, zxid, answer| match answer {
            Answer::Multi(results) => results
                .into_iter()
                .map(|result| match result {
                    Ok(Answer::Data { data, stat }) => Ok(Ok(ReadResult::Node(Node { data, stat, zxid }))),
                    Ok(Answer::Children { children, .. }) => Ok(Ok(ReadResult::Children(children))),
                    Ok(other) => Err(call.unexpected(&other)),
                    Err(code) => Ok(Err(code)),
                })
                .collect(),
            other => Err(call.unexpected(&other)),
        })
    }

    /// [`Client::get_ephemerals`].
    pub fn get_ephemerals(&self, prefix: &str) -> Response<Vec<String>> {
        let prefix = self.client.shared().hosts.full_prefix(prefix);
        self.client.shared().submit(Op::GetEphemerals { prefix }, self.consistency, |call, _, _, answer| match answer {
            Answer::Paths(paths) => Ok(paths.iter().map(|path| call.user_path(path)).collect()),
            other => Err(call.unexpected(&other)),
        })
    }

    /// [`Client::count_descendants`].
    pub fn count_descendants(&self, path: &str) -> Response<u64> {
        self.on_path(
            "count descendants",
            path,
            |path| Op::CountDescendants { path },
            |call, _, _, answer| match answer {
                Answer::Count(count) => Ok(count),
                other => Err(call.unexpected(&other)),
            },
        )
    }

    fn on_path<T>(&self, name: &'static str, path: &str, op: impl FnOnce(String) -> Op, map: Map<T>) -> Response<T> {
        match check_path(name, path) {
            Ok(()) => {
                let shared = self.client.shared();
                shared.submit(op(shared.hosts.full_path(path)), self.consistency, map)
            }
            Err(error) => Response::failed(error),
        }
    }

    fn and_watch<T>(&self, name: &'static str, path: &str, op: impl FnOnce(String) -> Op, map: Map<T>) -> Response<T> {
        match check_path(name, path) {
            Ok(()) => {
                let shared = self.client.shared();
                shared.submit_oneshot(op(shared.hosts.full_path(path)), self.consistency, map)
            }
            Err(error) => Response::failed(error),
        }
    }
}

/// Makes the caller's result of an answer: the call, the request (paths as the server knows them), the zxid, the answer.
pub(crate) type Map<T> = fn(Call, &Op, Zxid, Answer) -> Result<T, Error>;

fn done(call: Call, _: &Op, _: Zxid, answer: Answer) -> Result<(), Error> {
    match answer {
        Answer::Done => Ok(()),
        other => Err(call.unexpected(&other)),
    }
}

fn stat(call: Call, _: &Op, _: Zxid, answer: Answer) -> Result<Stat, Error> {
    match answer {
        Answer::Stat(stat) => Ok(stat),
        other => Err(call.unexpected(&other)),
    }
}

fn node(call: &Call, zxid: Zxid, answer: Answer) -> Result<Node, Error> {
    match answer {
        Answer::Data { data, stat } => Ok(Node { data, stat, zxid }),
        other => Err(call.unexpected(&other)),
    }
}

fn children(call: &Call, answer: Answer) -> Result<(Vec<String>, Stat), Error> {
    match answer {
        Answer::Children { children, stat } => Ok((children, stat)),
        other => Err(call.unexpected(&other)),
    }
}

fn multi_results(call: Call, op: &Op, zxid: Zxid, answer: Answer) -> Result<Vec<OpResult>, Error> {
    let (Op::Multi(ops), Answer::Multi(results)) = (op, &answer) else {
        return Err(call.unexpected(&answer));
    };
    if ops.len() != results.len() {
        return Err(call.unexpected(&answer));
    }
    // Operations before the one that failed report success or nothing, those after it that they were not tried.
    let failed = results.iter().enumerate().find_map(|(at, result)| match result {
        Err(code) if *code != ErrorCode::RuntimeInconsistency => Some((at, *code)),
        _ => None,
    });
    if let Some((index, code)) = failed {
        let path = call.user_path(ops[index].path());
        return Err(MultiError { index, op: ops[index].name(), path, code, ops: ops.len() }.into());
    }
    let Answer::Multi(results) = answer else { unreachable!("matched above") };
    ops.iter()
        .zip(results)
        .map(|(op, result)| match (op, result) {
            (MultiOp::Create { .. }, Ok(Answer::Created { path, stat })) => {
                Ok(OpResult::Created(Created { path: call.user_path(&path), stat, zxid }))
            }
            (MultiOp::SetData { .. }, Ok(Answer::Stat(stat))) => Ok(OpResult::Set(stat)),
            (MultiOp::Delete { .. }, Ok(Answer::Done)) => Ok(OpResult::Deleted),
            (MultiOp::Check { .. }, Ok(Answer::Done)) => Ok(OpResult::Checked),
            (_, Ok(other)) => Err(call.unexpected(&other)),
            (_, Err(code)) => Err(Error::Refused { op: "multi", path: String::new(), code }),
        })
        .collect()
}

fn check_path(op: &'static str, path: &str) -> Result<(), Error> {
    paths::validate(path).map_err(|_| Error::BadPath { op, path: path.to_owned() })
}

fn check_create(op: &'static str, path: &str, options: &CreateOptions) -> Result<(), Error> {
    let valid = match path.strip_suffix('/') {
        // The number will be the whole name: `/queue/` becomes `/queue/0000000000`.
        Some(parent) if options.mode.is_sequential() => parent.is_empty() || paths::validate(parent).is_ok(),
        _ => paths::validate(path).is_ok(),
    };
    if !valid {
        return Err(Error::BadPath { op, path: path.to_owned() });
    }
    let wrong = |reason: &str| Err(Error::BadArgument { op, path: path.to_owned(), reason: reason.to_owned() });
    match (options.mode.is_ttl(), options.ttl) {
        (true, None) => wrong("this mode needs a time to live"),
        (false, Some(_)) => wrong("only the TTL modes have a time to live"),
        (true, Some(ttl)) if !(1..1 << 40).contains(&ttl.as_millis()) => {
            wrong("the time to live must be from 1 ms to 2^40 - 1 ms")
        }
        _ => Ok(()),
    }
}
