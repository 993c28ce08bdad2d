//! Contexts: which one counts, what they keep to themselves, and what production means.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::fake::Server;
use crate::{Run, read, run_with, said, zkcli};

/// Runs the shell with a configuration folder of its own, and no server in the environment.
async fn run_in(folder: &Path, args: &[&str]) -> Run {
    let mut command: Command = zkcli("");
    command.env_remove("ZKCLI_SERVER").env_remove("ZKCLI_CONTEXTS").env("XDG_CONFIG_HOME", folder);
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let ran = move || run_with(command, &args.iter().map(String::as_str).collect::<Vec<_>>(), b"");
    tokio::task::spawn_blocking(ran).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_is_kept_chosen_shown_and_forgotten() {
    let server = Server::start().await;
    server.set("/app", "inside");
    server.set("/app/x", "of the chroot");
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let address = server.address.as_str();
    let chroot = format!("{address}/app");
    assert_eq!(run_in(here, &["ctx", "add", "x"]).await.code, 2, "no servers");
    assert_eq!(run_in(here, &["-s", &chroot, "-a", "digest:ann:secret", "ctx", "add", "app"]).await, said(0, "", ""));
    assert_eq!(run_in(here, &["-s", address, "ctx", "add", "app"]).await.code, 1, "it is there");
    assert_eq!(run_in(here, &["--context", "app", "get", "/x"]).await.out, "of the chroot");
    assert_eq!(run_in(here, &["ctx", "use", "app"]).await.code, 0);
    assert_eq!(run_in(here, &["get", "/x"]).await.out, "of the chroot");
    assert_eq!(run_in(here, &["-s", address, "get", "/app"]).await.out, "inside", "who names a server means it");
    let listed = run_in(here, &["-o", "json", "ctx", "ls"]).await.out;
    assert!(listed.contains(r#""current":"*","name":"app","production":false"#), "{listed}");
    let shown = run_in(here, &["ctx", "show"]).await.out;
    assert!(shown.contains("digest:ann:***") && !shown.contains("secret"), "{shown}");
    assert!(run_in(here, &["ctx", "show", "app", "--secrets"]).await.out.contains("digest:ann:secret"));
    let file = here.join("zkcli/contexts.toml");
    assert!(read(&file).starts_with("current = \"app\"\n"), "{}", read(&file));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o077, 0, "only its owner reads it");
    assert_eq!(run_in(here, &["ctx", "use", "none"]).await.code, 2);
    assert_eq!(run_in(here, &["ctx", "rm", "app"]).await.code, 0);
    assert_eq!(run_in(here, &["ctx", "ls"]).await.out.lines().count(), 1, "the heads alone");
    assert_eq!(run_in(here, &["--context", "app", "get", "/x"]).await.code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_production_nothing_is_destroyed_without_a_yes() {
    let server = Server::start().await;
    server.set("/a", "x");
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    assert_eq!(run_in(here, &["-s", &server.address, "ctx", "add", "prod", "--production"]).await.code, 0);
    let refused = run_in(here, &["--context", "prod", "deleteall", "/a"]).await;
    assert_eq!(refused.code, 10, "{refused:?}");
    assert!(refused.err.contains("delete 1 znode with 1 bytes at and below /a?") && server.exists("/a"), "{refused:?}");
    assert_eq!(run_in(here, &["--context", "prod", "--yes", "deleteall", "/a"]).await.code, 0);
    assert!(!server.exists("/a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_broken_is_told_where_it_counts_and_only_there() {
    let server = Server::start().await;
    server.set("/a", "x");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.toml");
    std::fs::write(&file, "[contexts.a]\nsevrer = \"a\"\n").unwrap();
    let broken = file.to_str().unwrap();
    let told = run_in(folder.path(), &["--contexts", broken, "get", "/a"]).await;
    assert!(told.code == 2 && told.err.contains("broken.toml") && told.err.contains("sevrer"), "{told:?}");
    assert_eq!(run_in(folder.path(), &["--contexts", broken, "version"]).await.code, 0);
    assert_eq!(run_in(folder.path(), &["--contexts", broken, "-s", &server.address, "get", "/a"]).await.out, "x");
}
