//! What the documentation says about the program is what the program says.

use std::fs;
use std::path::{Path, PathBuf};

const BEGIN: &str = "<!-- keys: written by `UPDATE_DOCS=1 cargo test --test docs` -->\n";
const END: &str = "<!-- end of keys -->";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_reference_of_keys_is_the_table_of_keys() {
    let path = root().join("docs/operations.md");
    let text = fs::read_to_string(&path).unwrap();
    let begin = text.find(BEGIN).expect("the mark of the beginning") + BEGIN.len();
    let end = text.find(END).expect("the mark of the end");
    let expected = format!("\n{}\n", corral_server::config::keys_as_markdown());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{}{expected}{}", &text[..begin], &text[end..])).unwrap();
    } else {
        assert!(text[begin..end] == expected, "docs/operations.md is old: UPDATE_DOCS=1 cargo test --test docs");
    }
}

/// Every Markdown file of the project.
fn documents() -> Vec<PathBuf> {
    let mut found = vec![root().join("README.md"), root().join("CHANGELOG.md")];
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if link.contains("://") || file.is_empty() {
                continue;
            }
            if !document.parent().unwrap_or(Path::new("")).join(file).exists() {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Paths of sources that the documents name in backquotes must exist.
#[test]
fn files_that_documents_name_exist() {
    let mut missing = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for word in text.split('`').skip(1).step_by(2) {
            let is_path =
                ["server/", "client/", "recipes/", "tests/", "proto/", ".ci/"].iter().any(|f| word.starts_with(f));
            if is_path && !word.contains(['{', '*', ' ']) && !root().join(word).exists() {
                missing.push(format!("{}: {word}", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
