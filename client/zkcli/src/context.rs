//! Contexts: named ways to reach an ensemble, kept in a file, and the verb `ctx`.
//!
//! The file is read only if it can matter: when no server is named on the command line or in the environment, or when a
//! context is. Identities in it are secrets, so it is written for its owner alone.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::failure::exit::FAILED;
use crate::options::{Options, Settings};
use crate::print::Output;
use crate::run::Runner;
use crate::verbs::{Opt, Verb};
use crate::words::{Args, ParseError};

pub const VERBS: &[Verb] = &[Verb {
    name: "ctx",
    args: "ls | use name | add name | rm name | show [name]",
    options: &[
        Opt::long("production", "of add: people depend on it; the prompt is red, and what destroys needs --yes"),
        Opt::long("secrets", "of show: identities as they are"),
        Opt::long("force", "of add: replace a context of that name"),
    ],
    about: "keep and choose contexts: named ways to reach an ensemble",
    more: "add takes what the options before the verb say: servers, chroot, time-outs, TLS, identities. use makes a\n\
           context the one that counts when neither -s nor --context is given; use - takes that back. In the shell,\n\
           use also connects. ls marks the one in use with *.",
    example: "zkcli -s zoo1:2181,zoo2:2181/app -a digest:ann:secret ctx add prod --production",
    exits: &[FAILED],
    needs_session: false,
}];

/// One way to reach an ensemble. What it does not say has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Context {
    /// `host:port[,host:port...][/chroot]`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Put behind the servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chroot: Option<String>,
    /// Limit for connecting and for each request, in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// Session timeout asked for, in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_timeout: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// `scheme:auth`
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub auth: Vec<String>,
    /// Whether people depend on it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub production: bool,
}

impl Context {
    /// Servers and chroot as one.
    pub fn connect_string(&self) -> Option<String> {
        Some(format!("{}{}", self.server.as_ref()?, self.chroot.as_deref().unwrap_or_default()))
    }

    /// As a document; identities without their secret part unless asked for.
    fn document(&self, name: &str, is_current: bool, secrets: bool) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        value["name"] = json!(name);
        value["current"] = json!(is_current);
        value["production"] = json!(self.production);
        if !self.auth.is_empty() {
            let shown = |auth: &String| if secrets { auth.clone() } else { masked(auth) };
            value["auth"] = json!(self.auth.iter().map(shown).collect::<Vec<_>>());
        }
        value
    }
}

/// `digest:ann:secret` as `digest:ann:***`; of other schemes only the scheme is shown.
fn masked(auth: &str) -> String {
    let mut parts = auth.splitn(3, ':');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(scheme), Some(user), Some(_)) => format!("{scheme}:{user}:***"),
        (Some(scheme), ..) => format!("{scheme}:***"),
        _ => String::new(),
    }
}

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// The one that counts when nothing else is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

impl Contexts {
    /// Reads the file; one that does not exist holds nothing.
    fn read(path: &Path) -> Result<Contexts, Failure> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Contexts::default()),
            Err(error) => return Err(Failure::Usage(format!("{}: {error}", path.display()))),
        };
        toml::from_str(&text)
            .map_err(|error| Failure::Usage(format!("{}: {}", path.display(), error.to_string().trim())))
    }

    /// Replaces the file, as a whole or not at all.
    fn write(&self, path: &Path) -> Result<(), Failure> {
        let wrong = |error: &dyn std::fmt::Display| Failure::Other(format!("{}: {error}", path.display()));
        let text = toml::to_string(self).map_err(|error| wrong(&error))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|error| wrong(&error))?;
        // A temporary file is readable by its owner only.
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|error| wrong(&error))?;
        file.write_all(text.as_bytes()).map_err(|error| wrong(&error))?;
        file.persist(path).map_err(|error| wrong(&error.error))?;
        Ok(())
    }

    fn find(&self, name: &str, path: &Path) -> Result<&Context, Failure> {
        self.contexts.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.contexts.keys().map(String::as_str).collect();
            let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            Failure::Usage(format!("there is no context {name} in {}; there is: {there}", path.display()))
        })
    }
}

/// Where contexts are kept; `None`: nowhere, as there is no home.
fn file(options: &Options) -> Option<PathBuf> {
    if let Some(file) = &options.contexts {
        return Some(file.into());
    }
    let folder = match std::env::var_os("XDG_CONFIG_HOME").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".config"),
    };
    Some(folder.join("zkcli").join("contexts.toml"))
}

/// What the options come to, with the context that counts.
///
/// # Errors
/// The file cannot be read, or has no such context; see [`Settings::of`].
pub fn settings(options: &Options) -> Result<Settings, Failure> {
    let plain = |options| Settings::of(options, None).map_err(Failure::Usage);
    // Who names a server gets no identity of a context that happens to be in use.
    if options.context.is_none() && options.server.is_some() {
        return plain(options);
    }
    let Some(path) = file(options) else { return plain(options) };
    let contexts = Contexts::read(&path)?;
    let Some(name) = options.context.as_ref().or(contexts.current.as_ref()) else { return plain(options) };
    Settings::of(options, Some((name, contexts.find(name, &path)?))).map_err(Failure::Usage)
}

/// `ctx`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    List,
    /// `None`: none from now on.
    Use(Option<String>),
    Add {
        name: String,
        production: bool,
        force: bool,
    },
    Remove(String),
    Show {
        name: Option<String>,
        secrets: bool,
    },
}

pub fn parse(mut args: Args<'_>) -> Result<Task, ParseError> {
    let what = args.required("ls, use, add, rm or show")?;
    let task = match what.as_str() {
        "ls" => Task::List,
        "use" => Task::Use(Some(args.required("name")?).filter(|name| name != "-")),
        "add" => {
            let name = args.required("name")?;
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if name == "-" || !name.chars().all(is_name) {
                return Err(args.wrong(&format!("a name has letters, digits, - _ and . only: {name}")));
            }
            Task::Add { name, production: args.flag("production"), force: args.flag("force") }
        }
        "rm" => Task::Remove(args.required("name")?),
        "show" => Task::Show { name: args.optional(), secrets: args.flag("secrets") },
        other => return Err(args.wrong(&format!("ls, use, add, rm or show, not {other}"))),
    };
    args.end()?;
    Ok(task)
}

/// Does it. In a shell, `use` connects to what it chose.
///
/// # Errors
/// The file cannot be read or written; there is no such context.
pub async fn run(runner: &mut Runner, task: Task) -> Result<(), Failure> {
    let path = file(&runner.options)
        .ok_or_else(|| Failure::Usage("there is no place for contexts: --contexts FILE names one".to_owned()))?;
    let mut contexts = Contexts::read(&path)?;
    match task {
        Task::List => {
            let row = |(name, context): (&String, &Context)| {
                let mark = if contexts.current.as_ref() == Some(name) { "*" } else { "" };
                vec![json!(name), json!(mark), json!(context.connect_string()), json!(context.production)]
            };
            let rows = contexts.contexts.iter().map(row).collect();
            runner.show(&Output::Rows { columns: &["NAME", "CURRENT", "SERVER", "PRODUCTION"], rows })
        }
        Task::Use(name) => {
            if let Some(name) = &name {
                contexts.find(name, &path)?;
            }
            contexts.current.clone_from(&name);
            contexts.write(&path)?;
            if !runner.is_shell() {
                return Ok(());
            }
            runner.options.server = None;
            runner.options.context = name;
            let settings = settings(&runner.options)?;
            runner.connect_with(settings).await
        }
        Task::Add { name, production, force } => {
            if contexts.contexts.contains_key(&name) && !force {
                return Err(Failure::Other(format!("there is a context {name}; --force replaces it")));
            }
            let options = &runner.options;
            let Some(server) = options.server.clone() else {
                return Err(Failure::Usage(
                    "a context needs servers: zkcli -s host:port[,...] ctx add NAME".to_owned(),
                ));
            };
            // Files are found from anywhere later.
            let absolute = |file: &Option<String>| {
                file.as_ref().map(|file| {
                    std::path::absolute(file).map_or(file.clone(), |path| path.to_string_lossy().into_owned())
                })
            };
            let context = Context {
                server: Some(server),
                chroot: None,
                timeout: options.timeout,
                session_timeout: options.session_timeout,
                tls_ca: absolute(&options.tls_ca),
                tls_cert: absolute(&options.tls_cert),
                tls_key: absolute(&options.tls_key),
                tls_server_name: options.tls_server_name.clone(),
                auth: options.auth.clone(),
                production,
            };
            Settings::of(&Options { server: None, ..options.clone() }, Some((&name, &context)))
                .map_err(Failure::Usage)?;
            contexts.contexts.insert(name, context);
            contexts.write(&path)
        }
        Task::Remove(name) => {
            contexts.find(&name, &path)?;
            contexts.contexts.remove(&name);
            contexts.current.take_if(|current| *current == name);
            contexts.write(&path)
        }
        Task::Show { name, secrets } => {
            let Some(name) = name.or_else(|| contexts.current.clone()) else {
                return Err(Failure::Usage(format!("no context is in use in {}; name one", path.display())));
            };
            let context = contexts.find(&name, &path)?;
            let value = context.document(&name, contexts.current.as_ref() == Some(&name), secrets);
            runner.show(&Output::Line { text: crate::table::yaml(&value), value })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_toml_that_people_can_write() {
        let text = "current = \"prod\"\n[contexts.prod]\nserver = \"a:1,b:2\"\nchroot = \"/app\"\nproduction = true\n\
                    auth = [\"digest:ann:secret\"]\nsession-timeout = 5000\n";
        let contexts: Contexts = toml::from_str(text).expect("well formed");
        let prod = &contexts.contexts["prod"];
        assert_eq!(prod.connect_string().as_deref(), Some("a:1,b:2/app"));
        assert_eq!((prod.production, prod.session_timeout), (true, Some(5_000)));
        assert_eq!(toml::from_str::<Contexts>(&toml::to_string(&contexts).expect("text")), Ok(contexts));
        assert!(toml::from_str::<Contexts>("[contexts.a]\nsevrer = \"a\"\n").is_err(), "a typing error is told");
    }

    #[test]
    fn identities_are_shown_without_their_secret() {
        assert_eq!(masked("digest:ann:secret"), "digest:ann:***");
        assert_eq!(masked("token:abc"), "token:***");
    }
}
