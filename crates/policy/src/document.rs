//! The document's model: what the TOML says, checked for shape but not yet for meaning.

mod section;

use toml::de::DeTable;

pub(crate) use self::section::{Errors, Located, Section};
use crate::limits::{ADMIN_RULES_MAX, DOCUMENT_BYTES_MAX, RULE_NAME_BYTES_MAX, RULES_MAX, TESTS_MAX};

/// `[[rule]]`.
pub(crate) struct RuleEntry {
    pub(crate) line: usize,
    pub(crate) name: Located<String>,
    pub(crate) effect: Option<Located<String>>,
    pub(crate) users: Option<UsersEntry>,
    pub(crate) services: Option<ServicesEntry>,
    pub(crate) logins: Option<Vec<Located<String>>>,
    pub(crate) databases: Option<Vec<Located<String>>>,
    pub(crate) when: Option<Located<String>>,
    pub(crate) limits: Option<LimitsEntry>,
    pub(crate) features: Option<Vec<Located<String>>>,
}

/// `users = {...}`.
pub(crate) struct UsersEntry {
    pub(crate) line: usize,
    pub(crate) names: Option<Vec<Located<String>>>,
    pub(crate) groups: Option<Vec<Located<String>>>,
    pub(crate) kinds: Option<Vec<Located<String>>>,
}

/// `services = {...}`.
pub(crate) struct ServicesEntry {
    pub(crate) line: usize,
    pub(crate) names: Option<Vec<Located<String>>>,
    pub(crate) labels: Option<Vec<(String, String)>>,
}

/// `limits = {...}`.
pub(crate) struct LimitsEntry {
    pub(crate) line: usize,
    pub(crate) session: Option<Located<String>>,
    pub(crate) idle: Option<Located<String>>,
}

/// `[[admin]]`.
pub(crate) struct AdminEntry {
    pub(crate) what: String,
    pub(crate) users: Option<UsersEntry>,
    pub(crate) verbs: Vec<Located<String>>,
}

/// `[[test]]`.
pub(crate) struct TestEntry {
    pub(crate) what: String,
    pub(crate) line: usize,
    pub(crate) user: TestUserEntry,
    pub(crate) service: Option<Located<String>>,
    pub(crate) protocol: Option<Located<String>>,
    pub(crate) inspect: Option<bool>,
    pub(crate) labels: Option<Vec<(String, String)>>,
    pub(crate) login: Option<Located<String>>,
    pub(crate) database: Option<Located<String>>,
    pub(crate) client_ip: Option<Located<String>>,
    pub(crate) now: Option<Located<String>>,
    pub(crate) expect: Option<Located<String>>,
    pub(crate) rule: Option<Located<String>>,
}

/// `user = {...}` of a test.
#[derive(Default)]
pub(crate) struct TestUserEntry {
    pub(crate) name: Option<Located<String>>,
    pub(crate) groups: Option<Vec<Located<String>>>,
    pub(crate) kind: Option<Located<String>>,
    pub(crate) idp: Option<Located<String>>,
    pub(crate) login_method: Option<Located<String>>,
    pub(crate) auth_age: Option<Located<String>>,
    pub(crate) mfa_age: Option<Located<String>>,
    pub(crate) acr: Option<Located<String>>,
}

/// The whole document.
#[derive(Default)]
pub(crate) struct Document {
    pub(crate) rules: Vec<RuleEntry>,
    pub(crate) admins: Vec<AdminEntry>,
    pub(crate) tests: Vec<TestEntry>,
}

/// Reads `source`; what is wrong goes to `errors` and the rest is read on.
pub(crate) fn read(source: &str, errors: &mut Errors) -> Document {
    if source.len() > DOCUMENT_BYTES_MAX {
        let bytes = source.len();
        errors.add(
            None,
            format!("the document has {bytes} bytes; at most {DOCUMENT_BYTES_MAX} are allowed"),
        );
        return Document::default();
    }
    let (root, syntax_errors) = DeTable::parse_recoverable(source);
    for error in &syntax_errors {
        let line = error.span().map(|span| errors.line(span.start));
        errors.add(line, format!("not TOML: {}", error.message().trim_end()));
    }
    if !syntax_errors.is_empty() {
        // What recovery made of the rest would be reported as errors that are none.
        return Document::default();
    }
    let root = Section::new(root.get_ref(), "the document".to_owned(), 1);
    root.allow(&["rule", "admin", "test"], errors);
    Document {
        rules: entries(&root, "rule", RULES_MAX, errors, read_rule),
        admins: entries(&root, "admin", ADMIN_RULES_MAX, errors, read_admin),
        tests: entries(&root, "test", TESTS_MAX, errors, read_test),
    }
}

fn entries<T>(
    root: &Section<'_, '_>,
    key: &str,
    entries_max: usize,
    errors: &mut Errors,
    mut read: impl FnMut(&Section<'_, '_>, usize, &mut Errors) -> Option<T>,
) -> Vec<T> {
    let tables = root.tables(key, errors);
    if tables.len() > entries_max {
        let many = tables.len();
        errors.add(
            None,
            format!("the document has {many} [[{key}]] tables; at most {entries_max} are allowed"),
        );
        return Vec::new();
    }
    let mut found = Vec::with_capacity(tables.len());
    for (index, section) in tables.iter().enumerate() {
        if errors.is_full() {
            break;
        }
        found.extend(read(section, index + 1, errors));
    }
    found
}

impl<'d, 'i> Section<'d, 'i> {
    /// The elements of an array of tables.
    fn tables(&self, key: &str, errors: &mut Errors) -> Vec<Section<'d, 'i>> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let Some(array) = value.get_ref().as_array() else {
            errors.at(&value.span(), format!("`{key}` must be written [[{key}]]"));
            return Vec::new();
        };
        let mut found = Vec::with_capacity(array.len());
        for (index, element) in array.iter().enumerate() {
            match element.get_ref().as_table() {
                Some(table) => {
                    let line = errors.line(element.span().start);
                    found.push(Section::new(table, format!("{key} {}", index + 1), line));
                }
                None => errors.at(&element.span(), format!("`{key}` must be written [[{key}]]")),
            }
        }
        found
    }
}

fn read_rule(section: &Section<'_, '_>, number: usize, errors: &mut Errors) -> Option<RuleEntry> {
    let name = section.string("name", errors);
    let what = match &name {
        Some(name) => format!("rule {:?}", name.value),
        None => format!("rule {number}"),
    };
    let section = section.renamed(what);
    section.allow(
        &[
            "name",
            "effect",
            "users",
            "services",
            "logins",
            "databases",
            "when",
            "limits",
            "features",
        ],
        errors,
    );
    for key in ["name", "effect", "users", "services"] {
        if !section.has(key) {
            section.error(errors, &format!("`{key}` is missing"));
        }
    }
    if let Some(name) = &name {
        check_rule_name(&section, name, errors);
    }
    Some(RuleEntry {
        line: section.line,
        effect: section.string("effect", errors),
        users: read_users(&section, errors),
        services: read_services(&section, errors),
        logins: section.strings("logins", errors),
        databases: section.strings("databases", errors),
        when: section.string("when", errors),
        limits: read_limits(&section, errors),
        features: section.strings("features", errors),
        name: name?,
    })
}

fn check_rule_name(section: &Section<'_, '_>, name: &Located<String>, errors: &mut Errors) {
    let text = &name.value;
    if text.is_empty() || text.len() > RULE_NAME_BYTES_MAX || text.chars().any(char::is_control) {
        section.error(
            errors,
            &format!("`name` must be 1 to {RULE_NAME_BYTES_MAX} bytes without control characters"),
        );
    }
}

fn read_users(section: &Section<'_, '_>, errors: &mut Errors) -> Option<UsersEntry> {
    let users = section.table("users", errors)?;
    users.allow(&["names", "groups", "kinds"], errors);
    Some(UsersEntry {
        line: users.line,
        names: users.strings("names", errors),
        groups: users.strings("groups", errors),
        kinds: users.strings("kinds", errors),
    })
}

fn read_services(section: &Section<'_, '_>, errors: &mut Errors) -> Option<ServicesEntry> {
    let services = section.table("services", errors)?;
    services.allow(&["names", "labels"], errors);
    Some(ServicesEntry {
        line: services.line,
        names: services.strings("names", errors),
        labels: services.string_table("labels", errors),
    })
}

fn read_limits(section: &Section<'_, '_>, errors: &mut Errors) -> Option<LimitsEntry> {
    let limits = section.table("limits", errors)?;
    limits.allow(&["session", "idle"], errors);
    Some(LimitsEntry {
        line: limits.line,
        session: limits.string("session", errors),
        idle: limits.string("idle", errors),
    })
}

fn read_admin(section: &Section<'_, '_>, number: usize, errors: &mut Errors) -> Option<AdminEntry> {
    let section = section.renamed(format!("admin {number}"));
    section.allow(&["users", "verbs"], errors);
    for key in ["users", "verbs"] {
        if !section.has(key) {
            section.error(errors, &format!("`{key}` is missing"));
        }
    }
    Some(AdminEntry {
        users: read_users(&section, errors),
        verbs: section.strings("verbs", errors).unwrap_or_default(),
        what: section.what,
    })
}

const TEST_KEYS: [&str; 12] = [
    "name",
    "user",
    "service",
    "protocol",
    "inspect",
    "labels",
    "login",
    "database",
    "client_ip",
    "now",
    "expect",
    "rule",
];

fn read_test(section: &Section<'_, '_>, number: usize, errors: &mut Errors) -> Option<TestEntry> {
    let name = section.string("name", errors);
    let section = section.renamed(match name {
        Some(name) => format!("test {:?}", name.value),
        None => format!("test {number}"),
    });
    section.allow(&TEST_KEYS, errors);
    for key in ["user", "service", "expect"] {
        if !section.has(key) {
            section.error(errors, &format!("`{key}` is missing"));
        }
    }
    Some(TestEntry {
        line: section.line,
        user: read_test_user(&section, errors),
        service: section.string("service", errors),
        protocol: section.string("protocol", errors),
        inspect: section.boolean("inspect", errors),
        labels: section.string_table("labels", errors),
        login: section.string("login", errors),
        database: section.string("database", errors),
        client_ip: section.string("client_ip", errors),
        now: section.moment("now", errors),
        expect: section.string("expect", errors),
        rule: section.string("rule", errors),
        what: section.what,
    })
}

fn read_test_user(section: &Section<'_, '_>, errors: &mut Errors) -> TestUserEntry {
    let Some(user) = section.table("user", errors) else {
        return TestUserEntry::default();
    };
    user.allow(
        &[
            "name",
            "groups",
            "kind",
            "idp",
            "login_method",
            "auth_age",
            "mfa_age",
            "acr",
        ],
        errors,
    );
    if !user.has("name") {
        user.error(errors, "`name` is missing");
    }
    TestUserEntry {
        name: user.string("name", errors),
        groups: user.strings("groups", errors),
        kind: user.string("kind", errors),
        idp: user.string("idp", errors),
        login_method: user.string("login_method", errors),
        auth_age: user.string("auth_age", errors),
        mfa_age: user.string("mfa_age", errors),
        acr: user.string("acr", errors),
    }
}
