//! Directories of contenders: created when they are missing, and listed in order.

use std::collections::BTreeMap;

use corral_client::{
    Client, Consistency, CreateMode, CreateOptions, Created, Data, ErrorCode, ReadRequest, ReadResult, ambient,
    path as paths,
};

use super::{RETRY_FIRST, RETRY_MAX};
use crate::sequence::{self, Family};

/// How often the directory is created again when it vanishes before the contender is in it: empty containers are reaped.
const ENTER_ATTEMPTS: u32 = 16;
/// Znodes read by one multi-read when czxids are needed.
const STATS_PER_READ: usize = 500;

/// Creates a znode, and its directory if need be (R11: as containers, which go when nobody uses them).
///
/// Inside a session the create is done exactly once (R1), so there is none of ours to look for after a reconnect.
pub(crate) async fn create_in(
    client: &Client,
    directory: &str,
    path: &str,
    data: Data,
    options: CreateOptions,
) -> corral_client::Result<Created> {
    let mut pause = RETRY_FIRST;
    let mut attempt = 1;
    loop {
        let mut created = client.create(path, data.clone(), options.clone()).await;
        if matches!(&created, Err(error) if error.code() == Some(ErrorCode::NoNode)) && attempt < ENTER_ATTEMPTS {
            attempt += 1;
            match create_directory(client, directory).await {
                Ok(()) => continue,
                Err(error) => created = Err(error),
            }
        }
        match created {
            Err(error) if error.is_retryable() => {
                ambient::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
            other => return other,
        }
    }
}

/// Creates a directory whose data must outlive its children: a container would be reaped with the mark in it.
pub(super) async fn create_lasting(client: &Client, directory: &str) -> corral_client::Result<()> {
    let above = paths::parent(directory).unwrap_or("/");
    match create_in(client, above, directory, Data::default(), CreateMode::Persistent.into()).await {
        Err(error) if error.code() == Some(ErrorCode::NodeExists) => Ok(()),
        other => other.map(drop),
    }
}

/// Creates a directory and what is missing above it. From below, because who may create here need not be allowed to
/// create at the top.
pub(crate) async fn create_directory(client: &Client, directory: &str) -> corral_client::Result<()> {
    let mut missing = vec![directory];
    while let Some(path) = missing.last().copied() {
        match client.create(path, (), CreateMode::Container).await {
            Ok(_) => {
                missing.pop();
            }
            Err(error) if error.code() == Some(ErrorCode::NodeExists) => {
                missing.pop();
            }
            Err(error) if error.code() == Some(ErrorCode::NoNode) => match paths::parent(path) {
                Some(parent) if parent != "/" => missing.push(parent),
                _ => return Err(error),
            },
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The contenders of a directory, first come first.
pub(crate) async fn queue(
    client: &Client,
    directory: &str,
    family: Family,
    consistency: Consistency,
) -> corral_client::Result<Vec<sequence::Contender>> {
    let children = client.read(consistency).get_children(directory).await?;
    let by_number = sequence::queue(family, children.iter().map(String::as_str), &BTreeMap::new());
    if !sequence::needs_czxids(&by_number) {
        return Ok(by_number);
    }
    let mut czxids = BTreeMap::new();
    for some in by_number.chunks(STATS_PER_READ) {
        let reads = some.iter().map(|c| ReadRequest::Get(paths::join(directory, &c.name))).collect();
        let results = client.multi_read(reads).await?;
        for (contender, result) in some.iter().zip(results) {
            if let Ok(ReadResult::Node(node)) = result {
                czxids.insert(contender.name.clone(), node.stat.czxid);
            }
        }
    }
    // Who is gone by now is no contender any more.
    let present: Vec<&str> =
        by_number.iter().map(|c| c.name.as_str()).filter(|name| czxids.contains_key(*name)).collect();
    Ok(sequence::queue(family, present, &czxids))
}
