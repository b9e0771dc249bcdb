//! What lies beside records is erased by whoever may; the records stay and say so.

use iap_audit::{DecisionRecord, Effect, Event, EventKind, Payload, Record, SALT_BYTES, UserRecord};
use iap_identity::{ServiceName, SessionId};
use iap_proto::v1;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::harness::{ADMIN, Identity, Plane, refused};
use crate::ingest::Source;

const SECRET: &str = "the very secret of";

/// A session with a start and some statements, each with its payload.
struct Statements {
    source: Source,
    session: SessionId,
    records: Vec<Record>,
    batch: v1::AuditBatch,
}

impl Statements {
    async fn send(plane: &Plane, admin: &Identity, count: u8) -> Self {
        let mut source = Source::join(plane, admin).await;
        let session = SessionId::from_uuid(Uuid::now_v7());
        let (mut records, mut payloads) = (vec![start(&mut source, session)], Vec::new());
        for number in 0..count {
            let fields = serde_json::json!({ "statement": format!("SELECT '{SECRET} {number}'") });
            let payload = Payload::of(fields.as_object().unwrap(), [number; SALT_BYTES]).unwrap();
            payloads.push(v1::AuditPayload {
                record: u32::from(number) + 1,
                salt: payload.salt().to_vec(),
                payload: payload.bytes().to_vec(),
            });
            let event = event(EventKind::SessionStatement, session).payload(payload);
            records.push(source.chain.seal(event).unwrap());
        }
        let batch = v1::AuditBatch {
            payloads,
            ..source.batch(&records)
        };
        let last = source.send(plane, batch.clone()).await.unwrap();
        assert_eq!(last, u64::from(count) + 1);
        Self {
            source,
            session,
            records,
            batch,
        }
    }

    fn whole(&self) -> v1::AuditEraseRequest {
        v1::AuditEraseRequest {
            session_id: self.session.as_bytes().to_vec(),
            reason: "a customer asked for it".to_owned(),
            ..v1::AuditEraseRequest::default()
        }
    }

    fn record_id(&self, position: usize) -> Vec<u8> {
        let record: serde_json::Value = serde_json::from_slice(&self.records[position].bytes).unwrap();
        let id = Uuid::parse_str(record["id"].as_str().unwrap()).unwrap();
        id.as_bytes().to_vec()
    }
}

pub(crate) fn event(kind: EventKind, session: SessionId) -> Event {
    Event::new(kind, OffsetDateTime::now_utc(), Uuid::now_v7()).session(&session)
}

pub(crate) fn start(source: &mut Source, session: SessionId) -> Record {
    let alice = UserRecord {
        id: "u-alice".to_owned(),
        name: "alice@example.com".to_owned(),
        kind: "user".to_owned(),
    };
    let event = event(EventKind::SessionStart, session)
        .user(&alice)
        .service(&ServiceName::parse("db").unwrap())
        .decision(&DecisionRecord {
            effect: Effect::Allow,
            rule: Some("r".to_owned()),
            policy_version: 1,
        });
    source.chain.seal(event).unwrap()
}

async fn erase(
    plane: &Plane,
    who: &Identity,
    request: v1::AuditEraseRequest,
) -> Result<v1::AuditEraseReply, tonic::Status> {
    Ok(plane.admin(who).audit_erase(request).await?.into_inner())
}

/// Whether any file of the database holds it.
fn is_on_disk(plane: &Plane, text: &str) -> bool {
    let entries = std::fs::read_dir(&plane.context.config.data_dir).unwrap();
    let mut files = entries.map(|entry| entry.unwrap().path());
    files.any(|path| {
        let is_database = path.file_name().unwrap().to_string_lossy().contains(".db");
        let bytes = std::fs::read(&path).unwrap_or_default();
        is_database && bytes.windows(text.len()).any(|window| window == text.as_bytes())
    })
}

#[tokio::test]
async fn an_erased_payload_is_nowhere_and_its_record_says_who_erased_it() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let statements = Statements::send(&plane, &admin, 3).await;
    assert!(is_on_disk(&plane, SECRET), "this would be found");

    let dry = v1::AuditEraseRequest {
        dry_run: true,
        ..statements.whole()
    };
    let would = erase(&plane, &admin, dry).await.unwrap();
    assert_eq!((would.payloads, would.payloads_left, would.is_live), (3, 0, true));
    assert_eq!(plane.records(&admin, "audit.erased").await.len(), 0);
    assert!(is_on_disk(&plane, SECRET));

    let done = erase(&plane, &admin, statements.whole()).await.unwrap();
    assert_eq!((done.payloads, done.payload_bytes), (3, would.payload_bytes));
    assert!(!is_on_disk(&plane, SECRET));

    let shown = plane.records(&admin, "session.statement").await;
    assert_eq!(shown.len(), 3);
    for record in &shown {
        let erased = &record["payload_erased"];
        assert_eq!(
            (&erased["by"], &erased["reason"]),
            (&ADMIN.into(), &"a customer asked for it".into())
        );
        assert!(erased["time"].is_string() && record["payload_sha256"].is_string());
        assert!(record.get("statement").is_none());
    }
    let acts = plane.records(&admin, "audit.erased").await;
    assert_eq!(acts.len(), 1);
    assert_eq!(acts[0]["user"]["name"], ADMIN);
    assert_eq!(acts[0]["session_id"], statements.session.to_string());
    assert_eq!(acts[0]["erasure_id"], shown[0]["payload_erased"]["erasure_id"]);
    assert_eq!(acts[0]["payloads"], 3);
    let named = serde_json::json!([{ "agent_id": statements.source.id.to_string(), "agent_seq": [2, 3, 4] }]);
    assert_eq!(acts[0]["erased"], named);

    // Once more: nothing is left, and nothing is put on record.
    let again = erase(&plane, &admin, statements.whole()).await.unwrap();
    assert_eq!((again.payloads, again.payloads_left), (0, 0));
    assert_eq!(plane.records(&admin, "audit.erased").await.len(), 1);
}

#[tokio::test]
async fn what_was_erased_does_not_come_back_with_its_agent_and_the_chain_goes_on() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut statements = Statements::send(&plane, &admin, 2).await;
    erase(&plane, &admin, statements.whole()).await.unwrap();
    let again = statements.source.send(&plane, statements.batch.clone()).await;
    assert_eq!(again.unwrap(), 3, "sent again it is acknowledged");
    assert!(!is_on_disk(&plane, SECRET));
    let shown = plane.records(&admin, "session.statement").await;
    assert!(shown.iter().all(|record| record["payload_erased"].is_object()));

    let next = statements.source.note("next");
    let batch = statements.source.batch(std::slice::from_ref(&next));
    assert_eq!(statements.source.send(&plane, batch).await.unwrap(), 4);
    assert!(plane.records(&admin, "audit.alarm").await.is_empty());
}

#[tokio::test]
async fn single_records_are_erased_by_their_ids_and_the_others_stay() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let statements = Statements::send(&plane, &admin, 3).await;
    let request = v1::AuditEraseRequest {
        record_ids: vec![statements.record_id(2)],
        ..v1::AuditEraseRequest::default()
    };
    let done = erase(&plane, &admin, request).await.unwrap();
    assert_eq!(done.payloads, 1);
    let shown = plane.records(&admin, "session.statement").await;
    let erased: Vec<bool> = shown
        .iter()
        .map(|record| record["payload_erased"].is_object())
        .collect();
    assert_eq!(erased, [false, true, false]);
    assert_eq!(shown[2]["statement"], format!("SELECT '{SECRET} 2'"));
    assert!(!is_on_disk(&plane, &format!("{SECRET} 1")));
}

#[tokio::test]
async fn only_who_may_erases_and_nothing_that_is_not_there() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let bob = plane.log_in("bob@example.com").await;
    let statements = Statements::send(&plane, &admin, 1).await;
    assert_eq!(refused(erase(&plane, &bob, statements.whole()).await), "denied");
    let nothing = v1::AuditEraseRequest::default();
    assert_eq!(refused(erase(&plane, &admin, nothing).await), "invalid");
    let both = v1::AuditEraseRequest {
        record_ids: vec![statements.record_id(1)],
        ..statements.whole()
    };
    assert_eq!(refused(erase(&plane, &admin, both).await), "invalid");
    let session_as_record = v1::AuditEraseRequest {
        record_ids: vec![statements.session.as_bytes().to_vec()],
        ..v1::AuditEraseRequest::default()
    };
    assert_eq!(
        refused(erase(&plane, &admin, session_as_record).await),
        "not_found"
    );
    let many = v1::AuditEraseRequest {
        record_ids: vec![statements.record_id(1); 101],
        ..v1::AuditEraseRequest::default()
    };
    assert_eq!(refused(erase(&plane, &admin, many).await), "invalid");
    let unknown = v1::AuditEraseRequest {
        session_id: Uuid::now_v7().as_bytes().to_vec(),
        ..v1::AuditEraseRequest::default()
    };
    assert_eq!(refused(erase(&plane, &admin, unknown).await), "not_found");
    let long = v1::AuditEraseRequest {
        reason: "x".repeat(513),
        ..statements.whole()
    };
    assert_eq!(refused(erase(&plane, &admin, long).await), "invalid");
    assert!(is_on_disk(&plane, SECRET));
}

#[tokio::test]
async fn what_somebody_searched_for_can_be_erased_too() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let statements = Statements::send(&plane, &admin, 1).await;
    let looking = v1::AuditSearchRequest {
        expression: format!("statement.contains(\"{SECRET}\")"),
        ..v1::AuditSearchRequest::default()
    };
    plane.admin(&admin).audit_search(looking).await.unwrap();
    erase(&plane, &admin, statements.whole()).await.unwrap();
    assert!(is_on_disk(&plane, SECRET), "in the record of the search");
    let searches = plane.records(&admin, "audit.searched").await;
    let names_it = |record: &&serde_json::Value| record["expression"].as_str().unwrap().contains(SECRET);
    let search = searches.iter().find(names_it).unwrap();
    let id = Uuid::parse_str(search["id"].as_str().unwrap()).unwrap();
    let request = v1::AuditEraseRequest {
        record_ids: vec![id.as_bytes().to_vec()],
        ..v1::AuditEraseRequest::default()
    };
    assert_eq!(erase(&plane, &admin, request).await.unwrap().payloads, 1);
    assert!(!is_on_disk(&plane, SECRET));
}
