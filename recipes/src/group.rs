//! Who is there: a group whose members see each other, in order, with an epoch.

use corral_client::{
    Acl, Client, Consistency, Data, EndReason, ErrorCode, ReadRequest, ReadResult, SessionId, WatchMode, Watcher, Zxid,
    path as paths,
};

use crate::contender::{Name, ended, random_id};
use crate::decide::view::{Member, View, id_of};
use crate::error::Error;
use crate::presence::PresenceBuilder;
use crate::sequence::Naming;

/// How often a view is read again because members came or went while it was read.
const READ_ATTEMPTS: u32 = 64;

/// How members are named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GroupLayout {
    /// By their id: Curator's `GroupMember`.
    #[default]
    Curator,
    /// `<uuid>__party__`, with the id as data: kazoo's `Party`.
    Kazoo,
}

/// A group named by a path.
///
/// Every view has an epoch, the zxid of the last coming or going: members that compare epochs know whose view is newer, and
/// members with equal epochs see the same members in the same order. So `members[0]`, or a hash over all, is agreed upon
/// wherever the epoch is. Curator's `GroupMember` and kazoo's `Party` on the same path are seen, and see ours.
///
/// ```no_run
/// # use corral_client::Client;
/// # use corral_recipes::{Group, Rejoin};
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// let group = Group::new(&client, "/cache/nodes");
/// let me = group.join("host-1", "10.0.0.1:11211").start();
/// let mut views = group.views().await?;
/// let mut view = views.next().await?;
/// loop {
///     let next = views.next().await?;
///     println!("epoch {:?}: {:?}", next.epoch, view.changes(&next));
///     view = next;
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Group {
    client: Client,
    path: String,
    layout: GroupLayout,
    acl: Vec<Acl>,
}

impl Group {
    /// The group at this path, which need not exist.
    pub fn new(client: &Client, path: impl Into<String>) -> Group {
        Group { client: client.clone(), path: path.into(), layout: GroupLayout::default(), acl: Acl::open() }
    }

    /// How our members are named. Default: as Curator's. Others are seen whatever their layout.
    pub fn layout(mut self, layout: GroupLayout) -> Group {
        self.layout = layout;
        self
    }

    /// The ACL of our members. Default: open.
    pub fn acl(mut self, acl: Vec<Acl>) -> Group {
        self.acl = acl;
        self
    }

    /// A member with this id, to be started; it says `data` of itself. What happens after the end of its session is said by
    /// [`PresenceBuilder::rejoin`]; a return is another joining, with another place in the order. In kazoo's layout the id is
    /// the data, and `data` is not used.
    pub fn join(&self, id: &str, data: impl Into<Data>) -> PresenceBuilder {
        let (name, data) = match self.layout {
            GroupLayout::Curator => (Name::Fixed(id.to_owned()), data.into()),
            GroupLayout::Kazoo => (Name::Fixed(Naming::PARTY.prefix(random_id())), id.into()),
        };
        PresenceBuilder::of(&self.client, self.path.clone(), name).acl(self.acl.clone()).data(data)
    }

    /// The view now; not older than any answer that anybody got before the call.
    ///
    /// # Errors
    /// [`Error::Client`]; [`Error::Contended`] if members come and go faster than they can be read.
    pub async fn view(&self) -> Result<View, Error> {
        for _ in 0..READ_ATTEMPTS {
            let children = self.client.read(Consistency::Linearizable).get_children_with_stat(&self.path).await;
            let (names, stat) = match children {
                Err(error) if error.code() == Some(ErrorCode::NoNode) => return Ok(View::default()),
                other => other?,
            };
            // All of them, and their parent, at one state.
            let paths =
                std::iter::once(self.path.clone()).chain(names.iter().map(|name| paths::join(&self.path, name)));
            let mut results = self.client.multi_read(paths.map(ReadRequest::Get).collect()).await?.into_iter();
            let is_same = matches!(results.next(), Some(Ok(ReadResult::Node(node))) if node.stat.pzxid == stat.pzxid);
            if !is_same {
                continue;
            }
            let members = names.iter().zip(results).filter_map(|(name, result)| match result {
                Ok(ReadResult::Node(node)) => Some(Member {
                    id: id_of(name, node.data.as_deref()),
                    path: paths::join(&self.path, name),
                    joined: Zxid::from_i64(node.stat.czxid),
                    session: SessionId(node.stat.ephemeral_owner),
                    data: node.data,
                }),
                // Not ours to read.
                _ => None,
            });
            return Ok(View::new(Zxid::from_i64(stat.pzxid), members.collect()));
        }
        Err(Error::Contended { path: self.path.clone(), attempts: READ_ATTEMPTS })
    }

    /// The view now and all that follow, for as long as the session lives.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn views(&self) -> Result<Views, Error> {
        let watcher = self.client.watch(&self.path, WatchMode::Recursive).await?;
        Ok(Views { group: self.clone(), watcher, shown: None, stale: true })
    }
}

/// The views of a group, in the order of their epochs.
#[derive(Debug)]
pub struct Views {
    group: Group,
    watcher: Watcher,
    shown: Option<View>,
    /// Something may have happened since the last look.
    stale: bool,
}

impl Views {
    /// The first view at once, then each that differs from the one before: other members, or the same with other data. A view
    /// that is followed by a newer one before it is seen may be left out; the latest never is. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Client`], among others when the session ends.
    pub async fn next(&mut self) -> Result<View, Error> {
        loop {
            if !self.stale && self.watcher.next().await.is_none() {
                let reason = self.watcher.end_reason().unwrap_or(EndReason::Stopped);
                return Err(ended("watch", reason).into());
            }
            // Should this future be dropped while it reads, the next one reads again.
            self.stale = true;
            // One look serves all that has happened so far.
            while self.watcher.try_next().is_some() {}
            let view = self.group.view().await?;
            self.stale = false;
            if self.shown.as_ref() != Some(&view) {
                self.shown = Some(view.clone());
                return Ok(view);
            }
        }
    }
}
