//! The only reader of clocks. Everything else gets the time as a value, so that tests and the simulator decide it.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use corral_core::zab::io::Now;

/// Monotonic and wall time of one server.
#[derive(Clone, Debug)]
pub struct Clock {
    start: Instant,
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::new()
    }
}

impl Clock {
    /// A clock whose monotonic time begins now.
    #[expect(clippy::disallowed_methods, reason = "the one place where clocks are read")]
    pub fn new() -> Clock {
        Clock { start: Instant::now() }
    }

    /// The time. The wall clock reads 0 before 1970.
    #[expect(clippy::disallowed_methods, reason = "the one place where clocks are read")]
    pub fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            mono_ms: u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX),
            wall_ms: i64::try_from(wall.as_millis()).unwrap_or(i64::MAX),
        }
    }
}
