//! The order in which a subtree is visited: which node to list next, when a node is entered and left.
//!
//! Pure: the caller lists the nodes that [`Walk::wanted`] names, several at once, and hands the answers to
//! [`Walk::give`]; so a subtree of a million nodes is walked with many requests in flight and with memory for one
//! path's siblings only.

use corral_proto::path;

/// Nodes that are listed at the same time.
pub const LISTINGS_IN_FLIGHT: usize = 256;

/// What happens next on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A node is reached, before everything below it.
    Enter {
        /// Which.
        path: String,
        /// Full paths of its children, ascending.
        children: Vec<String>,
    },
    /// Everything below a node has been visited.
    Leave {
        /// Which.
        path: String,
    },
}

enum Item {
    Unlisted(String),
    Listed(String, Vec<String>),
    Leave(String),
}

/// A depth-first walk.
pub struct Walk {
    stack: Vec<Item>,
    has_begun: bool,
}

impl Walk {
    /// A walk of `root` and all below it.
    pub fn new(root: &str) -> Walk {
        Walk { stack: vec![Item::Unlisted(root.to_owned())], has_begun: false }
    }

    /// Whether the root was entered.
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Nodes to list before the walk can go on, the nearest first; empty if [`Walk::next`] can go on without.
    pub fn wanted(&self) -> Vec<String> {
        if !matches!(self.stack.last(), Some(Item::Unlisted(_))) {
            return Vec::new();
        }
        let unlisted = self.stack.iter().rev().map_while(|item| match item {
            Item::Unlisted(path) => Some(path.clone()),
            _ => None,
        });
        unlisted.take(LISTINGS_IN_FLIGHT).collect()
    }

    /// The names of the children of each node of [`Walk::wanted`], in its order; a node that is gone has none.
    pub fn give(&mut self, listings: Vec<Vec<String>>) {
        for (item, mut names) in self.stack.iter_mut().rev().zip(listings) {
            if let Item::Unlisted(path) = item {
                names.sort();
                let children = names.iter().map(|name| path::join(path, name)).collect();
                *item = Item::Listed(std::mem::take(path), children);
            }
        }
    }

    /// Goes on; `None` at the end, and while [`Walk::wanted`] is not empty.
    pub fn next(&mut self) -> Option<Step> {
        match self.stack.pop()? {
            Item::Leave(path) => Some(Step::Leave { path }),
            Item::Listed(path, children) => {
                self.has_begun = true;
                self.stack.push(Item::Leave(path.clone()));
                self.stack.extend(children.iter().rev().cloned().map(Item::Unlisted));
                Some(Step::Enter { path, children })
            }
            unlisted @ Item::Unlisted(_) => {
                self.stack.push(unlisted);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn walk(tree: &BTreeMap<&str, Vec<&str>>, root: &str) -> (Vec<String>, Vec<String>) {
        let (mut entered, mut left) = (Vec::new(), Vec::new());
        let mut walk = Walk::new(root);
        loop {
            let wanted = walk.wanted();
            let answers = wanted
                .iter()
                .map(|path| tree.get(path.as_str()).into_iter().flatten().map(|name| (*name).to_owned()).collect())
                .collect();
            walk.give(answers);
            match walk.next() {
                None => return (entered, left),
                Some(Step::Enter { path, .. }) => entered.push(path),
                Some(Step::Leave { path }) => left.push(path),
            }
        }
    }

    #[test]
    fn parents_are_entered_before_and_left_after_their_children() {
        let tree = BTreeMap::from([("/a", vec!["c", "b"]), ("/a/b", vec!["x"]), ("/a/c", vec!["y", "z"])]);
        let (entered, left) = walk(&tree, "/a");
        assert_eq!(entered, ["/a", "/a/b", "/a/b/x", "/a/c", "/a/c/y", "/a/c/z"]);
        assert_eq!(left, ["/a/b/x", "/a/b", "/a/c/y", "/a/c/z", "/a/c", "/a"]);
    }

    #[test]
    fn the_root_of_the_tree_has_no_double_slash() {
        let tree = BTreeMap::from([("/", vec!["a"])]);
        assert_eq!(walk(&tree, "/").0, ["/", "/a"]);
    }

    #[test]
    fn siblings_are_listed_together_up_to_the_bound() {
        let mut walk = Walk::new("/a");
        assert_eq!(walk.wanted(), ["/a"]);
        walk.give(vec![(0..1_000).map(|n| format!("{n:04}")).collect()]);
        assert!(walk.wanted().is_empty(), "the root is entered first");
        assert!(matches!(walk.next(), Some(Step::Enter { .. })));
        let wanted = walk.wanted();
        assert_eq!(wanted.len(), LISTINGS_IN_FLIGHT);
        assert_eq!(wanted[0], "/a/0000");
    }
}
