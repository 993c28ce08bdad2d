//! SASL with the mechanism DIGEST-MD5 (RFC 2831), as ZooKeeper's servers speak it (wire 6.6): the client sends anything,
//! gets a challenge, answers it without showing its password, and gets the server's own proof.
//!
//! DIGEST-MD5 is old and its hash is weak: it keeps a password off the wire, and no more. Over TLS that is enough.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use corral_proto::Id;
use md5::{Digest as _, Md5};

/// The realm that is offered: Java's name of the server, which ZooKeeper's clients have built in.
pub const REALM: &str = "zk-sasl-md5";
/// What clients name before the slash of `digest-uri`.
const SERVICE: &str = "zookeeper";
/// Random bytes of a nonce.
pub const NONCE_BYTES: usize = 30;
/// Longest answer to a challenge, in bytes (RFC 2831, 2.1.2).
const RESPONSE_BYTES_MAX: usize = 4096;
/// The user who matches every line of the scheme `sasl`, as in ZooKeeper.
pub const SUPER: &str = "super";

/// Users and their passwords.
pub type Users = BTreeMap<String, String>;

/// One connection's exchange.
#[derive(Debug, Default)]
pub struct DigestMd5 {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    New,
    /// The challenge with this nonce was sent.
    Challenged(String),
    /// Proven or refused: nothing may follow.
    Over,
}

/// What the client gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Something to prove.
    Challenge(String),
    /// It is this user; the text proves that the server knows the password too.
    Proven {
        /// Who.
        user: String,
        /// For the client.
        proof: String,
    },
}

/// Why an exchange failed. For the log: clients are told nothing but that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SaslError {
    /// A token after the end.
    #[error("the exchange was over")]
    Over,
    /// No list of directives, or more than there may be.
    #[error("the response cannot be read: {0}")]
    Syntax(&'static str),
    /// A directive with a value that does not fit the challenge.
    #[error("the response has a wrong {0}")]
    Wrong(&'static str),
    /// No such user.
    #[error("there is no user {0:?}")]
    UnknownUser(String),
    /// The password is not the user's.
    #[error("wrong password of user {0:?}")]
    WrongPassword(String),
}

impl DigestMd5 {
    /// Takes the client's next token. `nonce` is used for a challenge, and must never come again.
    ///
    /// # Errors
    /// [`SaslError`]: the exchange is over, and so should be the connection.
    pub fn respond(&mut self, token: &[u8], nonce: [u8; NONCE_BYTES], users: &Users) -> Result<Answer, SaslError> {
        match std::mem::replace(&mut self.state, State::Over) {
            // Java looks at nothing in the first token either.
            State::New => {
                let nonce = STANDARD.encode(nonce);
                let challenge = format!("realm=\"{REALM}\",nonce=\"{nonce}\",charset=utf-8,algorithm=md5-sess");
                self.state = State::Challenged(nonce);
                Ok(Answer::Challenge(challenge))
            }
            State::Challenged(nonce) => check(token, &nonce, users),
            State::Over => Err(SaslError::Over),
        }
    }
}

/// The identities that a proven user gives: its own, and `super` in addition if it is one of the super users.
pub fn identities<'a>(user: &str, super_users: impl IntoIterator<Item = &'a String>) -> Vec<Id> {
    let mut ids = vec![Id::new("sasl", user)];
    if super_users.into_iter().any(|name| name == user) {
        ids.push(Id::new("super", ""));
    }
    ids
}

fn check(token: &[u8], nonce: &str, users: &Users) -> Result<Answer, SaslError> {
    if token.len() > RESPONSE_BYTES_MAX {
        return Err(SaslError::Syntax("too long"));
    }
    let given = directives(token)?;
    let get = |name: &str| given.get(name).map(Vec::as_slice);
    let is =
        |name: &'static str, value: &[u8]| if get(name) == Some(value) { Ok(()) } else { Err(SaslError::Wrong(name)) };
    let utf8 = match get("charset") {
        None => false,
        Some(charset) if charset.eq_ignore_ascii_case(b"utf-8") => true,
        Some(_) => return Err(SaslError::Wrong("charset")),
    };
    is("nonce", nonce.as_bytes())?;
    is("nc", b"00000001")?;
    is("realm", REALM.as_bytes())?;
    let qop = get("qop").unwrap_or(b"auth");
    if qop != b"auth" {
        return Err(SaslError::Wrong("qop"));
    }
    let uri = get("digest-uri").ok_or(SaslError::Wrong("digest-uri"))?;
    if !uri.eq_ignore_ascii_case(format!("{SERVICE}/{REALM}").as_bytes()) {
        return Err(SaslError::Wrong("digest-uri"));
    }
    let cnonce = get("cnonce").filter(|cnonce| !cnonce.is_empty()).ok_or(SaslError::Wrong("cnonce"))?;
    let user = get("username").ok_or(SaslError::Wrong("username"))?;
    let user = if utf8 {
        str::from_utf8(user).map_err(|_| SaslError::Wrong("username"))?.to_owned()
    } else {
        user.iter().map(|byte| char::from(*byte)).collect()
    };
    let response = get("response").ok_or(SaslError::Wrong("response"))?;
    let password = users.get(&user).ok_or_else(|| SaslError::UnknownUser(user.clone()))?;

    let secret = md5(&[&hashed(&user), b":", REALM.as_bytes(), b":", &hashed(password)]);
    let mut session = vec![&secret[..], b":", nonce.as_bytes(), b":", cnonce];
    if let Some(authorize) = get("authzid") {
        session.extend([b":".as_slice(), authorize]);
    }
    let session = hex(&md5(&session));
    let proof = |who: &[u8]| {
        let action = hex(&md5(&[who, b":", uri]));
        let nonce = nonce.as_bytes();
        hex(&md5(&[session.as_bytes(), b":", nonce, b":00000001:", cnonce, b":", qop, b":", action.as_bytes()]))
    };
    if !same(response, proof(b"AUTHENTICATE").as_bytes()) {
        return Err(SaslError::WrongPassword(user));
    }
    Ok(Answer::Proven { user, proof: format!("rspauth={}", proof(b"")) })
}

/// Takes `name=value,name="value",...` apart; each name may come once.
fn directives(token: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, SaslError> {
    let mut found = BTreeMap::new();
    let mut bytes = token.iter().copied().peekable();
    loop {
        while bytes.next_if(|byte| *byte == b',' || byte.is_ascii_whitespace()).is_some() {}
        if bytes.peek().is_none() {
            return Ok(found);
        }
        let mut name = String::new();
        loop {
            match bytes.next() {
                Some(b'=') => break,
                Some(byte) if byte.is_ascii_graphic() => name.push(char::from(byte.to_ascii_lowercase())),
                Some(b' ' | b'\t') => {}
                _ => return Err(SaslError::Syntax("a name without a value")),
            }
        }
        while bytes.next_if(u8::is_ascii_whitespace).is_some() {}
        let mut value = Vec::new();
        if bytes.next_if_eq(&b'"').is_some() {
            loop {
                match bytes.next() {
                    Some(b'"') => break,
                    Some(b'\\') => value.extend(bytes.next()),
                    Some(byte) => value.push(byte),
                    None => return Err(SaslError::Syntax("a quote is not closed")),
                }
            }
            while bytes.next_if(u8::is_ascii_whitespace).is_some() {}
            if bytes.peek().is_some_and(|byte| *byte != b',') {
                return Err(SaslError::Syntax("text after a quote"));
            }
        } else {
            while let Some(byte) = bytes.next_if(|byte| *byte != b',') {
                value.push(byte);
            }
            value.truncate(value.trim_ascii_end().len());
        }
        if name.is_empty() || found.insert(name, value).is_some() {
            return Err(SaslError::Syntax("a name is missing or comes twice"));
        }
    }
}

/// The bytes of a text that are hashed: ISO 8859-1 if it can be written so, else UTF-8 (RFC 2831, 2.1.2.1).
fn hashed(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect::<Option<_>>().unwrap_or_else(|| text.into())
}

fn md5(parts: &[&[u8]]) -> [u8; 16] {
    let mut hash = Md5::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether two texts are the same; takes the same time for all wrong ones of a length.
fn same(given: &[u8], expected: &[u8]) -> bool {
    given.len() == expected.len() && given.iter().zip(expected).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

// ------------------------------------------------------------------------------------------------------------- users

/// Reads users and passwords: the section `Server` of a JAAS file as ZooKeeper's servers have one, or only its lines
/// `user_NAME="PASSWORD"`.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse_users(text: &str) -> Result<Users, String> {
    let tokens = tokens(text)?;
    let has_sections = tokens.contains(&Token::Mark('{'));
    let mut users = Users::new();
    let mut section = if has_sections { None } else { Some("Server") };
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at..] {
            [Token::Word(name), Token::Mark('{'), ..] => {
                section = Some(name);
                at += 2;
            }
            [Token::Mark('}'), ..] => {
                section = None;
                at += 1;
            }
            [Token::Word(key), Token::Mark('='), Token::Word(value) | Token::Quoted(value), ..] => {
                if let (Some("Server"), Some(name)) = (section, key.strip_prefix("user_")) {
                    if name.is_empty() || name.contains(['@', '/']) {
                        return Err(format!("{key}: a user's name is not empty and has neither @ nor /"));
                    }
                    if value.is_empty() {
                        return Err(format!("{key}: the password is empty"));
                    }
                    if users.insert(name.to_owned(), value.clone()).is_some() {
                        return Err(format!("{key} stands there twice"));
                    }
                }
                at += 3;
            }
            _ => at += 1,
        }
    }
    if users.is_empty() {
        return Err(
            "it names no user; allowed: lines user_NAME=\"PASSWORD\", or a JAAS section Server with them".into()
        );
    }
    Ok(users)
}

#[derive(Debug, PartialEq)]
enum Token {
    Word(String),
    Quoted(String),
    Mark(char),
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '#' => skip_line(&mut chars),
            '/' if chars.peek() == Some(&'/') => skip_line(&mut chars),
            '/' if chars.next_if_eq(&'*').is_some() => {
                let mut last = ' ';
                loop {
                    match chars.next() {
                        Some('/') if last == '*' => break,
                        Some(next) => last = next,
                        None => return Err("a comment is not closed".into()),
                    }
                }
            }
            '{' | '}' | ';' | '=' => tokens.push(Token::Mark(c)),
            '"' => {
                let mut quoted = String::new();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => match chars.next() {
                            Some(escaped @ ('"' | '\\')) => quoted.push(escaped),
                            _ => return Err("in quotes, \\ stands before \" or \\ only".into()),
                        },
                        Some('\n') | None => return Err("a quote is not closed".into()),
                        Some(c) => quoted.push(c),
                    }
                }
                tokens.push(Token::Quoted(quoted));
            }
            c if c.is_whitespace() => {}
            c => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| !c.is_whitespace() && !matches!(c, '{' | '}' | ';' | '=' | '"')) {
                    word.push(c);
                }
                tokens.push(Token::Word(word));
            }
        }
    }
    Ok(tokens)
}

fn skip_line(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    while chars.next_if(|c| *c != '\n').is_some() {}
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONCE: [u8; NONCE_BYTES] =
        *b"\xa9\x84\x91\xd8Wn\x14\xe64\x55\x11\xed\x66d\x02\xce\x44\x87\x50w\xd8\x32RW\xeb\x4d0qt\xb0";

    fn users() -> Users {
        Users::from([
            ("bob".into(), "bobsecret".into()),
            ("süß".into(), "naïve".into()),
            ("ключ".into(), "тайна".into()),
        ])
    }

    fn challenged() -> (DigestMd5, String) {
        let mut exchange = DigestMd5::default();
        let Ok(Answer::Challenge(challenge)) = exchange.respond(b"", NONCE, &users()) else { panic!("no challenge") };
        let nonce = challenge.split('"').nth(3).unwrap().to_owned();
        (exchange, nonce)
    }

    /// The answer to a challenge, made from the RFC's formula on its own.
    fn response(user: &[u8], password: &[u8], nonce: &str, more: &str) -> String {
        let uri = "zookeeper/zk-sasl-md5";
        let h = |bytes: &[u8]| -> [u8; 16] { Md5::digest(bytes).into() };
        let a1 = [&h(&[user, b":zk-sasl-md5:", password].concat())[..], format!(":{nonce}:abc").as_bytes()].concat();
        let a2 = hex(&h(format!("AUTHENTICATE:{uri}").as_bytes()));
        let proof = hex(&h(format!("{}:{nonce}:00000001:abc:auth:{a2}", hex(&h(&a1))).as_bytes()));
        format!(
            "charset=utf-8,realm=\"zk-sasl-md5\",nonce=\"{nonce}\",nc=00000001,cnonce=\"abc\",digest-uri=\"{uri}\",\
             maxbuf=65536,response={proof},qop=auth{more}"
        )
    }

    #[test]
    fn the_challenge_is_zookeepers_to_the_byte() {
        let mut exchange = DigestMd5::default();
        let challenge = exchange.respond(b"anything", NONCE, &users()).unwrap();
        let nonce = STANDARD.encode(NONCE);
        assert_eq!(nonce.len(), 40);
        assert_eq!(
            challenge,
            Answer::Challenge(format!("realm=\"zk-sasl-md5\",nonce=\"{nonce}\",charset=utf-8,algorithm=md5-sess"))
        );
    }

    #[test]
    fn an_exchange_recorded_with_javas_server_is_accepted_with_the_same_proof() {
        // Recorded against ZooKeeper 3.8: user bob, password bobsecret.
        let nonce = "qYSR2FeMZ5ETMVh2ZtkBizSHUHfYMlHX600xwQLO";
        let mut exchange = DigestMd5 { state: State::Challenged(nonce.into()) };
        let token = response(b"bob", b"bobsecret", nonce, ",username=\"bob\"");
        assert_eq!(
            exchange.respond(token.as_bytes(), NONCE, &users()),
            Ok(Answer::Proven { user: "bob".into(), proof: "rspauth=667414e959d60b86627432fdd851d470".into() })
        );
        assert_eq!(exchange.respond(b"", NONCE, &users()), Err(SaslError::Over), "there is no second exchange");
    }

    #[test]
    fn a_wrong_password_an_unknown_user_and_every_wrong_directive_are_refused() {
        let answer = |change: &dyn Fn(String) -> String| {
            let (mut exchange, nonce) = challenged();
            let token = change(response(b"bob", b"bobsecret", &nonce, ",username=\"bob\""));
            let answer = exchange.respond(token.as_bytes(), NONCE, &users());
            assert_eq!(exchange.respond(b"", NONCE, &users()), Err(SaslError::Over));
            answer
        };
        assert!(answer(&|t| t).is_ok());
        assert_eq!(answer(&|t| t.replace("\"bob\"", "\"eve\"")), Err(SaslError::UnknownUser("eve".into())));
        assert_eq!(
            answer(&|t| t.replace("cnonce=\"abc\"", "cnonce=\"abd\"")),
            Err(SaslError::WrongPassword("bob".into()))
        );
        for (from, to, wrong) in [
            ("nc=00000001", "nc=00000002", "nc"),
            ("qop=auth", "qop=auth-int", "qop"),
            ("/zk-sasl-md5\"", "/localhost\"", "digest-uri"),
            ("\"zookeeper/", "\"hdfs/", "digest-uri"),
            ("realm=\"zk-sasl-md5\",", "", "realm"),
            ("nonce=\"", "nonce=\"x", "nonce"),
            ("charset=utf-8", "charset=latin9", "charset"),
            ("response=", "respond=", "response"),
            (",username=\"bob\"", "", "username"),
        ] {
            assert_eq!(answer(&|t| t.replacen(from, to, 1)), Err(SaslError::Wrong(wrong)), "{from}");
        }
        assert_eq!(answer(&|t| t + ",qop=auth"), Err(SaslError::Syntax("a name is missing or comes twice")));
        assert_eq!(answer(&|_| "garbage".into()), Err(SaslError::Syntax("a name without a value")));
        assert_eq!(answer(&|_| "x".repeat(5000)), Err(SaslError::Syntax("too long")));
    }

    #[test]
    fn names_beyond_ascii_are_hashed_as_the_rfc_wants() {
        // Latin 1 where it fits, else UTF-8.
        for (user, user_bytes, password) in
            [("süß", b"s\xfc\xdf".as_slice(), b"na\xefve".as_slice()), ("ключ", "ключ".as_bytes(), "тайна".as_bytes())]
        {
            let (mut exchange, nonce) = challenged();
            let token = response(user_bytes, password, &nonce, &format!(",username=\"{user}\""));
            let answer = exchange.respond(token.as_bytes(), NONCE, &users());
            assert!(matches!(answer, Ok(Answer::Proven { user: u, .. }) if u == user));
        }
    }

    #[test]
    fn quotes_inside_quotes_are_understood() {
        let found = directives(b" username=\"a\\\"b\\\\c\" , qop = auth ,, x=\"\" ").unwrap();
        assert_eq!(found["username"], b"a\"b\\c");
        assert_eq!((found["qop"].as_slice(), found["x"].as_slice()), (b"auth".as_slice(), b"".as_slice()));
    }

    #[test]
    fn users_stand_in_a_jaas_file_or_alone() {
        let jaas = "// ours\nClient { x.Y required user_no=\"no\"; };\nServer {\n  org.apache.zookeeper.server.auth.DigestLoginModule required\n\
            /* two */ user_super=\"admin \\\"secret\\\"\"\n  user_bob=\"bob;secret\";\n};\nQuorumServer { a required user_q=\"q\"; };";
        let users = parse_users(jaas).unwrap();
        assert_eq!(
            users,
            Users::from([("super".into(), "admin \"secret\"".into()), ("bob".into(), "bob;secret".into())])
        );
        assert_eq!(parse_users("# x\nuser_bob=\"s\"\nuser_eve=t\n").unwrap().len(), 2);
        for (wrong, says) in [
            ("", "names no user"),
            ("Client { a required user_bob=\"x\"; };", "names no user"),
            ("user_bob=\"x\"\nuser_bob=\"y\"", "user_bob stands there twice"),
            ("user_bob=\"\"", "the password is empty"),
            ("user_bob=\"x", "a quote is not closed"),
            ("/* x", "a comment is not closed"),
            ("user_a@b=\"x\"", "neither @ nor /"),
        ] {
            let error = parse_users(wrong).unwrap_err();
            assert!(error.contains(says), "{wrong:?}: {error}");
            assert!(!error.contains("\"x\""), "no password is told");
        }
    }

    #[test]
    fn super_comes_in_addition_for_those_who_are_configured() {
        let admins = ["admin".to_owned()];
        assert_eq!(identities("admin", &admins), [Id::new("sasl", "admin"), Id::new("super", "")]);
        assert_eq!(identities("bob", &admins), [Id::new("sasl", "bob")]);
    }

    proptest! {
        #[test]
        fn arbitrary_tokens_prove_nothing(token in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (mut exchange, _) = challenged();
            prop_assert!(exchange.respond(&token, NONCE, &users()).is_err());
        }

        #[test]
        fn arbitrary_user_files_are_read_or_refused(text in "(user_|Server|[a-z{};=\"\\\\/*# \n]|\\PC){0,60}") {
            let _ = parse_users(&text);
        }
    }
}
