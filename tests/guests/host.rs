//! What guests live on: an executor, a clock and lines to servers, all of them the simulated world's.
//!
//! One thread. Whichever of the ready tasks is drawn goes on; when none is ready, the world takes its next step. A guest that
//! is suspended gets no turn: its tasks, its timers and its lines stand still, as those of a stopped process do.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use corral_client::ambient::{self, Ambient};
use corral_client::{Transport, Wire};
use corral_core::session::Outgoing;
use corral_proto::pb::client as pb;
use corral_proto::{ServerId, SessionId, Zxid};
use corral_server::frontend::grpc::convert;
use corral_sim::guests::{Happened, Hosted, ToGuest};
use corral_sim::options::SimOptions;
use corral_sim::rng::Rng;
use corral_sim::schedule::Micros;
use corral_sim::trace::Verbosity;
use futures::future::{BoxFuture, LocalBoxFuture};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// A guest's number. What strikes guests, and watches them, is nobody's.
pub type Guest = usize;
pub const NOBODY: Guest = usize::MAX;

/// Messages on a line, in each direction.
const LINE_MESSAGES: usize = 64;
/// What a server takes in one request.
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// A run that takes more turns is stuck in a loop.
const TURNS_MAX: u64 = 3_000_000;
/// Virtual time after the end of the faults within which everything must be over.
const PATIENCE: Duration = Duration::from_secs(600);

thread_local! {
    static HOST: RefCell<Option<Rc<Host>>> = const { RefCell::new(None) };
}

/// The host of this thread.
pub fn host() -> Rc<Host> {
    HOST.with(|host| host.borrow().clone()).expect("a host runs this thread")
}

struct Task {
    guest: Guest,
    future: LocalBoxFuture<'static, ()>,
}

/// Tasks that may go on.
type Ready = Arc<Mutex<BTreeSet<u64>>>;

struct TaskWaker {
    task: u64,
    ready: Ready,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready.lock().expect("one thread").insert(self.task);
    }
}

pub struct Host {
    world: RefCell<Hosted>,
    rng: RefCell<Rng>,
    base: Instant,
    servers: u64,
    voters: u64,
    session_timeout: Duration,
    tasks: RefCell<BTreeMap<u64, Task>>,
    guest_of: RefCell<BTreeMap<u64, Guest>>,
    last: Cell<u64>,
    current: Cell<Guest>,
    ready: Ready,
    timers: RefCell<BTreeMap<u64, Waker>>,
    lines: RefCell<BTreeMap<u64, mpsc::UnboundedSender<ToGuest>>>,
    suspended: RefCell<BTreeMap<Guest, Micros>>,
    /// Programs that are not over.
    programs: Cell<usize>,
    reached: RefCell<BTreeMap<&'static str, u64>>,
    /// Of all turns: what the run was.
    hash: Cell<u64>,
}

/// Takes the host away from its thread again, and everything that lives on it.
struct Stay(Rc<Host>);

impl Drop for Stay {
    fn drop(&mut self) {
        // One by one: what they drop may spawn, wake and look at the time.
        while let Some((_, task)) = { self.0.tasks.borrow_mut().pop_first() } {
            drop(task);
        }
        let lines = std::mem::take(&mut *self.0.lines.borrow_mut());
        drop(lines);
        HOST.with(|host| drop(host.take()));
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    pub failure: Option<String>,
    pub hash: u64,
    pub virtual_ms: u64,
    pub reached: BTreeMap<&'static str, u64>,
    pub tail: Vec<String>,
}

/// Runs guests in the world of these options: `begin` starts their programs; when all are over, `verify` looks at what they
/// left.
pub fn run<F>(options: SimOptions, begin: impl FnOnce(&Rc<Host>), verify: impl FnOnce() -> F) -> Ended
where
    F: Future<Output = Result<(), String>> + 'static,
{
    let (servers, voters, timeout_ms) = (options.servers(), options.voters, options.load.session_timeout_ms);
    let world = Hosted::new(options, Verbosity::Tail);
    let host = Rc::new(Host {
        rng: RefCell::new(world.rng("guests")),
        world: RefCell::new(world),
        base: Instant::now(),
        servers,
        voters,
        session_timeout: Duration::from_millis(timeout_ms),
        tasks: RefCell::default(),
        guest_of: RefCell::default(),
        last: Cell::new(0),
        current: Cell::new(NOBODY),
        ready: Ready::default(),
        timers: RefCell::default(),
        lines: RefCell::default(),
        suspended: RefCell::default(),
        programs: Cell::new(0),
        reached: RefCell::default(),
        hash: Cell::new(0),
    });
    HOST.with(|now| now.replace(Some(host.clone())));
    let installed = ambient::install(host.clone());
    let stay = Stay(host.clone());
    let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        begin(&host);
        host.until_over()?;
        let outcome = Rc::new(RefCell::new(None));
        let told = outcome.clone();
        let verify = verify();
        host.program(NOBODY, async move {
            let result = verify.await;
            *told.borrow_mut() = Some(result);
        });
        host.until_over()?;
        outcome.borrow_mut().take().unwrap_or_else(|| Err("nothing was verified".to_owned()))
    }));
    let failure = match run {
        Ok(result) => result.err(),
        Err(panic) => Some(
            panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_else(|| "a panic".to_owned()),
        ),
    };
    drop(stay);
    drop(installed);
    let world = host.world.borrow();
    let (world_hash, _) = world.hash();
    Ended {
        failure,
        hash: host.hash.get() ^ world_hash,
        virtual_ms: world.now() / 1000,
        reached: host.reached.borrow().clone(),
        tail: world.tail(),
    }
}

impl Host {
    /// Starts a program; the run goes on until all are over.
    pub fn program(self: &Rc<Self>, guest: Guest, program: impl Future<Output = ()> + 'static) {
        self.programs.set(self.programs.get() + 1);
        let host = self.clone();
        self.start(guest, async move {
            program.await;
            host.programs.set(host.programs.get() - 1);
        });
    }

    /// Starts something that the run does not wait for.
    pub fn start(&self, guest: Guest, task: impl Future<Output = ()> + 'static) {
        let id = self.next();
        self.tasks.borrow_mut().insert(id, Task { guest, future: Box::pin(task) });
        self.guest_of.borrow_mut().insert(id, guest);
        self.ready.lock().expect("one thread").insert(id);
    }

    fn next(&self) -> u64 {
        self.last.set(self.last.get() + 1);
        self.last.get()
    }

    /// Virtual time since the beginning.
    pub fn now(&self) -> Duration {
        Duration::from_micros(self.world.borrow().now())
    }

    /// Whether faults still strike.
    pub fn is_faulty(&self) -> bool {
        self.world.borrow().is_faulty()
    }

    pub fn session_timeout(&self) -> Duration {
        self.session_timeout
    }

    /// `host:port` of all servers, for a client.
    pub fn connect_string(&self) -> String {
        (1..=self.servers).map(|id| format!("server-{id}:{id}")).collect::<Vec<_>>().join(",")
    }

    pub fn below(&self, n: u64) -> u64 {
        self.rng.borrow_mut().below(n)
    }

    pub fn chance(&self, per_mille: u64) -> bool {
        self.rng.borrow_mut().chance(per_mille)
    }

    /// A while, short as often as long, up to `most`.
    pub fn while_up_to(&self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.rng.borrow_mut().magnitude(100, most.max(100)))
    }

    /// Counts what a run reached.
    pub fn note(&self, what: &'static str) {
        *self.reached.borrow_mut().entry(what).or_insert(0) += 1;
    }

    pub fn say(&self, text: impl FnOnce() -> String) {
        self.world.borrow_mut().say(text);
    }

    /// The guest gets no turn for so long.
    pub fn suspend(&self, guest: Guest, pause: Duration) {
        let until = self.world.borrow().now() + u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        self.say(|| format!("guest {guest} is suspended for {} ms", pause.as_millis()));
        self.suspended.borrow_mut().insert(guest, until);
        // Nothing else may happen then that would let it go on.
        let timer = self.next();
        self.world.borrow_mut().set_timer(until, timer);
    }

    fn micros(&self, at: Instant) -> Micros {
        // Rounded up: a timer that came early would be set again and again.
        let nanos = at.saturating_duration_since(self.base).as_nanos();
        u64::try_from(nanos.div_ceil(1_000)).unwrap_or(u64::MAX)
    }

    /// One of the tasks that may go on.
    fn draw(&self) -> Option<u64> {
        let now = self.world.borrow().now();
        let mut suspended = self.suspended.borrow_mut();
        suspended.retain(|_, until| *until > now);
        let mut ready = self.ready.lock().expect("one thread");
        let guest_of = self.guest_of.borrow();
        ready.retain(|task| guest_of.contains_key(task));
        let able: Vec<u64> = ready.iter().copied().filter(|task| !suspended.contains_key(&guest_of[task])).collect();
        if able.is_empty() {
            return None;
        }
        let task = able[self.rng.borrow_mut().below(able.len() as u64) as usize];
        ready.remove(&task);
        Some(task)
    }

    fn turn(&self, id: u64) {
        let Some(mut task) = self.tasks.borrow_mut().remove(&id) else { return };
        self.current.set(task.guest);
        let waker = Waker::from(Arc::new(TaskWaker { task: id, ready: self.ready.clone() }));
        let polled = task.future.as_mut().poll(&mut Context::from_waker(&waker));
        if polled.is_pending() {
            self.tasks.borrow_mut().insert(id, task);
        } else {
            drop(task);
            self.guest_of.borrow_mut().remove(&id);
        }
        self.current.set(NOBODY);
    }

    /// Until all programs are over.
    fn until_over(&self) -> Result<(), String> {
        let mut calm = None;
        for turns in 0.. {
            if turns > TURNS_MAX {
                return Err("turns without end".to_owned());
            }
            if let Some(task) = self.draw() {
                self.hash.set((self.hash.get() ^ task).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
                self.turn(task);
                if self.programs.get() == 0 {
                    return Ok(());
                }
                continue;
            }
            let happened = self.world.borrow_mut().step();
            match happened.map_err(|violation| format!("{}: {}", violation.invariant, violation.text))? {
                None => return Err("nothing is left to happen".to_owned()),
                Some(Happened::Else) => {}
                Some(Happened::Timer(timer)) => {
                    let waker = self.timers.borrow_mut().remove(&timer);
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
                Some(Happened::Told(line, told)) => {
                    if let Some(line) = self.lines.borrow().get(&line) {
                        // Who has left does not want it.
                        let _ = line.send(told);
                    }
                }
            }
            if !self.is_faulty() {
                let now = self.now();
                if now > *calm.get_or_insert(now) + PATIENCE {
                    return Err(format!("{} programs are never over", self.programs.get()));
                }
            }
        }
        Ok(())
    }
}

impl Ambient for Host {
    fn now(&self) -> Instant {
        self.base + Host::now(self)
    }

    fn set_timer(&self, at: Instant, waker: Waker) -> u64 {
        let timer = self.next();
        self.timers.borrow_mut().insert(timer, waker);
        self.world.borrow_mut().set_timer(self.micros(at), timer);
        timer
    }

    fn clear_timer(&self, timer: u64) {
        self.timers.borrow_mut().remove(&timer);
    }

    fn random(&self) -> u64 {
        self.rng.borrow_mut().next()
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.start(self.current.get(), task);
    }
}

/// Lines to the servers of this thread's host.
#[derive(Debug)]
pub struct Lines;

impl Transport for Lines {
    fn open(&self, server: &str) -> io::Result<Wire> {
        let id = server.rsplit_once(':').and_then(|(_, id)| id.parse().ok()).expect("a server of the connect string");
        let (outbound, requests) = mpsc::channel(LINE_MESSAGES);
        let (replies, inbound) = mpsc::channel(LINE_MESSAGES);
        let host = host();
        host.start(host.current.get(), carry(ServerId(id), requests, replies));
        Ok(Wire { outbound, inbound })
    }
}

/// A connection in the world; the server hears when it ends.
struct Line(u64);

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(host) = HOST.with(|host| host.borrow().clone()) {
            host.lines.borrow_mut().remove(&self.0);
            host.world.borrow_mut().leave(self.0);
        }
    }
}

/// Carries between a client and a server until one of them ends it, or it is cut.
async fn carry(
    server: ServerId,
    mut requests: mpsc::Receiver<pb::ClientMessage>,
    replies: mpsc::Sender<pb::ServerMessage>,
) {
    use pb::client_message::Message as Asked;
    use pb::server_message::Message as Told;
    let Some(pb::ClientMessage { message: Some(Asked::Connect(connect)) }) = requests.recv().await else { return };
    let host = host();
    let session = (connect.session != 0).then_some(SessionId(connect.session));
    let Some(id) = host.world.borrow_mut().connect(server, session, Zxid(connect.last_zxid_seen)) else { return };
    let line = Line(id);
    let (inbox, mut told) = mpsc::unbounded_channel();
    host.lines.borrow_mut().insert(id, inbox);
    let send = async |message: Told| replies.send(pb::ServerMessage { message: Some(message) }).await.is_ok();
    let timeout = host.session_timeout;
    // Half of the lines last; the others are cut sooner or later.
    let cut_at = ambient::now() + if host.chance(500) { host.while_up_to(timeout * 20) } else { PATIENCE * 10 };
    loop {
        // What is on its way stays on its way for a while.
        if host.is_faulty() && host.chance(3) {
            host.note("a line stood still");
            ambient::sleep(host.while_up_to(timeout * 2)).await;
        }
        tokio::select! {
            biased;
            () = ambient::sleep_until(cut_at), if host.is_faulty() => {
                host.note("a line was cut");
                return;
            }
            message = told.recv() => {
                let message = match message {
                    None | Some(ToGuest::Broken) => return,
                    Some(ToGuest::Attached(session, timeout_ms, last_n)) => {
                        if server.0 > host.voters {
                            host.note("an observer served a guest");
                        }
                        Told::Connected(pb::Connected {
                            session: session.0,
                            password: bytes::Bytes::from_static(b"none is asked for"),
                            timeout_ms: u32::try_from(timeout_ms).expect("positive"),
                            server: server.0,
                            zxid: 0,
                            last_n,
                            request_bytes_max: REQUEST_BYTES_MAX,
                        })
                    }
                    Some(ToGuest::Expired) => Told::Closed(pb::Closed {
                        reason: pb::closed::Reason::SessionExpired.into(),
                        text: String::new(),
                    }),
                    Some(ToGuest::Out(Outgoing::Close(reason))) => Told::Closed(convert::closed(reason)),
                    Some(ToGuest::Out(Outgoing::Reply { cookie, zxid, result })) => {
                        replies_of(convert::reply(cookie, zxid, result))
                    }
                    Some(ToGuest::Out(Outgoing::Event(event))) => replies_of(convert::event(&event)),
                    Some(ToGuest::Out(Outgoing::Feed(notice))) => replies_of(convert::feed(&notice)),
                };
                let is_last = matches!(message, Told::Closed(_));
                if !send(message).await || is_last {
                    return;
                }
            }
            message = requests.recv() => match message.and_then(|message| message.message) {
                Some(Asked::Requests(batch)) => {
                    for request in batch.requests {
                        let cookie = request.id;
                        let request = convert::request(request).expect("the client keeps to the protocol");
                        host.world.borrow_mut().request(line.0, cookie, request);
                    }
                }
                Some(Asked::Connect(_)) | None => return,
            },
        }
    }
}

fn replies_of(reply: pb::Reply) -> pb::server_message::Message {
    pb::server_message::Message::Replies(pb::ReplyBatch { replies: vec![reply] })
}

/// Suspends one guest after the other while there are faults, some of them for longer than their sessions last.
pub async fn suspend_guests(guests: usize) {
    let host = host();
    let timeout = host.session_timeout;
    while host.is_faulty() {
        ambient::sleep(timeout / 2 + host.while_up_to(timeout * 10)).await;
        let guest = host.below(guests as u64) as usize;
        let pause = if host.chance(500) { timeout + host.while_up_to(timeout * 2) } else { host.while_up_to(timeout) };
        if pause > timeout {
            host.note("a guest slept longer than its session");
        }
        host.suspend(guest, pause);
    }
}
