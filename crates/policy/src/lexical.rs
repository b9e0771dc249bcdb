//! The lexical cap: what a condition may look like before the interpreter's parser sees it.
//!
//! The parser recurses per operator and per bracket, and an overflowing stack aborts the process,
//! so the bounds have to hold on the text itself. This scanner reads the tokens of the CEL
//! specification ("Lexis") but is stricter: whatever it and the parser could read differently
//! (unknown escapes, byte strings, escaped identifiers, unterminated literals) is refused.

use thiserror::Error;

use crate::limits::{CONDITION_BRACKET_DEPTH_MAX, CONDITION_BYTES_MAX, CONDITION_OPERATORS_MAX};

/// Why an expression is refused before it is parsed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LexicalError {
    /// Longer than [`CONDITION_BYTES_MAX`].
    #[error("the expression is {bytes} bytes long; at most {CONDITION_BYTES_MAX} are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// More operators than [`CONDITION_OPERATORS_MAX`].
    #[error(
        "the expression has more than {CONDITION_OPERATORS_MAX} operators (selections with `.` and `[` count too)"
    )]
    TooManyOperators,
    /// Brackets nested deeper than [`CONDITION_BRACKET_DEPTH_MAX`].
    #[error("brackets nest deeper than {CONDITION_BRACKET_DEPTH_MAX}")]
    TooDeep,
    /// A bracket without its partner.
    #[error("`{bracket}` at byte {at} has no partner")]
    UnbalancedBracket {
        /// The bracket.
        bracket: char,
        /// Its offset.
        at: usize,
    },
    /// A string that does not end, or holds a raw line break.
    #[error("the string that starts at byte {at} does not end")]
    UnterminatedString {
        /// Offset of its opening quote.
        at: usize,
    },
    /// An escape sequence the CEL specification does not know.
    #[error("unknown escape sequence at byte {at}")]
    UnknownEscape {
        /// Offset of its backslash.
        at: usize,
    },
    /// A string prefix other than `r`.
    #[error("byte strings and other prefixed strings are not supported (byte {at})")]
    PrefixedString {
        /// Offset of the prefix.
        at: usize,
    },
    /// A character that starts no token.
    #[error("unexpected character {character:?} at byte {at}")]
    UnexpectedCharacter {
        /// The character.
        character: char,
        /// Its offset.
        at: usize,
    },
    /// Nothing but blanks and comments.
    #[error("the expression is empty")]
    Empty,
}

/// Checks length, brackets and operators of `source`.
///
/// # Errors
///
/// The first [`LexicalError`] found.
pub fn scan(source: &str) -> Result<(), LexicalError> {
    if source.len() > CONDITION_BYTES_MAX {
        return Err(LexicalError::TooLong { bytes: source.len() });
    }
    Scanner {
        source,
        at: 0,
        open: Vec::new(),
        operators: 0,
        previous: Previous::Nothing,
    }
    .run()
}

/// What the last token was; decides whether `[`, `{` and `-` continue an operand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Previous {
    Nothing,
    Operand,
    Operator,
}

struct Scanner<'a> {
    source: &'a str,
    at: usize,
    open: Vec<(char, usize)>,
    operators: usize,
    previous: Previous,
}

impl Scanner<'_> {
    fn run(mut self) -> Result<(), LexicalError> {
        while let Some(byte) = self.peek(0) {
            self.token(byte)?;
        }
        if let Some((bracket, at)) = self.open.pop() {
            return Err(LexicalError::UnbalancedBracket { bracket, at });
        }
        match self.previous {
            Previous::Nothing => Err(LexicalError::Empty),
            Previous::Operand | Previous::Operator => Ok(()),
        }
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.source.as_bytes().get(self.at + ahead).copied()
    }

    fn token(&mut self, byte: u8) -> Result<(), LexicalError> {
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => self.at += 1,
            b'/' if self.peek(1) == Some(b'/') => self.comment(),
            b'"' | b'\'' => self.string(self.at, false)?,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => self.word()?,
            b'0'..=b'9' => self.number(),
            b'.' if self.peek(1).is_some_and(|next| next.is_ascii_digit()) => self.number_or_selection()?,
            b'(' | b'[' | b'{' => self.open(byte)?,
            b')' | b']' | b'}' => self.close(byte)?,
            b',' | b':' => self.separator(),
            _ => self.operator(byte)?,
        }
        Ok(())
    }

    fn comment(&mut self) {
        while self.peek(0).is_some_and(|byte| byte != b'\n') {
            self.at += 1;
        }
    }

    fn separator(&mut self) {
        self.at += 1;
        self.previous = Previous::Operator;
    }

    /// An identifier, the operator `in`, or the prefix of a raw string.
    fn word(&mut self) -> Result<(), LexicalError> {
        let start = self.at;
        while self
            .peek(0)
            .is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            self.at += 1;
        }
        let word = self.source.get(start..self.at).unwrap_or_default();
        if matches!(self.peek(0), Some(b'"' | b'\'')) {
            return match word {
                "r" | "R" => self.string(start, true),
                _ => Err(LexicalError::PrefixedString { at: start }),
            };
        }
        if word == "in" {
            return self.count_operator();
        }
        self.previous = Previous::Operand;
        Ok(())
    }

    /// A numeric literal; its point, exponent sign and suffix belong to it.
    fn number(&mut self) {
        let hexadecimal = self.peek(0) == Some(b'0') && matches!(self.peek(1), Some(b'x' | b'X'));
        while let Some(byte) = self.peek(0) {
            let exponent = matches!(byte, b'e' | b'E') && !hexadecimal;
            let signed = matches!(self.peek(1), Some(b'+' | b'-'));
            let point = byte == b'.' && self.peek(1).is_some_and(|next| next.is_ascii_digit());
            match byte {
                _ if exponent && signed && self.peek(2).is_some_and(|next| next.is_ascii_digit()) => {
                    self.at += 2
                }
                _ if byte.is_ascii_alphanumeric() || point => self.at += 1,
                _ => break,
            }
        }
        self.previous = Previous::Operand;
    }

    /// `.5` after an operator is a number; after an operand the point is counted as a selection.
    fn number_or_selection(&mut self) -> Result<(), LexicalError> {
        if self.previous == Previous::Operand {
            return self.operator(b'.');
        }
        self.at += 1;
        self.number();
        Ok(())
    }

    fn open(&mut self, byte: u8) -> Result<(), LexicalError> {
        // Indexes chain without nesting (`a[0][0]...`), and each is a level of the syntax tree.
        if byte != b'(' && self.previous == Previous::Operand {
            self.count_operator_without_advancing()?;
        }
        if self.open.len() >= CONDITION_BRACKET_DEPTH_MAX {
            return Err(LexicalError::TooDeep);
        }
        self.open.push((char::from(byte), self.at));
        self.at += 1;
        self.previous = Previous::Operator;
        Ok(())
    }

    fn close(&mut self, byte: u8) -> Result<(), LexicalError> {
        let bracket = char::from(byte);
        match (self.open.pop(), bracket) {
            (Some(('(', _)), ')') | (Some(('[', _)), ']') | (Some(('{', _)), '}') => {
                self.at += 1;
                self.previous = Previous::Operand;
                Ok(())
            }
            (Some(_) | None, _) => Err(LexicalError::UnbalancedBracket { bracket, at: self.at }),
        }
    }

    fn operator(&mut self, byte: u8) -> Result<(), LexicalError> {
        let bytes = match (byte, self.peek(1)) {
            (b'=' | b'!' | b'<' | b'>', Some(b'=')) | (b'&', Some(b'&')) | (b'|', Some(b'|')) => 2,
            (b'+' | b'-' | b'*' | b'/' | b'%' | b'<' | b'>' | b'!' | b'?' | b'.', _) => 1,
            _ => return Err(self.unexpected()),
        };
        self.at += bytes;
        self.count_operator()
    }

    fn count_operator(&mut self) -> Result<(), LexicalError> {
        self.previous = Previous::Operator;
        self.count_operator_without_advancing()
    }

    fn count_operator_without_advancing(&mut self) -> Result<(), LexicalError> {
        self.operators += 1;
        if self.operators > CONDITION_OPERATORS_MAX {
            return Err(LexicalError::TooManyOperators);
        }
        Ok(())
    }

    fn unexpected(&self) -> LexicalError {
        let character = self
            .source
            .get(self.at..)
            .and_then(|rest| rest.chars().next())
            .unwrap_or('?');
        LexicalError::UnexpectedCharacter {
            character,
            at: self.at,
        }
    }

    /// A string literal; `self.at` is at its opening quote.
    fn string(&mut self, start: usize, raw: bool) -> Result<(), LexicalError> {
        let quote = self.peek(0).unwrap_or(b'"');
        let triple = self.peek(1) == Some(quote) && self.peek(2) == Some(quote);
        let quotes = if triple { 3 } else { 1 };
        self.at += quotes;
        loop {
            let Some(byte) = self.peek(0) else {
                return Err(LexicalError::UnterminatedString { at: start });
            };
            match byte {
                _ if byte == quote && self.closes(quote, quotes) => break,
                b'\\' if !raw => self.escape()?,
                b'\n' | b'\r' if !triple => return Err(LexicalError::UnterminatedString { at: start }),
                _ => self.at += 1,
            }
        }
        self.at += quotes;
        self.previous = Previous::Operand;
        Ok(())
    }

    fn closes(&self, quote: u8, quotes: usize) -> bool {
        (0..quotes).all(|ahead| self.peek(ahead) == Some(quote))
    }

    /// The escape sequences of the CEL specification, no others.
    fn escape(&mut self) -> Result<(), LexicalError> {
        let at = self.at;
        let digits = match self.peek(1) {
            Some(b'a' | b'b' | b'f' | b'n' | b'r' | b't' | b'v' | b'\\' | b'?' | b'"' | b'\'' | b'`') => 0,
            Some(b'x' | b'X') => 2,
            Some(b'u') => 4,
            Some(b'U') => 8,
            Some(b'0'..=b'3') => return self.octal_escape(at),
            _ => return Err(LexicalError::UnknownEscape { at }),
        };
        self.at += 2;
        for _ in 0..digits {
            if !self.peek(0).is_some_and(|byte| byte.is_ascii_hexdigit()) {
                return Err(LexicalError::UnknownEscape { at });
            }
            self.at += 1;
        }
        Ok(())
    }

    fn octal_escape(&mut self, at: usize) -> Result<(), LexicalError> {
        let octal = |byte: Option<u8>| matches!(byte, Some(b'0'..=b'7'));
        if !octal(self.peek(2)) || !octal(self.peek(3)) {
            return Err(LexicalError::UnknownEscape { at });
        }
        self.at += 4;
        Ok(())
    }
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
    fn ordinary_conditions_pass() {
        for source in [
            r#"user.auth_age < duration("4h") && !in_cidr(client.ip, ["203.0.113.0/24"])"#,
            r#"service.labels.env == 'prod' ? user.login_method != "headless" : true"#,
            r#"user.groups.exists(g, g.startsWith("okta:sre-"))"#,
            "now.getHours('Europe/Berlin') in [8, 9, 10, 11]",
            r"login.matches(r'^ro_\w+$')",
            "1.5e+3 > .5 && 0x1F == 31 && 7u == 7u // a comment with ((((( and ' quotes",
            "'''three ' quotes''' == \"\"\"and \" more\"\"\"",
        ] {
            assert_eq!(scan(source), Ok(()), "{source}");
        }
    }

    #[test]
    fn chained_operators_of_every_kind_are_counted() {
        let chains = [
            "1".to_string() + &"+1".repeat(60),
            "1".to_string() + &"-1".repeat(60),
            format!("{}true", "!".repeat(60)),
            format!("{}1", "-".repeat(60)),
            format!("{}1", "- ".repeat(60)),
            format!("a{}", ".b".repeat(60)),
            format!("a{}", ". b".repeat(60)),
            format!("a{}", "[0]".repeat(60)),
            format!("a{}", ".f()".repeat(60)),
            "true ? 1 : ".repeat(60) + "1",
            "a in ".repeat(60) + "b",
            "a\nin\n".repeat(60) + "b",
            "a&&".repeat(60) + "a",
            "a||".repeat(60) + "a",
            "a==".repeat(60) + "a",
            "a<=".repeat(60) + "a",
            "a%".repeat(60) + "a",
            "a/b*".repeat(30) + "a",
            format!("a{}", "{}".repeat(60)),
        ];
        for source in chains {
            assert_eq!(scan(&source), Err(LexicalError::TooManyOperators), "{source}");
        }
    }

    #[test]
    fn the_limit_itself_is_allowed() {
        assert_eq!(scan(&("1".to_string() + &"+1".repeat(32))), Ok(()));
        assert_eq!(
            scan(&("1".to_string() + &"+1".repeat(33))),
            Err(LexicalError::TooManyOperators)
        );
        assert_eq!(scan(&format!("{}1{}", "(".repeat(8), ")".repeat(8))), Ok(()));
        assert_eq!(
            scan(&format!("{}1{}", "(".repeat(9), ")".repeat(9))),
            Err(LexicalError::TooDeep)
        );
        assert_eq!(scan(&format!("'{}'", "x".repeat(1_022))), Ok(()));
        assert_eq!(
            scan(&format!("'{}'", "x".repeat(1_023))),
            Err(LexicalError::TooLong { bytes: 1_025 })
        );
    }

    #[test]
    fn brackets_of_every_kind_nest_no_deeper_than_the_limit() {
        for (open, close) in [("(", ")"), ("[", "]"), ("{1:", "}"), ("f(", ")"), ("[(", ")]")] {
            let source = format!("{}1{}", open.repeat(30), close.repeat(30));
            assert_eq!(scan(&source), Err(LexicalError::TooDeep), "{source}");
        }
    }

    #[test]
    fn operators_in_strings_do_not_count_and_strings_hide_nothing() {
        assert_eq!(scan(&format!("'{}'", "+(".repeat(100))), Ok(()));
        assert_eq!(scan(&format!(r#""\"{}""#, "+".repeat(100))), Ok(()));
        // A raw string ends at its first quote, so what follows is code.
        let escaping = format!(r#"r"\" {} 1 + r"\""#, "+ 1".repeat(60));
        assert_eq!(scan(&escaping), Err(LexicalError::TooManyOperators));
        let closed = format!("'' {} ''", "+ ''".repeat(60));
        assert_eq!(scan(&closed), Err(LexicalError::TooManyOperators));
        let after_comment = format!("// '\n1{}", "+1".repeat(60));
        assert_eq!(scan(&after_comment), Err(LexicalError::TooManyOperators));
    }

    #[test]
    fn what_the_parser_might_read_differently_is_refused() {
        for source in ["'\\q'", "'\\x4'", "'\\09'", "'\\400'"] {
            assert_eq!(
                scan(source),
                Err(LexicalError::UnknownEscape { at: 1 }),
                "{source}"
            );
        }
        for source in ["b'x'", "rb'x'", "br'x'", "foo'x'"] {
            assert_eq!(
                scan(source),
                Err(LexicalError::PrefixedString { at: 0 }),
                "{source}"
            );
        }
        for source in ["'abc", "'a\nb'", "'''abc''", "\"\"\"", "r'"] {
            assert!(
                matches!(scan(source), Err(LexicalError::UnterminatedString { at: 0 })),
                "{source}"
            );
        }
        for source in [
            "`a`", "a & b", "a | b", "a = b", "é", "a;b", "\u{0}", "a\u{c}", "$x", "#",
        ] {
            assert!(
                matches!(scan(source), Err(LexicalError::UnexpectedCharacter { .. })),
                "{source}"
            );
        }
        for source in ["(", ")", "(]", "[1)", "{", "(()"] {
            assert!(
                matches!(scan(source), Err(LexicalError::UnbalancedBracket { .. })),
                "{source}"
            );
        }
        for source in ["", "  ", "// nothing"] {
            assert_eq!(scan(source), Err(LexicalError::Empty), "{source}");
        }
    }
}
