//! A program that runs while something is held, and does not outlive it.
//!
//! It is started by way of this program ([`INNER`]), which asks the system to kill it when we die, and then becomes it: so
//! not even `kill -9` of zkcli leaves it running without what it depends on. Without a terminal it has a process group of
//! its own, and its children die with it; at a terminal it stays in ours, so that it can read from there, and only it
//! itself is killed.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ExitStatus, Stdio};

use bytes::Bytes;
use corral_recipes::{Hold, Loss};
use rustix::process::{Pid, Signal};
use tokio::io::AsyncWriteExt;

use crate::failure::Failure;
use crate::signals::Signals;

/// The first word of the command line of the process between us and the program.
pub const INNER: &str = "__run";
/// What shells exit with when there is no such program.
const NOT_FOUND: u8 = 127;
/// When it cannot be started.
const NOT_EXECUTABLE: u8 = 126;
/// Added to the number of the signal that a program died of, as shells do.
const BY_SIGNAL: i32 = 128;

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// By itself, or by a signal that was not ours.
    Exited(u8),
    /// We killed it, because what it depends on was lost.
    Killed(Loss),
}

/// A program under way. Dropped, it is killed.
pub struct Child {
    process: tokio::process::Child,
    /// Its process group, if it has one of its own.
    group: Option<Pid>,
}

impl Child {
    /// Starts a program; `input` is what it reads.
    ///
    /// # Errors
    /// No process can be started. That there is no such program shows in its exit code only.
    pub async fn start(
        program: &[String],
        environment: &[(&str, String)],
        input: Option<Bytes>,
    ) -> Result<Child, Failure> {
        let wrong = |error: std::io::Error| Failure::Other(format!("no process can be started: {error}"));
        let own = std::env::current_exe().map_err(wrong)?;
        let has_group = input.is_some() || !std::io::stdin().is_terminal();
        let mut command = tokio::process::Command::new(own);
        command.arg(INNER).arg(std::process::id().to_string()).args(program).envs(environment.iter().cloned());
        command.kill_on_drop(true);
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        if has_group {
            command.process_group(0);
        }
        let mut process = command.spawn().map_err(wrong)?;
        if let (Some(input), Some(mut pipe)) = (input, process.stdin.take()) {
            // It reads when it likes, or not at all.
            tokio::spawn(async move {
                let _ = pipe.write_all(&input).await;
            });
        }
        let group = process.id().filter(|_| has_group).and_then(|id| Pid::from_raw(id.cast_signed()));
        Ok(Child { process, group })
    }

    fn send(&mut self, signal: Signal) {
        // It may be gone already.
        let _ = match self.group {
            Some(group) => rustix::process::kill_process_group(group, signal),
            None => match self.process.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
                Some(pid) => rustix::process::kill_process(pid, signal),
                None => Ok(()),
            },
        };
    }

    /// Waits for its end, and kills it if the hold is lost before. Interrupts and requests to end are passed on to it.
    ///
    /// # Errors
    /// The system cannot be asked.
    pub async fn supervise(mut self, hold: Option<&Hold>, signals: &mut Signals) -> Result<Outcome, Failure> {
        let wrong = |error: std::io::Error| Failure::Other(format!("the program cannot be waited for: {error}"));
        let lost = async {
            match hold {
                Some(hold) => hold.lost().await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(lost);
        loop {
            tokio::select! {
                biased;
                loss = &mut lost => {
                    self.send(Signal::KILL);
                    let _ = self.process.wait().await;
                    self.group = None;
                    return Ok(Outcome::Killed(loss));
                }
                ended = self.process.wait() => {
                    // What it left running in its group is not ours to judge.
                    self.group = None;
                    return Ok(Outcome::Exited(code_of(ended.map_err(wrong)?)));
                }
                signal = signals.next() => {
                    // At a terminal it has got an interrupt itself.
                    if signal != Signal::INT || self.group.is_some() {
                        self.send(signal);
                    }
                }
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.group.is_some() {
            self.send(Signal::KILL);
        }
    }
}

/// As shells count it.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| BY_SIGNAL + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// The process between: never returns unless the program cannot be started; then with the exit code.
pub fn run_inner(mut words: impl Iterator<Item = OsString>) -> u8 {
    let parent = words.next().and_then(|word| word.to_str()?.parse::<i32>().ok());
    let Some(program) = words.next() else { return NOT_FOUND };
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        let _ = writeln!(std::io::stderr(), "zkcli: the system does not kill a program with its parent: {error}");
        return NOT_EXECUTABLE;
    }
    // It died before we asked.
    if parent.is_some() && rustix::process::getppid().map(Pid::as_raw_nonzero).map(i32::from) != parent {
        return NOT_EXECUTABLE;
    }
    let error = std::process::Command::new(&program).args(words).exec();
    let _ = writeln!(std::io::stderr(), "zkcli: {}: {error}", program.display());
    if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }
}
