//! Our stream at one end, rustls in its usual form at the other.

use std::io::ErrorKind;
use std::pin::Pin;
use std::task::{Context, Poll};

use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream as Usual};

use super::*;

/// Which end is ours.
#[derive(Debug, Clone, Copy)]
enum Ours {
    Client,
    Server,
}

const BOTH: [Ours; 2] = [Ours::Client, Ours::Server];

/// An established connection through a pipe that holds so many bytes.
async fn pair(ours: Ours, pipe_bytes: usize) -> (TlsStream<Tampered>, Usual<DuplexStream>) {
    let world = World::new();
    let alice = world.cluster.user("alice@example.com", &[]).unwrap();
    let verifier = Arc::new(world.verifier(USERS, Demand::Required));
    let server = server_config(Arc::new(fixed(&world.leaf)), verifier, &[]).unwrap();
    let client = world.client(Some(&alice));
    let (near, far) = duplex(pipe_bytes);
    let near = Tampered(near, None);
    match ours {
        Ours::Server => {
            let name = SERVICE.try_into().unwrap();
            let (own, other) = tokio::join!(
                handshake(near, server, TIMEOUT),
                TlsConnector::from(client).connect(name, far)
            );
            (own.unwrap(), other.unwrap().into())
        }
        Ours::Client => {
            let (own, other) = tokio::join!(
                connect(near, SERVICE, client, TIMEOUT),
                TlsAcceptor::from(server).accept(far)
            );
            (own.unwrap(), other.unwrap().into())
        }
    }
}

/// Changes one byte of what arrives, once it is told to; it counts down to that.
#[derive(Debug)]
struct Tampered(DuplexStream, Option<usize>);

impl AsyncRead for Tampered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let had = target.filled().len();
        let polled = Pin::new(&mut self.0).poll_read(context, target);
        let came = target.filled().len() - had;
        if let Some(left) = self.1 {
            if left < came {
                target.filled_mut()[had + left] ^= 1;
                self.1 = None;
            } else {
                self.1 = Some(left - came);
            }
        }
        polled
    }
}

impl AsyncWrite for Tampered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|index| (index.wrapping_mul(31) >> 3) as u8 ^ seed)
        .collect()
}

async fn write_pieces(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8], piece: usize) {
    for piece in bytes.chunks(piece) {
        stream.write_all(piece).await.unwrap();
    }
    stream.shutdown().await.unwrap();
}

async fn read_pieces(stream: &mut (impl AsyncRead + Unpin), piece: usize) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), vec![0; piece]);
    loop {
        match stream.read(&mut buffer).await.unwrap() {
            0 => return all,
            length => all.extend_from_slice(&buffer[..length]),
        }
    }
}

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn bytes_of_any_number_in_any_pieces_arrive_unchanged_both_ways(
        sent in 0usize..300_000, received in 0usize..300_000,
        write in 1usize..100_000, read in 1usize..100_000, pipe in 1usize..200_000, seed: u8,
    ) {
        let (outwards, inwards) = (pattern(sent, seed), pattern(received, !seed));
        // Whole rounds of one byte at a time are no faster here than elsewhere.
        let (write, read, pipe) = (write.max(sent / 500), read.max(received / 500), pipe.max((sent + received) / 500));
        for ours in BOTH {
            let (got, expected, is_at_rest) = block_on(async {
                let (own, other) = pair(ours, pipe).await;
                let (mut own_reads, mut own_writes) = tokio::io::split(own);
                let (mut other_reads, mut other_writes) = tokio::io::split(other);
                let (_, _, at_own, at_other) = tokio::join!(
                    write_pieces(&mut own_writes, &outwards, write),
                    write_pieces(&mut other_writes, &inwards, 20_000),
                    read_pieces(&mut own_reads, read),
                    read_pieces(&mut other_reads, 20_000),
                );
                let own = own_reads.unsplit(own_writes);
                ((at_own, at_other), (&inwards, &outwards), own.is_at_rest())
            });
            prop_assert!((&got.0, &got.1) == expected, "{ours:?}");
            prop_assert!(is_at_rest, "{ours:?}");
        }
    }
}

#[tokio::test]
async fn at_rest_there_are_no_buffers_and_half_a_record_takes_its_own_size() {
    for ours in BOTH {
        let (mut own, mut other) = pair(ours, 1 << 16).await;
        assert!(own.is_at_rest());
        for _ in 0..3 {
            own.write_all(b"ping").await.unwrap();
            other.write_all(b"pong").await.unwrap();
            let (mut ping, mut pong) = ([0; 4], [0; 4]);
            own.read_exact(&mut pong).await.unwrap();
            other.read_exact(&mut ping).await.unwrap();
            assert_eq!((&ping, &pong), (b"ping", b"pong"));
            let mut more = [0; 4];
            assert!(futures_util::FutureExt::now_or_never(own.read(&mut more)).is_none());
            assert!(own.is_at_rest(), "{ours:?}");
        }
    }
}

#[tokio::test]
async fn a_byte_that_was_changed_on_the_way_ends_the_connection_with_an_alert() {
    for (ours, at) in [(Ours::Client, 9), (Ours::Server, 9), (Ours::Server, 100)] {
        let (mut own, mut other) = pair(ours, 1 << 16).await;
        own.io_mut().1 = Some(at);
        other.write_all(&[7; 200]).await.unwrap();
        let error = own.read(&mut [0; 300]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
        let heard = other.read(&mut [0; 10]).await.unwrap_err();
        assert!(alert_received(&heard).is_some(), "{heard}");
        assert_eq!(
            own.read(&mut [0; 300]).await.unwrap_err().kind(),
            ErrorKind::InvalidData
        );
        assert!(own.write(b"x").await.is_err());
    }
}

#[tokio::test]
async fn a_connection_that_breaks_off_is_told_from_one_that_was_closed() {
    for ours in BOTH {
        let (mut own, mut other) = pair(ours, 1 << 16).await;
        other.write_all(b"last").await.unwrap();
        other.shutdown().await.unwrap();
        let mut last = Vec::new();
        own.read_to_end(&mut last).await.unwrap();
        assert_eq!(last, b"last");
        // The peer has closed its direction alone.
        own.write_all(b"and yet").await.unwrap();
        own.shutdown().await.unwrap();
        let mut yet = String::new();
        other.read_to_string(&mut yet).await.unwrap();
        assert_eq!(yet, "and yet");

        let (mut own, mut other) = pair(ours, 1 << 16).await;
        other.write_all(b"last").await.unwrap();
        let mut below = match other {
            Usual::Client(stream) => stream.into_inner().0,
            Usual::Server(stream) => stream.into_inner().0,
        };
        below.shutdown().await.unwrap();
        let error = own.read_to_end(&mut last).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }
}

#[tokio::test]
async fn keys_are_changed_when_the_peer_asks_for_it() {
    for ours in BOTH {
        let (mut own, mut other) = pair(ours, 1 << 16).await;
        for round in 0..4_u8 {
            match &mut other {
                Usual::Client(stream) => stream.get_mut().1.refresh_traffic_keys().unwrap(),
                Usual::Server(stream) => stream.get_mut().1.refresh_traffic_keys().unwrap(),
            }
            other.write_all(&[round; 50]).await.unwrap();
            let mut got = [0; 50];
            own.read_exact(&mut got).await.unwrap();
            assert_eq!(got, [round; 50]);
            // Our own new keys, which the peer asked for, precede these.
            own.write_all(&got).await.unwrap();
            other.read_exact(&mut got).await.unwrap();
            assert_eq!(got, [round; 50]);
        }
        assert!(own.is_at_rest());
    }
}

#[tokio::test]
async fn a_peer_that_changes_its_keys_and_sends_nothing_is_not_followed_for_ever() {
    for ours in BOTH {
        for (updates, is_followed) in [(32, true), (33, false)] {
            let (mut own, mut other) = pair(ours, 1 << 16).await;
            for _ in 0..updates {
                match &mut other {
                    Usual::Client(stream) => stream.get_mut().1.refresh_traffic_keys().unwrap(),
                    Usual::Server(stream) => stream.get_mut().1.refresh_traffic_keys().unwrap(),
                }
            }
            other.write_all(b"data").await.unwrap();
            let read = own.read(&mut [0; 10]).await;
            assert_eq!(read.is_ok(), is_followed, "{updates} at {ours:?}: {read:?}");
        }
    }
}

#[tokio::test]
async fn keys_that_have_protected_enough_are_changed_and_the_peer_follows() {
    for ours in BOTH {
        let (mut own, mut other) = pair(ours, 1 << 16).await;
        own.change_keys_after(5);
        let sent = pattern(1_000_000, 3);
        let (_, got) = tokio::join!(
            write_pieces(&mut own, &sent, 150_000),
            read_pieces(&mut other, 20_000)
        );
        assert!(got == sent, "{ours:?}");
    }
}

#[tokio::test]
async fn behind_its_close_an_end_answers_no_key_update() {
    for ours in BOTH {
        let (mut own, mut other) = pair(ours, 1 << 16).await;
        own.shutdown().await.unwrap();
        assert_eq!(other.read(&mut [0; 10]).await.unwrap(), 0);
        for round in 0..3 {
            match &mut other {
                Usual::Client(stream) => stream.get_mut().1.refresh_traffic_keys().unwrap(),
                Usual::Server(stream) => stream.get_mut().1.refresh_traffic_keys().unwrap(),
            }
            other.write_all(&[round; 50]).await.unwrap();
            let mut got = [0; 50];
            own.read_exact(&mut got).await.unwrap();
            assert_eq!(got, [round; 50]);
            assert!(own.is_at_rest(), "something waits to be sent");
        }
    }
}

/// The type of its last record has no room, and needs none.
#[tokio::test]
async fn a_target_of_the_contents_own_size_is_filled_at_once() {
    for ours in BOTH {
        for length in [1, 1000, 16_384, 4 * 16_384, 4 * 16_384 - 32] {
            let (mut own, mut other) = pair(ours, 1 << 18).await;
            let sent = pattern(length, 9);
            other.write_all(&sent).await.unwrap();
            other.flush().await.unwrap();
            let mut got = vec![0; length];
            // What arrives with one read of the stream below.
            let arrived = own.read(&mut got).await.unwrap();
            assert_eq!(arrived, length, "{ours:?}");
            assert!(got == sent && own.is_at_rest());
        }
    }
}
