//! Stories in `testscripts/`, played by hand over the same ensembles that chance drives.
//!
//! Nothing happens by itself: time passes only by `wait` and `run`. `UPDATE_GOLDENFILES=1` records what happens; a
//! difference then has to be explained by the change that is reviewed. Commands:
//!
//! - `ensemble VOTERS [observers=N] [OPTION=N ...]`: fresh folders. Options are those of `apply_option`.
//! - `start [ID ...]`, `crash ID ...`: power cuts lose whatever is not confirmed by the disk. `lose ID`: the folder of a
//!   stopped server goes. `rot ID`: its tree is not what execution makes it any more.
//! - `connect [A B]`, `cut A B`: streams; what is under way on a cut stream is lost. `isolate ID`, `silence A B` (nothing from
//!   A reaches B), `heal` (no more of either).
//! - `deliver A B [N]`: the next frames from A to B (all by default), with what they cause. `link=L` names one stream of
//!   several.
//! - `disk ID [N]`, `apply ID`, `flush ID`, `fetch ID`, `read-log ID`: the next piece of work there.
//! - `tick ID`, `wait MS [without=ID]`: time passes, nothing moves. `run MS [without-disk=ID] [without=ID]`: time passes and
//!   all work is done at once.
//! - `settle`, with the same exceptions: all work is done, no time passes. `without-apply=ID` is another exception; several
//!   servers are `without=1-2`.
//! - `propose ID [N]`, `read ID`, `confirm ID`, `step-down ID`, `transfer ID TO`.
//! - `status`, `log ID`, `pending`: what is.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write as _;

use corral_proto::ServerId;
use goldenscript::{Command, Context, Runner};

use super::cluster::{Cluster, Event, Frame, Id, Pace, Plan, Survives, show_disk_op, show_message};
use crate::zab::io::{Admin, Options, Role};

/// Rounds of work after which a script is taken to run in circles.
const ROUNDS_MAX: usize = 10_000;

#[derive(Default)]
struct Script {
    cluster: Option<Cluster>,
    /// Lines of the story that were shown.
    shown: usize,
    isolated: BTreeSet<Id>,
}

/// Who does nothing; whose disk does nothing; whose apply room does nothing.
#[derive(Default)]
struct Except {
    server: BTreeSet<Id>,
    disk: BTreeSet<Id>,
    apply: BTreeSet<Id>,
}

type Outcome = Result<String, Box<dyn Error>>;

fn apply_option(options: &mut Options, name: &str, value: u64) -> Result<(), Box<dyn Error>> {
    match name {
        "window" => options.window_bytes = value as usize,
        "learner-window" => options.learner_window_bytes = value as usize,
        "message" => options.message_bytes = value as usize,
        "tail-cache" => options.tail_cache_bytes = value as usize,
        "snapshot-threshold" => options.snapshot_threshold_bytes = value,
        "counter-limit" => options.counter_limit = value as u32,
        "quiet" => options.election_quiet_ms = value,
        _ => return Err(format!("unknown option {name}").into()),
    }
    Ok(())
}

impl Script {
    fn cluster(&mut self) -> &mut Cluster {
        self.cluster.as_mut().expect("the script begins with `ensemble`")
    }

    /// Does all work that there is, in a fixed order, until none is left.
    fn settle(&mut self, except: &Except) {
        for _ in 0..ROUNDS_MAX {
            let cluster = self.cluster();
            let mut todo = Vec::new();
            for (id, node) in &cluster.nodes {
                let Some(process) = &node.process else { continue };
                if except.server.contains(id) {
                    continue;
                }
                if !process.disk_ops.is_empty() && !except.disk.contains(id) {
                    todo.push(Event::Disk(*id));
                }
                if !process.applies.is_empty() && !except.apply.contains(id) {
                    todo.push(Event::Apply(*id));
                }
                if !process.log_reads.is_empty() {
                    todo.push(Event::Read(*id));
                }
                if !process.fetches.is_empty() {
                    todo.push(Event::Fetch(*id));
                }
            }
            for (link, stream) in &cluster.streams {
                for side in 0..2 {
                    let (from, to) = (stream.ends[1 - side], stream.ends[side]);
                    let hears = !cluster.silent.contains(&(from, to)) && !except.server.contains(&to);
                    if hears && !stream.queues[side].is_empty() {
                        todo.push(Event::Deliver { link: *link, to });
                    }
                }
            }
            if todo.is_empty() {
                return;
            }
            for event in todo {
                self.cluster().run(event);
            }
        }
        panic!("the ensemble does not come to rest");
    }

    fn pass(&mut self, ms: u64, except: &Except, work: bool) {
        let end = self.cluster().now_ms + ms;
        while self.cluster().now_ms < end {
            let step = self.cluster().plan.pace.tick.min(end - self.cluster().now_ms);
            self.cluster().now_ms += step;
            for id in self.cluster().ids() {
                if self.cluster().is_up(id) && !except.server.contains(&id) {
                    self.cluster().run(Event::Tick(id));
                }
            }
            if work {
                self.settle(except);
            }
        }
    }

    /// What happened since the last command. `all`: what came in, too; else only what servers did about it.
    fn story(&mut self, all: bool) -> String {
        let shown = self.shown;
        let Some(trace) = self.cluster.as_ref().and_then(|c| c.trace.as_ref()) else { return String::new() };
        let mut text = String::new();
        for line in &trace[shown..] {
            let line = line.get(7..).unwrap_or(line);
            let chatter = line.contains(": Ping ") || line.contains(": Pong ");
            if all || !(chatter || line.contains(" <- ")) {
                writeln!(text, "{line}").expect("into a string");
            }
        }
        self.shown = trace.len();
        text
    }

    fn links(&mut self, a: Id, b: Id) -> Vec<u64> {
        self.cluster().links_between(a, b)
    }

    fn connect(&mut self, a: Id, b: Id) -> Result<(), Box<dyn Error>> {
        if !self.cluster().is_up(a) || !self.cluster().is_up(b) {
            return Err("both servers must run".into());
        }
        self.cluster().connect(a, b);
        Ok(())
    }

    fn status(&mut self) -> String {
        let mut text = String::new();
        for (id, node) in &self.cluster().nodes {
            let Some(process) = &node.process else {
                writeln!(text, "s{id} down: log {:?}, {:?}", node.disk.log.end().zxid, node.disk.identity.membership)
                    .expect("into a string");
                continue;
            };
            let s = process.zab.status();
            let role = match s.role {
                Role::Following | Role::Observing => {
                    format!("{:?} {:?}", s.role, s.leader.unwrap_or_default())
                }
                role => format!("{role:?}"),
            };
            write!(
                text,
                "s{id} {role}, {:?}, epoch {}: log {:?}, durable {:?}, committed {:?}, applied {:?}, promise {}",
                s.phase, s.epoch, s.last.zxid, s.durable, s.committed, s.applied, s.promise.epoch
            )
            .expect("into a string");
            writeln!(text, "{}", if s.waiting_for.is_empty() { String::new() } else { format!("; {}", s.waiting_for) })
                .expect("into a string");
        }
        text
    }

    fn pending(&mut self) -> String {
        let mut text = String::new();
        let cluster = self.cluster();
        for (id, node) in &cluster.nodes {
            let Some(process) = &node.process else { continue };
            for due in &process.disk_ops {
                writeln!(text, "disk of s{id}: {}", show_disk_op(&due.item)).expect("into a string");
            }
        }
        for (link, stream) in &cluster.streams {
            for side in 0..2 {
                for due in &stream.queues[side] {
                    let frame = match &due.item {
                        Frame::Up(..) => "up".to_owned(),
                        Frame::Down => "down".to_owned(),
                        Frame::Message(message) => show_message(message),
                    };
                    let (from, to) = (stream.ends[1 - side], stream.ends[side]);
                    writeln!(text, "s{from} -> s{to}/{link}: {frame}").expect("into a string");
                }
            }
        }
        text
    }
}

impl Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Outcome {
        let mut args = command.consume_args();
        let mut keys: Vec<(String, u64)> = Vec::new();
        let mut except = Except::default();
        while let Some((key, value)) = args.next_key() {
            let set = match key {
                "without" => &mut except.server,
                "without-disk" => &mut except.disk,
                "without-apply" => &mut except.apply,
                _ => {
                    keys.push((key.to_owned(), value.parse()?));
                    continue;
                }
            };
            *set = value.split('-').map(str::parse).collect::<Result<_, _>>()?;
        }
        let mut numbers: Vec<u64> = Vec::new();
        while let Some(value) = args.next_pos() {
            numbers.push(value.parse()?);
        }
        let arg = |n: usize| numbers.get(n).copied().ok_or("an argument is missing");
        let mut all = false;
        match command.name.as_str() {
            "ensemble" => {
                let mut plan = Plan { voters: arg(0)?, flush_per_mille: 0, trim_per_mille: 0, ..Plan::default() };
                plan.pace = Pace { net: (0, 0), disk: (0, 0), apply: (0, 0), fetch: (0, 0), tick: 10 };
                for (key, value) in keys {
                    match key.as_str() {
                        "observers" => plan.observers = value,
                        name => apply_option(&mut plan.options, name, value)?,
                    }
                }
                let mut cluster = Cluster::new(plan);
                cluster.trace = Some(Vec::new());
                self.cluster = Some(cluster);
                self.shown = 0;
                self.isolated.clear();
                return Ok(String::new());
            }
            "start" => {
                let which = if numbers.is_empty() { self.cluster().ids() } else { numbers };
                for id in which {
                    self.cluster().start(id);
                }
                // What a folder holds is told by `status`.
                self.story(false);
            }
            "crash" => numbers.iter().for_each(|id| self.cluster().crash(*id, Survives::Nothing)),
            "lose" => self.cluster().lose_folder(arg(0)?),
            "rot" => self.cluster().rot(arg(0)?),
            "connect" if numbers.is_empty() => {
                let ids = self.cluster().ids();
                for (n, a) in ids.iter().enumerate() {
                    for b in &ids[n + 1..] {
                        let apart = self.isolated.contains(a) || self.isolated.contains(b);
                        let up = self.cluster().is_up(*a) && self.cluster().is_up(*b);
                        if up && !apart && self.links(*a, *b).is_empty() {
                            self.connect(*a, *b)?;
                        }
                    }
                }
            }
            "connect" => self.connect(arg(0)?, arg(1)?)?,
            "cut" => {
                for link in self.links(arg(0)?, arg(1)?) {
                    self.cluster().cut_losing_all(link);
                }
            }
            "isolate" => {
                let id = arg(0)?;
                self.isolated.insert(id);
                for other in self.cluster().ids() {
                    for link in self.links(id, other) {
                        self.cluster().cut_losing_all(link);
                    }
                }
            }
            "silence" => {
                let pair = (arg(0)?, arg(1)?);
                self.cluster().silent.insert(pair);
            }
            "heal" => {
                self.isolated.clear();
                self.cluster().silent.clear();
            }
            "deliver" => {
                all = true;
                let (from, to) = (arg(0)?, arg(1)?);
                let mut left = numbers.get(2).copied().unwrap_or(u64::MAX);
                let wanted = keys.iter().find(|(key, _)| key == "link").map(|(_, link)| *link);
                let between = |s: &super::cluster::Stream| s.ends == [from, to] || s.ends == [to, from];
                let streams = self.cluster().streams.iter();
                let mut queued: Vec<(u64, u64)> = streams
                    .filter(|(link, s)| between(s) && wanted.is_none_or(|w| w == **link))
                    .map(|(link, s)| (*link, s.queues[usize::from(s.ends[1] == to)].len() as u64))
                    .collect();
                for (link, frames) in &mut queued {
                    while *frames > 0 && left > 0 {
                        self.cluster().deliver(*link, to);
                        (*frames, left) = (*frames - 1, left - 1);
                    }
                }
            }
            "disk" => {
                all = true;
                self.cluster().disk(arg(0)?, numbers.get(1).map_or(usize::MAX, |n| *n as usize));
            }
            "apply" => {
                all = true;
                self.cluster().apply(arg(0)?);
            }
            "fetch" => {
                all = true;
                self.cluster().run(Event::Fetch(arg(0)?));
            }
            "read-log" => {
                all = true;
                self.cluster().run(Event::Read(arg(0)?));
            }
            "flush" => self.cluster().flush(arg(0)?),
            "tick" => {
                all = true;
                self.cluster().run(Event::Tick(arg(0)?));
            }
            "wait" => self.pass(arg(0)?, &except, false),
            "run" => self.pass(arg(0)?, &except, true),
            "settle" => self.settle(&except),
            "propose" => {
                let proposed = self.cluster().propose(arg(0)?, numbers.get(1).copied().unwrap_or(1));
                if !proposed {
                    return Err("this server has no relation to a leader".into());
                }
            }
            "read" => {
                self.cluster().read_index(arg(0)?);
            }
            "confirm" => {
                self.cluster().confirm_round(arg(0)?, Vec::new());
            }
            "step-down" => self.cluster().admin(arg(0)?, Admin::StepDown),
            "transfer" => self.cluster().admin(arg(0)?, Admin::Transfer(ServerId(arg(1)?))),
            "status" => return Ok(self.status()),
            "log" => {
                let log = &self.cluster().nodes[&arg(0)?].disk.log;
                let entries: Vec<String> = log.entries.iter().map(|e| format!("{:?}", e.zxid)).collect();
                return Ok(format!("after {:?}: {}\n", log.base.zxid, entries.join(" ")));
            }
            "pending" => return Ok(self.pending()),
            other => return Err(format!("unknown command {other}").into()),
        }
        Ok(self.story(all))
    }
}

macro_rules! scripts {
    ($($name:ident)*) => {
        const SCRIPTS: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/zab/testscripts");
                goldenscript::run(&mut Script::default(), folder.join(stringify!($name))).expect("the script can be read");
            }
        )*
    };
}

scripts! {
    ack_waits_for_fsync
    amnesiac_rejoins
    best_log_wins
    bootstrap_of_three
    commit_is_clamped_to_what_the_stream_proved
    crash_in_the_middle_of_bootstrap
    cut_off_leader_steps_down
    diff_from_disk
    digests_differ_and_a_majority_is_right
    digests_differ_and_no_majority_agrees
    digests_of_a_former_tree_are_forgotten
    digests_of_servers_that_do_not_vote_make_no_majority
    doubt_about_trees_is_told_to_followers
    doubt_about_trees_is_told_to_the_next_leader
    doubt_about_trees_outlives_the_role
    ensemble_of_one
    frames_of_a_stale_link_are_dropped
    handover
    late_follower_joins_under_load
    old_epoch_ack_never_leaves_after_the_promise
    paused_leader_steps_down
    promise_rejected_discovery_restarts
    read_index_needs_a_new_round
    snapshot_install
    snapshot_is_given_when_nobody_comes_to_compare
    snapshot_waits_for_the_comparison_of_trees
    truncation_across_epochs
    truncation_is_durable_before_anything_is_proven
    windows_keep_their_bound
}

#[test]
fn every_script_is_played() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/zab/testscripts");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .expect("the folder of scripts")
        .map(|entry| entry.expect("readable").file_name().into_string().expect("plain names"))
        .collect();
    files.sort();
    assert_eq!(files, SCRIPTS);
}
