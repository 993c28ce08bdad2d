//! The differences that are known, from the one list of them.

use std::fmt;

/// Name, versions of the reference it concerns, what is done about it, why.
const LIST: &str = include_str!("differences.txt");

/// A release of ZooKeeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// The first three numbers of a text like `3.8.0-abc, built on ...`.
    pub fn parse(text: &str) -> Option<Version> {
        let mut numbers = text.trim().split(['.', '-', ',', ' ']).map(|n| n.parse().ok());
        Some(Version(numbers.next()??, numbers.next()??, numbers.next()??))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// A line of the list.
pub struct Difference {
    pub name: &'static str,
    /// Releases before it differ; `None`: every one does.
    pub until: Option<Version>,
    pub reason: &'static str,
}

/// The whole list.
pub fn list() -> Vec<Difference> {
    let lines = LIST.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let fields: Vec<&str> = line.splitn(3, '|').map(str::trim).collect();
            let [name, until, reason] = fields[..] else { panic!("not three fields: {line}") };
            let until = match until {
                "always" => None,
                until => Some(
                    until.strip_prefix("before ").and_then(Version::parse).unwrap_or_else(|| panic!("{until}: {line}")),
                ),
            };
            Difference { name, until, reason }
        })
        .collect()
}

/// Which of them concern this reference.
#[derive(Clone, Debug)]
pub struct Known {
    names: Vec<&'static str>,
}

impl Known {
    pub fn of(reference: Version) -> Known {
        let concerned = |d: &Difference| d.until.is_none_or(|until| reference < until);
        Known { names: list().into_iter().filter(concerned).map(|d| d.name).collect() }
    }

    /// Whether to allow for it. The name must be in the list.
    pub fn has(&self, name: &str) -> bool {
        debug_assert!(list().iter().any(|d| d.name == name), "{name} is not in the list");
        self.names.contains(&name)
    }
}
