//! What a peer that holds the keys may put on the wire, and what becomes of it: the same as with rustls in its usual form.

mod peer;

use std::fmt::Write as _;

use proptest::prelude::*;
use tokio::io::{AsyncRead, duplex};
use tokio_rustls::TlsConnector;

use super::streams::block_on;
use super::*;
use peer::{
    ALERT, CHANGE_CIPHER_SPEC, DATA, End, FRAGMENT_BYTES_MAX, HANDSHAKE, Item, PIPE_BYTES, Subject, meet,
};

const ENDS: [End; 2] = [End::Client, End::Server];

/// What became of it.
#[derive(Debug, PartialEq)]
struct Outcome {
    bytes: Vec<u8>,
    end: Result<(), String>,
    /// What the peer was sent; the subject closes its own direction at the end.
    heard: Vec<(Vec<u8>, u8)>,
}

/// What was wrong, as far as it matters how that is said.
fn said(error: &std::io::Error) -> String {
    match alert_received(error) {
        Some(alert) => format!("alert {alert:?}"),
        None => format!("{:?}", error.kind()),
    }
}

impl Outcome {
    /// Where rustls says nothing or only that a record cannot be opened, we may say that it should not have come, as RFC 8446
    /// wants it (§5, §5.4).
    fn agrees_with(&self, usual: &Self) -> bool {
        let is_known = |heard: &[(Vec<u8>, u8)], of: &[u8]| match heard {
            [] => true,
            [(alert, ALERT)] => alert.first() == Some(&2) && of.contains(&alert[1]),
            _ => false,
        };
        let is_alert = !self.heard.is_empty() && is_known(&self.heard, &[10, 50]);
        let is_told_more = is_alert && is_known(&usual.heard, &[20, 50]) && self.end.is_err();
        (&self.bytes, &self.end) == (&usual.bytes, &usual.end) && (self.heard == usual.heard || is_told_more)
    }
}

/// Sends `items`, cut into pieces, and closes the connection.
async fn outcome(subject: Subject, end: End, items: &[Item], pieces: &[usize], read: usize) -> Outcome {
    let (mut stream, mut peer) = meet(subject, end).await;
    let mut wire = Vec::new();
    for item in items {
        item.write(&mut peer.sealing, &mut wire);
    }
    let sending = async {
        let mut rest = &wire[..];
        for piece in pieces.iter().chain([&wire.len()]) {
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            // It may have closed after an error.
            if peer.io.write_all(now).await.is_err() {
                break;
            }
            rest = later;
            tokio::task::yield_now().await;
        }
        let _ = peer.io.shutdown().await;
        peer.read_to_end().await
    };
    let reading = async {
        let (mut bytes, mut buffer) = (Vec::new(), vec![0; read]);
        let mut end = None;
        // rustls may give what came before an error after it.
        for _ in 0..1 << 20 {
            match stream.read(&mut buffer).await {
                Ok(0) => {
                    end = end.or(Some(Ok(())));
                    break;
                }
                Ok(length) => bytes.extend_from_slice(&buffer[..length]),
                Err(error) if end.is_none() => end = Some(Err(said(&error))),
                Err(_) => break,
            }
        }
        let _ = stream.shutdown().await;
        drop(stream);
        (bytes, end.unwrap())
    };
    let (mut heard, (bytes, end)) = tokio::join!(sending, reading);
    // After what rustls has no alert for it closes as if all were well.
    if end.as_ref().is_err_and(|what| what != "UnexpectedEof") {
        heard.retain(|record| record.0 != CLOSE_NOTIFY);
    }
    Outcome { bytes, end, heard }
}

const USER_CANCELED: [u8; 2] = [1, 90];
const CLOSE_NOTIFY: [u8; 2] = [1, 0];

fn ticket() -> Vec<u8> {
    // Lifetime, age_add, a nonce of 1 byte, a ticket of 2, no extensions (RFC 8446 §4.6.1).
    let body = [0, 0, 1, 0, 1, 2, 3, 4, 1, 9, 0, 2, 7, 7, 0, 0];
    [&[4, 0, 0, body.len() as u8][..], &body].concat()
}

/// Everything of note by itself; each is followed by data that must not be delivered once something was wrong.
fn table() -> Vec<Item> {
    let whole = FRAGMENT_BYTES_MAX;
    vec![
        Item::Data {
            length: 1,
            padding: 0,
        },
        Item::Data {
            length: whole,
            padding: 0,
        },
        Item::Data {
            length: 10,
            padding: 1000,
        },
        Item::Data {
            length: 10,
            padding: whole - 10,
        },
        Item::Data {
            length: 10,
            padding: whole - 9,
        },
        Item::Data {
            length: whole + 1,
            padding: 0,
        },
        Item::Data {
            length: whole + 200,
            padding: 0,
        },
        Item::Empty { times: 1 },
        Item::Empty { times: 32 },
        Item::Empty { times: 33 },
        Item::Alert(CLOSE_NOTIFY.to_vec()),
        Item::Alert(vec![2, 0]),
        Item::Alert(USER_CANCELED.to_vec()),
        Item::Alert(vec![1, 100]),
        Item::Alert(vec![2, 42]),
        Item::Alert(vec![2, 49]),
        Item::Alert(vec![2, 250]),
        Item::Alert(vec![3, 42]),
        Item::Alert(vec![3, 0]),
        Item::Alert(vec![2]),
        Item::Alert(vec![]),
        Item::Alert(vec![2, 42, 0]),
        Item::Handshake(vec![]),
        Item::Handshake(vec![0]),
        Item::Handshake(vec![1, 0, 0, 1, 0]),
        Item::Handshake(vec![99, 0, 0, 0]),
        Item::Handshake(vec![4, 1, 0, 0, 0]),
        Item::Handshake(vec![4, 0, 255, 255, 0]),
        Item::Handshake(vec![13, 0, 0, 3, 0, 0, 0]),
        Item::Handshake(ticket()),
        Item::Handshake([ticket(), ticket()].concat()),
        Item::Handshake([&ticket()[..], &[4, 0]].concat()),
        Item::Handshake(vec![4, 0, 0, 2, 0, 0]),
        Item::SplitHandshake(ticket(), 2),
        Item::SplitHandshake(ticket(), 9),
        // KeyUpdate: no such request, none, too much, and one that is not the last in its record.
        Item::Handshake(vec![24, 0, 0, 1, 2]),
        Item::Handshake(vec![24, 0, 0, 0]),
        Item::Handshake(vec![24, 0, 0, 2, 0, 0]),
        Item::Handshake(vec![24, 0, 0, 1, 0, 24]),
        Item::Handshake([&[24, 0, 0, 1, 0][..], &ticket()].concat()),
        // With new keys, under which nothing follows.
        Item::Handshake(vec![24, 0, 0, 1, 0]),
        Item::Handshake(vec![24, 0, 0, 1, 1]),
        Item::SplitHandshake(vec![24, 0, 0, 1, 1], 3),
        Item::OfType(CHANGE_CIPHER_SPEC),
        Item::OfType(24),
        Item::OfType(99),
        Item::NoType(0),
        Item::NoType(40),
        Item::BadTag,
        Item::Clear(DATA, vec![7; 40]),
        Item::Clear(DATA, vec![7; 5]),
        Item::Clear(DATA, vec![]),
        Item::Clear(ALERT, vec![2, 42]),
        Item::Clear(ALERT, CLOSE_NOTIFY.to_vec()),
        Item::Clear(HANDSHAKE, ticket()),
        Item::Clear(CHANGE_CIPHER_SPEC, vec![1]),
        Item::Clear(CHANGE_CIPHER_SPEC, vec![2]),
        Item::Clear(99, vec![1]),
        Item::Header([DATA, 3, 3, 0xff, 0xff]),
        Item::Header([DATA, 3, 3, 0x41, 0x01]),
        Item::Header([DATA, 2, 0, 0, 40]),
        Item::Header([DATA, 3, 1, 0, 40]),
        Item::HalfARecord,
    ]
}

#[test]
fn whatever_a_peer_sends_by_itself_has_the_outcome_it_has_with_rustls() {
    block_on(async {
        let data = |length| Item::Data { length, padding: 0 };
        let mut differences = String::new();
        for item in table() {
            for end in ENDS {
                let items = [data(30), item.clone(), data(40)];
                let ours = outcome(Subject::Ours, end, &items, &[], 100_000).await;
                let usual = outcome(Subject::Usual, end, &items, &[], 100_000).await;
                if !ours.agrees_with(&usual) {
                    let _ = writeln!(
                        differences,
                        "{item:?} at the {end:?}: {ours:?}, and with rustls {usual:?}"
                    );
                }
            }
        }
        assert!(differences.is_empty(), "{differences}");
    });
}

#[test]
fn an_alert_says_what_was_wrong() {
    let fatal = |description| vec![(vec![2, description], ALERT)];
    block_on(async {
        for (item, expected) in [
            (Item::BadTag, fatal(20)),
            (
                Item::Data {
                    length: 16_385,
                    padding: 0,
                },
                fatal(22),
            ),
            (Item::Handshake(vec![99, 0, 0, 0]), fatal(10)),
            (Item::Handshake(vec![24, 0, 0, 1, 2]), fatal(47)),
            (Item::Handshake(vec![24, 0, 0, 1, 0, 24]), fatal(10)),
            (Item::NoType(3), fatal(10)),
            (Item::OfType(CHANGE_CIPHER_SPEC), fatal(10)),
            (Item::Clear(ALERT, CLOSE_NOTIFY.to_vec()), fatal(10)),
            (Item::Header([DATA, 3, 3, 0xff, 0xff]), fatal(50)),
            (Item::Alert(vec![3, 42]), fatal(47)),
            (Item::Alert(vec![1, 100]), fatal(50)),
            // Nothing is answered to an alert.
            (Item::Alert(vec![2, 42]), vec![]),
        ] {
            let ours = outcome(Subject::Ours, End::Server, std::slice::from_ref(&item), &[], 100).await;
            assert!(ours.end.is_err(), "{item:?}");
            assert_eq!(ours.heard, expected, "{item:?}");
        }
    });
}

fn some_item() -> impl Strategy<Value = Item> {
    let data = (0..20_000_usize, 0..500_usize).prop_map(|(length, padding)| Item::Data {
        length: length.min(FRAGMENT_BYTES_MAX),
        padding: padding.min(FRAGMENT_BYTES_MAX - length.min(FRAGMENT_BYTES_MAX)),
    });
    let harmless = prop_oneof![
        Just(Item::Alert(USER_CANCELED.to_vec())),
        (1..20_usize).prop_map(|times| Item::Empty { times }),
        Just(Item::Data {
            length: 1,
            padding: 0
        }),
    ];
    let any = prop::sample::select(table());
    prop_oneof![6 => data, 2 => harmless, 1 => any]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_a_peer_sends_in_any_pieces_has_the_outcome_it_has_with_rustls(
        items in prop::collection::vec(some_item(), 1..12),
        pieces in prop::collection::vec(prop_oneof![1..40_usize, 1..30_000_usize], 0..40),
        read in prop_oneof![1..60_usize, 1..100_000_usize],
        is_client: bool,
    ) {
        let end = if is_client { End::Client } else { End::Server };
        let (ours, usual) = block_on(async {
            (
                outcome(Subject::Ours, end, &items, &pieces, read.max(20)).await,
                outcome(Subject::Usual, end, &items, &pieces, read.max(20)).await,
            )
        });
        prop_assert!(ours.agrees_with(&usual), "{ours:?}, and with rustls {usual:?}");
    }
}

/// What was wrong stays wrong, for reading and for writing, and nothing more is decrypted.
#[tokio::test]
async fn after_an_error_nothing_is_read_or_written_any_more() {
    for end in ENDS {
        let (mut stream, mut peer) = meet(Subject::Ours, end).await;
        let mut wire = peer.sealing.seal(b"before", DATA, 0);
        Item::BadTag.write(&mut peer.sealing, &mut wire);
        wire.extend(peer.sealing.seal(b"after", DATA, 0));
        peer.write(&wire).await;
        let mut buffer = [0; 100];
        assert_eq!(stream.read(&mut buffer).await.unwrap(), 6);
        assert_eq!(&buffer[..6], b"before");
        for _ in 0..3 {
            let error = stream.read(&mut buffer).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
        }
        peer.say(b"later").await;
        assert!(stream.read(&mut buffer).await.is_err());
        assert!(stream.write(b"anything").await.is_err());
        stream.shutdown().await.unwrap();
        drop(stream);
        assert_eq!(peer.read_to_end().await, [(vec![2, 20], ALERT)]);
    }
}

/// Endless records that carry nothing do not hold the task that reads.
#[tokio::test]
async fn tickets_without_end_are_ignored_and_the_reader_yields() {
    let (mut stream, mut peer) = meet(Subject::Ours, End::Client).await;
    let mut wire = Vec::new();
    for _ in 0..2_000 {
        wire.extend(peer.sealing.seal(&ticket(), HANDSHAKE, 0));
    }
    wire.extend(peer.sealing.seal(b"at last", DATA, 0));
    peer.write(&wire).await;
    let mut buffer = [0; 100];
    assert_eq!(stream.read(&mut buffer).await.unwrap(), 7);
    assert_eq!(&buffer[..7], b"at last");
}

/// Nor do they hold up what came before them, or cost more the more pieces a message is in.
#[tokio::test]
async fn what_came_before_many_tickets_is_given_first_and_one_in_many_pieces_is_one() {
    let (mut stream, mut peer) = meet(Subject::Ours, End::Client).await;
    let mut wire = peer.sealing.seal(b"x", DATA, 0);
    for _ in 0..200 {
        wire.extend(peer.sealing.seal(&ticket(), HANDSHAKE, 0));
    }
    wire.extend(peer.sealing.seal(b"behind", DATA, 0));
    peer.write(&wire).await;
    let mut buffer = [0; 100];
    assert_eq!(stream.read(&mut buffer).await.unwrap(), 1);
    assert_eq!(stream.read(&mut buffer).await.unwrap(), 6);
    let long = [vec![4, 0, 0x20, 0], vec![0; 0x2000]].concat();
    let (last, front) = long.split_last().unwrap();
    for byte in front {
        let record = peer.sealing.seal(&[*byte], HANDSHAKE, 0);
        peer.write(&record).await;
        let nothing = tokio::time::timeout(std::time::Duration::ZERO, stream.read(&mut buffer)).await;
        assert!(nothing.is_err());
    }
    let record = peer.sealing.seal(&[*last], HANDSHAKE, 0);
    peer.write(&record).await;
    // No ticket looks like that.
    let error = stream.read(&mut buffer).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
}

/// Application data that comes with the last message of the handshake.
#[tokio::test]
async fn what_rides_with_finished_is_not_lost() {
    use std::io::Write as _;
    let world = World::new();
    let alice = world.cluster.user("alice@example.com", &[]).unwrap();
    for data in [&b"early"[..], &vec![7; 200_000]] {
        // The client sends it with its Finished.
        let verifier = Arc::new(world.verifier(USERS, Demand::Required));
        let server = server_config(Arc::new(fixed(&world.leaf)), verifier, &[]).unwrap();
        let (near, far) = duplex(PIPE_BYTES);
        let mut client =
            rustls::ClientConnection::new(world.client(Some(&alice)), SERVICE.try_into().unwrap()).unwrap();
        client.set_buffer_limit(None);
        client.writer().write_all(data).unwrap();
        let (own, ()) = tokio::join!(handshake(near, server, TIMEOUT), by_hand(far, client.into()));
        let mut got = vec![0; data.len()];
        own.unwrap().read_exact(&mut got).await.unwrap();
        assert_eq!(got, data);
        // The server with its own, where it asks for no certificate.
        let server = web_server_config(Arc::new(fixed(&world.leaf)), &[]).unwrap();
        let (near, far) = duplex(PIPE_BYTES);
        let mut server = rustls::ServerConnection::new(server).unwrap();
        server.set_buffer_limit(None);
        server.writer().write_all(data).unwrap();
        let connecting = connect(near, SERVICE, world.client(None), TIMEOUT);
        let (own, ()) = tokio::join!(connecting, by_hand(far, server.into()));
        let mut got = vec![0; data.len()];
        own.unwrap().read_exact(&mut got).await.unwrap();
        assert_eq!(got, data);
    }
}

/// Shakes hands, each flight in one write.
async fn by_hand(mut io: DuplexStream, mut connection: rustls::Connection) {
    loop {
        let mut flight = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut flight).unwrap();
        }
        io.write_all(&flight).await.unwrap();
        if !connection.is_handshaking() {
            return;
        }
        let mut read = vec![0; 1 << 16];
        let length = io.read(&mut read).await.unwrap();
        let mut read = &read[..length];
        while !read.is_empty() {
            connection.read_tls(&mut read).unwrap();
            connection.process_new_packets().unwrap();
        }
    }
}

#[tokio::test]
async fn a_peer_that_does_not_read_holds_the_writer_up_and_loses_nothing() {
    use futures_util::FutureExt as _;
    let (near, far) = duplex(1 << 16);
    let world = World::new();
    let server = web_server_config(Arc::new(fixed(&world.leaf)), &[]).unwrap();
    let client = world.client(None);
    let (own, other) = tokio::join!(
        handshake(near, server, TIMEOUT),
        TlsConnector::from(client).connect(SERVICE.try_into().unwrap(), far)
    );
    let (mut own, mut other) = (own.unwrap(), other.unwrap());
    let sent: Vec<u8> = (0..3_000_000_u32).map(|index| (index / 3) as u8).collect();
    let mut taken = 0;
    while let Some(written) = own.write(&sent[taken..]).now_or_never() {
        taken += written.unwrap();
        assert!(taken < 2_000_000, "it takes what does not leave");
    }
    assert!(own.flush().now_or_never().is_none());
    assert!(own.shutdown().now_or_never().is_none());
    let rest = async {
        own.shutdown().await.unwrap();
        assert!(own.write(b"more").await.is_err());
    };
    let mut got = Vec::new();
    let (_, read) = tokio::join!(rest, other.read_to_end(&mut got));
    read.unwrap();
    assert!(got == sent[..taken], "{} of {taken}", got.len());
    // Its own direction is open still.
    other.write_all(b"and yet").await.unwrap();
    other.shutdown().await.unwrap();
    let mut yet = String::new();
    own.read_to_string(&mut yet).await.unwrap();
    assert_eq!(yet, "and yet");
}

/// Buffers go from session to session as they are.
#[tokio::test]
async fn what_one_session_carried_is_not_on_the_wire_of_the_next() {
    const SECRET: [u8; 16] = *b"of another's own";
    for _ in 0..3 {
        let (mut stream, mut peer) = meet(Subject::Ours, End::Server).await;
        for _ in 0..8 {
            peer.say(&SECRET.repeat(1000)).await;
        }
        let mut got = vec![0; 8 * 16_000];
        stream.read_exact(&mut got).await.unwrap();
        stream.write_all(&got).await.unwrap();
        let (mut stream, mut peer) = meet(Subject::Ours, End::Client).await;
        for length in [1, 3_000, 20_000] {
            stream.write_all(&vec![1; length]).await.unwrap();
        }
        let mut read = vec![0xff; 1 << 18];
        peer.say(&[2; 10]).await;
        let mut space = tokio::io::ReadBuf::new(&mut read);
        std::future::poll_fn(|context| std::pin::Pin::new(&mut stream).poll_read(context, &mut space))
            .await
            .unwrap();
        assert_eq!(space.filled(), [2; 10]);
        stream.shutdown().await.unwrap();
        drop(stream);
        let mut wire = Vec::new();
        peer.io.read_to_end(&mut wire).await.unwrap();
        assert!(!wire.windows(16).any(|window| window == SECRET));
        let mut length = 0;
        while !wire.is_empty() {
            length += peer.opening.open(&mut wire).unwrap().0.len();
        }
        assert_eq!(length, 23_001 + CLOSE_NOTIFY.len());
    }
}

/// Bytes from several places go out together, in their order.
#[tokio::test]
async fn a_vectored_write_takes_its_pieces_in_order() {
    let (mut stream, peer) = meet(Subject::Ours, End::Client).await;
    let pieces = [&b"head"[..], &[], &[5; 40_000], b"tail"].map(std::io::IoSlice::new);
    assert!(stream.is_write_vectored());
    let written = stream.write_vectored(&pieces).await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream);
    let records = peer.read_to_end().await;
    let expected = [&b"head"[..], &[5; 40_000], b"tail"].concat();
    let got: Vec<u8> = records
        .iter()
        .filter(|record| record.1 == DATA)
        .flat_map(|record| record.0.clone())
        .collect();
    assert_eq!(written, expected.len());
    assert!(got == expected);
    assert_eq!(records.len(), 4, "three full records or less, and the end");
}
