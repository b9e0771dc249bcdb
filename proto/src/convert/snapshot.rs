//! The snapshot.

use iap_identity::{GroupName, LoginName, ProxyId};
use iap_policy::Vocabulary;
use prost::Message as _;

use super::{WireError, cluster, time_from_wire, time_to_wire};
use crate::domain::{ProxyAddress, ServiceRecord, Snapshot};
use crate::v1;

impl Snapshot {
    /// The payload to be signed.
    pub fn encode(&self) -> Vec<u8> {
        v1::Snapshot::from(self).encode_to_vec()
    }

    /// Reads a payload whose signature was checked.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let wire = v1::Snapshot::decode(payload).map_err(|error| WireError::new("Snapshot", error))?;
        Self::try_from(wire)
    }
}

impl From<&Snapshot> for v1::Snapshot {
    fn from(snapshot: &Snapshot) -> Self {
        Self {
            epoch: snapshot.epoch,
            version: snapshot.version,
            cluster: snapshot.cluster.to_string(),
            issued_unix_ms: time_to_wire(snapshot.issued),
            expires_unix_ms: time_to_wire(snapshot.expires),
            policy_version: snapshot.policy_version,
            policy_toml: snapshot.policy_toml.clone(),
            vocabulary: vocabulary_to_wire(&snapshot.vocabulary),
            services: snapshot.services.iter().map(v1::Service::from).collect(),
            proxies: snapshot.proxies.iter().map(v1::ProxyAddress::from).collect(),
            reserved_logins: snapshot
                .reserved_logins
                .iter()
                .map(LoginName::to_string)
                .collect(),
        }
    }
}

impl TryFrom<v1::Snapshot> for Snapshot {
    type Error = WireError;

    fn try_from(wire: v1::Snapshot) -> Result<Self, WireError> {
        let reserved =
            |login: &String| LoginName::parse(login).map_err(WireError::name("Snapshot.reserved_logins"));
        Ok(Self {
            epoch: wire.epoch,
            version: wire.version,
            cluster: cluster("Snapshot.cluster", &wire.cluster)?,
            issued: time_from_wire("Snapshot.issued_unix_ms", wire.issued_unix_ms)?,
            expires: time_from_wire("Snapshot.expires_unix_ms", wire.expires_unix_ms)?,
            policy_version: wire.policy_version,
            policy_toml: wire.policy_toml,
            vocabulary: vocabulary_from_wire(&wire.vocabulary)?,
            services: wire
                .services
                .into_iter()
                .map(ServiceRecord::try_from)
                .collect::<Result<_, _>>()?,
            proxies: wire
                .proxies
                .into_iter()
                .map(ProxyAddress::try_from)
                .collect::<Result<_, _>>()?,
            reserved_logins: wire
                .reserved_logins
                .iter()
                .map(reserved)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl From<&ProxyAddress> for v1::ProxyAddress {
    fn from(proxy: &ProxyAddress) -> Self {
        Self {
            proxy_id: proxy.proxy_id.as_bytes().to_vec(),
            address: proxy.address.clone(),
        }
    }
}

impl TryFrom<v1::ProxyAddress> for ProxyAddress {
    type Error = WireError;

    fn try_from(wire: v1::ProxyAddress) -> Result<Self, WireError> {
        let proxy_id =
            ProxyId::from_bytes(&wire.proxy_id).map_err(WireError::name("ProxyAddress.proxy_id"))?;
        Ok(Self {
            proxy_id,
            address: wire.address,
        })
    }
}

fn vocabulary_to_wire(vocabulary: &Vocabulary) -> Vec<v1::GroupVersion> {
    vocabulary
        .iter()
        .map(|(group, first_version)| v1::GroupVersion {
            group: group.to_string(),
            first_version,
        })
        .collect()
}

fn vocabulary_from_wire(wire: &[v1::GroupVersion]) -> Result<Vocabulary, WireError> {
    let parse = |entry: &v1::GroupVersion| {
        let group = GroupName::parse(&entry.group).map_err(WireError::name("GroupVersion.group"))?;
        Ok((group, entry.first_version))
    };
    wire.iter().map(parse).collect()
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
    use crate::convert::service::tests::service;
    use iap_identity::ClusterName;
    use time::OffsetDateTime;
    use uuid::Uuid;

    fn snapshot() -> Snapshot {
        let proxy_id = ProxyId::from_uuid(Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0002));
        Snapshot {
            epoch: 1,
            version: 9,
            cluster: ClusterName::parse("iap.example.com").unwrap(),
            issued: OffsetDateTime::UNIX_EPOCH,
            expires: OffsetDateTime::UNIX_EPOCH + time::Duration::hours(24),
            policy_version: 3,
            policy_toml: "# nothing".into(),
            vocabulary: [(GroupName::parse("okta:engineering").unwrap(), 2)]
                .into_iter()
                .collect(),
            services: vec![service()],
            proxies: vec![ProxyAddress {
                proxy_id,
                address: "iap.example.com:443".into(),
            }],
            reserved_logins: vec![LoginName::parse("root").unwrap()],
        }
    }

    #[test]
    fn a_snapshot_survives_the_wire() {
        assert_eq!(Snapshot::decode(&snapshot().encode()), Ok(snapshot()));
    }

    #[test]
    fn one_malformed_part_refuses_the_whole_snapshot() {
        let refused = |alter: fn(&mut v1::Snapshot)| {
            let mut wire = v1::Snapshot::from(&snapshot());
            alter(&mut wire);
            Snapshot::decode(&wire.encode_to_vec()).unwrap_err().field
        };
        assert_eq!(refused(|wire| wire.cluster.clear()), "Snapshot.cluster");
        assert_eq!(
            refused(|wire| wire.expires_unix_ms = i64::MIN),
            "Snapshot.expires_unix_ms"
        );
        assert_eq!(
            refused(|wire| wire.vocabulary[0].group.clear()),
            "GroupVersion.group"
        );
        assert_eq!(
            refused(|wire| wire.services[0].name = "www".into()),
            "Service.name"
        );
        assert_eq!(
            refused(|wire| wire.proxies[0].proxy_id.clear()),
            "ProxyAddress.proxy_id"
        );
        assert_eq!(
            refused(|wire| wire.reserved_logins.push(String::new())),
            "Snapshot.reserved_logins"
        );
    }

    #[test]
    fn a_later_epoch_outranks_any_version_of_an_earlier_one() {
        let older = snapshot();
        let restored = Snapshot {
            epoch: 2,
            version: 1,
            ..snapshot()
        };
        assert!(restored.is_newer_than(&older));
        assert!(!older.is_newer_than(&restored));
        assert!(!older.is_newer_than(&older));
    }
}
