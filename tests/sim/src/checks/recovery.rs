//! Recovery is exact: a restart finds what was durable, and of what was being written a prefix, in order; it invents
//! nothing. The rest of I9 and I13 stands on this.

use corral_core::zab::io::{LogOp, Position, Recovered};
use corral_proto::ServerId;

use super::{Check, Ghost, ServerGhost, ensure};

const NAME: &str = "recovery is exact";

/// Whether the disk as the ghost knows it is what was found.
fn matches(truth: &ServerGhost, recovered: &Recovered) -> bool {
    truth.disk.end() == recovered.end
        && truth.disk.base() == recovered.base
        && truth.promise == recovered.promise
        && truth.disk.epochs() == recovered.epochs
}

pub(super) fn on_recovered(ghost: &mut Ghost, server: ServerId, recovered: &Recovered) -> Check {
    let truth = ghost.server_mut(server);
    let before = truth.clone();
    let mut candidate = truth.clone();
    // Everything durable, then one more piece of what was being written at a time.
    let mut found = matches(&candidate, recovered).then(|| candidate.clone());
    for (_, op) in &before.pending {
        if found.is_some() {
            break;
        }
        match op {
            LogOp::Append(entries) => {
                for entry in entries {
                    candidate.disk.append(Position { zxid: entry.zxid, hash: entry.hash });
                    if found.is_none() && matches(&candidate, recovered) {
                        found = Some(candidate.clone());
                    }
                }
            }
            op => {
                candidate.make_durable(op);
                found = matches(&candidate, recovered).then(|| candidate.clone());
            }
        }
    }
    let Some(mut found) = found else {
        ensure!(
            false,
            NAME,
            "{server:?} starts with {:?}..{:?} {:?} epochs {:?}; on disk were {:?}..{:?} {:?} epochs {:?}; \
             being written {:?}",
            recovered.base,
            recovered.end,
            recovered.promise,
            recovered.epochs,
            before.disk.base(),
            before.disk.end(),
            before.promise,
            before.disk.epochs(),
            before.pending
        );
        return Ok(());
    };
    found.pending.clear();
    found.mem = found.disk.clone();
    found.promise_submitted = found.promise.epoch;
    found.identity = Some(recovered.identity);
    found.running = true;
    let mut expected = recovered.tail.first().map(|e| e.zxid);
    for entry in &recovered.tail {
        ensure!(
            found.disk.hash_at(entry.zxid) == Some(entry.hash) && expected == Some(entry.zxid),
            NAME,
            "{server:?} starts with {entry:?} in its cache, which its log does not have there"
        );
        expected = found.disk.after(entry.zxid).first().map(|p| p.zxid);
    }
    let cached_from = recovered.tail.first().map(|e| e.zxid);
    let first_unapplied = found.disk.after(recovered.applied.zxid).first().map(|p| p.zxid);
    ensure!(
        expected.is_none() && (first_unapplied.is_none() || cached_from <= first_unapplied),
        NAME,
        "{server:?} starts with entries {cached_from:?}.. in its cache; its store is at {:?}, its log ends at {:?}",
        recovered.applied,
        recovered.end
    );
    if let (Some(was), now) = (before.identity, recovered.identity) {
        ensure!(
            was.instance == now.instance && now.start_count > was.start_count,
            NAME,
            "{server:?} was {was:?} and starts as {now:?}"
        );
    }
    *ghost.server_mut(server) = found;
    Ok(())
}
