//! What clients and recipes take from outside of themselves: the time, chance, and somebody to run their tasks.
//!
//! Ordinarily these are tokio's clock and tasks, and the kernel's randomness. A simulation puts its own in their place, for its
//! own thread ([`install`]): then an hour is over as soon as nobody has anything left to do in it, and everything that happens
//! follows from a seed. Together with [`Transport`](crate::Transport) that is all that a client notices of the world.
//!
//! For that, code that runs in both says `ambient::sleep` and not `tokio::time::sleep`, and its `select!`s are `biased`: tokio
//! draws the order of others from a source of its own.

use std::cell::RefCell;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

/// Time, chance and tasks of a simulation, in one thread.
pub trait Ambient {
    /// What time it is.
    fn now(&self) -> Instant;
    /// Wakes somebody when it is so late; gives a name to take that back by.
    fn set_timer(&self, at: Instant, waker: Waker) -> u64;
    /// Nobody waits for this timer any more.
    fn clear_timer(&self, timer: u64);
    /// Any number.
    fn random(&self) -> u64;
    /// Runs a task, beginning later.
    fn spawn(&self, task: BoxFuture<'static, ()>);
}

thread_local! {
    static AMBIENT: RefCell<Option<Rc<dyn Ambient>>> = const { RefCell::new(None) };
}

/// While it lives, clients and recipes in this thread live in a simulation.
#[must_use = "dropped, the thread is an ordinary one again"]
#[derive(Debug)]
pub struct Installed(std::marker::PhantomData<Rc<()>>);

/// Puts a simulation in the place of the world, for this thread.
pub fn install(ambient: Rc<dyn Ambient>) -> Installed {
    AMBIENT.with(|now| now.replace(Some(ambient)));
    Installed(std::marker::PhantomData)
}

impl Drop for Installed {
    fn drop(&mut self) {
        AMBIENT.with(|now| drop(now.take()));
    }
}

fn ambient() -> Option<Rc<dyn Ambient>> {
    // Also while a thread ends, and what was in it is dropped.
    AMBIENT.try_with(|now| now.borrow().clone()).ok().flatten()
}

/// What time it is, on the steady clock.
pub fn now() -> Instant {
    ambient().map_or_else(Instant::now, |ambient| ambient.now())
}

/// Waits until it is so late. Cancel safe.
pub async fn sleep_until(at: Instant) {
    if ambient().is_some() {
        Timer { at, set: None }.await;
    } else {
        tokio::time::sleep_until(at).await;
    }
}

/// Waits so long. Cancel safe.
pub async fn sleep(pause: Duration) {
    if ambient().is_some() {
        sleep_until(now() + pause).await;
    } else {
        tokio::time::sleep(pause).await;
    }
}

/// It was not there in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not in time")]
pub struct Elapsed;

/// The outcome of a future, if it is there in time; else the future is dropped.
///
/// # Errors
/// [`Elapsed`].
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    tokio::select! {
        biased;
        outcome = future => Ok(outcome),
        () = sleep(limit) => Err(Elapsed),
    }
}

/// 64 random bits: the kernel's randomness reaches us through the standard library's hash keys.
pub fn random() -> u64 {
    ambient().map_or_else(|| std::hash::RandomState::new().build_hasher().finish(), |ambient| ambient.random())
}

/// Runs a task in the background.
///
/// # Panics
/// Outside of a tokio runtime, unless a simulation runs it.
pub fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    match ambient() {
        Some(ambient) => ambient.spawn(Box::pin(task)),
        None => drop(tokio::spawn(task)),
    }
}

/// As [`spawn`], from where nothing may panic: outside of a runtime the task is dropped.
pub fn try_spawn(task: impl Future<Output = ()> + Send + 'static) {
    if ambient().is_some() || tokio::runtime::Handle::try_current().is_ok() {
        spawn(task);
    }
}

struct Timer {
    at: Instant,
    set: Option<u64>,
}

impl Timer {
    fn clear(&mut self) {
        if let (Some(timer), Some(ambient)) = (self.set.take(), ambient()) {
            ambient.clear_timer(timer);
        }
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.clear();
        match ambient() {
            Some(ambient) if ambient.now() < self.at => {
                self.set = Some(ambient.set_timer(self.at, context.waker().clone()));
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.clear();
    }
}
