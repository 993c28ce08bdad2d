//! I12 no ghost message: what leaves belongs to the relation that the sender has, not to a former one; and what arrives
//! over a stream that is gone changes nothing (P5).

use corral_core::zab::io::{Role, Status};
use corral_core::zab::message::Message;
use corral_proto::ServerId;

use super::{Check, ensure};

/// A core took in a message of a stream that it knows to be gone.
pub(crate) fn on_late(server: ServerId, what: &str, before: &Status, after: &Status, outputs: usize) -> Check {
    let state = |s: &Status| (s.role, s.phase, s.leader, s.epoch, s.last, s.durable, s.committed);
    ensure!(
        outputs == 0 && state(before) == state(after),
        "I12 no ghost message",
        "{server:?} heeds {what}, of a stream that is gone: {outputs} outputs, {:?} after {:?}",
        state(after),
        state(before)
    );
    Ok(())
}

pub(super) fn on_send(server: ServerId, message: &Message, before: &Status, after: &Status) -> Check {
    let (epoch, leads) = match message {
        Message::LeaderInfo { .. } => return Ok(()),
        Message::Entries { epoch, .. }
        | Message::SyncPlan { epoch, .. }
        | Message::UpToDate { epoch, .. }
        | Message::Commit { epoch, .. }
        | Message::Ping { epoch, .. }
        | Message::ReadPoint { epoch, .. }
        | Message::DigestMismatch { epoch, .. }
        | Message::Welcome { epoch, .. }
        | Message::Handover { epoch } => (*epoch, true),
        Message::Ack { epoch, .. }
        | Message::Pong { epoch, .. }
        | Message::Forward { epoch, .. }
        | Message::ReadIndex { epoch, .. } => (*epoch, false),
        Message::Identity(_)
        | Message::Bootstrap { .. }
        | Message::Vote { .. }
        | Message::FollowerInfo { .. }
        | Message::AckEpoch { .. }
        | Message::Reject { .. } => return Ok(()),
    };
    let fits = |status: &Status| {
        let role = match status.role {
            Role::Leading => leads,
            Role::Following | Role::Observing => !leads,
            Role::Looking | Role::Bootstrapping => false,
        };
        role && status.epoch == epoch
    };
    ensure!(
        fits(before) || fits(after),
        "I12 no ghost message",
        "{server:?} sends {message:?} as {:?} of epoch {}, then {:?} of epoch {}",
        before.role,
        before.epoch,
        after.role,
        after.epoch
    );
    Ok(())
}
