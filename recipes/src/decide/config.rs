//! A subtree at one moment, and how two moments differ.

use std::collections::BTreeMap;

use bytes::Bytes;
use corral_client::Zxid;

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigValue {
    /// The data; `None` for null.
    pub data: Option<Bytes>,
    /// How often it was replaced.
    pub version: i32,
    /// When it was last replaced.
    pub modified: Zxid,
}

/// All values below a path, as of one state of the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The state.
    pub zxid: Zxid,
    /// By path from the root on: empty for the root itself, `db/host` for what is two levels below.
    pub values: BTreeMap<String, ConfigValue>,
}

/// One difference between two snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigChange {
    /// It is new.
    Added(String),
    /// It has other data.
    Changed(String),
    /// It is gone.
    Removed(String),
}

impl Snapshot {
    /// The bytes of one value, null read as empty; `None`: it is not there.
    pub fn get(&self, path: &str) -> Option<&[u8]> {
        self.values.get(path).map(|value| value.data.as_deref().unwrap_or_default())
    }

    /// One value as text.
    ///
    /// # Errors
    /// What is wrong, for people: it is not there, or no UTF-8.
    pub fn text(&self, path: &str) -> Result<&str, String> {
        let bytes = self.get(path).ok_or_else(|| format!("{path} is missing"))?;
        std::str::from_utf8(bytes).map_err(|_| format!("{path} is not UTF-8"))
    }

    /// One value as whatever can be read from text: `snapshot.parse::<u16>("db/port")`.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn parse<T: std::str::FromStr>(&self, path: &str) -> Result<T, String>
    where
        T::Err: std::fmt::Display,
    {
        let text = self.text(path)?;
        text.trim().parse().map_err(|error| format!("{path} is {text:?}: {error}"))
    }

    /// What happened from this snapshot to `newer`, by path.
    pub fn changes(&self, newer: &Snapshot) -> Vec<ConfigChange> {
        let mut changes = Vec::new();
        for (path, value) in &newer.values {
            match self.values.get(path) {
                None => changes.push(ConfigChange::Added(path.clone())),
                Some(old) if old.modified != value.modified => changes.push(ConfigChange::Changed(path.clone())),
                Some(_) => {}
            }
        }
        let gone = self.values.keys().filter(|path| !newer.values.contains_key(*path));
        changes.extend(gone.cloned().map(ConfigChange::Removed));
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(values: &[(&str, &'static str, u64)]) -> Snapshot {
        let value = |(path, data, modified): &(&str, &'static str, u64)| {
            let data = Some(Bytes::from_static(data.as_bytes()));
            ((*path).to_owned(), ConfigValue { data, version: 0, modified: Zxid(*modified) })
        };
        Snapshot { zxid: Zxid(9), values: values.iter().map(value).collect() }
    }

    #[test]
    fn values_are_read_with_errors_for_people() {
        let now = snapshot(&[("db/host", "h", 1), ("db/port", " 80\n", 2), ("bad", "x", 3)]);
        assert_eq!((now.text("db/host"), now.parse::<u16>("db/port")), (Ok("h"), Ok(80)));
        assert_eq!(now.text("no").unwrap_err(), "no is missing");
        assert_eq!(now.parse::<u16>("bad").unwrap_err(), "bad is \"x\": invalid digit found in string");
    }

    #[test]
    fn changes_are_told_by_what_was_modified() {
        let old = snapshot(&[("a", "1", 1), ("b", "1", 2), ("c", "1", 3)]);
        // The same text, written anew, is a change: it may have been another in between.
        let new = snapshot(&[("a", "1", 1), ("b", "1", 5), ("d", "1", 6)]);
        let changes =
            [ConfigChange::Changed("b".into()), ConfigChange::Added("d".into()), ConfigChange::Removed("c".into())];
        assert_eq!(old.changes(&new), changes);
        assert_eq!(old.changes(&old), []);
    }
}
