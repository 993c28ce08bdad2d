//! Text to [`Command`]: words, quotes, options, ZooKeeper's verbs with their old positional forms.
//!
//! Pure: no terminal, no client, no clock. What a verb does is in `run.rs`, how its answer looks in `print.rs`.
//! Read first: [`Command`], [`parse`], [`VERBS`]. The verbs and their options are those of `zkCli.sh` (wire 10);
//! ours beside them: `watch`, `status`, and data from standard input with `-`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use corral_proto::{Acl, CreateMode, Id, path, perms};

/// Nodes that `deleteall` deletes in one transaction unless `-b` says otherwise (ZooKeeper's default).
pub const DELETE_BATCH_DEFAULT: usize = 1_000;
/// Largest `-b` of `deleteall`: a transaction stays far below the frame limit.
pub const DELETE_BATCH_MAX: usize = 10_000;
/// Longest time to live that a znode can have, in ms (40 bits).
pub const TTL_MS_MAX: i64 = (1 << 40) - 1;

/// One line of `help`.
pub struct Verb {
    /// What is typed.
    pub name: &'static str,
    /// Its options and arguments.
    pub usage: &'static str,
    /// What it does.
    pub about: &'static str,
}

/// Every verb, ascending without regard to case: `help` and completion list them.
pub const VERBS: &[Verb] = &[
    Verb {
        name: "addWatch",
        usage: "[-m mode] path",
        about: "watch for good; mode PERSISTENT or PERSISTENT_RECURSIVE",
    },
    Verb { name: "addauth", usage: "scheme auth", about: "add an identity to this session, as digest user:password" },
    Verb { name: "close", usage: "", about: "close the session" },
    Verb { name: "config", usage: "[-s] [-w]", about: "print /zookeeper/config" },
    Verb { name: "connect", usage: "host:port[,...][/chroot]", about: "close the session, open another" },
    Verb {
        name: "create",
        usage: "[-s] [-e] [-c] [-t ttl] path [data|-] [acl]",
        about: "create a znode: -s sequential, -e ephemeral, -c container, -t time to live in ms",
    },
    Verb { name: "delete", usage: "[-v version] path", about: "delete a znode without children" },
    Verb { name: "deleteall", usage: "[-b batch] path", about: "delete a subtree" },
    Verb {
        name: "get",
        usage: "[-s] [-w] [-b] [-x] path",
        about: "print data: -s with stat, -b as base64, -x as hex dump; to a pipe: the exact bytes",
    },
    Verb { name: "getAcl", usage: "[-s] path", about: "print the access control list" },
    Verb { name: "getAllChildrenNumber", usage: "path", about: "count the descendants" },
    Verb { name: "getEphemerals", usage: "[path]", about: "list this session's ephemerals below a path" },
    Verb { name: "help", usage: "[verb]", about: "print this list, or one line of it" },
    Verb { name: "history", usage: "", about: "list the last commands" },
    Verb { name: "ls", usage: "[-s] [-w] [-R] path", about: "list children: -s with stat, -w watch, -R whole subtree" },
    Verb { name: "printwatches", usage: "[on|off]", about: "whether watch events are printed" },
    Verb { name: "quit", usage: "", about: "leave (also: exit, Ctrl-D)" },
    Verb { name: "redo", usage: "number", about: "do a command of the history again" },
    Verb { name: "removewatches", usage: "[-c|-d|-p|-r|-a] path", about: "remove watches of this session" },
    Verb {
        name: "set",
        usage: "[-s] [-v version] [-b] path data|-",
        about: "replace data: -s print stat, -b data is base64",
    },
    Verb {
        name: "setAcl",
        usage: "[-s] [-v version] [-R] path acl",
        about: "replace the ACL: -R of the whole subtree",
    },
    Verb { name: "stat", usage: "[-w] path", about: "print the stat" },
    Verb { name: "status", usage: "", about: "ask every server of the connect string how it is" },
    Verb { name: "sync", usage: "path", about: "wait until this server has caught up with the leader" },
    Verb { name: "version", usage: "", about: "print the version of this program" },
    Verb {
        name: "watch",
        usage: "[-r] [-n count] path",
        about: "print events as they come: -r of the whole subtree, -n leave after so many",
    },
    Verb { name: "whoami", usage: "", about: "print the identities of this session" },
];

/// How `get` shows bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As UTF-8.
    Text,
    /// As base64.
    Base64,
    /// As a hex dump.
    Hex,
}

/// Where `set` and `create` take their data from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The command line.
    Bytes(Vec<u8>),
    /// All of standard input; decoded from base64 if `base64`.
    Stdin {
        /// Whether what comes is base64.
        base64: bool,
    },
}

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

/// What the user wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `ls`
    Ls { path: String, stat: bool, watch: bool, recursive: bool },
    /// `get`
    Get { path: String, stat: bool, watch: bool, form: Form },
    /// `set`
    Set { path: String, data: Input, stat: bool, version: i32 },
    /// `create`; `acl` `None`: open to all.
    Create { path: String, data: Option<Input>, acl: Option<Vec<Acl>>, mode: CreateMode, ttl_ms: i64 },
    /// `delete`
    Delete { path: String, version: i32 },
    /// `deleteall`
    DeleteAll { path: String, batch: usize },
    /// `stat`
    Stat { path: String, watch: bool },
    /// `getAcl`
    GetAcl { path: String, stat: bool },
    /// `setAcl`
    SetAcl { path: String, acl: Vec<Acl>, stat: bool, version: i32, recursive: bool },
    /// `sync`
    Sync { path: String },
    /// `addauth`
    AddAuth { scheme: String, auth: Vec<u8> },
    /// `getEphemerals`
    GetEphemerals { prefix: String },
    /// `getAllChildrenNumber`
    CountDescendants { path: String },
    /// `whoami`
    WhoAmI,
    /// `watch`; `count` `None`: until Ctrl-C.
    Watch { path: String, recursive: bool, count: Option<u64> },
    /// `addWatch`
    AddWatch { path: String, recursive: bool },
    /// `removewatches`
    RemoveWatches { path: String, sort: WatchSort },
    /// `config`
    Config { stat: bool, watch: bool },
    /// `status`
    Status,
    /// `version`
    Version,
    /// `help`
    Help { verb: Option<String> },
    /// `history`
    History,
    /// `redo`
    Redo { number: usize },
    /// `printwatches`; `None`: say which.
    PrintWatches { on: Option<bool> },
    /// `connect`
    Connect { hosts: String },
    /// `close`
    Close,
    /// `quit`, `exit`
    Quit,
}

/// A command, and what to tell the user about the way they wrote it (on standard error).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// What to do.
    pub command: Command,
    /// Old forms that still work.
    pub notice: Option<String>,
}

/// Why words are not a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// ZooKeeper's text, which scripts look for.
    #[error("Command not found: Command not found {0}")]
    UnknownCommand(String),
    /// The verb exists, the rest of the line does not fit it.
    #[error("{problem}\nusage: {usage}")]
    Usage {
        /// What is wrong.
        problem: String,
        /// The verb's line of `help`.
        usage: String,
    },
    /// The line cannot be cut into words.
    #[error("{0}")]
    Words(String),
}

/// Cuts a line into words. A quote (`"` or `'`) counts at the beginning of a word only, so that JSON may be typed as
/// it is; in double quotes `\"` and `\\` stand for `"` and `\`.
///
/// # Errors
/// An open quote, or text right after a closing one.
pub fn words(line: &str) -> Result<Vec<String>, ParseError> {
    let mut out = Vec::new();
    let mut chars = line.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let Some(&first) = chars.peek() else { return Ok(out) };
        let mut word = String::new();
        if first == '"' || first == '\'' {
            chars.next();
            loop {
                match chars.next() {
                    None => return Err(ParseError::Words(format!("the quote {first} is not closed"))),
                    Some(c) if c == first => break,
                    Some('\\') if first == '"' && matches!(chars.peek(), Some('"' | '\\')) => word.extend(chars.next()),
                    Some(c) => word.push(c),
                }
            }
            if chars.peek().is_some_and(|c| !c.is_whitespace()) {
                return Err(ParseError::Words(format!("a blank must follow the closing {first}")));
            }
        } else {
            while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
                word.push(c);
            }
        }
        out.push(word);
    }
}

/// The verb's line of help; for `exit`, that of `quit`.
pub fn usage(name: &str) -> Option<String> {
    let verb = VERBS.iter().find(|v| v.name == name)?;
    Some(format!("{} {}", verb.name, verb.usage).trim_end().to_owned())
}

/// Turns words into a command. `words` must not be empty.
///
/// # Errors
/// [`ParseError`]: the verb is unknown, or its arguments do not fit.
pub fn parse(words: &[String]) -> Result<Parsed, ParseError> {
    let (verb, rest) = words.split_first().ok_or_else(|| ParseError::Words("no command given".to_owned()))?;
    let mut notice = None;
    let command = match verb.as_str() {
        "ls" | "ls2" => {
            let mut args = Args::read("ls", rest, "swR", "")?;
            let path = args.path()?;
            let old_watch = args.old_flag("ls path [watch]", "ls [-w] path", &mut notice)?;
            if verb == "ls2" {
                notice = Some("'ls2' has been deprecated. Please use 'ls [-s] path' instead.".to_owned());
            }
            let watch = args.flag('w') || old_watch;
            let (stat, recursive) = (args.flag('s') || verb == "ls2", args.flag('R'));
            if recursive && watch {
                return Err(args.wrong("-R and -w do not go together; use addWatch"));
            }
            Command::Ls { path, stat, watch, recursive }
        }
        "get" => {
            let mut args = Args::read("get", rest, "swbx", "")?;
            let path = args.path()?;
            let old_watch = args.old_flag("get path [watch]", "get [-s] [-w] path", &mut notice)?;
            let form = match (args.flag('b'), args.flag('x')) {
                (false, false) => Form::Text,
                (true, false) => Form::Base64,
                (false, true) => Form::Hex,
                (true, true) => return Err(args.wrong("-b and -x do not go together")),
            };
            Command::Get { path, stat: args.flag('s'), watch: args.flag('w') || old_watch, form }
        }
        "set" => {
            let mut args = Args::read("set", rest, "sb", "v")?;
            let path = args.path()?;
            let text = args.required("data")?;
            let mut version = args.version()?;
            if let Some(old) = args.optional() {
                version = args.number("version", &old)?;
                notice = Some(deprecated("set path data [version]", "set [-s] [-v version] path data"));
            }
            args.end()?;
            let data = args.input(&text, args.flag('b'))?;
            Command::Set { path, data, stat: args.flag('s'), version }
        }
        "create" => parse_create(rest)?,
        "delete" => {
            let mut args = Args::read("delete", rest, "", "v")?;
            let path = args.path()?;
            let mut version = args.version()?;
            if let Some(old) = args.optional() {
                version = args.number("version", &old)?;
                notice = Some(deprecated("delete path [version]", "delete [-v version] path"));
            }
            args.end()?;
            Command::Delete { path, version }
        }
        "deleteall" | "rmr" => {
            let mut args = Args::read("deleteall", rest, "", "b")?;
            let path = args.path()?;
            args.end()?;
            if path == "/" {
                return Err(args.wrong("the whole tree cannot be deleted; name a subtree"));
            }
            let batch = match args.value('b') {
                None => DELETE_BATCH_DEFAULT,
                Some(text) => match text.parse() {
                    Ok(batch) if (1..=DELETE_BATCH_MAX).contains(&batch) => batch,
                    _ => return Err(args.wrong(&format!("batch must be 1 to {DELETE_BATCH_MAX}: {text}"))),
                },
            };
            if verb == "rmr" {
                notice = Some("The command 'rmr' has been deprecated. Please use 'deleteall' instead.".to_owned());
            }
            Command::DeleteAll { path, batch }
        }
        "stat" => {
            let mut args = Args::read("stat", rest, "w", "")?;
            let path = args.path()?;
            let old_watch = args.old_flag("stat path [watch]", "stat [-w] path", &mut notice)?;
            Command::Stat { path, watch: args.flag('w') || old_watch }
        }
        "getAcl" => {
            let mut args = Args::read("getAcl", rest, "s", "")?;
            let path = args.path()?;
            args.end()?;
            Command::GetAcl { path, stat: args.flag('s') }
        }
        "setAcl" => {
            let mut args = Args::read("setAcl", rest, "sR", "v")?;
            let path = args.path()?;
            let text = args.required("acl")?;
            let version = args.version()?;
            args.end()?;
            let acl = parse_acl(&text).map_err(|problem| args.wrong(&problem))?;
            Command::SetAcl { path, acl, stat: args.flag('s'), version, recursive: args.flag('R') }
        }
        "sync" => Command::Sync { path: only_path("sync", rest)? },
        "addauth" => {
            let mut args = Args::read("addauth", rest, "", "")?;
            let scheme = args.required("scheme")?;
            let auth = args.optional().unwrap_or_default().into_bytes();
            args.end()?;
            Command::AddAuth { scheme, auth }
        }
        "getEphemerals" => {
            let mut args = Args::read("getEphemerals", rest, "", "")?;
            let prefix = if args.is_empty() { "/".to_owned() } else { args.path()? };
            args.end()?;
            Command::GetEphemerals { prefix }
        }
        "getAllChildrenNumber" => Command::CountDescendants { path: only_path("getAllChildrenNumber", rest)? },
        "whoami" => nothing("whoami", rest, Command::WhoAmI)?,
        "watch" => {
            let mut args = Args::read("watch", rest, "r", "n")?;
            let path = args.path()?;
            args.end()?;
            let count = match args.value('n') {
                None => None,
                Some(text) => match text.parse() {
                    Ok(count) if count > 0 => Some(count),
                    _ => return Err(args.wrong(&format!("count must be a positive number: {text}"))),
                },
            };
            Command::Watch { path, recursive: args.flag('r'), count }
        }
        "addWatch" => {
            let mut args = Args::read("addWatch", rest, "", "m")?;
            let path = args.path()?;
            args.end()?;
            let recursive = match args.value('m').map(str::to_ascii_uppercase).as_deref() {
                None | Some("PERSISTENT_RECURSIVE") => true,
                Some("PERSISTENT") => false,
                Some(other) => return Err(args.wrong(&format!("no such mode: {other}"))),
            };
            Command::AddWatch { path, recursive }
        }
        "removewatches" => {
            let mut args = Args::read("removewatches", rest, "cdprla", "")?;
            let path = args.path()?;
            args.end()?;
            let chosen: Vec<WatchSort> = [
                ('c', WatchSort::Children),
                ('d', WatchSort::Data),
                ('p', WatchSort::Persistent),
                ('r', WatchSort::Recursive),
                ('a', WatchSort::Any),
            ]
            .into_iter()
            .filter(|(letter, _)| args.flag(*letter))
            .map(|(_, sort)| sort)
            .collect();
            let sort = match chosen[..] {
                [] => WatchSort::Any,
                [one] => one,
                _ => return Err(args.wrong("only one of -c, -d, -p, -r, -a can be given")),
            };
            Command::RemoveWatches { path, sort }
        }
        "config" => {
            let args = Args::read("config", rest, "sw", "")?;
            args.end()?;
            Command::Config { stat: args.flag('s'), watch: args.flag('w') }
        }
        "status" => nothing("status", rest, Command::Status)?,
        "version" => nothing("version", rest, Command::Version)?,
        "help" => {
            let mut args = Args::read("help", rest, "", "")?;
            let verb = args.optional();
            args.end()?;
            Command::Help { verb }
        }
        "history" => nothing("history", rest, Command::History)?,
        "redo" => {
            let mut args = Args::read("redo", rest, "", "")?;
            let text = args.required("number")?;
            args.end()?;
            Command::Redo { number: args.number("number", &text)? }
        }
        "printwatches" => {
            let mut args = Args::read("printwatches", rest, "", "")?;
            let on = match args.optional().as_deref() {
                None => None,
                Some("on") => Some(true),
                Some("off") => Some(false),
                Some(other) => return Err(args.wrong(&format!("on or off, not {other}"))),
            };
            args.end()?;
            Command::PrintWatches { on }
        }
        "connect" => {
            let mut args = Args::read("connect", rest, "", "")?;
            let hosts = args.required("host:port")?;
            args.end()?;
            Command::Connect { hosts }
        }
        "close" => nothing("close", rest, Command::Close)?,
        "quit" | "exit" => nothing("quit", rest, Command::Quit)?,
        _ => return Err(ParseError::UnknownCommand(verb.clone())),
    };
    Ok(Parsed { command, notice })
}

fn parse_create(rest: &[String]) -> Result<Command, ParseError> {
    let mut args = Args::read("create", rest, "sec", "t")?;
    let (sequential, ephemeral, container) = (args.flag('s'), args.flag('e'), args.flag('c'));
    let ttl_ms = match args.value('t') {
        None => None,
        Some(text) => match text.parse::<i64>() {
            Ok(ttl) if (1..=TTL_MS_MAX).contains(&ttl) => Some(ttl),
            _ => return Err(args.wrong(&format!("ttl must be 1 to {TTL_MS_MAX} ms: {text}"))),
        },
    };
    let mode = match (container, ephemeral, sequential, ttl_ms.is_some()) {
        (true, false, false, false) => CreateMode::Container,
        (true, ..) => {
            return Err(args.wrong("-c goes with no other option: a container is not ephemeral, sequential, or timed"));
        }
        (false, true, _, true) => {
            return Err(args.wrong("-t and -e do not go together: an ephemeral has no time to live"));
        }
        (false, true, false, false) => CreateMode::Ephemeral,
        (false, true, true, false) => CreateMode::EphemeralSequential,
        (false, false, false, false) => CreateMode::Persistent,
        (false, false, true, false) => CreateMode::PersistentSequential,
        (false, false, false, true) => CreateMode::PersistentWithTtl,
        (false, false, true, true) => CreateMode::PersistentSequentialWithTtl,
    };
    let path = args.required("path")?;
    // The number is appended to what is given, so `/queue/` names a child of `/queue` that is all number.
    let final_path = if sequential { format!("{path}0") } else { path.clone() };
    check_path(&final_path).map_err(|problem| args.wrong(&problem))?;
    let data = match args.optional() {
        None => None,
        Some(text) => Some(args.input(&text, false)?),
    };
    let acl = match args.optional() {
        None => None,
        Some(text) => Some(parse_acl(&text).map_err(|problem| args.wrong(&problem))?),
    };
    args.end()?;
    Ok(Command::Create { path, data, acl, mode, ttl_ms: ttl_ms.unwrap_or(0) })
}

/// Parses `scheme:id:perms[,...]`: the scheme ends at the first colon, the permissions start after the last.
///
/// # Errors
/// A sentence that names the faulty part.
pub fn parse_acl(text: &str) -> Result<Vec<Acl>, String> {
    let mut parts: Vec<String> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match parts.last_mut() {
            // The subject of a certificate has commas of its own; its entry ends with permissions.
            Some(last) if last.starts_with("x509:") && last.matches(':').count() < 2 => {
                last.push(',');
                last.push_str(part);
            }
            _ => parts.push(part.to_owned()),
        }
    }
    parts
        .iter()
        .map(|part| parse_acl_entry(part))
        .collect::<Result<Vec<_>, _>>()
        .and_then(|list| if list.is_empty() { Err("the ACL is empty".to_owned()) } else { Ok(list) })
}

fn parse_acl_entry(part: &str) -> Result<Acl, String> {
    let malformed = || format!("{part} does not have the form scheme:id:perm");
    let (scheme, rest) = part.split_once(':').ok_or_else(malformed)?;
    let (id, letters) = rest.rsplit_once(':').ok_or_else(malformed)?;
    let mut bits = 0;
    for letter in letters.chars() {
        bits |= match letter {
            'c' => perms::CREATE,
            'd' => perms::DELETE,
            'r' => perms::READ,
            'w' => perms::WRITE,
            'a' => perms::ADMIN,
            other => return Err(format!("no such permission: {other} (in {part}); the letters are cdrwa")),
        };
    }
    Ok(Acl { perms: bits, id: Id::new(scheme, id) })
}

/// Says what is wrong with a path, if anything.
fn check_path(text: &str) -> Result<(), String> {
    if !text.starts_with('/') {
        return Err(format!("Path must start with / character: {text}"));
    }
    path::validate(text).map_err(|_| {
        let why = if text.ends_with('/') {
            "it ends with /"
        } else if text.contains("//") {
            "a name in it is empty"
        } else if text.split('/').any(|name| name == "." || name == "..") {
            "a name in it is . or .."
        } else {
            "it holds a character that names may not hold"
        };
        format!("Invalid path {text:?}: {why}")
    })
}

fn deprecated(old: &str, new: &str) -> String {
    format!("'{old}' has been deprecated. Please use '{new}' instead.")
}

fn only_path(verb: &'static str, rest: &[String]) -> Result<String, ParseError> {
    let mut args = Args::read(verb, rest, "", "")?;
    let path = args.path()?;
    args.end()?;
    Ok(path)
}

fn nothing(verb: &'static str, rest: &[String], command: Command) -> Result<Command, ParseError> {
    Args::read(verb, rest, "", "")?.end()?;
    Ok(command)
}

/// A verb's options and what is left, as commons-cli reads them: options anywhere, short ones may be joined,
/// `--` ends them, a negative number and a single `-` are no options.
struct Args {
    verb: &'static str,
    flags: Vec<char>,
    values: Vec<(char, String)>,
    positional: std::collections::VecDeque<String>,
}

impl Args {
    fn read(verb: &'static str, rest: &[String], flags: &str, valued: &str) -> Result<Args, ParseError> {
        let mut args =
            Args { verb, flags: Vec::new(), values: Vec::new(), positional: std::collections::VecDeque::new() };
        let mut words = rest.iter();
        while let Some(word) = words.next() {
            if word == "--" {
                args.positional.extend(words.by_ref().cloned());
                break;
            }
            let letters = match word.strip_prefix('-') {
                Some(letters) if !letters.is_empty() && word.parse::<f64>().is_err() => letters,
                _ => {
                    args.positional.push_back(word.clone());
                    continue;
                }
            };
            for (index, letter) in letters.char_indices() {
                if valued.contains(letter) {
                    let glued = &letters[index + letter.len_utf8()..];
                    let value = match glued.strip_prefix('=').unwrap_or(glued) {
                        "" => words.next().cloned().ok_or_else(|| args.wrong(&format!("-{letter} needs a value")))?,
                        text => text.to_owned(),
                    };
                    args.values.push((letter, value));
                    break;
                } else if flags.contains(letter) {
                    args.flags.push(letter);
                } else {
                    return Err(args.wrong(&format!(
                        "Unrecognized option: {word} (put -- before a word that only looks like an option)"
                    )));
                }
            }
        }
        Ok(args)
    }

    fn wrong(&self, problem: &str) -> ParseError {
        ParseError::Usage { problem: problem.to_owned(), usage: usage(self.verb).unwrap_or_default() }
    }

    fn flag(&self, letter: char) -> bool {
        self.flags.contains(&letter)
    }

    fn value(&self, letter: char) -> Option<&str> {
        self.values.iter().rev().find(|(l, _)| *l == letter).map(|(_, value)| value.as_str())
    }

    fn is_empty(&self) -> bool {
        self.positional.is_empty()
    }

    fn optional(&mut self) -> Option<String> {
        self.positional.pop_front()
    }

    fn required(&mut self, what: &str) -> Result<String, ParseError> {
        self.optional().ok_or_else(|| self.wrong(&format!("{what} is missing")))
    }

    fn path(&mut self) -> Result<String, ParseError> {
        let path = self.required("path")?;
        check_path(&path).map_err(|problem| self.wrong(&problem))?;
        Ok(path)
    }

    fn end(&self) -> Result<(), ParseError> {
        match self.positional.front() {
            None => Ok(()),
            Some(extra) => Err(self.wrong(&format!("too many arguments: {extra}"))),
        }
    }

    fn number<T: std::str::FromStr>(&self, what: &str, text: &str) -> Result<T, ParseError> {
        text.parse().map_err(|_| self.wrong(&format!("{what} must be a number: {text}")))
    }

    /// `-v`: the expected version, -1 (any) without it.
    fn version(&self) -> Result<i32, ParseError> {
        self.value('v').map_or(Ok(-1), |text| self.number("version", text))
    }

    /// The old positional `watch` after the path; any word counts, as it did in ZooKeeper.
    fn old_flag(&mut self, old: &str, new: &str, notice: &mut Option<String>) -> Result<bool, ParseError> {
        let given = self.optional().is_some();
        self.end()?;
        if given {
            *notice = Some(deprecated(old, new));
        }
        Ok(given)
    }

    fn input(&self, text: &str, base64: bool) -> Result<Input, ParseError> {
        if text == "-" {
            return Ok(Input::Stdin { base64 });
        }
        if base64 {
            return decode_base64(text.as_bytes()).map(Input::Bytes).map_err(|problem| self.wrong(&problem));
        }
        Ok(Input::Bytes(text.as_bytes().to_vec()))
    }
}

/// Decodes base64, line breaks allowed.
///
/// # Errors
/// A sentence for people.
pub fn decode_base64(text: &[u8]) -> Result<Vec<u8>, String> {
    let clean: Vec<u8> = text.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect();
    STANDARD.decode(clean).map_err(|error| format!("the data is not base64: {error}"))
}

/// Where completion of the word that ends at `cursor` starts, and what kind of word it is.
#[derive(Debug, PartialEq, Eq)]
pub enum Completion {
    /// The first word.
    Verb {
        /// Byte offset of its first character.
        start: usize,
    },
    /// A path: children of `parent` whose names start with `prefix`.
    Path {
        /// Byte offset of the first character of the last name.
        start: usize,
        /// Whose children.
        parent: String,
        /// What is typed of the name.
        prefix: String,
    },
    /// Nothing that we know.
    Nothing,
}

/// What the word at the end of `line[..cursor]` could become.
pub fn completion(line: &str, cursor: usize) -> Completion {
    let Some(head) = line.get(..cursor) else { return Completion::Nothing };
    let start =
        head.rfind(char::is_whitespace).map_or(0, |at| at + head[at..].chars().next().map_or(1, char::len_utf8));
    if head[..start].trim().is_empty() {
        return Completion::Verb { start };
    }
    let word = &head[start..];
    // A quoted path is completed inside its quote.
    let quote = usize::from(word.starts_with(['"', '\'']));
    let word = &word[quote..];
    let Some(slash) = word.rfind('/').filter(|_| word.starts_with('/')) else { return Completion::Nothing };
    let parent = if slash == 0 { "/" } else { &word[..slash] };
    Completion::Path {
        start: start + quote + slash + 1,
        parent: parent.to_owned(),
        prefix: word[slash + 1..].to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Result<Parsed, ParseError> {
        parse(&words(line).expect("a line with closed quotes"))
    }

    fn command(line: &str) -> Command {
        one(line).unwrap_or_else(|error| panic!("{line}: {error}")).command
    }

    fn problem(line: &str) -> String {
        match one(line) {
            Err(ParseError::Usage { problem, usage }) => {
                assert!(!usage.is_empty(), "{line}: no usage line");
                problem
            }
            other => panic!("{line}: {other:?}"),
        }
    }

    fn bytes(text: &str) -> Input {
        Input::Bytes(text.as_bytes().to_vec())
    }

    #[test]
    fn words_are_cut_at_blanks_and_quotes_count_only_at_a_words_start() {
        let cut = |line: &str| words(line).expect("closed quotes");
        assert_eq!(cut("  set /p  x "), ["set", "/p", "x"]);
        assert_eq!(cut(r#"set /p "two words""#), ["set", "/p", "two words"]);
        assert_eq!(cut("set /p 'it is \"so\"'"), ["set", "/p", "it is \"so\""]);
        assert_eq!(cut(r#"set /p "a \"b\" \\ \n""#), ["set", "/p", r#"a "b" \ \n"#]);
        assert_eq!(cut(r#"set /p {"a":1}"#), ["set", "/p", r#"{"a":1}"#]);
        assert_eq!(cut("set /p ''"), ["set", "/p", ""]);
        assert!(cut("   ").is_empty());
    }

    #[test]
    fn open_quotes_and_text_glued_to_a_quote_are_refused() {
        assert!(words("set /p 'x").is_err());
        assert!(words("set /p 'x'y").is_err());
    }

    #[test]
    fn options_may_stand_anywhere_and_be_joined() {
        let expected = Command::Ls { path: "/a".into(), stat: true, watch: true, recursive: false };
        for line in ["ls -s -w /a", "ls /a -s -w", "ls -sw /a", "ls -w /a -s"] {
            assert_eq!(command(line), expected, "{line}");
        }
    }

    #[test]
    fn get_chooses_its_form() {
        let get = |form, stat| Command::Get { path: "/a".into(), stat, watch: false, form };
        assert_eq!(command("get /a"), get(Form::Text, false));
        assert_eq!(command("get -s -b /a"), get(Form::Base64, true));
        assert_eq!(command("get -x /a"), get(Form::Hex, false));
        assert_eq!(problem("get -b -x /a"), "-b and -x do not go together");
    }

    #[test]
    fn set_takes_a_version_by_option_or_in_the_old_place() {
        let set = |version| Command::Set { path: "/a".into(), data: bytes("x"), stat: false, version };
        assert_eq!(command("set /a x"), set(-1));
        assert_eq!(command("set -v 3 /a x"), set(3));
        assert_eq!(command("set -v3 /a x"), set(3));
        assert_eq!(command("set -v=3 /a x"), set(3));
        let old = one("set /a x 3").expect("the old form works");
        assert_eq!(old.command, set(3));
        assert!(old.notice.expect("a notice").contains("deprecated"));
        assert_eq!(problem("set -v three /a x"), "version must be a number: three");
        assert_eq!(problem("set /a"), "data is missing");
        assert_eq!(problem("set -v"), "-v needs a value");
    }

    #[test]
    fn data_may_be_negative_dashed_base64_or_come_from_standard_input() {
        let set = |data| Command::Set { path: "/a".into(), data, stat: false, version: -1 };
        assert_eq!(command("set /a -5"), set(bytes("-5")));
        assert_eq!(command("set /a -- -text"), set(bytes("-text")));
        assert_eq!(command("set -b /a AAH/"), set(Input::Bytes(vec![0, 1, 255])));
        assert_eq!(command("set /a -"), set(Input::Stdin { base64: false }));
        assert_eq!(command("set -b /a -"), set(Input::Stdin { base64: true }));
        assert!(problem("set -b /a !!").contains("not base64"));
        assert!(problem("set /a -text").contains("Unrecognized option: -text"));
    }

    #[test]
    fn create_knows_all_seven_modes_and_refuses_the_rest() {
        for (options, mode, ttl_ms) in [
            ("", CreateMode::Persistent, 0),
            ("-e", CreateMode::Ephemeral, 0),
            ("-s", CreateMode::PersistentSequential, 0),
            ("-s -e", CreateMode::EphemeralSequential, 0),
            ("-c", CreateMode::Container, 0),
            ("-t 500", CreateMode::PersistentWithTtl, 500),
            ("-s -t 500", CreateMode::PersistentSequentialWithTtl, 500),
        ] {
            assert_eq!(
                command(&format!("create {options} /a x")),
                Command::Create { path: "/a".into(), data: Some(bytes("x")), acl: None, mode, ttl_ms },
                "{options}"
            );
        }
        for options in ["-c -s", "-c -e", "-c -t 5", "-e -t 5", "-t 0", "-t -1", "-t x", "-t 1099511627776"] {
            problem(&format!("create {options} /a"));
        }
    }

    #[test]
    fn create_without_data_is_null_and_with_quotes_is_empty() {
        let data = |line: &str| match command(line) {
            Command::Create { data, .. } => data,
            other => panic!("{other:?}"),
        };
        assert_eq!(data("create /a"), None);
        assert_eq!(data("create /a ''"), Some(bytes("")));
        assert_eq!(data("create /a -"), Some(Input::Stdin { base64: false }));
    }

    #[test]
    fn only_a_sequential_create_may_end_in_a_slash() {
        assert!(matches!(command("create -s /q/"), Command::Create { path, .. } if path == "/q/"));
        assert!(problem("create /q/").contains("ends with /"));
    }

    #[test]
    fn acl_scheme_ends_at_the_first_colon_and_permissions_follow_the_last() {
        let acl = parse_acl("digest:bob:hash=:cdrwa,world:anyone:r").expect("well formed");
        assert_eq!(
            acl,
            [
                Acl { perms: perms::ALL, id: Id::new("digest", "bob:hash=") },
                Acl { perms: perms::READ, id: Id::new("world", "anyone") },
            ]
        );
        assert_eq!(parse_acl("auth::cdrwa").expect("empty id"), Acl::creator_all());
        let subjects = parse_acl("x509:CN=a,O=b,C=DE:r,world:anyone:r,x509:CN=c:w").expect("commas in the id");
        let ids: Vec<&str> = subjects.iter().map(|acl| acl.id.id.as_str()).collect();
        assert_eq!(ids, ["CN=a,O=b,C=DE", "anyone", "CN=c"]);
        assert_eq!(parse_acl("ip:::1:r").expect("colons in the id")[0].id, Id::new("ip", "::1"));
        for bad in ["", ",", "world", "world:anyone", "world:anyone:x"] {
            assert!(parse_acl(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_checked_before_anything_is_sent() {
        assert_eq!(problem("ls a"), "Path must start with / character: a");
        assert_eq!(problem("ls"), "path is missing");
        assert!(problem("get /a//b").contains("empty"));
        assert!(problem("get /a/../b").contains(".."));
        assert!(problem("get /a/").contains("ends with /"));
        assert_eq!(problem("deleteall /"), "the whole tree cannot be deleted; name a subtree");
    }

    #[test]
    fn old_positional_watch_still_works_with_a_notice() {
        for (line, expected) in [
            ("ls /a watch", Command::Ls { path: "/a".into(), stat: false, watch: true, recursive: false }),
            ("stat /a watch", Command::Stat { path: "/a".into(), watch: true }),
            ("get /a watch", Command::Get { path: "/a".into(), stat: false, watch: true, form: Form::Text }),
        ] {
            let parsed = one(line).expect("old form");
            assert_eq!(parsed.command, expected, "{line}");
            assert!(parsed.notice.is_some(), "{line}");
        }
        assert!(matches!(command("ls2 /a"), Command::Ls { stat: true, .. }));
        assert!(matches!(command("rmr /a"), Command::DeleteAll { .. }));
        assert_eq!(problem("ls /a watch more"), "too many arguments: more");
    }

    #[test]
    fn watches_say_what_they_cover() {
        assert_eq!(command("watch /a"), Command::Watch { path: "/a".into(), recursive: false, count: None });
        assert_eq!(command("watch /a -r -n 2"), Command::Watch { path: "/a".into(), recursive: true, count: Some(2) });
        assert_eq!(command("addWatch /a"), Command::AddWatch { path: "/a".into(), recursive: true });
        assert_eq!(command("addWatch -m persistent /a"), Command::AddWatch { path: "/a".into(), recursive: false });
        assert_eq!(
            command("removewatches /a -c"),
            Command::RemoveWatches { path: "/a".into(), sort: WatchSort::Children }
        );
        problem("removewatches /a -c -d");
        problem("watch /a -n 0");
    }

    #[test]
    fn unknown_verbs_get_zookeepers_text() {
        let error = one("frobnicate /a").expect_err("unknown");
        assert_eq!(error.to_string(), "Command not found: Command not found frobnicate");
    }

    #[test]
    fn every_listed_verb_parses() {
        for verb in VERBS {
            let words = vec![verb.name.to_owned()];
            assert!(!matches!(parse(&words), Err(ParseError::UnknownCommand(_))), "{}", verb.name);
        }
    }

    #[test]
    fn completion_finds_verb_or_parent_and_prefix() {
        let at_end = |line: &str| completion(line, line.len());
        assert_eq!(at_end("g"), Completion::Verb { start: 0 });
        assert_eq!(at_end("  g"), Completion::Verb { start: 2 });
        let path = |start, parent: &str, prefix: &str| Completion::Path {
            start,
            parent: parent.into(),
            prefix: prefix.into(),
        };
        assert_eq!(at_end("get /"), path(5, "/", ""));
        assert_eq!(at_end("get /zoo"), path(5, "/", "zoo"));
        assert_eq!(at_end("get -s /a/b/c"), path(12, "/a/b", "c"));
        assert_eq!(at_end("get '/a/b"), path(8, "/a", "b"));
        assert_eq!(at_end("get x"), Completion::Nothing);
    }
}
