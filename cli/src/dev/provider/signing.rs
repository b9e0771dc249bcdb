//! The provider's key: one P-256 key per process; ID tokens are `ES256`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use serde_json::{Value, json};

use super::ProviderError;

/// Bytes of one coordinate of a P-256 point.
const COORDINATE_BYTES: usize = 32;

pub(super) struct SigningKey {
    key: EncodingKey,
    public: Value,
    id: String,
}

impl SigningKey {
    pub(super) fn generate() -> Result<Self, ProviderError> {
        let failed = |error: &dyn std::fmt::Display| ProviderError::Key(error.to_string());
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| failed(&error))?;
        // An uncompressed point: 0x04, x, y (SEC 1 §2.3.3).
        let (x, y) = pair
            .der_bytes()
            .strip_prefix(&[4])
            .and_then(|point| point.split_at_checked(COORDINATE_BYTES))
            .ok_or_else(|| failed(&"not an uncompressed point"))?;
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        let id = x.chars().take(8).collect::<String>();
        let public =
            json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": id, "x": x, "y": y});
        Ok(Self {
            key: EncodingKey::from_ec_der(&pair.serialize_der()),
            public,
            id,
        })
    }

    /// The key set served at `jwks_uri`.
    pub(super) fn key_set(&self) -> Value {
        json!({ "keys": [self.public] })
    }

    /// A signed token with these claims.
    pub(super) fn sign(&self, claims: &Value) -> Result<String, ProviderError> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.id.clone());
        jsonwebtoken::encode(&header, claims, &self.key)
            .map_err(|error| ProviderError::Key(error.to_string()))
    }
}
