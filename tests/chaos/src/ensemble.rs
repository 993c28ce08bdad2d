//! Real servers: their processes, folders and links.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::journal::Journal;
use crate::proxy::{Proxy, Rules};
use crate::space::{self, Spaces};
use crate::{Result, context};

/// How long anything may take on a machine that is busy. Nothing is judged by it but "never".
pub const PATIENCE: Duration = Duration::from_secs(240);
/// Between two looks at something that should come.
pub const POLL: Duration = Duration::from_millis(50);
/// A server that does not answer a four-letter word within it says nothing.
const WORD_TIMEOUT: Duration = Duration::from_secs(2);
/// Size of a data folder that can be filled, in bytes: memory, so not too much.
const SMALL_DISK_BYTES: u64 = 192 << 20;
/// The file that fills it.
const FILLER: &str = "filler";
/// Starts of a server with a damaged folder before the folder is emptied, as an operator would.
const DAMAGED_STARTS_MAX: u32 = 2;

/// Who waits for whole servers is told after so long, and again, what is missing.
const WHY_NOT_AFTER: Duration = Duration::from_secs(5);
/// Attempts to take what is free on a small disk.
const FILL_ATTEMPTS: u32 = 10;
/// A server that ended without a reason so many times is not started again: the run is over.
const ENDS_MAX: u32 = 3;

/// Keys of every server beside its addresses: short time-outs, and a store and log so small that segments end and
/// snapshots are sent within a minute.
const SETTINGS: &str = "tickTime=500\ninitLimit=20\nsyncTimeout=700\nminSessionTimeout=1500\nmaxSessionTimeout=60000\n\
    4lw.commands.whitelist=*\nmaxClientCnxns=0\nadmin.enableServer=false\nmemoryLimit=48M\nsegmentSize=3M\n\
    logRetention=16M\nsnapshotThreshold=1M\nflushAfterEntries=1500\nminFreeSpace=4M\n";

/// What `srvr` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Srvr {
    /// `leader`, `follower`, ...
    pub mode: String,
    /// The last one executed.
    pub zxid: u64,
}

/// One ensemble.
pub struct Ensemble {
    program: PathBuf,
    folder: PathBuf,
    spaces: Option<Spaces>,
    members: BTreeMap<u64, Member>,
    /// By who dials and who is dialled.
    links: BTreeMap<(u64, u64), Proxy>,
    /// Clients' ways to each server.
    doors: BTreeMap<u64, Proxy>,
    journal: Arc<Journal>,
}

struct Member {
    process: Option<Child>,
    paused: bool,
    /// Where it listens for clients.
    direct: SocketAddr,
    small_disk: bool,
    /// Its process may end by itself: something was done to its folder.
    excused: bool,
    /// Starts since its folder was damaged.
    damaged_starts: u32,
    /// Its disk is full: it needs room, not another folder.
    full: bool,
    /// How often it ended without a reason.
    ends: u32,
    /// Damaged files of its store.
    damaged_files: Vec<PathBuf>,
    /// Length of its log when its process was started.
    log_before: u64,
}

impl Ensemble {
    /// Makes folders, links and configurations, and starts `servers` servers. With `spaces` each has its own network, and
    /// a minority has its data on a small disk.
    ///
    /// # Errors
    /// If something cannot be made, or a server cannot be started.
    pub async fn start(
        program: &Path,
        folder: &Path,
        servers: u64,
        spaces: Option<Spaces>,
        seed: u64,
        journal: Arc<Journal>,
    ) -> Result<Ensemble> {
        let mut ensemble = Ensemble {
            program: program.to_owned(),
            folder: folder.to_owned(),
            spaces,
            members: BTreeMap::new(),
            links: BTreeMap::new(),
            doors: BTreeMap::new(),
            journal,
        };
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        // Where each server listens: for its peers and for clients.
        let places: Vec<(SocketAddr, SocketAddr)> = match spaces {
            Some(_) => (1..=servers)
                .map(|id| (SocketAddr::new(space::server_ip(id), space::PEER_PORT), space::client_address(id)))
                .collect(),
            None => {
                // All are open at the same time, so that they differ.
                let open = (0..servers * 2).map(|_| TcpListener::bind((loopback, 0))).collect::<Result<Vec<_>, _>>()?;
                let ports = open.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;
                ports.chunks(2).map(|pair| (pair[0], pair[1])).collect()
            }
        };
        let place = |id: u64| places[id as usize - 1];
        for from in 1..=servers {
            for to in (1..=servers).filter(|to| *to != from) {
                let (listen, source) = match spaces {
                    Some(_) => (
                        SocketAddr::new(space::dialled_ip(from, to), space::PEER_PORT),
                        Some(space::dialling_ip(from, to)),
                    ),
                    None => (SocketAddr::new(loopback, 0), None),
                };
                let link = Proxy::start(listen, place(to).0, source, seed ^ (from * 10 + to)).await;
                ensemble.links.insert((from, to), link.map_err(context(format!("a proxy on {listen}")))?);
            }
        }
        fs::write(folder.join("secret"), "only those who share this talk to each other\n")?;
        for id in 1..=servers {
            let (peer, direct) = place(id);
            let source = spaces.map(|_| space::clients_ip());
            let door = Proxy::start(SocketAddr::new(loopback, 0), direct, source, seed ^ id).await?;
            ensemble.doors.insert(id, door);
            let mut text = format!(
                "dataDir={}\npeerSecretFile={}\nclientPort={}\nclientPortAddress={}\n{SETTINGS}",
                ensemble.data(id).display(),
                folder.join("secret").display(),
                direct.port(),
                direct.ip()
            );
            for other in 1..=servers {
                let address = if other == id { peer } else { ensemble.links[&(id, other)].address() };
                text.push_str(&format!("server.{other}={0}:{1}:{1}\n", address.ip(), address.port()));
            }
            fs::write(ensemble.config(id), text)?;
            fs::create_dir_all(ensemble.data(id))?;
            let small_disk = spaces.is_some() && id > servers - (servers - 1) / 2 && ensemble.mount(id);
            ensemble.write_my_id(id)?;
            let member = Member {
                process: None,
                paused: false,
                direct,
                small_disk,
                damaged_files: Vec::new(),
                log_before: 0,
                excused: false,
                damaged_starts: 0,
                full: false,
                ends: 0,
            };
            ensemble.members.insert(id, member);
        }
        for id in 1..=servers {
            ensemble.start_server(id)?;
        }
        Ok(ensemble)
    }

    /// Gives a server's data a small disk of its own; the mount is seen by this run only and ends with it.
    fn mount(&self, id: u64) -> bool {
        let size = format!("size={SMALL_DISK_BYTES}");
        let output =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "corral-chaos"]).arg(self.data(id)).output();
        match output {
            Ok(output) if output.status.success() => true,
            Ok(output) => {
                let why = String::from_utf8_lossy(&output.stderr);
                self.journal.say(format_args!("no small disk for server {id}, none will be full: {}", why.trim()));
                false
            }
            Err(error) => {
                self.journal.say(format_args!("no small disk for server {id}, none will be full: mount: {error}"));
                false
            }
        }
    }

    fn write_my_id(&self, id: u64) -> Result<()> {
        fs::create_dir_all(self.data(id))?;
        Ok(fs::write(self.data(id).join("myid"), format!("{id}\n"))?)
    }

    /// All ids.
    pub fn ids(&self) -> Vec<u64> {
        self.members.keys().copied().collect()
    }

    /// The smallest number of servers that is a majority.
    pub fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }

    /// Whether packets can be dropped.
    pub fn spaces(&self) -> Option<Spaces> {
        self.spaces
    }

    /// The link that `from` dials to reach `to`.
    pub fn link(&self, from: u64, to: u64) -> &Proxy {
        &self.links[&(from, to)]
    }

    /// All links between servers.
    pub fn links(&self) -> impl Iterator<Item = &Proxy> {
        self.links.values()
    }

    /// The way of clients to a server.
    pub fn door(&self, id: u64) -> &Proxy {
        &self.doors[&id]
    }

    /// Where clients connect: through the proxies.
    pub fn client_addresses(&self) -> Vec<SocketAddr> {
        self.doors.values().map(Proxy::address).collect()
    }

    /// Where one server listens for clients itself.
    pub fn direct(&self, id: u64) -> SocketAddr {
        self.members[&id].direct
    }

    /// Servers whose disk can be filled.
    pub fn small_disks(&self) -> Vec<u64> {
        self.members.iter().filter(|(_, m)| m.small_disk).map(|(id, _)| *id).collect()
    }

    /// The folder of a server's data.
    pub fn data(&self, id: u64) -> PathBuf {
        self.folder.join(id.to_string())
    }

    fn config(&self, id: u64) -> PathBuf {
        self.folder.join(format!("{id}.cfg"))
    }

    fn log_file(&self, id: u64) -> PathBuf {
        self.folder.join(format!("{id}.log"))
    }

    /// What a server logged.
    pub fn log(&self, id: u64) -> String {
        // Lines that were being written when the server was killed may end in the middle of a character.
        fs::read(self.log_file(id)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The ends of all logs, for evidence.
    pub fn tails(&self, lines: usize) -> String {
        let mut text = String::new();
        for id in self.members.keys() {
            let log = self.log(*id);
            let from = log.lines().count().saturating_sub(lines);
            text.push_str(&format!("--- log of server {id}\n"));
            for line in log.lines().skip(from) {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }

    fn member(&mut self, id: u64) -> &mut Member {
        self.members.get_mut(&id).expect("ids come from this ensemble")
    }

    /// Starts a server that does not run.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn start_server(&mut self, id: u64) -> Result<()> {
        if self.members[&id].process.is_some() {
            return Ok(());
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_file(id))?;
        let log_before = log.metadata()?.len();
        let mut command = match &self.spaces {
            Some(spaces) => spaces.command(id, &self.program),
            None => Command::new(&self.program),
        };
        // Servers end with this program, however it ends.
        command.args(["serve", "--parent", &std::process::id().to_string(), "--config"]).arg(self.config(id));
        command.env_remove("CORRAL_CONFIG").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().map_err(context(self.program.display()))?;
        let member = self.member(id);
        member.process = Some(process);
        member.paused = false;
        member.log_before = log_before;
        Ok(())
    }

    /// kill -9.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn kill(&mut self, id: u64) -> Result<()> {
        if let Some(mut process) = self.member(id).process.take() {
            process.kill()?;
            process.wait()?;
        }
        self.member(id).paused = false;
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// If the system refuses.
    pub async fn terminate(&mut self, id: u64) -> Result<()> {
        let Some(mut process) = self.member(id).process.take() else { return Ok(()) };
        kill_process(Pid::from_child(&process), Signal::TERM)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = process.try_wait()? {
                // Before a process has come to handle the signal, the system does: nothing was there to drain.
                let unborn = status.signal() == Some(Signal::TERM.as_raw()) && !self.has_begun(id);
                if !status.success() && !unborn && !self.is_excused(id) {
                    let text = format!("server {id} was told to stop and ended with {status}");
                    self.journal.violation("processes", text, &self.tails(200));
                }
                return Ok(());
            }
            if Instant::now() >= deadline {
                let text = format!("server {id} was told to stop and never did");
                self.journal.violation("processes", text, &self.tails(200));
                process.kill()?;
                process.wait()?;
                return Ok(());
            }
            sleep(POLL).await;
        }
    }

    /// SIGSTOP.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn pause(&mut self, id: u64) -> Result<()> {
        self.signal(id, Signal::STOP, true)
    }

    fn signal(&mut self, id: u64, signal: Signal, paused: bool) -> Result<()> {
        let member = self.member(id);
        if let Some(process) = &member.process {
            kill_process(Pid::from_child(process), signal)?;
            member.paused = paused;
        }
        Ok(())
    }

    /// Whether its process is there and not paused, as far as this run did something about it.
    pub fn is_up(&self, id: u64) -> bool {
        let member = &self.members[&id];
        member.process.is_some() && !member.paused
    }

    /// From now on the server may end by itself: its folder was damaged, or its disk is full.
    pub fn excuse(&mut self, id: u64) {
        let member = self.member(id);
        member.excused = true;
        member.damaged_starts = 0;
    }

    /// This file of the server was damaged. A block of the store that nobody reads is found when it is merged with others,
    /// however much later: as long as the file is there, the server may end by it. Files of other kinds are read at every
    /// start, and written again under the same name.
    pub fn note_damage(&mut self, id: u64, file: PathBuf) {
        if file.extension().is_some_and(|extension| extension == "sst") {
            self.member(id).damaged_files.push(file);
        }
    }

    /// Whether its process has said something: by then it handles signals.
    fn has_begun(&self, id: u64) -> bool {
        fs::metadata(self.log_file(id)).is_ok_and(|log| log.len() > self.members[&id].log_before)
    }

    fn is_excused(&self, id: u64) -> bool {
        let member = &self.members[&id];
        member.excused || member.damaged_files.iter().any(|file| file.exists())
    }

    /// Starts servers again that ended by themselves, as a supervisor would. One that had no reason to end is a
    /// violation. One whose damaged folder is beyond repair gets an empty one.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn look_after(&mut self) -> Result<()> {
        for id in self.ids() {
            let Some(status) = self.ended(id)? else { continue };
            self.member(id).process = None;
            if !self.is_excused(id) {
                let text = format!("server {id} ended by itself: {status}");
                self.journal.violation("processes", text, &self.tails(200));
                self.member(id).ends += 1;
                if self.members[&id].ends >= ENDS_MAX {
                    return Err(format!("server {id} ends again and again\n{}", self.tails(10)).into());
                }
            } else {
                self.journal.say(format_args!("server {id} ended ({status}); it is started again"));
                self.member(id).damaged_starts += 1;
                if self.members[&id].damaged_starts > DAMAGED_STARTS_MAX && !self.members[&id].full {
                    self.journal.say(format_args!("server {id} cannot use its folder any more: it gets an empty one"));
                    self.wipe(id)?;
                }
            }
            self.start_server(id)?;
        }
        Ok(())
    }

    fn ended(&mut self, id: u64) -> Result<Option<ExitStatus>> {
        Ok(match &mut self.member(id).process {
            Some(process) => process.try_wait()?,
            None => None,
        })
    }

    /// Removes everything a server stored, and leaves its `myid`. It must not run.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn wipe(&self, id: u64) -> Result<()> {
        for entry in fs::read_dir(self.data(id))? {
            let path = entry?.path();
            if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
        self.write_my_id(id)
    }

    /// Fills a server's small disk, but for so many bytes.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn fill_disk(&mut self, id: u64, leave: u64) -> Result<()> {
        self.excuse(id);
        self.member(id).full = true;
        let path = self.data(id).join(FILLER);
        let file = fs::File::create(&path)?;
        // The server goes on writing: what was free is not free any more when it is asked for.
        for _ in 0..FILL_ATTEMPTS {
            let stat = rustix::fs::fstatvfs(&file)?;
            let wanted = (stat.f_bavail * stat.f_frsize).saturating_sub(leave);
            if wanted == 0 {
                break;
            }
            let end = fs::metadata(&path)?.len();
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), end, wanted) {
                Err(error) if error != rustix::io::Errno::NOSPC => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Ends all faults that can be ended: links, processes, disks. A server that was stopped is started.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn heal(&mut self) -> Result<()> {
        for proxy in self.links.values().chain(self.doors.values()) {
            if proxy.rules() != Rules::default() {
                proxy.set(Rules::default());
            }
        }
        for id in self.ids() {
            if let Some(spaces) = &self.spaces {
                spaces.set_link(id, true)?;
                spaces.pass_packets(id)?;
            }
            if std::mem::take(&mut self.member(id).full) {
                fs::remove_file(self.data(id).join(FILLER))?;
            }
            if self.members[&id].paused {
                self.signal(id, Signal::CONT, false)?;
            }
            self.start_server(id)?;
        }
        Ok(())
    }

    /// Kills all servers.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn kill_all(&mut self) -> Result<()> {
        self.ids().into_iter().try_for_each(|id| self.kill(id))
    }

    /// Brings what lies on small disks to the folder itself, so that it is still there when the run has ended. Servers
    /// must not run.
    ///
    /// # Errors
    /// If a command fails.
    pub fn keep_small_disks(&self) -> Result<()> {
        for id in self.small_disks() {
            let (data, aside) = (self.data(id), self.folder.join(format!("{id}.copy")));
            let run = |command: &mut Command| -> Result<()> {
                let status = command.status()?;
                if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
            };
            run(Command::new("cp").arg("-a").arg(&data).arg(&aside))?;
            run(Command::new("umount").arg(&data))?;
            fs::remove_dir_all(&data)?;
            fs::rename(&aside, &data)?;
        }
        Ok(())
    }

    /// Gives small disks back, with all that is on them. Servers must not run.
    pub fn drop_small_disks(&self) {
        for id in self.small_disks() {
            // It ends with this process at the latest.
            let _ = Command::new("umount").arg(self.data(id)).output();
        }
    }

    /// Asks a four-letter word.
    pub async fn ask(&self, id: u64, word: &str) -> Option<String> {
        if !self.is_up(id) {
            return None;
        }
        let asking = async {
            let mut socket = TcpStream::connect(self.direct(id)).await?;
            socket.write_all(word.as_bytes()).await?;
            let mut text = String::new();
            socket.read_to_string(&mut text).await?;
            std::io::Result::Ok(text)
        };
        timeout(WORD_TIMEOUT, asking).await.ok()?.ok()
    }

    /// What `srvr` says, if the server serves.
    pub async fn srvr(&self, id: u64) -> Option<Srvr> {
        let text = self.ask(id, "srvr").await?;
        let line = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::trim).map(str::to_owned);
        let zxid = u64::from_str_radix(line("Zxid: 0x")?.as_str(), 16).ok()?;
        Some(Srvr { mode: line("Mode:")?, zxid })
    }

    /// A value of `mntr`.
    pub async fn mntr(&self, id: u64, key: &str) -> Option<String> {
        let text = self.ask(id, "mntr").await?;
        text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('\t').map(str::to_owned))
    }

    /// The server that leads, if one does now.
    pub async fn leader(&self) -> Option<u64> {
        for id in self.ids() {
            if self.srvr(id).await.is_some_and(|srvr| srvr.mode == "leader") {
                return Some(id);
            }
        }
        None
    }

    /// What each server says of itself: `srvr`, and whether it is a full member.
    pub async fn states(&self) -> Vec<(u64, Option<Srvr>, Option<String>)> {
        let mut states = Vec::new();
        for id in self.ids() {
            states.push((id, self.srvr(id).await, self.mntr(id, "zk_membership").await));
        }
        states
    }

    /// Whether every server serves, is a full member, and has executed what the others had when this was asked.
    pub async fn is_whole(&self) -> bool {
        let mut newest = 0;
        for id in self.ids() {
            match self.srvr(id).await {
                Some(srvr) => newest = newest.max(srvr.zxid),
                None => return false,
            }
        }
        for id in self.ids() {
            let has_newest = self.srvr(id).await.is_some_and(|srvr| srvr.zxid >= newest);
            if !has_newest || self.mntr(id, "zk_membership").await.is_none_or(|m| m != "member") {
                return false;
            }
        }
        true
    }

    /// Waits until [`Ensemble::is_whole`], and looks after the servers meanwhile. `false`: it was not within `limit`.
    ///
    /// # Errors
    /// If the system refuses.
    pub async fn wait_whole(&mut self, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        let mut say_why = Instant::now() + WHY_NOT_AFTER;
        loop {
            self.look_after()?;
            if Instant::now() >= say_why {
                say_why += WHY_NOT_AFTER;
                let states = self.states().await;
                self.journal.say(format_args!("not whole yet: {states:?}"));
            }
            if self.is_whole().await {
                for id in self.ids() {
                    self.member(id).excused = false;
                }
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(POLL).await;
        }
    }
}

impl Drop for Ensemble {
    fn drop(&mut self) {
        // Whatever fails here: the processes are gone already, or end with this one.
        for member in self.members.values_mut() {
            if let Some(process) = &mut member.process {
                let _ = process.kill();
                let _ = process.wait();
            }
        }
    }
}
