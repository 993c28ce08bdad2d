//! An unchanged kazoo script against three real servers.
//!
//! Needs a Python with kazoo: `KAZOO_PYTHON`, else `python3`. `.ci/run` installs one and sets the variable, and then a
//! missing kazoo is a failure; without the variable and without kazoo the tests say that they did nothing.

mod certificates;
mod common;
mod processes;

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use certificates::{Authority, place, server_files};
use processes::Ensemble;

fn python() -> Option<String> {
    let named = std::env::var("KAZOO_PYTHON").ok();
    let python = named.clone().unwrap_or_else(|| "python3".to_owned());
    let works = Command::new(&python)
        .args(["-c", "import kazoo"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    assert!(works || named.is_none(), "KAZOO_PYTHON={python} has no kazoo");
    if !works {
        eprintln!("skipped: no kazoo here; set KAZOO_PYTHON to a Python that has it");
    }
    works.then_some(python)
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kazoo/ordinary.py");

#[tokio::test]
async fn kazoo_does_its_ordinary_work() {
    let Some(python) = python() else { return };
    let ensemble = Ensemble::start(3, "").await;
    let output = Command::new(python)
        .args([SCRIPT, &ensemble.addresses(ensemble.ids()), "basic"])
        .output()
        .expect("python runs");
    assert!(
        output.status.success(),
        "{}\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        ensemble.tails()
    );
}

#[tokio::test]
async fn a_kazoo_session_survives_kill_9_of_one_server_after_another() {
    let Some(python) = python() else { return };
    let mut ensemble = Ensemble::start(3, "").await;
    let mut script = Command::new(python)
        .args([SCRIPT, &ensemble.addresses(ensemble.ids()), "failover"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python runs");
    let mut out = BufReader::new(script.stdout.take().expect("piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("readable");
    assert_eq!(line, "ready\n");
    // Every server goes once, so the script's own goes too.
    for id in ensemble.ids() {
        let before = ensemble.srvr(id).expect("it serves").zxid;
        ensemble.kill(id);
        ensemble
            .until("the others go on", |e| {
                e.ids().into_iter().any(|other| other != id && e.srvr(other).is_some_and(|s| s.zxid > before + 20))
            })
            .await;
        ensemble.start_server(id);
        ensemble.until("it is back", |e| e.srvr(id).is_some()).await;
    }
    drop(script.stdin.take());
    let (text, ended) = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).expect("readable");
        (text, script.wait_with_output().expect("it ended"))
    })
    .await
    .expect("no panic");
    let errors = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.success() && text.ends_with("ok\n"), "{text}\n{errors}\n{}", ensemble.tails());
    ensemble.converge().await;
}

const SECURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kazoo/secure.py");

/// Runs the script for TLS and SASL against a server in this process.
async fn run_secure(python: String, arguments: Vec<String>) {
    let running = tokio::task::spawn_blocking(move || {
        Command::new(python).arg(SECURE).args(arguments).output().expect("python runs")
    });
    let output = running.await.expect("no panic");
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn kazoo_speaks_tls_and_is_known_by_its_certificate() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    std::fs::create_dir(&data).expect("a folder");
    let authority = Authority::new("authority");
    let (_, files) = server_files(folder.path(), &authority);
    let lines = format!("secureClientPort=0\nsecureClientPortAddress=127.0.0.1\nssl.clientAuth=want\n{files}");
    let server = common::start(&common::alone_with(&data, &lines)).await;
    let me = authority.sign("kazoo");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        place(&path, text);
        path.display().to_string()
    };
    let arguments = vec![
        "tls".to_owned(),
        server.secure_addr().expect("a secure port").to_string(),
        file("ca.pem", &authority.pem),
        file("me.pem", &me.certificate),
        file("me.key", &me.key),
        "CN=kazoo,O=Corral".to_owned(),
    ];
    run_secure(python, arguments).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kazoo_proves_who_it_is_by_sasl() {
    let Some(python) = python() else { return };
    let has_sasl = Command::new(&python).args(["-c", "import puresasl"]).stderr(Stdio::null()).status();
    if !has_sasl.is_ok_and(|status| status.success()) {
        eprintln!("skipped: kazoo needs the package pure-sasl for this");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let users = folder.path().join("users");
    std::fs::write(&users, "user_bob=\"bob secret\"\n").expect("written");
    let data = folder.path().join("data");
    std::fs::create_dir(&data).expect("a folder");
    let lines = format!("saslUsersFile={}\n", users.display());
    let server = common::start(&common::alone_with(&data, &lines)).await;
    let arguments = ["sasl", &server.client_addr().to_string(), "bob", "bob secret"].map(str::to_owned);
    run_secure(python, arguments.to_vec()).await;
    server.stop().await;
}
