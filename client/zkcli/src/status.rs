//! `status`: asks every server of the connect string for its `srvr` word, without a session: it works when nothing else
//! does.

use std::time::Duration;

use corral_client::{ServerId, TlsConnector};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::table as columns;

/// Longest answer that is read, in bytes; `srvr` has ten lines.
const ANSWER_MAX: u64 = 64 * 1024;

/// Asks all hosts at once; the answers come in their order.
pub async fn ask_all(hosts: &[String], tls: Option<&TlsConnector>, limit: Duration) -> Vec<ServerStatus> {
    futures::future::join_all(hosts.iter().map(|host| async move {
        match tokio::time::timeout(limit, ask(host, "srvr", tls)).await {
            Ok(Ok(answer)) => ServerStatus::from_srvr(host, &answer),
            Ok(Err(error)) => ServerStatus::silent(host, reason(&error)),
            Err(_) => ServerStatus::silent(host, format!("no answer within {} ms", limit.as_millis())),
        }
    }))
    .await
}

/// The address of the server with this id; `None`: none says so in time.
pub async fn address_of(hosts: &[String], tls: Option<&TlsConnector>, id: ServerId, limit: Duration) -> Option<String> {
    let wanted = format!("serverId={}", id.0);
    let asked = hosts.iter().map(|host| async {
        match tokio::time::timeout(limit, ask(host, "conf", tls)).await {
            Ok(Ok(answer)) => answer.lines().any(|line| line.trim() == wanted),
            _ => false,
        }
    });
    let found = futures::future::join_all(asked).await;
    hosts.iter().zip(found).find(|(_, is_it)| *is_it).map(|(host, _)| host.clone())
}

async fn ask(host: &str, word: &str, tls: Option<&TlsConnector>) -> std::io::Result<String> {
    match tls {
        None => ask_word(TcpStream::connect(host).await?, word).await,
        Some(tls) => ask_word(tls.connect(host).await?, word).await,
    }
}

async fn ask_word(mut stream: impl AsyncRead + AsyncWrite + Unpin, word: &str) -> std::io::Result<String> {
    stream.write_all(word.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The system's reason without its number.
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// What one server answered to `srvr`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerStatus {
    /// `host:port` as in the connect string.
    pub host: String,
    /// `leader`, `follower`, `observer`, `standalone`, `read-only`; `None`: it does not serve.
    pub mode: Option<String>,
    /// Last zxid it applied, as it prints it.
    pub zxid: Option<String>,
    /// Open client connections.
    pub connections: Option<u64>,
    /// Znodes.
    pub nodes: Option<u64>,
    /// Why it does not serve.
    pub reason: Option<String>,
}

impl ServerStatus {
    /// Reads the answer of `srvr`; anything that names no mode is taken as the reason for not serving.
    pub fn from_srvr(host: &str, answer: &str) -> ServerStatus {
        let field = |name: &str| {
            answer
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(|text| text.trim().to_owned())
        };
        let mode = field("Mode");
        let reason = match &mode {
            Some(_) => None,
            None if answer.trim().is_empty() => Some("it closed the connection without an answer".to_owned()),
            None => Some(answer.trim().lines().map(str::trim).collect::<Vec<_>>().join("; ")),
        };
        ServerStatus {
            host: host.to_owned(),
            zxid: field("Zxid"),
            connections: field("Connections").and_then(|text| text.parse().ok()),
            nodes: field("Node count").and_then(|text| text.parse().ok()),
            mode,
            reason,
        }
    }

    /// A server that gave no answer.
    pub fn silent(host: &str, reason: impl Into<String>) -> ServerStatus {
        ServerStatus { host: host.to_owned(), reason: Some(reason.into()), ..ServerStatus::default() }
    }

    /// As a document.
    pub fn json(&self) -> Value {
        json!({
            "host": self.host,
            "mode": self.mode,
            "zxid": self.zxid,
            "connections": self.connections,
            "nodes": self.nodes,
            "reason": self.reason,
        })
    }
}

/// Columns padded with blanks, no frame: it can be cut with awk.
pub fn table(servers: &[ServerStatus]) -> String {
    let number = |n: Option<u64>| n.map_or("-".to_owned(), |n| n.to_string());
    let rows: Vec<Vec<String>> = servers
        .iter()
        .map(|s| {
            vec![
                s.host.clone(),
                s.mode.clone().unwrap_or_else(|| "-".to_owned()),
                s.zxid.clone().unwrap_or_else(|| "-".to_owned()),
                number(s.connections),
                number(s.nodes),
                s.reason.as_ref().map(|reason| format!("not serving: {reason}")).unwrap_or_default(),
            ]
        })
        .collect();
    columns::padded(&["HOST", "MODE", "ZXID", "CONNECTIONS", "NODES", ""], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_shows_who_serves_and_why_others_do_not() {
        let serving = ServerStatus::from_srvr(
            "a:2181",
            "Zookeeper version: 3.9.2-x, built on 2024-02-12 20:59 UTC\nLatency min/avg/max: 0/0.3/12\nReceived: 85\n\
             Sent: 91\nConnections: 2\nOutstanding: 0\nZxid: 0x36\nMode: leader\nNode count: 29\n",
        );
        assert_eq!(serving.mode.as_deref(), Some("leader"));
        assert_eq!((serving.connections, serving.nodes, serving.reason.as_deref()), (Some(2), Some(29), None));
        let waiting = ServerStatus::from_srvr("b:2181", "This ZooKeeper instance is not currently serving requests\n");
        assert_eq!(waiting.reason.as_deref(), Some("This ZooKeeper instance is not currently serving requests"));
        let table = table(&[serving, waiting, ServerStatus::silent("c:2181", "connection refused")]);
        assert_eq!(
            table,
            "HOST    MODE    ZXID  CONNECTIONS  NODES\n\
             a:2181  leader  0x36  2            29\n\
             b:2181  -       -     -            -      not serving: This ZooKeeper instance is not currently serving requests\n\
             c:2181  -       -     -            -      not serving: connection refused\n"
        );
        assert_eq!(
            ServerStatus::from_srvr("d:1", "").reason.as_deref(),
            Some("it closed the connection without an answer")
        );
    }
}
