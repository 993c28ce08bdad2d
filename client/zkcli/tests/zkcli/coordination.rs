//! Programs that run while something is held, and die with it.

use std::io::{BufRead, BufReader};

use crate::fake::Server;
use crate::{end, interrupt, is_running, read, run, run_input, said, start, until};

/// A program that tells its process and that of a child of its own in files, and stays.
fn sleeper(folder: &std::path::Path) -> String {
    let folder = folder.display();
    format!("echo $$ > {folder}/pid; sleep 1000 & echo $! > {folder}/child; : > {folder}/ready; wait")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_runs_under_a_lock_and_its_exit_code_is_ours() {
    let server = Server::start().await;
    let print = "echo $ZKCLI_TOKEN $ZKCLI_TOKEN_ZXID $ZKCLI_HOLD_PATH";
    let first = run(&server, &["lock", "/locks/a", "--", "sh", "-c", print]).await;
    let second = run(&server, &["lock", "/locks/a", "--", "sh", "-c", print]).await;
    assert_eq!((first.code, first.err.as_str(), second.code), (0, "", 0));
    let token = |out: &str| out.split(' ').next().unwrap().parse::<u64>().unwrap();
    assert!(token(&first.out) < token(&second.out), "tokens grow: {} {}", first.out, second.out);
    let words: Vec<&str> = first.out.split_whitespace().collect();
    assert_eq!(words[1], format!("{:#x}", token(&first.out)));
    assert!(words[2].starts_with("/locks/a/_c_") && words[2].contains("-lock-"), "{}", words[2]);
    assert_eq!(run(&server, &["lock", "/locks/a", "--", "sh", "-c", "exit 7"]).await, said(7, "", ""));
    assert_eq!(run(&server, &["lock", "/locks/a", "--", "sh", "-c", "kill -9 $$"]).await.code, 137);
    assert_eq!(run(&server, &["lock", "/locks/a", "--", "/no/such/program"]).await.code, 127);
    assert_eq!(run_input(&server, &["lock", "/locks/a", "--", "cat"], b"through").await.out, "through");
    assert_eq!(server.children("/locks/a"), Vec::<String>::new(), "nothing stays behind");
    assert_eq!(server.sessions(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_is_killed_with_its_children_when_the_session_is_lost() {
    let server = Server::start().await;
    let folder = tempfile::tempdir().unwrap();
    let child = start(&server, &["lock", "/locks/a", "--", "sh", "-c", &sleeper(folder.path())]);
    until("the program runs", || folder.path().join("ready").exists()).await;
    let (pid, grandchild) = (read(&folder.path().join("pid")), read(&folder.path().join("child")));
    assert!(is_running(&pid) && is_running(&grandchild));
    server.expire_all();
    let ended = end(child).await;
    assert_eq!(ended.code, 9, "{ended:?}");
    assert!(ended.err.contains("the session expired") && ended.err.contains("the program was killed"), "{ended:?}");
    assert!(!is_running(&pid));
    until("its child is dead", || !is_running(&grandchild)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_is_killed_at_the_local_deadline_before_the_ensemble_ends_the_session() {
    let server = Server::start().await;
    server.state.lock().timeout_ms = 2_000;
    let folder = tempfile::tempdir().unwrap();
    let child = start(&server, &["lock", "/locks/a", "--", "sh", "-c", &sleeper(folder.path())]);
    until("the program runs", || folder.path().join("ready").exists()).await;
    // It hears nothing more, and is not told that the session ended: it has not.
    server.state.lock().mute = true;
    let pid = read(&folder.path().join("pid"));
    let ended = end(child).await;
    assert_eq!(ended.code, 9, "{ended:?}");
    assert!(ended.err.contains("the local deadline passed"), "the ensemble has not ended it: {ended:?}");
    assert!(!is_running(&pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_is_killed_when_its_place_is_taken_away_or_zkcli_itself_is_killed() {
    let server = Server::start().await;
    let folder = tempfile::tempdir().unwrap();
    let program = sleeper(folder.path());
    let args = ["lock", "/locks/a", "--", "sh", "-c", &program];
    let child = start(&server, &args);
    until("the program runs", || folder.path().join("ready").exists()).await;
    let holder = format!("/locks/a/{}", server.children("/locks/a")[0]);
    server.delete(&holder);
    let ended = end(child).await;
    assert!(ended.code == 9 && ended.err.contains("was deleted"), "{ended:?}");

    std::fs::remove_file(folder.path().join("ready")).unwrap();
    let mut child = start(&server, &args);
    until("the program runs again", || folder.path().join("ready").exists()).await;
    let pid = read(&folder.path().join("pid"));
    assert!(is_running(&pid));
    child.kill().unwrap();
    until("it is dead too", || !is_running(&pid)).await;
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_get_a_lock_says_so_and_locks_shows_who_has_it() {
    let server = Server::start().await;
    let holder = start(&server, &["lock", "/locks/a", "--identity", "host-1", "--", "sleep", "1000"]);
    until("it holds", || !server.children("/locks/a").is_empty()).await;
    let waiter = start(&server, &["lock", "/locks/a", "--identity", "host-2", "--", "true"]);
    until("another waits", || server.children("/locks/a").len() == 2).await;
    let tried = run(&server, &["lock", "/locks/a", "--try", "--", "true"]).await;
    assert_eq!(tried, said(6, "", "/locks/a: others hold it\n"));
    assert_eq!(run(&server, &["lock", "/locks/a", "-t", "50", "--", "true"]).await.code, 6);
    let shown = run(&server, &["-o", "json", "locks", "/locks/a"]).await.out;
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].contains(r#""identity":"host-1""#) && lines[0].contains(r#""state":"holds""#), "{shown}");
    assert!(lines[1].contains(r#""identity":"host-2""#) && lines[1].contains(r#""state":"waits""#), "{shown}");
    assert!(lines[0].contains(r#""session":"0x1""#) && lines[0].contains(r#""token":"0x"#), "{shown}");
    // An interrupt goes to the program; then it is the other one's turn.
    interrupt(&holder);
    assert_eq!(end(holder).await.code, 130);
    assert_eq!(end(waiter).await.code, 0);
    assert_eq!(run(&server, &["locks", "/none"]).await.code, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_share_and_permits_are_counted() {
    let server = Server::start().await;
    let zkcli = env!("CARGO_BIN_EXE_zkcli");
    let both = ["lock", "--read", "/rw", "--", zkcli, "lock", "--read", "--try", "/rw", "--", "echo", "in"];
    assert_eq!(run(&server, &both).await, said(0, "in\n", ""));
    let not = ["lock", "--read", "/rw", "--", zkcli, "lock", "--write", "--try", "/rw", "--", "true"];
    assert_eq!(run(&server, &not).await.code, 6);
    let permits = |n: &'static str| {
        ["semaphore", "--limit", "2", "/s", "--", zkcli, "semaphore", "--try", "-n", n, "/s", "--", "echo", "in"]
    };
    assert_eq!(run(&server, &permits("1")).await, said(0, "in\n", ""));
    assert_eq!(run(&server, &permits("2")).await.code, 6);
    assert_eq!(run(&server, &permits("3")).await.code, 2, "more than there are");
    assert_eq!(run(&server, &["semaphore", "--set-limit", "3", "/s"]).await.code, 0);
    assert_eq!(run(&server, &permits("2")).await.code, 0);
    let shown = run(&server, &["semaphore", "/s", "--", zkcli, "-o", "json", "locks", "/s"]).await.out;
    assert!(shown.lines().count() == 1 && shown.contains(r#""role":"permit","#), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_election_is_observed_and_its_leader_resigns_when_interrupted() {
    let server = Server::start().await;
    let mut observer = start(&server, &["-o", "json", "elect", "--observe", "/e"]);
    let mut lines = BufReader::new(observer.stdout.take().unwrap()).lines();
    let mut next = move || lines.next().unwrap().unwrap();
    let (line, mut next) = tokio::task::spawn_blocking(move || (next(), next)).await.unwrap();
    assert_eq!(line, r#"{"leader":null}"#);
    let leader = start(&server, &["elect", "--identity", "me", "/e"]);
    let (line, next) = tokio::task::spawn_blocking(move || (next(), next)).await.unwrap();
    assert!(line.contains(r#""identity":"me""#), "{line}");
    interrupt(&leader);
    assert_eq!(end(leader).await.code, 130);
    let line = tokio::task::spawn_blocking(next).await.unwrap();
    assert_eq!(line, r#"{"leader":null}"#);
    interrupt(&observer);
    assert_eq!(end(observer).await.code, 130);
    assert_eq!(server.sessions(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn barriers_queues_and_counters_do_what_their_recipes_do() {
    let server = Server::start().await;
    for (args, code, out) in [
        (&["barrier", "set", "/b"][..], 0, ""),
        (&["barrier", "wait", "-t", "50", "/b"], 6, ""),
        (&["barrier", "remove", "/b"], 0, ""),
        (&["barrier", "wait", "/b"], 0, ""),
        (&["queue", "put", "/q", "later"], 0, ""),
        (&["queue", "put", "-p", "5", "/q", "sooner"], 0, ""),
        (&["queue", "put", "-m", "2", "/q", "too many"], 1, ""),
        (&["queue", "len", "/q"], 0, "2\n"),
        (&["queue", "peek", "/q"], 0, "sooner\n"),
        (&["-o", "raw", "queue", "peek", "/q"], 0, "sooner"),
        (&["queue", "take", "/q"], 0, "sooner\n"),
        (&["queue", "poll", "/q"], 0, "later\n"),
        (&["queue", "poll", "/q"], 1, ""),
        (&["queue", "take", "-t", "50", "/q"], 6, ""),
        (&["counter", "add", "/n", "5"], 0, "5\n"),
        (&["counter", "add", "/n", "-2"], 0, "3\n"),
        (&["counter", "cas", "/n", "3", "9"], 0, "9\n"),
        (&["counter", "cas", "/n", "3", "10"], 1, ""),
        (&["counter", "set", "/n", "1"], 0, "1\n"),
        (&["get", "/n"], 0, "1"),
        (&["queue", "put", "-w", "/w", "job"], 0, ""),
        // Not done: another attempt.
        (&["queue", "work", "/w", "--", "sh", "-c", "cat; echo $ZKCLI_ATTEMPTS; exit 3"], 3, "job1\n"),
        (&["queue", "work", "/w", "--", "sh", "-c", "cat; echo $ZKCLI_ATTEMPTS"], 0, "job2\n"),
        (&["queue", "len", "-w", "/w"], 0, "0\n"),
        (&["queue", "work", "-t", "50", "/w", "--", "true"], 6, ""),
        (&["queue", "frob", "/w"], 2, ""),
    ] {
        let ran = run(&server, args).await;
        assert_eq!((ran.code, ran.out.as_str()), (code, out), "{args:?}: {}", ran.err);
    }
    let first = start(&server, &["barrier", "enter", "-n", "2", "/d", "--", "echo", "both"]);
    let second = run(&server, &["barrier", "enter", "-n", "2", "/d", "--", "sh", "-c", "exit 4"]).await;
    assert_eq!((end(first).await, second), (said(0, "both\n", ""), said(4, "", "")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_wait_for_others_ends_with_the_timeout() {
    let server = Server::start().await;
    server.state.lock().mute = true;
    for args in [&["counter", "add", "/n", "1"][..], &["queue", "put", "/q", "x"], &["barrier", "set", "/b"]] {
        let args: Vec<&str> = ["--timeout", "300"].iter().chain(args).copied().collect();
        assert_eq!(run(&server, &args).await.code, 6, "{args:?}");
    }
}
