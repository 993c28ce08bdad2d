//! I16 watermark sanity: a server's commit watermark never decreases while it runs, stays inside its log, and names
//! only what is committed.

use corral_core::zab::io::Status;
use corral_proto::ServerId;

use super::{Check, Ghost, ensure};

const NAME: &str = "I16 watermark sanity";

pub(super) fn on_status(ghost: &mut Ghost, server: ServerId, status: &Status) -> Check {
    let head = ghost.head();
    let truth = ghost.server_mut(server);
    ensure!(
        status.committed >= truth.committed,
        NAME,
        "{server:?} takes its commit watermark back from {:?} to {:?}",
        truth.committed,
        status.committed
    );
    truth.committed = status.committed;
    ensure!(
        status.committed <= head.zxid,
        NAME,
        "{server:?} believes {:?} committed; it is {head:?}",
        status.committed
    );
    ensure!(
        status.last == truth.mem.end(),
        NAME,
        "{server:?} believes its log ends at {:?}; it ends at {:?}",
        status.last,
        truth.mem.end()
    );
    ensure!(
        status.committed <= truth.mem.end().zxid,
        NAME,
        "{server:?} believes {:?} committed; its log ends at {:?}",
        status.committed,
        truth.mem.end()
    );
    // What is durable is a prefix of the log as it will be: not of a branch that is about to be truncated.
    ensure!(
        status.durable <= truth.mem.base().zxid || truth.mem.hash_at(status.durable).is_some(),
        NAME,
        "{server:?} believes {:?} durable, which is not in its log, from {:?} to {:?}",
        status.durable,
        truth.mem.base(),
        truth.mem.end()
    );
    ensure!(
        status.durable <= truth.disk.end().zxid.max(truth.disk.base().zxid) || !truth.pending.is_empty(),
        NAME,
        "{server:?} believes {:?} durable; its disk ends at {:?}",
        status.durable,
        truth.disk.end()
    );
    Ok(())
}
