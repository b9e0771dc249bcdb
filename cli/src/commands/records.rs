//! Reading the JSON the auth server answers with, for tables and sentences.

use anyhow::Context as _;
use serde_json::Value;

use crate::arguments::Output;
use crate::context::Context;
use crate::duration;
use crate::exit::ExitStatus;
use crate::table::Listing;

/// Parses a reply's JSON.
pub(super) fn parse(json: &str) -> anyhow::Result<Value> {
    serde_json::from_str(json).context("the auth server answered with something that is not JSON")
}

/// The value under a dotted path as text; empty when it is absent or null.
pub(super) fn text(record: &Value, path: &str) -> String {
    lookup(record, path).map(plain).unwrap_or_default()
}

/// The value under a dotted path as a number.
pub(super) fn number(record: &Value, path: &str) -> Option<u64> {
    lookup(record, path)?.as_u64()
}

/// A time without its milliseconds: `2026-11-22 14:03:07`.
pub(super) fn time(record: &Value, path: &str) -> String {
    let text = text(record, path);
    text.get(..19)
        .map_or(text.clone(), |short| short.replace('T', " "))
}

/// A size for people.
pub(super) fn size(record: &Value, path: &str) -> String {
    number(record, path).map(duration::size).unwrap_or_default()
}

/// A user is a name, or an object with one.
pub(super) fn user(record: &Value) -> String {
    match lookup(record, "user") {
        Some(Value::Object(_)) => text(record, "user.name"),
        _ => text(record, "user"),
    }
}

/// A table of the records' fields.
pub(super) fn table(records: &[Value], columns: &[(&'static str, &'static str)]) -> Listing {
    let header: Vec<&'static str> = columns.iter().map(|(title, _)| *title).collect();
    let mut listing = Listing::new(&header);
    for record in records {
        listing.row(columns.iter().map(|(_, path)| shown(text(record, path))));
    }
    listing
}

/// Times lose their milliseconds in tables.
fn shown(text: String) -> String {
    let is_time = text.len() == "2026-11-22T14:03:07.123Z".len()
        && text.ends_with('Z')
        && text.get(10..11) == Some("T")
        && text
            .get(..4)
            .is_some_and(|year| year.bytes().all(|byte| byte.is_ascii_digit()));
    if is_time {
        text.get(..19).unwrap_or_default().replace('T', " ")
    } else {
        text
    }
}

/// Prints a list of records: the JSON as it is, or a table of some fields.
pub(super) fn show_list(
    context: &Context,
    output: Output,
    records: &Value,
    columns: &[(&'static str, &'static str)],
    empty: &str,
) -> anyhow::Result<ExitStatus> {
    if output.is_json() {
        context.printer.json(records)?;
        return Ok(ExitStatus::Done);
    }
    let listing = table(records.as_array().map(Vec::as_slice).unwrap_or_default(), columns);
    show_table(context, &listing, empty)
}

/// Prints a table, or says on stderr that there is nothing.
pub(super) fn show_table(context: &Context, listing: &Listing, empty: &str) -> anyhow::Result<ExitStatus> {
    if listing.is_empty() {
        context.printer.talk(empty);
    } else {
        context.printer.result(&listing.render())?;
    }
    Ok(ExitStatus::Done)
}

/// Every field of a record, nested ones by dotted path, in the record's order.
pub(super) fn flatten(record: &Value) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    flatten_into("", record, &mut fields);
    fields
}

fn flatten_into(prefix: &str, value: &Value, fields: &mut Vec<(String, String)>) {
    let Value::Object(object) = value else {
        return;
    };
    for (key, value) in object {
        let path = if prefix.is_empty() {
            key.clone()
        } else {
            format!("{prefix}.{key}")
        };
        match value {
            Value::Object(_) => flatten_into(&path, value, fields),
            Value::Null => {}
            Value::Array(_) | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                fields.push((path, plain(value)));
            }
        }
    }
}

fn lookup<'a>(record: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(record, |value, key| value.get(key))
}

fn plain(value: &Value) -> String {
    match value {
        Value::Array(items) => items.iter().map(scalar).collect::<Vec<_>>().join(" "),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            scalar(value)
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_found_by_dotted_path() {
        let record = json!({"decision": {"rule": "r", "policy_version": 3}, "end": null, "tags": ["a", "b"]});
        assert_eq!(text(&record, "decision.rule"), "r");
        assert_eq!(text(&record, "decision.policy_version"), "3");
        assert_eq!(text(&record, "end"), "");
        assert_eq!(text(&record, "tags"), "a b");
        assert_eq!(text(&record, "absent.deep"), "");
    }

    #[test]
    fn times_are_short_in_tables_and_other_text_is_left_alone() {
        assert_eq!(
            shown("2026-11-22T14:03:07.123Z".to_owned()),
            "2026-11-22 14:03:07"
        );
        assert_eq!(
            shown("a service of 24 letters Z".to_owned()),
            "a service of 24 letters Z"
        );
    }

    #[test]
    fn a_record_is_flattened_without_its_nulls() {
        let record = json!({"a": {"b": 1, "c": null}, "d": ["x"]});
        assert_eq!(
            flatten(&record),
            [
                ("a.b".to_owned(), "1".to_owned()),
                ("d".to_owned(), "x".to_owned())
            ]
        );
    }
}
