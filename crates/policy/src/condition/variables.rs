//! The variables of a condition, resolved from the facts when they are read.
//!
//! The interpreter asks for the longest dotted name first (`user.name` before `user`), so most
//! conditions never build a map.

use std::collections::HashMap;

use cel::common::types::{CelDuration, CelList, CelMap, CelMapKey, CelString, CelTimestamp};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use time::OffsetDateTime;

use super::kind::Kind;
use crate::facts::{ServiceFacts, UserFacts};
use crate::limits::CONDITION_LIST_VALUES_MAX;

/// Fields of `user`.
pub(crate) const USER_FIELDS: [(&str, Kind); 10] = [
    ("name", Kind::String),
    ("local", Kind::String),
    ("id", Kind::String),
    ("groups", Kind::Strings),
    ("kind", Kind::String),
    ("auth_age", Kind::Duration),
    ("mfa_age", Kind::Duration),
    ("acr", Kind::String),
    ("idp", Kind::String),
    ("login_method", Kind::String),
];
/// Fields of `client`.
pub(crate) const CLIENT_FIELDS: [(&str, Kind); 1] = [("ip", Kind::String)];
/// Fields of `service`.
pub(crate) const SERVICE_FIELDS: [(&str, Kind); 3] = [
    ("name", Kind::String),
    ("labels", Kind::StringMap),
    ("protocol", Kind::String),
];

/// Whether the passing of time changes this variable.
pub(crate) fn is_time_dependent(variable: &str) -> bool {
    matches!(variable, "now" | "user.auth_age" | "user.mfa_age")
}

/// What a condition can read.
pub(crate) struct Variables<'a> {
    pub(crate) user: &'a UserFacts,
    pub(crate) service: &'a ServiceFacts,
    /// `None`: there may be one, but it cannot be seen, so that a condition that looks at it fails.
    pub(crate) login: Option<&'a str>,
    /// Likewise.
    pub(crate) database: Option<&'a str>,
    /// In canonical form.
    pub(crate) client_ip: &'a str,
    pub(crate) now: OffsetDateTime,
    /// Whether `user.groups` lists each group without its prefix too.
    pub(crate) bare_groups: bool,
}

impl VariableResolver for Variables<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        self.value(variable).map(CowVal::Owned)
    }
}

impl Variables<'_> {
    fn value<'b>(&'b self, variable: &str) -> Option<Box<dyn Val + 'b>> {
        match variable {
            "now" => timestamp(self.now),
            "login" => self.login.map(string),
            "database" => self.database.map(string),
            "user" => Some(self.fields("user", &USER_FIELDS)),
            "client" => Some(self.fields("client", &CLIENT_FIELDS)),
            "service" => Some(self.fields("service", &SERVICE_FIELDS)),
            "client.ip" => Some(string(self.client_ip)),
            _ => match variable.split_once('.') {
                Some(("user", field)) => self.user_field(field),
                Some(("service", field)) => self.service_field(field),
                Some(_) | None => None,
            },
        }
    }

    fn user_field<'b>(&'b self, field: &str) -> Option<Box<dyn Val + 'b>> {
        match field {
            "name" => Some(string(&self.user.name)),
            "local" => Some(string(self.user.local())),
            "id" => Some(string(&self.user.id)),
            "kind" => Some(string(self.user.kind.as_str())),
            "acr" => self.user.acr.as_deref().map(string),
            "idp" => Some(string(&self.user.idp)),
            "login_method" => Some(string(&self.user.login_method)),
            "groups" => self.groups(),
            "auth_age" => self.user.auth_time.and_then(|since| age(since, self.now)),
            "mfa_age" => self.user.mfa_time.and_then(|since| age(since, self.now)),
            _ => None,
        }
    }

    fn service_field<'b>(&'b self, field: &str) -> Option<Box<dyn Val + 'b>> {
        match field {
            "name" => Some(string(self.service.name.as_str())),
            "protocol" => Some(string(self.service.protocol.as_str())),
            "labels" => self.labels(),
            _ => {
                let label = field.strip_prefix("labels.")?;
                // A label with a point in its name is read with brackets.
                let plain = !label.contains('.');
                self.service
                    .labels
                    .get(label)
                    .filter(|_| plain)
                    .map(|value| string(value))
            }
        }
    }

    /// `None`, and so a failing condition, when there are too many: a shortened list would lie.
    fn groups<'b>(&'b self) -> Option<Box<dyn Val + 'b>> {
        let groups = &self.user.groups;
        let forms = if self.bare_groups { 2 } else { 1 };
        if groups.len() * forms > CONDITION_LIST_VALUES_MAX {
            return None;
        }
        let mut values: Vec<Box<dyn Val + 'b>> = groups.iter().map(|group| string(group.as_str())).collect();
        if self.bare_groups {
            values.extend(groups.iter().map(|group| string(group.group())));
        }
        Some(Box::new(CelList::from(values)))
    }

    fn labels<'b>(&'b self) -> Option<Box<dyn Val + 'b>> {
        let labels = &self.service.labels;
        if labels.len() > CONDITION_LIST_VALUES_MAX {
            return None;
        }
        let entries: HashMap<CelMapKey<'b>, Box<dyn Val + 'b>> = labels
            .iter()
            .map(|(name, value)| (CelMapKey::from(name.as_str()), string(value)))
            .collect();
        Some(Box::new(CelMap::from(entries)))
    }

    fn fields<'b>(&'b self, root: &str, names: &[(&'static str, Kind)]) -> Box<dyn Val + 'b> {
        let mut entries: HashMap<CelMapKey<'b>, Box<dyn Val + 'b>> = HashMap::new();
        for (name, _) in names {
            if let Some(value) = self.value(&format!("{root}.{name}")) {
                entries.insert(CelMapKey::from(*name), value);
            }
        }
        Box::new(CelMap::from(entries))
    }
}

fn string<'b>(text: &'b str) -> Box<dyn Val + 'b> {
    Box::new(CelString::from(text))
}

/// The time since `since`; zero when that lies ahead, as it may between two clocks.
fn age<'b>(since: OffsetDateTime, now: OffsetDateTime) -> Option<Box<dyn Val + 'b>> {
    let milliseconds = i64::try_from((now - since).whole_milliseconds().max(0)).ok()?;
    let age = chrono::Duration::try_milliseconds(milliseconds)?;
    Some(Box::new(CelDuration::from(age)))
}

fn timestamp<'b>(moment: OffsetDateTime) -> Option<Box<dyn Val + 'b>> {
    let moment = chrono::DateTime::from_timestamp(moment.unix_timestamp(), moment.nanosecond())?;
    Some(Box::new(CelTimestamp::from(moment.fixed_offset())))
}
