//! A TCP connection to go on with when this process is killed: whatever is read of it lies in a [`LiveMemory`] before it is
//! taken from the kernel, which knows how much was taken and written ([`tcp_counts`](crate::net::tcp_counts)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, recv, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::LiveMemory;
use crate::resume::Ledger;

/// The most that is read at once.
pub const KEPT_READ_BYTES_MAX: usize = 256 * 1024;

/// Such a connection. Its ledger is told what it has written.
#[derive(Debug)]
pub struct KeptStream {
    stream: TcpStream,
    memory: Arc<LiveMemory>,
    ledger: Arc<Ledger>,
    window: u64,
    read: u64,
    written: u64,
    marked: u64,
}

impl KeptStream {
    /// The memory has room for `window` bytes and [`KEPT_READ_BYTES_MAX`] more. The session stands at these positions.
    ///
    /// # Errors
    /// When the connection cannot be used so.
    pub fn new(
        stream: TcpStream,
        memory: Arc<LiveMemory>,
        ledger: Arc<Ledger>,
        window: u64,
        (read, written): (u64, u64),
    ) -> io::Result<Self> {
        // An urgent byte out of line would be counted and never read.
        sockopt::set_socket_oobinline(&stream, true)?;
        let marked = memory.marked()?;
        Ok(Self {
            stream,
            memory,
            ledger,
            window,
            read,
            written,
            marked,
        })
    }

    /// Nothing was to be read: those that come back for the session later need less.
    fn rest(&mut self) -> io::Result<()> {
        let acknowledged = self.ledger.acknowledged();
        if acknowledged != self.marked {
            self.memory.mark(acknowledged)?;
            self.marked = acknowledged;
        }
        Ok(())
    }

    /// Takes what lies in memory by now from the kernel, which gives it to nobody else: there is no other reader.
    fn take(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let mut taken = 0;
        while let Some(rest) = bytes.get_mut(taken..).filter(|rest| !rest.is_empty()) {
            // TCP throws away what it is told to cut off, and copies nothing.
            let flags = RecvFlags::TRUNC | RecvFlags::DONTWAIT;
            match recv(&self.stream, &mut *rest, flags) {
                Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((_, count)) => taken += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl AsFd for KeptStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsyncRead for KeptStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // What the client may still ask for is not written over.
        let needed = this.read.saturating_sub(this.window);
        ready!(this.ledger.poll_acknowledged(context, needed));
        let size = buffer.remaining().min(KEPT_READ_BYTES_MAX);
        let bytes = buffer.initialize_unfilled_to(size);
        let count = loop {
            if this.stream.poll_read_ready(context)?.is_pending() {
                this.rest()?;
                return Poll::Pending;
            }
            let looking = || {
                let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
                let (_, count) = recv(&this.stream, &mut *bytes, flags)?;
                Ok(count)
            };
            match this.stream.try_io(Interest::READABLE, looking) {
                Ok(count) => break count,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        };
        let bytes = bytes.get_mut(..count).unwrap_or_default();
        this.memory.write(this.read, bytes)?;
        this.take(bytes)?;
        this.read += count as u64;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for KeptStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.stream).poll_write(context, bytes))?;
        this.written += count as u64;
        this.ledger.pass(this.written);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
        this.ledger.pass(this.written + 1);
        Poll::Ready(Ok(()))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::net::{TcpCounts, tcp_counts};

    const WINDOW: u64 = 1000;

    /// A connection that is kept, as it is at its beginning, its ledger and the backend.
    async fn kept() -> (KeptStream, TcpCounts, Arc<Ledger>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (backend, _) = listener.accept().await.unwrap();
        let start = tcp_counts(&stream).unwrap();
        let ring_bytes = WINDOW + KEPT_READ_BYTES_MAX as u64;
        let memory = Arc::new(LiveMemory::create("test", 10, ring_bytes).unwrap());
        let ledger = Arc::new(Ledger::default());
        let stream = KeptStream::new(stream, memory, Arc::clone(&ledger), WINDOW, (0, 0)).unwrap();
        (stream, start, ledger, backend)
    }

    #[tokio::test]
    async fn what_the_kernel_counts_as_read_lies_in_memory() {
        let (mut stream, start, _ledger, mut backend) = kept().await;
        let sent: Vec<u8> = (0..WINDOW).map(|number| (number % 251) as u8).collect();
        let mut received = Vec::new();
        for piece in sent.chunks(300) {
            backend.write_all(piece).await.unwrap();
            let mut space = [0; 200];
            let count = stream.read(&mut space).await.unwrap();
            received.extend_from_slice(space.get(..count).unwrap());
            let counted = tcp_counts(&stream).unwrap().read - start.read;
            assert_eq!(counted, received.len() as u64);
            assert_eq!(stream.memory.read(0, counted).unwrap(), received);
        }
        drop(backend);
        stream.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, sent);
    }

    #[tokio::test]
    async fn what_was_written_and_the_end_behind_it_are_in_the_ledger() {
        let (mut stream, start, ledger, mut backend) = kept().await;
        stream.write_all(b"hello").await.unwrap();
        let counts = tcp_counts(&stream).unwrap();
        assert_eq!((ledger.passed_on(), counts.written - start.written), (5, 5));
        stream.shutdown().await.unwrap();
        let counts = tcp_counts(&stream).unwrap();
        assert_eq!((ledger.passed_on(), counts.written - start.written), (6, 5));
        assert!(counts.is_shut);
        let mut received = Vec::new();
        backend.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"hello");
    }

    #[tokio::test]
    async fn nothing_is_read_over_what_the_client_may_ask_for() {
        let (mut stream, _, ledger, mut backend) = kept().await;
        backend.write_all(&[7; 1500]).await.unwrap();
        let mut space = [0; 1001];
        stream.read_exact(&mut space).await.unwrap();
        let waits = std::time::Duration::from_millis(50);
        let read = tokio::time::timeout(waits, stream.read(&mut space));
        assert!(
            read.await.is_err(),
            "a byte more than the window is not acknowledged"
        );
        let reading = tokio::spawn(async move {
            let mut space = [0; 499];
            stream.read_exact(&mut space).await.unwrap();
        });
        tokio::task::yield_now().await;
        ledger.acknowledge(1);
        reading.await.unwrap();
    }

    /// Out of line it would be counted and not read.
    #[tokio::test]
    async fn an_urgent_byte_is_a_byte_like_others() {
        let (mut stream, start, _ledger, backend) = kept().await;
        rustix::net::send(&backend, b"a!", rustix::net::SendFlags::OOB).unwrap();
        rustix::net::send(&backend, b"b", rustix::net::SendFlags::empty()).unwrap();
        drop(backend);
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"a!b");
        assert_eq!(tcp_counts(&stream).unwrap().read - start.read, 3);
    }
}
