//! The load: one backend that every system leads to, and the clients at the other end.

mod backend;
mod bulk;
mod echo;
mod held;
mod sessions;

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Context as _;

pub(crate) use backend::serve as serve_backend;
pub(crate) use bulk::bulk;
pub(crate) use echo::Echoes;
pub(crate) use held::Held;
pub(crate) use sessions::{first_byte, sessions};

/// How long any one answer may take.
const PATIENCE: Duration = Duration::from_secs(60);
const CHUNK_BYTES: usize = 256 * 1024;
const REQUEST_BYTES: usize = 9;

/// What a client asks of the backend: a letter, and a big-endian number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    /// So many bytes, and then the end.
    Send(u64),
    /// Every message of so many bytes back.
    Echo(u64),
    /// One byte at once, and nothing more until the client ends.
    Hold,
}

impl Request {
    fn encode(self) -> [u8; REQUEST_BYTES] {
        let (letter, bytes) = match self {
            Self::Send(bytes) => (b'S', bytes),
            Self::Echo(bytes) => (b'E', bytes),
            Self::Hold => (b'H', 0),
        };
        let [a, b, c, d, e, f, g, h] = bytes.to_be_bytes();
        [letter, a, b, c, d, e, f, g, h]
    }

    fn parse(request: [u8; REQUEST_BYTES]) -> Option<Self> {
        let [letter, bytes @ ..] = request;
        let bytes = u64::from_be_bytes(bytes);
        match letter {
            b'S' => Some(Self::Send(bytes)),
            b'E' => Some(Self::Echo(bytes)),
            b'H' => Some(Self::Hold),
            _ => None,
        }
    }
}

/// A connection on which the backend has been asked for something.
fn ask(port: u16, request: Request) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("cannot connect to the connector")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    stream.write_all(&request.encode())?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read as _;

    use super::*;

    #[test]
    fn requests_are_read_as_they_were_written_and_others_refused() {
        for request in [Request::Send(1 << 40), Request::Echo(64), Request::Hold] {
            assert_eq!(Request::parse(request.encode()), Some(request));
        }
        assert_eq!(Request::parse([b'X'; REQUEST_BYTES]), None);
    }

    #[test]
    fn the_backend_sends_echoes_and_holds() {
        let port = serve_backend().unwrap();
        bulk(port, 1, 3_000_000).unwrap();
        let mut echoes = Echoes::open(port, 3, 64).unwrap();
        assert!(echoes.run(Duration::from_millis(20)).unwrap().len() >= 3);
        let held = Held::default();
        held.open(port, 5).unwrap();
        assert_eq!(held.len(), 5);
        let mut stream = ask(port, Request::Send(2)).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 2);
    }
}
