//! The same facts hold for both pumps.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;

#[derive(Debug, Clone, Copy)]
enum Pump {
    Copy,
    Splice,
}

const BOTH: [Pump; 2] = [Pump::Copy, Pump::Splice];

/// A client and a backend with a pump between them.
struct Session {
    client: TcpStream,
    backend: TcpStream,
    counters: Counters,
    cancellation: Cancellation,
    pump: JoinHandle<Closed>,
}

async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

async fn session(pump: Pump, limits: impl LiveLimits + Send + Sync + 'static) -> Session {
    let (client, mut pump_client) = connected().await;
    let (backend, mut pump_backend) = connected().await;
    let (counters, cancellation) = (Counters::new(), Cancellation::new());
    let (shared, order) = (counters.clone(), cancellation.clone());
    let pump = tokio::spawn(async move {
        match pump {
            Pump::Copy => copy(pump_client, pump_backend, &limits, &shared, &order).await,
            Pump::Splice => splice(&mut pump_client, &mut pump_backend, &limits, &shared, &order).await,
        }
    });
    Session {
        client,
        backend,
        counters,
        cancellation,
        pump,
    }
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|index| (index.wrapping_mul(31) >> 3) as u8 ^ seed)
        .collect()
}

async fn write_pieces(mut stream: impl AsyncWriteExt + Unpin, bytes: Vec<u8>, piece: usize) {
    for piece in bytes.chunks(piece.max(1)) {
        stream.write_all(piece).await.unwrap();
    }
    stream.shutdown().await.unwrap();
}

/// Sends both ways at once, each end closing its direction when done; returns what arrived.
async fn exchange(
    session: Session,
    inward: (Vec<u8>, usize),
    outward: (Vec<u8>, usize),
) -> (Vec<u8>, Vec<u8>, Closed) {
    let (mut client_read, client_write) = session.client.into_split();
    let (mut backend_read, backend_write) = session.backend.into_split();
    let writing = [
        tokio::spawn(write_pieces(client_write, inward.0, inward.1)),
        tokio::spawn(write_pieces(backend_write, outward.0, outward.1)),
    ];
    let (mut at_backend, mut at_client) = (Vec::new(), Vec::new());
    let (first, second) = tokio::join!(
        backend_read.read_to_end(&mut at_backend),
        client_read.read_to_end(&mut at_client)
    );
    first.unwrap();
    second.unwrap();
    for writer in writing {
        writer.await.unwrap();
    }
    (at_backend, at_client, session.pump.await.unwrap())
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn bytes_arrive_unchanged_and_are_counted(
        inward in 0usize..700_000, outward in 0usize..700_000, small in 1usize..3000, large in 1usize..400_000, seed: u8,
    ) {
        for pump in BOTH {
            let (sent_in, sent_out) = (pattern(inward, seed), pattern(outward, !seed));
            let (at_backend, at_client, closed) = block_on(async {
                let session = session(pump, PumpLimits::default()).await;
                exchange(session, (sent_in.clone(), small), (sent_out.clone(), large)).await
            });
            prop_assert!(at_backend == sent_in, "{pump:?}: client to backend");
            prop_assert!(at_client == sent_out, "{pump:?}: backend to client");
            prop_assert_eq!((closed.bytes_in, closed.bytes_out), (inward as u64, outward as u64));
            prop_assert!(matches!(closed.reason, CloseReason::ClientClosed | CloseReason::BackendClosed));
        }
    }
}

#[tokio::test]
async fn a_stream_that_pauses_and_resumes_arrives_unchanged() {
    for pump in BOTH {
        let mut session = session(pump, PumpLimits::default()).await;
        for (round, length) in [500_000, 3, 200_000, 1, 70_000].into_iter().enumerate() {
            let sent = pattern(length, round as u8);
            let (mut read, mut write) = (&mut session.backend, &mut session.client);
            if round % 2 == 1 {
                std::mem::swap(&mut read, &mut write);
            }
            let mut received = vec![0; length];
            let (wrote, got) = tokio::join!(write.write_all(&sent), read.read_exact(&mut received));
            wrote.unwrap();
            got.unwrap();
            assert!(received == sent, "{pump:?} round {round}");
        }
    }
}

#[tokio::test]
async fn a_client_that_closes_its_direction_still_hears_the_backend() {
    for pump in BOTH {
        let mut session = session(pump, PumpLimits::default()).await;
        session.client.write_all(b"question").await.unwrap();
        session.client.shutdown().await.unwrap();
        let mut question = String::new();
        session.backend.read_to_string(&mut question).await.unwrap();
        session.backend.write_all(b"answer").await.unwrap();
        drop(session.backend);
        let mut answer = String::new();
        session.client.read_to_string(&mut answer).await.unwrap();
        assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
        let closed = session.pump.await.unwrap();
        assert!(
            matches!(closed.reason, CloseReason::ClientClosed),
            "{pump:?}: {closed:?}"
        );
        assert_eq!((closed.bytes_in, closed.bytes_out), (8, 6));
    }
}

#[tokio::test]
async fn a_backend_that_closes_its_direction_still_hears_the_client() {
    for pump in BOTH {
        let mut session = session(pump, PumpLimits::default()).await;
        session.backend.shutdown().await.unwrap();
        let mut nothing = Vec::new();
        session.client.read_to_end(&mut nothing).await.unwrap();
        session.client.write_all(b"late").await.unwrap();
        session.client.shutdown().await.unwrap();
        let mut late = String::new();
        session.backend.read_to_string(&mut late).await.unwrap();
        assert_eq!((nothing.len(), late.as_str()), (0, "late"));
        let closed = session.pump.await.unwrap();
        assert!(
            matches!(closed.reason, CloseReason::BackendClosed),
            "{pump:?}: {closed:?}"
        );
    }
}

#[tokio::test]
async fn a_reset_names_the_side_it_came_from() {
    for pump in BOTH {
        let session = session(pump, PumpLimits::default()).await;
        session.backend.set_zero_linger().unwrap();
        drop(session.backend);
        let closed = session.pump.await.unwrap();
        assert!(
            matches!(closed.reason, CloseReason::BackendFailed(_)),
            "{pump:?}: {closed:?}"
        );
    }
}

#[tokio::test]
async fn cancelling_closes_both_ends_with_the_reason() {
    for pump in BOTH {
        let mut session = session(pump, PumpLimits::default()).await;
        session.client.write_all(b"x").await.unwrap();
        session.backend.read_u8().await.unwrap();
        session.cancellation.cancel("lock: stolen laptop");
        session.cancellation.cancel("later reason");
        let closed = session.pump.await.unwrap();
        match closed.reason {
            CloseReason::Cancelled(reason) => assert_eq!(&*reason, "lock: stolen laptop"),
            other => panic!("{pump:?}: {other:?}"),
        }
        assert_eq!(session.client.read(&mut [0; 1]).await.unwrap(), 0);
        assert_eq!(session.backend.read(&mut [0; 1]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn cancelling_works_while_the_peer_does_not_read() {
    for pump in BOTH {
        let session = session(pump, PumpLimits::default()).await;
        let (_client_read, mut client_write) = session.client.into_split();
        let flood = tokio::spawn(async move {
            let bytes = vec![7; 1 << 20];
            while client_write.write_all(&bytes).await.is_ok() {}
        });
        while session.counters.bytes_in() < 1 << 16 {
            tokio::task::yield_now().await;
        }
        session.cancellation.cancel("enough");
        let closed = session.pump.await.unwrap();
        assert!(matches!(closed.reason, CloseReason::Cancelled(_)), "{pump:?}");
        flood.await.unwrap();
    }
}

#[tokio::test]
async fn a_silent_session_ends_as_idle_and_a_busy_one_does_not() {
    let limits = PumpLimits {
        idle: Some(Duration::from_millis(150)),
        half_closed_idle: None,
    };
    for pump in BOTH {
        let mut session = session(pump, limits).await;
        let started = std::time::Instant::now();
        while started.elapsed() < Duration::from_millis(900) {
            session.client.write_all(b"x").await.unwrap();
            session.backend.read_u8().await.unwrap();
        }
        let closed = session.pump.await.unwrap();
        assert!(matches!(closed.reason, CloseReason::Idle), "{pump:?}: {closed:?}");
    }
}

/// A limit that somebody else changes.
struct Shared(Arc<IdleLimit>);

impl LiveLimits for Shared {
    fn now(&self) -> PumpLimits {
        self.0.now()
    }

    fn wake_when_changed(&self, pump: &Waker) {
        self.0.wake_when_changed(pump);
    }
}

#[tokio::test]
async fn an_idle_limit_that_changes_holds_for_a_session_that_rests_already() {
    for pump in BOTH {
        let idle = Arc::new(IdleLimit::default());
        let mut session = session(pump, Shared(Arc::clone(&idle))).await;
        session.client.write_all(b"x").await.unwrap();
        session.backend.read_u8().await.unwrap();
        idle.set(Some(Duration::from_secs(3600)));
        idle.set(Some(Duration::from_millis(20)));
        let closed = session.pump.await.unwrap();
        assert!(matches!(closed.reason, CloseReason::Idle), "{pump:?}: {closed:?}");
    }
}

#[tokio::test]
async fn a_half_closed_session_that_falls_silent_ends() {
    let limits = PumpLimits {
        idle: None,
        half_closed_idle: Some(Duration::from_millis(20)),
    };
    for pump in BOTH {
        let mut session = session(pump, limits).await;
        session.client.shutdown().await.unwrap();
        let closed = session.pump.await.unwrap();
        let reason = &closed.reason;
        assert!(
            matches!(reason, CloseReason::ClientClosed),
            "{pump:?}: {closed:?}"
        );
    }
}

#[tokio::test]
async fn a_rest_that_ends_a_half_closed_session_is_told_by_the_limit_that_it_passed() {
    for pump in BOTH {
        for (idle, half) in [(20, 600_000), (600_000, 20)] {
            let limits = PumpLimits {
                idle: Some(Duration::from_millis(idle)),
                half_closed_idle: Some(Duration::from_millis(half)),
            };
            let mut session = session(pump, limits).await;
            session.backend.shutdown().await.unwrap();
            let closed = session.pump.await.unwrap();
            let is_told = match idle < half {
                true => matches!(closed.reason, CloseReason::Idle),
                false => matches!(closed.reason, CloseReason::BackendClosed),
            };
            assert!(is_told, "{pump:?}: {closed:?}");
        }
    }
}

/// Lets a session be half-closed for ever from some moment on, without a word.
#[derive(Default)]
struct Relenting {
    has_relented: AtomicBool,
    looks_since: AtomicUsize,
}

impl LiveLimits for Relenting {
    fn now(&self) -> PumpLimits {
        let has_relented = self.has_relented.load(Ordering::SeqCst);
        self.looks_since
            .fetch_add(usize::from(has_relented), Ordering::SeqCst);
        PumpLimits {
            idle: None,
            half_closed_idle: (!has_relented).then_some(Duration::from_millis(20)),
        }
    }
}

#[tokio::test]
async fn limits_are_looked_up_again_before_one_ends_a_session() {
    let (mut client, near) = tokio::io::duplex(64);
    let (mut backend, far) = tokio::io::duplex(64);
    let limits = Relenting::default();
    let (counters, cancellation) = (Counters::new(), Cancellation::new());
    let pump = copy(near, far, &limits, &counters, &cancellation);
    let talk = async {
        client.shutdown().await.unwrap();
        assert_eq!(backend.read(&mut [0]).await.unwrap(), 0);
        limits.has_relented.store(true, Ordering::SeqCst);
        while limits.looks_since.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        backend.write_all(b"late").await.unwrap();
        drop(backend);
        let mut late = Vec::new();
        client.read_to_end(&mut late).await.unwrap();
        assert_eq!(late, b"late");
    };
    let (closed, ()) = tokio::join!(pump, talk);
    assert!(matches!(closed.reason, CloseReason::ClientClosed), "{closed:?}");
}

#[tokio::test]
async fn what_was_written_to_a_buffering_stream_is_flushed() {
    let (mut client, near) = tokio::io::duplex(64);
    let (mut backend, far) = tokio::io::duplex(64);
    let buffered = tokio::io::BufWriter::with_capacity(1024, far);
    let (limits, counters, cancellation) = (PumpLimits::default(), Counters::new(), Cancellation::new());
    let pump = copy(near, buffered, &limits, &counters, &cancellation);
    let talk = async {
        client.write_all(b"hello").await.unwrap();
        let mut hello = [0; 5];
        backend.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello");
        drop((client, backend));
    };
    tokio::join!(pump, talk);
}

/// A session that is given up again and again, in the middle of whatever moves, is gone on with as if nothing had happened.
#[tokio::test]
async fn a_session_that_is_given_up_and_gone_on_with_loses_and_doubles_nothing() {
    const BYTES: usize = 8 << 20;
    let (client, client_end) = connected().await;
    let (backend, backend_end) = connected().await;
    let pump = tokio::spawn(async move {
        let (counters, cancellation) = (Counters::new(), Cancellation::new());
        let mut session = Yielded {
            client: client_end,
            backend: backend_end,
            under_way: UnderWay::default(),
        };
        let limits = PumpLimits::default();
        let (mut yields, mut with_bytes) = (0, 0);
        loop {
            let asked = Box::pin(tokio::time::sleep(Duration::from_micros(300)));
            let relayed = go_on(session, &limits, &counters, &cancellation, asked, async |_, _| {}).await;
            match relayed {
                Relayed::Closed(closed) => return (closed, yields, with_bytes),
                Relayed::Yielded(yielded) => session = *yielded,
            }
            yields += 1;
            let UnderWay { inward, outward, .. } = &session.under_way;
            with_bytes += usize::from(!inward.bytes.is_empty() || !outward.bytes.is_empty());
        }
    });
    let says = |stream: TcpStream, seed: u8| async move {
        let (mut reading, mut writing) = stream.into_split();
        let writing = tokio::spawn(async move {
            writing.write_all(&pattern(BYTES, seed)).await.unwrap();
            writing.shutdown().await.unwrap();
        });
        let mut heard = Vec::new();
        // Slowly, so that the other direction fills up.
        let mut piece = vec![0; 32 * 1024];
        loop {
            let count = reading.read(&mut piece).await.unwrap();
            if count == 0 {
                break;
            }
            heard.extend_from_slice(piece.get(..count).unwrap());
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
        writing.await.unwrap();
        heard
    };
    let (to_client, to_backend) = tokio::join!(says(client, 1), says(backend, 2));
    assert!(to_client == pattern(BYTES, 2) && to_backend == pattern(BYTES, 1));
    let (closed, yields, with_bytes) = pump.await.unwrap();
    assert_eq!((closed.bytes_in, closed.bytes_out), (BYTES as u64, BYTES as u64));
    assert!(matches!(
        closed.reason,
        CloseReason::ClientClosed | CloseReason::BackendClosed
    ));
    assert!(yields > 10 && with_bytes > 0, "{yields} {with_bytes}");
}

/// What had rested before rests on.
#[tokio::test]
async fn a_session_that_is_gone_on_with_may_rest_no_longer_than_another() {
    let (_client, client_end) = connected().await;
    let (_backend, backend_end) = connected().await;
    let session = Yielded {
        client: client_end,
        backend: backend_end,
        under_way: UnderWay {
            rested: Duration::from_secs(3600),
            ..UnderWay::default()
        },
    };
    let limits = PumpLimits {
        idle: Some(Duration::from_secs(3600)),
        half_closed_idle: None,
    };
    let (counters, cancellation) = (Counters::new(), Cancellation::new());
    let never = std::future::pending();
    let going_on = go_on(session, &limits, &counters, &cancellation, never, async |_, _| {});
    let relayed = tokio::time::timeout(Duration::from_secs(20), going_on)
        .await
        .unwrap();
    let Relayed::Closed(closed) = relayed else {
        panic!("nobody asked for it")
    };
    assert!(matches!(closed.reason, CloseReason::Idle));
}
