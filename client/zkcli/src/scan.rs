//! A subtree, znode by znode, with data and stat: parents come before their children, otherwise in the order of the
//! server's store. One page is read while the next one is under way; nothing more is held.

use std::collections::VecDeque;

use corral_client::{Client, ErrorCode, Response, SubtreeNode, SubtreePage, WatchMode, Zxid};

use crate::failure::Failure;
use crate::run::Runner;

/// ZooKeeper's own part of the tree: it is neither copied nor exported.
const RESERVED: &str = "/zookeeper";

/// A scan under way.
pub struct Scan {
    client: Client,
    top: String,
    asked: Option<Response<SubtreePage>>,
    page: VecDeque<SubtreeNode>,
    /// Whether [`RESERVED`] is left out.
    is_own: bool,
    seen: u64,
    children: u64,
    zxid: Zxid,
}

impl Scan {
    /// Of a znode and all below it.
    pub fn new(client: &Client, top: &str) -> Scan {
        Scan {
            client: client.clone(),
            top: top.to_owned(),
            asked: Some(client.subtree(top, WatchMode::Recursive, None)),
            page: VecDeque::new(),
            is_own: false,
            seen: 0,
            children: 0,
            zxid: Zxid::ZERO,
        }
    }

    /// Without what ZooKeeper keeps for itself.
    pub fn own(client: &Client, top: &str) -> Scan {
        Scan { is_own: client.chroot().is_empty(), ..Scan::new(client, top) }
    }

    /// The next znode; `None` at the end.
    ///
    /// # Errors
    /// `NoNode`: there is no such subtree. The server's refusal; no answer in time.
    pub async fn next(&mut self, runner: &Runner) -> Result<Option<SubtreeNode>, Failure> {
        loop {
            let Some(node) = self.page.pop_front() else {
                let Some(asked) = self.asked.take() else {
                    return if self.seen > 0 {
                        Ok(None)
                    } else {
                        Err(Failure::Refused { code: ErrorCode::NoNode, path: self.top.clone() })
                    };
                };
                let page = runner.ask(asked).await?;
                if let Some(next) = &page.next {
                    self.asked = Some(self.client.subtree(&self.top, WatchMode::Recursive, Some(next)));
                }
                self.page = page.nodes.into();
                self.zxid = page.zxid;
                continue;
            };
            if self.is_own && is_within(&node.path, RESERVED) {
                continue;
            }
            self.seen += 1;
            self.children += u64::try_from(node.stat.num_children).unwrap_or(0);
            if self.is_own && node.path == "/" {
                self.children = self.children.saturating_sub(1);
            }
            return Ok(Some(node));
        }
    }

    /// How many znodes have come.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The state of the last page.
    pub fn zxid(&self) -> Zxid {
        self.zxid
    }

    /// At the end: how many children of what came did not come themselves. Those that may not be read are among them, and
    /// what changed meanwhile.
    pub fn left_out(&self) -> u64 {
        (self.children + 1).saturating_sub(self.seen)
    }

    /// At the end: says so if something did not come.
    ///
    /// # Errors
    /// Something did not.
    pub fn complete(&self) -> Result<(), Failure> {
        match self.left_out() {
            0 => Ok(()),
            n => Err(Failure::Other(format!(
                "{n} znodes at the least below {} did not come: they may not be read, or the tree changed meanwhile",
                self.top
            ))),
        }
    }
}

/// Whether a path is `top` or below it.
pub fn is_within(path: &str, top: &str) -> bool {
    top == "/" || path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What stands behind `top` in a path of its subtree: empty for `top` itself, else it begins with `/`.
pub fn below<'a>(path: &'a str, top: &str) -> &'a str {
    match (top, path) {
        ("/", "/") => "",
        ("/", path) => path,
        (top, path) => path.strip_prefix(top).unwrap_or(path),
    }
}

/// `top` and what stands behind it.
pub fn at(top: &str, below: &str) -> String {
    match (top, below) {
        ("/", "") => "/".to_owned(),
        ("/", below) => below.to_owned(),
        (top, below) => format!("{top}{below}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_move_from_one_top_to_another() {
        for (path, from, to, moved) in [
            ("/a", "/a", "/b", "/b"),
            ("/a/x", "/a", "/b/c", "/b/c/x"),
            ("/a/x", "/", "/b", "/b/a/x"),
            ("/", "/", "/b", "/b"),
            ("/a", "/a", "/", "/"),
            ("/a/x", "/a", "/", "/x"),
        ] {
            assert_eq!(at(to, below(path, from)), moved, "{path} from {from} to {to}");
        }
        assert!(is_within("/a/b", "/a") && is_within("/a", "/a") && !is_within("/ab", "/a") && is_within("/x", "/"));
    }
}
