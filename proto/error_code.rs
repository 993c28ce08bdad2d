//! ZooKeeper's error codes (wire 12): the numbers are hard-coded in clients.

use serde::{Deserialize, Serialize};

/// Why a request was refused. A value, not a fault: the same on every server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(i32)]
pub enum ErrorCode {
    /// Server internal error.
    SystemError = -1,
    /// Not tried, because an earlier operation of the same multi failed.
    RuntimeInconsistency = -2,
    /// Data inconsistency.
    DataInconsistency = -3,
    /// Connection lost before the answer came.
    ConnectionLoss = -4,
    /// Request could not be decoded.
    MarshallingError = -5,
    /// Operation not implemented.
    Unimplemented = -6,
    /// Operation timed out.
    OperationTimeout = -7,
    /// Bad arguments.
    BadArguments = -8,
    /// Unknown session.
    UnknownSession = -12,
    /// No quorum of the new configuration is connected.
    NewConfigNoQuorum = -13,
    /// Another reconfiguration is in progress.
    ReconfigInProgress = -14,
    /// API error.
    ApiError = -100,
    /// Node does not exist.
    NoNode = -101,
    /// Insufficient permission.
    NoAuth = -102,
    /// Version does not match.
    BadVersion = -103,
    /// Ephemeral nodes cannot have children.
    NoChildrenForEphemerals = -108,
    /// Node already exists.
    NodeExists = -110,
    /// Node has children.
    NotEmpty = -111,
    /// Session expired.
    SessionExpired = -112,
    /// Invalid callback.
    InvalidCallback = -113,
    /// ACL is not valid.
    InvalidAcl = -114,
    /// Authentication failed.
    AuthFailed = -115,
    /// Connection is closing.
    Closing = -116,
    /// No server response to process.
    Nothing = -117,
    /// Session moved to another server.
    SessionMoved = -118,
    /// Write on a read-only server.
    NotReadOnly = -119,
    /// Ephemeral node on a local session.
    EphemeralOnLocalSession = -120,
    /// No such watch.
    NoWatcher = -121,
    /// Request timed out.
    RequestTimeout = -122,
    /// Reconfiguration is disabled.
    ReconfigDisabled = -123,
    /// Session must authenticate first.
    SessionClosedRequireSaslAuth = -124,
    /// Quota exceeded.
    QuotaExceeded = -125,
    /// Operation throttled.
    ThrottledOp = -127,
}

impl ErrorCode {
    /// Every code, for tables and tests.
    pub const ALL: &'static [ErrorCode] = &[
        ErrorCode::SystemError,
        ErrorCode::RuntimeInconsistency,
        ErrorCode::DataInconsistency,
        ErrorCode::ConnectionLoss,
        ErrorCode::MarshallingError,
        ErrorCode::Unimplemented,
        ErrorCode::OperationTimeout,
        ErrorCode::BadArguments,
        ErrorCode::UnknownSession,
        ErrorCode::NewConfigNoQuorum,
        ErrorCode::ReconfigInProgress,
        ErrorCode::ApiError,
        ErrorCode::NoNode,
        ErrorCode::NoAuth,
        ErrorCode::BadVersion,
        ErrorCode::NoChildrenForEphemerals,
        ErrorCode::NodeExists,
        ErrorCode::NotEmpty,
        ErrorCode::SessionExpired,
        ErrorCode::InvalidCallback,
        ErrorCode::InvalidAcl,
        ErrorCode::AuthFailed,
        ErrorCode::Closing,
        ErrorCode::Nothing,
        ErrorCode::SessionMoved,
        ErrorCode::NotReadOnly,
        ErrorCode::EphemeralOnLocalSession,
        ErrorCode::NoWatcher,
        ErrorCode::RequestTimeout,
        ErrorCode::ReconfigDisabled,
        ErrorCode::SessionClosedRequireSaslAuth,
        ErrorCode::QuotaExceeded,
        ErrorCode::ThrottledOp,
    ];

    /// ZooKeeper's number.
    pub const fn code(self) -> i32 {
        self as i32
    }

    /// The code of a number; `None` for 0 (success) and for numbers that no release ever used.
    pub fn from_code(code: i32) -> Option<ErrorCode> {
        ErrorCode::ALL.iter().copied().find(|e| e.code() == code)
    }

    /// One phrase for people.
    pub const fn describe(self) -> &'static str {
        match self {
            ErrorCode::SystemError => "server internal error",
            ErrorCode::RuntimeInconsistency => "not tried, because an earlier operation of the same multi failed",
            ErrorCode::DataInconsistency => "data inconsistency",
            ErrorCode::ConnectionLoss => "connection lost before the answer came",
            ErrorCode::MarshallingError => "request could not be decoded",
            ErrorCode::Unimplemented => "operation not implemented",
            ErrorCode::OperationTimeout => "operation timed out",
            ErrorCode::BadArguments => "bad arguments",
            ErrorCode::UnknownSession => "unknown session",
            ErrorCode::NewConfigNoQuorum => "no quorum of the new configuration is connected",
            ErrorCode::ReconfigInProgress => "another reconfiguration is in progress",
            ErrorCode::ApiError => "API error",
            ErrorCode::NoNode => "node does not exist",
            ErrorCode::NoAuth => "insufficient permission",
            ErrorCode::BadVersion => "version does not match",
            ErrorCode::NoChildrenForEphemerals => "ephemeral nodes cannot have children",
            ErrorCode::NodeExists => "node already exists",
            ErrorCode::NotEmpty => "node has children",
            ErrorCode::SessionExpired => "session expired",
            ErrorCode::InvalidCallback => "invalid callback",
            ErrorCode::InvalidAcl => "ACL is not valid",
            ErrorCode::AuthFailed => "authentication failed",
            ErrorCode::Closing => "connection is closing",
            ErrorCode::Nothing => "no server response to process",
            ErrorCode::SessionMoved => "session moved to another server",
            ErrorCode::NotReadOnly => "write on a read-only server",
            ErrorCode::EphemeralOnLocalSession => "ephemeral node on a local session",
            ErrorCode::NoWatcher => "no such watch",
            ErrorCode::RequestTimeout => "request timed out",
            ErrorCode::ReconfigDisabled => "reconfiguration is disabled",
            ErrorCode::SessionClosedRequireSaslAuth => "session must authenticate first",
            ErrorCode::QuotaExceeded => "quota exceeded",
            ErrorCode::ThrottledOp => "operation throttled",
        }
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.describe())
    }
}

impl std::error::Error for ErrorCode {}
