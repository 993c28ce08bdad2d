//! Looking around in a subtree: `tree`, `find`, `grep`, `du`, `top-children`.
//!
//! All of them read pages of the subtree ([`Scan`]). `find` and `grep` answer as pages come and hold nothing; `du` and
//! `top-children` hold sums; `tree` holds paths, as it prints them in their order.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use corral_client::{SubtreeNode, path as paths};
use regex::bytes::{Regex, RegexBuilder};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::failure::exit::{FAILED, NO_NODE};
use crate::print::{Output, stat_json};
use crate::progress::Progress;
use crate::run::Runner;
use crate::scan::{Scan, below};
use crate::verbs::{Opt, Verb};
use crate::words::{Args, ParseError};

/// Znodes that `tree` holds at most; for more there is `ls -R`.
const TREE_MAX: usize = 1_000_000;
/// Rows that `top-children` shows if nothing else is said.
const TOP_DEFAULT: u64 = 10;
/// Most that it holds.
const TOP_MAX: u64 = 100_000;

pub const VERBS: &[Verb] = &[
    Verb {
        name: "tree",
        args: "[path]",
        options: &[
            Opt::value('d', "depth", "only so many levels below the path"),
            Opt::flag('l', "with bytes, version and owner"),
        ],
        about: "draw a subtree",
        example: "zkcli tree -d 2 /demo",
        exits: &[FAILED, NO_NODE],
        ..Verb::PLAIN
    },
    Verb {
        name: "find",
        args: "[path]",
        options: &[
            Opt::long_value("name", "glob", "names that fit: * ? and [a-z]"),
            Opt::long_value("data", "regex", "data that fits"),
            Opt::long("ephemeral", "ephemerals only"),
            Opt::long_value("owner", "session", "ephemerals of this session, as 0x..."),
            Opt::long_value("mtime", "[+|-]time", "changed longer ago (+) or less long ago (-) than 30s, 5m, 2h, 7d"),
            Opt::long_value("min-bytes", "bytes", "with at least so much data"),
            Opt::long_value("depth", "levels", "only so many levels below the path"),
        ],
        about: "print the paths of a subtree that fit all conditions",
        more: "Times are compared with this machine's clock. -o json prints path and stat, one document a line.",
        example: "zkcli find /demo --name 'job-*' --mtime -5m",
        exits: &[NO_NODE],
        ..Verb::PLAIN
    },
    Verb {
        name: "grep",
        args: "regex [path]",
        options: &[Opt::flag('i', "without regard to case"), Opt::flag('l', "only paths")],
        about: "search the data of a subtree, line by line",
        example: "zkcli grep -i timeout /demo",
        exits: &[FAILED, NO_NODE],
        ..Verb::PLAIN
    },
    Verb {
        name: "du",
        args: "[path]",
        options: &[Opt::value('d', "depth", "sums of so many levels; 1 if not given, 0 for the path alone")],
        about: "how many znodes and bytes of data are where",
        example: "zkcli du -d 1 /",
        exits: &[NO_NODE],
        ..Verb::PLAIN
    },
    Verb {
        name: "top-children",
        args: "[path]",
        options: &[Opt::value('n', "rows", "how many; 10 if not given")],
        about: "which znodes have most children",
        example: "zkcli top-children -n 5 /",
        exits: &[NO_NODE],
        ..Verb::PLAIN
    },
];

/// Conditions of `find`.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    name: Option<Regex>,
    data: Option<Regex>,
    ephemeral: bool,
    owner: Option<i64>,
    /// Changed before, or after, so many ms ago.
    older_ms: Option<i64>,
    newer_ms: Option<i64>,
    min_bytes: i64,
    depth: Option<usize>,
}

impl Conditions {
    fn fit(&self, top: &str, node: &SubtreeNode, now_ms: i64) -> bool {
        let age = now_ms - node.stat.mtime;
        self.name.as_ref().is_none_or(|glob| glob.is_match(paths::name(&node.path).as_bytes()))
            && self.data.as_ref().is_none_or(|regex| regex.is_match(node.data.as_deref().unwrap_or_default()))
            && (!self.ephemeral || node.stat.ephemeral_owner != 0)
            && self.owner.is_none_or(|owner| node.stat.ephemeral_owner == owner)
            && self.older_ms.is_none_or(|ms| age > ms)
            && self.newer_ms.is_none_or(|ms| age < ms)
            && i64::from(node.stat.data_length) >= self.min_bytes
            && self.depth.is_none_or(|depth| depth_below(&node.path, top) <= depth)
    }
}

/// What to look for.
#[derive(Clone, Debug)]
pub enum Task {
    Tree { path: String, depth: Option<usize>, long: bool },
    Find { path: String, conditions: Conditions },
    Grep { path: String, regex: Regex, only_paths: bool },
    Usage { path: String, depth: usize },
    TopChildren { path: String, rows: usize },
}

/// As they are written: a compiled expression has no equality.
impl PartialEq for Task {
    fn eq(&self, other: &Task) -> bool {
        format!("{self:?}") == format!("{other:?}")
    }
}

pub fn parse(name: &str, mut args: Args<'_>) -> Result<Task, ParseError> {
    let pattern = if name == "grep" { Some(args.required("regex")?) } else { None };
    // For these the root is a sensible place to begin.
    let path = if args.is_empty() { args.resolve_or_root() } else { args.path()? };
    args.end()?;
    Ok(match name {
        "tree" => Task::Tree { path, depth: args.number_of("d", "depth")?, long: args.flag("l") },
        "find" => Task::Find { path, conditions: parse_conditions(&args)? },
        "grep" => {
            let pattern = pattern.unwrap_or_default();
            let regex = RegexBuilder::new(&pattern).case_insensitive(args.flag("i")).multi_line(true).build();
            let regex = regex.map_err(|error| args.wrong(&format!("{pattern}: {error}")))?;
            Task::Grep { path, regex, only_paths: args.flag("l") }
        }
        "du" => Task::Usage { path, depth: args.number_of("d", "depth")?.unwrap_or(1) },
        _ => {
            let rows = args.count_of("n", "rows")?.unwrap_or(TOP_DEFAULT).min(TOP_MAX);
            Task::TopChildren { path, rows: usize::try_from(rows).unwrap_or(usize::MAX) }
        }
    })
}

fn parse_conditions(args: &Args<'_>) -> Result<Conditions, ParseError> {
    let regex = |text: &str| Regex::new(text).map_err(|error| args.wrong(&format!("{text}: {error}")));
    let mut conditions = Conditions {
        name: args.value("name").map(|glob| regex(&glob_regex(glob))).transpose()?,
        data: args.value("data").map(regex).transpose()?,
        ephemeral: args.flag("ephemeral"),
        min_bytes: args.number_of("min-bytes", "bytes")?.unwrap_or(0),
        depth: args.number_of("depth", "levels")?,
        ..Conditions::default()
    };
    if let Some(text) = args.value("owner") {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        let session = u64::from_str_radix(digits, 16).ok().filter(|session| *session != 0);
        let session = session.ok_or_else(|| args.wrong(&format!("no session id, as 0x1234: {text}")))?;
        conditions.owner = Some(session.cast_signed());
    }
    if let Some(text) = args.value("mtime") {
        let (sign, time) = text.split_at_checked(1).unwrap_or((text, ""));
        let ms = parse_time_ms(if matches!(sign, "+" | "-") { time } else { text });
        let ms = ms.ok_or_else(|| args.wrong(&format!("no time, as -30s, +5m, +2h, -7d: {text}")))?;
        match sign {
            "+" => conditions.older_ms = Some(ms),
            _ => conditions.newer_ms = Some(ms),
        }
    }
    Ok(conditions)
}

/// `30s`, `5m`, `2h`, `7d`, in ms.
fn parse_time_ms(text: &str) -> Option<i64> {
    let unit = text.chars().next_back()?;
    let ms = match unit {
        's' => 1_000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        _ => return None,
    };
    text[..text.len() - 1].parse::<i64>().ok().filter(|n| *n >= 0)?.checked_mul(ms)
}

/// `*`, `?` and `[..]` as a regular expression for the whole name.
fn glob_regex(glob: &str) -> String {
    let mut regex = "(?s)^".to_owned();
    let mut in_class = false;
    for c in glob.chars() {
        match c {
            '[' if !in_class => {
                in_class = true;
                regex.push('[');
            }
            ']' if in_class => {
                in_class = false;
                regex.push(']');
            }
            '!' if in_class && regex.ends_with('[') => regex.push('^'),
            '-' if in_class => regex.push('-'),
            '*' if !in_class => regex.push_str(".*"),
            '?' if !in_class => regex.push('.'),
            c => regex += &regex::escape(&c.to_string()),
        }
    }
    regex + "$"
}

fn depth_below(path: &str, top: &str) -> usize {
    below(path, top).matches('/').count()
}

/// This machine's clock, in ms since the epoch: for comparing what servers wrote with now.
#[expect(
    clippy::disallowed_methods,
    reason = "a person asks what is older or newer than now; nothing else depends on it"
)]
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Does it.
///
/// # Errors
/// Why not; `grep` that finds nothing exits with 1.
pub async fn run(runner: &Runner, task: Task) -> Result<(), Failure> {
    match task {
        Task::Tree { path, depth, long } => tree(runner, &path, depth, long).await,
        Task::Find { path, conditions } => {
            let now = now_ms();
            let mut scan = Scan::new(&runner.session()?, &path);
            let mut progress = Progress::beside_output(runner, "searched");
            while let Some(node) = scan.next(runner).await? {
                progress.at(scan.seen());
                if conditions.fit(&path, &node, now) {
                    let value = json!({ "path": node.path, "stat": stat_json(&node.stat) });
                    runner.show(&Output::Line { text: format!("{}\n", node.path), value })?;
                }
            }
            progress.end();
            tell_left_out(runner, &scan);
            Ok(())
        }
        Task::Grep { path, regex, only_paths } => {
            let mut scan = Scan::new(&runner.session()?, &path);
            let mut found = false;
            let mut progress = Progress::beside_output(runner, "searched");
            while let Some(node) = scan.next(runner).await? {
                progress.at(scan.seen());
                let data = node.data.as_deref().unwrap_or_default();
                if !regex.is_match(data) {
                    continue;
                }
                found = true;
                if only_paths {
                    runner.show(&Output::Line {
                        text: format!("{}\n", node.path),
                        value: json!({ "path": node.path }),
                    })?;
                    continue;
                }
                for (number, line) in data.split(|byte| *byte == b'\n').enumerate() {
                    if regex.is_match(line) {
                        let line = String::from_utf8_lossy(line);
                        let text = format!("{}:{}\n", node.path, printable(&line));
                        let value = json!({ "path": node.path, "line": number + 1, "text": line });
                        runner.show(&Output::Line { text, value })?;
                    }
                }
            }
            progress.end();
            tell_left_out(runner, &scan);
            if found { Ok(()) } else { Err(Failure::Exit(FAILED)) }
        }
        Task::Usage { path, depth } => usage(runner, &path, depth).await,
        Task::TopChildren { path, rows } => {
            let mut scan = Scan::new(&runner.session()?, &path);
            let mut progress = Progress::new(runner, "read", None);
            // The least first, so that it is what goes.
            let mut top = std::collections::BTreeSet::new();
            while let Some(node) = scan.next(runner).await? {
                progress.at(scan.seen());
                if node.stat.num_children > 0 {
                    top.insert((node.stat.num_children, std::cmp::Reverse(node.path)));
                }
                if top.len() > rows {
                    top.pop_first();
                }
            }
            progress.end();
            tell_left_out(runner, &scan);
            let row = |(children, std::cmp::Reverse(path))| vec![json!(children), json!(path)];
            let rows = top.into_iter().rev().map(row).collect();
            runner.show(&Output::Rows { columns: &["CHILDREN", "PATH"], rows })
        }
    }
}

/// Control characters do not reach the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// A remark about what did not come.
fn tell_left_out(runner: &Runner, scan: &Scan) {
    if let Err(failure) = scan.complete() {
        runner.remark(&failure.text());
    }
}

async fn usage(runner: &Runner, top: &str, depth: usize) -> Result<(), Failure> {
    let mut scan = Scan::new(&runner.session()?, top);
    let mut progress = Progress::new(runner, "read", None);
    let mut sums: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    while let Some(node) = scan.next(runner).await? {
        progress.at(scan.seen());
        let bytes = u64::try_from(node.stat.data_length).unwrap_or(0);
        // It counts for itself and for all above it, down to the depth that is shown.
        let mut at = Some(node.path.as_str());
        while let Some(path) = at {
            if depth_below(path, top) <= depth {
                let sum = sums.entry(path.to_owned()).or_default();
                *sum = (sum.0 + 1, sum.1 + bytes);
            }
            at = if path == top { None } else { paths::parent(path) };
        }
    }
    progress.end();
    tell_left_out(runner, &scan);
    let mut rows: Vec<(String, (u64, u64))> = sums.into_iter().collect();
    rows.sort_by_key(|(path, (nodes, bytes))| std::cmp::Reverse((*bytes, *nodes, std::cmp::Reverse(path.clone()))));
    let rows = rows.into_iter().map(|(path, (nodes, bytes))| vec![json!(bytes), json!(nodes), json!(path)]).collect();
    runner.show(&Output::Rows { columns: &["BYTES", "NODES", "PATH"], rows })
}

async fn tree(runner: &Runner, top: &str, depth: Option<usize>, long: bool) -> Result<(), Failure> {
    let mut scan = Scan::new(&runner.session()?, top);
    let mut progress = Progress::new(runner, "read", None);
    // Names of a path in their order, so that what is below a node follows it.
    let mut nodes: BTreeMap<Vec<String>, SubtreeNode> = BTreeMap::new();
    while let Some(mut node) = scan.next(runner).await? {
        progress.at(scan.seen());
        let names: Vec<String> = below(&node.path, top).split('/').skip(1).map(str::to_owned).collect();
        if depth.is_some_and(|depth| names.len() > depth) {
            continue;
        }
        node.data = None;
        nodes.insert(names, node);
        if nodes.len() > TREE_MAX {
            return Err(Failure::Other(format!("more than {TREE_MAX} znodes: choose a -d depth, or use ls -R")));
        }
    }
    progress.end();
    tell_left_out(runner, &scan);
    let all: Vec<(Vec<String>, SubtreeNode)> = nodes.into_iter().collect();
    // Per level, whether more siblings follow; found from the end.
    let mut follows: Vec<bool> = vec![false; all.len()];
    let mut open: Vec<bool> = Vec::new();
    for (at, (names, _)) in all.iter().enumerate().rev() {
        open.truncate(names.len());
        while open.len() < names.len() {
            open.push(false);
        }
        if let Some(last) = open.last_mut() {
            follows[at] = std::mem::replace(last, true);
        }
    }
    let mut bars: Vec<bool> = Vec::new();
    for ((names, node), follows) in all.iter().zip(follows) {
        bars.truncate(names.len().saturating_sub(1));
        let mut text: String = bars.iter().map(|open| if *open { "│   " } else { "    " }).collect();
        match names.last() {
            None => text += top,
            Some(name) => {
                text += if follows { "├── " } else { "└── " };
                text += name;
                bars.push(follows);
            }
        }
        if long {
            text += &format!("  {} bytes, v{}", node.stat.data_length, node.stat.version);
            if node.stat.ephemeral_owner != 0 {
                text += &format!(", ephemeral of {:#x}", node.stat.ephemeral_owner);
            }
        }
        let value: Value = json!({ "path": node.path, "depth": names.len(), "stat": stat_json(&node.stat) });
        runner.show(&Output::Line { text: text + "\n", value })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_fit_whole_names() {
        let fits = |glob: &str, name: &str| Regex::new(&glob_regex(glob)).expect("a regex").is_match(name.as_bytes());
        assert!(fits("job-*", "job-1") && !fits("job-*", "a-job-1") && fits("*", ""));
        assert!(fits("a?c", "abc") && !fits("a?c", "ac") && fits("a.c", "a.c") && !fits("a.c", "abc"));
        assert!(fits("[a-c]x", "bx") && !fits("[!a-c]x", "bx") && fits("[!a-c]x", "dx"));
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(parse_time_ms("30s"), Some(30_000));
        assert_eq!(parse_time_ms("7d"), Some(604_800_000));
        assert!(["", "s", "5", "-5m", "5x"].iter().all(|text| parse_time_ms(text).is_none()));
    }
}
