//! Fetching a client from the proxy that asked: over the first way that works.

use std::io;
use std::time::Duration;

use iap_runtime::{descriptors, say_seldom};
use iap_tunnel::{ALPN_DATA, DataWay, Preface};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::stream::DataStream;
use super::{Open, Said};
use crate::control::Link;
use crate::limits::Limits;

const FIRST_READ_BYTES: usize = 2048;

/// A client, and the beginning of its ClientHello: only that shows that the way works in both directions.
pub(super) struct Fetched {
    pub(super) stream: DataStream,
    pub(super) first: Vec<u8>,
}

/// Why one way did not lead to a client.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// None that is configured, offered by the proxy, and there.
    #[error("no way that this agent may use and the proxy offers")]
    NoWay,
    /// No connection to the proxy.
    #[error("cannot connect: {0}")]
    Dial(io::Error),
    /// Connected, and then the connection broke.
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    /// Connected, and then nothing.
    #[error("nothing came within {} ms", .0.as_millis())]
    Silent(Duration),
    /// The proxy closed it: too late, or no client waits any more.
    #[error("the proxy closed the connection")]
    Closed,
}

impl FetchError {
    /// Said once in a while for all of them, and not for each.
    pub(super) fn is_for_want_of_descriptors(&self) -> bool {
        matches!(self, Self::Dial(error) if descriptors::are_exhausted(error))
    }

    /// Whether something between the two ends swallows what they send.
    fn went_silent(&self) -> bool {
        match self {
            Self::Broken(_) | Self::Silent(_) => true,
            Self::NoWay | Self::Dial(_) | Self::Closed => false,
        }
    }
}

/// Takes up the connection that was dialled in advance, or else tries the ways in order.
pub(super) async fn fetch(
    open: &Open,
    link: &Link,
    limits: &Limits,
    said: &Said,
) -> Result<Fetched, FetchError> {
    let ways = link.ways();
    if let Some(fetched) = take_up(open, link, limits, said).await {
        ways.worked(DataWay::Tcp);
        return Ok(fetched);
    }
    let order = ways.order();
    let patience = match order.len() {
        0 | 1 => limits.dial(),
        _ => limits.dial().min(limits.data_try()),
    };
    let mut last = FetchError::NoWay;
    for way in order {
        match attempt(way, open, link, patience).await {
            Ok(fetched) => {
                ways.worked(way);
                return Ok(fetched);
            }
            Err(error) => {
                let (connection, proxy) = (open.connection_id, link.through.proxy);
                say_seldom!(said.not_fetched_this_way, info, %connection, %proxy, %way, %error, "not fetched this way");
                ways.failed(way, error.went_silent());
                last = error;
            }
        }
    }
    Err(last)
}

/// `None` when there is none, or it broke: dialling back is always possible.
async fn take_up(open: &Open, link: &Link, limits: &Limits, said: &Said) -> Option<Fetched> {
    let stream = link.ways().pool().take(open.pooled?).await?;
    let mut stream = DataStream::Tcp(stream);
    match tokio::time::timeout(limits.data_try(), read_first(&mut stream)).await {
        Ok(Ok(first)) if !first.is_empty() => Some(Fetched { stream, first }),
        Ok(_) | Err(_) => {
            let (connection, proxy) = (open.connection_id, link.through.proxy);
            say_seldom!(said.pooled_broke, info, %connection, %proxy, "the connection dialled in advance broke");
            None
        }
    }
}

async fn attempt(way: DataWay, open: &Open, link: &Link, patience: Duration) -> Result<Fetched, FetchError> {
    let connecting = tokio::time::timeout(patience, connect(way, link, patience));
    let mut stream = match connecting.await {
        Ok(connected) => connected.map_err(FetchError::Dial)?,
        Err(_elapsed) => return Err(FetchError::Dial(io::ErrorKind::TimedOut.into())),
    };
    match tokio::time::timeout(patience, introduce(&mut stream, open)).await {
        Ok(Ok(first)) if first.is_empty() => Err(FetchError::Closed),
        Ok(Ok(first)) => Ok(Fetched { stream, first }),
        Ok(Err(error)) => Err(FetchError::Broken(error)),
        Err(_elapsed) => Err(FetchError::Silent(patience)),
    }
}

async fn connect(way: DataWay, link: &Link, patience: Duration) -> io::Result<DataStream> {
    let ways = link.ways();
    match way {
        DataWay::Tcp => Ok(DataStream::Tcp(link.route.connect(patience).await?)),
        DataWay::Tls => {
            let stream = link.route.connect(patience).await?;
            let connecting = ways.identity().connect_to_proxy(stream, ALPN_DATA, patience);
            let (stream, _) = Box::pin(connecting).await?;
            Ok(DataStream::Tls(Box::new(stream)))
        }
        DataWay::Quic => {
            let connection = ways.quic().ok_or(io::ErrorKind::NotConnected)?;
            let (send, recv) = connection.open_bi().await.map_err(io::Error::other)?;
            Ok(DataStream::Quic(Box::new(tokio::io::join(recv, send))))
        }
    }
}

/// Says which client this comes for, and waits for the first of what that one has sent: the proxy has it already.
async fn introduce(stream: &mut DataStream, open: &Open) -> io::Result<Vec<u8>> {
    let preface = Preface {
        connection_id: open.connection_id,
        token: open.token.clone(),
    };
    stream.write_all(&preface.encode()).await?;
    stream.flush().await?;
    read_first(stream).await
}

async fn read_first(stream: &mut DataStream) -> io::Result<Vec<u8>> {
    let mut first = Vec::with_capacity(FIRST_READ_BYTES);
    stream.read_buf(&mut first).await?;
    Ok(first)
}
