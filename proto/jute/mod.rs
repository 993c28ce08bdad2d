//! ZooKeeper's records, byte for byte, both directions: the server decodes requests and encodes replies, a load
//! generator or a test does the reverse with the same code.
//!
//! Nothing here decides anything: values that no server accepts (an unknown create flag, say) decode, and whoever
//! answers judges them. Every function is total on arbitrary bytes. Data fields of decoded records share the memory of
//! the frame they came from.
//!
//! Read [`Request`] and [`Response`] first; [`frame`] cuts a byte stream into frames. Source: wire 1 to 3 and 7.

pub mod connect;
pub mod frame;
pub mod opcode;
mod primitive;
mod record;
mod request;
mod response;

pub use connect::{ConnectRequest, ConnectResponse};
pub use frame::FrameError;
pub use primitive::{JuteWrite, Reader};
pub use record::{ClientInfo, MultiHeader, ReplyHeader, RequestHeader, WatcherEvent};
pub use request::{Create, CreateOp, List, Request, SetWatches};
pub use response::{MultiResult, Response, decode_reply, encode_event, encode_reply};

/// Why bytes are not the record that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A field reaches past the end of its frame.
    #[error("record ends early: {missing} bytes missing")]
    Truncated {
        /// How many bytes the field wanted beyond the end.
        missing: usize,
    },
    /// A length below -1.
    #[error("negative length {0}")]
    NegativeLength(i32),
    /// A string, buffer or list that must not be null.
    #[error("null where a value is required")]
    Null,
    /// No request or reply has this number.
    #[error("unknown opcode {0}")]
    UnknownOpcode(i32),
    /// An operation inside a multi that may not stand there, or next to its neighbours.
    #[error("operation {0} cannot be part of this multi")]
    NotInMulti(i32),
    /// A multi-read that asks only for changes. Kept apart because its refusal has a body (wire 1.3).
    #[error("multi-read of changes")]
    WriteInMultiRead,
    /// An enumeration's number that no release used.
    #[error("unknown value {0}")]
    UnknownValue(i32),
}
