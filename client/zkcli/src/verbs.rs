//! The table of verbs: what each is called, takes, does, and how it exits. Parsing, `help`, completion and the
//! documentation are all made of it.
//!
//! Pure. Each group of verbs has its rows where it has its code; [`all`] puts them together.

use crate::failure::exit;
use crate::{command, context, coordination, copy, meet, quota, shell, sync, transfer, tree, watching};

/// An option of a verb.
#[derive(Debug, PartialEq, Eq)]
pub struct Opt {
    /// `-s`
    pub short: Option<char>,
    /// `--name`
    pub long: Option<&'static str>,
    /// What its value is called; `None`: it takes none.
    pub value: Option<&'static str>,
    /// What it does.
    pub about: &'static str,
}

impl Opt {
    /// `-s`
    pub const fn flag(short: char, about: &'static str) -> Opt {
        Opt { short: Some(short), long: None, value: None, about }
    }

    /// `-v version`
    pub const fn value(short: char, value: &'static str, about: &'static str) -> Opt {
        Opt { short: Some(short), long: None, value: Some(value), about }
    }

    /// `--yes`
    pub const fn long(long: &'static str, about: &'static str) -> Opt {
        Opt { short: None, long: Some(long), value: None, about }
    }

    /// `--name glob`
    pub const fn long_value(long: &'static str, value: &'static str, about: &'static str) -> Opt {
        Opt { short: None, long: Some(long), value: Some(value), about }
    }

    /// Also by one letter.
    pub const fn or(mut self, short: char) -> Opt {
        self.short = Some(short);
        self
    }

    /// As it is typed: `-r, --recursive`, `--name glob`.
    fn spelled(&self, between: &str) -> String {
        let short = self.short.map(|short| format!("-{short}"));
        let long = self.long.map(|long| format!("--{long}"));
        let names: Vec<String> = short.into_iter().chain(long).collect();
        let value = self.value.map(|value| format!(" {value}")).unwrap_or_default();
        names.join(between) + &value
    }
}

/// Do not ask.
pub const YES: Opt = Opt::long("yes", "do not ask: destroy what is there").or('y');
/// Only tell.
pub const DRY_RUN: Opt = Opt::long("dry-run", "change nothing, and tell what would be changed");

/// A verb.
#[derive(Debug, PartialEq, Eq)]
pub struct Verb {
    /// What is typed.
    pub name: &'static str,
    /// Arguments, without options.
    pub args: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// Its options.
    pub options: &'static [Opt],
    /// More lines for `help VERB`; may be empty.
    pub more: &'static str,
    /// A command line that shows its use.
    pub example: &'static str,
    /// How it may exit, but for what every command may (2, and 130 for Ctrl-C), and what needs a session (5, 6, 8).
    pub exits: &'static [u8],
    /// Whether it needs a session.
    pub needs_session: bool,
}

impl Verb {
    /// A verb that needs a session, has no options and can only succeed: the rows of the tables change what differs.
    pub const PLAIN: Verb =
        Verb { name: "", args: "", about: "", options: &[], more: "", example: "", exits: &[], needs_session: true };

    /// `get [-s] [-w] path`
    pub fn usage(&self) -> String {
        let mut text = self.name.to_owned();
        for option in self.options {
            text += &format!(" [{}]", option.spelled("|"));
        }
        if !self.args.is_empty() {
            text += &format!(" {}", self.args);
        }
        text
    }

    /// Every code it exits with, ascending.
    pub fn exit_codes(&self) -> Vec<u8> {
        let mut codes = vec![exit::DONE, exit::USAGE, exit::CANCELLED];
        if self.needs_session {
            codes.extend([exit::NOT_PERMITTED, exit::TIMEOUT, exit::CONNECTION]);
        }
        codes.extend(self.exits);
        codes.sort_unstable();
        codes.dedup();
        codes
    }

    /// What `help VERB` prints, without a line end.
    pub fn help(&self) -> String {
        let mut text = format!("{}\n\t{}\n", self.usage(), self.about);
        for line in self.more.lines() {
            text += &format!("\t{line}\n");
        }
        if !self.options.is_empty() {
            text += "options:\n";
        }
        for option in self.options {
            text += &format!("\t{}\n\t\t{}\n", option.spelled(", "), option.about);
        }
        text += &format!("example:\n\t{}\nexit codes:\n", self.example);
        for code in self.exit_codes() {
            text += &format!("\t{code}\t{}\n", exit::meaning(code));
        }
        text.trim_end().to_owned()
    }
}

/// Every verb, ascending without regard to case.
pub fn all() -> Vec<&'static Verb> {
    let groups: [&[Verb]; 11] = [
        command::VERBS,
        quota::VERBS,
        tree::VERBS,
        copy::VERBS,
        sync::VERBS,
        transfer::VERBS,
        coordination::VERBS,
        meet::VERBS,
        watching::VERBS,
        context::VERBS,
        shell::VERBS,
    ];
    let mut verbs: Vec<&Verb> = groups.into_iter().flatten().collect();
    verbs.sort_by_key(|verb| verb.name.to_lowercase());
    verbs
}

/// The verb of this name.
pub fn find(name: &str) -> Option<&'static Verb> {
    all().into_iter().find(|verb| verb.name == name)
}

/// What `help` prints.
pub fn overview() -> String {
    let mut text = "zkcli [-s host:port[,...][/chroot]] [-o format] [command ...]".to_owned();
    for verb in all() {
        text += &format!("\n\t{}\n\t\t{}", verb.usage(), verb.about);
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::options::{Options, normalise};

    #[test]
    fn every_verb_is_described_whole_and_its_example_parses() {
        let verbs = all();
        for (at, verb) in verbs.iter().enumerate() {
            assert!(!verb.about.is_empty() && !verb.example.is_empty(), "{}", verb.name);
            assert!(verbs[..at].iter().all(|other| other.name != verb.name), "{} stands twice", verb.name);
            let mut names: Vec<String> = verb.options.iter().map(|option| option.spelled("|")).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), verb.options.len(), "{}", verb.name);
            // What a shell would do to it first: programs before the pipe, redirections after it, are not ours.
            let line = verb.example.rsplit('|').next().unwrap_or_default().split(['<', '>']).next().unwrap_or_default();
            let words = crate::words::words(line.trim()).expect("closed quotes");
            let options = Options::try_parse_from(normalise(words)).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!(options.command.first().map(String::as_str), Some(verb.name));
            if let Err(error) = command::parse(&options.command, None) {
                panic!("{}: {error}", verb.example);
            }
            for code in verb.exit_codes() {
                assert!(!exit::meaning(code).is_empty(), "{}: {code}", verb.name);
            }
        }
    }

    #[test]
    fn help_tells_usage_options_example_and_exit_codes() {
        let help = find("delete").expect("a verb").help();
        assert_eq!(
            help,
            "delete [-v version] path\n\tdelete a znode without children\noptions:\n\t-v version\n\t\tonly if its \
             version is this\nexample:\n\tzkcli delete -v 3 /demo/old\nexit codes:\n\t0\tdone\n\t2\twrong \
             usage\n\t3\tno such node\n\t4\tversion does not match\n\t5\tnot permitted\n\t6\ttimeout\n\t7\tnode has \
             children\n\t8\tno connection\n\t130\tinterrupted"
        );
    }
}
