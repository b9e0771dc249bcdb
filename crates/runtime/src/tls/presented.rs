//! A verifier that only looks: whatever a server presents is kept for judging, and nothing is said after it.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::peer::{chain_of, tls12_refused};
use super::provider;
use super::server::tls13_server_verifier;

/// The chain that a server presented. It proves possession of the leaf's key as always, so that it is the other
/// end's own and no copy.
#[derive(Debug, Default)]
pub(crate) struct Presented(Mutex<Vec<CertificateDer<'static>>>);

impl Presented {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

tls13_server_verifier! {
    Presented,
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = chain_of(end_entity, intermediates);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            chain.into_iter().map(CertificateDer::into_owned).collect();
        Ok(ServerCertVerified::assertion())
    }
}
