//! A line of text to words, and words to options and arguments.
//!
//! Pure. Read first: [`words`], [`Args`]. Options are read as `zkCli.sh` reads them: anywhere, short ones may be joined,
//! `--` ends them, a negative number and a single `-` are no options.

use std::collections::VecDeque;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use corral_proto::{Acl, Id, path, perms};

use crate::options;
use crate::verbs::{self, Opt, Verb};

/// Why words are not a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// There is no such verb.
    #[error("{}", unknown_command(name, *in_shell))]
    UnknownCommand {
        /// What was typed.
        name: String,
        /// Whether it was typed in a shell of ours.
        in_shell: bool,
    },
    /// The verb exists, the rest of the line does not fit it.
    #[error("{problem}\nusage: {usage}")]
    Usage {
        /// What is wrong.
        problem: String,
        /// How the verb is used.
        usage: String,
    },
    /// The line cannot be cut into words.
    #[error("{0}")]
    Words(String),
}

/// ZooKeeper's words for a verb that there is not, and where to find those that there are.
pub fn unknown_command(name: &str, in_shell: bool) -> String {
    let help = if in_shell { "help" } else { "zkcli help" };
    match verbs::all().into_iter().find(|verb| verb.name.eq_ignore_ascii_case(name)) {
        Some(verb) => format!("Command not found: {name}: {} is written so", verb.name),
        None => format!("Command not found: {name}: `{help}` lists the commands"),
    }
}

/// Where data comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The command line.
    Bytes(Vec<u8>),
    /// All of standard input; decoded from base64 if `base64`.
    Stdin {
        /// Whether what comes is base64.
        base64: bool,
    },
}

/// What stands for "yes" in the old place of a flag.
const OLD_FLAG: [&str; 3] = ["watch", "true", "1"];

/// Cuts a line into words. A quote (`"` or `'`) counts at the beginning of a word only, so that JSON may be typed as
/// it is; in double quotes `\"` and `\\` stand for `"` and `\`.
///
/// # Errors
/// An open quote, or text right after a closing one.
pub fn words(line: &str) -> Result<Vec<String>, ParseError> {
    let mut out = Vec::new();
    let mut chars = line.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let Some(&first) = chars.peek() else { return Ok(out) };
        let mut word = String::new();
        if first == '"' || first == '\'' {
            chars.next();
            loop {
                match chars.next() {
                    None => return Err(ParseError::Words(format!("the quote {first} is not closed"))),
                    Some(c) if c == first => break,
                    Some('\\') if first == '"' && matches!(chars.peek(), Some('"' | '\\')) => word.extend(chars.next()),
                    Some(c) => word.push(c),
                }
            }
            if chars.peek().is_some_and(|c| !c.is_whitespace()) {
                return Err(ParseError::Words(format!("a blank must follow the closing {first}")));
            }
        } else {
            while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
                word.push(c);
            }
        }
        out.push(word);
    }
}

/// A verb's options and what is left.
pub struct Args<'a> {
    verb: &'static Verb,
    /// Where relative paths begin; `None`: there are none.
    cwd: Option<&'a str>,
    given: Vec<(&'static Opt, String)>,
    positional: VecDeque<String>,
    /// What stands behind `--`, as far as it is a program to run.
    program: Vec<String>,
}

impl<'a> Args<'a> {
    /// Reads options by the verb's table. For verbs that run a program ([`Args::program`]), `--` and what follows is kept
    /// apart.
    ///
    /// # Errors
    /// An option that the verb does not have, or that is the program's own and stands behind the verb; a value that is
    /// missing.
    pub fn read(verb: &'static Verb, rest: &[String], cwd: Option<&'a str>) -> Result<Args<'a>, ParseError> {
        let mut args = Args { verb, cwd, given: Vec::new(), positional: VecDeque::new(), program: Vec::new() };
        let runs_program = verb.args.contains("-- ");
        let mut words = rest.iter().peekable();
        while let Some(word) = words.next() {
            if word == "--" {
                if runs_program {
                    args.program.extend(words.by_ref().cloned());
                } else {
                    args.positional.extend(words.by_ref().cloned());
                }
                break;
            }
            if let Some(long) = word.strip_prefix("--") {
                let (name, glued) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
                let Some(option) = verb.options.iter().find(|option| option.long == Some(name)) else {
                    return Err(args.unrecognized(word));
                };
                let value = match (option.value, glued) {
                    (None, None) => String::new(),
                    (None, Some(_)) => return Err(args.wrong(&format!("--{name} takes no value"))),
                    (Some(_), Some(value)) => value.to_owned(),
                    (Some(_), None) => {
                        words.next().cloned().ok_or_else(|| args.wrong(&format!("--{name} needs a value")))?
                    }
                };
                args.given.push((option, value));
                continue;
            }
            let letters = match word.strip_prefix('-') {
                Some(letters) if !letters.is_empty() && word.parse::<f64>().is_err() => letters,
                _ => {
                    args.positional.push_back(word.clone());
                    continue;
                }
            };
            for (index, letter) in letters.char_indices() {
                let Some(option) = verb.options.iter().find(|option| option.short == Some(letter)) else {
                    return Err(args.unrecognized(word));
                };
                if option.value.is_none() {
                    // The letter of a flag here may be that of a value there; whose it is, what follows tells.
                    if let Some(next) = words.peek().filter(|next| cwd.is_none() && options::is_servers(word, next)) {
                        return Err(args.misplaced(&format!("{word} {next}")));
                    }
                    args.given.push((option, String::new()));
                    continue;
                }
                let glued = &letters[index + letter.len_utf8()..];
                let value = match glued.strip_prefix('=').unwrap_or(glued) {
                    "" => words.next().cloned().ok_or_else(|| args.wrong(&format!("-{letter} needs a value")))?,
                    text => text.to_owned(),
                };
                args.given.push((option, value));
                break;
            }
        }
        Ok(args)
    }

    fn unrecognized(&self, word: &str) -> ParseError {
        if options::is_own(word) {
            return self.misplaced(word);
        }
        self.wrong(&format!("Unrecognized option: {word} (put -- before a word that only looks like an option)"))
    }

    /// An option of the program behind the verb.
    fn misplaced(&self, what: &str) -> ParseError {
        let place = match self.cwd {
            None => format!("options of zkcli itself come before the verb: zkcli {what} {} ...", self.verb.name),
            Some(_) => "it is an option of zkcli itself, which is given when the shell is started".to_owned(),
        };
        self.wrong(&format!("Unrecognized option: {what}: {place}"))
    }

    /// The verb's name.
    pub fn verb_name(&self) -> &'static str {
        self.verb.name
    }

    /// What is wrong, together with how the verb is used.
    pub fn wrong(&self, problem: &str) -> ParseError {
        ParseError::Usage { problem: problem.to_owned(), usage: self.verb.usage() }
    }

    /// Whether an option was given, by its long name or its letter.
    pub fn flag(&self, name: &str) -> bool {
        self.given.iter().any(|(option, _)| is_called(option, name))
    }

    /// The value of an option; the last one counts.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.given.iter().rev().find(|(option, _)| is_called(option, name)).map(|(_, value)| value.as_str())
    }

    /// The number that an option gives.
    ///
    /// # Errors
    /// It is none.
    pub fn number_of<T: std::str::FromStr>(&self, name: &str, what: &str) -> Result<Option<T>, ParseError> {
        self.value(name).map(|text| self.number(what, text)).transpose()
    }

    /// The positive number that an option gives.
    ///
    /// # Errors
    /// It is none, or zero.
    pub fn count_of(&self, name: &str, what: &str) -> Result<Option<u64>, ParseError> {
        match self.number_of::<u64>(name, what) {
            Ok(Some(0)) | Err(_) => {
                let text = self.value(name).unwrap_or_default();
                Err(self.wrong(&format!("{what} must be a positive number: {text}")))
            }
            other => other,
        }
    }

    /// A time in milliseconds that an option gives.
    ///
    /// # Errors
    /// It is none.
    pub fn millis_of(&self, name: &str) -> Result<Option<Duration>, ParseError> {
        Ok(self.number_of::<u64>(name, "ms")?.map(Duration::from_millis))
    }

    pub fn is_empty(&self) -> bool {
        self.positional.is_empty()
    }

    pub fn optional(&mut self) -> Option<String> {
        self.positional.pop_front()
    }

    /// The next argument.
    ///
    /// # Errors
    /// There is none.
    pub fn required(&mut self, what: &str) -> Result<String, ParseError> {
        self.optional().ok_or_else(|| self.wrong(&format!("{what} is missing")))
    }

    /// The next argument, which must be a path; relative to the working path if there is one.
    ///
    /// # Errors
    /// There is none, or it is no path.
    pub fn path(&mut self) -> Result<String, ParseError> {
        let text = self.required("path")?;
        let path = self.resolve(&text);
        check_path(&path).map_err(|problem| self.wrong(&problem))?;
        Ok(path)
    }

    /// As [`Args::path`]; in a shell, the working path if there is none.
    ///
    /// # Errors
    /// There is none, or it is no path.
    pub fn path_in_shell(&mut self) -> Result<String, ParseError> {
        match self.cwd {
            Some(cwd) if self.is_empty() => Ok(cwd.to_owned()),
            _ => self.path(),
        }
    }

    /// The working path, or the root.
    pub fn resolve_or_root(&self) -> String {
        self.cwd.unwrap_or("/").to_owned()
    }

    /// A path of which the last name may be incomplete, as for sequential znodes.
    pub fn resolve(&self, text: &str) -> String {
        match self.cwd {
            Some(cwd) => resolve(cwd, text),
            None => text.to_owned(),
        }
    }

    /// No more arguments.
    ///
    /// # Errors
    /// There are some.
    pub fn end(&self) -> Result<(), ParseError> {
        match self.positional.front() {
            None => Ok(()),
            Some(extra) => Err(self.wrong(&format!("too many arguments: {extra}"))),
        }
    }

    /// The program behind `--`.
    pub fn program(&mut self) -> Vec<String> {
        std::mem::take(&mut self.program)
    }

    /// A number in an argument.
    ///
    /// # Errors
    /// It is none.
    pub fn number<T: std::str::FromStr>(&self, what: &str, text: &str) -> Result<T, ParseError> {
        text.parse().map_err(|_| self.wrong(&format!("{what} must be a number: {text}")))
    }

    /// `-v`: the expected version, -1 (any) without it.
    ///
    /// # Errors
    /// It is no number.
    pub fn version(&self) -> Result<i32, ParseError> {
        self.value("v").map_or(Ok(-1), |text| self.number("version", text))
    }

    /// The old positional `watch` after the path. In ZooKeeper any word counted; a word that was meant otherwise is no
    /// reason for a watch.
    ///
    /// # Errors
    /// Another word, or more.
    pub fn old_flag(&mut self, old: &str, new: &str, notice: &mut Option<String>) -> Result<bool, ParseError> {
        let given = self.positional.front().is_some_and(|word| OLD_FLAG.contains(&word.as_str()));
        if given {
            self.positional.pop_front();
        }
        self.end()?;
        if given {
            *notice = Some(deprecated(old, new));
        }
        Ok(given)
    }

    /// Data in an argument; `-` is standard input.
    ///
    /// # Errors
    /// It is not base64.
    pub fn input(&self, text: &str, base64: bool) -> Result<Input, ParseError> {
        if text == "-" {
            return Ok(Input::Stdin { base64 });
        }
        if base64 {
            return decode_base64(text.as_bytes()).map(Input::Bytes).map_err(|problem| self.wrong(&problem));
        }
        Ok(Input::Bytes(text.as_bytes().to_vec()))
    }
}

fn is_called(option: &Opt, name: &str) -> bool {
    option.long == Some(name) || option.short.is_some_and(|short| short.encode_utf8(&mut [0; 4]) == name)
}

/// What replaced an old form.
pub fn deprecated(old: &str, new: &str) -> String {
    format!("'{old}' has been deprecated. Please use '{new}' instead.")
}

/// A path as typed, seen from `cwd`: `.` and `..` are taken away, as a file system's shell does.
pub fn resolve(cwd: &str, text: &str) -> String {
    let is_plain = text.starts_with('/') && !text.split('/').any(|name| name == "." || name == "..");
    if is_plain || text.is_empty() {
        return text.to_owned();
    }
    let mut names: Vec<&str> = if text.starts_with('/') { Vec::new() } else { names_of(cwd) };
    let (body, tail) = text.strip_suffix('/').map_or((text, ""), |body| (body, "/"));
    for name in body.split('/').filter(|name| !name.is_empty()) {
        match name {
            "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    if names.is_empty() { "/".to_owned() } else { format!("/{}{tail}", names.join("/")) }
}

fn names_of(path: &str) -> Vec<&str> {
    path.split('/').filter(|name| !name.is_empty()).collect()
}

/// Says what is wrong with a path, if anything.
///
/// # Errors
/// A sentence for people.
pub fn check_path(text: &str) -> Result<(), String> {
    if !text.starts_with('/') {
        return Err(format!("Path must start with / character: {text}"));
    }
    path::validate(text).map_err(|_| {
        let why = if text.ends_with('/') {
            "it ends with /"
        } else if text.contains("//") {
            "a name in it is empty"
        } else if text.split('/').any(|name| name == "." || name == "..") {
            "a name in it is . or .."
        } else {
            "it holds a character that names may not hold"
        };
        format!("Invalid path {text:?}: {why}")
    })
}

/// Decodes base64, line breaks allowed.
///
/// # Errors
/// A sentence for people.
pub fn decode_base64(text: &[u8]) -> Result<Vec<u8>, String> {
    let clean: Vec<u8> = text.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect();
    STANDARD.decode(clean).map_err(|error| format!("the data is not base64: {error}"))
}

/// Parses `scheme:id:perms[,...]`: the scheme ends at the first colon, the permissions start after the last.
///
/// # Errors
/// A sentence that names the faulty part.
pub fn parse_acl(text: &str) -> Result<Vec<Acl>, String> {
    let mut parts: Vec<String> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match parts.last_mut() {
            // The subject of a certificate has commas of its own; its entry ends with permissions.
            Some(last) if last.starts_with("x509:") && last.matches(':').count() < 2 => {
                last.push(',');
                last.push_str(part);
            }
            _ => parts.push(part.to_owned()),
        }
    }
    parts
        .iter()
        .map(|part| parse_acl_entry(part))
        .collect::<Result<Vec<_>, _>>()
        .and_then(|list| if list.is_empty() { Err("the ACL is empty".to_owned()) } else { Ok(list) })
}

fn parse_acl_entry(part: &str) -> Result<Acl, String> {
    let malformed = || format!("{part} does not have the form scheme:id:perm");
    let (scheme, rest) = part.split_once(':').ok_or_else(malformed)?;
    let (id, letters) = rest.rsplit_once(':').ok_or_else(malformed)?;
    let bits = parse_perms(letters).map_err(|problem| format!("{problem} (in {part}); the letters are cdrwa"))?;
    Ok(Acl { perms: bits, id: Id::new(scheme, id) })
}

/// Permissions from their letters.
///
/// # Errors
/// A letter that is none of them.
pub fn parse_perms(letters: &str) -> Result<i32, String> {
    let mut bits = 0;
    for letter in letters.chars() {
        bits |= match letter {
            'c' => perms::CREATE,
            'd' => perms::DELETE,
            'r' => perms::READ,
            'w' => perms::WRITE,
            'a' => perms::ADMIN,
            other => return Err(format!("no such permission: {other}")),
        };
    }
    Ok(bits)
}

/// Where completion of the word that ends at `cursor` starts, and what kind of word it is.
#[derive(Debug, PartialEq, Eq)]
pub enum Completion {
    /// The first word.
    Verb {
        /// Byte offset of its first character.
        start: usize,
    },
    /// A path: children of `parent` whose names start with `prefix`.
    Path {
        /// Byte offset of the first character of the last name.
        start: usize,
        /// Whose children; relative if what is typed is.
        parent: String,
        /// What is typed of the name.
        prefix: String,
    },
    /// An option of the verb.
    Option {
        /// Byte offset of its first character.
        start: usize,
        /// Whose.
        verb: String,
    },
    /// Nothing that we know.
    Nothing,
}

/// What the word at the end of `line[..cursor]` could become.
pub fn completion(line: &str, cursor: usize) -> Completion {
    let Some(head) = line.get(..cursor) else { return Completion::Nothing };
    let start =
        head.rfind(char::is_whitespace).map_or(0, |at| at + head[at..].chars().next().map_or(1, char::len_utf8));
    if head[..start].trim().is_empty() {
        return Completion::Verb { start };
    }
    let verb = head.split_whitespace().next().unwrap_or_default();
    let word = &head[start..];
    if word.starts_with('-') {
        return Completion::Option { start, verb: verb.to_owned() };
    }
    if verb == "help" {
        return Completion::Verb { start };
    }
    // A quoted path is completed inside its quote.
    let quote = usize::from(word.starts_with(['"', '\'']));
    let word = &word[quote..];
    let (parent, prefix, at) = match word.rfind('/') {
        Some(0) => ("/", &word[1..], 1),
        Some(slash) => (&word[..slash], &word[slash + 1..], slash + 1),
        None => (".", word, 0),
    };
    Completion::Path { start: start + quote + at, parent: parent.to_owned(), prefix: prefix.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_at_blanks_and_quotes_count_only_at_a_words_start() {
        let cut = |line: &str| words(line).expect("closed quotes");
        assert_eq!(cut("  set /p  x "), ["set", "/p", "x"]);
        assert_eq!(cut(r#"set /p "two words""#), ["set", "/p", "two words"]);
        assert_eq!(cut("set /p 'it is \"so\"'"), ["set", "/p", "it is \"so\""]);
        assert_eq!(cut(r#"set /p "a \"b\" \\ \n""#), ["set", "/p", r#"a "b" \ \n"#]);
        assert_eq!(cut(r#"set /p {"a":1}"#), ["set", "/p", r#"{"a":1}"#]);
        assert_eq!(cut("set /p ''"), ["set", "/p", ""]);
        assert!(cut("   ").is_empty());
    }

    #[test]
    fn open_quotes_and_text_glued_to_a_quote_are_refused() {
        assert!(words("set /p 'x").is_err());
        assert!(words("set /p 'x'y").is_err());
    }

    #[test]
    fn acl_scheme_ends_at_the_first_colon_and_permissions_follow_the_last() {
        let acl = parse_acl("digest:bob:hash=:cdrwa,world:anyone:r").expect("well formed");
        assert_eq!(
            acl,
            [
                Acl { perms: perms::ALL, id: Id::new("digest", "bob:hash=") },
                Acl { perms: perms::READ, id: Id::new("world", "anyone") },
            ]
        );
        assert_eq!(parse_acl("auth::cdrwa").expect("empty id"), Acl::creator_all());
        let subjects = parse_acl("x509:CN=a,O=b,C=DE:r,world:anyone:r,x509:CN=c:w").expect("commas in the id");
        let ids: Vec<&str> = subjects.iter().map(|acl| acl.id.id.as_str()).collect();
        assert_eq!(ids, ["CN=a,O=b,C=DE", "anyone", "CN=c"]);
        assert_eq!(parse_acl("ip:::1:r").expect("colons in the id")[0].id, Id::new("ip", "::1"));
        for bad in ["", ",", "world", "world:anyone", "world:anyone:x"] {
            assert!(parse_acl(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_seen_from_the_working_path() {
        for (cwd, typed, path) in [
            ("/", "a", "/a"),
            ("/a", "b/c", "/a/b/c"),
            ("/a/b", "..", "/a"),
            ("/a", "../..", "/"),
            ("/a", "../../x", "/x"),
            ("/a", ".", "/a"),
            ("/a", "/x", "/x"),
            ("/a", "/x/../y", "/y"),
            ("/a", "q/", "/a/q/"),
            ("/a", "/x//y", "/x//y"),
            ("/a", "", ""),
        ] {
            assert_eq!(resolve(cwd, typed), path, "{typed} in {cwd}");
        }
    }

    #[test]
    fn completion_finds_verb_option_or_parent_and_prefix() {
        let at_end = |line: &str| completion(line, line.len());
        assert_eq!(at_end("g"), Completion::Verb { start: 0 });
        assert_eq!(at_end("  g"), Completion::Verb { start: 2 });
        assert_eq!(at_end("help g"), Completion::Verb { start: 5 });
        let path = |start, parent: &str, prefix: &str| Completion::Path {
            start,
            parent: parent.into(),
            prefix: prefix.into(),
        };
        assert_eq!(at_end("get /"), path(5, "/", ""));
        assert_eq!(at_end("get /zoo"), path(5, "/", "zoo"));
        assert_eq!(at_end("get -s /a/b/c"), path(12, "/a/b", "c"));
        assert_eq!(at_end("get '/a/b"), path(8, "/a", "b"));
        assert_eq!(at_end("get x"), path(4, ".", "x"));
        assert_eq!(at_end("get ../x/y"), path(9, "../x", "y"));
        assert_eq!(at_end("get --s"), Completion::Option { start: 4, verb: "get".into() });
    }
}
