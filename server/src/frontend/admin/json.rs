//! JSON as ZooKeeper's AdminServer writes it: keys in a given order, a blank on both sides of the colon, small lists on
//! one line.

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Number(i64),
    Fraction(f64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    pub(super) fn text(text: impl Into<String>) -> Json {
        Json::Text(text.into())
    }

    /// The text, with a line end.
    pub(super) fn pretty(&self) -> String {
        let mut out = String::new();
        self.write(0, &mut out);
        out.push('\n');
        out
    }

    fn write(&self, depth: usize, out: &mut String) {
        match self {
            Json::Null => out.push_str("null"),
            Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Json::Number(number) => out.push_str(&number.to_string()),
            // Infinity is no JSON; no figure is.
            Json::Fraction(number) if !number.is_finite() => out.push_str("null"),
            Json::Fraction(number) => out.push_str(&format!("{number:?}")),
            Json::Text(text) => out.push_str(&quoted(text)),
            Json::List(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    out.push_str(if index == 0 { " " } else { ", " });
                    item.write(depth, out);
                }
                out.push_str(" ]");
            }
            Json::Object(fields) if fields.is_empty() => out.push_str("{ }"),
            Json::Object(fields) => {
                out.push('{');
                for (index, (key, value)) in fields.iter().enumerate() {
                    out.push_str(if index == 0 { "\n" } else { ",\n" });
                    indent(depth + 1, out);
                    out.push_str(&quoted(key));
                    out.push_str(" : ");
                    value.write(depth + 1, out);
                }
                out.push('\n');
                indent(depth, out);
                out.push('}');
            }
        }
    }
}

fn indent(depth: usize, out: &mut String) {
    out.extend(std::iter::repeat_n("  ", depth));
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("every text can be written")
}

impl From<u64> for Json {
    fn from(number: u64) -> Json {
        Json::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<usize> for Json {
    fn from(number: usize) -> Json {
        Json::from(number as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_as_recorded() {
        let digest =
            |zxid| Json::Object(vec![("zxid".into(), Json::Number(zxid)), ("digest".into(), Json::Number(-7))]);
        let page = Json::Object(vec![
            ("digests".into(), Json::List(vec![digest(128), digest(256)])),
            ("paths".into(), Json::List(vec![Json::text("/d"), Json::text("/\"\n")])),
            ("none".into(), Json::List(Vec::new())),
            ("view".into(), Json::Object(Vec::new())),
            ("avg".into(), Json::Fraction(0.0)),
            ("error".into(), Json::Null),
        ]);
        let expected = r#"{
  "digests" : [ {
    "zxid" : 128,
    "digest" : -7
  }, {
    "zxid" : 256,
    "digest" : -7
  } ],
  "paths" : [ "/d", "/\"\n" ],
  "none" : [ ],
  "view" : { },
  "avg" : 0.0,
  "error" : null
}
"#;
        assert_eq!(page.pretty(), expected);
        serde_json::from_str::<serde_json::Value>(&page.pretty()).expect("it is JSON");
    }
}
