//! What both ends agreed on.

use rustls::crypto::SupportedKxGroup;
use rustls::{CommonState, HandshakeKind, ProtocolVersion, SupportedCipherSuite};
use rustls_pki_types::CertificateDer;

/// What a handshake led to.
#[derive(Debug)]
pub struct Negotiated {
    alpn_protocol: Option<Box<[u8]>>,
    peer_certificates: Option<Box<[CertificateDer<'static>]>>,
    handshake_kind: Option<HandshakeKind>,
    protocol_version: Option<ProtocolVersion>,
    cipher_suite: Option<SupportedCipherSuite>,
    key_exchange_group: Option<&'static dyn SupportedKxGroup>,
}

impl Negotiated {
    pub(super) fn of(connection: &CommonState) -> Self {
        Self {
            alpn_protocol: connection.alpn_protocol().map(Box::from),
            peer_certificates: connection.peer_certificates().map(Box::from),
            handshake_kind: connection.handshake_kind(),
            protocol_version: connection.protocol_version(),
            cipher_suite: connection.negotiated_cipher_suite(),
            key_exchange_group: connection.negotiated_key_exchange_group(),
        }
    }

    /// The protocol inside (RFC 7301), if both named one.
    pub fn alpn_protocol(&self) -> Option<&[u8]> {
        self.alpn_protocol.as_deref()
    }

    /// The peer's certificate and those above it, if it has shown one and they are not forgotten.
    pub fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.peer_certificates.as_deref()
    }

    pub(super) fn forget_certificates(&mut self) {
        self.peer_certificates = None;
    }

    /// Whether it was a whole handshake.
    pub fn handshake_kind(&self) -> Option<HandshakeKind> {
        self.handshake_kind
    }

    /// The version of TLS.
    pub fn protocol_version(&self) -> Option<ProtocolVersion> {
        self.protocol_version
    }

    /// How records are protected.
    pub fn negotiated_cipher_suite(&self) -> Option<SupportedCipherSuite> {
        self.cipher_suite
    }

    /// How the keys were agreed on.
    pub fn negotiated_key_exchange_group(&self) -> Option<&'static dyn SupportedKxGroup> {
        self.key_exchange_group
    }
}
