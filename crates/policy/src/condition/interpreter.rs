//! The CEL environment conditions run in: the standard library plus `in_cidr` and a bounded `matches`.

use std::net::IpAddr;
use std::sync::Arc;

use cel::common::types::{self, CelBool, CelList, CelString};
use cel::common::value::CowVal;
use cel::parser::Expression;
use cel::{DeclarationError, Env, ExecutionError};
use regex::{Regex, RegexBuilder};

use crate::cidr::AddressRange;
use crate::limits::{CONDITION_LIST_VALUES_MAX, REGEX_BYTES_MAX, REGEX_COMPILED_BYTES_MAX};

/// Parses and runs expressions.
#[derive(Clone)]
pub(crate) struct Interpreter {
    env: Arc<Env>,
}

impl Interpreter {
    /// The environment, built anew.
    pub(crate) fn new() -> Result<Self, DeclarationError> {
        let mut env = Env::stdlib().with_optional_support(false);
        env.add_overload(
            "in_cidr",
            "in_cidr_string_list",
            vec![types::STRING_TYPE, types::LIST_TYPE],
            in_cidr,
        )?;
        env.add_overload(
            "matches",
            "matches_string",
            vec![types::STRING_TYPE, types::STRING_TYPE],
            matches,
        )?;
        env.add_member_overload(
            "matches",
            "string_matches",
            types::STRING_TYPE,
            vec![types::STRING_TYPE],
            matches,
        )?;
        Ok(Self { env: Arc::new(env) })
    }

    pub(crate) fn env(&self) -> &Arc<Env> {
        &self.env
    }

    /// Parses what [`crate::lexical::scan`] has let through. One mistake is enough: no recovery.
    pub(crate) fn parse(&self, source: &str) -> Result<Expression, String> {
        let parser = self.env.parser().error_recovery_limit(0);
        parser
            .parse(source)
            .map_err(|errors| one_line(&errors.to_string()))
    }
}

/// The first line of the parser's report, without its pointer into the source.
fn one_line(report: &str) -> String {
    let line = report
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("not an expression");
    line.trim_start_matches("ERROR: ")
        .trim_start_matches("<input>:")
        .to_owned()
}

/// The pattern of a `matches`, compiled within bounds.
pub(crate) fn bounded_regex(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > REGEX_BYTES_MAX {
        return Err(format!(
            "the pattern of `matches` is longer than {REGEX_BYTES_MAX} bytes"
        ));
    }
    RegexBuilder::new(pattern)
        .size_limit(REGEX_COMPILED_BYTES_MAX)
        .dfa_size_limit(REGEX_COMPILED_BYTES_MAX)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => "the pattern of `matches` is too large".to_owned(),
            other => format!(
                "the pattern of `matches` is not a regular expression: {}",
                last_line(&other)
            ),
        })
}

fn last_line(error: &regex::Error) -> String {
    let text = error.to_string();
    text.lines()
        .last()
        .unwrap_or_default()
        .trim_start_matches("error: ")
        .to_owned()
}

fn matches<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let text = string("matches", &arguments, 0)?;
    let pattern = string("matches", &arguments, 1)?;
    let regex =
        bounded_regex(pattern).map_err(|problem| ExecutionError::function_error("matches", problem))?;
    Ok(CowVal::owned(CelBool::from(regex.is_match(text))))
}

fn in_cidr<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let fault = |problem: String| ExecutionError::function_error("in_cidr", problem);
    let text = string("in_cidr", &arguments, 0)?;
    let address: IpAddr = text
        .parse()
        .map_err(|_| fault(format!("{text:?} is no address")))?;
    let ranges = arguments
        .get(1)
        .and_then(|value| value.downcast_ref::<CelList<'_>>())
        .ok_or_else(|| fault("the second argument is no list".to_owned()))?;
    if ranges.inner().len() > CONDITION_LIST_VALUES_MAX {
        return Err(fault(format!(
            "the list has more than {CONDITION_LIST_VALUES_MAX} ranges"
        )));
    }
    let mut inside = false;
    for range in ranges.inner() {
        let range = range
            .downcast_ref::<CelString<'_>>()
            .ok_or_else(|| fault("the list has something else than strings".to_owned()))?;
        let parsed = AddressRange::parse(range.inner())
            .ok_or_else(|| fault(format!("{:?} is no address range", range.inner())))?;
        inside |= parsed.contains(address);
    }
    Ok(CowVal::owned(CelBool::from(inside)))
}

fn string<'a>(
    function: &str,
    arguments: &'a [CowVal<'_, '_>],
    index: usize,
) -> Result<&'a str, ExecutionError> {
    arguments
        .get(index)
        .and_then(|value| value.downcast_ref::<CelString<'_>>())
        .map(|text| text.inner())
        .ok_or_else(|| ExecutionError::function_error(function, "an argument is no string"))
}
