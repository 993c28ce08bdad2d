//! Ctrl-C and requests to end, for commands that must end in order: what comes between two waits is not lost.

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;

/// Signals since this was made. Each is given out once.
pub struct Signals {
    interrupts: tokio::signal::unix::Signal,
    terminations: tokio::signal::unix::Signal,
    hangups: tokio::signal::unix::Signal,
    /// Whether one was given out already.
    pub has_come: bool,
}

impl Signals {
    /// From now on.
    ///
    /// # Errors
    /// The system does not let us.
    pub fn new() -> Result<Signals, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::Other(format!("signals cannot be caught: {error}")));
        Ok(Signals {
            interrupts: listen(SignalKind::interrupt())?,
            terminations: listen(SignalKind::terminate())?,
            hangups: listen(SignalKind::hangup())?,
            has_come: false,
        })
    }

    /// Waits for the next. Cancel safe.
    pub async fn next(&mut self) -> Signal {
        let which = tokio::select! {
            biased;
            _ = self.interrupts.recv() => Signal::INT,
            _ = self.terminations.recv() => Signal::TERM,
            _ = self.hangups.recv() => Signal::HUP,
        };
        self.has_come = true;
        which
    }

    /// Waits for some work, unless a signal comes first or has come already.
    ///
    /// # Errors
    /// [`Failure::Cancelled`].
    pub async fn or_interrupted<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Failure> {
        if self.has_come {
            return Err(Failure::Cancelled);
        }
        tokio::select! {
            biased;
            _ = self.next() => Err(Failure::Cancelled),
            done = work => Ok(done),
        }
    }
}
