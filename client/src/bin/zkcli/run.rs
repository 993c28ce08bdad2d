//! Carries commands out: the client on one side, text on the other.

use std::io::{IsTerminal, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use corral_client::{
    Client, CreateOptions, EndReason, Error, ErrorCode, SessionState, TlsOptions, Transaction, WatchEvent, WatchMode,
    WatchedEvent,
};
use tokio::task::AbortHandle;

use crate::command::{Command, Input, VERBS, WatchSort, decode_base64, usage};
use crate::options::{Format, Options, addresses};
use crate::print::{self, Failure, Output};
use crate::status;
use crate::walk::{Step, Walk};

/// Bytes of paths in one transaction of `deleteall`, at most: a frame holds a megabyte.
const DELETE_BATCH_BYTES: usize = 256 * 1024;
/// How often a node is listed and emptied again when others create children while we delete.
const DELETE_ROUNDS: u32 = 8;
/// Largest data read from standard input, in bytes; servers refuse much less.
const STDIN_MAX: u64 = 64 * 1024 * 1024;
/// Work that takes longer than this shows its progress.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);
/// And from then on, so often.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// How long leaving may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// Watches that one shell keeps at a time; more are refused.
const WATCHES_MAX: usize = 10_000;

/// Where events of watches go: the terminal's line editor knows how to print above a prompt.
pub type EventPrinter = Arc<dyn Fn(String) + Send + Sync>;

/// A watch in the background.
struct Armed {
    path: String,
    sort: WatchSort,
    task: AbortHandle,
}

/// What a sequence of commands shares.
pub struct Runner {
    options: Options,
    client: Option<Client>,
    watches: Vec<Armed>,
    print_watches: Arc<AtomicBool>,
    event_printer: EventPrinter,
    /// Standard output is a pipe or file and gets data as it is.
    raw: bool,
    /// `-` stands for standard input.
    stdin_is_data: bool,
}

impl Runner {
    /// Without a connection yet. `one_shot`: one command, which owns standard input and output.
    pub fn new(options: Options, one_shot: bool) -> Runner {
        Runner {
            raw: one_shot && !std::io::stdout().is_terminal(),
            stdin_is_data: one_shot,
            options,
            client: None,
            watches: Vec::new(),
            print_watches: Arc::new(AtomicBool::new(true)),
            event_printer: Arc::new(|text| print!("{text}")),
        }
    }

    /// Events go there from now on.
    pub fn print_events_with(&mut self, printer: EventPrinter) {
        self.event_printer = printer;
    }

    /// The connect string in use.
    pub fn server(&self) -> &str {
        &self.options.server
    }

    /// ZooKeeper's word for the state of the session.
    pub fn state(&self) -> &'static str {
        match self.client.as_ref().map(Client::state) {
            None | Some(SessionState::Closed | SessionState::Lost(_)) => "CLOSED",
            Some(SessionState::Connected) => "CONNECTED",
            Some(SessionState::Connecting | SessionState::Suspended) => "CONNECTING",
        }
    }

    /// A handle for completion.
    pub fn client(&self) -> Option<Client> {
        self.client.clone()
    }

    /// Opens a session.
    ///
    /// # Errors
    /// A bad connect string or identity; no server in time.
    pub async fn connect(&mut self) -> Result<(), Failure> {
        let limit = if self.options.wait {
            Duration::from_secs(u32::MAX.into())
        } else {
            Duration::from_millis(self.options.timeout)
        };
        let mut builder = Client::builder(self.options.server.clone())
            .session_timeout(Duration::from_millis(self.options.session_timeout))
            .connect_timeout(limit);
        for identity in &self.options.auth {
            let (scheme, auth) = identity
                .split_once(':')
                .ok_or_else(|| Failure::Usage(format!("--auth {identity}: it needs the form scheme:auth")))?;
            builder = builder.auth(scheme, auth.as_bytes().to_vec());
        }
        if let Some(tls) = self.tls()? {
            builder = builder.tls(tls);
        }
        self.client = Some(builder.connect().await.map_err(failure)?);
        Ok(())
    }

    /// TLS, if the options ask for it.
    fn tls(&self) -> Result<Option<TlsOptions>, Failure> {
        let options = &self.options;
        let read = |path: &str| std::fs::read(path).map_err(|error| Failure::Usage(format!("{path}: {error}")));
        let Some(ca) = &options.tls_ca else { return Ok(None) };
        let mut tls = TlsOptions::new(read(ca)?);
        if let Some(certificate) = &options.tls_cert {
            // As in a key store: one file may hold both.
            let key = options.tls_key.as_ref().unwrap_or(certificate);
            tls = tls.identity(read(certificate)?, read(key)?);
        }
        if let Some(name) = &options.tls_server_name {
            tls = tls.server_name(name.clone());
        }
        Ok(Some(tls))
    }

    /// Closes the session, if there is one; does not wait for long.
    pub async fn close(&mut self) {
        for watch in self.watches.drain(..) {
            watch.task.abort();
        }
        if let Some(client) = self.client.take() {
            // Whether it was in time or not, we are leaving; the ensemble expires what it did not hear of.
            let _ = tokio::time::timeout(CLOSE_LIMIT, client.close()).await;
        }
    }

    /// Whether a command needs a session.
    pub fn needs_session(command: &Command) -> bool {
        !matches!(
            command,
            Command::Status
                | Command::Version
                | Command::Help { .. }
                | Command::History
                | Command::Redo { .. }
                | Command::PrintWatches { .. }
                | Command::Connect { .. }
                | Command::Close
                | Command::Quit
        )
    }

    /// Prints one answer.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn show(&self, output: &Output) -> Result<(), Failure> {
        let rendered = match self.options.output {
            Format::Plain => print::plain(output, self.raw),
            Format::Json => print::Rendered { out: print::json(output).into_bytes(), err: String::new() },
        };
        let mut out = std::io::stdout().lock();
        out.write_all(&rendered.out).and_then(|()| out.flush()).map_err(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::Other(format!("standard output: {error}")),
        })?;
        if !rendered.err.is_empty() {
            eprint!("{}", rendered.err);
        }
        Ok(())
    }

    /// Prints why a command failed.
    pub fn show_failure(&self, failure: &Failure) {
        match (failure, self.options.output) {
            (Failure::OutputClosed, _) => {}
            (_, Format::Json) => eprint!("{}", failure.json()),
            (_, Format::Plain) => eprintln!("{}", failure.text()),
        }
    }

    /// Does one command and prints what it has to say.
    ///
    /// # Errors
    /// Why it failed; nothing is printed about it yet.
    pub async fn run(&mut self, command: Command) -> Result<(), Failure> {
        match command {
            Command::Ls { path, recursive: true, .. } => self.list_tree(&path).await,
            Command::Ls { path, stat, watch, .. } => {
                let client = self.session()?;
                let (children, found) = if watch {
                    let (children, found, event) = self.ask(client.children_and_watch(&path)).await?;
                    self.keep_oneshot(&path, WatchSort::Children, event)?;
                    (children, found)
                } else {
                    self.ask(client.get_children_with_stat(&path)).await?
                };
                self.show(&Output::Children { path, children, stat: stat.then_some(found) })
            }
            Command::Get { path, stat, watch, form } => self.get(path, stat, watch, form).await,
            Command::Config { stat, watch } => {
                self.get("/zookeeper/config".to_owned(), stat, watch, crate::command::Form::Text).await
            }
            Command::Set { path, data, stat, version } => {
                let data = self.input(data)?;
                let client = self.session()?;
                let after = self.ask(client.set(&path, data, expected(version))).await?;
                self.show(&Output::Stat { path, stat: after, show: stat })
            }
            Command::Create { path, data, acl, mode, ttl_ms } => {
                let data = data.map(|input| self.input(input)).transpose()?;
                let mut options = CreateOptions::new(mode);
                if let Some(acl) = acl {
                    options = options.acl(acl);
                }
                if mode.is_ttl() {
                    options = options.ttl(Duration::from_millis(ttl_ms.unsigned_abs()));
                }
                let client = self.session()?;
                let created = self.ask(client.create(&path, data.map(bytes::Bytes::from), options)).await?;
                self.show(&Output::Created { path: created.path, stat: Some(created.stat) })
            }
            Command::Delete { path, version } => {
                let client = self.session()?;
                self.ask(client.delete(&path, expected(version))).await?;
                self.done(path)
            }
            Command::DeleteAll { path, batch } => self.delete_all(path, batch).await,
            Command::Stat { path, watch } => {
                let client = self.session()?;
                let found = if watch {
                    let (found, event) = self.ask(client.exists_and_watch(&path)).await?;
                    self.keep_oneshot(&path, WatchSort::Data, event)?;
                    found
                } else {
                    self.ask(client.exists(&path)).await?
                };
                match found {
                    Some(stat) => self.show(&Output::Stat { path, stat, show: true }),
                    None => Err(Failure::Refused { code: ErrorCode::NoNode, path }),
                }
            }
            Command::GetAcl { path, stat } => {
                let client = self.session()?;
                let (acl, found) = self.ask(client.get_acl(&path)).await?;
                self.show(&Output::Acl { path, acl, stat: found, show_stat: stat })
            }
            Command::SetAcl { path, acl, stat, version, recursive } => {
                let client = self.session()?;
                if !recursive {
                    let after = self.ask(client.set_acl(&path, acl, expected(version))).await?;
                    return self.show(&Output::Stat { path, stat: after, show: stat });
                }
                let mut walk = Walk::new(&path);
                while let Some(step) = self.walk(&client, &mut walk).await? {
                    let Step::Enter { path, .. } = step else { continue };
                    match self.ask(client.set_acl(&path, acl.clone(), expected(version))).await {
                        // Deleted since it was listed.
                        Err(Failure::Refused { code: ErrorCode::NoNode, .. }) => {}
                        Ok(after) if stat => self.show(&Output::Stat { path, stat: after, show: true })?,
                        other => drop(other?),
                    }
                }
                Ok(())
            }
            Command::Sync { path } => {
                let client = self.session()?;
                self.ask(client.sync(&path)).await?;
                self.show(&Output::Text("Sync is OK".to_owned()))
            }
            Command::AddAuth { scheme, auth } => {
                let client = self.session()?;
                self.ask(client.add_auth(&scheme, auth)).await?;
                self.done(String::new())
            }
            Command::GetEphemerals { prefix } => {
                let client = self.session()?;
                let paths = self.ask(client.get_ephemerals(&prefix)).await?;
                self.show(&Output::Paths(paths))
            }
            Command::CountDescendants { path } => {
                let client = self.session()?;
                let count = self.ask(client.count_descendants(&path)).await?;
                self.show(&Output::Count { path, count })
            }
            Command::WhoAmI => {
                let client = self.session()?;
                let ids = self.ask(client.whoami()).await?;
                self.show(&Output::Ids(ids))
            }
            Command::Watch { path, recursive, count } => self.watch(&path, recursive, count).await,
            Command::AddWatch { path, recursive } => self.add_watch(&path, recursive).await,
            Command::RemoveWatches { path, sort } => {
                self.watches.retain(|watch| !watch.task.is_finished());
                let fits = |watch: &Armed| watch.path == path && (sort == WatchSort::Any || watch.sort == sort);
                let (removed, kept) = std::mem::take(&mut self.watches).into_iter().partition::<Vec<_>, _>(fits);
                self.watches = kept;
                if removed.is_empty() {
                    return Err(Failure::Refused { code: ErrorCode::NoWatcher, path });
                }
                // The task drops its watch, which removes it on the server.
                removed.iter().for_each(|watch| watch.task.abort());
                self.done(path)
            }
            Command::Status => {
                let limit = Duration::from_millis(self.options.timeout);
                let tls = self.tls()?.map(|tls| tls.connector()).transpose().map_err(failure)?;
                let servers = status::ask_all(&addresses(&self.options.server), tls.as_ref(), limit).await;
                let serving = servers.iter().filter(|server| server.mode.is_some()).count();
                let all = servers.len();
                self.show(&Output::Status(servers))?;
                match serving {
                    0 => Err(Failure::Connection("no server serves".to_owned())),
                    some if some < all => Err(Failure::Other(format!("{} of {all} servers do not serve", all - some))),
                    _ => Ok(()),
                }
            }
            Command::Version => self.show(&Output::Text(format!("Corral CLI version: {}", env!("CARGO_PKG_VERSION")))),
            Command::Help { verb: None } => {
                let mut text = "zkcli [-s host:port[,...][/chroot]] [-o plain|json] [command ...]".to_owned();
                for verb in VERBS {
                    let line = format!("\t{} {}", verb.name, verb.usage);
                    text += &format!("\n{}\n\t\t{}", line.trim_end(), verb.about);
                }
                self.show(&Output::Text(text))
            }
            Command::Help { verb: Some(name) } => {
                let verb = VERBS.iter().find(|verb| verb.name == name);
                let verb = verb
                    .ok_or_else(|| Failure::UnknownCommand(format!("Command not found: Command not found {name}")))?;
                self.show(&Output::Text(format!("{}\n\t{}", usage(verb.name).unwrap_or_default(), verb.about)))
            }
            Command::PrintWatches { on: None } => {
                let on = if self.print_watches.load(Ordering::Relaxed) { "on" } else { "off" };
                self.show(&Output::Text(format!("printwatches is {on}")))
            }
            Command::PrintWatches { on: Some(on) } => {
                self.print_watches.store(on, Ordering::Relaxed);
                Ok(())
            }
            Command::Connect { hosts } => {
                self.close().await;
                self.options.server = hosts;
                self.connect().await
            }
            Command::Close => {
                self.close().await;
                Ok(())
            }
            Command::History | Command::Redo { .. } => {
                Err(Failure::Usage("there is a history in the interactive shell only".to_owned()))
            }
            Command::Quit => Ok(()),
        }
    }

    fn session(&self) -> Result<Client, Failure> {
        let problem = "Not connected: the session was closed; connect host:port opens another";
        self.client.clone().ok_or_else(|| Failure::Connection(problem.to_owned()))
    }

    fn done(&self, path: String) -> Result<(), Failure> {
        self.show(&Output::Done { path })
    }

    /// Waits for one answer, as long as `--timeout` allows.
    async fn ask<T>(&self, response: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
        let limit = Duration::from_millis(self.options.timeout);
        match tokio::time::timeout(limit, response).await {
            Ok(result) => result.map_err(failure),
            Err(_) => Err(Failure::Timeout(format!(
                "no answer within {} ms; a write may still be carried out",
                limit.as_millis()
            ))),
        }
    }

    async fn get(&mut self, path: String, stat: bool, watch: bool, form: crate::command::Form) -> Result<(), Failure> {
        let client = self.session()?;
        let node = if watch {
            let (node, event) = self.ask(client.get_and_watch(&path)).await?;
            self.keep_oneshot(&path, WatchSort::Data, event)?;
            node
        } else {
            self.ask(client.get(&path)).await?
        };
        let data = node.data.map(|bytes| bytes.to_vec());
        self.show(&Output::Data { path, data, stat: node.stat, show_stat: stat, form })
    }

    fn input(&self, input: Input) -> Result<Vec<u8>, Failure> {
        let base64 = match input {
            Input::Bytes(bytes) => return Ok(bytes),
            Input::Stdin { .. } if !self.stdin_is_data => {
                return Err(Failure::Usage(
                    "- reads standard input, which holds the commands here; quote the data".to_owned(),
                ));
            }
            Input::Stdin { base64 } => base64,
        };
        let mut data = Vec::new();
        std::io::stdin()
            .lock()
            .take(STDIN_MAX + 1)
            .read_to_end(&mut data)
            .map_err(|error| Failure::Other(format!("standard input: {error}")))?;
        if data.len() as u64 > STDIN_MAX {
            return Err(Failure::Usage(format!("standard input holds more than {STDIN_MAX} bytes")));
        }
        if base64 { decode_base64(&data).map_err(Failure::Usage) } else { Ok(data) }
    }

    /// The next step of a walk, with as many listings under way as the walk asks for.
    async fn walk(&self, client: &Client, walk: &mut Walk) -> Result<Option<Step>, Failure> {
        let wanted = walk.wanted();
        if !wanted.is_empty() {
            let asked: Vec<_> = wanted.iter().map(|path| client.get_children(path)).collect();
            let mut listings = Vec::with_capacity(asked.len());
            for response in asked {
                listings.push(match self.ask(response).await {
                    // Only the first node of a walk must exist; others may have gone since their parent was listed.
                    Err(Failure::Refused { code: ErrorCode::NoNode, .. }) if walk.has_begun() => Vec::new(),
                    other => other?,
                });
            }
            walk.give(listings);
        }
        Ok(walk.next())
    }

    async fn list_tree(&self, path: &str) -> Result<(), Failure> {
        let client = self.session()?;
        let mut walk = Walk::new(path);
        let mut root = Some(path.to_owned());
        while let Some(step) = self.walk(&client, &mut walk).await? {
            // ZooKeeper's order: a node's children together, then what is below each of them.
            if let Step::Enter { children, .. } = step {
                let paths: Vec<String> = root.take().into_iter().chain(children).collect();
                if !paths.is_empty() {
                    self.show(&Output::Tree { paths })?;
                }
            }
        }
        Ok(())
    }

    async fn delete_all(&self, path: String, batch: usize) -> Result<(), Failure> {
        let client = self.session()?;
        let mut progress = Progress::new();
        let mut deleted = 0;
        // Others may create nodes where we have been: then the parents are not empty, and we come again.
        for round in 1.. {
            let mut left_over = false;
            let mut walk = Walk::new(&path);
            let mut group: Vec<String> = Vec::new();
            let mut bytes = 0;
            loop {
                let step = match self.walk(&client, &mut walk).await {
                    // Somebody else finished it.
                    Err(Failure::Refused { code: ErrorCode::NoNode, .. }) if round > 1 => None,
                    other => other?,
                };
                let at_end = step.is_none();
                if let Some(Step::Leave { path }) = step {
                    bytes += path.len();
                    group.push(path);
                }
                if !group.is_empty() && (at_end || group.len() >= batch || bytes >= DELETE_BATCH_BYTES) {
                    let (gone, stayed) = self.delete_group(&client, &group).await?;
                    deleted += gone;
                    left_over |= stayed;
                    group.clear();
                    bytes = 0;
                    progress.tell("deleted", deleted);
                }
                if at_end {
                    break;
                }
            }
            if !left_over {
                break;
            }
            if round == DELETE_ROUNDS {
                progress.end();
                eprintln!("Failed to delete some node(s) in the subtree!");
                return Err(Failure::Refused { code: ErrorCode::NotEmpty, path });
            }
        }
        progress.end();
        self.show(&Output::Deleted { path, count: deleted })
    }

    /// Deletes nodes in one transaction, or one by one if that is refused. How many it deleted, and whether one of them
    /// has children again.
    async fn delete_group(&self, client: &Client, group: &[String]) -> Result<(u64, bool), Failure> {
        let all = group.iter().fold(Transaction::new(), |all, path| all.delete(path, None));
        match self.ask(client.multi(all)).await {
            Ok(_) => return Ok((group.len() as u64, false)),
            Err(Failure::Refused { code: ErrorCode::NoNode | ErrorCode::NotEmpty, .. }) => {}
            Err(other) => return Err(other),
        }
        let (mut deleted, mut left_over) = (0, false);
        // In order, and all under way at once: parents come after their children.
        let asked: Vec<_> = group.iter().map(|path| client.delete(path, None)).collect();
        for response in asked {
            match self.ask(response).await {
                Ok(()) => deleted += 1,
                Err(Failure::Refused { code: ErrorCode::NoNode, .. }) => {}
                Err(Failure::Refused { code: ErrorCode::NotEmpty, .. }) => left_over = true,
                Err(other) => return Err(other),
            }
        }
        Ok((deleted, left_over))
    }

    /// Prints events until `count` have come, or the session ends.
    async fn watch(&self, path: &str, recursive: bool, count: Option<u64>) -> Result<(), Failure> {
        let client = self.session()?;
        let mut watcher = self.ask(client.watch(path, mode(recursive))).await?;
        let mut seen = 0;
        while count.is_none_or(|count| seen < count) {
            match watcher.next().await {
                Some(WatchEvent::Node(event)) => {
                    self.show(&Output::Event(event))?;
                    seen += 1;
                }
                Some(WatchEvent::Gap(gap)) => {
                    eprintln!("{gap}");
                }
                None => {
                    let reason =
                        watcher.end_reason().map_or("the session ended".to_owned(), |reason| reason.to_string());
                    return Err(Failure::Connection(reason));
                }
            }
        }
        Ok(())
    }

    async fn add_watch(&mut self, path: &str, recursive: bool) -> Result<(), Failure> {
        self.room_for_a_watch()?;
        let client = self.session()?;
        let mut watcher = self.ask(client.watch(path, mode(recursive))).await?;
        let print = self.event_sink();
        let task = tokio::spawn(async move {
            while let Some(event) = watcher.next().await {
                match event {
                    WatchEvent::Node(event) => print(&event),
                    WatchEvent::Gap(gap) => eprintln!("{gap}"),
                }
            }
        });
        let sort = if recursive { WatchSort::Recursive } else { WatchSort::Persistent };
        self.watches.push(Armed { path: path.to_owned(), sort, task: task.abort_handle() });
        self.done(path.to_owned())
    }

    fn keep_oneshot(&mut self, path: &str, sort: WatchSort, watch: corral_client::OneshotWatch) -> Result<(), Failure> {
        self.room_for_a_watch()?;
        let print = self.event_sink();
        let task = tokio::spawn(async move {
            if let Ok(event) = watch.await {
                print(&event);
            }
        });
        self.watches.push(Armed { path: path.to_owned(), sort, task: task.abort_handle() });
        Ok(())
    }

    fn room_for_a_watch(&mut self) -> Result<(), Failure> {
        self.watches.retain(|watch| !watch.task.is_finished());
        if self.watches.len() >= WATCHES_MAX {
            return Err(Failure::Other(format!("this shell has {WATCHES_MAX} watches already")));
        }
        Ok(())
    }

    fn event_sink(&self) -> impl Fn(&WatchedEvent) + Send + 'static {
        let (print_watches, printer) = (self.print_watches.clone(), self.event_printer.clone());
        let format = self.options.output;
        move |event| {
            if print_watches.load(Ordering::Relaxed) {
                printer(match format {
                    Format::Plain => print::watcher_block(event),
                    Format::Json => print::json(&Output::Event(event.clone())),
                });
            }
        }
    }
}

fn mode(recursive: bool) -> WatchMode {
    if recursive { WatchMode::Recursive } else { WatchMode::Node }
}

/// `-v`, with ZooKeeper's -1 for any.
fn expected(version: i32) -> Option<i32> {
    (version != -1).then_some(version)
}

/// The class of a client's error.
pub fn failure(error: Error) -> Failure {
    match error {
        Error::Refused { code, path, .. } => Failure::Refused { code, path },
        Error::Multi(multi) => Failure::Refused { code: multi.code, path: multi.path },
        Error::BadPath { .. } | Error::BadArgument { .. } | Error::ConnectString { .. } | Error::Tls { .. } => {
            Failure::Usage(error.to_string())
        }
        Error::SessionEnded { reason: EndReason::AuthFailed { .. }, path, .. } => {
            Failure::Refused { code: ErrorCode::AuthFailed, path }
        }
        Error::SessionEnded { reason: EndReason::AuthRequired { .. }, path, .. } => {
            Failure::Refused { code: ErrorCode::SessionClosedRequireSaslAuth, path }
        }
        Error::SessionEnded { .. } | Error::NoConnection { .. } => Failure::Connection(error.to_string()),
        _ => Failure::Other(error.to_string()),
    }
}

/// A line on standard error that counts, if it is a terminal and the work takes long.
struct Progress {
    began: Instant,
    told: Option<Instant>,
    on: bool,
}

impl Progress {
    #[expect(clippy::disallowed_methods, reason = "shows a person how long something takes; decides nothing")]
    fn now() -> Instant {
        Instant::now()
    }

    fn new() -> Progress {
        Progress { began: Progress::now(), told: None, on: std::io::stderr().is_terminal() }
    }

    fn tell(&mut self, what: &str, count: u64) {
        let now = Progress::now();
        let due = self.told.map_or(self.began + PROGRESS_AFTER, |told| told + PROGRESS_EVERY);
        if self.on && now >= due {
            eprint!("\r{what} {count} nodes");
            self.told = Some(now);
        }
    }

    fn end(&mut self) {
        if self.told.take().is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
