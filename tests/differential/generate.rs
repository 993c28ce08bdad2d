//! Programs from seeds. What is drawn does not depend on answers, so a program is the same on both sides, and any part
//! of it is a program too.

use crate::bytes::Out;
use crate::known::Known;
use crate::peers::{SHORT_MS, Settings};
use crate::program::{Hello, Password, Request, Since, Step, Whose, op};
use crate::words::WORDS;

/// Connections of a program.
pub const SLOTS: usize = 5;

/// Paths that are drawn again and again for a while.
const RECENT: usize = 5;

/// A stream of numbers that means the same for ever (SplitMix64).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x9e37_79b9_7f4a_7c15)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    /// The index of a weight.
    fn weighted<T>(&mut self, list: &[(usize, T)]) -> usize {
        let mut left = self.below(list.iter().map(|(weight, _)| weight).sum());
        list.iter()
            .position(|(weight, _)| left.checked_sub(*weight).inspect(|rest| left = *rest).is_none())
            .expect("below the sum")
    }
}

/// A program with about so many requests, for servers with these settings.
pub fn program(seed: u64, operations: usize, known: &Known, servers: usize, settings: Settings) -> Vec<Step> {
    let quota = settings.enforces_quota;
    let mut generator = Generator {
        rng: Rng::new(seed),
        recent: Vec::new(),
        known,
        state: [State::Fresh; SLOTS],
        servers,
        quota,
        settings,
        alone: 0,
        slot: 0,
    };
    let mut steps = Vec::new();
    let mut requests = 0;
    for slot in 0..SLOTS {
        steps.push(generator.open(slot));
    }
    // Something to begin with: most of a random tree hangs in the air at first.
    for path in ["/a", "/b", "/c", "/a/x", "/a/y", "/b/z", "/c/x", "/a/x/y"] {
        if generator.rng.percent(80) {
            steps.push(generator.plain(path));
        }
    }
    if generator.rng.percent(70) {
        let requests = generator.hard_quota("/a");
        steps.push(Step::Ask { slot: 0, requests });
    }
    while requests < operations {
        let step = generator.step();
        requests += match &step {
            Step::Ask { requests, .. } => requests.len(),
            _ => 1,
        };
        steps.push(step);
    }
    if !quota {
        let at = steps.len() / 2 + generator.rng.below(steps.len() / 2);
        let large = generator.large();
        steps.insert(at, large);
    }
    steps
}

/// What the generator believes of a slot.
#[derive(Clone, Copy, PartialEq)]
enum State {
    /// No session, or a closed one.
    Fresh,
    Connected,
    /// A session without a connection.
    Lost,
}

struct Generator<'a> {
    rng: Rng,
    /// Paths that were drawn lately: requests about the same znode are what finds something.
    recent: Vec<String>,
    known: &'a Known,
    state: [State; SLOTS],
    servers: usize,
    /// Quotas are enforced.
    quota: bool,
    settings: Settings,
    /// Znodes made so far that no other request names.
    alone: usize,
    /// Whose step is being made.
    slot: usize,
}

/// Paths that are not what they should be, or special. `~` stands for a drawn znode.
const ODD: [&str; 47] = [
    "",
    "/",
    "a",
    "//",
    "/.",
    "/..",
    "/./x",
    "/../x",
    "~/",
    "~//",
    "~//x",
    "~/x/",
    "~/.",
    "~/..",
    "~/.x",
    "~/...",
    "~/a\0b",
    "~\0",
    "~/\u{1}",
    "~/\u{1f}",
    "~/ ",
    "~/\u{7f}",
    "~/\u{9f}",
    "~/\u{a0}",
    "~/\u{e000}",
    "~/\u{f8ff}",
    "~/\u{f900}",
    "~/\u{ffef}",
    "~/\u{fff0}",
    "~/\u{fffd}",
    "~/\u{1f600}",
    "~/nope/x",
    "~/nope//x",
    "/nope/\0",
    "x/y",
    "zookeeper",
    "\0",
    "/zookeeper",
    "/zookeeper/config",
    "/zookeeper/quota",
    "/zookeeper/config/x",
    "/zookeeper/x",
    "/nope",
    "/zookeeper/",
    "~x",
    "~/d\u{e9}j\u{e0}",
    "~/\u{4e2d}\u{6587}",
];

/// What a create may be asked to store, and who may then do what.
type Line = (i32, Option<&'static str>, Option<&'static str>);

const BOB: &str = "bob:fyVmFCwVbTJYrznoSu1koqYEYF0=";

/// Lists that are valid, for connections with an identity.
const LISTS: [&[Line]; 14] = [
    &[(1, Some("world"), Some("anyone"))],
    &[(31, Some("auth"), Some(""))],
    &[(31, Some("auth"), None), (1, Some("world"), Some("anyone"))],
    &[(31, Some("digest"), Some(BOB))],
    &[(31, Some("digest"), Some(BOB)), (5, Some("world"), Some("anyone"))],
    &[(31, Some("ip"), Some("127.0.0.1"))],
    &[(31, Some("ip"), Some("127.0.0.0/8")), (2, Some("world"), Some("anyone"))],
    &[(31, Some("ip"), Some("10.0.0.0/8")), (16, Some("world"), Some("anyone"))],
    &[(0, Some("world"), Some("anyone"))],
    &[(255, Some("world"), Some("anyone"))],
    &[(-1, Some("world"), Some("anyone"))],
    &[(6, Some("world"), Some("anyone")), (6, Some("world"), Some("anyone")), (1, Some("world"), Some("anyone"))],
    &[(17, Some("world"), Some("anyone")), (31, Some("sasl"), Some("bob@EXAMPLE"))],
    &[(12, Some("world"), Some("anyone")), (31, Some("digest"), Some("x:y")), (1, Some("auth"), Some("ignored"))],
];

/// Lists that are not valid, or perhaps.
const BAD_LISTS: [&[Line]; 18] = [
    &[],
    &[(31, Some("world"), Some("bob"))],
    &[(31, Some("nope"), Some("x"))],
    &[(31, Some(""), Some(""))],
    &[(31, Some("digest"), Some("bob"))],
    &[(31, Some("digest"), Some("a:b:c"))],
    &[(31, Some("digest"), Some("a:b:"))],
    &[(31, Some("digest"), Some(":b"))],
    &[(1, Some("ip"), Some("1.2.3"))],
    &[(1, Some("ip"), Some("1.2.3.4/33"))],
    &[(1, Some("ip"), Some("1.2.3.4/-1"))],
    &[(1, Some("ip"), Some("1.2.3.4/8/9"))],
    &[(1, Some("ip"), Some(""))],
    &[(1, Some("ip"), Some("256.1.1.1"))],
    &[(31, Some("super"), Some(""))],
    &[(31, Some("sasl"), Some("bob"))],
    &[(1, Some("world"), Some("anyone")), (31, Some("nope"), Some("x"))],
    &[(1, Some("world"), Some("anyone")), (31, Some("auth"), Some(""))],
];

const XIDS: [i32; 6] = [0, -8, -9, i32::MAX, i32::MIN, -100];

impl Generator<'_> {
    fn step(&mut self) -> Step {
        let slot = self.rng.below(SLOTS);
        self.slot = slot;
        match self.state[slot] {
            State::Fresh if self.settings.expires && self.rng.percent(25) => return self.expire(slot),
            State::Fresh => return self.open(slot),
            State::Lost => return self.again(slot),
            State::Connected => {}
        }
        let (words, reaps) =
            (if self.settings.local.is_some() { 0 } else { 14 }, if self.settings.reaps { 6 } else { 0 });
        let kinds = [
            (780, 0),
            (120, 1),
            (18, 2),
            (18, 3),
            (14, 4),
            (10, 5),
            (10, 6),
            (16, 7),
            (8, 8),
            (6, 9),
            (words, 10),
            (reaps, 11),
        ];
        match kinds[self.rng.weighted(&kinds)].1 {
            0 => {
                let request = self.request();
                Step::Ask { slot, requests: vec![request] }
            }
            1 => {
                let mut requests: Vec<Request> = (0..2 + self.rng.below(6)).map(|_| self.request()).collect();
                // See `old-acl`.
                requests.retain(|request| request.opcode != op::SET_ACL);
                if self.quota {
                    // See `quota-late`.
                    let first = requests.iter().position(Request::is_write);
                    let mut at = 0..;
                    requests.retain(|request| at.next() == first || !request.is_write());
                }
                if self.rng.percent(8) {
                    requests.push(self.close());
                    self.state[slot] = State::Fresh;
                }
                Step::Ask { slot, requests }
            }
            2 => {
                let (request, ends) = self.auth();
                if ends {
                    self.state[slot] = State::Lost;
                }
                Step::Ask { slot, requests: vec![request] }
            }
            3 => self.again(slot),
            4 => {
                self.state[slot] = State::Lost;
                Step::Drop { slot }
            }
            5 => {
                self.state[slot] = State::Fresh;
                Step::Ask { slot, requests: vec![self.close()] }
            }
            6 => {
                self.state[slot] = State::Lost;
                let unknown = [0, 10, 13, 23, 50, 99, 108, -1, -2, 1000, i32::MIN];
                let mut opcode = *self.rng.of(&unknown);
                if opcode == op::CHECK && self.known.has("check-alone") {
                    opcode = 23;
                }
                let path = self.path();
                let request = self.made(opcode, Out::default().string(&path).int(-1), format!("{path:?}"));
                Step::Ask { slot, requests: vec![request] }
            }
            7 => Step::Probe { hello: self.odd_hello(), server: self.rng.below(self.servers) },
            8 => {
                self.state[slot] = State::Lost;
                let length = *self.rng.of(&[-1, 0, 1, 7, 0x10_0000, i32::MAX, i32::MIN]);
                let body = vec![0; usize::try_from(length).unwrap_or(0).min(7)];
                Step::Raw { slot, bytes: Out::default().int(length).raw(&body).0 }
            }
            10 => Step::Word { word: *self.rng.of(&WORDS) },
            11 => self.reap(slot),
            _ => {
                let (request, ends) = self.sasl();
                if ends {
                    self.state[slot] = State::Lost;
                }
                Step::Ask { slot, requests: vec![request] }
            }
        }
    }

    fn open(&mut self, slot: usize) -> Step {
        self.state[slot] = State::Connected;
        Step::Open { slot, hello: self.hello(Whose::New) }
    }

    /// A session that ends by itself, with an ephemeral of its own and others as they come.
    fn expire(&mut self, slot: usize) -> Step {
        let hello = Hello { timeout_ms: SHORT_MS, ..Hello::plain() };
        let ephemeral = self.own_path();
        let mut requests = vec![self.open_znode(op::CREATE, &ephemeral, 1)];
        for _ in 0..self.rng.below(3) {
            let path = self.znode();
            let flags = *self.rng.of(&[1, 3]);
            requests.push(self.open_znode(op::CREATE2, &path, flags));
        }
        // Its slot is free again: what is tried with its id afterwards is refused.
        Step::Expire { slot, hello, requests, ephemeral }
    }

    /// A container that had a child, or a znode whose time is over at once.
    fn reap(&mut self, slot: usize) -> Step {
        let path = self.own_path();
        let (child, grandchild) = (format!("{path}/c"), format!("{path}/c/x"));
        let delete = |g: &mut Self, path: &str| {
            g.made(op::DELETE, Out::default().string(path).int(-1), format!("{path:?} at last"))
        };
        let ttl_body = |path: &str| {
            let out = Out::default().string(path).string("short").int(1).int(31).string("world").string("anyone");
            out.int(5).long(1)
        };
        let kinds = if self.settings.extended_types { 4 } else { 2 };
        let requests = match self.rng.below(kinds) {
            0 => vec![
                self.open_znode(op::CREATE_CONTAINER, &path, 4),
                self.open_znode(op::CREATE, &child, 0),
                delete(self, &child),
            ],
            // One after the other.
            1 => vec![
                self.open_znode(op::CREATE_CONTAINER, &path, 4),
                self.open_znode(op::CREATE_CONTAINER, &child, 4),
                self.open_znode(op::CREATE2, &grandchild, 0),
                delete(self, &grandchild),
            ],
            2 => vec![self.made(op::CREATE_TTL, ttl_body(&path), format!("{path:?} ttl=1"))],
            // A child keeps it, from the beginning.
            _ => {
                let multi = Out::default().int(op::CREATE_TTL).byte(0).int(-1).raw(&ttl_body(&path).0);
                let multi = multi.int(op::CREATE).byte(0).int(-1).string(&child).string("").int(1).int(31);
                let multi = multi.string("world").string("anyone").int(0).int(-1).byte(1).int(-1);
                let set = Out::default().string(&path).string("touched").int(0);
                vec![
                    self.made(op::MULTI, multi, format!("[{path:?} ttl=1, {child:?}]")),
                    self.made(op::SET_DATA, set, format!("{path:?}")),
                    delete(self, &child),
                ]
            }
        };
        Step::Reap { slot, requests, path }
    }

    /// A path that no other request names.
    fn own_path(&mut self) -> String {
        self.alone += 1;
        format!("/own-{}", self.alone)
    }

    fn open_znode(&mut self, opcode: i32, path: &str, flags: i32) -> Request {
        let out = Out::default().string(path).string("").int(1).int(31).string("world").string("anyone").int(flags);
        self.made(opcode, out, format!("{path:?} openly, flags={flags}"))
    }

    /// An open, persistent znode without ado.
    fn plain(&mut self, path: &str) -> Step {
        let body = Out::default().string(path).string("").int(1).int(31).string("world").string("anyone").int(0);
        let request = self.made(op::CREATE2, body, format!("{path:?} plainly"));
        Step::Ask { slot: self.rng.below(SLOTS), requests: vec![request] }
    }

    fn again(&mut self, slot: usize) -> Step {
        self.state[slot] = State::Connected;
        Step::Again { slot, hello: self.hello(Whose::Of(slot)), server: self.rng.below(self.servers) }
    }

    fn made(&mut self, opcode: i32, body: Out, text: String) -> Request {
        let xid = self.rng.percent(4).then(|| *self.rng.of(&XIDS));
        Request { opcode, xid, body: body.0, since: None, text: format!("{} {text}", op::name(opcode)) }
    }

    // Connections.

    fn hello(&mut self, session: Whose) -> Hello {
        let timeouts: &[i32] = match self.settings.expires {
            true => &[90_000, 60_001, 1_000_000_000, i32::MAX],
            false => &[90_000, 0, -5, 60_001, 1_000_000_000, i32::MIN],
        };
        let timeout_ms = *self.rng.of(timeouts);
        let read_only = *self.rng.of(&[Some(0), Some(1), None]);
        let seen = if self.rng.percent(50) { Since::Zero } else { Since::Newest(self.rng.below(3)) };
        Hello { session, timeout_ms, read_only, seen, ..Hello::plain() }
    }

    fn odd_hello(&mut self) -> Hello {
        let session = match self.rng.below(5) {
            0 | 1 => Whose::New,
            2 => Whose::Nobodys,
            _ => Whose::Of(self.rng.below(SLOTS)),
        };
        let password = *self.rng.of(&[
            Password::Right,
            Password::Right,
            Password::Wrong,
            Password::Short,
            Password::Empty,
            Password::Null,
        ]);
        let seen = *self.rng.of(&[Since::Zero, Since::Zero, Since::Negative, Since::Newest(0), Since::Future]);
        let read_only = *self.rng.of(&[Some(0), Some(1), Some(2), None]);
        let trailing = if read_only.is_some() && self.rng.percent(20) { b"xyz".to_vec() } else { Vec::new() };
        let protocol = *self.rng.of(&[0, 0, 7, -1]);
        Hello { protocol, seen, session, password, read_only, trailing, ..self.hello(session) }
    }

    fn close(&mut self) -> Request {
        let junk: &[u8] = if self.rng.percent(10) { b"trailing" } else { b"" };
        self.made(op::CLOSE, Out::default().raw(junk), String::new())
    }

    /// An auth request, and whether it ends the connection.
    fn auth(&mut self) -> (Request, bool) {
        type Proof = (Option<&'static str>, Option<&'static [u8]>, bool);
        let proofs: [(usize, Proof); 16] = [
            (30, (Some("digest"), Some(b"bob:secret"), false)),
            (16, (Some("digest"), Some(b"super:adm"), false)),
            (10, (Some("digest"), Some(b"al:x"), false)),
            (3, (Some("digest"), Some(b"justuser"), false)),
            (2, (Some("digest"), Some(b""), false)),
            (2, (Some("digest"), Some(b"a:b:c"), false)),
            (4, (Some("ip"), Some(b"x"), false)),
            (2, (Some("ip"), None, false)),
            (2, (Some("digest"), None, true)),
            (2, (Some("world"), Some(b"x"), true)),
            (2, (Some("auth"), Some(b""), true)),
            (3, (Some("nope"), Some(b"x"), true)),
            (2, (Some(""), Some(b""), true)),
            (2, (Some("sasl"), Some(b"x"), true)),
            (2, (Some("super"), Some(b"super:adm"), true)),
            (2, (Some("x509"), Some(b"x"), true)),
        ];
        let (scheme, proof, ends) = proofs[self.rng.weighted(&proofs)].1;
        let body = Out::default().int(0).buffer(scheme.map(str::as_bytes)).buffer(proof);
        let (body, cut) =
            if self.rng.percent(4) { (Out(body.0[..self.rng.below(8)].to_vec()), true) } else { (body, false) };
        let text = format!("{scheme:?} {:?}{}", proof.map(String::from_utf8_lossy), if cut { " cut" } else { "" });
        let mut request = self.made(op::AUTH, body, text);
        request.xid = Some(-4);
        (request, ends || cut)
    }

    fn sasl(&mut self) -> (Request, bool) {
        let (token, ends): (Out, bool) = match self.rng.below(4) {
            0 => (Out::default().string("token"), false),
            1 => (Out::default().string(""), false),
            2 => (Out::default().buffer(None), true),
            _ => (Out::default().int(99), true),
        };
        let text = crate::bytes::hex(&token.0);
        (self.made(op::SASL, token, text), ends)
    }

    // Requests.

    fn request(&mut self) -> Request {
        type Kind<'a> = (usize, fn(&mut Generator<'a>) -> Request);
        let kinds: [Kind<'_>; 25] = [
            (170, |g| g.create()),
            (70, |g| g.delete()),
            (70, |g| g.set_data()),
            (40, |g| g.set_acl()),
            (90, |g| g.read(op::EXISTS)),
            (70, |g| g.read(op::GET_DATA)),
            (50, |g| g.read(op::GET_CHILDREN)),
            (60, |g| g.read(op::GET_CHILDREN2)),
            (25, |g| g.named(op::GET_ACL)),
            (12, |g| g.named(op::SYNC)),
            (12, |g| g.named(op::COUNT)),
            (14, |g| g.ephemerals()),
            (12, |g| g.made(op::PING, Out::default(), String::new())),
            (10, |g| g.made(op::WHO_AM_I, Out::default(), String::new())),
            (70, |g| g.multi()),
            (25, |g| g.multi_read()),
            (45, |g| g.add_watch()),
            (20, |g| g.watches(op::CHECK_WATCHES)),
            (20, |g| g.watches(op::REMOVE_WATCHES)),
            (16, |g| g.set_watches(op::SET_WATCHES)),
            (16, |g| g.set_watches(op::SET_WATCHES2)),
            (4, |g| g.reconfig()),
            (30, |g| g.malformed()),
            (6, |g| g.with_junk()),
            (35, |g| g.quota()),
        ];
        kinds[self.rng.weighted(&kinds)].1(self)
    }

    /// A znode that may well exist.
    fn znode(&mut self) -> String {
        if !self.recent.is_empty() && self.rng.percent(45) {
            return self.rng.of(&self.recent).clone();
        }
        let path = self.fresh();
        if self.recent.len() == RECENT {
            self.recent.remove(0);
        }
        self.recent.push(path.clone());
        path
    }

    fn fresh(&mut self) -> String {
        let mut path = format!("/{}", self.rng.of(&["a", "b", "c"]));
        for _ in 0..*self.rng.of(&[0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 3]) {
            path += "/";
            if self.rng.percent(12) {
                path += &format!("{}{:010}", self.rng.of(&["s-", ""]), self.rng.below(12));
            } else {
                path += *self.rng.of(&["x", "x", "x", "y", "y", "z", "\u{e9}"]);
            }
        }
        path
    }

    fn path(&mut self) -> String {
        if self.rng.percent(7) { self.odd_path() } else { self.znode() }
    }

    fn odd_path(&mut self) -> String {
        let mut odd = *self.rng.of(&ODD);
        if odd == "/zookeeper/config" && (self.servers > 1 || self.settings.local.is_some()) {
            // Its text is that of an ensemble.
            odd = "/zookeeper/quota";
        }
        let znode = self.znode();
        odd.replace('~', &znode)
    }

    /// A path in a request; null only if the request is alone and of a kind that always refuses it (see `null-path`).
    fn put_path(&mut self, opcode: i32, path: &str) -> (Out, String) {
        let refused = matches!(
            opcode,
            op::CREATE | op::DELETE | op::EXISTS | op::GET_DATA | op::GET_CHILDREN | op::GET_CHILDREN2 | op::GET_ACL
        );
        let spared = self.spares_writes() && matches!(opcode, op::CREATE | op::DELETE);
        match refused && !spared && self.rng.below(150) == 0 {
            true => (Out::default().buffer(None), "(null)".into()),
            false => (Out::default().string(path), format!("{path:?}")),
        }
    }

    fn version(&mut self) -> i32 {
        match self.rng.below(10) {
            0..=5 => -1,
            6..=8 => self.rng.below(4) as i32,
            _ => *self.rng.of(&[-2, i32::MAX, i32::MIN, 100]),
        }
    }

    fn data(&mut self) -> (Option<Vec<u8>>, String) {
        let length = match self.rng.below(20) {
            0 | 1 => return (None, "null".into()),
            2 | 3 => 0,
            4 => 2_000,
            5 if self.rng.percent(30) => 70_000,
            _ => self.rng.below(20),
        };
        let first = self.rng.below(26) as u8;
        let data: Vec<u8> = (0..length).map(|i| b'a' + (first + (i % 7) as u8) % 26).collect();
        let text =
            if length < 30 { format!("{:?}", String::from_utf8_lossy(&data)) } else { format!("{length} bytes") };
        (Some(data), text)
    }

    fn acl(&mut self, out: Out, in_multi: bool) -> (Out, String) {
        let open: &[Line] = &[(31, Some("world"), Some("anyone"))];
        let mut list = match self.rng.below(100) {
            0..=74 => open.to_vec(),
            75..=91 => self.rng.of(&LISTS).to_vec(),
            92 if !(in_multi && (self.known.has("multi-flags") || self.spares_writes())) => {
                return (out.int(-1), "null acl".into());
            }
            _ => self.rng.of(&BAD_LISTS).to_vec(),
        };
        if self.known.has("read-permission") && !list.is_empty() {
            list.push((1, Some("world"), Some("anyone")));
        }
        let mut out = out.int(list.len() as i32);
        for (perms, scheme, id) in &list {
            out = out.int(*perms).buffer(scheme.map(str::as_bytes)).buffer(id.map(str::as_bytes));
        }
        let text = if list == open { "open".into() } else { format!("{list:?}") };
        (out, text)
    }

    fn create(&mut self) -> Request {
        let opcodes =
            [op::CREATE, op::CREATE, op::CREATE, op::CREATE2, op::CREATE2, op::CREATE_CONTAINER, op::CREATE_TTL];
        let mut opcode = *self.rng.of(&opcodes);
        if opcode == op::CREATE_CONTAINER && self.settings.reaps {
            // They come and go in steps of their own.
            opcode = op::CREATE2;
        }
        let (out, text) = self.create_body(opcode, false);
        self.made(opcode, out, text)
    }

    fn create_body(&mut self, opcode: i32, in_multi: bool) -> (Out, String) {
        let flags = match opcode {
            op::CREATE_CONTAINER => 4,
            // See `flags-agree`.
            op::CREATE_TTL if in_multi || self.rng.percent(85) => *self.rng.of(&[5, 6]),
            _ if self.rng.percent(4) && !(in_multi && (self.known.has("multi-flags") || self.spares_writes())) => {
                *self.rng.of(&[5, 6, 7, -1, 100, i32::MAX])
            }
            _ => *self.rng.of(&[0, 0, 0, 0, 1, 2, 3, if self.settings.reaps { 0 } else { 4 }]),
        };
        let path = match flags {
            2 | 3 | 6 if self.rng.percent(90) => format!("{}/{}", self.znode(), self.rng.of(&["s-", "s-", ""])),
            _ => self.path(),
        };
        let (data, data_text) = self.data();
        // Which of two faults is found first, if the path is null, is nobody's business.
        let plain = opcode == op::CREATE && (0..=4).contains(&flags) && !in_multi;
        let (out, path_text) = self.put_path(if plain { opcode } else { op::MULTI }, &path);
        let (mut out, acl) = self.acl(out.buffer(data.as_deref()), in_multi);
        out = out.int(flags);
        let mut text = format!("{path_text} {data_text} {acl} flags={flags}");
        if opcode == op::CREATE_TTL {
            let ttl =
                *self.rng.of(&[1_000_000_000, 1_000_000_000, 86_400_000, (1 << 40) - 1, 1 << 40, 0, -1, -7, i64::MAX]);
            // See `kills-create-ttl`.
            let ttl = if !matches!(flags, 5 | 6) && ttl < 0 { 5 } else { ttl };
            out = out.long(ttl);
            text += &format!(" ttl={ttl}");
        }
        (out, text)
    }

    fn delete(&mut self) -> Request {
        let (out, text) = self.path_and_version(op::DELETE);
        self.made(op::DELETE, out, text)
    }

    fn path_and_version(&mut self, opcode: i32) -> (Out, String) {
        let (path, version) = (self.path(), self.version());
        let (out, path) = self.put_path(opcode, &path);
        (out.int(version), format!("{path} v{version}"))
    }

    fn set_data(&mut self) -> Request {
        let (out, text) = self.set_data_body();
        self.made(op::SET_DATA, out, text)
    }

    fn set_data_body(&mut self) -> (Out, String) {
        let (path, version, (data, data_text)) = (self.path(), self.version(), self.data());
        let (out, path) = self.put_path(op::SET_DATA, &path);
        (out.buffer(data.as_deref()).int(version), format!("{path} {data_text} v{version}"))
    }

    fn set_acl(&mut self) -> Request {
        let (path, version) = (self.path(), self.version());
        // The root stays open, or nothing could be done any more.
        let path = if path == "/" { self.znode() } else { path };
        let (out, path) = self.put_path(op::SET_ACL, &path);
        let (out, acl) = self.acl(out, false);
        self.made(op::SET_ACL, out.int(version), format!("{path} {acl} v{version}"))
    }

    fn read(&mut self, opcode: i32) -> Request {
        let path = self.path();
        // See `empty-path`.
        let may_watch = !path.is_empty() && self.watches_by("one-shot");
        let watch = if may_watch { *self.rng.of(&[0, 0, 1, 1, 7]) } else { 0 };
        let (out, path) = self.put_path(opcode, &path);
        self.made(opcode, out.byte(watch), format!("{path} watch={watch}"))
    }

    fn named(&mut self, opcode: i32) -> Request {
        let path = self.path();
        // See `empty-path`.
        let path = if opcode == op::COUNT && path.is_empty() { "/".into() } else { path };
        let (out, path) = self.put_path(opcode, &path);
        self.made(opcode, out, path)
    }

    fn ephemerals(&mut self) -> Request {
        let prefix = match self.rng.below(8) {
            0 => return self.made(op::GET_EPHEMERALS, Out::default().buffer(None), "(null)".into()),
            1 => String::new(),
            2 | 3 => "/".into(),
            4 => self.odd_path(),
            _ => {
                let path = self.znode();
                path[..1 + self.rng.below(2)].into()
            }
        };
        self.made(op::GET_EPHEMERALS, Out::default().string(&prefix), format!("{prefix:?}"))
    }

    fn add_watch(&mut self) -> Request {
        let path = self.path();
        let (out, path) = self.put_path(op::ADD_WATCH, &path);
        let mut mode = *self.rng.of(&[0, 0, 0, 1, 1, 1, 0, 1, 2, -1]);
        if (mode == 0 && !self.watches_by("persistent")) || (mode == 1 && !self.watches_by("recursive")) {
            mode = 2;
        }
        self.made(op::ADD_WATCH, out.int(mode), format!("{path} mode={mode}"))
    }

    /// Whether this connection sets watches of a kind; see `watch-modes`.
    fn watches_by(&self, kind: &str) -> bool {
        !self.known.has("watch-modes")
            || kind == ["one-shot", "one-shot", "one-shot", "persistent", "recursive"][self.slot]
    }

    fn watches(&mut self, opcode: i32) -> Request {
        let path = self.path();
        let (out, path) = self.put_path(opcode, &path);
        let kind = match self.known.has("watch-types") {
            true if opcode == op::CHECK_WATCHES => *self.rng.of(&[6, -1, 0]),
            true => *self.rng.of(&[3, 3, 3, 6, -1, 0]),
            false => *self.rng.of(&[1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 6, 0, -1]),
        };
        self.made(opcode, out.int(kind), format!("{path} type={kind}"))
    }

    fn set_watches(&mut self, opcode: i32) -> Request {
        let mut out = Out::default().long(0);
        let mut texts = Vec::new();
        for list in 0..if opcode == op::SET_WATCHES { 3 } else { 5 } {
            // See `null-list`.
            if list == 0 && self.rng.below(20) == 0 {
                out = out.int(-1);
                texts.push("null".into());
                continue;
            }
            let kind = ["one-shot", "one-shot", "one-shot", "persistent", "recursive"][list];
            let count = if self.watches_by(kind) { *self.rng.of(&[0, 0, 1, 2, 4]) } else { 0 };
            let paths: Vec<String> = (0..count).map(|_| self.path()).collect();
            out = out.int(paths.len() as i32);
            for path in &paths {
                out = out.string(path);
            }
            texts.push(format!("{paths:?}"));
        }
        let newest = Since::Newest(self.rng.below(12));
        let since = *self.rng.of(&[newest, newest, newest, Since::Zero, Since::Future]);
        let mut request = self.made(opcode, out, texts.join(" "));
        request.since = Some(since);
        request
    }

    /// More replies in one write of requests than a server keeps for a client, with events of the connection's own
    /// watch between them.
    fn large(&mut self) -> Step {
        const LARGE: usize = 900_000;
        const READS: usize = 12;
        self.slot = 3;
        let path = *self.rng.of(&["/a", "/b", "/c"]);
        let mut requests = Vec::new();
        if self.watches_by("persistent") {
            requests.push(self.made(op::ADD_WATCH, Out::default().string(path).int(0), format!("{path:?} mode=0")));
        }
        for length in [LARGE, LARGE + 1, 0] {
            let data = vec![b'a' + self.rng.below(26) as u8; length];
            let body = Out::default().string(path).buffer(Some(&data)).int(-1);
            requests.push(self.made(op::SET_DATA, body, format!("{path:?} {length} bytes")));
            for _ in 0..READS {
                requests.push(self.made(op::GET_DATA, Out::default().string(path).byte(0), format!("{path:?}")));
            }
        }
        Step::Ask { slot: self.slot, requests }
    }

    /// A quota as ZooKeeper's shell makes it, with hard limits.
    fn hard_quota(&mut self, path: &str) -> Vec<Request> {
        let folder = format!("/zookeeper/quota{path}");
        let limits = "count=3,bytes=100=;byteHardLimit=200;countHardLimit=8";
        let nodes =
            [(String::new(), ""), ("/zookeeper_limits".into(), limits), ("/zookeeper_stats".into(), "count=0,bytes=0")];
        let create = |(name, text): (String, &str)| {
            let path = format!("{folder}{name}");
            let body = Out::default().string(&path).string(text).int(1).int(31).string("world").string("anyone").int(0);
            self.made(op::CREATE, body, format!("{path:?} {text:?}"))
        };
        nodes.map(create).into()
    }

    /// Something about the quota of a path. Its texts are always well formed, see `kills-quota`.
    fn quota(&mut self) -> Request {
        const TEXTS: [&str; 6] = [
            "count=5,bytes=-1",
            "count=-1,bytes=30",
            "count=3,bytes=100=;byteHardLimit=200;countHardLimit=8",
            "count=-1,bytes=-1=;byteHardLimit=-1;countHardLimit=6",
            "count=4,bytes=5=;byteHardLimit=60;countHardLimit=-1",
            "count=2,bytes=9",
        ];
        let folder = format!("/zookeeper/quota{}", self.rng.of(&["/a", "/a", "/a/x", "/b", "/c"]));
        let (limits, stats) = (format!("{folder}/zookeeper_limits"), format!("{folder}/zookeeper_stats"));
        let text = *self.rng.of(&TEXTS);
        let create = |path: &str, data: Option<&str>| {
            let out = Out::default().string(path).buffer(data.map(str::as_bytes));
            out.int(1).int(31).string("world").string("anyone").int(0)
        };
        match self.rng.below(12) {
            0..=2 => self.made(op::CREATE, create(&folder, None), format!("{folder:?} of quotas")),
            3 | 4 => self.made(op::CREATE, create(&limits, Some(text)), format!("{limits:?} {text:?}")),
            5 | 6 => self.made(op::CREATE2, create(&stats, Some("count=0,bytes=0")), format!("{stats:?}")),
            7 => self.made(
                op::SET_DATA,
                Out::default().string(&limits).string(text).int(-1),
                format!("{limits:?} {text:?}"),
            ),
            8 if self.rng.percent(40) => {
                let path = if self.rng.percent(50) { limits } else { stats };
                self.made(op::DELETE, Out::default().string(&path).int(-1), format!("{path:?}"))
            }
            _ => {
                let watch = u8::from(self.watches_by("one-shot") && self.rng.percent(50));
                self.made(op::GET_DATA, Out::default().string(&stats).byte(watch), format!("{stats:?} watch={watch}"))
            }
        }
    }

    fn reconfig(&mut self) -> Request {
        let joining = *self.rng.of(&[None, Some("server.9=127.0.0.1:1:2;3"), Some("")]);
        let out = Out::default().buffer(joining.map(str::as_bytes)).buffer(None).buffer(None).long(-1);
        self.made(op::RECONFIG, out, format!("{joining:?}"))
    }

    fn multi(&mut self) -> Request {
        let count = *self.rng.of(&[0, 1, 1, 2, 2, 3, 3, 4, 5]);
        let mut out = Out::default();
        let mut texts = Vec::new();
        if self.rng.percent(45) {
            // One that is likely to succeed: a story of one znode.
            let path = format!("{}/m{}", self.rng.of(&["/a", "/b", "/c", "/a/x"]), self.rng.below(3));
            let create2 = self.create2_inside();
            let create = |out: Out, opcode: i32, path: &str, flags: i32| {
                let out = out.int(opcode).byte(0).int(-1).string(path).string("").int(1).int(31);
                out.string("world").string("anyone").int(flags)
            };
            let set = |out: Out, path: &str| out.int(op::SET_DATA).byte(0).int(-1).string(path).string("new").int(-1);
            let sized = |out: Out, opcode: i32, path: &str, version: i32| {
                out.int(opcode).byte(0).int(-1).string(path).int(version)
            };
            let (seq, child) = (format!("{path}-"), format!("{path}/y"));
            let story = match self.settings.reaps {
                _ if self.quota => *self.rng.of(&[0, 3, 5]),
                true => *self.rng.of(&[0, 1, 2, 3, 5, 6]),
                false => self.rng.below(7),
            };
            out = match story {
                0 => create(out, op::CREATE, &path, 0),
                1 => {
                    sized(sized(set(create(out, create2, &path, 1), &path), op::CHECK, &path, 1), op::DELETE, &path, 1)
                }
                2 => create(create(out, op::CREATE, &seq, 2), create2, &seq, 3),
                3 => sized(set(out, &path), op::DELETE, &path, -1),
                4 => create(create(out, op::CREATE_CONTAINER, &path, 4), op::CREATE, &child, 0),
                5 => sized(sized(out, op::DELETE, &child, -1), op::DELETE, &path, -1),
                _ => sized(create(set(out, &path), op::CREATE, &format!("{path}/"), 2), op::CHECK, &path, -1),
            };
            let (out, end) = self.terminated(out);
            return self.made(op::MULTI, out, format!("[story {story} of {path}]{end}"));
        }
        let mut changed = false;
        for _ in 0..count {
            let opcodes = [
                op::CREATE,
                op::CREATE,
                op::CREATE2,
                op::CREATE_CONTAINER,
                op::CREATE_TTL,
                op::DELETE,
                op::DELETE,
                op::SET_DATA,
                op::SET_DATA,
                op::SET_DATA,
                op::CHECK,
                op::CHECK,
            ];
            let mut opcode = *self.rng.of(&opcodes);
            if opcode == op::CREATE_CONTAINER && self.settings.reaps {
                opcode = op::CREATE;
            }
            if opcode == op::CREATE2 {
                opcode = self.create2_inside();
            }
            if self.rng.below(80) == 0 && !self.spares_writes() {
                // Not allowed inside.
                opcode =
                    *self.rng.of(&[op::GET_DATA, op::EXISTS, op::SET_ACL, op::SYNC, op::MULTI, op::CLOSE, 99, 0, 23]);
            }
            if self.quota
                && changed
                && matches!(opcode, op::CREATE | op::CREATE2 | op::CREATE_CONTAINER | op::CREATE_TTL | op::SET_DATA)
            {
                // See `quota-late`.
                opcode = op::CHECK;
            }
            changed |= !matches!(opcode, op::CHECK);
            let (body, text) = match opcode {
                op::CREATE | op::CREATE2 | op::CREATE_CONTAINER | op::CREATE_TTL => self.create_body(opcode, true),
                op::SET_DATA => self.set_data_body(),
                _ => self.path_and_version(0),
            };
            // ZooKeeper reads nothing of the header but its type.
            let error = if self.rng.percent(95) { -1 } else { 77 };
            out = out.int(opcode).byte(0).int(error).raw(&body.0);
            texts.push(format!("{} {text}", op::name(opcode)));
        }
        let (out, end) = self.terminated(out);
        self.made(op::MULTI, out, format!("[{}]{end}", texts.join(", ")))
    }

    /// The opcode 15 of a multi; see `multi-create2`.
    fn create2_inside(&self) -> i32 {
        if self.known.has("multi-create2") { op::CREATE } else { op::CREATE2 }
    }

    fn multi_read(&mut self) -> Request {
        let mut out = Out::default();
        let mut texts = Vec::new();
        for _ in 0..*self.rng.of(&[0, 1, 2, 3, 4]) {
            let opcode = match self.rng.below(40) {
                0 => *self.rng.of(&[op::EXISTS, op::DELETE, op::GET_CHILDREN2, op::CHECK, op::GET_ACL, 99]),
                n if n % 2 == 0 => op::GET_DATA,
                _ => op::GET_CHILDREN,
            };
            let path = self.path();
            let body = match opcode {
                op::DELETE | op::CHECK => Out::default().string(&path).int(-1),
                _ => Out::default().string(&path).byte(self.rng.below(2) as u8),
            };
            out = out.int(opcode).byte(0).int(-1).raw(&body.0);
            texts.push(format!("{} {path:?}", op::name(opcode)));
        }
        let (out, end) = self.terminated(out);
        self.made(op::MULTI_READ, out, format!("[{}]{end}", texts.join(", ")))
    }

    /// Whether writes are never damaged; see `ensemble-damaged`.
    fn spares_writes(&self) -> bool {
        self.settings.local.is_some() && self.known.has("ensemble-damaged")
    }

    fn terminated(&mut self, out: Out) -> (Out, &'static str) {
        match self.rng.below(50) {
            0 if !self.spares_writes() => (out, " no terminator"),
            1 => (out.int(0).byte(1).int(0), " odd terminator"),
            2 => (out.int(-1).byte(1).int(-1).raw(b"junk"), " and junk"),
            _ => (out.int(-1).byte(1).int(-1), ""),
        }
    }

    /// A request that ends early, or says a length that is not so.
    fn malformed(&mut self) -> Request {
        let mut request = loop {
            let request = self.request();
            // A damaged quota kills (see `kills-quota`).
            let quota = request.text.contains("zookeeper_");
            let spared = (request.is_write() || request.opcode == op::RECONFIG) && self.spares_writes();
            let harmless = !quota
                && !spared
                && !matches!(request.opcode, op::PING | op::WHO_AM_I | op::AUTH | op::SASL | op::CLOSE);
            if harmless && !request.body.is_empty() && request.since.is_none() {
                break request;
            }
        };
        let body = &mut request.body;
        let how = if self.rng.percent(60) {
            body.truncate(self.rng.below(body.len()));
            format!("cut to {}", body.len())
        } else if body.len() >= 4 {
            let length = *self.rng.of(&[-2, i32::MIN, i32::MAX, 3_000_000, 1_000]);
            body[..4].copy_from_slice(&length.to_be_bytes());
            format!("first length {length}")
        } else {
            body.clear();
            "empty".into()
        };
        request.text = format!("{} ({how})", request.text);
        request
    }

    /// Bytes behind a request are ignored.
    fn with_junk(&mut self) -> Request {
        let mut request = self.request();
        request.body.extend(b"junk");
        request.text += " and junk";
        request
    }
}
