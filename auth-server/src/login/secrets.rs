//! The secrets of a login: made here, shown once, kept as hashes.
//!
//! The browser that went to the provider holds one random cookie. Nonce and PKCE verifier are derived
//! from that cookie and the OIDC `state`, so a copy of the database cannot continue anybody's login, and
//! a callback that arrives in another browser cannot be answered at all.

use aws_lc_rs::{constant_time, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use time::OffsetDateTime;

use crate::context::{NoRandomness, Random};
use crate::store::{Hash, hash_of};

/// Bytes of every random secret.
const SECRET_BYTES: usize = 32;
/// Letters that cannot be mistaken for each other and spell no words: log2(20) bits each.
const USER_CODE_LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
/// Ten letters are 43 bits.
const USER_CODE_LENGTH: usize = 10;

/// A secret in the form in which it travels. No `Debug`, no `==`: it is compared through its hash.
pub(crate) struct Secret(String);

impl Secret {
    /// A fresh one, base64url.
    ///
    /// # Errors
    /// When there is no randomness.
    pub(crate) fn fresh(random: &Random) -> Result<Self, NoRandomness> {
        Ok(Self(URL_SAFE_NO_PAD.encode(random.bytes::<SECRET_BYTES>()?)))
    }

    /// A fresh code for a person to type, such as `BCDF-GHJK-LM`. Ten letters out of twenty.
    ///
    /// # Errors
    /// When there is no randomness.
    pub(crate) fn fresh_user_code(random: &Random) -> Result<Self, NoRandomness> {
        let mut letters = Vec::with_capacity(USER_CODE_LENGTH);
        while letters.len() < USER_CODE_LENGTH {
            letters.extend(random.bytes::<SECRET_BYTES>()?.into_iter().filter_map(letter));
        }
        letters.truncate(USER_CODE_LENGTH);
        Ok(Self(letters.into_iter().collect()))
    }

    /// A fresh one-time code that says until when it may be redeemed. The hash covers that time, so it
    /// cannot be changed by whoever holds the code.
    ///
    /// # Errors
    /// When there is no randomness.
    pub(crate) fn fresh_code(random: &Random, until: OffsetDateTime) -> Result<Self, NoRandomness> {
        let Self(secret) = Self::fresh(random)?;
        Ok(Self(format!("{}.{secret}", until.unix_timestamp())))
    }

    /// What somebody presented.
    pub(crate) fn presented(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// What a person typed: letters alone count, in either case.
    pub(crate) fn typed(text: &str) -> Self {
        Self(
            text.chars()
                .filter(char::is_ascii_alphanumeric)
                .map(|letter| letter.to_ascii_uppercase())
                .collect(),
        )
    }

    /// For the one place that sends it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// As it is stored.
    pub(crate) fn hash(&self) -> Hash {
        hash_of(self.0.as_bytes())
    }

    /// Whether this is the secret of which that hash was kept.
    pub(crate) fn matches(&self, hash: Option<&Hash>) -> bool {
        hash.is_some_and(|hash| constant_time::verify_slices_are_equal(&self.hash(), hash).is_ok())
    }

    /// Whether a one-time code is past its own time.
    pub(crate) fn is_late(&self, now: OffsetDateTime) -> bool {
        let until = self
            .0
            .split_once('.')
            .and_then(|(until, _)| until.parse::<i64>().ok());
        until.is_none_or(|until| now.unix_timestamp() > until)
    }

    /// Grouped for reading: `BCDF-GHJK-LM`.
    pub(crate) fn grouped(&self) -> String {
        let letters: Vec<char> = self.0.chars().collect();
        letters
            .chunks(4)
            .map(|group| group.iter().collect::<String>())
            .collect::<Vec<_>>()
            .join("-")
    }

    /// A value that only the holder of this secret, and of `context`, can compute.
    fn derive(&self, purpose: &str, context: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.as_bytes());
        let tag = hmac::sign(&key, format!("iap-login-{purpose}\0{context}").as_bytes());
        URL_SAFE_NO_PAD.encode(tag.as_ref())
    }

    /// The OIDC nonce, from the browser's cookie and `state`.
    pub(crate) fn nonce(&self, state: &Secret) -> String {
        self.derive("nonce", &state.0)
    }

    /// The PKCE verifier (RFC 7636 §4.1), from the browser's cookie and `state`.
    pub(crate) fn pkce_verifier(&self, state: &Secret) -> String {
        self.derive("pkce", &state.0)
    }

    /// What the approval form carries, from the browser's cookie and the login's id.
    pub(crate) fn form_token(&self, login: &str) -> String {
        self.derive("form", login)
    }

    /// Whether a form carried [`Secret::form_token`].
    pub(crate) fn made_form_token(&self, login: &str, presented: &str) -> bool {
        constant_time::verify_slices_are_equal(self.form_token(login).as_bytes(), presented.as_bytes())
            .is_ok()
    }
}

/// The S256 challenge of a PKCE verifier (RFC 7636 §4.2).
pub(crate) fn pkce_challenge(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(hash_of(verifier.as_bytes()))
}

/// Evenly distributed: bytes beyond the last whole multiple of twenty are not used.
fn letter(byte: u8) -> Option<char> {
    let usable = 256 - 256 % USER_CODE_LETTERS.len();
    let index = usize::from(byte);
    if index >= usable {
        return None;
    }
    USER_CODE_LETTERS
        .get(index % USER_CODE_LETTERS.len())
        .map(|letter| char::from(*letter))
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;
    use time::Duration;

    #[test]
    fn a_user_code_has_more_than_forty_bits_and_reads_in_groups() {
        let code = Secret::fresh_user_code(&Random::system()).unwrap();
        assert_eq!(code.expose().len(), USER_CODE_LENGTH);
        assert!((USER_CODE_LETTERS.len() as f64).log2() * USER_CODE_LENGTH as f64 > 40.0);
        let grouped = code.grouped();
        assert_eq!(grouped.len(), 12);
        assert!(Secret::typed(&format!(" {} ", grouped.to_lowercase())).matches(Some(&code.hash())));
    }

    #[test]
    fn a_code_is_late_after_its_time_and_cannot_be_given_another() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::days(20_000);
        let code = Secret::fresh_code(&Random::system(), now).unwrap();
        assert!(!code.is_late(now) && code.is_late(now + Duration::seconds(1)));
        let (_, secret) = code.expose().split_once('.').unwrap();
        let extended = Secret::presented(&format!(
            "{}.{secret}",
            (now + Duration::hours(1)).unix_timestamp()
        ));
        assert!(!extended.matches(Some(&code.hash())));
    }

    #[test]
    fn the_challenge_is_that_of_rfc_7636_appendix_b() {
        let challenge = pkce_challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
        assert_eq!(challenge, "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn derived_values_differ_by_purpose_cookie_and_state() {
        let (cookie, other) = (Secret::presented("a"), Secret::presented("b"));
        let (state, later) = (Secret::presented("s"), Secret::presented("t"));
        let nonce = cookie.nonce(&state);
        assert_ne!(nonce, cookie.pkce_verifier(&state));
        assert_ne!(nonce, other.nonce(&state));
        assert_ne!(nonce, cookie.nonce(&later));
        assert!(cookie.pkce_verifier(&state).len() >= 43);
    }
}
