//! Reading one TOML table: typed access to its keys, and every mistake collected with its line.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{PolicyError, PolicyErrors};
use crate::limits::{ERRORS_MAX, LIST_VALUES_MAX};

/// A value and the line it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Located<T> {
    pub(crate) value: T,
    pub(crate) line: usize,
}

/// The mistakes found so far.
pub(crate) struct Errors {
    /// Offsets of the document's line breaks, ascending.
    line_breaks: Vec<usize>,
    found: Vec<PolicyError>,
}

impl Errors {
    pub(crate) fn new(source: &str) -> Self {
        let line_breaks = source.match_indices('\n').map(|(offset, _)| offset).collect();
        Self {
            line_breaks,
            found: Vec::new(),
        }
    }

    /// Line of a byte offset, from 1.
    pub(crate) fn line(&self, offset: usize) -> usize {
        1 + self
            .line_breaks
            .partition_point(|line_break| *line_break < offset)
    }

    pub(crate) fn add(&mut self, line: Option<usize>, message: impl Into<String>) {
        if self.found.len() < ERRORS_MAX {
            self.found.push(PolicyError {
                line,
                message: message.into(),
            });
        }
    }

    pub(crate) fn at(&mut self, span: &Range<usize>, message: impl Into<String>) {
        let line = self.line(span.start);
        self.add(Some(line), message);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.found.len() >= ERRORS_MAX
    }

    /// `value`, unless there were mistakes.
    pub(crate) fn finish<T>(mut self, value: T) -> Result<T, PolicyErrors> {
        if self.found.is_empty() {
            return Ok(value);
        }
        self.found.sort_by_key(|error| error.line.unwrap_or(0));
        Err(PolicyErrors(self.found))
    }
}

/// One table of the document and the words that say which (`rule "x"`, `test 3`).
pub(crate) struct Section<'d, 'i> {
    table: &'d DeTable<'i>,
    pub(crate) what: String,
    pub(crate) line: usize,
}

impl<'d, 'i> Section<'d, 'i> {
    pub(crate) fn new(table: &'d DeTable<'i>, what: String, line: usize) -> Self {
        Self { table, what, line }
    }

    pub(crate) fn error(&self, errors: &mut Errors, message: &str) {
        errors.add(Some(self.line), format!("{}: {message}", self.what));
    }

    /// Reports keys that are none of `allowed`.
    pub(crate) fn allow(&self, allowed: &[&str], errors: &mut Errors) {
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if !allowed.contains(&name) {
                let message = format!(
                    "{}: unknown key {name:?}; allowed are {}",
                    self.what,
                    allowed.join(", ")
                );
                errors.at(&key.span(), message);
            }
        }
    }

    /// The same table, called something else.
    pub(crate) fn renamed(&self, what: String) -> Section<'d, 'i> {
        Section {
            table: self.table,
            what,
            line: self.line,
        }
    }

    pub(crate) fn value(&self, key: &str) -> Option<&'d Spanned<DeValue<'i>>> {
        self.table
            .iter()
            .find(|(name, _)| name.get_ref().as_ref() == key)
            .map(|(_, value)| value)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    pub(crate) fn string(&self, key: &str, errors: &mut Errors) -> Option<Located<String>> {
        let value = self.value(key)?;
        match value.get_ref().as_str() {
            Some(text) => Some(Located {
                value: text.to_owned(),
                line: errors.line(value.span().start),
            }),
            None => {
                self.wrong_type(key, value, "a string", errors);
                None
            }
        }
    }

    pub(crate) fn boolean(&self, key: &str, errors: &mut Errors) -> Option<bool> {
        let value = self.value(key)?;
        let found = value.get_ref().as_bool();
        if found.is_none() {
            self.wrong_type(key, value, "true or false", errors);
        }
        found
    }

    /// A date-time, or a string, as text.
    pub(crate) fn moment(&self, key: &str, errors: &mut Errors) -> Option<Located<String>> {
        match self
            .value(key)
            .map(|value| (value.get_ref().as_datetime(), value.span()))
        {
            Some((Some(moment), span)) => Some(Located {
                value: moment.to_string(),
                line: errors.line(span.start),
            }),
            Some((None, _)) | None => self.string(key, errors),
        }
    }

    /// A list of strings. An empty one is an error: it would match nothing, or everything.
    pub(crate) fn strings(&self, key: &str, errors: &mut Errors) -> Option<Vec<Located<String>>> {
        let value = self.value(key)?;
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(key, value, "a list of strings", errors);
            return None;
        };
        let problem = match array.len() {
            0 => Some("is empty; leave the key out or name something".to_owned()),
            many if many > LIST_VALUES_MAX => Some(format!("has {many} values; at most {LIST_VALUES_MAX}")),
            _ => None,
        };
        if let Some(problem) = problem {
            errors.at(&value.span(), format!("{}: `{key}` {problem}", self.what));
            return None;
        }
        let mut found = Vec::with_capacity(array.len());
        for element in array.iter() {
            match element.get_ref().as_str() {
                Some(text) => {
                    found.push(Located {
                        value: text.to_owned(),
                        line: errors.line(element.span().start),
                    });
                }
                None => self.wrong_type(key, element, "a list of strings", errors),
            }
        }
        Some(found)
    }

    /// A nested table, called `what` after this one.
    pub(crate) fn table(&self, key: &str, errors: &mut Errors) -> Option<Section<'d, 'i>> {
        let value = self.value(key)?;
        match value.get_ref().as_table() {
            Some(table) => {
                let what = format!("{}, `{key}`", self.what);
                Some(Section::new(table, what, errors.line(value.span().start)))
            }
            None => {
                self.wrong_type(key, value, "a table", errors);
                None
            }
        }
    }

    /// A table of strings, such as labels.
    pub(crate) fn string_table(&self, key: &str, errors: &mut Errors) -> Option<Vec<(String, String)>> {
        let section = self.table(key, errors)?;
        let mut found = Vec::with_capacity(section.table.len());
        for (name, value) in section.table {
            match value.get_ref().as_str() {
                Some(text) => found.push((name.get_ref().to_string(), text.to_owned())),
                None => section.wrong_type(name.get_ref().as_ref(), value, "a string", errors),
            }
        }
        Some(found)
    }

    fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'i>>, wanted: &str, errors: &mut Errors) {
        let found = value.get_ref().type_str();
        errors.at(
            &value.span(),
            format!("{}: `{key}` must be {wanted}, not {found}", self.what),
        );
    }
}
