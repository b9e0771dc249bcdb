//! End records of sessions whose agent did not live to write them: what they repeat of the start record they answer.

use serde_json::{Map, Value};

use crate::event::Event;

/// What an end record repeats of the start record it answers.
const REPEATED_FIELDS: [&str; 17] = [
    "session_id",
    "connection_id",
    "connect_id",
    "user",
    "login_id",
    "serial",
    "service",
    "protocol",
    "agent",
    "client_address",
    "client_ip",
    "client_asserted_by",
    "login",
    "asked_login",
    "asked_database",
    "decision",
    "observed",
];
/// When the session began, in end records and in the [`carried`] part of a start record.
const START: &str = "start";
/// The same in a start record.
const TIME: &str = "time";

/// The part of a start record that its end record repeats, for whoever keeps no more of it.
#[must_use]
pub fn carried(start: &Map<String, Value>) -> Map<String, Value> {
    let names = REPEATED_FIELDS.iter().chain(&[START, TIME]);
    let pick = |name: &&'static str| start.get(*name).map(|value| ((*name).to_owned(), value.clone()));
    names.filter_map(pick).collect()
}

impl Event {
    /// Repeats what belongs into the end of the session that `start` began; `start` is its start record or the
    /// [`carried`] part of it. What it does not say is left out.
    #[must_use]
    pub fn answering(self, start: &Map<String, Value>) -> Self {
        let repeated = REPEATED_FIELDS
            .iter()
            .filter_map(|name| Some((*name, start.get(*name)?)));
        let event = repeated.fold(self, |event, (name, value)| event.field(name, value.clone()));
        match start.get(START).or_else(|| start.get(TIME)) {
            Some(began) => event.field(START, began.clone()),
            None => event,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use serde_json::json;
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;
    use crate::kind::EventKind;

    fn start() -> Map<String, Value> {
        let record = json!({
            "event": "session.start", "code": "S1000I", "time": "2026-01-02T03:04:05.000Z", "id": "…",
            "session_id": "s", "user": {"name": "alice"}, "service": "db", "agent_seq": 7, "agent_prev": "0"
        });
        record.as_object().unwrap().clone()
    }

    fn answer(start: &Map<String, Value>) -> Map<String, Value> {
        let end = Event::new(EventKind::SessionEnd, OffsetDateTime::UNIX_EPOCH, Uuid::nil());
        end.answering(start).into_body().fields().clone()
    }

    #[test]
    fn an_end_repeats_what_the_start_says_of_the_session_and_nothing_of_the_record() {
        let end = answer(&start());
        assert_eq!(
            (&end["session_id"], &end["user"]["name"]),
            (&json!("s"), &json!("alice"))
        );
        assert_eq!(end["start"], "2026-01-02T03:04:05.000Z");
        assert_eq!(end["event"], "session.end");
        assert_eq!(end["time"], "1970-01-01T00:00:00.000Z");
        assert!(!end.contains_key("agent_seq") && !end.contains_key("login"));
    }

    #[test]
    fn what_is_carried_of_a_start_makes_the_same_end() {
        let carried = carried(&start());
        assert!(!carried.contains_key("agent_prev"));
        assert_eq!(answer(&carried), answer(&start()));
    }
}
