//! Path rules (wire 6.1): the client checks before it sends, the server always.

use crate::ErrorCode;

/// Checks a full path: absolute, no empty, `.` or `..` component, no trailing slash, no forbidden character.
///
/// # Errors
/// [`ErrorCode::BadArguments`], as ZooKeeper's `validatePath`.
pub fn validate(path: &str) -> Result<(), ErrorCode> {
    if path == "/" {
        return Ok(());
    }
    let Some(rest) = path.strip_prefix('/') else {
        return Err(ErrorCode::BadArguments);
    };
    for component in rest.split('/') {
        if component.is_empty() || component == "." || component == ".." {
            return Err(ErrorCode::BadArguments);
        }
    }
    if rest.chars().any(is_forbidden) {
        return Err(ErrorCode::BadArguments);
    }
    Ok(())
}

/// Characters that no znode's name may hold: controls, surrogates, private use, specials, and everything
/// beyond the basic plane (ZooKeeper sees those as surrogates).
fn is_forbidden(c: char) -> bool {
    matches!(c,
        '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..='\u{10ffff}')
}

/// The parent of a path: `/` for `/a`, `/a` for `/a/b`; `None` for `/` and for text without a slash.
pub fn parent(path: &str) -> Option<&str> {
    if path == "/" {
        return None;
    }
    match path.rfind('/') {
        Some(0) => Some("/"),
        Some(at) => Some(&path[..at]),
        None => None,
    }
}

/// The last component: `b` for `/a/b`, empty for `/`.
pub fn name(path: &str) -> &str {
    path.rfind('/').map_or(path, |at| &path[at + 1..])
}

/// `parent` and `name` joined.
pub fn join(parent: &str, name: &str) -> String {
    if parent == "/" { format!("/{name}") } else { format!("{parent}/{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_paths_are_valid() {
        for path in ["/", "/a", "/a/b", "/.x", "/...", "/a b", "/ä/ß"] {
            assert_eq!(validate(path), Ok(()), "{path}");
        }
    }

    #[test]
    fn malformed_paths_are_refused() {
        for path in [
            "",
            "a",
            "//",
            "/a/",
            "/a//b",
            "/.",
            "/a/..",
            "/a\0",
            "/\u{1f}",
            "/\u{7f}",
            "/\u{e000}",
            "/\u{fffd}",
            "/😀",
        ] {
            assert_eq!(validate(path), Err(ErrorCode::BadArguments), "{path:?}");
        }
    }

    #[test]
    fn parent_and_name_take_a_path_apart() {
        assert_eq!((parent("/a/b"), name("/a/b")), (Some("/a"), "b"));
        assert_eq!((parent("/a"), name("/a")), (Some("/"), "a"));
        assert_eq!((parent("/"), parent("a")), (None, None));
        assert_eq!((join("/", "a"), join("/a", "b")), ("/a".to_owned(), "/a/b".to_owned()));
    }
}
