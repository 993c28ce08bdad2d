//! What is done to both servers: a list of steps that does not depend on what they answer.

use std::fmt;

/// One after the other; a step that fits no more (its connection is gone) is passed over on both sides.
#[derive(Clone, Debug)]
pub enum Step {
    /// A new session on this slot, which has no connection.
    Open { slot: usize, hello: Hello },
    /// The slot's session again, on another connection, to the server with this number; the old one may be open still.
    Again { slot: usize, hello: Hello, server: usize },
    /// A handshake that is only looked at; its connection ends with the step.
    Probe { hello: Hello, server: usize },
    /// The connection is dropped without a word.
    Drop { slot: usize },
    /// Requests in one write.
    Ask { slot: usize, requests: Vec<Request> },
    /// Bytes after which the server hangs up.
    Raw { slot: usize, bytes: Vec<u8> },
    /// A four-letter word.
    Word { word: &'static str },
    /// A new session on this slot, which has none; these requests, which make an ephemeral of that name; then nothing, until
    /// the session is over.
    Expire { slot: usize, hello: Hello, requests: Vec<Request>, ephemeral: String },
    /// Requests after which the server removes this znode by itself.
    Reap { slot: usize, requests: Vec<Request>, path: String },
}

impl Step {
    /// Whose step it is.
    pub fn slot(&self) -> Option<usize> {
        match self {
            Step::Open { slot, .. } | Step::Again { slot, .. } | Step::Drop { slot } => Some(*slot),
            Step::Ask { slot, .. } | Step::Raw { slot, .. } => Some(*slot),
            Step::Expire { slot, .. } | Step::Reap { slot, .. } => Some(*slot),
            Step::Probe { .. } | Step::Word { .. } => None,
        }
    }
}

/// A connect request.
#[derive(Clone, Debug)]
pub struct Hello {
    pub protocol: i32,
    pub seen: Since,
    pub timeout_ms: i32,
    pub session: Whose,
    pub password: Password,
    pub read_only: Option<u8>,
    pub trailing: Vec<u8>,
}

impl Hello {
    /// What an ordinary client sends.
    pub fn plain() -> Hello {
        Hello {
            protocol: 0,
            seen: Since::Zero,
            timeout_ms: 90_000,
            session: Whose::New,
            password: Password::Right,
            read_only: Some(0),
            trailing: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Whose {
    New,
    /// The session that this slot has or had.
    Of(usize),
    /// One that never was.
    Nobodys,
}

#[derive(Clone, Copy, Debug)]
pub enum Password {
    /// What the server gave; zeros for a new session.
    Right,
    Wrong,
    Short,
    Empty,
    Null,
}

/// A zxid, in terms that mean the same on both sides.
#[derive(Clone, Copy, Debug)]
pub enum Since {
    Zero,
    Negative,
    /// The so many-th newest change that was seen on any connection.
    Newest(usize),
    /// Beyond everything.
    Future,
}

/// A request as bytes.
#[derive(Clone)]
pub struct Request {
    pub opcode: i32,
    /// `None`: the connection's next number.
    pub xid: Option<i32>,
    pub body: Vec<u8>,
    /// What to put over the first eight bytes of the body.
    pub since: Option<Since>,
    /// For people.
    pub text: String,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if let Some(since) = self.since {
            write!(f, " since={since:?}")?;
        }
        match self.xid {
            Some(xid) => write!(f, " xid={xid}"),
            None => Ok(()),
        }
    }
}

impl Request {
    /// Whether the connection ends with it.
    pub fn is_last(&self) -> bool {
        !op::KNOWN.iter().any(|(code, _)| *code == self.opcode) || matches!(self.opcode, op::CLOSE | op::CHECK)
    }

    /// Whether it may change something that others see.
    pub fn is_write(&self) -> bool {
        matches!(
            self.opcode,
            op::CREATE
                | op::DELETE
                | op::SET_DATA
                | op::SET_ACL
                | op::MULTI
                | op::CREATE2
                | op::CREATE_CONTAINER
                | op::CREATE_TTL
                | op::CLOSE
        )
    }
}

/// The opcodes (wire 3.2).
pub mod op {
    pub const CREATE: i32 = 1;
    pub const DELETE: i32 = 2;
    pub const EXISTS: i32 = 3;
    pub const GET_DATA: i32 = 4;
    pub const SET_DATA: i32 = 5;
    pub const GET_ACL: i32 = 6;
    pub const SET_ACL: i32 = 7;
    pub const GET_CHILDREN: i32 = 8;
    pub const SYNC: i32 = 9;
    pub const PING: i32 = 11;
    pub const GET_CHILDREN2: i32 = 12;
    pub const CHECK: i32 = 13;
    pub const MULTI: i32 = 14;
    pub const CREATE2: i32 = 15;
    pub const RECONFIG: i32 = 16;
    pub const CHECK_WATCHES: i32 = 17;
    pub const REMOVE_WATCHES: i32 = 18;
    pub const CREATE_CONTAINER: i32 = 19;
    pub const CREATE_TTL: i32 = 21;
    pub const MULTI_READ: i32 = 22;
    pub const AUTH: i32 = 100;
    pub const SET_WATCHES: i32 = 101;
    pub const SASL: i32 = 102;
    pub const GET_EPHEMERALS: i32 = 103;
    pub const COUNT: i32 = 104;
    pub const SET_WATCHES2: i32 = 105;
    pub const ADD_WATCH: i32 = 106;
    pub const WHO_AM_I: i32 = 107;
    pub const CLOSE: i32 = -11;

    pub const KNOWN: [(i32, &str); 29] = [
        (CREATE, "create"),
        (DELETE, "delete"),
        (EXISTS, "exists"),
        (GET_DATA, "getData"),
        (SET_DATA, "setData"),
        (GET_ACL, "getACL"),
        (SET_ACL, "setACL"),
        (GET_CHILDREN, "getChildren"),
        (SYNC, "sync"),
        (PING, "ping"),
        (GET_CHILDREN2, "getChildren2"),
        (CHECK, "check"),
        (MULTI, "multi"),
        (CREATE2, "create2"),
        (RECONFIG, "reconfig"),
        (CHECK_WATCHES, "checkWatches"),
        (REMOVE_WATCHES, "removeWatches"),
        (CREATE_CONTAINER, "createContainer"),
        (CREATE_TTL, "createTTL"),
        (MULTI_READ, "multiRead"),
        (AUTH, "auth"),
        (SET_WATCHES, "setWatches"),
        (SASL, "sasl"),
        (GET_EPHEMERALS, "getEphemerals"),
        (COUNT, "getAllChildrenNumber"),
        (SET_WATCHES2, "setWatches2"),
        (ADD_WATCH, "addWatch"),
        (WHO_AM_I, "whoAmI"),
        (CLOSE, "closeSession"),
    ];

    pub fn name(code: i32) -> String {
        KNOWN.iter().find(|(known, _)| *known == code).map_or(format!("opcode {code}"), |(_, name)| (*name).into())
    }
}
