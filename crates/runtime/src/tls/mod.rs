//! TLS, and with `quic` the only module that names rustls types: the provider, the ClientHello, verifiers over the
//! cluster's certificates, and the material one shows.

mod connection;
mod end_point;
mod hello;
mod known;
mod material;
mod peer;
mod pem;
mod presented;
mod provider;
mod replay;
mod server;
mod stream;

pub use connection::{
    ClientStream, HandshakeError, ServerStream, Unanswered, alert_behind, alert_received, answer,
    client_config, connect, farewell, handshake, server_config, web_server_config,
};
pub use end_point::server_end_point;
pub use hello::{
    ClientHelloError, ClientHelloFacts, ClientHelloLimits, accept, alert_record, peek, send_alert,
};
pub use material::{CertifiedKey, FixedIdentity, Material, MaterialError, NamedIdentity, certified_key};
pub use peer::{Demand, KnownClients, PeerVerifier, PostPossession, Refusal};
pub use pem::{PemError, certificates_from_pem, certificates_to_pem, private_key_from_pem};
pub(crate) use presented::Presented;
pub use provider::{install_provider, provider};
pub use replay::Replay;
pub use rustls::client::ResolvesClientCert;
pub use rustls::client::danger::ServerCertVerifier;
pub use rustls::server::ResolvesServerCert;
pub use rustls::server::danger::ClientCertVerifier;
pub use rustls::{AlertDescription, ClientConfig, ServerConfig};
pub use rustls_pki_types::{CertificateDer, PrivateKeyDer};
pub use server::{PinVerifier, ServerVerifier};
pub use stream::{Negotiated, TlsStream};

#[cfg(test)]
mod tests;
