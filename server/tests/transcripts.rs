//! ZooKeeper's own shells, zkCli.sh (Java) and cli_mt (C), walk through all of their commands on Corral and on real
//! ZooKeeper; what they print must be the same.
//!
//! Zxids, times, session ids and ports are mapped first: an id becomes the number of its first appearance, so that the
//! same id must appear at the same places. The order of listings that no protocol fixes is not compared. What differs
//! on purpose is in [`DIFFERENCES`]; an entry there that is not needed fails, too.
//!
//! Needs Java, ZooKeeper's jar and cli_mt: Debian's packages `default-jre-headless`, `libzookeeper-java` and
//! `zookeeper-bin`. Other places: `ZOOKEEPER_CLASSPATH`, `ZOOKEEPER_CLI_MT`. `.ci/run` installs them and sets
//! `ZOOKEEPER_REQUIRED`; without them and without it the tests say that they did nothing.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// How long anything may take on a machine that is busy. Nothing is judged by it but "never".
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

const ZKCLI_WALK: &str = include_str!("transcripts/zkcli.txt");
const CLI_MT_WALK: &str = include_str!("transcripts/cli_mt.txt");
/// What the tests say to zkCli.sh between two commands, and the first and last line of its complaint. Of its own commands,
/// none prints the same whether it is connected or not.
const ZKCLI_MARK: &str = "mark";
const ZKCLI_MARK_FIRST: &str = "ZooKeeper -server host:port";
const ZKCLI_MARK_LAST: &str = "Command not found: Command not found mark";

/// Debian's package.
const CLI_MT: &str = "/usr/lib/zookeeper/bin/cli_mt";
const ZOOKEEPER_JAR: &str = "/usr/share/java/zookeeper.jar";
const CLASSPATH: &str = "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-nop.jar";

/// A command whose output differs from that of ZooKeeper 3.8 on purpose: what it prints here, and why.
struct Difference {
    command: &'static str,
    ours: &'static [&'static str],
    why: &'static str,
}

const DIFFERENCES: &[Difference] = &[Difference {
    command: "stat /t/bob",
    ours: &["Insufficient permission : /t/bob"],
    why: "exists asks for READ since 3.8.4 and 3.9.2; Debian's 3.8.0 does not",
}];

// ------------------------------------------------------------------------------------------------------------- servers

fn classpath() -> String {
    std::env::var("ZOOKEEPER_CLASSPATH").unwrap_or_else(|_| CLASSPATH.to_owned())
}

fn cli_mt() -> PathBuf {
    std::env::var_os("ZOOKEEPER_CLI_MT").map_or_else(|| PathBuf::from(CLI_MT), PathBuf::from)
}

/// Whether Java, ZooKeeper and, if asked for, cli_mt are here.
fn available(with_cli_mt: bool) -> bool {
    let java = Command::new("java").arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let mut missing = Vec::new();
    if !java.is_ok_and(|status| status.success()) {
        missing.push("java (default-jre-headless)");
    }
    if std::env::var_os("ZOOKEEPER_CLASSPATH").is_none() && !Path::new(ZOOKEEPER_JAR).exists() {
        missing.push("zookeeper.jar (libzookeeper-java)");
    }
    if with_cli_mt && !cli_mt().exists() {
        missing.push("cli_mt (zookeeper-bin)");
    }
    assert!(missing.is_empty() || std::env::var_os("ZOOKEEPER_REQUIRED").is_none(), "missing: {missing:?}");
    if !missing.is_empty() {
        eprintln!("SKIPPED: no comparison with ZooKeeper's own shells: missing {missing:?}");
    }
    missing.is_empty()
}

/// A server alone, with TTL znodes.
struct Server {
    process: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn start(program: impl FnOnce(&Path) -> Command, more: &str) -> Server {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let config = folder.path().join("zoo.cfg");
        let text = format!(
            "dataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\n4lw.commands.whitelist=*\n\
             extendedTypesEnabled=true\n{more}",
            folder.path().join("data").display()
        );
        fs::create_dir(folder.path().join("data")).expect("a data folder");
        fs::write(&config, text).expect("a configuration");
        let log = File::create(folder.path().join("server.log")).expect("a log file");
        let process = program(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("the server starts");
        let server = Server { process, port, folder };
        for _ in 0..PATIENCE.as_millis() / POLL.as_millis() {
            if server.serves() {
                return server;
            }
            std::thread::sleep(POLL);
        }
        panic!("it does not serve\n{}", server.log());
    }

    fn corral() -> Server {
        let program = |config: &Path| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_corral"));
            command.args(["serve", "--config"]).arg(config).env_remove("CORRAL_CONFIG");
            command
        };
        Server::start(program, "")
    }

    fn zookeeper() -> Server {
        let program = |config: &Path| {
            let mut command = Command::new("java");
            command.args(["-cp", &classpath(), "-Xmx256m", "org.apache.zookeeper.server.quorum.QuorumPeerMain"]);
            command.arg(config);
            command
        };
        Server::start(program, "admin.enableServer=false\n")
    }

    fn serves(&self) -> bool {
        let Ok(mut socket) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let mut text = String::new();
        socket.set_read_timeout(Some(Duration::from_secs(5))).is_ok()
            && socket.write_all(b"srvr").is_ok()
            && socket.read_to_string(&mut text).is_ok()
            && text.contains("Mode: standalone")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }
}

// --------------------------------------------------------------------------------------------------------- transcripts

/// What a command printed, and in which session of the walk it stood.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    command: String,
    lines: Vec<String>,
}

/// What one session printed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Transcript {
    said: Vec<Said>,
    /// zkCli.sh prints watch events from a thread of its own: their order counts, their place does not.
    events: Vec<String>,
}

/// The commands of a walk, by session.
fn sessions(walk: &str, port: u16) -> Vec<Vec<String>> {
    let mut sessions = vec![Vec::new()];
    for line in walk.lines() {
        if line.starts_with("===") {
            sessions.push(Vec::new());
        } else if !line.is_empty() && !line.starts_with('#') {
            sessions.last_mut().expect("never empty").push(line.replace("PORT", &port.to_string()));
        }
    }
    sessions
}

/// Replaces what two servers cannot have in common. One for each server's walk.
struct Mapping {
    port: String,
    names: HashMap<String, String>,
}

impl Mapping {
    fn new(port: u16) -> Mapping {
        Mapping { port: port.to_string(), names: HashMap::new() }
    }

    /// The name of an id: the number of its first appearance. 0 stays what it is.
    fn name(&mut self, kind: &str, id: &str) -> String {
        let digits = id.trim_start_matches("0x").trim_start_matches('0');
        if digits.is_empty() {
            return "0".to_owned();
        }
        let next = self.names.keys().filter(|key| key.starts_with(kind)).count() + 1;
        self.names.entry(format!("{kind}{digits}")).or_insert_with(|| format!("{kind}-{next}")).clone()
    }

    fn line(&mut self, line: &str) -> String {
        let line = line.replace(&self.port, "PORT");
        // The C client's log begins with a time and a thread.
        if let Some((_, text)) = line.split_once("ZOO_ERROR@") {
            return text.to_owned();
        }
        for (mark, kind) in [
            ("xid = ", "zxid"),
            ("xid=", "zxid"),
            ("ephemeralOwner = ", "session"),
            ("session id: ", "session"),
            ("session Id = ", "session"),
        ] {
            if let Some((before, id)) = line.split_once(mark) {
                return format!("{before}{mark}{}", self.name(kind, id.trim()));
            }
        }
        for mark in ["time = ", "time="] {
            // The built-in znodes are as old as the epoch.
            if let Some((before, time)) = line.split_once(mark)
                && !time.contains(" 1970")
            {
                return format!("{before}{mark}TIME");
            }
        }
        if let Some(items) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            let mut items: Vec<&str> = items.split(", ").collect();
            items.sort_unstable();
            return format!("[{}]", items.join(", "));
        }
        line
    }

    fn lines(&mut self, command: &str, lines: &[String]) -> Vec<String> {
        let mut lines: Vec<String> =
            lines.iter().filter(|line| !line.trim().is_empty()).map(|line| self.line(line)).collect();
        // Sets of identities and of children have no order.
        let verb = command.split(' ').next().unwrap_or_default();
        if ["whoami", "ls", "als", "ls2", "als2"].contains(&verb) {
            lines.sort_unstable();
        }
        lines
    }
}

/// A shell's process; its output arrives by lines.
struct Shell {
    process: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Shell {
    /// Both of its streams go to one pipe, so that their order stays.
    fn start(mut command: Command) -> Shell {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(writer.try_clone().expect("a second handle"))
            .stderr(writer)
            .spawn()
            .expect("the shell starts");
        // It keeps the pipe's end open.
        drop(command);
        let stdin = process.stdin.take().expect("piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n') {
                let Ok(line) = line else { return };
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        Shell { process, stdin, lines }
    }

    /// A shell that ended already takes nothing: what it printed tells why.
    fn send(&mut self, text: &str) {
        let _ = self.stdin.write_all(text.as_bytes()).and_then(|()| self.stdin.flush());
    }

    /// Lines up to the first that satisfies `last`, or to the end of the output.
    fn until(&mut self, last: impl Fn(&str) -> bool) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    let is_last = last(&line);
                    lines.push(line);
                    if is_last {
                        return lines;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return lines,
                Err(RecvTimeoutError::Timeout) => panic!("the shell hangs after:\n{}", lines.join("\n")),
            }
        }
    }
}

fn zkcli(commands: &[String], mapping: &mut Mapping) -> Transcript {
    let mut command = Command::new("java");
    let server = format!("127.0.0.1:{}", mapping.port);
    command.args(["-cp", &classpath(), "-Xmx128m", "org.apache.zookeeper.ZooKeeperMain", "-server", &server]);
    let mut shell = Shell::start(command);
    let mut transcript = Transcript::default();
    shell.send(&format!("{ZKCLI_MARK}\n"));
    shell.until(|line| line == ZKCLI_MARK_LAST);
    for command in commands {
        shell.send(&format!("{command}\n{ZKCLI_MARK}\n"));
        let mut lines = shell.until(|line| line == ZKCLI_MARK_LAST);
        if lines.last().is_some_and(|line| line == ZKCLI_MARK_LAST) {
            let mark = lines.iter().rposition(|line| line.starts_with(ZKCLI_MARK_FIRST)).unwrap_or(lines.len() - 1);
            // An event may be printed in between.
            let within = lines.split_off(mark);
            lines.extend(within.into_iter().filter(|line| line.starts_with("WatchedEvent ")));
        }
        take_events(&mut lines, mapping, &mut transcript.events);
        let lines = mapping.lines(command, &lines);
        transcript.said.push(Said { command: command.replace(&mapping.port, "PORT"), lines });
    }
    shell.send("quit\n");
    let mut rest = shell.until(|_| false);
    take_events(&mut rest, mapping, &mut transcript.events);
    transcript
}

/// Moves what the thread of watch events printed out of the lines.
fn take_events(lines: &mut Vec<String>, mapping: &mut Mapping, events: &mut Vec<String>) {
    lines.retain(|line| {
        // Whether it still tells of its own end is a race between its threads.
        if line.starts_with("WatchedEvent ") && !line.contains("state:Closed") {
            events.push(mapping.line(line));
        }
        !line.starts_with("WatchedEvent ") && line != "WATCHER::"
    });
}

fn cli_mt_session(commands: &[String], mapping: &mut Mapping) -> Transcript {
    let mut command = Command::new(cli_mt());
    command.args(["-h", &format!("127.0.0.1:{}", mapping.port)]);
    let mut shell = Shell::start(command);
    let mut transcript = Transcript::default();
    shell.until(|line| line.starts_with("Got a new session id"));
    for (number, command) in commands.iter().enumerate() {
        if command == "quit" {
            break;
        }
        // Answered by the thread that prints what the server says, so after everything before it.
        let mark = format!("/mark-{number}: rc = -101");
        shell.send(&format!("{command}\nget /mark-{number}\n"));
        let mut lines = shell.until(|line| line == mark);
        if lines.last() == Some(&mark) {
            lines.pop();
            shell.until(|line| line == "null");
        }
        // How long the shell itself thinks it took.
        lines.retain(|line| {
            let is_time = line.starts_with("time = ") && line.ends_with(" msec");
            !is_time && !line.contains("ZOO_DEBUG@")
        });
        let lines = mapping.lines(command, &lines);
        transcript.said.push(Said { command: command.clone(), lines });
    }
    shell.send("quit\n");
    shell.until(|_| false);
    transcript
}

/// Walks on both servers, compares, and returns how many commands were compared.
fn compare(walk: &str, shell: fn(&[String], &mut Mapping) -> Transcript) -> usize {
    let (theirs, ours) = (Server::zookeeper(), Server::corral());
    let mut mappings = (Mapping::new(theirs.port), Mapping::new(ours.port));
    let mut differences = Vec::new();
    let mut compared = 0;
    let (their_sessions, our_sessions) = (sessions(walk, theirs.port), sessions(walk, ours.port));
    for (number, (theirs, ours)) in their_sessions.iter().zip(&our_sessions).enumerate() {
        let (theirs, ours) = (shell(theirs, &mut mappings.0), shell(ours, &mut mappings.1));
        assert_eq!(theirs.said.len(), ours.said.len());
        for (theirs, ours) in theirs.said.iter().zip(&ours.said) {
            compared += 1;
            let known = DIFFERENCES.iter().find(|difference| difference.command == ours.command);
            let as_known = known.is_some_and(|known| ours.lines == known.ours);
            let wanted = if let Some(known) = known {
                assert_ne!(theirs.lines, known.ours, "{}: no difference any more: {}", known.command, known.why);
                as_known
            } else {
                ours.lines == theirs.lines
            };
            if !wanted {
                let (theirs, ours_lines) = (theirs.lines.join("\n    "), ours.lines.join("\n    "));
                differences.push(format!(
                    "session {number}: {}\n  ZooKeeper:\n    {theirs}\n  Corral:\n    {ours_lines}",
                    ours.command
                ));
            }
        }
        if theirs.events != ours.events {
            let (theirs, ours) = (theirs.events.join("\n    "), ours.events.join("\n    "));
            differences.push(format!("session {number}: events\n  ZooKeeper:\n    {theirs}\n  Corral:\n    {ours}"));
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}\n{}", differences.len(), differences.join("\n"), ours.log());
    compared
}

#[test]
fn zkcli_sh_prints_the_same_as_on_zookeeper() {
    if available(false) {
        let compared = compare(ZKCLI_WALK, zkcli);
        println!("zkCli.sh: {compared} commands, {} known differences", DIFFERENCES.len());
        assert!(compared > 150, "{compared}");
    }
}

#[test]
fn the_c_clients_shell_prints_the_same_as_on_zookeeper() {
    if available(true) {
        let compared = compare(CLI_MT_WALK, cli_mt_session);
        println!("cli_mt: {compared} commands");
        assert!(compared > 40, "{compared}");
    }
}
