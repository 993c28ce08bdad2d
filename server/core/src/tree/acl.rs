//! Permissions (wire 6.2, 6.3): what a list may hold, whom it lets do what, and how lists are stored.
//!
//! A list is stored once, under a small number that its znodes carry; 0 stands for `world:anyone:cdrwa` and has no
//! row. Lists are never removed: a watcher that was away is told of old changes by the list they happened under.

use std::borrow::Cow;
use std::collections::BTreeSet;

use bytes::{BufMut, Bytes};
use core::net::IpAddr;
use corral_proto::{Acl, ErrorCode, Id, perms};
use sha2::{Digest as _, Sha256};

use super::record::Reader;
use super::{Cf, TreeView, distinguished_name, key};

/// Number of `world:anyone:cdrwa`.
pub const OPEN: u32 = 0;

/// Lines a list may have after fix-up; more are refused with `InvalidAcl`. ZooKeeper knows no bound but the frame's.
pub const LINES_MAX: usize = 16_384;

/// Makes a client's list what is stored: every line valid, `auth` replaced by the connection's identities, doubles
/// removed (wire 6.3).
///
/// # Errors
/// [`ErrorCode::InvalidAcl`]: no line, an unknown scheme, an id its scheme does not know, `auth` without an identity,
/// or more than [`LINES_MAX`] lines.
pub fn fix_up<'a>(list: Option<&'a [Acl]>, ids: &[Id]) -> Result<Cow<'a, [Acl]>, ErrorCode> {
    let list = list.unwrap_or_default();
    if list.is_empty() || list.len() > LINES_MAX {
        return Err(ErrorCode::InvalidAcl);
    }
    if let [line] = list
        && line.id.scheme != "auth"
    {
        return if is_valid(&line.id) { Ok(Cow::Borrowed(list)) } else { Err(ErrorCode::InvalidAcl) };
    }
    let mut seen = BTreeSet::new();
    let mut fixed = Vec::with_capacity(list.len());
    for line in list {
        if !seen.insert(line) {
            continue;
        }
        if line.id.scheme == "auth" {
            let before = fixed.len();
            let authenticated = ids.iter().filter(|id| matches!(id.scheme.as_str(), "digest" | "sasl" | "x509"));
            fixed.extend(authenticated.map(|id| Acl { perms: line.perms, id: id.clone() }));
            if fixed.len() == before {
                return Err(ErrorCode::InvalidAcl);
            }
        } else if is_valid(&line.id) {
            fixed.push(line.clone());
        } else {
            return Err(ErrorCode::InvalidAcl);
        }
        if fixed.len() > LINES_MAX {
            return Err(ErrorCode::InvalidAcl);
        }
    }
    Ok(Cow::Owned(fixed))
}

/// Whether an identity may stand in a list.
fn is_valid(id: &Id) -> bool {
    match id.scheme.as_str() {
        "world" => id.id == "anyone",
        // Two parts around one colon, as Java splits: empty parts at the end do not count.
        "digest" => id.id.trim_end_matches(':').split(':').count() == 2,
        "ip" => Network::parse(&id.id).is_some(),
        "x509" => distinguished_name::is_valid(&id.id),
        "sasl" => is_kerberos_name(&id.id),
        _ => false,
    }
}

/// `primary@REALM` or `primary/instance@REALM`, any part of it empty; any text without a realm.
fn is_kerberos_name(name: &str) -> bool {
    match name.split_once('@') {
        None => true,
        Some((principal, realm)) => !realm.contains(['@', '/']) && principal.matches('/').count() <= 1,
    }
}

/// An `ip` line: an address, or the addresses that share its first bits.
struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    fn parse(text: &str) -> Option<Network> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address = parse_address(address)?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => parse_java_byte(bits).filter(|bits| *bits <= width)?,
            None => width,
        };
        Some(Network { address, bits })
    }

    fn contains(&self, other: IpAddr) -> bool {
        let same_prefix = |a: u128, b: u128, width: u8| {
            // A shift by the whole width is no shift in Rust: no bits to compare is always equal.
            self.bits == 0 || (a ^ b) >> (width - self.bits) == 0
        };
        match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same_prefix(a.to_bits().into(), b.to_bits().into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => same_prefix(a.to_bits(), b.to_bits(), 128),
            _ => false,
        }
    }
}

/// As ZooKeeper reads addresses: octets may have zeros and a sign in front, IPv6 has no octets at its end.
fn parse_address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return if text.contains('.') { None } else { text.parse().ok() };
    }
    let mut octets = text.split('.').map(parse_java_byte);
    let mut next = || octets.next().flatten();
    let address = IpAddr::from([next()?, next()?, next()?, next()?]);
    octets.next().is_none().then_some(address)
}

/// A number from 0 to 255 as Java's `Integer.parseInt` takes it.
fn parse_java_byte(text: &str) -> Option<u8> {
    let number: i32 = text.parse().ok()?;
    u8::try_from(number).ok()
}

/// Whether one of `ids` is whom a line means.
fn matches(scheme: &str, id: &str, ids: &[Id]) -> bool {
    match scheme {
        "world" => id == "anyone",
        "ip" => Network::parse(id).is_some_and(|network| {
            ids.iter()
                .filter(|held| held.scheme == "ip")
                .any(|held| held.id.parse().is_ok_and(|address: IpAddr| network.contains(address.to_canonical())))
        }),
        // ZooKeeper's one name with a meaning: the SASL user `super` is every SASL user.
        "sasl" => ids.iter().any(|held| held.scheme == scheme && (held.id == id || held.id == "super")),
        _ => ids.iter().any(|held| held.scheme == scheme && held.id == id),
    }
}

/// Whether connections with these identities may do what `need` names, any bit of it, under a list (wire 6.2).
pub fn allows(view: &impl TreeView, acl: u32, need: i32, ids: &[Id]) -> bool {
    // The setting is looked up last: it is needed only by those who would be refused.
    acl == OPEN
        || ids.iter().any(|id| id.scheme == "super")
        || granted(view, acl, need, ids)
        || super::read::skips_acl(view)
}

fn granted(view: &impl TreeView, acl: u32, need: i32, ids: &[Id]) -> bool {
    let Some(row) = view.get(Cf::Aux, &key::acl(acl)) else { return false };
    let mut lines = Lines(Reader::plain(&row));
    while let Some((perms, scheme, id)) = lines.next() {
        if perms & need != 0 && matches(scheme, id, ids) {
            return true;
        }
    }
    false
}

/// The list of a number; empty if there is none.
pub fn list(view: &impl TreeView, acl: u32) -> Vec<Acl> {
    if acl == OPEN {
        return Acl::open();
    }
    let row = view.get(Cf::Aux, &key::acl(acl)).unwrap_or_default();
    let mut lines = Lines(Reader::plain(&row));
    let mut list = Vec::new();
    while let Some((perms, scheme, id)) = lines.next() {
        list.push(Acl { perms, id: Id::new(scheme, id) });
    }
    list
}

/// A list with what only administrators may know left out: hashes of `digest` lines.
pub fn masked(mut list: Vec<Acl>) -> Vec<Acl> {
    for line in &mut list {
        if line.id.scheme == "digest" {
            let user = line.id.id.split(':').next().unwrap_or_default();
            line.id.id = format!("{user}:x");
        }
    }
    list
}

/// Whether it is the list with the number [`OPEN`].
pub fn is_open(list: &[Acl]) -> bool {
    matches!(list, [Acl { perms: perms::ALL, id }] if id.scheme == "world" && id.id == "anyone")
}

/// A list's row.
pub fn encode(list: &[Acl]) -> Bytes {
    let mut out = Vec::with_capacity(list.len() * 64);
    for line in list {
        out.put_i32_le(line.perms);
        for text in [&line.id.scheme, &line.id.id] {
            out.put_u32_le(text.len() as u32);
            out.extend_from_slice(text.as_bytes());
        }
    }
    Bytes::from(out)
}

/// Hash under which a list's number is found.
pub fn content_hash(encoded: &[u8]) -> [u8; 32] {
    Sha256::digest(encoded).into()
}

/// Walks over a list's row without copying it.
struct Lines<'a>(Reader<'a>);

impl<'a> Lines<'a> {
    fn next(&mut self) -> Option<(i32, &'a str, &'a str)> {
        let perms = self.0.i32()?;
        Some((perms, self.text()?, self.text()?))
    }

    fn text(&mut self) -> Option<&'a str> {
        let len = self.0.u32()? as usize;
        str::from_utf8(self.0.bytes(len)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(perms: i32, scheme: &str, id: &str) -> Acl {
        Acl { perms, id: Id::new(scheme, id) }
    }

    #[test]
    fn ids_are_judged_by_their_scheme() {
        for (scheme, id) in [
            ("world", "anyone"),
            ("digest", "bob:hash="),
            ("digest", ":hash"),
            ("digest", "bob:hash:"),
            ("digest", "bob:hash:::::"),
            ("ip", "10.0.0.1"),
            ("ip", "10.0.0.0/8"),
            ("ip", "0.0.0.0/0"),
            ("ip", "::1"),
            ("ip", "fe80::/128"),
            ("x509", "CN=bob"),
            ("ip", "010.0.0.1"),
            ("ip", "+1.2.3.4"),
            ("ip", "1.2.3.4/+8"),
            ("ip", "0:0:0:0:0:0:0:1/128"),
            ("sasl", ""),
            ("sasl", "a/b/c"),
            ("sasl", "a@"),
            ("sasl", "/b@R"),
            ("sasl", "bob"),
            ("sasl", "bob@REALM"),
            ("sasl", "zk/host@REALM"),
        ] {
            assert!(is_valid(&Id::new(scheme, id)), "{scheme}:{id}");
        }
        for (scheme, id) in [
            ("world", "bob"),
            ("world", ""),
            ("digest", "bob"),
            ("digest", "bob:"),
            ("digest", "bob::"),
            ("digest", "a:b:c"),
            ("digest", "a::b"),
            ("digest", "a:b:::::c"),
            ("digest", ":"),
            ("digest", "::b"),
            ("digest", ""),
            ("ip", "10.0.0.256"),
            ("ip", "10.0.0.0/33"),
            ("ip", "10.0.0.0/"),
            ("ip", "::/129"),
            ("ip", "host"),
            ("ip", "1.2.3"),
            ("ip", "1.2.3.4.5"),
            ("ip", "1.2.3.-4"),
            ("ip", "::ffff:1.2.3.4"),
            ("ip", "10.0.0.0/-1"),
            ("ip", ""),
            ("x509", "bob"),
            ("sasl", "a@b@c"),
            ("sasl", "a/b/c@R"),
            ("sasl", "a@b/c"),
            ("super", ""),
            ("nope", "x"),
            ("", ""),
        ] {
            assert!(!is_valid(&Id::new(scheme, id)), "{scheme}:{id}");
        }
    }

    #[test]
    fn networks_hold_the_addresses_that_share_their_first_bits() {
        let ids = |address: &str| vec![Id::new("ip", address)];
        for (network, address, inside) in [
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("10.1.0.0/16", "10.1.255.255", true),
            ("10.1.0.0/16", "10.2.0.0", false),
            ("10.1.2.3/0", "192.168.0.1", true),
            ("10.1.2.2/31", "10.1.2.3", true),
            ("10.0.0.0/8", "::ffff:10.9.9.9", true),
            ("fe80::/10", "fe80::1", true),
            ("fe80::/10", "10.0.0.1", false),
            ("::1", "0:0:0:0:0:0:0:1", true),
            ("010.1.2.3", "10.1.2.3", true),
            ("::/0", "::1", true),
            ("10.0.0.1", "not an address", false),
        ] {
            assert_eq!(matches("ip", network, &ids(address)), inside, "{address} in {network}");
        }
    }

    #[test]
    fn auth_becomes_the_identities_of_the_connection_and_doubles_go() {
        let ids = [Id::new("ip", "10.0.0.1"), Id::new("super", ""), Id::new("digest", "a:1"), Id::new("x509", "CN=b")];
        let list = [line(1, "world", "anyone"), line(31, "auth", ""), line(1, "world", "anyone")];
        let fixed = fix_up(Some(&list), &ids).unwrap();
        assert_eq!(*fixed, [line(1, "world", "anyone"), line(31, "digest", "a:1"), line(31, "x509", "CN=b")]);
        assert_eq!(fix_up(Some(&list), &ids[..2]), Err(ErrorCode::InvalidAcl));
        assert_eq!(fix_up(None, &ids), Err(ErrorCode::InvalidAcl));
        assert_eq!(fix_up(Some(&[]), &ids), Err(ErrorCode::InvalidAcl));
    }

    #[test]
    fn the_sasl_user_super_is_every_sasl_user_and_nobody_else() {
        let held = [Id::new("sasl", "super")];
        assert!(matches("sasl", "bob", &held) && matches("sasl", "super", &held));
        assert!(!matches("digest", "super", &held) && !matches("x509", "CN=bob", &held));
        assert!(!matches("sasl", "super", &[Id::new("sasl", "bob")]));
    }

    #[test]
    fn auth_lines_cannot_blow_a_list_up() {
        let ids: Vec<Id> = (0..1000).map(|n| Id::new("digest", format!("u{n}:h"))).collect();
        let list: Vec<Acl> = (0..1000).map(|perms| line(perms, "auth", "")).collect();
        assert_eq!(fix_up(Some(&list), &ids), Err(ErrorCode::InvalidAcl));
    }
}
