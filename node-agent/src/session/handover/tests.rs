//! The state of a session in bytes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
use std::os::fd::AsFd as _;
use std::sync::Arc;

use iap_identity::{AgentId, ConnectionId, ServiceName, SessionId, verify_client};
use iap_policy::Protocol;
use iap_runtime::handover::{DescriptorStore, Keeper, KeptStream, Left, Parcel, sealed};
use iap_runtime::pump::Side;
use iap_testkit::{Credential, TestCluster};
use iap_tunnel::resume::{Endpoint, Ticket};
use serde_json::json;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use super::handed::{Handed, HandedSession};
use super::keeping::{Keeping, Returned, ToKeep};
use super::peer::Who;
use super::state::{Facts, KEPT_BYTES_MAX, SessionState, StateError, encode_head};
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
        baseline: None,
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
        for length in [u32::MAX, u32::try_from(KEPT_BYTES_MAX).unwrap() + 1] {
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
        encode_head(&facts(), [KEPT_BYTES_MAX + 1, 0, 0]),
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

/// A session that begins, of which nothing was sent yet.
fn beginning() -> Facts {
    Facts {
        standing: Endpoint::new(65_536).standing().unwrap().0,
        inward_ended: false,
        first_closed: None,
        bytes_in: 0,
        bytes_out: 0,
        ..facts()
    }
}

/// A session that is kept for the case that its agent is killed.
struct Kept {
    keeper: Keeper,
    handover: Handover,
    keeping: Arc<Keeping>,
    stream: KeptStream,
    backend: TcpStream,
    facts: Facts,
    _folder: tempfile::TempDir,
}

impl Kept {
    async fn begin() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keeper = Keeper::listen(&folder.path().join("notify")).unwrap();
        let store = DescriptorStore::at(keeper.path().to_owned().into(), 100).unwrap();
        let handover = Handover::through(store.unwrap()).surviving_kill(true);
        assert!(handover.survives_kill());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut backend, _) = listener.accept().await.unwrap();
        // The backend was told who comes; that is none of the session's bytes.
        near.write_all(b"introduction").await.unwrap();
        backend.read_exact(&mut [0; 12]).await.unwrap();
        let facts = beginning();
        let to_keep = ToKeep {
            facts: facts.clone(),
            kept: [&[], &[]],
            outward: &[],
            inward_bytes: 0,
        };
        let keeping = handover.keep(to_keep, &near).await.unwrap();
        let stream = keeping.stream(near).unwrap();
        handover.stored().await.unwrap();
        Self {
            keeper,
            handover,
            keeping,
            stream,
            backend,
            facts,
            _folder: folder,
        }
    }

    fn left(&self) -> Vec<Left> {
        let kept = self.keeper.kept().unwrap().into_iter();
        kept.map(|(name, parcel)| Left {
            name,
            parcel: parcel.into(),
        })
        .collect()
    }

    /// As the next agent finds it, and the names of what it does not need.
    fn found(&self, left: Vec<Left>) -> (Option<HandedSession>, Vec<String>) {
        let mut handed = Handed::look(left, self.facts.agent);
        let began = self.facts.began.clone().presence().unwrap();
        let start = json!({
            "session_id": self.facts.session_id.to_string(),
            "connection_id": self.facts.connection_id.to_string(),
            "service": self.facts.service.as_str(),
            "user": {"id": began.caller.peer().principal()},
        });
        let _ = handed.claims(start.as_object().unwrap());
        let (mut sessions, done_with) = handed.into_claimed();
        assert!(sessions.len() <= 1);
        (sessions.pop(), done_with)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_agent_was_killed_is_found_where_the_kernel_says_it_stood() {
    let mut kept = Kept::begin().await;
    kept.stream.write_all(b"question").await.unwrap();
    kept.backend.write_all(b"a long answer").await.unwrap();
    kept.stream.read_exact(&mut [0; 6]).await.unwrap();
    let mut presence = kept.facts.last.clone().presence().unwrap();
    presence.client = "198.51.100.9:9".parse().unwrap();
    let tickets = [9, 10].map(|byte| Ticket::from_random([byte; 32]));
    let returned = Returned {
        presence: presence.clone(),
        tickets: (tickets[0], Some(tickets[1])),
        resumes: 4,
    };
    kept.keeping.note(|| returned).unwrap();
    let found = kept.found(kept.left()).0.unwrap();
    assert_eq!(found.cause(), "killed");
    assert_eq!(found.last.client, presence.client);
    let facts = &found.state.facts;
    assert_eq!(
        (facts.ticket, facts.next_ticket, facts.resumes),
        (tickets[0], Some(tickets[1]), 4)
    );
    assert_eq!((facts.bytes_in, facts.bytes_out), (8, 6));
    assert_eq!(
        (&found.state.kept[..], &found.state.outward[..]),
        (&b"a long"[..], &b""[..])
    );
    let endpoint = Endpoint::restore(&facts.standing, found.state.kept.clone()).unwrap();
    assert_eq!(endpoint.position(), 8);

    // Another process goes on, and is killed too, once each side has closed.
    kept.stream.read_exact(&mut [0; 7]).await.unwrap();
    kept.stream.shutdown().await.unwrap();
    let facts = kept.found(kept.left()).0.unwrap().state.facts;
    assert_eq!((facts.inward_ended, facts.outward_ended), (true, false));
    assert_eq!((facts.standing.incoming.acknowledged, facts.bytes_out), (9, 13));

    // Nobody finds it once it is over.
    Arc::clone(&kept.keeping).over().await;
    kept.handover.stored().await.unwrap();
    assert!(kept.left().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_task_ended_early_is_not_gone_on_with_and_its_backend_hears_so() {
    let Kept {
        keeper,
        keeping,
        stream,
        mut backend,
        ..
    } = Kept::begin().await;
    drop((keeping, stream));
    let [(_, parcel)] = <[_; 1]>::try_from(keeper.kept().unwrap()).unwrap();
    assert!(Parcel::from(parcel).look().unwrap().is_none());
    assert_eq!(backend.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_session_was_left_as_it_stood_still_that_counts() {
    let kept = Kept::begin().await;
    let head = encode_head(&kept.facts, [0, 2, 0]).unwrap();
    let state = sealed("test", &[&head, b"in"]).unwrap();
    let parcel = Parcel::of(
        &label_of(kept.facts.session_id),
        &[kept.stream.as_fd(), state.as_fd()],
    )
    .unwrap();
    kept.handover.leave(kept.facts.session_id, parcel).await.unwrap();
    kept.handover.stored().await.unwrap();
    assert_eq!(kept.left().len(), 2);
    for is_reversed in [false, true] {
        let mut left = kept.left();
        if is_reversed {
            left.reverse();
        }
        let (found, done_with) = kept.found(left);
        let found = found.unwrap();
        assert_eq!((found.cause(), &found.state.inward[..]), ("stopped", &b"in"[..]));
        assert!(
            done_with.len() == 1 && done_with[0].starts_with("live-"),
            "{done_with:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_backend_is_gone_is_lost_with_its_agent() {
    let mut kept = Kept::begin().await;
    kept.stream.shutdown().await.unwrap();
    kept.backend.shutdown().await.unwrap();
    // Closed from both sides: nobody counts any more.
    assert!(kept.found(kept.left()).0.is_none());
    let kept = Kept::begin().await;
    kept.backend.set_zero_linger().unwrap();
    let left = kept.left();
    let (stream, keeper) = (kept.stream, kept.keeper);
    drop(kept.backend);
    assert!(Handed::look(left, kept.facts.agent).into_claimed().0.is_empty());
    drop((stream, keeper));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backend_has_not_and_its_client_was_told_of_is_not_kept() {
    let kept = Kept::begin().await;
    let mut facts = beginning();
    (
        facts.standing.incoming.taken,
        facts.standing.incoming.acknowledged,
    ) = (10, 9);
    for (inward_bytes, is_kept) in [(2, false), (1, true)] {
        let to_keep = ToKeep {
            facts: facts.clone(),
            kept: [b"not ", b"acknowledged"],
            outward: b" nor taken",
            inward_bytes,
        };
        let keeping = kept.handover.keep(to_keep, &kept.stream).await;
        assert_eq!(keeping.is_ok(), is_kept, "{inward_bytes}");
    }
    let (unix, _) = tokio::net::UnixStream::pair().unwrap();
    let to_keep = ToKeep {
        facts,
        kept: [&[], &[]],
        outward: &[],
        inward_bytes: 0,
    };
    assert!(kept.handover.keep(to_keep, &unix).await.is_err());
}
