//! I1 integrity and I3 log matching: an entry of any log was proposed by the leader of its epoch, with this content,
//! after this predecessor. So two logs that share an entry share all before it.

use corral_core::zab::io::{Entry, Status};
use corral_proto::ServerId;

use super::{Check, Ghost, Proposal, ensure};

pub(super) fn on_append(ghost: &mut Ghost, server: ServerId, entry: &Entry, status: &Status) -> Check {
    let previous = ghost.server(server).mem.end();
    ensure!(
        entry.hash == Entry::chain(previous.hash, entry.zxid, entry.stamp_ms, &entry.payload),
        "I3 log matching",
        "{server:?} appends {entry:?} after {previous:?}: the running hash does not follow"
    );
    if ghost.is_proposal(status, entry) {
        ghost.proposed.insert(
            entry.zxid,
            Proposal {
                leader: server,
                previous,
                hash: entry.hash,
                stamp_ms: entry.stamp_ms,
                payload: entry.payload.clone(),
            },
        );
        return Ok(());
    }
    let Some(proposal) = ghost.proposed.get(&entry.zxid) else {
        ensure!(false, "I1 integrity", "{server:?} appends {entry:?}, which nobody proposed");
        return Ok(());
    };
    ensure!(
        proposal.hash == entry.hash && proposal.previous == previous,
        "I3 log matching",
        "{server:?} appends {entry:?} with hash {:x} after {previous:?}; {:?} proposed it with {:x} after {:?}",
        entry.hash,
        proposal.leader,
        proposal.hash,
        proposal.previous
    );
    Ok(())
}
