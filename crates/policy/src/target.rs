//! `logins` and `databases`: literals, `"*"`, and templates over the user's name.

use std::collections::BTreeSet;

use iap_identity::LoginName;

use crate::document::{Errors, Located};
use crate::facts::UserFacts;
use crate::selector::ANY;

/// Longest result of a template.
const TEMPLATED_BYTES_MAX: usize = 32;

/// What is asked for in a login's (or a database's) place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted<'a> {
    /// This one.
    Named(&'a str),
    /// None: the user named none, or the protocol has none.
    Nothing,
    /// Perhaps one, but the agent cannot see it.
    Unseen,
    /// Any that is allowed: asked when listing.
    Whichever,
}

impl<'a> Wanted<'a> {
    /// The variable's value in conditions; see [`crate::condition::variables::Variables::login`].
    pub(crate) fn variable(self) -> Option<&'a str> {
        match self {
            Wanted::Named(name) => Some(name),
            Wanted::Nothing | Wanted::Whichever => Some(""),
            Wanted::Unseen => None,
        }
    }
}

/// One entry of `logins` or `databases`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Literal(String),
    Template(Vec<Part>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    UserLocal,
    UserName,
}

/// `logins = [...]` or `databases = [...]`; left out, it is any.
#[derive(Debug, Default)]
pub(crate) struct Targets {
    any: bool,
    patterns: Vec<Pattern>,
}

impl Targets {
    pub(crate) fn read(what: &str, entries: Option<&[Located<String>]>, errors: &mut Errors) -> Self {
        let Some(entries) = entries else {
            return Self {
                any: true,
                patterns: Vec::new(),
            };
        };
        let mut targets = Self::default();
        for entry in entries {
            if entry.value == ANY {
                targets.any = true;
                continue;
            }
            match Pattern::parse(&entry.value) {
                Ok(pattern) => targets.patterns.push(pattern),
                Err(problem) => errors.add(Some(entry.line), format!("{what}: {problem}")),
            }
        }
        targets
    }

    /// Whether everything is meant.
    pub(crate) fn is_any(&self) -> bool {
        self.any
    }

    /// Whether an allow rule gives what is wanted.
    pub(crate) fn give(&self, wanted: Wanted<'_>, user: &UserFacts, reserved: &BTreeSet<String>) -> bool {
        match wanted {
            _ if self.any => true,
            Wanted::Named(name) => self.patterns.iter().any(|pattern| match pattern {
                Pattern::Literal(literal) => literal == name,
                Pattern::Template(parts) => render_safely(parts, user, reserved).as_deref() == Some(name),
            }),
            Wanted::Nothing | Wanted::Unseen => false,
            Wanted::Whichever => true,
        }
    }

    /// Whether a deny rule takes what is wanted. A template takes whatever it renders to.
    pub(crate) fn take(&self, wanted: Wanted<'_>, user: &UserFacts) -> bool {
        match wanted {
            _ if self.any => true,
            Wanted::Named(name) => self.patterns.iter().any(|pattern| match pattern {
                Pattern::Literal(literal) => literal == name,
                Pattern::Template(parts) => render(parts, user) == name,
            }),
            Wanted::Nothing | Wanted::Whichever => false,
            Wanted::Unseen => true,
        }
    }

    /// The entries as a document writes them.
    pub(crate) fn written(&self) -> Vec<String> {
        let any = self.any.then(|| ANY.to_owned());
        any.into_iter()
            .chain(self.patterns.iter().map(Pattern::written))
            .collect()
    }

    /// Whether an entry comes to something else for each user.
    pub(crate) fn has_templates(&self) -> bool {
        self.patterns
            .iter()
            .any(|pattern| matches!(pattern, Pattern::Template(_)))
    }

    /// The entries written literally.
    pub(crate) fn literals(&self) -> impl Iterator<Item = &str> {
        self.patterns.iter().filter_map(|pattern| match pattern {
            Pattern::Literal(literal) => Some(literal.as_str()),
            Pattern::Template(_) => None,
        })
    }

    /// What the templates come to for `user`, where that is permitted.
    pub(crate) fn rendered(
        &self,
        user: &UserFacts,
        reserved: &BTreeSet<String>,
    ) -> impl Iterator<Item = String> {
        self.patterns.iter().filter_map(|pattern| match pattern {
            Pattern::Literal(_) => None,
            Pattern::Template(parts) => render_safely(parts, user, reserved),
        })
    }
}

impl Pattern {
    fn written(&self) -> String {
        match self {
            Pattern::Literal(literal) => literal.clone(),
            Pattern::Template(parts) => parts
                .iter()
                .map(|part| match part {
                    Part::Text(text) => text.as_str(),
                    Part::UserLocal => "{{user.local}}",
                    Part::UserName => "{{user.name}}",
                })
                .collect(),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        if !text.contains("{{") && !text.contains("}}") {
            // Databases are held to the same rules as logins.
            return match LoginName::parse(text) {
                Ok(_) => Ok(Pattern::Literal(text.to_owned())),
                Err(error) => Err(error.to_string()),
            };
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (name, behind) = after
                .split_once("}}")
                .ok_or_else(|| format!("the template {text:?} lacks a `}}}}`"))?;
            push_text(&mut parts, before, text)?;
            parts.push(match name.trim() {
                "user.local" => Part::UserLocal,
                "user.name" => Part::UserName,
                other => {
                    return Err(format!(
                        "{{{{{other}}}}} in {text:?} is no template; there are {{{{user.local}}}} and {{{{user.name}}}}"
                    ));
                }
            });
            rest = behind;
        }
        push_text(&mut parts, rest, text)?;
        Ok(Pattern::Template(parts))
    }
}

fn push_text(parts: &mut Vec<Part>, between: &str, template: &str) -> Result<(), String> {
    if !between.bytes().all(is_templated_byte) {
        return Err(format!(
            "beside its placeholders, the template {template:?} may only have a-z, 0-9, _ and -"
        ));
    }
    if !between.is_empty() {
        parts.push(Part::Text(between.to_owned()));
    }
    Ok(())
}

fn render(parts: &[Part], user: &UserFacts) -> String {
    let mut rendered = String::new();
    for part in parts {
        rendered.push_str(match part {
            Part::Text(text) => text,
            Part::UserLocal => user.local(),
            Part::UserName => &user.name,
        });
    }
    rendered
}

fn render_safely(parts: &[Part], user: &UserFacts, reserved: &BTreeSet<String>) -> Option<String> {
    let rendered = render(parts, user);
    is_permitted(&rendered, reserved).then_some(rendered)
}

/// Whether a login that nobody wrote down may be used: `[a-z_][a-z0-9_-]{0,31}`, and not reserved.
pub(crate) fn is_permitted(login: &str, reserved: &BTreeSet<String>) -> bool {
    let starts_well = login
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_');
    starts_well
        && login.len() <= TEMPLATED_BYTES_MAX
        && login.bytes().all(is_templated_byte)
        && !reserved.contains(login)
}

fn is_templated_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-'
}
