//! The byte examples that a conformance test should compare (wire 14), against a live server: what is sent and what
//! comes back is written down byte by byte, so that no codec of ours stands between.
//!
//! In what is expected, `z` stands for a digit of a zxid, `s` of a session id, `w` of a password, `t` of a time: any digit.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use common::{PATIENCE, alone, start};

/// A connection, in hexadecimal digits.
struct Raw(TcpStream);

fn bytes(hex: &str) -> Vec<u8> {
    let digits: String = hex.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal")).collect()
}

impl Raw {
    fn open(server: SocketAddr) -> Raw {
        let stream = TcpStream::connect(server).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Raw(stream)
    }

    /// A new session.
    fn session(server: SocketAddr) -> Raw {
        let mut raw = Raw::open(server);
        raw.send(&format!("{NEW} 00"));
        raw.expect(&format!("{CONNECTED} 00"));
        raw
    }

    fn send(&mut self, payload: &str) {
        let payload = bytes(payload);
        let mut frame = (payload.len() as u32).to_be_bytes().to_vec();
        frame.extend(payload);
        self.0.write_all(&frame).unwrap();
    }

    fn frame(&mut self) -> String {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).expect("a frame");
        let mut payload = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut payload).expect("the rest of the frame");
        payload.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The next frame is this one, to the last byte. Returns its digits.
    fn expect(&mut self, pattern: &str) -> String {
        let got = self.frame();
        let wanted: String = pattern.split_whitespace().collect();
        let fits = got.len() == wanted.len()
            && got.chars().zip(wanted.chars()).all(|(g, w)| g == w || matches!(w, 'z' | 's' | 'w' | 't'));
        assert!(fits, "\n     got {got}\nexpected {wanted}");
        got
    }

    fn ask(&mut self, request: &str, reply: &str) -> String {
        self.send(request);
        self.expect(reply)
    }

    fn expect_end(&mut self) {
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _ = self.0.read_to_end(&mut rest);
        assert!(rest.is_empty(), "before the end came {rest:02x?}");
    }
}

const Z: &str = "zzzzzzzzzzzzzzzz";
const OPEN: &str = "00000001 0000001f 00000005 776f726c64 00000006 616e796f6e65";
const TERMINATOR: &str = "ffffffff 01 ffffffff";

/// A connect request without its optional last byte, and its answer.
const NEW: &str = "00000000 0000000000000000 00007530 0000000000000000 00000010 00000000000000000000000000000000";
const CONNECTED: &str = "00000000 00004e20 ssssssssssssssss 00000010 wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww";
const EXPIRED: &str = "00000000 00000000 0000000000000000 00000010 00000000000000000000000000000000";

/// A stat: version, cversion, aversion; owner; length, children.
fn stat(versions: &str, owner: &str, sizes: &str) -> String {
    format!("{Z} {Z} tttttttttttttttt tttttttttttttttt {versions} {owner} {sizes} {Z}")
}

const NOBODY: &str = "0000000000000000";
const NEWBORN: &str = "00000000 00000000 00000000";

fn path(text: &str) -> String {
    let digits: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{:08x} {digits}", text.len())
}

/// A plain create of an open, empty znode.
fn create(xid: u32, opcode: u32, at: &str, flags: u32) -> String {
    format!("{xid:08x} {opcode:08x} {} 00000000 {OPEN} {flags:08x}", path(at))
}

/// Runs a story on a thread of its own: its sockets block.
async fn story(told: impl FnOnce(SocketAddr) + Send + 'static) {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&alone(folder.path())).await;
    let address = server.client_addr();
    // It serves as soon as a handshake is answered.
    common::Client::connect(address).await.close().await;
    tokio::task::spawn_blocking(move || told(address)).await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes() {
    story(|server| {
        let mut raw = Raw::open(server);
        raw.send(NEW);
        raw.expect(CONNECTED);
        let mut raw = Raw::session(server);
        raw.ask("00000001 fffffff5", &format!("00000001 {Z} 00000000"));
        raw.expect_end();
        // A session that nobody has.
        for (flag, answered) in [("", ""), ("01", "00")] {
            let mut raw = Raw::open(server);
            raw.send(&format!("00000000 0000000000000000 00007530 0000000000005555 00000010 {:032} {flag}", 0));
            raw.expect(&format!("{EXPIRED} {answered}"));
            raw.expect_end();
        }
        // A client that has seen what this server has not.
        let mut raw = Raw::open(server);
        raw.send(&format!("00000000 7fffffffffffffff 00007530 {NOBODY} 00000010 {:032} 00", 0));
        raw.expect_end();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn creates_and_deletes() {
    story(|server| {
        let mut raw = Raw::session(server);
        raw.ask(
            &format!("00000001 00000001 00000003 2f7432 00000001 78 {OPEN} 00000000"),
            &format!("00000001 {Z} 00000000 00000003 2f7432"),
        );
        let born = stat(NEWBORN, NOBODY, "00000000 00000000");
        raw.ask(&create(2, 15, "/c", 0), &format!("00000002 {Z} 00000000 {} {born}", path("/c")));
        raw.ask(&create(3, 1, "/c", 0), &format!("00000003 {Z} ffffff92"));
        raw.ask(&create(4, 1, "/no/x", 0), &format!("00000004 {Z} ffffff9b"));
        raw.ask(&format!("00000005 00000002 {} 00000007", path("/c")), &format!("00000005 {Z} ffffff99"));
        raw.ask(&create(6, 1, "/c/d", 0), &format!("00000006 {Z} 00000000 {}", path("/c/d")));
        raw.ask(&format!("00000007 00000002 {} ffffffff", path("/c")), &format!("00000007 {Z} ffffff91"));
        raw.ask(&format!("00000008 00000002 {} 00000000", path("/c/d")), &format!("00000008 {Z} 00000000"));
        // An ephemeral says whose it is; a container and a TTL znode do not (they have no owner).
        let mine = stat(NEWBORN, "ssssssssssssssss", "00000000 00000000");
        let got = raw.ask(&create(9, 15, "/e", 1), &format!("00000009 {Z} 00000000 {} {mine}", path("/e")));
        assert_ne!(got[got.len() - 48..got.len() - 32], *NOBODY, "the owner");
        raw.ask(&create(10, 19, "/k", 4), &format!("0000000a {Z} 00000000 {} {born}", path("/k")));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_with_a_watch_between_them() {
    story(|server| {
        let mut raw = Raw::session(server);
        raw.send(&create(1, 1, "/w", 0));
        raw.send(&format!("00000002 00000004 {} 01", path("/w")));
        raw.send(&format!("00000003 00000005 {} 00000001 78 ffffffff", path("/w")));
        raw.send("fffffffe 0000000b");
        raw.send(&format!("00000004 00000003 {} 00", path("/w")));
        raw.expect(&format!("00000001 {Z} 00000000 {}", path("/w")));
        let born = stat(NEWBORN, NOBODY, "00000000 00000000");
        raw.expect(&format!("00000002 {Z} 00000000 00000000 {born}"));
        let event = raw.expect(&format!("ffffffff {Z} 00000000 00000003 00000003 {}", path("/w")));
        let changed = stat("00000001 00000000 00000000", NOBODY, "00000001 00000000");
        let set = raw.expect(&format!("00000003 {Z} 00000000 {changed}"));
        assert_eq!(event[8..24], set[8..24], "the event has the zxid of its transaction");
        raw.expect(&format!("fffffffe {Z} 00000000"));
        raw.expect(&format!("00000004 {Z} 00000000 {changed}"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sequential_names_and_what_the_parent_shows() {
    story(|server| {
        let mut raw = Raw::session(server);
        raw.ask(&create(1, 1, "/q", 0), &format!("00000001 {Z} 00000000 {}", path("/q")));
        raw.ask(&create(2, 1, "/q/s-", 2), &format!("00000002 {Z} 00000000 {}", path("/q/s-0000000000")));
        raw.ask(&create(3, 1, "/q/plain", 0), &format!("00000003 {Z} 00000000 {}", path("/q/plain")));
        let last = raw.ask(&create(4, 1, "/q/s-", 2), &format!("00000004 {Z} 00000000 {}", path("/q/s-0000000002")));
        let parent = stat("00000000 00000003 00000000", NOBODY, "00000000 00000003");
        let got = raw.ask(&format!("00000005 00000003 {} 00", path("/q")), &format!("00000005 {Z} 00000000 {parent}"));
        assert_eq!(got[got.len() - 16..], last[8..24], "pzxid is the zxid of the last child's creation");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_on_what_is_not_there() {
    story(|server| {
        let (mut raw, mut other) = (Raw::session(server), Raw::session(server));
        raw.ask(&format!("00000001 00000003 {} 01", path("/m")), &format!("00000001 {Z} ffffff9b"));
        let made = other.ask(&create(1, 1, "/m", 0), &format!("00000001 {Z} 00000000 {}", path("/m")));
        let event = raw.expect(&format!("ffffffff {Z} 00000000 00000001 00000003 {}", path("/m")));
        assert_eq!(event[8..24], made[8..24]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn multis() {
    story(|server| {
        let mut raw = Raw::session(server);
        let inner = |opcode: u32, body: &str| format!("{opcode:08x} 00 ffffffff {body}");
        let new = format!("{} 00000000 {OPEN} 00000000", path("/m"));
        let (set, check) = (format!("{} 00000001 78 00000000", path("/m")), format!("{} 00000001", path("/m")));
        let born = stat("00000001 00000000 00000000", NOBODY, "00000001 00000000");
        raw.ask(
            &format!("00000001 0000000e {} {} {} {TERMINATOR}", inner(1, &new), inner(5, &set), inner(13, &check)),
            &format!(
                "00000001 {Z} 00000000 00000001 00 00000000 {} 00000005 00 00000000 {born} 0000000d 00 00000000 {TERMINATOR}",
                path("/m")
            ),
        );
        // The second of three fails.
        let wrong = format!("{} 00000063", path("/m"));
        raw.ask(
            &format!("00000002 0000000e {} {} {} {TERMINATOR}", inner(13, &check), inner(2, &wrong), inner(13, &check)),
            &format!(
                "00000002 {Z} 00000000 ffffffff 00 00000000 00000000 ffffffff 00 ffffff99 ffffff99 \
                 ffffffff 00 fffffffe fffffffe {TERMINATOR}"
            ),
        );
        raw.ask(&format!("00000003 0000000e {TERMINATOR}"), &format!("00000003 {Z} 00000000 {TERMINATOR}"));
        // A read among changes; a change among reads.
        let read = format!("{} 00", path("/m"));
        raw.ask(
            &format!("00000004 0000000e {} {} {TERMINATOR}", inner(13, &check), inner(4, &read)),
            &format!("00000004 {Z} fffffffb"),
        );
        raw.ask(
            &format!("00000005 00000016 {} {TERMINATOR}", inner(13, &check)),
            &format!("00000005 {Z} fffffffb {TERMINATOR}"),
        );
        // Reads go on behind one that fails.
        raw.ask(
            &format!("00000006 00000016 {} {} {TERMINATOR}", inner(4, &format!("{} 00", path("/no"))), inner(4, &read)),
            &format!(
                "00000006 {Z} 00000000 ffffffff 00 ffffff9b ffffff9b 00000004 00 00000000 00000001 78 {born} {TERMINATOR}"
            ),
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn persistent_watches_removal_and_catching_up() {
    story(|server| {
        let (mut raw, mut other) = (Raw::session(server), Raw::session(server));
        let made = |other: &mut Raw, xid: u32, at: &str| {
            other.ask(&create(xid, 1, at, 0), &format!("{xid:08x} {Z} 00000000 {}", path(at)))
        };
        made(&mut other, 1, "/p");
        for mode in [0, 1] {
            raw.ask(
                &format!("00000001 0000006a {} {mode:08x}", path("/p")),
                &format!("00000001 {Z} 00000000 00000000"),
            );
        }
        raw.ask(&format!("00000002 0000006a {} 00000002", path("/p")), &format!("00000002 {Z} fffffffb"));
        made(&mut other, 2, "/p/x");
        raw.expect(&format!("ffffffff {Z} 00000000 00000001 00000003 {}", path("/p/x")));
        raw.expect(&format!("ffffffff {Z} 00000000 00000004 00000003 {}", path("/p")));
        for (kind, code) in [(1, "ffffff87"), (2, "ffffff87"), (4, "00000000"), (4, "ffffff87"), (5, "00000000")] {
            let reply = format!("00000003 {Z} {code}");
            raw.ask(&format!("00000003 00000012 {} {kind:08x}", path("/p")), &reply);
        }
        raw.ask(&format!("00000004 00000011 {} 00000003", path("/p")), &format!("00000004 {Z} ffffff87"));
        // What was missed since the beginning of time, before the reply.
        let list =
            |paths: &[&str]| format!("{:08x} {}", paths.len(), paths.iter().map(|p| path(p)).collect::<String>());
        raw.ask(
            &format!("fffffff8 00000065 {NOBODY} {} {} {}", list(&["/p", "/no"]), list(&["/p/x"]), list(&["/p"])),
            &format!("ffffffff ffffffffffffffff 00000000 00000003 00000003 {}", path("/p")),
        );
        for (kind, at) in [(2, "/no"), (1, "/p/x"), (4, "/p")] {
            raw.expect(&format!("ffffffff ffffffffffffffff 00000000 {kind:08x} 00000003 {}", path(at)));
        }
        raw.expect(&format!("fffffff8 {Z} 00000000"));
        raw.ask(&format!("fffffff8 00000065 {NOBODY} ffffffff 00000000 00000000"), &format!("fffffff8 {Z} fffffffb"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn identities_and_lists() {
    story(|server| {
        let mut raw = Raw::session(server);
        let auth = format!("fffffffc 00000064 00000000 {} {}", path("digest"), path("bob:secret"));
        raw.ask(&auth, "fffffffc 0000000000000000 00000000");
        // `auth` becomes who the connection is; kazoo sends its empty id as null.
        let list = format!("00000001 0000001f {} ffffffff", path("auth"));
        raw.ask(
            &format!("00000001 00000001 {} 00000000 {list} 00000000", path("/a")),
            &format!("00000001 {Z} 00000000 {}", path("/a")),
        );
        let born = stat(NEWBORN, NOBODY, "00000000 00000000");
        let bobs = format!("00000001 0000001f {} {}", path("digest"), path("bob:fyVmFCwVbTJYrznoSu1koqYEYF0="));
        raw.ask(&format!("00000002 00000006 {}", path("/a")), &format!("00000002 {Z} 00000000 {bobs} {born}"));
        // Somebody else is refused before anything is said about the znode.
        let mut other = Raw::session(server);
        other.ask(&format!("00000001 00000004 {} 01", path("/a")), &format!("00000001 {Z} ffffff9a"));
        other.ask(&create(2, 1, "/a/none", 0), &format!("00000002 {Z} ffffff9a"));
        other.ask(&format!("00000003 00000002 {} ffffffff", path("/a/none")), &format!("00000003 {Z} ffffff9a"));
        // Readers who are no administrators see no hashes.
        let all = format!(
            "00000002 0000001f {} {} {}",
            path("digest"),
            path("x:y"),
            &OPEN[9..].replacen("0000001f", "00000001", 1)
        );
        raw.ask(
            &format!("00000003 00000001 {} 00000000 {all} 00000000", path("/r")),
            &format!("00000003 {Z} 00000000 {}", path("/r")),
        );
        let masked = all.replace(&path("x:y"), &path("x:x"));
        raw.ask(&format!("00000004 00000006 {}", path("/r")), &format!("00000004 {Z} 00000000 {masked} {born}"));
        // Who nobody knows is sent away.
        let nope = format!("fffffffc 00000064 00000000 {} {}", path("nope"), path("x"));
        raw.ask(&nope, "fffffffc 0000000000000000 ffffff8d");
        raw.expect_end();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request() {
    story(|server| {
        for opcode in [0u32, 13, 20, 50, 0xffff_fff6] {
            let mut raw = Raw::session(server);
            raw.ask(&format!("00000009 {opcode:08x} {} ffffffff", path("/a")), "00000009 ffffffffffffffff fffffffa");
            raw.expect_end();
        }
        let mut raw = Raw::session(server);
        raw.ask("00000001 00000001 0000", &format!("00000001 {Z} fffffffb"));
        raw.ask("00000002 00000004 7fffffff", &format!("00000002 {Z} fffffffb"));
        raw.ask("0000002a 0000000b", &format!("fffffffe {Z} 00000000"));
        for frame in ["ffffffff", "00000000", "00000007 00000000000000", "00100000"] {
            let mut raw = Raw::session(server);
            raw.0.write_all(&bytes(frame)).unwrap();
            raw.expect_end();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_letter_words_and_the_built_in_znodes() {
    story(|server| {
        let word = |word: &str| {
            let mut raw = Raw::open(server);
            raw.0.write_all(word.as_bytes()).unwrap();
            let mut text = String::new();
            raw.0.read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(word("ruok"), "imok");
        assert_eq!(word("isro"), "rw");
        assert!(word("srvr").starts_with("Zookeeper version: "));
        assert!(word("mntr").contains("zk_znode_count\t"));
        // Nobody knows it: the length of a frame that is too long.
        let mut raw = Raw::open(server);
        raw.0.write_all(b"zzzz").unwrap();
        raw.expect_end();
        let mut raw = Raw::session(server);
        let readers = "00000001 00000001 00000005 776f726c64 00000006 616e796f6e65";
        let config = format!(
            "0000000000000000 0000000000000000 0000000000000000 0000000000000000 00000000 00000000 ffffffff \
             {NOBODY} 00000000 00000000 0000000000000000"
        );
        raw.ask(
            &format!("00000001 00000006 {}", path("/zookeeper/config")),
            &format!("00000001 {Z} 00000000 {readers} {config}"),
        );
        raw.ask(
            &format!("00000002 00000004 {} 00", path("/zookeeper/config")),
            &format!("00000002 {Z} 00000000 00000000 {config}"),
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dies_takes_its_ephemerals_in_one_transaction() {
    story(|server| {
        let mut watcher = Raw::session(server);
        watcher.ask(&create(1, 1, "/d", 0), &format!("00000001 {Z} 00000000 {}", path("/d")));
        // A second is the shortest timeout here.
        let mut dying = Raw::open(server);
        dying.send(&NEW.replacen("00007530", "000003e8", 1));
        dying.expect(&CONNECTED.replacen("00004e20", "000003e8", 1));
        for (xid, at) in [(1, "/d/x"), (2, "/d/y")] {
            dying.ask(&create(xid, 1, at, 1), &format!("{xid:08x} {Z} 00000000 {}", path(at)));
            watcher.ask(
                &format!("{:08x} 00000003 {} 01", xid + 1, path(at)),
                &format!("{:08x} {Z} 00000000 {}", xid + 1, stat(NEWBORN, "ssssssssssssssss", "00000000 00000000")),
            );
        }
        watcher.ask(
            &format!("00000004 00000008 {} 01", path("/d")),
            &format!("00000004 {Z} 00000000 00000002 {} {}", path("x"), path("y")),
        );
        drop(dying);
        // The child watch fires once, with the first of them.
        let events: Vec<String> = [(2, "/d/x"), (4, "/d"), (2, "/d/y")]
            .map(|(kind, at)| watcher.expect(&format!("ffffffff {Z} 00000000 {kind:08x} 00000003 {}", path(at))))
            .into();
        assert!(events.iter().all(|event| event[8..24] == events[0][8..24]), "one zxid: {events:?}");
        let parent = stat("00000000 00000004 00000000", NOBODY, "00000000 00000000");
        let got =
            watcher.ask(&format!("00000005 00000003 {} 00", path("/d")), &format!("00000005 {Z} 00000000 {parent}"));
        assert_eq!(got[got.len() - 16..], events[0][8..24], "and it is the parent's pzxid");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_at_another_server_and_not_at_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let mut servers = Vec::new();
    for config in common::ensemble(folder.path(), 3) {
        servers.push(start(&config).await);
    }
    let addresses: Vec<SocketAddr> = servers.iter().map(|server| server.client_addr()).collect();
    for address in &addresses {
        common::Client::connect(*address).await.close().await;
    }
    tokio::task::spawn_blocking(move || {
        let mut first = Raw::open(addresses[0]);
        first.send(&format!("{NEW} 00"));
        let answer = first.expect(&format!("{CONNECTED} 00"));
        first.ask(&create(1, 1, "/e", 1), &format!("00000001 {Z} 00000000 {}", path("/e")));
        let (session, password) = (&answer[16..32], &answer[40..72]);
        let again = |password: &str| format!("00000000 {NOBODY} 00007530 {session} 00000010 {password} 00");
        // With another password it is nobody's, and the first connection stays.
        let mut thief = Raw::open(addresses[1]);
        thief.send(&again(&"5".repeat(32)));
        thief.expect(&format!("{EXPIRED} 00"));
        thief.expect_end();
        first.ask(&create(2, 1, "/f", 0), &format!("00000002 {Z} 00000000 {}", path("/f")));
        let mut second = Raw::open(addresses[1]);
        second.send(&again(password));
        second.expect(&format!("00000000 00004e20 {session} 00000010 {password} 00"));
        // What is left of the first connection can do nothing more: it ends without a word.
        let _ = first.0.write_all(&bytes(&format!("00000036 {}", create(3, 1, "/never", 0))));
        first.expect_end();
        let owned = stat(NEWBORN, session, "00000000 00000000");
        second.ask(&format!("00000004 00000003 {} 00", path("/e")), &format!("00000004 {Z} 00000000 {owned}"));
        second.ask(&format!("00000005 00000009 {}", path("/")), &format!("00000005 {Z} 00000000 {}", path("/")));
        second.ask(&format!("00000006 00000003 {} 00", path("/never")), &format!("00000006 {Z} ffffff9b"));
    })
    .await
    .unwrap();
    for server in servers {
        server.stop().await;
    }
}

/// What ClickHouse's own serialization makes of its operations (`Coordination::write` of each field): the filter of a list
/// is one byte, the limit of a removal four; results in a multi have the opcode of their request, but for the plain ones.
#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_keepers_operations() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = alone(folder.path());
    config.keeper_extensions = true;
    let server = start(&config).await;
    let address = server.client_addr();
    common::Client::connect(address).await.close().await;
    tokio::task::spawn_blocking(move || {
        let mut raw = Raw::session(address);
        // Its client asks what there is before anything else: eleven bits, the first the highest.
        let read_only = stat(NEWBORN, NOBODY, "00000002 00000000");
        raw.ask(
            &format!("00000001 00000004 {} 00", path("/keeper/feature_flags")),
            &format!("00000001 {Z} 00000000 00000002 f820 {read_only}"),
        );
        // 502, create if not exists: twice, and the path both times.
        for xid in [2, 3] {
            raw.ask(&create(xid, 502, "/k", 0), &format!("{xid:08x} {Z} 00000000 {}", path("/k")));
        }
        raw.ask(&create(4, 1, "/k/eph", 1), &format!("00000004 {Z} 00000000 {}", path("/k/eph")));
        raw.ask(&create(5, 1, "/k/per", 0), &format!("00000005 {Z} 00000000 {}", path("/k/per")));
        // 500, filtered list: path, watch, and a byte: all, persistent only, ephemeral only.
        let parent = stat("00000000 00000002 00000000", NOBODY, "00000000 00000002");
        let lists =
            [("00", format!("00000002 {} {}", path("eph"), path("per"))), ("01", format!("00000001 {}", path("per")))];
        for (filter, names) in lists.into_iter().chain([("02", format!("00000001 {}", path("eph")))]) {
            let request = format!("00000006 000001f4 {} 00 {filter}", path("/k"));
            raw.ask(&request, &format!("00000006 {Z} 00000000 {names} {parent}"));
        }
        // 506, list with stats and data: two more bytes in, two more lists out.
        let owned = stat(NEWBORN, "ssssssssssssssss", "00000000 00000000");
        raw.ask(
            &format!("00000007 000001fa {} 00 02 01 01", path("/k")),
            &format!("00000007 {Z} 00000000 00000001 {} {parent} 00000001 {owned} 00000001 00000000", path("eph")),
        );
        // 501, check that it is not there: -110 if it is, in this version or any.
        raw.ask(&format!("00000008 000001f5 {} ffffffff", path("/k")), &format!("00000008 {Z} ffffff92"));
        raw.ask(&format!("00000009 000001f5 {} 00000007", path("/k")), &format!("00000009 {Z} 00000000"));
        raw.ask(&format!("0000000a 000001f5 {} ffffffff", path("/none")), &format!("0000000a {Z} 00000000"));
        // 503, remove recursively: more znodes than the limit are too many; nothing there is no fault.
        raw.ask(&format!("0000000b 000001f7 {} 00000002", path("/k")), &format!("0000000b {Z} ffffff91"));
        // In a multi each has a result of its own kind.
        raw.ask(
            &format!(
                "0000000c 0000000e 000001f5 00 ffffffff {none} ffffffff 000001f6 00 ffffffff {none} 00000000 {OPEN} \
                 00000000 000001f7 00 ffffffff {all} 00000003 {TERMINATOR}",
                none = path("/n"),
                all = path("/k")
            ),
            &format!(
                "0000000c {Z} 00000000 000001f5 00 00000000 000001f6 00 00000000 {} 000001f7 00 00000000 {TERMINATOR}",
                path("/n")
            ),
        );
        raw.ask(&format!("0000000d 000001f7 {} 00000001", path("/k")), &format!("0000000d {Z} 00000000"));
        // Its multi-read takes lists, too.
        raw.ask(
            &format!("0000000e 00000016 000001f4 00 ffffffff {} 00 02 {TERMINATOR}", path("/n")),
            &format!(
                "0000000e {Z} 00000000 0000000c 00 00000000 00000000 {} {TERMINATOR}",
                stat(NEWBORN, NOBODY, "00000000 00000000")
            ),
        );
    })
    .await
    .unwrap();
    server.stop().await;
}
