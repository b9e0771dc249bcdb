//! The state of a session in bytes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
use iap_identity::{AgentId, ConnectionId, ServiceName, SessionId, verify_client};
use iap_policy::Protocol;
use iap_runtime::handover::{DescriptorStore, Keeper, Parcel};
use iap_runtime::pump::Side;
use iap_testkit::{Credential, TestCluster};
use iap_tunnel::resume::{Endpoint, Ticket, WINDOW_BYTES_MAX};
use time::OffsetDateTime;
use uuid::Uuid;

use super::peer::Who;
use super::state::{Facts, SessionState, StateError, encode_head};
use super::{Handover, label_of, session_of};
use crate::session::caller::session_classes;
use crate::session::{Caller, Through};

fn who(cluster: &TestCluster, credential: &Credential) -> Who {
    let now = OffsetDateTime::now_utc();
    let bundle = cluster.bundle();
    let peer = verify_client(&credential.chain, session_classes(), bundle, now).unwrap();
    let caller = Caller::of(peer).unwrap();
    let through = Through {
        proxy: iap_identity::ProxyId::from_uuid(Uuid::from_u128(3)),
        serial: "0a0b".into(),
    };
    let client = "203.0.113.7:4711".parse().unwrap();
    let who = Who::of(&caller, client, &through).unwrap();
    let presence = who.clone().presence().unwrap();
    assert_eq!(
        (presence.caller, presence.client, presence.through),
        (caller, client, through)
    );
    who
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_sessions_take_few_places_in_the_store() {
    const SESSIONS: usize = 450;
    let folder = tempfile::tempdir().unwrap();
    let keeper = Keeper::listen(&folder.path().join("notify")).unwrap();
    let store = DescriptorStore::at(keeper.path().to_owned().into(), 20).unwrap();
    let handover = Handover::through(store.unwrap());
    let leaving = (0..SESSIONS).map(|_| {
        let session = SessionId::from_uuid(Uuid::now_v7());
        let parcel = Parcel::of(&label_of(session), &[]).unwrap();
        handover.leave(session, parcel)
    });
    for left in futures_util::future::join_all(leaving).await {
        left.unwrap();
    }
    assert!(handover.settled().await.is_none());
    let kept = keeper.kept().unwrap();
    assert!((3..=20).contains(&kept.len()), "{}", kept.len());
    let mut sessions = std::collections::HashSet::new();
    for (name, bundle) in kept {
        let content = Parcel::from(bundle).look().unwrap().unwrap();
        assert_eq!(content.label, name);
        for parcel in content.descriptors {
            let parcel = Parcel::from(parcel).look().unwrap().unwrap();
            assert!(sessions.insert(session_of(&parcel.label).unwrap()));
        }
    }
    assert_eq!(sessions.len(), SESSIONS);
}

fn facts() -> Facts {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let user = cluster.user("alice@example.com", &["engineering"]).unwrap();
    let alice = who(&cluster, &user);
    let mut endpoint = Endpoint::new(65_536);
    endpoint.write(b"kept");
    Facts {
        agent: AgentId::from_uuid(Uuid::from_u128(1)),
        agent_version: "0.0.1".to_owned(),
        session_id: SessionId::from_uuid(Uuid::from_u128(2)),
        connection_id: ConnectionId::from_uuid(Uuid::from_u128(4)),
        connect_id: None,
        service: ServiceName::parse("echo").unwrap(),
        protocol: Protocol::Postgres,
        asked_login: None,
        asked_database: Some("app".to_owned()),
        started: OffsetDateTime::now_utc(),
        began: alice.clone(),
        last: alice,
        resumes: 3,
        ticket: Ticket::from_random([7; 32]),
        next_ticket: Some(Ticket::from_random([8; 32])),
        patience_seconds: 300,
        deadline_milliseconds: 12_345,
        bytes_in: 5,
        bytes_out: 6,
        standing: endpoint.standing().unwrap().0,
        inward_ended: true,
        outward_ended: false,
        first_closed: Some(Side::Client),
        rested_milliseconds: 9,
        boundaries: Some(iap_tunnel::Boundaries::new()),
    }
}

fn encoded(facts: &Facts) -> Vec<u8> {
    let head = encode_head(facts, [4, 2, 3]).unwrap();
    [&head, &b"kept"[..], b"in", b"out"].concat()
}

#[test]
fn a_state_is_read_back_as_it_was_written() {
    let facts = facts();
    let state = SessionState::decode(&encoded(&facts)).unwrap();
    assert_eq!(state.facts, facts);
    assert_eq!(
        (&state.kept[..], &state.inward[..], &state.outward[..]),
        (&b"kept"[..], &b"in"[..], &b"out"[..])
    );
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let bot = who(&cluster, &cluster.bot("backup").unwrap());
    let facts = Facts {
        began: bot.clone(),
        last: bot,
        ..facts
    };
    assert_eq!(SessionState::decode(&encoded(&facts)).unwrap().facts, facts);
}

#[test]
fn a_state_that_is_cut_anywhere_or_goes_on_is_refused() {
    let whole = encoded(&facts());
    for length in 0..whole.len() {
        assert!(SessionState::decode(&whole[..length]).is_err(), "{length} bytes");
    }
    let more = [&whole[..], b"x"].concat();
    assert!(matches!(
        SessionState::decode(&more),
        Err(StateError::Length { .. })
    ));
}

#[test]
fn a_state_of_another_version_or_kind_is_refused() {
    let mut bytes = encoded(&facts());
    bytes[4..6].copy_from_slice(&2u16.to_be_bytes());
    assert_eq!(SessionState::decode(&bytes), Err(StateError::Newer(2)));
    bytes[4..6].copy_from_slice(&0u16.to_be_bytes());
    assert_eq!(SessionState::decode(&bytes), Err(StateError::Foreign));
    bytes[0] = b'x';
    assert_eq!(SessionState::decode(&bytes), Err(StateError::Foreign));
}

#[test]
fn lengths_that_no_session_has_are_refused_before_anything_is_made_of_them() {
    let whole = encoded(&facts());
    for section in 0..4 {
        for length in [u32::MAX, u32::try_from(WINDOW_BYTES_MAX).unwrap() + 1] {
            let mut bytes = whole.clone();
            bytes[6 + 4 * section..10 + 4 * section].copy_from_slice(&length.to_be_bytes());
            assert_eq!(SessionState::decode(&bytes), Err(StateError::TooLong));
        }
        // A length that is possible and not the right one.
        let mut bytes = whole.clone();
        bytes[9 + 4 * section] ^= 1;
        assert!(SessionState::decode(&bytes).is_err(), "section {section}");
    }
    assert_eq!(
        encode_head(&facts(), [WINDOW_BYTES_MAX + 1, 0, 0]),
        Err(StateError::TooLong)
    );
}

#[test]
fn a_state_that_contradicts_itself_is_refused() {
    let spoilt: [fn(&mut Facts); 4] = [
        |facts| facts.first_closed = None,
        |facts| facts.inward_ended = false,
        |facts| {
            facts.boundaries = Some(iap_tunnel::Boundaries::Head {
                bytes: [0; 5],
                known: usize::MAX,
            });
        },
        |facts| facts.boundaries = Some(iap_tunnel::Boundaries::Body { left: 0 }),
    ];
    for spoil in spoilt {
        let mut facts = facts();
        spoil(&mut facts);
        let decoded = SessionState::decode(&encoded(&facts));
        assert!(
            matches!(decoded, Err(StateError::Contradiction(_))),
            "{decoded:?}"
        );
    }
}
