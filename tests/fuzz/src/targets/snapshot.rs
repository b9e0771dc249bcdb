//! Signed objects: nothing is believed that was not signed, and what was signed reads the same after being
//! written back; the policy inside a snapshot loads or is refused.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use iap_identity::{
    AgentId, GroupName, Lock, LockKind, Locks, LoginName, ProxyId, ServiceName, SignedKind, TrustBundle,
};
use iap_policy::{Connectors, LoadOptions, Policy, Protocol, ServiceFacts, Vocabulary};
use iap_proto::convert::bundle::{decode_bundle, encode_bundle};
use iap_proto::v1::Signed;
use iap_proto::{
    AuditMode, Beat, LockList, ProxyAddress, ServiceRecord, Snapshot, open_beat, open_bundle, open_locks,
    open_snapshot,
};
use iap_testkit::TestCluster;
use prost::Message as _;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::Seeds;
use crate::input::choice;

/// An id for seeds.
pub(crate) const ID: Uuid = Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0001);

pub(crate) fn run(bytes: &[u8]) {
    match choice(bytes, 6) {
        Some((0, payload)) => snapshot(payload),
        Some((1, payload)) => beat(payload),
        Some((2, payload)) => locks(payload),
        Some((3, payload)) => bundle(payload),
        Some((4, message)) => unsigned(message),
        Some((_, patches)) => patched(patches),
        None => {}
    }
}

fn snapshot(payload: &[u8]) {
    let Ok(read) = Snapshot::decode(payload) else {
        return;
    };
    let written = read.encode();
    assert_eq!(Snapshot::decode(&written).as_ref(), Ok(&read));
    let opened = open_snapshot(&signed(SignedKind::Snapshot, payload), cluster().bundle());
    assert_eq!(
        opened.is_ok(),
        read.cluster == cluster().name,
        "only of this cluster"
    );
    let options = LoadOptions {
        connectors: Connectors::of_vocabulary(&read.vocabulary),
        reserved_logins: read.reserved_logins.iter().map(ToString::to_string).collect(),
    };
    drop(Policy::load_with(&read.policy_toml, &options));
}

fn beat(payload: &[u8]) {
    let Ok(read) = Beat::decode(payload) else {
        return;
    };
    assert_eq!(Beat::decode(&read.encode()).as_ref(), Ok(&read));
    let opened = open_beat(&signed(SignedKind::Beat, payload), cluster().bundle());
    assert_eq!(opened.is_ok(), read.cluster == cluster().name);
}

fn locks(payload: &[u8]) {
    let Ok(read) = LockList::decode(payload) else {
        return;
    };
    assert_eq!(LockList::decode(&read.encode()).as_ref(), Ok(&read));
    let opened = open_locks(&signed(SignedKind::Locks, payload), cluster().bundle());
    assert_eq!(opened.is_ok(), read.cluster == cluster().name);
}

/// A bundle proves itself by its root: one from elsewhere never does.
fn bundle(payload: &[u8]) {
    let Ok(raw) = decode_bundle(payload) else {
        return;
    };
    assert_eq!(decode_bundle(&encode_bundle(&raw)).as_ref(), Ok(&raw));
    let here = cluster();
    let is_ours = raw.root == here.root().der().as_ref();
    let verified = TrustBundle::verify(raw, &here.pin(), &here.name, here.now);
    assert!(
        verified.is_err() || is_ours,
        "another root passed for the pinned one"
    );
}

/// What arrives as signed, and is not.
fn unsigned(message: &[u8]) {
    let Ok(read) = Signed::decode(message) else {
        return;
    };
    let here = cluster();
    assert!(open_snapshot(&read, here.bundle()).is_err());
    assert!(open_beat(&read, here.bundle()).is_err());
    assert!(open_locks(&read, here.bundle()).is_err());
    assert!(open_bundle(&read, &here.pin(), &here.name, here.now).is_err());
    // The payload of one, under the signature of another.
    let mut mixed = signed(SignedKind::Snapshot, &example().encode());
    mixed.payload = read.payload;
    let is_original = mixed.payload == example().encode();
    assert_eq!(open_snapshot(&mixed, here.bundle()).is_ok(), is_original);
    assert!(
        open_beat(&mixed, here.bundle()).is_err(),
        "a signature is for one kind"
    );
}

/// A signed snapshot with bytes of its payload, key id or signature changed: (position, difference) in threes.
fn patched(patches: &[u8]) {
    static GOOD: OnceLock<Signed> = OnceLock::new();
    let good = GOOD.get_or_init(|| signed(SignedKind::Snapshot, &example().encode()));
    let mut changed = good.clone();
    for patch in patches.chunks_exact(3) {
        let place = usize::from(u16::from_be_bytes([patch[0], patch[1]]));
        let length = changed.payload.len();
        match place % (length + changed.signature.len()) {
            place if place < length => changed.payload[place] ^= patch[2],
            place => changed.signature[place - length] ^= patch[2],
        }
    }
    let opened = open_snapshot(&changed, cluster().bundle());
    assert_eq!(opened.is_ok(), changed == *good, "{:?}", opened.err());
}

fn cluster() -> &'static TestCluster {
    static CLUSTER: OnceLock<TestCluster> = OnceLock::new();
    CLUSTER.get_or_init(|| TestCluster::new("iap.example.com").unwrap())
}

fn signed(kind: SignedKind, payload: &[u8]) -> Signed {
    let (key_id, signature) = cluster().sign(kind, payload).unwrap();
    Signed {
        key_id,
        payload: payload.to_vec(),
        signature,
    }
}

/// A snapshot with something in every field.
fn example() -> Snapshot {
    let service = ServiceRecord {
        facts: ServiceFacts {
            name: ServiceName::parse("db-prod").unwrap(),
            protocol: Protocol::Postgres,
            inspect: true,
            labels: BTreeMap::from([("env".to_owned(), "prod".to_owned())]),
            default_login: Some(LoginName::parse("readonly").unwrap()),
        },
        description: "Orders".to_owned(),
        contact: "#db".to_owned(),
        agents: vec![AgentId::from_uuid(ID)],
        audit: AuditMode::BestEffort,
        recording: None,
        strictness: iap_proto::Strictness {
            lock_feed_max_age: Some(std::time::Duration::from_secs(60)),
            snapshot_max_age: Some(std::time::Duration::from_secs(30)),
            grace: Some(std::time::Duration::from_secs(5)),
        },
    };
    Snapshot {
        epoch: 1,
        version: 9,
        cluster: cluster().name.clone(),
        issued: OffsetDateTime::UNIX_EPOCH,
        expires: OffsetDateTime::UNIX_EPOCH + Duration::hours(24),
        policy_version: 3,
        policy_toml: super::policy::DOCUMENT.to_owned(),
        vocabulary: Vocabulary::new(BTreeMap::from([(
            GroupName::parse("okta:engineering").unwrap(),
            2,
        )])),
        services: vec![service],
        proxies: vec![ProxyAddress {
            proxy_id: ProxyId::from_uuid(ID),
            address: "iap.example.com:443".to_owned(),
        }],
        reserved_logins: vec![LoginName::parse("root").unwrap()],
    }
}

pub(crate) fn seeds() -> Seeds {
    let beat = Beat {
        cluster: cluster().name.clone(),
        epoch: 1,
        time: OffsetDateTime::UNIX_EPOCH + Duration::days(20_000),
        snapshot_version: 9,
        lock_version: 4,
    };
    let lock = |kind: LockKind, expires_at| Lock {
        id: ID,
        kind,
        target: "alice@example.com".to_owned(),
        reason: "stolen laptop".to_owned(),
        created_by: "admin@example.com".to_owned(),
        created_at: beat.time,
        expires_at,
    };
    let locks = LockList {
        cluster: cluster().name.clone(),
        epoch: 1,
        version: 4,
        issued: beat.time,
        locks: Locks::new(vec![
            lock(LockKind::User, None),
            lock(LockKind::Session, Some(beat.time + Duration::hours(1))),
            lock(LockKind::Proxy, None),
        ]),
    };
    let small = Snapshot {
        policy_toml: "# nothing".to_owned(),
        ..example()
    };
    let foreign = signed(SignedKind::Snapshot, &small.encode());
    let named = |name: &str, kind: u8, bytes: Vec<u8>| (name.to_owned(), [vec![kind], bytes].concat());
    vec![
        named("snapshot", 0, example().encode()),
        named("snapshot-small", 0, small.encode()),
        named("beat", 1, beat.encode()),
        named("locks", 2, locks.encode()),
        named("bundle", 3, encode_bundle(&cluster().bundle().to_raw())),
        named("signed", 4, foreign.encode_to_vec()),
        named("unchanged", 5, Vec::new()),
        named("changed", 5, vec![0, 3, 1, 1, 0, 0x80]),
    ]
}
