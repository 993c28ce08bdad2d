//! `cp`, `mv`, `diff`: one subtree and another.
//!
//! A copy has data and ACL of what it is made of. Whether a znode is a container or has a time to live, no server tells:
//! copies are ordinary znodes. Ephemerals belong to a session and are left out; what holds one cannot be moved.

use std::collections::BTreeMap;

use bytes::Bytes;
use corral_client::{Acl, Client, CreateMode, CreateOptions, ErrorCode, Stat, Transaction};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::failure::exit::{BAD_VERSION, FAILED, NO_NODE, NOT_CONFIRMED, NOT_EMPTY};
use crate::options::Settings;
use crate::print::Output;
use crate::progress::{Progress, human_bytes, znodes};
use crate::put::{Existing, Put, Putter, Sum};
use crate::run::Runner;
use crate::scan::{Scan, at, below, is_within};
use crate::verbs::{DRY_RUN, Opt, Verb, YES};
use crate::words::{Args, ParseError};

/// Znodes of a subtree that are held at a time, for `mv` and `diff`.
const HELD_MAX: usize = 1_000_000;
/// Bytes of their data.
const HELD_BYTES_MAX: usize = 512 << 20;
/// Operations that `mv` puts into one transaction, at most; servers bound its bytes.
const MOVE_OPS_MAX: usize = 20_000;
/// ACLs asked for at a time.
pub const ACLS_IN_FLIGHT: usize = 256;

pub const VERBS: &[Verb] = &[
    Verb {
        name: "cp",
        args: "from to",
        options: &[
            Opt::long("recursive", "with everything below").or('r'),
            Opt::long("overwrite", "replace data and ACL of what is there and differs"),
            YES,
            DRY_RUN,
        ],
        about: "copy a znode, or a subtree, with data and ACL",
        more: "What is there already and is the same is left alone: a copy that was cut short goes on where it was. What\n\
               is there and differs is an error, unless --overwrite says otherwise. Ephemerals are left out.",
        example: "zkcli cp -r /demo /copy",
        exits: &[FAILED, NO_NODE, NOT_CONFIRMED],
        ..Verb::PLAIN
    },
    Verb {
        name: "mv",
        args: "from to",
        options: &[
            Opt::long("steps", "if it does not fit into one transaction: copy, then delete what was copied"),
            YES,
            DRY_RUN,
        ],
        about: "move a subtree: all at once, or not at all",
        more: "It is one transaction, and refused if anything in the subtree changed since it was read, or anything is\n\
               at the new place. What does not fit into one is not moved, and that is said; --steps moves it all the\n\
               same, and others see both halves meanwhile. It asks first; without a terminal --yes must be given.",
        example: "zkcli mv --yes /demo /elsewhere",
        exits: &[FAILED, NO_NODE, BAD_VERSION, NOT_EMPTY, NOT_CONFIRMED],
        ..Verb::PLAIN
    },
    Verb {
        name: "diff",
        args: "path [other-path]",
        options: &[
            Opt::long_value("with", "hosts", "the other path is on these servers: host:port[,...][/chroot]"),
            Opt::long_value("with-context", "name", "the other path is on the servers of this context"),
            Opt::long("acl", "compare ACLs too"),
            Opt::flag('q', "say nothing; the exit code tells"),
        ],
        about: "compare two subtrees, of one ensemble or of two",
        more: "Lines begin with - (only in the first), + (only in the second) or ~ (they differ). Exit code 1: there are\n\
               differences. Paths are told as seen from the top of each subtree. ZooKeeper's own znodes do not count.",
        example: "zkcli diff /demo /copy",
        exits: &[FAILED, NO_NODE],
        ..Verb::PLAIN
    },
];

/// What to do with two subtrees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    Copy { from: String, to: String, recursive: bool, overwrite: bool, yes: bool, dry_run: bool },
    Move { from: String, to: String, steps: bool, yes: bool, dry_run: bool },
    Diff { path: String, other: String, server: Option<Other>, acl: bool, quiet: bool },
}

/// Where the other subtree is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Other {
    Server(String),
    Context(String),
}

pub fn parse(name: &str, mut args: Args<'_>) -> Result<Task, ParseError> {
    let from = args.path()?;
    if name == "diff" {
        let other = if args.is_empty() { from.clone() } else { args.path()? };
        args.end()?;
        let server = match (args.value("with"), args.value("with-context")) {
            (None, None) => None,
            (Some(hosts), None) => Some(Other::Server(hosts.to_owned())),
            (None, Some(name)) => Some(Other::Context(name.to_owned())),
            (Some(_), Some(_)) => return Err(args.wrong("--with and --with-context do not go together")),
        };
        if server.is_none() && other == from {
            return Err(args.wrong("nothing to compare with: name another path, or --with other servers"));
        }
        return Ok(Task::Diff { path: from, other, server, acl: args.flag("acl"), quiet: args.flag("q") });
    }
    let to = args.path()?;
    args.end()?;
    let (yes, dry_run) = (args.flag("yes"), args.flag("dry-run"));
    if name == "mv" {
        if from == "/" || to == "/" {
            return Err(args.wrong("the root stays where it is"));
        }
        if is_within(&to, &from) || is_within(&from, &to) {
            return Err(args.wrong(&format!("{from} and {to}: one is within the other")));
        }
        return Ok(Task::Move { from, to, steps: args.flag("steps"), yes, dry_run });
    }
    let recursive = args.flag("recursive");
    if from == to || (recursive && is_within(&to, &from)) {
        return Err(args.wrong(&format!("{to} is within {from}")));
    }
    Ok(Task::Copy { from, to, recursive, overwrite: args.flag("overwrite"), yes, dry_run })
}

/// Does it.
///
/// # Errors
/// Why not.
pub async fn run(runner: &Runner, task: Task) -> Result<(), Failure> {
    match task {
        Task::Copy { from, to, recursive, overwrite, yes, dry_run } => {
            let existing = if overwrite { Existing::Replace } else { Existing::Keep };
            if overwrite && !dry_run {
                // A person is told how many; a script says yes, or is refused.
                let counted = if runner.asks(yes) {
                    znodes(copy(runner, &from, &to, recursive, existing, true).await?.0.replaced)
                } else {
                    "what differs".to_owned()
                };
                runner.confirm(&format!("replace {counted} at and below {to}"), yes, false).await?;
            }
            let (sum, source) = copy(runner, &from, &to, recursive, existing, dry_run).await?;
            if recursive && source.ephemerals > 0 {
                runner.remark(&format!("left out: {} of sessions", znodes(source.ephemerals)));
            }
            sum.show(runner, &to, dry_run)?;
            source.complete()?;
            sum.no_conflicts()
        }
        Task::Move { from, to, steps, yes, dry_run } => move_tree(runner, &from, &to, steps, yes, dry_run).await,
        Task::Diff { path, other, server, acl, quiet } => {
            let client = runner.session()?;
            let other_client = match server {
                None => client.clone(),
                Some(Other::Server(server)) => {
                    // Identities of one ensemble are nothing to show to another.
                    let settings = Settings { server, auth: Vec::new(), ..runner.settings.clone() };
                    runner.open(&settings).await?
                }
                Some(Other::Context(name)) => {
                    let options =
                        crate::options::Options { server: None, context: Some(name), ..runner.options.clone() };
                    runner.open(&crate::context::settings(&options)?).await?
                }
            };
            let result = diff(runner, (&client, &path), (&other_client, &other), acl, quiet).await;
            if other_client.session_id() != client.session_id() {
                // If it cannot be closed it expires.
                let _ = runner.ask(other_client.close()).await;
            }
            if result? { Ok(()) } else { Err(Failure::Exit(FAILED)) }
        }
    }
}

/// Copies, or counts what would be copied.
async fn copy(
    runner: &Runner,
    from: &str,
    to: &str,
    recursive: bool,
    existing: Existing,
    dry_run: bool,
) -> Result<(Sum, Source), Failure> {
    let client = runner.session()?;
    let mut putter = Putter::new(&client, existing, dry_run);
    let mut progress = Progress::new(runner, if dry_run { "compared" } else { "copied" }, None);
    let mut source = Source::new(&client, from, recursive);
    while let Some(node) = source.next(runner, true).await? {
        progress.at(source.count);
        let path = at(to, below(&node.path, from));
        putter.put(runner, Put { path, data: node.data, acl: node.acl }).await?;
    }
    progress.end();
    Ok((putter.finish(runner).await?, source))
}

/// A znode as a copy needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    pub path: String,
    pub data: Option<Bytes>,
    pub acl: Option<Vec<Acl>>,
    pub stat: Stat,
}

/// Reads what is copied; without ephemerals, unless it is one znode.
pub struct Source {
    client: Client,
    scan: Scan,
    recursive: bool,
    keeps_ephemerals: bool,
    ready: std::collections::VecDeque<Copied>,
    /// So many have come.
    pub count: u64,
    /// So many were left out.
    pub ephemerals: u64,
}

impl Source {
    pub fn new(client: &Client, top: &str, recursive: bool) -> Source {
        let scan = Scan::own(client, top);
        let ready = std::collections::VecDeque::new();
        Source { client: client.clone(), scan, recursive, keeps_ephemerals: !recursive, ready, count: 0, ephemerals: 0 }
    }

    /// With ephemerals: they are read, and only counted.
    pub fn keep_ephemerals(mut self) -> Source {
        self.keeps_ephemerals = true;
        self
    }

    /// The next one that is no ephemeral; `None` at the end.
    ///
    /// # Errors
    /// As [`Scan::next`]; an ACL that is masked.
    pub async fn next(&mut self, runner: &Runner, with_acl: bool) -> Result<Option<Copied>, Failure> {
        if self.ready.is_empty() {
            self.fill(runner, with_acl).await?;
        }
        Ok(self.ready.pop_front())
    }

    async fn fill(&mut self, runner: &Runner, with_acl: bool) -> Result<(), Failure> {
        let mut group = Vec::new();
        while group.len() < ACLS_IN_FLIGHT && (self.recursive || self.count == 0) {
            let Some(node) = self.scan.next(runner).await? else { break };
            if node.stat.ephemeral_owner != 0 {
                self.ephemerals += 1;
                if !self.keeps_ephemerals {
                    continue;
                }
            }
            self.count += 1;
            group.push(node);
        }
        let acls: Vec<_> = group.iter().filter(|_| with_acl).map(|node| self.client.get_acl(&node.path)).collect();
        let mut acls = acls.into_iter();
        for node in group {
            let acl = match acls.next() {
                None => None,
                Some(response) => match runner.ask(response).await {
                    // Deleted since it was read.
                    Err(failure) if failure.is_no_node() => continue,
                    other => Some(whole_acl(&node.path, other?.0)?),
                },
            };
            self.ready.push_back(Copied { path: node.path, data: node.data, acl, stat: node.stat });
        }
        Ok(())
    }

    /// At the end: as [`Scan::complete`].
    ///
    /// # Errors
    /// Something did not come.
    pub fn complete(&self) -> Result<(), Failure> {
        if self.recursive { self.scan.complete() } else { Ok(()) }
    }

    /// The state of the last page.
    pub fn zxid(&self) -> corral_client::Zxid {
        self.scan.zxid()
    }
}

/// An ACL, unless the server has masked it: a copy with `x` for a digest would lock everybody out.
fn whole_acl(path: &str, acl: Vec<Acl>) -> Result<Vec<Acl>, Failure> {
    let is_masked = |entry: &Acl| entry.id.scheme == "digest" && entry.id.id.ends_with(":x");
    if acl.iter().any(is_masked) {
        let path = format!("{path}: its ACL is masked, ADMIN is needed to read it");
        return Err(Failure::Refused { code: ErrorCode::NoAuth, path });
    }
    Ok(acl)
}

/// Everything in a subtree, ephemerals included, in the order of the store.
async fn hold(runner: &Runner, client: &Client, top: &str) -> Result<Vec<Copied>, Failure> {
    let mut scan = Scan::own(client, top);
    let mut nodes = Vec::new();
    let mut bytes = 0;
    let mut progress = Progress::new(runner, "read", None);
    while let Some(node) = scan.next(runner).await? {
        bytes += node.path.len() + node.data.as_ref().map_or(0, Bytes::len);
        if nodes.len() >= HELD_MAX || bytes > HELD_BYTES_MAX {
            return Err(Failure::Other(format!(
                "{top} holds more than {HELD_MAX} znodes or {}: choose a smaller subtree",
                human_bytes(HELD_BYTES_MAX as u64)
            )));
        }
        progress.at(scan.seen());
        nodes.push(Copied { path: node.path, data: node.data, acl: None, stat: node.stat });
    }
    scan.complete()?;
    Ok(nodes)
}

async fn with_acls(runner: &Runner, client: &Client, nodes: &mut [Copied]) -> Result<(), Failure> {
    for group in nodes.chunks_mut(ACLS_IN_FLIGHT) {
        let asked: Vec<_> = group.iter().map(|node| client.get_acl(&node.path)).collect();
        for (node, response) in group.iter_mut().zip(asked) {
            node.acl = Some(runner.ask(response).await?.0);
        }
    }
    Ok(())
}

async fn move_tree(
    runner: &Runner,
    from: &str,
    to: &str,
    steps: bool,
    yes: bool,
    dry_run: bool,
) -> Result<(), Failure> {
    let client = runner.session()?;
    let mut nodes = hold(runner, &client, from).await?;
    if let Some(ephemeral) = nodes.iter().find(|node| node.stat.ephemeral_owner != 0) {
        let (path, owner) = (&ephemeral.path, ephemeral.stat.ephemeral_owner);
        return Err(Failure::Other(format!("{path} is an ephemeral of session {owner:#x}, and cannot be moved")));
    }
    with_acls(runner, &client, &mut nodes).await?;
    for node in &mut nodes {
        node.acl = node.acl.take().map(|acl| whole_acl(&node.path, acl)).transpose()?;
    }
    let bytes: u64 = nodes.iter().map(|node| node.data.as_ref().map_or(0, Bytes::len) as u64).sum();
    let what = format!("{} with {} from {from} to {to}", znodes(nodes.len()), human_bytes(bytes));
    let told = |text: String, is_atomic: bool| {
        let value = json!({ "from": from, "to": to, "nodes": nodes.len(), "bytes": bytes, "atomic": is_atomic });
        runner.show(&Output::Line { text, value })
    };
    let fits = nodes.len() * 2 <= MOVE_OPS_MAX;
    if dry_run {
        let how = if fits { "in one transaction, if the servers' limit of bytes allows" } else { "only in --steps" };
        return told(format!("would move {what}, {how}\n"), fits);
    }
    runner.confirm(&format!("move {what}"), yes, false).await?;
    let copy = nodes.iter().fold(Transaction::new(), |all, node| {
        let options = CreateOptions::new(CreateMode::Persistent).acl(node.acl.clone().unwrap_or_else(Acl::open));
        all.create(&at(to, below(&node.path, from)), node.data.clone(), options)
    });
    // Leaves first, and each only as it was read.
    let all = nodes.iter().rev().fold(copy, |all, node| all.delete(&node.path, Some(node.stat.version)));
    let too_large = if fits {
        match runner.ask(client.multi(all)).await {
            Ok(_) => return told(String::new(), true),
            // It names the limit.
            Err(Failure::Other(problem)) if problem.contains("the request has") => problem,
            Err(other) => return Err(other),
        }
    } else {
        format!("{} operations, at most {MOVE_OPS_MAX} are made", nodes.len() * 2)
    };
    if !steps {
        return Err(Failure::Other(format!(
            "{what}: too much for one transaction ({too_large}); nothing was moved. --steps copies, then deletes"
        )));
    }
    runner.remark(&format!("not in one transaction ({too_large}): copied, then deleted"));
    let mut putter = Putter::new(&client, Existing::Keep, false);
    let mut progress = Progress::new(runner, "moved", Some(nodes.len() as u64 * 2));
    let mut count = 0;
    for node in &nodes {
        let path = at(to, below(&node.path, from));
        putter.put(runner, Put { path, data: node.data.clone(), acl: node.acl.clone() }).await?;
        count += 1;
        progress.at(count);
    }
    putter.finish(runner).await?.no_conflicts()?;
    for group in nodes.rchunks(ACLS_IN_FLIGHT) {
        let asked: Vec<_> = group.iter().rev().map(|node| client.delete(&node.path, Some(node.stat.version))).collect();
        for response in asked {
            match runner.ask(response).await {
                Err(failure) if !failure.is_no_node() => return Err(failure),
                _ => count += 1,
            }
        }
        progress.at(count);
    }
    progress.end();
    told(String::new(), false)
}

/// Prints how two subtrees differ. True: they do not.
async fn diff(
    runner: &Runner,
    (client, top): (&Client, &str),
    (other_client, other_top): (&Client, &str),
    with_acl: bool,
    quiet: bool,
) -> Result<bool, Failure> {
    let mut left = hold(runner, client, top).await?;
    let mut right = hold(runner, other_client, other_top).await?;
    if with_acl {
        with_acls(runner, client, &mut left).await?;
        with_acls(runner, other_client, &mut right).await?;
    }
    let by_place = |nodes: Vec<Copied>, top: &str| -> BTreeMap<Vec<String>, Copied> {
        let place = |node: Copied| (below(&node.path, top).split('/').map(str::to_owned).collect(), node);
        nodes.into_iter().map(place).collect()
    };
    let (left, right) = (by_place(left, top), by_place(right, other_top));
    let mut places: Vec<&Vec<String>> = left.keys().chain(right.keys()).collect();
    places.sort();
    places.dedup();
    let mut same = true;
    for place in places {
        let name = match place.join("/") {
            root if root.is_empty() => "/".to_owned(),
            name => name,
        };
        let (text, value) = match (left.get(place), right.get(place)) {
            (Some(_), None) => (format!("- {name}\n"), json!({ "path": name, "change": "removed" })),
            (None, Some(_)) => (format!("+ {name}\n"), json!({ "path": name, "change": "added" })),
            (Some(a), Some(b)) => {
                let differing = differences(a, b);
                if differing.is_empty() {
                    continue;
                }
                let (fields, texts): (Vec<&str>, Vec<String>) = differing.into_iter().unzip();
                let value = json!({ "path": name, "change": "changed", "fields": Value::from(fields) });
                (format!("~ {name}: {}\n", texts.join(", ")), value)
            }
            (None, None) => continue,
        };
        same = false;
        if quiet {
            break;
        }
        runner.show(&Output::Line { text, value })?;
    }
    Ok(same)
}

/// What is different between two znodes: its name, and a text.
fn differences(a: &Copied, b: &Copied) -> Vec<(&'static str, String)> {
    let size = |node: &Copied| node.data.as_ref().map_or("null".to_owned(), |data| human_bytes(data.len() as u64));
    let kind = |node: &Copied| if node.stat.ephemeral_owner == 0 { "persistent" } else { "ephemeral" };
    let mut differing = Vec::new();
    if a.data != b.data {
        differing.push(("data", format!("data {} and {}", size(a), size(b))));
    }
    if kind(a) != kind(b) {
        differing.push(("type", format!("{} and {}", kind(a), kind(b))));
    }
    if a.acl != b.acl {
        differing.push(("acl", "ACL".to_owned()));
    }
    differing
}
