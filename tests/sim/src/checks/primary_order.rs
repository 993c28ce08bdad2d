//! I4 local primary order and I5 global primary order: in any log, epochs do not decrease, and the entries of an epoch
//! are (e,0), (e,1), ... without a gap.

use corral_core::zab::io::Entry;
use corral_proto::ServerId;

use super::{Check, Ghost, ensure};

pub(super) fn on_append(ghost: &Ghost, server: ServerId, entry: &Entry) -> Check {
    let previous = ghost.server(server).mem.end().zxid;
    let (old, new) = (previous.epoch(), entry.zxid.epoch());
    ensure!(new >= old, "I5 global primary order", "{server:?} appends {entry:?} after {previous:?}");
    let follows =
        if new == old { entry.zxid.counter() == previous.counter().wrapping_add(1) } else { entry.zxid.counter() == 0 };
    ensure!(follows, "I4 local primary order", "{server:?} appends {entry:?} after {previous:?}");
    Ok(())
}
