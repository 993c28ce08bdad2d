//! A subtree at one moment, and how two moments differ.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use corral_client::Zxid;
use serde::{Deserialize, Serialize};

/// Format of the file in which a snapshot is kept.
const FILE_FORMAT: u32 = 1;

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

/// A snapshot in a file.
#[derive(Serialize, Deserialize)]
struct Kept {
    format: u32,
    /// Of which subtree.
    path: String,
    zxid: u64,
    values: BTreeMap<String, KeptValue>,
}

#[derive(Serialize, Deserialize)]
struct KeptValue {
    /// Base64; `null` for null.
    data: Option<String>,
    version: i32,
    modified: u64,
}

/// A snapshot of the subtree at `path` as a file's text: JSON, which a later version of this program reads too.
pub fn encode(path: &str, snapshot: &Snapshot) -> Vec<u8> {
    let value = |value: &ConfigValue| KeptValue {
        data: value.data.as_ref().map(|data| STANDARD.encode(data)),
        version: value.version,
        modified: value.modified.0,
    };
    let values = snapshot.values.iter().map(|(path, of)| (path.clone(), value(of))).collect();
    let kept = Kept { format: FILE_FORMAT, path: path.to_owned(), zxid: snapshot.zxid.0, values };
    // Text and numbers: nothing that could be refused.
    serde_json::to_vec_pretty(&kept).unwrap_or_default()
}

/// The snapshot of `path` in such a file.
///
/// # Errors
/// What is wrong, for people: it is damaged, of another format, or of another path.
pub fn decode(path: &str, file: &[u8]) -> Result<Snapshot, String> {
    let kept: Kept = serde_json::from_slice(file).map_err(|error| format!("no configuration: {error}"))?;
    if kept.format != FILE_FORMAT {
        return Err(format!("of format {}, and only {FILE_FORMAT} is known", kept.format));
    }
    if kept.path != path {
        return Err(format!("the configuration of {}, not of {path}", kept.path));
    }
    let mut values = BTreeMap::new();
    for (path, KeptValue { data, version, modified }) in kept.values {
        let data = data.map(|text| STANDARD.decode(text).map_err(|error| format!("{path}: {error}"))).transpose()?;
        values.insert(path, ConfigValue { data: data.map(Bytes::from), version, modified: Zxid(modified) });
    }
    Ok(Snapshot { zxid: Zxid(kept.zxid), values })
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

    #[test]
    fn a_snapshot_in_a_file_is_read_as_it_was_or_not_at_all() {
        let mut now = snapshot(&[("", "", 1), ("db/host", "h", 2)]);
        now.values.insert(
            "raw".into(),
            ConfigValue { data: Some(Bytes::from_static(b"\xff\0")), version: 7, modified: Zxid(3) },
        );
        now.values.insert("null".into(), ConfigValue { data: None, version: 0, modified: Zxid(4) });
        let file = encode("/config", &now);
        assert_eq!(decode("/config", &file), Ok(now));
        assert_eq!(decode("/other", &file).unwrap_err(), "the configuration of /config, not of /other");
        for end in 0..file.len() {
            decode("/config", &file[..end]).unwrap_err();
        }
        let newer = String::from_utf8(file).unwrap().replace("\"format\": 1", "\"format\": 2");
        assert_eq!(decode("/config", newer.as_bytes()).unwrap_err(), "of format 2, and only 1 is known");
    }
}
