//! Who is in a group, in order, and how two views differ.

use bytes::Bytes;
use corral_client::{SessionId, Zxid};

/// What the random names of kazoo's parties end in.
pub const PARTY: &str = "__party__";

/// One member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id: the znode's name; in kazoo's layout the data, which is the identifier there.
    pub id: String,
    /// Its path.
    pub path: String,
    /// When it joined: the czxid. Another after each return.
    pub joined: Zxid,
    /// Whose it is.
    pub session: SessionId,
    /// What it says of itself.
    pub data: Option<Bytes>,
}

/// The members at one moment, in the order in which they joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Which moment: the zxid of the last coming or going. Of two views of one group, the one with the larger epoch is the
    /// newer, whoever read them; equal epochs have the same members. Zero: there is no such group at the moment.
    pub epoch: Zxid,
    /// Who, first come first.
    pub members: Vec<Member>,
}

/// One difference between two views.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Joined(Member),
    /// It is gone.
    Left(Member),
    /// It says something else of itself.
    Updated(Member),
}

impl View {
    /// The view made of what was read.
    pub fn new(epoch: Zxid, mut members: Vec<Member>) -> View {
        members.sort_by(|a, b| a.joined.cmp(&b.joined).then_with(|| a.path.cmp(&b.path)));
        View { epoch, members }
    }

    /// The member of this id; the first if several claim it (kazoo's layout lets them).
    pub fn member(&self, id: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// What happened from this view to `newer`: first who left, then who joined or changed, each in the order of joining. A
    /// member that left and came back between the two left, and joined.
    pub fn changes(&self, newer: &View) -> Vec<Change> {
        let is_in = |view: &View, one: &Member| {
            view.members.iter().any(|member| member.path == one.path && member.joined == one.joined)
        };
        let mut changes: Vec<Change> =
            self.members.iter().filter(|old| !is_in(newer, old)).cloned().map(Change::Left).collect();
        for member in &newer.members {
            if !is_in(self, member) {
                changes.push(Change::Joined(member.clone()));
            } else if !self.members.contains(member) {
                changes.push(Change::Updated(member.clone()));
            }
        }
        changes
    }
}

/// The id of a member: its name, or what it says where names are random.
pub fn id_of(name: &str, data: Option<&[u8]>) -> String {
    match data {
        Some(data) if name.contains(PARTY) => String::from_utf8_lossy(data).into_owned(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, joined: u64, data: &'static str) -> Member {
        let (path, session) = (format!("/g/{id}"), SessionId(1));
        Member { id: id.into(), path, joined: Zxid(joined), session, data: Some(Bytes::from_static(data.as_bytes())) }
    }

    #[test]
    fn members_stand_in_the_order_of_joining() {
        let view = View::new(Zxid(9), vec![member("a", 7, ""), member("c", 3, ""), member("b", 9, "")]);
        let ids: Vec<&str> = view.members.iter().map(|member| member.id.as_str()).collect();
        assert_eq!(ids, ["c", "a", "b"]);
        assert_eq!(view.member("a").map(|member| member.joined), Some(Zxid(7)));
    }

    #[test]
    fn changes_lead_from_one_view_to_the_next() {
        let old = View::new(Zxid(5), vec![member("a", 1, ""), member("b", 2, ""), member("c", 3, "")]);
        let new = View::new(Zxid(8), vec![member("b", 2, "x"), member("c", 7, ""), member("d", 8, "")]);
        let changes = [
            Change::Left(member("a", 1, "")),
            Change::Left(member("c", 3, "")),
            Change::Updated(member("b", 2, "x")),
            Change::Joined(member("c", 7, "")),
            Change::Joined(member("d", 8, "")),
        ];
        assert_eq!(old.changes(&new), changes);
        assert_eq!(old.changes(&old), []);
    }

    #[test]
    fn ids_are_names_or_what_kazoos_parties_say() {
        assert_eq!(id_of("host-1", Some(b"payload")), "host-1");
        assert_eq!(id_of("0f__party__0000000001", Some(b"host-1")), "host-1");
        assert_eq!(id_of("0f__party__0000000001", None), "0f__party__0000000001");
    }
}
