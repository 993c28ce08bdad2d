//! Files right and wrong; handshakes are tried in the tests of the client port.

use super::*;

/// A certificate of its own authority, as a key store.
fn key_store() -> String {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    key.signing_key.serialize_pem() + &key.cert.pem()
}

fn options(folder: &Path) -> TlsOptions {
    TlsOptions {
        key_store: folder.join("key.pem"),
        trust_store: None,
        client_auth: ClientAuth::None,
        tls12: true,
        tls13: true,
        cipher_suites: Vec::new(),
    }
}

fn refusal(options: &TlsOptions) -> String {
    Tls::load(options.clone()).expect_err("it must be refused").to_string()
}

#[test]
fn javas_keystores_are_refused_with_the_command_that_converts_them() {
    let folder = tempfile::tempdir().unwrap();
    let options = TlsOptions { trust_store: Some(folder.path().join("trust")), ..options(folder.path()) };
    let path = options.key_store.display();
    fs::write(&options.key_store, b"\xfe\xed\xfe\xed\0\0\0\x02").unwrap();
    assert_eq!(
        refusal(&options),
        format!(
            "{path} is a JKS keystore, and only PEM is read; convert it: keytool -importkeystore -srckeystore {path} \
             -destkeystore {path}.p12 -deststoretype PKCS12 && openssl pkcs12 -in {path}.p12 -nodes -out {path}.pem"
        )
    );
    fs::write(&options.key_store, b"\x30\x82\x01\x00").unwrap();
    assert_eq!(
        refusal(&options),
        format!(
            "{path} is a PKCS12 keystore, and only PEM is read; convert it: openssl pkcs12 -in {path} -nodes -out {path}.pem"
        )
    );
    fs::write(&options.key_store, key_store()).unwrap();
    fs::write(options.trust_store.as_ref().unwrap(), b"\xfe\xed\xfe\xed\0\0\0\x02").unwrap();
    let trust = options.trust_store.as_ref().unwrap().display();
    let command = format!("keytool -list -rfc -keystore {trust} > {trust}.pem");
    assert!(refusal(&options).ends_with(&command), "{}", refusal(&options));
}

#[test]
fn each_wrong_file_says_what_is_wrong_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path());
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    assert!(refusal(&options).contains("No such file"), "{}", refusal(&options));
    for (text, says) in [
        ("", "holds no certificate"),
        (key.as_str(), "holds no certificate"),
        ("-----BEGIN CERTIFICATE-----\nAAAA", "is no PEM file"),
    ] {
        fs::write(&options.key_store, text).unwrap();
        assert!(refusal(&options).contains(says), "{text}: {}", refusal(&options));
    }
    let whole = key_store();
    let certificate = &whole[whole.find("-----BEGIN CERTIFICATE").unwrap()..];
    for (text, says) in [
        (certificate.to_owned(), "holds no private key; key and certificates stand in one file"),
        (
            format!("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n{certificate}"),
            "openssl pkey",
        ),
        (format!("{key}{certificate}"), "keys may not be consistent"),
    ] {
        fs::write(&options.key_store, &text).unwrap();
        assert!(refusal(&options).contains(says), "{text}: {}", refusal(&options));
    }
    fs::write(&options.key_store, &whole).unwrap();
    assert!(Tls::load(options.clone()).is_ok());
    let asking = TlsOptions { client_auth: ClientAuth::Need, ..options.clone() };
    assert!(refusal(&asking).contains("ssl.clientAuth=none"));
    let suites = TlsOptions { cipher_suites: vec!["TLS_RSA_WITH_RC4_128_MD5".into()], ..options.clone() };
    assert!(
        refusal(&suites).contains("supported: TLS_AES_256_GCM_SHA384, TLS_AES_128_GCM_SHA256"),
        "{}",
        refusal(&suites)
    );
    let suites = TlsOptions { cipher_suites: vec!["TLS_AES_128_GCM_SHA256".into()], tls12: false, ..options };
    assert!(Tls::load(suites).is_ok());
}

#[test]
fn new_files_are_taken_and_wrong_ones_leave_the_old_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path());
    fs::write(&options.key_store, key_store()).unwrap();
    let tls = Tls::load(options.clone()).unwrap();
    let first = tls.server_config();
    assert!(matches!(tls.reload(), Reload::Unchanged));

    fs::write(&options.key_store, "half a fi").unwrap();
    assert!(matches!(tls.reload(), Reload::Kept(TlsError::Pem { .. })));
    assert!(matches!(tls.reload(), Reload::Unchanged), "it is complained of once");
    fs::remove_file(&options.key_store).unwrap();
    assert!(matches!(tls.reload(), Reload::Kept(TlsError::Read { .. })));
    assert!(Arc::ptr_eq(&first, &tls.server_config()));

    fs::write(&options.key_store, key_store()).unwrap();
    assert!(matches!(tls.reload(), Reload::Taken));
    assert!(!Arc::ptr_eq(&first, &tls.server_config()));
}
