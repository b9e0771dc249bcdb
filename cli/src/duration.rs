//! Durations as people write them (`90s`, `30m`, `8h`, `7d`) and times and sizes as people read them.

use time::OffsetDateTime;
use time::macros::format_description;

const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3_600), ('d', 86_400)];

/// Parses `90s`, `30m`, `8h`, `7d` or several of them together (`1h30m`) to seconds.
///
/// # Errors
/// A sentence that says what is allowed.
pub fn parse_seconds(text: &str) -> Result<u64, String> {
    let refuse = || format!("'{text}' is not a duration: write 90s, 30m, 8h or 7d");
    let mut total: u64 = 0;
    let mut digits = String::new();
    for character in text.chars() {
        if character.is_ascii_digit() {
            digits.push(character);
            continue;
        }
        let (_, unit) = UNITS
            .into_iter()
            .find(|(letter, _)| *letter == character)
            .ok_or_else(refuse)?;
        let count: u64 = digits.parse().map_err(|_| refuse())?;
        total = count
            .checked_mul(unit)
            .and_then(|seconds| total.checked_add(seconds))
            .ok_or_else(refuse)?;
        digits.clear();
    }
    if !digits.is_empty() || total == 0 {
        return Err(refuse());
    }
    Ok(total)
}

/// RFC 3339, UTC, milliseconds: the form of every time in our JSON.
pub fn rfc3339(time: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    time.to_offset(time::UtcOffset::UTC)
        .format(&format)
        .unwrap_or_default()
}

/// The time of a wire field in milliseconds since the epoch.
pub fn from_unix_ms(milliseconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// How long until or since, in the two largest units: `58m`, `3h 12m`, `2d 4h`.
pub fn rough(duration: time::Duration) -> String {
    let exact = duration.whole_seconds().unsigned_abs();
    // Nobody wants to read 59m of what was given as an hour.
    let seconds = if exact < 600 {
        exact
    } else {
        (exact + 30) / 60 * 60
    };
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, 0) => format!("{hours}h"),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, 0, _) => format!("{days}d"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

/// A size in decimal units: `512 B`, `1.2 kB`, `34 MB`.
pub fn size(bytes: u64) -> String {
    const STEPS: [(u64, &str); 4] = [
        (1_000_000_000_000, "TB"),
        (1_000_000_000, "GB"),
        (1_000_000, "MB"),
        (1_000, "kB"),
    ];
    let Some((step, unit)) = STEPS.into_iter().find(|(step, _)| bytes >= *step) else {
        return format!("{bytes} B");
    };
    let tenths = bytes.saturating_mul(10) / step;
    if tenths >= 100 {
        format!("{} {unit}", tenths / 10)
    } else {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(parse_seconds("90s"), Ok(90));
        assert_eq!(parse_seconds("1h30m"), Ok(5_400));
        assert_eq!(parse_seconds("7d"), Ok(604_800));
        for bad in ["", "0s", "h", "10", "10w", "-5m", "1.5h", "99999999999999999999d"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_carry_milliseconds_and_z() {
        assert_eq!(
            rfc3339(from_unix_ms(1_700_000_000_123)),
            "2023-11-14T22:13:20.123Z"
        );
    }

    #[test]
    fn lengths_and_sizes_are_short() {
        assert_eq!(rough(time::Duration::seconds(59)), "59s");
        assert_eq!(rough(time::Duration::seconds(3_600 * 27)), "1d 3h");
        assert_eq!(rough(time::Duration::seconds(3_599)), "1h");
        assert_eq!(rough(time::Duration::seconds(-125)), "2m");
        assert_eq!(size(999), "999 B");
        assert_eq!(size(1_250), "1.2 kB");
        assert_eq!(size(34_000_000), "34 MB");
    }
}
