//! Why a command failed, and which exit code that is.
//!
//! Pure. Read first: [`Failure`], [`exit`].

use corral_client::{EndReason, Error, ErrorCode};
use serde_json::json;

/// The exit codes, by class.
pub mod exit {
    pub const DONE: u8 = 0;
    pub const FAILED: u8 = 1;
    pub const USAGE: u8 = 2;
    pub const NO_NODE: u8 = 3;
    pub const BAD_VERSION: u8 = 4;
    pub const NOT_PERMITTED: u8 = 5;
    pub const TIMEOUT: u8 = 6;
    pub const NOT_EMPTY: u8 = 7;
    pub const CONNECTION: u8 = 8;
    pub const LOST: u8 = 9;
    pub const NOT_CONFIRMED: u8 = 10;
    pub const UNKNOWN_COMMAND: u8 = 127;
    pub const CANCELLED: u8 = 130;
    pub const OUTPUT_CLOSED: u8 = 141;

    /// Each code, and what it means.
    pub const ALL: &[(u8, &str)] = &[
        (DONE, "done"),
        (FAILED, "failed otherwise; of grep, diff, counter and queue: no, or nothing found"),
        (USAGE, "wrong usage"),
        (NO_NODE, "no such node"),
        (BAD_VERSION, "version does not match"),
        (NOT_PERMITTED, "not permitted"),
        (TIMEOUT, "timeout"),
        (NOT_EMPTY, "node has children"),
        (CONNECTION, "no connection"),
        (LOST, "lock, permits or leadership were lost, and the command was killed"),
        (NOT_CONFIRMED, "not confirmed: nothing was destroyed"),
        (UNKNOWN_COMMAND, "unknown command"),
        (CANCELLED, "interrupted"),
        (OUTPUT_CLOSED, "who read the output has gone"),
    ];

    /// What a code means; empty for codes that are none of ours.
    pub fn meaning(code: u8) -> &'static str {
        ALL.iter().find(|(one, _)| *one == code).map_or("", |(_, meaning)| meaning)
    }
}

/// Why a command failed, by class: each has its exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server refused it.
    Refused {
        /// Its reason.
        code: ErrorCode,
        /// What was asked for; empty if the command has no path.
        path: String,
    },
    /// The command line is wrong.
    Usage(String),
    /// There is no such verb, or no such program.
    UnknownCommand(String),
    /// `--timeout` passed.
    Timeout(String),
    /// There is no connection, or the session is gone.
    Connection(String),
    /// What was held was lost.
    Lost(String),
    /// Something would be destroyed, and nobody said yes.
    NotConfirmed(String),
    /// Anything else.
    Other(String),
    /// The answer is no: of a program that we ran, or of a comparison. Nothing more is said.
    Exit(u8),
    /// Ctrl-C.
    Cancelled,
    /// Who read our output has gone, as `head` does; nothing is said.
    OutputClosed,
}

impl Failure {
    /// See [`exit`].
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Refused { code, .. } => match code {
                ErrorCode::NoNode => exit::NO_NODE,
                ErrorCode::BadVersion => exit::BAD_VERSION,
                ErrorCode::NoAuth | ErrorCode::AuthFailed | ErrorCode::SessionClosedRequireSaslAuth => {
                    exit::NOT_PERMITTED
                }
                ErrorCode::OperationTimeout | ErrorCode::RequestTimeout => exit::TIMEOUT,
                ErrorCode::NotEmpty => exit::NOT_EMPTY,
                ErrorCode::ConnectionLoss
                | ErrorCode::SessionExpired
                | ErrorCode::SessionMoved
                | ErrorCode::UnknownSession
                | ErrorCode::Closing => exit::CONNECTION,
                _ => exit::FAILED,
            },
            Failure::Usage(_) => exit::USAGE,
            Failure::UnknownCommand(_) => exit::UNKNOWN_COMMAND,
            Failure::Timeout(_) => exit::TIMEOUT,
            Failure::Connection(_) => exit::CONNECTION,
            Failure::Lost(_) => exit::LOST,
            Failure::NotConfirmed(_) => exit::NOT_CONFIRMED,
            Failure::Other(_) => exit::FAILED,
            Failure::Exit(code) => *code,
            Failure::Cancelled => exit::CANCELLED,
            Failure::OutputClosed => exit::OUTPUT_CLOSED,
        }
    }

    /// Whether nothing is said about it.
    pub fn is_silent(&self) -> bool {
        matches!(self, Failure::Exit(_) | Failure::OutputClosed)
    }

    /// Whether it is the server's answer "there is no such node".
    pub fn is_no_node(&self) -> bool {
        matches!(self, Failure::Refused { code: ErrorCode::NoNode, .. })
    }

    /// What standard error shows, without line end.
    pub fn text(&self) -> String {
        match self {
            Failure::Refused { code, path } => refusal(*code, path),
            Failure::Usage(text)
            | Failure::UnknownCommand(text)
            | Failure::Timeout(text)
            | Failure::Connection(text)
            | Failure::Lost(text)
            | Failure::NotConfirmed(text)
            | Failure::Other(text) => text.clone(),
            Failure::Exit(code) => format!("exit code {code}"),
            Failure::Cancelled => "cancelled".to_owned(),
            Failure::OutputClosed => "standard output is closed".to_owned(),
        }
    }

    /// The same as one line of JSON, with line end.
    pub fn json(&self) -> String {
        let mut error = json!({ "message": self.text(), "exit": self.exit_code() });
        if let Failure::Refused { code, path } = self {
            error["code"] = json!(code.code());
            error["name"] = json!(format!("{code:?}"));
            if !path.is_empty() {
                error["path"] = json!(path);
            }
        }
        format!("{}\n", json!({ "error": error }))
    }
}

/// ZooKeeper's sentence for a refusal.
fn refusal(code: ErrorCode, path: &str) -> String {
    let sentence = match code {
        ErrorCode::NoNode => "Node does not exist: ",
        ErrorCode::NodeExists => "Node already exists: ",
        ErrorCode::NotEmpty => "Node not empty: ",
        ErrorCode::NoChildrenForEphemerals => "Ephemerals cannot have children: ",
        ErrorCode::NoAuth => "Insufficient permission : ",
        ErrorCode::BadVersion => "version No is not valid : ",
        ErrorCode::InvalidAcl => "Acl is not valid : ",
        ErrorCode::BadArguments => "Arguments are not valid : ",
        ErrorCode::QuotaExceeded => "Quota has exceeded : ",
        ErrorCode::NotReadOnly => "Not a read-only call: ",
        other => {
            let name = match other {
                ErrorCode::SessionExpired => "Session expired".to_owned(),
                ErrorCode::SessionMoved => "Session moved".to_owned(),
                other => format!("{other:?}"),
            };
            let of = if path.is_empty() { String::new() } else { format!(" for {path}") };
            return format!("KeeperErrorCode = {name}{of} ({})", other.describe());
        }
    };
    format!("{sentence}{path}")
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::Refused { code, path, .. } => Failure::Refused { code, path },
            Error::Multi(multi) => Failure::Refused { code: multi.code, path: multi.path },
            Error::BadPath { .. } | Error::BadArgument { .. } | Error::ConnectString { .. } | Error::Tls { .. } => {
                Failure::Usage(error.to_string())
            }
            Error::SessionEnded { reason: EndReason::AuthFailed { .. }, path, .. } => {
                Failure::Refused { code: ErrorCode::AuthFailed, path }
            }
            Error::SessionEnded { reason: EndReason::AuthRequired { .. }, path, .. } => {
                Failure::Refused { code: ErrorCode::SessionClosedRequireSaslAuth, path }
            }
            Error::SessionEnded { .. } | Error::NoConnection { .. } => Failure::Connection(error.to_string()),
            _ => Failure::Other(error.to_string()),
        }
    }
}

impl From<corral_recipes::Error> for Failure {
    fn from(error: corral_recipes::Error) -> Failure {
        use corral_recipes::Error as E;
        match error {
            E::Client(error) => error.into(),
            E::Timeout { .. } => Failure::Timeout(error.to_string()),
            E::BadArgument { .. } | E::UpgradeRefused { .. } => Failure::Usage(error.to_string()),
            E::Lost(_) | E::Fenced { .. } => Failure::Lost(error.to_string()),
            other => Failure::Other(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn failures_have_zookeepers_text_and_an_exit_code_by_class() {
        let refused = |code| Failure::Refused { code, path: "/p".into() };
        for (code, sentence, exit) in [
            (ErrorCode::NoNode, "Node does not exist: /p", 3),
            (ErrorCode::BadVersion, "version No is not valid : /p", 4),
            (ErrorCode::NoAuth, "Insufficient permission : /p", 5),
            (ErrorCode::NotEmpty, "Node not empty: /p", 7),
            (ErrorCode::NodeExists, "Node already exists: /p", 1),
            (ErrorCode::NoChildrenForEphemerals, "Ephemerals cannot have children: /p", 1),
            (ErrorCode::InvalidAcl, "Acl is not valid : /p", 1),
        ] {
            assert_eq!((refused(code).text().as_str(), refused(code).exit_code()), (sentence, exit));
        }
        assert!(refused(ErrorCode::SessionExpired).text().starts_with("KeeperErrorCode = Session expired for /p"));
        assert_eq!(refused(ErrorCode::ConnectionLoss).exit_code(), 8);
        assert_eq!(refused(ErrorCode::RequestTimeout).exit_code(), 6);
        assert_eq!(Failure::Usage(String::new()).exit_code(), 2);
        assert_eq!(Failure::UnknownCommand(String::new()).exit_code(), 127);
        let value: Value = serde_json::from_str(&refused(ErrorCode::NoNode).json()).expect("valid JSON");
        assert_eq!((&value["error"]["code"], &value["error"]["name"]), (&json!(-101), &json!("NoNode")));
    }
}
