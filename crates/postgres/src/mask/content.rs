//! Passwords within a literal or a comment: of connection strings, of URIs, and of statements in quotes.

use std::ops::Range;

use super::{MASK, SECRET_NAMES};

/// So far a parameter is looked for the URI that it may be one of.
const URI_BYTES_MAX: usize = 1024;

/// `password=` of a connection string or a statement in quotes, and the password of a URI. What is open may have been cut
/// anywhere.
pub(super) fn mask_content(content: &str, is_open: bool, out: &mut String) {
    let mut from = 0;
    let mut parameter = next_parameter(content, from);
    let mut authority = next_uri_password(content, from, is_open);
    loop {
        let is_first = |one: &Range<usize>, other: &Option<Range<usize>>| {
            other.as_ref().is_none_or(|other| one.start <= other.start)
        };
        let next = match (parameter.clone(), authority.clone()) {
            (Some(one), other) if is_first(&one, &other) => one,
            (_, Some(other)) => other,
            (_, None) => break,
        };
        out.push_str(content.get(from..next.start).unwrap_or_default());
        out.push_str(MASK);
        from = next.end;
        // Each is looked for again only behind what is masked.
        let is_passed =
            |found: &Option<Range<usize>>| found.as_ref().is_some_and(|found| found.start <= from);
        if is_passed(&parameter) {
            parameter = next_parameter(content, from);
        }
        if is_passed(&authority) {
            authority = next_uri_password(content, from, is_open);
        }
    }
    out.push_str(content.get(from..).unwrap_or_default());
}

/// The value of the next parameter whose name is that of a secret.
fn next_parameter(text: &str, from: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let mut at = from;
    while at < bytes.len() {
        let Some(length) = secret_name_at(bytes, at) else {
            at += 1;
            continue;
        };
        let behind = bytes.get(at + length..).unwrap_or_default();
        let is_between = |byte: &&u8| byte.is_ascii_whitespace() || matches!(byte, b'=' | b':' | b'>' | b'"');
        let between = behind.iter().take_while(is_between).count();
        let start = at + length + between;
        let between = behind.get(..between).unwrap_or_default();
        let assigned = between.iter().position(|byte| matches!(byte, b'=' | b':'));
        match (bytes.get(start), assigned) {
            // Its own quotes may be written in several ways: nothing behind them is kept.
            (Some(b'\'' | b'\\' | b'$'), _) => return Some(start..text.len()),
            (Some(_), Some(assigned)) => {
                let is_quoted = between.iter().skip(assigned).any(|byte| *byte == b'"');
                let is_of_uri = is_within_uri(text, at);
                let ends = |byte: u8| match byte {
                    b'"' => is_quoted,
                    b'&' | b'#' => is_of_uri,
                    byte => !is_quoted && byte.is_ascii_whitespace(),
                };
                return Some(start..value_end(bytes, start, ends));
            }
            _ => at = start.max(at + 1),
        }
    }
    None
}

fn secret_name_at(bytes: &[u8], at: usize) -> Option<usize> {
    let behind = bytes.get(at..).unwrap_or_default();
    // All of them begin so.
    behind.first().filter(|first| first.eq_ignore_ascii_case(&b'p'))?;
    let starts = |name: &&&str| {
        behind
            .get(..name.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
    };
    SECRET_NAMES.iter().find(starts).map(|name| name.len())
}

/// Whether the word at `at` is a part of a URI.
fn is_within_uri(text: &str, at: usize) -> bool {
    let start = text.floor_char_boundary(at.saturating_sub(URI_BYTES_MAX));
    let before = text.get(start..at).unwrap_or_default();
    let word = before.rsplit(char::is_whitespace).next().unwrap_or_default();
    word.contains("://")
}

/// A backslash takes from what follows it that it ends a value.
fn value_end(bytes: &[u8], start: usize, ends: impl Fn(u8) -> bool) -> usize {
    let mut at = start;
    while let Some(byte) = bytes.get(at) {
        if ends(*byte) {
            return at;
        }
        at += if *byte == b'\\' { 2 } else { 1 };
    }
    bytes.len()
}

/// Between the colon and the last `@` of `scheme://user:password@host`.
fn next_uri_password(text: &str, from: usize, is_open: bool) -> Option<Range<usize>> {
    let mut from = from;
    while let Some(found) = text.get(from..).and_then(|rest| rest.find("://")) {
        let start = from + found + 3;
        let rest = text.get(start..).unwrap_or_default();
        // As libpq reads it, to which a password may well have a `?` or `#` in it.
        let end = rest.find(|letter: char| letter.is_whitespace() || letter == '/');
        let authority = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        let at = match authority.rfind('@') {
            None if is_open && end.is_none() => Some(authority.len()),
            at => at,
        };
        if let (Some(at), Some(colon)) = (at, authority.find(':'))
            && colon < at
            && authority.get(colon + 1..at) != Some(MASK)
        {
            return Some(start + colon + 1..start + at);
        }
        from = start;
    }
    None
}
