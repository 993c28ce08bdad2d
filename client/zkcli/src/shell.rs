//! The interactive shell: a line editor in a thread of its own, commands on the runtime.
//!
//! The editor blocks, the client must not: while somebody types, pings go out and watch events come in. The two talk over
//! channels: the editor asks for a line's worth of work or for the children of a node (completion), and waits; a command
//! may ask back for a yes.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc as blocking};
use std::time::Duration;

use corral_client::{ErrorCode, ServerId};
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{Context, Editor, ExternalPrinter, Helper};
use tokio::sync::{mpsc, oneshot};

use crate::command::{self, Command};
use crate::failure::Failure;
use crate::failure::exit::{BAD_VERSION, CONNECTION, FAILED, NO_NODE};
use crate::options::Settings;
use crate::print::Output;
use crate::run::{Runner, is_yes};
use crate::signals::Signals;
use crate::verbs::{self, Verb};
use crate::words::{self, Args, Completion, ParseError};
use crate::{edit, status, takes_signals};

/// Lines that the history file keeps.
const HISTORY_LINES: usize = 1_000;
/// Lines that `history` lists, as ZooKeeper's.
const HISTORY_SHOWN: usize = 11;
/// How long completion waits for a server.
const COMPLETION_LIMIT: Duration = Duration::from_millis(1_000);
/// Names that completion offers at most.
const COMPLETIONS_MAX: usize = 1_000;
/// How long the prompt waits to learn whether the server leads.
const ROLE_LIMIT: Duration = Duration::from_millis(250);
/// Requests of the editor that may wait: it makes one at a time.
const REQUESTS_MAX: usize = 4;

pub const VERBS: &[Verb] = &[
    Verb {
        name: "cd",
        args: "[path]",
        about: "go to a path: relative ones begin there; .. is the one above",
        example: "zkcli cd /demo",
        exits: &[NO_NODE],
        ..Verb::PLAIN
    },
    Verb { name: "close", about: "close the session", example: "zkcli close", needs_session: false, ..Verb::PLAIN },
    Verb {
        name: "connect",
        args: "host:port[,...][/chroot]",
        about: "close the session, open another",
        example: "zkcli connect localhost:2181/app",
        exits: &[CONNECTION],
        needs_session: false,
        ..Verb::PLAIN
    },
    Verb {
        name: "edit",
        args: "path",
        about: "edit data in $VISUAL or $EDITOR; written only if nobody changed it meanwhile",
        more: "If somebody did, what you typed is kept in a file, which is told. A line's end that the editor adds is taken\n\
               away again.",
        example: "zkcli edit /demo",
        exits: &[FAILED, NO_NODE, BAD_VERSION],
        ..Verb::PLAIN
    },
    Verb {
        name: "history",
        about: "list the last commands",
        example: "zkcli history",
        needs_session: false,
        ..Verb::PLAIN
    },
    Verb {
        name: "pwd",
        about: "print the path that cd went to",
        example: "zkcli pwd",
        needs_session: false,
        ..Verb::PLAIN
    },
    Verb {
        name: "quit",
        about: "leave (also: exit, Ctrl-D)",
        example: "zkcli quit",
        needs_session: false,
        ..Verb::PLAIN
    },
    Verb {
        name: "redo",
        args: "number",
        about: "do a command of the history again",
        example: "zkcli redo 3",
        needs_session: false,
        ..Verb::PLAIN
    },
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    Cd { path: String },
    Close,
    Connect { hosts: String },
    Edit { path: String },
    History,
    Pwd,
    Quit,
    Redo { number: usize },
}

pub fn parse(name: &str, mut args: Args<'_>) -> Result<Task, ParseError> {
    let task = match name {
        "cd" => Task::Cd { path: if args.is_empty() { "/".to_owned() } else { args.path()? } },
        "close" => Task::Close,
        "connect" => Task::Connect { hosts: args.required("host:port")? },
        "edit" => Task::Edit { path: args.path()? },
        "history" => Task::History,
        "pwd" => Task::Pwd,
        "redo" => {
            let text = args.required("number")?;
            Task::Redo { number: args.number("number", &text)? }
        }
        _ => Task::Quit,
    };
    args.end()?;
    Ok(task)
}

/// Does what needs no list of the commands before.
///
/// # Errors
/// Why not.
pub async fn run(runner: &mut Runner, task: Task) -> Result<(), Failure> {
    match task {
        Task::Cd { path } => {
            if runner.ask(runner.session()?.exists(&path)).await?.is_none() {
                return Err(Failure::Refused { code: ErrorCode::NoNode, path });
            }
            runner.cwd = path;
            Ok(())
        }
        Task::Pwd => runner.show(&Output::Text(runner.cwd.clone())),
        Task::Edit { path } => edit::edit(runner, path).await,
        Task::Connect { hosts } => {
            // Of a context that was in use, its marks and secrets do not go along.
            runner.options.server = Some(hosts);
            runner.options.context = None;
            let settings = Settings::of(&runner.options, None).map_err(Failure::Usage)?;
            runner.connect_with(settings).await
        }
        Task::Close => {
            runner.close().await;
            Ok(())
        }
        Task::History | Task::Redo { .. } => {
            Err(Failure::Usage("there is a history in the interactive shell only".to_owned()))
        }
        Task::Quit => Ok(()),
    }
}

/// What the editor thread wants.
enum Request {
    /// A line was entered.
    Line(String, blocking::SyncSender<Reply>),
    /// The children of a node, whose path is as typed.
    Children(String, blocking::SyncSender<Vec<String>>),
    /// Ctrl-D, or the terminal is gone.
    End,
}

/// What it gets for a line.
enum Reply {
    /// A question that somebody must answer first.
    Ask(String, oneshot::Sender<bool>),
    /// It is done; the next prompt.
    Prompt(String),
    /// It was the last.
    Quit,
}

/// What both ways of reading commands share: numbering, history, `redo`.
struct Session {
    runner: Runner,
    entered: Vec<String>,
    last_failure: u8,
    /// The server whose address is known, to be asked for its role.
    server: Option<(ServerId, String)>,
}

/// Whether to go on.
#[derive(PartialEq, Eq)]
enum Flow {
    Go,
    Quit,
}

impl Session {
    fn new(runner: Runner) -> Session {
        Session { runner, entered: Vec::new(), last_failure: 0, server: None }
    }

    async fn prompt(&mut self) -> String {
        let role = self.role().await.map(|role| format!(" {role}")).unwrap_or_default();
        let Runner { settings, cwd, .. } = &self.runner;
        let name = settings.context.clone().unwrap_or_else(|| format!("corral: {}", settings.server));
        format!("[{name}({}{role}) {cwd} {}] ", self.runner.state(), self.entered.len())
    }

    /// Whether our server leads, follows, or only reads; `None`: it does not say so in time.
    async fn role(&mut self) -> Option<String> {
        let id = self.runner.client()?.server();
        let (addresses, tls) = (self.runner.addresses(), self.runner.tls_connector().ok()?);
        let known = self.server.take().filter(|(known, address)| *known == id && addresses.contains(address));
        let address = match (known, addresses.as_slice()) {
            (Some((_, address)), _) => address,
            (None, [only]) => only.clone(),
            (None, all) => status::address_of(all, tls.as_ref(), id, ROLE_LIMIT).await?,
        };
        let asked = status::ask_all(std::slice::from_ref(&address), tls.as_ref(), ROLE_LIMIT).await;
        self.server = Some((id, address));
        asked.into_iter().next()?.mode
    }

    /// Does one line. Ctrl-C ends the command and not the shell.
    async fn line(&mut self, line: &str) -> Flow {
        let words = match words::words(line) {
            Ok(words) if words.is_empty() => return Flow::Go,
            Ok(words) => words,
            Err(error) => {
                self.fail(&parse_failure(error));
                return Flow::Go;
            }
        };
        self.entered.push(line.to_owned());
        let cwd = self.runner.cwd.clone();
        let mut parsed = command::parse(&words, Some(&cwd));
        if let Ok(command::Parsed { command: Command::Shell(Task::Redo { number }), .. }) = parsed {
            // The number of the redo itself is the last one.
            match self.entered.get(number).filter(|_| number + 1 < self.entered.len()).cloned() {
                Some(again) => {
                    if let Some(last) = self.entered.last_mut() {
                        *last = again.clone();
                    }
                    parsed = words::words(&again).and_then(|words| command::parse(&words, Some(&cwd)));
                }
                None => {
                    self.fail(&Failure::Usage(format!("there is no command {number} in this history")));
                    return Flow::Go;
                }
            }
        }
        let command = match parsed {
            Ok(parsed) => {
                if let Some(notice) = parsed.notice {
                    self.runner.remark(&notice);
                }
                parsed.command
            }
            Err(error) => {
                self.fail(&parse_failure(error));
                return Flow::Go;
            }
        };
        let result = match command {
            Command::Shell(Task::Quit) => return Flow::Quit,
            Command::Shell(Task::Redo { .. }) => Err(Failure::Usage("redo cannot redo a redo".to_owned())),
            Command::Shell(Task::History) => {
                let from = self.entered.len().saturating_sub(HISTORY_SHOWN);
                let lines: Vec<String> = self
                    .entered
                    .iter()
                    .enumerate()
                    .skip(from)
                    .map(|(number, line)| format!("{number} - {line}"))
                    .collect();
                self.runner.show(&Output::Text(lines.join("\n")))
            }
            command if takes_signals(&command) => match Signals::new() {
                Ok(signals) => {
                    self.runner.signals.set(Some(signals));
                    self.runner.run(command).await
                }
                Err(failure) => Err(failure),
            },
            command => tokio::select! {
                biased;
                interrupted = tokio::signal::ctrl_c() => Err(match interrupted {
                    Ok(()) => Failure::Cancelled,
                    Err(error) => Failure::Other(format!("Ctrl-C cannot be caught: {error}")),
                }),
                result = self.runner.run(command) => result,
            },
        };
        if let Err(failure) = result {
            self.fail(&failure);
            if failure == Failure::OutputClosed {
                return Flow::Quit;
            }
        }
        Flow::Go
    }

    fn fail(&mut self, failure: &Failure) {
        self.last_failure = failure.exit_code();
        self.runner.show_failure(failure);
    }
}

/// The failure of a line that is no command.
pub fn parse_failure(error: ParseError) -> Failure {
    match error {
        ParseError::UnknownCommand { .. } => Failure::UnknownCommand(error.to_string()),
        ParseError::Usage { .. } | ParseError::Words(_) => Failure::Usage(error.to_string()),
    }
}

/// Reads commands from standard input, without a prompt, to its end. The exit code is that of the last command that
/// failed, 0 if none did.
pub async fn script(runner: Runner) -> u8 {
    let mut session = Session::new(runner);
    let (lines, mut arrived) = mpsc::channel::<std::io::Result<String>>(REQUESTS_MAX);
    // Reading blocks, and pings must go on meanwhile.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while let Some(line) = arrived.recv().await {
        match line {
            Ok(line) => {
                if session.line(&line).await == Flow::Quit {
                    break;
                }
            }
            Err(error) => {
                session.fail(&Failure::Other(format!("standard input: {error}")));
                break;
            }
        }
    }
    session.runner.close().await;
    session.last_failure
}

/// Who waits for the reply to the line under way.
type Waiting = Arc<Mutex<Option<blocking::SyncSender<Reply>>>>;

/// Reads commands from a terminal until `quit` or Ctrl-D.
pub async fn interactive(mut runner: Runner) -> u8 {
    let (requests, mut asked) = mpsc::channel(REQUESTS_MAX);
    let is_red = Arc::new(AtomicBool::new(runner.settings.production));
    let mut editor = match new_editor(requests.clone(), is_red.clone()) {
        Ok(editor) => editor,
        Err(error) => {
            runner.show_failure(&Failure::Other(format!("the terminal cannot be used: {error}")));
            runner.close().await;
            return 1;
        }
    };
    if let Ok(printer) = editor.create_external_printer() {
        let printer = Mutex::new(printer);
        runner.watches.print_with(Arc::new(move |text| {
            // Without the terminal there is nobody to tell.
            let _ = printer.lock().unwrap_or_else(PoisonError::into_inner).print(text);
        }));
    }
    let waiting = Waiting::default();
    let asks = waiting.clone();
    runner.confirm_with(Arc::new(move |question| {
        let (answer, answered) = oneshot::channel();
        let reply = asks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(async move {
            // The editor thread waits for a reply, so there is room for one.
            let is_asked = reply.is_some_and(|reply| reply.try_send(Reply::Ask(question, answer)).is_ok());
            is_asked && answered.await.unwrap_or(false)
        })
    }));
    let mut session = Session::new(runner);
    let first_prompt = session.prompt().await;
    let thread = std::thread::spawn(move || edit_lines(editor, &requests, first_prompt));
    while let Some(request) = asked.recv().await {
        match request {
            Request::Line(line, reply) => {
                *waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(reply.clone());
                let flow = session.line(&line).await;
                *waiting.lock().unwrap_or_else(PoisonError::into_inner) = None;
                is_red.store(session.runner.settings.production, Ordering::Relaxed);
                let over = flow == Flow::Quit;
                let next = if over { Reply::Quit } else { Reply::Prompt(session.prompt().await) };
                if reply.send(next).is_err() || over {
                    break;
                }
            }
            Request::Children(typed, reply) => {
                // The editor has given up if nobody listens.
                let _ = reply.send(children(&session.runner, &typed).await);
            }
            Request::End => break,
        }
    }
    session.runner.close().await;
    // It has saved the history, and hangs on nothing any more.
    let _ = thread.join();
    0
}

async fn children(runner: &Runner, typed: &str) -> Vec<String> {
    let Some(client) = runner.client() else { return Vec::new() };
    let parent = words::resolve(&runner.cwd, typed);
    match tokio::time::timeout(COMPLETION_LIMIT, client.get_children(&parent)).await {
        Ok(Ok(names)) => names,
        _ => Vec::new(),
    }
}

type LineEditor = Editor<Completions, DefaultHistory>;

fn new_editor(requests: mpsc::Sender<Request>, is_red: Arc<AtomicBool>) -> rustyline::Result<LineEditor> {
    let config = rustyline::Config::builder()
        .max_history_size(HISTORY_LINES)?
        .history_ignore_dups(true)?
        .history_ignore_space(true)
        .completion_type(rustyline::CompletionType::List)
        .build();
    let mut editor = Editor::with_config(config)?;
    editor.set_helper(Some(Completions { requests, is_red }));
    Ok(editor)
}

/// The editor's thread: prompts until told to stop.
fn edit_lines(mut editor: LineEditor, requests: &mpsc::Sender<Request>, mut prompt: String) {
    let history = history_file();
    if let Some(file) = &history {
        // There is none the first time.
        let _ = editor.load_history(file);
    }
    'lines: loop {
        match editor.readline(prompt.as_str()) {
            Ok(line) => {
                // Losing a line of history is no reason to stop.
                let _ = editor.add_history_entry(line.as_str());
                let (reply, answer) = blocking::sync_channel(1);
                if requests.blocking_send(Request::Line(line, reply)).is_err() {
                    break;
                }
                loop {
                    match answer.recv() {
                        Ok(Reply::Prompt(next)) => {
                            prompt = next;
                            break;
                        }
                        Ok(Reply::Ask(question, answer)) => {
                            // Ctrl-C and Ctrl-D are a no.
                            let yes = editor.readline(question.as_str()).is_ok_and(|line| is_yes(&line));
                            let _ = answer.send(yes);
                        }
                        Ok(Reply::Quit) | Err(_) => break 'lines,
                    }
                }
            }
            // Ctrl-C at the prompt clears the line.
            Err(ReadlineError::Interrupted) => {}
            Err(_) => {
                let _ = requests.blocking_send(Request::End);
                break;
            }
        }
    }
    if let Some(file) = &history {
        // Read-only homes exist.
        let _ = editor.save_history(file);
    }
    let _ = std::io::stdout().flush();
}

/// `ZKCLI_HISTORY`, else `.zkcli_history` in the home folder; an empty variable turns it off.
fn history_file() -> Option<PathBuf> {
    match std::env::var_os("ZKCLI_HISTORY") {
        Some(file) if file.is_empty() => None,
        Some(file) => Some(file.into()),
        None => Some(PathBuf::from(std::env::var_os("HOME")?).join(".zkcli_history")),
    }
}

/// Completes verbs and options from the table, and paths from the live tree. Marks the prompt of a production context.
struct Completions {
    requests: mpsc::Sender<Request>,
    is_red: Arc<AtomicBool>,
}

impl Completions {
    fn children(&self, parent: String) -> Vec<String> {
        let (reply, answer) = blocking::sync_channel(1);
        if self.requests.blocking_send(Request::Children(parent, reply)).is_err() {
            return Vec::new();
        }
        answer.recv_timeout(COMPLETION_LIMIT).unwrap_or_default()
    }
}

impl Completer for Completions {
    type Candidate = Pair;

    fn complete(&self, line: &str, cursor: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let same = |text: String| Pair { display: text.clone(), replacement: text };
        Ok(match words::completion(line, cursor) {
            Completion::Nothing => (cursor, Vec::new()),
            Completion::Verb { start } => {
                let typed = &line[start..cursor];
                let verbs = verbs::all().into_iter().filter(|verb| verb.name.starts_with(typed));
                let pair = |verb: &Verb| {
                    let is_alone = verb.args.is_empty() && verb.options.is_empty();
                    let replacement = if is_alone { verb.name.to_owned() } else { format!("{} ", verb.name) };
                    Pair { display: verb.name.to_owned(), replacement }
                };
                (start, verbs.map(pair).collect())
            }
            Completion::Option { start, verb } => {
                let typed = &line[start..cursor];
                let options = verbs::find(&verb).map_or(&[][..], |verb| verb.options);
                let names = options.iter().flat_map(|option| {
                    let short = option.short.map(|short| format!("-{short}"));
                    short.into_iter().chain(option.long.map(|long| format!("--{long}")))
                });
                (start, names.filter(|name| name.starts_with(typed)).map(same).collect())
            }
            Completion::Path { start, parent, prefix } => {
                let names = self.children(parent).into_iter().filter(|name| name.starts_with(&prefix));
                (start, names.take(COMPLETIONS_MAX).map(same).collect())
            }
        })
    }
}

impl Hinter for Completions {
    type Hint = String;
}

impl Highlighter for Completions {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _default: bool) -> std::borrow::Cow<'b, str> {
        if self.is_red.load(Ordering::Relaxed) {
            std::borrow::Cow::Owned(format!("\x1b[1;31m{prompt}\x1b[0m"))
        } else {
            std::borrow::Cow::Borrowed(prompt)
        }
    }
}

impl Validator for Completions {}
impl Helper for Completions {}
