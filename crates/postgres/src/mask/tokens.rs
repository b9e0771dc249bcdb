//! Statements by PostgreSQL's lexical rules ("Lexical Structure").

use std::ops::Range;

/// What a backslash in a plain literal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backslash {
    Escapes,
    IsItself,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
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
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) range: Range<usize>,
}

pub(super) struct Tokens<'a> {
    sql: &'a str,
    backslash: Backslash,
    at: usize,
}

impl<'a> Tokens<'a> {
    pub(super) fn new(sql: &'a str, backslash: Backslash) -> Self {
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
