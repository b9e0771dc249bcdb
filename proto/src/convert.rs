//! Wire to domain and back. A conversion from the wire checks everything; one to the wire cannot fail.

pub mod bundle;
pub mod control;
pub mod feed;
pub mod service;
pub mod snapshot;

use iap_identity::{ClusterName, NameError};
use thiserror::Error;
use time::OffsetDateTime;

/// A message that is well-formed protobuf and still not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the field {field} is refused: {problem}")]
pub struct WireError {
    /// Message and field, as the schema names them.
    pub field: &'static str,
    /// What is wrong, without secrets.
    pub problem: String,
}

impl WireError {
    /// A refusal of `field`.
    pub fn new(field: &'static str, problem: impl std::fmt::Display) -> Self {
        Self {
            field,
            problem: problem.to_string(),
        }
    }

    /// For `map_err` on a name.
    pub(crate) fn name(field: &'static str) -> impl Fn(NameError) -> Self {
        move |error| Self::new(field, error)
    }
}

/// Milliseconds since the Unix epoch.
pub fn time_to_wire(time: OffsetDateTime) -> i64 {
    // Years -9999 to 9999 in milliseconds fit an i64 a thousand times over.
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// The time of a `*_unix_ms` field.
pub fn time_from_wire(field: &'static str, unix_ms: i64) -> Result<OffsetDateTime, WireError> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .map_err(|error| WireError::new(field, error))
}

pub(crate) fn cluster(field: &'static str, name: &str) -> Result<ClusterName, WireError> {
    ClusterName::parse(name).map_err(WireError::name(field))
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;

    #[test]
    fn times_survive_to_the_millisecond_and_absurd_ones_are_refused() {
        let time = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_000_000).unwrap();
        assert_eq!(time_from_wire("x", time_to_wire(time)), Ok(time));
        assert_eq!(time_from_wire("x", i64::MAX).unwrap_err().field, "x");
    }
}
