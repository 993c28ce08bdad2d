//! Keeps one connection busy: the loop that every figure comes from.
//!
//! One turn writes all requests that may leave in one system call, reads what is there in another, and takes one time
//! stamp for all of it. Nothing is allocated for a request.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use corral_proto::jute::{frame, opcode};
use tokio::io::Interest;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::wire::{FRAME_BYTES_MAX, Wire};

/// Bytes of a reply's header: xid, zxid, error.
const HEADER_BYTES: usize = 16;
/// Room for one read.
const READ_BYTES: usize = 64 << 10;
/// Outstanding requests that are not answered for so long are given up: the server is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// Where requests come from.
pub trait Source {
    /// Appends the next request as a frame; `false`: there is none left.
    fn next(&mut self, xid: i32, out: &mut BytesMut) -> bool;
}

/// One answer.
pub struct Done {
    /// When it was sent, or due.
    pub begun: Instant,
    /// When its answer was read.
    pub ended: Instant,
    /// 0, or an error code of the protocol.
    pub error: i32,
}

/// When requests leave by plan and not by answers. Latency counts from the planned time, so a server that stalls is
/// charged for every request that had to wait (no coordinated omission).
#[derive(Clone, Copy)]
pub struct Pace {
    pub next: Instant,
    pub interval: Duration,
}

/// How a connection is driven.
pub struct Plan {
    /// Requests on the way at once, at most.
    pub outstanding: usize,
    /// No request is begun after it.
    pub until: Option<Instant>,
    /// `None`: as fast as answers come.
    pub pace: Option<Pace>,
}

/// Runs requests of `source` through the connection until it has none left, or until the time is over, and all are
/// answered.
///
/// # Errors
/// If the connection breaks, answers come in the wrong order, or none comes.
pub async fn drive(
    wire: &mut Wire,
    source: &mut impl Source,
    mut plan: Plan,
    mut done: impl FnMut(Done),
) -> io::Result<()> {
    let mut out = BytesMut::with_capacity(READ_BYTES);
    let mut pending: VecDeque<(i32, Instant)> = VecDeque::with_capacity(plan.outstanding);
    let mut more = true;
    loop {
        let now = Instant::now();
        more = more && plan.until.is_none_or(|until| now < until);
        let mut wake = None;
        while more && pending.len() < plan.outstanding {
            let begun = match &mut plan.pace {
                None => now,
                Some(pace) if pace.next <= now => {
                    pace.next += pace.interval;
                    pace.next - pace.interval
                }
                Some(pace) => {
                    wake = Some(pace.next);
                    break;
                }
            };
            let xid = wire.next_xid();
            more = source.next(xid, &mut out);
            if more {
                pending.push_back((xid, begun));
            }
        }
        if pending.is_empty() {
            match wake {
                Some(wake) => {
                    sleep_until(plan.until.map_or(wake, |until| wake.min(until))).await;
                    continue;
                }
                None => return Ok(()),
            }
        }
        if !out.is_empty() {
            match wire.stream.try_write(&out) {
                Ok(written) => out.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        // Both directions at once: a server that waits for us to read must not wait for us to write.
        let interest = if out.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        let limit = now + STUCK_AFTER;
        match timeout_at(wake.unwrap_or(limit), wire.stream.ready(interest)).await {
            Ok(ready) => _ = ready?,
            Err(_) if wake.is_some() => continue,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
        wire.received.reserve(READ_BYTES);
        match wire.stream.try_read_buf(&mut wire.received) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => take_answers(&mut wire.received, &mut pending, &mut done)?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn take_answers(
    received: &mut BytesMut,
    pending: &mut VecDeque<(i32, Instant)>,
    done: &mut impl FnMut(Done),
) -> io::Result<()> {
    let invalid = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
    let ended = Instant::now();
    let mut taken = 0;
    loop {
        let rest = &received[taken..];
        let length = match frame::announced(rest, FRAME_BYTES_MAX).map_err(|e| invalid(e.to_string()))? {
            Some(length) if rest.len() >= frame::PREFIX_BYTES + length => length,
            _ => break,
        };
        let payload = &rest[frame::PREFIX_BYTES..frame::PREFIX_BYTES + length];
        if length < HEADER_BYTES {
            return Err(invalid(format!("a reply of {length} bytes")));
        }
        taken += frame::PREFIX_BYTES + length;
        let (mut head, mut error) = (&payload[..4], &payload[12..HEADER_BYTES]);
        let (xid, error) = (head.get_i32(), error.get_i32());
        if xid == opcode::XID_EVENT {
            continue;
        }
        match pending.pop_front() {
            Some((expected, begun)) if expected == xid => done(Done { begun, ended, error }),
            expected => return Err(invalid(format!("reply {xid} instead of {expected:?}"))),
        }
    }
    received.advance(taken);
    Ok(())
}
