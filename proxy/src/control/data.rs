//! Agents that come for a client inside TLS or on a stream of their QUIC connection. They have shown who they are;
//! the preface and its token say, as on a plain dial-back, which client it is.

use std::convert::Infallible;
use std::net::SocketAddr;

use iap_identity::AgentId;
use iap_runtime::quic::{Connection, Window};
use iap_tunnel::{PREFACE_BYTES, Preface, PrefaceError, RedeemError};
use thiserror::Error;
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::JoinSet;

use super::ControlDoor;
use crate::front::data::DataStream;
use crate::metrics::Refusal;

/// Why an agent that came does not get a client.
#[derive(Debug, Error)]
enum DataError {
    #[error("no dial-back preface in time")]
    TimedOut,
    #[error("closed before the dial-back preface was complete: {0}")]
    Closed(#[from] std::io::Error),
    #[error(transparent)]
    Preface(#[from] PrefaceError),
    #[error(transparent)]
    Token(#[from] RedeemError),
}

impl ControlDoor {
    /// Reads the preface and gives the stream to the client it names.
    pub(super) async fn dialled_back(&self, agent: &AgentId, address: SocketAddr, stream: DataStream) {
        if let Err(error) = self.redeem(agent, stream).await {
            tracing::warn!(%agent, %address, %error, "a dial-back is refused");
            self.metrics.refused(Refusal::DialBack);
        }
    }

    /// Takes streams beside the first of a QUIC connection, as many at once as the transport lets the agent
    /// open. Leaves it to the line to notice the connection's end.
    pub(super) async fn take_streams(&self, agent: &AgentId, connection: &Connection) -> Infallible {
        let mut reading = JoinSet::new();
        let address = connection.remote_address();
        let window = Window::of(connection, self.limits.now().quic_streams_max());
        while let Ok((send, recv)) = connection.accept_bi().await {
            while reading.try_join_next().is_some() {}
            let (door, agent) = (self.clone(), *agent);
            let stream = DataStream::Quic(Box::new(tokio::io::join(recv, send)), window.clone());
            reading.spawn(async move { door.dialled_back(&agent, address, stream).await });
        }
        std::future::pending().await
    }

    async fn redeem(&self, agent: &AgentId, mut stream: DataStream) -> Result<(), DataError> {
        let reading = async {
            match &mut stream {
                DataStream::Tcp(stream) => read_preface(stream).await,
                DataStream::Tls(stream) => read_preface(stream).await,
                DataStream::Quic(stream, _) => read_preface(stream).await,
            }
        };
        let patience = self.limits.now().client_hello_seconds_max;
        let read = tokio::time::timeout(patience, reading).await;
        let preface = read.map_err(|_| DataError::TimedOut)??;
        let now = OffsetDateTime::now_utc();
        Ok(self.board.redeem(now, &preface, Some(agent), stream)?)
    }
}

async fn read_preface<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Preface, DataError> {
    let mut preface = [0; PREFACE_BYTES];
    stream.read_exact(&mut preface).await?;
    Ok(Preface::parse(&preface)?)
}
