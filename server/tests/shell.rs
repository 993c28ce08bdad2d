//! The shell, as people and scripts start it, on three real servers: each of its verbs, a watch that goes on over a change of
//! servers, locks around programs, and contexts with TLS.

mod certificates;
mod processes;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use certificates::{Authority, server_files};
use processes::{Ensemble, PATIENCE};
use serde_json::Value;
use tokio::time::timeout;

/// What a run left.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    code: i32,
    out: String,
    err: String,
}

/// The shell as Cargo builds it beside the server's program.
fn program() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_corral")).with_file_name("zkcli");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/zkcli/src");
    let time = |file: &Path| std::fs::metadata(file).and_then(|found| found.modified()).ok();
    let source =
        std::fs::read_dir(sources).expect("its sources").map(|file| time(&file.expect("readable").path())).max();
    // `cargo test` builds only this package's programs; `.ci/run` builds all of them.
    assert!(Some(time(&program)) > source, "{} is missing or old: cargo build --workspace --bins", program.display());
    program
}

/// The shell with nobody's own settings.
fn zkcli(servers: &str) -> Command {
    let mut command = Command::new(program());
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("ZKCLI_") {
            command.env_remove(variable);
        }
    }
    command.env("ZKCLI_CONTEXTS", "/nonexistent/contexts.toml").env("ZKCLI_SERVER", servers);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits for the end of a child, and gives what it left.
async fn end(child: Child) -> Run {
    let id = child.id().to_string();
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output().expect("it is ours"));
    let Ok(output) = timeout(PATIENCE, ended).await else {
        // The thread that waits for it must end, too.
        let _ = Command::new("kill").args(["-KILL", &id]).status();
        panic!("the shell does not end");
    };
    let output = output.expect("nothing panics there");
    Run {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

async fn run(servers: &str, args: &[&str]) -> Run {
    end(zkcli(servers).args(args).spawn().expect("the shell starts")).await
}

/// The one document that a verb answers with.
async fn document(servers: &str, args: &[&str]) -> Value {
    let all: Vec<&str> = ["-o", "json"].into_iter().chain(args.iter().copied()).collect();
    let ran = run(servers, &all).await;
    assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{args:?}: {error}: {}", ran.out))
}

/// Verbs one after the other: each with its exit code and all that it prints on standard output.
async fn walk(servers: &str, steps: &[(&[&str], i32, &str)]) {
    for (args, code, out) in steps {
        let ran = run(servers, args).await;
        assert_eq!((ran.code, ran.out.as_str()), (*code, *out), "{args:?}: {}", ran.err);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_verb_does_its_work_on_three_servers() {
    let ensemble = Ensemble::start(3, "enforceQuota=true\n").await;
    let servers = &ensemble.addresses(ensemble.ids());
    let folder = tempfile::tempdir().expect("a folder for the test");
    let file = |name: &str| folder.path().join(name).to_str().expect("a plain path").to_owned();
    let (exported, files) = (&*file("a.ndjson"), &*file("files"));

    // ZooKeeper's verbs.
    let steps: &[(&[&str], i32, &str)] = &[
        (&["create", "/a", "one"], 0, ""),
        (&["create", "/a", "one"], 1, ""),
        (&["get", "/a"], 0, "one"),
        (&["get", "/none"], 3, ""),
        (&["set", "-v", "0", "/a", "two"], 0, ""),
        (&["set", "-v", "0", "/a", "three"], 4, ""),
        (&["create", "-s", "/a/n-", "x"], 0, ""),
        (&["create", "-e", "/a/mine"], 0, ""),
        (&["create", "-c", "/a/box"], 0, ""),
        (&["ls", "/a"], 0, "[box, n-0000000000]\n"),
        (&["ls", "-R", "/a"], 0, "/a\n/a/box\n/a/n-0000000000\n"),
        (&["getAllChildrenNumber", "/a"], 0, "2\n"),
        (&["getEphemerals"], 0, "[]\n"),
        (&["delete", "/a"], 7, ""),
        (&["delete", "/a/box"], 0, ""),
        (&["getAcl", "/a"], 0, "'world,'anyone\n: cdrwa\n"),
        (&["-a", "digest:ann:secret", "create", "/private", "hers", "auth::cdrwa"], 0, ""),
        (&["get", "/private"], 5, ""),
        (&["setAcl", "/private", "world:anyone:r"], 5, ""),
        (&["-a", "digest:ann:secret", "setAcl", "/private", "world:anyone:cdrwa"], 0, ""),
        (&["get", "/private"], 0, "hers"),
        (&["-a", "digest:ann:secret", "whoami"], 0, "Auth scheme: User\nip: 127.0.0.1\ndigest: ann\n"),
        (&["sync", "/a"], 0, "Sync is OK\n"),
        (&["setquota", "-N", "3", "/a"], 0, ""),
        (&["create", "/a/one", "x"], 0, ""),
        (&["create", "/a/one-too-many", "x"], 1, ""),
        (&["delquota", "/a"], 0, ""),
        (&["reconfig", "-remove", "3"], 1, ""),
        (&["ls", "/", "-s", servers], 2, ""),
        (&["frobnicate"], 127, ""),
    ];
    walk(servers, steps).await;
    let node = document(servers, &["get", "/a"]).await;
    assert_eq!((&node["data"], &node["stat"]["version"]), (&"two".into(), &1.into()), "{node}");
    assert_eq!(document(servers, &["stat", "/a"]).await["stat"]["czxid"], node["stat"]["czxid"]);
    let config = run(servers, &["config"]).await.out;
    assert_eq!(config.lines().filter(|line| line.starts_with("server.")).count(), 3, "{config}");
    assert!(config.ends_with('\n'), "{config:?}");
    let status = document(servers, &["status"]).await;
    let modes: Vec<&str> = status.as_array().expect("a list").iter().filter_map(|one| one["mode"].as_str()).collect();
    assert_eq!((modes.len(), modes.iter().filter(|mode| **mode == "leader").count()), (3, 1), "{status}");

    // Subtrees, copies, files.
    let steps: &[(&[&str], i32, &str)] = &[
        (&["tree", "-l", "/a"], 0, "/a  3 bytes, v1\n├── n-0000000000  1 bytes, v0\n└── one  1 bytes, v0\n"),
        (&["find", "/a", "--name", "n-*"], 0, "/a/n-0000000000\n"),
        (&["grep", "-l", "tw.", "/"], 0, "/a\n"),
        (&["grep", "nowhere to be found", "/"], 1, ""),
        (&["du", "-d", "0", "/a"], 0, "BYTES  NODES  PATH\n5      3      /a\n"),
        (&["top-children", "-n", "1", "/a"], 0, "CHILDREN  PATH\n2         /a\n"),
        (&["cp", "-r", "/a", "/copy"], 0, "created 3, replaced 0, the same already 0\n"),
        (&["diff", "/a", "/copy"], 0, ""),
        (&["set", "/copy/one", "else"], 0, ""),
        (&["diff", "/a", "/copy"], 1, "~ /one: data 1 bytes and 4 bytes\n"),
        (&["mv", "/copy", "/moved"], 10, ""),
        (&["mv", "--yes", "/copy", "/moved"], 0, ""),
        (&["get", "/moved/one"], 0, "else"),
        (&["export", "/a", exported], 0, ""),
        (&["import", "--to", "/back", exported], 0, "created 3, replaced 0, the same already 0\n"),
        (&["import", "--to", "/back", exported], 0, "created 0, replaced 0, the same already 3\n"),
        (&["diff", "--acl", "/a", "/back"], 0, ""),
        (&["sync-dir", "get", "/a", files], 0, "written 3, deleted 0, the same already 0\n"),
        (&["sync-dir", "put", files, "/back"], 0, "written 0, deleted 0, the same already 3\n"),
        (&["deleteall", "--dry-run", "/moved"], 0, "would delete 3 znodes with 8 bytes at and below /moved\n"),
        (&["deleteall", "/moved"], 0, ""),
        (&["get", "/moved"], 3, ""),
    ];
    walk(servers, steps).await;

    // Recipes.
    let zkcli = &*program().to_str().expect("a plain path").to_owned();
    let steps: &[(&[&str], i32, &str)] = &[
        (&["lock", "/lock", "--", "sh", "-c", "echo held; exit 3"], 3, "held\n"),
        (&["lock", "/lock", "--", zkcli, "lock", "--try", "/lock", "--", "echo", "never"], 6, ""),
        (&["lock", "/lock", "--", zkcli, "lock", "-t", "100", "/lock", "--", "echo", "never"], 6, ""),
        (&["lock", "--read", "/rw", "--", zkcli, "lock", "--read", "--try", "/rw", "--", "echo", "too"], 0, "too\n"),
        (&["semaphore", "--limit", "2", "-n", "2", "/s", "--", zkcli, "semaphore", "--try", "/s", "--", "true"], 6, ""),
        (&["elect", "/e", "--", "echo", "leads"], 0, "leads\n"),
        (&["barrier", "set", "/b"], 0, ""),
        (&["barrier", "wait", "-t", "50", "/b"], 6, ""),
        (&["barrier", "remove", "/b"], 0, ""),
        (&["barrier", "wait", "/b"], 0, ""),
        (&["queue", "put", "/q", "later"], 0, ""),
        (&["queue", "put", "-p", "1", "/q", "sooner"], 0, ""),
        (&["queue", "take", "/q"], 0, "sooner\n"),
        (&["-o", "raw", "queue", "take", "/q"], 0, "later"),
        (&["queue", "poll", "/q"], 1, ""),
        (&["queue", "put", "-w", "/w", "job"], 0, ""),
        (&["queue", "work", "/w", "--", "sh", "-c", "cat; exit 3"], 3, "job"),
        (&["queue", "work", "/w", "--", "cat"], 0, "job"),
        (&["counter", "add", "/n", "5"], 0, "5\n"),
        (&["counter", "cas", "/n", "4", "9"], 1, ""),
    ];
    walk(servers, steps).await;
    let tell = ["lock", "/lock", "--", "sh", "-c", "echo $ZKCLI_TOKEN; exec $0 -o json locks /lock", zkcli];
    let tokens = run(servers, &tell).await.out;
    let (token, holder) = tokens.split_once('\n').expect("two lines");
    let holder: Value = serde_json::from_str(holder).expect("one holder");
    let token: u64 = token.parse().expect("a number");
    assert_eq!((&holder["state"], &holder["token"]), (&"holds".into(), &format!("{token:#x}").into()), "{tokens}");
    ensemble.converge().await;
}

/// The paths and types of a watch's lines.
fn events(out: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    out.lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .map(|event| (text(&event["path"]), text(&event["type"])))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_misses_nothing_and_tells_nothing_twice_though_its_server_dies_and_it_is_started_again() {
    let mut ensemble = Ensemble::start(3, "").await;
    let servers = ensemble.addresses(ensemble.ids());
    let folder = tempfile::tempdir().expect("a folder for the test");
    let bookmark = folder.path().join("bookmark");
    let kept = bookmark.to_str().expect("a plain path");
    let created = document(&servers, &["create", "/w"]).await;
    std::fs::write(&bookmark, created["stat"]["czxid"].as_str().expect("a zxid")).expect("written");
    let all = ["-o", "json", "watch", "-r", "--bookmark", kept, "-n"];
    let watch = |count: &'static str| all.into_iter().chain([count, "/w"]);

    // It begins at the leader, which dies while it watches.
    let leader = ensemble.leader().await;
    let order: Vec<u64> =
        std::iter::once(leader).chain(ensemble.ids().into_iter().filter(|id| *id != leader)).collect();
    let watching = zkcli(&ensemble.addresses(order)).args(watch("3")).spawn().expect("the shell starts");
    walk(&servers, &[(&["create", "/w/a"], 0, "")]).await;
    let zxid = |text: &str| u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap_or_default();
    let at = |bookmark: &Path| zxid(&std::fs::read_to_string(bookmark).unwrap_or_default());
    let begun = zxid(document(&servers, &["stat", "/w/a"]).await["stat"]["czxid"].as_str().expect("a zxid"));
    // It may be further already: the bookmark moves with what others do, too.
    ensemble.until("the watch has told the first event", |_| at(&bookmark) >= begun).await;
    ensemble.kill(leader);
    ensemble.leader().await;
    let alive: Vec<u64> = ensemble.ids().into_iter().filter(|id| *id != leader).collect();
    let alive = ensemble.addresses(alive);
    walk(&alive, &[(&["set", "/w/a", "1"], 0, ""), (&["set", "/w/a", "2"], 0, "")]).await;
    let ran = end(watching).await;
    let event = |path: &str, kind: &str| (path.to_owned(), kind.to_owned());
    let changed = event("/w/a", "NodeDataChanged");
    assert_eq!((ran.code, events(&ran.out)), (0, vec![event("/w/a", "NodeCreated"), changed.clone(), changed.clone()]));

    // What happens while nobody watches is told by the next one, at another server.
    walk(&alive, &[(&["delete", "/w/a"], 0, ""), (&["create", "/w/b"], 0, "")]).await;
    let again: Vec<&str> = watch("2").collect();
    let ran = run(&alive, &again).await;
    assert_eq!((ran.code, events(&ran.out)), (0, vec![event("/w/a", "NodeDeleted"), event("/w/b", "NodeCreated")]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_context_brings_tls_and_an_identity_along() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let authority = Authority::new("authority");
    let (_, files) = server_files(folder.path(), &authority);
    let secure = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
    let more = format!("secureClientPort={}\nsecureClientPortAddress=127.0.0.1\n{files}", secure.port());
    let ensemble = Ensemble::start(1, &more).await;
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("a plain path").to_owned()
    };
    let authority_file = write("authority.pem", &authority.pem);
    let alice = write("alice.pem", &authority.sign("alice").store());
    let contexts = folder.path().join("contexts.toml");
    let with = async |args: &[&str]| {
        let mut command = zkcli("");
        command.env_remove("ZKCLI_SERVER").env("ZKCLI_CONTEXTS", &contexts).args(args);
        end(command.spawn().expect("the shell starts")).await
    };
    let server = secure.to_string();
    let add = ["-s", &server, "--tls-ca", &authority_file, "--tls-cert", &alice, "ctx", "add", "safe"];
    assert_eq!(with(&add).await.code, 0);
    let who = with(&["--context", "safe", "whoami"]).await;
    assert_eq!(who.out, "Auth scheme: User\nip: 127.0.0.1\nx509: CN=alice,O=Corral\n", "{}", who.err);
    assert_eq!(with(&["--context", "safe", "create", "/mine", "x", "auth::cdrwa"]).await.code, 0);
    assert_eq!(with(&["--context", "safe", "status"]).await.code, 0);
    // Without the certificate it is somebody else's.
    assert_eq!(run(&ensemble.address(1), &["get", "/mine"]).await.code, 5);
    // Another authority's servers are not believed.
    let other = write("other.pem", &Authority::new("another").pem);
    let limit = Duration::from_secs(1).as_millis().to_string();
    let refused = with(&["-s", &server, "--tls-ca", &other, "--timeout", &limit, "ls", "/"]).await;
    assert!(refused.code == 8 && refused.err.contains("certificate"), "{refused:?}");
}
