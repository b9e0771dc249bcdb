//! What a search finds, and what it says where it finds more.

use iap_audit::{Event, EventKind};
use iap_proto::v1;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::harness::{ADMIN, Plane, refused};
use crate::ingest::Source;

#[tokio::test]
async fn a_clock_that_is_wrong_hides_no_record() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let at = |seconds: i64| {
        let time = OffsetDateTime::from_unix_timestamp(seconds).unwrap();
        Event::new(EventKind::AgentStart, time, Uuid::now_v7())
    };
    let records = [-86_400, 4_102_444_800].map(|seconds| source.chain.seal(at(seconds)).unwrap());
    source.send(&plane, source.batch(&records)).await.unwrap();
    assert_eq!(plane.records(&admin, "agent.start").await.len(), 2);
}

#[tokio::test]
async fn a_search_that_ends_at_its_limit_says_so() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let records: Vec<_> = (0..3).map(|n| source.note(&n.to_string())).collect();
    source.send(&plane, source.batch(&records)).await.unwrap();
    for (limit, expected) in [(2, (2, true)), (10, (3, false))] {
        let request = v1::AuditSearchRequest {
            expression: "event == \"agent.start\"".to_owned(),
            limit,
            ..v1::AuditSearchRequest::default()
        };
        let mut found = plane
            .admin(&admin)
            .audit_search(request)
            .await
            .unwrap()
            .into_inner();
        let (mut count, mut more) = (0, false);
        while let Some(reply) = found.message().await.unwrap() {
            count += 1;
            more |= reply.more;
        }
        assert_eq!((count, more), expected);
    }
}

#[tokio::test]
async fn who_may_not_read_the_trail_neither_searches_nor_plays() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let bob = plane.log_in("bob@example.com").await;
    let mut source = Source::join(&plane, &admin).await;
    let session = iap_identity::SessionId::from_uuid(Uuid::now_v7());
    let start = crate::erasing::start(&mut source, session);
    source.send(&plane, source.batch(&[start])).await.unwrap();
    source
        .upload(&plane, vec![crate::recordings::whole(session)])
        .await
        .unwrap();
    let search = v1::AuditSearchRequest {
        expression: "event".to_owned(),
        ..v1::AuditSearchRequest::default()
    };
    assert_eq!(refused(plane.admin(&bob).audit_search(search).await), "denied");
    let id = session.as_bytes().to_vec();
    let of_session = || v1::SessionRequest {
        session_id: id.clone(),
    };
    assert_eq!(
        refused(plane.user(&bob).recordings(of_session()).await),
        "not_found"
    );
    assert_eq!(
        refused(plane.user(&bob).session_place(of_session()).await),
        "not_found"
    );
    let recording = || v1::RecordingRequest {
        session_id: id.clone(),
        recording: 1,
        from_micros: 0,
    };
    assert_eq!(
        refused(plane.user(&bob).recording(recording()).await),
        "not_found"
    );
    plane.user(&admin).recording(recording()).await.unwrap();
    let played = plane.records(&admin, "recording.played").await;
    assert_eq!((played.len(), &played[0]["user"]["name"]), (1, &ADMIN.into()));
}
