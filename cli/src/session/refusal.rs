//! Tells a PostgreSQL client of a local listener why there is no session, in its own protocol.
//!
//! Without this, `psql` says only "server closed the connection unexpectedly".

use iap_tunnel::fatal::SQLSTATE_DENIED;
use iap_tunnel::{Fatal, StartupMachine, StartupStep};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::exit::ExitStatus;
use crate::failure::Failure;

/// A startup message is read in pieces of this size.
const PIECE_BYTES: usize = 1024;
/// `connection_failure`: between here and the service something is broken.
const SQLSTATE_FAILED: &str = "08006";

/// Answers the client's startup message with the failure. A client that says nothing sensible is left alone.
pub(super) async fn tell_postgres(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    failure: &Failure,
) -> std::io::Result<()> {
    let mut machine = StartupMachine::new();
    let mut piece = [0; PIECE_BYTES];
    loop {
        let count = stream.read(&mut piece).await?;
        match machine.push(piece.get(..count).unwrap_or_default()) {
            Ok(StartupStep::NeedMore) if count > 0 => {}
            Ok(StartupStep::RefuseEncryption) => stream.write_all(b"N").await?,
            Ok(StartupStep::Started) => {
                stream.write_all(&fatal(failure).encode()).await?;
                return stream.shutdown().await;
            }
            Ok(StartupStep::NeedMore) | Err(_) => return Ok(()),
        }
    }
}

fn fatal(failure: &Failure) -> Fatal {
    Fatal {
        sqlstate: match failure.status() {
            ExitStatus::Denied | ExitStatus::LoginNeeded | ExitStatus::Usage => SQLSTATE_DENIED,
            ExitStatus::Done | ExitStatus::Failed | ExitStatus::Command(_) => SQLSTATE_FAILED,
        },
        message: failure.to_string(),
        detail: None,
        hint: failure.next_step().map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SSL_REQUEST: u32 = 80_877_103;

    #[tokio::test]
    async fn a_client_that_asks_for_tls_first_reads_the_sentence_and_what_to_do() {
        let (mut client, mut server) = tokio::io::duplex(1024);
        let serving = tokio::spawn(async move {
            tell_postgres(
                &mut server,
                &Failure::denied("bob may not").next("ask #databases"),
            )
            .await
        });
        client.write_all(&[0, 0, 0, 8]).await.unwrap();
        client.write_all(&SSL_REQUEST.to_be_bytes()).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'N');
        client.write_all(&[0, 0, 0, 14, 0, 3, 0, 0]).await.unwrap();
        client.write_all(b"user\0\0").await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        serving.await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&answer);
        assert!(
            text.starts_with('E') && text.contains("C28000\0") && text.contains("Mbob may not\0"),
            "{text}"
        );
        assert!(text.contains("Hask #databases\0"), "{text}");
    }

    #[tokio::test]
    async fn a_client_of_another_protocol_gets_nothing() {
        let (mut client, mut server) = tokio::io::duplex(1024);
        let serving = tokio::spawn(async move { tell_postgres(&mut server, &Failure::denied("no")).await });
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        serving.await.unwrap().unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(answer.is_empty());
    }
}
