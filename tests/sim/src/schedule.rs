//! Virtual time: a queue of events by (time, order of scheduling).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Microseconds of virtual time since the run began.
pub type Micros = u64;

/// Microseconds in a millisecond.
pub const MS: Micros = 1000;

/// What is still to happen.
pub struct Schedule<E> {
    now: Micros,
    order: u64,
    /// Time, order, slot: small, since a heap moves what it holds.
    heap: BinaryHeap<Reverse<(Micros, u64, usize)>>,
    slots: Vec<Option<E>>,
    free: Vec<usize>,
}

impl<E> Default for Schedule<E> {
    fn default() -> Self {
        Schedule { now: 0, order: 0, heap: BinaryHeap::new(), slots: Vec::new(), free: Vec::new() }
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
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(event);
                slot
            }
            None => {
                self.slots.push(Some(event));
                self.slots.len() - 1
            }
        };
        self.heap.push(Reverse((at.max(self.now), self.order, slot)));
    }

    /// The next event; time moves to it.
    pub fn pop(&mut self) -> Option<E> {
        let Reverse((at, _, slot)) = self.heap.pop()?;
        self.now = at;
        self.free.push(slot);
        self.slots[slot].take()
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
        assert_eq!(schedule.pop(), Some('a'));
        schedule.at(3, 'x');
        assert_eq!(schedule.pop(), Some('b'));
        assert_eq!(schedule.pop(), Some('x'));
        assert_eq!((schedule.now(), schedule.pop(), schedule.pop()), (10, Some('c'), None));
        assert_eq!(schedule.now(), 20);
    }
}
