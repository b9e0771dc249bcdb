//! Ports of local listeners: the same one for a service every time, so that clients can be configured once.

use std::collections::BTreeMap;

use iap_identity::{ClusterName, ServiceName};

use crate::api;
use crate::home::ClusterHome;

/// The first port used.
const PORT_MIN: u16 = 20_000;
/// How many there are: 20000–29999.
const PORTS: u16 = 10_000;

/// The port remembered for a service, or the one its name hashes to, which is then remembered.
///
/// # Errors
/// When `cluster.json` is damaged.
pub fn stable(home: &ClusterHome, service: &ServiceName) -> anyhow::Result<u16> {
    let mut port = hashed(home.cluster(), service);
    home.change_record(|stored| {
        let Some(mut record) = stored else { return Ok(None) };
        port = match record.ports.get(service.as_str()) {
            Some(port) => *port,
            None => free(port, &record.ports),
        };
        record.ports.insert(service.as_str().to_owned(), port);
        Ok(Some(record))
    })?;
    Ok(port)
}

/// Where the hash of cluster and service falls.
fn hashed(cluster: &ClusterName, service: &ServiceName) -> u16 {
    let digest = api::sha256(format!("{}\0{}", cluster.as_str(), service.as_str()).as_bytes());
    let number = digest
        .iter()
        .take(4)
        .fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
    PORT_MIN + u16::try_from(number % u32::from(PORTS)).unwrap_or(0)
}

/// The next port that no other service of the cluster has.
fn free(wanted: u16, taken: &BTreeMap<String, u16>) -> u16 {
    let candidates = (0..PORTS).map(|step| PORT_MIN + (wanted - PORT_MIN + step) % PORTS);
    candidates
        .into_iter()
        .find(|port| !taken.values().any(|other| other == port))
        .unwrap_or(wanted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_port_depends_on_cluster_and_service_and_never_changes() {
        let cluster = ClusterName::parse("iap.localhost").unwrap();
        let port = |name: &str| hashed(&cluster, &ServiceName::parse(name).unwrap());
        assert_eq!(port("db-prod"), port("db-prod"));
        assert_ne!(port("db-prod"), port("echo"));
        let other = ClusterName::parse("iap.example.com").unwrap();
        assert_ne!(
            port("db-prod"),
            hashed(&other, &ServiceName::parse("db-prod").unwrap())
        );
        for name in ["a", "b", "c", "web", "db-staging"] {
            assert!((20_000..=29_999).contains(&port(name)), "{name}");
        }
    }

    #[test]
    fn two_services_with_one_hash_get_two_ports() {
        let taken = BTreeMap::from([("a".to_owned(), 29_999), ("b".to_owned(), 20_000)]);
        assert_eq!(free(29_999, &taken), 20_001);
        assert_eq!(free(25_000, &taken), 25_000);
    }

    #[test]
    fn a_port_once_chosen_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let home = crate::home::Home::new(folder.path());
        let address = crate::address::ClusterAddress::parse("iap.localhost:1").unwrap();
        let trust = crate::trust::from_argument(&format!("sha256:{}", "ab".repeat(32))).unwrap();
        crate::trust::remember(&home, &address, &trust).unwrap();
        let cluster = home.cluster(&address.cluster);
        let echo_has_a_port = |stored: Option<crate::home::ClusterRecord>| {
            let mut record = stored.unwrap();
            record.ports.insert("echo".to_owned(), 23_456);
            Ok(Some(record))
        };
        cluster.change_record(echo_has_a_port).unwrap();
        assert_eq!(
            stable(&cluster, &ServiceName::parse("echo").unwrap()).unwrap(),
            23_456
        );
        let web = ServiceName::parse("web").unwrap();
        let port = stable(&cluster, &web).unwrap();
        assert_eq!(cluster.record().unwrap().unwrap().ports.get("web"), Some(&port));
        assert_eq!(port, hashed(&address.cluster, &web));
        crate::trust::remember(&home, &address, &trust).unwrap();
        assert_eq!(
            cluster.record().unwrap().unwrap().ports.len(),
            2,
            "a login keeps them"
        );
    }
}
