//! The way to a client through the proxy, whatever it runs over.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use iap_runtime::quic;
use iap_runtime::tls;
use iap_tunnel::DataWay;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What a client was fetched with.
#[derive(Debug)]
pub enum DataStream {
    /// A TCP connection dialled back.
    Tcp(TcpStream),
    /// The same inside TLS.
    Tls(Box<tls::ClientStream<TcpStream>>),
    /// A stream of the QUIC connection.
    Quic(Box<quic::Stream>),
}

impl DataStream {
    /// What it runs over.
    #[must_use]
    pub fn way(&self) -> DataWay {
        match self {
            Self::Tcp(_) => DataWay::Tcp,
            Self::Tls(_) => DataWay::Tls,
            Self::Quic(_) => DataWay::Quic,
        }
    }
}

/// The same call on whichever stream it is.
macro_rules! on_stream {
    ($self:expr, $call:ident($($argument:expr),*)) => {
        match $self.get_mut() {
            DataStream::Tcp(stream) => Pin::new(stream).$call($($argument),*),
            DataStream::Tls(stream) => Pin::new(stream.as_mut()).$call($($argument),*),
            DataStream::Quic(stream) => Pin::new(stream.as_mut()).$call($($argument),*),
        }
    };
}

impl AsyncRead for DataStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on_stream!(self, poll_read(context, target))
    }
}

impl AsyncWrite for DataStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        on_stream!(self, poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Quic(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, poll_shutdown(context))
    }
}
