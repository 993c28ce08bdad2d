//! I28 liveness, the part of the election: nobody goes on to vote for somebody who is gone. A round whose winner died would
//! never end.

use std::collections::BTreeMap;

use corral_core::zab::message::{Message, VoterState};
use corral_proto::ServerId;

use super::{Check, ensure};

/// A server sends a message because time has passed. `links`: its streams, as it knows.
pub(crate) fn on_send_by_clock(server: ServerId, message: &Message, links: &BTreeMap<ServerId, u64>) -> Check {
    if let Message::Vote { round, state: VoterState::Looking, vote, .. } = message {
        let nobody = ServerId::default();
        ensure!(
            [server, nobody].contains(&vote.leader) || links.contains_key(&vote.leader),
            "I28 liveness",
            "{server:?} votes again for {:?} in round {round}, to which it has no stream any more",
            vote.leader
        );
    }
    Ok(())
}
