//! What every system leads to.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{CHUNK_BYTES, REQUEST_BYTES, Request};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;
const MESSAGE_BYTES_MAX: u64 = 1024 * 1024;

/// Serves on a free port until the process ends.
///
/// # Errors
/// When no port is free.
pub(crate) fn serve() -> anyhow::Result<u16> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let listener = {
        let _within = runtime.enter();
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        socket.listen(BACKLOG)?
    };
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || runtime.block_on(accept(listener)));
    Ok(port)
}

async fn accept(listener: TcpListener) {
    let chunk: Arc<[u8]> = vec![0x5a; CHUNK_BYTES].into();
    loop {
        // Out of descriptors: the client's patience ends it.
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let chunk = Arc::clone(&chunk);
        tokio::spawn(async move { answer(stream, &chunk).await });
    }
}

async fn answer(mut stream: TcpStream, chunk: &[u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = [0; REQUEST_BYTES];
    stream.read_exact(&mut request).await?;
    match Request::parse(request) {
        Some(Request::Send(bytes)) => send(&mut stream, bytes, chunk).await?,
        Some(Request::Echo(bytes)) if bytes <= MESSAGE_BYTES_MAX => echo(&mut stream, bytes).await?,
        Some(Request::Hold) => {
            stream.write_all(&[0]).await?;
            while stream.read(&mut request).await? > 0 {}
        }
        Some(Request::Echo(_)) | None => {}
    }
    stream.shutdown().await
}

async fn send(stream: &mut TcpStream, bytes: u64, chunk: &[u8]) -> std::io::Result<()> {
    let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
    while left > 0 {
        let piece = chunk.get(..left.min(chunk.len())).unwrap_or(chunk);
        stream.write_all(piece).await?;
        left -= piece.len();
    }
    Ok(())
}

async fn echo(stream: &mut TcpStream, bytes: u64) -> std::io::Result<()> {
    let mut message = vec![0; usize::try_from(bytes).unwrap_or_default()];
    loop {
        match stream.read_exact(&mut message).await {
            Ok(_) => stream.write_all(&message).await?,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
