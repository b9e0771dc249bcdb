//! Who may watch whose session (`iap-watch/1`): decided from the agent's memory, and with one answer to all who may not.

use iap_identity::{LockKind, SessionId};
use iap_testkit::Credential;
use iap_tunnel::watch::WATCH_VERSION;
use iap_tunnel::{Status, WatchRequest};
use tokio::io::AsyncWriteExt as _;
use uuid::Uuid;

use crate::client::{Stream, ending, framed, shake_hands, status};
use crate::plane::{POLICY, Plane};
use crate::proxy::WAIT;
use crate::resume::{agent_host, code};

const ALPN: &[&str] = &["iap-watch/1"];
/// What somebody hears who may watch: these sessions have no terminal.
const MAY: &str = "not_recorded";
const MAY_NOT: &str = "no_session";

async fn connect(plane: &Plane, credential: &Credential) -> Stream {
    let (_, stream) = plane.proxy.open_agent().await;
    let shaken = shake_hands(plane, stream, &agent_host(plane), Some(credential), ALPN).await;
    shaken.unwrap()
}

async fn ask(plane: &Plane, credential: &Credential, session_id: SessionId) -> Status {
    let mut stream = connect(plane, credential).await;
    let request = WatchRequest {
        version: WATCH_VERSION,
        session_id,
        recording: None,
    };
    stream.write_all(&request.encode().unwrap()).await.unwrap();
    tokio::time::timeout(WAIT, status(&mut stream))
        .await
        .expect("an answer")
        .unwrap()
}

fn with_rules(rules: &str) -> String {
    format!(
        "{POLICY}\n[[admin]]\nusers = {{ groups = [\"auditors\"] }}\nverbs = [\"recording.read\"]\n{rules}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn ones_own_session_and_with_recording_read_anybodys_is_decided_from_memory() {
    let (plane, running) = Plane::started().await;
    let user = |name: &str, group: &str| plane.cluster.user(name, &[group]).unwrap();
    let alice = user("alice@example.com", "engineering");
    let (carol, audrey) = (
        user("carol@example.com", "engineering"),
        user("audrey@example.com", "auditors"),
    );
    let (_stream, Status::Granted { session_id, .. }) = framed(&plane, "echo", &alice).await else {
        panic!("no session")
    };
    assert_eq!(code(&ask(&plane, &alice, session_id).await), MAY);
    let text = |status: Status, session: SessionId| match status {
        Status::Denied {
            code, text, contact, ..
        } => (code, text.replace(&session.to_string(), "ID"), contact),
        other => panic!("{other:?}"),
    };
    // Neither of them may, and neither can tell this session from one that is not.
    let unknown = SessionId::from_uuid(Uuid::now_v7());
    let refused = text(ask(&plane, &carol, session_id).await, session_id);
    assert_eq!(refused.0, MAY_NOT);
    for (who, session) in [(&audrey, session_id), (&carol, unknown), (&alice, unknown)] {
        assert_eq!(text(ask(&plane, who, session).await, session), refused);
    }
    let record = plane.event("session.watch_refused").await;
    assert_eq!(record["user"]["name"], "carol@example.com");
    assert_eq!(record["session_id"], session_id.to_string().as_str());

    plane
        .auth
        .publish(|snapshot| snapshot.policy_toml = with_rules(""));
    let may = async |who: &Credential| code(&ask(&plane, who, session_id).await).to_owned();
    let granted = iap_testkit::wait_until_async(async || may(&audrey).await == MAY, WAIT);
    granted.await.expect("the rule is known");
    assert_eq!(may(&carol).await, MAY_NOT);
    // A deny rule is a no to whoever it names.
    let deny = "[[rule]]\nname = \"not audrey\"\neffect = \"deny\"\nusers = { names = [\"audrey@example.com\"] }\nservices = { names = [\"echo\"] }\n";
    plane
        .auth
        .publish(|snapshot| snapshot.policy_toml = with_rules(deny));
    let denied = iap_testkit::wait_until_async(async || may(&audrey).await == MAY_NOT, WAIT);
    denied.await.expect("the deny rule is known");
    assert_eq!(may(&alice).await, MAY);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_locked_hears_of_the_lock_whether_there_is_a_session_or_not() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let audrey = plane.cluster.user("audrey@example.com", &["auditors"]).unwrap();
    let (_stream, Status::Granted { session_id, .. }) = framed(&plane, "echo", &alice).await else {
        panic!("no session")
    };
    plane.lock(LockKind::User, "audrey@example.com", "left");
    let locked = async |session| code(&ask(&plane, &audrey, session).await) == "locked";
    let known = iap_testkit::wait_until_async(async || locked(session_id).await, WAIT);
    known.await.expect("the lock is known");
    assert!(locked(SessionId::from_uuid(Uuid::now_v7())).await);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_with_the_verbs_groups_is_no_administrator() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let bot = plane.cluster.bot("ci").unwrap();
    let (_stream, Status::Granted { session_id, .. }) = framed(&plane, "echo", &alice).await else {
        panic!("no session")
    };
    assert_eq!(code(&ask(&plane, &bot, session_id).await), MAY_NOT);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_gets_no_answer_and_the_agent_goes_on() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    for bad in [
        &b"\0\0\0\x02{}"[..],
        b"\xff\xff\xff\xff",
        b"\0\0\0\x04abcd",
        b"\0\0\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut stream = connect(&plane, &alice).await;
        stream.write_all(bad).await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(ending(&mut stream).await, None, "{bad:?}");
    }
    let (_stream, answer) = framed(&plane, "echo", &alice).await;
    assert!(matches!(answer, Status::Granted { .. }), "{answer:?}");
    running.stop().await;
}
