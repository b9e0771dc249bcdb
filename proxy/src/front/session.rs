//! Moving the bytes of one connection, and turning one away so that the reason arrives.

use std::time::Duration;

use iap_runtime::pump::{self, Cancellation, CloseReason, Closed, Counters, LiveLimits};
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

/// Joins a client and the agent that came for it until the connection ends, or the client has failed to prove who
/// it is.
pub(crate) async fn join(
    client: TcpStream,
    agent: DataStream,
    hello: Vec<u8>,
    slot: &mut Slot,
) -> std::io::Result<Closed> {
    slot.is_joined = true;
    let slot = &*slot;
    let moving = async {
        let (limits, cut) = (&slot.verdict, &slot.cut);
        // Boxed: a session over TCP should not weigh what one over TLS or QUIC does.
        match agent {
            DataStream::Tcp(agent) => relay(client, agent, hello, limits, cut).await,
            DataStream::Tls(agent) => Box::pin(copy(client, agent, hello, limits, cut)).await,
            DataStream::Quic(mut agent, window) => {
                let _in_use = window.grow();
                let closed = Box::pin(copy(client, &mut *agent, hello, limits, cut)).await?;
                if let CloseReason::ClientClosed | CloseReason::BackendClosed = closed.reason {
                    // The last stream of a connection takes with it what the agent has not acknowledged.
                    let taken = agent.writer().stopped();
                    let _ = tokio::time::timeout(LAST_BYTES_TIMEOUT, taken).await;
                }
                Ok(closed)
            }
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

/// Replays the ClientHello to the other side, then moves bytes both ways until the connection ends.
pub(crate) async fn relay(
    mut client: TcpStream,
    mut other: TcpStream,
    hello: Vec<u8>,
    limits: &impl LiveLimits,
    cut: &Cancellation,
) -> std::io::Result<Closed> {
    Box::pin(replay(&mut other, hello, cut)).await?;
    let counters = Counters::new();
    Ok(pump::splice(&mut client, &mut other, limits, &counters, cut).await)
}

/// The same through memory, where the other side is no socket of its own.
async fn copy<S: AsyncRead + AsyncWrite + Unpin>(
    client: TcpStream,
    mut other: S,
    hello: Vec<u8>,
    limits: &impl LiveLimits,
    cut: &Cancellation,
) -> std::io::Result<Closed> {
    Box::pin(replay(&mut other, hello, cut)).await?;
    let counters = Counters::new();
    Ok(pump::copy(client, other, limits, &counters, cut).await)
}

/// Takes the bytes: a session may last for hours, and they have done their work.
async fn replay(
    other: &mut (impl AsyncWrite + Unpin),
    hello: Vec<u8>,
    cut: &Cancellation,
) -> std::io::Result<()> {
    let writing = async {
        other.write_all(&hello).await?;
        other.flush().await
    };
    tokio::select! {
        biased;
        reason = cut.cancelled() => Err(std::io::Error::other(reason.to_string())),
        written = tokio::time::timeout(FIRST_BYTES_TIMEOUT, writing) => {
            written.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
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
            matches!(&replayed, Err(error) if error.kind() == std::io::ErrorKind::TimedOut),
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
