//! Writes that are done only while a token is live.
//!
//! A token is the czxid of its holder's contender. A contender's name holds 128 random bits (those of items of a work queue
//! do not, and have a znode beside that does), so it never comes back, also not when its directory does; it exists exactly as long as the hold can. A multi that begins with a check of it is
//! therefore done if the hold lasts at the multi's place in the ensemble's order, and not otherwise: no clock is asked, and
//! a holder that slept through the end of its session cannot do harm.

use std::fmt;
use std::future::Future;

use corral_client::{Client, CreateOptions, Created, Data, ErrorCode, MultiError, OpResult, Stat, Transaction, Zxid};

use crate::error::Error;

/// A fencing token (R4): grows from holder to holder of one lock or election, also over the deletion of its directory.
///
/// A resource outside the tree that remembers the largest token it saw and refuses smaller ones is safe against holders
/// of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub Zxid);

impl Token {
    /// The token as a plain number, for resources that compare it.
    pub const fn value(self) -> u64 {
        self.0.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What it takes to make a write depend on a hold: can be handed to another process, which uses it with its own client
/// (under the same chroot).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The znode that is there while the hold lasts.
    pub path: String,
    /// Its version while the hold lasts; `None`: any, because its name never comes back.
    pub version: Option<i32>,
    /// The token of the holder.
    pub token: Token,
    /// More znodes that are there while the hold lasts, each in this version (`None`: any). Empty for most recipes.
    pub also: Vec<(String, Option<i32>)>,
}

impl Fence {
    /// A hold that lasts as long as this znode exists.
    pub(crate) fn existing(path: &str, token: Token) -> Fence {
        Fence { path: path.to_owned(), version: None, token, also: Vec::new() }
    }

    /// The transaction with the checks before its own operations; there are [`Fence::checks`] of them.
    pub fn guard(&self, transaction: Transaction) -> Transaction {
        let first = Transaction::new().check(&self.path, self.version);
        let all = self.also.iter().fold(first, |checks, (path, version)| checks.check(path, *version));
        all.and(transaction)
    }

    /// How many operations [`Fence::guard`] puts before those of the transaction.
    pub fn checks(&self) -> usize {
        1 + self.also.len()
    }
}

/// A client whose writes are done only while a token is live, or several tokens are.
#[derive(Clone, Debug)]
pub struct Guarded {
    client: Client,
    fence: Fence,
    more: Vec<Fence>,
}

impl Guarded {
    /// Writes of `client` behind `fence`.
    pub fn new(client: Client, fence: Fence) -> Guarded {
        Guarded { client, fence, more: Vec::new() }
    }

    /// And behind this fence too: all of them must be live.
    pub fn and(mut self, fence: Fence) -> Guarded {
        self.more.push(fence);
        self
    }

    /// The token that is checked; the first of several.
    pub fn token(&self) -> Token {
        self.fence.token
    }

    /// Does all operations under one zxid if the token is live then, and else nothing. It has its place in the session's
    /// order from the call on, not from the first poll.
    ///
    /// # Errors
    /// [`Error::Fenced`]: the token is dead. [`Error::Client`] with [`corral_client::Error::Multi`]: another operation was
    /// refused; its index counts from the caller's first.
    pub fn commit(
        &self,
        transaction: Transaction,
    ) -> impl Future<Output = Result<Vec<OpResult>, Error>> + Send + use<> {
        let guarded = self.more.iter().rev().fold(transaction, |transaction, fence| fence.guard(transaction));
        let response = self.client.multi(self.fence.guard(guarded));
        let fences: Vec<Fence> = std::iter::once(&self.fence).chain(&self.more).cloned().collect();
        async move { unwrap_guard(&fences, response.await) }
    }

    /// [`Client::set`], guarded.
    ///
    /// # Errors
    /// As [`Guarded::commit`].
    pub async fn set(&self, path: &str, data: impl Into<Data>, version: Option<i32>) -> Result<Stat, Error> {
        let results = self.commit(Transaction::new().set(path, data, version)).await?;
        match results.into_iter().next() {
            Some(OpResult::Set(stat)) => Ok(stat),
            other => Err(unexpected("set", path, &other)),
        }
    }

    /// [`Client::create`], guarded.
    ///
    /// # Errors
    /// As [`Guarded::commit`].
    pub async fn create(
        &self,
        path: &str,
        data: impl Into<Data>,
        options: impl Into<CreateOptions>,
    ) -> Result<Created, Error> {
        let results = self.commit(Transaction::new().create(path, data, options)).await?;
        match results.into_iter().next() {
            Some(OpResult::Created(created)) => Ok(created),
            other => Err(unexpected("create", path, &other)),
        }
    }

    /// [`Client::delete`], guarded.
    ///
    /// # Errors
    /// As [`Guarded::commit`].
    pub async fn delete(&self, path: &str, version: Option<i32>) -> Result<(), Error> {
        self.commit(Transaction::new().delete(path, version)).await.map(drop)
    }
}

pub(crate) fn unexpected(op: &'static str, path: &str, result: &Option<OpResult>) -> Error {
    let text = format!("{result:?}");
    Error::Client(corral_client::Error::Protocol { op, path: path.to_owned(), text })
}

/// Takes the checks off the result, and tells a dead token from any other refusal.
fn unwrap_guard(fences: &[Fence], result: corral_client::Result<Vec<OpResult>>) -> Result<Vec<OpResult>, Error> {
    let checks: usize = fences.iter().map(Fence::checks).sum();
    match result {
        Ok(mut results) => {
            results.drain(..checks.min(results.len()));
            Ok(results)
        }
        Err(corral_client::Error::Multi(multi)) => Err(match fence_of(fences, multi.index) {
            Some(fence) if matches!(multi.code, ErrorCode::NoNode | ErrorCode::BadVersion) => {
                Error::Fenced { token: fence.token, path: fence.path.clone() }
            }
            Some(_) => Error::Client(multi.into()),
            None => {
                let (index, ops) = (multi.index - checks, multi.ops - checks);
                Error::Client(MultiError { index, ops, ..multi }.into())
            }
        }),
        Err(other) => Err(other.into()),
    }
}

/// The fence to which the check at this index of the transaction belongs; `None`: it is one of the caller's operations.
fn fence_of(fences: &[Fence], index: usize) -> Option<&Fence> {
    fences.iter().flat_map(|fence| std::iter::repeat_n(fence, fence.checks())).nth(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence() -> Fence {
        Fence::existing("/l/lock-0000000001", Token(Zxid(7)))
    }

    fn refused(index: usize, code: ErrorCode) -> corral_client::Result<Vec<OpResult>> {
        Err(MultiError { index, op: "check", path: "/x".into(), code, ops: 3 }.into())
    }

    #[test]
    fn the_check_stands_before_the_callers_operations() {
        let guarded = fence().guard(Transaction::new().delete("/a", None));
        assert_eq!(guarded, Transaction::new().check("/l/lock-0000000001", None).delete("/a", None));
    }

    #[test]
    fn results_are_those_of_the_callers_operations() {
        let results = unwrap_guard(&[fence()], Ok(vec![OpResult::Checked, OpResult::Deleted]));
        assert_eq!(results, Ok(vec![OpResult::Deleted]));
    }

    #[test]
    fn a_dead_token_is_told_from_a_refusal_of_the_callers_own() {
        assert_eq!(
            unwrap_guard(&[fence()], refused(0, ErrorCode::NoNode)),
            Err(Error::Fenced { token: Token(Zxid(7)), path: "/l/lock-0000000001".into() })
        );
        let own = unwrap_guard(&[fence()], refused(1, ErrorCode::NoNode)).expect_err("refused");
        let Error::Client(corral_client::Error::Multi(multi)) = own else { panic!("{own:?}") };
        assert_eq!((multi.index, multi.ops, multi.code), (0, 2, ErrorCode::NoNode));
        let unreadable = unwrap_guard(&[fence()], refused(0, ErrorCode::NoAuth)).expect_err("refused");
        assert_eq!(
            match unreadable {
                Error::Client(error) => error.code(),
                other => panic!("{other:?}"),
            },
            Some(ErrorCode::NoAuth)
        );
    }

    #[test]
    fn of_several_fences_the_dead_one_is_named() {
        let other = Fence { version: Some(3), ..Fence::existing("/q/entry-1", Token(Zxid(9))) };
        let both = [fence(), other];
        let dead = unwrap_guard(&both, refused(1, ErrorCode::BadVersion));
        assert_eq!(dead, Err(Error::Fenced { token: Token(Zxid(9)), path: "/q/entry-1".into() }));
        let results = unwrap_guard(&both, Ok(vec![OpResult::Checked, OpResult::Checked, OpResult::Deleted]));
        assert_eq!(results, Ok(vec![OpResult::Deleted]));
        let own = unwrap_guard(&both, refused(2, ErrorCode::BadVersion)).expect_err("refused");
        assert!(matches!(own, Error::Client(corral_client::Error::Multi(MultiError { index: 0, ops: 1, .. }))));
    }

    #[test]
    fn a_fence_of_several_znodes_is_dead_when_one_of_them_is_gone() {
        let mut claim = fence();
        claim.also = vec![("/taken/a".into(), None), ("/entries/a".into(), Some(2))];
        let checks = Transaction::new().check("/l/lock-0000000001", None).check("/taken/a", None);
        let guarded = claim.guard(Transaction::new().delete("/a", None));
        assert_eq!(guarded, checks.check("/entries/a", Some(2)).delete("/a", None));
        let dead = Err(Error::Fenced { token: Token(Zxid(7)), path: "/l/lock-0000000001".into() });
        for index in 0..3 {
            assert_eq!(unwrap_guard(&[claim.clone()], refused(index, ErrorCode::NoNode)), dead);
        }
        let both = [claim, Fence::existing("/x", Token(Zxid(9)))];
        let other = unwrap_guard(&both, refused(3, ErrorCode::NoNode));
        assert_eq!(other, Err(Error::Fenced { token: Token(Zxid(9)), path: "/x".into() }));
        let multi = MultiError { index: 4, op: "set", path: "/x".into(), code: ErrorCode::NoNode, ops: 5 };
        let own = unwrap_guard(&both, Err(multi.into())).expect_err("refused");
        assert!(matches!(own, Error::Client(corral_client::Error::Multi(MultiError { index: 0, ops: 1, .. }))));
    }

    #[test]
    fn tokens_compare_as_numbers_and_show_as_zxids() {
        assert!(Token(Zxid::new(1, u32::MAX)) < Token(Zxid::new(2, 0)));
        assert_eq!(Token(Zxid(0x5_0000_0003)).to_string(), "0x500000003");
    }
}
