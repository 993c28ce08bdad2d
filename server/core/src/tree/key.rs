//! Keys, byte by byte.
//!
//! A znode's key is its path with the last slash replaced by NUL, which no path may hold: `/a/b/c` is stored under
//! `/a/b` NUL `c`, `/a` under NUL `a`, and the root under `/`. So one look-up finds a znode, the children of `P` are
//! the keys in `[P 00, P 01)`, and everything deeper is in `[P 2F, P 30)`.
//!
//! Keys of [`Cf::Aux`](super::Cf::Aux) start with a letter that says what the row is; numbers in them are big-endian,
//! so that order of keys is order of numbers.

use bytes::Bytes;
use corral_proto::{ServerId, SessionId};

/// The meta row: how far the store is.
pub const META: &[u8] = b"m";
/// The replicated settings.
pub const SETTINGS: &[u8] = b"c";

/// Key of a znode, in the families `Node` and `Data`. `None` if no znode can have this path: it does not start with a
/// slash, or holds NUL. The empty path is no alias here.
pub fn node(path: &str) -> Option<Bytes> {
    if path == "/" {
        return Some(Bytes::from_static(b"/"));
    }
    if !path.starts_with('/') || path.as_bytes().contains(&0) {
        return None;
    }
    let mut key = path.as_bytes().to_vec();
    key[path.rfind('/')?] = 0;
    Some(Bytes::from(key))
}

/// The path of a znode's key; `None` for bytes that are no such key.
pub fn path_of(key: &[u8]) -> Option<String> {
    let mut path = key.to_vec();
    if path != b"/" {
        let at = path.iter().rposition(|byte| *byte == 0)?;
        path[at] = b'/';
    }
    String::from_utf8(path).ok()
}

/// Range of the keys of the children of `path`; the names follow the first bound.
pub fn children(path: &str) -> (Vec<u8>, Vec<u8>) {
    below(path, 0x00)
}

/// Range of the keys of all descendants of `path` that are not its children. For the root it holds the root, too.
pub fn deeper(path: &str) -> (Vec<u8>, Vec<u8>) {
    below(path, b'/')
}

fn below(path: &str, separator: u8) -> (Vec<u8>, Vec<u8>) {
    let prefix = if path == "/" { "" } else { path };
    let bound = |last: u8| {
        let mut key = Vec::with_capacity(prefix.len() + 1);
        key.extend_from_slice(prefix.as_bytes());
        key.push(last);
        key
    };
    (bound(separator), bound(separator + 1))
}

/// Row of a session.
pub fn session(session: SessionId) -> Bytes {
    Bytes::from(tagged(b's', session, &[]))
}

/// Range of the rows of all sessions.
pub const SESSIONS: (&[u8], &[u8]) = (b"s", b"t");

/// The session of a row's key.
pub fn session_of(key: &[u8]) -> Option<SessionId> {
    let id = key.strip_prefix(b"s")?;
    Some(SessionId(i64::from_be_bytes(id.try_into().ok()?)))
}

/// Row of a server's carrier: how far the writes of its local sessions are executed.
pub fn carrier(server: ServerId) -> Bytes {
    Bytes::from(tagged(b'l', SessionId(server.0 as i64), &[]))
}

/// The server of a carrier's key.
pub fn carrier_of(key: &[u8]) -> Option<ServerId> {
    let id = key.strip_prefix(b"l")?;
    Some(ServerId(u64::from_be_bytes(id.try_into().ok()?)))
}

/// Range of the rows of all carriers.
pub const CARRIERS: (&[u8], &[u8]) = (b"l", b"m");

/// Entry of the index of ephemerals.
pub fn ephemeral(session: SessionId, path: &str) -> Bytes {
    Bytes::from(tagged(b'e', session, path.as_bytes()))
}

/// Range of a session's ephemerals whose paths are not before `prefix`; the paths follow the first nine bytes.
pub fn ephemerals(session: SessionId, prefix: &str) -> (Vec<u8>, Vec<u8>) {
    (tagged(b'e', session, prefix.as_bytes()), after(b'e', session))
}

/// Bytes before the path in a key of the index of ephemerals.
pub const EPHEMERAL_PREFIX: usize = 9;

/// Kept result of request `n` of a session.
pub fn result(session: SessionId, n: u64) -> Bytes {
    Bytes::from(tagged(b'r', session, &n.to_be_bytes()))
}

/// Range of a session's kept results.
pub fn results(session: SessionId) -> (Vec<u8>, Vec<u8>) {
    (tagged(b'r', session, &[]), after(b'r', session))
}

/// Entry of the index of containers and TTL znodes.
pub fn reapable(path: &str) -> Bytes {
    let mut key = Vec::with_capacity(1 + path.len());
    key.push(b't');
    key.extend_from_slice(path.as_bytes());
    Bytes::from(key)
}

/// Range of the index of containers and TTL znodes; the path follows the first byte.
pub const REAPABLES: (&[u8], &[u8]) = (b"t", b"u");

/// ACL list by id.
pub fn acl(id: u32) -> [u8; 5] {
    let [a, b, c, d] = id.to_be_bytes();
    [b'a', a, b, c, d]
}

/// Id of an ACL list, by the SHA-256 of its encoding.
pub fn acl_by_content(hash: &[u8; 32]) -> [u8; 33] {
    let mut key = [b'A'; 33];
    key[1..].copy_from_slice(hash);
    key
}

fn tagged(tag: u8, session: SessionId, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(9 + rest.len());
    key.push(tag);
    key.extend_from_slice(&session.0.to_be_bytes());
    key.extend_from_slice(rest);
    key
}

/// The first key after all rows of `tag` and `session`.
fn after(tag: u8, session: SessionId) -> Vec<u8> {
    match (session.0 as u64).checked_add(1) {
        Some(next) => tagged(tag, SessionId(next as i64), &[]),
        None => vec![tag + 1],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_the_path_with_its_last_slash_replaced() {
        for (path, key) in [("/", &b"/"[..]), ("/a", b"\0a"), ("/a/b/c", b"/a/b\0c")] {
            assert_eq!(node(path).unwrap(), key);
            assert_eq!(path_of(key).unwrap(), path);
        }
        assert_eq!((node(""), node("a/b"), node("/a\0b")), (None, None, None));
    }

    #[test]
    fn children_and_deeper_ranges_hold_the_subtree_and_nothing_else() {
        let paths = ["/", "/a", "/a/b", "/a/b/c", "/a/b-", "/a.", "/a0", "/ab", "/ab/c", "/b"];
        let within = |(from, to): (Vec<u8>, Vec<u8>)| {
            let mut found: Vec<&str> = paths
                .into_iter()
                .filter(|path| {
                    let key = node(path).unwrap();
                    key[..] >= from[..] && key[..] < to[..]
                })
                .collect();
            found.sort_unstable();
            found
        };
        assert_eq!(within(children("/a")), ["/a/b", "/a/b-"]);
        assert_eq!(within(deeper("/a")), ["/a/b/c"]);
        assert_eq!(within(children("/")), ["/a", "/a.", "/a0", "/ab", "/b"]);
        assert_eq!(within(deeper("/")), ["/", "/a/b", "/a/b-", "/a/b/c", "/ab/c"]);
    }

    #[test]
    fn session_ranges_end_before_the_next_session() {
        for id in [0, 1, 255, i64::MAX, -1] {
            let (from, to) = ephemerals(SessionId(id), "");
            let key = ephemeral(SessionId(id), "/\u{ffff}");
            assert!(from[..] <= key[..] && key[..] < to[..], "{id}");
            let (_, end) = results(SessionId(id));
            assert!(result(SessionId(id), u64::MAX)[..] < end[..], "{id}");
        }
        assert_eq!(session_of(&session(SessionId(77))), Some(SessionId(77)));
    }
}
