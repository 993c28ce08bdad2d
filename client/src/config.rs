//! Settings of a client.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::ambient;
use crate::client::Client;
use crate::error::Error;
use crate::hosts::Hosts;
use crate::shared::{Network, Shared};
use crate::tls::TlsOptions;
use crate::transport::Transport;

/// Session timeout asked for when the program names none.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long [`Builder::connect`] tries when the program names no limit.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings for a [`Client`]. Begun by [`Client::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    connect_string: String,
    session_timeout: Duration,
    connect_timeout: Duration,
    lease_margin: Option<Duration>,
    auth: Vec<(String, Bytes)>,
    tls: Option<TlsOptions>,
    transport: Option<Arc<dyn Transport>>,
    seed: Option<u64>,
}

impl Builder {
    pub(crate) fn new(connect_string: String) -> Builder {
        Builder {
            connect_string,
            session_timeout: SESSION_TIMEOUT,
            connect_timeout: CONNECT_TIMEOUT,
            lease_margin: None,
            auth: Vec::new(),
            tls: None,
            transport: None,
            seed: None,
        }
    }

    /// Asks for this session timeout (default 10 s, whole milliseconds); the ensemble clamps it to its own bounds.
    pub fn session_timeout(mut self, timeout: Duration) -> Builder {
        self.session_timeout = timeout;
        self
    }

    /// How long [`connect`](Builder::connect) tries before it fails (default 10 s).
    pub fn connect_timeout(mut self, timeout: Duration) -> Builder {
        self.connect_timeout = timeout;
        self
    }

    /// By how much [`Lease::valid_until`](crate::Lease::valid_until) stays before the time at which the ensemble could
    /// end the session. Default: 55 % of the negotiated timeout: a server that is cut off from its leader answers pings for
    /// up to syncTimeout, at most half of any session timeout, and the leader hears of none of them. Differences of
    /// clock *speed* are far below it.
    pub fn lease_margin(mut self, margin: Duration) -> Builder {
        self.lease_margin = Some(margin);
        self
    }

    /// Proves an identity before the first request, and on every connection: `("digest", "user:password")`.
    pub fn auth(mut self, scheme: impl Into<String>, auth: impl Into<Bytes>) -> Builder {
        self.auth.push((scheme.into(), auth.into()));
        self
    }

    /// Speaks TLS to every server of the connect string.
    pub fn tls(mut self, tls: TlsOptions) -> Builder {
        self.tls = Some(tls);
        self
    }

    /// Reaches servers by this and not over the network; what was said of TLS does not count then.
    pub fn transport(mut self, transport: Arc<dyn Transport>) -> Builder {
        self.transport = Some(transport);
        self
    }

    /// The order in which servers are tried is drawn from this number. Default: another one for each client, so that
    /// clients spread over the servers.
    pub fn shuffle_seed(mut self, seed: u64) -> Builder {
        self.seed = Some(seed);
        self
    }

    /// Connects, and returns once a session is established.
    ///
    /// # Errors
    /// [`Error::ConnectString`]; [`Error::Tls`]; [`Error::NoConnection`] if no server accepted a session within the connect timeout;
    /// [`Error::SessionEnded`] if an identity was refused.
    pub async fn connect(self) -> Result<Client, Error> {
        let seed = self.seed.unwrap_or_else(ambient::random);
        let hosts = Hosts::parse(&self.connect_string, seed)?;
        let proves_identity = !self.auth.is_empty();
        let network = match (self.transport, &self.tls) {
            (Some(transport), _) => Network::Other(transport),
            (None, Some(tls)) => Network::Tls(tls.connector()?),
            (None, None) => Network::Plain,
        };
        let shared = Shared::start(hosts, network, self.session_timeout, self.lease_margin, self.auth);
        let client = Client::from_shared(shared.clone());
        shared.wait_connected(self.connect_timeout).await?;
        if proves_identity {
            // Identities are proven before anything else is answered: a refusal shows here, and not in some later call.
            client.whoami().await?;
        }
        Ok(client)
    }
}
