//! Tells a PostgreSQL client of a local listener why there is no session, in its own protocol.
//!
//! Without this, `psql` says only "server closed the connection unexpectedly".

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::exit::ExitStatus;
use crate::failure::Failure;

/// A startup message is small; what is larger is not one.
const STARTUP_BYTES_MAX: usize = 10_000;
/// A client asks for TLS and for GSSAPI encryption before its startup message, once each.
const ENCRYPTION_REQUESTS_MAX: usize = 2;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;

/// Answers the client's startup message with the failure. A client that says nothing sensible is left alone.
pub(super) async fn tell_postgres(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    failure: &Failure,
) -> std::io::Result<()> {
    for _ in 0..=ENCRYPTION_REQUESTS_MAX {
        let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
        let Some(rest) = length.checked_sub(8).filter(|rest| *rest <= STARTUP_BYTES_MAX) else {
            return Ok(());
        };
        let code = stream.read_u32().await?;
        tokio::io::copy(
            &mut (&mut *stream).take(u64::try_from(rest).unwrap_or(0)),
            &mut tokio::io::sink(),
        )
        .await?;
        if !matches!(code, SSL_REQUEST | GSSENC_REQUEST) {
            stream.write_all(&error_response(failure)).await?;
            return stream.shutdown().await;
        }
        stream.write_all(b"N").await?;
    }
    Ok(())
}

/// `ErrorResponse` (PostgreSQL protocol, message formats): severity, SQLSTATE, message.
fn error_response(failure: &Failure) -> Vec<u8> {
    let state = match failure.status() {
        // invalid_authorization_specification
        ExitStatus::Denied | ExitStatus::LoginNeeded | ExitStatus::Usage => "28000",
        // connection_failure
        ExitStatus::Done | ExitStatus::Failed | ExitStatus::Command(_) => "08006",
    };
    let message = failure.to_string().replace('\0', " ");
    let mut fields = Vec::new();
    for (kind, value) in [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', state), (b'M', &message)] {
        fields.push(kind);
        fields.extend_from_slice(value.as_bytes());
        fields.push(0);
    }
    fields.push(0);
    let length = u32::try_from(fields.len() + 4).unwrap_or(u32::MAX);
    [&[b'E'][..], &length.to_be_bytes(), &fields].concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_client_that_asks_for_tls_first_reads_the_sentence() {
        let (mut client, mut server) = tokio::io::duplex(1024);
        let serving =
            tokio::spawn(async move { tell_postgres(&mut server, &Failure::denied("bob may not")).await });
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
