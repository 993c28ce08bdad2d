//! Figures under ZooKeeper's names (wire 9.3, 9.4): how they are recorded, and the three forms in which they leave.
//!
//! [`metrics`] makes the one list of a moment from a [`ServerReport`]; the word `mntr`, AdminServer's `monitor` and
//! Prometheus print that list and nothing else, so they cannot disagree. Only what is measured here is in it: figures of
//! ZooKeeper's inner queues, caches and virtual machine have no counterpart and are left out (docs/operations.md).

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use corral_core::session::usage::Sizes;
use corral_core::tree::quota::QuotaFigures;

use super::operators::ServerReport;

/// Values up to here have a bucket of their own.
const EXACT: usize = 16;
/// Buckets of each further doubling: a percentile is at most an eighth too low.
const PER_DOUBLING: usize = 8;
/// Doublings that are told apart: values from 2^26 on (18 hours in ms) share the last bucket.
const DOUBLINGS: usize = 22;
/// Texts that are labels of `corral_info`: those that hardly ever change, since every combination is a series.
const LABELS: [&str; 5] = ["version", "server_state", "peer_state", "membership", "cluster"];

/// Buckets of a [`Summary`].
const BUCKETS: usize = EXACT + DOUBLINGS * PER_DOUBLING;

/// Collects values, of whatever unit, since the start of the process. Recording is a few relaxed atomic operations.
#[derive(Debug)]
pub struct Summary {
    count: AtomicU64,
    sum: AtomicU64,
    min: AtomicU64,
    max: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Default for Summary {
    fn default() -> Summary {
        Summary {
            count: AtomicU64::new(0),
            sum: AtomicU64::new(0),
            min: AtomicU64::new(u64::MAX),
            max: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

impl Summary {
    /// Adds a value.
    pub fn record(&self, value: u64) {
        self.record_many(value, 1);
    }

    /// Adds a value so many times.
    pub fn record_many(&self, value: u64, times: u64) {
        self.count.fetch_add(times, Relaxed);
        self.sum.fetch_add(value.saturating_mul(times), Relaxed);
        self.min.fetch_min(value, Relaxed);
        self.max.fetch_max(value, Relaxed);
        self.buckets[bucket(value)].fetch_add(times, Relaxed);
    }

    /// What was collected.
    pub fn report(&self) -> SummaryReport {
        let buckets: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        // Of the buckets and not of `count`: another thread may be between the two.
        let all: u64 = buckets.iter().sum();
        let max = self.max.load(Relaxed);
        let quantile = |parts: u64, of: u64| {
            let rank = (all * parts).div_ceil(of).max(1);
            let mut seen = 0;
            let found = buckets.iter().position(|count| {
                seen += count;
                seen >= rank
            });
            found.map_or(0, |index| lower_bound(index).min(max))
        };
        let count = self.count.load(Relaxed);
        SummaryReport {
            count,
            sum: self.sum.load(Relaxed),
            min: if count == 0 { 0 } else { self.min.load(Relaxed) },
            max,
            quantiles: [quantile(500, 1000), quantile(950, 1000), quantile(990, 1000), quantile(999, 1000)],
        }
    }
}

fn bucket(value: u64) -> usize {
    if value < EXACT as u64 {
        return value as usize;
    }
    // From 16 on: the doubling, and the three bits below the leading one.
    let doubling = (value.ilog2() - EXACT.ilog2()) as usize;
    if doubling >= DOUBLINGS {
        return BUCKETS - 1;
    }
    let within = (value >> (value.ilog2() - PER_DOUBLING.ilog2())) as usize % PER_DOUBLING;
    EXACT + doubling * PER_DOUBLING + within
}

/// The smallest value of a bucket.
fn lower_bound(bucket: usize) -> u64 {
    if bucket < EXACT {
        return bucket as u64;
    }
    let (doubling, within) = ((bucket - EXACT) / PER_DOUBLING, (bucket - EXACT) % PER_DOUBLING);
    ((PER_DOUBLING + within) as u64) << (doubling as u32 + EXACT.ilog2() - PER_DOUBLING.ilog2())
}

/// A [`Summary`], copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SummaryReport {
    /// How many values.
    pub count: u64,
    /// Of all values.
    pub sum: u64,
    /// 0 before the first.
    pub min: u64,
    /// 0 before the first.
    pub max: u64,
    /// Half, 95 %, 99 % and 99.9 % of the values are at most about this: up to an eighth more above 16.
    pub quantiles: [u64; 4],
}

impl SummaryReport {
    fn average(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 }
    }
}

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// ZooKeeper's name, without the `zk_` of `mntr`.
    pub name: Cow<'static, str>,
    /// What it is now.
    pub value: Value,
}

/// What a figure is.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A text: no number for Prometheus.
    Text(String),
    /// Goes up and down.
    Gauge(i64),
    /// A gauge with a fraction.
    Ratio(f64),
    /// Only grows, while the process lives.
    Counter(u64),
    /// Count, sum, bounds.
    Summary(SummaryReport),
    /// The same with its percentiles in every form.
    Percentiles(SummaryReport),
    /// Sizes by a key: a summary for each, without quantiles.
    Set(Vec<(String, Sizes)>),
    /// Gauges by a key.
    Gauges(Vec<(String, i64)>),
}

impl Metric {
    /// A text.
    pub fn text(name: &'static str, value: impl Into<String>) -> Metric {
        Metric { name: name.into(), value: Value::Text(value.into()) }
    }

    /// A gauge; what does not fit is the largest number there is.
    pub fn gauge(name: &'static str, value: impl TryInto<i64>) -> Metric {
        Metric { name: name.into(), value: Value::Gauge(value.try_into().unwrap_or(i64::MAX)) }
    }

    /// A counter.
    pub fn counter(name: &'static str, value: u64) -> Metric {
        Metric { name: name.into(), value: Value::Counter(value) }
    }

    /// A summary with bounds only, as ZooKeeper has it under this name.
    pub fn summary(name: &'static str, value: &Summary) -> Metric {
        Metric { name: name.into(), value: Value::Summary(value.report()) }
    }

    /// A summary with percentiles.
    pub fn percentiles(name: &'static str, value: &Summary) -> Metric {
        Metric { name: name.into(), value: Value::Percentiles(value.report()) }
    }
}

/// All figures, in the order of ZooKeeper's kinds: information, gauges, counters, summaries.
pub fn metrics(report: &ServerReport) -> Vec<Metric> {
    let traffic = &report.traffic;
    let latency = &traffic.latency;
    let mut all =
        vec![Metric::text("version", report.version.as_str()), Metric::text("server_state", report.mode.name())];
    if let Some(quorum) = &report.quorum {
        all.push(Metric::text("peer_state", quorum.peer_state.as_str()));
    }
    all.extend([
        Metric { name: "avg_latency".into(), value: Value::Ratio(latency.average_ms) },
        Metric::gauge("max_latency", latency.max_ms),
        Metric::gauge("min_latency", latency.min_ms),
        // Gauges in ZooKeeper: `srst` takes them back to 0.
        Metric::gauge("packets_received", traffic.received),
        Metric::gauge("packets_sent", traffic.sent),
        Metric::gauge("num_alive_connections", traffic.clients.len()),
        Metric::gauge("outstanding_requests", traffic.outstanding),
        Metric::gauge("znode_count", report.node_count),
        Metric::gauge("watch_count", report.watch_count),
        Metric::gauge("ephemerals_count", report.ephemerals),
        Metric::gauge("approximate_data_size", report.data_bytes),
        Metric::gauge("global_sessions", report.sessions),
        Metric::gauge("local_sessions", report.local_sessions),
        // None is dropped for lack of tokens.
        Metric { name: "connection_drop_probability".into(), value: Value::Ratio(0.0) },
        Metric::gauge("uptime", report.uptime_ms),
        Metric::gauge("last_client_response_size", traffic.response_sizes[0]),
        Metric::gauge("min_client_response_size", traffic.response_sizes[1]),
        Metric::gauge("max_client_response_size", traffic.response_sizes[2]),
    ]);
    type Of = fn(&QuotaFigures) -> i64;
    let quotas: [(&str, Of); 4] = [
        ("quota_count_limit_per_namespace", |of| of.count_limit),
        ("quota_bytes_limit_per_namespace", |of| of.bytes_limit),
        ("quota_count_usage_per_namespace", |of| of.count_usage),
        ("quota_bytes_usage_per_namespace", |of| of.bytes_usage),
    ];
    all.extend(quotas.map(|(name, of)| {
        let gauges = report.quotas.iter().map(|(key, figures)| (key.clone(), of(figures)));
        Metric { name: name.into(), value: Value::Gauges(gauges.collect()) }
    }));
    if let Some(quorum) = &report.quorum {
        all.push(Metric::gauge("quorum_size", quorum.voters));
    }
    if let Some([last, min, max]) = report.proposal_sizes {
        all.extend([
            Metric::gauge("last_proposal_size", last),
            Metric::gauge("min_proposal_size", min),
            Metric::gauge("max_proposal_size", max),
        ]);
    }
    all.extend([
        Metric::counter("connection_rejected", traffic.rejected),
        Metric::counter("connection_drop_count", traffic.broken_off),
        Metric::gauge("non_mtls_local_conn_count", traffic.plain[0]),
        Metric::gauge("non_mtls_remote_conn_count", traffic.plain[1]),
        Metric::counter("sessionless_connections_expired", traffic.sessionless),
        Metric::gauge("outstanding_tls_handshake", traffic.tls_under_way),
        Metric::counter("tls_handshake_exceeded", traffic.tls_refused),
        Metric::counter("unsuccessful_handshake", traffic.tls_failed),
        Metric::counter("connection_request_count", traffic.connects),
        Metric::counter("bytes_received_count", traffic.bytes_received),
        Metric::counter("response_bytes", traffic.response_bytes),
        Metric::counter("watch_bytes", traffic.watch_bytes),
        Metric::counter("large_requests_rejected", traffic.too_large),
    ]);
    all.extend(report.figures.iter().cloned());
    all.extend([
        Metric { name: "readlatency".into(), value: Value::Percentiles(traffic.read_latency) },
        Metric { name: "updatelatency".into(), value: Value::Percentiles(traffic.update_latency) },
        Metric { name: "read_per_namespace".into(), value: Value::Set(report.reads.clone()) },
        Metric { name: "write_per_namespace".into(), value: Value::Set(report.writes.clone()) },
    ]);
    all
}

/// A number with at most four digits after the point and at least one: `0.0`, `0.3333`.
pub fn java_double(value: f64) -> String {
    format!("{:?}", (value * 10_000.0).round() / 10_000.0)
}

/// A figure as the lines of `mntr` and the fields of `monitor` have it: summaries become several.
pub fn flatten(metric: Metric, into: &mut dyn FnMut(String, Value)) {
    let Metric { name, value } = metric;
    let (summary, percentiles) = match value {
        Value::Summary(summary) => (summary, false),
        Value::Percentiles(summary) => (summary, true),
        Value::Gauges(gauges) => {
            for (key, number) in gauges {
                into(format!("{key}_{name}"), Value::Gauge(number));
            }
            return;
        }
        Value::Set(set) => {
            for (key, sizes) in set {
                let summary = SummaryReport {
                    count: sizes.count,
                    sum: sizes.sum,
                    min: sizes.min,
                    max: sizes.max,
                    ..SummaryReport::default()
                };
                flatten(Metric { name: format!("{key}_{name}").into(), value: Value::Summary(summary) }, into);
            }
            return;
        }
        value => return into(name.into_owned(), value),
    };
    let number = |value: u64| Value::Gauge(i64::try_from(value).unwrap_or(i64::MAX));
    into(format!("avg_{name}"), Value::Ratio(summary.average()));
    into(format!("min_{name}"), number(summary.min));
    into(format!("max_{name}"), number(summary.max));
    into(format!("cnt_{name}"), number(summary.count));
    into(format!("sum_{name}"), number(summary.sum));
    if percentiles {
        for (label, value) in ["p50", "p95", "p99", "p999"].into_iter().zip(summary.quantiles) {
            into(format!("{label}_{name}"), number(value));
        }
    }
}

/// Key, tab, value (`mntr`).
pub fn mntr(report: &ServerReport) -> String {
    let mut out = String::new();
    for metric in metrics(report) {
        flatten(metric, &mut |name, value| {
            let value = match value {
                Value::Text(text) => text,
                Value::Gauge(number) => number.to_string(),
                Value::Counter(number) => number.to_string(),
                Value::Ratio(number) => java_double(number),
                Value::Summary(_) | Value::Percentiles(_) | Value::Set(_) | Value::Gauges(_) => {
                    unreachable!("flatten makes numbers of them")
                }
            };
            put(&mut out, format_args!("zk_{name}\t{value}\n"));
        });
    }
    out
}

/// Prometheus' text format, version 0.0.4.
///
/// Counters have both of ZooKeeper's names: plain (3.6 to 3.9) and with `_total` (3.10). Texts are left out, but for those
/// of [`LABELS`], which one series carries.
pub fn prometheus(report: &ServerReport) -> String {
    let mut out = String::new();
    let mut labels = Vec::new();
    for Metric { name, value } in metrics(report) {
        match value {
            Value::Text(text) if LABELS.contains(&&*name) => labels.push(format!("{name}=\"{}\"", escaped(&text))),
            Value::Text(_) => {}
            Value::Gauge(number) => put(&mut out, format_args!("# TYPE {name} gauge\n{name} {number}\n")),
            Value::Ratio(number) => put(&mut out, format_args!("# TYPE {name} gauge\n{name} {number}\n")),
            Value::Counter(number) => {
                put(&mut out, format_args!("# TYPE {name} counter\n{name} {number}\n"));
                // Names that say so already would be one series twice.
                if !name.ends_with("_total") {
                    put(&mut out, format_args!("# TYPE {name}_total counter\n{name}_total {number}\n"));
                }
            }
            Value::Summary(summary) => series(&mut out, &name, &summary, &[("0.5", 0)]),
            Value::Percentiles(summary) => {
                series(&mut out, &name, &summary, &[("0.5", 0), ("0.95", 1), ("0.99", 2), ("0.999", 3)]);
            }
            Value::Gauges(gauges) => {
                put(&mut out, format_args!("# TYPE {name} gauge\n"));
                for (key, number) in gauges {
                    put(&mut out, format_args!("{name}{{key=\"{}\"}} {number}\n", escaped(&key)));
                }
            }
            Value::Set(set) => {
                put(&mut out, format_args!("# TYPE {name} summary\n"));
                for (key, sizes) in set {
                    let (key, Sizes { count, sum, .. }) = (escaped(&key), sizes);
                    put(
                        &mut out,
                        format_args!("{name}_count{{key=\"{key}\"}} {count}\n{name}_sum{{key=\"{key}\"}} {sum}\n"),
                    );
                }
            }
        }
    }
    put(&mut out, format_args!("# TYPE corral_info gauge\ncorral_info{{{}}} 1\n", labels.join(",")));
    for (name, kind, value) in &report.process {
        put(&mut out, format_args!("# TYPE {name} {kind}\n{name} {value}\n"));
    }
    out
}

fn series(out: &mut String, name: &str, summary: &SummaryReport, quantiles: &[(&str, usize)]) {
    put(out, format_args!("# TYPE {name} summary\n"));
    for (label, index) in quantiles {
        // No value is not the value 0.
        if summary.count == 0 {
            put(out, format_args!("{name}{{quantile=\"{label}\"}} NaN\n"));
        } else {
            put(out, format_args!("{name}{{quantile=\"{label}\"}} {}\n", summary.quantiles[*index]));
        }
    }
    put(out, format_args!("{name}_count {}\n{name}_sum {}\n", summary.count, summary.sum));
}

/// A label's value.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a string cannot fail");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::operators::ServerMode;
    use super::*;

    #[test]
    fn every_value_is_in_the_bucket_whose_bounds_hold_it() {
        let powers = (0..40).flat_map(|power| [1_u64 << power, (1 << power) + 1, (3 << power) / 2, (1 << power) - 1]);
        for value in (0..5_000).chain(powers) {
            let bucket = bucket(value);
            assert!(lower_bound(bucket) <= value, "{value}");
            if bucket + 1 < BUCKETS {
                assert!(value < lower_bound(bucket + 1), "{value}");
            }
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert!((1..BUCKETS).all(|b| lower_bound(b) > lower_bound(b - 1)));
    }

    #[test]
    fn percentiles_are_at_most_an_eighth_too_low() {
        let summary = Summary::default();
        assert_eq!(summary.report(), SummaryReport::default());
        for value in 1..=1000 {
            summary.record(value);
        }
        let report = summary.report();
        assert_eq!((report.count, report.sum, report.min, report.max), (1000, 500_500, 1, 1000));
        for (found, exact) in report.quantiles.into_iter().zip([500, 950, 990, 999]) {
            assert!(found <= exact && found * 8 >= exact * 7, "{found} for {exact}");
        }
        summary.record_many(0, 9_000);
        assert_eq!(summary.report().quantiles[0], 0);
    }

    fn report() -> ServerReport {
        let mut report =
            ServerReport { version: "3.9.2-x".into(), mode: ServerMode::Leader, ..ServerReport::default() };
        report.node_count = 29;
        report.traffic.latency.average_ms = 1.0 / 3.0;
        report.traffic.read_latency = SummaryReport { count: 3, sum: 1, min: 0, max: 1, quantiles: [0, 1, 1, 1] };
        let fsync = Summary::default();
        fsync.record(7);
        report.writes = vec![("app".into(), Sizes { count: 2, sum: 9, min: 4, max: 5 })];
        let quota = QuotaFigures { count_limit: 7, bytes_limit: -1, count_usage: 2, bytes_usage: 3 };
        report.quotas = vec![("app".into(), quota)];
        report.figures = vec![Metric::counter("proposal_count", 5), Metric::summary("fsynctime", &fsync)];
        report
    }

    #[test]
    fn mntr_has_tabs_the_prefix_and_several_lines_for_a_summary() {
        let text = mntr(&report());
        for line in [
            "zk_version\t3.9.2-x",
            "zk_server_state\tleader",
            "zk_avg_latency\t0.3333",
            "zk_znode_count\t29",
            "zk_proposal_count\t5",
            "zk_avg_fsynctime\t7.0",
            "zk_cnt_fsynctime\t1",
            "zk_avg_readlatency\t0.3333",
            "zk_p999_readlatency\t1",
            "zk_avg_app_write_per_namespace\t4.5",
            "zk_cnt_app_write_per_namespace\t2",
            "zk_sum_app_write_per_namespace\t9",
            "zk_app_quota_count_limit_per_namespace\t7",
            "zk_app_quota_bytes_usage_per_namespace\t3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("p99_fsynctime"), "fsynctime has no percentiles in ZooKeeper");
        let keys: Vec<&str> = text.lines().map(|line| line.split_once('\t').expect("key, tab, value").0).collect();
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len(), "no key comes twice");
    }

    #[test]
    fn prometheus_says_the_same_with_types() {
        let text = prometheus(&report());
        for line in [
            "# TYPE znode_count gauge",
            "znode_count 29",
            "# TYPE proposal_count counter",
            "proposal_count 5",
            "proposal_count_total 5",
            "# TYPE fsynctime summary",
            "fsynctime{quantile=\"0.5\"} 7",
            "fsynctime_count 1",
            "fsynctime_sum 7",
            "readlatency{quantile=\"0.99\"} 1",
            "updatelatency{quantile=\"0.5\"} NaN",
            "# TYPE write_per_namespace summary",
            "write_per_namespace_count{key=\"app\"} 2",
            "write_per_namespace_sum{key=\"app\"} 9",
            "# TYPE quota_bytes_limit_per_namespace gauge",
            "quota_bytes_limit_per_namespace{key=\"app\"} -1",
            "corral_info{version=\"3.9.2-x\",server_state=\"leader\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        let types: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let names: BTreeSet<&str> = types.iter().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(names.len(), types.len(), "a name has one type");
    }

    #[test]
    fn fractions_look_like_java_doubles() {
        for (value, text) in [(0.0, "0.0"), (1.0 / 3.0, "0.3333"), (13.14632, "13.1463"), (2.0, "2.0")] {
            assert_eq!(java_double(value), text);
        }
    }
}
