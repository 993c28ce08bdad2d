//! Network namespaces: one for each server, and one, the hub, for the run itself with its clients and proxies.
//!
//! ```text
//!   hub: clients - 127.0.0.1 - [proxy] - 10.77.0.254 ---- 10.77.0.i : server i
//!        bridge                [proxy i to j]
//!        10.77.(10+i).j  <-- dialled by server i       10.77.(20+i).j --> dials server j
//! ```
//!
//! Every link between two servers has addresses of its own at the hub, so a route of one server cuts exactly one
//! link in one direction. The namespaces are connected with nothing else: not with the machine's own network.
//!
//! The process that people start makes them, starts the run inside the hub and removes them when that ends, however it
//! ends. Those of a run that was killed together with this keeper are removed by the next.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::{Result, context};

/// Begins the name of every namespace made here; then the keeper's process number, then what it is for.
const PREFIX: &str = "corral-chaos-";
/// What the hub is called.
const HUB: &str = "hub";
/// Where servers listen for each other and for clients.
pub const PEER_PORT: u16 = 2888;
/// See [`PEER_PORT`].
pub const CLIENT_PORT: u16 = 2181;

/// The namespaces of one run.
#[derive(Clone, Copy, Debug)]
pub struct Spaces {
    keeper: u32,
    servers: u64,
}

/// A server's own address.
pub fn server_ip(server: u64) -> IpAddr {
    address(0, server)
}

/// Where clients come from, as servers see it.
pub fn clients_ip() -> IpAddr {
    address(0, 254)
}

/// Where server `from` dials to reach server `to`.
pub fn dialled_ip(from: u64, to: u64) -> IpAddr {
    address(10 + from, to)
}

/// From where server `to` is dialled when `from` wants to reach it.
pub fn dialling_ip(from: u64, to: u64) -> IpAddr {
    address(20 + from, to)
}

fn address(third: u64, fourth: u64) -> IpAddr {
    // Servers are numbered from 1 to 9.
    IpAddr::V4(Ipv4Addr::new(10, 77, third as u8, fourth as u8))
}

impl Spaces {
    /// Those that the process `keeper` made.
    pub fn of(keeper: u32, servers: u64) -> Spaces {
        Spaces { keeper, servers }
    }

    /// Makes them.
    ///
    /// # Errors
    /// If that is not permitted, or `ip` is missing. What was made is removed again.
    pub fn create(servers: u64) -> Result<Spaces> {
        let spaces = Spaces { keeper: std::process::id(), servers };
        spaces.make().inspect_err(|_| spaces.remove())?;
        Ok(spaces)
    }

    fn make(&self) -> Result<()> {
        ip(&["netns", "add", &self.hub()])?;
        let mut hub = format!(
            "link set lo up\nlink add br0 type bridge\naddr add {}/16 dev br0\nlink set br0 up\n",
            clients_ip()
        );
        for server in 1..=self.servers {
            ip(&["netns", "add", &self.server(server)])?;
            let _ = writeln!(hub, "link add s{server} type veth peer name eth0 netns {}", self.server(server));
            let _ = writeln!(hub, "link set s{server} master br0 up");
            for other in (1..=self.servers).filter(|other| *other != server) {
                let _ = writeln!(hub, "addr add {}/32 dev br0", dialled_ip(server, other));
                let _ = writeln!(hub, "addr add {}/32 dev br0", dialling_ip(server, other));
            }
        }
        batch(&self.hub(), &hub)?;
        for server in 1..=self.servers {
            let lines = format!("link set lo up\naddr add {}/16 dev eth0\nlink set eth0 up\n", server_ip(server));
            batch(&self.server(server), &lines)?;
        }
        Ok(())
    }

    /// Removes them; processes inside, if there are any, keep the network until they end.
    pub fn remove(&self) {
        remove_of(self.keeper);
    }

    /// Name of the run's own.
    pub fn hub(&self) -> String {
        format!("{PREFIX}{}-{HUB}", self.keeper)
    }

    /// Name of a server's.
    pub fn server(&self, server: u64) -> String {
        format!("{PREFIX}{}-{server}", self.keeper)
    }

    /// A command that runs `program` in a server's namespace, as the very process that is started.
    pub fn command(&self, server: u64, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.server(server)]).arg(program);
        command
    }

    /// Nothing that server `at` sends to these addresses leaves it any more.
    ///
    /// # Errors
    /// If the routes cannot be set.
    pub fn drop_packets(&self, at: u64, to: &[IpAddr]) -> Result<()> {
        let lines: String = to.iter().map(|ip| format!("route replace blackhole {ip}/32\n")).collect();
        batch(&self.server(at), &lines)
    }

    /// Ends what [`Spaces::drop_packets`] began, all of it.
    ///
    /// # Errors
    /// If the routes cannot be removed.
    pub fn pass_packets(&self, at: u64) -> Result<()> {
        ip(&["-n", &self.server(at), "route", "flush", "type", "blackhole"])
    }

    /// Pulls or plugs a server's cable.
    ///
    /// # Errors
    /// If the link cannot be changed.
    pub fn set_link(&self, server: u64, up: bool) -> Result<()> {
        ip(&["-n", &self.hub(), "link", "set", &format!("s{server}"), if up { "up" } else { "down" }])
    }
}

/// Where server `server` listens inside namespaces.
pub fn client_address(server: u64) -> SocketAddr {
    SocketAddr::new(server_ip(server), CLIENT_PORT)
}

/// Removes the namespaces of runs whose keeper is gone, and says how many there were.
pub fn sweep() -> usize {
    let keepers: std::collections::BTreeSet<u32> = names().iter().filter_map(|name| keeper_of(name)).collect();
    let dead: Vec<u32> = keepers.into_iter().filter(|pid| !is_keeper(*pid)).collect();
    for keeper in &dead {
        remove_of(*keeper);
    }
    dead.len()
}

fn keeper_of(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

/// Whether a process of this number runs, and is one of these programs: numbers are used again.
fn is_keeper(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| String::from_utf8_lossy(&line).contains("corral-chaos"))
}

fn remove_of(keeper: u32) {
    for name in names().iter().filter(|name| keeper_of(name) == Some(keeper)) {
        if let Err(error) = ip(&["netns", "del", name]) {
            eprintln!("corral-chaos: namespace {name} stays: {error}");
        }
    }
}

fn names() -> Vec<String> {
    // Nothing is listed where there is no `ip`: then there are none of ours either.
    let output = Command::new("ip").args(["netns", "list"]).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).stdin(Stdio::null()).output().map_err(context("ip"))?;
    check(&format!("ip {}", args.join(" ")), &output)
}

/// Runs lines of `ip` in one namespace.
fn batch(space: &str, lines: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-n", space, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(context("ip"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(lines.as_bytes())?;
    }
    check(&format!("ip -n {space} -batch"), &child.wait_with_output()?)
}

fn check(what: &str, output: &Output) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_names_its_keeper() {
        let spaces = Spaces::of(4711, 3);
        assert_eq!(keeper_of(&spaces.hub()), Some(4711));
        assert_eq!(keeper_of(&spaces.server(2)), Some(4711));
        assert_eq!(keeper_of("somebody-elses"), None);
    }

    #[test]
    fn no_two_links_share_an_address() {
        let mut all: Vec<IpAddr> = (1..=9).map(server_ip).chain([clients_ip()]).collect();
        for from in 1..=9 {
            all.extend((1..=9).flat_map(|to| [dialled_ip(from, to), dialling_ip(from, to)]));
        }
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
