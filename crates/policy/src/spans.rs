//! Spans of time as documents write them: `8h`, `1h30m`, `45s`.

use std::time::Duration;

use crate::limits::LIMIT_SECONDS_MAX;

/// Reads a span: whole numbers with the units `d`, `h`, `m`, `s`, largest first.
pub(crate) fn parse_span(text: &str) -> Result<Duration, String> {
    let malformed = || format!("{text:?} is no span of time such as \"8h\", \"30m\" or \"1h30m\"");
    let mut seconds: u64 = 0;
    let mut last_unit = u64::MAX;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, behind) = rest.split_at_checked(digits).ok_or_else(malformed)?;
        let unit = match behind.bytes().next() {
            Some(b'd') => 24 * 3600,
            Some(b'h') => 3600,
            Some(b'm') => 60,
            Some(b's') => 1,
            _ => return Err(malformed()),
        };
        if unit >= last_unit {
            return Err(malformed());
        }
        last_unit = unit;
        let number: u64 = number.parse().map_err(|_| malformed())?;
        seconds = number
            .checked_mul(unit)
            .and_then(|more| seconds.checked_add(more))
            .ok_or_else(malformed)?;
        rest = behind.get(1..).unwrap_or_default();
    }
    if text.is_empty() {
        return Err(malformed());
    }
    Ok(Duration::from_secs(seconds))
}

/// A span that limits a session: more than nothing, and no more than [`LIMIT_SECONDS_MAX`].
pub(crate) fn parse_limit(text: &str) -> Result<Duration, String> {
    let span = parse_span(text)?;
    if span.is_zero() || span.as_secs() > LIMIT_SECONDS_MAX {
        return Err(format!(
            "{text:?} is out of range; allowed are 1s to {}d",
            LIMIT_SECONDS_MAX / 86_400
        ));
    }
    Ok(span)
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
    fn spans_are_read() {
        for (text, seconds) in [
            ("8h", 28_800),
            ("30m", 1_800),
            ("1h30m", 5_400),
            ("2d1s", 172_801),
            ("0s", 0),
        ] {
            assert_eq!(parse_span(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn malformed_spans_are_refused() {
        for text in [
            "",
            "8",
            "h",
            "1.5h",
            "-1h",
            "1h1h",
            "30m1h",
            "1h ",
            "99999999999999999999s",
            "1d\u{e9}",
        ] {
            assert!(parse_span(text).is_err(), "{text}");
        }
        assert!(parse_limit("0s").is_err());
        assert!(parse_limit("31d").is_err());
        assert!(parse_limit("30d").is_ok());
    }
}
