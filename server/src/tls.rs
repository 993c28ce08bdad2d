//! TLS by rustls: PEM files in, handshakes out, and new files taken up while the server runs.
//!
//! One [`Tls`] serves a kind of port. It holds the configuration of the last files that were right; [`Tls::watch`] looks
//! at the files again and again, and a handshake uses what is current when it begins. Connections that are up keep the
//! certificate they began with.
//!
//! Keystores in Java's formats are refused with the command that converts them.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion, version};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

/// Largest file that is read, in bytes: the certificates of every public authority take a tenth of it.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// HTTP/2, which gRPC runs over. ZooKeeper's clients name no protocol at all.
const ALPN_HTTP2: &[u8] = b"h2";

/// Whether clients show a certificate (`ssl.clientAuth`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// They are not asked.
    None,
    /// They are asked; without one they have no identity, a wrong one ends the handshake.
    Want,
    /// Without a right one there is no connection.
    #[default]
    Need,
}

/// Files and settings of one kind of port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsOptions {
    /// PEM: a private key, its certificate, and the certificates between that and the authority's.
    pub key_store: PathBuf,
    /// PEM: certificates of the authorities whose certificates are believed.
    pub trust_store: Option<PathBuf>,
    /// Who must show a certificate.
    pub client_auth: ClientAuth,
    /// TLS 1.2 is spoken.
    pub tls12: bool,
    /// TLS 1.3 is spoken.
    pub tls13: bool,
    /// Names of cipher suites as Java writes them; empty: all that rustls has.
    pub cipher_suites: Vec<String>,
}

/// Why TLS cannot be spoken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A keystore of Java's.
    #[error("{path} is a {kind} keystore, and only PEM is read; convert it: {command}", path = path.display())]
    Keystore {
        /// Which.
        path: PathBuf,
        /// Its format.
        kind: &'static str,
        /// What converts it.
        command: String,
    },
    /// A PEM file without what it is for.
    #[error("{path} {problem}", path = path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// In words.
        problem: String,
    },
    /// The files are right one by one, and do not fit.
    #[error("{path}: {source}", path = path.display())]
    Unusable {
        /// The key store.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// Client certificates are asked for, and there is nothing to check them against.
    #[error(
        "no trust store: client certificates cannot be checked; set ssl.trustStore.location, or ssl.clientAuth=none"
    )]
    NoTrustStore,
    /// None of the configured cipher suites exists.
    #[error("none of the cipher suites is supported; supported: {0}")]
    NoCipherSuite(String),
}

/// What looking at the files again came to.
#[derive(Debug)]
pub enum Reload {
    /// They are as they were.
    Unchanged,
    /// New ones are used from now on.
    Taken,
    /// They changed and are wrong: the old ones stay.
    Kept(TlsError),
}

/// TLS on one kind of port. See the module.
pub struct Tls {
    options: TlsOptions,
    current: ArcSwap<Loaded>,
    /// Hash of the files that were looked at last, right or wrong: a wrong file is complained of once.
    seen: Mutex<[u8; 32]>,
}

struct Loaded {
    server: Arc<ServerConfig>,
    client: Option<Arc<ClientConfig>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// [`TlsError`] says what is wrong, and where it can, what to do.
    pub fn load(options: TlsOptions) -> Result<Tls, TlsError> {
        let files = Files::read(&options);
        let seen = files.hash();
        let loaded = load(&options, files)?;
        Ok(Tls { options, current: ArcSwap::from_pointee(loaded), seen: Mutex::new(seen) })
    }

    /// For a connection that begins now.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.current.load().server.clone()
    }

    /// For dialling a server of the same kind, with the same certificate; `None` without a trust store.
    pub fn client_config(&self) -> Option<Arc<ClientConfig>> {
        self.current.load().client.clone()
    }

    /// Looks at the files again. Blocks.
    pub fn reload(&self) -> Reload {
        let files = Files::read(&self.options);
        let hash = files.hash();
        if std::mem::replace(&mut *self.seen.lock(), hash) == hash {
            return Reload::Unchanged;
        }
        match load(&self.options, files) {
            Ok(loaded) => {
                self.current.store(Arc::new(loaded));
                Reload::Taken
            }
            Err(error) => Reload::Kept(error),
        }
    }

    /// Looks at the files again and again, until `stop`.
    pub async fn watch(self: Arc<Self>, interval: Duration, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
            let tls = self.clone();
            match tokio::task::spawn_blocking(move || tls.reload()).await {
                Ok(Reload::Taken) => {
                    tracing::info!(key_store = %self.options.key_store.display(), "new certificates are in use");
                }
                Ok(Reload::Kept(error)) => {
                    tracing::error!("the certificates changed and cannot be used, the old ones stay: {error}");
                }
                Ok(Reload::Unchanged) => {}
                Err(error) => tracing::error!("the certificates were not looked at: {error}"),
            }
        }
    }
}

/// What the files hold.
struct Files {
    key_store: Result<Vec<u8>, std::io::Error>,
    trust_store: Option<Result<Vec<u8>, std::io::Error>>,
}

impl Files {
    fn read(options: &TlsOptions) -> Files {
        Files { key_store: read(&options.key_store), trust_store: options.trust_store.as_deref().map(read) }
    }

    fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for file in std::iter::once(&self.key_store).chain(&self.trust_store) {
            match file {
                Ok(bytes) => hash.update([&[1], &(bytes.len() as u64).to_le_bytes()[..], bytes].concat()),
                Err(error) => hash.update([&[0], error.to_string().as_bytes()].concat()),
            }
        }
        hash.finalize().into()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, std::io::Error> {
    if fs::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!("larger than {} MiB", FILE_BYTES_MAX >> 20)));
    }
    fs::read(path)
}

fn load(options: &TlsOptions, files: Files) -> Result<Loaded, TlsError> {
    let path = &options.key_store;
    let key_store = files.key_store.map_err(|source| TlsError::Read { path: path.clone(), source })?;
    let chain = certificates(path, &key_store, true)?;
    let key = private_key(path, &key_store)?;
    let roots = match (&options.trust_store, files.trust_store) {
        (Some(path), Some(bytes)) => {
            let bytes = bytes.map_err(|source| TlsError::Read { path: path.clone(), source })?;
            Some(Arc::new(roots(path, &bytes)?))
        }
        _ => None,
    };
    let provider = Arc::new(provider(&options.cipher_suites)?);
    let versions: Vec<&'static SupportedProtocolVersion> =
        [(options.tls13, &version::TLS13), (options.tls12, &version::TLS12)]
            .into_iter()
            .filter_map(|(on, version)| on.then_some(version))
            .collect();
    let unusable = |source| TlsError::Unusable { path: path.clone(), source };

    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&versions).map_err(unusable)?;
    let builder = match (options.client_auth, &roots) {
        (ClientAuth::None, _) => builder.with_no_client_auth(),
        (_, None) => return Err(TlsError::NoTrustStore),
        (auth, Some(roots)) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
            let verifier = if auth == ClientAuth::Want { verifier.allow_unauthenticated() } else { verifier };
            let verifier = verifier.build().map_err(|error| TlsError::Pem {
                path: options.trust_store.clone().unwrap_or_default(),
                problem: format!("cannot be used to check certificates: {error}"),
            })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut server = builder.with_single_cert(chain.clone(), key.clone_key()).map_err(unusable)?;
    server.alpn_protocols = vec![ALPN_HTTP2.to_vec()];

    let client = match roots {
        None => None,
        Some(roots) => {
            let builder =
                ClientConfig::builder_with_provider(provider).with_protocol_versions(&versions).map_err(unusable)?;
            let builder = builder.with_root_certificates(roots);
            let mut client = builder.with_client_auth_cert(chain, key).map_err(unusable)?;
            client.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
            Some(Arc::new(client))
        }
    };
    Ok(Loaded { server: Arc::new(server), client })
}

fn roots(path: &Path, bytes: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, bytes, false)? {
        roots.add(certificate).map_err(|error| TlsError::Pem {
            path: path.to_owned(),
            problem: format!("holds a certificate that cannot be used: {error}"),
        })?;
    }
    Ok(roots)
}

/// Every certificate of a file, in its order; at least one.
fn certificates(path: &Path, bytes: &[u8], with_key: bool) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    check_format(path, bytes, with_key)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let problem = match found {
        Ok(found) if !found.is_empty() => return Ok(found),
        Ok(_) => "holds no certificate (no line -----BEGIN CERTIFICATE-----)".to_owned(),
        Err(error) => format!("is no PEM file: {error}"),
    };
    Err(TlsError::Pem { path: path.to_owned(), problem })
}

fn private_key(path: &Path, bytes: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    use rustls::pki_types::pem::Error;
    let text = String::from_utf8_lossy(bytes);
    let shown = path.display();
    let problem = match PrivateKeyDer::from_pem_slice(bytes) {
        Ok(key) => return Ok(key),
        Err(_) if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") => format!(
            "holds an encrypted private key; decrypt it: openssl pkey -in {shown} -out key.pem, then put key.pem in its \
             place"
        ),
        Err(Error::NoItemsFound) => format!(
            "holds no private key; key and certificates stand in one file: cat key.pem certificate.pem > {shown}"
        ),
        Err(error) => format!("holds a private key that cannot be read: {error}"),
    };
    Err(TlsError::Pem { path: path.to_owned(), problem })
}

/// Refuses Java's formats, which are told by their first bytes.
fn check_format(path: &Path, bytes: &[u8], with_key: bool) -> Result<(), TlsError> {
    let kind = match bytes {
        [0xfe, 0xed, 0xfe, 0xed, ..] => "JKS",
        [0xce, 0xce, 0xce, 0xce, ..] => "JCEKS",
        [0x30, ..] => "PKCS12",
        _ => return Ok(()),
    };
    Err(TlsError::Keystore { path: path.to_owned(), kind, command: conversion(path, kind == "PKCS12", with_key) })
}

/// The command that makes a PEM file of a keystore.
pub fn conversion(path: &Path, is_pkcs12: bool, with_key: bool) -> String {
    let path = path.display();
    match (with_key, is_pkcs12) {
        (true, true) => format!("openssl pkcs12 -in {path} -nodes -out {path}.pem"),
        (true, false) => format!(
            "keytool -importkeystore -srckeystore {path} -destkeystore {path}.p12 -deststoretype PKCS12 && \
             openssl pkcs12 -in {path}.p12 -nodes -out {path}.pem"
        ),
        (false, _) => format!("keytool -list -rfc -keystore {path} > {path}.pem"),
    }
}

fn provider(cipher_suites: &[String]) -> Result<CryptoProvider, TlsError> {
    let mut provider = ring::default_provider();
    if cipher_suites.is_empty() {
        return Ok(provider);
    }
    // Java calls the suites of TLS 1.3 as the standard does; rustls puts the version into their names.
    let name = |suite: &rustls::SupportedCipherSuite| format!("{:?}", suite.suite()).replacen("TLS13_", "TLS_", 1);
    let all = provider.cipher_suites.iter().map(name).collect::<Vec<_>>().join(", ");
    provider.cipher_suites.retain(|suite| cipher_suites.contains(&name(suite)));
    if provider.cipher_suites.is_empty() { Err(TlsError::NoCipherSuite(all)) } else { Ok(provider) }
}

#[cfg(test)]
mod tests;
