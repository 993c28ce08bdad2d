//! I6 primary integrity: a leader that opens an epoch, or proposes its first transaction, has everything that is
//! committed.

use corral_core::zab::io::Entry;
use corral_proto::ServerId;

use super::{Check, Ghost, ensure};

pub(super) fn on_propose(ghost: &Ghost, server: ServerId, entry: &Entry) -> Check {
    if entry.zxid.counter() > 1 {
        return Ok(());
    }
    let head = ghost.head();
    ensure!(
        ghost.server(server).mem.holds(head),
        "I6 primary integrity",
        "{server:?} proposes {entry:?} without {head:?}, which is committed; its log ends at {:?}",
        ghost.server(server).mem.end()
    );
    Ok(())
}
