//! Looking around in subtrees, copying, moving, comparing them; files.

use std::process::Stdio;

use crate::fake::Server;
use crate::{read, run, run_input, run_with, said, zkcli};

/// `/t` with a child that has a child, data that is no text, null data, and an ephemeral if one is wanted.
async fn tree(server: &Server) {
    for args in [
        &["create", "/t", "top"][..],
        &["create", "/t/a", "first line\nsecond line"],
        &["create", "/t/a/b", "", "world:anyone:cdrwa,ip:127.0.0.1:r"],
        &["create", "/t/null"],
    ] {
        assert_eq!(run(server, args).await.code, 0, "{args:?}");
    }
    assert_eq!(run_input(server, &["create", "/t/binary", "-"], &[0, 1, 255]).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subtree_can_be_drawn_searched_and_summed_up() {
    let server = Server::start().await;
    tree(&server).await;
    for (args, code, out) in [
        (&["tree", "/t"][..], 0, "/t\n├── a\n│   └── b\n├── binary\n└── null\n"),
        (&["tree", "-d", "1", "/t"], 0, "/t\n├── a\n├── binary\n└── null\n"),
        (&["find", "/t", "--name", "b*"], 0, "/t/a/b\n/t/binary\n"),
        (&["find", "/t", "--data", "second"], 0, "/t/a\n"),
        (&["find", "/t", "--min-bytes", "3", "--depth", "0"], 0, "/t\n"),
        (&["find", "/t", "--ephemeral"], 0, ""),
        (&["grep", "line$", "/t"], 0, "/t/a:first line\n/t/a:second line\n"),
        (&["grep", "-l", "-i", "LINE", "/t"], 0, "/t/a\n"),
        (&["grep", "nowhere", "/t"], 1, ""),
        (&["top-children", "-n", "1", "/t"], 0, "CHILDREN  PATH\n3         /t\n"),
        (
            &["du", "/t"],
            0,
            "BYTES  NODES  PATH\n28     5      /t\n22     2      /t/a\n3      1      /t/binary\n0      1      /t/null\n",
        ),
    ] {
        assert_eq!(run(&server, args).await, said(code, out, ""), "{args:?}");
    }
    assert_eq!(run(&server, &["tree", "/none"]).await.code, 3);
    let bad = run(&server, &["grep", "(", "/t"]).await;
    assert_eq!(bad.code, 2, "{bad:?}");
    let lines = run(&server, &["-o", "json", "grep", "second", "/t"]).await.out;
    assert_eq!(lines, "{\"line\":2,\"path\":\"/t/a\",\"text\":\"second line\"}\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn ephemerals_are_found_by_kind_and_owner() {
    let server = Server::start().await;
    let script = b"create -e /mine x\nfind / --ephemeral\nfind / --owner 0x1\nfind / --owner 0x99\n";
    assert_eq!(run_input(&server, &[], script).await, said(0, "/mine\n/mine\n", "Created /mine\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_the_same_and_can_be_made_again() {
    let server = Server::start().await;
    tree(&server).await;
    let copied = run(&server, &["cp", "-r", "/t", "/c"]).await;
    assert_eq!(copied, said(0, "created 5, replaced 0, the same already 0\n", ""));
    assert_eq!(run(&server, &["diff", "--acl", "/t", "/c"]).await, said(0, "", ""));
    assert_eq!(run(&server, &["cp", "-r", "/t", "/c"]).await.out, "created 0, replaced 0, the same already 5\n");
    server.set("/c/a", "changed");
    server.delete("/c/null");
    server.set("/c/new", "x");
    let differ = run(&server, &["diff", "/t", "/c"]).await;
    assert_eq!(differ, said(1, "~ /a: data 22 bytes and 7 bytes\n+ /new\n- /null\n", ""));
    assert_eq!(run(&server, &["diff", "-q", "/t", "/c"]).await, said(1, "", ""));
    // What differs is left alone, and that is told; to replace it needs a yes.
    let again = run(&server, &["cp", "-r", "/t", "/c"]).await;
    assert_eq!((again.code, server.data("/c/a").unwrap().as_ref()), (1, &b"changed"[..]), "{again:?}");
    assert!(server.exists("/c/null"), "what was missing came");
    let refused = run(&server, &["cp", "-r", "--overwrite", "/t", "/c"]).await;
    assert_eq!((refused.code, server.data("/c/a").unwrap().as_ref()), (10, &b"changed"[..]), "{refused:?}");
    let told = run(&server, &["cp", "-r", "--overwrite", "--dry-run", "/t", "/c"]).await;
    assert_eq!(told.out, "would be created 0, would be replaced 1, the same already 4\n");
    assert_eq!(server.data("/c/a").unwrap(), "changed");
    assert_eq!(run(&server, &["cp", "-r", "--overwrite", "--yes", "/t", "/c"]).await.code, 0);
    assert_eq!(run(&server, &["diff", "/t", "/c"]).await.out, "+ /new\n");
    assert_eq!(run(&server, &["cp", "-r", "/t", "/t/within"]).await.code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_are_compared() {
    let (server, other) = (Server::start().await, Server::start().await);
    for server in [&server, &other] {
        tree(server).await;
    }
    let args = ["diff", "--with", other.address.as_str(), "/t"];
    assert_eq!(run(&server, &args).await, said(0, "", ""));
    other.set("/t/more", "x");
    assert_eq!(run(&server, &args).await, said(1, "+ /more\n", ""));
    assert_eq!((server.sessions(), other.sessions()), (0, 0), "both sessions are closed");
    assert_eq!(run(&server, &["diff", "/t"]).await.code, 2, "with itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_is_one_transaction_or_nothing() {
    let server = Server::start().await;
    tree(&server).await;
    assert_eq!(run(&server, &["cp", "-r", "/t", "/reference"]).await.code, 0);
    let refused = run(&server, &["mv", "/t", "/moved"]).await;
    assert_eq!(refused.code, 10, "{refused:?}");
    let told = run(&server, &["mv", "--dry-run", "/t", "/moved"]).await;
    assert_eq!((told.code, told.out.starts_with("would move 5 znodes with 28 bytes")), (0, true), "{told:?}");
    assert!(server.exists("/t") && !server.exists("/moved"));
    server.state.lock().executed.clear();
    assert_eq!(run(&server, &["mv", "--yes", "/t", "/moved"]).await, said(0, "", ""));
    assert!(!server.exists("/t"));
    assert_eq!(server.state.lock().executed, ["1 multi 10"], "and no other write");
    assert_eq!(run(&server, &["diff", "--acl", "/reference", "/moved"]).await, said(0, "", ""));
    // Something is there already: nothing is done.
    server.set("/taken", "x");
    assert_eq!(run(&server, &["mv", "--yes", "/moved", "/taken"]).await.code, 1);
    assert_eq!(run(&server, &["diff", "/reference", "/moved"]).await.code, 0);
    assert_eq!(server.children("/taken"), Vec::<String>::new());
    assert_eq!(run(&server, &["mv", "--yes", "/moved", "/moved/x"]).await.code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_does_not_fit_is_refused_unless_steps_will_do() {
    let server = Server::start().await;
    server.set("/big", "");
    for name in 0..3 {
        server.set(&format!("/big/{name}"), &"x".repeat(500_000));
    }
    let refused = run(&server, &["mv", "--yes", "/big", "/moved"]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("too much for one transaction") && refused.err.contains("nothing was moved"));
    assert!(!server.exists("/moved") && server.children("/big").len() == 3);
    let moved = run(&server, &["mv", "--yes", "--steps", "/big", "/moved"]).await;
    assert!(moved.code == 0 && moved.err.starts_with("not in one transaction"), "{moved:?}");
    assert!(!server.exists("/big") && server.data("/moved/2").unwrap().len() == 500_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_a_session_is_not_moved() {
    let server = Server::start().await;
    server.set("/t", "");
    let ran = run_input(&server, &[], b"create -e /t/mine\nmv --yes /t /moved\n").await;
    assert!(ran.code == 1 && ran.err.contains("/t/mine is an ephemeral of session 0x1"), "{ran:?}");
    assert!(!server.exists("/moved"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_imported_shows_no_difference() {
    let server = Server::start().await;
    tree(&server).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.ndjson");
    let file = file.to_str().unwrap();
    assert_eq!(run(&server, &["export", "/t", file]).await, said(0, "", "exported 5 znodes\n"));
    let imported = run(&server, &["import", "--to", "/i", file]).await;
    assert_eq!(imported, said(0, "created 5, replaced 0, the same already 0\n", ""));
    assert_eq!(run(&server, &["diff", "--acl", "/t", "/i"]).await, said(0, "", ""));
    assert_eq!((server.data("/i/null"), server.data("/i/a/b").unwrap().len()), (None, 0), "null is not empty");
    let again = run(&server, &["import", "--to", "/i", file]).await;
    assert_eq!(again.out, "created 0, replaced 0, the same already 5\n");
    // From standard output to standard input, to another server.
    let other = Server::start().await;
    let exported = run(&server, &["export", "/t"]).await;
    let but_the_end = |text: &str| text.lines().take(6).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(but_the_end(&exported.out), but_the_end(&read(file.as_ref())), "the same as in the file");
    assert_eq!(run_input(&other, &["import", "-"], exported.out.as_bytes()).await.code, 0);
    assert_eq!(run(&server, &["diff", "--acl", "--with", &other.address, "/t"]).await, said(0, "", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_was_cut_short_is_told_and_done_again() {
    let server = Server::start().await;
    tree(&server).await;
    let exported = run(&server, &["export", "/t"]).await.out;
    let cut: String = exported.lines().take(3).map(|line| format!("{line}\n")).collect();
    let first = run_input(&server, &["import", "--to", "/i", "-"], cut.as_bytes()).await;
    assert_eq!((first.code, first.out.as_str()), (1, "created 2, replaced 0, the same already 0\n"));
    assert!(first.err.contains("not whole"), "{first:?}");
    let second = run_input(&server, &["import", "--to", "/i", "-"], exported.as_bytes()).await;
    assert_eq!(second, said(0, "created 3, replaced 0, the same already 2\n", ""));
    let none = run_input(&server, &["import", "-"], b"{\"path\":\"/t\"}\n").await;
    assert_eq!((none.code, none.err.as_str()), (2, "-, line 1: this is no export of zkcli\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_replaces_only_what_it_was_told_to() {
    let server = Server::start().await;
    tree(&server).await;
    let exported = run(&server, &["export", "/t"]).await.out;
    server.set("/t/a", "newer");
    let import = async |more: &[&str]| {
        let args: Vec<&str> = ["import", "-"].iter().chain(more).copied().collect();
        run_input(&server, &args, exported.as_bytes()).await
    };
    assert_eq!(import(&[]).await.code, 1, "a conflict");
    assert_eq!(import(&["--skip-existing"]).await.code, 0);
    assert_eq!(import(&["--overwrite"]).await.code, 10, "nobody said yes");
    assert_eq!(
        import(&["--overwrite", "--dry-run"]).await.out,
        "would be created 0, would be replaced 1, the same already 4\n"
    );
    assert_eq!(server.data("/t/a").unwrap(), "newer");
    assert_eq!(import(&["--overwrite", "--yes"]).await.code, 0);
    assert_eq!(server.data("/t/a").unwrap(), "first line\nsecond line");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_and_a_subtree_are_made_equal_both_ways() {
    let server = Server::start().await;
    for (path, data) in [("/t", "top"), ("/t/a", "A"), ("/t/a/.x", "dotted"), ("/t/b", "B")] {
        server.set(path, data);
    }
    let folder = tempfile::tempdir().unwrap();
    let (path, name) = (folder.path().join("files"), folder.path().join("files").to_str().unwrap().to_owned());
    assert_eq!(run(&server, &["sync-dir", "get", "/t", &name]).await.out, "written 4, deleted 0, the same already 0\n");
    assert_eq!(
        (read(&path.join(".znode")), read(&path.join("a/.znode")), read(&path.join("a/%2ex")), read(&path.join("b"))),
        ("top".into(), "A".into(), "dotted".into(), "B".into())
    );
    assert_eq!(run(&server, &["sync-dir", "get", "/t", &name]).await.out, "written 0, deleted 0, the same already 4\n");
    // A leaf gets a child, another one goes, a third changes.
    std::fs::remove_file(path.join("b")).unwrap();
    std::fs::create_dir(path.join("c")).unwrap();
    std::fs::write(path.join("c/d"), "D").unwrap();
    std::fs::write(path.join("a/.znode"), "A2").unwrap();
    let put = ["sync-dir", "put", &name, "/t"];
    let told = run(&server, &[&put[..], &["--delete", "--dry-run"]].concat()).await;
    assert_eq!(told.out, "+ /a\n+ /c\n+ /c/d\n- /b\nwould be written 3, would be deleted 1, the same already 2\n");
    assert_eq!(run(&server, &[&put[..], &["--delete"]].concat()).await.code, 10, "nobody said yes");
    assert!(server.exists("/t/b") && !server.exists("/t/c"));
    assert_eq!(run(&server, &[&put[..], &["--delete", "--yes"]].concat()).await.code, 0);
    assert_eq!((server.data("/t/a").unwrap(), server.data("/t/c/d").unwrap()), ("A2".into(), "D".into()));
    assert!(!server.exists("/t/b"));
    // The leaf that was a file becomes a folder when its znode gets a child.
    server.set("/t/c/d/e", "E");
    assert_eq!(run(&server, &["sync-dir", "get", "/t", &name]).await.code, 0);
    assert_eq!((read(&path.join("c/d/.znode")), read(&path.join("c/d/e"))), ("D".into(), "E".into()));
    assert_eq!(run(&server, &put).await.out, "written 0, deleted 0, the same already 6\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn output_into_a_closed_pipe_is_no_error_message() {
    let server = Server::start().await;
    server.set("/t", "");
    for name in 0..2_000 {
        server.set(&format!("/t/{name:050}"), "");
    }
    let mut command = zkcli(&server.address);
    let ran = tokio::task::spawn_blocking(move || {
        let mut child = command.args(["find", "/t"]).stdin(Stdio::null()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    });
    assert_eq!(ran.await.unwrap(), (Some(141), String::new()));
    // And the parser of a script does not see it either.
    let command = zkcli(&server.address);
    let ran =
        tokio::task::spawn_blocking(move || run_with(command, &["find", "/t", "--depth", "0"], b"")).await.unwrap();
    assert_eq!(ran, said(0, "/t\n", ""));
}
