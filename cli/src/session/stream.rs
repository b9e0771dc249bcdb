//! A session's bytes, as whoever carries them sees them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use iap_runtime::resume::Resumable;
use iap_runtime::tls::{ClientStream, Replay};
use iap_tunnel::resume::Close;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::redial::Redial;

/// A connection to an agent. In a box: whatever it is handed through would hold its size once more.
pub(super) type Connection = Box<ClientStream<TcpStream>>;

/// One whose certificates were accepted.
pub(super) fn connection(mut stream: ClientStream<TcpStream>) -> Connection {
    stream.forget_certificates();
    Box::new(stream)
}

/// The bytes of a session: over one connection, or over one after the other.
pub enum SessionStream {
    /// With an agent that lets nobody come back.
    Direct(Box<Replay<Connection>>),
    /// A lost connection is silence until there is another.
    Resumable(Box<Resumable<Connection, Redial>>),
}

macro_rules! delegate {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Self::Direct($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
            Self::Resumable($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
        }
    };
}

impl AsyncRead for SessionStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        delegate!(self, stream => stream.poll_read(context, buffer))
    }
}

impl AsyncWrite for SessionStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self, stream => stream.poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => stream.poll_shutdown(context))
    }
}

/// Nobody will come back: the agent need not wait.
impl Drop for SessionStream {
    fn drop(&mut self) {
        if let Self::Resumable(stream) = self
            && !stream.is_over()
        {
            stream.close(Close::without_a_word());
        }
    }
}
