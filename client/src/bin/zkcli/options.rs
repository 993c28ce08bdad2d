//! The program's own options, and the environment variables behind them.

use clap::{Parser, ValueEnum};

/// A shell for Corral: ZooKeeper's verbs, one at a time or interactively.
///
/// Without a command it reads commands: with a prompt on a terminal, else line by line from standard input.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such node, 4 version does not match, 5 not permitted, 6 timeout,
/// 7 node has children, 8 no connection, 127 unknown command, 130 interrupted.
#[derive(Parser, Clone, Debug)]
#[command(name = "zkcli", version, max_term_width = 100)]
pub struct Options {
    /// Servers: host:port[,host:port...][/chroot] (also: -server)
    #[arg(short, long, value_name = "HOSTS", default_value = "localhost:2181", env = "ZKCLI_SERVER")]
    pub server: String,

    /// How answers look
    #[arg(short, long, value_name = "FORMAT", default_value = "plain", env = "ZKCLI_OUTPUT")]
    pub output: Format,

    /// Limit for connecting and for each request, in ms (also: -timeout)
    #[arg(long, value_name = "MS", default_value_t = 10_000, env = "ZKCLI_TIMEOUT",
        value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,

    /// Session timeout asked for, in ms
    #[arg(long, value_name = "MS", default_value_t = 30_000, env = "ZKCLI_SESSION_TIMEOUT",
        value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub session_timeout: u64,

    /// Wait for a connection without limit (also: -waitforconnection)
    #[arg(long, env = "ZKCLI_WAIT", value_parser = clap::builder::FalseyValueParser::new(), num_args = 0..=1,
        require_equals = true, default_missing_value = "true", default_value = "false")]
    pub wait: bool,

    /// Identity to prove, as digest:user:password; may be repeated
    #[arg(short, long, value_name = "SCHEME:AUTH", env = "ZKCLI_AUTH", hide_env_values = true)]
    pub auth: Vec<String>,

    /// Speak TLS, and believe servers whose certificates come from this authority (PEM)
    #[arg(long, value_name = "FILE", env = "ZKCLI_TLS_CA")]
    pub tls_ca: Option<String>,

    /// Certificate to show (PEM); may hold the key too
    #[arg(long, value_name = "FILE", env = "ZKCLI_TLS_CERT", requires = "tls_ca")]
    pub tls_cert: Option<String>,

    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", env = "ZKCLI_TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<String>,

    /// Name to expect in servers' certificates, in place of the one in HOSTS
    #[arg(long, value_name = "NAME", env = "ZKCLI_TLS_SERVER_NAME", requires = "tls_ca")]
    pub tls_server_name: Option<String>,

    /// A verb and its arguments: see `zkcli help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `-o`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// As ZooKeeper's shell.
    Plain,
    /// One JSON document a line.
    Json,
}

/// Options of this program that take a value, in the spelling that [`normalise`] produces.
const VALUED: [&str; 15] = [
    "-s",
    "--server",
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

/// Turns ZooKeeper's long options with one dash, as far as they stand before the command, into ours.
pub fn normalise(args: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut args = args.into_iter();
    let mut out: Vec<String> = args.next().into_iter().collect();
    while let Some(arg) = args.next() {
        if !arg.starts_with('-') || arg == "--" || arg == "-" {
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

/// The addresses of a connect string, each with a port.
pub fn addresses(connect_string: &str) -> Vec<String> {
    let hosts = connect_string.split('/').next().unwrap_or_default();
    hosts
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
        assert_eq!((options.server.as_str(), options.timeout, options.wait), ("a:1,b:2/app", 500, true));
        assert_eq!(options.command, ["ls", "-s", "/"]);
    }

    #[test]
    fn options_after_the_verb_belong_to_the_verb() {
        let options = parse("-o json -s h:1 create -s -e -t 5 /a -server");
        assert_eq!((options.server.as_str(), options.output), ("h:1", Format::Json));
        assert_eq!(options.command, ["create", "-s", "-e", "-t", "5", "/a", "-server"]);
    }

    #[test]
    fn data_that_looks_like_an_option_reaches_the_command() {
        assert_eq!(parse("set /a -- -x").command, ["set", "/a", "--", "-x"]);
        assert_eq!(parse("set /a -").command, ["set", "/a", "-"]);
    }

    #[test]
    fn options_of_tls_take_a_value() {
        let options = parse("--tls-ca ca.pem --tls-cert me.pem -s h:1 ls /");
        assert_eq!((options.tls_ca.as_deref(), options.tls_cert.as_deref()), (Some("ca.pem"), Some("me.pem")));
        assert_eq!((options.tls_key, options.command), (None, vec!["ls".to_owned(), "/".to_owned()]));
        assert!(Options::try_parse_from(["zkcli", "--tls-cert", "me.pem", "ls", "/"]).is_err(), "no authority");
    }

    #[test]
    fn wait_is_a_flag() {
        let options = parse("--wait ls /");
        assert!(options.wait);
        assert_eq!(options.command, ["ls", "/"]);
        assert!(!parse("ls /").wait);
    }

    #[test]
    fn addresses_get_zookeepers_port_and_lose_the_chroot() {
        assert_eq!(addresses("a:1, b,[::1],[::1]:5/app/x"), ["a:1", "b:2181", "[::1]:2181", "[::1]:5"]);
        assert!(addresses("/app").is_empty());
    }
}
