//! Dialling a name with several addresses: the next one is tried while the first still hangs (RFC 8305), so that a
//! broken IPv6 or IPv4 costs a quarter of a second and not a timeout.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;

use super::{HostPort, tune};
use crate::descriptors;

/// How long an attempt may hang before the next address is tried beside it (RFC 8305 §5).
pub const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried; resolvers may return any number.
pub const ADDRESSES_MAX: usize = 16;

/// Connects to the first address of `address` that answers within `timeout`, and tunes the socket.
pub async fn connect(address: &HostPort, timeout: Duration) -> io::Result<TcpStream> {
    let connecting = async { connect_any(&address.resolve().await?).await };
    match tokio::time::timeout(timeout, connecting).await {
        Ok(connected) => connected,
        Err(_elapsed) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no connection to {address} within {} ms", timeout.as_millis()),
        )),
    }
}

/// The first of these addresses that answers; the families take turns, beginning with the resolver's choice.
async fn connect_any(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    match race(interleaved(addresses), TcpStream::connect, ATTEMPT_DELAY).await {
        Ok(stream) => tune(&stream).map(|()| stream),
        Err(failures) => {
            for (_, error) in &failures {
                descriptors::complain(error, "connecting");
            }
            Err(one_error(failures))
        }
    }
}

/// The first success of attempts that begin one after the other: the next as soon as one fails, and beside one that
/// takes longer than `delay`. All failures, in their order, when none succeeds.
pub async fn race<A, T, E, F>(
    mut waiting: VecDeque<A>,
    attempt: impl Fn(A) -> F,
    delay: Duration,
) -> Result<T, Vec<(A, E)>>
where
    A: Clone,
    F: Future<Output = Result<T, E>>,
{
    let mut failures = Vec::new();
    let mut running = FuturesUnordered::new();
    let attempt = |address: A| {
        let attempt = attempt(address.clone());
        async move { (address, attempt.await) }
    };
    loop {
        if let Some(address) = waiting.pop_front() {
            running.push(attempt(address));
        }
        let pause = tokio::time::sleep(delay);
        tokio::select! {
            finished = running.next() => match finished {
                Some((_, Ok(connected))) => return Ok(connected),
                Some((address, Err(error))) => failures.push((address, error)),
                None => return Err(failures),
            },
            () = pause, if !waiting.is_empty() => {}
        }
    }
}

/// RFC 8305 §4 with a first address family count of one.
fn interleaved(addresses: &[SocketAddr]) -> VecDeque<SocketAddr> {
    let first_is_ipv4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (leading, other): (Vec<_>, Vec<_>) = addresses
        .iter()
        .copied()
        .partition(|address| address.is_ipv4() == first_is_ipv4);
    let mut other = other.into_iter();
    let mut turns = VecDeque::new();
    for address in leading {
        turns.push_back(address);
        turns.extend(other.next());
    }
    turns.extend(other);
    turns.truncate(ADDRESSES_MAX);
    turns
}

/// What each address said, in one sentence. A refusal says most: somebody is there. Otherwise the last word counts.
fn one_error(mut failures: Vec<(SocketAddr, io::Error)>) -> io::Error {
    if failures.len() == 1 {
        return failures.remove(0).1;
    }
    let refused = |(_, error): &&(SocketAddr, io::Error)| error.kind() == io::ErrorKind::ConnectionRefused;
    let telling = failures.iter().find(refused).or(failures.last());
    let kind = telling.map_or(io::ErrorKind::NotFound, |(_, error)| error.kind());
    let words: Vec<_> = failures
        .iter()
        .map(|(address, error)| format!("{address}: {error}"))
        .collect();
    match words.is_empty() {
        true => io::Error::new(kind, "the name has no address"),
        false => io::Error::new(kind, words.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns_beginning_with_the_resolvers_choice() {
        let found = addresses(&[
            "[2001:db8::1]:1",
            "[2001:db8::2]:1",
            "192.0.2.1:1",
            "192.0.2.2:1",
            "192.0.2.3:1",
        ]);
        let turns = addresses(&[
            "[2001:db8::1]:1",
            "192.0.2.1:1",
            "[2001:db8::2]:1",
            "192.0.2.2:1",
            "192.0.2.3:1",
        ]);
        assert_eq!(Vec::from(interleaved(&found)), turns);
        let many = vec![found.first().copied().unwrap(); 40];
        assert_eq!(interleaved(&many).len(), ADDRESSES_MAX);
    }

    /// Longer than any test waits.
    const NEVER: Duration = Duration::from_secs(3600);
    const SOON: Duration = Duration::from_millis(1);

    #[tokio::test]
    async fn an_address_that_hangs_does_not_hold_the_next_one_up_beyond_the_delay() {
        let both: VecDeque<_> = addresses(&["[2001:db8::1]:1", "192.0.2.1:1"]).into();
        let attempt = |address: SocketAddr| async move {
            if address.is_ipv6() {
                std::future::pending::<()>().await;
            }
            Ok::<_, io::Error>(address)
        };
        assert!(race(both.clone(), attempt, SOON).await.unwrap().is_ipv4());
        let held_up = tokio::time::timeout(SOON, race(both, attempt, NEVER)).await;
        assert!(
            held_up.is_err(),
            "without the delay having passed the first address alone is tried"
        );
    }

    #[tokio::test]
    async fn an_address_that_refuses_makes_room_for_the_next_one_at_once() {
        let both: VecDeque<_> = addresses(&["[2001:db8::1]:1", "192.0.2.1:1"]).into();
        let attempt = |address: SocketAddr| async move {
            match address.is_ipv6() {
                true => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
                false => Ok(address),
            }
        };
        assert!(race(both, attempt, NEVER).await.unwrap().is_ipv4());
    }

    #[tokio::test]
    async fn a_slow_first_answer_still_wins_over_a_dead_second_address() {
        let both: VecDeque<_> = addresses(&["[2001:db8::1]:1", "192.0.2.1:1"]).into();
        let second_has_failed = tokio::sync::Notify::new();
        let attempt = |address: SocketAddr| {
            let second_has_failed = &second_has_failed;
            async move {
                if address.is_ipv4() {
                    second_has_failed.notify_one();
                    return Err(io::Error::from(io::ErrorKind::NetworkUnreachable));
                }
                second_has_failed.notified().await;
                Ok(address)
            }
        };
        assert!(race(both, attempt, SOON).await.unwrap().is_ipv6());
    }

    #[tokio::test]
    async fn when_all_fail_each_is_named_and_a_refusal_tells_the_kind() {
        let both: VecDeque<_> = addresses(&["192.0.2.1:1", "[2001:db8::1]:1"]).into();
        let attempt = |address: SocketAddr| async move {
            Err::<(), _>(io::Error::from(match address.is_ipv4() {
                true => io::ErrorKind::ConnectionRefused,
                false => io::ErrorKind::NetworkUnreachable,
            }))
        };
        let error = one_error(race(both, attempt, NEVER).await.unwrap_err());
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let said = error.to_string();
        assert!(
            said.contains("192.0.2.1:1: ") && said.contains("[2001:db8::1]:1: "),
            "{said}"
        );
        let nothing = one_error(race(VecDeque::new(), attempt, NEVER).await.unwrap_err());
        assert_eq!(nothing.kind(), io::ErrorKind::NotFound);
    }
}
