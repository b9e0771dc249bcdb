//! Claims from the JSON of a token's payload, for trying a connector out without its provider.

use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::Claims;

/// Claims with a field of their own, or that are about the token and not about the person.
const NOT_OTHER: [&str; 14] = [
    "sub",
    "email",
    "email_verified",
    "preferred_username",
    "acr",
    "amr",
    "iss",
    "aud",
    "azp",
    "exp",
    "iat",
    "auth_time",
    "nonce",
    "name",
];

impl Claims {
    /// The same the other way round, to be looked at.
    pub(crate) fn shown(&self) -> Map<String, Value> {
        let text = |text: &Option<String>| text.clone().map(Value::String);
        let fields = [
            ("sub", Some(Value::String(self.subject.clone()))),
            ("email", text(&self.email)),
            (
                "email_verified",
                self.email.as_ref().map(|_| Value::Bool(self.email_verified)),
            ),
            ("preferred_username", text(&self.preferred_username)),
            (
                "auth_time",
                self.auth_time.map(|at| Value::from(at.unix_timestamp())),
            ),
            ("acr", text(&self.acr)),
            (
                "amr",
                (!self.amr.is_empty()).then(|| Value::from(self.amr.clone())),
            ),
        ];
        let fields = fields
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)));
        fields
            .chain(
                self.other
                    .iter()
                    .map(|(name, value)| (name.clone(), value.clone())),
            )
            .collect()
    }

    /// What a payload says; nothing of it is verified.
    pub(crate) fn of_payload(payload: &Map<String, Value>) -> Self {
        let text = |name: &str| payload.get(name).and_then(Value::as_str).map(str::to_owned);
        let amr = payload.get("amr").and_then(Value::as_array);
        Self {
            was_prompted: false,
            subject: text("sub").unwrap_or_default(),
            email: text("email"),
            email_verified: payload.get("email_verified").and_then(Value::as_bool) == Some(true),
            preferred_username: text("preferred_username"),
            auth_time: payload
                .get("auth_time")
                .and_then(Value::as_i64)
                .and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok()),
            acr: text("acr"),
            amr: amr
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            other: payload
                .iter()
                .filter(|(name, _)| !NOT_OTHER.contains(&name.as_str()))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        }
    }
}
