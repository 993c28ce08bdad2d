//! Guests: clients that are no part of the world, but real ones, with a thread of their own making.
//!
//! They see the servers and the virtual clock, and suffer every fault of servers and their network; what they do and what they
//! make of it is theirs. All that happens, their timers included, stands in one queue: so a run is the same again if what guests do
//! follows from the seed.

use corral_core::session::lane::Handshake;
use corral_core::session::{ClientRequest, Outgoing};
use corral_proto::{ServerId, SessionId, Zxid};

use crate::checks::Violation;
use crate::frontend::{ToClient, ToServer};
use crate::options::SimOptions;
use crate::rng::Rng;
use crate::schedule::Micros;
use crate::trace::Verbosity;
use crate::world::{Event, ProcessRef, Stage, World};

/// The client that a guest's connections belong to: none of the world's.
pub(crate) const GUEST: usize = usize::MAX;

/// From a server to a guest.
#[derive(Debug)]
pub enum ToGuest {
    /// The session is attached: its id, its timeout in ms, and the highest number of a write that was executed.
    Attached(SessionId, i32, u64),
    /// The session is gone.
    Expired,
    /// A reply, an event, the end.
    Out(Outgoing),
    /// The connection broke.
    Broken,
}

/// What happened.
#[derive(Debug)]
pub enum Happened {
    /// Something among the servers.
    Else,
    /// A timer of a guest is due.
    Timer(u64),
    /// A connection of a guest has something for it.
    Told(u64, ToGuest),
}

/// A world with guests.
pub struct Hosted {
    world: World,
}

impl Hosted {
    /// The world of these options, with nobody in it but guests.
    pub fn new(mut options: SimOptions, verbosity: Verbosity) -> Hosted {
        options.load.clients = 0;
        options.followers = 0;
        Hosted { world: World::new(options, verbosity) }
    }

    /// Virtual time.
    pub fn now(&self) -> Micros {
        self.world.schedule.now()
    }

    /// Whether faults still strike.
    pub fn is_faulty(&self) -> bool {
        self.world.stage == Stage::Safety
    }

    /// Chance for what guests do, by a name.
    pub fn rng(&self, name: &str) -> Rng {
        Rng::stream(self.world.options.seed, name)
    }

    /// Hash of all that happened, and how many events that was.
    pub fn hash(&self) -> (u64, u64) {
        (self.world.trace.hash(), self.world.trace.events())
    }

    /// How often something was reached.
    pub fn reached(&self, what: &str) -> u64 {
        self.world.trace.coverage().get(what).copied().unwrap_or(0)
    }

    /// The last lines of the trace.
    pub fn tail(&self) -> Vec<String> {
        self.world.trace.tail().map(str::to_owned).collect()
    }

    /// Adds a line to the trace.
    pub fn say(&mut self, text: impl FnOnce() -> String) {
        self.world.tell(text);
    }

    /// [`Happened::Timer`] comes when it is so late.
    pub fn set_timer(&mut self, at: Micros, timer: u64) {
        self.world.schedule.at(at, Event::GuestTimer(timer));
    }

    /// Opens a connection to a server, and asks it to begin or take up a session. `None`: the server does not run.
    pub fn connect(&mut self, server: ServerId, session: Option<SessionId>, seen: Zxid) -> Option<u64> {
        let to = self.world.process_of(server)?;
        self.world.next_connection += 1;
        let id = self.world.next_connection;
        self.world.guests.insert(id, (to, self.now()));
        self.send(id, ToServer::Open { session, seen, wire: false });
        Some(id)
    }

    /// Asks for something; the mark comes back with the reply.
    pub fn request(&mut self, connection: u64, cookie: u64, request: ClientRequest) {
        self.send(connection, ToServer::Request(cookie, request));
    }

    /// The guest leaves its connection; the server hears of it later, after what is on its way.
    pub fn leave(&mut self, connection: u64) {
        self.send(connection, ToServer::Gone);
        self.world.guests.remove(&connection);
    }

    fn send(&mut self, connection: u64, message: ToServer) {
        let (now, delay) = (self.now(), self.world.network.delay());
        let Some((to, arrives)) = self.world.guests.get_mut(&connection) else { return };
        *arrives = (*arrives).max(now + delay);
        let event = Event::ToServer { to: *to, connection, client: GUEST, message };
        self.world.schedule.at(*arrives, event);
    }

    /// Lets the next thing happen. `None`: nothing is left to happen.
    ///
    /// # Errors
    /// The first property that does not hold.
    pub fn step(&mut self) -> Result<Option<Happened>, Violation> {
        let Some(event) = self.world.schedule.pop() else { return Ok(None) };
        self.world.handle(event)?;
        Ok(Some(match self.world.told.take() {
            None => Happened::Else,
            Some(happened) => happened,
        }))
    }
}

impl World {
    /// Something of a server reached a guest.
    pub(crate) fn on_to_guest(&mut self, connection: u64, message: ToClient) {
        let told = match message {
            ToClient::Broken => ToGuest::Broken,
            ToClient::Handshake(session, Handshake::Attached { timeout_ms, last_n, .. }) => {
                ToGuest::Attached(session, timeout_ms, last_n)
            }
            ToClient::Handshake(_, Handshake::Expired) => ToGuest::Expired,
            // It draws another: as if the connection had broken.
            ToClient::Handshake(_, Handshake::IdTaken) => ToGuest::Broken,
            ToClient::Out(outgoing) => ToGuest::Out(outgoing),
        };
        if matches!(told, ToGuest::Broken | ToGuest::Out(Outgoing::Close(_))) {
            self.guests.remove(&connection);
        }
        self.told = Some(Happened::Told(connection, told));
    }
}

/// Where a guest's connection goes, and when the last thing that was sent arrives.
pub(crate) type Line = (ProcessRef, Micros);
