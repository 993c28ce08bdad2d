//! The shortest part of a program that still shows a difference, as far as there is time to look.

use std::time::{Duration, Instant};

use crate::program::Step;

/// Steps that `fails` still says of, found by leaving out more and more (ddmin).
pub fn shrink(program: Vec<Step>, budget: Duration, mut fails: impl FnMut(&[Step]) -> bool) -> Vec<Step> {
    let deadline = Instant::now() + budget;
    let mut best = program;
    // Most differences need one connection only.
    if let Some(slot) = best.last().and_then(Step::slot) {
        let own: Vec<Step> = best.iter().filter(|step| step.slot() == Some(slot)).cloned().collect();
        if fails(&own) {
            best = own;
        }
    }
    let mut parts = 2;
    while best.len() > 1 && Instant::now() < deadline {
        let size = best.len().div_ceil(parts);
        let mut shorter = None;
        for from in (0..best.len()).step_by(size) {
            if Instant::now() >= deadline {
                break;
            }
            // The last step is the one that differs: without it there is nothing to see.
            let to = (from + size).min(best.len() - 1);
            if from >= to {
                continue;
            }
            let candidate: Vec<Step> = best[..from].iter().chain(&best[to..]).cloned().collect();
            if fails(&candidate) {
                shorter = Some(candidate);
                break;
            }
        }
        match shorter {
            Some(candidate) => {
                best = candidate;
                parts = parts.saturating_sub(1).max(2);
            }
            None if size == 1 => break,
            None => parts = (parts * 2).min(best.len()),
        }
    }
    best
}
