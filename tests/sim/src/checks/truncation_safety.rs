//! I14 truncation safety: nothing executed and nothing committed is cut off; the log is trimmed only below what the
//! store has persisted (P27).

use corral_core::zab::io::Position;
use corral_proto::ServerId;

use super::{Check, Ghost, ensure};

const NAME: &str = "I14 truncation safety";

pub(super) fn on_truncate(ghost: &Ghost, server: ServerId, to: Position) -> Check {
    let truth = ghost.server(server);
    ensure!(
        truth.mem.hash_at(to.zxid) == Some(to.hash),
        NAME,
        "{server:?} truncates to {to:?}, which its log (to {:?}) does not have",
        truth.mem.end()
    );
    ensure!(
        to.zxid >= truth.handed_out.zxid,
        NAME,
        "{server:?} truncates to {to:?}; it executed {:?}",
        truth.handed_out
    );
    let lost = truth.mem.after(to.zxid).iter().find(|p| ghost.is_committed(**p));
    ensure!(lost.is_none(), NAME, "{server:?} truncates to {to:?}: {lost:?} is committed");
    Ok(())
}

pub(super) fn on_trim(ghost: &Ghost, server: ServerId, base: Position) -> Check {
    let truth = ghost.server(server);
    ensure!(
        base.zxid <= truth.persisted && ghost.is_committed(base),
        NAME,
        "{server:?} trims its log up to {base:?}; its store has persisted {:?}",
        truth.persisted
    );
    ensure!(
        truth.disk.hash_at(base.zxid) == Some(base.hash),
        NAME,
        "{server:?} trims its log up to {base:?}, which it does not have"
    );
    Ok(())
}
