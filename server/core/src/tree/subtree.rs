//! A subtree, page by page: what a cache loads, and how it finds out what changed while it was away.

use bytes::Bytes;
use corral_proto::{ErrorCode, Id, Stat, Zxid, path as paths, perms};

use super::op::{Answer, Depth, SubtreeNode};
use super::record::NodeRec;
use super::{Cf, TreeView, acl, key, read};

/// Znodes in one page.
pub const PAGE_NODES: usize = 1_000;
/// Bytes of paths and data in one page, a single larger znode excepted.
pub const PAGE_BYTES: usize = 1 << 20;
/// Rows looked at for one page, readable or not.
const PAGE_ROWS: usize = 20_000;

/// One page: znodes that these identities may read, behind `after` in the order of the store, in which parents come before
/// their children. Data comes with those whose `mzxid` is above `newer_than`.
///
/// # Errors
/// `BadArguments` for a path that is none, or an `after` outside of the subtree; `NoAuth` if the top itself may not be read.
pub(super) fn page(
    view: &impl TreeView,
    path: &str,
    depth: Depth,
    after: &str,
    newer_than: Option<Zxid>,
    ids: &[Id],
) -> Result<Answer, ErrorCode> {
    paths::validate(path)?;
    let mut page = Page { view, newer_than, ids, nodes: Vec::new(), bytes: 0, rows: 0, last: None };
    let start = match after {
        "" => None,
        at if is_within(at, path) => Some(key::node(at).ok_or(ErrorCode::BadArguments)?),
        _ => return Err(ErrorCode::BadArguments),
    };
    if start.is_none() {
        match read::node(view, path) {
            None => return Ok(Answer::Subtree { nodes: Vec::new(), next: None }),
            Some((_, rec)) if !acl::allows(view, rec.acl, perms::READ, ids) => return Err(ErrorCode::NoAuth),
            Some((key, rec)) => page.add(path.to_owned(), &key, rec),
        }
    }
    let ranges = match depth {
        Depth::Node => vec![],
        Depth::Children => vec![key::children(path)],
        Depth::Subtree => vec![key::children(path), key::deeper(path)],
    };
    for (from, to) in ranges {
        let from = match &start {
            // The key after that one.
            Some(start) if start[..] >= from[..] => [&start[..], &[0]].concat(),
            _ => from,
        };
        let mut is_full = false;
        view.scan(Cf::Node, &from, &to, &mut |key, value| {
            // The range of what is deeper than the root holds the root.
            if key == b"/" {
                return true;
            }
            if page.is_full() {
                is_full = true;
                return false;
            }
            page.look(key, value);
            true
        });
        if is_full {
            return Ok(Answer::Subtree { nodes: page.nodes, next: page.last });
        }
    }
    Ok(Answer::Subtree { nodes: page.nodes, next: None })
}

/// Whether a path is the top or below it.
fn is_within(path: &str, top: &str) -> bool {
    top == "/" || path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

struct Page<'a, V> {
    view: &'a V,
    newer_than: Option<Zxid>,
    ids: &'a [Id],
    nodes: Vec<SubtreeNode>,
    bytes: usize,
    rows: usize,
    /// The last row that was looked at, readable or not.
    last: Option<String>,
}

impl<V: TreeView> Page<'_, V> {
    fn is_full(&self) -> bool {
        self.nodes.len() >= PAGE_NODES || self.bytes >= PAGE_BYTES || self.rows >= PAGE_ROWS
    }

    fn look(&mut self, key: &[u8], value: &[u8]) {
        let Some((path, rec)) = key::path_of(key).zip(NodeRec::decode(&Bytes::copy_from_slice(value))) else { return };
        self.rows += 1;
        self.last = Some(path.clone());
        if acl::allows(self.view, rec.acl, perms::READ, self.ids) {
            self.add(path, key, rec);
        }
    }

    fn add(&mut self, path: String, key: &[u8], rec: NodeRec) {
        let stat: Stat = rec.stat();
        let is_known = self.newer_than.is_some_and(|known| rec.mzxid <= known);
        let data = if is_known { None } else { read::data(self.view, key, rec.data) };
        self.bytes += path.len() + data.as_ref().map_or(0, Bytes::len);
        self.nodes.push(SubtreeNode { path, stat, data, is_known });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryStore;
    use crate::tree::TreeStore;
    use crate::tree::entry::{Command, Txn};
    use crate::tree::execute::execute_txn;
    use crate::tree::op::{Create, WriteOp};
    use corral_proto::{Acl, CreateMode, SessionId};

    fn tree(paths: &[(&str, usize, bool)]) -> MemoryStore {
        let mut store = MemoryStore::new();
        for (n, (path, bytes, hidden)) in paths.iter().enumerate() {
            let acl =
                if *hidden { vec![Acl { perms: perms::ADMIN, id: Id::new("world", "anyone") }] } else { Acl::open() };
            let create = Create {
                path: (*path).to_owned(),
                data: Some(vec![7; *bytes].into()),
                acl: Some(acl),
                mode: CreateMode::Persistent,
                ttl_ms: 0,
            };
            let txn = Txn {
                session: SessionId::NONE,
                attach: Zxid::ZERO,
                n: 0,
                answered_through: 0,
                ids: Vec::new(),
                command: Command::Write(WriteOp::Create(create)),
            };
            let outcome = execute_txn(&store.view(), Zxid(n as u64 + 1), 0, 0, &txn);
            store.write(&mut outcome.changes.into_iter());
        }
        store
    }

    fn pages(store: &MemoryStore, path: &str, depth: Depth, newer_than: Option<u64>) -> Vec<Vec<(String, bool)>> {
        let (mut pages, mut after) = (Vec::new(), String::new());
        loop {
            match page(&store.view(), path, depth, &after, newer_than.map(Zxid), &[]) {
                Ok(Answer::Subtree { nodes, next }) => {
                    pages.push(nodes.into_iter().map(|node| (node.path, node.is_known)).collect());
                    match next {
                        Some(next) => after = next,
                        None => return pages,
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_page_holds_the_subtree_down_to_the_depth_that_was_asked_for() {
        let store = tree(&[("/a", 1, false), ("/a/b", 1, false), ("/a/b/c", 1, false), ("/ab", 1, false)]);
        let shown = |depth| {
            pages(&store, "/a", depth, None).concat().into_iter().map(|(path, _)| path).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(shown(Depth::Node), "/a");
        assert_eq!(shown(Depth::Children), "/a /a/b");
        assert_eq!(shown(Depth::Subtree), "/a /a/b /a/b/c");
        let root: Vec<String> = pages(&store, "/", Depth::Subtree, None).concat().into_iter().map(|(p, _)| p).collect();
        assert_eq!(root.iter().filter(|path| *path == "/").count(), 1);
        assert!(root.contains(&"/zookeeper/quota".to_owned()) && root.contains(&"/a/b/c".to_owned()));
        assert_eq!(pages(&store, "/none", Depth::Subtree, None), [vec![]]);
    }

    #[test]
    fn pages_are_bounded_and_together_they_are_everything_once() {
        let names: Vec<String> = (0..2_500).map(|n| format!("/a/n{n:04}")).collect();
        let mut all = vec![("/a", 0, false)];
        all.extend(names.iter().map(|name| (name.as_str(), 0, false)));
        let store = tree(&all);
        let pages = pages(&store, "/a", Depth::Subtree, None);
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [1_000, 1_000, 501]);
        let paths: Vec<String> = pages.concat().into_iter().map(|(path, _)| path).collect();
        assert_eq!(paths[1..], names);
        let large = tree(&[("/b", 600 << 10, false), ("/b/1", 600 << 10, false), ("/b/2", 1, false)]);
        assert_eq!(self::pages(&large, "/b", Depth::Subtree, None).iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn data_that_is_known_already_is_not_sent_again() {
        let store = tree(&[("/a", 1, false), ("/a/b", 1, false)]);
        let shown = pages(&store, "/a", Depth::Subtree, Some(1)).concat();
        assert_eq!(shown, [("/a".to_owned(), true), ("/a/b".to_owned(), false)]);
    }

    #[test]
    fn what_may_not_be_read_is_not_shown_and_does_not_stop_the_rest() {
        let store = tree(&[("/a", 1, false), ("/a/b", 1, true), ("/a/c", 1, false)]);
        let shown = pages(&store, "/a", Depth::Subtree, None).concat();
        assert_eq!(shown.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["/a", "/a/c"]);
        let refused = |path, after| page(&store.view(), path, Depth::Subtree, after, None, &[]).unwrap_err();
        assert_eq!(refused("/a/b", ""), ErrorCode::NoAuth);
        assert_eq!(refused("/a", "/b"), ErrorCode::BadArguments);
        assert_eq!(refused("a", ""), ErrorCode::BadArguments);
    }
}
