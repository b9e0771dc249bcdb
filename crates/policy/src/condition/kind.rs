//! The kinds of values a condition deals in, as far as they are known before it runs.

use std::fmt;

use cel::common::ast::LiteralValue;

/// What is known of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bool,
    Int,
    UInt,
    Double,
    String,
    Null,
    Duration,
    Timestamp,
    /// A list of strings.
    Strings,
    /// A list of anything.
    List,
    /// A map from strings to strings.
    StringMap,
    /// A map of anything.
    Map,
    /// Nothing is known.
    Any,
}

impl Kind {
    pub(crate) fn of_literal(literal: &LiteralValue) -> Option<Self> {
        match literal {
            LiteralValue::Boolean(_) => Some(Kind::Bool),
            LiteralValue::Double(_) => Some(Kind::Double),
            LiteralValue::Int(_) => Some(Kind::Int),
            LiteralValue::Null => Some(Kind::Null),
            LiteralValue::String(_) => Some(Kind::String),
            LiteralValue::UInt(_) => Some(Kind::UInt),
            LiteralValue::Bytes(_) => None,
        }
    }

    /// Whether a value of this kind could be one of `other`.
    pub(crate) fn may_be(self, other: Kind) -> bool {
        self == other
            || self == Kind::Any
            || other == Kind::Any
            || (self.is_list() && other.is_list())
            || (self.is_map() && other.is_map())
    }

    /// Whether `==` between the two can be true.
    pub(crate) fn comparable(self, other: Kind) -> bool {
        self.may_be(other)
            || (self.is_number() && other.is_number())
            || self == Kind::Null
            || other == Kind::Null
    }

    pub(crate) fn is_list(self) -> bool {
        matches!(self, Kind::Strings | Kind::List)
    }

    pub(crate) fn is_map(self) -> bool {
        matches!(self, Kind::StringMap | Kind::Map)
    }

    pub(crate) fn is_number(self) -> bool {
        matches!(self, Kind::Int | Kind::UInt | Kind::Double)
    }

    /// What a comprehension over it, or `in`, sees.
    pub(crate) fn element(self) -> Kind {
        match self {
            Kind::Strings | Kind::StringMap => Kind::String,
            _ => Kind::Any,
        }
    }

    /// What `[...]` or `.field` yields.
    pub(crate) fn member(self) -> Kind {
        match self {
            Kind::Strings | Kind::StringMap => Kind::String,
            _ => Kind::Any,
        }
    }

    /// The kind of a value that is one or the other.
    pub(crate) fn join(self, other: Kind) -> Kind {
        if self == other { self } else { Kind::Any }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Kind::Bool => "a boolean",
            Kind::Int => "an int",
            Kind::UInt => "a uint",
            Kind::Double => "a double",
            Kind::String => "a string",
            Kind::Null => "null",
            Kind::Duration => "a duration",
            Kind::Timestamp => "a timestamp",
            Kind::Strings => "a list of strings",
            Kind::List => "a list",
            Kind::StringMap | Kind::Map => "a map",
            Kind::Any => "a value of unknown kind",
        })
    }
}
