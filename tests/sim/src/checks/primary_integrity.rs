//! I6 primary integrity: a leader that opens an epoch, or proposes its first transaction, has everything that was
//! committed in earlier epochs. (Of later ones it may not know yet: others have left it, and it commits no more.)

use corral_core::zab::io::Entry;
use corral_proto::ServerId;

use super::{Check, Ghost, ensure};

pub(super) fn on_propose(ghost: &Ghost, server: ServerId, entry: &Entry) -> Check {
    if entry.zxid.counter() > 1 {
        return Ok(());
    }
    let earlier = ghost.committed.partition_point(|e| e.position.zxid.epoch() < entry.zxid.epoch());
    let head = ghost.committed[..earlier].last().map(|e| e.position).unwrap_or_default();
    ensure!(
        ghost.server(server).mem.holds(head),
        "I6 primary integrity",
        "{server:?} proposes {entry:?} without {head:?}, which is committed; its log ends at {:?}",
        ghost.server(server).mem.end()
    );
    Ok(())
}
