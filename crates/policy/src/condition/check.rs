//! What the interpreter lacks: a check of an expression before it ever runs.
//!
//! It refuses undeclared variables, fields and functions, operands that can never fit, results that
//! are no booleans, nested comprehensions, and expressions whose worst case takes too many steps;
//! and it notes which variables and groups the expression looks at.

mod functions;
mod operators;

use std::collections::BTreeSet;

use cel::common::ast::{
    ComprehensionExpr, EntryExpr, Expr, IdedExpr, ListExpr, LiteralValue, MapExpr, SelectExpr,
};
use thiserror::Error;

use super::kind::Kind;
use super::variables::{CLIENT_FIELDS, SERVICE_FIELDS, USER_FIELDS};
use crate::limits::{CONDITION_LIST_VALUES_MAX, CONDITION_STEPS_MAX};

/// Why an expression that parses is refused all the same.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub(crate) struct CheckError(String);

pub(crate) fn refuse<T>(message: impl Into<String>) -> Result<T, CheckError> {
    Err(CheckError(message.into()))
}

/// Which variables exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `user`, `client`, `service`, `login`, `database`, `now`.
    Condition,
    /// Any: the fields of an audit record.
    Record,
}

/// What an expression looks at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Uses {
    /// Dotted names, such as `user.name` and `service.labels.env`.
    pub(crate) variables: BTreeSet<String>,
    /// Groups asked for with `"name" in user.groups`.
    pub(crate) asked_groups: BTreeSet<String>,
    /// All string literals but those that can only be patterns, ranges, spans or times.
    pub(crate) literals: BTreeSet<String>,
    /// Whether the value is certain to be a boolean, if there is one.
    pub(crate) surely_boolean: bool,
    /// Whether `user.groups` is used other than in `"name" in user.groups`.
    pub(crate) scans_groups: bool,
}

/// What is known of a subexpression.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) kind: Kind,
    /// Steps to evaluate it, at most.
    pub(crate) steps: u64,
    /// Elements, if it is a list or a map, at most.
    pub(crate) values: u64,
}

impl Shape {
    pub(crate) fn scalar(kind: Kind, steps: u64) -> Self {
        let unknown = CONDITION_LIST_VALUES_MAX as u64;
        Self {
            kind,
            steps,
            values: if kind == Kind::Any { unknown } else { 0 },
        }
    }
}

/// Checks `expression`, whose value must be a boolean.
pub(crate) fn check(expression: &IdedExpr, dialect: Dialect) -> Result<Uses, CheckError> {
    let mut checker = Checker {
        dialect,
        uses: Uses::default(),
        bound: None,
    };
    let shape = checker.shape(expression)?;
    if !shape.kind.may_be(Kind::Bool) {
        return refuse(format!("the condition is {}, not a boolean", shape.kind));
    }
    if shape.steps > CONDITION_STEPS_MAX {
        return refuse(format!(
            "the condition may take more than {CONDITION_STEPS_MAX} steps"
        ));
    }
    checker.uses.surely_boolean = shape.kind == Kind::Bool;
    Ok(checker.uses)
}

/// The variable of the comprehension the checker is in. One: they do not nest.
struct Bound {
    name: String,
    kind: Kind,
}

pub(crate) struct Checker {
    dialect: Dialect,
    uses: Uses,
    bound: Option<Bound>,
}

impl Checker {
    pub(crate) fn shape(&mut self, expression: &IdedExpr) -> Result<Shape, CheckError> {
        let shape = match &expression.expr {
            Expr::Literal(literal) => self.literal(literal),
            Expr::Ident(name) => self.identifier(name),
            Expr::Select(select) => self.select(select),
            Expr::Call(call) => self.call(call),
            Expr::List(list) => self.list(list),
            Expr::Map(map) => self.map(map),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Struct(message) => refuse(format!("there is no message type `{}`", message.type_name)),
            Expr::Unspecified => refuse("the expression is incomplete"),
        }?;
        // Sums stay far below overflow: no expression passes that takes more.
        if shape.steps > CONDITION_STEPS_MAX {
            return refuse(format!(
                "the condition may take more than {CONDITION_STEPS_MAX} steps"
            ));
        }
        Ok(shape)
    }

    fn literal(&mut self, literal: &LiteralValue) -> Result<Shape, CheckError> {
        if let LiteralValue::String(text) = literal {
            self.uses.literals.insert(text.inner().to_owned());
        }
        match Kind::of_literal(literal) {
            Some(kind) => Ok(Shape::scalar(kind, 1)),
            None => refuse("byte strings are not supported"),
        }
    }

    fn identifier(&mut self, name: &str) -> Result<Shape, CheckError> {
        // The accumulator of a comprehension, to which the interpreter appends in place.
        if name.starts_with('@') {
            return Ok(Shape {
                kind: Kind::Any,
                steps: 1,
                values: 0,
            });
        }
        if let Some(bound) = self.bound.as_ref().filter(|bound| bound.name == name) {
            return Ok(Shape::scalar(bound.kind, 1));
        }
        let kind = match (self.dialect, name) {
            (Dialect::Record, _) => Kind::Any,
            (Dialect::Condition, "login" | "database") => Kind::String,
            (Dialect::Condition, "now") => Kind::Timestamp,
            (Dialect::Condition, "user" | "client" | "service") => {
                return refuse(format!(
                    "`{name}` stands alone; name one of its fields: {}",
                    fields_of(name)
                ));
            }
            (Dialect::Condition, _) => {
                return refuse(format!(
                    "there is no variable `{name}`; there are user, client, service, login, database, now"
                ));
            }
        };
        self.uses.variables.insert(name.to_owned());
        Ok(Shape::scalar(kind, 1))
    }

    fn select(&mut self, select: &SelectExpr) -> Result<Shape, CheckError> {
        let shape = match self.declared_field(select)? {
            Some(shape) => shape,
            None => self.undeclared_field(select)?,
        };
        if select.test {
            return Ok(Shape::scalar(Kind::Bool, shape.steps + 1));
        }
        Ok(shape)
    }

    /// `user.name` and its like.
    fn declared_field(&mut self, select: &SelectExpr) -> Result<Option<Shape>, CheckError> {
        let Expr::Ident(root) = &select.operand.expr else {
            return Ok(None);
        };
        if self.dialect == Dialect::Record || self.bound.as_ref().is_some_and(|bound| bound.name == *root) {
            return Ok(None);
        }
        let Some(fields) = declared_fields(root) else {
            return Ok(None);
        };
        let field = select.field.as_str();
        let Some((_, kind)) = fields.iter().find(|(name, _)| *name == field) else {
            return refuse(format!(
                "`{root}` has no field `{field}`; it has {}",
                fields_of(root)
            ));
        };
        self.uses.variables.insert(format!("{root}.{field}"));
        if root == "user" && field == "groups" && !select.test {
            self.uses.scans_groups = true;
        }
        let values = if kind.is_list() || kind.is_map() {
            CONDITION_LIST_VALUES_MAX as u64
        } else {
            0
        };
        Ok(Some(Shape {
            kind: *kind,
            steps: 1 + values,
            values,
        }))
    }

    fn undeclared_field(&mut self, select: &SelectExpr) -> Result<Shape, CheckError> {
        let operand = self.shape(&select.operand)?;
        if !operand.kind.is_map() && operand.kind != Kind::Any {
            return refuse(format!("`.{}` is asked of {}", select.field, operand.kind));
        }
        self.note_path(select);
        Ok(Shape::scalar(operand.kind.member(), operand.steps + 1))
    }

    /// Notes `service.labels.env` (and in records any path) as a variable in its own right.
    fn note_path(&mut self, select: &SelectExpr) {
        if let Some(path) = dotted_path(&select.operand.expr)
            && self.uses.variables.contains(&path)
        {
            self.uses.variables.insert(format!("{path}.{}", select.field));
        }
    }

    fn list(&mut self, list: &ListExpr) -> Result<Shape, CheckError> {
        if list.elements.len() > CONDITION_LIST_VALUES_MAX {
            return refuse(format!(
                "a list has more than {CONDITION_LIST_VALUES_MAX} elements"
            ));
        }
        let mut steps = 1;
        let mut strings = true;
        for element in &list.elements {
            let shape = self.shape(element)?;
            strings &= shape.kind == Kind::String;
            steps += shape.steps;
        }
        let kind = if strings { Kind::Strings } else { Kind::List };
        Ok(Shape {
            kind,
            steps,
            values: list.elements.len() as u64,
        })
    }

    fn map(&mut self, map: &MapExpr) -> Result<Shape, CheckError> {
        if map.entries.len() > CONDITION_LIST_VALUES_MAX {
            return refuse(format!("a map has more than {CONDITION_LIST_VALUES_MAX} entries"));
        }
        let mut steps = 1;
        for entry in &map.entries {
            match &entry.expr {
                EntryExpr::MapEntry(entry) => {
                    steps += self.shape(&entry.key)?.steps + self.shape(&entry.value)?.steps;
                }
                EntryExpr::StructField(_) => return refuse("there are no message types"),
            }
        }
        Ok(Shape {
            kind: Kind::Map,
            steps,
            values: map.entries.len() as u64,
        })
    }

    /// `all`, `exists`, `exists_one`, `map` and `filter`, as the parser expands them.
    fn comprehension(&mut self, comprehension: &ComprehensionExpr) -> Result<Shape, CheckError> {
        if self.bound.is_some() {
            return refuse("comprehensions (all, exists, exists_one, map, filter) do not nest");
        }
        let range = self.shape(&comprehension.iter_range)?;
        if !range.kind.is_list() && !range.kind.is_map() && range.kind != Kind::Any {
            return refuse(format!(
                "a comprehension runs over {}, not a list or a map",
                range.kind
            ));
        }
        let name = comprehension.iter_var.clone();
        if self.dialect == Dialect::Condition && is_declared(&name) {
            return refuse(format!(
                "the comprehension's variable `{name}` hides the variable of that name"
            ));
        }
        self.bound = Some(Bound {
            name,
            kind: range.kind.element(),
        });
        let body = self.body(comprehension);
        self.bound = None;
        let (body_steps, result_steps) = body?;
        let steps = range.steps + range.values.max(1) * body_steps + result_steps;
        Ok(match &comprehension.accu_init.expr {
            Expr::List(_) => Shape {
                kind: Kind::List,
                steps,
                values: range.values,
            },
            _ => Shape::scalar(Kind::Bool, steps),
        })
    }

    fn body(&mut self, comprehension: &ComprehensionExpr) -> Result<(u64, u64), CheckError> {
        let condition = self.shape(&comprehension.loop_cond)?;
        let step = self.shape(&comprehension.loop_step)?;
        let result = self.shape(&comprehension.result)?;
        Ok((condition.steps + step.steps + 1, result.steps + 1))
    }

    /// `"name" in user.groups` is how a condition asks for a group; see [`Uses::scans_groups`].
    pub(crate) fn membership(
        &mut self,
        wanted: &IdedExpr,
        list: &IdedExpr,
    ) -> Result<(Shape, Shape), CheckError> {
        let scanned = self.uses.scans_groups;
        let shapes = (self.shape(wanted)?, self.shape(list)?);
        if let Expr::Literal(LiteralValue::String(name)) = &wanted.expr
            && dotted_path(&list.expr).as_deref() == Some("user.groups")
        {
            self.uses.scans_groups = scanned;
            self.uses.asked_groups.insert(name.inner().to_owned());
        }
        Ok(shapes)
    }
}

fn declared_fields(root: &str) -> Option<&'static [(&'static str, Kind)]> {
    match root {
        "user" => Some(&USER_FIELDS),
        "client" => Some(&CLIENT_FIELDS),
        "service" => Some(&SERVICE_FIELDS),
        _ => None,
    }
}

fn fields_of(root: &str) -> String {
    let fields = declared_fields(root).unwrap_or_default();
    fields
        .iter()
        .map(|(name, _)| *name)
        .collect::<Vec<_>>()
        .join(", ")
}

fn is_declared(name: &str) -> bool {
    declared_fields(name).is_some() || matches!(name, "login" | "database" | "now")
}

/// `a.b.c`, when the expression is nothing but that.
pub(crate) fn dotted_path(expression: &Expr) -> Option<String> {
    match expression {
        Expr::Ident(name) if !name.starts_with('@') => Some(name.clone()),
        Expr::Select(select) if !select.test => {
            Some(format!("{}.{}", dotted_path(&select.operand.expr)?, select.field))
        }
        _ => None,
    }
}
