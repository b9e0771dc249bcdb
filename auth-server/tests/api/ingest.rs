//! Agents' records: exact bytes, once, in their chain's order, acknowledged when durable.

use iap_audit::{Chain, CloseReason, DecisionRecord, Effect, Event, EventKind, Record, UserRecord};
use iap_auth::audit::lost::end_lost_sessions;
use iap_identity::{AgentId, ServiceName, SessionId, SignedKind, Signer as _, signed_message};
use iap_proto::v1;
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::harness::{ADMIN, Identity, Plane, refused};

/// An agent that writes a chain.
pub(crate) struct Source {
    identity: Identity,
    pub(crate) id: AgentId,
    pub(crate) chain: Chain,
}

impl Source {
    pub(crate) async fn join(plane: &Plane, admin: &Identity) -> Self {
        let (id, identity) = plane.join_agent(admin, &[]).await;
        Self {
            identity,
            id,
            chain: Chain::new(id),
        }
    }

    pub(crate) fn note(&mut self, note: &str) -> Record {
        let now = OffsetDateTime::now_utc();
        let event = Event::new(EventKind::AgentStart, now, Uuid::now_v7()).reason(note);
        self.chain.seal(event).unwrap()
    }

    pub(crate) fn batch(&self, records: &[Record]) -> v1::AuditBatch {
        self.batch_of_bytes(records.iter().map(|record| record.bytes.clone()).collect())
    }

    fn batch_of_bytes(&self, records: Vec<Vec<u8>>) -> v1::AuditBatch {
        let head = records
            .last()
            .map(|last| iap_auth::store::hash_of(last))
            .unwrap_or_default();
        let message = signed_message(SignedKind::AuditHead, &head);
        v1::AuditBatch {
            records,
            head_signature: self.identity.key.sign(&message).unwrap(),
            payloads: Vec::new(),
        }
    }

    pub(crate) async fn watch(&self, plane: &Plane) -> Result<(), tonic::Status> {
        let request = v1::WatchRequest {
            version: "0.1.0".to_owned(),
            services: Vec::new(),
        };
        plane.agent(&self.identity).watch(request).await.map(drop)
    }

    pub(crate) async fn upload(
        &self,
        plane: &Plane,
        parts: Vec<v1::RecordingPart>,
    ) -> Result<v1::RecordingHeld, tonic::Status> {
        let parts = tokio_stream::iter(parts);
        let held = plane.agent(&self.identity).upload_recording(parts).await?;
        Ok(held.into_inner())
    }

    pub(crate) async fn send(&self, plane: &Plane, batch: v1::AuditBatch) -> Result<u64, tonic::Status> {
        let ack = plane.agent(&self.identity).append_audit(batch).await?;
        Ok(ack.into_inner().agent_seq)
    }
}

pub(crate) async fn stored_notes(plane: &Plane, admin: &Identity) -> Vec<String> {
    let records = plane.records(admin, "agent.start").await;
    records
        .iter()
        .map(|record| record["reason"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn records_are_kept_byte_for_byte_and_acknowledged() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let records = [source.note("one"), source.note("two")];
    assert_eq!(source.send(&plane, source.batch(&records)).await.unwrap(), 2);
    let newest = plane
        .context
        .store
        .newest_record(*source.id.as_uuid())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(newest, (2, iap_auth::store::hash_of(&records[1].bytes)));
    assert_eq!(stored_notes(&plane, &admin).await, ["one", "two"]);
}

#[tokio::test]
async fn a_batch_sent_again_is_acknowledged_and_stored_once() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let one = source.note("one");
    source
        .send(&plane, source.batch(std::slice::from_ref(&one)))
        .await
        .unwrap();
    let two = source.note("two");
    assert_eq!(
        source
            .send(&plane, source.batch(&[one.clone(), two]))
            .await
            .unwrap(),
        2
    );
    assert_eq!(
        source.send(&plane, source.batch(&[one])).await.unwrap(),
        1,
        "nothing is acknowledged that was not in the batch"
    );
    assert_eq!(stored_notes(&plane, &admin).await, ["one", "two"]);
}

#[tokio::test]
async fn a_sender_that_vanishes_before_the_acknowledgement_leaves_no_duplicates() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let records: Vec<Record> = (0..50).map(|number| source.note(&number.to_string())).collect();
    for patience in 0..10 {
        let (batch, mut client) = (source.batch(&records), plane.agent(&source.identity));
        let sending = tokio::spawn(async move { client.append_audit(batch).await });
        for _ in 0..patience * 20 {
            tokio::task::yield_now().await;
        }
        sending.abort();
    }
    assert_eq!(source.send(&plane, source.batch(&records)).await.unwrap(), 50);
    assert_eq!(stored_notes(&plane, &admin).await.len(), 50);
}

#[tokio::test]
async fn after_a_restart_the_server_goes_on_where_it_stood() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let one = source.note("one");
    source
        .send(&plane, source.batch(std::slice::from_ref(&one)))
        .await
        .unwrap();
    let plane = plane.restart().await;
    let two = source.note("two");
    assert_eq!(source.send(&plane, source.batch(&[one, two])).await.unwrap(), 2);
    assert_eq!(stored_notes(&plane, &admin).await, ["one", "two"]);
    // Our own chain went on too: the restart's record follows the others under the same id.
    assert_eq!(plane.records(&admin, "auth.start").await.len(), 2);
}

pub(crate) async fn alarms(plane: &Plane, admin: &Identity) -> Vec<String> {
    let alarms = plane.records(admin, "audit.alarm").await;
    alarms
        .iter()
        .map(|alarm| alarm["reason"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn the_same_number_with_other_content_is_one_alarm_that_carries_it_and_stops_nothing() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let one = source.note("one");
    source.send(&plane, source.batch(&[one])).await.unwrap();
    source.chain = Chain::new(source.id);
    let forged = source.note("other");
    for _ in 0..3 {
        let batch = source.batch(std::slice::from_ref(&forged));
        assert_eq!(source.send(&plane, batch).await.unwrap(), 1);
    }
    assert_eq!(stored_notes(&plane, &admin).await, ["one"], "the first stays");
    let alarms = plane.records(&admin, "audit.alarm").await;
    assert_eq!(alarms.len(), 1, "{alarms:?}");
    assert_eq!(plane.context.audit.alarms().get(), 1);
    assert_eq!(alarms[0]["agent"], source.id.to_string());
    let content = alarms[0]["other_content"].as_str().unwrap();
    assert_eq!(content.as_bytes(), forged.bytes, "nothing of it is lost");

    let two = source.note("two");
    assert_eq!(source.send(&plane, source.batch(&[two])).await.unwrap(), 2);
    assert_eq!(stored_notes(&plane, &admin).await, ["one", "two"]);
}

#[tokio::test]
async fn a_record_that_does_not_follow_its_predecessor_is_an_alarm_and_stored() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let one = source.note("one");
    source.send(&plane, source.batch(&[one])).await.unwrap();
    source.chain = Chain::resume(source.id, 1, &"ab".repeat(32));
    let (unlinked, three) = (source.note("two"), source.note("three"));
    let batch = source.batch(&[unlinked, three]);
    assert_eq!(source.send(&plane, batch).await.unwrap(), 3);
    let why = "record 2 does not follow the stored record before it";
    assert_eq!(alarms(&plane, &admin).await, [why]);
    assert_eq!(stored_notes(&plane, &admin).await, ["one", "two", "three"]);
}

#[tokio::test]
async fn a_gap_is_an_alarm_and_neither_stops_later_records_nor_those_that_fill_it() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let records: Vec<Record> = ["one", "two", "three", "four"]
        .map(|note| source.note(note))
        .into();
    source.send(&plane, source.batch(&records[..1])).await.unwrap();
    assert_eq!(source.send(&plane, source.batch(&records[3..])).await.unwrap(), 4);
    assert_eq!(alarms(&plane, &admin).await, ["records 2 to 3 never arrived"]);
    assert_eq!(source.send(&plane, source.batch(&records)).await.unwrap(), 4);
    let mut stored = stored_notes(&plane, &admin).await;
    stored.sort();
    assert_eq!(stored, ["four", "one", "three", "two"]);
    assert_eq!(alarms(&plane, &admin).await.len(), 1);
}

#[tokio::test]
async fn a_batch_that_is_refused_again_and_again_is_one_alarm() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let source = Source::join(&plane, &admin).await;
    for _ in 0..3 {
        let garbage = source.batch_of_bytes(vec![b"not a record".to_vec()]);
        assert_eq!(refused(source.send(&plane, garbage).await), "invalid");
    }
    let alarms = alarms(&plane, &admin).await;
    assert_eq!(alarms.len(), 1, "{alarms:?}");
    assert!(alarms[0].contains("a batch of records was refused"), "{alarms:?}");
}

#[tokio::test]
async fn an_agent_cannot_write_in_anothers_name() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut victim = Source::join(&plane, &admin).await;
    let thief = Source::join(&plane, &admin).await;
    let record = victim.note("forged");
    assert_eq!(
        refused(thief.send(&plane, thief.batch(&[record])).await),
        "invalid"
    );
    assert!(stored_notes(&plane, &admin).await.is_empty());
}

#[tokio::test]
async fn a_batch_whose_head_is_signed_by_another_key_is_refused() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let other = Source::join(&plane, &admin).await;
    let record = source.note("one");
    let batch = v1::AuditBatch {
        head_signature: other.batch(std::slice::from_ref(&record)).head_signature,
        ..source.batch(&[record])
    };
    assert_eq!(refused(source.send(&plane, batch).await), "invalid");
}

#[tokio::test]
async fn batches_outside_their_bounds_are_refused() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    assert_eq!(refused(source.send(&plane, source.batch(&[])).await), "invalid");
    let many: Vec<Record> = (0..1001).map(|_| source.note("many")).collect();
    assert_eq!(refused(source.send(&plane, source.batch(&many)).await), "invalid");
    let large = vec![vec![b' '; 300 * 1024]; 4];
    assert_eq!(
        refused(source.send(&plane, source.batch_of_bytes(large)).await),
        "invalid"
    );
    let garbage = vec![b"not a record".to_vec()];
    assert_eq!(
        refused(source.send(&plane, source.batch_of_bytes(garbage)).await),
        "invalid"
    );
}

pub(crate) fn session_start(source: &mut Source, session: SessionId, user: &UserRecord) -> Record {
    let decision = DecisionRecord {
        effect: Effect::Allow,
        rule: Some("engineers".to_owned()),
        policy_version: 7,
    };
    let event = Event::new(EventKind::SessionStart, OffsetDateTime::now_utc(), Uuid::now_v7())
        .session(&session)
        .user(user)
        .service(&ServiceName::parse("db-prod").unwrap())
        .decision(&decision);
    source.chain.seal(event).unwrap()
}

pub(crate) fn session_end(source: &mut Source, session: SessionId) -> Record {
    let event = Event::new(EventKind::SessionEnd, OffsetDateTime::now_utc(), Uuid::now_v7())
        .session(&session)
        .bytes(11, 22)
        .close(CloseReason::ClientClosed, None);
    source.chain.seal(event).unwrap()
}

async fn sessions(plane: &Plane, identity: &Identity) -> Vec<Value> {
    let json = plane
        .user(identity)
        .sessions(v1::SessionsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .json;
    serde_json::from_str(&json).unwrap()
}

pub(crate) async fn record_of(plane: &Plane, identity: &Identity, name: &str) -> UserRecord {
    let json = plane
        .user(identity)
        .whoami(v1::Empty {})
        .await
        .unwrap()
        .into_inner()
        .json;
    let me: Value = serde_json::from_str(&json).unwrap();
    let id = me["id"].as_str().unwrap().to_owned();
    UserRecord {
        id,
        name: name.to_owned(),
        kind: "user".to_owned(),
    }
}

#[tokio::test]
async fn sessions_are_listed_from_their_records() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let alice = plane.log_in("alice@example.com").await;
    let user = record_of(&plane, &alice, "alice@example.com").await;
    let mut source = Source::join(&plane, &admin).await;
    let session = SessionId::from_uuid(Uuid::now_v7());
    let start = session_start(&mut source, session, &user);
    source.send(&plane, source.batch(&[start])).await.unwrap();
    let live = sessions(&plane, &alice).await;
    assert_eq!(live[0]["end"], Value::Null);

    let end = session_end(&mut source, session);
    source.send(&plane, source.batch(&[end])).await.unwrap();
    let listed = sessions(&plane, &alice).await;
    assert_eq!(listed.len(), 1);
    let keys: Vec<&str> = listed[0]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let expected = [
        "agent",
        "bytes_in",
        "bytes_out",
        "close_reason",
        "decision",
        "end",
        "service",
        "session_id",
        "start",
        "user",
    ];
    assert_eq!(keys, expected);
    assert_eq!(listed[0]["session_id"], session.to_string());
    assert_eq!(listed[0]["user"], "alice@example.com");
    assert_eq!(listed[0]["agent"], source.id.to_string());
    assert_eq!(
        (&listed[0]["bytes_in"], &listed[0]["bytes_out"]),
        (&Value::from(11), &Value::from(22))
    );
    assert_eq!(listed[0]["close_reason"], "client_closed");
    assert_eq!(listed[0]["decision"]["rule"], "engineers");
    assert!(listed[0]["end"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test]
async fn without_audit_read_others_sessions_do_not_exist() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let (alice, bob) = (
        plane.log_in("alice@example.com").await,
        plane.log_in("bob@example.com").await,
    );
    let user = record_of(&plane, &alice, "alice@example.com").await;
    let mut source = Source::join(&plane, &admin).await;
    let session = SessionId::from_uuid(Uuid::now_v7());
    let records = [
        session_start(&mut source, session, &user),
        session_end(&mut source, session),
    ];
    source.send(&plane, source.batch(&records)).await.unwrap();

    assert!(sessions(&plane, &bob).await.is_empty());
    let show = || v1::SessionRequest {
        session_id: session.as_bytes().to_vec(),
    };
    assert_eq!(refused(plane.user(&bob).session(show()).await), "not_found");
    for reader in [&alice, &admin] {
        let json = plane
            .user(reader)
            .session(show())
            .await
            .unwrap()
            .into_inner()
            .json;
        let shown: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(shown["records"].as_array().unwrap().len(), 2);
        assert_eq!(shown["session"]["session_id"], session.to_string());
    }
}

#[tokio::test]
async fn another_agents_end_record_does_not_end_a_session() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let user = UserRecord {
        id: "u-x".into(),
        name: "x".into(),
        kind: "user".into(),
    };
    let mut source = Source::join(&plane, &admin).await;
    let mut other = Source::join(&plane, &admin).await;
    let session = SessionId::from_uuid(Uuid::now_v7());
    let start = session_start(&mut source, session, &user);
    source.send(&plane, source.batch(&[start])).await.unwrap();
    let end = session_end(&mut other, session);
    other.send(&plane, other.batch(&[end])).await.unwrap();
    assert_eq!(sessions(&plane, &admin).await[0]["end"], Value::Null);
}

#[tokio::test]
async fn a_search_finds_by_words_and_by_expression() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let records = [source.note("red apples"), source.note("green pears")];
    source.send(&plane, source.batch(&records)).await.unwrap();
    let search = async |expression: &str| {
        let request = v1::AuditSearchRequest {
            expression: expression.to_owned(),
            ..Default::default()
        };
        let mut found = plane.admin(&admin).audit_search(request).await?.into_inner();
        let mut count = 0;
        while found.message().await?.is_some() {
            count += 1;
        }
        Ok::<usize, tonic::Status>(count)
    };
    // The search for the words is itself on record by the time it looks.
    assert_eq!(search("reason == \"red apples\"").await.unwrap(), 1);
    assert_eq!(
        search("event == \"agent.start\" && reason.contains(\"e\")")
            .await
            .unwrap(),
        2
    );
    assert_eq!(search("nothing_has_this_field == 1").await.unwrap(), 0);
    assert_eq!(refused(search("reason == (").await), "invalid");
    assert!(!plane.records(&admin, "audit.searched").await.is_empty());
}

#[tokio::test]
async fn sessions_of_an_agent_not_heard_of_for_a_day_end_until_it_says_otherwise() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let user = record_of(&plane, &admin, ADMIN).await;
    let mut absent = Source::join(&plane, &admin).await;
    let mut present = Source::join(&plane, &admin).await;
    let (lost, kept) = (
        SessionId::from_uuid(Uuid::now_v7()),
        SessionId::from_uuid(Uuid::now_v7()),
    );
    for (source, session) in [(&mut absent, lost), (&mut present, kept)] {
        let start = session_start(source, session, &user);
        source.send(&plane, source.batch(&[start])).await.unwrap();
    }
    let look = async || end_lost_sessions(&plane.context).await.unwrap();
    plane.offset.set(time::Duration::hours(23));
    assert_eq!(look().await, 0);
    let report = iap_auth::store::AgentReport::default();
    let now = plane.context.clock.now();
    plane
        .context
        .store
        .agent_reported(present.id, &report, now)
        .await
        .unwrap();
    plane.offset.set(time::Duration::hours(25));
    assert_eq!(look().await, 1);
    assert_eq!(look().await, 0, "once");
    plane.offset.set(time::Duration::ZERO);

    let of = |listed: &[Value], session: SessionId| {
        let found = listed.iter().find(|row| row["session_id"] == session.to_string());
        found.unwrap().clone()
    };
    let listed = sessions(&plane, &admin).await;
    assert_eq!(of(&listed, lost)["close_reason"], "agent_lost");
    assert!(of(&listed, lost)["end"].is_string());
    assert!(of(&listed, kept)["end"].is_null());
    let records = plane.context.store.session_records(lost, 0, 1000).await.unwrap();
    let end: Value = serde_json::from_slice(&records[1].bytes).unwrap();
    assert_eq!(
        (&end["event"], &end["source"]),
        (&"session.end".into(), &"auth".into())
    );
    assert_eq!(end["close_detail"], "its agent was not heard of for 24 h");
    assert_eq!(
        (&end["service"], &end["user"]["name"]),
        (&"db-prod".into(), &ADMIN.into())
    );

    let end = session_end(&mut absent, lost);
    absent.send(&plane, absent.batch(&[end])).await.unwrap();
    let listed = sessions(&plane, &admin).await;
    assert_eq!(
        of(&listed, lost)["close_reason"],
        "client_closed",
        "its own word counts"
    );
    assert_eq!(of(&listed, lost)["bytes_in"], 11);
}
