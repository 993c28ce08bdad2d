//! The program `corral` itself: flags, signals, exit codes, and `corral ensemble`.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take on a machine that is busy; nothing is judged by it but "never".
const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);

/// A process that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            // SIGTERM first: an ensemble takes its servers along.
            let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
            for _ in 0..100 {
                if !matches!(self.0.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(POLL);
            }
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("it runs");
    }

    fn ends(&mut self) -> ExitStatus {
        until("the program ends", || self.0.try_wait().expect("it is ours"))
    }
}

/// Asks again and again until there is an answer.
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    for _ in 0..PATIENCE.as_millis() / POLL.as_millis() {
        if let Some(answer) = ask() {
            return answer;
        }
        std::thread::sleep(POLL);
    }
    panic!("never: {what}");
}

fn corral(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_corral"));
    command.args(args).env_remove("CORRAL_CONFIG").env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn output(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = corral(args).output().expect("the program runs");
    (status.code(), String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr).into_owned())
}

fn start(args: &[&str], log: &Path) -> Running {
    let log = fs::File::options().create(true).append(true).open(log).expect("a log file");
    let child = corral(args).stdout(log.try_clone().expect("twice")).stderr(log).spawn().expect("the program starts");
    Running(child)
}

/// A port from which `count` and those 100 above are free just now.
fn free_ports(count: u16) -> u16 {
    until("free ports", || {
        let base = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        (base < 65_000 && (0..count).all(|i| [0, 100, 300].into_iter().all(|offset| free(base + offset + i))))
            .then_some(base)
    })
}

fn srvr(port: u16) -> Option<String> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    socket.write_all(b"srvr").ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    answer.lines().find_map(|line| line.strip_prefix("Mode: ")).map(str::to_string)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn a_wrong_configuration_is_told_as_a_whole_and_ends_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("zoo.cfg");
    fs::write(&file, format!("dataDir={}\ntickTime=fast\nclientPort=99999\n", folder.path().display())).unwrap();
    let name = file.display().to_string();
    let (code, _, stderr) = output(&["serve", "--config", &name]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains(&format!("{name}:2: tickTime: \"fast\" is not a whole number")), "{stderr}");
    assert!(stderr.contains(&format!("{name}:3: clientPort: 99999 is out of range")), "{stderr}");

    let (code, _, stderr) = output(&["serve", "--config", "/no/such/zoo.cfg"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("/no/such/zoo.cfg: cannot be read: No such file"), "{stderr}");
    let (code, _, stderr) = output(&["serve", "--set", "tickTme=3"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("--set: tickTme: unknown key; did you mean tickTime?"), "{stderr}");
    assert_eq!(output(&["serve", "--set", "tickTime"]).0, Some(2));
    assert_eq!(output(&["surve"]).0, Some(2));
}

#[test]
fn check_names_unknown_keys_and_starts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("zoo.cfg");
    let data = folder.path().join("data");
    fs::write(&file, format!("dataDir={}\nmaxClientCnxn=3\n", data.display())).unwrap();
    let (code, _, stderr) = output(&["serve", "--check", "--config", &file.display().to_string()]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        stderr.contains("zoo.cfg:2: maxClientCnxn: unknown key, ignored; did you mean maxClientCnxns?"),
        "{stderr}"
    );
    assert!(!data.exists());
}

#[test]
fn keys_and_version_are_printed() {
    let (code, stdout, _) = output(&["keys"]);
    assert_eq!(code, Some(0));
    assert_eq!(stdout, corral_server::config::keys_as_markdown());
    let (code, stdout, _) = output(&["version"]);
    assert_eq!((code, stdout.as_str()), (Some(0), concat!("corral ", env!("CARGO_PKG_VERSION"), "\n")));
}

#[test]
fn without_configuration_a_server_runs_alone_and_sigterm_ends_it_with_0() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let port = free_ports(1);
    let file = fs::File::create(&log).unwrap();
    let child = corral(&["serve", "--client-port", &port.to_string(), "--log-format", "json"])
        .current_dir(folder.path())
        .stderr(file)
        .spawn()
        .unwrap();
    let mut server = Running(child);
    assert_eq!(until("it serves", || srvr(port).filter(|mode| !mode.is_empty())), "standalone");
    assert!(folder.path().join("corral-data").is_dir());
    server.signal(Signal::TERM);
    assert_eq!(server.ends().code(), Some(0), "{}", text(&log));
    let lines = text(&log);
    assert!(lines.contains("no configuration file: this is an ensemble of one"), "{lines}");
    for line in lines.lines() {
        let parsed: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert!(parsed["level"].is_string() && parsed["message"].is_string(), "{line}");
        assert_ne!(parsed["level"], "ERROR", "{line}");
    }
}

#[test]
fn a_data_folder_serves_one_server_at_a_time_and_only_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data").display().to_string();
    let port = free_ports(1).to_string();
    let log = folder.path().join("log");
    let mut server = start(&["serve", "--data-dir", &data, "--client-port", &port], &log);
    until("it serves", || srvr(port.parse().unwrap()));
    let (code, _, stderr) = output(&["serve", "--data-dir", &data, "--client-port", "0"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("cannot start"), "{stderr}");
    server.signal(Signal::INT);
    assert_eq!(server.ends().code(), Some(0));
    let (code, _, stderr) = output(&["serve", "--data-dir", &data, "--client-port", "0", "--id", "2"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("the data folder belongs to server 1, this is server 2"), "{stderr}");
}

#[test]
fn a_server_whose_parent_is_gone_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    // Our own parent is not its parent.
    let stranger = std::os::unix::process::parent_id().to_string();
    let (code, _, _) = output(&["serve", "--parent", &stranger, "--data-dir", &data.display().to_string()]);
    assert_eq!(code, Some(0));
    assert!(!data.exists());
}

#[test]
fn an_ensemble_starts_says_who_leads_survives_a_kill_and_keeps_its_data() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("ensemble");
    let dir_name = dir.display().to_string();
    let log = folder.path().join("log");
    let base = free_ports(3);
    let port = base.to_string();
    let args = ["ensemble", "--dir", &dir_name, "--base-port", &port, "--set", "tickTime=1000"];
    let mut ensemble = start(&args, &log);
    let servers = until("it is ready", || fs::read_to_string(dir.join("servers.tsv")).ok());
    let rows: Vec<Vec<&str>> = servers.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(rows[0], ["id", "pid", "client", "peer", "role", "config", "log"]);
    assert_eq!(rows.len(), 4, "{servers}");
    let leader = rows.iter().position(|row| row[4] == "leader").expect("one leads");
    assert_eq!(rows.iter().filter(|row| row[4] == "follower").count(), 2, "{servers}");

    let pid: i32 = rows[leader][1].parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    until("another one leads", || {
        let others = (0..3).filter(|i| i + 1 != leader);
        others.filter_map(|i| srvr(base + i as u16)).find(|mode| mode == "leader")
    });
    until("that is said", || text(&log).lines().last().filter(|line| line.ends_with(" leads")).map(drop));
    assert!(
        text(&log)
            .contains(&format!("server {} ended (signal: 9 (SIGKILL)). Start it again: corral serve", rows[leader][0]))
    );

    ensemble.signal(Signal::INT);
    assert_eq!(ensemble.ends().code(), Some(0), "{}", text(&log));
    for row in &rows[1..] {
        let pid = Pid::from_raw(row[1].parse().unwrap()).unwrap();
        assert!(rustix::process::test_kill_process(pid).is_err(), "server {} still runs", row[0]);
    }
    assert!(dir.join("server-1/data/myid").exists() && !dir.join("servers.tsv").exists());

    let (code, _, stderr) = output(&["ensemble", "--dir", &dir_name, "--nodes", "5"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("holds an ensemble of 3"), "{stderr}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, _, stderr) = output(&["ensemble", "--nodes", "1", "--base-port", &port]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains(&port), "{stderr}");
}

#[test]
fn a_temporary_ensemble_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let base = free_ports(1);
    let file = fs::File::create(&log).unwrap();
    let child = corral(&["ensemble", "--nodes", "1", "--base-port", &base.to_string()])
        .env("TMPDIR", folder.path())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    let mut ensemble = Running(child);
    assert_eq!(until("it serves", || srvr(base)), "standalone");
    until("it is described", || text(&log).contains("Ctrl-C").then_some(()));
    ensemble.signal(Signal::TERM);
    assert_eq!(ensemble.ends().code(), Some(0), "{}", text(&log));
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["log"]);
}
