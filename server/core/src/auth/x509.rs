//! The `x509` scheme (wire 6.4): who a TLS client's certificate names.
//!
//! The id is the certificate's subject as Java's `X500Principal.getName()` writes it, since access lists of existing
//! ensembles hold it in that form: RFC 2253 with the last attribute first, nine attribute names, every other attribute
//! as `OID=#HEX`.

use corral_proto::Id;
use der::asn1::{AnyRef, ObjectIdentifier};
use der::{Decode, Encode, Reader, SliceReader, Tag, Tagged};

/// The attributes that are written by name.
const NAMES: &[(&str, &str)] = &[
    ("2.5.4.3", "CN"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "STREET"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
];

/// The identities that a verified certificate gives: its subject, and `super` in addition if that is the configured
/// super user's. None for a certificate without a subject: all such certificates would be one identity.
///
/// # Errors
/// The subject is no sequence of names.
pub fn identities(subject: &[u8], super_user: Option<&str>) -> Result<Vec<Id>, der::Error> {
    let name = subject_text(subject)?;
    if name.is_empty() {
        return Ok(Vec::new());
    }
    let mut ids = Vec::new();
    if super_user == Some(name.as_str()) {
        // ZooKeeper's super identity by certificate has a name; those by password have none.
        ids.push(Id::new("super", name.clone()));
    }
    ids.push(Id::new("x509", name));
    Ok(ids)
}

/// The text of a subject: the inside of its DER sequence.
///
/// # Errors
/// It is no sequence of names.
pub fn subject_text(subject: &[u8]) -> Result<String, der::Error> {
    let mut parts = Vec::new();
    let mut sets = SliceReader::new(subject)?;
    while !sets.is_finished() {
        let set = AnyRef::decode(&mut sets)?;
        set.tag().assert_eq(Tag::Set)?;
        let mut pairs = SliceReader::new(set.value())?;
        let mut part = String::new();
        while !pairs.is_finished() {
            let pair = AnyRef::decode(&mut pairs)?;
            pair.tag().assert_eq(Tag::Sequence)?;
            let mut fields = SliceReader::new(pair.value())?;
            let oid = ObjectIdentifier::decode(&mut fields)?;
            let value = AnyRef::decode(&mut fields)?;
            if !part.is_empty() {
                part.push('+');
            }
            write_attribute(&mut part, &oid.to_string(), value)?;
        }
        parts.push(part);
    }
    parts.reverse();
    Ok(parts.join(","))
}

fn write_attribute(out: &mut String, oid: &str, value: AnyRef<'_>) -> Result<(), der::Error> {
    let name = NAMES.iter().find(|(known, _)| *known == oid).map(|(_, name)| *name);
    let is_text = matches!(
        value.tag(),
        Tag::Utf8String | Tag::PrintableString | Tag::TeletexString | Tag::Ia5String | Tag::BmpString
    );
    match name {
        Some(name) if is_text => {
            out.push_str(name);
            out.push('=');
            // Java reads the bytes of every kind of string as UTF-8.
            write_escaped(out, &String::from_utf8_lossy(value.value()));
        }
        name => {
            out.push_str(name.unwrap_or(oid));
            out.push_str("=#");
            for byte in value.to_der()? {
                out.push_str(&format!("{byte:02x}"));
            }
        }
    }
    Ok(())
}

fn write_escaped(out: &mut String, text: &str) {
    let blank = |c: char| c == ' ' || c == '\r';
    let begin = text.len() - text.trim_start_matches(blank).len();
    let end = text.trim_end_matches(blank).len();
    for (at, c) in text.char_indices() {
        match c {
            '\0' => out.push_str("\\00"),
            ',' | '=' | '+' | '<' | '>' | '#' | ';' | '"' | '\\' => out.extend(['\\', c]),
            c if at < begin || at >= end => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One attribute in a set of its own.
    fn attribute(oid: &str, tag: u8, value: &[u8]) -> Vec<u8> {
        let oid = ObjectIdentifier::new(oid).unwrap().to_der().unwrap();
        let wrap = |tag: u8, inside: &[u8]| [&[tag, u8::try_from(inside.len()).unwrap()], inside].concat();
        wrap(0x31, &wrap(0x30, &[oid, wrap(tag, value)].concat()))
    }

    const UTF8: u8 = 0x0c;
    const PRINTABLE: u8 = 0x13;
    const IA5: u8 = 0x16;

    #[test]
    fn the_last_attribute_comes_first() {
        let subject = [
            attribute("2.5.4.6", PRINTABLE, b"DE"),
            attribute("2.5.4.10", UTF8, b"Corral"),
            attribute("2.5.4.3", UTF8, b"client 1"),
        ]
        .concat();
        assert_eq!(subject_text(&subject).unwrap(), "CN=client 1,O=Corral,C=DE");
        assert_eq!(subject_text(&[]).unwrap(), "");
    }

    #[test]
    fn attributes_without_a_name_and_values_without_a_text_are_shown_as_their_bytes() {
        // As X500Principal writes them.
        let email = attribute("1.2.840.113549.1.9.1", IA5, b"x@y");
        assert_eq!(subject_text(&email).unwrap(), "1.2.840.113549.1.9.1=#1603784079");
        let number = attribute("2.5.4.3", 0x02, &[5]);
        assert_eq!(subject_text(&number).unwrap(), "CN=#020105");
        let dc = [attribute("0.9.2342.19200300.100.1.25", IA5, b"org"), attribute("2.5.4.5", PRINTABLE, b"1")].concat();
        assert_eq!(subject_text(&dc).unwrap(), "2.5.4.5=#130131,DC=org");
    }

    #[test]
    fn special_characters_are_escaped_as_java_does() {
        for (text, expected) in [
            ("a,b", "CN=a\\,b"),
            ("a=b", "CN=a\\=b"),
            ("a#b", "CN=a\\#b"),
            ("\"+<>;\\", "CN=\\\"\\+\\<\\>\\;\\\\"),
            (" a b ", "CN=\\ a b\\ "),
            ("  ", "CN=\\ \\ "),
            ("\0", "CN=\\00"),
            ("ä\n", "CN=ä\n"),
            ("", "CN="),
        ] {
            assert_eq!(subject_text(&attribute("2.5.4.3", UTF8, text.as_bytes())).unwrap(), expected);
        }
    }

    #[test]
    fn attributes_of_one_set_are_joined_by_plus() {
        let [one, two] = [attribute("2.5.4.3", UTF8, b"a"), attribute("2.5.4.11", UTF8, b"b")];
        let inside = [&one[2..], &two[2..]].concat();
        let both = [&[0x31, u8::try_from(inside.len()).unwrap()], &inside[..]].concat();
        assert_eq!(subject_text(&both).unwrap(), "CN=a+OU=b");
    }

    #[test]
    fn the_super_user_is_known_by_its_subject() {
        let subject = attribute("2.5.4.3", UTF8, b"admin");
        assert_eq!(identities(&subject, None).unwrap(), [Id::new("x509", "CN=admin")]);
        assert_eq!(
            identities(&subject, Some("CN=admin")).unwrap(),
            [Id::new("super", "CN=admin"), Id::new("x509", "CN=admin")]
        );
        assert_eq!(identities(&[], Some("")).unwrap(), [], "no subject is nobody, not everybody");
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            let _ = subject_text(&bytes);
        }
    }
}
