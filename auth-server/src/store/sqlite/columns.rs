//! How values stand in columns: times as milliseconds, ids and hashes as bytes, lists as JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::store::{Hash, StoreError};

/// Milliseconds since the Unix epoch.
pub(crate) fn milliseconds(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// The time so many milliseconds after the Unix epoch.
pub(crate) fn from_milliseconds(milliseconds: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000).ok()
}

/// SQLite's integers are signed; ours never reach the top bit.
pub(super) fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::damaged("value", error))
}

/// Reads a row's columns; errors name the kind of row.
pub(super) struct Columns<'a> {
    what: &'static str,
    row: &'a SqliteRow,
}

impl<'a> Columns<'a> {
    pub(super) fn new(what: &'static str, row: &'a SqliteRow) -> Self {
        Self { what, row }
    }

    fn damaged(&self, column: &str, why: impl std::fmt::Display) -> StoreError {
        StoreError::damaged(self.what, format!("{column}: {why}"))
    }

    pub(super) fn text(&self, column: &str) -> Result<String, StoreError> {
        Ok(self.row.try_get(column)?)
    }

    pub(super) fn text_or_none(&self, column: &str) -> Result<Option<String>, StoreError> {
        Ok(self.row.try_get(column)?)
    }

    pub(super) fn bytes(&self, column: &str) -> Result<Vec<u8>, StoreError> {
        Ok(self.row.try_get(column)?)
    }

    pub(super) fn bytes_or_none(&self, column: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.row.try_get(column)?)
    }

    pub(super) fn number<T: TryFrom<i64>>(&self, column: &str) -> Result<T, StoreError> {
        let value: i64 = self.row.try_get(column)?;
        T::try_from(value).map_err(|_| self.damaged(column, format!("{value} is out of range")))
    }

    pub(super) fn time(&self, column: &str) -> Result<OffsetDateTime, StoreError> {
        let value: i64 = self.row.try_get(column)?;
        from_milliseconds(value).ok_or_else(|| self.damaged(column, "no time"))
    }

    pub(super) fn time_or_none(&self, column: &str) -> Result<Option<OffsetDateTime>, StoreError> {
        let value: Option<i64> = self.row.try_get(column)?;
        value
            .map(|value| from_milliseconds(value).ok_or_else(|| self.damaged(column, "no time")))
            .transpose()
    }

    pub(super) fn hash(&self, column: &str) -> Result<Hash, StoreError> {
        self.bytes(column)?
            .try_into()
            .map_err(|_| self.damaged(column, "not 32 bytes"))
    }

    pub(super) fn hash_or_none(&self, column: &str) -> Result<Option<Hash>, StoreError> {
        let bytes: Option<Vec<u8>> = self.row.try_get(column)?;
        bytes
            .map(|bytes| bytes.try_into().map_err(|_| self.damaged(column, "not 32 bytes")))
            .transpose()
    }

    pub(super) fn uuid(&self, column: &str) -> Result<Uuid, StoreError> {
        Uuid::from_slice(&self.bytes(column)?).map_err(|error| self.damaged(column, error))
    }

    /// A column whose text is parsed by `parse`.
    pub(super) fn parsed<T, E: std::fmt::Display>(
        &self,
        column: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, StoreError> {
        parse(&self.text(column)?).map_err(|error| self.damaged(column, error))
    }

    /// A column whose text is the name of a closed set's member.
    pub(super) fn named<T>(
        &self,
        column: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, StoreError> {
        let text = self.text(column)?;
        parse(&text).ok_or_else(|| self.damaged(column, format!("{text:?} is unknown")))
    }

    pub(super) fn json<T: DeserializeOwned>(&self, column: &str) -> Result<T, StoreError> {
        serde_json::from_str(&self.text(column)?).map_err(|error| self.damaged(column, error))
    }

    pub(super) fn json_or_none<T: DeserializeOwned>(&self, column: &str) -> Result<Option<T>, StoreError> {
        self.text_or_none(column)?
            .map(|text| serde_json::from_str(&text).map_err(|error| self.damaged(column, error)))
            .transpose()
    }
}
