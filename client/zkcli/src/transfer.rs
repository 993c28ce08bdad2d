//! `export` and `import`: a subtree as lines of JSON, and back.
//!
//! The first line says what it is, the last one that it is whole; between them is one line for each znode, parents before
//! their children. An import may be done again: what is there and the same is left alone.

use std::io::Write;

use bytes::Bytes;
use corral_client::{Acl, Id};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::copy::{Copied, Source};
use crate::failure::Failure;
use crate::failure::exit::{FAILED, NO_NODE, NOT_CONFIRMED};
use crate::print::{Rendered, acl_json, data_json, stat_json};
use crate::progress::{Progress, znodes};
use crate::put::{Existing, Put, Putter, Sum};
use crate::run::Runner;
use crate::scan::{at, below, is_within};
use crate::verbs::{DRY_RUN, Opt, Verb, YES};
use crate::words::{Args, ParseError, check_path, decode_base64, parse_perms};

/// What the first line says.
const FORMAT: &str = "zkcli-export";
/// Of the format.
const VERSION: u64 = 1;
/// Longest line that is read, in bytes: larger than any znode in base64.
const LINE_MAX: u64 = 64 << 20;

pub const VERBS: &[Verb] = &[
    Verb {
        name: "export",
        args: "path [file]",
        options: &[Opt::long("no-acl", "without ACLs"), Opt::long("no-ephemerals", "without ephemerals")],
        about: "write a subtree as lines of JSON: path, type, data, ACL, stat",
        more: "Without a file it goes to standard output. A file appears when it is whole. Each znode is as of some moment\n\
               of the export; znodes that change meanwhile may be of different moments.",
        example: "zkcli export /demo demo.ndjson",
        exits: &[FAILED, NO_NODE],
        ..Verb::PLAIN
    },
    Verb {
        name: "import",
        args: "file|-",
        options: &[
            Opt::long_value("to", "path", "where the subtree goes, if not where it came from"),
            Opt::long("overwrite", "replace data and ACL of what is there and differs"),
            Opt::long("skip-existing", "leave what is there as it is"),
            Opt::long("no-acl", "znodes are open to all, whatever the export says"),
            YES,
            DRY_RUN,
        ],
        about: "create what an export holds",
        more: "What is there already and is the same is left alone: an import that was cut short can be done again. What\n\
               is there and differs is an error at the end, unless an option says otherwise. Ephemerals are left out:\n\
               they would go with this session. An export that is not whole is imported as far as it goes, with an error.",
        example: "zkcli import --to /copy demo.ndjson",
        exits: &[FAILED, NO_NODE, NOT_CONFIRMED],
        ..Verb::PLAIN
    },
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    Export { path: String, file: Option<String>, no_acl: bool, no_ephemerals: bool },
    Import { file: String, to: Option<String>, existing: Existing, no_acl: bool, yes: bool, dry_run: bool },
}

pub fn parse(name: &str, mut args: Args<'_>) -> Result<Task, ParseError> {
    let no_acl = args.flag("no-acl");
    if name == "export" {
        let (path, file) = (args.path()?, args.optional());
        args.end()?;
        return Ok(Task::Export { path, file, no_acl, no_ephemerals: args.flag("no-ephemerals") });
    }
    let file = args.required("file")?;
    args.end()?;
    let to = args.value("to").map(|to| args.resolve(to));
    if let Some(to) = &to {
        check_path(to).map_err(|problem| args.wrong(&problem))?;
    }
    let existing = match (args.flag("overwrite"), args.flag("skip-existing")) {
        (false, false) => Existing::Keep,
        (true, false) => Existing::Replace,
        (false, true) => Existing::Skip,
        (true, true) => return Err(args.wrong("--overwrite and --skip-existing do not go together")),
    };
    Ok(Task::Import { file, to, existing, no_acl, yes: args.flag("yes"), dry_run: args.flag("dry-run") })
}

/// Does it.
///
/// # Errors
/// Why not.
pub async fn run(runner: &Runner, task: Task) -> Result<(), Failure> {
    match task {
        Task::Export { path, file, no_acl, no_ephemerals } => {
            export(runner, &path, file.as_deref(), no_acl, no_ephemerals).await
        }
        Task::Import { file, to, existing, no_acl, yes, dry_run } => {
            if file == "-" && runner.is_shell() {
                return Err(Failure::Usage("- reads standard input, which holds the commands here".to_owned()));
            }
            if existing == Existing::Replace && !dry_run {
                // A person is told how many, if the file can be read twice; a script says yes, or is refused.
                let counted = if runner.asks(yes) && file != "-" {
                    import(runner, &file, to.as_deref(), existing, no_acl, true).await?.sum.replaced.to_string()
                        + " znodes"
                } else {
                    "what differs".to_owned()
                };
                runner.confirm(&format!("replace {counted} by those of {file}"), yes, false).await?;
            }
            let imported = import(runner, &file, to.as_deref(), existing, no_acl, dry_run).await?;
            if imported.ephemerals > 0 {
                runner.remark(&format!("left out: {} of sessions", znodes(imported.ephemerals)));
            }
            imported.sum.show(runner, &imported.to, dry_run)?;
            if !imported.is_whole {
                return Err(Failure::Other(format!("{file} is not whole: its last line is missing")));
            }
            imported.sum.no_conflicts()
        }
    }
}

async fn export(
    runner: &Runner,
    path: &str,
    file: Option<&str>,
    no_acl: bool,
    no_ephemerals: bool,
) -> Result<(), Failure> {
    let client = runner.session()?;
    let mut source = Source::new(&client, path, true);
    if !no_ephemerals {
        source = source.keep_ephemerals();
    }
    let mut sink = match file {
        None => Sink::Stdout,
        Some(file) => Sink::file(file)?,
    };
    let mut progress = match file {
        Some(_) => Progress::new(runner, "exported", None),
        None => Progress::beside_output(runner, "exported"),
    };
    let mut has_begun = false;
    while let Some(node) = source.next(runner, !no_acl).await? {
        if !std::mem::replace(&mut has_begun, true) {
            sink.line(runner, &json!({ "format": FORMAT, "version": VERSION, "root": path }))?;
        }
        sink.line(runner, &document(&node))?;
        progress.at(source.count);
    }
    progress.end();
    source.complete()?;
    let end = json!({ "end": true, "nodes": source.count, "zxid": source.zxid().to_string() });
    sink.line(runner, &end)?;
    sink.finish(file.unwrap_or_default())?;
    if file.is_some() {
        runner.remark(&format!("exported {}", znodes(source.count)));
    }
    Ok(())
}

fn document(node: &Copied) -> Value {
    let (data, encoding) = data_json(node.data.as_deref());
    let mut value = json!({
        "path": node.path,
        "type": if node.stat.ephemeral_owner == 0 { "persistent" } else { "ephemeral" },
        "data": data,
        "encoding": encoding,
        "stat": stat_json(&node.stat),
    });
    if let Some(acl) = &node.acl {
        value["acl"] = acl_json(acl);
    }
    value
}

/// Where lines go.
enum Sink {
    Stdout,
    File(std::io::BufWriter<tempfile::NamedTempFile>),
}

impl Sink {
    fn file(path: &str) -> Result<Sink, Failure> {
        let folder = std::path::Path::new(path).parent().filter(|folder| !folder.as_os_str().is_empty());
        let file = tempfile::NamedTempFile::new_in(folder.unwrap_or(std::path::Path::new(".")));
        Ok(Sink::File(std::io::BufWriter::new(file.map_err(|error| Failure::Other(format!("{path}: {error}")))?)))
    }

    fn line(&mut self, runner: &Runner, value: &Value) -> Result<(), Failure> {
        match self {
            // Lines of JSON, whatever other answers look like.
            Sink::Stdout => runner.write(&Rendered { out: format!("{value}\n").into_bytes(), err: String::new() }),
            Sink::File(file) => {
                writeln!(file, "{value}").map_err(|error| Failure::Other(format!("the export's file: {error}")))
            }
        }
    }

    fn finish(self, path: &str) -> Result<(), Failure> {
        let Sink::File(file) = self else { return Ok(()) };
        let wrong = |error: &dyn std::fmt::Display| Failure::Other(format!("{path}: {error}"));
        let file = file.into_inner().map_err(|error| wrong(&error))?;
        file.as_file().sync_all().map_err(|error| wrong(&error))?;
        file.persist(path).map_err(|error| wrong(&error.error))?;
        Ok(())
    }
}

/// One line of an export.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    format: Option<String>,
    version: Option<u64>,
    root: Option<String>,
    end: Option<bool>,
    nodes: Option<u64>,
    path: Option<String>,
    r#type: Option<String>,
    data: Option<String>,
    encoding: Option<String>,
    acl: Option<Vec<AclLine>>,
}

#[derive(Debug, Deserialize)]
struct AclLine {
    scheme: String,
    id: String,
    perms: String,
}

/// What an import did.
struct Imported {
    to: String,
    sum: Sum,
    ephemerals: u64,
    is_whole: bool,
}

async fn import(
    runner: &Runner,
    file: &str,
    to: Option<&str>,
    existing: Existing,
    no_acl: bool,
    dry_run: bool,
) -> Result<Imported, Failure> {
    if file == "-" {
        return import_lines(runner, BufReader::new(tokio::io::stdin()), file, to, existing, no_acl, dry_run).await;
    }
    let opened = tokio::fs::File::open(file).await.map_err(|error| Failure::Usage(format!("{file}: {error}")))?;
    import_lines(runner, BufReader::new(opened), file, to, existing, no_acl, dry_run).await
}

async fn import_lines(
    runner: &Runner,
    mut lines: impl AsyncBufRead + Unpin,
    file: &str,
    to: Option<&str>,
    existing: Existing,
    no_acl: bool,
    dry_run: bool,
) -> Result<Imported, Failure> {
    let client = runner.session()?;
    let mut putter = Putter::new(&client, existing, dry_run);
    let mut progress = Progress::new(runner, if dry_run { "compared" } else { "imported" }, None);
    let mut root: Option<String> = None;
    let (mut count, mut ephemerals, mut is_whole) = (0_u64, 0_u64, false);
    let mut number = 0_u64;
    loop {
        let mut text = Vec::new();
        let read = (&mut lines).take(LINE_MAX).read_until(b'\n', &mut text).await;
        read.map_err(|error| Failure::Other(format!("{file}: {error}")))?;
        if text.is_empty() {
            break;
        }
        number += 1;
        let wrong = |problem: &str| Failure::Usage(format!("{file}, line {number}: {problem}"));
        let line: Line = serde_json::from_slice(&text).map_err(|error| wrong(&error.to_string()))?;
        if is_whole {
            return Err(wrong("there is something behind the end"));
        }
        let Some(from) = &root else {
            if line.format.as_deref() != Some(FORMAT) {
                return Err(wrong("this is no export of zkcli"));
            }
            if line.version != Some(VERSION) {
                return Err(wrong(&format!("only version {VERSION} of the format is known")));
            }
            root = Some(line.root.ok_or_else(|| wrong("root is missing"))?);
            continue;
        };
        if line.end == Some(true) {
            if line.nodes != Some(count) {
                return Err(wrong(&format!("there are {count} znodes before the end, and it counts others")));
            }
            is_whole = true;
            continue;
        }
        count += 1;
        progress.at(count);
        let (is_ephemeral, put) = znode(line, from, to.unwrap_or(from), no_acl).map_err(|problem| wrong(&problem))?;
        if is_ephemeral {
            ephemerals += 1;
        } else {
            putter.put(runner, put).await?;
        }
    }
    progress.end();
    let sum = putter.finish(runner).await?;
    let to = to.map(str::to_owned).or(root).unwrap_or_default();
    Ok(Imported { to, sum, ephemerals, is_whole })
}

/// The znode of a line, and whether it is an ephemeral.
fn znode(line: Line, from: &str, to: &str, no_acl: bool) -> Result<(bool, Put), String> {
    let path = line.path.ok_or("path is missing")?;
    check_path(&path)?;
    if !is_within(&path, from) {
        return Err(format!("{path} is not within {from}"));
    }
    let data = match (line.data, line.encoding.as_deref()) {
        (None, _) => None,
        (Some(text), None | Some("utf8")) => Some(Bytes::from(text)),
        (Some(text), Some("base64")) => Some(Bytes::from(decode_base64(text.as_bytes())?)),
        (Some(_), Some(other)) => return Err(format!("no such encoding: {other}")),
    };
    let entry = |line: AclLine| Ok(Acl { perms: parse_perms(&line.perms)?, id: Id::new(line.scheme, line.id) });
    let acl = match line.acl {
        Some(lines) if !no_acl => Some(lines.into_iter().map(entry).collect::<Result<Vec<Acl>, String>>()?),
        _ => None,
    };
    let is_ephemeral = match line.r#type.as_deref() {
        None | Some("persistent") => false,
        Some("ephemeral") => true,
        Some(other) => return Err(format!("no such type: {other}")),
    };
    Ok((is_ephemeral, Put { path: at(to, below(&path, from)), data, acl }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(bool, Put), String> {
        znode(serde_json::from_str(text).expect("JSON"), "/a", "/b", false)
    }

    #[test]
    fn a_line_is_a_znode_at_its_new_place() {
        let text = r#"{"path":"/a/x","type":"persistent","data":"AAH/","encoding":"base64",
                       "acl":[{"scheme":"world","id":"anyone","perms":"cdrwa"}],"stat":{"version":3}}"#;
        let (is_ephemeral, put) = read(text).expect("a znode");
        assert!(!is_ephemeral);
        assert_eq!((put.path.as_str(), put.data.as_deref()), ("/b/x", Some(&[0, 1, 255][..])));
        assert_eq!(put.acl, Some(Acl::open()));
        assert!(read(r#"{"path":"/a","type":"ephemeral"}"#).expect("a znode").0);
    }

    #[test]
    fn what_is_no_znode_of_the_export_is_refused() {
        for (text, problem) in [
            (r#"{"data":"x"}"#, "path is missing"),
            (r#"{"path":"/ab"}"#, "/ab is not within /a"),
            (r#"{"path":"/a/x","data":"!","encoding":"base64"}"#, "not base64"),
            (r#"{"path":"/a/x","type":"odd"}"#, "no such type: odd"),
            (r#"{"path":"/a/x","acl":[{"scheme":"s","id":"i","perms":"z"}]}"#, "no such permission: z"),
        ] {
            let told = read(text).expect_err(text);
            assert!(told.contains(problem), "{text}: {told}");
        }
    }
}
