//! The pump for two TCP sockets where there is no splice(2).

use tokio::net::TcpStream;

use super::{Cancellation, Closed, Counters, LiveLimits, copy};

/// Moves bytes both ways until the session ends. What it returns is final: nothing moves afterwards.
pub async fn splice(
    client: &mut TcpStream,
    backend: &mut TcpStream,
    limits: &impl LiveLimits,
    counters: &Counters,
    cancellation: &Cancellation,
) -> Closed {
    copy(client, backend, limits, counters, cancellation).await
}
