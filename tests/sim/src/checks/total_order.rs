//! I7 total order: what any server executes is a prefix of the one committed history.

use corral_core::zab::io::{Entry, Position};
use corral_proto::ServerId;

use super::{Check, Ghost, ensure};

pub(super) fn on_apply(ghost: &Ghost, server: ServerId, entry: &Entry) -> Check {
    ensure!(
        ghost.is_committed(Position { zxid: entry.zxid, hash: entry.hash }),
        "I7 total order",
        "{server:?} executes {entry:?}; committed is up to {:?}, with {:?} in its place",
        ghost.head(),
        ghost.committed_at(entry.zxid).map(|e| e.position)
    );
    Ok(())
}
