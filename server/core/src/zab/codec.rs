//! Bytes of a frame.
