//! Values written with a unit: durations and sizes.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const DURATION_UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];
const SIZE_UNITS: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// A value with a unit that was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not a duration.
    #[error(
        "{text:?} is not a duration: write a whole number and a unit, such as \"500ms\", \"30s\", \"10m\", \"4h\" or \"7d\""
    )]
    Duration {
        /// What was written.
        text: String,
    },
    /// Not a size.
    #[error(
        "{text:?} is not a size: write a whole number and a unit, such as \"512B\", \"64KiB\", \"16MiB\" or \"1GiB\""
    )]
    Size {
        /// What was written.
        text: String,
    },
}

/// A duration written as `"30s"`, `"10m"`, `"4h"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigDuration(Duration);

impl ConfigDuration {
    /// From whole milliseconds, for defaults.
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(Duration::from_millis(milliseconds))
    }

    /// From whole seconds, for defaults.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Reads a whole number and a unit (`ms`, `s`, `m`, `h`, `d`).
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        let refused = || ValueError::Duration {
            text: text.to_owned(),
        };
        with_unit(text, &DURATION_UNITS)
            .map(Self::from_millis)
            .ok_or_else(refused)
    }

    /// The duration.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl From<ConfigDuration> for Duration {
    fn from(value: ConfigDuration) -> Self {
        value.0
    }
}

impl From<Duration> for ConfigDuration {
    fn from(value: Duration) -> Self {
        Self(value)
    }
}

impl fmt::Display for ConfigDuration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        write_with_unit(formatter, milliseconds, &DURATION_UNITS)
    }
}

/// A size written as `"64KiB"`, `"16MiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

impl ByteSize {
    /// From bytes, for defaults.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Reads a whole number and a unit (`B`, `KiB`, `MiB`, `GiB`).
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        let refused = || ValueError::Size {
            text: text.to_owned(),
        };
        with_unit(text, &SIZE_UNITS).map(Self).ok_or_else(refused)
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_with_unit(formatter, self.0, &SIZE_UNITS)
    }
}

macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse(&text).map_err(de::Error::custom)
            }
        }
    };
}

as_text!(ConfigDuration);
as_text!(ByteSize);

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// In the largest unit that needs no fraction.
fn write_with_unit(formatter: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)]) -> fmt::Result {
    let exact = units
        .iter()
        .rev()
        .find(|(_, factor)| value >= *factor && value.is_multiple_of(*factor));
    match exact.or(units.first()) {
        Some((unit, factor)) => write!(formatter, "{}{unit}", value / factor),
        None => write!(formatter, "{value}"),
    }
}
