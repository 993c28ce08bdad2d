//! The two sides: a real ZooKeeper in a Java process, and Corral in this one.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use corral_server::config;
use corral_server::node::{Node, ServerHandle};
use tokio::runtime::Runtime;

use crate::known::Version;

/// Class path of ZooKeeper, if it is not Debian's.
const CLASSPATH: &str = "ZOOKEEPER_CLASSPATH";

/// Where Debian's package `zookeeper` puts it; its manifest names the rest.
const DEBIANS: &str = "/usr/share/java/zookeeper.jar";

const PATIENCE: Duration = Duration::from_secs(60);

/// Both understand these.
const COMMON: &str = "initLimit=10\nsyncLimit=5\nmaxSessionTimeout=120000\nmaxClientCnxns=0\n\
    4lw.commands.whitelist=*\nclientPortAddress=127.0.0.1\n";

/// The shortest session of a seed in which sessions expire, ms. All others last longer than any run.
pub const SHORT_MS: i32 = 2_000;

/// The digest of `super:adm`.
const SUPER: &str = "super:r6E2C++zNwVMDz3XvPehmL0jqnY=";

/// Between two looks of the reaper, ms: a day, which is longer than any run; and in a seed in which znodes are reaped.
const REAPER_MS: u64 = 86_400_000;
const EAGER_REAPER_MS: u64 = 100;

/// A folder for servers, in memory if that is to be had: what is compared here does not depend on the disk.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a folder")
}

/// What a seed configures alike on both sides.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// `enforceQuota`
    pub enforces_quota: bool,
    /// `extendedTypesEnabled`
    pub extended_types: bool,
    /// There are short sessions.
    pub expires: bool,
    /// Containers and TTL znodes are reaped at once.
    pub reaps: bool,
    /// `localSessionsEnabled`, and `localSessionsUpgradingEnabled`.
    pub local: Option<bool>,
}

impl Settings {
    /// Lines that both understand.
    fn common(&self) -> String {
        let (tick, min) = if self.expires { (500, SHORT_MS) } else { (2_000, 60_000) };
        let mut text = format!("{COMMON}tickTime={tick}\nminSessionTimeout={min}\n");
        if let Some(upgrading) = self.local {
            text += &format!("localSessionsEnabled=true\nlocalSessionsUpgradingEnabled={upgrading}\n");
        }
        text
    }

    fn reaper_ms(&self) -> u64 {
        if self.reaps { EAGER_REAPER_MS } else { REAPER_MS }
    }
}

/// A real server.
pub struct ZooKeeper {
    pub address: SocketAddr,
    pub version: Version,
    // A shell that ends the server when this process does, however it does: its standard input ends then.
    shell: Child,
    _folder: tempfile::TempDir,
}

impl ZooKeeper {
    /// Why there is no real server on this machine; `None` if there is one.
    pub fn missing() -> Option<String> {
        let java = Command::new("java").arg("-version").stderr(Stdio::null()).stdout(Stdio::null()).status();
        if !java.is_ok_and(|status| status.success()) {
            return Some("there is no java".into());
        }
        if std::env::var_os(CLASSPATH).is_none() && !Path::new(DEBIANS).exists() {
            return Some(format!("there is no {DEBIANS}, and {CLASSPATH} is not set"));
        }
        None
    }

    /// A fresh one. Panics with its log if it does not start.
    pub fn start(settings: Settings) -> ZooKeeper {
        let folder = folder();
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let file = folder.path().join("zoo.cfg");
        let data = folder.path().join("data");
        let mut text =
            format!("{}dataDir={}\nclientPort={port}\nadmin.enableServer=false\n", settings.common(), data.display());
        if settings.local.is_some() {
            // A standalone server has no local sessions; an ensemble of one does.
            let ports: Vec<TcpListener> =
                (0..2).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
            let port = |at: usize| ports[at].local_addr().expect("bound").port();
            text += &format!("standaloneEnabled=false\nserver.1=127.0.0.1:{}:{}\n", port(0), port(1));
            fs::create_dir_all(&data).expect("a folder");
            fs::write(data.join("myid"), "1").expect("written");
        }
        fs::write(&file, text).expect("written");
        let log = folder.path().join("log");
        let output = fs::File::create(&log).expect("a log");
        let classpath = std::env::var(CLASSPATH).unwrap_or_else(|_| DEBIANS.into());
        let mut shell = Command::new("sh")
            .args(["-c", "\"$@\" & read -r line; kill -9 $!; wait", "sh", "java", "-cp", &classpath])
            .args(["-Xmx400m", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"])
            .args(["-Dzookeeper.forceSync=no", "-Dzookeeper.admin.enableServer=false"])
            .arg(format!("-Dzookeeper.extendedTypesEnabled={}", settings.extended_types))
            .arg(format!("-Dzookeeper.enforceQuota={}", settings.enforces_quota))
            .arg(format!("-Dzookeeper.DigestAuthenticationProvider.superDigest={SUPER}"))
            .arg("-Dzookeeper.authProvider.sasl=org.apache.zookeeper.server.auth.SASLAuthenticationProvider")
            .arg(format!("-Dznode.container.checkIntervalMs={}", settings.reaper_ms()))
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(output.try_clone().expect("a log"))
            .stderr(output)
            .spawn()
            .expect("a shell");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let deadline = Instant::now() + PATIENCE;
        let version = loop {
            let line = word(address, "srvr");
            if let Some(version) = line.strip_prefix("Zookeeper version: ").and_then(Version::parse) {
                break version;
            }
            if Instant::now() > deadline {
                let said = fs::read_to_string(&log).unwrap_or_default();
                let _ = shell.kill();
                panic!("ZooKeeper does not serve (class path {classpath}); it says:\n{said}");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        ZooKeeper { address, version, shell, _folder: folder }
    }
}

impl Drop for ZooKeeper {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// What a server answers to a four-letter word; empty if it does not.
pub fn word(address: SocketAddr, word: &str) -> String {
    let mut text = String::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
        let _ = stream.write_all(word.as_bytes());
        let _ = stream.read_to_string(&mut text);
    }
    text
}

/// Fresh servers of ours: one, or an ensemble.
pub struct Corral {
    pub addresses: Vec<SocketAddr>,
    servers: Vec<ServerHandle>,
    _folder: tempfile::TempDir,
}

impl Corral {
    pub fn start(runtime: &Runtime, servers: usize, settings: Settings) -> Corral {
        let folder = folder();
        // All are open at the same time, so that they differ.
        let listeners: Vec<TcpListener> =
            (0..servers).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let port = |l: &TcpListener| l.local_addr().expect("bound").port();
        let lines: String =
            listeners.iter().enumerate().map(|(i, l)| format!("server.{}=127.0.0.1:{}\n", i + 1, port(l))).collect();
        drop(listeners);
        let texts: Vec<String> = (1..=servers)
            .map(|id| {
                let data: PathBuf = folder.path().join(id.to_string());
                fs::create_dir_all(&data).expect("a folder");
                fs::write(data.join("myid"), id.to_string()).expect("written");
                format!(
                    "{}syncTimeout=500\ndataDir={}\nclientPort=0\nsegmentSize=4M\nmemoryLimit=24M\nextendedTypesEnabled={}\n\
                     enforceQuota={}\n\
                     replayPersistentWatches=false\nDigestAuthenticationProvider.superDigest={SUPER}\n\
                     znode.container.checkIntervalMs={}\n{}",
                    settings.common(),
                    data.display(),
                    settings.extended_types,
                    settings.enforces_quota,
                    settings.reaper_ms(),
                    if servers > 1 { lines.as_str() } else { "" },
                )
            })
            .collect();
        let read = |path: &Path| match fs::read_to_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        let servers: Vec<ServerHandle> = runtime.block_on(async {
            let mut handles = Vec::new();
            for text in &texts {
                let parsed = config::parse(Some(("test.cfg", text)), &[], &read).expect("the configuration is right");
                handles.push(Node::start(parsed.config).await.expect("the server starts"));
            }
            handles
        });
        let deadline = Instant::now() + PATIENCE;
        while !servers.iter().all(ServerHandle::is_serving) {
            assert!(Instant::now() < deadline, "Corral does not serve");
            std::thread::sleep(Duration::from_millis(5));
        }
        Corral { addresses: servers.iter().map(ServerHandle::client_addr).collect(), servers, _folder: folder }
    }

    pub fn stop(self, runtime: &Runtime) {
        runtime.block_on(async {
            for server in self.servers {
                server.stop().await;
            }
        });
    }
}
