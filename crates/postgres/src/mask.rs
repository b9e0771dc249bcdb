//! Passwords in statements, taken out before anything is kept of them.
//!
//! No statement is understood here, and none need be well formed: PostgreSQL's lexical rules ("Lexical Structure") find the
//! literals, and what stands before or in one tells whether it may be a password. In doubt it is taken for one.

mod content;
mod tokens;

use std::borrow::Cow;
use std::ops::Range;

use content::mask_content;
use tokens::{Backslash, Kind, Token, Tokens};

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
/// `ALTER` of roles and user mappings, in calls that hash and encrypt, and in connection strings and URIs.
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

fn masked(sql: &str, backslash: Backslash) -> String {
    let mut out = String::with_capacity(sql.len());
    mask_statements(sql, backslash, &mut out);
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
            b'c' => &["rypt"],
            b'd' => &["igest"],
            b'h' => &["mac"],
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

fn mask_statements(sql: &str, backslash: Backslash, out: &mut String) {
    let mut statement = Context::default();
    for token in Tokens::new(sql, backslash) {
        let text = sql.get(token.range.clone()).unwrap_or_default();
        match &token.kind {
            Kind::Literal(content) => {
                mask_literal(&mut statement, (sql, &token, content), backslash, 0, out);
            }
            Kind::Space => mask_comment(text, out),
            Kind::Word | Kind::Name | Kind::Other => {
                out.push_str(text);
                statement.take(&token, text);
            }
        }
    }
}

/// What stands between dollar signs: statements, a text like those between quotes, or another language's.
fn mask_body(sql: &str, backslash: Backslash, depth: usize, is_open: bool, out: &mut String) {
    let mut statement = Context::default();
    let mut plain = String::new();
    for token in Tokens::new(sql, backslash) {
        let text = sql.get(token.range.clone()).unwrap_or_default();
        match &token.kind {
            Kind::Literal(content) => {
                mask_content(&std::mem::take(&mut plain), false, out);
                mask_literal(&mut statement, (sql, &token, content), backslash, depth, out);
            }
            // That may be a text of its language's.
            Kind::Name if statement.assigns_secret() => {
                plain.extend(["\"", MASK, "\""]);
                statement.take(&token, text);
            }
            Kind::Space => mask_comment(text, &mut plain),
            Kind::Word | Kind::Name | Kind::Other => {
                plain.push_str(text);
                statement.take(&token, text);
            }
        }
    }
    mask_content(&plain, is_open, out);
}

fn mask_literal(
    statement: &mut Context,
    (sql, token, content): (&str, &Token, &Range<usize>),
    backslash: Backslash,
    depth: usize,
    out: &mut String,
) {
    let before = sql.get(token.range.start..content.start).unwrap_or_default();
    let inside = sql.get(content.clone()).unwrap_or_default();
    let after = sql.get(content.end..token.range.end).unwrap_or_default();
    out.push_str(before);
    if statement.is_secret() {
        // Literals that follow each other are one.
        out.extend([MASK, after]);
        return;
    }
    match (before.starts_with('$'), depth < DEPTH_MAX) {
        (true, true) => mask_body(inside, backslash, depth + 1, after.is_empty(), out),
        (true, false) => out.push_str(MASK),
        (false, _) => mask_content(inside, after.is_empty(), out),
    }
    out.push_str(after);
    statement.take_literal(inside, backslash);
}

/// White space, or a comment: statements are commented out, too.
fn mask_comment(text: &str, out: &mut String) {
    let (mark, inside) = match text.get(..2) {
        Some(mark @ ("--" | "/*")) => (mark, text.get(2..).unwrap_or_default()),
        _ => return out.push_str(text),
    };
    let (inside, after) = match inside.strip_suffix("*/").filter(|_| mark == "/*") {
        Some(inside) => (inside, "*/"),
        None => (inside, ""),
    };
    out.push_str(mark);
    mask_content(inside, after.is_empty(), out);
    out.push_str(after);
}

/// What has been seen of a statement.
#[derive(Debug, Default)]
struct Context {
    words: usize,
    creates: bool,
    of_role: bool,
    until: bool,
    expects_secret: bool,
    /// And an expression gives it.
    assigned: bool,
    /// A bracket that comes now holds secrets alone.
    calls: bool,
    /// The last thing was a dot.
    is_qualified: bool,
    /// Such brackets that are open.
    brackets: usize,
    /// A literal was the name of a secret: the next one is the secret, also behind a comma.
    named: bool,
}

impl Context {
    fn is_secret(&self) -> bool {
        self.expects_secret || self.named || self.brackets > 0 || (self.of_role && !self.until)
    }

    fn assigns_secret(&self) -> bool {
        self.expects_secret && self.assigned
    }

    fn take(&mut self, token: &Token, text: &str) {
        match token.kind {
            Kind::Word | Kind::Name => self.take_name(text),
            Kind::Other => self.take_mark(text),
            Kind::Space | Kind::Literal(_) => {}
        }
    }

    fn take_name(&mut self, text: &str) {
        let name = text.trim_matches('"').to_ascii_lowercase();
        self.words += 1;
        match self.words {
            1 => self.creates = name == "create" || name == "alter",
            2 => self.of_role = self.creates && ROLES.contains(&name.as_str()),
            _ => {}
        }
        self.until = name == "until";
        self.named = false;
        // A schema's name may stand before the function's.
        let is_qualified = std::mem::take(&mut self.is_qualified) && self.calls;
        self.calls = is_qualified || self.assigns_secret() || is_secret_call(&name);
        if self.expects_secret && name == "to" {
            self.assigned = true;
        } else {
            self.expects_secret = is_secret_name(&name);
            self.assigned = false;
        }
    }

    fn take_mark(&mut self, mark: &str) {
        let calls = std::mem::take(&mut self.calls);
        self.is_qualified = mark == ".";
        match mark {
            ";" => *self = Self::default(),
            "=" | ":" | ">" | "<" | "!" | "~" | "|" => self.assigned = true,
            "." => self.calls = calls,
            "(" if calls || self.brackets > 0 => self.brackets += 1,
            "(" => {}
            ")" => {
                self.brackets = self.brackets.saturating_sub(1);
                self.forget_name();
            }
            // Behind the name of a setting or a key comes its value.
            "," | "}" | "]" => self.expects_secret = false,
            _ => self.forget_name(),
        }
    }

    fn forget_name(&mut self) {
        self.expects_secret = false;
        self.named = false;
    }

    /// One that is no secret itself.
    fn take_literal(&mut self, content: &str, backslash: Backslash) {
        self.expects_secret = false;
        self.calls = false;
        let key = content.trim_matches(['{', '}', '"']).to_ascii_lowercase();
        self.named = is_secret_name(&key) && !key.contains(char::is_whitespace);
        self.of_role |= begins_role(content, backslash);
    }
}

fn is_secret_name(name: &str) -> bool {
    SECRET_NAMES.iter().any(|secret| name.ends_with(secret))
}

/// The functions of pgcrypto, and others that are called so.
fn is_secret_call(name: &str) -> bool {
    name.contains("crypt") || name == "digest" || name == "hmac"
}

/// Whether a statement in quotes creates or alters a role: what is put together with it may be its password.
fn begins_role(content: &str, backslash: Backslash) -> bool {
    let mut inner = Context::default();
    for token in Tokens::new(content, backslash) {
        if inner.words == 2 || !matches!(token.kind, Kind::Space | Kind::Word) {
            break;
        }
        inner.take(&token, content.get(token.range.clone()).unwrap_or_default());
    }
    inner.of_role
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::string_slice)]
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
            "SELECT dblink_connect($$host=db password=s3cret$$)",
            "SELECT dblink($$postgresql://bob:s3cret@db/x$$, 'select 1')",
            "SELECT dblink_connect('password=a,s3cret&s3cret;\"s3cret dbname=x')",
            "SELECT dblink_connect('password=my\\ s3cret dbname=x')",
            "SELECT dblink('postgresql://bob:a#s3cret@db/x', 'select 1')",
            "SELECT dblink('postgresql://bob:a?s3cret@db/x', 'select 1')",
            "INSERT INTO t VALUES ('{\"password\": \"my s3cret\"}')",
            "INSERT INTO t VALUES ('{\"password\": \"my \\\"s3cret\"}')",
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
    fn values_of_settings_columns_and_calls_are_masked() {
        for sql in [
            "SET app.password TO 's3cret'",
            "ALTER DATABASE d SET app.password TO 's3cret'",
            "SELECT set_config('app.password', 's3cret', false)",
            "INSERT INTO settings VALUES ('smtp_password', 's3cret')",
            "SELECT * FROM t WHERE data->>'password' = 's3cret'",
            "SELECT * FROM users WHERE password <> 's3cret'",
            "UPDATE users SET password = crypt('s3cret', gen_salt('bf')) WHERE id = 1",
            "UPDATE users SET password = md5('s3cret' || salt)",
            "UPDATE users SET password = public.hashed(lower('x'), 's3cret')",
            "UPDATE users SET hash = ext.crypt('s3cret', gen_salt('bf'))",
            "SELECT pgp_sym_encrypt(data, 's3cret') FROM t",
            "SELECT encode(digest('s3cret', 'sha256'), 'hex')",
            "SELECT encode(hmac(data, (('s3cret')), 'sha256'), 'hex')",
            "EXECUTE format('ALTER ROLE %I PASSWORD %L', 'bob', 's3cret')",
            "DO $$ BEGIN EXECUTE 'alter user bob password ' || quote_literal('s3cret'); END $$",
            "CREATE FUNCTION f() RETURNS int AS $$ connect(password=\"s3cret\") $$ LANGUAGE plpython3u",
            "SELECT 1 -- alter role bob password 's3cret'",
            "SELECT /* password=s3cret */ 1",
            "/* ALTER ROLE bob PASSWORD 's3cret'; */ SELECT 1",
            "/* ALTER ROLE bob PASSWORD 's3cret'",
            "COPY t FROM PROGRAM 'PGPASSWORD=s3cret psql -c ...'",
        ] {
            assert!(!mask_passwords(sql).contains("s3cret"), "{}", mask_passwords(sql));
        }
        let masked = mask_passwords("UPDATE u SET password = crypt('x', 'y'), name = 'bob' WHERE id = 'z'");
        assert_eq!(
            masked,
            "UPDATE u SET password = crypt('***', '***'), name = 'bob' WHERE id = 'z'"
        );
    }

    /// A record keeps so many bytes of a text, wherever they end.
    #[test]
    fn a_cut_gives_no_password_away() {
        for sql in [
            "SELECT dblink('postgresql://bob:s3cret@db/x', 'select 1')",
            "SELECT dblink($$postgresql://bob:s3cret@db/x$$, 'select 1')",
            "DO $$ BEGIN PERFORM dblink('postgresql://bob:s3cret@db/x'); END $$",
            "SELECT dblink_connect('password=''s3cret''')",
            "ALTER ROLE bob PASSWORD 's3cret'",
            "ALTER ROLE bob PASSWORD $x$s3cret$x$",
            "UPDATE u SET password = crypt('s3cret', gen_salt('bf'))",
            "INSERT INTO t VALUES ('{\"password\": \"s3cret\"}')",
            "/* ALTER ROLE bob PASSWORD 's3cret' */",
        ] {
            for end in 0..sql.len() {
                let masked = mask_passwords(&sql[..end]);
                assert!(!masked.contains("s3"), "{masked}");
            }
        }
    }

    /// Were each byte looked at once more for each other byte, it would take minutes.
    #[test]
    fn of_a_long_text_every_part_is_masked() {
        for piece in [
            "password=s3cret ",
            "x://a:s3cret@c ",
            "x://a:s3cret@c/password=s3cret&",
        ] {
            let sql = format!("SELECT '{}'", piece.repeat((1 << 20) / piece.len()));
            let masked = mask_passwords(&sql);
            assert!(
                masked.len() > sql.len() / 4 && !masked.contains("s3cret"),
                "{piece}"
            );
        }
        for piece in ["://", "password "] {
            let sql = format!("SELECT '{}'", piece.repeat((1 << 20) / piece.len()));
            assert_eq!(mask_passwords(&sql).len(), sql.len(), "{piece}");
        }
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        for sql in [
            "SELECT 'a', \"b\", $1, $$c$$ FROM t -- 'd'",
            "SELECT 'the password is lost' FROM roles WHERE user = 'bob'",
            "DELETE FROM users WHERE name = 'x'",
            "ALTER TABLE t ADD password text; SELECT 'x'",
            "SELECT 'https://example.com:8080/a@b'",
            "SET password_encryption = 'scram-sha-256'",
            "SELECT 'a' /* the password of 'b' is lost */, 'c' -- password 9",
            "SELECT count(*) FROM user_groups(1) WHERE description = 'd'",
            "UPDATE t SET encrypted = 'no' WHERE hmac = 'x'",
            "UPDATE t SET password = excluded.password WHERE lower(name) = lower('X')",
            "",
            "'",
            "$",
            "\\",
        ] {
            assert_eq!(mask_passwords(sql), sql);
        }
    }

    const PIECES: &[&str] = &[
        "password", "passwd ", "crypt", "create ", "role ", "x", "'", "''", "\"", "$$", "$a$", "/*", "*/",
        "--", "\n", "\\", "=", ":", ",", "(", ")", ";", ".", "to ", "://", "@", "/", "?", "&", "{", "e'",
        "***", "é", " ",
    ];

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
        fn what_is_masked_stays_as_it_is(
            pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..24),
        ) {
            let once = mask_passwords(&pieces.concat()).into_owned();
            prop_assert_eq!(mask_passwords(&once), &*once);
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
