//! What can go wrong, in the caller's words: which request, on which path, and what is known about it now.

use corral_proto::ErrorCode;

/// Why a session came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The ensemble ended it: no sign of life for the session timeout. Its ephemerals are gone.
    Expired,
    /// This client closed it, or its last handle was dropped.
    Closed,
    /// A server no longer accepts an identity that this client proves on every connection.
    AuthFailed {
        /// Scheme of that identity.
        scheme: String,
    },
    /// The ensemble serves only clients that prove an identity, and this one proves none that it accepts.
    AuthRequired {
        /// The server's words.
        text: String,
    },
    /// Client and servers disagree about the protocol.
    Protocol {
        /// About what.
        text: String,
    },
    /// The runtime that carried the client was shut down.
    Stopped,
}

impl std::fmt::Display for EndReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            EndReason::Expired => f.write_str("the session expired"),
            EndReason::Closed => f.write_str("the client is closed"),
            EndReason::AuthFailed { scheme } => write!(f, "the identity proven by {scheme} was refused"),
            EndReason::AuthRequired { text } => write!(f, "not served without authentication: {text}"),
            EndReason::Protocol { text } => write!(f, "protocol error: {text}"),
            EndReason::Stopped => f.write_str("the client's runtime was shut down"),
        }
    }
}

/// A request that failed.
///
/// Three questions decide what to do: [`code`](Error::code) (what did the ensemble say),
/// [`is_retryable`](Error::is_retryable) (may the same call succeed a little later), and
/// [`outcome_unknown`](Error::outcome_unknown) (may a failed write have happened all the same).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The ensemble's answer: nothing was changed.
    #[error("{}: {code}", describe(op, path))]
    Refused {
        /// The operation's name.
        op: &'static str,
        /// As the caller gave it; empty where the operation has none.
        path: String,
        /// The answer.
        code: ErrorCode,
    },
    /// A multi of which nothing was done, because one operation was refused.
    #[error(transparent)]
    Multi(#[from] MultiError),
    /// A certificate or key that cannot be used; nothing was sent.
    #[error("TLS: {reason}")]
    Tls {
        /// Which, and why.
        reason: String,
    },
    /// The path breaks a rule; nothing was sent.
    #[error("{op}: {path:?} is not a valid path")]
    BadPath {
        /// The operation's name.
        op: &'static str,
        /// As the caller gave it.
        path: String,
    },
    /// An argument that no server would accept; nothing was sent.
    #[error("{}: {reason}", describe(op, path))]
    BadArgument {
        /// The operation's name.
        op: &'static str,
        /// As the caller gave it.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The request is larger than any server accepts; nothing was sent.
    #[error("{}: the request has {bytes} bytes, at most {limit} are allowed", describe(op, path))]
    TooLarge {
        /// The operation's name.
        op: &'static str,
        /// As the caller gave it.
        path: String,
        /// Size of the request in bytes.
        bytes: usize,
        /// Largest size in bytes.
        limit: usize,
    },
    /// Too many requests wait in this client already; nothing was sent. [`Client::ready`](crate::Client::ready) waits
    /// for room.
    #[error("{}: too many requests wait in this client", describe(op, path))]
    Overloaded {
        /// The operation's name.
        op: &'static str,
        /// As the caller gave it.
        path: String,
    },
    /// The session is over, and this client with it: connect anew.
    #[error("{}: {reason}{}", describe(op, path), if *outcome_unknown { "; whether it was done is unknown" } else { "" })]
    SessionEnded {
        /// The operation's name.
        op: &'static str,
        /// As the caller gave it.
        path: String,
        /// Why.
        reason: EndReason,
        /// A write was sent and not answered: it may or may not have been done.
        outcome_unknown: bool,
    },
    /// The write was decided before a connection was lost, and no server keeps the result any more. It does not happen to
    /// this client, which never has more results outstanding than servers keep.
    #[error("{}: it was decided before, its result is lost", describe(op, path))]
    ResultLost {
        /// The operation's name.
        op: &'static str,
        /// As the caller gave it.
        path: String,
    },
    /// No server of the connect string accepted a session in time.
    #[error("no connection to {hosts} within {waited_ms} ms; last attempt: {last}")]
    NoConnection {
        /// The servers tried.
        hosts: String,
        /// How long, in ms.
        waited_ms: u64,
        /// What the last attempt said.
        last: String,
    },
    /// The text is not a connect string.
    #[error("connect string {text:?}: {reason}")]
    ConnectString {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A server answered something that does not fit the request.
    #[error("{}: unexpected answer: {text}", describe(op, path))]
    Protocol {
        /// The operation's name.
        op: &'static str,
        /// As the caller gave it.
        path: String,
        /// What came.
        text: String,
    },
}

/// `get /a`, or only `whoami` where there is no path.
fn describe(op: &str, path: &str) -> String {
    if path.is_empty() { op.to_owned() } else { format!("{op} {path}") }
}

/// Which operation of a multi was refused. Nothing of the multi was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("multi: operation {index} ({}): {code}", describe(op, path))]
pub struct MultiError {
    /// Its place, from 0.
    pub index: usize,
    /// Its name.
    pub op: &'static str,
    /// Its path.
    pub path: String,
    /// Why.
    pub code: ErrorCode,
    /// How many operations the multi had.
    pub ops: usize,
}

impl Error {
    /// ZooKeeper's code for it; `None` where no such code fits (bad connect string, overload, size).
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Error::Refused { code, .. } => Some(*code),
            Error::Multi(multi) => Some(multi.code),
            Error::BadPath { .. } | Error::BadArgument { .. } => Some(ErrorCode::BadArguments),
            Error::SessionEnded { reason, .. } => Some(match reason {
                EndReason::Expired => ErrorCode::SessionExpired,
                EndReason::Closed | EndReason::Stopped => ErrorCode::Closing,
                EndReason::AuthFailed { .. } => ErrorCode::AuthFailed,
                EndReason::AuthRequired { .. } => ErrorCode::SessionClosedRequireSaslAuth,
                EndReason::Protocol { .. } => ErrorCode::MarshallingError,
            }),
            Error::ResultLost { .. } => Some(ErrorCode::RuntimeInconsistency),
            Error::NoConnection { .. } => Some(ErrorCode::ConnectionLoss),
            Error::Protocol { .. } => Some(ErrorCode::MarshallingError),
            Error::TooLarge { .. } | Error::Overloaded { .. } | Error::ConnectString { .. } | Error::Tls { .. } => None,
        }
    }

    /// Whether the same call, on the same client, may succeed a little later, and trying again can do no harm: nothing
    /// was done. Connection losses inside a session never surface: those the client repeats itself, exactly once.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Overloaded { .. } | Error::NoConnection { .. } => true,
            Error::Refused { code, .. } | Error::Multi(MultiError { code, .. }) => matches!(
                code,
                ErrorCode::ConnectionLoss
                    | ErrorCode::OperationTimeout
                    | ErrorCode::RequestTimeout
                    | ErrorCode::ThrottledOp
                    | ErrorCode::NewConfigNoQuorum
            ),
            _ => false,
        }
    }

    /// Whether a write may have been done although the call failed. In practice only true when the session itself is
    /// gone: inside a session every write is answered, across any number of reconnects.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, Error::SessionEnded { outcome_unknown: true, .. } | Error::ResultLost { .. })
    }

    /// Whether the session is over: this client will not serve another request.
    pub fn is_session_end(&self) -> bool {
        matches!(self, Error::SessionEnded { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_name_the_operation_and_the_path() {
        let refused = Error::Refused { op: "get", path: "/a".into(), code: ErrorCode::NoNode };
        assert_eq!(refused.to_string(), "get /a: node does not exist");
        let refused = Error::Refused { op: "whoami", path: String::new(), code: ErrorCode::SystemError };
        assert_eq!(refused.to_string(), "whoami: server internal error");
        let multi = MultiError { index: 2, op: "check", path: "/l".into(), code: ErrorCode::BadVersion, ops: 3 };
        assert_eq!(Error::from(multi).to_string(), "multi: operation 2 (check /l): version does not match");
    }

    #[test]
    fn only_an_ended_session_leaves_the_outcome_unknown() {
        let ended = |outcome_unknown| Error::SessionEnded {
            op: "create",
            path: "/a".into(),
            reason: EndReason::Expired,
            outcome_unknown,
        };
        assert!(ended(true).outcome_unknown() && !ended(false).outcome_unknown());
        assert_eq!(ended(true).to_string(), "create /a: the session expired; whether it was done is unknown");
        assert_eq!(ended(false).code(), Some(ErrorCode::SessionExpired));
        let lost = Error::ResultLost { op: "set", path: "/a".into() };
        assert!(lost.outcome_unknown() && !lost.is_retryable() && !lost.is_session_end());
        for code in ErrorCode::ALL {
            let refused = Error::Refused { op: "set", path: "/a".into(), code: *code };
            assert!(!refused.outcome_unknown(), "{code:?}");
            assert_eq!(refused.code(), Some(*code));
        }
    }

    #[test]
    fn a_refusal_that_would_be_repeated_is_not_retryable() {
        for (code, retryable) in
            [(ErrorCode::NoNode, false), (ErrorCode::BadVersion, false), (ErrorCode::ThrottledOp, true)]
        {
            assert_eq!(Error::Refused { op: "set", path: "/a".into(), code }.is_retryable(), retryable);
        }
    }
}
