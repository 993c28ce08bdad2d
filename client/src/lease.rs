//! What a program may assume about its session: the state, its changes, and the time until which it is safe.

use std::sync::Arc;
use std::time::Duration;

use corral_proto::{ServerId, SessionId};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::ambient;
use crate::error::EndReason;
use crate::shared::Shared;

/// How a session is.
///
/// `Connecting -> Connected <-> Suspended`, and from each of them to `Lost` or `Closed`, which are final. A client never
/// reports `Connected` after its session was gone: a new session is a new client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// Not yet established.
    Connecting,
    /// A server serves it.
    Connected,
    /// No connection, and the client looks for one. The session may live or not: whoever acts because it lives must
    /// stop by [`Lease::valid_until`], and is well advised to stop now.
    Suspended,
    /// The session is gone, its ephemerals too; or it can never be taken up again.
    Lost(EndReason),
    /// Closed by this client.
    Closed,
}

impl SessionState {
    /// Whether nothing will ever change any more.
    pub fn is_final(&self) -> bool {
        matches!(self, SessionState::Lost(_) | SessionState::Closed)
    }
}

/// What the session's task tells all who look.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) state: SessionState,
    /// How many times it was connected: shows an observer what happened between two looks.
    pub(crate) connections: u64,
    pub(crate) session: SessionId,
    pub(crate) timeout: Duration,
    pub(crate) server: ServerId,
}

/// The changes of a session's state, in order. Who looks seldom may miss repetitions, never the fact: a reconnect shows
/// as `Suspended`, then `Connected`, and the final state is always shown.
#[derive(Clone, Debug)]
pub struct SessionEvents {
    status: watch::Receiver<Status>,
    shown: SessionState,
    connections: u64,
}

impl SessionEvents {
    pub(crate) fn new(mut status: watch::Receiver<Status>) -> SessionEvents {
        let (shown, connections) = {
            let now = status.borrow_and_update();
            (now.state.clone(), now.connections)
        };
        SessionEvents { status, shown, connections }
    }

    /// The state now, without waiting.
    pub fn state(&self) -> SessionState {
        self.status.borrow().state.clone()
    }

    /// Waits for the next change, and gives the state it led to. `None` after a final state was given. Cancel safe.
    pub async fn next(&mut self) -> Option<SessionState> {
        loop {
            if self.shown.is_final() {
                return None;
            }
            let (state, connections) = {
                let now = self.status.borrow_and_update();
                (now.state.clone(), now.connections)
            };
            // Connected then and now, but not by the same connection: it was suspended in between.
            if self.shown == SessionState::Connected
                && state != SessionState::Suspended
                && connections != self.connections
            {
                self.connections = connections;
                self.shown = SessionState::Suspended;
                return Some(SessionState::Suspended);
            }
            if state != self.shown {
                self.connections = connections;
                self.shown = state.clone();
                return Some(state);
            }
            if self.status.changed().await.is_err() {
                // The client's task is gone without a last word: its runtime was shut down.
                self.shown = SessionState::Lost(EndReason::Stopped);
                return Some(self.shown.clone());
            }
        }
    }

    /// Waits until the session is over, and says how it ended.
    pub async fn ended(&mut self) -> SessionState {
        while let Some(state) = self.next().await {
            if state.is_final() {
                return state;
            }
        }
        self.shown.clone()
    }
}

/// The time until which a session cannot have expired, whatever the network does.
///
/// The deadline is the moment at which the last acknowledged request or ping was *sent*, plus the negotiated timeout, less
/// the margin of [`Builder::lease_margin`](crate::Builder::lease_margin). It does not count from when the client noticed a
/// lost connection: by then the server may have counted most of the timeout already.
#[derive(Clone)]
pub struct Lease {
    shared: Arc<Shared>,
}

impl Lease {
    pub(crate) fn new(shared: Arc<Shared>) -> Lease {
        Lease { shared }
    }

    /// The deadline as of now; every acknowledgement moves it on. After the end of the session: not later than its end.
    pub fn valid_until(&self) -> Instant {
        self.shared.lease_until()
    }

    /// Whether the deadline is still ahead.
    pub fn is_valid(&self) -> bool {
        ambient::now() < self.valid_until()
    }

    /// Waits until the lease has run out: no acknowledgement came in time, or the session ended. Cancel safe.
    pub async fn expired(&self) {
        let mut status = self.shared.status.subscribe();
        loop {
            let until = self.valid_until();
            if until <= ambient::now() || status.borrow_and_update().state.is_final() {
                return;
            }
            tokio::select! {
                biased;
                () = ambient::sleep_until(until) => {}
                changed = status.changed() => if changed.is_err() { return },
            }
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("valid_until", &self.valid_until()).finish()
    }
}
