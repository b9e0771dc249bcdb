//! Path validation by webpki, anchored at the authorities of one class and nowhere else.

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use time::OffsetDateTime;
use webpki::{EndEntityCert, KeyUsage};

use crate::peer::PeerError;

/// The signature algorithms of the key policy: P-256, P-384 and Ed25519.
static ALGORITHMS: &[&dyn rustls_pki_types::SignatureVerificationAlgorithm] = &[
    webpki::aws_lc_rs::ECDSA_P256_SHA256,
    webpki::aws_lc_rs::ECDSA_P256_SHA384,
    webpki::aws_lc_rs::ECDSA_P384_SHA256,
    webpki::aws_lc_rs::ECDSA_P384_SHA384,
    webpki::aws_lc_rs::ED25519,
];

/// The side of a connection a certificate is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Usage {
    Client,
    Server,
}

/// Validity, signature, key usage and extended key usage of `leaf`, which one of the anchors must have
/// signed itself: intermediates a peer sends are ignored. webpki takes an absent extended key usage
/// for permission; [`crate::leaf`] requires it to be there.
pub(crate) fn verify(
    leaf: &CertificateDer<'_>,
    anchors: &[TrustAnchor<'_>],
    usage: Usage,
    now: OffsetDateTime,
) -> Result<(), PeerError> {
    let certificate = EndEntityCert::try_from(leaf).map_err(peer_error)?;
    let usage = match usage {
        Usage::Client => KeyUsage::client_auth(),
        Usage::Server => KeyUsage::server_auth(),
    };
    certificate
        .verify_for_usage(ALGORITHMS, anchors, &[], unix_time(now), usage, None, None)
        .map(drop)
        .map_err(peer_error)
}

/// Whether the certificate's key made this signature, by the one algorithm the key policy pairs with it.
pub(crate) fn verify_signature(
    leaf: &CertificateDer<'_>,
    message: &[u8],
    signature: &[u8],
) -> Result<(), PeerError> {
    let certificate = EndEntityCert::try_from(leaf).map_err(peer_error)?;
    let by_key_type = [
        webpki::aws_lc_rs::ECDSA_P256_SHA256,
        webpki::aws_lc_rs::ECDSA_P384_SHA384,
        webpki::aws_lc_rs::ED25519,
    ];
    let matches = by_key_type.iter().any(|algorithm| {
        certificate
            .verify_signature(*algorithm, message, signature)
            .is_ok()
    });
    if matches {
        Ok(())
    } else {
        Err(PeerError::Inconsistent("a signature is not by its key"))
    }
}

fn unix_time(now: OffsetDateTime) -> UnixTime {
    let seconds = u64::try_from(now.unix_timestamp()).unwrap_or(0);
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
}

fn date_time(time: UnixTime) -> OffsetDateTime {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// webpki's enum is open: what is not named here is a malformed certificate.
fn peer_error(error: webpki::Error) -> PeerError {
    use webpki::Error;
    match error {
        Error::CertExpired { not_after, .. } => PeerError::Expired {
            not_after: date_time(not_after),
        },
        Error::CertNotValidYet { not_before, .. } => PeerError::NotYetValid {
            not_before: date_time(not_before),
        },
        Error::UnknownIssuer
        | Error::InvalidSignatureForPublicKey
        | Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => PeerError::UnknownIssuer,
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension | Error::CaUsedAsEndEntity => {
            PeerError::WrongUsage
        }
        other => PeerError::Malformed(other.to_string()),
    }
}
