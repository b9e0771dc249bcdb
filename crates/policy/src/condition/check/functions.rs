//! Functions: the ones there are, and what they take and give.

use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue};

use super::{CheckError, Checker, Shape, refuse};
use crate::cidr::AddressRange;
use crate::condition::interpreter::bounded_regex;
use crate::condition::kind::Kind;

/// A function: its name, whether it is called on a receiver, the kinds it takes (the receiver's
/// first) and the kind it gives.
type Signature = (&'static str, bool, &'static [Kind], Kind);

const SIGNATURES: [Signature; 58] = [
    ("size", false, &[Kind::String], Kind::Int),
    ("size", false, &[Kind::List], Kind::Int),
    ("size", false, &[Kind::Map], Kind::Int),
    ("size", true, &[Kind::String], Kind::Int),
    ("size", true, &[Kind::List], Kind::Int),
    ("size", true, &[Kind::Map], Kind::Int),
    ("contains", true, &[Kind::String, Kind::String], Kind::Bool),
    ("startsWith", true, &[Kind::String, Kind::String], Kind::Bool),
    ("endsWith", true, &[Kind::String, Kind::String], Kind::Bool),
    ("matches", true, &[Kind::String, Kind::String], Kind::Bool),
    ("matches", false, &[Kind::String, Kind::String], Kind::Bool),
    ("in_cidr", false, &[Kind::String, Kind::Strings], Kind::Bool),
    ("duration", false, &[Kind::String], Kind::Duration),
    ("timestamp", false, &[Kind::String], Kind::Timestamp),
    ("timestamp", false, &[Kind::Int], Kind::Timestamp),
    ("int", false, &[Kind::Int], Kind::Int),
    ("int", false, &[Kind::UInt], Kind::Int),
    ("int", false, &[Kind::Double], Kind::Int),
    ("int", false, &[Kind::String], Kind::Int),
    ("int", false, &[Kind::Timestamp], Kind::Int),
    ("uint", false, &[Kind::Int], Kind::UInt),
    ("uint", false, &[Kind::UInt], Kind::UInt),
    ("uint", false, &[Kind::Double], Kind::UInt),
    ("uint", false, &[Kind::String], Kind::UInt),
    ("double", false, &[Kind::Int], Kind::Double),
    ("double", false, &[Kind::UInt], Kind::Double),
    ("double", false, &[Kind::Double], Kind::Double),
    ("double", false, &[Kind::String], Kind::Double),
    ("string", false, &[Kind::Int], Kind::String),
    ("string", false, &[Kind::UInt], Kind::String),
    ("string", false, &[Kind::Double], Kind::String),
    ("string", false, &[Kind::String], Kind::String),
    ("string", false, &[Kind::Bool], Kind::String),
    ("string", false, &[Kind::Duration], Kind::String),
    ("string", false, &[Kind::Timestamp], Kind::String),
    ("getFullYear", true, &[Kind::Timestamp], Kind::Int),
    ("getFullYear", true, &[Kind::Timestamp, Kind::String], Kind::Int),
    ("getMonth", true, &[Kind::Timestamp], Kind::Int),
    ("getMonth", true, &[Kind::Timestamp, Kind::String], Kind::Int),
    ("getDate", true, &[Kind::Timestamp], Kind::Int),
    ("getDate", true, &[Kind::Timestamp, Kind::String], Kind::Int),
    ("getDayOfMonth", true, &[Kind::Timestamp], Kind::Int),
    ("getDayOfMonth", true, &[Kind::Timestamp, Kind::String], Kind::Int),
    ("getDayOfWeek", true, &[Kind::Timestamp], Kind::Int),
    ("getDayOfWeek", true, &[Kind::Timestamp, Kind::String], Kind::Int),
    ("getDayOfYear", true, &[Kind::Timestamp], Kind::Int),
    ("getDayOfYear", true, &[Kind::Timestamp, Kind::String], Kind::Int),
    ("getHours", true, &[Kind::Timestamp], Kind::Int),
    ("getHours", true, &[Kind::Timestamp, Kind::String], Kind::Int),
    ("getHours", true, &[Kind::Duration], Kind::Int),
    ("getMinutes", true, &[Kind::Timestamp], Kind::Int),
    ("getMinutes", true, &[Kind::Timestamp, Kind::String], Kind::Int),
    ("getMinutes", true, &[Kind::Duration], Kind::Int),
    ("getSeconds", true, &[Kind::Timestamp], Kind::Int),
    ("getSeconds", true, &[Kind::Timestamp, Kind::String], Kind::Int),
    ("getSeconds", true, &[Kind::Duration], Kind::Int),
    ("getMilliseconds", true, &[Kind::Timestamp], Kind::Int),
    ("getMilliseconds", true, &[Kind::Duration], Kind::Int),
];

/// What a call costs beyond its arguments. Calendar fields look up a time zone, `matches` compiles
/// its pattern, `in_cidr` reads every range.
fn call_steps(name: &str, arguments: &[Shape]) -> u64 {
    match name {
        "matches" => 200,
        "in_cidr" => 1 + arguments.iter().map(|shape| shape.values * 2).sum::<u64>(),
        _ if name.starts_with("get") => 10,
        _ => 3,
    }
}

impl Checker {
    pub(super) fn call(&mut self, call: &CallExpr) -> Result<Shape, CheckError> {
        if call.target.is_none()
            && let Some(shape) = self.operator(call)?
        {
            return Ok(shape);
        }
        let name = call.func_name.as_str();
        let literals_before = names_no_groups(name).then(|| self.uses.literals.clone());
        let mut arguments = Vec::with_capacity(call.args.len() + 1);
        for argument in call.target.iter().map(AsRef::as_ref).chain(&call.args) {
            arguments.push(self.shape(argument)?);
        }
        if let Some(literals) = literals_before {
            self.uses.literals = literals;
        }
        let kind = resolve(name, call.target.is_some(), &arguments)?;
        check_literals(name, call)?;
        let steps = call_steps(name, &arguments) + arguments.iter().map(|shape| shape.steps).sum::<u64>();
        Ok(Shape::scalar(kind, steps))
    }
}

/// Whether the strings a function is given cannot be groups.
fn names_no_groups(name: &str) -> bool {
    matches!(name, "in_cidr" | "duration" | "timestamp" | "matches") || name.starts_with("get")
}

fn resolve(name: &str, receiver: bool, arguments: &[Shape]) -> Result<Kind, CheckError> {
    let named = SIGNATURES
        .iter()
        .filter(|(known, on_receiver, ..)| *known == name && *on_receiver == receiver);
    let mut fitting = named.clone().filter(|(_, _, takes, _)| {
        takes.len() == arguments.len()
            && takes
                .iter()
                .zip(arguments)
                .all(|(kind, argument)| argument.kind.may_be(*kind))
    });
    if let Some((.., gives)) = fitting.next() {
        return Ok(*gives);
    }
    if named.count() == 0 {
        return refuse(unknown_function(name, receiver));
    }
    let given: Vec<String> = arguments
        .iter()
        .map(|argument| argument.kind.to_string())
        .collect();
    refuse(format!("`{name}` cannot be called with {}", given.join(" and ")))
}

fn unknown_function(name: &str, receiver: bool) -> String {
    if SIGNATURES.iter().any(|(known, ..)| *known == name) {
        let form = if receiver {
            format!("{name}(x, ...)")
        } else {
            format!("x.{name}(...)")
        };
        return format!("`{name}` is called as `{form}`");
    }
    let mut names: Vec<&str> = SIGNATURES.iter().map(|(known, ..)| *known).collect();
    names.dedup();
    names.sort_unstable();
    names.dedup();
    format!(
        "there is no function `{name}`; there are has, all, exists, exists_one, map, filter, {}",
        names.join(", ")
    )
}

/// Literal arguments are checked now, not when somebody waits for a decision.
fn check_literals(name: &str, call: &CallExpr) -> Result<(), CheckError> {
    match (name, call.args.as_slice()) {
        ("matches", [.., pattern]) => match string_literal(pattern) {
            Some(pattern) => bounded_regex(pattern).map(|_| ()).map_err(CheckError),
            None => refuse("the pattern of `matches` must be written as a string"),
        },
        ("in_cidr", [_, ranges]) => check_ranges(ranges),
        _ => Ok(()),
    }
}

fn check_ranges(ranges: &IdedExpr) -> Result<(), CheckError> {
    let Expr::List(list) = &ranges.expr else {
        return Ok(());
    };
    match list
        .elements
        .iter()
        .filter_map(string_literal)
        .find(|range| AddressRange::parse(range).is_none())
    {
        Some(range) => refuse(format!(
            "{range:?} is no address range such as \"203.0.113.0/24\""
        )),
        None => Ok(()),
    }
}

fn string_literal(expression: &IdedExpr) -> Option<&str> {
    match &expression.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}
