//! I24, the leader's part (P24): a read point is named only when a majority has answered a ping that left after the
//! question came, and it is not before anything that anybody had called committed by then.

use std::collections::BTreeMap;

use corral_proto::{ServerId, Zxid};

use super::session_safety::{Leadership, Rounds};
use super::{Check, Ghost, ensure};
use crate::schedule::Micros;

const NAME: &str = "I24 sync read";

/// Who asks a process: itself for its clients, or a peer.
pub(crate) type Asker = Option<ServerId>;

/// When each question came, and what was committed then. Who joins again asks again what was not answered; any round since
/// the first time will do.
#[derive(Default)]
pub(super) struct Questions(BTreeMap<(u64, Asker, u64), (Micros, Zxid)>);

impl Questions {
    /// A question is about to be taken in by a process.
    pub(super) fn on_asked(&mut self, ghost: &Ghost, process: u64, asker: Asker, tag: u64, now: Micros) {
        self.0.entry((process, asker, tag)).or_insert((now, ghost.head().zxid));
    }

    /// A leader's process names a read point.
    pub(super) fn on_named(
        &self,
        (ghost, rounds): (&Ghost, &Rounds),
        (process, epoch): Leadership,
        (asker, tag): (Asker, u64),
        point: Zxid,
    ) -> Check {
        let Some((asked, head)) = self.0.get(&(process, asker, tag)).copied() else {
            ensure!(false, NAME, "process {process} names a read point that {asker:?} did not ask for: {tag}");
            return Ok(());
        };
        ensure!(
            point >= head,
            NAME,
            "process {process} leads epoch {epoch} and names {point:?} to {asker:?}; {head:?} was committed when it was asked"
        );
        let answered = |server: ServerId| rounds.asked((process, epoch), server).is_some_and(|left| left >= asked);
        let others = ghost.servers().filter(|(id, s)| s.voter && answered(*id)).count();
        let own = 1;
        ensure!(
            own + others >= ghost.majority(),
            NAME,
            "process {process} leads epoch {epoch} and names {point:?} to {asker:?}, who asked at {asked} us; {others} others \
             have answered a ping that left since"
        );
        Ok(())
    }
}
