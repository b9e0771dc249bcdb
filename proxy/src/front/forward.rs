//! The way to the auth server: a TCP connection that begins with a PROXY v2 header, so that the limits there
//! see the client and not this proxy.

use std::io;
use std::net::SocketAddr;

use iap_runtime::config::InForce;
use iap_runtime::net::{self, HostPort};
use iap_runtime::proxy_protocol;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::config::Limits;

/// Dials the auth server on behalf of clients.
#[derive(Debug, Clone)]
pub(crate) struct AuthDialer {
    pub(crate) auth: HostPort,
    pub(crate) limits: InForce<Limits>,
}

impl AuthDialer {
    /// A connection on which the auth server already knows the client's address.
    pub(crate) async fn dial(&self, client: SocketAddr) -> io::Result<TcpStream> {
        let mut stream = net::connect(&self.auth, self.limits.now().auth_connect_seconds_max).await?;
        let header = proxy_protocol::encode(client, stream.peer_addr()?);
        stream.write_all(&header).await?;
        Ok(stream)
    }
}
