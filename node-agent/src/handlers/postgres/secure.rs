//! TLS to the backend: verified against the authorities of this host's own file, with the login's own certificate where the
//! service has authorities for that.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use iap_identity::ServiceName;
use iap_postgres::{ChannelBinding, encode};
use iap_runtime::tls::{self, FixedIdentity, ResolvesClientCert};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::settings::PostgresSettings;
use crate::backend::{BackendAddress, BackendStream};
use crate::credentials::{Credentials, NotHeld};
use crate::session::Target;

/// Why there is no encrypted connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum SecureError {
    /// The file with the authorities.
    #[error("ca_file: {0}")]
    Authorities(String),
    /// It does not speak TLS.
    #[error("the backend refuses TLS, and ca_file asks for it")]
    Refused,
    /// No certificate to show.
    #[error(transparent)]
    NotHeld(#[from] NotHeld),
    /// It is not the backend, or does not take the certificate.
    #[error(transparent)]
    Handshake(#[from] tls::HandshakeError),
    /// The connection broke.
    #[error("the backend closed the connection: {0}")]
    Broken(#[from] io::Error),
}

/// Encrypts the connection where the file has authorities to verify the backend by. What goes by a Unix socket stays on
/// this host.
pub(super) async fn secure(
    backend: BackendStream,
    address: &BackendAddress,
    settings: &PostgresSettings,
    shown: Option<Shown<'_>>,
    patience: Duration,
) -> Result<BackendStream, SecureError> {
    let (Some(ca_file), BackendAddress::Tcp(address)) = (&settings.ca_file, address) else {
        return Ok(backend);
    };
    let BackendStream::Tcp(mut stream) = backend else {
        return Ok(backend);
    };
    let identity = match shown {
        Some(shown) => shown.identity(settings).await?,
        None => None,
    };
    let verifier = verifier(ca_file).await?;
    let config = tls::client_config(verifier, identity, &[]);
    let config = config.map_err(|error| SecureError::Authorities(error.to_string()))?;
    ask(&mut stream).await?;
    let name = settings.server_name.as_deref().unwrap_or_else(|| address.host());
    let secured = tls::connect(stream, name, config, patience).await?;
    Ok(BackendStream::Tls(Box::new(secured)))
}

/// What a login within that connection can be bound to, so that nobody in between can have a part in it. Nothing else is
/// asked of the backend's certificate from here on.
pub(super) fn channel(backend: &mut BackendStream) -> ChannelBinding {
    let BackendStream::Tls(stream) = backend else {
        return ChannelBinding::Absent;
    };
    let (_, negotiated) = stream.get_ref();
    let certificate = negotiated.peer_certificates().and_then(<[_]>::first);
    let end_point = certificate.and_then(tls::server_end_point);
    stream.forget_certificates();
    end_point.map_or(ChannelBinding::Absent, ChannelBinding::EndPoint)
}

/// Whose certificate is shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown<'a> {
    pub(super) credentials: &'a Credentials,
    pub(super) service: &'a ServiceName,
    pub(super) target: &'a Target,
}

impl Shown<'_> {
    async fn identity(
        &self,
        settings: &PostgresSettings,
    ) -> Result<Option<Arc<dyn ResolvesClientCert>>, NotHeld> {
        if !settings.client_certificate {
            return Ok(None);
        }
        let held = || self.credentials.postgres(self.service, &self.target.login);
        let credential = match held() {
            // A login that the policy does not tell by name.
            Err(NotHeld::Login { .. }) => {
                self.credentials.wait_for(self.service, &self.target.login).await;
                held()?
            }
            held => held?,
        };
        Ok(Some(Arc::new(FixedIdentity(credential.certified))))
    }
}

/// Asks for TLS, and reads no byte beyond the answer (CVE-2021-23222).
async fn ask(stream: &mut TcpStream) -> Result<(), SecureError> {
    stream.write_all(&encode::ssl_request()).await?;
    let mut answer = [0];
    stream.read_exact(&mut answer).await?;
    match answer {
        [b'S'] => Ok(()),
        _ => Err(SecureError::Refused),
    }
}

/// Read anew for each session, as all files that an operator may replace.
async fn verifier(ca_file: &Path) -> Result<Arc<WebPkiServerVerifier>, SecureError> {
    let refused = |error: &dyn std::fmt::Display| SecureError::Authorities(error.to_string());
    let pem = tokio::fs::read(ca_file).await;
    let pem = pem.map_err(|error| refused(&error))?;
    let certificates = tls::certificates_from_pem(&pem).map_err(|error| refused(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|error| refused(&error))?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), tls::provider());
    verifier.build().map_err(|error| refused(&error))
}
