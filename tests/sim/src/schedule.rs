//! Virtual time: a queue of events by (time, order of scheduling).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Microseconds of virtual time since the run began.
pub type Micros = u64;

/// Microseconds in a millisecond.
pub const MS: Micros = 1000;

struct Scheduled<E> {
    at: Micros,
    order: u64,
    event: E,
}

impl<E> PartialEq for Scheduled<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl<E> Eq for Scheduled<E> {}
impl<E> PartialOrd for Scheduled<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> Ord for Scheduled<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// What is still to happen.
pub struct Schedule<E> {
    now: Micros,
    order: u64,
    heap: BinaryHeap<Reverse<Scheduled<E>>>,
}

impl<E> Default for Schedule<E> {
    fn default() -> Self {
        Schedule { now: 0, order: 0, heap: BinaryHeap::new() }
    }
}

impl<E> Schedule<E> {
    /// The time of the event that is happening.
    pub fn now(&self) -> Micros {
        self.now
    }

    /// Makes `event` happen `delay` from now. Events of the same time happen in the order of these calls.
    pub fn after(&mut self, delay: Micros, event: E) {
        self.at(self.now + delay, event);
    }

    /// Makes `event` happen at a time; now, if that is past.
    pub fn at(&mut self, at: Micros, event: E) {
        self.order += 1;
        self.heap.push(Reverse(Scheduled { at: at.max(self.now), order: self.order, event }));
    }

    /// The next event; time moves to it.
    pub fn next(&mut self) -> Option<E> {
        let Reverse(next) = self.heap.pop()?;
        self.now = next.at;
        Some(next.event)
    }
}

#[cfg(test)]
mod tests {
    use super::Schedule;

    #[test]
    fn events_come_by_time_then_in_the_order_of_scheduling() {
        let mut schedule = Schedule::default();
        schedule.after(20, 'c');
        schedule.after(10, 'a');
        schedule.after(10, 'b');
        assert_eq!(schedule.next(), Some('a'));
        schedule.at(3, 'x');
        assert_eq!(schedule.next(), Some('b'));
        assert_eq!(schedule.next(), Some('x'));
        assert_eq!((schedule.now(), schedule.next(), schedule.next()), (10, Some('c'), None));
        assert_eq!(schedule.now(), 20);
    }
}
