//! PostgreSQL clients without `iap/1` read why, before a session and in the midst of one.

use std::time::Duration;

use iap_identity::LockKind;
use iap_runtime::tls::AlertDescription;
use iap_testkit::Credential;
use iap_tunnel::Status;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{Stream, framed, host, raw, refused};
use crate::plane::{POLICY, Plane};
use crate::proxy::WAIT;

/// A refusal takes less; a session that was let in says nothing by itself.
const PROMPT: Duration = Duration::from_secs(2);

pub fn startup() -> Vec<u8> {
    let body = b"user\0app\0database\0shop\0\0";
    let length = u32::try_from(8 + body.len()).unwrap();
    [&length.to_be_bytes()[..], &196_608u32.to_be_bytes(), body].concat()
}

pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(4 + body.len()).unwrap();
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

/// Everything until the agent closes.
pub async fn rest(stream: &mut Stream) -> Vec<u8> {
    let mut rest = Vec::new();
    tokio::time::timeout(WAIT, stream.read_to_end(&mut rest))
        .await
        .expect("the connection ends")
        .unwrap();
    rest
}

/// The fields of one `ErrorResponse`, by their kind.
pub fn field(response: &[u8], kind: char) -> String {
    assert_eq!(response.first(), Some(&b'E'), "{response:?}");
    let length = u32::from_be_bytes(response[1..5].try_into().unwrap()) as usize;
    assert_eq!(length + 1, response.len(), "one message and nothing else");
    let text = String::from_utf8(response[5..].to_vec()).unwrap();
    let found = text.split('\0').find_map(|field| field.strip_prefix(kind));
    found.unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_postgres_client_reads_a_sentence_the_session_and_whom_to_ask() {
    let (plane, running) = Plane::started().await;
    let bob = plane.cluster.user("bob@example.com", &["support"]).unwrap();
    let (id, mut stream) = raw(&plane, "db-prod", &bob).await;
    assert!(plane.proxy.verdict(id).await, "who he is was proven");
    stream.write_all(&startup()).await.unwrap();
    let answer = rest(&mut stream).await;
    assert_eq!(
        (field(&answer, 'S'), field(&answer, 'C')),
        ("FATAL".into(), "28000".into())
    );
    assert!(field(&answer, 'M').contains("bob@example.com"), "{answer:?}");
    assert!(field(&answer, 'H').contains("#platform"), "{answer:?}");
    let denied = plane.event("session.denied").await;
    let session = denied["session_id"].as_str().unwrap();
    assert_eq!(field(&answer, 'D'), format!("Session {session}."));
    running.stop().await;
    let started = |record: &iap_audit::RecordView| record.event == "session.start";
    assert!(!plane.auth.records().iter().any(started));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_client_that_asks_for_encryption_again_or_speaks_something_else_is_bounded() {
    let (plane, running) = Plane::started().await;
    let bob = plane.cluster.user("bob@example.com", &["support"]).unwrap();
    let (_, mut stream) = raw(&plane, "db-prod", &bob).await;
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'N');
    stream.write_all(&startup()).await.unwrap();
    assert_eq!(field(&rest(&mut stream).await, 'C'), "28000");
    let (_, mut stream) = raw(&plane, "db-prod", &bob).await;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(rest(&mut stream).await.is_empty());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_postgres_client_reads_that_access_is_locked() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let mut live = raw(&plane, "echo", &alice).await.1;
    crate::client::echoes(&mut live, "live").await;
    plane.lock(LockKind::User, "alice@example.com", "stolen laptop");
    // Once the live session is cut, the lock has arrived.
    rest(&mut live).await;
    let (_, mut stream) = raw(&plane, "db-prod", &alice).await;
    stream.write_all(&startup()).await.unwrap();
    let answer = rest(&mut stream).await;
    assert_eq!(field(&answer, 'C'), "28000");
    assert!(field(&answer, 'M').contains("stolen laptop"), "{answer:?}");
    running.stop().await;
}

/// What a PostgreSQL client reads, once it is this SQLSTATE.
async fn read_with_sqlstate(plane: &Plane, who: &Credential, sqlstate: &str) -> Vec<u8> {
    let mut answer = Vec::new();
    iap_testkit::wait_until_async(
        async || {
            let (_, mut stream) = raw(plane, "db-prod", who).await;
            stream.write_all(&startup()).await.unwrap();
            answer = match tokio::time::timeout(PROMPT, rest(&mut stream)).await {
                Ok(answer) => answer,
                // It was let in: the change has not arrived yet.
                Err(_) => return false,
            };
            answer.first() == Some(&b'E') && field(&answer, 'C') == sqlstate
        },
        WAIT,
    )
    .await
    .unwrap_or_else(|_| panic!("no {sqlstate}; last: {answer:?}"));
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_a_stronger_login_would_let_in_reads_the_command_with_postgresql_and_others_get_access_denied() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    plane.auth.publish(|snapshot| {
        snapshot.policy_toml =
            POLICY.replace("services", "when = 'user.mfa_age < duration(\"1h\")'\nservices");
    });
    let answer = read_with_sqlstate(&plane, &alice, "28000").await;
    assert!(
        field(&answer, 'H').starts_with("Log in with: iapctl login --fresh --mfa"),
        "{answer:?}"
    );
    let (_, alert) = refused(&plane, "echo", &host("echo"), Some(&alice), &[]).await;
    assert_eq!(alert, Some(AlertDescription::AccessDenied));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_certificate_is_older_than_a_group_is_led_to_renew_it_with_postgresql_and_others_see_it_expired()
 {
    let (plane, running) = Plane::started().await;
    plane.auth.publish(|snapshot| {
        snapshot.policy_toml = POLICY.replace("engineering", "dev:platform");
        let groups = [(iap_identity::GroupName::parse("dev:platform").unwrap(), 2)];
        snapshot.vocabulary = iap_policy::Vocabulary::new(groups.into());
    });
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let answer = read_with_sqlstate(&plane, &alice, "28000").await;
    assert_eq!(field(&answer, 'H'), "Renew the certificate with: iapctl login");
    let (_, alert) = refused(&plane, "echo", &host("echo"), Some(&alice), &[]).await;
    assert_eq!(alert, Some(AlertDescription::CertificateExpired));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_knows_too_little_says_so_with_postgresql_and_others_get_access_denied() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    plane
        .auth
        .publish(|snapshot| snapshot.expires = OffsetDateTime::now_utc() + time::Duration::seconds(1));
    let answer = read_with_sqlstate(&plane, &alice, "57P03").await;
    assert!(field(&answer, 'M').contains("rules have expired"), "{answer:?}");
    assert!(field(&answer, 'D').starts_with("Session "), "{answer:?}");
    let (_, alert) = refused(&plane, "echo", &host("echo"), Some(&alice), &[]).await;
    assert_eq!(alert, Some(AlertDescription::AccessDenied));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_away_is_said_with_postgresql_and_others_are_only_closed() {
    let mut plane = Plane::new().await;
    let refusing = format!("127.0.0.1:{}", iap_testkit::free_port().unwrap());
    plane.backend("echo", &refusing);
    plane.backend("db-prod", &refusing);
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let answer = read_with_sqlstate(&plane, &alice, "57P03").await;
    assert!(field(&answer, 'D').starts_with("Session "), "{answer:?}");
    let (_, mut stream) = raw(&plane, "echo", &alice).await;
    assert!(rest(&mut stream).await.is_empty());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_ends_a_session_has_the_last_word_in_it() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let mut stream = raw(&plane, "db-prod", &alice).await.1;
    let whole = message(b'Z', b"I");
    stream.write_all(&whole).await.unwrap();
    // The backend says what it is sent, and "bye" when its client has ended.
    stream.shutdown().await.unwrap();
    let said = [whole.as_slice(), b"bye"].concat();
    assert_eq!(rest(&mut stream).await, said, "nothing is added");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_postgres_session_is_told_between_two_messages_and_never_within_one() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    // The backend says what it is sent: what the client writes is what it would be delivered.
    let whole = [message(b'R', &[0; 4]), message(b'Z', b"I")].concat();
    let half = whole[..whole.len() - 1].to_vec();
    let mut between = raw(&plane, "db-prod", &alice).await.1;
    let mut within = raw(&plane, "db-prod", &alice).await.1;
    for (stream, said) in [(&mut between, &whole), (&mut within, &half)] {
        stream.write_all(said).await.unwrap();
        let mut back = vec![0; said.len()];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, said);
    }
    plane.lock(LockKind::User, "alice@example.com", "stolen laptop");
    let told = rest(&mut between).await;
    assert_eq!(field(&told, 'C'), "57P01");
    assert_eq!(field(&told, 'M'), "Access is locked.");
    assert!(field(&told, 'D').starts_with("Session "));
    assert!(rest(&mut within).await.is_empty());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_session_that_ends_for_want_of_room_for_records_is_told_so() {
    let mut plane = Plane::new().await;
    plane.limits = "spool_bytes_max = 65536\nspool_full_pause_seconds_max = 1".to_owned();
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    plane.event("agent.start").await;
    plane.auth.take_records(false);
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let mut live = raw(&plane, "db-prod", &alice).await.1;
    let ready = [message(b'R', &[0; 4]), message(b'Z', b"I")].concat();
    live.write_all(&ready).await.unwrap();
    let mut back = vec![0; ready.len()];
    live.read_exact(&mut back).await.unwrap();
    for _ in 0..200 {
        if !matches!(framed(&plane, "echo", &alice).await.1, Status::Granted { .. }) {
            break;
        }
    }
    let told = rest(&mut live).await;
    assert_eq!(field(&told, 'C'), "57P01");
    assert_eq!(field(&told, 'M'), "The agent cannot write audit records.");
    plane.auth.take_records(true);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_session_of_another_protocol_is_only_closed() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let mut stream = raw(&plane, "echo", &alice).await.1;
    crate::client::echoes(&mut stream, "R\0\0\0\u{4}").await;
    plane.lock(LockKind::User, "alice@example.com", "stolen laptop");
    assert!(rest(&mut stream).await.is_empty());
    running.stop().await;
}
