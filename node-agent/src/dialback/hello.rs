//! The two frames of `iap/1`, on an encrypted stream.

use std::io;
use std::time::Duration;

use iap_runtime::tls;
use iap_tunnel::frame::LENGTH_BYTES;
use iap_tunnel::{Hello, Status, StatusError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How long a client may take to accept a status of a few hundred bytes.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no hello.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelloError {
    /// Not within the time allowed.
    #[error("no hello frame in time")]
    TimedOut,
    /// Longer than allowed.
    #[error("a hello frame of {bytes} bytes is longer than {bytes_max}")]
    TooLong {
        /// What was announced.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// Not a hello.
    #[error(transparent)]
    Malformed(#[from] StatusError),
    /// The connection broke.
    #[error("the connection broke before the hello: {0}")]
    Broken(#[from] io::Error),
}

/// Reads exactly one frame: whatever follows it is the backend's.
pub(super) async fn read_hello<S: AsyncRead + Unpin>(
    stream: &mut S,
    bytes_max: usize,
    patience: Duration,
) -> Result<Hello, HelloError> {
    match tokio::time::timeout(patience, read_frame(stream, bytes_max)).await {
        Ok(frame) => Ok(Hello::decode(&frame?)?),
        Err(_elapsed) => Err(HelloError::TimedOut),
    }
}

pub(super) async fn read_frame<S: AsyncRead + Unpin>(
    stream: &mut S,
    bytes_max: usize,
) -> Result<Vec<u8>, HelloError> {
    let mut length = [0; LENGTH_BYTES];
    stream.read_exact(&mut length).await?;
    let bytes = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if bytes > bytes_max {
        return Err(HelloError::TooLong { bytes, bytes_max });
    }
    let mut frame = vec![0; bytes];
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

/// Answers the hello.
pub(crate) async fn write_status<S: AsyncWrite + Unpin>(stream: &mut S, status: &Status) -> io::Result<()> {
    let frame = status.encode().map_err(io::Error::other)?;
    let writing = async {
        stream.write_all(&frame).await?;
        stream.flush().await
    };
    match tokio::time::timeout(STATUS_TIMEOUT, writing).await {
        Ok(written) => written,
        Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Answers the hello with something that ends the conversation, and ends it. What the client has sent behind its hello
/// already is read and forgotten.
pub(crate) async fn say_last<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, status: &Status) {
    if write_status(stream, status).await.is_ok() {
        tls::farewell(stream).await;
    }
}
