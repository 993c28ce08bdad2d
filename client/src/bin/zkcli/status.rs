//! `status`: asks every server of the connect string for its `srvr` word, without a session: it works when nothing else
//! does.

use std::time::Duration;

use corral_client::TlsConnector;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::print::ServerStatus;

/// Longest answer that is read, in bytes; `srvr` has ten lines.
const ANSWER_MAX: u64 = 64 * 1024;

/// Asks all hosts at once; the answers come in their order.
pub async fn ask_all(hosts: &[String], tls: Option<&TlsConnector>, limit: Duration) -> Vec<ServerStatus> {
    futures::future::join_all(hosts.iter().map(|host| async move {
        match tokio::time::timeout(limit, ask(host, tls)).await {
            Ok(Ok(answer)) => ServerStatus::from_srvr(host, &answer),
            Ok(Err(error)) => ServerStatus::silent(host, reason(&error)),
            Err(_) => ServerStatus::silent(host, format!("no answer within {} ms", limit.as_millis())),
        }
    }))
    .await
}

async fn ask(host: &str, tls: Option<&TlsConnector>) -> std::io::Result<String> {
    match tls {
        None => ask_srvr(TcpStream::connect(host).await?).await,
        Some(tls) => ask_srvr(tls.connect(host).await?).await,
    }
}

async fn ask_srvr(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<String> {
    stream.write_all(b"srvr").await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The system's reason without its number.
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}
