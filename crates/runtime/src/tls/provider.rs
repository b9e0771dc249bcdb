//! The one cryptographic provider of the process.

use std::sync::{Arc, OnceLock};

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};

/// aws-lc-rs with the post-quantum hybrid first, and of the TLS 1.3 suites the cheapest first: AES-128-GCM
/// moves a GiB for about two thirds of what AES-256-GCM takes.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let provider = PROVIDER.get_or_init(|| {
        let standard = default_provider();
        let tls12 = standard
            .cipher_suites
            .iter()
            .filter(|suite| suite.tls13().is_none());
        let tls13 = [
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        Arc::new(CryptoProvider {
            cipher_suites: tls13.into_iter().chain(tls12.copied()).collect(),
            kx_groups: vec![
                kx_group::X25519MLKEM768,
                kx_group::X25519,
                kx_group::SECP256R1,
                kx_group::SECP384R1,
            ],
            ..standard
        })
    });
    Arc::clone(provider)
}

/// Makes [`provider`] the default for every TLS configuration of the process. Call it first in `main`; calling
/// it again changes nothing.
pub fn install_provider() {
    let _ = CryptoProvider::install_default(CryptoProvider::clone(&provider()));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rustls::{CipherSuite, NamedGroup};

    use super::*;

    #[test]
    fn the_post_quantum_hybrid_and_the_cheapest_suite_come_first() {
        install_provider();
        install_provider();
        let default = CryptoProvider::get_default().unwrap();
        assert_eq!(
            default.kx_groups.first().unwrap().name(),
            NamedGroup::X25519MLKEM768
        );
        let first = default.cipher_suites.first().unwrap();
        assert_eq!(first.suite(), CipherSuite::TLS13_AES_128_GCM_SHA256);
    }
}
