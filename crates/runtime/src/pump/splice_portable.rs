//! The pump for two TCP sockets where there is no splice(2).

use std::borrow::Borrow;

use tokio::net::TcpStream;

use super::{Cancellation, Closed, Counters, LiveLimits, copy};

/// Moves bytes both ways until the session ends. What it returns is final: nothing moves afterwards.
pub fn splice<'a>(
    client: &'a mut TcpStream,
    backend: &'a mut TcpStream,
    limits: &impl LiveLimits,
    counters: impl Borrow<Counters>,
    cancellation: &Cancellation,
) -> impl Future<Output = Closed> {
    copy(client, backend, limits, counters, cancellation)
}
