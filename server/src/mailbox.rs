//! The queues between threads: a receiver takes everything there is at once.
//!
//! Every hop moves vectors, because wake-ups and not the protocol burn the processor. The bounds are upstream, where
//! waiting is possible: clients by the outstanding limit, peers by their windows, entries by the leader's window
//! (architecture.md, threads and queues); so pushing never waits, and no thread can wait for another in a circle.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

struct Inner<T> {
    items: Mutex<State<T>>,
    arrived: Condvar,
}

struct State<T> {
    items: Vec<T>,
    /// The receiver sleeps: a push has to wake it. Nobody pays for a wake-up while it is busy.
    sleeping: bool,
}

/// A queue with one receiver and any number of senders.
pub struct Mailbox<T>(Arc<Inner<T>>);

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Mailbox(self.0.clone())
    }
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Mailbox(Arc::new(Inner {
            items: Mutex::new(State { items: Vec::new(), sleeping: false }),
            arrived: Condvar::new(),
        }))
    }
}

impl<T> Mailbox<T> {
    /// Adds one item.
    pub fn push(&self, item: T) {
        let mut state = self.0.items.lock();
        state.items.push(item);
        self.wake(state);
    }

    /// Adds one item that can wait until the receiver is awake for another reason.
    pub fn leave(&self, item: T) {
        self.0.items.lock().items.push(item);
    }

    /// Adds items in order.
    pub fn extend(&self, items: impl IntoIterator<Item = T>) {
        let mut state = self.0.items.lock();
        state.items.extend(items);
        self.wake(state);
    }

    fn wake(&self, mut state: parking_lot::MutexGuard<'_, State<T>>) {
        let wake = std::mem::take(&mut state.sleeping);
        drop(state);
        if wake {
            self.0.arrived.notify_one();
        }
    }

    /// Wakes the receiver: for what was left.
    pub fn wake_receiver(&self) {
        self.wake(self.0.items.lock());
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.items.lock().items.is_empty()
    }

    /// Takes everything there is, which may be nothing.
    pub fn take_now(&self, into: &mut Vec<T>) {
        into.append(&mut self.0.items.lock().items);
    }

    /// Waits until there is something and the receiver was woken, but at most `timeout`. Takes nothing.
    pub fn wait(&self, timeout: Duration) {
        let mut state = self.0.items.lock();
        if state.items.is_empty() {
            state.sleeping = true;
            self.0.arrived.wait_for(&mut state, timeout);
            state.sleeping = false;
        }
    }

    /// Takes everything there is; waits at most `timeout` if there is nothing (`None`: as long as it takes).
    pub fn take(&self, into: &mut Vec<T>, timeout: Option<Duration>) {
        let mut state = self.0.items.lock();
        if state.items.is_empty() {
            state.sleeping = true;
            match timeout {
                Some(timeout) => {
                    self.0.arrived.wait_for(&mut state, timeout);
                }
                None => {
                    while state.items.is_empty() {
                        state.sleeping = true;
                        self.0.arrived.wait(&mut state);
                    }
                }
            }
            state.sleeping = false;
        }
        if into.is_empty() {
            std::mem::swap(into, &mut state.items);
        } else {
            into.append(&mut state.items);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_comes_with_what_is_pushed() {
        let mailbox = Mailbox::default();
        let sender = mailbox.clone();
        let thread = std::thread::spawn(move || {
            sender.leave(1);
            sender.push(2);
        });
        let mut taken = Vec::new();
        while taken.len() < 2 {
            mailbox.take(&mut taken, None);
        }
        thread.join().unwrap();
        assert_eq!(taken, [1, 2]);
    }

    #[test]
    fn a_receiver_takes_everything_in_order() {
        let mailbox = Mailbox::default();
        let sender = mailbox.clone();
        let thread = std::thread::spawn(move || {
            for i in 0..1000 {
                sender.push(i);
            }
        });
        let mut taken = Vec::new();
        while taken.len() < 1000 {
            mailbox.take(&mut taken, None);
        }
        thread.join().unwrap();
        assert_eq!(taken, (0..1000).collect::<Vec<_>>());
        mailbox.take(&mut taken, Some(Duration::ZERO));
        assert_eq!(taken.len(), 1000);
    }
}
