//! Passwords in statements, taken out before anything is kept of them.
//!
//! No statement is understood here, and none need be well formed: PostgreSQL's lexical rules ("Lexical Structure") find the
//! literals, and what stands before or in one tells whether it may be a password. In doubt it is taken for one.

use std::borrow::Cow;
use std::ops::Range;

/// What stands in a password's place.
const MASK: &str = "***";
/// Bodies of functions within bodies of functions; deeper ones are masked as a whole.
const DEPTH_MAX: usize = 4;
/// So often a text is looked at; usually the second time finds nothing.
const PASSES_MAX: usize = 8;
/// A name that ends like this holds a password.
const SECRET_NAMES: [&str; 4] = ["password", "passwd", "passphrase", "pwd"];
/// `CREATE` and `ALTER` of these have passwords in them, also where they are misspelt.
const ROLES: [&str; 3] = ["role", "user", "group"];

/// `sql` with each literal masked that is, or may be, a password: behind `PASSWORD` and names like it, in `CREATE` and
/// `ALTER` of roles and user mappings, and in connection strings and URIs.
#[must_use]
pub fn mask_passwords(sql: &str) -> Cow<'_, str> {
    if !may_hold_password(sql) {
        return Cow::Borrowed(sql);
    }
    // What is masked may have stood in the way of seeing that what is around it is a password too.
    let mut before = under_either_reading(sql);
    for _ in 1..PASSES_MAX {
        let after = under_either_reading(&before);
        if after == before {
            break;
        }
        before = after;
    }
    Cow::Owned(before)
}

/// Whether a backslash escapes a quote depends on a setting of the server's (`standard_conforming_strings`) that only it
/// knows for sure: what is a password under either reading is masked.
fn under_either_reading(sql: &str) -> String {
    let escaping = masked(sql, Backslash::Escapes);
    match sql.contains("\\'") {
        true => masked(&escaping, Backslash::IsItself),
        false => escaping,
    }
}

/// What a backslash in a plain literal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backslash {
    Escapes,
    IsItself,
}

fn masked(sql: &str, backslash: Backslash) -> String {
    let mut out = String::with_capacity(sql.len());
    mask_statements(sql, backslash, 0, &mut out);
    out
}

/// Whether there is anything to be looked at more closely. Every statement is asked this.
fn may_hold_password(sql: &str) -> bool {
    let mut rest = sql.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let continued: &[&str] = match first.to_ascii_lowercase() {
            b'p' => &["ass", "wd"],
            b':' => &["//"],
            b'r' => &["ole"],
            b'u' => &["ser"],
            b'g' => &["roup"],
            _ => &[],
        };
        let starts = |text: &&str| {
            behind
                .get(..text.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(text.as_bytes()))
        };
        if continued.iter().any(starts) {
            return true;
        }
        rest = behind;
    }
    false
}

fn mask_statements(sql: &str, backslash: Backslash, depth: usize, out: &mut String) {
    let mut statement = Context::default();
    for token in Tokens::new(sql, backslash) {
        let text = sql.get(token.range.clone()).unwrap_or_default();
        match &token.kind {
            Kind::Literal(content) if statement.is_secret() => {
                let before = sql.get(token.range.start..content.start).unwrap_or_default();
                let after = sql.get(content.end..token.range.end).unwrap_or_default();
                out.extend([before, MASK, after]);
                // Literals that follow each other are one.
                continue;
            }
            Kind::Literal(content) => {
                let before = sql.get(token.range.start..content.start).unwrap_or_default();
                let inside = sql.get(content.clone()).unwrap_or_default();
                let after = sql.get(content.end..token.range.end).unwrap_or_default();
                out.push_str(before);
                match (before.starts_with('$'), depth < DEPTH_MAX) {
                    (true, true) => mask_statements(inside, backslash, depth + 1, out),
                    (true, false) => out.push_str(MASK),
                    (false, _) => mask_content(inside, out),
                }
                out.push_str(after);
            }
            Kind::Space | Kind::Word | Kind::Name | Kind::Other => out.push_str(text),
        }
        statement.take(&token.kind, text);
    }
}

/// What has been seen of a statement.
#[derive(Debug, Default)]
struct Context {
    words: usize,
    creates: bool,
    of_role: bool,
    until: bool,
    expects_secret: bool,
}

impl Context {
    fn is_secret(&self) -> bool {
        self.expects_secret || (self.of_role && !self.until)
    }

    fn take(&mut self, kind: &Kind, text: &str) {
        match kind {
            Kind::Space => {}
            Kind::Word | Kind::Name => {
                let name = text.trim_matches('"').to_ascii_lowercase();
                self.words += 1;
                match self.words {
                    1 => self.creates = name == "create" || name == "alter",
                    2 => self.of_role = self.creates && ROLES.contains(&name.as_str()),
                    _ => {}
                }
                self.until = name == "until";
                self.expects_secret = SECRET_NAMES.iter().any(|secret| name.ends_with(secret));
            }
            Kind::Literal(_) => self.expects_secret = false,
            Kind::Other => match text {
                ";" => *self = Self::default(),
                "=" | ":" | ">" | "(" => {}
                _ => self.expects_secret = false,
            },
        }
    }
}

/// Within a literal: `password=` of a connection string or a statement in quotes, and the password of a URI.
fn mask_content(content: &str, out: &mut String) {
    let mut rest = content;
    while let Some(found) = next_secret(rest) {
        out.push_str(rest.get(..found.start).unwrap_or_default());
        out.push_str(MASK);
        rest = rest.get(found.end..).unwrap_or_default();
    }
    out.push_str(rest);
}

fn next_secret(text: &str) -> Option<Range<usize>> {
    let parameter = next_parameter(text);
    let authority = next_uri_password(text);
    match (parameter, authority) {
        (Some(one), Some(other)) if other.start < one.start => Some(other),
        (Some(one), _) => Some(one),
        (None, other) => other,
    }
}

fn next_parameter(text: &str) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let starts = |at: usize| {
        let behind = bytes.get(at..).unwrap_or_default();
        let starts = |name: &str| {
            behind
                .get(..name.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
        };
        SECRET_NAMES
            .iter()
            .find(|name| starts(name))
            .map(|name| name.len())
    };
    let mut at = 0;
    while at < bytes.len() {
        let Some(length) = starts(at) else {
            at += 1;
            continue;
        };
        let behind = bytes.get(at + length..).unwrap_or_default();
        let between = behind
            .iter()
            .take_while(|byte| byte.is_ascii_whitespace() || matches!(byte, b'=' | b':' | b'>' | b'"'))
            .count();
        let start = at + length + between;
        let assigned = behind
            .iter()
            .take(between)
            .any(|byte| matches!(byte, b'=' | b':'));
        match bytes.get(start) {
            // Its own quotes may be written in several ways: nothing behind them is kept.
            Some(b'\'' | b'\\' | b'$') => return Some(start..text.len()),
            Some(_) if assigned => {
                let value = bytes.get(start..).unwrap_or_default();
                let ends =
                    |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'&' | b';' | b',' | b'"');
                let length = value.iter().position(ends).unwrap_or(value.len());
                return Some(start..start + length);
            }
            Some(_) | None => at = start.max(at + 1),
        }
    }
    None
}

/// Between the colon and the last `@` of `scheme://user:password@host`.
fn next_uri_password(text: &str) -> Option<Range<usize>> {
    let mut from = 0;
    while let Some(found) = text.get(from..).and_then(|rest| rest.find("://")) {
        let start = from + found + 3;
        let rest = text.get(start..).unwrap_or_default();
        let end = rest.find(|letter: char| letter.is_whitespace() || matches!(letter, '/' | '?' | '#'));
        let authority = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        let (at, colon) = (authority.rfind('@'), authority.find(':'));
        if let (Some(at), Some(colon)) = (at, colon)
            && colon < at
            && authority.get(colon + 1..at) != Some(MASK)
        {
            return Some(start + colon + 1..start + at);
        }
        from = start;
    }
    None
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// White space and comments.
    Space,
    /// A key word or a name.
    Word,
    /// A name in double quotes.
    Name,
    /// A text; where its content lies.
    Literal(Range<usize>),
    /// One character of anything else.
    Other,
}

#[derive(Debug)]
struct Token {
    kind: Kind,
    range: Range<usize>,
}

struct Tokens<'a> {
    sql: &'a str,
    backslash: Backslash,
    at: usize,
}

impl<'a> Tokens<'a> {
    fn new(sql: &'a str, backslash: Backslash) -> Self {
        Self {
            sql,
            backslash,
            at: 0,
        }
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.sql.as_bytes().get(at).copied()
    }

    fn starts_with(&self, at: usize, text: &str) -> bool {
        self.sql
            .as_bytes()
            .get(at..)
            .is_some_and(|rest| rest.starts_with(text.as_bytes()))
    }

    /// Where `text` is next found, or the end.
    fn position_of(&self, from: usize, text: &str) -> Option<usize> {
        self.sql.get(from..)?.find(text).map(|found| from + found)
    }

    fn while_is(&self, from: usize, is: impl Fn(u8) -> bool) -> usize {
        let rest = self.sql.as_bytes().get(from..).unwrap_or_default();
        from + rest.iter().take_while(|byte| is(**byte)).count()
    }

    /// Block comments nest.
    fn block_comment(&self, start: usize) -> usize {
        let (mut depth, mut at) = (0usize, start);
        while at < self.sql.len() {
            if self.starts_with(at, "/*") {
                depth += 1;
                at += 2;
            } else if self.starts_with(at, "*/") {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            } else {
                at += 1;
            }
        }
        self.sql.len()
    }

    /// From the opening quote at `quote`; and where the content ends.
    fn quoted(&self, start: usize, quote: usize, mark: u8, escapes: bool) -> (Range<usize>, usize) {
        let content = quote + 1;
        let mut at = content;
        while let Some(byte) = self.byte(at) {
            let is_escape = byte == b'\\' && escapes;
            let is_doubled = byte == mark && self.byte(at + 1) == Some(mark);
            if is_escape || is_doubled {
                at += 2;
            } else if byte == mark {
                return (start..at + 1, content.max(at));
            } else {
                at += 1;
            }
        }
        let end = self.sql.len();
        (start..end, end)
    }

    fn literal(&self, start: usize, quote: usize) -> Token {
        let prefix = self.byte(start).filter(|_| start < quote);
        let escapes = prefix.is_some_and(|byte| byte.eq_ignore_ascii_case(&b'e'));
        let escapes = escapes || self.backslash == Backslash::Escapes;
        let (range, content_end) = self.quoted(start, quote, b'\'', escapes);
        Token {
            kind: Kind::Literal(quote + 1..content_end),
            range,
        }
    }

    /// `$tag$ … $tag$`, or nothing where this dollar begins none.
    fn dollar_quoted(&self, start: usize) -> Option<Token> {
        let tag_end = self.while_is(start + 1, is_word);
        if self.byte(tag_end) != Some(b'$') || self.byte(start + 1).is_some_and(|byte| byte.is_ascii_digit())
        {
            return None;
        }
        let content = tag_end + 1;
        let tag = self.sql.get(start..content)?;
        let end = self.position_of(content, tag);
        let content_end = end.unwrap_or(self.sql.len());
        Some(Token {
            kind: Kind::Literal(content..content_end),
            range: start..end.map_or(self.sql.len(), |end| end + tag.len()),
        })
    }

    fn word(&self, start: usize) -> Token {
        let end = self.while_is(start, |byte| is_word(byte) || byte == b'$');
        let text = self.sql.get(start..end).unwrap_or_default();
        let prefixes = ["e", "b", "x", "n"]
            .iter()
            .any(|prefix| text.eq_ignore_ascii_case(prefix));
        if prefixes && self.byte(end) == Some(b'\'') {
            return self.literal(start, end);
        }
        if text.eq_ignore_ascii_case("u") && self.starts_with(end, "&'") {
            return self.literal(start, end + 1);
        }
        Token {
            kind: Kind::Word,
            range: start..end,
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        let start = self.at;
        let byte = self.byte(start)?;
        let plain = |kind, end| Token {
            kind,
            range: start..end,
        };
        let token = match byte {
            _ if byte.is_ascii_whitespace() => plain(
                Kind::Space,
                self.while_is(start, |byte| byte.is_ascii_whitespace()),
            ),
            b'-' if self.starts_with(start, "--") => {
                let end = self.position_of(start, "\n").unwrap_or(self.sql.len());
                plain(Kind::Space, end)
            }
            b'/' if self.starts_with(start, "/*") => plain(Kind::Space, self.block_comment(start)),
            b'\'' => self.literal(start, start),
            b'"' => {
                let (range, _) = self.quoted(start, start, b'"', false);
                plain(Kind::Name, range.end)
            }
            b'$' => self
                .dollar_quoted(start)
                .unwrap_or_else(|| plain(Kind::Other, start + 1)),
            _ if is_word(byte) => self.word(start),
            _ => plain(Kind::Other, start + 1),
        };
        // A backslash at the end may have led beyond it, or into a character.
        let mut end = token.range.end.min(self.sql.len());
        while !self.sql.is_char_boundary(end) {
            end += 1;
        }
        self.at = end;
        let kind = match token.kind {
            Kind::Literal(content) => {
                let to = content.end.min(end);
                let from = content.start.min(to);
                match self.sql.is_char_boundary(to) {
                    true => Kind::Literal(from..to),
                    false => Kind::Literal(from..end),
                }
            }
            other => other,
        };
        Some(Token {
            kind,
            range: start..end,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn passwords_of_roles_are_masked_however_they_are_written() {
        for (sql, expected) in [
            (
                "ALTER ROLE bob PASSWORD 's3cret'",
                "ALTER ROLE bob PASSWORD '***'",
            ),
            (
                "alter role bob password E's3\\'cret';",
                "alter role bob password E'***';",
            ),
            (
                "CREATE USER bob WITH PASSWORD $x$s3cret$x$ LOGIN",
                "CREATE USER bob WITH PASSWORD $x$***$x$ LOGIN",
            ),
            (
                "ALTER USER bob PASSWORD U&'s3cret'",
                "ALTER USER bob PASSWORD U&'***'",
            ),
            (
                "ALTER USER bob /* x */ PASSWORD -- y\n 's3cret'",
                "ALTER USER bob /* x */ PASSWORD -- y\n '***'",
            ),
            (
                "ALTER ROLE bob PASSWORD 's3''cret' 'more'",
                "ALTER ROLE bob PASSWORD '***' '***'",
            ),
            (
                "ALTER ROLE bob PASSWORD 's3\n'\n'more'",
                "ALTER ROLE bob PASSWORD '***'\n'***'",
            ),
            (
                "SELECT 1; ALTER ROLE bob PASSWORD 's3cret'; SELECT 'x'",
                "SELECT 1; ALTER ROLE bob PASSWORD '***'; SELECT 'x'",
            ),
            (
                "CREATE ROLE bob VALID UNTIL '2030-01-01' PASSWORD 's3cret'",
                "CREATE ROLE bob VALID UNTIL '2030-01-01' PASSWORD '***'",
            ),
        ] {
            assert_eq!(mask_passwords(sql), expected);
        }
    }

    #[test]
    fn statements_that_fail_are_masked_too() {
        for sql in [
            "ALTER ROLE bob PASSWROD 's3cret'",
            "ALTER ROLE bob PASSWORD 's3cret",
            "ALTER ROLE bob PASSWORD = 's3cret'",
            "CREATE ROLE bob WITH ENCRYPTED PASSWORD ('s3cret')",
            "ALTER ROLE bob PASSWORD 'x\\' s3cret'",
            "SELECT 'C:\\'; ALTER ROLE bob PASSWORD 's3cret'",
            "ALTER ROLE bob PASSWORD $$s3cret",
        ] {
            assert!(!mask_passwords(sql).contains("s3cret"), "{}", mask_passwords(sql));
        }
    }

    #[test]
    fn connection_strings_and_mappings_are_masked() {
        for sql in [
            "SELECT dblink_connect('host=db user=bob password=s3cret dbname=x')",
            "CREATE SUBSCRIPTION s CONNECTION 'host=db password = s3cret' PUBLICATION p",
            "SELECT dblink_connect('host=db password=''s3 s3cret''')",
            "SELECT dblink('postgresql://bob:s3cret@db/x', 'select 1')",
            "CREATE USER MAPPING FOR bob SERVER s OPTIONS (user 'bob', password 's3cret')",
            "ALTER SERVER s OPTIONS (SET \"sslpassword\" 's3cret')",
            "DO $$ BEGIN EXECUTE 'ALTER ROLE bob PASSWORD ''s3cret'''; END $$",
            "DO $do$ BEGIN ALTER ROLE bob PASSWORD 's3cret'; END $do$",
            "UPDATE users SET password='s3cret' WHERE id = 1",
        ] {
            assert!(!mask_passwords(sql).contains("s3cret"), "{}", mask_passwords(sql));
        }
        let masked = mask_passwords("SELECT dblink('postgresql://bob:s3cret@db/x?a=b', 'select 1')");
        assert_eq!(
            masked,
            "SELECT dblink('postgresql://bob:***@db/x?a=b', 'select 1')"
        );
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        for sql in [
            "SELECT 'a', \"b\", $1, $$c$$ FROM t -- 'd'",
            "SELECT 'the password is lost' FROM roles WHERE user = 'bob'",
            "DELETE FROM users WHERE name = 'x'",
            "ALTER TABLE t ADD password text; SELECT 'x'",
            "SELECT 'https://example.com:8080/a@b'",
            "",
            "'",
            "$",
            "\\",
        ] {
            assert_eq!(mask_passwords(sql), sql);
        }
    }

    proptest! {
        #[test]
        fn a_password_does_not_get_through_whatever_surrounds_it(
            before in "[ a-z0-9;'\"$/*\\-éü\\\\]{0,30}", after in "[ a-z;'\"$\\\\é]{0,30}",
        ) {
            let sql = format!("{before}\n;ALTER ROLE x PASSWORD 's3cret' {after}");
            let masked = mask_passwords(&sql);
            // Within a literal or a comment that `before` opens, it is no password.
            let opens = |backslash| Tokens::new(&sql, backslash)
                .any(|token| token.range.start < before.len() && token.range.end > before.len() + 1);
            let opened = opens(Backslash::Escapes) || opens(Backslash::IsItself);
            prop_assert!(opened || !masked.contains("s3cret"), "{}", masked);
        }

        #[test]
        fn tokens_cover_every_text_once(sql in "[ a-zé'\"$/*\\-;\\\\=\n]{0,60}") {
            let mut at = 0;
            for token in Tokens::new(&sql, Backslash::Escapes) {
                prop_assert_eq!(token.range.start, at);
                prop_assert!(token.range.end > at && sql.is_char_boundary(token.range.end));
                if let Kind::Literal(content) = &token.kind {
                    prop_assert!(sql.get(content.clone()).is_some() && token.range.start <= content.start && content.end <= token.range.end);
                }
                at = token.range.end;
            }
            prop_assert_eq!(at, sql.len());
            let _ = mask_passwords(&format!("password {sql}"));
        }
    }
}
