//! Streams over connections that break, hang and come back.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
use std::sync::{Arc, Mutex};

use iap_tunnel::resume::WINDOW_BYTES_MIN;
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::*;

const WINDOW: usize = 256 * 1024;
const PIPE_BYTES: usize = 16 * 1024;

/// One end's way to connections, and what it says of itself while it has none.
struct Way {
    arrivals: mpsc::UnboundedReceiver<Arrival<DuplexStream>>,
    /// Where it stands, while it is without a connection.
    stands: watch::Sender<Option<u64>>,
}

impl Reconnect<DuplexStream> for Way {
    const REPLACES: bool = false;

    fn poll_next(
        &mut self,
        context: &mut Context<'_>,
        endpoint: &mut Endpoint,
    ) -> Poll<io::Result<Arrival<DuplexStream>>> {
        self.stands.send_replace(Some(endpoint.position()));
        match ready!(self.arrivals.poll_recv(context)) {
            Some(arrival) => Poll::Ready(Ok(arrival)),
            None => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }

    fn lost(&mut self, _why: &io::Error) {}

    fn found(&mut self) {
        self.stands.send_replace(None);
    }
}

type End = Resumable<DuplexStream, Way>;

/// Where an end stands while it has no connection.
type Stands = watch::Receiver<Option<u64>>;

/// What lies between two ends.
struct Network {
    relay: JoinHandle<()>,
    ways: [(mpsc::UnboundedSender<Arrival<DuplexStream>>, Stands); 2],
}

impl Network {
    fn pair(window: usize) -> (End, End, Self) {
        let (relay, [one, other]) = connect();
        let end = |connection| {
            let (sender, arrivals) = mpsc::unbounded_channel();
            let (stands, seen) = watch::channel(None);
            let way = Way { arrivals, stands };
            let end =
                Resumable::new(connection, &[], Endpoint::new(window), way, Allowance::default()).unwrap();
            (end, (sender, seen))
        };
        let ((one, way), (other, other_way)) = (end(one), end(other));
        let ways = [way, other_way];
        (one, other, Self { relay, ways })
    }

    async fn cut(&mut self) {
        self.relay.abort();
        let _ = (&mut self.relay).await;
    }

    /// Once both know that they have no connection, they get another.
    async fn mend(&mut self) {
        let mut stand = Vec::new();
        for (_, seen) in &mut self.ways {
            stand.push(seen.wait_for(Option::is_some).await.unwrap().unwrap());
        }
        let (relay, [one, other]) = connect();
        self.relay = relay;
        for (at, connection) in [(0, one), (1, other)] {
            let arrival = Arrival {
                connection,
                read: Vec::new(),
                position: stand[1 - at],
                repeated: 0,
                answer: None,
            };
            let _ = self.ways[at].0.send(arrival);
        }
    }
}

fn connect() -> (JoinHandle<()>, [DuplexStream; 2]) {
    let (one, mut near) = tokio::io::duplex(PIPE_BYTES);
    let (other, mut far) = tokio::io::duplex(PIPE_BYTES);
    let relay = tokio::spawn(async move {
        let _ = tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, 1024, 1024).await;
        std::future::pending().await
    });
    (relay, [one, other])
}

fn bytes(count: usize, salt: usize) -> Vec<u8> {
    (0..count)
        .map(|n| u8::try_from((n * 31 + (n >> 9) + salt) % 251).unwrap())
        .collect()
}

/// Sends, receives what the other end sends, and ends.
async fn exchange(mut end: End, sends: Vec<u8>, awaits: Vec<u8>) {
    let (mut reader, mut writer) = tokio::io::split(&mut end);
    let sending = async {
        writer.write_all(&sends).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let receiving = async {
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.unwrap();
        assert!(received == awaits, "{} of {}", received.len(), awaits.len());
    };
    tokio::join!(sending, receiving);
}

#[tokio::test]
async fn every_byte_arrives_though_the_connection_breaks_again_and_again() {
    let (one, other, mut network) = Network::pair(WINDOW);
    let (there, back) = (bytes(3_000_000, 1), bytes(1_000_000, 2));
    let ends = async {
        tokio::join!(
            tokio::spawn(exchange(one, there.clone(), back.clone())),
            tokio::spawn(exchange(other, back.clone(), there.clone()))
        )
    };
    let breaks = async {
        for pause in 0.. {
            tokio::time::sleep(Duration::from_micros(1 + pause % 7)).await;
            for _ in 0..20 * (pause % 13) {
                tokio::task::yield_now().await;
            }
            network.cut().await;
            network.mend().await;
        }
    };
    tokio::select! {
        (one, other) = ends => {
            one.unwrap();
            other.unwrap();
        }
        () = breaks => {}
    }
}

#[tokio::test]
async fn a_lost_connection_is_silence_and_no_way_back_an_error() {
    let (mut one, other, mut network) = Network::pair(WINDOW);
    network.cut().await;
    let mut byte = [0];
    let silence = tokio::time::timeout(Duration::from_millis(200), one.read(&mut byte)).await;
    assert!(silence.is_err());
    one.write_all(b"kept").await.unwrap();
    one.flush().await.unwrap();
    drop(network);
    let error = one.read(&mut byte).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert_eq!(one.write(b"x").await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    drop(other);
}

#[tokio::test]
async fn the_end_waits_until_it_is_acknowledged() {
    let (mut one, mut other, mut network) = Network::pair(WINDOW);
    one.write_all(b"last words").await.unwrap();
    let ending = tokio::spawn(async move {
        one.shutdown().await.unwrap();
        one
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!ending.is_finished(), "nobody has read them");
    network.cut().await;
    let reading = tokio::spawn(async move {
        let mut received = Vec::new();
        other.read_to_end(&mut received).await.unwrap();
        other.flush().await.unwrap();
        (received, other)
    });
    network.mend().await;
    let (received, _other) = reading.await.unwrap();
    assert_eq!(received, b"last words");
    ending.await.unwrap();
}

#[tokio::test]
async fn a_close_ends_it_for_good_behind_the_bytes_and_says_why() {
    let (mut one, mut other, _network) = Network::pair(WINDOW);
    one.write_all(b"bytes").await.unwrap();
    one.close(Close {
        code: "lock".into(),
        text: "alice is locked".into(),
    });
    let mut received = Vec::new();
    let error = other.read_to_end(&mut received).await.unwrap_err();
    assert_eq!(
        (received.as_slice(), error.to_string().as_str()),
        (&b"bytes"[..], "alice is locked")
    );
    assert!(other.write(b"x").await.is_err());
    assert_eq!(other.peer_closed().unwrap().code, "lock");
}

/// Neither end reads: acknowledgements are found all the same, and neither takes the other for dead.
#[tokio::test]
async fn both_sending_at_once_without_reading_stops_at_the_window_and_goes_on_afterwards() {
    let (one, other, _network) = Network::pair(WINDOW_BYTES_MIN);
    let fill = async |mut end: End| {
        let end_bytes = bytes(1_000_000, 3);
        let mut sent = 0;
        while let Ok(count) =
            tokio::time::timeout(Duration::from_secs(3), end.write(&end_bytes[sent..])).await
        {
            sent += count.unwrap();
        }
        (end, sent)
    };
    let ((mut one, sent), (mut other, _)) = tokio::join!(fill(one), fill(other));
    assert_eq!(sent, WINDOW_BYTES_MIN, "the window and no more");
    let mut received = vec![0; sent];
    let (read, written) = tokio::join!(other.read_exact(&mut received), one.write(b"more"));
    assert_eq!((read.unwrap(), written.unwrap()), (sent, 4));
    assert_eq!(received, bytes(sent, 3));
}

#[tokio::test]
async fn what_is_read_is_acknowledged_soon_and_no_longer_kept() {
    let (mut one, mut other, _network) = Network::pair(WINDOW);
    one.write_all(b"short").await.unwrap();
    let mut received = [0; 5];
    other.read_exact(&mut received).await.unwrap();
    assert_eq!(one.endpoint.kept(), 5);
    let waits = |mut end: End| {
        tokio::spawn(async move {
            let _ = tokio::time::timeout(2 * ACKNOWLEDGED_AFTER, end.read(&mut [0])).await;
            end
        })
    };
    let (one, _other) = tokio::join!(waits(one), waits(other));
    assert_eq!(one.unwrap().endpoint.kept(), 0);
}

#[tokio::test]
async fn with_a_ledger_what_is_read_is_acknowledged_once_it_was_passed_on() {
    let (mut one, mut other, _network) = Network::pair(WINDOW);
    let ledger = Arc::new(Ledger::default());
    other.follow(Arc::clone(&ledger));
    one.write_all(b"short").await.unwrap();
    other.read_exact(&mut [0; 5]).await.unwrap();
    for (passed_on, kept) in [(0, 5), (2, 3), (5, 0)] {
        ledger.pass(passed_on);
        let patience = 3 * ACKNOWLEDGED_AFTER;
        let (mut at_one, mut at_other) = ([0], [0]);
        let (_, _) = tokio::join!(
            tokio::time::timeout(patience, one.read(&mut at_one)),
            tokio::time::timeout(patience, other.read(&mut at_other)),
        );
        assert_eq!(one.endpoint.kept(), kept);
    }
    other.write_all(b"back").await.unwrap();
    one.read_exact(&mut [0; 4]).await.unwrap();
    let (mut at_one, mut at_other) = ([0], [0]);
    let patience = 3 * ACKNOWLEDGED_AFTER;
    let (_, _) = tokio::join!(
        tokio::time::timeout(patience, one.read(&mut at_one)),
        tokio::time::timeout(patience, other.read(&mut at_other)),
    );
    assert_eq!(ledger.acknowledged(), 4);
}

/// The end of a connection behind the last frame of both ends is no loss: nobody looks for another.
#[tokio::test]
async fn a_session_that_is_over_looks_for_no_connection() {
    let (mut one, mut other, network) = Network::pair(WINDOW);
    let leaving = tokio::spawn(async move {
        other.write_all(b"bye").await.unwrap();
        let (mut reader, mut writer) = tokio::io::split(other);
        let mut said = Vec::new();
        let (read, written) = tokio::join!(reader.read_to_end(&mut said), writer.shutdown());
        read.unwrap();
        written.unwrap();
    });
    let mut said = Vec::new();
    one.read_to_end(&mut said).await.unwrap();
    one.shutdown().await.unwrap();
    assert_eq!(said, b"bye");
    assert!(one.is_over());
    leaving.await.unwrap();
    assert_eq!(*network.ways[0].1.borrow(), None);
}

/// The connection swallows everything: whoever waits for an answer finds out, and whoever waits for nothing does too.
#[tokio::test]
async fn a_connection_that_swallows_everything_is_given_up() {
    let patience = Patience {
        outstanding: Duration::from_millis(100),
        idle: Duration::from_millis(1_000),
        answer: Duration::from_millis(200),
    };
    for (writes, within) in [
        (true, patience.outstanding + patience.answer),
        (false, patience.outstanding + patience.answer),
    ] {
        let (connection, _hole) = tokio::io::duplex(PIPE_BYTES);
        let (_sender, arrivals) = mpsc::unbounded_channel();
        let (stands, mut seen) = watch::channel(None);
        let way = Way { arrivals, stands };
        let end = Resumable::new(connection, &[], Endpoint::new(WINDOW), way, Allowance::default()).unwrap();
        let mut end = end.with_patience(patience);
        let began = Instant::now();
        let waiting = tokio::spawn(async move {
            // Not the first thing that happens: silence has gone on for a while.
            let _ = tokio::time::timeout(Duration::from_millis(50), end.read(&mut [0])).await;
            if writes {
                end.write_all(b"anybody?").await.unwrap();
            }
            let _ = end.read(&mut [0]).await;
        });
        seen.wait_for(Option::is_some).await.unwrap();
        let after = began.elapsed();
        assert!(after >= within, "{after:?}");
        waiting.abort();
    }
}

/// A healthy connection at rest is asked now and then, and stays.
#[tokio::test]
async fn a_connection_at_rest_stays() {
    let (one, mut other, network) = Network::pair(WINDOW);
    let mut one = one.with_patience(Patience {
        outstanding: Duration::from_millis(50),
        idle: Duration::from_millis(50),
        answer: Duration::from_secs(2),
    });
    let resting = async {
        let (mut from_one, mut from_other) = ([0], [0]);
        tokio::join!(
            tokio::time::timeout(Duration::from_secs(3), one.read(&mut from_one)),
            tokio::time::timeout(Duration::from_secs(3), other.read(&mut from_other))
        )
    };
    let (read, _) = resting.await;
    assert!(read.is_err(), "still silent");
    assert_eq!(
        *network.ways[0].1.borrow(),
        None,
        "and never without a connection"
    );
}

#[tokio::test]
async fn who_cannot_go_on_is_told_and_the_session_ends() {
    let (mut one, _other, mut network) = Network::pair(WINDOW);
    network.cut().await;
    let (connection, mut caller) = tokio::io::duplex(PIPE_BYTES);
    let said = Arc::new(Mutex::new(None));
    let hears = Arc::clone(&said);
    let arrival = Arrival {
        connection,
        read: Vec::new(),
        position: 7,
        repeated: 0,
        answer: Some(Box::new(move |stands| {
            *hears.lock().unwrap() = Some(stands.is_err());
            b"no".to_vec()
        })),
    };
    network.ways[0].0.send(arrival).ok().unwrap();
    assert_eq!(
        one.read(&mut [0]).await.unwrap_err().kind(),
        io::ErrorKind::InvalidData
    );
    let mut told = Vec::new();
    caller.read_to_end(&mut told).await.unwrap();
    assert_eq!((told.as_slice(), *said.lock().unwrap()), (&b"no"[..], Some(true)));
}

#[test]
fn what_is_kept_counts_against_everybody_and_leaves_each_the_least() {
    let shared = Budget::new(1_000_000);
    let mut one = Allowance::within(vec![shared.clone(), Budget::new(500_000)]);
    let mut other = Allowance::within(vec![shared.clone()]);
    assert_eq!((one.window(), other.window()), (500_000, 1_000_000));
    one.settle(400_000);
    assert_eq!((one.window(), other.window()), (500_000, 600_000));
    other.settle(600_000);
    assert_eq!(
        (one.window(), other.window(), shared.taken()),
        (400_000, 600_000, 1_000_000)
    );
    drop(one);
    assert_eq!(shared.taken(), 600_000);
    shared.resize(0);
    assert_eq!(other.window(), 600_000);
    assert_eq!(Allowance::default().window(), usize::MAX);
}
