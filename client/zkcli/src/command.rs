//! Words to [`Command`]: ZooKeeper's verbs with their old positional forms; other groups of verbs parse their own.
//!
//! Pure: no terminal, no client, no clock. What these verbs do is in `nodes.rs`, how their answers look in `print.rs`.
//! Read first: [`Command`], [`parse`], [`VERBS`]. The verbs and their options are those of `zkCli.sh` (wire 10).

use corral_proto::{Acl, CreateMode};

use crate::failure::exit::{BAD_VERSION, FAILED, NO_NODE, NOT_CONFIRMED, NOT_EMPTY, UNKNOWN_COMMAND};
use crate::verbs::{self, DRY_RUN, Opt, Verb, YES};
use crate::words::{Args, Input, ParseError, check_path, deprecated, parse_acl};
use crate::{context, coordination, copy, meet, quota, shell, sync, transfer, tree, watching};

/// Nodes that `deleteall` deletes in one transaction unless `-b` says otherwise (ZooKeeper's default).
pub const DELETE_BATCH_DEFAULT: usize = 1_000;
/// Largest `-b` of `deleteall`: a transaction stays far below the frame limit.
pub const DELETE_BATCH_MAX: usize = 10_000;
/// Longest time to live that a znode can have, in ms (40 bits).
pub const TTL_MS_MAX: i64 = (1 << 40) - 1;

const STAT: Opt = Opt::flag('s', "with the stat");
const WATCH: Opt = Opt::flag('w', "watch, once");
const VERSION: Opt = Opt::value('v', "version", "only if its version is this");

/// ZooKeeper's verbs.
pub const VERBS: &[Verb] = &[
    Verb {
        name: "addauth",
        args: "scheme auth",
        about: "add an identity to this session, as digest user:password",
        example: "zkcli addauth digest ann:secret",
        ..Verb::PLAIN
    },
    Verb {
        name: "config",
        options: &[STAT, WATCH, Opt::flag('c', "its version and a connect string for clients")],
        about: "print /zookeeper/config: who the servers are",
        example: "zkcli config",
        exits: &[NO_NODE],
        ..Verb::PLAIN
    },
    Verb {
        name: "create",
        args: "path [data|-] [acl]",
        options: &[
            Opt::flag('s', "sequential: the server appends a number"),
            Opt::flag('e', "ephemeral: it goes with the session"),
            Opt::flag('c', "container: it goes after its last child went"),
            Opt::value('t', "ttl", "it goes when nobody changed it for so many ms"),
        ],
        about: "create a znode",
        more: "- takes the data from standard input; without data it is null. The acl is scheme:id:perms[,...].",
        example: "zkcli create -s /demo/job- work",
        exits: &[FAILED, NO_NODE],
        ..Verb::PLAIN
    },
    Verb {
        name: "delete",
        args: "path",
        options: &[VERSION],
        about: "delete a znode without children",
        example: "zkcli delete -v 3 /demo/old",
        exits: &[NO_NODE, BAD_VERSION, NOT_EMPTY],
        ..Verb::PLAIN
    },
    Verb {
        name: "deleteall",
        args: "path",
        options: &[
            Opt::value('b', "batch", "znodes in one transaction, 1 to 10,000; 1,000 if not given"),
            YES,
            DRY_RUN,
        ],
        about: "delete a subtree",
        more: "On a terminal it asks first, with the number of znodes and their size. In scripts it does not ask, as\n\
               zkCli.sh, except in a context that is marked production: there it needs --yes.",
        example: "zkcli deleteall /demo",
        exits: &[NO_NODE, NOT_EMPTY, NOT_CONFIRMED],
        ..Verb::PLAIN
    },
    Verb {
        name: "get",
        args: "path",
        options: &[STAT, WATCH, Opt::flag('b', "as base64"), Opt::flag('x', "as a hex dump")],
        about: "print data; to a pipe: the exact bytes",
        example: "zkcli get -s /demo",
        exits: &[NO_NODE],
        ..Verb::PLAIN
    },
    Verb {
        name: "getAcl",
        args: "path",
        options: &[STAT],
        about: "print the access control list",
        example: "zkcli getAcl /demo",
        exits: &[NO_NODE],
        ..Verb::PLAIN
    },
    Verb {
        name: "getAllChildrenNumber",
        args: "path",
        about: "count the descendants",
        example: "zkcli getAllChildrenNumber /demo",
        exits: &[NO_NODE],
        ..Verb::PLAIN
    },
    Verb {
        name: "getEphemerals",
        args: "[path]",
        about: "list this session's ephemerals below a path",
        example: "zkcli getEphemerals /demo",
        ..Verb::PLAIN
    },
    Verb {
        name: "help",
        args: "[verb]",
        about: "print all verbs, or usage, example and exit codes of one",
        example: "zkcli help get",
        exits: &[UNKNOWN_COMMAND],
        needs_session: false,
        ..Verb::PLAIN
    },
    Verb {
        name: "completions",
        args: "bash|zsh|fish",
        about: "print a completion file for a shell",
        example: "zkcli completions bash > /etc/bash_completion.d/zkcli",
        needs_session: false,
        ..Verb::PLAIN
    },
    Verb {
        name: "ls",
        args: "path",
        options: &[STAT, WATCH, Opt::flag('R', "the whole subtree, one path a line")],
        about: "list children",
        example: "zkcli ls -R /demo",
        exits: &[NO_NODE],
        ..Verb::PLAIN
    },
    Verb {
        name: "reconfig",
        args: "",
        options: &[
            STAT,
            Opt::value('v', "version", "only if the configuration has this version"),
            Opt::long_value("file", "path", "the new members, from a file").or('f'),
            Opt::long_value("members", "list", "the new members"),
            Opt::long_value("add", "list", "servers that join"),
            Opt::long_value("remove", "ids", "servers that leave"),
        ],
        about: "change the members of the ensemble: refused, as these servers do not do it while they run",
        more: "The options are read as zkCli.sh reads them, and the answer is its own: reconfiguration is disabled.",
        example: "zkcli reconfig --remove 3",
        exits: &[FAILED],
        needs_session: false,
    },
    Verb {
        name: "set",
        args: "path data|-",
        options: &[STAT, VERSION, Opt::flag('b', "data is base64")],
        about: "replace data",
        more: "- takes the data from standard input.",
        example: "zkcli set -v 3 /demo 'new data'",
        exits: &[NO_NODE, BAD_VERSION],
        ..Verb::PLAIN
    },
    Verb {
        name: "setAcl",
        args: "path acl",
        options: &[
            STAT,
            Opt::value('v', "version", "only if the ACL's version is this"),
            Opt::flag('R', "of the whole subtree"),
            DRY_RUN,
        ],
        about: "replace the ACL",
        example: "zkcli setAcl /demo world:anyone:r",
        exits: &[FAILED, NO_NODE, BAD_VERSION],
        ..Verb::PLAIN
    },
    Verb {
        name: "stat",
        args: "path",
        options: &[WATCH],
        about: "print the stat",
        example: "zkcli stat /demo",
        exits: &[NO_NODE],
        ..Verb::PLAIN
    },
    Verb {
        name: "status",
        about: "ask every server of the connect string how it is",
        example: "zkcli status",
        exits: &[FAILED, exit_connection()],
        needs_session: false,
        ..Verb::PLAIN
    },
    Verb {
        name: "sync",
        args: "path",
        about: "wait until this server has caught up with the leader",
        example: "zkcli sync /demo",
        ..Verb::PLAIN
    },
    Verb {
        name: "version",
        about: "print the version of this program",
        example: "zkcli version",
        needs_session: false,
        ..Verb::PLAIN
    },
    Verb { name: "whoami", about: "print the identities of this session", example: "zkcli whoami", ..Verb::PLAIN },
];

/// `status` opens no session, and yet may find nobody.
const fn exit_connection() -> u8 {
    crate::failure::exit::CONNECTION
}

/// How `get` shows bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As UTF-8; in a pipe the exact bytes.
    Text,
    /// As UTF-8, with a line end in a pipe, too.
    Lines,
    /// As base64.
    Base64,
    /// As a hex dump.
    Hex,
}

/// What the user wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// `ls`
    Ls {
        path: String,
        stat: bool,
        watch: bool,
        recursive: bool,
    },
    /// `get`
    Get {
        path: String,
        stat: bool,
        watch: bool,
        form: Form,
    },
    /// `set`
    Set {
        path: String,
        data: Input,
        stat: bool,
        version: i32,
    },
    /// `create`; `acl` `None`: open to all.
    Create {
        path: String,
        data: Option<Input>,
        acl: Option<Vec<Acl>>,
        mode: CreateMode,
        ttl_ms: i64,
    },
    /// `delete`
    Delete {
        path: String,
        version: i32,
    },
    /// `deleteall`
    DeleteAll {
        path: String,
        batch: usize,
        yes: bool,
        dry_run: bool,
    },
    /// `stat`
    Stat {
        path: String,
        watch: bool,
    },
    /// `getAcl`
    GetAcl {
        path: String,
        stat: bool,
    },
    /// `setAcl`
    SetAcl {
        path: String,
        acl: Vec<Acl>,
        stat: bool,
        version: i32,
        recursive: bool,
        dry_run: bool,
    },
    /// `sync`
    Sync {
        path: String,
    },
    /// `addauth`
    AddAuth {
        scheme: String,
        auth: Vec<u8>,
    },
    /// `getEphemerals`
    GetEphemerals {
        prefix: String,
    },
    /// `getAllChildrenNumber`
    CountDescendants {
        path: String,
    },
    /// `whoami`
    WhoAmI,
    /// `config`
    Config {
        stat: bool,
        watch: bool,
        connect: bool,
    },
    /// `reconfig`
    Reconfig,
    /// `status`
    Status,
    /// `version`
    Version,
    /// `help`
    Help {
        verb: Option<String>,
    },
    /// `completions`
    Completions(clap_complete::Shell),
    Quota(quota::Task),
    Tree(tree::Task),
    Copy(copy::Task),
    SyncDir(sync::Task),
    Transfer(transfer::Task),
    Coordinate(coordination::Task),
    Meet(meet::Task),
    Watch(watching::Task),
    Context(context::Task),
    Shell(shell::Task),
}

/// A command, and what to tell the user about the way they wrote it (on standard error).
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// What to do.
    pub command: Command,
    /// Its row.
    pub verb: &'static Verb,
    /// Old forms that still work.
    pub notice: Option<String>,
}

/// Turns words into a command. `words` must not be empty. `cwd`: where relative paths begin.
///
/// # Errors
/// [`ParseError`]: the verb is unknown, or its arguments do not fit.
pub fn parse(words: &[String], cwd: Option<&str>) -> Result<Parsed, ParseError> {
    let (typed, rest) = words.split_first().ok_or_else(|| ParseError::Words("no command given".to_owned()))?;
    let mut notice = None;
    let name = match typed.as_str() {
        "ls2" => {
            notice = Some("'ls2' has been deprecated. Please use 'ls [-s] path' instead.".to_owned());
            "ls"
        }
        "rmr" => {
            notice = Some("The command 'rmr' has been deprecated. Please use 'deleteall' instead.".to_owned());
            "deleteall"
        }
        "exit" => "quit",
        name => name,
    };
    let unknown = || ParseError::UnknownCommand { name: typed.clone(), in_shell: cwd.is_some() };
    let verb = verbs::find(name).ok_or_else(unknown)?;
    if rest.iter().take_while(|word| *word != "--").any(|word| word == "--help") {
        let verb = Some(verb.name.to_owned());
        return Ok(Parsed { command: Command::Help { verb }, verb: verbs::find("help").ok_or_else(unknown)?, notice });
    }
    // ZooKeeper's shell takes one dash before these.
    let rest: Vec<String> = match name {
        "reconfig" => rest.iter().map(|word| two_dashes(word)).collect(),
        _ => rest.to_vec(),
    };
    let args = Args::read(verb, &rest, cwd)?;
    let command = match name {
        "listquota" | "setquota" | "delquota" => Command::Quota(quota::parse(args)?),
        "tree" | "find" | "grep" | "du" | "top-children" => Command::Tree(tree::parse(name, args)?),
        "cp" | "mv" | "diff" => Command::Copy(copy::parse(name, args)?),
        "sync-dir" => Command::SyncDir(sync::parse(args)?),
        "export" | "import" => Command::Transfer(transfer::parse(name, args)?),
        "lock" | "semaphore" | "elect" | "locks" => Command::Coordinate(coordination::parse(name, args)?),
        "barrier" | "queue" | "counter" => Command::Meet(meet::parse(name, args)?),
        "watch" | "addWatch" | "removewatches" | "printwatches" => Command::Watch(watching::parse(name, args)?),
        "ctx" => Command::Context(context::parse(args)?),
        _ if shell::VERBS.iter().any(|verb| verb.name == name) => Command::Shell(shell::parse(name, args)?),
        _ => parse_own(name, typed, args, &mut notice)?.ok_or_else(unknown)?,
    };
    Ok(Parsed { command, verb, notice })
}

fn two_dashes(word: &str) -> String {
    match word {
        "-file" | "-members" | "-add" | "-remove" => format!("-{word}"),
        other => other.to_owned(),
    }
}

/// `None`: it is none of these.
fn parse_own(
    name: &str,
    typed: &str,
    mut args: Args<'_>,
    notice: &mut Option<String>,
) -> Result<Option<Command>, ParseError> {
    let command = match name {
        "ls" => {
            let path = args.path_in_shell()?;
            let old_watch = args.old_flag("ls path [watch]", "ls [-w] path", notice)?;
            let watch = args.flag("w") || old_watch;
            let (stat, recursive) = (args.flag("s") || typed == "ls2", args.flag("R"));
            if recursive && watch {
                return Err(args.wrong("-R and -w do not go together; use addWatch"));
            }
            Command::Ls { path, stat, watch, recursive }
        }
        "get" => {
            let path = args.path()?;
            let old_watch = args.old_flag("get path [watch]", "get [-s] [-w] path", notice)?;
            let form = match (args.flag("b"), args.flag("x")) {
                (false, false) => Form::Text,
                (true, false) => Form::Base64,
                (false, true) => Form::Hex,
                (true, true) => return Err(args.wrong("-b and -x do not go together")),
            };
            Command::Get { path, stat: args.flag("s"), watch: args.flag("w") || old_watch, form }
        }
        "set" => {
            let path = args.path()?;
            let text = args.required("data")?;
            let mut version = args.version()?;
            if let Some(old) = args.optional() {
                version = args.number("version", &old)?;
                *notice = Some(deprecated("set path data [version]", "set [-s] [-v version] path data"));
            }
            args.end()?;
            let data = args.input(&text, args.flag("b"))?;
            Command::Set { path, data, stat: args.flag("s"), version }
        }
        "create" => return parse_create(args).map(Some),
        "delete" => {
            let path = args.path()?;
            let mut version = args.version()?;
            if let Some(old) = args.optional() {
                version = args.number("version", &old)?;
                *notice = Some(deprecated("delete path [version]", "delete [-v version] path"));
            }
            Command::Delete { path, version }
        }
        "deleteall" => {
            let path = args.path()?;
            if path == "/" {
                return Err(args.wrong("the whole tree cannot be deleted; name a subtree"));
            }
            let batch = match args.value("b") {
                None => DELETE_BATCH_DEFAULT,
                Some(text) => match text.parse() {
                    Ok(batch) if (1..=DELETE_BATCH_MAX).contains(&batch) => batch,
                    _ => return Err(args.wrong(&format!("batch must be 1 to {DELETE_BATCH_MAX}: {text}"))),
                },
            };
            Command::DeleteAll { path, batch, yes: args.flag("yes"), dry_run: args.flag("dry-run") }
        }
        "stat" => {
            let path = args.path()?;
            let old_watch = args.old_flag("stat path [watch]", "stat [-w] path", notice)?;
            Command::Stat { path, watch: args.flag("w") || old_watch }
        }
        "getAcl" => Command::GetAcl { path: args.path()?, stat: args.flag("s") },
        "setAcl" => {
            let path = args.path()?;
            let text = args.required("acl")?;
            let version = args.version()?;
            let acl = parse_acl(&text).map_err(|problem| args.wrong(&problem))?;
            let (stat, recursive, dry_run) = (args.flag("s"), args.flag("R"), args.flag("dry-run"));
            Command::SetAcl { path, acl, stat, version, recursive, dry_run }
        }
        "sync" => Command::Sync { path: args.path()? },
        "addauth" => {
            let scheme = args.required("scheme")?;
            Command::AddAuth { scheme, auth: args.optional().unwrap_or_default().into_bytes() }
        }
        "getEphemerals" => {
            Command::GetEphemerals { prefix: if args.is_empty() { "/".to_owned() } else { args.path()? } }
        }
        "getAllChildrenNumber" => Command::CountDescendants { path: args.path()? },
        "whoami" => Command::WhoAmI,
        "config" => Command::Config { stat: args.flag("s"), watch: args.flag("w"), connect: args.flag("c") },
        "reconfig" => Command::Reconfig,
        "status" => Command::Status,
        "version" => Command::Version,
        "help" => Command::Help { verb: args.optional() },
        "completions" => {
            let shell = args.required("bash, zsh or fish")?;
            Command::Completions(shell.parse().map_err(|_| args.wrong(&format!("no completions for {shell}")))?)
        }
        _ => return Ok(None),
    };
    args.end()?;
    Ok(Some(command))
}

fn parse_create(mut args: Args<'_>) -> Result<Command, ParseError> {
    let (sequential, ephemeral, container) = (args.flag("s"), args.flag("e"), args.flag("c"));
    let ttl_ms = match args.value("t") {
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
    let typed = args.required("path")?;
    let path = args.resolve(&typed);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::words;

    fn one(line: &str) -> Result<Parsed, ParseError> {
        parse(&words(line).expect("a line with closed quotes"), None)
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
        assert_eq!(problem("ls /a localhost"), "too many arguments: localhost");
    }

    #[test]
    fn unknown_verbs_get_zookeepers_text() {
        let error = one("frobnicate /a").expect_err("unknown");
        assert_eq!(error.to_string(), "Command not found: frobnicate: `zkcli help` lists the commands");
        let in_shell = parse(&["frobnicate".to_owned()], Some("/")).expect_err("unknown");
        assert_eq!(in_shell.to_string(), "Command not found: frobnicate: `help` lists the commands");
        let other_case = one("getacl /a").expect_err("unknown");
        assert_eq!(other_case.to_string(), "Command not found: getacl: getAcl is written so");
    }

    #[test]
    fn options_of_the_program_are_refused_behind_every_verb() {
        for verb in verbs::all() {
            for option in ["-s 127.0.0.1:2181", "--timeout 5", "--server=h:1", "-server h:1", "-o json"] {
                let line = format!("{} /a {option}", verb.name);
                let problem = problem(&line);
                let word = option.split(' ').next().expect("an option");
                assert!(problem.starts_with(&format!("Unrecognized option: {word}")), "{line}: {problem}");
                assert!(problem.contains("come before the verb: zkcli "), "{line}: {problem}");
            }
            let help = one(&format!("{} /a --help", verb.name)).expect("a way to help");
            assert_eq!(help.command, Command::Help { verb: Some(verb.name.to_owned()) });
        }
        assert_eq!(
            problem("ls / -s 127.0.0.1:2181"),
            "Unrecognized option: -s 127.0.0.1:2181: options of zkcli itself come before the verb: \
             zkcli -s 127.0.0.1:2181 ls ..."
        );
        // What is data can be said to be data.
        assert!(matches!(
            command("create /a -s -- h:1"),
            Command::Create { mode: CreateMode::PersistentSequential, .. }
        ));
        assert!(matches!(command("create -s /a h:1"), Command::Create { mode: CreateMode::PersistentSequential, .. }));
        let in_shell = parse(&["ls", "/", "-o", "json"].map(str::to_owned), Some("/")).expect_err("no option of ls");
        assert!(in_shell.to_string().contains("given when the shell is started"), "{in_shell}");
    }
}
