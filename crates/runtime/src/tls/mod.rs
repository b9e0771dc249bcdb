//! TLS, and the only module that names rustls types: the provider, the ClientHello, verifiers over the
//! cluster's certificates, and the material one presents.

mod hello;
mod provider;
mod replay;

pub use hello::{
    ClientHelloError, ClientHelloFacts, ClientHelloLimits, accept, alert_record, peek, send_alert,
};
pub use provider::{install_provider, provider};
pub use replay::Replay;
pub use rustls::AlertDescription;
