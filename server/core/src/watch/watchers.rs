//! Small sets that are mostly of one: a million watches on a million paths, or of as many connections, must not each have the
//! room of a tree's node.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::{Modes, WatcherId};

/// Who watches a path, and how.
#[derive(Debug, Default)]
pub(super) enum Watchers {
    #[default]
    None,
    One(WatcherId, Modes),
    #[expect(clippy::box_collection, reason = "it is as large as one watcher so, and most are one")]
    Many(Box<BTreeMap<WatcherId, Modes>>),
}

impl Watchers {
    pub(super) fn get(&self, watcher: WatcherId) -> Option<Modes> {
        match self {
            Watchers::None => None,
            Watchers::One(one, modes) => (*one == watcher).then_some(*modes),
            Watchers::Many(all) => all.get(&watcher).copied(),
        }
    }

    /// The modes of a watcher, who is there afterwards.
    pub(super) fn entry(&mut self, watcher: WatcherId) -> &mut Modes {
        match self {
            Watchers::None => *self = Watchers::One(watcher, Modes::default()),
            Watchers::One(one, modes) if *one != watcher => {
                *self = Watchers::Many(Box::new(BTreeMap::from([(*one, *modes)])));
            }
            Watchers::One(..) | Watchers::Many(_) => {}
        }
        match self {
            Watchers::One(_, modes) => modes,
            Watchers::Many(all) => all.entry(watcher).or_default(),
            Watchers::None => unreachable!("somebody was put there above"),
        }
    }

    pub(super) fn remove(&mut self, watcher: WatcherId) {
        match self {
            Watchers::None => {}
            Watchers::One(one, _) if *one == watcher => *self = Watchers::None,
            Watchers::One(..) => {}
            Watchers::Many(all) => {
                all.remove(&watcher);
                self.shrink();
            }
        }
    }

    /// Keeps those of whom `keep` says so; it may change the modes.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&mut Modes) -> bool) {
        match self {
            Watchers::None => {}
            Watchers::One(_, modes) => {
                if !keep(modes) {
                    *self = Watchers::None;
                }
            }
            Watchers::Many(all) => {
                all.retain(|_, modes| keep(modes));
                self.shrink();
            }
        }
    }

    fn shrink(&mut self) {
        if let Watchers::Many(all) = self
            && all.len() <= 1
        {
            *self = all.pop_first().map_or(Watchers::None, |(one, modes)| Watchers::One(one, modes));
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Watchers::None => 0,
            Watchers::One(..) => 1,
            Watchers::Many(all) => all.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (WatcherId, Modes)> + '_ {
        let (one, many) = match self {
            Watchers::None => (None, None),
            Watchers::One(one, modes) => (Some((*one, *modes)), None),
            Watchers::Many(all) => (None, Some(all.iter().map(|(watcher, modes)| (*watcher, *modes)))),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

/// The paths that a connection watches.
#[derive(Debug, Default)]
pub(super) enum Paths {
    #[default]
    None,
    One(Arc<str>),
    #[expect(clippy::box_collection, reason = "it is as large as one path so, and most are one")]
    Many(Box<HashSet<Arc<str>>>),
}

impl Paths {
    pub(super) fn insert(&mut self, path: &Arc<str>) {
        match self {
            Paths::None => *self = Paths::One(path.clone()),
            Paths::One(one) if one == path => {}
            Paths::One(one) => *self = Paths::Many(Box::new(HashSet::from([one.clone(), path.clone()]))),
            Paths::Many(all) => {
                if !all.contains(path) {
                    all.insert(path.clone());
                }
            }
        }
    }

    pub(super) fn remove(&mut self, path: &str) {
        match self {
            Paths::None => {}
            Paths::One(one) if **one == *path => *self = Paths::None,
            Paths::One(_) => {}
            Paths::Many(all) => {
                all.remove(path);
                if all.len() <= 1 {
                    let last = all.drain().next();
                    *self = last.map_or(Paths::None, Paths::One);
                }
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Paths::None)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> + '_ {
        let (one, many) = match self {
            Paths::None => (None, None),
            Paths::One(one) => (Some(&**one), None),
            Paths::Many(all) => (None, Some(all.iter().map(|path| &**path))),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_of_each_takes_no_more_room_than_it_must() {
        assert!(size_of::<Watchers>() <= 16 && size_of::<Paths>() <= 24);
    }

    proptest! {
        #[test]
        fn watchers_are_what_a_map_is(steps in prop::collection::vec((0u64..4, 0u8..4), 0..40)) {
            let (mut watchers, mut model) = (Watchers::default(), BTreeMap::new());
            for (id, step) in steps {
                let id = WatcherId(id);
                match step {
                    0 | 1 => {
                        watchers.entry(id).standard = step == 1;
                        model.entry(id).or_insert_with(Modes::default).standard = step == 1;
                    }
                    2 => {
                        watchers.remove(id);
                        model.remove(&id);
                    }
                    _ => {
                        watchers.retain(|modes| modes.standard);
                        model.retain(|_, modes| modes.standard);
                    }
                }
                let found: Vec<_> = watchers.iter().collect();
                prop_assert_eq!(found, model.iter().map(|(id, modes)| (*id, *modes)).collect::<Vec<_>>());
                prop_assert_eq!((watchers.len(), watchers.is_empty()), (model.len(), model.is_empty()));
                prop_assert_eq!(watchers.get(id), model.get(&id).copied());
            }
        }

        #[test]
        fn paths_are_what_a_set_is(steps in prop::collection::vec((0u8..4, any::<bool>()), 0..40)) {
            let (mut paths, mut model) = (Paths::default(), std::collections::BTreeSet::new());
            for (path, insert) in steps {
                let path: Arc<str> = format!("/{path}").into();
                if insert {
                    paths.insert(&path);
                    model.insert(path.to_string());
                } else {
                    paths.remove(&path);
                    model.remove(&*path);
                }
                let found: std::collections::BTreeSet<String> = paths.iter().map(str::to_owned).collect();
                prop_assert_eq!(found.len(), paths.iter().count());
                prop_assert_eq!(&found, &model);
                prop_assert_eq!(paths.is_empty(), model.is_empty());
            }
        }
    }
}
