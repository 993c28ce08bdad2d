//! A small HTTP server for operators: few connections, small requests, answers from memory. HTTP/1 by hyper.
//!
//! It stands on a port of its own that anybody may find, so everything is bounded: connections (more wait to be
//! accepted), the head of a request, the time a connection may take in all, whatever it does. Bodies are not read.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections served at once, on one port.
const CONNECTIONS_MAX: usize = 32;

/// Bytes of a request's head, and of what is read ahead: the smallest that hyper takes.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Headers of a request.
const HEADERS_MAX: usize = 64;

/// A connection is closed after so long, in the middle of an answer that is not taken, too. Scrapers connect again.
const CONNECTION_LIFE: Duration = Duration::from_secs(120);

/// Pause after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// `None`: not said, as ZooKeeper does for its list of commands.
    pub content_type: Option<&'static str>,
    /// The body.
    pub body: String,
}

impl Answer {
    /// Nothing is there.
    pub fn not_found() -> Answer {
        Answer {
            status: StatusCode::NOT_FOUND,
            content_type: Some("text/plain; charset=utf-8"),
            body: "not found\n".into(),
        }
    }
}

/// Answers the path and query of a GET.
pub trait Site: Send + Sync + 'static {
    /// The answer. Only GET and HEAD come here.
    fn get(&self, path: &str, query: Option<&str>) -> impl Future<Output = Answer> + Send;
}

/// Opens a port.
///
/// # Errors
/// As the operating system's; a name that cannot be resolved.
pub async fn bind(host: &str, port: u16) -> io::Result<TcpListener> {
    let address: SocketAddr =
        tokio::net::lookup_host((host, port)).await?.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
    super::listen::bind(address, None)
}

/// Serves a site until `stop`. `idle`: a client that shows no complete head for so long is cut off.
pub async fn serve(listener: TcpListener, site: Arc<impl Site>, idle: Duration, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tasks = TaskTracker::new();
    let mut failing = false;
    let accept = async {
        loop {
            let place = places.clone().acquire_owned().await.expect("never closed");
            match listener.accept().await {
                Ok((stream, remote)) => {
                    failing = false;
                    let (site, stop) = (site.clone(), stop.clone());
                    tasks.spawn(async move {
                        let _place = place;
                        tokio::select! {
                            biased;
                            () = stop.cancelled() => {}
                            () = connection(stream, remote, site, idle) => {}
                        }
                    });
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "cannot accept operators' connections, trying on");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = accept => {}
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

async fn connection(stream: TcpStream, remote: SocketAddr, site: Arc<impl Site>, idle: Duration) {
    // A failure shows on use.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let site = site.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(&*site, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(idle).max_buf_size(HEAD_BYTES_MAX).max_headers(HEADERS_MAX);
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_LIFE, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%remote, %error, "operator's connection ended"),
        Err(_) => tracing::debug!(%remote, "operator's connection was open for too long"),
    }
}

async fn answer(site: &impl Site, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let answer = if matches!(*request.method(), Method::GET | Method::HEAD) {
        site.get(request.uri().path(), request.uri().query()).await
    } else {
        Answer { status: StatusCode::METHOD_NOT_ALLOWED, ..Answer::not_found() }
    };
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    if let Some(content_type) = answer.content_type {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    if answer.status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const WAIT: Duration = Duration::from_secs(20);

    struct Echo;

    impl Site for Echo {
        async fn get(&self, path: &str, query: Option<&str>) -> Answer {
            Answer { status: StatusCode::OK, content_type: None, body: format!("{path} {}", query.unwrap_or("-")) }
        }
    }

    struct Rig {
        address: SocketAddr,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    async fn start(idle: Duration) -> Rig {
        let listener = bind("127.0.0.1", 0).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, Arc::new(Echo), idle, stop.clone()));
        Rig { address, stop, task }
    }

    async fn exchange(rig: &Rig, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut text = String::new();
        // A connection that is cut off may be reset.
        let _ = timeout(WAIT, stream.read_to_string(&mut text)).await.expect("an end");
        text
    }

    #[tokio::test]
    async fn get_is_answered_and_other_methods_are_refused() {
        let rig = start(WAIT).await;
        let text = exchange(&rig, b"GET /a/b?c=d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\n/a/b c=d"), "{text}");
        let text = exchange(&rig, b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\n"), "{text}");
        let post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
        let text = exchange(&rig, post).await;
        assert!(text.starts_with("HTTP/1.1 405 ") && text.to_lowercase().contains("allow: get, head"), "{text}");
    }

    #[tokio::test]
    async fn what_is_no_request_or_too_large_is_cut_off() {
        let rig = start(WAIT).await;
        assert!(exchange(&rig, b"\x16\x03\x01 nothing\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
        let long = [b"GET /".as_slice(), &vec![b'a'; 4 * HEAD_BYTES_MAX], b" HTTP/1.1\r\n\r\n"].concat();
        let text = exchange(&rig, &long).await;
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{text}");
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_or_stops_in_the_middle_is_cut_off() {
        let rig = start(Duration::from_millis(30)).await;
        assert_eq!(exchange(&rig, b"").await, "");
        exchange(&rig, b"GET / HTTP/1.1\r\nHo").await;
        let text = exchange(&rig, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "one answer, then nothing more was asked: {text}");
    }

    #[tokio::test]
    async fn more_connections_than_there_are_places_wait_for_one() {
        let rig = start(WAIT).await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            silent.push(TcpStream::connect(rig.address).await.unwrap());
        }
        let request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let mut waiting = TcpStream::connect(rig.address).await.unwrap();
        waiting.write_all(request).await.unwrap();
        // Accepted in order: the one that waits is served once a place is free, and only then.
        drop(silent.pop());
        let mut text = String::new();
        timeout(WAIT, waiting.read_to_string(&mut text)).await.unwrap().unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    }

    #[tokio::test]
    async fn stopping_ends_every_connection() {
        let rig = start(WAIT).await;
        let mut silent = TcpStream::connect(rig.address).await.unwrap();
        rig.stop.cancel();
        timeout(WAIT, rig.task).await.unwrap().unwrap();
        let mut rest = Vec::new();
        let _ = timeout(WAIT, silent.read_to_end(&mut rest)).await.expect("an end");
        assert!(rest.is_empty());
        assert!(TcpStream::connect(rig.address).await.is_err());
    }
}
