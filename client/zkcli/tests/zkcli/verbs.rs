//! ZooKeeper's verbs, quotas, formats and exit codes.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::Duration;

use corral_client::{Client, CreateMode};

use crate::fake::Server;
use crate::{run, run_input, run_with, said, zkcli};

#[tokio::test(flavor = "multi_thread")]
async fn verbs_print_as_zookeepers_and_close_their_session() {
    let server = Server::start().await;
    assert_eq!(run(&server, &["create", "/a", "hello"]).await, said(0, "", "Created /a\n"));
    assert_eq!(run(&server, &["create", "/a/c"]).await, said(0, "", "Created /a/c\n"));
    assert_eq!(run(&server, &["create", "-s", "/a/n-", "x"]).await, said(0, "", "Created /a/n-0000000001\n"));
    assert_eq!(run(&server, &["ls", "/a"]).await, said(0, "[c, n-0000000001]\n", ""));
    assert_eq!(run(&server, &["ls", "-R", "/"]).await, said(0, "/\n/a\n/a/c\n/a/n-0000000001\n", ""));
    assert_eq!(run(&server, &["set", "-v", "0", "/a", "two words"]).await, said(0, "", ""));
    assert_eq!(run(&server, &["sync", "/a"]).await, said(0, "Sync is OK\n", ""));
    let stat = run(&server, &["stat", "/a"]).await;
    assert!(stat.out.contains("\ndataVersion = 1\n") && stat.out.ends_with("numChildren = 2\n"), "{}", stat.out);
    assert_eq!(run(&server, &["create", "-e", "/gone"]).await.code, 0);
    assert!(!server.exists("/gone"), "an ephemeral goes with its session");
    assert_eq!(run(&server, &["delete", "/a/c"]).await, said(0, "", ""));
    assert_eq!(server.sessions(), 0);
    assert_eq!(server.state.lock().violations, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_exit_by_class_and_are_told_on_standard_error() {
    let server = Server::start().await;
    server.set("/a", "x");
    server.set("/a/b", "x");
    for (args, code, err) in [
        (&["get", "/none"][..], 3, "Node does not exist: /none\n"),
        (&["set", "-v", "7", "/a", "y"], 4, "version No is not valid : /a\n"),
        (&["delete", "/a"], 7, "Node not empty: /a\n"),
        (&["create", "/a"], 1, "Node already exists: /a\n"),
        (&["addauth", "kerberos", "x"], 5, "KeeperErrorCode = AuthFailed (authentication failed)\n"),
        (&["frobnicate"], 127, "Command not found: frobnicate: `zkcli help` lists the commands\n"),
        (&["help", "frobnicate"], 127, "Command not found: frobnicate: `zkcli help` lists the commands\n"),
        (
            &["--frobnicate", "ls", "/"],
            2,
            "Unrecognized option: --frobnicate\n`zkcli --help` tells the options, `zkcli help` the commands\n",
        ),
        (
            &["ls", "/", "-s", "127.0.0.1:1"],
            2,
            "Unrecognized option: -s 127.0.0.1:1: options of zkcli itself come before the verb: zkcli -s 127.0.0.1:1 ls \
             ...\nusage: ls [-s] [-w] [-R] path\n",
        ),
    ] {
        assert_eq!(run(&server, args).await, said(code, "", err), "{args:?}");
    }
    let usage = run(&server, &["get"]).await;
    assert_eq!((usage.code, usage.err.as_str()), (2, "path is missing\nusage: get [-s] [-w] [-b] [-x] path\n"));
    assert_eq!(run(&server, &["ls", "a"]).await.code, 2);
    let json = run(&server, &["-o", "json", "get", "/none"]).await;
    assert!(json.code == 3 && json.err.contains(r#""name":"NoNode""#), "{json:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn data_passes_pipes_byte_for_byte() {
    let server = Server::start().await;
    let bytes: Vec<u8> = (0..=255).collect();
    assert_eq!(run_input(&server, &["create", "/a", "-"], &bytes).await.code, 0);
    let output = {
        let mut command = zkcli(&server.address);
        tokio::task::spawn_blocking(move || command.args(["get", "/a"]).output().unwrap()).await.unwrap()
    };
    assert_eq!(output.stdout, bytes);
    assert_eq!(run_input(&server, &["set", "-b", "/a", "-"], b"aGk=\n").await.code, 0);
    assert_eq!(run(&server, &["get", "/a"]).await, said(0, "hi", ""));
    assert_eq!(run(&server, &["get", "-b", "/a"]).await, said(0, "aGk=\n", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_ends_with_its_line_unless_it_is_to_be_raw() {
    let server = Server::start().await;
    let config = "server.1=a:1:2:participant;a:2181\nversion=0";
    server.set("/zookeeper", "");
    server.set("/zookeeper/config", config);
    assert_eq!(run(&server, &["config"]).await, said(0, &format!("{config}\n"), ""));
    assert_eq!(run(&server, &["-o", "raw", "config"]).await, said(0, config, ""));
    assert_eq!(run(&server, &["config", "-c"]).await, said(0, "0 a:2181\n", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verb_with_help_behind_it_is_explained_and_not_done() {
    let server = Server::start().await;
    server.set("/a", "x");
    let told = run(&server, &["delete", "/a", "--help"]).await;
    assert!(told.code == 0 && told.out.starts_with("delete [-v version] path\n"), "{told:?}");
    assert!(server.exists("/a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_one_document_a_line() {
    let server = Server::start().await;
    let created = run(&server, &["-o", "json", "create", "/a", "x"]).await;
    assert!(created.out.contains(r#""path":"/a""#) && created.err.is_empty(), "{created:?}");
    run(&server, &["create", "/a/b"]).await;
    assert_eq!(run(&server, &["-o", "json", "ls", "-R", "/a"]).await.out, "{\"path\":\"/a\"}\n{\"path\":\"/a/b\"}\n");
    let get = run(&server, &["-o", "json", "get", "/a"]).await.out;
    assert!(get.contains(r#""data":"x","encoding":"utf8""#) && get.lines().count() == 1, "{get}");
}

#[tokio::test(flavor = "multi_thread")]
async fn deleteall_deletes_a_wide_and_deep_tree_in_batches() {
    let server = Server::start().await;
    let client = Client::connect(&server.address).await.unwrap();
    client.create("/t", (), CreateMode::Persistent).await.unwrap();
    let mut asked = Vec::new();
    for a in 0..30 {
        asked.push(client.create(&format!("/t/{a}"), (), CreateMode::Persistent));
        for b in 0..10 {
            asked.push(client.create(&format!("/t/{a}/{b}"), (), CreateMode::Persistent));
        }
    }
    for created in asked {
        created.await.unwrap();
    }
    let deleted = run(&server, &["-o", "json", "deleteall", "-b", "50", "/t"]).await;
    assert_eq!(deleted, said(0, "{\"deleted\":331,\"path\":\"/t\"}\n", ""));
    assert!(!server.exists("/t") && !server.exists("/t/29/9"));
    assert_eq!(run(&server, &["deleteall", "/t"]).await, said(3, "", "Node does not exist: /t\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_streams_events_as_they_come() {
    let server = Server::start().await;
    server.set("/a", "1");
    let mut command = zkcli(&server.address);
    let mut child = command.args(["-o", "json", "watch", "-r", "-n", "2", "/a"]).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reader = tokio::task::spawn_blocking(move || lines.map(Result::unwrap).collect::<Vec<_>>());
    while server.watches() == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    server.set("/a", "2");
    server.set("/a/b", "3");
    let lines = tokio::time::timeout(Duration::from_secs(20), reader).await.unwrap().unwrap();
    let status = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains(r#""path":"/a","type":"NodeDataChanged""#), "{}", lines[0]);
    assert!(lines[1].contains(r#""path":"/a/b","type":"NodeCreated""#), "{}", lines[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_on_standard_input_runs_in_one_session() {
    let server = Server::start().await;
    let script = b"create -e /a 'it is so'\nls /\nget /a\n\nget /none\nhistory\nredo 1\nquit\nls /never\n";
    let ran = run_input(&server, &[], script).await;
    assert_eq!(ran.code, 3, "the code of the last command that failed");
    assert_eq!(
        ran.out,
        "[a]\nit is so\n0 - create -e /a 'it is so'\n1 - ls /\n2 - get /a\n3 - get /none\n4 - history\n[a]\n"
    );
    assert_eq!(ran.err, "Created /a\nNode does not exist: /none\n");
    assert_eq!(server.state.lock().connects, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_close_a_script_is_told_that_it_is_not_connected() {
    let server = Server::start().await;
    server.set("/a", "1");
    let ran = run_input(&server, &[], b"get /a\nclose\nget /a\n").await;
    assert_eq!(ran, said(8, "1\n", "Not connected: the session was closed; connect host:port opens another\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_of_a_shell_are_printed_when_they_fire() {
    let server = Server::start().await;
    server.set("/a", "1");
    let mut child = zkcli(&server.address).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"get -w /a\n").unwrap();
    while server.watches() == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    server.set("/a", "2");
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reader = tokio::task::spawn_blocking(move || {
        lines.map(Result::unwrap).find(|line| line.starts_with("WatchedEvent")).expect("an event")
    });
    let event = tokio::time::timeout(Duration::from_secs(20), reader).await.unwrap().unwrap();
    assert!(event.contains("type:NodeDataChanged path:/a zxid: 0x"), "{event}");
    drop(stdin);
    let status = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_it_says_so_in_time() {
    // A port that was free a moment ago, on which nobody listens.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let args = ["--timeout", "300", "ls", "/"];
    let ran = {
        let command = zkcli(&free);
        tokio::task::spawn_blocking(move || run_with(command, &args, b"")).await.unwrap()
    };
    assert_eq!(ran.code, 8, "{ran:?}");
    assert!(ran.err.contains(&free), "{}", ran.err);
    let status = {
        let command = zkcli(&free);
        tokio::task::spawn_blocking(move || run_with(command, &["status"], b"")).await.unwrap()
    };
    assert_eq!(status.code, 8);
    assert!(status.out.contains("not serving: connection refused"), "{}", status.out);
    let server = Server::start().await;
    server.state.lock().mute = true;
    let silent = run(&server, &["--timeout", "300", "ls", "/"]).await;
    assert_eq!((silent.code, silent.out.as_str()), (6, ""), "{silent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn help_needs_no_server() {
    let command = zkcli("127.0.0.1:1");
    let ran = tokio::task::spawn_blocking(move || run_with(command, &["help", "get"], b"")).await.unwrap();
    assert_eq!((ran.code, ran.out.lines().next()), (0, Some("get [-s] [-w] [-b] [-x] path")));
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_are_znodes_as_zookeepers_shell_writes_them() {
    let server = Server::start().await;
    for path in ["/zookeeper", "/zookeeper/quota", "/app", "/app/deep"] {
        server.set(path, "");
    }
    assert_eq!(run(&server, &["listquota", "/app"]).await.code, 3);
    assert_eq!(run(&server, &["setquota", "/app"]).await.code, 2, "no limit");
    assert_eq!(run(&server, &["setquota", "-n", "5", "/none"]).await.code, 3);
    assert_eq!(run(&server, &["setquota", "-n", "5", "/"]).await.code, 2);
    assert_eq!(run(&server, &["setquota", "-n", "5", "-B", "900", "/app"]).await, said(0, "", ""));
    let limits = "/zookeeper/quota/app/zookeeper_limits";
    assert_eq!(server.data(limits).unwrap(), "count=5,bytes=-1=;byteHardLimit=900");
    assert_eq!(run(&server, &["setquota", "-b", "70", "/app"]).await.code, 0);
    assert_eq!(server.data(limits).unwrap(), "count=5,bytes=70=;byteHardLimit=900", "the others stay");
    let nested = run(&server, &["setquota", "-n", "5", "/app/deep"]).await;
    assert_eq!((nested.code, nested.err.as_str()), (1, "/app/deep has a parent /app which has a quota\n"));
    let listed = run(&server, &["listquota", "/app"]).await;
    assert_eq!(
        listed.out,
        "Output quota for /app count=5,bytes=70=;byteHardLimit=900\nOutput stat for /app count=0,bytes=0\n"
    );
    assert_eq!(run(&server, &["delquota", "-B", "/app"]).await.code, 0);
    assert_eq!(server.data(limits).unwrap(), "count=5,bytes=70");
    assert_eq!(run(&server, &["delquota", "/app"]).await.code, 0);
    assert_eq!(server.children("/zookeeper/quota"), Vec::<String>::new());
    assert_eq!(run(&server, &["delquota", "/app"]).await.code, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_count_from_the_root_of_the_servers_also_under_a_chroot() {
    let server = Server::start().await;
    for path in ["/zookeeper", "/zookeeper/quota", "/app", "/app/x"] {
        server.set(path, "");
    }
    let command = zkcli(&format!("{}/app", server.address));
    let set =
        tokio::task::spawn_blocking(move || run_with(command, &["setquota", "-n", "5", "/x"], b"")).await.unwrap();
    assert_eq!(set, said(0, "", ""));
    assert!(server.exists("/zookeeper/quota/app/x/zookeeper_limits"));
    assert_eq!(server.sessions(), 0, "both sessions are closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_answer_is_there_in_every_format() {
    let server = Server::start().await;
    server.set("/a", "one");
    server.set("/a/b", "two");
    for (format, args, out) in [
        ("raw", &["get", "/a"][..], "one"),
        ("base64", &["get", "/a"], "b25l\n"),
        ("hex", &["get", "/a"], "6f6e65\n"),
        ("raw", &["ls", "/a"], "b\n"),
        ("yaml", &["ls", "/a"], "---\nchildren:\n  - \"b\"\npath: \"/a\"\n"),
        ("table", &["ls", "-R", "/a"], "PATH\n/a\n/a/b\n"),
        ("table", &["du", "/a"], "PATH  BYTES  NODES\n/a    6      2\n/a/b  3      1\n"),
        ("json", &["du", "-d", "0", "/a"], "{\"bytes\":6,\"nodes\":2,\"path\":\"/a\"}\n"),
    ] {
        let args: Vec<&str> = ["-o", format].into_iter().chain(args.iter().copied()).collect();
        assert_eq!(run(&server, &args).await, said(0, out, ""), "{args:?}");
    }
    assert_eq!(run(&server, &["-q", "create", "/quiet"]).await, said(0, "", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_servers_do_not_do_is_refused_with_zookeepers_words() {
    let server = Server::start().await;
    let refused = run(&server, &["reconfig", "-remove", "3"]).await;
    assert_eq!(refused, said(1, "", "KeeperErrorCode = ReconfigDisabled (reconfiguration is disabled)\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn deleteall_tells_with_dry_run_and_does_not_ask_scripts() {
    let server = Server::start().await;
    server.set("/t", "abc");
    server.set("/t/x", "de");
    let told = run(&server, &["deleteall", "--dry-run", "/t"]).await;
    assert_eq!(told, said(0, "would delete 2 znodes with 5 bytes at and below /t\n", ""));
    assert!(server.exists("/t/x"));
    assert_eq!(run_input(&server, &[], b"deleteall /t\n").await, said(0, "", ""));
    assert!(!server.exists("/t"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_has_a_working_path() {
    let server = Server::start().await;
    server.set("/a", "1");
    server.set("/a/b", "2");
    let script = b"cd a\npwd\nls\nget b\ncd ..\nget a/b\ncd /none\npwd\n";
    let ran = run_input(&server, &[], script).await;
    assert_eq!(ran, said(3, "/a\n[b]\n2\n2\n/\n", "Node does not exist: /none\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn edit_writes_what_the_editor_left_unless_somebody_was_faster() {
    let server = Server::start().await;
    server.set("/a", "one two");
    let edit = async |editor: &str| {
        let mut command = zkcli(&server.address);
        command.env("EDITOR", editor).env_remove("VISUAL");
        tokio::task::spawn_blocking(move || run_with(command, &["edit", "/a"], b"")).await.unwrap()
    };
    assert_eq!(edit("sed -i s/two/three/").await, said(0, "", ""));
    assert_eq!(server.data("/a").unwrap(), "one three");
    assert_eq!(edit("true").await, said(0, "", "unchanged; nothing was written\n"));
    // An editor that ends the last line changes nothing.
    assert_eq!(edit("echo >>").await, said(0, "", "unchanged; nothing was written\n"));
    assert_eq!(edit("false").await.code, 1);
    let faster = format!("{} -s {} set /a faster; echo mine >", env!("CARGO_BIN_EXE_zkcli"), server.address);
    let late = edit(&faster).await;
    assert_eq!(late.code, 4, "{late:?}");
    assert_eq!(server.data("/a").unwrap(), "faster");
    let kept = late.err.lines().find_map(|line| line.strip_prefix("what you typed is kept in ")).expect("a file");
    assert_eq!(std::fs::read_to_string(kept).unwrap(), "mine\n");
    std::fs::remove_file(kept).unwrap();
}
