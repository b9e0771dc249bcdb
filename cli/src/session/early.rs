//! What a local program has said before its session is there. Sent right behind the hello, it need not wait for the
//! answer: a round trip less until the backend's first byte.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, ReadBuf};

/// So much goes ahead; the agent holds it until the session is granted, and throws it away with a refusal.
const BYTES_MAX: usize = 16 * 1024;
/// Read at once.
const PIECE_BYTES: usize = 4 * 1024;

/// The beginning of what a local program says, kept until it is known to have been of use.
pub struct Early<'a> {
    local: Option<&'a mut (dyn AsyncRead + Unpin + Send)>,
    bytes: Vec<u8>,
}

impl<'a> Early<'a> {
    /// Of a program that has not begun.
    #[must_use]
    pub fn none() -> Self {
        Self {
            local: None,
            bytes: Vec::new(),
        }
    }

    /// Of a program that may have. What is read here is not read again from `local`.
    pub fn of(local: &'a mut (dyn AsyncRead + Unpin + Send)) -> Self {
        Self {
            local: Some(local),
            bytes: Vec::new(),
        }
    }

    /// Everything it has said so far, without waiting for more. Its end is left for others to find.
    pub(super) fn said(&mut self) -> &[u8] {
        while let Some(local) = &mut self.local
            && self.bytes.len() < BYTES_MAX
        {
            let mut piece = [0; PIECE_BYTES];
            let mut space = ReadBuf::new(&mut piece);
            let polled = Pin::new(local).poll_read(&mut Context::from_waker(Waker::noop()), &mut space);
            match polled {
                Poll::Ready(Ok(())) if !space.filled().is_empty() => {
                    self.bytes.extend_from_slice(space.filled());
                }
                Poll::Ready(_) => self.local = None,
                Poll::Pending => break,
            }
        }
        &self.bytes
    }

    /// What was read, for somebody else to answer.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn what_is_there_is_taken_once_and_what_comes_later_is_left() {
        let (mut program, mut local) = tokio::io::duplex(64 * 1024);
        let mut early = Early::of(&mut local);
        assert_eq!(early.said(), b"");
        program.write_all(b"SSH-2.0").await.unwrap();
        assert_eq!(early.said(), b"SSH-2.0");
        assert_eq!(early.said(), b"SSH-2.0", "kept for another attempt");
        drop(early);
        program.write_all(b"-OpenSSH").await.unwrap();
        drop(program);
        let mut rest = String::new();
        local.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "-OpenSSH");
    }

    #[tokio::test]
    async fn there_is_a_bound_and_an_end_that_others_find() {
        let (mut program, mut local) = tokio::io::duplex(64 * 1024);
        program.write_all(&[7; 32 * 1024]).await.unwrap();
        drop(program);
        let mut early = Early::of(&mut local);
        assert_eq!(early.said().len(), BYTES_MAX);
        drop(early);
        let mut rest = Vec::new();
        local.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest.len(), 32 * 1024 - BYTES_MAX);
        let mut ended = Early::of(&mut local);
        assert_eq!(ended.said(), b"");
    }
}
