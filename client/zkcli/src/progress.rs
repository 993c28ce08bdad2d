//! How far long work is, for a person at a terminal: on standard error, and never in a pipe.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::run::Runner;

/// Work that takes longer than this shows its progress.
const AFTER: Duration = Duration::from_secs(1);
/// Pictures a second.
const PER_SECOND: u8 = 5;

/// A bar, or a number that counts up. Taken away when it is dropped.
pub struct Progress {
    what: &'static str,
    total: Option<u64>,
    began: Instant,
    bar: Option<ProgressBar>,
    is_on: bool,
}

impl Progress {
    #[expect(clippy::disallowed_methods, reason = "shows a person how long something takes; decides nothing")]
    fn now() -> Instant {
        Instant::now()
    }

    /// Begins; `total`: how many znodes there are, if that is known.
    pub fn new(runner: &Runner, what: &'static str, total: Option<u64>) -> Progress {
        let is_on = std::io::stderr().is_terminal() && !runner.is_quiet();
        Progress { what, total, began: Progress::now(), bar: None, is_on }
    }

    /// As [`Progress::new`], for what prints as it goes: only if that goes elsewhere.
    pub fn beside_output(runner: &Runner, what: &'static str) -> Progress {
        let mut progress = Progress::new(runner, what, None);
        progress.is_on &= !std::io::stdout().is_terminal();
        progress
    }

    /// So many znodes are done.
    pub fn at(&mut self, count: u64) {
        if !self.is_on {
            return;
        }
        if self.bar.is_none() && Progress::now() < self.began + AFTER {
            return;
        }
        let (total, what) = (self.total, self.what);
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(PER_SECOND));
            let template = match total {
                Some(_) => "{msg} {bar:40} {pos} of {len} znodes, {eta} left",
                None => "{msg} {pos} znodes, {per_sec}",
            };
            // A template that cannot be read shows the standard one.
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.with_style(style).with_message(what)
        });
        bar.set_position(count);
    }

    /// Takes it away.
    pub fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// `7 bytes`, `12.3 KiB`
pub fn human_bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        _ => indicatif::BinaryBytes(bytes).to_string(),
    }
}

/// `1 znode`, `2 znodes`
pub fn znodes(count: impl TryInto<u64>) -> String {
    match count.try_into().unwrap_or(u64::MAX) {
        1 => "1 znode".to_owned(),
        n => format!("{n} znodes"),
    }
}
