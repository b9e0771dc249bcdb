//! What a client has sent and the backend has not answered yet.

use std::time::Duration;

use super::Copied;
use crate::capture::Captured;

#[derive(Debug)]
pub(super) struct Pending {
    pub(super) body: Body,
    pub(super) since: Duration,
    pub(super) progress: Progress,
}

/// What the backend has said of it by now.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) rows: u64,
    /// Rows since the last that the backend counted itself.
    pub(super) rows_seen: u64,
    pub(super) tags: Vec<String>,
    pub(super) failed: Option<String>,
    pub(super) copy: Option<Copied>,
    /// Data that came before the backend had asked for it.
    pub(super) copied_ahead: u64,
}

#[derive(Debug)]
pub(super) enum Body {
    Query {
        text: Captured,
    },
    Parse {
        name: String,
        text: Captured,
        types: Vec<u32>,
    },
    Bind {
        portal: String,
        statement: String,
        values: Values,
    },
    Execute {
        portal: String,
    },
    Describe {
        /// Nothing for a portal.
        statement: Option<String>,
    },
    Close {
        is_portal: bool,
        name: String,
    },
    Function {
        oid: u32,
    },
    Sync,
}

/// Parameters as they were bound.
#[derive(Debug, Clone, Default)]
pub(super) struct Values {
    /// Nothing where the message was too long to tell.
    pub(super) count: Option<usize>,
    /// Nothing where values are not to be kept.
    pub(super) values: Option<Vec<Value>>,
    pub(super) truncated: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Value {
    pub(super) is_binary: bool,
    /// Nothing for NULL.
    pub(super) bytes: Option<Vec<u8>>,
}

impl Pending {
    pub(super) fn new(body: Body, since: Duration) -> Self {
        Self {
            body,
            since,
            progress: Progress::default(),
        }
    }
}

impl Body {
    pub(super) fn query(text: Captured) -> Self {
        Self::Query { text }
    }

    /// The message that answers it and says no more.
    pub(super) fn answer(&self) -> Option<u8> {
        match self {
            Self::Parse { .. } => Some(b'1'),
            Self::Bind { .. } => Some(b'2'),
            Self::Close { .. } => Some(b'3'),
            Self::Query { .. }
            | Self::Execute { .. }
            | Self::Describe { .. }
            | Self::Function { .. }
            | Self::Sync => None,
        }
    }

    pub(super) fn kept_bytes(&self) -> usize {
        match self {
            Self::Query { text } => text.text.len(),
            Self::Parse { name, text, types } => name.len() + text.text.len() + 4 * types.len(),
            Self::Bind {
                portal,
                statement,
                values,
            } => portal.len() + statement.len() + values.kept_bytes(),
            Self::Execute { portal } => portal.len(),
            Self::Close { name, .. } => name.len(),
            Self::Describe { .. } | Self::Function { .. } | Self::Sync => 0,
        }
    }
}

impl Values {
    pub(super) fn kept_bytes(&self) -> usize {
        let of = |value: &Value| size_of::<Value>() + value.bytes.as_ref().map_or(0, Vec::len);
        self.values
            .as_ref()
            .map_or(0, |values| values.iter().map(of).sum())
    }
}

/// Reads what is kept of a client's messages.
pub(super) mod read {
    use super::{Body, Value, Values};
    use crate::capture::captured_text;
    use crate::messages::Message;
    use crate::statements::{NAME_BYTES_MAX, TooMuch};

    pub(crate) fn parse(message: Message<'_>, text_max: usize) -> Result<Body, TooMuch> {
        let (name, rest) = name(message.body)?;
        let behind_name = message.length - (message.body.len() - rest.len());
        let (text, types) = match rest.iter().position(|byte| *byte == 0) {
            Some(end) => {
                let (text, behind) = rest.split_at(end);
                (
                    captured_text(text, end, text_max),
                    types(behind.get(1..).unwrap_or_default()),
                )
            }
            // Beyond what is kept: how much of the rest are types is not known, nor worth knowing.
            None if !message.is_whole() => (captured_text(rest, behind_name, text_max), Vec::new()),
            None => return Err(TooMuch::Lacks),
        };
        Ok(Body::Parse { name, text, types })
    }

    pub(crate) fn bind(message: Message<'_>, values_max: Option<usize>) -> Result<Body, TooMuch> {
        let (portal, rest) = name(message.body)?;
        let (statement, rest) = name(rest)?;
        let values = match values(rest, values_max) {
            Some(values) => values,
            None if message.is_whole() => return Err(TooMuch::Lacks),
            None => Values {
                count: None,
                values: None,
                truncated: true,
            },
        };
        Ok(Body::Bind {
            portal,
            statement,
            values,
        })
    }

    pub(crate) fn execute(message: Message<'_>) -> Result<Body, TooMuch> {
        let (portal, _) = name(message.body)?;
        Ok(Body::Execute { portal })
    }

    pub(crate) fn describe(message: Message<'_>) -> Result<Body, TooMuch> {
        let (is_portal, name) = target(message.body)?;
        Ok(Body::Describe {
            statement: (!is_portal).then_some(name),
        })
    }

    pub(crate) fn close(message: Message<'_>) -> Result<Body, TooMuch> {
        let (is_portal, name) = target(message.body)?;
        Ok(Body::Close { is_portal, name })
    }

    pub(crate) fn function(message: Message<'_>) -> Result<Body, TooMuch> {
        let oid = message.body.first_chunk::<4>().ok_or(TooMuch::Lacks)?;
        Ok(Body::Function {
            oid: u32::from_be_bytes(*oid),
        })
    }

    /// A count and as many type numbers, as far as they are there.
    pub(crate) fn types(body: &[u8]) -> Vec<u32> {
        let rest = body.get(2..).unwrap_or_default();
        let (numbers, _) = rest.as_chunks::<4>();
        numbers.iter().map(|number| u32::from_be_bytes(*number)).collect()
    }

    fn target(body: &[u8]) -> Result<(bool, String), TooMuch> {
        let (kind, rest) = body.split_first().ok_or(TooMuch::Lacks)?;
        let (name, _) = name(rest)?;
        Ok((*kind == b'P', name))
    }

    /// A name and what stands behind its zero.
    fn name(body: &[u8]) -> Result<(String, &[u8]), TooMuch> {
        let end = body.iter().take(NAME_BYTES_MAX + 1).position(|byte| *byte == 0);
        let end = match end {
            Some(end) => end,
            None if body.len() < NAME_BYTES_MAX => return Err(TooMuch::Lacks),
            None => return Err(TooMuch::Name),
        };
        let (name, behind) = body.split_at(end);
        // Names that are no UTF-8 must not come to look alike.
        let name = match std::str::from_utf8(name) {
            Ok(name) => name.to_owned(),
            Err(_) => name.escape_ascii().to_string(),
        };
        Ok((name, behind.get(1..).unwrap_or_default()))
    }

    /// Formats, values; nothing where not even their number is there.
    fn values(body: &[u8], values_max: Option<usize>) -> Option<Values> {
        let (count, rest) = count(body)?;
        let (formats, rest) = rest.split_at_checked(2 * count)?;
        let is_binary = |index: usize| {
            let at = if count == 1 { 0 } else { index };
            formats.get(2 * at + 1) == Some(&1)
        };
        let (count, mut rest) = self::count(rest)?;
        let mut values = Values {
            count: Some(count),
            values: values_max.map(|_| Vec::new()),
            truncated: false,
        };
        let Some(mut room) = values_max else {
            return Some(values);
        };
        for index in 0..count {
            let Some((bytes, behind)) = value(rest) else {
                values.truncated = true;
                break;
            };
            rest = behind;
            let kept = bytes.map(|bytes| bytes.get(..room).unwrap_or(bytes));
            room -= kept.map_or(0, <[u8]>::len);
            values.truncated |= kept.map(<[u8]>::len) != bytes.map(<[u8]>::len);
            let value = Value {
                is_binary: is_binary(index),
                bytes: kept.map(<[u8]>::to_vec),
            };
            values.values.get_or_insert_default().push(value);
        }
        Some(values)
    }

    fn count(body: &[u8]) -> Option<(usize, &[u8])> {
        let (count, rest) = body.split_first_chunk::<2>()?;
        Some((usize::from(u16::from_be_bytes(*count)), rest))
    }

    /// A length and as many bytes; −1 is NULL.
    fn value(body: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
        let (length, rest) = body.split_first_chunk::<4>()?;
        match usize::try_from(i32::from_be_bytes(*length)) {
            Ok(length) => {
                let (value, rest) = rest.split_at_checked(length)?;
                Some((Some(value), rest))
            }
            Err(_) => Some((None, rest)),
        }
    }
}
