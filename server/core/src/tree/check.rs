//! Looks through a store at rest, row by row, for what execution never leaves there: records that do not decode, counters
//! and indexes that do not fit the tree (I20, I21), a digest that is not the sum of the znodes (I17).
//!
//! Unlike [`super::audit`], which tests use, it goes on after the first finding, takes a store whose reads may fail, and
//! needs little memory whatever the size of the tree: all but the lists of ids in use is compared in the order of the keys.

use std::collections::BTreeSet;

use bytes::Bytes;
use corral_proto::{SessionId, path};

use super::entry::Settings;
use super::execute::{RESULT_BYTES_MAX, RESULTS_MAX};
use super::record::{CarrierRow, Meta, NodeRec, Owner, SessionRow, Stored, decode_result};
use super::{Cf, TreeView, acl, feed, key, quota};

/// After every key: they begin with a slash, NUL, or a letter.
const END: &[u8] = &[0xff];

/// What is done with a row.
type Visit<'a, C, E> = dyn FnMut(&mut C, &[u8], &[u8]) -> Result<(), E> + 'a;

/// A store that can be read and may fail at it.
pub trait Rows {
    /// Why a row cannot be read.
    type Error;

    /// The value of a key.
    ///
    /// # Errors
    /// If the store cannot tell.
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, Self::Error>;

    /// Visits keys in `[from, to)` in ascending order until `visit` returns false.
    ///
    /// # Errors
    /// If the store cannot go on; rows before that were visited.
    fn scan(
        &self,
        cf: Cf,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Self::Error>;
}

/// Something that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// Which row: a path, a session, or the name of a family.
    pub place: String,
    /// What is wrong with it, for people.
    pub what: String,
}

/// What was counted, as the meta row should have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Sum of the digests of all znodes.
    pub digest: u64,
    /// Znodes.
    pub znodes: u64,
    /// Bytes of paths and data.
    pub data_bytes: u64,
    /// Ephemeral znodes.
    pub ephemerals: u64,
    /// Open sessions.
    pub sessions: u64,
    /// Quotas.
    pub quotas: u64,
}

/// Reads everything. `progress` is told after each row how many were read.
///
/// # Errors
/// Those of the store: what follows the row that cannot be read was not looked at.
pub fn check<R: Rows>(
    rows: &R,
    found: &mut dyn FnMut(Misfit),
    progress: &mut dyn FnMut(u64),
) -> Result<Counted, R::Error> {
    let mut check = Check { rows, found, progress, seen: 0, failed: None };
    let (counted, used) = check.nodes()?;
    check.data(used.external)?;
    let indexes = check.aux(&used.acls)?;
    let counted = Counted { sessions: indexes.sessions, ..counted };
    if indexes.ephemerals != counted.ephemerals {
        let what = format!("it has {} rows for {} ephemeral znodes", indexes.ephemerals, counted.ephemerals);
        check.say("the index of ephemerals", what);
    }
    if indexes.reapables != used.reapables {
        let what = format!("it has {} rows for {} such znodes", indexes.reapables, used.reapables);
        check.say("the index of containers and TTL znodes", what);
    }
    check.meta(&counted)?;
    check.feed()?;
    Ok(counted)
}

/// What the znodes refer to.
#[derive(Default)]
struct Used {
    external: u64,
    reapables: u64,
    acls: BTreeSet<u32>,
}

/// Rows of the indexes.
#[derive(Default)]
struct Indexes {
    ephemerals: u64,
    reapables: u64,
    sessions: u64,
}

struct Check<'a, R: Rows> {
    rows: &'a R,
    found: &'a mut dyn FnMut(Misfit),
    progress: &'a mut dyn FnMut(u64),
    seen: u64,
    /// A look-up in the middle of a scan failed.
    failed: Option<R::Error>,
}

impl<R: Rows> Check<'_, R> {
    fn say(&mut self, place: impl Into<String>, what: impl Into<String>) {
        (self.found)(Misfit { place: place.into(), what: what.into() });
    }

    /// Visits rows; `visit` may look up others, and its error ends the scan.
    fn each(&mut self, cf: Cf, from: &[u8], to: &[u8], visit: &mut Visit<'_, Self, R::Error>) -> Result<(), R::Error> {
        let rows = self.rows;
        rows.scan(cf, from, to, &mut |key, value| {
            self.seen += 1;
            (self.progress)(self.seen);
            if let Err(error) = visit(self, key, value) {
                self.failed = Some(error);
            }
            self.failed.is_none()
        })?;
        self.failed.take().map_or(Ok(()), Err)
    }

    fn node(&self, path: &str) -> Result<Option<NodeRec>, R::Error> {
        let Some(key) = key::node(path) else { return Ok(None) };
        Ok(self.rows.get(Cf::Node, &key)?.and_then(|raw| NodeRec::decode(&raw)))
    }

    fn has_row(&self, cf: Cf, (from, to): (Vec<u8>, Vec<u8>)) -> Result<bool, R::Error> {
        let mut any = false;
        self.rows.scan(cf, &from, &to, &mut |_, _| {
            any = true;
            false
        })?;
        Ok(any)
    }

    fn nodes(&mut self) -> Result<(Counted, Used), R::Error> {
        let (mut counted, mut used) = (Counted::default(), Used::default());
        // Children of one znode lie together.
        let mut group: Option<(String, u32)> = None;
        self.each(Cf::Node, &[], END, &mut |check, key, raw| {
            let Some(path) = key::path_of(key).filter(|path| path::validate(path).is_ok()) else {
                check.say(format!("row {key:02x?}"), "its key is the path of no znode");
                return Ok(());
            };
            counted.znodes += 1;
            counted.digest = counted.digest.wrapping_add(NodeRec::digest(key, raw));
            counted.quotas += u64::from(quota::limited_by(&path).is_some());
            if let Some(parent) = path::parent(&path) {
                match &mut group {
                    Some((of, children)) if of.as_str() == parent => *children += 1,
                    _ => {
                        let before = group.replace((parent.to_owned(), 1));
                        check.children(before)?;
                    }
                }
            }
            let Some(rec) = NodeRec::decode(&Bytes::copy_from_slice(raw)) else {
                check.say(path, "its record is malformed");
                return Ok(());
            };
            counted.data_bytes += (path.len() + rec.data.len()) as u64;
            check.record(key, path, &rec, &mut counted, &mut used)
        })?;
        self.children(group)?;
        if self.node("/")?.is_none() {
            self.say("/", "there is no root");
        }
        Ok((counted, used))
    }

    fn record(
        &mut self,
        key: &[u8],
        path: String,
        rec: &NodeRec,
        counted: &mut Counted,
        used: &mut Used,
    ) -> Result<(), R::Error> {
        match rec.owner {
            Owner::Ephemeral(session) => {
                counted.ephemerals += 1;
                if self.rows.get(Cf::Aux, &key::ephemeral(session, &path))?.is_none() {
                    self.say(
                        path.as_str(),
                        format!("an ephemeral of session {session} that is not in its index (I20)"),
                    );
                }
            }
            Owner::Container | Owner::Ttl(_) => used.reapables += 1,
            Owner::Persistent => {}
        }
        if rec.acl != acl::OPEN {
            used.acls.insert(rec.acl);
        }
        if let Stored::External { len, hash } = rec.data {
            used.external += 1;
            match self.rows.get(Cf::Data, key)? {
                None => self.say(path.as_str(), format!("its {len} bytes of data are missing")),
                Some(data) if data.len() == len as usize && xxhash_rust::xxh3::xxh3_64(&data) == hash => {}
                Some(_) => self.say(path.as_str(), "its data are not those that its record names"),
            }
        }
        // A znode with children is looked at again when these were counted.
        if rec.num_children > 0 && !self.has_row(Cf::Node, key::children(&path))? {
            let what = format!("it has no child, and {} in its record (I21)", rec.num_children);
            self.say(path, what);
        }
        Ok(())
    }

    /// All children of a znode were counted.
    fn children(&mut self, group: Option<(String, u32)>) -> Result<(), R::Error> {
        let Some((parent, children)) = group else { return Ok(()) };
        match self.node(&parent)? {
            None => {
                self.say(parent, format!("it is missing or malformed, and {children} znodes are its children (I21)"))
            }
            Some(NodeRec { owner: Owner::Ephemeral(_), .. }) => {
                self.say(parent, "an ephemeral that has children (I21)")
            }
            Some(rec) if rec.num_children != children => {
                let what = format!("it has {children} children, and {} in its record (I21)", rec.num_children);
                self.say(parent, what);
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn data(&mut self, external: u64) -> Result<(), R::Error> {
        let mut rows = 0;
        self.each(Cf::Data, &[], END, &mut |check, key, _| {
            rows += 1;
            let rec = check.rows.get(Cf::Node, key)?.and_then(|raw| NodeRec::decode(&raw));
            if !matches!(rec, Some(NodeRec { data: Stored::External { .. }, .. })) {
                let place = key::path_of(key).unwrap_or_else(|| format!("row {key:02x?}"));
                check.say(place, "there are data for it, which no record names");
            }
            Ok(())
        })?;
        if rows < external {
            self.say("data beside the records", format!("{external} znodes have some, and there are {rows} rows"));
        }
        Ok(())
    }

    /// The change feed is each server's own: what is in it need not fit the tree, but every row must be readable.
    fn feed(&mut self) -> Result<(), R::Error> {
        self.rows.get(Cf::Feed, feed::BOUNDS)?;
        self.each(Cf::Feed, &[], feed::BOUNDS, &mut |check, key, value| {
            if !feed::is_record(value) {
                check.say(format!("the change feed, row {key:02x?}"), "it cannot be read");
            }
            Ok(())
        })
    }

    fn aux(&mut self, acls: &BTreeSet<u32>) -> Result<Indexes, R::Error> {
        let mut indexes = Indexes::default();
        let mut owned: Option<(SessionId, u32)> = None;
        let mut kept: Option<Kept> = None;
        self.each(Cf::Aux, &[], END, &mut |check, key, value| {
            match key.first() {
                Some(b'm') if key == key::META => {}
                Some(b'c') if key == key::SETTINGS => {
                    if let Err(error) = Settings::decode(value) {
                        check.say("the replicated settings", error.to_string());
                    }
                }
                Some(b'a') if key.len() == key::acl(0).len() => {
                    let by_content = key::acl_by_content(&acl::content_hash(value));
                    let id = check.rows.get(Cf::Aux, &by_content)?.and_then(|id| list_id(&id));
                    if id.is_none_or(|id| key::acl(id) != key) {
                        check.say(format!("row {key:02x?}"), "an ACL list that is not found by its content");
                    }
                }
                Some(b'A') if key.len() == key::acl_by_content(&[0; 32]).len() => {
                    let list = list_id(value).map(|id| check.rows.get(Cf::Aux, &key::acl(id))).transpose()?.flatten();
                    if list.is_none_or(|list| key::acl_by_content(&acl::content_hash(&list)) != key) {
                        check.say(format!("row {key:02x?}"), "it names an ACL list that is not there, or another one");
                    }
                }
                Some(b'e') => {
                    indexes.ephemerals += 1;
                    let Some(session) = check.ephemeral(key)? else { return Ok(()) };
                    match &mut owned {
                        Some((of, count)) if *of == session => *count += 1,
                        _ => {
                            let before = owned.replace((session, 1));
                            check.owned(before)?;
                        }
                    }
                }
                Some(b'r') => {
                    let Some((session, n)) = session_and(key).and_then(|(s, n)| Some((s, number(n)?))) else {
                        check.say(format!("row {key:02x?}"), "its key is that of no kept result");
                        return Ok(());
                    };
                    if decode_result(value).is_none() {
                        check.say(format!("session {session}"), format!("its kept result of request {n} is malformed"));
                    }
                    match &mut kept {
                        Some(of) if of.session == session => of.add(n, value.len()),
                        _ => {
                            let mut fresh = Kept { session, count: 0, bytes: 0, first: n, last: n };
                            fresh.add(n, value.len());
                            let before = kept.replace(fresh);
                            check.kept(before)?;
                        }
                    }
                }
                Some(b'l') => {
                    if key::carrier_of(key).is_none() || CarrierRow::decode(value).is_none() {
                        check.say(format!("row {key:02x?}"), "the carrier of a server's local sessions, and malformed");
                    }
                }
                Some(b's') => {
                    indexes.sessions += 1;
                    check.session(key, value)?;
                }
                Some(b't') => {
                    indexes.reapables += 1;
                    let path = String::from_utf8_lossy(&key[1..]).into_owned();
                    let owner = check.node(&path)?.map(|rec| rec.owner);
                    if !matches!(owner, Some(Owner::Container | Owner::Ttl(_))) {
                        check.say(path, "the index of containers and TTL znodes names it, and it is none");
                    }
                }
                _ => check.say(format!("row {key:02x?}"), "it is of a kind that this program does not know"),
            }
            Ok(())
        })?;
        self.owned(owned)?;
        self.kept(kept)?;
        for id in acls {
            if self.rows.get(Cf::Aux, &key::acl(*id))?.is_none() {
                self.say(
                    format!("ACL list {id}"),
                    "znodes refer to it, and it does not exist: nobody may do anything there",
                );
            }
        }
        Ok(indexes)
    }

    /// A row of the index of ephemerals; whose it is.
    fn ephemeral(&mut self, key: &[u8]) -> Result<Option<SessionId>, R::Error> {
        let parsed =
            session_and(key).and_then(|(session, path)| Some((session, String::from_utf8(path.to_vec()).ok()?)));
        let Some((session, path)) = parsed else {
            self.say(format!("row {key:02x?}"), "its key is that of no ephemeral");
            return Ok(None);
        };
        match self.node(&path)?.map(|rec| rec.owner) {
            Some(Owner::Ephemeral(owner)) if owner == session => {}
            _ => self.say(path.as_str(), format!("the index says that it is an ephemeral of session {session} (I20)")),
        }
        Ok(Some(session))
    }

    /// All ephemerals of a session were counted.
    fn owned(&mut self, group: Option<(SessionId, u32)>) -> Result<(), R::Error> {
        let Some((session, owned)) = group else { return Ok(()) };
        let row = self.rows.get(Cf::Aux, &key::session(session))?.and_then(|value| SessionRow::decode(&value));
        match row {
            None => {
                self.say(format!("session {session}"), format!("it is over, and {owned} ephemerals are left (I20)"))
            }
            Some(row) if row.ephemerals != owned => {
                let what = format!("it owns {owned} ephemerals, and {} in its row (I20)", row.ephemerals);
                self.say(format!("session {session}"), what);
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// All kept results of a session were counted.
    fn kept(&mut self, group: Option<Kept>) -> Result<(), R::Error> {
        let Some(kept) = group else { return Ok(()) };
        let place = format!("session {}", kept.session);
        let row = self.rows.get(Cf::Aux, &key::session(kept.session))?.and_then(|value| SessionRow::decode(&value));
        let Some(row) = row else {
            self.say(place, format!("it is over, and {} of its results are kept", kept.count));
            return Ok(());
        };
        let too_many = kept.count > RESULTS_MAX || (kept.bytes > RESULT_BYTES_MAX && kept.count > 1);
        let outside = kept.first < row.results_from || kept.last > row.last_n;
        if kept.bytes != row.result_bytes || too_many || outside {
            let what = format!(
                "it keeps {} results of {} bytes for the requests {} to {}; its row says {} bytes for {} to {}",
                kept.count, kept.bytes, kept.first, kept.last, row.result_bytes, row.results_from, row.last_n
            );
            self.say(place, what);
        }
        Ok(())
    }

    fn session(&mut self, key: &[u8], value: &[u8]) -> Result<(), R::Error> {
        let Some(session) = key::session_of(key) else {
            self.say(format!("row {key:02x?}"), "its key is that of no session");
            return Ok(());
        };
        let Some(row) = SessionRow::decode(value) else {
            self.say(format!("session {session}"), "its row is malformed");
            return Ok(());
        };
        if row.ephemerals > 0 && !self.has_row(Cf::Aux, key::ephemerals(session, ""))? {
            let what = format!("it owns no ephemeral, and {} in its row (I20)", row.ephemerals);
            self.say(format!("session {session}"), what);
        }
        if row.result_bytes > 0 && !self.has_row(Cf::Aux, key::results(session))? {
            let what = format!("no result is kept, and {} bytes of them in its row", row.result_bytes);
            self.say(format!("session {session}"), what);
        }
        Ok(())
    }

    fn meta(&mut self, counted: &Counted) -> Result<(), R::Error> {
        let row = self.rows.get(Cf::Aux, key::META)?;
        let Some(meta) = row.and_then(|value| Meta::decode(&value)) else {
            self.say("the meta row", "it is missing or malformed: nobody knows how far the store is");
            return Ok(());
        };
        if meta.digest != counted.digest {
            let what = format!(
                "the digest of the tree is {:016x}, the running one {:016x}: a record is not what execution made it (I17)",
                counted.digest, meta.digest
            );
            self.say("the meta row", what);
        }
        for (name, actual, said) in [
            ("znodes", counted.znodes, meta.znodes),
            ("bytes of paths and data", counted.data_bytes, meta.data_bytes),
            ("ephemerals", counted.ephemerals, meta.ephemerals),
            ("sessions", counted.sessions, meta.sessions),
            ("quotas", counted.quotas, u64::from(meta.quotas)),
        ] {
            if actual != said {
                self.say("the meta row", format!("there are {actual} {name}, and {said} in the meta row (I21)"));
            }
        }
        Ok(())
    }
}

/// Kept results of one session.
struct Kept {
    session: SessionId,
    count: u64,
    bytes: u64,
    first: u64,
    last: u64,
}

impl Kept {
    fn add(&mut self, n: u64, bytes: usize) {
        self.count += 1;
        self.bytes += bytes as u64;
        self.first = self.first.min(n);
        self.last = self.last.max(n);
    }
}

/// The session in a key behind its first byte, and what follows.
fn session_and(key: &[u8]) -> Option<(SessionId, &[u8])> {
    let (id, rest) = key.get(1..)?.split_first_chunk::<8>()?;
    Some((SessionId(i64::from_be_bytes(*id)), rest))
}

fn list_id(value: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(value.try_into().ok()?))
}

fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// A view whose reads do not fail.
#[derive(Clone, Copy, Debug)]
pub struct SoundRows<'a, V>(pub &'a V);

impl<V: TreeView> Rows for SoundRows<'_, V> {
    type Error = std::convert::Infallible;

    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, Self::Error> {
        Ok(self.0.get(cf, key))
    }

    fn scan(
        &self,
        cf: Cf,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Self::Error> {
        self.0.scan(cf, from, to, visit);
        Ok(())
    }
}

/// All misfits of a view; empty for what execution made.
pub fn misfits(view: &impl TreeView) -> Vec<Misfit> {
    let mut found = Vec::new();
    match check(&SoundRows(view), &mut |misfit| found.push(misfit), &mut |_| {}) {
        Ok(_) => found,
        Err(never) => match never {},
    }
}
