//! A TLS connection on its way to the gRPC server, with what its client proved.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use iap_runtime::slots::Slot;
use iap_runtime::tls::{Replay, ServerStream};
use iap_runtime::waiting_room::Place;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;

use super::principals::Counted;
use crate::rpc::Connection;

/// An accepted API connection; its slots are free again when it is dropped.
#[derive(Debug)]
pub struct ApiStream {
    stream: ServerStream<Replay<TcpStream>>,
    connection: Connection,
    _slot: Slot,
    _counted: Option<Counted>,
    unauthenticated: Option<Unauthenticated>,
}

/// What a connection without a certificate holds: a place among those, for a while.
#[derive(Debug)]
pub(super) struct Unauthenticated {
    _place: Place,
    gave_way: Pin<Box<WaitForCancellationFutureOwned>>,
    end: Pin<Box<Sleep>>,
}

impl Unauthenticated {
    pub(super) fn new(place: Place, life: Duration) -> Self {
        Self {
            gave_way: Box::pin(place.gave_way()),
            _place: place,
            end: Box::pin(tokio::time::sleep(life)),
        }
    }
}

impl ApiStream {
    pub(super) fn new(
        stream: ServerStream<Replay<TcpStream>>,
        connection: Connection,
        slot: Slot,
        counted: Option<Counted>,
        unauthenticated: Option<Unauthenticated>,
    ) -> Self {
        Self {
            stream,
            connection,
            _slot: slot,
            _counted: counted,
            unauthenticated,
        }
    }
}

impl Connected for ApiStream {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl AsyncRead for ApiStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // HTTP/2 reads all the time, so the end is always waited for.
        if let Some(unauthenticated) = &mut self.unauthenticated
            && (unauthenticated.end.as_mut().poll(context).is_ready()
                || unauthenticated.gave_way.as_mut().poll(context).is_ready())
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for ApiStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Accepted API connections, for `serve_with_incoming_shutdown`.
#[derive(Debug)]
pub struct ApiIncoming(mpsc::Receiver<ApiStream>);

impl ApiIncoming {
    pub(super) fn new(receiver: mpsc::Receiver<ApiStream>) -> Self {
        Self(receiver)
    }
}

impl Stream for ApiIncoming {
    type Item = io::Result<ApiStream>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|next| next.map(Ok))
    }
}
