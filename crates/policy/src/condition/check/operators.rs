//! Operators: which operands fit, and what comes out.

use cel::common::ast::{CallExpr, IdedExpr, operators};

use super::{CheckError, Checker, Shape, refuse};
use crate::condition::kind::Kind;
use crate::limits::CONDITION_LIST_VALUES_MAX;

impl Checker {
    /// The shape of an operator's result; `None` if the call is no operator.
    pub(super) fn operator(&mut self, call: &CallExpr) -> Result<Option<Shape>, CheckError> {
        let shape = match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::CONDITIONAL, [condition, yes, no]) => self.conditional(condition, yes, no)?,
            (name @ (operators::LOGICAL_AND | operators::LOGICAL_OR), [left, right]) => {
                self.logic(name, left, right)?
            }
            (operators::LOGICAL_NOT | operators::NOT_STRICTLY_FALSE, [operand]) => {
                let steps = self.boolean("!", operand)?;
                Shape::scalar(Kind::Bool, steps + 1)
            }
            (operators::NEGATE, [operand]) => self.negation(operand)?,
            (name @ (operators::EQUALS | operators::NOT_EQUALS), [left, right]) => {
                self.equality(name, left, right)?
            }
            (
                name @ (operators::LESS
                | operators::LESS_EQUALS
                | operators::GREATER
                | operators::GREATER_EQUALS),
                [left, right],
            ) => self.order(name, left, right)?,
            (operators::IN, [wanted, list]) => self.contained(wanted, list)?,
            (operators::INDEX, [operand, index]) => self.index(operand, index)?,
            (
                name @ (operators::ADD
                | operators::SUBSTRACT
                | operators::MULTIPLY
                | operators::DIVIDE
                | operators::MODULO),
                [left, right],
            ) => self.arithmetic(name, left, right)?,
            _ => return Ok(None),
        };
        Ok(Some(shape))
    }

    fn boolean(&mut self, operator: &str, operand: &IdedExpr) -> Result<u64, CheckError> {
        let shape = self.shape(operand)?;
        if !shape.kind.may_be(Kind::Bool) {
            return refuse(format!("`{operator}` is given {}, not a boolean", shape.kind));
        }
        Ok(shape.steps)
    }

    fn logic(&mut self, name: &str, left: &IdedExpr, right: &IdedExpr) -> Result<Shape, CheckError> {
        let steps = self.boolean(symbol(name), left)? + self.boolean(symbol(name), right)?;
        Ok(Shape::scalar(Kind::Bool, steps + 1))
    }

    fn conditional(
        &mut self,
        condition: &IdedExpr,
        yes: &IdedExpr,
        no: &IdedExpr,
    ) -> Result<Shape, CheckError> {
        let steps = self.boolean("?:", condition)?;
        let (yes, no) = (self.shape(yes)?, self.shape(no)?);
        Ok(Shape {
            kind: yes.kind.join(no.kind),
            steps: steps + yes.steps + no.steps + 1,
            values: yes.values.max(no.values),
        })
    }

    fn negation(&mut self, operand: &IdedExpr) -> Result<Shape, CheckError> {
        let shape = self.shape(operand)?;
        match shape.kind {
            Kind::Int | Kind::Double | Kind::Any => Ok(Shape::scalar(shape.kind, shape.steps + 1)),
            other => refuse(format!("`-` is given {other}")),
        }
    }

    fn equality(&mut self, name: &str, left: &IdedExpr, right: &IdedExpr) -> Result<Shape, CheckError> {
        let (left, right) = (self.shape(left)?, self.shape(right)?);
        if !left.kind.comparable(right.kind) {
            return refuse(format!(
                "`{}` compares {} with {}",
                symbol(name),
                left.kind,
                right.kind
            ));
        }
        let steps = left.steps + right.steps + left.values.min(right.values) + 1;
        Ok(Shape::scalar(Kind::Bool, steps))
    }

    fn order(&mut self, name: &str, left: &IdedExpr, right: &IdedExpr) -> Result<Shape, CheckError> {
        let (left, right) = (self.shape(left)?, self.shape(right)?);
        let ordered = |kind: Kind| {
            kind.is_number()
                || matches!(
                    kind,
                    Kind::String | Kind::Duration | Kind::Timestamp | Kind::Bool | Kind::Any
                )
        };
        let numbers = left.kind.is_number() && right.kind.is_number();
        if !ordered(left.kind) || !ordered(right.kind) || !(numbers || left.kind.may_be(right.kind)) {
            return refuse(format!(
                "`{}` compares {} with {}",
                symbol(name),
                left.kind,
                right.kind
            ));
        }
        Ok(Shape::scalar(Kind::Bool, left.steps + right.steps + 1))
    }

    fn contained(&mut self, wanted: &IdedExpr, list: &IdedExpr) -> Result<Shape, CheckError> {
        let (wanted, list) = self.membership(wanted, list)?;
        if !list.kind.is_list() && !list.kind.is_map() && list.kind != Kind::Any {
            return refuse(format!("`in` looks into {}, not a list or a map", list.kind));
        }
        if !wanted.kind.comparable(list.kind.element()) {
            return refuse(format!("`in` looks for {} in {}", wanted.kind, list.kind));
        }
        Ok(Shape::scalar(
            Kind::Bool,
            wanted.steps + list.steps + list.values + 1,
        ))
    }

    fn index(&mut self, operand: &IdedExpr, index: &IdedExpr) -> Result<Shape, CheckError> {
        let (operand, index) = (self.shape(operand)?, self.shape(index)?);
        let fits = match operand.kind {
            Kind::Strings | Kind::List => index.kind.is_number() || index.kind == Kind::Any,
            Kind::StringMap => index.kind.may_be(Kind::String),
            Kind::Map | Kind::Any => true,
            _ => false,
        };
        if !fits {
            return refuse(format!("`[...]` looks up {} in {}", index.kind, operand.kind));
        }
        Ok(Shape::scalar(
            operand.kind.member(),
            operand.steps + index.steps + 1,
        ))
    }

    fn arithmetic(&mut self, name: &str, left: &IdedExpr, right: &IdedExpr) -> Result<Shape, CheckError> {
        let (left, right) = (self.shape(left)?, self.shape(right)?);
        let Some(kind) = arithmetic_kind(name, left.kind, right.kind) else {
            let message = format!("`{}` is given {} and {}", symbol(name), left.kind, right.kind);
            return refuse(message);
        };
        let steps = left.steps + right.steps + left.values + right.values + 1;
        if !kind.is_list() {
            return Ok(Shape::scalar(kind, steps));
        }
        let values = left.values + right.values;
        if values > CONDITION_LIST_VALUES_MAX as u64 && left.values > 0 && right.values > 0 {
            return refuse(format!(
                "`+` may make a list of more than {CONDITION_LIST_VALUES_MAX} elements"
            ));
        }
        Ok(Shape { kind, steps, values })
    }
}

/// What arithmetic on the two yields; `None` if it always fails.
fn arithmetic_kind(name: &str, left: Kind, right: Kind) -> Option<Kind> {
    match (name, left, right) {
        (_, Kind::Any, _) | (_, _, Kind::Any) => Some(Kind::Any),
        (operators::MODULO, Kind::Int, Kind::Int) => Some(Kind::Int),
        (operators::MODULO, Kind::UInt, Kind::UInt) => Some(Kind::UInt),
        (operators::MODULO, _, _) => None,
        (_, Kind::Int | Kind::UInt | Kind::Double, _) if left == right => Some(left),
        (operators::ADD, Kind::String, Kind::String) => Some(Kind::String),
        (operators::ADD, Kind::Strings | Kind::List, Kind::Strings | Kind::List) => {
            Some(left.join(right).list())
        }
        (operators::ADD, Kind::Timestamp, Kind::Duration)
        | (operators::ADD, Kind::Duration, Kind::Timestamp) => Some(Kind::Timestamp),
        (operators::ADD | operators::SUBSTRACT, Kind::Duration, Kind::Duration) => Some(Kind::Duration),
        (operators::SUBSTRACT, Kind::Timestamp, Kind::Duration) => Some(Kind::Timestamp),
        (operators::SUBSTRACT, Kind::Timestamp, Kind::Timestamp) => Some(Kind::Duration),
        _ => None,
    }
}

impl Kind {
    /// The joined kind of two lists is a list still.
    fn list(self) -> Kind {
        if self == Kind::Strings {
            Kind::Strings
        } else {
            Kind::List
        }
    }
}

/// How the operator is written.
fn symbol(name: &str) -> &str {
    name.trim_matches('_').trim_end_matches('_')
}
