//! One machine, while a snapshot takes the place of its log.

use bytes::Bytes;
use corral_proto::{ServerId, Zxid};

use super::cluster::options;
use crate::zab::Zab;
use crate::zab::io::{
    Entry, Identity, Input, LogOp, MemberKind, Membership, Now, Options, Output, Outputs, Position, Promise, Recovered,
    SnapshotMeta,
};
use crate::zab::message::{IdentityReport, Message, SyncPlan, Vote, VoterState};
use crate::zab::quorum::QuorumSet;

const CLUSTER: u64 = 7;
const LEADER: ServerId = ServerId(2);
const OTHER: ServerId = ServerId(3);

fn place(entry: &Entry) -> Position {
    Position { zxid: entry.zxid, hash: entry.hash }
}

fn step(zab: &mut Zab, input: Input) -> Outputs {
    let mut out = Outputs::new();
    zab.step(Now { mono_ms: 10, wall_ms: 10 }, input, &mut out);
    out
}

fn hears(zab: &mut Zab, peer: ServerId, message: Message) -> Outputs {
    step(zab, Input::PeerMessage { peer, link: 1, message })
}

/// The number of the log operation that is asked for.
fn asked(out: &[Output], wanted: fn(&LogOp) -> bool) -> u64 {
    let seq = out.iter().find_map(|output| match output {
        Output::Log { seq, op } if wanted(op) => Some(*seq),
        _ => None,
    });
    seq.unwrap_or_else(|| panic!("no such operation in {out:?}"))
}

/// Server 1 has executed (1,0) and holds (5,0) besides, of a leader who got no further. Meanwhile an epoch 4 was committed that
/// nobody but the leader of epoch 6 held: so his snapshot at (4,3) is older than the end of this log, and not in it. As long as
/// it is being installed, a vote for (4,3) would promise what a power cut still takes away.
#[test]
fn a_vote_names_nothing_of_a_snapshot_that_is_not_installed_yet() {
    let executed = Entry::after(0, Zxid::new(1, 0), 1, Bytes::new());
    let dead = Entry::after(executed.hash, Zxid::new(5, 0), 1, Bytes::new());
    let voters = [ServerId(1), LEADER, OTHER];
    let options = Options {
        id: ServerId(1),
        quorum: QuorumSet::majority(voters),
        members: voters.map(|id| (id, MemberKind::Voter)).to_vec(),
        ..options()
    };
    let identity =
        Identity { server: ServerId(1), instance: 1, start_count: 1, cluster: CLUSTER, membership: Membership::Member };
    let recovered = Recovered {
        identity,
        promise: Promise { epoch: 5, leader: ServerId(1), instance: 1, start_count: 1 },
        end: place(&dead),
        stamp_ms: 1,
        epochs: vec![place(&executed), place(&dead)],
        tail: vec![dead.clone()],
        applied: place(&executed),
        persisted: executed.zxid,
        ..Recovered::default()
    };
    let mut zab = Zab::new(options, recovered);
    step(&mut zab, Input::Tick);
    for peer in [LEADER, OTHER] {
        step(&mut zab, Input::PeerUp { peer, link: 1, instance: peer.0, start_count: 1 });
        let report = IdentityReport { cluster: CLUSTER, membership: Membership::Member, fresh: false };
        hears(&mut zab, peer, Message::Identity(report));
    }
    let vote = Vote { leader: LEADER, zxid: Zxid::new(6, 0) };
    hears(&mut zab, LEADER, Message::Vote { round: 1, state: VoterState::Leading, vote, epoch: 6 });
    let out = hears(&mut zab, LEADER, Message::LeaderInfo { epoch: 6 });
    let seq = asked(&out, |op| matches!(op, LogOp::SetPromise(_)));
    step(&mut zab, Input::LogDone { seq });
    let position = Position { zxid: Zxid::new(4, 3), hash: 43 };
    let snapshot = SnapshotMeta { id: 1, position, stamp_ms: 1, bytes: 1 };
    let plan = SyncPlan::Snap(snapshot);
    let out = hears(&mut zab, LEADER, Message::SyncPlan { epoch: 6, point: position, plan });
    let request = out.iter().find_map(|output| match output {
        Output::FetchSnapshot { request, .. } => Some(*request),
        _ => None,
    });
    let out = step(&mut zab, Input::SnapshotFetched { request: request.expect("it is fetched"), ok: true });
    let seq = asked(&out, |op| matches!(op, LogOp::InstallSnapshot(_)));

    let votes = |out: &[Output]| -> Vec<Zxid> {
        let vote = |output: &Output| match output {
            Output::Send { message: Message::Vote { state: VoterState::Looking, vote, .. }, .. } => Some(vote.zxid),
            _ => None,
        };
        out.iter().filter_map(vote).collect()
    };
    let out = step(&mut zab, Input::PeerDown { peer: LEADER, link: 1 });
    assert_eq!(votes(&out), [executed.zxid], "what the old log and the snapshot have in common");
    step(&mut zab, Input::LogDone { seq });
    assert_eq!(zab.status().durable, position.zxid);
}
