//! Accepting connections for as long as the program runs.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::descriptors;

/// After an accept that failed for want of descriptors or memory: the connection stays in the kernel's queue, and
/// asking again at once would only spin.
pub const PAUSE: Duration = Duration::from_millis(50);

/// The next connection. What cannot be accepted is logged, at a bounded rate where descriptors ran out, and waited
/// for; nothing of it ends a listener. Dropping the future loses no connection.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            // It was gone before it was taken (accept(2)): the next one may wait already.
            Err(error) if is_the_peers_affair(&error) => {}
            Err(error) => {
                if !descriptors::complain(&error, "accepting a connection") {
                    tracing::warn!(%error, "cannot accept a connection");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn is_the_peers_affair(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
