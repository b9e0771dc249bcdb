//! Parameter values as text, where their type's binary form is known ("Message Formats": Bind; `pg_type`).

/// A value in text form stays as it is; one in binary form of a known type becomes text, any other hexadecimal.
pub(crate) fn text_of(value: &[u8], is_binary: bool, oid: u32, bytes_max: usize) -> String {
    if is_binary && let Some(text) = known(value, oid) {
        return text;
    }
    let kept = value.get(..bytes_max).unwrap_or(value);
    match is_binary && !is_text(oid) {
        true => {
            let digits: String = kept.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("\\x{digits}")
        }
        false => String::from_utf8_lossy(kept).into_owned(),
    }
}

fn is_text(oid: u32) -> bool {
    // "char", name, text, json, unknown, bpchar, varchar.
    matches!(oid, 18 | 19 | 25 | 114 | 705 | 1042 | 1043)
}

fn known(value: &[u8], oid: u32) -> Option<String> {
    Some(match oid {
        16 => (value == [1]).to_string(),
        20 => i64::from_be_bytes(value.try_into().ok()?).to_string(),
        21 => i16::from_be_bytes(value.try_into().ok()?).to_string(),
        23 | 26 => i32::from_be_bytes(value.try_into().ok()?).to_string(),
        700 => f32::from_be_bytes(value.try_into().ok()?).to_string(),
        701 => f64::from_be_bytes(value.try_into().ok()?).to_string(),
        2950 => uuid(value.try_into().ok()?),
        _ => return None,
    })
}

fn uuid(value: [u8; 16]) -> String {
    let digits = format!("{:032x}", u128::from_be_bytes(value));
    let part = |range: std::ops::Range<usize>| digits.get(range).unwrap_or_default();
    [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_known_types_are_read_and_others_shown_in_hexadecimal() {
        assert_eq!(text_of(b"42", false, 23, 99), "42");
        assert_eq!(text_of(&42i32.to_be_bytes(), true, 23, 99), "42");
        assert_eq!(text_of(&(-1i64).to_be_bytes(), true, 20, 99), "-1");
        assert_eq!(text_of(&[1], true, 16, 99), "true");
        assert_eq!(text_of("é".as_bytes(), true, 25, 99), "é");
        assert_eq!(
            text_of(&[1; 16], true, 2950, 99),
            "01010101-0101-0101-0101-010101010101"
        );
        assert_eq!(text_of(&[0, 0xff], true, 17, 99), "\\x00ff");
        assert_eq!(text_of(&[1, 2, 3], true, 23, 99), "\\x010203");
    }
}
