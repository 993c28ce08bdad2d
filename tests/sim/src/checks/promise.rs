//! I11 promise: it never decreases, counts once, is on disk before anybody hears of it; after it nothing of an older
//! epoch is acknowledged. A server that forgot one votes only when nobody can count that one any more (P9).

use corral_core::zab::io::{LogOp, Promise};
use corral_core::zab::message::Message;
use corral_proto::ServerId;

use super::{Check, Ghost, ensure};

const NAME: &str = "I11 promise";

pub(super) fn on_submit(ghost: &mut Ghost, server: ServerId, promise: &Promise) -> Check {
    let truth = ghost.server_mut(server);
    ensure!(
        promise.epoch >= truth.promise_submitted,
        NAME,
        "{server:?} submits {promise:?} after one of epoch {}",
        truth.promise_submitted
    );
    truth.promise_submitted = promise.epoch;
    Ok(())
}

pub(super) fn on_durable(ghost: &Ghost, server: ServerId, op: &LogOp) -> Check {
    let LogOp::SetPromise(promise) = op else { return Ok(()) };
    let former = ghost.server(server).promise;
    ensure!(promise.epoch > former.epoch || *promise == former, NAME, "{server:?} writes {promise:?} over {former:?}");
    Ok(())
}

/// Notes what is on a disk now.
pub(super) fn remember(ghost: &mut Ghost, server: ServerId) {
    let promise = ghost.server(server).promise;
    let highest = ghost.promises.entry(server).or_default();
    *highest = (*highest).max(promise);
}

pub(super) fn on_member_again(ghost: &Ghost, server: ServerId, leading: &[Promise]) -> Check {
    let truth = ghost.server(server);
    let (now, ever) = (truth.promise, ghost.promises.get(&server).copied().unwrap_or_default());
    // An observer's never counted.
    ensure!(
        !truth.voter || ever.epoch <= now.epoch || !leading.contains(&ever),
        NAME,
        "{server:?} votes again with {now:?}; it forgot {ever:?}, and whom it made that to still counts it"
    );
    Ok(())
}

pub(super) fn on_send(ghost: &mut Ghost, server: ServerId, peer: ServerId, message: &Message) -> Check {
    let truth = ghost.server(server);
    let on_disk = truth.promise;
    match message {
        Message::LeaderInfo { epoch } => ensure!(
            on_disk.epoch == *epoch && on_disk.leader == server,
            NAME,
            "{server:?} proposes epoch {epoch} with {on_disk:?} on disk"
        ),
        Message::AckEpoch { epoch, counts, .. } => ensure!(
            on_disk.epoch == *epoch && (!counts || on_disk.leader == peer && truth.counts()),
            NAME,
            "{server:?} answers epoch {epoch} of {peer:?} (counts: {counts}) with {on_disk:?} on disk"
        ),
        Message::Ack { epoch, .. } | Message::Pong { epoch, .. } => ensure!(
            *epoch >= truth.promise_submitted,
            NAME,
            "{server:?} sends {message:?} after it promised epoch {}",
            truth.promise_submitted
        ),
        _ => {}
    }
    Ok(())
}
