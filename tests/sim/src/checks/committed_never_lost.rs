//! I9 committed is never lost: every majority of servers that may vote contains a disk that holds all that is
//! committed. Folders that were lost and know it do not vote, so they need not hold anything.

use corral_proto::ServerId;

use super::{Check, Ghost, ensure};

pub(super) fn check(ghost: &Ghost) -> Check {
    let head = ghost.head();
    let lacking: Vec<ServerId> =
        ghost.servers().filter(|(_, s)| s.counts() && !s.disk.holds(head)).map(|(id, _)| id).collect();
    ensure!(
        lacking.len() < ghost.majority(),
        "I9 committed never lost",
        "{lacking:?} are a majority, may vote, and lack {head:?}, which is committed: {:?}",
        ghost.servers().map(|(id, s)| (id, s.disk.end(), s.counts())).collect::<Vec<_>>()
    );
    Ok(())
}
