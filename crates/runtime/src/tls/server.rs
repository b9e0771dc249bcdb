//! Verifies the server one dials: by the stored bundle, or by the pin alone at first contact.

use std::sync::Arc;

use iap_identity::verify::FirstContactError;
use iap_identity::{
    CaClass, ClusterName, PeerError, Pin, ServerName, TrustBundle, verify_first_contact, verify_server,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName as DialledName, UnixTime};
use time::OffsetDateTime;

use super::known::{Known, Term};
use super::peer::{chain_of, offset_date_time, peer_error, tls12_refused};
use super::{Material, provider};

/// Verifies servers against the bundle current at each handshake: the name dialled decides which class of
/// certificate is expected.
#[derive(Debug)]
pub struct ServerVerifier {
    material: Arc<Material>,
    known: Known<ServerName>,
}

impl ServerVerifier {
    /// Trusts what `material` trusts.
    pub fn new(material: Arc<Material>) -> Self {
        Self {
            material,
            known: Known::default(),
        }
    }

    fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        expected: &ServerName,
        bundle: &Arc<TrustBundle>,
        now: OffsetDateTime,
    ) -> Result<(), PeerError> {
        let same_name = |name: &ServerName| name == expected;
        if let Some(leaf) = chain.first()
            && self.known.recall(leaf, bundle, now, same_name).is_some()
        {
            return Ok(());
        }
        let verified = verify_server(chain, expected, bundle, now)?;
        if let Some(leaf) = chain.first() {
            let term = Term {
                since: now,
                until: bundle.valid_until(CaClass::System, now).min(verified.not_after),
            };
            self.known.keep(leaf, bundle, term, verified.name);
        }
        Ok(())
    }

    fn expected(&self, dialled: &DialledName<'_>, bundle: &TrustBundle) -> Result<ServerName, Error> {
        expected_name(dialled, bundle.cluster())
    }
}

/// Verifies a server when nothing but the pin is known: the auth server, whose chain carries the root.
#[derive(Debug)]
pub struct PinVerifier {
    pin: Pin,
    cluster: ClusterName,
}

impl PinVerifier {
    /// Trusts the root with this pin for names of this cluster.
    pub fn new(pin: Pin, cluster: ClusterName) -> Self {
        Self { pin, cluster }
    }
}

/// What differs between the verifiers: everything else about TLS 1.3 server verification is the same.
macro_rules! tls13_server_verifier {
    ($type:ty, $verify:item) => {
        impl ServerCertVerifier for $type {
            $verify

            fn verify_tls12_signature(
                &self,
                _message: &[u8],
                _certificate: &CertificateDer<'_>,
                _signature: &DigitallySignedStruct,
            ) -> Result<HandshakeSignatureValid, Error> {
                Err(tls12_refused())
            }

            fn verify_tls13_signature(
                &self,
                message: &[u8],
                certificate: &CertificateDer<'_>,
                signature: &DigitallySignedStruct,
            ) -> Result<HandshakeSignatureValid, Error> {
                let algorithms = provider().signature_verification_algorithms;
                verify_tls13_signature(message, certificate, signature, &algorithms)
            }

            fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
                provider().signature_verification_algorithms.supported_schemes()
            }
        }
    };
}
pub(super) use tls13_server_verifier;

tls13_server_verifier! {
    ServerVerifier,
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &DialledName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let bundle = self.material.bundle();
        let expected = self.expected(server_name, &bundle)?;
        let chain = chain_of(end_entity, intermediates);
        let verified = self.verify(&chain, &expected, &bundle, offset_date_time(now)?);
        verified.map_err(|error| logged(&error, &expected.host(bundle.cluster())))?;
        Ok(ServerCertVerified::assertion())
    }
}

tls13_server_verifier! {
    PinVerifier,
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &DialledName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let expected = expected_name(server_name, &self.cluster)?;
        let chain = chain_of(end_entity, intermediates);
        let now = offset_date_time(now)?;
        match verify_first_contact(&chain, &expected, &self.pin, &self.cluster, now) {
            Ok(_) => Ok(ServerCertVerified::assertion()),
            Err(FirstContactError::Peer(error)) => Err(logged(&error, &expected.host(&self.cluster))),
            Err(FirstContactError::Trust(error)) => {
                tracing::debug!(%error, "first contact refused");
                Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
            }
        }
    }
}

/// The reason goes to the log; rustls knows only its own words.
fn logged(error: &PeerError, server: &str) -> Error {
    tracing::debug!(%error, server, "server certificate refused");
    match error {
        PeerError::WrongName { .. } => Error::InvalidCertificate(CertificateError::NotValidForName),
        PeerError::NotYetValid { .. } => Error::InvalidCertificate(CertificateError::NotValidYet),
        PeerError::Expired { .. }
        | PeerError::WrongCluster { .. }
        | PeerError::WrongClass { .. }
        | PeerError::WrongUsage
        | PeerError::UnknownIssuer
        | PeerError::Extension(_)
        | PeerError::Malformed(_)
        | PeerError::Inconsistent(_) => peer_error(error),
    }
}

fn expected_name(dialled: &DialledName<'_>, cluster: &ClusterName) -> Result<ServerName, Error> {
    let refused = || Error::InvalidCertificate(CertificateError::NotValidForName);
    match dialled {
        DialledName::DnsName(name) => ServerName::parse(name.as_ref(), cluster).map_err(|_| refused()),
        _ => Err(refused()),
    }
}
