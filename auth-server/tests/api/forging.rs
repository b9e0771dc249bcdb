//! What a joined agent that lies cannot do to the trail, to others' sessions and to what was recorded.

use iap_audit::{Chain, Event, EventKind, Payload, Record, SALT_BYTES};
use iap_auth::store::hash_of;
use iap_identity::SessionId;
use iap_proto::v1;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::erasing::{event, start};
use crate::harness::{ADMIN, Identity, Plane, refused};
use crate::ingest::{Source, alarms, stored_notes};
use crate::recordings::{CAST, part, whole};

/// A record of the session with these fields beside it.
async fn send_with_payload(plane: &Plane, source: &mut Source, event: Event, fields: &Value) {
    let payload = Payload::of(fields.as_object().unwrap(), [7; SALT_BYTES]).unwrap();
    let beside = v1::AuditPayload {
        record: 0,
        salt: payload.salt().to_vec(),
        payload: payload.bytes().to_vec(),
    };
    let record = source.chain.seal(event.payload(payload)).unwrap();
    let batch = v1::AuditBatch {
        payloads: vec![beside],
        ..source.batch(&[record])
    };
    source.send(plane, batch).await.unwrap();
}

/// A session of that source on record.
async fn begun(plane: &Plane, source: &mut Source) -> SessionId {
    let session = SessionId::from_uuid(Uuid::now_v7());
    let start = start(source, session);
    source.send(plane, source.batch(&[start])).await.unwrap();
    session
}

async fn shown(plane: &Plane, admin: &Identity, session: SessionId) -> Value {
    let request = v1::SessionRequest {
        session_id: session.as_bytes().to_vec(),
    };
    let reply = plane.user(admin).session(request).await.unwrap();
    serde_json::from_str(&reply.into_inner().json).unwrap()
}

async fn listed(plane: &Plane, admin: &Identity, session: SessionId) -> Value {
    let request = v1::SessionRequest {
        session_id: session.as_bytes().to_vec(),
    };
    let reply = plane.user(admin).recordings(request).await.unwrap();
    serde_json::from_str(&reply.into_inner().json).unwrap()
}

fn told(source: &mut Source, session: SessionId, sha256: &str) -> Record {
    let event = event(EventKind::SessionRecording, session)
        .field("recording", 1)
        .field("recording_bytes", CAST.len())
        .field("recording_sha256", sha256);
    source.chain.seal(event).unwrap()
}

#[tokio::test]
async fn a_record_is_found_though_the_list_beside_it_is_empty() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let session = begun(&plane, &mut source).await;
    let statement = event(EventKind::SessionStatement, session);
    send_with_payload(&plane, &mut source, statement, &json!({ "statements": [] })).await;
    assert_eq!(plane.records(&admin, "session.statement").await.len(), 1);
    let shown = shown(&plane, &admin, session).await;
    assert_eq!(shown["records"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn an_agent_cannot_say_that_somebody_erased_what_it_withholds() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let session = begun(&plane, &mut source).await;
    let erased = json!({ "by": ADMIN, "time": "2026-01-01T00:00:00.000Z", "reason": "asked for" });
    let statement = event(EventKind::SessionStatement, session);
    let beside = json!({ "payload_erased": erased });
    send_with_payload(&plane, &mut source, statement.clone(), &beside).await;
    let found = plane.records(&admin, "session.statement").await;
    assert_eq!((found.len(), &found[0]["payload_erased"]), (1, &Value::Null));

    let forged = source
        .chain
        .seal(statement.field("payload_erased", erased))
        .unwrap();
    let batch = source.batch(&[forged]);
    assert_eq!(refused(source.send(&plane, batch).await), "invalid");
    assert_eq!(plane.records(&admin, "session.statement").await.len(), 1);
}

#[tokio::test]
async fn a_payload_of_another_length_than_its_record_says_is_refused() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let payload = Payload::of(&Map::new(), [7; SALT_BYTES]).unwrap();
    let event = Event::new(EventKind::AgentStart, OffsetDateTime::now_utc(), Uuid::now_v7());
    let event = event.payload(payload.clone()).field("payload_bytes", 3);
    let record = source.chain.seal(event).unwrap();
    let beside = v1::AuditPayload {
        record: 0,
        salt: payload.salt().to_vec(),
        payload: payload.bytes().to_vec(),
    };
    let batch = v1::AuditBatch {
        payloads: vec![beside],
        ..source.batch(&[record])
    };
    assert_eq!(refused(source.send(&plane, batch).await), "invalid");
}

#[tokio::test]
async fn an_agent_cannot_put_on_record_what_only_the_auth_server_does() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let now = OffsetDateTime::now_utc();
    for kind in [
        EventKind::AuditErased,
        EventKind::LoginSuccess,
        EventKind::LockAdded,
    ] {
        source.chain = Chain::new(source.id);
        let forged = source.chain.seal(Event::new(kind, now, Uuid::now_v7())).unwrap();
        let batch = source.batch(&[forged]);
        assert_eq!(refused(source.send(&plane, batch).await), "invalid", "{kind:?}");
        assert!(plane.records(&admin, kind.as_str()).await.is_empty());
    }
    assert_eq!(alarms(&plane, &admin).await.len(), 3);
    source.chain = Chain::new(source.id);
    let honest = source.note("one");
    assert_eq!(source.send(&plane, source.batch(&[honest])).await.unwrap(), 1);
}

#[tokio::test]
async fn what_fills_a_gap_and_does_not_fit_it_is_an_alarm() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let records: Vec<Record> = ["one", "two", "three"].map(|note| source.note(note)).into();
    source.send(&plane, source.batch(&records[..1])).await.unwrap();
    source.send(&plane, source.batch(&records[2..])).await.unwrap();
    assert_eq!(alarms(&plane, &admin).await, ["records 2 to 2 never arrived"]);
    // It follows the first as it should, and the third does not follow it.
    source.chain = Chain::resume(source.id, 1, &records[0].hash_hex);
    let forged = source.note("other");
    for _ in 0..2 {
        let batch = source.batch(std::slice::from_ref(&forged));
        assert_eq!(source.send(&plane, batch).await.unwrap(), 2);
    }
    let why = "record 3 does not follow the stored record before it";
    assert_eq!(
        alarms(&plane, &admin).await,
        ["records 2 to 2 never arrived", why]
    );
    assert_eq!(stored_notes(&plane, &admin).await.len(), 3);
}

#[tokio::test]
async fn another_agents_records_do_not_count_as_the_sessions() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let mut liar = Source::join(&plane, &admin).await;
    let session = begun(&plane, &mut source).await;
    let forged = [
        told(&mut liar, session, &"ab".repeat(32)),
        liar.chain
            .seal(event(EventKind::SessionCommand, session))
            .unwrap(),
    ];
    liar.send(&plane, liar.batch(&forged)).await.unwrap();
    assert_eq!(listed(&plane, &admin, session).await, json!([]));
    let sha256 = iap_identity::hex(&hash_of(CAST));
    let honest = told(&mut source, session, &sha256);
    source.send(&plane, source.batch(&[honest])).await.unwrap();
    let listed = listed(&plane, &admin, session).await;
    assert_eq!(listed[0]["record"]["recording_sha256"], sha256);
    let shown = shown(&plane, &admin, session).await;
    let events: Vec<_> = shown["records"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["event"])
        .collect();
    assert_eq!(events, ["session.start", "session.recording"]);
    let all = plane
        .search(&admin, &format!("session_id == \"{session}\""), 0)
        .await;
    assert_eq!(all.len(), 4, "a search finds them all");
}

#[tokio::test]
async fn a_recording_that_came_whole_stays_as_it_is() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let session = begun(&plane, &mut source).await;
    assert!(
        source
            .upload(&plane, vec![whole(session)])
            .await
            .unwrap()
            .complete
    );
    let again = source.upload(&plane, vec![whole(session)]).await.unwrap();
    assert!(again.complete, "an answer may have been lost");

    let mut other = whole(session);
    other.data = b"{\"version\":2}\n".to_vec();
    other.end.as_mut().unwrap().bytes = other.data.len() as u64;
    other.end.as_mut().unwrap().sha256 = hash_of(&other.data).to_vec();
    assert_eq!(refused(source.upload(&plane, vec![other]).await), "conflict");
    let mut more = part(session, b"[9,\"o\",\"never shown\"]\n");
    more.offset = CAST.len() as u64;
    let held = source.upload(&plane, vec![more]).await.unwrap();
    assert_eq!((held.bytes, held.complete), (CAST.len() as u64, false));

    let asked = v1::RecordingRequest {
        session_id: session.as_bytes().to_vec(),
        recording: 1,
        from_micros: 0,
    };
    let mut parts = plane.user(&admin).recording(asked).await.unwrap().into_inner();
    let mut read = Vec::new();
    while let Some(part) = parts.message().await.unwrap() {
        read.extend(part.data);
    }
    assert_eq!(read, CAST);
}

#[tokio::test]
async fn places_where_nothing_was_sent_are_not_kept() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let session = begun(&plane, &mut source).await;
    let places = |from: u64| {
        (0..4000).map(move |n| v1::RecordingPlace {
            offset: from + n,
            micros: n,
        })
    };
    for from in [0, 0, 1 << 40] {
        let mut empty = part(session, b"");
        empty.index = places(from).collect();
        source.upload(&plane, vec![empty]).await.unwrap();
    }
    let mut some = part(session, CAST);
    some.index = places(0).collect();
    source.upload(&plane, vec![some]).await.unwrap();
    let folder = plane
        .context
        .config
        .data_dir
        .join("recordings")
        .join(session.to_string());
    let index = std::fs::read_to_string(folder.join("1.index")).unwrap();
    assert_eq!(index.lines().count(), CAST.len(), "at most one for each byte");
    let mut zero = part(session, CAST);
    zero.recording = 0;
    assert_eq!(refused(source.upload(&plane, vec![zero]).await), "invalid");
}
