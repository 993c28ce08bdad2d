//! Machines, the streams between them, and their disks.
//!
//! Nothing happens by itself: whoever drives a [`Cluster`] chooses which stream delivers its next frame, whose disk
//! completes, who ticks, and when. Every piece of pending work carries the time at which a driver in a hurry would do
//! it, so [`Cluster::next_event`] can play a plausible schedule; a script ignores the times and chooses by hand.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use corral_proto::{ServerId, SessionId, Zxid};

use super::checks::Ghost;
use super::rng::Rng;
use crate::zab::codec;
use crate::zab::io::{
    Admin, Entry, Identity, Input, LogOp, MemberKind, Membership, Now, Options, Output, Outputs, Position, Promise,
    Recovered, Relation, SnapshotMeta,
};
use crate::zab::message::Message;
use crate::zab::quorum::QuorumSet;
use crate::zab::{State, Zab};

/// Numbers of servers, as the scripts write them.
pub type Id = u64;

/// A log: a base and what follows it. Serves as the image on disk and as the mirror of what a machine believes.
#[derive(Clone, Debug, Default)]
pub struct Log {
    pub base: Position,
    pub entries: Vec<Entry>,
}

impl Log {
    pub fn end(&self) -> Position {
        self.entries.last().map_or(self.base, |e| Position { zxid: e.zxid, hash: e.hash })
    }

    /// The position of an entry of this log, or of its base.
    pub fn position_of(&self, zxid: Zxid) -> Option<Position> {
        if zxid == self.base.zxid {
            return Some(self.base);
        }
        let at = self.entries.binary_search_by_key(&zxid, |e| e.zxid).ok()?;
        Some(Position { zxid, hash: self.entries[at].hash })
    }

    /// Whether the history up to this place is here, as entries or below the base.
    pub fn holds(&self, position: Position) -> bool {
        position.zxid < self.base.zxid || self.position_of(position.zxid) == Some(position)
    }

    pub fn after(&self, zxid: Zxid) -> &[Entry] {
        &self.entries[self.entries.partition_point(|e| e.zxid <= zxid)..]
    }

    fn truncate(&mut self, to: Position) {
        self.entries.truncate(self.entries.partition_point(|e| e.zxid <= to.zxid));
        assert_eq!(self.end(), to, "a truncation to a place that is not in the log");
    }

    fn trim(&mut self, base: Position) {
        if base.zxid > self.base.zxid {
            self.entries.drain(..self.entries.partition_point(|e| e.zxid <= base.zxid));
            self.base = base;
        }
    }

    fn epochs(&self) -> Vec<Position> {
        let mut rows = vec![self.base];
        for entry in &self.entries {
            let position = Position { zxid: entry.zxid, hash: entry.hash };
            match rows.last_mut() {
                Some(last) if last.zxid.epoch() == entry.zxid.epoch() && last.zxid != self.base.zxid => {
                    *last = position;
                }
                _ => rows.push(position),
            }
        }
        rows
    }
}

/// A digest is told at every entry whose counter is a multiple of this; so at each (e,0), too.
const DIGEST_EVERY: u32 = 4;

/// A store that only counts: which prefix of the committed entries it executed, and a digest over their payloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Store {
    pub position: Position,
    /// How many entries it executed, those below a snapshot included.
    pub count: usize,
    pub digest: u64,
    pub stamp_ms: i64,
}

impl Store {
    fn execute(&mut self, entry: &Entry) {
        self.digest = Entry::chain(self.digest, Zxid::ZERO, 0, &entry.payload);
        self.position = Position { zxid: entry.zxid, hash: entry.hash };
        self.count += 1;
        self.stamp_ms = entry.stamp_ms;
    }
}

/// What a power cut leaves.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub identity: Identity,
    pub promise: Promise,
    pub log: Log,
    pub store: Store,
    /// For planted mistakes: the promise before this one.
    former_promise: Promise,
}

/// Work that somebody has to do, and when a plausible schedule would do it.
#[derive(Clone, Debug)]
pub struct Due<T> {
    pub at_ms: u64,
    pub tie: u64,
    pub item: T,
}

#[derive(Clone, Debug)]
pub enum DiskOp {
    Log { seq: u64, op: LogOp },
    Trim(Position),
}

#[derive(Clone, Debug)]
pub enum ApplyWork {
    Batch(Vec<Entry>),
    Open(SnapshotMeta),
    Make { request: u64, at_least: Zxid },
}

#[derive(Clone, Debug)]
pub struct Read {
    pub request: u64,
    pub after: Zxid,
    pub max_bytes: usize,
}

/// What dies with a process.
pub struct Process {
    pub zab: Zab,
    /// The log as the machine believes it to be.
    pub mem: Log,
    pub store: Store,
    /// Entries handed out for execution.
    pub handed: usize,
    pub committed: Zxid,
    pub disk_ops: VecDeque<Due<DiskOp>>,
    pub applies: VecDeque<Due<ApplyWork>>,
    pub log_reads: VecDeque<Due<Read>>,
    pub fetches: VecDeque<Due<(u64, ServerId, SnapshotMeta)>>,
    incoming: BTreeMap<u64, Store>,
    /// Snapshots that this server offers.
    snapshots: BTreeMap<u64, Store>,
    pub relation: Option<Relation>,
    /// Relations so far and proposals in this one.
    relations: u32,
    proposed: u32,
    /// Read points asked for: what was committed when they were.
    pub reads: BTreeMap<u64, Zxid>,
    pub confirms: BTreeSet<u64>,
    pub leading: bool,
    pub next_tick_ms: u64,
}

pub struct Node {
    pub disk: Disk,
    pub process: Option<Process>,
    pub paused: bool,
    /// The folder was lost after this server took part, and it is not a member again yet.
    pub lost: bool,
    /// Its store was changed behind its back.
    pub rotten: bool,
    /// Folders so far: the number of the disk.
    folders: u64,
}

#[derive(Clone, Debug)]
pub enum Frame {
    /// Who is at the other end: disk and start.
    Up(u64, u64),
    Message(Message),
    Down,
}

/// One stream: two queues.
#[derive(Clone, Debug)]
pub struct Stream {
    pub ends: [Id; 2],
    /// `queues[i]` leads to `ends[i]`.
    pub queues: [VecDeque<Due<Frame>>; 2],
    pub closed: bool,
}

/// One piece of pending work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Tick(Id),
    Deliver { link: u64, to: Id },
    Disk(Id),
    Apply(Id),
    Read(Id),
    Fetch(Id),
}

/// How long things take, in ms: from, to.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub net: (u64, u64),
    pub disk: (u64, u64),
    pub apply: (u64, u64),
    pub fetch: (u64, u64),
    pub tick: u64,
}

impl Pace {
    pub const QUICK: Pace = Pace { net: (0, 3), disk: (0, 4), apply: (0, 2), fetch: (1, 20), tick: 10 };
}

/// Mistakes of the surroundings, made on purpose: the checks must find each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// The log writer reports operations as durable that it has not written.
    CompletesEarly,
    /// The disk forgets the last entry that it reported as durable.
    ForgetsAnEntry,
    /// The disk forgets the last promise that it reported as durable.
    ForgetsThePromise,
    /// An empty folder takes part as if it remembered everything.
    BelievesAnEmptyFolder,
    /// The log drops what the store has not made durable.
    TrimsTooMuch,
    /// The store executes some batches twice.
    ExecutesTwice,
    /// Entries are altered on the way, with hashes that fit.
    AltersEntries,
}

/// What the ensemble is made of. `options` is a template: id, seed, members and quorum are filled in.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub voters: u64,
    pub observers: u64,
    pub options: Options,
    pub pace: Pace,
    /// Every message makes the way through the codec.
    pub codec: bool,
    /// The store flushes by itself after this many per mille of its batches.
    pub flush_per_mille: u64,
    /// Chance that the log drops what it may, and that the store cannot make a snapshot just now.
    pub trim_per_mille: u64,
    pub no_snapshot_per_mille: u64,
    pub payload_bytes: u64,
    pub planted: Option<Planted>,
}

/// Options for virtual time: short, so that runs are.
pub fn options() -> Options {
    Options {
        id: ServerId(0),
        quorum: QuorumSet::default(),
        members: Vec::new(),
        sync_timeout_ms: 200,
        init_timeout_ms: 1_000,
        ping_interval_ms: 20,
        election_quiet_ms: 20,
        tail_cache_bytes: 1 << 20,
        window_bytes: 1 << 20,
        learner_window_bytes: 1 << 20,
        message_bytes: 1 << 16,
        snapshot_threshold_bytes: 1 << 40,
        counter_limit: u32::MAX - (1 << 24),
        seed: 0,
    }
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            seed: 1,
            voters: 3,
            observers: 0,
            options: options(),
            pace: Pace::QUICK,
            codec: false,
            flush_per_mille: 200,
            trim_per_mille: 1_000,
            no_snapshot_per_mille: 0,
            payload_bytes: 0,
            planted: None,
        }
    }
}

/// Counts of things that a run of many seeds must have seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub established: u64,
    pub diffs: u64,
    pub truncs: u64,
    pub snaps: u64,
    pub installs: u64,
    pub log_reads: u64,
    pub rejects: u64,
    pub stale_frames: u64,
    pub amnesiacs: u64,
    pub rejoined: u64,
    pub handovers: u64,
    pub reads: u64,
    pub confirms: u64,
    pub commits: u64,
    pub trims: u64,
    /// The longest time from the end of all faults until everything was right, ms, and the seed of it.
    pub slowest: (u64, u64),
}

impl std::ops::AddAssign for Seen {
    fn add_assign(&mut self, other: Seen) {
        self.established += other.established;
        self.diffs += other.diffs;
        self.truncs += other.truncs;
        self.snaps += other.snaps;
        self.installs += other.installs;
        self.log_reads += other.log_reads;
        self.rejects += other.rejects;
        self.stale_frames += other.stale_frames;
        self.amnesiacs += other.amnesiacs;
        self.rejoined += other.rejoined;
        self.handovers += other.handovers;
        self.reads += other.reads;
        self.confirms += other.confirms;
        self.commits += other.commits;
        self.trims += other.trims;
        self.slowest = self.slowest.max(other.slowest);
    }
}

pub struct Cluster {
    pub plan: Plan,
    pub now_ms: u64,
    pub nodes: BTreeMap<Id, Node>,
    pub streams: BTreeMap<u64, Stream>,
    /// Directions (from, to) that deliver nothing.
    pub silent: BTreeSet<(Id, Id)>,
    pub ghost: Ghost,
    pub seen: Seen,
    pub rng: Rng,
    /// What happened, line by line, if anybody wants to know.
    pub trace: Option<Vec<String>>,
    /// A hash over all that happened: equal for equal seeds.
    pub fingerprint: u64,
    last_link: u64,
    last_tag: u64,
    last_snapshot: u64,
    last_instance: u64,
}

impl Cluster {
    /// Fresh folders, nobody started.
    pub fn new(plan: Plan) -> Cluster {
        let mut cluster = Cluster {
            rng: Rng::new(plan.seed),
            now_ms: 0,
            nodes: BTreeMap::new(),
            streams: BTreeMap::new(),
            silent: BTreeSet::new(),
            ghost: Ghost::new((1..=plan.voters).collect()),
            seen: Seen::default(),
            trace: None,
            fingerprint: 0,
            last_link: 0,
            last_tag: 0,
            last_snapshot: 0,
            last_instance: 100,
            plan,
        };
        for id in 1..=cluster.plan.voters + cluster.plan.observers {
            let node =
                Node { disk: Disk::default(), process: None, paused: false, lost: false, rotten: false, folders: 0 };
            cluster.nodes.insert(id, node);
            cluster.new_folder(id);
        }
        cluster
    }

    pub fn is_voter(&self, id: Id) -> bool {
        id <= self.plan.voters
    }

    pub fn ids(&self) -> Vec<Id> {
        self.nodes.keys().copied().collect()
    }

    pub fn node(&mut self, id: Id) -> &mut Node {
        self.nodes.get_mut(&id).expect("servers are numbered from 1 and never go")
    }

    /// Panics if the server is down.
    pub fn process(&mut self, id: Id) -> &mut Process {
        self.node(id).process.as_mut().expect("a running server")
    }

    pub fn is_up(&self, id: Id) -> bool {
        self.nodes[&id].process.is_some()
    }

    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(line());
        }
    }

    fn due<T>(&mut self, pace: (u64, u64), not_before: u64, item: T) -> Due<T> {
        let at_ms = (self.now_ms + self.rng.between(pace.0, pace.1)).max(not_before);
        Due { at_ms, tie: self.rng.next(), item }
    }

    // ---- processes -------------------------------------------------------------------------------------------------

    fn new_folder(&mut self, id: Id) {
        self.last_instance += 1;
        let instance = self.last_instance;
        let node = self.node(id);
        node.folders += 1;
        node.disk =
            Disk { identity: Identity { server: ServerId(id), instance, ..Identity::default() }, ..Disk::default() };
    }

    /// Starts a server from what its disk holds.
    pub fn start(&mut self, id: Id) {
        let members = self
            .nodes
            .keys()
            .map(|m| (ServerId(*m), if self.is_voter(*m) { MemberKind::Voter } else { MemberKind::Observer }))
            .collect();
        let options = Options {
            id: ServerId(id),
            quorum: QuorumSet::majority((1..=self.plan.voters).map(ServerId)),
            members,
            seed: self.plan.seed.wrapping_add(id),
            ..self.plan.options.clone()
        };
        let extra = self.rng.below(4);
        let now = self.now_ms;
        let node = self.node(id);
        assert!(node.process.is_none(), "it runs already");
        node.paused = false;
        node.disk.identity.start_count += 1;
        let Disk { identity, promise, log, store, .. } = node.disk.clone();
        assert!(store.position.zxid >= log.base.zxid, "the store is older than the log's base (P27)");
        let mut from = log.entries.partition_point(|e| e.zxid <= store.position.zxid);
        // Some of what is executed already, too.
        from -= (extra as usize).min(from);
        let recovered = Recovered {
            identity,
            promise,
            base: log.base,
            end: log.end(),
            stamp_ms: log.entries.last().map_or(0, |e| e.stamp_ms).max(store.stamp_ms),
            epochs: log.epochs(),
            tail: log.entries[from..].to_vec(),
            applied: store.position,
            persisted: store.position.zxid,
            digest: store.digest,
        };
        node.process = Some(Process {
            zab: Zab::new(options, recovered),
            mem: log,
            store,
            handed: store.count,
            committed: store.position.zxid,
            disk_ops: VecDeque::new(),
            applies: VecDeque::new(),
            log_reads: VecDeque::new(),
            fetches: VecDeque::new(),
            incoming: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            relation: None,
            relations: 0,
            proposed: 0,
            reads: BTreeMap::new(),
            confirms: BTreeSet::new(),
            leading: false,
            next_tick_ms: now,
        });
        self.note(|| format!("{now:>6} s{id} starts: {identity:?} {promise:?}"));
        self.check_disk(id);
    }

    /// Power cut. Of what was given to the disk and not confirmed, some prefix is there.
    pub fn crash(&mut self, id: Id, survives: Survives) {
        let Some(mut process) = self.node(id).process.take() else { return };
        let mut ops: Vec<DiskOp> = process.disk_ops.drain(..).map(|due| due.item).collect();
        let keep = match survives {
            Survives::Nothing => 0,
            Survives::SomePrefix => self.rng.below(ops.len() as u64 + 1) as usize,
        };
        let torn = (keep < ops.len()).then(|| ops.swap_remove(keep));
        ops.truncate(keep);
        for op in ops {
            self.write_disk(id, op, &process.incoming);
        }
        if survives == Survives::SomePrefix
            && let Some(DiskOp::Log { seq, op: LogOp::Append(mut entries) }) = torn
        {
            entries.truncate(self.rng.below(entries.len() as u64 + 1) as usize);
            if !entries.is_empty() {
                self.write_disk(id, DiskOp::Log { seq, op: LogOp::Append(entries) }, &process.incoming);
            }
        }
        let planted = self.plan.planted;
        let disk = &mut self.node(id).disk;
        match planted {
            Some(Planted::ForgetsAnEntry) => drop(disk.log.entries.pop()),
            Some(Planted::ForgetsThePromise) => disk.promise = disk.former_promise,
            _ => {}
        }
        let links: Vec<u64> = self.streams.iter().filter(|(_, s)| s.ends.contains(&id)).map(|(l, _)| *l).collect();
        for link in links {
            self.cut(link);
            let stream = self.streams.get_mut(&link);
            if let Some(stream) = stream {
                let side = usize::from(stream.ends[1] == id);
                stream.queues[side].clear();
            }
        }
        self.streams.retain(|_, s| !s.closed || s.queues.iter().any(|q| !q.is_empty()));
        let now = self.now_ms;
        self.note(|| format!("{now:>6} s{id} crashes"));
        self.ghost.on_crash(id);
        self.check_disk(id);
    }

    /// The data folder of a stopped server is gone.
    pub fn lose_folder(&mut self, id: Id) {
        assert!(!self.is_up(id), "it runs");
        let member = self.nodes[&id].disk.identity.membership == Membership::Member;
        let former = self.nodes[&id].disk.identity;
        self.new_folder(id);
        let voter = self.is_voter(id);
        if self.plan.planted == Some(Planted::BelievesAnEmptyFolder) {
            let identity = &mut self.node(id).disk.identity;
            (identity.cluster, identity.membership) = (former.cluster, former.membership);
        }
        let node = self.node(id);
        node.lost = voter && (member || node.lost);
        let now = self.now_ms;
        self.note(|| format!("{now:>6} s{id} lost its folder"));
        self.ghost.on_lost(id);
        self.check_disk(id);
    }

    /// A tree becomes another than execution made it, without a sound.
    pub fn rot(&mut self, id: Id) {
        let node = self.node(id);
        node.rotten = true;
        node.disk.store.digest ^= id;
        if let Some(process) = &mut node.process {
            process.store.digest ^= id;
        }
    }

    /// A server that found itself wrong ends; its next start sets log and store aside.
    fn condemn(&mut self, id: Id) {
        self.crash(id, Survives::Nothing);
        let voter = self.is_voter(id);
        let node = self.node(id);
        let member = node.disk.identity.membership == Membership::Member;
        node.rotten = false;
        node.lost = voter && (member || node.lost);
        let identity = Identity { membership: Membership::Amnesiac, ..node.disk.identity };
        node.disk = Disk { identity, promise: node.disk.promise, ..Disk::default() };
        self.ghost.on_lost(id);
        self.check_disk(id);
    }

    // ---- streams ---------------------------------------------------------------------------------------------------

    /// A new stream between two running servers, beside whatever there was.
    pub fn connect(&mut self, a: Id, b: Id) -> u64 {
        self.last_link += 1;
        let link = self.last_link;
        let pace = self.plan.pace.net;
        let up = |id: Id| {
            let Identity { instance, start_count, .. } = self.nodes[&id].disk.identity;
            Frame::Up(instance, start_count)
        };
        let (of_a, of_b) = (up(a), up(b));
        let (to_a, to_b) = (self.due(pace, 0, of_b), self.due(pace, 0, of_a));
        let stream = Stream { ends: [a, b], queues: [[to_a].into(), [to_b].into()], closed: false };
        self.streams.insert(link, stream);
        link
    }

    /// The stream breaks: each side still reads some of what was under way, then learns of it.
    pub fn cut(&mut self, link: u64) {
        let Some(stream) = self.streams.get(&link) else { return };
        if stream.closed {
            return;
        }
        let pace = self.plan.pace.net;
        for side in 0..2 {
            let len = self.streams[&link].queues[side].len() as u64;
            // All of it arrives as often as not.
            let keep = if self.rng.chance(500) { len } else { self.rng.below(len + 1) };
            let down = self.due(pace, 0, Frame::Down);
            let stream = self.streams.get_mut(&link).expect("looked at above");
            let queue = &mut stream.queues[side];
            queue.truncate(keep as usize);
            let not_before = queue.back().map_or(0, |d| d.at_ms);
            queue.push_back(Due { at_ms: down.at_ms.max(not_before), ..down });
            stream.closed = true;
        }
        let now = self.now_ms;
        self.note(|| format!("{now:>6} link {link} is cut"));
    }

    /// The stream breaks and nothing of what was under way arrives.
    pub fn cut_losing_all(&mut self, link: u64) {
        if let Some(stream) = self.streams.get_mut(&link)
            && !stream.closed
        {
            stream.queues.iter_mut().for_each(VecDeque::clear);
            self.cut(link);
        }
    }

    /// Open streams between two servers, oldest first.
    pub fn links_between(&self, a: Id, b: Id) -> Vec<u64> {
        let between = |s: &Stream| s.ends == [a, b] || s.ends == [b, a];
        self.streams.iter().filter(|(_, s)| !s.closed && between(s)).map(|(link, _)| *link).collect()
    }

    fn post(&mut self, from: Id, peer: ServerId, link: u64, message: Message) {
        self.ghost.on_send(from, peer.0, link, &message, &self.nodes[&from]);
        match &message {
            Message::SyncPlan { plan, .. } => match plan {
                crate::zab::message::SyncPlan::Diff => self.seen.diffs += 1,
                crate::zab::message::SyncPlan::Trunc => self.seen.truncs += 1,
                crate::zab::message::SyncPlan::Snap(_) => self.seen.snaps += 1,
            },
            Message::Reject { .. } => self.seen.rejects += 1,
            Message::Handover { .. } => self.seen.handovers += 1,
            _ => {}
        }
        let message = match (self.plan.planted, message) {
            (Some(Planted::AltersEntries), Message::Entries { epoch, prev, entries, commit })
                if self.rng.chance(10) =>
            {
                let mut hash = prev.hash;
                let altered = entries.into_iter().map(|e| {
                    let entry = Entry::after(hash, e.zxid, e.stamp_ms + 1, e.payload);
                    hash = entry.hash;
                    entry
                });
                Message::Entries { epoch, prev, entries: altered.collect(), commit }
            }
            (_, message) => message,
        };
        let message = if self.plan.codec {
            let frame = codec::encode_frame(std::slice::from_ref(&message));
            let decoded = codec::decode_frame(&frame).expect("our own frame");
            assert_eq!(decoded, [message], "the codec gives back what it was given");
            decoded.into_iter().next().expect("one message")
        } else {
            message
        };
        let Some(stream) = self.streams.get(&link) else { return };
        if stream.closed {
            return;
        }
        assert!(stream.ends.contains(&from) && stream.ends.contains(&peer.0), "sent over somebody else's stream");
        let side = usize::from(stream.ends[1] == peer.0);
        let not_before = stream.queues[side].back().map_or(0, |d| d.at_ms);
        let due = self.due(self.plan.pace.net, not_before, Frame::Message(message));
        self.streams.get_mut(&link).expect("looked at above").queues[side].push_back(due);
    }

    // ---- events ----------------------------------------------------------------------------------------------------

    /// The next piece of work of a plausible schedule, and its time.
    pub fn next_event(&self) -> Option<(u64, Event)> {
        let mut best: Option<((u64, u64), Event)> = None;
        let mut offer = |key: (u64, u64), event: Event| {
            if best.is_none_or(|(k, _)| key < k) {
                best = Some((key, event));
            }
        };
        for (id, node) in &self.nodes {
            let Some(process) = &node.process else { continue };
            if node.paused {
                continue;
            }
            offer((process.next_tick_ms, 0), Event::Tick(*id));
            if let Some(due) = process.disk_ops.front() {
                offer((due.at_ms, due.tie), Event::Disk(*id));
            }
            if let Some(due) = process.applies.front() {
                offer((due.at_ms, due.tie), Event::Apply(*id));
            }
            if let Some(due) = process.log_reads.front() {
                offer((due.at_ms, due.tie), Event::Read(*id));
            }
            if let Some(due) = process.fetches.front() {
                offer((due.at_ms, due.tie), Event::Fetch(*id));
            }
        }
        for (link, stream) in &self.streams {
            for side in 0..2 {
                let Some(due) = stream.queues[side].front() else { continue };
                let (from, to) = (stream.ends[1 - side], stream.ends[side]);
                if !self.silent.contains(&(from, to)) && !self.nodes[&to].paused {
                    offer((due.at_ms, due.tie), Event::Deliver { link: *link, to });
                }
            }
        }
        best.map(|((at, _), event)| (at.max(self.now_ms), event))
    }

    /// Does one piece of work now.
    pub fn run(&mut self, event: Event) {
        match event {
            Event::Tick(id) => {
                let next = self.now_ms + self.plan.pace.tick;
                self.process(id).next_tick_ms = next;
                self.input(id, Input::Tick);
            }
            Event::Deliver { link, to } => self.deliver(link, to),
            Event::Disk(id) => self.disk(id, usize::MAX),
            Event::Apply(id) => self.apply(id),
            Event::Read(id) => self.read_log(id),
            Event::Fetch(id) => self.fetch(id),
        }
    }

    /// Delivers the next frame of a stream to one of its ends.
    pub fn deliver(&mut self, link: u64, to: Id) {
        let Some(stream) = self.streams.get_mut(&link) else { return };
        let side = usize::from(stream.ends[1] == to);
        let from = stream.ends[1 - side];
        let Some(due) = stream.queues[side].pop_front() else { return };
        if stream.closed && stream.queues.iter().all(VecDeque::is_empty) {
            self.streams.remove(&link);
        }
        if !self.is_up(to) {
            return;
        }
        let peer = ServerId(from);
        let input = match due.item {
            Frame::Up(instance, start_count) => Input::PeerUp { peer, link, instance, start_count },
            Frame::Down => Input::PeerDown { peer, link },
            Frame::Message(message) => {
                if self.process(to).zab.peers.get(&peer).is_none_or(|p| p.link != link) {
                    self.seen.stale_frames += 1;
                }
                Input::PeerMessage { peer, link, message }
            }
        };
        let up = matches!(input, Input::PeerUp { .. });
        self.input(to, input);
        if up {
            // Of several streams to one peer a transport keeps the newest.
            let current = self.process(to).zab.peers.get(&peer).map_or(0, |p| p.link);
            for old in self.links_between(from, to).into_iter().filter(|l| *l < current) {
                self.cut(old);
            }
        }
    }

    /// Completes the disk's next operations that are due, `max` at most, at least one if there is one; one completion
    /// is reported for all of them.
    pub fn disk(&mut self, id: Id, max: usize) {
        let now = self.now_ms;
        let process = self.node(id).process.as_mut().expect("a running server");
        let incoming = std::mem::take(&mut process.incoming);
        let mut done = None;
        let mut trimmed = None;
        for n in 0..max {
            let process = self.node(id).process.as_mut().expect("a running server");
            if process.disk_ops.front().is_none_or(|due| n > 0 && due.at_ms > now) {
                break;
            }
            let due = process.disk_ops.pop_front().expect("looked at above");
            match &due.item {
                DiskOp::Log { seq, .. } => done = Some(*seq),
                DiskOp::Trim(base) => trimmed = Some(*base),
            }
            self.write_disk(id, due.item, &incoming);
        }
        if self.plan.planted == Some(Planted::CompletesEarly) {
            let mut queued = self.process(id).disk_ops.iter().filter_map(|due| match due.item {
                DiskOp::Log { seq, .. } => Some(seq),
                DiskOp::Trim(_) => None,
            });
            done = queued.next_back().or(done);
        }
        self.process(id).incoming = incoming;
        self.check_disk(id);
        if let Some(seq) = done {
            self.input(id, Input::LogDone { seq });
        }
        if trimmed.is_some() {
            let base = self.nodes[&id].disk.log.base;
            self.seen.trims += 1;
            self.input(id, Input::LogTrimmed { base });
        }
    }

    fn write_disk(&mut self, id: Id, op: DiskOp, incoming: &BTreeMap<u64, Store>) {
        let now = self.now_ms;
        self.note(|| format!("{now:>6} s{id} disk {}", show_disk_op(&op)));
        let (voter, planted) = (self.is_voter(id), self.plan.planted);
        let mut rejoined = false;
        let mut amnesiac = false;
        let disk = &mut self.node(id).disk;
        match op {
            DiskOp::Log { op: LogOp::Append(entries), .. } => {
                for entry in entries {
                    assert!(crate::zab::history::follows(disk.log.end().zxid, entry.zxid), "I4, I5: s{id} {entry:?}");
                    disk.log.entries.push(entry);
                }
            }
            DiskOp::Log { op: LogOp::Truncate { to }, .. } => {
                disk.log.truncate(to);
            }
            DiskOp::Log { op: LogOp::SetPromise(promise), .. } => {
                assert!(promise.epoch > disk.promise.epoch, "I11: the promise on the disk of s{id} goes down");
                disk.former_promise = std::mem::replace(&mut disk.promise, promise);
            }
            DiskOp::Log { op: LogOp::SetIdentity(identity), .. } => {
                disk.identity = identity;
                amnesiac = identity.membership == Membership::Amnesiac;
                rejoined = identity.membership == Membership::Member;
            }
            DiskOp::Log { op: LogOp::InstallSnapshot(meta), .. } => {
                disk.log = Log { base: meta.position, entries: Vec::new() };
                disk.store = incoming[&meta.id];
            }
            DiskOp::Trim(base) => {
                let kept = base.zxid <= disk.store.position.zxid || planted == Some(Planted::TrimsTooMuch);
                if disk.log.position_of(base.zxid) == Some(base) && kept {
                    disk.log.trim(base);
                }
            }
        }
        if amnesiac {
            self.seen.amnesiacs += 1;
        }
        if rejoined {
            let node = self.node(id);
            let was = std::mem::take(&mut node.lost);
            self.seen.rejoined += u64::from(was && voter);
        }
    }

    /// The apply room does its next piece of work.
    pub fn apply(&mut self, id: Id) {
        let Some(due) = self.process(id).applies.pop_front() else { return };
        match due.item {
            ApplyWork::Batch(entries) => {
                let twice = self.plan.planted == Some(Planted::ExecutesTwice) && self.rng.chance(10);
                let process = self.process(id);
                let mut digests = Vec::new();
                for entry in &entries {
                    process.store.execute(entry);
                    if entry.zxid.counter().is_multiple_of(DIGEST_EVERY) {
                        digests.push((entry.zxid, process.store.digest));
                    }
                }
                if twice {
                    entries.iter().for_each(|entry| process.store.execute(entry));
                }
                let store = process.store;
                if !self.nodes[&id].rotten {
                    self.ghost.on_executed(id, store);
                }
                let flush = self.plan.flush_per_mille;
                for (zxid, digest) in digests {
                    self.input(id, Input::Digest { zxid, digest });
                }
                if self.rng.chance(flush) && self.is_up(id) {
                    self.flush(id);
                }
                if self.is_up(id) {
                    let persisted = self.nodes[&id].disk.store.position.zxid;
                    let (zxid, digest) = (store.position.zxid, Some(store.digest));
                    self.input(id, Input::Applied { zxid, persisted, digest });
                }
            }
            ApplyWork::Open(meta) => {
                let node = self.node(id);
                let opened = node.disk.store;
                assert_eq!(opened.position, meta.position, "the directory pointer names the installed store");
                let process = self.process(id);
                process.store = opened;
                process.handed = opened.count;
                self.seen.installs += 1;
                self.input(id, Input::SnapshotOpened { position: meta.position });
            }
            ApplyWork::Make { request, at_least } => {
                let unlucky = self.plan.no_snapshot_per_mille;
                let store = self.process(id).store;
                let snapshot = if store.position.zxid < at_least || self.rng.chance(unlucky) {
                    None
                } else {
                    self.last_snapshot += 1;
                    let snapshot = self.last_snapshot;
                    self.process(id).snapshots.insert(snapshot, store);
                    let bytes = store.count as u64 * 50;
                    Some(SnapshotMeta { id: snapshot, position: store.position, stamp_ms: store.stamp_ms, bytes })
                };
                self.input(id, Input::SnapshotReady { request, snapshot });
            }
        }
    }

    /// The store writes what it holds to disk.
    pub fn flush(&mut self, id: Id) {
        let node = self.node(id);
        let Some(process) = &node.process else { return };
        // Between an install and the opening of the new store there is nothing to flush.
        if process.store.count < node.disk.store.count || process.zab.installing.is_some() {
            return;
        }
        node.disk.store = process.store;
        let zxid = process.store.position.zxid;
        self.input(id, Input::Applied { zxid, persisted: zxid, digest: None });
    }

    fn read_log(&mut self, id: Id) {
        let Some(due) = self.process(id).log_reads.pop_front() else { return };
        self.seen.log_reads += 1;
        let Read { request, after, max_bytes } = due.item;
        let log = &self.nodes[&id].disk.log;
        let mut entries = Vec::new();
        if log.position_of(after).is_some() {
            let mut bytes = 0;
            for entry in log.after(after) {
                if bytes > 0 && bytes + entry.weight() > max_bytes {
                    break;
                }
                bytes += entry.weight();
                entries.push(entry.clone());
            }
        }
        self.input(id, Input::LogRead { request, entries });
    }

    fn fetch(&mut self, id: Id) {
        let Some(due) = self.process(id).fetches.pop_front() else { return };
        let (request, leader, meta) = due.item;
        let reachable = !self.silent.contains(&(leader.0, id)) && !self.silent.contains(&(id, leader.0));
        let there = match &self.nodes[&leader.0].process {
            Some(process) if reachable => process.snapshots.get(&meta.id).copied(),
            _ => None,
        };
        if let Some(store) = there {
            assert_eq!(store.position, meta.position);
            self.process(id).incoming.insert(meta.id, store);
        }
        self.input(id, Input::SnapshotFetched { request, ok: there.is_some() });
    }

    // ---- clients and operators -------------------------------------------------------------------------------------

    /// A client of this server writes; nothing happens without a relation to a leader. The payload names the server,
    /// its relation and the place in it, so that the order of a server's writes can be checked.
    pub fn propose(&mut self, id: Id, writes: u64) -> bool {
        let size = self.plan.payload_bytes;
        let mut payloads = Vec::new();
        for _ in 0..writes {
            let pad = if size > 0 { self.rng.below(size) } else { 0 };
            let start = self.nodes[&id].disk.identity.start_count + (self.nodes[&id].folders << 32);
            let process = self.process(id);
            if process.relation.is_none() {
                return false;
            }
            process.proposed += 1;
            let proposer = Proposer { server: id, start, relation: process.relations };
            payloads.push(proposer.payload(process.proposed, pad as usize));
        }
        self.input(id, Input::Propose { payloads });
        true
    }

    pub fn read_index(&mut self, id: Id) -> u64 {
        self.last_tag += 1;
        let tag = self.last_tag;
        let floor = self.ghost.last_committed().zxid;
        self.process(id).reads.insert(tag, floor);
        self.input(id, Input::ReadIndex { tag });
        tag
    }

    pub fn confirm_round(&mut self, id: Id, include: Vec<ServerId>) -> u64 {
        self.last_tag += 1;
        let tag = self.last_tag;
        self.process(id).confirms.insert(tag);
        self.input(id, Input::ConfirmRound { tag, include });
        tag
    }

    pub fn touch(&mut self, id: Id, session: i64) {
        self.input(id, Input::Touched { sessions: vec![SessionId(session)] });
    }

    pub fn admin(&mut self, id: Id, admin: Admin) {
        self.input(id, Input::Admin(admin));
    }

    /// Gives a machine one input and does what it asks for; then asserts what must hold.
    pub fn input(&mut self, id: Id, input: Input) {
        if self.trace.is_some() && !matches!(input, Input::Tick) {
            let line = format!("{:>6} s{id} <- {}", self.now_ms, show_input(&input));
            self.note(|| line);
        }
        let now = Now { mono_ms: self.now_ms, wall_ms: 1_000_000 + self.now_ms as i64 };
        let mut out = Outputs::new();
        let process = self.node(id).process.as_mut().expect("a running server");
        process.zab.step(now, input, &mut out);
        if self.nodes[&id].rotten
            && let Some(fatal) = out.iter().find(|output| matches!(output, Output::Fatal(_)))
        {
            // As the loop does it: nothing that this server believes reaches anybody any more.
            let line = format!("{:>6} s{id} -> {}", self.now_ms, show_output(fatal));
            self.note(|| line);
            self.condemn(id);
            return;
        }
        self.perform(id, out);
        self.check_step(id);
    }

    fn perform(&mut self, id: Id, out: Outputs) {
        // The log as the machine sees it comes first: what is committed in the same step may be in it.
        for output in &out {
            if let Output::Log { op, .. } = output {
                self.submit(id, op);
            }
        }
        self.observe_commit(id);
        for output in out {
            if self.trace.is_some() {
                let line = format!("{:>6} s{id} -> {}", self.now_ms, show_output(&output));
                self.note(|| line);
            }
            self.fingerprint = mix(self.fingerprint, &output, id);
            match output {
                Output::Log { seq, op } => {
                    let not_before = self.process(id).disk_ops.back().map_or(0, |d| d.at_ms);
                    let due = self.due(self.plan.pace.disk, not_before, DiskOp::Log { seq, op });
                    self.process(id).disk_ops.push_back(due);
                }
                Output::Send { peer, link, message } => self.post(id, peer, link, message),
                Output::Apply(entries) => {
                    self.check_handed(id, &entries);
                    self.push_apply(id, ApplyWork::Batch(entries));
                }
                Output::ReadLog { request, after, max_bytes } => {
                    let due = self.due(self.plan.pace.disk, 0, Read { request, after, max_bytes });
                    self.process(id).log_reads.push_back(due);
                }
                Output::ReadPoint { tag, zxid } => {
                    let floor = self.process(id).reads.remove(&tag).expect("a read point nobody waits for");
                    assert!(zxid >= floor, "P24: s{id} reads at {zxid:?}, {floor:?} was committed before it asked");
                    self.seen.reads += 1;
                }
                Output::RoundConfirmed { tag } => {
                    assert!(self.process(id).confirms.remove(&tag), "a round nobody asked for");
                    self.seen.confirms += 1;
                }
                Output::Touches { .. } => {}
                Output::Relation(relation) => {
                    let process = self.process(id);
                    process.relation = relation;
                    process.relations += 1;
                    process.proposed = 0;
                }
                Output::Leading(leading) => {
                    let process = self.process(id);
                    assert_ne!(process.leading, leading, "told the same twice");
                    process.leading = leading;
                    if !leading {
                        process.confirms.clear();
                    }
                }
                Output::MakeSnapshot { request, at_least } => {
                    self.push_apply(id, ApplyWork::Make { request, at_least });
                }
                Output::DropSnapshot { id: snapshot } => {
                    let known = self.process(id).snapshots.remove(&snapshot);
                    assert!(known.is_some(), "s{id} drops a snapshot it does not have");
                }
                Output::FetchSnapshot { request, leader, snapshot } => {
                    let due = self.due(self.plan.pace.fetch, 0, (request, leader, snapshot));
                    self.process(id).fetches.push_back(due);
                }
                Output::OpenSnapshot(meta) => {
                    assert!(self.process(id).applies.is_empty(), "a snapshot is opened while entries are executed");
                    self.push_apply(id, ApplyWork::Open(meta));
                }
                Output::TrimLog { upto } => {
                    let trim = self.plan.trim_per_mille;
                    let store = self.nodes[&id].disk.store.position.zxid;
                    assert!(upto <= store, "P27: the log of s{id} may go up to {upto:?}, the store has {store:?}");
                    if self.rng.chance(trim) {
                        // A segment ends somewhere at or below.
                        let log = &self.nodes[&id].disk.log;
                        let upto = if self.plan.planted == Some(Planted::TrimsTooMuch) { Zxid::MAX } else { upto };
                        let below = log.entries.partition_point(|e| e.zxid <= upto) as u64;
                        if below > 0 {
                            let at = self.rng.below(below) as usize;
                            let entry = &self.nodes[&id].disk.log.entries[at];
                            let base = Position { zxid: entry.zxid, hash: entry.hash };
                            let not_before = self.process(id).disk_ops.back().map_or(0, |d| d.at_ms);
                            let due = self.due(self.plan.pace.disk, not_before, DiskOp::Trim(base));
                            self.process(id).disk_ops.push_back(due);
                        }
                    }
                }
                Output::Fatal(why) => panic!("s{id} gave up: {why}"),
                Output::Note(_) => {}
            }
        }
    }

    fn push_apply(&mut self, id: Id, work: ApplyWork) {
        let not_before = self.process(id).applies.back().map_or(0, |d| d.at_ms);
        let due = self.due(self.plan.pace.apply, not_before, work);
        self.process(id).applies.push_back(due);
    }

    /// Mirrors an operation that a machine gave out in its log as it sees it.
    fn submit(&mut self, id: Id, op: &LogOp) {
        let leading = match &self.process(id).zab.state {
            State::Leading(leading) => leading.epoch,
            _ => 0,
        };
        self.ghost.on_submit(id, leading, op, &self.nodes[&id]);
        let mut opened = false;
        let process = self.process(id);
        match op {
            LogOp::Append(entries) => {
                for entry in entries {
                    assert!(crate::zab::history::follows(process.mem.end().zxid, entry.zxid), "I4, I5: s{id}");
                    process.mem.entries.push(entry.clone());
                    opened |= leading == entry.zxid.epoch() && entry.zxid.counter() == 0;
                }
            }
            LogOp::Truncate { to } => process.mem.truncate(*to),
            LogOp::InstallSnapshot(meta) => {
                let store = process.incoming.get(&meta.id).expect("installs what was fetched");
                assert_eq!(store.position, meta.position);
                process.mem = Log { base: meta.position, entries: Vec::new() };
            }
            LogOp::SetPromise(_) | LogOp::SetIdentity(_) => {}
        }
        self.seen.established += u64::from(opened);
    }

    fn observe_commit(&mut self, id: Id) {
        let node = self.nodes.get_mut(&id).expect("servers never go");
        let process = node.process.as_mut().expect("a running server");
        let committed = process.zab.committed;
        let former = std::mem::replace(&mut process.committed, committed);
        assert!(committed >= former, "I16: the commit watermark of s{id} goes down");
        if committed > former {
            self.seen.commits += 1;
            self.ghost.on_commit(id, &self.nodes);
        }
    }

    fn check_handed(&mut self, id: Id, entries: &[Entry]) {
        let node = self.nodes.get_mut(&id).expect("servers never go");
        let process = node.process.as_mut().expect("a running server");
        for entry in entries {
            let position = Position { zxid: entry.zxid, hash: entry.hash };
            assert!(position.zxid <= process.committed, "I13: s{id} executes {position:?}, which is not committed");
            assert!(node.disk.log.holds(position), "I13: s{id} executes {position:?}, which is not on its disk");
            self.ghost.check_executed(id, process.handed, position);
            process.handed += 1;
        }
    }

    fn check_step(&mut self, id: Id) {
        let node = &self.nodes[&id];
        let process = node.process.as_ref().expect("a running server");
        let (zab, mem) = (&process.zab, &process.mem);
        assert_eq!(zab.log.end(), mem.end(), "s{id}'s log is not what it told the log writer");
        if zab.installing.is_none() {
            assert!(zab.committed <= mem.end().zxid, "I16: s{id} committed {:?} of {:?}", zab.committed, mem.end());
        }
        assert!(zab.applied <= zab.handed, "s{id} executed what it never handed out");
        assert!(node.disk.promise.epoch >= zab.promise.epoch, "P1: s{id} believes in a promise that is not on disk");
    }

    fn check_disk(&self, id: Id) {
        self.ghost.check_committed_is_kept(&self.nodes, id);
    }
}

/// What a crash leaves of operations under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survives {
    Nothing,
    SomePrefix,
}

/// Whose write it is: numbered from 1 within one relation of one start of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Proposer {
    pub server: Id,
    pub start: u64,
    pub relation: u32,
}

impl Proposer {
    fn payload(self, seq: u32, pad: usize) -> Bytes {
        let mut bytes = Vec::with_capacity(24 + pad);
        bytes.extend(self.server.to_le_bytes());
        bytes.extend(self.start.to_le_bytes());
        bytes.extend(self.relation.to_le_bytes());
        bytes.extend(seq.to_le_bytes());
        bytes.resize(24 + pad, 0);
        bytes.into()
    }

    /// `None` for (e,0).
    pub fn parse(payload: &[u8]) -> Option<(Proposer, u32)> {
        let number = |from: usize, to: usize| {
            let mut bytes = [0u8; 8];
            bytes[..to - from].copy_from_slice(payload.get(from..to)?);
            Some(u64::from_le_bytes(bytes))
        };
        let proposer = Proposer { server: number(0, 8)?, start: number(8, 16)?, relation: number(16, 20)? as u32 };
        Some((proposer, number(20, 24)? as u32))
    }
}

fn mix(hash: u64, output: &Output, id: Id) -> u64 {
    let kind = match output {
        Output::Log { seq, .. } => *seq,
        Output::Send { peer, link, .. } => peer.0 << 40 | link << 8 | 1,
        Output::Apply(entries) => entries.last().map_or(0, |e| e.hash),
        Output::ReadPoint { tag, zxid } => tag ^ zxid.0,
        _ => 7,
    };
    (hash ^ kind ^ id << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

// ---- words for people ------------------------------------------------------------------------------------------------

fn show_entries(entries: &[Entry]) -> String {
    match entries {
        [] => "nothing".to_owned(),
        [one] => format!("{:?}", one.zxid),
        [first, .., last] => format!("{:?}..{:?}", first.zxid, last.zxid),
    }
}

fn show_op(op: &LogOp) -> String {
    match op {
        LogOp::Append(entries) => format!("append {}", show_entries(entries)),
        LogOp::Truncate { to } => format!("truncate to {:?}", to.zxid),
        LogOp::SetPromise(p) => format!("promise {} to {:?}", p.epoch, p.leader),
        LogOp::SetIdentity(i) => format!("identity {:?}", i.membership),
        LogOp::InstallSnapshot(meta) => format!("install snapshot {} at {:?}", meta.id, meta.position.zxid),
    }
}

pub fn show_disk_op(op: &DiskOp) -> String {
    match op {
        DiskOp::Log { op, .. } => show_op(op),
        DiskOp::Trim(base) => format!("trim to {:?}", base.zxid),
    }
}

pub fn show_message(message: &Message) -> String {
    use crate::zab::message::SyncPlan;
    match message {
        Message::Identity(r) => format!("Identity {:?}{}", r.membership, if r.fresh { " fresh" } else { "" }),
        Message::Bootstrap { .. } => "Bootstrap".to_owned(),
        Message::Vote { round, state, vote, epoch: 0 } => {
            format!("Vote {state:?} round={round} {:?}@{:?}", vote.leader, vote.zxid)
        }
        Message::Vote { round, state, vote, epoch } => {
            format!("Vote {state:?} round={round} {:?}@{:?} epoch={epoch}", vote.leader, vote.zxid)
        }
        Message::FollowerInfo { promise, voter } => {
            format!("FollowerInfo promise={promise}{}", if *voter { " voter" } else { "" })
        }
        Message::LeaderInfo { epoch } => format!("LeaderInfo {epoch}"),
        Message::AckEpoch { epoch, counts, base, last, applied, doubt, .. } => {
            let counts = if *counts { " counts" } else { "" };
            let doubt = if *doubt > Zxid::ZERO { format!(" doubt={doubt:?}") } else { String::new() };
            format!("AckEpoch {epoch} log={:?}..{:?} applied={applied:?}{counts}{doubt}", base.zxid, last.zxid)
        }
        Message::Reject { promise } => format!("Reject {promise}"),
        Message::SyncPlan { epoch, point, plan } => {
            let plan = match plan {
                SyncPlan::Diff => "Diff",
                SyncPlan::Trunc => "Trunc",
                SyncPlan::Snap(_) => "Snap",
            };
            format!("SyncPlan {epoch} {plan} {:?}", point.zxid)
        }
        Message::Entries { epoch, prev, entries, commit } => {
            format!("Entries {epoch} after {:?}: {} commit={commit:?}", prev.zxid, show_entries(entries))
        }
        Message::Ack { epoch, zxid, .. } => format!("Ack {epoch} {zxid:?}"),
        Message::UpToDate { epoch, commit } => format!("UpToDate {epoch} commit={commit:?}"),
        Message::Commit { epoch, commit } => format!("Commit {epoch} {commit:?}"),
        Message::Ping { epoch, seq, commit, doubt } => {
            let doubt = if *doubt > Zxid::ZERO { format!(" doubt={doubt:?}") } else { String::new() };
            format!("Ping {epoch} #{seq} commit={commit:?}{doubt}")
        }
        Message::Pong { epoch, seq, .. } => format!("Pong {epoch} #{seq}"),
        Message::Forward { epoch, payloads } => format!("Forward {epoch} {} writes", payloads.len()),
        Message::ReadIndex { epoch, tag } => format!("ReadIndex {epoch} tag={tag}"),
        Message::ReadPoint { epoch, tag, zxid } => format!("ReadPoint {epoch} tag={tag} {zxid:?}"),
        Message::Handover { epoch } => format!("Handover {epoch}"),
        Message::Welcome { epoch, commit } => format!("Welcome({epoch}, commit {commit:?})"),
        Message::DigestMismatch { epoch, zxid } => format!("DigestMismatch {epoch} {zxid:?}"),
    }
}

pub fn show_input(input: &Input) -> String {
    match input {
        Input::Tick => "tick".to_owned(),
        Input::PeerUp { peer, link, .. } => format!("{peer:?} up, link {link}"),
        Input::PeerDown { peer, link } => format!("{peer:?} down, link {link}"),
        Input::PeerMessage { peer, link, message } => format!("{peer:?}/{link}: {}", show_message(message)),
        Input::LogDone { seq } => format!("log done {seq}"),
        Input::LogRead { entries, .. } => format!("read from disk: {}", show_entries(entries)),
        Input::Propose { payloads } => format!("propose {}", payloads.len()),
        Input::ReadIndex { tag } => format!("read index tag={tag}"),
        Input::ConfirmRound { tag, include } => format!("confirm round tag={tag} with {include:?}"),
        Input::Touched { sessions } => format!("touched {}", sessions.len()),
        Input::Digest { zxid, .. } => format!("digest at {zxid:?}"),
        Input::Applied { zxid, persisted, .. } => format!("applied {zxid:?} persisted {persisted:?}"),
        Input::SnapshotReady { snapshot: None, .. } => "no snapshot".to_owned(),
        Input::SnapshotReady { snapshot: Some(meta), .. } => {
            format!("snapshot {} at {:?}", meta.id, meta.position.zxid)
        }
        Input::SnapshotFetched { request, ok } => {
            format!("snapshot of request {request} {}", if *ok { "fetched" } else { "not fetched" })
        }
        Input::SnapshotOpened { position } => format!("snapshot opened at {:?}", position.zxid),
        Input::LogTrimmed { base } => format!("log trimmed to {:?}", base.zxid),
        Input::Admin(admin) => format!("{admin:?}"),
    }
}

pub fn show_output(output: &Output) -> String {
    match output {
        Output::Log { op, .. } => format!("log: {}", show_op(op)),
        Output::Send { peer, link, message } => format!("{peer:?}/{link}: {}", show_message(message)),
        Output::Apply(entries) => format!("apply {}", show_entries(entries)),
        Output::ReadLog { after, .. } => format!("read log after {after:?}"),
        Output::ReadPoint { tag, zxid } => format!("read point tag={tag} {zxid:?}"),
        Output::RoundConfirmed { tag } => format!("round confirmed tag={tag}"),
        Output::Touches { server, sessions } => format!("touches at {server:?}: {}", sessions.len()),
        Output::Relation(Some(r)) => format!("relation: {:?} in epoch {}", r.leader, r.epoch),
        Output::Relation(None) => "relation: none".to_owned(),
        Output::Leading(leading) => format!("leading: {leading}"),
        Output::MakeSnapshot { at_least, .. } => format!("make snapshot at or above {at_least:?}"),
        Output::DropSnapshot { id } => format!("drop snapshot {id}"),
        Output::FetchSnapshot { leader, snapshot, .. } => format!("fetch snapshot {} from {leader:?}", snapshot.id),
        Output::OpenSnapshot(meta) => format!("open snapshot {}", meta.id),
        Output::TrimLog { upto } => format!("log may go up to {upto:?}"),
        Output::Fatal(why) => format!("FATAL: {why}"),
        Output::Note(note) => format!("note: {note}"),
    }
}
