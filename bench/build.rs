//! Compiles the messages for etcd, as the workspace's own are.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/etcd.proto", "proto/etcd_lock.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().build_server(false).bytes(".").compile_fds(descriptors)?;
    Ok(())
}
