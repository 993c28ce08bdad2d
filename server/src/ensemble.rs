//! `corral ensemble`: a whole ensemble on one machine, one real server process each.
//!
//! Every server gets a folder with its own `zoo.cfg`, `myid`, data and log file, so each of them can be killed, looked
//! into and started again by hand. The servers die with this process; a signal to it stops them in good order.

use std::fs;
use std::io::{self, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use clap::Args;
use corral_server::config::Override;
use rustix::process::{Pid, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::{EXIT_USAGE, STOP_TIMEOUT, Signals};

/// Servers of an ensemble without `--nodes`.
const NODES_DEFAULT: u16 = 3;
/// More than that on one machine shows nothing new.
const NODES_MAX: u16 = 25;
/// Client port of the first server without `--base-port`; where something listens there, the next of these that is free.
const BASE_PORTS: [u16; 5] = [2181, 12181, 22181, 32181, 42181];
/// From a server's client port to the port for its peers, and to the election port, which nobody listens on.
const PEER_PORT_OFFSET: u16 = 100;
const ELECTION_PORT_OFFSET: u16 = 200;
/// To the port of its AdminServer, and of its figures for Prometheus.
const ADMIN_PORT_OFFSET: u16 = 300;
/// An ensemble that has no leader after so long will not have one.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at the servers, at first and later.
const POLL_STARTING: Duration = Duration::from_millis(100);
const POLL_RUNNING: Duration = Duration::from_millis(500);
/// A server that says nothing for so long has no role.
const WORD_TIMEOUT: Duration = Duration::from_secs(1);
/// Lines of a server's log that are shown when it does not start.
const LOG_LINES_SHOWN: usize = 12;
/// Written when the ensemble is ready: who listens where, for scripts.
const READY_FILE: &str = "servers.tsv";

#[derive(Args)]
pub(crate) struct EnsembleArgs {
    /// Number of servers [default: 3, or as many as DIR holds].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    nodes: Option<u16>,
    /// Folder for everything, kept at the end. Without it: a temporary folder, removed at the end.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Client port of the first server; the others follow. Ports between servers begin 100 above it.
    #[arg(long, value_name = "PORT")]
    base_port: Option<u16>,
    /// A line for every server's zoo.cfg; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = Override::from_set)]
    set: Vec<Override>,
}

/// One server, as this program knows it.
struct Member {
    id: u16,
    client_port: u16,
    peer_port: u16,
    config: PathBuf,
    log: PathBuf,
    /// `None` once it ended.
    child: Option<Child>,
    /// As last reported: leader, follower, ...; empty if it does not serve.
    role: String,
}

/// The folder of the ensemble; a temporary one goes when this is dropped.
struct Folder {
    path: PathBuf,
    temporary: bool,
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.temporary
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            eprintln!("corral: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Runs an ensemble until a signal.
pub(crate) fn run(args: EnsembleArgs) -> ExitCode {
    // One thread: the system ends the servers when the thread that started them ends, not only the process.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start: {error}")),
    };
    match runtime.block_on(run_until_signal(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(problem)) => {
            eprintln!("corral: {problem}");
            ExitCode::from(EXIT_USAGE)
        }
        Err(Failure::Run(problem)) => fail(&problem),
    }
}

fn fail(problem: &str) -> ExitCode {
    eprintln!("corral: {problem}");
    ExitCode::FAILURE
}

enum Failure {
    /// What was asked for cannot be had.
    Usage(String),
    /// It went wrong.
    Run(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Run(error.to_string())
    }
}

async fn run_until_signal(args: EnsembleArgs) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let folder = open_folder(args.dir.as_deref())?;
    let nodes = choose_nodes(args.nodes, &folder.path)?;
    let base = choose_ports(args.base_port, nodes)?;
    let mut members = (1..=nodes).map(|id| member(&folder.path, id, base)).collect::<Vec<_>>();
    for index in 0..members.len() {
        write_files(&members, index, &args.set)?;
    }
    say(&format!("starting {nodes} server{} in {}\n", if nodes == 1 { "" } else { "s" }, folder.path.display()));
    for member in &mut members {
        member.child = Some(start(member)?);
    }
    let ready = tokio::select! {
        ready = wait_until_ready(&mut members) => ready,
        name = signals.next() => Err(Failure::Run(format!("{name} before the ensemble was ready"))),
    };
    let result = match ready {
        Ok(()) => {
            write_ready_file(&folder.path, &members)?;
            say(&describe(&members, &folder));
            watch(&mut members, &mut signals).await
        }
        Err(failure) => Err(failure),
    };
    stop(&mut members, &mut signals).await;
    // The next ensemble in this folder is not ready yet.
    let _ = fs::remove_file(folder.path.join(READY_FILE));
    result
}

/// Prints to standard output; a reader that went away is no error.
fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

// --------------------------------------------------------------------------------------------------------- preparation

fn open_folder(dir: Option<&Path>) -> Result<Folder, Failure> {
    let (path, temporary) = match dir {
        Some(dir) => (dir.to_path_buf(), false),
        None => (std::env::temp_dir().join(format!("corral-ensemble-{}", std::process::id())), true),
    };
    fs::create_dir_all(&path).map_err(|e| Failure::Usage(format!("cannot create {}: {e}", path.display())))?;
    Ok(Folder { path: std::path::absolute(path)?, temporary })
}

fn server_folder(folder: &Path, id: u16) -> PathBuf {
    folder.join(format!("server-{id}"))
}

/// As many servers as the folder holds already, or as asked for.
fn choose_nodes(asked: Option<u16>, folder: &Path) -> Result<u16, Failure> {
    let existing = (1..=NODES_MAX).take_while(|id| server_folder(folder, *id).join("data").exists()).count() as u16;
    match (existing, asked) {
        (0, asked) => Ok(asked.unwrap_or(NODES_DEFAULT)),
        (existing, Some(asked)) if asked != existing => Err(Failure::Usage(format!(
            "{} holds an ensemble of {existing}, and its members cannot change: leave --nodes out, or use another --dir",
            folder.display()
        ))),
        (existing, _) => Ok(existing),
    }
}

/// A base from which every port of the ensemble is free.
fn choose_ports(asked: Option<u16>, nodes: u16) -> Result<u16, Failure> {
    let busy = |base: u16| -> Option<u16> {
        let ports = (0..nodes).flat_map(|i| [0, PEER_PORT_OFFSET, ADMIN_PORT_OFFSET].map(|o| base + o + i));
        ports.into_iter().find(|port| TcpListener::bind(("127.0.0.1", *port)).is_err())
    };
    let highest = u16::MAX - ADMIN_PORT_OFFSET - nodes;
    match asked {
        Some(base) if base == 0 || base > highest => {
            Err(Failure::Usage(format!("--base-port {base}: allowed are 1 to {highest}")))
        }
        Some(base) => match busy(base) {
            Some(port) => Err(Failure::Usage(format!("port {port} is in use: choose another --base-port"))),
            None => Ok(base),
        },
        None => BASE_PORTS
            .into_iter()
            .find(|base| busy(*base).is_none())
            .ok_or_else(|| Failure::Usage(format!("no free ports near {BASE_PORTS:?}: choose a --base-port"))),
    }
}

fn member(folder: &Path, id: u16, base: u16) -> Member {
    let own = server_folder(folder, id);
    Member {
        id,
        client_port: base + id - 1,
        peer_port: base + PEER_PORT_OFFSET + id - 1,
        config: own.join("zoo.cfg"),
        log: own.join("server.log"),
        child: None,
        role: String::new(),
    }
}

/// Writes one server's `zoo.cfg` and `myid`.
fn write_files(members: &[Member], index: usize, set: &[Override]) -> Result<(), Failure> {
    let me = &members[index];
    let folder = me.config.parent().expect("a member's files are in its folder");
    let data = folder.join("data");
    fs::create_dir_all(&data)?;
    fs::write(data.join("myid"), format!("{}\n", me.id))?;
    let mut text = String::from("# Written by `corral ensemble` at every start.\n");
    let mut line = |key: &str, value: &str| {
        // A backslash begins an escape in this syntax.
        text.push_str(&format!("{key}={}\n", value.replace('\\', "\\\\")));
    };
    line("tickTime", "2000");
    line("dataDir", &data.display().to_string());
    line("clientPort", &me.client_port.to_string());
    line("clientPortAddress", "127.0.0.1");
    line("4lw.commands.whitelist", "*");
    line("maxClientCnxns", "0");
    line("admin.serverAddress", "127.0.0.1");
    line("admin.serverPort", &(me.client_port + ADMIN_PORT_OFFSET).to_string());
    // Several servers share this machine's memory and disk.
    line("memoryLimit", "96M");
    line("segmentSize", "16M");
    if members.len() > 1 {
        for m in members {
            let election = m.client_port + ELECTION_PORT_OFFSET;
            // With the address for clients: `/zookeeper/config` tells them of it.
            let client = format!("127.0.0.1:{}", m.client_port);
            line(&format!("server.{}", m.id), &format!("127.0.0.1:{}:{election};{client}", m.peer_port));
        }
    }
    for o in set {
        line(&o.key, &o.value);
    }
    fs::write(&me.config, text)?;
    Ok(())
}

fn start(member: &Member) -> Result<Child, Failure> {
    let log = fs::File::options().create(true).append(true).open(&member.log)?;
    let child = Command::new(std::env::current_exe()?)
        .args(["serve", "--parent", &std::process::id().to_string(), "--config"])
        .arg(&member.config)
        .env_remove("CORRAL_CONFIG")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C is for this process, which passes it on.
        .process_group(0)
        .spawn()?;
    Ok(child)
}

// ------------------------------------------------------------------------------------------------------------- running

/// Waits until every server serves.
async fn wait_until_ready(members: &mut [Member]) -> Result<(), Failure> {
    let waiting = async {
        loop {
            for member in members.iter_mut() {
                if let Some(status) = ended(member)? {
                    let log = last_lines(&member.log);
                    return Err(Failure::Run(format!("server {} ended ({status}). Its log:\n{log}", member.id)));
                }
                member.role = role_of(member.client_port).await;
            }
            if members.iter().all(|m| !m.role.is_empty()) && leader(members).is_some() {
                return Ok(());
            }
            sleep(POLL_STARTING).await;
        }
    };
    match timeout(READY_TIMEOUT, waiting).await {
        Ok(result) => result,
        Err(_) => {
            let silent = members.iter().find(|m| m.role.is_empty()).unwrap_or(&members[0]);
            Err(Failure::Run(format!(
                "no leader after {} s. Log of server {}:\n{}",
                READY_TIMEOUT.as_secs(),
                silent.id,
                last_lines(&silent.log)
            )))
        }
    }
}

/// Says what changes, until a signal comes or nobody is left.
async fn watch(members: &mut [Member], signals: &mut Signals) -> Result<(), Failure> {
    let mut led_by = leader(members);
    loop {
        tokio::select! {
            name = signals.next() => {
                say(&format!("{name}: stopping\n"));
                return Ok(());
            }
            () = sleep(POLL_RUNNING) => {}
        }
        for member in members.iter_mut() {
            if member.child.is_none() {
                continue;
            }
            if let Some(status) = ended(member)? {
                say(&format!(
                    "server {} ended ({status}). Start it again: corral serve --config {}\n",
                    member.id,
                    member.config.display()
                ));
            }
        }
        if members.iter().all(|m| m.child.is_none()) {
            return Err(Failure::Run("no server is left".to_string()));
        }
        for member in members.iter_mut() {
            // Asked even if its process is gone: somebody may have started it again by hand.
            member.role = role_of(member.client_port).await;
        }
        let now_led_by = leader(members);
        if now_led_by != led_by {
            match now_led_by {
                Some(id) => say(&format!("server {id} leads\n")),
                None => say("nobody leads\n"),
            }
            led_by = now_led_by;
        }
    }
}

fn leader(members: &[Member]) -> Option<u16> {
    members.iter().find(|m| matches!(m.role.as_str(), "leader" | "standalone")).map(|m| m.id)
}

fn ended(member: &mut Member) -> io::Result<Option<ExitStatus>> {
    let Some(child) = member.child.as_mut() else { return Ok(None) };
    let status = child.try_wait()?;
    if status.is_some() {
        member.child = None;
        member.role.clear();
    }
    Ok(status)
}

/// Asks a server for its role with the word `srvr`; empty if it does not serve.
async fn role_of(port: u16) -> String {
    let asking = async {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
        socket.write_all(b"srvr").await?;
        let mut answer = Vec::new();
        socket.take(64 * 1024).read_to_end(&mut answer).await?;
        io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = timeout(WORD_TIMEOUT, asking).await.map_or(Ok(String::new()), |a| a).unwrap_or_default();
    answer.lines().find_map(|line| line.strip_prefix("Mode: ")).unwrap_or_default().trim().to_string()
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
}

/// SIGTERM to all at once, then waits; another signal, or too long a wait, ends them at once.
async fn stop(members: &mut [Member], signals: &mut Signals) {
    for member in members.iter() {
        let pid = member.child.as_ref().and_then(Child::id).and_then(|pid| Pid::from_raw(pid as i32));
        if let Some(pid) = pid {
            // It may have ended by itself just now.
            let _ = kill_process(pid, rustix::process::Signal::TERM);
        }
    }
    let all = async {
        for member in members.iter_mut() {
            if let Some(child) = member.child.as_mut() {
                let _ = child.wait().await;
            }
        }
    };
    let in_order = tokio::select! {
        result = timeout(STOP_TIMEOUT, all) => result.is_ok(),
        _ = signals.next() => false,
    };
    if !in_order {
        for member in members.iter_mut() {
            if let Some(child) = member.child.as_mut()
                && let Ok(None) = child.try_wait()
            {
                eprintln!("corral: server {} does not stop; killing it", member.id);
                let _ = child.kill().await;
            }
        }
    }
}

/// One line for each server, fields separated by tabs, names in the first line.
fn write_ready_file(folder: &Path, members: &[Member]) -> Result<(), Failure> {
    let mut text = String::from("id\tpid\tclient\tpeer\trole\tconfig\tlog\n");
    for m in members {
        let pid = m.child.as_ref().and_then(Child::id).unwrap_or_default();
        text.push_str(&format!(
            "{}\t{pid}\t127.0.0.1:{}\t127.0.0.1:{}\t{}\t{}\t{}\n",
            m.id,
            m.client_port,
            m.peer_port,
            m.role,
            m.config.display(),
            m.log.display()
        ));
    }
    // Under another name first: whoever waits for the file finds it whole.
    let temporary = folder.join(format!("{READY_FILE}.new"));
    fs::write(&temporary, text)?;
    fs::rename(temporary, folder.join(READY_FILE))?;
    Ok(())
}

fn connect_string(members: &[Member]) -> String {
    members.iter().map(|m| format!("127.0.0.1:{}", m.client_port)).collect::<Vec<_>>().join(",")
}

fn describe(members: &[Member], folder: &Folder) -> String {
    let mut text = String::from("\nserver  pid       clients           peers             role\n");
    for m in members {
        let pid = m.child.as_ref().and_then(Child::id).map(|p| p.to_string()).unwrap_or_default();
        text.push_str(&format!(
            "{:<7} {pid:<9} 127.0.0.1:{:<7} 127.0.0.1:{:<7} {}\n",
            m.id, m.client_port, m.peer_port, m.role
        ));
    }
    let connect = connect_string(members);
    let first = folder.path.join("server-1");
    text.push_str(&format!("\nlogs and data  {} and so on\n", first.display()));
    text.push_str(&format!("look around    zkcli -s {connect}\n"));
    text.push_str("               (any ZooKeeper client works with these addresses)\n");
    let admin = members[0].client_port + ADMIN_PORT_OFFSET;
    text.push_str(&format!("over HTTP      http://127.0.0.1:{admin}/commands and so on, /metrics for Prometheus\n"));
    if let Some(pid) = members.iter().find(|m| Some(m.id) == leader(members)).and_then(|m| m.child.as_ref()?.id())
        && members.len() > 2
    {
        text.push_str(&format!("try            kill -9 {pid}   (the leader: another one takes over)\n"));
    }
    let kept = if folder.temporary { "everything is removed then; --dir keeps it" } else { "the data stays" };
    text.push_str(&format!("stop           Ctrl-C ({kept})\n\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use corral_server::config;

    /// A folder of this test's own.
    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn what_is_written_for_a_server_is_a_configuration_that_can_be_used() {
        let dir = folder();
        let members: Vec<Member> = (1..=3).map(|id| member(dir.path(), id, 2181)).collect();
        let set = [Override::from_set("tickTime=500").unwrap()];
        for index in 0..3 {
            write_files(&members, index, &set).ok().unwrap();
            let name = members[index].config.display().to_string();
            let text = fs::read_to_string(&members[index].config).unwrap();
            let parsed = config::parse(Some((&name, &text)), &[], &crate::read_file).unwrap();
            assert_eq!(parsed.config.my_id.0, index as u64 + 1);
            assert_eq!(parsed.config.client_addr.to_string(), format!("127.0.0.1:{}", 2181 + index));
            assert_eq!(parsed.config.servers.len(), 3);
            assert_eq!(parsed.config.tick_time_ms, 500);
            assert_eq!(parsed.config.admin.as_ref().unwrap().to_string(), format!("127.0.0.1:{}", 2481 + index));
            assert!(parsed.config.is_loopback_only() && parsed.config.whitelist.allows("mntr"));
            // Only that the given line replaced ours; in particular no secret is asked for.
            assert_eq!(parsed.notices.iter().map(|n| n.key.as_str()).collect::<Vec<_>>(), ["tickTime"]);
        }
    }

    #[test]
    fn a_folder_keeps_its_number_of_servers() {
        let dir = folder();
        assert_eq!(choose_nodes(None, dir.path()).ok(), Some(NODES_DEFAULT));
        assert_eq!(choose_nodes(Some(5), dir.path()).ok(), Some(5));
        for id in 1..=5 {
            fs::create_dir_all(server_folder(dir.path(), id).join("data")).unwrap();
        }
        assert_eq!(choose_nodes(None, dir.path()).ok(), Some(5));
        assert!(
            matches!(choose_nodes(Some(3), dir.path()), Err(Failure::Usage(text)) if text.contains("ensemble of 5"))
        );
    }

    #[test]
    fn a_port_in_use_is_named_or_avoided() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        if port <= u16::MAX - ELECTION_PORT_OFFSET - 3 {
            let refused = choose_ports(Some(port), 3);
            assert!(matches!(refused, Err(Failure::Usage(text)) if text.contains(&port.to_string())));
        }
        assert!(matches!(choose_ports(Some(65500), 3), Err(Failure::Usage(_))));
        assert!(matches!(choose_ports(Some(0), 3), Err(Failure::Usage(_))));
        assert!(choose_ports(None, 3).is_ok_and(|base| BASE_PORTS.contains(&base)));
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_has_no_role() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(role_of(silent.local_addr().unwrap().port()).await, "");
        let gone = { TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port() };
        assert_eq!(role_of(gone).await, "");
    }
}
