//! The `digest` scheme (wire 6.4): a user and a password, proved in clear text, stored as a hash.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use corral_proto::Id;
use sha1::{Digest as _, Sha1};

/// The identity that `user:password` proves: `user:base64(sha1(user:password))`. The user ends at the first colon;
/// a proof without one is all user, as in ZooKeeper. Bytes that are not UTF-8 are replaced before they are hashed, as
/// where Java makes a string of them.
pub fn identity(proof: &[u8]) -> Id {
    let proof = String::from_utf8_lossy(proof);
    let user = proof.split(':').next().unwrap_or_default();
    Id::new("digest", format!("{user}:{}", STANDARD.encode(Sha1::digest(proof.as_bytes()))))
}

/// The identities that a proof gives: its own, and `super` in addition if it is the configured super user's
/// (`superDigest`, of the form `super:<base64>`).
pub fn identities(proof: &[u8], super_digest: Option<&str>) -> Vec<Id> {
    let own = identity(proof);
    let is_super = super_digest.is_some_and(|digest| digest == own.id);
    let mut ids = vec![own];
    if is_super {
        ids.push(Id::new("super", ""));
    }
    ids
}

/// The name that whoAmI shows for an identity: of `digest` the user, of `super` none, else all of it (wire 3.2).
pub fn display_name(id: &Id) -> &str {
    match id.scheme.as_str() {
        "digest" => id.id.split(':').next().unwrap_or_default(),
        // No provider has this scheme that could name its user, whoever it is.
        "super" => "",
        _ => &id.id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_is_what_zookeeper_derives() {
        assert_eq!(identity(b"bob:secret"), Id::new("digest", "bob:fyVmFCwVbTJYrznoSu1koqYEYF0="));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_hashed_as_what_java_reads() {
        assert_eq!(identity(b"user:caf\xe9"), identity("user:caf\u{fffd}".as_bytes()));
        assert!(identity(b"user:caf\xe9").id.starts_with("user:tiVu7"), "seen on a live server");
    }

    #[test]
    fn user_ends_at_the_first_colon_and_the_hash_covers_everything() {
        assert!(identity(b"bob:a:b").id.starts_with("bob:"));
        assert_ne!(identity(b"bob:a:b"), identity(b"bob:a"));
        assert!(identity(b"justuser").id.starts_with("justuser:"));
        assert!(identity(b"").id.starts_with(':'));
        assert_ne!(identity(b"bob"), identity(b"bob:"));
    }

    #[test]
    fn super_comes_in_addition_to_the_digest_identity() {
        let own = identity(b"super:pw");
        assert_eq!(identities(b"super:pw", Some(&own.id)), [own.clone(), Id::new("super", "")]);
        assert_eq!(identities(b"super:wrong", Some(&own.id)), [identity(b"super:wrong")]);
        assert_eq!(identities(b"super:pw", None), [own]);
    }

    #[test]
    fn whoami_shows_the_user_and_not_the_hash() {
        assert_eq!(display_name(&identity(b"bob:secret")), "bob");
        assert_eq!(display_name(&Id::new("ip", "127.0.0.1")), "127.0.0.1");
        assert_eq!(display_name(&Id::new("x509", "CN=a:b")), "CN=a:b");
    }
}
