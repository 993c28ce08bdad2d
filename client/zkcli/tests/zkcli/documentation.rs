//! What the documentation says about the verbs is what the program says.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const BEGIN: &str = "<!-- verbs: written by `UPDATE_DOCS=1 cargo test --workspace --test zkcli` -->\n";
const END: &str = "<!-- end of verbs -->";

fn docs(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)
}

/// What the program prints without a server.
fn printed(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_zkcli")).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn verbs() -> Vec<String> {
    let help = printed(&["help"]);
    let lines = help.lines().filter(|line| line.starts_with('\t') && !line.starts_with("\t\t"));
    lines.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

#[test]
fn the_reference_of_verbs_is_what_help_prints() {
    let mut expected = String::new();
    for verb in verbs() {
        let help = printed(&["help", &verb]);
        let _ = write!(expected, "\n### {verb}\n\n```text\n{}```\n", help.replace('\t', "    "));
    }
    expected.push('\n');
    let path = docs("zkcli-verbs.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let begin = text.find(BEGIN).expect("the mark of the beginning") + BEGIN.len();
    let end = text.find(END).expect("the mark of the end");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{}{expected}{}", &text[..begin], &text[end..])).unwrap();
    } else {
        assert!(
            text[begin..end] == expected,
            "docs/zkcli-verbs.md is old: UPDATE_DOCS=1 cargo test --workspace --test zkcli"
        );
    }
}

#[test]
fn every_option_and_its_variable_stand_in_the_walk() {
    let text = std::fs::read_to_string(docs("zkcli.md")).unwrap();
    let help = printed(&["--help"]);
    let mut options = 0;
    for word in help.split(|c: char| c.is_whitespace() || ",[]()=:<>".contains(c)) {
        let is_option = word.starts_with("--") && word.len() > 2 && !matches!(word, "--help" | "--version");
        if is_option || (word.starts_with("ZKCLI_") && word.len() > 6) {
            options += 1;
            assert!(text.contains(&format!("`{word}`")), "docs/zkcli.md does not know {word}");
        }
    }
    assert!(options > 20, "the help was not understood: {help}");
    for code in ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "127", "130", "141"] {
        assert!(text.contains(&format!("\n| {code} | ")), "docs/zkcli.md does not know exit code {code}");
    }
}

#[test]
fn completion_files_know_every_verb_and_are_sound() {
    for shell in ["bash", "zsh", "fish"] {
        let file = printed(&["completions", shell]);
        for verb in verbs() {
            assert!(file.contains(&verb), "{shell}: {verb}");
        }
        assert!(file.contains("session-timeout"), "{shell}: options of the program");
    }
    let file = printed(&["completions", "bash"]);
    let checked = Command::new("bash").args(["-n", "-c", &file]).status().unwrap();
    assert!(checked.success(), "bash cannot read it");
}
