//! TLS on the client ports: real handshakes over sockets, right and wrong, and the identities that come of them.

mod certificates;
mod common;

use std::net::SocketAddr;
use std::time::Duration;

use certificates::{Authority, Signed, place, server_files};
use common::{PATIENCE, alone_with, eventually, get, start, word};
use corral_client::{Acl, Client, CreateMode, CreateOptions, Error, ErrorCode, Id, TlsOptions, perms};
use corral_server::node::ServerHandle;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const SECURE: &str = "secureClientPort=0\nsecureClientPortAddress=127.0.0.1\n";

/// A server that speaks TLS, its authority, and a folder for its files.
struct Rig {
    folder: tempfile::TempDir,
    authority: Authority,
    server: ServerHandle,
    secure: SocketAddr,
}

async fn rig(more: &str) -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("authority");
    let (_, files) = server_files(folder.path(), &authority);
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let server = start(&alone_with(&data, &format!("{SECURE}{files}{more}"))).await;
    let secure = server.secure_addr().expect("a secure port");
    eventually("the server serves", async || server.is_serving().then_some(())).await;
    Rig { folder, authority, server, secure }
}

fn trusting(authority: &Authority) -> TlsOptions {
    TlsOptions::new(authority.pem.clone())
}

fn showing(authority: &Authority, who: &Signed) -> TlsOptions {
    trusting(authority).identity(who.certificate.clone(), who.key.clone())
}

async fn client(address: SocketAddr, tls: TlsOptions) -> Result<Client, Error> {
    Client::builder(address.to_string()).tls(tls).connect_timeout(PATIENCE).connect().await
}

/// Why no client came up.
async fn refused(address: SocketAddr, tls: TlsOptions) -> String {
    let builder = Client::builder(address.to_string()).tls(tls).connect_timeout(Duration::from_secs(1));
    match builder.connect().await {
        Err(error @ Error::NoConnection { .. }) => error.to_string(),
        other => panic!("{other:?}", other = other.map(|_| "connected")),
    }
}

/// Asks a word inside TLS.
async fn secure_word(address: SocketAddr, tls: &TlsOptions, word: &str) -> std::io::Result<String> {
    let mut stream = tls.connector().unwrap().connect(&address.to_string()).await?;
    stream.write_all(word.as_bytes()).await?;
    let mut text = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut text)).await??;
    Ok(text)
}

/// A value of `mntr`, over the plain port.
async fn figure(rig: &Rig, key: &str) -> u64 {
    let text = word(rig.server.client_addr(), "mntr").await;
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("{key} is not in {text}"));
    line.trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_an_identity_in_both_protocols() {
    let rig = rig("").await;
    let (alice, bob) = (rig.authority.sign("alice"), rig.authority.sign("bob"));
    let tls = showing(&rig.authority, &alice);
    let one = client(rig.secure, tls.clone()).await.unwrap();
    let ids = one.whoami().await.unwrap();
    assert_eq!(ids, [Id::new("ip", "127.0.0.1"), Id::new("x509", "CN=alice,O=Corral")]);

    // What the certificate has proven can be said again; without one there is nothing to prove.
    one.add_auth("x509", "").await.unwrap();
    assert_eq!(one.whoami().await.unwrap(), ids);
    // `auth` becomes the certificate's subject; others are shut out.
    let mine = CreateOptions::new(CreateMode::Persistent).acl(vec![Acl { perms: perms::ALL, id: Id::new("auth", "") }]);
    one.create("/mine", "secret", mine).await.unwrap();
    assert_eq!(one.get_acl("/mine").await.unwrap().0[0].id, Id::new("x509", "CN=alice,O=Corral"));
    let two = client(rig.secure, showing(&rig.authority, &bob)).await.unwrap();
    assert_eq!(two.get("/mine").await.unwrap_err().code(), Some(ErrorCode::NoAuth));
    let plain = Client::builder(rig.server.client_addr().to_string()).connect().await.unwrap();
    assert_eq!(plain.get("/mine").await.unwrap_err().code(), Some(ErrorCode::NoAuth));
    assert_eq!(one.get("/mine").await.unwrap().data.as_deref(), Some(&b"secret"[..]));
    assert_eq!(secure_word(rig.secure, &tls, "ruok").await.unwrap(), "imok");
    let conf = word(rig.server.client_addr(), "conf").await;
    assert!(conf.contains("secureClientPort="), "{conf}");
    rig.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_of_the_super_user_passes_every_permission() {
    let rig = rig("X509AuthenticationProvider.superUser=CN=admin,O=Corral\n").await;
    let admin = client(rig.secure, showing(&rig.authority, &rig.authority.sign("admin"))).await.unwrap();
    let shut = CreateOptions::new(CreateMode::Persistent)
        .acl(vec![Acl { perms: perms::ALL, id: Id::new("x509", "CN=nobody") }]);
    let names = [Id::new("ip", "127.0.0.1"), Id::new("super", ""), Id::new("x509", "CN=admin,O=Corral")];
    assert_eq!(admin.whoami().await.unwrap(), names);
    admin.create("/shut", "data", shut).await.unwrap();
    assert_eq!(admin.get("/shut").await.unwrap().data.as_deref(), Some(&b"data"[..]));
    let other = client(rig.secure, showing(&rig.authority, &rig.authority.sign("other"))).await.unwrap();
    assert_eq!(other.get("/shut").await.unwrap_err().code(), Some(ErrorCode::NoAuth));
    rig.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_known_or_speaks_no_tls_is_closed_and_disturbs_nobody() {
    let rig = rig("").await;
    let good = showing(&rig.authority, &rig.authority.sign("good"));
    let witness = client(rig.secure, good.clone()).await.unwrap();
    let stranger = Authority::new("stranger");

    let text = refused(rig.secure, showing(&stranger, &rig.authority.sign("good"))).await;
    assert!(text.contains("invalid peer certificate"), "a server of an unknown authority: {text}");
    let text = refused(rig.secure, showing(&rig.authority, &stranger.sign("good"))).await;
    assert!(!text.is_empty(), "a client of an unknown authority");
    let text = refused(rig.secure, trusting(&rig.authority)).await;
    assert!(!text.is_empty(), "a client without a certificate");
    let named = good.clone().server_name("elsewhere");
    assert!(refused(rig.secure, named).await.contains("invalid peer certificate"), "a server of another name");

    // A ZooKeeper client without TLS, a word, and garbage.
    for bytes in [b"\0\0\0\x2d\0\0\0\0".as_slice(), b"ruok", &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3], &[0; 5000]] {
        let mut stream = TcpStream::connect(rig.secure).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("closed");
        assert!(answer.is_empty() || answer[0] == 0x15, "an alert at most, no answer: {answer:?}");
    }
    assert!(figure(&rig, "zk_unsuccessful_handshake").await >= 6);
    eventually("no handshake is under way", async || {
        (figure(&rig, "zk_outstanding_tls_handshake").await == 0).then_some(())
    })
    .await;
    // TLS on the plain port is no frame.
    assert!(secure_word(rig.server.client_addr(), &good, "ruok").await.is_err());
    witness.create("/witness", "", CreateMode::Persistent).await.unwrap();
    rig.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_may_be_offered_or_not_where_it_is_only_wanted() {
    let rig = rig("ssl.clientAuth=want\nadmin.serverPort=0\n").await;
    let anonymous = client(rig.secure, trusting(&rig.authority)).await.unwrap();
    let plain = Client::builder(rig.server.client_addr().to_string()).connect().await.unwrap();
    plain.whoami().await.unwrap();
    let (_, page) = get(rig.server.admin_addr().expect("AdminServer listens"), "/commands/connections").await;
    let (open, secure) = page.split_once("\"secure_connections\"").expect("both lists");
    let listed = |list: &str| list.matches("\"session_id\"").count();
    assert_eq!((listed(open), listed(secure)), (1, 1), "{page}");
    assert_eq!(anonymous.whoami().await.unwrap(), [Id::new("ip", "127.0.0.1")]);
    let known = client(rig.secure, showing(&rig.authority, &rig.authority.sign("known"))).await.unwrap();
    assert_eq!(known.whoami().await.unwrap().len(), 2);
    let stranger = Authority::new("stranger").sign("known");
    refused(rig.secure, showing(&rig.authority, &stranger)).await;
    rig.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_port_takes_both_where_ports_are_unified() {
    let rig = rig("client.portUnification=true\nssl.clientAuth=none\nssl.enabledProtocols=TLSv1.2\n").await;
    let plain_port = rig.server.client_addr();
    let secure = client(plain_port, trusting(&rig.authority)).await.unwrap();
    secure.create("/x", "1", CreateMode::Persistent).await.unwrap();
    assert_eq!(secure_word(plain_port, &trusting(&rig.authority), "ruok").await.unwrap(), "imok");
    let plain = Client::builder(plain_port.to_string()).connect().await.unwrap();
    assert_eq!(plain.get("/x").await.unwrap().data.as_deref(), Some(&b"1"[..]));
    assert_eq!(word(plain_port, "ruok").await, "imok");
    rig.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_under_way_are_bounded_and_places_come_back() {
    let rig = rig("netty.server.outstandingHandshake.limit=1\n").await;
    let good = showing(&rig.authority, &rig.authority.sign("good"));
    // Takes the only place and says nothing.
    let silent = TcpStream::connect(rig.secure).await.unwrap();
    eventually("the place is taken", async || (figure(&rig, "zk_outstanding_tls_handshake").await == 1).then_some(()))
        .await;
    assert!(secure_word(rig.secure, &good, "ruok").await.is_err());
    assert_eq!(figure(&rig, "zk_tls_handshake_exceeded").await, 1);
    drop(silent);
    eventually("the place is free", async || secure_word(rig.secure, &good, "ruok").await.ok()).await;
    rig.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_certificates_are_used_without_a_restart_and_broken_ones_are_not() {
    let rig = rig("ssl.clientAuth=none\n").await;
    let store = rig.folder.path().join("server.pem");
    let old = client(rig.secure, trusting(&rig.authority)).await.unwrap();

    let next = Authority::new("next");
    place(&store, &next.sign("server").store());
    eventually("the new certificate is shown", async || secure_word(rig.secure, &trusting(&next), "ruok").await.ok())
        .await;
    assert!(secure_word(rig.secure, &trusting(&rig.authority), "ruok").await.is_err(), "the old one is not any more");
    old.create("/still", "", CreateMode::Persistent).await.expect("an open connection goes on");

    place(&store, "-----BEGIN CERTIFICATE-----\nnot one");
    // A good trust store placed after the broken key store: had anything been taken, this would have been as well.
    place(&rig.folder.path().join("trust.pem"), &next.pem);
    assert_eq!(secure_word(rig.secure, &trusting(&next), "ruok").await.unwrap(), "imok");
    place(&store, &rig.authority.sign("server").store());
    eventually("the third certificate is shown", async || {
        secure_word(rig.secure, &trusting(&rig.authority), "ruok").await.ok()
    })
    .await;
    rig.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_wrong_key_store_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let (store, files) = server_files(folder.path(), &Authority::new("authority"));
    std::fs::write(&store, b"\xfe\xed\xfe\xed").unwrap();
    let config = alone_with(folder.path(), &format!("{SECURE}{files}"));
    let error = corral_server::node::Node::start(config).await.err().expect("it does not start").to_string();
    assert!(error.contains("is a JKS keystore") && error.contains("keytool -importkeystore"), "{error}");
    let mut left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["server.pem", "trust.pem"], "the data folder was not touched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_says_which_of_its_own_files_is_wrong() {
    let authority = Authority::new("authority");
    let me = authority.sign("me");
    let address = "127.0.0.1:1".parse().unwrap();
    for (tls, says) in [
        (TlsOptions::new("nothing"), "the authority's file holds no certificate"),
        (trusting(&authority).identity("", me.key.clone()), "the certificate's file holds no certificate"),
        (trusting(&authority).identity(me.certificate.clone(), ""), "the key's file holds no private key"),
        (trusting(&authority).identity(me.certificate.clone(), authority.sign("x").key), "do not fit"),
        (trusting(&authority).server_name("not a name"), "neither a host name nor an address"),
    ] {
        let Err(Error::Tls { reason }) = client(address, tls).await else { panic!("{says}") };
        assert!(reason.contains(says), "{reason}");
    }
}
