//! Where the servers are: the connect string, the order in which they are tried, how long to wait between rounds, and
//! the chroot.
//!
//! Pure: the shuffle and the jitter are drawn from a seed.

use std::time::Duration;

use crate::error::Error;

/// Port of a server whose port is not named: ZooKeeper's client port.
pub(crate) const PORT: u16 = 2181;
/// The pause before the second round over all servers; each further one doubles it.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// The longest pause between two rounds: short against any session timeout.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_millis(1_000);

/// The servers of a connect string, in the order in which this client tries them, and its chroot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hosts {
    /// `host:port` or `[address]:port`.
    pub(crate) servers: Vec<String>,
    /// Empty, or a path that does not end in `/`.
    chroot: String,
    seed: u64,
}

impl Hosts {
    /// Takes `host[:port][,host[:port]...][/chroot]` apart. IPv6 addresses stand in brackets.
    pub(crate) fn parse(text: &str, seed: u64) -> Result<Hosts, Error> {
        let wrong = |reason: String| Error::ConnectString { text: text.to_owned(), reason };
        let text = text.trim();
        let (list, chroot) = match text.find('/') {
            Some(at) => text.split_at(at),
            None => (text, ""),
        };
        let chroot = if chroot == "/" { "" } else { chroot };
        if !chroot.is_empty() && corral_proto::path::validate(chroot).is_err() {
            return Err(wrong(format!("{chroot:?} is not a valid chroot")));
        }
        let mut servers: Vec<String> = Vec::new();
        for part in list.split(',') {
            let server = parse_server(part.trim()).map_err(&wrong)?;
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
        let mut random = Random(seed);
        for at in (1..servers.len()).rev() {
            servers.swap(at, random.below(at as u64 + 1) as usize);
        }
        Ok(Hosts { servers, chroot: chroot.to_owned(), seed })
    }

    /// The prefix of every path.
    pub(crate) fn chroot(&self) -> &str {
        &self.chroot
    }

    /// The caller's path as the server knows it.
    pub(crate) fn full_path(&self, path: &str) -> String {
        match (self.chroot.as_str(), path) {
            ("", path) => path.to_owned(),
            (chroot, "/") => chroot.to_owned(),
            (chroot, path) => format!("{chroot}{path}"),
        }
    }

    /// A prefix of the caller's paths as the server knows it: without a path's own rules, but never beyond the chroot.
    pub(crate) fn full_prefix(&self, prefix: &str) -> String {
        match (self.chroot.as_str(), prefix) {
            ("", prefix) => prefix.to_owned(),
            (chroot, prefix) if prefix.starts_with('/') => format!("{chroot}{prefix}"),
            (chroot, prefix) => format!("{chroot}/{prefix}"),
        }
    }

    /// The server's path as the caller knows it. A path outside the chroot stays as it is.
    pub(crate) fn user_path<'a>(&self, path: &'a str) -> &'a str {
        match path.strip_prefix(self.chroot.as_str()) {
            Some("") => "/",
            Some(rest) if rest.starts_with('/') => rest,
            _ => path,
        }
    }

    /// The servers in turn, for the life of a client.
    pub(crate) fn tries(&self) -> Tries {
        Tries { servers: self.servers.len(), next: 0, failed: 0, random: Random(self.seed ^ 0x9e37_79b9_7f4a_7c15) }
    }
}

fn parse_server(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("a server's name is missing".to_owned());
    }
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, rest)) = rest.split_once(']') else {
            return Err(format!("{text:?} lacks the closing bracket"));
        };
        let Ok(address) = address.parse::<std::net::Ipv6Addr>() else {
            return Err(format!("{address:?} is not an IPv6 address"));
        };
        let port = match rest {
            "" => None,
            rest => Some(rest.strip_prefix(':').ok_or_else(|| format!("{rest:?} after the bracket is not a port"))?),
        };
        (format!("[{address}]"), port)
    } else {
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        if port.is_some_and(|port| port.contains(':')) {
            return Err(format!("{text:?}: an IPv6 address stands in brackets, as in [::1]:{PORT}"));
        }
        let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || !host.chars().all(is_legal) {
            return Err(format!("{host:?} is not a host name"));
        }
        (host.to_owned(), port)
    };
    let port = match port {
        None => PORT,
        // `parse` alone would take a sign.
        Some(digits) => match digits.parse::<u16>() {
            Ok(port) if port > 0 && digits.bytes().all(|b| b.is_ascii_digit()) => port,
            _ => return Err(format!("{digits:?} is not a port: 1 to 65535")),
        },
    };
    Ok(format!("{host}:{port}"))
}

/// Which server comes next, and after which pause.
#[derive(Clone, Debug)]
pub(crate) struct Tries {
    servers: usize,
    next: usize,
    /// Attempts since the last success.
    failed: u32,
    random: Random,
}

impl Tries {
    /// The next server's place in the list, and how long to wait before trying it: nothing within the first round,
    /// and a pause that doubles before each further round, with up to half of it added at random so that clients which
    /// lost the same server do not come back together.
    pub(crate) fn next(&mut self) -> (usize, Duration) {
        let server = self.next;
        self.next = (self.next + 1) % self.servers;
        let servers = self.servers as u32;
        let round = self.failed / servers;
        let pause = if round > 0 && self.failed.is_multiple_of(servers) {
            let pause = BACKOFF_MIN.saturating_mul(1 << (round - 1).min(16)).min(BACKOFF_MAX);
            pause + pause.mul_f64(self.random.below(1000) as f64 / 2000.0)
        } else {
            Duration::ZERO
        };
        self.failed = self.failed.saturating_add(1);
        (server, pause)
    }

    /// A connection served: the next loss begins anew, with the server after this one.
    pub(crate) fn succeeded(&mut self) {
        self.failed = 0;
    }

    /// A connection ended in a way that trying again at once may repeat for ever: the next attempt waits.
    pub(crate) fn hold_back(&mut self) {
        let servers = self.servers as u32;
        self.failed = self.failed.saturating_add(servers - 1) / servers * servers;
        self.failed = self.failed.max(servers * 3);
    }
}

/// A small generator (xorshift64* on a mixed seed): enough to spread clients.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64 step: any seed will do, zero included.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Hosts {
        let mut hosts = Hosts::parse(text, 1).unwrap();
        hosts.servers.sort();
        hosts
    }

    fn reason(text: &str) -> String {
        match Hosts::parse(text, 1) {
            Err(Error::ConnectString { reason, .. }) => reason,
            other => panic!("{text:?} gave {other:?}"),
        }
    }

    #[test]
    fn hosts_ports_and_chroot_are_read() {
        assert_eq!(parse("a").servers, ["a:2181"]);
        assert_eq!(parse(" b.c:1 , a-1:65535 ").servers, ["a-1:65535", "b.c:1"]);
        assert_eq!(parse("a,a:2181").servers, ["a:2181"]);
        assert_eq!(parse("[::1]:5,[0:0::2],127.0.0.1:7/x/y").servers, ["127.0.0.1:7", "[::1]:5", "[::2]:2181"]);
        assert_eq!(parse("a:1/x/y").chroot(), "/x/y");
        assert_eq!((parse("a:1/").chroot(), parse("a:1").chroot()), ("", ""));
    }

    #[test]
    fn what_is_wrong_with_a_connect_string_is_said() {
        assert_eq!(reason(""), "a server's name is missing");
        assert_eq!(reason("a,,b"), "a server's name is missing");
        assert_eq!(reason("/x"), "a server's name is missing");
        assert_eq!(reason("a:0"), "\"0\" is not a port: 1 to 65535");
        assert_eq!(reason("a:+5"), "\"+5\" is not a port: 1 to 65535");
        assert_eq!(reason("a:70000"), "\"70000\" is not a port: 1 to 65535");
        assert_eq!(reason("::1"), "\"::1\": an IPv6 address stands in brackets, as in [::1]:2181");
        assert_eq!(reason("[::1"), "\"[::1\" lacks the closing bracket");
        assert_eq!(reason("[x]:1"), "\"x\" is not an IPv6 address");
        assert_eq!(reason("[::1]x"), "\"x\" after the bracket is not a port");
        assert_eq!(reason("http:1,a b"), "\"a b\" is not a host name");
        assert_eq!(reason("a/x/"), "\"/x/\" is not a valid chroot");
    }

    #[test]
    fn the_chroot_goes_on_and_comes_off() {
        let (with, without) = (parse("a/app"), parse("a"));
        for (user, server) in [("/", "/app"), ("/x", "/app/x"), ("/x/y", "/app/x/y")] {
            assert_eq!((with.full_path(user).as_str(), with.user_path(server)), (server, user));
            assert_eq!((without.full_path(user).as_str(), without.user_path(user)), (user, user));
        }
        assert_eq!(with.user_path("/application"), "/application", "another tree");
        assert_eq!(
            (with.full_prefix(""), with.full_prefix("/"), with.full_prefix("/x")),
            ("/app/".into(), "/app/".into(), "/app/x".into())
        );
        assert_eq!(without.full_prefix("/x"), "/x");
    }

    #[test]
    fn the_first_round_does_not_wait_and_later_ones_wait_longer_up_to_a_bound() {
        let mut tries = parse("a,b,c").tries();
        let mut pauses = Vec::new();
        for round in 0..12 {
            for place in 0..3 {
                let (server, pause) = tries.next();
                assert_eq!(server, place);
                if round == 0 || place > 0 {
                    assert_eq!(pause, Duration::ZERO);
                } else {
                    pauses.push(pause);
                }
            }
        }
        for (at, pause) in pauses.iter().enumerate() {
            let least = BACKOFF_MIN.saturating_mul(1 << at).min(BACKOFF_MAX);
            assert!((least..=least.mul_f64(1.5)).contains(pause), "{at}: {pause:?}");
        }
        tries.succeeded();
        assert_eq!(tries.next().1, Duration::ZERO);
        tries.hold_back();
        assert!(tries.next().1 >= BACKOFF_MIN);
    }

    #[test]
    fn seeds_spread_clients_over_the_servers() {
        let first = |seed| Hosts::parse("a,b,c", seed).unwrap().servers[0].clone();
        let mut seen: Vec<_> = (0..50).map(first).collect();
        assert_eq!(first(7), first(7));
        seen.sort();
        seen.dedup();
        assert_eq!(seen, ["a:2181", "b:2181", "c:2181"]);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[ -~]{0,40}", seed: u64) {
            if let Ok(hosts) = Hosts::parse(&text, seed) {
                prop_assert!(!hosts.servers.is_empty());
                for server in &hosts.servers {
                    prop_assert!(format!("http://{server}").parse::<tonic::transport::Uri>().is_ok(), "{server}");
                }
            }
        }

        #[test]
        fn what_was_written_is_read(
            hosts in prop::collection::btree_map("[a-z][a-z0-9.-]{0,8}", 1u16.., 1..5), v6: u128, chroot in "(/[a-z]{1,3}){0,3}",
            seed: u64,
        ) {
            let v6 = format!("[{}]:9", std::net::Ipv6Addr::from_bits(v6));
            let mut servers: Vec<String> = hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
            servers.push(v6);
            let mut read = Hosts::parse(&format!("{}{chroot}", servers.join(",")), seed).unwrap();
            read.servers.sort();
            servers.sort();
            prop_assert_eq!(&read.servers, &servers);
            prop_assert_eq!(read.chroot(), &chroot);
        }

        #[test]
        fn chroot_round_trip(path in "(/[a-z]{1,3}){1,4}", chroot in "(/[a-z]{1,3}){0,2}") {
            let hosts = Hosts::parse(&format!("a{chroot}"), 0).unwrap();
            let full = hosts.full_path(&path);
            prop_assert_eq!(hosts.user_path(&full), &path);
        }
    }
}
