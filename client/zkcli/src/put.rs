//! Writes many znodes, parents first, with many requests under way; leaves alone what is there and the same, so that work
//! that was cut short can be done again.

use std::collections::VecDeque;

use bytes::Bytes;
use corral_client::{Acl, Client, CreateMode, CreateOptions, Created, ErrorCode, Response};
use serde_json::json;

use crate::failure::Failure;
use crate::print::Output;
use crate::progress::znodes;
use crate::run::Runner;

/// Writes under way.
const IN_FLIGHT: usize = 256;
/// Conflicts that are named.
const CONFLICTS_TOLD: u64 = 20;

/// What happens to a znode that is there and differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and is told as a conflict.
    Keep,
    /// It gets the new data and ACL.
    Replace,
    /// It stays, and nothing is said.
    Skip,
}

/// A znode to be written.
#[derive(Clone, Debug)]
pub struct Put {
    pub path: String,
    pub data: Option<Bytes>,
    /// `None`: open, and not compared.
    pub acl: Option<Vec<Acl>>,
}

/// What was done, in znodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub created: u64,
    pub replaced: u64,
    pub same: u64,
    pub conflicts: u64,
}

impl Sum {
    /// Tells it.
    ///
    /// # Errors
    /// As [`Runner::show`].
    pub fn show(&self, runner: &Runner, path: &str, dry_run: bool) -> Result<(), Failure> {
        let Sum { created, replaced, same, conflicts } = *self;
        let would = if dry_run { "would be " } else { "" };
        let value = json!({
            "path": path,
            "created": created,
            "replaced": replaced,
            "same": same,
            "conflicts": conflicts,
            "dryRun": dry_run,
        });
        let text = format!("{would}created {created}, {would}replaced {replaced}, the same already {same}\n");
        runner.show(&Output::Line { text, value })
    }

    /// # Errors
    /// Something was there and differed.
    pub fn no_conflicts(&self) -> Result<(), Failure> {
        match self.conflicts {
            0 => Ok(()),
            n => Err(Failure::Other(format!(
                "{} there already and different: left alone, and --overwrite replaces them",
                znodes(n)
            ))),
        }
    }
}

/// Writes under way, in order.
pub struct Putter {
    client: Client,
    existing: Existing,
    dry_run: bool,
    under_way: VecDeque<(Put, Option<Response<Created>>)>,
    sum: Sum,
}

impl Putter {
    pub fn new(client: &Client, existing: Existing, dry_run: bool) -> Putter {
        Putter { client: client.clone(), existing, dry_run, under_way: VecDeque::new(), sum: Sum::default() }
    }

    /// Writes one more.
    ///
    /// # Errors
    /// The refusal of one of those before.
    pub async fn put(&mut self, runner: &Runner, put: Put) -> Result<(), Failure> {
        let response = (!self.dry_run).then(|| {
            let options = CreateOptions::new(CreateMode::Persistent).acl(put.acl.clone().unwrap_or_else(Acl::open));
            self.client.create(&put.path, put.data.clone(), options)
        });
        self.under_way.push_back((put, response));
        while self.under_way.len() >= IN_FLIGHT {
            self.settle_one(runner).await?;
        }
        Ok(())
    }

    /// Waits for all.
    ///
    /// # Errors
    /// A refusal.
    pub async fn finish(mut self, runner: &Runner) -> Result<Sum, Failure> {
        while !self.under_way.is_empty() {
            self.settle_one(runner).await?;
        }
        Ok(self.sum)
    }

    async fn settle_one(&mut self, runner: &Runner) -> Result<(), Failure> {
        let Some((put, response)) = self.under_way.pop_front() else { return Ok(()) };
        match response {
            Some(response) => match runner.ask(response).await {
                Ok(_) => {
                    self.sum.created += 1;
                    Ok(())
                }
                Err(Failure::Refused { code: ErrorCode::NodeExists, .. }) => self.compare(runner, put).await,
                Err(other) => Err(other),
            },
            None => match runner.ask(self.client.exists(&put.path)).await? {
                Some(_) => self.compare(runner, put).await,
                None => {
                    self.sum.created += 1;
                    Ok(())
                }
            },
        }
    }

    /// It is there: does it differ?
    async fn compare(&mut self, runner: &Runner, put: Put) -> Result<(), Failure> {
        let node = runner.ask(self.client.get(&put.path)).await?;
        let data_differs = node.data != put.data;
        let acl_differs = match &put.acl {
            None => false,
            Some(acl) => runner.ask(self.client.get_acl(&put.path)).await?.0 != *acl,
        };
        if !data_differs && !acl_differs {
            self.sum.same += 1;
            return Ok(());
        }
        match self.existing {
            Existing::Skip => self.sum.same += 1,
            Existing::Keep => {
                self.sum.conflicts += 1;
                if self.sum.conflicts <= CONFLICTS_TOLD {
                    let what = if data_differs { "other data" } else { "another ACL" };
                    runner.remark(&format!("{} is there already, with {what}", put.path));
                }
            }
            Existing::Replace => {
                self.sum.replaced += 1;
                if !self.dry_run {
                    if data_differs {
                        runner.ask(self.client.set(&put.path, put.data, Some(node.stat.version))).await?;
                    }
                    if let Some(acl) = put.acl.filter(|_| acl_differs) {
                        runner.ask(self.client.set_acl(&put.path, acl, None)).await?;
                    }
                }
            }
        }
        Ok(())
    }
}
