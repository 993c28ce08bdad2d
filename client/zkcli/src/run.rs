//! What a sequence of commands shares: the session, the settings, how answers are shown and people are asked.
//!
//! Read first: [`Runner`]. What the verbs do is in the file of their group; [`Runner::run`] finds it.

use std::cell::{Cell, RefCell};
use std::io::{IsTerminal, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use corral_client::{Client, SessionState, TlsConnector, TlsOptions};
use futures::future::BoxFuture;
use serde_json::Value;

use crate::command::Command;
use crate::failure::Failure;
use crate::options::{Format, Options, Settings, addresses, cut_chroot};
use crate::print::{self, Output, Rendered};
use crate::signals::Signals;
use crate::watching::Watches;
use crate::words::{Input, decode_base64};
use crate::{context, coordination, copy, meet, nodes, quota, shell, status, sync, table, transfer, tree, watching};

/// Largest data read from standard input, in bytes; servers refuse much less.
const STDIN_MAX: u64 = 64 * 1024 * 1024;
/// Rows that a table gathers at most before it prints them.
const ROWS_MAX: usize = 1_000;
/// How long leaving may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Asks a person a question that is answered by yes or no.
pub type Confirmer = Arc<dyn Fn(String) -> BoxFuture<'static, bool> + Send + Sync>;

/// What to say of a session that is not there.
const CLOSED: &str = "Not connected: the session was closed; connect host:port opens another";

/// What a sequence of commands shares.
pub struct Runner {
    /// As given on the command line.
    pub options: Options,
    /// What they come to.
    pub settings: Settings,
    /// Where relative paths begin; in shells only.
    pub cwd: String,
    /// Watches in the background.
    pub watches: Watches,
    client: Option<Client>,
    /// Standard output is a pipe or file and gets data as it is.
    to_pipe: bool,
    is_shell: bool,
    confirmer: Option<Confirmer>,
    rows: RefCell<Rows>,
    /// Of the command under way, if it minds them itself.
    pub signals: Cell<Option<Signals>>,
}

/// Rows of a table that are not printed yet, so that its columns are as wide as they must be.
#[derive(Default)]
struct Rows {
    waiting: Vec<Value>,
    /// Heads that were printed last.
    heads: Vec<String>,
}

impl Runner {
    /// Without a connection yet. `one_shot`: one command, which owns standard input and output.
    pub fn new(options: Options, settings: Settings, one_shot: bool) -> Runner {
        // One who sits at a terminal is asked; the shell asks in its own way.
        let is_terminal = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        Runner {
            to_pipe: one_shot && !std::io::stdout().is_terminal(),
            is_shell: !one_shot,
            confirmer: (one_shot && is_terminal).then(|| Arc::new(ask_on_terminal) as Confirmer),
            cwd: "/".to_owned(),
            watches: Watches::new(options.output),
            options,
            settings,
            client: None,
            rows: RefCell::default(),
            signals: Cell::new(None),
        }
    }

    /// People are asked so from now on.
    pub fn confirm_with(&mut self, confirmer: Confirmer) {
        self.confirmer = Some(confirmer);
    }

    /// Whether commands come one after the other.
    pub fn is_shell(&self) -> bool {
        self.is_shell
    }

    /// Whether nothing is said but answers and errors.
    pub fn is_quiet(&self) -> bool {
        self.options.quiet
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
        self.client = Some(self.open(&self.settings).await?);
        Ok(())
    }

    /// Closes the session and opens another.
    ///
    /// # Errors
    /// As [`Runner::connect`].
    pub async fn connect_with(&mut self, settings: Settings) -> Result<(), Failure> {
        self.close().await;
        self.settings = settings;
        self.cwd = "/".to_owned();
        self.connect().await
    }

    /// Opens a session of its own with these settings.
    ///
    /// # Errors
    /// As [`Runner::connect`].
    pub async fn open(&self, settings: &Settings) -> Result<Client, Failure> {
        let limit = if self.options.wait {
            Duration::from_secs(u32::MAX.into())
        } else {
            Duration::from_millis(settings.timeout_ms)
        };
        let mut builder = Client::builder(settings.server.clone())
            .session_timeout(Duration::from_millis(settings.session_timeout_ms))
            .connect_timeout(limit);
        for identity in &settings.auth {
            let (scheme, auth) = identity
                .split_once(':')
                .ok_or_else(|| Failure::Usage(format!("--auth {identity}: it needs the form scheme:auth")))?;
            builder = builder.auth(scheme, auth.as_bytes().to_vec());
        }
        if let Some(tls) = tls(settings)? {
            builder = builder.tls(tls);
        }
        Ok(builder.connect().await?)
    }

    /// A client that sees the whole tree, for what ZooKeeper keeps at fixed paths: the session itself if it has no chroot,
    /// else one of its own. With it, what stands before the user's paths there.
    ///
    /// # Errors
    /// As [`Runner::connect`].
    pub async fn whole_tree(&self) -> Result<(Client, String), Failure> {
        let client = self.session()?;
        if client.chroot().is_empty() {
            return Ok((client, String::new()));
        }
        let hosts = cut_chroot(&self.settings.server).0.to_owned();
        let whole = self.open(&Settings { server: hosts, ..self.settings.clone() }).await?;
        Ok((whole, client.chroot().to_owned()))
    }

    /// What opens connections inside TLS, if the settings ask for it.
    ///
    /// # Errors
    /// A file that cannot be read or used.
    pub fn tls_connector(&self) -> Result<Option<TlsConnector>, Failure> {
        Ok(tls(&self.settings)?.map(|tls| tls.connector()).transpose()?)
    }

    /// Closes the session, if there is one; does not wait for long.
    pub async fn close(&mut self) {
        self.watches.end_all();
        if let Some(client) = self.client.take() {
            // Whether it was in time or not, we are leaving; the ensemble expires what it did not hear of.
            let _ = tokio::time::timeout(CLOSE_LIMIT, client.close()).await;
        }
    }

    /// Prints one answer.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn show(&self, output: &Output) -> Result<(), Failure> {
        if self.options.output == Format::Table {
            let is_full = {
                let mut rows = self.rows.borrow_mut();
                rows.waiting.extend(print::documents(output));
                rows.waiting.len() >= ROWS_MAX
            };
            return if is_full { self.flush() } else { Ok(()) };
        }
        self.write(&print::render(output, self.options.output, self.to_pipe))
    }

    /// Prints the rows of a table that wait for more: at the end of a command, and before a stream waits.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn flush(&self) -> Result<(), Failure> {
        let text = {
            let mut rows = self.rows.borrow_mut();
            let waiting = std::mem::take(&mut rows.waiting);
            if waiting.is_empty() {
                return Ok(());
            }
            table::rows(&waiting, &mut rows.heads)
        };
        self.write(&Rendered { out: text.into_bytes(), err: String::new() })
    }

    /// Prints rendered text.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn write(&self, rendered: &Rendered) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        out.write_all(&rendered.out).and_then(|()| out.flush()).map_err(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::Other(format!("standard output: {error}")),
        })?;
        if !rendered.err.is_empty() && !self.is_quiet() {
            eprint!("{}", rendered.err);
        }
        Ok(())
    }

    /// Tells a person something on standard error, unless nothing is to be said.
    pub fn remark(&self, text: &str) {
        if !self.is_quiet() {
            eprintln!("{text}");
        }
    }

    /// Prints why a command failed.
    pub fn show_failure(&self, failure: &Failure) {
        match self.options.output {
            _ if failure.is_silent() => {}
            Format::Json | Format::Yaml => eprint!("{}", failure.json()),
            _ => eprintln!("{}", failure.text()),
        }
    }

    /// Makes sure that somebody wants `what` destroyed. Without a terminal nobody can be asked: then a `yes` must have been
    /// given, unless `scripts_may` (ZooKeeper's verbs, outside of contexts that are marked production).
    ///
    /// # Errors
    /// [`Failure::NotConfirmed`].
    pub async fn confirm(&self, what: &str, yes: bool, scripts_may: bool) -> Result<(), Failure> {
        if yes || self.options.yes {
            return Ok(());
        }
        match &self.confirmer {
            Some(ask) => {
                let mark = if self.settings.production { " (PRODUCTION)" } else { "" };
                match ask(format!("{what}{mark}? [y/N] ")).await {
                    true => Ok(()),
                    false => Err(Failure::NotConfirmed("not confirmed; nothing was changed".to_owned())),
                }
            }
            None if scripts_may && !self.settings.production => Ok(()),
            None => Err(Failure::NotConfirmed(format!("{what}? Nobody can be asked here: --yes confirms it"))),
        }
    }

    /// Whether [`Runner::confirm`] will ask.
    pub fn asks(&self, yes: bool) -> bool {
        !yes && !self.options.yes && self.confirmer.is_some()
    }

    /// The signals of the command under way, from its beginning on. Whoever takes them gives them back.
    ///
    /// # Errors
    /// The system does not let us hear of any.
    pub fn take_signals(&self) -> Result<Signals, Failure> {
        self.signals.take().map_or_else(Signals::new, Ok)
    }

    /// Waits for some work, unless Ctrl-C or a request to end comes first.
    ///
    /// # Errors
    /// [`Failure::Cancelled`].
    pub async fn or_interrupted<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let mut signals = self.take_signals()?;
        let result = signals.or_interrupted(work).await;
        self.signals.set(Some(signals));
        result
    }

    /// Does one command and prints what it has to say.
    ///
    /// # Errors
    /// Why it failed; nothing is printed about it yet.
    pub async fn run(&mut self, command: Command) -> Result<(), Failure> {
        let result = self.carry_out(command).await;
        let flushed = self.flush();
        self.rows.borrow_mut().heads.clear();
        self.signals.set(None);
        result.and(flushed)
    }

    async fn carry_out(&mut self, command: Command) -> Result<(), Failure> {
        match command {
            Command::Quota(task) => quota::run(self, task).await,
            Command::Tree(task) => tree::run(self, task).await,
            Command::Copy(task) => copy::run(self, task).await,
            Command::SyncDir(task) => sync::run(self, task).await,
            Command::Transfer(task) => transfer::run(self, task).await,
            Command::Coordinate(task) => coordination::run(self, task).await,
            Command::Meet(task) => meet::run(self, task).await,
            Command::Watch(task) => watching::run(self, task).await,
            Command::Context(task) => context::run(self, task).await,
            Command::Shell(task) => shell::run(self, task).await,
            Command::Status => {
                let servers = status::ask_all(&self.addresses(), self.tls_connector()?.as_ref(), self.limit()).await;
                let serving = servers.iter().filter(|server| server.mode.is_some()).count();
                let all = servers.len();
                self.show(&Output::Status(servers))?;
                match serving {
                    0 => Err(Failure::Connection("no server serves".to_owned())),
                    some if some < all => Err(Failure::Other(format!("{} of {all} servers do not serve", all - some))),
                    _ => Ok(()),
                }
            }
            own => nodes::run(self, own).await,
        }
    }

    /// The servers of the connect string.
    pub fn addresses(&self) -> Vec<String> {
        addresses(&self.settings.server)
    }

    /// The session.
    ///
    /// # Errors
    /// There is none.
    pub fn session(&self) -> Result<Client, Failure> {
        self.client.clone().ok_or_else(|| Failure::Connection(CLOSED.to_owned()))
    }

    /// Success, and nothing more.
    ///
    /// # Errors
    /// As [`Runner::show`].
    pub fn done(&self, path: String) -> Result<(), Failure> {
        self.show(&Output::Done { path })
    }

    /// How long an answer may take.
    pub fn limit(&self) -> Duration {
        Duration::from_millis(self.settings.timeout_ms)
    }

    /// Waits for one answer, as long as `--timeout` allows.
    ///
    /// # Errors
    /// The server's refusal; no answer in time.
    pub async fn ask<T, E: Into<Failure>>(&self, response: impl Future<Output = Result<T, E>>) -> Result<T, Failure> {
        match tokio::time::timeout(self.limit(), response).await {
            Ok(result) => result.map_err(Into::into),
            Err(_) => Err(Failure::Timeout(format!(
                "no answer within {} ms; a write may still be carried out",
                self.limit().as_millis()
            ))),
        }
    }

    /// The data that an argument stands for.
    ///
    /// # Errors
    /// Standard input holds commands, too much, or no base64.
    pub fn input(&self, input: Input) -> Result<Vec<u8>, Failure> {
        let base64 = match input {
            Input::Bytes(bytes) => return Ok(bytes),
            Input::Stdin { .. } if self.is_shell => {
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
}

/// TLS, if the settings ask for it.
fn tls(settings: &Settings) -> Result<Option<TlsOptions>, Failure> {
    let read = |path: &str| std::fs::read(path).map_err(|error| Failure::Usage(format!("{path}: {error}")));
    let Some(ca) = &settings.tls_ca else { return Ok(None) };
    let mut tls = TlsOptions::new(read(ca)?);
    if let Some(certificate) = &settings.tls_cert {
        // As in a key store: one file may hold both.
        let key = settings.tls_key.as_ref().unwrap_or(certificate);
        tls = tls.identity(read(certificate)?, read(key)?);
    }
    if let Some(name) = &settings.tls_server_name {
        tls = tls.server_name(name.clone());
    }
    Ok(Some(tls))
}

/// Asks on the terminal of a command; reading blocks, and pings must go on meanwhile.
fn ask_on_terminal(question: String) -> BoxFuture<'static, bool> {
    Box::pin(async move {
        eprint!("{question}");
        let read = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).map(|_| line)
        });
        matches!(read.await, Ok(Ok(line)) if is_yes(&line))
    })
}

/// Whether an answer is a yes.
pub fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}
