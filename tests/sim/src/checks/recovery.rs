//! Recovery is exact: a restart finds what was durable, and of what was being written a prefix, in order; it invents
//! nothing. The rest of I9 and I13 stands on this.

use corral_core::zab::io::{Identity, LogOp, Membership, Position, Recovered};
use corral_proto::ServerId;

use super::{Check, Ghost, LogImage, ServerGhost, ensure};

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

/// A start after damage: everything is there (old segments may be missing whose entries the store holds), or the server
/// knows that something is missing and does not vote. Nobody can tell a rotten last frame from a torn write: then the
/// log is shorter, and the promise is the same.
pub(super) fn on_recovered_from_damage(ghost: &mut Ghost, server: ServerId, recovered: &Recovered) -> Check {
    let truth = ghost.server_mut(server);
    truth.trimming = truth.trimming.max(recovered.applied.zxid);
    // A store that was lost is filled from the log again.
    truth.persisted = truth.persisted.min(recovered.persisted);
    if recovered.identity.membership == Membership::Amnesiac {
        let same_disk = truth.identity.filter(|was| was.instance == recovered.identity.instance);
        let start_count = same_disk.map_or(0, |was| was.start_count);
        truth.identity = Some(Identity { start_count, ..recovered.identity });
        if recovered.base == recovered.applied && recovered.end == recovered.applied {
            // The log was set aside, and begun anew behind the store.
            truth.disk = LogImage::from_base(recovered.applied);
            truth.promise = recovered.promise;
            truth.pending.clear();
        } else if recovered.end.zxid < truth.disk.end().zxid && truth.disk.holds(recovered.end) {
            // Its last frame is taken for a torn write. It does not vote, so nothing depends on that.
            truth.disk.truncate(recovered.end.zxid);
            truth.pending.clear();
        }
        return on_recovered(ghost, server, recovered);
    }
    let was = truth.clone();
    if on_recovered(ghost, server, recovered).is_ok() {
        return Ok(());
    }
    let end = recovered.end;
    ensure!(
        was.disk.hash_at(end.zxid) == Some(end.hash),
        NAME,
        "{server:?} goes on after damage with a log that ends at {end:?}; it held {:?}..{:?}",
        was.disk.base(),
        was.disk.end()
    );
    let truth = ghost.server_mut(server);
    truth.disk.truncate(end.zxid);
    truth.pending.clear();
    truth.forgot = true;
    on_recovered(ghost, server, recovered)
}
