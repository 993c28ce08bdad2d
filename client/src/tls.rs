//! TLS to the servers: which authority is believed, and what this client shows of itself.

use std::io;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::error::Error;

/// What gRPC runs over.
const ALPN_HTTP2: &[u8] = b"h2";

/// Settings of TLS, for [`Builder::tls`](crate::Builder::tls). All texts are PEM.
#[derive(Clone)]
pub struct TlsOptions {
    ca: Vec<u8>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
    server_name: Option<String>,
}

impl std::fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsOptions")
            .field("shows_certificate", &self.identity.is_some())
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

impl TlsOptions {
    /// Believes servers whose certificates come from one of these authorities, and from no other: the system's are not
    /// asked.
    pub fn new(ca: impl Into<Vec<u8>>) -> TlsOptions {
        TlsOptions { ca: ca.into(), identity: None, server_name: None }
    }

    /// Shows this certificate (with those between it and the authority's behind it) where a server asks for one.
    pub fn identity(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> TlsOptions {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// Expects this name or address in every server's certificate, in place of the one in the connect string.
    pub fn server_name(mut self, name: impl Into<String>) -> TlsOptions {
        self.server_name = Some(name.into());
        self
    }

    /// Reads the texts.
    ///
    /// # Errors
    /// [`Error::Tls`] says which text is wrong.
    pub fn connector(&self) -> Result<TlsConnector, Error> {
        let wrong = |reason: String| Error::Tls { reason };
        let mut roots = RootCertStore::empty();
        for certificate in certificates("the authority's file", &self.ca)? {
            roots.add(certificate).map_err(|error| wrong(format!("the authority's certificate: {error}")))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(error.to_string()))?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates("the certificate's file", certificate)?;
                let key = PrivateKeyDer::from_pem_slice(key)
                    .map_err(|error| wrong(format!("the key's file holds no private key that can be read: {error}")))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| wrong(format!("key and certificate do not fit: {error}")))?
            }
        };
        config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
        let server_name = match &self.server_name {
            None => None,
            Some(name) => Some(
                ServerName::try_from(name.clone())
                    .map_err(|_| wrong(format!("{name:?} is neither a host name nor an address")))?,
            ),
        };
        Ok(TlsConnector { config: Arc::new(config), server_name })
    }
}

fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(Error::Tls { reason: format!("{what} holds no certificate") }),
        Err(error) => Err(Error::Tls { reason: format!("{what} is no PEM file: {error}") }),
    }
}

/// Opens connections inside TLS. Made by [`TlsOptions::connector`].
#[derive(Clone)]
pub struct TlsConnector {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

impl TlsConnector {
    /// Connects to `host:port` or `[address]:port`.
    ///
    /// # Errors
    /// The system's, or what was wrong with the handshake. A server that wants a certificate and got none may say so
    /// only on the first read.
    pub async fn connect(&self, address: &str) -> io::Result<TlsStream<TcpStream>> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => {
                let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
                ServerName::try_from(host.to_owned()).map_err(io::Error::other)?
            }
        };
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        tokio_rustls::TlsConnector::from(self.config.clone()).connect(name, stream).await
    }
}
