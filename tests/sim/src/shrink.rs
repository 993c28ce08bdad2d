//! Makes a failure smaller: leaves out faults, clients and servers, and ends the faults earlier, as long as the same
//! property breaks. What remains keeps its schedule, as far as it does not depend on what is gone.

use std::collections::BTreeSet;

use crate::options::{Reduction, SimOptions};
use crate::trace::Verbosity;
use crate::{Report, simulate_with};

/// The smallest failure that was found.
pub struct Smallest {
    /// What is left out.
    pub reduction: Reduction,
    /// The run that is left.
    pub report: Report,
    /// How many runs it took.
    pub attempts: u64,
}

struct Shrinking<'a> {
    seed: u64,
    invariant: &'static str,
    reduction: Reduction,
    report: Report,
    attempts: u64,
    attempts_max: u64,
    progress: &'a mut dyn FnMut(u64, &Report),
}

/// Reduces the failure of a seed within so many runs; `progress` is told after each. `None` if the seed does not fail.
pub fn shrink(seed: u64, attempts_max: u64, progress: &mut dyn FnMut(u64, &Report)) -> Option<Smallest> {
    let reduction = Reduction::default();
    let report = simulate_with(SimOptions::draw(seed), Verbosity::Tail);
    let invariant = report.violation.as_ref()?.invariant;
    let mut it = Shrinking { seed, invariant, reduction, report, attempts: 1, attempts_max, progress };
    loop {
        let before = it.reduction.clone();
        it.end_earlier();
        it.drop_faults();
        it.drop_clients();
        it.drop_servers();
        if it.reduction == before || it.attempts >= attempts_max {
            break;
        }
    }
    Some(Smallest { reduction: it.reduction, report: it.report, attempts: it.attempts })
}

impl Shrinking<'_> {
    /// Takes a reduction over if the run still fails in the same way.
    fn attempt(&mut self, change: impl FnOnce(&mut Reduction)) -> bool {
        if self.attempts >= self.attempts_max {
            return false;
        }
        let mut reduction = self.reduction.clone();
        change(&mut reduction);
        if reduction == self.reduction {
            return false;
        }
        self.attempts += 1;
        let report = simulate_with(SimOptions::draw(self.seed).reduced(&reduction), Verbosity::Tail);
        let fails = report.violation.as_ref().is_some_and(|v| v.invariant == self.invariant);
        if fails {
            self.reduction = reduction;
            self.report = report;
        }
        (self.progress)(self.attempts, &self.report);
        fails
    }

    /// Leaves out as many of these as possible: all, halves, quarters, ... single ones.
    fn drop_some<T: Copy + Ord>(
        &mut self,
        items: BTreeSet<T>,
        keep_one: bool,
        of: impl Fn(&mut Reduction) -> &mut BTreeSet<T>,
    ) {
        let mut items: Vec<T> = items.into_iter().collect();
        let mut size = items.len();
        while size > 0 {
            let mut at = 0;
            while at < items.len() {
                let end = (at + size).min(items.len());
                let chunk = items[at..end].to_vec();
                if chunk.len() == items.len() && keep_one {
                    break;
                }
                if self.attempt(|reduction| of(reduction).extend(chunk)) {
                    items.drain(at..end);
                } else {
                    at = end;
                }
            }
            size /= 2;
        }
    }

    fn drop_faults(&mut self) {
        let struck = self.report.struck.clone();
        self.drop_some(struck, false, |reduction| &mut reduction.skip);
    }

    fn drop_clients(&mut self) {
        let clients = (0..self.report.options.load.clients).filter(|c| !self.reduction.without_clients.contains(c));
        // Without any client nothing would be committed.
        self.drop_some(clients.collect(), true, |reduction| &mut reduction.without_clients);
    }

    fn drop_servers(&mut self) {
        for observers in 0..self.report.options.observers {
            if self.attempt(|reduction| reduction.observers = Some(observers)) {
                break;
            }
        }
        for voters in 1..self.report.options.voters {
            if self.attempt(|reduction| reduction.voters = Some(voters)) {
                break;
            }
        }
    }

    fn end_earlier(&mut self) {
        // Behind the violation nothing matters.
        let safety_ms = self.report.options.safety_ms;
        let at = self.report.virtual_ms + 1;
        if at < safety_ms {
            self.attempt(|reduction| reduction.safety_ms = Some(at));
        }
        let mut cut = self.report.options.safety_ms / 2;
        while cut > 0 {
            let shorter = self.report.options.safety_ms.saturating_sub(cut);
            if shorter == 0 || !self.attempt(|reduction| reduction.safety_ms = Some(shorter)) {
                cut /= 2;
            }
            if cut < 50 {
                break;
            }
        }
    }
}
