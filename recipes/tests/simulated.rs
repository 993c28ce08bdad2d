//! The decisions of recipes in a simulated world: one linearizable tree, sessions that end, and clients that sleep longer
//! than their sessions live between any two of their steps.
//!
//! Virtual time, one thread, everything drawn from a seed: `SEED=n cargo test -p corral-recipes --test simulated` runs one
//! again. The tree is a model, because that the ensemble behaves like one tree is what its own simulator shows
//! (`tests/sim`); here the question is what clients make of it. A client asks the same functions as the drivers do
//! (`sequence`, `decide`), and acts on answers that may be as old as it likes.

use std::collections::{BTreeMap, BTreeSet};

use corral_recipes::decide::queue::entries;
use corral_recipes::decide::semaphore::{Decision, decide};
use corral_recipes::sequence::{self, Family, Place, Role};

/// Seeds of an ordinary run; `SEEDS=n` runs so many.
const SEEDS: u64 = 60;
/// Virtual milliseconds without a request after which a session ends.
const TIMEOUT_MS: u64 = 1_000;
const CLIENTS: u64 = 4;
const STEPS: u64 = 1_500;
const PERMITS: u32 = 2;

#[derive(Clone, Debug)]
struct Node {
    czxid: u64,
    version: i32,
    owner: Option<u64>,
    data: u64,
}

/// One operation of a transaction.
enum Op {
    Check(String, Option<i32>),
    Create(String, Option<u64>),
    /// The name gets the directory's next number.
    CreateNumbered(String, String, Option<u64>),
    Set(String, u64, Option<i32>),
    Delete(String, Option<i32>),
}

/// The tree, as the ensemble's log would make it.
#[derive(Clone, Default)]
struct Tree {
    zxid: u64,
    nodes: BTreeMap<String, Node>,
    numbers: BTreeMap<String, u64>,
}

impl Tree {
    /// All, or nothing; gives the paths that were created.
    fn multi(&mut self, ops: Vec<Op>) -> Option<Vec<String>> {
        let mut next = self.clone();
        next.zxid += 1;
        let mut created = Vec::new();
        for op in ops {
            let fits = |node: Option<&Node>, version: Option<i32>| {
                node.is_some_and(|node| version.is_none_or(|version| version == node.version))
            };
            match op {
                Op::Check(path, version) => fits(next.nodes.get(&path), version).then_some(())?,
                Op::Create(path, owner) => next.create(path, owner, &mut created)?,
                Op::CreateNumbered(directory, prefix, owner) => {
                    let number = next.numbers.entry(directory.clone()).or_default();
                    let path = format!("{directory}/{prefix}{number:010}");
                    *number += 1;
                    next.create(path, owner, &mut created)?;
                }
                Op::Set(path, data, version) => {
                    fits(next.nodes.get(&path), version).then_some(())?;
                    let node = next.nodes.get_mut(&path)?;
                    (node.data, node.version) = (data, node.version + 1);
                }
                Op::Delete(path, version) => {
                    fits(next.nodes.get(&path), version).then_some(())?;
                    next.nodes.remove(&path);
                }
            }
        }
        *self = next;
        Some(created)
    }

    fn create(&mut self, path: String, owner: Option<u64>, created: &mut Vec<String>) -> Option<()> {
        let node = Node { czxid: self.zxid, version: 0, owner, data: 0 };
        created.push(path.clone());
        self.nodes.insert(path, node).is_none().then_some(())
    }

    fn children(&self, directory: &str) -> Vec<String> {
        let prefix = format!("{directory}/");
        self.nodes.keys().filter_map(|path| path.strip_prefix(&prefix)).map(str::to_owned).collect()
    }
}

/// What a client is about to do; what it knows is from when it last looked.
#[derive(Clone, Debug)]
enum Doing {
    Nothing,
    /// Waits its turn at a lock.
    Queueing {
        own: String,
        token: u64,
        role: Role,
    },
    /// Believes that it holds, and has read the number.
    Holding {
        own: String,
        token: u64,
        role: Role,
        read: Option<u64>,
    },
    /// Read the counter.
    Counting {
        number: u64,
        version: i32,
    },
    /// First in the semaphore's queue, as far as it knows.
    Wanting {
        own: String,
    },
    /// Has a permit.
    Permitted {
        own: String,
    },
    /// Believes that an item is its own.
    Working {
        entry: String,
        version: i32,
    },
}

struct Client {
    session: Option<u64>,
    heard_ms: u64,
    acts_ms: u64,
    doing: Doing,
}

struct World {
    now_ms: u64,
    tree: Tree,
    clients: Vec<Client>,
    last_session: u64,
    random: u64,
    /// Steps that were logged: number and token.
    log: Vec<(u64, u64)>,
    counted: u64,
    put: BTreeSet<String>,
    done: BTreeSet<String>,
    /// What some run must reach.
    reached: BTreeSet<&'static str>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut tree = Tree::default();
        for path in ["/state", "/counter"] {
            tree.multi(vec![Op::Create(path.to_owned(), None)]).expect("an empty tree");
        }
        let client = |n| Client { session: None, heard_ms: 0, acts_ms: n, doing: Doing::Nothing };
        World {
            now_ms: 0,
            tree,
            clients: (0..CLIENTS).map(client).collect(),
            last_session: 0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            log: Vec::new(),
            counted: 0,
            put: BTreeSet::new(),
            done: BTreeSet::new(),
            reached: BTreeSet::new(),
        }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    /// The next step of whoever is next; before it, sessions end whose time is over.
    fn step(&mut self) {
        let at = (0..self.clients.len()).min_by_key(|at| self.clients[*at].acts_ms).expect("clients");
        self.now_ms = self.clients[at].acts_ms;
        for client in &mut self.clients {
            if let Some(session) = client.session
                && self.now_ms - client.heard_ms > TIMEOUT_MS
            {
                // The client does not know, and goes on with what it was doing.
                self.tree.zxid += 1;
                self.tree.nodes.retain(|_, node| node.owner != Some(session));
                client.session = None;
                if !matches!(client.doing, Doing::Nothing | Doing::Counting { .. }) {
                    self.reached.insert("a session ended under its owner");
                }
            }
        }
        self.act(at);
        self.check();
        // Mostly quick; sometimes a pause of up to three session timeouts.
        let pause_ms = if self.draw(8) == 0 { self.draw(3 * TIMEOUT_MS) } else { self.draw(40) };
        self.clients[at].acts_ms = self.now_ms + 1 + pause_ms;
    }

    fn act(&mut self, at: usize) {
        let doing = std::mem::replace(&mut self.clients[at].doing, Doing::Nothing);
        let Some(session) = self.clients[at].session else {
            // Its first request after the end tells it; but what was on its way arrives. The server refuses it by the
            // session; a guarded write that is handed to another session is refused by its fence.
            self.stale_write(&doing);
            self.last_session += 1;
            self.clients[at].session = Some(self.last_session);
            self.clients[at].heard_ms = self.now_ms;
            return;
        };
        self.clients[at].heard_ms = self.now_ms;
        self.clients[at].doing = match doing {
            Doing::Nothing => self.begin(session),
            Doing::Queueing { own, token, role } => self.look(own, token, role),
            Doing::Holding { own, token, role, read } => self.work(own, token, role, read),
            Doing::Counting { number, version } => {
                if self.tree.multi(vec![Op::Set("/counter".into(), number + 1, Some(version))]).is_some() {
                    self.counted += 1;
                } else {
                    self.reached.insert("another counted first");
                }
                Doing::Nothing
            }
            Doing::Wanting { own } => self.want(own, session),
            Doing::Permitted { own } => {
                self.tree.multi(vec![Op::Delete(own, None)]);
                Doing::Nothing
            }
            Doing::Working { entry, version } => self.finish(entry, version),
        };
    }

    fn begin(&mut self, session: u64) -> Doing {
        match self.draw(6) {
            choice @ 0..=1 => {
                let role = if choice == 0 { Role::Exclusive } else { Role::Shared };
                let marker = if choice == 0 { "x-__WRIT__" } else { "x-__READ__" };
                let create = Op::CreateNumbered("/locks".into(), marker.into(), Some(session));
                let own = self.tree.multi(vec![create]).expect("a new name").remove(0);
                let token = self.tree.nodes[&own].czxid;
                Doing::Queueing { own, token, role }
            }
            2 => {
                let counter = &self.tree.nodes["/counter"];
                Doing::Counting { number: counter.data, version: counter.version }
            }
            3 => {
                let create = Op::CreateNumbered("/sem-locks".into(), "x-lock-".into(), Some(session));
                Doing::Wanting { own: self.tree.multi(vec![create]).expect("a new name").remove(0) }
            }
            4 => {
                let put = Op::CreateNumbered("/entries".into(), "entry-100-".into(), None);
                self.put.extend(self.tree.multi(vec![put]).expect("a new name"));
                Doing::Nothing
            }
            _ => self.claim(session),
        }
    }

    /// Lists the queue, and does as `place` says.
    fn look(&mut self, own: String, token: u64, role: Role) -> Doing {
        let names = self.tree.children("/locks");
        let queue = sequence::queue(Family::ReadWrite, names.iter().map(String::as_str), &BTreeMap::new());
        match sequence::place(&queue, own.trim_start_matches("/locks/")) {
            Place::First => Doing::Holding { own, token, role, read: None },
            Place::Behind { predecessor, .. } => {
                assert!(self.tree.nodes.contains_key(&format!("/locks/{predecessor}")), "waits for what is there");
                Doing::Queueing { own, token, role }
            }
            Place::Gone => Doing::Nothing,
        }
    }

    fn guarded(own: &str, number: u64) -> Vec<Op> {
        vec![Op::Check(own.to_owned(), None), Op::Set("/state".into(), number + 1, None)]
    }

    /// Reads, then writes guarded, then releases (a reader reads twice, guarded).
    fn work(&mut self, own: String, token: u64, role: Role, read: Option<u64>) -> Doing {
        let state = self.tree.nodes["/state"].data;
        let Some(number) = read else { return Doing::Holding { own, token, role, read: Some(state) } };
        match role {
            Role::Exclusive => {
                if self.tree.multi(World::guarded(&own, number)).is_some() {
                    self.log.push((number + 1, token));
                }
            }
            Role::Shared => {
                if self.tree.multi(vec![Op::Check(own.clone(), None)]).is_some() {
                    assert_eq!(state, number, "somebody wrote while a reader held");
                }
            }
        }
        self.tree.multi(vec![Op::Delete(own, None)]);
        Doing::Nothing
    }

    /// What one whose session is over does with another session's help: nothing of it may pass.
    fn stale_write(&mut self, doing: &Doing) {
        match doing {
            Doing::Holding { own, role: Role::Exclusive, read: Some(number), .. } => {
                assert!(self.tree.multi(World::guarded(own, *number)).is_none(), "a stale write passed");
                self.reached.insert("a stale write was refused");
            }
            Doing::Working { entry, version } => {
                let before = self.done.len();
                self.finish(entry.clone(), *version);
                assert_eq!(self.done.len(), before, "a stale consumer finished an item");
                self.reached.insert("a stale consumer was refused");
            }
            _ => {}
        }
    }

    fn want(&mut self, own: String, session: u64) -> Doing {
        let names = self.tree.children("/sem-locks");
        let queue = sequence::queue(Family::Locks, names.iter().map(String::as_str), &BTreeMap::new());
        match sequence::place(&queue, own.trim_start_matches("/sem-locks/")) {
            Place::Gone => return Doing::Nothing,
            Place::Behind { .. } => return Doing::Wanting { own },
            Place::First => {}
        }
        match decide(self.tree.children("/leases").len(), PERMITS, 1) {
            Decision::Take => {}
            Decision::Wait => return Doing::Wanting { own },
            Decision::TooMany => unreachable!("one of two"),
        }
        let take = vec![
            Op::Check(own.clone(), None),
            Op::CreateNumbered("/leases".into(), "x-lease-".into(), Some(session)),
            Op::Delete(own, None),
        ];
        match self.tree.multi(take) {
            Some(mut created) => Doing::Permitted { own: created.remove(0) },
            None => Doing::Nothing,
        }
    }

    fn claim(&mut self, session: u64) -> Doing {
        let (names, taken) = (self.tree.children("/entries"), self.tree.children("/taken"));
        let list = entries(names.iter().map(String::as_str));
        let Some(entry) = list.into_iter().find(|entry| !taken.contains(&entry.name)) else { return Doing::Nothing };
        let path = format!("/entries/{}", entry.name);
        let version = self.tree.nodes[&path].version;
        let claim =
            vec![Op::Set(path.clone(), 0, Some(version)), Op::Create(format!("/taken/{}", entry.name), Some(session))];
        self.tree.multi(claim).expect("nobody was between");
        if version > 0 {
            self.reached.insert("an item was begun again");
        }
        Doing::Working { entry: entry.name, version: version + 1 }
    }

    fn finish(&mut self, entry: String, version: i32) -> Doing {
        let path = format!("/entries/{entry}");
        let finish = vec![Op::Delete(format!("/taken/{entry}"), None), Op::Delete(path.clone(), Some(version))];
        if self.tree.multi(finish).is_some() {
            assert!(self.done.insert(path), "{entry} was done twice");
        }
        Doing::Nothing
    }

    /// What must be so after every step.
    fn check(&self) {
        let names = self.tree.children("/locks");
        let queue = sequence::queue(Family::ReadWrite, names.iter().map(String::as_str), &BTreeMap::new());
        let first = queue.iter().filter(|one| sequence::place(&queue, &one.name) == Place::First);
        let holders: Vec<Role> = first.map(|one| one.role).collect();
        assert!(
            holders.len() <= 1 || holders.iter().all(|role| *role == Role::Shared),
            "{holders:?} hold at once: {names:?}"
        );
        assert!(queue.is_empty() || !holders.is_empty(), "nobody holds: {names:?}");
        let out = self.tree.children("/leases").len();
        assert!(out <= PERMITS as usize, "{out} permits are out");
        assert_eq!(self.tree.nodes["/counter"].data, self.counted, "counted twice, or not at all");
        let left: BTreeSet<String> =
            self.tree.children("/entries").iter().map(|name| format!("/entries/{name}")).collect();
        assert!(self.done.is_disjoint(&left));
        assert_eq!(left.len() + self.done.len(), self.put.len(), "an item was lost");
    }

    fn check_log(&self) {
        let numbers: Vec<u64> = self.log.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
        assert!(self.log.is_sorted_by_key(|(_, token)| *token), "tokens went back: {:?}", self.log);
    }
}

#[test]
fn whoever_sleeps_however_long_no_recipe_breaks_its_promise() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let one = number("SEED");
    let seeds = one.map_or(1..=number("SEEDS").unwrap_or(SEEDS), |seed| seed..=seed);
    let (mut reached, mut logged) = (BTreeSet::new(), 0);
    for seed in seeds {
        let ran = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..STEPS {
                world.step();
            }
            world.check_log();
            (world.reached, world.log.len())
        });
        let (here, steps) = ran.unwrap_or_else(|_| panic!("SEED={seed}"));
        reached.extend(here);
        logged += steps;
    }
    if one.is_some() {
        return;
    }
    // A run in which nothing happens proves nothing.
    let all = [
        "a session ended under its owner",
        "a stale consumer was refused",
        "a stale write was refused",
        "an item was begun again",
        "another counted first",
    ];
    assert_eq!(reached.into_iter().collect::<Vec<_>>(), all);
    assert!(logged > 1_000, "only {logged} steps were logged");
}
