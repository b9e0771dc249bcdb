//! A service's record.

use std::time::Duration;

use iap_identity::{AgentId, LoginName, ServiceName};
use iap_policy::{Protocol, ServiceFacts};

use super::WireError;
use crate::domain::{AuditMode, RecordingMode, ServiceRecord, Strictness};
use crate::v1;

impl From<&ServiceRecord> for v1::Service {
    fn from(record: &ServiceRecord) -> Self {
        let facts = &record.facts;
        Self {
            name: facts.name.to_string(),
            protocol: facts.protocol.as_str().to_owned(),
            inspect: facts.inspect,
            labels: facts.labels.clone().into_iter().collect(),
            description: record.description.clone(),
            contact: record.contact.clone(),
            agents: record
                .agents
                .iter()
                .map(|agent| agent.as_bytes().to_vec())
                .collect(),
            default_login: facts
                .default_login
                .as_ref()
                .map(LoginName::to_string)
                .unwrap_or_default(),
            audit: record.audit.as_str().to_owned(),
            recording: record
                .recording
                .map(|mode| mode.as_str().to_owned())
                .unwrap_or_default(),
            strictness: strictness_to_wire(&record.strictness),
        }
    }
}

impl TryFrom<v1::Service> for ServiceRecord {
    type Error = WireError;

    fn try_from(wire: v1::Service) -> Result<Self, WireError> {
        let agent = |bytes: &Vec<u8>| AgentId::from_bytes(bytes).map_err(WireError::name("Service.agents"));
        let audit = AuditMode::parse(&wire.audit);
        Ok(Self {
            agents: wire.agents.iter().map(agent).collect::<Result<_, _>>()?,
            audit: audit.ok_or_else(|| {
                WireError::new("Service.audit", "not \"required\", \"best_effort\" or \"remote\"")
            })?,
            facts: ServiceFacts {
                name: ServiceName::parse(&wire.name).map_err(WireError::name("Service.name"))?,
                protocol: Protocol::parse(&wire.protocol)
                    .map_err(|error| WireError::new("Service.protocol", error))?,
                inspect: wire.inspect,
                labels: wire.labels.into_iter().collect(),
                default_login: default_login(&wire.default_login)?,
            },
            description: wire.description,
            contact: wire.contact,
            recording: recording(&wire.recording)?,
            strictness: strictness_from_wire(wire.strictness.unwrap_or_default())?,
        })
    }
}

fn strictness_to_wire(strictness: &Strictness) -> Option<v1::Strictness> {
    if *strictness == Strictness::default() {
        return None;
    }
    let seconds = |age: Option<Duration>| age.map(|age| u32::try_from(age.as_secs()).unwrap_or(u32::MAX));
    Some(v1::Strictness {
        lock_feed_seconds: seconds(strictness.lock_feed_max_age),
        snapshot_seconds: seconds(strictness.snapshot_max_age),
        grace_seconds: seconds(strictness.grace),
    })
}

fn strictness_from_wire(wire: v1::Strictness) -> Result<Strictness, WireError> {
    let duration = |seconds: u32| Duration::from_secs(u64::from(seconds));
    let age = |field, seconds: Option<u32>| match seconds.map(duration) {
        Some(age) if age.as_secs() < Strictness::AGE_SECONDS_MIN => Err(WireError::new(
            field,
            format!("less than {} s", Strictness::AGE_SECONDS_MIN),
        )),
        age => Ok(age),
    };
    Ok(Strictness {
        lock_feed_max_age: age("Strictness.lock_feed_seconds", wire.lock_feed_seconds)?,
        snapshot_max_age: age("Strictness.snapshot_seconds", wire.snapshot_seconds)?,
        grace: wire.grace_seconds.map(duration),
    })
}

fn recording(mode: &str) -> Result<Option<RecordingMode>, WireError> {
    let refused = || WireError::new("Service.recording", "not \"required\" or \"best_effort\"");
    let mode = Some(mode).filter(|mode| !mode.is_empty());
    mode.map(|mode| RecordingMode::parse(mode).ok_or_else(refused))
        .transpose()
}

fn default_login(login: &str) -> Result<Option<LoginName>, WireError> {
    let login = Some(login).filter(|login| !login.is_empty());
    login
        .map(|login| LoginName::parse(login).map_err(WireError::name("Service.default_login")))
        .transpose()
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;
    use uuid::Uuid;

    pub(crate) fn service() -> ServiceRecord {
        let mut facts = ServiceFacts::tcp(ServiceName::parse("db-prod").unwrap());
        facts.protocol = Protocol::Postgres;
        facts.inspect = true;
        facts.labels.insert("env".into(), "prod".into());
        facts.default_login = Some(LoginName::parse("readonly").unwrap());
        ServiceRecord {
            facts,
            description: "Orders".into(),
            contact: "#db".into(),
            agents: vec![AgentId::from_uuid(Uuid::from_u128(
                0x0198_0000_0000_7000_9000_0000_0000_0001,
            ))],
            audit: AuditMode::BestEffort,
            recording: Some(RecordingMode::BestEffort),
            strictness: Strictness {
                lock_feed_max_age: Some(Duration::from_secs(300)),
                snapshot_max_age: None,
                grace: Some(Duration::ZERO),
            },
        }
    }

    #[test]
    fn a_service_survives_the_wire() {
        assert_eq!(
            ServiceRecord::try_from(v1::Service::from(&service())),
            Ok(service())
        );
    }

    #[test]
    fn a_service_with_malformed_parts_is_refused_by_field() {
        let refused = |alter: fn(&mut v1::Service)| {
            let mut wire = v1::Service::from(&service());
            alter(&mut wire);
            ServiceRecord::try_from(wire).unwrap_err().field
        };
        assert_eq!(refused(|wire| wire.name = "auth".into()), "Service.name");
        assert_eq!(
            refused(|wire| wire.protocol = "gopher".into()),
            "Service.protocol"
        );
        assert_eq!(refused(|wire| wire.agents.push(vec![1])), "Service.agents");
        assert_eq!(refused(|wire| wire.audit = "maybe".into()), "Service.audit");
        assert_eq!(
            refused(|wire| wire.recording = "maybe".into()),
            "Service.recording"
        );
        let hasty = |wire: &mut v1::Service| {
            wire.strictness = Some(v1::Strictness {
                lock_feed_seconds: Some(29),
                ..v1::Strictness::default()
            });
        };
        assert_eq!(refused(hasty), "Strictness.lock_feed_seconds");
        assert_eq!(
            refused(|wire| wire.default_login = "a\0".into()),
            "Service.default_login"
        );
    }
}
