//! Clients that come back to their session (`iap-resume/1`), and those who should not.

use std::time::Duration;

use iap_identity::{LockKind, Profile, SessionId};
use iap_testkit::Credential;
use iap_tunnel::resume::{Endpoint, Repeat, ResumeOffer, ResumeRequest, Ticket, WINDOW_BYTES_MIN};
use iap_tunnel::{Hello, Status};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::client::{Stream, connect_as, hello, host, shake_hands, status};
use crate::plane::{CLUSTER, Plane};
use crate::proxy::WAIT;

/// What the backend says at the end.
pub const FAREWELL: &str = "bye";
const ALPN: &[&str] = &["iap-resume/1"];

/// A client with one end of a session, and a connection while it has one.
pub struct Client {
    pub endpoint: Endpoint,
    pub stream: Stream,
    pub session_id: SessionId,
    ticket: Ticket,
}

impl Client {
    pub async fn begin(plane: &Plane, credential: &Credential) -> Self {
        Self::begin_saying(plane, credential, "").await
    }

    /// The same; what it says goes out behind the hello, before the window is known.
    async fn begin_saying(plane: &Plane, credential: &Credential, early: &str) -> Self {
        let (_, stream) = connect_as(
            plane,
            "echo",
            &host("echo"),
            Some(credential),
            &["iap-resume/1", "iap/1"],
        )
        .await;
        let mut stream = stream.unwrap();
        let mut endpoint = Endpoint::new(WINDOW_BYTES_MIN);
        endpoint.write(early.as_bytes());
        let mut first = hello().encode().unwrap();
        let frames = endpoint.transmit().pieces.concat();
        endpoint.transmitted(frames.len());
        first.extend(frames);
        stream.write_all(&first).await.unwrap();
        let Status::Granted {
            session_id,
            resume: Some(ResumeOffer {
                ticket, window_bytes, ..
            }),
            resume_name,
            ..
        } = status(&mut stream).await.unwrap()
        else {
            panic!("no session that may be gone on with")
        };
        assert_eq!(resume_name, Some(agent_host(plane)));
        endpoint.agree(window_bytes);
        Self {
            endpoint,
            stream,
            session_id,
            ticket,
        }
    }

    fn request(&self) -> ResumeRequest {
        ResumeRequest {
            session_id: self.session_id,
            ticket: self.ticket,
            position: self.endpoint.position(),
        }
    }

    /// Comes back, if it may.
    pub async fn come_back(&mut self, plane: &Plane, credential: &Credential) -> Status {
        self.come_back_with(plane, credential, Repeat::default()).await
    }

    /// The same, with what is repeated behind the hello.
    async fn come_back_with(&mut self, plane: &Plane, credential: &Credential, repeat: Repeat) -> Status {
        self.endpoint.detach();
        let (mut stream, answer) = ask_with(plane, credential, self.request(), &repeat.frames).await;
        if let Status::Resumed { position, ticket, .. } = answer {
            self.endpoint.attach_behind(position, repeat.end).unwrap();
            self.ticket = ticket;
            std::mem::swap(&mut self.stream, &mut stream);
        }
        answer
    }

    pub async fn send(&mut self) {
        while self.endpoint.has_frames() {
            let bytes = self.endpoint.transmit().pieces.concat();
            self.stream.write_all(&bytes).await.unwrap();
            self.endpoint.transmitted(bytes.len());
        }
        self.stream.flush().await.unwrap();
    }

    pub async fn reads(&mut self, expected: &str) {
        let mut back = vec![0; expected.len()];
        let mut count = 0;
        while count < back.len() {
            let mut piece = [0; 1024];
            let read = tokio::time::timeout(WAIT, self.stream.read(&mut piece))
                .await
                .expect("bytes")
                .unwrap();
            assert!(read > 0, "the connection ended");
            self.endpoint.push(&piece[..read]).unwrap();
            count += self.endpoint.read(&mut back[count..]);
        }
        assert_eq!(String::from_utf8(back).unwrap(), expected);
    }

    pub async fn round_trip(&mut self, text: &str) {
        self.endpoint.write(text.as_bytes());
        self.send().await;
        self.reads(text).await;
    }

    /// Ends in order, and hears the backend's farewell.
    pub async fn finish(&mut self) {
        self.endpoint.finish();
        self.send().await;
        self.reads(FAREWELL).await;
        while !(self.endpoint.is_at_end() && self.endpoint.is_drained()) {
            let mut piece = [0; 1024];
            let read = tokio::time::timeout(WAIT, self.stream.read(&mut piece))
                .await
                .expect("an end")
                .unwrap();
            assert!(read > 0, "the connection ended");
            self.endpoint.push(&piece[..read]).unwrap();
        }
        // The agent waits for the acknowledgement of its end.
        self.endpoint.acknowledge();
        self.send().await;
    }
}

pub fn agent_host(plane: &Plane) -> String {
    format!("{}.agent.{CLUSTER}", plane.agent_id)
}

/// Asks to go on with a session.
async fn ask(plane: &Plane, credential: &Credential, request: ResumeRequest) -> (Stream, Status) {
    ask_with(plane, credential, request, &[]).await
}

/// The same, with frames behind the hello.
async fn ask_with(
    plane: &Plane,
    credential: &Credential,
    request: ResumeRequest,
    frames: &[u8],
) -> (Stream, Status) {
    let (_, stream) = plane.proxy.open_agent().await;
    let stream = shake_hands(plane, stream, &agent_host(plane), Some(credential), ALPN).await;
    let mut stream = stream.unwrap();
    let hello = Hello {
        resume: Some(request),
        ..hello()
    };
    let first = [&hello.encode().unwrap(), frames].concat();
    stream.write_all(&first).await.unwrap();
    let answer = tokio::time::timeout(WAIT, status(&mut stream))
        .await
        .expect("an answer")
        .unwrap();
    (stream, answer)
}

pub fn code(status: &Status) -> &str {
    match status {
        Status::Denied { code, .. } => code,
        other => panic!("{other:?}"),
    }
}

/// What went out behind the hello is kept as any other byte is, and sent again if it did not arrive.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_may_begin_with_bytes_behind_the_hello() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let mut client = Client::begin_saying(&plane, &alice, "early").await;
    client.reads("early").await;
    let answer = client.come_back(&plane, &alice).await;
    assert!(matches!(answer, Status::Resumed { .. }), "{answer:?}");
    client.round_trip("later").await;
    client.finish().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_back_misses_nothing_and_the_records_tell() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let mut client = Client::begin(&plane, &alice).await;
    client.round_trip("before").await;
    // It has sent what it does not know the fate of, and reads no answer on this connection.
    client.endpoint.write(b"on the way");
    client.send().await;
    assert!(matches!(
        client.come_back(&plane, &alice).await,
        Status::Resumed { .. }
    ));
    client.send().await;
    client.reads("on the way").await;
    client.round_trip("after").await;
    client.finish().await;
    let resumed = plane.event("session.resume").await;
    let start = plane.event("session.start").await;
    assert_eq!(resumed["session_id"], start["session_id"]);
    assert_ne!(resumed["connection_id"], start["connection_id"]);
    let end = plane.event("session.end").await;
    let bytes = "beforeon the wayafter".len();
    let back = bytes + FAREWELL.len();
    assert_eq!(
        (
            &end["resumes"],
            &end["bytes_in"],
            &end["bytes_out"],
            &end["close_reason"]
        ),
        (&1.into(), &bytes.into(), &back.into(), &"client_closed".into())
    );
    running.stop().await;
}

/// Nobody knows yet which of these bytes the agent has, and whoever sends them has not heard its answer.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_repeated_behind_the_hello_arrives_once_and_voids_no_ticket() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let mut client = Client::begin(&plane, &alice).await;
    client.round_trip("before").await;
    client.endpoint.write(b" on the way");
    client.send().await;
    client.endpoint.write(b" while away");
    // The answer to this is lost, and what it says to the backend is not.
    let repeat = client.endpoint.repeat();
    let (mut lost, answer) = ask_with(&plane, &alice, client.request(), &repeat.frames).await;
    assert!(matches!(answer, Status::Resumed { .. }), "{answer:?}");
    tokio::time::timeout(WAIT, lost.read_u8())
        .await
        .expect("an echo")
        .unwrap();
    drop(lost);
    let repeat = client.endpoint.repeat();
    assert_ne!(repeat, Repeat::default());
    let answer = client.come_back_with(&plane, &alice, repeat).await;
    assert!(matches!(answer, Status::Resumed { .. }), "{answer:?}");
    client.send().await;
    client.reads(" on the way while away").await;
    client.round_trip("after").await;
    client.finish().await;
    let end = plane.event("session.end").await;
    assert_eq!(end["bytes_in"], "before on the way while awayafter".len());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_of_no_use_to_anybody_else_and_to_nobody_twice() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let mut client = Client::begin(&plane, &alice).await;
    client.round_trip("before").await;
    let first = client.request();
    // The same person with another key, and somebody else.
    let elsewhere = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let carol = plane.cluster.user("carol@example.com", &["engineering"]).unwrap();
    for thief in [&elsewhere, &carol] {
        assert_eq!(code(&ask(&plane, thief, first.clone()).await.1), "resume_refused");
    }
    let refused = plane.event("session.resume_refused").await;
    assert_eq!(refused["session_id"], client.session_id.to_string());
    let guessed = ResumeRequest {
        ticket: Ticket::from_random([7; 32]),
        ..first.clone()
    };
    assert_eq!(code(&ask(&plane, &alice, guessed).await.1), "resume_refused");
    let unknown = ResumeRequest {
        session_id: SessionId::from_uuid(uuid::Uuid::now_v7()),
        ..first.clone()
    };
    assert_eq!(code(&ask(&plane, &alice, unknown).await.1), "session_over");

    // An answer that was lost on its way can be asked for again; once it has arrived, the ticket is void.
    assert!(matches!(
        ask(&plane, &alice, first.clone()).await.1,
        Status::Resumed { .. }
    ));
    assert!(matches!(
        client.come_back(&plane, &alice).await,
        Status::Resumed { .. }
    ));
    client.round_trip("after").await;
    assert_eq!(code(&ask(&plane, &alice, first).await.1), "resume_refused");
    client.round_trip("and the session knows nothing of it").await;
    client.finish().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_cannot_be_is_refused_and_ends_the_session() {
    for (ahead, sent) in [(1_000_000, "before"), (0, "before")] {
        let (plane, running) = Plane::started().await;
        let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
        let mut client = Client::begin(&plane, &alice).await;
        client.round_trip(sent).await;
        // So that the agent knows that it arrived.
        client.endpoint.acknowledge();
        client.endpoint.ask();
        client.send().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let request = ResumeRequest {
            position: ahead,
            ..client.request()
        };
        assert_eq!(code(&ask(&plane, &alice, request).await.1), "resume_refused");
        let end = plane.event("session.end").await;
        assert_eq!(end["close_reason"], "client_lost");
        assert_eq!(code(&client.come_back(&plane, &alice).await), "session_over");
        running.stop().await;
    }
}

/// Two connections at once: the newest has the session.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_connections_the_newer_one_counts() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let mut client = Client::begin(&plane, &alice).await;
    client.round_trip("by the first").await;
    let (_, mut older) = plane.proxy.open_agent().await;
    assert!(matches!(
        client.come_back(&plane, &alice).await,
        Status::Resumed { .. }
    ));
    client.round_trip("by the second").await;
    drop(older.shutdown().await);
    client.round_trip("still").await;
    client.finish().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_who_may_no_longer_cannot_come_back_and_the_session_is_over() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    // By a certificate of now that no longer names the group.
    let mut client = Client::begin(&plane, &alice).await;
    client.round_trip("before").await;
    let profile = Profile::User(plane.cluster.user_profile("alice@example.com", &[]).unwrap());
    let key = rcgen::KeyPair::from_pem(&alice.key_pem()).unwrap();
    let regrouped = plane
        .cluster
        .issue_for(profile, key, time::OffsetDateTime::now_utc())
        .unwrap();
    assert_eq!(code(&client.come_back(&plane, &regrouped).await), "denied");
    let end = plane.event("session.end").await;
    assert_eq!(end["close_reason"], "policy");
    assert_eq!(code(&client.come_back(&plane, &alice).await), "session_over");
    // By a lock.
    let mut client = Client::begin(&plane, &alice).await;
    client.round_trip("before").await;
    plane.lock(LockKind::User, "alice@example.com", "a drill");
    plane
        .record(|record| record.event == "session.end" && record.fields["close_reason"] == "lock")
        .await;
    let over = client.come_back(&plane, &alice).await;
    assert!(["session_over", "locked"].contains(&code(&over)), "{over:?}");
    running.stop().await;
}

/// A client that is gone for longer than it is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_waited_for_so_long_and_no_longer() {
    let plane = Plane::new().await;
    let mut config = plane.config();
    config.limits.resume_seconds_max = 1;
    let running = plane.start_with(config).await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let mut client = Client::begin(&plane, &alice).await;
    client.round_trip("before").await;
    client.stream.io_mut().shutdown().await.unwrap();
    let end = plane.event("session.end").await;
    assert_eq!(end["close_reason"], "client_lost");
    assert!(
        end["close_detail"].as_str().unwrap().contains("within 1 s"),
        "{end:?}"
    );
    assert_eq!(code(&client.come_back(&plane, &alice).await), "session_over");
    running.stop().await;
}

/// Where it is switched off, a client is served as by any agent that does not know of it.
#[tokio::test(flavor = "multi_thread")]
async fn switched_off_clients_are_served_without() {
    let plane = Plane::new().await;
    let mut config = plane.config();
    config.limits.resume_seconds_max = 0;
    let running = plane.start_with(config).await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (_, stream) = connect_as(
        &plane,
        "echo",
        &host("echo"),
        Some(&alice),
        &["iap-resume/1", "iap/1"],
    )
    .await;
    let stream = stream.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"iap/1"[..]));
    drop(stream);
    running.stop().await;
}
