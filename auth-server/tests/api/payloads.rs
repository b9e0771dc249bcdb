//! What lies beside agents' records.

use iap_audit::{Event, EventKind, Payload, Record, SALT_BYTES};
use iap_proto::v1;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::harness::{ADMIN, Plane, refused};
use crate::ingest::{Source, stored_notes};

fn with_payload(source: &mut Source, statement: &str) -> (Record, v1::AuditPayload) {
    let fields = serde_json::json!({ "statement": statement, "reason": "not the record's" });
    let payload = Payload::of(fields.as_object().unwrap(), [7; SALT_BYTES]).unwrap();
    let beside = v1::AuditPayload {
        record: 0,
        salt: payload.salt().to_vec(),
        payload: payload.bytes().to_vec(),
    };
    let event = Event::new(EventKind::AgentStart, OffsetDateTime::now_utc(), Uuid::now_v7());
    let event = event.reason("the record's").payload(payload);
    (source.chain.seal(event).unwrap(), beside)
}

#[tokio::test]
async fn a_payload_lies_beside_its_record_and_is_found_with_it() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let (record, beside) = with_payload(&mut source, "DELETE FROM t");
    let batch = v1::AuditBatch {
        payloads: vec![beside],
        ..source.batch(std::slice::from_ref(&record))
    };
    assert_eq!(source.send(&plane, batch.clone()).await.unwrap(), 1);
    assert_eq!(source.send(&plane, batch).await.unwrap(), 1, "sent again");
    let found = plane.records(&admin, "agent.start").await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["statement"], "DELETE FROM t");
    assert_eq!(found[0]["reason"], "the record's");
    let newest = plane
        .context
        .store
        .newest_record(*source.id.as_uuid())
        .await
        .unwrap();
    let chained = iap_auth::store::hash_of(&record.bytes);
    assert_eq!(newest, Some((1, chained)), "the chain is of the record alone");
    assert!(!String::from_utf8_lossy(&record.bytes).contains("DELETE"));
}

#[tokio::test]
async fn a_payload_that_is_not_its_records_refuses_the_batch() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let (record, beside) = with_payload(&mut source, "DELETE FROM t");
    let other = v1::AuditPayload {
        payload: br#"{"statement":"SELECT 1"}"#.to_vec(),
        ..beside.clone()
    };
    let salted = v1::AuditPayload {
        salt: vec![8; 32],
        ..beside.clone()
    };
    let elsewhere = v1::AuditPayload {
        record: 1,
        ..beside.clone()
    };
    for payloads in [
        vec![other],
        vec![salted],
        vec![elsewhere],
        vec![beside.clone(), beside],
    ] {
        let batch = v1::AuditBatch {
            payloads,
            ..source.batch(std::slice::from_ref(&record))
        };
        assert_eq!(refused(source.send(&plane, batch).await), "invalid");
    }
    assert!(stored_notes(&plane, &admin).await.is_empty());
}
