//! Session passwords: what a client shows when it attaches to its session again (wire 2.5).
//!
//! 16 bytes derived from the session's id with a key that is a replicated setting: every server can check them, and
//! who knows an id alone cannot make them.

use corral_proto::SessionId;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Bytes of a password; clients depend on it.
pub const PASSWORD_LEN: usize = 16;

/// The password of a session.
pub fn session_password(key: &[u8], session: SessionId) -> [u8; PASSWORD_LEN] {
    let full = mac(key, session).finalize().into_bytes();
    let mut password = [0; PASSWORD_LEN];
    password.copy_from_slice(&full[..PASSWORD_LEN]);
    password
}

/// Whether it is the session's password; takes the same time for all wrong ones.
pub fn is_session_password(key: &[u8], session: SessionId, given: &[u8]) -> bool {
    given.len() == PASSWORD_LEN && mac(key, session).verify_truncated_left(given).is_ok()
}

fn mac(key: &[u8], session: SessionId) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(&session.0.to_be_bytes());
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_is_checked_by_whoever_has_the_key() {
        let password = session_password(b"0123456789abcdef", SessionId(7));
        assert!(is_session_password(b"0123456789abcdef", SessionId(7), &password));
        assert!(!is_session_password(b"0123456789abcdeF", SessionId(7), &password));
        assert!(!is_session_password(b"0123456789abcdef", SessionId(8), &password));
        assert!(!is_session_password(b"0123456789abcdef", SessionId(7), &password[..15]));
        assert!(!is_session_password(b"0123456789abcdef", SessionId(7), &[]));
        let mut wrong = password;
        wrong[15] ^= 1;
        assert!(!is_session_password(b"0123456789abcdef", SessionId(7), &wrong));
    }

    #[test]
    fn password_stays_what_it_was() {
        // Clients hold passwords across restarts and upgrades of all servers.
        let expected = [0x78, 0x67, 0x12, 0x67, 0x4f, 0x39, 0x8a, 0xd3, 0xe2, 0x7c, 0xe4, 0x07, 0xbe, 0x55, 0x51, 0x8f];
        assert_eq!(session_password(b"key", SessionId(1)), expected);
    }
}
