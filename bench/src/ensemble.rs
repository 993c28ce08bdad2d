//! Servers that this program starts itself: real processes on loopback, in a folder that goes with them.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::etcd::Etcd;
use crate::{Result, context, process};

/// How long servers may take to start, find a leader, or come back.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);
/// A server that does not answer a four-letter word within it has no role.
const WORD_TIMEOUT: Duration = Duration::from_secs(1);
/// etcd stops writing at 2 GiB of history unless told otherwise: a row of sets fills that in minutes.
const ETCD_QUOTA_BYTES: &str = "8589934592";
/// Lines of a server's log that are shown when it fails.
const LOG_LINES_SHOWN: usize = 15;

/// Where the programs are, and where servers keep their data.
#[derive(Args, Clone, Debug)]
pub struct Installation {
    /// The program `corral`. Default: the one beside this program.
    #[arg(long, value_name = "FILE")]
    corral: Option<PathBuf>,
    /// Folder in which servers get their own; on the disk that is to be measured. Default: the system's temporary one.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// A line for every Corral server's zoo.cfg; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Java class path of ZooKeeper. The default is that of Debian's package `zookeeper`.
    #[arg(long, value_name = "PATHS", default_value = "/etc/zookeeper/conf:/usr/share/java/zookeeper.jar")]
    zookeeper_classpath: String,
    /// Heap of each ZooKeeper server; the default is that of its own start script.
    #[arg(long, value_name = "SIZE", default_value = "1000m")]
    zookeeper_heap: String,
    /// The program `etcd`; Debian's package is `etcd-server`.
    #[arg(long, value_name = "FILE", default_value = "etcd")]
    etcd: PathBuf,
}

/// What runs as server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Product {
    /// This project.
    Corral,
    /// The original, on Java.
    Zookeeper,
    /// Not the same tree and not the same protocol, but the same purpose.
    Etcd,
    /// Answers everything at once and stores nothing: what client and loopback cost.
    Null,
}

impl Product {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Product::Corral => "Corral",
            Product::Zookeeper => "ZooKeeper",
            Product::Etcd => "etcd",
            Product::Null => "null server",
        }
    }
}

/// Running servers.
pub struct Ensemble {
    product: Product,
    installation: Installation,
    folder: tempfile::TempDir,
    members: Vec<Member>,
}

struct Member {
    client_port: u16,
    /// etcd has only this one for its peers.
    peer_port: u16,
    process: Option<Child>,
}

impl Ensemble {
    /// Starts so many servers and waits for a leader that all of them know.
    ///
    /// # Errors
    /// If a program cannot be started or ends, or no leader is found; the message holds the end of a log.
    pub async fn start(product: Product, servers: usize, installation: &Installation) -> Result<Ensemble> {
        let folder = match &installation.dir {
            Some(dir) => tempfile::tempdir_in(dir),
            None => tempfile::tempdir(),
        }
        .map_err(context("a folder for the servers"))?;
        // All are open at the same time, so that they differ.
        let listeners =
            (0..servers * 3).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<Vec<_>>>()?;
        let ports = listeners.iter().map(|l| Ok(l.local_addr()?.port())).collect::<Result<Vec<u16>>>()?;
        drop(listeners);
        let mut lines = String::new();
        if servers > 1 {
            for i in 0..servers {
                let (peer, election) = (ports[servers + i], ports[2 * servers + i]);
                lines.push_str(&format!("server.{}=127.0.0.1:{peer}:{election}\n", i + 1));
            }
        }
        if product == Product::Corral {
            for setting in &installation.settings {
                lines.push_str(&format!("{setting}\n"));
            }
        }
        let mut ensemble = Ensemble { product, installation: installation.clone(), folder, members: Vec::new() };
        for index in 0..servers {
            let member = Member { client_port: ports[index], peer_port: ports[servers + index], process: None };
            ensemble.members.push(member);
        }
        for (index, &client_port) in ports[..servers].iter().enumerate() {
            let data = ensemble.data(index);
            fs::create_dir_all(&data)?;
            fs::write(data.join("myid"), format!("{}\n", index + 1))?;
            let text = format!(
                "tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={}\nclientPort={client_port}\n\
                 clientPortAddress=127.0.0.1\nmaxClientCnxns=0\n4lw.commands.whitelist=*\n{lines}",
                data.display()
            );
            fs::write(ensemble.config(index), text)?;
            ensemble.start_server(index)?;
        }
        for index in 0..servers {
            ensemble.wait_serving(index).await?;
        }
        Ok(ensemble)
    }

    /// How many servers it has, running or not.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Starts a server that does not run.
    ///
    /// # Errors
    /// If its program cannot be started.
    pub fn start_server(&mut self, index: usize) -> Result<()> {
        let installation = &self.installation;
        let mut command = match self.product {
            Product::Corral => {
                let program = match &installation.corral {
                    Some(program) => program.clone(),
                    None => beside_this_program("corral")?,
                };
                let mut command = Command::new(program);
                // The servers end with this program, however it ends.
                command.args(["serve", "--parent", &std::process::id().to_string(), "--config"]);
                command.arg(self.config(index)).env_remove("CORRAL_CONFIG");
                command
            }
            Product::Zookeeper => {
                let mut command = Command::new("java");
                command
                    .args(["-cp", &installation.zookeeper_classpath, &format!("-Xmx{}", installation.zookeeper_heap)])
                    .arg(format!("-Dzookeeper.log.dir={}", self.data(index).display()))
                    .args(["-Dzookeeper.admin.enableServer=false", "-Djava.net.preferIPv4Stack=true"])
                    .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
                    .arg(self.config(index));
                command
            }
            Product::Etcd => {
                let url = |port: u16| format!("http://127.0.0.1:{port}");
                let name = |index: usize| format!("member{}", index + 1);
                let peers: Vec<String> = (self.members.iter().enumerate())
                    .map(|(index, member)| format!("{}={}", name(index), url(member.peer_port)))
                    .collect();
                let member = &self.members[index];
                let (client, peer) = (url(member.client_port), url(member.peer_port));
                let mut command = Command::new(&installation.etcd);
                command
                    .args(["--name", &name(index), "--initial-cluster", &peers.join(",")])
                    .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                    .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                    .args(["--quota-backend-bytes", ETCD_QUOTA_BYTES, "--log-level", "warn", "--logger", "zap"])
                    .arg("--data-dir")
                    .arg(self.data(index));
                command
            }
            Product::Null => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["null", "--listen", &self.address(index)]);
                command
            }
        };
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log(index))?;
        let hint = match self.product {
            Product::Zookeeper => " (is Java there?)",
            Product::Etcd => " (Debian's package is etcd-server; --etcd names another program)",
            Product::Corral | Product::Null => "",
        };
        let process = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(context(format!("{} cannot be started{hint}", command.get_program().display())))?;
        self.members[index].process = Some(process);
        Ok(())
    }

    /// kill -9, and waits until the process is gone.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        if let Some(mut process) = self.members[index].process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// SIGSTOP: the process is there and does nothing.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn stop(&self, index: usize) -> Result<()> {
        self.signal(index, Signal::STOP)
    }

    /// SIGCONT, after [`Ensemble::stop`].
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn go_on(&self, index: usize) -> Result<()> {
        self.signal(index, Signal::CONT)
    }

    fn signal(&self, index: usize, signal: Signal) -> Result<()> {
        let process = self.members[index].process.as_ref().ok_or("the server does not run")?;
        Ok(kill_process(Pid::from_child(process), signal)?)
    }

    /// `host:port` for clients.
    pub fn address(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.members[index].client_port)
    }

    /// The process of a running server.
    pub fn pid(&self, index: usize) -> Option<u32> {
        self.members[index].process.as_ref().map(Child::id)
    }

    /// All running processes.
    pub fn pids(&self) -> Vec<u32> {
        (0..self.len()).filter_map(|index| self.pid(index)).collect()
    }

    /// Bytes on disk of one server.
    pub fn disk_bytes(&self, index: usize) -> u64 {
        process::disk_bytes(&self.data(index))
    }

    /// What a server says it is; `None` if it does not serve.
    pub async fn role(&self, index: usize) -> Option<String> {
        if self.product == Product::Etcd {
            let asking = async { Etcd::connect(&self.address(index)).await?.role().await };
            return timeout(WORD_TIMEOUT, asking).await.ok()?.ok()?.map(str::to_owned);
        }
        let asking = async {
            let mut socket = TcpStream::connect(self.address(index)).await?;
            socket.write_all(b"srvr").await?;
            let mut text = String::new();
            socket.read_to_string(&mut text).await?;
            std::io::Result::Ok(text)
        };
        let text = timeout(WORD_TIMEOUT, asking).await.ok()?.ok()?;
        Some(text.lines().find_map(|line| line.strip_prefix("Mode: "))?.trim().to_owned())
    }

    /// The server that leads; `None` if none does now.
    pub async fn leader(&self) -> Option<usize> {
        for index in 0..self.len() {
            if self.pid(index).is_some() && matches!(self.role(index).await.as_deref(), Some("leader" | "standalone")) {
                return Some(index);
            }
        }
        None
    }

    /// Waits for a leader.
    ///
    /// # Errors
    /// If there is none for too long.
    pub async fn wait_leader(&mut self) -> Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(leader) = self.leader().await {
                return Ok(leader);
            }
            self.check(0, deadline, "no leader")?;
            sleep(POLL).await;
        }
    }

    /// Waits until a server has a role.
    ///
    /// # Errors
    /// If it ends, or has none for too long.
    pub async fn wait_serving(&mut self, index: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.role(index).await.is_none() {
            self.check(index, deadline, "does not serve")?;
            sleep(POLL).await;
        }
        Ok(())
    }

    /// # Errors
    /// If the server ended, or the deadline is over.
    fn check(&mut self, index: usize, deadline: Instant, problem: &str) -> Result<()> {
        let ended = match &mut self.members[index].process {
            Some(process) => process.try_wait()?,
            None => None,
        };
        if ended.is_none() && Instant::now() < deadline {
            return Ok(());
        }
        let why = ended.map_or_else(|| problem.to_owned(), |status| format!("ended ({status})"));
        let log = fs::read_to_string(self.log(index)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
        Err(format!("{} server {}: {why}. Its log:\n{tail}", self.product.name(), index + 1).into())
    }

    fn data(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("{}", index + 1))
    }

    fn config(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("{}.cfg", index + 1))
    }

    fn log(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("{}.log", index + 1))
    }
}

impl Drop for Ensemble {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(process) = &mut member.process {
                // Whatever fails here: the process is gone already.
                let _ = process.kill();
                let _ = process.wait();
            }
        }
    }
}

/// # Errors
/// If it is not there.
fn beside_this_program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let program = own.parent().unwrap_or(Path::new(".")).join(name);
    match program.exists() {
        true => Ok(program),
        false => Err(format!("there is no {}: build it, or name it with --corral", program.display()).into()),
    }
}
