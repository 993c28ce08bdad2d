//! `corral check` and `corral log`: the program on folders of real servers.

mod processes;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use corral_client::CreateMode;
use processes::Ensemble;
use serde_json::Value;

const SESSION: Duration = Duration::from_secs(20);

fn corral(args: &[&str], dir: &Path) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_corral")).args(args).arg(dir).output().expect("the program runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// Every file with its content and time.
fn picture(folder: &Path) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(picture(&path));
        } else {
            files.insert(path.clone(), (fs::metadata(&path).unwrap().modified().unwrap(), fs::read(&path).unwrap()));
        }
    }
    files
}

fn newest_segment(data: &Path) -> PathBuf {
    let mut segments: Vec<PathBuf> = fs::read_dir(data.join("log"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    segments.sort();
    segments.pop().expect("there is a log")
}

#[tokio::test]
async fn stopped_server_is_looked_through_and_nothing_is_changed() {
    let mut ensemble = Ensemble::start(1, "").await;
    let data = ensemble.data(1);
    let client = ensemble.client([1], SESSION).await;
    let session = client.session_id();
    client.create("/a", "one", CreateMode::Persistent).await.unwrap();
    client.set("/a", "secret!", None).await.unwrap();
    client.create("/e", vec![7; 3_000], CreateMode::Ephemeral).await.unwrap();
    client.delete("/a", None).await.unwrap();

    let (code, _, stderr) = corral(&["check"], &data);
    assert_eq!(code, Some(2), "a server that runs is left alone: {stderr}");
    assert!(stderr.contains("in use by another process") && stderr.contains("stop the server first"), "{stderr}");
    let (code, stdout, stderr) = corral(&["log"], &data);
    assert!(code == Some(0) && stdout.contains("create /a"), "{stdout}");
    assert!(stderr.contains("a server uses this folder"), "{stderr}");

    ensemble.kill(1);
    let before = picture(&data);
    let (code, stdout, stderr) = corral(&["check"], &data);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    for part in ["server    1, member, start 1", "epochs {0, 1}", "sound: 0 problems"] {
        assert!(stdout.contains(part), "{part:?} is missing\n{stdout}");
    }
    let (code, stdout, _) = corral(&["check", "--json"], &data);
    let report = json(&stdout);
    assert_eq!(
        (code, &report["sound"], &report["problems"]),
        (Some(0), &Value::Bool(true), &Value::from(0)),
        "{report}"
    );
    assert_eq!(report["store"]["digest"], report["store"]["recomputed_digest"], "{report}");

    let (code, stdout, _) = corral(&["log", "--json"], &data);
    assert_eq!(code, Some(0));
    let lines: Vec<Value> = stdout.lines().map(json).collect();
    let of_kind = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).collect::<Vec<_>>();
    for kind in ["segment", "promise", "epoch", "settings", "createSession", "create", "setData", "delete", "end"] {
        assert!(!of_kind(kind).is_empty(), "no {kind}\n{stdout}");
    }
    let set = of_kind("setData")[0];
    assert_eq!((&set["path"], &set["data_bytes"], &set["n"]), (&"/a".into(), &7.into(), &2.into()), "{set}");
    assert_eq!(set["session"], Value::from(format!("{:#x}", session.0)), "{set}");
    assert!(!stdout.contains("secret!") && !stdout.contains("password"), "data and keys are not printed");

    let zxid = set["zxid"].as_str().expect("a text").to_owned();
    let (_, stdout, _) = corral(&["log", "--from", &zxid, "--to", &zxid], &data);
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    assert!(stdout.starts_with(&zxid) && stdout.contains("setData /a, 7 bytes"), "{stdout}");
    let (_, stdout, _) = corral(&["log", "--json", "--session", "0x7777"], &data);
    assert_eq!(stdout, "", "no entry of a session that never was");
    let (_, stdout, _) = corral(&["log", "--json", "--session", &format!("{:x}", session.0)], &data);
    assert_eq!(stdout.lines().count(), 5, "the session, three changes and a create: {stdout}");
    assert!(picture(&data) == before, "nothing was written");
}

#[tokio::test]
async fn damage_is_found_and_the_log_is_printed_on_behind_it() {
    let mut ensemble = Ensemble::start(1, "").await;
    let data = ensemble.data(1);
    let client = ensemble.client([1], SESSION).await;
    for n in 0..20 {
        client.create(&format!("/{n:02}"), vec![1; 3_000], CreateMode::Persistent).await.unwrap();
    }
    ensemble.kill(1);
    let segment = newest_segment(&data);
    let whole = fs::read(&segment).unwrap();
    let mut bytes = whole.clone();
    bytes[10 * 4096 + 200] ^= 1;
    fs::write(&segment, &bytes).unwrap();

    let before = picture(&data);
    let (code, stdout, stderr) = corral(&["check"], &data);
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    assert!(stdout.contains("PROBLEM") && stdout.contains("unreadable, though a later frame"), "{stdout}");
    assert!(stdout.contains("sets the log aside in damaged-N/ and is amnesiac"), "{stdout}");
    let (code, stdout, _) = corral(&["check", "--json"], &data);
    assert_eq!((code, &json(&stdout)["sound"]), (Some(1), &Value::Bool(false)), "{stdout}");
    let (code, stdout, _) = corral(&["log"], &data);
    assert_eq!(code, Some(1), "{stdout}");
    assert!(stdout.contains("DAMAGE: bytes 40960 to 45056"), "{stdout}");
    assert!(stdout.contains("DAMAGE: entries are missing between"), "{stdout}");
    assert!(stdout.contains("create /00") && stdout.contains("create /19"), "what is whole is printed\n{stdout}");
    assert!(picture(&data) == before, "nothing was written");

    // The same byte behind the last frame is a write that was never finished.
    let mut bytes = whole.clone();
    let used = bytes.iter().rposition(|byte| *byte != 0).expect("not empty") / 4096 * 4096 + 4096;
    bytes[used + 100] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    let (code, stdout, _) = corral(&["log"], &data);
    assert_eq!(code, Some(0), "{stdout}");
    assert!(stdout.contains("a write follows that was never finished"), "{stdout}");
    let (code, stdout, _) = corral(&["check"], &data);
    assert_eq!(code, Some(0), "{stdout}");
    assert!(stdout.contains("nobody was told that it is durable"), "{stdout}");
}

#[test]
fn folders_that_hold_nothing_of_a_server_are_refused_in_words() {
    let empty = tempfile::tempdir().unwrap();
    for (dir, words) in
        [(empty.path().to_owned(), "no server used it"), (empty.path().join("x"), "no such file or folder")]
    {
        let (code, _, stderr) = corral(&["check"], &dir);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(words) && stderr.contains("cannot be looked at"), "{stderr}");
    }
    let (code, stdout, _) = corral(&["log"], empty.path());
    assert_eq!((code, stdout.trim()), (Some(0), "there is no segment of a log"));
    let (code, _, stderr) = corral(&["log", "--from", "zzz"], empty.path());
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("hexadecimal"), "{stderr}");
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
}
