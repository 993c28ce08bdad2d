//! The part of a history that is judged without zxids: calls on znodes `/r0`, `/r1`, ..., which clients use as registers
//! and locks. Time is a counter of everything that any client sends or gets here.

use std::collections::BTreeMap;

use bytes::Bytes;
use corral_core::tree::op::{Answer, Create, MultiOp, MultiReadOp, ReadOp, WriteOp};
use corral_proto::{CreateMode, ErrorCode, SessionId};

use super::ClientResult;
use crate::checks::{Violation, ensure};
use crate::linearizability::Verdict;
use crate::linearizability::znodes::{self, Outcome, Refusal, Reply, Step, Transaction, ZnodeCall};

/// A longer history is not judged.
const CALLS_MAX: usize = 1_500;

/// Steps for each group of registers.
const BUDGET: u64 = 50_000;

/// Path of a register.
pub fn path(number: u64) -> String {
    format!("/r{number}")
}

/// The calls on registers, and the ends of the sessions that may own one.
#[derive(Debug, Default)]
pub struct Registers {
    now: u64,
    calls: Vec<ZnodeCall>,
    /// The calls that end sessions: nothing of a session takes effect afterwards.
    ends: BTreeMap<SessionId, ZnodeCall>,
}

/// A call under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(usize);

impl Registers {
    /// A write is sent for the first time. Those on anything but registers are of no interest.
    pub fn send_write(&mut self, session: SessionId, op: &WriteOp) -> Option<Ticket> {
        let steps: Vec<(String, Step)> = match op {
            WriteOp::Create(op) => vec![create(op, session)?],
            WriteOp::SetData { path, data, version } => vec![set(path, data.as_ref(), *version)?],
            WriteOp::Delete { path, version } => vec![on(path, Step::Delete { version: wanted(*version) })?],
            WriteOp::Multi(ops) => ops.iter().map(|op| multi_step(op, session)).collect::<Option<_>>()?,
            _ => return None,
        };
        if steps.iter().any(|(_, step)| matches!(step, Step::Create { owner: Some(_), .. })) {
            self.now += 1;
            let (owner, invoked) = (session.0 as u64, self.now);
            let op = Transaction::EndOwner(owner);
            self.ends.entry(session).or_insert(ZnodeCall { session: owner, invoked, returned: None, op });
        }
        Some(self.send(session, Transaction::Steps(steps)))
    }

    /// A read of the latest state is sent.
    pub fn send_read(&mut self, session: SessionId, op: &ReadOp) -> Option<Ticket> {
        let steps = match op {
            ReadOp::GetData { path } => vec![on(path, Step::Get)?],
            ReadOp::MultiRead(reads) => {
                let get = |read: &MultiReadOp| match read {
                    MultiReadOp::GetData { path } => on(path, Step::Get),
                    _ => None,
                };
                reads.iter().map(get).collect::<Option<_>>()?
            }
            _ => return None,
        };
        Some(self.send(session, Transaction::Steps(steps)))
    }

    fn send(&mut self, session: SessionId, op: Transaction) -> Ticket {
        self.now += 1;
        self.calls.push(ZnodeCall { session: session.0 as u64, invoked: self.now, returned: None, op });
        Ticket(self.calls.len() - 1)
    }

    /// The answer came. What an error does not tell stays unknown.
    pub fn answered(&mut self, session: SessionId, ticket: Ticket, result: &ClientResult) {
        self.now += 1;
        let now = self.now;
        let call = &mut self.calls[ticket.0];
        let Transaction::Steps(steps) = &call.op else { return };
        call.returned = outcome(steps, result).map(|outcome| (now, outcome));
        let reads_only = steps.iter().all(|(_, step)| *step == Step::Get);
        // A write that was done was done while the session lived.
        if call.returned.is_some()
            && !reads_only
            && let Some(end) = self.ends.get_mut(&session)
        {
            end.invoked = end.invoked.max(call.invoked);
        }
    }

    /// The client was told that its session is over.
    pub fn session_over(&mut self, session: SessionId) {
        self.now += 1;
        if let Some(end) = self.ends.get_mut(&session) {
            end.returned = end.returned.take().or(Some((self.now, Outcome::Done(vec![]))));
        }
    }

    /// Looks for an order of all calls that explains all answers; says for the record what came of it.
    ///
    /// # Errors
    /// There is none.
    pub fn judge(&self) -> Result<&'static str, Violation> {
        // What a read saw that was never answered does not matter.
        let matters = |call: &&ZnodeCall| match &call.op {
            Transaction::Steps(steps) => call.returned.is_some() || steps.iter().any(|(_, step)| *step != Step::Get),
            Transaction::EndOwner(_) => true,
        };
        let calls: Vec<ZnodeCall> = self.calls.iter().filter(matters).chain(self.ends.values()).cloned().collect();
        if calls.is_empty() {
            return Ok("no history of registers");
        }
        if calls.len() > CALLS_MAX {
            return Ok("history of registers: too long");
        }
        match znodes::check(&calls, BUDGET) {
            Verdict::Linearizable => Ok("history of registers explained"),
            Verdict::GaveUp => Ok("history of registers: given up"),
            Verdict::Violated(violated) => {
                ensure!(false, "I22, I24 without zxids", "{violated}");
                Ok("")
            }
        }
    }
}

/// A step on a register; `None` for any other znode.
fn on(path: &str, step: Step) -> Option<(String, Step)> {
    path.starts_with("/r").then(|| (path.to_owned(), step))
}

fn create(op: &Create, session: SessionId) -> Option<(String, Step)> {
    let owner = match op.mode {
        CreateMode::Persistent => None,
        CreateMode::Ephemeral => Some(session.0 as u64),
        _ => return None,
    };
    on(&op.path, Step::Create { data: text(op.data.as_ref()), owner })
}

fn set(path: &str, data: Option<&Bytes>, version: i32) -> Option<(String, Step)> {
    on(path, Step::Set { data: text(data), version: wanted(version) })
}

fn multi_step(op: &MultiOp, session: SessionId) -> Option<(String, Step)> {
    match op {
        MultiOp::Create(op) => create(op, session),
        MultiOp::SetData { path, data, version } => set(path, data.as_ref(), *version),
        MultiOp::Delete { path, version } => on(path, Step::Delete { version: wanted(*version) }),
        MultiOp::Check { path, version } => on(path, Step::Check { version: wanted(*version) }),
        _ => None,
    }
}

fn wanted(version: i32) -> Option<i32> {
    (version != -1).then_some(version)
}

fn text(data: Option<&Bytes>) -> String {
    data.map(|data| String::from_utf8_lossy(data).into_owned()).unwrap_or_default()
}

/// What an answer says; `None` if it does not say whether anything was done.
fn outcome(steps: &[(String, Step)], result: &ClientResult) -> Option<Outcome> {
    match result {
        Ok(Answer::Multi(answers)) => answers.iter().map(reply).collect::<Option<_>>().map(Outcome::Done),
        Ok(Answer::MultiFailed { failed, error, .. }) => Some(Outcome::Refused(*failed, refusal(*error)?)),
        Ok(Answer::MultiRead(results)) => results.iter().map(read_reply).collect::<Option<_>>().map(Outcome::Done),
        result if steps.iter().all(|(_, step)| *step == Step::Get) => {
            read_reply(result).map(|reply| Outcome::Done(vec![reply]))
        }
        Ok(answer) => reply(answer).map(|reply| Outcome::Done(vec![reply])),
        Err(error) => Some(Outcome::Refused(0, refusal(*error)?)),
    }
}

fn reply(answer: &Answer) -> Option<Reply> {
    match answer {
        Answer::Done | Answer::Created { .. } => Some(Reply::Done),
        Answer::Stat(stat) => Some(Reply::Version(stat.version)),
        _ => None,
    }
}

fn read_reply(result: &ClientResult) -> Option<Reply> {
    match result {
        Ok(Answer::Data { data, stat }) => Some(Reply::Found { data: text(data.as_ref()), version: stat.version }),
        Err(ErrorCode::NoNode) => Some(Reply::Absent),
        _ => None,
    }
}

fn refusal(error: ErrorCode) -> Option<Refusal> {
    match error {
        ErrorCode::NodeExists => Some(Refusal::NodeExists),
        ErrorCode::NoNode => Some(Refusal::NoNode),
        ErrorCode::BadVersion => Some(Refusal::BadVersion),
        _ => None,
    }
}
