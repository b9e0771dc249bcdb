//! A running proxy, agents made of the messages alone, clients made of bytes.

pub mod agent;
pub mod auth;
pub mod hello;
pub mod plane;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub use agent::TestAgent;
pub use auth::FakeAuth;
pub use hello::{hello, hello_without_name, padded_hello, raw_name_hello};
pub use plane::Plane;

/// Nothing here takes this long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
pub const INTERNAL_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];
pub const DECODE_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 50];

/// A connection that has sent these bytes.
pub async fn dial(proxy: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// Everything until the other side closes; a reset counts as a close.
pub async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    match read.expect("the connection stays open") {
        Ok(_) => bytes,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => bytes,
        Err(error) => panic!("{error}"),
    }
}

/// What a connection with these first bytes is answered before it is closed.
pub async fn answer(proxy: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    rest(&mut dial(proxy, bytes).await).await
}

/// Exactly this many bytes.
pub async fn take<S: tokio::io::AsyncRead + Unpin>(stream: &mut S, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut bytes)).await;
    read.expect("nothing came").unwrap();
    bytes
}

/// The value, unless it takes too long.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it took too long")
}

/// Returns as soon as the condition holds.
pub async fn until(condition: impl Fn() -> bool) {
    iap_testkit::wait_until_async(async || condition(), PATIENCE)
        .await
        .unwrap();
}
