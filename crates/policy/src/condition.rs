//! Conditions: CEL expressions, capped, parsed, checked, and tried once before they count.
//!
//! Parsing and evaluating need a stack of [`crate::POLICY_STACK_BYTES`].

pub(crate) mod check;
pub(crate) mod interpreter;
pub(crate) mod kind;
pub(crate) mod variables;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use cel::common::ast::{Expr, LiteralValue};
use cel::common::types::CelBool;
use cel::parser::Expression;
use cel::{Context, ExecutionError, Value};
use iap_identity::ServiceName;
use time::OffsetDateTime;

use self::check::{Dialect, Uses};
use self::interpreter::Interpreter;
use self::variables::Variables;
use crate::facts::{ServiceFacts, UserFacts};

/// What a condition comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Truth {
    True,
    False,
    /// It failed, or its value is no boolean.
    Failed(String),
}

/// A condition that may be evaluated.
#[derive(Debug)]
pub(crate) struct Condition {
    source: String,
    expression: Expression,
    /// Dotted names of the variables it looks at.
    pub(crate) variables: BTreeSet<String>,
    /// The groups it may be about.
    pub(crate) group_literals: BTreeSet<String>,
    /// Where it looks at `user.acr`: the texts it may compare that with.
    pub(crate) acr_literals: BTreeSet<String>,
    /// Whether it looks at groups that it does not name.
    pub(crate) scans_groups: bool,
    /// Whether time alone can change its value.
    pub(crate) time_dependent: bool,
    /// Whether its value depends on the login or the database.
    pub(crate) target_dependent: bool,
}

impl Condition {
    /// Caps, parses and checks `source`.
    pub(crate) fn compile(source: &str, interpreter: &Interpreter) -> Result<Self, String> {
        let (expression, uses) = parse(source, interpreter, Dialect::Condition)?;
        check_constants(&expression, interpreter)?;
        if !uses.surely_boolean {
            try_out(&expression, interpreter)?;
        }
        let time_dependent = uses
            .variables
            .iter()
            .any(|variable| variables::is_time_dependent(variable));
        let target_dependent = uses.variables.contains("login") || uses.variables.contains("database");
        let looks_at_acr = ["user.acr", "user"]
            .iter()
            .any(|variable| uses.variables.contains(*variable));
        let acr_literals = if looks_at_acr {
            uses.literals
                .iter()
                .filter(|text| could_be_acr(text))
                .cloned()
                .collect()
        } else {
            BTreeSet::new()
        };
        let mut group_literals = uses.asked_groups;
        if uses.scans_groups {
            group_literals.extend(uses.literals);
        }
        Ok(Self {
            source: source.to_owned(),
            expression,
            group_literals,
            acr_literals,
            scans_groups: uses.scans_groups,
            variables: uses.variables,
            time_dependent,
            target_dependent,
        })
    }

    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    pub(crate) fn evaluate(&self, variables: &Variables<'_>, interpreter: &Interpreter) -> Truth {
        let mut context = Context::with_env(interpreter.env().clone());
        context.set_variable_resolver(variables);
        truth(&self.expression, &context)
    }

    /// The value of one of [`Self::variables`], for an explanation.
    pub(crate) fn value_of(variable: &str, variables: &Variables<'_>, interpreter: &Interpreter) -> String {
        let mut context = Context::with_env(interpreter.env().clone());
        context.set_variable_resolver(variables);
        match interpreter
            .parse(variable)
            .map(|expression| Value::resolve(&expression, &context))
        {
            Ok(Ok(value)) => display(&value),
            Ok(Err(error)) => format!("unknown ({error})"),
            Err(error) => format!("unknown ({error})"),
        }
    }
}

/// OpenID Connect Core §3.1.2.1: `acr_values` are separated by spaces.
fn could_be_acr(text: &str) -> bool {
    !text.is_empty() && !text.contains(|letter: char| letter.is_whitespace() || letter.is_control())
}

/// Caps, parses and checks an expression of either dialect.
pub(crate) fn parse(
    source: &str,
    interpreter: &Interpreter,
    dialect: Dialect,
) -> Result<(Expression, Uses), String> {
    crate::lexical::scan(source).map_err(|error| error.to_string())?;
    // The parser is generated code that is not ours; a panic in it is a refused document.
    let parsed = catch_unwind(AssertUnwindSafe(|| interpreter.parse(source)));
    let expression = parsed.unwrap_or_else(|_| Err("the parser cannot read it".to_owned()))?;
    let uses = check::check(&expression, dialect).map_err(|error| error.to_string())?;
    Ok((expression, uses))
}

/// Evaluates `expression` to a boolean or a failure; never panics.
pub(crate) fn truth(expression: &Expression, context: &Context<'_, '_>) -> Truth {
    let outcome = catch_unwind(AssertUnwindSafe(|| boolean(expression, context)));
    match outcome {
        Ok(Ok(true)) => Truth::True,
        Ok(Ok(false)) => Truth::False,
        Ok(Err(problem)) => Truth::Failed(problem),
        Err(_) => Truth::Failed("the interpreter gave up".to_owned()),
    }
}

fn boolean(expression: &Expression, context: &Context<'_, '_>) -> Result<bool, String> {
    let value = Value::resolve_val(expression, context).map_err(|error| describe(&error))?;
    match value.downcast_ref::<CelBool>() {
        Some(value) => Ok(*value.inner()),
        None => Err(format!(
            "its value is of type {}, not a boolean",
            value.get_type().name()
        )),
    }
}

/// Evaluates an expression whose kind is not known beforehand on representative facts. Failing on
/// them is no mistake; a value that is no boolean is.
fn try_out(expression: &Expression, interpreter: &Interpreter) -> Result<(), String> {
    let Ok(name) = ServiceName::parse("example") else {
        return Ok(());
    };
    let (service, user) = (ServiceFacts::tcp(name), UserFacts::bot("example"));
    let variables = Variables {
        user: &user,
        service: &service,
        login: Some("example"),
        database: Some("example"),
        client_ip: "192.0.2.1",
        now: OffsetDateTime::UNIX_EPOCH,
        bare_groups: true,
    };
    let mut context = Context::with_env(interpreter.env().clone());
    context.set_variable_resolver(&variables);
    let value = catch_unwind(AssertUnwindSafe(|| Value::resolve(expression, &context)));
    match value {
        Ok(Ok(Value::Bool(_)) | Err(_)) => Ok(()),
        Ok(Ok(other)) => Err(format!("the condition is {}, not a boolean", display(&other))),
        Err(_) => Err("the interpreter cannot evaluate it".to_owned()),
    }
}

fn describe(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => format!("there is no {key}"),
        ExecutionError::UndeclaredReference(name) => format!("{name} is not known here"),
        other => other.to_string(),
    }
}

/// A call of `duration` or `timestamp` on a literal must work: it is evaluated now.
fn check_constants(expression: &Expression, interpreter: &Interpreter) -> Result<(), String> {
    let mut problem = None;
    visit(expression, &mut |node| {
        if let Expr::Call(call) = &node.expr
            && matches!(call.func_name.as_str(), "duration" | "timestamp")
            && let [argument] = call.args.as_slice()
            && let Expr::Literal(LiteralValue::String(text)) = &argument.expr
        {
            let context = Context::with_env(interpreter.env().clone());
            if Value::resolve(node, &context).is_err() {
                problem = Some(format!("{:?} is no {}", text.inner(), call.func_name));
            }
        }
    });
    problem.map_or(Ok(()), Err)
}

/// Calls `look` on every node. The depth is bounded by the lexical cap.
fn visit<'e>(expression: &'e Expression, look: &mut dyn FnMut(&'e Expression)) {
    look(expression);
    match &expression.expr {
        Expr::Call(call) => {
            call.target.iter().for_each(|target| visit(target, look));
            call.args.iter().for_each(|argument| visit(argument, look));
        }
        Expr::Select(select) => visit(&select.operand, look),
        Expr::List(list) => list.elements.iter().for_each(|element| visit(element, look)),
        Expr::Comprehension(comprehension) => {
            visit(&comprehension.iter_range, look);
            visit(&comprehension.loop_cond, look);
            visit(&comprehension.loop_step, look);
        }
        Expr::Map(_) | Expr::Struct(_) | Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
    }
}

fn display(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::List(values) => {
            let shown: Vec<String> = values.iter().map(display).collect();
            format!("[{}]", shown.join(", "))
        }
        Value::Duration(value) => format!("{}s", value.num_seconds()),
        Value::Timestamp(value) => value.to_rfc3339(),
        Value::Map(map) => {
            let mut shown: Vec<String> = map
                .map
                .iter()
                .map(|(key, value)| format!("{key}: {}", display(value)))
                .collect();
            shown.sort();
            format!("{{{}}}", shown.join(", "))
        }
        other => format!("{other:?}"),
    }
}
