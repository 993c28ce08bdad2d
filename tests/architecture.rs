//! The arrows of `docs/architecture.md`, checked against the sources: who may import whom, which files are pure, and
//! where generated types and clocks may appear.
//!
//! A room is a folder or file named in [`ROOMS`]; a file belongs to the room with the longest matching name. Making a
//! room impure, or drawing a new arrow, is a change of a table here, and so cannot happen by the way.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Every room, and the rooms that it may import beside itself and `proto`.
const ROOMS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    // Pure. The two machines know nothing of each other: `zab` orders bytes, `tree` executes entries.
    ("server/core/src/zab", &[]),
    ("server/core/src/tree", &[]),
    ("server/core/src/auth", &[]),
    ("server/core/src/watch", &[]),
    ("server/core/src/session", &["server/core/src/tree", "server/core/src/watch"]),
    ("server/core/src/storage", &["server/core/src/tree", "server/core/src/zab"]),
    (
        "server/core/src/apply.rs",
        &["server/core/src/session", "server/core/src/tree", "server/core/src/watch", "server/core/src/zab"],
    ),
    (
        "server/core/src/member.rs",
        &["server/core/src/apply.rs", "server/core/src/session", "server/core/src/tree", "server/core/src/zab"],
    ),
    ("server/core/src/lib.rs", &[]),
    ("server/core/src/zoo.rs", &[]),
    // Edges of the server.
    ("server/src/tls.rs", &[]),
    ("server/src/config.rs", &["server/core/src/auth", "server/src/tls.rs"]),
    ("server/src/mailbox.rs", &[]),
    ("server/src/clock.rs", &["server/core/src/zab"]),
    ("server/src/net", &[]),
    ("server/src/storage", &["server/core/src/storage", "server/core/src/tree", "server/core/src/zab"]),
    (
        "server/src/states.rs",
        &["server/core/src/storage", "server/core/src/zab", "server/src/net", "server/src/storage"],
    ),
    // Front ends translate: they never see the ordering machine or a store.
    (
        "server/src/frontend",
        &[
            "server/core/src/auth",
            "server/core/src/session",
            "server/core/src/tree",
            "server/core/src/watch",
            "server/src/node.rs",
            "server/src/tls.rs",
        ],
    ),
    (
        "server/src/recover.rs",
        &["server/core/src/storage", "server/src/config.rs", "server/src/node.rs", "server/src/storage"],
    ),
    (
        "server/src/inspect",
        &["server/core/src/storage", "server/core/src/tree", "server/core/src/zab", "server/src/storage"],
    ),
    // Counters in the form in which the front ends show them.
    // Counts what the rooms say of their work.
    ("server/src/figures.rs", &["server/core/src/apply.rs", "server/core/src/zab", "server/src/frontend"]),
    // Loops carry what the pure rooms decide.
    (
        "server/src/log_loop.rs",
        &[
            "server/core/src/storage",
            "server/core/src/zab",
            "server/src/mailbox.rs",
            "server/src/node.rs",
            "server/src/storage",
        ],
    ),
    (
        "server/src/apply_loop.rs",
        &[
            "server/core/src/apply.rs",
            "server/core/src/member.rs",
            "server/core/src/session",
            "server/core/src/tree",
            "server/core/src/zab",
            "server/src/mailbox.rs",
            "server/src/node.rs",
            "server/src/states.rs",
            "server/src/storage",
        ],
    ),
    (
        "server/src/core_loop.rs",
        &[
            "server/core/src/member.rs",
            "server/core/src/session",
            "server/core/src/storage",
            "server/core/src/tree",
            "server/core/src/zab",
            "server/src/apply_loop.rs",
            "server/src/figures.rs",
            "server/src/log_loop.rs",
            "server/src/mailbox.rs",
            "server/src/net",
            "server/src/node.rs",
        ],
    ),
    (
        "server/src/report.rs",
        &[
            "server/core/src/tree",
            "server/core/src/zab",
            "server/src/config.rs",
            "server/src/frontend",
            "server/src/node.rs",
        ],
    ),
    ("server/src/recover.rs", &["server/core", "server/src"]),
    // The only file that knows everybody.
    ("server/src/node.rs", &["server/core", "server/src"]),
    ("server/src/lib.rs", &["server/src"]),
    (
        "server/src/main.rs",
        &[
            "server/src/ensemble.rs",
            "server/src/config.rs",
            "server/src/inspect",
            "server/src/node.rs",
            "server/src/recover.rs",
        ],
    ),
    ("server/src/ensemble.rs", &["server/src/main.rs", "server/src/config.rs"]),
    // Client side: never the server.
    ("client/src", &[]),
    ("recipes/src", &["client/src"]),
    ("client/zkcli/src", &["client/src", "recipes/src"]),
    ("bench/src", &["client/src"]),
    // What is counted and timed is work of the pure rooms.
    ("bench/rooms", &["server/core"]),
    ("bench/guard", &["bench/rooms"]),
    ("bench/benches", &["bench/rooms"]),
    ("bench/build.rs", &[]),
    ("tests/sim/src", &["server/core"]),
    // It looks at servers from outside only.
    ("tests/chaos/src", &["client/src", "recipes/src", "tests/sim/src"]),
];

/// What every room may import beside `proto`: constants, in programs.
const EVERYWHERE: &[&str] = &["proto", "server/core/src/zoo.rs"];

/// Files and folders that are functions of their inputs.
const PURE: &[&str] = &[
    "proto/error_code.rs",
    "proto/path.rs",
    "proto/types.rs",
    "proto/jute",
    "server/core/src",
    "server/src/config.rs",
    "server/src/frontend/admin/json.rs",
    "server/src/frontend/grpc/convert.rs",
    "server/src/frontend/wire/four_letter.rs",
    "server/src/frontend/wire/request.rs",
    "server/src/frontend/wire/response.rs",
    "client/src/cache/view.rs",
    "client/src/feeds.rs",
    "client/src/hosts.rs",
    "client/src/session.rs",
    "client/src/watches.rs",
    "client/zkcli/src/command.rs",
    "client/zkcli/src/failure.rs",
    "client/zkcli/src/print.rs",
    "client/zkcli/src/table.rs",
    "client/zkcli/src/verbs.rs",
    "client/zkcli/src/walk.rs",
    "client/zkcli/src/words.rs",
    "recipes/src/decide",
    "recipes/src/sequence.rs",
    "tests/sim/src",
];

/// What does not belong into a pure file. (`std::time::Duration` does.)
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::time::UNIX_EPOCH",
    "std::os",
    "tokio",
    "rocksdb",
    "rand",
    "rustix",
    "socket2",
    "getrandom",
];

/// Types of `std::net` that are plain values.
const VALUES: &[&str] = &["std::net::IpAddr", "std::net::Ipv4Addr", "std::net::Ipv6Addr", "std::net::SocketAddr"];

/// Exceptions, each with its reason.
const EXCEPTIONS: &[(&str, &str)] = &[
    // The simulator's command line and its use of several processors; each run is one thread.
    ("tests/sim/src/main.rs", "std::process"),
    ("tests/sim/src/main.rs", "std::time::Instant"),
    ("tests/sim/src/main.rs", "std::thread"),
    ("tests/sim/src/swarm.rs", "std::thread"),
    // What was run is kept in a file; runs themselves touch none.
    ("tests/sim/src/journal.rs", "std::fs"),
    ("tests/sim/src/zoo.rs", "std::thread"),
    ("tests/sim/src/lib.rs", "std::thread"),
    // A seeded generator; global randomness is forbidden by clippy.toml.
    ("tests/sim/src/rng.rs", "rand"),
];

/// Where generated protobuf types may be named: at the edges.
const GENERATED: &[&str] = &[
    "server/core/src/tree/entry.rs",
    "server/src/frontend/grpc",
    "server/src/net/peer_link.rs",
    "client/src/transport.rs",
    "client/src/connection",
];

/// The files that may read a clock or draw from the system's randomness (see clippy.toml).
const CLOCK: &[&str] = &["server/src/clock.rs"];

/// A store's view owns a snapshot and the database that it borrows from, which the language cannot express.
const UNSAFE: &[&str] = &["server/src/storage/rocks.rs"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file of the workspace that is no test, as a path from the root with its text.
fn sources() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for folder in ["proto", "server", "client", "recipes", "bench", "tests/sim", "tests/chaos"] {
        collect(&root().join(folder), &mut files);
    }
    assert!(files.len() > 60, "the sources were not found");
    files
}

fn collect(folder: &Path, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).expect("a folder of the workspace") {
        let path = entry.expect("readable").path();
        let name = path.strip_prefix(root()).expect("below the root").to_string_lossy().replace('\\', "/");
        if path.is_dir() {
            let last = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // Tests and examples use whatever they like.
            if !(matches!(last.as_str(), "tests" | "examples" | "target" | "testscripts") && name != "tests/sim") {
                collect(&path, files);
            }
        } else if name.ends_with(".rs") && !name.ends_with("/tests.rs") && !name.ends_with("_tests.rs") {
            files.insert(name, without_tests(&fs::read_to_string(&path).expect("readable")));
        }
    }
}

/// The code of a file: no comments, no test modules (they stand at the end, behind `#[cfg(test)]` at the margin).
fn without_tests(text: &str) -> String {
    let lines = text.lines().take_while(|line| *line != "#[cfg(test)]");
    lines.map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Every path that a file names from a crate's root on: in `use` (braces opened up) and in the code.
fn paths(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut rest = text;
    while let Some(at) = rest.find("use ") {
        let is_word = rest[..at].chars().next_back().is_none_or(|c| c.is_whitespace());
        rest = &rest[at + 4..];
        if is_word && let Some(end) = rest.find(';') {
            expand("", &rest[..end].split_whitespace().collect::<Vec<_>>().join(" "), &mut found);
        }
    }
    let word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    for path in text.split(|c: char| !word(c)).filter(|p| p.contains("::")) {
        found.insert(path.trim_matches(':').to_string());
    }
    found
}

/// Opens up the braces of one `use`.
fn expand(prefix: &str, tree: &str, found: &mut BTreeSet<String>) {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let path = tree.split(" as ").next().unwrap_or_default().trim();
        found.insert(format!("{prefix}{path}").trim_end_matches("::self").trim_end_matches("::*").to_string());
        return;
    };
    let inner = tree[open + 1..].trim_end().trim_end_matches('}');
    let prefix = format!("{prefix}{}", tree[..open].trim());
    let mut depth = 0;
    let mut start = 0;
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !inner[start..at].trim().is_empty() {
                    expand(&prefix, &inner[start..at], found);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// The folder of a crate's sources and the crate's name in paths.
const CRATES: &[(&str, &str)] = &[
    ("server/core/src", "corral_core"),
    ("server/src", "corral_server"),
    ("client/src", "corral_client"),
    ("recipes/src", "corral_recipes"),
    ("client/zkcli/src", "corral_zkcli"),
    ("bench/src", "corral_bench"),
    ("bench/rooms", "corral_rooms"),
    ("bench/guard", "corral_guard"),
    ("tests/sim/src", "corral_sim"),
    ("tests/chaos/src", "corral_chaos"),
    ("proto", "corral_proto"),
];

fn is_in(file: &str, room: &str) -> bool {
    file == room || file.strip_prefix(room).is_some_and(|rest| rest.starts_with('/'))
}

fn crate_of(file: &str) -> &'static str {
    CRATES.iter().find(|(folder, _)| is_in(file, folder)).unwrap_or_else(|| panic!("{file} is in no crate")).0
}

/// The room that a path of `file` leads to, if it leads into the workspace.
fn target(file: &str, path: &str, files: &BTreeMap<String, String>) -> Option<String> {
    let mut steps: Vec<&str> = path.split("::").collect();
    let mut folder = match steps.remove(0) {
        "crate" => crate_of(file).to_string(),
        "super" => {
            let own = module_of(file);
            let mut up = own.rsplit_once('/')?.0.to_string();
            while steps.first() == Some(&"super") {
                steps.remove(0);
                up = up.rsplit_once('/')?.0.to_string();
            }
            up
        }
        name => CRATES.iter().find(|(_, c)| *c == name)?.0.to_string(),
    };
    // As deep as there are files.
    for step in steps {
        let next = format!("{folder}/{step}");
        if files.contains_key(&format!("{next}.rs")) && room(&format!("{next}.rs")).is_some_and(|r| r.ends_with(".rs"))
        {
            return room(&format!("{next}.rs")).map(str::to_string);
        }
        if !files.keys().any(|f| is_in(f, &next) || *f == format!("{next}.rs")) {
            break;
        }
        folder = next;
    }
    room(&folder).or_else(|| room(&format!("{folder}/lib.rs"))).map(str::to_string)
}

/// The folder that a module's file stands for.
fn module_of(file: &str) -> String {
    let name = file.trim_end_matches(".rs");
    let name = name.trim_end_matches("/mod").trim_end_matches("/lib").trim_end_matches("/main");
    name.to_string()
}

fn room(file: &str) -> Option<&'static str> {
    ROOMS.iter().map(|(room, _)| *room).filter(|room| is_in(file, room)).max_by_key(|room| room.len())
}

#[test]
fn no_arrow_points_where_it_must_not() {
    let files = sources();
    let mut wrong = Vec::new();
    for (file, text) in &files {
        let Some(from) = room(file) else {
            wrong.push(format!("{file} belongs to no room: add it to ROOMS"));
            continue;
        };
        let allowed = ROOMS.iter().find(|(room, _)| *room == from).expect("just found").1;
        for path in paths(text) {
            let Some(to) = target(file, &path, &files) else { continue };
            if to != from
                && !EVERYWHERE.contains(&&*to)
                && !to.ends_with("/lib.rs")
                && !allowed.iter().any(|a| is_in(&to, a))
            {
                wrong.push(format!("{file} imports {path} ({to}); {from} may import {allowed:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn pure_files_touch_nothing_outside() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        if !PURE.iter().any(|pure| is_in(&file, pure)) {
            continue;
        }
        for path in paths(&text) {
            for impure in IMPURE {
                let hit = path == *impure || path.strip_prefix(impure).is_some_and(|rest| rest.starts_with("::"));
                let value = VALUES.iter().any(|value| path.starts_with(value));
                if hit && !value && !EXCEPTIONS.contains(&(&file, impure)) {
                    wrong.push(format!("{file} is pure and names {path}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn generated_types_stay_at_the_edges() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let at_an_edge = is_in(&file, "proto") || GENERATED.iter().any(|edge| is_in(&file, edge));
        if !at_an_edge && paths(&text).iter().any(|p| p.starts_with("corral_proto::pb")) {
            wrong.push(file);
        }
    }
    assert!(wrong.is_empty(), "generated protobuf types in {wrong:?}");
}

#[test]
fn only_the_clock_reads_the_clock() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let is_server = is_in(&file, "server");
        if is_server && !CLOCK.contains(&file.as_str()) && text.contains("clippy::disallowed_methods") {
            wrong.push(file);
        }
    }
    assert!(wrong.is_empty(), "clocks or global randomness are let in by {wrong:?}");
}

#[test]
fn nothing_is_unsafe_and_nothing_unwraps() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            let is_unsafe = line.contains("unsafe {") || line.contains("unsafe fn") || line.contains("unsafe impl");
            if is_unsafe && !UNSAFE.contains(&file.as_str()) || line.contains(".unwrap()") {
                wrong.push(format!("{file}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_room_of_the_table_exists() {
    let files = sources();
    let named = ROOMS.iter().flat_map(|(room, allowed)| std::iter::once(room).chain(*allowed));
    for name in
        named.chain(PURE).chain(GENERATED).chain(CLOCK).chain(UNSAFE).chain(EXCEPTIONS.iter().map(|(file, _)| file))
    {
        assert!(files.keys().any(|file| is_in(file, name)), "{name} is in a table and not in the sources");
    }
}

#[test]
fn the_check_itself_sees_what_it_should() {
    let text =
        "use a::{b, c::{self, d as e}, f::*};\npub(crate) use crate::x;\nfn y() { z::w() }\n#[cfg(test)]\nuse no::no;";
    let found = paths(&without_tests(text));
    let expected = ["a::b", "a::c", "a::c::d", "a::f", "crate::x", "z::w"];
    assert!(expected.iter().all(|path| found.contains(*path)), "{found:?}");
    assert!(!found.contains("no::no"));
    let files = sources();
    let to = |path: &str| target("server/src/frontend/wire/connection.rs", path, &files);
    assert_eq!(to("corral_core::zab::io::Entry").as_deref(), Some("server/core/src/zab"));
    assert_eq!(to("super::super::Frontend").as_deref(), Some("server/src/frontend"));
    assert_eq!(to("crate::node::NodeShared").as_deref(), Some("server/src/node.rs"));
    assert_eq!(to("tokio::net::TcpStream"), None);
}
