//! What clients do, and what must be true of what they were told.
//!
//! Each workload runs in rounds with a folder of its own. A round is: some workers with sessions over both protocols, a
//! last look, the verdict of the workload's checker over the round's history, and a clean-up. Faults go on meanwhile.
//! Checkers are functions of a history, and have tests that show that they find what they are for.

mod bank;
mod lock;
mod membership;
mod queue;
mod register;
mod set;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use corral_proto::{CreateMode, ErrorCode, Stat};
use corral_sim::rng::Rng;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::journal::Journal;
use crate::session::{Outcome, Protocol, Session, Write};

/// Everything that clients make is below it.
pub const ROOT: &str = "/chaos";
/// Where some znodes of every round stay until the end of the run.
pub const KEPT: &str = "/chaos/kept";
/// Length of a round, ms; from and to.
const ROUND_MS: (u64, u64) = (12_000, 25_000);
/// Session timeouts that clients ask for, ms.
pub const SESSION_TIMEOUTS_MS: [u64; 3] = [2_000, 3_000, 4_000];
/// Znodes deleted by one multi when a round cleans up.
const DELETES_AT_ONCE: usize = 100;

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// Compare-and-set, plain sets and linearizable reads of a few registers.
    Register,
    /// Creates of unique names, plain and sequential.
    Set,
    /// Sequential creates; who deletes one has consumed it.
    Queue,
    /// Locks, with writes that only the holder may do.
    Lock,
    /// Ephemerals of sessions that come and go, and lists of them.
    Membership,
    /// Followers of a counter and of a list of children, by watches alone.
    Watch,
    /// Transfers between accounts by multi, and snapshots by multi-read.
    Bank,
}

impl Kind {
    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Register => "register",
            Kind::Set => "set",
            Kind::Queue => "queue",
            Kind::Lock => "lock",
            Kind::Membership => "membership",
            Kind::Watch => "watch",
            Kind::Bank => "bank",
        }
    }
}

/// What all tasks of a workload share.
pub struct Ctx {
    /// The record.
    pub journal: Arc<Journal>,
    /// Where clients connect.
    pub servers: Vec<SocketAddr>,
    /// Of the run.
    pub seed: u64,
    /// The workload's.
    pub name: &'static str,
    /// Cancelled when no further operation should begin.
    pub ending: CancellationToken,
    /// Znodes that were acknowledged, and that must be there at the end.
    pub kept: Arc<Mutex<Vec<String>>>,
}

/// One round of one workload.
pub struct Round {
    ctx: Arc<Ctx>,
    /// The number, from 0.
    number: u64,
    /// Where its znodes are.
    folder: String,
    until: Instant,
}

impl Round {
    fn is_over(&self) -> bool {
        self.ctx.ending.is_cancelled() || Instant::now() >= self.until
    }

    fn rng(&self, what: &str) -> Rng {
        Rng::stream(self.ctx.seed, &format!("{} {} {what}", self.ctx.name, self.number))
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    async fn session(&self, protocol: Protocol, rng: &mut Rng) -> Session {
        let timeout_ms = *rng.pick(&SESSION_TIMEOUTS_MS);
        Session::begin(protocol, &self.ctx.servers, timeout_ms, &self.ctx.journal, rng.next()).await
    }

    /// Something does not hold; the evidence is the history of the round.
    fn violation(&self, text: &str, history: &[impl std::fmt::Debug]) {
        let mut evidence = format!("round {} in {}\n", self.number, self.folder);
        for line in history {
            evidence.push_str(&format!("{line:?}\n"));
        }
        self.ctx.journal.violation(self.ctx.name, text, &evidence);
    }

    fn count<T>(&self, outcome: &Outcome<T>) {
        outcome.count(&self.ctx.journal, self.ctx.name);
    }

    fn now(&self) -> u64 {
        self.ctx.journal.now()
    }
}

/// A pause of a client, some milliseconds.
async fn think(rng: &mut Rng, upto_ms: u64) {
    sleep(Duration::from_millis(rng.between(1, upto_ms))).await;
}

/// Runs a workload until `ending` is cancelled and its last round is judged.
pub async fn run(kind: Kind, ctx: Arc<Ctx>) {
    let mut steward = Steward::new(ctx.clone());
    let root = format!("{ROOT}/{}", ctx.name);
    for path in [ROOT, KEPT, &root] {
        steward.ensure(path).await;
    }
    let mut rng = Rng::stream(ctx.seed, ctx.name);
    for number in 0.. {
        let folder = format!("{root}/{number:05}");
        steward.ensure(&folder).await;
        let length = Duration::from_millis(rng.between(ROUND_MS.0, ROUND_MS.1));
        let round = Arc::new(Round { ctx: ctx.clone(), number, folder, until: Instant::now() + length });
        match kind {
            Kind::Register => register::round(&round, &mut steward).await,
            Kind::Set => set::round(&round, &mut steward).await,
            Kind::Queue => queue::round(&round, &mut steward).await,
            Kind::Lock => lock::round(&round, &mut steward).await,
            Kind::Membership => membership::round(&round).await,
            Kind::Watch => watch::round(&round, &mut steward).await,
            Kind::Bank => bank::round(&round, &mut steward).await,
        }
        steward.remove(&round.folder).await;
        ctx.journal.round_done(ctx.name);
        if ctx.ending.is_cancelled() {
            break;
        }
    }
    steward.close().await;
}

/// Prepares and cleans up: a client that tries again until it is answered, with another session if need be. It uses the
/// protocols by turns.
pub struct Steward {
    ctx: Arc<Ctx>,
    session: Option<Session>,
    sessions: u64,
}

impl Steward {
    fn new(ctx: Arc<Ctx>) -> Steward {
        Steward { ctx, session: None, sessions: 0 }
    }

    async fn session(&mut self) -> &Session {
        if self.session.as_ref().is_some_and(Session::is_over) {
            self.session = None;
        }
        if self.session.is_none() {
            let protocol = Protocol::of(self.sessions);
            self.sessions += 1;
            let ctx = &self.ctx;
            let timeout_ms = SESSION_TIMEOUTS_MS[2];
            let seed = ctx.seed ^ self.sessions;
            self.session = Some(Session::begin(protocol, &ctx.servers, timeout_ms, &ctx.journal, seed).await);
        }
        self.session.as_ref().expect("just made")
    }

    /// Whether to try again after this.
    async fn again<T>(&self, outcome: &Outcome<T>) -> bool {
        match outcome {
            Outcome::Unknown | Outcome::Ended => true,
            // Not now: no leader, no room on the disk.
            Outcome::Refused(code) if !is_answer(*code) => {
                sleep(Duration::from_millis(200)).await;
                true
            }
            Outcome::Done(_) | Outcome::Refused(_) => false,
        }
    }

    /// Data and Stat, as fresh as can be; `None` if there is no such znode.
    pub async fn get(&mut self, path: &str) -> Option<(String, Stat)> {
        loop {
            let outcome = self.session().await.get(path).await;
            if !self.again(&outcome).await {
                return outcome.done();
            }
        }
    }

    /// Names of the children, as fresh as can be; empty if there is no such znode.
    pub async fn children(&mut self, path: &str) -> Vec<String> {
        loop {
            let outcome = self.session().await.children(path).await;
            if !self.again(&outcome).await {
                return outcome.done().unwrap_or_default();
            }
        }
    }

    /// Makes sure that there is such a znode.
    pub async fn ensure(&mut self, path: &str) {
        self.ensure_with(path, "").await;
    }

    /// Makes sure that there is such a znode; it gets these data if it is new.
    pub async fn ensure_with(&mut self, path: &str, data: &str) {
        loop {
            let outcome = self.session().await.create(path, data, CreateMode::Persistent).await;
            if !self.again(&outcome).await {
                return;
            }
        }
    }

    /// Removes a znode and its children, and theirs.
    pub async fn remove(&mut self, path: &str) {
        loop {
            let names = self.children(path).await;
            for chunk in names.chunks(DELETES_AT_ONCE) {
                let all: Vec<Write> = chunk.iter().map(|name| Write::Delete(format!("{path}/{name}"))).collect();
                if self.session().await.multi(&all).await.done().is_some() {
                    continue;
                }
                // One of them is gone already, or has children.
                for name in chunk {
                    let child = format!("{path}/{name}");
                    loop {
                        let outcome = self.session().await.delete(&child).await;
                        if outcome == Outcome::Refused(ErrorCode::NotEmpty) {
                            Box::pin(self.remove(&child)).await;
                        } else if !self.again(&outcome).await {
                            break;
                        }
                    }
                }
            }
            let outcome = self.session().await.delete(path).await;
            if outcome != Outcome::Refused(ErrorCode::NotEmpty) && !self.again(&outcome).await {
                return;
            }
        }
    }

    async fn close(&mut self) {
        if let Some(session) = self.session.take() {
            session.close().await;
        }
    }
}

/// Whether this refusal is about the request, so that the same one would be refused again.
fn is_answer(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::NoNode | ErrorCode::NodeExists | ErrorCode::BadVersion | ErrorCode::NotEmpty)
}
