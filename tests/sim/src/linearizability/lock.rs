//! A lock: never two holders, and fencing tokens that grow.

use super::Model;

/// What is done with a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockOp {
    /// Takes it. Answered when it is taken.
    Acquire {
        /// Who.
        by: u64,
    },
    /// Gives it back, or loses it with a session. In the latter case `invoked` is when the session last was known to live;
    /// a holder that died gives it back with an unknown outcome.
    Release {
        /// Who.
        by: u64,
    },
}

/// The answer: of [`LockOp::Acquire`] the fencing token, if it has one.
pub type Token = Option<u64>;

/// A lock that nobody holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lock;

/// Who holds a lock, and the largest token given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Held {
    by: Option<u64>,
    token: Token,
}

impl Model for Lock {
    type State = Held;
    type Op = LockOp;
    type Outcome = Token;

    fn start(&self) -> Held {
        Held::default()
    }

    fn step(&self, state: &Held, op: &LockOp, outcome: Option<&Token>) -> Option<Held> {
        match (op, outcome) {
            (LockOp::Acquire { by }, Some(token)) => {
                let grows = token.is_none() || *token > state.token;
                (state.by.is_none() && grows).then(|| Held { by: Some(*by), token: (*token).max(state.token) })
            }
            // Nobody knows whether it came to that; it has the lock if that was free.
            (LockOp::Acquire { by }, None) => Some(Held { by: state.by.or(Some(*by)), token: state.token }),
            (LockOp::Release { by }, _) if state.by == Some(*by) => Some(Held { by: None, token: state.token }),
            (LockOp::Release { .. }, None) => Some(state.clone()),
            (LockOp::Release { .. }, Some(_)) => None,
        }
    }
}
