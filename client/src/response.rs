//! The future of an answer.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use corral_proto::{ErrorCode, Zxid};
use tokio::sync::oneshot;

use crate::client::Map;
use crate::error::{EndReason, Error};
use crate::op::{Answer, Op};
use crate::session::Failure;
use crate::shared::Shared;
use crate::watcher::{Feed, OneshotWatch};

/// The answer to a request that is already under way. Dropping it drops the answer, not the request.
#[must_use = "the request is made, but whether it succeeded is only known to who awaits it"]
pub struct Response<T> {
    state: State<T>,
    instead: Instead<T>,
}

enum State<T> {
    Waiting { outcome: oneshot::Receiver<Outcome>, call: Call, map: Map<T> },
    Failed(Error),
    Taken,
}

/// A refusal that is no error to the caller, and what it is.
type Instead<T> = Option<(ErrorCode, fn(Call) -> T)>;

// Nothing in it is pinned.
impl<T> Unpin for Response<T> {}

/// What the session says about a request in the end, with the request itself.
pub(crate) struct Outcome {
    pub(crate) op: Op,
    pub(crate) zxid: Zxid,
    pub(crate) result: Result<Answer, Failure>,
}

/// What a request needs when its answer comes.
pub(crate) struct Call {
    pub(crate) shared: Arc<Shared>,
    pub(crate) name: &'static str,
    pub(crate) is_write: bool,
    pub(crate) oneshot: Option<OneshotWatch>,
    pub(crate) feed: Option<Feed>,
}

impl Call {
    /// A path of the server as the caller knows it.
    pub(crate) fn user_path(&self, path: &str) -> String {
        self.shared.hosts.user_path(path).to_owned()
    }

    pub(crate) fn unexpected(&self, answer: &Answer) -> Error {
        let text = format!("{answer:?}").chars().take(80).collect();
        Error::Protocol { op: self.name, path: String::new(), text }
    }

    pub(crate) fn take_oneshot(&mut self) -> OneshotWatch {
        self.oneshot.take().expect("the call was made with a one-shot watch, and its answer comes once")
    }

    /// The feed, which begins where the request said, or with the state that answered it.
    pub(crate) fn take_feed(&mut self, op: &Op, zxid: Zxid) -> Feed {
        let mut feed = self.feed.take().expect("the call was made with a feed, and its answer comes once");
        feed.position = match op {
            Op::Subscribe { after: Some(after), .. } => *after,
            _ => zxid,
        };
        feed
    }
}

impl<T> Response<T> {
    pub(crate) fn failed(error: Error) -> Response<T> {
        Response { state: State::Failed(error), instead: None }
    }

    pub(crate) fn waiting(outcome: oneshot::Receiver<Outcome>, call: Call, map: Map<T>) -> Response<T> {
        Response { state: State::Waiting { outcome, call, map }, instead: None }
    }

    /// With a value for one refusal that is no error to the caller.
    pub(crate) fn or_on(mut self, code: ErrorCode, value: fn(Call) -> T) -> Response<T> {
        self.instead = Some((code, value));
        self
    }
}

impl<T> Future for Response<T> {
    type Output = Result<T, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let State::Waiting { outcome, .. } = &mut this.state {
            let outcome = match Pin::new(outcome).poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(outcome) => outcome.ok(),
            };
            let State::Waiting { call, map, .. } = std::mem::replace(&mut this.state, State::Taken) else {
                unreachable!("matched above");
            };
            return Poll::Ready(finish(outcome, call, map, this.instead));
        }
        match std::mem::replace(&mut this.state, State::Taken) {
            State::Failed(error) => Poll::Ready(Err(error)),
            _ => panic!("a response was polled after it was ready"),
        }
    }
}

fn finish<T>(outcome: Option<Outcome>, call: Call, map: Map<T>, instead: Instead<T>) -> Result<T, Error> {
    let Some(Outcome { op, zxid, result }) = outcome else {
        // The task that carried the session was dropped with its runtime.
        let (op, outcome_unknown) = (call.name, call.is_write);
        return Err(Error::SessionEnded { op, path: String::new(), reason: EndReason::Stopped, outcome_unknown });
    };
    let failure = match result {
        Ok(answer) => return map(call, &op, zxid, answer),
        Err(failure) => failure,
    };
    if let (Failure::Refused(code), Some((expected, value))) = (&failure, instead)
        && *code == expected
    {
        return Ok(value(call));
    }
    let path = op.path().map_or_else(String::new, |path| call.user_path(path));
    Err(match failure {
        Failure::Refused(ErrorCode::RuntimeInconsistency) if call.is_write => Error::ResultLost { op: call.name, path },
        Failure::Refused(code) => Error::Refused { op: call.name, path, code },
        Failure::Ended { reason, outcome_unknown } => {
            Error::SessionEnded { op: call.name, path, reason, outcome_unknown }
        }
    })
}
