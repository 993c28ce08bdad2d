//! What servers say to each other. The codec (bytes of a frame) is below the types.

use bytes::Bytes;
use corral_proto::{ServerId, SessionId, Zxid};

use super::io::{Entry, Membership, Position, SnapshotMeta};

/// A vote (fast leader election): the proposed leader and how recent its durable log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vote {
    /// The proposed leader.
    pub leader: ServerId,
    /// Its durable log end.
    pub zxid: Zxid,
}

/// What a server that votes is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoterState {
    /// Electing.
    Looking,
    /// Following the vote's leader.
    Following,
    /// Leading.
    Leading,
}

/// How a learner gets the leader's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncPlan {
    /// The learner's log is a prefix of the leader's: entries follow.
    Diff,
    /// The learner drops what is after the match point first.
    Trunc,
    /// The learner installs this snapshot first; entries after it follow.
    Snap(SnapshotMeta),
}

/// Who is asking to be bootstrapped, and with what (P9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdentityReport {
    /// Cluster; 0 before bootstrap.
    pub cluster: u64,
    /// Worth of the data folder.
    pub membership: Membership,
    /// A member that never promised, never acknowledged: it may still be joined by fresh servers.
    pub fresh: bool,
}

/// One message. Names are the protocol's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// First on every stream, and again whenever it changes.
    Identity(IdentityReport),
    /// The lowest id coined a cluster: join it, if you are empty.
    Bootstrap {
        /// The new cluster.
        cluster: u64,
    },
    /// Election.
    Vote {
        /// Round (logical clock) of the sender.
        round: u64,
        /// What the sender does.
        state: VoterState,
        /// Its vote.
        vote: Vote,
        /// Epoch of its relation, if it follows or leads.
        epoch: u32,
    },
    /// Learner to leader, first of discovery.
    FollowerInfo {
        /// Accepted epoch.
        promise: u32,
        /// Whether the sender counts (a voter and a member).
        voter: bool,
    },
    /// Leader proposes an epoch.
    LeaderInfo {
        /// The epoch.
        epoch: u32,
    },
    /// Learner promised, and says what its log holds (P4, P10).
    AckEpoch {
        /// The epoch promised.
        epoch: u32,
        /// Whether the promise counts towards this leader's quorum (P6).
        counts: bool,
        /// Where its log begins.
        base: Position,
        /// Where its log ends (durable).
        last: Position,
        /// What its store contains.
        applied: Zxid,
        /// Epoch table: the last position of each epoch in its log, ascending, base first.
        epochs: Vec<Position>,
        /// The latest entry at which it knows trees to have differed with no majority of equal ones (P35); zxid 0 for none.
        doubt: Zxid,
    },
    /// The receiver of LeaderInfo or of anything of an old epoch promised a higher one (P8).
    Reject {
        /// The promise.
        promise: u32,
    },
    /// How the learner catches up, and from where.
    SyncPlan {
        /// The leader's epoch.
        epoch: u32,
        /// The last position both logs share (for Snap: the snapshot's).
        point: Position,
        /// How.
        plan: SyncPlan,
    },
    /// Consecutive entries after `prev`. History and live traffic alike.
    Entries {
        /// The leader's epoch.
        epoch: u32,
        /// The position they follow.
        prev: Position,
        /// At least one.
        entries: Vec<Entry>,
        /// Commit watermark of the leader.
        commit: Zxid,
    },
    /// Everything up to `zxid` is durable at the sender (P19).
    Ack {
        /// The leader's epoch.
        epoch: u32,
        /// Cumulative.
        zxid: Zxid,
        /// Executed at the sender.
        applied: Zxid,
    },
    /// (e,0) is committed and the learner holds it: serve.
    UpToDate {
        /// The leader's epoch.
        epoch: u32,
        /// Commit watermark.
        commit: Zxid,
    },
    /// Commit watermark, when there is nothing else to send.
    Commit {
        /// The leader's epoch.
        epoch: u32,
        /// Commit watermark.
        commit: Zxid,
    },
    /// Leader to learner.
    Ping {
        /// The leader's epoch.
        epoch: u32,
        /// Ascending within the leadership.
        seq: u64,
        /// Commit watermark.
        commit: Zxid,
        /// The latest entry at which trees differ with no majority of equal ones (P35); zxid 0: none, or that is over.
        doubt: Zxid,
    },
    /// Answer to a ping.
    Pong {
        /// The leader's epoch.
        epoch: u32,
        /// Of the ping.
        seq: u64,
        /// Executed at the sender.
        applied: Zxid,
        /// Sessions whose clients were heard since the last pong.
        touched: Vec<SessionId>,
        /// Latest digest: its zxid and value; zxid 0 for none.
        digest: (Zxid, u64),
    },
    /// Client transactions of a learner, in order.
    Forward {
        /// The leader's epoch.
        epoch: u32,
        /// Payloads for entries.
        payloads: Vec<Bytes>,
    },
    /// Asks for a read point.
    ReadIndex {
        /// The leader's epoch.
        epoch: u32,
        /// Sender's tag.
        tag: u64,
    },
    /// Answer.
    ReadPoint {
        /// The leader's epoch.
        epoch: u32,
        /// From the request.
        tag: u64,
        /// The read point.
        zxid: Zxid,
    },
    /// The leader is done: the receiver, which holds everything, should be elected next (P17).
    Handover {
        /// The leader's epoch.
        epoch: u32,
    },
    /// Every other voter has answered a ping that left after the receiver, an amnesiac, had promised this epoch: nothing it
    /// may have promised before can matter any more. It is a member again once it holds `commit` (P9).
    Welcome {
        /// The leader's epoch.
        epoch: u32,
        /// Commit watermark.
        commit: Zxid,
    },
    /// The receiver's tree differs from a majority's at this entry (P35): it must stop.
    DigestMismatch {
        /// The leader's epoch.
        epoch: u32,
        /// Where.
        zxid: Zxid,
    },
}
