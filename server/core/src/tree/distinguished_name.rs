//! Which texts are distinguished names: those that Java's `X500Principal` takes, since ZooKeeper asks it whether an id
//! of the scheme `x509` may stand in an ACL (wire 6.4).

/// Attribute names that Java knows, whatever their case; others are given as an OID.
const KEYWORDS: &[&str] = &[
    "C",
    "CN",
    "DC",
    "DNQ",
    "DNQUALIFIER",
    "EMAILADDRESS",
    "GENERATION",
    "GIVENNAME",
    "INITIALS",
    "IP",
    "L",
    "O",
    "OU",
    "S",
    "SERIALNUMBER",
    "ST",
    "STREET",
    "SURNAME",
    "T",
    "UID",
];

/// Whether `text` is `NAME=value`, any number of them, joined by `,`, `;` or `+`. None of them is a name, too.
pub fn is_valid(text: &str) -> bool {
    if text.is_empty() {
        return true;
    }
    let mut rest = text;
    loop {
        match attribute(rest) {
            None => return false,
            Some("") => return true,
            // The separator; something must follow it.
            Some(more) => rest = &more[1..],
        }
    }
}

/// Takes one attribute off the front; what is left is empty or begins with a separator.
fn attribute(text: &str) -> Option<&str> {
    let (name, value) = text.split_once('=')?;
    if !is_keyword(name.trim()) && !is_oid(name.trim()) {
        return None;
    }
    let value = value.trim_start_matches([' ', '\n']);
    if let Some(quoted) = value.strip_prefix('"') {
        let end = end(quoted, &['"'], &[])?;
        let rest = quoted[end..].strip_prefix('"')?.trim_start_matches([' ', '\n']);
        return (rest.is_empty() || rest.starts_with([',', ';', '+'])).then_some(rest);
    }
    let end = end(value, &[',', ';', '+'], &['"', '<', '>'])?;
    if let Some(hex) = value[..end].trim_end().strip_prefix('#')
        && (hex.is_empty() || hex.len() % 2 != 0 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
    {
        return None;
    }
    Some(&value[end..])
}

/// Where the first of `stops` stands that is not escaped, or the end; `None` where something is not allowed.
fn end(text: &str, stops: &[char], forbidden: &[char]) -> Option<usize> {
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if stops.contains(&c) {
            return Some(at);
        }
        if forbidden.contains(&c) {
            return None;
        }
        if c == '\\' {
            let (_, escaped) = chars.next()?;
            if escaped.is_ascii_hexdigit() {
                chars.next().filter(|(_, c)| c.is_ascii_hexdigit())?;
            } else if !",=+<>#;\\\" \n".contains(escaped) {
                return None;
            }
        }
    }
    Some(text.len())
}

fn is_keyword(name: &str) -> bool {
    KEYWORDS.iter().any(|known| known.eq_ignore_ascii_case(name))
}

fn is_oid(name: &str) -> bool {
    let digits = match name.get(..4) {
        Some(prefix) if prefix.eq_ignore_ascii_case("OID.") => &name[4..],
        _ => name,
    };
    let mut numbers =
        digits.split('.').map(|n| n.bytes().all(|b| b.is_ascii_digit()).then(|| n.parse::<u64>().ok())?);
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(first), Some(second)) => first <= 2 && (first == 2 || second < 40) && numbers.all(|n| n.is_some()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::is_valid;

    #[test]
    fn what_java_takes_is_valid() {
        for name in [
            "CN=bob",
            "CN=",
            "cn=a",
            "CN=a;OU=b",
            "CN=a+OU=b",
            "1.2.3=x",
            "1.2.3=#0c0161",
            "OID.1.2.3=x",
            "1.2=x",
            "CN=a b ",
            "CN=\"a,b\"",
            "CN=a\\,b",
            "CN=a=b",
            "CN=a#b",
            "CN=a/b",
            "CN= a",
            "CN=ä",
            "CN=a\nb",
            "EMAILADDRESS=x@y",
            "emailAddress=x@y",
            "O=a,O=b",
            " CN = a , OU = b ",
            "CN=#0c0161",
            "CN=client 1,O=Corral,C=DE",
        ] {
            assert!(is_valid(name), "{name:?}");
        }
    }

    #[test]
    fn what_java_refuses_is_not() {
        for name in [
            "foo",
            "=x",
            "CN=a,",
            "CN=a,,OU=b",
            ",CN=a",
            "FOO=x",
            "CN=a\"b",
            "CN=#zz",
            "CN=#",
            "CN",
            "CN=a+",
            "CN=\\zz",
            "CN=a\\",
            "CN=a<b",
            "1=x",
            "3.1=x",
            "KRB=x",
            "E=x",
            "CN=a;",
            "anyone",
            "CN=\"a",
            "CN=\"a\"b",
            "CN=a,OU",
            " ",
        ] {
            assert!(!is_valid(name), "{name:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_text_is_judged(text in "(CN|OID|[=,;+#\\\\\" 0-9a.]|\\PC){0,30}") {
            let _ = is_valid(&text);
        }
    }
}
