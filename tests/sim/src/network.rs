//! Streams between servers: in order within a stream, nothing after its end, no promise about when.
//!
//! A stream that breaks loses an arbitrary suffix of what was on its way, in each direction; each side learns of it at
//! its own time, or only by the next stream. What was kept may arrive after that: it carries the old stream's number.
//! A blocked direction holds messages back, as retransmission does; they come when it opens, unless the stream broke.

use std::collections::{BTreeMap, VecDeque};

use corral_core::zab::message::Message;
use corral_proto::ServerId;

use crate::options::SimOptions;
use crate::rng::Rng;
use crate::schedule::Micros;

/// Number of a stream, in the whole run.
pub type StreamId = u64;

/// One side of a stream: 0 for the server with the smaller number.
pub type Side = usize;

/// A process of a server, as the other side of a stream knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Which server.
    pub server: ServerId,
    /// Which process of it.
    pub process: u64,
    /// The number this process gave to the stream.
    pub link: u64,
    /// Its disk.
    pub instance: u64,
    /// Its start.
    pub start_count: u64,
}

#[derive(Debug)]
struct Stream {
    ends: [End; 2],
    /// What is on its way to each side.
    lanes: [Lane; 2],
    broken: bool,
}

#[derive(Debug, Default)]
struct Lane {
    queue: VecDeque<Message>,
    last: Micros,
    /// Deliveries that came due while the direction was blocked.
    held: u64,
    /// After the stream broke: what was kept arrives not before this.
    not_before: Micros,
}

/// What a delivery that came due is.
#[derive(Debug)]
pub enum Due {
    /// A message for a process.
    Message {
        /// For whom.
        to: End,
        /// From whom.
        from: End,
        /// What.
        message: Message,
        /// The stream broke meanwhile.
        late: bool,
    },
    /// It comes later.
    Later(Micros),
    /// Nothing: it was lost, or is held back.
    Nothing,
}

/// All streams of a run.
pub struct Network {
    streams: BTreeMap<StreamId, Stream>,
    current: BTreeMap<(ServerId, ServerId), StreamId>,
    blocked: BTreeMap<(ServerId, ServerId), u32>,
    next: StreamId,
    rng: Rng,
    delay: (Micros, Micros),
    client_delay: (Micros, Micros),
    spike: Micros,
    spike_per_mille: u64,
    /// Usual delay of each direction.
    links: BTreeMap<(ServerId, ServerId), (Micros, Micros)>,
    /// Directions that are slow now: up to so much longer.
    slow: BTreeMap<(ServerId, ServerId), Micros>,
}

fn pair(a: ServerId, b: ServerId) -> (ServerId, ServerId) {
    (a.min(b), a.max(b))
}

impl Network {
    /// No streams yet.
    pub fn new(options: &SimOptions) -> Network {
        let mut rng = Rng::stream(options.seed, "links");
        let mut links = BTreeMap::new();
        for (from, to) in (1..=options.servers()).flat_map(|a| (1..=options.servers()).map(move |b| (a, b))) {
            let (low, high) = options.delay;
            let high = if options.links_differ { rng.magnitude(low.max(1), high) } else { high };
            links.insert((ServerId(from), ServerId(to)), (low.min(high), high));
        }
        Network {
            links,
            slow: BTreeMap::new(),
            streams: BTreeMap::new(),
            current: BTreeMap::new(),
            blocked: BTreeMap::new(),
            next: 0,
            rng: Rng::stream(options.seed, "network"),
            delay: options.delay,
            client_delay: options.client_delay,
            spike: options.spike,
            spike_per_mille: options.spike_per_mille,
        }
    }

    /// From now on messages take their usual time.
    pub fn calm(&mut self) {
        self.spike_per_mille = 0;
        self.slow.clear();
    }

    /// Messages of a direction take up to so much longer.
    pub fn slow_down(&mut self, from: ServerId, to: ServerId, longest: Micros) {
        self.slow.insert((from, to), longest);
    }

    /// Messages of a direction take their usual time again.
    pub fn back_to_normal(&mut self, from: ServerId, to: ServerId) {
        self.slow.remove(&(from, to));
    }

    fn link_delay(&mut self, from: ServerId, to: ServerId) -> Micros {
        let (low, high) = self.links.get(&(from, to)).copied().unwrap_or(self.delay);
        let slow = self.slow.get(&(from, to)).copied().unwrap_or(0);
        let spike = if self.rng.chance(self.spike_per_mille) { self.rng.below(self.spike) } else { 0 };
        self.rng.between(low, high) + spike + self.rng.below(slow)
    }

    /// How long something else between two servers takes.
    pub fn delay(&mut self) -> Micros {
        self.within(self.delay)
    }

    /// How long the next message to or from a client takes.
    pub fn client_delay(&mut self) -> Micros {
        self.within(self.client_delay)
    }

    fn within(&mut self, (low, high): (Micros, Micros)) -> Micros {
        let usual = self.rng.between(low, high);
        usual + if self.rng.chance(self.spike_per_mille) { self.rng.below(self.spike) } else { 0 }
    }

    /// Whether two servers have an unbroken stream.
    pub fn is_connected(&self, a: ServerId, b: ServerId) -> bool {
        self.current.contains_key(&pair(a, b))
    }

    /// Whether a direction is blocked.
    pub fn is_blocked(&self, from: ServerId, to: ServerId) -> bool {
        self.blocked.get(&(from, to)).is_some_and(|n| *n > 0)
    }

    /// The stream of two servers, if it is not broken.
    pub fn stream(&self, a: ServerId, b: ServerId) -> Option<StreamId> {
        self.current.get(&pair(a, b)).copied()
    }

    /// All unbroken streams.
    pub fn unbroken(&self) -> Vec<StreamId> {
        self.current.values().copied().collect()
    }

    /// One side of a stream.
    pub fn end(&self, stream: StreamId, side: Side) -> End {
        self.streams[&stream].ends[side]
    }

    /// Makes the stream of two processes; nothing is delivered to a side before the time given for it.
    pub fn connect(&mut self, low: End, high: End, up: [Micros; 2]) -> StreamId {
        self.next += 1;
        let lane = |last| Lane { last, ..Lane::default() };
        self.streams.insert(self.next, Stream { ends: [low, high], lanes: [lane(up[0]), lane(up[1])], broken: false });
        self.current.insert((low.server, high.server), self.next);
        self.next
    }

    /// Puts a message on its way from one side; the time it is due, or `None` if the stream is broken.
    pub fn send(&mut self, stream: StreamId, from: Side, message: Message, now: Micros) -> Option<Micros> {
        let ends = self.streams.get(&stream).filter(|stream| !stream.broken)?.ends;
        let delay = self.link_delay(ends[from].server, ends[1 - from].server);
        let stream = self.streams.get_mut(&stream)?;
        let lane = &mut stream.lanes[1 - from];
        lane.queue.push_back(message);
        lane.last = lane.last.max(now + delay);
        Some(lane.last)
    }

    /// A delivery to a side came due.
    pub fn due(&mut self, id: StreamId, side: Side, now: Micros) -> Due {
        let (to, from) = {
            let stream = &self.streams[&id];
            (stream.ends[side], stream.ends[1 - side])
        };
        let blocked = self.is_blocked(from.server, to.server);
        let stream = self.streams.get_mut(&id).expect("streams stay");
        let lane = &mut stream.lanes[side];
        if blocked && !stream.broken {
            lane.held += 1;
            return Due::Nothing;
        }
        if now < lane.not_before {
            return Due::Later(lane.not_before);
        }
        match lane.queue.pop_front() {
            Some(message) => Due::Message { to, from, message, late: stream.broken },
            None => Due::Nothing,
        }
    }

    /// Breaks a stream; what is kept arrives up to `latest` from `now`. Of what is on its way to each side a prefix is kept; nothing for a side that `lost` names.
    pub fn break_stream(&mut self, id: StreamId, lost: Option<ServerId>, now: Micros, latest: Micros) -> bool {
        let stream = self.streams.get_mut(&id).expect("streams stay");
        if stream.broken {
            return false;
        }
        stream.broken = true;
        for side in 0..2 {
            let lane = &mut stream.lanes[side];
            let from = stream.ends[1 - side].server;
            let to = stream.ends[side].server;
            let held_back = self.blocked.get(&(from, to)).is_some_and(|n| *n > 0);
            let kept = if lost == Some(to) || held_back { 0 } else { self.rng.below(lane.queue.len() as u64 + 1) };
            lane.queue.truncate(kept as usize);
            if self.rng.chance(300) {
                lane.not_before = now + self.rng.below(latest);
            }
            lane.held = 0;
        }
        let (low, high) = (stream.ends[0].server, stream.ends[1].server);
        if self.current.get(&(low, high)) == Some(&id) {
            self.current.remove(&(low, high));
        }
        true
    }

    /// Blocks a direction; each call needs its own [`Network::unblock`].
    pub fn block(&mut self, from: ServerId, to: ServerId) {
        *self.blocked.entry((from, to)).or_default() += 1;
    }

    /// Nothing between two servers is blocked any more.
    pub fn unblock_pair(&mut self, a: ServerId, b: ServerId) {
        self.blocked.remove(&(a, b));
        self.blocked.remove(&(b, a));
    }

    /// A server is somewhere else from now on: nothing between it and others is blocked any more.
    pub fn unblock_all_of(&mut self, server: ServerId) {
        self.blocked.retain(|(from, to), _| *from != server && *to != server);
    }

    /// Takes one block back. If the direction is open now: the deliveries that were held back.
    pub fn unblock(&mut self, from: ServerId, to: ServerId) -> Option<(StreamId, Side, u64)> {
        // Whoever is somewhere else now may have been blocked anew since.
        let count = self.blocked.get_mut(&(from, to)).filter(|count| **count > 0)?;
        *count -= 1;
        if *count > 0 {
            return None;
        }
        let id = *self.current.get(&pair(from, to))?;
        let side = usize::from(to > from);
        let held = std::mem::take(&mut self.streams.get_mut(&id).expect("streams stay").lanes[side].held);
        (held > 0).then_some((id, side, held))
    }
}
