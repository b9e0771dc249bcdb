//! An erasing that is cut off: what is on record is done, whoever asked for it left and whatever the server was about to do.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use iap_audit::{EventKind, Payload, SALT_BYTES};
use iap_auth::audit::erase::erase;
use iap_auth::rpc::UserCaller;
use iap_auth::store::{Erasing, Erasure, PayloadsOf};
use iap_identity::{Class, ClassSet, SessionId, VerifiedPeer};
use iap_policy::{UserFacts, Verb};
use iap_proto::v1;
use serde_json::json;
use uuid::Uuid;

use crate::erasing::{event, start};
use crate::harness::{ADMIN, Identity, Plane};
use crate::ingest::Source;
use crate::recordings::{part, whole};

const PATIENCE: Duration = Duration::from_secs(30);

/// A future that is dropped once it was polled so often.
struct CutOff<F> {
    inner: Pin<Box<F>>,
    polls_left: usize,
}

impl<F: Future> Future for CutOff<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<F::Output>> {
        let Some(left) = self.polls_left.checked_sub(1) else {
            return Poll::Ready(None);
        };
        self.polls_left = left;
        self.inner.as_mut().poll(context).map(Some)
    }
}

/// Whoever holds the certificate, as the gate would let them in.
fn caller(plane: &Plane, identity: &Identity) -> UserCaller {
    let (bundle, now) = (&plane.context.authority.bundle, plane.context.clock.now());
    let users = ClassSet::of(&[Class::User]);
    let verified = iap_identity::verify_client(&identity.chain, users, bundle, now).unwrap();
    let VerifiedPeer::User(peer) = verified else {
        panic!("no user");
    };
    UserCaller {
        facts: UserFacts::from_peer(&peer),
        peer,
        verbs: BTreeSet::from([Verb::AuditErase]),
        is_bootstrap_admin: false,
    }
}

/// A session with a payload and a recording.
async fn session(plane: &Plane, source: &mut Source) -> SessionId {
    let session = SessionId::from_uuid(Uuid::now_v7());
    let fields = json!({ "command": "uname" });
    let payload = Payload::of(fields.as_object().unwrap(), [7; SALT_BYTES]).unwrap();
    let beside = v1::AuditPayload {
        record: 1,
        salt: payload.salt().to_vec(),
        payload: payload.bytes().to_vec(),
    };
    let command = event(EventKind::SessionCommand, session).payload(payload);
    let records = [start(source, session), source.chain.seal(command).unwrap()];
    let batch = v1::AuditBatch {
        payloads: vec![beside],
        ..source.batch(&records)
    };
    source.send(plane, batch).await.unwrap();
    assert!(source.upload(plane, vec![whole(session)]).await.unwrap().complete);
    session
}

/// (whether it is on record that it was erased, payloads that are left, recordings that are left)
async fn state(plane: &Plane, session: SessionId) -> (bool, u64, usize) {
    let store = &plane.context.store;
    let acts = store
        .session_records_of_kind(session, "audit.erased", 10)
        .await
        .unwrap();
    let payloads = store.payloads(&PayloadsOf::Session(session)).await.unwrap();
    let recordings = plane.context.recordings.of_session(session);
    (!acts.is_empty(), payloads.count, recordings.len())
}

async fn settled(plane: &Plane, session: SessionId, after: usize) {
    let settling = async {
        while !matches!(state(plane, session).await, (true, 0, 0) | (false, 1, 1)) {
            tokio::task::yield_now().await;
        }
    };
    if tokio::time::timeout(PATIENCE, settling).await.is_err() {
        panic!("cut off after {after}: {:?}", state(plane, session).await);
    }
}

#[tokio::test]
async fn whoever_asks_and_leaves_has_erased_what_is_on_record_or_nothing() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let caller = caller(&plane, &admin);
    let mut source = Source::join(&plane, &admin).await;
    let mut sessions = Vec::new();
    loop {
        let session = session(&plane, &mut source).await;
        let request = v1::AuditEraseRequest {
            session_id: session.as_bytes().to_vec(),
            ..v1::AuditEraseRequest::default()
        };
        sessions.push(session);
        let erasing = CutOff {
            inner: Box::pin(erase(&plane.context, &caller, request)),
            polls_left: sessions.len(),
        };
        let whole = erasing.await;
        settled(&plane, session, sessions.len()).await;
        if let Some(done) = whole {
            assert_eq!(done.unwrap().payloads, 1);
            break;
        }
    }
    assert!(sessions.len() > 3, "it was cut off somewhere");
    for (after, session) in sessions.into_iter().enumerate() {
        settled(&plane, session, after + 1).await;
    }
}

#[tokio::test]
async fn a_session_of_more_recordings_than_one_call_takes_is_erased_by_calling_again() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let session = session(&plane, &mut source).await;
    // Told, and not here yet.
    let told = |number: u32| event(EventKind::SessionRecording, session).field("recording", number);
    for numbers in [2..702_u32, 702..1402] {
        let records: Vec<_> = numbers
            .map(|number| source.chain.seal(told(number)).unwrap())
            .collect();
        source.send(&plane, source.batch(&records)).await.unwrap();
    }
    let request = v1::AuditEraseRequest {
        session_id: session.as_bytes().to_vec(),
        only: "recordings".to_owned(),
        ..v1::AuditEraseRequest::default()
    };
    let mut taken = Vec::new();
    loop {
        let reply = plane
            .admin(&admin)
            .audit_erase(request.clone())
            .await
            .unwrap()
            .into_inner();
        taken.push(reply.recordings);
        if reply.recordings_left == 0 {
            break;
        }
    }
    assert_eq!(taken, [1024, 377]);
    let mut late = whole(session);
    late.recording = 1401;
    assert!(source.upload(&plane, vec![late]).await.unwrap().complete);
    assert_eq!(plane.context.recordings.of_session(session), []);
}

#[tokio::test]
async fn a_session_of_very_many_recordings_does_not_stop_others_from_being_erased() {
    let plane = Plane::start_with(|config| {
        config.recordings.keep = Some(Duration::from_secs(86_400));
    })
    .await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let (many, few) = (
        session(&plane, &mut source).await,
        session(&plane, &mut source).await,
    );
    for session in [many, few] {
        let end = event(EventKind::SessionEnd, session)
            .bytes(1, 2)
            .close(iap_audit::CloseReason::ClientClosed, None);
        let end = source.chain.seal(end).unwrap();
        source.send(&plane, source.batch(&[end])).await.unwrap();
    }
    let folder = plane
        .context
        .config
        .data_dir
        .join("recordings")
        .join(many.to_string());
    for number in 1_000_000_000_u32..1_000_030_000 {
        std::fs::File::create(folder.join(format!("{number}.cast"))).unwrap();
    }
    plane.offset.set(time::Duration::days(2));
    iap_auth::recordings::retention::keep_to_limits(&plane.context)
        .await
        .unwrap();
    for session in [many, few] {
        assert_eq!(plane.context.recordings.of_session(session).len(), 0);
    }
}

/// Whoever reads slowly holds no more than what is theirs.
#[test]
fn readers_that_do_not_read_keep_nobody_from_recording() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let plane = Plane::start().await;
        let admin = plane.log_in(ADMIN).await;
        let mut source = Source::join(&plane, &admin).await;
        let session = session(&plane, &mut source).await;
        let data = vec![b'x'; 256 * 1024];
        let parts = (0..16_u64).map(|n| v1::RecordingPart {
            recording: 2,
            offset: n * data.len() as u64,
            ..part(session, &data)
        });
        source.upload(&plane, parts.collect()).await.unwrap();
        let mut users = plane.user(&admin);
        let mut stalled = Vec::new();
        for _ in 0..16 {
            let asked = v1::RecordingRequest {
                session_id: session.as_bytes().to_vec(),
                recording: 2,
                from_micros: 0,
            };
            stalled.push(
                tokio::time::timeout(PATIENCE, users.recording(asked))
                    .await
                    .unwrap()
                    .unwrap(),
            );
        }
        let mut other = whole(session);
        other.recording = 3;
        let held = tokio::time::timeout(PATIENCE, source.upload(&plane, vec![other])).await;
        assert!(held.unwrap().unwrap().complete);
        // They may still read on; those that share their connection take its window.
        let mut slow = stalled.remove(0).into_inner();
        drop(stalled);
        let reading = async {
            let mut read = 0;
            while let Some(part) = slow.message().await.unwrap() {
                read += part.data.len();
            }
            read
        };
        let read = tokio::time::timeout(PATIENCE, reading).await.unwrap();
        assert_eq!(read, 16 * data.len());
    });
}

#[tokio::test]
async fn what_a_killed_server_had_put_on_record_is_gone_after_its_next_start() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let session = session(&plane, &mut source).await;
    let mut second = whole(session);
    second.recording = 2;
    source.upload(&plane, vec![second]).await.unwrap();
    // Killed between the record and the removal of the file.
    let places = plane
        .context
        .store
        .payload_places(&PayloadsOf::Session(session), 10)
        .await
        .unwrap();
    let erasing = Erasing {
        erasure: Erasure {
            id: Uuid::now_v7(),
            at: plane.context.clock.now(),
            by: ADMIN.to_owned(),
            reason: String::new(),
        },
        payloads: places.iter().map(|place| place.seq).collect(),
        recordings: Some((session, vec![1])),
    };
    let audit = &plane.context.audit;
    let act = audit.event(EventKind::AuditErased).unwrap().session(&session);
    audit.record_erasing(act, erasing).await.unwrap();
    assert_eq!(state(&plane, session).await, (true, 0, 2));
    let plane = plane.restart().await;
    let left = async {
        while state(&plane, session).await != (true, 0, 1) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, left).await.unwrap();
}
