//! I13 apply discipline: only what is committed and durable here is executed, each entry once, in order; a store says
//! itself how far it is, and a crash takes it back to where it said it was persisted, not further.

use corral_core::zab::io::{Entry, Position, Recovered, Status};
use corral_proto::{ServerId, Zxid};

use super::{Check, Ghost, ensure};

const NAME: &str = "I13 apply discipline";

pub(super) fn on_apply(ghost: &mut Ghost, server: ServerId, entry: &Entry, status: &Status) -> Check {
    let truth = ghost.server(server);
    let last = truth.handed_out;
    let position = Position { zxid: entry.zxid, hash: entry.hash };
    ensure!(
        entry.hash == Entry::chain(last.hash, entry.zxid, entry.stamp_ms, &entry.payload),
        NAME,
        "{server:?} executes {entry:?} after {last:?}: it does not follow"
    );
    ensure!(
        entry.zxid <= status.committed,
        NAME,
        "{server:?} executes {entry:?}; its commit watermark is {:?}",
        status.committed
    );
    ensure!(truth.disk.holds(position), NAME, "{server:?} executes {entry:?}; its disk ends at {:?}", truth.disk.end());
    ghost.server_mut(server).handed_out = position;
    Ok(())
}

pub(super) fn on_executed(ghost: &mut Ghost, server: ServerId, position: Position, persisted: Zxid) -> Check {
    let truth = ghost.server_mut(server);
    ensure!(
        position.zxid >= truth.store.zxid && position.zxid <= truth.handed_out.zxid,
        NAME,
        "{server:?}'s store is at {position:?}, after {:?}; handed out is {:?}",
        truth.store,
        truth.handed_out
    );
    ensure!(
        persisted >= truth.persisted && persisted <= position.zxid,
        NAME,
        "{server:?}'s store is at {position:?} and persisted {persisted:?} after {:?}",
        truth.persisted
    );
    truth.store = position;
    truth.persisted = persisted;
    ensure!(ghost.is_committed(position), NAME, "{server:?}'s store is at {position:?}, which is not committed");
    Ok(())
}

pub(super) fn on_recovered(ghost: &mut Ghost, server: ServerId, recovered: &Recovered) -> Check {
    let applied = recovered.applied;
    ensure!(ghost.is_committed(applied), NAME, "{server:?} starts with a store at {applied:?}, which is not committed");
    let truth = ghost.server_mut(server);
    ensure!(
        applied.zxid >= truth.persisted,
        NAME,
        "{server:?} starts with a store at {applied:?}; it had persisted {:?}",
        truth.persisted
    );
    truth.handed_out = applied;
    truth.store = applied;
    truth.persisted = recovered.persisted;
    Ok(())
}
