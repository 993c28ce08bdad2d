//! The interactive shell: a line editor in a thread of its own, commands on the runtime.
//!
//! The editor blocks, the client must not: while somebody types, pings go out and watch events come in. The two talk over
//! channels: the editor asks for a line's worth of work or for the children of a node (completion), and waits.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc as blocking};
use std::time::Duration;

use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{Context, Editor, ExternalPrinter, Helper};
use tokio::sync::mpsc;

use crate::command::{self, Command, Completion, ParseError, VERBS};
use crate::print::{Failure, Output};
use crate::run::Runner;

/// Lines that the history file keeps.
const HISTORY_LINES: usize = 1_000;
/// Lines that `history` lists, as ZooKeeper's.
const HISTORY_SHOWN: usize = 11;
/// How long completion waits for a server.
const COMPLETION_LIMIT: Duration = Duration::from_millis(1_000);
/// Names that completion offers at most.
const COMPLETIONS_MAX: usize = 1_000;
/// Requests of the editor that may wait: it makes one at a time.
const REQUESTS_MAX: usize = 4;

/// What the editor thread wants.
enum Request {
    /// A line was entered; the answer is the next prompt.
    Line(String, blocking::SyncSender<Option<String>>),
    /// The children of a node.
    Children(String, blocking::SyncSender<Vec<String>>),
    /// Ctrl-D, or the terminal is gone.
    End,
}

/// What both ways of reading commands share: numbering, history, `redo`.
struct Session {
    runner: Runner,
    entered: Vec<String>,
    last_failure: u8,
}

/// Whether to go on.
#[derive(PartialEq, Eq)]
enum Flow {
    Go,
    Quit,
}

impl Session {
    fn prompt(&self) -> String {
        format!("[corral: {}({}) {}] ", self.runner.server(), self.runner.state(), self.entered.len())
    }

    /// Does one line. Ctrl-C ends the command and not the shell.
    async fn line(&mut self, line: &str) -> Flow {
        let words = match command::words(line) {
            Ok(words) if words.is_empty() => return Flow::Go,
            Ok(words) => words,
            Err(error) => {
                self.fail(&parse_failure(error));
                return Flow::Go;
            }
        };
        self.entered.push(line.to_owned());
        let mut parsed = command::parse(&words);
        if let Ok(command::Parsed { command: Command::Redo { number }, .. }) = parsed {
            // The number of the redo itself is the last one.
            match self.entered.get(number).filter(|_| number + 1 < self.entered.len()).cloned() {
                Some(again) => {
                    if let Some(last) = self.entered.last_mut() {
                        *last = again.clone();
                    }
                    parsed = command::words(&again).and_then(|words| command::parse(&words));
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
                    eprintln!("{notice}");
                }
                parsed.command
            }
            Err(error) => {
                self.fail(&parse_failure(error));
                return Flow::Go;
            }
        };
        let result = match command {
            Command::Quit => return Flow::Quit,
            Command::Redo { .. } => Err(Failure::Usage("redo cannot redo a redo".to_owned())),
            Command::History => {
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
        ParseError::UnknownCommand(_) => Failure::UnknownCommand(error.to_string()),
        ParseError::Usage { .. } | ParseError::Words(_) => Failure::Usage(error.to_string()),
    }
}

/// Reads commands from standard input, without a prompt, to its end. The exit code is that of the last command that
/// failed, 0 if none did.
pub async fn script(runner: Runner) -> u8 {
    let mut session = Session { runner, entered: Vec::new(), last_failure: 0 };
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

/// Reads commands from a terminal until `quit` or Ctrl-D.
pub async fn interactive(mut runner: Runner) -> u8 {
    let (requests, mut asked) = mpsc::channel(REQUESTS_MAX);
    let mut editor = match new_editor(requests.clone()) {
        Ok(editor) => editor,
        Err(error) => {
            runner.show_failure(&Failure::Other(format!("the terminal cannot be used: {error}")));
            runner.close().await;
            return 1;
        }
    };
    if let Ok(printer) = editor.create_external_printer() {
        let printer = Mutex::new(printer);
        runner.print_events_with(Arc::new(move |text| {
            // Without the terminal there is nobody to tell.
            let _ = printer.lock().unwrap_or_else(PoisonError::into_inner).print(text);
        }));
    }
    let mut session = Session { runner, entered: Vec::new(), last_failure: 0 };
    let first_prompt = session.prompt();
    let thread = std::thread::spawn(move || edit(editor, &requests, first_prompt));
    while let Some(request) = asked.recv().await {
        match request {
            Request::Line(line, reply) => {
                let flow = session.line(&line).await;
                let prompt = (flow == Flow::Go).then(|| session.prompt());
                let over = prompt.is_none();
                if reply.send(prompt).is_err() || over {
                    break;
                }
            }
            Request::Children(parent, reply) => {
                // The editor has given up if nobody listens.
                let _ = reply.send(children(&session.runner, &parent).await);
            }
            Request::End => break,
        }
    }
    session.runner.close().await;
    // It has saved the history, and hangs on nothing any more.
    let _ = thread.join();
    0
}

async fn children(runner: &Runner, parent: &str) -> Vec<String> {
    let Some(client) = runner.client() else { return Vec::new() };
    match tokio::time::timeout(COMPLETION_LIMIT, client.get_children(parent)).await {
        Ok(Ok(names)) => names,
        _ => Vec::new(),
    }
}

type LineEditor = Editor<Completions, DefaultHistory>;

fn new_editor(requests: mpsc::Sender<Request>) -> rustyline::Result<LineEditor> {
    let config = rustyline::Config::builder()
        .max_history_size(HISTORY_LINES)?
        .history_ignore_dups(true)?
        .history_ignore_space(true)
        .completion_type(rustyline::CompletionType::List)
        .build();
    let mut editor = Editor::with_config(config)?;
    editor.set_helper(Some(Completions { requests }));
    Ok(editor)
}

/// The editor's thread: prompts until told to stop.
fn edit(mut editor: LineEditor, requests: &mpsc::Sender<Request>, mut prompt: String) {
    let history = history_file();
    if let Some(file) = &history {
        // There is none the first time.
        let _ = editor.load_history(file);
    }
    loop {
        match editor.readline(prompt.as_str()) {
            Ok(line) => {
                // Losing a line of history is no reason to stop.
                let _ = editor.add_history_entry(line.as_str());
                let (reply, answer) = blocking::sync_channel(1);
                if requests.blocking_send(Request::Line(line, reply)).is_err() {
                    break;
                }
                match answer.recv() {
                    Ok(Some(next)) => prompt = next,
                    _ => break,
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

/// Completes verbs from the list, and paths from the live tree.
struct Completions {
    requests: mpsc::Sender<Request>,
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
        Ok(match command::completion(line, cursor) {
            Completion::Nothing => (cursor, Vec::new()),
            Completion::Verb { start } => {
                let typed = &line[start..cursor];
                let verbs = VERBS.iter().filter(|verb| verb.name.starts_with(typed));
                let pair = |verb: &command::Verb| Pair {
                    display: verb.name.to_owned(),
                    replacement: if verb.usage.is_empty() { verb.name.to_owned() } else { format!("{} ", verb.name) },
                };
                (start, verbs.map(pair).collect())
            }
            Completion::Path { start, parent, prefix } => {
                let names = self.children(parent).into_iter().filter(|name| name.starts_with(&prefix));
                let pair = |name: String| Pair { display: name.clone(), replacement: name };
                (start, names.take(COMPLETIONS_MAX).map(pair).collect())
            }
        })
    }
}

impl Hinter for Completions {
    type Hint = String;
}
impl Highlighter for Completions {}
impl Validator for Completions {}
impl Helper for Completions {}
