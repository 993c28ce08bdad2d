//! Checks a whole state against what execution promises of it. For tests and the simulator: it reads everything.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use corral_proto::{SessionId, path};

use super::execute::{RESULT_BYTES_MAX, RESULTS_MAX};
use super::record::{CarrierRow, Meta, NodeRec, Owner, Stored};
use super::{Cf, TreeView, acl, key, quota, read};

/// Says what is wrong with a state: children counted wrongly, an index that does not fit, a digest that is not the sum.
///
/// # Errors
/// The first thing found, for people.
pub fn audit(view: &impl TreeView) -> Result<(), String> {
    let meta = Meta::read(view).ok_or("no meta row")?;
    let nodes = nodes(view)?;
    audit_nodes(view, &meta, &nodes)?;
    audit_indexes(view, &nodes)?;
    audit_quotas(&meta, &nodes)?;
    audit_sessions(view, &meta, &nodes)
}

type Nodes = BTreeMap<String, (Bytes, NodeRec)>;

fn nodes(view: &impl TreeView) -> Result<Nodes, String> {
    let mut nodes = Nodes::new();
    for (key, raw) in rows(view, Cf::Node, &[], &[0xff]) {
        let path = key::path_of(&key).ok_or_else(|| format!("{key:?} is no key of a znode"))?;
        path::validate(&path).map_err(|_| format!("{path:?} is no path"))?;
        let rec = NodeRec::decode(&raw).ok_or_else(|| format!("the record of {path} is malformed"))?;
        nodes.insert(path, (raw, rec));
    }
    Ok(nodes)
}

fn audit_nodes(view: &impl TreeView, meta: &Meta, nodes: &Nodes) -> Result<(), String> {
    let mut counted = Meta::default();
    let mut children: BTreeMap<&str, u32> = BTreeMap::new();
    let mut external = 0;
    for (path, (raw, rec)) in nodes {
        let key = key::node(path).ok_or_else(|| format!("{path} has no key"))?;
        counted.digest = counted.digest.wrapping_add(NodeRec::digest(&key, raw));
        counted.znodes += 1;
        counted.data_bytes += (path.len() + rec.data.len()) as u64;
        counted.ephemerals += u64::from(matches!(rec.owner, Owner::Ephemeral(_)));
        if let Some(parent) = path::parent(path) {
            match nodes.get(parent) {
                None => return Err(format!("{path} has no parent")),
                Some((_, NodeRec { owner: Owner::Ephemeral(_), .. })) => {
                    return Err(format!("{path} is the child of an ephemeral"));
                }
                Some(_) => *children.entry(parent).or_default() += 1,
            }
        }
        if let Stored::External { len, hash } = rec.data {
            external += 1;
            let data = view.get(Cf::Data, &key).ok_or_else(|| format!("the data of {path} is missing"))?;
            if data.len() != len as usize || xxhash_rust::xxh3::xxh3_64(&data) != hash {
                return Err(format!("the data of {path} is not what its record says"));
            }
        }
        if rec.acl != acl::OPEN && acl::list(view, rec.acl).is_empty() {
            return Err(format!("{path} has ACL list {}, which does not exist", rec.acl));
        }
    }
    for (path, (_, rec)) in nodes {
        let actual = children.get(path.as_str()).copied().unwrap_or(0);
        if rec.num_children != actual {
            return Err(format!("{path} has {actual} children, and {} in its record", rec.num_children));
        }
    }
    if rows(view, Cf::Data, &[], &[0xff]).len() != external {
        return Err("there is data without a znode".to_owned());
    }
    let expected = Meta {
        digest: counted.digest,
        znodes: counted.znodes,
        data_bytes: counted.data_bytes,
        ephemerals: counted.ephemerals,
        ..meta.clone()
    };
    if expected != *meta {
        return Err(format!("the meta row is {meta:?}, not {expected:?}"));
    }
    Ok(())
}

fn audit_indexes(view: &impl TreeView, nodes: &Nodes) -> Result<(), String> {
    let due: BTreeSet<&str> = nodes
        .iter()
        .filter(|(_, (_, rec))| matches!(rec.owner, Owner::Container | Owner::Ttl(_)))
        .map(|(path, _)| path.as_str())
        .collect();
    let index = rows(view, Cf::Aux, key::REAPABLES.0, key::REAPABLES.1);
    if !index.iter().map(|(key, _)| &key[1..]).eq(due.iter().map(|path| path.as_bytes())) {
        return Err(format!("the index of containers and TTL znodes is not {due:?}"));
    }
    let mut owned: Vec<Bytes> = nodes
        .iter()
        .filter_map(|(path, (_, rec))| match rec.owner {
            Owner::Ephemeral(session) => Some(key::ephemeral(session, path)),
            _ => None,
        })
        .collect();
    owned.sort_unstable();
    if !rows(view, Cf::Aux, b"e", b"f").iter().map(|(key, _)| key).eq(&owned) {
        return Err("the index of ephemerals does not fit the tree".to_owned());
    }
    Ok(())
}

/// Quotas are counted, and what they say of their subtrees is true wherever it must be: not after a client wrote it,
/// nor if the znodes of the quota came in another order than clients make them or more than once, nor if a deeper quota
/// ever took a part of the charges, which all show in the znodes.
fn audit_quotas(meta: &Meta, nodes: &Nodes) -> Result<(), String> {
    let quotas = || nodes.keys().filter_map(|path| Some((path, quota::limited_by(path)?)));
    let count = quotas().count();
    if count != meta.quotas as usize {
        return Err(format!("there are {count} quotas, and {} in the meta row", meta.quotas));
    }
    for (limits, root) in quotas() {
        let kept = path::parent(limits).unwrap_or_default();
        let stats = path::join(kept, "zookeeper_stats");
        let Some(((_, limits), (_, stats), (_, kept))) =
            nodes.get(limits).zip(nodes.get(&stats)).zip(nodes.get(kept)).map(|((a, b), c)| (a, b, c))
        else {
            continue;
        };
        let undisturbed = kept.creates == 2 && stats.version == 0 && limits.czxid < stats.czxid;
        if !undisturbed || root.starts_with("/zookeeper") {
            continue;
        }
        let below = path::join(root, "");
        let counted = nodes.iter().filter(|(path, _)| *path == root || path.starts_with(&below));
        let (count, bytes) = counted.fold((0, 0), |(count, bytes), (_, (_, rec))| (count + 1, bytes + rec.data.len()));
        let expected = Stored::Inline(quota::Track::usage(count, bytes as i64).text());
        if stats.data != expected {
            return Err(format!("the usage of {root} is {:?}, not {expected:?}", stats.data));
        }
    }
    Ok(())
}

fn audit_sessions(view: &impl TreeView, meta: &Meta, nodes: &Nodes) -> Result<(), String> {
    let sessions = read::sessions(view);
    if sessions.len() as u64 != meta.sessions {
        return Err(format!("there are {} sessions, and {} in the meta row", sessions.len(), meta.sessions));
    }
    let mut results = 0;
    for (id, row) in &sessions {
        let owned = read::ephemerals(view, *id, "").len();
        if owned != row.ephemerals as usize {
            return Err(format!("session {id} owns {owned} ephemerals, and {} in its row", row.ephemerals));
        }
        let (from, to) = key::results(*id);
        let kept = rows(view, Cf::Aux, &from, &to);
        results += kept.len();
        let bytes: u64 = kept.iter().map(|(_, value)| value.len() as u64).sum();
        if bytes != row.result_bytes || (bytes > RESULT_BYTES_MAX && kept.len() > 1) || kept.len() as u64 > RESULTS_MAX
        {
            return Err(format!("session {id} keeps {} results of {bytes} bytes, {row:?}", kept.len()));
        }
        let window = key::result(*id, row.results_from)..=key::result(*id, row.last_n);
        if kept.iter().any(|(key, _)| !window.contains(key)) {
            return Err(format!("session {id} keeps a result outside of {row:?}"));
        }
    }
    if rows(view, Cf::Aux, b"r", b"s").len() != results {
        return Err("there are kept results without a session".to_owned());
    }
    for (key, value) in rows(view, Cf::Aux, key::CARRIERS.0, key::CARRIERS.1) {
        match CarrierRow::decode(&value) {
            Some(row) if row.attach <= meta.applied => {}
            row => return Err(format!("the carrier under {key:?} is {row:?}")),
        }
    }
    let open = |session: SessionId| sessions.binary_search_by_key(&session, |(id, _)| *id).is_ok();
    for (path, (_, rec)) in nodes {
        if let Owner::Ephemeral(session) = rec.owner
            && !open(session)
        {
            return Err(format!("{path} outlived session {session}"));
        }
    }
    Ok(())
}

fn rows(view: &impl TreeView, cf: Cf, from: &[u8], to: &[u8]) -> Vec<(Bytes, Bytes)> {
    let mut rows = Vec::new();
    view.scan(cf, from, to, &mut |key, value| {
        rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        true
    });
    rows
}
