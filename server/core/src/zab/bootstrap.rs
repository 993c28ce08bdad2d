//! How fresh servers become an ensemble, and how a server that lost its memory is kept from voting (P9).
//!
//! A server with an empty folder cannot know whether it is new or has lost everything it ever promised. It is new only
//! if nobody remembers anything: every configured voter is connected, and each is empty too, or is a member of one and the
//! same cluster that has never promised nor acknowledged (*fresh*: it got here a moment before us). Otherwise it
//! is taken to have lost its memory: it learns, and does not vote until what it may have forgotten is back.

use corral_proto::ServerId;

use super::io::{Identity, Membership, Output, Outputs};
use super::message::{IdentityReport, Message};
use super::{State, Zab};
use crate::zoo::{self, Switch};

impl Zab {
    /// The voters' reports, this server's included; `None` while one is missing.
    fn voters_reports(&self) -> Option<Vec<(ServerId, IdentityReport)>> {
        let report = |id| {
            if id == self.options.id { Some(self.report()) } else { self.peers.get(&id).and_then(|p| p.identity) }
        };
        self.options.quorum.voters().into_iter().map(|id| Some((id, report(id)?))).collect()
    }

    pub(super) fn advance_bootstrap(&mut self, out: &mut Outputs) {
        if self.identity_submitted.is_some() {
            return;
        }
        let voter = self.options.quorum.is_voter(self.options.id);
        let reports = || self.peers.iter().filter_map(|(id, p)| Some((*id, p.identity?)));
        let peer_voters = || reports().filter(|(id, _)| self.options.quorum.is_voter(*id));
        if !voter {
            // An observer has nothing to forget: it joins the cluster of the first voter that has one.
            if let Some((_, report)) = peer_voters().find(|(_, r)| r.membership == Membership::Member) {
                let identity = self.identity_as(report.cluster, Membership::Member);
                self.set_identity(identity, out);
            }
            return;
        }
        if let Some((_, report)) = peer_voters().find(|(_, r)| match r.membership {
            Membership::Empty => false,
            Membership::Member => !r.fresh,
            Membership::Amnesiac => true,
        }) {
            let forgets = zoo::broken(Switch::AmnesiaForgotten);
            let membership = if forgets { Membership::Member } else { Membership::Amnesiac };
            let identity = self.identity_as(report.cluster, membership);
            self.set_identity(identity, out);
            return;
        }
        let Some(reports) = self.voters_reports() else { return };
        let mut clusters: Vec<u64> =
            reports.iter().filter(|(_, r)| r.membership == Membership::Member).map(|(_, r)| r.cluster).collect();
        clusters.sort_unstable();
        clusters.dedup();
        let cluster = match clusters[..] {
            // Nobody has begun: the lowest id does.
            [] if reports[0].0 == self.options.id => {
                let mixed = self.options.seed ^ self.identity.instance.rotate_left(32);
                mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).max(1)
            }
            [] => return,
            [cluster] => cluster,
            // Two beginnings: an operator has to say which folder goes.
            _ => return,
        };
        // Nothing tells this from the loss of all that the voters held: so it is said.
        out.push(Output::Note(format!(
            "the data folders of all voters are new: they begin cluster {cluster:#x} with an empty tree"
        )));
        let identity = self.identity_as(cluster, Membership::Member);
        self.set_identity(identity, out);
    }

    fn identity_as(&self, cluster: u64, membership: Membership) -> Identity {
        Identity { cluster, membership, ..self.identity }
    }

    /// A server that lost even the name of its cluster learns it from a voter that remembers.
    pub(super) fn adopt_cluster(&mut self, out: &mut Outputs) {
        if self.identity.membership != Membership::Amnesiac || self.identity.cluster != 0 {
            return;
        }
        let known = self.peers.iter().find_map(|(id, p)| {
            let report = p.identity?;
            (self.options.quorum.is_voter(*id) && report.membership == Membership::Member).then_some(report.cluster)
        });
        if let Some(cluster) = known {
            let identity = self.identity_as(cluster, Membership::Amnesiac);
            self.set_identity(identity, out);
        }
    }

    /// A new identity is durable.
    pub(super) fn on_identity(&mut self, out: &mut Outputs) {
        if matches!(self.state, State::Bootstrapping) && self.identity.membership != Membership::Empty {
            self.tell_all(Message::Bootstrap { cluster: self.identity.cluster }, out);
            self.start_election(out);
        }
    }
}
