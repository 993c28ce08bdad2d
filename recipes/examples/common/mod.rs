//! What the examples share: how they connect, and how they live through sessions that end.

#![allow(dead_code, reason = "each example uses its own part")]

use std::process::ExitCode;
use std::time::Duration;

use corral_client::{Client, Consistency, CreateMode, Error as ClientError, ErrorCode};
use corral_recipes::Error;
use tokio::sync::watch;

/// Pause before a new session is begun after one has ended.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// Where the ensemble is, and where in its tree everything is kept.
#[derive(clap::Args, Clone, Debug)]
pub struct Ensemble {
    /// Servers: host:port[,host:port...][/chroot].
    #[arg(long, global = true, default_value = "localhost:2181", env = "CORRAL_SERVER")]
    pub server: String,
    /// Session timeout asked for, in ms.
    #[arg(long, global = true, default_value_t = 6_000)]
    pub session_timeout_ms: u64,
}

impl Ensemble {
    /// Begins a session.
    ///
    /// # Errors
    /// No server could be reached.
    pub async fn connect(&self) -> Result<Client, ClientError> {
        let timeout = Duration::from_millis(self.session_timeout_ms);
        Client::builder(self.server.clone()).session_timeout(timeout).connect().await
    }
}

/// Log lines go to stderr; stdout is for what the example says.
pub fn begin() {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
}

/// The exit code of an example, with its error in words.
pub fn end(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Becomes true at Ctrl-C.
pub fn stopped() -> watch::Receiver<bool> {
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.send_replace(true);
        }
        // Tasks may still look: the channel stays open until they are done.
        stop.closed().await;
    });
    stopped
}

/// Waits until Ctrl-C.
pub async fn until_stopped(mut stopped: watch::Receiver<bool>) {
    if stopped.wait_for(|stop| *stop).await.is_err() {
        // Nobody can ask any more.
        std::future::pending::<()>().await;
    }
}

/// One part of a program: a session after the other, until the work is done or Ctrl-C. A new session begins from what is in
/// the tree, and from nothing else.
pub async fn sessions<F>(ensemble: Ensemble, name: String, stopped: watch::Receiver<bool>, work: impl Fn(Client) -> F)
where
    F: Future<Output = Result<(), Error>>,
{
    loop {
        let session = async {
            let client = ensemble.connect().await?;
            work(client.clone()).await?;
            client.close().await?;
            Ok::<_, Error>(())
        };
        let result = tokio::select! {
            biased;
            // Dropped like this, the work leaves no contender behind: the last handle of the client closes the session.
            () = until_stopped(stopped.clone()) => Ok(()),
            result = session => result,
        };
        match result {
            Ok(()) => {
                println!("{name} stops");
                return;
            }
            Err(error) => eprintln!("{name}: {error}; connecting again"),
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

/// Creates a znode unless it is there.
///
/// # Errors
/// Any other refusal, and the end of the session.
pub async fn ensure(client: &Client, path: &str, data: &str) -> Result<(), Error> {
    match client.create(path, data, CreateMode::Persistent).await {
        Err(error) if error.code() != Some(ErrorCode::NodeExists) => Err(error.into()),
        _ => Ok(()),
    }
}

/// A number in the tree as of now, and the version of its znode.
///
/// # Errors
/// There is no such znode; the end of the session.
pub async fn number(client: &Client, path: &str) -> Result<(u64, i32), Error> {
    let node = client.read(Consistency::Linearizable).get(path).await?;
    Ok((String::from_utf8_lossy(node.bytes()).parse().unwrap_or(0), node.stat.version))
}

/// Waits until a number in the tree has come so far.
///
/// # Errors
/// There is no such znode; the end of the session.
pub async fn number_reaches(client: &Client, path: &str, wanted: u64) -> Result<(), Error> {
    loop {
        let (node, changed) = client.read(Consistency::Linearizable).get_and_watch(path).await?;
        if String::from_utf8_lossy(node.bytes()).parse().is_ok_and(|number: u64| number >= wanted) {
            return Ok(());
        }
        changed.await?;
    }
}

/// Data and zxid of the creation of every child of a directory, first created first.
///
/// # Errors
/// The end of the session.
pub async fn children(client: &Client, directory: &str) -> Result<Vec<(String, String)>, ClientError> {
    /// Children that are asked for at the same time.
    const READS_IN_FLIGHT: usize = 256;
    let names = match client.read(Consistency::Linearizable).get_children(directory).await {
        Err(error) if error.code() == Some(ErrorCode::NoNode) => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::with_capacity(names.len());
    for some in names.chunks(READS_IN_FLIGHT) {
        let asked: Vec<_> = some.iter().map(|name| client.get(&format!("{directory}/{name}"))).collect();
        for (name, node) in some.iter().zip(asked) {
            let node = node.await?;
            found.push((node.stat.czxid, name.clone(), String::from_utf8_lossy(node.bytes()).into_owned()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, name, text)| (name, text)).collect())
}
