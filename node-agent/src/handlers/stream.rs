//! A client's bytes, as handlers see them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use iap_tunnel::resume::Close;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::dialback::ClientStream;
use crate::session::resumption::ResumableStream;

/// A client's bytes: over one connection, or over one after the other.
#[derive(Debug)]
pub(crate) enum SessionStream {
    Direct(ClientStream),
    Resumable(Box<ResumableStream>),
}

impl SessionStream {
    /// Tells a client that could come back that it need not.
    pub(crate) fn close(&mut self, code: &str, text: &str) {
        match self {
            Self::Direct(_) => {}
            Self::Resumable(stream) => stream.close(Close {
                code: code.to_owned(),
                text: text.to_owned(),
            }),
        }
    }
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
