//! The program's own options, the environment variables behind them, and what they and a context come to.

use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, Parser, ValueEnum};

use crate::context::Context;

/// Where servers are looked for when nobody says.
const SERVER_DEFAULT: &str = "localhost:2181";
/// Limit for connecting and for each request, in ms.
const TIMEOUT_MS_DEFAULT: u64 = 10_000;
/// Session timeout asked for, in ms.
const SESSION_TIMEOUT_MS_DEFAULT: u64 = 30_000;

/// A shell for Corral: ZooKeeper's verbs and more, one at a time or interactively.
///
/// Without a command it reads commands: with a prompt on a terminal, else line by line from standard input.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such node, 4 version does not match, 5 not permitted, 6 timeout,
/// 7 node has children, 8 no connection, 9 lock lost, 10 not confirmed, 127 unknown command, 130 interrupted.
#[derive(Parser, Clone, Debug)]
#[command(name = "zkcli", version, max_term_width = 100)]
pub struct Options {
    /// Servers: host:port[,host:port...][/chroot] (also: -server) [default: localhost:2181]
    #[arg(short, long, value_name = "HOSTS", env = "ZKCLI_SERVER")]
    pub server: Option<String>,

    /// The context to use: see `zkcli help ctx`
    #[arg(long, value_name = "NAME", env = "ZKCLI_CONTEXT")]
    pub context: Option<String>,

    /// The file that contexts are kept in [default: zkcli/contexts.toml in the configuration folder]
    #[arg(long, value_name = "FILE", env = "ZKCLI_CONTEXTS")]
    pub contexts: Option<String>,

    /// How answers look
    #[arg(short, long, value_name = "FORMAT", default_value = "plain", env = "ZKCLI_OUTPUT")]
    pub output: Format,

    /// Limit for connecting and for each request, in ms (also: -timeout) [default: 10000]
    #[arg(long, value_name = "MS", env = "ZKCLI_TIMEOUT", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: Option<u64>,

    /// Session timeout asked for, in ms [default: 30000]
    #[arg(long, value_name = "MS", env = "ZKCLI_SESSION_TIMEOUT",
        value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub session_timeout: Option<u64>,

    /// Wait for a connection without limit (also: -waitforconnection)
    #[arg(long, env = "ZKCLI_WAIT", value_parser = clap::builder::FalseyValueParser::new(), num_args = 0..=1,
        require_equals = true, default_missing_value = "true", default_value = "false")]
    pub wait: bool,

    /// Say nothing but answers and errors
    #[arg(short, long, env = "ZKCLI_QUIET", value_parser = clap::builder::FalseyValueParser::new(), num_args = 0..=1,
        require_equals = true, default_missing_value = "true", default_value = "false")]
    pub quiet: bool,

    /// Do not ask before something is destroyed
    #[arg(short, long, env = "ZKCLI_YES", value_parser = clap::builder::FalseyValueParser::new(), num_args = 0..=1,
        require_equals = true, default_missing_value = "true", default_value = "false")]
    pub yes: bool,

    /// Identity to prove, as digest:user:password; may be repeated
    #[arg(short, long, value_name = "SCHEME:AUTH", env = "ZKCLI_AUTH", hide_env_values = true)]
    pub auth: Vec<String>,

    /// Speak TLS, and believe servers whose certificates come from this authority (PEM)
    #[arg(long, value_name = "FILE", env = "ZKCLI_TLS_CA")]
    pub tls_ca: Option<String>,

    /// Certificate to show (PEM); may hold the key too
    #[arg(long, value_name = "FILE", env = "ZKCLI_TLS_CERT")]
    pub tls_cert: Option<String>,

    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", env = "ZKCLI_TLS_KEY")]
    pub tls_key: Option<String>,

    /// Name to expect in servers' certificates, in place of the one in HOSTS
    #[arg(long, value_name = "NAME", env = "ZKCLI_TLS_SERVER_NAME")]
    pub tls_server_name: Option<String>,

    /// A verb and its arguments: see `zkcli help`
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `-o`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// As ZooKeeper's shell.
    Plain,
    /// One JSON document a line.
    Json,
    /// One YAML document after the other.
    Yaml,
    /// Columns.
    Table,
    /// Data as it is, names one a line.
    Raw,
    /// Data as base64.
    Base64,
    /// Data as hexadecimal digits.
    Hex,
}

/// How to reach an ensemble: what the options say, else the context, else the defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The context that is used.
    pub context: Option<String>,
    /// Whether its ensemble is one that people depend on.
    pub production: bool,
    /// The connect string, with its chroot.
    pub server: String,
    /// Limit for connecting and for each request, in ms.
    pub timeout_ms: u64,
    /// Session timeout asked for, in ms.
    pub session_timeout_ms: u64,
    /// Identities to prove, as `scheme:auth`.
    pub auth: Vec<String>,
    pub tls_ca: Option<String>,
    pub tls_cert: Option<String>,
    pub tls_key: Option<String>,
    pub tls_server_name: Option<String>,
}

impl Settings {
    /// What the options come to, with a context behind them.
    ///
    /// # Errors
    /// A certificate without an authority, or a key without a certificate.
    pub fn of(options: &Options, context: Option<(&str, &Context)>) -> Result<Settings, String> {
        let none = Context::default();
        let (name, behind) = context.map_or((None, &none), |(name, context)| (Some(name.to_owned()), context));
        let or = |own: &Option<String>, behind: &Option<String>| own.clone().or_else(|| behind.clone());
        let server = options.server.clone().or_else(|| behind.connect_string());
        let settings = Settings {
            context: name,
            production: behind.production,
            server: server.unwrap_or_else(|| SERVER_DEFAULT.to_owned()),
            timeout_ms: options.timeout.or(behind.timeout).unwrap_or(TIMEOUT_MS_DEFAULT),
            session_timeout_ms: options
                .session_timeout
                .or(behind.session_timeout)
                .unwrap_or(SESSION_TIMEOUT_MS_DEFAULT),
            auth: if options.auth.is_empty() { behind.auth.clone() } else { options.auth.clone() },
            tls_ca: or(&options.tls_ca, &behind.tls_ca),
            tls_cert: or(&options.tls_cert, &behind.tls_cert),
            tls_key: or(&options.tls_key, &behind.tls_key),
            tls_server_name: or(&options.tls_server_name, &behind.tls_server_name),
        };
        if settings.tls_ca.is_none() && (settings.tls_cert.is_some() || settings.tls_server_name.is_some()) {
            return Err("--tls-cert and --tls-server-name need --tls-ca: the authority to believe".to_owned());
        }
        if settings.tls_key.is_some() && settings.tls_cert.is_none() {
            return Err("--tls-key needs --tls-cert".to_owned());
        }
        Ok(settings)
    }
}

/// Options of this program that take a value, in the spelling that [`normalise`] produces.
const VALUED: [&str; 17] = [
    "-s",
    "--server",
    "--context",
    "--contexts",
    "-o",
    "--output",
    "--timeout",
    "--session-timeout",
    "-a",
    "--auth",
    "--tls-ca",
    "--tls-cert",
    "--tls-key",
    "--tls-server-name",
    // ZooKeeper's spellings.
    "-server",
    "-timeout",
    "-client-configuration",
];

/// ZooKeeper's spellings of some of them.
const ZOOKEEPERS: [&str; 3] = ["-server", "-timeout", "-waitforconnection"];

/// Whether a word is one of this program's own options, and nothing more.
pub fn is_own(word: &str) -> bool {
    let name = word.split_once('=').map_or(word, |(name, _)| name);
    ZOOKEEPERS.contains(&name)
        || Options::command().get_arguments().any(|option| match name.strip_prefix("--") {
            Some(long) => option.get_long() == Some(long),
            None => {
                option.get_short().is_some_and(|letter| name.strip_prefix('-') == Some(letter.encode_utf8(&mut [0; 4])))
            }
        })
}

/// Whether an option with its value says where the servers are: `-s host:port`.
pub fn is_servers(option: &str, value: &str) -> bool {
    let has_port =
        |host: &str| host.rsplit_once(':').is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok());
    option == "-s" && cut_chroot(value).0.split(',').all(has_port)
}

/// Why the program's own options cannot be read, for standard error; without a line end.
pub fn problem(error: &clap::Error) -> String {
    const HELP: &str = "`zkcli --help` tells the options, `zkcli help` the commands";
    match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(option)) => {
            let meant = error.get(ContextKind::SuggestedArg).map(|meant| format!(" (is {meant} meant?)"));
            format!("Unrecognized option: {option}{}\n{HELP}", meant.unwrap_or_default())
        }
        // Its first paragraph says what is wrong; HELP takes the place of the rest.
        _ => {
            let text = error.to_string();
            let wrong = text.split("\n\n").next().unwrap_or_default();
            format!("{}\n{HELP}", wrong.strip_prefix("error: ").unwrap_or(wrong).trim_end())
        }
    }
}

/// Turns ZooKeeper's long options with one dash, as far as they stand before the command, into ours.
pub fn normalise(args: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut args = args.into_iter();
    let mut out: Vec<String> = args.next().into_iter().collect();
    while let Some(arg) = args.next() {
        if !arg.starts_with('-') || arg == "--" || arg == "-" {
            // A `--` behind the command is the command's: clap would take away the first that it sees.
            if arg != "--" {
                out.push("--".to_owned());
            }
            out.push(arg);
            out.extend(args);
            return out;
        }
        let takes_value = VALUED.contains(&arg.as_str());
        out.push(match arg.as_str() {
            "-server" => "--server".to_owned(),
            "-timeout" => "--timeout".to_owned(),
            "-waitforconnection" => "--wait".to_owned(),
            _ => arg,
        });
        if takes_value {
            out.extend(args.next());
        }
    }
    out
}

/// A connect string cut into its hosts and its chroot, which is empty or begins with `/`.
pub fn cut_chroot(connect_string: &str) -> (&str, &str) {
    match connect_string.find('/') {
        Some(at) => connect_string.split_at(at),
        None => (connect_string, ""),
    }
}

/// The addresses of a connect string, each with a port.
pub fn addresses(connect_string: &str) -> Vec<String> {
    cut_chroot(connect_string)
        .0
        .split(',')
        .map(str::trim)
        .filter(|host| !host.is_empty())
        .map(|host| {
            // `[::1]` has colons and no port; `[::1]:2181` has one.
            let after_bracket = host.rsplit_once(']').map_or(host, |(_, rest)| rest);
            if after_bracket.contains(':') { host.to_owned() } else { format!("{host}:{DEFAULT_PORT}") }
        })
        .collect()
}

/// ZooKeeper's client port.
const DEFAULT_PORT: u16 = 2181;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Options {
        let args = std::iter::once("zkcli").chain(line.split_whitespace()).map(str::to_owned);
        Options::try_parse_from(normalise(args)).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn zookeepers_spellings_are_taken_before_the_command() {
        let options = parse("-server a:1,b:2/app -timeout 500 -waitforconnection ls -s /");
        assert_eq!((options.server.as_deref(), options.timeout, options.wait), (Some("a:1,b:2/app"), Some(500), true));
        assert_eq!(options.command, ["ls", "-s", "/"]);
    }

    #[test]
    fn options_after_the_verb_belong_to_the_verb() {
        let options = parse("-o json -s h:1 create -s -e -t 5 /a -server");
        assert_eq!((options.server.as_deref(), options.output), (Some("h:1"), Format::Json));
        assert_eq!(options.command, ["create", "-s", "-e", "-t", "5", "/a", "-server"]);
    }

    #[test]
    fn what_cannot_be_read_is_named_with_a_way_to_help() {
        let problem = |line: &str| {
            let args = std::iter::once("zkcli").chain(line.split_whitespace()).map(str::to_owned);
            super::problem(&Options::try_parse_from(normalise(args)).expect_err(line))
        };
        const HELP: &str = "`zkcli --help` tells the options, `zkcli help` the commands";
        assert_eq!(problem("--bogus ls /"), format!("Unrecognized option: --bogus\n{HELP}"));
        assert_eq!(problem("--serverr h:1"), format!("Unrecognized option: --serverr (is --server meant?)\n{HELP}"));
        assert_eq!(problem("-x"), format!("Unrecognized option: -x\n{HELP}"));
        let wrong = problem("-o xml ls /");
        assert!(wrong.starts_with("invalid value 'xml'") && wrong.ends_with(HELP), "{wrong}");
        assert!(wrong.contains("possible values: plain, json"), "{wrong}");
    }

    #[test]
    fn own_options_are_known_in_every_spelling() {
        for own in ["-s", "--server", "--server=h:1", "-server", "-o", "--yes", "-q", "--tls-ca", "-timeout"] {
            assert!(is_own(own), "{own}");
        }
        for other in ["-R", "-sR", "-x", "--recursive", "-text", "--", "-", "s", "server"] {
            assert!(!is_own(other), "{other}");
        }
        assert!(
            is_servers("-s", "127.0.0.1:2181") && is_servers("-s", "a:1,b:2/app") && is_servers("-s", "[::1]:2181")
        );
        assert!(
            !is_servers("-s", "/a")
                && !is_servers("-s", "data")
                && !is_servers("-s", "a:b")
                && !is_servers("-w", "a:1")
        );
    }

    #[test]
    fn data_that_looks_like_an_option_reaches_the_command() {
        assert_eq!(parse("set /a -- -x").command, ["set", "/a", "--", "-x"]);
        assert_eq!(parse("set /a -").command, ["set", "/a", "-"]);
        assert_eq!(parse("lock /a -- ls -l -- x").command, ["lock", "/a", "--", "ls", "-l", "--", "x"]);
    }

    #[test]
    fn options_of_tls_take_a_value_and_need_an_authority() {
        let options = parse("--tls-ca ca.pem --tls-cert me.pem -s h:1 ls /");
        assert_eq!((options.tls_ca.as_deref(), options.tls_cert.as_deref()), (Some("ca.pem"), Some("me.pem")));
        assert_eq!((&options.tls_key, &options.command), (&None, &vec!["ls".to_owned(), "/".to_owned()]));
        assert!(Settings::of(&options, None).is_ok());
        assert!(Settings::of(&parse("--tls-cert me.pem ls /"), None).is_err(), "no authority");
        assert!(Settings::of(&parse("--tls-ca ca.pem --tls-key me.pem ls /"), None).is_err(), "no certificate");
    }

    #[test]
    fn an_option_counts_before_the_context_and_the_context_before_the_default() {
        let context = Context {
            server: Some("zoo:1".into()),
            chroot: Some("/app".into()),
            timeout: Some(5),
            auth: vec!["digest:a:b".into()],
            production: true,
            ..Context::default()
        };
        let of = |line: &str| Settings::of(&parse(line), Some(("prod", &context))).expect("sound settings");
        let settings = of("ls /");
        assert_eq!((settings.server.as_str(), settings.timeout_ms, settings.production), ("zoo:1/app", 5, true));
        assert_eq!((settings.session_timeout_ms, settings.auth.len()), (SESSION_TIMEOUT_MS_DEFAULT, 1));
        assert_eq!(of("-s h:2 --timeout 9 ls /").server, "h:2");
        assert_eq!(of("-s h:2 --timeout 9 ls /").timeout_ms, 9);
        assert_eq!(Settings::of(&parse("ls /"), None).expect("sound").server, SERVER_DEFAULT);
    }

    #[test]
    fn flags_take_no_value_from_the_command() {
        let options = parse("--wait --quiet -y ls /");
        assert!(options.wait && options.quiet && options.yes);
        assert_eq!(options.command, ["ls", "/"]);
        assert!(!parse("ls /").wait);
    }

    #[test]
    fn addresses_get_zookeepers_port_and_lose_the_chroot() {
        assert_eq!(addresses("a:1, b,[::1],[::1]:5/app/x"), ["a:1", "b:2181", "[::1]:2181", "[::1]:5"]);
        assert!(addresses("/app").is_empty());
    }
}
