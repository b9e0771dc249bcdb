//! Signed objects are believed for one cluster, one kind, one root; the schema describes itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use iap_identity::{ClusterName, Locks, SignedKind};
use iap_proto::convert::bundle::encode_bundle;
use iap_proto::v1::Signed;
use iap_proto::{Beat, DESCRIPTORS, LockList, OpenError, open_beat, open_bundle, open_locks, open_snapshot};
use iap_testkit::TestCluster;
use prost::Message as _;
use time::OffsetDateTime;

fn signed(cluster: &TestCluster, kind: SignedKind, payload: Vec<u8>) -> Signed {
    let (key_id, signature) = cluster.sign(kind, &payload).unwrap();
    Signed {
        key_id,
        payload,
        signature,
    }
}

fn locks(name: &ClusterName) -> LockList {
    let (epoch, version, issued) = (1, 1, OffsetDateTime::UNIX_EPOCH);
    LockList {
        cluster: name.clone(),
        epoch,
        version,
        issued,
        locks: Locks::default(),
    }
}

#[test]
fn an_object_is_opened_with_the_bundle_of_its_cluster() {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let list = locks(&cluster.name);
    let object = signed(&cluster, SignedKind::Locks, list.encode());
    assert_eq!(open_locks(&object, cluster.bundle()).unwrap(), list);
}

#[test]
fn an_object_signed_for_another_cluster_is_refused_though_the_key_is_ours() {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let other = ClusterName::parse("other.example.com").unwrap();
    let object = signed(&cluster, SignedKind::Locks, locks(&other).encode());
    assert!(matches!(
        open_locks(&object, cluster.bundle()),
        Err(OpenError::OtherCluster { .. })
    ));
}

#[test]
fn an_object_of_another_kind_altered_or_by_an_unknown_key_is_refused() {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let elsewhere = TestCluster::new("iap.example.com").unwrap();
    let beat = Beat {
        cluster: cluster.name.clone(),
        epoch: 1,
        time: OffsetDateTime::UNIX_EPOCH,
        snapshot_version: 1,
        lock_version: 1,
    };
    let genuine = signed(&cluster, SignedKind::Beat, beat.encode());
    assert_eq!(open_beat(&genuine, cluster.bundle()).unwrap(), beat);
    let as_snapshot = open_snapshot(&genuine, cluster.bundle());
    assert!(matches!(as_snapshot, Err(OpenError::Signature(_))));
    let mut altered = genuine.clone();
    altered.payload.push(0);
    assert!(matches!(
        open_beat(&altered, cluster.bundle()),
        Err(OpenError::Signature(_))
    ));
    let foreign = signed(&elsewhere, SignedKind::Beat, beat.encode());
    assert!(matches!(
        open_beat(&foreign, cluster.bundle()),
        Err(OpenError::Signature(_))
    ));
}

#[test]
fn a_bundle_is_opened_by_its_pin_and_only_when_one_of_its_keys_signed_it() {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let elsewhere = TestCluster::new("iap.example.com").unwrap();
    let now = cluster.now;
    let payload = encode_bundle(&cluster.bundle().to_raw());
    let genuine = signed(&cluster, SignedKind::Bundle, payload.clone());
    assert_eq!(
        open_bundle(&genuine, &cluster.pin(), &cluster.name, now).unwrap(),
        *cluster.bundle()
    );
    let other_pin = open_bundle(&genuine, &elsewhere.pin(), &cluster.name, now);
    assert!(matches!(other_pin, Err(OpenError::Bundle(_))));
    let other_key = signed(&elsewhere, SignedKind::Bundle, payload);
    let other_key = open_bundle(&other_key, &cluster.pin(), &cluster.name, now);
    assert!(matches!(other_key, Err(OpenError::Signature(_))));
}

#[test]
fn the_descriptors_name_every_service_of_the_schema() {
    let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let services: Vec<_> = set
        .file
        .iter()
        .flat_map(|file| &file.service)
        .map(|service| service.name())
        .collect();
    assert_eq!(services, ["Login", "Join", "User", "Agent", "Proxy", "Admin"]);
}
