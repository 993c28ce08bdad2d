//! The task of a client: finds a server, keeps a stream to it, and carries between the two and the session machine.
//!
//! Everything that is decided is decided in [`crate::session`]; here are sockets and timers.

mod convert;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use corral_proto::pb::client as pb;
use corral_proto::pb::client::corral_client::CorralClient;
use corral_proto::{ServerId, SessionId, Zxid};
use futures::FutureExt;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

use crate::ambient;
use crate::error::EndReason;
use crate::hosts::Tries;
use crate::session::{Attached, Hello, Phase, Pulse};
use crate::shared::{Network, Shared};

/// The largest message taken from a server: the names of some million children.
const REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Messages between the session and the HTTP/2 connection. Few: what waits here could have grown in the queue, into one
/// larger batch.
const OUTBOUND_MESSAGES: usize = 2;
/// HTTP/2 windows, in bytes: of the stream and of the connection that holds nothing else.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// Shortest and longest wait for a server to accept a connection.
const DIAL_MIN: Duration = Duration::from_millis(200);
const DIAL_MAX: Duration = Duration::from_secs(2);
/// Shortest and longest wait for a server to take a session: it may have to wait for a leader.
const ATTACH_MIN: Duration = Duration::from_secs(1);
const ATTACH_MAX: Duration = Duration::from_secs(10);
/// Connections in a row that may end by a protocol error without one answer between them.
const STRIKES_MAX: u32 = 3;

/// A stream that a server has accepted.
struct Link {
    outbound: mpsc::Sender<pb::ClientMessage>,
    inbound: Inbound,
    attached: Attached,
    /// When it was asked to.
    asked: Duration,
}

/// What comes from a server.
enum Inbound {
    Http(Box<Streaming<pb::ServerMessage>>),
    Other(mpsc::Receiver<pb::ServerMessage>),
}

impl Inbound {
    /// The next message; `None`: the server ended the stream. Cancel safe.
    async fn message(&mut self) -> Result<Option<pb::ServerMessage>, Cut> {
        match self {
            Inbound::Http(stream) => stream.message().await.map_err(|status| broken(&status)),
            Inbound::Other(stream) => Ok(stream.recv().await),
        }
    }
}

/// Why there is no connection, or none any more.
#[derive(Debug)]
enum Cut {
    /// Could not be reached, or the stream broke.
    Broken(String),
    /// The server said why.
    Closed(pb::closed::Reason, String),
    /// It was silent for too long.
    Silent,
    /// It broke the rules.
    Violation(String),
    /// The session is over.
    Ended,
}

/// Runs until the session is over.
pub(crate) async fn run(shared: Arc<Shared>) {
    // Also when the runtime drops this task: nobody must wait for ever.
    struct Stop(Arc<Shared>);
    impl Drop for Stop {
        fn drop(&mut self) {
            self.0.end(EndReason::Stopped);
        }
    }
    let stop = Stop(shared);
    let shared = &stop.0;
    tokio::select! {
        biased;
        () = connect_again_and_again(shared) => {}
        () = shared.given_up() => shared.end(EndReason::Closed),
    }
}

async fn connect_again_and_again(shared: &Arc<Shared>) {
    let mut tries = shared.hosts.tries();
    let mut strikes = 0;
    loop {
        let (server, pause) = tries.next();
        ambient::sleep(pause).await;
        let server = &shared.hosts.servers[server];
        let answers = shared.look(|session| session.answers());
        let session = async { serve(shared, open(shared, server).await?).await };
        let Err(cut) = session.await;
        shared.with(|session, out| session.on_disconnected(out));
        if shared.look(|session| session.answers()) > answers {
            strikes = 0;
            tries.succeeded();
        }
        match cut {
            Cut::Ended => return,
            Cut::Broken(text) => shared.note_failure(format!("{server}: {text}")),
            Cut::Silent => shared.note_failure(format!("{server}: silent for too long")),
            Cut::Violation(text) => strike(shared, server, &mut tries, &mut strikes, text),
            Cut::Closed(reason, text) => on_closed(shared, server, &mut tries, &mut strikes, reason, text),
        }
        if shared.look(|session| matches!(session.phase(), Phase::Ended(_))) {
            return;
        }
    }
}

fn on_closed(
    shared: &Arc<Shared>,
    server: &str,
    tries: &mut Tries,
    strikes: &mut u32,
    reason: pb::closed::Reason,
    text: String,
) {
    use pb::closed::Reason;
    let what = match reason {
        Reason::SessionExpired => {
            shared.end(EndReason::Expired);
            return;
        }
        Reason::ClosedByClient => {
            // Its answer was lost, its effect was not.
            shared.end(EndReason::Closed);
            return;
        }
        Reason::Protocol => {
            strike(shared, server, tries, strikes, text);
            return;
        }
        Reason::SessionMoved => {
            // A late handshake of ours, or somebody who shares the session: not a contest to win by speed.
            tries.hold_back();
            "another connection took the session over"
        }
        Reason::NoQuorum => "no quorum",
        Reason::Behind => "has not seen yet what this client saw",
        Reason::SlowReader => "this client reads too slowly",
        Reason::ShuttingDown => "shutting down",
        Reason::AuthFailed => "authentication failed",
        Reason::AuthRequired => {
            // Trying again would only ask for the same without the same.
            shared.end(EndReason::AuthRequired { text });
            return;
        }
        Reason::Unknown => "closed the connection",
    };
    shared.note_failure(if text.is_empty() {
        format!("{server}: {what}")
    } else {
        format!("{server}: {what}: {text}")
    });
}

fn strike(shared: &Arc<Shared>, server: &str, tries: &mut Tries, strikes: &mut u32, text: String) {
    *strikes += 1;
    tries.hold_back();
    tracing::warn!(server, %text, "protocol error");
    if *strikes >= STRIKES_MAX {
        shared.end(EndReason::Protocol { text: text.clone() });
    }
    shared.note_failure(format!("{server}: {text}"));
}

/// Dials a server and asks it to take the session.
async fn open(shared: &Arc<Shared>, server: &str) -> Result<Link, Cut> {
    let hello = shared.look(|session| session.hello());
    let patience = hello.timeout * 2 / 3;
    let dial = (patience / (1 + shared.hosts.servers.len() as u32)).clamp(DIAL_MIN, DIAL_MAX);
    let tls = match &shared.network {
        Network::Other(transport) => {
            let wire = transport.open(server).map_err(|error| Cut::Broken(error.to_string()))?;
            let begin = std::future::ready(Ok(Inbound::Other(wire.inbound)));
            return attach(shared, patience, wire.outbound, begin, hello).await;
        }
        Network::Plain => None,
        Network::Tls(tls) => Some(tls.clone()),
    };
    let endpoint = Endpoint::from_shared(format!("http://{server}"))
        .map_err(|error| Cut::Broken(describe(&error)))?
        .connect_timeout(dial)
        .tcp_nodelay(true)
        .http2_adaptive_window(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let connecting = async {
        let Some(tls) = tls else { return endpoint.connect().await };
        let server = server.to_owned();
        let connect = tower::service_fn(move |_: tonic::transport::Uri| {
            let (tls, server) = (tls.clone(), server.clone());
            async move { tls.connect(&server).await.map(TokioIo::new) }
        });
        endpoint.connect_with_connector(connect).await
    };
    let channel = match ambient::timeout(dial, connecting).await {
        Ok(channel) => channel.map_err(|error| Cut::Broken(describe(&error)))?,
        Err(_) => return Err(Cut::Broken(format!("no connection within {} ms", dial.as_millis()))),
    };
    let (outbound, requests) = mpsc::channel(OUTBOUND_MESSAGES);
    let begin = async {
        let mut client = CorralClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX);
        let response = client.session(ReceiverStream::new(requests)).await.map_err(|status| broken(&status))?;
        Ok(Inbound::Http(Box::new(response.into_inner())))
    };
    attach(shared, patience, outbound, begin, hello).await
}

/// Has the server take the session.
async fn attach(
    shared: &Arc<Shared>,
    patience: Duration,
    outbound: mpsc::Sender<pb::ClientMessage>,
    begin: impl Future<Output = Result<Inbound, Cut>>,
    hello: Hello,
) -> Result<Link, Cut> {
    let limit = patience.clamp(ATTACH_MIN, ATTACH_MAX);
    match ambient::timeout(limit, handshake(shared, outbound, begin, hello)).await {
        Ok(link) => link,
        Err(_) => Err(Cut::Broken(format!("no session within {} ms", limit.as_millis()))),
    }
}

async fn handshake(
    shared: &Arc<Shared>,
    outbound: mpsc::Sender<pb::ClientMessage>,
    begin: impl Future<Output = Result<Inbound, Cut>>,
    hello: Hello,
) -> Result<Link, Cut> {
    let connect = pb::Connect {
        session: hello.session.0,
        password: hello.password,
        timeout_ms: u32::try_from(hello.timeout.as_millis()).unwrap_or(u32::MAX),
        last_zxid_seen: hello.last_zxid.0,
    };
    let asked = shared.now();
    let first = pb::ClientMessage { message: Some(pb::client_message::Message::Connect(connect)) };
    outbound.try_send(first).map_err(|_| Cut::Broken("the connection ended before its first message".to_owned()))?;
    let mut inbound = begin.await?;
    match inbound.message().await?.and_then(|message| message.message) {
        Some(pb::server_message::Message::Connected(connected)) => {
            let attached = Attached {
                session: SessionId(connected.session),
                password: connected.password,
                timeout: Duration::from_millis(u64::from(connected.timeout_ms)),
                server: ServerId(connected.server),
                last_n: connected.last_n,
                request_bytes_max: usize::try_from(connected.request_bytes_max).unwrap_or(usize::MAX),
            };
            Ok(Link { outbound, inbound, attached, asked })
        }
        Some(pb::server_message::Message::Closed(closed)) => Err(Cut::Closed(closed.reason(), closed.text)),
        Some(pb::server_message::Message::Replies(_)) => {
            Err(Cut::Violation("replies came before the handshake was answered".to_owned()))
        }
        None => Err(Cut::Broken("the stream ended in the handshake".to_owned())),
    }
}

/// Carries until the connection ends.
async fn serve(shared: &Arc<Shared>, link: Link) -> Result<Infallible, Cut> {
    let Link { outbound, mut inbound, attached, asked } = link;
    let now = shared.now();
    if let Err(text) = shared.with(|session, out| session.on_connected(now, asked, attached, out)) {
        return Err(Cut::Violation(text));
    }
    loop {
        let (can_send, ended, next_tick) = shared
            .look(|session| (session.can_send(), matches!(session.phase(), Phase::Ended(_)), session.next_tick()));
        if ended {
            return Err(Cut::Ended);
        }
        tokio::select! {
            // None keeps another from its turn: ticks are rare, and what goes out ends with the window of requests.
            biased;
            () = ambient::sleep_until(shared.instant(next_tick)) => {
                let now = shared.now();
                if shared.with(|session, _| session.on_tick(now)) == Pulse::Dead {
                    // Who stood still himself finds here what came meanwhile: it was a silence only if nothing did.
                    match inbound.message().now_or_never() {
                        None => return Err(Cut::Silent),
                        Some(message) => on_inbound(shared, message)?,
                    }
                }
            }
            permit = outbound.reserve(), if can_send => match permit {
                Ok(permit) => {
                    let now = shared.now();
                    let mut requests = Vec::new();
                    shared.with(|session, _| {
                        session.take_batch(now, |outbound| requests.push(convert::request(&outbound)));
                    });
                    shared.on_room();
                    if !requests.is_empty() {
                        let batch = pb::client_message::Message::Requests(pb::RequestBatch { requests });
                        permit.send(pb::ClientMessage { message: Some(batch) });
                    }
                }
                // The HTTP/2 side dropped its end: the inbound side says why.
                Err(_) => {
                    on_inbound(shared, inbound.message().await)?;
                    return Err(Cut::Broken("the stream was reset".to_owned()));
                }
            },
            () = shared.wake.notified(), if !can_send => {}
            message = inbound.message() => on_inbound(shared, message)?,
        }
    }
}

/// What came, or why nothing more will.
fn on_inbound(shared: &Arc<Shared>, message: Result<Option<pb::ServerMessage>, Cut>) -> Result<(), Cut> {
    match message? {
        Some(message) => on_message(shared, message),
        None => Err(Cut::Broken("the server ended the stream".to_owned())),
    }
}

fn on_message(shared: &Arc<Shared>, message: pb::ServerMessage) -> Result<(), Cut> {
    let replies = match message.message {
        Some(pb::server_message::Message::Replies(batch)) => batch.replies,
        Some(pb::server_message::Message::Closed(closed)) => return Err(Cut::Closed(closed.reason(), closed.text)),
        Some(pb::server_message::Message::Connected(_)) => {
            return Err(Cut::Violation("the handshake was answered twice".to_owned()));
        }
        // A kind of message that this version does not know.
        None => return Ok(()),
    };
    let now = shared.now();
    shared.with(|session, out| {
        for reply in replies {
            match reply.kind {
                Some(pb::reply::Kind::Answer(answer)) => {
                    let (id, zxid, result) = convert::answer(answer).map_err(Cut::Violation)?;
                    session.on_answer(now, id, zxid, result, out).map_err(Cut::Violation)?;
                }
                Some(pb::reply::Kind::Event(event)) => {
                    if let Some(event) = convert::event(event) {
                        session.on_event(now, event, out);
                    }
                }
                Some(pb::reply::Kind::FeedChanges(changes)) => {
                    let (name, zxid, events) = convert::changes(changes).map_err(Cut::Violation)?;
                    session.on_changes(now, name, zxid, events, out);
                }
                Some(pb::reply::Kind::FeedBookmark(bookmark)) => {
                    session.on_bookmark(now, bookmark.watch, Zxid(bookmark.zxid), out);
                }
                Some(pb::reply::Kind::FeedGap(gap)) => {
                    session.on_gap(now, gap.watch, Zxid(gap.after), Zxid(gap.resync), out);
                }
                None => {}
            }
        }
        Ok(())
    })
}

fn broken(status: &tonic::Status) -> Cut {
    let mut text = format!("{}: {}", status.code(), status.message());
    // Why a TLS server hung up stands only there.
    if let Some(cause) = std::error::Error::source(status) {
        text = format!("{text}: {}", describe(cause));
    }
    Cut::Broken(text)
}

/// An error with its causes: tonic's own text says only "transport error".
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
