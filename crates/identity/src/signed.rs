//! Objects that travel signed: snapshots, beats, lock lists and bundles, as `{key_id, payload,
//! signature}` with Ed25519 over `"iap-<kind>-v1\0"` and the payload.

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};

use crate::bundle::TrustBundle;
use crate::text::hex;

/// What a signature is about; part of the signed bytes, so that none can stand in for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SignedKind {
    /// Policy and services, for agents.
    Snapshot,
    /// Proof that the feed is alive.
    Beat,
    /// The complete list of locks.
    Locks,
    /// The certificates of every authority.
    Bundle,
    /// The head of an agent's record chain, signed by the agent.
    AuditHead,
}

impl SignedKind {
    /// The word in the signed prefix.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Beat => "beat",
            Self::Locks => "locks",
            Self::Bundle => "bundle",
            Self::AuditHead => "audit-head",
        }
    }
}

/// Why a signed object was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignedError {
    /// The key is not among those the root has certified.
    #[error("signed with the unknown key {0:?}")]
    UnknownKey(String),
    /// The signature is not by that key over these bytes and this kind.
    #[error("the signature does not match")]
    Signature,
}

/// Bytes whose signature was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifiedPayload<'a>(&'a [u8]);

impl<'a> VerifiedPayload<'a> {
    /// The payload.
    pub const fn bytes(&self) -> &'a [u8] {
        self.0
    }
}

/// The exact bytes to be signed.
pub fn signed_message(kind: SignedKind, payload: &[u8]) -> Vec<u8> {
    let mut message = format!("iap-{}-v1\0", kind.as_str()).into_bytes();
    message.extend_from_slice(payload);
    message
}

/// Lower-case hex of the first 8 bytes of SHA-256 over the raw Ed25519 public key.
pub fn key_id(public: &[u8; 32]) -> String {
    hex(crate::sha256(public).get(..8).unwrap_or_default())
}

/// Checks a signature against the keys the bundle holds.
pub fn verify_signed<'a>(
    bundle: &TrustBundle,
    key_id: &str,
    kind: SignedKind,
    payload: &'a [u8],
    signature: &[u8],
) -> Result<VerifiedPayload<'a>, SignedError> {
    let public = bundle
        .signing_key(key_id)
        .ok_or_else(|| SignedError::UnknownKey(key_id.chars().take(64).collect()))?;
    UnparsedPublicKey::new(&ED25519, public)
        .verify(&signed_message(kind, payload), signature)
        .map_err(|_| SignedError::Signature)?;
    Ok(VerifiedPayload(payload))
}
