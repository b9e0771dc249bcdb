//! Recordings are kept as long and as many as configured, and erased ones do not come back.

use std::time::Duration;

use iap_audit::{CloseReason, EventKind};
use iap_auth::config::{RecordingsConfig, WhenFull};
use iap_auth::recordings::retention::keep_to_limits;
use iap_auth::store::hash_of;
use iap_identity::SessionId;
use iap_proto::v1;
use uuid::Uuid;

use crate::erasing::{event, start};
use crate::harness::{ADMIN, Identity, Plane, refused};
use crate::ingest::Source;

pub(crate) const CAST: &[u8] = b"{\"version\":2,\"width\":80,\"height\":24}\n[0.1,\"o\",\"hello\"]\n";

/// One agent's sessions, in the order they began.
struct Recorded {
    source: Source,
    sessions: Vec<SessionId>,
}

impl Recorded {
    /// Sessions with a recording each; the last of them goes on.
    async fn send(plane: &Plane, admin: &Identity, count: usize) -> Self {
        let mut source = Source::join(plane, admin).await;
        let sessions: Vec<_> = (0..count).map(|_| SessionId::from_uuid(Uuid::now_v7())).collect();
        for (position, session) in sessions.iter().enumerate() {
            let mut records = vec![start(&mut source, *session)];
            if position + 1 < count {
                let end = event(EventKind::SessionEnd, *session)
                    .bytes(1, 2)
                    .close(CloseReason::ClientClosed, None);
                records.push(source.chain.seal(end).unwrap());
            }
            source.send(plane, source.batch(&records)).await.unwrap();
            let held = source.upload(plane, vec![whole(*session)]).await.unwrap();
            assert!(held.complete);
        }
        Self { source, sessions }
    }

    fn is_here(&self, plane: &Plane, position: usize) -> bool {
        !plane
            .context
            .recordings
            .of_session(self.sessions[position])
            .is_empty()
    }

    /// Who erased its recording and why.
    async fn erased(&self, plane: &Plane, position: usize) -> Option<(String, String)> {
        let session = self.sessions[position];
        let erased = plane.context.store.erased_recordings(session).await.unwrap();
        let (number, erasure) = erased.first()?;
        assert_eq!(*number, 1);
        Some((erasure.by.clone(), erasure.reason.clone()))
    }
}

pub(crate) fn part(session: SessionId, data: &[u8]) -> v1::RecordingPart {
    v1::RecordingPart {
        session_id: session.as_bytes().to_vec(),
        recording: 1,
        data: data.to_vec(),
        ..v1::RecordingPart::default()
    }
}

pub(crate) fn whole(session: SessionId) -> v1::RecordingPart {
    v1::RecordingPart {
        end: Some(v1::RecordingEnd {
            bytes: CAST.len() as u64,
            sha256: hash_of(CAST).to_vec(),
        }),
        ..part(session, CAST)
    }
}

fn keeping(limits: RecordingsConfig) -> impl FnOnce(&mut iap_auth::config::Config) {
    move |config| config.recordings = limits
}

#[tokio::test]
async fn an_erased_recording_is_gone_says_so_and_is_not_taken_again() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let recorded = Recorded::send(&plane, &admin, 2).await;
    let session = recorded.sessions[0];
    let request = v1::AuditEraseRequest {
        session_id: session.as_bytes().to_vec(),
        reason: "asked for".to_owned(),
        ..v1::AuditEraseRequest::default()
    };
    let only_payloads = v1::AuditEraseRequest {
        only: "payloads".to_owned(),
        ..request.clone()
    };
    let done = plane
        .admin(&admin)
        .audit_erase(only_payloads)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (done.payloads, done.recordings, recorded.is_here(&plane, 0)),
        (0, 0, true)
    );
    let done = plane
        .admin(&admin)
        .audit_erase(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!((done.recordings, done.recording_bytes), (1, CAST.len() as u64));
    assert!(!recorded.is_here(&plane, 0) && recorded.is_here(&plane, 1));

    let acts = plane.records(&admin, "audit.erased").await;
    assert_eq!(acts[0]["recordings"], serde_json::json!([1]));
    assert_eq!(acts[0]["session_id"], session.to_string());
    let asked = v1::SessionRequest {
        session_id: session.as_bytes().to_vec(),
    };
    let listed = plane
        .user(&admin)
        .recordings(asked)
        .await
        .unwrap()
        .into_inner()
        .json;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["erased"]["by"], ADMIN);
    assert_eq!(
        (&listed[0]["held_bytes"], &listed[0]["recording"]),
        (&0.into(), &1.into())
    );
    let asked = v1::RecordingRequest {
        session_id: session.as_bytes().to_vec(),
        recording: 1,
        from_micros: 0,
    };
    let refusal = plane.user(&admin).recording(asked).await.unwrap_err();
    assert!(
        refusal.message().ends_with("by admin@example.com: asked for"),
        "{}",
        refusal.message()
    );

    // Its agent is told that all of it was taken, also of one that goes on, and nothing is.
    let held = recorded
        .source
        .upload(&plane, vec![part(session, CAST)])
        .await
        .unwrap();
    assert_eq!((held.bytes, held.complete), (CAST.len() as u64, false));
    let held = recorded
        .source
        .upload(&plane, vec![whole(session)])
        .await
        .unwrap();
    assert!(held.complete && !recorded.is_here(&plane, 0));
}

#[tokio::test]
async fn what_is_older_than_configured_is_erased_and_sessions_that_go_on_keep_theirs() {
    let day = Duration::from_secs(86_400);
    let limits = RecordingsConfig {
        keep: Some(day),
        ..RecordingsConfig::default()
    };
    let plane = Plane::start_with(keeping(limits)).await;
    let admin = plane.log_in(ADMIN).await;
    let recorded = Recorded::send(&plane, &admin, 2).await;
    assert_eq!(keep_to_limits(&plane.context).await.unwrap(), 0);
    plane.offset.set(time::Duration::days(1) + time::Duration::MINUTE);
    assert_eq!(keep_to_limits(&plane.context).await.unwrap(), 1);
    assert!(!recorded.is_here(&plane, 0) && recorded.is_here(&plane, 1));
    let why = "older than recordings.keep, 86400 s".to_owned();
    assert_eq!(
        recorded.erased(&plane, 0).await,
        Some(("iap-auth".to_owned(), why.clone()))
    );
    let records = plane
        .context
        .store
        .session_records(recorded.sessions[0], 0, 100)
        .await
        .unwrap();
    let act = records.last().unwrap().rows().remove(0);
    assert_eq!(
        (&act["event"], &act["reason"]),
        (&"recording.expired".into(), &why.into())
    );
    assert_eq!(act["user"]["kind"], "auth");
    assert_eq!(keep_to_limits(&plane.context).await.unwrap(), 0, "once");
}

#[tokio::test]
async fn beyond_the_total_the_oldest_go_where_that_is_wanted() {
    let plane = Plane::start_with(keeping(RecordingsConfig {
        bytes_max: Some(2 * CAST.len() as u64),
        when_full: WhenFull::EraseOldest,
        ..RecordingsConfig::default()
    }))
    .await;
    let admin = plane.log_in(ADMIN).await;
    let recorded = Recorded::send(&plane, &admin, 4).await;
    let oldest_have_gone = async {
        while recorded.is_here(&plane, 1) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), oldest_have_gone)
        .await
        .unwrap();
    let here: Vec<bool> = (0..4)
        .map(|position| recorded.is_here(&plane, position))
        .collect();
    assert_eq!(here, [false, false, true, true]);
    let (by, why) = recorded.erased(&plane, 1).await.unwrap();
    assert_eq!(
        (by.as_str(), why.as_str()),
        ("iap-auth", "more than recordings.bytes_max in all")
    );
}

#[tokio::test]
async fn beyond_the_total_no_more_are_taken_by_default_and_those_that_are_here_stay() {
    let plane = Plane::start_with(keeping(RecordingsConfig {
        bytes_max: Some(2 * CAST.len() as u64),
        ..RecordingsConfig::default()
    }))
    .await;
    let admin = plane.log_in(ADMIN).await;
    let recorded = Recorded::send(&plane, &admin, 2).await;
    let mut more = whole(recorded.sessions[1]);
    more.recording = 2;
    let refusal = recorded.source.upload(&plane, vec![more.clone()]).await;
    assert_eq!(refused(refusal), "too_many");
    assert_eq!(keep_to_limits(&plane.context).await.unwrap(), 0);
    assert!(recorded.is_here(&plane, 0) && recorded.is_here(&plane, 1));
    assert_eq!(plane.context.recordings.counts().refused.get(), 1);
    // Once there is room again the agent is heard.
    let request = v1::AuditEraseRequest {
        session_id: recorded.sessions[0].as_bytes().to_vec(),
        ..v1::AuditEraseRequest::default()
    };
    plane.admin(&admin).audit_erase(request).await.unwrap();
    assert!(recorded.source.upload(&plane, vec![more]).await.unwrap().complete);
}
