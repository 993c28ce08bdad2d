//! Authorities and certificates made for one test, as the PEM files that servers and clients read.

#![allow(dead_code, reason = "each test program uses its part")]

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// An authority that signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub pem: String,
}

/// A certificate and its key.
pub struct Signed {
    pub certificate: String,
    pub key: String,
}

impl Signed {
    /// Both in one text, as ZooKeeper wants it.
    pub fn store(&self) -> String {
        format!("{}{}", self.key, self.certificate)
    }
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for `localhost` and `127.0.0.1` with the subject `CN=name,O=Corral`.
    pub fn sign(&self, name: &str) -> Signed {
        let mut params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Corral");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Signed { certificate, key: key.serialize_pem() }
    }
}

/// Writes a file as a careful operator does: whole, then in its place.
pub fn place(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// Key and trust store of a server in a folder, and the configuration that names them.
pub fn server_files(folder: &Path, authority: &Authority) -> (PathBuf, String) {
    let (key_store, trust_store) = (folder.join("server.pem"), folder.join("trust.pem"));
    place(&key_store, &authority.sign("server").store());
    place(&trust_store, &authority.pem);
    let lines = format!(
        "ssl.keyStore.location={}\nssl.trustStore.location={}\ncertReloadInterval=20\n",
        key_store.display(),
        trust_store.display()
    );
    (key_store, lines)
}
