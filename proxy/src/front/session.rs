//! Moving the bytes of one connection, and turning one away so that the reason arrives.

use std::io;
use std::time::Duration;

use iap_runtime::pump::{self, Cancellation, CloseReason, Closed, Counters, LiveLimits};
use iap_runtime::quic::{self, Window};
use iap_runtime::tls::{self, AlertDescription};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::data::DataStream;
use crate::switchboard::Slot;
use crate::verdict::FAREWELL_TIMEOUT;

/// How long an agent or the auth server may take for a client's first bytes.
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an agent may take for a client's last bytes, where they are kept here.
const LAST_BYTES_TIMEOUT: Duration = Duration::from_secs(2);
const FAREWELL_BYTES_MAX: u64 = 64 * 1024;

/// Moves bytes between a client and the agent that came for it until the connection ends, or the client has failed to
/// prove who it is.
pub(crate) async fn join(client: &mut TcpStream, agent: &mut DataStream, slot: &Slot) -> Closed {
    let (limits, cut) = (&slot.verdict, &slot.cut);
    let moving = async {
        // Boxed: a session over TCP should not weigh what one over TLS or QUIC does.
        match agent {
            DataStream::Tcp(agent) => relay(client, agent, limits, cut).await,
            DataStream::Tls(agent) => Box::pin(copy(client, agent, limits, cut)).await,
            DataStream::Quic(agent, window) => Box::pin(over_quic(client, agent, window, limits, cut)).await,
        }
    };
    let failed = async {
        slot.verdict.failed().await;
        slot.cut.cancel("the client did not prove who it is");
        std::future::pending().await
    };
    tokio::select! {
        closed = moving => closed,
        never = failed => never,
    }
}

/// Moves bytes both ways until the connection ends.
pub(crate) fn relay<'a>(
    client: &'a mut TcpStream,
    other: &'a mut TcpStream,
    limits: &impl LiveLimits,
    cut: &Cancellation,
) -> impl Future<Output = Closed> {
    pump::splice(client, other, limits, Counters::new(), cut)
}

/// The same through memory, where the other side is no socket of its own.
fn copy<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut TcpStream,
    other: S,
    limits: &impl LiveLimits,
    cut: &Cancellation,
) -> impl Future<Output = Closed> {
    pump::copy(client, other, limits, Counters::new(), cut)
}

async fn over_quic(
    client: &mut TcpStream,
    agent: &mut quic::Stream,
    window: &Window,
    limits: &impl LiveLimits,
    cut: &Cancellation,
) -> Closed {
    let _in_use = window.grow();
    let closed = copy(client, &mut *agent, limits, cut).await;
    if let CloseReason::ClientClosed | CloseReason::BackendClosed = closed.reason {
        // The last stream of a connection takes with it what the agent has not acknowledged.
        let _ = tokio::time::timeout(LAST_BYTES_TIMEOUT, agent.writer().stopped()).await;
    }
    closed
}

/// Says to an agent what its client has said.
pub(crate) async fn replay_to_agent(agent: &mut DataStream, hello: Vec<u8>, slot: &Slot) -> io::Result<()> {
    match agent {
        DataStream::Tcp(agent) => replay(agent, hello, &slot.cut).await,
        DataStream::Tls(agent) => replay(agent, hello, &slot.cut).await,
        DataStream::Quic(agent, _) => replay(&mut **agent, hello, &slot.cut).await,
    }
}

/// Takes the bytes: a session may last for hours, and they have done their work.
pub(crate) async fn replay(
    other: &mut (impl AsyncWrite + Unpin),
    hello: Vec<u8>,
    cut: &Cancellation,
) -> io::Result<()> {
    let writing = async {
        other.write_all(&hello).await?;
        other.flush().await
    };
    tokio::select! {
        biased;
        reason = cut.cancelled() => Err(io::Error::other(reason.to_string())),
        written = tokio::time::timeout(FIRST_BYTES_TIMEOUT, writing) => {
            written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        }
    }
}

/// Sends the alert and closes. Reads what the client still sends, within bounds: closing a socket with
/// unread bytes resets the connection, and the alert would be lost.
pub(crate) async fn turn_away(mut stream: TcpStream, alert: Option<AlertDescription>) {
    let farewell = async {
        match alert {
            Some(alert) => tls::send_alert(&mut stream, alert).await?,
            None => stream.shutdown().await?,
        }
        tokio::io::copy(&mut stream.take(FAREWELL_BYTES_MAX), &mut tokio::io::sink()).await
    };
    // Whoever does not listen does not learn why.
    let _ = tokio::time::timeout(FAREWELL_TIMEOUT, farewell).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_does_not_take_the_first_bytes_is_given_up() {
        let (mut near, _far) = tokio::io::duplex(16);
        let (cut, hello) = (Cancellation::new(), vec![0; 1024]);
        let replayed = replay(&mut near, hello.clone(), &cut).await;
        assert!(
            matches!(&replayed, Err(error) if error.kind() == io::ErrorKind::TimedOut),
            "{replayed:?}"
        );
        let cuts = async { cut.cancel("the agent is locked") };
        let (replayed, ()) = tokio::join!(replay(&mut near, hello, &cut), cuts);
        assert!(
            matches!(&replayed, Err(error) if error.to_string() == "the agent is locked"),
            "{replayed:?}"
        );
    }
}
