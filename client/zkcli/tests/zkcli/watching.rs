//! Changes, once and in order, over the end of a session and of the program.

use crate::fake::Server;
use crate::{end, interrupt, read, run, said, start, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_starts_again_misses_nothing() {
    let server = Server::start().await;
    server.set("/a", "0");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bookmark");
    let args = |n: &'static str| ["-o", "json", "watch", "-r", "--bookmark", file.to_str().unwrap(), "-n", n, "/a"];
    let first = start(&server, &args("2"));
    until("it watches", || server.watches() == 1).await;
    server.set("/a", "1");
    server.set("/a/b", "2");
    let first = end(first).await;
    assert_eq!((first.code, first.out.lines().count()), (0, 2), "{first:?}");
    let bookmark = read(&file);
    assert_eq!(first.err, format!("{{\"bookmark\":\"{}\"}}\n", bookmark.trim()));
    assert!(first.out.trim_end().ends_with(&format!(r#""zxid":"{}"}}"#, bookmark.trim())), "{first:?}");
    // Nobody watches meanwhile.
    server.set("/a/b", "3");
    server.delete("/a/b");
    server.set("/a", "4");
    let second = run(&server, &args("3")).await;
    let told: Vec<&str> = second.out.lines().map(|line| line.split_once("\"zxid\"").unwrap().0).collect();
    assert_eq!(
        told,
        [
            r#"{"path":"/a/b","type":"NodeDataChanged","#,
            r#"{"path":"/a/b","type":"NodeDeleted","#,
            r#"{"path":"/a","type":"NodeDataChanged","#
        ]
    );
    // The same by hand.
    let by_hand = run(&server, &["-o", "json", "watch", "-r", "--from", bookmark.trim(), "-n", "3", "/a"]).await;
    assert_eq!(by_hand.out, second.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_when_the_past_is_forgotten() {
    let server = Server::start().await;
    server.set("/a", "0");
    let long_ago = format!("{:#x}", server.zxid());
    server.set("/a", "1");
    server.forget_history();
    server.set("/a", "2");
    let watch = start(&server, &["-o", "json", "watch", "--from", &long_ago, "-n", "1", "/a"]);
    until("it watches", || server.watches() == 1).await;
    server.set("/a", "3");
    let told = end(watch).await;
    let lines: Vec<&str> = told.out.lines().collect();
    assert!(lines[0].starts_with(&format!(r#"{{"after":"{long_ago}","resync":"0x"#)), "{told:?}");
    assert!(lines[0].ends_with(r#""type":"Gap"}"#) && lines.len() == 2, "{told:?}");
    let never = run(&server, &["watch", "--from", "0xffffffff00000000", "/a"]).await;
    assert!(never.code == 1 && never.err.starts_with("the ensemble has not reached"), "{never:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_for_each_event_and_its_failure_keeps_the_bookmark() {
    let server = Server::start().await;
    server.set("/a", "0");
    let from = format!("{:#x}", server.zxid());
    server.set("/a", "good");
    let good = format!("{:#x}", server.zxid());
    server.set("/a", "bad");
    let command =
        r#"read -r data; echo "$ZKCLI_EVENT_TYPE $ZKCLI_EVENT_PATH $ZKCLI_EVENT_ZXID" >&2; [ "$data" != bad ]"#;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bookmark");
    std::fs::write(&file, &from).unwrap();
    let name = file.to_str().unwrap();
    let ran = run(&server, &["-q", "watch", "--value", "--bookmark", name, "--exec", command, "/a"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    // The first value was replaced by the time it was told, and its command read nothing.
    assert_eq!(ran.err.lines().next(), Some(format!("NodeDataChanged /a {good}").as_str()));
    assert!(ran.err.lines().last().unwrap().starts_with("the command failed with exit code 1"), "{ran:?}");
    assert_eq!(read(&file).trim(), good, "behind the first, before the second");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_watch_closes_its_session_and_tells_its_bookmark() {
    let server = Server::start().await;
    server.set("/a", "0");
    let watch = start(&server, &["watch", "/a"]);
    until("it watches", || server.watches() == 1).await;
    let at = format!("{:#x}", server.zxid());
    interrupt(&watch);
    assert_eq!(end(watch).await, said(130, "", &format!("bookmark {at}\n")));
    assert_eq!(server.sessions(), 0);
}
