//! I2 unique establishment: an epoch has one leader, one process of it, one beginning.

use corral_core::zab::io::Entry;
use corral_proto::ServerId;

use super::ghost::Established;
use super::{Check, Ghost, ensure};

pub(super) fn on_propose(ghost: &mut Ghost, server: ServerId, process: u64, entry: &Entry) -> Check {
    let epoch = entry.zxid.epoch();
    if entry.zxid.counter() == 0 {
        let previous = ghost.server(server).mem.end();
        let former = ghost.established.insert(epoch, Established { leader: server, process, previous });
        ensure!(
            former.is_none(),
            "I2 unique establishment",
            "{server:?} (process {process}) opens epoch {epoch}, which {former:?} had opened"
        );
        return Ok(());
    }
    let Some(established) = ghost.established.get(&epoch) else {
        ensure!(false, "I2 unique establishment", "{server:?} proposes {entry:?} in an epoch that was never opened");
        return Ok(());
    };
    ensure!(
        established.leader == server && established.process == process,
        "I2 unique establishment",
        "{server:?} (process {process}) proposes {entry:?} in the epoch of {established:?}"
    );
    Ok(())
}
