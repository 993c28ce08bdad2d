//! I18 snapshot: it holds committed state only, never less than the learner had acknowledged or executed, nor than what
//! it has in common with its leader (P11).

use corral_core::zab::io::{Position, SnapshotMeta};
use corral_proto::ServerId;

use super::{Check, Ghost, ensure};

const NAME: &str = "I18 snapshot";

pub(super) fn on_made(ghost: &Ghost, server: ServerId, position: Position) -> Check {
    ensure!(
        ghost.is_committed(position) && position.zxid <= ghost.server(server).committed,
        NAME,
        "{server:?} makes a snapshot at {position:?}; its commit watermark is {:?}",
        ghost.server(server).committed
    );
    Ok(())
}

pub(super) fn on_offered(ghost: &Ghost, leader: ServerId, learner: ServerId, meta: &SnapshotMeta) -> Check {
    let common = ghost.server(learner).mem.common(&ghost.server(leader).mem);
    ensure!(
        common.is_none_or(|common| meta.position.zxid >= common.zxid),
        NAME,
        "{leader:?} sends {learner:?} a snapshot at {:?}; their logs part after {common:?}",
        meta.position
    );
    Ok(())
}

pub(super) fn on_install(ghost: &Ghost, server: ServerId, meta: &SnapshotMeta) -> Check {
    let truth = ghost.server(server);
    let position = meta.position;
    ensure!(ghost.is_committed(position), NAME, "{server:?} installs a snapshot at {position:?}: not committed");
    ensure!(
        position.zxid >= truth.handed_out.zxid,
        NAME,
        "{server:?} installs a snapshot at {position:?} over a store at {:?}",
        truth.handed_out
    );
    let lost = truth.mem.after(position.zxid).iter().find(|p| ghost.is_committed(**p));
    ensure!(lost.is_none(), NAME, "{server:?} installs a snapshot at {position:?} and so forgets {lost:?}");
    Ok(())
}

pub(super) fn on_opened(ghost: &mut Ghost, server: ServerId, position: Position) -> Check {
    ensure!(ghost.is_committed(position), NAME, "{server:?} opens a snapshot at {position:?}: not committed");
    let truth = ghost.server_mut(server);
    ensure!(
        truth.disk.holds(position) && position.zxid >= truth.store.zxid,
        NAME,
        "{server:?} opens a snapshot at {position:?}; its store was at {:?}",
        truth.store
    );
    truth.handed_out = position;
    truth.store = position;
    truth.persisted = position.zxid;
    Ok(())
}
