//! Three protocol machines without disks and sockets: what is written is durable at once, what is sent arrives at once.

use std::collections::VecDeque;

use corral_core::zab::quorum::QuorumSet;
use corral_core::zab::{
    Identity, Input, MemberKind, Membership, Now, Options, Output, Phase, Position, Recovered, Role, Zab,
};
use corral_proto::ServerId;

use crate::{Operation, value};

const SERVERS: u64 = 3;
/// Ticks of 10 ms within which they have a leader.
const TICKS_MAX: u64 = 1_000;

struct Ensemble {
    machines: Vec<Zab>,
    inputs: VecDeque<(usize, Input)>,
    now: Now,
    /// Entries that each has executed.
    executed: Vec<u64>,
}

impl Ensemble {
    fn new() -> Ensemble {
        let ids = || (1..=SERVERS).map(ServerId);
        let machine = |id: ServerId| {
            let identity =
                Identity { server: id, instance: id.0, start_count: 1, cluster: 7, membership: Membership::Member };
            let options = Options {
                id,
                quorum: QuorumSet::majority(ids()),
                members: ids().map(|id| (id, MemberKind::Voter)).collect(),
                sync_timeout_ms: 2_000,
                init_timeout_ms: 10_000,
                ping_interval_ms: 200,
                election_quiet_ms: 20,
                tail_cache_bytes: 1 << 20,
                window_bytes: 1 << 20,
                learner_window_bytes: 1 << 20,
                message_bytes: 1 << 16,
                snapshot_threshold_bytes: 1 << 40,
                counter_limit: u32::MAX - (1 << 24),
                seed: id.0,
            };
            Zab::new(options, Recovered { identity, epochs: vec![Position::default()], ..Recovered::default() })
        };
        let mut ensemble = Ensemble {
            machines: ids().map(machine).collect(),
            inputs: VecDeque::new(),
            now: Now { mono_ms: 1, wall_ms: 1_000 },
            executed: vec![0; SERVERS as usize],
        };
        for at in ids() {
            for peer in ids().filter(|peer| *peer != at) {
                let up = Input::PeerUp { peer, link: 1, instance: peer.0, start_count: 1 };
                ensemble.inputs.push_back((index(at), up));
            }
        }
        ensemble.run();
        for _ in 0..TICKS_MAX {
            ensemble.now.mono_ms += 10;
            (0..ensemble.machines.len()).for_each(|at| ensemble.inputs.push_back((at, Input::Tick)));
            ensemble.run();
            if ensemble.machines.iter().all(|machine| machine.status().phase == Phase::Broadcast) {
                return ensemble;
            }
        }
        panic!("no leader within {TICKS_MAX} ticks");
    }

    /// Steps until nothing is left to do.
    fn run(&mut self) {
        let mut outputs = Vec::new();
        while let Some((at, input)) = self.inputs.pop_front() {
            self.machines[at].step(self.now, input, &mut outputs);
            for output in outputs.drain(..) {
                match output {
                    Output::Log { seq, .. } => self.inputs.push_back((at, Input::LogDone { seq })),
                    Output::Send { peer, link, message } => {
                        let from = ServerId(at as u64 + 1);
                        self.inputs.push_back((index(peer), Input::PeerMessage { peer: from, link, message }));
                    }
                    Output::Apply(entries) => {
                        self.executed[at] += entries.len() as u64;
                        let zxid = entries.last().expect("never empty").zxid;
                        self.inputs.push_back((at, Input::Applied { zxid, persisted: zxid, digest: None }));
                    }
                    Output::Fatal(why) => panic!("server {}: {why}", at + 1),
                    Output::ReadLog { .. } | Output::MakeSnapshot { .. } | Output::FetchSnapshot { .. } => {
                        panic!("nobody misses anything here: {output:?}")
                    }
                    // What clients, operators and the log's owner are told.
                    _ => {}
                }
            }
        }
    }
}

fn index(server: ServerId) -> usize {
    server.0 as usize - 1
}

/// A write of a follower's client, from its proposal until all three have executed it.
pub fn commit() -> Operation {
    let mut ensemble = Ensemble::new();
    let follower = (ensemble.machines.iter())
        .position(|machine| machine.status().role == Role::Following)
        .expect("two of three follow");
    let payload = value();
    Box::new(move || {
        let before = ensemble.executed.clone();
        ensemble.inputs.push_back((follower, Input::Propose { payloads: vec![payload.clone()] }));
        ensemble.run();
        for (now, before) in ensemble.executed.iter().zip(before) {
            assert_eq!(*now, before + 1, "a write that was not executed once by each");
        }
    })
}
