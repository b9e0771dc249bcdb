//! The expressions of `audit search`.
//!
//! Bare words match records in which each occurs in some text field, without regard to case.
//! Anything else is CEL over the record's fields, under the caps of conditions; a record that lacks a
//! field the expression looks at does not match.

use cel::Context;
use cel::common::types::{
    CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt,
};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use cel::parser::Expression;
use serde_json::Value as Json;
use thiserror::Error;

use crate::condition::check::Dialect;
use crate::condition::interpreter::Interpreter;
use crate::condition::{Truth, parse, truth};
use crate::limits::{CONDITION_LIST_VALUES_MAX, FILTER_BYTES_MAX};

/// An expression of `audit search`, ready to match records.
///
/// Parsing and matching need a stack of [`crate::POLICY_STACK_BYTES`].
pub struct Filter(Form);

enum Form {
    /// Lower-case words; all must occur.
    Words(Vec<String>),
    Expression {
        interpreter: Interpreter,
        expression: Expression,
    },
}

/// Why an expression of `audit search` is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FilterError {
    /// Nothing to search for.
    #[error("the search expression is empty")]
    Empty,
    /// Longer than [`FILTER_BYTES_MAX`].
    #[error("the search expression is longer than {FILTER_BYTES_MAX} bytes")]
    TooLong,
    /// It looks like CEL but is refused.
    #[error("the search expression is refused: {0}")]
    Refused(String),
}

impl Filter {
    /// Reads an expression.
    ///
    /// # Errors
    ///
    /// [`FilterError`].
    pub fn parse(source: &str) -> Result<Self, FilterError> {
        if source.len() > FILTER_BYTES_MAX {
            return Err(FilterError::TooLong);
        }
        if source.trim().is_empty() {
            return Err(FilterError::Empty);
        }
        if is_words(source) {
            return Ok(Self(Form::Words(
                source.split_whitespace().map(str::to_lowercase).collect(),
            )));
        }
        let interpreter = Interpreter::new().map_err(|error| FilterError::Refused(error.to_string()))?;
        let (expression, _) = parse(source, &interpreter, Dialect::Record).map_err(FilterError::Refused)?;
        Ok(Self(Form::Expression {
            interpreter,
            expression,
        }))
    }

    /// Whether `record` matches.
    #[must_use]
    pub fn matches(&self, record: &Json) -> bool {
        match &self.0 {
            Form::Words(words) => words.iter().all(|word| occurs(word, record, RECORD_DEPTH_MAX)),
            Form::Expression {
                interpreter,
                expression,
            } => {
                let fields = Fields(record);
                let mut context = Context::with_env(interpreter.env().clone());
                context.set_variable_resolver(&fields);
                truth(expression, &context) == Truth::True
            }
        }
    }
}

/// Deepest nesting of a record that is looked into.
const RECORD_DEPTH_MAX: usize = 16;

/// Whether `source` has nothing that only CEL has: no operator, quote or bracket.
fn is_words(source: &str) -> bool {
    let operators = [
        "==", "!=", "<", ">", "&&", "||", "(", ")", "[", "]", "{", "}", "\"", "'", "?", "!",
    ];
    !operators.iter().any(|operator| source.contains(operator))
}

fn occurs(word: &str, value: &Json, depth: usize) -> bool {
    match value {
        Json::String(text) => text.to_lowercase().contains(word),
        Json::Array(values) => depth > 0 && values.iter().any(|value| occurs(word, value, depth - 1)),
        Json::Object(fields) => depth > 0 && fields.values().any(|value| occurs(word, value, depth - 1)),
        Json::Null | Json::Bool(_) | Json::Number(_) => false,
    }
}

/// A record's fields as the variables of an expression.
struct Fields<'a>(&'a Json);

impl VariableResolver for Fields<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        // The whole dotted name is asked for first; records are nested objects.
        let mut value = self.0;
        for name in variable.split('.') {
            value = value.as_object()?.get(name)?;
        }
        convert(value, RECORD_DEPTH_MAX).map(CowVal::Owned)
    }
}

/// `None` for what is too large or too deep to look at; the field counts as missing.
fn convert<'b>(value: &'b Json, depth: usize) -> Option<Box<dyn Val + 'b>> {
    let inner = depth.checked_sub(1)?;
    Some(match value {
        Json::Null => Box::new(CelNull),
        Json::Bool(value) => Box::new(CelBool::from(*value)),
        Json::String(text) => Box::new(CelString::from(text.as_str())),
        Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), _, _) => Box::new(CelInt::from(number)),
            (None, Some(number), _) => Box::new(CelUInt::from(number)),
            (None, None, Some(number)) => Box::new(CelDouble::from(number)),
            (None, None, None) => return None,
        },
        Json::Array(values) if values.len() <= CONDITION_LIST_VALUES_MAX => {
            let values: Option<Vec<_>> = values.iter().map(|value| convert(value, inner)).collect();
            Box::new(CelList::from(values?))
        }
        Json::Object(fields) if fields.len() <= CONDITION_LIST_VALUES_MAX => {
            let entry = |(name, value): (&'b String, &'b Json)| {
                Some((CelMapKey::from(name.as_str()), convert(value, inner)?))
            };
            let entries: Option<std::collections::HashMap<_, _>> = fields.iter().map(entry).collect();
            Box::new(CelMap::from(entries?))
        }
        Json::Array(_) | Json::Object(_) => return None,
    })
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match &self.0 {
            Form::Words(_) => "Filter(words)",
            Form::Expression { .. } => "Filter(expression)",
        })
    }
}
