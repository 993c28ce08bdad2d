//! The number of each request (wire 3.2).

/// Server to client only: a watch event.
pub const NOTIFICATION: i32 = 0;
/// Create; the reply is the path.
pub const CREATE: i32 = 1;
/// Delete.
pub const DELETE: i32 = 2;
/// Stat of a znode.
pub const EXISTS: i32 = 3;
/// Data and stat.
pub const GET_DATA: i32 = 4;
/// Replace the data.
pub const SET_DATA: i32 = 5;
/// ACL and stat.
pub const GET_ACL: i32 = 6;
/// Replace the ACL.
pub const SET_ACL: i32 = 7;
/// Names of the children.
pub const GET_CHILDREN: i32 = 8;
/// Catch up with the leader.
pub const SYNC: i32 = 9;
/// Keep-alive.
pub const PING: i32 = 11;
/// Names of the children and stat.
pub const GET_CHILDREN2: i32 = 12;
/// Version check; only inside a multi.
pub const CHECK: i32 = 13;
/// All or nothing.
pub const MULTI: i32 = 14;
/// Create; the reply is path and stat.
pub const CREATE2: i32 = 15;
/// Change of the ensemble.
pub const RECONFIG: i32 = 16;
/// Asks whether a watch is there.
pub const CHECK_WATCHES: i32 = 17;
/// Removes watches.
pub const REMOVE_WATCHES: i32 = 18;
/// Create of a container.
pub const CREATE_CONTAINER: i32 = 19;
/// Servers among themselves.
pub const DELETE_CONTAINER: i32 = 20;
/// Create of a znode with a time to live.
pub const CREATE_TTL: i32 = 21;
/// Several reads.
pub const MULTI_READ: i32 = 22;
/// Proof of an identity.
pub const AUTH: i32 = 100;
/// Watches of a former connection.
pub const SET_WATCHES: i32 = 101;
/// A SASL token.
pub const SASL: i32 = 102;
/// Paths of the session's ephemerals.
pub const GET_EPHEMERALS: i32 = 103;
/// Number of descendants.
pub const GET_ALL_CHILDREN_NUMBER: i32 = 104;
/// Watches of a former connection, persistent ones included.
pub const SET_WATCHES2: i32 = 105;
/// Adds a persistent watch.
pub const ADD_WATCH: i32 = 106;
/// Identities of the connection.
pub const WHO_AM_I: i32 = 107;
/// Names of some of the children, and stat; ClickHouse Keeper's, as the following.
pub const FILTERED_LIST: i32 = 500;
/// The opposite of a check.
pub const CHECK_NOT_EXISTS: i32 = 501;
/// Create that is content with what exists; the reply is the path.
pub const CREATE_IF_NOT_EXISTS: i32 = 502;
/// Delete of a whole subtree.
pub const REMOVE_RECURSIVE: i32 = 503;
/// Names of some of the children, stat, and with it their stats and data.
pub const LIST_WITH_STAT_AND_DATA: i32 = 506;
/// Servers among themselves.
pub const CREATE_SESSION: i32 = -10;
/// Ends the session.
pub const CLOSE_SESSION: i32 = -11;
/// The type of a failed operation in a multi's reply, and of the terminator.
pub const ERROR: i32 = -1;

/// The xid of a watch event.
pub const XID_EVENT: i32 = -1;
/// The xid of a ping and of its reply.
pub const XID_PING: i32 = -2;
/// The xid clients give to auth requests.
pub const XID_AUTH: i32 = -4;
/// The xid some clients give to setWatches.
pub const XID_SET_WATCHES: i32 = -8;

/// Whether this is one of ClickHouse Keeper's additions.
pub fn is_extension(opcode: i32) -> bool {
    matches!(
        opcode,
        FILTERED_LIST | CHECK_NOT_EXISTS | CREATE_IF_NOT_EXISTS | REMOVE_RECURSIVE | LIST_WITH_STAT_AND_DATA
    )
}

/// Whether ZooKeeper takes this for a change of the tree, whatever comes of it.
pub fn is_change(opcode: i32) -> bool {
    matches!(
        opcode,
        CREATE
            | CREATE2
            | CREATE_CONTAINER
            | CREATE_TTL
            | DELETE
            | SET_DATA
            | SET_ACL
            | RECONFIG
            | MULTI
            | CHECK
            | CREATE_IF_NOT_EXISTS
            | REMOVE_RECURSIVE
    )
}
