//! Accepting connections for as long as the program runs.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::descriptors;

/// After an accept that failed for want of descriptors or memory: the connection stays in the kernel's queue, and
/// asking again at once would only spin.
pub const PAUSE: Duration = Duration::from_millis(50);

/// Connections that have come and are not accepted yet; the kernel takes the lesser of this and
/// `net.core.somaxconn`. One more is not answered, and its client tries again after a second: a burst of strangers
/// must not cost an honest client that.
pub const BACKLOG: u32 = 4096;

/// Listens at `address`.
///
/// # Errors
/// When the address cannot be bound.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // As tokio's own bind: a port is usable again while connections of an earlier process are still closing.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::TcpStream;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3);

    #[tokio::test]
    async fn a_burst_is_answered_before_anybody_is_accepted() {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let burst = (0..300).map(|_| TcpStream::connect_timeout(&address, PATIENCE));
        let connected: io::Result<Vec<_>> = burst.collect();
        assert_eq!(connected.unwrap().len(), 300);
    }
}
