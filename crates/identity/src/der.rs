//! Just enough strict DER (X.690 §10, §11) for the identity extension: single-byte tags, definite
//! minimal lengths below 64 KiB, one encoding per value. Everything else is refused.

use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset};

pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const ENUMERATED: u8 = 0x0a;
pub(crate) const UTF8_STRING: u8 = 0x0c;
pub(crate) const GENERALIZED_TIME: u8 = 0x18;
pub(crate) const SEQUENCE: u8 = 0x30;

/// The tag of `[number] EXPLICIT`; numbers up to 30.
pub(crate) const fn explicit(number: u8) -> u8 {
    0xa0 | number
}

/// What is wrong with a DER encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DerError {
    /// The bytes end inside an element.
    #[error("an element is cut short")]
    Truncated,
    /// Bytes follow where the structure has ended, or a field is repeated or out of order.
    #[error("data follows the last expected element")]
    TrailingData,
    /// A length is indefinite, over 64 KiB, or not in its shortest form.
    #[error("a length is not in its shortest definite form")]
    Length,
    /// Another element was expected here.
    #[error("found tag {found:#04x} where {expected:#04x} was expected")]
    Tag {
        /// The tag the structure calls for.
        expected: u8,
        /// The tag that was there.
        found: u8,
    },
    /// An integer is negative, over 64 bits, or not in its shortest form.
    #[error("an integer is negative, too large or not in its shortest form")]
    Integer,
    /// A string is not UTF-8.
    #[error("a string is not UTF-8")]
    Utf8,
    /// A time is not `YYYYMMDDHHMMSSZ`.
    #[error("a time is not of the form YYYYMMDDHHMMSSZ")]
    Time,
    /// A value is too large to be written.
    #[error("a value is too large to be encoded")]
    TooLarge,
}

/// Reads elements one after the other; [`Reader::finish`] insists that nothing is left.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The content of the next element, which must carry this tag.
    pub(crate) fn read(&mut self, tag: u8) -> Result<&'a [u8], DerError> {
        let (found, after_tag) = self.rest.split_first().ok_or(DerError::Truncated)?;
        if *found != tag {
            return Err(DerError::Tag {
                expected: tag,
                found: *found,
            });
        }
        let (length, after_length) = read_length(after_tag)?;
        let (content, rest) = after_length.split_at_checked(length).ok_or(DerError::Truncated)?;
        self.rest = rest;
        Ok(content)
    }

    /// The content of the next element if it carries this tag.
    pub(crate) fn optional(&mut self, tag: u8) -> Result<Option<&'a [u8]>, DerError> {
        match self.rest.first() {
            Some(found) if *found == tag => self.read(tag).map(Some),
            Some(_) | None => Ok(None),
        }
    }

    pub(crate) fn finish(self) -> Result<(), DerError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DerError::TrailingData)
        }
    }
}

/// The only element in `bytes`.
pub(crate) fn read_single(bytes: &[u8], tag: u8) -> Result<&[u8], DerError> {
    let mut reader = Reader::new(bytes);
    let content = reader.read(tag)?;
    reader.finish()?;
    Ok(content)
}

/// X.690 §8.1.3 and §10.1.
fn read_length(bytes: &[u8]) -> Result<(usize, &[u8]), DerError> {
    match bytes {
        [] => Err(DerError::Truncated),
        [short @ 0..=0x7f, rest @ ..] => Ok((usize::from(*short), rest)),
        [0x81, length @ 0x80..=0xff, rest @ ..] => Ok((usize::from(*length), rest)),
        [0x82, high @ 1..=0xff, low, rest @ ..] => Ok((usize::from(u16::from_be_bytes([*high, *low])), rest)),
        [0x81] | [0x82] | [0x82, _] => Err(DerError::Truncated),
        [..] => Err(DerError::Length),
    }
}

/// The content of an INTEGER or ENUMERATED, non-negative and below 2^64.
pub(crate) fn unsigned(content: &[u8]) -> Result<u64, DerError> {
    let digits = match content {
        [] | [0x80..=0xff, ..] | [0, 0..=0x7f, ..] => return Err(DerError::Integer),
        [0] => return Ok(0),
        [0, digits @ ..] | digits => digits,
    };
    if digits.len() > 8 {
        return Err(DerError::Integer);
    }
    Ok(digits.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

pub(crate) fn utf8(content: &[u8]) -> Result<&str, DerError> {
    std::str::from_utf8(content).map_err(|_| DerError::Utf8)
}

/// The content of a GeneralizedTime in the form of RFC 5280 §4.1.2.5.2: Zulu, seconds, no fractions.
pub(crate) fn generalized_time(content: &[u8]) -> Result<OffsetDateTime, DerError> {
    let text = std::str::from_utf8(content).map_err(|_| DerError::Time)?;
    let digits = text.strip_suffix('Z').ok_or(DerError::Time)?;
    if digits.len() != 14 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(DerError::Time);
    }
    let number = |from: usize, to: usize| -> Result<u16, DerError> {
        digits
            .get(from..to)
            .and_then(|part| part.parse().ok())
            .ok_or(DerError::Time)
    };
    let byte = |from: usize| number(from, from + 2).map(|value| u8::try_from(value).unwrap_or(u8::MAX));
    let month = Month::try_from(byte(4)?).map_err(|_| DerError::Time)?;
    let date = Date::from_calendar_date(i32::from(number(0, 4)?), month, byte(6)?);
    let time = Time::from_hms(byte(8)?, byte(10)?, byte(12)?);
    match (date, time) {
        (Ok(date), Ok(time)) => Ok(PrimitiveDateTime::new(date, time).assume_utc()),
        _ => Err(DerError::Time),
    }
}

/// Writes elements one after the other.
#[derive(Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn element(&mut self, tag: u8, content: &[u8]) -> Result<&mut Self, DerError> {
        self.bytes.push(tag);
        match content.len() {
            length @ 0..=0x7f => self.bytes.push(length as u8),
            length @ 0x80..=0xff => self.bytes.extend([0x81, length as u8]),
            length => {
                let length = u16::try_from(length).map_err(|_| DerError::TooLarge)?;
                self.bytes.push(0x82);
                self.bytes.extend(length.to_be_bytes());
            }
        }
        self.bytes.extend_from_slice(content);
        Ok(self)
    }

    pub(crate) fn utf8(&mut self, text: &str) -> Result<&mut Self, DerError> {
        self.element(UTF8_STRING, text.as_bytes())
    }

    /// `[number] EXPLICIT`, with whatever `inner` writes.
    pub(crate) fn explicit(
        &mut self,
        number: u8,
        inner: impl FnOnce(&mut Self) -> Result<(), DerError>,
    ) -> Result<&mut Self, DerError> {
        self.constructed(explicit(number), inner)
    }

    pub(crate) fn constructed(
        &mut self,
        tag: u8,
        inner: impl FnOnce(&mut Self) -> Result<(), DerError>,
    ) -> Result<&mut Self, DerError> {
        let mut content = Self::default();
        inner(&mut content)?;
        self.element(tag, &content.bytes)
    }

    pub(crate) fn unsigned(&mut self, tag: u8, value: u64) -> Result<&mut Self, DerError> {
        let bytes = value.to_be_bytes();
        let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(7);
        let digits = bytes.get(first..).unwrap_or_default();
        // A set top bit would read as negative.
        if digits.first().is_some_and(|byte| *byte >= 0x80) {
            let mut padded = vec![0];
            padded.extend_from_slice(digits);
            self.element(tag, &padded)
        } else {
            self.element(tag, digits)
        }
    }

    /// Fractions of a second are dropped.
    pub(crate) fn time(&mut self, time: OffsetDateTime) -> Result<&mut Self, DerError> {
        let utc = time.to_offset(UtcOffset::UTC);
        if !(0..=9999).contains(&utc.year()) {
            return Err(DerError::Time);
        }
        let text = format!(
            "{:04}{:02}{:02}{:02}{:02}{:02}Z",
            utc.year(),
            u8::from(utc.month()),
            utc.day(),
            utc.hour(),
            utc.minute(),
            utc.second()
        );
        self.element(GENERALIZED_TIME, text.as_bytes())
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
