//! `watch`: the change feed for people and scripts, from any zxid on, over restarts. And ZooKeeper's own watches of a
//! shell: `addWatch`, `removewatches`, `printwatches`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use corral_client::{
    Changes, ErrorCode, EventKind, Feed, FeedEvent, FeedItem, FeedOptions, OneshotWatch, WatchEvent, WatchMode,
    WatchedEvent, Zxid,
};
use serde_json::{Value, json};
use tokio::task::AbortHandle;

use crate::child::{Child, Outcome};
use crate::failure::Failure;
use crate::failure::exit::FAILED;
use crate::options::Format;
use crate::print::{self, Output, data_json, stat_json};
use crate::run::Runner;
use crate::signals::Signals;
use crate::verbs::{Opt, Verb};
use crate::words::{Args, ParseError};

/// Watches that one shell keeps at a time; more are refused.
const WATCHES_MAX: usize = 10_000;
/// Longest text of a bookmark's file.
const BOOKMARK_BYTES_MAX: u64 = 64;

pub const VERBS: &[Verb] = &[
    Verb {
        name: "watch",
        args: "path",
        options: &[
            Opt::long("recursive", "of the whole subtree").or('r'),
            Opt::value('n', "count", "leave after so many events"),
            Opt::long_value("from", "zxid", "begin behind this zxid, and not now"),
            Opt::long_value("bookmark", "file", "begin where the bookmark in this file is, and keep it there"),
            Opt::long("value", "with data and stat, as far as they are not changed again already"),
            Opt::long_value("exec", "command", "run this in a shell for each event"),
        ],
        about: "print every change as it comes, once and in order, over reconnects",
        more: "At its end it tells its bookmark: the zxid up to which everything was told, for --from. If the servers do\n\
               not remember that far back, it says so (type Gap), with the zxid to read from. An entry that -n cuts in two\n\
               comes whole again. A command finds ZKCLI_EVENT_TYPE, ZKCLI_EVENT_PATH and ZKCLI_EVENT_ZXID in its\n\
               environment, and with --value the data on its standard input; if it fails the watch ends, and its\n\
               bookmark stays before that entry.",
        example: "zkcli watch -r --bookmark /var/lib/demo.zxid --exec './changed.sh' /demo",
        exits: &[FAILED],
        ..Verb::PLAIN
    },
    Verb {
        name: "addWatch",
        args: "path",
        options: &[Opt::value('m', "mode", "PERSISTENT or PERSISTENT_RECURSIVE, which it is if not given")],
        about: "watch for good",
        example: "zkcli addWatch -m PERSISTENT /demo",
        ..Verb::PLAIN
    },
    Verb {
        name: "removewatches",
        args: "path",
        options: &[
            Opt::flag('c', "children's"),
            Opt::flag('d', "data's"),
            Opt::flag('p', "persistent ones"),
            Opt::flag('r', "recursive ones"),
            Opt::flag('a', "all, as without an option"),
            Opt::flag('l', "also if there is no connection: they are kept here anyway"),
        ],
        about: "remove watches of this session",
        example: "zkcli removewatches -p /demo",
        exits: &[FAILED],
        ..Verb::PLAIN
    },
    Verb {
        name: "printwatches",
        args: "[on|off]",
        about: "whether watch events are printed",
        example: "zkcli printwatches off",
        needs_session: false,
        ..Verb::PLAIN
    },
];

/// Which watches `removewatches` removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchSort {
    /// `-c`
    Children,
    /// `-d`
    Data,
    /// `-p`
    Persistent,
    /// `-r`
    Recursive,
    /// `-a`, the default.
    Any,
}

/// What `watch` follows, and what it does with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follow {
    path: String,
    recursive: bool,
    /// `None`: until Ctrl-C.
    count: Option<u64>,
    from: Option<Zxid>,
    bookmark: Option<PathBuf>,
    value: bool,
    exec: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    Follow(Follow),
    Add {
        path: String,
        recursive: bool,
    },
    Remove {
        path: String,
        sort: WatchSort,
    },
    /// `None`: say which.
    Print {
        on: Option<bool>,
    },
}

pub fn parse(name: &str, mut args: Args<'_>) -> Result<Task, ParseError> {
    if name == "printwatches" {
        let on = match args.optional().as_deref() {
            None => None,
            Some("on") => Some(true),
            Some("off") => Some(false),
            Some(other) => return Err(args.wrong(&format!("on or off, not {other}"))),
        };
        args.end()?;
        return Ok(Task::Print { on });
    }
    let path = args.path()?;
    args.end()?;
    Ok(match name {
        "watch" => {
            let from = match args.value("from") {
                None => None,
                Some(text) => Some(parse_zxid(text).ok_or_else(|| args.wrong(&format!("no zxid, as 0x1a: {text}")))?),
            };
            let bookmark = args.value("bookmark").map(PathBuf::from);
            if from.is_some() && bookmark.is_some() {
                return Err(args.wrong("--from and --bookmark do not go together"));
            }
            Task::Follow(Follow {
                path,
                recursive: args.flag("recursive"),
                count: args.count_of("n", "count")?,
                from,
                bookmark,
                value: args.flag("value"),
                exec: args.value("exec").map(str::to_owned),
            })
        }
        "addWatch" => {
            let recursive = match args.value("m").map(str::to_ascii_uppercase).as_deref() {
                None | Some("PERSISTENT_RECURSIVE") => true,
                Some("PERSISTENT") => false,
                Some(other) => return Err(args.wrong(&format!("no such mode: {other}"))),
            };
            Task::Add { path, recursive }
        }
        _ => {
            let sorts = [
                ("c", WatchSort::Children),
                ("d", WatchSort::Data),
                ("p", WatchSort::Persistent),
                ("r", WatchSort::Recursive),
                ("a", WatchSort::Any),
            ];
            let chosen: Vec<WatchSort> =
                sorts.into_iter().filter(|(letter, _)| args.flag(letter)).map(|(_, sort)| sort).collect();
            let sort = match chosen[..] {
                [] => WatchSort::Any,
                [one] => one,
                _ => return Err(args.wrong("only one of -c, -d, -p, -r, -a can be given")),
            };
            Task::Remove { path, sort }
        }
    })
}

/// A zxid as we print it, or as a number.
fn parse_zxid(text: &str) -> Option<Zxid> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok()?,
        None => text.parse().ok()?,
    };
    Some(Zxid(number))
}

/// Does it.
///
/// # Errors
/// Why not.
pub async fn run(runner: &mut Runner, task: Task) -> Result<(), Failure> {
    match task {
        Task::Follow(follow) => watch(runner, follow).await,
        Task::Add { path, recursive } => {
            runner.watches.room()?;
            let watcher = runner.ask(runner.session()?.watch(&path, mode(recursive))).await?;
            runner.watches.keep(&path, recursive, watcher);
            runner.done(path)
        }
        Task::Remove { path, sort } => {
            if !runner.watches.remove(&path, sort) {
                return Err(Failure::Refused { code: ErrorCode::NoWatcher, path });
            }
            runner.done(path)
        }
        Task::Print { on: None } => {
            let on = if runner.watches.are_printed.load(Ordering::Relaxed) { "on" } else { "off" };
            runner.show(&Output::Text(format!("printwatches is {on}")))
        }
        Task::Print { on: Some(on) } => {
            runner.watches.are_printed.store(on, Ordering::Relaxed);
            Ok(())
        }
    }
}

fn mode(recursive: bool) -> WatchMode {
    if recursive { WatchMode::Recursive } else { WatchMode::Node }
}

/// Prints events until enough have come, the session ends, or somebody wants it to end; then tells the bookmark.
async fn watch(runner: &Runner, follow: Follow) -> Result<(), Failure> {
    let mut options = FeedOptions::from(mode(follow.recursive));
    let from = match &follow.bookmark {
        Some(file) => read_bookmark(file)?,
        None => follow.from,
    };
    if let Some(from) = from {
        options = options.after(from);
    }
    if follow.value {
        options = options.with_nodes();
    }
    let opened = runner.ask(runner.session()?.feed(&follow.path, options)).await;
    let feed = opened.map_err(|failure| match failure {
        Failure::Refused { code: ErrorCode::BadArguments, .. } if from.is_some() => {
            Failure::Other(format!("the ensemble has not reached {}: is it another one?", from.unwrap_or(Zxid::ZERO)))
        }
        other => other,
    })?;
    let mut position = feed.position();
    if let Some(file) = &follow.bookmark {
        write_bookmark(file, position)?;
    }
    let result = follow_feed(runner, &follow, feed, &mut position).await;
    match runner.options.output {
        Format::Json | Format::Yaml => runner.remark(&json!({ "bookmark": position.to_string() }).to_string()),
        _ => runner.remark(&format!("bookmark {position}")),
    }
    result
}

async fn follow_feed(runner: &Runner, follow: &Follow, mut feed: Feed, position: &mut Zxid) -> Result<(), Failure> {
    let mut signals = runner.take_signals()?;
    let mut seen = 0;
    while follow.count.is_none_or(|count| seen < count) {
        runner.flush()?;
        match signals.or_interrupted(feed.next()).await? {
            Some(FeedItem::Changes(Changes { zxid, events })) => {
                let all = events.len();
                for (at, event) in events.into_iter().enumerate() {
                    tell(runner, follow, zxid, event, &mut signals).await?;
                    seen += 1;
                    if follow.count.is_some_and(|count| seen >= count) && at + 1 < all {
                        return Ok(());
                    }
                }
                *position = zxid;
            }
            Some(FeedItem::Bookmark(zxid)) => *position = zxid,
            Some(FeedItem::Gap(gap)) => {
                let value = json!({ "type": "Gap", "after": gap.after.to_string(), "resync": gap.resync.to_string() });
                if runner.options.output == Format::Plain {
                    runner.remark(&gap.to_string());
                } else {
                    runner.show(&Output::Line { text: String::new(), value })?;
                }
                if let Some(command) = &follow.exec {
                    exec(command, "Gap", &follow.path, gap.resync, None, &mut signals).await?;
                }
                *position = gap.resync;
            }
            None => {
                let reason = feed.end_reason().map_or("the session ended".to_owned(), |reason| reason.to_string());
                return Err(Failure::Connection(reason));
            }
        }
        if let Some(file) = &follow.bookmark {
            write_bookmark(file, *position)?;
        }
    }
    Ok(())
}

/// One event: printed, and given to the command.
async fn tell(
    runner: &Runner,
    follow: &Follow,
    zxid: Zxid,
    event: FeedEvent,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let FeedEvent { kind, path, node } = event;
    let watched = WatchedEvent { kind, path: path.clone(), zxid: Some(zxid) };
    let data = node.as_ref().and_then(|node| node.data.clone());
    if follow.value {
        let mut value = json!({ "type": print::event_name(kind), "path": path, "zxid": zxid.to_string() });
        let mut text = format!("{}\n", print::event_line(&watched));
        if let Some(node) = &node {
            let (shown, encoding) = data_json(data.as_deref());
            value["data"] = shown;
            value["encoding"] = encoding;
            value["stat"] = stat_json(&node.stat);
            text += &format!("{}\n", String::from_utf8_lossy(data.as_deref().unwrap_or_default()));
        } else if matches!(kind, EventKind::NodeCreated | EventKind::NodeDataChanged) {
            // A later event brings what it is now.
            value["superseded"] = Value::Bool(true);
        }
        runner.show(&Output::Line { text, value })?;
    } else {
        runner.show(&Output::Event(watched))?;
    }
    match &follow.exec {
        Some(command) => exec(command, print::event_name(kind), &path, zxid, data, signals).await,
        None => Ok(()),
    }
}

async fn exec(
    command: &str,
    kind: &str,
    path: &str,
    zxid: Zxid,
    data: Option<bytes::Bytes>,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let environment = [
        ("ZKCLI_EVENT_TYPE", kind.to_owned()),
        ("ZKCLI_EVENT_PATH", path.to_owned()),
        ("ZKCLI_EVENT_ZXID", zxid.to_string()),
    ];
    let program = ["sh", "-c", command].map(str::to_owned);
    let child = Child::start(&program, &environment, Some(data.unwrap_or_default())).await?;
    match child.supervise(None, signals).await? {
        Outcome::Exited(0) => Ok(()),
        Outcome::Exited(code) => {
            Err(Failure::Other(format!("the command failed with exit code {code} at {kind} of {path}, zxid {zxid}")))
        }
        Outcome::Killed(loss) => Err(Failure::Lost(loss.to_string())),
    }
}

/// The bookmark in a file; `None`: there is no file yet.
fn read_bookmark(file: &Path) -> Result<Option<Zxid>, Failure> {
    let wrong = |problem: &dyn std::fmt::Display| Failure::Usage(format!("{}: {problem}", file.display()));
    let text = match std::fs::metadata(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(&error)),
        Ok(found) if found.len() > BOOKMARK_BYTES_MAX => return Err(wrong(&"this is no bookmark")),
        Ok(_) => std::fs::read_to_string(file).map_err(|error| wrong(&error))?,
    };
    parse_zxid(text.trim()).map(Some).ok_or_else(|| wrong(&"this is no bookmark"))
}

/// Replaces it, as a whole or not at all.
fn write_bookmark(file: &Path, zxid: Zxid) -> Result<(), Failure> {
    let wrong = |error: std::io::Error| Failure::Other(format!("{}: {error}", file.display()));
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new = tempfile::NamedTempFile::new_in(folder).map_err(wrong)?;
    writeln!(new, "{zxid}").map_err(wrong)?;
    new.persist(file).map_err(|error| wrong(error.error))?;
    Ok(())
}

/// Where events of watches go: the terminal's line editor knows how to print above a prompt.
pub type EventPrinter = Arc<dyn Fn(String) + Send + Sync>;

/// A watch in the background.
struct Armed {
    path: String,
    sort: WatchSort,
    task: AbortHandle,
}

/// The watches of a shell.
pub struct Watches {
    armed: Vec<Armed>,
    are_printed: Arc<AtomicBool>,
    printer: EventPrinter,
    format: Format,
}

impl Watches {
    pub fn new(format: Format) -> Watches {
        let printer: EventPrinter = Arc::new(|text| print!("{text}"));
        Watches { armed: Vec::new(), are_printed: Arc::new(AtomicBool::new(true)), printer, format }
    }

    /// Events go there from now on.
    pub fn print_with(&mut self, printer: EventPrinter) {
        self.printer = printer;
    }

    pub fn end_all(&mut self) {
        for watch in self.armed.drain(..) {
            watch.task.abort();
        }
    }

    /// Prints the event of a one-shot watch when it comes.
    ///
    /// # Errors
    /// There are too many.
    pub fn keep_oneshot(&mut self, path: &str, sort: WatchSort, watch: OneshotWatch) -> Result<(), Failure> {
        self.room()?;
        let print = self.sink();
        let task = tokio::spawn(async move {
            if let Ok(event) = watch.await {
                print(&event);
            }
        });
        self.armed.push(Armed { path: path.to_owned(), sort, task: task.abort_handle() });
        Ok(())
    }

    fn keep(&mut self, path: &str, recursive: bool, mut watcher: corral_client::Watcher) {
        let print = self.sink();
        let task = tokio::spawn(async move {
            while let Some(event) = watcher.next().await {
                match event {
                    WatchEvent::Node(event) => print(&event),
                    WatchEvent::Gap(gap) => eprintln!("{gap}"),
                }
            }
        });
        let sort = if recursive { WatchSort::Recursive } else { WatchSort::Persistent };
        self.armed.push(Armed { path: path.to_owned(), sort, task: task.abort_handle() });
    }

    /// False: there was none.
    fn remove(&mut self, path: &str, sort: WatchSort) -> bool {
        self.armed.retain(|watch| !watch.task.is_finished());
        let fits = |watch: &Armed| watch.path == path && (sort == WatchSort::Any || watch.sort == sort);
        let (removed, kept) = std::mem::take(&mut self.armed).into_iter().partition::<Vec<_>, _>(fits);
        self.armed = kept;
        // The task drops its watch, which removes it on the server.
        removed.iter().for_each(|watch| watch.task.abort());
        !removed.is_empty()
    }

    fn room(&mut self) -> Result<(), Failure> {
        self.armed.retain(|watch| !watch.task.is_finished());
        if self.armed.len() >= WATCHES_MAX {
            return Err(Failure::Other(format!("this shell has {WATCHES_MAX} watches already")));
        }
        Ok(())
    }

    fn sink(&self) -> impl Fn(&WatchedEvent) + Send + 'static {
        let (are_printed, printer, format) = (self.are_printed.clone(), self.printer.clone(), self.format);
        move |event| {
            if are_printed.load(Ordering::Relaxed) {
                printer(match format {
                    Format::Json | Format::Yaml => {
                        let rendered = print::render(&Output::Event(event.clone()), format, false);
                        String::from_utf8_lossy(&rendered.out).into_owned()
                    }
                    _ => print::watcher_block(event),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Command, parse as parse_line};
    use crate::words::words;

    fn task(line: &str) -> Result<Task, String> {
        match parse_line(&words(line).expect("closed quotes"), None) {
            Ok(parsed) => match parsed.command {
                Command::Watch(task) => Ok(task),
                other => panic!("{line}: {other:?}"),
            },
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn watches_say_what_they_cover() {
        let Ok(Task::Follow(follow)) = task("watch /a -r -n 2 --from 0x1a") else { panic!("a watch") };
        assert_eq!((follow.recursive, follow.count, follow.from), (true, Some(2), Some(Zxid(26))));
        assert_eq!(task("addWatch /a"), Ok(Task::Add { path: "/a".into(), recursive: true }));
        assert_eq!(task("addWatch -m persistent /a"), Ok(Task::Add { path: "/a".into(), recursive: false }));
        assert_eq!(task("removewatches /a -c"), Ok(Task::Remove { path: "/a".into(), sort: WatchSort::Children }));
        for wrong in ["removewatches /a -c -d", "watch /a -n 0", "watch /a --from x", "watch --from 1 --bookmark f /a"]
        {
            assert!(task(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_bookmark_is_kept_in_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("bookmark");
        assert_eq!(read_bookmark(&file), Ok(None));
        write_bookmark(&file, Zxid(0x1_0000_0002)).expect("written");
        assert_eq!(read_bookmark(&file), Ok(Some(Zxid(0x1_0000_0002))));
        std::fs::write(&file, "no zxid").expect("written");
        assert!(read_bookmark(&file).is_err());
    }
}
