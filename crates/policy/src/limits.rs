//! Every bound of this crate, by name.
//!
//! The interpreter has no cost limit of its own and recurses once per operator, so what it is
//! handed is bounded before it is compiled (lexically), after (by shape) and when it runs (by the
//! size of its inputs).

/// Stack of every thread that loads a policy, evaluates one, or runs a [`crate::filter::Filter`].
///
/// The interpreter recurses through about 35 KB of stack per operator in a debug build.
pub const POLICY_STACK_BYTES: usize = 16 * 1024 * 1024;

/// Longest policy document.
pub const DOCUMENT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most `[[rule]]` tables in one document.
pub const RULES_MAX: usize = 20_000;
/// Most `[[admin]]` tables in one document.
pub const ADMIN_RULES_MAX: usize = 1_000;
/// Most `[[test]]` tables in one document.
pub const TESTS_MAX: usize = 2_000;
/// Most values in one list of a rule (`names`, `groups`, `logins`, ...).
pub const LIST_VALUES_MAX: usize = 1_024;
/// Longest name of a rule.
pub const RULE_NAME_BYTES_MAX: usize = 128;
/// Most errors reported for one document.
pub const ERRORS_MAX: usize = 100;
/// Longest `limits.session` and `limits.idle`.
pub const LIMIT_SECONDS_MAX: u64 = 30 * 24 * 3600;

/// Longest condition.
pub const CONDITION_BYTES_MAX: usize = 1_024;
/// Deepest nesting of `(`, `[` and `{` in a condition.
pub const CONDITION_BRACKET_DEPTH_MAX: usize = 8;
/// Most operators in a condition: arithmetic, comparison, logic, `in`, `?:`, selections and indexes.
pub const CONDITION_OPERATORS_MAX: usize = 32;
/// Most elements of a list or map a condition is given or writes down.
pub const CONDITION_LIST_VALUES_MAX: usize = 256;
/// Most steps a condition may take in the worst case, estimated when it is loaded.
pub const CONDITION_STEPS_MAX: u64 = 65_536;
/// Longest pattern given to `matches`.
pub const REGEX_BYTES_MAX: usize = 128;
/// Most memory the compiled form of such a pattern may take.
pub const REGEX_COMPILED_BYTES_MAX: usize = 64 * 1024;

/// Most logins tried when a session names none.
pub const LOGIN_CANDIDATES_MAX: usize = 64;
/// Longest expression of `audit search`.
pub const FILTER_BYTES_MAX: usize = CONDITION_BYTES_MAX;

/// Oldest login with which the verbs of [`crate::Verb::needs_recent_auth`] may be used.
pub const ADMIN_AUTH_AGE_SECONDS_MAX: i64 = 15 * 60;
