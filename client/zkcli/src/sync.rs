//! `sync-dir`: a subtree and a folder of files, one made equal to the other.
//!
//! A znode without children is a file. One with children is a folder, and its own data is the file [`OWN`] in it, if it
//! has any. Names that a file may not have are written with `%` and two digits. Only data is kept in files: no ACL, no
//! stat, and null is the same as no bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use corral_client::{CreateMode, ErrorCode};
use serde_json::json;

use crate::failure::Failure;
use crate::failure::exit::{FAILED, NO_NODE, NOT_CONFIRMED};
use crate::print::Output;
use crate::progress::{Progress, znodes};
use crate::run::Runner;
use crate::scan::{Scan, at, below};
use crate::verbs::{DRY_RUN, Opt, Verb, YES};
use crate::words::{Args, ParseError, check_path};

/// The file of a folder's own data. No znode's file is called so: a first dot is written as `%2e`.
const OWN: &str = ".znode";
/// Znodes or files in one sync.
const NODES_MAX: usize = 100_000;
/// Bytes of their data.
const BYTES_MAX: usize = 512 << 20;

pub const VERBS: &[Verb] = &[Verb {
    name: "sync-dir",
    args: "get path folder | put folder path",
    options: &[Opt::long("delete", "delete what is on the receiving side only"), YES, DRY_RUN],
    about: "make a folder of files equal to a subtree (get), or a subtree equal to a folder (put)",
    more: "Only what differs is written. A znode with children is a folder, its own data the file .znode in it; a name\n\
           that no file may have is written with % and two digits. Files hold data only: no ACL, no stat; null is the\n\
           same as no bytes. Ephemerals are left out. With --delete it asks first; without a terminal --yes must be\n\
           given.",
    example: "zkcli sync-dir put config-folder /config",
    exits: &[FAILED, NO_NODE, NOT_CONFIRMED],
    ..Verb::PLAIN
}];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    path: String,
    folder: PathBuf,
    to_files: bool,
    delete: bool,
    yes: bool,
    dry_run: bool,
}

pub fn parse(mut args: Args<'_>) -> Result<Task, ParseError> {
    let way = args.required("get or put")?;
    let (path, folder) = match way.as_str() {
        "get" => (args.path()?, args.required("folder")?),
        "put" => {
            let folder = args.required("folder")?;
            (args.path()?, folder)
        }
        other => return Err(args.wrong(&format!("get or put, not {other}"))),
    };
    args.end()?;
    Ok(Task {
        path,
        folder: folder.into(),
        to_files: way == "get",
        delete: args.flag("delete"),
        yes: args.flag("yes"),
        dry_run: args.flag("dry-run"),
    })
}

/// What stands behind the top of a subtree, and data; no data is no bytes.
type Nodes = BTreeMap<String, Bytes>;

/// What makes one side equal to the other: what to write, in order, and what to delete, leaves first.
fn plan(from: &Nodes, to: &Nodes, delete: bool) -> (Vec<String>, Vec<String>) {
    let write = from.iter().filter(|(name, data)| to.get(*name) != Some(data)).map(|(name, _)| name.clone()).collect();
    let gone = to.keys().filter(|name| delete && !from.contains_key(*name)).rev().cloned().collect();
    (write, gone)
}

/// Does it.
///
/// # Errors
/// Why not.
pub async fn run(runner: &Runner, task: Task) -> Result<(), Failure> {
    let tree = read_tree(runner, &task.path, task.to_files).await?;
    let files = read_folder(&task.folder, !task.to_files)?;
    let (from, to) = if task.to_files { (&tree, &files) } else { (&files, &tree) };
    let (write, gone) = plan(from, to, task.delete);
    let target = if task.to_files { task.folder.display().to_string() } else { task.path.clone() };
    if !gone.is_empty() && !task.dry_run {
        runner.confirm(&format!("delete {} of {target}", znodes(gone.len())), task.yes, false).await?;
    }
    for (sign, names) in [("+", &write), ("-", &gone)] {
        for name in names.iter().filter(|_| task.dry_run) {
            let shown = if name.is_empty() { "/" } else { name };
            let value = json!({ "path": shown, "change": if sign == "+" { "write" } else { "delete" } });
            runner.show(&Output::Line { text: format!("{sign} {shown}\n"), value })?;
        }
    }
    if !task.dry_run {
        if task.to_files {
            write_files(runner, &task.folder, &tree, &write, &gone)?;
        } else {
            write_tree(runner, &task.path, &files, &write, &gone).await?;
        }
    }
    let would = if task.dry_run { "would be " } else { "" };
    let same = from.len() - write.len();
    let text = format!("{would}written {}, {would}deleted {}, the same already {same}\n", write.len(), gone.len());
    let value = json!({ "target": target, "written": write.len(), "deleted": gone.len(), "same": same,
                        "dryRun": task.dry_run });
    runner.show(&Output::Line { text, value })
}

fn too_many(what: &str) -> Failure {
    Failure::Other(format!("{what} holds more than {NODES_MAX} znodes or {} MiB", BYTES_MAX >> 20))
}

async fn read_tree(runner: &Runner, top: &str, must_exist: bool) -> Result<Nodes, Failure> {
    let mut scan = Scan::own(&runner.session()?, top);
    let mut progress = Progress::new(runner, "read", None);
    let (mut nodes, mut bytes) = (Nodes::new(), 0);
    loop {
        match scan.next(runner).await {
            Ok(Some(node)) if node.stat.ephemeral_owner != 0 => {}
            Ok(Some(node)) => {
                progress.at(scan.seen());
                let data = node.data.unwrap_or_default();
                bytes += data.len();
                nodes.insert(below(&node.path, top).to_owned(), data);
                if nodes.len() > NODES_MAX || bytes > BYTES_MAX {
                    return Err(too_many(top));
                }
            }
            Ok(None) => break,
            Err(failure) if failure.is_no_node() && !must_exist => return Ok(nodes),
            Err(failure) => return Err(failure),
        }
    }
    scan.complete()?;
    Ok(nodes)
}

fn read_folder(folder: &Path, must_exist: bool) -> Result<Nodes, Failure> {
    let (mut nodes, mut bytes) = (Nodes::new(), 0);
    if !folder.exists() && !must_exist {
        return Ok(nodes);
    }
    let mut open = vec![(folder.to_owned(), String::new())];
    while let Some((folder, name)) = open.pop() {
        let wrong = |error: std::io::Error| Failure::Other(format!("{}: {error}", folder.display()));
        nodes.entry(name.clone()).or_default();
        for entry in std::fs::read_dir(&folder).map_err(wrong)? {
            let entry = entry.map_err(wrong)?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(wrong)?);
            let file_name = entry.file_name();
            let Some(text) = file_name.to_str() else {
                return Err(Failure::Other(format!("{}: its name is not UTF-8", path.display())));
            };
            if text == OWN && kind.is_file() {
                let data = std::fs::read(&path).map_err(wrong)?;
                bytes += data.len();
                nodes.insert(name.clone(), data.into());
                continue;
            }
            let node = decode(text).filter(|node| check_path(&format!("/{node}")).is_ok() && !node.contains('/'));
            let Some(node) = node else {
                return Err(Failure::Other(format!("{}: no znode can have this name", path.display())));
            };
            let below = format!("{name}/{node}");
            if kind.is_dir() {
                open.push((path, below));
            } else if kind.is_file() {
                let data = std::fs::read(&path).map_err(wrong)?;
                bytes += data.len();
                nodes.insert(below, data.into());
            } else {
                return Err(Failure::Other(format!("{}: neither file nor folder", path.display())));
            }
            if nodes.len() > NODES_MAX || bytes > BYTES_MAX {
                return Err(too_many(&folder.display().to_string()));
            }
        }
    }
    Ok(nodes)
}

/// A znode's name as a file's.
fn encode(name: &str) -> String {
    let mut file = String::new();
    for (at, c) in name.chars().enumerate() {
        if c == '%' || c == '\\' || (c == '.' && at == 0) {
            file += &format!("%{:02x}", u32::from(c));
        } else {
            file.push(c);
        }
    }
    file
}

/// And back; `None`: a `%` without two digits.
fn decode(file: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = file.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

fn file_of(folder: &Path, name: &str) -> PathBuf {
    name.split('/').filter(|name| !name.is_empty()).fold(folder.to_owned(), |path, name| path.join(encode(name)))
}

fn write_files(runner: &Runner, folder: &Path, tree: &Nodes, write: &[String], gone: &[String]) -> Result<(), Failure> {
    // Those that have children are folders; the top is one always.
    let mut parents: BTreeSet<&str> = BTreeSet::from([""]);
    parents.extend(tree.keys().filter_map(|name| name.rfind('/').map(|at| &name[..at])));
    let wrong = |path: &Path, error: std::io::Error| Failure::Other(format!("{}: {error}", path.display()));
    for name in gone {
        let path = file_of(folder, name);
        let result = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        result.map_err(|error| wrong(&path, error))?;
    }
    // Above before below: a znode that has got children was a file until now, and its data goes inside.
    for name in parents {
        let path = file_of(folder, name);
        let data = if path.is_file() {
            let data = std::fs::read(&path).map_err(|error| wrong(&path, error))?;
            std::fs::remove_file(&path).map_err(|error| wrong(&path, error))?;
            Some(data)
        } else {
            None
        };
        std::fs::create_dir_all(&path).map_err(|error| wrong(&path, error))?;
        if let Some(data) = data.filter(|data| !data.is_empty()) {
            std::fs::write(path.join(OWN), data).map_err(|error| wrong(&path, error))?;
        }
    }
    let mut progress = Progress::new(runner, "written", Some(write.len() as u64));
    for (count, name) in write.iter().enumerate() {
        let (path, data) = (file_of(folder, name), tree.get(name).cloned().unwrap_or_default());
        // A leaf that was a folder until now stays one, with its data inside.
        let is_folder = path.is_dir();
        let file = if is_folder { path.join(OWN) } else { path };
        if is_folder && data.is_empty() {
            match std::fs::remove_file(&file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(wrong(&file, error)),
                _ => {}
            }
        } else {
            std::fs::write(&file, &data).map_err(|error| wrong(&file, error))?;
        }
        progress.at(count as u64 + 1);
    }
    Ok(())
}

async fn write_tree(
    runner: &Runner,
    top: &str,
    files: &Nodes,
    write: &[String],
    gone: &[String],
) -> Result<(), Failure> {
    let client = runner.session()?;
    for name in gone {
        match runner.ask(client.delete(&at(top, name), None)).await {
            Err(failure) if !failure.is_no_node() => return Err(failure),
            _ => {}
        }
    }
    let mut progress = Progress::new(runner, "written", Some(write.len() as u64));
    for (count, name) in write.iter().enumerate() {
        let (path, data) = (at(top, name), files.get(name).cloned().unwrap_or_default());
        match runner.ask(client.set(&path, data.clone(), None)).await {
            Err(Failure::Refused { code: ErrorCode::NoNode, .. }) => {
                runner.ask(client.create(&path, data, CreateMode::Persistent)).await?;
            }
            other => drop(other?),
        }
        progress.at(count as u64 + 1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_znodes_are_names_of_files_and_back() {
        for (name, file) in [("a", "a"), (".znode", "%2eznode"), ("a.b", "a.b"), ("50%", "50%25"), ("grüß", "grüß")]
        {
            assert_eq!(encode(name), file);
            assert_eq!(decode(file).as_deref(), Some(name));
        }
        assert_eq!(decode("%2"), None);
    }

    #[test]
    fn a_plan_writes_what_differs_and_deletes_leaves_first() {
        let nodes = |list: &[(&str, &'static str)]| -> Nodes {
            list.iter().map(|(name, data)| ((*name).to_owned(), Bytes::from(*data))).collect()
        };
        let from = nodes(&[("", ""), ("/a", "1"), ("/b", "2")]);
        let to = nodes(&[("", ""), ("/a", "1"), ("/b", "old"), ("/c", ""), ("/c/d", "")]);
        assert_eq!(plan(&from, &to, true), (vec!["/b".to_owned()], vec!["/c/d".to_owned(), "/c".to_owned()]));
        assert_eq!(plan(&from, &to, false).1, Vec::<String>::new());
    }
}
