//! Instances of services as Curator's x-discovery writes them, and which of them to use.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long an instance stays registered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceType {
    /// As long as its process: an ephemeral znode.
    #[default]
    #[serde(rename = "DYNAMIC")]
    Dynamic,
    /// Until it is taken away.
    #[serde(rename = "STATIC", alias = "PERMANENT")]
    Static,
    /// As [`ServiceType::Dynamic`], and a number is appended to the id in the name of its znode: Curator's; ours register
    /// it without one.
    #[serde(rename = "DYNAMIC_SEQUENTIAL")]
    DynamicSequential,
    /// Something that later versions may know. It is found as any other, and registered as [`ServiceType::Dynamic`].
    #[serde(rename = "UNKNOWN", other)]
    Unknown,
}

/// One part of a [`UriSpec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UriPart {
    /// The text, or the name of a variable.
    pub value: String,
    /// Whether it is the name of a variable.
    pub variable: bool,
}

/// How the address of an instance is made up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UriSpec {
    /// Its parts, in order.
    pub parts: Vec<UriPart>,
}

impl UriSpec {
    /// The spec of a text with variables in braces: `{scheme}://{address}:{port}`.
    pub fn parse(text: &str) -> UriSpec {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let Some((name, tail)) = after.split_once('}') else { break };
            if !before.is_empty() {
                parts.push(UriPart { value: before.to_owned(), variable: false });
            }
            parts.push(UriPart { value: name.to_owned(), variable: true });
            rest = tail;
        }
        if !rest.is_empty() {
            parts.push(UriPart { value: rest.to_owned(), variable: false });
        }
        UriSpec { parts }
    }

    /// The address of an instance. Variables are Curator's: `scheme` (`https` where the instance has an SSL port), `name`,
    /// `id`, `address`, `port`, `ssl-port`, `service-type`, `registration-time-utc`; others are empty.
    pub fn build(&self, of: &ServiceInstance) -> String {
        let port = |port: Option<u16>| port.map_or_else(String::new, |port| port.to_string());
        self.parts
            .iter()
            .map(|part| match (part.variable, part.value.as_str()) {
                (false, text) => text.to_owned(),
                (true, "scheme") => if of.ssl_port.is_some() { "https" } else { "http" }.to_owned(),
                (true, "name") => of.name.clone(),
                (true, "id") => of.id.clone(),
                (true, "address") => of.address.clone(),
                (true, "port") => port(of.port),
                (true, "ssl-port") => port(of.ssl_port),
                (true, "registration-time-utc") => of.registration_time_ms.to_string(),
                (true, "service-type") => match of.service_type {
                    ServiceType::Dynamic => "dynamic".to_owned(),
                    ServiceType::Static => "static".to_owned(),
                    ServiceType::DynamicSequential => "dynamic_sequential".to_owned(),
                    ServiceType::Unknown => "unknown".to_owned(),
                },
                (true, _) => String::new(),
            })
            .collect()
    }
}

/// One instance of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceInstance {
    /// Of which service.
    pub name: String,
    /// Which instance: unique in the service, and the name of its znode.
    pub id: String,
    /// Where: a host's name or address.
    #[serde(default)]
    pub address: String,
    /// Port, if it has one.
    #[serde(default)]
    pub port: Option<u16>,
    /// Port with TLS, if it has one.
    #[serde(rename = "sslPort", default)]
    pub ssl_port: Option<u16>,
    /// What the program adds.
    #[serde(default)]
    pub payload: serde_json::Value,
    /// When it was registered, ms since the Unix epoch: for people. Curator fills in its client's clock; ours leaves it to
    /// the program (0), for the znode's `ctime` says it by the server's.
    #[serde(rename = "registrationTimeUTC", default)]
    pub registration_time_ms: i64,
    /// How long it stays registered.
    #[serde(rename = "serviceType", default)]
    pub service_type: ServiceType,
    /// How to reach it.
    #[serde(rename = "uriSpec", default)]
    pub uri_spec: Option<UriSpec>,
    /// Whether it is to be used.
    #[serde(default = "yes")]
    pub enabled: bool,
}

fn yes() -> bool {
    true
}

impl ServiceInstance {
    /// An instance of a service, with an id that is unique in it.
    pub fn new(
        name: impl Into<String>,
        id: impl Into<String>,
        address: impl Into<String>,
        port: u16,
    ) -> ServiceInstance {
        ServiceInstance {
            name: name.into(),
            id: id.into(),
            address: address.into(),
            port: Some(port),
            ssl_port: None,
            payload: serde_json::Value::Null,
            registration_time_ms: 0,
            service_type: ServiceType::Dynamic,
            uri_spec: None,
            enabled: true,
        }
    }

    /// The instance in a znode's data; `None`: it is none.
    pub fn parse(data: &[u8]) -> Option<ServiceInstance> {
        serde_json::from_slice(data).ok()
    }

    /// The znode's data, in JSON.
    pub fn encode(&self) -> Vec<u8> {
        // Strings, numbers and a JSON value: nothing that could be refused.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Its address by its own spec.
    pub fn uri(&self) -> Option<String> {
        self.uri_spec.as_ref().map(|spec| spec.build(self))
    }
}

/// Which of several instances is used next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// One after the other.
    #[default]
    RoundRobin,
    /// Any.
    Random,
    /// The same as before while it can be used; then any.
    Sticky,
    /// The one that is in use least often at the moment; of several, one after the other. What counts are the uses that
    /// this provider gave out.
    LeastUsed,
}

/// Chooses among instances. What is chosen depends on what was chosen before, on the number drawn, and on nothing else.
#[derive(Clone, Debug)]
pub struct Picker {
    strategy: Strategy,
    last: Option<String>,
    /// How often each is in use; those that are not have no entry.
    uses: BTreeMap<String, u32>,
}

impl Picker {
    /// A picker that has chosen nothing yet.
    pub fn new(strategy: Strategy) -> Picker {
        Picker { strategy, last: None, uses: BTreeMap::new() }
    }

    /// A use of it begins.
    pub fn begin(&mut self, id: &str) {
        *self.uses.entry(id.to_owned()).or_insert(0) += 1;
    }

    /// A use of it is over.
    pub fn end(&mut self, id: &str) {
        if let Some(uses) = self.uses.get_mut(id) {
            *uses -= 1;
            if *uses == 0 {
                self.uses.remove(id);
            }
        }
    }

    /// How often it is in use.
    pub fn uses(&self, id: &str) -> u32 {
        self.uses.get(id).copied().unwrap_or(0)
    }

    /// Chooses one of the ids, which are in a stable order; `random` is any number.
    pub fn pick<'a>(&mut self, ids: &BTreeSet<&'a str>, random: u64) -> Option<&'a str> {
        let count = u64::try_from(ids.len()).ok().filter(|count| *count > 0)?;
        if self.strategy == Strategy::LeastUsed {
            let least = ids.iter().map(|id| self.uses(id)).min()?;
            let candidates: Vec<&str> = ids.iter().copied().filter(|id| self.uses(id) == least).collect();
            let next = candidates.iter().find(|id| self.last.as_deref().is_none_or(|last| **id > last));
            let picked = next.or(candidates.first()).copied()?;
            self.last = Some(picked.to_owned());
            return Some(picked);
        }
        let any = || ids.iter().nth(usize::try_from(random % count).unwrap_or(0)).copied();
        let picked = match (self.strategy, self.last.as_deref()) {
            // The next after the last, also when that is gone by now.
            (Strategy::RoundRobin, Some(last)) => ids.iter().find(|id| **id > last).or_else(|| ids.first()).copied(),
            (Strategy::RoundRobin, None) => ids.first().copied(),
            (Strategy::Sticky, Some(last)) => ids.get(last).copied().or_else(any),
            (Strategy::Sticky, None) | (Strategy::Random | Strategy::LeastUsed, _) => any(),
        }?;
        self.last = Some(picked.to_owned());
        Some(picked)
    }
}

/// When an instance is taken for down: after so many errors within this time, and until that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DownPolicy {
    /// How many errors.
    pub errors: u32,
    /// Within which time, and for how long from the first of them.
    pub within: Duration,
}

impl Default for DownPolicy {
    /// Two errors within 30 s, as Curator.
    fn default() -> DownPolicy {
        DownPolicy { errors: 2, within: Duration::from_secs(30) }
    }
}

/// Which instances had errors.
#[derive(Clone, Debug)]
pub struct DownInstances {
    policy: DownPolicy,
    /// Since when, and how many.
    errors: BTreeMap<String, (Duration, u32)>,
}

impl DownInstances {
    /// Nobody had an error yet.
    pub fn new(policy: DownPolicy) -> DownInstances {
        DownInstances { policy, errors: BTreeMap::new() }
    }

    /// The instance had an error at `now`, on any steady clock.
    pub fn note_error(&mut self, id: &str, now: Duration) {
        self.forget(now);
        self.errors.entry(id.to_owned()).or_insert((now, 0)).1 += 1;
    }

    /// Whether it is taken for down at `now`.
    pub fn is_down(&self, id: &str, now: Duration) -> bool {
        self.errors.get(id).is_some_and(|(since, errors)| {
            *errors >= self.policy.errors && now.saturating_sub(*since) < self.policy.within
        })
    }

    /// Only these instances are left.
    pub fn retain(&mut self, ids: &BTreeSet<&str>) {
        self.errors.retain(|id, _| ids.contains(id.as_str()));
    }

    fn forget(&mut self, now: Duration) {
        let within = self.policy.within;
        self.errors.retain(|_, (since, _)| now.saturating_sub(*since) < within);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Curator 5 writes.
    const CURATORS: &str = r#"{"name":"web","id":"6cbb1b5e","address":"10.0.0.7","port":8080,"sslPort":null,
        "payload":{"@class":"com.example.Info","zone":"a"},"registrationTimeUTC":1700000000000,
        "serviceType":"DYNAMIC","uriSpec":{"parts":[{"value":"scheme","variable":true},
        {"value":"://","variable":false},{"value":"address","variable":true},{"value":":","variable":false},
        {"value":"port","variable":true}]},"enabled":true}"#;

    #[test]
    fn curators_instances_are_read_and_written_alike() {
        let instance = ServiceInstance::parse(CURATORS.as_bytes()).expect("an instance");
        assert_eq!((instance.name.as_str(), instance.port, instance.ssl_port), ("web", Some(8080), None));
        assert_eq!(instance.payload["zone"], "a");
        assert_eq!(instance.uri().as_deref(), Some("http://10.0.0.7:8080"));
        assert_eq!(instance.uri_spec, Some(UriSpec::parse("{scheme}://{address}:{port}")));
        let written: serde_json::Value = serde_json::from_slice(&instance.encode()).expect("JSON");
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(CURATORS).expect("JSON"));
    }

    #[test]
    fn an_instance_of_whatever_type_is_found() {
        let of = |service_type: &str| {
            let json = format!(r#"{{"name":"web","id":"1","serviceType":"{service_type}"}}"#);
            ServiceInstance::parse(json.as_bytes()).map(|instance| instance.service_type)
        };
        assert_eq!(of("DYNAMIC"), Some(ServiceType::Dynamic));
        assert_eq!(of("STATIC"), Some(ServiceType::Static));
        assert_eq!(of("PERMANENT"), Some(ServiceType::Static));
        assert_eq!(of("DYNAMIC_SEQUENTIAL"), Some(ServiceType::DynamicSequential));
        assert_eq!(of("OF_THE_FUTURE"), Some(ServiceType::Unknown));
        let mut instance = ServiceInstance::new("web", "1", "a", 1);
        instance.service_type = ServiceType::DynamicSequential;
        assert_eq!(ServiceInstance::parse(&instance.encode()), Some(instance));
    }

    #[test]
    fn older_and_other_fields_are_borne() {
        let old = ServiceInstance::parse(br#"{"name":"web","id":"1","serviceType":"PERMANENT","new":1}"#);
        let old = old.expect("an instance");
        assert!(old.enabled && old.service_type == ServiceType::Static && old.port.is_none());
        assert_eq!(ServiceInstance::parse(b"{}"), None);
        assert_eq!(ServiceInstance::parse(b"host:80"), None);
    }

    #[test]
    fn an_address_is_made_of_its_parts() {
        let mut instance = ServiceInstance::new("web", "1", "h", 80);
        instance.ssl_port = Some(443);
        let spec = UriSpec::parse("{scheme}://{address}:{ssl-port}/{name}/{id}?{nothing}{open");
        assert_eq!(spec.build(&instance), "https://h:443/web/1?{open");
    }

    #[test]
    fn strategies_choose_as_they_are_called() {
        let three = BTreeSet::from(["a", "b", "c"]);
        let picks = |strategy, randoms: [u64; 4]| {
            let mut picker = Picker::new(strategy);
            randoms.map(|random| picker.pick(&three, random).expect("one of three"))
        };
        assert_eq!(picks(Strategy::RoundRobin, [9; 4]), ["a", "b", "c", "a"]);
        assert_eq!(picks(Strategy::Random, [4, 3, 5, u64::MAX]), ["b", "a", "c", "a"]);
        assert_eq!(picks(Strategy::Sticky, [4, 3, 5, 0]), ["b"; 4]);
        assert_eq!(Picker::new(Strategy::Random).pick(&BTreeSet::new(), 1), None);
    }

    #[test]
    fn what_is_gone_is_neither_chosen_nor_stuck_to() {
        let mut picker = Picker::new(Strategy::Sticky);
        assert_eq!(picker.pick(&BTreeSet::from(["a", "b"]), 1), Some("b"));
        assert_eq!(picker.pick(&BTreeSet::from(["a", "c"]), 1), Some("c"));
        assert_eq!(picker.pick(&BTreeSet::from(["a", "b", "c"]), 0), Some("c"));
        let mut turns = Picker::new(Strategy::RoundRobin);
        assert_eq!(turns.pick(&BTreeSet::from(["a", "b", "c"]), 0), Some("a"));
        assert_eq!(turns.pick(&BTreeSet::from(["c", "d"]), 0), Some("c"));
    }

    #[test]
    fn an_instance_is_down_after_its_errors_and_for_a_time() {
        let at = Duration::from_secs;
        let mut down = DownInstances::new(DownPolicy { errors: 2, within: at(30) });
        down.note_error("a", at(0));
        assert!(!down.is_down("a", at(1)));
        down.note_error("a", at(10));
        assert!(down.is_down("a", at(10)) && down.is_down("a", at(29)) && !down.is_down("b", at(10)));
        assert!(!down.is_down("a", at(30)));
        // Errors far apart do not add up.
        down.note_error("b", at(40));
        down.note_error("b", at(75));
        assert!(!down.is_down("b", at(75)));
        down.note_error("b", at(76));
        down.retain(&BTreeSet::from(["a"]));
        assert!(!down.is_down("b", at(76)));
    }

    #[test]
    fn the_least_used_is_chosen_and_of_several_one_after_the_other() {
        let mut picker = Picker::new(Strategy::LeastUsed);
        let all = BTreeSet::from(["a", "b", "c"]);
        for expected in ["a", "b", "c", "a"] {
            assert_eq!(picker.pick(&all, 9), Some(expected));
        }
        picker.begin("b");
        picker.begin("c");
        picker.begin("c");
        assert_eq!(picker.pick(&all, 9), Some("a"));
        picker.begin("a");
        picker.begin("a");
        assert_eq!(picker.pick(&all, 9), Some("b"), "one use against two and two");
        picker.end("c");
        picker.end("c");
        assert_eq!((picker.pick(&all, 9), picker.uses("c")), (Some("c"), 0));
        // Whoever is gone or down is not asked for, however little it is used.
        assert_eq!(picker.pick(&BTreeSet::from(["a", "b"]), 9), Some("b"));
        assert_eq!(picker.pick(&BTreeSet::new(), 9), None);
    }
}
