//! Overrides from environment variables.

use toml::{Table, Value};

use super::Origins;
use super::errors::ConfigErrors;

const SEPARATOR: &str = "__";

/// Sets what the variables with `prefix` say, and tells which key came from which variable.
pub(super) fn apply(
    table: &mut Table,
    prefix: &str,
    environment: impl IntoIterator<Item = (String, String)>,
    errors: &mut ConfigErrors,
) -> Origins {
    let prefix = format!("{prefix}{SEPARATOR}");
    let mut overrides: Vec<(String, String, String)> = environment
        .into_iter()
        .filter_map(|(name, value)| {
            let key = name.strip_prefix(&prefix)?.to_ascii_lowercase();
            Some((key.replace(SEPARATOR, "."), name, value))
        })
        .collect();
    overrides.sort();
    let mut origins = Origins::new();
    for (key, name, text) in overrides {
        let segments: Vec<&str> = key.split('.').collect();
        if set(table, &segments, value_of(&text)) {
            origins.insert(key, name);
        } else {
            errors.push(&key, format!("{name} names no place in this configuration"));
        }
    }
    origins
}

fn value_of(text: &str) -> Value {
    let parsed = format!("value = {text}").parse::<Table>().ok();
    let value = parsed
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"));
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

fn set(table: &mut Table, segments: &[&str], value: Value) -> bool {
    match segments {
        [] | [""] => false,
        [key] => {
            table.insert((*key).to_owned(), value);
            true
        }
        [key, rest @ ..] => {
            let inner = table
                .entry((*key).to_owned())
                .or_insert_with(|| Value::Table(Table::new()));
            set_inside(inner, rest, value)
        }
    }
}

/// In an array of tables the next segment is an index: `IAP_AUTH__CONNECTOR__0__CLIENT_ID`.
fn set_inside(inner: &mut Value, rest: &[&str], value: Value) -> bool {
    match inner {
        Value::Table(table) => set(table, rest, value),
        Value::Array(elements) => {
            let Some((index, rest)) = rest.split_first() else {
                return false;
            };
            let element = index
                .parse()
                .ok()
                .and_then(|index: usize| elements.get_mut(index));
            match (element, rest) {
                (Some(element), []) => {
                    *element = value;
                    true
                }
                (Some(element), rest) => set_inside(element, rest, value),
                (None, _) => false,
            }
        }
        Value::String(_) | Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {
            false
        }
    }
}
