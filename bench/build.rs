//! Compiles the messages for etcd, as the workspace's own are, and notes which compiler builds the guard.

use std::process::Command;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/etcd.proto", "proto/etcd_lock.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().build_server(false).bytes(".").compile_fds(descriptors)?;

    let version = Command::new(std::env::var("RUSTC")?).arg("--version").output()?.stdout;
    println!("cargo:rustc-env=BENCH_RUSTC_VERSION={}", String::from_utf8(version)?.trim());
    Ok(())
}
