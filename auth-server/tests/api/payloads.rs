//! What lies beside agents' records.

use iap_audit::{Event, EventKind, Payload, Record, SALT_BYTES};
use iap_identity::SessionId;
use iap_proto::v1;
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::harness::{ADMIN, Identity, Plane, refused};
use crate::ingest::{Source, record_of, session_end, session_start, stored_notes};

fn with_payload(source: &mut Source, statement: &str) -> (Record, v1::AuditPayload) {
    let fields = json!({ "statement": statement, "reason": "not the record's" });
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

/// A session of the admin, and one record of it that tells of these statements.
async fn session_with(plane: &Plane, admin: &Identity, statements: Vec<Value>) -> SessionId {
    let mut source = Source::join(plane, admin).await;
    let session = SessionId::from_uuid(Uuid::now_v7());
    let user = record_of(plane, admin, ADMIN).await;
    let start = session_start(&mut source, session, &user);
    let fields = json!({ "statements": statements });
    let payload = Payload::of(fields.as_object().unwrap(), [7; SALT_BYTES]).unwrap();
    let beside = v1::AuditPayload {
        record: 1,
        salt: payload.salt().to_vec(),
        payload: payload.bytes().to_vec(),
    };
    let event = Event::new(
        EventKind::SessionStatement,
        OffsetDateTime::now_utc(),
        Uuid::now_v7(),
    );
    let event = event
        .session(&session)
        .field("statements", statements.len())
        .payload(payload);
    let told = source.chain.seal(event).unwrap();
    let end = session_end(&mut source, session);
    let batch = v1::AuditBatch {
        payloads: vec![beside],
        ..source.batch(&[start, told, end])
    };
    assert_eq!(source.send(plane, batch).await.unwrap(), 3);
    session
}

async fn shown(plane: &Plane, identity: &Identity, session: SessionId) -> Value {
    let request = v1::SessionRequest {
        session_id: session.as_bytes().to_vec(),
    };
    let reply = plane.user(identity).session(request).await.unwrap();
    serde_json::from_str(&reply.into_inner().json).unwrap()
}

#[tokio::test]
async fn each_statement_of_a_record_is_found_and_shown_by_itself() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let statements = (1..=4).map(|n| json!({ "statement": format!("SELECT {n}"), "rows": n }));
    let session = session_with(&plane, &admin, statements.collect()).await;
    let expression = "statement.contains(\"SELECT\") && rows >= 2";
    for (limit, expected) in [(0, vec![2, 3, 4]), (2, vec![3, 4])] {
        let found = plane.search(&admin, expression, limit).await;
        let found: Vec<_> = found.iter().map(|row| row["statement_number"].clone()).collect();
        assert_eq!(found, expected, "the newest, the oldest first");
    }
    let shown = shown(&plane, &admin, session).await;
    let rows = shown["records"].as_array().unwrap();
    let events: Vec<_> = rows.iter().map(|row| row["event"].as_str().unwrap()).collect();
    let statement = "session.statement";
    assert_eq!(
        events,
        [
            "session.start",
            statement,
            statement,
            statement,
            statement,
            "session.end"
        ]
    );
    assert_eq!(rows[4]["statement"], "SELECT 4");
    assert_eq!(shown["left_out"], 0);
}

#[tokio::test]
async fn of_a_session_with_endless_statements_the_first_are_shown_and_its_end() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let statements = (0..15_000).map(|n| json!({ "rows": n }));
    let session = session_with(&plane, &admin, statements.collect()).await;
    let shown = shown(&plane, &admin, session).await;
    let rows = shown["records"].as_array().unwrap();
    assert_eq!(rows.last().unwrap()["event"], "session.end");
    let left_out = shown["left_out"].as_u64().unwrap();
    assert_eq!(rows.len() as u64 - 2 + left_out, 15_000);
    assert_eq!(rows[rows.len() - 2]["rows"], 14_999 - left_out, "without a hole");
}
