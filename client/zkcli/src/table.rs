//! Documents as tables and as YAML.
//!
//! Pure.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// Columns padded with blanks, no frame: it can be cut with awk. Nothing stands behind the last cell of a line.
pub fn padded(columns: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = columns.iter().map(|name| name.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let mut text = String::new();
        for (at, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            // A last column is as long as it is.
            let width = if at + 1 == widths.len() { &0 } else { width };
            let _ = write!(text, "{cell:<width$}  ");
        }
        text.trim_end().to_owned() + "\n"
    };
    let mut text = line(columns.to_vec());
    for row in rows {
        text += &line(row.iter().map(String::as_str).collect());
    }
    text
}

/// A value in a cell: text without quotes, nothing as `-`.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => one_line(text),
        Value::Array(items) if items.iter().all(|item| !item.is_object()) => {
            items.iter().map(cell).collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}

/// Control characters as `\u{..}`, so that a row is a line.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// Documents as rows, their names as columns. A list is a row for each item; what is nested stands under `outer.inner`.
pub fn table(documents: &[Value]) -> String {
    rows(documents, &mut Vec::new())
}

/// The same, for documents that come one after the other: heads are printed only if they differ from those `printed` before.
pub fn rows(documents: &[Value], printed: &mut Vec<String>) -> String {
    let mut flat: Vec<Map<String, Value>> = Vec::new();
    for document in documents {
        let items = match document {
            Value::Array(items) => items.as_slice(),
            one => std::slice::from_ref(one),
        };
        for item in items {
            let mut row = Map::new();
            flatten("", item, &mut row);
            flat.push(row);
        }
    }
    // The path first, then in the order of the names.
    let mut columns: Vec<String> = Vec::new();
    for name in flat.iter().flat_map(Map::keys) {
        if !columns.contains(name) {
            columns.push(name.clone());
        }
    }
    columns.sort_by_key(|name| (name != "path", name.contains('.'), name.clone()));
    let heads: Vec<String> = columns.iter().map(|name| name.to_uppercase()).collect();
    let rows: Vec<Vec<String>> = flat
        .iter()
        .map(|row| columns.iter().map(|name| row.get(name).map_or("-".to_owned(), cell)).collect())
        .collect();
    let text = padded(&heads.iter().map(String::as_str).collect::<Vec<_>>(), &rows);
    if *printed == heads {
        return text.split_once('\n').map_or(String::new(), |(_, rows)| rows.to_owned());
    }
    *printed = heads;
    text
}

fn flatten(outer: &str, value: &Value, row: &mut Map<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = if outer.is_empty() { name.clone() } else { format!("{outer}.{name}") };
                flatten(&name, value, row);
            }
        }
        value => drop(row.insert(if outer.is_empty() { "value".to_owned() } else { outer.to_owned() }, value.clone())),
    }
}

/// A document in YAML, block style. Text is always quoted as JSON quotes it, which YAML reads the same.
pub fn yaml(value: &Value) -> String {
    let mut text = String::new();
    write_yaml(&mut text, value, 0);
    text
}

fn write_yaml(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
                let name =
                    if is_plain && !name.is_empty() { name.clone() } else { Value::from(name.as_str()).to_string() };
                if is_block(value) {
                    let _ = writeln!(text, "{indent}{name}:");
                    write_yaml(text, value, depth + 1);
                } else {
                    let _ = writeln!(text, "{indent}{name}: {value}");
                }
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                if is_block(item) {
                    let _ = writeln!(text, "{indent}-");
                    write_yaml(text, item, depth + 1);
                } else {
                    let _ = writeln!(text, "{indent}- {item}");
                }
            }
        }
        other => {
            let _ = writeln!(text, "{indent}{other}");
        }
    }
}

/// Whether it takes lines of its own.
fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_nests_by_two_blanks_and_quotes_text() {
        let value = json!({ "a": { "b": [1, { "c": "x: y" }], "e": [], "n": null }, "two words": true });
        assert_eq!(
            yaml(&value),
            "a:\n  b:\n    - 1\n    -\n      c: \"x: y\"\n  e: []\n  n: null\n\"two words\": true\n"
        );
        assert_eq!(yaml(&json!("no")), "\"no\"\n");
    }

    #[test]
    fn a_table_has_the_path_first_and_nested_names_last() {
        let documents = [json!({ "b": 1, "path": "/a", "stat": { "version": 2 } }), json!({ "path": "/long" })];
        assert_eq!(table(&documents), "PATH   B  STAT.VERSION\n/a     1  2\n/long  -  -\n");
        assert_eq!(table(&[json!([{ "host": "a" }, { "host": "b" }])]), "HOST\na\nb\n");
        let mut printed = Vec::new();
        assert_eq!(rows(&[json!({ "a": 1 })], &mut printed), "A\n1\n");
        assert_eq!(rows(&[json!({ "a": 2 })], &mut printed), "2\n");
        assert_eq!(rows(&[json!({ "b": 2 })], &mut printed), "B\n2\n");
        assert_eq!(table(&[json!({ "data": "two\nlines" })]), "DATA\ntwo\\nlines\n");
    }
}
