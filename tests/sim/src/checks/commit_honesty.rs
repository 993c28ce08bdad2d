//! I15 commit honesty: a leader calls committed what is of its own epoch and on the disks of a majority now; and what
//! one leader commits, every later leader has. Extends the committed history.

use corral_core::zab::io::{Position, Role, Status};
use corral_proto::ServerId;

use super::{Check, CommittedEntry, Ghost, ensure};

const NAME: &str = "I15 commit honesty";

pub(super) fn on_status(ghost: &mut Ghost, server: ServerId, before: &Status, status: &Status) -> Check {
    let head = ghost.head();
    // A leader may commit and make way in one step.
    let leads = before.role == Role::Leading || status.role == Role::Leading;
    if !leads || status.committed <= head.zxid {
        return Ok(());
    }
    let zxid = status.committed;
    // The same step may have begun to look for the next epoch (P17).
    let own = ghost.established.get(&zxid.epoch()).is_some_and(|e| e.leader == server);
    ensure!(own && zxid.epoch() <= status.epoch, NAME, "{server:?} leads epoch {} and commits {zxid:?}", status.epoch);
    let mem = &ghost.server(server).mem;
    let Some(hash) = mem.hash_at(zxid) else {
        ensure!(false, NAME, "{server:?} commits {zxid:?}; its log ends at {:?}", mem.end());
        return Ok(());
    };
    let position = Position { zxid, hash };
    let holders: Vec<ServerId> =
        ghost.servers().filter(|(_, s)| s.voter && s.disk.holds(position)).map(|(id, _)| id).collect();
    // A disk that is lost held it when it said so, and does not vote any more: as in I9.
    let lost = ghost.servers().filter(|(_, s)| s.voter && (!s.counts() || s.forgot) && !s.disk.holds(position)).count();
    ensure!(
        holders.len() + lost >= ghost.majority(),
        NAME,
        "{server:?} commits {position:?}, which is on the disks of {holders:?} only"
    );
    ensure!(
        mem.holds(head),
        "I6 primary integrity",
        "{server:?} commits {position:?} without {head:?}, which is committed"
    );
    let later = ghost
        .established
        .range(zxid.epoch() + 1..)
        .find(|(_, established)| !ghost.is_prefix(position, established.previous));
    ensure!(
        later.is_none(),
        "I6 primary integrity",
        "{server:?} commits {position:?}; the leader of a later epoch began without it: {later:?}"
    );
    let new: Vec<CommittedEntry> = mem
        .after(head.zxid)
        .iter()
        .take_while(|p| p.zxid <= zxid)
        .map(|position| {
            let proposal = &ghost.proposed[&position.zxid];
            CommittedEntry { position: *position, stamp_ms: proposal.stamp_ms, payload: proposal.payload.clone() }
        })
        .collect();
    for entry in &new {
        let stamp = ghost.committed.last().map_or(i64::MIN, |e| e.stamp_ms);
        ensure!(entry.stamp_ms >= stamp, NAME, "{:?} is stamped before its predecessor", entry.position);
        ghost.committed.push(entry.clone());
    }
    Ok(())
}
