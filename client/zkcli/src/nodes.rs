//! ZooKeeper's verbs, carried out.

use std::time::Duration;

use clap::CommandFactory;
use corral_client::{Client, CreateOptions, ErrorCode, Node, Transaction};

use crate::command::{Command, Form};
use crate::complete;
use crate::failure::Failure;
use crate::options::Options;
use crate::print::{Output, Rendered};
use crate::progress::{Progress, human_bytes, znodes};
use crate::run::Runner;
use crate::scan::Scan;
use crate::verbs;
use crate::walk::{Step, Walk};
use crate::watching::WatchSort;
use crate::words::unknown_command;

/// Bytes of paths in one transaction of `deleteall`, at most: a frame holds a megabyte.
const DELETE_BATCH_BYTES: usize = 256 * 1024;
/// Where the ensemble keeps who its servers are.
const CONFIG: &str = "/zookeeper/config";
/// How often a node is listed and emptied again when others create children while we delete.
const DELETE_ROUNDS: u32 = 8;

/// Does one of ZooKeeper's verbs.
///
/// # Errors
/// Why it failed; nothing is printed about it yet.
pub async fn run(runner: &mut Runner, command: Command) -> Result<(), Failure> {
    match command {
        Command::Ls { path, recursive: true, .. } => list_tree(runner, &path).await,
        Command::Ls { path, stat, watch, .. } => {
            let client = runner.session()?;
            let (children, found) = if watch {
                let (children, found, event) = runner.ask(client.children_and_watch(&path)).await?;
                runner.watches.keep_oneshot(&path, WatchSort::Children, event)?;
                (children, found)
            } else {
                runner.ask(client.get_children_with_stat(&path)).await?
            };
            runner.show(&Output::Children { path, children, stat: stat.then_some(found) })
        }
        Command::Get { path, stat, watch, form } => get(runner, runner.session()?, path, stat, watch, form).await,
        Command::Config { stat: show_stat, watch, connect } => {
            let (whole, _) = runner.whole_tree().await?;
            let node = read(runner, &whole, CONFIG, watch).await?;
            let (path, stat, data) = (CONFIG.to_owned(), node.stat, node.data.map(|bytes| bytes.to_vec()));
            if connect {
                let config = String::from_utf8_lossy(data.as_deref().unwrap_or_default()).into_owned();
                return runner.show(&Output::ConnectString { config, stat, show_stat });
            }
            runner.show(&Output::Data { path, data, stat, show_stat, form: Form::Lines })
        }
        Command::Set { path, data, stat, version } => {
            let data = runner.input(data)?;
            let client = runner.session()?;
            let after = runner.ask(client.set(&path, data, expected(version))).await?;
            runner.show(&Output::Stat { path, stat: after, show: stat })
        }
        Command::Create { path, data, acl, mode, ttl_ms } => {
            let data = data.map(|input| runner.input(input)).transpose()?;
            let mut options = CreateOptions::new(mode);
            if let Some(acl) = acl {
                options = options.acl(acl);
            }
            if mode.is_ttl() {
                options = options.ttl(Duration::from_millis(ttl_ms.unsigned_abs()));
            }
            let client = runner.session()?;
            let created = runner.ask(client.create(&path, data.map(bytes::Bytes::from), options)).await?;
            runner.show(&Output::Created { path: created.path, stat: Some(created.stat) })
        }
        Command::Delete { path, version } => {
            let client = runner.session()?;
            runner.ask(client.delete(&path, expected(version))).await?;
            runner.done(path)
        }
        Command::DeleteAll { path, batch, yes, dry_run } => {
            if dry_run || runner.asks(yes) || runner.settings.production {
                let (nodes, bytes) = measure(runner, &path).await?;
                if dry_run {
                    let text =
                        format!("would delete {} with {} at and below {path}\n", znodes(nodes), human_bytes(bytes));
                    let value = serde_json::json!({ "path": path, "wouldDelete": nodes, "bytes": bytes });
                    return runner.show(&Output::Line { text, value });
                }
                let what = format!("delete {} with {} at and below {path}", znodes(nodes), human_bytes(bytes));
                runner.confirm(&what, yes, true).await?;
            }
            delete_all(runner, path, batch).await
        }
        Command::Stat { path, watch } => {
            let client = runner.session()?;
            let found = if watch {
                let (found, event) = runner.ask(client.exists_and_watch(&path)).await?;
                runner.watches.keep_oneshot(&path, WatchSort::Data, event)?;
                found
            } else {
                runner.ask(client.exists(&path)).await?
            };
            match found {
                Some(stat) => runner.show(&Output::Stat { path, stat, show: true }),
                None => Err(Failure::Refused { code: ErrorCode::NoNode, path }),
            }
        }
        Command::GetAcl { path, stat } => {
            let client = runner.session()?;
            let (acl, found) = runner.ask(client.get_acl(&path)).await?;
            runner.show(&Output::Acl { path, acl, stat: found, show_stat: stat })
        }
        Command::SetAcl { path, acl, stat, version, recursive, dry_run } => {
            let client = runner.session()?;
            if dry_run {
                let nodes = if recursive { measure(runner, &path).await?.0 } else { 1 };
                let text = format!("would replace the ACL of {} at and below {path}\n", znodes(nodes));
                let value = serde_json::json!({ "path": path, "wouldReplace": nodes });
                return runner.show(&Output::Line { text, value });
            }
            if !recursive {
                let after = runner.ask(client.set_acl(&path, acl, expected(version))).await?;
                return runner.show(&Output::Stat { path, stat: after, show: stat });
            }
            let mut walk = Walk::new(&path);
            while let Some(step) = step(runner, &client, &mut walk).await? {
                let Step::Enter { path, .. } = step else { continue };
                match runner.ask(client.set_acl(&path, acl.clone(), expected(version))).await {
                    // Deleted since it was listed.
                    Err(Failure::Refused { code: ErrorCode::NoNode, .. }) => {}
                    Ok(after) if stat => runner.show(&Output::Stat { path, stat: after, show: true })?,
                    other => drop(other?),
                }
            }
            Ok(())
        }
        Command::Sync { path } => {
            let client = runner.session()?;
            runner.ask(client.sync(&path)).await?;
            runner.show(&Output::Text("Sync is OK".to_owned()))
        }
        Command::AddAuth { scheme, auth } => {
            let client = runner.session()?;
            runner.ask(client.add_auth(&scheme, auth)).await?;
            runner.done(String::new())
        }
        Command::GetEphemerals { prefix } => {
            let client = runner.session()?;
            let paths = runner.ask(client.get_ephemerals(&prefix)).await?;
            runner.show(&Output::Paths(paths))
        }
        Command::CountDescendants { path } => {
            let client = runner.session()?;
            let count = runner.ask(client.count_descendants(&path)).await?;
            runner.show(&Output::Count { path, count })
        }
        Command::WhoAmI => {
            let client = runner.session()?;
            let ids = runner.ask(client.whoami()).await?;
            runner.show(&Output::Ids(ids))
        }
        Command::Reconfig => Err(Failure::Refused { code: ErrorCode::ReconfigDisabled, path: String::new() }),
        Command::Version => runner.show(&Output::Text(format!("Corral CLI version: {}", env!("CARGO_PKG_VERSION")))),
        Command::Help { verb: None } => runner.show(&Output::Text(verbs::overview())),
        Command::Help { verb: Some(name) } => match verbs::find(&name) {
            Some(verb) => runner.show(&Output::Text(verb.help())),
            None => Err(Failure::UnknownCommand(unknown_command(&name, runner.is_shell()))),
        },
        Command::Completions(shell) => {
            runner.write(&Rendered { out: complete::file(shell, Options::command()), err: String::new() })
        }
        other => unreachable!("of another group: {other:?}"),
    }
}

/// How many znodes a subtree has, and how many bytes they hold.
async fn measure(runner: &Runner, path: &str) -> Result<(u64, u64), Failure> {
    let mut scan = Scan::new(&runner.session()?, path);
    let mut progress = Progress::new(runner, "counted", None);
    let mut bytes = 0;
    while let Some(node) = scan.next(runner).await? {
        progress.at(scan.seen());
        bytes += u64::try_from(node.stat.data_length).unwrap_or(0);
    }
    Ok((scan.seen(), bytes))
}

/// The next step of a walk, with as many listings under way as the walk asks for.
pub async fn step(runner: &Runner, client: &Client, walk: &mut Walk) -> Result<Option<Step>, Failure> {
    let wanted = walk.wanted();
    if !wanted.is_empty() {
        let asked: Vec<_> = wanted.iter().map(|path| client.get_children(path)).collect();
        let mut listings = Vec::with_capacity(asked.len());
        for response in asked {
            listings.push(match runner.ask(response).await {
                // Only the first node of a walk must exist; others may have gone since their parent was listed.
                Err(Failure::Refused { code: ErrorCode::NoNode, .. }) if walk.has_begun() => Vec::new(),
                other => other?,
            });
        }
        walk.give(listings);
    }
    Ok(walk.next())
}

async fn list_tree(runner: &Runner, path: &str) -> Result<(), Failure> {
    let client = runner.session()?;
    let mut walk = Walk::new(path);
    let mut root = Some(path.to_owned());
    while let Some(step) = step(runner, &client, &mut walk).await? {
        // ZooKeeper's order: a node's children together, then what is below each of them.
        if let Step::Enter { children, .. } = step {
            let paths: Vec<String> = root.take().into_iter().chain(children).collect();
            if !paths.is_empty() {
                runner.show(&Output::Tree { paths })?;
            }
        }
    }
    Ok(())
}

async fn delete_all(runner: &Runner, path: String, batch: usize) -> Result<(), Failure> {
    let client = runner.session()?;
    let mut progress = Progress::new(runner, "deleted", None);
    let mut deleted = 0;
    // Others may create nodes where we have been: then the parents are not empty, and we come again.
    for round in 1.. {
        let mut left_over = false;
        let mut walk = Walk::new(&path);
        let mut group: Vec<String> = Vec::new();
        let mut bytes = 0;
        loop {
            let step = match step(runner, &client, &mut walk).await {
                // Somebody else finished it.
                Err(Failure::Refused { code: ErrorCode::NoNode, .. }) if round > 1 => None,
                other => other?,
            };
            let at_end = step.is_none();
            if let Some(Step::Leave { path }) = step {
                bytes += path.len();
                group.push(path);
            }
            if !group.is_empty() && (at_end || group.len() >= batch || bytes >= DELETE_BATCH_BYTES) {
                let (gone, stayed) = delete_group(runner, &client, &group).await?;
                deleted += gone;
                left_over |= stayed;
                group.clear();
                bytes = 0;
                progress.at(deleted);
            }
            if at_end {
                break;
            }
        }
        if !left_over {
            break;
        }
        if round == DELETE_ROUNDS {
            progress.end();
            eprintln!("Failed to delete some node(s) in the subtree!");
            return Err(Failure::Refused { code: ErrorCode::NotEmpty, path });
        }
    }
    progress.end();
    runner.show(&Output::Deleted { path, count: deleted })
}

/// Deletes nodes in one transaction, or one by one if that is refused. How many it deleted, and whether one of them
/// has children again.
async fn delete_group(runner: &Runner, client: &Client, group: &[String]) -> Result<(u64, bool), Failure> {
    let all = group.iter().fold(Transaction::new(), |all, path| all.delete(path, None));
    match runner.ask(client.multi(all)).await {
        Ok(_) => return Ok((group.len() as u64, false)),
        Err(Failure::Refused { code: ErrorCode::NoNode | ErrorCode::NotEmpty, .. }) => {}
        Err(other) => return Err(other),
    }
    let (mut deleted, mut left_over) = (0, false);
    // In order, and all under way at once: parents come after their children.
    let asked: Vec<_> = group.iter().map(|path| client.delete(path, None)).collect();
    for response in asked {
        match runner.ask(response).await {
            Ok(()) => deleted += 1,
            Err(Failure::Refused { code: ErrorCode::NoNode, .. }) => {}
            Err(Failure::Refused { code: ErrorCode::NotEmpty, .. }) => left_over = true,
            Err(other) => return Err(other),
        }
    }
    Ok((deleted, left_over))
}

async fn get(
    runner: &mut Runner,
    client: Client,
    path: String,
    stat: bool,
    watch: bool,
    form: Form,
) -> Result<(), Failure> {
    let node = read(runner, &client, &path, watch).await?;
    let data = node.data.map(|bytes| bytes.to_vec());
    runner.show(&Output::Data { path, data, stat: node.stat, show_stat: stat, form })
}

/// Reads a znode, and watches it if that is wanted.
async fn read(runner: &mut Runner, client: &Client, path: &str, watch: bool) -> Result<Node, Failure> {
    if !watch {
        return runner.ask(client.get(path)).await;
    }
    let (node, event) = runner.ask(client.get_and_watch(path)).await?;
    runner.watches.keep_oneshot(path, WatchSort::Data, event)?;
    Ok(node)
}

/// `-v`, with ZooKeeper's -1 for any.
fn expected(version: i32) -> Option<i32> {
    (version != -1).then_some(version)
}
