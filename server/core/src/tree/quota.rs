//! Quotas: how much a subtree holds, and how much it may (wire 6.8).
//!
//! A quota on `P` is made of ordinary znodes below `/zookeeper/quota` + `P`: while `zookeeper_limits` exists, `P` has a
//! quota; `zookeeper_stats` holds its usage. Creating the second counts the subtree, `P` included. From then on every
//! creation, deletion and change of data at or below `P` is charged to the deepest quota above it, and to that one
//! only: the text in `zookeeper_stats` changes, its version, mzxid and mtime do not, and no watch fires.
//!
//! The registry of quotas is the tree itself, so every server has the same. [`Meta::quotas`](super::record::Meta) says
//! how many there are: while it is 0, nothing of this costs anything. Otherwise finding the quota of a path walks down
//! from `/zookeeper/quota` along the path and ends where that tree ends.
//!
//! Hard limits are enforced here, in the order of the log, against the usage at that point. (ZooKeeper compares with
//! what its leader has applied so far, so pipelined requests, and operations of one multi, pass there one after another
//! until the first of them is applied.) Soft limits refuse nothing.

use std::collections::BTreeMap;

use bytes::Bytes;
use corral_proto::ErrorCode;

use super::execute::Exec;
use super::read::{self, COUNT_MAX};
use super::record::{Meta, NodeRec, Stored};
use super::{Cf, TreeView, key};

/// Where quotas are kept.
const QUOTAS: &str = "/zookeeper/quota";
const LIMITS: &str = "/zookeeper_limits";
const STATS: &str = "/zookeeper_stats";

/// Names in a path that may have a quota: a bound of what one write looks up. A quota on a deeper path counts nothing.
pub const QUOTA_DEPTH_MAX: usize = 256;

/// The path that `path` is a quota of, if it is the znode that makes one.
pub(super) fn limited_by(path: &str) -> Option<&str> {
    quota_of(path, LIMITS)
}

/// The path whose usage `path` holds, if it is such a znode.
pub(super) fn counted_by(path: &str) -> Option<&str> {
    quota_of(path, STATS)
}

fn quota_of<'a>(path: &'a str, leaf: &str) -> Option<&'a str> {
    let of = path.strip_prefix(QUOTAS)?.strip_suffix(leaf)?;
    // `/zookeeper/quota` itself stands for no path: the root has no quota.
    let names = of.strip_prefix('/')?.split('/').count();
    (names <= QUOTA_DEPTH_MAX).then_some(of)
}

/// Whether `path` is `above` or below it.
fn covers(above: &str, path: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Limits, or usage: what the text of either znode says. -1: nothing said, no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Track {
    pub(super) count: i64,
    pub(super) bytes: i64,
    count_hard: i64,
    bytes_hard: i64,
}

impl Track {
    const NOTHING: Track = Track { count: -1, bytes: -1, count_hard: -1, bytes_hard: -1 };

    pub(super) fn usage(count: i64, bytes: i64) -> Track {
        Track { count, bytes, ..Track::NOTHING }
    }

    /// Reads `count=N,bytes=M=;byteHardLimit=X;countHardLimit=Y` in any order. What is no such pair says nothing:
    /// clients write these texts, and ZooKeeper dies of bad ones. Texts too long for a record say nothing either.
    fn of(data: &Stored) -> Track {
        let mut track = Track::NOTHING;
        let Stored::Inline(text) = data else { return track };
        for pair in str::from_utf8(text).unwrap_or_default().split([',', ';']) {
            let mut parts = pair.split('=');
            let (Some(name), Some(value)) = (parts.next(), parts.next()) else { continue };
            let field = match name {
                "count" => &mut track.count,
                "bytes" => &mut track.bytes,
                "countHardLimit" => &mut track.count_hard,
                "byteHardLimit" => &mut track.bytes_hard,
                _ => continue,
            };
            *field = value.parse().unwrap_or(-1);
        }
        track
    }

    /// The text, as ZooKeeper writes it: the hard limits only if there are any, behind a `=` at which its oldest
    /// parsers stop.
    pub(super) fn text(&self) -> Bytes {
        let mut text = format!("count={},bytes={}", self.count, self.bytes);
        if self.bytes_hard != -1 || self.count_hard != -1 {
            text.push('=');
        }
        for (name, limit) in [("byteHardLimit", self.bytes_hard), ("countHardLimit", self.count_hard)] {
            if limit != -1 {
                text.push_str(&format!(";{name}={limit}"));
            }
        }
        Bytes::from(text)
    }
}

/// Limits and usage of all quotas below one child of the root, summed up as ZooKeeper's `QuotaMetricsUtils` does: a hard limit
/// goes before a soft one, and "no limit" is -1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuotaFigures {
    /// Znodes that are allowed.
    pub count_limit: i64,
    /// Bytes of data that are allowed.
    pub bytes_limit: i64,
    /// Znodes there are.
    pub count_usage: i64,
    /// Bytes of data there are.
    pub bytes_usage: i64,
}

/// Znodes of quotas that are looked at for one report.
const FIGURES_ZNODES_MAX: usize = 10_000;

/// What quotas say, by the first name of the path that each is of.
pub fn figures(view: &impl TreeView) -> BTreeMap<String, QuotaFigures> {
    let mut all = BTreeMap::new();
    if Meta::read(view).is_none_or(|meta| meta.quotas == 0) {
        return all;
    }
    let mut left = FIGURES_ZNODES_MAX;
    let (from, to) = key::deeper(QUOTAS);
    view.scan(Cf::Node, &from, &to, &mut |key, value| {
        left -= 1;
        let hard_first = |hard: i64, soft: i64| if hard > -1 { hard } else { soft };
        let add = |sum: &mut i64, more: i64| *sum = sum.saturating_add(more);
        if let Some(path) = key::path_of(key)
            && let (limited, Some(of)) = (limited_by(&path), limited_by(&path).or_else(|| counted_by(&path)))
            && let Some(name) = of.split('/').nth(1)
            && let Some(rec) = NodeRec::decode(&Bytes::copy_from_slice(value))
        {
            let track = Track::of(&rec.data);
            let figures: &mut QuotaFigures = all.entry(name.to_owned()).or_default();
            if limited.is_some() {
                // Clients write these texts: any numbers.
                add(&mut figures.count_limit, hard_first(track.count_hard, track.count));
                add(&mut figures.bytes_limit, hard_first(track.bytes_hard, track.bytes));
            } else {
                add(&mut figures.count_usage, track.count);
                add(&mut figures.bytes_usage, track.bytes);
            }
        }
        left > 0
    });
    all
}

impl<V: TreeView> Exec<'_, V> {
    /// The znode under which the quota that counts `path` is kept; `None` if nothing counts it.
    fn quota_above(&self, path: &str) -> Option<String> {
        if self.meta.quotas == 0 {
            return None;
        }
        let mut kept = QUOTAS.to_owned();
        let mut found = None;
        for name in path.split('/').skip(1).take(QUOTA_DEPTH_MAX) {
            kept.push('/');
            kept.push_str(name);
            if !self.exists(&kept) {
                break;
            }
            let at = kept.len();
            kept.push_str(LIMITS);
            if self.exists(&kept) {
                found = Some(at);
            }
            kept.truncate(at);
        }
        kept.truncate(found?);
        Some(kept)
    }

    fn exists(&self, path: &str) -> bool {
        key::node(path).is_some_and(|key| self.view.get(Cf::Node, &key).is_some())
    }

    fn track(&self, path: String) -> Option<Track> {
        Some(Track::of(&read::node(&self.view, &path)?.1.data))
    }

    /// Refuses a change that takes the quota of `path` over a hard limit, if the settings say so.
    pub(super) fn stay_within_quota(&self, path: &str, count: i64, bytes: i64) -> Result<(), ErrorCode> {
        if self.meta.quotas == 0 || !read::enforces_quota(&self.view) {
            return Ok(());
        }
        let Some(kept) = self.quota_above(path) else { return Ok(()) };
        let (Some(limits), Some(usage)) = (self.track(kept.clone() + LIMITS), self.track(kept.clone() + STATS)) else {
            return Ok(());
        };
        for (what, change, used, hard, soft) in [
            ("znodes", count, usage.count, limits.count_hard, limits.count),
            ("bytes", bytes, usage.bytes, limits.bytes_hard, limits.bytes),
        ] {
            // A hard limit hides the soft one, and what changes nothing is not refused.
            let limit = if hard > -1 { hard } else { soft };
            let after = used.saturating_add(change);
            if change == 0 || limit < 0 || after <= limit {
                continue;
            }
            if hard > -1 {
                return Err(ErrorCode::QuotaExceeded);
            }
            tracing::debug!(quota = kept, what, after, limit, "above a soft limit");
        }
        Ok(())
    }

    /// Charges a change at `path` to its quota. The last step of an operation: the znode it changes may be any.
    pub(super) fn charge(&mut self, path: &str, count: i64, bytes: i64) {
        let Some(mut stats) = self.quota_above(path) else { return };
        stats.push_str(STATS);
        if let Some(mut usage) = self.track(stats.clone()) {
            usage.count = usage.count.saturating_add(count);
            usage.bytes = usage.bytes.saturating_add(bytes);
            self.put_usage(&stats, &usage);
        }
    }

    /// Writes usage into its znode, behind the back of everybody who watches it.
    pub(super) fn put_usage(&mut self, path: &str, usage: &Track) {
        let Some(mut node) = self.node(path) else { return };
        let text = usage.text();
        if node.rec.data != Stored::of(Some(&text)) {
            self.store_data(&mut node, Some(&text));
        }
    }

    /// Counts a subtree, its root included, as it will be with a znode of `bytes` bytes at `coming`.
    ///
    /// # Errors
    /// [`ErrorCode::QuotaExceeded`] if there are more than [`COUNT_MAX`] znodes.
    pub(super) fn usage_with(&self, root: &str, coming: &str, bytes: usize) -> Result<Track, ErrorCode> {
        let mut usage = Track::usage(0, 0);
        let mut add = |bytes: i64| {
            usage.count += 1;
            usage.bytes = usage.bytes.saturating_add(bytes);
            usage.count as u64 <= COUNT_MAX
        };
        if let Some((_, rec)) = read::node(&self.view, root) {
            add(rec.data.len() as i64);
            for (from, to) in [key::children(root), key::deeper(root)] {
                self.view.scan(Cf::Node, &from, &to, &mut |_, raw| add(NodeRec::data_len(raw) as i64));
            }
        }
        if covers(root, coming) {
            add(bytes as i64);
        }
        if usage.count as u64 > COUNT_MAX { Err(ErrorCode::QuotaExceeded) } else { Ok(usage) }
    }
}

#[cfg(test)]
mod tests {
    use corral_proto::Zxid;

    use super::*;
    use crate::storage::memory::MemoryStore;
    use crate::tree::TreeStore;
    use crate::tree::overlay::Overlay;
    use crate::tree::record::Owner;

    fn track(text: &'static str) -> Track {
        Track::of(&Stored::Inline(Bytes::from_static(text.as_bytes())))
    }

    #[test]
    fn figures_sum_up_the_quotas_below_a_name_and_a_hard_limit_goes_before_a_soft_one() {
        let mut overlay = Overlay::new(MemoryStore::default().view());
        assert_eq!(figures(&overlay), BTreeMap::new());
        let meta = Meta { quotas: 3, ..Meta::default() };
        overlay.put(Cf::Aux, Bytes::from_static(key::META), Some(meta.encode()));
        let mut put = |path: &str, text: &'static str| {
            let data = Stored::Inline(Bytes::from_static(text.as_bytes()));
            let rec = NodeRec {
                czxid: Zxid(1),
                mzxid: Zxid(1),
                pzxid: Zxid(1),
                ctime: 0,
                mtime: 0,
                creates: 0,
                owner: Owner::Persistent,
                version: 0,
                aversion: 0,
                acl: 0,
                num_children: 0,
                data,
            };
            overlay.put(Cf::Node, key::node(path).unwrap(), Some(rec.encode()));
        };
        put("/zookeeper/quota", "");
        put("/zookeeper/quota/a", "");
        put("/zookeeper/quota/a/zookeeper_limits", "count=5,bytes=-1=;byteHardLimit=70");
        put("/zookeeper/quota/a/zookeeper_stats", "count=2,bytes=30");
        put("/zookeeper/quota/a/b/zookeeper_limits", "count=3,bytes=10=;countHardLimit=4");
        put("/zookeeper/quota/a/b/zookeeper_stats", "count=1,bytes=2");
        put("/zookeeper/quota/c/zookeeper_stats", "count=9,bytes=9");
        put("/zookeeper/quota/d/zookeeper_limits", "count=9223372036854775807,bytes=-9223372036854775808");
        put("/zookeeper/quota/d/e/zookeeper_limits", "count=1,bytes=-1");
        put("/zookeeper/quota/d/e/zookeeper_stats", "count=9223372036854775807,bytes=9223372036854775808");
        put("/zookeeper/quotas/a/zookeeper_stats", "count=100,bytes=100");
        let of = |count_limit, bytes_limit, count_usage, bytes_usage| QuotaFigures {
            count_limit,
            bytes_limit,
            count_usage,
            bytes_usage,
        };
        let expected = [
            ("a".to_owned(), of(9, 80, 3, 32)),
            ("c".to_owned(), of(0, 0, 9, 9)),
            ("d".to_owned(), of(i64::MAX, i64::MIN, i64::MAX, -1)),
        ];
        assert_eq!(figures(&overlay), BTreeMap::from(expected), "whatever clients write there is no accident");
    }

    #[test]
    fn texts_are_read_and_written_as_zookeeper_does() {
        let all = "count=1,bytes=2=;byteHardLimit=3;countHardLimit=4";
        assert_eq!(track(all), Track { count: 1, bytes: 2, bytes_hard: 3, count_hard: 4 });
        for text in [all, "count=-1,bytes=-1", "count=2,bytes=5", "count=2,bytes=5=;countHardLimit=7"] {
            assert_eq!(track(text).text(), text);
        }
        assert_eq!(track("countHardLimit=7;;bytes=5,,count=2"), track("count=2,bytes=5=;countHardLimit=7"));
        assert_eq!(track("count==,bytes=+5").text(), "count=-1,bytes=5");
    }

    #[test]
    fn bad_texts_limit_nothing() {
        for text in ["", "count", "=", "count=x,bytes= 5", "7", "count=99999999999999999999", ",;,=;"] {
            assert_eq!(track(text), Track::NOTHING, "{text}");
        }
        assert_eq!(Track::of(&Stored::Null), Track::NOTHING);
        assert_eq!(Track::of(&Stored::Inline(Bytes::from_static(b"\xffcount=1"))), Track::NOTHING);
    }

    #[test]
    fn only_znodes_below_the_quota_tree_make_quotas() {
        assert_eq!(limited_by("/zookeeper/quota/a/b/zookeeper_limits"), Some("/a/b"));
        assert_eq!(counted_by("/zookeeper/quota/a/zookeeper_stats"), Some("/a"));
        for path in [
            "/zookeeper/quota/zookeeper_limits",
            "/zookeeper/quota",
            "/zookeeper/quotas/a/zookeeper_limits",
            "/zookeeper/quota/a/zookeeper_stats",
            "/zookeeper/quota/a/x_zookeeper_limits",
            "/a/zookeeper_limits",
        ] {
            assert_eq!(limited_by(path), None, "{path}");
        }
        let deep = |names: usize| format!("{QUOTAS}{}{LIMITS}", "/a".repeat(names));
        assert!(limited_by(&deep(QUOTA_DEPTH_MAX)).is_some());
        assert!(limited_by(&deep(QUOTA_DEPTH_MAX + 1)).is_none());
    }
}
