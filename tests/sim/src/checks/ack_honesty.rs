//! I10 ack honesty: what a server says is durable, is.

use corral_core::zab::io::Position;
use corral_core::zab::message::{Message, VoterState};
use corral_proto::ServerId;

use super::{Check, Ghost, ensure};

pub(super) fn on_send(ghost: &Ghost, server: ServerId, message: &Message) -> Check {
    let truth = ghost.server(server);
    match message {
        Message::Ack { zxid, .. } => {
            let (mem, disk) = (truth.mem.hash_at(*zxid), truth.disk.hash_at(*zxid));
            ensure!(
                mem.is_some() && mem == disk,
                "I10 ack honesty",
                "{server:?} acknowledges {zxid:?}; its disk ends at {:?}, its log at {:?}",
                truth.disk.end(),
                truth.mem.end()
            );
        }
        Message::AckEpoch { last, base, epochs, .. } => {
            ensure!(
                // It may not know yet what was trimmed.
                *last == truth.disk.end() && base.zxid <= truth.disk.base().zxid,
                "I10 ack honesty",
                "{server:?} reports a log from {base:?} to {last:?}; on disk it is from {:?} to {:?}",
                truth.disk.base(),
                truth.disk.end()
            );
            // The base may or may not be a row of its own.
            let from = truth.disk.base().zxid;
            let rows = |table: &[Position]| table.iter().copied().filter(|p| p.zxid > from).collect::<Vec<_>>();
            ensure!(
                rows(epochs) == rows(&truth.disk.epochs()),
                "I10 ack honesty",
                "{server:?} reports epochs {epochs:?}; on disk they are {:?}",
                truth.disk.epochs()
            );
        }
        Message::Vote { state: VoterState::Looking, vote, .. } if vote.leader == server => {
            ensure!(
                vote.zxid <= truth.disk.end().zxid,
                "I10 ack honesty",
                "{server:?} votes for itself with {:?}; its disk ends at {:?}",
                vote.zxid,
                truth.disk.end()
            );
            // What is about to be truncated is on the disk still, and counts for nothing.
            ensure!(
                vote.zxid < truth.mem.base().zxid || truth.mem.hash_at(vote.zxid).is_some(),
                "I10 ack honesty",
                "{server:?} votes for itself with {:?}, which is not in its log, from {:?} to {:?}",
                vote.zxid,
                truth.mem.base(),
                truth.mem.end()
            );
        }
        _ => {}
    }
    Ok(())
}
