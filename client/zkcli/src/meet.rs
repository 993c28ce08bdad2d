//! `barrier`, `queue`, `counter`: recipes where nothing is held, or only between two steps.

use std::time::Duration;

use bytes::Bytes;
use corral_client::Client;
use corral_recipes::{Barrier, Counter, DoubleBarrier, Encoding, Queue, WorkQueue};
use serde_json::json;

use crate::child::{Child, Outcome};
use crate::coordination::own_identity;
use crate::failure::Failure;
use crate::failure::exit::{FAILED, LOST, TIMEOUT};
use crate::options::Format;
use crate::print::{Output, Rendered};
use crate::run::Runner;
use crate::verbs::{Opt, Verb};
use crate::words::{Args, Input, ParseError};

/// Of an item if nothing else is said, as the recipes have it.
const PRIORITY_DEFAULT: u16 = 100;

pub const VERBS: &[Verb] = &[
    Verb {
        name: "barrier",
        args: "set path | remove path | wait path | enter path -- program [argument ...]",
        options: &[
            Opt::value('t', "ms", "wait for so long at most"),
            Opt::value('n', "members", "of enter: how many must be there"),
        ],
        about: "wait for each other",
        more: "set closes a barrier, remove opens it, wait waits until it is open. enter is a double barrier: the program\n\
               begins when so many are there, and the command ends when all have finished or died.",
        example: "zkcli barrier enter -n 3 /jobs/7 -- ./job.sh",
        exits: &[FAILED, TIMEOUT, LOST],
        ..Verb::PLAIN
    },
    Verb {
        name: "queue",
        args: "put path data|- | take path | poll path | peek path | len path | work path -- program [argument ...]",
        options: &[
            Opt::value('p', "priority", "of put: 0 to 999, the lower the sooner; 100 if not given"),
            Opt::value('t', "ms", "of take and work: wait for so long at most"),
            Opt::value('m', "items", "of put: refuse if it holds so many already"),
            Opt::value('a', "attempts", "of work: set an item aside that was begun so often"),
            Opt::flag('w', "of put and len: the queue of work"),
            Opt::flag('b', "of put: data is base64"),
        ],
        about: "put items, and take them once",
        more: "take waits for an item, poll does not (exit code 1: there is none), peek leaves it. Items that must not be\n\
               lost are put with -w; work gives one to the program on its standard input, and it is done when the\n\
               program exits with 0, else given back. If the claim is lost the program is killed. An item ends with a\n\
               line end of ours; zkcli -o raw queue take prints the exact bytes.",
        example: "echo 'order 7' | zkcli queue put -w /queues/orders -",
        exits: &[FAILED, TIMEOUT, LOST],
        ..Verb::PLAIN
    },
    Verb {
        name: "counter",
        args: "get path | add path number | set path number | cas path expected number",
        options: &[Opt::value('e', "encoding", "long, int (both Curator's) or text (kazoo's, and the default)")],
        about: "count, exactly once inside a session",
        more: "Prints the number, after the change. cas sets it if it is what is expected (exit code 1: it is not).",
        example: "zkcli counter add /counters/visits 1",
        exits: &[FAILED],
        ..Verb::PLAIN
    },
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    Barrier { path: String, what: BarrierTask },
    Queue { path: String, what: QueueTask },
    Counter { path: String, encoding: Encoding, what: CounterTask },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BarrierTask {
    Set,
    Remove,
    Wait { limit: Option<Duration> },
    Enter { members: usize, limit: Option<Duration>, program: Vec<String> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueTask {
    Put { data: Input, priority: u16, most: Option<usize>, work: bool },
    Take { limit: Option<Duration> },
    Poll,
    Peek,
    Len { work: bool },
    Work { limit: Option<Duration>, attempts: Option<u32>, program: Vec<String> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CounterTask {
    Get,
    Add(i64),
    Set(i64),
    CompareAndSet(i64, i64),
}

pub fn parse(name: &str, mut args: Args<'_>) -> Result<Task, ParseError> {
    let what = args.required("what to do")?;
    let path = args.path()?;
    let unknown = |args: &Args<'_>| args.wrong(&format!("{name} cannot {what}"));
    let task = match name {
        "barrier" => {
            let (limit, program) = (args.millis_of("t")?, args.program());
            let what = match what.as_str() {
                "set" => BarrierTask::Set,
                "remove" => BarrierTask::Remove,
                "wait" => BarrierTask::Wait { limit },
                "enter" => {
                    let members = args.number_of("n", "members")?.ok_or_else(|| args.wrong("-n members is missing"))?;
                    BarrierTask::Enter { members, limit, program }
                }
                _ => return Err(unknown(&args)),
            };
            Task::Barrier { path, what }
        }
        "queue" => {
            let (limit, work) = (args.millis_of("t")?, args.flag("w"));
            let what = match what.as_str() {
                "put" => {
                    let text = args.required("data")?;
                    QueueTask::Put {
                        data: args.input(&text, args.flag("b"))?,
                        priority: args.number_of("p", "priority")?.unwrap_or(PRIORITY_DEFAULT),
                        most: args.number_of("m", "items")?,
                        work,
                    }
                }
                "take" => QueueTask::Take { limit },
                "poll" => QueueTask::Poll,
                "peek" => QueueTask::Peek,
                "len" => QueueTask::Len { work },
                "work" => {
                    let program = args.program();
                    if program.is_empty() {
                        return Err(args.wrong("-- program is missing"));
                    }
                    QueueTask::Work { limit, attempts: args.number_of("a", "attempts")?, program }
                }
                _ => return Err(unknown(&args)),
            };
            Task::Queue { path, what }
        }
        _ => {
            let encoding = match args.value("e") {
                None | Some("text") => Encoding::Kazoo,
                Some("long") => Encoding::CuratorLong,
                Some("int") => Encoding::CuratorInt,
                Some(other) => return Err(args.wrong(&format!("no such encoding: {other}"))),
            };
            let mut number = || {
                let text = args.required("number")?;
                args.number::<i64>("number", &text)
            };
            let what = match what.as_str() {
                "get" => CounterTask::Get,
                "add" => CounterTask::Add(number()?),
                "set" => CounterTask::Set(number()?),
                "cas" => CounterTask::CompareAndSet(number()?, number()?),
                _ => return Err(unknown(&args)),
            };
            Task::Counter { path, encoding, what }
        }
    };
    args.end()?;
    Ok(task)
}

/// Does it.
///
/// # Errors
/// Why not; the program's exit code.
pub async fn run(runner: &Runner, task: Task) -> Result<(), Failure> {
    let client = runner.session()?;
    match task {
        Task::Barrier { path, what } => barrier(runner, &client, path, what).await,
        Task::Queue { path, what } => queue(runner, &client, path, what).await,
        Task::Counter { path, encoding, what } => {
            let counter = Counter::new(&client, path.clone()).encoding(encoding);
            let number = match what {
                CounterTask::Get => runner.ask(counter.get()).await?,
                CounterTask::Add(delta) => runner.ask(counter.add(delta)).await?.1,
                CounterTask::Set(number) => {
                    runner.ask(counter.set(number)).await?;
                    number
                }
                CounterTask::CompareAndSet(before, after) => {
                    match runner.ask(counter.compare_and_set(before, after)).await? {
                        true => after,
                        false => return Err(Failure::Exit(FAILED)),
                    }
                }
            };
            let value = json!({ "path": path, "number": number });
            runner.show(&Output::Line { text: format!("{number}\n"), value })
        }
    }
}

async fn barrier(runner: &Runner, client: &Client, path: String, what: BarrierTask) -> Result<(), Failure> {
    let single = Barrier::new(client, path.clone());
    match what {
        BarrierTask::Set => drop(runner.ask(single.set()).await?),
        BarrierTask::Remove => drop(runner.ask(single.remove()).await?),
        BarrierTask::Wait { limit: Some(limit) } => runner.or_interrupted(single.wait_timeout(limit)).await??,
        BarrierTask::Wait { limit: None } => runner.or_interrupted(single.wait()).await??,
        BarrierTask::Enter { members, limit, program } => {
            let double = DoubleBarrier::new(client, path, members)?.identity(own_identity());
            let inside = match limit {
                Some(limit) => runner.or_interrupted(double.enter_timeout(limit)).await??,
                None => runner.or_interrupted(double.enter()).await??,
            };
            let outcome = if program.is_empty() {
                Outcome::Exited(0)
            } else {
                let hold = inside.hold();
                let mut signals = runner.take_signals()?;
                let outcome = Child::start(&program, &[], None).await?.supervise(hold.as_ref(), &mut signals).await?;
                // One that was passed on to the program does not end the wait for the others.
                signals.has_come = false;
                runner.signals.set(Some(signals));
                outcome
            };
            if let Outcome::Killed(loss) = outcome {
                return Err(Failure::Lost(format!("our place was lost ({loss}): the program was killed")));
            }
            runner.or_interrupted(inside.leave()).await??;
            return code(outcome);
        }
    }
    runner.done(path)
}

/// The program's exit code as ours.
fn code(outcome: Outcome) -> Result<(), Failure> {
    match outcome {
        Outcome::Exited(0) => Ok(()),
        Outcome::Exited(code) => Err(Failure::Exit(code)),
        Outcome::Killed(loss) => Err(Failure::Lost(format!("lost ({loss}): the program was killed"))),
    }
}

async fn queue(runner: &Runner, client: &Client, path: String, what: QueueTask) -> Result<(), Failure> {
    let queue = Queue::new(client, path.clone());
    let work_queue = WorkQueue::new(client, path.clone());
    let none = Failure::Exit(FAILED);
    match what {
        QueueTask::Put { data, priority, most, work } => {
            let data = runner.input(data)?;
            match (work, most) {
                (true, Some(most)) => runner.ask(work_queue.max_items(most).put_all(priority, [data])).await?,
                (true, None) => runner.ask(work_queue.put_all(priority, [data])).await?,
                (false, Some(most)) => runner.ask(queue.max_items(most).put_with(priority, data)).await?,
                (false, None) => runner.ask(queue.put_with(priority, data)).await?,
            }
            runner.done(path)
        }
        QueueTask::Take { limit } => {
            let item = match limit {
                None => runner.or_interrupted(queue.take()).await??,
                Some(limit) => match runner.or_interrupted(tokio::time::timeout(limit, queue.take())).await? {
                    Ok(item) => item?,
                    Err(_) => {
                        return Err(Failure::Timeout(format!("{path}: no item within {} ms", limit.as_millis())));
                    }
                },
            };
            show_item(runner, &path, item)
        }
        QueueTask::Poll => show_item(runner, &path, runner.ask(queue.poll()).await?.ok_or(none)?),
        QueueTask::Peek => show_item(runner, &path, Some(runner.ask(queue.peek()).await?.ok_or(none)?)),
        QueueTask::Len { work } => {
            let count = if work { runner.ask(work_queue.len()).await? } else { runner.ask(queue.len()).await? };
            runner.show(&Output::Count { path, count: count as u64 })
        }
        QueueTask::Work { limit, attempts, program } => {
            let work_queue = match attempts {
                Some(attempts) => work_queue.max_attempts(attempts),
                None => work_queue,
            };
            let work = match limit {
                Some(limit) => runner.or_interrupted(work_queue.take_timeout(limit)).await??,
                None => runner.or_interrupted(work_queue.take()).await??,
            };
            let environment = [
                ("ZKCLI_ITEM_PATH", work.path().to_owned()),
                ("ZKCLI_ATTEMPTS", work.attempts().to_string()),
                ("ZKCLI_TOKEN", work.token().value().to_string()),
            ];
            let item = work.item().cloned().unwrap_or_default();
            let child = Child::start(&program, &environment, Some(item)).await?;
            let outcome = child.supervise(Some(&*work), &mut runner.take_signals()?).await?;
            match outcome {
                Outcome::Exited(0) => runner.or_interrupted(work.done()).await??,
                Outcome::Exited(_) => runner.or_interrupted(work.requeue()).await??,
                Outcome::Killed(_) => {}
            }
            code(outcome)
        }
    }
}

/// An item: its bytes and a line's end, in a pipe, too, where one item may follow the other; raw, the bytes alone.
fn show_item(runner: &Runner, path: &str, item: Option<Bytes>) -> Result<(), Failure> {
    let (data, encoding) = crate::print::data_json(item.as_deref());
    let bytes = item.unwrap_or_default();
    match runner.options.output {
        Format::Raw => runner.write(&Rendered { out: bytes.to_vec(), err: String::new() }),
        Format::Plain => runner.write(&Rendered { out: [&bytes[..], b"\n"].concat(), err: String::new() }),
        Format::Base64 => runner.show(&Output::Text(crate::print::base64(&bytes))),
        Format::Hex => runner.show(&Output::Text(crate::print::hex(&bytes))),
        Format::Json | Format::Yaml | Format::Table => {
            let value = json!({ "path": path, "data": data, "encoding": encoding });
            runner.show(&Output::Line { text: String::new(), value })
        }
    }
}
