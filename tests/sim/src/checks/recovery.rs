//! Recovery is exact: a restart finds what was durable, and of what was being written a prefix, in order; it invents
//! nothing. The rest of I9 and I13 stands on this.

use corral_core::zab::io::{LogOp, Membership, Position, Recovered};
use corral_proto::ServerId;

use super::{Check, Ghost, ServerGhost, ensure};

const NAME: &str = "recovery is exact";

/// The disk as the ghost knows it, if it is what was found; an interrupted trim may have dropped more.
fn matching(truth: &ServerGhost, recovered: &Recovered) -> Option<ServerGhost> {
    let mut truth = truth.clone();
    let base = recovered.base;
    if base != truth.disk.base() && base.zxid <= truth.trimming && truth.disk.hash_at(base.zxid) == Some(base.hash) {
        truth.disk.trim(base);
    }
    let same = truth.disk.end() == recovered.end
        && truth.disk.base() == recovered.base
        && truth.promise == recovered.promise
        && truth.disk.epochs() == recovered.epochs;
    same.then_some(truth)
}

pub(super) fn on_recovered(ghost: &mut Ghost, server: ServerId, recovered: &Recovered) -> Check {
    let truth = ghost.server_mut(server);
    let before = truth.clone();
    let mut candidate = truth.clone();
    // Everything durable, then one more piece of what was being written at a time.
    let mut found = matching(&candidate, recovered);
    for (_, op) in &before.pending {
        if found.is_some() {
            break;
        }
        match op {
            LogOp::Append(entries) => {
                for entry in entries {
                    candidate.disk.append(Position { zxid: entry.zxid, hash: entry.hash });
                    found = found.or_else(|| matching(&candidate, recovered));
                }
            }
            op => {
                candidate.make_durable(op);
                found = matching(&candidate, recovered);
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
    let memberships = before.pending.iter().filter_map(|(_, op)| match op {
        LogOp::SetIdentity(identity) => Some(identity.membership),
        _ => None,
    });
    let expected = [before.identity.map_or(Membership::Empty, |i| i.membership)];
    ensure!(
        expected.into_iter().chain(memberships).any(|m| m == recovered.identity.membership),
        NAME,
        "{server:?} starts as {:?}; it was {expected:?}",
        recovered.identity.membership
    );
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
