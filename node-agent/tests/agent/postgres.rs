//! Inspected PostgreSQL: clients that speak it badly, and a backend that closes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use iap_testkit::Credential;
use iap_tunnel::Status;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::client::{Stream, framed, raw};
use crate::farewells::{field, message, rest, startup};
use crate::plane::{POLICY, Plane, Running};
use crate::proxy::WAIT;

/// More than any first message may have (`MAX_STARTUP_PACKET_LENGTH`).
const STARTUP_BYTES_MAX: u32 = 10_000;
const CANCEL_REQUEST: u32 = 80_877_102;
/// Number and key that the backend gives.
const BACKEND_KEY: [u8; 8] = [0, 0, 0, 1, 0, 0, 0, 2];

/// A backend that trusts everybody, and hands over each connection once it is ready, and each request to cancel.
struct Backend {
    connections: Arc<AtomicUsize>,
    ready: mpsc::UnboundedReceiver<TcpStream>,
    cancels: mpsc::UnboundedReceiver<Vec<u8>>,
}

impl Backend {
    async fn start(plane: &mut Plane) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        plane.backend("db-prod", &listener.local_addr().unwrap().to_string());
        let (hand_over, ready) = mpsc::unbounded_channel();
        let (cancel, cancels) = mpsc::unbounded_channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let length = stream.read_u32().await.unwrap() as usize;
                let mut first = vec![0; length - 4];
                stream.read_exact(&mut first).await.unwrap();
                if first.starts_with(&CANCEL_REQUEST.to_be_bytes()) {
                    cancel.send(first[4..].to_vec()).unwrap();
                    continue;
                }
                let hello = [
                    message(b'R', &[0; 4]),
                    message(b'K', &BACKEND_KEY),
                    message(b'Z', b"I"),
                ];
                stream.write_all(&hello.concat()).await.unwrap();
                hand_over.send(stream).unwrap();
            }
        });
        Self {
            connections,
            ready,
            cancels,
        }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    async fn session(&mut self) -> TcpStream {
        tokio::time::timeout(WAIT, self.ready.recv())
            .await
            .expect("the agent logs in")
            .unwrap()
    }
}

/// An agent that reads `db-prod`, and somebody who may go there as `app`.
async fn inspecting() -> (Plane, Running, Backend, Credential) {
    serving(true).await
}

/// The same, read or not.
async fn serving(inspect: bool) -> (Plane, Running, Backend, Credential) {
    let mut plane = Plane::new().await;
    plane.auth.publish(|snapshot| {
        if inspect {
            snapshot.policy_toml = format!("{POLICY}logins = [\"app\"]\n");
        }
        snapshot.services[1].facts.inspect = inspect;
    });
    let backend = Backend::start(&mut plane).await;
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    (plane, running, backend, alice)
}

/// A first message of protocol `version`, whatever its body.
fn first(version: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(8 + body.len()).unwrap();
    [&length.to_be_bytes()[..], &version.to_be_bytes(), body].concat()
}

/// The same of protocol 3.
fn third(body: &[u8]) -> Vec<u8> {
    first(196_608, body)
}

/// First words that are none, and what PostgreSQL's clients read of them; nothing where somebody speaks something else.
fn malformed() -> Vec<(Vec<u8>, &'static str)> {
    let encryption = [0, 0, 0, 8, 4, 210, 22, 47];
    let length = |length: u32| [&length.to_be_bytes()[..], &196_608u32.to_be_bytes()].concat();
    vec![
        (first(131_072, b"user\0app\0\0"), "0A000"),
        (third(b"user\0app\0"), "08P01"),
        (third(b"user\0app\0database\0\0"), "08P01"),
        (third(b"database\0shop\0\0"), "08P01"),
        (third(b"user\0\xff\xfe\0\0"), "08P01"),
        (third(b""), "08P01"),
        ([startup(), message(b'Q', b"select 1\0")].concat(), "08P01"),
        ([&encryption[..], &startup()].concat(), "08P01"),
        (length(7), ""),
        (length(STARTUP_BYTES_MAX + 1), ""),
        (length(u32::MAX), ""),
        (first(CANCEL_REQUEST, &[0; 4]), ""),
        (first(0x7777_0000, b"user\0app\0\0"), ""),
        (b"GET / HTTP/1.1\r\nHost: db\r\n\r\n".to_vec(), ""),
    ]
}

/// What a client reads that begins with this.
async fn answer(mut stream: Stream, said: &[u8]) -> Vec<u8> {
    stream.write_all(said).await.unwrap();
    stream.flush().await.unwrap();
    rest(&mut stream).await
}

fn sqlstate(answer: &[u8]) -> String {
    match answer {
        [] => String::new(),
        answer => field(answer, 'C'),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_beginning_is_refused_in_postgresqls_words_before_any_backend_is_dialled() {
    let (plane, running, backend, alice) = inspecting().await;
    let all = malformed();
    for (said, expected) in &all {
        let (_, stream) = raw(&plane, "db-prod", &alice).await;
        let answer = answer(stream, said).await;
        assert_eq!(sqlstate(&answer), *expected, "{}", said.escape_ascii());
    }
    // By `iap/1` a session has begun by then, and its end says what was wrong.
    for (said, expected) in &all {
        let (stream, status) = framed(&plane, "db-prod", &alice).await;
        assert!(matches!(status, Status::Granted { .. }), "{status:?}");
        let answer = answer(stream, said).await;
        assert_eq!(sqlstate(&answer), *expected, "{}", said.escape_ascii());
    }
    let mut ends = Vec::new();
    let recorded = async || {
        let records = plane.auth.records();
        ends = records
            .into_iter()
            .filter(|record| record.event == "session.end")
            .collect();
        ends.len() == all.len()
    };
    iap_testkit::wait_until_async(recorded, WAIT).await.unwrap();
    for end in ends {
        assert_eq!(end.fields["close_reason"], "protocol", "{:?}", end.fields);
        assert!(
            end.fields["close_detail"]
                .as_str()
                .is_some_and(|detail| !detail.is_empty())
        );
    }
    assert_eq!(backend.connections(), 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_message_that_never_ends_is_given_up_in_time() {
    let (plane, running, backend, alice) = inspecting().await;
    let (_, mut stream) = raw(&plane, "db-prod", &alice).await;
    stream.write_all(&STARTUP_BYTES_MAX.to_be_bytes()).await.unwrap();
    stream.write_all(&196_608u32.to_be_bytes()).await.unwrap();
    // One byte less than promised.
    let body = vec![b'x'; STARTUP_BYTES_MAX as usize - 9];
    stream.write_all(&body).await.unwrap();
    stream.flush().await.unwrap();
    assert!(rest(&mut stream).await.is_empty());
    assert_eq!(backend.connections(), 0);
    running.stop().await;
}

/// A client in its session, and the backend's end of it.
async fn session(plane: &Plane, backend: &mut Backend, alice: &Credential) -> (Stream, TcpStream) {
    let (stream, far, _) = keyed_session(plane, backend, alice).await;
    (stream, far)
}

/// The same with what the client was told before it was its turn.
async fn keyed_session(
    plane: &Plane,
    backend: &mut Backend,
    alice: &Credential,
) -> (Stream, TcpStream, Vec<u8>) {
    let (_, mut stream) = raw(plane, "db-prod", alice).await;
    stream.write_all(&startup()).await.unwrap();
    stream.flush().await.unwrap();
    let far = backend.session().await;
    let mut seen = Vec::new();
    while !seen.ends_with(&message(b'Z', b"I")) {
        seen.push(stream.read_u8().await.unwrap());
    }
    (stream, far, seen)
}

async fn everything(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    tokio::time::timeout(WAIT, stream.read_to_end(&mut rest))
        .await
        .expect("the agent closes the connection to the backend")
        .unwrap();
    rest
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_in_the_midst_of_a_pipeline_ends_the_session_and_does_not_reach_the_backend() {
    let (plane, running, mut backend, alice) = inspecting().await;
    for garbage in [
        // Of an impossible length, of a negative one, a statement without its end, and names too long to be told apart.
        [&b"Q"[..], &3u32.to_be_bytes()].concat(),
        [&b"Q"[..], &u32::MAX.to_be_bytes()].concat(),
        message(b'P', b"no end"),
        message(b'E', &[b'n'; 2000]),
    ] {
        let (mut stream, mut far) = session(&plane, &mut backend, &alice).await;
        let statement = message(b'Q', b"select 1\0");
        stream.write_all(&statement).await.unwrap();
        stream.flush().await.unwrap();
        let mut arrived = vec![0; statement.len()];
        far.read_exact(&mut arrived).await.unwrap();
        assert_eq!(arrived, statement);
        far.write_all(&[message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat())
            .await
            .unwrap();
        let answer_bytes = message(b'C', b"SELECT 1\0").len() + message(b'Z', b"I").len();
        stream.read_exact(&mut vec![0; answer_bytes]).await.unwrap();
        stream.write_all(&garbage).await.unwrap();
        stream.flush().await.unwrap();
        let answer = rest(&mut stream).await;
        assert_eq!(field(&answer, 'C'), "57P01", "{}", garbage.escape_ascii());
        assert!(field(&answer, 'M').contains("cannot be followed"), "{answer:?}");
        assert!(
            everything(&mut far).await.is_empty(),
            "{}",
            garbage.escape_ascii()
        );
    }
    let reasons = || {
        let records = plane.auth.records();
        let ends = records.into_iter().filter(|record| record.event == "session.end");
        ends.map(|end| end.fields["close_reason"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    iap_testkit::wait_until_async(async || reasons() == ["protocol"; 4], WAIT)
        .await
        .unwrap();
    running.stop().await;
}

/// A message may be as long as the protocol has it; none of it waits here for the rest.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_two_gigabytes_goes_on_as_it_comes() {
    const PIECE_BYTES: usize = 1 << 20;
    let (plane, running, mut backend, alice) = inspecting().await;
    let (mut stream, mut far) = session(&plane, &mut backend, &alice).await;
    let beginning = [&b"Q"[..], &i32::MAX.to_be_bytes(), &vec![b' '; PIECE_BYTES]].concat();
    let sending = async {
        stream.write_all(&beginning).await.unwrap();
        stream.flush().await.unwrap();
    };
    let mut arrived = vec![0; beginning.len()];
    let receiving = tokio::time::timeout(WAIT, far.read_exact(&mut arrived));
    let ((), received) = tokio::join!(sending, receiving);
    received.expect("it goes on").unwrap();
    assert!(arrived == beginning);
    drop(stream);
    assert!(everything(&mut far).await.is_empty());
    running.stop().await;
}

/// An idle client, such as one in a pool, reads nothing and closes nothing by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_over_when_its_backend_closes_though_its_client_rests() {
    for inspect in [true, false] {
        let (plane, running, mut backend, alice) = serving(inspect).await;
        let (mut stream, mut far) = session(&plane, &mut backend, &alice).await;
        let why = message(b'E', b"SFATAL\0C57P01\0Mterminating connection\0\0");
        far.write_all(&why).await.unwrap();
        far.shutdown().await.unwrap();
        assert!(everything(&mut far).await.is_empty());
        let end = plane.event("session.end").await;
        assert_eq!(end["close_reason"], "backend_closed");
        assert_eq!(rest(&mut stream).await, why);
        running.stop().await;
    }
}

/// The number and key in what a client was told.
fn key(told: &[u8]) -> Vec<u8> {
    let beginning = [&b"K"[..], &12u32.to_be_bytes()].concat();
    let at = told.windows(5).position(|window| window == beginning).unwrap();
    told[at + 5..at + 13].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_cancelled_by_its_own_user_with_its_own_sessions_key_alone() {
    let (plane, running, mut backend, alice) = inspecting().await;
    let bob = plane.cluster.user("bob@example.com", &["engineering"]).unwrap();
    let (_stream, _far, told) = keyed_session(&plane, &mut backend, &alice).await;
    let (_other, _other_far, other_told) = keyed_session(&plane, &mut backend, &bob).await;
    let (own, other) = (key(&told), key(&other_told));
    assert_ne!(
        own[..4],
        BACKEND_KEY[..4],
        "the backend's own stays with the agent"
    );
    let cancel = async |who: &Credential, key: &[u8]| {
        let (_, mut stream) = raw(&plane, "db-prod", who).await;
        stream.write_all(&first(CANCEL_REQUEST, key)).await.unwrap();
        stream.flush().await.unwrap();
        assert!(
            rest(&mut stream).await.is_empty(),
            "nobody is told whether there was one"
        );
    };
    let mixed = [&own[..4], &other[4..]].concat();
    for (who, key) in [
        // Somebody else's, with the right key; one session's number with another's key; and the backend's.
        (&bob, &own[..]),
        (&alice, &other),
        (&alice, &mixed),
        (&alice, &BACKEND_KEY),
        (&alice, &[0; 8]),
    ] {
        cancel(who, key).await;
    }
    assert_eq!(backend.connections(), 2);
    cancel(&alice, &own).await;
    let arrived = tokio::time::timeout(WAIT, backend.cancels.recv()).await;
    assert_eq!(arrived.expect("it is passed on").unwrap(), BACKEND_KEY);
    assert_eq!(backend.connections(), 3);
    running.stop().await;
}
