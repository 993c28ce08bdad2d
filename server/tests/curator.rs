//! Curator's recipes, run by a Java program, against three real servers.
//!
//! Needs a JDK and Curator: Debian's packages `default-jdk-headless` and `libcurator-recipes-java`. Other jars:
//! `CURATOR_CLASSPATH`. `.ci/run` installs them and sets `ZOOKEEPER_REQUIRED`; without them and without it the test says
//! that it did nothing.

mod processes;

use std::path::Path;
use std::process::{Command, Stdio};

use processes::Ensemble;

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/curator/Recipes.java");
const JARS: &str = "/usr/share/java";
const JAR_NAMES: [&str; 6] =
    ["curator-recipes", "curator-framework", "curator-client", "guava", "zookeeper", "slf4j-nop"];
/// Each part of the program says its name when it is through.
const PARTS: [&str; 10] =
    ["nodes", "transaction", "mutex", "semaphore", "leader", "counter", "barrier", "cache", "persistent node", "done"];

/// Where the jars are; `None` if something is missing.
fn classpath() -> Option<String> {
    let jdk = Command::new("javac").arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let mut missing = Vec::new();
    if !jdk.is_ok_and(|status| status.success()) {
        missing.push("javac (default-jdk-headless)".to_owned());
    }
    let classpath = std::env::var("CURATOR_CLASSPATH").unwrap_or_else(|_| {
        let jars = JAR_NAMES.map(|name| format!("{JARS}/{name}.jar"));
        missing.extend(jars.iter().filter(|jar| !Path::new(jar).exists()).cloned());
        jars.join(":")
    });
    assert!(missing.is_empty() || std::env::var_os("ZOOKEEPER_REQUIRED").is_none(), "missing: {missing:?}");
    if !missing.is_empty() {
        eprintln!("SKIPPED: Curator's recipes: missing {missing:?} (libcurator-recipes-java)");
    }
    missing.is_empty().then_some(classpath)
}

#[tokio::test]
async fn curators_recipes_work() {
    let Some(classpath) = classpath() else { return };
    let ensemble = Ensemble::start(3, "").await;
    let output = Command::new("java")
        .args(["-Xmx256m", "-cp", &classpath, PROGRAM, &ensemble.addresses(ensemble.ids())])
        .output()
        .expect("java runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}\n{}\n{}", String::from_utf8_lossy(&output.stderr), ensemble.tails());
    assert_eq!(printed.lines().collect::<Vec<_>>(), PARTS);
    ensemble.converge().await;
}
