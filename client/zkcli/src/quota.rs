//! Quotas: `listquota`, `setquota`, `delquota`, as `zkCli.sh` has them.
//!
//! A quota on `P` is two znodes below `/zookeeper/quota` + `P`: `zookeeper_limits`, which these verbs write, and
//! `zookeeper_stats`, which the servers keep.

use corral_client::{Client, CreateMode, ErrorCode, path as paths};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::failure::exit::{FAILED, NO_NODE};
use crate::print::Output;
use crate::run::Runner;
use crate::verbs::{Opt, Verb};
use crate::words::{Args, ParseError};

const QUOTAS: &str = "/zookeeper/quota";
const LIMITS: &str = "zookeeper_limits";
const STATS: &str = "zookeeper_stats";

pub const VERBS: &[Verb] = &[
    Verb {
        name: "listquota",
        args: "path",
        about: "print the limits of a path, and what it uses of them",
        example: "zkcli listquota /demo",
        exits: &[NO_NODE],
        ..Verb::PLAIN
    },
    Verb {
        name: "setquota",
        args: "path",
        options: &[
            Opt::value('n', "count", "znodes, a soft limit: servers warn"),
            Opt::value('b', "bytes", "bytes of data, a soft limit"),
            Opt::value('N', "count", "znodes, a hard limit: servers refuse, with enforceQuota=true"),
            Opt::value('B', "bytes", "bytes of data, a hard limit"),
        ],
        about: "limit how many znodes a subtree has, or how much they hold",
        more: "Limits that are not given stay as they are. Neither above nor below the path may be another quota.",
        example: "zkcli setquota -n 100 -B 1000000 /demo",
        exits: &[FAILED, NO_NODE],
        ..Verb::PLAIN
    },
    Verb {
        name: "delquota",
        args: "path",
        options: &[
            Opt::flag('n', "the soft limit of znodes"),
            Opt::flag('b', "the soft limit of bytes"),
            Opt::flag('N', "the hard limit of znodes"),
            Opt::flag('B', "the hard limit of bytes"),
        ],
        about: "take away limits; without options all, and the quota itself",
        example: "zkcli delquota -n /demo",
        exits: &[NO_NODE],
        ..Verb::PLAIN
    },
];

/// Limits, or usage. -1: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Track {
    pub count: i64,
    pub bytes: i64,
    pub count_hard: i64,
    pub bytes_hard: i64,
}

impl Track {
    const NOTHING: Track = Track { count: -1, bytes: -1, count_hard: -1, bytes_hard: -1 };

    /// Reads `count=N,bytes=M=;byteHardLimit=X;countHardLimit=Y`; what is no such pair says nothing.
    fn parse(data: &[u8]) -> Track {
        let mut track = Track::NOTHING;
        for pair in String::from_utf8_lossy(data).split([',', ';']) {
            let mut parts = pair.split('=');
            let (Some(name), Some(value)) = (parts.next(), parts.next()) else { continue };
            let field = match name {
                "count" => &mut track.count,
                "bytes" => &mut track.bytes,
                "countHardLimit" => &mut track.count_hard,
                "byteHardLimit" => &mut track.bytes_hard,
                _ => continue,
            };
            *field = value.parse().unwrap_or(-1);
        }
        track
    }

    /// The text, as ZooKeeper writes it.
    fn text(&self) -> String {
        let mut text = format!("count={},bytes={}", self.count, self.bytes);
        if self.bytes_hard != -1 || self.count_hard != -1 {
            text.push('=');
        }
        for (name, limit) in [("byteHardLimit", self.bytes_hard), ("countHardLimit", self.count_hard)] {
            if limit != -1 {
                text += &format!(";{name}={limit}");
            }
        }
        text
    }

    /// With what another one says.
    fn with(self, other: Track) -> Track {
        let or = |new: i64, old: i64| if new == -1 { old } else { new };
        Track {
            count: or(other.count, self.count),
            bytes: or(other.bytes, self.bytes),
            count_hard: or(other.count_hard, self.count_hard),
            bytes_hard: or(other.bytes_hard, self.bytes_hard),
        }
    }

    fn json(&self) -> Value {
        let limit = |n: i64| if n == -1 { Value::Null } else { json!(n) };
        json!({
            "count": limit(self.count),
            "bytes": limit(self.bytes),
            "countHard": limit(self.count_hard),
            "bytesHard": limit(self.bytes_hard),
        })
    }
}

/// What to do with a quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    List {
        path: String,
    },
    Set {
        path: String,
        limits: Track,
    },
    /// `which`: what to take away, as 0 for a limit that goes and -1 for one that stays; `None`: all.
    Delete {
        path: String,
        which: Option<Track>,
    },
}

pub fn parse(mut args: Args<'_>) -> Result<Task, ParseError> {
    let verb = args.verb_name();
    let path = args.path()?;
    args.end()?;
    if verb == "listquota" {
        return Ok(Task::List { path });
    }
    if verb == "delquota" {
        let gone = |name| if args.flag(name) { 0 } else { -1 };
        let which = Track { count: gone("n"), bytes: gone("b"), count_hard: gone("N"), bytes_hard: gone("B") };
        return Ok(Task::Delete { path, which: Some(which).filter(|which| *which != Track::NOTHING) });
    }
    let limit = |name: &str| -> Result<i64, ParseError> {
        match args.number_of::<i64>(name, "limit")? {
            None => Ok(-1),
            Some(limit) if limit >= 0 => Ok(limit),
            Some(limit) => Err(args.wrong(&format!("limit must not be negative: {limit}"))),
        }
    };
    let limits = Track { count: limit("n")?, bytes: limit("b")?, count_hard: limit("N")?, bytes_hard: limit("B")? };
    if limits == Track::NOTHING {
        return Err(args.wrong("no limit is given"));
    }
    Ok(Task::Set { path, limits })
}

/// Does it.
///
/// # Errors
/// Why not.
pub async fn run(runner: &Runner, task: Task) -> Result<(), Failure> {
    let (client, before) = runner.whole_tree().await?;
    let result = carry_out(runner, &client, &before, task).await;
    if !before.is_empty() {
        // A session of its own; if it cannot be closed it expires.
        let _ = runner.ask(client.close()).await;
    }
    result
}

async fn carry_out(runner: &Runner, client: &Client, chroot: &str, task: Task) -> Result<(), Failure> {
    match task {
        Task::List { path } => {
            let kept = format!("{QUOTAS}{}", whole_path(chroot, &path));
            let limits_path = paths::join(&kept, LIMITS);
            let limits = Track::parse(runner.ask(client.get(&limits_path)).await.map_err(|f| of(f, &path))?.bytes());
            let usage = Track::parse(runner.ask(client.get(&paths::join(&kept, STATS))).await?.bytes());
            runner.remark(&format!("absolute path is {limits_path}"));
            let text = format!("Output quota for {path} {}\nOutput stat for {path} {}\n", limits.text(), usage.text());
            let value = json!({ "path": path, "limits": limits.json(), "usage": usage.json() });
            runner.show(&Output::Line { text, value })
        }
        Task::Set { path, limits } => {
            let full = whole_path(chroot, &path);
            if full == "/" || crate::scan::is_within(&full, "/zookeeper") {
                return Err(Failure::Usage(format!("{path}: the root and /zookeeper have no quota")));
            }
            if runner.ask(client.exists(&full)).await?.is_none() {
                return Err(Failure::Refused { code: ErrorCode::NoNode, path });
            }
            alone(runner, client, &full).await?;
            let mut at = QUOTAS.to_owned();
            for name in full.split('/').skip(1) {
                at = paths::join(&at, name);
                create(runner, client, &at, ()).await?;
            }
            let limits_path = paths::join(&at, LIMITS);
            if !create(runner, client, &limits_path, limits.text()).await? {
                let old = runner.ask(client.get(&limits_path)).await?;
                let new = Track::parse(old.bytes()).with(limits);
                runner.ask(client.set(&limits_path, new.text(), Some(old.stat.version))).await?;
            }
            // From here on the servers count.
            create(runner, client, &paths::join(&at, STATS), Track { count: 0, bytes: 0, ..Track::NOTHING }.text())
                .await?;
            runner.done(path)
        }
        Task::Delete { path, which } => {
            let full = whole_path(chroot, &path);
            let kept = format!("{QUOTAS}{full}");
            let limits_path = paths::join(&kept, LIMITS);
            let old = runner.ask(client.get(&limits_path)).await.map_err(|failure| of(failure, &path))?;
            if let Some(which) = which {
                let keep = |gone: i64, old: i64| if gone == 0 { -1 } else { old };
                let now = Track::parse(old.bytes());
                let rest = Track {
                    count: keep(which.count, now.count),
                    bytes: keep(which.bytes, now.bytes),
                    count_hard: keep(which.count_hard, now.count_hard),
                    bytes_hard: keep(which.bytes_hard, now.bytes_hard),
                };
                runner.ask(client.set(&limits_path, rest.text(), Some(old.stat.version))).await?;
                return runner.done(path);
            }
            for gone in [limits_path, paths::join(&kept, STATS)] {
                match runner.ask(client.delete(&gone, None)).await {
                    Err(failure) if !failure.is_no_node() => return Err(failure),
                    _ => {}
                }
            }
            // What led there, as far as nothing else is below.
            let mut at = kept.as_str();
            while at != QUOTAS {
                match runner.ask(client.delete(at, None)).await {
                    Ok(()) | Err(Failure::Refused { code: ErrorCode::NoNode, .. }) => {}
                    Err(Failure::Refused { code: ErrorCode::NotEmpty, .. }) => break,
                    Err(other) => return Err(other),
                }
                at = paths::parent(at).unwrap_or(QUOTAS);
            }
            runner.done(path)
        }
    }
}

/// A user's path as the servers have it.
fn whole_path(chroot: &str, path: &str) -> String {
    match (chroot, path) {
        ("", path) => path.to_owned(),
        (chroot, "/") => chroot.to_owned(),
        (chroot, path) => format!("{chroot}{path}"),
    }
}

/// The user's path for one of ours.
fn of(failure: Failure, path: &str) -> Failure {
    if failure.is_no_node() {
        return Failure::Refused { code: ErrorCode::NoNode, path: format!("quota of {path}") };
    }
    failure
}

/// Makes sure that no quota is above or below a path: usage is charged to one.
async fn alone(runner: &Runner, client: &Client, full: &str) -> Result<(), Failure> {
    let mut above = paths::parent(full);
    while let Some(path) = above.filter(|path| *path != "/") {
        if runner.ask(client.exists(&format!("{QUOTAS}{path}/{LIMITS}"))).await?.is_some() {
            return Err(Failure::Other(format!("{full} has a parent {path} which has a quota")));
        }
        above = paths::parent(path);
    }
    let mut walk = crate::walk::Walk::new(&format!("{QUOTAS}{full}"));
    loop {
        match crate::nodes::step(runner, client, &mut walk).await {
            Ok(None) => return Ok(()),
            Ok(Some(crate::walk::Step::Enter { path, .. })) => {
                let of = path.strip_suffix(LIMITS).and_then(|path| path[QUOTAS.len()..].strip_suffix('/'));
                if let Some(of) = of.filter(|of| *of != full) {
                    return Err(Failure::Other(format!("{full} has a child {of} which has a quota")));
                }
            }
            Ok(Some(_)) => {}
            Err(failure) if failure.is_no_node() => return Ok(()),
            Err(other) => return Err(other),
        }
    }
}

/// Creates a znode; false: it is there.
async fn create(
    runner: &Runner,
    client: &Client,
    path: &str,
    data: impl Into<corral_client::Data>,
) -> Result<bool, Failure> {
    match runner.ask(client.create(path, data, CreateMode::Persistent)).await {
        Ok(_) => Ok(true),
        Err(Failure::Refused { code: ErrorCode::NodeExists, .. }) => Ok(false),
        Err(other) => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_zookeepers() {
        let soft = Track { count: 5, bytes: 7, ..Track::NOTHING };
        assert_eq!(soft.text(), "count=5,bytes=7");
        let hard = Track { count_hard: 9, bytes_hard: 8, ..soft };
        assert_eq!(hard.text(), "count=5,bytes=7=;byteHardLimit=8;countHardLimit=9");
        assert_eq!(Track::parse(hard.text().as_bytes()), hard);
        assert_eq!(soft.with(Track { count: 6, ..Track::NOTHING }), Track { count: 6, ..soft });
    }
}
