//! `lock`, `semaphore`, `elect`: something is held while a program runs, and the program dies with it. `locks`: who holds
//! and who waits.

use std::time::Duration;

use corral_client::{Client, path as paths};
use corral_recipes::{
    Election, Guard, Hold, Layout, Leadership, Mutex, Permits, ReadGuard, Role, RwLock, Semaphore, Standing,
    WhenSuspended, WriteGuard,
};
use futures::StreamExt;
use serde_json::{Value, json};

use crate::child::{Child, Outcome};
use crate::failure::Failure;
use crate::failure::exit::{FAILED, LOST, NO_NODE, TIMEOUT};
use crate::print::{Output, data_json};
use crate::run::Runner;
use crate::tree::now_ms;
use crate::verbs::{Opt, Verb};
use crate::words::{Args, ParseError};

/// How long giving back may take when the program has ended; the session's end does the rest.
const RELEASE_LIMIT: Duration = Duration::from_secs(5);

const LIMIT: Opt = Opt::value('t', "ms", "wait for so long at most");
const TRY: Opt = Opt::long("try", "do not wait");
const IDENTITY: Opt = Opt::long_value("identity", "text", "what others see of us; host and process if not given");
const STRICT: Opt = Opt::long("strict", "count a broken connection as a loss at once, and not at the deadline");

const MORE: &str = "The program finds ZKCLI_TOKEN (the fencing token, a number that grows from holder to holder),\n\
    ZKCLI_TOKEN_ZXID (the same as a zxid) and ZKCLI_HOLD_PATH (our znode) in its environment. It is killed when what is\n\
    held is lost, at the latest at the local deadline, before which nobody else can hold; and when zkcli dies. Without\n\
    a terminal its own children die with it. The exit code is the program's. Without a program it is held until Ctrl-C.";

pub const VERBS: &[Verb] = &[
    Verb {
        name: "lock",
        args: "path [-- program [argument ...]]",
        options: &[
            LIMIT,
            TRY,
            IDENTITY,
            STRICT,
            Opt::long("read", "a read-write lock, for reading: with other readers"),
            Opt::long("write", "a read-write lock, for writing: alone"),
            Opt::long_value("layout", "curator|kazoo", "how our znode is called"),
        ],
        about: "run a program while a lock is held",
        more: MORE,
        example: "zkcli lock -t 5000 /locks/report -- ./report.sh",
        exits: &[FAILED, TIMEOUT, LOST],
        ..Verb::PLAIN
    },
    Verb {
        name: "semaphore",
        args: "path [-- program [argument ...]]",
        options: &[
            LIMIT,
            TRY,
            IDENTITY,
            STRICT,
            Opt::value('n', "permits", "how many to take, 1 if not given"),
            Opt::long_value("limit", "permits", "how many there are, if nobody has said so yet; 1 if not given"),
            Opt::long_value("set-limit", "permits", "change how many there are, and run nothing"),
        ],
        about: "run a program while permits are held",
        more: MORE,
        example: "zkcli semaphore --limit 10 -n 2 /semaphores/downloads -- ./download.sh",
        exits: &[FAILED, TIMEOUT, LOST],
        ..Verb::PLAIN
    },
    Verb {
        name: "elect",
        args: "path [-- program [argument ...]]",
        options: &[
            LIMIT,
            IDENTITY,
            STRICT,
            Opt::long("observe", "do not campaign: print who leads, now and whenever that changes"),
        ],
        about: "run a program while we lead",
        more: MORE,
        example: "zkcli elect /service/election -- ./serve.sh",
        exits: &[FAILED, TIMEOUT, LOST],
        ..Verb::PLAIN
    },
    Verb {
        name: "locks",
        args: "path",
        about: "who holds a lock, permits or the lead, and who waits",
        more: "Of locks, read-write locks, elections and semaphores of this program, of Corral's recipes, of Curator and\n\
               kazoo. IDENTITY is what they say of themselves, often the host; AGE, in seconds, is by this machine's clock.",
        example: "zkcli locks /locks/report",
        exits: &[NO_NODE],
        ..Verb::PLAIN
    },
];

/// What is to be held, and while what runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    path: String,
    what: What,
    limit: Option<Duration>,
    no_wait: bool,
    identity: Option<String>,
    strict: bool,
    program: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Lock(Layout),
    Read,
    Write,
    Permits { count: u32, limit: u32 },
    Lead,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    Hold(Held),
    SetLimit { path: String, limit: u32 },
    Observe { path: String },
    Locks { path: String },
}

pub fn parse(name: &str, mut args: Args<'_>) -> Result<Task, ParseError> {
    let path = args.path()?;
    args.end()?;
    let program = args.program();
    let what = match name {
        "locks" => return Ok(Task::Locks { path }),
        "elect" if args.flag("observe") => return Ok(Task::Observe { path }),
        "elect" => What::Lead,
        "semaphore" => {
            if let Some(limit) = args.number_of("set-limit", "permits")? {
                return Ok(Task::SetLimit { path, limit });
            }
            let count = args.number_of("n", "permits")?.unwrap_or(1);
            What::Permits { count, limit: args.number_of("limit", "permits")?.unwrap_or(1) }
        }
        _ => match (args.flag("read"), args.flag("write"), args.value("layout")) {
            (true, true, _) => return Err(args.wrong("--read and --write do not go together")),
            (true, false, None) => What::Read,
            (false, true, None) => What::Write,
            (false, false, None | Some("curator")) => What::Lock(Layout::CuratorLock),
            (false, false, Some("kazoo")) => What::Lock(Layout::Kazoo),
            (false, false, Some(other)) => return Err(args.wrong(&format!("no such layout: {other}"))),
            (_, _, Some(_)) => return Err(args.wrong("--layout goes with neither --read nor --write")),
        },
    };
    let (limit, no_wait) = (args.millis_of("t")?, args.flag("try"));
    if limit.is_some() && no_wait {
        return Err(args.wrong("-t and --try do not go together"));
    }
    let (identity, strict) = (args.value("identity").map(str::to_owned), args.flag("strict"));
    Ok(Task::Hold(Held { path, what, limit, no_wait, identity, strict, program }))
}

/// What was acquired.
enum Acquired {
    Lock(Guard),
    Read(ReadGuard),
    Write(WriteGuard),
    Permits(Permits),
    Lead(Leadership),
}

impl Acquired {
    fn hold(&self) -> Hold {
        match self {
            Acquired::Lock(guard) => guard.hold(),
            Acquired::Read(guard) => (**guard).clone(),
            Acquired::Write(guard) => (**guard).clone(),
            Acquired::Permits(permits) => (**permits).clone(),
            Acquired::Lead(leadership) => leadership.hold(),
        }
    }

    async fn release(self) -> Result<(), corral_recipes::Error> {
        match self {
            Acquired::Lock(guard) => guard.release().await,
            Acquired::Read(guard) => guard.release().await,
            Acquired::Write(guard) => guard.release().await,
            Acquired::Permits(permits) => permits.release().await,
            Acquired::Lead(leadership) => leadership.resign().await,
        }
    }
}

/// What others see of us.
pub fn own_identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "unknown host" } else { host.trim() };
    format!("{host}:{} zkcli", std::process::id())
}

/// Does it.
///
/// # Errors
/// Why not; the program's exit code.
pub async fn run(runner: &Runner, task: Task) -> Result<(), Failure> {
    let client = runner.session()?;
    match task {
        Task::Hold(held) => hold(runner, &client, held).await,
        Task::SetLimit { path, limit } => {
            runner.ask(Semaphore::new(&client, path.clone(), limit).set_limit(limit)).await?;
            runner.done(path)
        }
        Task::Observe { path } => {
            let mut leaders = Election::new(&client, path).observe();
            while let Some(leader) = runner.or_interrupted(leaders.next()).await? {
                let (text, value) = match leader? {
                    None => ("nobody leads\n".to_owned(), json!({ "leader": null })),
                    Some(leader) => {
                        let (data, encoding) = data_json(leader.data.as_deref());
                        let shown = String::from_utf8_lossy(leader.data.as_deref().unwrap_or_default()).into_owned();
                        let (token, session) = (leader.token.to_string(), format!("{}", leader.session));
                        let text = format!("leader {shown} token {token} session {session}\n");
                        let leader = json!({ "path": leader.path, "token": token, "session": session,
                                             "identity": data, "encoding": encoding });
                        (text, json!({ "leader": leader }))
                    }
                };
                runner.show(&Output::Line { text, value })?;
                runner.flush()?;
            }
            Ok(())
        }
        Task::Locks { path } => locks(runner, &client, &path).await,
    }
}

/// Takes it at once or not at all, in time, or whenever it is our turn: as was asked for.
async fn turn<T, E>(
    held: &Held,
    at_once: impl AsyncFnOnce() -> Result<Option<T>, E>,
    in_time: impl AsyncFnOnce(Duration) -> Result<T, E>,
    at_last: impl AsyncFnOnce() -> Result<T, E>,
) -> Result<Option<T>, E> {
    match (held.limit, held.no_wait) {
        (_, true) => at_once().await,
        (Some(limit), false) => in_time(limit).await.map(Some),
        (None, false) => at_last().await.map(Some),
    }
}

async fn acquire(client: &Client, held: &Held) -> Result<Option<Acquired>, corral_recipes::Error> {
    let policy = if held.strict { WhenSuspended::Stop } else { WhenSuspended::UntilDeadline };
    let identity = held.identity.clone().unwrap_or_else(own_identity);
    let path = held.path.clone();
    Ok(match held.what {
        What::Lock(layout) => {
            let lock = Mutex::new(client, path).identity(identity).layout(layout).when_suspended(policy);
            let (in_time, at_last) = (async |limit| lock.acquire_timeout(limit).await, async || lock.acquire().await);
            turn(held, async || lock.try_acquire().await, in_time, at_last).await?.map(Acquired::Lock)
        }
        What::Read => {
            let lock = RwLock::new(client, path).identity(identity).when_suspended(policy);
            let (in_time, at_last) = (async |limit| lock.read_timeout(limit).await, async || lock.read().await);
            turn(held, async || lock.try_read().await, in_time, at_last).await?.map(Acquired::Read)
        }
        What::Write => {
            let lock = RwLock::new(client, path).identity(identity).when_suspended(policy);
            let (in_time, at_last) = (async |limit| lock.write_timeout(limit).await, async || lock.write().await);
            turn(held, async || lock.try_write().await, in_time, at_last).await?.map(Acquired::Write)
        }
        What::Permits { count, limit: permits } => {
            let semaphore = Semaphore::new(client, path, permits).identity(identity).when_suspended(policy);
            let in_time = async |limit| semaphore.acquire_timeout(count, limit).await;
            let at_last = async || semaphore.acquire(count).await;
            turn(held, async || semaphore.try_acquire(count).await, in_time, at_last).await?.map(Acquired::Permits)
        }
        What::Lead => {
            let election = Election::new(client, path).when_suspended(policy);
            Some(Acquired::Lead(match held.limit {
                Some(limit) => election.campaign_timeout(identity, limit).await?,
                None => election.campaign(identity).await?,
            }))
        }
    })
}

async fn hold(runner: &Runner, client: &Client, held: Held) -> Result<(), Failure> {
    let Some(acquired) = runner.or_interrupted(acquire(client, &held)).await?? else {
        return Err(Failure::Timeout(format!("{}: others hold it", held.path)));
    };
    let hold = acquired.hold();
    let result = if held.program.is_empty() {
        let value = json!({ "path": hold.path(), "token": hold.token().to_string() });
        let text = format!("held: {} token {}\n", hold.path(), hold.token());
        runner.show(&Output::Line { text, value })?;
        runner.flush()?;
        match runner.or_interrupted(hold.lost()).await {
            Ok(loss) => Err(Failure::Lost(format!("{} was lost: {loss}", held.path))),
            Err(interrupted) => Err(interrupted),
        }
    } else {
        let environment = [
            ("ZKCLI_TOKEN", hold.token().value().to_string()),
            ("ZKCLI_TOKEN_ZXID", hold.token().to_string()),
            ("ZKCLI_HOLD_PATH", hold.path().to_owned()),
        ];
        runner.flush()?;
        let child = Child::start(&held.program, &environment, None).await?;
        let mut signals = runner.take_signals()?;
        match child.supervise(Some(&hold), &mut signals).await? {
            Outcome::Exited(0) => Ok(()),
            Outcome::Exited(code) => Err(Failure::Exit(code)),
            Outcome::Killed(loss) => {
                Err(Failure::Lost(format!("{} was lost ({loss}): the program was killed", held.path)))
            }
        }
    };
    // What is lost is nothing to wait for. If it cannot be given back in time, closing the session does it.
    if matches!(result, Err(Failure::Lost(_))) {
        return result;
    }
    let _ = tokio::time::timeout(RELEASE_LIMIT, acquired.release()).await;
    result
}

/// Whether one holds, of a queue in order.
fn holds(standings: &[Standing], at: usize) -> bool {
    match standings[at].role {
        Role::Exclusive => at == 0,
        Role::Shared => standings[..at].iter().all(|before| before.role == Role::Shared),
    }
}

async fn locks(runner: &Runner, client: &Client, path: &str) -> Result<(), Failure> {
    let children = runner.ask(client.get_children(path)).await?;
    let mut rows = Vec::new();
    let is_semaphore = children.iter().any(|name| name == "leases");
    if is_semaphore {
        for name in runner.ask(client.get_children(&paths::join(path, "leases"))).await? {
            let lease = paths::join(&paths::join(path, "leases"), &name);
            rows.extend(row(runner, client, &lease, "holds", "permit").await?);
        }
        let waiting = runner.ask(Mutex::new(client, paths::join(path, "locks")).contenders()).await?;
        for standing in &waiting {
            rows.extend(row(runner, client, &standing.path, "waits", "permit").await?);
        }
    } else {
        // kazoo's read-write locks and its locks share a name; where there is a reader, it is the former.
        let shared = runner.ask(RwLock::new(client, path).contenders()).await?;
        let standings =
            if shared.iter().any(|standing| standing.role == Role::Shared || standing.path.contains("__WRIT__")) {
                shared
            } else {
                runner.ask(Mutex::new(client, path).contenders()).await?
            };
        for (at, standing) in standings.iter().enumerate() {
            let state = if holds(&standings, at) { "holds" } else { "waits" };
            let role = if standing.role == Role::Shared { "shared" } else { "exclusive" };
            rows.extend(row(runner, client, &standing.path, state, role).await?);
        }
    }
    let columns = &["STATE", "ROLE", "TOKEN", "SESSION", "AGE", "IDENTITY", "PATH"];
    runner.show(&Output::Rows { columns, rows })
}

/// The row of one contender; `None`: it has left meanwhile.
async fn row(
    runner: &Runner,
    client: &Client,
    path: &str,
    state: &str,
    role: &str,
) -> Result<Option<Vec<Value>>, Failure> {
    let node = match runner.ask(client.get(path)).await {
        Err(failure) if failure.is_no_node() => return Ok(None),
        other => other?,
    };
    let identity = String::from_utf8_lossy(node.bytes()).into_owned();
    let age = (now_ms() - node.stat.ctime).max(0) / 1_000;
    Ok(Some(vec![
        json!(state),
        json!(role),
        json!(format!("{:#x}", node.stat.czxid)),
        json!(format!("{:#x}", node.stat.ephemeral_owner)),
        json!(age),
        json!(if identity.is_empty() { Value::Null } else { json!(identity) }),
        json!(path),
    ]))
}
