//! Ensembles of real server processes, on loopback, in a folder that goes with the test.

#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use corral_client::Client;
use tokio::time::{Instant, sleep, timeout};

/// How long anything may take on a machine that is busy. Nothing is judged by it but "never".
pub const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(20);

/// One ensemble.
pub struct Ensemble {
    folder: tempfile::TempDir,
    members: BTreeMap<u64, Member>,
}

struct Member {
    client_port: u16,
    peer_port: u16,
    process: Option<Child>,
}

/// What `srvr` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Srvr {
    pub mode: String,
    pub zxid: u64,
}

impl Ensemble {
    /// Starts `servers` servers with this configuration beside the usual, and waits for a leader.
    pub async fn start(servers: u64, more: &str) -> Ensemble {
        let folder = tempfile::tempdir().expect("a folder for the test");
        // Ports that are free now; all open at once, so that they differ.
        let listeners: Vec<TcpListener> =
            (0..servers * 2).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let ports: Vec<u16> = listeners.iter().map(|l| l.local_addr().expect("bound").port()).collect();
        drop(listeners);
        let (peers, clients) = ports.split_at(servers as usize);
        let lines: String =
            peers.iter().enumerate().map(|(i, port)| format!("server.{0}=127.0.0.1:{port}:{port}\n", i + 1)).collect();
        let mut members = BTreeMap::new();
        for id in 1..=servers {
            let client_port = clients[id as usize - 1];
            let data = folder.path().join(id.to_string());
            fs::create_dir_all(&data).expect("a data folder");
            fs::write(data.join("myid"), id.to_string()).expect("myid");
            let text = format!(
                "dataDir={}\nclientPort={client_port}\nclientPortAddress=127.0.0.1\ntickTime=500\ninitLimit=20\n\
                 syncLimit=4\nminSessionTimeout=1000\nmaxSessionTimeout=60000\nsyncTimeout=500\n\
                 4lw.commands.whitelist=*\nmaxClientCnxns=0\n{more}\n{lines}",
                data.display()
            );
            fs::write(folder.path().join(format!("{id}.cfg")), text).expect("a configuration");
            members.insert(id, Member { client_port, peer_port: peers[id as usize - 1], process: None });
        }
        let mut ensemble = Ensemble { folder, members };
        for id in 1..=servers {
            ensemble.start_server(id);
        }
        ensemble.leader().await;
        ensemble
    }

    /// Starts a server that does not run.
    pub fn start_server(&mut self, id: u64) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_file(id)).expect("a log file");
        let config = self.config(id);
        let process = Command::new(env!("CARGO_BIN_EXE_corral"))
            .args(["serve", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("the server starts");
        self.member(id).process = Some(process);
    }

    /// The configuration of a server.
    pub fn config(&self, id: u64) -> PathBuf {
        self.folder.path().join(format!("{id}.cfg"))
    }

    /// Gives every server these members and no others, from its next start on.
    pub fn set_members(&self, members: &[(u64, &str)]) {
        for id in self.ids() {
            let file = self.config(id);
            let text = fs::read_to_string(&file).expect("it was written");
            let mut lines: Vec<String> =
                text.lines().filter(|line| !line.starts_with("server.")).map(str::to_owned).collect();
            lines.extend(members.iter().map(|(member, role)| {
                let port = self.members[member].peer_port;
                format!("server.{member}=127.0.0.1:{port}:{port}:{role}")
            }));
            fs::write(file, lines.join("\n")).expect("a configuration");
        }
    }

    fn member(&mut self, id: u64) -> &mut Member {
        self.members.get_mut(&id).expect("a member")
    }

    /// kill -9.
    pub fn kill(&mut self, id: u64) {
        if let Some(mut process) = self.member(id).process.take() {
            process.kill().expect("the process is ours");
            process.wait().expect("it is gone");
        }
    }

    /// SIGTERM; returns the exit code.
    pub async fn terminate(&mut self, id: u64) -> Option<i32> {
        let mut process = self.member(id).process.take()?;
        let pid = rustix::process::Pid::from_child(&process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the process is ours");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = process.try_wait().expect("it is ours") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "server {id} does not stop\n{}", self.tail(id));
            sleep(POLL).await;
        }
    }

    /// SIGSTOP or SIGCONT.
    pub fn signal(&mut self, id: u64, signal: rustix::process::Signal) {
        let process = self.members[&id].process.as_ref().expect("it runs");
        rustix::process::kill_process(rustix::process::Pid::from_child(process), signal).expect("the process is ours");
    }

    /// The process of a running server.
    pub fn pid(&self, id: u64) -> u32 {
        self.members[&id].process.as_ref().expect("it runs").id()
    }

    /// Whether the process is there.
    pub fn is_running(&mut self, id: u64) -> bool {
        let member = self.member(id);
        member.process.as_mut().is_some_and(|p| p.try_wait().expect("it is ours").is_none())
    }

    /// The folder of a server's data.
    pub fn data(&self, id: u64) -> PathBuf {
        self.folder.path().join(id.to_string())
    }

    /// Removes everything a server stored, and leaves its `myid`.
    pub fn wipe(&self, id: u64) {
        let data = self.data(id);
        fs::remove_dir_all(&data).expect("it is there");
        fs::create_dir_all(&data).expect("a data folder");
        fs::write(data.join("myid"), id.to_string()).expect("myid");
    }

    fn log_file(&self, id: u64) -> PathBuf {
        self.folder.path().join(format!("{id}.log"))
    }

    /// What a server logged.
    pub fn log(&self, id: u64) -> String {
        fs::read_to_string(self.log_file(id)).unwrap_or_default()
    }

    fn tail(&self, id: u64) -> String {
        let log = self.log(id);
        let from = log.lines().count().saturating_sub(60);
        format!("--- log of server {id}\n{}", log.lines().skip(from).collect::<Vec<_>>().join("\n"))
    }

    /// The logs of all servers, for a failure's message.
    pub fn tails(&self) -> String {
        self.members.keys().map(|id| self.tail(*id)).collect::<Vec<_>>().join("\n")
    }

    /// All ids.
    pub fn ids(&self) -> Vec<u64> {
        self.members.keys().copied().collect()
    }

    /// `host:port` of one server.
    pub fn address(&self, id: u64) -> String {
        format!("127.0.0.1:{}", self.members[&id].client_port)
    }

    /// A connect string of these servers.
    pub fn addresses(&self, ids: impl IntoIterator<Item = u64>) -> String {
        ids.into_iter().map(|id| self.address(id)).collect::<Vec<_>>().join(",")
    }

    /// Asks a four-letter word.
    pub fn ask(&self, id: u64, word: &str) -> Option<String> {
        let mut socket = TcpStream::connect(self.address(id)).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        socket.write_all(word.as_bytes()).ok()?;
        let mut text = String::new();
        socket.read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// What `srvr` says, if the server serves.
    pub fn srvr(&self, id: u64) -> Option<Srvr> {
        let text = self.ask(id, "srvr")?;
        let line = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::trim).map(str::to_owned);
        let zxid = u64::from_str_radix(line("Zxid: 0x")?.as_str(), 16).ok()?;
        Some(Srvr { mode: line("Mode:")?, zxid })
    }

    /// A value of `mntr`.
    pub fn mntr(&self, id: u64, key: &str) -> Option<String> {
        let text = self.ask(id, "mntr")?;
        text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('\t').map(str::to_owned))
    }

    /// Waits for something, and says what and why not if it never comes.
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&Ensemble) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "never: {what}\n{}", self.tails());
            sleep(POLL).await;
        }
    }

    /// Waits for a leader among the running servers.
    pub async fn leader(&self) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let leader = self
                .ids()
                .into_iter()
                .find(|id| self.srvr(*id).is_some_and(|s| s.mode == "leader" || s.mode == "standalone"));
            if let Some(leader) = leader {
                return leader;
            }
            assert!(Instant::now() < deadline, "no leader\n{}", self.tails());
            sleep(POLL).await;
        }
    }

    /// Some server that follows.
    pub async fn follower(&self) -> u64 {
        let leader = self.leader().await;
        self.ids().into_iter().find(|id| *id != leader).expect("more than one server")
    }

    /// A client of these servers.
    pub async fn client(&self, ids: impl IntoIterator<Item = u64>, session_timeout: Duration) -> Client {
        let connect = Client::builder(self.addresses(ids)).session_timeout(session_timeout).connect();
        match timeout(PATIENCE, connect).await {
            Ok(Ok(client)) => client,
            other => panic!("no client: {:?}\n{}", other.map(|r| r.map(|_| ())), self.tails()),
        }
    }

    /// Whether the process of a server ended by itself.
    pub fn has_ended(&self, id: u64) -> bool {
        let pid = self.members[&id].process.as_ref().map(rustix::process::Pid::from_child);
        // A child that nobody waited for yet is a zombie: its state follows its name, which stands in parentheses.
        pid.is_none_or(|pid| {
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
            stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
        })
    }

    /// Whether all servers have executed the same just now.
    pub fn has_converged(&self) -> bool {
        let zxids: Vec<_> = self.ids().into_iter().map(|id| self.srvr(id).map(|srvr| srvr.zxid)).collect();
        zxids[0].is_some() && zxids.iter().all(|zxid| *zxid == zxids[0])
    }

    /// Waits until all servers have executed the same, and returns that zxid. Their digests there must be equal.
    pub async fn converge(&self) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let states: Vec<_> = self
                .ids()
                .into_iter()
                .map(|id| Some((self.srvr(id)?.zxid, self.mntr(id, "zk_digest")?, self.srvr(id)?.zxid)))
                .collect();
            if let Some(Some((zxid, digest, again))) = states.first().cloned()
                && zxid == again
                && states.iter().flatten().all(|(a, _, b)| *a == zxid && *b == zxid)
                && states.iter().all(Option::is_some)
            {
                for (id, state) in self.ids().into_iter().zip(&states) {
                    let (_, theirs, _) = state.as_ref().expect("looked at above");
                    assert_eq!(*theirs, digest, "the tree of server {id} differs at {zxid:#x}");
                }
                return zxid;
            }
            assert!(Instant::now() < deadline, "the servers never agree: {states:?}\n{}", self.tails());
            sleep(POLL).await;
        }
    }
}

impl Drop for Ensemble {
    fn drop(&mut self) {
        for member in self.members.values_mut() {
            if let Some(process) = &mut member.process {
                let _ = process.kill();
                let _ = process.wait();
            }
        }
    }
}

/// Copies a folder, for tests that put an old one back.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("it is there") {
        let entry = entry.expect("readable");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("known").is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}
