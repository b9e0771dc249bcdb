//! The policy: a TOML document of rules with CEL conditions, and the decisions made from it.
//!
//! Pure: time and addresses are arguments, nothing is read or remembered between decisions. What is
//! bounded is bounded in [`limits`]. Everything that touches CEL ([`Policy::load`],
//! [`Policy::evaluate`], [`Policy::explain`], [`Policy::visible`], [`Policy::run_tests`],
//! [`filter::Filter`]) needs a thread with [`POLICY_STACK_BYTES`] of stack: the interpreter recurses,
//! and an overflowing stack ends the process.
//!
//! The semantics in short: default is denial; a deny rule wins; an allow rule whose condition fails
//! does not allow, a deny rule whose condition fails denies; only rules whose selectors match evaluate
//! their condition. `docs/policy.md` is the reference for authors.

mod about;
mod about_service;
mod accounts;
mod admin;
mod cidr;
mod condition;
mod decision;
mod document;
mod error;
mod evaluate;
mod explain;
mod facts;
mod features;
pub mod filter;
mod groups;
mod index;
pub mod lexical;
pub mod limits;
mod options;
mod policy;
mod rule;
mod selector;
mod spans;
mod step_up;
mod suite;
mod target;
mod warnings;

pub use about::{AdminAbout, RuleAbout};
pub use about_service::ServiceRule;
pub use accounts::Accounts;
pub use admin::{Verb, VerbError};
pub use decision::{Decision, Denial, DenialCode, Grant, Limits, Visible};
pub use error::{PolicyError, PolicyErrors};
pub use explain::{ConditionExplanation, Explanation, RuleExplanation};
pub use facts::{Asked, Protocol, ProtocolError, Question, ServiceFacts, UserFacts, Vocabulary};
pub use features::{Feature, Features};
pub use filter::Filter;
pub use groups::NamedGroup;
pub use limits::POLICY_STACK_BYTES;
pub use options::{Connectors, LoadOptions, RESERVED_LOGINS};
pub use policy::Policy;
pub use rule::Effect;
pub use step_up::StepUp;
pub use suite::{TestFailure, TestsPassed};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_and_filters_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Policy>();
        shared::<Filter>();
    }
}
